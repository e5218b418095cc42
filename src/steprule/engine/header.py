"""The plan's header, an int64 array: what to do, the counter that hands out chunks, sizes, and the addresses of the tables.

`steprule.engine.plan` fills its columns, and kernels read them, by these names.
"""

from __future__ import annotations

MODE, NEXT, TENSORS, CHUNKS, ADDRESSES, CHUNK_TABLE, GROUPS, HYPER, STEP_AT, STEP_KIND, STEPS, ROWS, NUMBERS = range(13)
FACTORS, FIRST_FACTOR, PARTIALS, PIECES, OWN, SHIFTS = range(13, 19)
# Modes: count the steps, work through the chunks, or both.
COUNT, WORK, BOTH = 1, 2, 3
# How a tensor's step is kept.
STEP_FLOAT32, STEP_FLOAT64 = 0, 1
