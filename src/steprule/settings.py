"""Arguments of optimizers in general: their names, kinds and ranges, and a constructor that shows them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dis import opmap
from typing import Any

from steprule.docstrings import PARAMS, arguments
from steprule.hyper import UNSAID, is_fixed, whole_of
from steprule.names import ALSO_CALLED, did_you_mean
from steprule.registry import RULES
from steprule.rule import Rule, RuleError


def no_attribute(module: str, name: str, known: Iterable[str], why: str = "") -> Exception:
    """What a module's `__getattr__` raises for a name that it has not: an ImportError where that is to be imported.

    Python would replace an AttributeError with an ImportError that has no hint.

    Args:
        module: its name.
        name: what was asked for.
        known: the names that there are.
        why: why a rule of this name is left out; empty if there is none.
    """
    hint = f": it is left out: {why}" if why else "" if name.startswith("_") else did_you_mean(name, known)
    asking = sys._getframe(2)
    if asking.f_code.co_code[asking.f_lasti] == opmap["IMPORT_FROM"]:
        return ImportError(f"cannot import name {name!r} from {module!r}{hint}", name=module)
    return AttributeError(f"module {module!r} has no attribute {name!r}{hint}")


def type_of(default: Any, texts: Any, number: Any = float) -> Any:
    """What a hyperparameter may be, seen from its default and the texts for it: any of them may be a function of the step.

    Args:
        default: its default.
        texts: the type of the texts that it may be, or None.
        number: what a number may be.
    """
    if isinstance(default, bool):
        return bool | Callable[[int], bool]
    if isinstance(default, (int, float)):
        return number | Callable[[int], number]
    if isinstance(default, tuple):
        one: Any = number | None if None in default else number
        numbers = Sequence[one] | Callable[[int], Sequence[one]]
        return numbers | Sequence[Sequence[float]] | texts if texts else numbers
    return (texts | None if default is None else texts) if texts else Any


def check_rule(who: str, given: Any) -> None:
    """Raises for what is no rule."""
    if isinstance(given, type) and issubclass(given, Rule) and given is not Rule:
        return
    hint = f": pass {given.__name__}.rule" if isinstance(given, type) and hasattr(given, "rule") else ""
    shown = given.__name__ if isinstance(given, type) else f"a {type(given).__name__}"
    raise TypeError(f"{who} takes a rule, a subclass of steprule.Rule with a formula of its own, not {shown}{hint}")


def check_names_of(rule: type[Rule], taken: Iterable[str]) -> None:
    """Raises for states and hyperparameters of a rule whose names are taken by its optimizers."""
    taken = frozenset(taken)
    for name in (*rule.hyperparameters, *rule.states):
        if name in taken:
            raise RuleError(f"{rule.__name__}: {name!r} is a name that every optimizer has; choose another")


def check_names(who: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError for the first argument of who that is not known, with the nearest name that is."""
    known = list(known)
    for name in given:
        if name not in known:
            is_others = name in ALSO_CALLED or any(
                name in rule.hyperparameters for rule in RULES.values()
            )  # and seldom misspelled
            none = f"it has no {ALSO_CALLED.get(name, name)}; " if is_others else ""
            word = name.partition("_")[0]
            beside = [one for one in known if word in RULES and one.startswith(f"{word}_")]
            near = beside or known  # of the rule beside another, whose name is before theirs
            hint = did_you_mean(name, near, 0.85 if is_others else 0.6, f"{none}it takes {', '.join(near)}")
            raise TypeError(f"{who} got an unexpected argument {name!r}{hint}")


def check_hyperparameters(
    rule: type[Rule], hyper: Mapping[str, Any], as_torch: bool = False, only: Iterable[str] | None = None
) -> None:
    """Raises for a value that makes no sense by itself, naming the argument and the value, with torch.optim's words.

    Args:
        rule: whose hyperparameters they are.
        hyper: values for some or all of the rule's hyperparameters, floats or 1-element tensors.
        as_torch: take what torch.optim takes in its groups, where it checks nothing, if it means something: a negative
            lr goes up the gradient. Default: False.
        only: those to look at, where others have been. Default: all.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value is of the wrong kind.
    """
    for name in hyper if only is None else only:
        if name not in rule.hyperparameters:
            continue
        value = hyper[name]
        default = rule.hyperparameters[name]
        texts = rule.meanings.get(name, UNSAID).texts
        if texts and is_fixed(default, value):
            _check_fixed(name, value, default, texts, _told_by_torch(rule, name, value))
        elif isinstance(default, bool):
            if isinstance(value, str) or (value not in (True, False)):
                raise TypeError(f"{name} must be True or False, not {value!r}")
        elif isinstance(default, tuple):
            if not isinstance(value, (tuple, list)) or len(value) != len(default):
                raise TypeError(f"{name} must be a tuple of {len(default)} numbers, not {value!r}")
            for index, item in enumerate(value):
                if item is None and default[index] is None:
                    continue
                _check_number(f"{name}[{index}]", item)
                if not _is_in_range(rule, name, item, as_torch):
                    told = _told_by_torch(rule, f"{name}[{index}]", item)
                    raise ValueError(
                        told or f"Invalid {_WORDS.get(name, name)} at index {index}: {item}{_allowed(rule, name)}"
                    )
        elif default is None or isinstance(default, str):
            try:
                hash(value)
            except TypeError:
                raise TypeError(
                    f"{name} must be a value that cannot change, such as a number, a text or a tuple, not {value!r}"
                ) from None
        else:
            _check_number(name, value)
            if not _is_in_range(rule, name, value, as_torch):
                told = _told_by_torch(rule, name, value)
                raise ValueError(told or f"Invalid {_WORDS.get(name, name + ' value')}: {value}{_allowed(rule, name)}")


