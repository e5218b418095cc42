"""Optimizers of torch parameters: torch.optim's interface over steprule's engines."""

from steprule.optimizer.front import Optimizer as Optimizer
from steprule.optimizer.made import *  # noqa: F403
from steprule.optimizer.made import __all__ as __all__
