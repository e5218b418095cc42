"""Numbers: whether a step is what it is said to be."""

from __future__ import annotations

import copy
import itertools

import torch

from steprule.check.checks import Make, check, each, grad, telling
from steprule.check.claims import Subject
from steprule.check.reference import argument_cases, drop_in_class, formula_cases
from steprule.check.variants import explained


@check("numbers", "reference", cases=formula_cases, explain=explained)
def follows_its_formula(
    make: Make, with_what: str, settings: dict[str, object], expected: list[float], within: float
) -> None:
    """Twelve steps are those of the formula in float64, within float32's rounding."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    optimizer = make([p], **settings)
    for k in range(12):
        p.grad = grad(p, k)
        optimizer.step()
    off = float((p.detach().double().flatten() - torch.tensor(expected).double()).abs().max())
    assert off <= within, f"after twelve steps {with_what} it is off by {off:.2g}"


@check("numbers", "drop_in_for", cases=argument_cases)
def takes_the_arguments_of(make: Make, arguments: dict[str, object]) -> None:
    """Each argument of the class that it replaces is one of its own, with the same default."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    defaults = make([p], **arguments).defaults
    other = {key: (defaults.get(key), value) for key, value in arguments.items() if defaults.get(key) != value}
    assert not other, f"defaults[...] is {other}: its own, and the class's"


def _theirs(subject: Subject) -> list[dict[str, object]]:
    return [{"theirs": drop_in_class(subject), "within": max(1e-5, subject.claims.accuracy)}]


@check("numbers", "drop_in_for", cases=_theirs)
def loads_checkpoints_of(make: Make, theirs: type[torch.optim.Optimizer], within: float) -> None:
    """A checkpoint of the class that it replaces is loaded, and the run goes on as that one's."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    one = theirs([p], lr=0.01)  # type: ignore[call-arg]
    for k in range(3):
        p.grad = grad(p, k)
        one.step()
    q = torch.nn.Parameter(p.detach().clone())
    (other := make([q], lr=0.01)).load_state_dict(copy.deepcopy(one.state_dict()))
    for k, (parameter, optimizer) in itertools.product(range(3, 6), ((p, one), (q, other))):
        parameter.grad = grad(parameter, k)
        optimizer.step()
    assert torch.allclose(p, q, within, 1e-6), "the run goes on otherwise than with the class whose checkpoint it is"


def _arguments(subject: Subject) -> list[dict[str, object]]:
    """Numbers that may be something else; those of which a default switches others off have these on."""
    given = telling(subject)
    dtypes = [torch.float32, torch.float64][: 1 + subject.claims.float64]
    found: list[dict[str, object]] = []
    for name, value in given.items():
        for index in range(len(value) if isinstance(value, tuple) else 1):
            other = (
                value * (100 if name == "eps" else 0.5)
                if not isinstance(value, tuple)
                else value[:index] + (0.6,) + value[index + 1 :]
            )
            shown = name if not isinstance(value, tuple) else f"{name}[{index}]"
            found.append({"name": shown, "one": given, "other": {**given, name: other}, "dtypes": dtypes})
    return found


@check("numbers", cases=_arguments)
def uses_every_argument(
    make: Make, name: str, one: dict[str, object], other: dict[str, object], dtypes: list[torch.dtype]
) -> None:
    """lr, betas, eps, momentum and weight_decay have an effect."""
    params = [torch.nn.Parameter(torch.ones(3, 4, dtype=dtype)) for dtype in dtypes for _ in range(2)]
    for parameter, settings in zip(params, (one, other) * len(dtypes), strict=True):
        optimizer = make([parameter], **settings)
        for k in range(8):
            torch.manual_seed(k)
            parameter.grad = grad(parameter, k)
            optimizer.step()
    assert not all(map(torch.equal, params[::2], params[1::2])), f"{name} has no effect"


def _decays(subject: Subject) -> list[dict[str, object]]:
    settings = telling(subject)
    rate, lr = settings.pop("weight_decay", None), settings.get("lr", subject.settings.get("lr"))
    return [{"kind": subject.claims.decay, "rate": rate, "lr": lr, "settings": settings}] if rate and lr else []


@check("numbers", "decay", cases=_decays)
def decays_as_claimed(make: Make, kind: str, rate: float, lr: float, settings: dict[str, object]) -> None:
    """weight_decay is what is claimed: added to the gradient, times lr, or independent of lr."""
    p, q, r = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(3))
    for parameter, decay, added in ((p, rate, 0.0), (q, 0.0, 0.0), (r, 0.0, rate)):
        parameter.grad = grad(parameter) + added * parameter.detach()
        make([parameter], weight_decay=decay, **settings).step()
    start = torch.linspace(-1, 1, 12).view(3, 4)
    made = {"coupled": r, "decoupled": q - lr * rate * start, "independent": q - rate * start}
    found = [name for name, value in made.items() if torch.allclose(p, value, 1e-5, 1e-5)]
    assert kind in found, (
        f"weight_decay is {' or '.join(found) or 'none of coupled, decoupled, independent'}, not {kind}"
    )


def _without_decay(subject: Subject) -> list[dict[str, object]]:
    known = "weight_decay" in subject.arguments or "weight_decay" in subject.defaults
    return [{"settings": {"weight_decay": 0.0} if known else {}}]


@check("numbers", cases=_without_decay)
def rests_at_zero_gradients(make: Make, settings: dict[str, float]) -> None:
    """Without decay, gradients of 0 from the first step on change nothing."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p], **settings)
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    moved = f"zero gradients make the parameter {p.flatten()[0].item()}; if it decays by default, give settings without"
    assert torch.equal(p, torch.ones(3, 4)), moved


