"""Holds optimizers of other packages to the checks of `steprule check`.

    python3.11 -m venv others
    others/bin/pip install -e . torch==2.13.0 timm pytorch_optimizer heavyball torch-optimi schedulefree prodigyopt \
        lion-pytorch bitsandbytes torchao
    others/bin/python benchmarks/conformance.py          # some minutes

Keeps conformance.json: each optimizer with what is claimed of it, the results, and for each failure the program that shows
it. Of each package and check the first such program is run by itself, as a process of its own; one that does not fail there
stops the script. A package that is not installed is left out. Nothing is timed.

Claims are what a package's documentation says of an optimizer: the formula of a paper, what weight_decay is, flags that it
takes. A formula is claimed only where the package does not say that it does otherwise. pytorch_optimizer's Muon and its
relatives are left out: their groups have a form of their own. So is timm's, which takes matrices as small as those of the
checks to its AdamW, as it says. So are optimizers that draw random numbers or whose inverses make rounding large: their steps
cannot be compared number by number.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import record
from figures.conformance import conformance as figure

SEED = 0
E: dict[str, Any] = {"separate": True, "elementwise": True}
SEPARATE: dict[str, Any] = {"separate": True}
TORCHS: dict[str, Any] = {"separate": True, "maximize": True, "complex": True, "foreach": True, "bfloat16": True}
TE: dict[str, Any] = {**TORCHS, "elementwise": True}
FUSED: dict[str, Any] = {"separate": True, "elementwise": True, "maximize": True, "bfloat16": True}
MATRIX: dict[str, Any] = {"separate": True, "params": "2d"}
DECOUPLED, COUPLED = {"decay": "decoupled"}, {"decay": "coupled"}
TRAIN: dict[str, Any] = {"separate": True, "mode": "train"}

Entry = tuple[str, dict[str, Any], dict[str, Any]]


_BEGINS = {"moves_at_the_first_step": "the first step only begins the second moment, as in the paper"}
_PRECONDITIONS = {"moves_at_the_first_step": "the first step only begins the preconditioner, as in the authors' code"}
_TENSOR = dict.fromkeys(
    ("rests_at_lr_0", "reads_settings_each_step", "follows_a_changed_lr"), "lr is a tensor, and is written by fill_"
)
EXPECTED: dict[str, dict[str, str]] = {
    "ASGD": {"rests_at_zero_gradients": "lambd decays by itself"}, "Rprop": {"follows_a_changed_lr": "lr is where step sizes begin"},
    "ADOPT": _BEGINS, "adopt.Adopt": _BEGINS, "SOAP": _PRECONDITIONS,
    **dict.fromkeys(("AdamW8bit", "AdamW4bit", "AdamWFp8"), _TENSOR),
    "sgdp.SGDP": {"uses_every_argument": "eps is in a projection that only some gradients have"},
    "Yogi": {"rests_at_zero_gradients": "the moments begin above 0, as in the authors' code"},
}  # fmt: skip
"""What a formula does by itself, and why."""


def of(name: str, claims: dict[str, Any] | None = None, /, formula: str | None = None, **settings: Any) -> Entry:
    """An optimizer, what is claimed of it, and what it is made with."""
    expected = {"expected_failures": EXPECTED[name]} if name in EXPECTED else {}
    return name, {**(claims or {}), **({"formula": formula} if formula else {}), **expected}, settings


# fmt: off
PACKAGES: dict[str, tuple[str, list[Entry]]] = {
    "torch": ("torch.optim", [
        of("AdamW", {**TE, **DECOUPLED, "fused": True, "tensor_lr": True, "scale_invariant": True}, "adamw"),
        of("Adam", {**TE, **COUPLED, "fused": True, "tensor_lr": True}, "adam"),
        of("SGD", {**TE, **COUPLED, "fused": True, "tensor_lr": True}, "sgd", momentum=0.9),
        of("RMSprop", {**TE, **COUPLED}, "rmsprop"), of("Adagrad", {**TE, **COUPLED, "sparse": True}, "adagrad"),
        of("Adadelta", {**TE, **COUPLED}, "adadelta"), of("Adamax", {**TE, **COUPLED}, "adamax"),
        of("NAdam", {**TE, **COUPLED}, "nadam"), of("RAdam", {**TE, **COUPLED}, "radam"),
        of("ASGD", TE, "asgd"), of("Rprop", TE, "rprop"),
        of("Adafactor", {**SEPARATE, **DECOUPLED, "maximize": True, "foreach": True}, "adafactor"),
        of("Muon", {**MATRIX, **DECOUPLED}),
        of("AdamW", {**FUSED, **DECOUPLED}, "adamw", fused=True), of("SGD", {**FUSED, **COUPLED}, "sgd", momentum=0.9, fused=True),
    ]),
    "timm": ("timm.optim", [
        of("adamw.AdamWLegacy", {**E, **DECOUPLED}, "adamw"), of("lion.Lion", {**E, **DECOUPLED}, "lion"),
        of("lamb.Lamb", SEPARATE, "lamb", max_grad_norm=None, always_adapt=True), of("lars.Lars", SEPARATE, lr=0.1),
        of("adan.Adan", E, "adan"), of("adabelief.AdaBelief", {**E, **DECOUPLED}, "adabelief", rectify=False),
        of("madgrad.MADGRAD", E, "madgrad"), of("laprop.LaProp", E), of("adopt.Adopt", E),
        of("nadamw.NAdamW", {**E, **DECOUPLED, "maximize": True}), of("mars.Mars", SEPARATE),
        of("adafactor.Adafactor", SEPARATE, lr=1e-3), of("adafactor_bv.AdafactorBigVision", SEPARATE),
        of("nvnovograd.NvNovoGrad", SEPARATE), of("sgdw.SGDW", {**E, **DECOUPLED, "maximize": True}, momentum=0.9),
        of("rmsprop_tf.RMSpropTF", E), of("adamp.AdamP", SEPARATE), of("sgdp.SGDP", SEPARATE, lr=1e-3, momentum=0.9),
    ]),
    "pytorch_optimizer": ("pytorch_optimizer", [
        of("Lion", {**E, **DECOUPLED, "maximize": True}, "lion"), of("AdaBelief", {**E, **DECOUPLED}, "adabelief"),
        of("Adan", E, "adan"), of("Yogi", E), of("LaProp", E), of("ADOPT", E),
        of("AdEMAMix", E), of("StableAdamW", SEPARATE, "stableadamw"), of("Lamb", SEPARATE),
        of("LARS", SEPARATE), of("MADGRAD", E), of("Prodigy", d0=0.01), of("DAdaptAdam", d0=0.01), of("SOAP", SEPARATE),
        of("CAME", SEPARATE), of("AdaFactor", SEPARATE, lr=1e-3, relative_step=False),
        of("SM3", SEPARATE), of("SGDW", {**E, **DECOUPLED}, momentum=0.9), of("Grams", {**E, **DECOUPLED}),
        of("MARS", SEPARATE), of("SPlus", SEPARATE), of("Tiger", E), of("SCION", MATRIX),
        of("ScheduleFreeAdamW", TRAIN), of("ScheduleFreeSGD", TRAIN), of("AdamP", SEPARATE),
    ]),
    "heavyball": ("heavyball", [
        of("AdamW", {**E, **DECOUPLED}, "adamw"), of("NAdam", E), of("RMSprop", E), of("LaProp", E), of("ADOPT", E),
        of("AdEMAMix", E), of("SFAdamW", TRAIN), of("SOAP", SEPARATE),
    ]),
    "torch-optimi": ("optimi", [
        of("AdamW", {**E, **DECOUPLED, "bfloat16": True}, "adamw", lr=1e-3), of("Adam", {**E, "bfloat16": True}, "adam", lr=1e-3),
        of("SGD", {**E, "bfloat16": True}, lr=1e-3, momentum=0.9), of("Lion", {**E, **DECOUPLED, "bfloat16": True}, "lion", lr=1e-4),
        of("StableAdamW", {**SEPARATE, "bfloat16": True}, "stableadamw", lr=1e-3), of("RAdam", {**E, "bfloat16": True}, lr=1e-3),
        of("Adan", {**E, "bfloat16": True}, "adan", lr=1e-3), of("Ranger", {**E, "bfloat16": True}, lr=1e-3),
    ]),
    "schedulefree": ("schedulefree", [
        of("AdamWScheduleFree", TRAIN), of("SGDScheduleFree", TRAIN), of("RAdamScheduleFree", TRAIN, silent_sgd_phase=False),
    ]),
    "prodigyopt": ("prodigyopt", [of("Prodigy", d0=0.01)]),
    "lion-pytorch": ("lion_pytorch", [of("Lion", {**E, **DECOUPLED}, "lion")]),
    "bitsandbytes": ("bitsandbytes.optim", [
        of("AdamW", {**E, **DECOUPLED}, "adamw"), of("Adam", E, "adam"), of("Lion", {**E, **DECOUPLED}, "lion"),
        of("SGD", E, lr=1e-3, momentum=0.9), of("RMSprop", E), 
    ]),
    "torchao": ("torchao.optim", [of("AdamW8bit", SEPARATE), of("AdamW4bit", SEPARATE), of("AdamWFp8", SEPARATE)]),
}
# fmt: on
"""By the name of the package: the module that its optimizers are in, and these."""

BEFORE = {"heavyball": "import heavyball.utils; heavyball.utils.compile_mode = None\n"}
"""How a program begins: on a CPU heavyball's compiled steps take minutes, or fail to compile."""


