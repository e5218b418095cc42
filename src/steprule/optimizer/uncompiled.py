"""Keeping torch.compile out of what is compiled already, without importing it."""

from __future__ import annotations

import functools
from typing import Any

import torch


def leave_uncompiled(owner: type, name: str) -> None:
    """Makes torch.compile run a method, and what it calls, as it is: what torch.compiler.disable does, but that
    would import the compiler now and cost a microsecond at every call."""
    function: Any = getattr(owner, name)
    frames: Any = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        frames.set_code_exec_strategy(function.__code__, skip)
    else:
        function = _outside_frames(function, frames)
        setattr(owner, name, function)
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = "steprule's engines are compiled already"
    function._torchdynamo_disable_recursive = True


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
