"""Parameters that are parts of larger tensors, and vectors: what needs the whole of them, or matrices, is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from steprule.formats.parts import is_sharded
from steprule.optimizer.core import Core
from steprule.services.clip import ClipAdaptive, ClipValue
from steprule.services.hooks import processes
from steprule.state import no_matrix
from steprule.step.listed import name_in
from steprule.tensors.shard import cut_dimensions, is_unreduced
from steprule.trace.tracing import program_of

_FLAT = "has been put in the place of this optimizer's parameters and is flat, as DeepSpeed's and other pieces of a model are"


def check_whole(core: Core, groups: Sequence[dict[str, Any]], number: int) -> None:
    """Raises if parameters are parts, and something that was asked for needs what other processes have of them.

    Args:
        core: the optimizer's.
        groups: all.
        number: which of them to look at.

    Raises:
        ValueError: something needs the whole.
    """
    is_flattened = core.is_made and _is_flattened(core, groups)
    group = groups[number]
    for index, param in enumerate(group["params"]):
        kind = _FLAT if is_flattened else _kind_of(param)
        needs = _needs_of_shards(core, group, param) if is_sharded(param) else _needs_whole(core, group, is_flattened)
        needing = next(needs, None) if kind else None
        if needing is not None:
            raise ValueError(
                f"{needing}, and {name_in(group, number, index)} {kind}: a step here would see only its own part, and its "
                "result would be wrong. Rules that look at each element by itself take such parameters"
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
    if program_of(core.rule, group).sees_matrix and cut:
        yield f"{core.rule.__name__} looks at whole matrices"
    if is_unreduced(param):
        yield "a step takes tensors that are added up (call redistribute() first)"
    if core.accumulator is not None:
        yield f"grads={core.accumulator.kind!r} sums the gradients of whole tensors"
    if group.get("states") == "8bit" and any(cut):
        yield 'states="8bit" has an exponent for every block of 128 elements of a row, and rows are cut'
    if group.get("weights") == "stochastic" and cut:
        yield 'weights="stochastic" draws a number for each element of the whole'
    if services is not None and isinstance(services.clip, ClipAdaptive) and group.get("clip") is not False:
        yield f"clip={services.clip} looks at rows"


def _needs_whole(core: Core, group: Mapping[str, Any], is_flattened: bool) -> Iterator[str]:
    """What was asked for and needs whole tensors."""
    services = core.services
    program = program_of(core.rule, group)
    if program.sees_matrix:
        yield f"{core.rule.__name__} looks at whole matrices"
    if program.sums:
        yield f"{core.rule.__name__} adds up over all elements of a tensor"
    if core.accumulator is not None:
        yield f"grads={core.accumulator.kind!r} sums the gradients of whole tensors"
    if group.get("states") == "8bit":
        yield 'states="8bit" has an exponent for every block of 128 elements of a row'
    if is_flattened and core.has_modes:
        yield "eval() exchanges the model's weights"
    if services is None:
        return
    if services.clip is not None and not isinstance(services.clip, ClipValue) and group.get("clip") is not False:
        yield f"clip={services.clip} looks at norms"
    if services.nonfinite in ("skip", "raise"):
        yield f"nonfinite={services.nonfinite!r} decides for all parts at once"
    if services.telemetry is not None:
        yield "telemetry gathers norms"
    if is_flattened and services.average is not None:
        yield "swap_average() exchanges the model's weights"
