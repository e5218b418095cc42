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
        if issubclass(type(one), Tensor) and one.is_leaf and one.grad is not None:
            if is_sharded(one):
                found[one.shape] += 1
            elif getattr(one, "_is_flat_param", False):  # FSDP1's
                found.update(one._shapes)
    return bool(wanted) and not wanted - found
