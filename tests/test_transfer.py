"""Multipliers by width and depth: against Microsoft's mup, CompleteP's code and the spectral condition; and the coordinate check."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from peers.make_mup import BASE, SETTINGS, WIDTH, Net, filled, train
from torch import nn

import steprule
from steprule import coordinate_check, transfer

MUP = json.loads((Path(__file__).parent / "peers" / "mup.json").read_text())


def multipliers(split):
    """Those of each parameter."""
    return {
        name: {key: value for key, value in part.items() if key not in ("params", "name")}
        for part in split.parts
        for name, _ in part["params"]
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_mup_gives_the_same_multipliers_and_trains_the_same_network(name):
    model, updates = filled(Net(WIDTH, factor=BASE / WIDTH)), "sgd" if name == "MuSGD" else "adam"
    split = transfer(model, base=Net(BASE), rule="mup", updates=updates, no_decay=False)
    found = multipliers(split)
    for key, its in MUP[name].items():
        assert (found[key]["lr_mult"], found[key]["weight_decay_mult"]) == (its["lr_mult"], its["weight_decay_mult"]), (
            key
        )
    optimizer = getattr(steprule, name.removeprefix("Mu"))(split.groups, **SETTINGS[name])
    first = {key: param.detach().clone() for key, param in model.named_parameters()}
    train(model, optimizer)
    for key, param in model.named_parameters():
        # eps differs: 1e-12 is at most 1e-8 of gradients that are as large as 1e-4
        torch.testing.assert_close(
            param.detach().flatten()[:4].tolist(), MUP[name][key]["numbers"], rtol=1e-7, atol=1e-9
        )
        assert float(param.detach().norm()) == pytest.approx(MUP[name][key]["norm"], rel=1e-7)
        assert float((param - first[key]).detach().norm()) > 1e-3


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class GPT(nn.Module):
    def __init__(self, width, depth=2, tied=False):
        super().__init__()
        self.wte = nn.Embedding(11, width)
        self.h = nn.ModuleList(Block(width) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 11, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_completep_is_what_its_code_says(alpha, tied):
    """Of EleutherAI/nanoGPT-mup, branch completep, for four times the width and three times the depth; eps outside of blocks is ours."""
    m_n, m_l = 4.0, 3.0
    found = multipliers(
        transfer(GPT(64, 6, tied), base_width=16, base_depth=2, depth=6, rule="completep", alpha=alpha, no_decay=False)
    )
    hidden = {"lr_mult": m_l ** (alpha - 1) / m_n, "weight_decay_mult": m_n, "eps_mult": m_l**-alpha / m_n}
    expected = {
        "wte.weight": {"lr_mult": 1, "weight_decay_mult": 1, "eps_mult": 1 / m_n},
        "h.5.ln.weight": {"lr_mult": m_l ** (alpha - 1), "weight_decay_mult": 1, "eps_mult": m_l**-alpha / m_n},
        "h.0.up.weight": hidden,
        "h.3.down.weight": hidden,
        "h.3.down.bias": {"lr_mult": m_l ** (alpha - 1), "weight_decay_mult": 1, "eps_mult": m_l**-alpha / m_n},
        "ln_f.bias": {"lr_mult": 1, "weight_decay_mult": 1, "eps_mult": 1 / m_n},
        **({} if tied else {"lm_head.weight": {"lr_mult": 1, "weight_decay_mult": 1, "eps_mult": 1 / m_n}}),
    }
    for name, wanted in expected.items():
        assert found[name] == pytest.approx(wanted), name


@pytest.mark.parametrize("updates", ["adam", "sgd", "muon"])
def test_the_spectral_condition_holds(updates):
    """An update's spectral norm over sqrt(outputs / inputs) is what it is at the base's size."""
    model = GPT(64)
    found = multipliers(transfer(model, base=GPT(16), updates=updates, no_decay=False))
    small = dict(GPT(16).named_parameters())
    for name, large in model.named_parameters():
        if large.ndim < 2 or "wte" in name:
            continue
        norms = []
        for x in (small[name], large):
            m, n = x.shape
            # Adam's updates line up with inputs, as ones do; a gradient's norm is that of the condition turned around.
            norm = {"adam": math.sqrt(m * n), "sgd": math.sqrt(n / m), "muon": 1.0}[updates]
            norms.append(norm / math.sqrt(m / n))
        assert found[name]["lr_mult"] * norms[1] == pytest.approx(norms[0]), name
        assert found[name]["lr_mult"] * found[name]["weight_decay_mult"] == pytest.approx(1.0)


# The coordinate check


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.one, self.two = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 4)
        nn.init.normal_(self.head.weight, std=1 / width)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


def with_adamw(model, scaled):
    return steprule.AdamW(transfer(model, base_width=32).groups if scaled else model.parameters(), lr=2e-3)


def with_sgd(model, scaled):
    groups = transfer(model, base_width=32, updates="sgd").groups if scaled else model.parameters()
    return steprule.SGD(groups, lr=0.3)


def with_muon(model, scaled):
    """Updates with an RMS of 0.2 for matrices, whose spectral norm grows with the root of the width."""
    table = steprule.roles(model)
    names = {row.name for row in table.matrices}
    split = transfer(model, base_width=32)
    rest = [{**g, "params": [p for p in g["params"] if p[0] not in names]} for g in split.groups]
    rest = [g for g in rest if g["params"]] if scaled else [row.param for row in table.rest]
    scale = "spectral" if scaled else "match_rms_adamw"
    matrices = steprule.Muon([row.param for row in table.matrices], lr=0.02, adjust_lr_fn=scale)
    return steprule.Together([matrices, steprule.AdamW(rest, lr=2e-3)])


@pytest.mark.parametrize("optimizer", [with_adamw, with_sgd, with_muon])
def test_layers_move_alike_at_every_width_with_transfer_and_not_without(optimizer):
    """Theory has powers of 0 with it. Without, outputs move with the width (Adam, the head), or its root; these are halfway."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(16, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)

    def make(scaled):
        def of(width):
            model = MLP(width)
            return model, optimizer(model, scaled), lambda: nn.functional.cross_entropy(model(inputs), targets)

        return of

    scaled, plain = (coordinate_check(make(one), [32, 64, 128, 256]) for one in (True, False))
    assert max(map(abs, scaled.slopes.values())) < 0.25, scaled
    assert max(plain.slopes.values()) > 0.5, plain
    for check in (scaled, plain):
        sizes = check.sizes["one"]
        assert max(sizes) < 1.5 * min(sizes)


