"""steprule memory: the table against the storage of real optimizers."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from typer.testing import CliRunner

import steprule
from steprule.cli import app
from steprule.memory import parameter_count, shapes_of, table
from steprule.registry import TORCHS_OWN
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
    ((_, rows),) = table(SHAPES, dtype, dtype, [name])
    assert len(rows) == (2 + 12 if dtype == "bfloat16" else 1 + 3)
    for row in rows:
        whose, _, kept = row.optimizer.partition(", ")
        module = torch.optim if whose.startswith("torch") else steprule
        options = settings if kept else {**settings, "states": row.states, "weights": row.weights}
        params = [torch.nn.Parameter(torch.ones(s, dtype=getattr(torch, kept or dtype))) for s in SHAPES]
        optimizer = getattr(module, rule.__name__)(params, **options)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        numbers = ("step", *rule.scalar_states)  # too few to count
        kept = [(key, x) for p in params for key, x in optimizer.state[p].items() if key not in numbers]
        corrections = [x for key, x in kept if key == "param_correction"]
        assert storage([*params, *corrections]) == row.weight_bytes, row
        assert storage(p.grad for p in params) == row.grad_bytes
        assert storage(x for key, x in kept if key != "param_correction") == row.state_bytes, row


def test_gpt2_small_fits_in_7_and_6_bytes_a_parameter():
    sys.path.insert(0, "benchmarks")
    from shapes import gpt2_small

    shapes = gpt2_small()
    count = sum(torch.Size(s).numel() for s in shapes)
    ((_, rows),) = table(shapes, "bfloat16", "bfloat16", ["adamw"])
    totals = {(row.states, row.weights): row.total / count for row in rows if row.states}
    assert totals["8bit", "24bit"] <= 7.2
    assert totals["8bit", "stochastic"] <= 6.2


@pytest.mark.parametrize(
    ("text", "count"),
    [("124M", 124_000_000), ("7B", 7 * 10**9), ("1_000", 1000), ("1.5k", 1500), ("7", 7), ("x", None)],
)
def test_counts(text, count):
    assert parameter_count(text) == count
    if count:
        assert sum(torch.Size(s).numel() for s in shapes_of(text)[0]) == count


def run(*arguments):
    return CliRunner().invoke(app, ["memory", *arguments], env={"COLUMNS": "160"})


def test_a_model_of_ones_own_takes_no_memory(monkeypatch):
    module = types.ModuleType("my_models")
    module.big = lambda: torch.nn.Linear(10**6, 10**6, bias=False)
    module.nothing = lambda: 3
    monkeypatch.setitem(sys.modules, "my_models", module)
    result = run("my_models:big", "adamw")
    assert result.exit_code == 0 and "1,000,000,000,000 parameters" in result.output and "16.00 TB" in result.output
    assert "torch.optim.AdamW" in result.output and "8bit" in result.output
    bad = {
        "my_models:bigg": "did you mean 'big'", "my_models:nothing": "returned int", "no_such:thing": "no_such",
        "what": "must be a number of parameters", "0": "no number",
    }  # fmt: skip
    for text, message in bad.items():
        result = run(text)
        assert result.exit_code == 2 and message in result.output, text
    assert "did you mean 'adamw'" in run("1M", "adamww").output
    assert "--dtype 'int8'" in run("1M", "--dtype", "int8").output
    assert "24bit" in run("7B", "adamw").output and "24bit" not in run("7B", "--dtype", "float32").output


def test_names_are_those_of_the_other_commands():
    assert run("1M", "Adam-W").output == run("1M", "adamw").output
    assert (
        "did you mean 'lbfgs'?" in run("1M", "lbgfs").output
        and "did you mean 'lion'?" in run("1M", "torch.lionn").output
    )


KEPT = {  # numbers in the states of a matrix of 3 by 5 and a vector of 7, after 12 steps
    "adafactor": (lambda params: torch.optim.Adafactor(params), {"row_var": 3, "col_var": 5, "variance": 7}),
    "lbfgs": (
        lambda params: torch.optim.LBFGS(params, history_size=2, max_iter=12, line_search_fn="strong_wolfe"),
        {"old_dirs": 2 * 22, "old_stps": 2 * 22, "d": 22, "prev_flat_grad": 22},
    ),
    "muon": (lambda params: steprule.Muon(params[:1]), {"momentum_buffer": 15}),
}


@pytest.mark.parametrize("name", [name for name in KEPT if hasattr(torch.optim, TORCHS_OWN[name])])
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
