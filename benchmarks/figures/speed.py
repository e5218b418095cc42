"""Steps on the CPU: alone, in fewer bytes, and with what surrounds them."""

from __future__ import annotations

from tables import Columns, ratio, share, source, span, table, times

from figures.common import Records, count, format_of, row_of, rows_of, text


def headline(records: Records) -> str:
    """The three numbers of the README."""
    bench, low, services = records["bench"], records["low_memory"], records["services"]
    large = row_of(bench, kind="step", rule="AdamW", model="GPT-2-small")
    small = row_of(bench, kind="step", rule="AdamW", model="tiny MLP")
    float32 = row_of(low, optimizer="steprule", dtype="float32", weights=None, states=None)
    few = row_of(low, optimizer="steprule", dtype="bfloat16", weights="24bit", states="8bit")
    plain = row_of(services, kind="step", model="GPT-2-small", format="float32", what="step")
    every = row_of(services, kind="step", model="GPT-2-small", format="float32", what="all, torch checks the norm only")
    return text(
        "\n".join(
            [
                f"- **AdamW over GPT-2-small** takes {span(large['steprule_us'] / 1e6)} a step. torch's default takes "
                f"{ratio(large['vs_default'])} times as long, its `fused=True` {ratio(large['vs_fused'])} times. Over a network of "
                f"{small['tensors']} small tensors `fused=True` takes {ratio(small['vs_fused'])} times as long.",
                f"- **{few['bytes']:.2f} bytes an element instead of {float32['bytes']:.0f}** for weights, gradients and states, and a "
                f"step of {few['ms']:.0f} ms where float32 takes {float32['ms']:.0f} ms.",
                f"- **Clipping, skipping, averaging and telemetry** together make a step {ratio(every['of_plain'])} times as long "
                f"({every['ms']:.0f} ms, not {plain['ms']:.0f} ms). Separate torch calls around `fused=True` take "
                f"{every['torch_ms']:.0f} ms.",
            ]
        ),
        source(bench, low, services),
    )


def speed(records: Records) -> str:
    """Steps alone."""
    record = records["bench"]
    columns: Columns = {
        "": lambda row: f"{row['rule']}, {row['model']} ({row['tensors']} tensors, {count(row['elements'])})",
        "steprule": lambda row: span(row["steprule_us"] / 1e6),
        "torch `fused=True` takes": lambda row: times(row["vs_fused"]) or "torch has none",
        "torch's default takes": lambda row: times(row["vs_default"]),
        "of the bandwidth of an in-place scale": lambda row: share(row.get("of_scale")),
    }
    rows = sorted(rows_of(record, kind="step"), key=lambda row: -row["elements"])
    return text(table(rows, columns), source(record))


def training_steps(records: Records) -> str:
    """Whole training steps: forward, backward, step."""
    record = records["bench"]
    columns: Columns = {
        "training step": lambda row: row["model"],
        "with steprule": lambda row: span(row["steprule_us"] / 1e6),
        "of that the optimizer": lambda row: span(row["our_part_us"] / 1e6),
        "torch `fused=True`'s part": lambda row: span(row["fused_part_us"] / 1e6),
        "with `fused=True` it takes": lambda row: times(row["vs_fused"]),
        "with torch's default": lambda row: times(row["vs_default"]),
    }
    return text(table(rows_of(record, kind="training step"), columns), source(record))


def first_step(records: Records) -> str:
    """Imports and first steps."""
    record = records["bench"]
    seconds = {row["what"]: f"{row['seconds']:.2f} s" for row in rows_of(record, kind="start")}
    torch_s = seconds["torch's first step"]
    return text(
        f"Importing steprule adds {seconds['import']} to importing torch. Import and first step of AdamW take "
        f"{seconds['first step, compiled']} where the formula must be compiled, and {seconds['first step, cached']} in later processes. "
        f"The first step of torch.optim's AdamW takes {torch_s}.",
        source(record),
    )


