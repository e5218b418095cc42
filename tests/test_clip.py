"""Clipping inside the step, judged by torch's own clipping before torch.optim's step, and by float64 NumPy."""

from __future__ import annotations

import gc
import math
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from dropin import all_params, assert_unchanged, fill, leaves, random, same_states, same_tensor, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from settings import FAMILIAR, FAMILIAR_IDS
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

import steprule
from steprule.engine.plan import STRETCH
from steprule.engine.reading import norms
from steprule.services import ClipAdaptive, ClipNorm, ClipQuantile, ClipValue
from steprule.trace.norms import Norm

inf = math.inf
SCALES = (3.0, 0.01, 40.0, 1.0)
"""Of the gradients of each step: some are clipped and some are not."""
CLIPS = [
    2, ClipNorm(2.0), ClipNorm(9.0, 1), ClipNorm(1.5, inf), ClipNorm(2.0, 3.5), ClipNorm(2.5, 0), ClipNorm(0.02, -inf),
    ClipNorm(0.01, -1), ClipNorm(0.7, per_parameter=True), ClipNorm(0.7, 1, per_parameter=True), ClipNorm(inf),
    ClipNorm(0), ClipValue(0.5), ClipAdaptive(0.1), ClipAdaptive(eps=30.0), ClipQuantile(), ClipQuantile(0.5, window=2),
]  # fmt: skip
OF_EACH_KIND = [2, CLIPS[8], ClipValue(0.5), ClipAdaptive(0.1), ClipQuantile(0.5)]
SERVICES = {"clip": 2.0, "nonfinite": "skip", "average": 0.9, "telemetry": 1, "grads": "float32"}


def parameters(dtype=torch.float32):
    """Of several sizes, 0 and 1 among them, one channels_last and one transposed."""
    params = leaves(((4, 3), (5,), (), (0, 3), (4, 3, 2, 2)), dtype)
    params[4] = params[4].detach().to(memory_format=torch.channels_last).requires_grad_()
    return [*params, random((3, 6), 99, dtype).t().requires_grad_()]


def leaves_32():
    return leaves(dtype=torch.float32)


def give(params, step):
    for i, p in enumerate(params):
        grad = SCALES[step % len(SCALES)] * random(p.shape, 1000 * step + i)
        p.grad = torch.empty_like(p, requires_grad=False).copy_(grad)


def clip_rows(p, clip):
    """Brock et al. 2021, equation 3, in float64: True if it changed anything."""

    def lengths(x):
        return torch.linalg.vector_norm(x.detach().double(), dim=tuple(range(1, x.dim())) or None, keepdim=x.dim() > 1)

    longest = clip.clip_factor * lengths(p).clamp(min=clip.eps)
    own = lengths(p.grad)
    p.grad.copy_(torch.where(own > longest, p.grad * (longest / own.clamp(min=1e-6)), p.grad.double()))
    return bool((own > longest).any())


def clip_before(clip, params, history):
    """Clips gradients in place, as one would without the argument: their norm, and whether a norm was too large."""
    clip = ClipNorm(clip) if isinstance(clip, (int, float)) else clip
    params = [p for p in params if p.numel()]  # there is no largest element of nothing
    p = clip.norm_type if isinstance(clip, ClipNorm) else 2.0
    norm = get_total_norm([param.grad for param in params], p)
    if isinstance(clip, ClipValue):
        clip_grad_value_(params, clip.clip_value)
        return norm, False
    if isinstance(clip, ClipAdaptive):
        return norm, any([clip_rows(param, clip) for param in params])
    max_norm, parts = getattr(clip, "max_norm", None), [params]
    if isinstance(clip, ClipQuantile):
        history.append(float(norm))
        max_norm = float(np.quantile(history[-clip.window :], clip.quantile))
    elif clip.per_parameter:
        parts = [[param] for param in params]
    norms = [clip_grad_norm_(part, max_norm, p) for part in parts]
    return norm, any(float(n) > max_norm * (1 + 2.0**-18) for n in norms)  # by more than rounding


def same_norm_and_weights(mine, its, clip, norm):
    if not isinstance(clip, ClipValue):  # which needs no norm
        assert mine.grad_norm.dtype == torch.float32 and mine.grad_norm.shape == ()
        torch.testing.assert_close(mine.grad_norm, norm.float())
    for i, (p, q) in enumerate(zip(all_params(mine), all_params(its), strict=True)):
        same_tensor(p.detach(), q.detach(), f"parameter {i}")


