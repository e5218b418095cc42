"""QK-clip: attention logits that are too large shrink the matrices of queries and keys, after a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.formats.parts import is_sharded
from steprule.services.hooks import processes
from steprule.tensors.state import encode_weight, read_state, weight_arrays

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
    its own, so that nothing grows. Rows that several attentions use, or that make both queries and keys, are multiplied once, by the
    smallest factor that is asked for. Processes that train together use the largest logits of all.

    After a step that was not taken, as with ``nonfinite="skip"`` or a GradScaler, weights stay as they are and the next step that is
    taken counts its logits too. A logit of inf counts as the largest number of its dtype. A head that has a NaN in a call is left out of
    that call.

    Args:
        optimizer: after whose steps it acts. Others that step the same model need no hook.
        tau: the limit, above 0. Default: 100.

    Attributes:
        largest: for each watched attention the largest logits of the last step by head, in the order of `watch`.

    Raises:
        TypeError: optimizer is none.
        ValueError: tau is out of range; optimizer has a QKClip; or its next step would not begin with the weights that QKClip leaves:
            with lookahead, or where the rule says so by ``refuses``, as Schedule-Free rules, MADGRAD and hyperball do.
            What other libraries' optimizers keep beside the weights is not known.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tau: float = 100.0) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be an optimizer, not {optimizer!r}")
        self.tau = tau
        self.largest: list[Tensor] = []
        self._optimizer = optimizer
        self._watched: list[_Watched] = []
        for one in _within(optimizer):
            if any(
                isinstance(getattr(hook, "__self__", None), QKClip) for hook in one._optimizer_step_post_hooks.values()
            ):
                raise ValueError(
                    f"{type(one).__name__} has a QKClip, and two might multiply a weight twice: call watch() of that one"
                )
            if hasattr(one, "_core") and one._core.rule.refuses:
                raise ValueError(f"{type(one).__name__} does not go with QKClip: {one._core.rule.refuses}")
        optimizer.register_step_post_hook(self._after)

    @property
    def tau(self) -> float:
        """The limit. It may be set to another one, above 0."""
        return self._tau

    @tau.setter
    def tau(self, tau: float) -> None:
        if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not 0 < tau < math.inf:
            raise ValueError(f"Invalid tau value: {tau!r}; it must be a finite number above 0")
        self._tau = tau

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
            by head, of shape (heads,). Call it in training alone: logits of an evaluation count as any other. It takes nothing from
            tensors that are empty or on the meta device.

        Raises:
            TypeError: query or key is no weight, pair or list of these, or heads or key_heads is no whole number.
            ValueError: rows are not those of heads, or a parameter is not the optimizer's, is cut over processes, or has low bits
                (weights="24bit" or "32bit") that only one process has (process_group).
        """
        own = _Watched(_listed("query", query), _listed("key", key), heads, heads if key_heads is None else key_heads)
        groups = {param: group for group in self._optimizer.param_groups for param in group["params"]}
        spreads = any(
            hasattr(one, "optim") or (hasattr(one, "_core") and one._core.across is not None)
            for one in _within(self._optimizer)
        )
        for param, _ in (*own.query, *own.key):
            who = f"a parameter of shape {tuple(param.shape)}"
            if param not in groups:
                raise ValueError(f"{who} is not one of the optimizer's, after whose steps it would be multiplied")
            if spreads and groups[param].get("weights") in ("24bit", "32bit"):
                raise ValueError(
                    f"{who} has weights={groups[param]['weights']!r}, and with process_group one process alone has the low bits: "
                    "QKClip would multiply them there only"
                )
            if is_sharded(param):
                raise ValueError(f"{who} is a DTensor, whose heads may be cut: QKClip takes whole tensors")
        self._watched.append(own)
        return own.see

    def _after(self, *_: Any) -> None:
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Multiplies by what logits since the last call ask for, and forgets them. The optimizer's step calls it."""
        found = [one.seen for one in self._watched]
        if processes() > 1 and found:
            every = torch.cat(found)
            torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MAX)
            found = list(torch.split(every, [len(one) for one in found]))
        self.largest = found
        refused = _refused(self._optimizer)
        if refused is True:
            return
        factors: dict[Tensor, Tensor] = {}
        for one, largest in zip(self._watched, found, strict=True):
            one.ask(largest, self.tau, factors)
            one.forget(refused)
        for param, factor in factors.items():
            if refused is not False:
                factor = torch.where(refused.to(factor.device), 1.0, factor)
            _multiply(param, self._optimizer.state.get(param, {}), factor)


