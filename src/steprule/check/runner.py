"""The loop over checks, and what comes of each."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from steprule.check import cost, distributed, gradients, manners, matrix, numbers, state
from steprule.check.checks import CHECKS, TIERS, Case, Check
from steprule.check.claims import MISSING, Subject
from steprule.check.processes import run_in_processes
from steprule.names import did_you_mean

MODULES = (manners, gradients, state, numbers, matrix, cost, distributed)
"""Which enter their functions in CHECKS."""

PASSED, FAILED, SKIPPED, EXPECTED = "passed", "failed", "skipped", "expected"


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes:
        check: which.
        status: "passed", "failed", "skipped" or "expected", for a failure that was.
        reason: what fails; what is not claimed; why it is expected; or what was found.
        reproducer: a program that shows a failure.
    """

    check: Check
    status: str
    reason: str = ""
    reproducer: str = ""


def chosen(tiers: Collection[str] = (), names: Collection[str] = ()) -> list[Check]:
    """The checks of these tiers, or with these names; of neither, all but those that take several processes.

    Raises:
        ValueError: there is no such tier or check.
    """
    for given, known, what, others in (
        (tiers, TIERS, "tier", f"choose from {', '.join(TIERS)}"),
        (names, CHECKS, "check", "a run of all prints their names"),
    ):
        for one in given:
            if one not in known:
                raise ValueError(f"there is no {what} {one!r}{did_you_mean(one, known, otherwise=others)}")
    found = sorted(CHECKS.values(), key=lambda check: TIERS.index(check.tier))
    if not tiers and not names:
        return [check for check in found if check.processes == 1]
    return [check for check in found if check.tier in tiers or check.name in names]


def look(check: Check, subject: Subject, seed: int = 0) -> Result:
    """Runs one check.

    Raises:
        RuntimeError: Python runs without assertions, and no check could fail.
    """
    if not __debug__:
        raise RuntimeError("python -O leaves out assertions, which checks are made of: run it without -O")
    lacking = [MISSING.get(need, need) for need in check.needs if not getattr(subject.claims, need)]
    if lacking:
        return Result(check, SKIPPED, f"not claimed: {', '.join(lacking)}")
    reason, case, looked = _failure(check, subject, seed)
    expected = subject.claims.expected_failures.get(check.name)
    if not looked:
        return Result(check, SKIPPED, "it has no argument that this is about")
    if case is None:
        if expected is not None:
            return Result(check, FAILED, f"it passes, and was expected to fail ({expected}): expect it no longer")
        return Result(check, PASSED, reason)
    if expected is not None:
        return Result(check, EXPECTED, expected, check.reproducer(subject, case))
    explained = check.explain(subject) if check.explain else ""
    return Result(check, FAILED, reason + (f"; {explained}" if explained else ""), check.reproducer(subject, case))


def _failure(check: Check, subject: Subject, seed: int) -> tuple[str, Case | None, bool]:
    """What fails and with which case; without a failure what was found; and whether there was any case."""
    found: list[str] = []
    looked = False
    for case in check.cases(subject):
        looked = True
        try:
            with warnings.catch_warnings(), torch.set_grad_enabled(True), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                torch.manual_seed(seed)
                if check.processes > 1:
                    run_in_processes(check.reproducer(subject, case), check.processes)
                else:
                    found += [note] if (note := check.function(subject.make, **case)) else []
        except (Exception, SystemExit) as error:  # whatever somebody's optimizer raises
            return _told(error), case, True
    return ", ".join(found), None, looked


def _told(error: BaseException) -> str:
    """An error in a line of a report: what an assertion says, or what was raised."""
    text = str(error)
    if not isinstance(error, AssertionError):
        text = f"{type(error).__name__}: {text}"
    elif not text:
        at = traceback.extract_tb(error.__traceback__)[-1]
        text = f"AssertionError in {at.name}: {at.line}"
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    text = "".join(one if one.isprintable() else "?" for one in text)
    return text if len(text) < 300 else text[:297] + "..."


def results(
    subject: Subject, tiers: Collection[str] = (), names: Collection[str] = (), seed: int = 0
) -> Iterator[Result]:
    """The results of checks, one after the other.

    Raises:
        ValueError: there is no such tier or check, or no check of which a failure is expected.
    """
    for name in subject.claims.expected_failures:
        if name not in CHECKS:
            raise ValueError(f"expected_failures: there is no check {name!r}{did_you_mean(name, CHECKS)}")
    for check in chosen(tiers, names):
        yield look(check, subject, seed)


def passes(found: Any) -> bool:
    """Whether no result is a failure."""
    return all(result.status != FAILED for result in found)
