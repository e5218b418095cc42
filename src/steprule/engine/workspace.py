"""How much memory whole matrices take beside parameters and states."""

from __future__ import annotations

import os

WORKSPACE = 2**27
"""Bytes that matrices between passes and the products of them take at once, unless `STEPRULE_WORKSPACE` says another number."""


def workspace() -> int:
    """How many bytes that are: half of it for the matrices, and half for what their products need beside them.

    Raises:
        ValueError: `STEPRULE_WORKSPACE` is no number of bytes.
    """
    text = os.environ.get("STEPRULE_WORKSPACE", str(WORKSPACE))
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"STEPRULE_WORKSPACE={text!r}: must be a number of bytes, such as {WORKSPACE}")
    return int(text)
