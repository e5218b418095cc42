"""Programs that several processes run together."""

from __future__ import annotations

from pathlib import Path

from forked import forked

RANK = object()
"""What a process is told that is to know its rank."""
NEEDED = (
    "llvmlite.binding", "pytest", "torch._dynamo", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "torch.distributed.optim",
    "torch.distributed.tensor.parallel", "steprule.rules",
)  # fmt: skip
"""What they import; DTensors import torch._dynamo."""


def run_ranks(name: str, count: int, *arguments: object) -> None:
    """Runs a program of this folder in several processes at once, which must all end well.

    Args:
        name: the program's file.
        count: how many processes.
        arguments: what each is told; RANK stands for its rank.
    """
    program = Path(__file__).with_name(name)
    ended = forked([[program, *(rank if x is RANK else x for x in arguments)] for rank in range(count)], NEEDED)
    assert [one.returncode for one in ended] == [0] * count, [one.stderr[-3000:] for one in ended]
