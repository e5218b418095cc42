"""Every engine against the float64 oracle, over every formula of the registry that sees no matrices.

For those that do see tests/test_matrix_engine.py and tests/test_matrix_rules.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bounds import Bound
from engines import as_float64, dtypes_of, make_plan, random_operands, run_cpu, run_eager, run_gpu, step_cpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from settings import ELEMENTWISE as VARIANTS
from settings import ELEMENTWISE_IDS as IDS
from settings import telling, variants

from steprule.engine import cpu, gpu, plan, team
from steprule.engine.eager import oracle
from steprule.kernels.source import compute_dtype
from steprule.pieces import atan2, cbrt, sqrt
from steprule.rule import Rule
from steprule.rules import OWN
from steprule.trace.expression import scalar_name
from steprule.trace.program import hyper_of
from steprule.trace.tracing import trace

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FIRST = [OWN[name] for name in ("sgd", "rmsprop", "adam", "adamw")]
ENGINES = {"cpu": run_cpu, "eager": run_eager} | ({"gpu": run_gpu} if gpu.is_available() else {})


def assert_within_bound(rule, hyper, operands, step, maximize, result):
    """Each new value is where rounding may have taken it, and no further."""
    formula = trace(rule, hyper, maximize)
    names = [scalar_name(*scalar) for scalar in formula.scalars]
    inputs = {
        **{name: as_float64(value) for name, value in operands.items()},
        **dict(zip(names, map(float, hyper_of(formula, hyper)), strict=True)),
        "step": float(step),
        "numel": float(operands["param"].numel()),
    }
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in operands.items()}
    kept = {name: dtypes[name] for name in formula.numbers}
    bound = Bound(formula, inputs, compute_dtype([dtypes["param"]]), kept)
    for name in (*formula.last.outputs, *formula.numbers):
        exact, allowed = bound.output(name, dtypes[name])
        representable = np.abs(exact) < torch.finfo(operands[name].dtype).max / 2
        got = as_float64(result[name])
        with np.errstate(invalid="ignore"):
            distance = np.where(representable, np.abs(got - exact), 0)
            times = np.asarray(np.where(representable & (distance > 0), distance / allowed, 0))
            worst = np.argmax(times)
        assert np.all((distance <= allowed) | ~representable), (
            f"{name}[{worst}]: {got.flat[worst]} instead of {exact.flat[worst]}, "
            f"{times.flat[worst]:.1f} times what rounding may do"
        )


def compiled_in(rule, hyper):
    """The dtypes that a compiled formula is tried in: float32, and others in turn, since what they change is no formula's."""
    number = list(OWN.values()).index(rule)
    place = variants(rule).index(hyper)
    if rule in FIRST:
        return [DTYPES[0], *(DTYPES[1:] if place == 0 else [DTYPES[1 + (number + place) % 3]])]
    return [DTYPES[0], *([DTYPES[1 + number % 3]] if place == 0 else [])]


CASES = [
    pytest.param(rule, hyper, dtype, engine, id=f"{name}-{str(dtype).removeprefix('torch.')}-{engine}")
    for (rule, hyper), name in zip(VARIANTS, IDS, strict=True)
    for engine in ENGINES
    for dtype in (DTYPES if engine == "eager" else compiled_in(rule, hyper))
]


@pytest.mark.parametrize(("rule", "hyper", "dtype", "engine"), CASES)
def test_engines_stay_within_rounding_of_the_oracle(rule, hyper, dtype, engine):
    first, second, late = (1, hyper), (2, telling(rule, hyper)), (1000, telling(rule, hyper))
    is_formula = engine != "gpu" or dtype == torch.float32  # else only loads and stores are others, in the interpreter
    for step, numbers in (first, second, late) if is_formula else (second,):
        operands = random_operands(rule, numbers, 999, dtype, seed=step, is_first=step == 1)
        result = ENGINES[engine](rule, numbers, operands, step)
        assert_within_bound(rule, numbers, operands, step, False, result)


