"""The GPU engine's kernels against the CPU's: every rule, format and service, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engines import GPU_DEVICE, make_gpu_plan, random_operands, step_cpu, step_gpu
from settings import VARIANTS, label, telling

from steprule import Rule, State, floor, mean, norm, total, total_of_all, where
from steprule.engine import cpu, gpu
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.reading import norms
from steprule.formats import FIRST_ELEMENT_KEY, FORMATS, Numbering, mix
from steprule.formats.tensors import element_random, encode, zeros
from steprule.rules import OWN
from steprule.rules.options import OPTIONS, with_options
from steprule.trace.around import NO_SERVICES, Services
from steprule.trace.norms import Norm
from steprule.trace.program import ROW, TENSOR
from steprule.trace.tracing import nonnegative_states, program_of, trace

pytest.importorskip("triton")

SOURCE = gpu.Kernel.compiled(OWN["sgd"], OWN["sgd"].hyperparameters, False, ["float32"] * 2).source
SHAPES = [(17, 128), (7, 200), (1, 2500), (3, 40), (18, 32), (0, 64)]
WEIGHTS = ["float32", "bfloat16", "float16", "bfloat16 stochastic", "float16 stochastic"]
WEIGHTS += [f"{half} {bits}bit" for half in ("bfloat16", "float16") for bits in (24, 32)]
STATES = ["float32", "bfloat16 dithered", "8bit"]
CAUTIOUS = with_options(OWN["adamw"], **{**OPTIONS, "cautious": True})
AROUND = with_options(
    OWN["adamw"], decay="corrected", cautious=True, cautious_decay=True, lookahead=2, lookahead_alpha=0.5
)


class Levels(Rule):
    """Sums of sums, scalar states of each other and of nothing, and a state that stays as it is."""

    spread = State("scalar", begins=1.0)
    longest = three = State("scalar")

    @staticmethod
    def update(param, grad, avg, rest, spread, longest, three, *, step, lr=0.1):
        centered = grad - mean(grad)
        spread = 0.5 * spread + 0.5 * norm(centered)
        share = total(where(centered > spread, 1.0, 0.0)) / total_of_all(where(param > 1e30, 2.0, 1.0))
        longest = where(spread > longest, spread, longest)
        avg = avg + floor(step / 2) * (1 + share) * centered / (1 + longest)
        return param - lr * avg, avg, rest, spread, longest, 3.0


def formats_of(rule, hyper, weights, states):
    nonnegative = nonnegative_states(rule, hyper)
    kinds = [
        "float32" if rule.is_exact(name, hyper) else states if states != "8bit"
        else "positive8" if name in nonnegative else "signed8"
        for name in rule.states_for(hyper) if name in rule.tensor_states
    ]  # fmt: skip
    return [weights, weights.split()[0], *kinds]


def arrays_of(kernel, formats, shape, seed):
    """One tensor's arrays for a kernel, by operand and suffix, and its scalar states by name."""
    rule, hyper, names = kernel
    operands = random_operands(rule, hyper, int(np.prod(shape)), torch.float32, seed)
    if "param_average" in names:
        operands["param_average"] = operands["param"] * 1.01
    result = {name: operands[name] for name in rule.scalar_states}
    for name, kind in zip(names, formats, strict=True):
        value = operands[name].reshape(shape)
        random = torch.zeros(shape, dtype=torch.int64) if FORMATS[kind].random == "element" else 0
        if kind in ("float32", "float64"):
            arrays = {"": value.to(getattr(torch, kind))}
        else:
            arrays = encode(kind, value, random) if value.numel() else zeros(kind, value)
        result |= {(name, suffix): array.contiguous() for suffix, array in arrays.items()}
    return result


