"""Optimizers by name, and the groups that their parameters are divided into."""

from __future__ import annotations

import copy
import io
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import steprule.optimizer
from steprule.create import create_optimizer, optimizer_class, parameter_groups
from steprule.rule import Rule
from steprule.rules import OWN, RULES


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Transformer(nn.Module):
    """Without attention, which would only add names."""

    def __init__(self, depth: int = 3, width: int = 8, tied: bool = False) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(4, width))
        self.tokens = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10, bias=not tied)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x):
        x = self.tokens(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def of_each(split, setting):
    """The setting of every parameter, by name."""
    return {name: group.get(setting) for group in split.groups for name, _ in group["params"]}


def names_of(groups):
    return {group["name"]: [name for name, _ in group["params"]] for group in groups}


# Every parameter is in one group


@st.composite
def trees(draw, depth: int = 3):
    """A random module, with parameters that are shared between its parts and some that are frozen."""
    kinds = ["linear", "bare", "norm", "embedding", "table"] + ["list", "sequence", "module"] * (depth > 0)
    kind = draw(st.sampled_from(kinds if depth < 3 else kinds[5:]))
    leaves = {
        "linear": lambda: nn.Linear(2, 2),
        "bare": lambda: nn.Linear(2, 2, bias=False),
        "norm": lambda: nn.LayerNorm(2),
        "embedding": lambda: nn.Embedding(2, 2),
        "table": lambda: nn.ParameterList([torch.zeros(2, 2), torch.zeros(())]),
    }
    if kind in leaves:
        return leaves[kind]()
    children = draw(st.lists(trees(depth=depth - 1), min_size=1, max_size=4))
    if kind == "list":
        module = nn.ModuleList(children)
    elif kind == "sequence":
        module = nn.Sequential(*children)
    else:
        module = nn.ModuleDict({f"part{index}": child for index, child in enumerate(children)})
    if depth == 3:
        matrices = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Embedding))]
        for one, other in draw(st.lists(st.tuples(*[st.sampled_from(matrices)] * 2), max_size=3)) if matrices else ():
            one.weight = other.weight
        for param in module.parameters():
            param.requires_grad_(draw(st.integers(0, 3)) > 0)
    return module


def layer_of(name):
    return len(name) % 5


