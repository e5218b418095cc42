"""Every rule against published implementations of it, whose trajectories peers/make.py wrote down."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers.problem import problem

import steprule
from steprule.rules import OWN
from steprule.step.kind import Kind

FILE = json.loads((Path(__file__).parent / "peers" / "trajectories.json").read_text())
ENTRIES: list[dict[str, Any]] = FILE["entries"]
AROUND = ("decay", "cautious", "cautious_decay", "lookahead", "lookahead_alpha")

each_entry = pytest.mark.parametrize(
    "entry", ENTRIES, ids=[f"{index}-{entry['rule']}-{entry['peer']}" for index, entry in enumerate(ENTRIES)]
)


class Ours:
    """Steprule's optimizer of an entry, stepped as the peer was."""

    def __init__(self, entry: dict[str, Any]) -> None:
        if entry["rule"] not in OWN:
            pytest.skip(f"there is no rule {entry['rule']!r} yet")
        name = OWN[entry["rule"]].__name__
        if not hasattr(steprule, name):
            pytest.skip(f"there is no steprule.{name} yet")
        cls = getattr(steprule, name)
        for name in AROUND:
            if name in entry["options"] and name not in inspect.signature(cls).parameters:
                pytest.skip(f"there is no option {name!r} yet")
        params, grads = problem(FILE["seed"], zeros=entry.get("zeros", False))
        self.tensors = [torch.nn.Parameter(torch.tensor(array)) for array in params]
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in entry["options"].items()}
        self.optimizer = cls(self.tensors, **options)
        for step, arrays in enumerate(grads):
            if "lrs" in entry:
                self.optimizer.param_groups[0]["lr"] = entry["lrs"][step]
            for tensor, array in zip(self.tensors, arrays, strict=True):
                tensor.grad = torch.tensor(array)
            self.optimizer.step()
            if step == 0:
                self.first = self.flat()

    def flat(self) -> np.ndarray:
        return np.concatenate([tensor.detach().numpy().ravel() for tensor in self.tensors])


@pytest.fixture(autouse=True)
def by_the_engine_that_compiles_nothing(monkeypatch):
    """Formulas are looked at here; that engines agree is tested elsewhere."""
    monkeypatch.setattr(Kind, "_fits_an_engine", lambda *_: False)


def flat(arrays: list[Any]) -> np.ndarray:
    return np.concatenate([np.array(array).ravel() for array in arrays])


def tolerance(entry: dict[str, Any]) -> dict[str, float]:
    rtol = entry.get("rtol", 1e-4 if entry.get("precision") == "float32" else 1e-8)
    return {"rtol": rtol, "atol": rtol / 10}


def test_every_disagreement_has_a_reason():
    assert all(entry["why"] for entry in ENTRIES if not entry["agrees"])


def test_every_rule_has_a_peer_that_agrees():
    for rule in {entry["rule"] for entry in ENTRIES}:
        assert any(entry["agrees"] for entry in ENTRIES if entry["rule"] == rule), rule


@each_entry
def test_trajectory(entry):
    ours = Ours(entry)
    if entry["agrees"] is False:
        same = np.allclose(ours.flat(), flat(entry["params"]), rtol=1e-4, atol=1e-5)
        assert not same, f"{entry['peer']} agrees after all: {entry['why']}"
        return
    np.testing.assert_allclose(ours.first, flat(entry["first"]), **tolerance(entry), err_msg="after step 1")
    np.testing.assert_allclose(ours.flat(), flat(entry["params"]), **tolerance(entry), err_msg=entry["why"])


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if "eval" in e and e["agrees"]], ids=lambda entry: f"{entry['rule']}-{entry['peer']}"
)
def test_averaged_weights(entry):
    ours = Ours(entry)
    if not hasattr(ours.optimizer, "eval"):
        pytest.skip("there is no eval() yet")
    ours.optimizer.eval()
    np.testing.assert_allclose(ours.flat(), flat(entry["eval"]), **tolerance(entry))
    ours.optimizer.train()
    np.testing.assert_allclose(ours.flat(), flat(entry["params"]), **tolerance(entry))
