"""Gradients that are not finite, and GradScaler: judged by torch.optim that is not stepped, or is given zeros."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import warnings

import pytest
import torch
from dropin import all_params, assert_unchanged, leaves, random, same_states, same_tensor, snapshot
from settings import FAMILIAR, FAMILIAR_IDS
from torch.amp.grad_scaler import OptState
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import steprule
from steprule.services import ClipAdaptive, ClipNorm, ClipQuantile, ClipValue

WRONG = [math.inf, -math.inf, math.nan]
ON = [{"nonfinite": "skip"}, {"clip": 1.0}, {"nonfinite": "skip", "clip": 1.0}]
"""Options with which a GradScaler's work is part of the step."""


def mixed():
    """Parameters of both engines: a matrix, a strided one, a vector, a complex one, a number and nothing."""
    odd = torch.complex(random((3, 2), 7), random((3, 2), 8)).to(torch.complex64)
    tensors = [random((4, 3), 0), random((6, 8), 5)[:, ::2], random((5,), 1), odd, random((), 2), random((0, 3), 3)]
    wide = [x if x.is_complex() else torch.empty_like(x, dtype=torch.float32).copy_(x) for x in tensors]
    wide[1] = random((6, 8), 5, torch.float32)[:, ::2]
    return [x.requires_grad_() for x in wide]


NAMES = ("matrix", "strided", "vector", "odd", "number", "nothing")


def named():
    return list(zip(NAMES, mixed(), strict=True))


def plain():
    return leaves(dtype=torch.float32)


def give(optimizers, step, wrong=None, where=0):
    """New gradients for all, with something wrong in the last element of one of them."""
    for optimizer in optimizers:
        for i, p in enumerate(all_params(optimizer)):
            p.grad = torch.empty_like(p, requires_grad=False).copy_(random(p.shape, 1000 * step + i))
        if wrong is not None:
            all_params(optimizer)[where].grad[(-1,) * all_params(optimizer)[where].dim()] = wrong


def same_weights(mine, its):
    for i, (p, q) in enumerate(zip(all_params(mine), all_params(its), strict=True)):
        same_tensor(p.detach(), q.detach(), f"parameter {i}")


# Skipping


@pytest.mark.parametrize(("rule", "hyper"), FAMILIAR, ids=FAMILIAR_IDS)
def test_a_skipped_step_has_never_been(rule, hyper):
    """The first one too: no state is left, and the next is the first, as torch.optim's that sees only good gradients."""
    options = {**hyper, "lr": 0.05, "weight_decay": 0.1}
    if hyper.get("momentum") and "nesterov" in hyper and not hyper["nesterov"]:
        options["dampening"] = 0.4  # not in the first step
    own = getattr(steprule, rule.__name__)
    mine = own(plain(), **options, nonfinite="skip")
    its = getattr(torch.optim, rule.__name__, own)(plain(), **options)
    for step, wrong in enumerate([math.inf, math.nan, None, -math.inf, None, None]):
        give([mine, its], step, wrong)
        before, keys = snapshot(mine), repr(mine.state_dict()["state"])
        mine.step()
        if wrong is None:
            its.step()
        else:
            assert_unchanged(before, mine)
            assert repr(mine.state_dict()["state"]) == keys
        same_weights(mine, its)
        same_states(mine, its)
    assert mine.skipped_steps == 3


@pytest.mark.parametrize("options", [{}, *({"clip": ClipNorm(2.0, p)} for p in (2, math.inf, -math.inf))], ids=str)
@pytest.mark.parametrize("where", range(len(NAMES) - 1), ids=NAMES[:-1])
@pytest.mark.parametrize("wrong", WRONG)
def test_skips_for_any_parameter(wrong, where, options, caplog):
    """Of either engine, in the first step and later; counted, logged with the name, and no warning of NumPy's."""
    mine = steprule.SGD(named(), lr=0.05, momentum=0.9, nonfinite="skip", **options)
    for step in range(3):
        if step == 1:
            give([mine], step)
            mine.step()
        give([mine], step, wrong, where)
        grads = [p.grad.clone() for p in all_params(mine)]
        before, norm = snapshot(mine), mine.grad_norm
        caplog.clear()
        with warnings.catch_warnings(), caplog.at_level(logging.INFO, "steprule"):
            warnings.simplefilter("error")
            mine.step()
        assert_unchanged(before, mine)
        torch.testing.assert_close(mine.grad_norm, norm, rtol=0, atol=0, equal_nan=True)
        for p, grad in zip(all_params(mine), grads, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=0, atol=0, equal_nan=True)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING and record.name == "steprule"
        assert record.getMessage().endswith(f"step skipped, gradients are not finite: {NAMES[where]}")
    assert mine.skipped_steps == 3 and mine.clipped_steps <= 1