@given(
    module=trees(),
    as_pairs=st.booleans(),
    no_decay=st.sampled_from([True, False, ["*weight"], ["*"]]),
    layer_decay=st.sampled_from([None, 0.5, 1.0]),
    patterns=st.lists(st.sampled_from(["*weight", "*.bias", "0*", "part1*", "*"]), max_size=3),
    own=st.lists(st.sampled_from([{}, {"lr": 7.0}, {"weight_decay": 5.0}]), min_size=3, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_every_parameter_to_train_is_in_exactly_one_group(module, as_pairs, no_decay, layer_decay, patterns, own):
    named = dict(module.named_parameters())
    model = list(module.named_parameters(remove_duplicate=False)) if as_pairs else module
    groups = list(zip(patterns, own, strict=False))
    options = {"layer_decay": layer_decay, "layer_of": layer_of if layer_decay else None, "groups": groups}
    claimed = set()
    useful = isinstance(no_decay, bool) or all(any(fnmatchcase(name, p) for name in named) for p in no_decay)
    for pattern in patterns:
        matched = {name for name in named if fnmatchcase(name, pattern)}
        useful = useful and bool(matched - claimed)
        claimed |= matched
    if not useful or not any(param.requires_grad for param in named.values()):
        with pytest.raises(ValueError, match=r"matches|no parameters to train"):
            parameter_groups(model, lr=1.0, weight_decay=0.1, no_decay=no_decay, **options)
        return
    split = parameter_groups(model, lr=1.0, weight_decay=0.1, no_decay=no_decay, **options)

    placed = [(name, param) for group in split.groups for name, param in group["params"]]
    expected = {name: param for name, param in named.items() if param.requires_grad}
    assert sorted(name for name, _ in placed) == sorted(expected)
    assert all(param is expected[name] for name, param in placed)
    assert list(split.frozen) == [name for name, param in named.items() if not param.requires_grad]
    assert len({group["name"] for group in split.groups}) == len(split.groups)
    assert all(group["params"] for group in split.groups)
    last = max(map(layer_of, named))
    for group in split.groups:
        for name, param in group["params"]:
            chosen = next((s for pattern, s in groups if fnmatchcase(name, pattern)), {})
            is_bare = param.ndim < 2 if no_decay is True else any(fnmatchcase(name, p) for p in no_decay or ())
            assert group["lr"] == chosen.get("lr", 0.5 ** (last - layer_of(name)) if layer_decay == 0.5 else 1.0)
            assert group["weight_decay"] == chosen.get("weight_decay", 0.0 if is_bare else 0.1)


def test_a_shared_parameter_is_trained_once_and_by_its_first_name():
    model = Transformer(tied=True)
    optimizer = create_optimizer(model, "adamw")
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert "tokens.weight" in names and "head.weight" not in names
    assert len(names) == len(set(names)) == len(list(model.parameters()))
    with pytest.raises(
        ValueError, match=r"groups\[0\]: 'head.\*' matches no parameter; names are those of model.named_p"
    ):
        parameter_groups(model, groups=[("head.*", {"lr": 1.0})])


def test_frozen_parameters_are_listed_and_left_alone():
    model = Transformer(depth=1)
    model.tokens.requires_grad_(False)
    split = parameter_groups(model)
    assert split.frozen == ("tokens.weight",)
    assert "tokens.weight" not in of_each(split, "lr")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model has no parameters to train; 12 are frozen"):
        parameter_groups(model)


# Weight decay


def test_vectors_do_not_decay():
    split = parameter_groups(Transformer(depth=1), weight_decay=0.1)
    assert names_of(split.groups) == {
        "decay": ["position", "tokens.weight", "blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight", "head.weight"],
        "no decay": ["blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.0.mlp.0.bias", "blocks.0.mlp.2.bias",
                     "norm.weight", "norm.bias", "head.bias"],
    }  # fmt: skip
    assert [group["weight_decay"] for group in split.groups] == [0.1, 0.0]


def test_a_bias_of_any_shape_does_not_decay():
    pairs = [(name, nn.Parameter(torch.zeros(2, 2))) for name in ("weight", "bias", "a.bias", "rebias")]
    assert names_of(parameter_groups(pairs).groups) == {"decay": ["weight", "rebias"], "no decay": ["bias", "a.bias"]}


def test_embeddings_can_be_kept_from_decay():
    model = nn.ModuleDict({"words": nn.Embedding(3, 2), "bag": nn.EmbeddingBag(3, 2), "head": nn.Linear(2, 3)})
    split = parameter_groups(model, no_decay="embeddings")
    assert names_of(split.groups) == {
        "decay": ["head.weight"],
        "no decay": ["words.weight", "bag.weight", "head.bias"],
    }
    with pytest.raises(ValueError, match='no_decay="embeddings" needs a module'):
        parameter_groups(model.named_parameters(), no_decay="embeddings")


def test_patterns_say_alone_what_does_not_decay():
    split = parameter_groups(Transformer(depth=1), weight_decay=0.1, no_decay=["position", "norm.*"])
    assert names_of(split.groups)["no decay"] == ["position", "norm.weight", "norm.bias"]
    assert of_each(split, "weight_decay")["head.bias"] == 0.1


def test_no_decay_false_and_a_weight_decay_of_the_groups_own_hold_for_all():
    model = Transformer(depth=1)
    assert set(of_each(parameter_groups(model, weight_decay=0.1, no_decay=False), "weight_decay").values()) == {0.1}
    split = parameter_groups(model, weight_decay=0.1, groups=[("head.*", {"weight_decay": 0.3})])
    assert names_of(split.groups)["head.*"] == ["head.weight", "head.bias"]
    assert of_each(split, "weight_decay")["head.bias"] == 0.3


def test_a_rule_without_weight_decay_is_not_given_one(monkeypatch):
    class Descent(Rule):
        @staticmethod
        def update(param, grad, *, lr=0.1):
            return param - lr * grad

    class Front(steprule.optimizer.Optimizer, rule=Descent):
        pass

    monkeypatch.setattr(RULES, "_rules", {**RULES, "descent": Descent})
    monkeypatch.setattr(steprule.optimizer, "Descent", Front, raising=False)
    optimizer = create_optimizer(Transformer(), "descent")
    assert [group["name"] for group in optimizer.param_groups] == ["default"]
    assert "weight_decay" not in optimizer.param_groups[0]
    with pytest.raises(TypeError, match="Front got an unexpected argument 'weight_decay'"):
        create_optimizer(Transformer(), "descent", weight_decay=0.1)
    with pytest.raises(TypeError, match=r"groups\[0\] of Front got an unexpected argument 'weight_decay'"):
        create_optimizer(Transformer(), "descent", groups=[("head.*", {"weight_decay": 0.1})])


# Layers


def test_each_layer_has_a_share_of_the_next_ones_lr():
    """As BEiT counts: with three blocks the embeddings are layer 0, and norm and head are layer 4."""
    lr = of_each(parameter_groups(Transformer(depth=3), lr=0.16, layer_decay=0.5), "lr")
    expected = {"position": 0.01, "tokens": 0.01, "blocks.0": 0.02, "blocks.1": 0.04, "blocks.2": 0.08, "norm": 0.16,
                "head": 0.16}  # fmt: skip
    assert len(lr) == 24
    for name, value in lr.items():
        assert value == expected[next(prefix for prefix in expected if name.startswith(prefix))], name


def test_layers_are_split_by_decay_and_sorted():
    split = parameter_groups(Transformer(depth=11), lr=1.0, layer_decay=0.5)
    layers = [f"layer {n}{kind}" for n in range(13) for kind in ("", ", no decay")]
    layers.remove("layer 0, no decay")
    assert [group["name"] for group in split.groups] == layers
    assert of_each(split, "lr")["blocks.10.norm.weight"] == 0.5
    assert of_each(split, "lr")["blocks.2.norm.weight"] == 0.5**9


def test_without_anything_behind_them_the_last_layer_has_lr_itself():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert [group["lr"] for group in parameter_groups(model, lr=1.0, layer_decay=0.5).groups] == [0.5, 0.5, 1.0, 1.0]
    assert names_of(parameter_groups(model, lr=1.0, layer_decay=0.5).groups) == {
        "layer 1": ["0.weight"], "layer 1, no decay": ["0.bias"],
        "layer 2": ["2.weight"], "layer 2, no decay": ["2.bias"],
    }  # fmt: skip


def test_frozen_layers_count():
    model = Transformer(depth=3)
    model.head.requires_grad_(False)
    model.norm.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    assert of_each(parameter_groups(model, lr=1.0, layer_decay=0.5), "lr")["blocks.2.norm.weight"] == 0.5


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Transformer(depth=4), nn.Linear(10, 5)),  # a list of two, which has all elements
        nn.ModuleDict({"blocks": nn.ModuleList(nn.ModuleList(nn.Linear(9, 9) for _ in range(6)) for _ in range(4))}),
    ],
    ids=["in a backbone", "of experts"],
)
def test_the_largest_list_is_that_of_layers(model):
    split = parameter_groups(model, lr=1.0, layer_decay=0.5, no_decay=False)
    for group in split.groups:
        for name, _ in group["params"]:
            if "blocks." in name:
                assert group["name"] == f"layer {int(name.split('blocks.')[1][0]) + 1}"


