"""What step() must do. The number in a test's name is the item of the drop-in list."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from dropin import (
    ADAGRAD,
    CLASSES,
    CONFIGS,
    EVERY,
    FLOAT32,
    FULL,
    LARGE,
    NAMES,
    NO_GRAD_DTYPE,
    PLAIN,
    SMALL,
    SOME,
    Config,
    Pair,
    all_params,
    assert_unchanged,
    fill,
    leaves,
    mine,
    plausible,
    random,
    run,
    same_tensor,
    since,
    snapshot,
    torchs,
    within,
)  # fmt: skip
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import steprule

SIZES = pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
SPARSE = [config for config in CONFIGS if CLASSES[config.name].sparse_grads]
FUSED = [config for config in FULL if "fused" in torchs(config.name)([torch.zeros(1)]).defaults]


# The numbers


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        pytest.param(config, dtype, id=f"{dtype}-{config}")
        for dtype in (torch.float64, torch.float32)
        for config in (*CONFIGS, *PLAIN)
        if dtype is torch.float64 or config.name in EVERY or config in FULL
    ],
)
def test_31_every_configuration_has_torchs_numbers(config, dtype):
    Pair(config, lambda: leaves(dtype=dtype)).step(6)


@pytest.mark.parametrize("config", SOME, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_31_large_models_have_torchs_numbers(config, dtype):
    Pair(config, lambda: leaves(LARGE, dtype)).step(3)


def error(optimizer: torch.optim.Optimizer, exact: torch.optim.Optimizer) -> dict[str, float]:
    """How far parameters and states are from the exact ones, as roots of mean squares."""
    found = {}
    for p, q in zip(all_params(optimizer), all_params(exact), strict=True):
        pairs = {"param": (p, q), **{key: (optimizer.state[p][key], value) for key, value in exact.state[q].items()}}
        for key, (a, b) in pairs.items():
            if key not in ("step", *CLASSES[type(exact).__name__].scalar_states):  # which are float32 everywhere
                found[key] = float((a.detach().double() - b.detach().double()).square().mean().sqrt())
    return found


@pytest.mark.parametrize(
    ("dtype", "config"),
    [
        *((torch.bfloat16, c) for c in CONFIGS if c.name in EVERY or c in FULL),
        *((torch.float16, c) for c in FULL if c.name in EVERY),
    ],
    ids=str,
)
def test_31_16_bit_numbers_are_at_most_twice_as_far_from_the_truth_as_torchs(config, dtype):
    optimizers = [
        cls([random((2000,), 0).to(dtype).to(kept)], **config.options)
        for cls, kept in (
            (mine(config.name), dtype),
            (torchs(config.name), dtype),
            (torchs(config.name), torch.float64),
        )
    ]
    for seed in range(6):
        for optimizer in optimizers:
            for p in all_params(optimizer):
                p.grad = random(p.shape, 10 + seed).to(dtype).to(p.dtype)
            optimizer.step()
    ours, its = error(optimizers[0], optimizers[2]), error(optimizers[1], optimizers[2])
    for key in its:
        assert ours[key] <= 2 * its[key], (key, ours, its)
    assert all_params(optimizers[0])[0].dtype == dtype


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_24_maximize_is_minimizing_the_negated_gradient(config):
    """Negated before decay is added."""
    maximizing = mine(config.name)(leaves(), **{**config.options, "maximize": True})
    minimizing = mine(config.name)(leaves(), **{**config.options, "maximize": False})
    for seed in range(4):
        fill(maximizing, seed)
        for p, q in zip(all_params(maximizing), all_params(minimizing), strict=True):
            q.grad = -p.grad
        maximizing.step(), minimizing.step()
    for p, q in zip(all_params(maximizing), all_params(minimizing), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-14)  # sums may be fused differently


# Closures and grad modes


@pytest.mark.parametrize("config", PLAIN, ids=str)
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("warm", [0, 2])
def test_17_a_closure_runs_once_with_grad_and_its_value_is_returned(config, mode, warm):
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(warm))
    calls, value = [], object()

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        sum(p.square().sum() for p in all_params(optimizer)).backward()
        return value

    before = snapshot(optimizer)
    with torch.set_grad_enabled(mode):
        assert optimizer.step(closure) is value
        assert optimizer.step(closure=closure) is value
        assert torch.is_grad_enabled() is mode
        assert optimizer.step() is None
        assert torch.is_grad_enabled() is mode
    assert calls == [True, True]
    assert not torch.equal(before[0], all_params(optimizer)[0])


@pytest.mark.parametrize("config", PLAIN, ids=str)
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("hooked", [True, False])
def test_17_a_closure_that_raises_leaves_everything_as_it_was(config, mode, hooked):
    optimizer = mine(config.name)(leaves(), **config.options)
    if hooked:
        optimizer.register_step_pre_hook(lambda *_: None)
    run(optimizer, range(2))
    fill(optimizer, 5)
    before = snapshot(optimizer)

    def closure():
        raise ZeroDivisionError

    with torch.set_grad_enabled(mode):
        with pytest.raises(ZeroDivisionError):
            optimizer.step(closure)
        assert torch.is_grad_enabled() is mode
    assert_unchanged(before, optimizer)


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_17_steps_in_every_grad_mode(config, mode):
    pair = Pair(config)
    pair.step(2)
    pair.set_grads()
    with mode():
        pair.mine.step(), pair.its.step()
    pair.check()
    pair.step(2)
    assert all(not value.requires_grad for state in pair.mine.state.values() for value in state.values())


@pytest.mark.parametrize("config", FULL, ids=str)
def test_17_a_model_learns_by_closure_as_with_torch(config):
    losses = []
    for cls in (mine(config.name), torchs(config.name)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
        x, y = random((32, 4), 1), random((32, 1), 2)
        optimizer = cls(model.parameters(), **{**config.options, "maximize": False, "lr": 0.01})

        def closure(model=model, optimizer=optimizer, x=x, y=y):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        losses.append([float(optimizer.step(closure)) for _ in range(20)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0]


# Gradients that are not there


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("warm", [0, 3])
def test_18_without_gradients_a_step_does_nothing(config, warm):
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(warm))
    before = snapshot(optimizer)
    versions = [p._version for p in all_params(optimizer)]
    optimizer.zero_grad()
    for _ in range(3):
        optimizer.step()
    assert_unchanged(before, optimizer)
    assert versions == [p._version for p in all_params(optimizer)]


@pytest.mark.parametrize("config", SOME, ids=str)
@SIZES
def test_18_a_parameter_whose_gradient_pauses_stays_where_it_is(config, shapes):
    pair = Pair(config, lambda: leaves(shapes))
    pair.step(3)
    still = pair.my_params[0].detach().clone()
    state = {k: v.clone() for k, v in pair.mine.state[pair.my_params[0]].items()}
    pair.step(3, active=[1, 2])
    assert torch.equal(still, pair.my_params[0])
    assert all(torch.equal(value, pair.mine.state[pair.my_params[0]][key]) for key, value in state.items())
    pair.step(2)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_18_layers_are_frozen_and_unfrozen(config):
    """By requires_grad and a real backward; a frozen layer's gradient is cleared, then comes back."""
    models, optimizers = [], []
    for cls in (mine(config.name), torchs(config.name)):
        torch.manual_seed(0)
        models.append(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double())
        optimizers.append(cls(models[-1].parameters(), **config.options))
    for i, frozen in enumerate([(), (0,), (0,), (), (2,), ()]):
        for model, optimizer in zip(models, optimizers, strict=True):
            for layer in (0, 2):
                model[layer].requires_grad_(layer not in frozen)
            optimizer.zero_grad()
            model(random((5, 3), i)).square().mean().backward()
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        same_tensor(p.detach(), q.detach(), "after freezing", *within(config))


