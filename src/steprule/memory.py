"""What training a model takes in memory, for each optimizer and format."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steprule.catalog import find, width
from steprule.formats import HALVES, STATE_FORMATS, WEIGHT_FORMATS, bytes_of, state_format, weight_format
from steprule.names import did_you_mean
from steprule.rule import Rule
from steprule.state import state_shape

Shapes = list[tuple[int, ...]]

PARAMETER_DTYPES = ("float32", "bfloat16", "float16")
USUAL = ("sgd", "rmsprop", "adam", "adamw")
"""What is shown if no name is given."""
_TYPICAL: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
"""Settings without which an optimizer has no states."""


@dataclass(frozen=True)
class Need:
    """The bytes of one way to train.

    Attributes:
        optimizer: the name of its class.
        dtype: the weights'.
        states, weights: the formats, as the optimizer's arguments have them; None where none is given.
        weight_bytes: of the weights, with the low bits that their format keeps.
        grad_bytes, state_bytes: of gradients and states.
    """

    optimizer: str
    dtype: str
    states: str | None
    weights: str | None
    weight_bytes: int
    grad_bytes: int
    state_bytes: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weight_bytes + self.grad_bytes + self.state_bytes

    @property
    def is_without(self) -> bool:
        """Whether no format is given, so that torch.optim keeps the same."""
        return self.states is None and self.weights is None

    @property
    def loses_updates(self) -> bool:
        """Whether weights are rounded to the nearest number of few bits, which drops small updates."""
        return self.weights is None and self.dtype in HALVES

    @property
    def is_recommended(self) -> bool:
        """Whether it takes few bytes and loses nothing that matters to most models."""
        return self.states == "8bit" and self.weights == ("24bit" if self.dtype in HALVES else None)


def need(
    rule: type[Rule], shapes: Shapes, dtype: str, grad_dtype: str, states: str | None, weights: str | None,
    settings: dict[str, Any],
) -> Need:  # fmt: skip
    """Adds up what an optimizer keeps for parameters of these shapes; a step's own few numbers are left out."""
    from steprule.trace.tracing import exact_states, nonnegative_states

    hyper = {**rule.hyperparameters, **settings}
    present = [state for state in rule.states_for(hyper) if state in rule.tensor_states]
    beside = [state for state in rule.states_for(hyper) if state in rule.side_states]
    positive, exact = nonnegative_states(rule, hyper), exact_states(rule, hyper)
    weight_bytes = grad_bytes = state_bytes = 0
    for shape in shapes:
        weight_bytes += bytes_of(weight_format(weights, dtype), shape)
        grad_bytes += bytes_of(grad_dtype, shape)
        for state in present:
            state_bytes += bytes_of(state_format(states, dtype, shape, state in positive, state in exact), shape)
        for state in beside:
            state_bytes += bytes_of("float32", state_shape(rule, state, shape, hyper))
    return Need(rule.__name__, dtype, states, weights, weight_bytes, grad_bytes, state_bytes)


def table(name: str, shapes: Shapes, dtype: str, grad_dtype: str) -> list[Need]:
    """What an optimizer needs without formats, in float32 and in the dtype, then with each that fits the dtype.

    Args:
        name: as for `steprule.catalog.find`.
        shapes: the parameters'.
        dtype: theirs, one of PARAMETER_DTYPES.
        grad_dtype: the gradients'.
    """
    rule = find(name)
    settings = _TYPICAL.get(rule.__name__.lower(), {})
    plain = dict.fromkeys([("float32", "float32"), (dtype, grad_dtype)])
    rows = [need(rule, shapes, kept, grads, None, None, settings) for kept, grads in plain]
    return rows + [
        need(rule, shapes, dtype, grad_dtype, states, weights, settings)
        for weights in (reversed((None, *WEIGHT_FORMATS)) if dtype in HALVES else (None,))
        for states in STATE_FORMATS
    ]


