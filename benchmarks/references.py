"""Holds the oracle of the matrix rules (tests/papers_matrix.py, papers_factored.py and
papers_kronecker.py) against published packages.

    python benchmarks/references.py    # a minute; needs pytorch_optimizer, heavyball, optax, timm, came-pytorch, adam-mini

Keeps references.json: for each rule, package and setting the largest difference of a weight, over all steps and shapes, as
a part of the largest movement. Everything runs in float64: casts to bfloat16 on the way are taken out of the packages for
the time of a run, unless a row says "as it comes". Nothing is timed. A difference above rounding that has no reason
here stops the script.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # heavyball compiles its steps
os.environ["JAX_ENABLE_X64"] = "1"
sys.path.insert(0, os.path.join(os.path.dirname(__file__), os.pardir, "tests"))

import numpy as np
import papers
import papers_factored  # noqa: F401  (enters its rules)
import papers_kronecker  # noqa: F401
import papers_matrix
import record
import torch
from figures.references import references as figure

Array = papers.Array
Make = Callable[[list[torch.nn.Parameter]], Any]

SHAPES = ((4, 6), (6, 4), (5, 5), (1, 7), (7, 1))
STEPS = 3 if record.QUICK else 8
ROUNDING = 1e-12
"""A larger difference needs a reason, and a smaller one must not have one."""
COMMON: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1}


@dataclass
class Case:
    """A package's optimizer beside the oracle.

    Attributes:
        rule, options: the oracle's.
        package, name: whose, and what it is called there, or a sentence about it.
        make: makes the optimizer of parameters; of optax, the transformation.
        why: what is done otherwise; "" where the two should be equal.
        exact: whether casts to bfloat16 are taken out.
        transposed: whether the package's matrices are (in, out).
        shapes: those that the package can do.
    """

    rule: str
    package: str
    name: str
    make: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    exact: bool = True
    transposed: bool = False
    shapes: Sequence[tuple[int, ...]] = SHAPES


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Takes casts to bfloat16 out of torch, and leaves a copy in their place."""
    cast, narrow = torch.Tensor.to, torch.Tensor.bfloat16

    def to(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        wide = {torch.bfloat16: torch.float64}
        args = tuple(wide.get(one, one) if isinstance(one, torch.dtype) else one for one in args)
        options = {key: wide.get(one, one) if isinstance(one, torch.dtype) else one for key, one in options.items()}
        return cast(self, *args, **options)  # type: ignore[no-any-return, call-overload]

    torch.Tensor.to, torch.Tensor.bfloat16 = to, torch.Tensor.clone  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.to, torch.Tensor.bfloat16 = cast, narrow  # type: ignore[method-assign]


def problem(shape: tuple[int, ...]) -> tuple[Array, list[Array]]:
    """A start, and gradients over two orders of magnitude."""
    random = np.random.default_rng(sum(shape))
    return random.normal(size=shape), [random.normal(size=shape) * 10 ** random.uniform(-1, 1) for _ in range(STEPS)]


def in_torch(make: Make, start: Array, grads: Sequence[Array]) -> list[Array]:
    """The weights after each step of an optimizer of torch's kind."""
    param = torch.nn.Parameter(torch.tensor(start))
    optimizer = make([param])
    history = []
    for grad in grads:
        param.grad = torch.tensor(grad)
        optimizer.step()
        history.append(param.detach().numpy().copy())
    return history


def in_optax(make: Callable[[], Any], start: Array, grads: Sequence[Array]) -> list[Array]:
    """The weights after each step of one of optax's transformations."""
    import jax.numpy as jnp
    import optax

    param, transformation = jnp.asarray(start), make()
    state = transformation.init(param)
    history = []
    for grad in grads:
        updates, state = transformation.update(jnp.asarray(grad), state, param)
        param = optax.apply_updates(param, updates)
        history.append(np.asarray(param))
    return history


def difference(case: Case) -> float:
    """The largest difference of a weight, as a part of the largest movement."""
    worst = 0.0
    for shape in case.shapes:
        start, grads = problem(shape)
        expected = [one[0] for one in papers.PAPERS[case.rule]([start], [[g] for g in grads], **case.options)]
        turn: Callable[[Array], Array] = np.transpose if case.transposed else np.asarray
        run = in_optax if case.package == "optax" else in_torch
        with in_float64() if case.exact else contextlib.nullcontext(), contextlib.redirect_stdout(io.StringIO()):
            found = [turn(one) for one in run(case.make, turn(start), [turn(g) for g in grads])]
        moved = max(float(np.abs(one - start).max()) for one in expected)
        apart = max(float(np.abs(x - y).max()) for x, y in zip(found, expected, strict=True))
        worst = max(worst, apart / moved)
    return worst


def package(name: str) -> Any:
    """A module; one of timm.optim without the rest of timm, which wants torchvision."""
    if name.startswith("timm.") and "timm" not in sys.modules:
        found = importlib.util.find_spec("timm")
        assert found is not None and found.submodule_search_locations
        for stub, folder in (("timm", ""), ("timm.optim", "optim")):
            sys.modules[stub] = types.ModuleType(stub)
            sys.modules[stub].__path__ = [os.path.join(found.submodule_search_locations[0], folder)]
    return importlib.import_module(name)


def muons() -> list[Case]:
    """Muon's, NorMuon's and AdaMuon's."""
    po, timm, optax = package("pytorch_optimizer"), package("timm.optim.muon"), package("optax.contrib")
    own = {**COMMON, "momentum": 0.8}
    clamped = {**own, "start": "clamped"}
    fits = [shape for shape in SHAPES if 1 not in shape]
    cases = []
    for nesterov in (True, False):
        for scale in ("original", "match_rms_adamw"):
            both = {"nesterov": nesterov, "scale": scale}
            name = f"`Muon`, `nesterov={nesterov}`, `{scale}`"
            cases += [
                Case("muon", "torch", name, lambda p, n=nesterov, s=scale: torch.optim.Muon(
                    p, **own, nesterov=n, adjust_lr_fn=s), {**clamped, **both}),
                Case("muon", "pytorch_optimizer", name, lambda p, n=nesterov, s=scale: po.Muon(
                    [{"params": p, "use_muon": True}], **own, nesterov=n, use_adjusted_lr=s != "original"), {**clamped, **both}),
                Case("muon", "timm", name, lambda p, n=nesterov, s=scale: timm.Muon(
                    p, **own, nesterov=n, adjust_lr_fn=s), {**clamped, **both, "coefficients": papers_matrix.YOU}, shapes=fits),
            ]  # fmt: skip

    def optax_muon(nesterov: bool) -> Callable[[], Any]:
        return lambda: optax.muon(0.05, beta=0.8, weight_decay=0.1, eps=0.0, nesterov=nesterov)

    def heavyball(**options: Any) -> Make:
        return lambda p: package("heavyball").Muon(
            p, lr=0.05, betas=(0.8, 0.9), weight_decay=0.1, storage_dtype="float64", **options
        )

    def normuon(**options: Any) -> Make:
        common = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.8, "beta2": 0.9, "eps": 1e-10}
        return lambda p: po.NorMuon([{"params": p, "use_muon": True}], **common, **options)

    def adamuon(p: list[torch.nn.Parameter]) -> Any:
        return po.AdaMuon([{"params": p, "use_muon": True}], lr=0.05, weight_decay=0.1, betas=(0.8, 0.8))

    def timm_adamuon(p: list[torch.nn.Parameter]) -> Any:
        settings = {"algo": "adamuon", "eps": 1e-8, "betas": (0.9, 0.8), "ns_coefficients": "original"}
        return timm.Muon(p, **own, **settings)

    plain = {**own, "eps": 0.0, "nesterov": False}
    you = {**clamped, "coefficients": papers_matrix.YOU}
    nor = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.9), "ns_eps": 0.0}
    return [
        *cases,
        Case("muon", "torch", "`Muon`, as it comes", lambda p: torch.optim.Muon(p, **own), clamped,
             "Newton-Schulz in bfloat16", exact=False),
        Case("muon", "optax", "`muon(nesterov=False)`", optax_muon(False), plain, transposed=True),
        Case("muon", "optax", "`muon`", optax_muon(True), {**own, "eps": 0.0},
             "corrects average and gradient for the start at 0, with different powers, before mixing them, as Nadam does",
             transposed=True),
        Case("muon", "optax", "`muon(nesterov=False)` of (out, in)", optax_muon(False), plain,
             "takes matrices as (in, out); of ours, the scale is another"),
        Case("muon", "heavyball", "`Muon(heavyball_momentum=True)`", heavyball(heavyball_momentum=True), you,
             "lr and betas in float32"),
        Case("muon", "heavyball", "`Muon`", heavyball(), you, "mixes G + M, and not (1 - mu) G + mu M"),
        Case("normuon", "pytorch_optimizer", '`NorMuon(nesterov=False, update_scale="match_rms")`',
             normuon(nesterov=False, update_scale="match_rms"), nor,
             "eps is added to the norm as well"),
        Case("normuon", "pytorch_optimizer", "`NorMuon`", normuon(), {**nor, "nesterov": True, "scale": "original"}),
        Case("normuon", "pytorch_optimizer", "`NorMuon` beside the paper", normuon(), nor,
             "defaults to Nesterov and to keeping the norm of O, as the authors' code does"),
        Case("adamuon", "pytorch_optimizer", "`AdaMuon`", adamuon, {**own, "ns_eps": 0.0},
             "no sign, and the norm of a semi-orthogonal matrix with Muon's scale instead of 0.2 sqrt(mn)"),
        Case("adamuon", "timm", '`Muon(algo="adamuon")`', timm_adamuon, {**own, "sign": False, "ns_eps": 0.0}, shapes=fits),
        Case("adamuon", "timm", '`Muon(algo="adamuon")` beside the paper', timm_adamuon, {**own, "ns_eps": 0.0},
             "no sign: the first version of the paper", shapes=fits),
    ]  # fmt: skip


