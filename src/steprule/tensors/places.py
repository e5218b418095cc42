"""Where many tensors lie and how, all compared by one call: in Python each takes several times as long as all of that."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.kernels.cache import load_for_cpu

_CODE = '''"""Compares where tensors lie and how with what they were."""

from llvmlite import ir

from steprule.compiler.functions import Instruction
from steprule.compiler.values import INT64
from steprule.engine.machine import exact, int64s

# The header, an int64 array; from SIZE on it has the addresses of C functions. steprule.tensors.places fills it.
COUNT, LOOKS, BEFORE, NOW, ROOM, BEGIN, SIZE, ITEM, KIND, LET_GO, IS_NEG, IS_INFERENCE, NUMBERS = range(13)
SIZES, STRIDES, ADDRESS = NUMBERS + 5, NUMBERS + 6, NUMBERS + 7
# A look: a class, some numbers, and from END on sizes and strides.
DIMENSIONS, DEVICE, END = 3, 4, 6


def _call(b, function, *arguments):
    kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)] * len(arguments))
    return b.call(b.inttoptr(function, kind.as_pointer()), arguments)


call = Instruction(_call, INT64, None)
"""What the C function at an address returns. Arguments are int64, as addresses are; of shorter results the rest is anything."""


@exact
def get(plan, function, tensor):
    """What one of torch's functions tells of a tensor, 0 where it cannot."""
    found = int64s(plan[ROOM])
    found[0] = 0
    call(function, tensor, plan[ROOM])
    return found[0]


@exact
def are_alike(plan, tensor, look, first, end):
    """Whether these of a tensor's numbers are a look's."""
    for i in range(first, end):
        if get(plan, plan[NUMBERS + i - 1], tensor) != look[i]:
            return False
    return True


@exact
def is_alike(plan, object, look):
    """Whether an object is a tensor of this look. Its device is another only if its address is, too."""
    kind = call(plan[KIND], object)
    call(plan[LET_GO], kind)
    if kind != look[0]:
        return False
    tensor, dimensions = object + plan[BEGIN], look[DIMENSIONS]
    if not are_alike(plan, tensor, look, 1, DEVICE):
        return False
    if (call(plan[IS_NEG], tensor) | call(plan[IS_INFERENCE], tensor)) & 0xFF:
        return False
    for i in range(2):
        at = get(plan, plan[SIZES + i], tensor)
        if at == 0:
            return False
        values = int64s(at)
        for j in range(dimensions):
            if values[j] != look[END + i * dimensions + j]:
                return False
    return True


@exact
def run(header, tensors):
    """How many of a list there are up to the last that lies elsewhere, or -1."""
    plan = int64s(header)
    looks, before, now = int64s(plan[LOOKS]), int64s(plan[BEFORE]), int64s(plan[NOW])
    if call(plan[SIZE], tensors) != plan[COUNT]:
        return -1
    last = 0
    for i in range(plan[COUNT]):
        object, look = call(plan[ITEM], tensors, i), int64s(looks[i])
        if not is_alike(plan, object, look):
            return -1
        now[i] = get(plan, plan[ADDRESS], object + plan[BEGIN])
        if now[i] != before[i]:
            if not are_alike(plan, object + plan[BEGIN], look, DEVICE, END):
                return -1
            last = i + 1
    return last
'''
_NUMBERS = "layout", "dtype", "dim", "device_type", "device_index"
_NEVER = Tensor.is_complex, Tensor.is_neg, Tensor.is_inference
"""What no tensor is that kernels read, and others are left to torch.compile's guards."""
_PYTHONS = "PyList_Size", "PyList_GetItem", "PyObject_Type", "Py_DecRef"
_BITS = (
    "_ZN2at6native6is_negERKNS_6TensorE",
    "_ZN2at6native12is_inferenceERKNS_6TensorE",
)  # C has no functions for these


class Places:
    """Where tensors lie and how.

    Args:
        tensors: all of them.

    Attributes:
        at: the address of each one's first element, int64. Whoever takes over others writes them here.
        now: the same as `moved` has found it.
        moved: compares a list with these: how many there are up to the last that is not at `at`. It is -1, and `now` of no use,
            where there are more or fewer, or one is no tensor, or has another class, device, dtype, shape or strides.
    """

    moved: Callable[[list[Any]], int]

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        count = len(tensors)
        self.at = np.fromiter(map(Tensor.data_ptr, tensors), np.int64, count)
        self.now = self.at.copy()
        functions = _functions()
        if functions is None or any(any(map(which, tensors)) for which in _NEVER):
            guards = torch._C._dynamo.guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
            self.moved = partial(_moved, guards.check, self.at, self.now)
            return
        self._looks: dict[Any, tuple[int, np.ndarray]] = {}  # few that are different
        looks = np.fromiter(map(self._look, tensors), np.int64, count)
        self._tables = looks, self.at, self.now, np.zeros(1, np.int64)
        self._header = np.array([count, *(x.ctypes.data for x in self._tables), _begin(), *functions], np.int64)
        self.moved = partial(_compiled(), self._header.ctypes.data)

    def _look(self, x: Tensor) -> int:
        """The address of what tells a tensor from others in its place."""
        key = type(x), x.layout, x.dtype, x.device, x.shape, x.stride()
        if key not in self._looks:
            found = []
            for name in _NUMBERS:
                number = ctypes.c_int64()
                getattr(_library(), f"aoti_torch_get_{name}")(ctypes.c_void_p(id(x) + _begin()), ctypes.byref(number))
                found.append(number.value)
            look = np.array([id(type(x)), *found, *x.shape, *x.stride()], np.int64)
            self._looks[key] = look.ctypes.data, look
        return self._looks[key][0]


def _moved(are_alike: Callable[..., bool], at: np.ndarray, now: np.ndarray, tensors: list[Any]) -> int:
    """As the compiled function, by torch.compile's guards."""
    if not are_alike(*tensors):
        return -1
    now[:] = list(map(Tensor.data_ptr, tensors))
    return int((now != at).nonzero()[0].max(initial=-1)) + 1


@cache
def _library() -> Any:
    """torch's, whose functions for ahead-of-time compiled code take tensors as C++ has them; None where it is not known."""
    path = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    return ctypes.CDLL(path) if sys.platform.startswith("linux") and os.path.exists(path) else None


@cache
def _functions() -> list[int] | None:
    """The addresses of C functions as the header has them; None where there are not all, as in torch 2.6."""
    shims = (f"aoti_torch_get_{name}" for name in (*_NUMBERS, "sizes", "strides", "data_ptr"))
    try:
        found = [getattr(ctypes.pythonapi, name) for name in _PYTHONS]
        found += [getattr(_library(), name) for name in (*_BITS, *shims)]
    except AttributeError:
        return None
    return [ctypes.cast(one, ctypes.c_void_p).value or 0 for one in found] if _begin() else None


@cache
def _begin() -> int:
    """At which byte of a tensor's object C++'s begins, which is a pointer that torch tells; 0 where that is not found."""
    found = set()
    for x in (torch.zeros(1, device="cpu"), torch.nn.Parameter(torch.zeros(1, device="cpu"))):
        words = (ctypes.c_int64 * (torch.nn.Parameter.__basicsize__ // 8)).from_address(id(x))
        places = [8 * place for place, word in enumerate(words) if word == x._cdata]
        found.add(places[0] if len(places) == 1 else 0)
    return found.pop() if len(found) == 1 else 0


@cache
def _compiled() -> Callable[..., int]:
    """The function of a header and a list, called with Python's lock held."""
    _, address = load_for_cpu("places", _CODE, "reads addresses")
    return ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.py_object)(address)
