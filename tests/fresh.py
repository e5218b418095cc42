"""Programs in a process of their own, forked from one that has torch, NumPy and Numba already, and nothing of steprule."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["numba", "torch"])


def fresh(
    code: str, folders: Sequence[object] = (), env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `python -c code` does, with these folders before the path, and these variables besides."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        own = CONTEXT.Process(target=_run, args=(code, [*map(str, folders)], {**os.environ, **(env or {})}, paths))
        own.start()
        own.join()
        return subprocess.CompletedProcess(code, own.exitcode or 0, *(Path(path).read_text() for path in paths))


def _run(code: str, folders: list[str], env: Mapping[str, str], paths: list[str]) -> None:
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = folders
    sys.dont_write_bytecode = True
    assert "steprule" not in sys.modules
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(compile(code, "<string>", "exec"), vars(main))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(0)