def test_a_function_can_say_what_the_layers_are():
    model = Transformer(depth=2)
    options = {"lr": 1.0, "layer_decay": 0.1, "layer_of": lambda name: 2 * name.startswith("head")}
    for groups in (parameter_groups(model, **options).groups, create_optimizer(model, "sgd", **options).param_groups):
        by_name = {group["name"]: group["lr"] for group in groups}
        assert (by_name["layer 2"], by_name["layer 0"]) == (1.0, pytest.approx(0.01))
        assert len(by_name) == 4


def test_a_groups_own_lr_is_not_scaled():
    groups = [("tokens.*", {"lr": 3.0}), ("blocks.0.*", {"weight_decay": 0.5})]
    split = parameter_groups(Transformer(depth=2), lr=1.0, weight_decay=0.1, layer_decay=0.5, groups=groups)
    lr, weight_decay = of_each(split, "lr"), of_each(split, "weight_decay")
    assert (lr["tokens.weight"], weight_decay["tokens.weight"]) == (3.0, 0.1)
    assert (lr["blocks.0.norm.bias"], weight_decay["blocks.0.norm.bias"]) == (0.25, 0.5)
    assert names_of(split.groups)["tokens.*"] == ["tokens.weight"]
    assert "blocks.0.*, layer 1" in names_of(split.groups)


