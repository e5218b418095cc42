"""What is saved and loaded: another rule's checkpoints, 8-bit states under names of their own, hooks, other processes."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

import pytest
import torch
import torch.multiprocessing

import steprule
from steprule.services import ClipQuantile, Telemetry


def make(cls=steprule.AdamW, shapes=((4, 64), (3,)), seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return params, cls(params, **{"lr": 1e-2, **settings})


def train(params, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def trained(*args, steps=3, **settings):
    params, optimizer = make(*args, **settings)
    train(params, optimizer, steps)
    return params, optimizer


def calls(optimizer):
    """How many steps its schedules have seen."""
    return optimizer._core.schedules.calls if optimizer._core.schedules is not None else 0


def everything(optimizer):
    """What may not change where loading is refused."""
    services = optimizer._core.services.state_dict() if optimizer._core.services is not None else None
    return copy.deepcopy((optimizer.state_dict(), services, calls(optimizer), list(optimizer.state.values())))


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, 0.0, 0.0, equal_nan=True)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


# Another rule's


CROSSED = {
    "Lion to AdamW": ("Lion", "AdamW", "lacks exp_avg_sq"),
    "AdamW to Lion": ("AdamW", "Lion", "has exp_avg_sq, which it does not keep"),
    "AdamW to AdaBelief": ("AdamW", "AdaBelief", "lacks exp_avg_var and has exp_avg_sq"),
    "RMSprop to Adam": ("RMSprop", "Adam", "lacks exp_avg, exp_avg_sq and has square_avg"),
    "Lion to SGD": ("Lion", "SGD", "has exp_avg"),
}


@pytest.mark.parametrize(("saved", "loading", "problem"), CROSSED.values(), ids=CROSSED)
@pytest.mark.parametrize("begun", [False, True], ids=["new", "trained"])
def test_another_rules_checkpoint_is_refused_before_anything_changes(saved, loading, problem, begun):
    _, other = trained(getattr(steprule, saved), lr=0.5)
    settings = {"clip": 1.0, "states": "float32", "lr": lambda step: 0.1 / step}
    params, optimizer = make(getattr(steprule, loading), **settings)
    if begun:
        train(params, optimizer, 2)
    before = everything(optimizer)
    message = rf"not one of {loading} with these options: the state of parameter 0 of group 0 {problem}"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other.state_dict())
    assert equal(everything(optimizer), before)
    train(params, optimizer, 1)


class Peaked(steprule.Rule):
    """A rule of one's own with names that options would take for their states."""

    decay = "decoupled"
    lr_max = steprule.State("scalar")

    @staticmethod
    def update(param, grad, lr_max, *, lr=0.1, weight_decay=0.0, slow_param=0.5):
        return param - lr * slow_param * (grad + weight_decay * param), lr_max


@pytest.mark.parametrize(
    ("cls", "option", "name"),
    [
        (steprule.Prodigy, {"decay": "initial"}, "initial_param_"),
        (steprule.Optimizer.of(Peaked), {"decay": "corrected"}, "lr_max_"),
        (steprule.Optimizer.of(Peaked), {"lookahead": 2}, "slow_param_"),
    ],
    ids=["Prodigy", "of one's own", "a hyperparameter"],
)
def test_what_an_option_remembers_under_another_name_is_not_lost(cls, option, name):
    params, optimizer = trained(cls, **option)
    assert name in optimizer.state[params[0]]
    again = make(cls, **option)[1]
    again.load_state_dict(optimizer.state_dict())
    plain = make(cls)[1]
    with pytest.raises(ValueError, match=rf"has {name}, which it does not keep"):
        plain.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("saved", "loading"),
    [({"lookahead": 5}, {}), ({"decay": "initial"}, {"lookahead": 5})],
    ids=["lookahead", "first weights"],
)
def test_what_an_option_remembers_is_not_lost(saved, loading):
    """Though it may begin with what is loaded, as a parameter that has none does."""
    with pytest.raises(ValueError, match=r"has (slow_param|initial_param), which it does not keep"):
        make(**loading)[1].load_state_dict(trained(**saved)[1].state_dict())
    params, optimizer = make(**saved)
    optimizer.load_state_dict(trained()[1].state_dict())
    train(params, optimizer, 1)


