"""What one of several processes does for tests/test_sharded_matrices.py: `python sharded_matrices.py MEETING RANK WORLD`.

Each process makes the same whole tensors and steps them by itself; then it steps its parts of the same tensors together with
the others. Functions of matrices are computed on whole matrices by the same code in both. Stacks of other heights may be rounded
otherwise, so that matrices are multiplied one by one here, but for `equal` without `one_by_one`: then nearly all is equal to the last
bit, and `close` has a bound for the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from itertools import product
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from passes import interpreted as interpreted_passes
from sharding import faults
from sharding.helpers import HAS_FSDP, SQUARED, cut, maker, same, tensors, whole
from test_random_rules import KNOWN, made, text_of, written
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

import steprule
from steprule import Rule, State
from steprule.beside import beside
from steprule.engine import gpu
from steprule.engine import squares as engine_squares
from steprule.engine.matrices import Rooms
from steprule.engine.squares import MOST_STACKED, SquareRooms
from steprule.formats.parts import local
from steprule.matrix import how
from steprule.pieces import (
    Value,
    abs,
    col_largest,
    ema,
    maximum,
    norm,
    polar,
    row_largest,
    row_mean,
    row_total,
    sqrt,
    top_share,
    total,
    transpose,
)
from steprule.rules import RULES
from steprule.state import RuleError
from steprule.tensors import totals

LARGE = ((104, 128), (136, 104), (104, 128))
SMALL = ((6, 5), (1, 9), (3, 2, 4), (13, 33), (5, 7), (0, 5), (6, 5), (9, 1))
Make = Callable[[Any], Any]


class Two(Rule):
    """Two products at once, of which each sees all of its matrix."""

    decay = "own"

    @staticmethod
    def update(param: Value, grad: Value, exp_avg: Value, *, lr: float = 0.1) -> tuple[Value, ...]:
        exp_avg = ema(exp_avg, grad, 0.5)
        return param - lr * (polar(exp_avg) + polar(param, steps=3)), exp_avg


class Twice(Rule):
    """A product of a product."""

    decay = "own"

    @staticmethod
    def update(param: Value, grad: Value, exp_avg: Value, *, lr: float = 0.1) -> tuple[Value, ...]:
        exp_avg = ema(exp_avg, grad, 0.5)
        return param - lr * polar(polar(exp_avg, "deepseek") + 0.1 * grad, (2.0, -1.5, 0.5), 3), exp_avg


class Stacks(Rule):
    """A matrix for each index of the first dimension."""

    decay, stacks = "own", True

    @staticmethod
    def update(param: Value, grad: Value, *, lr: float = 0.1) -> Value:
        return param - lr * polar(grad)


class Rows(Rule):
    """Numbers of rows alone."""

    decay = "own"
    row_sq = State("rows")

    @staticmethod
    def update(param: Value, grad: Value, row_sq: Value, *, lr: float = 0.1) -> tuple[Value, ...]:
        row_sq = ema(row_sq, row_mean(grad * grad), 0.9)
        return param - lr * grad / (sqrt(row_sq) + 1e-3), row_sq


class Even(Rule):
    """Rows evened before the product and after it, and the norm of all."""

    decay = "own"
    row_sq = State("rows")

    @staticmethod
    def update(param: Value, grad: Value, exp_avg: Value, row_sq: Value, *, lr: float = 0.1) -> tuple[Value, ...]:
        exp_avg = ema(exp_avg, grad, 0.9)
        direction = polar(exp_avg / (sqrt(row_total(exp_avg * exp_avg)) + 1e-8))
        row_sq = ema(row_sq, row_mean(direction * direction), 0.9)
        even = direction / (sqrt(row_sq) + 1e-10)
        return param - lr * norm(direction) / norm(even) * even, exp_avg, row_sq


class Columns(Rule):
    """Numbers of columns, of which each process knows a part."""

    decay = "own"

    @staticmethod
    def update(param: Value, grad: Value, *, lr: float = 0.1) -> Value:
        return param - lr * grad / col_largest(abs(grad))


class Join(Rule):
    """A number that is made of those of all rows."""

    decay = "own"

    @staticmethod
    def update(param: Value, grad: Value, *, lr: float = 0.1) -> Value:
        return param - lr * grad / total(row_largest(abs(grad)))


class Joint(Rule):
    """Numbers of rows and columns, and one that is made of all rows' after these: where both are cut, sums wait for sums."""

    decay = "own"
    row_sq, col_top = State("rows"), State("cols")

    @staticmethod
    def update(
        param: Value, grad: Value, row_sq: Value, col_top: Value, *, lr: float = 0.1
    ) -> tuple[Value, ...]:  # fmt: skip
        row_sq = ema(row_sq, row_mean(grad * grad), 0.9)
        col_top = maximum(col_top, col_largest(abs(grad)))
        even = grad / (sqrt(row_sq / total(row_sq)) * (col_top + total(col_top * col_top)))
        return param - lr * even / norm(even), row_sq, col_top


class Ranks(Rule):
    """Rows that are compared with each other."""

    decay = "own"

    @staticmethod
    def update(param: Value, grad: Value, *, lr: float = 0.1) -> Value:
        return param - lr * top_share(row_total(abs(grad)), 0.5) * grad


class Sides(Rule):
    """A matrix of another shape."""

    decay = "own"
    left = State("left")

    @staticmethod
    def update(param: Value, grad: Value, left: Value, *, lr: float = 0.1) -> tuple[Value, ...]:
        left = left + grad @ transpose(grad)
        return param - lr * left @ grad, left


