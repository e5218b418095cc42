"""Manners: what torch.optim.Optimizer's users rely on, whatever the formula is."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref

import torch

from steprule.check.checks import Make, check, each, grad, telling
from steprule.check.claims import Subject


@check("manners")
def takes_a_generator(make: Make) -> None:
    """Parameters may come from a generator, as model.parameters() is one."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make(one for one in [p])
    held = [one for group in optimizer.param_groups for one in group["params"]]
    assert len(held) == 1 and held[0] is p, "the parameter is in no group"


@check("manners")
def takes_named_parameters(make: Make) -> None:
    """Parameters may come with names, as model.named_parameters()."""
    model = torch.nn.Linear(4, 3, bias=False)
    optimizer = make(model.named_parameters())
    model.weight.grad = grad(model.weight)
    optimizer.step()
    assert optimizer.param_groups[0]["params"][0] is model.weight, "the parameter is in no group"


@check("manners")
def takes_groups(make: Make) -> None:
    """A group's lr is its own, as if it were given for all."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for optimizer in (make([{"params": [p], "lr": 0.02}], lr=0.01), make([q], lr=0.02)):
        for k in range(3):
            torch.manual_seed(k)
            optimizer.param_groups[0]["params"][0].grad = grad(p, k)
            optimizer.step()
    assert torch.equal(p, q), "an lr of a group is not what the same lr for all is"


def _settable(subject: Subject) -> list[dict[str, object]]:
    values = telling(subject, "lr", "betas", "eps", "weight_decay", "momentum", "alpha")
    known = subject.defaults or {"lr"}
    return [{"name": name, "value": value} for name, value in {"lr": 0.05, **values}.items() if name in known]


@check("manners", "separate", cases=_settable)
def groups_have_their_own_settings(make: Make, name: str, value: object) -> None:
    """A second group is stepped with its own lr, betas and so on."""
    a, b, c = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    one, other = make([{"params": [a]}, {"params": [b], name: value}]), make([c], **{name: value})
    for k in range(3):
        a.grad, b.grad, c.grad = grad(a, k), grad(b, k), grad(c, k)
        one.step()
        other.step()
    assert torch.allclose(b, c, 1e-5, 1e-6), f"the second group is not stepped with its own {name}"


@check("manners")
def refuses_unknown_arguments(make: Make) -> None:
    """An argument that there is not is a TypeError."""
    refused = False
    try:
        make([torch.nn.Parameter(torch.ones(3, 4))], no_such_argument=1)
    except TypeError:
        refused = True
    assert refused, "no_such_argument=1 is accepted"


@check("manners")
def refuses_a_negative_lr(make: Make) -> None:
    """lr=-1.0 is refused."""
    refused = False
    try:
        make([torch.nn.Parameter(torch.ones(3, 4))], lr=-1.0)
    except Exception:
        refused = True
    assert refused, "lr=-1.0 is accepted"


@check("manners")
def refuses_no_parameters(make: Make) -> None:
    """An empty list of parameters is a ValueError."""
    refused = False
    try:
        make([])
    except ValueError:
        refused = True
    assert refused, "no parameters are accepted"


@check("manners")
def refuses_a_bare_tensor(make: Make) -> None:
    """A tensor in place of a list of tensors is a TypeError."""
    refused = False
    try:
        make(torch.nn.Parameter(torch.ones(3, 4)))
    except TypeError:
        refused = True
    assert refused, "a tensor is taken as a list of its rows"


@check("manners")
def refuses_a_parameter_in_two_groups(make: Make) -> None:
    """A parameter in two groups is a ValueError."""
    p, refused = torch.nn.Parameter(torch.ones(3, 4)), False
    try:
        make([{"params": [p]}, {"params": [p]}])
    except ValueError:
        refused = True
    assert refused, "one parameter in two groups is accepted"


@check("manners")
def has_lr_in_its_groups(make: Make) -> None:
    """Every group has an "lr", which schedulers write."""
    optimizer = make([torch.nn.Parameter(torch.ones(3, 4))], lr=0.01)
    assert optimizer.param_groups[0].get("lr") == 0.01, f"the group has lr {optimizer.param_groups[0].get('lr')}"


@check("manners")
def moves_at_the_first_step(make: Make) -> None:
    """The first step with a gradient moves the parameter."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    p.grad = grad(p)
    make([p], lr=0.01).step()
    assert not torch.equal(p, torch.ones(3, 4)), "the first step changes nothing"


@check("manners")
def calls_the_closure_once(make: Make) -> None:
    """step(closure) calls the closure once."""
    p, calls = torch.nn.Parameter(torch.ones(3, 4)), []

    def closure() -> torch.Tensor:
        p.grad = grad(p)
        calls.append(1)
        return p.detach().sum()

    make([p]).step(closure)
    assert len(calls) == 1, f"the closure is called {len(calls)} times"


