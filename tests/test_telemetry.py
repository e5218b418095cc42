"""Telemetry: that the numbers are those of the step, and that the step is what it is without it."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from dropin import ON, TELLING, all_params, random, snapshot, torchs
from settings import FAMILIAR, FAMILIAR_IDS
from torch import nn

import steprule
from steprule.engine import plan
from steprule.rules import OWN
from steprule.services import ClipAdaptive, Telemetry
from steprule.services.telemetry import QUANTITIES

ADAMW = OWN["adamw"], OWN["adamw"].hyperparameters
SHAPES = ((33, 70), (5,), (), (3, 137))
LARGE = (301, 257)  # more than one thread does alone, and more than is added up at once
EIGHT_BIT = {"states": "8bit"}
SEVEN_BYTES = {"weights": "24bit", "states": "8bit"}


def telling(hyper):
    """Hyperparameters at which weights move a lot and decay; the kernels are those of the defaults."""
    return {name: TELLING.get(name, value) for name, value in hyper.items()} | {"weight_decay": ON["weight_decay"]}


def make_params(dtype=torch.float32, shapes=SHAPES):
    return [nn.Parameter(random(shape, i, dtype)) for i, shape in enumerate(shapes)]


def strided(dtype=torch.float32):
    return [nn.Parameter(random((24, 80), 0, dtype)[:, ::2]), *make_params(dtype)]


def complex_ones():
    return [nn.Parameter(torch.complex(random((4, 3), 0), random((4, 3), 1)).to(torch.complex64)), *make_params()]


def channels_last():
    return [nn.Parameter(random((6, 8, 4, 5), 0, torch.float32).to(memory_format=torch.channels_last))]


def make(dtype=torch.float32, rule=ADAMW[0], hyper=ADAMW[1], shapes=SHAPES, telemetry=1, **options):
    options = {**telling(hyper), **options}
    return getattr(steprule, rule.__name__)(make_params(dtype, shapes), **options, telemetry=telemetry)


def set_grads(optimizer, seed, active=None, scale=1.0):
    """Random gradients, with some zeros, for the parameters with these indices."""
    for i, p in enumerate(all_params(optimizer)):
        grad = random(p.shape, 1000 * seed + i)
        if p.is_complex():
            grad = torch.complex(grad, random(p.shape, 1000 * seed + 500 + i))
        grad = torch.where(grad.abs() > 0.2, grad, 0) * scale
        p.grad = torch.empty_like(p, requires_grad=False).copy_(grad) if active is None or i in active else None


def tensors(optimizer):
    """All weights and states."""
    return [x for one in snapshot(optimizer) for x in (one.values() if isinstance(one, dict) else [one])]


def as_numpy(tensor):
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()


def as_stepped(optimizer):
    """Takes a step; for each parameter with a gradient that gradient, its weights before and after, in float64."""
    active = [p for p in all_params(optimizer) if p.grad is not None]
    before = [as_numpy(optimizer.read(p)) for p in active]
    optimizer.step()
    return [(as_numpy(p.grad), old, as_numpy(optimizer.read(p))) for p, old in zip(active, before, strict=True)]


def quantities(grad, before, after):
    """What telemetry says of a step by its definition: an element is lost if its gradient did not move its weight."""
    size = np.size(before)
    update = after - before
    norms = [float(np.linalg.norm(np.ravel(x))) for x in (grad, update, after)]
    tops = [float(np.max(np.abs(x), initial=0.0)) for x in (grad, update, after)]
    lost = np.count_nonzero((update == 0) & (grad != 0)) / size if size else math.nan
    return dict(zip(QUANTITIES, [*norms, norms[1] / norms[2] if norms[2] else math.nan, lost, *tops], strict=True))


def together(seen):
    return quantities(*(np.concatenate([np.ravel(x) for x in one]) for one in zip(*seen, strict=True)))


def check(record, seen, rel=1e-5, names=None):
    """A record says what was seen of the step, of each parameter and of all together."""
    expected = [*map(quantities, *zip(*seen, strict=True)), together(seen)] if seen else []
    got = [*record["parameters"].values(), record["total"]]
    assert names is None or list(record["parameters"]) == names
    for mine, its in zip(got, expected, strict=True):
        assert mine == pytest.approx(its, rel=rel, abs=1e-30, nan_ok=True)


# The numbers


@pytest.mark.parametrize(
    ("rule", "hyper", "dtype", "options"),
    [*((*one, torch.float32, {}) for one in FAMILIAR), (*ADAMW, torch.float64, {}), (*ADAMW, torch.float32, EIGHT_BIT)],
    ids=[*FAMILIAR_IDS, "float64", "8bit"],
)
def test_numbers_of_a_step(rule, hyper, dtype, options):
    """Rows of 70 and 137 fill no group of 128."""
    optimizer = make(dtype, rule, hyper, (*SHAPES, LARGE), **options)
    for seed in (1, 2, 3):
        set_grads(optimizer, seed)
        seen = as_stepped(optimizer)
        check(optimizer.telemetry.latest, seen, names=["0.0", "0.1", "0.2", "0.3", "0.4"])
    assert optimizer._core.plans.current is not None  # it was the compiled engine


def test_numbers_where_rows_have_some_of_their_own_and_end_within_a_block():
    optimizer = make(torch.float32, OWN["came"], {"lr": 0.01}, ((65, 144), (3, 130)), **EIGHT_BIT)
    for seed in (1, 2, 3):
        set_grads(optimizer, seed)
        seen = as_stepped(optimizer)
        check(optimizer.telemetry.latest, seen)
    assert optimizer._core.plans.current is not None


def test_numbers_of_seven_bytes():
    """Before it is rounded, an update differs from what the bits say by the weights' spacing at most."""
    optimizer = make(torch.bfloat16, **SEVEN_BYTES)
    for seed in (1, 2, 3):
        set_grads(optimizer, seed)
        seen = as_stepped(optimizer)
        latest = optimizer.telemetry.latest
        records = [*latest["parameters"].values(), latest["total"]]
        for mine, its in zip(records, [*map(quantities, *zip(*seen, strict=True)), together(seen)], strict=True):
            for what in ("norm", "largest"):
                grad, update, weight = [name for name in QUANTITIES if what in name]
                spacing = 2.0**-15 * its[weight]
                assert mine[grad] == pytest.approx(its[grad], rel=1e-5)
                assert mine[update] == pytest.approx(its[update], rel=1e-5, abs=spacing)
                assert mine[weight] == pytest.approx(its[weight], rel=1e-5, abs=spacing)
            assert mine["update_to_weight"] == pytest.approx(mine["update_norm"] / mine["weight_norm"], rel=1e-9)
            assert mine["lost_share"] == 0
    assert optimizer._core.plans.current is not None


