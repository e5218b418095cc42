"""What a drop-in must do at construction. The number in a test's name is the item of the drop-in list."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from dropin import (
    CLASSES,
    CONFIGS,
    FULL,
    NAMES,
    NEWER,
    NO_DECOUPLED,
    PLAIN,
    Pair,
    known,
    leaves,
    mine,
    outcome,
    same_value,
    since,
    torchs,
)

import steprule


def bad_arguments(name: str) -> list[dict[str, Any]]:
    """Arguments that torch may or may not refuse; which it does is asked below."""
    cases: list[dict[str, Any]] = []
    for hyper, default in CLASSES[name].hyperparameters.items():
        if isinstance(default, tuple):
            for index in range(len(default)):
                for value in (-0.5, -1, 1.0, 1.1, 2, 0, math.nan):
                    cases.append({hyper: tuple(value if i == index else d for i, d in enumerate(default))})
                cases.append({hyper: tuple(torch.tensor(d) if i == index else d for i, d in enumerate(default))})
                cases.append({hyper: tuple(torch.tensor([d] * (1 + (i == index))) for i, d in enumerate(default))})
            cases.append({hyper: tuple(map(torch.tensor, default)), "foreach": True})
            cases.append({hyper: tuple(torch.tensor([d]) for d in default), "foreach": True})
        elif not isinstance(default, bool):
            cases += [{hyper: value} for value in (-1, -0.5, -1e-30, 1.1, -math.inf)]
    cases += [{"lr": torch.tensor(value)} for value in (-1.0, [0.1, 0.2], [[0.1], [0.2]], [-0.5], [])]
    cases += [{"lr": torch.tensor(0.1), "foreach": True}, {"lr": torch.tensor([0.1, 0.2]), "foreach": True}]
    if "nesterov" in CLASSES[name].hyperparameters:
        cases += [
            {"nesterov": True},
            {"nesterov": True, "momentum": 0.0},
            {"nesterov": True, "momentum": 0.9, "dampening": 0.5},
            {"nesterov": True, "momentum": -0.5},
        ]
    return cases


REFUSED = [
    pytest.param(name, arguments, error, id=f"{name}-{arguments}")
    for name in NAMES
    for arguments in bad_arguments(name)
    if (error := outcome(lambda n=name, a=arguments: torchs(n)(None, **a)))[0] == "ValueError"
]


@pytest.mark.parametrize(("name", "arguments", "error"), REFUSED)
def test_1_2_bad_values_are_refused_before_params_is_touched_in_torchs_words(name, arguments, error):
    assert outcome(lambda: mine(name)(None, **arguments)) == error


@pytest.mark.parametrize("name", NAMES)
def test_1_a_refused_generator_is_still_whole(name):
    params = iter(leaves())
    with pytest.raises(ValueError):
        mine(name)(params, lr=-1.0)
    assert len(list(params)) == 3


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("Adam", {"betas": (1.0, 0.0)}, "Invalid beta parameter at index 0: 1.0"),
        ("AdamW", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ("SGD", {"momentum": -0.5}, "Invalid momentum value: -0.5"),
        ("SGD", {"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
        ("RMSprop", {"momentum": -1.0}, "Invalid momentum value: -1.0"),
        ("Adam", {"betas": (0.9, torch.tensor(0.99))}, "betas must be either both floats or both Tensors"),
        (
            "Adam",
            {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "foreach": True},
            "betas[0] as a Tensor is not supported for capturable=False and foreach=True",
        ),
        (
            "AdamW",
            {"lr": torch.tensor(0.1), "foreach": True},
            "lr as a Tensor is not supported for capturable=False and foreach=True",
        ),
    ],
)
def test_2_documented_texts(name, arguments, text):
    """Literally, so that the table above cannot be empty unseen."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        mine(name)(None, **arguments)


