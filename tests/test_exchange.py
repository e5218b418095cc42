"""Weights that are exchanged with others, for all parameters or for none: eval(), train(), swap_average()."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import steprule
from steprule import Optimizer, Rule, State
from steprule.tensors.state import kept


class Shifted(Rule):
    """Evaluates weights moved by z. Its formulas raise an error or return nonsense if told to, for the second parameter."""

    z = State(begins="param")

    @staticmethod
    def update(param: Any, grad: Any, z: Any, *, lr: float = 0.1, mode: Any = None, far: bool = False) -> Any:
        return param - lr * grad, z

    @staticmethod
    def evaluated(param: Any, z: Any, *, mode: Any, far: bool) -> Any:
        assert isinstance(far, bool)
        if mode is not None and param.numel() == 4:
            return NONSENSE[mode](param)
        param += z  # which is its own copy
        return param

    @staticmethod
    def trained(param: Any, z: Any) -> Any:
        return param - z


def fail(param: Any) -> Any:
    raise ArithmeticError("as the formula says")


NONSENSE = {"raises": fail, "number": lambda param: 1.0, "shape": lambda param: param[:1]}


def stepped(make: Any, *, steps: int = 2, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Any, Any]:
    """Parameters of 3 and 4 elements, and their optimizer after some steps."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in (3, 4)]
    optimizer = make(params, **settings)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        optimizer.step()
    return params, optimizer


def bits(optimizer: Any, params: Any) -> Any:
    """All that a failed exchange may not change."""
    return copy.deepcopy(([param.detach() for param in params], [optimizer.state[param] for param in params]))


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("mode", "error", "told"),
    [
        ("raises", ArithmeticError, "as the formula says"),
        ("number", steprule.RuleError, r"Shifted\.evaluated returned 1\.0 for a parameter of shape \(4,\)"),
        ("shape", steprule.RuleError, r"returned a tensor of shape \(1,\) for a parameter of shape \(4,\)"),
    ],
)
def test_a_formula_that_fails_for_one_parameter_changes_none(mode, error, told):
    params, optimizer = stepped(Optimizer.of(Shifted))
    before = bits(optimizer, params)
    optimizer.param_groups[0]["mode"] = mode
    with pytest.raises(error, match=told):
        optimizer.eval()
    assert_same(bits(optimizer, params), before)
    optimizer.param_groups[0]["mode"] = None
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()  # for the model has the weights that are trained


