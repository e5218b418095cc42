"""Optimizers whose parameters the GPU engine steps: on a GPU, or interpreted where there is none."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import sys

import pytest
import torch
from engines import GPU_DEVICE
from forked import fresh

import steprule
from steprule.engine import gpu
from steprule.engine.gpu_plan import GpuPlan, Table
from steprule.engine.run import sum_of_parts
from steprule.services import Average, ClipAdaptive, ClipNorm, ClipQuantile, ClipValue

pytest.importorskip("triton")
needs_gpu = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu_engine(monkeypatch):
    """The GPU engine serves the device that the tests put parameters on."""
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})


@pytest.fixture
def cpu_engine(monkeypatch):
    """A function after which parameters on the CPU are stepped by the CPU engine."""
    return lambda: monkeypatch.setattr(gpu, "DEVICES", {"cuda"})


def make_params(device, dtype=torch.float32, shapes=((6, 130), (3, 5, 2, 2), (12, 32), (7,), ())):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    params[1] = params[1].to(memory_format=torch.channels_last) if params[1].dim() == 4 else params[1]
    return [torch.nn.Parameter(param) for param in params]


def set_grads(params, step, bad=None):
    generator = torch.Generator().manual_seed(100 + step)
    for number, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator)
        if (step, number) == bad:
            grad.view(-1)[0] = float("nan")
        param.grad = torch.empty_like(param).copy_(grad)


def train(make, device, dtype=torch.float32, steps=4, bad=None, **settings):
    params = make_params(device, dtype)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
    optimizer = make(groups, **settings)
    for step in range(steps):
        set_grads(params, step, bad)
        optimizer.step()
    return params, optimizer


def plans_of(optimizer):
    return [bucket.plan for bucket, _ in optimizer._core.plans.current._buckets]


def assert_same(one, other, rtol=0.0):
    """Weights and states are the same bits, or nearly: engines add up in different orders."""
    (params, optimizer), (others, other_optimizer) = one, other
    for number, (param, its) in enumerate(zip(params, others, strict=True)):
        states, its_states = optimizer.state[param], other_optimizer.state[its]
        assert states.keys() == its_states.keys()
        for name, value in {"param": param.detach(), **states}.items():
            other_value = its.detach() if name == "param" else its_states[name]
            if name == "step":  # in float64 where the GPU engine counts
                assert float(value) == float(other_value)
                continue
            assert value.dtype == other_value.dtype
            what = f"{name} of parameter {number}"
            room = rtol if value.is_floating_point() else 0.0
            torch.testing.assert_close(value.cpu(), other_value.cpu(), rtol=room, atol=0.0, equal_nan=True, msg=what)


SETTINGS = [
    {}, {"states": "8bit"}, {"clip": 3.0}, {"clip": ClipNorm(1.0, 1.0)}, {"clip": ClipNorm(0.5, per_parameter=True)},
    {"clip": ClipValue(0.3)}, {"clip": ClipAdaptive(0.05)}, {"clip": ClipQuantile(0.5, 2)},
    {"clip": ClipAdaptive(0.05), "states": "8bit"}, {"nonfinite": "skip"}, {"nonfinite": "zero", "telemetry": 2},
    {"average": Average(0.9, warmup=True)}, {"average": Average(0.9, bias_correction=True), "nonfinite": "skip"},
    {"clip": 1.0, "nonfinite": "skip", "average": 0.9, "telemetry": 1, "states": "8bit"},
]  # fmt: skip


def momentum(params, **settings):
    return steprule.SGD(params, lr=0.1, momentum=0.9, **settings)


ALL = {"clip": 1.0, "nonfinite": "skip", "average": 0.9, "telemetry": 1}
# Rules with scalar states, with sums over each tensor and over all, with both; and options around a formula.
OWN = [
    (steprule.NAdam, {}), (steprule.ScheduleFreeAdamW, {"nonfinite": "skip"}), (steprule.LAMB, {}),
    (steprule.LAMB, ALL), (steprule.Prodigy, {}), (steprule.Prodigy, ALL),
    (steprule.AdamW, {"decay": "corrected", "cautious": True, "lookahead": 2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "settings"),
    [(steprule.AdamW, settings) for settings in SETTINGS]
    + [(momentum, settings) for settings in (SETTINGS[0], SETTINGS[2], SETTINGS[-2])]
    + OWN,
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_it_takes_the_cpu_engines_steps(make, settings, cpu_engine):
    bad = (2, 2) if "nonfinite" in settings else None
    ours = train(make, GPU_DEVICE, bad=bad, **copy.deepcopy(settings))
    assert all(isinstance(plan, GpuPlan) for plan in plans_of(ours[1]))
    known = [(o.grad_norm.cpu(), o.clipped_steps, o.skipped_steps, o.zeroed_elements) for o in [ours[1]]]
    saved = ours[1].state_dict()["param_groups"][0].get("services")
    cpu_engine()
    theirs = train(make, "cpu", bad=bad, **copy.deepcopy(settings))
    if "step" in ours[1].state[ours[0][0]] and "step" not in theirs[1].state[theirs[0][0]]:
        raise AssertionError("a step where the CPU engine keeps none")
    assert_same(ours, theirs, rtol=1e-6 if (make, settings) in OWN[2:] else 0.0)
    (norm, *counts), optimizer = known[0], theirs[1]
    torch.testing.assert_close(norm, optimizer.grad_norm, equal_nan=True)
    assert counts == [optimizer.clipped_steps, optimizer.skipped_steps, optimizer.zeroed_elements]
    expected = optimizer.state_dict()["param_groups"][0].get("services")
    assert (saved is None) == (expected is None)
    if saved is not None:
        assert saved.keys() == expected.keys()
        for name in saved:
            torch.testing.assert_close(
                torch.tensor(saved[name], dtype=torch.float64), torch.tensor(expected[name], dtype=torch.float64),
                equal_nan=True,
            )  # fmt: skip
    if "telemetry" in settings:
        records = ours[1].telemetry.records, optimizer.telemetry.records
        assert [record["step"] for record in records[0]] == [record["step"] for record in records[1]]
        for mine, its in zip(*records, strict=True):
            assert mine["total"] == pytest.approx(its["total"], rel=1e-5)
            assert mine["parameters"].keys() == its["parameters"].keys()
            assert (mine["clipped_steps"], mine["skipped_steps"]) == (its["clipped_steps"], its["skipped_steps"])


@pytest.mark.parametrize(("weights", "states"), [(None, None), ("stochastic", "bfloat16"), ("24bit", "8bit")])
def test_it_takes_the_cpu_engines_steps_in_bfloat16(weights, states, cpu_engine):
    settings = {"states": states, "weights": weights, "average": 0.9, "seed": 7}
    ours = train(steprule.AdamW, GPU_DEVICE, torch.bfloat16, **settings)
    cpu_engine()
    assert_same(ours, train(steprule.AdamW, "cpu", torch.bfloat16, **settings))


@pytest.fixture
def refusing(monkeypatch):
    """A context in which reading a number of a tensor on the host is an error, but for Triton's interpreter."""

    def refuse(name, method):
        def guarded(self, *args, **kwargs):
            if f"{os.sep}triton{os.sep}" in sys._getframe(1).f_code.co_filename:
                return method(self, *args, **kwargs)
            raise AssertionError(f"the host waits for the device in Tensor.{name}")

        return guarded

    def refuse_numbers(name, function):
        guarded = refuse(name, lambda _, *args, **kwargs: function(*args, **kwargs))
        return lambda x, **kwargs: function(x, **kwargs) if isinstance(x, torch.Tensor) else guarded(None, x, **kwargs)

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"):
                patch.setattr(torch.Tensor, name, refuse(name, getattr(torch.Tensor, name)))
            for name in ("tensor", "as_tensor"):  # of a number, which waits till it has come to the device
                patch.setattr(torch, name, refuse_numbers(name, getattr(torch, name)))
            yield

    with context(), pytest.raises(AssertionError, match="waits"):
        float(torch.ones(()))
    with context(), pytest.raises(AssertionError, match="waits"):
        torch.as_tensor(1.0)
    return context


