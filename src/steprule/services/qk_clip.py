"""QK-clip: attention logits that are too large shrink the matrices of queries and keys, after a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.formats.parts import is_sharded
from steprule.services.hooks import processes

Rows = Tensor | tuple[Tensor, slice]
"""A weight or bias whose rows are heads, or such rows of one."""


class QKClip:
    """Shrinks queries and keys of heads whose attention logits exceed a limit: Kimi Team 2025, arXiv:2507.20534, algorithm 1.

    After each step of the optimizer, a head whose largest logit ``S`` was above ``tau`` since the last one has its query and key matrices
    multiplied by ``√(tau / S)`` each, so that the same inputs would now give ``tau``. It goes with any optimizer of torch's interface::

        clip = QKClip(optimizer)
        attention.seen = clip.watch(attention.q.weight, attention.k.weight, heads=8)
        ...
        self.seen(logits)  # in the forward pass of the attention, before the softmax

    Where several heads of queries share a head of keys, the keys get the largest of their factors and each head of queries the rest of
    its own, so that nothing grows. Processes that train together use the largest logits of all.

    Args:
        optimizer: after whose steps it acts. Others that step the same model need no hook.
        tau: the limit, above 0. Default: 100.

    Attributes:
        tau: the limit, which may be changed.
        largest: for each watched attention the largest logits of the last step by head, in the order of `watch`.

    Raises:
        ValueError: tau is out of range.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tau: float = 100.0) -> None:
        if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not 0 < tau < math.inf:
            raise ValueError(f"Invalid tau value: {tau!r}; it must be a finite number above 0")
        self.tau = tau
        self.largest: list[Tensor] = []
        self._optimizer = optimizer
        self._watched: list[_Watched] = []
        optimizer.register_step_post_hook(lambda *_: self.apply())

    def watch(
        self, query: Rows | Sequence[Rows], key: Rows | Sequence[Rows], heads: int, key_heads: int | None = None
    ) -> Callable[[Tensor], None]:
        """Takes note of an attention.

        Args:
            query: the weight that makes queries, of shape (heads * size, inputs); a list of it and its bias; of a fused matrix a pair
                of it and the slice of its rows.
            key: the same of keys.
            heads: how many heads the queries have.
            key_heads: how many the keys have, a divisor of heads. Default: as many.

        Returns:
            A function to be called in each forward pass with the logits, of shape (..., heads, queries, keys), or the largest of them
            by head, of shape (heads,).

        Raises:
            ValueError: rows are not those of heads, or a parameter is not the optimizer's, is cut over processes, or has low bits
                beside it (weights="24bit" or "32bit"), which would not be multiplied.
        """
        own = _Watched(_listed(query), _listed(key), heads, key_heads if key_heads is not None else heads)
        groups = {param: group for group in self._optimizer.param_groups for param in group["params"]}
        for param, _ in (*own.query, *own.key):
            who = f"a parameter of shape {tuple(param.shape)}"
            if param not in groups:
                raise ValueError(f"{who} is not one of the optimizer's, after whose steps it would be multiplied")
            if groups[param].get("weights") in ("24bit", "32bit"):
                raise ValueError(
                    f"{who} has weights={groups[param]['weights']!r}, whose low bits QKClip would not multiply"
                )
            if is_sharded(param):
                raise ValueError(f"{who} is a DTensor, whose heads may be cut: QKClip takes whole tensors")
        self._watched.append(own)
        return own.see

    @torch.no_grad()
    def apply(self) -> None:
        """Multiplies by what logits since the last call ask for, and forgets them. The optimizer's step calls it."""
        found = [one.seen for one in self._watched]
        if processes() > 1 and found:
            every = torch.cat(found)
            torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MAX)
            found = list(torch.split(every, [len(one) for one in found]))
        self.largest = found
        for one, largest in zip(self._watched, found, strict=True):
            one.shrink(largest, self.tau)


class _Watched:
    """One attention: its parameters, and the largest logits since the last step."""

    def __init__(
        self, query: list[tuple[Tensor, slice]], key: list[tuple[Tensor, slice]], heads: int, key_heads: int
    ) -> None:
        if heads < 1 or key_heads < 1 or heads % key_heads:
            raise ValueError(f"heads={heads!r} must be a multiple of key_heads={key_heads!r}, both at least 1")
        self.query, self.key, self.heads, self.key_heads = query, key, heads, key_heads
        for what, pairs, count in (("query", query, heads), ("key", key, key_heads)):
            for param, rows in pairs:
                size = len(param.detach()[rows])
                if not size or size % count:
                    raise ValueError(
                        f"{what}: {size} rows of a parameter of shape {tuple(param.shape)} are not those of {count} heads"
                    )
        self.forget()

    def forget(self) -> None:
        """No logits yet."""
        self.seen = torch.full((self.heads,), -math.inf, device=self.query[0][0].device)

    @torch.no_grad()
    def see(self, logits: Tensor) -> None:
        """Takes note of logits."""
        if logits.ndim == 2 or logits.shape[max(logits.ndim - 3, 0)] != self.heads:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} are neither (..., heads, queries, keys) nor (heads,), with {self.heads} heads"
            )
        largest = logits.detach() if logits.ndim == 1 else logits.detach().movedim(-3, 0).flatten(1).amax(1)
        self.seen = torch.maximum(self.seen, largest.to(self.seen))

    def shrink(self, largest: Tensor, tau: float) -> None:
        """Multiplies."""
        is_above = (largest > tau) & (largest < math.inf)
        factor = torch.where(is_above, tau / torch.where(is_above, largest, 1.0), 1.0)
        shared = factor.reshape(self.key_heads, -1).amax(1).sqrt()
        _multiply(self.key, shared)
        _multiply(self.query, factor / shared.repeat_interleave(self.heads // self.key_heads))
        self.forget()


def _listed(given: Rows | Sequence[Rows]) -> list[tuple[Tensor, slice]]:
    """Pairs of a parameter and its rows."""
    is_one = isinstance(given, Tensor) or (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], slice))
    every: Any = [given] if is_one else given
    return [(one, slice(None)) if isinstance(one, Tensor) else one for one in every]


def _multiply(pairs: Sequence[tuple[Tensor, slice]], factors: Tensor) -> None:
    """Multiplies the rows of each head by its factor."""
    for param, rows in pairs:
        own = torch.unflatten(param[rows], 0, (len(factors), -1))
        own.mul_(factors.to(own).reshape(-1, *(1 for _ in own.shape[1:])))
