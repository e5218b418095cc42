"""What the commands print, at 80 columns."""

from __future__ import annotations

import os
import subprocess
import sys

SHOWN = (
    "--help",
    "list --help",
    "list --need no-schedule",
    "show --help",
    "show lion",
    "memory --help",
    "memory 7B adamw",
    "roles --help",
    "compare --help",
    "check --help",
    "lesson",
)
"""The command lines of the page."""


def page() -> str:
    """The page of commands."""
    parts = [
        "# Commands",
        "Look up here what each command takes and prints. They need the extra `compare`: in a clone, `pip install '.[compare]'`.",
    ]
    for line in SHOWN:
        parts += [f"## steprule {line}", f"```text\n{_output(line)}\n```"]
    return "\n\n".join(parts) + "\n"


def _output(line: str) -> str:
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "steprule", *line.split()]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.rstrip()