def launch_nothing(monkeypatch):
    """Has the interpreter do nothing, where there is no GPU: a test is of what the host does, whatever the numbers are."""
    if GPU_DEVICE.type == "cpu":
        monkeypatch.setattr("triton.runtime.interpreter.GridExecutor.__call__", lambda *args, **options: None)


DECISIONS = {
    "clip": ({"clip": 1.0}, 10),
    "clip by parameter": ({"clip": ClipNorm(1.0, per_parameter=True)}, 11),
    "skip": ({"nonfinite": "skip"}, 9),
    "average": ({"average": 0.9}, 4),
    "all three": ({"clip": 1.0, "nonfinite": "skip", "average": 0.9}, 19),
}


@pytest.mark.parametrize(("settings", "most"), DECISIONS.values(), ids=DECISIONS)
def test_decisions_take_few_small_operations(settings, most, monkeypatch):
    """Each is a launch of its own, and they are what a step of a small model costs. Lower the number where it is fewer."""
    params = make_params(GPU_DEVICE)
    optimizer = steprule.AdamW(params, **settings)
    for step in range(2):
        set_grads(params, step)
        optimizer.step()
    launch_nothing(monkeypatch)  # the interpreter's own are not counted
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    outer = [x.name for x in profile.events() if x.cpu_parent is None or not x.cpu_parent.name.startswith("aten::")]
    views = {"aten::select", "aten::slice", "aten::view", "aten::expand", "aten::to", "aten::detach", "aten::permute"}
    small = [name for name in outer if name.startswith("aten::") and name not in views]
    assert 0 < len(small) <= most, small