def step_both(rule, hyper, formats, services=NO_SERVICES, shapes=SHAPES, steps=2, seed=3, numberings=None):
    """Steps the same tensors by both engines; returns their arrays, and both plans with the kernel."""
    host, device = (
        cpu.Kernel.compiled(rule, hyper, False, formats, services),
        gpu.Kernel.compiled(rule, hyper, False, formats, services),
    )
    assert host.source.arrays == device.source.arrays
    assert set(host.source.tallies) == set(device.source.tallies)
    names = host.program.operands
    mine = [arrays_of((rule, hyper, names), formats, shape, 10 + i) for i, shape in enumerate(shapes)]
    theirs = [{key: array.to(GPU_DEVICE, copy=True) for key, array in tensor.items()} for tensor in mine]
    by_row = host.program.factor == ROW
    hyper = {"seed": seed, "clip_value": 0.5, "average_weight": 0.25, **hyper}
    common = dict(
        sizes=[int(np.prod(shape)) for shape in shapes],
        groups=[0] * len(shapes),
        rows=[shape[1] for shape in shapes] if host.source.blockwise or by_row else None,
        numbers=[5 + 3 * i for i in range(len(shapes))],
        numberings=numberings,
        first_steps=[float(i) for i in range(len(shapes))],
    )

    def addresses(tensors):
        return {key: [tensor[key].data_ptr() for tensor in tensors] for key in host.source.arrays}

    one = host.plan(addresses(mine), hyper=[host.numbers(hyper)], **common)
    other = device.plan(addresses(theirs), GPU_DEVICE, hyper=[device.numbers(hyper)], **common)
    if services.factor:
        assert list(one.first_factor) == list(other.first_factor)
        one.factors[:] = np.linspace(0.1, 1.0, len(one.factors))
        other.factors.copy_(torch.from_numpy(one.factors))
    for _ in range(steps):
        step_cpu(host, one, mine)
        step_gpu(device, other, theirs)
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
            if isinstance(key, str):  # a scalar state; powers in it are rounded as each library likes
                ulps = 8 * torch.finfo(array.dtype).eps
                torch.testing.assert_close(other[key], array, rtol=ulps, atol=0, equal_nan=True, msg=key)
                continue
            same = (
                (array == other[key]) | (array.isnan() & other[key].isnan())
                if array.is_floating_point()
                else array == other[key]
            )
            assert same.all(), f"{key} of tensor {number}: {int((~same).sum())} of {array.numel()} differ"


def assert_alike(rule, hyper, mine, theirs):
    """As `assert_equal`, but for what follows from sums, whose numbers the engines add up in another order."""
    if not trace(rule, hyper).sums:
        assert_equal(mine, theirs)
        return
    for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        for key, array in one.items():
            what = f"{key} of tensor {number}"
            if array.is_floating_point():
                expected, got = array.double(), other[key].double()
                room = 1e-12 if key in rule.scalar_states else 1e-6
                torch.testing.assert_close(got, expected, rtol=room, atol=1e-30, equal_nan=True, msg=what)
            else:  # codes, which rounding may bring over an edge
                assert (array != other[key]).sum() <= 2, what


# Of each rule the last formula, which has all optional states: every one is a kernel that the CPU engine compiles for seconds.
LAST = {rule: hyper for rule, hyper in VARIANTS}
FORMULAS = [(rule, hyper) for rule, hyper in VARIANTS if rule is OWN["adamw"] or hyper is LAST[rule]]
FORMULAS = [
    (rule, hyper) for rule, hyper in FORMULAS if not program_of(rule, hyper).sees_matrix
]  # see test_gpu_matrices
FORMULAS += [(rule, dict(rule.hyperparameters)) for rule in (AROUND, Levels)]


@pytest.mark.parametrize(("rule", "hyper"), FORMULAS, ids=[label(*one) for one in FORMULAS])
def test_every_formula_is_the_cpu_engines(rule, hyper):
    hyper, shapes = telling(rule, hyper), [(7, 300), (1, 40), (0, 64)]
    mine, theirs, *_ = step_both(rule, hyper, formats_of(rule, hyper, "float32", "float32"), shapes=shapes)
    assert_alike(rule, hyper, mine, theirs)
    assert all(one["param", ""].isfinite().all() for one in mine), "what is NaN in both says little"


# The codecs of one operand know nothing of another's, so not every combination is here.
COMBINATIONS = [(OWN["adamw"], weights, "float32") for weights in WEIGHTS]
COMBINATIONS += [
    (rule, "bfloat16 stochastic", "bfloat16 dithered")
    for rule in (*(OWN[name] for name in ("adamw", "lamb", "nadam", "schedulefreeadamw")), CAUTIOUS)
]
COMBINATIONS += [(OWN["adamw"], "bfloat16 24bit", "8bit")]
COMBINATIONS += [
    pytest.param(OWN[name], "bfloat16 24bit", "8bit", marks=pytest.mark.long) for name in ("lion", "lamb", "prodigy")
]


@pytest.mark.parametrize(("rule", "weights", "states"), COMBINATIONS)
def test_every_format_is_the_cpu_engines(rule, weights, states):
    hyper = dict(rule.hyperparameters)
    mine, theirs, *_ = step_both(rule, hyper, formats_of(rule, hyper, weights, states))
    assert_alike(rule, hyper, mine, theirs)


class Between(Rule):
    """New weights just below the middle between two halves, which rounding makes the middle now and then."""

    @staticmethod
    def update(param, grad, *, lr=1e-6):
        middle = where(
            param > 0.5, 1 + 2**-11, where(param > 0, 2 - 2**-11, where(param > -0.5, -1 - 2**-10 - 2**-11, 65520))
        )
        return middle - lr * abs(grad) * where(param > -0.5, 1.0, 65536)


