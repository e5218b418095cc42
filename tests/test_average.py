"""The average of the weights: what it is, where it is kept, and that training does not notice it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import pickle

import pytest
import torch
from dropin import ON, TELLING, all_params, assert_unchanged, random, same_tensor, snapshot, torchs
from settings import FAMILIAR, FAMILIAR_IDS
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import steprule
from steprule.rules import OWN
from steprule.services import Average

SHAPES = ((33, 70), (5,), ())
DECAY = 0.9
IN_TORCH = [(rule, hyper) for rule, hyper in FAMILIAR if hasattr(torch.optim, rule.__name__)]
IN_TORCH_IDS = [
    name for (rule, _), name in zip(FAMILIAR, FAMILIAR_IDS, strict=True) if hasattr(torch.optim, rule.__name__)
]
SEVEN_BYTES = {"weights": "24bit", "states": "8bit"}
ADAMW = OWN["adamw"], OWN["adamw"].hyperparameters

# A dtype and a format of weights, with the spacing of the average's numbers, relative to them.
FORMATS = [
    (torch.float32, {}, 2.0**-23), (torch.bfloat16, {}, 2.0**-23), (torch.bfloat16, {"weights": "stochastic"}, 2.0**-7),
    (torch.bfloat16, {"weights": "24bit"}, 2.0**-15), (torch.bfloat16, {"weights": "32bit"}, 2.0**-23),
    (torch.float16, {"weights": "24bit"}, 2.0**-17), (torch.bfloat16, SEVEN_BYTES, 2.0**-15),
]  # fmt: skip
FORMAT_IDS = ["-".join([str(dtype), *options.values()]) for dtype, options, _ in FORMATS]
KINDS = [Average(DECAY), Average(DECAY, warmup=True), Average(DECAY, bias_correction=True)]
SOME_FORMATS = pytest.mark.parametrize(("dtype", "options"), [(f[0], f[1]) for f in FORMATS], ids=FORMAT_IDS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=["plain", "warmup", "bias_correction"])


def telling(hyper):
    """Hyperparameters at which weights move a lot and decay; the kernels are those of the defaults."""
    return {name: TELLING.get(name, value) for name, value in hyper.items()} | {"weight_decay": ON["weight_decay"]}


def make_params(dtype=torch.float32, shapes=SHAPES):
    return [nn.Parameter(random(shape, i, dtype)) for i, shape in enumerate(shapes)]


def make(dtype=torch.float32, rule=ADAMW[0], hyper=ADAMW[1], shapes=SHAPES, **options):
    options = {**telling(hyper), **options}
    return getattr(steprule, rule.__name__)(make_params(dtype, shapes), **options)


def set_grads(params, seed, active=None):
    """Random gradients, laid out as their parameters are, for those with these indices."""
    for i, p in enumerate(params):
        grad = random(p.shape, 1000 * seed + i)
        if p.is_complex():
            grad = torch.complex(grad, random(p.shape, 1000 * seed + 500 + i))
        p.grad = torch.empty_like(p, requires_grad=False).copy_(grad) if active is None or i in active else None


def train(optimizer, seeds, active=None):
    for seed in seeds:
        set_grads(all_params(optimizer), seed, active)
        optimizer.step()


def history(optimizer, steps, seed=1):
    """Takes steps; for each parameter its weights after each, in float64."""
    seen = [[] for _ in all_params(optimizer)]
    for step in range(steps):
        train(optimizer, [seed + step])
        for one, p in zip(seen, all_params(optimizer), strict=True):
            one.append(optimizer.read(p).double())
    return seen


def average_of(optimizer, p):
    return optimizer.read(p, "param_average").double()


def debiased(weights, decay):
    """The average that begins at 0 and is divided by the sum of its weights."""
    total = sum((1 - decay) * decay**age * w for age, w in enumerate(reversed(weights)))
    return total / (1 - decay ** len(weights))


def assert_same(one, other):
    """Weights and states are the same bits."""
    for a, b in zip(snapshot(one), snapshot(other), strict=True):
        for x, y in zip(*((s.values() if isinstance(s, dict) else [s]) for s in (a, b)), strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y)


def without_average(state):
    return {name: value for name, value in state.items() if not name.startswith("param_average")}


# What it is


class Twins:
    """steprule's average beside torch's AveragedModel over the optimizer of torch.optim."""

    def __init__(self, rule, hyper, make_them, decay=DECAY):
        self.params, self.its_params = make_them(), make_them()
        self.mine = getattr(steprule, rule.__name__)(self.params, **telling(hyper), average=decay)
        self.its = torchs(rule.__name__)(self.its_params, **telling(hyper))
        self.averaged = AveragedModel(nn.ParameterList(self.its_params), multi_avg_fn=get_ema_multi_avg_fn(decay))

    def step(self, seed, active=None):
        for params, optimizer in ((self.params, self.mine), (self.its_params, self.its)):
            set_grads(params, seed, active)
            optimizer.step()
        self.averaged.update_parameters(nn.ParameterList(self.its_params))
        for i, (p, theirs) in enumerate(zip(self.params, self.averaged.module, strict=True)):
            if p in self.mine.state:
                mine = self.mine.state[p]["param_average"]
                same_tensor(mine, theirs.detach(), f"average of parameter {i} after step {seed}", strides=False)


@pytest.mark.parametrize(
    ("rule", "hyper", "dtype"),
    [*((*one, torch.float32) for one in IN_TORCH), (*ADAMW, torch.float64)],
    ids=[*IN_TORCH_IDS, "float64"],
)
def test_as_torch_averages(rule, hyper, dtype):
    twins = Twins(rule, hyper, lambda: make_params(dtype))
    for seed in range(1, 6):
        twins.step(seed)
    assert twins.mine._core.plans.current is not None  # it was the compiled engine


def strided():
    return [nn.Parameter(random((4, 6), 0, torch.float32)[:, ::2]), *make_params(shapes=SHAPES[1:])]


def complex_ones():
    return [nn.Parameter(torch.complex(random((4, 3), 0), random((4, 3), 1)).to(torch.complex64)), *make_params()]


@pytest.mark.parametrize("make_them", [strided, complex_ones])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_as_torch_averages_what_the_compiled_engine_does_not_take(rule, make_them):
    twins = Twins(OWN[rule], OWN[rule].hyperparameters, make_them)
    for seed in range(1, 6):
        twins.step(seed)
    assert twins.mine._core.plans.current is None
    assert all("param_average" in twins.mine.state[p] for p in twins.params)


@pytest.mark.parametrize("make_them", [make_params, strided, complex_ones])
def test_averages_of_parameters_without_a_gradient_move_as_torchs(make_them):
    """At some steps, and for several in a row, so that the pass that is kept moves them too."""
    twins = Twins(*ADAMW, make_them)
    for seed, active in enumerate([(0, 1, 2, 3), (0, 2, 3), (0, 2, 3), (0, 2, 3), (1,), (1,), (0, 1, 2)], 1):
        twins.step(seed, active)


@pytest.mark.parametrize("make_them", [make_params, strided, complex_ones])
def test_a_first_gradient_that_comes_late(make_them):
    """torch's average of a parameter that rests is the parameter, and that is where its first step starts from."""
    twins = Twins(*ADAMW, make_them)
    for seed, active in enumerate([(1, 2), (1, 2), (0, 1, 2, 3), (0, 1, 2, 3)], 1):
        twins.step(seed, active)


