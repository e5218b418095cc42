"""The registry's optimizers beside torch.optim's own: the table of configurations, and the pairs that are compared."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from packaging.version import Version
from settings import sees_matrix
from torch import Tensor

import steprule
from steprule.rules import OWN, SparseAdam

CLASSES = {
    rule.__name__: rule
    for rule in OWN.values()
    if hasattr(torch.optim, rule.__name__) and rule is not SparseAdam and not sees_matrix(rule)
}
"""The rules that torch.optim has too, by the name of the class. SparseAdam takes no dense gradients and has a file of its own, and
so have Muon and Adafactor, which see matrices."""

NAMES = list(CLASSES)

EVERY = ("SGD", "RMSprop", "Adam", "AdamW")
"""Where options change one another's meaning."""

TELLING = {
    "lr": 0.05, "betas": (0.8, 0.95), "alpha": 0.9, "eps": 0.02, "rho": 0.8, "momentum_decay": 0.02, "lambd": 0.05, "t0": 2.0,
    "etas": (0.4, 1.3), "step_sizes": (0.01, 0.2),
}  # fmt: skip
"""Values at which a misplaced eps, a missing bias correction or swapped betas show in the first digits."""

ON = {"weight_decay": 0.1, "momentum": 0.9, "dampening": 0.4}
"""Values of what is off, 0, by default."""

TOLERANCE = {torch.float64: (1e-9, 1e-12), torch.float32: (2e-5, 1e-6)}
"""Relative and absolute."""

FLOAT32 = 1e-6
"""Relative; where torch.optim keeps numbers of its own in float32 whatever the parameter's dtype: `KEEPING`."""

KEEPING = ("NAdam", "ASGD")

SMALL = ((4, 3), (5,), ())
LARGE = ((200, 200), (7,), (180, 180))  # together more than one thread does alone


NEWER = {"decoupled_weight_decay"} - {*inspect.signature(torch.optim.Adam).parameters}
"""What Adam and AdamW have here and in an older torch.optim have not."""


NO_DECOUPLED = "Adam has no decoupled_weight_decay"
NO_GRAD_DTYPE = "a gradient has the dtype of its parameter"
ADAGRAD = "Adagrad makes states only in its constructor"


def since(version: str, what: str) -> None:
    """Skips a test that a torch before this version cannot pass, for what it is like."""
    if Version(torch.__version__) < Version(version):
        pytest.skip(f"torch before {version}: {what}")


def mine(name: str) -> type[torch.optim.Optimizer]:
    return getattr(steprule, name)


def torchs(name: str) -> type[torch.optim.Optimizer]:
    return getattr(torch.optim, name)


@dataclass(frozen=True)
class Config:
    """An optimizer with its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        changed = [f"{k}={v}" for k, v in self.options.items() if TELLING.get(k) != v and v]
        return "-".join([self.name, *changed])


def _configs(name: str) -> list[Config]:
    rule = CLASSES[name]
    takes = inspect.signature(torchs(name)).parameters  # an older torch has fewer options
    choices: dict[str, list[Any]] = {}
    for hyper, default in rule.hyperparameters.items():
        if hyper not in takes:
            continue
        if isinstance(default, bool):
            choices[hyper] = [False, True]
        elif default == 0:
            choices[hyper] = [0.0, ON.get(hyper, 0.1)]
        else:
            choices[hyper] = [TELLING.get(hyper, default)]
    choices["maximize"] = [False, True]
    count = sum(len(values) - 1 for values in choices.values())
    found = []
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        if (
            name not in EVERY
            and 0 < sum(map(bool, (options[key] for key in choices if len(choices[key]) > 1))) < count - 1
        ):
            continue
        try:
            torchs(name)([torch.zeros(1)], **options)
        except ValueError:
            continue
        found.append(Config(name, options))
    return found


CONFIGS = [config for name in NAMES for config in _configs(name)]
"""Combinations of options, with maximize on and off: all of `EVERY`, and of others none, all, and all but one."""

FULL = [max(_configs(name), key=lambda c: sum(map(bool, c.options.values()))) for name in NAMES]
"""For each optimizer, the configuration with the most options on: all its states exist."""

SOME = [config for config in FULL if config.name in (*EVERY, "NAdam", "Adagrad")]
"""Of those, one of each kind: with scalar states, and with states that are there before the first step."""

PLAIN = [Config(name, {"lr": TELLING["lr"]}) for name in NAMES]
"""For each optimizer, its defaults at an lr that moves something."""


def within(config: Config) -> tuple[float | None, float | None]:
    """Relative and absolute, where `same_tensor`'s own are too narrow for torch.optim's numbers in float32."""
    return (FLOAT32, FLOAT32 / 10) if config.name in KEEPING else (None, None)


def has_step(name: str) -> bool:
    return CLASSES[name].keeps_step


def random(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaves(shapes: Sequence[Sequence[int]] = SMALL, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Parameters, the same ones at every call."""
    return [random(shape, 100 * seed + i, dtype).requires_grad_() for i, shape in enumerate(shapes)]