def test_numbers_of_parameters_that_have_become_texts_are_taken():
    """As by JSON; a text that is no number of a parameter is the user's own."""
    params, first = trained()
    saved = first.state_dict()
    saved["state"] = {**{str(number): state for number, state in saved["state"].items()}, "mine": 7, "9": 8}
    _, second = make()
    second.load_state_dict(saved)
    assert equal([second.state[p] for p in second.param_groups[0]["params"]], [first.state[p] for p in params])
    assert second.state["mine"] == 7 and second.state["9"] == 8


def test_the_settings_that_are_loaded_say_which_states_are_needed():
    params, optimizer = make(steprule.AdamW, amsgrad=True)
    optimizer.load_state_dict(trained(amsgrad=False)[1].state_dict())  # which brings amsgrad=False
    train(params, optimizer, 1)
    assert "max_exp_avg_sq" not in optimizer.state[params[0]]
    saved = trained(amsgrad=False)[1].state_dict()
    saved["param_groups"][0]["amsgrad"] = True
    with pytest.raises(ValueError, match="lacks max_exp_avg_sq"):
        make()[1].load_state_dict(saved)


DROPPED = {
    "average": ({"average": 0.9}, {}, "averages of weights (average)"),
    "average beside clip": ({"average": 0.9}, {"clip": 1.0}, "averages of weights (average)"),
    "norms": ({"clip": ClipQuantile()}, {"average": 0.9}, "recent norms (clip=ClipQuantile(...))"),
    "counts": ({"clip": 1e-6}, {}, "counts of clipped and skipped steps and zeroed elements (clip, nonfinite)"),
    "functions": ({"lr": lambda step: 0.1 / step}, {}, "how many steps functions of hyperparameters have seen"),
    "two": (
        {"average": 0.9, "lr": lambda step: 0.1 / step}, {},
        "averages of weights (average) and how many steps functions of hyperparameters have seen",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("saved", "loading", "what"), DROPPED.values(), ids=DROPPED)
def test_what_is_dropped_at_loading_is_told_once(saved, loading, what, caplog):
    state = trained(**saved)[1].state_dict()
    optimizer = make(**loading)[1]
    optimizer.load_state_dict(state)
    assert caplog.messages == [
        f"steprule: the loaded state dict has {what}, which this AdamW was made without, and which are dropped"
    ]
    assert [record.name for record in caplog.records] == ["steprule"]


@pytest.mark.parametrize(
    "saved", [{}, *(case[0] for case in DROPPED.values()), {"clip": 1e6}], ids=["plain", *DROPPED, "clip"]
)
def test_what_is_not_dropped_is_not_told(saved, caplog):
    state = trained(**saved)[1].state_dict()
    make(**({} if saved == {"clip": 1e6} else saved))[1].load_state_dict(state)
    assert caplog.messages == []


def test_the_refusal_names_the_parameter():
    params, _ = make()
    optimizer = steprule.AdamW([("first", params[0]), ("second", params[1])])
    train(params, optimizer, 2)
    saved = optimizer.state_dict()
    saved["state"] = copy.deepcopy(saved["state"])
    del saved["state"][1]["exp_avg"]
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 \(second\) lacks exp_avg;"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "ScheduleFreeSGD"])
@pytest.mark.parametrize("states", [None, "8bit"])
@pytest.mark.parametrize("how", ["missing", "None"])
def test_states_without_the_step_that_they_are_debiased_by_are_refused(name, states, how):
    _, optimizer = trained(getattr(steprule, name), states=states)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["step"] = None
    if how == "missing":
        del saved["state"][1]["step"]
    before = everything(optimizer)
    with pytest.raises(ValueError, match="the state of parameter 1 of group 0 lacks step;"):
        optimizer.load_state_dict(saved)
    assert equal(everything(optimizer), before)


IMPOSSIBLE = {
    "negative": -1, "negative tensor": torch.tensor(-1.0), "nan": torch.tensor(float("nan")), "half": 2.5, "inf": math.inf,
    "vector": torch.ones(2), "text": "3", "list": [1],
}  # fmt: skip


@pytest.mark.parametrize("step", IMPOSSIBLE)
@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_a_step_that_is_no_number_of_steps_is_refused_at_loading(name, step):
    _, optimizer = trained(getattr(steprule, name))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["step"] = IMPOSSIBLE[step]
    before = everything(optimizer)
    with pytest.raises(
        ValueError, match=r"the state step of parameter 1 of group 0 is .* and must be a number of steps"
    ):
        optimizer.load_state_dict(saved)
    assert equal(everything(optimizer), before)


@pytest.mark.parametrize("step", [*IMPOSSIBLE, "int"])
@pytest.mark.parametrize("settings", [{}, {"clip": 1.0}], ids=str)
def test_a_step_that_is_put_in_by_hand_must_be_one(step, settings):
    params, optimizer = make(**settings)
    train(params, optimizer, 2)
    optimizer.state[params[1]]["step"] = {**IMPOSSIBLE, "int": 0}[step]
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=r"the state step of parameter 1 of group 0 is .* and must be a"):
        train(params, optimizer, 1)
    assert equal(everything(optimizer), before)
    optimizer.state[params[1]].clear()
    train(params, optimizer, 1)