@pytest.mark.parametrize("name", NAMES)
@SIZES
def test_19_zero_gradients_without_decay_move_nothing(name, shapes):
    for config in (c for c in CONFIGS if c.name == name and not c.options.get("weight_decay")):
        options = {**config.options, "lambd": 0.0} if name == "ASGD" else config.options  # lambd is a decay too
        optimizer = mine(name)(leaves(shapes), **options)
        before = [p.detach().clone() for p in all_params(optimizer)]
        for _ in range(3):
            for p in all_params(optimizer):
                p.grad = torch.zeros_like(p)
            optimizer.step()
        assert all(map(torch.equal, before, all_params(optimizer)))


@pytest.mark.parametrize("config", FULL, ids=str)
def test_19_plain_tensors_without_requires_grad_are_stepped(config):
    pair = Pair(config, lambda: [p.detach() for p in leaves()])
    pair.step(3)
    assert not any(p.requires_grad for p in pair.my_params)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@SIZES
def test_20_21_gradients_are_not_written_to_and_parameters_stay_themselves(config, shapes):
    if shapes is LARGE and config not in FULL:
        shapes = [(2,)]  # one large model is enough for each optimizer
    optimizer = mine(config.name)(leaves(shapes), **config.options)
    for seed in range(3):
        fill(optimizer, seed)
        params = all_params(optimizer)
        grads = [p.grad for p in params]
        copies = [grad.clone() for grad in grads]
        before = [(id(p), p.data_ptr(), p.stride(), p.is_leaf, p.requires_grad, p.dtype, p.shape) for p in params]
        versions, grad_versions = [p._version for p in params], [grad._version for grad in grads]
        optimizer.step()
        params = all_params(optimizer)
        assert before == [
            (id(p), p.data_ptr(), p.stride(), p.is_leaf, p.requires_grad, p.dtype, p.shape) for p in params
        ]
        assert all(p._version > old for p, old in zip(params, versions, strict=True))
        assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))
        assert grad_versions == [grad._version for grad in grads]
        assert all(map(torch.equal, grads, copies))


@pytest.mark.parametrize("config", FULL, ids=str)
@SIZES
@pytest.mark.parametrize("warm", [0, 2])
def test_21_autograd_notices_that_a_saved_parameter_has_changed(config, shapes, warm):
    optimizer = mine(config.name)(leaves(shapes), **config.options)
    run(optimizer, range(warm))
    for p in all_params(optimizer):
        fill(optimizer, 5)
        loss = p.square().sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# Layouts


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)


def spread(tensor: Tensor) -> Tensor:
    """The same numbers, two elements apart."""
    wide = torch.full((*tensor.shape, 2), 7.0, dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


def shifted(tensor: Tensor) -> Tensor:
    """The same numbers, beginning in the middle of a storage, at an odd place."""
    longer = torch.full((tensor.numel() + 3,), 7.0, dtype=tensor.dtype)
    view = longer[1 : 1 + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    return view


LAYOUTS = {
    "plain": lambda x: x,
    "channels_last": channels_last,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "permuted": lambda x: x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    "strided": spread,
    "shifted": shifted,
}


@pytest.mark.parametrize("config", SOME, ids=str)
@pytest.mark.parametrize("param_layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", [*LAYOUTS, "expanded", "like the parameter"])
def test_22_every_layout_of_parameter_and_gradient(config, param_layout, grad_layout):
    pair = Pair(config, lambda: [LAYOUTS[param_layout](random((2, 3, 4, 5), 0)).requires_grad_()])
    for seed in range(3):
        for (p,) in (pair.my_params, pair.its_params):
            if grad_layout == "like the parameter":
                p.grad = torch.empty_like(p, requires_grad=False).copy_(random(p.shape, seed))
            elif grad_layout == "expanded":
                p.grad = random((2, 1, 4, 1), seed).expand(2, 3, 4, 5)
            else:
                p.grad = LAYOUTS[grad_layout](random(p.shape, seed))
        pair.mine.step(), pair.its.step()
        pair.check(strides=False)  # torch's momentum has the gradient's
        for (p,) in (pair.my_params, pair.its_params):
            assert p.stride() == LAYOUTS[param_layout](torch.zeros(2, 3, 4, 5)).stride()


@pytest.mark.parametrize("config", SOME, ids=str)
@pytest.mark.parametrize("layout", ["transposed", "strided", "shifted"])
@pytest.mark.parametrize("grad_layout", ["plain", "transposed", "strided"])
def test_22_layouts_of_large_parameters(config, layout, grad_layout):
    pair = Pair(config, lambda: [LAYOUTS[layout](random((270, 260), 0)).requires_grad_()])
    for seed in range(2):
        for (p,) in (pair.my_params, pair.its_params):
            p.grad = LAYOUTS[grad_layout](random(p.shape, seed))
        pair.mine.step(), pair.its.step()
        pair.check(strides=False)


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 5), (5, 1), (0,), (3, 0, 2), (1, 3, 1, 3)], ids=str)
def test_22_odd_shapes(config, shape):
    Pair(config, lambda: leaves([shape])).step(3)
    Pair(config, lambda: leaves([(4,), shape, (2, 3)])).step(3)