RANGES = {"lr": (1e-8, 10.0), "weight_decay": (0.0, 1.0), "eps": (1e-12, 1.0), "d0": (1e-6, 10.0)}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_cpu_engine_with_any_hyperparameters(data):
    rule, hyper = data.draw(st.sampled_from(VARIANTS))
    hyper = {**hyper, **{name: data.draw(st.floats(*range)) for name, range in RANGES.items() if name in hyper}}
    if "betas" in hyper:
        ends = (0.999, 0.99999, 0.99999)
        hyper["betas"] = tuple(data.draw(st.floats(1e-3, end)) for end in ends[: len(hyper["betas"])])
    step = data.draw(st.integers(1, 10**6))
    operands = random_operands(rule, hyper, data.draw(st.integers(1, 70)), torch.float32, data.draw(st.integers(0, 99)))
    maximize = rule in FIRST and data.draw(st.booleans())  # a kernel of its own
    assert_within_bound(rule, hyper, operands, step, maximize, run_cpu(rule, hyper, operands, step, maximize))


@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
def test_the_bound_is_about_the_oracle(rule, hyper):
    """The bound's own evaluation and the oracle are the same numbers."""
    hyper = telling(rule, hyper)
    operands = {name: x.double() for name, x in random_operands(rule, hyper, 50, torch.float64, seed=7).items()}
    arrays = {name: value.numpy() for name, value in operands.items()}
    states = {name: value for name, value in arrays.items() if name not in ("param", "grad")}
    param, new_states = oracle(rule, arrays["param"], arrays["grad"], states, 3, hyper)
    result = {name: torch.tensor(np.array(value)) for name, value in {"param": param, **new_states}.items()}
    assert_within_bound(rule, hyper, operands, 3, False, result)


@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_nan_and_inf_pass_through(rule, hyper, engine):
    operands = random_operands(rule, hyper, 6, torch.float32, seed=0)
    operands["grad"][:3] = torch.tensor([np.nan, np.inf, -np.inf])
    result = ENGINES[engine](rule, hyper, operands, 2)
    states = {name: as_float64(v) for name, v in operands.items() if name not in ("param", "grad")}
    param, new_states = oracle(rule, as_float64(operands["param"]), as_float64(operands["grad"]), states, 2, hyper)
    for name, expected in {"param": param, **new_states}.items():
        np.testing.assert_array_equal(np.isnan(as_float64(result[name])), np.isnan(expected), err_msg=name)
        np.testing.assert_array_equal(np.isinf(as_float64(result[name])), np.isinf(expected), err_msg=name)


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
def test_results_do_not_depend_on_threads_or_chunks(rule, hyper, monkeypatch):
    size = cpu.PARALLEL_FROM + 4321
    operands = random_operands(rule, hyper, size, torch.float32, seed=1)
    whole = run_cpu(rule, hyper, operands, 5)
    for chunk, threads, team_of in [(1000, 2, None), (777, 3, team._run_in_pool), (32768, 2, team._run_in_pool)]:
        monkeypatch.setattr(plan, "CHUNK", chunk)
        if team_of is not None:
            monkeypatch.setattr(team, "_openmp", lambda _, chosen=team_of: chosen)
        parts = run_cpu(rule, hyper, operands, 5, threads=threads)
        for name in whole:
            assert torch.equal(bits(whole[name]), bits(parts[name])), (name, chunk, threads)


@pytest.mark.parametrize("name", ["adamw", "lamb", "novograd"])
def test_results_do_not_depend_on_which_tensors_share_a_call(name):
    rule, hyper = OWN[name], OWN[name].hyperparameters
    tensors = [random_operands(rule, hyper, size, torch.float32, size) for size in (1, 17, 40000, 0, 33000, 70000)]
    apart = [run_cpu(rule, hyper, row, 3) for row in tensors]
    kernel = cpu.Kernel.compiled(rule, hyper, False, dtypes_of(rule, tensors[0]))
    together = [{name: value.clone() for name, value in row.items()} for row in tensors]
    step_cpu(kernel, make_plan(kernel, together, hyper, 3), together, threads=2)
    for one, other in zip(apart, together, strict=True):
        assert all(torch.equal(bits(one[name]), bits(other[name])) for name in one)


