"""Rules out of pieces: chains, their names, numbers and checkpoints; schedules; several optimizers as one."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import sys
from functools import partial

import numpy as np
import pytest
import torch
from forked import fresh
from torch import nn

import steprule
from steprule import Optimizer, Rule, RuleError, Together, arrays, chain, rules, transforms
from steprule.engine.eager import oracle
from steprule.formula import formula_text
from steprule.trace.tracing import trace


def run(optimizer_class, steps=5, seed=0, dtype=torch.float64, **settings):
    """Parameters and optimizer after some steps."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in ((4, 3), (7,), ())]
    optimizer = optimizer_class(params, **settings)
    for _ in range(steps):
        step(optimizer, params, generator)
    return params, optimizer


def step(optimizer, params, generator):
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
    optimizer.step()


def assert_same(ours, theirs, rtol=1e-12):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.detach(), y.detach(), rtol=rtol, atol=1e-14)


EQUAL = [
    (
        chain(transforms.decay, transforms.momentum),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2},
        {},
    ),
    (chain(transforms.nesterov), torch.optim.SGD, {"lr": 0.1, "momentum": 0.8}, {"nesterov": True}),
    (chain(transforms.sum_scaling), torch.optim.Adagrad, {"lr": 0.1, "eps": 0.01}, {}),
    (chain(rules.AdamW), torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.3}, {}),
    (chain(rules.NAdam), torch.optim.NAdam, {"lr": 0.01, "betas": (0.8, 0.9)}, {"momentum_decay": 0.004}),
]


@pytest.mark.parametrize(
    ("rule", "theirs", "settings", "more"), EQUAL, ids=lambda x: getattr(x, "__doc__", None) and ""
)
def test_chains_that_are_known_optimizers(rule, theirs, settings, more):
    rtol = 1e-6 if theirs is torch.optim.NAdam else 1e-12  # which keeps a float32 of its own
    assert_same(run(Optimizer.of(rule), **settings)[0], run(theirs, **settings, **more)[0], rtol)


def test_a_rule_goes_on_from_what_comes_before_it():
    """Sign, then Adam: as Adam given the signs."""
    first = run(Optimizer.of(chain(transforms.sign, rules.Adam)), lr=0.01)[0]
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((4, 3), (7,), ())
    ]
    optimizer = torch.optim.Adam(params, lr=0.01)
    for _ in range(5):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).sign()
        optimizer.step()
    assert_same(first, params)


def test_names_that_come_twice_are_numbered_and_defaults_can_be_given():
    rule = chain(transforms.ema, transforms.sign, partial(transforms.ema, beta=0.5), lr=0.3)
    assert [*rule.states] == ["exp_avg", "exp_avg_2"]
    assert dict(rule.hyperparameters) == {"lr": 0.3, "beta": 0.9, "beta_2": 0.5}
    given = {**rule.hyperparameters, "beta": 0.2, "beta_2": 0.4}
    param, states = oracle(
        rule, np.ones(1), np.full(1, 3.0), {"exp_avg": np.zeros(1), "exp_avg_2": np.zeros(1)}, 1, given
    )
    assert param == pytest.approx(1 - 0.3)  # the sign's debiased mean is 1
    assert states["exp_avg"] == pytest.approx(0.8 * 3) and states["exp_avg_2"] == pytest.approx(0.6)


def test_a_chain_is_one_pass_with_formats_services_and_options():
    rule = chain(transforms.ema, transforms.rms_scaling, transforms.trust, transforms.decay)
    assert len(trace(rule, rule.hyperparameters).last.outputs) == 3
    plain = run(Optimizer.of(rule), dtype=torch.float32, lr=0.01)
    small = run(
        Optimizer.of(rule), dtype=torch.float32, lr=0.01, clip=1e9, nonfinite="skip", states="bfloat16", average=0.9,
    )  # fmt: skip
    assert small[1].state[small[0][0]]["exp_avg"].dtype == torch.bfloat16
    assert_same(small[0], plain[0], 2e-2)
    cautious = run(Optimizer.of(rule), lr=0.01, cautious=True)[0]
    assert any(not torch.equal(x, y) for x, y in zip(cautious, run(Optimizer.of(rule), lr=0.01)[0], strict=True))


