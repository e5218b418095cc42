"""Two rules in one optimizer: what create_optimizer makes of rules of whole matrices."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import steprule
from steprule.beside import beside
from steprule.rule import Rule, RuleError
from steprule.rules import RULES

MATRIX_RULES = ["muon", "adamuon", "mano", "scion"]
"""One like most, one with a state of a name that AdamW has, one whose formula would take vectors, one without weight decay."""


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Embedding(10, 8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 10)
    )


def loss_of(model, step):
    tokens = torch.randint(0, 10, (4, 3), generator=torch.Generator().manual_seed(step))
    return model(tokens).square().mean()


def train(model, optimizer, steps=4, first=0):
    """Trains with one optimizer, or with several."""
    for step in range(first, first + steps):
        model.zero_grad()
        loss_of(model, step).backward()
        for one in optimizer if isinstance(optimizer, list) else [optimizer]:
            one.step()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def create(model, name="muon", **settings):
    return steprule.create_optimizer(model, name, **{"lr": 0.02, "adamw_lr": 3e-3, **settings})


def apart(model, name="muon", **settings):
    """The same by two optimizers, of those parameters that are matrices between others, and of the rest."""
    own = {key: value for key, value in settings.items() if not key.startswith("adamw_")}
    matrices = [model[1].weight, model[3].weight]
    others = [p for p in model.parameters() if not any(p is one for one in matrices)]
    decays = [p for p in others if p.ndim > 1]
    groups = [{"params": decays}, {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0}]
    rest = {key.removeprefix("adamw_"): value for key, value in settings.items() if key not in own}
    formats = {key: own[key] for key in ("states", "cautious") if key in own}
    cls = steprule.Optimizer.of(RULES[name])
    return [cls(matrices, **{"lr": 0.02, **own}), steprule.AdamW(groups, **{"lr": 3e-3, **rest, **formats})]


@pytest.mark.parametrize("name", MATRIX_RULES)
def test_each_rule_makes_the_steps_that_it_makes_alone(name):
    model, other = net(), net()
    train(model, create(model, name, adamw_betas=(0.9, 0.95)))
    train(other, apart(other, name, adamw_betas=(0.9, 0.95)))
    assert same(model, other)


@pytest.mark.parametrize("settings", [{"states": "8bit", "adamw_amsgrad": True}, {"cautious": True}])
def test_so_they_do_with_formats_options_and_flags(settings):
    model, other = net(), net()
    made = create(model, **settings)
    train(model, made)
    train(other, apart(other, **settings))
    assert same(model, other)
    names = {frozenset(made.state[p]) for p in model.parameters()}
    assert len(names) == 2
    assert not any({"momentum_buffer", "exp_avg"} <= one for one in names)  # nobody keeps the other's states


def test_the_norm_is_one_of_all_gradients():
    model, other = net(), net()
    optimizer = create(model, clip=0.01)
    loss_of(model, 0).backward()
    whole = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm.double(), whole, rtol=1e-6, atol=0)
    assert optimizer.clipped_steps == 1
    one, two = apart(other)
    loss_of(other, 0).backward()
    for p in other.parameters():
        p.grad *= 0.01 / (whole.item() + 1e-6)
    one.step()
    two.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # but for the rounding of gradients that were stored


@pytest.mark.parametrize("place", ["1.weight", "0.weight", "5.bias"])
def test_one_gradient_that_is_not_finite_skips_the_step_of_all(place):
    model = net()
    optimizer = create(model, nonfinite="skip")
    train(model, optimizer, 2)
    before = copy.deepcopy(model)
    loss_of(model, 2).backward()
    model.get_parameter(place).grad.flatten()[0] = torch.nan
    optimizer.step()
    assert same(model, before)
    assert optimizer.skipped_steps == 1


def test_it_resumes_to_the_last_bit_and_is_copied():
    model = net()
    optimizer = create(model, clip=0.05, average=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer)
    scheduler.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.0015}
    again = net(1)
    again.load_state_dict(model.state_dict())
    resumed = create(again, clip=0.05, average=0.9)
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    pair = copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, 3, 4)
    train(again, resumed, 3, 4)
    assert same(model, again)
    for own, its in pair:
        train(own, its, 3, 4)
        assert same(model, own)
    with optimizer.averaged(), resumed.averaged():
        assert same(model, again)


@pytest.mark.parametrize("name", ["scion", "soap", "shampoo"])
def test_rules_with_any_hyperparameters_are_resumed(name):
    """Shampoo's shampoo_beta is its own name, and not that of a setting before that of its rule."""
    model = net()
    optimizer = create(model, name)
    train(model, optimizer, 2)
    again = copy.deepcopy(model)
    resumed = create(again, name)
    resumed.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 2, 2)
    train(again, resumed, 2, 2)
    assert same(model, again)


