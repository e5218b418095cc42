"""One place for an optimizer: what is written in steprule.rules, or named by another package's entry point, is everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forked import fresh

import steprule

SRC = Path(steprule.__file__).parent
RULE = """
from steprule.rule import Rule


class Halving(Rule):
    \"\"\"Half of a gradient. Nobody 2026.\"\"\"

    @staticmethod
    def update(param, grad, *, lr=1e-3):
        return param - lr * (grad / 2)
"""
EVERYWHERE = """
import pickle
import numpy as np, torch, steprule
from steprule import Halving, arrays
from steprule.compare.spec import parse
from steprule.rules import RULES

param, array = torch.nn.Parameter(torch.ones(2)), np.ones(2)
param.grad = torch.ones(2)
optimizer = Halving([param], lr=0.5)
optimizer.step()
arrays.Halving([array], lr=0.5).step([np.ones(2)])
assert param.tolist() == array.tolist() == [0.75, 0.75]
made = steprule.create_optimizer(torch.nn.Linear(2, 2), "halving", lr=0.5)
assert type(made) is steprule.optimizer.Halving is type(pickle.loads(pickle.dumps(made)))
assert "Halving" in dir(steprule) and "Halving" in steprule.__all__
assert list(RULES)[-1] == "halving", "it is after steprule's own"
parse("halving:lr=0.5")

from typer.testing import CliRunner
from steprule.cli import app

assert "\\nhalving " in CliRunner().invoke(app, ["list"]).output
assert "Nobody 2026" in CliRunner().invoke(app, ["show", "halving"]).output
"""


def run(code, *folders):
    done = fresh(code, folders, {"COLUMNS": "160"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_a_file_in_rules_is_all_that_an_optimizer_takes(tmp_path):
    shutil.copytree(SRC, tmp_path / "steprule", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "steprule" / "rules" / "zzz.py").write_text(RULE)
    run(EVERYWHERE + "assert 'Halving' in steprule.rules.__all__ and steprule.rules.Halving is Halving.rule", tmp_path)


@pytest.fixture
def install(tmp_path):
    """Puts a package into a folder as pip would, and returns the folders to run with."""

    def install(files, *entries):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        folder = tmp_path / "halving-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: halving\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text("\n".join(["[steprule.rules]", *entries]))
        return tmp_path, SRC.parent

    return install


def test_other_packages_register_theirs(install):
    folders = install({"halving.py": RULE}, "Halving = halving:Halving")
    assert "left out" not in run(EVERYWHERE, *folders)[1]


def test_a_rule_that_is_none_is_left_out_with_the_reason_once_and_the_others_stay(install):
    bare = "\nclass Bare(steprule.Rule):\n    def update(param, grad, *, lr=1e-3):\n        return param - lr * grad\n"
    folders = install({"halving.py": RULE + "import steprule\n" + bare}, "Half = halving:lost", "Bare = halving:Bare")
    asked = """
import pathlib, steprule, steprule.catalog
steprule.Bare
steprule.catalog.print_list([], False)
for ask in (lambda: steprule.Half, lambda: steprule.create_optimizer([], "half")):
    try:
        ask()
    except (AttributeError, ValueError) as error:
        print(error)
"""
    out, told = run(asked, *folders)
    assert (
        "bare " in out
        and told.count("left out") == 1
        and told.startswith("<string>:3: UserWarning: a rule of another package")
    )
    why = "it is left out: Half = halving:lost of the package halving: AttributeError: module 'halving' has no attribute 'lost'"
    assert f"module 'steprule' has no attribute 'Half': {why}" in out and f"unknown optimizer 'half': {why}" in out


def test_what_is_written_of_steprules_rules_has_no_others(install):
    """The documents, the stubs and the tables of these tests, wherever a package is installed."""
    here = Path(__file__).parent
    folders = install({"halving.py": RULE}, "Halving = halving:Halving")
    tables = "from settings import VARIANTS\nassert all(rule is not Halving for rule, _ in VARIANTS)"
    texts = "import optimizers, write_stubs\nassert 'Halving' not in optimizers.choose() + optimizers.index([]) + str(optimizers.addresses()) + ''.join(write_stubs.stubs().values())"
    code = f"from steprule.rules import OWN, RULES\nHalving = RULES['halving']\nassert 'halving' not in OWN\n{tables}\n{texts}"
    run(code, *folders, here, here.parent / "tools", here.parent / "tools" / "site")


def test_a_package_that_uses_steprule_may_be_imported_first(install):
    folders = install({"halving.py": "from steprule import AdamW\n" + RULE}, "Halving = halving:Halving")
    same = "; import steprule; assert steprule.Halving.rule is halving.Halving is steprule.rules.RULES['halving']"
    for first in ("halving", "steprule.rules, halving"):
        assert run(f"import {first}{same}", *folders)[1] == ""


@pytest.mark.parametrize("first", ["steprule", "halving"])
@pytest.mark.parametrize("name", ["AdamW", "LBFGS"])
def test_a_name_that_is_taken_is_refused(install, name, first):
    own = ("from steprule import SGD\n" + RULE).replace("Halving", name)
    folders = install({"halving.py": own}, f"{name} = halving:{name}")
    told = run(
        f"import {first}, steprule; print([rule.__module__ for rule in steprule.rules.RULES.values()])", *folders
    )
    taken = {"AdamW": "steprule.rules.adam.AdamW", "LBFGS": "torch.optim.LBFGS"}[name]
    assert f"halving.{name} cannot be called {name.lower()!r}, which {taken} is" in told[1]
    assert "halving" not in told[0]


WHOLE = """
import steprule