def test_checkpoints_of_a_chain_go_on_with_the_same_bits():
    rule = chain(transforms.ema, rules.NovoGrad, transforms.decay)
    params, optimizer = run(Optimizer.of(rule), lr=0.01)
    kept = io.BytesIO()
    torch.save(optimizer.state_dict(), kept)
    kept.seek(0)
    others = [param.detach().clone().requires_grad_() for param in params]
    fresh = Optimizer.of(rule)(others, lr=0.5)
    fresh.load_state_dict(torch.load(kept, weights_only=True))
    for one, its in ((optimizer, params), (fresh, others)):
        step(one, its, torch.Generator().manual_seed(5))
    assert all(map(torch.equal, params, others))


def test_a_function_of_ones_own_and_what_it_must_look_like():
    def halve(grad, *, share=0.5):
        return share * grad

    assert_same(run(Optimizer.of(chain(halve)), lr=0.2)[0], run(torch.optim.SGD, lr=0.1)[0])

    def without_default(grad, *, share):
        return share * grad

    def too_much(grad):
        return grad, grad

    with pytest.raises(RuleError, match="at least one part"):
        chain()
    with pytest.raises(RuleError, match="without_default needs a default for share"):
        chain(without_default)
    with pytest.raises(RuleError, match=r"must begin with \(grad, ...\), not \(x\)"):
        chain(lambda x: x)
    with pytest.raises(RuleError, match="chain\\(\\) got 3"):
        chain(3)
    with pytest.raises(
        RuleError, match=r"too_much returned 2 values to its chain and must return 1.* \(.*test_chain.py:"
    ):
        Optimizer.of(chain(too_much))([torch.zeros(1)])
    with pytest.raises(RuleError, match=r"must take param right after grad: \(grad, param, ...\) \(.*test_chain.py:"):
        chain(lambda grad, m, param: (grad, m))
    with pytest.raises(
        RuleError, match=r"p has a default: put \* before it to make it a hyperparameter \(.*test_chain.py:"
    ):
        chain(lambda grad, p=2.0: grad**p)
    with pytest.raises(RuleError, match="ScheduleFreeSGD cannot be a part of a chain: the weights lie between"):
        chain(rules.ScheduleFreeSGD)
    with pytest.raises(RuleError, match="Rprop cannot be a part of a chain: its states begin at its learning rate"):
        chain(rules.Rprop)
    with pytest.raises(TypeError, match="did you mean 'beta'"):
        Optimizer.of(chain(transforms.ema))([torch.zeros(1)], betta=0.5)


def test_decay_at_the_end_of_a_chain_may_be_cautious():
    names = {"lr": 0.1, "weight_decay": 0.5}
    signed = chain(transforms.ema, transforms.sign, transforms.decay)
    ours = run(Optimizer.of(signed), cautious_decay=True, beta=0.9, **names)[0]
    plain = chain(transforms.ema, transforms.sign, transforms.decay, lr=0.2)  # another class of the same formula
    assert plain.decay == signed.decay == "decoupled"
    assert_same(ours, run(steprule.Signum, momentum=0.9, cautious_decay=True, **names)[0])
    assert_same(run(Optimizer.of(signed), beta=0.9, **names)[0], run(Optimizer.of(plain), beta=0.9, **names)[0])
    for parts in (
        (transforms.decay, transforms.ema),
        (transforms.decay, transforms.sign, transforms.decay),
        (rules.AdamW,),
    ):
        assert chain(*parts).decay == "own"
        with pytest.raises(ValueError, match="cautious_decay needs a decay that is apart from the step"):
            Optimizer.of(chain(*parts))([torch.zeros(1)], cautious_decay=True)


