"""Options around formulas: what they refuse, what they keep, and schedule-free weights. Numbers are in test_papers."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import steprule
from steprule import Optimizer
from steprule.pieces import sign
from steprule.rule import DECAYS, Rule, RuleError
from steprule.rules import OWN
from steprule.rules.options import OPTIONS


def params(count=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(40 + i, generator=generator)) for i in range(count)]


def matrices():
    return [torch.nn.Parameter(param.detach().reshape(1, -1)) for param in params()]


def train(optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


ALL = {"decay": "initial", "cautious": True, "cautious_decay": True, "lookahead": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "decuopled"}, "Invalid decay value: 'decuopled'; did you mean 'decoupled'"),
        ({"decay": 3}, "Invalid decay value: 3; it can be 'coupled'"),
        ({"lookahead": -1}, "Invalid lookahead value: -1"),
        ({"lookahead": True}, "Invalid lookahead value: True"),
        ({"lookahead": 5, "lookahead_alpha": 1.5}, "Invalid lookahead_alpha value: 1.5"),
    ],
    ids=str,
)
def test_senseless_values(options, message):
    with pytest.raises(ValueError, match=message):
        steprule.AdamW(params(), **options)


def test_values_of_another_kind_and_unknown_names():
    with pytest.raises(TypeError, match="cautious must be True or False, not 'yes'"):
        steprule.AdamW(params(), cautious="yes")
    with pytest.raises(TypeError, match="'cautios'; did you mean 'cautious'"):
        steprule.Lion(params(), cautios=True)
    with pytest.raises(TypeError, match="'weight_decai'; did you mean 'weight_decay'"):
        steprule.LAMB(params(), weight_decai=0.1)


@pytest.mark.parametrize("name", OWN)
def test_what_does_not_fit_is_refused_with_a_reason(name):
    rule, made = OWN[name], getattr(steprule, OWN[name].__name__)
    for options in ({"cautious": True}, {"lookahead": 5}, {"decay": "independent"}):
        if rule.refuses:
            with pytest.raises(ValueError, match=f"{rule.__name__} does not go with .*: {rule.refuses}"):
                made(matrices(), **options)
        elif "decay" in options and "weight_decay" not in rule.hyperparameters:
            with pytest.raises(ValueError, match="has no weight_decay"):
                made(matrices(), **options)
        else:
            if rule.sparse_only and "lookahead" in options:
                with pytest.raises(
                    ValueError, match="does not go with lookahead: elements without a gradient stay as they are"
                ):
                    made(matrices(), **options)
                continue
            made(matrices(), **options)
    for decay in DECAYS if "weight_decay" not in rule.hyperparameters else ():
        with pytest.raises(ValueError, match=r"has no weight_decay|does not go with"):
            made(matrices(), decay=decay)


def test_cautious_decay_needs_a_decay_apart():
    with pytest.raises(ValueError, match="cautious_decay needs a decay that is apart from the step: LAMB's is not"):
        steprule.LAMB(params(), cautious_decay=True)
    steprule.LAMB(params(), cautious_decay=True, decay="decoupled")


@pytest.mark.parametrize("name", ["AdamW", "Lion", "SGD"])
def test_options_that_are_off_leave_no_trace(name):
    groups = getattr(steprule, name)(params()).param_groups
    assert not set(OPTIONS) & set(groups[0])


@pytest.mark.parametrize("decay", DECAYS)
def test_one_argument_means_the_same_for_every_rule(decay):
    """With gradients of 0 nothing but the decay moves a weight (coupled: nothing but its gradient)."""
    moved = {}
    for made in (steprule.AdamW, steprule.Lion, steprule.SGD, steprule.ADOPT):
        own = params(1)
        optimizer = made(own, lr=0.1, weight_decay=0.5, decay=decay)
        first = own[0].detach().clone()
        for _ in range(3):
            own[0].grad = torch.zeros_like(own[0])
            optimizer.step()
        moved[made.__name__] = own[0].detach() / first
    factor = {"decoupled": 0.95**3, "independent": 0.5**3, "corrected": 0.95**3, "initial": 1.0}.get(decay)
    for name, ratio in moved.items():
        if factor is not None:
            torch.testing.assert_close(ratio, torch.full_like(ratio, factor), msg=name)
        else:
            assert not torch.allclose(ratio, torch.ones_like(ratio)), name


def test_checkpoints_and_copies_keep_what_options_remember():
    own = params()
    optimizer = steprule.AdamW(own, weight_decay=0.1, **ALL)
    train(optimizer, 4)
    assert {"initial_param", "slow_param"} <= set(optimizer.state[own[0]])
    kept = io.BytesIO()
    torch.save(optimizer.state_dict(), kept)
    kept.seek(0)
    others = [torch.nn.Parameter(param.detach().clone()) for param in own]
    fresh = steprule.AdamW(others, lr=0.5, weight_decay=0.7, **ALL)
    fresh.load_state_dict(torch.load(kept, weights_only=True))
    twin = copy.deepcopy(optimizer)
    for one in (optimizer, fresh, twin):
        train(one, 3, seed=1)
    for a, b, c in zip(own, others, twin.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_a_checkpoint_of_torch_begins_what_options_remember():
    own, its = params(), params()
    theirs = torch.optim.AdamW(its)
    train(theirs, 3)
    for p, q in zip(own, its, strict=True):
        p.data.copy_(q.data)
    mine = steprule.AdamW(own, lookahead=2)
    mine.load_state_dict(theirs.state_dict())
    train(mine, 1, seed=1)  # the fourth: the slow weights begin before it, and are gone back to after it
    assert torch.equal(mine.state[own[0]]["slow_param"], own[0])


# Schedule-free weights


def test_training_and_evaluation_have_other_weights():
    own = params()
    optimizer = steprule.ScheduleFreeAdamW(own, lr=0.1)
    train(optimizer, 5)
    at_training = [param.detach().clone() for param in own]
    optimizer.eval()
    optimizer.eval()
    assert not torch.allclose(own[0], at_training[0])
    with pytest.raises(RuntimeError, match=r"call train\(\) of the optimizer before step\(\)"):
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.train()
    optimizer.train()
    torch.testing.assert_close(own, at_training)
    assert optimizer.state_dict()["param_groups"][0]["train_mode"] and not saved["param_groups"][0]["train_mode"]
    fresh = steprule.ScheduleFreeAdamW(params())
    fresh.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="averaged weights"):
        fresh.step()


def test_the_average_is_the_average():
    """SGD with a constant lr: x is the mean of all z, whatever momentum is."""
    own = [torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    optimizer = steprule.ScheduleFreeSGD(own, lr=0.5, momentum=0.7)
    z, mean = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step in range(1, 6):
        own[0].grad = torch.arange(3.0, dtype=torch.float64) - step
        z = z - 0.5 * own[0].grad
        mean += (z - mean) / step
        optimizer.step()
    optimizer.eval()
    torch.testing.assert_close(own[0].detach(), mean)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam"])
def test_torchs_name_for_decoupled_decay_is_the_same_decay(name):
    made = getattr(steprule, name)
    for options in ({"cautious": True}, {"cautious_decay": True}, {"lookahead": 2}):
        runs = []
        for decay in ({"decoupled_weight_decay": True}, {"decay": "decoupled"}):
            own = params()
            train(made(own, lr=0.1, weight_decay=0.3, **options, **decay), 5)
            runs.append(own)
        assert all(map(torch.equal, *runs))
    with pytest.raises(ValueError, match="decay='coupled' and decoupled_weight_decay=True contradict each other"):
        made(params(), decoupled_weight_decay=True, decay="coupled")
    groups = [{"params": params(), "decoupled_weight_decay": True}]
    with pytest.raises(ValueError, match=r"in a group needs decay=.decoupled. beside other options"):
        made(groups, cautious=True)


def test_lookahead_reaches_rows_that_a_sparse_gradient_has_not():
    """What rests in that step has moved since its slow copy did, and goes back with all others."""
    both = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    optimizers = [steprule.Adagrad([param], lr=0.5, lookahead=2) for param in both]
    for rows in ([0, 1], [1], [2], [0]):
        grad = torch.zeros(3, 2)
        grad[rows] = 1.0
        for param, optimizer, own in zip(both, optimizers, (grad, grad.to_sparse(1)), strict=True):
            param.grad = own.clone()
            optimizer.step()
        torch.testing.assert_close(*both)


def test_options_belong_to_the_whole_optimizer():
    for option in ({"decay": "nonsense"}, {"cautious": "x"}, {"cautious_decay": 3}, {"lookahead": 2}):
        ((name, value),) = option.items()
        message = f"{name}={value!r} in a parameter group: it is for the whole optimizer"
        with pytest.raises(ValueError, match=message):
            steprule.AdamW([{"params": params(), **option}])
        optimizer = steprule.AdamW(params())
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": params(), **option})
        assert len(optimizer.param_groups) == 1
    groups = [{"params": params(), "lookahead": 2, "lookahead_alpha": 0.25}]
    assert steprule.AdamW(groups, lookahead=5).param_groups[0]["lookahead"] == 2
    with pytest.raises(ValueError, match=r"Invalid lookahead value: 2\.5"):
        steprule.AdamW([{"params": params(), "lookahead": 2.5}], lookahead=5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lookahead_alpha": 7.0, "lookahead": 5}, ValueError, r"Invalid lookahead_alpha value: 7\.0"),
        ({"lookahead_alpha": "x", "lookahead": 5}, TypeError, "lookahead_alpha must be a number, not 'x'"),
        ({"lookahead_alpha": 0.7}, ValueError, r"lookahead_alpha=0\.7 needs lookahead"),
    ],
)
def test_the_share_of_the_slow_copy_is_looked_at(options, error, message):
    with pytest.raises(error, match=message):
        steprule.AdamW(params(), **options)


def test_the_share_of_the_slow_copy_may_be_a_schedule():
    optimizer = steprule.AdamW(params(), lookahead=2, lookahead_alpha=lambda step: 1 / step)
    train(optimizer, 3)
    assert optimizer.param_groups[0]["lookahead_alpha"] == 0.25


def test_what_an_option_keeps_is_float64_beside_numbers_in_steps_dtype():
    """NAdam keeps mu_product as torch.optim does, in float32; a checkpoint that has lr_max so too goes on."""
    (one,), (other,) = params(1), params(1)
    optimizer, loaded = (steprule.NAdam([p], lr=0.1, weight_decay=0.5, decay="corrected") for p in (one, other))
    train(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["lr_max"] = saved["state"][0]["lr_max"].float()
    with torch.no_grad():
        other.copy_(one)
    loaded.load_state_dict(saved)
    for its in (optimizer, loaded):
        train(its, 1, seed=1)
    for state in (optimizer.state[one], loaded.state[other]):
        assert (state["mu_product"].dtype, state["lr_max"].dtype) == (torch.float32, torch.float64)
    assert float(optimizer.state[one]["lr_max"]) == 0.1
    torch.testing.assert_close(one, other)


def own_rule(decay=None, **more):
    """A rule of one's own with decoupled decay, of which it says this."""

    def update(param, grad, *, lr=1e-3, weight_decay=0.0):
        return param - lr * (sign(grad) + weight_decay * param)

    return type("Mine", (Rule,), {"update": update, **({} if decay is None else {"decay": decay}), **more})


