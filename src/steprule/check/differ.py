"""How two implementations of one rule differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from steprule.check.checks import TELLING, telling
from steprule.check.claims import Subject
from steprule.check.reference import HOW, STEPS, Array, run
from steprule.check.variants import close, found_way, named

OFF: Mapping[str, Any] = {"weight_decay": 0.0, "eps": 1e-30, "momentum": 0.0}
"""Values at which a setting does nothing."""


def differences(one: Subject, other: Subject) -> list[str]:
    """What differs between two optimizers, in sentences.

    Both step one float64 matrix six times, with the same telling values of the settings that both take.

    Raises:
        ValueError: one of them cannot take such a step.
    """
    return [*_defaults(one, other), *_numbers(one, other)]


def _defaults(one: Subject, other: Subject) -> Iterator[str]:
    """Arguments of one only, and other defaults."""
    for name, value in one.arguments.items():
        if name in other.arguments and repr(value) != repr(other.arguments[name]) and name not in HOW:
            yield f"The default of {name} is {value!r} in {one.place}, and {other.arguments[name]!r} in {other.place}."


def _numbers(one: Subject, other: Subject) -> Iterator[str]:
    one, other = _same(one, other), _same(other, one)
    settings = {name: value for name, value in telling(one).items() if name in telling(other)}
    mine, its = (_path(subject, settings) for subject in (one, other))
    given = ", ".join(f"{name}={value}" for name, value in settings.items())
    if close(mine, its, 1e-9):
        yield f"With {given} they take the same steps."
        return
    if close(mine, its):
        yield f"With {given} they take the same steps within float32's rounding."
        return
    ways = [found_way(subject, path, settings) for subject, path in zip((one, other), (mine, its), strict=True)]
    if ways[0] and ways[1] and ways[0][0] is ways[1][0]:
        family = ways[0][0]
        for name, words in family.ways.items():
            here, there = ways[0][1][name], ways[1][1][name]
            if here != there:
                yield f"In {one.place} {words[here]}; in {other.place} {words[there]}."
        return
    for subject, way in zip((one, other), ways, strict=True):
        if way:
            yield f"{subject.place} is {named(*way)}."
    yield _when(one, other, [mine, its])
    yield from _switches(one, other, settings)


def _same(subject: Subject, other: Subject) -> Subject:
    """The subject with what the other one is made with, where it takes that and has nothing else set."""
    more = {name: value for name, value in other.settings.items() if name in subject.arguments}
    return Subject(subject.optimizer, subject.claims, subject.place, **{**more, **subject.settings})


def _path(subject: Subject, settings: Mapping[str, Any]) -> Array:
    try:
        return run(subject.make, settings, torch.float64)
    except Exception as error:  # whatever somebody's optimizer raises
        raise ValueError(f"{subject.place} cannot take a step with {dict(settings)}: {error}") from error


def _when(one: Subject, other: Subject, paths: list[Array]) -> str:
    """From which step on they differ, and by how much."""
    apart = np.abs(paths[0] - paths[1]).max(axis=(1, 2))
    scale = 2.0**-20 * max(np.abs(paths[0] - paths[0][0]).max(), 1e-30)
    first = next(step for step in range(1, STEPS + 1) if apart[step] > scale or step == STEPS)
    moves = [path[1] - path[0] for path in paths]
    with np.errstate(all="ignore"):
        ratio = moves[0] / moves[1]
    if first == 1 and np.isfinite(ratio).all() and np.ptp(ratio) < 1e-5 * abs(ratio.mean()):
        return f"The first step of {one.place} is {ratio.mean():.6g} times as long as that of {other.place}."
    return f"They differ from step {first} on, by {apart[-1]:.2g} after step {STEPS}."


def _switches(one: Subject, other: Subject, settings: Mapping[str, Any]) -> Iterator[str]:
    """Which settings must be off for both to agree."""
    for name, off in OFF.items():
        if name in settings:
            changed = {**settings, name: off}
            try:
                agree = close(_path(one, changed), _path(other, changed))
            except ValueError:
                continue
            if agree:
                yield f"They agree with {name}={off if off else 0}: what differs is what {name} does."
    if "betas" in settings:
        kept = tuple(0.0 if index == 0 else value for index, value in enumerate(TELLING["betas"]))
        changed = {**settings, "betas": kept[: len(settings["betas"])]}
        try:
            if close(_path(one, changed), _path(other, changed)):
                yield "They agree with betas[0]=0: what differs is the first moment."
        except ValueError:
            return
