"""Programs that several processes run together.

Processes are forked from one that has imported what they need, which takes longer than most of what they do. It has no threads, and
computes nothing. Forked processes have the same hashes of strings; those of torchrun, which runs the example, do not.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

PATIENCE = 400
"""Seconds after which processes that wait for each other are ended."""
RANK = object()
"""What a process is told that is to know its rank."""


def run_ranks(name: str, count: int, *arguments: object, environment: Mapping[str, str] | None = None) -> list[str]:
    """Runs a program of this folder in several processes at once, which must all end well.

    Args:
        name: the program's file.
        count: how many processes.
        arguments: what each is told; RANK stands for its rank.
        environment: variables of all of them.

    Returns:
        What each has printed.
    """
    program = Path(__file__).with_name(name)
    told = [[str(program), *(str(rank if x is RANK else x) for x in arguments)] for rank in range(count)]
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps([told, dict(environment or {})]) + "\n")
    server.stdin.flush()
    ended = json.loads(server.stdout.readline())
    assert [code for code, _, _ in ended] == [0] * count, [errors[-3000:] for _, _, errors in ended]
    return [printed for _, printed, _ in ended]


@cache
def _server() -> subprocess.Popen[str]:
    """What forks, for as long as this process is."""
    import steprule

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(steprule.__file__).parents[1]), str(Path(__file__).parent)]),
        "OMP_NUM_THREADS": "1",
    }
    server = subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    """Runs what the lines of standard input say."""
    import numba  # noqa: F401
    import pytest  # noqa: F401
    import torch._dynamo  # which DTensors import
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import torch.distributed.optim
    import torch.distributed.tensor.parallel  # noqa: F401

    import steprule.rules  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_run(*json.loads(line))) + "\n")
        answers.flush()


def _run(told: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[tuple[int, str, str]]:
    """Runs processes, and returns of each how it ended, and what it has printed."""
    streams = [[os.memfd_create(name) for name in ("printed", "errors")] for _ in told]
    ranks = [_fork(own, environment, *two) for own, two in zip(told, streams, strict=True)]
    codes, end = dict.fromkeys(ranks, None), time.monotonic() + PATIENCE
    while None in codes.values() and time.monotonic() < end:
        for rank in [rank for rank, code in codes.items() if code is None]:
            ended, status = os.waitpid(rank, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for rank in [rank for rank, code in codes.items() if code is None]:
        os.kill(rank, signal.SIGKILL)
        codes[rank] = os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1])
    return [(codes[rank], *map(_read, two)) for rank, two in zip(ranks, streams, strict=True)]


def _read(stream: int) -> str:
    with open(stream, encoding="utf-8", errors="replace") as file:
        file.seek(0)
        return file.read()


def _fork(told: Sequence[str], environment: Mapping[str, str], printed: int, errors: int) -> int:
    """Starts a process that runs a program."""
    rank = os.fork()
    if rank:
        return rank
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(printed, 1)
        os.dup2(errors, 2)
        os.environ.update(environment)
        sys.argv = [*told]
        runpy.run_path(told[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