def answer(rows: Sequence[Need]) -> list[Need]:
    """The rows to choose from, of which no two have equal numbers.

    Args:
        rows: what `table` returned.
    """
    is_half = rows[-1].dtype in HALVES
    wanted = [row for row in rows if row.is_without or not is_half or (row.states, row.weights) in _CHOICES]
    kept: dict[tuple[Any, ...], Need] = {}
    for row in wanted:
        key = (row.dtype, row.weight_bytes, row.state_bytes)
        if key not in kept or (row.is_recommended and not kept[key].is_without):
            kept[key] = row
    return list(kept.values())


_CHOICES = (("float32", "32bit"), ("bfloat16", "24bit"), ("8bit", "24bit"), ("8bit", "stochastic"))
"""States and weights of half precision that have an advantage over the others, from the most exact to the smallest."""


def parameter_count(text: str) -> int | None:
    """The number that a text such as 124M, 7B or 1_000_000 stands for, None if it stands for none."""
    match = re.fullmatch(r"([\d_]*\.?\d+(?:[eE]\+?\d+)?|\d[\d_]*)([kKmMbBtT]?)", text)
    if not match:
        return None
    factor = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}[match[2].lower()]
    number = float(match[1].replace("_", "")) * factor
    return round(number) if number < 1e18 else None


def made_by(model: str, kinds: str = "module:function") -> Any:
    """The torch.nn.Module that a function makes on torch's meta device, where nothing is allocated.

    Args:
        model: module:function, for a function without arguments.
        kinds: what the message says that may be given.

    Raises:
        ValueError: there is no such function, or it fails or does not return a module.
    """
    import torch

    from steprule.compare.errors import told
    from steprule.compare.imports import import_function

    function, name = import_function(model, repr(model), f"be {kinds}")
    try:
        with torch.device("meta"):
            made = function()
    except Exception as error:  # whatever somebody's function does
        raise ValueError(f"{model!r}: {name}() failed: {told(error)}") from error
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"{model!r} returned {type(made).__name__}, not a torch.nn.Module")
    return made