def agree(mine, its, clip, clipped=None):
    """Steps both with the same gradients, clipped by the argument and before the step, and compares after each."""
    history, count = [], mine.clipped_steps
    for step in range(len(SCALES)):
        for optimizer in (mine, its):
            give(all_params(optimizer), step)
        grads = [p.grad for p in all_params(mine)]
        kept = [(grad.clone(), grad._version) for grad in grads]
        mine.step()
        for p, grad, (before, version) in zip(all_params(mine), grads, kept, strict=True):
            assert p.grad is grad and torch.equal(grad, before) and grad._version == version
        norm, is_clipped = clip_before(clip, all_params(its) if clipped is None else clipped, history)
        its.step()
        count += is_clipped
        assert mine.clipped_steps == count
        same_norm_and_weights(mine, its, clip, norm)
        same_states(mine, its)


def sgd(clip, make=parameters, of=steprule.SGD, **options):
    services = {"clip": clip} if of is steprule.SGD else {}
    return of(make(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, **options}, **services)


def bits_of(optimizer):
    return [x.clone() for p in all_params(optimizer) for x in (p.detach(), *optimizer.state[p].values())]


def assert_same_bits(ours, others):
    assert len(ours) == len(others) and all(map(torch.equal, ours, others))


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Against torch


@pytest.mark.parametrize(("rule", "hyper"), FAMILIAR, ids=FAMILIAR_IDS)
def test_every_rule_steps_as_after_clip_grad_norm(rule, hyper):
    own = getattr(steprule, rule.__name__)
    options = {**hyper, "lr": 0.05, "weight_decay": 0.1}
    its = getattr(torch.optim, rule.__name__, own)(parameters(), **options)
    agree(own(parameters(), **options, clip=2.0), its, 2.0)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_every_way_to_clip(clip):
    agree(sgd(clip), sgd(clip, of=torch.optim.SGD), clip)


@pytest.mark.parametrize("clip", OF_EACH_KIND, ids=str)
def test_in_float64(clip):
    """Within float64's tolerance; the norm in the state dict is float64 even then, where `grad_norm` is float32."""
    mine, its = (sgd(clip, lambda: parameters(torch.float64), of) for of in (steprule.SGD, torch.optim.SGD))
    agree(mine, its, clip)
    if not isinstance(clip, ClipValue):
        wide = np.concatenate([p.grad.reshape(-1).numpy() for p in all_params(mine)])
        assert mine.state_dict()["param_groups"][0]["services"]["norm"] == pytest.approx(
            np.linalg.norm(wide), rel=1e-14
        )


def test_maximize():
    agree(sgd(2.0, maximize=True), sgd(2.0, of=torch.optim.SGD, maximize=True), 2.0)


def test_some_steps_are_clipped_and_some_are_not():
    """Of those that the comparisons above run."""
    for clip in OF_EACH_KIND:
        mine = sgd(clip)
        for step in range(len(SCALES)):
            give(all_params(mine), step)
            mine.step()
        assert mine.clipped_steps in ((0,) if isinstance(clip, ClipValue) else (1, 2, 3)), clip


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("clip", [ClipNorm, lambda max_norm: ClipQuantile(0.5, 3)], ids=["norm", "quantile"])
def test_gradients_that_were_clipped_before_do_not_count(clip, max_norm):
    """As by a trainer: its norm is the same but for rounding."""
    mine, twice = (sgd(clip(max_norm)) for _ in range(2))
    for step in range(len(SCALES)):
        for one in (mine, twice):
            give(all_params(one), step)
            for p in all_params(one):
                p.grad.mul_(1000)
        clip_grad_norm_(all_params(twice), max_norm)
        for one in (mine, twice):
            one.step()
    assert twice.clipped_steps == 0 < mine.clipped_steps


def test_with_a_norm_of_0_every_step_is_clipped():
    optimizer = sgd(ClipNorm(0))
    give(all_params(optimizer), 0)
    optimizer.step()
    assert optimizer.clipped_steps == 1


