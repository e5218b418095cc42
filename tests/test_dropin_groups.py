"""Learning rates, schedulers and parameter groups. The number in a test's name is the item of the drop-in list."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dropin import (
    ADAGRAD,
    CLASSES,
    CONFIGS,
    EVERY,
    FULL,
    LARGE,
    NAMES,
    NEWER,
    PLAIN,
    TELLING,
    Config,
    Pair,
    leaves,
    mine,
    random,
    run,
    since,
    torchs,
)
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

WITH_BETAS = [config for config in FULL if "betas" in config.options]
CYCLED = [config for config in FULL if {"betas", "momentum"} & config.options.keys()]


# Tensors as hyperparameters


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_6_a_tensor_lr_gives_the_floats_result(config, shape, dtype):
    as_float = mine(config.name)(leaves(), **{**config.options, "lr": 0.0625})
    as_tensor = mine(config.name)(leaves(), **{**config.options, "lr": torch.full(shape, 0.0625, dtype=dtype)})
    for optimizer in (as_float, as_tensor):
        run(optimizer, range(4))
    for p, q in zip(as_float.param_groups[0]["params"], as_tensor.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_6_a_tensor_lr_equals_torchs(config, shape):
    if shape:
        since("2.8", "an lr that is a tensor has no dimensions")
    Pair(config, lr=torch.full(shape, 0.0625, dtype=torch.float64)).step(4)


@pytest.mark.parametrize("name", [name for name in NAMES if "betas" not in CLASSES[name].hyperparameters])
def test_6_a_tensor_lr_with_foreach(name):
    """Where torch takes it, SGD and RMSprop, it works."""
    Pair(Config(name, {"lr": torch.tensor(0.0625, dtype=torch.float64), "foreach": True})).step(3)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_6_7_a_tensor_lr_may_be_filled_between_steps(config):
    lrs = [torch.tensor(0.0625, dtype=torch.float64) for _ in range(2)]
    pair = Pair(config)
    for (optimizer, _), lr in zip(pair.sides, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
    for value in (0.0625, 0.5, 0.0, 0.25):
        for lr in lrs:
            lr.fill_(value)
        pair.step(2)


ARRAYS = {
    "lr": ("AdamW", {"lr": np.array(0.25)}),
    "an array of one element": ("AdamW", {"lr": np.array([0.25])}),
    "momentum": ("SGD", {"momentum": np.array(0.5)}),
    "betas": ("Lion", {"betas": (np.array(0.5), np.array(0.75))}),
    "an option": ("SGD", {"lookahead": 2, "lookahead_alpha": np.array(0.5)}),
}


@pytest.mark.parametrize(("name", "held"), ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("strided", [False, True], ids=["kernel", "eager"])
@pytest.mark.filterwarnings("error")
def test_6_7_an_array_may_be_filled_between_steps(name, held, strided):
    """As one with the numbers themselves, which are set anew."""
    key, arrays = list(held.items())[-1]
    arrays = arrays if isinstance(arrays, tuple) else (arrays,)
    runs = []
    for filled in (True, False):
        params = leaves(dtype=torch.float32)
        if strided:
            params = [torch.stack([p.detach()] * 2, -1)[..., 0].requires_grad_() for p in params]
        optimizer = mine(name)(params, **{"lr": 0.125, **copy.deepcopy(held)})
        group = optimizer.param_groups[0]
        for step in range(4):
            values = [0.5 / (step + 2 + i) for i in range(len(arrays))]
            if filled:
                for array, value in zip(group[key] if len(arrays) > 1 else [group[key]], values, strict=True):
                    array[...] = value
            else:
                group[key] = tuple(values) if len(arrays) > 1 else values[0]
            run(optimizer, [step])
        assert (optimizer._core.plans.current is None) == strided
        runs.append(params)
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("config", WITH_BETAS, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_6_tensor_betas_give_the_floats_result(config, shape):
    as_tensors = tuple(torch.full(shape, beta, dtype=torch.float64) for beta in (0.75, 0.875))
    pair = Pair(Config(config.name, {**config.options, "betas": (0.75, 0.875)}))
    tensor_run = mine(config.name)(leaves(), **{**config.options, "betas": as_tensors})
    for _ in range(4):
        pair.step()
        for p, q in zip(pair.my_params, tensor_run.param_groups[0]["params"], strict=True):
            q.grad = p.grad
        tensor_run.step()
    for p, q in zip(pair.my_params, tensor_run.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("config", WITH_BETAS, ids=str)
def test_6_7_tensor_betas_may_be_filled_between_steps(config):
    pair = Pair(config)
    for value in (0.75, 0.5, 0.875):
        for optimizer, _ in pair.sides:
            betas = optimizer.param_groups[0]["betas"]
            if isinstance(betas[0], float):
                betas = tuple(torch.tensor(0.75, dtype=torch.float64) for _ in range(2))
                optimizer.param_groups[0]["betas"] = betas
            betas[0].fill_(value)
        pair.step(2)


# Schedulers


def warm_restarts(optimizer):
    return schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=3)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 4], 0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.25, total_iters=4),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": warm_restarts,
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.25, total_iters=3), schedulers.ExponentialLR(o, 0.8)], [3]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 3), schedulers.ExponentialLR(o, 0.8)]
    ),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "CyclicLR triangular2": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 2, mode="triangular2", cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.2, total_steps=8),
    "OneCycleLR linear": lambda o: schedulers.OneCycleLR(o, 0.2, total_steps=8, anneal_strategy="linear", three_phase=True),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=3),
}  # fmt: skip


def test_7_every_scheduler_of_torch_is_in_the_table():
    kinds = {name for name in schedulers.__all__ if name != "LRScheduler"}
    assert kinds <= set(SCHEDULERS)


CYCLING = ("CyclicLR", "OneCycleLR", "OneCycleLR linear")
SCHEDULED = [
    pytest.param(config, kind, id=f"{kind}-{config}")
    for kind in SCHEDULERS
    for config in (CYCLED if kind in CYCLING else FULL)
    if config.name in EVERY or kind in ("LambdaLR", "OneCycleLR")  # they know nothing of rules
]


@pytest.mark.parametrize(("config", "kind"), SCHEDULED)
@pytest.mark.parametrize("lr", ["float", "tensor"])
def test_7_schedulers(config, kind, lr):
    """Side by side with torch's, which write lr, momentum or betas into the groups, or fill an lr that is a tensor."""
    pair = Pair(config, groups=lambda params: [{"params": params[:1]}, {"params": params[1:], "lr": 0.01}])
    if lr == "tensor":
        for optimizer, _ in pair.sides:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    scheduled = [SCHEDULERS[kind](optimizer) for optimizer, _ in pair.sides]
    seen = set()
    for _ in range(7):
        pair.step()
        for scheduler in scheduled:
            scheduler.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
        assert scheduled[0].get_last_lr() == scheduled[1].get_last_lr()
        seen.add(float(pair.mine.param_groups[0]["lr"]))
    assert len(seen) > 1


