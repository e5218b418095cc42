"""What must be set before torch and Triton are imported, and what holds for every test.

Each test process computes with one thread that does not spin while it waits, so that several may share a machine; tests
that are about threads ask for more. Where there is no GPU, Triton's interpreter runs the GPU engine's kernels.
"""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_make_parametrize_id(val):
    """Functions and classes by their names: workers must agree on the names of tests, which no address may be in."""
    return getattr(val, "__name__", None)


def pytest_collection_modifyitems(items):
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    assert not named, f"an address is in the name of {named[0]}"
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU that torch can use"))


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """What is left of collection and of other files stays, and no look through all objects needs to see it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skips what steprule itself refuses for want of a newer torch."""
    try:
        return (yield)
    except ValueError as error:
        if "needs a torch whose tensors have grad_dtype" in str(error) and not hasattr(torch.Tensor, "grad_dtype"):
            from dropin import NO_GRAD_DTYPE, since

            since("2.10", NO_GRAD_DTYPE)
        raise


def pytest_addoption(parser):
    parser.addoption("--gpu-engine", action="store_true", help="step CPU tensors by the GPU engine, interpreted")


def pytest_configure(config):
    if config.getoption("--gpu-engine"):
        from steprule.engine import gpu

        gpu.DEVICES.add("cpu")
        np.seterr(all="ignore")  # the interpreter computes with numpy, which warns of inf and nan