class Early(Sides):
    """States of rows and squares that are there before the first step."""

    begins_early = True
    left, row_sq = State("left", 1.0), State("rows")

    @staticmethod
    def update(
        param: Value, grad: Value, left: Value, row_sq: Value, *, lr: float = 0.1
    ) -> tuple[Value, ...]:  # fmt: skip
        row_sq = ema(row_sq, row_mean(grad * grad), 0.9)
        param, left = Sides.update(param, grad / (sqrt(row_sq) + 1e-3), left, lr=lr)
        return param, left, row_sq


def muon(**settings: Any) -> Make:
    """What makes a Muon."""
    return lambda params: steprule.Muon(params, **{"lr": 0.1, **settings})


SETTINGS: dict[str, Make] = {
    "muon": muon(),
    "plain momentum, another scale": muon(nesterov=False, adjust_lr_fn="match_rms_adamw", ns_steps=3),
    "two products": lambda params: steprule.Optimizer.of(Two)(params),
    "a product of a product": lambda params: steprule.Optimizer.of(Twice)(params),
    "all services": muon(clip=0.5, nonfinite="skip", average=0.9, telemetry=1),
}
FORMATS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "8bit": (torch.float32, {"states": "8bit"}),
    "24bit": (torch.bfloat16, {"states": "bfloat16", "weights": "24bit", "nonfinite": "skip"}),
}


MOVED: dict[str, tuple[int, Callable[[int, int], int]]] = {
    "Muon": (2, lambda m, n: 2 * m * n),
    "PSGDKron": (2, lambda m, n: 3 * m * n + 2 * (m * m + n * n)),
    "SOAP": (5, lambda m, n: 8 * m * n + 4 * (m * m + n * n)),
}
"""How many calls bring matrices together in a step, and how many numbers of a matrix of m rows and n columns go there and back."""


class Run:
    """An optimizer over whole tensors, or over parts of the same.

    Args:
        make: of parameters the optimizer.
        shapes: of those.
        dtype: theirs.
        mesh, placements: how they are cut; None for whole ones.
    """

    def __init__(
        self,
        make: Make,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        mesh: DeviceMesh | None = None,
        placements: Sequence[Placement] = (),
    ) -> None:
        self.shapes, self.dtype, self.mesh, self.placements, self.steps = shapes, dtype, mesh, placements, 0
        self.params = [torch.nn.Parameter(self.cut(x)) for x in tensors(shapes, 0, dtype)]
        self.optimizer = make(self.params)

    def cut(self, x: torch.Tensor) -> Any:
        """The part of a tensor that is here."""
        return x if self.mesh is None else cut(x, self.mesh, self.placements)

    def step(self, without: Sequence[int] = (), wrong: bool = False) -> None:
        """A step without some gradients; one element of another may be NaN, so on one rank."""
        self.steps += 1
        for number, grad in enumerate(tensors(self.shapes, self.steps, self.dtype)):
            if wrong and number == 0:
                grad.view(-1)[-1] = float("nan")
            self.params[number].grad = None if number in without else self.cut(grad)
        self.optimizer.step()

    def parts(self) -> list[torch.Tensor]:
        """What is here of parameters and states."""
        states = self.optimizer.state
        return [local(x).detach() for param in self.params for x in (param, *states.get(param, {}).values())]


def both(make: Make, shapes: Any, dtype: torch.dtype, mesh: DeviceMesh, *placements: Placement) -> tuple[Run, Run]:
    """With whole tensors and with parts."""
    return Run(make, shapes, dtype), Run(make, shapes, dtype, mesh, placements)


def close(
    one: torch.Tensor,
    other: torch.Tensor,
    what: str,
    is_scaled: bool = False,
    has_norm: bool = False,
    bound: float | None = None,
) -> None:
    """Equal to the last bit where one matrix is multiplied after another, and begins at a multiple of 64 bytes in any stack; for
    others, where its norm has a part in it, which is added up in another order, or where gradients are multiplied by a number
    that comes of sums over parts, up to rounding.

    A step of Newton-Schulz is off by some n roundings for products of n terms, and multiplies what it is given by 4 at
    most: that is the largest slope of its polynomial for singular values between 0 and 1.3. No product of a rule here has more than
    10 steps behind it.

    Args:
        bound: how far they may be off, as a share of the largest element, where it is not that.
    """
    one, other = one.detach(), other.detach()
    if bound is not None:
        atol = bound * float(one.abs().nan_to_num().max()) if one.numel() else 0.0
        torch.testing.assert_close(other, one, rtol=0.0, atol=atol, equal_nan=True, msg=lambda text: f"{what}: {text}")
        return
    sides = (one.shape[0], one[0].numel()) if one.dim() > 1 and len(one) else (1, one.numel())
    is_alike = one.numel() % 32 == 0 and not how.plan_for(sides, 2, one.device, dtype=torch.float64).batched
    if ((is_alike and not has_norm) or one.dim() < 1 or one.dtype != torch.float64) and not is_scaled:
        torch.testing.assert_close(other, one, rtol=0.0, atol=0.0, equal_nan=True, msg=lambda text: f"{what}: {text}")
        return
    bound = 10 * 4.0**10 * max(sides) * torch.finfo(one.dtype).eps / 2
    torch.testing.assert_close(other, one, rtol=0.0, atol=bound, msg=lambda text: f"{what}: {text}")


