"""The rows that a sparse gradient holds, stepped where they are: each is a tensor of a plan of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steprule.engine import cpu
from steprule.engine.plan import uncut
from steprule.rule import Rule


def row_step(
    rule: type[Rule], operands: Mapping[str, Any], grad: Any, step: Any, hyper: Mapping[str, Any], maximize: bool
) -> Callable[[], None] | None:
    """What steps the rows that a coalesced sparse gradient holds, or None where no kernel can.

    Args:
        rule: the rule; elements without a gradient keep their values, and tensors have no numbers for themselves.
        operands: the parameter and the states that exist, whole.
        grad: a sparse tensor with one sparse dimension.
        step: the step's number.
        hyper: a value for each hyperparameter.
        maximize: negate the gradient first.

    Raises:
        RuleError: the formula is none that an engine can run.
    """
    import torch

    from steprule.tensors.memory import DTYPES, is_readable

    values, rows = grad.values().contiguous(), grad.indices()[0].numpy(force=True)
    tensors = {"param": operands["param"], "grad": values, **operands}
    device = tensors["param"].device
    is_plain = all(is_readable(x, device) and x.dtype in DTYPES and x.is_contiguous() for x in tensors.values())
    if torch.is_grad_enabled() or device.type != "cpu" or not is_plain:
        return None
    shape = tensors["param"].shape
    fits = grad.shape == shape and all(x.shape == shape for name, x in tensors.items() if name != "grad")
    if not fits or not len(rows) or rows.min() < 0 or rows.max() >= len(tensors["param"]):
        return None
    size = values[0].numel()
    formats = [DTYPES[x.dtype] for x in tensors.values()]
    kernel = cpu.Kernel.compiled(rule, hyper, maximize, formats)
    places = {**dict.fromkeys(tensors, rows), "grad": np.arange(len(rows))}
    addresses = {(name, ""): x.data_ptr() + x.element_size() * size * places[name] for name, x in tensors.items()}
    count, number = len(rows), float(step)
    plan = kernel.plan(
        addresses, sizes=np.full(count, size), hyper=[kernel.numbers(hyper)], first_steps=np.full(count, number),
        chunks=uncut(count, size),
    )  # fmt: skip
    plan.steps[:] = number  # which is counted already
    work = kernel.worker(plan, torch.get_num_threads)

    def run() -> None:
        work()
        torch.autograd.graph.increment_version([x for name, x in tensors.items() if name != "grad"])

    return run
