"""What FSDP and DistributedDataParallel have of parameters in other places: whole copies that a model computes with, and replicas."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from steprule.formats.parts import is_sharded
from steprule.tensors.living import living

_STATES, _FSDP = "torch.distributed._composable_state", "torch.distributed.fsdp"  # imported by those who use them


def is_flattened(param: Tensor) -> bool:
    """Whether FSDP1 has marked a parameter as a piece of several tensors laid end to end."""
    return bool(getattr(param, "_fsdp_flattened", False))


def drop_copies(params: Sequence[Tensor]) -> None:
    """Has models of FSDP2 gather these parameters anew before they compute with them: what they have is no longer right.

    FSDP keeps the copy of its root module after a forward pass without gradients, and those of others if it is told to. It
    drops copies by itself in backward. No process waits for another here.
    """
    if not any(map(is_sharded, params)) or _STATES not in sys.modules or _FSDP not in sys.modules:
        return
    for module in list(sys.modules[_STATES]._module_state_mapping):
        if isinstance(module, sys.modules[_FSDP].FSDPModule):
            gathered = _gathered(module._get_fsdp_state())
            if gathered and not set(params).isdisjoint(gathered):
                module.reshard()


def _gathered(state: Any) -> list[Tensor]:
    """The parameters of one module of FSDP2 of which it has copies."""
    groups = getattr(state, "_fsdp_param_groups", None)
    groups = [state._fsdp_param_group] if groups is None else groups  # older torch has one, or none
    whole = [group for group in groups if group is not None and not group.is_sharded]
    return [one.sharded_param for group in whole for one in group.fsdp_params]


def drop_flat_copies(params: Sequence[Tensor]) -> None:
    """The same for FSDP1, of whose modules nobody keeps a list."""
    for handle in _flat_handles(params):
        if handle.uses_sharded_strategy and not handle.needs_unshard():
            handle.reshard(True)
            handle.post_reshard()


def groups_of_flat(params: Sequence[Tensor]) -> dict[Tensor, Any]:
    """The process group over which FSDP1 has cut each of these parameters; None where every process has all of it."""
    return {
        param: handle.process_group if handle.uses_sharded_strategy else None
        for handle in _flat_handles(params)
        for param in (handle.flat_param, *(handle.flat_param._params or ()))
    }


def group_of_replicas(params: Sequence[Tensor]) -> Any:
    """The process group of a DistributedDataParallel that averages no other gradients than of these; None where there is none."""
    own = set(params)
    for one in living(nn.parallel.DistributedDataParallel):
        averaged = [param for param in one._module_parameters if param.requires_grad]
        if averaged and own.issuperset(averaged):
            return one.process_group
    return None


def _flat_handles(params: Sequence[Tensor]) -> Iterator[Any]:
    """What FSDP1 has to handle these parameters."""
    if not any(map(is_flattened, params)):
        return
    own, made = set(params), sys.modules[_FSDP].FullyShardedDataParallel
    for handle in [one._handle for one in living(made)]:
        if handle is not None and not own.isdisjoint([handle.flat_param, *(handle.flat_param._params or ())]):
            yield handle
