"""Triton's interpreter, in which tests run the GPU engine's kernels where there is no GPU."""

from __future__ import annotations

from typing import Any


def hasten() -> None:
    """Makes it replace the functions of Triton's language once a launch and file.

    It would do so at every call that a kernel makes of a function, which takes longer than what the function does.
    """
    from triton.runtime import interpreter

    replace, files = interpreter._patch_lang, set()

    def replace_once(function: Any) -> Any:
        file = id(function.__globals__)
        if file in files:
            return None  # which nobody looks at but the launch itself, the first
        scope = replace(function)
        if not files:
            restore = scope.restore
            scope.restore = lambda: (files.clear(), restore())
        files.add(file)
        return scope

    interpreter._patch_lang = replace_once