def compare(one: Run, other: Run, what: str, is_scaled: bool = False, bound: float | None = None) -> None:
    """All that steps have left behind; `bound` as for `close`."""
    assert other.optimizer._core.plans.current is not None, f"{what}: no plan is kept"
    services = one.optimizer._core.services
    is_scaled |= services is not None and services.clip is not None
    for number, (mine, part) in enumerate(zip(one.params, other.params, strict=True)):
        where = f"{what}, {other.placements}, tensor {number} of {tuple(mine.shape)}"
        one_of_all = whole(part).contiguous()
        close(mine, one_of_all, where, is_scaled, has_norm=True, bound=bound)
        states, parts = one.optimizer.state[mine], other.optimizer.state[part]
        assert list(states) == list(parts), (where, list(states), list(parts))
        for name, value in states.items():
            if isinstance(value, torch.Tensor) and value.dtype.is_floating_point:
                close(value, whole(parts[name]), f"{where}, {name}", is_scaled, name != "momentum_buffer", bound)
            else:
                assert torch.equal(whole(parts[name]), value.int()), f"{where}, {name}"
        every = [torch.empty_like(one_of_all) for _ in range(dist.get_world_size())]
        dist.all_gather(every, one_of_all)
        assert all(torch.equal(x, every[0]) for x in every), f"{where}: replicas differ"
    if services is not None:
        for name in ("skipped_steps", "clipped_steps"):
            assert getattr(one.optimizer, name) == getattr(other.optimizer, name), (what, name)
        torch.testing.assert_close(one.optimizer.grad_norm, other.optimizer.grad_norm)


@contextmanager
def one_by_one() -> Iterator[None]:
    """No matrices are multiplied at once."""
    before = how.plan_for
    how.plan_for = lambda *args, **settings: replace(before(*args, **settings), batched=False)  # type: ignore[assignment]
    try:
        yield
    finally:
        how.plan_for = before


def equal(ways: Sequence[tuple[DeviceMesh, Sequence[Placement]]], names: Iterable[str] = SETTINGS) -> None:
    """However matrices are cut, steps are those of the wholes."""
    for name, (mesh, placements) in product(names, ways):
        make = SETTINGS[name]
        pair = both(make, (*LARGE, *SMALL), torch.float64, mesh, *placements)
        for number, run in product(range(3), pair):
            run.step(wrong=number == 1 and name == "all services")
        compare(*pair, name)


def sides(mesh: DeviceMesh, *placements: Placement) -> None:
    """Rules that look at rows and columns, of which processes have some or parts; their numbers are DTensors."""
    has_one_cut = sum(isinstance(one, Shard) for one in placements) == 1
    for rule in (Rows, Even, Columns, Join, Joint) if has_one_cut else (Rows, Columns, Join, Joint):
        pair = both(lambda params, rule=rule: steprule.Optimizer.of(rule)(params), (*LARGE, (6, 5), (1, 9), (3, 4)), torch.float64, mesh, *placements)  # fmt: skip
        for number, run in product(range(3), pair):
            run.step(() if number == 1 else [1])
        compare(*pair, rule.__name__, is_scaled=True)
        for param in pair[1].params:
            state = pair[1].optimizer.state[param]
            assert all(x.shape == (len(param), 1) for name, x in state.items() if name == "row_sq")
            assert all(x.shape == (1, param.shape[1]) for name, x in state.items() if name == "col_top")
        goes_on(pair[1], lambda params, rule=rule: steprule.Optimizer.of(rule)(params), rule.__name__)


def goes_on(run: Run, make: Make, what: str) -> None:
    """The state dict has all that steps depend on: one more is the same to the last bit where it has been loaded."""
    again = Run(make, run.shapes, run.dtype, run.mesh, run.placements)
    again.steps = run.steps
    for mine, part in zip(again.params, run.params, strict=True):
        mine.data.copy_(part.data)
    again.optimizer.load_state_dict(run.optimizer.state_dict())
    for one in (run, again):
        one.step()
    assert all(map(torch.equal, run.parts(), again.parts())), f"{what}: loaded"


def squared(name: str, **settings: Any) -> Make:
    """What makes an optimizer of a rule with squares; a side of more than 32 has none, where that can be said."""
    most = {"max_precond_dim": 32} if "max_precond_dim" in RULES[name.lower()].hyperparameters else {}
    return maker(name, {**most, **settings})


def squares(mesh: DeviceMesh, *placements: Placement, names: Sequence[str] = SQUARED) -> None:
    """Rules with squares beside matrices: some rows of each are here, and matrices have their bases made in the turn of the whole.

    One by one, matrices have the same bits unless a sum over parts has a part in them; all begin at multiples of 64 bytes. Such a sum is
    off by a rounding for each of some 500 elements at most, and turns a basis by that over the distance of two eigenvalues, which is a
    share of 1e-4 of the largest one or more here. Matrices that go through products at once are off by about as much.
    """
    for name, most in [(name, 0) for name in names] + [("SOAP", MOST_STACKED)]:
        shapes = ((16, 33), (5, 8), (1, 8), (8, 1), (5, 8), (40, 8), (5, 8))
        with patch.object(engine_squares, "MOST_STACKED", most):
            pair = both(squared(name), shapes, torch.float64, mesh, *placements)
            for number, run in product(range(4), pair):
                run.step([1, 3] if number == 2 else [])
            is_alike = not most and name in ("SOAP", "SPlus", "PSGDKron")
            compare(*pair, f"{name}, {most}", bound=0.0 if is_alike else 1e-9)
            for param in pair[1].params:
                for key in ("left", "right"):
                    square = pair[1].optimizer.state[param][key]
                    assert square.shape[0] == square.shape[1] and square.placements == tuple(
                        Shard(0) if isinstance(one, Shard) else one for one in placements
                    ), (name, key, square.placements)
            goes_on(pair[1], squared(name), name)


