"""Weights that are kept in few bits: what small steps do to one, to a model and to memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from steprule.formats.tensors import decode, encode
from steprule.lessons.follow import Array, follow
from steprule.lessons.letters import LETTERS, gradient, loss, mini_batches, parts
from steprule.memory import Need, Param, need
from steprule.optimizer import AdamW as Optimizer
from steprule.rules.adam import AdamW

LRS = (0.0003, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01)
STEPS, WEIGHTS, TRAINING, EVERY = 200, 1000, 1500, 25
FULL, HALF, RANDOM, SPLIT, SMALL = "float32", "bfloat16", "stochastic", "24 bits", "24 bits, 8-bit states"
PUSHED, DECAYING = "a gradient of \u22121", "weight decay alone"
CAUSES = {PUSHED: (-1.0, 0.0), DECAYING: (0.0, 0.1)}
"""The gradient, and the weight decay."""

States = Literal["float32", "bfloat16", "8bit"] | None


class Kept(NamedTuple):
    """How weights are kept: their dtype, and the arguments of the optimizer."""

    dtype: str
    weights: Literal["stochastic", "24bit"] | None = None
    states: States = "float32"


KEPT = {
    FULL: Kept("float32"),
    HALF: Kept("bfloat16"),
    RANDOM: Kept("bfloat16", "stochastic"),
    SPLIT: Kept("bfloat16", "24bit"),
    SMALL: Kept("bfloat16", "24bit", "8bit"),
}


def make(kind: str, starts: Sequence[Any], settings: Sequence[Mapping[str, float]]) -> tuple[Any, list[Any]]:
    """A steprule.AdamW, and its parameters: one for each start, with settings of its own."""
    dtype, weights, states = KEPT[kind]
    params = [torch.nn.Parameter(torch.tensor(start).to(getattr(torch, dtype))) for start in starts]
    groups = [{"params": [param], **own} for param, own in zip(params, settings, strict=True)]
    return Optimizer(groups, weights=weights, states=states), params


class Walk(NamedTuple):
    """Where 1,000 weights went that began at 1, for every cause and learning rate.

    Attributes:
        values: of all of them: cause and learning rate, step, weight.
        stored: the bits of the first, as the upper ones of 32: cause and learning rate, step.
    """

    values: Array
    stored: Any


@cache
def walk(kind: str) -> Walk:
    """Steps of steprule.AdamW. Only the weights have few bits: states are kept in float32."""
    settings = [{"lr": lr, "weight_decay": decay} for _, decay in CAUSES.values() for lr in LRS]
    optimizer, params = make(kind, [[1.0] * WEIGHTS] * len(settings), settings)
    for param, grad in zip(params, np.repeat([grad for grad, _ in CAUSES.values()], len(LRS)), strict=True):
        param.grad = param.detach() * float(grad)
    values, stored = [np.ones((len(params), WEIGHTS))], [[_stored(param, {}) for param in params]]
    for _ in range(STEPS):
        optimizer.step()
        values.append(np.array([optimizer.read(param).double().numpy() for param in params]))
        stored.append([_stored(param, optimizer.state[param]) for param in params])
    return Walk(np.stack(values, axis=1), np.array(stored).T)


def _stored(param: Any, state: Mapping[str, Any]) -> int:
    """The bits of a parameter's first weight, and of what its optimizer keeps of it beside, as an integer."""
    if param.dtype == torch.float32:
        return int(param.detach().view(torch.int32)[0]) & 0xFFFFFFFF
    low = int(state["param_correction"][0]) & 0xFF if "param_correction" in state else 0
    return (int(param.detach().view(torch.int16)[0]) & 0xFFFF) << 16 | low << 8


def place(lr: float, cause: str) -> int:
    """Which row of a walk."""
    return list(CAUSES).index(cause) * len(LRS) + LRS.index(lr)


@cache
def exact(lr: float, cause: str) -> Array:
    """The same weight in float64."""
    grad, decay = CAUSES[cause]
    return follow(AdamW, [1.0], lambda w, step: [grad], STEPS, lr=lr, weight_decay=decay).params[:, 0]


@cache
def spacing(kind: str, weight: float = 1.0) -> float:
    """How far the next larger number lies from a weight."""
    one = torch.tensor([weight], dtype=torch.bfloat16)
    arrays = {"": one, "_correction": torch.zeros(1, dtype=torch.int8)}
    nearest = decode("bfloat16 24bit", arrays, (1,))
    if kind == HALF:
        arrays[""] = (one.view(torch.int16) + 1).view(torch.bfloat16)
    else:
        arrays["_correction"] += 1
    return float(decode("bfloat16 24bit", arrays, (1,)) - nearest)


@cache
def losses(kind: str) -> Array:
    """The validation loss of the model of letters, for each learning rate (rows), after every 25th step."""
    pairs, held_out = parts()
    batches = mini_batches(pairs, TRAINING + 1)
    starts = [np.zeros((1, LETTERS**2))] * len(LRS)
    optimizer, params = make(kind, starts, [{"lr": lr, "weight_decay": 0.1} for lr in LRS])
    found = []
    for step in range(TRAINING + 1):
        weights = torch.stack([param.detach().double() for param in params]).numpy().reshape(-1, LETTERS, LETTERS)
        if step % EVERY == 0:
            found.append(loss(weights, held_out))
        grads = gradient(weights, batches[step])
        for param, grad in zip(params, torch.tensor(grads).to(params[0].dtype), strict=True):
            param.grad = grad.reshape(1, -1)
        optimizer.step()
    return np.array(found).T


@cache
def needs() -> Mapping[str, Need]:
    """What AdamW takes of memory for a matrix of 1,024 by 1,024, as `steprule memory` counts it."""
    ways = {
        "32 / 32": Kept("float32"),
        "16 / 16": Kept("bfloat16", None, "bfloat16"),
        "24 / 16": Kept("bfloat16", "24bit", "bfloat16"),
        "24 / 8": Kept("bfloat16", "24bit", "8bit"),
        "16 / 8": Kept("bfloat16", "stochastic", "8bit"),
    }
    return {
        name: need(AdamW, [Param((1024, 1024))], dtype, dtype, states, weights, {})
        for name, (dtype, weights, states) in ways.items()
    }


def each(total: int) -> float:
    """Bytes for one weight of `needs`."""
    return total / 1024**2


@cache
def chance(update: float) -> float:
    """How often a weight of 1 goes up by stochastic rounding: the share of the random numbers with which it does."""
    random = torch.arange(1 << 16) << 16
    return float((encode("bfloat16 stochastic", torch.full((1 << 16,), 1 + update), random)[""] > 1).float().mean())


def moves(weight: float, lr: float) -> bool:
    """Whether a bfloat16 weight moves at all with a gradient of -1."""
    optimizer, (param,) = make(HALF, [[weight]], [{"lr": lr, "weight_decay": 0.0}])
    param.grad = torch.full_like(param, -1.0)
    before = param.detach().clone()
    optimizer.step()
    return bool((param.detach() != before).all())


@cache
def mean_square(states: States) -> float:
    """Adam's mean square after 5,000 gradients of 1."""
    param = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    optimizer = Optimizer([param], states=states)
    for _ in range(5000):
        optimizer.step()
    return float(optimizer.read(param, "exp_avg_sq"))
