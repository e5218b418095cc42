"""The tests that depend on versions, on the oldest and on the newest set that steprule takes: `nox`, or `make versions`.

`oldest` installs the lowest release of everything that pyproject.toml gives a range of to users, on the oldest Python;
`newest` the highest that pip finds, on the newest Python for which there is one here. nox looks for `python3.10` and
`python3.13` on the PATH. Either takes some ten minutes, and its torch may take gigabytes to download.

Left out is what hangs on no release of torch, NumPy, llvmlite or Triton beyond what is run: options and services one by
one, formats, chains, telemetry, the command line, the examples and the long runs. Those run in `make test`. Name files
after `--` to run them instead: `nox -s oldest -- tests/test_clip.py`.
"""

from __future__ import annotations

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["oldest", "newest"]

TESTS = [
    f"tests/test_{topic}.py"
    for topic in (
        "dropin_construction", "dropin_groups", "dropin_state", "dropin_step", "dropin_torch_bugs", "sparse_adam",
        "papers_torch", "checkpoints", "groups_by_hand", "memory_safety", "release", "accumulate", "arrays", "engines",
        "rules", "trace", "compile", "cache", "import", "fork", "dcp", "sharded", "sharded_checkpoints", "sharded_matrices",
        "exchange", "dropin_matrix", "matrix_engine", "matrix_polar", "matrix_rules",
    )
]  # fmt: skip


def test(session: nox.Session, *pins: str) -> None:
    """Runs the tests with all that they need, and with these releases of it."""
    session.install("-e", ".[dev]", *pins)
    session.run("python", "-m", "pip", "list")
    cache = {"STEPRULE_CACHE": session.create_tmp()}
    session.run(
        "python",
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-n",
        "2",
        "--dist",
        "worksteal",
        "-m",
        "",
        *(session.posargs or TESTS),
        env=cache,
    )


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """Everything that users need, at the lowest release that pyproject.toml takes."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    test(session, *(requirement.replace(">=", "==", 1) for requirement in needed))


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Everything at the highest release that pip finds."""
    test(session)


@nox.session(python="3.11")
def frameworks(session: nox.Session) -> None:
    """Trainers, and the models of transformers, timm and torchvision, over the torch of constraints.txt."""
    project = nox.project.load_toml("pyproject.toml")
    wanted = project["dependency-groups"]["frameworks"]
    session.run("python", "-m", "pip", "uninstall", "-q", "-y", "torchtune", "torchao")  # of the last run, from below
    session.install("-c", "constraints.txt", "-e", ".[dev]", *wanted)
    session.run("python", "-m", "pytest", "-q", "-rs", "tests/frameworks", *session.posargs)
    session.install("-c", "constraints.txt", "torchtune==0.6.1", "torchao==0.10.0")  # which PEFT does not take
    held = [f"tests/frameworks/test_{topic}.py" for topic in ("recipes", "table")]
    session.run("python", "-m", "pytest", "-q", "-rs", *held, "-k", "torchtune")


@nox.session(python="3.11")
def conformance(session: nox.Session) -> None:
    """All of steprule's optimizers held to all checks of `steprule check`, and those to all faults."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("python", "-m", "pytest", "-q", "tests/conformance/all.py", *session.posargs)