@check("numbers", cases=each(scale=[1e-20, 1e-10, 1e10, 1e20]))
def stays_finite(make: Make, scale: float) -> None:
    """Gradients of any size that float32 has leave parameters finite."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = make([p], lr=0.001)
    for k in range(3):
        p.grad = grad(p, k) * scale
        optimizer.step()
    assert bool(p.isfinite().all()), f"gradients around {scale} make a parameter {p[~p.isfinite()][0].item()}"


@check("numbers", cases=each(zero=["a row", "a column", "an element"]))
def takes_zeros_among_gradients(make: Make, zero: str) -> None:
    """Zeros in a gradient, such as those of rare words, leave parameters finite."""
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer, at = make([p], lr=0.01), {"a row": (1,), "a column": (slice(None), 1), "an element": (1, 1)}[zero]
    for k in range(3):
        p.grad = grad(p, k)
        p.grad[at] = 0
        optimizer.step()
    assert bool(p.isfinite().all()), f"zeros in {zero} of the gradient make a parameter not finite"


@check(
    "numbers",
    "scale_invariant",
    cases=lambda subject: [{"settings": {"eps": 0.0} if "eps" in subject.arguments else {}}],
)
def ignores_the_scale(make: Make, settings: dict[str, float]) -> None:
    """With eps=0, gradients that are 1024 times as large give the same steps."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter, scale in ((p, 1), (q, 1024)):
        optimizer = make([parameter], lr=0.01, **settings)
        for k in range(4):
            parameter.grad = grad(parameter, k) * scale
            optimizer.step()
    assert torch.allclose(p, q, 1e-5, 1e-6), "gradients that are 1024 times as large give other steps"


