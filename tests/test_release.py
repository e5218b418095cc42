"""Gradient release: the steps taken inside backward, beside the same steps taken after it."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import pickle
from functools import partial

import pytest
import torch
import torch.distributed as dist
from ddp import outcomes_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint

import steprule
from steprule.optimizer.groups import Groups
from steprule.rules import OWN
from steprule.services import Average, ClipAdaptive, ClipNorm, ClipQuantile, ClipValue
from steprule.services.gone import Gone
from steprule.trace.tracing import program_of

NAN = math.nan
SCALES = (1.0, 10.0, 0.1, 4.0, 0.02, 0.5)
"""Of the losses: norms that rise and fall, so that now the norm before is the larger one and now a parameter's own."""


class Net(nn.Module):
    """Some layers, given and taken float32 whatever they compute in."""

    def __init__(self, layers, dtype=torch.float32):
        super().__init__()
        self.layers = layers.to(dtype)
        self.dtype = dtype

    def forward(self, x):
        return self.layers(x.to(self.dtype)).float()


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return Net(nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 40), nn.Linear(40, 2)), dtype)


class Tied(nn.Module):
    """One tensor as the weight of two layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Branches(nn.Module):
    """Takes one of two ways, by the number of the call: the other's parameters get no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.ways = nn.ModuleList(nn.Linear(8, 2) for _ in range(2))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.ways[self.calls // 2 % 2](x)


