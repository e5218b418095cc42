"""steprule list and steprule show, for every rule that there is."""

from __future__ import annotations

import json
import math
import re
import sys

import pytest
import torch

pytest.importorskip("typer")

from typer.testing import CliRunner

import steprule
from steprule import Rule
from steprule.catalog import kernel_text, paper, state_bytes, summary
from steprule.cli import app
from steprule.formula import formula_latex, formula_text
from steprule.memory import Param, need
from steprule.rule import NEEDS
from steprule.rules import OWN, RULES
from steprule.state import state_shape

TORCHS = ["sgd", "rmsprop", "adam", "adamw", "nadam", "radam", "adagrad", "adadelta", "adamax", "asgd", "rprop", "sparseadam"]  # fmt: skip


def run(*arguments, columns=160):
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": str(columns)})


def rows(output):
    """What the list says of each optimizer, by its name: bytes, whether torch has it, and the text."""
    found, name = {}, ""
    for line in output.split("\n\n")[1].splitlines()[2:]:
        name = line[:18].strip() or name
        kept, in_torch, text = line[18:24].strip(), line[24:32].strip(), line[32:]
        found[name] = (kept, in_torch, text) if name not in found else (*found[name][:2], f"{found[name][2]} {text}")
    return found


@pytest.fixture(scope="module")
def listed():
    result = run("list", columns=80)
    assert result.exit_code == 0
    found = rows(result.output)
    assert list(found) == list(RULES) and f"{len(RULES)} of {len(RULES)} optimizers" in result.output
    return found


@pytest.mark.parametrize("name", OWN)
def test_the_list_has_every_rule(listed, name):
    rule = RULES[name]
    size, in_torch, text = listed[name]
    good_for = f" [{', '.join(rule.needs)}]" if rule.needs and not rule.sparse_only else ""
    assert text.startswith(summary(rule).replace("``", "") + good_for)
    assert in_torch == ("yes" if hasattr(torch.optim, rule.__name__) else "")
    kept = need(rule, [Param((64, 64))], "float32", "float32", None, None, {}).state_bytes
    kept -= 4 * sum(math.prod(state_shape(rule, state, (64, 64))) for state in rule.side_states)
    assert float(size.rstrip("+")) == kept / 64**2
    assert size.endswith("+") == any(state.extent in ("left", "right") for state in rule.states.values())


def test_the_list_says_what_takes_nothing_else(listed):
    assert listed["sparseadam"][2].endswith("[sparse only]") and listed["sgd"][2].endswith("memory, sparse]")


def test_what_torch_has(listed):
    assert [name for name in TORCHS if listed[name][1] != "yes"] == []
    assert listed["lion"][1] == ""


def test_the_list_as_json():
    found = {one["name"]: one for one in json.loads(run("list", "--json").output)}
    assert list(found) == list(RULES)
    for name, rule in RULES.items():
        one = found[name]
        assert (one["class"], one["summary"], one["paper"]) == (rule.__name__, summary(rule), paper(rule))
        assert re.search(r"[A-Z].* \d{4}", one["paper"]) and one["paper"] in " ".join((rule.__doc__ or "").split())
        assert one["needs"] == list(rule.needs) and [*one["states"]] == [*rule.states]
    assert found["adamw"]["states"]["max_exp_avg_sq"]["only_with"] == "amsgrad" and found["sparseadam"]["sparse_only"]
    assert [one["name"] for one in json.loads(run("list", "--need", "noise", "--json").output)] == [
        name for name, rule in RULES.items() if "noise" in rule.needs
    ]


@pytest.mark.parametrize("name", [None, *OWN])
def test_80_columns_cut_nothing(name):
    """Only formulas may be wider, which break nowhere."""
    formula = [] if name is None else formula_text(RULES[name]).splitlines()
    result = run(*(["list"] if name is None else ["show", name]), columns=80)
    wide = [line for line in result.output.splitlines() if len(line) > 80 and line not in formula and "←" not in line]
    assert result.exit_code == 0 and wide == [] and "…" not in result.output


