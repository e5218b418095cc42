"""A compiled training step that contains ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch

import steprule


def same_compiled(make: Callable[[], Callable[[], torch.Tensor]], times: int) -> None:
    """Holds a function that is compiled to the same one that is not, called so many times."""
    found = []
    for compiles in (True, False):
        torch.manual_seed(0)
        step = make()
        run = torch.compile(step, backend="eager") if compiles else step
        found.append([run().clone() for _ in range(times)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("large", [False, True])
def test_torch_compile_of_a_training_step(large):
    def make() -> Callable[[], torch.Tensor]:
        model = torch.nn.Linear(300 if large else 4, 300)
        optimizer = steprule.AdamW(model.parameters(), lr=0.1)
        data = torch.randn(8, model.in_features)

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            model(data).square().mean().backward()
            optimizer.step()
            return model.weight.detach()

        return step

    same_compiled(make, 4)


def test_gradients_are_released_in_a_compiled_step():
    def make() -> Callable[[], torch.Tensor]:
        model = torch.nn.Linear(4, 3)
        optimizer = steprule.AdamW(model.parameters(), lr=0.1)
        optimizer.release_gradients(model)
        data = torch.randn(8, 4)

        def step() -> torch.Tensor:
            with optimizer.accumulate():
                model(data).square().mean().backward()
            model(data).square().mean().backward()
            optimizer.step()
            return model.weight.detach()

        return step

    same_compiled(make, 3)


@pytest.mark.parametrize("name", ["adamw", "schedulefreeadamw"])
def test_averages_are_exchanged_in_compiled_functions(name):
    def make() -> Callable[[], torch.Tensor]:
        model = torch.nn.Linear(4, 3)
        settings = {"average": 0.5} if name == "adamw" else {}
        optimizer = steprule.create_optimizer(model, name, lr=0.1, **settings)
        data = torch.randn(8, 4)

        def epoch() -> torch.Tensor:
            optimizer.train()
            optimizer.zero_grad()
            model(data).square().mean().backward()
            optimizer.step()
            optimizer.eval()
            found = model(data)
            optimizer.train()
            with optimizer.averaged() if settings else contextlib.nullcontext():
                found = found + model(data) + optimizer.read(model.weight).sum()
            return found.detach()

        return epoch

    same_compiled(make, 3)


def test_sums_of_more_bits_are_refused_in_compiled_autograd():
    model = torch.nn.Linear(4, 3).bfloat16()
    optimizer = steprule.SGD(model.parameters(), lr=0.1, grads="24bit", weights="24bit")

    def backward() -> None:
        model(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()

    backward()
    with (
        torch._dynamo.config.patch(compiled_autograd=True),
        pytest.raises(RuntimeError, match='grads="24bit" and compiled autograd do not go together'),
    ):
        torch.compile(backward, backend="eager")()
    optimizer.step()