@check("numbers", "float64", cases=lambda subject: [{"settings": telling(subject)}])
def agrees_between_dtypes(make: Make, settings: dict[str, object]) -> None:
    """float32 and float64 parameters go the same way, within float32's rounding, and keep their dtypes."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4, dtype=dtype)) for dtype in (torch.float32, torch.float64))
    for parameter in (p, q):
        optimizer = make([parameter], **settings)
        for k in range(6):
            torch.manual_seed(k)
            parameter.grad = grad(torch.ones(3, 4), k).to(parameter)
            optimizer.step()
    assert (p.dtype, q.dtype) == (torch.float32, torch.float64), f"the dtypes are {p.dtype} and {q.dtype}"
    assert torch.allclose(p.double(), q, 1e-4, 1e-4), f"they are {float((p - q).detach().abs().max()):.2g} apart"


@check("numbers", "bfloat16", "float64", cases=lambda subject: [{"settings": telling(subject)}])
def rounds_bfloat16_once(make: Make, settings: dict[str, object]) -> None:
    """A bfloat16 parameter after a step is within a few roundings of the float64 one's."""
    p, q = (
        torch.nn.Parameter(torch.linspace(1, 2, 48, dtype=torch.bfloat16).view(6, 8).to(d))
        for d in (torch.bfloat16, torch.float64)
    )
    for parameter in (p, q):
        parameter.grad = grad(p).to(parameter)
        make([parameter], **settings).step()
    moved = (q - torch.linspace(1, 2, 48, dtype=torch.bfloat16).view(6, 8).double()).abs()
    off = float(((p.double() - q).abs() - 2**-8 * q.abs() - 2**-5 * moved).max())
    assert off <= 0, "a bfloat16 parameter is off by more than a rounding of itself and eight of its update"


def _implementations(subject: Subject) -> list[dict[str, object]]:
    return [
        {"name": name, "settings": telling(subject)} for name in ("foreach", "fused") if getattr(subject.claims, name)
    ]


@check("numbers", "foreach", cases=lambda subject: _implementations(subject)[:1])
def foreach_is_the_loop(make: Make, name: str, settings: dict[str, object]) -> None:
    """foreach=True gives the numbers of foreach=False."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter, on in ((p, True), (q, False)):
        optimizer = make([parameter], **settings, **{name: on})
        for k in range(4):
            parameter.grad = grad(parameter, k)
            optimizer.step()
    assert torch.allclose(p, q, 1e-5, 1e-6), f"{name}=True gives other numbers"


@check("numbers", "fused", cases=lambda subject: _implementations(subject)[-1:])
def fused_is_the_loop(make: Make, name: str, settings: dict[str, object]) -> None:
    """fused=True gives the numbers of fused=False."""
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for parameter, on in ((p, True), (q, False)):
        optimizer = make([parameter], **settings, **{name: on})
        for k in range(4):
            parameter.grad = grad(parameter, k)
            optimizer.step()
    assert torch.allclose(p, q, 1e-5, 1e-6), f"{name}=True gives other numbers"


@check("numbers")
def goes_downhill(make: Make) -> None:
    """A hundred steps on a bowl end lower than they began."""
    p = torch.nn.Parameter(torch.linspace(0.5, 1.5, 12).view(3, 4))
    optimizer, before = make([p]), float(p.detach().square().sum())
    for _ in range(100):
        optimizer.zero_grad()
        p.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(p.detach().square().sum()) < before, (
        f"p.square().sum() goes from {before:.3g} to {p.detach().square().sum():.3g}"
    )


@check("numbers", "elementwise")
def treats_elements_alike(make: Make) -> None:
    """Each element is stepped by itself: another order or shape gives the same numbers."""
    p, q = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(12))
    for parameter in (p, q):
        optimizer = make([parameter], lr=0.01)
        for k in range(4):
            parameter.grad = grad(parameter, k).flatten().flip(0) if parameter is q else grad(parameter, k)
            optimizer.step()
    assert torch.allclose(p.flatten().flip(0), q, 1e-5, 1e-6), "elements in another order are stepped otherwise"


@check("numbers", "elementwise")
def steps_elements_apart(make: Make) -> None:
    """What the gradient of one element is changes no other element."""
    p, q = (torch.nn.Parameter(torch.ones(12)) for _ in range(2))
    for parameter, factor in ((p, 1.0), (q, 100.0)):
        optimizer = make([parameter], lr=0.01)
        for k in range(4):
            parameter.grad = grad(parameter, k)
            parameter.grad[6:] *= factor
            optimizer.step()
    assert torch.allclose(p[:6], q[:6], 1e-5, 1e-6), "elements step otherwise beside others with larger gradients"