def test_the_check_is_a_table_and_a_picture(tmp_path):
    def make(width):
        layer = nn.Linear(2, width, bias=False)
        nn.init.ones_(layer.weight)
        return layer, torch.optim.SGD(layer.parameters(), lr=0.5 * width), lambda: layer(torch.ones(1, 2)).sum() / width

    check = coordinate_check(make, [2, 4], steps=2)  # a step subtracts .5 from each of two weights
    assert (check.sizes, check.moves, check.slopes) == ({"model": (2.0, 2.0)}, {"model": (2.0, 2.0)}, {"model": 0.0})
    assert str(check).splitlines() == [
        "how far outputs move, RMS",
        "layer  width 2  width 4  power of width",
        "model        2        2           +0.00",
    ]
    check.save(tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "How far outputs move" in page and page.count('class="line s0"') >= 1 and "power of width" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([8],), r"widths must be two or more ints in growing order, not \[8\]"),
        (([8, 4],), "widths must be two or more ints in growing order"),
        (([8, 16.5],), r"widths must be two or more ints in growing order, not \[8, 16.5\]"),
        ((None,), "widths must be two or more ints in growing order, not None"),
        (("ab",), "widths must be two or more ints in growing order, not 'ab'"),
        (([4, 8], 0), "steps must be an int of 1 or more, not 0"),
    ],
    ids=str,
)
def test_a_check_of_nothing_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        coordinate_check(lambda width: None, given[0], **({"steps": given[1]} if len(given) > 1 else {}))


def test_a_seed_is_an_int():
    with pytest.raises(ValueError, match="seed must be an int from -2\*\*63 to 2\\*\\*64 - 1, not 'x'"):
        coordinate_check(lambda width: None, [2, 4], seed="x")


def made(loss=lambda layer: layer(torch.ones(1, 2)).sum(), optimized=lambda layer: layer):
    layer = nn.Linear(2, 2)
    return layer, torch.optim.SGD(optimized(layer).parameters(), lr=0.1), lambda: loss(layer)


