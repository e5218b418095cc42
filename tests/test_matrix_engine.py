"""Formulas of whole matrices in the engines, against the same formulas in float64: passes with sums of rows and columns, and products."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import steprule
from steprule import Rule, State
from steprule.engine.eager import oracle
from steprule.matrix import polar as polar_module
from steprule.matrix.how import How
from steprule.matrix.polar import Chain
from steprule.pieces import (
    Value,
    abs,
    col_largest,
    col_mean,
    col_total,
    cols,
    ema,
    maximum,
    mean,
    minimum,
    norm,
    polar,
    row_largest,
    row_mean,
    row_total,
    rows,
    sqrt,
    total,
    where,
)
from steprule.rules.muon import Dion2
from steprule.state import state_shape


class Rows(Rule):
    """Numbers of rows alone, in two readings."""

    decay = "own"
    row_sq = State("rows")

    @staticmethod
    def update(param: Value, grad: Value, row_sq: Value, *, lr: float = 0.1, beta: float = 0.9) -> tuple[Value, ...]:
        row_sq = ema(row_sq, row_mean(grad * grad), beta)
        direction = grad / (sqrt(row_sq) + 1e-3)
        return param - lr * direction / norm(direction), row_sq


class Cols(Rule):
    """Numbers of columns alone."""

    decay = "own"
    col_sq = State("cols", begins=1.0)

    @staticmethod
    def update(param: Value, grad: Value, col_sq: Value, *, lr: float = 0.1, beta: float = 0.9) -> tuple[Value, ...]:
        col_sq = ema(col_sq, col_total(grad * grad), beta)
        return param - lr * grad / sqrt(col_sq) * rows(param) / cols(param), col_sq


class Factored(Rule):
    """Both, a state for each element, and numbers that follow from those of rows."""

    decay = "decoupled"
    row_var, col_var = State("rows"), State("cols")

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, row_var: Value, col_var: Value, *, step: Value, lr: float = 0.1,
        weight_decay: float = 0.1,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta = 1 - step**-0.8
        square = grad * grad + 1e-30
        row_var, col_var = ema(row_var, row_mean(square), beta), ema(col_var, col_mean(square), beta)
        direction = grad / sqrt(row_var * col_var / mean(row_var))
        direction = direction / maximum(1.0, sqrt(mean(direction * direction)))
        exp_avg = ema(exp_avg, direction, 0.9)
        return param - lr * (exp_avg + weight_decay * param), exp_avg, row_var, col_var


class Largest(Rule):
    """The largest of rows and columns, as SM3 has them, and of those."""

    decay = "own"
    row_top, col_top = State("rows"), State("cols")

    @staticmethod
    def update(param: Value, grad: Value, row_top: Value, col_top: Value, *, lr: float = 0.1) -> tuple[Value, ...]:
        bound = minimum(row_top, col_top) + grad * grad
        most = 1e-9 + total(row_top) / rows(param)
        return param - lr * grad / (sqrt(bound) + 1e-3 + most), row_largest(bound), col_largest(abs(bound))


class Polar(Rule):
    """Momentum, rows evened before the product, and a product's rows evened after it."""

    decay = "decoupled"
    row_sq = State("rows")

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, row_sq: Value, *, lr: float = 0.1, momentum: float = 0.9,
        weight_decay: float = 0.1, steps: int = 5,
    ) -> tuple[Value, ...]:  # fmt: skip
        momentum_buffer = ema(momentum_buffer, grad, momentum)
        whole = polar(momentum_buffer / (sqrt(row_total(momentum_buffer * momentum_buffer)) + 1e-8), steps=steps)
        row_sq = ema(row_sq, row_mean(whole * whole), momentum)
        even = whole / (sqrt(row_sq) + 1e-10)
        direction = norm(whole) / norm(even) * even
        return param - lr * (direction + weight_decay * param), momentum_buffer, row_sq


class Twice(Rule):
    """A product of a product, and a state that is read after the first."""

    decay = "own"

    @staticmethod
    def update(param: Value, grad: Value, exp_avg: Value, *, lr: float = 0.1) -> tuple[Value, ...]:
        exp_avg = ema(exp_avg, grad, 0.5)
        first = polar(exp_avg, "deepseek")
        return param - lr * polar(first + 0.1 * grad, (2.0, -1.5, 0.5), 3, 1e-7) - lr * exp_avg, exp_avg


