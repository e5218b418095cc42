"""Which parameters have gradients changes from step to step: experts, layers that are dropped.

What a plan that selects among its parameters does is what plans do that are made anew for every step, to the last bit.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import steprule
from steprule.engine import gpu
from steprule.engine.plan import Plan
from steprule.services import Average, ClipAdaptive, ClipNorm, ClipQuantile, ClipValue, Telemetry
from steprule.step import plans as step_plans

SHAPES = [(3, 40), (7,), (5, 130), (0,), (2, 3, 33), (1,), (70_000,), (4, 64)]
SOME: list[tuple[int, ...]] = [
    (0, 1, 2, 3), (0, 2, 5), (1, 3), (4,), (0, 1, 2, 3, 4, 5, 6, 7), (6, 7), (3,), (), (1, 2, 6), (0, 4, 5, 7), (0, 4, 5, 7),
    (2, 3, 4),
]  # fmt: skip
"""Which parameters have a gradient, step by step. The last four have their first late; one step has none at all."""


def make(cls: Any = steprule.AdamW, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    free: dict[str, Any] = {"clip": False} if settings.get("clip") is not None else {}
    return cls([{"params": params[:5]}, {"params": params[5:], "weight_decay": 0.3, **free}], lr=0.01, **settings)


def params_of(optimizer: Any) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def give(optimizer: Any, some: tuple[int, ...], step: int, dtype: torch.dtype | None = None) -> None:
    """These parameters get gradients, by backward; the others have none."""
    generator = torch.Generator().manual_seed(step)
    every = params_of(optimizer)
    for param in every:
        param.grad = None
    for number, param in enumerate(every):
        grad = torch.randn(param.shape, generator=generator) * 2.0 ** (step % 3)
        if number in some:
            for half in (0.5, 0.25):  # so that sums have something to round
                (param * (half * grad)).sum().backward()
            if dtype is not None:
                param.grad = param.grad.to(dtype)


def everything(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """All that a step could change, by name."""
    for number, param in enumerate(params_of(optimizer)):
        yield f"parameter {number}", param.detach()
        for name, value in optimizer.state.get(param, {}).items():
            yield f"{name} of {number}", value
    yield "norm", optimizer.grad_norm
    yield "counts", torch.tensor([optimizer.clipped_steps, optimizer.skipped_steps, optimizer.zeroed_elements])
    if optimizer.telemetry is not None:
        for step, record in enumerate(optimizer.telemetry._records):
            yield f"telemetry of step {step}", torch.from_numpy(record.sums)
            yield f"names of step {step}", " ".join(record.names)


def assert_same(ours: Any, its: Any, step: int) -> None:
    mine, others = dict(everything(ours)), dict(everything(its))
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        if isinstance(value, str):
            assert value == others[name]
            continue
        torch.testing.assert_close(
            value, others[name], rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{step}: {name}: {text}"
        )


def compare(make_one: Callable[[], Any], before: Callable[[Any, int], None] = lambda optimizer, step: None) -> Any:
    """Steps an optimizer, and another whose plans are thrown away before each step."""
    ours, its = make_one(), make_one()
    for step, some in enumerate(SOME):
        for optimizer in (ours, its):
            give(optimizer, some, step)
            before(optimizer, step)
            if optimizer is its:
                its._core.plans.forget()
            optimizer.step()
        assert_same(ours, its, step)
    return ours


RULES = {
    "AdamW, amsgrad": (steprule.AdamW, {"amsgrad": True}),
    "SGD": (steprule.SGD, {"momentum": 0.9, "dampening": 0.5}),  # which keeps no step
    "SGD without states": (steprule.SGD, {}),
    "NAdam": (steprule.NAdam, {}),  # one number a tensor
    "LAMB": (steprule.LAMB, {}),  # sums
    "Prodigy": (steprule.Prodigy, {}),  # sums over all tensors
    "a step of two formulas": (steprule.AdamW, {"decay": "initial", "cautious": True, "lookahead": 2}),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_kind_of_rule_is_stepped_as_by_new_plans(rule):
    cls, settings = RULES[rule]
    compare(lambda: make(cls, **settings))


SERVICES: dict[str, dict[str, Any]] = {
    "clip": {"clip": 1.0},
    "norm 1": {"clip": ClipNorm(1.0, norm_type=1)},
    "norm inf": {"clip": ClipNorm(0.5, norm_type=float("inf"))},
    "norm -inf": {"clip": ClipNorm(1e-6, norm_type=-float("inf")), "nonfinite": "raise"},
    "norm 0": {"clip": ClipNorm(100.0, norm_type=0)},
    "each": {"clip": ClipNorm(0.5, per_parameter=True)},
    "adaptive": {"clip": ClipAdaptive(0.02)},
    "quantile": {"clip": ClipQuantile(0.3, window=4)},
    "value, telemetry": {"clip": ClipValue(0.3), "telemetry": Telemetry(every=2)},
    "average": {"average": 0.9},
    "average, clip": {"clip": 1.0, "average": Average(0.9, warmup=True), "telemetry": Telemetry(every=1)},
}


@pytest.mark.parametrize("services", SERVICES)
def test_every_service_does_what_it_does_with_new_plans(services):
    compare(lambda: make(**SERVICES[services]))


def test_sums_and_services_together():
    compare(lambda: make(steprule.LAMB, clip=ClipAdaptive(0.02), telemetry=Telemetry(every=1), average=0.9))


FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "8bit": {"states": "8bit", "average": 0.9},
    "stochastic": {"weights": "stochastic", "states": "bfloat16", "average": 0.9},
    "24bit": {"weights": "24bit", "clip": 1.0, "average": 0.9},
    "32bit": {"weights": "32bit", "grads": "32bit", "telemetry": 1},
}


@pytest.mark.parametrize("formats", FORMATS)
def test_every_format_is_stepped_as_by_new_plans(formats):
    compare(lambda: make(dtype=torch.bfloat16, **FORMATS[formats]))


@pytest.mark.parametrize("nonfinite", ["skip", "zero"])
def test_gradients_that_are_not_finite_count_only_where_there_are_any(nonfinite):
    """Also one that is gone by the next step, which none of the sums may remember."""

    def spoil(optimizer: Any, step: int) -> None:
        grads = [param.grad for param in params_of(optimizer) if param.grad is not None]
        if step in (2, 5, 9):
            grads[0].view(-1)[:1] = (float("nan"), float("inf"))[step % 2]

    ours = compare(lambda: make(nonfinite=nonfinite, clip=1.0, telemetry=Telemetry(every=1)), spoil)
    assert ours.skipped_steps == 3 or ours.zeroed_elements == 3


def test_settings_change_as_well():
    def change(optimizer: Any, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
            group["amsgrad"] = step >= 6

    compare(lambda: make(clip=1.0), change)


def test_gradients_change_their_dtype_as_well():
    def change(optimizer: Any, step: int) -> None:
        for number, param in enumerate(params_of(optimizer)):
            if param.grad is not None and (number + step) % 3 == 0:
                grad = param.grad.float()
                param.grad_dtype = None
                param.grad = grad

    if not hasattr(Tensor, "grad_dtype"):
        pytest.skip("gradients of this torch have their parameters' dtype")
    compare(lambda: make(dtype=torch.bfloat16, clip=1.0), change)


def test_parameters_go_and_come_back():
    gone: dict[int, Tensor] = {}

    def change(optimizer: Any, step: int) -> None:
        params = optimizer.param_groups[0]["params"]
        if step == 5:
            gone[id(optimizer)] = params.pop(2)
        if step == 9:
            params.append(gone[id(optimizer)])
            params.append(torch.nn.Parameter(torch.ones(3)))
            params[-1].grad = torch.ones(3)

    compare(lambda: make(clip=1.0, average=0.9), change)


def test_a_gradient_that_no_kernel_takes_comes_beside_parameters_that_rest():
    def make_one() -> Any:
        params = [torch.nn.Parameter(torch.ones(4, 3)) for _ in SHAPES]
        return steprule.SGD(params, lr=0.1, momentum=0.9, clip=1.0)

    def change(optimizer: Any, step: int) -> None:
        if step in (4, 5):
            param = params_of(optimizer)[4]
            param.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 3), (4, 3), check_invariants=True)

    compare(make_one, change)


def test_states_that_are_loaded_are_gone_on_from():
    def load(optimizer: Any, step: int) -> None:
        if step == 6:
            optimizer.load_state_dict(optimizer.state_dict())
        if step == 9:
            optimizer.state.pop(params_of(optimizer)[0])

    compare(lambda: make(average=0.9), load)


# No plan is made anew


@pytest.fixture(autouse=True)
def _without_gpu_plans(request):
    """A plan on a GPU selects nothing, and is made anew."""
    if "cpu" in gpu.DEVICES and {"looked_at", "monkeypatch"} & {*request.fixturenames}:
        pytest.skip("plans of the GPU engine select nothing")


@pytest.fixture
def looked_at(monkeypatch):
    """The numbers of the parameters that have been looked at."""
    seen: list[int] = []

    class Entry(step_plans.Entry):  # type: ignore[misc]
        def __init__(self, job, one, kinds):
            seen.append(one.place)
            super().__init__(job, one, kinds)

    monkeypatch.setattr(step_plans, "Entry", Entry)
    return seen


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip, average, telemetry": {"clip": 1.0, "average": 0.9, "telemetry": 1, "nonfinite": "zero"},
    "sums": {"cls": steprule.Prodigy},
}


@pytest.mark.parametrize("case", CASES)
def test_a_plan_that_knows_all_is_used_whoever_has_a_gradient(case, looked_at):
    optimizer = make(**CASES[case])
    give(optimizer, SOME[4], 0)
    optimizer.step()
    plan, count = optimizer._core.plans.current, len(SHAPES)
    assert looked_at == list(range(count))
    for step, some in enumerate(SOME):
        give(optimizer, some, step)
        optimizer.step()
        assert optimizer._core.plans.current is plan
    assert len(looked_at) == count


@pytest.mark.parametrize("case", CASES)
def test_a_parameter_is_looked_at_when_it_has_its_first_gradient(case, looked_at):
    optimizer = make(**CASES[case])
    for step, some in enumerate(SOME):
        give(optimizer, some, step)
        optimizer.step()
    assert sorted(looked_at) == list(range(len(SHAPES)))


def test_averages_of_random_formats_move_without_a_new_plan(looked_at):
    optimizer = make(dtype=torch.bfloat16, weights="stochastic", average=0.9)
    for step, some in enumerate(SOME):
        give(optimizer, some, step)
        optimizer.step()
    assert sorted(looked_at) == list(range(len(SHAPES)))


# What kernels may write to


def known(**settings: Any) -> tuple[Any, list[Tensor]]:
    """An optimizer whose plan knows all parameters, of which half had a gradient last."""
    optimizer = make(**settings)
    for step, some in enumerate([SOME[4], (0, 2, 4, 6)]):
        give(optimizer, some, step)
        optimizer.step()
    return optimizer, params_of(optimizer)


@pytest.mark.parametrize("settings", [{}, {"clip": 1.0, "average": 0.9}], ids=["plain", "services"])
def test_a_parameter_that_rested_and_was_moved_is_stepped_where_it_is(settings):
    (ours, params), (its, others) = known(**settings), known(**settings)
    before = params[7].data
    kept = before.clone()
    for every in (params, others):
        every[7].data = every[7].data.clone()
    for optimizer in (ours, its):
        give(optimizer, (1, 7), 3)
        if optimizer is its:
            its._core.plans.forget()
        optimizer.step()
    assert torch.equal(before, kept)
    assert_same(ours, its, 3)


def test_a_state_that_became_smaller_while_its_parameter_rested_is_refused():
    optimizer, params = known()
    state = optimizer.state[params[7]]
    state["exp_avg"].data = state["exp_avg"].data[:2]
    give(optimizer, (1, 7), 3)
    with pytest.raises(RuntimeError, match=r"the state exp_avg of parameter 2 of group 1 has the shape"):
        optimizer.step()


def test_a_gradient_of_another_shape_is_refused():
    optimizer, params = known()
    give(optimizer, (1,), 3)
    params[7].data = torch.ones(3)
    params[7].grad = torch.ones(3)
    params[7].data = torch.ones(4, 64)
    before = params[1].detach().clone()
    with pytest.raises(RuntimeError, match=r"the gradient of parameter 2 of group 1 has the shape torch.Size\(\[3\]\)"):
        optimizer.step()
    assert torch.equal(params[1], before)


def test_a_gradient_whose_memory_was_freed_is_refused():
    optimizer, params = known()
    give(optimizer, (1, 7), 3)
    params[7].grad.untyped_storage().resize_(4)
    with pytest.raises(RuntimeError, match="lacks 1020 bytes"):
        optimizer.step()


def test_a_gradient_that_lies_where_another_is_written_is_refused():
    optimizer, params = known()
    give(optimizer, (1,), 3)
    params[7].grad = params[6].data[:256].view(4, 64)
    optimizer.step()  # the other rests
    params[6].grad = torch.ones(70_000)
    with pytest.raises(RuntimeError, match="lies in the memory of parameter 1 of group 1"):
        optimizer.step()


def test_two_that_share_memory_may_take_turns_and_not_step_together():
    memory = torch.ones(8)
    first, second, other = (torch.nn.Parameter(x) for x in (memory[:6], torch.ones(3), torch.ones(2)))
    optimizer = steprule.SGD([first, second, other], lr=0.1)
    for step in range(6):
        first.grad, second.grad, other.grad = None, None, torch.ones(2)
        if step == 0:
            second.data = memory[4:7]
        (first, second)[step % 2].grad = torch.ones(6 if step % 2 == 0 else 3)
        optimizer.step()
    expected = torch.tensor([0.7] * 4 + [0.4] * 2 + [0.7, 1.0])
    torch.testing.assert_close(memory, expected)
    first.grad, second.grad = torch.ones(6), torch.ones(3)
    with pytest.raises(RuntimeError, match="lie in the same memory"):
        optimizer.step()


@pytest.mark.parametrize("some", [(1, 7), (0, 2, 4, 6)], ids=["again", "as before"])
def test_a_change_that_fails_half_way_leaves_nothing_behind(some, monkeypatch):
    settings = {"clip": 1.0, "average": 0.9}
    (ours, _), (its, _) = known(**settings), known(**settings)
    before = [x.clone() for _, x in everything(ours)]
    select = Plan.select
    with monkeypatch.context() as context:

        def fails(self: Plan, active: Any) -> None:
            select(self, active)
            raise MemoryError

        context.setattr(Plan, "select", fails)
        give(ours, (1, 7), 3)
        with pytest.raises(MemoryError):
            ours.step()
    for a, (name, b) in zip(before, everything(ours), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)
    for optimizer in (ours, its):
        give(optimizer, some, 4)
        if optimizer is its:
            its._core.plans.forget()
        optimizer.step()
    assert_same(ours, its, 4)


def test_gradients_are_kept_alive_by_nobody():
    optimizer, params = known()
    give(optimizer, SOME[4], 3)
    grads = [weakref.ref(param.grad) for param in params]
    optimizer.step()
    for param in params:
        param.grad = None
    gc.collect()
    assert not any(one() is not None for one in grads)


def test_a_first_gradient_later_keeps_no_gradient_alive():
    optimizer = make()
    for step, some in enumerate([(0, 1), (1, 2)]):
        give(optimizer, some, step)
        grads = [weakref.ref(params_of(optimizer)[number].grad) for number in some]
        optimizer.step()
    give(optimizer, (), 3)
    gc.collect()
    assert not any(one() is not None for one in grads)