@pytest.mark.parametrize("config", SOME, ids=str)
@pytest.mark.parametrize("layout", ["strided", "shifted"])
@pytest.mark.parametrize("shape", [(3, 4), (270, 260)], ids=str)
def test_22_the_bytes_around_a_parameter_are_not_touched(config, layout, shape):
    param = LAYOUTS[layout](random(shape, 0))
    around = param._base
    assert around is not None
    optimizer = mine(config.name)([param.detach().requires_grad_()], **config.options)
    run(optimizer, range(3))
    if layout == "strided":
        assert bool((around[..., 1] == 7.0).all())
    else:
        assert bool((around[:1] == 7.0).all()) and bool((around[-2:] == 7.0).all())


@pytest.mark.parametrize("config", FULL, ids=str)
def test_22_a_conv_net_in_channels_last(config):
    results = []
    for cls in (mine(config.name), torchs(config.name)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 3))
        model = model.double().to(memory_format=torch.channels_last)
        optimizer = cls(model.parameters(), **config.options)
        for seed in range(3):
            optimizer.zero_grad()
            model(channels_last(random((2, 2, 8, 8), seed))).square().mean().backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    for p, q in zip(*results, strict=True):
        same_tensor(p, q, "convolution", *within(config))


# Gradients and parameters that change between steps


def grads_kept_and_filled(optimizer, seed):
    for i, p in enumerate(all_params(optimizer)):
        p.grad.copy_(random(p.shape, seed * 10 + i))


def grads_at_new_addresses(optimizer, seed, held=[]):  # noqa: B006
    for i, p in enumerate(all_params(optimizer)):
        held.append(p.grad)
        p.grad = random(p.shape, seed * 10 + i)


def grads_data_set(optimizer, seed):
    for i, p in enumerate(all_params(optimizer)):
        p.grad.data = random(p.shape, seed * 10 + i)


def grads_exchanged(optimizer, seed):
    first, second = all_params(optimizer)[:2]
    first.grad, second.grad = second.grad, first.grad


def one_gradient_for_two(optimizer, seed):
    first, second = all_params(optimizer)[:2]
    first.grad = second.grad


def grads_transposed(optimizer, seed):
    for p in all_params(optimizer)[:2]:
        p.grad = p.grad.t()


def grads_data_transposed(optimizer, seed):
    for p in all_params(optimizer)[:2]:
        p.grad.data = p.grad.data.t()


def grads_expanded(optimizer, seed):
    for i, p in enumerate(all_params(optimizer)[:2]):
        p.grad = random((p.shape[0], 1), seed * 10 + i).expand(p.shape)


def grads_with_a_graph(optimizer, seed):
    for p in all_params(optimizer):
        p.grad = p.grad.requires_grad_() * 2


def grads_negated_lazily(optimizer, seed):
    for i, p in enumerate(all_params(optimizer)):
        p.grad = torch.complex(random(p.shape, seed + i), random(p.shape, seed * 10 + i)).conj().imag


def gradient_is_the_parameter(optimizer, seed):
    for p in all_params(optimizer):
        p.grad = p.data


def gradients_overlap(optimizer, seed):
    size = all_params(optimizer)[0].shape[0]
    both = random((size + 1, size), seed)
    for i, p in enumerate(all_params(optimizer)[:2]):
        p.grad = both[i : i + size]


def params_data_cloned(optimizer, seed):
    for p in all_params(optimizer):
        p.data = p.data.clone()


def params_data_set(optimizer, seed):
    for i, p in enumerate(all_params(optimizer)):
        p.data = random(p.shape, seed * 10 + i)


def params_data_transposed_before_a_backward_pass(optimizer, seed):
    """The same memory read in another order; the new gradients, laid out alike, tell."""
    for i, p in enumerate(all_params(optimizer)[:2]):
        p.data = p.data.t()
        p.grad = None
        (p * random(p.shape, seed * 10 + i)).sum().backward()
        assert p.grad.stride() == p.stride()


def params_data_strided(optimizer, seed):
    for p in all_params(optimizer)[:2]:
        p.data = spread(p.data)


def params_data_shifted(optimizer, seed):
    for p in all_params(optimizer):
        p.data = shifted(p.data)


def params_data_exchanged(optimizer, seed):
    first, second = all_params(optimizer)[:2]
    first.data, second.data = second.data, first.data


def params_changed_in_place(optimizer, seed):
    with torch.no_grad():
        for p in all_params(optimizer):
            p.mul_(0.5)


def params_frozen_with_gradients_left(optimizer, seed):
    for p in all_params(optimizer):
        p.requires_grad_(False)


def a_parameter_replaced(optimizer, seed):
    params = optimizer.param_groups[0]["params"]
    new = random(params[0].shape, seed).requires_grad_()
    new.grad = params[0].grad
    if params[0] in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(params[0])
    params[0] = new


def a_parameter_replaced_by_a_fresh_one(optimizer, seed):
    params = optimizer.param_groups[0]["params"]
    params[1] = random(params[1].shape, seed).requires_grad_()
    params[1].grad = random(params[1].shape, seed + 1)


def a_parameter_of_another_shape(optimizer, seed):
    p = all_params(optimizer)[0]
    optimizer.state.pop(p, None)
    p.grad = None
    p.data = random((3, 5), seed)
    p.grad = random((3, 5), seed + 1)


CHANGES = [
    grads_kept_and_filled, grads_at_new_addresses, grads_data_set, grads_exchanged, one_gradient_for_two,
    grads_transposed, grads_data_transposed, grads_expanded, grads_with_a_graph, grads_negated_lazily,
    gradient_is_the_parameter, gradients_overlap, params_data_cloned, params_data_set,
    params_data_transposed_before_a_backward_pass,
    params_data_strided, params_data_shifted, params_data_exchanged, params_changed_in_place,
    params_frozen_with_gradients_left, a_parameter_replaced, a_parameter_replaced_by_a_fresh_one,
    a_parameter_of_another_shape,
]  # fmt: skip


def assert_close(config: Config, pair: Pair) -> None:
    rtol, atol = within(config)
    torch.testing.assert_close(pair.my_params, pair.its_params, rtol=rtol or 1e-9, atol=atol or 1e-12)


@pytest.mark.parametrize("config", SOME, ids=str)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("shapes", [((6, 6), (6, 6), (3,)), ((200, 200), (200, 200), (3,))], ids=["small", "large"])
def test_18_21_22_gradients_and_parameters_changed_by_the_user_between_steps(config, change, shapes):
    if config.name == "Adagrad" and change in (a_parameter_replaced_by_a_fresh_one, a_parameter_of_another_shape):
        since("2.12", ADAGRAD)
    pair = Pair(config, lambda: leaves(shapes))
    pair.step(2)
    for seed in (1, 2):
        for optimizer, params in pair.sides:
            change(optimizer, seed)
            params[:] = all_params(optimizer)
            optimizer.step()
        assert_close(config, pair)
    for optimizer, _ in pair.sides:
        optimizer.zero_grad()
        fill(optimizer, 3)
        optimizer.step()
    assert_close(config, pair)