class _Watched:
    """One attention: its parameters, and the largest logits since the last step that was taken."""

    def __init__(
        self, query: list[tuple[Tensor, slice]], key: list[tuple[Tensor, slice]], heads: int, key_heads: int
    ) -> None:
        for what, count in (("heads", heads), ("key_heads", key_heads)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{what} must be a whole number, not {count!r}")
        if heads < 1 or key_heads < 1 or heads % key_heads:
            raise ValueError(f"heads={heads!r} must be a multiple of key_heads={key_heads!r}, both at least 1")
        self.query, self.key, self.heads, self.key_heads = query, key, heads, key_heads
        for what, pairs, count in (("query", query, heads), ("key", key, key_heads)):
            for param, rows in pairs:
                there = len(param) if param.ndim else 0
                size = len(range(there)[rows])
                if not size or size % count or (rows.stop or 0) > there:
                    raise ValueError(
                        f"{what}: rows {rows.start}:{rows.stop} of a parameter of shape {tuple(param.shape)} are not those of {count} heads"
                    )
        self.seen = torch.full((heads,), -math.inf, device=query[0][0].device)

    def forget(self, refused: Any) -> None:
        """No logits yet, unless a step was refused."""
        none = torch.full_like(self.seen, -math.inf)
        self.seen = none if refused is False else torch.where(refused.to(none.device), self.seen, none)

    @torch.no_grad()
    def see(self, logits: Tensor) -> None:
        """Takes note of logits."""
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            raise TypeError(
                f"logits must be a tensor of floating-point numbers, not {getattr(logits, 'dtype', logits)!r}"
            )
        if logits.ndim in (0, 2) or logits.shape[max(logits.ndim - 3, 0)] != self.heads:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} are neither (..., heads, queries, keys) nor (heads,), with {self.heads} heads"
            )
        if logits.is_meta or not logits.numel():
            return
        largest = logits if logits.ndim == 1 else logits.movedim(-3, 0).flatten(1).amax(1)
        most = min(torch.finfo(logits.dtype).max, torch.finfo(self.seen.dtype).max)
        self.seen = torch.maximum(self.seen, largest.to(self.seen).nan_to_num(-math.inf, most, -math.inf))

    def ask(self, largest: Tensor, tau: float, factors: dict[Tensor, Tensor]) -> None:
        """Makes the factors of rows not larger than it takes to bring the largest logits to tau."""
        factor = torch.where(largest > tau, tau / largest, 1.0).clamp_min(torch.finfo(largest.dtype).tiny)
        shared = factor.reshape(self.key_heads, -1).amax(1).sqrt()
        rest = factor / shared.repeat_interleave(self.heads // self.key_heads)
        for pairs, asked in ((self.key, shared), (self.query, rest)):
            for param, rows in pairs:
                every = factors.setdefault(param, torch.ones(len(param), dtype=asked.dtype, device=param.device))
                own = torch.unflatten(every[rows], 0, (len(asked), -1))
                own.copy_(torch.minimum(own, asked.to(own)[:, None]))


def _listed(what: str, given: Rows | Sequence[Rows]) -> list[tuple[Tensor, slice]]:
    """Pairs of a parameter and its rows."""
    is_one = not isinstance(given, (list, tuple)) or (len(given) == 2 and isinstance(given[1], slice))
    every: Any = [given] if is_one else given
    pairs = [(one, slice(None)) if isinstance(one, Tensor) else one for one in every]
    for one in pairs or [every]:
        if not (isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], Tensor) and isinstance(one[1], slice)):
            raise TypeError(
                f"{what} must be a weight, a pair of one and the slice of its rows, or a list of these, not {one!r}"
            )
    return pairs


def _within(optimizer: Any) -> list[Any]:
    """An optimizer and those that it steps, as Together and ZeroRedundancyOptimizer do."""
    inner = getattr(optimizer, "optimizers", None) or ([optimizer.optim] if hasattr(optimizer, "optim") else [])
    return [optimizer, *(found for one in inner for found in _within(one))]


def _refused(optimizer: torch.optim.Optimizer) -> Any:
    """Whether an optimizer has not taken its last step, or one of several has not; a tensor where only a device knows."""
    refused: Any = False
    for one in _within(optimizer):
        services = one._core.services if hasattr(one, "_core") else None
        if services is None:
            found = getattr(one, "found_inf", None)  # a GradScaler's, which torch's fused optimizers look at
            refused = refused | (found is not None and found != 0)
        elif services.nonfinite != "zero":
            refused = refused | services.found
    return refused


def _multiply(param: Tensor, state: Mapping[str, Any], factor: Tensor) -> None:
    """Multiplies each row of a weight by its factor, with its low bits."""
    arrays = weight_arrays(param, state)
    factor = factor.reshape(-1, *(1 for _ in param.shape[1:]))
    if len(arrays) == 1:
        arrays[""].mul_(factor)
        return
    wide = read_state({**state, "param": arrays[""]}, "param", param.shape) * factor
    for suffix, array in encode_weight(wide, arrays[""], state).items():
        arrays[suffix].copy_(array)
