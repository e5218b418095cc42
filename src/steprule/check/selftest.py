"""The checks themselves: whether each broken optimizer is found by the check that is meant for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from steprule.check.broken import FAULTS, Fault, claimed
from steprule.check.broken.correct import AdamW, Muon
from steprule.check.checks import CHECKS
from steprule.check.claims import Subject
from steprule.check.runner import FAILED, Result, results


@dataclass(frozen=True)
class Finding:
    """What the checks find in one of the optimizers.

    Attributes:
        name: of its class.
        fault: what is wrong with it; None for one without a fault.
        failed: the results that are failures.
    """

    name: str
    fault: Fault | None
    failed: tuple[Result, ...]

    @property
    def right(self) -> bool:
        """Whether the check that is meant for the fault finds it; of an optimizer without a fault, whether none does."""
        if self.fault is None:
            return not self.failed
        return self.fault.found_by in [result.check.name for result in self.failed]


def self_test(processes: bool = False, names: Collection[str] = ()) -> Iterator[Finding]:
    """Runs all checks of one process on the optimizers without a fault, and on the broken ones.

    Args:
        processes: whether to run the checks that take several processes, too, on those that they are meant for.
        names: the broken optimizers to look at; all by default.
    """
    for optimizer in (AdamW, Muon):
        yield Finding(optimizer.__name__, None, _failed(claimed(optimizer), []))
    for name, fault in FAULTS.items():
        if names and name not in names:
            continue
        apart = CHECKS[fault.found_by].processes > 1
        if not apart:
            yield Finding(name, fault, _failed(fault.subject, []))
        elif processes:
            yield Finding(name, fault, _failed(fault.subject, [fault.found_by]))


def _failed(subject: Subject, checks: Collection[str]) -> tuple[Result, ...]:
    return tuple(result for result in results(subject, names=checks) if result.status == FAILED)


def line(finding: Finding) -> str:
    """A finding in a line: the class, the check that is meant for it, what else finds it, and where such a fault was."""
    others = [
        result.check.name
        for result in finding.failed
        if not finding.fault or result.check.name != finding.fault.found_by
    ]
    also = f"  (and {len(others)} more: {', '.join(others[:2])}{', ...' if len(others) > 2 else ''})" if others else ""
    if finding.fault is None:
        return f"{finding.name:34} has no fault: {'none is found' if finding.right else 'but these fail: ' + ', '.join(others)}"
    found = "found by" if finding.right else "NOT found by"
    return f"{finding.name:34} {found} {finding.fault.found_by}{also}  [{finding.fault.seen}]"