@check("manners")
def steps_by_the_closures_gradients(make: Make) -> None:
    """step(closure) steps by the gradients that the closure has made, not by those before."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter in (p, q):
        optimizer = make([parameter], lr=0.01)
        for k in range(3):
            torch.manual_seed(k)
            parameter.grad = grad(parameter, k + int(parameter is p))
            optimizer.step((lambda k=k: setattr(p, "grad", grad(p, k))) if parameter is p else None)
    assert torch.allclose(p, q, 1e-5, 1e-6), "other gradients are stepped by than those of the closure"


@check("manners")
def returns_the_loss(make: Make) -> None:
    """step(closure) returns what the closure does, and step() returns None."""
    p, loss = torch.nn.Parameter(torch.ones(3, 4)), torch.tensor(2.0)
    p.grad = grad(p)
    optimizer = make([p])
    returned = optimizer.step(lambda: loss)
    assert returned is not None and float(returned) == 2.0, f"step returns {returned!r}, the closure 2.0"
    assert optimizer.step() is None, "step() returns something"


@check("manners")
def gives_gradients_to_the_closure(make: Make) -> None:
    """The closure may call backward(): gradients are enabled in it."""
    p, enabled = torch.nn.Parameter(torch.ones(3, 4)), []
    p.grad = grad(p)
    make([p]).step(lambda: enabled.append(torch.is_grad_enabled()))
    assert all(enabled) and enabled, "torch.is_grad_enabled() is False in the closure"


@check("manners")
def keeps_the_grad_mode(make: Make) -> None:
    """Gradients are enabled after a step whose closure raises."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    with contextlib.suppress(ZeroDivisionError):
        make([p]).step(lambda: 1 / 0)
    assert torch.is_grad_enabled(), "gradients stay disabled after a closure has raised"


@check("manners")
def runs_hooks_once(make: Make) -> None:
    """Hooks before and after a step run once a step."""
    p, ran = torch.nn.Parameter(torch.ones(3, 4)), []
    p.grad = grad(p)
    optimizer = make([p])
    optimizer.register_step_pre_hook(lambda *_: ran.append("pre"))
    optimizer.register_step_post_hook(lambda *_: ran.append("post"))
    optimizer.step()
    assert ran == ["pre", "post"], f"the hooks run as {ran}"


@check("manners")
def can_be_copied(make: Make) -> None:
    """A deepcopy of parameters and optimizer steps on as they do."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p], lr=0.01)
    for k in range(3):
        p.grad = grad(p, k)
        optimizer.step()
    q, other = copy.deepcopy((p, optimizer))
    for parameter, stepped in ((p, optimizer), (q, other)):
        torch.manual_seed(1)
        parameter.grad = grad(parameter, 3)
        stepped.step()
    assert q is not p and torch.equal(p, q), "the copy steps otherwise"


@check("manners")
def can_be_pickled(make: Make) -> None:
    """A pickled copy of parameters and optimizer steps on as they do."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p], lr=0.01)
    for k in range(3):
        p.grad = grad(p, k)
        optimizer.step()
    q, other = pickle.loads(pickle.dumps((p, optimizer)))
    for parameter, stepped in ((p, optimizer), (q, other)):
        torch.manual_seed(1)
        parameter.grad = grad(parameter, 3)
        stepped.step()
    assert torch.equal(p, q), "the copy steps otherwise"


@check("manners", cases=_settable)
def reads_settings_each_step(make: Make, name: str, value: object) -> None:
    """A setting that is written into a group before a step holds for this step."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    one, other = make([p], **{name: value}), make([q])
    other.param_groups[0][name] = value
    for parameter, optimizer, k in [(p, one, 0), (p, one, 1), (q, other, 0), (q, other, 1)]:
        torch.manual_seed(k)
        parameter.grad = grad(parameter, k)
        optimizer.step()
    assert torch.allclose(p, q, 1e-6, 1e-7), f"param_groups[0][{name!r}] = {value} is ignored"


@check("manners")
def follows_a_changed_lr(make: Make) -> None:
    """A step takes the lr that its group has by then, not the first one."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter, second in ((p, 0.01), (q, 0.04)):
        optimizer = make([parameter], lr=0.01)
        for k, lr in enumerate((0.01, second, second)):
            torch.manual_seed(k)
            optimizer.param_groups[0]["lr"], parameter.grad = lr, grad(p, k)
            optimizer.step()
    assert not torch.equal(p, q), "lr of 0.01 and of 0.04 from the second step on give the same"


