"""Several optimizers as one: what torch.optim promises of an optimizer holds of them, and a step is taken by all or by none."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import steprule
from steprule import Together


def pair(second=steprule.SGD, first=steprule.SGD, **settings):
    """Two parameters with gradients, and an optimizer of one for each."""
    params = [nn.Parameter(torch.linspace(1, 2, 3)) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(3)
    return params, Together([first(params[:1], lr=0.1), second(params[1:], **settings)])


def averaged(together, param):
    together.optimizers[1].eval()


def not_a_number(together, param):
    param.grad[1] = float("nan")


def changed(together, param):
    together.param_groups[1]["lr"] = "x"


def another_shape(together, param):
    del param.grad
    param.data, param.grad = torch.ones(4), torch.ones(4)


def sparse(together, param):
    param.grad = torch.ones(3).to_sparse()


def failing(together, param):
    together.param_groups[1]["lr"] = lambda step: 1 / 0


def shared(together, param):
    param.data = together.param_groups[0]["params"][0].data
    together.optimizers[1].add_param_group({"params": [nn.Parameter(param.data)]})
    together.param_groups[2]["params"][0].grad = torch.ones(3)


def released(together, param):
    net = nn.Module()
    net.param = param
    taker = steprule.SGD([param])
    taker.release_gradients(net)
    param.grad = None
    return taker


REFUSED = {
    "eval mode": (averaged, "call train", {"second": steprule.ScheduleFreeSGD}),
    "a gradient that is not finite": (not_a_number, "not finite: parameter 0 of group 0", {"nonfinite": "raise"}),
    "a setting": (changed, "lr must be a number", {}),
    "a state of another shape": (another_shape, "exp_avg", {"second": steprule.AdamW}),
    "a sparse gradient": (sparse, "does not support sparse", {"second": steprule.AdamW}),
    "a function of the step": (failing, "division by zero", {}),
    "shared memory": (shared, "same memory", {}),
    "released by another": (released, "releases the gradients", {}),
}


def test_to_ask_for_a_state_makes_none():
    (param, _), together = pair()
    assert together.state.get(param) is None and not together.state


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(
    "case, begun",
    [(case, begun) for case in REFUSED for begun in (True, False) if begun or case != "a state of another shape"],
)
def test_a_step_is_taken_by_all_or_by_none(case, begun, nested):
    spoil, message, settings = REFUSED[case]
    (first, second), together = pair(**settings)
    if begun:
        together.step()
    stepped = Together([together.optimizers[0], Together(together.optimizers[1:])]) if nested else together
    alive = spoil(together, second)
    before = first.detach().clone(), repr(together.optimizers[0].state)
    with pytest.raises((RuntimeError, TypeError, ValueError, ZeroDivisionError), match=message):
        stepped.step()
    assert torch.equal(first, before[0]) and repr(together.optimizers[0].state) == before[1]
    del alive


def test_released_parameters_that_another_has_taken_over_are_noticed_before():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    together = Together([steprule.SGD(one.parameters(), lr=0.1) for one in net])
    together.optimizers[1].release_gradients(net)
    taker = steprule.SGD(net[1].parameters())
    taker.release_gradients(net)
    net(torch.ones(1, 2)).sum().backward()
    before = net[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="were taken over"):
        together.step()
    assert torch.equal(net[0].weight, before)


def test_summed_gradients_that_another_has_taken_over_are_noticed_before():
    params = [nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    together = Together([steprule.SGD([params[0]], lr=0.1), steprule.SGD([params[1]], lr=0.1, grads="24bit")])
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        together.step()
    taker = steprule.SGD([params[1]], lr=0.1, grads="24bit")
    before = params[0].detach().clone()
    with pytest.raises(RuntimeError, match="summed by another one"):
        together.step()
    assert torch.equal(params[0], before)
    del taker


@pytest.mark.parametrize("place", [0, 1])
def test_others_that_may_refuse_step_first(place):
    """A sparse gradient, which torch.optim.Adam finds at its step."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    made = [steprule.SGD([params[1]], lr=0.1)]
    made.insert(place, torch.optim.Adam([params[0]]))
    params[0].grad, params[1].grad = torch.ones(3).to_sparse(), torch.ones(3)
    with pytest.raises(RuntimeError, match="sparse"):
        Together(made).step()
    assert params[1].tolist() == [1, 1, 1]


def test_step_hooks_may_mend_what_would_be_refused():
    (_, second), together = pair(nonfinite="raise", lr=0.1)

    def mend(*_):
        second.grad.nan_to_num_(0.0)

    together.optimizers[1].register_step_pre_hook(mend)
    second.grad[1] = float("nan")
    together.step()
    assert second.grad.tolist() == [1, 0, 1]


