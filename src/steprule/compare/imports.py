"""What a command line names by module and name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from steprule.compare.errors import UsageError, told
from steprule.names import did_you_mean

__all__ = ["import_dotted", "import_function", "suggestion"]


def suggestion(word: str, choices: Iterable[str]) -> str:
    """The nearest choice as the end of an error's sentence, or all of them if none is near."""
    choices = list(choices)
    return did_you_mean(word, choices, otherwise=f"choose from {', '.join(choices)}")


def import_dotted(module: str, name: str, what: str, choices: Callable[[Any], Sequence[str]]) -> Any:
    """What a module has under a name.

    Args:
        module: its dotted name.
        name: of one of its attributes.
        what: begins the message of an error, naming the argument and its value.
        choices: given the module, the names to suggest.

    Raises:
        UsageError: there is no such module or no such name in it.
    """
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise UsageError(f"{what}: there is no module {error.name!r}") from error
        raise UsageError(f"{what}: the module {module!r} needs {error.name!r}, which is not installed") from error
    except Exception as error:  # whatever somebody's module does
        raise UsageError(f"{what}: the module {module!r} cannot be imported: {told(error)}") from error
    if not hasattr(found, name):
        raise UsageError(f"{what}: the module {module!r} has no {name!r}{suggestion(name, choices(found))}")
    return getattr(found, name)


def import_function(text: str, what: str, must: str) -> tuple[Callable[[], Any], str]:
    """A function that is named as module:function, and the last part of this name.

    Args:
        text: the name.
        what: begins the message of an error, naming the argument and its value.
        must: what the argument must do or be, where it does not look so.

    Raises:
        UsageError: there is none.
    """
    module, _, name = text.rpartition(":")
    if file := re.fullmatch(r"(?:.*[/\\])?([^/\\]*?)\.py|.*[/\\]([^/\\]*)", module):
        told = f"a module as import has it, not a file: in its folder, write {file[1] or file[2]}:{name}"
        raise UsageError(f"{what}: module:function takes {told}")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UsageError(f"{what} must {must}")
    function = import_dotted(module, name, what, _function_names)
    if not callable(function):
        raise UsageError(f"{what}: {name} has the type {type(function).__name__} and is no function")
    return function, name


def _function_names(module: Any) -> list[str]:
    """The functions of a module that may be meant: those that it defines and that need no argument; else all names."""
    own = [
        name
        for name, one in vars(module).items()
        if inspect.isfunction(one)
        and one.__module__ == module.__name__
        and not name.startswith("_")
        and all(parameter.default is not parameter.empty for parameter in inspect.signature(one).parameters.values())
    ]
    return own or [name for name in dir(module) if not name.startswith("_")]
