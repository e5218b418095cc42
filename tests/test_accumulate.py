"""Sums of half-precision gradients over micro-batches, beside sums in float64."""

from __future__ import annotations

import copy
import gc
from functools import partial

import pytest
import torch
from ddp import outcomes_of
from dropin import NO_GRAD_DTYPE, since
from test_release import Net
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import steprule
from steprule.services.accumulate import Accumulator

MICRO = 16
KINDS = ["float32", "24bit", "32bit"]
DTYPES = [torch.bfloat16, torch.float16]
BITS = {torch.bfloat16: 8, torch.float16: 11}
"""Of a significand."""

every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Look(steprule.Rule):
    """Keeps the gradient that it is given, and moves nothing."""

    def update(param, grad, seen, *, lr=1.0):
        return param, lr * grad


class Looker(steprule.Optimizer, rule=Look):
    pass


def look(params, kind, **options):
    return Looker(params, states="float32", grads=kind, **options)


def net(dtype):
    torch.manual_seed(0)
    return Net(nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 4)), dtype)


def loss(model, number):
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(number))
    return 8 * model(x).square().mean()


def accumulate(model, numbers=range(MICRO)):
    """Backward passes over some micro-batches; their gradients one by one, float64, for every parameter."""
    params = [*model.parameters()]
    singles = []
    for number in numbers:
        value = loss(model, number)
        singles.append([g.double() for g in torch.autograd.grad(value, params, retain_graph=True)])
        value.backward()
    return [torch.stack(each) for each in zip(*singles, strict=True)]


def bound(kind, dtype, singles):
    """How far a sum of these may be off: an addition, by the spacing of the numbers at the largest partial sum."""
    bits = min(BITS[dtype] + int(kind[:2]) - 16, 24) if kind != "float32" else 24
    smallest = 2.0**-24 / 2 ** (bits - BITS[dtype]) if dtype == torch.float16 else 0.0
    return len(singles) * (2.0 ** (1 - bits) * singles.cumsum(0).abs().amax(0) + smallest)


def assert_sum(kind, dtype, value, singles):
    excess = (value.double() - singles.sum(0)).abs() - bound(kind, dtype, singles)
    assert float(excess.max()) <= 0


def assert_sums(kind, dtype, optimizer, model, singles):
    """What the formula was given in the last step."""
    for p, each in zip(model.parameters(), singles, strict=True):
        assert_sum(kind, dtype, optimizer.read(p, "seen"), each)


def run(kind, dtype=torch.bfloat16, numbers=range(MICRO), **options):
    """A model and an optimizer that has looked at the sum, and the gradients that went into it."""
    model = net(dtype)
    optimizer = look(model.parameters(), kind, **options)
    singles = accumulate(model, numbers)
    optimizer.step()
    return model, optimizer, singles


@every_dtype
@every_kind
def test_the_step_is_given_the_sum(kind, dtype):
    model, optimizer, singles = run(kind, dtype)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32 if kind == "float32" else dtype}
    assert_sums(kind, dtype, optimizer, model, singles)
    accumulate(model, [99])  # nor is it lost by a look at it
    optimizer.step()
    again = accumulate(net(dtype), [*range(MICRO), 99])
    assert_sums(kind, dtype, optimizer, model, again)


@every_dtype
def test_plain_sums_lose_more(dtype):
    errors = {}
    for kind in (None, *KINDS):
        model, optimizer, singles = run(kind, dtype)
        sums = [optimizer.read(p, "seen").double() for p in model.parameters()]
        errors[kind] = max(float((a - b.sum(0)).abs().max()) for a, b in zip(sums, singles, strict=True))
    assert errors[None] > 50 * errors["24bit"] and errors["24bit"] > 10 * errors["32bit"]


@every_kind
def test_gradients_below_the_spacing_add_up(kind):
    """Also below that of 24 bits, where rounding alike would lose all of them, or make eight of one."""
    p = nn.Parameter(torch.zeros(16, 16, dtype=torch.bfloat16))
    optimizer = look([p], kind)
    for size in [1.0] + [2.0**-18] * 400:
        (p * torch.full_like(p, size, requires_grad=False)).sum().backward()
    optimizer.step()
    off = optimizer.read(p, "seen").double() - (1 + 400 * 2.0**-18)
    assert float(off.abs().max()) <= 2 * 2.0**-15


