"""A compiled training step that contains ours."""

from __future__ import annotations

import contextlib

import pytest
import torch

import steprule


@pytest.mark.parametrize("large", [False, True])
def test_torch_compile_of_a_training_step(large):
    def train(compile_it: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(300 if large else 4, 300)
        optimizer = steprule.AdamW(model.parameters(), lr=0.1)
        data = torch.randn(8, model.in_features)

        def step() -> None:
            optimizer.zero_grad()
            model(data).square().mean().backward()
            optimizer.step()

        run = torch.compile(step, backend="eager") if compile_it else step
        for _ in range(4):
            run()
        return model.weight.detach()

    assert torch.equal(train(True), train(False))


def test_gradients_are_released_in_a_compiled_step():
    def train(compile_it: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = steprule.AdamW(model.parameters(), lr=0.1)
        optimizer.release_gradients(model)
        data = torch.randn(8, 4)

        def step() -> None:
            with optimizer.accumulate():
                model(data).square().mean().backward()
            model(data).square().mean().backward()
            optimizer.step()

        run = torch.compile(step, backend="eager") if compile_it else step
        for _ in range(3):
            run()
        return model.weight.detach()

    assert torch.equal(train(True), train(False))


@pytest.mark.parametrize("name", ["adamw", "schedulefreeadamw"])
def test_averages_are_exchanged_in_compiled_functions(name):
    def train(compile_it: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
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

        run = torch.compile(epoch, backend="eager") if compile_it else epoch
        return [run() for _ in range(3)]

    for one, other in zip(train(True), train(False), strict=True):
        assert torch.equal(one, other)


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
