"""Rules with a square for each side of a matrix: in the engines, resumed in the middle of a schedule, turned, and where squares are singular."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from dropin import random
from settings import sees_matrix

import steprule
from steprule.engine.eager import oracle
from steprule.engine.matrices import Rooms
from steprule.layers import View
from steprule.matrix import eigen
from steprule.matrix import oracle as exact
from steprule.pieces import gram
from steprule.rules import OWN
from steprule.state import first_array
from steprule.trace.tracing import program_of

RULES = [rule for rule in OWN.values() if sees_matrix(rule) and program_of(rule, rule.hyperparameters).in_some_steps]
SHAPES = [(5, 7), (7, 5), (6, 6), (6, 6), (6, 6), (1, 9), (9, 1), (1, 1), (130, 70), (4, 3, 2, 2)]
OFTEN = {"precondition_frequency": 3, "lr": 0.05}


def like_oracle(optimizer, params, steps, scale=1.0, given=None):
    """Steps, and how far each parameter is from the float64 oracle's, relative to how far that has gone."""
    rule, hyper = optimizer.rule, optimizer.param_groups[0]
    first = [param.detach().double().numpy().copy() for param in params]
    truth = list(first)
    states = [{name: first_array(rule, name, x, hyper) for name in rule.states} for x in truth]
    for step in range(1, steps + 1):
        for place, param in enumerate(params):
            grad = given(place, step) if given else random(tuple(param.shape), 100 * step + place, param.dtype) * scale
            param.grad = torch.empty_like(param).copy_(grad)
            truth[place], states[place] = oracle(
                rule, truth[place], param.grad.double().numpy(), states[place], step, hyper, place=place
            )
        optimizer.step()
    far = [
        float(np.abs(param.detach().double().numpy() - x).max() / np.abs(x - start).max())
        for param, x, start in zip(params, truth, first, strict=True)
    ]
    return far, states


def strided(x):
    """The same numbers, two elements apart, which the eager fallback steps."""
    return torch.stack([x, x], -1)[..., 0]


@pytest.mark.parametrize("engine", ["compiled", "eager"])
@pytest.mark.parametrize("rule", RULES)
def test_steps_are_the_oracles_with_every_matrix_in_its_turn(rule, engine):
    params = [random(shape, number) for number, shape in enumerate(SHAPES)]
    params = [strided(param) if engine == "eager" else param for param in params]
    optimizer = steprule.Optimizer.of(rule)(params, **OFTEN)
    far, states = like_oracle(optimizer, params, 7)
    assert max(far) < 1e-9
    assert (optimizer._core.plans.current is not None) == (engine == "compiled")
    for param, own in zip(params, states, strict=True):
        for name, value in own.items():
            kept = optimizer.state[param][name].numpy()
            assert np.abs(np.abs(kept) - np.abs(value)).max() <= 1e-9 * (np.abs(value).max() + 1e-30), (
                name
            )  # of either sign


@pytest.mark.parametrize("rule", RULES)
def test_float32_is_near_float64(rule):
    params = [random(shape, number, torch.float32) for number, shape in enumerate(SHAPES)]
    far, _ = like_oracle(steprule.Optimizer.of(rule)(params, **OFTEN), params, 7)
    assert max(far) < 2e-3