def test_32_bits_are_float32():
    wide, low = (run(kind) for kind in ("float32", "32bit"))
    for p, q in zip(wide[0].parameters(), low[0].parameters(), strict=True):
        assert torch.equal(wide[1].read(p, "seen"), low[1].read(q, "seen"))


@every_kind
def test_gradients_taken_aside_disturb_nothing(kind):
    model, optimizer, _ = run(kind)
    other = net(torch.bfloat16)
    its = look(other.parameters(), kind)
    for number in range(MICRO):
        loss(other, number).backward()
    its.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad) and torch.equal(optimizer.read(p, "seen"), its.read(q, "seen"))


@every_dtype
@every_kind
def test_steps_are_those_of_the_sum(kind, dtype):
    model = net(dtype)
    optimizer = steprule.SGD(model.parameters(), lr=0.25, weights="32bit", grads=kind)
    before = [p.detach().double() for p in model.parameters()]
    singles = accumulate(model)
    optimizer.step()
    for p, start, each in zip(model.parameters(), before, singles, strict=True):
        off = (optimizer.read(p).double() - (start - 0.25 * each.sum(0))).abs()
        largest = torch.maximum(start.abs(), (0.25 * each.sum(0)).abs())
        assert bool((off <= 0.25 * bound(kind, dtype, each) + 2.0**-22 * largest).all())


def to_none(optimizer, model):
    optimizer.zero_grad()


def to_zero(optimizer, model):
    optimizer.zero_grad(set_to_none=False)


def by_the_model(optimizer, model):
    model.zero_grad()


def by_hand(optimizer, model):
    for p in model.parameters():
        p.grad = torch.zeros_like(p.grad)


@every_kind
@pytest.mark.parametrize("clear", [to_none, to_zero, by_the_model, by_hand])
def test_sums_begin_anew(clear, kind):
    model, optimizer, _ = run(kind)
    clear(optimizer, model)
    singles = accumulate(model, range(20, 20 + MICRO))
    optimizer.step()
    assert_sums(kind, torch.bfloat16, optimizer, model, singles)


