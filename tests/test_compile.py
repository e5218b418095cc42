"""A compiled training step that contains ours."""

from __future__ import annotations

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
