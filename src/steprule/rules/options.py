"""What goes around any formula that it fits: other kinds of weight decay, caution, lookahead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from steprule.names import did_you_mean
from steprule.pieces import Value, floor, l2, maximum, size, total, where
from steprule.rule import DECAYS, SAID, Rule, State
from steprule.settings import check_together

OPTIONS: dict[str, Any] = {
    "decay": None,
    "cautious": False,
    "cautious_decay": False,
    "lookahead": 0,
    "lookahead_alpha": 0.5,
}
"""Arguments that every optimizer takes, with their defaults."""

_rules: dict[Any, type[Rule]] = {}


def seen_by(options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options as those around the formula must see them: with the decay that decoupled_weight_decay=True asks for."""
    if settings.get("decoupled_weight_decay") and options != OPTIONS and options["decay"] is None:
        return {**options, "decay": "decoupled"}
    return {**options}


def with_options(
    rule: type[Rule], *, decay: str | None, cautious: bool, cautious_decay: bool, lookahead: int, lookahead_alpha: float
) -> type[Rule]:
    """A rule with options around its formula; the rule itself if there are none.

    Args:
        rule: the rule.
        decay: what its weight_decay means, a key of `DECAYS`. Default: what the formula says.
        cautious: set to 0 the elements of the update that go up the gradient, and enlarge the others to make up for it.
            Liang et al. 2024, arXiv:2411.16085, algorithm 1.
        cautious_decay: decay a weight only in steps whose update brings it nearer to 0. Chen et al. 2025, arXiv:2510.12402.
        lookahead: every so many steps a slow copy moves a part of the way to the weights, and the weights restart from it;
            0 for never. Zhang et al. 2019, arXiv:1907.08610, algorithm 1.
        lookahead_alpha: which part.

    Raises:
        ValueError: an option makes no sense, or none with this rule.
        TypeError: one is of the wrong kind.
    """
    _check(decay, cautious, cautious_decay, lookahead, lookahead_alpha)
    chosen = [
        text
        for text, on in (("cautious", cautious), ("cautious_decay", cautious_decay), ("lookahead", lookahead))
        if on
    ]
    if decay is not None and "weight_decay" not in rule.hyperparameters:
        raise ValueError(f"{rule.__name__} has no weight_decay, which decay={decay!r} would change")
    chosen = ([f"decay={decay!r}"] if decay not in (None, rule.decay) else []) + chosen
    if not chosen:
        return rule
    if rule.refuses:
        raise ValueError(f"{rule.__name__} does not go with {' and '.join(chosen)}: {rule.refuses}")
    if lookahead and rule.sparse_only:
        raise ValueError(
            f"{rule.__name__} does not go with lookahead: elements without a gradient stay as they are, and their slow copies would not"
        )
    around = decay if decay != rule.decay else None
    if cautious and decay in (None, rule.decay):
        _decay_of(rule, "cautious")  # which each rule has around it
    if (cautious_decay or around) and "weight_decay" not in rule.hyperparameters:
        raise ValueError(f"{rule.__name__} has no weight_decay, which {' and '.join(chosen)} would change")
    if cautious_decay:
        around = decay or _decay_of(rule, "cautious_decay")
        if around in ("coupled", "own"):
            raise ValueError(
                f"cautious_decay needs a decay that is apart from the step: {rule.__name__}'s is not; "
                'choose one, such as decay="decoupled"'
            )
    return _made(rule, around, cautious, cautious_decay, lookahead > 0)


def _made(rule: type[Rule], decay: str | None, cautious: bool, cautious_decay: bool, lookahead: bool) -> type[Rule]:
    """The rule that `_around` makes, once; of a rule without weight_decay, which may be beside another, nothing that changes it."""
    if "weight_decay" not in rule.hyperparameters:
        decay, cautious_decay = None, False
    elif cautious and decay is None and rule.decay not in ("coupled", "own"):
        decay = rule.decay  # what decays is no part of the update that is looked at
    key = (rule, decay, cautious, cautious_decay, lookahead)
    if key not in _rules:
        _rules[key] = _around(*key) if any(key[1:]) else rule
    return _rules[key]


def _check(decay: Any, cautious: Any, cautious_decay: Any, lookahead: Any, lookahead_alpha: Any) -> None:
    """Raises for options that make no sense with any rule."""
    for name, value in (("cautious", cautious), ("cautious_decay", cautious_decay)):
        if value not in (True, False):
            raise TypeError(f"{name} must be True or False, not {value!r}")
    check_lookahead(lookahead, least=0)
    if decay is not None and decay not in DECAYS:
        hint = did_you_mean(str(decay), DECAYS, 0.4, f"it can be {', '.join(map(repr, DECAYS))}")
        raise ValueError(f"Invalid decay value: {decay!r}{hint}")
    if lookahead_alpha != OPTIONS["lookahead_alpha"] and not lookahead:
        raise ValueError(f"lookahead_alpha={lookahead_alpha!r} needs lookahead, a number of steps")


def check_lookahead(value: Any, least: int = 1) -> None:
    """Raises for a lookahead that is no number of steps; a group cannot switch it off, and has 1 at least."""
    try:
        count = -1.0 if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, RuntimeError):  # no number, or several
        count = -1.0
    if not count.is_integer() or count < least:
        none = "0 for none" if least == 0 else "1 or more in a group of an optimizer that has it"
        raise ValueError(f"Invalid lookahead value: {value!r}; it is a number of steps, {none}")


def _decay_of(rule: type[Rule], option: str) -> str | None:
    """What a rule says that its weight_decay means, for an option that must know; None where it has no weight_decay."""
    if "weight_decay" not in rule.hyperparameters:
        return None
    if rule.decay is None:
        raise ValueError(
            f"{option} must know what {rule.__name__}'s formula makes of weight_decay: write it in the class, as decay = "
            f'"decoupled"; it can be {", ".join(map(repr, DECAYS))} or, for what is none of those, "own"'
        )
    return rule.decay


