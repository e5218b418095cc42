"""What ``steprule check`` does, from its arguments to its exit code."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from steprule.check.broken.fault import OWN
from steprule.check.checks import CHECKS
from steprule.check.claims import CLAIMS, Claims, Subject
from steprule.check.differ import differences
from steprule.check.doors import run
from steprule.check.own import claims_of, settings_of
from steprule.check.report import WRITERS, as_json, table
from steprule.check.runner import chosen
from steprule.check.selftest import line, self_test
from steprule.compare.errors import UsageError
from steprule.compare.imports import import_function
from steprule.compare.spec import parse
from steprule.names import did_you_mean
from steprule.registry import class_names, plain

__all__ = ["check", "subject_of", "test_itself"]


def check(
    optimizer: str,
    settings: Sequence[str] = (),
    claims: Sequence[str] = (),
    expected: Sequence[str] = (),
    tiers: Sequence[str] = (),
    checks: Sequence[str] = (),
    other: str | None = None,
    reports: Sequence[Path] = (),
    seed: int = 0,
    as_json_only: bool = False,
) -> int:
    """Checks an optimizer, prints the table and writes the reports; or says how two optimizers differ.

    Args:
        optimizer: ``package:Class``, ``torch.Class`` or a name of steprule's.
        settings: ``name=value``, which every optimizer is made with.
        claims: names of claims, or ``name=value``.
        expected: ``check=reason`` for checks that are expected to fail.
        tiers, checks: what to run; by default all that takes one process.
        other: an optimizer to compare with, perhaps with settings after a second colon; then nothing is checked.
        reports: files for the report, whose endings say what is written.
        seed: what torch is seeded with before each check.
        as_json_only: whether standard output gets JSON instead of the table.

    Returns:
        The exit code: 0, or 1 if a check failed.

    Raises:
        ValueError: an argument cannot be right. Nothing has been checked then.
    """
    for path in reports:
        if path.suffix not in WRITERS:
            raise UsageError(f"--report {path}: the ending must be one of {', '.join(WRITERS)}")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"--report {path} cannot be written: there is no directory {path.parent}")
    torch.set_num_threads(1)  # the tensors are small
    subject = subject_of(optimizer, settings, claims, expected)
    if other is not None:
        for told in differences(subject, subject_of(other)):
            print(told)
        return 0
    chosen(tiers, checks)
    with contextlib.redirect_stdout(sys.stderr):  # where optimizers print
        report = run(subject, tiers, checks, seed)
    print(as_json(report) if as_json_only else table(report))
    for path in reports:
        try:
            path.write_text(WRITERS[path.suffix](report), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--report {path} cannot be written: {error.strerror}") from error
    return 0 if report.passed else 1


def test_itself() -> int:
    """Prints which check finds which of the broken optimizers; returns 1 if one is not found."""
    torch.set_num_threads(1)
    findings = []
    for finding in self_test(processes=True):
        findings.append(finding)
        print(line(finding), flush=True)
    faults = [finding for finding in findings if finding.fault]
    found = sum(finding.right for finding in faults)
    own = sum(finding.fault is not None and finding.fault.seen == OWN for finding in faults)
    print(
        f"\n{found} of {len(faults)} faults are found by the check that is meant for them, out of {len(CHECKS)} checks. "
        f"{len(faults) - own} are of a kind that was published where the brackets say; {own} are {OWN}."
    )
    return 0 if all(finding.right for finding in findings) else 1


def subject_of(
    text: str, settings: Sequence[str] = (), claims: Sequence[str] = (), expected: Sequence[str] = ()
) -> Subject:
    """An optimizer as the command line names it, with what its rule claims, if it has one, and what is claimed besides.

    Raises:
        UsageError: there is none, it takes no such settings, or a claim makes no sense.
    """
    module, colon, name = text.partition(":")
    is_class = bool(colon) and "=" not in name.partition(":")[0]
    dotted = f"{module}.{name}" if is_class else text
    spec = parse(dotted + ("," if "=" in dotted else ":") * bool(settings) + ",".join(settings))
    if is_class:
        place = f"{module}:{name.partition(':')[0]}"
    elif plain(spec.name) in class_names():
        place = f"steprule:{spec.optimizer.__name__}"
    else:
        home, _, last = spec.name.rpartition(".")
        place = f"{'torch.optim' if home == 'torch' else home}:{last}"
    _check_steps(spec.name, spec.optimizer)
    made_with = {**settings_of(spec.optimizer), **dict(spec.settings)}
    known = claims_of(spec.optimizer, made_with)
    return Subject(spec.optimizer, read_claims(claims, expected, known), place, **made_with)


def _check_steps(name: str, optimizer: Any) -> None:
    """Raises UsageError for an optimizer that no check could step."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(f"optimizer {name!r}: its step needs a closure, which checks do not give")
    if getattr(getattr(optimizer, "rule", None), "sparse_only", False):
        raise UsageError(
            f"optimizer {name!r} takes sparse gradients only, and checks give dense ones; check adam instead"
        )


def read_claims(texts: Sequence[str], expected: Sequence[str] = (), known: Claims | None = None) -> Claims:
    """Claims as the command line names them, and those that are known already.

    Raises:
        UsageError: there is no such claim or check, or a value cannot be read.
    """
    known = known or Claims()
    kinds = {one.name: str(one.type) for one in fields(Claims)}
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in CLAIMS and name != "mode":
            raise UsageError(
                f"--claim {text!r}: there is no {name!r}{did_you_mean(name, CLAIMS, otherwise='choose from ' + ', '.join(CLAIMS))}"
            )
        if kinds[name] == "bool" and not equals:
            given[name] = True
        elif not value or kinds[name] == "bool":
            raise UsageError(f"--claim {text!r} must look like {name}" + "=VALUE" * (kinds[name] != "bool"))
        else:
            given[name] = _claimed(name, value, kinds[name])
    reasons = {}
    for text in expected:
        name, _, reason = text.partition("=")
        if name not in CHECKS:
            raise UsageError(
                f"--expect {text!r}: there is no check {name!r}{did_you_mean(name, CHECKS, otherwise='a run of all prints their names')}"
            )
        if not reason.strip():
            raise UsageError(f"--expect {text!r} must look like {name}=REASON")
        reasons[name] = reason
    try:
        return replace(known, **given, expected_failures={**known.expected_failures, **reasons})
    except ValueError as error:
        raise UsageError(f"--claim {error}") from error


def _claimed(name: str, value: str, kind: str) -> Any:
    """The value of a claim: a number, a function, or the text itself."""
    if "float" in kind:
        try:
            return float(ast.literal_eval(value))
        except (ValueError, SyntaxError, TypeError) as error:
            raise UsageError(f"--claim {name}={value} must be a number") from error
    if name == "formula" and ":" in value:
        return import_function(value, f"--claim formula={value}", "name a function as module:function")[0]
    return value
