"""What the kernels of both engines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from steprule.formats import UNITS
from steprule.hyper import filled
from steprule.kernels.cache import Loaded
from steprule.kernels.source import Source, title_of
from steprule.rule import Rule
from steprule.trace.around import NO_SERVICES, Services
from steprule.trace.norms import Norm
from steprule.trace.program import Program, Stage, hyper_of
from steprule.trace.tracing import static_settings, trace

_kernels: dict[Any, Any] = {}

_Engine = TypeVar("_Engine", bound="Kernel")


class Kernel(ABC):
    """A compiled pass.

    Attributes:
        stage: what it computes.
        program: all that a step computes, if this is the kernel of its last pass.
        source: its text; source.arrays is the order of a plan's addresses.
        path: the file it was made from.
        readings: kernels that go before it, for sums over elements.
        unit: what None is among the numbers of a hyperparameter.
    """

    program: Program
    readings: tuple[Any, ...] = ()
    unit: float

    def __init__(self, stage: Stage, source: Any, path: Path, code: Any) -> None:
        self.stage = stage
        self.source = source
        self.path = path

    @staticmethod
    @abstractmethod
    def write(title: str, stage: Stage, formats: Sequence[str]) -> Any:
        """Its source."""

    @staticmethod
    @abstractmethod
    def load(name: str, text: str, what: str) -> Loaded:
        """The file of a source, and what was made of it, which is for this."""

    @classmethod
    def compiled(
        cls: type[_Engine],
        rule: type[Rule],
        hyper: Mapping[str, Any],
        maximize: bool,
        formats: Sequence[str],
        services: Services = NO_SERVICES,
    ) -> _Engine:
        """The kernel for a rule, made when first asked for.

        Args:
            rule: the rule.
            hyper: a value for each hyperparameter. Kernels are shared by all that agree on which are true, which
                are text, and which states exist.
            maximize: whether to follow the gradient upwards.
            formats: of param, grad and the states that exist, keys of `steprule.formats.FORMATS`.
            services: what else it does.

        Raises:
            RuleError: the formula is none that an engine can run.
        """
        key = (cls, rule, static_settings(rule, hyper), maximize, tuple(formats), services)
        if key not in _kernels:
            program = trace(rule, hyper, maximize, services)
            _kernels[key] = cls._of(program, rule.__name__, title_of(rule), formats, services.words)
        return _kernels[key]  # type: ignore[no-any-return]

    @classmethod
    def of_norm(cls: type[_Engine], norm: Norm, dtype: str) -> _Engine:
        """The kernel that reads a norm of operands of this dtype, made when first asked for."""
        key = (cls, norm, dtype)
        if key not in _kernels:
            _kernels[key] = cls._of(norm.program(), "norm", f"Norms of {norm.operand}: p is {norm.p}.", [dtype])
        return _kernels[key]  # type: ignore[no-any-return]

    @classmethod
    def _of(
        cls: type[_Engine], program: Program, name: str, title: str, formats: Sequence[str], services: str = ""
    ) -> _Engine:
        """The kernel of a program's last pass, with those that go before it."""
        program.check()
        every = zip(program.last.operands, formats, strict=True)
        operands = [f"{one} {kind}" for one, kind in every if one not in program.matrices]
        what, kernels = ", ".join([*operands, *([services] if services else [])]), []
        for stage in (*program.readings, program.last):
            source: Source = cls.write(title, stage, formats)
            kernels.append(cls(stage, source, *cls.load(name, source.text, what)))
        *readings, kernel = kernels
        kernel.program, kernel.readings = program, tuple(readings)
        kernel.unit = UNITS.get(formats[0], UNITS["float32"])  # in which weights with low bits are seen
        return kernel

    def numbers(self, hyper: Mapping[str, Any]) -> list[Any]:
        """A plan's row for these hyperparameters, among them ``seed`` if roundings are random."""
        values = [*hyper_of(self.stage, filled(hyper, self.unit))] + [hyper.get("seed", 0)] * self.source.random
        return list(map(self.number, values))

    @staticmethod
    def number(value: Any) -> Any:
        """A hyperparameter as a plan takes it; 1-element tensors are read."""
        return float(value)

    def sources(self, others: Sequence[Any] = ()) -> list[Any]:
        """Those of this kernel and its readings, and of others and theirs."""
        return [one.source for kernel in (self, *others) for one in (kernel, *kernel.readings)]
