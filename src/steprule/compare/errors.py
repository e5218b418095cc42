"""The one error that a wrong command line gives, and where other people's come from."""

from __future__ import annotations

import os
import site
import sysconfig
from importlib.util import find_spec
from traceback import extract_tb
from typing import Any


class UsageError(ValueError):
    """An argument of the command that makes no sense; its message names the argument and the value."""


def place_of(error: BaseException) -> str | None:
    """The file, line and function that an exception came from, outside of Python, its packages and steprule."""
    frames = extract_tb(error.__traceback__)
    others = (*_libraries(), "<")
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}" if own else None


def told(error: BaseException) -> str:
    """An exception in one line: its class, what it says, and where it came from."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    place = place_of(error)
    return f"{text} ({place})" if place else text


def defined(function: Any) -> str:
    """Where a function is written, in parentheses after a space; empty for what is no function."""
    code = getattr(function, "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""


def _libraries() -> list[str]:
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders.append(site.getusersitepackages())
    for package in ("steprule", "torch"):
        spec = find_spec(package)
        folders += list(spec.submodule_search_locations or []) if spec is not None else []
    return [os.path.join(folder, "") for folder in folders if folder]