def scions() -> list[Case]:
    """Scion's."""
    po = package("pytorch_optimizer")
    norms = package("pytorch_optimizer.optimizer.scion").LMONorm
    cases = []
    for kind, of, own in (
        ("spectral", norms.SPECTRAL, {}), ("col", norms.COL, {}), ("embedding", norms.COL, {"transpose": True}),
        ("row", norms.ROW, {}), ("sign", norms.SIGN, {}), ("bias", norms.BIAS, {}),
    ):  # fmt: skip
        for unconstrained in (False, True):
            name = f"`SCION`, {kind}, {'unconstrained' if unconstrained else 'constrained'}"
            cases.append(
                Case("scion", "pytorch_optimizer", name, lambda p, of=of, own=own, free=unconstrained: po.SCION(
                    p, lr=0.05, momentum=0.2, constraint=not free, norm_type=of, norm_kwargs=own, scale=3.0),
                    {"lr": 0.05, "momentum": 0.2, "kind": kind, "radius": 3.0, "unconstrained": unconstrained, "ns_eps": 0.0})
            )  # fmt: skip
    return cases


def factored() -> list[Case]:
    """Adafactor's, CAME's, Adam-mini's and SM3's."""
    po, timm, optax = package("pytorch_optimizer"), package("timm.optim.adafactor"), package("optax")
    came, mini = package("came_pytorch"), package("adam_mini")
    b3 = {"lr": 0.05, "betas": (0.8, 0.9, 0.95)}
    paper = {"lr": 0.05, "beta1": 0.8}
    b2 = {**COMMON, "betas": (0.8, 0.9)}

    def named(name: str) -> Make:
        return lambda p: mini.Adam_mini([(name, p[0])], **b2, dim=2, n_heads=2, verbose=False)

    return [
        Case("adafactor", "torch", "`Adafactor`", lambda p: torch.optim.Adafactor(p, **COMMON), COMMON),
        Case("adafactor", "torch", "`Adafactor(eps=(0.5, 1e-3), d=1.5)`", lambda p: torch.optim.Adafactor(p, **COMMON, eps=(0.5, 1e-3), d=1.5),
             {**COMMON, "eps": (0.5, 1e-3), "d": 1.5}),
        Case("adafactor_paper", "timm", "`Adafactor(betas=(0.8, 0.9))`", lambda p: timm.Adafactor(
            p, lr=0.05, betas=(0.8, 0.9), weight_decay=0.1, min_dim_size_to_factor=1),
            {**paper, "weight_decay": 0.1, "scale_parameter": False}),
        Case("adafactor_paper", "timm", "`Adafactor(lr=0.05)`", lambda p: timm.Adafactor(p, lr=0.05, min_dim_size_to_factor=1), {"lr": 0.05},
             "with an lr, scale_parameter counts for nothing"),
        Case("adafactor_paper", "timm", "`Adafactor()`, as in the paper", lambda p: timm.Adafactor(
            p, min_dim_size_to_factor=1), {}),
        Case("adafactor_paper", "optax", "`adafactor(momentum=0.8)`", lambda: optax.adafactor(
            0.05, min_dim_size_to_factor=1, momentum=0.8), paper, "t^-0.8 in float32"),
        Case("adafactor_paper", "pytorch_optimizer", "`AdaFactor`", lambda p: po.AdaFactor(
            p, lr=0.05, betas=(0.8, 0.999), relative_step=False, momentum_dtype=torch.float64), paper),
        Case("adafactor_paper", "torch", "`Adafactor` beside the paper", lambda p: torch.optim.Adafactor(p, lr=0.5), {"lr": 0.5},
             "the step is min(lr, 1 / sqrt(t)) and not lr"),
        Case("came", "came_pytorch", "`CAME`", lambda p: came.CAME(p, **b3, weight_decay=0.1), {**b3, "weight_decay": 0.1}),
        Case("came", "pytorch_optimizer", "`CAME`", lambda p: po.CAME(p, **b3, weight_decay=0.1, weight_decouple=True), {**b3, "weight_decay": 0.1}),
        Case("adammini", "adam_mini", "`Adam_mini`, rows", named("mlp.weight"), {**b2, "blocks": "rows"}),
        Case("adammini", "adam_mini", "`Adam_mini`, heads of two rows", lambda p: mini.Adam_mini(
            [("q_proj.weight", p[0])], **b2, dim=4, n_heads=2, verbose=False), {**b2, "blocks": 3}, shapes=[(6, 4)]),
        Case("sm3", "pytorch_optimizer", "`SM3(momentum=0.8)`", lambda p: po.SM3(p, lr=0.05, momentum=0.8), {"lr": 0.05, "momentum": 0.8}),
        Case("sm3", "pytorch_optimizer", "`SM3(beta=0.9)`", lambda p: po.SM3(p, lr=0.05, beta=0.9), {"lr": 0.05, "momentum": 0.0, "beta": 0.9},
             "the accumulators keep the maximum of old and new, and never fall"),
        Case("sm3", "optax", "`sm3`", lambda: optax.sm3(0.05, momentum=0.8), {"lr": 0.05, "momentum": 0.8, "eps": 1e-8}),
    ]  # fmt: skip


