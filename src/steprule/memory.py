"""What training a model takes in memory, for each optimizer and format."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from steprule.catalog import find, width
from steprule.formats import HALVES, STATE_FORMATS, WEIGHT_FORMATS, bytes_of, state_format, weight_format
from steprule.names import did_you_mean
from steprule.rule import Rule
from steprule.rules.adam import AdamW
from steprule.state import state_shape

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


class Param(NamedTuple):
    """Parameters that are alike.

    Attributes:
        shape: of each.
        number: how many there are.
        view: how a rule of whole matrices sees them.
        is_rest: whether AdamW steps them, beside a rule of whole matrices.
    """

    shape: tuple[int, ...]
    number: int = 1
    view: str | None = None
    is_rest: bool = False


def need(
    rule: type[Rule], params: Sequence[Param], dtype: str, grad_dtype: str, states: str | None, weights: str | None,
    settings: dict[str, Any],
) -> Need:  # fmt: skip
    """Adds up what an optimizer keeps for parameters; a step's own few numbers are left out."""
    weight_bytes = sum(count * bytes_of(weight_format(weights, dtype), shape) for shape, count, *_ in params)
    grad_bytes = sum(count * bytes_of(grad_dtype, shape) for shape, count, *_ in params)
    state_bytes = 0
    for own, hyper, is_rest in (
        (rule, {**rule.hyperparameters, **settings}, False),
        (AdamW, AdamW.hyperparameters, True),
    ):
        if stepped := [one for one in params if one.is_rest == is_rest]:
            state_bytes += _state_bytes(own, hyper, stepped, dtype, states)
    return Need(rule.__name__, dtype, states, weights, weight_bytes, grad_bytes, state_bytes)


def _state_bytes(
    rule: type[Rule], hyper: Mapping[str, Any], params: Sequence[Param], dtype: str, states: str | None
) -> int:
    """What a rule keeps for parameters that it steps."""
    from steprule.trace.tracing import exact_states, nonnegative_states

    present = [state for state in rule.states_for(hyper) if state in rule.tensor_states]
    beside = [state for state in rule.states_for(hyper) if state in rule.side_states]
    positive, exact = nonnegative_states(rule, hyper), exact_states(rule, hyper)
    total = 0
    for shape, count, view, _ in params:
        for state in present:
            total += count * bytes_of(state_format(states, dtype, shape, state in positive, state in exact), shape)
        for state in beside:
            total += count * bytes_of("float32", state_shape(rule, state, shape, hyper, view))
    return total


