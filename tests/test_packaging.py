"""What people install: the sdist has all that its tests need, and the wheel that is made of it works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import steprule

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "steprule-report")
QUICK = ["tests/test_pieces.py", "tests/test_digests.py", "tests/test_house.py"]


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    """What Python prints, without a network."""
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    folder.mkdir()
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    run("-c", code, str(folder), cwd=source)
    (built,) = folder.iterdir()
    return built


def files(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if "__pycache__" not in path.parts}


@pytest.mark.long
def test_the_wheel_of_the_sdist_passes_the_tests_of_the_sdist(tmp_path):
    shutil.copytree(ROOT, tmp_path / "tree", ignore=LEFT_OUT)
    with tarfile.open(build("sdist", tmp_path / "tree", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    for folder in ("src", "tests", "docs", "examples", "benchmarks", "tools"):
        wanted = files(tmp_path / "tree" / folder, "*.*")
        assert {name for name in wanted if "egg-info" not in name} <= files(source / folder, "*.*")
    for name in (
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "noxfile.py",
    ):
        assert (source / name).is_file(), name

    wheel = build("wheel", source, tmp_path / "wheel")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {f"steprule/{name}" for name in files(ROOT / "src/steprule", "*.py*") if not name.endswith(".pyc")}
    assert {"steprule/py.typed", *package} <= inside
    assert any(name.endswith("/LICENSE") for name in inside)
    assert not [name for name in inside if not name.startswith("steprule")]

    target = tmp_path / "target"
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=tmp_path)
    environment = {"PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
    seen = run("-c", "import steprule; print(steprule.__file__)", cwd=source, **environment)
    assert Path(seen.strip()) == target / "steprule" / "__init__.py"
    assert " passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", *QUICK, cwd=source, **environment)


def test_links_of_the_readme_work_elsewhere():
    """The README is the page of the project on PyPI too; what it links to in the project is there."""
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    address = "https://github.com/steprule/steprule/blob/main/"
    assert links and all(link.startswith("https://") for link in links)
    for link in links:
        if link.startswith(address):
            assert (ROOT / link.removeprefix(address).partition("#")[0]).is_file(), link


@pytest.mark.parametrize("module", ["steprule", "steprule.cli"])
def test_the_module_is_the_command(module):
    assert run("-m", module, "--version", cwd=ROOT) == f"steprule {steprule.__version__}\n"


@pytest.mark.parametrize("command", ["", "compare", "memory", "list", "show"])
def test_h_is_help(command):
    from typer.testing import CliRunner

    from steprule.cli import app

    short, long = (CliRunner().invoke(app, [*command.split(), option]) for option in ("-h", "--help"))
    assert short.exit_code == 0 and short.output == long.output


def test_summaries_are_not_cut():
    from typer.testing import CliRunner

    from steprule.cli import app

    output = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "60"}).output
    assert "..." not in output.partition("Commands")[2]
    assert "which reaches the target first" in " ".join(output.split())
