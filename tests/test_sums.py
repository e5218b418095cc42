"""Rules with sums over tensors: whatever plans, engines, threads and groups their tensors are stepped by."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from dropin import random
from settings import sees_matrix
from test_every_rule import MOVING, strided

import steprule
from steprule.engine import run
from steprule.rules import OWN
from steprule.trace.tracing import trace

COUPLED = ["Prodigy", "DAdaptAdam", "DoG"]
OF_EACH = ["LAMB", "LARS", "NovoGrad", "MARS", "StableAdamW"]
SHAPES = ((300, 256), (40, 33), (9,), (), (0, 3))  # the first one is more than the piece that is added up by itself


def test_these_are_all_that_have_sums():
    sums = {rule.__name__: trace(rule, rule.hyperparameters).sums for rule in OWN.values() if not sees_matrix(rule)}
    assert {name for name, own in sums.items() if any(one.of_all for one in own.values())} == {*COUPLED}
    assert {name for name, own in sums.items() if own} == {*COUPLED, *OF_EACH}


def settings_of(name):
    weight_decay = {} if name == "DoG" else {"weight_decay": 0.1}
    return {**weight_decay, **MOVING.get(name, {"lr": 0.05})}


def make(name, dtypes, layouts=None, groups=list, **options):
    params = []
    for i, (shape, dtype) in enumerate(zip(SHAPES, dtypes, strict=True)):
        x = random(shape, i, torch.float32).to(dtype)
        params.append((layouts[i](x) if layouts else x).requires_grad_())
    return params, getattr(steprule, name)(groups(params), **{**settings_of(name), **options})


def train(params, optimizer, steps=5, places=None, first=0, scale=1.0):
    """With gradients that are float32's numbers; those of other places are none."""
    for step in range(first, first + steps):
        for i, p in enumerate(params):
            grad = scale * (random(SHAPES[i], 10 * step + i, torch.float32) + random(SHAPES[i], 500 + i, torch.float32))
            p.grad = torch.empty_like(p).copy_(grad) if places is None or i in places else None
        optimizer.step()


def assert_close(params, expected, bound):
    """By how far they have come."""
    for i, (p, q) in enumerate(zip(params, expected, strict=True)):
        gone = float((q.detach().double() - random(SHAPES[i], i, torch.float32)).norm())
        assert float((p.detach().double() - q.detach().double()).norm()) <= bound * gone + 1e-12, i


def numbers(optimizer, params):
    return [{name: float(optimizer.state[p][name]) for name in optimizer.rule.scalar_states} for p in params]


SINGLE = [torch.float32] * 5
DOUBLE = [torch.float64] * 5
SEVERAL = [torch.float32, torch.float64, torch.float32, torch.float64, torch.float32]


def plain(x):
    return x


def transposed(x):
    """Gap-free: the compiled engine takes it."""
    return x.t().contiguous().t() if x.dim() == 2 else x


MIXTURES = {
    "one plan": (SINGLE, None, 1, 0),
    "two dtypes": (SEVERAL, None, 2, 0),
    "transposed": (SINGLE, [transposed] * 5, 1, 0),
    "strided": (SINGLE, [strided] * 5, 1, 3),  # a number alone, or nothing, is not
    "both engines": (SINGLE, [strided, transposed, strided, plain, plain], 1, 2),
    "both engines and dtypes": (SEVERAL, [strided, strided, plain, plain, plain], 2, 2),
}


SOME = [*COUPLED, "LAMB", "NovoGrad"]


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("name", SOME)
def test_a_run_is_float64s_whatever_its_tensors_are_stepped_by(name, mixture, monkeypatch):
    dtypes, layouts, plans, loose = MIXTURES[mixture]
    kinds = []
    together = run.find_numbers

    def find_numbers(works, *complete):
        kinds.append([type(work).__name__ for work in works])
        together(works, *complete)

    expected, exact = make(name, DOUBLE, [strided] * 5)
    train(expected, exact)
    monkeypatch.setattr(run, "find_numbers", find_numbers)
    params, optimizer = make(name, dtypes, layouts)
    train(params, optimizer)
    assert kinds[0].count("CpuWork") == plans and kinds[0].count("Loose") == loose
    assert_close(params, expected, 2e-5)
    ours, its = numbers(optimizer, params), numbers(exact, expected)
    for mine, theirs in zip(ours, its, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5, abs=1e-12)
    if name in COUPLED:
        assert all(one == ours[0] for one in ours), "they were added up apart"
        assert ours[0] != numbers(*make_alone(name, dtypes))[0], "it was added up alone"


def make_alone(name, dtypes):
    """The first tensor without the others."""
    params, optimizer = make(name, dtypes)
    train(params, optimizer, places=[0])
    return optimizer, params[:1]


def bits(params, optimizer):
    return [x.clone() for p in params for x in (p.detach(), *optimizer.state[p].values())]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", SOME)