class HalvingRule(steprule.Rule):
    def update(param, grad, *, lr=1e-3):
        return param - lr * (grad / 2)


class Halving(steprule.Optimizer, rule=HalvingRule):
    pass
"""
CHAINED = """
import steprule

steprule.AdamW
HalvingRule = steprule.chain(steprule.transforms.sign, name="HalvingRule")
"""
THERE = """
import steprule
assert "halvingrule" in steprule.rules.RULES and "HalvingRule" in dir(steprule)
for module in (steprule, steprule.optimizer, steprule.arrays):
    assert "HalvingRule" in module.__all__ and module.HalvingRule.rule is steprule.rules.RULES["halvingrule"]
"""


@pytest.mark.parametrize("first", ["halving", "steprule", "steprule.rules, halving", "steprule.create"])
@pytest.mark.parametrize("text", [WHOLE, CHAINED], ids=["classes", "chain"])
def test_a_package_may_be_imported_in_any_order(install, text, first):
    folders = install({"halving.py": text}, "it = halving:HalvingRule")
    assert run(f"import {first}\n{THERE}", *folders) == ("", "")


def test_a_package_may_ask_while_it_is_imported(install):
    """The rule is in a module that its package imports later."""
    folders = install({}, "it = halving.rules:HalvingRule")
    (folders[0] / "halving").mkdir()
    (folders[0] / "halving" / "rules.py").write_text("from halving import late\n" + WHOLE)
    (folders[0] / "halving" / "__init__.py").write_text(
        "import steprule; steprule.AdamW; late = 1\nfrom halving import rules"
    )
    assert run(f"import halving\n{THERE}", *folders) == ("", "")


def public_names():
    names = {name for module in (steprule, steprule.optimizer, steprule.arrays) for name in dir(module)}
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("name", public_names())
def test_public_names_are_no_rules(name):
    from steprule.registry import RULES

    def update(param, grad, *, lr=1e-3):
        return param - lr * grad

    before = dict(RULES)
    for spelled in (name, name.capitalize()):
        with pytest.raises(steprule.RuleError, match=f"cannot be called {name.lower()!r}, which .* is; choose another"):
            RULES.enter(type(spelled, (steprule.Rule,), {"update": update}))
    assert dict(RULES) == before


def test_two_packages_with_chains_of_one_name(install):
    other = CHAINED.replace("sign", "ema")
    folders = install({"halving.py": CHAINED, "other.py": other}, "a = halving:HalvingRule", "b = other:HalvingRule")
    errors = run(f"{THERE}\nimport halving; assert halving.HalvingRule is steprule.HalvingRule.rule", *folders)[1]
    assert (
        "b = other:HalvingRule of the package halving: RuleError" in errors
        and "which steprule.chains.HalvingRule is" in errors
    )


def test_one_warning_as_an_error_keeps_no_others_out(install):
    folders = install({"halving.py": RULE, "other.py": "1 / 0"}, "a = other:Thirds", "b = halving:Halving")
    code = (
        "import warnings, steprule.rules\nwarnings.simplefilter('error')\n"
        "try: len(steprule.rules.RULES)\nexcept UserWarning as error: print(error)\nprint('halving' in steprule.rules.RULES)"
    )
    lines = run(code, *folders)[0].splitlines()
    assert "a = other:Thirds of the package halving: ZeroDivisionError" in lines[0] and lines[1] == "True"


BROKEN = {
    "a package that ends the program": ("raise SystemExit(3)", "Halving", "SystemExit: 3"),
    "a package that fails": ("1 / 0", "Halving", "ZeroDivisionError"),
    "a name that it has not": (RULE, "Thirds", "Thirds"),
    "no rule": ("Halving = 3", "Halving", "it is 3, not a subclass of steprule.Rule"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_breaks_nothing_else(install, case):
    text, name, told = BROKEN[case]
    folders = install({"halving.py": text}, f"it = halving:{name}")
    output, errors = run("import steprule; print(steprule.AdamW.__name__)", *folders)
    assert output == "AdamW\n"
    assert f"it = halving:{name}" in errors and told in errors
