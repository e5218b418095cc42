"""Frameworks in two processes (gloo) come to what one process comes to, and go on from a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import TRAINERS, makers

HERE = Path(__file__).parent


def launch(name, world, folder):
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(world),
        str(HERE / "processes.py"),
        name,
        str(folder),
    ]
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_come_to_what_one_comes_to(name, tmp_path):
    pytest.importorskip({"Fabric": "lightning"}.get(name, name.split(",")[0].lower()))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    single = name.replace(", FSDP2", "")
    (alone,) = launch(single, 1, tmp_path / "one")
    first, second = launch(name, 2, tmp_path / "two")
    assert set(first) == {kind + part for kind in makers(name) for part in ("", ", resumed")}
    for kind, its in first.items():
        assert all(map(torch.equal, its["trained"], second[kind]["trained"])), kind
        assert all(map(torch.equal, its["averages"], second[kind]["averages"])), kind
        assert its["clipped"] == alone[kind]["clipped"] == (6 if kind[:4] != "Muon" else 0), kind
        within = {"rtol": 1e-5, "atol": 1e-5 if kind.startswith("Muon") else 2e-7}  # its AdamW has an eps of 1e-8
        for part in ("norm", "trained", "averages"):
            torch.testing.assert_close(its[part], alone[kind][part], **within, msg=f"{kind}, {part}: {{}}".format)
        resumed = first[kind.removesuffix(", resumed")]
        if "Schedule-Free" not in kind:  # which comes back from its averages but for rounding
            assert all(map(torch.equal, its["trained"], resumed["trained"])), kind
            assert all(map(torch.equal, its["averages"], resumed["averages"])), kind
        if kind.startswith(("average", "Schedule-Free")):
            assert not torch.allclose(its["trained"][0], its["averages"][0]), kind