def test_formulas_get_none_and_flags_as_they_are():
    params, optimizer = stepped(Optimizer.of(Shifted))
    want = [param.detach() + optimizer.state[param]["z"] for param in params]
    optimizer.eval()
    assert_same([param.detach() for param in params], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("weights", ["24bit", "32bit"])
def test_weights_are_exchanged_with_their_low_bits(weights, dtype):
    """As if the parameter had its full precision, to that of its format."""
    params, optimizer = stepped(steprule.ScheduleFreeAdamW, steps=20, dtype=dtype, weights=weights, lr=1e-2)
    trained = [optimizer.read(param).double() for param in params]
    moved = [optimizer.read(param, "z").double() for param in params]
    optimizer.eval()
    bits_kept = {torch.bfloat16: 8, torch.float16: 11}[dtype] + (8 if weights == "24bit" else 12)
    for param, y, z in zip(params, trained, moved, strict=True):
        x = y + (1 - 1 / 0.9) * (z - y)
        torch.testing.assert_close(optimizer.read(param).double(), x, rtol=2.0**-bits_kept, atol=1e-7)
        torch.testing.assert_close(param.detach(), optimizer.read(param).to(dtype), rtol=0, atol=0)
    optimizer.train()
    for param, y in zip(params, trained, strict=True):
        torch.testing.assert_close(optimizer.read(param).double(), y, rtol=2.0 ** (2 - bits_kept), atol=1e-6)


def swapping(**settings: Any) -> Any:
    return lambda params, **more: steprule.AdamW(params, average=0.5, **settings, **more)


@pytest.mark.parametrize(
    "settings", [{}, {"weights": "24bit"}, {"weights": None}], ids=["float32", "24bit", "bfloat16"]
)
def test_averages_that_cannot_be_exchanged_leave_all_weights(settings):
    """Whether weights and averages are exchanged or weights kept aside, as those of bfloat16 are."""
    dtype = torch.bfloat16 if settings else torch.float32
    params, optimizer = stepped(swapping(**settings), dtype=dtype)
    whole = optimizer.state[params[1]]["param_average"]
    before = bits(optimizer, params)
    optimizer.state[params[1]]["param_average"] = torch.empty(4, dtype=whole.dtype, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        optimizer.swap_average()
    optimizer.state[params[1]]["param_average"] = whole
    assert_same(bits(optimizer, params), before)
    optimizer.step()


ACTS = {
    "eval": lambda optimizer, params, name: optimizer.eval(),
    "swap": lambda optimizer, params, name: optimizer.swap_average(),
    "read": lambda optimizer, params, name: optimizer.read(params[1], name),
    "plain": lambda optimizer, params, name: optimizer.plain_state_dict(),
    "load": lambda optimizer, params, name: optimizer.load_state_dict(optimizer.state_dict()),
}


CASES = [
    (how, name)
    for how in ACTS
    for name in ("param", "z", "param_average", "step")
    if (how, name) not in {("load", "param"), ("plain", "param")}  # which read no weights
]


@pytest.mark.parametrize(("how", "name"), CASES)
def test_storages_that_were_freed_are_refused(how, name):
    """torch's own copies of such a tensor end the process."""
    params, optimizer = stepped(lambda params: steprule.ScheduleFreeSGD(params, average=0.5))
    x = params[1] if name == "param" else kept(optimizer.state[params[1]], name)
    first = params[0].detach().clone()
    x.untyped_storage().resize_(0)
    error = (RuntimeError, ValueError)
    with pytest.raises(error, match=r"the storage of .* lacks \d+ bytes of those that its shape .* needs"):
        ACTS[how](optimizer, params, name)
    assert_same(params[0].detach(), first)
    assert optimizer._core.modes.training and not optimizer._core.modes.is_swapped


def test_weights_that_were_freed_while_they_were_aside_are_missed():
    params, optimizer = stepped(swapping())
    optimizer.swap_average()
    averaged = params[0].detach().clone()
    optimizer.state[params[1]]["param_average"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"the storage of the weights that swap_average\(\) puts back"):
        optimizer.swap_average()
    assert_same(params[0].detach(), averaged)


def test_an_average_that_cannot_be_written_costs_no_weights():
    params, optimizer = stepped(swapping())
    state = optimizer.state[params[0]]
    state["param_average"] = state["param_average"].reshape(-1)[:1].expand(params[0].shape)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError):
        optimizer.swap_average()
    assert all(map(torch.equal, params, before))


def test_the_weights_of_groups_appended_by_hand_are_exchanged_too():
    _, optimizer = stepped(lambda params: steprule.ScheduleFreeSGD(params, lr=0.1))
    other = torch.nn.Parameter(torch.ones(3))
    optimizer.param_groups.append({"params": [other]})
    optimizer.eval()
    assert optimizer.param_groups[-1]["momentum"] == 0.9 and torch.equal(other, torch.ones(3))


@pytest.mark.parametrize("betas", [(), None, "ab"], ids=repr)
def test_constants_that_are_no_numbers_are_refused_at_loading(betas):
    _, optimizer = stepped(lambda params: steprule.ScheduleFreeAdamW(params, lr=0.1))
    saved = optimizer.state_dict()
    saved["param_groups"][0].update(betas=betas, lr=7.0)
    with pytest.raises(ValueError, match="Invalid betas value"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.step()
