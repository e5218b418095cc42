"""Parameters that are parts of larger tensors, and vectors: what needs the whole of them, or matrices, is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from steprule.formats.parts import cuts_of, is_sharded
from steprule.optimizer.core import Core
from steprule.services.clip import ClipAdaptive, ClipNorm, ClipValue
from steprule.services.hooks import processes
from steprule.state import no_matrix
from steprule.step.listed import name_in
from steprule.tensors.exchange import has_rows, why_apart
from steprule.tensors.memory import HALF_DTYPES
from steprule.tensors.numbering import numbering_of
from steprule.tensors.shard import cut_dimensions, is_unreduced
from steprule.trace.tracing import couples, program_of

_FLAT = "has been put in the place of this optimizer's parameters and is flat, as DeepSpeed's and other pieces of a model are"

RELEASED = (
    "{} brings whole matrices together, all of a step at once, and does not go with release_gradients(), which steps one "
    "parameter after another"
)


def check_whole(core: Core, groups: Sequence[dict[str, Any]], number: int) -> None:
    """Raises if parameters are parts, and something that was asked for needs what other processes have of them.

    Args:
        core: the optimizer's.
        groups: all.
        number: which of them to look at.

    Raises:
        ValueError: something needs the whole.
    """
    is_flattened, group, across = core.is_made and _is_flattened(core, groups), groups[number], core.across
    if across is not None and across.has_model:
        for what in _exchanges(core):
            raise ValueError(
                f"{what}, and in a ZeroRedundancyOptimizer it would exchange those of this process's parameters only: the "
                "model here has the others', too"
            )
    for index, param in enumerate(group["params"]):
        who = name_in(group, number, index)
        if across is not None and across.knows(param):
            raise ValueError(
                f"process_group={across} and {who} do not go together: that is a DTensor, which knows its parts in other "
                "processes: leave out process_group"
            )
        kind = _FLAT if is_flattened else _kind_of(param)
        if kind is None:
            continue
        if is_sharded(param):
            needs = _needs_of_shards(core, group, param)
        else:
            needs = chain(_needs_tensors(core, group, param, is_flattened), _exchanges(core) if is_flattened else ())
        needing = next(needs, None)
        if needing is not None:
            raise ValueError(
                f"{needing}, and {who} {kind}: a step here would see only its own part, and its "
                "result would be wrong. Rules that look at each element by itself take such parameters"
            )
        needing = next(_needs_all(core, group), None) if not is_sharded(param) else None
        if needing is not None and is_flattened and _are_apart(core, groups):
            raise ValueError(
                f"{needing}, and {who} {kind}, and other groups' parameters are not there: a trainer that steps one group after "
                "another, as DeepSpeed does, needs all parameters in one group"
            )
        if needing is not None and across is None and processes() > 1:
            raise ValueError(
                f"{needing}, and {who} {kind}: a step here would see only what this process has. Name the processes that have "
                "the rest, as in process_group=torch.distributed.group.WORLD"
            )


def check_matrices(core: Core, groups: Sequence[dict[str, Any]], number: int) -> None:
    """Raises for vectors, where the rule takes matrices; arguments as for `check_whole`.

    Raises:
        ValueError: there is one.
    """
    group = groups[number]
    for index, param in enumerate(group["params"]):
        is_vector = not is_lazy(param) and param.dim() < 2
        if is_vector and not program_of(core.rule, group).takes_vectors:
            raise ValueError(no_matrix(core.rule, name_in(group, number, index), param.shape))


def _is_flattened(core: Core, groups: Sequence[dict[str, Any]]) -> bool:
    """Whether of the parameters that it was made for none is left, and nothing but vectors is in their place."""
    params = [param for group in groups for param in group["params"]]
    return (
        core.given.had_matrices
        and bool(params)
        and not any(is_lazy(param) or param.dim() > 1 or core.given.has(param) for param in params)
    )


def _are_apart(core: Core, groups: Sequence[dict[str, Any]]) -> bool:
    """Whether some of the groups have been taken out, or their parameters."""
    return len(groups) < core.given.groups or not all(group["params"] for group in groups)


def _kind_of(param: Tensor) -> str | None:
    if processes() == 1:
        return None
    if is_sharded(param):
        return "is a DTensor, of which other processes have parts"
    if getattr(param, "_fsdp_flattened", False) and param.dim() == 1:  # FSDP's mark
        return "belongs to FSDP, which gives each process a piece of several tensors laid end to end"
    return None


def _needs_of_shards(core: Core, group: Mapping[str, Any], param: Tensor) -> Iterator[str]:
    """What was asked for and cannot be had of this DTensor."""
    services, cut = core.services, cut_dimensions(param)
    if is_unreduced(param):
        yield "a step takes tensors that are added up (call redistribute() first)"
    if group.get("differentiable"):
        yield "differentiable=True needs all that autograd has seen"
    program = program_of(core.rule, group)
    if program.sees_matrix and cuts_of(param):
        name = core.rule.__name__
        if reason := why_apart(param):
            yield f"{name} looks at whole matrices, whose parts {reason}"
        elif not program.by_passes or program.joins_rows or program.square_states:
            yield f"{name} looks at whole columns or squares of matrices, or at all rows at once"
        elif program.last.sides and not has_rows(param):
            yield f"{name} looks at whole rows, which matrices of two dimensions have where they are cut along the first"
        if core.release is not None and program.matrices:
            yield RELEASED.format(name)
    if core.accumulator is not None:
        yield f"grads={core.accumulator.kind!r} sums the gradients of whole tensors"
    if group.get("states") == "8bit" and any(cut):
        yield 'states="8bit" has an exponent for every block of 128 elements of a row, and rows are cut'
    if group.get("weights") == "stochastic" and numbering_of(param) is None:
        yield 'weights="stochastic" draws a number for each element of the whole, and the rows of a part lie there at distances of several lengths'
    if services is not None and isinstance(services.clip, ClipAdaptive) and group.get("clip") is not False:
        yield f"clip={services.clip} looks at rows"


def _needs_tensors(core: Core, group: Mapping[str, Any], param: Tensor, is_flattened: bool) -> Iterator[str]:
    """What was asked for and needs whole tensors."""
    clip = core.services.clip if core.services is not None and group.get("clip") is not False else None
    program = program_of(core.rule, group)
    if program.sees_matrix:
        yield f"{core.rule.__name__} looks at whole matrices"
    if any(not one.of_all for one in program.sums.values()):
        yield f"{core.rule.__name__} adds up over all elements of a tensor"
    if core.accumulator is not None:
        yield f"grads={core.accumulator.kind!r} sums the gradients of whole tensors"
    if group.get("states") == "8bit":
        yield 'states="8bit" has an exponent for every block of 128 elements of a row'
    if isinstance(clip, ClipAdaptive) or (isinstance(clip, ClipNorm) and clip.per_parameter):
        yield f"clip={clip} looks at the norms of rows or tensors"
    if is_flattened and group.get("weights") is not None and param.dtype not in HALF_DTYPES:
        yield f"weights={group['weights']!r} keeps low bits of half-precision parameters"


def _needs_all(core: Core, group: Mapping[str, Any]) -> Iterator[str]:
    """What was asked for and needs the parameters of all processes."""
    services = core.services
    if couples(core.rule, group):
        yield f"{core.rule.__name__} adds up over all elements of all parameters"
    if services is None:
        return
    if services.clip is not None and not isinstance(services.clip, ClipValue) and group.get("clip") is not False:
        yield f"clip={services.clip} looks at norms"
    if services.nonfinite in ("skip", "raise"):
        yield f"nonfinite={services.nonfinite!r} decides for all parts at once"
    if services.telemetry is not None:
        yield "telemetry gathers norms"


def _exchanges(core: Core) -> Iterator[str]:
    """What was asked for and exchanges the weights of a model."""
    if core.has_modes:
        yield "eval() exchanges the model's weights"
    if core.services is not None and core.services.average is not None:
        yield "swap_average() exchanges the model's weights"
