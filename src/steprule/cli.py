"""The command ``steprule``."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn


def _need(*modules: str) -> None:
    """Ends the program with one line if a module is missing that ``steprule[compare]`` brings."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        sys.exit(f"steprule needs {', '.join(missing)} for this: pip install 'steprule[compare]'")


_need("typer")

import typer  # noqa: E402
from typer.core import TyperCommand, TyperGroup  # noqa: E402

import steprule.check_options as check_options  # noqa: E402 - else the package looks for an optimizer of that name
from steprule import __version__  # noqa: E402
from steprule.rule import NEEDS, RuleError  # noqa: E402


class Group(TyperGroup):
    """The commands, whose names may be written in any case."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command; says what to write in place of those that other programs have."""
        word = args[0].lower()
        if word in ("help", "version"):
            ctx.fail(f"No such command {args[0]!r}. Did you mean '--{word}'?")
        return super().resolve_command(ctx, [word if word in self.commands else args[0], *args[1:]])


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Command(TyperCommand):
    """A command whose line in ``steprule --help`` is not cut, and which tells errors in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuses a negative number where it would be taken for an option."""
        if args and re.match(r"-\d", args[0]):
            ctx.fail(f"{args[0]!r} is negative")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Ends with one line where a rule of the user's is none."""
        try:
            return super().invoke(ctx)
        except RuleError as error:
            _refuse(self.name or "", str(error))

    def get_short_help_str(self, limit: int = 0) -> str:
        """The first sentence of its help."""
        return super().get_short_help_str(1000)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steprule {__version__}")
        raise typer.Exit


_JSON = typer.Option("--json", help="Print JSON, with all that is known.")
_SET = typer.Option(
    "--set",
    metavar="PATTERN=WORD",
    help="What parameters are: hidden, transpose, 'rows 3' or another view, adamw, or a role. May be given several times.",
)
_OUT = typer.Option(
    metavar="DIR",
    show_default="a new one in steprule-report",
    help="Folder for report.html and results.json; it must not hold a report already.",
)


@app.callback()
def steprule(
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Optimizers for torch and NumPy, each written as its paper's formula and compiled to one pass."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own modules lie here


@app.command(cls=Command)
def compare(
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER]...",
            show_default=False,
            help="Default: sgd, rmsprop, adam and adamw, with learning rates that suit the task.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            show_default="digits and chars",
            help="digits, chars, chars-large, or module:function for a function of yours that returns a steprule.compare.Task. "
            "May be given several times.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to run each optimizer with.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, show_default="the task's", help="Steps of a run.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1e-3, help="Seconds of training of a run, instead of steps.")
    ] = None,
    lr_grid: Annotated[
        str | None,
        typer.Option(
            metavar="LR,LR,...", help="Run each optimizer with each of these learning rates; its best counts."
        ),
    ] = None,
    target: Annotated[
        float | None, typer.Option(show_default="the task's", help="The validation loss to reach.")
    ] = None,
    out: Annotated[Path | None, _OUT] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no files.")] = False,
    as_json: Annotated[bool, _JSON] = False,
    threads: Annotated[
        int,
        typer.Option(min=1, help="torch's threads. The tasks that ship gain little from more than one."),
    ] = 1,
) -> None:
    """Compare optimizers on real tasks: which reaches the target first.

    An OPTIMIZER is a name of steprule's, torch.AdamW for a class of torch.optim, or package.module.Class for your own. Settings
    go behind a colon: adamw:lr=3e-3,weight_decay=0.1 or 'adamw:betas=(0.9,0.95)' (quoted for the shell). Formats are
    settings too: adamw:states=8bit,weights=24bit trains in bfloat16. Beside Muon and the like, AdamW has the rest: muon:adamw_lr=3e-3.
    """
    _need("rich", "sklearn")
    from steprule.compare.command import compare as run
    from steprule.compare.errors import UsageError

    tasks = task or ["digits", "chars"]
    try:
        code = run(
            optimizers or [], tasks, seeds, steps, seconds, lr_grid, target, out, threads, as_json, report=not no_report
        )
    except UsageError as error:
        typer.echo(f"steprule compare: {error}", err=True)
        code = 2
    raise typer.Exit(code)