def around_squares(mesh: DeviceMesh) -> None:
    """Services, and formats for what has the matrix's shape, around rules with squares; a convolution, and a model."""
    services = {"clip": 0.5, "nonfinite": "skip", "average": 0.9, "telemetry": 1}
    for name, settings, dtype in (
        ("SOAP", services, torch.float64),
        ("KLShampoo", services, torch.float64),
        ("SOAP", {"states": "8bit", "nonfinite": "skip", "average": 0.9}, torch.float32),
        ("Shampoo", {"states": "8bit", "weights": "24bit"}, torch.bfloat16),
    ):
        pair = both(squared(name, **settings), ((16, 36), (5, 16), (4, 4, 2)), dtype, mesh, Shard(0))
        for number, run in product(range(4), pair):
            run.step(wrong=number == 1 and "nonfinite" in settings)
        compare(*pair, f"{name}, {settings}", bound=1e-9 if dtype == torch.float64 else 0.0)
    pair = both(lambda params: steprule.Optimizer.of(Early)(params), ((16, 36), (5, 8)), torch.float64, mesh, Shard(0))
    for _, run in product(range(2), pair):
        run.step()
    compare(*pair, "states that begin early", bound=0.0)
    for name in ("Muon", "SOAP"):
        pair = both(maker(name, {}), ((4, 3, 2), (2, 4, 1)), torch.float64, mesh, Shard(2))
        for _, run in product(range(2), pair):
            run.step()
        compare(*pair, f"{name}, the last of three dimensions", bound=0.0 if name == "SOAP" else None)


def random_rules(seeds: Iterable[int], mesh: DeviceMesh, *placements: Placement) -> None:
    """Rules of any states and formulas, or refused; `KNOWN` has those that exchange states. Products of products may grow roundings."""
    alone = written({"a": "left", "b": "left", "c": "left"}, "grad", "matmul(b, c)", "b", "0.5 * matmul(c, b) + a")
    texts, taken = [alone, *KNOWN.values(), *(text_of(Random(seed)) for seed in seeds)], 0
    with interpreted_passes():
        for text in texts:
            try:
                rule = made(text)
                pair = both(lambda params, rule=rule: steprule.Optimizer.of(rule)(params), ((3, 2), (2, 3), (3, 2), (5, 4), (1, 3), (4, 1)), torch.float64, mesh, *placements)  # fmt: skip
            except RuleError:
                continue
            except ValueError as error:
                assert "DTensor" in str(error), error
                continue
            for number, run in product(range(4), pair):
                run.step([0, 3] if number == 2 else [])
            compare(*pair, text, bound=1e-7)
            taken += 1
    assert taken > len(texts) // 2


def nothing(mesh: DeviceMesh) -> None:
    """Parameters without an element are stepped: nothing of them changes, and others are as without them."""
    for name, placement in product(("Muon", "NorMuon", "Adafactor", "SOAP", "KLSOAP"), (Shard(0), Shard(1))):
        pair = both(maker(name, {}), ((0, 5), (6, 5), (5, 0)), torch.float64, mesh, placement)
        for _, run in product(range(2), pair):
            run.step()
        one, other = (run.params[1].detach() for run in pair)
        close(one, whole(other), f"{name}, beside nothing", bound=1e-9)
        for number, part in enumerate(pair[1].params):
            state = pair[1].optimizer.state[part]
            assert all(whole(x).isfinite().all() for x in state.values()), (name, number)
    for name in ("Muon", "Adafactor", "SOAP"):  # where nothing is here, it does not matter how it is laid out
        pair = both(maker(name, {}), ((9, 1), (6, 5)), torch.float64, mesh, Shard(1))
        _lay_out(pair[1].params[0], 2, 1)
        pair[1].cut = lambda x, cut=pair[1].cut: _lay_out(cut(x), 1, 9)  # type: ignore[method-assign]
        for _, run in product(range(2), pair):
            run.step()
        compare(*pair, f"{name}, nothing here", bound=1e-9)


def _lay_out(x: Any, *strides: int) -> Any:
    """Gives the part of a DTensor these strides, where there is no element."""
    if not x._local_tensor.numel():
        x._local_tensor = torch.empty_strided(x._local_tensor.shape, strides, dtype=x.dtype)
    return x


def kinds(mesh: DeviceMesh) -> None:
    """Stacks of matrices, cut through the stack or through each; groups with other numbers; wholes beside parts."""
    for placement in (Shard(0), Shard(1), Shard(2)):
        pair = both(lambda params: steprule.Optimizer.of(Stacks)(params), ((3, 104, 128), (5, 97, 100)), torch.float64, mesh, placement)  # fmt: skip
        for _, run in product(range(2), pair):
            run.step()
        for mine, part in zip(*(run.params for run in pair), strict=True):
            close(mine, whole(part), f"stacks, {placement}", has_norm=True)

    def groups(params: Any) -> Any:
        return steprule.Muon([{"params": params[::2], "ns_steps": 3}, {"params": params[1::2], "lr": 0.2}], lr=0.1)

    pair = both(groups, LARGE, torch.float64, mesh, Shard(0))
    mixed = Run(groups, LARGE, torch.float64, mesh, [Shard(0)])
    mixed.params[2] = torch.nn.Parameter(tensors(LARGE, 0, torch.float64)[2])
    mixed.optimizer = groups(mixed.params)
    for _, run in product(range(2), pair):
        run.step()
    for step in (1, 2):
        for number, grad in enumerate(tensors(LARGE, step, torch.float64)):
            mixed.params[number].grad = grad if number == 2 else mixed.cut(grad)
        mixed.optimizer.step()
    compare(*pair, "groups")
    for mine, part in zip(pair[0].params, mixed.params, strict=True):
        close(mine, whole(part), "wholes beside parts", has_norm=True)


