"""Whether layers move alike at every width: the coordinate check of a way to scale hyperparameters, as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steprule.charts import Axis, Chart, Line, figure, style

__all__ = ["CoordinateCheck", "coordinate_check"]

Made = tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]


@dataclass(frozen=True, repr=False)
class CoordinateCheck:
    """How large the outputs of each layer are, and how far they have moved, at several widths; printed, it is a table.

    Attributes:
        widths: the widths.
        sizes: for each layer and width the root mean square (RMS) of its output's elements before the first step.
        moves: for each layer and width the RMS of what the steps have changed in that output.
    """

    widths: tuple[int, ...]
    sizes: Mapping[str, tuple[float, ...]]
    moves: Mapping[str, tuple[float, ...]]

    @property
    def slopes(self) -> dict[str, float]:
        """By which power of the width each layer's moves grow: about 0 where hyperparameters transfer. It is a fit of logarithms."""
        return {name: _slope(self.widths, moves) for name, moves in self.moves.items()}

    def __str__(self) -> str:
        rows = [("layer", *(f"width {width:,}" for width in self.widths), "power of width")]
        for name, slope in self.slopes.items():
            rows.append((name, *(f"{move:.3g}" for move in self.moves[name]), f"{slope:+.2f}"))
        first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join((row[0].ljust(first), *map(str.rjust, row[1:], others))) for row in rows]
        return "\n".join(["how far outputs move, RMS", *lines])

    __repr__ = __str__

    def chart(self) -> Chart:
        """The moves against the width, a line for each layer.

        Raises:
            ValueError: nothing has moved, or to what is not finite.
        """
        every = [move for moves in self.moves.values() for move in moves if 0 < move < math.inf]
        if not every:
            raise ValueError("there is nothing to draw: no output has moved, or none to a finite number")
        named = {float(width): f"{width:,}" for width in self.widths}
        low, high = min(every), max(every)
        lines = [
            Line(name, self.widths, [move or math.nan for move in moves], number % 6, dots=True)
            for number, (name, moves) in enumerate(self.moves.items())
        ]
        across = Axis("width", self.widths[0], self.widths[-1], log=True, named=named)
        return Chart(
            "How far outputs move", across, Axis("RMS of the change", low / 2, high * 2, log=True), lines, labels="none"
        )

    def save(self, path: str | Path) -> None:
        """Writes the picture and the table into an HTML file.

        Raises:
            ValueError: as `chart`.
        """
        page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Coordinate check</title><style>{style()}</style>'
        Path(path).write_text(f"{page}{figure(self.chart())}<pre>{self}</pre></html>\n", encoding="utf-8")


def coordinate_check(
    make: Callable[[int], Made], widths: Sequence[int], *, steps: int = 4, seed: int = 0
) -> CoordinateCheck:
    """Trains models of several widths for a few steps on one batch, and sees how far the output of each layer moves::

        def make(width):
            model = MLP(width)
            optimizer = steprule.AdamW(transfer(model, base_width=64).groups, lr=1e-2)
            return model, optimizer, lambda: loss(model(inputs), targets)

        print(coordinate_check(make, [64, 128, 256, 512]))

    Where hyperparameters transfer, a layer moves as far at every width: Yang et al. 2022, arXiv:2203.03466, appendix D.1. A layer
    is a module with parameters of its own; of one that is called several times the last output counts.

    Args:
        make: given a width, returns a model, its optimizer, and a function that computes the loss on one and the same batch. It may use
            random numbers, which are the same for a width in every call.
        widths: two or more, in growing order.
        steps: how many steps are taken, at least 1.
        seed: of the random numbers.

    Raises:
        ValueError: widths, steps or seed make no sense, a loss does not run the model or runs other layers in another step, or models
            of two widths have other layers.
        TypeError: make is no function, or returns something else.
    """
    widths = _check(make, widths, steps, seed)
    runs = [_run(make, width, steps, seed) for width in widths]
    for width, (sizes, _) in zip(widths, runs, strict=True):
        if [*sizes] != [*runs[0][0]]:
            other = {*sizes} ^ {*runs[0][0]}
            raise ValueError(
                f"the models of width {widths[0]} and {width} have other layers: {', '.join(sorted(other))}"
            )
    names = [*runs[0][0]]
    return CoordinateCheck(
        widths,
        {name: tuple(sizes[name] for sizes, _ in runs) for name in names},
        {name: tuple(moves[name] for _, moves in runs) for name in names},
    )


