"""Rules of whole matrices on the GPU engine: on a GPU, or interpreted where there is none."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from engines import GPU_DEVICE

import steprule
from steprule.beside import beside
from steprule.engine import gpu, squares
from steprule.engine.gpu_plan import GpuPlan
from steprule.services import ClipNorm

pytest.importorskip("triton")

SHAPES = [(6, 140), (8, 4), (4, 3, 3, 3), (8, 4), (1, 5)]
CASES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "plain": (torch.float32, {}),
    "without Nesterov": (torch.float32, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
    "8bit": (torch.float32, {"states": "8bit"}),
    "7 bytes": (torch.bfloat16, {"states": "8bit", "weights": "24bit", "nesterov": False}),
    "stochastic": (torch.bfloat16, {"states": "bfloat16", "weights": "stochastic"}),
    "services": (torch.float32, {"clip": ClipNorm(1.0), "nonfinite": "skip", "average": 0.9, "telemetry": 1}),
    "cautious": (torch.float32, {"cautious": True}),
}


def train(device: torch.device, case: str) -> tuple[list[torch.Tensor], steprule.Optimizer]:
    dtype, settings = CASES[case]
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in SHAPES]
    groups = [{"params": params[:2]}, {"params": params[2:], "ns_steps": 4, "lr": 0.05}]
    optimizer = steprule.Muon(groups, lr=0.1, **settings)
    for step in range(3):
        for number, param in enumerate(params):
            grad = torch.randn(param.shape, generator=generator)
            if step == 2 and number == 1 and "nonfinite" in settings:
                grad.view(-1)[3] = float("nan")
            param.grad = grad.to(device, dtype)
        optimizer.step()
    return [param.detach().cpu() for param in params], optimizer


@pytest.mark.parametrize("case", CASES)
def test_the_gpu_engine_steps_matrices_as_the_cpu_engine_does(monkeypatch, case):
    ours, host = train(torch.device("cpu"), case)
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    theirs, device = train(GPU_DEVICE, case)
    assert device._core.plans.current is not None and device._core.plans.current.repeats
    for one, other in zip(ours, theirs, strict=True):
        if GPU_DEVICE.type == "cpu":  # the same products
            assert torch.equal(one, other)
        else:  # products in bfloat16: a singular value is off by some of its last places, and a step by some of those
            assert (one.float() - other.float()).abs().max() <= 4 * 0.1 * 0.1 * max(one.shape) ** 0.5
    if "nonfinite" in CASES[case][1]:
        assert host.skipped_steps == device.skipped_steps == 1


SQUARED: dict[str, Any] = {
    "SOAP": {"clip": 1.0, "states": "8bit"},
    "SOAP, services": {"clip": ClipNorm(1.0), "nonfinite": "skip", "average": 0.9, "telemetry": 1},
    "Shampoo": {},
    "ASGO": {},
    "SPlus": {},
    "PSGDKron": {"max_precond_dim": 10},
}


def assert_near(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        if GPU_DEVICE.type == "cpu":  # the same products
            assert torch.equal(one, other)
        else:  # other products, and bases by another library
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("case", SQUARED)
def test_squares_beside_matrices(monkeypatch, case):
    """Of such rules the host counts steps, and decides which are skipped."""

    def train(device: torch.device) -> tuple[list[torch.Tensor], steprule.Optimizer]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(6, 14), (8, 4), (6, 14), (1, 5), (6, 14)]
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
        settings = {"precondition_frequency": 3, **copy.deepcopy(SQUARED[case])}
        optimizer = getattr(steprule, case.partition(",")[0])(groups, lr=0.1, **settings)
        for step in range(6):
            for number, param in enumerate(params):
                grad = torch.randn(param.shape, generator=generator)
                grad.view(-1)[3] = float("nan") if (step, number) == (4, 1) and "nonfinite" in settings else 1.0
                param.grad = grad.to(device)
            optimizer.step()
        plan = optimizer._core.plans.current
        assert plan is not None and plan.repeats
        assert isinstance(plan._buckets[0][0].plan, GpuPlan) == gpu.serves(device)
        return [param.detach().cpu() for param in params], optimizer

    ours, host = train(torch.device("cpu"))
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    theirs, there = train(GPU_DEVICE)
    assert_near(ours, theirs)
    assert host.skipped_steps == there.skipped_steps == ("nonfinite" in SQUARED[case])


SEEN = {"rows 2": (6, 140), "transpose": (8, 4), "stack, transpose, interleaved 2": (2, 3, 8), "flatten": (4, 3, 3, 3)}


def test_views_and_another_rule_beside_are_stepped_by_the_gpu_engine(monkeypatch):
    def train(device: torch.device) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SEEN.values()]
        params[3].data = params[3].data.to(memory_format=torch.channels_last)
        groups = [{"params": [param], "view": words} for param, words in zip(params, SEEN, strict=True)]
        params.append(torch.nn.Parameter(torch.randn(9, generator=generator).to(device)))
        joined = beside(steprule.Muon.rule, steprule.AdamW.rule)
        optimizer = steprule.Optimizer.of(joined)([*groups, {"params": params[4:], "rule": "adamw"}], lr=0.1, clip=1.0)
        for _ in range(3):
            for param in params:
                param.grad = torch.empty_like(param).copy_(torch.randn(param.shape, generator=generator))
            optimizer.step()
        plan = optimizer._core.plans.current
        assert plan is not None and plan.repeats
        return [param.detach().cpu() for param in params]

    ours = train(torch.device("cpu"))
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    for one, other in zip(ours, train(GPU_DEVICE), strict=True):
        if GPU_DEVICE.type == "cpu":
            assert torch.equal(one, other)
        else:
            assert (one - other).abs().max() <= 4 * 0.1 * 0.1 * max(one.shape) ** 0.5


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_and_a_graph_records_it():
    params = [torch.nn.Parameter(torch.randn(64, 96, device="cuda")) for _ in range(3)]
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    optimizers = [steprule.Muon(params, lr=0.1), steprule.Muon(others, lr=0.1)]
    grads = [torch.randn_like(param) for param in params]

    def step(number: int) -> None:
        for param, grad in zip((params, others)[number], grads, strict=True):
            param.grad = grad
        optimizers[number].step()

    for _ in range(3):
        step(0)
        step(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(1)
    graph.replay()
    torch.cuda.synchronize()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other)


def test_of_settings_on_the_device_the_host_reads_those_of_products_alone(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    param = torch.nn.Parameter(torch.randn(8, 4, device=GPU_DEVICE))
    lr, eps = torch.tensor(0.1, device=GPU_DEVICE), torch.tensor(1e-7, device=GPU_DEVICE)
    read = []
    item = torch.Tensor.item
    optimizer = steprule.Muon([param], lr=lr, eps=eps)
    for step in range(3):
        param.grad = torch.randn_like(param)
        if step == 2:
            monkeypatch.setattr(torch.Tensor, "item", lambda x: read.append(x.data_ptr()) or item(x))
        optimizer.step()
    monkeypatch.undo()
    assert eps.data_ptr() in read and lr.data_ptr() not in read


def test_a_step_that_has_failed_leaves_nothing_for_the_next(monkeypatch):
    """Bases of some tensors are there when those of others fail; then somebody changes what they are made of."""
    if GPU_DEVICE.type == "cpu":
        monkeypatch.setattr(gpu, "DEVICES", {"cpu"})
    solve = squares._DECOMPOSED["eigenbasis"]
    calls: list[int] = []

    def solve_two(*args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise torch.linalg.LinAlgError("no end")
        return solve(*args)

    def train(fails: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.ones(shape, device=GPU_DEVICE)) for shape in ((4, 3), (5, 2))]
        optimizer = steprule.SOAP(params, lr=0.1, precondition_frequency=1)
        for step in range(4):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(GPU_DEVICE)
            if step == 3:
                with monkeypatch.context() as patch:
                    patch.setitem(squares._DECOMPOSED, "eigenbasis", solve_two if fails else solve)
                    with pytest.raises(torch.linalg.LinAlgError) if fails else contextlib.nullcontext():
                        optimizer.step() if fails else None
                turn = torch.randn((4, 4), generator=generator).to(GPU_DEVICE)
                optimizer.state[params[0]]["left"].copy_(turn @ turn.T)
            optimizer.step()
        return [param.detach().cpu() for param in params]

    for one, other in zip(train(True), train(False), strict=True):
        assert torch.equal(one, other)


def test_gradients_that_are_released_beside_squares(monkeypatch):
    """The host counts the steps of each parameter for itself, and reads those that somebody sets."""

    def train(device: torch.device, releases: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(*sides, bias=False) for sides in ((4, 3), (3, 5)))).to(device)
        optimizer = steprule.SOAP(model.parameters(), lr=0.1, precondition_frequency=2)
        if releases:
            optimizer.release_gradients(model)
        for step in range(6):
            optimizer.zero_grad()
            model(torch.randn(6, 4).to(device)).square().sum().backward()
            optimizer.step()
            for param in model.parameters() if step == 3 else ():
                optimizer.state[param]["step"].fill_(1.0)
        plans = optimizer._core.plans
        every = plans.single.values() if releases else [plans.current]
        assert {isinstance(plan._buckets[0][0].plan, GpuPlan) for plan in every} == {gpu.serves(device)}
        return [param.detach().cpu() for param in model.parameters()]

    ours = train(torch.device("cpu"), False)
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    assert_near(ours, train(GPU_DEVICE, True))


def test_steps_of_all_are_taken_back_where_those_of_some_cannot_be_counted(monkeypatch):
    """As for want of memory: the matrices of another dtype have another plan."""
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    params = [
        torch.nn.Parameter(torch.ones((4, 3), dtype=x, device=GPU_DEVICE)) for x in (torch.float32, torch.float64)
    ]
    optimizer = steprule.SOAP(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()

    def fail() -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(optimizer._core.plans.current._works[1], "count", fail)
        optimizer.step()
    assert [float(optimizer.state[param]["step"]) for param in params] == [1.0, 1.0]
    optimizer.step()
    assert [float(optimizer.state[param]["step"]) for param in params] == [2.0, 2.0]
    for work in optimizer._core.plans.current._works:
        assert work.numbers._steps_here.now.tolist() == [2.0]
