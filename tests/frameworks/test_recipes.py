"""Every program of docs/guides/frameworks.md, against the real package. `nox -s frameworks` installs those.

A block's title is the package that it needs; what is not installed is skipped, with its name.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

import steprule

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "frameworks.md"
FENCE = re.compile(
    r"^## ([^\n]+)|^``` ?(\{ \.python [^\n]*title=\"(\w+)\" \}|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
pytestmark = pytest.mark.filterwarnings("ignore")


def recipes():
    """The heading, package and code of each, and the beginning that all share."""
    heading, first, found = "", "", []
    for title, mark, package, code in FENCE.findall(PAGE.read_text(encoding="utf-8")):
        heading = title or heading
        if mark == "python":
            first += code
        elif mark:
            found.append((heading, package, code))
    return first, found


FIRST, FOUND = recipes()


def test_the_page_has_them_all():
    packages = {package for _, package, _ in FOUND}
    assert packages == {
        "transformers", "trl", "peft", "accelerate", "lightning", "timm", "fastai", "ignite", "skorch", "stable_baselines3",
        "torchtune", "deepspeed", "ray", "hydra", "jsonargparse", "optuna",
    }  # fmt: skip


@pytest.mark.parametrize(("heading", "package", "code"), FOUND, ids=[f"{h}, {p}" for h, p, _ in FOUND])
def test_a_recipe_trains(heading, package, code, tmp_path, monkeypatch):
    try:
        importlib.import_module(package)
    except ImportError as error:
        pytest.skip(f"{package}: {error}")
    monkeypatch.chdir(tmp_path)
    if package == "deepspeed":
        for name, value in {
            "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
    namespace = {"__name__": "__main__"}
    exec(compile(FIRST, str(PAGE), "exec"), namespace)
    before = [p.detach().clone() for p in namespace["model"].parameters()]
    try:
        exec(compile(code, f"{PAGE}, {heading}", "exec"), namespace)
    finally:
        if package == "deepspeed" and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    optimizer = namespace.get("optimizer")
    if isinstance(optimizer, steprule.Optimizer) and package not in ("torchtune", "hydra", "jsonargparse"):
        assert any(state.get("step", 0) > 0 for state in optimizer.state.values())
    if package in ("accelerate", "lightning", "fastai", "ignite", "skorch", "deepspeed", "ray"):
        assert not all(map(torch.equal, before, namespace["model"].parameters()))
    if package in ("torchtune", "hydra", "jsonargparse"):
        group = optimizer.param_groups[0]
        assert type(optimizer) is steprule.AdamW and group["lr"] in (1e-3, 0.01) and len(group["betas"]) == 2


@pytest.mark.parametrize("package", ["skorch"])
def test_a_setting_of_the_whole_optimizer_is_refused_where_it_would_do_nothing(package):
    skorch = pytest.importorskip(package)
    namespace = {}
    exec(FIRST, namespace)
    net = skorch.NeuralNetRegressor(namespace["model"], optimizer=steprule.AdamW, optimizer__clip=1.0, verbose=0)
    x, y = namespace["inputs"].numpy(), namespace["targets"].numpy()
    net.set_params(optimizer__clip=0.25, max_epochs=1)
    net.fit(x, y)
    assert net.optimizer_.clip.max_norm == 0.25
    net.set_params(optimizer__clip=0.5)
    with pytest.raises(ValueError, match=r"clip=0\.5 in a parameter group"):
        net.partial_fit(x, y)
