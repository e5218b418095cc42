"""What tools see of the classes: real constructors, with all arguments and their types; names; help."""

from __future__ import annotations

import collections
import doctest
import importlib
import inspect
import pickle
import pydoc
import typing
from collections import UserList

import jsonargparse
import numpy as np
import pytest
import torch
from torch.optim.optimizer import ParamsT

import steprule
from steprule import arrays, docstrings, rules
from steprule.rules import OWN
from steprule.state import state_shape

FRONTS = {"torch": steprule.optimizer, "numpy": arrays}
NAMES = [rule.__name__ for rule in OWN.values()]


def leaves():
    return [torch.nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize("front", FRONTS)
def test_every_constructor_shows_all_arguments_with_types(front):
    for name in NAMES:
        cls = getattr(FRONTS[front], name)
        shown = inspect.signature(cls.__init__).parameters
        assert list(shown)[:2] == ["self", "params"] and set(cls.rule.hyperparameters) < set(shown)
        assert all(one.annotation is not one.empty for one in list(shown.values())[1:])
        assert list(inspect.signature(cls).parameters) == list(shown)[1:]
        assert not any("__signature__" in vars(one) for one in cls.__mro__)
        assert cls.__init__.__qualname__ == f"{name}.__init__" and cls.__module__ == FRONTS[front].__name__


def test_the_types_are_what_may_be_given():
    hints = typing.get_type_hints(steprule.AdamW.__init__)
    number = float | torch.Tensor | collections.abc.Callable[[int], float | torch.Tensor]
    assert hints["params"] == ParamsT and hints["lr"] == hints["eps"] == number
    assert hints["states"] == typing.Literal["float32", "bfloat16", "8bit"] | None
    assert hints["fused"] == bool | None and hints["seed"] is int and hints["return"] is type(None)


def test_classes_of_ones_own_show_theirs():
    class Mine(steprule.Optimizer, rule=rules.Lion):
        pass

    class Fixed(steprule.Lion):
        def __init__(self, params, width):
            super().__init__(params, lr=1 / width)

    own = list(inspect.signature(steprule.Lion.__init__).parameters)
    assert list(inspect.signature(Mine.__init__).parameters) == own
    assert Mine.__init__.__qualname__.endswith("Mine.__init__")
    assert list(inspect.signature(Fixed).parameters) == ["params", "width"]
    assert Fixed(leaves(), width=4).param_groups[0]["lr"] == Mine(leaves(), lr=0.25).param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("front", FRONTS)
def test_classes_are_pickled_by_name(front):
    for name in NAMES:
        cls = getattr(FRONTS[front], name)
        assert pickle.loads(pickle.dumps(cls)) is cls


# jsonargparse, which LightningCLI reads command lines with


def parser():
    made = jsonargparse.ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(torch.optim.Optimizer, "opt", skip={"params"}, instantiate=False)
    return made


@pytest.mark.parametrize("name", ["AdamW", "SGD", "ScheduleFreeAdamW", "Adagrad", "Prodigy"])
def test_jsonargparse_sets_arguments(name):
    found = parser().parse_args([f"--opt=steprule.{name}", "--opt.lr=0.01", "--opt.states=8bit", "--opt.clip=1"]).opt
    assert found.class_path.endswith(name)
    group = getattr(steprule, name)(leaves(), **found.init_args).param_groups[0]
    assert group["lr"] == 0.01 and group["states"] == "8bit"


def test_jsonargparse_refuses_what_makes_no_sense():
    with pytest.raises(jsonargparse.ArgumentError, match="9bit"):
        parser().parse_args(["--opt=steprule.AdamW", "--opt.states=9bit"])


# Sequences of numbers, of whatever kind a configuration has

SEQUENCES = {"a sequence": UserList([0.5, 0.75]), "an array": np.array([0.5, 0.75], np.float32), "a list": [0.5, 0.75]}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_betas_may_be_any_sequence(kind):
    betas = SEQUENCES[kind]
    by_hand, numpys = steprule.AdamW(leaves()), arrays.AdamW([np.ones(3)])
    for step in range(3):
        if step in (0, 2):  # before there is a plan, and when there is one
            by_hand.param_groups[0]["betas"] = numpys.settings["betas"] = betas
        by_hand.param_groups[0]["params"][0].grad = torch.ones(3)
        by_hand.step()
        numpys.step([np.ones(3)])
    for found in (
        steprule.AdamW(leaves(), betas=betas).param_groups[0]["betas"],
        steprule.AdamW([{"params": leaves(), "betas": betas}]).param_groups[0]["betas"],
        steprule.create_optimizer(torch.nn.Linear(1, 1), "lion", betas=betas).param_groups[0]["betas"],
        arrays.AdamW([np.ones(3)], betas=betas).settings["betas"],
        by_hand.param_groups[0]["betas"],
        numpys.settings["betas"],
    ):
        assert isinstance(found, (tuple, list)) and list(found) == [0.5, 0.75]


@pytest.mark.parametrize(
    "betas", [UserList([0.5]), np.ones((2, 2)), torch.tensor([0.5, 0.75]), "ab", {0.5: 1, 0.75: 2}], ids=repr
)
def test_betas_that_are_none_are_refused(betas):
    with pytest.raises(TypeError, match="betas must be a tuple of 2 numbers"):
        steprule.Lion(leaves(), betas=betas)


# Names


@pytest.mark.parametrize("name", ["arrays", "services", "transforms", "rules", "compare", "memory", "catalog"])
def test_modules_are_attributes(name):
    assert getattr(steprule, name).__name__ == f"steprule.{name}"


@pytest.mark.parametrize(
    ("module", "wrong", "right"),
    [
        ("steprule", "Adamw", "AdamW"),
        ("steprule", "adamw", "AdamW"),
        ("steprule", "Schedulefree_AdamW", "ScheduleFreeAdamW"),
        ("steprule", "servces", "services"),
        ("steprule.optimizer", "Adamw", "AdamW"),
        ("steprule.arrays", "Adamw", "AdamW"),
        ("steprule.arrays", "Optimiser", "Optimizer"),
    ],
)
def test_a_misspelled_name_is_answered_with_the_nearest(module, wrong, right):
    hint = f"'{wrong}'; did you mean '{right}'"
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute {hint}"):
        getattr(importlib.import_module(module), wrong)
    with pytest.raises(
        ImportError, match=f"cannot import name .{wrong}. from .{module}.; did you mean .{right}."
    ) as told:
        exec(f"from {module} import {wrong}")
    assert told.value.name == module
    exec(f"from {module} import {right}")


@pytest.mark.parametrize("module", [steprule, steprule.optimizer, arrays])
def test_names_that_are_none_are_none(module):
    assert not hasattr(module, "__wrapped__") and not hasattr(module, "qqqq") and not hasattr(module, "Adamw")
    with pytest.raises(ImportError, match=f"cannot import name 'qqqq' from '{module.__name__}'$"):
        exec(f"from {module.__name__} import qqqq")
    with pytest.raises(AttributeError, match=r"has no attribute 'qqqq'$"):
        module.qqqq  # noqa: B018


# Help


def plain_help(thing):
    return pydoc.plain(pydoc.render_doc(thing)).splitlines()


def test_help_of_the_package_fits_a_few_screens():
    shown = plain_help(steprule)
    assert len(shown) < 100 and any("steprule.AdamW(" in line for line in shown)


def test_help_of_a_class_begins_with_its_rule_and_its_own_arguments():
    shown = [line.lstrip(" |") for line in plain_help(steprule.AdamW)[4:120]]  # after the signature
    order = [
        "Adam with decoupled",
        "Args:",
        "lr: ",
        "amsgrad: divide",
        "states: ",
        "States, in",
        "exp_avg, exp_avg_sq: ",
    ]
    order += ["Example:", "Method resolution"]
    places = [min(n for n, line in enumerate(shown) if line.startswith(one)) for one in order]
    assert places == sorted(places) and max(map(len, shown[: places[-1]])) <= 76
    assert "states: keep states as" in "\n".join(plain_help(steprule.Optimizer))


def sections(text):
    """The names that each section of a docstring describes, and the lines of its example."""
    found, title = {}, ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            title = line
        elif line.startswith("    ") and line[4] != " ":
            found.setdefault(title, []).append(line.strip())
    return {
        title: [one for line in lines for one in line.partition(": ")[0].split(", ")] for title, lines in found.items()
    }


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_has_all_arguments_and_states_and_an_example_that_runs(front, name):
    cls = getattr(FRONTS[front], name)
    told = sections(cls.__doc__)
    shown = list(inspect.signature(cls).parameters)
    assert sorted(told["Args:"]) == sorted(shown) == sorted(sections(cls.__init__.__doc__)["Args:"])
    kept = next((names for title, names in told.items() if title.startswith("States, in ")), [])
    has_step = front == "numpy" or cls.rule.keeps_step
    assert sorted(kept) == sorted([*cls.rule.states, *["step"] * has_step])
    assert told["Raises:"] == ["TypeError", "ValueError", "RuleError"] == sections(cls.__init__.__doc__)["Raises:"]
    assert max(map(len, f"{cls.__doc__}\n{cls.__init__.__doc__}".splitlines())) <= 76
    example = doctest.DocTestParser().get_doctest(cls.__doc__, {}, name, None, 0)
    assert not doctest.DocTestRunner().run(example, clear_globs=False).failed
    weight, optimizer = example.globs["weight"], example.globs["optimizer"]
    state = optimizer.state[weight if front == "torch" else 0]
    assert type(optimizer) is cls and set(state) <= set(kept)
    moves_nothing_at_first = ("ADOPT", "ScheduleFreeRAdam")
    assert name in moves_nothing_at_first or all(x != 1 for x in weight.tolist())
    for one, its in cls.rule.states.items():
        if one in state:
            assert state[one].shape == state_shape(cls.rule, one, weight.shape)
            assert state[one].dtype == weight.dtype or its.extent == "scalar" or front == "numpy"


def test_what_all_optimizers_take_is_said_in_full_once():
    every = sections(steprule.Optimizer.__doc__)["Arguments that all optimizers take, by name:"]
    assert sorted(every) == sorted({*docstrings.OPTION_TEXTS})


@pytest.mark.parametrize("name", [name for name, told in docstrings.OPTION_TEXTS.items() if len(told) == 3])
def test_the_default_of_an_option_is_what_is_said(name):
    """But for those whose default is not a value but a word for one."""
    told = docstrings.OPTION_TEXTS[name][-1]
    default = inspect.signature(steprule.AdamW).parameters[name].default
    assert told == str(default) or (default is None and " " in told)


@pytest.mark.parametrize("name", ["ScheduleFreeAdamW", "Adagrad"])
def test_the_optimizer_of_a_rule_has_the_methods_that_the_rule_needs(name):
    rule = getattr(steprule.rules, name)
    made = steprule.Optimizer.of(rule)
    methods = {"ScheduleFreeAdamW": ("train", "eval"), "Adagrad": ("share_memory",)}[name]
    assert all(hasattr(made, method) for method in methods)
    with pytest.raises(TypeError, match=rf"Optimizer\.of\({name}\)"):

        class Mine(steprule.Optimizer, rule=rule): ...

    class Fine(made): ...

    assert all(hasattr(Fine, method) for method in methods)


def test_what_has_no_formula_says_so():
    params = [torch.nn.Parameter(torch.zeros(2))]

    class Bare(steprule.Optimizer): ...

    for cls in (steprule.Optimizer, Bare):
        with pytest.raises(TypeError, match=f"{cls.__name__} has no formula"):
            cls(params)
    for wrong in (steprule.AdamW, "lion", steprule.Rule):
        with pytest.raises(TypeError, match="takes a rule, a subclass of"):
            type("Wrong", (steprule.Optimizer,), {}, rule=wrong)
        with pytest.raises(TypeError, match="takes a rule, a subclass of"):
            steprule.Optimizer.of(wrong)


@pytest.mark.parametrize(
    ("attribute", "value"), [("constants", {"lrr": "why"}), ("constants", {"lr[0]": "why"}), ("needs", ("memry",))]
)
def test_a_rule_may_only_name_what_there_is(attribute, value):
    def update(param, grad, *, lr=0.1):
        return param - lr * grad

    with pytest.raises(steprule.RuleError, match=f"Mine.{attribute} names the unknown"):
        type("Mine", (steprule.Rule,), {"update": update, attribute: value})


@pytest.mark.parametrize("name", ["maximize", "fused", "param_names"])
def test_a_hyperparameter_may_not_be_called_what_groups_have(name):
    namespace: dict = {}
    exec(f"def update(param, grad, *, {name}=0.1): return param - {name} * grad", namespace)
    rule = type("Mine", (steprule.Rule,), {"update": namespace["update"]})
    with pytest.raises(steprule.RuleError, match=f"'{name}' is a name that every optimizer has"):
        steprule.Optimizer.of(rule)
