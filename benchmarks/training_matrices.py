"""Trains a transformer with rules of whole matrices and with AdamW, each tuned alike; keeps training_matrices.json and prints its table.

    python benchmarks/training_matrices.py            # about three hours on one core
    python benchmarks/training_matrices.py --so-far   # trains nothing: the rules whose runs are all there

The question is after how many steps a rule has the validation loss that tuned AdamW ends with. Every run has the same schedule over
its own length: linear warm-up in its first twentieth, then linear decay to 0. So a loss after fewer steps is that of a shorter run.

Tuning goes one setting after another, each at the best of those before, by the loss of seed 0. A number is multiplied and
divided by a factor until its neighbors are worse, so none ends at the edge of a grid. AdamW is tuned over the whole length, the others over half of it,
where they are compared. All have one lr for hidden matrices and one for the rest, and the rest is AdamW's beside rules of matrices.

Each finished run is a line of build/training_matrices.jsonl, and is not trained again; remove that file to begin anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import record
import torch
from figures import training as figures_of_training
from timing import interleaved
from torch import Tensor, nn

import steprule
from steprule.compare import tasks
from steprule.compare.spec import parse

FULL = 400
LADDER = (FULL // 4, round(FULL / 8**0.5), FULL // 2, round(FULL / 2**0.5), FULL, round(FULL * 2**0.5))
"""Lengths of runs: each is 1.41 times the one before."""
SEEDS = (0, 1, 2, 3, 4)
if record.QUICK:
    FULL, LADDER, SEEDS = 2, (1, 1, 1, 1, 2, 2), (0,)
KEPT = record.HERE.parent / "build" / "training_matrices.jsonl"
TASK = tasks.chars() if record.QUICK else tasks.chars_large()


class Tuning(NamedTuple):
    """Where tuning begins.

    Attributes:
        lr: of hidden matrices.
        tries: settings, and other values to try of each.
        settings: those that stay, and where those of tries begin.
    """

    lr: float
    tries: Mapping[str, tuple[Any, ...]]
    settings: Mapping[str, Any]


_DECAY = {"weight_decay": (1.0,)}
_SCALED = {"adjust_lr_fn": "match_rms_adamw"}
_MUON = Tuning(
    0.016, {"momentum": (0.9,), "nesterov": (False,), **_DECAY}, {**_SCALED, "momentum": 0.95, "nesterov": True}
)
BASELINE = "adamw"
RULES = {
    BASELINE: Tuning(0.004, {"betas": ((0.9, 0.999), (0.9, 0.95)), **_DECAY}, {"betas": (0.9, 0.99)}),
    "muon": _MUON,
    "soap": Tuning(0.008, {"betas": ((0.9, 0.95), (0.95, 0.99)), **_DECAY}, {"betas": (0.95, 0.95)}),
    "normuon": _MUON,
    "shampoo": Tuning(0.008, {"betas": ((0.9, 0.95), (0.95, 0.99)), **_DECAY}, {"betas": (0.9, 0.999)}),
    "adamuon": _MUON,
    "mud": _MUON,
    "lion": Tuning(0.0005, {"betas": ((0.95, 0.98), (0.9, 0.95)), **_DECAY}, {"betas": (0.9, 0.99)}),
    "klshampoo": Tuning(0.004, {"betas": ((0.9, 0.95), (0.95, 0.95)), **_DECAY}, {"betas": (0.9, 0.98)}),
    "adafactor": Tuning(0.04, {"beta2_decay": (-0.5,), "d": (2.0,), **_DECAY}, {"beta2_decay": -0.8, "d": 1.0}),
    "splus": Tuning(
        0.4, {"betas": ((0.9, 0.99), (0.95, 0.99)), **_DECAY}, {"betas": (0.9, 0.999), "precondition_frequency": 10}
    ),
    "psgdkron": Tuning(0.004, {"momentum": (0.95,), "precond_lr": (0.3,), **_DECAY}, {"momentum": 0.9, "precond_lr": 0.1}),
    "klsoap": Tuning(0.008, {"betas": ((0.9, 0.95), (0.95, 0.99)), **_DECAY}, {"betas": (0.95, 0.95)}),
    "asgo": Tuning(0.016, {"betas": ((0.9, 0.9), (0.95, 0.8)), **_DECAY}, {"betas": (0.9, 0.8)}),
}  # fmt: skip
if record.QUICK:
    RULES = {name: RULES[name]._replace(tries={}) for name in (BASELINE, "muon")}


class Wanted(NamedTuple):
    """A run to do: settings in the order of their names, tuples as JSON has them."""

    rule: str
    settings: str
    steps: int
    seed: int


def wanted(rule: str, settings: Mapping[str, Any], steps: int, seed: int) -> Wanted:
    return Wanted(rule, json.dumps(settings, sort_keys=True), steps, seed)


def scheduled(lr: float, steps: int) -> Callable[[int], float]:
    """lr as a function of the step: up to it in the first twentieth of a run, then down to 0."""
    warm = max(1, steps // 20)
    return lambda step: lr * min(step / warm, (steps - step + 1) / (steps - warm + 1))


def optimizer_of(model: nn.Module, one: Wanted) -> torch.optim.Optimizer:
    """The rule over hidden matrices with lr, and AdamW or the rule itself over the rest with rest_lr."""
    settings = {name: tuple(x) if isinstance(x, list) else x for name, x in json.loads(one.settings).items()}
    lr, rest_lr = (scheduled(settings.pop(name), one.steps) for name in ("lr", "rest_lr"))
    roles = steprule.roles(model, example=(torch.zeros(1, 1, dtype=torch.long),))
    matrices = {row.name for row in roles.matrices}
    if any(name.startswith("adamw_") for name in settings):
        return steprule.create_optimizer(model, one.rule, lr=lr, adamw_lr=rest_lr, roles=roles, **settings)

    def is_rest(name: str, param: Tensor) -> bool:
        return name not in matrices

    return steprule.create_optimizer(model, one.rule, lr=lr, groups=[(is_rest, {"lr": rest_lr})], **settings)


def training(one: Wanted) -> Iterator[float]:
    """Trains as far as it is iterated over: the training loss of each step; and at the end the validation loss."""
    torch.manual_seed(one.seed)
    model = TASK.make_model(one.seed)
    optimizer = optimizer_of(model, one)
    model.train()
    for _, batch in zip(range(one.steps), TASK.batches(one.seed), strict=False):
        optimizer.zero_grad()
        loss = TASK.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item()
    model.eval()
    with torch.no_grad():
        yield TASK.evaluate(model)["loss"]


class Runs:
    """Losses of runs: those that are kept, and those that it trains.

    Args:
        may_train: whether it trains; else a run that is not kept is a KeyError.
    """

    def __init__(self, may_train: bool = True) -> None:
        self.may_train = may_train
        lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() and not record.QUICK else []
        self.kept = {Wanted(*run["run"]): run for run in map(json.loads, lines) if run["text"] == text_hash()}

    def __call__(self, rule: str, settings: Mapping[str, Any], steps: int, seed: int) -> float:
        """The validation loss at the end of a run, infinite if it diverged."""
        one = wanted(rule, settings, steps, seed)
        if one not in self.kept:
            if not self.may_train:
                raise KeyError(one)
            begin, loss = time.thread_time(), math.nan
            for loss in training(one):
                if not math.isfinite(loss):
                    break
            told = loss if math.isfinite(loss) else None
            run = {"run": one, "loss": told, "cpu_s": round(time.thread_time() - begin, 2), "text": text_hash()}
            self.kept[one] = run
            print(f"{one.rule} {one.settings}, {steps} steps, seed {seed}: {told}, {run['cpu_s']} s", flush=True)
            if not record.QUICK:
                KEPT.parent.mkdir(exist_ok=True)
                with KEPT.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
        found = self.kept[one]["loss"]
        return math.inf if found is None else float(found)


@cache
def text_hash() -> str:
    """SHA-256 of the text, which depends on the version of Python."""
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in tasks._stdlib_text())).hexdigest()


def tuned(loss: Callable[[Mapping[str, Any]], float], tuning: Tuning, begin: Mapping[str, Any]) -> dict[str, Any]:
    """The best settings that were tried.

    Args:
        loss: of settings.
        tuning: what to try.
        begin: where settings begin.
    """
    best = dict(begin)

    def climb(name: str, factor: float) -> None:
        """Multiplies and divides by a factor while it gets better."""
        for by in (factor, 1 / factor):
            start = best[name]
            while loss(tried := {**best, name: float(f"{best[name] * by:.4g}")}) < loss(best):
                best.update(tried)
                if record.QUICK:
                    return
            if best[name] != start:
                break

    climb("lr", 2)
    climb("rest_lr", 2)
    for name, values in tuning.tries.items():
        best[name] = min((best[name], *values), key=lambda value: loss({**best, name: value}))
    climb("lr", 2**0.5)
    return best


def crossing(loss: Callable[[int], float], target: float) -> float | None:
    """After how many steps a loss is reached: between two lengths of the ladder, on a line over the logarithm of steps.

    Args:
        loss: of a length.
        target: the loss.

    Returns:
        The steps; the least of the ladder where even that reaches it, None where the greatest does not.
    """
    at = LADDER.index(FULL)
    if loss(FULL) > target:
        at += 1
        if loss(LADDER[at]) > target:
            return None
    else:
        at = 2 if loss(LADDER[2]) <= target else 3 if loss(LADDER[3]) <= target else at
        while at and at < 3 and loss(LADDER[at - 1]) <= target:
            at -= 1
        if not at:
            return LADDER[0]
    few, many = LADDER[at - 1], LADDER[at]
    share = (loss(few) - target) / (loss(few) - loss(many))
    return few * (many / few) ** share if math.isfinite(share) else many


def row_of(rule: str, runs: Runs, baseline: Mapping[str, Any]) -> record.Record:
    """All about a rule, trained where needed.

    Args:
        rule: its name.
        runs: the runs.
        baseline: the row of AdamW; empty for itself.
    """
    tuning, is_baseline = RULES[rule], not baseline
    begin = {"lr": tuning.lr, "rest_lr": tuning.lr, "weight_decay": 0.1, **tuning.settings}
    if parse(rule, divide=True).divides:
        found = baseline["settings"]
        begin |= {"rest_lr": found["rest_lr"], "adamw_betas": found["betas"]}
    length = FULL if is_baseline else LADDER[2]
    tries: dict[str, float] = {}

    def loss(settings: Mapping[str, Any]) -> float:
        name = json.dumps(settings, sort_keys=True)
        tries[name] = runs(rule, settings, length, SEEDS[0])
        return tries[name]

    settings = tuned(loss, tuning, begin)
    losses = [runs(rule, settings, FULL, seed) for seed in SEEDS]
    targets = losses if is_baseline else baseline["losses"]
    reached = [
        float(FULL) if is_baseline else crossing(partial(runs_at, runs, rule, settings, seed), target)
        for seed, target in zip(SEEDS, targets, strict=True)
    ]
    return {
        "rule": rule,
        "settings": settings,
        "tuned_over": length,
        "tried": {name: finite(one) for name, one in tries.items()},
        "losses": [finite(one) for one in losses],
        "steps": reached,
        "runs": [
            {"steps": one.steps, "seed": one.seed, "loss": run["loss"], "cpu_s": run["cpu_s"]}
            for one, run in sorted(runs.kept.items())
            if (one.rule, one.settings) == (rule, json.dumps(settings, sort_keys=True))
        ],
    }


def runs_at(runs: Runs, rule: str, settings: Mapping[str, Any], seed: int, steps: int) -> float:
    return runs(rule, settings, steps, seed)


def finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def step_times(rows: list[record.Record]) -> dict[str, float]:
    """Milliseconds of the thread that a step takes, forward and backward included: medians of means over ten steps in a row,
    for which every basis and root is computed once."""
    going = {row["rule"]: training(wanted(row["rule"], row["settings"], 10**6, 0)) for row in rows}
    calls = {name: partial(next, one) for name, one in going.items()}
    return {name: 1e3 * s for name, s in interleaved(calls, 9, 10, time.thread_time).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--so-far", action="store_true", help="train nothing: the rules whose runs are all there")
    begun = record.head()
    torch.set_num_threads(1)
    runs = Runs(may_train=not parser.parse_args().so_far)
    rows: list[record.Record] = []
    for rule in RULES:
        try:
            rows.append(row_of(rule, runs, rows[0] if rows else {}))
        except KeyError:
            print(f"{rule}: not all of its runs are there")
            if not rows:
                raise
    for rule, ms in step_times(rows).items():
        next(row for row in rows if row["rule"] == rule)["step_ms"] = ms
    model = TASK.make_model(0)
    facts = {
        "steps": FULL,
        "seeds": SEEDS,
        "ladder": LADDER,
        "threads": 1,
        "elements": sum(param.numel() for param in model.parameters()),
        "tokens": next(iter(TASK.batches(0)))[0].numel(),
        "text": text_hash(),
    }
    kept = record.write("training_matrices", begun, rows, **facts)
    record.show([figures_of_training.training_matrices({"training_matrices": kept})])


if __name__ == "__main__":
    main()
