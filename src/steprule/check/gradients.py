"""More manners: what a step does with gradients and parameters of all kinds."""

from __future__ import annotations

import torch

from steprule.check.checks import Make, check, each, grad
from steprule.check.claims import Subject


def _ways(subject: Subject) -> list[dict[str, object]]:
    """Nothing, decay and maximize, as far as there are such arguments."""
    ways: list[dict[str, object]] = [{}]
    ways += [{"weight_decay": 0.1}] * ("weight_decay" in subject.arguments)
    ways += [{"maximize": True}] * subject.claims.maximize
    return [{"settings": way} for way in ways]


@check("manners", cases=_ways)
def leaves_gradients_alone(make: Make, settings: dict[str, object]) -> None:
    """A step does not write into gradients."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p], **settings)
    for k in range(3):
        p.grad = grad(p, k)
        optimizer.step()
        assert p.grad is not None, "the gradient is None after a step"
        assert torch.equal(p.grad, grad(p, k)), f"step {k + 1} has changed the gradient"


@check("manners")
def keeps_no_gradient(make: Make) -> None:
    """What is written into a gradient after a step does not reach the states."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter, written in ((p, 0.0), (q, 7.0)):
        optimizer = make([parameter], lr=0.01)
        for k in range(3):
            torch.manual_seed(k)
            parameter.grad = given = grad(parameter, k)
            optimizer.step()
            given.fill_(written)
    assert torch.equal(p, q), "a state is the gradient itself: what is written into p.grad changes later steps"


@check("manners")
def skips_missing_gradients(make: Make) -> None:
    """A parameter without a gradient is left as it is, and others are stepped."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    optimizer = make([p, q], lr=0.01)
    for k in range(3):
        q.grad = grad(q, k)
        optimizer.step()
    assert torch.equal(p, torch.ones(3, 4)) and p.requires_grad, "a parameter without a gradient has changed"
    assert not torch.equal(q, torch.ones(3, 4)), "a parameter behind one without a gradient has not moved"


@check("manners")
def rests_while_a_gradient_is_missing(make: Make) -> None:
    """A parameter whose gradient is None again stays where it is."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    optimizer = make([p, q], lr=0.01)
    for k in range(3):
        p.grad, q.grad = grad(p, k), grad(q, k)
        optimizer.step()
    before, p.grad = p.detach().clone(), None
    optimizer.step()
    assert torch.equal(p, before), "a parameter whose gradient is None has moved"


@check("manners", "separate")
def keeps_states_while_a_gradient_is_missing(make: Make) -> None:
    """A parameter that has had no gradient in a step goes on as if that step had not been."""
    p, other, alone = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    one, two = make([p, other], lr=0.01), make([alone], lr=0.01)
    for k in range(6):
        p.grad, other.grad, alone.grad = grad(p, k) if k != 3 else None, grad(other, k), grad(alone, k)
        one.step()
        if k != 3:
            two.step()
    assert torch.allclose(p, alone, 1e-5, 1e-6), "after a step without a gradient, a parameter goes on otherwise"


@check("manners")
def steps_every_parameter(make: Make) -> None:
    """All of many parameters are stepped."""
    params = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(70)]
    optimizer = make(params, lr=0.01)
    for k in range(3):
        for p in params:
            p.grad = grad(p, k)
        optimizer.step()
    rests = [number for number, p in enumerate(params) if torch.equal(p, torch.ones(3, 4))]
    assert not rests, f"of 70 parameters those at {rests} do not move"


@check("manners", "elementwise")
def steps_every_element(make: Make) -> None:
    """All elements of a large parameter are stepped, also those behind whole blocks."""
    p = torch.nn.Parameter(torch.zeros(131, 129))
    optimizer = make([p], lr=0.01)
    for k in range(3):
        p.grad = grad(p, k)
        optimizer.step()
    rests = (p == 0).flatten().nonzero().flatten().tolist()
    assert not rests, f"{len(rests)} of {p.numel()} elements do not move, the first at {rests[0]}"


