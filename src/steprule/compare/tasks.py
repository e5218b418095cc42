"""What is trained: the Task that a user writes too, and those that ship."""

from __future__ import annotations

import inspect
import math
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from steprule.compare.errors import UsageError

__all__ = ["TASKS", "Task", "chars", "chars_large", "described", "digits"]


def _tuned(**lrs: float) -> tuple[str, ...]:
    """The four optimizers of the default comparison; for the tasks that ship, each with its best of a grid of lrs."""
    others = {"sgd": ",momentum=0.9", "adamw": ",weight_decay=0.1"}
    return tuple(f"{name}:lr={lr}{others.get(name, '')}" for name, lr in lrs.items())


@dataclass(frozen=True)
class Task:
    """A model, its data and a goal: what ``steprule compare --task module:function`` gets from ``function()``.

    ``examples/task.py`` is a complete one. torch, NumPy and random are seeded with the seed before make_model and
    before batches are called, so the seed alone decides on the first weights and on the order of the data.

    Attributes:
        name: a text, what the results call the task.
        make_model: a function of the seed (an int) that returns a new torch.nn.Module, on the device to train on.
        batches: a function of the seed (an int) that returns an iterable of batches, at least as many as steps. A
            batch is whatever loss takes; often a tuple of an input and a label tensor, whose first dimension is the
            size of the batch.
        loss: a function of the model, in training mode, and a batch. Returns the training loss, a tensor of one
            element that has a gradient.
        evaluate: a function of the model, in evaluation mode and without gradients. Returns a dict with "loss", the
            validation loss (a float), and optionally "accuracy" (a float from 0 to 1).
        target: the validation loss to reach, a float.
        steps: how many steps to train for, an int of at least 1. The command's --steps and --seconds override it.
        eval_every: how many steps lie between evaluations, an int of at least 1. Default: 10.
        optimizers: what is compared when the command names none, texts as on the command line. Default: sgd with
            lr=0.1 and momentum=0.9, rmsprop and adam with lr=0.001, adamw with lr=0.001 and weight_decay=0.1.
        description: a sentence for the report. Default: the first paragraph of the docstring of ``function``.

    Raises:
        TypeError, ValueError: an attribute cannot be that; the message names it and its value and says what it must be.
    """

    name: str
    make_model: Callable[[int], nn.Module]
    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    evaluate: Callable[[nn.Module], Mapping[str, float]]
    target: float
    steps: int
    eval_every: int = 10
    optimizers: tuple[str, ...] = _tuned(sgd=0.1, rmsprop=0.001, adam=0.001, adamw=0.001)
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.description, str):
            raise TypeError(f"Task's description must be a text, not {self.description!r}")
        if not isinstance(self.name, str) or not self.name.strip():
            raise TypeError(f"Task's name must be a text, not {self.name!r}")
        for field in ("make_model", "batches", "loss", "evaluate"):
            if not callable(getattr(self, field)):
                raise TypeError(f"Task's {field} must be a function, not {getattr(self, field)!r}")
        target = self.target
        if isinstance(target, bool) or not isinstance(target, Real) or not math.isfinite(target):
            raise ValueError(f"Task's target must be a finite number, not {target!r}")
        for field in ("steps", "eval_every"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"Task's {field} must be a whole number of at least 1, not {value!r}")
            object.__setattr__(self, field, int(value))  # NumPy's would not go into JSON
        object.__setattr__(self, "target", float(target))
        named = self.optimizers
        if (
            isinstance(named, str)
            or not isinstance(named, Sequence)
            or not named
            or not all(isinstance(one, str) for one in named)
        ):
            raise TypeError(f"Task's optimizers must be a tuple of texts such as 'adam:lr=0.01', not {named!r}")


def described(task: Task, make: Callable[[], Task]) -> Task:
    """The task with a description: its own, or the first paragraph of the docstring of the function that made it."""
    if task.description:
        return task
    first = (inspect.getdoc(make) or "").partition("\n\n")[0]
    return replace(task, description=" ".join(first.split()))


def _classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten())


def _evaluate(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, float]:
    scores = model(inputs).flatten(0, -2)
    right = scores.argmax(-1) == labels.flatten()
    return {
        "loss": functional.cross_entropy(scores, labels.flatten()).item(),
        "accuracy": right.double().mean().item(),
    }