def test_a_step_without_any_gradient():
    twins = Twins(*ADAMW, make_params)
    for seed, active in enumerate([None, None, (), (), None], 1):
        twins.step(seed, active)


def test_the_default_is_torchs():
    assert Average() == Average(inspect.signature(get_ema_multi_avg_fn).parameters["decay"].default)
    assert Average() == Average(0.999, warmup=False, bias_correction=False)


def test_an_average_without_a_past_is_the_weights():
    optimizer = make(torch.float64, average=0)
    train(optimizer, range(1, 4))
    for p in all_params(optimizer):
        torch.testing.assert_close(average_of(optimizer, p), p.detach(), rtol=1e-13, atol=1e-14)


def test_bias_correction():
    optimizer = make(torch.float64, average=Average(DECAY, bias_correction=True))
    for p, weights in zip(all_params(optimizer), history(optimizer, 6), strict=True):
        torch.testing.assert_close(average_of(optimizer, p), debiased(weights, DECAY), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_warmup(decay):
    """At a decay of 0.2, (1 + n) / (10 + n) is the smaller for n = 1 and the larger from n = 2 on."""
    optimizer = make(torch.float64, average=Average(decay, warmup=True))
    for p, weights in zip(all_params(optimizer), history(optimizer, 5), strict=True):
        expected = weights[0]
        for n, new in enumerate(weights[1:], 1):
            share = min(decay, (1 + n) / (10 + n))
            expected = share * expected + (1 - share) * new
        torch.testing.assert_close(average_of(optimizer, p), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("active", [None, (1,)], ids=["stepped", "resting"])
@pytest.mark.parametrize(("dtype", "options", "spacing"), FORMATS, ids=FORMAT_IDS)
def test_an_average_is_kept_in_the_weights_format(dtype, options, spacing, active):
    """But in float32 for weights that are rounded to nearest. Each step's is right but for one rounding."""
    optimizer = make(dtype, **options, average=DECAY)
    train(optimizer, [1])
    p = all_params(optimizer)[0]
    kept = optimizer.state[p]
    assert kept["param_average"].dtype == (p.dtype if options else torch.float32)
    assert ("param_average_correction" in kept) == ("param_correction" in kept)
    assert torch.equal(average_of(optimizer, p), optimizer.read(p).double())  # the first is a copy
    train(optimizer, [2, 3])
    for seed in range(4, 10):
        before = average_of(optimizer, p)
        train(optimizer, [seed], active)
        expected = DECAY * before + (1 - DECAY) * optimizer.read(p).double()
        error = (average_of(optimizer, p) - expected).abs()
        assert bool((error <= spacing * torch.maximum(expected.abs(), before.abs()) + 1e-7).all())


@pytest.mark.parametrize("options", [f[1] for f in FORMATS if f[1]], ids=str)
def test_small_moves_of_an_average_are_not_lost(options):
    """Each is less than a fifth of bfloat16's spacing, and they arrive where float64's do."""
    optimizer = make(torch.bfloat16, shapes=[(64, 128)], **options, average=0.99)
    optimizer.param_groups[0]["lr"] = 0.0
    (p,) = all_params(optimizer)
    for weight, seeds in [(1.0, [1]), (1.0 - 2.0**-4, range(2, 102))]:
        with torch.no_grad():
            p.fill_(weight)
        train(optimizer, seeds)
    expected = 1 - (1 - 0.99**100) * 2.0**-4
    assert abs(float(average_of(optimizer, p).mean()) - expected) < 1e-3


# Training does not notice it


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("rule", "hyper", "dtype", "options"),
    [*((*one, torch.float32, {}) for one in FAMILIAR), *((*ADAMW, *f[:2]) for f in FORMATS[1:])],
    ids=[*FAMILIAR_IDS, *FORMAT_IDS[1:]],
)
def test_weights_and_states_are_the_same_bits_without_it(rule, hyper, dtype, options, weight_decay):
    """In vectors and in the rest of a loop, and where several threads work."""
    options = {**options, "weight_decay": weight_decay}
    shapes = ((301, 257), (33, 70), (5,), ())
    sides = [make(dtype, rule, hyper, shapes, **options, average=average) for average in (None, DECAY)]
    for optimizer in sides:
        train(optimizer, range(1, 5))
        for p in all_params(optimizer):
            optimizer.state[p] = without_average(optimizer.state[p])
    assert_same(*sides)


def test_skipped_steps_do_not_move_it():
    optimizer = make(average=Average(DECAY, bias_correction=True), nonfinite="skip")
    seen = history(optimizer, 3)
    before = snapshot(optimizer)
    for _ in range(2):
        set_grads(all_params(optimizer), 50)
        all_params(optimizer)[1].grad[2] = float("nan")
        optimizer.step()
    assert optimizer.skipped_steps == 2
    assert_unchanged(before, optimizer)
    for p, weights, more in zip(all_params(optimizer), seen, history(optimizer, 2, 10), strict=True):
        expected = debiased(weights + more, DECAY)
        torch.testing.assert_close(average_of(optimizer, p), expected, rtol=1e-6, atol=1e-6)


def test_a_first_step_that_is_skipped_starts_nothing():
    optimizer = make(average=DECAY, nonfinite="skip")
    set_grads(all_params(optimizer), 1)
    all_params(optimizer)[1].grad[2] = float("inf")
    optimizer.step()
    assert not any(optimizer.state.values())
    train(optimizer, [1])
    for p in all_params(optimizer):
        assert torch.equal(optimizer.state[p]["param_average"], p.detach())


def test_a_group_that_is_added_later():
    optimizer = make(average=DECAY)
    train(optimizer, [1, 2])
    new = nn.Parameter(random((6, 40), 9, torch.float32))
    optimizer.add_param_group({"params": [new]})
    start = new.detach().double().clone()
    train(optimizer, [3])
    expected = average_of(optimizer, new)
    ends = torch.stack([start, new.detach().double()])
    assert bool(((ends.amin(0) - 1e-6 <= expected) & (expected <= ends.amax(0) + 1e-6)).all())
    for seed in (4, 5):
        train(optimizer, [seed])
        expected = DECAY * expected + (1 - DECAY) * new.detach().double()
        torch.testing.assert_close(average_of(optimizer, new), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"average=0.5 in a parameter group: it is for the whole optimizer"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "average": 0.5})


