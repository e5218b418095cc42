"""What one parameter is, by the modules that have it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from steprule.layers.known import bare, parts_of, qualified
from steprule.layers.view import View

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}
FUSED_NAME = re.compile(r"qkv|(?<![a-z])kv(?![a-z])|in_proj|c_attn|query_key_value|gate_up|w12", re.IGNORECASE)
"""Names that often are those of fused matrices. They decide nothing, and only make the table say more."""


@dataclass(frozen=True)
class Seen:
    """What a parameter is; as in `Role`."""

    role: str
    view: View | None = None
    why: str = ""
    is_doubtful: bool = False
    weight: View | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", self.weight or self.view)


class Unknown(Exception):
    """A parameter of which nothing is known."""


@dataclass(frozen=True)
class Place:
    """Where a parameter is.

    Attributes:
        name: its whole name here.
        attr: its name in the module.
        owners: the modules from the model down to the one that has it, with their names in the one before.
    """

    name: str
    attr: str
    owners: tuple[tuple[str, nn.Module], ...]

    @property
    def module(self) -> nn.Module:
        """The module that has it."""
        return self.owners[-1][1]

    @property
    def layer(self) -> Place | None:
        """The place of the weight that it is, of a linear or convolutional layer; as such of a parametrized one too."""
        owners, attr = self.owners, self.attr
        if isinstance(self.module, ParametrizationList) and len(owners) > 2 and attr in ("original", "original1"):
            owners, attr = owners[:-2], owners[-1][0]
        is_layer = isinstance(owners[-1][1], (nn.Linear, nn.modules.conv._ConvNd))
        return Place(self.name, "weight", owners) if is_layer and attr in ("weight", "weight_v") else None

    def above(self, count: int = 1) -> nn.Module | None:
        """The module so many levels above the one that has it."""
        return self.owners[-1 - count][1] if count < len(self.owners) else None


def places_of(model: nn.Module) -> dict[Tensor, list[Place]]:
    """Every parameter, with all of its places.

    Raises:
        ValueError: a lazy module's parameter has no shape yet.
    """
    found: dict[Tensor, list[Place]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        parts = path.split(".") if path else []
        owners = tuple((part, modules[".".join(parts[: depth + 1])]) for depth, part in enumerate(parts))
        for attr, param in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{path}.{attr}" if path else attr
            if is_lazy(param):
                raise ValueError(f"{name!r} has no shape yet: run one forward pass before, which gives it one")
            found.setdefault(param, []).append(Place(name, attr, (("", model), *owners)))
    return found


def decide(param: Tensor, places: Sequence[Place], heads: bool) -> Seen:
    """What a parameter is, in all of its places.

    Raises:
        Unknown: nothing says what it is, or places differ.
    """
    seen = [_in_one(param, place, heads) for place in places]
    if any(one.role == "embedding" for one in seen):
        return Seen(
            "embedding", None, "rows are looked up" + ", and the head has it too" * any(one.view for one in seen)
        )
    if len({one.view for one in seen}) > 1:
        raise Unknown(f"modules that share it see it differently: {', '.join(place.name for place in places)}")
    return seen[0]


def _in_one(param: Tensor, place: Place, heads: bool) -> Seen:
    module, layer = place.module, place.layer
    if "FlatParam" in type(param).__name__ or (layer and param.ndim < 2):
        raise Unknown("it is flat, so a wrapper has taken it apart; call roles before you wrap the model")
    if param.numel() == 1:
        return Seen("scalar", None, "one element")
    if isinstance(module, NORMS):
        return Seen("norm", None, type(module).__name__)
    if sum(size > 1 for size in param.shape) < 2:
        is_norm = "norm" in type(module).__name__.lower()
        weight = _layer(param, layer, heads=False).view if layer else None
        return Seen(*("norm", None, "normalization layer") if is_norm else ("vector", None, "one axis"), weight=weight)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Seen("embedding", None, "rows are looked up")
    if layer:
        return _router(param, layer) or _layer(param, layer, heads)
    role, words = bare(module, place.attr)
    if role == "hidden" and words == "transpose":
        return _matrix(param, place, "transpose", heads)
    if role:
        view = View(words) if words else None
        return Seen(role, view, f"{qualified(module).rpartition('.')[2]}.{place.attr} is known")
    return _torch(param, place, heads)


def _torch(param: Tensor, place: Place, heads: bool) -> Seen:
    """A parameter of one of torch's modules that hold several."""
    module: Any = place.module
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention) and param.ndim == 2:
        count = 3 if place.attr == "in_proj_weight" else 1
        if place.attr in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            blocks = count * (module.num_heads if heads else 1)
            view = View(f"rows {blocks}" if blocks > 1 else "matrix")
            return Seen("fused" if count > 1 else "hidden", view, "MultiheadAttention" + ", by head" * heads)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and param.ndim == 2:
        gates = GATES.get(getattr(module, "mode", kind).partition("_")[0], 0)
        if place.attr.startswith("weight_hr") or gates == 1:
            return Seen("hidden", View(), kind)
        if gates:
            return Seen("fused", View(f"rows {gates}"), f"the gates of {kind}")
    if isinstance(module, nn.Bilinear):
        return Seen("other", None, "a bilinear form for each output")
    raise Unknown(f"a parameter of {type(module).__module__}.{type(module).__qualname__}")


