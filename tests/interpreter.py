"""Triton's interpreter, in which tests run the GPU engine's kernels where there is no GPU."""

from __future__ import annotations

from typing import Any


def hasten() -> None:
    """Makes it replace the functions of Triton's language once a launch and file.

    It would do so at every call that a kernel makes of a function, which takes longer than what the function does.
    """
    from triton.runtime import interpreter

    mend(interpreter)
    replace, files = interpreter._patch_lang, set()

    def replace_once(function: Any) -> Any:
        file = id(function.__globals__)
        if file in files:
            return None  # which nobody looks at but the launch itself, the first
        scope = replace(function)
        if scope is not None and not files:  # an older Triton leaves them replaced
            restore = scope.restore
            scope.restore = lambda: (files.clear(), restore())
        files.add(file)
        return scope

    interpreter._patch_lang = replace_once


def mend(interpreter: Any) -> None:
    """Gives an older one what `~` needs to negate booleans."""
    builder = interpreter.InterpreterBuilder
    if hasattr(builder, "get_int1_ty"):
        return
    ones, int1 = builder.get_all_ones_value, interpreter.tl.int1
    builder.get_int1_ty = lambda self: int1
    builder.get_all_ones_value = lambda self, kind: self.get_int1(True) if kind == int1 else ones(self, kind)