# Swapping


@SOME_FORMATS
def test_swapping_and_back_again(dtype, options):
    optimizer, never = (make(dtype, **options, average=DECAY) for _ in range(2))
    for side in (optimizer, never):
        train(side, range(1, 5))
    before = snapshot(optimizer)
    averages = [optimizer.read(p, "param_average") for p in all_params(optimizer)]
    optimizer.swap_average()
    for p, average in zip(all_params(optimizer), averages, strict=True):
        assert torch.equal(optimizer.read(p), average if options else average.to(dtype).float())
    optimizer.swap_average()
    assert_unchanged(before, optimizer)
    for side in (optimizer, never):
        train(side, [5, 6])
    assert_same(optimizer, never)


@pytest.mark.parametrize("make_them", [strided, complex_ones])
def test_swapping_what_the_compiled_engine_does_not_take(make_them):
    optimizer = steprule.AdamW(make_them(), lr=0.05, average=DECAY)
    train(optimizer, [1, 2])
    before = snapshot(optimizer)
    averages = [optimizer.state[p]["param_average"].clone() for p in all_params(optimizer)]
    with optimizer.averaged():
        assert all(torch.equal(p.detach(), one) for p, one in zip(all_params(optimizer), averages, strict=True))
    assert_unchanged(before, optimizer)


