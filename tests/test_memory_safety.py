"""Nothing is written outside of the memory that belongs to a parameter or a state by now, and nothing twice."""

from __future__ import annotations

import contextlib
import copy
import re
import weakref

import pytest
import torch
from dropin import random as random_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import steprule
from steprule.engine.eager import EagerStep
from steprule.services.gone import Gone
from steprule.step import tables
from steprule.tensors import state

GUARD = 7.0


def random(shape, seed: int) -> Tensor:
    return random_of(shape, seed, torch.float32)


class Within:
    """A parameter in the middle of a larger tensor whose rest is 7."""

    def __init__(self, *shape: int) -> None:
        size = torch.Size(shape).numel()
        self.memory = torch.full((3 * size,), GUARD)
        self.inside = self.memory[size : 2 * size]
        self.inside.copy_(random((size,), 0))
        self.param = nn.Parameter(self.inside.view(shape))

    def rest_is_untouched(self) -> bool:
        size = self.inside.numel()
        return bool((self.memory[:size] == GUARD).all() and (self.memory[2 * size :] == GUARD).all())


def stepped(param: Tensor, *more: Tensor, cls=steprule.AdamW, **settings):
    """An optimizer that has its plan."""
    optimizer = cls([param, *more], lr=0.1, **settings)
    for seed in (1, 2):
        for p in (param, *more):
            p.grad = random(p.shape, seed).to(p.dtype)
        optimizer.step()
    return optimizer