MADE_WRONG = {
    "no function": (None, TypeError, "make must be a function of a width, not None"),
    "nothing": (lambda width: None, TypeError, r"make\(2\) must return a model, its optimizer, .* not None"),
    "two": (lambda width: made()[:2], TypeError, r"make\(2\) must return a model, its optimizer"),
    "a number": (lambda width: (*made()[:2], 1.0), TypeError, r"make\(2\) must return a model, its optimizer"),
    "another's optimizer": (
        lambda width: made(optimized=lambda layer: nn.Linear(2, 2)),
        ValueError,
        r"the optimizer that make\(2\) returned has no parameter of the model",
    ),
    "another's loss": (
        lambda width: made(lambda layer: nn.Linear(2, 2)(torch.ones(2)).sum()),
        ValueError,
        r"the loss of make\(2\) has run no layer of the model beside it",
    ),
    "no loss": (
        lambda width: made(lambda layer: 1.0),
        TypeError,
        r"the loss of make\(2\) must return a tensor .* not 1.0",
    ),
    "many losses": (lambda width: made(lambda layer: layer(torch.ones(3, 2))), TypeError, r"of shape \(3, 2\)"),
}


@pytest.mark.parametrize(("make", "kind", "message"), MADE_WRONG.values(), ids=MADE_WRONG)
def test_what_make_returns_wrongly_is_named(make, kind, message):
    with pytest.raises(kind, match=message):
        coordinate_check(make, [2, 4])


def test_a_loss_on_other_batches_is_refused():
    sizes = iter(range(1, 9))
    with pytest.raises(ValueError, match=r"the loss of make\(2\) has run 'model' on another batch"):
        coordinate_check(lambda width: made(lambda layer: layer(torch.ones(next(sizes), 2)).sum()), [2, 4])


def test_models_with_other_layers_are_refused():
    def make(width):
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(width)))
        return model, steprule.SGD(model.parameters(), lr=0.1), lambda: model(torch.ones(1, 2)).sum()

    with pytest.raises(ValueError, match="the models of width 1 and 2 have other layers: 1"):
        coordinate_check(make, [1, 2], steps=1)


# What transfer returns and refuses


def test_at_the_bases_size_all_are_1_and_schedulers_work():
    split = transfer(GPT(16), base_width=16)
    assert {part[key] for part in split.parts for key in ("lr_mult", "eps_mult")} == {1.0}
    wide = transfer(GPT(64), base_width=16)
    optimizer = steprule.AdamW(wide.groups, lr=0.1, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    optimizer.step()
    scheduler.step()
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    assert {group["name"]: group["lr_mult"] for group in optimizer.param_groups}["hidden"] == 0.25
    assert {group["weight_decay"] for group in optimizer.param_groups if group["name"] in ("norm", "vector")} == {0.0}


def test_it_prints_what_it_does_and_what_the_model_has_to_do():
    shown = str(transfer(GPT(64, 4), base_width=16, base_depth=2, depth=4, rule="completep"))
    assert "lr_mult" in shown and "h.*.up.weight" in shown
    assert "multiply the head's output, before its bias, by 0.25" in shown
    assert "multiply what residual branches add by 0.5" in shown


def test_a_base_may_have_no_numbers_and_frozen_parameters_are_left_out():
    model = GPT(64)
    model.wte.requires_grad_(False)
    with torch.device("meta"):
        base = GPT(16)
    split = transfer(model, base=base)
    assert split.frozen == ("wte.weight",) and "wte.weight" not in multipliers(split)
    by_width = multipliers(transfer(model, base_width=16, width=64))
    assert multipliers(split) == by_width


def regression(width, outputs=1, inputs=8):
    parts = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, outputs)]
    return nn.Sequential(*parts)


def gated(width):
    model = regression(width, 4)
    model.insert(1, nn.Linear(width, 1))
    return model


def filters(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.Conv2d(width, 3, 3))


def transposed(width):
    layers = nn.ConvTranspose2d
    return nn.Sequential(layers(16, width, 4), layers(width, width, 4), layers(width, 3, 4))


MADE = {
    "regression": regression, "one input": partial(regression, inputs=1), "gated": gated, "filters": filters,
    "transposed": transposed,
}  # fmt: skip


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("updates", ["adam", "sgd", "muon"])
def test_a_width_says_what_a_base_says(make, updates):
    model = make(48)
    known = multipliers(transfer(model, base=make(16), updates=updates))
    assert multipliers(transfer(model, base_width=16, updates=updates)) == known
    rest = [one for part in transfer(model, base_width=48, updates=updates).parts for one in part.items()]
    assert {value for key, value in rest if key.endswith("_mult")} == {1.0}
    first, *_, last = [
        one["lr_mult"] for name, one in known.items() if name in ("0.weight", f"{len(model) - 1}.weight")
    ]
    assert (first, last) == pytest.approx({"adam": (1, 1 / 3), "sgd": (3, 1 / 3), "muon": (3**0.5, 3**-0.5)}[updates])