def test_the_array_front_takes_a_chain():
    class Mine(arrays.Optimizer, rule=chain(transforms.momentum, transforms.sign)): ...

    param = np.ones(3)
    Mine([param], lr=0.1).step([np.array([2.0, 0.0, -5.0])])
    np.testing.assert_allclose(param, [0.9, 1.0, 1.1])


# Schedules


def test_any_hyperparameter_may_be_a_function_of_the_step():
    lrs, betas = [0.1, 0.05, 0.2, 0.01], [(0.5, 0.9), (0.6, 0.9), (0.7, 0.9), (0.8, 0.95)]
    params = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    mine = steprule.Adam([params[0]], lr=lambda step: lrs[(step - 1) % 4], betas=lambda step: betas[(step - 1) % 4])
    theirs = torch.optim.Adam([params[1]], lr=1.0)
    for number in range(4):
        assert mine.param_groups[0]["lr"] == lrs[number]
        theirs.param_groups[0].update(lr=lrs[number], betas=betas[number])
        for param in params:
            param.grad = torch.arange(3.0, dtype=torch.float64) - number
        mine.step(), theirs.step()
        assert_same([params[0]], [params[1]])


def test_schedules_of_groups_copies_and_checkpoints():
    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = steprule.SGD(
        [{"params": [first]}, {"params": [second], "lr": 0.5}], lr=lambda step: 1.0 / step, momentum=0.5
    )
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "weight_decay": lambda step: 0.1 * step})
    for param in (first, second):
        param.grad = torch.ones(2)
    optimizer.step()
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1 / 3), 0.5, pytest.approx(1 / 3)]
    assert optimizer.param_groups[2]["weight_decay"] == pytest.approx(0.3)
    fresh = steprule.SGD([torch.ones(2, requires_grad=True)], lr=lambda step: 1.0 / step, momentum=0.5)
    saved = optimizer.state_dict()
    assert not any(callable(value) for group in saved["param_groups"] for value in group.values())
    with pytest.raises(ValueError, match="parameter group"):
        fresh.load_state_dict(saved)
    one = steprule.SGD([first], lr=lambda step: 1.0 / step, momentum=0.5)
    one.step()
    fresh.load_state_dict(one.state_dict())
    assert fresh.param_groups[0]["lr"] == 0.5
    twin = copy.deepcopy(one)
    twin.step()
    assert (twin.param_groups[0]["lr"], one.param_groups[0]["lr"]) == (pytest.approx(1 / 3), 0.5)


def test_a_schedule_that_gives_nonsense_says_so():
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        steprule.SGD([torch.zeros(1)], lr=lambda step: -1.0)


def test_a_group_that_comes_later_is_at_the_same_step():
    first, second, third = (torch.zeros(2, requires_grad=True) for _ in range(3))
    optimizer = steprule.SGD([first], lr=lambda step: 1.0 / step)
    for param in (first, second, third):
        param.grad = torch.ones(2)
    for _ in range(9):
        optimizer.step()
    optimizer.add_param_group({"params": [second]})
    optimizer.step()
    assert second.tolist() == [pytest.approx(-0.1)] * 2
    plain = steprule.SGD([second], lr=1.0)
    plain.add_param_group({"params": [third], "lr": lambda step: 1.0 / step})
    for _ in range(2):
        plain.step()
    assert [group["lr"] for group in plain.param_groups] == [1.0, pytest.approx(1 / 3)]


def test_schedules_that_cannot_be():
    with pytest.raises(TypeError, match=r"betas\[0\] must be a number; a schedule gives all of betas"):
        steprule.AdamW([torch.zeros(1)], betas=(lambda step: 0.5, 0.9))
    for name, argument in (("SGD", "momentum"), ("AdamW", "betas"), ("RAdam", "betas")):
        with pytest.raises(ValueError, match=f"{argument} of ScheduleFree{name} cannot be a schedule"):
            getattr(steprule, f"ScheduleFree{name}")([torch.zeros(1)], **{argument: lambda step: 0.9})


