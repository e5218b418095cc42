"""Measures every rule against the memory and against what other libraries have of it; keeps rules.json and prints its table.

    python benchmarks/rules.py    # about 15 minutes, with all libraries
    python benchmarks/rules.py [--rules lamb,lion] [--elements 32M] [--repeats 15] [--no-compile]

Only a run of all rules, of the default size and rounds, is kept. Other libraries are measured where they are installed:
`make bench-rules` has an environment that has them all.

Contenders take turns, one step each a round, every one on tensors of its own with the same numbers; times are medians.
Of a library's ways to step (fused, foreach, its default) the one is measured that was fastest in a trial. heavyball is
compiled by torch.compile, as it comes, where there is a C++ compiler; --no-compile leaves that out. What peers do
otherwise than steprule, if anything, stands in tests/peers/make.py; here their cost matters, and no decay is on unless
it is by default, so that nobody pays for it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import logging
import shutil
import statistics
import sys
import textwrap
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import record
import torch
from bench import count
from figures import rules as figures_of_rules
from shapes import Shapes, gpt2_small

import steprule
from steprule.kernels.operands import keeps
from steprule.rule import Rule
from steprule.rules import OWN as OURS
from steprule.rules import RULES
from steprule.trace.expression import Expression
from steprule.trace.extent import ELEMENTS as OF_ELEMENTS
from steprule.trace.tracing import trace

ELEMENTS, REPEATS = ("200K", 2) if record.QUICK else ("32M", 15)
CHOSEN = ["adamw", "lamb", "sparseadam"] if record.QUICK else list(OURS)
OWN = figures_of_rules.LIBRARIES[-1]
SETTINGS: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
"""What is not default for steprule, and so for torch."""
SPARSE_ROWS = 8
"""SparseAdam takes sparse gradients alone: it is given the two embeddings, gradients that hold one row in so many, and
its elements are those that are there."""

_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
_PO = "pytorch_optimizer"
PEERS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "sgd": {
        "timm": ("timm.optim.sgdw.SGDW", {"momentum": 0.9}),
        _PO: ("pytorch_optimizer.SGDW", {"momentum": 0.9}),
        "heavyball": ("heavyball.SGD", {"beta": 0.9}),
        "optimi": ("optimi.SGD", {"lr": 1e-3, "momentum": 0.9, "torch_init": True}),
    },
    "rmsprop": {
        "timm": ("timm.optim.rmsprop_tf.RMSpropTF", {"alpha": 0.99}),
        "heavyball": ("heavyball.RMSprop", {}),
    },
    "adam": {"optimi": ("optimi.Adam", _ADAM)},
    "adamw": {
        "timm": ("timm.optim.adamw.AdamWLegacy", {}),
        "heavyball": ("heavyball.AdamW", {**_ADAM, "weight_decay": 0.01}),
        "optimi": ("optimi.AdamW", {**_ADAM, "weight_decay": 0.01}),
    },
    "nadam": {
        "timm": ("timm.optim.nadam.NAdamLegacy", {}),
        "heavyball": ("heavyball.NAdam", {}),
    },
    "radam": {
        "timm": ("timm.optim.radam.RAdamLegacy", {}),
        _PO: ("pytorch_optimizer.RAdam", {}),
        "optimi": ("optimi.RAdam", _ADAM),
    },
    "adadelta": {_PO: ("pytorch_optimizer.AdaDelta", {})},
    "adamax": {_PO: ("pytorch_optimizer.AdaMax", {})},
    "lion": {
        "timm": ("timm.optim.lion.Lion", {}),
        _PO: ("pytorch_optimizer.Lion", {}),
        "optimi": ("optimi.Lion", {"lr": 1e-4}),
        OWN: ("lion_pytorch.Lion", {}),
    },
    "signum": {_PO: ("pytorch_optimizer.SignSGD", {})},
    "adabelief": {
        "timm": ("timm.optim.adabelief.AdaBelief", {"rectify": False}),
        _PO: ("pytorch_optimizer.AdaBelief", {}),
        OWN: ("adabelief_pytorch.AdaBelief", {"rectify": False, "print_change_log": False}),
    },
    "yogi": {_PO: ("pytorch_optimizer.Yogi", {})},
    "laprop": {
        "timm": ("timm.optim.laprop.LaProp", {}),
        _PO: ("pytorch_optimizer.LaProp", {}),
        "heavyball": ("heavyball.LaProp", {}),
    },
    "adopt": {
        "timm": ("timm.optim.adopt.Adopt", {"clip_exp": 0.25, "decoupled": True}),
        _PO: ("pytorch_optimizer.ADOPT", {"weight_decouple": True}),
        "heavyball": ("heavyball.ADOPT", {}),
    },
    "ademamix": {
        _PO: ("pytorch_optimizer.AdEMAMix", {"weight_decouple": True}),
        "heavyball": ("heavyball.AdEMAMix", {"alpha": 5.0}),
    },
    "adan": {
        "timm": ("timm.optim.adan.Adan", {}),
        _PO: ("pytorch_optimizer.Adan", {}),
        "optimi": ("optimi.Adan", {"lr": 1e-3, "weight_decay": 0.0}),
    },
    "adamatan2": {OWN: ("adam_atan2_pytorch.AdamAtan2", {})},
    "grams": {
        _PO: ("pytorch_optimizer.Grams", {}),
        OWN: ("grams.Grams", {}),
    },
    "adamc": {
        "timm": ("timm.optim.adamw.AdamWLegacy", {"corrected_weight_decay": True}),
        _PO: ("pytorch_optimizer.AdamC", {"weight_decay": 0.01, "normalized": True}),
        "heavyball": ("heavyball.AdamC", {**_ADAM, "weight_decay": 0.01, "max_lr": 1e-3}),
    },
    "stableadamw": {
        "timm": ("timm.optim.adamw.AdamWLegacy", {"clipping_threshold": 1.0}),
        _PO: ("pytorch_optimizer.StableAdamW", {"kahan_sum": False}),
        "optimi": ("optimi.StableAdamW", {"lr": 1e-3}),
    },
    "mars": {
        "timm": ("timm.optim.mars.Mars", {"betas": (0.95, 0.99), "optimize_1d": True}),
        _PO: ("pytorch_optimizer.MARS", {"optimize_1d": True}),
    },
    "madgrad": {
        "timm": ("timm.optim.madgrad.MADGRAD", {}),
        _PO: ("pytorch_optimizer.MADGRAD", {}),
        OWN: ("madgrad.MADGRAD", {}),
    },
    "lars": {
        "timm": ("timm.optim.lars.Lars", {"lr": 0.1, "momentum": 0.9, "always_adapt": True}),
        _PO: ("pytorch_optimizer.LARS", {}),
    },
    "lamb": {
        "timm": ("timm.optim.lamb.Lamb", {"weight_decay": 0.0, "max_grad_norm": None, "always_adapt": True}),
        _PO: ("pytorch_optimizer.Lamb", {"max_grad_norm": 0.0}),
    },
    "novograd": {
        "timm": ("timm.optim.nvnovograd.NvNovoGrad", {}),
        _PO: ("pytorch_optimizer.NovoGrad", {}),
    },
    "prodigy": {
        _PO: ("pytorch_optimizer.Prodigy", {}),
        OWN: ("prodigyopt.Prodigy", {}),
    },
    "dadaptadam": {
        _PO: ("pytorch_optimizer.DAdaptAdam", {"weight_decouple": True}),
        OWN: ("dadaptation.DAdaptAdam", {"decouple": True}),
    },
    "dog": {OWN: ("dog.DoG", {})},
    "schedulefreesgd": {
        _PO: ("pytorch_optimizer.ScheduleFreeSGD", {}),
        OWN: ("schedulefree.SGDScheduleFree", {}),
    },
    "schedulefreeadamw": {
        _PO: ("pytorch_optimizer.ScheduleFreeAdamW", {}),
        "heavyball": ("heavyball.SFAdamW", {"betas": (0.9, 0.999)}),
        OWN: ("schedulefree.AdamWScheduleFree", {}),
    },
    "schedulefreeradam": {
        _PO: ("pytorch_optimizer.ScheduleFreeRAdam", {}),
        OWN: ("schedulefree.RAdamScheduleFree", {}),
    },
}
"""For each rule and library its class and arguments; torch.optim's are found by name."""
ALWAYS: dict[str, dict[str, Any]] = {"heavyball": {"consume_grad": False}}
WAYS: dict[str, dict[str, Any]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "": {}}