@pytest.mark.parametrize(
    ("name", "gone", "lacks"),
    [
        ("AdamW", ["exp_avg_sq"], "exp_avg_sq"), ("AdamW", ["exp_avg", "exp_avg_sq"], "exp_avg, exp_avg_sq"),
        ("AdamW", ["step"], "step"), ("NAdam", ["mu_product"], "mu_product"), ("Adan", ["exp_avg_diff"], "exp_avg_diff"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("settings", [{}, {"clip": 1.0}, {"states": "8bit"}], ids=str)
def test_a_state_that_is_taken_out_from_beside_others_is_missed(name, gone, lacks, settings):
    """As by torch.optim, which raises KeyError; to begin it anew beside an old step would be a step of another size."""
    params, optimizer = trained(getattr(steprule, name), **settings)
    for array in gone:
        for suffix in ("", "_8bit", "_base"):
            optimizer.state[params[1]].pop(array + suffix, None)
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=f"the state of parameter 1 of group 0 lacks {lacks} beside "):
        train(params, optimizer, 1)
    assert equal(everything(optimizer), before)
    optimizer.state[params[1]].clear()
    train(params, optimizer, 1)
    assert float(optimizer.state[params[1]]["step"]) == 1


def test_a_state_that_a_setting_asks_for_may_begin_beside_others():
    params, optimizer = trained()
    optimizer.param_groups[0]["amsgrad"] = True
    train(params, optimizer, 1)
    params, optimizer = trained(steprule.Lion)
    del optimizer.state[params[0]]["step"]  # which its formula does not ask for
    train(params, optimizer, 1)


def test_what_may_be_absent():
    """All states, the step of a formula that does not ask for it, and what torch.optim keeps as None."""
    params, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][1]
    optimizer.load_state_dict(saved)
    train(params, optimizer, 1)
    assert float(optimizer.state[params[0]]["step"]) == 4 and float(optimizer.state[params[1]]["step"]) == 1
    params, optimizer = trained(steprule.Lion)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][0]["step"]
    optimizer.load_state_dict(saved)
    train(params, optimizer, 1)
    its_params = [torch.nn.Parameter(torch.ones(4))]
    its = torch.optim.SGD(its_params, lr=0.1)
    train(its_params, its, 1)
    saved = its.state_dict()
    saved["state"] = {0: {"momentum_buffer": None}}
    ours = steprule.SGD([torch.nn.Parameter(torch.ones(4))], lr=0.1)
    ours.load_state_dict(saved)
    saved["param_groups"][0]["momentum"] = 0.9
    ours.load_state_dict(saved)