EVERY = [(steprule.AdamW, settings) for settings in SETTINGS] + OWN


@pytest.mark.parametrize(("make", "settings"), EVERY, ids=str)
def test_a_step_waits_for_nothing(make, settings, refusing, monkeypatch):
    launch_nothing(monkeypatch)
    lr = torch.tensor(0.01, device=GPU_DEVICE)
    params = make_params(GPU_DEVICE)
    optimizer = make(params, lr=lr, **copy.deepcopy(settings))
    set_grads(params, 0)
    optimizer.step()
    set_grads(params, 1)
    kept = optimizer._core.plans.current
    with refusing():
        optimizer.step()
        lr.fill_(0.001)
        optimizer.step()
        if optimizer._core.services is not None:
            optimizer.grad_norm  # noqa: B018
    assert optimizer._core.plans.current is kept


@pytest.mark.parametrize("make", [steprule.AdamW, steprule.ScheduleFreeAdamW])
def test_a_learning_rate_on_the_device_is_read_in_every_step(make, monkeypatch):
    filled = []
    monkeypatch.setattr(Table, "fill", lambda self, values, fill=Table.fill: (filled.append(self), fill(self, values)))
    lr = torch.tensor(0.01, device=GPU_DEVICE)
    params, others = make_params(GPU_DEVICE), make_params(GPU_DEVICE)
    ours, theirs = make(params, lr=lr), make(others, lr=0.01)
    for step, value in enumerate((0.01, 0.03, 0.002)):
        for both in (params, others):
            set_grads(both, step)
        lr.fill_(value)
        theirs.param_groups[0]["lr"] = float(lr)
        ours.step()
        theirs.step()
    assert_same((params, ours), (others, theirs))
    filled.clear()
    lr.fill_(0.5)
    ours.step()
    assert not filled  # neither other gradients nor another learning rate needed a table to be sent


def test_a_learning_rate_on_the_device_that_is_replaced_by_an_equal_one_is_taken_over(refusing):
    params, others = make_params(GPU_DEVICE), make_params(GPU_DEVICE)
    ours, theirs = (steprule.AdamW(p, lr=torch.tensor(0.01, device=GPU_DEVICE)) for p in (params, others))
    lr = torch.tensor(0.01, device=GPU_DEVICE)
    for step, value in enumerate((0.01, 0.01, 0.03)):
        for both in (params, others):
            set_grads(both, step)
        with refusing() if step == 2 else contextlib.nullcontext():
            lr.fill_(value)
            if step == 1:
                kept, ours.param_groups[0]["lr"] = ours._core.plans.current, lr
            ours.step()
        theirs.param_groups[0]["lr"].fill_(value)
        theirs.step()
    assert ours._core.plans.current is kept and all(
        source.data_ptr() == lr.data_ptr() for source in plans_of(ours)[0]._sources
    )
    assert_same((params, ours), (others, theirs))


def test_a_step_of_complex_parameters_that_a_graph_may_record_waits_for_nothing(refusing):
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64, device=GPU_DEVICE))
    optimizer = steprule.AdamW([param], lr=0.125, capturable=True, weight_decay=0.0)
    for step in range(3):
        param.grad = torch.ones_like(param)
        with refusing() if step else contextlib.nullcontext():
            optimizer.step()
    torch.testing.assert_close(param.detach().real, torch.full((3,), 0.625, device=GPU_DEVICE))


