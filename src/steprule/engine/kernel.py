"""What the kernels of both engines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from steprule.kernels.cache import Loaded
from steprule.kernels.source import Source, title_of
from steprule.rule import Rule
from steprule.trace.around import NO_SERVICES, Services
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
    """

    program: Program
    readings: tuple[Any, ...] = ()

    def __init__(self, stage: Stage, source: Any, path: Path, module: ModuleType) -> None:
        self.stage = stage
        self.source = source
        self.path = path

    @staticmethod
    @abstractmethod
    def write(title: str, stage: Stage, formats: Sequence[str]) -> Any:
        """Its source."""

    @staticmethod
    @abstractmethod
    def load(name: str, text: str) -> Loaded:
        """The file and the module of a source."""

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
            program.check()
            kernel = cls._of(rule, program.last, formats)
            kernel.program = program
            kernel.readings = tuple(cls._of(rule, reading, formats) for reading in program.readings)
            _kernels[key] = kernel
        return _kernels[key]  # type: ignore[no-any-return]

    @classmethod
    def _of(cls: type[_Engine], rule: type[Rule], stage: Stage, formats: Sequence[str]) -> _Engine:
        source: Source = cls.write(title_of(rule), stage, formats)
        return cls(stage, source, *cls.load(rule.__name__, source.text))

    def numbers(self, hyper: Mapping[str, Any]) -> list[Any]:
        """A plan's row for these hyperparameters, among them ``seed`` if roundings are random."""
        values = [*hyper_of(self.stage, hyper)] + [hyper.get("seed", 0)] * self.source.random
        return list(map(self.number, values))

    @staticmethod
    def number(value: Any) -> Any:
        """A hyperparameter as a plan takes it; 1-element tensors are read."""
        return float(value)

    def sources(self, others: Sequence[Any] = ()) -> list[Any]:
        """Those of this kernel and its readings, and of others and theirs."""
        return [one.source for kernel in (self, *others) for one in (kernel, *kernel.readings)]

    @abstractmethod
    def launcher(self, plan: Any, threads: Callable[[], int]) -> Callable[[], None]:
        """What takes every tensor of the plan one step further.

        Args:
            plan: its addresses must be valid whenever the launcher is called.
            threads: says how many threads of the host may work on it; the result does not depend on it.
        """