def everything(optimizer) -> list[Tensor]:
    """Copies of all that a step could change."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [x for p in params for x in optimizer.state.get(p, {}).values()]
    return [x.detach().clone() for x in (*params, *states)]


def assert_refused(optimizer, match: str, error: type[Exception] = RuntimeError) -> None:
    """The step raises, and nothing has changed."""
    before = everything(optimizer)
    with pytest.raises(error, match=match):
        optimizer.step()
    assert all(map(torch.equal, before, everything(optimizer)))


SERVICES = pytest.mark.parametrize("services", [{}, {"clip": 1e9}], ids=["plain", "clip"])


# What a plan was made from


@SERVICES
def test_a_parameter_that_became_smaller_in_place_is_noticed(services):
    """The gradient is the old one, and the address as well."""
    within = Within(100)
    optimizer = stepped(within.param, **services)
    before = within.memory.clone()
    within.param.data = within.param.data[:40]
    with pytest.raises(RuntimeError, match=r"gradient of parameter 0 of group 0 has the shape torch.Size\(\[100\]\)"):
        optimizer.step()
    assert torch.equal(within.memory, before)


RELAID = {
    "the parameter": lambda param, state: [param],
    "a state": lambda param, state: [state["exp_avg"]],
    "all": lambda param, state: [param, state["exp_avg"], state["exp_avg_sq"]],
}


@SERVICES
@pytest.mark.parametrize("which", RELAID)
def test_what_is_laid_out_anew_over_the_same_memory_is_stepped_as_it_is(which, services):
    within, peer = Within(6, 6), nn.Parameter(random((36,), 0).view(6, 6))
    ours = stepped(within.param, **services)
    its = torch.optim.AdamW([peer], lr=0.1)
    for seed in (1, 2):
        peer.grad = random((6, 6), seed)
        its.step()
    for optimizer, param in ((ours, within.param), (its, peer)):
        for x in RELAID[which](param, optimizer.state[param]):
            x.data = x.data.t()
        optimizer.step()
    torch.testing.assert_close(within.param, peer)
    for name, value in its.state[peer].items():
        torch.testing.assert_close(ours.state[within.param][name], value)
    assert within.rest_is_untouched()


@SERVICES
@pytest.mark.parametrize("how", ["replaced", "in place"])
def test_a_state_that_became_smaller_is_refused(how, services):
    optimizer = stepped(Within(100).param, **services)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    if how == "replaced":
        state["exp_avg"] = state["exp_avg"][:50]
    else:
        state["exp_avg"].data = state["exp_avg"][:50]
    assert_refused(optimizer, r"state exp_avg of parameter 0 of group 0 has the shape torch.Size\(\[50\]\)")


def test_a_released_parameters_state_is_looked_at_as_well():
    models = [nn.Linear(6, 6, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, its = steprule.AdamW(models[0].parameters(), lr=0.1), torch.optim.AdamW(models[1].parameters(), lr=0.1)
    ours.release_gradients(models[0])
    for step in range(4):
        for model, optimizer in zip(models, (ours, its), strict=True):
            if step == 2:
                state = optimizer.state[model.weight]
                state["exp_avg"].data = state["exp_avg"].t()
            model(random((3, 6), step)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(models[0].weight, models[1].weight)


def test_the_low_bits_of_a_gradient_are_as_many_as_its_parameters_elements():
    param = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = steprule.SGD([param], lr=0.5, grads="24bit")
    memory = torch.full((24,), 100, dtype=torch.int8)
    optimizer._core.accumulator.low_bits[param].data = memory[8:16]
    for size in (8, 16):
        param.data = torch.ones(size, dtype=torch.bfloat16)
        param.grad = torch.ones(size, dtype=torch.bfloat16)
        optimizer.step()
        assert (param == 0.5).all()
    assert (memory[:8] == 100).all() and (memory[16:] == 100).all()


@pytest.mark.parametrize(
    ("what", "left"),
    [(what, left) for what in ("param", "exp_avg", "grad") for left in (0, 100)],
    ids=str,
)
def test_a_storage_that_is_too_short_is_refused(what, left):
    param = nn.Parameter(random((100,), 0))
    optimizer = stepped(param)
    x = {"param": param, "grad": param.grad}.get(what, optimizer.state[param].get(what))
    x.untyped_storage().resize_(left)
    whose = {"param": "parameter 0", "grad": "the gradient of parameter 0"}.get(
        what, "the state exp_avg of parameter 0"
    )
    with pytest.raises(RuntimeError, match=f"storage of {whose} of group 0 lacks {400 - left} bytes"):
        optimizer.step()


def test_gradients_of_empty_parameters_go_on_without_a_new_plan():
    param, empty = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(0))
    optimizer = stepped(param, empty)
    plan = optimizer._core.plans.current
    for p in (param, empty):
        p.grad = torch.ones(p.shape)
    optimizer.step()
    assert optimizer._core.plans.current is plan


# Two that lie in the same memory


SHARED = {
    "the same": lambda m: [m, m[:]],
    "a part": lambda m: [m, m[90:]],
    "overlapping ends": lambda m: [m[:60], m[40:]],
    "strided in dense": lambda m: [m[::2], m[:3]],
    "strided both": lambda m: [m[::2], m[::3]],
    "rows and a column": lambda m: [m.view(10, 10)[3:5], m.view(10, 10)[:, 2]],
    "beyond others": lambda m: [m[:80].view(8, 10)[:, 0], m[1:5], m[70:75], m[11:15]],
}
APART = {
    "interleaved": lambda m: [m[::2], m[1::2]],
    "columns": lambda m: [m.view(10, 10)[:, :3], m.view(10, 10)[:, 3], m.view(10, 10)[:, 4:]],
    "stretches": lambda m: [m[50:], m[:20], m[20:50]],
    "empty": lambda m: [m, m[50:50]],
}


@pytest.mark.parametrize("views", SHARED)
def test_parameters_over_the_same_memory_are_refused(views):
    params = [nn.Parameter(x) for x in SHARED[views](torch.ones(100))]
    with pytest.raises(ValueError, match=r"parameter \d of group 0 and parameter \d of group 0 lie in the same memory"):
        steprule.AdamW(params)


def test_the_refusal_names_both_and_says_what_to_do():
    encoder, decoder = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    decoder.weight.data = encoder.weight.data
    groups = [
        {"params": [("encoder.weight", encoder.weight)]},
        {"params": [("decoder.weight", decoder.weight)], "lr": 0.1},
    ]
    with pytest.raises(ValueError, match=r"\(encoder.weight\) and parameter 0 of group 1 \(decoder.weight\)"):
        steprule.AdamW(groups)
    with pytest.raises(ValueError, match="assigning the same Parameter"):
        steprule.AdamW(groups)


@pytest.mark.parametrize("views", APART)
def test_parameters_beside_each_other_are_stepped_as_by_torch(views):
    ours, its = ([nn.Parameter(x) for x in APART[views](random((100,), 0))] for _ in range(2))
    for cls, params in ((steprule.AdamW, ours), (torch.optim.AdamW, its)):
        optimizer = cls(params, lr=0.1)
        for seed in range(3):
            for p in params:
                p.grad = random(p.shape, seed)
            optimizer.step()
    for a, b in zip(ours, its, strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_that_come_to_lie_in_the_same_memory_are_refused_at_the_step():
    params = [nn.Parameter(random((100,), seed)) for seed in (0, 1)]
    optimizer = stepped(*params)
    params[1].data = params[0].data
    assert_refused(optimizer, "parameter 0 of group 0 and parameter 1 of group 0 lie in the same memory")


def test_a_later_group_over_the_same_memory_is_refused_at_the_step():
    param = nn.Parameter(random((100,), 0))
    optimizer = stepped(param)
    other = nn.Parameter(param.data[:50])
    optimizer.add_param_group({"params": [other]})
    optimizer.step()  # it has no gradient, and is not written
    other.grad = torch.ones(50)
    assert_refused(optimizer, "parameter 0 of group 0 and parameter 0 of group 1")


@pytest.mark.parametrize("what", ["another's state", "its other state", "the parameter"])
def test_states_in_the_same_memory_are_refused(what):
    params = [nn.Parameter(random((100,), seed)) for seed in (0, 1)]
    optimizer = stepped(*params)
    states = optimizer.state[params[0]], optimizer.state[params[1]]
    states[0]["exp_avg"] = {
        "another's state": states[1]["exp_avg"], "its other state": states[0]["exp_avg_sq"], "the parameter": params[0].data
    }[what]  # fmt: skip
    assert_refused(optimizer, "the state exp_avg of parameter 0 of group 0.* lie in the same memory")


def test_the_advice_for_states_in_the_same_memory_is_a_copy():
    """Parameters can be tied by assigning one of them, states cannot."""
    params = [nn.Parameter(random((100,), seed)) for seed in (0, 1)]
    optimizer = stepped(*params)
    optimizer.state[params[0]]["exp_avg"] = optimizer.state[params[1]]["exp_avg"]
    with pytest.raises(RuntimeError, match=r"lie in the same memory.* clone\(\)") as caught:
        optimizer.step()
    assert "the same Parameter" not in str(caught.value)


def test_averages_of_complex_parameters_in_the_same_memory_are_refused():
    params = [nn.Parameter(random((4,), seed).to(torch.complex64)) for seed in (0, 1)]
    optimizer = stepped(*params, cls=steprule.SGD, average=0.9)
    states = [optimizer.state[param] for param in params]
    states[0]["param_average"] = states[1]["param_average"]
    assert_refused(optimizer, "the state param_average of parameter 0 of group 0.* lie in the same memory")


SHIFTED = {
    "earlier": lambda memory, state: (memory[1:101], memory[:100]),
    "later": lambda memory, state: (memory[:100], memory[1:101]),
    "strided": lambda memory, state: (memory[:100], memory[::2][:100]),
    "transposed": lambda memory, state: (memory[:100].view(10, 10), memory[:100].view(10, 10).t()),
    "one element": lambda memory, state: (memory[:100], memory[50].expand(100)),
    "a state": lambda memory, state: (memory[:100], state[1:101]),
}


@SERVICES
@pytest.mark.parametrize("when", ["at first", "later", "each step anew"])
@pytest.mark.parametrize("views", SHIFTED)
def test_a_gradient_that_overlaps_what_is_written_is_refused(views, when, services):
    memory, state = random((200,), 0), random((200,), 1)
    own, grad = SHIFTED[views](memory, state)
    param = nn.Parameter(own)
    optimizer = steprule.SGD([param], lr=0.1, momentum=0.9, **services)
    optimizer.state[param]["momentum_buffer"] = state[:100].view(own.shape)
    for _ in range({"at first": 0, "later": 1, "each step anew": 3}[when]):
        param.grad = random(param.shape, 2)
        optimizer.step()
    param.grad = grad
    which = "the state momentum_buffer of " if views == "a state" else ""
    for _ in range(2):
        assert_refused(
            optimizer, f"the gradient of parameter 0 of group 0 lies in the memory of {which}parameter 0 of group 0"
        )
    param.grad = grad.clone()
    optimizer.step()


def test_a_gradient_that_is_another_parameter_is_refused():
    """Which of them is stepped first would decide."""
    params = [nn.Parameter(random((100,), seed)) for seed in (0, 1)]
    optimizer = stepped(*params)
    params[0].grad = params[1].data
    assert_refused(optimizer, "the gradient of parameter 0 of group 0 lies in the memory of parameter 1 of group 0")


@pytest.mark.parametrize("which", ["parameter", "state"])
def test_a_gradient_may_be_its_parameter_or_a_state(which):
    ours, its = (nn.Parameter(random((100,), 0)) for _ in range(2))
    for cls, param in ((steprule.SGD, ours), (torch.optim.SGD, its)):
        optimizer = cls([param], lr=0.1, momentum=0.9, foreach=False)
        for step in range(5):
            param.grad = random((100,), 1)
            if step > 1:
                param.grad = param.data if which == "parameter" else optimizer.state[param]["momentum_buffer"].clone()
            optimizer.step()
    torch.testing.assert_close(ours, its)
    optimizer = stepped(ours, cls=steprule.Lion)
    kept = optimizer.state[ours]["exp_avg"]
    expected = ours.detach() - 0.1 * kept.sign()
    ours.grad = kept
    optimizer.step()
    torch.testing.assert_close(ours.detach(), expected)


def test_gradients_may_share_memory_with_anything():
    ours, its = ([nn.Parameter(random((100,), seed)) for seed in (0, 1)] for _ in range(2))
    for cls, params in ((steprule.SGD, ours), (torch.optim.SGD, its)):
        optimizer = cls(params, lr=0.1)
        for _ in range(2):
            for p in params:
                p.grad = params[0].data.clone()
            params[1].grad = params[0].grad[:]
            optimizer.step()
            params[0].grad = params[0].data
            optimizer.step()
    for a, b in zip(ours, its, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_parameters_may_share_memory_until_they_have_gradients():
    param = nn.Parameter(random((100,), 0))
    frozen = nn.Parameter(param.data, requires_grad=False)
    optimizer = steprule.AdamW([param, frozen])
    param.grad = torch.ones(100)
    optimizer.step()


def test_what_has_no_memory_shares_none():
    freed = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    for param in freed:
        param.untyped_storage().resize_(0)
    on_meta = [nn.Parameter(torch.ones(4, device="meta")) for _ in range(2)]
    optimizer = steprule.AdamW([*freed, *on_meta, *(nn.Parameter(torch.ones(0)) for _ in range(2))])
    for param in on_meta:
        param.grad = torch.ones(4, device="meta")
    optimizer.step()


# States of other dtypes

UNKNOWN = [
    (torch.float32, torch.int32),
    (torch.float32, torch.int8),
    (torch.float32, torch.bool),
    (torch.float32, torch.complex64),
    (torch.float32, torch.float64),
    (torch.bfloat16, torch.float64),
    (torch.complex64, torch.float32),
    (torch.complex64, torch.complex128),
]


@pytest.mark.parametrize(("own", "other"), UNKNOWN, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_state_of_a_dtype_that_no_step_can_use_is_refused(own, other):
    param = nn.Parameter(torch.ones(4, dtype=own))
    param.grad = torch.ones(4, dtype=own)
    optimizer = steprule.AdamW([param])
    optimizer.step()
    optimizer.state[param]["exp_avg_sq"] = torch.ones(4, dtype=other)
    assert_refused(optimizer, f"the state exp_avg_sq of parameter 0 of group 0 is {other}")


@pytest.mark.parametrize(
    ("own", "other"),
    [(torch.float64, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def test_states_narrower_than_the_parameter_and_float32_ones_are_used(own, other):
    optimizers = []
    for dtype in (own, torch.float64):
        param = nn.Parameter(torch.ones(4, dtype=dtype))
        param.grad = torch.ones(4, dtype=dtype)
        optimizers.append(steprule.AdamW([param], lr=0.125))
        optimizers[-1].step()
        for name in ("exp_avg", "exp_avg_sq"):
            state = optimizers[-1].state[param]
            state[name] = state[name].to(other if dtype == own else dtype)
        optimizers[-1].step()
    first, second = (copy.copy(optimizer.param_groups[0]["params"][0]) for optimizer in optimizers)
    torch.testing.assert_close(first.double(), second, rtol=0.02, atol=0)


# Tensors that have no numbers

PLACES = ["fake", "fake, stepped outside", "meta"]
OPTIONS = {
    "AdamW": (steprule.AdamW, {}),
    "SGD": (steprule.SGD, {"momentum": 0.9}),
    "NAdam": (steprule.NAdam, {}),
    "LAMB": (steprule.LAMB, {}),
    "8bit": (steprule.AdamW, {"states": "8bit"}),
    "services": (steprule.AdamW, {"clip": 1.0, "nonfinite": "skip", "average": 0.9, "telemetry": 1}),
}


def modes(place: str):
    """Where parameters are made, and where they are stepped."""
    if place == "meta":
        return torch.device("meta"), contextlib.nullcontext()
    mode = FakeTensorMode() if place.startswith("fake") else contextlib.nullcontext()
    return mode, mode if place == "fake" else contextlib.nullcontext()


def abstract_steps(place: str, cls, **settings):
    making, stepping = modes(place)
    with making:
        params = [nn.Parameter(torch.ones(shape)) for shape in ((40, 64), (3,))]
        for p in params:
            p.grad = torch.ones(p.shape)
        optimizer = cls(params, lr=0.1, **settings)
    versions = [p._version for p in params]
    with stepping:
        for _ in range(2):
            optimizer.step()
    assert all(p._version > version for p, version in zip(params, versions, strict=True))
    return optimizer, params


def described(optimizer, params) -> list[dict[str, tuple]]:
    return [{name: (type(x), x.shape, x.dtype, x.device) for name, x in optimizer.state[p].items()} for p in params]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam"])
def test_parameters_without_numbers_get_the_states_that_torch_gives_them(name, place):
    cls, settings = OPTIONS[name]
    ours = described(*abstract_steps(place, cls, **settings))
    its = described(*abstract_steps(place, getattr(torch.optim, name), **settings))
    if name == "NAdam":  # whose product is float32 in torch.optim
        assert [state.pop("mu_product")[1:2] for state in ours] == [state.pop("mu_product")[1:2] for state in its]
    assert ours == its


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("option", OPTIONS)
def test_parameters_without_numbers_get_the_states_that_others_get(option, place):
    cls, settings = OPTIONS[option]
    optimizer, params = abstract_steps(place, cls, **settings)
    real, real_params = abstract_steps("here", cls, **settings)
    for p, q in zip(params, real_params, strict=True):
        state, other = optimizer.state[p], real.state[q]
        assert list(state) == list(other)
        for name, x in state.items():
            assert x.shape == other[name].shape and x.dtype == other[name].dtype
            assert x.dim() == 0 or type(x) is (torch.Tensor if place == "meta" else FakeTensor)


def test_real_parameters_in_a_fake_mode_are_refused():
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = steprule.AdamW([param])
    with FakeTensorMode(), pytest.raises(RuntimeError, match="FakeTensorMode"):
        optimizer.step()
    assert (param == 1).all() and not optimizer.state
    optimizer.step()
    before = param.detach().clone()
    with FakeTensorMode(), pytest.raises((RuntimeError, AssertionError), match="FakeTensor"):
        optimizer.step()  # which has a plan; torch says it where that is looked at anew
    assert torch.equal(param, before) and optimizer.state[param]["step"] == 1


# What a step that fails leaves


@pytest.mark.parametrize("where", ["a state", "the plan"])
@pytest.mark.parametrize("released", [False, True], ids=["step", "released"])
def test_a_first_step_without_the_memory_for_it_leaves_nothing(where, released, monkeypatch):
    """A buffer of zeros would be taken for one that has begun, which dampening treats otherwise."""
    models = [nn.Linear(5, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    ours, its = steprule.SGD(models[0].parameters(), **settings), torch.optim.SGD(models[1].parameters(), **settings)
    if released:
        ours.release_gradients(models[0])
    module, name = {"a state": (state, "zeros"), "the plan": (tables, "plan_of")}[where]
    calls, old = [], getattr(module, name)

    def fails(*args):
        calls.append(args)
        if len(calls) == (2 if where == "a state" and not released else 1):
            raise MemoryError
        return old(*args)

    monkeypatch.setattr(module, name, fails)
    with pytest.raises(MemoryError):
        models[0](torch.ones(2, 5)).square().sum().backward()
        ours.step()
    assert not any(ours.state.values())
    for model, optimizer in zip(models, (ours, its), strict=True):
        optimizer.zero_grad()
        for _ in range(2):
            model(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@SERVICES
def test_what_was_stepped_before_another_parameter_failed_keeps_its_states(services, monkeypatch):
    params = [nn.Parameter(random((6,), seed)) for seed in range(4)]
    params[2].data, params[3].data = params[2].data.to(torch.complex64), params[3].data.to(torch.complex64)
    optimizer = steprule.SGD(params, lr=0.1, momentum=0.9, dampening=0.5, **services)
    for param in params:
        param.grad = torch.ones(6, dtype=param.dtype)
    before = [param.detach().clone() for param in params]
    written = []

    def fails(self, old=EagerStep.write):
        written.append(self)
        if len(written) == 2:
            raise KeyboardInterrupt
        old(self)

    monkeypatch.setattr(EagerStep, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    moved = [not torch.equal(param, old) for param, old in zip(params, before, strict=True)]
    assert moved == [True, True, True, False]
    assert [bool(optimizer.state.get(param)) for param in params[:3]] == [True] * 3


# What is let go


def lone(optimizer, param) -> list[weakref.ref]:
    """Weak references to a parameter and its states."""
    return [weakref.ref(x) for x in (param, *optimizer.state[param].values())]


@SERVICES
def test_a_replaced_parameter_and_its_states_are_let_go_at_zero_grad(services):
    """As when a cloud of points is made denser: its states go to another parameter."""
    optimizer = stepped(nn.Parameter(random((100,), 0)), nn.Parameter(random((3,), 0)), **services)
    group = optimizer.param_groups[0]
    gone = lone(optimizer, group["params"][0])
    state = optimizer.state.pop(group["params"][0])
    new = nn.Parameter(group["params"][0].detach()[:50].clone())
    state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"][:50].clone(), state["exp_avg_sq"][:50].clone()
    group["params"][0] = new
    optimizer.state[new] = state
    optimizer.zero_grad()
    kept = [state["step"]]
    assert [reference() for reference in gone if not any(reference() is x for x in kept)] == [None] * 3
    new.grad = torch.ones(50)
    optimizer.step()
    assert float(state["step"]) == 3


@pytest.mark.parametrize("how", ["replaced", "deleted", "all deleted"])
def test_replaced_states_are_let_go_at_zero_grad(how):
    param = nn.Parameter(random((100,), 0))
    optimizer = stepped(param)
    gone = lone(optimizer, param)[1:]
    if how == "replaced":
        optimizer.state[param].update({name: x.clone() for name, x in optimizer.state[param].items()})
    elif how == "deleted":
        optimizer.state[param].clear()
    else:
        optimizer.state.clear()
    optimizer.zero_grad()
    assert [reference() for reference in gone] == [None] * 3


def test_a_parameter_that_was_released_is_let_go_at_zero_grad():
    model = nn.Linear(4, 2)
    optimizer = steprule.AdamW(model.parameters(), lr=0.1)
    optimizer.release_gradients(model)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    gone = lone(optimizer, model.bias)[1:]
    plan = optimizer._core.plans.single[model.weight]
    del optimizer.state[model.bias]
    optimizer.zero_grad()
    assert [reference() for reference in gone] == [None] * 3
    assert optimizer._core.plans.single == {model.weight: plan}


def test_parameters_that_are_gone_are_forgotten():
    optimizer = steprule.AdamW([nn.Parameter(torch.ones(4))])
    for _ in range(5):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))]})
        assert optimizer._core.given.has(optimizer.param_groups[1]["params"][0])
        del optimizer.param_groups[1]
    optimizer.step()  # which looks at the groups that there are
    assert len(optimizer._core.given._vectors) == 1


SWAPPED = {
    "plain": lambda model: steprule.AdamW(model.parameters(), lr=0.1),
    "services": lambda model: steprule.AdamW(model.parameters(), lr=0.1, clip=1.0, average=0.9, telemetry=1),
    "sums": lambda model: steprule.LAMB(model.parameters()),
    "grads": lambda model: steprule.AdamW(model.parameters(), lr=0.1, grads="24bit"),
    "released": lambda model: steprule.AdamW(model.parameters(), lr=0.1),
}


@pytest.mark.parametrize("when", ["made", "stepped", "with gradients"])
@pytest.mark.parametrize("name", SWAPPED)
def test_parameters_are_swapped_as_modules_do_it_for_dtensors(name, when, monkeypatch):
    """torch.utils.swap_tensors refuses tensors of which there are weak references, and loses the hooks of those that it takes."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    found = []
    for swaps in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 2).bfloat16() if name == "grads" else nn.Linear(4, 2)
        optimizer = SWAPPED[name](model)
        if name == "released":
            optimizer.release_gradients(model)

        def train(seed, batches, model=model, optimizer=optimizer):
            for batch in range(batches):
                with optimizer.accumulate() if batch < batches - 1 else contextlib.nullcontext():
                    model(random((3, 4), 2 * seed + batch).to(model.weight.dtype)).square().sum().backward()
            gone = [isinstance(param.grad, Gone) for param in model.parameters()]
            optimizer.step()
            return gone

        if when != "made":
            train(0, 2)
        if when == "stepped":
            optimizer.zero_grad()
        if swaps:
            model._apply(torch.clone)
        for seed, batches in enumerate((1, 2, 2), 1):  # in the first it is found that hooks are gone
            optimizer.zero_grad()
            gone = train(seed, batches)
        assert gone == [name == "released"] * 2
        found.append([x for param in model.parameters() for x in (param, *optimizer.state[param].values())])
    assert all(map(torch.equal, *found))