_ADDED = {
    "initial_param": State(begins="param", exact=True),
    "lr_max": State("scalar"),
    "slow_param": State(begins="param", exact=True),
}
"""The states that options keep."""


def added_names(rule: type[Rule]) -> dict[str, str]:
    """What the states that options keep are called beside a rule's own, by their names elsewhere."""
    names = {}
    for name in _ADDED:
        names[name] = name
        while names[name] in rule.states or names[name] in rule.hyperparameters:
            names[name] += "_"
    return names


def _around(rule: type[Rule], decay: str | None, cautious: bool, cautious_decay: bool, lookahead: bool) -> type[Rule]:
    """The rule whose formula has these around it."""
    added = {"initial_param": decay == "initial", "lr_max": decay == "corrected", "slow_param": lookahead}
    names = {name: its for name, its in added_names(rule).items() if added[name]}
    own, how = rule.states, (decay, cautious, cautious_decay, lookahead)
    kind = inspect.Parameter
    positional = [kind(name, kind.POSITIONAL_OR_KEYWORD) for name in ("param", "grad", *own, *names.values())]
    hyper = {
        **rule.hyperparameters,
        **({"lookahead": 0.0, "lookahead_alpha": OPTIONS["lookahead_alpha"]} if lookahead else {}),
    }
    keywords = [kind("step", kind.KEYWORD_ONLY)]
    keywords += [kind(name, kind.KEYWORD_ONLY, default=default) for name, default in hyper.items()]

    def update(param: Value, grad: Value, *states: Value, step: Value, **hyper: Any) -> tuple[Value, ...]:
        extra = dict(zip(names, states[len(own) :], strict=True))
        lr, weight_decay = hyper.get("lr"), hyper.get("weight_decay")
        inner = {**hyper, "weight_decay": 0.0} if decay else hyper
        uphill = l2(grad, param, weight_decay) if decay == "coupled" else grad
        new, *new_states = rule.evaluate(param, uphill, states[: len(own)], step, inner)
        if cautious:
            move = movement(new, param)
            kept = where(move * grad < 0, 1.0, 0.0)
            new = param + move * kept * (size(param) / (total(kept) + 1))
        if decay not in (None, "coupled"):
            pull, extra = _pull(decay, param, lr, weight_decay, hyper.get("max_lr", 0.0), extra)
            if cautious_decay:
                pull = where(movement(new, param) * param <= 0, pull, 0.0)
            new = new - pull
        if lookahead:
            is_due = floor(step / hyper["lookahead"]) * hyper["lookahead"] == step
            slow = extra["slow_param"] + hyper["lookahead_alpha"] * (new - extra["slow_param"])
            new = where(is_due, slow, new)
            extra["slow_param"] = where(is_due, slow, extra["slow_param"])
        return new, *new_states, *extra.values()

    update.__signature__ = inspect.Signature([*positional, *keywords])  # type: ignore[attr-defined]
    attributes: dict[str, Any] = {name: getattr(rule, name) for name in ("__doc__", "__module__", *SAID)}
    attributes |= {
        "update": update,
        "check": lambda **hyper: check_together(rule, hyper),
        "chosen": classmethod(lambda cls, hyper: cls if (its := rule.chosen(hyper)) is rule else _made(its, *how)),
        "states_for": classmethod(lambda cls, hyper: (*rule.states_for(hyper), *names.values())),
        "touches_states": rule.touches_states and not lookahead,
        "decay": decay or rule.decay,
        **rule.states,
        **{name: said for name, said in rule.meanings.items() if not (decay and name == "weight_decay")},
        **{names[name]: _ADDED[name] for name in names},
    }
    if lookahead:
        attributes |= {"keeps_step": True, "refuses": "lookahead has the weights restart from a slow copy of them"}
    return type(rule.__name__, (Rule,), attributes)


def _pull(
    decay: str, param: Value, lr: Value, weight_decay: Value, max_lr: Value, extra: Mapping[str, Value]
) -> tuple[Value, dict[str, Value]]:
    """What a decay subtracts from the parameter, and the states that it keeps."""
    extra = dict(extra)
    if decay == "independent":
        return weight_decay * param, extra
    if decay == "corrected":
        lr_max = extra["lr_max"] = maximum(maximum(extra["lr_max"], lr), max_lr)
        return lr * where(lr_max > 0, lr / where(lr_max > 0, lr_max, 1.0), 1.0) * weight_decay * param, extra
    away = param - extra["initial_param"] if decay == "initial" else param
    return lr * weight_decay * away, extra


def with_decay_apart(rule: type[Rule], option: str) -> type[Rule]:
    """A rule whose decay is subtracted beside its step, where it is of a kind that can be: what looks at the step does not see it.

    Args:
        rule: the rule.
        option: what looks, for messages.

    Raises:
        ValueError: the rule does not say what its decay is.
    """
    decay = _decay_of(rule, option)
    return rule if decay in (None, "coupled", "own") else _around(rule, decay, False, False, False)


def movement(new: Value, old: Value) -> Value:
    """new - old, of a formula that begins with old, and adds to it and subtracts from it, without the rounding of that difference."""
    if getattr(new, "op", None) in ("add", "sub"):
        first, change = new.args
        change = change if new.op == "add" else -change
        if first is old:
            return change
        if _begins_with(first, old):
            return movement(first, old) + change
    return new - old


def _begins_with(x: Any, old: Value) -> bool:
    while getattr(x, "op", None) in ("add", "sub"):
        x = x.args[0]
        if x is old:
            return True
    return False
