"""steprule check: the checks find what they are meant for, their reproducers run by themselves, and steprule's own classes pass."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from forked import fresh
from own_claims import own

import steprule
from steprule.check import CHECKS, Claims, Subject, claims_of, parametrize_with_checks, run
from steprule.check.broken import FAULTS, claimed
from steprule.check.broken.correct import AdamW, Muon
from steprule.check.checks import grad
from steprule.check.claims import shown
from steprule.check.differ import differences
from steprule.check.report import as_json, as_junit, as_markdown, table
from steprule.check.runner import look

ALONE = {name: fault for name, fault in FAULTS.items() if CHECKS[fault.found_by].processes == 1}
UNTRIED = {
    "step_time",  # cannot fail
    *("takes_sparse_gradients", "steps_complex_parameters", "takes_a_tensor_as_lr"),  # AdamW there takes none of them
    *("foreach_is_the_loop", "fused_is_the_loop", "takes_the_arguments_of", "loads_checkpoints_of"),
}
"""Checks for which no broken optimizer ships."""


def runs(reproducer: str) -> None:
    exec(compile(reproducer, "<reproducer>", "exec"), {"__name__": "reproducer"})


@pytest.mark.parametrize("name", ALONE)
def test_a_fault_is_found_and_its_reproducer_shows_it(name):
    fault = ALONE[name]
    result = look(CHECKS[fault.found_by], fault.subject)
    assert result.status == "failed" and result.reason
    own_module = fault.optimizer.__module__
    assert "steprule" not in result.reproducer.replace(own_module, "") and result.reproducer.count("\n") < 10
    grad_mode = torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(devices=[]), pytest.raises(Exception) as seen:
            runs(result.reproducer)
    finally:
        torch.set_grad_enabled(grad_mode)
    told = " ".join(str(seen.value).split())
    assert told[:60] in result.reason


@pytest.mark.parametrize("shape", [(3, 4), (4, 6), (6, 4), (4, 4), (2, 7)], ids=str)
def test_made_up_gradients_are_far_from_a_lower_rank(shape):
    """Rules that make all singular values equal would step by what rounding leaves of the smallest."""
    for k in range(8):
        values = torch.linalg.svdvals(grad(torch.ones(shape), k).double())
        assert values[-1] > 0.05 * values[0]


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_without_a_fault_nothing_is_found(optimizer):
    report = run(claimed(optimizer))
    assert [result.check.name for result in report.results if result.status == "failed"] == []
    assert sum(result.status == "passed" for result in report.results) > 60


def test_torchs_own_class_is_a_drop_in_for_itself():
    claims = Claims(drop_in_for="torch.optim.AdamW", foreach=True, fused=True, complex=True, elementwise=True)
    report = run(Subject(torch.optim.AdamW, claims, "torch.optim:AdamW", lr=1e-3), tiers=["numbers"])
    assert [result.check.name for result in report.results if result.status == "failed"] == []


def test_every_check_has_a_fault_that_it_is_meant_for():
    assert len(FAULTS) >= 50
    assert CHECKS.keys() - {fault.found_by for fault in FAULTS.values()} == UNTRIED
    assert all(fault.says for fault in FAULTS.values())


@pytest.mark.parametrize("name", CHECKS)
def test_every_reproducer_has_at_most_ten_lines_and_is_python(name):
    everything = Claims(
        sparse=True, foreach=True, fused=True, tensor_lr=True, bfloat16=True, decay="decoupled", state_bytes=8,
        drop_in_for="torch.optim.AdamW", orthogonal=0.5,
    )  # fmt: skip
    subject = Subject(torch.optim.AdamW, everything, "torch.optim:AdamW", lr=1e-3)
    texts = [CHECKS[name].reproducer(subject, case) for case in CHECKS[name].cases(subject)]
    for text in texts:
        compile(text, name, "exec")
        assert text.count("\n") < 10 and "steprule" not in text
    assert texts


def test_a_reproducer_runs_where_there_is_no_steprule(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "import torch\n\nclass Forgetful(torch.optim.SGD):\n    def step(self, closure=None):\n        super().step(closure)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        from theirs import Forgetful
    finally:
        sys.path.remove(str(tmp_path))
    result = look(CHECKS["returns_the_loss"], Subject(Forgetful, lr=0.01))
    code = f"import sys; sys.modules['steprule'] = None\n{result.reproducer}"
    done = fresh(code, [tmp_path])
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == f"AssertionError: {result.reason}"


@parametrize_with_checks([own("adamw")])
def test_own(check):
    check()


@pytest.mark.parametrize("name", ["sgd", "lion", "muon"])
def test_own_classes_pass_everything_that_is_claimed(name):
    failed = [f"{result.check.name}: {result.reason}" for result in run(own(name)).results if result.status == "failed"]
    assert failed == []


def test_what_is_not_claimed_is_skipped_by_name():
    result = look(CHECKS["maximizes"], Subject(AdamW))
    assert (result.status, result.reason) == ("skipped", "not claimed: maximize")
    assert look(CHECKS["follows_its_formula"], Subject(AdamW)).reason == "not claimed: formula or drop_in_for"


def test_an_expected_failure_has_a_reason_and_fails_if_it_passes():
    fault = FAULTS["ForgetsTheLoss"]
    expecting = Claims(expected_failures={"returns_the_loss": "nobody asks"})
    check = CHECKS["returns_the_loss"]
    assert look(check, Subject(fault.optimizer, expecting)).status == "expected"
    passing = look(check, Subject(AdamW, expecting))
    assert passing.status == "failed" and "expect it no longer" in passing.reason
    with pytest.raises(ValueError, match="must be the reason"):
        Claims(expected_failures={"returns_the_loss": ""})
    with pytest.raises(ValueError, match=r"there is no check 'returns_a_loss'; did you mean 'returns_the_loss'\?"):
        run(Subject(AdamW, Claims(expected_failures={"returns_a_loss": "x"})), checks=["repeats_itself"])


def test_a_claim_that_is_wrong_fails():
    adam = Subject(torch.optim.Adam, Claims(decay="decoupled", formula="adamw"), "torch.optim:Adam")
    reasons = {result.check.name: result.reason for result in run(adam, tiers=["numbers"]).results}
    assert reasons["decays_as_claimed"] == "weight_decay is coupled, not decoupled"
    assert "those of Adam, where decay is coupled: added to the gradient" in reasons["follows_its_formula"]


class OwnSign(steprule.Rule):
    def update(param, grad, *, lr=1e-3):
        return param - lr * steprule.sign(grad)


def own_sign(param, grads, lr=1e-3, **others):
    return param - lr * sum(np.sign(grad) for grad in grads)


@pytest.mark.parametrize("formula", [OwnSign, own_sign])
def test_a_rule_and_a_function_are_formulas(formula):
    subject = Subject(steprule.Optimizer.of(OwnSign), Claims(formula=formula), "steprule:SGD", lr=0.1)
    assert look(CHECKS["follows_its_formula"], subject).status == "passed"
    other = Subject(steprule.SGD, Claims(formula=formula), lr=0.1)
    assert look(CHECKS["follows_its_formula"], other).status == "failed"


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        (lambda param, grad, m, *, lr=1e-3: param, r"formula=<lambda> must be .* \(param, grads, \*\*settings\).*: the optimizer has no setting m; states begin"),
        (lambda param, grads, lr, foo: param, "no setting foo; "),
        (lambda: None, "too many positional arguments"),
        (steprule.SGD, "formula=SGD must be .*, not a class"),
    ],
)  # fmt: skip
def test_what_is_not_called_as_a_formula_is_refused_before_anything_is_checked(formula, told):
    with pytest.raises(ValueError, match=told):
        Subject(steprule.SGD, Claims(formula=formula))


def failing(param, grads, lr=0.1, error=ValueError):
    raise error("no such lr")


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        (failing, "formula=failing fails with {'lr'.*: ValueError: no such lr"),
        (functools.partial(failing, error=KeyError), "formula=partial fails with {.*: KeyError"),
        (lambda param, grads, lr=0.1: (param, grads), r"must return the parameter alone, an array of shape \(3, 4\), not a tuple"),
        (lambda param, grads, lr=0.1: param[0], r"not an array of shape \(4,\)"),
    ],
)  # fmt: skip
def test_a_formula_that_computes_nothing_ends_the_run_with_a_sentence(formula, told):
    with pytest.raises(ValueError, match=told):
        run(Subject(steprule.SGD, Claims(formula=formula)), checks=["follows_its_formula"])


class Orthogonal(steprule.Rule):
    decay = "decoupled"

    def update(param, grad, m, *, lr=0.02, weight_decay=0.0):
        m = steprule.ema(m, grad, 0.9)
        return param - lr * (steprule.polar(m) + weight_decay * param), m


class InTurn(steprule.Rule):
    def update(param, grad, old, *, step, lr=0.02):
        old = steprule.every(3, step, lambda: steprule.polar(grad), old)
        return param - lr * old, old


def test_what_a_rule_shows_is_claimed_of_its_optimizer():
    own = claims_of(steprule.Optimizer.of(Orthogonal))
    assert (own.params, own.decay, own.formula, own.separate) == ("2d", "decoupled", Orthogonal, True)
    assert own.bfloat16 and own.maximize and own.tensor_lr and not own.elementwise and not own.complex
    assert not claims_of(steprule.Optimizer.of(InTurn)).separate
    sign = claims_of(steprule.Optimizer.of(OwnSign))
    assert (sign.params, sign.elementwise, sign.complex) == ("any", True, True)
    assert not claims_of(steprule.Prodigy).separate and claims_of(steprule.Adafactor).separate
    assert not claims_of(steprule.LAMB).elementwise
    assert claims_of(steprule.Muon, {"states": "8bit"}) == Claims(params="2d", float32_only=True)
    with pytest.raises(
        ValueError, match="weights='24bit' is for bfloat16 and float16 parameters, and checks step float32"
    ):
        claims_of(steprule.AdamW, {"weights": "24bit"})
    assert claims_of(torch.optim.AdamW) == Claims()


def test_what_takes_no_float64_is_checked_in_float32():
    names = ["uses_every_argument", "agrees_between_dtypes"]
    claims = claims_of(steprule.AdamW, {"states": "8bit"})
    found = run(Subject(steprule.AdamW, claims, states="8bit"), checks=names).results
    assert {one.check.name: one.status for one in found} == dict(zip(names, ("passed", "skipped"), strict=True))


def test_the_command_knows_what_rules_claim(capsys):
    from steprule.check.command import check, subject_of

    names = ["follows_its_formula", "takes_any_shape", "stays_finite", "decays_as_claimed"]
    assert check("muon", checks=names) == 0
    assert "3 passed, 1 skipped" in capsys.readouterr().out
    assert check("soap", checks=["stays_finite"]) == 0
    assert "1 failed as expected" in capsys.readouterr().out
    assert check("test_check:Orthogonal", checks=names) == 0
    assert "3 passed, 1 skipped" in capsys.readouterr().out
    told = subject_of("adamw", claims=["decay=coupled"], expected=["counts_on=said here"]).claims
    assert (told.decay, told.drop_in_for, told.expected_failures) == (
        "coupled", "torch.optim.AdamW", {"counts_on": "said here"},
    )  # fmt: skip


class Twice(steprule.Optimizer, rule=OwnSign):
    def step(self, closure=None):
        super().step(closure)
        return super().step()


def test_a_step_that_is_not_the_rules_formula_is_found(capsys):
    from steprule.check.command import check

    assert check("test_check:Twice", checks=["follows_its_formula"]) == 1
    assert "after twelve steps as it is made by default it is off by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "told"),
    [("lbfgs", "its step needs a closure"), ("sparseadam", "takes sparse gradients only"), ("torch.LBFGS", "closure")],
)
def test_what_no_check_can_step_is_refused(name, told):
    from steprule.check.command import check

    with pytest.raises(ValueError, match=told):
        check(name)


@pytest.mark.parametrize(
    ("optimizer", "claim", "check"),
    [
        (steprule.NorMuon, "rotation", "is_the_same_in_other_bases"),
        (steprule.MuonEq, "transpose", "is_the_same_transposed"),
        (steprule.MUD, "rotation", "ignores_the_order_of_rows"),
        (steprule.Adafactor, "batch", "steps_a_stack_as_its_matrices"),
    ],
)
def test_a_wrong_claim_of_matrices_fails_by_a_part_of_what_they_move(optimizer, claim, check):
    wrong = Subject(optimizer, Claims(params="2d", **{claim: True}))
    assert look(CHECKS[check], wrong).status == "failed"


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "EpsInsideTheRoot": "eps is inside the root",
        "EpsBeforeCorrection": "eps is added to the root before bias correction",
        "EpsAsABound": "eps is a lower bound of the root",
        "SwapsBetas": "the betas are swapped",
        "CorrectsNothing": "no moment is corrected for bias",
        "CorrectsTheFirstOnly": "only the first moment is corrected for bias",
        "DecaysAfterTheUpdate": "decay is decoupled, and of the parameter after its update",
        "AddsTheGradientTwice": "momentum is Nesterov's",
        "SkipsTheFirstStep": "the first step is skipped",
        "IgnoresDecay": "there is no decay",
        "DecaysWithoutLr": "decay is independent of lr",
    }.items(),
)
def test_a_difference_has_a_name(name, words):
    broken = Subject(FAULTS[name].optimizer, Claims(formula="adamw"), lr=0.05)
    assert look(CHECKS["follows_its_formula"], broken).reason.endswith(f"its numbers are those of Adam, where {words}")
    (told,) = differences(broken, Subject(AdamW, place="plain:AdamW"))[-1:]
    assert words in told and "plain:AdamW" in told


def test_what_differs_without_a_name_is_narrowed_down():
    told = differences(Subject(steprule.AdaBelief, place="a:AdaBelief"), Subject(steprule.AdamW, place="b:AdamW"))
    assert "b:AdamW is Adam, where decay is decoupled, times lr." in told and any(
        "They differ from step 1 on" in line for line in told
    )
    assert differences(Subject(steprule.Lion), Subject(steprule.Lion)) == [
        "With lr=0.05, betas=(0.8, 0.95), weight_decay=0.1 they take the same steps."
    ]


def test_a_report_in_every_form():
    broken = FAULTS["ForgetsTheLoss"].subject
    report = run(broken, checks=["returns_the_loss", "repeats_itself", "takes_sparse_gradients"])
    assert not report.passed and report.counts == "1 passed, 1 failed, 1 skipped"
    text = table(report)
    assert (
        "returns_the_loss        failed   step returns None, the closure 2.0" in text and "    make = functools" in text
    )
    rows = {row["check"]: row for row in json.loads(as_json(report))["results"]}
    assert rows["returns_the_loss"]["reproducer"] and rows["repeats_itself"]["status"] == "passed"
    suite = ElementTree.fromstring(as_junit(report))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert "| repeats_itself | passed |  |" in as_markdown(report) and "```python" in as_markdown(report)


def test_the_command(capsys, tmp_path):
    from steprule.check.command import check

    file = tmp_path / "report.json"
    names = ["moves_at_the_first_step", "decays_as_claimed"]
    assert check("torch.optim:AdamW", ["lr=1e-2"], ["decay=decoupled"], checks=names, reports=[file]) == 0
    assert "2 passed" in capsys.readouterr().out
    assert json.loads(file.read_text())["settings"] == {"lr": "0.01"}
    assert check("adam", claims=["decay=decoupled"], checks=names) == 1
    assert check("torch.Adam", other="adamw") == 0
    assert "In torch.optim:Adam decay is coupled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"claims": ["decays=coupled"]}, "--claim 'decays=coupled': there is no 'decays'; did you mean 'decay'?"),
        ({"claims": ["decay=double"]}, "--claim decay='double' must be one of coupled, decoupled, independent"),
        ({"claims": ["maximize=1"]}, "--claim 'maximize=1' must look like maximize"),
        ({"claims": ["state_bytes=few"]}, "--claim state_bytes=few must be a number"),
        ({"expected": ["repeats_itself="]}, "--expect 'repeats_itself=' must look like repeats_itself=REASON"),
        ({"expected": ["repeats_itselv=x"]}, "--expect 'repeats_itselv=x': there is no check 'repeats_itselv'"),
        (
            {"reports": [Path("/nowhere/x.xml")]},
            "--report /nowhere/x.xml cannot be written: there is no directory /nowhere",
        ),
        ({"checks": ["nope"]}, "there is no check 'nope'; a run of all prints their names"),
        (
            {"tiers": ["nope"]},
            "there is no tier 'nope'; choose from manners, state, numbers, matrix, cost, distributed",
        ),
        ({"tiers": ["number"]}, "there is no tier 'number'; did you mean 'numbers'?"),
        ({"reports": [Path("r.html")]}, "--report r.html: the ending must be one of .json, .xml"),
    ],
)
def test_what_makes_no_sense_is_refused(given, told):
    from steprule.check.command import check

    with pytest.raises(ValueError) as refused:
        check("torch.AdamW", **given)
    assert str(refused.value).startswith(told)


# What is refused, and what optimizers say


def make_sgd(params, **settings):
    return torch.optim.SGD(params, **settings)


def test_a_partial_is_its_class_with_settings():
    subject = Subject(functools.partial(torch.optim.SGD, momentum=0.5), place="torch.optim:SGD", lr=float("inf"))
    assert subject.settings == {"momentum": 0.5, "lr": float("inf")}
    assert subject.source[1] == "make = functools.partial(torch.optim.SGD, momentum=0.5, lr=float('inf'))"


@pytest.mark.parametrize(
    "value",
    [torch.tensor(0.01), torch.tensor([0.9, 0.99]), float("-inf"), (0.9,), [torch.tensor(2)], {"a": (1, 2.0)}, None],
)
def test_settings_are_shown_as_python_reads_them(value):
    assert repr(eval(shown(value))) == repr(value)


def test_what_others_cannot_import_is_refused():
    class Inner(torch.optim.SGD):
        pass

    for optimizer in (Inner, lambda params: torch.optim.SGD(params)):
        with pytest.raises(ValueError, match="cannot be imported by the programs that show failures"):
            Subject(optimizer)
    assert Subject(Inner, place="theirs:Inner").source[0] == "theirs"
    assert Subject(make_sgd).source[1].endswith("test_check.make_sgd")


class NeedsLr(AdamW):
    def __init__(self, params, lr):
        super().__init__(params, lr)


class Says(AdamW):
    """Prints when it is made, and fails in words that are no text."""

    said = "\x1b[31mno\x1b[0m\x00 " + "x" * 1000

    def step(self, closure=None):
        assert not self.said, self.said


class SaysNothing(AdamW):
    def step(self, closure=None):
        raise AssertionError


class Leaves(AdamW):
    def step(self, closure=None):
        sys.exit(7)


class CannotBeMade(AdamW):
    def __init__(self, params, lr=0.1):
        print("here I am")
        raise RuntimeError("no")


class OneLrForAll(AdamW):
    """Its step refuses two lrs, as the author's code of Prodigy does, whose one estimate is in units of lr."""

    def step(self, closure=None):
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("groups must have the same lr")
        return super().step(closure)


