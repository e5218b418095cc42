"""State: what is saved, loaded and counted, so that a run that is resumed is the run."""

from __future__ import annotations

import copy
import importlib
import io
import itertools

import torch

from steprule.check.checks import Make, check, each, grad
from steprule.check.claims import Subject


@check("state")
def state_dict_has_torchs_form(make: Make) -> None:
    """state_dict() has "state" by numbers and "param_groups" with numbers of parameters."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    optimizer = make([p, q])
    for _ in range(3):
        p.grad, q.grad = grad(p), grad(q)
        optimizer.step()
    saved = optimizer.state_dict()
    assert {"state", "param_groups"} <= saved.keys() and saved["param_groups"][0]["params"] == [0, 1], f"{saved.keys()}"
    assert saved["state"].keys() <= {0, 1}, f'"state" has the keys {list(saved["state"])}, not numbers of parameters'


@check("state")
def resumes_exactly(make: Make) -> None:
    """A new optimizer that has loaded state_dict() goes on bit for bit."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    one = make([p], lr=0.01)
    for k in range(5):
        p.grad = grad(p, k)
        one.step()
    q = torch.nn.Parameter(p.detach().clone())
    (other := make([q], lr=0.01)).load_state_dict(copy.deepcopy(one.state_dict()))
    for k, (parameter, optimizer) in itertools.product(range(5, 8), ((p, one), (q, other))):
        torch.manual_seed(k)
        parameter.grad = grad(parameter, k)
        optimizer.step()
    assert torch.equal(p, q), "the run that was resumed goes on otherwise"


@check("state")
def resumes_from_a_file(make: Make) -> None:
    """torch.save and torch.load(weights_only=True) keep state_dict()."""
    one = make([p := torch.nn.Parameter(torch.ones(3, 4))], lr=0.01)
    for k in range(3):
        p.grad = grad(p, k)
        one.step()
    torch.save((one.state_dict(), p.detach()), file := io.BytesIO())
    saved, q = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    (other := make([q.requires_grad_()], lr=0.01)).load_state_dict(saved)
    for k, (parameter, optimizer) in itertools.product(range(3, 6), ((p, one), (q, other))):
        torch.manual_seed(k)
        parameter.grad = grad(parameter, k)
        optimizer.step()
    assert torch.equal(p, q), "the run that was resumed from a file goes on otherwise"


@check("state")
def resumes_parameters_without_states(make: Make) -> None:
    """A checkpoint in which a parameter has had no gradient so far is loaded, and this one begins later."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    one, other = make([p, q], lr=0.01), make([p, q], lr=0.01)
    for optimizer in (one, other):
        for k in range(3):
            p.grad, q.grad = grad(p, k), grad(q, k) if optimizer is other else None
            optimizer.step()
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert not torch.equal(q, torch.ones(3, 4)), "the parameter that begins later does not move"


@check("state")
def resumes_by_distributed_checkpoint(make: Make) -> None:
    """torch.distributed.checkpoint.state_dict's functions carry the states to a new optimizer."""
    dcp, one = importlib.import_module("torch.distributed.checkpoint.state_dict"), torch.nn.Linear(4, 3, bias=False)
    optimizer = make(one.parameters(), lr=0.01)
    for k in range(6):
        if k == 3:
            copied, saved = copy.deepcopy(one), copy.deepcopy(dcp.get_optimizer_state_dict(one, optimizer))
            dcp.set_optimizer_state_dict(copied, other := make(copied.parameters(), lr=0.01), saved)
        for model, its in [(one, optimizer)] + ([(copied, other)] if k >= 3 else []):
            torch.manual_seed(k)
            model.weight.grad = grad(model.weight, k)
            its.step()
    assert torch.equal(one.weight, copied.weight), "the run that was resumed goes on otherwise"


