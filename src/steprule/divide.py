"""The parameter groups that a training script would otherwise sort by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from steprule.patterns import Pattern, abbreviated, matches

_COMPILED = "_orig_mod."
"""What the names of a model begin with that torch.compile has wrapped; the model itself does not know."""

Model = nn.Module | Iterable[tuple[str, Tensor]]
GroupSettings = Sequence[tuple[Pattern, Mapping[str, Any]]]


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """How a model's parameters are divided; printed, it is a table.

    Attributes:
        parts: the groups; an optimizer would write into them, so it is given `groups`.
        left_out: name and parameter of those that require no gradient.
    """

    parts: tuple[Mapping[str, Any], ...]
    left_out: tuple[tuple[str, Tensor], ...]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What any torch.optim class takes as params; new dicts every time."""
        return [{**part, "params": list(part["params"])} for part in self.parts]

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of parameters that require no gradient."""
        return tuple(name for name, _ in self.left_out)

    def __str__(self) -> str:
        settings = dict.fromkeys(["lr", "weight_decay", *(key for part in self.parts for key in part)])
        columns = [key for key in settings if key not in ("params", "name")]
        rows = [("group", "tensors", "elements", *columns, "parameters")]
        for part in (*self.parts, *([{"name": "frozen", "params": self.left_out}] if self.left_out else [])):
            names, params = zip(*part["params"], strict=True)
            elements = "unknown" if any(map(is_lazy, params)) else f"{sum(param.numel() for param in params):,}"
            counts = f"{len(params):,}", elements
            rows.append((part["name"], *counts, *(_text(part.get(key)) for key in columns), abbreviated(names)))
        first, *middle, _ = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join((r[0].ljust(first), *map(str.rjust, r[1:-1], middle), r[-1])) for r in rows)

    __repr__ = __str__


def _text(value: Any) -> str:
    if callable(value) and not isinstance(value, Tensor):
        return "function"
    return "-" if value is None else f"{float(value):.4g}" if isinstance(value, (float, Tensor)) else str(value)


def parameter_groups(
    model: Model, *, lr: float | Tensor | None = None, weight_decay: float | Tensor | None = None,
    no_decay: bool | str | Sequence[str] = True, layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None, groups: GroupSettings = (),
) -> Split:  # fmt: skip
    """Divides parameters into groups, for any optimizer of steprule or torch.optim::

        torch.optim.SGD(parameter_groups(model, lr=0.1, weight_decay=1e-4).groups)

    Every parameter that requires a gradient is in one group; one that has several names goes by the first of them.
    A group holds (name, parameter) pairs, its name, and the settings that were given.

    Args:
        model: a module, or (name, parameter) pairs.
        lr: the learning rate of all groups without one of their own. Default: the optimizer's.
        weight_decay: the same of those that decay. Default: the optimizer's.
        no_decay: which parameters have weight_decay=0. True: vectors and scalars (so those of normalization layers),
            every parameter called bias, and those that the model's `no_weight_decay()` names, as timm's have it.
            "embeddings": the weights of nn.Embedding and nn.EmbeddingBag too. A list of patterns such as "*.bias": what
            matches one of them, and nothing else. False: none. Default: True.
        layer_decay: the last layer has lr, and each one before it layer_decay times the lr of the next: a number above
            0, at most 1. Layers are the numbered modules of the largest list in the model ("blocks.3.attn.weight"),
            counted from 1; 0 is what comes before the list, and the last layer is what comes after it. The largest
            is the one with the most modules times elements. Frozen layers count. Default: None, the same lr for all.
        layer_of: a function from a parameter's name to its layer, an int from 0, to use instead of the numbers in names,
            and of what a model's `group_matcher` says, as timm's have it.
        groups: (pattern, settings) pairs for parameters with settings of their own; the first that matches wins. A
            pattern is matched with the whole name ("head.*"), or is a function of name and parameter. Settings that
            are not given are those of the other groups; an lr or weight_decay that is given is used as it is.

    Raises:
        ValueError: a value makes no sense, a pattern matches nothing, there is nothing to train, or a lazy module's
            parameter has no shape yet.
        TypeError: model or groups is of another kind.
    """
    all_of_them = Section(
        "", {} if lr is None else {"lr": lr}, {} if weight_decay is None else {"weight_decay": weight_decay}
    )
    return divided(model, [(all_of_them, None)], no_decay, layer_decay, layer_of, groups)


@dataclass(frozen=True)
class Section:
    """Parameters that have the same settings, but for those of layers, of what does not decay and of a pattern.

    Attributes:
        title: what their groups are called; empty if there are no others.
        settings: all but weight_decay.
        decay: weight_decay, if that is given.
        ignores: hyperparameters that are nothing to them.
    """

    title: str
    settings: Mapping[str, Any]
    decay: Mapping[str, Any]
    ignores: Collection[str] = ()


def divided(
    model: Model, sections: Sequence[tuple[Section, Set[Tensor] | None]], no_decay: Any, layer_decay: Any,
    layer_of: Callable[[str], int] | None, groups: GroupSettings,
) -> Split:  # fmt: skip
    """What `parameter_groups` returns, of several sections: the parameters given with each, or all."""
    named = _named(model)
    layers = _layers(model, named, [section.settings.get("lr") for section, _ in sections], layer_decay, layer_of)
    undecayed = _undecayed(model, named, no_decay)
    chosen = _chosen(named, groups)
    parts: dict[tuple[int, int, int, bool], dict[str, Any]] = {}
    for name, param in named.items():
        if not param.requires_grad:
            continue
        found = ((place, section) for place, (section, own) in enumerate(sections) if own is None or param in own)
        place, section = next(found, (-1, None))
        if section is None:
            raise ValueError(
                f"roles says nothing of {name!r}: it is the table of another model, or was made before a change"
            )
        number = chosen.get(name, -1)
        pattern, own = groups[number] if number >= 0 else (None, {})
        if useless := [key for key in own if key in section.ignores]:
            raise ValueError(f"groups[{number}]: {useless[0]} is nothing to {section.title}, which steps {name!r}")
        layer, factor = layers[name] if layers and "lr" not in own else (-1, 1.0)
        bare = name in undecayed and "weight_decay" not in {*own, *section.ignores}
        if (place, number, layer, bare) not in parts:
            title = [section.title] if section.title else []
            title += [pattern if isinstance(pattern, str) else f"groups[{number}]"] if number >= 0 else []
            title += [f"layer {layer}"] * (layer >= 0) + ["no decay"] * bare
            part: dict[str, Any] = {"params": [], "name": ", ".join(title) or ("decay" if undecayed else "default")}
            part |= section.settings
            part |= {"lr": part["lr"] * factor} if layer >= 0 else {}
            part |= {"weight_decay": 0.0} if bare else section.decay
            parts[place, number, layer, bare] = {**part, **own}
        parts[place, number, layer, bare]["params"].append((name, param))
    left_out = tuple((name, param) for name, param in named.items() if not param.requires_grad)
    if not parts:
        raise ValueError(f"model has no parameters to train; {len(left_out)} are frozen")
    return Split(tuple(parts[key] for key in sorted(parts)), left_out)


def _named(model: Model) -> dict[str, Tensor]:
    """Each parameter once, under its first name."""
    pairs: Any = model.named_parameters() if isinstance(model, nn.Module) else model
    named: dict[str, Tensor] = {}
    first: dict[Tensor, str] = {}
    for pair in pairs if isinstance(pairs, Iterable) else [pairs]:
        match pair:
            case (str() as name, Tensor() as param):
                if named.setdefault(first.setdefault(param, name), param) is not param:
                    raise ValueError(f"model has two parameters called {name!r}")
            case _:
                kind = type(pair).__name__
                raise TypeError(f"model must be a torch.nn.Module or (name, parameter) pairs, not {kind}")
    return named


def _layers(
    model: Model, named: Mapping[str, Tensor], rates: Sequence[Any], layer_decay: Any, layer_of: Callable[[str], int] | None
) -> dict[str, tuple[int, float]]:  # fmt: skip
    """Each parameter's layer and what lr is multiplied by there; empty without layer_decay."""
    if layer_decay is None:
        if layer_of is not None:
            raise ValueError(f"layer_of={layer_of} needs layer_decay, the factor from a layer to the one before it")
        return {}
    if isinstance(layer_decay, (bool, str)) or not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be a number above 0, at most 1, not {layer_decay!r}")
    for lr in rates:
        if not hasattr(lr, "__float__"):
            raise ValueError(f"layer_decay={layer_decay} needs lr, a number to multiply, not {lr!r}")
    if layer_of is None and callable(getattr(model, "group_matcher", None)):  # of timm
        from steprule.integrations import timm

        found = timm.layers(model)
        layer_of = lambda name: found[name.removeprefix(_COMPILED)]  # noqa: E731
    layers = {name: layer_of(name) for name in named} if layer_of else _find_layers(named)
    if not layers:
        raise ValueError(f"layer_decay={layer_decay} finds no list of layers ('blocks.3.weight'); give it layer_of")
    for name, layer in layers.items():
        if not isinstance(layer, int) or layer < 0:
            raise ValueError(f"layer_of must return an int from 0 on, not {layer!r} (for {name!r})")
    last = max(layers.values())
    return {name: (layer, layer_decay ** (last - layer)) for name, layer in layers.items()}


