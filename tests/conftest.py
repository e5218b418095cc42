"""Where there is no GPU, Triton's interpreter runs the GPU engine's kernels on the CPU; it must know before it is imported."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU that torch can use"))


def pytest_addoption(parser):
    parser.addoption("--gpu-engine", action="store_true", help="step CPU tensors by the GPU engine, interpreted")


def pytest_configure(config):
    if config.getoption("--gpu-engine"):
        from steprule.engine import gpu

        gpu.DEVICES.add("cpu")
        np.seterr(all="ignore")  # the interpreter computes with numpy, which warns of inf and nan