class Odd(nn.Module):
    """Parameters that only the eager fallback takes: a strided view and a complex one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.strided = nn.Parameter(torch.randn(8, 10)[:, ::2])
        self.complex = nn.Parameter(torch.randn(5, 2, dtype=torch.complex64))
        self.last = nn.Linear(2, 2)

    def forward(self, x):
        return self.last(((x @ self.strided).to(torch.complex64) @ self.complex).abs())


class Run:
    """A model in training. All runs begin with the same weights and see the same batches.

    Args:
        cls: of the optimizer.
        released: whether it releases gradients.
        build: makes the model.
        wrap: makes of it what is called.
        groups: makes of it the optimizer's first argument.
        rank: whose batches to see.
        options: of the optimizer.
    """

    def __init__(
        self, cls=steprule.AdamW, *, released=True, build=net, wrap=None, groups=nn.Module.parameters, rank=0, **options
    ):
        self.model = build()
        self.outer = wrap(self.model) if wrap is not None else self.model
        self.optimizer = cls(groups(self.model), lr=0.05, **options)
        self.released, self.rank = released, rank
        self.norms = []
        if released:
            self.optimizer.release_gradients(self.outer)

    def loss(self, number, scale=1.0):
        generator = torch.Generator().manual_seed(1000 * self.rank + number)
        return scale * self.outer(torch.randn(6, 8, generator=generator)).square().mean()

    def accumulating(self):
        if self.released:
            return self.optimizer.accumulate()
        return self.outer.no_sync() if isinstance(self.outer, DDP) else contextlib.nullcontext()

    def grads(self):
        groups = self.optimizer.param_groups
        every = [p.grad for group in groups for p in group["params"]]
        return [grad for grad in every if grad is not None and not isinstance(grad, Gone)]

    def step(self, t, micro=1, exact=False, scale=1.0):
        self.optimizer.zero_grad()
        for k in range(1, micro):
            with self.accumulating():
                self.loss(100 * t + k, scale).backward()
            assert self.grads()
        loss = self.loss(100 * t, scale)
        if exact and self.released:
            with self.optimizer.measure():
                loss.backward(retain_graph=True)
            assert not self.grads()
            if self.outer is not self.model:
                loss = self.loss(100 * t, scale)
        loss.backward()
        if self.released and self.outer is self.model:
            assert not self.grads()
        self.optimizer.step()
        self.norms.append(self.optimizer.grad_norm.item())

    def train(self, start=0, scales=SCALES, **how):
        for t, scale in enumerate(scales, start):
            self.step(t, scale=scale, **how)
        assert not self.released or not self.grads()
        return self

    def kept(self):
        """Weights and states, by parameter."""
        state = self.optimizer.state
        return {n: {"": p.detach().clone(), **state.get(p, {})} for n, p in self.model.named_parameters()}

    def counts(self):
        o = self.optimizer
        records = o.telemetry.records if o.telemetry is not None else None
        counted = [self.norms, o.clipped_steps, o.skipped_steps, o.zeroed_elements, records]
        return repr([*counted, o.state_dict()["param_groups"][0]["services"]])  # in which nan is nan


def same(a, b):
    """Weights and states bit for bit."""
    mine, its = a.kept(), b.kept()
    assert {n: set(kept) for n, kept in mine.items()} == {n: set(kept) for n, kept in its.items()}
    for name, kept in mine.items():
        for key, value in kept.items():
            assert torch.equal(value, its[name][key]), (name, key)


def twins(*args, how=None, **kwargs):
    """A run without and one with release, checked to be the same."""
    plain, released = (Run(*args, released=released, **kwargs).train(**(how or {})) for released in (False, True))
    same(plain, released)
    return plain, released


def last_layer_free(model):
    """Groups: the last layer is left out of clipping."""
    *first, weight, bias = model.parameters()
    return [{"params": first}, {"params": [weight, bias], "clip": False}]


class Checkpointed(nn.Module):
    """Blocks in checkpoints, one of them more than once, between layers that are in none."""

    def __init__(self, uses, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.uses, self.reentrant = uses, reentrant

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.uses):
            x = checkpoint(lambda x: torch.tanh(self.block(x)), x, use_reentrant=self.reentrant)
        return self.last(x)


# What looks at one parameter alone


TOGETHER = ["Prodigy", "DAdaptAdam", "DoG"]


@pytest.mark.parametrize(
    "name", [rule.__name__ for rule in OWN.values() if rule.__name__ not in (*TOGETHER, "SparseAdam")]
)
def test_every_rule_takes_the_same_steps(name):
    cls = getattr(steprule, name)
    twins(
        cls,
        groups=nn.Module.parameters if program_of(cls.rule, cls.rule.hyperparameters).takes_vectors else matrices_of,
    )


def matrices_of(model):
    """Without vectors, which are then not trained."""
    return [param for param in model.parameters() if param.requires_grad_(param.dim() > 1).requires_grad]


@pytest.mark.parametrize("name", TOGETHER)
def test_rules_that_add_up_over_all_parameters_refuse(name):
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=f"{name} does not go with release_gradients"):
        getattr(steprule, name)(model.parameters()).release_gradients(model)


@pytest.mark.parametrize("released", [False, True])
def test_gradients_are_never_alive_together(released):
    run, alive = Run(released=False), []
    for p in run.model.parameters():
        p.register_post_accumulate_grad_hook(lambda _: alive.append(len(run.grads())))
    if released:
        run.optimizer.release_gradients(run.model)
    run.loss(0).backward()
    count = len(list(run.model.parameters()))
    assert alive == ([1] * count if released else [*range(1, count + 1)])
    assert len(run.grads()) == (0 if released else count)


@pytest.mark.parametrize("build", [Tied, Branches, Odd])
@pytest.mark.parametrize("options", [{}, {"average": 0.9}], ids=str)
def test_any_model(build, options):
    """Tied weights, parameters that rest in some steps (but their averages do not), eager ones."""
    twins(build=build, **options)


@pytest.mark.parametrize("micro", [2, 3])
def test_accumulation(micro):
    twins(how={"micro": micro})


def test_accumulate_without_release_does_nothing():
    run = Run(released=False)
    with run.optimizer.accumulate():
        run.loss(0).backward()
    assert run.grads()


def test_schedules_and_step_hooks():
    runs = [Run(released=released) for released in (False, True)]
    for run in runs:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, len(SCALES))
        calls = []
        run.optimizer.register_step_pre_hook(lambda *_, calls=calls: calls.append("before"))
        run.optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("after"))
        for t in range(len(SCALES)):
            run.step(t)
            schedule.step()
        assert calls == ["before", "after"] * len(SCALES)
    same(*runs)
    with pytest.raises(AssertionError):
        same(runs[0], Run().train(scales=[1.0] * len(SCALES)))


def test_closures():
    runs = [Run(released=released) for released in (False, True)]
    for run in runs:

        def closure(run=run):
            run.optimizer.zero_grad()
            loss = run.loss(0)
            loss.backward()
            return loss

        run.losses = [run.optimizer.step(closure).item() for _ in range(3)]
    same(*runs)
    assert runs[0].losses == runs[1].losses and len(set(runs[0].losses)) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"clip": ClipValue(0.01)},
        {"clip": ClipAdaptive(0.05)},
        {"clip": ClipNorm(0.1, per_parameter=True)},
        {"nonfinite": "zero"},
        {"average": Average(0.9, warmup=True)},
        {"telemetry": 2},
    ],
    ids=str,
)
def test_services_that_look_at_one_parameter_are_exact(options):
    scales = [NAN if options.get("nonfinite") and t == 2 else scale for t, scale in enumerate(SCALES)]
    plain, released = twins(groups=last_layer_free, how={"scales": scales}, **options)
    assert plain.counts() == released.counts()
    assert plain.optimizer.clipped_steps or not isinstance(options.get("clip"), (ClipAdaptive, ClipNorm))
    assert plain.optimizer.zeroed_elements or "nonfinite" not in options


FORMATS = {"weights": "24bit", "states": "8bit"}


@pytest.mark.parametrize("options", [FORMATS, {**FORMATS, "grads": "32bit"}, {"grads": "float32"}], ids=str)
@pytest.mark.parametrize("how", [{}, {"micro": 3}], ids=str)
def test_formats(options, how):
    twins(build=partial(net, torch.bfloat16), how=how, **options)


def test_groups_that_join_later():
    runs = []
    for released in (False, True):
        run = Run(released=released, groups=lambda model: model.layers[0].parameters())
        run.model.layers[2:].requires_grad_(False)
        run.train()
        run.model.layers[2:].requires_grad_(True)
        run.optimizer.add_param_group({"params": [*run.model.layers[2:].parameters()], "lr": 0.01})
        runs.append(run.train(start=10))
    same(*runs)


def test_parameters_of_another_optimizer():
    """Their gradients come as ever, once, whether or not a backward pass measures."""
    _others_keep_their_gradients()


def _others_keep_their_gradients(**kwargs):
    for how in ({}, {"exact": True}):
        left = []
        for released in (False, True):
            run = Run(steprule.SGD, released=released, groups=lambda m: m.layers[0].parameters(), clip=0.3, **kwargs)
            for t in range(3):
                run.model.zero_grad()
                run.step(t, **how)
            left.append([p.grad for p in run.model.layers[2:].parameters()])
        for one, other in zip(*left, strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, how=how: f"{how}: {text}")


@pytest.mark.parametrize("uses", [1, 2, 3])
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("exact", [False, True], ids=["", "measured"])
def test_checkpoints(uses, reentrant, exact, caplog):
    """A reentrant one brings a part of a gradient for each use, each of which looks complete."""
    runs = [
        Run(
            steprule.SGD,
            released=released,
            build=partial(Checkpointed, uses, reentrant),
            **({"clip": 0.3} if exact else {}),
        )
        for released in (False, True)
    ]
    for run in runs:
        for t in range(3):
            run.optimizer.zero_grad()
            loss = run.loss(t)
            if exact and run.released:
                with run.optimizer.measure():
                    loss.backward(retain_graph=True)
                assert not run.grads()
            loss.backward()
            if run.released:
                assert len(run.grads()) == 2 * reentrant  # the block's weight and bias
            run.optimizer.step()
            run.norms.append(run.optimizer.grad_norm.item())
    same(*runs)
    assert str(runs[0].norms) == str(runs[1].norms)
    assert [record.message for record in caplog.records] == [
        "steprule: gradients inside a reentrant checkpoint may not be complete and are kept until step(); "
        "torch.utils.checkpoint with use_reentrant=False releases them"
    ] * reentrant


def test_a_parameter_inside_and_outside_a_reentrant_checkpoint_is_refused():
    model = Checkpointed(1, True)
    model.last = model.block
    optimizer = steprule.SGD(model.parameters(), lr=0.1)
    optimizer.release_gradients(model)
    with pytest.raises(RuntimeError, match="checkpoints of what is used elsewhere too need use_reentrant=False"):
        model(torch.ones(1, 8)).sum().backward()


def cell(**options):
    """A notebook's cell that makes a model's optimizer."""
    made = steprule.SGD(MODEL[0].parameters(), lr=0.05, **options)
    made.itself = made  # so that it lives until the collector comes
    return made


MODEL = [None]


def test_a_cell_that_runs_again_takes_its_parameters_over(caplog):
    plain = Run(steprule.SGD, released=False).train()
    MODEL[0] = net()
    released = [cell(), cell()]
    for optimizer in released:
        optimizer.release_gradients(MODEL[0])
    assert [r.message for r in caplog.records] == [
        "steprule: parameters are released by this optimizer from now on, and no longer by one made before"
    ]
    run = Run(steprule.SGD, released=False)
    run.model = run.outer = MODEL[0]
    run.optimizer, run.released = released[1], True
    run.train()
    same(plain, run)
    before = [p.detach().clone() for p in MODEL[0].parameters()]
    with pytest.raises(RuntimeError, match="6 parameters of this optimizer were taken over by another one's"):
        released[0].step()
    assert all(map(torch.equal, before, MODEL[0].parameters()))


def test_some_parameters_are_taken_over():
    model = net()
    first, second = (steprule.SGD(params, lr=0.05) for params in (model.parameters(), model.layers[3].parameters()))
    first.release_gradients(model)
    second.release_gradients(model)
    model(torch.ones(1, 8)).sum().backward()
    second.step()
    assert [type(p.grad) for p in model.parameters()] == [Gone] * 4 + [type(None)] * 2
    with pytest.raises(RuntimeError, match="2 parameters of this optimizer were taken over"):
        first.step()


def test_parameters_come_back_when_the_optimizer_that_took_them_is_gone():
    plain = Run(steprule.SGD, released=False).train()
    run = Run(steprule.SGD).train(scales=SCALES[:3])
    other = steprule.SGD(run.model.layers[0].parameters(), lr=0.05)
    other.release_gradients(run.model)
    with pytest.raises(RuntimeError, match="2 parameters of this optimizer were taken over"):
        run.optimizer.step()
    del other
    run.optimizer.zero_grad()
    run.loss(300, SCALES[3]).backward()
    assert len(run.grads()) == 2  # which are released from the next backward pass on
    run.optimizer.step()
    run.train(start=4, scales=SCALES[4:])
    same(plain, run)


def test_groups_are_looked_at_once(monkeypatch):
    """And each once more where a plan is made for its parameter."""
    calls = []
    look = Groups.check_keys
    model = nn.ParameterList(nn.Parameter(torch.zeros(2)) for _ in range(8))
    optimizer = steprule.SGD([{"params": [param]} for param in model], lr=0.5)
    optimizer.release_gradients(model)
    monkeypatch.setattr(Groups, "check_keys", lambda self, group: calls.append(look(self, group)))
    for count in (16, 16):
        sum(param.sum() for param in model).backward()
        optimizer.step()
        assert len(calls) == count
    assert all(param.tolist() == [-1.0] * 2 for param in model)


@pytest.mark.parametrize("steps", [0, 1], ids=["at first", "later"])
def test_an_optimizer_beside_one_that_releases_says_why_it_has_no_gradients(steps):
    model = net()
    plain, released = (steprule.SGD(model.parameters(), lr=0.05) for _ in range(2))
    for _ in range(steps):
        model(torch.ones(1, 8)).sum().backward()
        plain.step()
    plain.zero_grad()
    released.release_gradients(model)
    model(torch.ones(1, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="another optimizer that is still alive releases the gradients"):
        plain.step()
    released.step()
    del released
    model(torch.ones(1, 8)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    plain.step()
    assert not any(map(torch.equal, before, model.parameters()))


def test_a_released_optimizer_that_is_gone_is_not_missed(caplog):
    model = net()
    for _ in range(2):
        optimizer = steprule.SGD(model.parameters(), lr=0.05)
        optimizer.release_gradients(model)
        del optimizer
    assert not caplog.records


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
def test_a_copy_says_that_it_releases_nothing(copied, caplog):
    run = Run(steprule.SGD).train()
    model, optimizer = copied((run.model, run.optimizer))
    copied((run.model, run.optimizer))
    assert [record.message for record in caplog.records] == [
        "steprule: a copy of an optimizer releases no gradients until its own release_gradients() is called"
    ]
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(1, 8)).sum().backward()
    assert all(map(torch.equal, before, model.parameters()))
    optimizer.step()
    assert not any(map(torch.equal, before, model.parameters()))


def test_a_group_appended_by_hand_is_released_too():
    model = net()
    first, last = model.layers[:3].parameters(), list(model.layers[3].parameters())
    optimizer = steprule.SGD(first, lr=0.05)
    optimizer.release_gradients(model)
    optimizer.param_groups.append({"params": last})
    for _ in range(2):
        before = [p.detach().clone() for p in last]
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()
        assert not any(map(torch.equal, before, last))
        assert all(p.grad is None for p in last)
    model(torch.ones(1, 8)).sum().backward()
    assert all(isinstance(p.grad, Gone) for p in last)  # by now inside backward


def test_frozen_parameters_and_their_thaw():
    runs = []
    for released in (False, True):
        run = Run(released=False)
        run.model.layers[0].requires_grad_(False)
        if released:
            run.optimizer.release_gradients(run.model)
        run.train()
        run.model.layers[0].requires_grad_(True)
        runs.append(run.train(start=10))
    same(*runs)


# What needs all gradients, exactly: two backward passes


@pytest.mark.parametrize(
    "options",
    [
        {"clip": 0.3},
        {"clip": ClipNorm(0.1, norm_type=math.inf)},
        {"clip": ClipNorm(0.1, per_parameter=True)},
        {"clip": ClipQuantile(0.4, window=3)},
        {"nonfinite": "skip"},
        {"nonfinite": "skip", "clip": 0.3, "average": 0.9, "telemetry": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("build", [net, Odd])
def test_two_backward_passes_are_exact(options, build):
    scales = [NAN if options.get("nonfinite") and t in (0, 3) else scale for t, scale in enumerate(SCALES)]
    groups = last_layer_free if build is net else nn.Module.parameters
    plain, released = twins(steprule.SGD, build=build, groups=groups, how={"scales": scales, "exact": True}, **options)
    assert plain.counts() == released.counts()
    assert plain.optimizer.skipped_steps == 2 * ("nonfinite" in options)
    assert "clip" not in options or 0 < plain.optimizer.clipped_steps < len(SCALES)


@pytest.mark.parametrize("clip", [0.05, ClipValue(0.01), None], ids=str)
def test_clip_may_be_set_between_steps(clip):
    runs = [Run(steprule.SGD, released=released, clip=0.3).train(exact=True) for released in (False, True)]
    for run in runs:
        run.optimizer.clip = clip
        run.train(start=10, exact=True)
    same(*runs)


def test_averages_are_not_trained():
    run = Run(average=0.9).train()
    with run.optimizer.averaged():
        before = run.kept()
        with pytest.raises(RuntimeError, match="swapped with their averages"):
            run.loss(0).backward()
        assert all(torch.equal(p, before[name][""]) for name, p in run.model.named_parameters())


def test_measure_takes_no_step():
    run = Run(clip=0.3)
    before = run.kept()
    with run.optimizer.measure():
        run.loss(0).backward()
    assert all(torch.equal(p, before[name][""]) for name, p in run.model.named_parameters())
    assert not run.optimizer.state


# The same with one


def transcribe(limit, **kwargs):
    """Clipping with one backward pass, by torch.optim: no gradient is longer than `limit(norms so far)` if all were as
    long as the larger of the last step's norm and its own. Returns the run, and how often each case came up."""
    run = Run(torch.optim.SGD, released=False, **kwargs)
    run.optimizer.grad_norm = torch.zeros(())
    norms, cases = [], []
    free = [p for group in run.optimizer.param_groups if group.get("clip") is False for p in group["params"]]

    def clip(*_):
        own = {p: p.grad.double().norm().item() for p in run.model.parameters() if all(p is not q for q in free)}
        factors = []
        for p, norm in own.items():
            longest = max([*norms[-1:], norm])
            factors.append(min(1.0, limit(norms) / (longest + 1e-6)))
            p.grad.mul_(factors[-1])
            cases.append((longest == norm, factors[-1] < 1))
        norms.append(math.hypot(*own.values()))
        run.clipped += min(factors) < 1

    run.clipped = 0
    run.optimizer.register_step_pre_hook(clip)
    run.train()
    run.norms = norms
    assert len(set(cases)) > 2
    return run


