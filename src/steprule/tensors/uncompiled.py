"""What torch.compile leaves alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")


def uncompiled(function: F) -> F:
    """Makes torch.compile run a function, and what it calls, as it is: what torch.compiler.disable does, but that
    would import the compiler now and cost a microsecond at every call."""
    made: Any = function
    frames: Any = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        frames.set_code_exec_strategy(made.__code__, skip)
    else:
        made = _outside_frames(function, frames)
    made._torchdynamo_disable = True
    made._torchdynamo_disable_msg = "steprule's engines are compiled already"
    made._torchdynamo_disable_recursive = True
    return made  # type: ignore[no-any-return]


class _Uncompiled(contextlib.AbstractContextManager[None]):
    """A context that is entered and left outside of what is compiled."""

    def __init__(self, inner: contextlib.AbstractContextManager[None]) -> None:
        self._inner = inner

    def __enter__(self) -> None:
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._inner.__exit__(*error)


def uncompiled_context(function: Callable[P, Iterator[None]]) -> Callable[P, contextlib.AbstractContextManager[None]]:
    """The same for a context that a generator makes."""
    make = contextlib.contextmanager(function)

    @functools.wraps(function)
    def context(*args: P.args, **kwargs: P.kwargs) -> contextlib.AbstractContextManager[None]:
        return _Uncompiled(make(*args, **kwargs))

    return context


def leave_uncompiled(owner: type, names: str) -> None:
    """The same for methods of a class."""
    for name in names.split():
        setattr(owner, name, uncompiled(getattr(owner, name)))


def _outside_frames(function: Any, frames: Any) -> Any:
    """For torch 2.6, which can skip a function, but not what that calls, without importing the compiler."""

    def outside(*args: Any, **kwargs: Any) -> Any:
        compiler = frames.set_eval_frame(None)
        try:
            return function(*args, **kwargs)
        finally:
            frames.set_eval_frame(compiler)

    frames.skip_code(outside.__code__)
    return functools.wraps(function)(outside)


leave_uncompiled(_Uncompiled, "__enter__ __exit__")
