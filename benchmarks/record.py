"""Records of what was measured: one JSON file for each script, with the same head.

A record says on which machine, when, at which commit and with which versions its rows were measured, and how busy the machine
was when the script began. What nobody knows is null, and reads "not recorded".

With STEPRULE_BENCH_QUICK=1 every script takes one round over tiny models and writes to
build/quick (STEPRULE_BENCH_FOLDER says where else). That shows that a
script works; its numbers mean nothing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]

HERE = Path(__file__).parent
QUICK = os.environ.get("STEPRULE_BENCH_QUICK") == "1"
WRITTEN_TO = Path(os.environ.get("STEPRULE_BENCH_FOLDER", HERE.parent / "build" / "quick")) if QUICK else HERE
HEAD = ("machine", "date", "commit", "versions", "load")
"""What every record begins with."""
PACKAGES = ("torch", "numpy", "llvmlite", "triton", "steprule")


def head() -> Record:
    """What is known before anything is measured: call it first."""
    return {
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def machine() -> Record:
    """The processor, how many cores this process may use, the memory, and the GPU that torch would use."""
    import torch

    from steprule.engine.cpu import available_threads

    memory = _line_of("/proc/meminfo", "MemTotal")
    return {
        "processor": _line_of("/proc/cpuinfo", "model name") or platform.processor() or None,
        "cores": available_threads(),
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> Record:
    """The commit, and whether src or the scripts differ from it; null where git is not at hand."""
    try:
        found = [
            subprocess.run(["git", *command], cwd=HERE, capture_output=True, check=True, text=True).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", ":/src", ":/benchmarks", ":!/benchmarks/*.json"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return {"hash": None, "dirty": None}
    return {"hash": found[0], "dirty": bool(found[1])}


def write(name: str, begun: Record, rows: list[Record], **facts: Any) -> Record:
    """Keeps a record under its script's name.

    Args:
        name: the script's.
        begun: what `head` said.
        rows: what was measured.
        facts: what holds for all rows, such as the number of rounds.
    """
    record = {**begun, "facts": facts, "rows": rows}
    WRITTEN_TO.mkdir(parents=True, exist_ok=True)
    (WRITTEN_TO / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def show(texts: Iterable[str]) -> None:
    """Prints figures, each after an empty line."""
    for text in texts:
        print(f"\n{text}", flush=True)


class Records(Mapping[str, Record]):
    """The records of a folder, by name."""

    def __init__(self, folder: Path = HERE) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Record:
        try:
            return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        except FileNotFoundError:
            raise KeyError(f"there is no record {name}.json in {self.folder}: run benchmarks/{name}.py") from None

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("*.json")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _line_of(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
