"""Parameters whose place in a model others have taken after an optimizer was made."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from steprule.formats.parts import is_sharded


def are_replaced(params: Iterable[Tensor]) -> bool:
    """Whether there are gradients of parts of tensors like all of these, none of which has one.

    A module knows its new parameters, and nothing knows the module: so all objects are looked at, which takes milliseconds.
    """
    wanted = Counter(param.shape for param in params)
    found: Counter[torch.Size] = Counter()
    for one in gc.get_objects():
        if not issubclass(type(one), Tensor):
            continue
        is_flat = getattr(one, "_is_flat_param", False)  # FSDP1's
        if (
            (is_flat or is_sharded(one)) and one.is_leaf and one.grad is not None
        ):  # others may be views that are not valid
            found.update(one._shapes if is_flat else [one.shape])
    return bool(wanted) and not wanted - found