@pytest.mark.parametrize(
    "decay, hint",
    [
        ("cupled", "did you mean 'coupled'"),
        ("weigth", "it can be 'coupled', 'decoupled', .* or 'own'"),
    ],
    ids=["nearest", "none near"],
)
def test_a_rule_cannot_misspell_its_decay(decay, hint):
    with pytest.raises(RuleError, match=rf"Mine\.decay = {decay!r} means nothing; {hint}"):
        own_rule(decay)


@pytest.mark.parametrize("option", ["cautious", "cautious_decay"])
def test_what_depends_on_a_rules_decay_must_know_it(option):
    silent, told = Optimizer.of(own_rule()), Optimizer.of(own_rule("decoupled"))
    with pytest.raises(
        ValueError, match=rf"{option} must know what Mine's formula makes of weight_decay.*decay = \"deco"
    ):
        silent(params(), **{option: True})
    told(params(), **{option: True})
    own, others = params(1), params(1)
    pair = (
        silent(own, weight_decay=0.5, decay="decoupled", **{option: True}),
        told(others, weight_decay=0.5, **{option: True}),
    )
    for optimizer in pair:
        train(optimizer, 3)
    assert torch.equal(own[0], others[0])


def test_a_rule_that_says_nothing_of_its_decay_takes_any():
    """Even "coupled", which nobody may take its own for."""
    (own,), (other,) = params(1), params(1)
    optimizer = Optimizer.of(own_rule())([own], lr=0.1, weight_decay=0.5, decay="coupled")
    own.grad = torch.linspace(-1, 1, own.numel())
    optimizer.step()
    torch.testing.assert_close(own, other - 0.1 * torch.sign(own.grad + 0.5 * other))


