"""Steps on the CPU: alone, in fewer bytes, and with what surrounds them."""

from __future__ import annotations

from tables import Columns, ratio, share, source, span, table, times

from figures.common import Records, count, format_of, row_of, rows_of, text


def headline(records: Records) -> str:
    """The numbers of the README."""
    bench, low, services, gpu = records["bench"], records["low_memory"], records["services"], records["gpu"]
    large = row_of(bench, kind="step", rule="AdamW", model="GPT-2-small")
    small = row_of(bench, kind="step", rule="AdamW", model="tiny MLP")
    float32 = row_of(low, optimizer="steprule", dtype="float32", weights=None, states=None)
    few = row_of(low, optimizer="steprule", dtype="bfloat16", weights="24bit", states="8bit")
    every = row_of(services, kind="step", model="GPT-2-small", format="float32", what="all, torch checks the norm only")
    one, seven = (
        row_of(gpu, kind="step", case=case, model="1B parameters")
        for case in ("AdamW, float32", "AdamW, 7 bytes (24-bit weights, 8-bit states)")
    )
    return text(
        "\n".join(
            [
                f"- **AdamW on a CPU.** torch's `fused=True` takes {ratio(large['vs_fused'])} times as long over GPT-2-small, and "
                f"{ratio(small['vs_fused'])} times over {small['tensors']} small tensors; torch's default takes {ratio(large['vs_default'])} and "
                f"{ratio(small['vs_default'])} times.",
                f"- **AdamW on a GPU.** `fused=True` takes {ratio(one['torch_takes_in_a_row'])} times as long over 1B parameters in float32.",
                f"- **{few['bytes']:.2f} bytes an element instead of {float32['bytes']:.0f}** for weights, gradients and states. A step then takes "
                f"{ratio(few['ms'] / float32['ms'])} of the time on the CPU, and "
                f"{ratio(seven['in_a_row']['ours'] / one['in_a_row']['ours'])} on the GPU.",
                f"- **Clipping, skipping, averaging and telemetry** together make a step {ratio(every['of_plain'])} times as long on the CPU. "
                f"torch's calls for these, around `fused=True`, take {ratio(every['vs_torch'])} times as long as that.",
            ]
        ),
        f"{source(bench, low, services)} {source(gpu)}",
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
