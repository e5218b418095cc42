"""QK-clip: the largest logit of each head is the limit after a step, and heads below it stay as they are."""

from __future__ import annotations

import copy
import functools
from itertools import chain

import pytest
import torch

import steprule
from steprule import wrappers
from steprule.rules import OWN
from steprule.services import QKClip

SIZE, INPUTS = 3, 6


def attention(heads, key_heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda count: torch.nn.Parameter(torch.randn(count * SIZE, INPUTS, generator=generator, dtype=torch.float64))  # noqa: E731
    bias = lambda count: torch.nn.Parameter(torch.randn(count * SIZE, generator=generator, dtype=torch.float64))  # noqa: E731
    return [make(heads), bias(heads)], [make(key_heads), bias(key_heads)]


def logits(query, key, heads, key_heads, x):
    """(batch, heads, queries, keys)."""
    q = torch.nn.functional.linear(x, *query).unflatten(-1, (heads, SIZE)).transpose(-3, -2)
    k = torch.nn.functional.linear(x, *key).unflatten(-1, (key_heads, SIZE)).transpose(-3, -2)
    return q @ k.repeat_interleave(heads // key_heads, -3).transpose(-1, -2)


def inputs(seed=1):
    return torch.randn(2, 5, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def still(params):
    """An optimizer that steps and moves nothing."""
    optimizer = steprule.SGD(params, lr=0.0)
    for param in params:
        param.grad = torch.ones_like(param)
    return optimizer


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_the_largest_logit_of_each_head_is_the_limit_afterwards(key_heads):
    query, key = attention(4, key_heads)
    before = logits(query, key, 4, key_heads, inputs()).detach()
    most = before.amax((0, 2, 3))
    tau = float(most.sort().values[1:3].mean())  # two heads are above
    optimizer = still([*query, *key])
    clip = QKClip(optimizer, tau)
    seen = clip.watch(query, key, 4, key_heads)
    x = inputs()
    seen(logits(query, key, 4, key_heads, x[:1]))  # micro-batches
    seen(logits(query, key, 4, key_heads, x[1:]).amax((0, 2, 3)))
    optimizer.step()
    torch.testing.assert_close(clip.largest[0].double(), most, rtol=1e-6, atol=0)
    # The limit is met by factors in float32.
    after = logits(query, key, 4, key_heads, x).detach()
    scale = torch.where(most > tau, tau / most, 1.0)[:, None, None]
    torch.testing.assert_close(after, before * scale, rtol=1e-6, atol=1e-9)
    for now, was in zip((*query, *key), chain(*attention(4, key_heads)), strict=True):
        assert (now.abs() <= was.abs()).all()
    kept = [param.detach().clone() for param in (*query, *key)]
    optimizer.step()  # which has seen nothing
    assert all(map(torch.equal, kept, (*query, *key)))


def test_as_many_keys_as_queries_share_the_factor():
    query, key = attention(2, 2)
    old = copy.deepcopy((query, key))
    optimizer = still([*query, *key])
    QKClip(optimizer, 4.0).watch(query, key, 2)(torch.tensor([16.0, 4.0]))
    optimizer.step()
    for now, was in zip((*query, *key), (*old[0], *old[1]), strict=True):
        assert torch.equal(now[:SIZE], was[:SIZE] * 0.5) and torch.equal(now[SIZE:], was[SIZE:])


def test_rows_of_a_fused_matrix_and_half_precision():
    fused = torch.nn.Parameter(torch.ones(9, 4, dtype=torch.bfloat16))
    optimizer = still([fused])
    clip = QKClip(optimizer, 1.0)
    clip.watch((fused, slice(0, 3)), (fused, slice(3, 6)), heads=1)(torch.tensor([4.0]))
    optimizer.step()
    assert fused[:6].eq(0.5).all() and fused[6:].eq(1.0).all()


@pytest.mark.parametrize(
    ("weights", "dtype"), [("24bit", "bfloat16"), ("32bit", "bfloat16"), ("24bit", "float16"), ("32bit", "float16")]
)
def test_low_bits_go_along(weights, dtype):
    fused = torch.nn.Parameter(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype)))
    optimizer = steprule.SGD([fused], lr=1e-3, weights=weights)
    clip = QKClip(optimizer, 1.0)
    seen = clip.watch((fused, slice(0, 3)), (fused, slice(3, 6)), heads=1)
    fused.grad = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).to(fused)
    optimizer.step()
    before = optimizer.read(fused)
    optimizer.param_groups[0]["lr"] = 0.0
    seen(torch.tensor([4.0]))
    optimizer.step()
    factor = torch.tensor([0.5] * 6 + [1.0] * 3)[:, None]  # powers of 2, which lose no bit
    assert before.ne(before.to(fused.dtype)).any() and torch.equal(optimizer.read(fused), before * factor)