class Tensors:
    """The numbers that all contenders begin with.

    Attributes:
        size: how many elements change in a step.
    """

    def __init__(self, shapes: Shapes, is_sparse: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.randn(shape, generator=generator) for shape in shapes]
        self.grads = [self._grad(shape, generator, is_sparse) for shape in shapes]
        self.size = sum(grad._nnz() * shape[1:].numel() if is_sparse else grad.numel() for grad, shape in self._pairs())

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Size]]:
        return zip(self.grads, (param.shape for param in self.params), strict=True)

    @staticmethod
    def _grad(shape: tuple[int, ...], generator: torch.Generator, is_sparse: bool) -> torch.Tensor:
        if not is_sparse:
            return torch.randn(shape, generator=generator)
        rows = torch.randperm(shape[0], generator=generator)[: max(shape[0] // SPARSE_ROWS, 1)].sort().values
        values = torch.randn((len(rows), *shape[1:]), generator=generator)
        return torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False).coalesce()

    def start(self, optimizer_class: Any, settings: dict[str, Any]) -> Callable[[], Any]:
        """The step of a new optimizer over copies, two steps behind it."""
        params = [torch.nn.Parameter(param.clone()) for param in self.params]
        for param, grad in zip(params, self.grads, strict=True):
            param.grad = grad.clone()
        optimizer = optimizer_class(params, **settings)
        if hasattr(optimizer, "train"):
            optimizer.train()
        for _ in range(2):
            optimizer.step()
        return optimizer.step  # type: ignore[no-any-return]


def gpt2_like(elements: float) -> Shapes:
    """GPT-2-small's 148 tensors with all dimensions smaller or larger by one factor, for about so many elements."""
    width = max(round(768 * (elements / count(gpt2_small())) ** 0.5 / 16), 1) * 16
    return [tuple(dimension * width // 768 for dimension in shape) for shape in gpt2_small()]


# What a rule is: bytes and lines


def bytes_moved(rule: type[Rule], hyper: dict[str, Any]) -> tuple[int, int]:
    """The fewest bytes an element that a rule can move in float32: in its pass, and in readings before.

    Its kernel reads every operand that a new value depends on, once, and writes every new value, once. What has sums
    over elements reads what they are made of once more, in each of the readings before.
    """
    formula = trace(rule, hyper)
    written = {name: new for name, new in formula.last.outputs.items() if not keeps(name, new)}
    moved = len(_operands(list(written.values()))) + len(written)
    sums = ([one.expression for one in reading.sums.values()] for reading in formula.readings)
    return 4 * moved, 4 * sum(len(_operands(one)) for one in sums)


def _operands(expressions: list[Expression]) -> set[str]:
    """The elementwise operands that expressions depend on."""
    found: set[str] = set()
    seen: set[int] = set()
    left = list(expressions)
    while left:
        one = left.pop()
        if id(one) in seen or one.extent != OF_ELEMENTS:
            continue
        seen.add(id(one))
        if one.op == "input":
            found.add(one.args[0])
        else:
            left += [arg for arg in one.args if isinstance(arg, Expression)]
    return found


def lines_of(rule: type[Rule]) -> tuple[int, int]:
    """The lines of a rule's formula: of `update` alone, and with the functions of steprule.rules that it calls.

    A function's lines are those of its signature and of its statements. Decorators, docstrings, comments and blank
    lines do not count, nor what is in steprule.pieces.
    """
    functions = [rule.function()]
    for function in functions:  # grows meanwhile
        functions += [one for one in _called(function) if one not in functions]
    lines = [_lines(function) for function in functions]
    return lines[0], sum(lines)


def _tree(function: Callable[..., Any]) -> tuple[ast.FunctionDef, list[str]]:
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node, source.splitlines()


def _lines(function: Callable[..., Any]) -> int:
    node, source = _tree(function)
    statements = node.body[ast.get_docstring(node) is not None :]
    spans = [(node.lineno, node.body[0].lineno - 1), *((one.lineno, one.end_lineno or 0) for one in statements)]
    numbers = {number for start, end in spans for number in range(start, end + 1)}
    return sum(
        not source[number - 1].strip().startswith("#") and bool(source[number - 1].strip()) for number in numbers
    )


def _called(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions of steprule.rules that a function names, and other rules' updates."""
    found: list[Callable[..., Any]] = []
    names = function.__globals__
    for node in ast.walk(_tree(function)[0]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            value = getattr(names.get(node.value.id), node.attr, None)
        else:
            value = names.get(node.id) if isinstance(node, ast.Name) else None
        if inspect.isfunction(value) and value.__module__.startswith("steprule.rules"):
            found.append(value)
    return found


# Peers


def load(path: str) -> Any:
    """The class of a path.

    Raises:
        ImportError, AttributeError: it cannot be imported, or there is no such class.
    """
    module, name = path.rsplit(".", 1)
    if module.startswith("timm.") and "timm" not in sys.modules:
        spec = importlib.util.find_spec("timm")
        assert spec is not None and spec.submodule_search_locations is not None
        for package, folder in ("timm", ""), ("timm.optim", "optim"):  # their own import torchvision
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(Path(at, folder)) for at in spec.submodule_search_locations]
    return getattr(importlib.import_module(module), name)


def peers_of(name: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """For each installed library that has the rule its class and arguments."""
    rule = RULES[name].__name__
    torchs = {"torch": (f"torch.optim.{rule}", SETTINGS.get(name, {}))} if hasattr(torch.optim, rule) else {}
    peers = torchs | PEERS.get(name, {})
    return {one: peer for one, peer in peers.items() if is_installed(peer[0].split(".")[0])}


def is_installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def fastest(path: str, settings: dict[str, Any], tensors: Tensors) -> tuple[str, Callable[[], Any], float]:
    """A peer's fastest way to step: what it is called, a step, and about how many seconds that takes.

    Raises:
        Exception: whatever the peer does, if it cannot be had in any way.
    """
    peer = load(path)
    accepted = inspect.signature(peer).parameters
    found: tuple[str, Callable[[], Any], float] | None = None
    reason: Exception = TypeError(f"{path} takes none of our arguments")
    for way, extra in WAYS.items():
        if not set(extra) <= set(accepted):
            continue
        try:
            with quietly():
                step = tensors.start(peer, {**settings, **ALWAYS.get(path.split(".")[0], {}), **extra})
                seconds = trial(step)
        except Exception as error:
            reason = error
            continue
        if found is None or seconds < found[2]:
            found = way, step, seconds
        del step
        gc.collect()  # optimizers refer to themselves, and each has several times the parameters' memory
    if found is None:
        raise reason
    return found


def trial(step: Callable[[], Any]) -> float:
    return min(timed(step) for _ in range(2))


def timed(step: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what peers have to say about themselves."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def versions() -> dict[str, str]:
    """The peers that are installed."""
    distributions = importlib.metadata.packages_distributions()
    packages = {path.split(".")[0] for peers in PEERS.values() for path, _ in peers.values()}
    found = {distributions[one][0] for one in packages if one in distributions}
    return {one: importlib.metadata.version(one) for one in sorted(found)}


# Measuring


def measure(name: str, shapes: Shapes, repeats: int) -> dict[str, Any]:
    """A row: one rule, all its contenders in turns."""
    rule, settings = RULES[name], SETTINGS.get(name, {})
    is_sparse = name == "sparseadam"
    tensors = Tensors(shapes[:2] if is_sparse else shapes, is_sparse)
    in_pass, in_readings = bytes_moved(rule, {**rule.hyperparameters, **settings})
    scaled = torch.randn(tensors.size)
    ours = tensors.start(getattr(steprule, rule.__name__), settings)
    steps: dict[str, Callable[[], Any]] = {"steprule": ours, "scale": lambda: scaled.mul_(1.0000001), "sum": scaled.sum}
    usual = trial(ours)
    rounds = dict.fromkeys(steps, repeats)
    ways: dict[str, str] = {}
    failed: dict[str, str] = {}
    for library, (path, its_settings) in peers_of(name).items():
        try:
            ways[library], steps[library], seconds = fastest(path, its_settings, tensors)
        except Exception as error:
            failed[library] = f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            continue
        rounds[library] = repeats if seconds < 20 * usual else max(repeats // 5, 2)
    times: dict[str, list[float]] = {one: [] for one in steps}
    with quietly():
        for turn in range(repeats):
            for one, step in steps.items():
                if turn < rounds[one]:
                    times[one].append(timed(step))
    seconds_of = {one: statistics.median(values) for one, values in times.items()}
    moved = {"steprule": in_pass + in_readings, "scale": 8, "sum": 4}
    bandwidth = {one: tensors.size * b / seconds_of[one] / 1e9 for one, b in moved.items()}
    fastest_possible = tensors.size * (in_pass / bandwidth["scale"] + in_readings / bandwidth["sum"]) / 1e9
    lines, all_lines = lines_of(rule)
    return {
        "rule": name,
        "lines": lines,
        "lines_with_shared": all_lines,
        "elements": tensors.size,
        "seconds": seconds_of,
        "bytes": moved["steprule"],
        "bytes_of_readings": in_readings,
        "gb_per_s": bandwidth["steprule"],
        "scale_gb_per_s": bandwidth["scale"],
        "of_scale": bandwidth["steprule"] / bandwidth["scale"],
        "sum_gb_per_s": bandwidth["sum"],
        "of_memory": fastest_possible / seconds_of["steprule"],
        "takes": {one: seconds_of[one] / seconds_of["steprule"] for one in ways},
        "ways": ways,
        "rounds": rounds,
        "failed": failed,
    }


def number_of(text: str) -> float:
    return float(text.rstrip("KMG")) * {"K": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", default=",".join(CHOSEN), help="names, separated by commas")
    parser.add_argument("--elements", default=ELEMENTS, help=f"about how many, such as 500K or {ELEMENTS}")
    parser.add_argument("--repeats", default=REPEATS, type=int, help="rounds")
    parser.add_argument("--no-compile", action="store_true", help="heavyball without torch.compile")
    options = parser.parse_args()
    names = options.rules.split(",")
    if unknown := [name for name in names if name not in RULES]:
        parser.error(f"unknown rule {unknown[0]!r}; choose from {', '.join(RULES)}")
    begun = record.head()
    is_compiled = False
    if is_installed("heavyball"):
        is_compiled = shutil.which("g++") is not None and not options.no_compile
        if not is_compiled:
            importlib.import_module("heavyball").utils.compile_mode = None
    shapes = gpt2_like(number_of(options.elements))
    rows = []
    for name in names:
        rows.append(measure(name, shapes, options.repeats))
        gc.collect()
        print(f"{name}: {rows[-1]['of_scale']:.0%} of the scale's bandwidth", file=sys.stderr, flush=True)
    facts = {
        "elements": count(shapes),
        "tensors": len(shapes),
        "rounds": options.repeats,
        "threads": torch.get_num_threads(),
        "scale_gb_per_s": statistics.median(row["scale_gb_per_s"] for row in rows),
        "peers": versions(),
        "heavyball_compiled": is_compiled,
    }
    is_kept = (options.elements, options.repeats, names) == (ELEMENTS, REPEATS, CHOSEN)
    kept = record.write("rules", begun, rows, **facts) if is_kept else {**begun, "facts": facts, "rows": rows}
    record.show([figures_of_rules.rules({"rules": kept})])


if __name__ == "__main__":
    main()