@pytest.mark.parametrize("settings", [{}, {"average": 0.5}], ids=["", "services"])
def test_a_state_of_the_users_own_is_loaded(settings):
    params, optimizer = trained(**settings)
    optimizer.state[params[0]]["note"] = torch.ones(2)
    optimizer.state["mine"] = 7
    fresh = make(**settings)[1]
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.state["mine"] == 7
    assert torch.equal(fresh.state[fresh.param_groups[0]["params"][0]]["note"], torch.ones(2))


@pytest.mark.parametrize("settings", [{}, {"states": "8bit"}, {"average": 0.9}], ids=["plain", "8bit", "average"])
def test_states_of_other_shapes_are_refused_at_loading(settings):
    saved = trained(shapes=((4, 96), (3,)), **settings)[1].state_dict()
    optimizer = trained(**settings)[1]
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"of parameter 0 of group 0 has the shape .*96.*, its parameter .*64"):
        optimizer.load_state_dict(saved)
    assert equal(everything(optimizer), before)


OF_OTHER_DTYPES = {
    "integers": ({}, "exp_avg", torch.int64, "state exp_avg of parameter 0 of group 0 is torch.int64"),
    "truths": ({}, "exp_avg_sq", torch.bool, "state exp_avg_sq of parameter 0 of group 0 is torch.bool"),
    "complex": ({}, "exp_avg", torch.complex64, "state exp_avg of parameter 0 of group 0 is torch.complex64"),
    "to 8bit": ({"states": "8bit"}, "exp_avg", torch.int64, "state exp_avg of parameter 0 of group 0 is torch.int64"),
    "average": ({"average": 0.9}, "param_average", torch.int32, "state param_average .* is torch.int32"),
}


@pytest.mark.parametrize(("settings", "name", "dtype", "problem"), OF_OTHER_DTYPES.values(), ids=OF_OTHER_DTYPES)
def test_states_of_dtypes_that_no_step_can_use_are_refused_at_loading(settings, name, dtype, problem):
    saved = trained(**{k: v for k, v in settings.items() if k == "average"})[1].state_dict()
    saved["state"] = {number: {**state} for number, state in saved["state"].items()}
    saved["state"][0][name] = saved["state"][0][name].to(dtype)
    params, optimizer = trained(**settings)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=problem):
        optimizer.load_state_dict(saved)
    assert equal(everything(optimizer), before)
    train(params, optimizer, 1)


def test_a_seed_that_was_not_saved_stays_what_it_is():
    saved = trained()[1].state_dict()
    optimizer = make(states="8bit", seed=7)[1]
    assert "seed" not in saved["param_groups"][0]
    optimizer.param_groups[0]["seed"] = 7
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["seed"] == 7


def test_a_state_that_takes_the_place_of_codes_is_read():
    params, optimizer = trained(states="8bit")
    optimizer.state[params[0]]["exp_avg"] = torch.zeros_like(params[0])
    assert not optimizer.read(params[0], "exp_avg").any()
    train(params, optimizer, 1)
    assert "exp_avg" not in optimizer.state[params[0]]
    assert float(optimizer.read(params[0], "exp_avg").abs().max()) < 0.5  # a tenth of a gradient


def test_codes_without_their_block_exponents_are_refused():
    saved = copy.deepcopy(trained(states="8bit")[1].state_dict())
    del saved["state"][0]["exp_avg_base"]
    with pytest.raises(ValueError, match="exp_avg_8bit of parameter 0 of group 0 is without exp_avg_base"):
        make(states="8bit")[1].load_state_dict(saved)