# Groups of one's own


def test_the_first_pattern_wins_and_predicates_see_name_and_parameter():
    groups = [
        ("blocks.1.*", {"lr": 1.0}),
        (lambda name, param: name.startswith("blocks") and param.ndim == 1, {"lr": 2.0}),
        ("*", {"lr": 3.0}),
    ]
    split = parameter_groups(Transformer(depth=2), lr=9.0, groups=groups)
    lr = of_each(split, "lr")
    assert (lr["blocks.1.norm.weight"], lr["blocks.0.norm.weight"], lr["blocks.0.mlp.0.weight"]) == (1.0, 2.0, 3.0)
    assert [group["name"] for group in split.groups] == [
        "blocks.1.*", "blocks.1.*, no decay", "groups[1], no decay", "*", "*, no decay"
    ]  # fmt: skip


def test_any_setting_can_be_a_groups_own():
    groups = [("head.*", {"betas": (0.5, 0.6), "lr": 1.0, "clip": False})]
    optimizer = create_optimizer(Transformer(), "adamw", groups=groups, betas=(0.8, 0.9), clip=1.0)
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert (by_name["head.*"]["betas"], by_name["head.*"]["clip"]) == ((0.5, 0.6), False)
    assert by_name["head.*, no decay"]["weight_decay"] == 0.0
    assert (by_name["decay"]["betas"], by_name["decay"]["lr"]) == ((0.8, 0.9), 1e-3)


# The optimizer


@pytest.mark.parametrize("name", OWN)
def test_every_rule_has_its_optimizer(name):
    assert optimizer_class(name).rule is OWN[name]


def test_case_and_hyphens_do_not_matter():
    assert {optimizer_class(name) for name in ("AdamW", "adam_w", "ADAM-W", "adamw")} == {steprule.optimizer.AdamW}
    assert type(create_optimizer(Transformer(), "RMS-prop")) is steprule.optimizer.RMSprop


def test_it_trains_as_torchs_with_the_same_groups():
    torch.manual_seed(0)
    model = Transformer(depth=2)
    other = copy.deepcopy(model)
    optimizer = create_optimizer(
        model, "adamw", lr=0.08, weight_decay=0.5, layer_decay=0.5, groups=[("head.*", {"lr": 0.003, "eps": 1e-3})]
    )
    groups = [
        {"params": [other.position, other.tokens.weight], "lr": 0.01, "weight_decay": 0.5},
        {"params": [other.norm.weight, other.norm.bias], "lr": 0.08, "weight_decay": 0.0},
        {"params": [other.head.weight], "lr": 0.003, "weight_decay": 0.5, "eps": 1e-3},
        {"params": [other.head.bias], "lr": 0.003, "weight_decay": 0.0, "eps": 1e-3},
    ]
    for block, lr in zip(other.blocks, (0.02, 0.04), strict=True):
        vectors = [block.norm.weight, block.norm.bias, block.mlp[0].bias, block.mlp[2].bias]
        groups.append({"params": [block.mlp[0].weight, block.mlp[2].weight], "lr": lr, "weight_decay": 0.5})
        groups.append({"params": vectors, "lr": lr, "weight_decay": 0.0})
    reference = torch.optim.AdamW(groups)
    for _ in range(5):
        x = torch.randint(10, (3, 4))
        for net, stepped in ((model, optimizer), (other, reference)):
            stepped.zero_grad()
            nn.functional.cross_entropy(net(x).flatten(0, 1), x.flatten()).backward()
            stepped.step()
    for (name, param), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_without_lr_and_weight_decay_they_are_the_optimizers_own():
    optimizer = create_optimizer(Transformer(depth=2), "adamw", layer_decay=0.5)
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert (by_name["layer 3"]["lr"], by_name["layer 2"]["lr"]) == (1e-3, 5e-4)
    assert (by_name["layer 3"]["weight_decay"], by_name["layer 3, no decay"]["weight_decay"]) == (1e-2, 0.0)
    assert "lr" not in parameter_groups(Transformer()).groups[0]