@pytest.mark.parametrize("rule", RULES)
def test_some_of_the_matrices_may_have_no_gradient(rule):
    def train(params, optimizer, steps, chosen):
        for step in steps:
            for place, param in enumerate(params):
                param.grad = random((6, 6), 10 * step + place) if place in chosen else None
            optimizer.step()

    runs = []
    for is_anew in (False, True):
        params = [random((6, 6), place) for place in range(4)]
        optimizer = steprule.Optimizer.of(rule)(params, **OFTEN)
        for steps, chosen in ((range(1, 4), range(4)), (range(4, 7), (0, 2)), (range(7, 10), range(4))):
            train(params, optimizer, steps, chosen)
            if is_anew:
                optimizer._core.plans.forget()
        runs.append(params)
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_groups_have_numbers_of_their_own(rule):
    """Matrices of one shape, in two groups with other numbers, are stepped as by two optimizers."""
    numbers = {
        name: tuple(one / 2 for one in value) if isinstance(value, tuple) else value / 2
        for name, value in rule.hyperparameters.items()
        if isinstance(value, (float, tuple)) and value != 0
    } | {"weight_decay": 0.3}  # fmt: skip
    every = {"precondition_frequency": 1}
    params, alone = ([random((5, 4), number) for number in range(2)] for _ in range(2))
    make = steprule.Optimizer.of(rule)
    together = [make([{"params": params[:1]}, {"params": params[1:], **numbers}], **every)]
    apart = [make(alone[:1], **every), make(alone[1:], **numbers, **every)]
    for step in range(4):
        for number, (param, other) in enumerate(zip(params, alone, strict=True)):
            param.grad = other.grad = random((5, 4), 10 * step + number)
        for optimizer in (*together, *apart):
            optimizer.step()
    for param, other in zip(params, alone, strict=True):
        assert torch.allclose(param, other, 1e-9, 1e-9)


@pytest.mark.parametrize("rule", [steprule.SOAP.rule, steprule.KLSOAP.rule])
def test_a_step_that_fails_between_two_passes_leaves_nothing_for_the_next(rule, monkeypatch):
    """Bases that have been computed for all of the matrices are not taken for those of some."""
    run, runs = Rooms.run, []

    def lacking(rooms, now, *others):
        if now.matrices:
            raise MemoryError
        run(rooms, now, *others)

    for has_failed in (False, True):
        params = [random((6, 6), place) for place in range(3)]
        optimizer = steprule.Optimizer.of(rule)(params, **OFTEN)
        for step, chosen in enumerate((range(3), range(3), (1, 2))):
            for place, param in enumerate(params):
                param.grad = random((6, 6), 10 * step + place)
            if has_failed and step == 2:
                with monkeypatch.context() as patched, pytest.raises(MemoryError):
                    patched.setattr(Rooms, "run", lacking)
                    optimizer.step()
            for place, param in enumerate(params):
                param.grad = param.grad if place in chosen else None
            optimizer.step()
        runs.append(params)
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize("stop", [1, 4, 5])
@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_has_the_same_bits_in_the_middle_of_the_schedule(rule, stop):
    shapes = [(6, 6), (8, 3), (6, 6), (70, 9), (6, 6)]

    def train(params, optimizer, steps):
        for step in steps:
            for place, param in enumerate(params):
                param.grad = random(tuple(param.shape), 10 * step + place, torch.float32)
            optimizer.step()

    params = [random(shape, place, torch.float32) for place, shape in enumerate(shapes)]
    optimizer = steprule.Optimizer.of(rule)(params, **{**OFTEN, "precondition_frequency": 4})
    train(params, optimizer, range(1, stop + 1))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [param.detach().clone() for param in params]
    resumed = steprule.Optimizer.of(rule)(others)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for own in ((params, optimizer), (others, resumed)):
        train(*own, range(stop + 1, stop + 7))
    assert all(torch.equal(*pair) for pair in zip(params, others, strict=True))
    for param, other in zip(params, others, strict=True):
        assert all(torch.equal(x, resumed.state[other][name]) for name, x in optimizer.state[param].items())


def refreshed(optimizer, params, name):
    """Which parameters' state of that name a step changes."""
    before = [optimizer.state[param][name].clone() if optimizer.state[param] else None for param in params]
    for place, param in enumerate(params):
        param.grad = random((5, 5), place + 1000 * len(optimizer.state) + int(torch.randint(9999, ())), torch.float32)
    optimizer.step()
    return [
        old is None or not torch.equal(old, optimizer.state[param][name])
        for param, old in zip(params, before, strict=True)
    ]