def test_needs():
    for one in NEEDS:
        result = run("list", "--need", one)
        chosen = [name for name, rule in RULES.items() if one in rule.needs]
        assert chosen and list(rows(result.output)) == chosen
    both = [name for name, rule in RULES.items() if {"memory", "large-batch"} <= set(rule.needs)]
    assert both and list(rows(run("list", "--need", "memory", "--need", "large-batch").output)) == both
    result = run("list", "--need", "memroy")
    assert result.exit_code == 2
    assert "steprule list: --need 'memroy' is unknown; did you mean 'memory'?" in result.output


def test_papers():
    def cited(text):
        return paper(type("Mine", (Rule,), {"update": staticmethod(lambda param, grad: param), "__doc__": text}))

    assert cited("An optimizer. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.") == (
        "Loshchilov & Hutter 2019, arXiv:1711.05101"
    )
    assert cited("In 2020 steps. You\n    et al. 2017, arXiv:1708.03888.") == "You et al. 2017, arXiv:1708.03888"
    assert cited("X. Tieleman & Hinton 2012, lecture 6e; Graves 2013, arXiv:1308.0850.") == "Tieleman & Hinton 2012"
    assert cited("X. Duchi, Hazan & Singer 2011.") == "Duchi, Hazan & Singer 2011"
    assert cited(None) == cited("Mine.") == ""
    assert summary(RULES["adamw"]) == "Adam with decoupled weight decay."


@pytest.mark.parametrize("name", OWN)
def test_show_has_what_there_is_to_know(name):
    rule = RULES[name]
    result = run("show", name)
    assert result.exit_code == 0
    assert formula_text(rule) in result.output and formula_latex(rule) not in result.output
    said = " ".join(result.output.split())
    for key, value in rule.hyperparameters.items():
        assert (
            f"  {key}={value!r} " in result.output and f" {rule.meanings[key].words(isinstance(value, tuple))}" in said
        )
    assert " ".join(rule.__doc__.split()) in said
    assert rule.when in said and all(f"{one}: {NEEDS[one]}" in result.output for one in rule.needs)
    for state in rule.states:
        (line,) = re.findall(rf"^  {state}  .*", result.output, re.MULTILINE)
        begins_at, kept, *sizes = re.split("  +", line.strip())[1:]
        assert begins_at == str(rule.states[state].begins or 0)
        assert kept == (f"with {rule.states[state].when}" if rule.states[state].when else "always")
        words = {"elements": "4", "rows": "one number a row", "cols": "one number a column"}
        words |= {"left": "rows x rows", "right": "columns x columns"}
        assert sizes[0] == words.get(rule.states[state].extent, "one number a tensor")
    for state, condition in ((name, one.when) for name, one in rule.states.items() if one.when):
        if not rule.hyperparameters[condition]:
            value = True if rule.hyperparameters[condition] is False else 0.9
            assert f"With {condition}:\n\n{formula_text(rule, {condition: value})}\n" in result.output
            assert state in formula_text(rule, {condition: value})
    latex = run("show", name, "--latex")
    assert latex.exit_code == 0
    assert formula_latex(rule) in latex.output and formula_text(rule) not in latex.output


def test_bytes_of_states():
    """The codes of a block of 128 share an exponent of two bytes; what is exact stays float32."""
    assert [state_bytes(RULES["adamw"], "exp_avg", kind) for kind in ("float32", "bfloat16", "8bit")] == [
        4,
        2,
        1 + 2 / 128,
    ]
    assert state_bytes(RULES["rmsprop"], "grad_avg", "8bit") == 4