# Several as one


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def make_together(net):
    return Together(
        [steprule.AdamW(net[0].parameters(), lr=0.01), steprule.SGD(net[2].parameters(), lr=0.1, momentum=0.9)]
    )


def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()


def test_each_part_has_its_own_rule_and_schedulers_see_all():
    net, other = model(), model()
    together = make_together(net)
    separate = [
        torch.optim.AdamW(other[0].parameters(), lr=0.01),
        torch.optim.SGD(other[2].parameters(), lr=0.1, momentum=0.9),
    ]
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 2, 0.5) for one in (together, *separate)]
    for _ in range(5):
        for own in (net, other):
            own.zero_grad()
            own(torch.ones(3, 4)).square().mean().backward()
        together.step()
        for one in separate:
            one.step()
        for scheduler in schedulers:
            scheduler.step()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert [group["lr"] for group in together.param_groups] == [0.0025, 0.025]


def test_checkpoints_of_several_as_one():
    net = model()
    together = make_together(net)
    train(net, together, 3)
    kept = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": together.state_dict()}, kept)
    kept.seek(0)
    saved = torch.load(kept, weights_only=True)
    other = model()
    other.load_state_dict(saved["model"])
    fresh = make_together(other)
    fresh.load_state_dict(saved["optimizer"])
    train(net, together, 2), train(other, fresh, 2)
    assert all(map(torch.equal, net.parameters(), other.parameters()))
    fresh.param_groups[0]["lr"] = 0.5
    assert fresh.optimizers[0].param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match="2 groups where there are 1"):
        Together([steprule.SGD(other.parameters())]).load_state_dict(saved["optimizer"])


def test_what_several_as_one_refuse():
    net = model()
    with pytest.raises(ValueError, match="optimizers is empty"):
        Together([])
    with pytest.raises(ValueError, match=r"a parameter of shape \(8, 4\) is in optimizers\[0\] and in optimizers\[1\]"):
        Together([steprule.SGD(net.parameters()), steprule.Adam(net.parameters())])
    together = make_together(net)
    together.optimizers[0].add_param_group({"params": [torch.zeros(1)]})
    assert len(together.param_groups) == 3  # and goes on seeing what theirs are
    with pytest.raises(TypeError, match="takes no param_group"):
        together.add_param_group({"params": [torch.zeros(1)]})
    with pytest.raises(TypeError, match=r"optimizers\[0\] must be an optimizer, not 'x'"):
        Together(["x"])
    with pytest.raises(TypeError, match="optimizers must be a list of optimizers"):
        Together(together)
    with pytest.raises(ValueError, match="state_dict holds 1 groups where there are 3"):
        together.load_state_dict(together.optimizers[0].state_dict() | {"param_groups": [{"params": [0]}]})
    with pytest.raises(ValueError, match="state_dict is not that of a Together: it has no 'param_groups'"):
        together.load_state_dict({"state": {}})


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    net, other = model(), model()
    together = make_together(net)
    train(net, together, 2)
    before = copy.deepcopy(together.state_dict())
    wrong = Together([steprule.AdamW(other[0].parameters(), lr=0.5), steprule.SGD([other[2].weight], lr=0.1)])
    with pytest.raises(ValueError, match="parameter group"):
        together.load_state_dict(wrong.state_dict())
    after = together.state_dict()
    assert repr(after) == repr(before)
    assert together.param_groups[0] is together.optimizers[0].param_groups[0] and together.param_groups[0]["lr"] == 0.01


def test_several_as_one_exchange_their_averaged_weights():
    net = model()
    together = Together([steprule.ScheduleFreeAdamW(net[0].parameters()), steprule.SGD(net[2].parameters(), lr=0.1)])
    train(net, together, 2)
    kept = net[0].weight.clone()
    together.eval()
    assert not torch.equal(kept, net[0].weight)
    together.train()
    torch.testing.assert_close(kept, net[0].weight)


