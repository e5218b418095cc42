"""What is around a step is for the user's tensors: nothing of an optimizer's own follows torch's defaults or modes."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from forked import MODULES, forked
from settings import shapes_for

import steprule
from steprule.rule import DECAYS
from steprule.rules import OWN
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


def run(make, dtype, shapes, sparse=False, around=contextlib.nullcontext):
    """Two steps, one after loading what they have left, and one without gradients; all that there is then."""

    def train(params, optimizer, seed, around=around):
        for number, param in enumerate(params):
            grad = values(param.shape, 10 * seed + number).to(dtype)
            param.grad = grad.to_sparse(1) if sparse else grad
        with around():
            optimizer.step()

    def fresh():
        return [torch.nn.Parameter(values(shape, number).to(dtype)) for number, shape in enumerate(shapes)]

    params = fresh()
    with around():
        optimizer = make(params)
    for seed in (1, 2):
        train(params, optimizer, seed)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():  # as the oldest versions of torch.optim saved it
        for name, x in state.items():
            if x.dim() == 0:
                state[name] = float(x)
    params = fresh()
    with around():
        loaded = make(params)
        loaded.load_state_dict(saved)
        loaded.eval()  # which exchanges weights and averages where there are some
        loaded.train()
    train(params, loaded, 3)
    states = [x for state in loaded.state.values() for x in state.values()]
    norms = [loaded.grad_norm]
    train(params, loaded, 4, contextlib.nullcontext)  # in memory from steps before
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
    (done,) = forked([["-c", program]], MODULES)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def default_dtype(dtype):
    try:
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    try:
        torch.use_deterministic_algorithms(True)  # what is made without numbers is filled with NaN
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference": torch.inference_mode,
    "deterministic": deterministic,
}
MEETS_SURROUNDINGS = {
    "soap": {},  # products, and bases that are completed
    "shampoo": {},
    "adagrad": {},  # states that the constructor makes
    "schedulefreeadamw": {},
    "adamw": {"average": 0.9, "clip": 1.0},
}


@pytest.mark.parametrize("engine", ["kernels", "eager"])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize(("name", "settings"), MEETS_SURROUNDINGS.items(), ids=MEETS_SURROUNDINGS)
def test_a_step_does_not_see_what_is_around_it(name, settings, around, engine, request):
    if engine == "eager":
        request.getfixturevalue("eager_engine")

    def make(params):
        return class_of(name)(params, **settings)

    shapes = shapes_for(OWN[name], [(4, 64), (3,)], settings)
    expected = run(make, torch.float32, shapes)
    found = run(make, torch.float32, shapes, around=around)
    for a, b in zip(expected, found, strict=True):
        assert not b.is_inference()
        # Steps are float64 where that is the default dtype, as torch.optim's.
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, check_dtype=b.dim() > 0)


def test_nor_does_one_inside_backward():
    def trained(around):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 4, bias=False)
        optimizer = steprule.SOAP(model.parameters(), lr=0.1)
        optimizer.release_gradients(model)
        for seed in range(3):
            loss = (model.weight - values((4, 6), seed)).square().sum()  # whose backward pass has no products
            with around():
                loss.backward()
                optimizer.step()
        return model.weight.detach()

    assert torch.equal(trained(contextlib.nullcontext), trained(AROUND["autocast"]))


def test_a_closure_does_see_it():
    seen = []
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = steprule.SOAP([p], lr=0.1)

    def closure():
        product = p @ p
        seen.append(product.dtype)
        product.sum().backward()

    with AROUND["autocast"]():
        optimizer.step(closure)
        assert (p @ p).dtype == torch.bfloat16
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_grad_norm_is_float32_whatever_the_default_dtype(dtype):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = steprule.SGD([p], clip=1.0)
    p.grad = torch.tensor([3.01, 4.0])
    with default_dtype(dtype):
        optimizer.step()
        assert optimizer.grad_norm.dtype == torch.float32
        assert float(optimizer.grad_norm) == pytest.approx((3.01**2 + 16) ** 0.5, rel=1e-6)