def check_together(rule: type[Rule], settings: Mapping[str, Any]) -> None:
    """Asks the rule's `check`, of values that make sense by themselves.

    Args:
        rule: the rule.
        settings: a value for each of its hyperparameters, and whatever else a group has.
    """
    rule.check(**{name: settings[name] for name in rule.hyperparameters})


def check_settings(rule: type[Rule], settings: Mapping[str, Any]) -> None:
    """Raises for values that make no sense, each by itself or together; settings are as for `check_together`."""
    check_hyperparameters(rule, settings)
    check_together(rule, settings)


# torch.optim's words where they are not "Invalid <name> value".
_WORDS = {"lr": "learning rate", "eps": "epsilon value", "betas": "beta parameter"}
_NEVER_BEYOND = ("betas", "rho", "alpha", "eps", "lookahead_alpha", "ns_steps")
"""What means nothing outside its range, in whatever formula of torch.optim."""


def _is_in_range(rule: type[Rule], name: str, value: Any, as_torch: bool = False) -> bool:
    said = UNSAID if as_torch and name not in _NEVER_BEYOND else rule.meanings.get(name, UNSAID)
    return said.allows(value)


def _told_by_torch(rule: type[Rule], name: str, value: Any) -> str:
    """torch.optim's words for a value that it refuses, if the rule's class there has some of its own."""
    its = RULES.get(rule.__name__.lower(), rule).like_torch
    return its.words[name].format(value) if its is not None and name in its.words else ""


def _allowed(rule: type[Rule], name: str) -> str:
    """The range, as the end of a message; nothing where the message is torch.optim's."""
    if RULES.get(rule.__name__.lower(), rule).like_torch is not None:
        return ""
    span = rule.meanings.get(name, UNSAID).range
    within = "finite" if span == UNSAID.range else f"in {span}"
    return f"; {name} of {rule.__name__} must be {within}"


def _check_fixed(name: str, value: Any, default: Any, texts: Sequence[str], told: str) -> None:
    """Raises for what is none of the texts, and no tuple of tuples like the default."""
    if isinstance(default, tuple) and not isinstance(value, str):
        for item in value:
            if not isinstance(item, (tuple, list)) or len(item) != len(default):
                raise TypeError(
                    f"{name} must be a tuple of {len(default)} numbers, a tuple of such tuples or a text, not {value!r}"
                )
            for index, number in enumerate(item):
                _check_number(f"{name}[{index}]", number)
    elif value != default and value not in texts:
        every = f"it can be {', '.join(map(repr, dict.fromkeys((default, *texts))))}"
        raise ValueError(f"{told or f'Invalid {name} value: {value!r}'}{did_you_mean(str(value), texts, 0.6, every)}")


def _check_number(name: str, value: Any) -> None:
    if hasattr(value, "numel"):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
    elif callable(value) and "[" in name:
        whole = whole_of(name)
        raise TypeError(f"{name} must be a number; a schedule gives all of {whole}: {whole}=lambda step: (..., ...)")
    elif isinstance(value, (str, bytes, type(None))) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, not {value!r}")


def _hashable(value: Any) -> Any:
    """Lists as tuples, in lists too."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def as_number(value: Any) -> Any:
    """A hyperparameter as a number, or as a tuple of some; flags, texts and None as they are."""
    if isinstance(value, (tuple, list)):
        return tuple(map(as_number, value))
    return value if value is None or isinstance(value, (bool, str)) else float(value)


def number_at(name: str, settings: Mapping[str, Any]) -> Any:
    """What settings have for a hyperparameter, as `as_number` gives it, or for an element of one, such as "betas[0]"."""
    whole = whole_of(name)
    try:
        if name == whole:
            return as_number(settings[whole])
        return float(settings[whole][int(name.partition("[")[2][:-1])])
    except (IndexError, TypeError, ValueError):
        raise ValueError(f"Invalid {whole} value: {settings[whole]!r}; {name} must be a number") from None


def as_tuples(settings: Mapping[str, Any], rule: type[Rule]) -> dict[str, tuple[Any, ...]]:
    """Those of a rule's hyperparameters that are sequences of numbers of another kind, as a configuration's, as tuples; lists, too,
    of which nothing is known but that they are no numbers."""
    tuples = {}
    for name, default in rule.hyperparameters.items():
        value: Any = settings.get(name)
        if isinstance(value, list) and is_fixed(default, value):
            tuples[name] = _hashable(value)
        elif isinstance(default, tuple) and not isinstance(value, (tuple, list, str, bytes)):
            if isinstance(value, Sequence):
                tuples[name] = tuple(value)
            elif hasattr(value, "__array_interface__") and value.ndim == 1 and not hasattr(value, "numel"):
                tuples[name] = tuple(value.tolist())
    return tuples


def constructor(owner: Any, signature: inspect.Signature, params: str = PARAMS) -> Any:
    """An `__init__` for a class whose parent takes any arguments, which shows those that there are.

    Args:
        owner: the class, which has its rule.
        signature: the arguments.
        params: what params may be.
    """

    def __init__(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        super(owner, self).__init__(params, *args, **kwargs)

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    shown = signature.replace(parameters=[this, *signature.parameters.values()], return_annotation=None)
    annotations = {name: one.annotation for name, one in signature.parameters.items()}
    __init__.__signature__ = shown  # type: ignore[attr-defined]
    __init__.__annotations__ = {**annotations, "return": None}
    __init__.__doc__ = f"help({owner.__name__}) has the paper, the states and an example, too.\n\n{arguments(owner.rule, signature, params)}"
    __init__.__module__, __init__.__qualname__ = owner.__module__, f"{owner.__qualname__}.__init__"
    return __init__
