"""Gradient accumulation: sums of half-precision gradients over micro-batches, kept in more than half precision.

bfloat16 has 8 significant bits: a sum of sixteen gradients drops the small ones, and each addition rounds. Either the sum is
float32 (``grads="float32"``, torch's own ``grad_dtype``), or ``param.grad`` stays the half-precision sum that other code
expects, and the low bits that rounding cut off are kept beside it, 8 or 16 of them (``"24bit"``, ``"32bit"``). The step uses
both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from steprule.engine.cpu import Kernel
from steprule.engine.team import torch_alone
from steprule.formats import HALVES, dither, weight_format
from steprule.formats.tensors import decode, encode
from steprule.pieces import Value
from steprule.rule import Rule
from steprule.services.hooks import Owner, processes, weakly
from steprule.tensors.memory import dtype_name
from steprule.tensors.state import with_low_bits

GRAD_FORMATS = ("float32", "24bit", "32bit")


class RunningSum(Rule):
    """A running sum."""

    @staticmethod
    def update(param: Value, grad: Value) -> Value:
        """The sum with one more."""
        return param + grad


class Accumulator(Owner):
    """The low bits of one optimizer's summed gradients.

    Args:
        kind: one of GRAD_FORMATS.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._taken_over = (
            f'with grads="{kind}" are summed by another one, made later, which has the low bits of their gradients: '
            "use that alone"
        )
        self.low_bits: dict[Tensor, Tensor] = {}
        self._counts: dict[Tensor, int] = {}
        self._left: dict[Tensor, tuple[Any, ...]] = {}  # where the sum lay as autograd left it, and its version

    def format(self, dtype: str) -> str:
        """The format of the gradients of parameters of a dtype."""
        return dtype if self.kind == "float32" or dtype not in HALVES else weight_format(self.kind, dtype)

    def watch(self, param: Tensor) -> bool:
        """Prepares a parameter; only half-precision ones that are trained need it. Another optimizer's sums are taken over."""
        if dtype_name(param.dtype) not in HALVES or not param.requires_grad:
            return False
        if self.kind == "float32":
            param.grad_dtype = torch.float32
            return False
        return super().watch(param)

    def _hook(self, param: Tensor) -> tuple[Any, ...]:
        low = torch.int8 if self.kind == "24bit" else torch.int16
        if param in self.low_bits:  # at which a plan's kernels write
            self._fitting(param).zero_()
        else:
            self.low_bits[param] = torch.zeros_like(param, dtype=low, requires_grad=False)
        # The node that adds to param.grad, and not param itself, whose hooks torch.autograd.grad would call as well.
        node = _node_of(param)
        add = weakly(self._add)
        register: Any = param.register_post_accumulate_grad_hook
        handles = node.register_prehook(lambda grads: add(param, grads[0])), register(weakly(self._note))
        return node, *handles  # and the node, which autograd would forget

    def _forget(self, param: Tensor) -> None:
        super()._forget(param)
        self.low_bits.pop(param, None)
        self._counts.pop(param, None)
        self._left.pop(param, None)

    def watch_free(self, params: Iterable[Tensor]) -> None:
        """Prepares those parameters that are no living optimizer's: a copy takes others over only when it steps."""
        for param in params:
            if self.of(param) is None:
                self.watch(param)

    def settle(self, params: Iterable[Tensor]) -> None:
        """Drops the low bits of gradients that someone has changed since: they belong to other numbers.

        Args:
            params: whose gradients are about to be used.

        Raises:
            RuntimeError: another optimizer has taken parameters over.
        """
        self.check_own()
        for param in params:
            if param in self.low_bits:
                low = self._fitting(param)
                if param.grad is not None and not self._is_untouched(param, param.grad):
                    if self._hooks[param][0] is not _node_of(param):
                        self._hook_again(param)
                    with torch_alone():
                        low.zero_()

    def _fitting(self, param: Tensor) -> Tensor:
        """A gradient's low bits, anew where the parameter has another shape or place by now."""
        low = self.low_bits[param]
        if low.shape != param.shape or low.device != param.device:
            low.data = torch.zeros_like(param, dtype=low.dtype, requires_grad=False)
        return low

    def wide(self, param: Tensor, grad: Tensor) -> Tensor:
        """The gradient with its low bits, in float32."""
        kind = self.format(dtype_name(param.dtype))
        return decode(kind, with_low_bits(grad, self.low_bits[param]), param.shape)

    def _note(self, param: Tensor) -> None:
        if param.grad is not None and not param.grad.is_sparse:
            self._left[param] = _place_of(param.grad)

    def _is_untouched(self, param: Tensor, grad: Tensor) -> bool:
        return not grad.is_sparse and self._left.get(param) == _place_of(grad)

    @torch.no_grad()
    def _add(self, param: Tensor, grad: Tensor) -> tuple[Tensor] | None:
        """Called with a new gradient before autograd adds it to the old: returns the sum in its place."""
        if processes() > 1:
            raise RuntimeError(
                f'grads="{self.kind}" is for one process: the low bits of the sum would not be averaged over processes'
            )
        if getattr(sys.modules.get(_COMPILED_AUTOGRAD), "in_compiled_autograd_region", False):
            raise RuntimeError(
                f'grads="{self.kind}" and compiled autograd do not go together, as both would add: leave one of them out'
            )
        low, total = self._fitting(param), param.grad
        fits = total is not None and total.shape == grad.shape == param.shape and total.dtype == param.dtype
        if total is None or not fits or total.is_sparse or grad.is_sparse:
            low.zero_()
            return None
        if not self._is_untouched(param, total):
            low.zero_()
        dtype = dtype_name(param.dtype)
        kind = self.format(dtype)
        count = self._counts[param] = self._counts.get(param, 0) + 1
        if (
            all(x.is_contiguous() for x in (total, low, grad))
            and grad.dtype == total.dtype
            and grad.device.type == "cpu"
        ):
            self._add_in_one_pass(kind, dtype, total, low, grad, count)
        else:
            exact = decode(kind, with_low_bits(total, low), total.shape) + grad.float()
            for suffix, array in encode(kind, exact, dither(0, count, 0)).items():
                (low if suffix else total).copy_(array)
        param.grad = None
        return (total,)

    @staticmethod
    def _add_in_one_pass(kind: str, dtype: str, total: Tensor, low: Tensor, grad: Tensor, count: int) -> None:
        kernel = Kernel.compiled(RunningSum, {"seed": 0}, False, [kind, dtype])
        arrays = {("param", suffix): x for suffix, x in with_low_bits(total, low).items()} | {("grad", ""): grad}
        addresses = {array: [x.data_ptr()] for array, x in arrays.items()}
        plan = kernel.plan(addresses, sizes=[total.numel()], hyper=[kernel.numbers({})], first_steps=[count - 1.0])
        kernel.launcher(plan, torch.get_num_threads)()


_COMPILED_AUTOGRAD = "torch._dynamo.compiled_autograd"  # imported by those who use it


def _node_of(param: Tensor) -> Any:
    return torch.autograd.graph.get_gradient_edge(param).node


def _place_of(grad: Tensor) -> tuple[Any, ...]:
    """What no other tensor has and no other numbers have; nothing else gets the storage's place while this is there."""
    reference: Any = StorageWeakRef
    return reference(grad.untyped_storage()), grad.data_ptr(), grad._version
