"""Checks that every torch optimizer can be held to: what ``steprule check`` runs.

    from steprule.check import Claims, Subject, run

    report = run(Subject(torch.optim.AdamW, Claims(decay="decoupled", elementwise=True), lr=1e-3))
    print(report)

In tests, `parametrize_with_checks` makes a test of each check. What is claimed is checked; what is not, is named.
"""

from steprule.check.checks import CHECKS, Check
from steprule.check.claims import Claims, Subject
from steprule.check.doors import parametrize_with_checks, run
from steprule.check.own import claims_of
from steprule.check.report import Report
from steprule.check.runner import Result

__all__ = ["CHECKS", "Check", "Claims", "Report", "Result", "Subject", "claims_of", "parametrize_with_checks", "run"]