def test_results_depend_neither_on_threads_nor_on_order_nor_on_groups(name):
    """To the last bit."""
    before = torch.get_num_threads()
    runs = []
    ways = {
        "one thread": (1, list), "two threads": (2, list), "reversed": (2, lambda params: params[::-1]),
        "groups": (2, lambda params: [{"params": params[1::2]}, {"params": params[::2]}]),
        "own settings": (2, lambda params: [{"params": params[1::2]}, {"params": params[::2], "eps": 0.1}]),
    }  # fmt: skip
    try:
        for threads, groups in ways.values():
            torch.set_num_threads(threads)
            params, optimizer = make(name, SINGLE, groups=groups)
            train(params, optimizer)
            assert optimizer._core.plans.current is not None
            runs.append(bits(params, optimizer))
    finally:
        torch.set_num_threads(before)
    first, *others, different = runs
    assert all(same(first, other) for other in others)
    assert not same(first, different)


@pytest.mark.parametrize("name", COUPLED)
def test_tensors_without_a_gradient_are_left_out(name):
    """As if they were not there; and all goes on when they are back."""
    params, optimizer = make(name, SINGLE)
    few, alone = make(name, SINGLE, groups=lambda params: params[:2])
    still = [p.detach().clone() for p in params[2:]]
    for step in range(4):
        train(params, optimizer, 1, [0, 1], step)
        train(few[:2], alone, 1, None, step)
    assert same(bits(params[:2], optimizer), bits(few[:2], alone))
    assert all(map(torch.equal, still, params[2:]))
    train(params, optimizer, 2, first=4)
    assert all(bool(p.isfinite().all()) for p in params)
    assert not any(map(torch.equal, still[:2], params[2:]))


@pytest.mark.parametrize(
    ("name", "layout"),
    [*((name, [strided] * 5) for name in (*COUPLED, *OF_EACH)), *((name, None) for name in SOME)],
    ids=lambda value: value if isinstance(value, str) else "eager" if value else "compiled",
)
def test_sums_are_of_gradients_as_services_leave_them(name, layout):
    """Clipped by half, which loses no bit; and without what is not finite."""
    params, optimizer = make(name, SINGLE, layout, clip=1.0)
    halved, plain = make(name, SINGLE, layout)
    for step in range(3):
        train(halved, plain, 1, None, step, 0.5)
        norm = math.sqrt(sum(float((2 * p.grad).double().square().sum()) for p in halved))
        optimizer.clip = (norm + 1e-6) / 2
        train(params, optimizer, 1, None, step)
    assert optimizer.clipped_steps == 3
    assert same(bits(params, optimizer), bits(halved, plain))

    params, optimizer = make(name, SINGLE, layout, nonfinite="zero")
    zeroed, plain = make(name, SINGLE, layout)
    for step in range(3):
        for own, one, wrong in ((params, optimizer, math.nan), (zeroed, plain, 0.0)):
            for i, p in enumerate(own):
                p.grad = torch.empty_like(p).copy_(random(SHAPES[i], 10 * step + i))
            own[0].grad[3, 7] = own[2].grad[4] = wrong
            one.step()
    assert optimizer.zeroed_elements == 6
    assert same(bits(params, optimizer), bits(zeroed, plain))


@pytest.mark.parametrize("name", SOME)
def test_a_skipped_step_moves_no_number(name):
    params, optimizer = make(name, SINGLE, nonfinite="skip")
    train(params, optimizer, 2)
    before = bits(params, optimizer)
    for p in params:
        p.grad = torch.full_like(p, math.nan)
    optimizer.step()
    assert optimizer.skipped_steps == 1 and same(before, bits(params, optimizer))


@pytest.mark.parametrize("name", [*COUPLED, "LAMB", "NAdam", "ScheduleFreeSGD"])
def test_weights_that_are_listed_twice_are_stepped_twice(name):
    """One after the other, though sums must be known before anything changes."""
    with pytest.warns(UserWarning, match="duplicate"):
        twice = [random((4, 3), 0).requires_grad_()]
        optimizer = getattr(steprule, name)(twice * 2, **MOVING.get(name, {"lr": 0.05}))
    once = [random((4, 3), 0).requires_grad_()]
    other = getattr(steprule, name)(once, **MOVING.get(name, {"lr": 0.05}))
    for step in range(2):
        twice[0].grad = random((4, 3), 7 + step)
        once[0].grad = twice[0].grad.clone()
        optimizer.step()
        other.step(), other.step()
    assert float(optimizer.state[twice[0]]["step"]) == 4
    torch.testing.assert_close(twice[0], once[0], rtol=1e-9, atol=1e-12)


FOLLOWED = [
    rule.__name__
    for rule in OWN.values()
    if rule.scalar_states or rule.__name__ in OF_EACH or any(state.begins == "param" for state in rule.states.values())
]