def test_all_names_are_logged_up_to_five(caplog):
    """As other messages call them, where there are no names."""
    params = leaves([(2,)] * 8, torch.float32)
    mine = steprule.SGD([{"params": params[:6]}, {"params": params[6:]}], lr=0.05, nonfinite="skip")
    several = ", ".join(f"parameter {index} of group 0" for index in range(1, 6)) + " and 2 more"
    for count, expected in ((2, "parameter 0 of group 1, parameter 1 of group 1"), (7, several)):
        give([mine], 0)
        for p in params[-count:]:
            p.grad[0] = math.nan
        caplog.clear()
        mine.step()
        assert caplog.messages == [f"steprule: step skipped, gradients are not finite: {expected}"]


def test_states_of_parameters_that_join_in_a_skipped_step_are_taken_back():
    mine, its = steprule.SGD(plain(), lr=0.05, momentum=0.9, nonfinite="skip"), torch.optim.SGD(plain(), 0.05, 0.9)
    for step, (missing, wrong) in enumerate([(1, None), (None, math.inf), (1, None), (None, None)]):
        give([mine, its], step, wrong)
        if missing is not None:
            all_params(mine)[missing].grad = all_params(its)[missing].grad = None
        mine.step()
        if wrong is None:
            its.step()
        same_weights(mine, its)
        same_states(mine, its)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize(
    ("dtype", "magnitude", "clip"),
    [(torch.float64, 1e200, None), (torch.float32, 1e30, ClipNorm(1.0, 20)), (torch.float32, 0.0, ClipNorm(1.0, -1))],
)
def test_finite_gradients_are_no_reason_to_skip(dtype, magnitude, clip, nonfinite):
    """Even where their norm is not: the square of 1e200 is not, nor 1e30 to the power of 20, nor 0 to that of -1."""
    (p,) = params = leaves(((3,),), dtype)
    (q,) = others = leaves(((3,),), dtype)
    mine = steprule.SGD(params, lr=1e-200, nonfinite=nonfinite, clip=clip)
    its = torch.optim.SGD(others, lr=1e-200)
    p.grad, q.grad = torch.full_like(p, magnitude), torch.full_like(q, magnitude)
    mine.step()
    if clip is not None:
        clip_grad_norm_(others, clip.max_norm, clip.norm_type)
    its.step()
    assert mine.skipped_steps == 0
    assert torch.equal(p, q)


# Zeroing


def zeroed(optimizer):
    """Makes what is not finite 0, and counts it."""
    count = 0
    for p in all_params(optimizer):
        finite = torch.isfinite(p.grad)
        count += int((~finite).sum())
        p.grad = torch.where(finite, p.grad, 0)
    return count


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_zeroes_as_torch_steps_with_zeros(name):
    mine, its = (
        getattr(steprule, name)(named(), lr=0.05, nonfinite="zero"),
        getattr(torch.optim, name)(mixed(), lr=0.05),
    )
    count = 0
    for step, (wrong, where) in enumerate(itertools.product([*WRONG, None], range(len(NAMES) - 1))):
        give([mine, its], step, wrong, where)
        if wrong is not None:
            all_params(its)[0].grad[0, 0] = all_params(mine)[0].grad[0, 0] = -wrong
        grads = [p.grad.clone() for p in all_params(mine)]
        mine.step()
        for p, grad in zip(all_params(mine), grads, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=0, atol=0, equal_nan=True)
        count += zeroed(its)
        its.step()
        same_weights(mine, its)
        same_states(mine, its)
        assert mine.zeroed_elements == count
    assert mine.skipped_steps == 0 and count > 20


def zeroing_steps(mine, its, places):
    """Four steps with a wrong element each, in one parameter after the other, that one optimizer zeroes by itself."""
    for step in range(4):
        give([mine, its], step, WRONG[step % 3], step % places)
        zeroed(its)
        mine.step()
        its.step()
        same_weights(mine, its)
        yield step


