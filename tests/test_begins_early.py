"""Rules whose states are there before the first step, whatever kinds of states they have."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from steprule import Optimizer, Rule, State


class Late(Rule):
    """One state of each kind."""

    z = State(begins="param", exact=True)
    d = State("scalar", begins="d0")
    m = State(begins=0.5)
    extra = State(when="amsgrad")

    @staticmethod
    def update(
        param: Any, grad: Any, z: Any, d: Any, m: Any, v: Any, extra: Any, *, step: Any, lr: float = 0.1, d0: float = 2.0,
        amsgrad: bool = False,
    ) -> Any:  # fmt: skip
        m = 0.9 * m + 0.1 * grad
        if amsgrad:
            extra = extra + step
        return param - lr * d * m, z + m, d + 1, m, v + grad * grad, extra


class Early(Late):
    begins_early = True


class EarlyMoved(Early):
    """Evaluates z."""

    @staticmethod
    def evaluated(param: Any, z: Any) -> Any:
        return param + z

    @staticmethod
    def trained(param: Any, z: Any) -> Any:
        return param - z


Exchanged = type("Exchanged", (Optimizer.of(EarlyMoved),), {})


def params(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 64, generator=generator).to(dtype)) for _ in range(2)]


def train(optimizer: Any, its: Any, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for param in its:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


@pytest.mark.parametrize("amsgrad", [False, True], ids=["without", "with"])
@pytest.mark.parametrize(
    ("dtype", "formats"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.bfloat16, {"weights": "24bit", "states": "8bit"}),
        (torch.complex64, {}),
    ],
    ids=["float32", "bfloat16", "8bit", "complex"],
)
def test_states_of_all_kinds_are_there_and_step_as_those_that_begin_late(dtype, formats, amsgrad):
    mine, its = params(dtype), params(dtype)
    early = Optimizer.of(Early)(mine, amsgrad=amsgrad, **formats)
    late = Optimizer.of(Late)(its, amsgrad=amsgrad, **formats)
    names = ["z", "d", "m", "v"] + ["extra"] * amsgrad
    first = {name: early.read(mine[0], name) for name in names}
    assert early.state[mine[0]]["step"] == 0 and first["d"] == 2 and (first["v"] == 0).all()
    assert torch.equal(first["z"].to(dtype), mine[0].detach())
    assert (torch.view_as_real(first["m"]) if dtype.is_complex else first["m"]).sub(0.5).abs().max() < 0.05
    arrays = {name: x for name, x in early.state[mine[0]].items() if isinstance(x, torch.Tensor)}
    train(early, mine)
    train(late, its)
    torch.testing.assert_close([*early.state.values()], [*late.state.values()], rtol=0, atol=0)
    torch.testing.assert_close(mine, its, rtol=0, atol=0)
    assert all(early.state[mine[0]][name] is x for name, x in arrays.items())


def test_states_begin_early_beside_weights_to_evaluate():
    mine = params()
    optimizer = Exchanged(mine)
    optimizer.share_memory()
    assert all(optimizer.state[param][name].is_shared() for param in mine for name in ("z", "m", "d"))
    train(optimizer, mine)
    for one in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (first, *_), before = one.param_groups[0]["params"], mine[0].detach().clone()
        one.eval()
        assert torch.equal(first.detach(), before + one.state[first]["z"])
        one.train()
    assert type(optimizer).__mro__[1] is Optimizer.of(EarlyMoved)


def test_rules_with_the_same_attributes_have_optimizers_with_the_same_methods():
    class Other(EarlyMoved): ...

    class Sub(Optimizer.of(EarlyMoved), rule=Other): ...

    assert {"eval", "train", "share_memory"} <= {*dir(Sub)}