def shape_changed(p: Tensor) -> None:
    p.data = torch.ones(7, dtype=p.dtype)


def shape_changed_over_the_same_memory(p: Tensor) -> None:
    p.data = p.data.view(3, 2)


def shortened_over_the_same_memory(p: Tensor) -> None:
    p.data = p.data[:1]


def dtype_changed(p: Tensor) -> None:
    p.data = p.data.float()


def gradient_of_another_dtype(p: Tensor) -> None:
    since("2.10", NO_GRAD_DTYPE)
    p.grad = None
    p.grad_dtype = torch.float32
    p.grad = torch.ones(p.shape)


MISFITS = [
    shape_changed, shape_changed_over_the_same_memory, shortened_over_the_same_memory, dtype_changed,
    gradient_of_another_dtype,
]  # fmt: skip
# What no address tells is seen when the tensors are looked at anew, but not between two steps with one gradient.
NOT_NOTICED_LATER = [shape_changed_over_the_same_memory, shortened_over_the_same_memory]


@pytest.mark.parametrize("config", SOME, ids=str)
@pytest.mark.parametrize(
    ("misfit", "warm"),
    [(misfit, warm) for misfit in MISFITS for warm in (0, 2) if not (warm and misfit in NOT_NOTICED_LATER)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_22_a_gradient_that_does_not_fit_is_refused_by_name_and_nothing_changes(config, misfit, warm, named):
    params = leaves([(4,), (2, 3)])
    memory = params[1].data
    optimizer = mine(config.name)(
        [("first", params[0]), ("layer.weight", params[1])] if named else params, **config.options
    )
    run(optimizer, range(warm))
    fill(optimizer, 5)
    misfit(params[1])
    before, around = snapshot(optimizer), memory.clone()
    with pytest.raises(RuntimeError, match=r"layer\.weight" if named else "parameter 1 of group 0"):
        optimizer.step()
    assert_unchanged(before, optimizer)
    assert torch.equal(memory, around)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_22_a_tensor_of_a_subclass(config):
    class Marked(Tensor):
        pass

    pair = Pair(config, lambda: [p.detach().as_subclass(Marked).requires_grad_() for p in leaves()])
    pair.step(3)
    assert all(type(p) is Marked for p in pair.my_params)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_22_tied_weights_are_stepped_once(config):
    results = []
    for cls in (mine(config.name), torchs(config.name)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).double()
        model[1].weight = model[0].weight
        optimizer = cls(model.parameters(), **config.options)
        for seed in range(3):
            optimizer.zero_grad()
            model(random((5, 3), seed)).square().mean().backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    for p, q in zip(*results, strict=True):
        same_tensor(p, q, "tied", *within(config))


# Complex numbers


def complex_leaves() -> list[Tensor]:
    first, second, third = leaves([(4, 3), (5,), ()])
    return [
        torch.complex(first.detach(), random((4, 3), 9)).requires_grad_(),
        second,
        torch.complex(third.detach(), random((), 8)).requires_grad_(),
    ]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_23_complex_parameters_among_real_ones(config):
    pair = Pair(config, complex_leaves)
    pair.step(4)
    for p in pair.my_params:
        for key, value in pair.mine.state.get(p, {}).items():
            assert key in ("step", *CLASSES[config.name].scalar_states) or value.dtype == p.dtype


@pytest.mark.parametrize("config", FULL, ids=str)
def test_23_complex_parameters_equal_the_run_on_their_parts(config):
    params = complex_leaves()
    real_params = [parts(p.detach()).clone().requires_grad_() for p in params]
    optimizer = mine(config.name)(params, **config.options)
    real = mine(config.name)(real_params, **config.options)
    for seed in range(3):
        for i, (p, q) in enumerate(zip(params, real_params, strict=True)):
            q.grad = random(q.shape, seed * 10 + i)
            p.grad = torch.view_as_complex(q.grad) if p.is_complex() else q.grad
        optimizer.step(), real.step()
    for p, q in zip(params, real_params, strict=True):
        torch.testing.assert_close(
            parts(p.detach()), q.detach(), rtol=1e-13 if config.name != "NAdam" else FLOAT32, atol=0
        )


@pytest.mark.parametrize("config", FULL, ids=str)
def test_23_gradients_that_are_conjugated_lazily(config):
    """torch takes such a gradient in some configurations only, so there it is given the numbers."""
    pair = Pair(config, complex_leaves)
    for _ in range(3):
        pair.set_grads()
        for p, q in zip(pair.my_params, pair.its_params, strict=True):
            if p.is_complex():
                p.grad = p.grad.conj()
                q.grad = q.grad.conj().resolve_conj()
        pair.mine.step(), pair.its.step()
        pair.check()


# Sparse gradients


def coalesced(shape, seed):
    dense = random(shape, seed)
    dense[::2] = 0
    return dense.to_sparse(1).coalesce()


def uncoalesced(shape, seed):
    rows = torch.tensor([[1, 3, 1, 0, 3, 3]])
    return torch.sparse_coo_tensor(rows, random((6, *shape[1:]), seed), shape)


def sparse_in_all_dimensions(shape, seed):
    dense = random(shape, seed)
    dense[::2] = 0
    return dense.to_sparse()


def empty(shape, seed):
    return torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, *shape[1:], dtype=torch.float64), shape
    )


def uncoalesced_with_nothing(shape, seed):
    rows = torch.tensor([[1, 1]])
    return torch.sparse_coo_tensor(rows, torch.zeros(2, *shape[1:], dtype=torch.float64), shape)


KINDS = [coalesced, uncoalesced, sparse_in_all_dimensions, empty, uncoalesced_with_nothing]


def as_dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