def _find_layers(named: Mapping[str, Tensor]) -> dict[str, int]:
    """Each parameter's place in the model's largest list; empty if there is no list."""
    sizes: dict[str, dict[str, int]] = {}  # of each list's modules, by the name that the list's parameters begin with
    for name, param in named.items():
        for number in re.finditer(r"(?<![^.])\d+\.", name):
            size = sizes.setdefault(name[: number.start()], {})
            size[number[0]] = size.get(number[0], 0) + _shaped("layer_decay", name, param).numel()
    # By elements alone, a list of backbone and head would win over the backbone's blocks; by modules alone, the experts
    # of one block would.
    weights = {prefix: len(size) * sum(size.values()) for prefix, size in sizes.items() if len(size) > 1}
    if not weights:
        return {}
    prefix = max(weights, key=weights.__getitem__)
    numbers = sorted(sizes[prefix], key=lambda number: int(number[:-1]))
    layers, outside = {}, 0
    for name in named:
        inside = [layer for layer, number in enumerate(numbers, 1) if name.startswith(prefix + number)]
        outside = len(numbers) + 1 if inside else outside
        layers[name] = inside[0] if inside else outside
    return layers


def _undecayed(model: Model, named: Mapping[str, Tensor], no_decay: Any) -> set[str]:
    """The names of what no_decay means."""
    if no_decay is True or no_decay == "embeddings":
        tables: set[Tensor] = set()
        if no_decay is not True:
            if not isinstance(model, nn.Module):
                raise ValueError('no_decay="embeddings" needs a module; with (name, parameter) pairs, give patterns')
            found = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
            tables = {param for module in found for param in module.parameters()}
        asked = getattr(model, "no_weight_decay", None)  # as timm and others ask their models
        said = {str(name) for name in asked()} if callable(asked) else set()
        chosen = {n for n in named if n.removeprefix(_COMPILED) in said}
        chosen |= {n for n, param in named.items() if n.split(".")[-1] == "bias" or param in tables}
        return chosen | {n for n, x in named.items() if n not in chosen and _shaped("no_decay", n, x).ndim < 2}
    if isinstance(no_decay, str) or not (no_decay is False or isinstance(no_decay, Iterable)):
        raise ValueError(f'no_decay must be True, False, "embeddings" or a list of patterns, not {no_decay!r}')
    return {name for pattern in no_decay or () for name in matches("no_decay", pattern, named)}


def _shaped(who: str, name: str, param: Tensor) -> Tensor:
    """A parameter that has a shape to decide by."""
    if is_lazy(param):
        raise ValueError(
            f"{name!r} has no shape yet, by which {who} decides: run one forward pass before, which gives the parameters "
            "of lazy modules theirs"
        )
    return param


def _chosen(named: Mapping[str, Tensor], groups: GroupSettings) -> dict[str, int]:
    """For each parameter that one of the groups matches, the number of the first that does."""
    found: dict[str, int] = {}
    for number, group in enumerate(groups):
        match group:
            case (pattern, Mapping() as own) if isinstance(pattern, str) or callable(pattern):
                matched = matches(f"groups[{number}]", pattern, named)
            case _:
                raise TypeError(f"groups[{number}] must be a pattern or function, and a dict, not {group!r}")
        for name in {"params", "param_names", "name"}.intersection(own):
            raise ValueError(f"groups[{number}]: {name!r} is not a setting; its pattern finds and names a group")
        if all(name in found for name in matched):
            raise ValueError(f"groups[{number}]: {pattern!r} only matches what those before it do, and the first wins")
        found = {**dict.fromkeys(matched, number), **found}
    return found
