# Written by tools/write_stubs.py: make stubs
import collections.abc
import numpy
import typing

from steprule.arrays.front import Optimizer as Optimizer

__all__ = [
    "ADOPT",
    "ASGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamC",
    "AdamW",
    "Adamax",
    "Adan",
    "DAdaptAdam",
    "DoG",
    "Grams",
    "LAMB",
    "LARS",
    "LaProp",
    "Lion",
    "MADGRAD",
    "MARS",
    "NAdam",
    "NovoGrad",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Signum",
    "SparseAdam",
    "StableAdamW",
    "Yogi",
]

class Adagrad(Optimizer):
    """The gradient over the root of the sum of its squares."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None: ...

class Adadelta(Optimizer):
    """Steps as large as the steps before, over gradients as large as the gradients before."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-06,
        weight_decay: float = 0.0,
    ) -> None: ...

class Rprop(Optimizer):
    """Steps that grow while the gradient's sign lasts and shrink when it turns."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.01,
        etas: collections.abc.Sequence[float] = (0.5, 1.2),
        step_sizes: collections.abc.Sequence[float] = (1e-06, 50.0),
    ) -> None: ...

class AdamW(Optimizer):
    """Adam with decoupled weight decay."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
    ) -> None: ...

class Adam(Optimizer):
    """Adaptive moment estimation, with L2 weight decay."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None: ...

class NAdam(Optimizer):
    """Adam with Nesterov's momentum."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.002,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum_decay: float = 0.004,
        decoupled_weight_decay: bool = False,
    ) -> None: ...

class RAdam(Optimizer):
    """Adam that is momentum until its mean square can be relied on."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
    ) -> None: ...

class Adamax(Optimizer):
    """Adam with the largest gradient, decaying, in place of the root mean square."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.002,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
    ) -> None: ...

class SparseAdam(Optimizer):
    """Adam for sparse gradients: elements without one rest, and so do their averages."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
    ) -> None: ...

class RMSprop(Optimizer):
    """The gradient over the root of its mean square, with optional momentum and L2 weight decay."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None: ...

class SGD(Optimizer):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum and L2 weight decay."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None: ...

class ASGD(Optimizer):
    """SGD with a decaying step, and in ``ax`` the average of its weights."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.01,
        lambd: float = 0.0001,
        alpha: float = 0.75,
        t0: float = 1000000.0,
        weight_decay: float = 0.0,
    ) -> None: ...

class MADGRAD(Optimizer):
    """Momentumized dual averaging with cube roots."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 1e-06,
    ) -> None: ...

class AdamC(Optimizer):
    """AdamW with the weight decay corrected for the schedule, lr**2 / max_lr."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        max_lr: float = 0.0,
    ) -> None: ...

class AdaBelief(Optimizer):
    """Divides by how far gradients are from their mean."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None: ...

class Yogi(Optimizer):
    """Adam whose mean square moves by a bounded amount."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.01,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 0.001,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 1e-06,
    ) -> None: ...

class LaProp(Optimizer):
    """Momentum of normalised gradients, where Adam normalises the momentum."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.0004,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None: ...

class ADOPT(Optimizer):
    """Adam that converges with any beta2."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.9999),
        eps: float = 1e-06,
        weight_decay: float = 0.0,
    ) -> None: ...

class AdEMAMix(Optimizer):
    """Adam with a second, much slower mean of gradients."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        alpha: float = 5.0,
        warmup: float = 0.0,
    ) -> None: ...

class Adan(Optimizer):
    """Adam with a mean of the gradients' differences."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.98, 0.92, 0.99),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
    ) -> None: ...

class StableAdamW(Optimizer):
    """AdamW with the step of each tensor divided by how wrong its mean square is."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.99),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
    ) -> None: ...

class AdamAtan2(Optimizer):
    """AdamW with an arctangent in place of the division, which needs no eps."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        a: float = 1.27,
        b: float = 1.0,
    ) -> None: ...

class MARS(Optimizer):
    """AdamW on gradients with less variance."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.003,
        betas: collections.abc.Sequence[float] = (0.95, 0.99),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        gamma: float = 0.025,
        amsgrad: bool = False,
    ) -> None: ...

class Grams(Optimizer):
    """Adam's step sizes with the gradient's own signs."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.0,
    ) -> None: ...

class LARS(Optimizer):
    """SGD with each tensor's step in proportion to its norm."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        nesterov: bool = False,
    ) -> None: ...

class LAMB(Optimizer):
    """AdamW with each tensor's step in proportion to its norm."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.0,
    ) -> None: ...

class NovoGrad(Optimizer):
    """Momentum of gradients over the root of the mean square of their norm."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.01,
        betas: collections.abc.Sequence[float] = (0.95, 0.98),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
    ) -> None: ...

class Prodigy(Optimizer):
    """Adam times an estimate of the distance to the solution."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 1.0,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        d0: float = 1e-06,
        d_coef: float = 1.0,
        growth_rate: float = ...,
        bias_correction: bool = False,
    ) -> None: ...

class DAdaptAdam(Optimizer):
    """Adam with the learning rate of D-Adaptation."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 1.0,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        d0: float = 1e-06,
        growth_rate: float = ...,
        bias_correction: bool = False,
    ) -> None: ...

class DoG(Optimizer):
    """Distance over gradients: the learning rate is how far the weights have come over the root of the sum of squared
    gradients."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 1.0,
        reps_rel: float = 1e-06,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
    ) -> None: ...

class ScheduleFreeSGD(Optimizer):
    """SGD that needs no schedule."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None: ...

class ScheduleFreeAdamW(Optimizer):
    """AdamW that needs no schedule."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.0025,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        warmup_steps: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None: ...

class ScheduleFreeRAdam(Optimizer):
    """RAdam that needs neither a schedule nor a warm-up."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.0025,
        betas: collections.abc.Sequence[float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        silent_sgd_phase: bool = True,
    ) -> None: ...

class Signum(Optimizer):
    """The sign of the gradients' mean."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None: ...

class Lion(Optimizer):
    """The sign of a mean that the gradient enters more strongly than the one it keeps."""
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float = 0.0001,
        betas: collections.abc.Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None: ...