def views(mesh: DeviceMesh) -> None:
    """Parts of a matrix, turned ones and stacks, cut through any of them; AdamW beside them."""

    def groups(params: Any) -> Any:
        words = ("rows 2", "transpose", "columns 2", "stack, transpose")
        seen = [{"params": [param], "view": one} for param, one in zip(params, words, strict=False)]
        joined = beside(steprule.Muon.rule, steprule.AdamW.rule)
        return steprule.Optimizer.of(joined)([*seen, {"params": params[4:], "rule": "adamw"}], lr=0.1, nonfinite="skip")

    for placement in (Shard(0), Shard(1)):
        pair = both(groups, (*LARGE, (4, 96, 128), (13, 8)), torch.float64, mesh, placement)
        for number, run in product(range(3), pair):
            run.step(wrong=number == 1)
        compare(*pair, "views")
        assert pair[1].optimizer.skipped_steps == 1


def formats(mesh: DeviceMesh, *placements: Placement) -> None:
    """In fewer bytes; and matrices of which the last process has parts that look alike, between passes in other dtypes."""
    for name, (dtype, settings) in FORMATS.items():
        pair = both(muon(**settings), LARGE, dtype, mesh, *placements)
        for _, run in product(range(3), pair):
            run.step()
        compare(*pair, name)
    before, how.fast_bfloat16 = how.fast_bfloat16, lambda: True  # type: ignore[assignment]
    try:
        pair = both(muon(), ((32, 40), (33, 40)), torch.float32, mesh, *placements)
        for _, run in product(range(2), pair):
            run.step()
        compare(*pair, "two dtypes")
    finally:
        how.fast_bfloat16 = before


def two_meshes(flat: DeviceMesh, square: DeviceMesh) -> None:
    """Parameters of which other processes have parts, as a model's experts: one exchange for each."""
    one, other = both(muon(), LARGE, torch.float64, flat, Shard(0))
    other.params[1] = torch.nn.Parameter(distribute_tensor(one.params[1].detach(), square, [Replicate(), Shard(0)]))
    other.optimizer = muon()(other.params)
    for step in (1, 2):
        one.step()
        for number, grad in enumerate(tensors(LARGE, step, torch.float64)):
            other.params[number].grad = distribute_tensor(grad, *((square, [Replicate(), Shard(0)]) if number == 1 else (flat, [Shard(0)])))  # fmt: skip
        other.optimizer.step()
    compare(one, other, "two meshes")


def faults_of_meshes(flat: DeviceMesh, square: DeviceMesh) -> None:
    """A fault in one row of replicas is told to that row there, and to the other row in the next mesh's exchange."""

    def made() -> Callable[[], Any]:
        first, second = tensors(SMALL[:2], 0, torch.float64)
        params = [cut(first, square, [Replicate(), Shard(0)]), cut(second, flat, [Shard(0)])]
        params = [torch.nn.Parameter(x) for x in params]
        optimizer = steprule.Muon(params)
        for step in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            if not step:
                optimizer.step()
        assert len(optimizer._core.plans.current._works) == 2
        return optimizer.step  # type: ignore[no-any-return]

    faults.products(made)


def interpreted(mesh: DeviceMesh) -> None:
    """The GPU engine's plans, in Triton's interpreter; that beside torch 2.6 writes past the end of arrays."""
    from interpreter import hasten

    hasten()
    gpu.DEVICES.add("cpu")
    takes_rows, gpu.TAKES_ROWS = gpu.TAKES_ROWS, True
    try:
        with np.errstate(all="ignore"):
            for settings, steps in (({}, 1), ({"nonfinite": "skip", "states": "8bit"}, 3)):
                pair = both(muon(**settings), ((37, 34), (8, 4), (1, 5)), torch.float32, mesh, Shard(0))
                for number, run in product(range(steps), pair):
                    run.step(wrong=number == 1)
                compare(*pair, f"GPU engine, {settings}")
            for settings in ({}, {"nonfinite": "skip", "clip": 1.0}):
                pair = both(squared("SOAP", **settings), ((37, 34), (8, 4), (1, 5)), torch.float32, mesh, Shard(0))
                for number, run in product(range(4), pair):
                    run.step(wrong=number == 2 and bool(settings))
                compare(*pair, f"GPU engine, SOAP, {settings}")
            one, other = both(
                lambda params: steprule.Adafactor(params), ((37, 34), (7,)), torch.float32, mesh, Shard(0)
            )
            for _, run in product(range(2), (one, other)):
                run.step()
            for mine, part in zip(one.params, other.params, strict=True):
                same(mine.detach(), whole(part), "GPU engine, Adafactor")
    finally:
        gpu.DEVICES.discard("cpu")
        gpu.TAKES_ROWS = takes_rows


def some_gradients(mesh: DeviceMesh) -> None:
    """Steps of some of the matrices, of others, and of none; plans that one process makes anew."""
    pair = both(muon(), (*LARGE, (8, 8)), torch.float64, mesh, Shard(0))
    for without in ((), (1,), (0, 2), (0, 1, 2, 3), (3,), ()):
        if without == (3,) and dist.get_rank() == 0:
            pair[1].optimizer._core.forget_plans(pair[1].optimizer.param_groups)
        for run in pair:
            run.step(without)
    compare(*pair, "some gradients")
    pair[1].optimizer.zero_grad()  # or they would seem to have taken the place of those that have had none
    late = both(muon(), LARGE, torch.float64, mesh, Shard(0))
    for without in ((0, 1, 2), (0, 1), ()):
        for run in late:
            run.step(without)
    compare(*late, "gradients that come late")


