"""Writes mup.json: what Microsoft's mup makes of `net`, for tests/test_transfer.py.

Needs an environment of its own, as make.py does::

    peers/bin/pip install torch==2.13.0 mup
    peers/bin/python tests/peers/make_mup.py
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BASE, WIDTH, STEPS = 8, 32, 3
SETTINGS: dict[str, dict[str, Any]] = {
    "MuAdamW": {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-12},
    "MuAdam": {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-12},
    "MuSGD": {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9},
}


class Net(nn.Module):
    """An input, two hidden matrices and a head whose input is multiplied by a number, without bias there."""

    def __init__(self, width: int, head: Any = nn.Linear, factor: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Linear(5, width)
        self.blocks = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width), nn.Tanh())
        self.head = head(width, 3, bias=False)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.tanh(self.first(x))) * self.factor)  # type: ignore[no-any-return]


def filled(model: nn.Module) -> nn.Module:
    """The model in float64, with weights that any version of anything makes alike."""
    model.double()
    for number, param in enumerate(model.parameters()):
        numbers = torch.arange(param.numel(), dtype=torch.float64).reshape(param.shape)
        param.data = torch.sin(numbers * 12.9898 + number) / max(1, param[0].numel()) ** 0.5
    return model


def train(model: nn.Module, optimizer: Any) -> None:
    """Steps on one batch."""
    inputs = torch.sin(torch.arange(30, dtype=torch.float64)).reshape(6, 5)
    targets = torch.cos(torch.arange(18, dtype=torch.float64)).reshape(6, 3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()


def made_by_mup(name: str) -> dict[str, Any]:
    """The settings that each parameter has there, relative to those given, and some of its numbers at the end."""
    mup: Any = importlib.import_module("mup")
    model = Net(WIDTH, mup.MuReadout)
    mup.set_base_shapes(model, Net(BASE, mup.MuReadout), delta=Net(2 * BASE, mup.MuReadout))
    settings = SETTINGS[name]
    optimizer = getattr(mup, name)(filled(model).parameters(), **settings)
    train(model, optimizer)
    groups = {param: group for group in optimizer.param_groups for param in group["params"]}
    return {
        key: {
            **{f"{what}_mult": groups[param][what] / settings[what] for what in ("lr", "weight_decay")},
            "numbers": param.detach().flatten()[:4].tolist(),
            "norm": float(param.detach().norm()),
        }
        for key, param in model.named_parameters()
    }


if __name__ == "__main__":
    found = {"mup": importlib.metadata.version("mup"), "torch": torch.__version__}
    found |= {name: made_by_mup(name) for name in SETTINGS}
    Path(__file__).with_name("mup.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