@check("manners")
def steps_without_any_gradient(make: Make) -> None:
    """A step without any gradient changes nothing."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    make([p]).step()
    assert torch.equal(p, torch.ones(3, 4)), "a step without gradients has moved a parameter"


@check("manners", "separate")
def counts_steps_of_each_parameter(make: Make) -> None:
    """A parameter whose first gradient comes late begins as others began."""
    p, late, alone = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    one, other = make([p, late], lr=0.01), make([alone], lr=0.01)
    for k in range(5):
        p.grad, late.grad = grad(p, k), grad(p, k) if k > 2 else None
        one.step()
    for k in (3, 4):
        alone.grad = grad(alone, k)
        other.step()
    assert torch.allclose(late, alone, 1e-5, 1e-6), "a gradient that begins at step 4 is not stepped as a first one"


@check("manners", "separate")
def steps_parameters_apart(make: Make) -> None:
    """What one parameter's gradient is changes no other parameter."""
    p, q, alone = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    one, other = make([p, q], lr=0.01), make([alone], lr=0.01)
    for k in range(3):
        p.grad, q.grad, alone.grad = 10**k * grad(p, k), grad(q, k), grad(q, k)
        one.step()
        other.step()
    assert torch.allclose(q, alone, 1e-5, 1e-6), "a parameter steps otherwise beside another one"


@check("manners")
def steps_strided_parameters(make: Make) -> None:
    """A parameter that is not contiguous is stepped in its place."""
    p, q = torch.nn.Parameter(torch.ones(4, 3).t()), torch.nn.Parameter(torch.ones(3, 4))
    for parameter in (p, q):
        optimizer = make([parameter], lr=0.01)
        for k in range(3):
            torch.manual_seed(k)
            parameter.grad = grad(q, k)
            optimizer.step()
    assert torch.allclose(p, q, 1e-5, 1e-6), "a transposed parameter is stepped otherwise"


@check("manners", cases=each(kind=["expanded", "transposed"]))
def takes_strided_gradients(make: Make, kind: str) -> None:
    """A gradient that is not contiguous, such as that of p.sum(), is one as others."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    made = torch.ones(()).expand(3, 4) if kind == "expanded" else grad(torch.ones(4, 3)).t()
    for parameter, given in ((p, made), (q, made.contiguous())):
        optimizer = make([parameter], lr=0.01)
        for k in range(3):
            torch.manual_seed(k)
            parameter.grad = given
            optimizer.step()
    assert torch.allclose(p, q, 1e-5, 1e-6), f"the {kind} gradient is taken as another"


@check("manners", "vectors", cases=each(shape=[(), (0,), (1,), (5,), (2, 3, 2), (0, 3)]))
def takes_any_shape(make: Make, shape: tuple[int, ...]) -> None:
    """Parameters of no, one and more dimensions, and empty ones, are stepped."""
    p = torch.nn.Parameter(torch.ones(shape))
    optimizer = make([p], lr=0.01)
    for k in range(3):
        p.grad = grad(p, k)
        optimizer.step()
    assert p.shape == torch.Size(shape) and bool(p.isfinite().all()), f"the parameter is {p}"
    assert p.numel() == 0 or not torch.equal(p, torch.ones(shape)), f"a parameter of shape {shape} does not move"


@check("manners")
def bumps_versions(make: Make) -> None:
    """backward() through what was computed before a step is refused, as the parameter has changed since."""
    p, refused = torch.nn.Parameter(torch.ones(3, 4)), False
    loss, optimizer = p.square().sum(), make([p], lr=0.01)
    for k in range(2):
        p.grad = grad(p, k)
        optimizer.step()
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError:
        refused = True
    assert refused, "autograd does not notice the step: backward() gives the gradient at the new parameter"


@check("manners")
def keeps_parameters_in_place(make: Make) -> None:
    """A parameter stays the same tensor in the same memory."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    address, optimizer = p.data_ptr(), make([p], lr=0.01)
    for k in range(3):
        p.grad = grad(p, k)
        optimizer.step()
    assert p.data_ptr() == address and p.requires_grad and p.is_leaf, "the parameter is in other memory, or no leaf"