def test_weights_with_one_row_decay_and_are_heads():
    model = regression(64)
    (head,) = [part for part in transfer(model, base_width=16).parts if part["name"] == "head"]
    assert head["params"] == [("3.weight", model[3].weight)] and head["weight_decay_mult"] == 4.0
    assert head["eps_mult"] == 1.0 == multipliers(transfer(model, base_width=16))["3.bias"]["eps_mult"]
    for example in (None, torch.zeros(2, 8)):
        roles = {row.name: row.role for row in steprule.roles(model, example=example) if row.name.endswith("weight")}
        assert list(roles.values()) == ["input", "hidden", "hidden", "head"]


def test_a_width_that_is_not_clear_is_asked_for():
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10))
    with pytest.raises(ValueError, match=r"has 128, and '1.weight' of shape \(8, 8, 3, 3\) has not; give width="):
        transfer(flat, base_width=8)
    assert {part["lr_mult"] for part in transfer(flat, base_width=8, width=8).parts} == {1.0}


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.ones(3, 4))


WRONG = {
    "neither": ({}, "needs one of base, a model of the tuned size, and base_width"),
    "both": ({"base": GPT(16), "base_width": 16}, "needs one of base"),
    "no width": ({"base_width": 0}, "Invalid base_width value: 0"),
    "nearly none": ({"base_width": 1e-320}, "Invalid base_width value: 1e-320; it must be a number of 1 or more"),
    "no number of blocks": (
        {"base_width": 16, "base_depth": 1e-320, "depth": 1, "rule": "completep"},
        "Invalid base_depth value: 1e-320",
    ),
    "too much for a float": ({"base_width": 10**400}, "Invalid base_width value: 1000"),
    "a list for a rule": ({"base_width": 16, "rule": []}, r"Invalid rule value: \[\]"),
    "a word for alpha": ({"base_width": 16, "rule": "completep", "alpha": "1"}, "Invalid alpha value: '1'"),
    "a rule": (
        {"base_width": 16, "rule": "mupp"},
        "Invalid rule value: 'mupp'; it can be 'spectral', 'mup', 'completep'",
    ),
    "updates": ({"base_width": 16, "rule": "completep", "updates": "muon"}, "with rule='completep' it can be 'adam'"),
    "half a depth": (
        {"base_width": 16, "base_depth": 2, "rule": "completep"},
        "base_depth=2 and depth=None go together",
    ),
    "depth of another rule": (
        {"base_width": 16, "base_depth": 2, "depth": 4},
        'depth and alpha are for rule="completep"',
    ),
    "alpha": ({"base_width": 16, "rule": "completep", "alpha": 0.3}, r"Invalid alpha value: 0\.3"),
    "width of a base": ({"base": GPT(16), "width": 64}, "width=64 goes with base_width"),
    "another model": ({"base": MLP(16)}, "base has no parameter 'wte.weight', which model has"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_makes_no_sense_is_refused(what):
    given, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        transfer(GPT(64), **given)


def test_what_it_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"mix  \(3, 4\)"):  # by roles
        transfer(nn.Sequential(nn.Embedding(3, 4), Odd()), base_width=4)
    model = nn.Sequential(nn.Embedding(3, 4), Odd())
    with pytest.raises(
        ValueError, match=r"(?s)does not know how 1 parameter transfer.*1\.mix: you said so; give it a role"
    ):
        transfer(model, base_width=4, overrides={"1.mix": "adamw"})
    assert multipliers(transfer(model, base_width=2, overrides={"1.mix": "vector"}))["1.mix"]["lr_mult"] == 1.0
    with pytest.raises(ValueError, match="an embedding and a head need two learning rates"):
        transfer(GPT(64, tied=True), base_width=16)
    with pytest.raises(ValueError, match=r"the width of model is not clear: .*\[4, 8\]; give width="):
        transfer(nn.ModuleList([nn.Embedding(3, 4), nn.Embedding(3, 8)]), base_width=4)