@pytest.mark.parametrize("kernel", ["cpu", "gpu"])
@pytest.mark.parametrize("name", OWN)
def test_show_prints_kernels(name, kernel):
    result = run("show", name, "--kernel", kernel)
    assert result.exit_code == 0 and result.output == kernel_text(RULES[name], kernel) + "\n"
    compile(result.output.replace("from __future__", "#"), name, "exec")
    assert ("import triton" if kernel == "gpu" else "@exact\ndef run(header)") in result.output
    assert result.output.startswith(f'"""{RULES[name].__name__}: ') and formula_text(RULES[name]) not in result.output


def test_kernels_of_sums_come_first():
    text, begin = kernel_text(RULES["lamb"], "cpu"), "from math import"
    assert text.count(begin) == 2 and "store_param(" not in text[: text.rindex(begin)]
    assert "store_param(" in text


def test_a_kernel_is_what_the_engine_compiles():
    from steprule.engine import cpu

    rule = RULES["sgd"]
    assert (
        kernel_text(rule, "cpu") == cpu.Kernel.compiled(rule, rule.hyperparameters, False, ["float32"] * 2).source.text
    )


def test_names():
    assert run("show", "Schedule-Free_ADAMW").output == run("show", "schedulefreeadamw").output
    bad = {
        ("adamww",): "steprule show: unknown optimizer 'adamww'; did you mean 'adamw'?",
        ("qqqq",): "unknown optimizer 'qqqq'; steprule list prints all names",
        (
            "torch.AdamW",
        ): "steprule show: torch.AdamW is torch.optim's, with no rule here; adamw is steprule's of that name",
        ("torch.optim.LBFGS",): "lbfgs is torch.optim's own, with no formula here",
        ("bogus",): "unknown optimizer 'bogus'; steprule list",  # and not lbfgs
        ("AdamW8bit",): "steprule show: unknown optimizer 'AdamW8bit'; did you mean 'adamw:states=8bit'?",
        ("mine:Lion",): "unknown optimizer 'mine:Lion'; did you mean 'mine.Lion'? A class of your own is module.Class",
        ("sgd", "--kernel", "tpu"): "--kernel 'tpu' must be cpu or gpu",
        ("adamw:amsgard=True",): "adamw takes no 'amsgard'; did you mean 'amsgrad'?",
        ("adamw:lr=-1",): "Invalid learning rate: -1",
        ("madgrad:cautious=True",): "computes the weights anew from the first ones",
    }
    for arguments, message in bad.items():
        result = run("show", *arguments)
        assert result.exit_code == 2 and message in result.output


def test_a_class_of_steprules_is_not_ones_own():
    assert run("show", "steprule.AdamW").output == run("show", "adamw").output
    assert run("show", "steprule.AdamW:lr=1").output == run("show", "adamw:lr=1").output


def test_show_takes_settings():
    output = run("show", "AdamW:amsgrad=True,lr=0.5,decay='independent',states=8bit").output
    assert "  lr=0.5 " in output and "  amsgrad=True " in output and "  decay='independent' " in output
    assert "With amsgrad" not in output and "lr·weight_decay" not in output
    assert "max_exp_avg_sq_at" in run("show", "adamw:amsgrad=True", "--kernel", "cpu").output
    assert re.search(r"^  state +begins +kept +8bit\n  exp_avg +0 +always +1.02$", output, re.MULTILINE)
    assert "it takes weights, seed, clip, " in output and "takes states" not in output
    assert "it takes states, weights, seed, clip, " in run("show", "adamw").output


@pytest.mark.parametrize("name", RULES)
def test_the_states_fit_a_narrow_terminal(name):
    lines = CliRunner().invoke(app, ["show", name], env={"COLUMNS": "60"}).output.splitlines()
    begin = next((at for at, line in enumerate(lines) if line.startswith("States, ")), len(lines))
    most = 65 if name == "yogi" else 60  # which begins at initial_accumulator_value
    assert all(len(line) <= most for line in lines[begin:])


def test_latex_of_a_kernel_is_refused():
    result = run("show", "adamw", "--latex", "--kernel", "cpu")
    assert result.exit_code == 2 and "--latex and --kernel do not go together" in result.output