@pytest.mark.parametrize("config", CYCLED, ids=str)
@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
def test_7_momentum_and_betas_are_cycled(config, kind):
    optimizer = mine(config.name)(leaves(), **config.options)
    scheduler = SCHEDULERS[kind](optimizer)
    seen = set()
    for seed in range(4):
        run(optimizer, [seed])
        scheduler.step()
        seen.add(optimizer.param_groups[0].get("betas", optimizer.param_groups[0].get("momentum")))
    assert len(seen) > 1


@pytest.mark.parametrize("name", NAMES)
def test_7_schedulers_do_not_warn_of_a_step_order(name):
    optimizer = mine(name)(leaves(), lr=0.1)
    scheduler = schedulers.StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(optimizer, [0])
        scheduler.step()


# Everything is read at every step

CHANGED: dict[str, list[Any]] = {
    "lr": [0.5, 0.0, 1e-28, torch.tensor(0.25, dtype=torch.float64)],
    "betas": [(0.5, 0.75), (0.0, 0.0)],
    "eps": [0.5, 0.0],
    "weight_decay": [0.3, 0.0],
    "momentum": [0.3],
    "dampening": [0.7, 0.0],
    "alpha": [0.5, 0.25],
    "lr_decay": [0.3, 0.0],
    "rho": [0.5],
    "momentum_decay": [0.3],
    "lambd": [0.3, 0.0],
    "t0": [0.0],
    "etas": [(0.2, 1.5)],
    "step_sizes": [(0.001, 0.02)],
    "maximize": [False, True],
    "decoupled_weight_decay": [False, True],
}


