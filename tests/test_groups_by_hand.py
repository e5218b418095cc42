"""Parameter groups that someone has changed: their order, their settings, and functions of the step in them."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import warnings
import weakref

import pytest
import torch

import steprule
from steprule.services.gone import Gone


def third(step):
    return 1.0 / step


def half(step):
    return 0.5**step


def constant(step):
    return 0.3


FUNCTIONS = [third, half, constant]


def zeros(count=3):
    return [torch.zeros(2, requires_grad=True) for _ in range(count)]


def scheduled(params, **options):
    groups = [{"params": [param], "lr": function} for param, function in zip(params, FUNCTIONS, strict=True)]
    return steprule.SGD(groups, lr=9.0, **options)


def step(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    optimizer.step()


def distance(function, steps):
    """How far gradients of 1 have taken a parameter."""
    return -sum(function(step) for step in steps)


# Functions stay with their groups


def reverse(optimizer):
    optimizer.param_groups.reverse()
    return optimizer


def replace_the_list(optimizer):
    optimizer.param_groups = [dict(group) for group in reversed(optimizer.param_groups)]
    return optimizer


def take_out_and_put_last(optimizer):
    optimizer.param_groups.append(optimizer.param_groups.pop(0))
    return optimizer


def replace_the_params(optimizer):
    for group in optimizer.param_groups:
        group["params"] = list(group["params"])
    return reverse(optimizer)


def load(optimizer):
    reverse(optimizer)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    optimizer.load_state_dict(torch.load(saved, weights_only=True))
    return optimizer


CHANGES = {
    "reverse": reverse,
    "replace the list": replace_the_list,
    "pop and append": take_out_and_put_last,
    "other lists of parameters": replace_the_params,
    "load": load,
    "deepcopy": lambda optimizer: reverse(copy.deepcopy(optimizer)),
    "pickle": lambda optimizer: reverse(pickle.loads(pickle.dumps(optimizer))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_functions_stay_with_their_groups(change):
    optimizer = scheduled(zeros())
    params = [group["params"] for group in optimizer.param_groups]
    for _ in range(2):
        step(optimizer)
    optimizer = CHANGES[change](optimizer)
    order = [round(group["lr"], 3) for group in optimizer.param_groups]
    assert sorted(order) == sorted(round(function(3), 3) for function in FUNCTIONS)
    for _ in range(2):
        step(optimizer)
    now = [group["params"][0] for group in optimizer.param_groups]
    if change in ("deepcopy", "pickle"):
        now.reverse()
    else:
        now = [param for (param,) in params]
    for param, function in zip(now, FUNCTIONS, strict=True):
        assert param.tolist() == pytest.approx([distance(function, range(1, 5))] * 2)


def test_a_group_that_is_taken_out_takes_its_functions_along():
    params = zeros()
    optimizer = scheduled(params)
    step(optimizer)
    gone = optimizer.param_groups.pop(1)
    for _ in range(2):
        step(optimizer)
    assert [p[0].item() for p in params] == [pytest.approx(distance(f, s)) for f, s in zip(FUNCTIONS, [(1, 2, 3), (1,), (1, 2, 3)], strict=True)]  # fmt: skip
    optimizer.param_groups.append(gone)  # and is at the same step as the others when it comes back
    step(optimizer)
    assert params[1].tolist() == pytest.approx([distance(half, (1, 4))] * 2)


def test_a_group_that_is_appended_by_hand_is_like_one_that_is_added():
    first, second, copied = zeros()
    optimizer = steprule.SGD([first], lr=third, momentum=0.0, weight_decay=0.5)
    step(optimizer)
    optimizer.param_groups.append({"params": [second]})
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [copied]})
    step(optimizer)
    assert second.tolist() == copied.tolist() == pytest.approx([-0.5] * 2)
    group = {key: value for key, value in optimizer.param_groups[1].items() if key not in ("params", "schedules")}
    assert group == {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "schedules")}
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(1 / 3), 0.5)


def test_groups_may_be_taken_out_and_appended_with_a_tensor_as_parameters():
    first, second, _ = zeros()
    optimizer = steprule.SGD([first], lr=0.5)
    step(optimizer)
    kept = optimizer.param_groups.pop()
    step(optimizer)  # moves nothing, as torch.optim's
    assert first.tolist() == [-0.5] * 2
    second.grad = torch.ones(2)
    optimizer.param_groups += [kept, {"params": second}]
    optimizer.step()
    assert (first.tolist(), second.tolist()) == ([-1.0] * 2, [-0.5] * 2)


def test_a_function_may_be_put_into_a_group():
    (param,) = zeros(1)
    optimizer = steprule.SGD([param], lr=1.0)
    step(optimizer)
    optimizer.param_groups[0]["lr"] = half
    for _ in range(2):
        step(optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 / 8)
    assert param.tolist() == pytest.approx([-1.0 - 1.0 * half(1) - half(2)] * 2)


@pytest.mark.parametrize("how", ["in the group", "for all groups", "a generator", "of an optimizer"])
def test_groups_with_functions_serve_two_optimizers(how):
    """What someone has put into a dict is there after the first has taken it."""
    params = zeros()
    groups = [{"params": [param], "lr": function} for param, function in zip(params, FUNCTIONS, strict=True)]
    first, second = (steprule.SGD(groups, lr=9.0) for _ in range(2))
    if how == "for all groups":
        groups = [{"params": [param]} for param in params]
        first, second = (steprule.SGD(groups, lr=third) for _ in range(2))
    if how == "a generator":
        groups = [{"params": iter([param]), "lr": function} for param, function in zip(params, FUNCTIONS, strict=True)]
        first, second = (steprule.SGD(groups, lr=9.0) for _ in range(2))
    if how == "of an optimizer":
        steprule.SGD(first.param_groups, lr=0.1)
        second = first
    functions = [third] * 3 if how == "for all groups" else FUNCTIONS
    for number, optimizer in enumerate([first, second]):
        for param in params:
            param.data.zero_()
        for _ in range(3):
            step(optimizer)
        calls = range(4, 7) if how == "of an optimizer" and number else range(1, 4)
        for param, function in zip(params, functions, strict=True):
            torch.testing.assert_close(param[0].item(), distance(function, calls))


def test_a_group_without_functions_is_the_callers_dict():
    groups = [{"params": zeros(1)}]
    assert steprule.SGD(groups, lr=0.1).param_groups[0] is groups[0]


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("cls", [steprule.SGD, torch.optim.SGD], ids=["ours", "torch's"])
def test_a_setting_that_is_taken_out_is_missed(cls, steps):
    """By torch.optim too; the default was not what this group had."""
    (param,) = zeros(1)
    optimizer = cls([{"params": [param], "lr": 0.5}], lr=0.1, foreach=False)
    for _ in range(steps):
        step(optimizer)
    group, before = optimizer.param_groups[0], param.detach().clone()
    group["learning_rate"] = group.pop("lr") * 5
    with pytest.raises(KeyError, match="lr"):
        step(optimizer)
    assert torch.equal(param.detach(), before)
    group["lr"] = group.pop("learning_rate") / 10
    step(optimizer)
    assert torch.equal(param.detach(), before - 0.25)


def test_one_key_in_place_of_another_is_noticed():
    (param,) = zeros(1)
    optimizer = steprule.SGD([param], lr=0.1)
    step(optimizer)
    del optimizer.param_groups[0]["foreach"]
    optimizer.param_groups[0]["clip"] = 0.001
    with pytest.raises(ValueError, match=r"clip=0.001 in a parameter group"):
        step(optimizer)


def test_a_setting_that_was_not_saved_stays_as_it_is():
    params = zeros(2)
    optimizer = steprule.SGD([{"params": params[0], "lr": 0.5}, {"params": params[1]}], lr=0.25, momentum=0.5)
    saved = steprule.SGD([{"params": p} for p in zeros(2)], lr=0.1).state_dict()
    for group in saved["param_groups"]:
        del group["lr"]
    optimizer.load_state_dict(saved)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    assert [group["momentum"] for group in optimizer.param_groups] == [0, 0]


def test_groups_of_another_optimizer_bring_no_functions():
    params = zeros()
    old = scheduled(params)
    taken = [dict(group) for group in reversed(old.param_groups)]
    new = steprule.SGD([{**taken[0], "weight_decay": lambda step: 0.0}, *taken[1:]], lr=0.5)
    step(new)
    assert [group["lr"] for group in new.param_groups] == [0.3, 0.5, 1.0]


# What is written over a function


@pytest.mark.parametrize("own_step", [False, True], ids=["step", "a step of its own"])
def test_what_a_scheduler_writes_over_a_function_is_put_back_with_one_warning(own_step):
    class Own(steprule.SGD):
        def step(self, closure=None):
            return super().step(closure) if closure else super().step()

    (param,) = zeros(1)
    optimizer = (Own if own_step else steprule.SGD)([param], lr=third)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step(optimizer)  # at which the scheduler has written nothing else yet
    scheduler.step()
    with pytest.warns(UserWarning, match=r"lr of parameter group 0 is a function .* gave 0\.5, and 0\.25 was written") as seen:  # fmt: skip
        for _ in range(4):
            step(optimizer)
            scheduler.step()
    assert len(seen) == 1
    assert param.tolist() == pytest.approx([distance(third, range(1, 6))] * 2)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("functions", ["in the group", "for all groups"])
def test_a_function_ends_as_the_warning_says(steps, functions):
    (param,) = zeros(1)
    if functions == "for all groups":
        optimizer = steprule.SGD([param], lr=third)
    else:
        optimizer = steprule.SGD([{"params": [param], "lr": third}], lr=9.0)
    for _ in range(steps):
        step(optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.warns(UserWarning, match=r"del optimizer.param_groups\[0\]\['schedules'\] ends the functions"):
        step(optimizer)
    before = param[0].item()
    del optimizer.param_groups[0]["schedules"]
    optimizer.param_groups[0]["lr"] = 0.5
    for _ in range(3):
        step(optimizer)
    assert param[0].item() == pytest.approx(before - 1.5)
    fresh = steprule.SGD(zeros(1), lr=0.1)
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.param_groups[0]["lr"] == 0.5


def test_a_run_with_a_function_and_a_scheduler_resumes():
    def run(first, then):
        (param,) = zeros(1)
        saved = None
        for steps in (first, then):
            optimizer = steprule.SGD([param], lr=third, momentum=0.5)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 + epoch)
            if saved:
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            for _ in range(steps):
                step(optimizer)
                scheduler.step()
            saved = optimizer.state_dict(), scheduler.state_dict()
        return param

    with pytest.warns(UserWarning, match="The function wins"):
        assert run(6, 0).tolist() == run(2, 4).tolist()


def test_a_warning_that_is_an_error_leaves_the_function():
    (param,) = zeros(1)
    optimizer = steprule.SGD([param], lr=constant)
    step(optimizer)
    optimizer.param_groups[0]["lr"] = 7.0
    before = param.tolist()
    with pytest.raises(UserWarning, match=r"gave 0\.3, and 7\.0"):
        step(optimizer)
    assert param.tolist() == before
    step(optimizer)
    assert param.tolist() == pytest.approx([-0.6] * 2)


def test_released_gradients_are_stepped_by_the_function():
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = steprule.SGD(model.parameters(), lr=constant)
    optimizer.release_gradients(model)
    begin = model.weight.item()
    with pytest.warns(UserWarning, match=r"gave 0\.3, and 7\.0"):
        for _ in range(2):
            optimizer.param_groups[0]["lr"] = 7.0
            model(torch.ones(1, 1)).sum().backward()
            optimizer.step()
    assert model.weight.item() == pytest.approx(begin - 0.6)


# What is put into groups


def made(name="SGD", steps=1, **options):
    params = zeros(1)
    optimizer = getattr(steprule, name)(params, **{"lr": 0.5, **options})
    for _ in range(steps):
        step(optimizer)
    return optimizer, params[0]


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    "key, value",
    [("clip", 0.5), ("clip", None), ("average", 0.9), ("nonfinite", "skip"), ("telemetry", 1), ("grads", "24bit"),
     ("decay", "decoupled"), ("cautious", True), ("cautious_decay", True), ("lookahead", 5), ("lookahead_alpha", 0.5)],
)  # fmt: skip
def test_what_only_the_constructor_takes_is_refused_in_a_group(steps, key, value):
    optimizer, param = made(steps=steps)
    before = param.tolist()
    optimizer.param_groups[0][key] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{key}={value!r} in a parameter group: it is for the whole optimizer"):
            step(optimizer)
    assert param.tolist() == before
    del optimizer.param_groups[0][key]
    step(optimizer)
    assert param.tolist() != before


@pytest.mark.parametrize("key", ["clip", "initial_lr", "name", "swa_lr", "max_lr", "base_momentum"])
def test_other_keys_are_anyones(key):
    optimizer, param = made(steps=1)
    optimizer.param_groups[0][key] = False if key == "clip" else "value"
    step(optimizer)
    assert param.tolist() == [-1.0] * 2


SENSELESS = {
    "None": ("SGD", "lr", None, TypeError, "lr must be a number, not None"),
    "a string": ("SGD", "lr", "0.1", TypeError, "lr must be a number, not '0.1'"),
    "NaN": ("SGD", "lr", math.nan, ValueError, "Invalid learning rate: nan"),
    "infinity": ("SGD", "momentum", math.inf, ValueError, "Invalid momentum value: inf"),
    "two numbers": ("SGD", "lr", torch.ones(2), ValueError, "Tensor lr must be 1-element"),
    "NaN tensor": ("SGD", "lr", torch.tensor(math.nan), ValueError, "Invalid learning rate: nan"),
    "beta of 1": ("AdamW", "betas", (0.9, 1.0), ValueError, "Invalid beta parameter at index 1: 1.0"),
    "one beta": ("AdamW", "betas", (0.9,), TypeError, "betas must be a tuple of 2 numbers"),
    "negative eps": ("AdamW", "eps", -1e-8, ValueError, "Invalid epsilon value: -1e-08"),
    "no flag": ("AdamW", "amsgrad", "yes", TypeError, "amsgrad must be True or False, not 'yes'"),
    "maximize": ("SGD", "maximize", "yes", TypeError, "maximize must be True or False, not 'yes'"),
    "states": ("AdamW", "states", "7bit", ValueError, "Invalid states value: '7bit'"),
    "Lion uphill": ("Lion", "lr", -0.5, ValueError, "Invalid learning rate: -0.5"),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_what_means_nothing_is_refused_before_anything_changes(case):
    name, key, value, error, text = SENSELESS[case]
    optimizer, param = made(name)
    before, kept = param.tolist(), copy.deepcopy(optimizer.state_dict()["state"])
    old = optimizer.param_groups[0].get(key)
    optimizer.param_groups[0][key] = value
    for _ in range(2):
        with pytest.raises(error, match=text):
            step(optimizer)
    assert param.tolist() == before
    assert str(optimizer.state_dict()["state"]) == str(kept)
    optimizer.param_groups[0][key] = old
    step(optimizer)
    assert param.tolist() != before


@pytest.mark.parametrize(
    "name, key, value",
    [("SGD", "lr", -0.5), ("SGD", "lr", 0), ("SGD", "weight_decay", -0.1), ("SGD", "momentum", -0.5),
     ("SGD", "lr", torch.tensor(0.1)), ("AdamW", "betas", [0.5, 0.9]), ("AdamW", "lr", -0.5), ("SGD", "nesterov", True),
     ("Muon", "lr", -0.5), ("Adafactor", "lr", -0.5)],
    ids=str,
)  # fmt: skip
def test_what_torch_takes_is_taken(name, key, value):
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}, whose check of lr is steprule's own then")
    results = []
    for module in (steprule, torch.optim):
        param = torch.ones(2, 1, requires_grad=True)
        optimizer = getattr(module, name)([param], lr=0.5, **({"momentum": 0.9} if name == "SGD" else {}))
        step(optimizer)
        optimizer.param_groups[0][key] = value
        step(optimizer)
        results.append(param.tolist())
    rel = 1e-2 if name == "Muon" else 1e-4  # torch.optim's is in bfloat16
    assert torch.allclose(*map(torch.tensor, results), rtol=rel, atol=0)


# What must stay as it was


@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam"])
@pytest.mark.parametrize("how", ["step", "eval", "train"])
def test_schedule_free_refuses_another_momentum(name, how):
    optimizer, param = made(name, 8)
    if how == "train":
        optimizer.eval()
    key = "momentum" if name == "ScheduleFreeSGD" else "betas"
    old = optimizer.param_groups[0][key]
    optimizer.param_groups[0][key] = 0.8 if key == "momentum" else (0.8, *old[1:])
    before = param.tolist()
    with pytest.raises(ValueError, match=r"was changed from 0\.9 to 0\.8; .* average are mixed by it.*cycle_momentum=False"):  # fmt: skip
        step(optimizer) if how == "step" else getattr(optimizer, how)()
    assert param.tolist() == before
    optimizer.param_groups[0][key] = old
    step(optimizer) if how == "step" else getattr(optimizer, how)()
    assert param.tolist() != before


def held(**constants):
    """An optimizer whose rule needs these constant, and its parameter, after a step."""

    def update(param, grad, *, lr=0.1, first=1.0, second=2.0, betas=(0.9, 0.99), mode=None):
        return param - lr * first * second * betas[0] * betas[1] * grad

    made = steprule.Optimizer.of(type("Held", (steprule.Rule,), {"update": update, "constants": constants}))
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = made([param])
    step(optimizer)
    return optimizer, param


@pytest.mark.parametrize(
    ("constants", "changed", "told"),
    [
        (["betas"], {"betas": (0.9, 0.5)}, r"betas of group 0 was changed from \(0\.9, 0\.99\) to \(0\.9, 0\.5\)"),
        (["betas[1]"], {"betas": (0.9, 0.5)}, r"betas\[1\] of group 0 was changed from 0\.99 to 0\.5"),
        (["first", "second"], {"second": 1.0}, r"second of group 0 was changed from 2\.0 to 1\.0"),
        (["first", "second"], {"first": 2.0}, r"first of group 0 was changed from 1\.0 to 2\.0"),
        (["mode"], {"mode": "other"}, r"mode of group 0 was changed from None to other"),
    ],
    ids=["tuple", "element", "second", "first", "text"],
)
def test_each_constant_is_held_whole(constants, changed, told):
    optimizer, _ = held(**dict.fromkeys(constants, "as it says"))
    optimizer.param_groups[0] |= changed
    with pytest.raises(ValueError, match=rf"{told}; Held needs it constant: as it says"):
        step(optimizer)


def test_the_other_element_of_a_tuple_may_change():
    optimizer, param = held(**{"betas[0]": "as it says"})
    optimizer.param_groups[0]["betas"] = (0.9, 0.5)
    step(optimizer)
    with pytest.raises(ValueError, match="betas of Held cannot be a schedule: as it says"):
        type(optimizer)([param], betas=lambda step: (0.9, 0.5))


@pytest.mark.parametrize("copied", [False, True], ids=["", "copy"])
def test_a_scheduler_that_cycles_the_momentum_of_schedule_free_is_refused(copied):
    optimizer, _ = made("ScheduleFreeSGD", 0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=9)
    step(optimizer)  # it has written another one, before the weights and their average differ
    scheduler.step()
    optimizer = copy.deepcopy(optimizer) if copied else optimizer
    with pytest.raises(ValueError, match="momentum of group 0 was changed"):
        step(optimizer)


def test_prodigy_refuses_another_unit():
    optimizer, _ = made("Prodigy", 2)
    optimizer.param_groups[0]["d0"] = 1e-3
    with pytest.raises(ValueError, match=r"d0 of group 0 was changed from 1e-06 to 0\.001"):
        step(optimizer)
    with pytest.raises(ValueError, match="d0 of Prodigy cannot be a schedule: its sums are kept in units of it"):
        steprule.Prodigy(zeros(1), d0=lambda step: 1e-6)


def test_another_momentum_may_be_loaded():
    old, _ = made("ScheduleFreeSGD", 2, momentum=0.8)
    new, _ = made("ScheduleFreeSGD", 2)
    new.load_state_dict(old.state_dict())
    step(new)
    assert new.param_groups[0]["momentum"] == 0.8


def test_lookahead_in_a_group_is_a_number_of_steps():
    optimizer, param = made("AdamW", 2, lookahead=2)
    before = param.tolist()
    optimizer.param_groups[0]["lookahead"] = 2.5
    with pytest.raises(ValueError, match=r"Invalid lookahead value: 2\.5; it is a number of steps"):
        step(optimizer)
    assert param.tolist() == before
    optimizer.param_groups[0]["lookahead"] = 3
    step(optimizer)
    assert param.tolist() != before


# Parameters that change their groups


def to_the_next_group(groups):
    groups[1]["params"].insert(0, groups[0]["params"].pop())


def swap_two(groups):
    for index in (0, 1):
        one, other = groups[0]["params"], groups[1]["params"]
        one[index], other[index] = other[index], one[index]


def reverse_groups(groups):
    groups.reverse()


def copies_of_groups(groups):
    groups[:] = [dict(group) for group in reversed(groups)]


MOVES = {"to the next group": to_the_next_group, "swapped": swap_two, "reversed": reverse_groups, "copies": copies_of_groups}  # fmt: skip


def run_with(cls, change, released, appended=0):
    """Parameters after steps with gradients of 1, the groups changed in between, some of them appended meanwhile."""
    model = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(2)) for _ in range(4 + appended))
    params = list(model)
    groups = [{"params": params[:2], "lr": 1.0}, {"params": params[2:4], "lr": 16.0}]
    optimizer = cls(groups, lr=1.0, momentum=0.5)
    if released:
        optimizer.release_gradients(model)
    for number in range(6):
        if number == 2:
            optimizer.param_groups[0]["params"] += params[4:]
            change(optimizer.param_groups)
        optimizer.zero_grad()
        sum(param.sum() for param in params).backward()
        assert (
            not released
            or number == 2
            or all(isinstance(param.grad, Gone) for param in params[: 4 if number < 2 else None])
        )
        optimizer.step()
        assert not released or all(param.grad is None for param in params[: 4 if number < 2 else None])
    return [param.tolist() for param in params]


@pytest.mark.parametrize("released", [False, True], ids=["", "released"])
@pytest.mark.parametrize("move", MOVES)
def test_parameters_go_to_another_group(move, released):
    change = MOVES[move]
    assert run_with(steprule.SGD, change, released) == run_with(torch.optim.SGD, change, False)


@pytest.mark.parametrize("released", [False, True], ids=["", "released"])
def test_a_parameter_is_appended_to_a_group_in_place(released):
    for move in (lambda groups: None, swap_two):
        ours, its = (
            run_with(cls, move, on, appended=2) for cls, on in ((steprule.SGD, released), (torch.optim.SGD, False))
        )
        assert ours == its


def test_what_is_appended_in_place_is_checked():
    optimizer = steprule.AdamW(zeros(1), lr=0.5, states="bfloat16")
    step(optimizer)
    optimizer.param_groups[0]["params"].append(torch.zeros(2, dtype=torch.complex64, requires_grad=True))
    with pytest.raises(
        ValueError, match=r"states='bfloat16' does not take torch.complex64 \(parameter 1 of its group\)"
    ):
        step(optimizer)


def test_gradients_of_what_is_appended_in_place_are_summed_with_low_bits():
    first, second = (torch.zeros(2, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    optimizer = steprule.SGD([first], lr=1.0, grads="32bit")
    optimizer.param_groups[0]["params"].append(second)
    step(optimizer)
    optimizer.zero_grad()
    for share in (1.0, 2.0**-9, 2.0**-9):
        (second * share).sum().backward()
    wide = optimizer._core.accumulator.wide(second, second.grad)
    assert wide.tolist() == [1 + 2.0**-8] * 2


def test_a_parameter_without_a_name_may_join_those_that_have_one():
    model = torch.nn.Linear(2, 2)
    optimizer = steprule.SGD(model.named_parameters(), lr=0.5, telemetry=1)
    other = torch.zeros(2, requires_grad=True)
    optimizer.param_groups[0]["params"].append(other)
    step(optimizer)
    assert other.tolist() == [-0.5] * 2
    assert list(optimizer.telemetry.latest["parameters"]) == ["weight", "bias", "0.2"]
    optimizer.state[other]["momentum_buffer"] = torch.zeros(3)
    other.grad = torch.ones(2)
    optimizer.param_groups[0]["momentum"] = 0.5
    with pytest.raises(RuntimeError, match="of parameter 2 of group 0"):
        optimizer.step()


@pytest.mark.parametrize("index", [0, 1])
def test_sparse_adam_says_in_which_group_a_parameter_is_wrong(index):
    optimizer = steprule.SparseAdam([torch.zeros(2, 3, requires_grad=True)])
    wide = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    optimizer.param_groups.insert(index, {"params": [wide]})
    with pytest.raises(ValueError, match=rf"Complex params at indices \[\[{index}, 0\]\]"):
        optimizer.step()


# Parameters that are taken out


def test_a_released_parameter_that_is_taken_out_is_left_alone():
    model = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    first, second = model
    optimizer = steprule.SGD([{"params": [first]}, {"params": [second]}], lr=1.0)
    optimizer.release_gradients(model)

    def train():
        (first + second).sum().backward()
        optimizer.step()

    train()
    gone = optimizer.param_groups.pop()
    for count in (1, 2):
        train()
        assert second.tolist() == [-1.0] * 2
        assert second.grad.tolist() == [count] * 2
        optimizer.zero_grad()
    other = steprule.SGD([second], lr=2.0)  # it is nobody's, and may be another's
    second.grad = None
    other.step()
    second.grad = torch.ones(2)
    other.step()
    assert second.tolist() == [-3.0] * 2
    second.grad = None
    optimizer.param_groups.append(gone)
    train()
    train()
    assert second.tolist() == [-5.0] * 2 and second.grad is None and first.tolist() == [-5.0] * 2


@pytest.mark.parametrize("how", ["plain", "released", "summed", "constant"])
def test_what_is_taken_out_is_not_kept(how):
    model = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(2)) for name in "ab"})
    if how == "summed":
        model.bfloat16()
    cls = steprule.ScheduleFreeSGD if how == "constant" else steprule.SGD
    options = {"grads": "24bit"} if how == "summed" else {}
    optimizer = cls([{"params": [param]} for param in model.values()], lr=0.5, **options)
    if how == "released":
        optimizer.release_gradients(model)
    for number in range(3):
        sum(param.float().sum() for param in model.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if number == 0:
            gone = weakref.ref(model["b"])
            optimizer.param_groups.pop()
            optimizer.state.pop(model.pop("b"), None)
    gc.collect()
    assert gone() is None


# What must be the same in all groups, or is in none


def test_a_function_is_kept_where_something_else_is_wrong():
    optimizer, param = made(steps=1, momentum=0.0)
    group = optimizer.param_groups[0]
    group["lr"], group["momentum"] = half, None
    for _ in range(2):
        with pytest.raises(TypeError, match="momentum must be a number, not None"):
            step(optimizer)
    group["momentum"] = 0.0
    for _ in range(2):
        step(optimizer)
    assert param.tolist() == pytest.approx([-0.5 - half(1) - half(2)] * 2)


WRONG = {"a setting": ({"momentum": -1.0}, "Invalid momentum"), "parameters": ({"states": "8bit"}, "does not take")}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_function_is_kept_in_a_group_that_could_not_be_added(wrong):
    optimizer, _ = made(steps=1)
    settings, text = WRONG[wrong]
    (param,) = zeros(1)
    other = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    group = {"params": [param, other], "lr": half, **settings}
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group(group)
    assert group["lr"] is half and len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [param], "lr": group["lr"]})
    for _ in range(2):
        step(optimizer)
    assert param.tolist() == pytest.approx([distance(half, (1, 2))] * 2)


def test_formats_of_a_later_group_are_followed():
    first, second, _ = zeros()
    optimizer = steprule.AdamW([{"params": [first]}, {"params": [second]}], lr=0.5)
    step(optimizer)
    for name in ("bfloat16", "float32", "bfloat16"):
        optimizer.param_groups[1]["states"] = name
        step(optimizer)
        kept = [optimizer.state[param]["exp_avg"].dtype for param in (first, second)]
        assert kept == [torch.float32, getattr(torch, name)]


# Functions that fail


TABLE = [0.5, 0.25]
FAILING = {
    "a table that ends": (lambda step: TABLE[step - 1], IndexError, "out of range"),
    "below 0": (lambda step: [*TABLE, -1.0][step - 1], ValueError, r"Invalid learning rate: -1\.0"),
}


@pytest.mark.parametrize("released", [False, True], ids=["", "released"])
@pytest.mark.parametrize("case", FAILING)
def test_a_function_that_fails_says_so_before_the_step_that_it_is_for(case, released):
    function, error, text = FAILING[case]
    model = torch.nn.ParameterList(zeros(1))
    optimizer = steprule.SGD(model.parameters(), lr=function)
    if released:
        optimizer.release_gradients(model)

    def train():
        model[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    train(), train()
    assert model[0].tolist() == [-0.75] * 2
    for _ in range(2):
        with pytest.raises(error, match=text):
            train()
        assert model[0].tolist() == [-0.75] * 2
    resumed = steprule.SGD(zeros(1), lr=function)
    resumed.load_state_dict(optimizer.state_dict())  # which is no step
    with pytest.raises(error, match=text):
        step(resumed)


@pytest.mark.parametrize("key, value", [("weight_decay", -0.5), ("momentum", -0.5), ("nesterov", True)])
def test_a_function_and_what_torch_takes_go_together(key, value):
    ours, its = zeros(2)
    optimizer = steprule.SGD([ours], lr=half)
    other = torch.optim.SGD([its], lr=1.0)
    optimizer.param_groups[0][key] = other.param_groups[0][key] = value
    for number in range(1, 5):
        other.param_groups[0]["lr"] = half(number)
        step(optimizer), step(other)
    assert ours.tolist() == pytest.approx(its.tolist())


def test_functions_go_on_where_a_run_of_torch_stopped():
    its, ours = zeros(2)
    old = torch.optim.AdamW([its])
    for _ in range(3):
        step(old)
    optimizer = steprule.AdamW([ours], lr=third)
    optimizer.load_state_dict(old.state_dict())
    assert optimizer.param_groups[0]["lr"] == third(4)
    step(optimizer)
    assert optimizer.param_groups[0]["lr"] == third(5)


def test_a_key_that_may_be_a_misspelled_setting_is_told_once():
    param = torch.nn.Parameter(torch.ones(2))
    with pytest.warns(
        UserWarning, match=r"'weigth_decay' in a parameter group of AdamW is not a setting.*did you mean 'weight_decay'"
    ):
        optimizer = steprule.AdamW([{"params": [param], "weigth_decay": 0.0, "name": "head", "initial_lr": 0.1}])
    param.grad = torch.ones(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        optimizer.param_groups[0] |= {"lr_scale": 0.5, "max_lr": 0.1, "step": 3}
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "weigth_decay": 0.0})


def test_warnings_point_at_the_line_of_the_user():
    param, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    param.grad = torch.ones(2)
    with pytest.warns(UserWarning) as told:
        steprule.AdamW([{"params": [param], "weigth_decay": 0.0}])
        steprule.AdamW([param, param])
        optimizer = steprule.AdamW([param], lr=lambda step: 0.1)
        optimizer.add_param_group({"params": [other, other], "lr_mul": 2.0})
        optimizer.param_groups[0] |= {"eps_mul": 1.0, "lr": 0.5}
        optimizer.step()
        torch.amp.GradScaler("cpu", enabled=False).step(optimizer)
        optimizer.param_groups[0]["weight_decay_mul"] = 1.0
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        optimizer.step()
    assert len(told) >= 6
    assert {one.filename for one in told} == {__file__}


def test_formats_that_no_parameter_has_are_refused_in_groups_too():
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = steprule.AdamW([param])
    param.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]["weights"] = "24bit"
    with pytest.raises(
        ValueError, match="weights='24bit' is for bfloat16 and float16 parameters; these are all float32"
    ):
        optimizer.step()
    assert param.grad is not None and float(optimizer.state[param]["step"]) == 1.0


@pytest.mark.parametrize("given", ["a model", "its method"])
def test_a_model_is_not_its_parameters(given):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"params must be parameters, such as model\.parameters\(\), not"):
        steprule.AdamW(model if given == "a model" else model.parameters)


def test_what_torchs_class_has_fixed_cannot_be_changed():
    """torch.optim.AdamW would become Adam by it."""
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = steprule.AdamW([param])
    for _ in range(2):
        param.grad = torch.ones(2)
        optimizer.step()
    optimizer.param_groups[0]["decoupled_weight_decay"] = False
    with pytest.raises(ValueError, match="decoupled_weight_decay=False in a parameter group: with AdamW it is True"):
        optimizer.step()
    optimizer.param_groups[0]["decoupled_weight_decay"] = True
    optimizer.step()


# What goes together, where functions of the step give it


def test_a_function_is_checked_beside_the_settings_of_its_group():
    optimizer, param = made(momentum=0.9, nesterov=lambda step: True, steps=2)
    assert optimizer.param_groups[0]["nesterov"] is True
    optimizer, param = made(momentum=lambda step: 0.9 if step < 3 else 0.0, nesterov=True, steps=2)
    before = param.tolist()
    for _ in range(2):
        with pytest.raises(ValueError, match="Nesterov momentum requires a momentum"):
            step(optimizer)
    assert param.tolist() == before


@pytest.mark.parametrize("key, value", [("lr", -0.5), ("momentum", -0.5), ("weight_decay", -0.1)])
def test_what_is_put_beside_a_function_by_hand_is_as_ever(key, value):
    optimizer, param = made(momentum=0.9, nesterov=True, dampening=lambda step: 0.0)
    optimizer.param_groups[0][key] = value
    before = param.tolist()
    step(optimizer), step(optimizer)
    assert optimizer.param_groups[0][key] == value and param.tolist() != before


@pytest.mark.parametrize("is_copy", [True, False], ids=["a copy", "the group itself"])
def test_a_group_of_another_optimizer_that_is_appended_by_hand_follows_no_function(is_copy):
    params = zeros()
    first, other = (steprule.SGD(params[i : i + 1], lr=function) for i, function in enumerate((third, half)))
    step(first), step(other)
    group = other.param_groups[0]
    first.param_groups.append({**group, "params": params[2:]} if is_copy else group)
    given = group["lr"]
    for _ in range(2):
        step(first)
    assert [group["lr"] for group in first.param_groups] == [third(4), given]


def test_schedule_free_refuses_another_momentum_after_loading():
    old, _ = made("ScheduleFreeSGD", 2, momentum=0.8)
    new, param = made("ScheduleFreeSGD", 0)
    new.load_state_dict(old.state_dict())
    new.param_groups[0]["momentum"] = 0.9
    before = param.tolist()
    with pytest.raises(ValueError, match=r"momentum of group 0 was changed from 0\.8 to 0\.9"):
        step(new)
    assert param.tolist() == before


def test_another_function_may_take_a_functions_place():
    (param,) = zeros(1)
    optimizer = steprule.SGD([param], lr=third)
    step(optimizer)
    optimizer.param_groups[0]["lr"] = half
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            step(optimizer)
    assert param.tolist() == pytest.approx([-third(1) - half(2) - half(3)] * 2)


@pytest.mark.parametrize("value", [1.5, -0.5, math.nan])
def test_the_share_of_the_slow_copy_has_its_range_in_groups_of_torchs_rules(value):
    optimizer, param = made("SGD", 2, lookahead=2)
    before = param.tolist()
    optimizer.param_groups[0]["lookahead_alpha"] = value
    with pytest.raises(ValueError, match="Invalid lookahead_alpha value"):
        step(optimizer)
    assert param.tolist() == before