def test_a_plan_that_fits_outlives_zero_grad():
    param = nn.Parameter(random((100,), 0))
    optimizer = stepped(param)
    plan = optimizer._core.plans.current
    optimizer.zero_grad()
    param.grad = torch.ones(100)
    optimizer.step()
    assert plan is not None and optimizer._core.plans.current is plan


@pytest.mark.parametrize("foreach", [None, True])
def test_zero_grad_is_torchs(foreach):
    ours, its = ([nn.Parameter(random((3,), seed)) for seed in range(3)] for _ in range(2))
    for cls, params in ((steprule.AdamW, ours), (torch.optim.AdamW, its)):
        optimizer = cls(params, foreach=foreach)
        grads = [*torch.autograd.grad((params[0] * params[1]).square().sum(), params[:2], create_graph=True), None]
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        optimizer.zero_grad(set_to_none=False)
        assert [p.grad is grad for p, grad in zip(params, grads, strict=True)] == [True] * 3
        assert all((p.grad == 0).all() and not p.grad.requires_grad for p in params[:2])
        optimizer.zero_grad()
        assert all(p.grad is None for p in params)


NOT_STEPPABLE = {
    "expanded": (lambda: random((1, 64), 1).expand(4, 64), "elements of parameter 1 of group 0 share memory"),
    "overlapping": (
        lambda: random((100,), 1).as_strided((4, 64), (8, 1)),
        "elements of parameter 1 of group 0 share memory",
    ),
    "whole numbers": (lambda: torch.ones(4, 64, dtype=torch.int64), "parameter 1 of group 0 is torch.int64"),
    "float8": (lambda: torch.ones(4, 64).to(torch.float8_e4m3fn), "parameter 1 of group 0 is torch.float8_e4m3fn"),
    "compressed": (lambda: torch.eye(4, 64).to_sparse_csr(), "parameter 1 of group 0 has the layout torch.sparse_csr"),
    "two in one": (lambda: TwoTensor(torch.ones(4, 64), torch.ones(4, 64)), "parameter 1 of group 0 is a TwoTensor"),
}


