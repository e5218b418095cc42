"""The GPU engine's kernels against the CPU's: every rule, format and service, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engines import GPU_DEVICE, make_gpu_plan, random_operands
from settings import IDS, VARIANTS

from steprule.engine import cpu, gpu
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.plan import Plan
from steprule.engine.reading import Reading
from steprule.engine.trace import NO_SERVICES, Services, nonnegative_states
from steprule.formats import FORMATS
from steprule.formats.tensors import encode, zeros
from steprule.rules import RULES

pytest.importorskip("triton")

SOURCE = gpu.compiled(RULES["sgd"], RULES["sgd"].hyperparameters, False, ["float32"] * 2).source
SHAPES = [(33, 128), (7, 200), (1, 2500), (3, 40), (65, 32), (0, 64)]
WEIGHTS = ["float32", "bfloat16", "float16", "bfloat16 stochastic", "float16 stochastic"]
WEIGHTS += [f"{half} {bits}bit" for half in ("bfloat16", "float16") for bits in (24, 32)]
STATES = ["float32", "bfloat16 dithered", "8bit"]


def formats_of(rule, hyper, weights, states):
    nonnegative = nonnegative_states(rule, hyper)
    kinds = [
        states if states != "8bit" else "positive8" if name in nonnegative else "signed8"
        for name in filter(None, rule.states_for(hyper))
    ]
    return [weights, weights.split()[0], *kinds]


def arrays_of(kernel, formats, shape, seed):
    """One tensor's arrays for a kernel, by operand and suffix."""
    rule, hyper, names = kernel
    operands = random_operands(rule, hyper, int(np.prod(shape)), torch.float32, seed)
    if "param_average" in names:
        operands["param_average"] = operands["param"] * 1.01
    result = {}
    for name, kind in zip(names, formats, strict=True):
        value = operands[name].reshape(shape)
        random = torch.zeros(shape, dtype=torch.int64) if FORMATS[kind].random == "element" else 0
        if kind in ("float32", "float64"):
            arrays = {"": value.to(getattr(torch, kind))}
        else:
            arrays = encode(kind, value, random) if value.numel() else zeros(kind, value)
        result |= {(name, suffix): array.contiguous() for suffix, array in arrays.items()}
    return result


def step_both(rule, hyper, formats, services=NO_SERVICES, shapes=SHAPES, steps=3, seed=3):
    """Steps the same tensors by both engines; returns their arrays, and both plans with the kernel."""
    host, device = (
        cpu.compiled(rule, hyper, False, formats, services),
        gpu.compiled(rule, hyper, False, formats, services),
    )
    assert host.source.arrays == device.source.arrays
    assert set(host.source.tallies) == set(device.source.tallies)
    names = host.formula.operands
    mine = [arrays_of((rule, hyper, names), formats, shape, 10 + i) for i, shape in enumerate(shapes)]
    theirs = [{key: array.to(GPU_DEVICE, copy=True) for key, array in tensor.items()} for tensor in mine]
    by_row = host.formula.by_row
    hyper = {"seed": seed, "clip_value": 0.5, "average_weight": 0.25, **hyper}
    common = dict(
        sizes=[int(np.prod(shape)) for shape in shapes],
        groups=[0] * len(shapes),
        rows=[shape[1] for shape in shapes] if host.source.grouped or by_row else None,
        numbers=[5 + 3 * i for i in range(len(shapes))],
        by_row=by_row,
        tallies=len(host.source.tallies),
        first_steps=[float(i) for i in range(len(shapes))],
    )

    def addresses(tensors):
        return [[tensor[key].data_ptr() for tensor in tensors] for key in host.source.arrays]

    one = Plan(addresses=addresses(mine), hyper=[host.numbers(hyper)], step_at=None, step_is_double=[], **common)
    other = GpuPlan(GPU_DEVICE, device.source, addresses=addresses(theirs), hyper=[device.numbers(hyper)], **common)
    if services.factor:
        assert list(one.first_factor) == list(other.first_factor)
        one.factors[:] = np.linspace(0.1, 1.0, len(one.factors))
        other.factors.copy_(torch.from_numpy(one.factors))
    launch_one, launch_other = host.launcher(one, lambda: 1), device.launcher(other)
    for _ in range(steps):
        launch_one()
        launch_other()
    return (
        mine,
        [{key: array.cpu() for key, array in tensor.items()} for tensor in theirs],
        one,
        other,
        (host.source, device.source),
    )


def assert_equal(mine, theirs):
    for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        for key, array in one.items():
            same = (
                (array == other[key]) | (array.isnan() & other[key].isnan())
                if array.is_floating_point()
                else array == other[key]
            )
            assert same.all(), f"{key} of tensor {number}: {int((~same).sum())} of {array.numel()} differ"


@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
def test_every_formula_is_the_cpu_engines(rule, hyper):
    mine, theirs, *_ = step_both(rule, hyper, formats_of(rule, hyper, "float32", "float32"))
    assert_equal(mine, theirs)


# Each combination is a kernel that the CPU engine compiles for seconds; the codecs of one operand know nothing of another's.
COMBINATIONS = [(RULES["adamw"], weights, "float32") for weights in WEIGHTS]
COMBINATIONS += [
    (RULES["adamw"], weights, states)
    for weights in ("float32", "bfloat16 stochastic", "float16 24bit")
    for states in STATES[1:]
]
COMBINATIONS += [
    (rule, weights, states)
    for name, rule in RULES.items()
    for weights, states in (("bfloat16 stochastic", "bfloat16 dithered"), ("bfloat16 24bit", "8bit"))
    if name != "adamw"
]


