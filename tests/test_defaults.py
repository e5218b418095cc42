"""torch's defaults, of device and dtype, are for tensors of the user's: nothing of an optimizer's own follows them."""

from __future__ import annotations

import copy

import pytest
import torch
from settings import shapes_for

import steprule
from steprule.rules import OWN
from steprule.rules.options import DECAYS
from steprule.services import Average, ClipAdaptive, ClipNorm, ClipQuantile, ClipValue, Telemetry
from steprule.step.kind import Kind


@pytest.fixture
def elsewhere():
    """A function after which new tensors are on the meta device, where they have no numbers."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.fixture
def eager_engine(monkeypatch):
    """The eager fallback steps everything, which makes most tensors."""
    monkeypatch.setattr(Kind, "_fits_an_engine", lambda *_: False)


def values(shape, seed):
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def run(make, dtype, shapes, sparse=False):
    """Two steps, one after loading what they have left, and one without gradients; all that there is then."""

    def train(params, optimizer, seed):
        for number, param in enumerate(params):
            grad = values(param.shape, 10 * seed + number).to(dtype)
            param.grad = grad.to_sparse(1) if sparse else grad
        optimizer.step()

    def fresh():
        return [torch.nn.Parameter(values(shape, number).to(dtype)) for number, shape in enumerate(shapes)]

    params = fresh()
    optimizer = make(params)
    for seed in (1, 2):
        train(params, optimizer, seed)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():  # as the oldest versions of torch.optim saved it
        for name, x in state.items():
            if x.dim() == 0:
                state[name] = float(x)
    params = fresh()
    loaded = make(params)
    loaded.load_state_dict(saved)
    train(params, loaded, 3)
    states = [x for state in loaded.state.values() for x in state.values()]
    norms = [loaded.grad_norm]
    loaded.zero_grad()
    loaded.step()
    return [*params, *states, *norms, loaded.grad_norm, *(loaded.read(p) for p in params)]


SETTINGS = {name: (name, {}) for name in OWN}
SETTINGS |= {
    f"adamw {key}": ("adamw", value)
    for key, value in {
        **{f"decay {decay}": {"decay": decay} for decay in DECAYS},
        "cautious": {"cautious": True},
        "cautious decay": {"cautious_decay": True, "decay": "decoupled"},
        "lookahead": {"lookahead": 2},
        "8bit": {"states": "8bit"},
        "bfloat16": {"states": "bfloat16"},
        "stochastic": {"weights": "stochastic", "average": 0.9},
        "24bit": {"weights": "24bit", "grads": "24bit"},
        "32bit": {"weights": "32bit"},
        "average": {"average": Average(0.9, warmup=True), "nonfinite": "zero"},
        "clip by norm": {"clip": ClipNorm(0.1), "telemetry": Telemetry(every=1)},
        "clip by value": {"clip": ClipValue(0.1)},
        "clip by row": {"clip": ClipAdaptive(0.1)},
        "clip by quantile": {"clip": ClipQuantile(0.5, window=3), "nonfinite": "skip"},
        "capturable": {"capturable": True},
    }.items()
}


def class_of(name):
    return next(getattr(steprule, key) for key in steprule.__all__ if key.lower() == name)


def assert_same_elsewhere(name, settings, elsewhere):
    dtype = torch.bfloat16 if {"weights", "grads"} & set(settings) else torch.float32

    def make(params):
        return class_of(name)(params, **copy.deepcopy(settings))

    shapes = shapes_for(OWN[name], [(4, 64), (3,)], settings)
    expected = run(make, dtype, shapes, name == "sparseadam")
    elsewhere()
    found = run(make, dtype, shapes, name == "sparseadam")
    for a, b in zip(expected, found, strict=True):
        assert b.device.type == "cpu" and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "settings"), SETTINGS.values(), ids=SETTINGS)
def test_no_tensor_is_made_on_the_default_device(name, settings, elsewhere, eager_engine):
    assert_same_elsewhere(name, settings, elsewhere)


@pytest.mark.parametrize("settings", [{}, {"clip": ClipNorm(0.1), "nonfinite": "skip"}], ids=["plain", "services"])
def test_nor_by_kernels(settings, elsewhere):
    assert_same_elsewhere("adamw", settings, elsewhere)


def test_nor_when_steprule_is_imported_there():
    import subprocess
    import sys

    program = """
import torch
torch.set_default_device("meta")
import steprule
p = torch.nn.Parameter(torch.ones(3, device="cpu"))
optimizer = steprule.AdamW([p], lr=0.5)
p.grad = torch.ones(3, device="cpu")
optimizer.step()
assert p.max() < 0.6 and optimizer._core.plans.current is not None
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_grad_norm_is_float32_whatever_the_default_dtype(dtype):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = steprule.SGD([p], clip=1.0)
    p.grad = torch.tensor([3.01, 4.0])
    try:
        torch.set_default_dtype(dtype)
        optimizer.step()
        assert optimizer.grad_norm.dtype == torch.float32
        assert float(optimizer.grad_norm) == pytest.approx((3.01**2 + 16) ** 0.5, rel=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