def test_low_bits_that_one_process_has_are_refused(monkeypatch):
    half = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = steprule.SGD([half], weights="24bit")
    monkeypatch.setattr(optimizer._core, "across", object())
    with pytest.raises(ValueError, match="weights='24bit', and with process_group one process alone has the low bits"):
        QKClip(optimizer).watch(half, half, 2)


def rows_of(*sizes):
    return [torch.nn.Parameter(torch.ones(size, 4)) for size in sizes]


def test_a_weight_of_several_watches_is_multiplied_once():
    """By the smallest factor that is asked for: each attention has at most tau."""
    one, two, shared, both = rows_of(4, 4, 4, 4)
    optimizer = still([one, two, shared, both])
    clip = QKClip(optimizer, 1.0)
    seen = [clip.watch(*pair, heads=2) for pair in ((one, shared), (two, shared), (one, shared), (both, both))]
    for told, largest in zip(seen, ([4.0, 1.0], [16.0, 1.0], [4.0, 1.0], [4.0, 16.0]), strict=True):
        told(torch.tensor(largest))
    optimizer.step()
    found = [param[::2, 0].tolist() for param in (one, two, shared, both)]
    assert found == [[0.5, 1.0], [0.25, 1.0], [0.25, 1.0], [0.5, 0.25]]


def test_rows_of_two_watches_that_overlap_are_multiplied_once():
    (fused,) = rows_of(8)
    optimizer = still([fused])
    clip = QKClip(optimizer, 1.0)
    clip.watch((fused, slice(0, 4)), (fused, slice(2, 6)), heads=1)(torch.tensor([16.0]))
    clip.watch((fused, slice(0, 2)), (fused, slice(4, 6)), heads=2)(torch.tensor([4.0, 64.0]))
    optimizer.step()
    assert fused[:, 0].tolist() == [0.25, 0.125, 0.25, 0.25, 0.25, 0.125, 1.0, 1.0]


def test_two_clips_of_one_optimizer_are_refused():
    (param,) = rows_of(4)
    inner = steprule.SGD([param])
    both = steprule.Together([inner])
    QKClip(inner)
    for optimizer in (inner, both):
        with pytest.raises(ValueError, match="SGD has a QKClip, and two might multiply a weight twice"):
            QKClip(optimizer)


def moves_back(make):
    """Whether weights that are halved after a step come back in the next ones, with a gradient of 0 and hardly any lr."""
    param = torch.nn.Parameter(torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) + 1)
    optimizer = make([param])
    for i in range(13):
        param.grad = torch.full_like(param, 0.0 if i else 1e-6)
        if i == 1:
            param.data.mul_(0.5)
            half = param.detach().clone()
        optimizer.step()
    return optimizer, not torch.allclose(param, half, rtol=0.05)


def made_by(rule, **options):
    rates = {"lr": 1e-6} if "lr" in rule.hyperparameters else {}
    return lambda params: steprule.Optimizer.of(rule)(params, **rates, **options)


WRAPPED = {
    name: steprule.wrap(steprule.SGD.rule, getattr(wrappers, name))
    for name in ("hyperball", "radius_pin", "ema_nesterov", "update_floor")
}
MAKERS = {
    **{rule.__name__: made_by(rule) for rule in OWN.values() if not rule.sparse_only},
    **{name: made_by(rule) for name, rule in WRAPPED.items()},
    **{
        name: made_by(steprule.SGD.rule, **{name: value})
        for name, value in (("lookahead", 2), ("average", 0.5), ("decay", "initial"), ("cautious", True))
    },
}
REFUSED = {"ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam", "MADGRAD", "hyperball", "lookahead"}
TOO_CAREFUL = {"ASGD", "ema_nesterov"}
"""Which keep the multiplied weights, and beside them others that are evaluated."""