def changes(most: int) -> list[Any]:
    """Options to change in FULL, with at most so many values of each."""
    cases = []
    for config in FULL:
        takes = inspect.signature(torchs(config.name)).parameters
        hypers = [hyper for hyper in (*CLASSES[config.name].hyperparameters, "maximize") if hyper in takes]
        values = [(hyper, value) for hyper in hypers for value in CHANGED.get(hyper, [])[:most]]
        cases += [pytest.param(config, hyper, value, id=f"{config.name}-{hyper}={value}") for hyper, value in values]
    return cases


@pytest.mark.parametrize(("config", "hyper", "value"), changes(most=9))
def test_7_every_hyperparameter_is_read_at_every_step(config, hyper, value):
    change_and_change_back(Pair(config), hyper, value)


@pytest.mark.parametrize(("config", "hyper", "value"), changes(most=1))
def test_7_every_hyperparameter_is_read_at_every_step_of_a_large_model(config, hyper, value):
    change_and_change_back(Pair(config, lambda: leaves(LARGE)), hyper, value)


def change_and_change_back(pair: Pair, hyper: str, value: Any) -> None:
    pair.step(2)
    before = pair.mine.param_groups[0][hyper]
    for setting in (value, before):
        for optimizer, _ in pair.sides:
            optimizer.param_groups[0][hyper] = setting
        pair.step(2)


def test_7_momentum_switched_on_and_off_and_on():
    pair = Pair(Config("SGD", {"lr": 0.05}))
    for momentum in (0.0, 0.9, 0.0, 0.5):
        for optimizer, _ in pair.sides:
            optimizer.param_groups[0]["momentum"] = momentum
        pair.step(2)


