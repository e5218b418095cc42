"""Parameters that are parts of larger tensors, and vectors: what needs the whole of them, or matrices, is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from steprule.engine import gpu
from steprule.engine.matrices import goes_with_view
from steprule.formats.parts import cuts_of, is_sharded, sides_cut
from steprule.optimizer.core import Core
from steprule.rule import Rule
from steprule.services.hooks import processes
from steprule.state import matrices_of, no_matrix
from steprule.step.listed import name_in
from steprule.tensors.copies import group_of_replicas, groups_of_flat, is_flattened
from steprule.tensors.exchange import why_apart
from steprule.tensors.memory import HALF_DTYPES, is_abstract
from steprule.tensors.numbering import numbering_of
from steprule.tensors.shard import is_unreduced
from steprule.trace.extent import KEPT
from steprule.trace.program import ROW
from steprule.trace.tracing import couples, program_of
from steprule.trace.turns import ranks

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
    is_replaced, group, across = core.is_made and _is_replaced(core, groups), groups[number], core.across
    if across is not None and across.has_model:
        for what, instead in _exchanges(core):
            raise ValueError(
                f"{what}, and in a ZeroRedundancyOptimizer it would exchange those of this process's parameters only: the "
                f"model here has the others', too. {instead}"
            )
    cut_over = groups_of_flat(group["params"]) if processes() > 1 else {}
    for index, param in enumerate(group["params"]):
        who = name_in(group, number, index)
        if across is not None and param in cut_over and not across.is_over(cut_over[param]):
            raise ValueError(
                f"process_group={across}, and FSDP gives {who} to them more than once, as replicas: each would be counted. Write "
                "process_group=model.process_group, which FSDP has cut it over, and none where FSDP does not cut"
            )
        if across is not None and across.knows(param):
            raise ValueError(
                f"process_group={across} and {who} do not go together: that is a DTensor, which knows its parts in other "
                "processes: leave out process_group"
            )
        kind = _FLAT if is_replaced else _kind_of(param)
        if kind is None:
            continue
        if is_sharded(param):
            needs = _needs_of_shards(core, group, param)
        else:
            needs = chain(_needs_tensors(core, group, param, is_replaced), _exchanges(core) if is_replaced else ())
        for what, instead in needs:
            raise ValueError(
                f"{what}, and {who} {kind}: a step here would see only its own part, and its result would be wrong. {instead}"
            )
        needing = next(_needs_all(core, group), None) if not is_sharded(param) else None
        if needing is not None and is_replaced and _are_apart(core, groups):
            raise ValueError(
                f"{needing}, and {who} {kind}, and other groups' parameters are not there: a trainer that steps one group after "
                "another, as DeepSpeed does, needs all parameters in one group"
            )
        is_all_here = param in cut_over and cut_over[param] is None
        if needing is not None and across is None and processes() > 1 and not is_all_here:
            raise ValueError(
                f"{needing}, and {who} {kind}: a step here would see only what this process has. Name the processes that have "
                "the rest, as in process_group=torch.distributed.group.WORLD"
            )


def check_spread(core: Core, groups: Sequence[dict[str, Any]]) -> None:
    """Raises where process_group has processes of which each has the same parameters.

    Raises:
        ValueError: it does, as DistributedDataParallel tells.
    """
    if core.across is None or core.across.has_model or processes() == 1:
        return
    group = group_of_replicas([param for group in groups for param in group["params"]])
    if group is not None and core.across.shares(group):
        raise ValueError(
            f"process_group={core.across}, and DistributedDataParallel has the same parameters in each of them, as replicas: each would "
            "be counted. Leave out process_group: it is for processes that have other parameters"
        )


def check_matrices(core: Core, groups: Sequence[dict[str, Any]], number: int) -> None:
    """Raises for vectors, where the rule takes matrices, and for views that make no sense; arguments as for `check_whole`.

    Raises:
        ValueError: there is one.
    """
    group = groups[number]
    if group.get("view") is not None:
        _check_view(core, group, number)
    takes_vectors = program_of(core.rule, group).takes_vectors
    for index, param in enumerate(() if takes_vectors else group["params"]):
        if not is_lazy(param) and param.dim() < 2:
            raise ValueError(no_matrix(core.rule.chosen(group), name_in(group, number, index), param.shape))


def check_nonzero(rule: type[Rule], states: Mapping[Tensor, Any], group: dict[str, Any], number: int) -> None:
    """Raises for parameters of zeros that are about to begin, where the rule has a reason.

    A part of a DTensor says nothing of the whole, and is not looked at.

    Args:
        rule: the rule.
        states: the optimizer's.
        group, number: a parameter group.

    Raises:
        ValueError: there is one.
    """
    for index, param in enumerate(group["params"] if rule.nonzero else ()):
        has_numbers = not (is_lazy(param) or is_abstract(param) or is_sharded(param))
        if has_numbers and not states.get(param) and param.numel() and not bool(param.detach().any()):
            raise ValueError(f"{name_in(group, number, index)} is 0 in all elements: {rule.nonzero}")


def _check_view(core: Core, group: dict[str, Any], number: int) -> None:
    """Raises if parameters cannot be seen so, or not by the rule."""
    view, rule = group["view"], core.rule.chosen(group)
    program = program_of(core.rule, group)
    if not isinstance(view, str):
        raise TypeError(f"view={view!r} of group {number}: must be the words of a view, as str(view) gives them")
    if not program.sees_matrix:
        raise ValueError(f"view={view!r} of group {number}: {rule.__name__} looks at elements, and sees no matrices")
    from steprule.layers.view import View

    try:
        words = str(View(view))
    except ValueError as error:
        raise ValueError(f"view={view!r} of group {number}: {error}") from None
    if view != words:
        raise ValueError(f"view={view!r} of group {number}: write {words!r}, so that the same view has the same words")
    has_number = any(name in rule.scalar_states for name in rule.states_for(group))
    for index, param in enumerate(group["params"]):
        try:
            shapes = [] if is_lazy(param) else matrices_of(param.shape, False, view)
        except ValueError as error:
            raise ValueError(f"{name_in(group, number, index)}: {error}") from None
        if has_number and (len(shapes) > 1 or any(len(shape) > 2 for shape in shapes)):
            raise ValueError(
                f"view={view!r} of {name_in(group, number, index)}: {rule.__name__} keeps one number for each tensor, and several "
                "matrices would have one each: give it them as parameters of their own, or see this one whole, in create_optimizer "
                'by roles={name: "matrix"}'
            )


def _is_replaced(core: Core, groups: Sequence[dict[str, Any]]) -> bool:
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
    if is_flattened(param) and param.dim() == 1:
        return "belongs to FSDP, which gives each process a piece of several tensors laid end to end"
    return None


_ELEMENTWISE = "Rules that look at each element by itself take such parameters"
_ONE_MATRIX = f'With view="flatten" in its group it is one matrix. {_ELEMENTWISE}'
_OTHER_STATES = 'Leave it out, or use states="bfloat16"'
_OTHER_CLIP = "Clip by the norm of all gradients, as in clip=1.0, or by value, as in clip=ClipValue(1.0)"
_LEAVE_OUT = "Leave it out"


def _needs_of_shards(core: Core, group: Mapping[str, Any], param: Tensor) -> Iterator[tuple[str, str]]:
    """What was asked for and cannot be had of this DTensor, and what to do instead."""
    services, has_cut_rows = core.services, any(getattr(cut.placement, "dim", 0) for cut in cuts_of(param))
    if is_unreduced(param):
        yield "a step takes tensors that are added up", "Call redistribute() first"
    if group.get("differentiable"):
        yield "differentiable=True needs all that autograd has seen", _LEAVE_OUT
    program = program_of(core.rule, group)
    if program.sees_matrix and cuts_of(param):
        rule = core.rule.chosen(group)
        name, shapes = rule.__name__, matrices_of(param.shape, rule.stacks, group.get("view"))
        if program.joins and (reason := why_apart(param)):
            yield f"{name} looks at whole matrices, whose parts {reason}", _ELEMENTWISE
        elif not program.has_squares and not goes_with_view(program, group.get("view"), shapes):
            needs = f"{name} needs more than products of its matrices, which view={group['view']!r} parts or turns"
            yield needs, "Leave out the view, or step this one by a rule that needs products only, such as Muon"
        elif not program.by_passes:
            yield f"{name} looks at whole matrices, and its formula is none that kernels compute", _ELEMENTWISE
        elif program.has_squares and not (gpu.serves(param.device) or param.device.type in ("cpu", "meta")):
            where = f"on CPUs and GPUs, and not on {param.device.type}"
            yield f"{name} has squares beside a matrix, and those of parts are computed {where}", _ELEMENTWISE
        elif (program.last.sides or program.has_squares) and rule.stacks and len(shapes[0]) > 2:
            beside = "has squares" if program.has_squares else "looks at rows and columns"
            yield f"{name} {beside} beside a stack of matrices", _ONE_MATRIX
        elif program.last.sides and param.dim() > 2 and has_cut_rows:
            rows = f"{name} looks at rows and columns, of which a tensor of {param.dim()} dimensions has stretches where it is cut along the first"
            yield rows, f"Cut it so, as fully_shard() does. {_ELEMENTWISE}"
        elif ranks(program, [KEPT[side] for side in sides_cut(param)]):
            yield f"{name} compares rows or columns with each other, of which processes have some each", _ELEMENTWISE
        if core.release is not None and program.joins:
            yield RELEASED.format(name), "Step after backward"
    if core.accumulator is not None:
        yield f"grads={core.accumulator.kind!r} sums the gradients of whole tensors", _LEAVE_OUT
    if group.get("states") == "8bit" and has_cut_rows:
        yield (
            'states="8bit" has an exponent for every block of 128 elements of a row, and rows are cut',
            f"{_OTHER_STATES}, or cut along the first dimension",
        )
    if group.get("weights") == "stochastic" and numbering_of(param) is None:
        yield (
            'weights="stochastic" draws a number for each element of the whole, and the rows of a part lie there at distances of several lengths',
            'Use weights="24bit" or "32bit"',
        )
    if services is not None and services.limited == ROW and group.get("clip") is not False:
        yield f"clip={services.clip} looks at rows", _OTHER_CLIP


def _needs_tensors(core: Core, group: Mapping[str, Any], param: Tensor, is_replaced: bool) -> Iterator[tuple[str, str]]:
    """What was asked for and needs whole tensors, and what to do instead."""
    clip = core.services.clip if core.services is not None and group.get("clip") is not False else None
    program = program_of(core.rule, group)
    if program.sees_matrix:
        yield f"{core.rule.chosen(group).__name__} looks at whole matrices", _ELEMENTWISE
    if any(not one.of_all for one in program.sums.values()):
        name = "cautious=True" if core.options["cautious"] else core.rule.chosen(group).__name__
        yield (
            f"{name} adds up over all elements of a tensor",
            "Leave it out" if core.options["cautious"] else _ELEMENTWISE,
        )
    if core.accumulator is not None:
        yield f"grads={core.accumulator.kind!r} sums the gradients of whole tensors", _LEAVE_OUT
    if group.get("states") == "8bit":
        yield 'states="8bit" has an exponent for every block of 128 elements of a row', _OTHER_STATES
    if clip is not None and (clip.axis == ROW or clip.per_parameter):
        yield f"clip={clip} looks at the norms of rows or tensors", _OTHER_CLIP
    if clip is not None and clip.norm_type <= 0:
        what = (
            "counts tensors" if clip.norm_type == 0 else "goes by the smallest elements, and some pieces end with zeros"
        )
        yield f"clip={clip} {what}", _OTHER_CLIP
    if is_replaced and group.get("weights") is not None and param.dtype not in HALF_DTYPES:
        yield f"weights={group['weights']!r} keeps low bits of half-precision parameters", _LEAVE_OUT


def _needs_all(core: Core, group: Mapping[str, Any]) -> Iterator[str]:
    """What was asked for and needs the parameters of all processes."""
    services = core.services
    if couples(core.rule, group):
        yield f"{core.rule.chosen(group).__name__} adds up over all elements of all parameters"
    if services is None:
        return
    if services.limited and group.get("clip") is not False:
        yield f"clip={services.clip} looks at norms"
    if services.nonfinite in ("skip", "raise"):
        yield f"nonfinite={services.nonfinite!r} decides for all parts at once"
    if services.telemetry is not None:
        yield "telemetry gathers norms"


def _exchanges(core: Core) -> Iterator[tuple[str, str]]:
    """What was asked for and exchanges the weights of a model, and what to do instead."""
    if core.has_modes:
        yield "eval() exchanges the model's weights", "Take a rule without eval(), such as AdamW"
    if core.services is not None and core.services.average is not None:
        yield "swap_average() exchanges the model's weights", "Leave out average"