def test_all_groups_share_a_launch_and_tables_are_sent_where_an_address_changes(monkeypatch):
    params = make_params(GPU_DEVICE, shapes=[(5, 3), (7,), (2, 2), (9,), (4,), (3, 3), (6,), (8, 2)])
    optimizer = steprule.AdamW([{"params": [param], "lr": 0.01 * (i + 1)} for i, param in enumerate(params)])
    set_grads(params, 0)
    optimizer.step()
    assert len(plans_of(optimizer)) == 1
    first = optimizer._core.plans.current
    sent = []
    monkeypatch.setattr(Table, "fill", lambda self, values, fill=Table.fill: (sent.append(1), fill(self, values)))
    optimizer.step()
    assert not sent
    kept = [param.grad for param in params]  # so that none gets another's place
    set_grads(params, 1)
    optimizer.step()
    assert len(sent) == 1
    optimizer.param_groups[3]["lr"] = 1.0
    optimizer.step()
    assert len(sent) == 2
    assert optimizer._core.plans.current is first
    assert kept


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (steprule.AdamW, {"states": "8bit", "clip": 1.0, "nonfinite": "skip", "average": 0.9}),
        (steprule.NAdam, {}),
        (steprule.Prodigy, {"nonfinite": "skip"}),
    ],
    ids=str,
)
def test_checkpoints_move_between_engines(make, settings, cpu_engine, monkeypatch):
    rtol = 1e-6 if make is steprule.Prodigy else 0.0
    params, optimizer = train(make, GPU_DEVICE, **settings)
    stream = io.BytesIO()
    torch.save([optimizer.state_dict(), [param.detach() for param in params]], stream)

    def resume(device):
        stream.seek(0)
        saved, weights = torch.load(stream, map_location=device, weights_only=True)
        fresh = make_params(device)
        with torch.no_grad():
            for param, weight in zip(fresh, weights, strict=True):
                param.copy_(weight)
        other = make([{"params": fresh[:2]}, {"params": fresh[2:], "lr": 0.02}], **settings)
        other.load_state_dict(saved)
        for step in range(4, 7):
            set_grads(fresh, step)
            other.step()
        return fresh, other

    on_gpu = resume(GPU_DEVICE)
    for step in range(4, 7):
        set_grads(params, step)
        optimizer.step()
    assert_same((params, optimizer), on_gpu)
    cpu_engine()
    on_cpu = resume("cpu")
    assert all(not isinstance(plan, GpuPlan) for plan in plans_of(on_cpu[1]))
    assert_same(on_gpu, on_cpu, rtol)
    assert on_gpu[1].skipped_steps == on_cpu[1].skipped_steps
    saved = on_cpu[1].state_dict()
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    back = make_params(GPU_DEVICE)
    returned = make([{"params": back[:2]}, {"params": back[2:], "lr": 0.02}], **settings)
    returned.load_state_dict(saved)
    for state in returned.state.values():
        for name in ("step", *optimizer.rule.scalar_states):
            assert state[name].device.type == GPU_DEVICE.type


@pytest.mark.parametrize("settings", [{"nonfinite": "skip"}, {"clip": 1.0}, {"nonfinite": "zero"}], ids=str)
def test_a_grad_scaler_never_waits(settings, cpu_engine, refusing):
    def run(device, refuse):
        params = make_params(device)
        optimizer = steprule.AdamW(params, **settings)
        scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=8.0, growth_interval=2)
        for step in range(5):
            scaler.scale(torch.zeros((), device=device))  # makes its scale
            set_grads(params, step, bad=(3, 1))
            for param in params:
                param.grad *= scaler._scale
            if refuse and step:
                with refusing():
                    scaler.step(optimizer)
            else:
                scaler.step(optimizer)
            scaler.update()
        return params, optimizer, scaler.get_scale()

    *ours, scale = run(GPU_DEVICE, refuse=True)
    assert (ours[1].skipped_steps, ours[1].zeroed_elements) == (
        (0, 1) if settings.get("nonfinite") == "zero" else (1, 0)
    )
    cpu_engine()
    *theirs, expected = run("cpu", refuse=False)
    assert scale == expected
    assert_same(ours, theirs)


def test_unscaling_before_a_step_that_is_skipped():
    params = make_params(GPU_DEVICE)
    optimizer = steprule.AdamW(params, clip=1.0)
    scaler = torch.amp.GradScaler(GPU_DEVICE.type, init_scale=8.0)
    for step in range(3):
        scaler.scale(torch.zeros((), device=GPU_DEVICE))
        set_grads(params, step, bad=(2, 1))
        before = [param.detach().clone() for param in params]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert all(map(torch.equal, before, params)) == (step == 2)
    assert optimizer.skipped_steps == 1