def halves(layout, **options):
    """An optimizer whose updates are near the spacing of its bfloat16 weights."""
    params = make_params(torch.bfloat16) if layout == "compiled" else strided(torch.bfloat16)[:1]
    return steprule.AdamW(params, lr=2e-3, weight_decay=0.0, telemetry=1, **options)


@pytest.mark.parametrize("layout", ["compiled", "strided"])
def test_updates_that_are_lost_to_rounding(layout):
    optimizer = halves(layout)
    for seed in (1, 2):
        set_grads(optimizer, seed)
        seen = as_stepped(optimizer)
        latest = optimizer.telemetry.latest
        for mine, its in zip(latest["parameters"].values(), map(quantities, *zip(*seen, strict=True)), strict=True):
            assert mine["lost_share"] == its["lost_share"]
            assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=1e-5)
            assert mine["weight_norm"] == pytest.approx(its["weight_norm"], rel=2**-8)
        assert latest["total"]["lost_share"] == together(seen)["lost_share"]
        assert 0.2 < latest["total"]["lost_share"] < 0.8


@pytest.mark.parametrize(
    ("layout", "options"),
    [("compiled", {}), ("strided", {}), ("strided", {"weights": "stochastic"}), ("compiled", SEVEN_BYTES)],
    ids=str,
)
def test_an_update_is_the_formulas_in_every_engine(layout, options):
    """Not what rounding has made of it, which is nothing for many weights and far too much for some."""
    optimizer = halves(layout, **options)
    its_params = [nn.Parameter(p.detach().double()) for p in all_params(optimizer)]
    its = torchs("AdamW")(its_params, lr=2e-3, weight_decay=0.0)
    set_grads(optimizer, 1)
    before = [p.detach().clone() for p in its_params]
    for p, q in zip(all_params(optimizer), its_params, strict=True):
        q.grad = p.grad.double()
    optimizer.step()
    its.step()
    moved = [float((p.detach() - old).norm()) for p, old in zip(its_params, before, strict=True)]
    assert [one["update_norm"] for one in optimizer.telemetry.latest["parameters"].values()] == pytest.approx(
        moved, rel=0.01
    )


