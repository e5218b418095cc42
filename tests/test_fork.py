"""Steps in a forked process, whose OpenMP threads are its parent's."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from llvmlite.binding import ffi

import steprule
from steprule import arrays
from steprule.engine import team
from steprule.kernels import cache

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # of threads, which is what this is about
]

SIZE = 100_000  # enough for several threads


@pytest.fixture(autouse=True)
def several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


KERNEL = """
from steprule.engine.machine import exact

@exact
def run(x):
    return x
"""


def in_fork(work: Callable[[], Any]) -> Any:
    """What work returns in a forked process, and the warnings there; fails if it never ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(20)
            records: list[logging.LogRecord] = []
            logger = logging.getLogger("steprule")
            logger.handlers, logger.propagate = [logging.NullHandler()], False
            logger.handlers[0].handle = records.append  # type: ignore[method-assign]
            result = work(), [record.getMessage() for record in records]
            with os.fdopen(writing, "w") as stream:
                json.dump(result, stream)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as stream:
        answer = stream.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(answer)


def trained(cls: Any) -> tuple[Any, torch.nn.Parameter]:
    """An optimizer that has its plan, over many elements."""
    param = torch.nn.Parameter(torch.linspace(-1, 1, SIZE))
    param.grad = torch.linspace(1, 3, SIZE)
    optimizer = cls([param], lr=0.1)
    for _ in range(2):
        optimizer.step()
    return optimizer, param


def test_a_plan_goes_on_in_a_fork():
    optimizer, param = trained(steprule.AdamW)

    def work() -> list[float]:
        for _ in range(3):
            optimizer.step()
        return param.tolist()

    numbers, warnings = in_fork(work)
    assert numbers == work()
    assert len(warnings) == (team._openmp(True) is not None)  # else there is no team that could be missing
    assert all("fork" in warning and "spawn" in warning for warning in warnings)


def test_an_optimizer_begins_in_a_fork():
    """Its states are made there by torch's own operations."""
    trained(steprule.AdamW)
    param = torch.nn.Parameter(torch.linspace(-1, 1, SIZE))
    param.grad = torch.linspace(1, 3, SIZE)

    def work() -> list[float]:
        optimizer = steprule.AdamW([param], lr=0.1)
        optimizer.step()
        assert torch.get_num_threads() == 2
        return param.tolist()

    assert in_fork(work)[0] == work()


def test_arrays_are_stepped_in_a_fork():
    trained(steprule.AdamW)
    param, grad = np.linspace(-1, 1, SIZE, dtype=np.float32), np.linspace(1, 3, SIZE, dtype=np.float32)

    def work() -> list[float]:
        arrays.Adam([param], lr=0.1).step([grad])
        return param.tolist()

    assert in_fork(work)[0] == work()


def test_few_elements_need_no_threads_and_no_warning():
    trained(steprule.AdamW)
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = steprule.AdamW([param])

    def work() -> list[float]:
        optimizer.step()
        return param.tolist()

    numbers, warnings = in_fork(work)
    assert numbers == work() and not warnings


@pytest.mark.parametrize("released", [False, True], ids=["step", "released"])
def test_averages_of_parameters_at_rest_move_in_a_fork(released):
    """By torch's own operations, over as many elements as it uses threads for."""
    model = torch.nn.ParameterList([torch.linspace(-1, 1, 1_000_000) for _ in range(2)])
    optimizer = steprule.SGD(model.parameters(), lr=0.1, average=0.5)
    if released:
        optimizer.release_gradients(model)
    for params in (model, model[:1], model[:1]):
        for param in params:
            param.grad = torch.linspace(1, 3, 1_000_000)
        optimizer.step()
        optimizer.zero_grad()
    model[0].grad = torch.linspace(1, 3, 1_000_000)

    def work() -> list[float]:
        optimizer.step()
        return optimizer.state[model[1]]["param_average"][::1000].tolist()

    assert in_fork(work)[0] == work()


def test_sums_of_gradients_that_someone_changed_begin_anew_in_a_fork():
    param = torch.nn.Parameter(torch.ones(1_000_000, dtype=torch.bfloat16))
    optimizer = steprule.SGD([param], lr=0.1, grads="24bit")
    for _ in range(2):
        (param * 0.1).sum().backward()
    optimizer.step()
    param.grad = param.grad + 0  # as clipping by torch does

    def work() -> list[float]:
        optimizer.step()
        return param[::1000].tolist()

    assert in_fork(work)[0] == work()


@pytest.mark.parametrize("how", ["average", "schedule-free"])
def test_weights_are_exchanged_in_a_fork(how):
    param = torch.nn.Parameter(torch.linspace(-1, 1, 1_000_000))
    param.grad = torch.linspace(1, 3, 1_000_000)
    if how == "average":
        optimizer = steprule.SGD([param], lr=0.1, average=0.5)
    else:
        optimizer = steprule.ScheduleFreeSGD([param], lr=0.1)
    for _ in range(2):
        optimizer.step()

    def work() -> list[float]:
        optimizer.swap_average() if how == "average" else optimizer.eval()
        return param.tolist()[::1000]

    assert in_fork(work)[0] == work()


def test_a_fork_waits_for_a_thread_that_compiles(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    began, publish = threading.Event(), cache._publish

    def slowly(*args: Any) -> Any:
        with ffi.lib._lock:  # as LLVM has it
            began.set()
            time.sleep(0.5)
            return publish(*args)

    monkeypatch.setattr(cache, "_publish", slowly)
    thread = threading.Thread(target=cache.load_for_cpu, args=("one", KERNEL, ""))
    thread.start()
    assert began.wait(20)
    monkeypatch.setattr(cache, "_publish", publish)
    assert in_fork(lambda: cache.load_for_cpu("other", KERNEL, "")[1] > 0)[0]
    thread.join()