def test_averages_of_two_rules_are_exchanged_and_hold_their_states():
    model = net()
    optimizer = create(model, "soap", average=0.9, max_precond_dim=8)
    train(model, optimizer, 2)
    before = copy.deepcopy(model)
    with optimizer.averaged():
        assert not same(model, before)
    assert same(model, before)


def test_a_loaded_group_keeps_what_was_not_saved():
    model = net()
    optimizer = create(model, adamw_betas=(0.5, 0.6))
    train(model, optimizer)
    saved, again = optimizer.state_dict(), create(copy.deepcopy(model), adamw_betas=(0.7, 0.8), momentum=0.5)
    for group in saved["param_groups"]:
        for name in ("rule", "betas", "momentum"):
            group.pop(name, None)
    again.load_state_dict(saved)
    assert [group["rule"] for group in again.param_groups] == ["muon", "adamw", "adamw"]
    assert [group.get("betas", group.get("momentum")) for group in again.param_groups] == [0.5, (0.7, 0.8), (0.7, 0.8)]


def test_caution_leaves_out_the_decay_of_each_rule():
    model, other = net(), net()
    optimizer, both = (
        create(model, "scion", cautious=True, adamw_weight_decay=0.3),
        apart(other, "scion", cautious=True),
    )
    both[1].param_groups[0]["weight_decay"] = 0.3
    train(model, optimizer)
    train(other, both)
    assert same(model, other)


@pytest.mark.parametrize(("first", "second"), [("adamw", "prodigy"), ("dog", "sgd")])
def test_sums_over_all_tensors_are_those_of_one_rule(first, second):
    """What caution adds up of each tensor has the name of what the other rule adds up of all."""
    one, other = RULES[first], RULES[second]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 5, generator=generator) for _ in range(4)]
    together, alone = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    both = steprule.Optimizer.of(beside(one, other))(
        [{"params": together[:2]}, {"params": together[2:], "rule": second}], cautious=True
    )
    apart = [steprule.Optimizer.of(rule)(alone[i : i + 2], cautious=True) for i, rule in ((0, one), (2, other))]
    for _ in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.randn(4, 5, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in (both, *apart):
            optimizer.step()
    assert all(map(torch.equal, together, alone))


def test_gradients_are_released():
    model, other = net(), net()
    optimizer, released = create(model), create(other)
    released.release_gradients(other)
    train(model, optimizer)
    train(other, released)
    assert same(model, other)
    assert all(p.grad is None for p in other.parameters())


def test_functions_of_the_step_and_layer_decay_are_for_each_its_own():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    optimizer = create(model, lr=0.1, adamw_lr=0.01, layer_decay=0.5, roles={"*.weight": "hidden"})
    lrs = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert [lrs[f"{layer}.weight"] for layer in range(4)] == [0.0125, 0.025, 0.05, 0.1]
    assert [lrs[f"{layer}.bias"] for layer in range(4)] == [0.00125, 0.0025, 0.005, 0.01]
    optimizer = create(model, lr=lambda step: 1 / step, adamw_lr=lambda step: 0.1 / step, roles={"*.weight": "hidden"})
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    assert {group["rule"]: group["lr"] for group in optimizer.param_groups} == {"muon": 0.5, "adamw": 0.05}
    assert create(net(), "mano", cautious=True)  # whose vectors an option around the formula does not refuse


def cycle(model, optimizer, own, adamw, other, key, betas_of):
    """Trains with a scheduler that cycles momentum, beside two optimizers whose settings are set by hand."""
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], total_steps=6)
    seen = []
    for step in range(4):
        first, last = optimizer.param_groups[0], optimizer.param_groups[-1]
        seen.append(first[key])
        own.param_groups[0] |= {"lr": first["lr"], key: first[key]}
        for group in adamw.param_groups:
            group |= {"lr": last["lr"], "betas": betas_of(step + 1, last)}
        train(model, optimizer, 1, step)
        train(other, [own, adamw], 1, step)
        scheduler.step()
        assert same(model, other)
    assert len(set(seen)) > 2


