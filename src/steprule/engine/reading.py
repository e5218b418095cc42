"""The reading pass: sums over gradients that must be known before the first element changes.

Each stretch of 16,384 elements (or each row) is added up in float64 by itself, and the stretches in their order, so a
sum does not depend on threads or on what else is read.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from steprule.engine.cpu import PARALLEL_FROM
from steprule.engine.plan import Index, index_of
from steprule.engine.team import run_together
from steprule.formats import FORMATS, ITEM_SIZE
from steprule.kernels.cache import load_for_numba

STRETCH = 16384
"""Elements that are added up together."""
AT_ONCE = 65536
"""Elements a worker takes at a time, at least."""

_TEMPLATE = '''"""{title}

Written by steprule, compiled by Numba; safe to delete.
"""

from math import inf

from numba import cfunc, njit

from steprule.engine.machine import *
from steprule.engine.machine import EXACT, FAST
from steprule.formats.kernel import *

{accessors}


@njit(**FAST)
def read(size, at, power):
    """One stretch."""
{start}
    for i in range(size):
        x = {value}
{body}
    return {result}


@cfunc("void(int64)", cache=True, **EXACT)
def run(header):
    """Works through the table whose header is at this address, together with whoever else is called so."""
    plan = int64_array(header, 8)
    counter, pieces, power = plan[0], plan[1], float64_array(plan[6], 1)[0]
    table = int64_array(plan[2], (pieces, 5))
    address = int64_array(plan[3], plan[4])
    sums = float64_array(plan[5], 1 + plan[7])
    while True:
        piece = fetch_add(counter, 1)
        if piece >= pieces:
            return
        tensor, start, size, stretch, place = table[piece, 0], table[piece, 1], table[piece, 2], table[piece, 3], table[piece, 4]
        end = start + size
        while start < end:
            sums[place] = read(min(stretch, end - start), address[tensor] + {item_size} * start, power)
            start += stretch
            place += 1
'''

# How each norm adds up: what to start from, one element and the result.
_KINDS = {
    "square": ("total = 0.0", "total = add_square(total, float64(x))", "total"),
    "abs": ("total = 0.0", "total = add_up(total, float64(abs(x)))", "total"),
    "largest": ("top = uint32(0)", "top = larger_magnitude(top, x)", "float64_of(top)"),
    "largest64": ("top = 0.0", "top = top if (top > abs(x)) | (top != top) else abs(x)", "top"),
    "smallest": ("low = inf", "low = low if (low < abs(x)) | (low != low) else float64(abs(x))", "low"),
    "nonzero": ("total = 0.0", "total = add_up(total, 1.0 if x != 0 else 0.0)", "total"),
    "power": ("total = 0.0", "total = add_up(total, float64(abs(x)) ** power)", "total"),
}


def kind_of(norm_type: float) -> str:
    """Which sum a p-norm is made of."""
    return {2.0: "square", 1.0: "abs", math.inf: "largest", -math.inf: "smallest", 0.0: "nonzero"}.get(
        norm_type, "power"
    )


def write_reading(kind: str, dtype: str, zero: bool, check: bool) -> str:
    """The source of a reading kernel.

    Args:
        kind: a key of what `kind_of` returns.
        dtype: of the elements.
        zero: read what is not finite as 0.
        check: make a sum NaN where an element is not finite, whatever the norm.
    """
    start, one, result = _KINDS["largest64" if kind == "largest" and dtype == "float64" else kind]
    value = FORMATS[dtype].load.format("load(at, i)")
    body = []
    if zero:
        body.append(f"x = x if abs(x) < inf else {'float64' if dtype == 'float64' else 'float32'}(0)")
    body.append(one)
    hidden = check and kind in ("smallest", "nonzero", "power")
    if hidden:
        body.append("wrong = add_up(wrong, float64(x - x))")
        start, result = f"{start}\n    wrong = 0.0", f"{result} + wrong"
    return _TEMPLATE.format(
        title=f"Sums of {dtype}: {kind}.",
        accessors=f"load, _ = array({dtype!r}, 0)",
        start=f"    {start}",
        value=value,
        body="\n".join(f"        {line}" for line in body),
        result=result,
        item_size=ITEM_SIZE[dtype],
    )


@cache
def _kernel(kind: str, dtype: str, zero: bool, check: bool) -> int:
    module = load_for_numba(f"read_{kind}", write_reading(kind, dtype, zero, check))[1]
    return int(module.run.address)


class Reading:
    """Reads one operand of many tensors.

    Args:
        addresses: int64, the address of each tensor's first element; read anew in every run.
        sizes: each tensor's number of elements.
        dtype: of all of them.
        norm_type: the p of the norm that is wanted.
        rows: for a sum for each row, each tensor's elements in a row; otherwise None.
        zero, check: see `write_reading`.

    Attributes:
        latest: what the last run has returned.
    """

    latest: np.ndarray

    def __init__(
        self,
        addresses: np.ndarray,
        sizes: Sequence[int],
        dtype: str,
        norm_type: float = 2.0,
        rows: Sequence[int] | None = None,
        zero: bool = False,
        check: bool = False,
    ) -> None:
        self._kind = kind_of(norm_type)
        self._count, self._size = len(sizes), sum(sizes)
        self._addresses = addresses
        self._power = np.array([norm_type], np.float64)
        self._next = np.zeros(8, np.int64)
        handed_out = max(AT_ONCE, self._size // 128)  # long stretches stream faster
        pieces, owners, place = [], [], 0
        for tensor, size in enumerate(sizes):
            stretch = rows[tensor] if rows else STRETCH
            at_once = max(handed_out // max(stretch, 1), 1) * stretch
            for start in range(0, size, max(at_once, 1)):
                length = min(at_once, size - start)
                pieces.append((tensor, start, length, stretch, place))
                place += -(-length // stretch)
            owners += [tensor] * (-(-size // stretch) if size else 0)
        self._pieces = np.array(pieces[::-1], np.int64).reshape(-1, 5)  # what is read last is in the cache for the step
        self._of_all = self._pieces.copy(), np.array(owners, np.int64)
        self._owners = self._of_all[1]
        self._active: Index = slice(None)
        self._is_one_each = owners == list(range(self._count))
        self._sums = np.zeros(place + 1, np.float64)
        header = [self._next, len(pieces), self._pieces, addresses, self._count, self._sums, self._power, place]
        self._header = np.array([x.ctypes.data if isinstance(x, np.ndarray) else x for x in header], np.int64)
        self._header_at = self._header.ctypes.data
        self._address = _kernel(self._kind, dtype, zero, check)
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self._address)

    def select(self, active: np.ndarray) -> None:
        """Reads some tensors only from now on.

        Args:
            active: whether each tensor is one of them.
        """
        pieces, owners = self._of_all
        pieces = pieces[active[pieces[:, 0]]]
        self._pieces[: len(pieces)] = pieces
        self._header[1] = len(pieces)
        self._size, self._count = int(pieces[:, 2].sum()), int(active.sum())
        chosen = active[owners]
        self._active, self._owners = index_of(chosen), (np.cumsum(active) - 1)[owners[chosen]]
        self._is_one_each = self._owners.tolist() == list(range(self._count))

    def run(self, threads: Callable[[], int]) -> np.ndarray:
        """The sums of all stretches or rows, in order; overwritten by the next run."""
        self._next[0] = 0
        if self._size < PARALLEL_FROM or (workers := min(threads(), int(self._header[1]))) == 1:
            self._run(self._header_at)
        else:
            run_together(self._address, self._header_at, workers)
        self.latest = self._sums[:-1][self._active]
        return self.latest

    def by_tensor(self, threads: Callable[[], int]) -> np.ndarray:
        """Each tensor's sum (or largest or smallest absolute value); overwritten by the next run."""
        sums = self.run(threads)
        if self._is_one_each:
            return sums
        if self._kind in ("largest", "smallest"):
            result = np.full(self._count, 0.0 if self._kind == "largest" else np.inf)
            ufunc = np.maximum if self._kind == "largest" else np.minimum
            with np.errstate(invalid="ignore"):
                ufunc.at(result, self._owners, sums)
            return result
        return np.bincount(self._owners, sums, self._count)