@pytest.mark.parametrize(
    "clip",
    [2.0, ClipNorm(2.0, math.inf), ClipNorm(0.7, per_parameter=True), ClipValue(0.5), ClipQuantile(0.5)],
    ids=str,
)
def test_zeroes_before_it_clips(clip):
    """The norm is that of what is left."""
    mine, its = (steprule.SGD(plain(), lr=0.05, clip=clip, **more) for more in ({"nonfinite": "zero"}, {}))
    for _ in zeroing_steps(mine, its, places=2):
        torch.testing.assert_close(mine.grad_norm, its.grad_norm, equal_nan=True)
    assert mine.zeroed_elements == 4 and mine.clipped_steps == its.clipped_steps


def test_zeroes_before_it_clips_rows():
    """In both engines."""
    mine, its = (steprule.SGD(mixed(), lr=0.05, clip=ClipAdaptive(0.1), **more) for more in ({"nonfinite": "zero"}, {}))
    assert len([*zeroing_steps(mine, its, places=4)]) == mine.zeroed_elements == 4


def test_zeroes_sparse_gradients():
    mine, its = steprule.SGD(plain(), lr=0.05, nonfinite="zero"), torch.optim.SGD(plain(), lr=0.05)
    give([mine, its], 0)
    p, q = all_params(mine)[0], all_params(its)[0]
    values = torch.tensor([[1.0, math.nan, 2.0], [math.inf, 3.0, -math.inf]])
    p.grad = torch.sparse_coo_tensor(torch.tensor([[3, 1]]), values, (4, 3), check_invariants=True)
    q.grad = torch.zeros(4, 3).index_put_((torch.tensor([3, 1]),), torch.tensor([[1.0, 0, 2.0], [0, 3.0, 0]]))
    mine.step()
    its.step()
    same_weights(mine, its)
    assert mine.zeroed_elements == 3


# Raising


@pytest.mark.parametrize("options", [{}, {"clip": 2.0}], ids=str)
@pytest.mark.parametrize("where", range(len(NAMES) - 1), ids=NAMES[:-1])
@pytest.mark.parametrize("wrong", WRONG)
def test_raises_and_changes_nothing(wrong, where, options):
    """In the first step and later; the next step is as if nothing had been."""
    mine = steprule.SGD(named(), lr=0.05, momentum=0.9, nonfinite="raise", **options)
    its = torch.optim.SGD(mixed(), lr=0.05, momentum=0.9)
    for step in range(3):
        give([mine], step, wrong, where)
        before = snapshot(mine)
        with pytest.raises(RuntimeError, match=f"gradients are not finite: {NAMES[where]}; the step was not taken"):
            mine.step()
        assert_unchanged(before, mine)
        give([mine, its], step)
        mine.step()
        if options:
            clip_grad_norm_(all_params(its), 2.0)
        its.step()
        same_weights(mine, its)
        same_states(mine, its)
    assert mine.skipped_steps == 0


# Half precision, other formats, and no guard


@pytest.mark.parametrize("nonfinite", ["skip", "zero", "raise"])
@pytest.mark.parametrize("options", [{}, {"weights": "24bit", "states": "8bit"}], ids=["plain", "7 bytes"])
def test_overflow_of_float16(nonfinite, options):
    """70,000 is infinite in float16; weights and states of any format stay as they are."""
    mine, its = (
        steprule.AdamW(leaves(((4, 64),), torch.float16), lr=0.05, **options, **more)
        for more in ({"nonfinite": nonfinite}, {})
    )
    for step in range(4):
        give([mine, its], step)
        if step % 2 == 0:
            for optimizer in (mine, its):
                all_params(optimizer)[0].grad[3, 63] = torch.tensor(70_000.0).half()
            before = snapshot(mine)
            if nonfinite == "raise":
                with pytest.raises(RuntimeError, match=r"not finite: parameter 0 of group 0;"):
                    mine.step()
            else:
                mine.step()
            if nonfinite != "zero":
                assert_unchanged(before, mine)
                continue
            zeroed(its)
        else:
            mine.step()
        its.step()
        assert repr(snapshot(mine)) == repr(snapshot(its))
        assert all(torch.equal(p, q) for p, q in zip(all_params(mine), all_params(its), strict=True))
    assert (mine.skipped_steps, mine.zeroed_elements) == {"skip": (2, 0), "zero": (0, 2), "raise": (0, 0)}[nonfinite]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("clip", [2.0, ClipNorm(2.0, math.inf), ClipValue(0.5)], ids=str)
