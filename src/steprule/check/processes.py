"""Programs that run as several processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def run_in_processes(program: str, count: int, timeout: float = 120) -> None:
    """Runs a program by torchrun.

    Raises:
        AssertionError: it fails; with the last error that it prints.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(count),
            str(path),
        ]
        threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            command, env={**os.environ, **threads}, capture_output=True, text=True, timeout=timeout, check=False
        )
    if done.returncode:
        errors = re.findall(r"(?:\[rank\d+\]: )?(\w+Error(?:: .*)?)$", done.stderr, re.MULTILINE)
        told = [error for error in errors if not error.startswith(("ChildFailedError", "SignalError"))]
        raise AssertionError(told[0].removeprefix("AssertionError: ") if told else done.stderr[-200:])
