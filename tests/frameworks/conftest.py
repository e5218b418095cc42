"""Lets torchvision be imported beside a CPU build of torch.

Its wheels are built for CUDA, so the file with its operators does not load there, and importing it fails at the first of them
that it registers something for. timm, transformers, Lightning and TRL import torchvision, and no model here calls them.
"""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch

if importlib.util.find_spec("torchvision") is not None:
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # they are there for as long as this is
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


@pytest.fixture
def one_process(monkeypatch):
    """What DeepSpeed reads of its process, and no group of processes behind it. Other trainers read these, too."""
    for name, value in {
        "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield
    if torch.distributed.is_initialized():
        importlib.import_module("deepspeed").comm.destroy_process_group()  # with the groups that it keeps