class Idle(Rule):
    """Rows and columns that no element is made of: what others were, and numbers."""

    decay = "own"
    older, newer, seen, count = State("rows", begins=1.0), State("rows"), State("cols"), State("cols")

    @staticmethod
    def update(
        param: Value,
        grad: Value,
        older: Value,
        newer: Value,
        seen: Value,
        count: Value,
        *,
        step: Value,
        lr: float = 0.1,
    ) -> tuple[Value, ...]:
        return param - lr * grad, newer, older + 1.0, norm(grad), step * 1.0


RULES = [Rows, Cols, Factored, Largest, Polar, Twice, Idle, Dion2]
SHAPES = [(5, 7), (7, 5), (1, 9), (9, 1), (1, 1), (6, 6), (6, 6), (130, 257), (3, 66000), (4, 3, 2, 2), (300, 300)]


@dataclass
class Case:
    params: list[torch.nn.Parameter]
    optimizer: steprule.Optimizer
    truth: list[np.ndarray]
    states: list[dict[str, np.ndarray]]

    def step(self, number: int, chosen: range, generator: torch.Generator) -> None:
        for index, param in enumerate(self.params):
            param.grad = None
            if index in chosen:
                param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
                rule = self.optimizer.rule
                group = next(one for one in self.optimizer.param_groups if any(p is param for p in one["params"]))
                new, states = oracle(
                    rule,
                    self.truth[index],
                    param.grad.numpy(),
                    self.states[index],
                    number,
                    {**rule.hyperparameters, "lr": group["lr"]},
                )
                self.truth[index], self.states[index] = new.copy(), {name: x.copy() for name, x in states.items()}
        self.optimizer.step()


def make(rule: type[Rule], dtype: torch.dtype) -> tuple[Case, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]
    groups = [{"params": params[:5]}, {"params": params[5:], "lr": 0.03}]
    truth = [param.detach().double().numpy().copy() for param in params]
    states = [
        {
            name: np.full(state_shape(rule, name, param.shape), state.begins, float)
            for name, state in rule.states.items()
        }
        for param in params
    ]
    return Case(params, steprule.Optimizer.of(rule)(groups), truth, states), generator


@pytest.mark.parametrize("rule", RULES)
def test_passes_compute_what_the_formula_says(rule):
    case, generator = make(rule, torch.float64)
    every, some = range(len(SHAPES)), range(2, 9)
    for number, chosen in enumerate((every, every, every), 1):
        case.step(number, chosen, generator)
    plan = case.optimizer._core.plans.current
    assert plan is not None and plan.repeats, "no kernel steps it"
    check(case, 1e-9)
    before = [param.detach().clone() for param in case.params]
    for index in set(every) - set(some):
        case.params[index].grad = None
    for number in (4, 5):
        case.step(number, some, generator)
    check(case, 1e-9)
    assert all(torch.equal(case.params[index], before[index]) for index in set(every) - set(some))


@pytest.mark.parametrize("settings", [{}, {"states": "8bit", "telemetry": 1}], ids=["alone", "8bit"])
def test_norms_that_products_need_are_those_that_the_pass_before_has_added_up(monkeypatch, settings):
    generator, seen = torch.Generator().manual_seed(0), []
    sizes = [(5, 7), (6, 6), (9, 2), (6, 6), (300, 300), (260, 300)]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in sizes]
    optimizer = steprule.Muon(params, **settings)

    def normalize(x, norms, eps, out):
        own = torch.linalg.vector_norm(x.double(), dim=(-2, -1))  # float32 is off by more than is allowed below
        seen.append((len(own) if own.dim() else 1, own, torch.as_tensor(norms).view(own.shape), out.dtype))
        return plain(x, norms, eps, out)

    plain = polar_module.normalize
    monkeypatch.setattr(polar_module, "normalize", normalize)
    for scale in (1.0, 1e-5):
        for param in params:
            param.grad = scale * torch.randn(param.shape, generator=generator)
        optimizer.step()
    assert sum(count for count, *_ in seen) == 2 * len(params)
    for _, own, norms, dtype in seen:  # of what was rounded to the dtype of the workspace, and of what was not
        torch.testing.assert_close(norms.double(), own, rtol=torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e25])