def test_7_nesterov_switched_on_and_off():
    pair = Pair(Config("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}))
    for nesterov in (False, True, False):
        for optimizer, _ in pair.sides:
            optimizer.param_groups[0]["nesterov"] = nesterov
        pair.step(2)


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_7_a_group_may_be_replaced_by_another_dict(config):
    pair = Pair(config)
    pair.step(2)
    for optimizer, _ in pair.sides:
        optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.5}
    pair.step(2)
    for optimizer, _ in pair.sides:
        optimizer.param_groups = [dict(optimizer.param_groups[0], weight_decay=0.5)]
    pair.step(2)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_7_changing_the_defaults_changes_no_group(config):
    pair = Pair(config)
    pair.step(2)
    for optimizer, _ in pair.sides:
        optimizer.defaults["lr"] = 100.0
    pair.step(2)


# Groups


def two_groups(**second: Any) -> Callable[[list[torch.Tensor]], list[dict[str, Any]]]:
    return lambda params: [{"params": params[:2]}, {"params": params[2:], **second}]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_8_lr_and_weight_decay_by_group(config):
    pair = Pair(config, groups=two_groups(lr=0.25, weight_decay=0.3))
    pair.step(3)


@pytest.mark.parametrize(("config", "hyper", "value"), changes(most=9))
def test_8_every_option_by_group(config, hyper, value):
    if hyper == "dampening":  # which does not go with nesterov: refused by constructors, but not in torch's groups
        config = Config(config.name, {**config.options, "nesterov": False})
    Pair(config, groups=two_groups(**{hyper: value})).step(3)


def test_8_nesterov_in_a_group_whose_momentum_is_the_default():
    Pair(Config("SGD", {"lr": 0.05, "momentum": 0.9}), groups=two_groups(nesterov=True)).step(3)


def test_8_momentum_in_a_group_where_nesterov_is_the_default():
    Pair(Config("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}), groups=two_groups(momentum=0.5)).step(3)


@pytest.mark.parametrize("name", NAMES)
def test_8_booleans_and_states_by_group(name):
    """Groups whose formulas differ, in one optimizer.

    But not Adagrad's initial_accumulator_value, of which torch.optim reads its constructor's whatever groups say.
    """
    own = "initial_accumulator_value"
    options = [{k: v for k, v in c.options.items() if k != own} for c in CONFIGS if c.name == name]
    pair = Pair(
        Config(name),
        lambda: leaves([(3,)] * len(options)),
        lambda params: [{"params": [p], **o} for p, o in zip(params, options, strict=True)],
    )
    pair.step(4)


# lr is where Rprop begins.
@pytest.mark.parametrize("config", [config for config in FULL if config.name != "Rprop"], ids=str)
@pytest.mark.parametrize("shapes", [((4,), (4,), (4,)), LARGE], ids=["small", "large"])
def test_8_a_group_at_a_vanishing_lr_does_not_move(config, shapes):
    pair = Pair(config, lambda: leaves(shapes), two_groups(lr=1e-28))
    before = [p.detach().clone() for p in pair.my_params]
    pair.step(3)
    for i, (old, p) in enumerate(zip(before, pair.my_params, strict=True)):
        assert torch.equal(old, p) == (i >= 2)


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("late", [{}, {"lr": 0.25, "weight_decay": 0.3, "maximize": True}], ids=["plain", "own"])
def test_8_add_param_group_midway(config, late):
    if config.name == "Adagrad":
        since("2.12", ADAGRAD)
    pair = Pair(config)
    pair.step(3)
    for optimizer, params in pair.sides:
        added = [random((3, 2), 50).requires_grad_(), random((2,), 51).requires_grad_()]
        params += added
        optimizer.add_param_group({"params": iter(added), **late})
    pair.step(3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make",
    [
        lambda params: [params[0]],
        lambda params: {"params": params[0]},
        lambda params: {"params": {params[0]}},
        lambda params: {"params": [1.0]},
        lambda params: {"params": ("a", torch.zeros(1))},
        lambda params: {},
    ],
    ids=["no dict", "twice", "a set", "no tensor", "a name alone", "no params"],
)
def test_8_what_add_param_group_refuses(name, make):
    errors = []
    for cls in (mine(name), torchs(name)):
        params = leaves()
        optimizer = cls(params, lr=0.1)
        errors.append(outcome_of_adding(optimizer, make(params)))
        assert len(optimizer.param_groups) == 1
    assert errors[0] == errors[1]


def outcome_of_adding(optimizer: torch.optim.Optimizer, group: Any) -> tuple[str, str]:
    with pytest.raises((TypeError, ValueError, KeyError)) as caught:
        optimizer.add_param_group(group)
    return caught.type.__name__, str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_8_a_senseless_value_in_a_group_is_refused_too(name):
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        mine(name)([{"params": leaves(), "lr": -1}])
    optimizer = mine(name)(leaves())
    other, text = ({"weight_decay": -0.5}, r"weight_decay value: -0\.5")
    if name == "Rprop":
        other, text = ({"etas": (0.5, 0.9)}, r"eta values: 0\.5, 0\.9")
    with pytest.raises(ValueError, match=f"Invalid {text}"):
        optimizer.add_param_group({"params": [torch.zeros(1)], **other})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_8_group_keys_are_torchs_also_after_steps(config):
    pair = Pair(config, groups=lambda params: [{"params": params, "mine": "kept"}])
    pair.step(1)
    for ours, its in (
        (pair.mine.param_groups, pair.its.param_groups),
        (pair.mine.state_dict()["param_groups"], pair.its.state_dict()["param_groups"]),
    ):
        assert set(ours[0]) - NEWER == set(its[0]) - NEWER


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_8_groups_may_be_removed_reordered_and_changed_by_hand(config):
    pair = Pair(config, groups=two_groups(lr=0.25))
    pair.step(2)
    for optimizer, _ in pair.sides:
        optimizer.param_groups.reverse()
    pair.step(2)
    for optimizer, params in pair.sides:
        optimizer.param_groups[1]["params"].reverse()
        params.reverse()
        params[:] = [p for group in optimizer.param_groups for p in group["params"]]
    pair.step(2)
    for optimizer, params in pair.sides:
        moved = optimizer.param_groups[0]["params"].pop()
        optimizer.param_groups[1]["params"].append(moved)
        params[:] = [p for group in optimizer.param_groups for p in group["params"]]
    pair.step(2)
    for optimizer, params in pair.sides:
        optimizer.param_groups.pop(0)
        params[:] = [p for group in optimizer.param_groups for p in group["params"]]
    pair.step(2)


def test_7_the_telling_values_tell():
    """Every rule of the table is run at an eps and betas that show where they go."""
    for config in CONFIGS:
        for hyper in TELLING.keys() & config.options.keys():
            assert config.options[hyper] == TELLING[hyper]