@contextmanager
def raises(*words: str) -> Iterator[None]:
    """Something raises, and says this."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"nothing was raised: {words}")


def disagreements(mesh: DeviceMesh) -> None:
    """Where processes cannot step together all say so, nothing has changed, and the next step is taken."""
    rank = dist.get_rank()
    for services in ({}, {"clip": 1e9}):
        pair = both(muon(**services), (*LARGE, (8, 8)), torch.float64, mesh, Shard(0))
        one, other = pair

        def refused(*words: str, other: Run = other, **settings: Any) -> None:
            before = [x.clone() for x in other.parts()]
            with raises(*words):
                other.step(**settings)
            other.steps -= 1
            assert all(map(torch.equal, before, other.parts()))

        missing = ("parameter 1 of group 0", "some have none")
        refused(*missing, without=[1] if rank == 0 else [])
        for run in pair:
            run.step()
        refused(*missing, without=[1] if rank == 1 else [])
        refused("parameter 0 of group 0", without=[0, 1, 2, 3] if rank == 0 else [])
        for run in pair:
            run.step()
        state = other.optimizer.state[other.params[2]]
        kept = state["momentum_buffer"]
        if rank == 1:
            state["momentum_buffer"] = kept.to_local()[:1]
        refused("has the shape" if rank == 1 else "another process cannot take this step")
        state["momentum_buffer"] = kept
        for run in pair:
            run.step()
        compare(one, other, f"after disagreements, {services}")


def other_dtypes(mesh: DeviceMesh) -> None:
    """Processors that multiply in other dtypes are told from each other."""
    run = Run(muon(), LARGE, torch.float32, mesh, [Shard(0)])
    before, how.fast_bfloat16 = how.fast_bfloat16, lambda: dist.get_rank() == 1  # type: ignore[assignment]
    try:
        with raises("compute the same matrices in other dtypes"):
            run.step()
    finally:
        how.fast_bfloat16 = before
    run.step()


def failing_products(mesh: DeviceMesh) -> None:
    """What one process cannot compute while others wait for it is told to them: no parameter has changed, and the next step is taken."""
    run = Run(muon(nonfinite="skip"), (*LARGE, (8, 8)), torch.float64, mesh, [Shard(0)])
    run.step()
    weights = [local(param).detach().clone() for param in run.params]
    compute = Rooms.run

    def lacking(*args: Any) -> None:
        if dist.get_rank() == dist.get_world_size() - 1:
            raise MemoryError("no memory is left")
        compute(*args)

    try:
        with patch.object(Rooms, "run", lacking):
            run.step()
    except MemoryError as error:
        assert dist.get_rank() == dist.get_world_size() - 1 and "left" in str(error)
    except RuntimeError as error:
        assert dist.get_rank() < dist.get_world_size() - 1 and "in the middle of this step" in str(error)
    else:
        raise AssertionError("nothing was raised")
    assert all(map(torch.equal, weights, (local(param) for param in run.params)))
    run.step()
    assert not any(map(torch.equal, weights, (local(param) for param in run.params)))


def faults_of_one(mesh: DeviceMesh) -> None:
    """Faults before products and around the exchange of their parts."""

    def run() -> Callable[[], Any]:
        made = Run(muon(clip=1.0), SMALL[:2], torch.float64, mesh, [Shard(0)])
        made.step()
        return made.step

    faults.products(run)

    def sides() -> Callable[[], Any]:
        made = Run(lambda params: steprule.Adafactor(params, clip=1.0), SMALL[:2], torch.float64, mesh, [Shard(0)])
        made.step()
        return made.step

    faults.sides(sides)


def faults_beside_squares(mesh: DeviceMesh) -> None:
    """Faults around squares, also after an exchange that has brought them together: nothing has changed, and steps go on as without."""

    def run() -> Callable[[], Any]:
        made = Run(squared("SOAP", clip=1.0), SMALL[:2], torch.float64, mesh, [Shard(0)])
        made.step()
        return made.step

    faults.products(run)
    pair = both(squared("SOAP"), ((5, 8), (16, 8), (5, 8)), torch.float64, mesh, Shard(0))
    for number in range(4):
        pair[0].step([0] if number == 2 else [])
        if number == 2:
            faults.fails((SquareRooms, "_grouped", faults.always), lambda: pair[1].step, faults.UNCHANGED)
            pair[1].steps -= 1
        pair[1].step([0] if number == 2 else [])
    compare(*pair, "SOAP, after a fault", bound=1e-9)


def beside_vectors(mesh: DeviceMesh, other: DeviceMesh, placements: Sequence[Placement]) -> None:
    """Vectors, also over another mesh, that some processes have no gradient for: momentum of matrices has not moved."""
    joined = beside(Even, steprule.LAMB.rule)
    matrix, vector = tensors([(8, 6), (16,)], 0, torch.float64)
    params = [distribute_tensor(matrix, mesh, [Shard(0)]), distribute_tensor(vector, other, placements)]
    matrix, vector = params = [torch.nn.Parameter(x) for x in params]
    optimizer = steprule.Optimizer.of(joined)([{"params": [matrix]}, {"params": [vector], "rule": "lamb"}], lr=0.1)
    for without in (1, None, 1, 0, None):
        for number, param in enumerate(params):
            lacks = number == without and dist.get_rank() == 1
            param.grad = None if lacks else torch.ones_like(param)
        parts = [x for param in params for x in (param, *optimizer.state.get(param, {}).values())]
        before = [local(x).clone() for x in parts]
        if without is None:
            optimizer.step()
            continue
        with raises(f"parameter 0 of group {without}", "some have none"):
            optimizer.step()
        assert all(map(torch.equal, before, map(local, parts))), without


def other_parts(mesh: DeviceMesh) -> None:
    """Parts that are not what their placement says, or do not lie in one stretch, are refused before anything changes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    part = torch.ones(2 + 2 * (rank == 0), 5)
    uneven = DTensor.from_local(
        part, mesh, [Shard(0)], run_check=False, shape=torch.Size([2 * world + 2, 5]), stride=(5, 1)
    )
    gaps = distribute_tensor(torch.ones(8, 6), mesh, [Shard(0)])
    if rank == 1:
        gaps._local_tensor = torch.ones(6, 8 // world).t()
    for wrong, word in ((uneven, "a process has a part of shape"), (gaps, "contiguous")):
        param = torch.nn.Parameter(wrong)
        param.grad = torch.ones_like(param)
        if wrong is gaps and rank == 1:
            param.grad = torch.ones_like(param)
            param.grad._local_tensor = torch.ones(6, 8 // world).t()
        before = param.to_local().clone()
        optimizer = steprule.Muon([param])
        with raises(word if wrong is uneven or rank == 1 else "another process"):
            optimizer.step()
        assert torch.equal(param.to_local(), before)


def refusals(mesh: DeviceMesh) -> None:
    """What cannot be brought together is refused at construction, and where it takes the place of other parameters."""
    from torch.distributed.tensor.placement_types import _StridedShard

    def refused(make: Make, mesh: DeviceMesh, placements: Sequence[Any], *words: str) -> None:
        part = torch.ones([8 // (mesh.size(i) if hasattr(p, "dim") else 1) for i, p in enumerate((*placements, Replicate())[:2])])  # fmt: skip
        cut = DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size([8, 8]), stride=(8, 1))
        param = torch.nn.Parameter(cut)
        with raises(*words, "parameter 0 of group 0", "DTensor"):
            make([param])
        optimizer = make([torch.nn.Parameter(torch.ones(8, 8))])
        optimizer.param_groups[0]["params"] = [param]
        param.grad = torch.ones_like(param)
        with raises(*words, "parameter 0 of group 0", "DTensor"):
            optimizer.step()

    refused(lambda params: steprule.Optimizer.of(Ranks)(params), mesh, [Shard(0)], "compares rows")
    refused(muon(), mesh, [Partial()], "added up")
    with raises("has squares beside a stack of matrices", "DTensor"):
        stacked = type("Stacked", (Sides,), {"stacks": True})
        steprule.Optimizer.of(stacked)([torch.nn.Parameter(distribute_tensor(torch.ones(4, 8, 8), mesh, [Shard(0)]))])
    refused(muon(), mesh, [_StridedShard(0, split_factor=2)], "one stretch")
    if dist.get_world_size() == 4:
        square = init_device_mesh("cpu", (2, 2))
        for make in (muon(), squared("SOAP")):
            refused(make, square, [Shard(0), Shard(1)], "not along 2")
        refused(muon(), square, [_StridedShard(0, split_factor=2), Shard(0)], "not along 2")


def refusals_of_models(mesh: DeviceMesh) -> None:
    """Gradients of matrices that processes bring together are not released."""
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Linear(8, 8, bias=False)
    fully_shard(model, mesh=mesh)
    with raises("release_gradients()", "DTensor"):
        steprule.Muon(model.parameters()).release_gradients(model)
    cut = torch.nn.Parameter(distribute_tensor(torch.ones(8, 8), mesh, [Shard(0)]))
    for rule, view in ((steprule.NorMuon, "rows 2"), (steprule.Muon, "split 2 6"), (steprule.NorMuon, "transpose")):
        with raises(f"which view='{view}' parts or turns", "parameter 0 of group 0", "DTensor"):
            rule([{"params": [cut], "view": view}])
    uncut = torch.nn.Linear(8, 8, bias=False)
    uncut.weight = torch.nn.Parameter(distribute_tensor(uncut.weight.detach(), mesh, [Replicate()]))
    optimizer = steprule.Muon(uncut.parameters())
    optimizer.release_gradients(uncut)
    optimizer.param_groups[0]["params"] = [model.weight]
    with raises("release_gradients()", "DTensor"):
        optimizer.step()


def together(model: Any) -> Any:
    """Muon for matrices and AdamW for vectors."""
    vectors = [param for param in model.parameters() if param.dim() == 1]
    matrices = [param for param in model.parameters() if param.dim() == 2]
    return steprule.Together([muon(nonfinite="skip")(matrices), steprule.AdamW(vectors, clip=1.0)])


def created(model: Any) -> Any:
    """The same in one optimizer."""
    seen = {"0.weight": "rows 2", "2.weight": "transpose"}
    return steprule.create_optimizer(model, "muon", lr=0.1, nonfinite="skip", roles=seen)


def models(mesh: DeviceMesh, optimizer_of: Callable[[Any], Any]) -> None:
    """A model under FSDP2, with its vectors stepped by AdamW; saved and loaded by torch.distributed.checkpoint."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    def made(is_cut: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(104, 128), torch.nn.Tanh(), torch.nn.Linear(128, 101)).double()
        for layer in (model[0], model[2], model) if is_cut else ():
            fully_shard(layer, mesh=mesh)
        return model, optimizer_of(model)

    def train(model: Any, optimizer: Any, steps: range) -> None:
        for number in steps:
            inputs = torch.randn(8, 104, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    plain, cut = made(False), made(True)
    for model, optimizer in (plain, cut):
        train(model, optimizer, range(3))
    states = get_optimizer_state_dict(*cut)
    model, optimizer = made(True)
    model.load_state_dict(cut[0].state_dict())
    set_optimizer_state_dict(model, optimizer, states)
    for one in (plain, cut, (model, optimizer)):
        train(*one, range(3, 5))
    for mine, part, resumed in zip(*(one.parameters() for one in (plain[0], cut[0], model)), strict=True):
        close(mine, whole(part), f"model, {tuple(mine.shape)}", has_norm=True)
        assert torch.equal(part.to_local(), resumed.to_local()), "resumed"


def calls_of(step: Callable[[], Any]) -> list[tuple[str, int]]:
    """The calls of torch.distributed in a step, and how many bytes this process gives away."""
    calls: list[tuple[str, int]] = []
    named = {name: getattr(dist, name) for name in ("all_to_all_single", "all_reduce")}

    def watched(name: str) -> Callable[..., Any]:
        def call(*args: Any, **settings: Any) -> Any:
            sent = args[0].nbytes if name == "all_reduce" else sum(args[3]) - args[3][dist.get_rank()]
            calls.append((name, sent))
            return named[name](*args, **settings)

        return call

    with ExitStack() as stack:
        for name in named:
            stack.enter_context(patch.object(dist, name, watched(name)))
        step()
    return calls


def counted(mesh: DeviceMesh) -> None:
    """A step sends each part there and back once, by two calls with a number more for each process, and compares by one that is short.

    Squares go with the matrices, each there and back once; SOAP's go there by a call of their own, before the first pass. What one pass
    stores of what another has found goes there and back by two more.
    """
    world = mesh.size()
    for name, (exchanges, numbers) in MOVED.items():
        run = Run(maker(name, {}), (*LARGE, *LARGE), torch.float64, mesh, [Shard(0)])
        run.step()
        calls = calls_of(run.step)
        assert calls[0] == ("all_reduce", 4 * 8), (name, calls)
        sizes = [size for kind, size in calls if kind == "all_to_all_single"]
        assert len(sizes) == exchanges and len(calls) == exchanges + 1 + (name != "Muon"), (name, calls)
        sent = torch.tensor([sum(sizes)])
        dist.all_reduce(sent)
        every = sum(numbers(*shape) for shape in run.shapes)
        assert sent.item() == 8 * (every * (world - 1) // world + exchanges * world * (world - 1)), (name, sent, every)


def plain() -> None:
    """Optimizers without such matrices ask nobody."""
    asked: list[Any] = []
    reduced, totals.reduced = totals.reduced, lambda *args: asked.append(args)  # type: ignore[assignment, return-value, func-returns-value]
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    try:
        Run(muon(), LARGE, torch.float64).step()
        Run(muon(), LARGE, torch.float64, mesh, [Replicate()]).step()
        Run(lambda params: steprule.AdamW(params), LARGE, torch.float64, mesh, [Shard(0)]).step()
    finally:
        totals.reduced = reduced
    assert not asked


def two(flat: DeviceMesh) -> None:
    """What two processes try."""
    equal([(flat, [Shard(0)]), (flat, [Shard(1)])])
    formats(flat, Shard(0))
    sides(flat, Shard(0))
    sides(flat, Shard(1))
    kinds(flat)
    views(flat)
    squares(flat, Shard(0))
    squares(flat, Shard(1), names=("KLSOAP", "ASGO"))
    around_squares(flat)
    random_rules(range(5), flat, Shard(0))
    nothing(flat)
    some_gradients(flat)
    disagreements(flat)
    other_dtypes(flat)
    failing_products(flat)
    faults_of_one(flat)
    faults_beside_squares(flat)
    beside_vectors(flat, flat, [Shard(0)])
    other_parts(flat)
    if HAS_FSDP:
        models(flat, together)
        models(flat, created)
    plain()
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") and HAS_FSDP:
        interpreted(flat)


def four(flat: DeviceMesh) -> None:
    """What four processes try."""
    square = init_device_mesh("cpu", (2, 2))
    equal([(flat, [Shard(0)]), (square, [Replicate(), Shard(0)]), (square, [Shard(1), Replicate()])])
    formats(square, Replicate(), Shard(0))
    sides(square, Replicate(), Shard(0))
    sides(square, Shard(0), Shard(1))
    sides(square, Shard(1), Replicate())
    sides(flat, Shard(0))
    squares(flat, Shard(0))
    random_rules(range(100), square, Replicate(), Shard(1))
    squares(square, Replicate(), Shard(0))
    squares(square, Shard(1), Replicate(), names=("KLSOAP", "ASGO"))
    two_meshes(flat, square)
    faults_of_meshes(flat, square)
    beside_vectors(flat, square, [Replicate(), Shard(0)])


def main() -> None:
    """One process among several."""
    meeting, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    patience = timedelta(minutes=3)  # with processes that wait for what does not come
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=patience)
    flat = init_device_mesh("cpu", (world,))
    equal([(flat, [Shard(0)])], ["muon"])
    with one_by_one():
        (two if world == 2 else four)(flat)
        counted(flat)
    refusals(flat)
    if HAS_FSDP:
        refusals_of_models(flat)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
