"""Steps of several processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tables import Columns, source, table, times

from figures.common import Records, format_of, row_of, rows_of, text


def sharded(records: Records) -> str:
    """Steps of parameters that are cut."""
    record = records["sharded"]
    fused = row_of(record, optimizer="torch fused", what="float32")["ms"]
    columns: Columns = {
        "AdamW, GPT-2-small in two halves": lambda row: f"{row['optimizer']}: {row['what']}",
        "a step": lambda row: f"{row['ms']:.1f} ms",
        "torch `fused=True`, float32, takes": lambda row: times(fused / row["ms"]),
        "bytes an element": lambda row: f"{row['bytes']:.2f}",
        "collectives a step": lambda row: "" if row["calls"] is None else str(row["calls"]),
        "bytes in them": lambda row: "" if row["sent"] is None else f"{row['sent']:,}",
    }
    return text(
        table(record["rows"], columns),
        "Two processes with one thread each; a time is that of the slower one. torch's clipping is `clip_grad_norm_` and `full_tensor()` of its result.",
        source(record),
    )


def sharded_bytes(records: Records) -> str:
    """What one of several processes keeps."""
    record = records["many_ranks"]
    kept = [row for row in record["rows"] if "said" in row]
    worlds = sorted({row["world"] for row in kept})

    def of(world: int) -> Callable[[Any], str]:
        def show(row: Any) -> str:
            same = row_of({"rows": kept}, world=world, **{name: row[name] for name in ("dtype", "states", "weights")})
            return f"{same['bytes'] / same['elements']:.2f}"

        return show

    columns: Columns = {
        "AdamW, GPT-2-small: weights, gradients and states": format_of,
        **{f"{world} {'process' if world == 1 else 'processes'}": of(world) for world in worlds},
    }
    off = max(abs(row["said"] / row["bytes"] - 1) for row in kept)
    says = "the same" if off == 0 else f"the same within {off:.1e}"
    return text(
        table([row for row in kept if row["world"] == worlds[0]], columns),
        "Bytes that the first process keeps, for each element of the whole model. For the shapes of its parts, the numbers of "
        f"`steprule.memory`, from which `steprule memory` makes its table, are {says}.",
        source(record),
    )


def many_ranks(records: Records) -> str:
    """What one of many processes does in a step."""
    record = records["many_ranks"]
    measured = [row for row in record["rows"] if "mesh" in row]
    places = list(dict.fromkeys((tuple(row["mesh"]), row["rank"]) for row in measured))

    def of(mesh: tuple[int, ...], rank: int) -> Callable[[Any], str]:
        def show(row: Any) -> str:
            chosen = rows_of(
                {"rows": measured}, mesh=list(mesh), rank=rank, optimizer=row["optimizer"], what=row["what"]
            )
            return f"{chosen[0]['ms']:.1f} ms" if chosen else ""

        return show

    def name(mesh: tuple[int, ...], rank: int) -> str:
        shown = " x ".join(f"{size:,}" for size in mesh)
        return f"{shown}, the last" if rank else shown

    columns: Columns = {
        "one process of": lambda row: f"{row['optimizer']}: {row['what']}",
        "collectives a step": lambda row: str(row["calls"]),
        "bytes in them": lambda row: f"{row['sent']:,}",
        **{name(*place): of(*place) for place in places},
    }
    first = [row for row in measured if (tuple(row["mesh"]), row["rank"]) == places[0]]
    sent = [{key: row[key] for key in ("optimizer", "what", "calls", "sent")} for row in measured]
    one_dimension = [own for own, row in zip(sent, measured, strict=True) if len(row["mesh"]) == 1]
    is_constant = all(one_dimension.count(own) == one_dimension.count(one_dimension[0]) for own in one_dimension)
    most = max(math.prod(row["mesh"]) for row in measured)
    return text(
        table(first, columns),
        "GPT-2-small cut among so many processes; over 32 x 32, replicated among 32 and cut among 32. Times are the processor's in "
        "one of them, without the network. What a step sends "
        f"{'does not depend' if is_constant else 'depends'} on the number of processes. How long a collective takes does: an `all_reduce` "
        f"among {most:,} processes has at least {math.ceil(math.log2(most))} messages one after another.",
        source(record),
    )
