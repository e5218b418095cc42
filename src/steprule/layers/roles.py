"""Which parameters of a model are matrices, and how each is seen as such."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from torch import Tensor, nn

from steprule.layers.decide import Place, Seen, Unknown, decide, places_of
from steprule.layers.path import Ends, by_forward, by_order
from steprule.layers.view import View
from steprule.patterns import Pattern, alike, matches

__all__ = ["ROLES", "Role", "Roles", "roles"]

ROLES = {
    "hidden": "a matrix between others",
    "convolution": "its filters, flattened to (out, in * kernel)",
    "fused": "several matrices in one: q, k and v, gate and up, a recurrent layer's gates",
    "experts": "a stack of matrices, one for each expert",
    "input": "the matrix that reads the data",
    "head": "a matrix whose output is the model's",
    "embedding": "rows that are looked up: tokens, positions, types",
    "position": "a table or tokens that are added, not multiplied by",
    "router": "the matrix that chooses experts",
    "depthwise": "filters that read one channel each",
    "norm": "of a normalization layer",
    "vector": "one axis: biases, scales",
    "scalar": "one number",
    "other": "none of these",
}
"""What a parameter can be. The first four are seen as matrices; the others are for AdamW or the like."""


@dataclass(frozen=True)
class Role:
    """What one parameter is.

    Attributes:
        names: its names; more than one if modules share it.
        shape: its shape.
        role: one of `steprule.layers.ROLES`.
        view: how it is seen as matrices; None where an elementwise rule is to step it.
        why: what this follows from.
        is_doubtful: whether that is a guess.
        weight: how it is seen as the weight of a layer, whatever steps it; None for what is no such weight.
        param: the parameter.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    role: str
    view: View | None
    why: str
    is_doubtful: bool = False
    weight: View | None = None
    param: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The first of its names, which `model.named_parameters()` has too."""
        return self.names[0]


@dataclass(frozen=True)
class Roles(Sequence[Role]):
    """What each parameter of a model is; printed, it is a table.

    Attributes:
        rows: one for each parameter that requires a gradient, in the order of the model.
        frozen: the names of those that require none.
        notes: what could not be found.
    """

    rows: tuple[Role, ...]
    frozen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def matrices(self) -> list[Role]:
        """Those for a rule of whole matrices."""
        return [row for row in self.rows if row.view is not None]

    @property
    def rest(self) -> list[Role]:
        """Those for AdamW or the like."""
        return [row for row in self.rows if row.view is None]

    @overload
    def __getitem__(self, index: int) -> Role: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Role]: ...
    def __getitem__(self, index: int | slice) -> Role | Sequence[Role]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Role]:
        return iter(self.rows)

    def __str__(self) -> str:
        groups: dict[tuple[str, ...], list[Role]] = {}
        order = list(ROLES)
        for row in sorted(self.rows, key=lambda row: order.index(row.role)):
            doubt = "? " if row.is_doubtful else ""
            groups.setdefault((row.role, str(row.view or "-"), doubt + row.why), []).append(row)
        lines = [("role", "tensors", "seen as", "matrices (m, n)", "parameters", "why")]
        for (role, view, why), rows in groups.items():
            lines.append((role, f"{len(rows):,}", view, _sizes(rows), _named(rows), why))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        frozen = [f"frozen, and left out: {', '.join(alike(self.frozen))}"] if self.frozen else []
        return "\n".join([*table, *frozen, *self.notes])


def _sizes(rows: Sequence[Role]) -> str:
    """The sizes of the matrices of a group's rows; of many, the first."""
    if rows[0].view is None:
        return "-"
    found: dict[str, None] = {}
    for row in rows:
        sizes: dict[tuple[int, int], int] = {}
        for count, m, n in View(str(row.view)).sizes(row.shape):
            sizes[m, n] = sizes.get((m, n), 0) + count
        texts = ((f"{count} x " if count > 1 else "") + f"({m}, {n})" for (m, n), count in sizes.items())
        found[" and ".join(texts)] = None
    short = list(found)
    return "; ".join(short[:2]) + (f" and {len(short) - 2} more" if len(short) > 2 else "")