NO_NUMBERS = [math.nan, math.inf, -math.inf, "0.1", None, [0.1], 1j, object(), torch.tensor(math.nan), {}]
NO_BOOLEANS = ["False", 2, None, math.nan, 0.5]
NO_PAIRS = [
    (0.9,), (0.9, 0.9, 0.9), 0.9, "ab", None, (math.nan, 0.9), (0.9, math.nan), ("0.9", "0.9"), (0.9, None), {}, (),
    torch.tensor(0.9),
]  # fmt: skip


def senseless() -> list[Any]:
    found = []
    for name in NAMES:
        for hyper, default in CLASSES[name].hyperparameters.items():
            values = (
                NO_BOOLEANS if isinstance(default, bool) else NO_PAIRS if isinstance(default, tuple) else NO_NUMBERS
            )
            found += [
                pytest.param(
                    name, hyper, value, id=f"{name}-{hyper}={value if type(value) is not object else 'object'}"
                )
                for value in values
            ]
    return found


WORDS = {"lr": "lr|learning rate", "eps": "eps", "betas": "beta", "nesterov": "nesterov|Nesterov", "etas": "eta"}


@pytest.mark.parametrize(("name", "hyper", "value"), senseless())
def test_2_other_senseless_values_are_refused_by_name(name, hyper, value):
    kind, text = outcome(lambda: mine(name)(None, **{hyper: value}))
    assert kind in ("ValueError", "TypeError")
    assert re.search(WORDS.get(hyper, hyper), text), text


ALL_FLAGS = ("maximize", "foreach", "fused", "capturable", "differentiable")
FLAGS = [(name, flag) for name in NAMES for flag in ALL_FLAGS if flag in inspect.signature(torchs(name)).parameters]


@pytest.mark.parametrize(("name", "flag"), FLAGS)
def test_2_text_is_no_flag(name, flag):
    """maximize="False" would maximize."""
    kind, text = outcome(lambda: mine(name)(leaves(), **{flag: "False"}))
    assert kind in ("ValueError", "TypeError") and flag in text


@pytest.mark.parametrize("name", NAMES)
def test_2_an_unknown_argument_is_refused(name):
    with pytest.raises(TypeError, match="learning_rate"):
        mine(name)(leaves(), learning_rate=0.1)
    with pytest.raises(TypeError):
        mine(name)()


# Parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, requires_grad=True),
        lambda: [],
        lambda: iter(()),
        lambda: [torch.zeros(2, requires_grad=True), 3.0],
        lambda: [None],
        lambda: {torch.zeros(2, requires_grad=True)},
        lambda: [torch.zeros(2, requires_grad=True) * 2],
        lambda: [{"params": {torch.zeros(1, requires_grad=True)}}],
        lambda: [{"params": (p := leaves())}, {"params": p}],
        lambda: [("a", torch.zeros(1)), torch.zeros(1)],
        lambda: [torch.zeros(1), ("a", torch.zeros(1))],
        lambda: [{"params": [("a", torch.zeros(1))]}, {"params": [torch.zeros(1)]}],
        lambda: [{"params": [torch.zeros(1)]}, {"params": [("a", torch.zeros(1))]}],
        lambda: [{"params": leaves()}, torch.zeros(1)],
        lambda: None,
        lambda: 3,
        lambda: [{"lr": 0.1}],
    ],
    ids=lambda make: inspect.getsource(make).strip().removeprefix("lambda: ").rstrip(",") if callable(make) else make,
)
def test_3_what_params_may_not_be(name, make):
    assert outcome(lambda: mine(name)(make(), lr=0.1)) == outcome(lambda: torchs(name)(make(), lr=0.1))