def _layer(param: Tensor, place: Place, heads: bool) -> Seen:
    layer = place.module
    if not isinstance(layer, nn.modules.conv._ConvNd):
        if param.ndim != 2:
            raise Unknown(f"{param.ndim} axes in {type(layer).__name__}")
        return _matrix(param, place, "matrix", heads)
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return Seen("depthwise", None, "each filter reads one channel")
    if param.ndim != len(layer.kernel_size) + 2:
        raise Unknown(f"{param.ndim} axes in {type(layer).__name__}")
    steps = ["flatten", *[f"rows {layer.groups}"] * (layer.groups > 1), *["transpose"] * transposed]
    parts, why = _parts(place)
    if parts and layer.groups == 1 and not transposed:
        return Seen("fused", View(", ".join([*steps, parts])), why)
    groups = f", {layer.groups} groups" if layer.groups > 1 else ""
    return Seen("convolution", View(", ".join(steps)), why or f"weight of {_kind(layer)}{groups}")


def _matrix(param: Tensor, place: Place, base: str, heads: bool) -> Seen:
    """A matrix of a layer, or one of several in it."""
    stored = ["transpose"] if base == "transpose" else []
    parts, why = _parts(place)
    size = _head_size(param.shape[1 if stored else 0], place, bool(why)) if heads else 0
    if size:
        count = param.shape[1 if stored else 0] // size
        return Seen(
            "fused" if why else "hidden", View(", ".join([*stored, f"rows {count}"])), f"by head, of {size} rows"
        )
    if parts:
        view = View(", ".join([*stored, parts]))
        try:
            view.sizes(param.shape)
        except ValueError as error:
            return Seen("hidden", View(", ".join(stored) or "matrix"), f"{error}, so seen whole")
        return Seen("fused", view, why)
    if not why:
        why = f"weight of {_kind(place.module)}"
        if FUSED_NAME.search(place.owners[-1][0]):
            above = place.above()
            why += f", seen whole: what {type(above).__name__}.{place.owners[-1][0]} holds is not known"
    return Seen("hidden", View(", ".join(stored) or "matrix"), why)


def _kind(layer: nn.Module) -> str:
    return qualified(layer).rpartition(".")[2]


def _parts(place: Place) -> tuple[str, str]:
    above = place.above()
    return parts_of(above, place.owners[-1][0]) if above is not None else ("", "")


def _head_size(rows: int, place: Place, is_known: bool) -> int:
    """The rows of one head, 0 if it is not known."""
    above = place.above()
    if above is None or not qualified(above).startswith(("transformers.", "timm.", "torchvision.")):
        return 0
    if not is_known and place.owners[-1][0] not in ("q_proj", "k_proj", "v_proj", "query", "key", "value"):
        return 0
    names = ("head_dim", "head_size", "attention_head_size")
    size = next((getattr(above, name) for name in names if isinstance(getattr(above, name, None), int)), 0)
    return size if size and rows % size == 0 and rows > size else 0


def _router(param: Tensor, place: Place) -> Seen | None:
    """A linear layer with one output for each of the experts beside it."""
    if not isinstance(place.module, nn.Linear):
        return None
    count = param.shape[0]
    beside = [one for level in (1, 2) if (above := place.above(level)) is not None for one in above.children()]
    for one in beside:
        blocks = list(one.children()) if isinstance(one, nn.ModuleList) else []
        is_list = len(blocks) == count and all(
            type(block) is type(blocks[0]) is not type(place.module) for block in blocks
        )
        own = [] if type(one).__module__.startswith("torch.nn.") else list(one.parameters(recurse=False))
        if is_list or any(stack.ndim == 3 and stack.shape[0] == count for stack in own):
            return Seen("router", None, f"an output for each of {count} modules beside it", True)
    return None