def low_memory(records: Records) -> str:
    """AdamW on GPT-2-small in every format."""
    record = records["low_memory"]
    columns: Columns = {
        "AdamW": format_of,
        "bytes an element": lambda row: f"{row['bytes']:.2f}",
        "moved a step": lambda row: f"{row['moved']:.2f}",
        "step": lambda row: f"{row['ms']:.1f} ms",
        "torch `fused=True`, float32, takes": lambda row: times(row["vs_fused"]),
        "of the bandwidth of an in-place scale": lambda row: share(row["of_scale"]),
        "in cache, one core": lambda row: f"{row['in_cache_ns']:.2f} ns an element" if "in_cache_ns" in row else "",
        "cores until memory is the limit": lambda row: str(row.get("cores_to_memory", "")),
    }
    return text(
        table(record["rows"], columns),
        f"Bytes are those of weights, gradients and states. An in-place scale moves {record['facts']['scale_gb_per_s']:.0f} GB/s.",
        source(record),
    )


def formats_short(records: Records) -> str:
    """The README's three rows."""
    record = records["low_memory"]
    chosen = [("float32", None, None), ("bfloat16", "24bit", "8bit"), ("bfloat16", "stochastic", "8bit")]
    when = {
        None: "memory is no concern",
        "24bit": "weights should train as in float32",
        "stochastic": "every byte counts",
    }
    columns: Columns = {
        "AdamW": format_of,
        "bytes an element": lambda row: f"{row['bytes']:.2f}",
        "step over GPT-2-small": lambda row: f"{row['ms']:.0f} ms",
        "choose it when": lambda row: when[row["weights"]],
    }
    rows = [row_of(record, optimizer="steprule", dtype=d, weights=w, states=s) for d, w, s in chosen]
    fused = row_of(record, optimizer="torch fused")
    return text(
        table(rows, columns),
        f"Bytes are those of weights, gradients and states. `torch.optim.AdamW(fused=True)` in float32: {fused['bytes']:.0f} bytes, {fused['ms']:.0f} ms.",
        source(record),
    )


def services(records: Records) -> str:
    """A step with what surrounds it."""
    record = records["services"]
    columns: Columns = {
        "AdamW, GPT-2-small": lambda row: f"{row['format']}: {row['what']}",
        "steprule": lambda row: f"{row['ms']:.1f} ms",
        "of the plain step": lambda row: times(row["of_plain"]),
        "torch's calls": lambda row: f"{row['torch_ms']:.1f} ms" if row["torch_ms"] else "",
        "torch takes": lambda row: times(row["vs_torch"]),
        "in-place scale": lambda row: f"{row['scale_gb_per_s']:.0f} GB/s",
    }
    return text(
        table(rows_of(record, kind="step", model="GPT-2-small"), columns),
        "torch's calls surround its float32 `fused=True`. *All* is clipping, skipping, averaging and telemetry in every step. To skip, "
        "torch asks `isfinite` of each gradient, or, in the row that says so, only of the norm that `clip_grad_norm_` returns.",
        source(record),
    )


def release_memory(records: Records) -> str:
    """The memory of a training step with gradient release and without."""
    record = records["services"]
    columns: Columns = {
        "training step of a transformer": lambda row: f"{row['model']} ({count(row['elements'])} elements)",
        "memory rises by": lambda row: f"{row['kept_mb']:.1f} MB",
        "with `release_gradients`": lambda row: f"{row['released_mb']:.1f} MB",
        "all gradients are": lambda row: f"{row['gradients_mb']:.1f} MB",
    }
    return text(table(rows_of(record, kind="memory"), columns), source(record))


def subsets(records: Records) -> str:
    """Steps of which the parameters change, and first steps."""
    record = records["subsets"]
    facts = record["facts"]
    columns: Columns = {
        f"{facts['tensors']} tensors of {facts['elements']} elements": lambda row: row["optimizer"],
        "step of all": lambda row: span(row["all_us"] / 1e6),
        "of another half each time": lambda row: span(row["half_us"] / 1e6),
        f"first step of {facts['many']:,} tensors, a tensor": lambda row: span(row["first_us"] / 1e6),
        "plan made anew, a tensor": lambda row: span(row["anew_us"] / 1e6),
    }
    return text(table(record["rows"], columns), f"The least of {facts['steps']} steps.", source(record))
