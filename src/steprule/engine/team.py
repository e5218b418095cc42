"""Several threads for one kernel call.

torch keeps a team of OpenMP threads that spins for a while after every parallel operation. A second team would
fight with it for the cores, so ours is the same one: the OpenMP runtime that torch has loaded is asked to run our
function. Where there is none (no torch, or another threading backend) a pool of Python threads does it; the
kernels hold no lock. So it does in a forked process: OpenMP would wait there for threads that only the parent has.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from steprule.engine.surroundings import undisturbed

logger = logging.getLogger("steprule")

RunTogether = Callable[[int, int, int], None]

_has_team = False
"""Whether a step has started OpenMP's threads, here or in the process that this is a fork of."""
_is_fork = False

_RUN = ctypes.CFUNCTYPE(None, ctypes.c_int64)


def run_together(function: int, argument: int, threads: int) -> None:
    """Calls the C function at an address with an int64 argument on several threads at once and waits for all.

    Args:
        function: the address of a ``void (*)(int64_t)``.
        argument: what each call is given.
        threads: how many calls.
    """
    global _has_team
    openmp = _openmp(sys.modules.get("torch") is not None) if not _is_fork else None
    if openmp is None:
        _run_in_pool(function, argument, threads)
    else:
        _has_team = True
        openmp(function, argument, threads)


@contextlib.contextmanager
def torch_alone() -> Iterator[None]:
    """A context for torch's own operations: `undisturbed`, and in a forked process not waiting for the parent's threads."""
    with undisturbed(), one_thread() if _is_fork else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch's operations use one thread, and so add up in one order on every machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _openmp(torch_is_loaded: bool) -> RunTogether | None:
    """torch's OpenMP runtime, by the entry point that GCC's and LLVM's Linux runtimes share."""
    if not torch_is_loaded or not sys.platform.startswith("linux"):
        return None
    library = os.path.join(os.path.dirname(sys.modules["torch"].__file__ or ""), "lib", "libtorch_cpu.so")
    try:
        gomp_parallel = ctypes.CDLL(library).GOMP_parallel  # looked up in what the library links to
    except (OSError, AttributeError):
        return None
    gomp_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    gomp_parallel.restype = None

    def run(function: int, argument: int, threads: int) -> None:
        gomp_parallel(function, argument, threads, 0)

    return run


def _run_in_pool(function: int, argument: int, threads: int) -> None:
    if _is_fork and _has_team:
        _warn()
    run = _RUN(function)
    others = [_pool().submit(run, argument) for _ in range(threads - 1)]
    run(argument)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="steprule")


@cache
def _warn() -> None:
    logger.warning(
        "steprule: this process was forked from one that had stepped with several threads, which a fork does not have. Steps use "
        "other threads, but large operations of torch may hang: start processes with spawn, or call torch.set_num_threads(1)"
    )


def _begin_fork() -> None:
    """Forgets the threads that only the parent has."""
    global _is_fork
    _is_fork = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_fork)
