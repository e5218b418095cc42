"""Formats for states that were tried: what each does under stress, emulated on whole tensors.

Run it for the table of stress results. `steprule compare formats.Emulated:lr=3e-3,scheme='linear'` (from this folder)
trains with one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import pad

from steprule.formats import dither, is_quantised
from steprule.formats.tensors import decode, encode

RoundTrip = Callable[[Tensor, int], Tensor]


def grouped(size: int, function: Callable[[Tensor], Tensor]) -> RoundTrip:
    """Applies a function to groups of a row, as a last dimension."""

    def apply(x: Tensor, step: int) -> Tensor:
        flat = x.reshape(x.shape[0], -1)
        width = flat.shape[1]
        groups = pad(flat, (0, -width % size)).view(x.shape[0], -1, size)
        return function(groups).reshape(x.shape[0], -1)[:, :width].reshape(x.shape)

    return apply


def scaled(
    function: Callable[[Tensor], Tensor], scale_dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor]:
    """Divides by the group's largest absolute value and multiplies afterwards."""

    def apply(x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).to(scale_dtype).float()
        return torch.where(scale > 0, function(x / scale.clamp_min(1e-38)) * scale, 0.0)

    return apply


def nearest_in(values: Tensor) -> Callable[[Tensor], Tensor]:
    values = values.sort().values
    edges = (values[1:] + values[:-1]) / 2
    return lambda x: values[torch.bucketize(x, edges)]


def dynamic_map(signed: bool, bits: int = 8) -> Tensor:
    """Decades of a shrinking number of linear steps each. Dettmers et al. 2022, arXiv:2110.02861, section 2."""
    exponents = bits - 1
    values = [0.0, 1.0]
    for i in range(exponents):
        edges = torch.linspace(0.1, 1, 2 ** (i + (not signed)) + 1)
        means = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - exponents + 1)
        values += means.tolist() + [-v for v in means.tolist()] * signed
    return torch.tensor(values)


def companded(x: Tensor) -> Tensor:
    y = (127 * 2 * x / (1 + x.abs())).round() / 127
    return y / (2 - y.abs())


def logarithmic(levels: int, octaves: float) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        level = (levels + x.abs().clamp_min(1e-45).log2() * levels / octaves).round()
        return torch.where(level >= 1, torch.copysign(2.0 ** ((level - levels) * octaves / levels), x), 0.0)

    return apply


def ours(kind: str, rounding: str) -> RoundTrip:
    def apply(x: Tensor, step: int) -> Tensor:
        random = dither(0, step, 2 + (kind == "positive8")) if rounding == "dither" else 1 << 31
        return decode(kind, encode(kind, x, random), x.shape)

    return apply


def float8(x: Tensor) -> Tensor:
    return (x * 448).to(torch.float8_e4m3fn).float() / 448


SCHEMES: dict[str, tuple[float, RoundTrip, RoundTrip]] = {
    "float32": (8.0, lambda x, _: x, lambda x, _: x),
    "linear": (
        2 + 8 / 128, grouped(128, scaled(lambda x: (x * 127).round() / 127)),
        grouped(128, scaled(lambda x: (x * 255).round() / 255)),
    ),
    "bitsandbytes": (
        2 + 8 / 256, grouped(256, scaled(nearest_in(dynamic_map(True)))),
        grouped(256, scaled(nearest_in(dynamic_map(False)))),
    ),
    "FlashOptim": (
        2 + 4 / 32, grouped(32, scaled(companded, torch.float16)),
        grouped(32, lambda v: scaled(lambda x: (x * 255).round() / 255, torch.float16)(v.sqrt()) ** 2),
    ),
    "float8": (2 + 8 / 256, grouped(256, scaled(float8)), grouped(256, scaled(float8))),
    "logarithmic": (2 + 8 / 128, grouped(128, scaled(logarithmic(127, 16))), grouped(128, scaled(logarithmic(255, 32)))),
    "4 bits": (
        1 + 8 / 128, grouped(128, scaled(nearest_in(dynamic_map(True, 4)))),
        grouped(128, scaled(nearest_in(torch.arange(1, 17) / 16))),
    ),
    "8bit nearest": (2 + 4 / 128, ours("signed8", "nearest"), ours("positive8", "nearest")),
    "8bit": (2 + 4 / 128, ours("signed8", "dither"), ours("positive8", "dither")),
}  # fmt: skip
"""Bytes a parameter for both states, and what storing does to the mean and to the mean square."""


