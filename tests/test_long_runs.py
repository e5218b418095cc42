"""Steps where float32 counts no further, and where whole numbers of 32 bits would overflow."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import steprule
import steprule.arrays
from steprule.formats import dither, mix
from steprule.step.kind import Kind

STARTS = {"2**24": 2**24 - 2, "2**31": 2**31 - 2, "2**32": 2**32 - 2}
LR = 2.0**-6  # products with it are exact, so that engines agree on every bit


@pytest.fixture(params=STARTS.values(), ids=STARTS)
def start(request):
    return request.param


@pytest.fixture
def eager_engine(monkeypatch):
    """A function after which the eager fallback steps everything."""
    return lambda: monkeypatch.setattr(Kind, "_fits_an_engine", lambda *_: False)


def make(cls=steprule.SGD, dtype=torch.float32, **settings):
    params = [torch.nn.Parameter(torch.ones(4, 64, dtype=dtype)), torch.nn.Parameter(torch.ones(3, dtype=dtype))]
    return params, cls(params, **{"lr": LR, **settings})


def set_step(optimizer, step, in_place=False):
    """As a checkpoint of torch.optim would, while float32 can: by another tensor, or in the one that there is."""
    for state in optimizer.state.values():
        if "step" not in state:
            continue
        if in_place:
            state["step"].fill_(float(step))
        else:
            state["step"] = torch.tensor(float(step), dtype=torch.float32 if step < 2**24 else torch.float64)


def train(params, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def steps_of(optimizer):
    return [float(state["step"]) for state in optimizer.state.values() if "step" in state]


@pytest.mark.parametrize("way", ["replaced", "in place", "eager"])
def test_steps_are_counted_and_lookahead_syncs_when_it_is_due(start, way, eager_engine):
    if way == "eager":
        eager_engine()
    params, optimizer = make(lookahead=5)
    train(params, optimizer, 1)
    assert optimizer.state[params[0]]["step"].dtype == torch.float32
    if way == "in place" and start > 2**24:
        set_step(optimizer, start)
        train(params, optimizer, 1)
    set_step(optimizer, start, in_place=way == "in place")
    for step in range(start + 1, start + 13):
        slow = optimizer.state[params[0]]["slow_param"].clone()
        before = params[0].detach().clone()
        train(params, optimizer, 1, seed=step)
        assert steps_of(optimizer) == [step, step]
        assert torch.equal(slow, optimizer.state[params[0]]["slow_param"]) == (step % 5 != 0)
        assert not torch.equal(before, params[0])
    assert (optimizer._core.plans.current is None) == (way == "eager")
    assert optimizer.state[params[0]]["step"].dtype == torch.float64


@pytest.mark.parametrize("way", ["load_state_dict", "a plain number"])
@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
def test_a_count_that_is_full_goes_on_once_it_is_loaded(way, fused):
    flags = {"fused": True} if fused else {}
    params, optimizer = make(steprule.AdamW, **flags)
    train(params, optimizer, 1)
    saved = optimizer.state_dict()
    for number, state in saved["state"].items():
        count = 2**24 + number * 3
        state["step"] = torch.tensor(float(count), dtype=torch.float64) if way == "load_state_dict" else count
    params, optimizer = make(steprule.AdamW, **flags)
    optimizer.load_state_dict(saved)
    train(params, optimizer, 3)
    assert steps_of(optimizer) == [2**24 + 3, 2**24 + 6]
    saved["state"][0]["step"] = torch.tensor(2.0**24)  # as torch.optim would leave it
    optimizer.load_state_dict(saved)
    train(params, optimizer, 3)
    assert steps_of(optimizer)[0] == 2**24 + 3


def test_torch_optim_goes_on_from_such_a_count():
    params, optimizer = make(steprule.AdamW)
    train(params, optimizer, 1)
    set_step(optimizer, 2**24 - 1)
    train(params, optimizer, 3)
    its = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in params], lr=LR)
    its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    its_params = its.param_groups[0]["params"]
    train(params, optimizer, 2), train(its_params, its, 2)
    assert steps_of(its) == steps_of(optimizer) == [2**24 + 4] * 2
    for p, q in zip(params, its_params, strict=True):
        torch.testing.assert_close(p, q)


KINDS = {
    "stochastic weights": {"weights": "stochastic", "dtype": torch.bfloat16},
    "24-bit weights": {"weights": "24bit", "dtype": torch.bfloat16, "momentum": 0.5},
    "8-bit states": {"states": "8bit", "momentum": 0.5},
    "bfloat16 states": {"states": "bfloat16", "momentum": 0.5},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_engines_agree_on_every_bit(start, settings, eager_engine):
    runs = []
    for is_eager in (False, True):
        if is_eager:
            eager_engine()
        params, optimizer = make(**settings)
        train(params, optimizer, 1)
        set_step(optimizer, start)
        train(params, optimizer, 5)
        assert set(steps_of(optimizer)) == {start + 5}
        runs.append([*params, *(x for state in optimizer.state.values() for x in state.values())])
    assert len(runs[0]) > 3
    assert all(map(torch.equal, *runs))


def constant(settings, start, steps=300):
    """The mean of weights and momentum after many small steps in one direction, and how far apart weights then are."""
    lr = 2.0**-12
    params, optimizer = make(**{**settings, "lr": lr})
    for step in range(steps):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        if not step and start is not None:
            set_step(optimizer, start)
    kept = [x for x in ("momentum_buffer",) if settings.get("momentum")]
    means = [float(optimizer.read(params[0], name).double().mean()) for name in ("param", *kept)]
    return means, float(optimizer.read(params[0]).std())


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": "stochastic", "dtype": torch.bfloat16},
        {"states": "8bit", "momentum": 0.99},
        {"states": "bfloat16", "momentum": 0.999},
    ],
    ids=["stochastic weights", "8-bit states", "bfloat16 states"],
)
def test_roundings_do_not_stand_still(start, settings):
    result, spread = constant(settings, start)
    plain, _ = constant({key: value for key, value in settings.items() if key == "momentum"}, None)
    assert spread < 0.1  # some weights would move in every step and others in none
    for value, expected, first in zip(result, plain, (1.0, 0.0), strict=False):
        assert value - first == pytest.approx(expected - first, rel=0.1)


def test_random_bits_differ_from_step_to_step(start):
    steps = range(start, start + 6)
    assert len({dither(3, step, 1) for step in steps}) == 6
    assert len({mix(3, step, 1) for step in steps}) == 6


def test_released_gradients_are_counted_too():
    model = torch.nn.Linear(3, 2)
    optimizer = steprule.AdamW(model.parameters())
    optimizer.release_gradients(model)
    for step in range(4):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        if not step:
            set_step(optimizer, 2**24 - 2)
    assert steps_of(optimizer) == [2**24 + 1] * 2


def test_arrays_count_on(start):
    params = [np.ones(5, np.float32)]
    optimizer = steprule.arrays.AdamW(params, lr=0.1)
    optimizer.step([np.ones(5, np.float32)])
    optimizer.state[0]["step"] = start
    for _ in range(4):
        optimizer.step([np.ones(5, np.float32)])
    assert optimizer.state[0]["step"] == start + 4
    fresh = steprule.arrays.AdamW(params, lr=0.1)
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.state[0]["step"] == start + 4