@pytest.mark.parametrize("subject", [Subject(OneLrForAll), own("prodigy"), own("dadaptadam")], ids=lambda one: one.name)
def test_an_optimizer_may_refuse_two_lrs_and_yet_load_them(subject):
    assert look(CHECKS["restores_settings"], subject).status == "passed"


def test_settings_that_it_needs_are_asked_for():
    with pytest.raises(ValueError, match="NeedsLr needs lr, which have no default"):
        Subject(NeedsLr)
    assert look(CHECKS["moves_at_the_first_step"], Subject(NeedsLr, lr=0.1)).status == "passed"


def test_an_optimizer_that_raises_fails_and_is_told_as_text():
    told = {}
    for optimizer in (Says, SaysNothing, Leaves, CannotBeMade):
        report = run(Subject(optimizer), checks=["moves_at_the_first_step", "reads_settings_each_step"])
        assert {result.status for result in report.results} == {"failed"}
        told[optimizer] = report.results[0].reason
        ElementTree.fromstring(as_junit(report))
    assert told[Says].startswith("no? xxx") and len(told[Says]) == 300
    assert told[SaysNothing] == "AssertionError in step: raise AssertionError"
    assert (told[Leaves], told[CannotBeMade]) == ("SystemExit: 7", "RuntimeError: no")


def test_what_optimizers_print_is_not_in_the_json(capsys):
    from steprule.check.command import check

    assert check("test_check:CannotBeMade", checks=["moves_at_the_first_step"], as_json_only=True) == 1
    printed = capsys.readouterr()
    assert not json.loads(printed.out)["passed"] and "here I am" in printed.err