@pytest.mark.parametrize("name", ["muon", "adamuon"])
def test_cycled_momentum_is_the_rules_and_a_function_moves_adamws(name):
    model, other = net(), net()
    optimizer = create(model, name, adamw_betas=lambda step: (0.95 - 0.02 * step, 0.99))
    told = "'momentum' in a parameter group of .* does nothing: AdamW steps this group, and has lr, betas, eps"
    with pytest.warns(UserWarning, match=told):
        cycle(model, optimizer, *apart(other, name), other, "momentum", lambda step, _: (0.95 - 0.02 * step, 0.99))


def test_cycled_betas_are_those_of_both():
    model, other = net(), net()
    cycle(model, create(model, "soap"), *apart(other, "soap"), other, "betas", lambda _, group: group["betas"])


def test_a_group_has_what_its_rule_reads_and_no_more():
    model, other = net(), net()
    optimizer = create(model, "muon", adamw_eps=1e-6, lookahead=2)
    names = [{name for name in g if name not in ("params", "param_names", "name")} for g in optimizer.param_groups]
    both = {"rule", "lr", "weight_decay", "eps", "lookahead", "lookahead_alpha", *optimizer._groups.flags}
    assert names[0] == {*both, "momentum", "nesterov", "ns_coefficients", "ns_steps", "adjust_lr_fn"}
    assert names[1:] == [{*both, "betas", "amsgrad"}] * 2
    assert [g["eps"] for g in optimizer.param_groups] == [1e-7, 1e-6, 1e-6]
    assert "nesterov" not in repr(optimizer).partition("Parameter Group 1")[2]
    optimizer, (muon, adamw) = create(model), apart(other)
    for settings in ({}, {"betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.3}):  # while the plan holds
        for group in (*optimizer.param_groups[1:], *adamw.param_groups):
            group |= settings
        train(model, optimizer)
        train(other, [muon, adamw])
        assert same(model, other)
    optimizer.param_groups[0]["eps"] = 1e-3
    muon.param_groups[0]["eps"] = 1e-3
    train(model, optimizer)
    train(other, [muon, adamw])
    assert same(model, other)


@pytest.mark.parametrize(
    ("group", "name", "told"),
    [
        (0, "betas", "'betas' in a parameter group of Muon .* does nothing: Muon steps this group, and has lr, weight_decay, momentum"),
        (1, "momentum", "'momentum' in a parameter group of Muon .* does nothing: AdamW steps this group, and has lr, betas, eps"),
        (1, "beta", "'beta' in a parameter group of Muon .* does nothing; did you mean 'betas'?"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [0, 2])
def test_what_a_groups_rule_does_not_read_is_told(group, name, told, steps):
    model = net()
    optimizer = create(model)
    train(model, optimizer, steps)
    optimizer.param_groups[group][name] = 0.5
    with pytest.warns(UserWarning, match=told):
        train(model, optimizer, 1)
    with pytest.warns(UserWarning, match=told):
        create(net()).add_param_group({**optimizer.param_groups[group], "params": [nn.Parameter(torch.ones(3, 3))]})


def test_another_rule_of_a_group_is_refused_and_nothing_changes():
    model = net()
    optimizer = create(model)
    train(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    for word, error, told in (
        ("adam", ValueError, "Invalid rule value: 'adam'; did you mean 'adamw'"),
        ("adamw", KeyError, "betas was taken out of group 0"),
    ):
        optimizer.param_groups[0]["rule"] = word
        with pytest.raises(error, match=told):
            train(model, optimizer, 1)
        assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_weight_decay_is_each_ones_own():
    def decays(**settings):
        groups = create(net(), **settings).param_groups
        assert groups[-1]["name"] == "adamw, no decay"
        assert groups[-1]["weight_decay"] == 0
        return [group["weight_decay"] for group in groups[:2]]

    assert decays() == [0.1, 0.01]
    assert decays(weight_decay=0.3) == [0.3, 0.3]
    assert decays(weight_decay=0.3, adamw_weight_decay=0) == [0.3, 0]
    assert decays(adamw_weight_decay=lambda step: 0.5 / step) == [0.1, 0.5]
    assert decays(weight_decay=lambda step: 0.2 / step) == [0.2, 0.2]
    scion = create(net(), "scion", adamw_weight_decay=0.2).param_groups
    assert [group.get("weight_decay") for group in scion] == [None, 0.2, 0.0]


def test_every_parameter_is_in_one_group_with_its_rule(capsys):
    model = net()
    model[4].weight.requires_grad = False
    optimizer = create(model, weight_decay=0.3, groups=[("1.*", {"lr": 0.5})], show=True)
    found = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    assert sorted(found) == sorted(name for name, _ in model.named_parameters() if name != "4.weight")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    assert [name for name, group in found.items() if group["rule"] == "muon"] == ["3.weight", "1.weight"]
    assert {name: group["lr"] for name, group in found.items() if name in ("1.weight", "1.bias", "3.weight", "5.weight")} == {
        "1.weight": 0.5, "1.bias": 0.5, "3.weight": 0.02, "5.weight": 3e-3,
    }  # fmt: skip
    assert {name for name, group in found.items() if group["weight_decay"]} == {"0.weight", "1.weight", "3.weight", "5.weight"}  # fmt: skip
    shown = capsys.readouterr().out
    assert "adamw, no decay" in shown
    assert "frozen" in shown
    assert all(g["rule"] == "adamw" for n, g in found.items() if n.startswith("0"))
    defaults = create(net()).param_groups
    assert {(group["rule"], group["weight_decay"]) for group in defaults} == {
        ("muon", 0.1),
        ("adamw", 0.01),
        ("adamw", 0.0),
    }


def test_a_guess_is_logged_and_one_that_was_not_needed_is_not(caplog, capsys):
    model = net()
    for given in (steprule.roles(model, example=(torch.zeros(1, 2, dtype=torch.long),)), {"5.weight": "head"}):
        optimizer = create(model, roles=given)
        assert [g["param_names"] for g in optimizer.param_groups if g["rule"] == "muon"] == [["1.weight", "3.weight"]]
        assert not caplog.messages
    create(model)
    assert not caplog.messages  # a chain has one head
    several = nn.ModuleDict({"trunk": model, "extra": nn.Linear(8, 10)})
    create(several, show=True)
    assert "give example to find them" in capsys.readouterr().out and not caplog.messages
    create(several)
    assert caplog.messages == [
        "Muon beside AdamW: trunk.5.weight may be of heads, too; give example to find them, as in roles=steprule.roles(model, example=(inputs,))"
    ]


def test_roles_may_be_said_and_given_as_a_table():
    model = net()
    table = steprule.roles(model, example=(torch.zeros(1, 2, dtype=torch.long),))
    by_table, by_words = create(model, roles=table), create(model, roles={"1.weight": "adamw"})
    muons = [
        [n for g in one.param_groups if g["rule"] == "muon" for n in g["param_names"]] for one in (by_table, by_words)
    ]
    assert muons == [["1.weight", "3.weight"], ["3.weight"]]


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.tokens = nn.Embedding(10, 4)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rule": "adamw"}, TypeError, "got rule='adamw': roles says"),
        ({"groups": [("0.*", {"rule": "muon"})]}, TypeError, r"groups\[0\] of Muon got rule='muon': roles says"),
        ({"groups": [("0.*", {"momentum": 0.5})]}, ValueError, r"groups\[0\]: momentum is nothing to adamw, which steps '0.weight'"),
        ({"groups": [("1.w*", {"amsgrad": True})]}, ValueError, r"groups\[0\]: amsgrad is nothing to muon, which steps '1.weight'"),
        ({"groups": [("0.*", {"adamw_eps": 0.5})]}, TypeError, r"groups\[0\] got adamw_eps=0.5: in groups it is called 'eps'"),
        ({"name": "scion", "weight_decay": 0.1}, TypeError, "^Scion has no weight_decay: adamw_weight_decay is"),
        ({"name": "scion", "decay": "coupled"}, ValueError, "^Scion has no weight_decay, which decay='coupled' would change"),
        ({"adamw_momentum": 0.5}, TypeError, "unexpected argument 'adamw_momentum'; did you mean 'adamw_"),
        ({"roles": {"*": "adamw"}}, ValueError, "roles finds no matrix between others, which Muon could step"),
        ({"roles": {"7.*": "adamw"}}, ValueError, "^roles: '7.\\*' matches no parameter"),
        ({"roles": {"0.*": "muon"}}, ValueError, r"^roles\['0.\*'\]='muon', for '0.weight'"),
        ({"roles": {3: "hidden"}}, TypeError, "^roles: 3 must be a pattern"),
        ({"roles": steprule.roles(net())}, ValueError, "roles says nothing of '0.weight': it is the table of another model"),
        ({"adamw_lr": -1.0}, ValueError, "adamw_lr=-1.0: Invalid"),
        ({"adamw_betas": (0.9, 2.0)}, ValueError, r"^adamw_betas=\(0.9, 2.0\): Invalid beta parameter at index 1: 2.0"),
        ({"betas": (0.9, 0.9)}, TypeError, "unexpected argument 'betas'"),
        ({"layer_decay": 0.5, "adamw_lr": lambda step: 1.0}, ValueError, "layer_decay=0.5 needs lr"),
        ({"ns_coefficients": "kelle"}, ValueError, "did you mean 'keller'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        create(net(), **settings)


def test_a_misspelled_argument_of_adamw_is_held_to_those_of_adamw():
    for name, told in (("betaz", r"did you mean 'adamw_betas'\?$"), ("q" * 20, r"it takes adamw_\w+(, adamw_\w+)*$")):
        with pytest.raises(TypeError, match=rf"unexpected argument 'adamw_{name}'; {told}"):
            create(net(), **{f"adamw_{name}": 1.0})


def test_what_roles_cannot_tell_is_refused_and_other_models():
    model = nn.Sequential(Unknown(), nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(
        ValueError, match=r"roles cannot tell what 1 parameter is:\n  0\.w[^\n]*\nSay it: roles=\{'0\.w': \.\.\.\}"
    ):
        create(model)
    assert create(model, roles={"0.w": "hidden"})
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, whose classes say"):
        create(list(net().named_parameters()))
    for settings in ({"adamw_lr": 0.1}, {"roles": {"0.*": "adamw"}}):
        with pytest.raises(TypeError, match="is for rules of whole matrices, such as muon, and AdamW steps all"):
            steprule.create_optimizer(net(), "adamw", **settings)

    class Own(steprule.Muon):
        pass

    with pytest.raises(TypeError, match=r"give its rule, Own\.rule"):
        create(net(), Own)
    assert create(net(), Own.rule)


def test_rules_that_do_not_go_together_are_refused():
    class Other(Rule):
        """Has a state of AdamW's name that is one number."""

        exp_avg = steprule.State("scalar")

        def update(param, grad, exp_avg, *, lr=0.1):
            return param - lr * grad, exp_avg

    class Named(Rule):
        """Has the name of the setting."""

        def update(param, grad, *, lr=0.1, rule=1.0):
            return param - lr * rule * grad

    adamw = RULES["adamw"]
    with pytest.raises(RuleError, match="both have a state 'exp_avg', and it is not the same"):
        beside(Other, adamw)
    with pytest.raises(RuleError, match="Named and AdamW: 'rule' must tell them apart"):
        beside(Named, adamw)
    with pytest.raises(RuleError, match="cannot be one of two rules"):
        beside(RULES["schedulefreeadamw"], adamw)
    with pytest.raises(RuleError, match="Prodigy and DoG both add up over all parameters"):
        beside(RULES["prodigy"], RULES["dog"])
    assert beside(RULES["muon"], adamw) is beside(RULES["muon"], adamw)