@pytest.mark.parametrize(("rule", "weights", "states"), COMBINATIONS)
def test_every_format_is_the_cpu_engines(rule, weights, states):
    hyper = {**rule.hyperparameters, **{name: 0.9 for name in rule.state_when.values() if name == "momentum"}}
    mine, theirs, *_ = step_both(rule, hyper, formats_of(rule, hyper, weights, states))
    assert_equal(mine, theirs)


SERVICES = [
    Services(factor="tensor"), Services(factor="row"), Services(limit=True), Services(zero=True), Services(average=True),
    Services(gather=True), Services("row", True, True, True, True), Services("tensor", False, True, True, True),
]  # fmt: skip


SERVED = [("adamw", services, states) for services in SERVICES for states in ("float32", "8bit")]
SERVED += [("sgd", services, states) for services in SERVICES[-2:] for states in ("float32", "8bit")]


@pytest.mark.parametrize(("name", "services", "states"), SERVED, ids=str)
def test_every_service_is_the_cpu_engines(name, services, states):
    rule = RULES[name]
    hyper = {**rule.hyperparameters, **({"momentum": 0.9} if "momentum" in rule.hyperparameters else {})}
    weights = "float32" if states == "float32" else "bfloat16 stochastic"
    formats = formats_of(rule, hyper, weights, states)
    formats += [weights] * services.average
    mine, theirs, one, other, sources = step_both(rule, hyper, formats, services)
    assert_equal(mine, theirs)
    chunks = np.repeat(np.arange(other.count), np.diff(other.first_chunk))
    for name in sources[0].tallies:
        columns = [source.tallies.index(name) for source in sources]
        ours, its = one.partials[:, columns[0]], other.partials.cpu().numpy()[:, columns[1]]
        for tensor in range(other.count):
            own, own_here = ours[one.piece_tensors == tensor], its[chunks == tensor]
            if name.startswith("total_"):
                np.testing.assert_allclose(own_here.sum(), own.sum(), rtol=1e-5, err_msg=name)
            else:
                assert own_here.max(initial=0) == own.max(initial=0), name


@pytest.mark.parametrize("dtypes", [
    ("float32", "bfloat16", "float32", "float32"), ("bfloat16", "float32", "float32", "bfloat16"),
    ("float16", "float32", "float16", "float32"), ("float64", "float64", "float64", "float64"),
    ("float64", "float64", "float32", "bfloat16"),
])  # fmt: skip
def test_dtypes_may_be_mixed(dtypes):
    rule = RULES["adamw"]
    mine, theirs, *_ = step_both(rule, rule.hyperparameters, list(dtypes))
    assert_equal(mine, theirs)


def test_tensors_need_not_be_aligned():
    """Blocks that could be read at once, but for their address."""
    rule, hyper = RULES["adamw"], RULES["adamw"].hyperparameters
    kernel = gpu.compiled(rule, hyper, False, ["float32"] * 4)
    whole = random_operands(rule, hyper, 3001, torch.float32, 1)
    results = []
    for shift in (0, 1, 3):
        room = {name: torch.full((3008,), 7.0, device=GPU_DEVICE) for name in whole}
        views = {name: space[shift : shift + 3001].copy_(whole[name]) for name, space in room.items()}
        kernel.launcher(make_gpu_plan(kernel, [views], hyper, 2))()
        results.append(views)
        assert all((space[:shift] == 7).all() and (space[shift + 3001 :] == 7).all() for space in room.values())
    for name in whole:
        assert torch.equal(results[0][name], results[1][name])
        assert torch.equal(results[0][name], results[2][name])


def test_random_bits_are_those_of_the_formats():
    """Seeds and steps of more than 32 bits, as the CPU engine's."""
    rule = RULES["sgd"]
    for seed in (0, 2**40 + 3):
        mine, theirs, *_ = step_both(
            rule, rule.hyperparameters, ["bfloat16 stochastic", "bfloat16"], shapes=[(5, 700)], seed=seed
        )
        assert_equal(mine, theirs)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 0.0, 3.0, float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_readings_are_the_cpu_engines(dtype, norm_type):
    sizes = [16384 * 2 + 77, 5, 0, 1200]
    generator = torch.Generator().manual_seed(0)
    mine = [torch.randn(size, generator=generator).to(getattr(torch, dtype)) for size in sizes]
    mine[3][7] = float("inf")
    theirs = [tensor.to(GPU_DEVICE, copy=True) for tensor in mine]
    for zero, check, rows in (
        (False, False, None),
        (True, False, None),
        (False, True, None),
        (False, False, [977, 1, 1, 40]),
    ):
        if rows is not None:
            keep = [tensor[: len(tensor) // row * row] for tensor, row in zip(mine, rows, strict=True)]
        else:
            keep = mine
        lengths = [len(tensor) for tensor in keep]
        addresses = np.array([tensor.data_ptr() for tensor in mine])  # which must live on
        one = Reading(addresses, lengths, dtype, norm_type, rows, zero=zero, check=check)
        plan = GpuPlan(
            GPU_DEVICE, SOURCE, addresses=[[tensor.data_ptr() for tensor in theirs]] * 2, sizes=lengths,
            groups=[0] * 4, hyper=[[0.0]], first_steps=[0.0] * 4,
        )  # fmt: skip
        from steprule.engine.gpu_reading import GpuReading

        other = GpuReading(plan, 1, dtype, norm_type, rows, zero, check)
        for ours, its in ((other.run(), one.run(lambda: 1)), (other.by_tensor(), one.by_tensor(lambda: 1))):
            np.testing.assert_allclose(ours.cpu().numpy(), its, rtol=1e-12)
