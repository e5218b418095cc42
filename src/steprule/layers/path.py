"""Which matrix reads the data, and which makes the output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steprule.patterns import abbreviated

MATRIX = re.compile(r"mm|mv|conv|linear|embedding|rnn|lstm|gru", re.IGNORECASE)
"""Names of autograd nodes that multiply by a matrix."""


@dataclass
class Ends:
    """The first and the last matrices of a model, each with how it was found.

    Attributes:
        inputs, heads: why, by the parameter's name.
        notes: what was looked for and not found.
    """

    inputs: dict[str, str] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def by_forward(
    model: nn.Module, example: Any, matrices: Iterable[str], others: Iterable[str], embeddings: Iterable[str]
) -> Ends:
    """Runs the model once, on the example, and follows autograd's graph back from every output.

    A head is the last matrix of an output, if no other path leads around it: after a residual connection there is none.
    Buffers, gradients and random numbers are left as they were.

    Args:
        model: the model.
        example: a tuple of positional arguments, a dict of named ones, or a function of the model that returns outputs.
        matrices: names of the parameters that are multiplied by.
        others: names of those with several axes that are not.
        embeddings: names of those whose rows are looked up, which a head may share.

    Raises:
        ValueError: no output comes from a parameter.
    """
    named = dict(model.named_parameters())
    stand_ins = {name: param.detach().requires_grad_(param.is_floating_point()) for name, param in named.items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(), torch.enable_grad():
        if callable(example):
            called = example
        elif isinstance(example, Mapping):
            called = _call((), example)
        else:
            called = _call(example if isinstance(example, (tuple, list)) else (example,), {})
        outputs = torch.func.functional_call(_Calling(model, called), _prefixed({**stand_ins, **buffers}), ())
    lookups = frozenset(embeddings)
    weights = {stand_ins[name]: name for name in (*matrices, *lookups)}
    graph = _Graph(weights, {**weights, **{stand_ins[name]: name for name in others}}, lookups)
    roots = [one.grad_fn for one in _tensors(outputs) if one.grad_fn is not None]
    if not roots:
        raise ValueError("example: no output of the model comes from a parameter")
    return graph.ends(roots)


class _Calling(nn.Module):
    """A model that is called as the user says."""

    def __init__(self, model: nn.Module, called: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model, self.called = model, called

    def forward(self) -> Any:
        return self.called(self.model)


def _call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[nn.Module], Any]:
    return lambda model: model(*args, **kwargs)


def _prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for one in outputs.values():
            yield from _tensors(one)
    elif isinstance(outputs, (list, tuple)):
        for one in outputs:
            yield from _tensors(one)
    elif is_dataclass(outputs):
        for one in fields(outputs):
            yield from _tensors(getattr(outputs, one.name))


class _Graph:
    """Autograd's graph of one forward."""

    def __init__(self, weights: Mapping[Tensor, str], all_: Mapping[Tensor, str], lookups: frozenset[str]) -> None:
        self.names, self.all, self.lookups = weights, all_, lookups
        self.leaves: dict[Any, str | None] = {}
        self.weights: dict[Any, set[str]] = {}
        self.above: dict[Any, set[str]] = {}

    def ends(self, roots: Sequence[Any]) -> Ends:
        found = Ends()
        lasts = [nodes for nodes in map(self.last, roots) if not self.goes_around(nodes)]
        above = [{name for node in nodes for name in self.upstream(node)} for nodes in lasts]
        for nodes in lasts:
            for name in {name for node in nodes for name in self.of(node)} - self.lookups:
                if not any(name in names for names in above):
                    found.heads[name] = "in the example it is the last matrix before an output"
        if not lasts:
            found.notes.append("no matrix is the only last one before an output of the example, so none is a head")
        for node in self.everything(roots):
            names = self.of(node) - self.lookups
            if names and not any(map(self.is_parameter, self.before(node))):
                found.inputs |= dict.fromkeys(names, "in the example it reads what no other matrix has made")
        return found

    def of(self, node: Any) -> set[str]:
        """The parameters that a node multiplies by."""
        if node not in self.weights:
            inputs = [one for one, _ in node.next_functions if one is not None]
            found = {self.leaf(one) for one in inputs} if MATRIX.search(node.name()) else set()
            self.weights[node] = {name for name in found if name}
        return self.weights[node]

    def leaf(self, node: Any) -> str | None:
        """The weight that a node is, or is made of without data, as by a view, a cast or a normalization."""
        if node not in self.leaves:
            waiting, seen, found = [node], {node}, set[str]()
            while waiting:
                one = waiting.pop()
                if MATRIX.search(one.name()):
                    found.clear()
                    break
                if hasattr(one, "variable") and one.variable in self.names:
                    found.add(self.names[one.variable])
                new = [more for more, _ in one.next_functions if more is not None and more not in seen]
                seen.update(new)
                waiting += new
            self.leaves[node] = found.pop() if len(found) == 1 else None
        return self.leaves[node]

    def last(self, root: Any) -> list[Any]:
        """The nodes with weights that are reached from here without passing another."""
        return [node for node in self.walk([root], False) if self.of(node)]

    def everything(self, roots: Sequence[Any]) -> list[Any]:
        return list(self.walk(roots, True))

    def goes_around(self, nodes: Sequence[Any]) -> bool:
        """Whether one of the last matrices comes before another, as with residual connections."""
        own = {name for node in nodes for name in self.of(node)} - self.lookups
        return any(self.upstream(node) & own for node in nodes)

    def upstream(self, node: Any) -> set[str]:
        """All parameters with several axes that come before a node's own weights."""
        if node not in self.above:
            self.above[node] = {self.all[one.variable] for one in self.before(node) if self.is_parameter(one)}
        return self.above[node]

    def before(self, node: Any) -> Iterator[Any]:
        own = self.of(node)
        return self.walk([one for one, _ in node.next_functions if one is not None and self.leaf(one) not in own], True)

    def is_parameter(self, node: Any) -> bool:
        return hasattr(node, "variable") and node.variable in self.all

    def walk(self, begin: Sequence[Any], past_weights: bool) -> Iterator[Any]:
        waiting, seen = list(begin), set(begin)
        while waiting:
            node = waiting.pop()
            yield node
            if past_weights or not self.of(node):
                new = [one for one, _ in node.next_functions if one is not None and one not in seen]
                seen.update(new)
                waiting += new