def digits() -> Task:
    """Classify handwritten digits of 8 by 8 pixels (scikit-learn's) with a small convolutional network;
    1,347 images are for training and 450 for validation.
    """
    train_images, train_labels, test_images, test_labels = _digits_data()

    def make_model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.split(torch.randperm(len(train_labels), generator=generator), 64):
                yield train_images[chosen], train_labels[chosen]

    return Task(
        name="digits",
        make_model=make_model,
        batches=batches,
        loss=_classify,
        evaluate=lambda model: _evaluate(model, test_images, test_labels),
        target=0.1,
        steps=200,
        eval_every=5,
        optimizers=_tuned(sgd=0.03, rmsprop=0.003, adam=0.006, adamw=0.01),
    )


@cache
def _digits_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.25, random_state=0, stratify=labels
    )

    def pixels(values: Any) -> Tensor:  # from 0..16 to about 0 in the mean and 1 in the spread
        return (torch.tensor(values, dtype=torch.float32).view(-1, 1, 8, 8) - 5) / 6

    return pixels(train_images), torch.tensor(train_labels), pixels(test_images), torch.tensor(test_labels)


VOCABULARY = 128
CONTEXT = 32
_TEXT_BYTES = 2_000_000
_VALIDATION_WINDOWS = 128


def chars() -> Task:
    """Predict the next character in the source of Python's standard library with a small causal transformer;
    every tenth file is for validation. The text, and so the numbers, depend on the version of Python.
    """
    lrs = _tuned(sgd=0.3, rmsprop=0.003, adam=0.01, adamw=0.01)
    return _of_text(CharTransformer, CONTEXT, 32, name="chars", target=2.2, steps=350, eval_every=10, optimizers=lrs)


def chars_large() -> Task:
    """The same text as in chars, with a transformer of 0.8 million parameters, most of them in matrices, and twice the
    context. A run takes about a minute on one core.
    """

    def make_model() -> nn.Module:
        return CharTransformer(128, 4, context=2 * CONTEXT)

    adamw = "adamw:lr=0.004,betas=(0.9,0.99),weight_decay=0.1"
    muon = "muon:lr=0.0226,adamw_lr=0.016,adamw_betas=(0.9,0.99),momentum=0.9,weight_decay=0.1,adjust_lr_fn='match_rms_adamw'"
    return _of_text(
        make_model, 2 * CONTEXT, 16, name="chars-large", target=2.2, steps=400, eval_every=20, optimizers=(adamw, muon)
    )


def _of_text(make_model: Callable[[], nn.Module], context: int, batch_size: int, **settings: Any) -> Task:
    """A task of windows into the text.

    Args:
        make_model: makes the model; its weights are random.
        context: how many characters a window has.
        batch_size: how many windows a batch has.
        settings: what else the Task is given.
    """
    text, validation = _stdlib_text()
    starts = torch.linspace(0, len(validation) - context - 1, _VALIDATION_WINDOWS).long()
    inputs, labels = _windows(validation, starts, context)

    def seeded(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make_model()

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(text) - context, (batch_size,), generator=generator)
            yield _windows(text, starts, context)

    return Task(
        make_model=seeded,
        batches=batches,
        loss=_classify,
        evaluate=lambda model: _evaluate(model, inputs, labels),
        **settings,
    )


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Stretches of so many characters, and of those that follow each: two int64 tensors (starts, context)."""
    both = text[starts[:, None] + torch.arange(context + 1)].long()
    return both[:, :-1], both[:, 1:]


@cache
def _stdlib_text() -> tuple[Tensor, Tensor]:
    """The characters of the training and the validation files, uint8, one beyond ASCII as 127."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    size = 0
    for number, file in enumerate(sorted(folder.glob("*.py"))):
        source = file.read_bytes()[: _TEXT_BYTES - size]
        size += len(source)
        parts[number % 10 == 9].append(source)
        if size == _TEXT_BYTES:
            break
    if size < 100_000:
        raise UsageError(f"task 'chars': this Python has no source of its standard library in {folder}")
    train, validation = (torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8) for part in parts)
    return train.clamp(max=VOCABULARY - 1), validation.clamp(max=VOCABULARY - 1)


class CharTransformer(nn.Module):
    """A causal transformer over characters: int64 (batch, length up to context) to scores (batch, length, VOCABULARY)."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4, context: int = CONTEXT) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, characters: Tensor) -> Tensor:
        """Scores of every character to come next, at every position."""
        x = self.token(characters) + self.position.weight[: characters.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix_in, self.mix_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mix_in(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix_out(mixed.transpose(1, 2).flatten(2))
        output: Tensor = x + self.think(self.norm2(x))
        return output


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "chars": chars, "chars-large": chars_large}
"""The tasks that ship, by the name that --task takes."""
