"""A rule of your own: Lion, trained against steprule's AdamW on a small problem.

    python examples/lion.py

The formula is written once, below. The class after it makes it a torch optimizer with everything that comes with
one: groups, schedulers, checkpoints, the compiled one-pass engine. `steprule compare` takes it too:

    steprule compare adamw examples.lion.Lion:lr=3e-4
"""

from __future__ import annotations

import torch

import steprule
from steprule import ema, sign


class LionRule(steprule.Rule):
    """Lion: the sign of an interpolated momentum. Chen et al. 2023, arXiv:2302.06675, algorithm 2."""

    decay = "decoupled"  # what the formula makes of weight_decay

    @staticmethod
    def update(param, grad, exp_avg, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        direction = sign(ema(exp_avg, grad, beta1))
        return param - lr * (direction + weight_decay * param), ema(exp_avg, grad, beta2)


class Lion(steprule.Optimizer, rule=LionRule):
    pass


def train(make_optimizer: type[torch.optim.Optimizer], **settings: float) -> float:
    """The loss after 300 steps of fitting a small network to a wave."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    x = torch.linspace(-3, 3, 256)[:, None]
    optimizer = make_optimizer(model.parameters(), **settings)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model(x) - torch.sin(2 * x)).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    print(f"Lion   {train(Lion, lr=1e-3):.5f}")
    print(f"AdamW  {train(steprule.AdamW, lr=1e-2):.5f}")
