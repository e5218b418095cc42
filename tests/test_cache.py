"""The kernel cache: corrupt, foreign, read-only, missing, raced for, killed half-way. It still works."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import MODULES, forked, fresh

import steprule
from steprule.compiler.functions import exact
from steprule.compiler.objects import compiled
from steprule.kernels import cache

STEP = """
import numpy as np, sys
from steprule.arrays import SGD
from steprule.engine import kernel
w = np.ones(4, np.float32)
SGD([w], lr=0.5).step([np.ones(4, np.float32)])
assert (w == 0.5).all(), w
print(next(iter(kernel._kernels.values())).path)
"""


def step(home: Path, before: str = "", **env: str) -> tuple[Path, str]:
    """One step in a process of its own, after a line; the kernel's path and what was said on stderr."""
    result = fresh(before + STEP, env={"STEPRULE_CACHE": str(home), **env})
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip()), result.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """A cache with one kernel, and that."""
    home = tmp_path_factory.mktemp("whole")
    return home, step(home)[0]


def code_of(kernel: Path) -> Path:
    return kernel.with_name("kernel.o")


def test_the_second_process_finds_the_first_ones_kernel(tmp_path):
    kernel, _ = step(tmp_path)
    assert kernel.is_file() and tmp_path in kernel.parents
    assert "def update" in kernel.read_text()
    before = code_of(kernel).stat().st_mtime_ns
    again, said = step(tmp_path)
    assert again == kernel and said == ""
    assert code_of(kernel).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["truncated", "garbage", "emptied", "source", "no checksums", "code missing"])
def test_a_damaged_kernel_is_made_anew(tmp_path, whole, damage):
    home, kernel = whole
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    kernel = tmp_path / kernel.relative_to(home)
    data = code_of(kernel)
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:100])
    elif damage == "garbage":
        data.write_bytes(os.urandom(data.stat().st_size))
    elif damage == "emptied":
        data.write_bytes(b"")
    elif damage == "source":
        text = kernel.read_text()
        assert "(-s0)" in text
        kernel.write_text(text.replace("(-s0)", "(+s0)"))
    elif damage == "no checksums":
        (kernel.parent / "checksums.json").unlink()
    else:
        data.unlink()
    assert step(tmp_path)[0] == kernel
    assert step(tmp_path)[1] == ""  # and it stays repaired


@exact
def _other(at):
    return at


def test_a_kernel_of_other_code_is_made_anew(tmp_path):
    """Files and checksums agree, but the function is not in the code."""
    kernel, _ = step(tmp_path)
    code_of(kernel).write_bytes(compiled(_other, "other"))
    (kernel.parent / "checksums.json").write_text(json.dumps(cache._checksums(kernel.parent)))
    assert "does not load; compiling it again" in step(tmp_path)[1]
    assert step(tmp_path)[1] == ""


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    kernel, said = step(tmp_path / "cache")
    assert "no kernel cache" in said and "steprule-" in str(kernel)
    assert not kernel.exists()  # it was temporary


def test_a_read_only_or_missing_home(tmp_path):
    """As root, permissions do not stop anyone: /proc does."""
    environment = {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": ""}
    kernel, said = step(Path(""), **environment, STEPRULE_CACHE="")
    assert "no kernel cache" in said and "compiled anew" in said and not kernel.exists()


def test_a_folder_others_may_write_to_is_not_trusted(tmp_path):
    kernel, _ = step(tmp_path)
    os.chmod(kernel.parent.parent, 0o777)
    elsewhere, said = step(tmp_path)
    assert "others may write to it" in said and tmp_path not in elsewhere.parents


def test_processes_that_compile_at_once(tmp_path):
    for racer in forked([["-c", STEP]] * 4, MODULES, {"STEPRULE_CACHE": str(tmp_path)}):
        assert racer.returncode == 0, racer.stderr
    kernel, said = step(tmp_path)
    assert said == "" and [path.name for path in kernel.parent.parent.iterdir()] == [kernel.parent.name]


def test_a_process_killed_while_compiling(tmp_path):
    environment = {**os.environ, "STEPRULE_CACHE": str(tmp_path)}
    victim = subprocess.Popen([sys.executable, "-c", STEP], env=environment, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("*/*/kernel.py")):
        assert victim.poll() is None
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    kernel, _ = step(tmp_path)
    assert json.loads((kernel.parent / "checksums.json").read_text())


def test_kernels_of_another_machine_lie_apart(tmp_path):
    """The folder's name holds what the code depends on, so another processor's or LLVM's is never loaded."""
    kernel, _ = step(tmp_path)
    changes = [
        "from steprule.compiler import objects; objects.processor = lambda: ('x86-64', '')",
        "import llvmlite; llvmlite.__version__ = 'another'",
        "import sys; sys.platform = 'another'",
    ]
    for change in changes[platform.machine() != "x86_64" :]:
        other, _ = step(tmp_path, change)
        assert other.parent.name == kernel.parent.name and other.parent.parent != kernel.parent.parent


def test_each_compilation_that_takes_long_is_announced_with_what_it_is_for(tmp_path, monkeypatch, caplog):
    def slowly(text, path, make=cache._function):
        time.sleep(0.2)
        return make(text, path)

    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cache, "_function", slowly)
    monkeypatch.setattr(cache, "LONG", 0.0)
    rule = steprule.wrap(steprule.SGD.rule, lambda update, *, k=0.5: update * k, name="Halved")
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = steprule.Optimizer.of(rule)([param], lr=1.0)
    for clip in (None, 1.0, 2.0):
        optimizer.clip = steprule.services.ClipValue(clip) if clip else None
        optimizer.step()
    told = [record.getMessage().partition(" for this")[0] for record in caplog.records]
    assert [one for one in told if "places" not in one] == [  # which another test may have had compiled
        "steprule: compiling Halved (param float32, grad float32)",
        "steprule: compiling Halved (param float32, grad float32, limited gradients)",
    ]


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "a\nb", "ü" * 300], ids=["out", "below", "lines", "long"])
def test_any_name_of_a_rule_makes_a_folder_in_the_cache(name, tmp_path, monkeypatch):
    home = tmp_path / "some" / "home"
    home.mkdir(parents=True)
    monkeypatch.setattr(cache, "cache_folder", lambda: home)
    rule = steprule.wrap(steprule.SGD.rule, lambda update, *, k=0.25: update * k, name=name)
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    steprule.Optimizer.of(rule)([param], lr=1.0).step()
    assert param.tolist() == [0.75] * 3
    kernels = {one.name.rpartition("_")[0] for one in home.iterdir()} - {"places"}  # of any process's first step
    assert len(kernels) == 1
    assert [*tmp_path.iterdir()] == [tmp_path / "some"]


def test_a_home_in_the_name_of_the_folder_is_the_users(tmp_path):
    kernel, said = step(Path("~/kernels"), HOME=str(tmp_path))
    assert said == "" and tmp_path / "kernels" in kernel.parents