def test_lr_and_weight_decay_are_defaults_of_later_groups():
    optimizer = create_optimizer(Transformer(), "sgd", lr=0.5, weight_decay=0.25, momentum=0.9, states="bfloat16")
    assert [optimizer.defaults[name] for name in ("lr", "weight_decay", "momentum")] == [0.5, 0.25, 0.9]
    assert {group["states"] for group in optimizer.param_groups} == {"bfloat16"}


def test_a_tensor_as_lr_stays_the_one_that_was_given():
    lr = torch.tensor(0.5)
    optimizer = create_optimizer(Transformer(), "sgd", lr=lr)
    assert all(group["lr"] is lr for group in optimizer.param_groups)
    lrs = of_each(parameter_groups(Transformer(depth=2), lr=lr, layer_decay=0.5), "lr")
    assert (float(lrs["head.weight"]), float(lrs["position"])) == (0.5, 0.0625)


TAKES_GROUPS = [c for c in vars(torch.optim).values() if isinstance(c, type) and c is not torch.optim.Optimizer]


@pytest.mark.parametrize("cls", [c for c in TAKES_GROUPS if c is not torch.optim.LBFGS], ids=lambda c: c.__name__)
def test_every_class_of_torch_optim_takes_the_groups(cls):
    """Except LBFGS, which takes a single group."""
    model = Transformer() if cls is not getattr(torch.optim, "Muon", None) else nn.Linear(3, 3, bias=False)
    split = parameter_groups(model, lr=0.01, no_decay=["*weight"])
    optimizer = cls(split.groups)
    assert {name for group in optimizer.param_groups for name in group["param_names"]} == set(of_each(split, "lr"))
    for group in optimizer.param_groups:
        assert group["lr"] == 0.01
        assert all(isinstance(param, nn.Parameter) for param in group["params"])


def test_two_optimizers_of_one_split_do_not_share_their_groups():
    split = parameter_groups(Transformer(depth=1), lr=1.0)
    shown = str(split)
    split.groups[0]["params"].clear()
    one, other = torch.optim.SGD(split.groups), torch.optim.AdamW(split.groups)
    one.param_groups[0]["lr"] = 2.0
    one.param_groups[0]["params"].clear()
    assert other.param_groups[0]["lr"] == 1.0 and other.param_groups[0]["params"]
    assert str(split) == shown


def test_checkpoints_keep_names_and_resume():
    model = Transformer(depth=1)
    optimizer = create_optimizer(model, "adamw", lr=0.5, layer_decay=0.5)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    again = create_optimizer(model, "adamw", lr=0.25, layer_decay=0.5)
    again.load_state_dict(torch.load(saved, weights_only=True))
    kept = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    assert [{key: value for key, value in group.items() if key != "params"} for group in again.param_groups] == kept


# What is shown