@pytest.mark.parametrize("config", SPARSE, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", [(6, 3), (6,)], ids=str)
def test_25_sparse_gradients(config, kind, shape):
    """As the run with the same gradients dense; beside a parameter whose gradients are."""
    with_sparse, with_dense = (
        mine(config.name)(leaves([shape, (2, 3)]), **config.options),
        torchs(config.name)(leaves([shape, (2, 3)]), **config.options),
    )
    for seed in range(4):
        for optimizer in (with_sparse, with_dense):
            fill(optimizer, seed)
            grad = kind(shape, seed)
            first = all_params(optimizer)[0]
            first.grad = grad if optimizer is with_sparse else grad.to_dense()
            version = first._version
            optimizer.step()
            assert first._version > version
        if kind is coalesced:
            assert all_params(with_sparse)[0].grad.is_sparse
    for p, q in zip(all_params(with_sparse), all_params(with_dense), strict=True):
        same_tensor(p.detach(), q.detach(), "sparse")
        for key, value in with_dense.state.get(q, {}).items():
            torch.testing.assert_close(as_dense(with_sparse.state[p][key]), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("config", [c for c in SPARSE if not c.options.get("weight_decay")], ids=str)
@pytest.mark.parametrize("kind", KINDS[:4], ids=lambda kind: kind.__name__)
def test_25_sparse_gradients_as_torch_takes_them(config, kind):
    """Without decay, which torch cannot add to them."""
    pair = Pair(config, lambda: leaves([(6, 3)]))
    for seed in range(3):
        for optimizer, (p,) in pair.sides:
            p.grad = kind((6, 3), seed)
            optimizer.step()
    same_tensor(pair.my_params[0].detach(), pair.its_params[0].detach(), "sparse")


@pytest.mark.parametrize("config", [c for c in SPARSE if not c.options.get("weight_decay")], ids=str)
@pytest.mark.parametrize("kind", KINDS[:4], ids=lambda kind: kind.__name__)
def test_14_25_a_checkpoint_from_torchs_run_with_sparse_gradients(config, kind):
    """There the momentum is sparse too."""
    pair = Pair(config, lambda: leaves([(6, 3)]))
    (p,), (q,) = pair.my_params, pair.its_params
    for seed in range(4):
        if seed == 2:
            p.data.copy_(q.data)
            pair.mine.load_state_dict(pair.its.state_dict())
        for optimizer, (param,) in pair.sides:
            param.grad = kind((6, 3), seed)
            if seed >= 2 or optimizer is pair.its:
                optimizer.step()
    same_tensor(p.detach(), q.detach(), "sparse")


@pytest.mark.parametrize("config", [c for c in SPARSE if c.options.get("momentum")], ids=str)
def test_25_dense_and_sparse_gradients_in_turn(config):
    optimizers = [cls(leaves([(6, 3)]), **config.options) for cls in (mine(config.name), torchs(config.name))]
    for seed, kind in enumerate([uncoalesced, random, coalesced, random, uncoalesced]):
        for optimizer in optimizers:
            grad = kind((6, 3), seed)
            (p,) = all_params(optimizer)
            p.grad = None
            p.grad = grad if optimizer is optimizers[0] else as_dense(grad)
            optimizer.step()
    same_tensor(*(all_params(optimizer)[0].detach() for optimizer in optimizers), "in turn")


@pytest.mark.parametrize("config", [c for c in PLAIN if CLASSES[c.name].sparse_grads], ids=str)
def test_25_a_sparse_embedding(config):
    results = []
    for cls in (mine(config.name), torchs(config.name)):
        torch.manual_seed(0)
        model = torch.nn.Embedding(20, 4, sparse=True, dtype=torch.float64)
        optimizer = cls(model.parameters(), **config.options)
        for index in ([1, 2, 2], [3], [1, 1, 1, 7]):
            optimizer.zero_grad()
            model(torch.tensor(index)).square().sum().backward()
            optimizer.step()
        results.append(model.weight.detach())
    same_tensor(*results, "embedding")


@pytest.mark.parametrize("name", [name for name in NAMES if not CLASSES[name].sparse_grads])
@pytest.mark.parametrize("warm", [0, 2])
def test_25_the_others_refuse_sparse_gradients_and_change_nothing(name, warm):
    optimizer = mine(name)(leaves([(2, 3), (6, 3)]), lr=0.1)
    run(optimizer, range(warm))
    fill(optimizer, 3)
    last = all_params(optimizer)[1]
    last.grad = None
    last.grad = coalesced((6, 3), 1)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=f"^{name} does not support sparse gradients"):
        optimizer.step()
    assert_unchanged(before, optimizer)


# foreach and fused


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("flag", ["foreach", "fused"])
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@SIZES
def test_26_foreach_and_fused_change_no_number(config, flag, value, dtype, shapes):
    if shapes is LARGE and dtype != torch.float32:
        shapes = [(2,)]  # once is enough
    if flag not in torchs(config.name)([torch.zeros(1)]).defaults:
        flag = "maximize"
        value = config.options["maximize"]
    plain = mine(config.name)(leaves(shapes, dtype), **config.options)
    flagged = mine(config.name)(leaves(shapes, dtype), **{**config.options, flag: value})
    for optimizer in (plain, flagged):
        run(optimizer, range(3))
    for p, q in zip(all_params(plain), all_params(flagged), strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(plain.state[p][key], flagged.state[q][key]) for key in plain.state[p])
        assert {k: v.dtype for k, v in plain.state[p].items()} == {k: v.dtype for k, v in flagged.state[q].items()}


@pytest.mark.parametrize("config", FUSED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_26_torchs_own_fused_agrees(config, dtype):
    pair = Pair(config, lambda: leaves(dtype=dtype), fused=True)
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-5}.get(dtype, 2e-2)
    for _ in range(3):
        pair.set_grads()
        pair.mine.step(), pair.its.step()
        pair.check(tolerance, tolerance)


@pytest.mark.parametrize("name", [config.name for config in FUSED])
def test_26_fused_on_meta_is_refused_then_works(name):
    if name == "Adagrad":
        since("2.12", "Adagrad's fused is for the CPU alone, as its error says")
    texts = []
    for cls in (mine(name), torchs(name)):
        model = torch.nn.Linear(2, 2, device="meta")
        optimizer = cls(model.parameters(), lr=0.1, fused=True)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        with pytest.raises(
            RuntimeError, match="`fused=True` requires all the params to be floating point Tensors"
        ) as caught:
            optimizer.step()
        texts.append(str(caught.value))
        assert len(optimizer.state) == 0 or cls is torchs(name) or name == "Adagrad"  # whose states come first
        model.to_empty(device="cpu")
        optimizer = cls(model.parameters(), lr=0.1, fused=True)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1.0)
        run(optimizer, range(2))
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", [config.name for config in FUSED])
def test_26_fused_refuses_complex_parameters(name):
    optimizer = mine(name)([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], fused=True)
    all_params(optimizer)[0].grad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating point Tensors"):
        optimizer.step()


# Hooks


@pytest.fixture
def log():
    """A list that global hooks write to, with the hooks removed afterwards."""
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    yield calls
    for handle in handles:
        handle.remove()


ALL_HOOKS = ["global pre", "pre", "step", "post", "global post"]


