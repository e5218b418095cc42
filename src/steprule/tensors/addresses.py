"""Where many tensors lie, which one call reads: Python takes several times as long for each as all of that."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from steprule.kernels.cache import load_for_numba

_CODE = '''"""Reads where tensors lie."""

from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.core.typing import signature
from numba.extending import intrinsic

from steprule.engine.machine import EXACT, int64s


@intrinsic
def call(typing_context, function, arguments):
    """What the C function at an address returns; arguments and result are addresses or int64."""

    def codegen(context, builder, sig, args):
        given = cgutils.unpack_tuple(builder, args[1])
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)] * len(given))
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), given)

    return signature(types.int64, types.int64, arguments), codegen


@cfunc("int64(int64, int64)", cache=True, **EXACT)
def moved(header, tensors):
    """Reads all addresses; the number of tensors up to the last that has another one than before."""
    numbers = int64s(header)
    item, address, before, now = numbers[1], numbers[2], int64s(numbers[3]), int64s(numbers[4])
    last = 0
    for i in range(numbers[0]):
        now[i] = call(address, (call(item, (tensors, i)),))
        if now[i] != before[i]:
            last = i + 1
    return last
'''


class Addresses:
    """Where tensors lie.

    Args:
        tensors: all of them.

    Attributes:
        at: the address of each one's first element, int64. Whoever takes over others writes them here.
        now: the same as `moved` has last found it.
        moved: reads the addresses of a list of as many tensors; how many there are up to the last that is not at `at`.
            A list of fewer, or of what has no memory, would be read all the same.
    """

    moved: Callable[[list[Tensor]], int]

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        count = len(tensors)
        self.at = np.fromiter(map(Tensor.data_ptr, tensors), np.int64, count)
        self.now = self.at.copy()
        places = [x.ctypes.data for x in (self.at, self.now)]
        self._header = np.array([count, _address_of(ctypes.pythonapi.PyList_GetItem), _READS, *places], np.int64)
        self.moved = partial(_moved(), self._header.ctypes.data)


_READS: int = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]
"""What code that torch.compile has made reads addresses by: a C function of a tensor's object."""


def _address_of(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


@cache
def _moved() -> Callable[..., int]:
    """The compiled function, called with Python's lock held."""
    _, module = load_for_numba("addresses", _CODE)
    kind = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.py_object)
    return kind(int(module.moved.address))
