"""State, checkpoints and copies. The number in a test's name is the item of the drop-in list."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from dropin import (
    ADAGRAD,
    CLASSES,
    CONFIGS,
    FULL,
    LARGE,
    NAMES,
    PLAIN,
    SMALL,
    SOME,
    Config,
    Pair,
    all_params,
    assert_unchanged,
    fill,
    has_step,
    known,
    leaves,
    mine,
    outcome,
    plausible,
    random,
    run,
    same_groups,
    same_states,
    same_tensor,
    same_value,
    since,
    snapshot,
    torchs,
)  # fmt: skip
from torch import Tensor

import steprule

STEPPING = [config for config in FULL if has_step(config.name)]


@pytest.fixture
def double():
    """float64 as the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# What state there is


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_9_state_appears_with_the_first_gradient(config):
    pair = Pair(config)
    before = list(pair.my_params) if config.name == "Adagrad" else []  # whose states are there from the start
    assert list(pair.mine.state) == before
    pair.mine.step()
    assert list(pair.mine.state) == before
    pair.step(active=[1])
    pair.step(active=[])
    pair.step(active=[0, 1])
    for p in pair.my_params[2:]:
        assert (p in pair.mine.state) == bool(before)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.name == "SGD" and not c.options["momentum"]], ids=str)
def test_9_sgd_without_momentum_keeps_no_empty_dicts(config):
    optimizer = mine("SGD")(leaves(), **config.options)
    run(optimizer, range(3))
    assert len(optimizer.state) == 0
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("config", [config for config in FULL if config.name != "Adagrad"], ids=str)
def test_9_reading_an_absent_state_as_torch_does_is_harmless(config):
    """optimizer.state is a defaultdict: looking makes an empty dict."""
    pair = Pair(config)
    for optimizer, params in pair.sides:
        assert optimizer.state[params[0]] == {}
    pair.step(2)
    for optimizer, params in pair.sides:
        optimizer.state[params[1]].clear()
    pair.step(2)


LAYOUTS = {
    "channels_last": lambda: torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.empty(4, 3).t(),
    "strided": lambda: torch.empty(4, 6)[:, ::2],
    "0-dim": lambda: torch.empty(()),
    "empty": lambda: torch.empty(0),
}


@pytest.mark.parametrize("config", SOME, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str
)
def test_9_states_are_zeros_like_the_parameter(config, layout, dtype):
    """Strides and dtype as torch's, complex ones not seen as real; and zero where nothing came in."""
    optimizers = []
    for cls in (mine(config.name), torchs(config.name)):
        param = LAYOUTS[layout]().to(dtype).zero_().requires_grad_()
        param.grad = torch.zeros_like(param)
        optimizers.append(cls([param], **config.options))
        optimizers[-1].step()
    same_states(*optimizers)


@pytest.mark.parametrize("config", STEPPING, ids=str)
def test_10_each_parameter_has_a_step_of_its_own(config):
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(2))
    steps = [optimizer.state[p]["step"] for p in all_params(optimizer)]
    assert len({step.data_ptr() for step in steps}) == len(steps)
    for step in steps:
        assert step.shape == () and step.dtype == torch.float32 and step.device.type == "cpu"
        assert float(step) == 2


@pytest.mark.parametrize("config", STEPPING, ids=str)
@pytest.mark.parametrize("fused", [None, True])
def test_10_steps_dtype_follows_the_default_dtype_unless_fused(config, fused, double):
    if fused and "fused" not in torchs(config.name)([torch.zeros(1)]).defaults:
        fused = None
    flags = {} if fused is None else {"fused": True}
    pair = Pair(config, **flags)
    pair.step(2)
    for p in pair.my_params:
        assert pair.mine.state[p]["step"].dtype == (torch.float32 if flags else torch.float64)