def test_a_rule_is_a_rule():
    assert issubclass(chain(transforms.sign, name="Signs"), Rule)
    assert Optimizer.of(rules.Lion) is Optimizer.of(rules.Lion)


def test_rules_with_other_defaults():
    made = chain(partial(rules.AdamW, betas=(0.5, 0.6), amsgrad=True))
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizers = (
        Optimizer.of(made)(params[:1], lr=0.1),
        steprule.AdamW(params[1:], lr=0.1, betas=(0.5, 0.6), amsgrad=True),
    )
    for number in range(3):
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = torch.arange(3.0) - number
            optimizer.step()
    torch.testing.assert_close(*params)
    for wrong in (partial(rules.AdamW, beats=1), partial(transforms.ema, bta=0.3)):
        with pytest.raises(TypeError, match=r"got an unexpected argument .*; did you mean 'beta"):
            chain(wrong)


def test_hyperparameters_with_numbers_are_looked_at_as_those_without():
    made = Optimizer.of(chain(transforms.ema, transforms.rms_scaling, rules.SGD, rules.SGD))
    for wrong in ({"beta": 1.5}, {"beta_2": 1.5}, {"beta_2": -3.0}, {"weight_decay_2": -5.0}, {"nesterov_2": True}):
        with pytest.raises(ValueError, match=r"Invalid|Nesterov momentum requires"):
            made([torch.zeros(1)], **wrong)


def test_what_a_part_needs_constant_is_held_in_its_chain():
    """Under the chain's names, of which the second has a number; but for lr, which is the chain's own."""

    class Held(Rule):
        constants = {"betas[1]": "as it says", "lr": "for itself"}

        @staticmethod
        def update(param, grad, *, lr=0.1, betas=(0.9, 0.99)):
            return param - lr * betas[1] * grad

    made = chain(rules.Prodigy, rules.Prodigy, Held)
    assert [*made.constants] == ["d0", "d0_2", "betas_3[1]"]
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = Optimizer.of(made)([param])
    param.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["d0_2"] = 1e-3
    with pytest.raises(
        ValueError, match=r"d0_2 of group 0 was changed from 1e-06 to 0\.001; .* its sums are kept in units"
    ):
        optimizer.step()
    with pytest.raises(ValueError, match=r"d0 of Chain cannot be a schedule"):
        Optimizer.of(made)([param], d0=lambda step: 1e-6)


def test_a_part_cannot_give_a_rule_numbers_by_position_or_have_weights_to_evaluate():
    with pytest.raises(
        TypeError, match=r"a partial gives Lion 0\.5 by position: .* partial\(Lion, betas=\.\.\., weight"
    ):
        chain(partial(rules.Lion, 0.5))

    class Ahead(Rule):
        @staticmethod
        def update(param, grad, *, lr=0.1):
            return param - lr * grad

        @staticmethod
        def evaluated(param):
            return param + 1

        @staticmethod
        def trained(param):
            return param - 1

    with pytest.raises(RuleError, match="Ahead cannot be a part of a chain: its weights to evaluate"):
        chain(Ahead)


def test_what_is_no_part_or_no_rule_says_what_would_be():
    for part, message in (
        (torch.sign, "sign does not say what arguments it takes"),
        (lambda grad, step: grad, r"must take step by keyword"),
        (steprule.AdamW, "chain.. got the optimizer AdamW; its rule is AdamW.rule"),
        (
            steprule.SGD([torch.nn.Parameter(torch.ones(2))]),
            "got an instance of SGD, which is .*; its rule is SGD.rule$",
        ),
        (transforms.sign(0.5), r"got 1.0, which is neither .*functools.partial\(clip, clip_at=0.5\)"),
    ):
        with pytest.raises(RuleError, match=message):
            chain(part)
    with pytest.raises(TypeError, match=r"'exp_avg'. A chain calls it: .* write functools.partial\(ema, beta=...\)"):
        chain(transforms.ema(0.9))
    for wrong in (steprule.AdamW, 3, transforms.ema):
        with pytest.raises(TypeError, match=r"takes a rule, a subclass of steprule\.Rule"):
            Optimizer.of(wrong)