@pytest.mark.parametrize("name", [name for name, rule in OWN.items() if "weight_decay" in rule.hyperparameters])
def test_steprules_own_rules_say_what_their_decay_is(name):
    assert OWN[name].decay in (*DECAYS, "own")


# Names and values of options beside those of own rules


def _own(hyper=(), states=()):
    """A rule of one's own whose hyperparameters and states have these names."""
    shown = ", ".join(["param", "grad", *states, "*", "lr=0.1", "weight_decay=0.1", *(f"{name}=0.5" for name in hyper)])
    scope: dict = {}
    exec(f"def update({shown}): return {', '.join(['param - lr * (grad + weight_decay * param)', *states])}", scope)
    return type("Own", (Rule,), {"update": scope["update"], "decay": "decoupled"})


@pytest.mark.parametrize("option", [{"lookahead": 2}, {"decay": "corrected"}, {"decay": "initial"}], ids=str)
@pytest.mark.parametrize("kind", ["hyperparameters", "states"])
def test_what_options_keep_is_apart_from_a_rules_own(kind, option):
    """Under whatever names a rule has, options do the same."""
    taken = ("lr_max", "slow_param", "initial_param", "slow_param_")
    results = []
    for rule in (_own(), _own(hyper=taken) if kind == "hyperparameters" else _own(states=taken)):
        given = params()
        train(Optimizer.of(rule)(given, **option), 3)
        results.append(given)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("value", [3, 3.0], ids=str)
