"""Triton's interpreter, in which tests run the GPU engine's kernels where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any


def hasten() -> None:
    """Makes it replace the functions of Triton's language once a launch and file.

    It would do so at every call that a kernel makes of a function, which takes longer than what the function does.
    """
    from triton.runtime import interpreter

    mend(interpreter)
    forgo(interpreter)
    patch, files = interpreter._patch_lang, set()

    def patch_once(function: Any) -> Any:
        file = id(function.__globals__)
        if file in files:
            return None  # which nobody looks at but the launch itself, the first
        scope = patch(function)
        if scope is not None and not files:  # an older Triton leaves them replaced
            restore = scope.restore
            scope.restore = lambda: (files.clear(), restore())
        files.add(file)
        return scope

    interpreter._patch_lang = patch_once


def forgo(interpreter: Any) -> None:
    """Leaves out what takes a fifth of the time: to compute all integers a second time, for a check of overflows that is
    made in debugging only, and to list all dtypes wherever one is looked up."""
    builder = interpreter.interpreter_builder
    options = getattr(builder, "options", None)
    if hasattr(options, "sanitize_overflow") and not options.debug:
        builder.options = replace(options, sanitize_overflow=False)
    look_up, known = interpreter._get_np_dtype, cache(interpreter._get_np_dtype)
    interpreter._get_np_dtype = lambda kind: look_up(kind) if (one := kind.scalar).is_ptr() else known(one)


def mend(interpreter: Any) -> None:
    """Gives an older one what `~` needs to negate booleans."""
    builder = interpreter.InterpreterBuilder
    if hasattr(builder, "get_int1_ty"):
        return
    ones, int1 = builder.get_all_ones_value, interpreter.tl.int1
    builder.get_int1_ty = lambda self: int1
    builder.get_all_ones_value = lambda self, kind: self.get_int1(True) if kind == int1 else ones(self, kind)
