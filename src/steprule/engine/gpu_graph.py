"""A step's launches as one CUDA graph: however many there are, the host makes one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from steprule.engine.gpu_launch import on


class Repeated(Protocol):
    """What is around a step whose launches may be replayed."""

    @property
    def repeats(self) -> bool:
        """Whether the step that comes launches what every other one does of which that is so."""

    def repeat(self) -> None:
        """Takes note of a step that was replayed."""


def wrong_devices(devices: Iterable[torch.device]) -> str | None:
    """What is to be said of parameters on these devices, None if they are on one GPU."""
    kinds = set(devices)
    if [device.type for device in kinds] == ["cuda"]:
        return None
    return f"parameters are on {' and '.join(sorted(map(str, kinds)))}, and not all on one GPU"


class StepGraph:
    """A step that is recorded once it has been taken as it is, and replayed from then on.

    Args:
        device: where all that it launches is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: object = None
        self._is_warm = False

    def take(self, step: Callable[[], object], around: Repeated, key: object) -> None:
        """Takes a step.

        Args:
            step: launches it. What it allocates must be of no use after it, but for what is kept between all steps.
            around: what surrounds it.
            key: what the launches depend on besides memory on the device. Another one calls for another graph.

        Raises:
            RuntimeError: it cannot be recorded; nothing on the device has changed.
        """
        if not around.repeats or torch.cuda.is_current_stream_capturing():
            step()
            return
        with on(self._device):
            if self._graph is not None and key == self._key:
                self._graph.replay()
                around.repeat()
                return
            is_new = key != self._key or not self._is_warm
            self._graph, self._key, self._is_warm = None, key, True
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                if is_new:  # what kernels and products keep for later they allocate outside of the graph
                    step()
                else:
                    self._graph = self._record(step)
            current.wait_stream(self._stream)
            if self._graph is not None:
                self._graph.replay()

    def _record(self, step: Callable[[], object]) -> torch.cuda.CUDAGraph:
        gc.collect()  # what is freed in a recording would spoil it
        graph = torch.cuda.CUDAGraph()
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            raise RuntimeError(
                f"cuda_graph=True cannot record this step: {error}. Where the host has to know a setting, it must be no tensor on "
                "the GPU; or set optimizer.cuda_graph = False"
            ) from error
        return graph