def test_what_a_kernel_cannot_read_is_stepped_tensor_by_tensor():
    strided = torch.nn.Parameter(torch.randn(8, 6, device=GPU_DEVICE)[:, ::2])
    number = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64, device=GPU_DEVICE))
    plain = torch.nn.Parameter(torch.randn(5, device=GPU_DEVICE))
    params = [strided, number, plain]
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    ours, theirs = steprule.AdamW(params, clip=1.0), torch.optim.AdamW(others)
    for _ in range(3):
        for param, other in zip(params, others, strict=True):
            param.grad = torch.randn_like(param)
            other.grad = param.grad.clone()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        ours.step()
        theirs.step()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other)


def test_a_sum_over_all_tensors_is_the_same_whatever_their_order_and_grouping():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(300, generator=generator, dtype=torch.float64)
    numbers *= 10 ** torch.randn(300, generator=generator, dtype=torch.float64)
    sums, plain = set(), set()
    for turn in range(10):
        order = numbers[torch.randperm(300, generator=generator)]
        parts = order.to(GPU_DEVICE).split(30 * turn + 1)
        sums.add(sum_of_parts([*parts[:-1], list(parts[-1])]).item())  # lists are the eager fallback's
        plain.add(order.sum().item())
    assert len(sums) == 1 and len(plain) > 1
    assert sums.pop() == pytest.approx(math.fsum(numbers.tolist()), rel=1e-14)
    mixed = sum_of_parts([numbers[:100].to(GPU_DEVICE), numbers[100:].tolist()])  # as with parameters on the host
    assert mixed.device.type == "cpu" and mixed.item() == pytest.approx(math.fsum(numbers.tolist()), rel=1e-14)


def test_tensors_of_two_plans_share_what_is_summed_over_all(cpu_engine):
    def run(device):
        params = make_params(device, shapes=[(5, 3), (70,), (2, 2), (90,)])
        optimizer = steprule.Prodigy([{"params": params[:2]}, {"params": params[2:], "maximize": True}])
        for step in range(2):
            set_grads(params, step)
            optimizer.step()
        assert len(plans_of(optimizer)) == 2
        return params, optimizer

    ours = run(GPU_DEVICE)
    numbers = [state["d_numerator"] for state in ours[1].state.values()]
    assert all(torch.equal(number, numbers[0]) for number in numbers)
    cpu_engine()
    assert_same(ours, run("cpu"), rtol=1e-6)


def test_what_is_stepped_tensor_by_tensor_shares_sums_with_the_rest():
    def run(strided):
        params = make_params(GPU_DEVICE, shapes=[(8, 6), (5,), (7, 2)])
        if strided:
            params[0] = torch.nn.Parameter(params[0].detach().repeat_interleave(2, 1)[:, ::2])
        optimizer = steprule.Prodigy(params)
        for step in range(3):
            set_grads(params, step)
            optimizer.step()
        return params, optimizer

    apart, together = run(True), run(False)
    assert apart[1]._core.plans.current is None and together[1]._core.plans.current is not None
    for param, its in zip(apart[0], together[0], strict=True):
        torch.testing.assert_close(param.detach(), its.detach())
        for name in steprule.rules.Prodigy.scalar_states:
            one, other = apart[1].state[param][name], together[1].state[its][name]
            torch.testing.assert_close(one, other, rtol=1e-5, atol=0.0)


def test_without_triton_the_formula_runs_tensor_by_tensor(monkeypatch):
    monkeypatch.setattr(gpu, "is_available", lambda: False)
    params, optimizer = train(steprule.AdamW, GPU_DEVICE)
    assert optimizer._core.plans.current is None or not any(isinstance(plan, GpuPlan) for plan in plans_of(optimizer))
    assert all(param.isfinite().all() for param in params)


def test_a_graph_cannot_record_the_first_step(monkeypatch):
    params = make_params(GPU_DEVICE)
    before = [param.detach().clone() for param in params]
    optimizer = steprule.AdamW(params)
    set_grads(params, 0)
    with monkeypatch.context() as recording:
        recording.setattr(gpu, "is_recording", lambda device: True)
        with pytest.raises(RuntimeError, match="first step"):
            optimizer.step()
    assert all(map(torch.equal, before, params))
    assert not optimizer.state
    optimizer.step()


