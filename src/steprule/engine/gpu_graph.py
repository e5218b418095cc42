"""A step's launches as one CUDA graph: however many there are, the host makes one."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from steprule.engine import gpu
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
    if len(kinds) == 1 and {device.type for device in kinds} <= gpu.DEVICES:
        return None
    return f"parameters are on {' and '.join(sorted(map(str, kinds)))}, and not all on one GPU"


MOST_RECORDED = 32
"""Steps in which something else is computed that a graph is kept for; each takes memory."""


class StepGraph:
    """Steps that are recorded once they have been taken as they are, and replayed from then on.

    Args:
        device: where all that they launch is.
        numbers: those that tensors have for themselves, a `steprule.engine.gpu_own.GpuPlanned` for each plan that has some.
    """

    def __init__(self, device: torch.device, numbers: Sequence[Any]) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._numbers = numbers
        self._pool: Any = None
        self._key: object = None
        self._seen: dict[Hashable, Recording | None] = {}

    def take(self, step: Callable[[], object], around: Repeated, key: object) -> None:
        """Takes a step, or replays it.

        Args:
            step: launches it. What it allocates must be of no use after it, but for what is kept between all steps.
            around: what surrounds it.
            key: what the launches of all steps depend on besides memory on the device. Another one calls for other graphs.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        if key != self._key:  # also for a step that is not replayed: it drops what graphs of other settings read
            self._key, self._seen = key, {}
        if not around.repeats or torch.cuda.is_current_stream_capturing():
            step()
            return
        choices = tuple([own.choices() for own in self._numbers])
        try:
            with on(self._device):
                if (recorded := self._seen.get(choices)) is None:
                    self._take(step, choices)
                    return
                recorded.replay()
            for own in self._numbers:
                own.count_here()
        except BaseException:
            for own in self._numbers:  # the device may have counted a step that it has not taken
                own.forget_steps()
            raise
        around.repeat()

    def _take(self, step: Callable[[], object], choices: Hashable) -> None:
        """Takes a step that has not been recorded yet."""
        is_new = choices not in self._seen
        if is_new and len(self._seen) >= MOST_RECORDED:
            step()
            return
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                if is_new:  # what kernels and products keep for later they allocate outside of the graph
                    step()
                    self._seen[choices] = None
                    return
                if not any(self._seen.values()):  # a pool ends with the last graph that it is for
                    self._pool = torch.cuda.graph_pool_handle()
                self._seen[choices] = Recording(step, self._pool)
        finally:  # what has been launched before an error runs on
            current.wait_stream(self._stream)


class Recording:
    """A step as graphs, and what is computed between these since none can record it. It is taken while it is recorded.

    Args:
        step: launches it.
        pool: of memory that it shares with others that are replayed before or after it.

    Raises:
        RuntimeError: it cannot be recorded.
    """

    def __init__(self, step: Callable[[], object], pool: Any) -> None:
        self._pool, self._pieces = pool, list[Callable[[], object]]()
        gc.collect()  # what is freed in a recording would spoil it
        _CURRENT.recording = self
        self._end: Callable[[], object] = _nothing
        try:
            self._begin()
            try:
                step()
            finally:
                self._end()
        except RuntimeError as error:
            if self._end is _nothing:  # between two graphs, where a step fails as without them
                raise
            half = f" {_HALF}" if self._pieces[1:] else ""
            raise RuntimeError(
                f"cuda_graph=True cannot record this step: {error}. Where the host has to know a setting, it must be no tensor on "
                f"the GPU; or set optimizer.cuda_graph = False.{half}"
            ) from error
        finally:
            _CURRENT.recording = None
        self._pieces[-1]()

    def _begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        self._end = graph.capture_end
        self._pieces.append(graph.replay)

    def apart(self, compute: Callable[[], Tensor]) -> Tensor:
        """Computes something between two graphs, now and in every replay; always in the same memory."""
        end, self._end = self._end, _nothing
        end()
        self._pieces[-1]()
        result = compute().clone()
        self._pieces.append(lambda: result.copy_(compute()))
        self._begin()
        return result

    def replay(self) -> None:
        """Takes the step once more.

        Raises:
            RuntimeError: what is computed between two graphs has failed.
        """
        for number, piece in enumerate(self._pieces):
            try:
                piece()
            except RuntimeError as error:
                raise RuntimeError(f"{error}. {_HALF}" if number else str(error)) from error


_HALF = "This step is half taken: load a checkpoint."


def _nothing() -> None:
    """Ends no recording."""


class _Current(threading.local):
    recording: Recording | None = None


_CURRENT = _Current()


def check_not_recorded(device: torch.device) -> None:
    """Raises where somebody else's graph records a step of which the host decides what is computed."""
    if gpu.is_recording(device) and _CURRENT.recording is None:
        raise RuntimeError(
            "a CUDA graph cannot record a step of a rule with squares beside matrices, such as SOAP: bases are computed in some steps only. "
            "Leave the step out of the graph, and set optimizer.cuda_graph = True, which records all but these"
        )


def apart(compute: Callable[[], Tensor]) -> Tensor:
    """Computes what no graph can record: the host waits for some of it."""
    recording = _CURRENT.recording
    return compute() if recording is None else recording.apart(compute)