def hooked(optimizer: torch.optim.Optimizer, log: list[str]) -> torch.optim.Optimizer:
    optimizer.register_step_pre_hook(lambda *_: log.append("pre"))
    optimizer.register_step_post_hook(lambda *_: log.append("post"))
    return optimizer


def logged_step(optimizer: torch.optim.Optimizer, log: list[str]) -> list[str]:
    log.clear()
    optimizer.step(lambda: log.append("step"))
    return list(log)


@pytest.mark.parametrize("name", NAMES)
def test_27_hooks_run_in_torchs_order(name, log):
    for cls in (mine(name), torchs(name)):
        assert logged_step(hooked(cls(leaves(), lr=0.1), log), log) == ALL_HOOKS


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_27_hooks_are_removable_and_may_come_late(config):
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(2))
    calls: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
    ]
    run(optimizer, [2])
    assert calls == ["pre", "post"]
    handles[0].remove()
    run(optimizer, [3])
    assert calls == ["pre", "post", "post"]
    handles[1].remove()
    run(optimizer, [4])
    assert calls == ["pre", "post", "post"]


@pytest.mark.parametrize("name", NAMES)
def test_27_hooks_run_once_in_a_subclass(name, log):
    """Also where the parent was instantiated before: torch then runs them twice."""
    mine(name)(leaves())

    class Own(mine(name)):
        def step(self, closure=None):
            return super().step(closure)

    for _ in range(2):
        assert logged_step(hooked(Own(leaves(), lr=0.1), log), log) == ALL_HOOKS
        assert logged_step(hooked(mine(name)(leaves(), lr=0.1), log), log) == ALL_HOOKS


@pytest.mark.parametrize("name", NAMES)
def test_27_hooks_run_once_in_a_subclass_of_a_subclass(name, log):
    class Own(mine(name)):
        def step(self, closure=None):
            return super().step(closure)

    class OwnOwn(Own):
        def step(self, closure=None):
            return super().step(closure)

    for cls in (Own, OwnOwn, Own):
        assert logged_step(hooked(cls(leaves(), lr=0.1), log), log) == ALL_HOOKS


@pytest.mark.parametrize("name", NAMES)
def test_27_hooks_run_once_in_a_subclass_that_keeps_step(name, log):
    class Own(mine(name)):
        pass

    assert logged_step(hooked(Own(leaves(), lr=0.1), log), log) == ALL_HOOKS


@pytest.mark.parametrize("name", NAMES)
def test_27_hooks_run_once_under_a_scheduler(name, log):
    """Which wraps the step of the instance."""
    optimizer = hooked(mine(name)(leaves(), lr=0.1), log)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert logged_step(optimizer, log) == ALL_HOOKS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", [(), (None,), "positional"], ids=["no closure", "None", "closure"])
def test_27_what_hooks_are_given(name, call):
    def closure():
        return 1.0

    arguments = (closure,) if call == "positional" else call
    seen = []
    for cls in (mine(name), torchs(name)):
        optimizer, given = cls(leaves(), lr=0.1), []
        optimizer.register_step_pre_hook(
            lambda o, args, kwargs, given=given: given.append((o is args[0], args[1:], kwargs))
        )
        optimizer.register_step_post_hook(
            lambda o, args, kwargs, given=given: given.append((o is args[0], args[1:], kwargs))
        )
        optimizer.step(*arguments)
        seen.append(given)
    if call == (None,):
        seen = [[(first, tuple(filter(None, args)), kwargs) for first, args, kwargs in given] for given in seen]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", NAMES)
def test_27_a_hook_sees_a_closure_that_was_given_by_keyword(name):
    def closure():
        return 1.0

    optimizer, seen = mine(name)(leaves(), lr=0.1), []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append((args[1:], dict(kwargs))))
    optimizer.step(closure=closure)
    assert seen == [((), {"closure": closure})]


@pytest.mark.parametrize("name", NAMES)
def test_27_a_pre_hook_may_replace_the_arguments(name):
    for cls in (mine(name), torchs(name)):
        optimizer, ran = cls(leaves(), lr=0.1), []
        optimizer.register_step_pre_hook(lambda o, args, kwargs, ran=ran: ((o, lambda: ran.append("new") or 7), {}))
        assert optimizer.step(lambda ran=ran: ran.append("old")) == 7
        assert optimizer.step() == 7
        assert ran == ["new", "new"]


@pytest.mark.parametrize("name", NAMES)
def test_27_a_pre_hook_that_returns_nonsense_is_refused(name):
    optimizer = mine(name)(leaves(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: 3)
    with pytest.raises(RuntimeError, match="must return None or a tuple of"):
        optimizer.step()


@pytest.mark.parametrize("config", FULL, ids=str)
def test_27_hooks_may_change_gradients_and_settings(config):
    pair = Pair(config)

    def before(optimizer, args, kwargs):
        optimizer.param_groups[0]["lr"] *= 0.5
        for p in all_params(optimizer):
            p.grad = p.grad * 2

    for optimizer, _ in pair.sides:
        optimizer.register_step_pre_hook(before)
    pair.step(3)


@pytest.mark.parametrize("name", NAMES)
def test_27_only_the_class_is_patched(name):
    optimizer = mine(name)(leaves(), lr=0.1)
    assert "step" not in vars(optimizer)
    run(optimizer, range(2))
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize("config", PLAIN, ids=str)
@pytest.mark.parametrize("warm", [0, 2])
def test_27_the_profiler_sees_each_step_by_its_name(config, warm):
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(warm))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(optimizer, range(3))
        optimizer.zero_grad()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts[f"Optimizer.step#{config.name}.step"] == 3
    assert counts[f"Optimizer.zero_grad#{config.name}.zero_grad"] == 1