def _named(rows: Sequence[Role]) -> str:
    short = []
    shapes = {row.name: row for row in rows}
    for name, same in alike(list(shapes)).items():
        row, has = shapes[same[0]], [*dict.fromkeys(str(shapes[one].shape) for one in same)]
        sizes = " ".join(has[:2]) + (f" and {len(has) - 2} more" if len(has) > 2 else "")
        short.append(f"{name} {sizes}" + "".join(f" = {other}" for other in row.names[1:2]))
    return ", ".join(short[:3]) + (f" and {len(short) - 3} more" if len(short) > 3 else "")


Overrides = Mapping[Pattern, str | View] | Sequence[tuple[Pattern, str | View]]


def roles(model: nn.Module, *, example: Any = None, overrides: Overrides = (), heads: bool = False) -> Roles:
    """Decides which parameters are matrices for rules like Muon, and how each is seen as such::

        table = steprule.roles(model, example=(inputs,), overrides={"*.wq": "transpose", "pos": "position"})
        print(table)

    Matrices are the weights of linear, convolutional and recurrent layers between the first and the last. Everything else
    is for AdamW: embeddings, the first matrix, heads, routers, depthwise filters, norms, vectors. A matrix is parted, taken as
    a stack or transposed only if its module's class is known (torch, timm, torchvision, transformers), or if you say so. A
    fused matrix of an unknown class stays one matrix.

    Every parameter that requires a gradient is in one row; one with several names goes by the first.

    Args:
        model: a module.
        example: what the model is called with, once, to find its first and last matrices: a tuple of positional arguments, a
            dict of named ones, or a function of the model that returns the outputs. Default: None. Then heads are what
            `model.get_output_embeddings()` returns, what shares an embedding, and the last matrix in order of registration;
            the first in that order is the input. Rows that follow from the order alone are marked with "?".
        overrides: what you know better, as {pattern: word} or pairs of them; the first that matches wins. A pattern is matched
            with the whole name ("blocks.*.w"), or is a function of name and parameter. A word is "hidden", for a matrix
            of (out, in); another view such as "transpose", "rows 3", "flatten" or "stack", or a `steprule.layers.View`;
            "adamw", for what is no matrix; or another role that AdamW steps, such as "head".
        heads: part the matrices of known attention classes by head. Default: False.

    Raises:
        ValueError: parameters of two or more axes belong to no known layer, and the message names them; a pattern matches
            nothing; a word is none, or its view does not fit.
        TypeError: model is no module.
    """
    return roles_of(model, overrides, "overrides", example, heads)