def test_the_split_as_a_table(capsys):
    model = Transformer(depth=2)
    model.tokens.requires_grad_(False)
    groups = [("head.weight", {"lr": 0.1, "betas": (0.5, 0.75)})]
    optimizer = create_optimizer(model, "adamw", lr=3e-4, weight_decay=0.1, groups=groups, show=True)
    names = "blocks.*.norm.weight, blocks.*.norm.bias, blocks.*.mlp.*.bias, norm.weight and 2 more"
    assert capsys.readouterr().out == (
        "group        tensors  elements      lr  weight_decay        betas  parameters\n"
        "decay              5       544  0.0003           0.1            -  position, blocks.*.mlp.*.weight\n"
        f"no decay          11       106  0.0003             0            -  {names}\n"
        "head.weight        1        80     0.1           0.1  (0.5, 0.75)  head.weight\n"
        "frozen             1        80       -             -            -  tokens.weight\n"
    )
    assert len(optimizer.param_groups) == 3
    create_optimizer(model, "adamw")
    assert capsys.readouterr().out == ""
    create_optimizer(model, "adamw", show=True)
    assert capsys.readouterr().out.splitlines()[1].split()[:5] == ["decay", "6", "624", "0.001", "0.01"]


# Errors


class Untouched:
    """Pairs that nobody may look at."""

    def __iter__(self):
        raise AssertionError("the model was looked at")


@pytest.mark.parametrize(
    "name, arguments, error, message",
    [
        ("adamv", {}, ValueError, "unknown optimizer 'adamv'; did you mean 'adam"),
        ("xyz", {}, ValueError, "unknown optimizer 'xyz'; steprule list prints all names"),
        ("amsgrad", {}, ValueError, "unknown optimizer 'amsgrad'; it is a setting of adamw, adam"),
        ("torch.optim.AdamW", {}, ValueError, "unknown optimizer 'torch.optim.AdamW'; did you mean 'adamw'"),
        ("AdamW8bit", {}, ValueError, "unknown optimizer 'AdamW8bit'; did you mean 'adamw' with states=8bit"),
        (3, {}, ValueError, "unknown optimizer '3'; steprule list"),
        ("adamw", {"bettas": 1}, TypeError, "AdamW got an unexpected argument 'bettas'; did you mean 'betas'"),
        ("adamw", {"layer_decy": 1}, TypeError, "AdamW got an unexpected .*'layer_decy'; did you mean 'layer_decay'"),
        ("adamw", {"params": []}, TypeError, "AdamW got an unexpected argument 'params'"),
        ("adamw", {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ("adamw", {"lr": "0.1", "layer_decay": 0.5}, TypeError, "lr must be a number, not '0.1'"),
        ("adamw", {"weight_decay": -2.0}, ValueError, "Invalid weight_decay value: -2.0"),
    ],
)
def test_a_wrong_name_or_setting_is_found_before_the_model_is_looked_at(name, arguments, error, message):
    with pytest.raises(error, match=message):
        create_optimizer(Untouched(), name, **arguments)


PARAM = nn.Parameter(torch.zeros(2, 2))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module or .* pairs, not int"),
        ({"model": [PARAM]}, TypeError, "model must be a torch.nn.Module or .* pairs, not Parameter"),
        ({"model": [(PARAM, "a")]}, TypeError, "model must be a torch.nn.Module or .* pairs, not tuple"),
        ({"model": [("a", PARAM), ("a", nn.Parameter(torch.zeros(1)))]}, ValueError, "two parameters called 'a'"),
        ({"model": []}, ValueError, "model has no parameters to train; 0 are frozen"),
        ({"no_decay": "*.bias"}, ValueError, "no_decay must be True, .* not '\\*.bias'"),
        ({"no_decay": 1.5}, ValueError, "no_decay must be True, .* not 1.5"),
        (
            {"no_decay": ["norm.weigth"]},
            ValueError,
            "no_decay: 'norm.weigth' matches no .*; did you mean 'norm.weight'",
        ),
        ({"layer_decay": 0}, ValueError, "layer_decay must be a number above 0, at most 1, not 0"),
        ({"layer_decay": 1.5}, ValueError, "layer_decay must be a number above 0, at most 1, not 1.5"),
        ({"layer_decay": True}, ValueError, "layer_decay must be a number above 0, at most 1, not True"),
        ({"layer_decay": "0.5"}, ValueError, "layer_decay must be a number above 0, at most 1, not '0.5'"),
        ({"layer_decay": 0.5, "model": nn.Linear(2, 2)}, ValueError, "layer_decay=0.5 finds no list of layers"),
        ({"layer_decay": 0.5, "model": nn.Sequential(nn.Linear(2, 2))}, ValueError, "finds no list of layers"),
        ({"layer_decay": 0.5, "layer_of": lambda name: -1}, ValueError, "layer_of must return .* not -1 .*'position'"),
        ({"layer_decay": 0.5, "layer_of": lambda name: 0.5}, ValueError, "layer_of must return .* not 0.5"),
        ({"layer_of": layer_of}, ValueError, "layer_of=<function layer_of.* needs layer_decay"),
        ({"groups": [("haed.weight", {})]}, ValueError, "groups.0.: 'haed.weight' .*; did you mean 'head.weight'"),
        ({"groups": [(lambda name, param: False, {})]}, ValueError, "groups.0.: <function .*> matches no parameter"),
        ({"groups": [("*", {}), ("head.*", {})]}, ValueError, "groups.1.: 'head.\\*' only matches what those before"),
        ({"groups": {"head.*": {}}}, TypeError, "groups.0. must be a pattern or function, and a dict, not 'head"),
        ({"groups": [("head.*", 3)]}, TypeError, "groups.0. must be a pattern or function, and a dict, not .*3"),
        ({"groups": [(3, {})]}, TypeError, "groups.0. must be a pattern or function, and a dict, not .3, "),
        ({"groups": [("head.*", {"params": []})]}, ValueError, "groups.0.: 'params' is not a setting"),
    ],
)
def test_errors_name_the_argument_and_the_value(arguments, error, message):
    arguments = {"model": Transformer(), **arguments}
    with pytest.raises(error, match=message):
        parameter_groups(arguments.pop("model"), lr=0.1, **arguments)