@pytest.mark.parametrize("states", ["float32", "8bit"])
def test_elements_of_parts_are_numbered_as_in_the_whole(states):
    """In both engines: a float32 kernel and `encode`, with each element's number, come to the same."""
    rule, hyper = OWN["sgd"], {**OWN["sgd"].hyperparameters, "momentum": 0.9, "lr": 1e-3}
    formats = ["bfloat16 stochastic", "bfloat16", "float32" if states == "float32" else "signed8"]
    shape, first = (6, 700), (6 * 700) * 5
    numberings = [Numbering(first, 4200, 4200), Numbering(1, 700, 2100), Numbering(7, 1, 3), Numbering(9, 2**20, 2**20)]
    if states == "8bit":  # whose rows are whole
        numberings = [Numbering(first + number, 4200, 4200) for number in range(4)]
    for services in (NO_SERVICES, Services(gather=True)):
        mine, theirs, *_ = step_both(rule, hyper, formats, services, [shape] * 4, steps=1, numberings=numberings)
        assert_equal(mine, theirs)
        for number, (tensor, numbering) in enumerate(zip(mine, numberings, strict=True)):
            names = rule, hyper, ("param", "grad", "momentum_buffer")
            start = arrays_of(names, formats, shape, 10 + number)
            exact = {**start, ("param", ""): start["param", ""].float()}
            host = cpu.Kernel.compiled(rule, hyper, False, ["float32", *formats[1:]])
            plan = host.plan(
                {key: [exact[key].data_ptr()] for key in host.source.arrays}, sizes=[4200], rows=[700],
                hyper=[host.numbers({**hyper, "seed": 3})], first_steps=[float(number)],
            )  # fmt: skip
            step_cpu(host, plan, [exact])
            key = mix(3, number + 1, 5 + 3 * number + FIRST_ELEMENT_KEY)
            bits = element_random(key, exact["param", ""], numbering)
            assert torch.equal(encode(formats[0], exact["param", ""], bits)[""], tensor["param", ""])


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_low_bits_in_the_middle_between_two_halves_are_the_cpu_engines(half):
    mine, theirs, *_ = step_both(Between, Between.hyperparameters, [f"{half} 24bit", half], steps=1)
    assert_equal(mine, theirs)
    low = torch.cat([one["param", "_correction"].flatten() for one in mine])
    if half == "float16":
        assert {127, -64, -128} < {*low.tolist()}


SERVICES = [
    Services(factor="tensor"), Services(factor="row"), Services(limit=True), Services(zero=True), Services(average=True),
    Services(gather=True), Services("row", True, True, True, True), Services("tensor", False, True, True, True),
]  # fmt: skip


SERVED = [("adamw", services, "float32") for services in SERVICES]
SERVED += [("sgd", SERVICES[-2], "float32"), ("lamb", SERVICES[-1], "8bit"), ("prodigy", SERVICES[-2], "float32")]


@pytest.mark.parametrize(("name", "services", "states"), SERVED, ids=str)
def test_every_service_is_the_cpu_engines(name, services, states):
    rule = OWN[name]
    hyper = {**rule.hyperparameters, **({"momentum": 0.9} if "momentum" in rule.hyperparameters else {})}
    weights = "float32" if states == "float32" else "bfloat16 stochastic"
    formats = formats_of(rule, hyper, weights, states)
    formats += [weights] * services.average
    mine, theirs, one, other, sources = step_both(rule, hyper, formats, services)
    assert_alike(rule, hyper, mine, theirs)
    chunks = np.repeat(np.arange(other.count), np.diff(other.first_chunk))
    for name in sources[0].tallies:
        columns = [source.tallies.index(name) for source in sources]
        widths = [len(source.tallies) for source in sources]  # readings before may have left more than the step
        tables = one.partials.reshape(-1), other.partials.cpu().numpy().reshape(-1)
        lengths = len(one.piece_tensors), other.chunk_count
        ours, its = (
            table[: length * width].reshape(length, width)[:, column]
            for table, length, width, column in zip(tables, lengths, widths, columns, strict=True)
        )
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
    rule = OWN["adamw"]
    mine, theirs, *_ = step_both(rule, rule.hyperparameters, list(dtypes))
    assert_equal(mine, theirs)


def test_tensors_need_not_be_aligned():
    """Blocks that could be read at once, but for their address."""
    rule, hyper = OWN["adamw"], OWN["adamw"].hyperparameters
    kernel = gpu.Kernel.compiled(rule, hyper, False, ["float32"] * 4)
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