def test_without_a_guard_it_spreads_as_in_torch(clip, wrong):
    """An infinite norm makes finite elements 0 and the others NaN."""
    mine, its = steprule.SGD(plain(), lr=0.05, clip=clip), torch.optim.SGD(plain(), lr=0.05)
    give([mine, its], 0, wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine.step()
    if isinstance(clip, ClipValue):
        clip_grad_value_(all_params(its), 0.5)
    else:
        norm = clip_grad_norm_(all_params(its), 2.0, clip.norm_type if isinstance(clip, ClipNorm) else 2)
        torch.testing.assert_close(mine.grad_norm, norm, equal_nan=True)
    its.step()
    same_weights(mine, its)


@pytest.mark.parametrize("options", [{"nonfinite": "skip"}, {}], ids=str)
def test_the_quantile_of_norms_leaves_out_what_is_not_finite(options):
    """Without a guard the step multiplies the finite gradients by 0, as any clip of an infinite norm does."""
    mine, its = (steprule.SGD(plain(), lr=0.05, clip=ClipQuantile(0.5), **more) for more in (options, {}))
    for step in range(6):
        give([mine], step, math.inf if step % 2 else None)
        mine.step()
        if step % 2 == 0:
            give([its], step)
            its.step()
    for p, q in list(zip(all_params(mine), all_params(its), strict=True))[not options :]:
        same_tensor(p.detach(), q.detach(), "parameter")
    assert mine.skipped_steps == (3 if options else 0)


@pytest.mark.parametrize(
    ("value", "words"), [("skp", "nonfinite value: 'skp'; did you mean 'skip'"), (1, "nonfinite value: 1; it can be")]
)
def test_arguments_that_make_no_sense(value, words):
    with pytest.raises(ValueError, match=words):
        steprule.SGD(plain(), lr=0.05, nonfinite=value)


def test_counts_are_resumed_and_copied():
    mine = steprule.SGD(plain(), lr=0.05, nonfinite="skip")
    give([mine], 0, math.nan)
    mine.step()
    resumed = steprule.SGD(plain(), lr=0.05, nonfinite="skip")
    resumed.load_state_dict(mine.state_dict())
    assert resumed.skipped_steps == copy.deepcopy(mine).skipped_steps == 1


# GradScaler


class Twins:
    """Two models that begin equal, with steprule's and torch's optimizer and a GradScaler each."""

    def __init__(self, options, name="AdamW", own=None, **scaler):
        self.models = [torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)) for _ in "12"]
        for model in self.models:
            for i, p in enumerate(model.parameters()):
                p.data = random(p.shape, i, torch.float32)
        self.mine = (own or getattr(steprule, name))(self.models[0].parameters(), lr=0.05, **options)
        self.its = getattr(torch.optim, name)(self.models[1].parameters(), lr=0.05)
        self.optimizers = (self.mine, self.its)
        self.scalers = [torch.amp.GradScaler("cpu", **scaler) for _ in "12"]
        self.scales = []
        self.steps = 0

    def backward(self, wrong=None):
        self.steps += 1
        for model, optimizer, scaler in zip(self.models, self.optimizers, self.scalers, strict=True):
            optimizer.zero_grad()
            loss = model(random((4, 3), self.steps, torch.float32)).square().sum()
            scaler.scale(loss).backward()
            if wrong is not None:
                all_params(optimizer)[2].grad[1, 1] = wrong

    def step(self, clip=None, unscale=(False, False)):
        """Steps and compares."""
        for optimizer, scaler, first in zip(self.optimizers, self.scalers, unscale, strict=True):
            unscaled = scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED
            if not unscaled and (first or (clip is not None and optimizer is self.its)):
                scaler.unscale_(optimizer)
            if clip is not None and optimizer is self.its:
                clip_grad_norm_(all_params(optimizer), clip)
            scaler.step(optimizer)
            scaler.update()
        self.check()

    def check(self):
        scales = [(scaler.get_scale(), scaler._get_growth_tracker()) for scaler in self.scalers]
        assert scales[0] == scales[1]
        self.scales.append(scales[0][0])
        same_weights(self.mine, self.its)
        same_states(self.mine, self.its)