@pytest.mark.parametrize("name", FOLLOWED)
def test_autograd_sees_through_scalar_states_sums_and_states_that_begin_at_param(name):
    """Two steps' derivatives by the weights and the gradients are those of the numbers."""
    options = {**MOVING.get(name, {"lr": 0.05}), **({"lr": 0.5, "d0": 0.5} if name in COUPLED[:2] else {})}

    def two_steps(param, first, second):
        param = param.clone()
        optimizer = getattr(steprule, name)([param], **options, differentiable=True)
        for grad in (first, second):
            param.grad = grad
            optimizer.step()
        return param

    if name == "ScheduleFreeRAdam":
        options["silent_sgd_phase"] = False
    inputs = [random((3,), seed).requires_grad_() for seed in (1, 2, 3)]
    if name == "NAdam":  # whose number is kept in step's dtype
        torch.set_default_dtype(torch.float64)
    try:
        assert torch.autograd.gradcheck(two_steps, inputs)
    finally:
        torch.set_default_dtype(torch.float32)


class Summed(steprule.Rule):
    """Two scalar states that are sums and nothing else: one of each tensor, one of a sum of such."""

    size = last = steprule.State("scalar")

    @staticmethod
    def update(param, grad, size, last, *, lr=0.5):
        squares = steprule.total(grad * grad)
        return param - lr * grad / squares, squares, steprule.total(grad / squares)


@pytest.mark.parametrize("front", ["torch", "numpy", "eager"])
def test_a_scalar_state_may_be_a_sum_itself(front):
    grad = torch.tensor([1.0, 2.0, -1.0, 4.0])
    param = torch.nn.Parameter(torch.zeros(8)[::2] if front == "eager" else torch.zeros(4))
    if front == "numpy":
        array = param.detach().numpy()
        optimizer = type("Arrays", (steprule.arrays.Optimizer,), {}, rule=Summed)([array])
        optimizer.step([grad.numpy()])
        state = optimizer.state[0]
    else:
        optimizer = steprule.Optimizer.of(Summed)([param])
        param.grad = grad
        optimizer.step()
        state = optimizer.state[param]
    assert float(state["size"]) == 22.0 and float(state["last"]) == pytest.approx(6 / 22, rel=1e-6)
    torch.testing.assert_close(param.detach(), -0.5 * grad / 22)


class Ahead(steprule.Rule):
    """A number that is known before any sum, and one of a sum that needs it; both change in every step."""

    count, size = steprule.State("scalar"), steprule.State("scalar")

    @staticmethod
    def update(param, grad, count, size, *, lr=0.5):
        now = count + lr
        squares = steprule.total(grad * grad * now)
        return param - lr * grad / squares, now, size + squares


def refuse_sums(monkeypatch, level):
    """Sums cannot be found from this level on."""

    def refuse(works, sums):
        levels.append(1)
        if len(levels) > level:
            raise RuntimeError("no sums")
        return totals_of(works, sums)

    levels, totals_of = [], run.totals_of
    monkeypatch.setattr(run, "totals_of", refuse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("level, begun", [(0, 2), (1, 2), (1, 0)])
def test_where_sums_cannot_be_found_nothing_has_changed(level, begun, dtype, monkeypatch):
    """As where another process cannot take the step. Steps, and numbers that were found before the sums, are as they were."""
    params = [torch.nn.Parameter(random((4,), seed).to(dtype)) for seed in (1, 2)]
    alike = [torch.nn.Parameter(x.detach().clone()) for x in params]
    optimizer, other = (steprule.Optimizer.of(Ahead)(x) for x in (params, alike))

    def step(number, *optimizers):
        for one in optimizers:
            for place, param in enumerate(one.param_groups[0]["params"]):
                param.grad = random((4,), 10 * number + place).to(dtype)
            one.step()

    for number in range(begun):
        step(number, optimizer, other)
    before = copy.deepcopy(optimizer.state_dict()["state"])

    refuse_sums(monkeypatch, level)
    with pytest.raises(RuntimeError, match="no sums"):
        step(7, optimizer)
    monkeypatch.undo()
    after = optimizer.state_dict()["state"]
    assert before.keys() == after.keys()
    for number, state in before.items():
        assert {name: float(x) for name, x in state.items()} == {name: float(x) for name, x in after[number].items()}
    assert all(map(torch.equal, params, alike))
    step(8, optimizer, other)
    assert all(map(torch.equal, params, alike))
    assert numbers(optimizer, params) == numbers(other, alike)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_where_sums_cannot_be_found_rows_and_columns_keep_their_numbers(level, monkeypatch):
    params = [torch.nn.Parameter(random((6, 4), 1)), torch.nn.Parameter(random((3, 5), 2))]
    optimizer = steprule.Adafactor(params)

    def give(number):
        for place, param in enumerate(params):
            param.grad = random(tuple(param.shape), 10 * number + place)

    for number in range(2):
        give(number)
        optimizer.step()
    before, weights = copy.deepcopy(optimizer.state_dict()["state"]), [x.detach().clone() for x in params]

    refuse_sums(monkeypatch, level)
    give(7)
    with pytest.raises(RuntimeError, match="no sums"):
        optimizer.step()
    monkeypatch.undo()
    after = optimizer.state_dict()["state"]
    assert {x.shape for x in after[0].values()} >= {(6, 1), (1, 4)}
    assert all(torch.equal(before[n][name], value) for n in before for name, value in after[n].items())
    assert all(map(torch.equal, params, weights))
