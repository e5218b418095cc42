"""Optimizers by name."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any, Literal, overload

import torch
from torch import Tensor

from steprule import optimizer
from steprule.beside import KEY, beside, word_of
from steprule.divide import GroupSettings, Model, Section, Split, divided, parameter_groups
from steprule.hyper import MULTIPLIERS
from steprule.layers.roles import Overrides, Role, Roles, roles_of
from steprule.optimizer import Optimizer
from steprule.optimizer.arguments import ALL_OPTIONS
from steprule.registry import class_names, plain, unknown
from steprule.rule import Rule
from steprule.rules.adam import AdamW
from steprule.settings import as_tuples, check_hyperparameters, check_names, check_settings
from steprule.trace.tracing import program_of

logger = logging.getLogger("steprule")

__all__ = ["Split", "create_optimizer", "optimizer_class", "parameter_groups"]


def optimizer_class(name: str | type[Rule] | type[Optimizer]) -> type[torch.optim.Optimizer]:
    """The optimizer of a name as `steprule.rules.RULES` has it, or torch.optim's own "lbfgs";
    case, "-" and "_" do not matter. Or of a rule; or itself. "module.Class" is a class or rule of one's own.

    Raises:
        ValueError: there is none.
    """
    if isinstance(name, str) and "." in name and not name.startswith("torch."):
        return optimizer_class(_imported(name))
    if isinstance(name, type) and issubclass(name, Rule):
        return Optimizer.of(name)
    if isinstance(name, type) and issubclass(name, Optimizer):
        return name
    names = class_names()
    if not isinstance(name, str) or plain(name) not in names:
        raise ValueError(unknown(str(name), join="'{}' with {}"))
    found: type[torch.optim.Optimizer] = getattr(optimizer, names[plain(name)])
    return found


def _imported(name: str) -> type[Rule] | type[Optimizer]:
    """The rule or the optimizer with such a dotted name."""
    from steprule.compare.imports import import_dotted

    def is_one(thing: Any) -> bool:
        return isinstance(thing, type) and issubclass(thing, (Rule, Optimizer)) and thing not in (Rule, Optimizer)

    module, _, last = name.rpartition(".")
    what = f"optimizer {name!r}"
    found = import_dotted(module, last, what, lambda one: [key for key, thing in vars(one).items() if is_one(thing)])
    if not is_one(found):
        raise ValueError(f"{what} is {found!r}, which is no class of steprule's: write a subclass of Rule or Optimizer")
    return found  # type: ignore[no-any-return]


@overload
def create_optimizer(model: Model, name: Literal["lbfgs"], **settings: Any) -> torch.optim.Optimizer: ...


@overload
def create_optimizer(
    model: Model, name: str | type[Rule] | type[Optimizer], *, lr: Any = None, weight_decay: Any = None,
    no_decay: bool | str | Sequence[str] = True, layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None, groups: GroupSettings = (),
    roles: Roles | Overrides = (), show: bool = False, **settings: Any,
) -> Optimizer: ...  # fmt: skip


def create_optimizer(
    model: Model, name: str | type[Rule] | type[Optimizer], *, lr: Any = None, weight_decay: Any = None,
    no_decay: bool | str | Sequence[str] = True, layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None, groups: GroupSettings = (),
    roles: Roles | Overrides = (), show: bool = False, **settings: Any,
) -> torch.optim.Optimizer:  # fmt: skip
    """Makes an optimizer by its name, and divides the parameters into groups::

        create_optimizer(model, "adamw", lr=3e-4, weight_decay=0.1, groups=[("head.*", {"lr": 3e-3})], clip=1.0)

    If the rule is one of whole matrices, such as Muon, it steps the hidden matrices of the model, as `roles` finds them, and
    AdamW steps the rest, in the same optimizer::

        create_optimizer(model, "muon", lr=0.02, adamw_lr=3e-4, adamw_betas=(0.9, 0.95), weight_decay=0.1, show=True)

    Args:
        model: a module, or (name, parameter) pairs; of rules of whole matrices a module.
        name: "adamw" and the like, or torch.optim's own "lbfgs"; case, "-" and "_" do not matter. Or a
            rule or a class of steprule's or of your own, or where that is, as "my_module.MyRule".
        lr: the learning rate of all groups without one of their own, or a function of the step. Default: the optimizer's.
        weight_decay: that of parameters that decay, or a function of the step. Default: the optimizer's.
        no_decay: which parameters have weight_decay=0. True: vectors, scalars, every one called bias, and those that a model's
            `no_weight_decay()` names. "embeddings": the weights of embeddings too. A list of patterns such as "*.bias": what
            matches one of them, and nothing else. False: none. Optimizers without weight_decay ignore it. Default: True.
        layer_decay: the last layer has lr, and each one before it layer_decay times the lr of the next. Layers are the
            numbered modules of the model's largest list ("blocks.3.attn.weight"). Default: None, the same lr for all.
        layer_of: a function from a parameter's name to its layer, an int from 0, to use instead of numbers and `group_matcher()`.
        groups: (pattern, settings) pairs for parameters with settings of their own; the first that matches wins. A pattern is
            matched with the whole name ("head.*"), or is a function of name and parameter.
        roles: which parameters are matrices, as `roles` returns it, or what its argument overrides takes, such as
            {"*.wq": "transpose", "pos": "position", "decoder.*": "adamw"}. Default: what `roles(model)` returns.
        show: print the groups. Default: False.
        settings: any other argument of the optimizer's class. Beside a rule of whole matrices, AdamW's hyperparameters with
            "adamw_" before their name, such as adamw_lr, adamw_betas and adamw_weight_decay, whose default is weight_decay if you say that.

    Raises:
        ValueError: there is no such optimizer, a value makes no sense, a pattern matches nothing, or a parameter may be a matrix
            or none.
        TypeError: the optimizer has no such argument, or model or groups is of another kind.
    """
    cls = optimizer_class(name)
    rule = matrix_rule(cls, settings)
    if rule is not None:
        cls = _beside_adamw(cls, rule)
    known = {key: value.default for key, value in inspect.signature(cls).parameters.items() if key != "params"}
    given = {key: value for key, value in (("lr", lr), ("weight_decay", weight_decay)) if value is not None} | settings
    rests = {key: given.pop(key) for key in settings if key.startswith(_OF_ADAMW)}
    _check_rest(cls.__name__, rule, known, rests, roles, "weight_decay" in given)
    _check(cls.__name__, cls, known, given, (*_WAYS, *names_beside(rule)))
    if layer_decay is not None and callable(lr):
        raise ValueError(f"lr={lr!r}: layer_decay={layer_decay} cannot multiply a schedule; give groups their own")
    theirs = {} if rule is None else AdamW.hyperparameters
    sections, notes = _sections(rule, model, {**known, **given}, given, rests, roles)
    no_decay = no_decay if "weight_decay" in {**theirs, **known} else False
    split = divided(model, sections, no_decay, layer_decay, layer_of, groups)
    _check_groups(groups, cls, {**theirs, **known, **given}, names_beside(rule))
    made: torch.optim.Optimizer = cls(split.groups, **given)
    _tell(cls.__name__, split, notes, show)
    return made


def _tell(name: str, split: Split, notes: Iterable[str], show: bool) -> None:
    """Prints what was decided, or logs what is uncertain of it."""
    if show:
        print(split, *notes, sep="\n")
        return
    for note in notes:
        logger.warning("%s beside AdamW: %s, as in roles=steprule.roles(model, example=(inputs,))", name, note)


def matrix_rule(cls: type[torch.optim.Optimizer], settings: Mapping[str, Any]) -> type[Rule] | None:
    """The rule of a class, if it steps whole matrices and nothing else."""
    rule: type[Rule] | None = getattr(cls, "rule", None)
    if rule is None:
        return None
    fixed = {name: settings[name] for name in rule.hyperparameters.keys() & settings if not callable(settings[name])}
    known = {**rule.hyperparameters, **fixed, **as_tuples(fixed, rule)}
    check_settings(rule, known)
    return None if program_of(rule, known).takes_vectors else rule


_WAYS = ("no_decay", "layer_decay", "layer_of", "groups", "roles", "show")
_OF_ADAMW = "adamw_"


def names_beside(rule: type[Rule] | None) -> list[str]:
    """What AdamW's hyperparameters are called as arguments, beside a rule of whole matrices; none without."""
    return [] if rule is None else [_OF_ADAMW + name for name in AdamW.hyperparameters]


