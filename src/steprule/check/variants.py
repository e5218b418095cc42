"""Which formula an optimizer has: a family of formulas, each with the variations that are published, tried one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steprule.check.checks import grad, telling
from steprule.check.claims import Subject
from steprule.check.reference import STEPS, Array, run, start

Way = Mapping[str, str]

DECAYS = {
    "decoupled": "decay is decoupled, times lr", "coupled": "decay is coupled: added to the gradient",
    "independent": "decay is independent of lr", "late": "decay is decoupled, and of the parameter after its update",
    "none": "there is no decay",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Formulas that differ by a few choices.

    Attributes:
        name: what they are called.
        ways: for each choice what there is, in words; the first is the usual one.
        walk: the parameter at the start and after each step, given these choices.
        needs: the settings that it is made of.
    """

    name: str
    ways: Mapping[str, Mapping[str, str]]
    walk: Callable[[Way, Mapping[str, Any]], Array]
    needs: tuple[str, ...]


def _gradients() -> list[Array]:
    return [grad(start(), k).double().numpy() for k in range(STEPS)]


def _decayed(way: Way, theta: Array, g: Array, settings: Mapping[str, Any]) -> tuple[Array, Array]:
    """Parameter and gradient after a decay that comes before the update."""
    rate, lr = settings.get("weight_decay", 0.0), settings["lr"]
    if way["decay"] == "coupled":
        return theta, g + rate * theta
    share = {"decoupled": lr * rate, "independent": rate}.get(way["decay"], 0.0)
    return theta * (1 - share), g


def _late(way: Way, theta: Array, settings: Mapping[str, Any]) -> Array:
    """The parameter after a decay that comes after the update."""
    return theta * (1 - settings["lr"] * settings.get("weight_decay", 0.0)) if way["decay"] == "late" else theta


_ROOTS: Mapping[str, Callable[[Array, float, float], Array]] = {
    "outside": lambda square, two, eps: np.sqrt(square / two) + eps,
    "inside": lambda square, two, eps: np.sqrt(square / two + eps),
    "hat": lambda square, two, eps: (np.sqrt(square) + eps) / np.sqrt(two),
    "hat inside": lambda square, two, eps: np.sqrt((square + eps) / two),
    "floor": lambda square, two, eps: np.maximum(np.sqrt(square / two), eps),
}


def _adam(way: Way, settings: Mapping[str, Any]) -> Array:
    beta1, beta2 = settings["betas"][:2]
    if way["betas"] == "swapped":
        beta1, beta2 = beta2, beta1
    lr, eps = settings["lr"], settings["eps"]
    theta = start().double().numpy()
    m, v, top, path = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta), [theta]
    for t, g in enumerate(_gradients(), 1):
        before = theta
        theta, g = _decayed(way, theta, g, settings)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        top = np.maximum(top, v)
        one = 1 - beta1**t if way["correction"] in ("both", "first") else 1.0
        two = 1 - beta2**t if way["correction"] in ("both", "second") else 1.0
        mean = (beta1 * m + (1 - beta1) * g) / one if way["momentum"] == "nesterov" else m / one
        square = top if way["amsgrad"] == "on" else v
        root = _ROOTS[way["eps"]](square, two, eps)
        theta = _late(way, theta - lr * mean / root, settings)
        if t == 1 and way["first step"] == "skipped":
            theta = before
        path.append(theta)
    return np.array(path)


def _sgd(way: Way, settings: Mapping[str, Any]) -> Array:
    lr, mu = settings["lr"], settings["momentum"]
    theta = start().double().numpy()
    buffer, path = np.zeros_like(theta), [theta]
    for t, g in enumerate(_gradients(), 1):
        theta, g = _decayed(way, theta, g, settings)
        scale = {"sum": 1.0, "average": 1 - mu, "average from the first": 1.0 if t == 1 else 1 - mu}[way["momentum"]]
        buffer = mu * buffer + scale * g * (lr if way["lr"] == "in the buffer" else 1.0)
        update = buffer + (0 if way["nesterov"] == "off" else (mu - 1) * buffer + scale * g)
        theta = _late(way, theta - update * (1.0 if way["lr"] == "in the buffer" else lr), settings)
        path.append(theta)
    return np.array(path)