def test_several_as_one_load_a_checkpoint_with_texts_as_numbers():
    net, other = model(), model()
    together, fresh = make_together(net), make_together(other)
    train(net, together, 2)
    saved = together.state_dict()
    fresh.load_state_dict({**saved, "state": {str(number): state for number, state in saved["state"].items()}})
    assert repr(fresh.state_dict()) == repr(saved)


def test_several_as_one_have_a_checkpoint_like_torchs():
    net = model()
    together = make_together(net)
    train(net, together, 2)
    saved = together.state_dict()
    assert set(saved) == {"state", "param_groups"}
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    assert numbers == list(range(len(numbers))) and set(saved["state"]) <= set(numbers)
    params = [param for group in together.param_groups for param in group["params"]]
    for number, state in saved["state"].items():
        assert together.state[params[number]] == state
    assert set(together.state) == {params[number] for number in saved["state"]}


def double(grad):
    return 2 * grad


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
def test_chains_of_ones_own_are_copied_to_other_processes(way, tmp_path):
    rule = chain(double, functools.partial(rules.Lion, betas=(0.5, 0.75)), transforms.sign, name="Mine", lr=0.5)
    net = model()
    optimizer = Optimizer.of(rule)(net.parameters(), clip=1.0)
    train(net, optimizer, 2)
    if way == "pickle":
        other, copied = pickle.loads(pickle.dumps((net, optimizer)))
    elif way == "deepcopy":
        other, copied = copy.deepcopy((net, optimizer))
        assert type(copied) is type(optimizer)
    else:
        torch.save((net, optimizer), tmp_path / "saved")
        other, copied = torch.load(tmp_path / "saved", weights_only=False)
    assert type(copied).__name__ == "Mine" and copied.param_groups[0]["betas"] == (0.5, 0.75)
    train(net, optimizer, 2), train(other, copied, 2)
    assert all(map(torch.equal, net.parameters(), other.parameters()))


Halves = chain(double, name="Halves")


class Flipped(Halves):
    """Another formula over a chain's."""

    @staticmethod
    def update(param, grad, *, lr=1e-3):
        return param + lr * grad


class Stepping(Optimizer.of(Flipped)):
    """A class of one's own over one that has no name."""

    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        return super().step(closure)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("made", [Optimizer.of(Flipped), Stepping], ids=["of", "subclass"])
def test_what_is_made_of_a_chain_is_copied_as_itself(made, way):
    net = model()
    optimizer = made(net.parameters(), lr=0.1)
    other, copied = way((net, optimizer))
    assert type(copied) is made and copied.rule is Flipped
    train(net, optimizer, 2), train(other, copied, 2)
    assert all(map(torch.equal, net.parameters(), other.parameters()))


def test_optimizers_without_a_class_are_pickled():
    param = torch.ones(3, requires_grad=True)
    optimizer = Optimizer.of(rules.AdamW)([param], lr=0.1, cautious=True)
    param.grad = torch.ones(3)
    optimizer.step()
    copies = [pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)]
    optimizer.step()
    for one in copies:
        assert type(one) is type(optimizer) and one.rule is optimizer.rule
        (own,) = one.param_groups[0]["params"]
        own.grad = torch.ones(3)
        one.step()
        assert torch.equal(own, param)


def test_a_chain_of_rules_is_printed_without_what_cancels():
    assert (
        formula_text(chain(rules.SGD, rules.SGD)).splitlines()[-1]
        == "param ← param \N{MINUS SIGN} lr·(grad + weight_decay·param + weight_decay_2·param)"
    )


def halve(grad, *, share=0.5):
    return grad * share


