"""CUDA graphs of the interpreted GPU engine: torch's operations and Triton's launches are recorded, and done once more at each replay."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from steprule.engine import gpu_graph
from steprule.engine.gpu_launch import Launch

_WAITING = ("_local_scalar_dense", "is_nonzero", "_linalg_eigh", "nonzero")
"""What the host waits for, parts of the names of operations."""


def _storages(tree: Any) -> set[int]:
    """Where the memory of tensors begins."""
    return {x.untyped_storage().data_ptr() for x in tree_leaves(tree) if torch.is_tensor(x)}


class _Recorder(TorchDispatchMode):
    """Does what is recorded with numbers that are not there yet, and takes it back: as if it had not been done."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Any] = []
        self._before: dict[int, tuple[Any, torch.Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func)
        if any(word in name for word in _WAITING):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        with _disable_current_modes():
            for place, argument in enumerate(func._schema.arguments):
                written = args[place] if place < len(args) else kwargs.get(argument.name)
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for x in written if isinstance(written, (list, tuple)) else [written]:
                        self._keep(x)
            result = func(*args, **kwargs)
        self._made |= _storages(result) - _storages((args, kwargs))
        self.pieces.append((func, args, kwargs, result))
        return result

    def _keep(self, x: Any) -> None:
        if torch.is_tensor(x):
            storage = x.untyped_storage()
            if storage.data_ptr() not in self._made:
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def take_back(self) -> None:
        """Gives memory that was there before its contents."""
        for storage, before in self._before.values():
            storage.copy_(before)


class PretendedGraph:
    """`torch.cuda.CUDAGraph` for tensors of the host.

    Attributes:
        current: what records now.
    """

    current: _Recorder | None = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        assert PretendedGraph.current is None
        self._recorder = PretendedGraph.current = _Recorder()
        self._recorder.__enter__()

    def capture_end(self) -> None:
        self._recorder.__exit__(None, None, None)
        PretendedGraph.current = None
        self._recorder.take_back()

    def replay(self) -> None:
        """Does all that was recorded, in the memory of then."""
        assert PretendedGraph.current is None
        for function, args, kwargs, result in self._recorder.pieces:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def pretend(monkeypatch) -> None:
    """Has the host's tensors recorded, as those of a GPU are."""

    class Stream:
        def __init__(self, device: Any = None) -> None:
            pass

        def wait_stream(self, other: Any) -> None:
            pass

    launch = Launch.__call__

    def record(self: Launch) -> None:
        if PretendedGraph.current is None:
            launch(self)
        else:
            PretendedGraph.current.pieces.append((lambda: launch(self), (), {}, None))

    monkeypatch.setattr(Launch, "__call__", record)
    monkeypatch.setattr(gpu_graph, "wrong_devices", lambda devices: None)
    cuda = {
        "CUDAGraph": PretendedGraph, "Stream": Stream, "current_stream": Stream, "graph_pool_handle": object,
        "stream": lambda stream: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: PretendedGraph.current is not None,
    }  # fmt: skip
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