def test_bases_are_made_in_turn():
    params = [random((5, 5), place, torch.float32) for place in range(8)]
    optimizer = steprule.SOAP(params, precondition_frequency=4)
    changed = [refreshed(optimizer, params, "left_basis") for _ in range(10)]
    assert all(changed[0]) and all(changed[1])
    for step, own in enumerate(changed[2:], 3):
        assert own == [(step + place) % 4 == 0 for place in range(8)]


# How they turn


def turns(count):
    return [torch.linalg.qr(random((n, n), seed))[0] for n, seed in zip(count, (7, 8), strict=True)]


def path(optimizer_class, start, grads, left, right, **settings):
    param = (left @ start @ right).clone()
    optimizer = optimizer_class([param], **settings)
    for grad in grads:
        param.grad = left @ grad @ right
        optimizer.step()
    return left.T @ param @ right.T


def test_soap_turns_with_the_problem_once_it_has_bases_and_adam_does_not():
    """Its first step is Adam's, and the second moments of that step are Adam's too: so states begin after it, at 0."""
    start, grads = random((6, 6), 0), [random((6, 6), step) for step in range(1, 8)]
    left, right = turns((6, 6))
    one = torch.eye(6, dtype=torch.float64)
    settings = {"lr": 0.1, "weight_decay": 0.1, "precondition_frequency": 3}

    def run(left, right):
        param = (left @ start @ right).clone()
        optimizer = steprule.SOAP([param], **settings)
        squares = sum((g @ g.T for g in grads), 0 * one), sum((g.T @ g for g in grads), 0 * one)
        state = {
            "exp_avg": 0 * one,
            "exp_avg_sq": 0 * one,
            "left": left @ squares[0] @ left.T,
            "right": right.T @ squares[1] @ right,
        }
        state |= {"left_basis": one, "right_basis": one, "step": torch.tensor(1.0)}
        optimizer.state[param] = {name: x.clone() for name, x in state.items()}
        for grad in grads:
            param.grad = left @ grad @ right
            optimizer.step()
        return left.T @ param @ right.T

    plain = run(one, one)
    torch.testing.assert_close(run(left, right), plain, rtol=1e-9, atol=1e-10)
    adam = [path(steprule.AdamW, start, grads, *sides, lr=0.1) for sides in ((one, one), (left, right))]
    assert float((adam[0] - adam[1]).abs().max()) > 0.01


# Singular squares


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (40, 6)], ids=str)
def test_vectors_of_no_gradient_are_chosen_alike(shape):
    """Whatever a library gives there: they follow from what the others span, and so do not change with the dtype."""
    grad = random(shape, 0)
    gram = grad @ grad.T
    ours, its = eigen.eigenbasis(gram.float()), torch.from_numpy(exact.eigenbasis(gram.numpy()))
    rank = min(shape)
    torch.testing.assert_close(ours.T @ ours, torch.eye(len(gram)), rtol=0, atol=5e-6)
    torch.testing.assert_close(ours[:, rank:].double(), its[:, rank:], rtol=0, atol=1e-4)
    values = (ours.T.double() @ gram @ ours.double()).diagonal()
    assert bool((values[1:] <= values[:-1] + 1e-4 * values[0]).all()), "the largest come first"


def test_where_rows_are_0_vectors_are_unit_vectors():
    grad = random((6, 6), 0)
    grad[[1, 4]] = 0
    basis = eigen.eigenbasis(grad @ grad.T)
    torch.testing.assert_close(basis[:, 4:], torch.eye(6, dtype=torch.float64)[:, [1, 4]], rtol=0, atol=1e-14)


