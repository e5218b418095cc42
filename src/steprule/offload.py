"""An optimizer whose states, and the weights that it steps, are in the host's memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Offloaded(torch.optim.Optimizer):
    """Steps parameters of a GPU on the host, where the optimizer's states then need no memory of the GPU.

    Each parameter has a copy in pinned memory, of the same dtype, which the optimizer steps. Gradients are copied there while
    backward goes on, and after the step the weights are copied back without the host waiting. The weights are those that the
    optimizer would make on the CPU, bit for bit.

    Groups have the model's parameters and all settings, so schedulers, `GradScaler` and `clip_grad_norm_` are used as always. A
    gradient that is changed after backward, and weights that are changed in place, are copied anew. Weights that are changed by
    way of `param.data` are not seen: call `take_weights` after that.

    Args:
        params: parameters or groups, as for the optimizer.
        optimizer: its class, such as `steprule.AdamW`.
        **settings: its other arguments, formats and services included.

    Attributes:
        inner: the optimizer of the copies, which has the states. After what changes its weights, such as `inner.swap_average()`,
            call `give_weights`.

    Example::

        optimizer = steprule.Offloaded(model.parameters(), steprule.AdamW, lr=1e-3, states="8bit")

    Raises:
        TypeError: optimizer is no class of optimizers.
    """

    def __init__(self, params: ParamsT, optimizer: type[torch.optim.Optimizer], **settings: Any) -> None:
        if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
            raise TypeError(f"Offloaded() takes a class of optimizers such as steprule.AdamW, not {optimizer!r}")
        self._copies: dict[Tensor, _Copy] = {}
        self.inner: torch.optim.Optimizer | None = None
        super().__init__(params, {})
        self._wait()
        self.inner = optimizer([self._of_copies(group) for group in self.param_groups], **settings)
        self.defaults = self.inner.defaults
        self._complete()

    def _of_copies(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group with copies in the places of its parameters."""
        for param in group["params"]:
            self._copies.setdefault(param, _Copy(param))
        return {**group, "params": [self._copies[param].here for param in group["params"]]}

    def _complete(self) -> None:
        """Has groups have the settings that the optimizer's have."""
        assert self.inner is not None
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({name: value for name, value in inner.items() if name != "params"})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as torch.optim does."""
        super().add_param_group(param_group)
        if self.inner is not None:
            copies = self._of_copies(self.param_groups[-1])
            self._wait()
            self.inner.add_param_group(copies)
            self._complete()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: a function that evaluates the model again, calls backward and returns the loss.

        Returns:
            What closure returned, or None.

        Raises:
            RuntimeError: groups have other parameters than they were given; and what the optimizer's step raises.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        assert self.inner is not None
        for number, (group, inner) in enumerate(zip(self.param_groups, self.inner.param_groups, strict=True)):
            copies = [self._copies.get(param) for param in group["params"]]
            if [one.here if one is not None else None for one in copies] != inner["params"]:
                raise RuntimeError(
                    f"group {number} has other parameters than Offloaded() was given: make another, or add_param_group"
                )
            inner.update({name: value for name, value in group.items() if name != "params"})
        for copy in self._copies.values():
            copy.take_weights()
            copy.take_gradient()
        self._wait()
        self.inner.step()
        self.give_weights(changed_only=True)
        return loss

    @torch.no_grad()
    def take_weights(self) -> None:
        """Has the copies be as the model's weights are."""
        for copy in self._copies.values():
            copy.take_weights(anyway=True)
        self._wait()

    @torch.no_grad()
    def give_weights(self, changed_only: bool = False) -> None:
        """Has the model's weights be as the copies are.

        Args:
            changed_only: leave out those that nothing has written to in place. Default: False.
        """
        for copy in self._copies.values():
            copy.give_weights(anyway=not changed_only)

    def _wait(self) -> None:
        """Returns once nothing is copied any more."""
        for device in {param.device for param in self._copies if param.device.type == "cuda"}:
            stream = _stream_of(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            stream.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, which one without offloading can load."""
        assert self.inner is not None
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict, also that of an optimizer without offloading."""
        assert self.inner is not None
        self.inner.load_state_dict(state_dict)
        self._complete()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "an Offloaded optimizer cannot be copied or pickled: make another, and give it this one's state_dict()"
        )


class _Copy:
    """A parameter's copy in the host's memory.

    Args:
        param: the parameter, of whatever device.

    Attributes:
        here: the copy.
    """

    def __init__(self, param: Tensor) -> None:
        self._param = param
        self._stream = _stream_of(param.device) if param.device.type == "cuda" else None
        self.here = torch.nn.Parameter(self._room(param), requires_grad=param.requires_grad)
        self._room_of_grad: Tensor | None = None
        self._seen: Callable[[], Tensor | None] = _nothing
        self._known = (0, 0)
        self._weights_at = self._given_at = -1
        with torch.no_grad():
            self.take_weights()
        own = weakref.ref(self)

        def begin(param: Tensor) -> None:
            copy = own()
            if copy is not None:
                copy.take_gradient()

        if param.requires_grad and param.is_leaf:
            param.register_post_accumulate_grad_hook(begin)  # type: ignore[no-untyped-call]

    def _room(self, like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu", pin_memory=self._stream is not None, requires_grad=False)

    def _bring(self, target: Tensor, source: Tensor) -> None:
        """Copies, beside what the GPU does."""
        if self._stream is None:
            target.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(self._stream)

    def take_weights(self, anyway: bool = False) -> None:
        """Has the copy be as the weights are, if something has written these since."""
        if anyway or self._param._version != self._weights_at:
            self._bring(self.here.data, self._param.detach())
            self._weights_at, self._given_at = self._param._version, self.here._version

    @torch.no_grad()
    def take_gradient(self) -> None:
        """Has the copy have the parameter's gradient, if it has not yet."""
        grad = self._param.grad
        if grad is None or grad.is_sparse:
            self.here.grad, self._seen = None if grad is None else grad.cpu(), _nothing
            return
        known = grad._version, grad.data_ptr()
        if self._seen() is grad and known == self._known:
            return
        if (
            self._room_of_grad is None
            or self._room_of_grad.dtype != grad.dtype
            or self._room_of_grad.stride() != grad.stride()
        ):
            self._room_of_grad = self._room(grad.detach())
        self._bring(self._room_of_grad, grad.detach())
        self.here.grad, self._seen, self._known = self._room_of_grad, weakref.ref(grad), known

    def give_weights(self, anyway: bool) -> None:
        """Has the weights be as the copy is, if something has written to that."""
        if not anyway and self.here._version == self._given_at:
            return
        self._param.copy_(self.here, non_blocking=True)
        self._weights_at, self._given_at = self._param._version, self.here._version


def _nothing() -> None:
    """As a reference to what is there no more."""


_STREAMS: dict[torch.device, Any] = {}


def _stream_of(device: torch.device) -> Any:
    """The stream on which a device's gradients are copied."""
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device]