class Emulated(torch.optim.Optimizer):
    """AdamW whose states go through a scheme after every step."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01, scheme: str = "8bit",
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "scheme": scheme})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            (beta1, beta2), (_, keep_mean, keep_square) = group["betas"], SCHEMES[group["scheme"]]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                t = state["step"]
                mean = state["exp_avg"].lerp(p.grad, 1 - beta1)
                square = beta2 * state["exp_avg_sq"] + (1 - beta2) * p.grad * p.grad
                direction = mean / (1 - beta1**t) / ((square / (1 - beta2**t)).sqrt() + group["eps"])
                p.sub_(group["lr"] * (direction + group["weight_decay"] * p))
                low = is_quantised(p.shape)
                state["exp_avg"] = keep_mean(mean, t) if low else mean
                state["exp_avg_sq"] = keep_square(square, t) if low else square


def stress(scheme: str, dominance: float, active: float, signs: str) -> tuple[float, Tensor]:
    """The largest update in units of lr over 400 steps, and how far each small element moved in all."""
    g = torch.Generator().manual_seed(0)
    scale = torch.ones(4, 256)
    scale[:, ::128] = dominance
    p = torch.nn.Parameter(torch.zeros(4, 256))
    optimizer = Emulated([p], lr=1.0, weight_decay=0.0, scheme=scheme)
    largest, moved = 0.0, torch.zeros(4, 256)
    for _ in range(400):
        direction = torch.randn(4, 256, generator=g).sign() if signs == "random" else torch.ones(4, 256)
        p.grad = direction * scale * (torch.rand(4, 256, generator=g) < active)
        before = p.detach().clone()
        optimizer.step()
        step = (p.detach() - before).abs()
        largest, moved = max(largest, float(step.max())), moved + step
    return largest, moved[scale == 1]


def slow(scheme: str) -> tuple[float, float]:
    """The mean square over float32's 1,000 steps after gradients grew tenfold, and after they shrank to a hundredth."""
    g = torch.Generator().manual_seed(0)
    keep = SCHEMES[scheme][2]
    exact = kept = torch.zeros(32, 256)
    ratios = []
    for i, scale in enumerate((1.0, 10.0, 0.1)):
        sizes = scale * (1 + torch.rand(32, 256, generator=g))  # other elements keep the group's largest where it is
        sizes[:, ::128] = 50.0
        for t in range(1000):
            square = (sizes * torch.randn(32, 256, generator=g)) ** 2
            exact = 0.999 * exact + 0.001 * square
            kept = keep(0.999 * kept + 0.001 * square, 1000 * i + t + 1)
        ratios.append(float((kept / exact)[:, 1:128].mean()))
    return ratios[1], ratios[2]


def main() -> None:
    """Prints the table."""
    table = Table(
        "scheme",
        "bytes a parameter",
        "largest update, of float32's",
        "least moved, of float32's",
        "mean square after 10x",
        "after 0.01x",
    )
    cases = [(d, a, s) for d in (10, 100, 1000, 10000) for a in (0.01, 0.1, 1.0) for s in ("random", "constant")]
    exact = {case: stress("float32", *case) for case in cases}
    for scheme, (size, *_) in SCHEMES.items():
        results = {case: stress(scheme, *case) for case in cases}
        worst = max(results[case][0] / exact[case][0] for case in cases)
        hundredth = [case for case in cases if case[0] <= 100]
        least = min(float((results[c][1] / exact[c][1])[exact[c][1] > 0].min()) for c in hundredth)
        up, down = slow(scheme)
        table.add_row(scheme, f"{size:.2f}", f"{worst:.3g}", f"{least:.2f}", f"{up:.2f}", f"{down:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