def assert_clipped_like(transcribed, released):
    torch.testing.assert_close(released.kept(), transcribed.kept(), rtol=1e-4, atol=1e-6)
    assert released.norms == pytest.approx(transcribed.norms, rel=1e-4)
    assert released.optimizer.clipped_steps == transcribed.clipped


def test_one_backward_pass_clips_by_the_norm_before():
    expected = transcribe(lambda norms: 0.3, groups=last_layer_free)
    result = Run(steprule.SGD, groups=last_layer_free, clip=0.3).train()
    assert_clipped_like(expected, result)
    exact = Run(steprule.SGD, groups=last_layer_free, clip=0.3).train(exact=True)
    with pytest.raises(AssertionError):
        assert_clipped_like(expected, exact)


def test_one_backward_pass_clips_by_the_quantile_before():
    expected = transcribe(
        lambda norms: torch.tensor(norms[-3:], dtype=torch.float64).quantile(0.4) if norms else math.inf
    )
    assert_clipped_like(expected, Run(steprule.SGD, clip=ClipQuantile(0.4, window=3)).train())


def spoil(run, when, indices=(1,)):
    """Makes the gradients of some parameters NaN in some steps; without release they are dropped instead."""
    params = list(run.model.parameters())
    spoiled = [params[i] for i in indices]
    for t in range(5):
        if t in when and run.released:
            handles = [p.register_hook(lambda grad: grad * NAN) for p in spoiled]
            run.step(t)
            for handle in handles:
                handle.remove()
            continue
        run.loss(100 * t).backward()
        if t in when:
            for p in spoiled:
                p.grad = None
        run.optimizer.step()
        run.optimizer.zero_grad()