@check("manners")
def takes_one_cycle(make: Make) -> None:
    """OneCycleLR sets lr and what it cycles beside it, and steps go on."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p], lr=0.01)
    cycled = "betas" in optimizer.defaults or "momentum" in optimizer.defaults
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6, cycle_momentum=cycled)
    for k in range(5):
        p.grad = grad(p, k)
        optimizer.step()
        scheduler.step()
    assert bool(p.isfinite().all()), "a parameter is not finite"


@check("manners")
def adds_a_group_midway(make: Make) -> None:
    """add_param_group after two steps: the new parameters are stepped, too."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    optimizer = make([p], lr=0.01)
    for k in range(5):
        if k == 2:
            optimizer.add_param_group({"params": [q]})
        p.grad, q.grad = grad(p, k), grad(q, k)
        optimizer.step()
    assert not torch.equal(q, torch.ones(3, 4)), "a parameter that is added after two steps does not move"


@check("manners")
def skips_overflow_under_grad_scaler(make: Make) -> None:
    """GradScaler: a step with infinite gradients is skipped, and the next one is taken."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer, scaler = make([p], lr=0.01), torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (float("inf"), 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale((p * grad(p)).sum() * factor).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        assert factor == 1.0 or torch.equal(p, torch.ones(3, 4)), "a step with infinite gradients is taken"
        scaler.update()
    assert bool(p.isfinite().all()) and not torch.equal(p, torch.ones(3, 4)), "the steps after it are not taken"


@check("manners")
def unscales_under_grad_scaler(make: Make) -> None:
    """GradScaler: scaled gradients give the steps of the gradients."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    scaled, plain = make([p], lr=0.01), make([q], lr=0.01)
    for k in range(3):
        p.grad, q.grad = grad(p, k) * scaler.scale(torch.ones(())), grad(q, k)
        torch.manual_seed(k)
        scaler.step(scaled)
        scaler.update()
        torch.manual_seed(k)
        plain.step()
    assert torch.allclose(p, q, 1e-5, 1e-6), "scaled gradients do not give the steps of the gradients"


@check("manners")
def repeats_itself(make: Make) -> None:
    """The same seed and gradients give the same bits."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter in (p, q):
        torch.manual_seed(0)
        optimizer = make([parameter], lr=0.01)
        for k in range(4):
            parameter.grad = grad(parameter, k)
            optimizer.step()
    assert torch.equal(p, q), "two equal runs differ"


@check("manners")
def does_not_seed(make: Make) -> None:
    """A step may draw from torch's random numbers, and does not set where they begin."""
    p, drawn = torch.nn.Parameter(torch.ones(3, 4)), []
    optimizer = make([p], lr=0.01)
    for seed in range(3):
        p.grad = grad(p, seed)
        torch.manual_seed(seed)
        optimizer.step()
        drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == 3, f"after a step, random numbers are the same whatever the seed: {drawn}"


@check("manners")
def keeps_instances_apart(make: Make) -> None:
    """Two optimizers that step in turn step as they do alone."""
    p, q, alone = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    one, other, third = make([p], lr=0.01), make([q], lr=0.03), make([alone], lr=0.01)
    for parameter, optimizer in ((p, one), (q, other)) * 3 + ((alone, third),) * 3:
        torch.manual_seed(0)
        parameter.grad = grad(parameter, int(parameter is q))
        optimizer.step()
    assert torch.equal(p, alone), "another optimizer's steps change this one's"


@check("manners")
def is_freed(make: Make) -> None:
    """An optimizer that nobody holds any more is freed, with its parameters."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    p.grad, held = grad(p), weakref.ref(p)
    make([p]).step()
    del p
    for generation in (0, 1, 2):
        if held() is not None:
            gc.collect(generation)
    assert held() is None, "the parameter is still in memory"


@check("manners", cases=each(arguments=[{}, {"set_to_none": False}]))
def clears_gradients(make: Make, arguments: dict[str, bool]) -> None:
    """zero_grad() sets gradients to None, and zero_grad(set_to_none=False) to 0."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    p.grad, optimizer = grad(p), make([p])
    optimizer.zero_grad(**arguments)
    assert (p.grad is None) if not arguments else (p.grad is not None and not p.grad.any()), f"the gradient is {p.grad}"


@check("manners", "tensor_lr")
def takes_a_tensor_as_lr(make: Make) -> None:
    """A tensor as lr steps as its number does."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter, lr in ((p, torch.tensor(0.01)), (q, 0.01)):
        optimizer = make([parameter], lr=lr)
        for k in range(3):
            parameter.grad = grad(parameter, k)
            optimizer.step()
    assert torch.allclose(p, q, 1e-5, 1e-6), "lr=torch.tensor(0.01) is not lr=0.01"