@pytest.mark.parametrize(
    ("rule", "make_them", "options"),
    [("sgd", strided, {}), ("adamw", strided, {}), ("sgd", complex_ones, {}), ("adamw", complex_ones, {}),
     ("adamw", channels_last, EIGHT_BIT)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)  # fmt: skip
def test_numbers_of_what_the_compiled_engine_does_not_take(rule, make_them, options):
    optimizer = getattr(steprule, OWN[rule].__name__)(make_them(), lr=0.05, **options, telemetry=1)
    for seed in (1, 2, 3):
        set_grads(optimizer, seed)
        seen = as_stepped(optimizer)
        check(optimizer.telemetry.latest, seen)
    assert optimizer._core.plans.current is None


def test_numbers_of_sparse_gradients():
    p = nn.Parameter(random((9, 4), 0, torch.float32))
    optimizer = steprule.SGD([p], lr=0.1, telemetry=1)
    p.grad = torch.sparse_coo_tensor([[1, 3, 1]], random((3, 4), 1, torch.float32), (9, 4))  # row 1 comes twice
    seen = as_stepped(optimizer)
    check(optimizer.telemetry.latest, seen)


@pytest.mark.parametrize("scale", [1e-26, 1e26])
def test_the_largest_show_where_squares_are_no_float32_numbers(scale):
    optimizer = make(shapes=[(7, 9)])
    set_grads(optimizer, 1, scale=scale)
    (seen,) = as_stepped(optimizer)
    for name in ("largest_grad", "largest_update", "largest_weight"):
        assert optimizer.telemetry.latest["total"][name] == pytest.approx(quantities(*seen)[name], rel=1e-5, abs=0)


@pytest.mark.parametrize("make_them", [make_params, strided])
def test_numbers_are_those_before_clipping(make_them):
    optimizer = steprule.SGD(make_them(), lr=1.0, clip=0.5, telemetry=1)
    set_grads(optimizer, 1)
    seen = as_stepped(optimizer)
    total = optimizer.telemetry.latest["total"]
    check(optimizer.telemetry.latest, seen)
    assert total["grad_norm"] == pytest.approx(float(optimizer.grad_norm), rel=1e-5)
    assert total["grad_norm"] > 10
    assert total["update_norm"] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("make_them", [make_params, strided])
def test_numbers_with_a_factor_for_each_row(make_them):
    optimizer = steprule.SGD([*make_them(), *make_params(shapes=[LARGE])], lr=1.0, clip=ClipAdaptive(0.1), telemetry=1)
    for seed in (1, 2):
        set_grads(optimizer, seed)
        seen = as_stepped(optimizer)
        latest = optimizer.telemetry.latest
        check(latest, seen)
        assert (
            latest["total"]["update_to_weight"] < 0.15 < latest["total"]["grad_norm"] / latest["total"]["weight_norm"]
        )


@pytest.mark.parametrize("make_them", [make_params, strided])
def test_elements_that_are_zeroed_count_as_zero(make_them):
    optimizer = steprule.AdamW(make_them(), lr=0.05, weight_decay=0.0, nonfinite="zero", telemetry=1)
    for seed in (1, 2):
        set_grads(optimizer, seed)
        for p, bad in zip(all_params(optimizer)[:2], (math.nan, -math.inf), strict=True):
            p.grad[-1] = bad
        seen = as_stepped(optimizer)
        seen = [(np.where(np.isfinite(grad), grad, 0.0), *others) for grad, *others in seen]
        check(optimizer.telemetry.latest, seen)


@pytest.mark.parametrize("make_them", [make_params, strided])
def test_gradients_are_shown_unscaled(make_them):
    optimizer = steprule.AdamW(make_them(), lr=0.05, telemetry=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    set_grads(optimizer, 1, scale=1024.0)
    before = [as_numpy(p) for p in all_params(optimizer)]
    scaler.step(optimizer)
    after = [as_numpy(p) for p in all_params(optimizer)]
    grads = [as_numpy(p.grad) for p in all_params(optimizer)]  # which the scaler has unscaled
    assert max(float(np.abs(grad).max()) for grad in grads) < 100
    check(optimizer.telemetry.latest, list(zip(grads, before, after, strict=True)))


@pytest.mark.parametrize("make_them", [make_params, strided])
def test_what_is_not_finite_shows(make_them):
    optimizer = steprule.AdamW(make_them(), lr=0.05, telemetry=1)
    set_grads(optimizer, 1)
    nan, inf, *_ = all_params(optimizer)
    nan.grad[2, 1], inf.grad[0 if inf.dim() == 1 else (0, 0)] = math.nan, -math.inf
    with np.errstate(invalid="ignore"):
        seen = as_stepped(optimizer)
        check(optimizer.telemetry.latest, seen)
    parameters = list(optimizer.telemetry.latest["parameters"].values())
    assert math.isnan(parameters[0]["grad_norm"]) and math.isnan(parameters[0]["largest_grad"])
    assert parameters[1]["grad_norm"] == parameters[1]["largest_grad"] == math.inf
    assert all(map(math.isfinite, parameters[2].values()))
    assert math.isnan(optimizer.telemetry.latest["total"]["largest_grad"])


@pytest.mark.parametrize(
    ("dtype", "options"), [(torch.float32, {}), (torch.float32, EIGHT_BIT), (torch.bfloat16, SEVEN_BYTES)], ids=str
)
def test_parameters_without_elements(dtype, options):
    optimizer = make(dtype, shapes=((0,), (0, 256), (4, 256)), **options)
    set_grads(optimizer, 1)
    seen = as_stepped(optimizer)
    latest = optimizer.telemetry.latest
    empty, wide, full = latest["parameters"].values()
    for one in (empty, wide):
        assert [one[name] for name in QUANTITIES if "norm" in name or "largest" in name] == [0.0] * 6
        assert math.isnan(one["update_to_weight"]) and math.isnan(one["lost_share"])
    assert full["grad_norm"] == pytest.approx(quantities(*seen[2])["grad_norm"], rel=1e-5)
    assert latest["total"] == full


# The step is what it is without it

EVERYWHERE = [
    *((*one, torch.float32, {}) for one in FAMILIAR), (*ADAMW, torch.float64, {}), (*ADAMW, torch.float32, EIGHT_BIT),
    (*ADAMW, torch.bfloat16, {}), (*ADAMW, torch.float16, {}), (*ADAMW, torch.bfloat16, SEVEN_BYTES),
]  # fmt: skip


def assert_same_bits(sides):
    """After some steps."""
    for optimizer in sides:
        for seed in range(1, 5):
            set_grads(optimizer, seed)
            optimizer.step()
    plain, *others = map(tensors, sides)
    for other in others:
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("rule", "hyper", "dtype", "options"),
    EVERYWHERE,
    ids=[*FAMILIAR_IDS, "float64", "8bit", "bfloat16", "float16", "7 bytes"],
)
def test_weights_and_states_are_the_same_bits_without_it(rule, hyper, dtype, options, weight_decay):
    """In vectors and in the rest of a loop, and where several threads work."""
    options = {**options, "weight_decay": weight_decay}
    assert_same_bits([make(dtype, rule, hyper, (*SHAPES, LARGE), t, **options) for t in (None, 1, 3)])


@pytest.mark.parametrize("clip", [0.5, ClipAdaptive(0.1)], ids=str)
def test_clipped_steps_are_the_same_bits_without_it(clip):
    params = [make_params(shapes=(*SHAPES, LARGE)) for _ in range(3)]
    options = [{"lr": 0.5, "weight_decay": 0.1, "clip": clip, "telemetry": t} for t in (None, 1, 3)]
    assert_same_bits([steprule.SGD(p, **one) for p, one in zip(params, options, strict=True)])


# Sums are the same whatever else there is


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("AdamW", torch.float32, {}),
        ("AdamW", torch.float32, EIGHT_BIT),
        ("AdamW", torch.bfloat16, SEVEN_BYTES),
        ("SGD", torch.float32, {"clip": ClipAdaptive(0.1)}),
    ],
    ids=str,
)
def test_sums_do_not_depend_on_threads_or_on_what_else_is_stepped(name, dtype, options, monkeypatch):
    """Chunks are longer where there is more to do; here they are made so."""
    records = []
    threads = torch.get_num_threads()
    for chunk, workers, more in [(32768, 1, ()), (32768, 2, LARGE), (4096, 2, ()), (1 << 18, 2, (9, 40))]:
        monkeypatch.setattr(plan, "CHUNK", chunk)
        torch.set_num_threads(workers)
        try:
            params = make_params(dtype, ((1501, 137), (200_001,), (40, 33), (64, 2048)))
            optimizer = getattr(steprule, name)(params, lr=0.05, **options, telemetry=1)
            if more:
                optimizer.add_param_group({"params": make_params(dtype, [more]), "lr": 0.1})
            for seed in (1, 2):
                set_grads(optimizer, seed)
                optimizer.step()
        finally:
            torch.set_num_threads(threads)
        records.append({k: v for k, v in optimizer.telemetry.latest["parameters"].items() if k.startswith("0.")})
    assert records[0] == records[1] == records[2] == records[3]