@pytest.mark.parametrize("name", NAMES)
def test_3_duplicates_in_a_group_warn(name):
    texts = []
    for cls in (mine(name), torchs(name)):
        param = torch.zeros(2, requires_grad=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cls([param, param], lr=0.1)
        texts.append([(w.category, str(w.message)) for w in caught])
    assert texts[0] == texts[1] != []


@pytest.mark.parametrize("config", PLAIN, ids=str)
@pytest.mark.parametrize(
    "wrap",
    [
        iter,
        tuple,
        lambda params: (p for p in params),
        lambda params: {f"p{i}": p for i, p in enumerate(params)}.values(),
        lambda params: ((f"p{i}", p) for i, p in enumerate(params)),
        lambda params: [(f"p{i}", p) for i, p in enumerate(params)],
        lambda params: [{"params": iter(params[:2])}, {"params": params[2]}],
        lambda params: ({"params": [(f"p{i}", p)]} for i, p in enumerate(params)),
    ],
    ids=["iterator", "tuple", "generator", "dict values", "named generator", "named", "groups", "named groups"],
)
def test_3_params_in_every_form(config, wrap):
    pair = Pair(config, groups=wrap)
    pair.step(3)


def test_3_named_parameters_of_a_module():
    model = torch.nn.Linear(3, 2)
    for name in NAMES:
        optimizer = mine(name)(model.named_parameters())
        assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
        assert optimizer.param_groups[0]["params"][0] is model.weight


# The signature


@pytest.mark.parametrize("name", NAMES)
def test_4_the_signature_is_torchs(name):
    def described(cls):
        return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]

    theirs = described(torchs(name))
    assert described(mine(name))[: len(theirs)] == theirs
    more = described(mine(name))[len(theirs) :]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY and default in (None, 0, 0.5) for _, kind, default in more)


@pytest.mark.parametrize("name", NAMES)
def test_4_params_alone_is_enough_and_gives_torchs_defaults(name):
    ours, its = mine(name)(leaves()), torchs(name)(leaves())
    assert known(ours.defaults) == known(its.defaults)
    assert known(mine(name)(params=leaves()).defaults) == known(its.defaults)


@pytest.mark.parametrize("config", [*CONFIGS, *PLAIN], ids=str)
def test_4_defaults_and_groups_are_torchs_in_every_configuration(config):
    pair = Pair(config)
    assert known(pair.mine.defaults) == known(pair.its.defaults)
    for a, b in zip(pair.mine.param_groups, pair.its.param_groups, strict=True):
        assert known({**a, "params": 0}) == known({**b, "params": 0})


@pytest.mark.parametrize("name", NAMES)
def test_4_arguments_by_position(name):
    signature = inspect.signature(torchs(name))
    positional = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    full = next(config.options for config in FULL if config.name == name)
    values = [full.get(p.name, p.default) for p in positional]
    for count in range(len(values) + 1):
        call = values[:count]
        expected = outcome(lambda c=call: torchs(name)(leaves(), *c))
        assert outcome(lambda c=call: mine(name)(leaves(), *c)) == expected
        if not expected[0]:
            assert known(mine(name)(leaves(), *call).defaults) == known(torchs(name)(leaves(), *call).defaults)
    if len(positional) + 1 < len(signature.parameters):
        with pytest.raises(TypeError):
            mine(name)(leaves(), *values, True)


@pytest.mark.parametrize("name", NAMES)
def test_4_torchs_public_methods_are_there_and_called_alike(name):
    public = {attribute for attribute in dir(torchs(name)) if not attribute.startswith("_")}
    assert public <= set(dir(mine(name)))
    for attribute in public:
        theirs = getattr(torchs(name), attribute)
        if inspect.isfunction(theirs):
            ours = dict(inspect.signature(getattr(mine(name), attribute)).parameters)
            ours.pop("grad_scaler", None)  # GradScaler's, by keyword
            expected = inspect.signature(theirs).parameters
            assert [(p.name, p.kind, p.default) for p in ours.values()] == [
                (p.name, p.kind, p.default) for p in expected.values()
            ], attribute
    optimizer, its = mine(name)(leaves()), torchs(name)(leaves())
    assert isinstance(optimizer, torch.optim.Optimizer)
    visible = {attribute for attribute in vars(its) if not attribute.startswith("_")}
    assert {attribute for attribute in vars(optimizer) if not attribute.startswith("_")} == visible


@pytest.mark.parametrize("name", NAMES)
def test_4_docstring_tells_every_argument(name):
    for argument in inspect.signature(mine(name)).parameters:
        assert argument in mine(name).__doc__