def _check_rest(
    who: str, rule: type[Rule] | None, known: Iterable[str], rests: Mapping[str, Any], roles: Any, decays: bool
) -> None:
    """Raises for arguments of AdamW beside a rule of whole matrices that are none, or where there is none."""
    if decays and rule is not None and "weight_decay" not in rule.hyperparameters:
        raise TypeError(f"{who} has no weight_decay: adamw_weight_decay is that of the parameters that AdamW steps")
    if rule is None and (rests or roles):
        what = next((f"{name}={value!r}" for name, value in rests.items()), f"roles={roles!r}")
        raise TypeError(f"{what} is for rules of whole matrices, such as muon, and {who} steps all parameters")
    check_names(who, rests, [*known, *names_beside(rule)])
    for name, value in rests.items():
        own = name.removeprefix(_OF_ADAMW)
        try:
            at_first = {own: value(1) if callable(value) else value}
            check_hyperparameters(AdamW, {**at_first, **as_tuples(at_first, AdamW)})
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}={value!r}: {error}") from None


def _check_groups(
    groups: GroupSettings, cls: type[torch.optim.Optimizer], known: Mapping[str, Any], beside: Iterable[str]
) -> None:
    """Raises for settings that no group has.

    Args:
        groups: as for `create_optimizer`.
        cls: the optimizer's class.
        known: what groups may have, with a value for each.
        beside: what AdamW's hyperparameters are called as arguments.
    """
    for number, (_, own) in enumerate(groups):
        for name in own.keys() & {*beside}:
            called = name.removeprefix(_OF_ADAMW)
            raise TypeError(
                f"groups[{number}] got {name}={own[name]!r}: in groups it is called {called!r}, as AdamW has it"
            )
        _check(f"groups[{number}] of {cls.__name__}", cls, known, own, MULTIPLIERS if hasattr(cls, "rule") else ())