def shapes_of(model: str) -> tuple[Shapes, str, str | None]:
    """The parameters of a model.

    Args:
        model: a parameter count, or module:function for a function without arguments that returns a torch.nn.Module
            (it is called on torch's meta device, so that nothing is allocated).

    Returns:
        Their shapes, a description, and the dtype that they have, None for a count.

    Raises:
        ValueError: it is neither, or the function fails or does not return a module.
    """
    count = parameter_count(model)
    if count is not None:
        if count < 1:
            raise ValueError(f"{model!r} must be a number of parameters, at least 1")
        wide = max(math.isqrt(count), 1)
        rest = count - wide * (count // wide)
        return [(count // wide, wide), *([(rest,)] if rest else [])], f"{count:,} elements in one matrix", None
    made = made_by(model, "a number of parameters below 1e18, such as 124M or 7e9, or module:function")
    parameters = [p for p in made.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{model!r} has no parameters to train")
    dtypes = {str(p.dtype).removeprefix("torch.") for p in parameters}
    total = sum(p.numel() for p in parameters)
    return (
        [tuple(p.shape) for p in parameters],
        f"{type(made).__name__}, {total:,} elements in {len(parameters)} tensors",
        dtypes.pop() if len(dtypes) == 1 else None,
    )


def show(
    model: str, dtype: str | None, grad_dtype: str | None, optimizers: Sequence[str], as_json: bool = False
) -> None:
    """Prints the table, or as JSON every combination of formats.

    Raises:
        ValueError: the model, a dtype or an optimizer's name is none, and the message names it; or an optimizer is
            torch.optim's own, and the message says what that keeps.
    """
    for what, value in (("--dtype", dtype), ("--grad-dtype", grad_dtype)):
        if value is not None and value not in PARAMETER_DTYPES:
            must = f"must be one of {', '.join(PARAMETER_DTYPES)}"
            raise ValueError(f"{what} {value!r} {must}{did_you_mean(value, PARAMETER_DTYPES)}")
    for name in optimizers:
        if "=" in name:
            plain = name.partition(":")[0]
            raise ValueError(
                f"optimizer {name!r}: the table has every format, with the default settings; write {plain!r}"
            )
        if parameter_count(name) is not None:
            raise ValueError(f"{name!r} is no optimizer; the model or its number of parameters stands before them")
    names = {find(name): name for name in optimizers or USUAL}
    shapes, description, own = shapes_of(model)
    dtype = dtype or (own if own in PARAMETER_DTYPES else None) or "bfloat16"
    grad_dtype = grad_dtype or dtype
    count = sum(math.prod(shape) for shape in shapes)
    tables = [table(name, shapes, dtype, grad_dtype) for name in names.values()]
    if as_json:
        rows = [
            {
                **asdict(row), "total_bytes": row.total, "bytes_an_element": row.total / count,
                "loses_updates": row.loses_updates, "is_recommended": row.is_recommended,
            }
            for rows in tables for row in rows
        ]  # fmt: skip
        print(json.dumps({"elements": count, "dtype": dtype, "grad_dtype": grad_dtype, "rows": rows}, indent=2))
        return
    print(textwrap.fill(f"{description}; weights {dtype}, gradients {grad_dtype}", width()))
    chosen = [answer(rows) for rows in tables]
    print(*_lines(chosen, count), "", *_notes([*map(find, names.values())], chosen, dtype), sep="\n")


_COLUMNS = "{:2}{:9} {:9} {:10} {:>8} {:>10} {:>7} {:>7} {:>10}"
_FEW = "{:2}{:9} {:9} {:10} {:>7} {:>10}"


def _lines(tables: Sequence[Sequence[Need]], count: int) -> Iterator[str]:
    """The table, of at most 80 columns; in a narrow terminal with the total alone of the numbers."""
    headings = ("weights", "gradients", "states", "total")
    is_narrow = width() < len(_COLUMNS.format(*[""] * 9))
    form, first = (_FEW, 3) if is_narrow else (_COLUMNS, 0)
    yield f"\n{'bytes an element':>{40 if is_narrow else 58}}"
    yield form.format("", "dtype", "states=", "weights=", *headings[first:], "total")
    for rows in tables:
        settings = (f", {name}={value}" for name, value in _TYPICAL.get(rows[0].optimizer.lower(), {}).items())
        yield f"\n{rows[0].optimizer}{''.join(settings)}"
        for row in rows:
            mark = ">" if row.is_recommended else "*" if row.loses_updates else ""
            sizes = (row.weight_bytes, row.grad_bytes, row.state_bytes, row.total)
            numbers = [f"{size / count:.2f}".rstrip("0").rstrip(".") for size in sizes[first:]]
            yield form.format(mark, row.dtype, row.states or "-", row.weights or "-", *numbers, _size(row.total))


def _notes(rules: Sequence[type[Rule]], tables: Sequence[Sequence[Need]], dtype: str) -> Iterator[str]:
    """What there is to say of the rows."""
    from steprule.engine.workspace import workspace
    from steprule.trace.tracing import program_of

    for rule in rules:
        if program_of(rule, rule.hyperparameters).matrices:
            yield _note(
                "",
                f"{rule.__name__} also takes up to {_size(workspace())} while it steps, or what one matrix does, for products of matrices: set "
                "STEPRULE_WORKSPACE to fewer bytes.",
            )
    yield _note("-", "no format given: torch.optim keeps the same, where it has the optimizer.")
    if dtype in HALVES:
        lost = f"{dtype} weights are rounded to the nearest: an update below {_LOST[dtype]} of its weight is lost."
        yield _note("*", lost)
    if any(row.is_recommended for rows in tables for row in rows):
        settings = {"states": "8bit", **({"weights": "24bit"} if dtype in HALVES else {})}
        yield _note(">", f"choose this first: {', '.join(f'{name}={value!r}' for name, value in settings.items())}.")
    if dtype in HALVES:
        yield _note(
            "",
            "24bit keeps the low bits that rounding drops; stochastic takes a byte less, and rounds at random, without bias.",
        )


def _note(mark: str, text: str) -> str:
    return textwrap.fill(text, min(width(), 80), initial_indent=f"{mark:3}", subsequent_indent="   ")


_LOST = {"bfloat16": "1/512", "float16": "1/4096"}
"""The part of a weight that an update must have to change it, when they are rounded to the nearest."""


def _size(count: int) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"