@pytest.mark.parametrize("when", [(0, 1), (2,)])
@pytest.mark.parametrize("indices", [(1,), (0, 2, 5)])
def test_one_backward_pass_guards_each_parameter(when, indices, caplog):
    runs = [Run(released=released, nonfinite="skip") for released in (False, True)]
    for run in runs:
        spoil(run, when, indices)
    same(*runs)
    assert runs[1].optimizer.skipped_steps == len(when)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "steprule: step skipped for some parameters"
    ] * len(when)
    assert math.isfinite(runs[1].optimizer.grad_norm)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("first", ["load", "release"])
def test_a_checkpoint_continues_bit_for_bit(first, exact):
    """The norm before is remembered, and of what was measured nothing else."""
    before, after = {"scales": SCALES[:2], "exact": exact}, {"start": 10, "scales": SCALES[2:]}
    whole = Run(steprule.SGD, clip=0.3).train(**before).train(**after)
    half = Run(steprule.SGD, clip=0.3).train(**before)
    file = io.BytesIO()
    torch.save([half.model.state_dict(), half.optimizer.state_dict()], file)
    file.seek(0)
    weights, states = torch.load(file, weights_only=True)
    resumed = Run(steprule.SGD, released=first == "release", clip=0.3)
    resumed.model.load_state_dict(weights)
    resumed.optimizer.load_state_dict(states)
    if first == "load":
        resumed.optimizer.release_gradients(resumed.model)
    resumed.released = True
    resumed.train(**after)
    same(whole, resumed)
    assert resumed.optimizer.clipped_steps == whole.optimizer.clipped_steps
    for group in states["param_groups"]:
        group["services"] = {**group["services"], "norm": 1e-3}
    half.optimizer.load_state_dict(states)
    with pytest.raises(AssertionError):
        same(whole, half.train(**after))


