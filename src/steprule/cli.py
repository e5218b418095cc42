"""The command ``steprule``."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any


def _need(*modules: str) -> None:
    """Ends the program with one line if a module is missing that ``steprule[compare]`` brings."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        sys.exit(f"steprule needs {', '.join(missing)} for this: pip install 'steprule[compare]'")


_need("typer")

import typer  # noqa: E402
from typer.core import TyperCommand  # noqa: E402

from steprule import __version__  # noqa: E402
from steprule.rule import NEEDS  # noqa: E402

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Command(TyperCommand):
    """A command whose line in ``steprule --help`` is not cut."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuses a negative number where it would be taken for an option."""
        if args and re.match(r"-\d", args[0]):
            ctx.fail(f"{args[0]!r} is negative")
        return super().parse_args(ctx, args)

    def get_short_help_str(self, limit: int = 0) -> str:
        """The first sentence of its help."""
        return super().get_short_help_str(1000)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steprule {__version__}")
        raise typer.Exit


_JSON = typer.Option("--json", help="Print JSON, with all that is known.")
_OUT = typer.Option(
    metavar="DIR",
    show_default="a new one in steprule-report",
    help="Folder for report.html and results.json; it must not hold a report already.",
)


@app.callback()
def steprule(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
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
            help="For example adamw:lr=3e-3,weight_decay=0.1 or 'adamw:betas=(0.9,0.95)' (quoted for the shell). "
            "Formats are settings too: adamw:states=8bit,weights=24bit trains in bfloat16. "
            "A name of steprule's, torch.AdamW for a class of torch.optim, or package.module.Class for your own. "
            "Default: sgd, rmsprop, adam and adamw, with learning rates that suit the task.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            show_default="digits and chars",
            help="digits, chars, or module:function for a function of yours that returns a steprule.compare.Task. "
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
    """Compare optimizers on real tasks: which reaches the target first."""
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
    grads: Annotated[str | None, typer.Option(hidden=True, help="What --grad-dtype was called.")] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show how much memory training needs, for each optimizer and format."""
    from steprule.memory import show

    try:
        show(model, dtype, grad_dtype or grads, optimizers or [], as_json)
    except ValueError as error:
        typer.echo(f"steprule memory: {error}", err=True)
        raise typer.Exit(2) from None


@app.command(cls=Command)
def roles(
    model: Annotated[
        str,
        typer.Argument(
            help="module:function, for a function without arguments that returns a torch.nn.Module. It is called on torch's "
            "meta device, where nothing is allocated."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATTERN=WORD",
            help="What parameters are: hidden, transpose, 'rows 3' or another view, adamw, or a role. May be given several times.",
        ),
    ] = None,
    heads: Annotated[
        bool, typer.Option("--heads", help="Part the matrices of known attention classes by head.")
    ] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show which parameters of a model are matrices for rules like Muon."""
    from steprule.matrices.command import show

    try:
        show(model, overrides or [], heads, as_json)
    except ValueError as error:
        typer.echo(f"steprule roles: {error}", err=True)
        raise typer.Exit(2) from None


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
        typer.echo(f"steprule list: {error}", err=True)
        raise typer.Exit(2) from None


@app.command(cls=Command)
def show(
    optimizer: Annotated[
        str,
        typer.Argument(
            help="A name of steprule's, or module.Class for your own, perhaps with settings: "
            "adamw:amsgrad=True,cautious=True."
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
        typer.echo(f"steprule show: {error}", err=True)
        raise typer.Exit(2) from None


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
    from steprule.lessons import LESSONS, find

    if name is None:
        for number, one in enumerate(LESSONS, 1):
            typer.echo(f"{number}  {one:13}{find(one).question}")
        return
    if name not in LESSONS:
        typer.echo(f"steprule lesson: there is no lesson {name!r}; there are {', '.join(LESSONS)}", err=True)
        raise typer.Exit(2)
    from steprule.lessons.page import page

    _need(*find(name).needs)

    path, text = output or Path(f"steprule-lesson-{name}.html"), page(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        typer.echo(f"steprule lesson: {path} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {path}")
    if not no_open:
        typer.launch(path.resolve().as_uri())


def main() -> None:
    """Runs the command with the arguments of the process."""
    app(prog_name="steprule")


if __name__ == "__main__":
    main()