@pytest.mark.parametrize("unscale", [*itertools.product([False, True], repeat=2)], ids=str)
@pytest.mark.parametrize("options", ON, ids=str)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_steps_as_torch_with_a_scaler(name, options, unscale):
    """Weights, states and scales, with and without `unscale_`, which is also where torch must clip."""
    twins = Twins(options, name, init_scale=2.0**16, growth_interval=2)
    for step in range(9):
        twins.backward(WRONG[step % 3] if step in (0, 3, 4) else None)
        twins.step(options.get("clip"), unscale)
    assert len(set(twins.scales)) >= 3 and twins.mine.skipped_steps == 3
    if "clip" in options:
        assert twins.mine.clipped_steps == 6


@pytest.mark.parametrize("clip", [ClipValue(0.05), ClipAdaptive(0.05), ClipNorm(0.3, per_parameter=True)], ids=str)
def test_clips_what_is_unscaled(clip):
    """Judged by the same clip of gradients that were never scaled."""
    scaled = Twins({"clip": clip}, "SGD", init_scale=2.0**20)
    unscaled = Twins({"clip": clip}, "SGD", enabled=False)
    for _ in range(3):
        for twins in (scaled, unscaled):
            twins.backward()
            twins.scalers[0].step(twins.mine)
            twins.scalers[0].update()
        same_weights(scaled.mine, unscaled.mine)
    if not isinstance(clip, ClipValue):  # which needs no norm, but a scaler does
        torch.testing.assert_close(scaled.mine.grad_norm, unscaled.mine.grad_norm)
    assert scaled.mine.clipped_steps == unscaled.mine.clipped_steps


@pytest.mark.parametrize("clip", [2.0, ClipAdaptive(0.05), ClipNorm(0.3, per_parameter=True)], ids=str)
def test_clips_what_is_unscaled_in_both_engines(clip):
    mine, its = (steprule.SGD(mixed(), lr=0.05, clip=clip) for _ in "12")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    for step in range(3):
        give([mine, its], step)
        for p in all_params(mine):
            p.grad = scaler.scale(p.grad)
        scaler.step(mine)
        scaler.update()
        its.step()
        same_weights(mine, its)
        torch.testing.assert_close(mine.grad_norm, its.grad_norm)
    assert mine.clipped_steps == its.clipped_steps == 3


@pytest.mark.parametrize("options", ON, ids=str)
def test_what_unscale_has_found_counts_though_gradients_are_mended(options):
    twins = Twins(options, init_scale=2.0**16)
    for wrong in (None, math.inf, None):
        twins.backward(wrong)
        for optimizer, scaler in zip(twins.optimizers, twins.scalers, strict=True):
            scaler.unscale_(optimizer)
            zeroed(optimizer)
        twins.step(options.get("clip"))
    assert twins.mine.skipped_steps == 1


@pytest.mark.parametrize("options", ON, ids=str)
def test_a_scale_that_is_far_too_large_comes_down(options):
    """Gradients overflow by themselves; norms are of unscaled ones."""
    twins = Twins(options, init_scale=2.0**126)
    for _ in range(12):
        twins.backward()
        twins.step(options.get("clip"))
    assert twins.scales[-1] < 2.0**124 and 1 < twins.mine.skipped_steps < 12
    own, its = twins.mine.grad_norm, [p.grad / twins.scalers[0].get_scale() for p in all_params(twins.mine)]
    torch.testing.assert_close(own, torch.nn.utils.get_total_norm(its))


@pytest.mark.parametrize("options", [*ON, {"nonfinite": "zero"}, {"clip": ClipValue(1.0)}], ids=str)
def test_gradients_stay_scaled_and_are_read_once(options, monkeypatch):
    """torch's pass over the gradients is not made, by any way that a scaler has."""
    calls = []
    real = torch._amp_foreach_non_finite_check_and_unscale_
    monkeypatch.setattr(
        torch, "_amp_foreach_non_finite_check_and_unscale_", lambda *args: calls.append(1) or real(*args)
    )
    twins = Twins(options, init_scale=2.0**16)
    twins.backward()
    grads = [(p.grad, p.grad.clone(), p.grad._version) for p in all_params(twins.mine)]
    twins.scalers[0].step(twins.mine)
    for p, (grad, before, version) in zip(all_params(twins.mine), grads, strict=True):
        assert p.grad is grad and torch.equal(grad, before) and grad._version == version
    assert not calls
    twins.scalers[1].step(twins.its)
    assert calls