def _check(make: Any, widths: Any, steps: Any, seed: Any) -> tuple[int, ...]:
    """The widths; raises for arguments that make no sense."""
    if not callable(make):
        raise TypeError(f"make must be a function of a width, not {make!r}")
    try:
        found = tuple(map(index, widths))
    except TypeError:
        found = ()
    if len(found) < 2 or not all(0 < one < other for one, other in pairwise(found)):
        raise ValueError(f"widths must be two or more ints in growing order, not {widths!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an int of 1 or more, not {steps!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be an int from -2**63 to 2**64 - 1, not {seed!r}")
    return found


def _made(make: Callable[[int], Made], width: int) -> Made:
    """What make returns; raises for something else than it should."""
    made: Any = make(width)
    kinds: tuple[Any, ...] = nn.Module, torch.optim.Optimizer, Callable
    if not (isinstance(made, (tuple, list)) and len(made) == 3 and all(map(isinstance, made, kinds))):
        shown = f"({', '.join(type(one).__name__ for one in made)})" if isinstance(made, (tuple, list)) else repr(made)
        raise TypeError(
            f"make({width}) must return a model, its optimizer, and a function that computes the loss, not {shown}"
        )
    model, optimizer, _ = made
    own = {id(param) for param in model.parameters()}
    if not any(id(param) in own for group in optimizer.param_groups for param in group["params"]):
        raise ValueError(
            f"the optimizer that make({width}) returned has no parameter of the model beside it: make it for these"
        )
    return tuple(made)


def _loss(loss: Callable[[], Tensor], width: int) -> Tensor:
    """A loss; raises for what backward cannot begin at."""
    found: Any = loss()
    if not (isinstance(found, Tensor) and found.numel() == 1 and found.requires_grad):
        shown = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise TypeError(f"the loss of make({width}) must return a tensor of one number with gradients, not {shown}")
    return found


def _run(make: Callable[[int], Made], width: int, steps: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """The sizes of outputs before the first step, and how far they are from there after the last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, optimizer, loss = _made(make, width)
        with _outputs(model) as first:
            now = _loss(loss, width)
        if not first:
            raise ValueError(
                f"the loss of make({width}) has run no layer of the model beside it that has parameters and returns a tensor of floats, "
                "or begins with one: compute the loss by a call of that model"
            )
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(now)
            optimizer.step()
            with _outputs(model) as last:
                now = _loss(loss, width)
            if others := [name for name in first if name not in last or last[name].shape != first[name].shape]:
                raise ValueError(
                    f"the loss of make({width}) has run {others[0]!r} on another batch, or not at all, after a step: compute it on one batch, "
                    "by the same layers"
                )
    sizes = {name: _rms(x) for name, x in first.items()}
    return sizes, {name: _rms(last[name] - x) for name, x in first.items()}


@contextmanager
def _outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What layers return while it lasts, by name."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            x = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(x, Tensor) and x.is_floating_point():
                found[name] = x.detach().clone()

        return hook

    layers = [(name, one) for name, one in model.named_modules() if any(True for _ in one.parameters(recurse=False))]
    hooks = [one.register_forward_hook(keep(name or "model")) for name, one in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """The slope of the line through logarithms; NaN where one is none."""
    if not all(0 < value < math.inf for value in values):
        return math.nan
    x, y = [math.log(width) for width in widths], [math.log(value) for value in values]
    center, height = sum(x) / len(x), sum(y) / len(y)
    return sum((a - center) * (b - height) for a, b in zip(x, y, strict=True)) / sum((a - center) ** 2 for a in x)