def by_norm(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def by_number(model):
    for p in model.parameters():
        p.grad.mul_(0.5)


def by_another(model):
    for p in model.parameters():
        p.grad = p.grad * 0.5


@every_dtype
@every_kind
@pytest.mark.parametrize("change", [by_norm, by_number, by_another])
def test_gradients_that_someone_changed_are_taken_as_they_are(change, kind, dtype):
    model = net(dtype)
    optimizer = look(model.parameters(), kind)
    for _ in range(2):
        optimizer.zero_grad()
        accumulate(model)
        change(model)
        kept = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        for p, grad in zip(model.parameters(), kept, strict=True):
            assert torch.equal(optimizer.read(p, "seen"), grad.float())


@pytest.mark.parametrize("kind", ["24bit", "32bit"])
def test_gradients_set_by_hand_are_taken_as_they_are(kind):
    """Also where a new tensor lies in the place of an old one, as memory that was just freed is likely to be."""
    p = nn.Parameter(torch.randn(8, 8).bfloat16())
    optimizer = look([p], kind)
    for number in range(50):
        for k in range(3):
            generator = torch.Generator().manual_seed(10 * number + k)
            (p * torch.randn(8, 8, generator=generator).bfloat16()).sum().backward()
        optimizer.zero_grad()
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert torch.equal(optimizer.read(p, "seen"), torch.ones(8, 8))
        optimizer.zero_grad()


@every_kind
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_clipping_in_the_step(kind, share):
    """By the norm that param.grad has, which is right to bfloat16's precision; what is clipped is the exact sum."""
    norm = float(torch.cat([s.sum(0).flatten() for s in accumulate(net(torch.bfloat16))]).norm())
    model, optimizer, singles = run(kind, clip=share * norm)
    assert float(optimizer.grad_norm) == pytest.approx(norm, rel=2.0**-9)
    assert optimizer.clipped_steps == (share < 1)
    factor = min(1.0, share * norm / (float(optimizer.grad_norm) + 1e-6))
    for p, each in zip(model.parameters(), singles, strict=True):
        off = (optimizer.read(p, "seen").double() - factor * each.sum(0)).abs()
        assert bool((off <= bound(kind, torch.bfloat16, each) + 2.0**-22 * each.sum(0).abs()).all())


@every_kind
def test_hooks_live_as_long_as_the_optimizer(kind):
    model = net(torch.bfloat16)
    optimizer = look(model.parameters(), kind)
    for step in range(30):
        optimizer.zero_grad()
        singles = accumulate(model, range(step, step + 4))
        optimizer.step()
        if step == 0:
            gc.collect()
        assert_sums(kind, torch.bfloat16, optimizer, model, singles)


def channels_last_before(dtype, kind, options):
    p = nn.Parameter(torch.randn(6, 8, 4, 5).to(dtype, memory_format=torch.channels_last))
    return p, look([p], kind, **options)


def channels_last_after(dtype, kind, options):
    p = nn.Parameter(torch.randn(6, 8, 4, 5).to(dtype))
    optimizer = look([p], kind, **options)
    p.data = p.data.to(memory_format=torch.channels_last)
    return p, optimizer


def strided(dtype, kind, options):
    p = nn.Parameter(torch.randn(8, 10).to(dtype)[:, ::2])
    return p, look([p], kind, **options)


def transposed(dtype, kind, options):
    p = nn.Parameter(torch.randn(8, 10).to(dtype).t())
    return p, look([p], kind, **options)


@every_dtype
@every_kind
@pytest.mark.parametrize("make", [channels_last_before, channels_last_after, strided, transposed])
@pytest.mark.parametrize("options", [{}, {"clip": 1e6}], ids=str)
def test_any_layout(make, kind, dtype, options):
    p, optimizer = make(dtype, kind, options)
    singles = [torch.randn(p.shape, generator=torch.Generator().manual_seed(k)).to(dtype) for k in range(MICRO)]
    for number, single in enumerate(singles):
        if number % 3 == 0 and p.dim() == 4:  # gradients may lie otherwise than the parameter
            single = single.contiguous(memory_format=torch.channels_last)
        (p * single).sum().backward()
    optimizer.step()
    assert_sum(kind, dtype, optimizer.read(p, "seen"), torch.stack(singles).double())


@every_kind
def test_float32_parameters_beside_them_are_as_ever(kind):
    seen = []
    for grads in (None, kind):
        model = net(torch.bfloat16)
        model.layers.append(nn.Linear(4, 3))
        first, model.layers[2].forward = model.layers[2].forward, None
        model.layers[2].forward = lambda x, first=first: first(x).float()
        optimizer = look(model.parameters(), grads)
        for number in range(MICRO):
            loss(model, number).backward()
        optimizer.step()
        last = [*model.layers[3].parameters()]
        assert {p.grad.dtype for p in last} == {torch.float32}
        seen.append([(p.grad, optimizer.read(p, "seen")) for p in last])
    for one, other in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_kind
def test_groups_that_join_later_and_frozen_parameters(kind):
    model = net(torch.bfloat16)
    frozen, last = model.layers[0], model.layers[2]
    frozen.requires_grad_(False)
    optimizer = look(frozen.parameters(), kind)
    optimizer.add_param_group({"params": [*last.parameters()]})
    singles = []
    for number in range(MICRO):
        value = loss(model, number)
        singles.append([g.double() for g in torch.autograd.grad(value, [*last.parameters()], retain_graph=True)])
        value.backward()
    optimizer.step()
    for p, each in zip(last.parameters(), zip(*singles, strict=True), strict=True):
        assert_sum(kind, torch.bfloat16, optimizer.read(p, "seen"), torch.stack(each))


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ("32bits", "Invalid grads value: '32bits'; did you mean '32bit'"),
        ("float3", "Invalid grads value: 'float3'; it can be None, 'float32', '24bit', '32bit'"),
        ("flaot32", "Invalid grads value: 'flaot32'; did you mean 'float32'"),
        ("kahan", "Invalid grads value: 'kahan'; it can be None, 'float32', '24bit', '32bit'"),
        (32, "Invalid grads value: 32"),
    ],
)
def test_words_that_mean_nothing_are_refused(grads, message):
    with pytest.raises(ValueError, match=message):
        steprule.SGD(net(torch.bfloat16).parameters(), grads=grads)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_other_parameters_alone_are_refused(kind, dtype):
    if kind == "float32":
        since("2.10", NO_GRAD_DTYPE)
    params = [torch.ones(2, dtype=dtype)]
    message = f"grads='{kind}' is for bfloat16 and float16 parameters; these are all {str(dtype)[6:]}$"
    with pytest.raises(ValueError, match=message):
        steprule.SGD(params, grads=kind)


@every_kind
def test_a_group_has_no_choice(kind):
    model = net(torch.bfloat16)
    optimizer = steprule.SGD(model.layers[0].parameters(), grads=kind)
    with pytest.raises(ValueError, match="it is for the whole optimizer"):
        optimizer.add_param_group({"params": [*model.layers[2].parameters()], "grads": kind})


