"""Objects of which nobody keeps a list."""

from __future__ import annotations

import gc
from itertools import compress
from typing import Any


def living(*kinds: type) -> list[Any]:
    """All objects of these classes and of those derived from them, which takes some ten milliseconds in a large program."""
    left, own = [*kinds], set()  # ids, since a class may have an equality of its own
    while left:
        kind = left.pop()
        if id(kind) not in own:
            own.add(id(kind))
            left += type.__subclasses__(kind)
    every = gc.get_objects()
    return [*compress(every, map(own.__contains__, map(id, map(type, every))))]  # without a line of Python for each