class Pair:
    """steprule's optimizer and torch.optim's, each with parameters of its own that begin equal.

    Args:
        config: which optimizer, with which options.
        make: makes the parameters; called once for each side.
        groups: makes the optimizers' first argument of the parameters; those themselves by default.
        options: more options than the configuration has.
    """

    def __init__(
        self,
        config: Config,
        make: Callable[[], list[Tensor]] = leaves,
        groups: Callable[[list[Tensor]], Any] = list,
        **options: Any,
    ) -> None:
        self.config = config
        self.my_params, self.its_params = make(), make()
        self.mine = mine(config.name)(groups(self.my_params), **{**config.options, **options})
        self.its = torchs(config.name)(groups(self.its_params), **{**config.options, **options})
        self.steps = 0

    @property
    def sides(self) -> tuple[tuple[torch.optim.Optimizer, list[Tensor]], ...]:
        return (self.mine, self.my_params), (self.its, self.its_params)

    def set_grads(self, active: Sequence[int] | None = None) -> None:
        """New random gradients for the parameters with these indices, None for the others."""
        self.steps += 1
        for i, (p, q) in enumerate(zip(self.my_params, self.its_params, strict=True)):
            if active is not None and i not in active:
                p.grad = q.grad = None
                continue
            grad = random(p.shape, 1000 * self.steps + i, torch.float64)
            if p.is_complex():
                grad = torch.complex(grad, random(p.shape, 1000 * self.steps + 500 + i))
            for param in (p, q):
                param.grad = torch.empty_like(param, requires_grad=False).copy_(grad)

    def step(self, count: int = 1, active: Sequence[int] | None = None) -> None:
        """Takes steps with new gradients, and compares after each."""
        for _ in range(count):
            self.set_grads(active)
            self.mine.step()
            self.its.step()
            self.check()

    def check(self, rtol: float | None = None, atol: float | None = None, strides: bool = True) -> None:
        if rtol is None and all(p.dtype.itemsize > 4 for p in self.my_params):
            rtol, atol = within(self.config)
        for i, (p, q) in enumerate(zip(self.my_params, self.its_params, strict=True)):
            same_tensor(p.detach(), q.detach(), f"parameter {i} after step {self.steps}", rtol, atol)
        same_states(self.mine, self.its, rtol, atol, strides)
        same_groups(self.mine, self.its)


def all_params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def same_tensor(
    a: Tensor, b: Tensor, what: str, rtol: float | None = None, atol: float | None = None, strides: bool = True
) -> None:
    """Values within the tolerance; dtype, shape, strides and device exactly."""
    if rtol is None or atol is None:
        real = a.dtype.to_real() if a.is_complex() else a.dtype
        rtol, atol = TOLERANCE.get(real, (0.0, 0.0))
    torch.testing.assert_close(
        a, b, rtol=rtol, atol=atol, equal_nan=True, check_stride=strides, msg=lambda text: f"{what}: {text}"
    )


