"""steprule list and steprule show, for every rule that there is."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

from steprule import Rule
from steprule.catalog import kernel_text, paper, state_bytes, summary
from steprule.cli import app
from steprule.formula import formula_latex, formula_text
from steprule.memory import need
from steprule.rule import NEEDS
from steprule.rules import OWN, RULES

TORCHS = ["sgd", "rmsprop", "adam", "adamw", "nadam", "radam", "adagrad", "adadelta", "adamax", "asgd", "rprop", "sparseadam"]  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "160"})


def rows(output):
    """The cells of each optimizer's first line, by its name, and all its lines."""
    found = {}
    for block in re.split("[├└┡]", output)[1:]:
        lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in block.splitlines() if "│" in line]
        if lines:
            found[lines[0][0]] = [list(cells) for cells in zip(*lines, strict=True)]
    return found


@pytest.fixture(scope="module")
def listed():
    result = run("list")
    assert result.exit_code == 0
    found = rows(result.output)
    assert list(found) == list(RULES) and f"{len(RULES)} of {len(RULES)} optimizers" in result.output
    return found


@pytest.mark.parametrize("name", OWN)
def test_the_list_has_every_rule(listed, name):
    rule = RULES[name]
    names, sizes, in_torch, needs, about = listed[name]
    assert names[:2] == [name, rule.__name__]
    assert [one for one in needs if one] == list(rule.needs)
    text = " ".join(about)
    assert summary(rule) in text and paper(rule) in text
    assert re.search(r"[A-Z].* \d{4}", paper(rule)) and paper(rule) in " ".join(rule.__doc__.split())
    for state in rule.tensor_states:
        assert re.search(rf"\b{state}\b", text)
    assert in_torch[0] == ("yes" if hasattr(torch.optim, rule.__name__) else "")
    kept = need(rule, [(64, 64)], "float32", "float32", None, None, {}, name).state_bytes
    assert float(sizes[0]) == kept / 64**2


def test_what_torch_has(listed):
    assert [name for name in TORCHS if listed[name][2][0] != "yes"] == []
    assert listed["lion"][2][0] == ""


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
    for key, value in rule.hyperparameters.items():
        assert f"{key}={value!r}" in result.output and f"\n{key}: {rule.meanings[key].meaning}." in result.output
    assert " ".join(rule.__doc__.split()) in " ".join(result.output.split())
    assert rule.when in result.output and all(f"{one}: {NEEDS[one]}" in result.output for one in rule.needs)
    for state in rule.states:
        (line,) = re.findall(rf"│ {state} +│.*", result.output)
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        begins_at, kept, *sizes = cells[1:]
        assert begins_at == str(rule.states[state].begins or 0)
        assert kept == (f"with {rule.states[state].when}" if rule.states[state].when else "always")
        assert sizes[0] == ("4" if state in rule.tensor_states else "one number a tensor")
    for state, condition in ((name, one.when) for name, one in rule.states.items() if one.when):
        if not rule.hyperparameters[condition]:
            value = True if rule.hyperparameters[condition] is False else 0.9
            assert f"With {condition}:\n\n{formula_text(rule, {condition: value})}\n" in result.output
            assert state in formula_text(rule, {condition: value})
    latex = run("show", name, "--latex")
    assert latex.exit_code == 0
    assert formula_latex(rule) in latex.output and formula_text(rule) not in latex.output


def test_bytes_of_states():
    """128 codes share a base of two bytes; what is exact stays float32."""
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
    assert ("import triton" if kernel == "gpu" else "from numba") in result.output
    assert result.output.startswith(f'"""{RULES[name].__name__}: ') and formula_text(RULES[name]) not in result.output


def test_kernels_of_sums_come_first():
    text = kernel_text(RULES["lamb"], "cpu")
    assert text.count("from numba") == 2 and "store_param(" not in text[: text.rindex("from numba")]
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
        ("qqqq",): "unknown optimizer 'qqqq'; choose from adagrad, ",
        ("sgd", "--kernel", "tpu"): "--kernel 'tpu' must be cpu or gpu",
        ("adamw:amsgard=True",): "adamw has no hyperparameter 'amsgard'; did you mean 'amsgrad'?",
        ("adamw:lr=-1",): "Invalid learning rate: -1",
        ("madgrad:cautious=True",): "computed anew from the first ones",
    }
    for arguments, message in bad.items():
        result = run("show", *arguments)
        assert result.exit_code == 2 and message in result.output


def test_show_takes_settings():
    output = run("show", "AdamW:amsgrad=True,lr=0.5,decay='independent'").output
    assert output.startswith("AdamW(params, lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=True)")
    assert "With amsgrad" not in output and "lr·weight_decay" not in output
    assert "max_exp_avg_sq_at" in run("show", "adamw:amsgrad=True", "--kernel", "cpu").output


def test_torchs_own_are_named_in_a_line():
    found = CliRunner().invoke(app, ["list"]).output
    assert "as torch.optim has them: adafactor, lbfgs, muon" in " ".join(found.split())
    shown = CliRunner().invoke(app, ["show", "Muon"])
    assert shown.exit_code == 0 and len(shown.output.splitlines()) == 1 and "help(steprule.Muon)" in shown.output