def test_a_loaded_optimizer_forgets_what_the_device_knew():
    settings = {"clip": 1.0, "nonfinite": "skip"}
    params, optimizer = train(steprule.AdamW, GPU_DEVICE, bad=(2, 0), **settings)
    saved = copy.deepcopy(optimizer.state_dict())
    set_grads(params, 9, bad=(9, 0))
    optimizer.step()
    assert optimizer.skipped_steps == 2
    optimizer.load_state_dict(saved)
    assert optimizer.skipped_steps == 1
    set_grads(params, 10)
    optimizer.step()
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    assert (twin.skipped_steps, twin.clipped_steps) == (1, optimizer.clipped_steps)


def test_more_than_2_31_elements():
    """The last block of tensors whose other elements are never touched."""
    size = 2**31 + 1500
    param, grad = (torch.empty(size, dtype=torch.bfloat16, device=GPU_DEVICE) for _ in range(2))
    param[-1500:], grad[-1500:] = 1.0, 2.0
    hyper = {**steprule.rules.SGD.hyperparameters, "lr": 0.25}
    kernel = gpu.Kernel.compiled(steprule.rules.SGD, hyper, False, ["bfloat16"] * 2)
    plan = GpuPlan(
        GPU_DEVICE, [kernel.source], addresses=[[param.data_ptr()], [grad.data_ptr()]], sizes=[size], groups=[0],
        hyper=[kernel.numbers(hyper)], first_steps=[0.0],
    )  # fmt: skip
    assert plan.chunk_count == -(-size // kernel.source.tile)
    plan.chunks, plan.chunk_count = plan.chunks[-2:].contiguous(), 2
    kernel.launcher(plan)()
    assert (param[-1500:] == 0.5).all()


def test_triton_is_imported_when_it_is_needed():
    code = "import steprule, sys, torch; o = steprule.AdamW([torch.zeros(3)], clip=1.0); assert 'triton' not in sys.modules"
    done = fresh(code)
    assert done.returncode == 0, done.stderr


# On a GPU


@needs_gpu
@pytest.mark.parametrize(("make", "settings"), EVERY, ids=str)
def test_cuda_graphs(make, settings):
    """A recorded step, replayed with other gradients and another learning rate, is the step taken as it comes."""

    def run(record):
        params = make_params("cuda")
        lr = torch.tensor(0.01, device="cuda")
        asked = {"capturable": True} if make is steprule.AdamW else {}
        optimizer = make(params, lr=lr, **asked, **copy.deepcopy(settings))
        set_grads(params, 0)
        for _ in range(2):
            optimizer.step()
        graph = torch.cuda.CUDAGraph()
        if record:
            with torch.cuda.graph(graph):
                optimizer.step()
        for step in range(1, 5):
            lr.fill_(0.01 / step)
            grads = [param.grad for param in params]
            set_grads(params, step, bad=(3, 0) if "nonfinite" in settings else None)
            for param, grad in zip(params, grads, strict=True):
                grad.copy_(param.grad)
                param.grad = grad
            graph.replay() if record else optimizer.step()
        return params, optimizer

    ours, theirs = run(True), run(False)
    assert_same(ours, theirs)
    assert ours[1].skipped_steps == theirs[1].skipped_steps


@needs_gpu
@pytest.mark.parametrize(("make", "settings"), EVERY, ids=str)
def test_cuda_sees_no_waiting(make, settings):
    params = make_params("cuda")
    optimizer = make(params, **copy.deepcopy(settings))
    set_grads(params, 0)
    optimizer.step()
    set_grads(params, 1)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_it_agrees_with_torch_on_the_gpu():
    params, others = make_params("cuda"), make_params("cuda")
    ours, theirs = steprule.AdamW(params), torch.optim.AdamW(others, fused=True)
    for step in range(20):
        set_grads(params, step)
        set_grads(others, step)
        ours.step()
        theirs.step()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other)


def test_steps_are_counted_where_float32_would_stand_still():
    params, optimizer = train(steprule.AdamW, GPU_DEVICE, steps=1, lookahead=5)
    assert {state["step"].dtype for state in optimizer.state.values()} == {torch.float64}
    for state in optimizer.state.values():  # as torch.optim would have left it
        state["step"] = torch.tensor(2.0**24, device=GPU_DEVICE)
    for step in range(4):
        set_grads(params, step)
        optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {2**24 + 4}
    assert torch.equal(optimizer.state[params[0]]["slow_param"], params[0])  # 2**24 + 4 is a multiple of 5
    assert optimizer._core.plans.current is not None
