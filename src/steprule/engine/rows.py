"""The rows that a sparse gradient holds, stepped where they are: each is a tensor of a plan of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steprule.engine import cpu
from steprule.engine.plan import Plan
from steprule.rule import Rule


class RowPlan(Plan):
    """A plan whose tensors are some rows of arrays of one shape.

    Args:
        addresses: for each of the kernel's arrays the address of each row.
        size: the elements of a row.
        hyper: the numbers for all rows.
        step: their step, which is counted already.
    """

    def __init__(self, addresses: np.ndarray, size: int, hyper: list[float], step: float) -> None:
        count = addresses.shape[1]
        self.addresses = addresses
        self.size, self.chunk_count = count * size, count
        self.sizes = self._rows = np.full(count, size, np.int64)
        self.groups = self.first_factor = np.zeros(count, np.int64)
        self.hyper = np.array([hyper], np.float64)
        self.steps = np.full(count, step, np.float64)
        self._numbers = np.arange(count, dtype=np.int64)
        self._chunks = np.zeros((count, 5), np.int64)
        self._chunks[:, 0], self._chunks[:, 2] = self._numbers, size
        self._step_at = self._step_kind = self.groups
        self._pieces = self._chunks  # which only other kernels look at
        self.factors = self.steps
        self.partials = self.own = self.hyper
        self.counter = np.zeros(8, np.int64)
        self._headers = {2: self._header(2, count)}
        self.work_header = self._headers[2].ctypes.data


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
    addresses = np.array(
        [
            tensors[name].data_ptr() + tensors[name].element_size() * size * places[name]
            for name, _ in kernel.source.arrays
        ]
    )
    plan = RowPlan(addresses, size, kernel.numbers(hyper), float(step))
    work = kernel.worker(plan, torch.get_num_threads)

    def run() -> None:
        work()
        torch.autograd.graph.increment_version([x for name, x in tensors.items() if name != "grad"])

    return run
