"""What formats do to numbers: those for states that were tried, under stress and in training, and AdamW in those that are there.

    python benchmarks/formats.py    # about 3 minutes on two cores

Keeps formats.json beside this file and prints its tables. Schemes are emulated on whole tensors; `steprule compare
formats.Emulated:lr=3e-3,scheme='linear'` (from this folder) trains with one. No number depends on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import record
import torch
from figures import formats as figures_of_formats
from figures import training as figures_of_training
from torch import Tensor
from torch.nn.functional import pad
from training import Wanted, trained

import steprule
from steprule.formats import dither, is_quantized
from steprule.formats.tensors import decode, encode

RoundTrip = Callable[[Tensor, int], Tensor]
STRESS_STEPS, SLOW_STEPS, SEEDS = (4, 4, (0, 1)) if record.QUICK else (400, 1000, (0, 1, 2, 3, 4))
DIGITS_LR, TRAINING_LR = 6e-3, {"digits": 0.01, "chars": 0.01}
DECAY_STEPS, DECAY_LR, WEIGHT_DECAY = 200, 1e-3, 0.1
FORMATS: tuple[dict[str, str], ...] = (
    {"dtype": "float32"},
    {"dtype": "float32", "states": "8bit"},
    {"dtype": "bfloat16", "weights": "stochastic", "states": "bfloat16"},
    {"dtype": "bfloat16", "weights": "32bit", "states": "8bit"},
    {"dtype": "bfloat16", "weights": "24bit", "states": "8bit"},
    {"dtype": "bfloat16", "weights": "stochastic", "states": "8bit"},
)
"""Those that are trained."""


def by_block(size: int, function: Callable[[Tensor], Tensor]) -> RoundTrip:
    """Applies a function to blocks of a row, as a last dimension."""

    def apply(x: Tensor, step: int) -> Tensor:
        flat = x.reshape(x.shape[0], -1)
        width = flat.shape[1]
        blocks = pad(flat, (0, -width % size)).view(x.shape[0], -1, size)
        return function(blocks).reshape(x.shape[0], -1)[:, :width].reshape(x.shape)

    return apply


def scaled(
    function: Callable[[Tensor], Tensor], scale_dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor]:
    """Divides by the block's largest absolute value and multiplies afterwards."""

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


def ours(kind: str, rounding: str, number: int) -> RoundTrip:
    def apply(x: Tensor, step: int) -> Tensor:
        random = dither(0, step, number) if rounding == "dither" else 1 << 31
        return decode(kind, encode(kind, x, random), x.shape)

    return apply


def float8(x: Tensor) -> Tensor:
    return (x * 448).to(torch.float8_e4m3fn).float() / 448


SCHEMES: dict[str, tuple[float, RoundTrip, RoundTrip]] = {
    "float32": (8.0, lambda x, _: x, lambda x, _: x),
    "linear": (
        2 + 8 / 128, by_block(128, scaled(lambda x: (x * 127).round() / 127)),
        by_block(128, scaled(lambda x: (x * 255).round() / 255)),
    ),
    "bitsandbytes": (
        2 + 8 / 256, by_block(256, scaled(nearest_in(dynamic_map(True)))),
        by_block(256, scaled(nearest_in(dynamic_map(False)))),
    ),
    "FlashOptim": (
        2 + 4 / 32, by_block(32, scaled(companded, torch.float16)),
        by_block(32, lambda v: scaled(lambda x: (x * 255).round() / 255, torch.float16)(v.sqrt()) ** 2),
    ),
    "float8": (2 + 8 / 256, by_block(256, scaled(float8)), by_block(256, scaled(float8))),
    "logarithmic": (2 + 8 / 128, by_block(128, scaled(logarithmic(127, 16))), by_block(128, scaled(logarithmic(255, 32)))),
    "4 bits": (
        1 + 8 / 128, by_block(128, scaled(nearest_in(dynamic_map(True, 4)))),
        by_block(128, scaled(nearest_in(torch.arange(1, 17) / 16))),
    ),
    "8bit nearest": (2 + 4 / 128, ours("signed8", "nearest", 2), ours("positive8", "nearest", 3)),
    "8bit": (2 + 4 / 128, ours("signed8", "dither", 2), ours("positive8", "dither", 3)),
    "bfloat16": (4.0, ours("bfloat16 dithered", "dither", 2), ours("bfloat16 dithered", "dither", 3)),
}  # fmt: skip
"""Bytes an element for both states, and what storing does to the first moment and to the second."""


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
                low = is_quantized(p.shape)
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
    for _ in range(STRESS_STEPS):
        direction = torch.randn(4, 256, generator=g).sign() if signs == "random" else torch.ones(4, 256)
        p.grad = direction * scale * (torch.rand(4, 256, generator=g) < active)
        before = p.detach().clone()
        optimizer.step()
        step = (p.detach() - before).abs()
        largest, moved = max(largest, float(step.max())), moved + step
    return largest, moved[scale == 1]