@pytest.mark.parametrize("where", ["constructor", "group", "by hand"])
def test_lookahead_is_a_whole_number_everywhere(where, value):
    optimizer = _with_lookahead(where, value)
    assert optimizer.param_groups[0]["lookahead"] == 3


@pytest.mark.parametrize("value", [True, 2.5, -1, "3", None, float("nan"), torch.ones(2), len], ids=str)
@pytest.mark.parametrize("where", ["constructor", "group", "by hand"])
def test_lookahead_that_is_no_whole_number_is_refused_everywhere(where, value):
    with pytest.raises(ValueError, match=r"Invalid lookahead value: .*; it is a number of steps"):
        _with_lookahead(where, value)


def _with_lookahead(where, value):
    if where == "constructor":
        return steprule.SGD(params(), lookahead=value)
    if where == "group":
        return steprule.SGD([{"params": params(), "lookahead": value}], lookahead=5)
    optimizer = steprule.SGD(params(), lookahead=5)
    train(optimizer, 1)
    optimizer.param_groups[0]["lookahead"] = value
    train(optimizer, 1)
    return optimizer


def test_an_attribute_says_where_the_share_of_the_slow_copy_is_set():
    with pytest.raises(AttributeError, match=r"for group in optimizer\.param_groups: group\['lookahead_alpha'\]"):
        steprule.SGD(params(), lookahead=2).lookahead_alpha = 0.1
    with pytest.raises(AttributeError, match="is chosen when an optimizer is made"):
        steprule.SGD(params()).lookahead_alpha = 0.1