def test_a_step_without_a_backward_pass_is_none():
    run = Run(clip=0.3, average=0.9, telemetry=1).train(exact=True)
    before, counts, saved = run.kept(), run.counts(), run.optimizer.state_dict()["param_groups"][0]["services"]
    before = {n: {k: v.clone() for k, v in kept.items()} for n, kept in before.items()}
    for _ in range(2):
        run.optimizer.step()
    torch.testing.assert_close(run.kept(), before, rtol=0, atol=0)
    assert (run.counts(), run.optimizer.state_dict()["param_groups"][0]["services"]) == (counts, saved)


def test_contexts_of_accumulation_may_be_nested():
    model, twin = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    twin.load_state_dict(model.state_dict())
    released, plain = steprule.SGD(model.parameters(), lr=0.1), steprule.SGD(twin.parameters(), lr=0.1)
    released.release_gradients(model)
    for one, optimizer in ((model, released), (twin, plain)):
        with optimizer.accumulate():
            with optimizer.accumulate():
                one(torch.ones(1, 2)).sum().backward()
            one(torch.full((1, 2), 2.0)).sum().backward()
        one(torch.full((1, 2), 3.0)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


def test_a_backward_pass_does_not_step_averaged_weights():
    model = torch.nn.Linear(2, 2)
    optimizer = steprule.ScheduleFreeSGD(model.parameters(), lr=0.1)
    optimizer.release_gradients(model)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    optimizer.eval()
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"call train\(\) of the optimizer before backward\(\)"):
        model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight, before)


