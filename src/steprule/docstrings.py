"""The docstrings of optimizers' classes and constructors, from what their rules say."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Iterable, Mapping

from steprule.hyper import UNSAID
from steprule.rule import RULES, Rule

WIDTH = 72
"""Columns of a docstring, which help() indents by up to 8."""

PARAMS = "tensors, (name, tensor) pairs, or dicts with such params and settings of a group."
ARRAYS = "NumPy arrays of float16, float32 or float64, which `step` changes in place."

_TORCHS = "accepted as in torch.optim; the engine is chosen by what the tensors are."
OPTIONS = {
    "foreach": _TORCHS,
    "fused": _TORCHS,
    "capturable": _TORCHS,
    "maximize": "follow the gradient upwards. Default: False.",
    "differentiable": "let autograd pass through the step. Default: False.",
    "states": 'keep states as "float32", "bfloat16" or "8bit". Default: the parameter\'s dtype.',
    "weights": 'keep half-precision parameters as "stochastic", "24bit" or "32bit". Default: round to nearest.',
    "seed": "seed of random rounding. Default: 0.",
    "clip": "clip gradients to this norm, or as an object of steprule.services says. Default: None.",
    "nonfinite": 'where a gradient is not finite, "skip" the step, "zero" the elements or "raise". Default: None.',
    "average": "keep an exponential average of the weights with this decay. Default: None.",
    "telemetry": "gather norms every so many steps. Default: None.",
    "grads": 'sum micro-batches\' half-precision gradients in "float32", "24bit" or "32bit". Default: None.',
    "decay": (
        'what weight_decay means: "coupled", "decoupled", "independent", "corrected" or "initial". '
        "Default: what the formula says."
    ),
    "cautious": "leave out the part of a step that goes up the gradient. Default: False.",
    "cautious_decay": "decay only weights that the step brings nearer to 0. Default: False.",
    "lookahead": "steps between two updates of slow weights; 0 for none. Default: 0.",
    "lookahead_alpha": "share of the way that slow weights move. Default: 0.5.",
}
"""The arguments that all optimizers of tensors take, in short."""

RAISES = {
    "TypeError": "an argument is unknown, or a value is of the wrong kind.",
    "ValueError": "a value is out of range, or does not go with another.",
    "RuleError": "the formula cannot be compiled; the message says what to write instead.",
}


def words_of(rule: type[Rule], name: str) -> str:
    """What a hyperparameter is and which values it may have, in sentences."""
    return rule.meanings.get(name, UNSAID).words(isinstance(rule.hyperparameters[name], tuple))


def arguments(rule: type[Rule], signature: inspect.Signature, params: str) -> str:
    """Sections of what a constructor takes and raises."""
    told = {"params": params}
    for name in signature.parameters:
        if name in rule.hyperparameters:
            told[name] = f"{words_of(rule, name)} Default: {rule.hyperparameters[name]!r}."
        elif name in OPTIONS:
            told[name] = OPTIONS[name]
    return f"{_section('Args', told)}\n\n{_section('Raises', RAISES)}\n"


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
        kinds: how a front keeps a state of each extent, "elements" and "scalar", and one of step's dtype, "step".
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