PATTERNS = [[0], [0, 2], [], [1], [0, 1, 2], [2], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_10_18_gradients_that_start_late_and_pause(config):
    pair = Pair(config)
    for active in PATTERNS:
        pair.step(active=active)


@pytest.mark.parametrize("config", SOME, ids=str)
def test_10_18_gradients_that_start_late_and_pause_in_a_large_model(config):
    pair = Pair(config, lambda: leaves(LARGE))
    for active in PATTERNS:
        pair.step(active=active)


@pytest.mark.parametrize("config", STEPPING, ids=str)
@pytest.mark.parametrize("number", [5, 5.0, torch.tensor(5)], ids=["int", "float", "integer tensor"])
def test_10_11_a_plain_number_as_step_loads(config, number):
    pair = Pair(config)
    pair.step(5)
    for optimizer, _ in pair.sides:
        saved = copy.deepcopy(optimizer.state_dict())
        for state in saved["state"].values():
            state["step"] = torch.tensor(5.0) if isinstance(number, Tensor) and optimizer is pair.its else number
        optimizer.load_state_dict(saved)
    pair.step(3)


@pytest.mark.parametrize("way", ["loaded", "put there", "filled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.float64], ids=str)
def test_10_a_step_of_any_dtype_counts_on(dtype, way):
    """torch.optim's stands still at 256 in bfloat16 and at 2048 in float16."""
    last = {torch.bfloat16: 256.0, torch.float16: 2048.0, torch.int8: 127.0, torch.float64: 2.0**24}[dtype]
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = steprule.NAdam([p])
    p.grad = torch.ones(3)
    optimizer.step()
    step = torch.tensor(last, dtype=dtype)
    state = optimizer.state[p]
    if way == "loaded":
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["step"] = step
        saved["state"][0]["mu_product"] = saved["state"][0]["mu_product"].to(torch.bfloat16)
        optimizer.load_state_dict(saved)
    elif way == "put there":
        state["step"], state["mu_product"] = step, state["mu_product"].to(torch.bfloat16)
    else:
        state["step"].data = step
    for _ in range(2):
        optimizer.step()
    found = optimizer.state[p]["step"]
    assert float(found) == last + 2
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert optimizer.state[p]["mu_product"].dtype == torch.float32
    assert optimizer._core.plans.current is not None  # kernels take it


@pytest.mark.parametrize("config", STEPPING, ids=str)
def test_10_a_float64_step_is_counted_too(config):
    """A checkpoint from a run whose default dtype was float64."""
    pair = Pair(config)
    pair.step(2)
    for optimizer, _ in pair.sides:
        saved = copy.deepcopy(optimizer.state_dict())
        for state in saved["state"].values():
            state["step"] = state["step"].double()
        optimizer.load_state_dict(saved)
    pair.step(3)


# Checkpoints

NEW_KEYS = ("maximize", "foreach", "fused", "differentiable", "capturable")


@pytest.mark.parametrize("config", PLAIN, ids=str)
@pytest.mark.parametrize("through", ["load_state_dict", "__setstate__"])
def test_11_old_checkpoints_load_and_step(config, through):
    """Without the keys that torch has added since; afterwards the groups are as torch's."""
    pair = Pair(config)
    pair.step(2)
    for optimizer, _ in pair.sides:
        if through == "load_state_dict":
            saved = copy.deepcopy(optimizer.state_dict())
            for group in saved["param_groups"]:
                for key in NEW_KEYS:
                    group.pop(key, None)
            optimizer.load_state_dict(saved)
        else:
            saved = optimizer.__getstate__()
            for group in saved["param_groups"]:
                for key in NEW_KEYS:
                    group.pop(key, None)
            optimizer.__setstate__(saved)
    for group in pair.mine.param_groups:
        assert not any(group[key] for key in NEW_KEYS if key in pair.mine.defaults)
    for a, b in zip(pair.mine.param_groups, pair.its.param_groups, strict=True):
        for key in NEW_KEYS:  # False and None are alike there
            assert (key in a) == (key in b) and bool(a.get(key)) == bool(b.get(key))
            a.pop(key, None), b.pop(key, None)
    same_groups(pair.mine, pair.its)
    for group, default in ((g, o.defaults) for o, _ in pair.sides for g in o.param_groups):
        group.update({key: default[key] for key in NEW_KEYS if key in default})
    pair.step(3)


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_11_the_oldest_checkpoints_of_all_steps_again(config):
    """Straight from loading, with no key put back, and with plain numbers as steps."""
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(2))
    twin = copy.deepcopy(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in (*NEW_KEYS, "amsgrad", "nesterov", "centered", "decoupled_weight_decay"):
            group.pop(key, None)
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = int(state["step"])
    optimizer.load_state_dict(saved)
    for each in (optimizer, twin):
        run(each, range(5, 8))
    for p, q in zip(all_params(optimizer), all_params(twin), strict=True):
        assert torch.equal(p, q)


def test_11_adamw_always_decouples_and_adam_does_what_the_file_says():
    adam = mine("Adam")(leaves(), weight_decay=0.1)
    adamw = mine("AdamW")(leaves(), weight_decay=0.1)
    for optimizer in (adam, adamw):
        run(optimizer, range(2))
    crossed = mine("AdamW")(leaves())
    crossed.load_state_dict(adam.state_dict())
    assert crossed.param_groups[0]["decoupled_weight_decay"] is True
    crossed = mine("Adam")(leaves())
    crossed.load_state_dict(adamw.state_dict())
    assert crossed.param_groups[0]["decoupled_weight_decay"] is True
    crossed.load_state_dict(adam.state_dict())
    assert crossed.param_groups[0]["decoupled_weight_decay"] is False
    old = copy.deepcopy(adamw.state_dict())
    del old["param_groups"][0]["decoupled_weight_decay"]
    for name, expected in (("Adam", False), ("AdamW", True)):
        loaded = mine(name)(leaves())
        loaded.load_state_dict(old)
        assert loaded.param_groups[0]["decoupled_weight_decay"] is expected


def saved_and_loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_12_14_a_file_and_back_with_weights_only(config):
    """The run goes on as if nothing had been saved, bit for bit."""
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(3))
    fresh = mine(config.name)([p.detach().clone().requires_grad_() for p in all_params(optimizer)])
    fresh.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    same_states(fresh, optimizer, 0.0, 0.0)
    same_groups(fresh, optimizer)
    for each in (optimizer, fresh):
        run(each, range(5, 8))
    for p, q in zip(all_params(optimizer), all_params(fresh), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_12_a_tensor_lr_is_saved_too(name):
    optimizer = mine(name)(leaves(), lr=torch.tensor(0.25))
    run(optimizer, [0])
    loaded = mine(name)(leaves())
    loaded.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert torch.equal(loaded.param_groups[0]["lr"], torch.tensor(0.25))
    run(loaded, [1])


@pytest.mark.parametrize("config", FULL, ids=str)
def test_12_equal_runs_have_equal_state_dicts(config):
    saved = []
    for _ in range(2):
        optimizer = mine(config.name)(leaves(), **config.options)
        run(optimizer, range(3))
        saved.append(optimizer.state_dict())
    first, second = saved
    assert first["param_groups"] == second["param_groups"]
    assert list(first["state"]) == list(second["state"])
    for a, b in zip(first["state"].values(), second["state"].values(), strict=True):
        assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def named(params: list[Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"layer.{i}", p) for i, p in enumerate(params)]


@pytest.mark.parametrize("config", PLAIN, ids=str)
@pytest.mark.parametrize("saved_with", [list, named], ids=["without names", "named"])
@pytest.mark.parametrize("loaded_with", [list, named], ids=["without names", "named"])
def test_12_param_names_are_kept_from_whichever_side_has_them(config, saved_with, loaded_with):
    pair = Pair(config, groups=saved_with)
    pair.step(2)
    fresh = Pair(config, groups=loaded_with)
    fresh.mine.load_state_dict(pair.mine.state_dict())
    fresh.its.load_state_dict(pair.its.state_dict())
    same_groups(fresh.mine, fresh.its)
    assert ("param_names" in fresh.mine.param_groups[0]) == (saved_with is named or loaded_with is named)


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_12_the_same_group_listed_twice_packs_identically(config):
    pair = Pair(config)
    for optimizer, _ in pair.sides:
        optimizer.param_groups.append(optimizer.param_groups[0])
    packed, its = pair.mine.state_dict()["param_groups"], pair.its.state_dict()["param_groups"]
    assert packed[0]["params"] == packed[1]["params"] == its[1]["params"]


@pytest.mark.parametrize("config", [*STEPPING, *PLAIN], ids=str)
def test_12_a_parameter_listed_twice_is_stepped_twice(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair = Pair(config, groups=lambda params: [params[0], params[1], params[0], params[2]])
    pair.step(3)
    ours, its = (list(map(known, optimizer.state_dict()["param_groups"])) for optimizer, _ in pair.sides)
    assert ours == its


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("value", [7, "text", [1, 2], torch.tensor([1.0, 2.0]), {"a": 1}, None], ids=str)
def test_13_states_that_are_no_parameters_are_left_alone(config, value):
    pair = Pair(config)
    for optimizer, _ in pair.sides:
        optimizer.state["mine"] = value
    pair.step(2)
    for optimizer, _ in pair.sides:
        assert optimizer.state["mine"] is value
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pair.step(2)
    for optimizer, _ in pair.sides:
        same_value(optimizer.state["mine"], value)
    copied = copy.deepcopy(pair.mine)
    run(copied, [3])
    same_value(copied.state["mine"], value)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_13_a_key_of_the_users_own_in_a_parameters_state_is_left_alone(config):
    pair = Pair(config)
    pair.step(1)
    for optimizer, params in pair.sides:
        optimizer.state[params[0]]["note"] = [1, 2]
        optimizer.state[params[1]]["average"] = torch.ones(3)
    pair.step(2)
    assert torch.equal(pair.mine.state[pair.my_params[1]]["average"], torch.ones(3))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_14_checkpoints_go_both_ways(config):
    """torch -> steprule and steprule -> torch in mid-run, and both go on with the same numbers."""
    pair = Pair(config)
    pair.step(3)
    to_mine, to_its = copy.deepcopy(pair.its.state_dict()), copy.deepcopy(pair.mine.state_dict())
    assert list(to_mine) == list(to_its)
    other = Pair(config)
    with torch.no_grad():
        for p, q, r in zip(other.my_params, other.its_params, pair.its_params, strict=True):
            p.copy_(r), q.copy_(r)
    other.mine.load_state_dict(to_mine)
    other.its.load_state_dict(to_its)
    other.steps = 3
    other.step(3)
    pair.step(3)
    for p, q in zip(pair.its_params, other.my_params, strict=True):
        same_tensor(p.detach(), q.detach(), "the run with checkpoints against the one without")


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_14_loading_casts_states_to_the_parameters_dtype_but_not_step(config, dtype):
    pair = Pair(config, lambda: leaves(dtype=torch.float32))
    pair.step(2)
    loaded = [cls(leaves(dtype=dtype), **config.options) for cls in (mine(config.name), torchs(config.name))]
    for optimizer in loaded:
        optimizer.load_state_dict(copy.deepcopy(pair.its.state_dict()))
    same_states(*loaded)
    for p in all_params(loaded[0]):
        for key, value in loaded[0].state[p].items():
            is_number = key == "step" or key in CLASSES[config.name].scalar_states  # which torch.optim does cast
            assert value.dtype == (torch.float32 if is_number else dtype), key
        if has_step(config.name):
            assert float(loaded[0].state[p]["step"]) == 2
    run(loaded[0], [1])


@pytest.mark.parametrize("config", FULL, ids=str)
def test_14_states_saved_with_other_strides_load(config):
    """A checkpoint of a channels_last model for one that is not."""
    pair = Pair(config, lambda: [random((2, 3, 4, 5), 0).requires_grad_()])
    pair.step(2)
    for optimizer, _ in pair.sides:
        saved = copy.deepcopy(optimizer.state_dict())
        for key, value in saved["state"][0].items():
            if value.dim() == 4:
                saved["state"][0][key] = value.to(memory_format=torch.channels_last)
        optimizer.load_state_dict(saved)
    for _ in range(2):
        pair.set_grads()
        pair.mine.step(), pair.its.step()
        pair.check(strides=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda saved: saved["param_groups"].append(saved["param_groups"][0]),
        lambda saved: saved["param_groups"][0]["params"].append(9),
        lambda saved: saved["param_groups"][0]["params"].pop(),
        lambda saved: saved.pop("state"),
        lambda saved: saved.pop("param_groups"),
    ],
    ids=["a group more", "a parameter more", "a parameter less", "no state", "no groups"],
)
def test_14_what_does_not_fit_is_refused_in_torchs_words(name, spoil):
    errors = []
    for cls in (mine(name), torchs(name)):
        optimizer = cls(leaves(), lr=0.1)
        saved = copy.deepcopy(optimizer.state_dict())
        spoil(saved)
        errors.append(outcome(lambda o=optimizer, s=saved: o.load_state_dict(s)))
    if errors[1][0] == "KeyError":  # whose words are the key alone
        assert errors[0][0] == "KeyError" and f"state_dict has no {errors[1][1]}: it is not what" in errors[0][1]
    else:
        assert errors[0] == errors[1] != ("", "")


@pytest.mark.parametrize("config", FULL, ids=str)
def test_15_load_state_dict_by_keyword(config):
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(2))
    fresh = mine(config.name)(leaves())
    fresh.load_state_dict(state_dict=optimizer.state_dict())
    same_states(fresh, optimizer, 0.0, 0.0)


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("zero", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
def test_15_a_step_of_nothing_creates_the_state_and_moves_nothing(config, zero):
    """What torch.distributed.checkpoint does to a fresh optimizer."""
    pair = Pair(config)
    before = snapshot(pair.mine)[::2]
    for optimizer, params in pair.sides:
        for p in params:
            p.grad = torch.zeros_like(p)
        for group in optimizer.param_groups:
            group["lr"] = zero
        assert optimizer.step(closure=None) is None
        optimizer.zero_grad(set_to_none=True)
    for old, p in zip(before, pair.my_params, strict=True):
        assert torch.equal(old, p)
    pair.check()


@pytest.mark.parametrize("config", FULL, ids=str)
def test_15_torch_distributed_checkpoint(config):
    from torch.distributed.checkpoint import state_dict as dcp

    def model_and_optimizer(cls):
        model = torch.nn.Linear(3, 2, dtype=torch.float64)
        with torch.no_grad():
            for p, value in zip(model.parameters(), leaves([(2, 3), (2,)]), strict=True):
                p.copy_(value)
        return model, cls(model.parameters(), **config.options)

    saved = []
    for cls in (mine(config.name), torchs(config.name)):
        model, optimizer = model_and_optimizer(cls)
        run(optimizer, range(2))
        optimizer.zero_grad()
        saved.append(dcp.get_optimizer_state_dict(model, optimizer))
    assert list(saved[0]["state"]) == list(saved[1]["state"])
    model, optimizer = model_and_optimizer(mine(config.name))
    dcp.set_optimizer_state_dict(model, optimizer, optim_state_dict=saved[1])
    torch_model, torch_optimizer = model_and_optimizer(torchs(config.name))
    dcp.set_optimizer_state_dict(torch_model, torch_optimizer, optim_state_dict=saved[0])
    same_states(optimizer, torch_optimizer)
    for each in (optimizer, torch_optimizer):
        run(each, range(5, 7))
    for p, q in zip(model.parameters(), torch_model.parameters(), strict=True):
        same_tensor(p.detach(), q.detach(), "after the checkpoint")


# Copies


def pickled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return pickle.loads(pickle.dumps(optimizer))


COPIES = {"deepcopy": copy.deepcopy, "pickle": pickled}


@pytest.mark.parametrize("config", FULL, ids=str)
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_16_copies_step_on_their_own(config, way, shapes, steps_before):
    optimizer = mine(config.name)(leaves(shapes), **config.options)
    run(optimizer, range(steps_before))
    copied = COPIES[way](optimizer)
    before = snapshot(optimizer)
    run(copied, range(5, 8))
    assert_unchanged(before, optimizer)
    run(optimizer, range(5, 8))
    same_states(copied, optimizer, 0.0, 0.0)
    for p, q in zip(all_params(optimizer), all_params(copied), strict=True):
        assert p is not q and torch.equal(p, q)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_16_a_model_and_its_optimizer_copied_together(config):
    model = torch.nn.Linear(3, 2)
    optimizer = mine(config.name)(model.parameters(), **config.options)
    run(optimizer, range(2))
    other_model, other = copy.deepcopy((model, optimizer))
    assert all(p is q for p, q in zip(all_params(other), other_model.parameters(), strict=True))
    before = [p.detach().clone() for p in model.parameters()]
    run(other, [3])
    assert all(map(torch.equal, before, model.parameters()))
    assert not any(map(torch.equal, before, other_model.parameters()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", COPIES)
def test_16_copies_keep_what_torchs_copies_keep(name, way):
    def public(optimizer):
        return {key for key in vars(optimizer) if not key.startswith("_")}

    optimizer, its = mine(name)(leaves(), lr=0.25), torchs(name)(leaves(), lr=0.25)
    copied, its_copy = COPIES[way](optimizer), COPIES[way](its)
    assert public(optimizer) == public(copied) == public(its_copy)
    assert copied.defaults == optimizer.defaults and copied.defaults is not optimizer.defaults
    assert optimizer.__getstate__().keys() == its.__getstate__().keys()


@pytest.mark.parametrize("config", PLAIN, ids=str)
@pytest.mark.parametrize("way", COPIES)
def test_16_27_hooks_work_in_copies(config, way):
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(2))
    copied = COPIES[way](optimizer)
    calls: list[str] = []
    copied.register_step_pre_hook(lambda *_: calls.append("pre"))
    copied.register_step_post_hook(lambda *_: calls.append("post"))
    copied.register_state_dict_pre_hook(lambda *_: calls.append("save"))
    copied.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    run(optimizer, [0])
    assert calls == []
    run(copied, [0])
    copied.load_state_dict(copied.state_dict())
    assert calls == ["pre", "post", "save", "load"]


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_16_a_copy_outlives_its_original(config):
    """No address of the original's tensors may be left in it."""
    optimizer = mine(config.name)(leaves(LARGE), **config.options)
    run(optimizer, range(2))
    copied = copy.deepcopy(optimizer)
    twin = copy.deepcopy(optimizer)
    del optimizer
    filler = [torch.full((40000,), 3.0, dtype=torch.float64) for _ in range(20)]
    run(copied, range(3, 5))
    assert all(bool((tensor == 3.0).all()) for tensor in filler)
    run(twin, range(3, 5))
    assert all(map(torch.equal, all_params(copied), all_params(twin)))


# Hooks of state_dict and load_state_dict


@pytest.mark.parametrize("name", NAMES)
def test_27_state_dict_hooks_run_in_order_and_can_be_removed(name):
    logs = []
    for cls in (mine(name), torchs(name)):
        optimizer, log = cls(leaves(), lr=0.1), []
        handles = [
            optimizer.register_state_dict_pre_hook(lambda *_, log=log: log.append("pre 1")),
            optimizer.register_state_dict_pre_hook(lambda *_, log=log: log.append("pre 2"), prepend=True),
            optimizer.register_state_dict_post_hook(lambda o, d, log=log: log.append("post 1")),
            optimizer.register_state_dict_post_hook(lambda o, d, log=log: log.append("post 2"), prepend=True),
            optimizer.register_load_state_dict_pre_hook(lambda o, d, log=log: log.append("load pre 1")),
            optimizer.register_load_state_dict_pre_hook(lambda o, d, log=log: log.append("load pre 2"), prepend=True),
            optimizer.register_load_state_dict_post_hook(lambda *_, log=log: log.append("load post 1")),
            optimizer.register_load_state_dict_post_hook(lambda *_, log=log: log.append("load post 2"), prepend=True),
        ]
        optimizer.load_state_dict(optimizer.state_dict())
        for handle in handles:
            handle.remove()
        optimizer.load_state_dict(optimizer.state_dict())
        logs.append(log)
    assert logs[0] == logs[1] and len(logs[0]) == 8


@pytest.mark.parametrize("config", PLAIN, ids=str)
def test_27_state_dict_hooks_may_change_and_replace_the_dict(config):
    optimizer = mine(config.name)(leaves(), **config.options)
    run(optimizer, range(2))
    optimizer.register_state_dict_post_hook(lambda o, saved: OrderedDict(saved, note=1))
    saved = optimizer.state_dict()
    assert isinstance(saved, OrderedDict) and saved["note"] == 1
    fresh = mine(config.name)(leaves())

    def halve(_, loaded):
        groups = copy.deepcopy(loaded["param_groups"])
        groups[0]["lr"] = 0.5
        return {**loaded, "param_groups": groups}

    fresh.register_load_state_dict_pre_hook(halve)
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["lr"] != 0.5


# What the user does to the state is what counts


def each(optimizer: torch.optim.Optimizer):
    for i, p in enumerate(all_params(optimizer)):
        for key, value in optimizer.state[p].items():
            yield i, p, key, value


def state_replaced(optimizer):
    for i, p, key, value in list(each(optimizer)):
        if key != "step":
            optimizer.state[p][key] = plausible(value.shape, 90 + i)


def state_cloned(optimizer):
    for _, p, key, value in list(each(optimizer)):
        optimizer.state[p][key] = value.clone()


def state_data_set(optimizer):
    for i, _, key, value in each(optimizer):
        if key != "step":
            value.data = plausible(value.shape, 80 + i)


def state_changed_in_place(optimizer):
    for _, _, key, value in each(optimizer):
        value.add_(3.0 if key == "step" else 0.5)


def state_strided(optimizer):
    for _, p, key, value in list(each(optimizer)):
        if value.dim() == 2:
            wide = torch.zeros(value.shape[0], 2 * value.shape[1], dtype=value.dtype)
            wide[:, ::2] = value
            optimizer.state[p][key] = wide[:, ::2]


def states_exchanged(optimizer):
    """Parameters 0 and 1 have one shape."""
    first, second = all_params(optimizer)[:2]
    optimizer.state[first], optimizer.state[second] = optimizer.state[second], optimizer.state[first]


def state_tensors_exchanged(optimizer):
    first, second = all_params(optimizer)[:2]
    a, b = optimizer.state[first], optimizer.state[second]
    for key in a:
        a[key], b[key] = b[key], a[key]


def state_dicts_copied(optimizer):
    for p in all_params(optimizer):
        optimizer.state[p] = {key: value.clone() for key, value in optimizer.state[p].items()}


def state_of_one_forgotten(optimizer):
    optimizer.state.pop(all_params(optimizer)[1])


def state_cleared(optimizer):
    optimizer.state.clear()


def state_mapping_replaced(optimizer):
    optimizer.state = type(optimizer.state)(
        dict, {p: {k: v.clone() * 2 for k, v in optimizer.state[p].items()} for p in all_params(optimizer)}
    )


def state_reordered(optimizer):
    for p in reversed(all_params(optimizer)):
        optimizer.state[p] = optimizer.state.pop(p)


CHANGES_OF_STATE = [
    state_replaced, state_cloned, state_data_set, state_changed_in_place,
    state_strided, states_exchanged, state_tensors_exchanged, state_dicts_copied, state_of_one_forgotten, state_cleared,
    state_mapping_replaced, state_reordered,
]  # fmt: skip


@pytest.mark.parametrize("config", SOME, ids=str)
@pytest.mark.parametrize("change", CHANGES_OF_STATE, ids=lambda change: change.__name__)
@pytest.mark.parametrize("shapes", [((6, 6), (6, 6), (3,)), ((200, 200), (200, 200), (3,))], ids=["small", "large"])
def test_9_16_state_changed_by_the_user_between_steps(config, change, shapes):
    if config.name == "Adagrad" and change in (state_of_one_forgotten, state_cleared):
        since("2.12", ADAGRAD)
    pair = Pair(config, lambda: leaves(shapes))
    pair.step(3)
    for optimizer, _ in pair.sides:
        change(optimizer)
    for _ in range(2):
        pair.set_grads()
        pair.mine.step(), pair.its.step()
        pair.check(strides=False)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_9_16_loading_in_mid_run_takes_effect_at_once(config):
    pair = Pair(config)
    pair.step(2)
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer, _ in pair.sides]
    pair.step(3)
    for (optimizer, _), state in zip(pair.sides, saved, strict=True):
        optimizer.load_state_dict(state)
    pair.step(3)


@pytest.mark.parametrize("config", FULL, ids=str)
def test_9_a_state_of_another_shape_is_refused_and_nothing_changes(config):
    optimizer = mine(config.name)([("first", random((3,), 0)), ("second", random((4,), 1))], **config.options)
    run(optimizer, range(2))
    second = all_params(optimizer)[1]
    key = [key for key in optimizer.state[second] if key != "step"][-1]
    optimizer.state[second][key] = torch.zeros(5, dtype=torch.float64)
    before = snapshot(optimizer)
    fill(optimizer, 3)
    with pytest.raises(RuntimeError, match=f"{key}.*second"):
        optimizer.step()
    assert_unchanged(before, optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_16_copying_an_optimizer_that_was_never_stepped(name):
    pair = Pair(Config(name, {"lr": 0.05}))
    pair.mine, pair.its = copy.deepcopy(pair.mine), copy.deepcopy(pair.its)
    pair.my_params, pair.its_params = all_params(pair.mine), all_params(pair.its)
    pair.step(2)