def test_every_thread_of_the_team_is_used_and_waited_for():
    """1,000 launches in a row: a chunk that was left out or done twice would show."""
    rule, hyper = OWN["sgd"], OWN["sgd"].hyperparameters
    operands = {"param": torch.zeros(cpu.PARALLEL_FROM * 2), "grad": torch.ones(cpu.PARALLEL_FROM * 2)}
    kernel = cpu.Kernel.compiled(rule, hyper, False, ["float32"] * 2)
    launch = kernel.launcher(make_plan(kernel, [operands], {**hyper, "lr": 1.0}, 1), lambda: 2)
    for _ in range(1000):
        launch()
    assert torch.equal(operands["param"], torch.full_like(operands["param"], -1000.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_numbers_round_as_torch_rounds(dtype):
    """Every 16-bit pattern read, and rounding to nearest even on the way back."""
    from steprule.rules import SGD

    hyper = {**SGD.hyperparameters, "lr": 1.0}
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    zeros = torch.zeros_like(patterns)
    same = run_cpu(SGD, hyper, {"param": patterns, "grad": zeros}, 1)["param"]
    expected = patterns.float()
    assert torch.equal(same.isnan(), expected.isnan())
    assert torch.equal(same[~expected.isnan()], expected.to(dtype)[~expected.isnan()])
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(100_000, generator=generator).to(dtype) for _ in range(2))
    result = run_cpu(SGD, {**hyper, "lr": 0.37}, {"param": a, "grad": b}, 1)["param"]
    fused = (a.double() - float(np.float32(0.37)) * b.double()).to(torch.float32).to(dtype)
    separate = (a.float() - float(np.float32(0.37)) * b.float()).to(dtype)
    assert bool(((result == fused) | (result == separate)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_division_by_a_root_is_no_estimate(dtype):
    """Both rounded once, as NumPy's, for 0, subnormals and infinity too, in vectors and in the rest of a loop."""

    class Rooted(Rule):
        def update(param, grad, *, lr=1.0):
            return grad / sqrt(param)

    special = torch.tensor([0.0, 1e-45, 1e-39, 1e38, np.inf, np.nan, 4.0] * 5, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    param = torch.cat([special, torch.rand(1000, generator=generator, dtype=dtype)])
    grad = torch.cat([torch.ones(30, dtype=dtype), torch.randn(1005, generator=generator, dtype=dtype)])
    with np.errstate(all="ignore"):
        expected = grad.numpy() / np.sqrt(param.numpy())
    result = run_cpu(Rooted, Rooted.hyperparameters, {"param": param, "grad": grad}, 1)["param"]
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_roots_and_angles_that_no_processor_has_are_right(dtype):
    """To some units in the last place, over the whole range and for special numbers: the bound knows only the formula."""

    class Unusual(Rule):
        def update(param, grad, angle, *, lr=1.0):
            return cbrt(param), atan2(grad, param)

    generator = torch.Generator().manual_seed(0)
    low, high = (-44, 38) if dtype is torch.float32 else (-320, 308)
    sizes, others = (
        10 ** (low + (high - low) * torch.rand(5000, generator=generator, dtype=torch.float64)) for _ in range(2)
    )
    near = torch.linspace(0.5, 3.0, 2000, dtype=torch.float64)  # where the arctangent's pieces meet
    special = torch.tensor([0.0, 0.0, 1.0, torch.inf, torch.inf, 1.0, torch.nan, 0.0], dtype=torch.float64)
    param = torch.cat([sizes, torch.ones(2000, dtype=torch.float64), special, special]).to(dtype)
    grad = torch.cat([others * (1 - 2 * (sizes > 1).double()), near, special.roll(1), -special.roll(1)]).to(dtype)
    x, y = param.double().numpy(), grad.double().numpy()
    result = run_cpu(Unusual, Unusual.hyperparameters, {"param": param, "grad": grad, "angle": grad * 0}, 1)
    unit = torch.finfo(dtype).eps
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(as_float64(result["param"]), np.cbrt(x), rtol=3 * unit, atol=0)
        expected = np.arctan2(y, np.where(x == 0, 0.0, x))
    tiny = 2 * torch.finfo(dtype).tiny  # an angle below it is a subnormal number
    np.testing.assert_allclose(as_float64(result["angle"]), expected, rtol=3 * unit, atol=tiny)