def test_27_the_profiler_sees_a_subclass_once_by_its_own_name():
    class Own(mine(NAMES[0])):
        def step(self, closure=None):
            return super().step(closure)

    optimizer = Own(leaves(), lr=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(optimizer, range(2))
    counts = {e.key: e.count for e in profile.key_averages() if e.key.startswith("Optimizer.step")}
    assert counts == {"Optimizer.step#Own.step": 2}


# Derivatives of the step


@pytest.fixture
def double():
    """float64 as the default dtype, so that torch's bias corrections are exact where step is a tensor."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def state_keys(config: Config) -> list[str]:
    """Of the states that are no steps."""
    optimizer = torchs(config.name)([torch.zeros(1)], **config.options)
    fill(optimizer, 0)
    optimizer.step()
    return [key for state in optimizer.state.values() for key in state if key != "step"]


def parts(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def derivatives(cls, config: Config, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Of a number made of a parameter and its states after a step, by the old ones and the gradient."""
    shape = (2, 3)
    inputs = {"param": random(shape, 0, dtype), "grad": random(shape, 1, dtype)}
    keys = state_keys(config)
    numbers = {key: plausible((), 3) for key in keys if key in CLASSES[config.name].scalar_states}
    inputs.update({key: plausible(shape, 2).to(dtype) for key in keys if key not in numbers})
    if dtype.is_complex:
        inputs = {key: value + 0.5j * value.abs() for key, value in inputs.items()}
    if config.name == "ASGD":  # whose numbers torch.optim writes over before autograd has used them
        numbers["mu"] = torch.tensor(1.0)
    else:
        inputs.update(numbers)
    for value in inputs.values():
        value.requires_grad_()
    param = inputs["param"].clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a gradient of what is no leaf
        optimizer = cls([param], **config.options, differentiable=True)
        param.grad = inputs["grad"]
        state = optimizer.state[param]
        if CLASSES[config.name].keeps_step:
            state["step"] = torch.tensor(4.0)
        state.update({key: {**numbers, **inputs}[key].clone() for key in keys})
        optimizer.step()
    outputs = [param, *(state[key] for key in keys)]
    number = sum((parts(x) * (1.0 + i)).cos().sum() for i, x in enumerate(outputs))
    found = torch.autograd.grad(number, list(inputs.values()), allow_unused=True)
    return dict(zip(inputs, found, strict=True))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_28_derivatives_by_the_old_parameter_gradient_and_states(config, dtype, double):
    ours = derivatives(mine(config.name), config, dtype)
    its = derivatives(torchs(config.name), config, dtype)
    for key in its:
        assert ours[key] is not None and its[key] is not None, key
        same_tensor(ours[key], its[key], f"the derivative by {key}", 1e-9, 1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("hyper", [None, "lr", "weight_decay", "betas"])
def test_28_derivatives_of_two_steps_are_those_of_the_numbers(config, hyper, double):
    """From new states, where torch's SGD cuts off the first gradient; also by hyperparameters that are tensors.

    By an lr that a state begins at too, which is a number in torch: its ASGD has no derivative by lr.
    """
    if hyper is not None and (config not in FULL or hyper not in config.options):
        return

    def two_steps(param, first, second, *values):
        param = param.clone()
        changed = {hyper: values if hyper == "betas" else values[0]} if hyper else {}
        optimizer = mine(config.name)([param], **{**config.options, **changed}, differentiable=True)
        for grad in (first, second):
            param.grad = grad
            optimizer.step()
        return param, *(value for key, value in optimizer.state[param].items() if key != "step")

    values = {None: (), "lr": (0.25,), "weight_decay": (0.25,), "betas": (0.75, 0.875)}[hyper]
    inputs = [random((3,), seed) for seed in (1, 2, 3)] + [torch.tensor(value) for value in values]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.autograd.gradcheck(two_steps, [value.requires_grad_() for value in inputs])


THROUGH = [
    ("SGD", {}, "lr"), ("SGD", {}, "weight_decay"), ("SGD", {"maximize": True}, "lr weight_decay"),
    ("Adam", {}, "lr"), ("Adam", {}, "weight_decay"), ("Adam", {}, "lr betas"), ("Adam", {"maximize": True}, "betas"),
    ("AdamW", {}, "lr"), ("AdamW", {}, "weight_decay"), ("AdamW", {}, "lr betas"), ("AdamW", {}, "lr weight_decay"),
    ("NAdam", {}, ""), ("NAdam", {"decoupled_weight_decay": True}, "weight_decay"), ("RAdam", {}, "lr"),
    ("RAdam", {"decoupled_weight_decay": True}, "lr"), ("Adadelta", {}, ""), ("Adagrad", {"lr_decay": 0.3}, ""),
    ("RMSprop", {}, ""), ("ASGD", {"t0": 1.0, "lambd": 0.05}, ""),
]  # fmt: skip
"""Where torch.optim can be differentiated through several steps, by the parameter, all gradients and these tensors. Not
elsewhere: it writes over what autograd wants to see, or its functions take no tensors, or, in SGD's momentum, the first
gradient is cut off. Those are compared with differences below."""


@pytest.mark.parametrize(("name", "options", "hypers"), THROUGH, ids=str)
def test_28_derivatives_through_four_steps_are_torchs(name, options, hypers, double):
    if hypers and name in ("SGD", "Adam", "AdamW"):
        since("2.7", "no derivatives by hyperparameters that are tensors")
    results = []
    for cls in (mine(name), torchs(name)):
        first = random((3,), 1).requires_grad_()
        grads = [random((3,), seed).requires_grad_() for seed in range(2, 6)]
        tensors = {"lr": torch.tensor(0.1), "weight_decay": torch.tensor(0.3), "betas": torch.tensor([0.8, 0.9])}
        given = {key: tensors[key].requires_grad_() for key in hypers.split()}
        settings = {"lr": 0.1, "weight_decay": 0.2, **given, **options}
        settings.update({"betas": tuple(given["betas"])} if "betas" in given else {})
        param = first.clone()
        optimizer = cls([param], **settings, differentiable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a gradient of what is no leaf
            for grad in grads:
                param.grad = grad * 1.0
                optimizer.step()
        results.append([param, *torch.autograd.grad(param.square().sum(), [first, *grads, *given.values()])])
    for ours, its in zip(*results, strict=True):
        same_tensor(ours, its, "derivative", 1e-9, 1e-12)


@pytest.mark.parametrize(
    ("name", "options", "hyper", "values"),
    [("ASGD", {"t0": 1.0, "lambd": 0.05, "weight_decay": 0.2}, "lr", (0.1,)), ("ASGD", {}, "lambd", (0.05,)),
     ("Rprop", {}, "lr", (0.1,)), ("Rprop", {"lr": 0.1}, "etas", (0.5, 1.3)),
     ("Rprop", {"lr": 0.1}, "step_sizes", (0.08, 0.11)), ("Yogi", {}, "initial_accumulator_value", (0.3,))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_28_derivatives_through_four_steps_are_those_of_the_numbers(name, options, hyper, values, dtype, double):
    def four_steps(first, *rest):
        param, given = first.clone(), rest[4:]
        optimizer = mine(name)(
            [param], **options, **{hyper: given if len(given) > 1 else given[0]}, differentiable=True
        )
        for grad in rest[:4]:
            param.grad = grad
            optimizer.step()
        return parts(param)

    inputs = [random((3,), seed).to(dtype) * (1 + 0.5j if dtype.is_complex else 1) for seed in range(1, 6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = [torch.tensor(value) for value in values]
        assert torch.autograd.gradcheck(four_steps, [value.requires_grad_() for value in [*inputs, *numbers]])


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_28_differentiable_changes_no_number(config):
    pair = Pair(config, lambda: [p.detach() for p in leaves()])
    pair.mine = mine(config.name)(pair.my_params, **config.options, differentiable=True)
    for _ in range(3):
        pair.set_grads()
        pair.mine.step(), pair.its.step()
    for p, q in zip(pair.my_params, pair.its_params, strict=True):
        same_tensor(p, q, "differentiable", *within(config))


# GradScaler


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("overflow_at", [0, 2])
def test_29_grad_scaler_skips_a_step_with_inf(config, fused, overflow_at):
    flags = {"fused": True} if fused and config in FUSED else {}
    pairs = Pair(config, lambda: leaves(dtype=torch.float32), **flags)
    torch_plain = torchs(config.name)(leaves(dtype=torch.float32), **config.options)  # whose own fused is B3
    scales = []
    for optimizer in (pairs.mine, torch_plain):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        history = []
        for step in range(4):
            optimizer.zero_grad()
            factor = float("inf") if step == overflow_at else 1.0
            loss = sum((p * random(p.shape, step, torch.float32) * factor).sum() for p in all_params(optimizer))
            scaler.scale(loss).backward()
            before = snapshot(optimizer)
            scaler.step(optimizer)
            if step == overflow_at and optimizer is pairs.mine:
                assert_unchanged(before, optimizer)
            scaler.update()
            history.append(scaler.get_scale())
            assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
        scales.append(history)
    assert scales[0] == scales[1]
    assert scales[0][overflow_at] == 4.0
    for p, q in zip(all_params(pairs.mine), all_params(torch_plain), strict=True):
        same_tensor(p.detach(), q.detach(), "after an overflow")


# NaN, inf and dtypes together


@pytest.mark.parametrize("config", [*FULL, *PLAIN], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@SIZES
def test_30_nan_and_inf_gradients_spoil_what_they_spoil_in_torch(config, value, shapes):
    """One element of the first parameter; NaN and inf where torch has them, then and later, and everything else
    untouched by it. Later their mean squares may differ: infinite ones stay so here."""
    pair = Pair(config, lambda: leaves(shapes))
    pair.step(1)
    pair.set_grads()
    for p in (pair.my_params[0], pair.its_params[0]):
        p.grad.view(-1)[2] = value
    pair.mine.step(), pair.its.step()
    pair.check()
    for _ in range(4):
        pair.set_grads()
        pair.mine.step(), pair.its.step()
        for p, q in zip(pair.my_params, pair.its_params, strict=True):
            same_tensor(p.detach(), q.detach(), "the steps after", *within(config))


@pytest.mark.parametrize("name", ["Rprop", "ASGD"])
def test_31_a_complex_number_alone_with_a_tensor_lr(name):
    made = Pair(Config(name), lambda: [random((), 1).to(torch.complex128).requires_grad_()], lr=torch.tensor(0.1))
    made.step(3)


@pytest.mark.parametrize("config", [*FULL, *PLAIN], ids=str)
@pytest.mark.parametrize("value", [1e30, 1e200], ids=str)
def test_30_gradients_whose_squares_overflow_do_not_make_nan_later(config, value):
    """A finite gradient: torch's parameter stays finite, whatever its mean square."""
    dtype = torch.float32 if value == 1e30 else torch.float64
    pair = Pair(config, lambda: leaves(dtype=dtype))
    pair.step(1)
    pair.set_grads()
    for p in (pair.my_params[0], pair.its_params[0]):
        p.grad.view(-1)[2] = value
    pair.mine.step(), pair.its.step()
    pair.check()
    for _ in range(2):
        pair.set_grads()
        pair.mine.step(), pair.its.step()
        pair.check()


@pytest.mark.parametrize("config", FULL, ids=str)
def test_30_several_dtypes_in_one_group(config):
    dtypes = [
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.complex64,
        torch.float16,
        torch.float64,
        torch.float32,
    ]

    def make():
        return [random((4,), i).to(dtype).requires_grad_() for i, dtype in enumerate(dtypes)]

    together = mine(config.name)(make(), **config.options)
    apart = [mine(config.name)([p], **config.options) for p in make()]
    its = torchs(config.name)(make(), **config.options)
    for seed in range(3):
        fill(together, seed)
        for p, q, alone in zip(all_params(together), all_params(its), apart, strict=True):
            q.grad = p.grad
            all_params(alone)[0].grad = p.grad
            alone.step()
        together.step(), its.step()
    for p, q, alone in zip(all_params(together), all_params(its), apart, strict=True):
        assert torch.equal(p, all_params(alone)[0])
        small = p.dtype in (torch.bfloat16, torch.float16)
        same_tensor(p.detach(), q.detach(), "several dtypes", *((3e-2, 3e-2) if small else within(config)))


@pytest.mark.parametrize("config", FULL, ids=str)
def test_31_the_result_does_not_depend_on_the_number_of_threads(config):
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            optimizer = mine(config.name)(leaves(LARGE, torch.float32), **config.options)
            run(optimizer, range(3))
            results.append(all_params(optimizer))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def test_30_a_step_in_a_thread_of_its_own():
    import threading

    config = FULL[-1]
    pair = Pair(config, lambda: leaves(LARGE))
    failures: list[Any] = []

    def work():
        try:
            pair.step(3)
        except BaseException as caught:
            failures.append(caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


@pytest.mark.parametrize("options", [{}, {"average": 0.5}], ids=["plain", "average"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_31_a_parameter_that_is_a_conjugated_view(momentum, options):
    """torch.optim.SGD steps it in its memory; torch.optim.Adam refuses it."""
    memories = [torch.complex(random((4,), 0), random((4,), 1)) for _ in range(2)]
    ours, its = (torch.nn.Parameter(memory.conj()) for memory in memories)
    optimizers = (
        steprule.SGD([ours], lr=0.1, momentum=momentum, **options),
        torch.optim.SGD([its], lr=0.1, momentum=momentum),
    )
    total = its.detach().clone()
    for seed in range(3):
        for param, optimizer in zip((ours, its), optimizers, strict=True):
            param.grad = torch.complex(random((4,), seed), random((4,), 10 + seed))
            optimizer.step()
        total = its.detach().clone() if seed == 0 else (total + its.detach()) / 2
    assert ours.is_conj()
    torch.testing.assert_close(ours, its)
    torch.testing.assert_close(memories[0], memories[1])
    if options:
        torch.testing.assert_close(optimizers[0].state[ours]["param_average"], total)