def test_what_needs_a_closure_is_refused():
    with pytest.raises(TypeError, match=r"optimizers\[1\] is LBFGS, .* step it by itself"):
        pair(second=torch.optim.LBFGS)


def test_a_parameter_that_came_into_two_is_noticed_before_the_step():
    (first, second), together = pair()
    together.step()
    before = first.detach().clone()
    together.optimizers[0].add_param_group({"params": [second]})
    with pytest.raises(ValueError, match=r"in optimizers\[0\] and in optimizers\[1\]"):
        together.step()
    assert torch.equal(first, before)


def test_what_is_put_into_the_list_is_looked_at():
    _, together = pair()
    together.step()
    together.optimizers.append(torch.optim.LBFGS([torch.zeros(1)]))
    with pytest.raises(TypeError, match=r"optimizers\[2\] is LBFGS"):
        together.step()


def test_hooks_run_in_torchs_order():
    told = {}
    for kind in ("torch", "together"):
        _, optimizer = pair()
        optimizer = optimizer.optimizers[0] if kind == "torch" else optimizer
        seen = told[kind] = []
        for name in ("step_pre", "step_post", "state_dict_pre", "state_dict_post"):
            getattr(optimizer, f"register_{name}_hook")(
                lambda *args, name=name, seen=seen: seen.append((name, len(args)))
            )
        for name in ("load_state_dict_pre", "load_state_dict_post"):
            getattr(optimizer, f"register_{name}_hook")(
                lambda *args, name=name, seen=seen: seen.append((name, len(args)))
            )
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert told["together"] == told["torch"]
    assert len(told["torch"]) == 6


