"""Parameters whose place in a model others have taken after an optimizer was made."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from steprule.tensors.living import living

_homes: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
"""Where a parameter was found, by its id: a look at all objects takes long, and one there takes nothing."""


def check_not_replaced(params: Iterable[Tensor]) -> None:
    """Raises where none of an optimizer's parameters has a gradient, if modules have others in their place.

    Args:
        params: all.

    Raises:
        RuntimeError: they have.
    """
    every = [param for param in params if param.requires_grad]
    if not every or any(param.grad is not None for param in every) or any(map(_is_at_home, every)):
        return
    if not _are_replaced(every):
        return
    gc.collect()  # there may be models that nobody can reach
    if _are_replaced(every):
        raise RuntimeError(
            "no parameter of this optimizer has a gradient or is a module's, and modules have others of the same shapes, which have "
            "gradients and no optimizer: fully_shard(), parallelize_module(), FullyShardedDataParallel and "
            "load_state_dict(assign=True) put such ones in the place of parameters. Make the optimizer afterwards, for "
            "model.parameters(); it takes the state_dict() of this one"
        )


def _is_at_home(param: Tensor) -> bool:
    """Whether a parameter is where it was found."""
    if id(param) not in _homes:
        return False
    module, name = _homes[id(param)]
    return getattr(module(), "_parameters", {}).get(name) is param


def _are_replaced(params: Iterable[Tensor]) -> bool:
    """Whether modules have gradients of tensors like all of these, which are no optimizer's, and none of these.

    Nothing knows the module that a parameter was in.
    """
    own = {id(param): param.shape for param in params}
    here: dict[int, Tensor] = {}
    owned: set[int] = set()
    for one in living(nn.Module, torch.optim.Optimizer):
        if not isinstance(one, nn.Module):
            owned |= {id(x) for group in one.__dict__.get("param_groups", ()) for x in group["params"]}
            continue
        for name, x in one.__dict__.get("_parameters", {}).items():
            if (key := id(x)) in own:
                _homes[key] = weakref.ref(one, lambda _, key=key: _homes.pop(key, None)), name  # type: ignore[misc]
                return False
            if isinstance(x, Tensor):
                here[key] = x
    wanted = Counter(own.values())
    found: Counter[torch.Size] = Counter()
    for key, x in here.items():
        if key not in owned and x.is_leaf and x.grad is not None:
            found.update(getattr(x, "_shapes", [x.shape]))  # FSDP1's are several
    return not wanted - found