def same_states(
    ours: torch.optim.Optimizer,
    its: torch.optim.Optimizer,
    rtol: float | None = None,
    atol: float | None = None,
    strides: bool = True,
) -> None:
    """The same parameters have state, with the same keys in the same order and the same tensors."""
    assert len(ours.state) == len(its.state)
    for i, (p, q) in enumerate(zip(all_params(ours), all_params(its), strict=True)):
        assert (p in ours.state) == (q in its.state), f"state of parameter {i}"
        if p not in ours.state:
            continue
        a, b = ours.state[p], its.state[q]
        assert list(a) == list(b)
        for key in a:
            if isinstance(b[key], Tensor):
                assert isinstance(a[key], Tensor), key
                mine, theirs, bounds = a[key].detach(), b[key].detach(), (rtol, atol)
                if key in ours.rule.scalar_states and theirs.dtype == q.dtype != mine.dtype:
                    # torch.optim has cast it to the parameter's dtype in load_state_dict, as it must not cast step
                    bounds = (2 * torch.finfo(theirs.dtype).eps, 0.0) if theirs.dtype.itemsize < 4 else (FLOAT32, 0.0)
                    theirs = theirs.to(mine.dtype)
                same_tensor(mine, theirs, f"{key} of parameter {i}", *bounds, strides)
            else:
                assert a[key] == b[key], key


def same_groups(ours: torch.optim.Optimizer, its: torch.optim.Optimizer) -> None:
    """The same keys with equal values, parameters aside."""
    assert len(ours.param_groups) == len(its.param_groups)
    for a, b in zip(ours.param_groups, its.param_groups, strict=True):
        assert set(a) - NEWER == set(b) - NEWER
        assert len(a["params"]) == len(b["params"])
        for key in (set(a) & set(b)) - {"params"}:
            same_value(a[key], b[key], key)


def known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A group or defaults, as far as this torch.optim knows of it."""
    return {key: value for key, value in settings.items() if key not in NEWER}


def same_value(a: Any, b: Any, what: str = "") -> None:
    if isinstance(b, (tuple, list)):
        assert type(a) is type(b) and len(a) == len(b), (what, a, b)
        for x, y in zip(a, b, strict=True):
            same_value(x, y, what)
    elif isinstance(b, Tensor):
        assert isinstance(a, Tensor) and a.dtype == b.dtype and torch.equal(a, b), (what, a, b)
    else:
        assert not isinstance(a, Tensor) and a == b, (what, a, b)


def snapshot(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Copies of all parameters and states, to see whether anything changed."""
    copies: list[Any] = []
    for p in all_params(optimizer):
        copies.append(p.detach().clone())
        state = optimizer.state.get(p, {})
        copies.append({k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in state.items()})
    return copies


def assert_unchanged(before: list[Any], optimizer: torch.optim.Optimizer) -> None:
    """Nothing differs by a bit, and no state has appeared."""
    after = snapshot(optimizer)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        if isinstance(old, Tensor):
            assert torch.equal(old, new)
        else:
            assert list(old) == list(new)
            for key, value in old.items():
                assert torch.equal(value, new[key]) if isinstance(value, Tensor) else value == new[key], key


def plausible(shape: Sequence[int], seed: int) -> Tensor:
    """Numbers that may be a mean of squares, or a mean of numbers whose squares are less."""
    return 0.5 + 0.05 * random(shape, seed).sigmoid()


def outcome(call: Callable[[], Any]) -> tuple[str, str]:
    """What a call raises, as the type's name and the text; empty if nothing."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def fill(optimizer: torch.optim.Optimizer, seed: int) -> None:
    """New gradients for all of an optimizer's parameters."""
    for i, p in enumerate(all_params(optimizer)):
        p.grad = torch.empty_like(p, requires_grad=False).copy_(random(p.shape, 7000 + 100 * seed + i))


def run(optimizer: torch.optim.Optimizer, seeds: Sequence[int]) -> None:
    for seed in seeds:
        fill(optimizer, seed)
        optimizer.step()