def test_eigenvalues_of_all_sizes():
    turn, _ = torch.linalg.qr(random((12, 12), 0))
    values = 10.0 ** -torch.arange(12, dtype=torch.float64)
    for stack in (turn * values @ turn.T, torch.eye(12).double() * 3, torch.zeros(12, 12).double()):
        for dtype in (torch.float32, torch.float64):
            basis = eigen.eigenbasis(stack.to(dtype))
            torch.testing.assert_close(basis.T @ basis, torch.eye(12, dtype=dtype), rtol=0, atol=1e-5)
    root = eigen.inverse_root(turn * values @ turn.T, 2)
    torch.testing.assert_close(root, turn * values**-0.5 @ turn.T, rtol=1e-3, atol=1e-3)
    known = values > 16 * 2.0**-23 * values[0]
    torch.testing.assert_close(
        eigen.inverse_root((turn * values @ turn.T).float(), 2).double() @ turn[:, ~known] @ turn[:, ~known].T,
        torch.zeros(12, 12).double(), rtol=0, atol=40.0,
    )  # fmt: skip


def test_a_stack_is_as_its_matrices_and_what_is_not_finite_spoils_its_own():
    grads = random((5, 6, 6), 0)
    grads[1, :, 2:] = 0
    stack = grads @ grads.mT
    stack[3, 2, 1] = torch.nan
    stack[4] = 0
    for function in (eigen.eigenbasis, lambda x: eigen.inverse_root(x, 4, 1e-6)):
        whole = function(stack)
        for one, alone in zip(whole, stack, strict=True):
            torch.testing.assert_close(one, function(alone), equal_nan=True, rtol=1e-10, atol=1e-10)
        assert bool(whole[3].isnan().all()) and bool(whole[[0, 1, 2, 4]].isfinite().all())


@pytest.mark.parametrize("rule", RULES)
def test_a_row_without_a_gradient_does_not_move(rule):
    """By noise that is made as long as other directions, it would; rank 1 is where there is most of it."""
    param = random((8, 6), 0, torch.float32)
    start = param.clone()
    optimizer = steprule.Optimizer.of(rule)([param], lr=0.1, weight_decay=0.0, precondition_frequency=2)
    for step in range(6):
        grad = random((8, 1), step, torch.float32) @ random((1, 6), 50 + step, torch.float32)
        grad[3] = 0
        param.grad = grad
        optimizer.step()
    assert float((param - start)[3].abs().max()) < 1e-4 < 1e-2 < float((param - start).abs().max())


@pytest.mark.parametrize("rule", RULES)
def test_steps_begin_with_the_first_gradient_that_is_not_0(rule):
    """Where the next layer begins at 0, as in LoRA, there is none in the first step."""
    param = random((6, 6), 0)
    optimizer = steprule.Optimizer.of(rule)([param], lr=0.1, weight_decay=0.0)
    lengths = []
    for step in range(4):
        before = param.clone()
        param.grad = 1e-3 * random((6, 6), step) if step else torch.zeros_like(param)
        optimizer.step()
        lengths.append(float((param - before).norm()))
    assert lengths[0] == 0 and min(lengths[1:]) > 1e-4


def test_the_largest_eigenvalue_is_bounded_from_below_at_any_size():
    factors = random((5, 7, 9), 0)
    stack = factors @ factors.mT * torch.tensor([1.0, 1e-30, 1e25, 0.0, 1.0]).double()[:, None, None]
    stack[4] = torch.eye(7)
    truth = torch.linalg.eigvalsh(stack)[:, -1]
    for dtype in (torch.float32, torch.float64):
        found = eigen.largest_eigenvalue(stack.to(dtype))
        torch.testing.assert_close(
            found.double(), torch.from_numpy(exact.largest_eigenvalue(stack.numpy())), rtol=1e-5, atol=0
        )
        share = found.flatten()[[0, 1, 2, 4]] / truth[[0, 1, 2, 4]]
        assert (
            found.shape == (5, 1, 1)
            and float(found[3]) == 0
            and 0.7 < float(share.min()) <= float(share.max()) < 1 + 1e-6
        )


