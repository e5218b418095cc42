"""Where in a rule something is written."""

from __future__ import annotations

import os
import sys
from types import CodeType
from typing import NoReturn

from steprule import elementwise, matrixwise, pieces
from steprule.rule import RuleError

_HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")


def refuse(what: str, instead: str) -> NoReturn:
    """Raises for the line of the rule (not of this package) that is running."""
    raise RuleError(f"a rule {what}, which a formula cannot do ({place_now()}). Write {instead}.")


def place_now() -> str:
    """The line of the rule that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_ours(frame.f_code):
        frame = frame.f_back
    return place_of(frame.f_code, frame.f_lineno)


def is_ours(code: CodeType) -> bool:
    """Whether it is what rules are read with, or a library that a rule calls, and no rule."""
    libraries = [getattr(sys.modules.get(name), "__file__", None) for name in ("numpy", "torch")]
    folders = (_HERE, *(os.path.join(os.path.dirname(file), "") for file in libraries if file))
    return code.co_filename.startswith(folders) or code.co_filename in (
        pieces.__file__,
        elementwise.__file__,
        matrixwise.__file__,
    )


def place_of(code: CodeType, line: int) -> str:
    """How a message names a line."""
    return f"{code.co_filename}:{line}, in {code.co_qualname if sys.version_info >= (3, 11) else code.co_name}"