def test_norms_that_float32_has_no_squares_for_are_read_from_the_matrix(size):
    params = [torch.nn.Parameter(torch.zeros(6, 9)), torch.nn.Parameter(torch.zeros(6, 9))]
    optimizer = steprule.Muon(params, weight_decay=0.0, lr=1.0, eps=0.0, ns_coefficients="polar_express", ns_steps=12)
    gradient = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    params[0].grad, params[1].grad = gradient.clone(), size * gradient
    optimizer.step()
    torch.testing.assert_close(params[1], params[0] if size else torch.zeros(6, 9), rtol=1e-4, atol=1e-4)


class Kept(Rule):
    """States of all kinds, and numbers of rows and columns, where small integers and powers of 2 leave nothing to round."""

    decay = "own"
    row_top, col_top = State("rows"), State("cols")

    @staticmethod
    def update(
        param: Value,
        grad: Value,
        exp_avg: Value,
        exp_avg_sq: Value,
        row_top: Value,
        col_top: Value,
        *,
        lr: float = 2.0**-10,
    ) -> tuple[Value, ...]:
        exp_avg, exp_avg_sq = ema(exp_avg, grad, 0.5), ema(exp_avg_sq, grad * grad, 0.5)
        row_top, col_top = row_largest(abs(exp_avg)), col_largest(exp_avg_sq)
        return (
            param - lr * where(row_top > 2.0, exp_avg, grad) - lr * minimum(col_top, 8.0),
            exp_avg,
            exp_avg_sq,
            row_top,
            col_top,
        )


@pytest.mark.parametrize("settings", [{}, {"telemetry": 1, "average": 0.5}], ids=["alone", "services"])
def test_8_bit_states_beside_rows_are_kept_as_the_eager_fallback_keeps_them(settings):
    shapes = [*SHAPES, (3, 128), (600, 130)]
    generator = torch.Generator().manual_seed(0)
    params = [torch.randint(-8, 9, shape, generator=generator).float().requires_grad_() for shape in shapes]
    strided = [torch.stack([x.detach(), x.detach()], -1)[..., 0].requires_grad_() for x in params]
    one, other = (steprule.Optimizer.of(Kept)(xs, states="8bit", **settings) for xs in (params, strided))
    for _ in range(3):
        for x, y in zip(params, strided, strict=True):
            x.grad = torch.randint(-4, 5, x.shape, generator=generator).float()
            y.grad = torch.empty_like(y).copy_(x.grad)
        one.step()
        other.step()
    plan = one._core.plans.current
    assert plan is not None and plan.repeats and other._core.plans.current is None, "it is not the engines that differ"
    for x, y in zip(params, strided, strict=True):
        assert torch.equal(x, y), x.shape
        for name, kept in one.state[x].items():
            assert torch.equal(kept, other.state[y][name]), (name, x.shape)


def check(case: Case, bound: float) -> None:
    for param, truth, states in zip(case.params, case.truth, case.states, strict=True):
        close(param.detach().numpy(), truth, bound, f"param {tuple(param.shape)}")
        for name, value in states.items():
            close(case.optimizer.state[param][name].numpy(), value, bound, f"{name} of {tuple(param.shape)}")


def close(one: np.ndarray, other: np.ndarray, bound: float, what: str) -> None:
    assert one.shape == other.shape, what
    scale = np.abs(other).max(initial=0.0) + 1e-30
    assert np.abs(one - other).max(initial=0.0) <= bound * scale, what