@pytest.mark.parametrize(
    ("name", "options"), [("SGD", {"momentum": 0.9}), ("AdamW", {"states": "8bit", "weights": "24bit"})]
)
def test_half_precision_is_clipped_in_float32(name, options):
    """Bit for bit: where the factor is a half, the same as gradients that were halved before.

    Halves of bfloat16 numbers are bfloat16 numbers, and the clip is set anew to half of each step's norm.
    """

    def make():
        return leaves(((8, 64), (40,), (6, 5), ()), torch.bfloat16)

    options = {"lr": 0.01, "weight_decay": 0.1, **options}
    mine, plain = (getattr(steprule, name)(make(), **options, **more) for more in ({"clip": 1.0}, {}))
    for step in range(5):
        for optimizer in (mine, plain):
            give(all_params(optimizer), step)
        norm = np.linalg.norm(np.concatenate([p.grad.double().reshape(-1).numpy() for p in all_params(mine)]))
        mine.clip = (norm + 1e-6) / 2
        for p in all_params(plain):
            p.grad /= 2
        mine.step()
        plain.step()
        assert float(mine.grad_norm) == np.float32(norm)
        assert_same_bits(bits_of(mine), bits_of(plain))
    assert mine.clipped_steps == 5


@pytest.mark.parametrize(
    ("dtype", "clip"), [*((torch.bfloat16, clip) for clip in OF_EACH_KIND), (torch.float16, 2)], ids=str
)
def test_half_precision_gradients_as_float32_ones(clip, dtype):
    """Gradients of half precision for float32 weights, against the same numbers in float32."""
    mine, its = (sgd(clip, leaves_32, of) for of in (steprule.SGD, torch.optim.SGD))
    history = []
    for step in range(len(SCALES)):
        give(all_params(its), step)
        for p, q in zip(all_params(mine), all_params(its), strict=True):
            p.grad_dtype = None  # any
            p.grad = q.grad.to(dtype)
            q.grad = p.grad.float()
        mine.step()
        norm, _ = clip_before(clip, all_params(its), history)
        its.step()
        same_norm_and_weights(mine, its, clip, norm)


# Groups and settings


@pytest.mark.parametrize("clip", OF_EACH_KIND, ids=str)
def test_a_group_with_clip_false_is_left_out(clip):
    def grouped(params):
        return [{"params": params[:2]}, {"params": params[2:4], "clip": False}, {"params": params[4:]}]

    mine, its = (sgd(clip, lambda: grouped(parameters()), of) for of in (steprule.SGD, torch.optim.SGD))
    agree(mine, its, clip, clipped=all_params(its)[:2] + all_params(its)[4:])


def test_with_all_groups_left_out_nothing_is_clipped():
    mine = sgd(0.1, lambda: [{"params": parameters(), "clip": False}])
    its = sgd(0.1, of=torch.optim.SGD)
    agree(mine, its, 0.1, clipped=[])
    assert mine.grad_norm == 0


def test_a_group_may_be_left_out_between_steps():
    """Settings of a group are looked at in every step, as lr is."""
    mine, its = sgd(2.0, leaves_32), sgd(2.0, leaves_32, torch.optim.SGD)
    agree(mine, its, 2.0)
    mine.param_groups[0]["clip"] = False
    agree(mine, its, 2.0, clipped=[])


def test_a_group_stays_left_out_when_a_checkpoint_of_torch_is_loaded():
    """Services belong to the optimizer, not to the checkpoint."""
    mine = sgd(2.0, lambda: [{"params": leaves_32(), "clip": False}])
    its = sgd(2.0, leaves_32, torch.optim.SGD)
    mine.load_state_dict(its.state_dict())
    agree(mine, its, 2.0, clipped=[])


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("late", [False, True])
def test_services_are_not_for_groups(name, late):
    mine = sgd(2.0, leaves_32)
    before = len(mine.param_groups)
    group = {"params": leaves(((2,),), torch.float32), name: SERVICES[name]}
    with pytest.raises(ValueError, match=f"{name}={SERVICES[name]!r} in a parameter group"):
        mine.add_param_group(group) if late else steprule.SGD([group], lr=0.1)
    assert len(mine.param_groups) == before


@pytest.mark.parametrize("value", [True, None, 0])
def test_a_group_has_no_clip_of_its_own(value):
    with pytest.raises(ValueError, match=f"clip={value!r} in a parameter group"):
        steprule.SGD([{"params": leaves_32(), "clip": value}], lr=0.1, clip=1.0)


