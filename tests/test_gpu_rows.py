"""Numbers of rows and columns on the GPU engine: on a GPU, or interpreted where there is none."""

from __future__ import annotations

import pytest
import test_matrix_engine as host
import torch
from engines import GPU_DEVICE
from settings import IDS, VARIANTS
from test_gpu_kernels import formats_of

import steprule
from steprule.engine import gpu
from steprule.rules import OWN
from steprule.trace.tracing import program_of

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def takes_rows(monkeypatch):
    monkeypatch.setattr(gpu, "TAKES_ROWS", True)


SHAPES = [(5, 7), (1, 9), (9, 1), (65, 80), (4, 3, 2, 2)]
"""Of which some have whole tiles, tiles that end within rows or columns, and rows that memory is not aligned for."""


def forms():
    """Rules for this alone, and those of the registry that look at rows or columns, in each form that a word gives them."""
    yield from ((rule.__name__, rule, dict(rule.hyperparameters)) for rule in host.RULES if rule is not host.Dion2)
    for name, (rule, hyper) in zip(IDS, VARIANTS, strict=True):
        flags = {key: value for key, value in rule.hyperparameters.items() if isinstance(value, bool)}
        if (
            hyper == {**hyper, **flags}
            and program_of(rule, hyper).last.sides
            and not program_of(rule, hyper).has_squares
        ):
            yield name, rule, hyper


FORMS = {name: (rule, hyper) for name, rule, hyper in forms()}


def train(device, rule, hyper, dtype, shapes=SHAPES, integers=False, **settings):
    """A step of some, and one of all."""
    generator = torch.Generator().manual_seed(0)

    def random(shape, limit):
        if integers:
            return torch.randint(-limit, limit + 1, shape, generator=generator).to(device, dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    shapes = [shape for shape in shapes if len(shape) == 2 or not rule.stacks]
    params = [torch.nn.Parameter(random(shape, 8)) for shape in shapes]
    known = {name: value for name, value in hyper.items() if value != rule.hyperparameters[name]}
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 2.0**-5}]
    optimizer = steprule.Optimizer.of(rule)(groups, **known, **settings)
    for step in range(2):
        for number, param in enumerate(params):
            param.grad = random(param.shape, 4) if step or number > 1 else None
        optimizer.step()
    plan = optimizer._core.plans.current
    assert plan is not None and plan.repeats, "no kernel steps it"
    return params, optimizer


def pairs(one, other):
    """Parameters and states of two runs."""
    for x, y in zip(one[0], other[0], strict=True):
        yield x, y
        for name, kept in one[1].state[x].items():
            yield kept, other[1].state[y][name]


@pytest.mark.parametrize("name", FORMS)
def test_rules_are_stepped_as_the_cpu_engine_does(monkeypatch, name):
    rule, hyper = FORMS[name]
    ours = train(torch.device("cpu"), rule, hyper, torch.float64)
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    for one, other in pairs(ours, train(GPU_DEVICE, rule, hyper, torch.float64)):
        scale = one.detach().abs().max()
        assert (one - other.cpu()).detach().abs().max() <= 1e-9 * scale


FEWER = {"states": "8bit", "weights": "24bit", "telemetry": 1, "average": 0.5}


@pytest.mark.parametrize("settings", [{}, FEWER], ids=["float32", "fewer bytes"])
def test_where_nothing_is_rounded_all_is_as_on_the_cpu_to_the_last_bit(monkeypatch, settings):
    dtype = torch.bfloat16 if settings else torch.float32
    ways = [host.Kept, {}, dtype, [(65, 144), (3, 128), (9, 130), (1, 5), (5, 1)], True]
    ours = train(torch.device("cpu"), *ways, **settings)
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    theirs = train(GPU_DEVICE, *ways, **settings)
    for one, other in pairs(ours, theirs):
        assert torch.equal(one, other.cpu())
    if settings:
        norm = torch.cat([param.grad.double().flatten() for param in theirs[0]]).norm()
        assert theirs[1].telemetry.latest["total"]["grad_norm"] == pytest.approx(float(norm), rel=1e-6)


def test_a_step_that_is_skipped_changes_no_number_of_a_row(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    param = torch.nn.Parameter(torch.randn(5, 7, device=GPU_DEVICE))
    optimizer = steprule.CAME([param], nonfinite="skip", clip=1.0)
    for step in range(3):
        param.grad = torch.randn_like(param)
        if step == 2:
            before = [x.clone() for x in (param.detach(), *optimizer.state[param].values())]
            param.grad[0, 0] = float("nan")
        optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(x, y) for x, y in zip(before, (param, *optimizer.state[param].values()), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adafactor", "came", "sm3", "mano", "normuon", "dion2"])
def test_nothing_waits_for_the_gpu_and_a_graph_records_it(name):
    generator = torch.Generator("cuda").manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(64, 96 + i, device="cuda", generator=generator)) for i in range(3)]
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    optimizers = [getattr(steprule, OWN[name].__name__)(one) for one in (params, others)]
    for param, other in zip(params, others, strict=True):
        param.grad = torch.randn_like(param)
        other.grad = param.grad
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizers[0].step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[1].step()
    graph.replay()
    torch.cuda.synchronize()
    for param, other in zip(params, others, strict=True):
        assert torch.equal(param, other)


@pytest.mark.parametrize("name", ["adafactor", "came", "adamw"])
def test_no_hint_of_triton_is_about_the_length_of_rows(name):
    """Such a hint holds for a value wherever it is used, not only behind the condition under which it is true."""
    states = "8bit" if name == "adamw" else "float32"
    rule = OWN[name]
    formats = formats_of(rule, rule.hyperparameters, "float32", states)
    kernel = gpu.Kernel.compiled(rule, rule.hyperparameters, False, formats)
    for one in (kernel, *kernel.readings):
        text = one.path.read_text()
        assert "row // 16 * 16" in text and "multiple_of(row" not in text
