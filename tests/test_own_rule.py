"""A user's own rule, in their own file, in every engine and both fronts."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import random_operands, run_cpu, run_eager
from test_engines import assert_within_bound

import steprule
from steprule import arrays

EXAMPLE = Path(__file__).parent.parent / "examples" / "lion.py"


@pytest.fixture(scope="module")
def lion():
    spec = importlib.util.spec_from_file_location("lion", EXAMPLE)
    module = sys.modules["lion"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["lion"]


@pytest.mark.parametrize("run", [run_cpu, run_eager])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_runs_in_every_engine(lion, run, dtype):
    rule = lion.LionRule
    hyper = {**rule.hyperparameters, "weight_decay": 0.1}
    operands = random_operands(rule, hyper, 500, dtype, seed=0)
    assert_within_bound(rule, hyper, operands, 1, False, run(rule, hyper, operands, 1))


def test_it_is_a_torch_optimizer(lion):
    param = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = lion.Lion([param], lr=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    param.grad = torch.tensor([0.5, -4.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([0.9, -1.9, 3.0]))
    torch.testing.assert_close(optimizer.state[param]["exp_avg"], torch.tensor([0.005, -0.04, 0.0]))
    copy = pickle.loads(pickle.dumps(optimizer))
    assert copy.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_it_is_an_array_optimizer(lion):
    class ArrayLion(arrays.Optimizer, rule=lion.LionRule):
        pass

    param = np.array([1.0, -2.0, 3.0])
    ArrayLion([param], lr=0.1).step([np.array([0.5, -4.0, 0.0])])
    np.testing.assert_allclose(param, [0.9, -1.9, 3.0])


def test_the_example_runs():
    result = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True)
    losses = [float(line.split()[1]) for line in result.stdout.splitlines()]
    assert len(losses) == 2 and all(loss < 0.5 for loss in losses)


def test_a_rule_that_cannot_run_says_so_at_construction():
    class Branching(steprule.Rule):
        def update(param, grad, *, lr=0.1):
            return param if grad > 0 else param - lr * grad

    class Optimizer(steprule.Optimizer, rule=Branching):
        pass

    with pytest.raises(steprule.RuleError, match=r"branches on a number.*test_own_rule.py.*where\(condition, a, b\)"):
        Optimizer([torch.nn.Parameter(torch.ones(2))])


def test_a_rule_whose_fault_shows_later_changes_nothing():
    """The flag is turned on after construction; the step refuses and the parameter and states stay."""

    class Late(steprule.Rule):
        def update(param, grad, exp_avg, *, lr=0.1, broken=False):
            return (param - lr * grad,) if broken else (param - lr * grad, exp_avg)

    class Optimizer(steprule.Optimizer, rule=Late):
        pass

    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = Optimizer([param])
    optimizer.param_groups[0]["broken"] = True
    with pytest.raises(steprule.RuleError, match="returned 1 value and must return 2: param, exp_avg"):
        optimizer.step()
    assert torch.equal(param, torch.ones(2)) and not optimizer.state
    optimizer.param_groups[0]["broken"] = False
    optimizer.step()
    assert torch.equal(param, torch.full((2,), 0.9))


def test_a_subclass_with_arguments_of_its_own_shows_them():
    class Scaled(steprule.AdamW):
        def __init__(self, params, lr=0.1, scale=1.0):
            super().__init__(params, lr=lr * scale)

    assert list(inspect.signature(Scaled).parameters) == ["params", "lr", "scale"]
    assert Scaled([torch.nn.Parameter(torch.ones(2))], scale=2.0).defaults["lr"] == 0.2