def test_clip_may_be_set_between_steps():
    mine, its = sgd(1.0), sgd(1.0, of=torch.optim.SGD)
    for clip in [*OF_EACH_KIND, 0.3]:
        mine.clip = clip
        assert mine.clip == (ClipNorm(float(clip)) if isinstance(clip, (int, float)) else clip)
        agree(mine, its, clip)


def test_clipping_may_begin_and_end():
    mine, its = sgd(None, nonfinite="skip"), sgd(None, of=torch.optim.SGD)
    for clip in (None, 2.0, None):
        mine.clip = clip
        assert mine.clip == (clip and ClipNorm(clip))
        agree(mine, its, ClipNorm(inf) if clip is None else clip)


def test_setting_clip_reaches_released_gradients():
    """Each parameter has a plan of its own then."""
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    mine, its = (
        steprule.SGD(models[0].parameters(), lr=1.0, clip=CLIPS[8]),
        torch.optim.SGD(models[1].parameters(), 1.0),
    )
    mine.release_gradients(models[0])
    for clip in [CLIPS[8], CLIPS[8], ClipValue(0.01), ClipNorm(0.1, per_parameter=True)]:
        mine.clip = clip
        for model in models:
            model.zero_grad()
            model(torch.ones(4, 3)).sum().backward()
        clip_before(clip, all_params(its), [])
        mine.step()
        its.step()
        for p, q in zip(all_params(mine), all_params(its), strict=True):
            same_tensor(p.detach(), q.detach(), str(clip))