def test_psgd_whitens_what_there_is_and_damping_bounds_the_rest():
    grad = random((5, 5), 0)
    grad[3], grad[:, 1] = 0, 0
    param = torch.zeros(5, 5, dtype=torch.float64)
    optimizer = steprule.PSGDKron([param], precond_lr=0.25, damping=1e-6)
    for _ in range(60):
        param.grad = grad.clone()
        optimizer.step()
    left, right = (optimizer.state[param][name] @ optimizer.state[param][name] for name in ("left", "right"))
    white = left @ grad @ right
    rest, other = torch.tensor([0, 1, 2, 4]), torch.tensor([0, 2, 3, 4])
    torch.testing.assert_close((white @ white.T / 5)[rest][:, rest], torch.eye(4).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close((white.T @ white / 5)[other][:, other], torch.eye(4).double(), rtol=0, atol=1e-4)
    assert float(left[3, 3]) == pytest.approx(1000, rel=1e-3) and float(right[1, 1]) == pytest.approx(1000, rel=1e-3)


# A side that is too long


@pytest.mark.parametrize("engine", ["compiled", "eager"])
@pytest.mark.parametrize("rule", [rule for rule in RULES if "max_precond_dim" in rule.hyperparameters])
def test_a_side_that_is_too_long_has_the_identity(rule, engine):
    params = [random(shape, number) for number, shape in enumerate([(5, 9), (9, 5), (9, 8), (4, 4)])]
    params = [strided(param) if engine == "eager" else param for param in params]
    optimizer = steprule.Optimizer.of(rule)(params, **OFTEN, max_precond_dim=5)
    far, _ = like_oracle(optimizer, params, 5)
    assert max(far) < 1e-9
    shapes = [[tuple(x.shape) for x in optimizer.state[param].values()] for param in params]
    assert all((9, 9) not in own and (8, 8) not in own for own in shapes) and (1, 1) in shapes[0]


def test_soap_without_a_basis_is_adam():
    params = [random((4, 6), 0) for _ in range(2)]
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.0, "eps": 0.0}
    optimizers = [steprule.SOAP(params[:1], max_precond_dim=2, **settings), steprule.Adam(params[1:], **settings)]
    for step in range(5):
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = random((4, 6), 10 + step)
            optimizer.step()
    torch.testing.assert_close(*params, rtol=1e-12, atol=0)


def test_states_of_another_limit_are_refused_before_anything_changes():
    param = random((4, 6), 0)
    optimizer = steprule.SOAP([param], max_precond_dim=5)
    param.grad = random((4, 6), 1)
    optimizer.step()
    other = steprule.SOAP([param.clone()])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["max_precond_dim"] = 10
    with pytest.raises(ValueError, match=r"right of parameter 0 .* shape \(6, 6\)"):
        other.load_state_dict(saved)


def test_a_recorded_graph_is_refused():
    param = random((4, 6), 0)
    param.grad = random((4, 6), 1)
    with pytest.raises(RuntimeError, match="capturable=False"):
        steprule.SOAP([param], capturable=True).step()


VIEWS = {
    "transpose": (12, 8),
    "rows 3": (24, 8),
    "transpose, split 2 6": (12, 8),
    "stack": (3, 4, 6),
    "flatten": (4, 3, 2, 2),
}