PARTS = {
    "a function": lambda: chain(double),
    "a function with other defaults": lambda: chain(functools.partial(halve, share=0.25)),
    "a rule with a list": lambda: chain(functools.partial(rules.Lion, betas=[0.5, 0.75]), name="Listed", lr=0.5),
    "a chain": lambda: chain(chain(double, transforms.ema, name="Inner"), transforms.sign),
    "a chain with other defaults": lambda: chain(functools.partial(chain(transforms.ema), beta=0.5)),
}


@pytest.mark.parametrize("parts", PARTS)
def test_the_same_parts_make_the_same_class(parts):
    rule = PARTS[parts]()
    assert PARTS[parts]() is rule
    optimizer = Optimizer.of(rule)([torch.ones(2, requires_grad=True)])
    saved = pickle.dumps(optimizer)
    for copied in (pickle.loads(saved), pickle.loads(saved), copy.deepcopy(optimizer)):
        assert type(copied) is type(optimizer) and copied.rule is rule
        assert repr(copied) == repr(optimizer)


def test_other_parts_make_another_class():
    made = {
        chain(halve), chain(halve, name="Other"), chain(halve, lr=1), chain(halve, lr=1.0), chain(halve, lr=True), chain(halve, double),
        chain(double, halve), chain(functools.partial(halve, share=1)), chain(functools.partial(halve, share=1.0)),
        chain(functools.partial(rules.Lion, betas=(0.5, 0.75))), chain(functools.partial(rules.Lion, betas=[0.5, 0.75])),
    }  # fmt: skip
    assert len(made) == 11


def test_a_chain_of_chains_is_unpickled_where_there_is_none(tmp_path):
    optimizer = Optimizer.of(PARTS["a chain"]())([torch.ones(2, requires_grad=True)], lr=0.25)
    code = (
        f"import pickle; optimizer = pickle.load(open({str(tmp_path / 'pickled')!r}, 'rb'))\n"
        "print(type(optimizer).__name__, [*optimizer.rule.states], optimizer.param_groups[0]['lr'])"
    )
    (tmp_path / "pickled").write_bytes(pickle.dumps(optimizer))
    done = fresh(code, [os.path.dirname(__file__), *sys.path])
    assert done.stdout.strip() == "Chain ['exp_avg'] 0.25", done.stderr


class Within:
    def doubled(grad):
        return 2 * grad


def unnamed(kind):
    if kind == "rule":

        class Local(Rule):
            @staticmethod
            def update(param, grad, *, lr=1e-3):
                return param - lr * grad

        return Local
    if kind == "partial":
        return functools.partial(lambda grad, *, share=1.0: grad * share, share=0.5)
    return lambda grad: 2 * grad


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "in a chain of chains"])
@pytest.mark.parametrize("kind", ["lambda", "partial", "rule"])
def test_parts_without_a_name_say_why_they_cannot_be_pickled(kind, inside):
    rule = chain(unnamed(kind), name="Mine")
    optimizer = Optimizer.of(chain(rule) if inside else rule)([torch.ones(2, requires_grad=True)])
    word = "class" if kind == "rule" else "def"
    message = rf"the rule Mine cannot be pickled: .*<locals>.*write it at the top of a module, by {word}"
    with pytest.raises(pickle.PicklingError, match=message):
        pickle.dumps(optimizer)
    assert type(copy.deepcopy(optimizer)) is type(optimizer)


def test_parts_within_a_class_have_a_name():
    pickle.loads(pickle.dumps(Optimizer.of(chain(Within.doubled))([torch.ones(2, requires_grad=True)])))


def test_a_library_that_needs_no_names_is_let():
    cloudpickle = pytest.importorskip("cloudpickle")
    optimizer = Optimizer.of(chain(unnamed("lambda"), transforms.ema))([torch.ones(2, requires_grad=True)])
    assert [*cloudpickle.loads(cloudpickle.dumps(optimizer)).rule.states] == ["exp_avg"]