@pytest.mark.parametrize("name", [name for name in NAMES if "betas" in CLASSES[name].hyperparameters])
@pytest.mark.parametrize(
    "betas", [[0.5, 0.75], (torch.tensor(0.5), torch.tensor(0.75)), (torch.tensor([0.5]), torch.tensor([[0.75]]))]
)
def test_4_betas_are_kept_as_torch_keeps_them(name, betas):
    if name in ("Adam", "AdamW"):
        since("2.10", "Adam keeps a list of betas and tensors of one element as they are")
    for key, value in torchs(name)(leaves(), betas=betas).defaults.items():
        same_value(mine(name)(leaves(), betas=betas).defaults[key], value, key)


@pytest.mark.parametrize("name", NAMES)
def test_4_numpy_numbers_and_integers_are_numbers(name):
    for lr in (np.float64(0.5), np.float32(0.5), 1, True):
        optimizer = mine(name)(leaves(), lr=lr)
        assert optimizer.defaults["lr"] is lr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])], ids=["0d", "1d", "2d"])
def test_4_6_a_tensor_lr_is_kept_itself(name, lr):
    """Whoever filled it in place would otherwise fill another one."""
    optimizer = mine(name)(leaves(), lr=lr)
    assert optimizer.defaults["lr"] is lr
    assert optimizer.param_groups[0]["lr"] is lr


# Flags


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ALL_FLAGS)
@pytest.mark.parametrize("value", [True, False])
def test_5_flags_are_accepted_where_torch_has_them(name, flag, value):
    ours, its = (outcome(lambda c=cls: c(leaves(), **{flag: value}))[0] for cls in (mine(name), torchs(name)))
    assert ours == its
    if not its:
        assert mine(name)(leaves(), **{flag: value}).param_groups[0][flag] is value


@pytest.mark.parametrize("name", NAMES)
def test_5_decoupled_weight_decay(name):
    if name == "Adam":
        since("2.7", NO_DECOUPLED)
    ours, its = (
        outcome(lambda c=cls: c(leaves(), decoupled_weight_decay=True))[0] for cls in (mine(name), torchs(name))
    )
    assert ours == its


@pytest.mark.parametrize("name", [name for name in NAMES if "fused" in inspect.signature(torchs(name)).parameters])
@pytest.mark.parametrize("other", ["foreach", "differentiable"])
def test_5_fused_goes_with_neither_foreach_nor_differentiable(name, other):
    error = outcome(lambda: torchs(name)(leaves(), **{"fused": True, other: True}))
    assert error[0] == "RuntimeError"
    assert outcome(lambda: mine(name)(leaves(), **{"fused": True, other: True})) == error


# What it prints


def printed(optimizer: torch.optim.Optimizer) -> list[str]:
    return [line for line in repr(optimizer).splitlines() if line.split(":")[0].strip() not in NEWER]


@pytest.mark.parametrize("config", FULL, ids=str)
def test_32_repr_prints_all_groups_as_torch_does(config):
    def groups(params):
        return [
            {"params": params[:1]},
            {"params": params[1:2], "lr": 0.25, "weight_decay": 0.5},
            {"params": params[2:]},
        ]

    pair = Pair(config, groups=groups)
    assert printed(pair.mine) == printed(pair.its)
    assert repr(pair.mine).count("Parameter Group") == 3


@pytest.mark.parametrize("name", [*NAMES, "SparseAdam"])
def test_32_defaults_print_as_torchs(name):
    """Ints where torch has ints."""
    assert printed(mine(name)(leaves())) == printed(torchs(name)(leaves()))
    assert printed(mine(name)(leaves(), lr=1)) == printed(torchs(name)(leaves(), lr=1))


def test_4_steprule_has_every_class_of_the_registry():
    for name in NAMES:
        assert issubclass(mine(name), steprule.Optimizer)
        assert mine(name).__module__.startswith("steprule")
        assert mine(name).__name__ == mine(name).__qualname__ == name
