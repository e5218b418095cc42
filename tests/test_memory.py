"""steprule memory: the table against the storage of real optimizers."""

from __future__ import annotations

import json
import re
import sys
import types

import pytest
import torch
from settings import sees_matrix, shapes_for
from typer.testing import CliRunner

import steprule
from steprule.cli import app
from steprule.memory import Param, model_of, parameter_count, table
from steprule.rules import OWN
from steprule.step.kind import Kind

SHAPES = [(64, 256), (64,), (6, 130), (3, 4, 3, 3), (10, 20), ()]


def storage(tensors):
    return sum(x.untyped_storage().nbytes() for x in tensors if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in OWN if name != "sparseadam"])
def test_the_table_is_what_optimizers_really_keep(name, dtype, monkeypatch):
    """Whichever engine takes the step: the one that need not compile."""
    monkeypatch.setattr(Kind, "_fits_an_engine", lambda *_: False)
    rule = OWN[name]
    settings = {"momentum": 0.9} if name == "sgd" else {}
    shapes = shapes_for(rule, SHAPES)
    rows = table(name, [Param(shape) for shape in shapes], dtype, dtype)
    assert len(rows) == (2 + 12 if dtype == "bfloat16" else 1 + 3)
    for row in rows:
        in_torch = hasattr(torch.optim, rule.__name__) and not sees_matrix(rule)  # which has other states of vectors
        module = torch.optim if row.is_without and in_torch else steprule
        options = settings if row.is_without else {**settings, "states": row.states, "weights": row.weights}
        params = [torch.nn.Parameter(torch.ones(s, dtype=getattr(torch, row.dtype))) for s in shapes]
        optimizer = getattr(module, rule.__name__)(params, **options)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        numbers = ("step", *rule.scalar_states)  # too few to count
        kept = [(key, x) for p in params for key, x in optimizer.state[p].items() if key not in numbers]
        low_bits = [x for key, x in kept if key == "param_correction"]
        assert storage([*params, *low_bits]) == row.weight_bytes, row
        assert storage(p.grad for p in params) == row.grad_bytes
        assert storage(x for key, x in kept if key != "param_correction") == row.state_bytes, row


def test_gpt2_small_fits_in_7_and_6_bytes_a_parameter():
    sys.path.insert(0, "benchmarks")
    from shapes import gpt2_small

    shapes = gpt2_small()
    count = sum(torch.Size(s).numel() for s in shapes)
    rows = table("adamw", [Param(shape) for shape in shapes], "bfloat16", "bfloat16")
    totals = {(row.states, row.weights): row.total / count for row in rows if row.states}
    assert totals["8bit", "24bit"] <= 7.2
    assert totals["8bit", "stochastic"] <= 6.2


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("124M", 124_000_000),
        ("1e9", 10**9),
        ("2.5e3", 2500),
        ("7B", 7 * 10**9),
        ("1_000", 1000),
        ("1.5k", 1500),
        ("7", 7),
        ("x", None),
    ],
)
def test_counts(text, count):
    assert parameter_count(text) == count
    if count:
        assert sum(one.number * torch.Size(one.shape).numel() for one in model_of(text).params) == count


class Mixed(torch.nn.Module):
    """A table, a fused matrix, two between others, one that no layer has, a head and vectors."""

    def __init__(self):
        super().__init__()
        self.tokens = torch.nn.Embedding(10, 64)
        self.attention = torch.nn.MultiheadAttention(64, 2)
        self.mixing = torch.nn.Parameter(torch.randn(40, 64))
        self.head = torch.nn.Linear(64, 10)


@pytest.mark.parametrize("states", [None, "8bit"])
@pytest.mark.parametrize("name", ["muon", "soap", "normuon", "klsoap"])
def test_a_rule_of_matrices_keeps_what_create_optimizer_makes_of_it(name, states, monkeypatch):
    monkeypatch.setattr(Kind, "_fits_an_engine", lambda *_: False)
    module, said = Mixed(), [("mixing", "transpose")]
    optimizer = steprule.create_optimizer(module, name, roles=said, states=states)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    numbers = {"step", *optimizer.rule.scalar_states}
    kept = [x for state in optimizer.state.values() for key, x in state.items() if key not in numbers]
    monkeypatch.setitem(sys.modules, "my_models", types.SimpleNamespace(mixed=Mixed))
    params = model_of("my_models:mixed").stepped_by(OWN[name], said)
    assert {one.view for one in params} == {None, "rows 3", "transpose"}
    (row,) = (row for row in table(name, params, "float32", "float32") if row.states == states)
    assert storage(kept) == row.state_bytes
    shown = run("my_models:mixed", name, "--set", "mixing=transpose").output
    assert f"{OWN[name].__name__} steps 3 of 8 tensors; the others are as AdamW keeps them." in shown