def test_without_options_a_scaler_does_as_with_torch():
    """Gradients too are unscaled in place."""
    twins = Twins({}, init_scale=2.0**16, growth_interval=2)
    for step in range(6):
        twins.backward(math.inf if step == 2 else None)
        twins.step()
        for p, q in zip(all_params(twins.mine), all_params(twins.its), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        assert twins.mine.skipped_steps == 0


def test_a_scaler_and_zeroing():
    """The step is taken with what is finite, and the scale comes down all the same."""
    twins = Twins({"nonfinite": "zero"}, init_scale=2.0**16)
    for step in range(4):
        wrong = math.inf if step == 1 else None
        twins.backward(wrong)
        zeroed(twins.its)
        if wrong is not None:
            twins.scalers[1].update(2.0**15)
        for optimizer, scaler in zip(twins.optimizers, twins.scalers, strict=True):
            scaler.step(optimizer)
            scaler.update()
        assert twins.scalers[0].get_scale() == (2.0**16 if step == 0 else 2.0**15)
    assert twins.mine.zeroed_elements == 1 and twins.mine.skipped_steps == 0


@pytest.mark.parametrize("unscale", [False, True])
def test_a_scaler_and_raising(unscale):
    """Nothing changes, the scale can come down, and the next step works."""
    twins = Twins({"nonfinite": "raise"}, init_scale=2.0**16)
    twins.backward(math.inf)
    before = snapshot(twins.mine)
    if unscale:
        twins.scalers[0].unscale_(twins.mine)
    with pytest.raises(RuntimeError, match="gradients are not finite"):
        twins.scalers[0].step(twins.mine)
    assert_unchanged(before, twins.mine)
    twins.scalers[0].update()
    twins.scalers[1].step(twins.its)
    twins.scalers[1].update()
    twins.check()
    twins.backward()
    twins.step()
    assert twins.scales[-1] == 2.0**15


def test_overflows_under_a_scaler_are_no_warnings(caplog):
    """A scaler looks for the largest scale that works: they are part of it."""
    twins = Twins({"nonfinite": "skip"}, init_scale=2.0**16)
    with caplog.at_level(logging.INFO, "steprule"):
        for unscale in ((False, False), (True, True)):
            twins.backward(math.inf)
            twins.step(unscale=unscale)
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 2
    assert "not finite: parameter 2 of group 0" in caplog.messages[0]


def test_a_step_by_hand_after_a_scaler_is_none_of_its():
    """Scale and verdict are forgotten after each step."""
    twins = Twins({"clip": 1.0}, init_scale=2.0**16)
    twins.backward(math.inf)
    twins.step(1.0)
    for model, optimizer in zip(twins.models, twins.optimizers, strict=True):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
    twins.mine.step()
    clip_grad_norm_(all_params(twins.its), 1.0)
    twins.its.step()
    same_weights(twins.mine, twins.its)


def test_a_step_without_gradients_finds_nothing():
    """After one that overflowed: the scale does not come down a second time."""
    twins = Twins({"nonfinite": "skip"}, init_scale=2.0**16)
    twins.backward(math.inf)
    twins.step()
    twins.mine.zero_grad()
    try:
        twins.scalers[0].step(twins.mine)
        twins.scalers[0].update()
    except AssertionError as error:  # torch.optim's answer
        assert "No inf checks were recorded" in str(error)
    assert twins.scalers[0].get_scale() == 2.0**15


def test_two_optimizers_with_one_scaler():
    """One overflows: the other steps, and the scale comes down for both."""

    def run(optimizers, scaler):
        for step in range(4):
            for i, optimizer in enumerate(optimizers):
                give([optimizer], step, math.inf if step == 1 and i == 1 else None)
                for p in all_params(optimizer):
                    p.grad *= scaler.scale(torch.ones(()))
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        return scaler.get_scale()

    mine = [steprule.SGD(plain(), lr=0.05, momentum=0.9, nonfinite="skip") for _ in "12"]
    its = [torch.optim.SGD(plain(), lr=0.05, momentum=0.9) for _ in "12"]
    scales = [run(optimizers, torch.amp.GradScaler("cpu", init_scale=2.0**16)) for optimizers in (mine, its)]
    assert scales[0] == scales[1] == 2.0**15
    for one, other in zip(mine, its, strict=True):
        same_weights(one, other)
    assert [one.skipped_steps for one in mine] == [0, 1]


@pytest.mark.parametrize("options", [{}, *ON], ids=str)
def test_with_a_schedule_that_wraps_step(options):
    twins = Twins(options, init_scale=2.0**16)
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) for optimizer in twins.optimizers]
    for step in range(5):
        twins.backward(math.nan if step == 2 else None)
        twins.step(options.get("clip"))
        for schedule in schedules:
            schedule.step()


