"""The doors of Python and of pytest."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import torch

from steprule.check.checks import Check
from steprule.check.claims import Subject
from steprule.check.report import Report
from steprule.check.runner import EXPECTED, FAILED, SKIPPED, chosen, look, results


def run(subject: Subject, tiers: Collection[str] = (), checks: Collection[str] = (), seed: int = 0) -> Report:
    """Runs the checks of these tiers, or with these names; of neither, all but those that take several processes.

    Raises:
        ValueError: there is no such tier or check, or a claim makes no sense.
    """
    return Report(subject, list(results(subject, tiers, checks, seed)), seed, versions(subject))


def versions(subject: Subject) -> dict[str, str]:
    """The releases that a result depends on."""
    package = subject.place.partition(":")[0].partition(".")[0]
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in packages_distributions().get(package, [package]):
        try:
            found.setdefault(name, version(name))
        except PackageNotFoundError:
            continue
    return found


def parametrize_with_checks(
    subjects: Sequence[Subject], tiers: Collection[str] = (), seed: int = 0
) -> Callable[..., Any]:
    """A decorator that makes a test of each check of each subject.

        @parametrize_with_checks([Subject(MyOptimizer, Claims(decay="decoupled"), lr=1e-3)])
        def test_my_optimizer(check):
            check()

    Tests are called ``MyOptimizer-resumes_exactly`` and so on. What is not claimed is skipped; an expected failure is an xfail
    with its reason, and fails if it passes.
    """
    import pytest

    entries = []
    for subject in subjects:
        for check in chosen(tiers):
            entries.append(pytest.param(_Bound(check, subject, seed), id=f"{subject.name}-{check.name}"))
    return pytest.mark.parametrize("check", entries)


@dataclass(frozen=True)
class _Bound:
    """A check of a subject as a function without arguments, for pytest."""

    check: Check
    subject: Subject
    seed: int

    def __call__(self) -> None:
        import pytest

        result = look(self.check, self.subject, self.seed)
        if result.status == SKIPPED:
            pytest.skip(result.reason)
        if result.status == EXPECTED:
            pytest.xfail(result.reason)
        if result.status == FAILED:
            pytest.fail(f"{self.check.says}\n{result.reason}\n\n{result.reproducer}", pytrace=False)
