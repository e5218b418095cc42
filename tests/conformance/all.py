"""Every optimizer of steprule's held to all checks, and the checks to all faults: `nox -s conformance`, some minutes.

pytest does not collect this file by its name: the main test command runs tests/test_check.py, which has a part of it.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from own_claims import own

from steprule.check import parametrize_with_checks
from steprule.check.checks import TIERS
from steprule.check.selftest import self_test
from steprule.rules import OWN

DENSE = [name for name in OWN if name != "sparseadam"]


@parametrize_with_checks([own(name) for name in DENSE], tiers=[tier for tier in TIERS if tier != "distributed"])
def test_own(check):
    check()


@parametrize_with_checks(
    [own(name) for name in ("adamw", "muon", "muoneq", "lamb", "normuon", "soap")], tiers=["distributed"]
)
def test_own_in_processes(check):
    check()


def test_every_fault_is_found_and_the_correct_pass():
    wrong = [finding.name for finding in self_test(processes=True) if not finding.right]
    assert not wrong


if __name__ == "__main__":
    pytest.main([__file__])