# 8 bits


@pytest.mark.parametrize("name", ["exp_avg_8bit", "exp_avg_base", "param_correction"])
def test_the_parts_that_a_state_is_kept_in_are_not_read_as_numbers(name):
    param = torch.nn.Parameter(torch.ones(4, 64, dtype=torch.bfloat16))
    optimizer = steprule.AdamW([param], states="8bit", weights="24bit")
    param.grad = torch.ones_like(param)
    optimizer.step()
    whole = name.rpartition("_")[0]
    assert name in optimizer.state[param]
    with pytest.raises(
        KeyError, match=rf"'{name}' is a part of '{whole}', and has no numbers of its own: read '{whole}'"
    ):
        optimizer.read(param, name)
    assert optimizer.read(param, whole).shape == (4, 64)


def test_codes_are_not_read_with_block_exponents_that_are_too_few():
    params, optimizer = trained(states="8bit")
    optimizer.state[params[0]]["exp_avg_base"] = optimizer.state[params[0]]["exp_avg_base"][:1]
    with pytest.raises(
        RuntimeError, match=r"the state exp_avg_base of the parameter of shape \(4, 64\) is torch\.int16"
    ):
        optimizer.read(params[0], "exp_avg")


def test_torch_optim_does_not_take_codes_for_numbers():
    _, optimizer = trained(states="8bit")
    assert {"exp_avg_8bit", "exp_avg_base"} < set(optimizer.state_dict()["state"][0])
    params, _ = make()
    its = torch.optim.AdamW(params)
    its.load_state_dict(optimizer.state_dict())
    with pytest.raises(KeyError, match="exp_avg"):
        train(params, its, 1)
    its = torch.optim.AdamW(params)
    its.load_state_dict(optimizer.plain_state_dict())
    assert list(its.state[params[0]]) == ["step", "exp_avg", "exp_avg_sq"]
    for param, own in zip(params, optimizer.param_groups[0]["params"], strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(its.state[param][name], optimizer.read(own, name))
    train(params, its, 1)


@pytest.mark.parametrize("name", ["SGD", "Muon"])
def test_torch_optim_does_not_begin_anew_in_silence_beside_codes(name):
    """Its classes with a momentum alone ask for none in a state dict, so they find one that no step can use."""
    if not hasattr(torch.optim, name):
        pytest.skip("this torch has no Muon")
    param = torch.nn.Parameter(torch.randn(4, 64))
    optimizer = getattr(steprule, name)([param], momentum=0.9, states="8bit")
    param.grad = torch.randn_like(param)
    optimizer.step()
    saved = optimizer.state_dict()
    assert "momentum_buffer" not in optimizer.state[param]
    ways = [{"foreach": False}, {"foreach": True}, {"fused": True}] if name == "SGD" else [{}]
    for flags in ways:
        its = getattr(torch.optim, name)([param], momentum=0.9)
        its.load_state_dict(saved)
        its.param_groups[0].update(flags)
        before = param.detach().clone()
        with pytest.raises((AttributeError, TypeError)):
            its.step()
        assert torch.equal(param, before)
        its.load_state_dict(optimizer.plain_state_dict())
        assert torch.equal(its.state[param]["momentum_buffer"], optimizer.read(param, "momentum_buffer"))
    file = io.BytesIO()
    torch.save(saved, file)
    for states in ("8bit", None):
        other = getattr(steprule, name)([param], momentum=0.9, states=states)
        other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        assert torch.equal(other.read(param, "momentum_buffer"), optimizer.read(param, "momentum_buffer"))


@pytest.mark.parametrize("suffix", ["8bit", "base", "correction"])
def test_a_state_may_not_be_called_as_anothers_codes_are(suffix):
    source = f"def update(param, grad, mean, mean_{suffix}, *, lr=0.1): return param - lr * grad, mean, mean_{suffix}"
    namespace: dict = {}
    exec(source, namespace)
    rule = type("Named", (steprule.Rule,), {"update": namespace["update"]})
    with pytest.raises(steprule.RuleError, match=f"'mean_{suffix}' is what an array of 'mean' may be called"):
        steprule.Optimizer.of(rule)


# Hooks


def with_extras(seed=0):
    settings = {"clip": 1.0, "nonfinite": "skip", "average": 0.5, "telemetry": Telemetry(every=1), "seed": seed}
    return make(steprule.SGD, **{**settings, "lr": lambda step: 0.1 / step})


def without(saved, *names):
    """A state dict whose groups have none of these."""
    groups = [{key: value for key, value in group.items() if key not in names} for group in saved["param_groups"]]
    return {**saved, "param_groups": groups}


def test_hooks_of_state_dict_see_and_move_all_of_it():
    params, optimizer = with_extras()
    train(params, optimizer, 3)
    plain = optimizer.state_dict()
    assert set(plain) == {"state", "param_groups"}
    assert all(group["services"]["steps"] == 3 and group["calls"] == 3 for group in plain["param_groups"])
    seen = []
    optimizer.register_state_dict_post_hook(lambda _, saved: seen.append(set(saved)))
    optimizer.register_state_dict_post_hook(lambda _, saved: {"mine": {**saved}}, prepend=True)
    assert equal(optimizer.state_dict(), {"mine": plain})
    assert seen == [{"mine"}]
    params, fresh = with_extras()
    fresh.register_load_state_dict_pre_hook(lambda _, saved: saved["mine"])
    after = []
    fresh.register_load_state_dict_post_hook(lambda it: after.append((calls(it), it.param_groups[0]["lr"])))
    fresh.load_state_dict(optimizer.state_dict())
    assert (
        calls(fresh) == 3
        and fresh._core.services.ledger.steps == 3
        and float(fresh.grad_norm) == float(optimizer.grad_norm)
    )
    assert after == [(3, 0.1 / 4)]


@pytest.mark.parametrize("when", ["pre", "post"])
def test_a_hook_of_loading_may_load_something_else(when):
    """As one that goes back to an earlier checkpoint; a pre-hook's is there before the one that it was called for is loaded."""
    first, second = (trained(steps=steps, lr=lr)[1].state_dict() for steps, lr in ((1, 0.1), (2, 0.2)))
    params, optimizer = make(states="float32", lr=lambda step: 0.5)
    seen = []

    def load_first(optimizer, *_):
        handle.remove()
        optimizer.load_state_dict(first)
        seen.append(int(optimizer.state[params[0]]["step"]))

    handle = getattr(optimizer, f"register_load_state_dict_{when}_hook")(load_first)
    count = []
    optimizer.register_load_state_dict_pre_hook(lambda *_: count.append(1))
    optimizer.load_state_dict(second)
    assert seen == [1] and int(optimizer.state[params[0]]["step"]) == (2 if when == "pre" else 1)
    assert optimizer.param_groups[0]["states"] == "float32" and len(count) == 2
    optimizer.load_state_dict(second)
    assert int(optimizer.state[params[0]]["step"]) == 2 and len(count) == 3
    train(params, optimizer, 1)


@pytest.mark.parametrize("within", ["outer", "inner"])
def test_a_load_that_fails_around_or_within_another_leaves_what_was_there(within):
    good, bad = trained(steps=2)[1].state_dict(), trained(steprule.Lion)[1].state_dict()
    params, optimizer = trained(steps=1)

    def load(optimizer, *_):
        handle.remove()
        optimizer.load_state_dict(bad if within == "inner" else good)

    handle = optimizer.register_load_state_dict_pre_hook(load)
    with pytest.raises(ValueError, match="not one of AdamW"):
        optimizer.load_state_dict(good if within == "inner" else bad)
    assert int(optimizer.state[params[0]]["step"]) == (1 if within == "inner" else 2)
    optimizer.load_state_dict(good)
    train(params, optimizer, 1)


def test_loading_reads_only_what_the_last_hook_has_given():
    params, optimizer = with_extras()
    train(params, optimizer, 3)
    _, fresh = with_extras()
    handle = fresh.register_load_state_dict_pre_hook(lambda _, saved: without(saved, "services", "calls"))
    fresh.load_state_dict(optimizer.state_dict())
    assert calls(fresh) == 0 and fresh._core.services.ledger.steps == 0
    assert fresh._core.services.ledger.averaged == 1  # without a step beside them
    handle.remove()


def test_hooks_of_schedule_free_see_and_move_whether_it_trains():
    _, optimizer = trained(steprule.ScheduleFreeSGD)
    optimizer.eval()
    optimizer.register_state_dict_post_hook(lambda _, saved: {"mine": {**saved}})
    assert optimizer.state_dict()["mine"]["param_groups"][0]["train_mode"] is False
    _, fresh = make(steprule.ScheduleFreeSGD)
    fresh.register_load_state_dict_pre_hook(lambda _, saved: saved["mine"])
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh._core.modes.training is False
    fresh.register_load_state_dict_pre_hook(lambda _, saved: without(saved, "train_mode"))
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh._core.modes.training is True


# Copies, and other processes


def test_a_copy_that_is_not_deep_shares_states():
    params, optimizer = trained()
    before = {name: x for name, x in optimizer.state[params[0]].items()}
    shallow = copy.copy(optimizer)
    assert shallow.state is optimizer.state
    assert all(optimizer.state[params[0]][name] is x for name, x in before.items())


def test_pickled_states_have_memory_of_their_own():
    _, optimizer = trained()
    other = pickle.loads(pickle.dumps(optimizer))
    before = everything(optimizer)
    train(other.param_groups[0]["params"], other, 1)
    assert equal(everything(optimizer), before)


def step_there(_, optimizers):
    torch.set_num_threads(1)
    for optimizer in optimizers:
        train(optimizer.param_groups[0]["params"], optimizer, 1, seed=5)


def test_workers_step_shared_states():
    """Started by spawn, to which the optimizers are pickled; the states' memory is not."""
    settings = {"AdamW": {}, "Adagrad": {}, "Adagrad 8bit": {"states": "8bit"}}
    pairs = [make(getattr(steprule, name.split()[0]), **one) for name, one in settings.items()]
    twins = [make(getattr(steprule, name.split()[0]), **one) for name, one in settings.items()]
    for params, optimizer in (pairs[0], twins[0]):  # Adagrad's states are there from the start
        train(params, optimizer, 1)
    for params, optimizer in pairs:
        for param in params:
            param.share_memory_()
            param.grad = None
        if isinstance(optimizer, steprule.Adagrad):
            optimizer.share_memory()
            assert all(x.is_shared() for p in params for name, x in optimizer.state[p].items() if name != "step")
    torch.multiprocessing.spawn(step_there, ([optimizer for _, optimizer in pairs],))
    for (params, optimizer), (twin_params, twin) in zip(pairs, twins, strict=True):
        train(twin_params, twin, 1, seed=5)
        for param, other in zip(params, twin_params, strict=True):
            assert torch.equal(param, other)
            assert equal(optimizer.state[param], twin.state[other])
        train(params, optimizer, 1, seed=6), train(twin_params, twin, 1, seed=6)
        assert all(map(torch.equal, params, twin_params))


MALFORMED = {
    "services": [7, "skip", None, [1.0]],
    "services['clipped']": [-1, 0.5, "2", None],
    "services['norm']": ["1.0", None, [1.0]],
    "services['recent']": [3.0, [1.0], torch.tensor(1.0)],
    "services['junk']": [1],
    "calls": [-1, 2.5, "3"],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, some in MALFORMED.items() for value in some])
