"""The docstrings of optimizers' classes and constructors, from what their rules say."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from steprule.hyper import UNSAID
from steprule.registry import RULES
from steprule.rule import Rule

WIDTH = 72
"""Columns of a docstring, which help() indents by up to 8."""

PARAMS = "tensors, (name, tensor) pairs, or dicts with such params and settings of a group."
ARRAYS = "NumPy arrays of float16, float32 or float64, which `step` changes in place."

_TORCHS = (
    "accepted for compatibility with torch.optim; the tensors decide how they are stepped.",
    "The groups keep them. As in torch.optim, fused=True refuses parameters that are not floating point.",
)
OPTION_TEXTS: dict[str, tuple[str, ...]] = {
    "maximize": ("follow the gradient upward.", "", "False"),
    "differentiable": ("let autograd pass through the step.", "That is slower.", "False"),
    "foreach": _TORCHS,
    "fused": _TORCHS,
    "capturable": _TORCHS,
    "states": (
        'keep states as "float32", "bfloat16" or "8bit".',
        '"8bit" keeps an 8-bit code for each element and a 16-bit exponent for each block of 128 elements; tensors with '
        "fewer than 32 elements in a row, keep float32.",
        "the parameter's dtype",
    ),
    "weights": (
        'keep half-precision parameters as "stochastic", "24bit" or "32bit".',
        '"stochastic" rounds at random, so that small updates count on average. "24bit" and "32bit" keep the low bits '
        "that rounding cuts off in the state, in place of a float32 master copy.",
        "round to nearest, which loses small updates",
    ),
    "seed": ("seed of stochastic rounding.", "An int from 0 to 2**53. Every process must have the same.", "0"),
    "clip": (
        "clip gradients to this norm, or as an object from steprule.services says.",
        "A number is the largest norm of all gradients together. The objects are ClipNorm, ClipValue, ClipAdaptive and "
        'ClipQuantile. A group with "clip": False is left out. The tensors param.grad stay as they are; `grad_norm` is '
        "their norm.",
        "None",
    ),
    "nonfinite": (
        'where a gradient is not finite, "skip" the step, "zero" the elements or "raise".',
        "Without it the step is taken, as in torch.optim.",
        "None",
    ),
    "average": (
        "keep an EMA (exponential moving average) of the weights with this decay.",
        "Or an Average from steprule.services.",
        "None",
    ),
    "telemetry": (
        "record norms of gradients, updates and weights every so many steps.",
        "Or a Telemetry from steprule.services.",
        "None",
    ),
    "grads": (
        'sum micro-batches\' half-precision gradients in "float32", "24bit" or "32bit".',
        '"24bit" and "32bit" keep the low bits that rounding cuts off beside param.grad. Without it the sum has the '
        "parameter's dtype.",
        "None",
    ),
    "process_group": (
        "the processes over which the parameters are spread, each of which steps others.",
        "A group of torch.distributed, for FSDP1, DeepSpeed and your own ways to divide parameters; "
        "ZeroRedundancyOptimizer's is found, and DistributedDataParallel, FSDP2 and tensor parallelism need none. Norms, sums "
        "over all parameters and the decision to skip are then those of all these processes, which all call step(), also one "
        'that has no parameters ([{"params": []}]). A parameter counts as a whole tensor, except FSDP1\'s and the vectors '
        "that a trainer puts in the place of matrices: these are pieces of tensors, and what needs the norm or sum of one "
        "tensor is refused. A state dict has no group, and a pickled copy needs one before its next step: it is an attribute.",
        "None",
    ),
    "decay": (
        'what weight_decay means: "coupled", "decoupled", "independent", "corrected" or "initial".',
        "Coupled: added to the gradient, L2. Decoupled: times lr. Independent: not times lr. Corrected: times "
        "lr**2 / max_lr. Initial: toward the first weights, times lr.",
        "what the formula says",
    ),
    "cautious": (
        "set to 0 the elements of the update that go up the gradient.",
        "The others are enlarged to make up for it.",
        "False",
    ),
    "cautious_decay": ("decay only weights that the update brings nearer to 0.", "", "False"),
    "lookahead": (
        "steps between two updates of slow weights; 0 for none.",
        "Every so many steps the slow weights move toward the weights, which then restart from them.",
        "0",
    ),
    "lookahead_alpha": ("share of the way that slow weights move.", "From 0 to 1.", "0.5"),
}
"""Of each argument that all optimizers of tensors take: what it does, more of that, and its default."""


def option(name: str, at_length: bool = False) -> str:
    """What an argument does, in short or at length."""
    what, more, *default = OPTION_TEXTS[name]
    return " ".join([what, *[more] * (at_length and more != ""), *(f"Default: {one}." for one in default)])


RAISES = {
    "TypeError": "an argument is unknown, or a value is of the wrong kind.",
    "ValueError": "a value is out of range, or does not go with another.",
    "RuleError": "the formula cannot be compiled; the message says what to write instead.",
}


def words_of(rule: type[Rule], name: str) -> str:
    """What a hyperparameter is and which values it may have, in sentences."""
    return rule.meanings.get(name, UNSAID).words(isinstance(rule.hyperparameters[name], tuple))


def texts_of(rule: type[Rule], name: str) -> Any:
    """The type of the texts that a hyperparameter may be, None if there are none."""
    texts = rule.meanings.get(name, UNSAID).texts
    return Literal[texts] if texts else None


def arguments(rule: type[Rule], signature: inspect.Signature, params: str) -> str:
    """Sections of what a constructor takes and raises."""
    told = {"params": params}
    for name in signature.parameters:
        if name in rule.hyperparameters:
            told[name] = f"{words_of(rule, name)} Default: {rule.hyperparameters[name]!r}."
        elif name in OPTION_TEXTS:
            told[name] = option(name)
    return f"{_section('Args', told)}\n\n{_section('Raises', RAISES)}\n"


def options_at_length() -> str:
    """A section of the arguments that all optimizers of tensors take."""
    return (
        _section("Arguments that all optimizers take, by name", {name: option(name, True) for name in OPTION_TEXTS})
        + "\n"
    )


def class_docstring(rule: type[Rule], args: str, states: Mapping[str, str], where: str, example: Iterable[str]) -> str:
    """What a class says of itself.

    Args:
        rule: whose own docstring comes first.
        args: what `arguments` returned.
        states: what they are, by name.
        where: where they are to be found.
        example: lines of code.
    """
    paragraphs = inspect.cleandoc(rule.__doc__ or rule.__name__).split("\n\n")
    text = "\n\n".join(one if "\n " in one or one[:1] in " >-*" else textwrap.fill(one, WIDTH) for one in paragraphs)
    kept = _section(f"States, in {where}", states) if states else "It keeps no states."
    code = "\n".join(f"    >>> {line}" for line in example)
    return f"{text}\n\n{args}\n{kept}\n\nExample:\n{code}\n"


def states(rule: type[Rule], kinds: Mapping[str, str]) -> dict[str, str]:
    """What the states of a rule are.

    Args:
        rule: the rule.
        kinds: how a front keeps a state of each extent, from "elements" to "right", and one of step's dtype, "step".
    """
    told = {}
    for name, state in rule.states.items():
        first = f"{state.begins:g}" if isinstance(state.begins, (int, float)) else state.begins
        first = "the parameter" if first == "param" else first
        only = f"; only with {state.when}" if state.when else ""
        told[name] = f"{kinds[state.dtype or state.extent]}; {first} at first{only}."
    return told


def is_listed(rule: type[Rule]) -> bool:
    """Whether steprule has a class of the rule's name."""
    return RULES.get(rule.__name__.lower()) is rule


def torch_class(rule: type[Rule]) -> str:
    """What its optimizer over torch's parameters is called."""
    return f"steprule.{rule.__name__}" if is_listed(rule) else f"steprule.Optimizer.of({rule.__name__})"


def _section(title: str, told: Mapping[str, str]) -> str:
    """A section, in which names that have the same text share a line."""
    names: dict[str, list[str]] = {}
    for name, text in told.items():
        names.setdefault(text, []).append(name)
    return "\n".join([f"{title}:", *(_entry(f"{', '.join(who)}: {text}") for text, who in names.items())])


@functools.cache
def _entry(text: str) -> str:
    """An entry of a section; most are in many docstrings."""
    return textwrap.fill(text, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, break_long_words=False)