def test_layers_need_a_number_as_lr():
    with pytest.raises(ValueError, match=r"layer_decay=0\.5 needs lr, a number to multiply, not None"):
        parameter_groups(Transformer(), layer_decay=0.5)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"lrr": 1.0}, TypeError, r"groups\[1\] of AdamW got an unexpected argument 'lrr'; did you mean 'lr'"),
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ({"betas": (0.5, 2.0)}, ValueError, "Invalid beta parameter at index 1: 2.0"),
    ],
)
def test_a_groups_wrong_setting_is_found_before_an_optimizer_is_made(monkeypatch, settings, error, message):
    def refuse(*args, **kwargs):
        raise AssertionError("an optimizer was made")

    monkeypatch.setattr(steprule.optimizer.Optimizer, "__init__", refuse)
    with pytest.raises(error, match=message):
        create_optimizer(Transformer(), "adamw", groups=[("tokens.*", {}), ("head.*", settings)])


def test_a_rule_and_a_schedule_in_place_of_a_name_and_a_number():
    net = torch.nn.Linear(3, 2)
    rule = steprule.chain(steprule.rules.Lion, name="Mine")
    made = steprule.create_optimizer(net, rule, lr=lambda step: 0.1 / step, weight_decay=0.3)
    assert type(made).__name__ == "Mine"
    assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [(0.1, 0.3), (0.1, 0.0)]
    with pytest.raises(ValueError, match=r"layer_decay=0\.5 cannot multiply a schedule"):
        steprule.create_optimizer(net, "adamw", lr=lambda step: 0.1, layer_decay=0.5)


def test_groups_may_have_schedules():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = create_optimizer(net, "adamw", groups=[("0.*", {"lr": lambda step: 0.1 / step})])
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.001, 0.001, 0.1, 0.1]
    optimizer.step()
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.001, 0.001, 0.05, 0.05]
    with pytest.raises(ValueError, match="decay='nonsense' in a parameter group"):
        create_optimizer(net, "adamw", groups=[("*", {"decay": "nonsense"})])