@check("state")
def loads_by_keyword(make: Make) -> None:
    """load_state_dict(state_dict=...) works, as torch.distributed.checkpoint calls it."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p])
    p.grad = grad(p)
    optimizer.step()
    make([p]).load_state_dict(state_dict=optimizer.state_dict())


@check("state", "copies_loaded")
def loads_without_sharing(make: Make) -> None:
    """What is loaded is copied: steps do not change the state_dict that they began from."""
    one, other = make([p := torch.nn.Parameter(torch.ones(3, 4))], lr=0.01), make([p], lr=0.01)
    for k, optimizer in enumerate((one, one, other)):
        if optimizer is other:
            other.load_state_dict(loaded := copy.deepcopy(one.state_dict()))
        p.grad = grad(p, k)
        optimizer.step()
    kept, now = ([x for x in d["state"].get(0, {}).values() if torch.is_tensor(x)] for d in (one.state_dict(), loaded))
    assert all(map(torch.equal, kept, now)), "steps after load_state_dict(loaded) write into loaded"


@check("state")
def restores_settings(make: Make) -> None:
    """load_state_dict sets the lr of each group to the checkpoint's."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    one, other = (make([{"params": [p]}, {"params": [q]}], lr=lr) for lr in (0.02, 0.01))
    p.grad, q.grad = grad(p), grad(q)
    one.step()
    one.param_groups[1]["lr"] = 0.03  # no step follows: with one estimate for all, some refuse two lrs
    other.load_state_dict(one.state_dict())
    assert (rates := [group["lr"] for group in other.param_groups]) == [0.02, 0.03], (
        f"the groups have lr {rates} after loading 0.02 and 0.03"
    )


@check("state")
def resumes_in_one_that_has_stepped(make: Make) -> None:
    """load_state_dict replaces all that an optimizer has kept of earlier steps."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    one, other = make([p], lr=0.01), make([q], lr=0.01)
    for k in range(6):
        if k == 3:
            q.data.copy_(p)
            other.load_state_dict(copy.deepcopy(one.state_dict()))
        for parameter, optimizer in ((p, one), (q, other)):
            torch.manual_seed(k)
            parameter.grad = grad(parameter, k + 7 * (k < 3 and parameter is q))
            optimizer.step()
    assert torch.equal(p, q), "what was kept of steps before load_state_dict has an effect after it"


@check("state")
def refuses_other_groups(make: Make) -> None:
    """The state_dict of another number of parameters is a ValueError."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    saved, refused = make([p, q]).state_dict(), False
    try:
        make([p]).load_state_dict(saved)
    except ValueError:
        refused = True
    assert refused, "the state_dict of two parameters is loaded for one"


@check("state", "bfloat16")
def keeps_dtypes_of_states(make: Make) -> None:
    """load_state_dict leaves states in the dtypes that they were saved in, also those of bfloat16 parameters."""
    p = torch.nn.Parameter(torch.ones(3, 4).bfloat16())
    one, other = make([p], lr=0.01), make([p], lr=0.01)
    p.grad = grad(p)
    one.step()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    before, after = ({k: getattr(x, "dtype", None) for k, x in o.state[p].items()} for o in (one, other))
    assert before == after, f"the dtypes are {before} before and {after} after"


def _counts(subject: Subject) -> list[dict[str, object]]:
    cases: list[dict[str, object]] = [{"dtype": torch.float32, "at": 2**24}]
    return cases + [{"dtype": torch.bfloat16, "at": 256}] * subject.claims.bfloat16


@check("state", cases=_counts)
def counts_on(make: Make, dtype: torch.dtype, at: int) -> None:
    """A count of steps goes on where its dtype has no next number."""
    optimizer = make([p := torch.nn.Parameter(torch.ones(3, 4, dtype=dtype))], lr=0.01)
    for k in range(2):
        for place in (one for one in (optimizer.state.get(p, {}), optimizer.param_groups[0]) if "step" in one):
            place["step"] = torch.full_like(place["step"], at) if torch.is_tensor(place["step"]) else at
        p.grad = grad(p, k)
        optimizer.step()
    steps = [one["step"] for one in (optimizer.state[p], optimizer.param_groups[0]) if one.get("step") is not None]
    assert all(int(step) == at + 1 for step in steps), f"the step after {at} is {int(steps[0])}"


@check("state")
def saving_changes_nothing(make: Make) -> None:
    """state_dict() in the middle of a run leaves the run as it is."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter in (p, q):
        optimizer = make([parameter], lr=0.01)
        for k in range(4):
            torch.manual_seed(k)
            parameter.grad = grad(parameter, k)
            optimizer.step()
            saved = optimizer.state_dict() if parameter is q else None
    assert torch.equal(p, q), f"a run that is saved goes on otherwise ({len(saved or {})} keys)"


@check("state", cases=each(lr=[0.0]))
def rests_at_lr_0(make: Make, lr: float) -> None:
    """Zero gradients at lr=0 change nothing, as torch.distributed.checkpoint steps to make states."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p])
    optimizer.param_groups[0]["lr"] = lr
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p, torch.ones(3, 4)), "a step at lr=0 with zero gradients moves the parameter"