# What does not go together


@pytest.mark.parametrize(
    ("options", "message"),
    [({"nonfinite": "raise"}, 'nonfinite="raise" does not go with'), ({"differentiable": True}, "differentiable=True")],
)
def test_what_would_undo_steps_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Run(**options)


def test_release_is_for_one_model_and_once():
    run = Run()
    with pytest.raises(RuntimeError, match="was called before"):
        run.optimizer.release_gradients(run.model)
    other = Run(released=False)
    with pytest.raises(ValueError, match="parameter 0 of group 0 is not one of the model"):
        other.optimizer.release_gradients(run.model)
    other.optimizer.release_gradients(other.model)  # a refusal leaves nothing behind


def test_measure_is_refused_where_it_would_be_wrong():
    run = Run(released=False)
    with pytest.raises(RuntimeError, match=r"call release_gradients\(model\) first"):
        run.optimizer.measure()
    run = Run(clip=0.3)
    with run.optimizer.accumulate():
        run.loss(0).backward()
    with pytest.raises(RuntimeError, match="begins without gradients"), run.optimizer.measure():
        pass
    run.loss(1).backward()
    with pytest.raises(RuntimeError, match="comes before the step's other backward pass"), run.optimizer.measure():
        pass
    run.optimizer.step()
    run.step(1, exact=True)


@pytest.mark.filterwarnings("ignore:GradScaler:FutureWarning")
def test_a_second_backward_pass_before_step_is_refused():
    model = net()
    optimizer = steprule.SGD(model.parameters(), lr=0.1)
    optimizer.release_gradients(model)
    batch = torch.ones(4, 8)
    loss = model(batch).sum()
    loss.backward()
    stepped = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="accumulate"):
        model(batch).sum().backward()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), stepped, strict=True))
    optimizer.zero_grad()
    optimizer.step()
    model(batch).sum().backward()


def test_a_pass_that_was_interrupted_is_closed_by_step():
    """As the message says, whether it raised or someone stopped between it and step()."""
    model = net()
    optimizer = steprule.SGD(model.parameters(), lr=0.1)
    optimizer.release_gradients(model)
    batch = torch.ones(4, 8)

    def fail(_):
        raise ZeroDivisionError

    first = next(iter(model.children()))
    out = model(batch)
    handle = next(first.parameters()).register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        out.sum().backward()
    handle.remove()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"If the pass before was interrupted, step\(\) closes it"):
        model(batch).sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    model(batch).sum().backward()
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("model", [lambda m: m.parameters(), lambda m: list(m.parameters()), lambda m: None])
def test_release_takes_a_model(model):
    own = net()
    optimizer = steprule.SGD(own.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"release_gradients\(\) takes the model .*, not "):
        optimizer.release_gradients(model(own))
    optimizer.release_gradients(own)