def by_order(model: nn.Module, roles: Mapping[str, str], shared: Iterable[str], said: Iterable[str]) -> Ends:
    """Takes the first and the last matrix in the order of registration, unless they are inside of repeated blocks, or the user
    has said what they are.

    Convolutions of one to three channels read data, wherever they are.

    Args:
        model: the model.
        roles: of all parameters by name, in order.
        shared: names that layers have for the weights of embeddings.
        said: names of parameters of which the user has said something.
    """
    found, doubt = Ends(), "in order of registration"
    told = {name for name in said if _is_layer(model.get_submodule(name.rpartition(".")[0]))}
    layers = [name for name, role in roles.items() if name not in told and role in ("hidden", "convolution", "fused")]
    ends = {*layers, *told}
    first = next((name for name, role in roles.items() if name in ends or role in ("experts", "embedding")), "")
    for name in layers:
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.in_channels <= 3 and layer.groups == 1:
            found.inputs[name] = f"reads {layer.in_channels} channel{'s' * (layer.in_channels > 1)}"
    if first in layers and roles[first] != "fused" and first not in found.inputs and not _is_repeated(model, first):
        found.inputs[first] = f"the first matrix {doubt}"
    order = [name for name, _ in model.named_parameters(remove_duplicate=False) if name in {*ends, *shared}]
    if order and order[-1] in layers and not _is_repeated(model, order[-1]):
        found.heads[order[-1]] = f"the last matrix {doubt}"
        known = {**found.inputs, **found.heads}
        others = [one for one in layers if one not in known and not (_is_repeated(model, one) or _leads_on(model, one))]
        if others:
            found.notes.append(f"{abbreviated(others)} may be of heads, too; give example to find them")
    elif order and order[-1] in layers:
        found.notes.append(
            f"no head found: {order[-1]!r}, the last matrix {doubt}, is in a repeated block; give example to be sure"
        )
    return found


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))


def _leads_on(model: nn.Module, name: str) -> bool:
    """Whether a parameter is in a chain of modules, and a matrix comes after it there."""
    path = name.split(".")[:-1]
    for depth, own in enumerate(path):
        parent = model.get_submodule(".".join(path[:depth]))
        if type(parent).forward is nn.Sequential.forward:
            children = dict(parent.named_children())
            after = [*children.values()][[*children].index(own) + 1 :]
            if any(param.ndim > 1 for child in after for param in child.parameters()):
                return True
    return False


def _is_repeated(model: nn.Module, name: str) -> bool:
    """Whether a parameter is in one of several blocks of the same class."""
    path = name.split(".")[:-1]
    for depth in range(1, len(path)):
        parent = model.get_submodule(".".join(path[: depth - 1]))
        block = model.get_submodule(".".join(path[:depth]))
        same = [one for one in parent.children() if type(one) is type(block)]
        if len(same) > 1 and isinstance(parent, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
            return True
    return False
