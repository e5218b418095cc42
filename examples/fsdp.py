"""Train a small transformer over characters under FSDP2, with 8-bit states, clipping and averaged weights.

    torchrun --nproc-per-node 2 examples/fsdp.py --steps 40 --folder run
    torchrun --nproc-per-node 4 examples/fsdp.py --steps 80 --folder run    # goes on where the last run stopped

Each process has a part of every parameter, gradient and state. The optimizer is made as for one process; sums, the gradient norm
and the decision to skip are those of the whole model. Each checkpoint has a folder of its own, and `last` names the last one that is
complete: a run that is killed while it saves goes on from there. On GPUs write "nccl" and "cuda" instead of "gloo" and "cpu".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import steprule
from steprule.compare.tasks import chars


def save(folder: Path, step: int, model: torch.nn.Module, optimizer: steprule.Optimizer) -> None:
    """Saves what every process has, and says so when all are done."""
    weights, states = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": states, "step": step}, checkpoint_id=folder / f"step-{step}")
    if dist.get_rank() == 0:
        (folder / "last.new").write_text(f"step-{step}")
        (folder / "last.new").replace(folder / "last")  # at once, or not at all


def load(folder: Path, model: torch.nn.Module, optimizer: steprule.Optimizer) -> int:
    """Takes over the last complete checkpoint, if there is one, and returns how many steps it had seen."""
    if not (folder / "last").exists():
        return 0
    weights, states = get_state_dict(model, optimizer)
    saved = {"model": weights, "optimizer": states, "step": 0}
    checkpoint.load(saved, checkpoint_id=folder / (folder / "last").read_text())
    set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    return saved["step"]


def main() -> None:
    """Trains, saves and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=200, help="how many steps there are to be, with those of earlier runs"
    )
    parser.add_argument("--every", type=int, default=100, help="save after so many steps, and after the last one")
    parser.add_argument("--folder", type=Path, default=Path("run"), help="where checkpoints are kept")
    chosen = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (world,))

    task = chars()
    model = task.make_model(0)  # the same on every process
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = steprule.AdamW(
        model.named_parameters(), lr=3e-3, states="8bit", clip=1.0, nonfinite="skip", average=0.9, telemetry=10
    )

    done = load(chosen.folder, model, optimizer)
    if rank == 0:
        print(f"step {done}: going on from {chosen.folder}" if done else "step 0: no checkpoint yet", flush=True)
    batches = task.batches(0)
    for _ in range(done):
        next(batches)
    for step in range(done, chosen.steps):
        characters, following = next(batches)
        optimizer.zero_grad()
        task.loss(model, (characters[rank::world], following[rank::world])).backward()  # its share of the batch
        optimizer.step()
        if rank == 0 and (step + 1) % 20 == 0:
            print(f"step {step + 1}: gradient norm {float(optimizer.grad_norm):.2f}", flush=True)
        if (step + 1) % chosen.every == 0 or step + 1 == chosen.steps:
            save(chosen.folder, step + 1, model, optimizer)

    model.eval()
    with torch.no_grad(), optimizer.averaged():
        found = task.evaluate(model)
    if rank == 0:
        print(f"step {chosen.steps}: validation loss {found['loss']:.3f} with averaged weights", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