def _beside_adamw(cls: type[torch.optim.Optimizer], rule: type[Rule]) -> type[Optimizer]:
    """The class that has AdamW beside a class's rule; raises for a class of one's own, whose methods that would lack."""
    if cls not in (Optimizer.of(rule), getattr(optimizer, class_names().get(plain(rule.__name__), ""), None)):
        raise TypeError(
            f"{cls.__name__} is a class of its own, and beside AdamW its rule would be in another: give its rule, {cls.__name__}.rule"
        )
    return Optimizer.of(beside(rule, AdamW))


Sections = list[tuple[Section, Set[Tensor] | None]]


def _sections(
    rule: type[Rule] | None, model: Model, settings: Mapping[str, Any], given: Collection[str], rests: Mapping[str, Any], roles: Any
) -> tuple[Sections, tuple[str, ...]]:  # fmt: skip
    """The parameters that a rule of whole matrices steps, and those that AdamW does, with their settings; or all, for others.

    Args:
        rule: the rule of whole matrices, if it is one.
        model, roles: as for `create_optimizer`.
        settings: all arguments of the optimizer.
        given: the names of those that were given.
        rests: those for AdamW.

    Returns:
        These, and what roles could not find.
    """
    fixed = {name: value for name, value in settings.items() if not callable(value)}
    lr: dict[str, Any] = {"lr": fixed["lr"]} if "lr" in fixed else {}
    weight_decay: dict[str, Any] = {"weight_decay": fixed["weight_decay"]} if "weight_decay" in fixed else {}
    if rule is None:
        return [(Section("", lr, weight_decay), None)], ()
    table = roles if isinstance(roles, Roles) else roles_of(model, roles, "roles")  # type: ignore[arg-type]
    if not table.matrices:
        raise ValueError(
            f"roles finds no matrix between others, which {rule.__name__} could step: create_optimizer(model, "
            '"adamw") steps all parameters, and roles={pattern: "hidden"} says what is a matrix'
        )
    default = AdamW.hyperparameters
    adamw = {KEY: word_of(AdamW), "lr": default["lr"]} | {k.removeprefix(_OF_ADAMW): x for k, x in rests.items()}
    shared = settings["weight_decay"] if "weight_decay" in given else default["weight_decay"]
    rest = {"weight_decay": adamw.pop("weight_decay", shared)}
    only_rest, only_own = {*default} - {*rule.hyperparameters}, {*rule.hyperparameters} - {*default}
    sections: Sections = []
    for view in dict.fromkeys(str(row.view) for row in table.matrices):
        is_plain = view == "matrix"
        title = word_of(rule) if is_plain else f"{word_of(rule)}, {view}"
        settings = {KEY: word_of(rule), **({} if is_plain else {"view": view}), **lr}
        rows = [row for row in table.matrices if str(row.view) == view]
        sections.append((Section(title, settings, weight_decay, only_rest), _params(rows)))
    return [*sections, (Section(word_of(AdamW), adamw, rest, only_own), _params(table.rest))], table.notes


def _params(rows: Iterable[Role]) -> set[Tensor]:
    return {row.param for row in rows if row.param is not None}


def _check(
    who: str,
    cls: type[torch.optim.Optimizer],
    known: Mapping[str, Any],
    given: Mapping[str, Any],
    more: Iterable[str] = (),
) -> None:
    """Raises for arguments that an optimizer, or one of its groups, does not take."""
    rule: type[Rule] | None = getattr(cls, "rule", None)
    for name, value in given.items() if rule is None else ():
        if name in ALL_OPTIONS and name not in known:
            raise TypeError(f"{who} is torch.optim's own and takes no {name}, which steprule's optimizers do")
        if callable(value):
            raise TypeError(f"{who} is torch.optim's own and takes no functions of the step, as {name}={value!r}")
    if KEY in given and KEY in known:
        raise TypeError(
            f"{who} got {KEY}={given[KEY]!r}: roles says what each parameter is stepped by, as in roles={{'head.*': 'adamw'}}"
        )
    check_names(who, given, [*known, *more])
    if rule is not None:
        at_first = {name: value(1) if callable(value) else value for name, value in {**known, **given}.items()}
        check_settings(rule, {**at_first, **as_tuples(at_first, rule)})
