"""The table "What works with what" of docs/guides/frameworks.md: a test for each of its cells.

What a framework made of the gradients is seen at each step, and a plain loop takes the same steps: an optimizer is right if both come
to the same bits. `nox -s frameworks` installs the frameworks.
"""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest
import torch
import trainers
from training import BATCHES, EPOCHS, Wish

import steprule

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "frameworks.md"
pytestmark = pytest.mark.filterwarnings("ignore")

TRAINERS = {
    "transformers": trainers.transformers, "TRL": trainers.trl, "PEFT": trainers.peft, "accelerate": trainers.accelerate,
    "Lightning": trainers.lightning, "Fabric": trainers.fabric, "timm": trainers.timm, "fastai": trainers.fastai, "ignite": trainers.ignite,
    "skorch": trainers.skorch, "Stable-Baselines3": trainers.stable_baselines3, "torchtune": trainers.torchtune,
    "DeepSpeed": trainers.deepspeed, "Ray": trainers.ray,
}  # fmt: skip
PACKAGES = {"Fabric": "lightning", "Stable-Baselines3": "stable_baselines3"}
COLUMNS = ("formats", "services", "averages", "releases", "resumes")
FREE_ADAMW = functools.partial(steprule.ScheduleFreeAdamW, lr=0.01)


def adamw(**settings):
    return lambda one: steprule.AdamW(parameters(one), lr=0.01, weight_decay=0.1, **settings)


def parameters(one):
    """Those of a module, or of a list."""
    return list(one.parameters() if isinstance(one, torch.nn.Module) else one)


def at(name):
    """The trainer of a framework that is installed."""
    package = PACKAGES.get(name, name.lower())
    try:
        importlib.import_module(package)
    except ImportError as error:
        pytest.skip(f"{package}: {error}")
    return TRAINERS[name]


def again(make, *seen):
    """A plain loop takes the steps of one training, or of several one after the other."""
    params = [torch.nn.Parameter(weight.clone()) for weight in seen[0].weights]
    optimizer = make(params)
    for grads in [step for one in seen for step in one.grads]:
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
    return params, optimizer


def weights_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def same(optimizer, params):
    return all(torch.equal(a, b) for a, b in zip(weights_of(optimizer), params, strict=True))


def states(optimizer):
    return [{name: state.dtype for name, state in optimizer.state[p].items()} for p in weights_of(optimizer)]


@pytest.fixture(autouse=True)
def process(request):
    """DeepSpeed wants to know what it is."""
    if "DeepSpeed" in request.node.name:
        request.getfixturevalue("one_process")


def services(name, settings):
    """DeepSpeed's stage 1 has pieces in place of parameters: norms are those of a group of processes."""
    return {**settings, "process_group": torch.distributed.group.WORLD} if name == "DeepSpeed" else settings


def test_the_table_has_a_test_for_each_cell():
    rows = re.search(r"^## What works with what\n.*?^\|---.*?\n(.*?)\n\n", PAGE.read_text(), re.S | re.M)[
        1
    ].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [re.sub(r" [\d.]+$", "", row[0]) for row in cells] == list(TRAINERS)
    for row in cells:
        assert len(row) == 1 + len(COLUMNS) and not any("not tested" in cell for cell in row), row


@pytest.mark.parametrize("name", TRAINERS)
def test_formats(name, tmp_path):
    make = adamw(states="bfloat16" if name == "DeepSpeed" else "8bit")
    done = at(name)(make, Wish(tmp_path))
    params, optimizer = again(make, done.seen)
    assert len(done.seen.grads) >= EPOCHS * BATCHES and same(done.optimizer, params)
    assert states(done.optimizer) == states(optimizer)
    found = {dtype for state in states(done.optimizer) for dtype in state.values()}
    assert torch.bfloat16 in found or torch.uint8 in found or torch.int8 in found, found


@pytest.mark.parametrize("name", TRAINERS)
def test_services(name, tmp_path):
    settings = {"clip": 1e-3, "nonfinite": "skip", "telemetry": 2}
    make = lambda params: adamw(**services(name, settings))(params)  # noqa: E731
    done = at(name)(make, Wish(tmp_path, poisons=True))
    params, optimizer = again(make, done.seen)
    skips = name != "DeepSpeed"  # which does not call step() then
    assert same(done.optimizer, params) and done.optimizer.skipped_steps == skips
    assert len(done.seen.grads) >= EPOCHS * BATCHES - (not skips)
    assert done.optimizer.clipped_steps == optimizer.clipped_steps == len(done.seen.grads) - skips
    assert done.optimizer.telemetry.records[-1]["total"] == optimizer.telemetry.records[-1]["total"]


@pytest.mark.parametrize("rule", ["average", "Schedule-Free"])
@pytest.mark.parametrize("name", TRAINERS)
def test_averages(name, rule, tmp_path):
    make = adamw(average=0.5) if rule == "average" else lambda one: FREE_ADAMW(parameters(one))
    train = functools.partial(at(name), stage=0) if name == "DeepSpeed" else at(name)
    done = train(make, Wish(tmp_path, averages=True))
    if done.optimizer._core.modes.has_trained_weights:
        done.handle.eval()
    params, optimizer = again(make, done.seen)
    trained = [p.detach().clone() for p in params]
    for mode in ("eval", "train"):
        getattr(optimizer, mode)()
        if mode == "train":
            done.handle.train()
        for mine, its in zip(
            weights_of(done.optimizer), params, strict=True
        ):  # Schedule-Free's come back but for rounding
            torch.testing.assert_close(mine, its, **({"rtol": 0, "atol": 0} if rule == "average" else {}))
        if mode == "eval":
            assert not all(map(torch.allclose, trained, params))


@pytest.mark.parametrize("name", [name for name in TRAINERS if name not in ("DeepSpeed", "Stable-Baselines3")])
def test_releases(name, tmp_path):
    """test_recipes.py has what DeepSpeed and Stable-Baselines3 say."""
    paths = tmp_path / "one", tmp_path / "other"
    for path in paths:
        path.mkdir()
    released = at(name)(adamw(), Wish(paths[0], releases=True))
    kept = at(name)(adamw(), Wish(paths[1]))
    assert len(released.seen.grads) == len(kept.seen.grads) == EPOCHS * BATCHES
    assert same(released.optimizer, weights_of(kept.optimizer))


@pytest.mark.parametrize("name", TRAINERS)
def test_resumes(name, tmp_path):
    make = lambda params: adamw(**services(name, {"clip": 1e-3, "nonfinite": "skip"}))(params)  # noqa: E731
    first = at(name)(make, Wish(tmp_path, epochs=1))
    second = at(name)(make, Wish(tmp_path, epochs=1, resumes=True))
    assert all(map(torch.equal, second.seen.weights, weights_of(first.optimizer)))
    params, optimizer = again(make, first.seen, second.seen)
    assert len(second.seen.grads) >= BATCHES and same(second.optimizer, params)
    assert second.optimizer.clipped_steps == optimizer.clipped_steps == len(first.seen.grads + second.seen.grads)
