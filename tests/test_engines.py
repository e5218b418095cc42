"""Every engine against the float64 oracle, over every formula of the registry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bounds import Bound
from engines import as_float64, make_plan, random_operands, run_cpu, run_eager, run_gpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from settings import IDS, VARIANTS

from steprule.engine import cpu, gpu, plan, team
from steprule.engine.codegen import compute_dtype
from steprule.engine.eager import oracle
from steprule.engine.trace import scalar_values, trace

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ENGINES = {"cpu": run_cpu, "eager": run_eager} | ({"gpu": run_gpu} if gpu.is_available() else {})


def assert_within_bound(rule, hyper, operands, step, maximize, result):
    """Each new value is where rounding may have taken it, and no further."""
    formula = trace(rule, hyper, maximize)
    names = [name if index is None else f"{name}_{index}" for name, index in formula.scalars]
    inputs = {
        **{name: as_float64(value) for name, value in operands.items()},
        **dict(zip(names, scalar_values(formula, hyper), strict=True)),
        "step": float(step),
    }
    dtype = str(operands["param"].dtype).removeprefix("torch.")
    bound = Bound(inputs, compute_dtype([dtype]))
    for name in formula.outputs:
        exact, allowed = bound.output(formula, name, dtype)
        representable = np.abs(exact) < torch.finfo(operands["param"].dtype).max / 2
        got = as_float64(result[name])
        with np.errstate(invalid="ignore"):
            distance = np.where(representable, np.abs(got - exact), 0)
            worst = np.argmax(np.where(representable, distance / allowed, 0))
        assert np.all((distance <= allowed) | ~representable), (
            f"{name}[{worst}]: {got[worst]} instead of {exact[worst]}, "
            f"{distance[worst] / allowed[worst]:.1f} times what rounding may do"
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
def test_engines_stay_within_rounding_of_the_oracle(rule, hyper, dtype, engine):
    for step in (1, 2, 1000):
        operands = random_operands(rule, hyper, 999, dtype, seed=step)
        result = ENGINES[engine](rule, hyper, operands, step)
        assert_within_bound(rule, hyper, operands, step, False, result)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_cpu_engine_with_any_hyperparameters(data):
    rule, hyper = data.draw(st.sampled_from(VARIANTS))
    hyper = {**hyper, "lr": data.draw(st.floats(1e-8, 10)), "weight_decay": data.draw(st.floats(0, 1))}
    if "betas" in hyper:
        hyper["betas"] = (data.draw(st.floats(0, 0.999)), data.draw(st.floats(0, 0.99999)))
    if "eps" in hyper:
        hyper["eps"] = data.draw(st.floats(1e-12, 1))
    step = data.draw(st.integers(1, 10**6))
    operands = random_operands(rule, hyper, data.draw(st.integers(1, 70)), torch.float32, data.draw(st.integers(0, 99)))
    maximize = data.draw(st.booleans())
    assert_within_bound(rule, hyper, operands, step, maximize, run_cpu(rule, hyper, operands, step, maximize))


@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
def test_the_bound_is_about_the_oracle(rule, hyper):
    """The bound's own evaluation and the oracle are the same numbers."""
    operands = random_operands(rule, hyper, 50, torch.float64, seed=7)
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
    return tensor.view(torch.uint8)


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


def test_results_do_not_depend_on_which_tensors_share_a_call():
    rule, hyper = VARIANTS[-1]
    tensors = [random_operands(rule, hyper, size, torch.float32, size) for size in (1, 17, 40000, 0, 33000)]
    apart = [run_cpu(rule, hyper, row, 3) for row in tensors]
    kernel = cpu.compiled(rule, hyper, False, ["float32"] * len(tensors[0]))
    together = [{name: value.clone() for name, value in row.items()} for row in tensors]
    kernel.launcher(make_plan(kernel, together, hyper, 3), lambda: 2)()
    for one, other in zip(apart, together, strict=True):
        assert all(torch.equal(bits(one[name]), bits(other[name])) for name in one)


def test_every_thread_of_the_team_is_used_and_waited_for():
    """1,000 launches in a row: a chunk that was left out or done twice would show."""
    rule, hyper = VARIANTS[0]
    operands = {"param": torch.zeros(cpu.PARALLEL_FROM * 2), "grad": torch.ones(cpu.PARALLEL_FROM * 2)}
    kernel = cpu.compiled(rule, hyper, False, ["float32"] * 2)
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
