"""How far a whole-matrix update goes: by which factor of its shape it is multiplied, in the words of those who proposed it.

A polar factor of an m x n matrix has singular values near 1, and so an RMS of 1 / √max(m, n). A learning rate means nothing without the factor.
"""

from __future__ import annotations

from collections.abc import Callable

from steprule.pieces import Value, cols, maximum, minimum, rows, sqrt, where

SCALES: dict[str, tuple[Callable[[Value, Value], Value], str]] = {
    "original": (
        lambda m, n: sqrt(maximum(1.0, m / n)),
        "√max(1, m / n). Jordan 2024, kellerjordan.github.io/posts/muon",
    ),
    "spectral": (lambda m, n: sqrt(m / n), "√(m / n). Bernstein & Newhouse 2024, arXiv:2410.21265"),
    "spectral_unclamped": (lambda m, n: sqrt(m / n), "the same, as torch.optim.Muon calls it"),
    "match_rms_adamw": (
        lambda m, n: 0.2 * sqrt(maximum(m, n)),
        "0.2 √max(m, n), the RMS of AdamW's updates. Liu et al. 2025, arXiv:2502.16982",
    ),
    "unit_rms": (lambda m, n: sqrt(maximum(m, n)), "√max(m, n), an RMS of 1"),
    "none": (lambda m, n: m / m, "1: singular values near 1"),
}
"""By name: the factor for m rows and n columns, and its formula and source."""


def scale(param: Value, name: str | None) -> Value:
    """The factor of that name for a matrix of param's shape; None is "original"."""
    try:
        factor, _ = SCALES[name or "original"]
    except KeyError:
        raise ValueError(f"there is no scale {name!r}; there are {', '.join(SCALES)}") from None
    return factor(rows(param), cols(param))


def sized(param: Value, direction: Value, length: Value, name: str | None) -> Value:
    """A direction of this norm as long as an exact polar factor of param's shape times `scale`; 0 stays 0."""
    whole = scale(param, name) * sqrt(minimum(rows(param), cols(param)))
    return where(length == 0, 0.0, whole / where(length == 0, 1.0, length)) * direction


def convert_lr(lr: float, shape: tuple[int, int], have: str, want: str) -> float:
    """The learning rate with which one convention makes the step that another makes with lr.

    Args:
        lr: the learning rate that goes with have.
        shape: rows and columns.
        have: a name in `SCALES`.
        want: another.

    Returns:
        What to give the other one.

    Raises:
        ValueError: there is no scale of that name.

    Examples:
        >>> from steprule.rules.scales import convert_lr
        >>> round(convert_lr(0.02, (768, 3072), "original", "match_rms_adamw"), 5)
        0.0018
    """
    m, n = map(float, shape)
    for name in (have, want):
        if name not in SCALES:
            raise ValueError(f"there is no scale {name!r}; there are {', '.join(SCALES)}")
    return lr * float(SCALES[have][0](m, n)) / float(SCALES[want][0](m, n))