def test_a_refused_clip_leaves_the_old_one():
    mine = sgd(2.0)
    with pytest.raises(TypeError, match="clip must be a number"):
        mine.clip = "1"
    assert mine.clip == ClipNorm(2.0)
    plain = steprule.SGD([torch.ones(2, dtype=torch.complex64, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match="complex"):
        plain.clip = ClipValue(1.0)
    assert plain.clip is None and plain._core.services is None


@pytest.mark.parametrize("clip", OF_EACH_KIND, ids=str)
@pytest.mark.parametrize("steps", [0, 2])
def test_clip_may_be_set_where_there_was_none(clip, steps):
    mine, its = sgd(None), sgd(clip) if steps == 0 else sgd(None)
    for step in range(steps):
        for one in (mine, its):
            give(all_params(one), step)
            one.step()
    mine.clip = its.clip = clip
    for step in range(steps, steps + 4):
        for one in (mine, its):
            give(all_params(one), step)
            one.step()
    assert mine.clipped_steps == its.clipped_steps and "services" in mine.param_groups[0]
    for p, q in zip(all_params(mine), all_params(its), strict=True):
        assert torch.equal(p, q)
    plain = sgd(None)
    for step in range(steps + 4):
        give(all_params(plain), step)
        plain.step()
    assert not torch.equal(all_params(mine)[0], all_params(plain)[0])


def test_clip_by_value_cannot_be_set_for_complex_parameters():
    mine = steprule.SGD([torch.ones(2, dtype=torch.complex64, requires_grad=True)], lr=0.1, clip=1.0)
    with pytest.raises(ValueError, match=r"ClipValue\(clip_value=1\.0\) does not take torch\.complex64"):
        mine.clip = ClipValue(1.0)


def test_all_options_off_leave_nothing_behind():
    """As absent as in torch.optim; and on, they are in the groups' "services" alone."""
    its = sgd(None, of=torch.optim.SGD)
    for mine in (sgd(None), sgd(2.0)):
        fill(mine, 0)
        mine.step()
        extra = {"services"} if mine.clip is not None else set()
        assert set(mine.param_groups[0]) == set(its.param_groups[0]) | extra
        assert set(mine.defaults) == set(its.defaults)
        assert set(mine.state_dict()) == set(mine.plain_state_dict()) == set(its.state_dict())
        for saved, more in ((mine.state_dict(), extra), (mine.plain_state_dict(), set())):
            assert set(saved["param_groups"][0]) == set(its.state_dict()["param_groups"][0]) | more
    off = sgd(None)
    assert off.clip is None and math.isnan(off.grad_norm) and off.grad_norm.dtype == torch.float32
    assert (off.clipped_steps, off.skipped_steps, off.zeroed_elements) == (0, 0, 0)


@pytest.mark.parametrize("options", [{}, {"clip": 1e9}, {"nonfinite": "skip"}, {"clip": 0.5}], ids=str)
def test_gradients_clipped_by_the_user_are_taken_as_they_are(options):
    mine = steprule.SGD(leaves_32(), lr=0.05, momentum=0.9, **options)
    its = torch.optim.SGD(leaves_32(), lr=0.05, momentum=0.9)
    for step in range(4):
        for optimizer in (mine, its):
            give(all_params(optimizer), step)
            clip_grad_norm_(all_params(optimizer), 2.0)
            if optimizer is its and "clip" in options:
                clip_grad_norm_(all_params(optimizer), options["clip"])
            optimizer.step()
        for p, q in zip(all_params(mine), all_params(its), strict=True):
            same_tensor(p.detach(), q.detach(), f"after step {step}")


# What the eager fallback steps


def strided():
    return random((6, 8), 5, torch.float32)[:, ::2].requires_grad_()


@pytest.mark.parametrize("clip", [2, *CLIPS[2:6], CLIPS[8], ClipAdaptive(0.1), ClipQuantile(0.5)], ids=str)
def test_with_parameters_of_the_eager_engine(clip):
    """Strided and complex ones between others: one norm of all."""

    def mixed():
        fast = leaves_32()
        odd = torch.complex(random((4, 3), 7), random((4, 3), 8)).to(torch.complex64).requires_grad_()
        return [fast[0], strided(), fast[1], odd, fast[2]]

    mine, its = (sgd(clip, mixed, of) for of in (steprule.SGD, torch.optim.SGD))
    if isinstance(clip, ClipAdaptive):  # float64 for complex numbers would be complex128
        mine, its = (sgd(clip, lambda: mixed()[:3], of) for of in (steprule.SGD, torch.optim.SGD))
    agree(mine, its, clip)


@pytest.mark.parametrize("clip", OF_EACH_KIND, ids=str)
def test_with_sparse_gradients(clip):
    """As if they were dense; an index that comes twice is added up first."""
    mine, its = (
        of([random((5, 3), 1, torch.float32).requires_grad_(), *leaves_32()], lr=0.05, **more)
        for of, more in ((steprule.SGD, {"clip": clip}), (torch.optim.SGD, {}))
    )
    history = []
    for step in range(len(SCALES)):
        for optimizer in (mine, its):
            give(all_params(optimizer), step)
        values = SCALES[step] * random((3, 3), step, torch.float32)
        p, q = all_params(mine)[0], all_params(its)[0]
        p.grad = torch.sparse_coo_tensor(torch.tensor([[4, 1, 4]]), values, (5, 3), check_invariants=True)
        q.grad = p.grad.to_dense()
        mine.step()
        norm, _ = clip_before(clip, all_params(its), history)
        its.step()
        assert torch.equal(p.grad._values(), values)
        same_norm_and_weights(mine, its, clip, norm)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
@pytest.mark.parametrize("clip", [*CLIPS[:8], ClipAdaptive(), ClipQuantile()], ids=str)
def test_empty_parameters_change_nothing(clip, shape):
    """Whatever engine they are for, and though torch has no norm for some of them; they are finite too."""
    norms, results = [], []
    for more in ([], [torch.empty(shape)], [torch.empty(shape, dtype=torch.complex64)]):
        params = [*leaves_32(), *(x.requires_grad_() for x in more)]
        mine = steprule.SGD(params, lr=0.05, clip=clip, nonfinite="skip")
        give(params, 0)
        mine.step()
        assert mine.skipped_steps == 0
        norms.append(mine.grad_norm)
        results.append([p.detach() for p in params[:3]])
    assert norms[0] == norms[1] == norms[2]
    for others in results[1:]:
        assert_same_bits(results[0], others)


def test_rows_of_adaptive_clipping_are_those_of_the_first_dimension_in_any_layout():
    """A permuted parameter's rows are no stretches of memory."""
    for permutation in [(1, 0), (2, 0, 1), (1, 2, 0)]:
        shape = (3, 4, 5)[: len(permutation)]

        def make(permutation=permutation, shape=shape):
            return [random(shape, 3, torch.float32).permute(permutation).requires_grad_()]

        clip = ClipAdaptive(0.3)
        agree(sgd(clip, make), sgd(clip, make, torch.optim.SGD), clip)


# What a result may not depend on


@pytest.mark.parametrize("clip", [1.0, ClipNorm(1.0, 3.5), ClipNorm(1.0, 1, True), *OF_EACH_KIND[2:]], ids=str)
def test_results_do_not_depend_on_threads(clip):
    """Bit for bit, norms too."""
    results = []
    for count in (1, 2):
        with threads(count):
            mine = sgd(clip, lambda: leaves(((400, 400), (7,), (300, 300)), torch.float32))
            for step in range(2):
                give(all_params(mine), step)
                mine.step()
            results.append((mine.state_dict()["param_groups"][0]["services"], bits_of(mine)))
    assert repr(results[0][0]) == repr(results[1][0])
    assert_same_bits(results[0][1], results[1][1])


def test_the_norm_does_not_depend_on_grouping():
    """Bit for bit: groups of the same settings, of other hyperparameters, of another formula, and the eager fallback."""
    spread = [(5 + i,) for i in range(40)]

    def norm(groups_of):
        params = leaves(spread, torch.float32)
        mine = steprule.SGD(groups_of(params), lr=0.05, clip=1.0)
        for i, p in enumerate(params):
            p.grad = random(p.shape, i, torch.float32) * 10 ** (i % 3)
        mine.step()
        return mine.state_dict()["param_groups"][0]["services"]["norm"], [p.detach() for p in params]

    whole, results = norm(list)
    alone, again = norm(lambda params: [{"params": [p]} for p in params])
    assert whole == alone
    assert_same_bits(results, again)
    assert norm(lambda params: [{"params": [p], "lr": 0.1 * (i % 2)} for i, p in enumerate(params)])[0] == whole
    assert norm(lambda params: [{"params": [p], "momentum": 0.9 * (i % 2)} for i, p in enumerate(params)])[0] == whole


def test_a_parameter_without_a_gradient_is_not_part_of_the_norm():
    mine, its = sgd(2.0, leaves_32), sgd(2.0, leaves_32, torch.optim.SGD)
    for step, missing in enumerate((0, None, 1, 0)):
        for optimizer in (mine, its):
            give(all_params(optimizer), step)
            if missing is not None:
                all_params(optimizer)[missing].grad = None
        mine.step()
        norm = clip_grad_norm_(all_params(its), 2.0)
        its.step()
        same_norm_and_weights(mine, its, 2.0, norm)


@pytest.mark.parametrize("magnitude", [1e30, 1e-30])
@pytest.mark.parametrize("norm_type", [1, 2, 3.5, inf, -inf, -1])
def test_huge_and_tiny_gradients_have_a_norm(magnitude, norm_type):
    """Sums are float64: their squares neither overflow nor vanish, as torch's do."""
    (p,) = params = leaves(((40,),), torch.float32)
    before = p.detach().clone()
    mine = steprule.SGD(params, lr=1.0, clip=ClipNorm(magnitude, norm_type), nonfinite="raise")
    p.grad = random(p.shape, 1, torch.float32) * magnitude
    mine.step()
    wide = p.grad.double()
    norm = torch.linalg.vector_norm(wide, norm_type)
    torch.testing.assert_close(mine.grad_norm, norm.float())
    expected = before.double() - wide * min(magnitude / (float(norm) + 1e-6), 1.0)
    torch.testing.assert_close(p.detach(), expected.float())


@pytest.mark.parametrize("released", [False, True])
def test_gradients_are_let_go(released):
    """Of the first step too: a plan for the next steps keeps none of them in memory."""
    model = torch.nn.Linear(3, 2)
    mine = steprule.SGD(model.parameters(), lr=0.05, clip=1.0)
    seen = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(weakref.ref(p.grad)))
    if released:
        mine.release_gradients(model)
    for _ in range(2):
        model(torch.ones(4, 3)).sum().backward()
        mine.step()
        mine.zero_grad()
        gc.collect()
        assert [grad() for grad in seen] == [None] * len(seen)
    assert len(seen) == 4


# Resuming


@pytest.mark.parametrize("clip", [2.0, ClipQuantile(0.5, window=3)], ids=str)
def test_a_resumed_run_goes_on_bit_for_bit(clip, tmp_path):
    """Counts and the window of norms are in the state dict."""
    mine = sgd(clip)
    for step in range(6):
        if step == 3:
            torch.save([mine.state_dict(), [p.detach() for p in all_params(mine)]], tmp_path / "saved")
        give(all_params(mine), step)
        mine.step()
    state, weights = torch.load(tmp_path / "saved", weights_only=True)
    resumed = sgd(clip)
    resumed.load_state_dict(state)
    with torch.no_grad():
        for p, weight in zip(all_params(resumed), weights, strict=True):
            p.copy_(weight)
    for step in range(3, 6):
        give(all_params(resumed), step)
        resumed.step()
    assert_same_bits(bits_of(mine), bits_of(resumed))
    assert repr(mine.state_dict()["param_groups"]) == repr(resumed.state_dict()["param_groups"])
    assert mine.clipped_steps == resumed.clipped_steps > 0


# Arguments


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sgd("1"), TypeError, "clip must be a number.*'1'"),
        (lambda: sgd(True), TypeError, "clip must be a number.*True"),
        (lambda: sgd(-1.0), ValueError, "clip=-1.0 must be above 0"),
        (lambda: sgd(math.nan), ValueError, "clip=nan must be above 0"),
        (lambda: sgd(0), ValueError, "clip=0 would make every gradient 0; None is for no clipping"),
        (lambda: setattr(sgd(1.0), "clip", 0.0), ValueError, "clip=0 would make every gradient 0"),
        (lambda: ClipNorm("1"), ValueError, "max_norm value: '1'"),
        (lambda: ClipNorm(1.0, "inf"), ValueError, "norm_type value: 'inf'"),
        (lambda: ClipNorm(1.0, math.nan), ValueError, "norm_type value: nan"),
        (lambda: ClipValue(-0.5), ValueError, "clip_value value: -0.5"),
        (lambda: ClipAdaptive(-0.5), ValueError, "clip_factor value: -0.5"),
        (lambda: ClipAdaptive(eps=-1), ValueError, "eps value: -1"),
        (lambda: ClipQuantile(1.5), ValueError, "quantile value: 1.5"),
        (lambda: ClipQuantile(window=0), ValueError, "window value: 0"),
        (lambda: ClipQuantile(window=2.5), ValueError, "window value: 2.5"),
        (lambda: sgd(1.0, differentiable=True), ValueError, "clip and differentiable=True do not go together"),
        (
            lambda: sgd(ClipValue(1.0), lambda: [torch.ones(1, dtype=torch.complex64)]),
            ValueError,
            r"ClipValue\(clip_value=1.0\) does not take torch.complex64 \(parameter 0",
        ),
    ],
)
def test_arguments_that_make_no_sense(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_gradient_that_does_not_fit_changes_nothing():
    mine = sgd(2.0, leaves_32)
    give(all_params(mine), 0)
    mine.step()
    before, norm = snapshot(mine), mine.grad_norm
    all_params(mine)[1].grad_dtype = None
    all_params(mine)[1].grad = torch.ones(5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="the gradient of parameter 1 of group 0 has the dtype"):
        mine.step()
    assert_unchanged(before, mine)
    assert mine.grad_norm == norm


# The reading pass alone

NORM_TYPES = [2.0, 1.0, 3.5, inf, -inf, 0.0]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_sums_of_any_tensors(data):
    """Against float64 NumPy, for each stretch or row and for each tensor."""
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]), "dtype")
    norm_type = data.draw(st.sampled_from([2.0, inf] if dtype.itemsize == 2 else NORM_TYPES), "norm_type")
    shapes = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 2000)), min_size=1, max_size=5), "shapes")
    by_row = data.draw(st.booleans(), "by_row")
    workers = data.draw(st.integers(1, 2), "workers")
    tensors = [random(shape, i, dtype) * (random(shape, 50 + i) > -1) for i, shape in enumerate(shapes)]
    tensors = [x.to(dtype) for x in tensors]
    addresses = np.array([x.data_ptr() for x in tensors], np.int64)
    reading = norms(
        Norm("grad", norm_type, "row" if by_row else "tensor"),
        str(dtype).removeprefix("torch."),
        addresses,
        [x.numel() for x in tensors],
        [columns for _, columns in shapes],
        lambda: workers,
    )
    reading.run()

    def sums(x):
        x = np.abs(x)
        if norm_type in (inf, -inf):
            return x.max(initial=0.0) if norm_type > 0 else x.min(initial=inf)
        return np.count_nonzero(x) if norm_type == 0 else (x**norm_type).sum()

    wide = [x.double().reshape(-1).numpy() for x in tensors]
    parts = [
        x[start : start + length]
        for x, (_, columns) in zip(wide, shapes, strict=True)
        for length in [columns if by_row else STRETCH]
        for start in range(0, x.size, length)
    ]
    np.testing.assert_allclose(reading.pieces(), [sums(x) for x in parts], rtol=1e-12)
    np.testing.assert_allclose(*reading.sums().values(), [sums(x) for x in wide], rtol=1e-12)