def test_what_create_optimizer_refuses_is_refused(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "my_models", types.SimpleNamespace(mixed=Mixed, flat=lambda: torch.nn.Linear(3, 3))
    )
    for arguments, message in {
        ("mixed",): "Say it: --set 'mixing=...', each with",
        ("flat",): "there is no matrix between others in Linear, 12 elements in 2 tensors, which Muon could step",
        ("mixed", "--set", "mixing"): "--set 'mixing' must be PATTERN=WORD",
        ("mixed", "--set", "mix=adamw"): "--set: 'mix' matches no parameter",
    }.items():
        result = run(f"my_models:{arguments[0]}", "muon", *arguments[1:])
        assert result.exit_code == 2 and message in result.output, arguments


def test_a_number_of_parameters_is_matrices_with_squares():
    """SOAP has two squares for each side: of a square matrix four times what that takes."""
    (plain, *_) = table("adamw", model_of("1B").params, "float32", "float32")
    (soap, *_) = table("soap", model_of("1B").stepped_by(OWN["soap"]), "float32", "float32")
    assert soap.state_bytes == pytest.approx(plain.state_bytes * 3, rel=1e-3)
    assert len(model_of("9e17").params) <= 2


def run(*arguments):
    return CliRunner().invoke(app, ["memory", *arguments], env={"COLUMNS": "160"})


def test_a_model_of_ones_own_takes_no_memory(monkeypatch):
    module = types.ModuleType("my_models")
    module.big = lambda: torch.nn.Linear(10**6, 10**6, bias=False)
    module.nothing = lambda: 3
    monkeypatch.setitem(sys.modules, "my_models", module)
    result = run("my_models:big", "adamw")
    assert result.exit_code == 0 and "1,000,000,000,000 elements" in result.output and "16.00 TB" in result.output
    bad = {
        "my_models:bigg": "did you mean 'big'", "my_models:nothing": "returned int", "no_such:thing": "no_such",
        "-1B": "'-1B' is negative", "what": "must be a number of parameters", "0": "'0' must be a number of parameters, at least 1",
    }  # fmt: skip
    for text, message in bad.items():
        result = run(text)
        assert result.exit_code == 2 and message in result.output, text
    module.broken, module.needs = lambda: 1 / 0, lambda size: torch.nn.Linear(size, size)
    for arguments, message in {
        ("my_models:broken",): "'my_models:broken': broken() failed: ZeroDivisionError: division by zero",
        ("my_models:needs",): "needs() failed: TypeError",
        ("./my_models.py:big",): "takes a module as import has it, not a file: in its folder, write my_models:big",
        ("1e400",): "'1e400' must be a number of parameters below 1e18",
        ("adamw", "7B"): "'7B' is no optimizer; the model or its number of parameters stands before them",
        ("7B", "adamw:states=8bit"): "optimizer 'adamw:states=8bit': the table has every format, with the default",
        ("7B", "--dtype", "bf16"): "--dtype 'bf16' must be one of float32, bfloat16, float16; did you mean 'bfloat16'?",
    }.items():
        result = run(*arguments)
        assert result.exit_code == 2 and message in result.output, arguments
    assert "did you mean 'adamw'" in run("1M", "adamww").output
    assert "--dtype 'int8'" in run("1M", "--dtype", "int8").output
    assert "--grad-dtype 'int8'" in run("1M", "--grad-dtype", "int8").output
    assert "24bit" in run("7B", "adamw").output and "24bit" not in run("7B", "--dtype", "float32").output


def cells(output):
    """The rows of the table: mark, dtype, states, weights and all bytes an element."""
    rows = [line for line in output.splitlines() if re.match(r"[>* ] \w+ .*B$", line)]
    return [(line[:1], *line[2:].split()[:3], line.split()[-3]) for line in rows]