# Several processes


def low_bits_are_refused(rank, kind, wrap):
    model = net(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = steprule.SGD(model.parameters(), grads=kind)
    with pytest.raises(RuntimeError, match=f'grads="{kind}" is for one process'):
        loss(wrap(model), rank).backward()
    optimizer.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def torch_refuses_to_average_float32(rank):
    """torch's reducer has buckets of the parameters' dtype, and raises where a gradient has another; it never rounds."""
    model = net(torch.bfloat16)
    outer = DDP(model)
    steprule.SGD(model.parameters(), grads="float32")
    with outer.no_sync():
        loss(outer, rank).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    with pytest.raises(RuntimeError, match="Expected BFloat16, got Float"):
        loss(outer, rank).backward()


SCENARIOS = {
    f"{kind}, {wrap.__name__}": partial(low_bits_are_refused, kind=kind, wrap=wrap)
    for kind in ("24bit", "32bit")
    for wrap in (nn.Sequential, DDP)
} | {"float32": torch_refuses_to_average_float32}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return outcomes_of(__name__, tmp_path_factory.mktemp("processes"), 2)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_in_two_processes(outcomes, scenario):
    if scenario == "float32":
        since("2.10", NO_GRAD_DTYPE)
    for rank, outcome in enumerate(outcomes[scenario]):
        assert not outcome, f"rank {rank}: {outcome}"


@pytest.mark.parametrize("before", ["24bit", "32bit"])
def test_a_second_optimizer_takes_the_sums_over(before):
    """As when a notebook's cell runs again; the first one lives on."""
    model = net(torch.bfloat16)
    first, second = look(model.parameters(), before), look(model.parameters(), "24bit")
    singles = accumulate(model)
    second.step()
    assert_sums("24bit", torch.bfloat16, second, model, singles)
    again = [*model.parameters()]
    kept = [p.detach().clone() for p in again]
    with pytest.raises(
        RuntimeError, match=f'4 parameters of this optimizer with grads="{before}" are summed by another'
    ):
        first.step()
    assert all(map(torch.equal, kept, again)) and not any(first.state.values())


def test_sums_come_back_when_the_optimizer_that_took_them_is_gone():
    model = net(torch.bfloat16)
    first, second = look(model.parameters(), "24bit"), look(model.parameters(), "24bit")
    del second
    first.zero_grad()
    accumulate(model, [98])
    first.step()
    first.zero_grad()
    singles = accumulate(model)
    first.step()
    assert_sums("24bit", torch.bfloat16, first, model, singles)


def test_a_copy_that_is_not_deep_leaves_the_sums_alone_until_it_steps():
    model = net(torch.bfloat16)
    optimizer = look(model.parameters(), "24bit")
    other = copy.copy(optimizer)
    singles = accumulate(model)
    optimizer.step()
    assert_sums("24bit", torch.bfloat16, optimizer, model, singles)
    other.step()
    with pytest.raises(RuntimeError, match=r"4 parameters of this optimizer .* are summed by another"):
        optimizer.step()
    optimizer.zero_grad()
    singles = accumulate(model)
    other.step()
    assert_sums("24bit", torch.bfloat16, other, model, singles)


@pytest.mark.parametrize("how", ["step", "released"])
def test_every_parameter_is_looked_at_once_a_step(how, monkeypatch):
    model = net(torch.bfloat16)
    optimizer = look(model.parameters(), "24bit")
    if how == "released":
        optimizer.release_gradients(model)
    seen = []
    monkeypatch.setattr(
        Accumulator, "_fitting", lambda self, param, old=Accumulator._fitting: (seen.append(param), old(self, param))[1]
    )
    for number in range(3):
        loss(model, number).backward()
        del seen[: None if how == "step" else 0]
        optimizer.step()
        optimizer.zero_grad()
        assert len(seen) == (4 if how == "step" else 8)  # where nothing is kept, the sum begins anew each time
        seen.clear()


def test_a_group_appended_by_hand_is_summed_exactly_too():
    model = net(torch.bfloat16)
    *some, weight, bias = model.parameters()
    optimizer = look(some, "24bit")
    optimizer.param_groups.append({"params": [weight, bias]})
    accumulate(model, [98])
    optimizer.step()
    optimizer.zero_grad()
    singles = accumulate(model)
    optimizer.step()
    assert_sums("24bit", torch.bfloat16, optimizer, model, singles)