def kronecker() -> list[Case]:
    """SOAP's, KL-Shampoo's and SPlus's, on square matrices: for others, the bases of null spaces are anyone's."""
    po, heavyball = package("pytorch_optimizer"), package("heavyball")
    square = ((3, 3), (4, 4), (5, 5))
    own = {**COMMON, "betas": (0.8, 0.9), "precondition_frequency": 3}
    wide = {**own, "storage_dtype": "float64"}
    kl = "one eigenvalue for both uses, of Q'SQ; averages of S corrected for the start; factors balanced"
    klsoap = "eigenvalues are those of Q'SQ; averages of S corrected for the start; a basis keeps its order"
    splus = {"lr": 0.5, "weight_decay": 0.1}
    return [
        Case("soap", "pytorch_optimizer", "`SOAP`", lambda p: po.SOAP(p, **own), own, "QR in float32", shapes=square),
        Case("soap", "heavyball", "`SOAP(shampoo_beta=0.9)`", lambda p: heavyball.SOAP(p, **wide, shampoo_beta=0.9), own,
             "averages of L and R corrected for the start; a basis keeps its order", shapes=square),
        Case("klshampoo", "heavyball", "`KLShampoo`", lambda p: heavyball.KLShampoo(p, **wide), own, kl, shapes=square),
        Case("klshampoo", "heavyball", "`KLSOAP`", lambda p: heavyball.KLSOAP(p, **wide), {**own, "soap": True}, klsoap, shapes=square),
        Case("splus", "pytorch_optimizer", "`SPlus`", lambda p: po.SPlus(p, **splus, betas=(0.8, 0.9), inverse_steps=2),
             {**splus, "b1": 0.8, "b2": 0.9, "inverse_every": 2}, "eigenvectors in float32", shapes=square),
    ]  # fmt: skip


def version(name: str) -> str:
    """A package's version."""
    return importlib.metadata.version({"came_pytorch": "came-pytorch", "adam_mini": "adam-mini"}.get(name, name))


def main() -> None:
    begun = record.head()
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in [*muons(), *scions(), *factored(), *kronecker()]:
            apart = difference(case)
            assert bool(case.why) == (apart > ROUNDING), f"{case.rule} and {case.package}'s {case.name}: {apart}"
            rows.append({"rule": case.rule, "package": case.package, "version": version(case.package), "name": case.name,
                         "difference": apart, "why": case.why})  # fmt: skip
    record.write("references", begun, rows, shapes=[list(shape) for shape in SHAPES], steps=STEPS, rounding=ROUNDING)
    record.show([figure(record.Records(record.WRITTEN_TO))])


if __name__ == "__main__":
    main()