@pytest.mark.parametrize("name", [*OWN])
def test_an_optimizer_has_few_rows_that_all_differ(name):
    output = run("7B", name).output
    rows = cells(output)
    assert 3 <= len(rows) <= 6 and len({(row[1], row[-1]) for row in rows}) == len(rows)
    assert [row[0] for row in rows].count(">") == 1 and [row[0] for row in rows].count("*") == 1
    assert all(len(line) <= 80 for line in output.splitlines()) and "…" not in output
    for kept in ("7B --dtype float32", "7B --dtype float16 --grad-dtype float32"):
        assert all(len(line) <= 80 for line in run(*kept.split(), name).output.splitlines())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_narrow_terminal_has_the_totals(name):
    shown = CliRunner().invoke(app, ["memory", "7B", name], env={"COLUMNS": "60"}).output
    assert max(map(len, shown.splitlines())) <= 60
    assert cells(shown) == cells(run("7B", name).output)


def test_the_rows_of_adamw():
    assert cells(run("7B", "adamw").output) == [
        (" ", "float32", "-", "-", "16"),
        ("*", "bfloat16", "-", "-", "8"),
        (" ", "bfloat16", "float32", "32bit", "14"),
        (" ", "bfloat16", "bfloat16", "24bit", "9"),
        (">", "bfloat16", "8bit", "24bit", "7.03"),
        (" ", "bfloat16", "8bit", "stochastic", "6.03"),
    ]
    assert "choose this first: states='8bit', weights='24bit'" in run("7B", "adamw").output
    assert cells(run("7B", "dog", "--dtype", "float32").output) == [(" ", "float32", "-", "-", "12")]


@pytest.mark.parametrize(("dtype", "part"), [("bfloat16", 512), ("float16", 4096)])
def test_what_is_marked_loses_updates(dtype, part):
    """It says below which part of a weight an update is lost: for every weight, and not below twice that for all."""
    assert f"an update below 1/{part} of its" in run("7B", "adamw", "--dtype", dtype).output
    weights = torch.linspace(1, 3.99, 1000).to(getattr(torch, dtype))
    assert torch.equal((weights.double() * (1 + 0.99 / part)).to(weights.dtype), weights)
    assert not torch.equal((weights.double() * (1 + 1.5 / part)).to(weights.dtype), weights)


def test_json_has_every_combination():
    found = json.loads(run("1e6", "adamw", "--json").output)
    assert (found["elements"], found["dtype"], found["grad_dtype"]) == (10**6, "bfloat16", "bfloat16")
    assert len(found["rows"]) == 14
    (best,) = [row for row in found["rows"] if row["is_recommended"]]
    assert (best["states"], best["weights"], best["loses_updates"]) == ("8bit", "24bit", False)
    assert best["total_bytes"] == best["weight_bytes"] + best["grad_bytes"] + best["state_bytes"]
    assert best["bytes_an_element"] == best["total_bytes"] / 10**6


def test_names_are_those_of_the_other_commands():
    assert run("1M", "Adam-W").output == run("1M", "adamw").output
    assert (
        "did you mean 'lbfgs'?" in run("1M", "lbgfs").output
        and "did you mean 'lion'?" in run("1M", "torch.lionn").output
    )


KEPT = {  # numbers in the states of a matrix of 3 by 5 and a vector of 7, after 12 steps
    "lbfgs": (
        lambda params: torch.optim.LBFGS(params, history_size=2, max_iter=12, line_search_fn="strong_wolfe"),
        {"old_dirs": 2 * 22, "old_stps": 2 * 22, "d": 22, "prev_flat_grad": 22},
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_of_torchs_own_it_says_what_they_keep(name):
    make, expected = KEPT[name]
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 5), (7,))]

    def loss():
        total = sum(((param - 1) ** 4).sum() for param in params)
        for param in params:
            param.grad = None
        total.backward()
        return total

    optimizer = make(params)
    optimizer.step(loss)
    kept = {}
    for state in optimizer.state.values():
        for key, value in state.items():
            arrays = [
                x for x in (value if isinstance(value, list) else [value]) if isinstance(x, torch.Tensor) and x.dim()
            ]
            if arrays:
                kept[key] = sum(x.numel() for x in arrays)
    assert kept == expected
    result = run("1M", name)
    assert result.exit_code == 2 and f"{name} is torch.optim's own, with no formula here" in result.output
    assert all(key in result.output for key in expected)
