"""What one of several processes does for tests/frameworks/test_processes.py: `torchrun --nproc-per-node 2 processes.py TRAINER FOLDER`.

The optimizers train in a framework, and once more with a checkpoint in the middle. What they come to is kept for each process.
"""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path
from typing import Any

import conftest  # noqa: F401, for torchvision
import torch
import trainers
from torch import nn
from torch.distributed.tensor import DTensor
from training import EPOCHS, RANK, Wish

import steprule

TRAINERS = {
    "transformers": trainers.transformers, "accelerate": trainers.accelerate, "accelerate, FSDP2": functools.partial(trainers.accelerate, fsdp2=True),
    "Lightning": trainers.lightning, "Fabric": trainers.fabric, "DeepSpeed, stage 0": functools.partial(trainers.deepspeed, stage=0),
    "DeepSpeed, stage 1": functools.partial(trainers.deepspeed, stage=1), "DeepSpeed, stage 2": functools.partial(trainers.deepspeed, stage=2),
}  # fmt: skip

EPS = 1e-3
"""What limits how much of a gradient's rounding a step of Adam's makes: lr / EPS of it."""


def adamw(model: nn.Module, **settings: Any) -> Any:
    services = {"clip": 0.05, "nonfinite": "skip", **settings}
    return steprule.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, eps=EPS, **services)


def pieces(model: nn.Module) -> Any:
    """For DeepSpeed's flat pieces, whose norm is that of all processes."""
    return adamw(model, process_group=torch.distributed.group.WORLD)


def muon(model: nn.Module) -> Any:
    roles = {"2.weight": "hidden"} if isinstance(model, nn.Sequential) else ()
    return steprule.create_optimizer(model, "muon", lr=0.01, weight_decay=0.1, nonfinite="skip", roles=roles)


def makers(name: str) -> dict[str, Any]:
    """What a framework's way of dividing a model takes."""
    if name in ("DeepSpeed, stage 1", "DeepSpeed, stage 2"):
        return {"AdamW": pieces}
    averaged = functools.partial(adamw, average=0.5)
    return {"AdamW": adamw, "average": averaged, "Schedule-Free": schedule_free, "Muon": muon}


def schedule_free(model: nn.Module) -> Any:
    return steprule.ScheduleFreeAdamW(model.parameters(), lr=0.01, eps=EPS, clip=0.05)


def whole(model: nn.Module) -> list[torch.Tensor]:
    kept = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [p.detach().clone() for p in kept]


def result(done: Any) -> dict[str, Any]:
    """Weights as they are trained and their averages, and what services say."""
    found = {
        "norm": float(getattr(done.optimizer, "grad_norm", 0.0)),
        "clipped": getattr(done.optimizer, "clipped_steps", 0),
    }
    done.optimizer.train()
    found["trained"] = whole(done.model)
    done.handle.eval() if callable(getattr(done.handle, "eval", None)) else done.optimizer.eval()
    return {**found, "averages": whole(done.model)}


def main(name: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    train, found = TRAINERS[name], {}
    for kind, make in makers(name).items():
        paths = [Path(folder) / f"{kind} {part}" for part in ("at once", "in parts")]
        for path in paths:
            path.mkdir(exist_ok=True, parents=True)
        found[kind] = result(train(make, Wish(paths[0])))
        train(make, Wish(paths[1], epochs=EPOCHS - 1))
        found[kind + ", resumed"] = result(train(make, Wish(paths[1], epochs=1, resumes=True)))
    torch.save(found, Path(folder) / f"{RANK}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