@pytest.mark.parametrize("words", VIEWS)
@pytest.mark.parametrize("rule", RULES)
def test_the_matrices_of_a_view_have_squares_of_their_own_and_the_turn_of_their_parameter(rule, words):
    def parts(x):
        stacks = View(words).matrices(torch.empty_like(param).copy_(x).detach())
        return [one.contiguous().clone() for stack in stacks for one in stack.reshape(-1, *stack.shape[-2:])]

    shape, cls = VIEWS[words], steprule.Optimizer.of(rule)
    settings = OFTEN | ({"max_precond_dim": 7} if "max_precond_dim" in rule.hyperparameters else {})
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    param = random(shape, 0).to(memory_format=layout)
    own = parts(param)
    optimizer = cls([{"params": [param], "view": words}], **settings)
    others = [cls([one], **settings) for one in own]
    for step in range(1, 6):
        param.grad = random(shape, step).to(memory_format=layout)
        for one, grad, other in zip(own, parts(param.grad), others, strict=True):
            one.grad = grad
            other.step()
        optimizer.step()
    for one, its in zip(parts(param), own, strict=True):
        torch.testing.assert_close(one, its, rtol=0, atol=1e-12)
    for name in rule.side_states:
        kept = torch.cat([other.state[one][name].flatten() for one, other in zip(own, others, strict=True)])
        assert optimizer.state[param][name].numel() == kept.numel()


@pytest.mark.parametrize("rule", RULES)
def test_a_small_workspace_holds_squares_too(rule, monkeypatch):
    shapes = [(40, 40), (9, 70), (40, 40), (2, 3), (9, 70), (70, 9), (48, 48)]

    def run(most):
        monkeypatch.setenv("STEPRULE_WORKSPACE", str(most))
        params = [random(shape, number) for number, shape in enumerate(shapes)]
        optimizer = steprule.Optimizer.of(rule)(params, **OFTEN)
        for step in range(5):
            for place, param in enumerate(params):
                param.grad = random(param.shape, 100 * step + place) if (step, place) != (3, 1) else None
            optimizer.step()
        buckets = [one for one, _ in optimizer._core.plans.current._buckets]
        stacks = [x.untyped_storage() for one in buckets for x in one.rooms._stacks.values()]
        own = program_of(rule, rule.hyperparameters).matrices.values()
        size = 8 * 48 * 48 * sum(not one.place for one in own)
        return params, len(buckets), {x.data_ptr(): x.nbytes() for x in stacks}, size

    (whole, one, _, _), (cut, many, memory, size) = run(10**9), run(2 * 30_000)
    assert one == 1 < many and [*memory.values()] == [size]
    for x, y in zip(cut, whole, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def test_products_need_no_states():
    class Cubed(steprule.Rule):
        def update(param, grad, *, lr=0.1):
            return param - lr * (gram(grad) @ grad)

    params = [random((5, 7), 0), random((5, 7), 1), random((4, 3, 2, 2), 2).to(memory_format=torch.channels_last)]
    wanted = []
    for place, param in enumerate(params):
        param.grad = torch.empty_like(param).copy_(random(param.shape, 10 + place))
        flat = param.grad.reshape(len(param), -1)
        wanted.append(param - 0.1 * (flat @ flat.T @ flat).reshape(param.shape))
    steprule.Optimizer.of(Cubed)(params).step()
    params.append(random((3, 4, 2), 3))
    params[-1].grad = random((3, 4, 2), 13)
    wanted.append(params[-1] - 0.1 * (params[-1].grad @ params[-1].grad.mT @ params[-1].grad))
    steprule.Optimizer.of(type("Stacked", (Cubed,), {"stacks": True}))(params[-1:]).step()
    for param, one in zip(params, wanted, strict=True):
        torch.testing.assert_close(param, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_columns_of_a_convolution_are_counted_as_in_its_shape(rule):
    one, other = random((4, 3, 2, 2), 0), random((4, 3, 2, 2), 0).to(memory_format=torch.channels_last)
    optimizers = [steprule.Optimizer.of(rule)([param], **OFTEN) for param in (one, other)]
    for step in range(1, 5):
        for param, optimizer in zip((one, other), optimizers, strict=True):
            param.grad = torch.empty_like(param).copy_(random(param.shape, step))
            optimizer.step()
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    states = [optimizer.state[param] for optimizer, param in zip(optimizers, (one, other), strict=True)]
    for name in rule.side_states:
        torch.testing.assert_close(*(state[name].abs() for state in states), rtol=0, atol=1e-9)