@pytest.mark.parametrize("settings", [{}, {"clip": 1.0, "telemetry": 1, "average": 0.9}], ids=["alone", "services"])
def test_matrices_in_turns_step_as_all_at_once(monkeypatch, settings):
    shapes = [(40, 40), (9, 70), (40, 40), (2, 3), (40, 40), (9, 70), (70, 9), (100, 100)]

    def run(bytes_):
        monkeypatch.setenv("STEPRULE_WORKSPACE", str(bytes_))
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
        optimizer = steprule.NorMuon(params, lr=0.1, **settings)
        for number in range(4):
            for index, param in enumerate(params):
                grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
                param.grad = grad if number != 2 or index not in (1, 7) else None
            optimizer.step()
        plan = optimizer._core.plans.current
        assert plan is not None
        rooms = [one.rooms for one, _ in plan._buckets]
        return params, {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for one in rooms for x in one._stacks.values()
        }

    (whole, own), (cut, shared) = run(10**9), run(2 * 30_000)
    assert sum(own.values()) >= 8 * sum(a * b for a, b in shapes)
    assert [*shared.values()] == [100 * 100 * 8], "the largest matrix takes more than there is for all"
    for x, y in zip(cut, whole, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("text", ["", "0", "-1", "1e9", "64MB"])
def test_a_workspace_that_is_no_number_of_bytes_is_refused(monkeypatch, text):
    monkeypatch.setenv("STEPRULE_WORKSPACE", text)
    param = torch.nn.Parameter(torch.ones(2, 3))
    param.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"STEPRULE_WORKSPACE=.*number of bytes, such as 134217728"):
        steprule.Muon([param]).step()
    assert torch.equal(param, torch.ones(2, 3))


WAYS = {
    "float32": How("plain", torch.float32, True),
    "bfloat16 gram": How("gram", torch.bfloat16, True),
    "single symmetric": How("symmetric", torch.float32, False),
}


@pytest.mark.parametrize("engine", ["compiled", "eager"])
@pytest.mark.parametrize("text", WAYS)
def test_the_way_of_products_can_be_said_and_is_in_no_checkpoint(monkeypatch, text, engine):
    found, saved = set(), []
    for said in ("", text):
        monkeypatch.setenv("STEPRULE_PRODUCTS", said)
        monkeypatch.setattr(polar_module, "Chain", lambda how, *rest: found.add(how) or Chain(how, *rest))
        found.clear()
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(20, 20, 2, generator=generator)[..., 0] for _ in range(2)]
        params = [torch.nn.Parameter(x if engine == "eager" else x.contiguous()) for x in params]
        optimizer = steprule.Muon(params)
        if saved:
            optimizer.load_state_dict(saved[0])
        for param in params:
            param.grad = torch.randn(20, 20, generator=generator)
        optimizer.step()
        saved.append(optimizer.state_dict())
    assert found == {WAYS[text] if engine == "compiled" else replace(WAYS[text], batched=False)}
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    assert {x.dtype for state in saved[1]["state"].values() for x in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bf16", "'bf16' is none of float32, bfloat16, float16, plain"),
        ("float32 bfloat16", "'bfloat16' is the second word for its dtype"),
        ("float16", "float16 is for GPUs; write float32 or bfloat16"),
    ],
)
def test_a_way_of_products_that_is_none_is_refused(monkeypatch, text, told):
    monkeypatch.setenv("STEPRULE_PRODUCTS", text)
    param = torch.nn.Parameter(torch.ones(2, 3))
    param.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match=f"STEPRULE_PRODUCTS.*{told}"):
        steprule.Muon([param]).step()
    assert torch.equal(param, torch.ones(2, 3))


@pytest.mark.parametrize("rule", [steprule.Adafactor, steprule.CAME, steprule.SM3, steprule.NorMuon])
def test_numbers_of_rows_and_columns_lie_in_the_same_memory_in_every_step(rule):
    """And are those that each matrix has where it is stepped alone, whichever have a gradient."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in ((5, 4), (1, 6), (7, 3), (4, 4))]
    together, alone = ([torch.nn.Parameter(x.clone()) for x in starts] for _ in range(2))
    optimizers = [rule(together, lr=0.1), *(rule([one], lr=0.1) for one in alone)]
    rooms = []
    for present in ("1111", "1111", "0110", "1011", "1111", "1111"):
        for a, b, has_grad in zip(together, alone, present, strict=True):
            a.grad = torch.randn(a.shape, generator=generator) if has_grad == "1" else None
            b.grad = None if a.grad is None else a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        (work,) = optimizers[0]._core.plans.current._works
        rooms.append({name: id(room) for name, room in work.run.__self__._sides._rooms.items()})
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a, b)
    assert rooms[0] and rooms[-1] == rooms[-2]