OUTSIDE = {
    "clip_grad_norm_": lambda run: nn.utils.clip_grad_norm_(run.model.parameters(), 0.1),
    "one by one": lambda run: nn.utils.clip_grad_norm_(run.model.parameters(), 0.1, foreach=False),
    "clip_grad_value_": lambda run: nn.utils.clip_grad_value_(run.model.parameters(), 0.1),
    "a norm": lambda run: [p.grad.norm() for p in run.model.parameters()],
    "numbers": lambda run: [p.grad.sum().item() for p in run.model.parameters()],
    "division": lambda run: [p.grad.div_(2) for p in run.model.parameters()],
}


@pytest.mark.parametrize("how", OUTSIDE)
def test_what_uses_gradients_after_backward_is_told_that_they_are_gone(how):
    run = Run().train(1)
    run.loss(1).backward()
    before = run.kept()
    with pytest.raises(RuntimeError, match=r"freed their gradients.*clip=.*gradient_clip_val.*OptimizerCallback"):
        OUTSIDE[how](run)
    for p in run.model.parameters():
        assert isinstance(p.grad, Gone) and p.grad.shape == p.shape and p.grad.data_ptr() == 0
        assert repr(p.grad).startswith("a gradient of shape")
    assert all(torch.equal(p, before[name][""]) for name, p in run.model.named_parameters())
    run.optimizer.step()
    assert all(p.grad is None for p in run.model.parameters())
    run.train(start=2)


def test_a_scaler_that_unscales_is_told_so():
    run, scaler = Run(), torch.amp.GradScaler("cpu")
    scaler.scale(run.loss(0)).backward()
    with pytest.raises(RuntimeError, match="Instead of a GradScaler, use bfloat16"):
        scaler.unscale_(run.optimizer)


@pytest.mark.parametrize("steps", [0, 2], ids=["first", "later"])
def test_a_second_backward_pass_is_told_how_to_accumulate(steps):
    run = Run().train(steps)
    run.loss(8).backward()
    before = run.kept()
    with pytest.raises(
        RuntimeError, match=r"a second backward pass before step\(\).*OptimizerCallback\(release=True\)"
    ):
        run.loss(9).backward()
    assert all(torch.equal(p, before[name][""]) for name, p in run.model.named_parameters())
    run.optimizer.zero_grad()  # which is not step()
    with pytest.raises(RuntimeError, match=r"a second backward pass before step\(\)"):
        run.loss(9).backward()
    run.optimizer.step()
    run.train(start=10)


@pytest.mark.parametrize("steps", [0, 2], ids=["before its first step", "after some"])
def test_another_optimizers_step_is_refused_between_backward_and_step(steps):
    run = Run(released=False)
    other = steprule.SGD(run.model.parameters(), lr=0.1)
    for t in range(steps):
        run.loss(t).backward()
        other.step()
        other.zero_grad()
    run.optimizer.release_gradients(run.model)
    run.loss(5).backward()
    with pytest.raises(RuntimeError, match="another optimizer that is still alive releases the gradients"):
        other.step()
    run.optimizer.step()


def test_a_scaler_is_refused():
    run, scaler = Run(), torch.amp.GradScaler("cpu")
    scaler.scale(run.loss(0)).backward()
    with pytest.raises(RuntimeError, match="a GradScaler cannot step an optimizer with gradient release"):
        scaler.step(run.optimizer)


# Several processes


def same_everywhere(run):
    for p in run.model.parameters():
        first = p.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(p, first)


def beside_ddp(rank, how=None, counted=False, wrap=None, **options):
    """Twins of this optimizer, under DistributedDataParallel with these options."""
    plain, released = twins(wrap=partial(DDP, **(wrap or {})), how=how, rank=rank, **options)
    same_everywhere(released)
    assert not counted or plain.counts() == released.counts()
    return released


def several_buckets(rank, **how):
    released = beside_ddp(rank, wrap={"bucket_cap_mb": 0.002}, **how)
    assert released.outer._get_ddp_logging_data()["rebuilt_bucket_sizes"].count(",") > 0


def guard_all(rank):
    """Only the last process has a gradient that is not finite."""
    last = rank == dist.get_world_size() - 1
    scales = [NAN if last and t == 2 else scale for t, scale in enumerate(SCALES)]
    released = beside_ddp(rank, {"exact": True, "scales": scales}, True, cls=steprule.SGD, nonfinite="skip", clip=0.3)
    assert released.optimizer.skipped_steps == 1


def guard_each(rank):
    runs = [Run(released=r, wrap=DDP, rank=rank, nonfinite="skip") for r in (False, True)]
    for run in runs:
        spoil(run, (2,))
    same(*runs)
    same_everywhere(runs[1])
    assert runs[1].optimizer.skipped_steps == 1


