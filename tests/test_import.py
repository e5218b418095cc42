"""What importing brings in, seen from fresh processes."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest
from forked import forked

import steprule
import steprule.names


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def run_with_torch(code: str) -> str:
    """The same where torch has been imported, and nothing else that takes long."""
    (done,) = forked([["-c", code]], ["torch"])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_steprule_brings_neither_torch_nor_a_compiler():
    assert run("import sys, steprule; print({'torch', 'llvmlite', 'rich', 'typer'} & set(sys.modules))") == "set()"


def test_the_optimizers_bring_no_compiler_before_the_first_step():
    assert run_with_torch("import sys; from steprule import AdamW; print('llvmlite' in sys.modules)") == "False"


def test_arrays_step_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it would raise
        "import numpy as np; from steprule.arrays import AdamW\n"
        "w = np.ones(100_000, np.float32); AdamW([w], lr=0.5, weight_decay=0.0).step([w * 2]); print(w[-1])"
    )
    assert run(code) == "0.5"


def test_every_public_name_is_there():
    for name in steprule.__all__:
        assert getattr(steprule, name) is not None
    assert set(steprule.__all__) <= set(dir(steprule))
    namespace: dict[str, object] = {}
    exec("from steprule import *", namespace)
    assert set(steprule.__all__) <= set(namespace)


@pytest.mark.parametrize("name", ["", *steprule.names.SUBMODULES])
def test_completion_shows_public_names_and_no_helpers(name):
    module = importlib.import_module(f"steprule.{name}" if name else "steprule")
    more = steprule.names.SUBMODULES if not name else ()
    shown = {one for one in dir(module) if not one.startswith("_")}
    if name in ("catalog", "memory"):  # of the command
        pytest.skip("has no names for users")
    if name in ("check", "compare", "rules"):  # whose files are public, too
        shown -= {one.name for one in pkgutil.iter_modules(module.__path__)}
    assert shown == {*module.__all__, *more}
    assert all(getattr(module, one) is not None for one in shown)


def test_an_optimizer_that_torch_has_not_yet_is_there():
    code = (
        "import torch; vars(torch.optim).pop('Muon', None); from steprule import Muon\n"
        "param = torch.ones(2, 2, requires_grad=True); optimizer = Muon([param], lr=0.1)\n"
        "param.square().sum().backward(); optimizer.step(); print(bool((param < 1).all()))"
    )
    assert run_with_torch(code) == "True"


def test_a_training_loop_brings_no_compiler_of_torch():
    """torch.optim's zero_grad would import it, which takes seconds."""
    code = (
        "import sys, torch; from steprule import SGD\n"
        "p = torch.nn.Parameter(torch.ones(3)); optimizer = SGD([p])\n"
        "for _ in range(2): p.square().sum().backward(); optimizer.step(); optimizer.zero_grad()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert run_with_torch(code) == "False"