def test_malformed_notes_are_refused_before_anything_changes(name, value):
    params, optimizer = trained(clip=1.0, nonfinite="skip", lr=lambda step: 0.1 / step)
    saved = copy.deepcopy(optimizer.state_dict())
    key, _, inner = name.partition("['")
    for group in saved["param_groups"]:
        group["weight_decay"] = 0.5
        if inner:
            group[key][inner.removesuffix("']")] = value
        else:
            group[key] = value
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"has {re.escape(name)}="):
        optimizer.load_state_dict(saved)
    assert equal(optimizer.state_dict(), before)
    train(params, optimizer, 1)


WRONG_STATES = {
    "a number that is none": ("Prodigy", {}, "d", "x"),
    "a list in place of a number": ("Prodigy", {}, "d", [1.0]),
    "no number": ("Prodigy", {}, "d", None),
    "a number without memory": ("AdamW", {}, "step", torch.tensor(3.0, device="meta")),
    "a tensor without memory": ("AdamW", {}, "exp_avg", torch.zeros(3, device="meta")),
    "a text in place of an average": ("AdamW", {"average": 0.9}, "param_average", "x"),
    "no state beside others": ("AdamW", {}, "exp_avg", None),
}


@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_state_that_cannot_be_taken_over_changes_nothing(wrong):
    """The last parameter's, after others have been looked at; the optimizer goes on as if nobody had tried."""
    name, settings, state, value = WRONG_STATES[wrong]
    _, other = trained(getattr(steprule, name), steps=3, **settings)
    saved = copy.deepcopy(other.state_dict())
    saved["state"][1][state] = value
    params, optimizer = trained(getattr(steprule, name), steps=1, **settings)
    before = everything(optimizer)
    with pytest.raises(ValueError, match="parameter 1 of group 0"):
        optimizer.load_state_dict(saved)
    assert equal(everything(optimizer), before)
    train(params, optimizer, 1)


