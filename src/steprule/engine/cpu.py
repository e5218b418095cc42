"""The CPU engine: a rule compiled by Numba to one pass over all tensors.

Kernels are files in a cache folder: ``$STEPRULE_CACHE``, else ``steprule`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
A folder there is complete or absent (it is written aside and renamed), carries checksums, and is used only if it is
the user's own; where that cannot be had, kernels are compiled into a temporary folder.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import importlib.util
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from steprule.engine.plan import Plan
from steprule.engine.team import run_together
from steprule.kernels.cpu_pass import write_pass
from steprule.kernels.source import Source, title_of
from steprule.rule import Rule
from steprule.trace.around import NO_SERVICES, Services
from steprule.trace.program import Program, Stage, scalar_values
from steprule.trace.tracing import static_settings, trace

PARALLEL_FROM = 65536
"""Elements from which several threads are worth waking."""

logger = logging.getLogger("steprule")


class Kernel:
    """A compiled formula.

    Attributes:
        stage: what it computes.
        program: all that a step computes, if this is the kernel of its last pass.
        source: its text; source.arrays is the order of a plan's addresses.
        path: the file it was made from.
        readings: kernels that go before it, for sums over elements.
    """

    program: Program
    readings: tuple[Kernel, ...] = ()

    def __init__(self, stage: Stage, source: Source, path: Path, address: int) -> None:
        self.stage = stage
        self.source = source
        self.path = path
        self._address = address
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)

    def numbers(self, hyper: Mapping[str, Any]) -> list[float]:
        """A plan's row for these hyperparameters, among them ``seed`` if roundings are random."""
        return scalar_values(self.stage, hyper) + [float(hyper.get("seed", 0))] * self.source.random

    def launcher(self, plan: Plan, threads: Callable[[], int]) -> Callable[[], None]:
        """What takes every tensor of the plan one step further.

        Args:
            plan: its addresses must be valid whenever the launcher is called.
            threads: says how many threads may work on it; the result does not depend on it.
        """
        run, address = self._run, self._address
        if self.stage.own:
            return self.worker(plan, threads)
        if plan.size < PARALLEL_FROM:
            return partial(run, plan.both_header)

        def launch() -> None:
            workers = min(threads(), plan.chunk_count)
            if workers == 1:
                run(plan.both_header)
            else:
                run(plan.count_header)
                run_together(address, plan.work_header, workers)

        return launch

    def count(self, plan: Plan) -> None:
        """Counts the plan's steps."""
        self._run(plan.count_header)

    def worker(self, plan: Plan, threads: Callable[[], int]) -> Callable[[], None]:
        """As `launcher`, for steps that have been counted."""

        def work() -> None:
            plan.restart()
            workers = min(threads(), plan.chunk_count) if plan.size >= PARALLEL_FROM else 1
            if workers == 1:
                self._run(plan.work_header)
            else:
                run_together(self._address, plan.work_header, workers)

        return work


_kernels: dict[Any, Kernel] = {}


def compiled(
    rule: type[Rule],
    hyper: Mapping[str, Any],
    maximize: bool,
    formats: Sequence[str],
    services: Services = NO_SERVICES,
) -> Kernel:
    """The kernel for a rule, made when first asked for.

    Args:
        rule: the rule.
        hyper: a value for each hyperparameter. Kernels are shared by all that agree on which are true, which
            are text, and which states exist.
        maximize: whether to follow the gradient upwards.
        formats: of param, grad and the states that exist, keys of `steprule.formats.FORMATS`.
        services: what else it does.

    Raises:
        RuleError: the formula is none that an engine can run.
    """
    key = (rule, static_settings(rule, hyper), maximize, tuple(formats), services)
    if key not in _kernels:
        _kernels[key] = _compile(rule, trace(rule, hyper, maximize, services), formats)
    return _kernels[key]


def _compile(rule: type[Rule], program: Program, formats: Sequence[str]) -> Kernel:
    kernel = _kernel(rule, program.last, formats)
    kernel.program = program
    kernel.readings = tuple(_kernel(rule, reading, formats) for reading in program.readings)
    return kernel


def _kernel(rule: type[Rule], stage: Stage, formats: Sequence[str]) -> Kernel:
    source = write_pass(title_of(rule), stage, formats)
    return Kernel(stage, source, *load_kernel(rule.__name__, source.text))


def available_threads() -> int:
    """How many threads this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Files


def load_kernel(name: str, source: str) -> tuple[Path, int]:
    """The kernel's file and the address of its function, from the cache or compiled."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    folder_name = f"{name.lower()}_{digest}"
    for parent in (cache_folder(), temporary_folder()):
        if parent is None:
            continue
        folder = parent / folder_name
        try:
            if _intact(folder):
                try:
                    return _import(folder, folder_name)
                except Exception:
                    logger.warning("steprule: the cached kernel %s does not load; compiling it again", folder)
            shutil.rmtree(folder, ignore_errors=True)
            return _publish(name, source, folder)
        except OSError as error:
            logger.warning("steprule: cannot use the kernel cache %s (%s)", parent, error)
    raise OSError(f"no folder can be written to compile {name} in; set STEPRULE_CACHE to one")


def _publish(name: str, source: str, folder: Path) -> tuple[Path, int]:
    """Compiles in a folder beside the final one, then renames it: others see all of it or nothing."""
    draft = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    announcement = threading.Timer(
        1.0, logger.warning, (f"steprule: compiling {name} for this machine, once; it takes a few seconds",)
    )
    announcement.daemon = True
    try:
        (draft / "kernel.py").write_text(source)
        announcement.start()
        path, address = _import(draft, folder.name)
        announcement.cancel()
        (draft / "checksums.json").write_text(json.dumps(_checksums(draft)))
        try:
            os.rename(draft, folder)
        except OSError:  # another process was first
            return path, address
        return folder / "kernel.py", address
    finally:
        announcement.cancel()
        shutil.rmtree(draft, ignore_errors=True)


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".nbi", ".nbc")
    }


def _intact(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "checksums.json").read_text()) == _checksums(folder))
    except (OSError, ValueError):
        return False


def _import(folder: Path, name: str) -> tuple[Path, int]:
    """Numba finds its files by the module's name, so that must not depend on where the folder is by now."""
    path = folder / "kernel.py"
    spec = importlib.util.spec_from_file_location(f"steprule_kernel_{name}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where Numba looks for it, and keeps it
    spec.loader.exec_module(module)
    return path, int(module.run.address)


@cache
def cache_folder() -> Path | None:
    """The folder for this machine's kernels, or None if there is none that is ours to write."""
    try:
        chosen = os.environ.get("STEPRULE_CACHE")
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
        folder = Path(chosen or os.path.join(base, "steprule")) / _machine_tag()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            status = folder.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise PermissionError(f"{folder} belongs to another user or others may write to it")
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:
        logger.warning("steprule: no kernel cache (%s); kernels are compiled anew in every process", error)
        return None


@cache
def temporary_folder() -> Path:
    """A folder for this process's kernels, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="steprule-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _machine_tag() -> str:
    """Changes with whatever makes compiled code unfit: the processor, Python, Numba and what kernels build on."""
    import llvmlite.binding
    import numba

    from steprule.engine import machine
    from steprule.formats import kernel

    parts = (
        platform.machine(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
        sys.implementation.cache_tag or sys.version,
        numba.__version__,
        Path(machine.__file__).read_text(),
        Path(kernel.__file__).read_text(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
