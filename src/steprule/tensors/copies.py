"""Whole copies that FSDP keeps of weights: a model computes with such a copy, also where the parts have changed since."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from steprule.formats.parts import is_sharded

_STATES, _FSDP = "torch.distributed._composable_state", "torch.distributed.fsdp"  # imported by those who use them


def is_flattened(param: Tensor) -> bool:
    """Whether FSDP1 has marked a parameter as a piece of several tensors laid end to end."""
    return bool(getattr(param, "_fsdp_flattened", False))


def drop_copies(params: Iterable[Tensor]) -> None:
    """Has models of FSDP gather these parameters anew before they compute with them: what they have is no longer right.

    FSDP keeps the copy of its root module after a forward pass without gradients, and those of others if it is told to. It
    drops copies by itself in backward. No process waits for another here.
    """
    own = set(params)
    if any(map(is_sharded, own)) and _STATES in sys.modules and _FSDP in sys.modules:
        for module in list(sys.modules[_STATES]._module_state_mapping):
            is_fsdp2 = isinstance(module, sys.modules[_FSDP].FSDPModule)
            if is_fsdp2 and not own.isdisjoint(_sharded(module._get_fsdp_state())):
                module.reshard()
    if any(map(is_flattened, own)):
        made = sys.modules[_FSDP].FullyShardedDataParallel  # of which nobody keeps a list
        for handle in [one._handle for one in gc.get_objects() if issubclass(type(one), made)]:
            has_copy = handle is not None and handle.uses_sharded_strategy and not handle.needs_unshard()
            if has_copy and not own.isdisjoint([handle.flat_param, *(handle.flat_param._params or ())]):
                handle.reshard(True)
                handle.post_reshard()


def _sharded(state: Any) -> Iterator[Tensor]:
    """The parameters of one module of FSDP2."""
    groups = getattr(state, "_fsdp_param_groups", None)
    for group in [state._fsdp_param_group] if groups is None else groups:  # older torch has one
        yield from (one.sharded_param for one in (group.fsdp_params if group is not None else ()))