@pytest.mark.parametrize("name", MAKERS)
def test_optimizers_that_would_undo_it_are_refused(name):
    optimizer, undoes = moves_back(MAKERS[name])
    assert undoes == (name in REFUSED)
    if name in REFUSED | TOO_CAREFUL:
        for one in (optimizer, steprule.Together([optimizer])):
            with pytest.raises(ValueError, match="does not go with QKClip: "):
                QKClip(one)
    else:
        QKClip(optimizer)


@pytest.mark.parametrize("tau", [0, -3.0, float("nan"), "5", True])
def test_tau_that_is_set_is_checked(tau):
    clip = QKClip(still(rows_of(4)), 2.0)
    with pytest.raises(ValueError, match=r"Invalid tau value: .*; it must be a finite number above 0"):
        clip.tau = tau
    clip.tau = 3.0
    assert clip.tau == 3.0


@pytest.mark.parametrize("on_device", [False, True])
def test_a_step_that_is_not_taken_multiplies_nothing_and_the_next_one_does(on_device):
    """Where a GPU decides, the decision is a tensor, for which another stands in."""
    query, key = rows_of(4, 4)
    optimizer = steprule.SGD([query, key], lr=0.0, nonfinite="skip")
    seen = QKClip(optimizer, 1.0).watch(query, key, 2)
    services = optimizer._core.services
    for wrong, after in ((True, 1.0), (False, 0.5), (False, 0.5)):
        for param in (query, key):
            param.grad = torch.full_like(param, float("nan") if wrong else 1.0)
        if wrong:
            seen(torch.tensor([4.0, 4.0]))
        with pytest.MonkeyPatch.context() as patch:
            if on_device:
                told = torch.tensor(wrong)
                patch.setattr(
                    type(services), "found", property(lambda _, told=told: told, lambda *_: None), raising=False
                )
            optimizer.step()
        assert query.eq(after).all() and key.eq(after).all()


@pytest.mark.parametrize("make", [steprule.SGD, torch.optim.SGD, functools.partial(torch.optim.SGD, fused=True)])
def test_a_step_that_a_scaler_skips_multiplies_nothing(make):
    query, key = rows_of(4, 4)
    optimizer = make([query, key], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))
    seen = QKClip(optimizer, 1.0).watch(query, key, 2)
    for value, after in ((float("inf"), 1.0), (1.0, 0.5)):
        for param in (query, key):
            param.grad = torch.full_like(param, value)
        seen(torch.tensor([4.0, 4.0]))
        scaler.step(optimizer)
        scaler.update()
        assert query.eq(after).all() and key.eq(after).all()


def test_gradients_taken_as_0_are_a_step():
    query, key = rows_of(4, 4)
    optimizer = steprule.SGD([query, key], lr=0.0, nonfinite="zero")
    query.grad, key.grad = torch.full_like(query, float("nan")), torch.ones_like(key)
    QKClip(optimizer, 1.0).watch(query, key, 2)(torch.tensor([4.0, 4.0]))
    optimizer.step()
    assert query.eq(0.5).all() and key.eq(0.5).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_infinite_logits_count_as_the_largest_numbers(dtype):
    query, key = attention(2, 2)
    old = copy.deepcopy((query, key))
    optimizer = still([*query, *key])
    clip = QKClip(optimizer, 4.0)
    clip.watch(query, key, 2)(torch.tensor([torch.inf, -torch.inf], dtype=dtype))
    optimizer.step()
    most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    assert clip.largest[0].tolist() == [most, -torch.inf]
    torch.testing.assert_close(query[0][:SIZE], old[0][0][:SIZE] * (4.0 / most) ** 0.5, rtol=1e-6, atol=0)
    assert torch.equal(query[0][SIZE:], old[0][0][SIZE:])