@pytest.mark.parametrize("wrong", [math.nan, -math.nan, inf, -inf])
@pytest.mark.parametrize(
    ("dtype", "norm_type"), [*(("float32", p) for p in NORM_TYPES), ("float64", 2.0), ("float64", inf)]
)
def test_sums_show_what_is_not_finite_or_take_it_as_0(dtype, norm_type, wrong):
    """Wherever in the tensor it is; its neighbor's sum does not change."""
    for at in (0, 77, STRETCH + 5, STRETCH + 99):
        pair = np.ones((2, STRETCH + 100), dtype)
        pair[0, at] = wrong
        addresses = np.array([x.ctypes.data for x in pair], np.int64)
        both = []
        for zero in (False, True):
            norm = Norm("grad", norm_type, zero=zero, check=not zero)
            reading = norms(norm, dtype, addresses, [x.size for x in pair], [], lambda: 1)
            reading.run()
            both += reading.sums().values()
        clean = 1.0 if abs(norm_type) == inf else pair.shape[1]
        assert not np.isfinite(both[0][0]) and both[0][1] == clean
        assert both[1].tolist() == [{inf: 1.0, -inf: 0.0}.get(norm_type, clean - 1), clean]


# Steps without gradients


@pytest.mark.parametrize("clip", [1.0, ClipQuantile(0.5, 3), ClipNorm(1.0, per_parameter=True)], ids=str)
@pytest.mark.parametrize("average", [None, 0.5], ids=["", "average"])
def test_the_norm_of_no_gradients_is_0(clip, average):
    """As clip_grad_norm_ says; it is no norm that later ones are measured by."""
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = steprule.SGD(params, lr=0.1, clip=clip, average=average, nonfinite="skip")
    optimizer.step()
    assert float(optimizer.grad_norm) == 0 == float(clip_grad_norm_(params, 1.0))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    norm = optimizer.grad_norm
    torch.testing.assert_close(norm, torch.tensor(7.0).sqrt())
    recent = list(optimizer._core.services.ledger.recent)
    params[0].grad[0] = math.nan
    optimizer.step()  # which is not taken
    assert torch.equal(optimizer.grad_norm, norm)
    optimizer.zero_grad()
    optimizer.step()
    assert float(optimizer.grad_norm) == 0 == float(clip_grad_norm_(params, 1.0))
    assert list(optimizer._core.services.ledger.recent) == recent and optimizer.skipped_steps == 1


def test_what_reads_no_norm_has_none():
    optimizer = steprule.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, average=0.5)
    optimizer.step()
    assert math.isnan(optimizer.grad_norm)


def test_flags_of_services_are_true_or_false():
    with pytest.raises(TypeError, match="per_parameter must be True or False, not 'no'"):
        ClipNorm(1.0, per_parameter="no")
    with pytest.raises(TypeError, match="warmup must be True or False, not 'no'"):
        steprule.services.Average(0.9, warmup="no")


def test_adaptive_clipping_leaves_rows_alone_that_a_sparse_gradient_lacks():
    results = []
    for clip in (None, ClipAdaptive(1e9)):
        p = torch.nn.Parameter(torch.ones(4, 3))
        optimizer = steprule.SparseAdam([p], lr=0.1, clip=clip)
        for rows in ([0, 2], [2], [2, 0]):
            values = torch.arange(1.0, 1.0 + 3 * len(rows)).reshape(-1, 3)
            p.grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, (4, 3), check_invariants=False)
            optimizer.step()
        results.append(p.detach().clone())
    assert torch.equal(*results)