@pytest.mark.parametrize("given", [(), (None,)], ids=["no argument", "closure"])
@pytest.mark.parametrize("options", [{}, *ON], ids=str)
@pytest.mark.parametrize("unscale", [False, True])
def test_a_subclass_with_a_step_of_its_own(options, given, unscale):
    """It takes no grad_scaler: torch tells it the scale by attributes."""

    class Counting(steprule.AdamW):
        taken = 0

        def step(self, closure=None):
            self.taken += 1
            return super().step(*given)

    twins = Twins(options, own=Counting, init_scale=2.0**16, growth_interval=2)
    for step in range(6):
        twins.backward(math.inf if step in (0, 3) else None)
        twins.step(options.get("clip"), (unscale, unscale))
    assert twins.mine.taken >= 4
    assert not hasattr(twins.mine, "found_inf") and not hasattr(twins.mine, "grad_scale")


@pytest.mark.parametrize("options", [{}, *ON], ids=str)
def test_with_hooks(options):
    """They run whether a step is taken or skipped inside; what they see is not scaled back."""
    twins = Twins(options, init_scale=2.0**16)
    called = []
    twins.mine.register_step_pre_hook(lambda *_: called.append("before"))
    twins.mine.register_step_post_hook(lambda *_: called.append("after"))
    for step in range(4):
        twins.backward(math.inf if step == 2 else None)
        twins.step(options.get("clip"))
    assert called == ["before", "after"] * (4 if options else 3)


@pytest.mark.parametrize("options", ON, ids=str)
def test_a_disabled_scaler_is_not_there(options):
    twins = Twins(options, enabled=False)
    for _ in range(3):
        twins.backward()
        if "clip" in options:
            clip_grad_norm_(all_params(twins.its), 1.0)
        for optimizer, scaler in zip(twins.optimizers, twins.scalers, strict=True):
            scaler.step(optimizer)
            scaler.update()
        same_weights(twins.mine, twins.its)
    twins.backward()
    assert twins.scalers[0].step(twins.mine, lambda: 7.0) == 7.0


def test_float16_gradients_under_a_scaler():
    """Which torch.optim refuses to unscale: those of float16 weights, as gradients that were never scaled."""
    mine, its = (
        steprule.SGD(leaves(((40, 33), (5,)), torch.float16), lr=2.0**-6, momentum=0.5, **more)
        for more in ({"nonfinite": "skip"}, {})
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        give([mine, its], step)
        for p in all_params(mine):
            p.grad = scaler.scale(p.grad)
        if step == 1:
            all_params(mine)[0].grad[0, 0] = math.inf
        else:
            its.step()
        scaler.step(mine)
        scaler.update()
        assert all(torch.equal(p, q) for p, q in zip(all_params(mine), all_params(its), strict=True))
    assert scaler.get_scale() == 2.0**9 and mine.skipped_steps == 1


def test_no_warning_reaches_the_user():
    """torch's that the way in which it passes the scaler will change, though every warning be an error."""
    twins = Twins({"clip": 1.0}, init_scale=2.0**16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            twins.backward()
            twins.step(1.0)
        with pytest.raises(FutureWarning, match="another"):
            warnings.warn("another", FutureWarning, stacklevel=1)


def test_warnings_of_the_user_come_once():
    """To change the filters in every step would make Python forget which warnings it has shown."""
    twins = Twins({"clip": 1.0}, init_scale=2.0**16)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(4):
            warnings.warn("of the user", UserWarning, stacklevel=1)
            twins.backward()
            twins.step(1.0)
    assert [str(warning.message) for warning in shown].count("of the user") <= 2  # once before the filter is there


def test_only_a_scaler_hears_that_a_step_unscales():
    """Lightning asks whether it may clip: it unscales first then, and the step takes that."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = steprule.SGD([param], lr=1.0, clip=0.5, nonfinite="skip")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for value, expected in ((1.0, 0.75), (float("inf"), 0.75)):
        scaler.scale((param * value).sum()).backward()
        assert not optimizer._step_supports_amp_scaling
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        torch.testing.assert_close(param.detach(), torch.full((4,), expected))
    assert (optimizer.clipped_steps, optimizer.skipped_steps, scaler.get_scale()) == (1, 1, 4.0)