def clip_by_the_norm_before(rank):
    expected = transcribe(lambda norms: 0.3, wrap=DDP, rank=rank)
    result = Run(steprule.SGD, wrap=DDP, rank=rank, clip=0.3).train()
    assert_clipped_like(expected, result)
    same_everywhere(result)


def second_backward_pass_without_a_forward_pass(rank):
    run = Run(wrap=DDP, rank=rank, clip=0.3)
    loss = run.loss(0)
    with run.optimizer.measure():
        loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(RuntimeError, match="every backward pass needs a forward pass of its own"):
        run.optimizer.step()


def last_micro_batch_in_accumulate(rank):
    run = Run(wrap=DDP, rank=rank)
    with run.optimizer.accumulate():
        run.loss(0).backward()
    with pytest.raises(RuntimeError, match=r"the last one must not be in accumulate\(\)"):
        run.optimizer.step()


def uses_of_gradients_after_backward(rank):
    """Also where they are parts of the reducer's buckets; training goes on after the error."""
    for options in ({}, VIEWS):
        plain, released = (Run(released=r, wrap=partial(DDP, **options), rank=rank) for r in (False, True))
        for run in (plain, released):
            run.loss(0).backward()
        with pytest.raises(RuntimeError, match=r"nothing can clip.*give the optimizer clip="):
            nn.utils.clip_grad_norm_(released.model.parameters(), 0.1)
        for run in (plain, released):
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.loss(1).backward()
            run.optimizer.step()
        same(plain, released)


def parameters_of_another_optimizer(rank):
    _others_keep_their_gradients(wrap=DDP, rank=rank)


def plain_module(rank):
    if dist.get_world_size() == 1:
        Run(rank=rank).train()
        return
    with pytest.raises(ValueError, match="give it the DistributedDataParallel module"):
        Run(rank=rank)


def find_unused_parameters(rank):
    with pytest.raises(ValueError, match="does not take find_unused_parameters=True"):
        Run(wrap=partial(DDP, find_unused_parameters=True), rank=rank)


VIEWS = {"gradient_as_bucket_view": True}
SGD = {"cls": steprule.SGD, "counted": True}
SCENARIOS = {
    "plain": beside_ddp,
    "plain, views": partial(beside_ddp, wrap=VIEWS),
    "several buckets": several_buckets,
    "several buckets, exact": partial(several_buckets, how={"exact": True}, clip=0.3, **SGD),
    "accumulate": partial(beside_ddp, how={"micro": 3}),
    "accumulate, views": partial(beside_ddp, how={"micro": 3}, wrap=VIEWS),
    "exact": partial(beside_ddp, how={"exact": True}, clip=0.3, **SGD),
    "exact, views": partial(beside_ddp, how={"exact": True}, wrap=VIEWS, clip=0.3, **SGD),
    "tied": partial(beside_ddp, build=Tied),
} | {
    function.__name__.replace("_", " "): function
    for function in (
        guard_all,
        guard_each,
        clip_by_the_norm_before,
        second_backward_pass_without_a_forward_pass,
        last_micro_batch_in_accumulate,
        parameters_of_another_optimizer,
        uses_of_gradients_after_backward,
        plain_module,
        find_unused_parameters,
    )
}


@pytest.fixture(scope="module", params=[1, 2], ids="world of {}".format)
def outcomes(request, tmp_path_factory):
    return outcomes_of(__name__, tmp_path_factory.mktemp("processes"), request.param)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_under_distributed_data_parallel(outcomes, scenario):
    for rank, outcome in enumerate(outcomes[scenario]):
        assert not outcome, f"rank {rank}: {outcome}"


def test_a_step_that_is_not_closed_is_not_loaded_over():
    model = net()
    optimizer = steprule.AdamW(model.parameters())
    optimizer.release_gradients(model)
    model(torch.ones(4, 8)).sum().backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    model(torch.ones(4, 8)).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"backward has stepped \d+ parameters.*call step\(\) before load_state_dict"
    ):
        optimizer.load_state_dict(saved)
    optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    optimizer.load_state_dict(saved)
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_a_clip_set_after_a_measuring_pass_remembers_its_norms():
    model = nn.Linear(3, 2)
    optimizer = steprule.SGD(model.parameters(), lr=0.1, clip=ClipNorm(1.0))
    optimizer.release_gradients(model)
    with optimizer.measure():
        model(torch.ones(1, 3)).sum().backward()
    optimizer.clip = ClipQuantile(0.5, 4)
    optimizer.step()
    for _ in range(3):
        with optimizer.measure():
            model(torch.ones(1, 3)).sum().backward()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert len(optimizer._core.services.ledger.recent) == 3
