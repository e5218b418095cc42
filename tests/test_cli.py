"""The command `steprule` itself: names of commands, and what it writes to."""

import contextlib
import io
import os
import re
import sys

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from steprule import Rule, __version__, cli


def ended(monkeypatch, stdout, *arguments):
    """What the program ends with, standard output being this file."""
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["steprule", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    return ending.value.code


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_formula_can_be_written_in_any_encoding(monkeypatch, encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert ended(monkeypatch, file, "show", "sgd") == 0
    text = file.buffer.getvalue().decode(encoding).replace("\u00b7", "*")
    assert "param <- param - lr*(grad + weight_decay*param)" in text


def test_every_sign_of_a_formula_can_be_spelled():
    from steprule.formula import formula_text
    from steprule.rules import OWN

    signs = {sign for rule in OWN.values() for sign in formula_text(rule, rule.hyperparameters) if ord(sign) > 127}
    assert signs and signs <= cli._SPELLED.keys()


@pytest.fixture
def output():
    """Opens a file for writing; what it could not take is lost at the end."""
    with contextlib.ExitStack() as files:

        def open_it(file):
            opened = open(file, "w")  # noqa: SIM115 - closed below
            files.callback(close, opened)
            return opened

        def close(opened):
            with contextlib.suppress(OSError):
                opened.close()

        yield open_it


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
@pytest.mark.parametrize("arguments", [("list",), ("--version",), ("memory", "7B", "--json")])
def test_a_full_disk_is_told_in_a_line(monkeypatch, output, arguments):
    code = ended(monkeypatch, output("/dev/full"), *arguments)
    assert code == "steprule: standard output cannot be written: No space left on device"
    assert sys.stdout is None  # or Python would try once more at its end, and print that it failed


def test_a_reader_that_leaves_early_is_no_error_to_tell(monkeypatch, capsys, output):
    reading, writing = os.pipe()
    os.close(reading)
    assert ended(monkeypatch, output(writing), "list") == 1
    assert capsys.readouterr().err == ""


def test_names_of_commands_have_any_case():
    runner = CliRunner()
    assert runner.invoke(cli.app, ["LIST"]).output == runner.invoke(cli.app, ["list"]).output
    assert runner.invoke(cli.app, ["-V"]).output == f"steprule {__version__}\n"
    for word, message in {"help": "Did you mean '--help'?", "Version": "Did you mean '--version'?", "lst": "Did you mean 'list'?"}.items():  # fmt: skip
        result = runner.invoke(cli.app, [word])
        assert result.exit_code == 2 and message in result.output


class Misspelt(Rule):
    def update(param, grad, *, lr=0.1):
        return param - lr * graad  # noqa: F821


@pytest.mark.parametrize(
    "arguments",
    [["check", "test_cli:Misspelt"], ["show"], ["memory", "7B"], ["compare", "--no-report", "--steps", "1"]],
)
def test_a_rule_that_is_none_is_told_in_a_line(arguments):
    named = arguments if len(arguments[-1]) > 9 else [*arguments, "test_cli.Misspelt"]
    result = CliRunner().invoke(cli.app, named)
    assert result.exit_code == 2
    told = rf"steprule {arguments[0]}: Misspelt.update: NameError: name 'graad' is not defined \(.*\); did you mean 'grad'\?\n"
    assert re.search(told, result.output)


@pytest.mark.parametrize("command", ["compare", "memory", "list", "show", "lesson"])
def test_help_breaks_no_setting(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    file = io.StringIO()
    assert ended(monkeypatch, file, command, "--help") == 0
    assert all(len(line) <= 60 for line in file.getvalue().splitlines())
    for word in ("adamw:lr=3e-3,weight_decay=0.1", "adamw:states=8bit,weights=24bit") if command == "compare" else ():
        assert word in file.getvalue().split()