# Which steps, and what they are called


def test_every_so_many_steps():
    optimizer = make(telemetry=3)
    seen = {}
    for step in range(1, 8):
        set_grads(optimizer, step)
        seen[step] = as_stepped(optimizer)
    assert [record["step"] for record in optimizer.telemetry.records] == [3, 6]
    for record in optimizer.telemetry.records:
        check(record, seen[record["step"]])


def test_a_telemetry_of_ones_own():
    own = Telemetry(every=2, keep=2)
    optimizer = make(telemetry=own)
    for seed in range(1, 8):
        set_grads(optimizer, seed)
        optimizer.step()
    assert optimizer.telemetry is own
    assert [record["step"] for record in own.records] == [4, 6]


def test_without_it_there_is_none():
    assert make(telemetry=None).telemetry is None
    assert make(telemetry=None, clip=1.0).telemetry is None


def test_some_parameters_have_gradients():
    optimizer = make()
    for active in [(0, 2), (1,), (0, 1, 2, 3), (1, 3), (1, 3)]:
        set_grads(optimizer, 1, active)
        seen = as_stepped(optimizer)
        check(optimizer.telemetry.latest, seen, names=[f"0.{i}" for i in active])
    set_grads(optimizer, 1, ())
    optimizer.step()
    assert [record["step"] for record in optimizer.telemetry.records] == [1, 2, 3, 4, 5]