@pytest.mark.parametrize("act", ["step", "read", "plain_state_dict", "swap_average", "load_state_dict", "eval"])
@pytest.mark.parametrize("value", ["text", 3.0, [0.0, 0.0, 0.0]], ids=["text", "number", "list"])
@pytest.mark.parametrize("name", ["z", "param_correction", "param_average"])
def test_a_state_that_is_no_tensor_is_named_by_whatever_reads_it(name, value, act):
    params, optimizer = trained(steprule.ScheduleFreeSGD, average=0.5)
    before = params[0].detach().clone()
    saved = optimizer.state_dict()
    optimizer.state[params[1]][name] = saved["state"][1][name] = value
    given = {"read": (params[1],), "load_state_dict": (saved,)}.get(act, ())
    with pytest.raises(
        (RuntimeError, ValueError), match=rf"the state {name} of .* is {re.escape(repr(value))} and must be a"
    ):
        getattr(optimizer, act)(*given)
    assert torch.equal(params[0].detach(), before)


def test_what_is_no_dict_of_states_is_refused_at_loading():
    _, optimizer = trained()
    saved = optimizer.state_dict()
    saved["state"][1] = "text"
    with pytest.raises(ValueError, match="the state of parameter 1 of group 0 is 'text' and must be a dict of states"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("cls", [steprule.AdamW, steprule.Lion], ids=["AdamW", "Lion"])
def test_a_step_that_is_none_is_none(cls):
    params, optimizer = trained(cls)
    optimizer.state[params[0]]["step"] = None
    with pytest.raises(RuntimeError, match=r"lacks step beside|the state step of parameter 0 of group 0 is None"):
        optimizer.step()


def test_an_average_that_was_not_saved_begins_anew():
    _, optimizer = trained(average=0.9)
    saved = optimizer.state_dict()
    saved["state"][1]["param_average"] = None
    params, other = trained(average=0.9, steps=1)
    other.load_state_dict(saved)
    before = params[1].detach().clone()
    train(params, other, 1)
    assert torch.allclose(other.read(params[1], "param_average"), before.lerp(params[1].detach(), 0.1))