def checked(package: str) -> list[dict[str, Any]]:
    """The rows of a package."""
    import torch

    from steprule.check import Claims, Subject, run

    torch.set_num_threads(1)
    exec(BEFORE.get(package, ""), {})
    home, entries = PACKAGES[package]
    rows = []
    for name, claims, settings in entries:
        module, _, last = f"{home}.{name}".rpartition(".")
        subject = Subject(getattr(import_module(module), last), Claims(**claims), f"{module}:{last}", **settings)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            report = run(subject, seed=SEED)
        counts = {status: 0 for status in ("passed", "failed", "expected", "skipped")}
        failures = []
        for result in report.results:
            counts[result.status] += 1
            if result.status == "failed":
                program = BEFORE.get(package, "") + result.reproducer
                failures.append({"check": result.check.name, "reason": result.reason, "reproducer": program})
        made = {"package": package, "optimizer": last, "settings": settings, "claims": claims}
        rows.append({**made, **counts, "failures": failures})
        print(package, last, report.counts, file=sys.stderr, flush=True)
    return rows


def in_a_process(package: str) -> list[dict[str, Any]]:
    """The same, from a process of its own: a package may crash."""
    done = subprocess.run([sys.executable, __file__, package], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def reproduces(failure: dict[str, Any]) -> bool:
    """Whether a program fails by itself, and for the reason that the check gave."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(failure["reproducer"], encoding="utf-8")
        done = subprocess.run([sys.executable, str(path)], cwd=folder, capture_output=True, text=True)
    reason = failure["reason"].splitlines()[0].split("; ")[0][:60]  # behind it stands what other formula it may be
    return done.returncode != 0 and reason in done.stderr


def is_installed(package: str) -> bool:
    """Whether a package is there."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    """Checks all packages and keeps the record."""
    from steprule.check import CHECKS

    begun = record.head()
    there = [name for name in PACKAGES if is_installed(name)]
    rows = [row for package in there for row in in_a_process(package)]
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        for failure in row["failures"]:
            if first.setdefault((row["package"], failure["check"]), failure) is not failure:
                del failure["reproducer"]
    with ThreadPoolExecutor(2) as pool:
        alone = list(pool.map(reproduces, first.values()))
    others = [f"{package}: {check}" for (package, check), fails in zip(first, alone, strict=True) if not fails]
    if others:
        sys.exit(f"these programs do not fail by themselves as the checks did: {', '.join(others)}")
    says = {check.name: check.says for check in CHECKS.values()}
    releases = {package: importlib.metadata.version(package) for package in there}
    facts = {"seed": SEED, "packages": releases, "says": says, "reproduced": len(first)}
    record.show([figure({"conformance": record.write("conformance", begun, rows, **facts)})])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(checked(sys.argv[1])))
    else:
        main()