@pytest.mark.parametrize("name", NOT_STEPPABLE)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_what_cannot_be_stepped_is_refused_before_others_have_moved(name, clip):
    make, message = NOT_STEPPABLE[name]
    moves = torch.ones(4, 64, requires_grad=True)
    value = make()
    wrong = nn.Parameter(value, requires_grad=value.is_floating_point())
    moves.grad, wrong.grad = torch.ones(4, 64), make()
    if isinstance(wrong, TwoTensor) and clip:
        with pytest.raises(ValueError, match=r"clip and TwoTensor \(parameter 1 of its group\) do not go together"):
            steprule.AdamW([moves, wrong], clip=clip)
        return
    optimizer = steprule.AdamW([moves, wrong], lr=0.1, clip=clip)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            optimizer.step()
    assert bool((moves == 1).all())
    assert not optimizer.state


def test_a_state_whose_elements_share_memory_is_refused():
    param = nn.Parameter(random((4, 64), 0))
    optimizer = stepped(param)
    optimizer.state[param]["exp_avg"] = torch.zeros(1, 64).expand(4, 64)
    before = param.detach().clone()
    with pytest.raises(RuntimeError, match="elements of the state exp_avg of parameter 0 of group 0 share memory"):
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("settings", [{}, {"clip": 1.0}], ids=str)
def test_a_gradient_that_looks_as_others_and_lies_nowhere_is_not_read(settings):
    """torch has tensors of zeros that have a storage and no address; kernels would read there."""

    def train(zeros) -> list[Tensor]:
        params = [nn.Parameter(random((3, 4), seed)) for seed in range(2)]
        optimizer = steprule.AdamW(params, lr=0.1, **settings)
        for step in range(4):
            for number, param in enumerate(params):
                param.grad = zeros((3, 4)) if (step, number) in ((0, 0), (2, 1)) else random((3, 4), step)
            optimizer.step()
        return params

    for one, other in zip(train(torch._efficientzerotensor), train(torch.zeros), strict=True):
        torch.testing.assert_close(one, other)