def roles_of(model: nn.Module, overrides: Overrides, argument: str, example: Any = None, heads: bool = False) -> Roles:
    """As `roles`, where the caller's argument for what the user knows better has this name."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose classes say what it is, not {type(model).__name__}")
    places = places_of(model)
    named = {spots[0].name: param for param, spots in places.items()}
    chosen = _chosen(overrides, argument, named)
    found, unknown = {}, {}
    for param, spots in places.items():
        try:
            found[spots[0].name] = chosen.get(spots[0].name) or decide(param, spots, heads)
        except Unknown as error:
            unknown[spots[0].name] = (param, str(error))
    if unknown:
        raise ValueError(_refusal(unknown, argument))
    ends = _ends(model, example, found, named, places, chosen)
    rows, frozen = [], []
    for name, seen in found.items():
        param, spots = named[name], places[named[name]]
        for role, whys in (("input", ends.inputs), ("head", ends.heads)):
            if name in whys and name not in chosen and seen.weight is not None:
                seen = Seen(role, None, whys[name], "registration" in whys[name], seen.weight)
        if not param.requires_grad:
            frozen.append(name)
            continue
        names = tuple(spot.name for spot in spots)
        rows.append(
            Role(names, tuple(param.shape), seen.role, seen.view, seen.why, seen.is_doubtful, seen.weight, param)
        )
    return Roles(tuple(rows), tuple(frozen), tuple(ends.notes))


def _chosen(overrides: Overrides, argument: str, named: Mapping[str, Tensor]) -> dict[str, Seen]:
    """What the user says of parameters, in the argument of this name."""
    found: dict[str, Seen] = {}
    for pattern, word in overrides.items() if isinstance(overrides, Mapping) else overrides:
        where = f"{argument}[{pattern!r}]"
        if not isinstance(pattern, str) and not callable(pattern):
            raise TypeError(f"{argument}: {pattern!r} must be a pattern or a function of name and parameter")
        for name in matches(argument, pattern, named):
            try:
                found.setdefault(name, _said(word, named[name]))
            except ValueError as error:
                raise ValueError(f"{where}={str(word)!r}, for {name!r}: {error}") from None
    return found


def _said(word: str | View, param: Tensor) -> Seen:
    why = "you said so"
    if word == "adamw":
        return Seen("other", None, why)
    if word in ROLES and word not in ("hidden", "convolution", "fused", "experts"):
        return Seen(str(word), None, why)
    if word == "hidden":
        word = "matrix"
    try:
        view = View(str(word))
    except ValueError as error:
        raise ValueError(f'{error}; or "hidden", "adamw" or a role') from None
    view.sizes(param.shape)
    first = view.words.partition(", ")[0]
    parts = re.search("rows|columns|split|interleaved", view.words)
    role = "convolution" if first == "flatten" else "experts" if first == "stack" else "fused" if parts else "hidden"
    return Seen(role, view, why)


def _ends(
    model: nn.Module,
    example: Any,
    found: Mapping[str, Seen],
    named: Mapping[str, Tensor],
    places: Mapping[Tensor, Sequence[Place]],
    said: Mapping[str, Seen],
) -> Ends:
    """The model's first and last matrices."""
    # one row or column is no matrix for a rule, but it may be the model's first or last
    roles = {name: "hidden" if seen.weight and not seen.view else seen.role for name, seen in found.items()}
    embeddings = [name for name, role in roles.items() if role == "embedding"]
    if example is not None:
        matrices = [name for name, seen in found.items() if seen.weight or seen.role in ("router", "depthwise")]
        tables = [name for name, param in named.items() if param.ndim > 1 and roles[name] != "norm"]
        ends = by_forward(model, example, matrices, {*tables} - {*matrices, *embeddings}, embeddings)
    else:
        ends = by_order(
            model, roles, [place.name for name in embeddings for place in places[named[name]] if place.layer], said
        )
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        try:
            weight = getattr(get() if callable(get) else None, "weight", None)
        except (AttributeError, NotImplementedError):
            continue
        name = next((name for name, param in named.items() if param is weight), None)
        if name is not None:
            ends.heads[name] = f"{type(module).__name__}.get_output_embeddings() returns it"
            ends.notes.clear()
    return ends


def _refusal(unknown: Mapping[str, tuple[Tensor, str]], argument: str) -> str:
    """The message for parameters of which nothing is known, and what to give as the argument."""
    lines, words = [], []
    for short, same in alike(list(unknown)).items():
        param, why = unknown[same[0]]
        lines.append(f"  {short}  {tuple(param.shape)}  {why}")
        words.append(f"{short!r}: ..." if argument != "--set" else f"--set '{short}=...'")
    said = " ".join(words) if argument == "--set" else f"{argument}={{{', '.join(words)}}}"
    return (
        f"roles cannot tell what {len(unknown)} parameter{'s are' if len(unknown) > 1 else ' is'}:\n"
        + "\n".join(lines)
        + f"\nSay it: {said}, each with "
        '"hidden" for a matrix of (out, in), "transpose" for (in, out), "stack" or "stack, transpose" if the first axes '
        'count such matrices, "flatten" if all axes but the first belong together, or "adamw" if it is no matrix, as positions that are added'
    )