def table(name: str, params: Sequence[Param], dtype: str, grad_dtype: str) -> list[Need]:
    """What an optimizer needs without formats, in float32 and in the dtype, then with each that fits the dtype.

    Args:
        name: as for `steprule.catalog.find`.
        params: the parameters.
        dtype: theirs, one of PARAMETER_DTYPES.
        grad_dtype: the gradients'.
    """
    rule = find(name)
    settings = _TYPICAL.get(rule.__name__.lower(), {})
    plain = dict.fromkeys([("float32", "float32"), (dtype, grad_dtype)])
    rows = [need(rule, params, kept, grads, None, None, settings) for kept, grads in plain]
    return rows + [
        need(rule, params, dtype, grad_dtype, states, weights, settings)
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


@dataclass(frozen=True)
class Model:
    """What is to be trained.

    Attributes:
        params: its parameters.
        description: what it is, in words.
        dtype: of all parameters; None for a count.
        module: None for a count.
    """

    params: list[Param]
    description: str
    dtype: str | None = None
    module: Any = None

    def stepped_by(self, rule: type[Rule], said: Sequence[tuple[str, str]] = ()) -> list[Param]:
        """The parameters as `create_optimizer` has them stepped: those that are no matrices by AdamW, where a rule steps nothing else.

        Args:
            rule: the rule.
            said: what the user knows of parameters, as `steprule.roles` takes it.

        Raises:
            ValueError: parameters are unknown, there is no matrix, or said makes no sense.
        """
        from steprule.trace.tracing import program_of

        if program_of(rule, rule.hyperparameters).takes_vectors:
            return self.params
        if self.module is None:
            return [one._replace(is_rest=len(one.shape) < 2) for one in self.params]
        from steprule.layers.roles import roles_of

        rows = roles_of(self.module, said, "--set").rows
        if all(row.view is None for row in rows):
            raise ValueError(
                f"there is no matrix between others in {self.description}, which {rule.__name__} could step"
            )
        views = [None if row.view is None or row.view.words == "matrix" else row.view.words for row in rows]
        found = Counter((row.shape, view, row.view is None) for row, view in zip(rows, views, strict=True))
        return [Param(shape, count, view, is_rest) for (shape, view, is_rest), count in found.items()]


LONGEST_SIDE = 4096
"""Of the matrices that a number of parameters stands for, as they are in models of billions."""


def model_of(model: str) -> Model:
    """What is to be trained.

    Args:
        model: a parameter count, which is taken as square matrices of equal size, and a few elements beside them; or
            module:function for a function without arguments that returns a torch.nn.Module (it is called on torch's meta device,
            so that nothing is allocated).

    Raises:
        ValueError: it is neither, or the function fails or does not return a module.
    """
    count = parameter_count(model)
    if count is not None:
        if count < 1:
            raise ValueError(f"{model!r} must be a number of parameters, at least 1")
        matrices = -(-count // LONGEST_SIDE**2)
        side = math.isqrt(count // matrices)
        rest = count - matrices * side * side
        params = [Param((side, side), matrices), *([Param((rest,))] if rest else [])]
        return Model(params, f"{count:,} elements, {side:,} by {side:,}")
    made = made_by(model, "a number of parameters below 1e18, such as 124M or 7e9, or module:function")
    parameters = [p for p in made.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{model!r} has no parameters to train")
    dtypes = {str(p.dtype).removeprefix("torch.") for p in parameters}
    total = sum(p.numel() for p in parameters)
    return Model(
        [Param(shape, count) for shape, count in Counter(tuple(p.shape) for p in parameters).items()],
        f"{type(made).__name__}, {total:,} elements in {len(parameters)} tensors",
        dtypes.pop() if len(dtypes) == 1 else None,
        made,
    )


def show(
    model: str, dtype: str | None, grad_dtype: str | None, optimizers: Sequence[str], said: Sequence[tuple[str, str]] = (),
    as_json: bool = False,
) -> None:  # fmt: skip
    """Prints the table, or as JSON every combination of formats.

    Args:
        model: as for `model_of`.
        dtype, grad_dtype: of weights and gradients.
        optimizers: their names.
        said: as for `Model.stepped_by`.
        as_json: whether to print JSON.

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
    trained = model_of(model)
    dtype = dtype or (trained.dtype if trained.dtype in PARAMETER_DTYPES else None) or "bfloat16"
    grad_dtype = grad_dtype or dtype
    count = sum(one.number * math.prod(one.shape) for one in trained.params)
    stepped = {rule: trained.stepped_by(rule, said) for rule in names}
    tables = [table(name, stepped[rule], dtype, grad_dtype) for rule, name in names.items()]
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
    print(textwrap.fill(f"{trained.description}; weights {dtype}, gradients {grad_dtype}", min(width(), 80)))
    chosen = [answer(rows) for rows in tables]
    print(*_lines(chosen, count), "", *_notes(stepped, chosen, dtype, trained.module is None), sep="\n")


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


def _notes(
    stepped: Mapping[type[Rule], Sequence[Param]], tables: Sequence[Sequence[Need]], dtype: str, is_count: bool
) -> Iterator[str]:
    """What there is to say of the rows."""
    from steprule.engine.workspace import workspace
    from steprule.trace.tracing import program_of

    for rule, params in stepped.items():
        rest, every = (sum(one.number for one in params if one.is_rest or not only) for only in (True, False))
        if rest and not is_count:
            yield _note(
                "", f"{rule.__name__} steps {every - rest:,} of {every:,} tensors; the others are as AdamW keeps them."
            )
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