def test_show_as_json():
    found = json.loads(run("show", "prodigy:lookahead=5", "--json").output)
    assert found["formula"].startswith("u = (d/d0)") and found["hyperparameters"]["growth_rate"]["value"] == "inf"
    assert found["options"] == {"lookahead": 5} and "slow_param" in found["states"]
    assert found["states"]["s"] == {
        "begins_at": 0, "only_with": None, "bytes_an_element": {"float32": 4, "bfloat16": 4, "8bit": 4},
    }  # fmt: skip
    assert json.loads(run("show", "lbfgs", "--json").output)["class"] == "LBFGS"
    result = run("show", "adamw", "--json", "--kernel", "cpu")
    assert result.exit_code == 2 and "--json and --kernel do not go together" in result.output


def test_torchs_own_are_named_in_a_line():
    found = CliRunner().invoke(app, ["list"]).output
    assert "torch.optim's own are in steprule too: lbfgs." in " ".join(found.split())
    shown = run("show", "LBFGS")
    said = " ".join(shown.output.split())
    assert shown.exit_code == 0 and "numbers an element" in said and "help(steprule.LBFGS)" in said


OWN_MODULE = """
from steprule import Hyperparameter, Optimizer, Rule, chain, ema, transforms

class PowerRule(Rule):
    decay = "decoupled"
    power = Hyperparameter("exponent", "(0, inf)")

    def update(param, grad, m, *, lr=0.1, power=2.0, weight_decay=0.0):
        m = ema(m, grad, 0.9)
        return param - lr * m**power - lr * weight_decay * param, m

class Power(Optimizer, rule=PowerRule): ...

Signed = chain(transforms.ema, transforms.sign, name="Signed")
number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """The name of a module with rules in the current folder."""
    (tmp_path / "rules_of_mine.py").write_text(OWN_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield "rules_of_mine"
    sys.modules.pop("rules_of_mine", None)


def test_show_memory_and_create_optimizer_take_classes_of_ones_own(own_module):
    name = f"{own_module}.Power"
    for own in (name, f"{own_module}.PowerRule"):
        shown = run("show", own).output
        assert shown.startswith(f"{own}: a rule of your own\n\n  lr=0.1 ") and "exponent. Above 0." in shown
        assert "m ← 0.9·m + 0.1·grad" in shown
    for own in (name, f"{own_module}.PowerRule"):
        settled = run("show", f"{own}:power=3,cautious=True").output
        assert settled.startswith(f"{own}: a rule of your own\n")
        assert "power=3 " in settled and "cautious=True" in settled
    assert json.loads(run("show", name, "--json").output)["class"] == "PowerRule"
    assert "def update" in run("show", name, "--kernel", "cpu").output
    assert "Signed" in run("show", f"{own_module}.Signed").output
    table = run("memory", "7B", name, "sgd").output
    assert "\nPowerRule\n" in table and "\nSGD, momentum=0.9\n" in table
    made = steprule.create_optimizer(torch.nn.Linear(2, 2), name, power=3.0)
    assert type(made).__name__ == "Power" and made.param_groups[0]["power"] == 3.0


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("{}.Powr", "the module '{}' has no 'Powr'; did you mean 'Power'?"),
        (
            "{}.number",
            "optimizer '{}.number' is 3, which is no class of steprule's: write a subclass of Rule or Optimizer",
        ),
        ("{}s.Power", "there is no module '{}s'"),
    ],
)
def test_a_class_of_ones_own_that_is_not_there(own_module, own, message):
    name, message = own.format(own_module), message.format(own_module)
    for command in (("show", name), ("memory", "7B", name)):
        result = run(*command)
        assert result.exit_code == 2 and message in result.output
    with pytest.raises(ValueError, match=re.escape(message)):
        steprule.create_optimizer(torch.nn.Linear(2, 2), name)
