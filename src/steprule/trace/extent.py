"""What an expression has a value for: the whole tensor, each element, or each row or column of the matrix that a tensor is."""

from __future__ import annotations

from collections.abc import Collection, Iterable

Extent = tuple[str, str]
"""How long a value is in two dimensions: "1", or as many as the matrix has rows, "m", or columns, "n"."""

NUMBER: Extent = ("1", "1")
ELEMENTS: Extent = ("m", "n")
ROWS: Extent = ("m", "1")
COLS: Extent = ("1", "n")
PLAIN = (NUMBER, ELEMENTS, ROWS, COLS)
"""What passes, and what goes between them for each tensor, compute with: all but squares."""
KEPT: dict[str, Extent] = {
    "scalar": NUMBER,
    "elements": ELEMENTS,
    "rows": ROWS,
    "cols": COLS,
    "left": ("m", "m"),
    "right": ("n", "n"),
}
"""Those that a state may have, by the word for each."""


def join(extents: Iterable[Extent]) -> Extent | None:
    """What values of these extents broadcast to, None if they do not."""
    joined = NUMBER
    for extent in extents:
        if extent != joined:
            sides = [_longer(*pair) for pair in zip(joined, extent, strict=True)]
            if None in sides:
                return None
            joined = (str(sides[0]), str(sides[1]))
    return joined


def _longer(one: str, other: str) -> str | None:
    if one == other or other == "1":
        return one
    return other if one == "1" else None


def shown(extent: Extent) -> str:
    """How a message names it."""
    names = {
        NUMBER: "one number",
        ELEMENTS: "a value for each element",
        ROWS: "a value for each row",
        COLS: "a value for each column",
    }
    return names.get(extent, f"a matrix of {extent[0]} x {extent[1]}")


def instead_of_product(a: Extent, b: Extent) -> str:
    """What to write in place of ``a @ b``, of values that have these extents."""
    if NUMBER in (a, b):
        return "a * b, the product with a number"
    if a[1] != b[0]:
        return "matmul(a, b) of matrices where a has as many columns as b has rows, such as a @ transpose(b) of two of one shape"
    if a[1] == "1":
        return "a * b, which is the product of a column and a row"
    if a[0] == b[1] == "1":
        return "total(a * transpose(b)), which is the product of a row and a column"
    return f"{'row_total(a * transpose(b))' if b[1] == '1' else 'col_total(transpose(a) * b)'}, which is the product of a matrix and a vector"


def instead_of_joined(made_by: Collection[str]) -> str:
    """What to write in place of an operation on values that do not broadcast, which these operations have made."""
    number = "total(x) of the matrix that largest_eigenvalue gives, which is its number, or "
    return f"{number if 'largest_eigenvalue' in made_by else ''}values of one shape, or transpose(x)"