def test_hooks_may_change_state_dicts():
    _, together = pair()
    together.register_state_dict_post_hook(lambda _, saved: {**saved, "more": 1})
    together.register_load_state_dict_pre_hook(lambda _, saved: saved["inner"])
    saved = together.state_dict()
    assert saved.pop("more") == 1
    given = {"inner": {**saved, "param_groups": [{**group, "lr": 0.5} for group in saved["param_groups"]]}}
    together.load_state_dict(given)
    assert [group["lr"] for group in together.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("copied", ["made", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["param_groups", "state", "cuda_graph"])
def test_what_belongs_to_its_optimizers_cannot_be_replaced(name, copied):
    _, together = pair()
    if copied != "made":
        together = copy.deepcopy(together) if copied == "deepcopy" else pickle.loads(pickle.dumps(together))
    with pytest.raises(
        AttributeError, match=rf"the {name} of a Together belong to its optimizers: set optimizers\[0\]"
    ):
        setattr(together, name, getattr(together.optimizers[0], name))


def test_states_are_those_of_its_optimizers():
    (first, second), together = pair(second=steprule.AdamW)
    assert not together.state
    together.state[first]["mine"] = 1
    together.state[second] = {"step": torch.tensor(3.0)}
    assert together.optimizers[0].state[first] == {"mine": 1} and set(together.state) == {first, second}
    del together.state[second]
    assert second not in together.optimizers[1].state and second not in together.state and len(together.state) == 1
    with pytest.raises(KeyError, match=r"none of these optimizers has a parameter of shape \(2,\)"):
        together.state[torch.zeros(2)] = {}


def test_state_of_no_parameter_is_saved_and_loaded():
    _, together = pair(second=torch.optim.AdamW)
    for number, one in enumerate(together.optimizers):
        one.state["everywhere"] = {"seen": number}
    together.step()
    _, other = pair(second=torch.optim.AdamW)
    other.load_state_dict(copy.deepcopy(together.state_dict()))
    assert [one.state["everywhere"] for one in other.optimizers] == [{"seen": 0}, {"seen": 1}]
    assert repr(other.state_dict()) == repr(together.state_dict())
    with pytest.raises(ValueError, match="state of 'lost', which is the number of no parameter"):
        other.load_state_dict({**together.state_dict(), "state": {"lost": {}}})


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_alike(way):
    params, together = pair(second=steprule.ScheduleFreeAdamW, clip=0.5)
    together.step()
    others, copied = way((params, together))
    assert "state" not in vars(copied) and "param_groups" not in vars(copied)
    for own, one in ((params, together), (others, copied)):
        for param in own:
            param.grad = torch.arange(3.0)
        one.step()
    assert all(map(torch.equal, params, others))


def test_a_scaler_steps_all_or_none():
    (first, second), together = pair(second=steprule.AdamW, clip=1e-3, lr=0.1)
    (own, other), separate = pair(second=steprule.AdamW, clip=1e-3, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    for param in (first, second):
        param.grad = torch.full((3,), 4.0)
    scaler.step(together)
    scaler.update()
    separate.step()
    assert torch.equal(first, own) and torch.equal(second, other) and together.optimizers[1].clipped_steps == 1
    second.grad[0] = float("inf")
    scaler.step(together)
    scaler.update()
    assert torch.equal(first, own) and torch.equal(second, other) and scaler.get_scale() == 2.0


def test_asking_a_plan_that_turns_to_other_parameters_takes_no_step():
    """The last optimizer refuses; the one before has gradients of other parameters than last time."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(4)]
    first, middle = steprule.AdamW(params[:1]), steprule.AdamW(params[1:3])
    together = steprule.Together([first, middle, steprule.AdamW(params[3:], nonfinite="raise")])
    for chosen in (params, params[:2] + params[3:], params):
        for param in params:
            param.grad = torch.ones(3) if any(param is one for one in chosen) else None
        together.step()
    before = [param.detach().clone() for param in params]
    params[2].grad, params[3].grad = None, torch.tensor([1.0, math.nan, 1.0])
    with pytest.raises(RuntimeError, match="not finite"):
        together.step()
    assert all(torch.equal(param, one) for param, one in zip(params, before, strict=True))


def mend(together):
    """What a step of their own and hooks do to a gradient that a step refuses."""
    for group in together.param_groups:
        for param in group["params"]:
            param.grad.nan_to_num_(0.0)


class MendingSGD(steprule.SGD):
    def step(self, closure=None):
        mend(self)
        return super().step()


class MendingTogether(Together):
    def step(self, closure=None):
        mend(self)
        return super().step()


class MadeOfNothing(Together):
    """A class whose step is Together's, wrapped by torch.optim as it does where an instance of it is the first that is made."""

    step = torch.optim.Optimizer.profile_hook_step(Together.step)


@pytest.mark.parametrize("whose", ["an optimizer's step", "a Together's step", "a hook of a Together", "a hook of all"])
def test_what_may_mend_a_gradient_is_not_asked_before(whose):
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for param in params:
        param.grad = torch.tensor([1.0, math.nan, 1.0])
    params[0].grad = torch.ones(3)
    cls = MendingSGD if whose == "an optimizer's step" else steprule.SGD
    nested = MendingTogether if whose == "a Together's step" else Together
    inner = nested([cls([params[1]], lr=1.0, nonfinite="raise")])
    together = Together([steprule.SGD(params[:1], lr=1.0), inner])
    hooks = []
    if whose == "a hook of a Together":
        hooks = [inner.register_step_pre_hook(lambda one, *_: mend(one))]
    if whose == "a hook of all":
        hooks = [register_optimizer_step_pre_hook(lambda one, *_: mend(one) if isinstance(one, steprule.SGD) else None)]
        together, inner = Together(together.optimizers[:1] + inner.optimizers), together
    try:
        together.step()
    finally:
        for hook in hooks:
            hook.remove()
    assert [param.tolist() for param in params] == [[0.0] * 3, [0.0, 1.0, 0.0]]


def test_a_nested_step_of_its_own_comes_first():
    """If it refuses, nothing has changed."""

    class Refusing(Together):
        def step(self, closure=None):
            raise RuntimeError("not today")

    (first, _), together = pair(lr=0.1)
    before = first.tolist()
    with pytest.raises(RuntimeError, match="not today"):
        Together([together.optimizers[0], Refusing(together.optimizers[1:])]).step()
    assert first.tolist() == before


def test_a_nested_subclass_without_a_step_of_its_own_is_asked():
    (first, second), together = pair(lr=0.1, nonfinite="raise", first=torch.optim.SGD)
    stepped = Together([together.optimizers[0], MadeOfNothing(together.optimizers[1:])])
    second.grad[0], before = math.nan, first.tolist()
    with pytest.raises(RuntimeError, match="not finite"):
        stepped.step()
    assert first.tolist() == before


@pytest.mark.parametrize("settings", [{"clip": 1.0}, {"lr": 0.1}])
def test_settings_are_those_of_its_optimizers(settings):
    (name,) = settings
    with pytest.raises(
        TypeError, match=rf"Together got {name}=.*: it has no settings of its own. Give {name} to its optim"
    ):
        steprule.Together([steprule.SGD([torch.nn.Parameter(torch.ones(2))])], **settings)