def slow(scheme: str) -> dict[str, float]:
    """The second moment over float32's after gradients grew tenfold, and after they shrank to a hundredth of that."""
    g = torch.Generator().manual_seed(0)
    keep = SCHEMES[scheme][2]
    exact = kept = torch.zeros(32, 256)
    ratios = []
    for i, scale in enumerate((1.0, 10.0, 0.1)):
        sizes = scale * (1 + torch.rand(32, 256, generator=g))  # other elements keep the block's largest where it is
        sizes[:, ::128] = 50.0
        for t in range(SLOW_STEPS):
            square = (sizes * torch.randn(32, 256, generator=g)) ** 2
            exact = 0.999 * exact + 0.001 * square
            kept = keep(0.999 * kept + 0.001 * square, SLOW_STEPS * i + t + 1)
        ratios.append((kept / exact)[:, 1:128])
    return {
        "after_10x": float(ratios[1].mean()),
        "after_001x": float(ratios[2].mean()),
        "scatter": float(ratios[2].std()),
    }


def stressed() -> list[record.Record]:
    """A row for each scheme, without losses."""
    cases = [(d, a, s) for d in (10, 100, 1000, 10000) for a in (0.01, 0.1, 1.0) for s in ("random", "constant")]
    exact = {case: stress("float32", *case) for case in cases}
    rows = []
    for scheme, (size, *_) in SCHEMES.items():
        results = {case: stress(scheme, *case) for case in cases}
        hundredth = [case for case in cases if case[0] <= 100 and (exact[case][1] > 0).any()]
        rows.append(
            {
                "kind": "stress",
                "scheme": scheme,
                "bytes": size,
                "largest_update": max(results[case][0] / exact[case][0] for case in cases),
                "least_moved": min(float((results[c][1] / exact[c][1])[exact[c][1] > 0].min()) for c in hundredth),
                **slow(scheme),
            }
        )
        print(f"{scheme}: {rows[-1]}", flush=True)
    return rows


def decayed() -> list[record.Record]:
    """A row for each format of weights: what weight decay alone leaves of 1."""
    rows = []
    for dtype, weights in (
        ("float32", None), ("bfloat16", None), ("bfloat16", "stochastic"), ("bfloat16", "24bit"), ("bfloat16", "32bit"),
    ):  # fmt: skip
        p = torch.nn.Parameter(torch.ones(64, 128, dtype=getattr(torch, dtype)))
        p.grad = torch.zeros_like(p)
        optimizer = steprule.AdamW([p], lr=DECAY_LR, weight_decay=WEIGHT_DECAY, weights=weights)
        for _ in range(DECAY_STEPS):
            optimizer.step()
        mean = float(optimizer.read(p).float().mean())
        rows.append({"kind": "decay", "dtype": dtype, "weights": weights, "states": None, "mean": mean})
    return rows


def main() -> None:
    begun = record.head()
    rows = stressed()
    emulated = {row["scheme"]: f"formats.Emulated:lr={DIGITS_LR:g},scheme='{row['scheme']}'" for row in rows}
    kept = {
        (task, number): f"adamw:lr={lr:g}" + "".join(f",{key}={value}" for key, value in chosen.items())
        for task, lr in TRAINING_LR.items()
        for number, chosen in enumerate(FORMATS)
    }
    runs = [Wanted("digits", spec, seed) for spec in emulated.values() for seed in SEEDS]
    runs += [Wanted(task, spec, seed) for (task, _), spec in kept.items() for seed in SEEDS]
    done = trained(runs)

    def losses(task: str, spec: str) -> list[float | None]:
        return [done[Wanted(task, spec, seed)]["loss"] for seed in SEEDS]

    for row in rows:
        row["losses"] = losses("digits", emulated[row["scheme"]])
    for (task, number), spec in kept.items():
        chosen = {"weights": None, "states": None} | FORMATS[number]
        rows.append({"kind": "training", "task": task, "lr": TRAINING_LR[task], **chosen, "losses": losses(task, spec)})
    facts = {
        "seeds": SEEDS, "digits_lr": DIGITS_LR, "stress_steps": STRESS_STEPS, "slow_steps": SLOW_STEPS,
        "decay_steps": DECAY_STEPS, "decay_lr": DECAY_LR, "weight_decay": WEIGHT_DECAY,
    }  # fmt: skip
    written = {"formats": record.write("formats", begun, rows + decayed(), **facts)}
    figures = (figures_of_formats.formats, figures_of_training.formats_training, figures_of_formats.decay)
    record.show(figure(written) for figure in figures)


if __name__ == "__main__":
    main()
