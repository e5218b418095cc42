"""Programs in processes of their own, forked from one that has imported what takes longer than most of what they do.

That one has no threads, and computes nothing. Forked processes have the same hashes of strings; those of torchrun, which runs the
example, do not.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

PATIENCE = 400
"""Seconds after which processes that wait for each other are ended."""
MODULES = ("llvmlite.binding", "torch")
"""What programs of one process import before they are forked."""
Ended = subprocess.CompletedProcess[str]


def forked(
    programs: Sequence[Sequence[object]], modules: Sequence[str], env: Mapping[str, str] | None = None
) -> list[Ended]:
    """Runs programs at once, and returns how each has ended, and what it has printed.

    Args:
        programs: of each what follows `python` on a command line: a file, or "-c" and code, and its arguments.
        modules: what is imported before they are forked.
        env: variables of all of them, besides this process's. PYTHONPATH adds folders.
    """
    told = [[str(word) for word in program] for program in programs]
    server = _server(*modules)
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps([told, {**os.environ, **(env or {})}]) + "\n")
    server.stdin.flush()
    return [Ended(program, *how) for program, how in zip(told, json.loads(server.stdout.readline()), strict=True)]


def fresh(code: str, folders: Sequence[object] = (), env: Mapping[str, str] | None = None) -> Ended:
    """What `python -c code` does, with these folders before the path, and these variables besides."""
    path = {"PYTHONPATH": os.pathsep.join(map(str, folders))} if folders else {}
    return forked([["-c", code]], MODULES, {**path, **(env or {}), "PYTHONDONTWRITEBYTECODE": "1"})[0]


@cache
def _server(*modules: str) -> subprocess.Popen[str]:
    """What forks, for as long as this process is."""
    server = subprocess.Popen(
        [sys.executable, __file__, *modules], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(server.communicate)
    return server


def _serve(modules: Sequence[str]) -> None:
    """Runs what the lines of standard input say."""
    for module in modules:
        import_module(module)
    gc.freeze()  # so that looking through all objects, as FSDP's modules are found, takes no longer than in a small program
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_run(*json.loads(line))) + "\n")
        answers.flush()


def _run(programs: Sequence[Sequence[str]], env: Mapping[str, str]) -> list[tuple[int, str, str]]:
    """Runs processes, and returns of each how it ended, and what it has printed."""
    streams = [[os.memfd_create(name) for name in ("printed", "errors")] for _ in programs]
    started = [_fork(program, env, *two) for program, two in zip(programs, streams, strict=True)]
    codes, end = dict.fromkeys(started, None), time.monotonic() + PATIENCE
    while None in codes.values():
        for process in [process for process, code in codes.items() if code is None]:
            if time.monotonic() > end:
                os.kill(process, signal.SIGKILL)
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [(codes[process], *map(_read, two)) for process, two in zip(started, streams, strict=True)]


def _read(stream: int) -> str:
    with open(stream, encoding="utf-8", errors="replace") as file:
        file.seek(0)
        return file.read()


def _fork(program: Sequence[str], env: Mapping[str, str], printed: int, errors: int) -> int:
    """Starts a process that runs a program."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(printed, 1)
        os.dup2(errors, 2)
        os.environ.clear()
        os.environ.update(env)
        sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
        sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in env
        _execute(program)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _execute(program: Sequence[str]) -> None:
    """As `python` does with these arguments."""
    if program[0] != "-c":
        sys.argv = [*program]
        sys.path.insert(0, str(Path(program[0]).parent))
        runpy.run_path(program[0], run_name="__main__")
        return
    sys.argv = ["-c", *program[2:]]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(program[1], "<string>", "exec"), vars(main))


if __name__ == "__main__":
    _serve(sys.argv[1:])