def test_a_class_in_place_of_a_name():
    assert optimizer_class(steprule.AdamW) is steprule.AdamW
    assert type(create_optimizer(nn.Linear(2, 2), steprule.Lion)) is steprule.Lion


@pytest.mark.parametrize(("theirs", "ours"), [("learning_rate", "lr"), ("wd", "weight_decay"), ("beta1", "betas")])
def test_what_other_libraries_call_it(theirs, ours):
    for make in (steprule.AdamW, lambda params, **settings: create_optimizer(nn.Linear(2, 2), "adamw", **settings)):
        with pytest.raises(TypeError, match=f"unexpected argument '{theirs}'; did you mean '{ours}'"):
            make([torch.zeros(1)], **{theirs: 0.1})


def lazy():
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2), nn.Embedding(3, 2))


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({}, "no_decay"),
        ({"no_decay": "embeddings"}, "no_decay"),
        ({"no_decay": False, "layer_decay": 0.5}, "layer_decay"),
    ],
    ids=str,
)
def test_what_is_decided_by_shape_waits_for_it(options, who):
    """A lazy module's parameters have none before the first forward pass; their ndim says 1."""
    net = lazy()
    words = rf"'0\.weight' has no shape yet, by which {who} decides: run one forward pass before"
    with pytest.raises(ValueError, match=words):
        create_optimizer(net, "adamw", lr=0.1, **options)
    with pytest.raises(ValueError, match=words):
        parameter_groups(net, lr=0.1, **options)
    net[:3](torch.ones(2, 7))
    made = create_optimizer(net, "adamw", lr=0.1, **options)
    where = {param: group for group in made.param_groups for param in group["params"]}
    assert where[net[0].weight]["weight_decay"] != 0


@pytest.mark.parametrize("options", [{"no_decay": False}, {"no_decay": ["*.bias"]}], ids=str)
def test_what_is_not_decided_by_shape_takes_lazy_parameters(options, capsys):
    net = lazy()
    made = create_optimizer(net, "sgd", lr=0.1, weight_decay=0.1, show=True, **options)
    assert "unknown" in capsys.readouterr().out
    net[:3](torch.ones(2, 7)).square().sum().backward()
    before = net[0].weight.detach().clone()
    made.step()
    assert not torch.equal(before, net[0].weight)


def test_released_gradients_wait_for_a_shape_too():
    net = lazy()
    optimizer = steprule.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="parameter 0 of group 0 has no shape yet: run one forward pass before"):
        optimizer.release_gradients(net)
    net[:3](torch.ones(2, 7))
    optimizer.release_gradients(net)  # nothing is left of the first time


# What torch.optim alone has


@pytest.mark.parametrize("name", ["LBFGS", "lbfgs"])
def test_torchs_own_are_made_by_name(name):
    optimizer = create_optimizer(torch.nn.Linear(2, 2, bias=False), name, lr=0.25)
    assert type(optimizer).__module__.startswith("torch.optim") and type(optimizer).__name__.lower() == name.lower()
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert all(param.grad is None for group in optimizer.param_groups for param in group["params"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"states": "8bit"}, "LBFGS is torch.optim's own and takes no states, which steprule's optimizers do"),
        ({"clip": 1.0}, "LBFGS is torch.optim's own and takes no clip"),
        ({"lr": lambda step: 0.1}, "LBFGS is torch.optim's own and takes no functions of the step, as lr="),
        ({"learning_rate": 0.1}, "LBFGS got an unexpected argument 'learning_rate'; did you mean 'lr'"),
        ({"groups": [("weight", {"clip": False})]}, r"groups\[0\] of LBFGS is torch.optim's own and takes no clip"),
    ],
    ids=["formats", "services", "schedules", "names", "groups"],
)
def test_torchs_own_take_their_arguments_alone(settings, told):
    with pytest.raises(TypeError, match=told):
        create_optimizer(torch.nn.Linear(2, 2), "lbfgs", **settings)