def test_autograd_hears_of_a_swap():
    optimizer = make(average=DECAY)
    train(optimizer, [1, 2])
    p = all_params(optimizer)[0]
    loss = (p * p).sum()
    with optimizer.averaged(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_model_is_evaluated_with_its_averages_and_has_its_weights_back():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = steprule.AdamW(model.parameters(), lr=0.05, average=DECAY)
    train(optimizer, range(1, 4))
    twin, x = copy.deepcopy(model), random((6, 4), 0, torch.float32)
    with torch.no_grad():
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.copy_(optimizer.state[p]["param_average"])
    before = snapshot(optimizer)
    with pytest.raises(ZeroDivisionError), optimizer.averaged():
        assert torch.equal(model(x), twin(x))
        raise ZeroDivisionError
    assert_unchanged(before, optimizer)
    train(optimizer, [4])  # and goes on


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outer", ["averaged", "swap_average"])
@pytest.mark.parametrize("inner", ["averaged", "raises", "swap_average", "swaps in it"])
def test_averages_within_averages_are_still_averages(dtype, outer, inner):
    optimizer = make(dtype, average=DECAY)
    train(optimizer, range(1, 4))
    params, before = all_params(optimizer), snapshot(optimizer)
    averages = [optimizer.read(p, "param_average").to(dtype) for p in params]

    def has_averages():
        return all(torch.equal(p.detach(), average) for p, average in zip(params, averages, strict=True))

    with contextlib.ExitStack() as stack:
        if outer == "averaged":
            stack.enter_context(optimizer.averaged())
        else:
            optimizer.swap_average()
            stack.callback(optimizer.swap_average)
        assert has_averages()
        if inner == "swap_average":
            for wanted in (False, True):
                optimizer.swap_average()
                assert has_averages() is wanted
        else:
            with contextlib.suppress(ZeroDivisionError), optimizer.averaged():
                assert has_averages()
                if inner == "raises":
                    raise ZeroDivisionError
                if inner == "swaps in it":
                    optimizer.swap_average()
                    assert not has_averages()
        assert has_averages()
    assert not has_averages()
    assert_unchanged(before, optimizer)


@pytest.mark.parametrize(("dtype", "options"), [(torch.float32, {}), (torch.bfloat16, {})], ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_while_swapped_there_is_no_step(dtype, options, steps):
    """After one step, and after several, when a pass is kept."""
    optimizer = make(dtype, average=DECAY)
    train(optimizer, range(1, 1 + steps))
    start = snapshot(optimizer)
    optimizer.swap_average()
    before = snapshot(optimizer)
    for call in (optimizer.step, optimizer.plain_state_dict):
        with pytest.raises(RuntimeError, match=r"swapped with their averages: call train\(\) or swap_average\(\)"):
            call()
    assert_unchanged(before, optimizer)
    optimizer.swap_average()
    assert_unchanged(start, optimizer)
    optimizer.state_dict()
    optimizer.step()


CONVERSIONS = [
    (torch.float32, {}, torch.bfloat16), (torch.float32, {}, torch.float64), (torch.bfloat16, {}, torch.float32),
    (torch.bfloat16, {"weights": "24bit"}, torch.float32), (torch.bfloat16, {"weights": "24bit"}, torch.float16),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "options", "other"), CONVERSIONS, ids=str)
def test_a_model_that_is_converted_while_it_has_averages_has_its_weights_in_that_dtype(dtype, options, other):
    optimizer = make(dtype, **options, average=DECAY)
    train(optimizer, range(1, 4))
    params = all_params(optimizer)
    weights = [optimizer.read(p) for p in params]
    averages = [optimizer.read(p, "param_average") for p in params]
    with optimizer.averaged():
        nn.ParameterList(params).to(other)
    for p, weight, average in zip(params, weights, averages, strict=True):
        assert p.dtype == other and torch.equal(p.detach(), weight.to(other))
        narrow = average.to(other).float() if dtype == torch.float32 else average  # as the model had it
        assert torch.equal(optimizer.read(p, "param_average"), narrow)
    if other == torch.float16:  # whose low bits are counted from nothing that was lost
        assert all(torch.equal(optimizer.read(p), p.detach().float()) for p in params)


def take_out_the_group(optimizer):
    optimizer.param_groups.pop()


def take_out_a_parameter(optimizer):
    optimizer.param_groups[0]["params"].pop()


def clear_a_state(optimizer):
    optimizer.state[all_params(optimizer)[0]].clear()


def replace_the_states(optimizer):
    for p in all_params(optimizer):
        optimizer.state[p] = copy.deepcopy(optimizer.state[p])


def drop_the_averages(optimizer):
    for p in all_params(optimizer):
        del optimizer.state[p]["param_average"]


def empty_a_parameter(optimizer):
    all_params(optimizer)[0].data = torch.empty(0)


@pytest.mark.parametrize(
    "change",
    [
        take_out_the_group, take_out_a_parameter, clear_a_state, replace_the_states, drop_the_averages, empty_a_parameter,
        lambda optimizer: optimizer.state.clear(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_come_back_whatever_happens_to_groups_and_states(dtype, change):
    optimizer = make(dtype, average=DECAY)
    optimizer.add_param_group({"params": make_params(dtype, [(7,)])})
    train(optimizer, range(1, 4))
    params = all_params(optimizer)
    weights = [p.detach().clone() for p in params]
    with optimizer.averaged():
        change(optimizer)
    assert all(torch.equal(p.detach(), weight) for p, weight in zip(params, weights, strict=True))
    train(optimizer, [4])
    with optimizer.averaged():
        pass


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_listed_twice_has_one_average():
    """It is stepped twice and averaged once, as by torch's AveragedModel, whether it has gradients or not."""

    def twice():
        params = make_params()
        return [params[0], params[1], params[0], params[2]]

    twins = Twins(OWN["sgd"], OWN["sgd"].hyperparameters, twice)
    twins.averaged = AveragedModel(nn.ParameterList(twins.its_params), multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for seed, active in enumerate([None, None, (1,), None, ()], 1):
        twins.step(seed, active)
    before = snapshot(twins.mine)
    averages = [average_of(twins.mine, p) for p in twins.params]
    with twins.mine.averaged():
        assert all(torch.equal(p.double(), average) for p, average in zip(twins.params, averages, strict=True))
    assert_unchanged(before, twins.mine)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_listed_twice_is_exchanged_once():
    weights = []
    for repeat in (1, 2):
        p = nn.Parameter(torch.ones(3))
        optimizer = steprule.ScheduleFreeSGD([p] * repeat, lr=0.1)
        p.grad = torch.ones(3)
        optimizer.step()
        with torch.no_grad():
            p.fill_(0.5)
            optimizer.state[p]["z"].fill_(0.25)
        optimizer.eval()
        weights.append(p.detach().clone())
        optimizer.train()
        torch.testing.assert_close(p.detach(), torch.full((3,), 0.5))
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(("average", "steps"), [(None, 2), (DECAY, 0)])
def test_nothing_to_swap_with(average, steps):
    optimizer = make(average=average)
    train(optimizer, range(steps))
    before = snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="needs averages"):
            optimizer.swap_average()
    with pytest.raises(RuntimeError, match=r"^averaged\(\) needs averages"), optimizer.averaged():
        pass
    assert_unchanged(before, optimizer)
    train(optimizer, [9])


# Checkpoints and copies


def saved_and_loaded(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def give_weights(optimizer, other):
    """Sets an optimizer's parameters to another's."""
    with torch.no_grad():
        for p, q in zip(all_params(optimizer), all_params(other), strict=True):
            p.copy_(q)


@EVERY_KIND
@SOME_FORMATS
def test_a_checkpoint_resumes_bit_for_bit(dtype, options, kind):
    optimizer, resumed = make(dtype, **options, average=kind), make(dtype, **options, average=kind)
    train(optimizer, range(1, 4))
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    give_weights(resumed, optimizer)
    assert_same(optimizer, resumed)
    for side in (optimizer, resumed):
        train(side, range(4, 8))
    assert_same(optimizer, resumed)
    notes = [
        repr(one.state_dict()["param_groups"][0]["services"]) for one in (optimizer, resumed)
    ]  # in which nan is nan
    assert notes[0] == notes[1]


@pytest.mark.parametrize("way", ["eval", "averaged", "swap_average"])
@SOME_FORMATS
def test_a_checkpoint_that_is_saved_with_averages_resumes_bit_for_bit(dtype, options, way):
    """Frameworks save after they evaluate: model and optimizer say together which weights are whose."""
    optimizer, resumed = (make(dtype, **options, average=DECAY) for _ in range(2))
    train(optimizer, range(1, 4))
    train(resumed, [7])
    with optimizer.averaged() if way == "averaged" else contextlib.nullcontext():
        getattr(optimizer, way)() if way != "averaged" else None
        averages = [p.detach().clone() for p in all_params(optimizer)]
        saved = saved_and_loaded(optimizer.state_dict())
        if way != "averaged":
            optimizer.train()
    assert [group["train_mode"] for group in saved["param_groups"]] == [False]
    resumed.load_state_dict(saved)
    with torch.no_grad():
        for p, average in zip(all_params(resumed), averages, strict=True):
            p.copy_(average)
    with pytest.raises(RuntimeError, match=r"call train\(\)"):
        resumed.step()
    resumed.train()
    assert_same(optimizer, resumed)
    assert all("param_trained" not in resumed.state[p] for p in all_params(resumed))
    for side in (optimizer, resumed):
        train(side, range(4, 7))
    assert_same(optimizer, resumed)
    assert resumed.state_dict()["param_groups"][0]["train_mode"] is True


@SOME_FORMATS
def test_the_modes_change_nothing_twice_or_without_averages(dtype, options):
    optimizer, plain = make(dtype, **options, average=DECAY), make(dtype, **options)
    for one in (optimizer, plain):
        for mode in (one.train, one.eval, one.eval, one.train):
            mode()
        train(one, [1, 2])
    before = snapshot(optimizer), snapshot(plain)
    weights = [p.detach().clone() for p in all_params(optimizer)]
    for _ in range(2):
        plain.eval()
        optimizer.eval()
    assert not any(map(torch.equal, weights[:1], all_params(optimizer)))
    with optimizer.averaged():
        assert not torch.equal(weights[0], all_params(optimizer)[0])
    assert_unchanged(before[1], plain)
    train(plain, [3])
    for _ in range(2):
        optimizer.train()
    assert_unchanged(before[0], optimizer)


def test_a_checkpoint_with_averages_goes_to_the_same_format_only():
    """Averages of bfloat16 weights lie beside these, and those of weights with low bits are exchanged with them."""
    optimizer, other = make(torch.bfloat16, weights="24bit", average=DECAY), make(torch.bfloat16, average=DECAY)
    for one in (optimizer, other):
        train(one, [1, 2])
    before = snapshot(other)
    optimizer.eval()
    with pytest.raises(ValueError, match="averages of its weights, which were kept in another format"):
        other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert_unchanged(before, other)
    other.eval()
    saved = saved_and_loaded(other.state_dict())
    for state in saved["state"].values():
        del state["param_trained"]  # as a tool does that loads the states it finds in an optimizer
    with pytest.raises(ValueError, match="kept in another format"):
        make(torch.bfloat16, average=DECAY).load_state_dict(saved)


def test_loading_replaces_weights_that_were_aside(caplog):
    """As in a second train() of a trainer, which has evaluated after the first."""
    optimizer, resumed, plain = make(average=DECAY), make(average=DECAY), make()
    train(optimizer, range(1, 4))
    saved = saved_and_loaded(optimizer.state_dict())
    train(resumed, [5, 6])
    resumed.eval()
    give_weights(resumed, optimizer)
    resumed.load_state_dict(saved)
    resumed.train()
    assert_same(optimizer, resumed)
    with resumed.averaged(), pytest.raises(RuntimeError, match="before load_state_dict"):
        resumed.load_state_dict(saved)
    optimizer.eval()
    plain.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert "the weights whose averages the model was saved with (average)" in caplog.text
    assert not any(name.startswith("param_") for name in plain.state[all_params(plain)[0]])


@EVERY_KIND
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_keep_it(how, kind):
    optimizer = make(average=kind, nonfinite="skip", telemetry=2)
    train(optimizer, range(1, 4))
    set_grads(all_params(optimizer), 9)
    all_params(optimizer)[0].grad[0] = float("nan")
    optimizer.step()
    copied = how(optimizer)
    for side in (optimizer, copied):
        train(side, range(4, 7))
        assert side.skipped_steps == 1
        assert [record["step"] for record in side.telemetry.records] == [2, 4, 6]
    assert_same(optimizer, copied)
    assert all(p is not q for p, q in zip(all_params(optimizer), all_params(copied), strict=True))
    assert optimizer.telemetry is not copied.telemetry
    copied.swap_average()
    optimizer.step()  # it is the copy that is swapped


@SOME_FORMATS
def test_an_optimizer_without_one_drops_what_it_loads(dtype, options):
    optimizer, plain, other = (make(dtype, **options, average=a) for a in (DECAY, None, None))
    for side in (optimizer, other):
        train(side, [1, 2])
    plain.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    give_weights(plain, optimizer)
    for side in (plain, other):
        train(side, [3, 4])
    assert_same(plain, other)


@EVERY_KIND
@SOME_FORMATS
def test_an_optimizer_with_one_starts_it_after_a_checkpoint_that_has_none(dtype, options, kind):
    plain, optimizer = make(dtype, **options), make(dtype, **options, average=kind)
    train(plain, [1, 2])
    optimizer.load_state_dict(saved_and_loaded(plain.state_dict()))
    train(optimizer, [3])
    for p in all_params(optimizer):
        assert torch.equal(average_of(optimizer, p), optimizer.read(p).double())


def test_bias_correction_starts_anew_after_a_checkpoint_that_has_no_average():
    plain, optimizer = make(torch.float64), make(torch.float64, average=Average(DECAY, bias_correction=True))
    train(plain, [1, 2])
    train(optimizer, range(1, 6))
    optimizer.load_state_dict(plain.state_dict())
    for p, weights in zip(all_params(optimizer), history(optimizer, 3, 7), strict=True):
        torch.testing.assert_close(average_of(optimizer, p), debiased(weights, DECAY), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "options", "other_dtype", "other"),
    [
        (torch.bfloat16, {"weights": "24bit"}, torch.bfloat16, {"weights": "32bit"}),
        (torch.bfloat16, SEVEN_BYTES, torch.bfloat16, {}),
        (torch.bfloat16, {}, torch.bfloat16, SEVEN_BYTES),
        (torch.bfloat16, {"weights": "stochastic"}, torch.float32, {}),
    ],
    ids=str,
)
def test_an_average_is_converted_to_the_loading_optimizers_format(dtype, options, other_dtype, other):
    optimizer, loader = make(dtype, **options, average=DECAY), make(other_dtype, **other, average=DECAY)
    train(optimizer, range(1, 4))
    loader.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for p, q in zip(all_params(optimizer), all_params(loader), strict=True):
        a, b = average_of(optimizer, p), average_of(loader, q)
        assert bool(((a - b).abs() <= 2.0**-15 * a.abs()).all())
    train(loader, [4])
    assert loader._core.plans.current is not None


@pytest.mark.parametrize(("rule", "hyper"), IN_TORCH, ids=IN_TORCH_IDS)
def test_torch_loads_the_state_dict(rule, hyper):
    optimizer = make(rule=rule, hyper=hyper, average=DECAY)
    train(optimizer, [1, 2])
    its = torchs(rule.__name__)(make_params(), **telling(hyper))
    its.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    give_weights(its, optimizer)
    plain = torchs(rule.__name__)(make_params(), **telling(hyper))
    plain.load_state_dict(saved_and_loaded(optimizer.plain_state_dict()))
    give_weights(plain, optimizer)
    for side in (optimizer, its, plain):
        train(side, [3, 4])
    for p, q, r in zip(*map(all_params, (optimizer, its, plain)), strict=True):
        same_tensor(p.detach(), q.detach(), "weight")
        assert torch.equal(q, r)
        assert list(plain.state[r]) == list(without_average(its.state[q]))


@SOME_FORMATS
def test_the_plain_state_dict_has_neither_averages_nor_services(dtype, options):
    optimizer = make(dtype, **options, average=DECAY, nonfinite="skip")
    train(optimizer, [1, 2])
    its = torchs("AdamW")(make_params(), **telling(ADAMW[1]))
    train(its, [1, 2])
    mine, theirs = optimizer.plain_state_dict(), its.state_dict()
    assert set(mine) == set(theirs)
    assert {number: list(state) for number, state in mine["state"].items()} == {
        number: list(state) for number, state in theirs["state"].items()
    }
    assert "services" in optimizer.state_dict()["param_groups"][0] and "services" not in mine["param_groups"][0]


# Arguments


@pytest.mark.parametrize("decay", [1, 1.0, -0.1, float("nan"), float("inf"), True, "0.9", None])
def test_a_decay_that_makes_no_sense(decay):
    with pytest.raises(ValueError) as error:
        Average(decay)
    assert str(error.value) == f"Invalid average decay: {decay!r}; it must be a number in [0, 1)"


@pytest.mark.parametrize("average", [1.0, -0.1, float("nan")])
def test_a_number_that_is_no_decay(average):
    with pytest.raises(ValueError, match=rf"average={average!r} must be in \[0, 1\)"):
        make(average=average)


@pytest.mark.parametrize("average", [True, False, "0.9", (0.9,), Average])
def test_what_is_no_average(average):
    with pytest.raises(TypeError) as error:
        make(average=average)
    assert str(error.value) == f"average must be a number (the decay) or Average, not {average!r}"


def test_two_ways_to_begin_are_one_too_many():
    with pytest.raises(ValueError, match="warmup=True or bias_correction=True, not both"):
        Average(DECAY, warmup=True, bias_correction=True)


@pytest.mark.parametrize("rule", OWN.values(), ids=OWN)
def test_every_optimizer_takes_and_explains_it(rule):
    cls = getattr(steprule, rule.__name__)
    assert inspect.signature(cls).parameters["average"].default is None
    assert "average" in cls.__doc__
    assert "average: keep an EMA (exponential moving average)" in steprule.Optimizer.__doc__


def test_differentiable_steps_have_none():
    with pytest.raises(ValueError, match="average and differentiable=True do not go together"):
        make(average=DECAY, differentiable=True)


def test_weights_that_are_swapped_are_not_exchanged_too():
    param = torch.ones(5, requires_grad=True)
    optimizer = steprule.ScheduleFreeSGD([param], lr=0.1, average=0.9)
    param.grad = torch.ones(5)
    for _ in range(3):
        optimizer.step()
    before = param.detach().clone()
    optimizer.eval()
    optimizer.swap_average()
    with pytest.raises(RuntimeError, match=r"call swap_average\(\) before train\(\)"):
        optimizer.train()
    optimizer.swap_average()
    optimizer.train()
    torch.testing.assert_close(param, before)


def test_steps_without_a_gradient_count_after_loading():
    """A checkpoint that has no averages yet knows how many there would be."""
    results = []
    for is_saved in (False, True):
        p = nn.Parameter(torch.ones(3))
        optimizer = steprule.SGD([p], lr=0.1, average=0.9)
        for _ in range(3):
            optimizer.step()
        if is_saved:
            saved = optimizer.state_dict()
            optimizer = steprule.SGD([p], lr=0.1, average=0.9)
            optimizer.load_state_dict(saved)
        for _ in range(3):
            p.grad = torch.ones(3)
            optimizer.step()
        with optimizer.averaged():
            results.append(p.detach().clone())
    assert torch.equal(*results)