def test_names_of_parameters():
    model = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(2, 1)})
    named = list(model.named_parameters())
    groups = [{"params": named[2:], "lr": 0.1}, {"params": named[:2]}]
    for params, names in [
        (named, ["first.weight", "first.bias", "second.weight", "second.bias"]),
        (groups, ["second.weight", "second.bias", "first.weight", "first.bias"]),
        (model.parameters(), ["0.0", "0.1", "0.2", "0.3"]),
        ([{**g, "params": [p for _, p in g["params"]]} for g in groups], ["0.0", "0.1", "1.0", "1.1"]),
    ]:
        optimizer = steprule.AdamW(params, telemetry=1)
        set_grads(optimizer, 1)
        optimizer.step()
        assert list(optimizer.telemetry.latest["parameters"]) == names


def test_records_keep_the_parameters_order_whatever_steps_them():
    """A strided parameter between two that are compiled, of two dtypes."""
    params = [
        *make_params(shapes=[(3,)]),
        *strided()[:1],
        *make_params(torch.float64, [(4,)]),
        *make_params(shapes=[()]),
    ]
    optimizer = steprule.AdamW([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], telemetry=1)
    set_grads(optimizer, 1)
    seen = as_stepped(optimizer)
    check(optimizer.telemetry.latest, seen, names=["0.0", "0.1", "1.0", "1.1"])


def test_clipped_and_skipped_steps_are_in_the_records():
    optimizer = make(clip=1.0, nonfinite="skip")
    for scale in (1.0, 1e-6, math.nan, math.nan, 1.0):
        set_grads(optimizer, 1, scale=scale)
        optimizer.step()
    counts = [[r[k] for k in ("step", "clipped_steps", "skipped_steps")] for r in optimizer.telemetry.records]
    assert counts == [[1, 1, 0], [2, 1, 0], [3, 2, 2]]


def test_a_resumed_run_goes_on_counting():
    optimizer, resumed = make(telemetry=3), make(telemetry=3)
    for seed in (1, 2):
        set_grads(optimizer, seed)
        optimizer.step()
    resumed.load_state_dict(optimizer.state_dict())
    for seed in (3, 4):
        set_grads(resumed, seed)
        resumed.step()
    assert [record["step"] for record in resumed.telemetry.records] == [3]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_keep_their_own_records(how):
    optimizer = make(telemetry=2)
    for seed in (1, 2, 3):
        set_grads(optimizer, seed)
        optimizer.step()
    copied = how(optimizer)
    set_grads(copied, 4)
    seen = as_stepped(copied)
    assert [record["step"] for record in copied.telemetry.records] == [2, 4]
    assert [record["step"] for record in optimizer.telemetry.records] == [2]
    check(copied.telemetry.latest, seen)


@pytest.mark.parametrize("telemetry", [0, -1, True, 1.0, "2"])
def test_a_number_of_steps_that_makes_no_sense(telemetry):
    with pytest.raises(ValueError) as error:
        make(telemetry=telemetry)
    assert str(error.value) == (
        f"telemetry={telemetry!r} must be an int of 1 or more (record every so many steps), a steprule.services.Telemetry, "
        "or None"
    )


def test_it_is_for_the_whole_optimizer():
    optimizer = make()
    with pytest.raises(ValueError, match=r"telemetry=2 in a parameter group: it is for the whole optimizer"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "telemetry": 2})
    with pytest.raises(ValueError, match="telemetry and differentiable=True do not go together"):
        make(differentiable=True)