def tensors_for(rule, sizes, steps):
    """A kernel, a plan and what it works on, by name, each tensor with its kept step."""
    hyper = dict(rule.hyperparameters)
    operands = [random_operands(rule, hyper, size, torch.float32, 1 + i) for i, size in enumerate(sizes)]
    tensors = [{name: value.to(GPU_DEVICE) for name, value in one.items()} for one in operands]
    for one, step in zip(tensors, steps, strict=True):
        one["step"] = torch.tensor(step, dtype=torch.float64, device=GPU_DEVICE)
    kernel = gpu.Kernel.compiled(rule, hyper, False, ["float32"] * (2 + len(rule.tensor_states)))
    at = [one["step"].data_ptr() for one in tensors]
    return kernel, make_gpu_plan(kernel, tensors, hyper, 1, step_at=at), tensors


@pytest.mark.parametrize("name", ["adagrad", "nadam", "lamb", "prodigy"])
def test_a_skipped_step_changes_nothing(name):
    rule = OWN[name]
    kernel, plan, tensors = tensors_for(rule, [1100, 7], [3.0, 5.0])
    before = [{name: value.clone() for name, value in one.items()} for one in tensors]
    plan.skip.fill_(1)
    step_gpu(kernel, plan, tensors)
    for one, other in zip(tensors, before, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    plan.skip.fill_(0)
    step_gpu(kernel, plan, tensors)
    assert [float(one["step"]) for one in tensors] == [4.0, 6.0]
    for one, other in zip(tensors, before, strict=True):
        changed = {name for name in one if not torch.equal(one[name], other[name])}
        assert changed >= {"param", "step", *rule.tensor_states} - {"initial_param"} | {*rule.scalar_states} - {
            "d",
            "d_max",
        }


def test_scalar_states_keep_the_dtype_that_each_has():
    rule = OWN["schedulefreeadamw"]
    kernel, plan, tensors = tensors_for(rule, [5] * 300, [2.0] * 300)  # more than one program brings together
    expected, dtypes = [], (torch.float32, torch.float64)
    for number, one in enumerate(tensors):
        one["weight_sum"] = torch.tensor(0.1 * number, dtype=dtypes[number % 2], device=GPU_DEVICE)
        one["lr_max"] = torch.tensor(1 / (1 + number), dtype=dtypes[number // 2 % 2], device=GPU_DEVICE)
        expected.append((one["weight_sum"] + max(1 / (1 + number), 0.0025) ** 2, max(one["lr_max"].item(), 0.0025)))
    step_gpu(kernel, plan, tensors)
    for number, (one, (weight_sum, lr_max)) in enumerate(zip(tensors, expected, strict=True)):
        assert (one["weight_sum"].dtype, one["lr_max"].dtype) == (dtypes[number % 2], dtypes[number // 2 % 2])
        torch.testing.assert_close(one["weight_sum"], weight_sum, rtol=1e-6, atol=0.0)
        assert one["lr_max"].item() == pytest.approx(lr_max, rel=1e-7)


def test_random_bits_are_those_of_the_formats():
    """Seeds and steps of more than 32 bits, as the CPU engine's."""
    rule = OWN["sgd"]
    for seed in (0, 2**40 + 3):
        mine, theirs, *_ = step_both(
            rule, rule.hyperparameters, ["bfloat16 stochastic", "bfloat16"], shapes=[(5, 700)], seed=seed
        )
        assert_equal(mine, theirs)


NORMS = [("float32", norm) for norm in (2.0, 1.0, 0.0, 3.0, float("inf"), float("-inf"))]
NORMS += [(dtype, 2.0) for dtype in ("bfloat16", "float16", "float64")]


@pytest.mark.parametrize(("dtype", "norm_type"), NORMS)
def test_readings_are_the_cpu_engines(dtype, norm_type):
    sizes = [16384 + 77, 5, 0, 1200]
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
        norm = Norm("grad", norm_type, TENSOR if rows is None else ROW, zero, check)
        one = norms(norm, dtype, addresses, lengths, rows or [], lambda: 1)
        plan = GpuPlan(
            GPU_DEVICE, [SOURCE], addresses=[[tensor.data_ptr() for tensor in theirs]] * 2, sizes=lengths,
            groups=[0] * 4, hyper=[[0.0]], first_steps=[0.0] * 4,
        )  # fmt: skip
        from steprule.engine import gpu_reading

        other = gpu_reading.norms(norm, dtype, plan, 1, rows or [])
        one.run(), other.run()
        assert one.sums().keys() == other.sums().keys()
        for ours, its in ((other.pieces(), one.pieces()), (*other.sums().values(), *one.sums().values())):
            np.testing.assert_allclose(ours.cpu().numpy(), its, rtol=1e-12)