@app.command(cls=Command)
def check(
    optimizer: check_options.Optimizer = None,
    settings: check_options.Settings = None,
    claim: check_options.Claim = None,
    expect: check_options.Expect = None,
    tier: check_options.Tier = None,
    only: check_options.Only = None,
    other: check_options.Other = None,
    report: check_options.Report = None,
    seed: check_options.Seed = 0,
    self_test: check_options.SelfTest = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Check an optimizer of any package: does it do what torch's users rely on, and what it claims.

    A check that fails prints a program of at most ten lines that shows the failure without steprule. The exit code is 1 if a
    check fails.
    """
    from steprule.check.command import check as run
    from steprule.check.command import test_itself

    if self_test == (optimizer is not None):
        _refuse("check", "give an OPTIMIZER, such as torch.AdamW, or --self-test" + " alone" * self_test)
    if optimizer is None:
        raise typer.Exit(test_itself())
    try:
        code = run(
            optimizer,
            settings or [],
            claim or [],
            expect or [],
            tier or [],
            only or [],
            other,
            report or [],
            seed,
            as_json,
        )
    except ValueError as error:
        _refuse("check", str(error))
    raise typer.Exit(code)


@app.command(cls=Command)
def memory(
    model: Annotated[
        str,
        typer.Argument(
            help="A number of parameters, such as 124M or 7B, or module:function for a function that returns a "
            "torch.nn.Module."
        ),
    ],
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER]...",
            show_default="sgd, rmsprop, adam and adamw",
            help="Names of steprule's, or module.Class for your own.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(show_default="the model's, or bfloat16", help="Of the weights: float32, bfloat16 or float16."),
    ] = None,
    grad_dtype: Annotated[
        str | None, typer.Option(show_default="the weights'", help="Of the gradients: one of the same.")
    ] = None,
    overrides: Annotated[list[str] | None, _SET] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show how much memory training needs, for each optimizer and format."""
    from steprule.layers.command import said_in
    from steprule.memory import show

    try:
        show(model, dtype, grad_dtype, optimizers or [], said_in(overrides or []), as_json)
    except ValueError as error:
        _refuse("memory", str(error))


@app.command(cls=Command)
def roles(
    model: Annotated[
        str,
        typer.Argument(
            help="module:function, for a function without arguments that returns a torch.nn.Module. It is called on torch's "
            "meta device, where nothing is allocated."
        ),
    ],
    overrides: Annotated[list[str] | None, _SET] = None,
    heads: Annotated[
        bool, typer.Option("--heads", help="Part the matrices of known attention classes by head.")
    ] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show which parameters of a model are matrices for rules like Muon."""
    from steprule.layers.command import show

    try:
        show(model, overrides or [], heads, as_json)
    except ValueError as error:
        _refuse("roles", str(error))


@app.command("list", cls=Command)
def list_optimizers(
    need: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NEED",
            help=f"Only optimizers that are good for this: {', '.join(NEEDS)}. May be given several times, for all.",
        ),
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """List optimizers: what each is, what it keeps and what it is good for."""
    from steprule.catalog import print_list

    try:
        print_list(need or [], as_json)
    except ValueError as error:
        _refuse("list", str(error))


@app.command(cls=Command)
def show(
    optimizer: Annotated[
        str,
        typer.Argument(
            help="A name of steprule's, or module.Class for your own, perhaps with settings: adamw:amsgrad=True."
        ),
    ],
    latex: Annotated[bool, typer.Option("--latex", help="Print the formula as LaTeX.")] = False,
    kernel: Annotated[
        str | None, typer.Option(metavar="cpu|gpu", help="Print the source of this kernel and nothing else.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show an optimizer's formula, paper, settings, states and when to use it."""
    from steprule.catalog import print_rule

    try:
        print_rule(optimizer, latex, kernel, as_json)
    except ValueError as error:
        _refuse("show", str(error))


@app.command(cls=Command)
def lesson(
    name: Annotated[str | None, typer.Argument(show_default="list all", help="One of the lessons.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default="steprule-lesson-NAME.html", help="The page to write."
        ),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page and do not open it in a browser.")] = False,
) -> None:
    """Explain an idea behind optimizers on a page, with the numbers of the code that runs."""
    from steprule.lessons.command import show_all, write

    try:
        if name is not None:
            path = write(name, output, _need)
        elif output is not None or no_open:
            raise ValueError("--output and --no-open need the name of a lesson before them")
        else:
            show_all()
            return
    except ValueError as error:
        _refuse("lesson", str(error))
    typer.echo(f"wrote {path}")
    if not no_open:
        typer.launch(path.resolve().as_uri())


def _refuse(command: str, text: str) -> NoReturn:
    """Ends the program with one line, as what was asked for makes no sense."""
    typer.echo(f"steprule {command}: {text}", err=True)
    raise typer.Exit(2) from None


_SPELLED = {
    **{"\u2190": "<-", "\u2212": "-", "\u00b7": "*", "\u00b2": "^2", "\u1d40": "^T", "\u221a": "sqrt", "\u2016": "||"},
    **{"\u221e": "inf", "\u2260": "!=", "\u2264": "<=", "\u2265": ">="},
}
"""Signs of formulas for terminals, files and pipes that cannot take them: arrow, minus, times, square, transpose, root, norm; and so on."""


def _spell(error: UnicodeError) -> tuple[str, int]:
    """What to write in place of signs that an encoding has not."""
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(_SPELLED.get(sign, "?") for sign in lost), error.end


def main() -> None:
    """Runs the command with the arguments of the process."""
    codecs.register_error("steprule.spell", _spell)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="steprule.spell")
    try:
        try:
            app(prog_name="steprule")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        sys.stdout = None  # Python would try to write the rest at its end
        is_left = error.errno == errno.EPIPE  # by a reader that has seen enough
        sys.exit(1 if is_left else f"steprule: standard output cannot be written: {error.strerror}")


if __name__ == "__main__":
    main()
