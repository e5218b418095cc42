"""Files of kernels: in ``$STEPRULE_CACHE``, else ``steprule`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

A folder is used only if it is the user's own; where none can be had, kernels are compiled into a temporary one. What is
there is complete or absent: it is written aside and renamed. The CPU engine's kernels are folders of their own, since machine
code lies beside the source, and carry checksums.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import linecache
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger("steprule")

Loaded = tuple[Path, Any]
"""A file, and what was made of it: the address of machine code, or Triton's module."""

_SOURCE, _CODE, _CHECKSUMS = "kernel.py", "kernel.o", "checksums.json"
_BELOW_KERNELS = "engine/header.py", "engine/machine.py", "engine/plan.py", "formats/__init__.py", "formats/kernel.py"
"""What kernels take functions and numbers from."""
LONG = 1.0
"""Seconds of compiling after which it is said what takes so long."""

# A fork waits until no thread compiles: the child would find LLVM's lock taken by a thread that it does not have.
_compiling = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )


def load_for_cpu(name: str, text: str, what: str) -> Loaded:
    """A kernel's file, and the address of its function, from the cache or compiled.

    Args:
        name: the rule's.
        text: the kernel.
        what: what it is for, in words, which is said where compiling takes long.
    """
    folder_name = f"{_as_file(name)}_{_digest(text)}"

    def load(parent: Path) -> Loaded:
        folder = parent / folder_name
        code = _intact(folder)
        if code is not None:
            try:
                return folder / _SOURCE, loaded(code, folder_name)
            except Exception:
                logger.warning("steprule: the cached kernel %s does not load; compiling it again", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return _publish(name, text, what, folder)

    with _compiling:
        from steprule.compiler.objects import loaded

        return _in_some_folder(load, f"compile {name} in")


def load_for_triton(name: str, text: str, what: str) -> Loaded:
    """The same of a kernel for Triton, which compiles it later, and keeps what it makes of it in a cache of its own."""
    file_name = f"{_as_file(name)}_gpu_{_digest(text)}.py"

    def load(folder: Path) -> Loaded:
        path = folder / file_name
        if not (path.is_file() and path.read_text(encoding="utf-8") == text):
            with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".draft", delete=False, encoding="utf-8") as draft:
                draft.write(text)
            os.replace(draft.name, path)
        return path, _import(path, path.stem)

    return _in_some_folder(load, f"keep {name} in")


def _in_some_folder(load: Callable[[Path], Loaded], what: str) -> Loaded:
    for folder in (cache_folder(), temporary_folder()):
        if folder is None:
            continue
        try:
            return load(folder)
        except OSError as error:
            logger.warning("steprule: cannot use the kernel cache %s (%s)", folder, error)
    raise OSError(f"no folder can be written to {what}; set STEPRULE_CACHE to one")


def _as_file(name: str) -> str:
    """A name's letters, short enough for any file system, and of no other folder."""
    return re.sub(r"\W", "_", name.lower(), flags=re.ASCII)[:60]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _publish(name: str, text: str, what: str, folder: Path) -> Loaded:
    """Compiles in a folder beside the final one, then renames it: others see all of it or nothing."""
    from steprule.compiler.objects import compiled, loaded

    draft = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    said = "steprule: compiling %s (%s) for this machine, once, which takes some seconds"
    announcement = threading.Timer(LONG, logger.warning, (said, name, what))
    announcement.daemon = True
    try:
        (draft / _SOURCE).write_text(text, encoding="utf-8")
        announcement.start()
        code = compiled(_function(text, str(draft / _SOURCE)), folder.name)
        announcement.cancel()
        (draft / _CODE).write_bytes(code)
        (draft / _CHECKSUMS).write_text(json.dumps(_checksums(draft)))
        with suppress(OSError):  # another process was first
            os.rename(draft, folder)
        return folder / _SOURCE, loaded(code, folder.name)
    finally:
        announcement.cancel()
        shutil.rmtree(draft, ignore_errors=True)


def _checksums(folder: Path) -> dict[str, str]:
    return {name: _checksum((folder / name).read_bytes()) for name in (_SOURCE, _CODE)}


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _intact(folder: Path) -> bytes | None:
    """The machine code in a folder, if its files are those that were written."""
    try:
        source, code = ((folder / name).read_bytes() for name in (_SOURCE, _CODE))
        known = json.loads((folder / _CHECKSUMS).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return code if known == {_SOURCE: _checksum(source), _CODE: _checksum(code)} else None


def _function(text: str, path: str) -> Any:
    """The function of a kernel, whose functions look up their text by its file, and must not keep it for ever."""
    names: dict[str, Any] = {"__name__": "kernel"}
    linecache.cache[path] = len(text), None, text.splitlines(True), path
    try:
        exec(compile(text, path, "exec", dont_inherit=True), names)
        for one in [*names.values()]:
            getattr(one, "tree", None)
    finally:
        linecache.cache.pop(path, None)
    return names["run"]


def _import(path: Path, name: str) -> ModuleType:
    """A file as a module, which is kept: Triton looks for its kernels' text there."""
    spec = importlib.util.spec_from_file_location(f"steprule_kernel_{name}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def cache_folder() -> Path | None:
    """The folder for this machine's kernels, or None if there is none that is ours to write."""
    try:
        chosen = os.environ.get("STEPRULE_CACHE")
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
        folder = Path(chosen or os.path.join(base, "steprule")).expanduser() / _machine_tag()
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
    """Changes with whatever makes compiled code unfit: the processor, LLVM and what makes kernels."""
    import llvmlite
    from llvmlite import binding

    from steprule.compiler.objects import processor

    package = Path(__file__).parents[1]
    files = [*sorted((package / "compiler").glob("*.py")), *(package / name for name in _BELOW_KERNELS)]
    made_by = llvmlite.__version__, *map(str, binding.llvm_version_info)
    texts = (file.read_text(encoding="utf-8") for file in files)
    parts = sys.platform, platform.machine(), *processor(), *made_by, *texts
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