@check("manners")
def holds_no_graph(make: Make) -> None:
    """States of gradients that have a graph, as after backward(create_graph=True), do not keep it."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p], lr=0.01)
    for _ in range(3):
        (p.grad,) = torch.autograd.grad(p.pow(3).sum(), p, create_graph=True)
        optimizer.step()
    held = [key for key, value in optimizer.state[p].items() if torch.is_tensor(value) and value.requires_grad]
    assert not held, f"the states {held} require gradients, and keep the graphs of all steps"


@check("manners", "bfloat16", "separate")
def mixes_dtypes(make: Make) -> None:
    """Parameters of two dtypes in one group are stepped as each alone."""
    a, b = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3, 4).bfloat16())
    c, optimizer = torch.nn.Parameter(torch.ones(3, 4).bfloat16()), make([a, b], lr=0.01)
    other = make([c], lr=0.01)
    for k in range(3):
        a.grad, b.grad, c.grad = grad(a, k), grad(b, k), grad(c, k)
        optimizer.step()
        other.step()
    assert a.dtype == torch.float32 and torch.allclose(b, c, 1e-2, 1e-2), "bfloat16 steps otherwise beside float32"


@check("manners", "maximize", cases=lambda subject: [{"more": way["settings"]} for way in _ways(subject)[:-1]])
def maximizes(make: Make, more: dict[str, object]) -> None:
    """maximize=True steps as the negated gradients do; decay stays as it is."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter, sign in ((p, 1), (q, -1)):
        optimizer = make([parameter], maximize=sign == 1, **more)
        for k in range(3):
            parameter.grad = sign * grad(parameter, k)
            optimizer.step()
    assert torch.allclose(p, q, 1e-6, 1e-7), "maximize=True is not a step with the negated gradient"


@check("manners", "sparse", "vectors")
def takes_sparse_gradients(make: Make) -> None:
    """A sparse gradient is taken, and two values of one row count as their sum."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    made = torch.sparse_coo_tensor(torch.tensor([[0, 2, 2]]), grad(p), (3, 4), check_invariants=False)
    for parameter, given in ((p, made), (q, made.coalesce())):
        parameter.grad = given
        make([parameter], lr=0.01).step()
    assert not torch.equal(p, torch.ones(3, 4)), "a sparse gradient moves nothing"
    assert torch.allclose(p, q, 1e-5, 1e-6), "two values of one row are not their sum"


@check("manners", "undeclared_sparse", "vectors")
def refuses_sparse_gradients(make: Make) -> None:
    """Sparse gradients that it does not claim to take are refused, or stepped as dense ones."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    p.grad = torch.sparse_coo_tensor(torch.tensor([[0, 2, 2]]), grad(p), (3, 4), check_invariants=False)
    q.grad, refused = p.grad.to_dense(), False
    try:
        make([p], lr=0.01).step()
        make([q], lr=0.01).step()
    except Exception:
        refused = True
    assert refused or torch.allclose(p, q, 1e-5, 1e-6), (
        "a sparse gradient is taken, and stepped otherwise than a dense one"
    )


@check("manners", "complex", "elementwise")
def steps_complex_parameters(make: Make) -> None:
    """A complex parameter is stepped as its real and imaginary parts."""
    p, q = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64)), torch.nn.Parameter(torch.tensor([[1.0, 0.0]] * 3))
    for parameter in (p, q):
        optimizer = make([parameter], lr=0.01)
        for k in range(3):
            parameter.grad = torch.view_as_complex(grad(q, k)) if parameter is p else grad(q, k)
            optimizer.step()
    assert torch.allclose(torch.view_as_real(p.detach()), q, 1e-5, 1e-6), (
        "real and imaginary parts are not stepped as reals"
    )