def test_the_smallest_tau_makes_no_nan():
    query, key = rows_of(4, 4)
    optimizer = still([query, key])
    QKClip(optimizer, 1e-30).watch(query, key, 2)(torch.tensor([3e38, 1.0]))
    optimizer.step()
    assert query.isfinite().all() and key.isfinite().all()


@pytest.mark.parametrize("first", [float("nan"), -5.0])
def test_a_head_without_a_number_is_left_out_of_a_call(first):
    query, key = rows_of(2, 2)
    optimizer = still([query, key])
    seen = QKClip(optimizer, 1.0).watch(query, key, 2)
    seen(torch.tensor([first, 4.0]))
    seen(torch.ones(3, 2, 0, 5))
    seen(torch.ones(2, 5, 5, device="meta"))
    optimizer.step()
    assert query[:, 0].tolist() == key[:, 0].tolist() == [1.0, 0.5]
    seen(torch.tensor([first, 1.0]))
    seen(torch.tensor([4.0, 1.0]))
    optimizer.step()
    assert query[:, 0].tolist() == key[:, 0].tolist() == [0.5, 0.5]


def test_what_makes_no_sense_is_refused():
    query, key = attention(2, 2)
    optimizer = still([*query, *key])
    with pytest.raises(ValueError, match="Invalid tau value: 0"):
        QKClip(optimizer, 0)
    clip = QKClip(optimizer)
    with pytest.raises(ValueError, match="heads=2 must be a multiple of key_heads=4"):
        clip.watch(query, key, 2, 4)
    with pytest.raises(
        ValueError, match=r"query: rows None:None of a parameter of shape \(6, 6\) are not those of 4 heads"
    ):
        clip.watch(query, key, 4)
    with pytest.raises(ValueError, match="is not one of the optimizer's"):
        clip.watch(torch.nn.Parameter(torch.ones(6, 6)), key, 2)
    for wrong in (0, 1.5, True, "2"):
        with pytest.raises((TypeError, ValueError), match="heads"):
            clip.watch(query, key, wrong)
        with pytest.raises((TypeError, ValueError), match="key_heads"):
            clip.watch(query, key, 2, wrong)
    linear = torch.nn.Linear(2, 2)
    for wrong in (None, 3, [], "weight", linear, [query[0], None], (query[0], 3)):
        with pytest.raises(TypeError, match="key must be a weight, a pair of one and the slice of its rows, or a list"):
            clip.watch(query, wrong, 2)
    with pytest.raises(ValueError, match=r"query: rows 0:8 of a parameter of shape \(6, 6\) are not those of 2 heads"):
        clip.watch((query[0], slice(0, 8)), key, 2)
    with pytest.raises(ValueError, match=r"query: rows None:None of a parameter of shape \(\) are not"):
        clip.watch(torch.nn.Parameter(torch.ones(())), key, 2)
    with pytest.raises(TypeError, match="optimizer must be an optimizer, not Linear"):
        QKClip(linear)
    seen = clip.watch(query, key, 2)
    for wrong in ([1.0, 2.0], None, torch.ones(2, dtype=torch.int64)):
        with pytest.raises(TypeError, match="logits must be a tensor of floating-point numbers, not"):
            seen(wrong)
    for wrong in (torch.ones(3), torch.ones(2, 2), torch.ones(1, 3, 5, 5), torch.ones(())):
        with pytest.raises(ValueError, match="are neither"):
            seen(wrong)


def test_processes_use_the_largest_logits_of_all(monkeypatch):
    """With a stand-in for the exchange."""
    query, key = attention(2, 2)
    old = copy.deepcopy(query)
    optimizer = still([*query, *key])
    clip = QKClip(optimizer, 4.0)
    clip.watch(query, key, 2)(torch.tensor([1.0, 2.0]))
    monkeypatch.setattr("steprule.services.qk_clip.processes", lambda: 2)
    others = torch.tensor([16.0, -torch.inf])

    def reduce(x, how):
        assert how is torch.distributed.ReduceOp.MAX
        x.copy_(torch.maximum(x, others))

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    optimizer.step()
    assert clip.largest[0].tolist() == [16.0, 2.0]
    assert torch.equal(query[0][:SIZE], old[0][:SIZE] * 0.5) and torch.equal(query[0][SIZE:], old[0][SIZE:])
