"""Cost: bytes of states, and time. Only what is claimed can fail; the rest is measured and shown."""

from __future__ import annotations

import io
import time

import torch

from steprule.check.checks import Make, check, each, grad
from steprule.check.claims import Subject


def _claimed_bytes(subject: Subject) -> list[dict[str, object]]:
    return [{"most": subject.claims.state_bytes}]


@check("cost", cases=_claimed_bytes)
def keeps_the_bytes_it_claims(make: Make, most: float | None) -> str:
    """The states of a float32 matrix of 256 x 256, and its checkpoint, take no more bytes an element than claimed."""
    p = torch.nn.Parameter(torch.ones(256, 256))
    optimizer = make([p], lr=0.001)
    for _ in range(2):
        p.grad = grad(p)
        optimizer.step()
    held = sum(x.numel() * x.element_size() for x in optimizer.state[p].values() if torch.is_tensor(x)) / p.numel()
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    held = max(held, file.tell() / p.numel() - 0.1)  # a file has its names besides
    assert held <= 1.01 * (most or float("inf")), f"states take {held:.3g} bytes an element, and {most} are claimed"
    return f"{held:.3g} bytes an element"


@check("cost")
def does_not_grow(make: Make) -> None:
    """States after twenty steps take the bytes of those after five."""
    p, counts = torch.nn.Parameter(torch.ones(16, 16)), []
    optimizer = make([p], lr=0.001)
    for k in range(20):
        p.grad = grad(p, k)
        optimizer.step()
        held = [x for value in optimizer.state[p].values() for x in (value if isinstance(value, list) else [value])]
        counts.append(sum(x.numel() for x in held if torch.is_tensor(x)))
    assert counts[-1] <= counts[4], f"states have {counts[4]} elements after 5 steps and {counts[-1]} after 20"


@check("cost", cases=each(size=[64, 512]))
def step_time(make: Make, size: int) -> str:
    """Is measured, at two sizes, and cannot fail."""
    p = torch.nn.Parameter(torch.ones(size, size))
    optimizer, took = make([p], lr=0.001), []
    for k in range(5):
        p.grad = grad(p, k)
        began = time.perf_counter()
        optimizer.step()
        took.append(time.perf_counter() - began)
    return f"{size} x {size}: {min(took) * 1e3:.2g} ms"
