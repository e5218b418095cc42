"""timm: groups as timm makes them, and its registry. `nox -s frameworks` installs it."""

from __future__ import annotations

import pytest
import torch

import steprule

timm = pytest.importorskip("timm")
from steprule.integrations.timm import register  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
MODELS = ["vit_tiny_patch16_224", "resnet10t", "convnext_atto", "swin_tiny_patch4_window7_224"]


def settings_of(groups, model, rate):
    """Learning rate and weight decay of each parameter by its name."""
    found = {p: (rate(group), group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[p] for name, p in model.named_parameters()}


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_groups_are_those_of_timm(name, layer_decay, compiled):
    model = timm.create_model(name, pretrained=False)
    given = {"lr": 1e-3, "weight_decay": 0.1, "layer_decay": layer_decay}
    mine = steprule.create_optimizer(torch.compile(model) if compiled else model, "adamw", **given)
    its = timm.optim.create_optimizer_v2(model, "adamw", **given)
    got = settings_of(mine.param_groups, model, lambda group: group["lr"])
    wanted = settings_of(its.param_groups, model, lambda group: 1e-3 * group.get("lr_scale", 1.0))
    for one in got:
        assert got[one] == (pytest.approx(wanted[one][0]), wanted[one][1]), one
    assert len({decay for _, decay in got.values()}) == 2


def test_no_weight_decay_is_asked_beside_muon():
    """Also of a matrix that Muon steps."""
    model = timm.create_model(MODELS[0], pretrained=False, depth=2)
    named = {*model.no_weight_decay() & dict(model.named_parameters()).keys(), "blocks.1.mlp.fc1.weight"}
    model.no_weight_decay = lambda: named
    optimizer = steprule.create_optimizer(model, "muon", lr=0.02, weight_decay=0.1, adamw_lr=1e-3)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found = {name: groups[p] for name, p in model.named_parameters()}
    assert {"pos_embed", "cls_token"} < named
    assert all(found[name]["weight_decay"] == 0 for name in named)
    assert found["blocks.0.mlp.fc1.weight"]["weight_decay"] == 0.1
    assert (
        found["blocks.0.mlp.fc1.weight"]["rule"]
        == found["blocks.1.mlp.fc1.weight"]["rule"]
        != found["pos_embed"]["rule"]
    )


def test_what_is_said_in_the_call_wins():
    model = timm.create_model(MODELS[0], pretrained=False, depth=2)
    given = {"lr": 1e-3, "weight_decay": 0.1}
    every = steprule.create_optimizer(model, "adamw", **given, no_decay=False)
    assert {group["weight_decay"] for group in every.param_groups} == {0.1}
    one = steprule.create_optimizer(
        model, "adamw", **given, no_decay=["*.bias"], layer_decay=0.5, layer_of=lambda name: 0
    )
    assert {group["lr"] for group in one.param_groups} == {1e-3}
    decay = settings_of(one.param_groups, model, lambda group: group["lr"])
    assert decay["pos_embed"][1] == 0.1


def test_timms_registry_has_the_optimizers():
    names = register()
    assert {"steprule-adamw", "steprule-lion", "steprule-schedulefreeadamw"} <= set(timm.optim.list_optimizers())
    model = timm.create_model("resnet10t", pretrained=False, num_classes=2)
    for name in names:
        if name in ("steprule-mano",) or steprule.rules.RULES[name.removeprefix("steprule-")].matrices_only:
            continue
        optimizer = timm.optim.create_optimizer_v2([torch.nn.Parameter(torch.ones(4, 4))], name, weight_decay=0.01)
        assert type(optimizer).__module__ == "steprule.optimizer", name
    optimizer = timm.optim.create_optimizer_v2(
        model, "steprule-adamw", lr=1e-3, weight_decay=0.05, clip=1.0, states="8bit"
    )
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    assert type(optimizer) is steprule.AdamW and optimizer.clipped_steps == 1
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("prefix", ["", "step_rule", None])
def test_a_prefix_that_timm_would_not_find(prefix):
    with pytest.raises(ValueError, match="prefix="):
        register(prefix)