def _lion(way: Way, settings: Mapping[str, Any]) -> Array:
    beta1, beta2 = settings["betas"][:2]
    if way["betas"] == "swapped":
        beta1, beta2 = beta2, beta1
    theta = start().double().numpy()
    m, path = np.zeros_like(theta), [theta]
    for g in _gradients():
        theta, g = _decayed(way, theta, g, settings)
        mixed = beta1 * m + (1 - beta1) * g
        m = beta2 * m + (1 - beta2) * g
        theta = _late(way, theta - settings["lr"] * np.sign(mixed if way["sign"] == "mixed" else m), settings)
        path.append(theta)
    return np.array(path)


FAMILIES = (
    Family("Adam", {
        "eps": {"outside": "eps is added to the root", "inside": "eps is inside the root",
                "hat": "eps is added to the root before bias correction",
                "hat inside": "eps is inside the root, before bias correction", "floor": "eps is a lower bound of the root"},
        "decay": DECAYS,
        "correction": {"both": "both moments are corrected for bias", "none": "no moment is corrected for bias",
                       "first": "only the first moment is corrected for bias",
                       "second": "only the second moment is corrected for bias"},
        "betas": {"right": "betas are in order", "swapped": "the betas are swapped"},
        "momentum": {"plain": "momentum is plain", "nesterov": "momentum is Nesterov's"},
        "amsgrad": {"off": "the second moment is as it is", "on": "the second moment is its maximum, as amsgrad's"},
        "first step": {"taken": "the first step is taken", "skipped": "the first step is skipped"},
    }, _adam, ("lr", "betas", "eps")),
    Family("SGD", {
        "momentum": {"sum": "momentum is a sum", "average": "momentum is an average",
                     "average from the first": "momentum is an average that begins at the first gradient"},
        "decay": DECAYS,
        "nesterov": {"off": "momentum is plain", "on": "momentum is Nesterov's"},
        "lr": {"outside": "lr multiplies the buffer", "in the buffer": "lr multiplies gradients that enter the buffer"},
    }, _sgd, ("lr", "momentum")),
    Family("Lion", {
        "sign": {"mixed": "the sign is of momentum and gradient", "buffer": "the sign is of the momentum kept"},
        "decay": DECAYS,
        "betas": {"right": "betas are in order", "swapped": "the betas are swapped"},
    }, _lion, ("lr", "betas")),
)  # fmt: skip


def ways_of(family: Family, most: int = 3) -> Iterator[dict[str, str]]:
    """Combinations of choices of which so many at most are not the usual ones; those with fewer first."""
    names = list(family.ways)
    found = (dict(zip(names, values, strict=True)) for values in itertools.product(*family.ways.values()))
    odd = [(len(_odd(family, way)), way) for way in found]
    yield from (way for count, way in sorted(odd, key=lambda one: one[0]) if count <= most)


def _odd(family: Family, way: Way) -> list[str]:
    """The names of choices that are not the usual ones."""
    return [name for name, choice in way.items() if choice != next(iter(family.ways[name]))]


def close(one: Array, other: Array, accuracy: float = 2**-18) -> bool:
    """Whether two paths are the same within float32's rounding."""
    moved = np.abs(np.diff(one, axis=0)).max(axis=(1, 2)).sum()
    return bool(np.abs(one - other).max() <= STEPS * 2.0**-23 * np.abs(one).max() + accuracy * moved)


def found_way(subject: Subject, path: Array, settings: Mapping[str, Any]) -> tuple[Family, dict[str, str]] | None:
    """The formula that gives this path, the usual one if several do."""
    known = {**subject.settings, **settings}
    for family in FAMILIES:
        if all(name in known for name in family.needs):
            for way in ways_of(family):
                if close(family.walk(way, known), path):
                    return family, way
    return None


def named(family: Family, way: Way) -> str:
    """A formula in words: the family, and what is not the usual."""
    odd = [family.ways[name][way[name]] for name in _odd(family, way)]
    return f"{family.name}, where {_joined(odd or [family.ways['decay'][way['decay']]])}"


def _joined(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"


def explained(subject: Subject) -> str:
    """What the numbers of a subject are, as the end of a sentence; empty if no family has them."""
    settings = telling(subject)
    try:
        found = found_way(subject, run(subject.make, settings, torch.float32), settings)
    except Exception:  # whatever somebody's optimizer raises
        return ""
    return f"its numbers are those of {named(*found)}" if found else ""
