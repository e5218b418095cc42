# Written by tools/write_stubs.py: make stubs
import collections.abc
import numpy
import typing

from steprule.arrays.front import Optimizer as Optimizer

__all__ = [
    "ADOPT",
    "ASGD",
    "ASGO",
    "AdEMAMix",
    "AdaBelief",
    "AdaMuon",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamC",
    "AdamMini",
    "AdamW",
    "Adamax",
    "Adan",
    "CAME",
    "DAdaptAdam",
    "Dion2",
    "DoG",
    "Grams",
    "KLSOAP",
    "KLShampoo",
    "LAMB",
    "LARS",
    "LaProp",
    "Lion",
    "MADGRAD",
    "MARS",
    "MUD",
    "Mano",
    "Muon",
    "MuonEq",
    "NAdam",
    "NorMuon",
    "NovoGrad",
    "Optimizer",
    "PSGDKron",
    "PolarGrad",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "SM3",
    "SOAP",
    "SPlus",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Scion",
    "Shampoo",
    "Signum",
    "SparseAdam",
    "StableAdamW",
    "Yogi",
]

class Adagrad(Optimizer):
    """The gradient over the root of the sum of its squares. Duchi et al. 2011,
    section 1; lr_decay as in torch.optim.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.01.
        lr_decay: decay of the learning rate: step t has lr / (1 + (t - 1) *
            lr_decay). At least 0. Default: 0.0.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        initial_accumulator_value: first value of the sum of squares. At
            least 0. Default: 0.0.
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-10.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        sum: shape and dtype of the array; initial_accumulator_value at
            first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Adagrad([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        lr_decay: float | collections.abc.Callable[[int], float] = 0.0,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        initial_accumulator_value: float | collections.abc.Callable[[int], float] = 0.0,
        eps: float | collections.abc.Callable[[int], float] = 1e-10,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Adadelta(Optimizer):
    """The gradient times the RMS of past updates over the RMS of past
    gradients. Zeiler 2012, arXiv:1212.5701, algorithm 1.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: factor of the update, which is 1 in the paper. At least 0.
            Default: 1.0.
        rho: decay rate of the EMAs of squared gradients and of squared
            updates. In [0, 1]. Default: 0.9.
        eps: added to both EMAs under their roots; it also sets the size of
            the first updates. At least 0. Default: 1e-06.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        square_avg, acc_delta: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Adadelta([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 1.0,
        rho: float | collections.abc.Callable[[int], float] = 0.9,
        eps: float | collections.abc.Callable[[int], float] = 1e-06,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Rprop(Optimizer):
    """Step sizes that grow while the gradient's sign lasts and shrink when it
    turns. Riedmiller & Braun 1993.

    A gradient that has turned counts as 0, once. NaN counts as 0 too, as in
    torch.optim.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: size of the first step of each element. At least 0. Default:
            0.01.
        etas: factors of the step size after the sign has turned and after
            it has lasted, 0 < etas[0] < 1 < etas[1]. Default: (0.5, 1.2).
        step_sizes: smallest and largest step size. Each at least 0.
            Default: (1e-06, 50.0).
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        prev: shape and dtype of the array; 0 at first.
        step_size: shape and dtype of the array; lr at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Rprop([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        etas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.5, 1.2),
        step_sizes: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (1e-06, 50.0),
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class AdamW(Optimizer):
    """Adam with decoupled weight decay. Loshchilov & Hutter 2019,
    arXiv:1711.05101, algorithm 2.

    AMSGrad is from Reddi et al. 2018, arXiv:1904.09237; the maximum is
    taken before bias correction, as in torch.optim.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.01.
        amsgrad: divide by the largest second moment so far (AMSGrad).
            Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.
        max_exp_avg_sq: shape and dtype of the array; 0 at first; only with
            amsgrad.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.AdamW([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.01,
        amsgrad: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Adam(Optimizer):
    """Adaptive moment estimation, with L2 weight decay. Kingma & Ba 2015,
    arXiv:1412.6980, algorithm 1.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        amsgrad: divide by the largest second moment so far (AMSGrad).
            Default: False.
        decoupled_weight_decay: decouple weight decay from the gradient, as
            AdamW does. Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.
        max_exp_avg_sq: shape and dtype of the array; 0 at first; only with
            amsgrad.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Adam([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        amsgrad: bool | collections.abc.Callable[[int], bool] = False,
        decoupled_weight_decay: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class NAdam(Optimizer):
    """Adam with Nesterov's momentum. Dozat 2016, "Incorporating Nesterov
    Momentum into Adam", algorithm 2.

    The momentum is warmed up as in the paper. Weight decay is L2, or
    decoupled as in AdamW.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.002.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        momentum_decay: how fast the momentum warms up, psi in the paper. At
            least 0. Default: 0.004.
        decoupled_weight_decay: decouple weight decay from the gradient, as
            AdamW does. Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        mu_product: a float64 array of shape (); 1 at first.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.NAdam([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.002,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        momentum_decay: float | collections.abc.Callable[[int], float] = 0.004,
        decoupled_weight_decay: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class RAdam(Optimizer):
    """Adam that is momentum until its second moment can be relied on. Liu et
    al. 2020, arXiv:1908.03265, algorithm 2.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        decoupled_weight_decay: decouple weight decay from the gradient, as
            AdamW does. Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.RAdam([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decoupled_weight_decay: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Adamax(Optimizer):
    """Adam with a decaying maximum of gradients in place of the root of the
    second moment. Kingma & Ba 2015, algorithm 2.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.002.
        betas: decay rates of the EMA of the gradient and of its running
            maximum. Each in [0, 1). Default: (0.9, 0.999).
        eps: added to the absolute gradient before the maximum is taken. At
            least 0. Default: 1e-08.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_inf: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Adamax([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.002,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class SparseAdam(Optimizer):
    """Adam for sparse gradients: elements without one stay as they are, and so
    do their moments. Kingma & Ba 2015, section 2.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the root of the second moment before it is debiased;
            the constructor refuses 0. At least 0. Default: 1e-08.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.SparseAdam([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Adafactor(Optimizer):
    """Second moments of rows and columns, and steps in proportion to the
    weights. Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4.

    lr is the largest relative step; a step is at most 1 / sqrt(step) of the
    weights' RMS. There is no first moment. As in torch.optim, the last two
    dimensions are a matrix, and eps[0] is None for the epsilon of the
    parameter's dtype. A vector, and a matrix of one row, has a second
    moment for each element.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.01.
        beta2_decay: power of the step at which the second moment forgets.
            In (-inf, 0]. Default: -0.8.
        eps: least root of the second moment, and least RMS of the weights.
            Each at least 0. Default: (None, 0.001).
        d: largest RMS of an update, which is scaled down to it. At least 1.
            Default: 1.0.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        row_var: a float64 array of shape (rows, 1); 0 at first.
        col_var: a float64 array of shape (1, columns); 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Adafactor([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        beta2_decay: float | collections.abc.Callable[[int], float] = -0.8,
        eps: collections.abc.Sequence[float | None] | collections.abc.Callable[[int], collections.abc.Sequence[float | None]] = (None, 0.001),
        d: float | collections.abc.Callable[[int], float] = 1.0,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Muon(Optimizer):
    """Momentum, orthogonalized by Newton-Schulz. Jordan 2024,
    kellerjordan.github.io/posts/muon.

    The learning rate is multiplied by a factor of the matrix's shape,
    adjust_lr_fn; weight decay is not.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.1.
        momentum: decay rate of the EMA of gradients. At least 0. Default:
            0.95.
        nesterov: use Nesterov's momentum. Default: True.
        ns_coefficients: coefficients a, b and c of the Newton-Schulz
            polynomial, or a tuple with such three for each step, or
            'keller', 'you', 'polar_express', 'polar_express_dao',
            'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'.
            Default: (3.4445, -4.775, 2.0315).
        eps: least norm that an update is divided by. At least 0. Default:
            1e-07.
        ns_steps: steps of Newton-Schulz. A whole number in [1, 99].
            Default: 5.
        adjust_lr_fn: factor of the shape, by which lr is multiplied:
            'original', 'spectral', 'spectral_unclamped', 'match_rms_adamw',
            'unit_rms', 'none'. Default: None.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Muon([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.1,
        momentum: float | collections.abc.Callable[[int], float] = 0.95,
        nesterov: bool | collections.abc.Callable[[int], bool] = True,
        ns_coefficients: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] | collections.abc.Sequence[collections.abc.Sequence[float]] | typing.Literal['keller', 'you', 'polar_express', 'polar_express_dao', 'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'] = (3.4445, -4.775, 2.0315),
        eps: float | collections.abc.Callable[[int], float] = 1e-07,
        ns_steps: float | collections.abc.Callable[[int], float] = 5,
        adjust_lr_fn: typing.Literal['original', 'spectral', 'spectral_unclamped', 'match_rms_adamw', 'unit_rms', 'none'] | None = None,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class RMSprop(Optimizer):
    """The gradient over the root of its second moment, with optional momentum
    and L2 weight decay.

    Tieleman & Hinton 2012, lecture 6e; centered: Graves 2013,
    arXiv:1308.0850, equations 38-41.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.01.
        alpha: decay rate of the EMA of squared gradients. At least 0.
            Default: 0.99.
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        momentum: share of the momentum buffer that a step keeps; 0 keeps no
            buffer. At least 0. Default: 0.0.
        centered: divide by the standard deviation instead of the root of
            the second moment. Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        square_avg: shape and dtype of the array; 0 at first.
        momentum_buffer: shape and dtype of the array; 0 at first; only with
            momentum.
        grad_avg: shape and dtype of the array; 0 at first; only with
            centered.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.RMSprop([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        alpha: float | collections.abc.Callable[[int], float] = 0.99,
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        momentum: float | collections.abc.Callable[[int], float] = 0.0,
        centered: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class SGD(Optimizer):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum and L2
    weight decay.

    Polyak 1964 (momentum); Sutskever et al. 2013, section 2 (Nesterov), in
    torch.optim's form: the buffer holds gradients, lr multiplies what is
    subtracted, and the first gradient enters undampened.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        momentum: share of the momentum buffer that a step keeps; 0 keeps no
            buffer. At least 0. Default: 0.0.
        dampening: share of each gradient, after the first, that is kept out
            of the momentum buffer. Default: 0.0.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        nesterov: use Nesterov's momentum; needs momentum > 0 and dampening
            = 0. Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first; only with
            momentum.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.SGD([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        momentum: float | collections.abc.Callable[[int], float] = 0.0,
        dampening: float | collections.abc.Callable[[int], float] = 0.0,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        nesterov: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class ASGD(Optimizer):
    """SGD with a decaying step size, and in ``ax`` the average of its weights.
    Polyak & Juditsky 1992; Bottou 2010, section 4.

    eta, the step size, is lr / (1 + lambd * lr * step)**alpha of the
    previous step, as in torch.optim; averaging begins after t0 steps.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.01.
        lambd: decay of the weights, times the step size eta; it also makes
            eta decay. At least 0. Default: 0.0001.
        alpha: power by which eta decays: lr / (1 + lambd * lr *
            step)**alpha. At least 0. Default: 0.75.
        t0: number of steps after which averaging begins. At least 0.
            Default: 1000000.0.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        eta: a float64 array of shape (); lr at first.
        mu: a float64 array of shape (); 1 at first.
        ax: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.ASGD([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        lambd: float | collections.abc.Callable[[int], float] = 0.0001,
        alpha: float | collections.abc.Callable[[int], float] = 0.75,
        t0: float | collections.abc.Callable[[int], float] = 1000000.0,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class MADGRAD(Optimizer):
    """Momentumized dual averaging with cube roots. Defazio & Jelassi 2022,
    arXiv:2101.11075, algorithm 1.

    eps and momentum are those of the authors' code.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.01.
        momentum: share of the old weights in the new ones, 1 - c in the
            paper. In [0, 1). Default: 0.9.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        eps: added to the cube root, and to lr. At least 0. Default: 1e-06.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        grad_sum_sq, grad_sum: shape and dtype of the array; 0 at first.
        initial_param: shape and dtype of the array; the parameter at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.MADGRAD([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        momentum: float | collections.abc.Callable[[int], float] = 0.9,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        eps: float | collections.abc.Callable[[int], float] = 1e-06,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class AdamC(Optimizer):
    """AdamW with the weight decay corrected for the schedule, lr**2 / max_lr.
    Defazio 2025, arXiv:2506.02285, algorithm 1.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient, times lr**2
            / max_lr. At least 0. Default: 0.01.
        amsgrad: divide by the largest second moment so far (AMSGrad).
            Default: False.
        max_lr: largest learning rate of the schedule; the largest lr so far
            where that is larger. At least 0. Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        lr_max: a float64 array of shape (); 0 at first.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.
        max_exp_avg_sq: shape and dtype of the array; 0 at first; only with
            amsgrad.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.AdamC([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.01,
        amsgrad: bool | collections.abc.Callable[[int], bool] = False,
        max_lr: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class AdaBelief(Optimizer):
    """Divides by how far gradients are from their EMA. Zhuang et al. 2020,
    arXiv:2010.07468, algorithm 2.

    The authors' code rectifies as RAdam does by default; the paper does
    not, nor does this.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its squared
            distance from that EMA. Each in [0, 1). Default: (0.9, 0.999).
        eps: added to the EMA of squared distances in every step, and to its
            root. At least 0. Default: 1e-16.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        amsgrad: divide by the largest second moment so far (AMSGrad).
            Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_var: shape and dtype of the array; 0 at first.
        max_exp_avg_var: shape and dtype of the array; 0 at first; only with
            amsgrad.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.AdaBelief([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-16,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        amsgrad: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Yogi(Optimizer):
    """Adam whose second moment moves by a bounded amount. Zaheer et al. 2018,
    "Adaptive Methods for Nonconvex Optimization", algorithm 2.

    Both moments are debiased as in optax.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.01.
        betas: decay rate of the EMA of the gradient, and one minus the rate
            at which the second moment moves. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 0.001.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        initial_accumulator_value: first value of both moments. At least 0.
            Default: 1e-06.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array;
            initial_accumulator_value at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Yogi([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 0.001,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        initial_accumulator_value: float | collections.abc.Callable[[int], float] = 1e-06,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class LaProp(Optimizer):
    """Momentum of normalized gradients, where Adam normalizes the momentum.
    Ziyin et al. 2020, arXiv:2002.04839, algorithm 1.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.0004.
        betas: decay rates of the EMAs of the normalized gradient and of the
            squared gradient. Each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-15.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        amsgrad: divide by the largest second moment so far (AMSGrad).
            Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.
        max_exp_avg_sq: shape and dtype of the array; 0 at first; only with
            amsgrad.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.LaProp([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.0004,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-15,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        amsgrad: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class ADOPT(Optimizer):
    """Adam that converges with any beta2. Taniguchi et al. 2024,
    arXiv:2411.02853, algorithm 2, with clipping.

    Gradients are divided by the root of the second moment of those before
    them and clipped to (step - 1)**(1/4); the first only begins the second
    moment.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the normalized gradient and of the
            squared gradient. Each in [0, 1). Default: (0.9, 0.9999).
        eps: smallest denominator. At least 0. Default: 1e-06.
        weight_decay: weight decay, decoupled from the gradient; none in the
            first step. At least 0. Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.ADOPT([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.9999),
        eps: float | collections.abc.Callable[[int], float] = 1e-06,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class AdEMAMix(Optimizer):
    """Adam with another, much slower EMA of gradients. Pagliardini et al.
    2024, arXiv:2409.03137, algorithm 1.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the fast EMA of the gradient, of the EMA of
            its square, and of the slow EMA. Each in [0, 1). Default: (0.9,
            0.999, 0.9999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        alpha: factor of the slow EMA. At least 0. Default: 5.0.
        warmup: number of steps over which alpha and the slow decay rate
            grow to their values, T in the paper; 0 for none. At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_slow, exp_avg_sq: shape and dtype of the array; 0
            at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.AdEMAMix([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999, 0.9999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        alpha: float | collections.abc.Callable[[int], float] = 5.0,
        warmup: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Adan(Optimizer):
    """Adam with an EMA of the gradients' differences. Xie et al. 2022,
    arXiv:2208.06677, algorithm 1.

    betas and weight decay are those of the authors' code.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient, of its differences
            and of the square, one minus the paper's. Each in [0, 1).
            Default: (0.98, 0.92, 0.99).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay: new weights are divided by 1 + lr *
            weight_decay. At least 0. Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_diff, exp_avg_sq, previous_grad: shape and dtype of
            the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Adan([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.98, 0.92, 0.99),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class StableAdamW(Optimizer):
    """AdamW with the update of each tensor divided by how wrong its second
    moment is. Wortsman et al. 2023, arXiv:2304.13013, algorithm 2.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.99).
        eps: added to the denominator; its square is the smallest second
            moment that the update's size is judged by. At least 0. Default:
            1e-06.
        weight_decay: weight decay, decoupled from the gradient but scaled
            with the update. At least 0. Default: 0.01.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.StableAdamW([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.99),
        eps: float | collections.abc.Callable[[int], float] = 1e-06,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.01,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class AdamAtan2(Optimizer):
    """AdamW with an arctangent in place of the division, which needs no eps.
    Everett et al. 2024, arXiv:2407.05872, section 4.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        a: factor of the arctangent. At least 0. Default: 1.27.
        b: factor of the root of the second moment inside the arctangent. At
            least 0. Default: 1.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.AdamAtan2([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        a: float | collections.abc.Callable[[int], float] = 1.27,
        b: float | collections.abc.Callable[[int], float] = 1.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class MARS(Optimizer):
    """AdamW on gradients with less variance. Yuan et al. 2024,
    arXiv:2411.10438, algorithm 2 (MARS-AdamW).

    The approximate form, with the previous step's gradient in place of the
    previous weights' gradient on this batch. The corrected gradient of each
    tensor is scaled to a norm of 1 where it is longer.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.003.
        betas: decay rates of the EMAs of the corrected gradient and of its
            square. Each in [0, 1). Default: (0.95, 0.99).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        gamma: strength of the variance reduction. At least 0. Default:
            0.025.
        amsgrad: divide by the largest second moment so far (AMSGrad).
            Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq, previous_grad: shape and dtype of the array; 0
            at first.
        max_exp_avg_sq: shape and dtype of the array; 0 at first; only with
            amsgrad.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.MARS([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.003,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.95, 0.99),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        gamma: float | collections.abc.Callable[[int], float] = 0.025,
        amsgrad: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Grams(Optimizer):
    """Adam's update sizes with the gradient's own signs. Cao et al. 2024,
    arXiv:2412.17107, algorithm 1.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-06.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Grams([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-06,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class CAME(Optimizer):
    """Adafactor with momentum, divided by how far updates are from it. Luo et
    al. 2023, arXiv:2307.02047, algorithm 2.

    The first steps are long: nothing makes up for second moments that begin
    at 0. Warm lr up. The last two dimensions are a matrix. Vectors, and
    matrices of one row, are not divided by how far updates are from the
    momentum.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.0002.
        betas: decay rates of momentum, second moment and distances. Each in
            [0, 1). Default: (0.9, 0.999, 0.9999).
        eps: added to squares of gradients, and of distances. Each at least
            0. Default: (1e-30, 1e-16).
        clip_threshold: largest RMS of an update, which is scaled down to
            it. Above 0. Default: 1.0.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg: shape and dtype of the array; 0 at first.
        exp_avg_sq_row, exp_avg_res_row: a float64 array of shape (rows, 1);
            0 at first.
        exp_avg_sq_col, exp_avg_res_col: a float64 array of shape (1,
            columns); 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.CAME([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.0002,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999, 0.9999),
        eps: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (1e-30, 1e-16),
        clip_threshold: float | collections.abc.Callable[[int], float] = 1.0,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class AdamMini(Optimizer):
    """AdamW with one second moment for each row, that is for each neuron.
    Zhang et al. 2024, arXiv:2406.16793, algorithm 1.

    A vector has one for all. The paper's queries and keys have one for each
    head, which rows are parts of; with block="tensor" a tensor has one for
    all, as the paper's values may.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.1.
        block: what shares a second moment: 'row', 'tensor'. Default: 'row'.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg: shape and dtype of the array; 0 at first.
        row_sq: a float64 array of shape (rows, 1); 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.AdamMini([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.1,
        block: typing.Literal['row', 'tensor'] = 'row',
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class SM3(Optimizer):
    """Adagrad with one sum of squares for each row and each column. Anil et
    al. 2019, arXiv:1901.11150, algorithm SM3-II.

    The sum for an element is the smaller of its row's and its column's. A
    vector has one for each element.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.1.
        momentum: decay rate of the EMA of updates. In [0, 1). Default: 0.9.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.
        row_max: a float64 array of shape (rows, 1); 0 at first.
        col_max: a float64 array of shape (1, columns); 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.SM3([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.1,
        momentum: float | collections.abc.Callable[[int], float] = 0.9,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class SOAP(Optimizer):
    """Adam in the eigenbases of Shampoo's matrices. Vyas et al. 2024,
    arXiv:2409.11321, algorithm 3.

    exp_avg and exp_avg_sq are in the bases. Other than in the paper and its
    code the first step moves weights, as Adam's; bases are exact, and not
    one step of a power iteration; and the second moments are carried into
    new bases as the diagonal of a covariance is, without which the update
    is too long for many steps. Directions without a gradient get no update.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.003.
        betas: decay rates of the EMAs. Each in [0, 1). Default: (0.95,
            0.95).
        shampoo_beta: decay rate of the EMAs of a side's Gram matrix. In [0,
            1). Default: 0.95.
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.01.
        precondition_frequency: in one of how many steps a parameter's bases
            or roots are computed. At least 1. Default: 10.
        max_precond_dim: longest side that has a matrix; a longer one has
            the identity. At least 1. Default: 10000.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.
        left, left_basis: a float64 array of shape (rows, rows); 0 at first.
        right, right_basis: a float64 array of shape (columns, columns); 0
            at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.SOAP([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.003,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.95, 0.95),
        shampoo_beta: float | collections.abc.Callable[[int], float] = 0.95,
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.01,
        precondition_frequency: float | collections.abc.Callable[[int], float] = 10,
        max_precond_dim: float | collections.abc.Callable[[int], float] = 10000,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Shampoo(Optimizer):
    """Momentum between inverse roots of both sides' Gram matrices, as long as
    Adam's step. Gupta et al. 2018, arXiv:1802.09568.

    The length is grafted from Adam, as in Shi et al. 2023,
    arXiv:2309.06497, so that lr and betas are Adam's. Roots are of averages
    that are corrected for their start, of the first step on. What has no
    gradient gets no update.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs. Each in [0, 1). Default: (0.9,
            0.999).
        shampoo_beta: decay rate of the EMAs of a side's Gram matrix. In [0,
            1). Default: 0.95.
        root: p of the inverse root, the power of -1 / p. At least 1.
            Default: 4.0.
        eps: added to eigenvalues. At least 0. Default: 1e-12.
        graft_eps: eps of the Adam whose length a step has. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.01.
        precondition_frequency: in one of how many steps a parameter's bases
            or roots are computed. At least 1. Default: 10.
        max_precond_dim: longest side that has a matrix; a longer one has
            the identity. At least 1. Default: 10000.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.
        left, left_root: a float64 array of shape (rows, rows); 0 at first.
        right, right_root: a float64 array of shape (columns, columns); 0 at
            first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Shampoo([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        shampoo_beta: float | collections.abc.Callable[[int], float] = 0.95,
        root: float | collections.abc.Callable[[int], float] = 4.0,
        eps: float | collections.abc.Callable[[int], float] = 1e-12,
        graft_eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.01,
        precondition_frequency: float | collections.abc.Callable[[int], float] = 10,
        max_precond_dim: float | collections.abc.Callable[[int], float] = 10000,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class ASGO(Optimizer):
    """Momentum times the inverse root of the shorter side's Gram matrix. An et
    al. 2025, arXiv:2503.20762: one-sided Shampoo.

    An update's RMS is 0.2, as in the authors' code.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs. Each in [0, 1). Default: (0.9, 0.8).
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.1.
        precondition_frequency: in one of how many steps a parameter's bases
            or roots are computed. At least 1. Default: 1.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg: shape and dtype of the array; 0 at first.
        left, left_root: a float64 array of shape (rows, rows); 0 at first.
        right, right_root: a float64 array of shape (columns, columns); 0 at
            first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.ASGO([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.8),
        weight_decay: float | collections.abc.Callable[[int], float] = 0.1,
        precondition_frequency: float | collections.abc.Callable[[int], float] = 1,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class KLShampoo(Optimizer):
    """Shampoo whose sides whiten each other's gradients, and need no grafting.
    Lin et al. 2025, arXiv:2509.03378.

    ``L ← β L + (1 - β) G R⁻¹ Gᵀ / n``, likewise R, and the update is
    ``L^(-1/2) M R^(-1/2)``. Both begin at I, and gradients are divided by
    scale, the root mean square of the first that is not 0. Inverses are of
    the last roots. Other than in the authors' code the first step moves
    weights, roots are exact, and their eigenvalues are those of the
    matrices.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs. Each in [0, 1). Default: (0.9,
            0.98).
        eps: added to eigenvalues. At least 0. Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.01.
        precondition_frequency: in one of how many steps a parameter's bases
            or roots are computed. At least 1. Default: 10.
        max_precond_dim: longest side that has a matrix; a longer one has
            the identity. At least 1. Default: 10000.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg: shape and dtype of the array; 0 at first.
        scale: a float64 array of shape (rows, 1); 0 at first.
        left, left_root: a float64 array of shape (rows, rows); 1 at first.
        right, right_root: a float64 array of shape (columns, columns); 1 at
            first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.KLShampoo([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.98),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.01,
        precondition_frequency: float | collections.abc.Callable[[int], float] = 10,
        max_precond_dim: float | collections.abc.Callable[[int], float] = 10000,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class KLSOAP(Optimizer):
    """SOAP whose sides whiten each other's gradients, as KL-Shampoo's do: its
    second form. Lin et al. 2025, arXiv:2509.03378.

    ``L ← β L + (1 - β) G R⁻¹ Gᵀ / n``, likewise R. Inverses are of the last
    bases, and of eigenvalues that are averages of their own: they begin
    with the second gradient, at the root mean square of the first, and keep
    their places in new bases. Other than in the authors' code none is
    bounded, and L and R are by inverses from the first step on. What is
    said of SOAP holds here too.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.003.
        betas: decay rates of the EMAs. Each in [0, 1). Default: (0.95,
            0.95).
        shampoo_beta: decay rate of the EMAs of a side's Gram matrix. In [0,
            1). Default: 0.95.
        eps: added to the root of the second moment, and to eigenvalues. At
            least 0. Default: 1e-08.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.01.
        precondition_frequency: in one of how many steps a parameter's bases
            or roots are computed. At least 1. Default: 10.
        max_precond_dim: longest side that has a matrix; a longer one has
            the identity. At least 1. Default: 10000.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.
        left, left_basis: a float64 array of shape (rows, rows); 0 at first.
        right, right_basis: a float64 array of shape (columns, columns); 0
            at first.
        left_values: a float64 array of shape (rows, 1); 0 at first.
        right_values: a float64 array of shape (1, columns); 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.KLSOAP([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.003,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.95, 0.95),
        shampoo_beta: float | collections.abc.Callable[[int], float] = 0.95,
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.01,
        precondition_frequency: float | collections.abc.Callable[[int], float] = 10,
        max_precond_dim: float | collections.abc.Callable[[int], float] = 10000,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class SPlus(Optimizer):
    """The sign of the momentum in Shampoo's eigenbases, times 2 / (m + n).
    Frans et al. 2025, arXiv:2506.07254, algorithm 1.

    The paper evaluates an average of the weights: average=0.999. Decay is
    by lr, without the factor of the shape. Directions without a gradient
    get no update.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.1.
        betas: decay rates of the EMAs. Each in [0, 1). Default: (0.9,
            0.999).
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        precondition_frequency: in one of how many steps a parameter's bases
            or roots are computed. At least 1. Default: 100.
        max_precond_dim: longest side that has a matrix; a longer one has
            the identity. At least 1. Default: 10000.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg: shape and dtype of the array; 0 at first.
        left, left_basis: a float64 array of shape (rows, rows); 0 at first.
        right, right_basis: a float64 array of shape (columns, columns); 0
            at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.SPlus([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.1,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        precondition_frequency: float | collections.abc.Callable[[int], float] = 100,
        max_precond_dim: float | collections.abc.Callable[[int], float] = 10000,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class PSGDKron(Optimizer):
    """Momentum between two squares that are fitted to whiten gradients, in
    small steps. Li 2015, arXiv:1512.04202: PSGD.

    ``P = Q Q`` at each side. Of ``X = P G P``, Q goes to where ``X Xᵀ / n``
    is I, in the quadratic form of the author's code, which needs no inverse
    and no triangular factor (QUAD; see also arXiv:2402.11858). Other than
    there nothing is random: of the noise that is added to gradients the
    expectation is left, as ``damping P P``, which keeps eigenvalues of P
    below ``damping^(-1/2)``. A step of the fit is measured by its own
    gradient, and not by an average besides, P begins at I, and updates are
    limited to kron_torch's length.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        momentum: decay rate of the momentum. In [0, 1). Default: 0.9.
        precond_lr: how far a step of the fit goes; above 0.5 it swings. In
            [0, 1]. Default: 0.1.
        damping: inverse square of how large the eigenvalues of P become. At
            least 0. Default: 1e-09.
        clip_threshold: longest root mean square of the update. Above 0.
            Default: 1.1.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        precondition_frequency: in one of how many steps a parameter's bases
            or roots are computed. At least 1. Default: 1.
        max_precond_dim: longest side that has a matrix; a longer one has
            the identity. At least 1. Default: 10000.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg: shape and dtype of the array; 0 at first.
        left: a float64 array of shape (rows, rows); 1 at first.
        right: a float64 array of shape (columns, columns); 1 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.PSGDKron([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        momentum: float | collections.abc.Callable[[int], float] = 0.9,
        precond_lr: float | collections.abc.Callable[[int], float] = 0.1,
        damping: float | collections.abc.Callable[[int], float] = 1e-09,
        clip_threshold: float | collections.abc.Callable[[int], float] = 1.1,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        precondition_frequency: float | collections.abc.Callable[[int], float] = 1,
        max_precond_dim: float | collections.abc.Callable[[int], float] = 10000,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class LARS(Optimizer):
    """SGD with each tensor's update in proportion to its norm. You et al.
    2017, arXiv:1708.03888, algorithm 1.

    The ratio is 1 where a norm is 0. lr multiplies what enters the
    momentum, as in the paper.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate, gamma in the paper. At least 0. Default: 0.1.
        momentum: decay rate of the momentum buffer. In [0, 1). Default:
            0.9.
        weight_decay: weight decay, inside the ratio of norms, beta in the
            paper. At least 0. Default: 0.0.
        trust_coefficient: factor of the ratio of norms, eta in the paper.
            At least 0. Default: 0.001.
        nesterov: use Nesterov's momentum. Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.LARS([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.1,
        momentum: float | collections.abc.Callable[[int], float] = 0.9,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        trust_coefficient: float | collections.abc.Callable[[int], float] = 0.001,
        nesterov: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class LAMB(Optimizer):
    """AdamW with each tensor's update in proportion to its norm. You et al.
    2020, arXiv:1904.00962, algorithm 2.

    phi is the identity; the ratio is 1 where a norm is 0.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-06.
        weight_decay: weight decay, inside the ratio of norms, lambda in the
            paper. At least 0. Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg, exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.LAMB([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-06,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class NovoGrad(Optimizer):
    """Momentum of gradients, each divided by the root of the EMA of their
    squared norm. Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1.

    eps is there in the first step too, where the paper leaves it out and
    divides by a norm that may be 0.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.01.
        betas: share of the momentum that a step keeps, and decay rate of
            the EMA of the squared norm. Each in [0, 1). Default: (0.95,
            0.98).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, added to the normalized gradient. At
            least 0. Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg: shape and dtype of the array; 0 at first.
        exp_avg_sq: a float64 array of shape (); 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.NovoGrad([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.95, 0.98),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class NorMuon(Optimizer):
    """Muon with a second moment for each row, that is for each neuron. Li et
    al. 2025, arXiv:2510.05491, algorithm 1.

    The update is made as long as an exact polar factor times adjust_lr_fn,
    so that by default its RMS is 0.2.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.1.
        momentum: decay rate of the EMA of gradients. In [0, 1). Default:
            0.95.
        beta2: decay rate of the second moment. In [0, 1). Default: 0.95.
        nesterov: use Nesterov's momentum. Default: False.
        ns_coefficients: coefficients a, b and c of the Newton-Schulz
            polynomial, or a tuple with such three for each step, or
            'keller', 'you', 'polar_express', 'polar_express_dao',
            'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'.
            Default: (3.4445, -4.775, 2.0315).
        eps: added to the root of the second moment. At least 0. Default:
            1e-10.
        ns_steps: steps of Newton-Schulz. A whole number in [1, 99].
            Default: 5.
        adjust_lr_fn: factor of the shape, by which lr is multiplied:
            'original', 'spectral', 'spectral_unclamped', 'match_rms_adamw',
            'unit_rms', 'none'. Default: 'match_rms_adamw'.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.
        row_sq: a float64 array of shape (rows, 1); 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.NorMuon([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.1,
        momentum: float | collections.abc.Callable[[int], float] = 0.95,
        beta2: float | collections.abc.Callable[[int], float] = 0.95,
        nesterov: bool | collections.abc.Callable[[int], bool] = False,
        ns_coefficients: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] | collections.abc.Sequence[collections.abc.Sequence[float]] | typing.Literal['keller', 'you', 'polar_express', 'polar_express_dao', 'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'] = (3.4445, -4.775, 2.0315),
        eps: float | collections.abc.Callable[[int], float] = 1e-10,
        ns_steps: float | collections.abc.Callable[[int], float] = 5,
        adjust_lr_fn: typing.Literal['original', 'spectral', 'spectral_unclamped', 'match_rms_adamw', 'unit_rms', 'none'] = 'match_rms_adamw',
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class AdaMuon(Optimizer):
    """Muon of the signs of the momentum, with a second moment for each
    element. Si et al. 2025, arXiv:2507.11005, algorithm 1.

    The update is made as long as an exact polar factor times adjust_lr_fn,
    so that by default its RMS is 0.2. The paper has momentum for beta2.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.1.
        momentum: decay rate of the EMA of gradients. In [0, 1). Default:
            0.95.
        beta2: decay rate of the second moment. In [0, 1). Default: 0.95.
        nesterov: use Nesterov's momentum. Default: False.
        ns_coefficients: coefficients a, b and c of the Newton-Schulz
            polynomial, or a tuple with such three for each step, or
            'keller', 'you', 'polar_express', 'polar_express_dao',
            'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'.
            Default: (3.4445, -4.775, 2.0315).
        eps: added to the root of the second moment, and to the norm of the
            update. At least 0. Default: 1e-08.
        ns_steps: steps of Newton-Schulz. A whole number in [1, 99].
            Default: 5.
        adjust_lr_fn: factor of the shape, by which lr is multiplied:
            'original', 'spectral', 'spectral_unclamped', 'match_rms_adamw',
            'unit_rms', 'none'. Default: 'match_rms_adamw'.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer, exp_avg_sq: shape and dtype of the array; 0 at
            first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.AdaMuon([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.1,
        momentum: float | collections.abc.Callable[[int], float] = 0.95,
        beta2: float | collections.abc.Callable[[int], float] = 0.95,
        nesterov: bool | collections.abc.Callable[[int], bool] = False,
        ns_coefficients: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] | collections.abc.Sequence[collections.abc.Sequence[float]] | typing.Literal['keller', 'you', 'polar_express', 'polar_express_dao', 'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'] = (3.4445, -4.775, 2.0315),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        ns_steps: float | collections.abc.Callable[[int], float] = 5,
        adjust_lr_fn: typing.Literal['original', 'spectral', 'spectral_unclamped', 'match_rms_adamw', 'unit_rms', 'none'] = 'match_rms_adamw',
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class MuonEq(Optimizer):
    """Muon whose momentum has rows, columns or both divided by their norms
    before. Chang et al. 2026, arXiv:2603.28254.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.1.
        momentum: decay rate of the EMA of gradients. In [0, 1). Default:
            0.95.
        nesterov: use Nesterov's momentum. Default: True.
        equilibrate: what is divided by its norm: 'row', 'col', 'rowcol'.
            Default: 'row'.
        eps: added to squares of norms. At least 0. Default: 1e-08.
        ns_coefficients: coefficients a, b and c of the Newton-Schulz
            polynomial, or a tuple with such three for each step, or
            'keller', 'you', 'polar_express', 'polar_express_dao',
            'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'.
            Default: (3.4445, -4.775, 2.0315).
        ns_steps: steps of Newton-Schulz. A whole number in [1, 99].
            Default: 5.
        adjust_lr_fn: factor of the shape, by which lr is multiplied:
            'original', 'spectral', 'spectral_unclamped', 'match_rms_adamw',
            'unit_rms', 'none'. Default: 'match_rms_adamw'.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.MuonEq([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.1,
        momentum: float | collections.abc.Callable[[int], float] = 0.95,
        nesterov: bool | collections.abc.Callable[[int], bool] = True,
        equilibrate: typing.Literal['row', 'col', 'rowcol'] = 'row',
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        ns_coefficients: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] | collections.abc.Sequence[collections.abc.Sequence[float]] | typing.Literal['keller', 'you', 'polar_express', 'polar_express_dao', 'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'] = (3.4445, -4.775, 2.0315),
        ns_steps: float | collections.abc.Callable[[int], float] = 5,
        adjust_lr_fn: typing.Literal['original', 'spectral', 'spectral_unclamped', 'match_rms_adamw', 'unit_rms', 'none'] = 'match_rms_adamw',
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class MUD(Optimizer):
    """Muon with triangular solves in place of Newton-Schulz. Southworth &
    Thomas 2026, arXiv:2603.17970.

    Rows of 0, and rows that are sums of others, get no update.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.1.
        momentum: decay rate of the EMA of gradients. In [0, 1). Default:
            0.95.
        nesterov: use Nesterov's momentum. Default: True.
        passes: triangular solves. A whole number in [1, 99]. Default: 1.
        adjust_lr_fn: factor of the shape, by which lr is multiplied:
            'original', 'spectral', 'spectral_unclamped', 'match_rms_adamw',
            'unit_rms', 'none'. Default: 'match_rms_adamw'.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.MUD([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.1,
        momentum: float | collections.abc.Callable[[int], float] = 0.95,
        nesterov: bool | collections.abc.Callable[[int], bool] = True,
        passes: float | collections.abc.Callable[[int], float] = 1,
        adjust_lr_fn: typing.Literal['original', 'spectral', 'spectral_unclamped', 'match_rms_adamw', 'unit_rms', 'none'] = 'match_rms_adamw',
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class PolarGrad(Optimizer):
    """Muon times the nuclear norm of the momentum, which makes it steepest
    descent. Lau et al. 2025, arXiv:2505.21799, algorithm 1.

    The nuclear norm, the sum of the singular values, is the product of the
    momentum with its polar factor.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.02.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        momentum: decay rate of the EMA of gradients. In [0, 1). Default:
            0.95.
        ns_coefficients: coefficients of the Newton-Schulz polynomial:
            'keller', 'you', 'polar_express', 'polar_express_dao',
            'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'.
            Default: 'polar_express'.
        ns_steps: steps of Newton-Schulz. A whole number in [1, 99].
            Default: 8.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.PolarGrad([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.02,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        momentum: float | collections.abc.Callable[[int], float] = 0.95,
        ns_coefficients: typing.Literal['keller', 'you', 'polar_express', 'polar_express_dao', 'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'] = 'polar_express',
        ns_steps: float | collections.abc.Callable[[int], float] = 8,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Dion2(Optimizer):
    """Muon of the rows, or columns if they are fewer, with the most momentum.
    Ahn et al. 2025, arXiv:2512.16928, algorithm 1.

    Those are a fraction of the shorter side. The momentum of what has been
    stepped is multiplied by ef_decay, and the rest waits. Products of
    matrices are as much smaller.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.01.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.01.
        fraction: share of the rows or columns that are stepped. In (0, 1].
            Default: 0.25.
        ef_decay: what is left of the momentum of what has been stepped. In
            [0, 1]. Default: 0.95.
        ns_coefficients: coefficients a, b and c of the Newton-Schulz
            polynomial, or a tuple with such three for each step, or
            'keller', 'you', 'polar_express', 'polar_express_dao',
            'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'.
            Default: (3.4445, -4.775, 2.0315).
        ns_steps: steps of Newton-Schulz. A whole number in [1, 99].
            Default: 5.
        adjust_lr_fn: factor of the shape, by which lr is multiplied:
            'original', 'spectral', 'spectral_unclamped', 'match_rms_adamw',
            'unit_rms', 'none'. Default: 'spectral'.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Dion2([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.01,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.01,
        fraction: float | collections.abc.Callable[[int], float] = 0.25,
        ef_decay: float | collections.abc.Callable[[int], float] = 0.95,
        ns_coefficients: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] | collections.abc.Sequence[collections.abc.Sequence[float]] | typing.Literal['keller', 'you', 'polar_express', 'polar_express_dao', 'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'] = (3.4445, -4.775, 2.0315),
        ns_steps: float | collections.abc.Callable[[int], float] = 5,
        adjust_lr_fn: typing.Literal['original', 'spectral', 'spectral_unclamped', 'match_rms_adamw', 'unit_rms', 'none'] = 'spectral',
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Mano(Optimizer):
    """Momentum without its part along the weights, normalized. Gu & Xie 2026,
    arXiv:2601.23000, algorithm 1, version 1.

    Columns are looked at in odd steps and rows in even ones. An update's
    RMS is 0.2.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.1.
        momentum: decay rate of the EMA of gradients. In [0, 1). Default:
            0.95.
        nesterov: mix the gradient in once more. Default: False.
        eps: least norm of weights. At least 0. Default: 1e-08.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Mano([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.1,
        momentum: float | collections.abc.Callable[[int], float] = 0.95,
        nesterov: bool | collections.abc.Callable[[int], bool] = False,
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Scion(Optimizer):
    """Steps of the same length in a norm that fits the layer. Pethick et al.
    2025, arXiv:2502.07529, algorithms 1 and 2.

    Each parameter group has its norm: "spectral" for hidden matrices,
    "embedding" for nn.Embedding and "col" for another first layer of one-
    hot inputs, "sign" or "row" for the head, "bias_rms" for vectors.
    constrained=True also keeps weights within radius in that norm; False is
    the unconstrained variant, without any decay. The reference code's
    momentum is 1 - momentum, and its factor for a convolution's weight is
    smaller by the kernel's side.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.000244140625.
        momentum: decay rate of the EMA of gradients. In [0, 1). Default:
            0.9.
        norm: norm of the layer: 'spectral', 'col', 'row', 'embedding',
            'sign', 'bias_rms'. Default: 'spectral'.
        radius: length of the update, and how far weights get where they are
            constrained. At least 0. Default: 50.0.
        constrained: also pull weights to 0 by lr. Default: True.
        eps: added to root mean squares. At least 0. Default: 1e-08.
        ns_coefficients: coefficients a, b and c of the Newton-Schulz
            polynomial, or a tuple with such three for each step, or
            'keller', 'you', 'polar_express', 'polar_express_dao',
            'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'.
            Default: (3.4445, -4.775, 2.0315).
        ns_steps: steps of Newton-Schulz. A whole number in [1, 99].
            Default: 5.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Scion([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.000244140625,
        momentum: float | collections.abc.Callable[[int], float] = 0.9,
        norm: typing.Literal['spectral', 'col', 'row', 'embedding', 'sign', 'bias_rms'] = 'spectral',
        radius: float | collections.abc.Callable[[int], float] = 50.0,
        constrained: bool | collections.abc.Callable[[int], bool] = True,
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        ns_coefficients: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] | collections.abc.Sequence[collections.abc.Sequence[float]] | typing.Literal['keller', 'you', 'polar_express', 'polar_express_dao', 'polar_express_cushioned', 'cans', 'aol', 'deepseek', 'cubic5'] = (3.4445, -4.775, 2.0315),
        ns_steps: float | collections.abc.Callable[[int], float] = 5,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Prodigy(Optimizer):
    """Adam times an estimate of the distance to the solution. Mishchenko &
    Defazio 2023, arXiv:2306.06101, algorithm 4.

    Hyperparameters are those of the authors' code.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: factor of the estimated distance; leave it at 1, or give it a
            schedule. At least 0. Default: 1.0.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator, times d. At least 0. Default: 1e-08.
        weight_decay: weight decay, times the learning rate that was found.
            At least 0. Default: 0.0.
        d0: first estimate of the distance to the solution. Above 0.
            Default: 1e-06.
        d_coef: factor of all later estimates. At least 0. Default: 1.0.
        growth_rate: largest factor by which the estimate grows in a step.
            At least 1. Default: inf.
        bias_correction: multiply lr by Adam's bias correction. Default:
            False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        d, d_max: a float64 array of shape (); d0 at first.
        d_numerator: a float64 array of shape (); 0 at first.
        exp_avg, exp_avg_sq, s: shape and dtype of the array; 0 at first.
        initial_param: shape and dtype of the array; the parameter at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Prodigy([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 1.0,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        d0: float | collections.abc.Callable[[int], float] = 1e-06,
        d_coef: float | collections.abc.Callable[[int], float] = 1.0,
        growth_rate: float | collections.abc.Callable[[int], float] = ...,
        bias_correction: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class DAdaptAdam(Optimizer):
    """Adam with the learning rate of D-Adaptation. Defazio & Mishchenko 2023,
    arXiv:2301.07733, algorithm 5.

    Hyperparameters are those of the authors' code.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: factor of the estimated distance; leave it at 1, or give it a
            schedule. At least 0. Default: 1.0.
        betas: decay rates of the EMAs of the gradient and of its square,
            the first and second moment. Each in [0, 1). Default: (0.9,
            0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, times the learning rate that was found.
            At least 0. Default: 0.0.
        d0: first estimate of the distance to the solution. Above 0.
            Default: 1e-06.
        growth_rate: largest factor by which the estimate grows in a step.
            At least 1. Default: inf.
        bias_correction: multiply lr by Adam's bias correction. Default:
            False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        d: a float64 array of shape (); d0 at first.
        numerator: a float64 array of shape (); 0 at first.
        exp_avg, exp_avg_sq, s: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.DAdaptAdam([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 1.0,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        d0: float | collections.abc.Callable[[int], float] = 1e-06,
        growth_rate: float | collections.abc.Callable[[int], float] = ...,
        bias_correction: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class DoG(Optimizer):
    """Distance over gradients: the learning rate is how far the weights have
    come over the root of the sum of squared gradients. Ivgi et al. 2023,
    arXiv:2302.12022, equation 3.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: factor of all updates; leave it at 1. At least 0. Default: 1.0.
        reps_rel: first distance, relative to 1 + the norm of the first
            weights. At least 0. Default: 1e-06.
        eps: added to the sum of squared gradients under its root. At least
            0. Default: 1e-08.
        weight_decay: weight decay, added to the gradient (L2). At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        distance, grad_sum_sq: a float64 array of shape (); 0 at first.
        initial_param: shape and dtype of the array; the parameter at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.DoG([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 1.0,
        reps_rel: float | collections.abc.Callable[[int], float] = 1e-06,
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class ScheduleFreeSGD(Optimizer):
    """SGD that needs no schedule. Defazio et al. 2024, arXiv:2405.15682,
    equations 3-5.

    The average weighs steps by step**r times the largest lr so far to the
    power weight_lr_power.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 1.0.
        momentum: weight of the average in the point y where gradients are
            taken; the paper's beta. In (0, 1). Default: 0.9.
        weight_decay: weight decay, added to the direction at y. At least 0.
            Default: 0.0.
        warmup_steps: number of steps of a linear warm-up of lr. At least 0.
            Default: 0.0.
        r: power of the step in the weights of the average. Default: 0.0.
        weight_lr_power: power of the largest lr so far in the weights of
            the average. At least 0. Default: 2.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        lr_max, weight_sum: a float64 array of shape (); 0 at first.
        z: shape and dtype of the array; the parameter at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.ScheduleFreeSGD([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 1.0,
        momentum: float | collections.abc.Callable[[int], float] = 0.9,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        warmup_steps: float | collections.abc.Callable[[int], float] = 0.0,
        r: float | collections.abc.Callable[[int], float] = 0.0,
        weight_lr_power: float | collections.abc.Callable[[int], float] = 2.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class ScheduleFreeAdamW(Optimizer):
    """AdamW that needs no schedule. Defazio et al. 2024, arXiv:2405.15682,
    algorithm 1.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.0025.
        betas: weight of the average in the point y where gradients are
            taken, above 0, and decay rate of the EMA of the squared
            gradient. Each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, added to the direction at y. At least 0.
            Default: 0.0.
        warmup_steps: number of steps of a linear warm-up of lr. At least 0.
            Default: 0.0.
        r: power of the step in the weights of the average. Default: 0.0.
        weight_lr_power: power of the largest lr so far in the weights of
            the average. At least 0. Default: 2.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        lr_max, weight_sum: a float64 array of shape (); 0 at first.
        z: shape and dtype of the array; the parameter at first.
        exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.ScheduleFreeAdamW([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.0025,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        warmup_steps: float | collections.abc.Callable[[int], float] = 0.0,
        r: float | collections.abc.Callable[[int], float] = 0.0,
        weight_lr_power: float | collections.abc.Callable[[int], float] = 2.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class ScheduleFreeRAdam(Optimizer):
    """RAdam that needs neither a schedule nor a warm-up. Defazio et al. 2024,
    arXiv:2405.15682, section 4; Liu et al. 2020, arXiv:1908.03265.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.0025.
        betas: weight of the average in the point y where gradients are
            taken, above 0, and decay rate of the EMA of the squared
            gradient. Each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator for numerical stability. At least 0.
            Default: 1e-08.
        weight_decay: weight decay, added to the direction at y. At least 0.
            Default: 0.0.
        r: power of the step in the weights of the average. Default: 0.0.
        weight_lr_power: power of the largest lr so far in the weights of
            the average. At least 0. Default: 2.0.
        silent_sgd_phase: take no step as long as RAdam would take one of
            SGD. Default: True.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        lr_max, weight_sum: a float64 array of shape (); 0 at first.
        z: shape and dtype of the array; the parameter at first.
        exp_avg_sq: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.ScheduleFreeRAdam([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.0025,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.999),
        eps: float | collections.abc.Callable[[int], float] = 1e-08,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        r: float | collections.abc.Callable[[int], float] = 0.0,
        weight_lr_power: float | collections.abc.Callable[[int], float] = 2.0,
        silent_sgd_phase: bool | collections.abc.Callable[[int], bool] = True,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Signum(Optimizer):
    """The sign of the first moment. Bernstein et al. 2018, arXiv:1802.04434,
    algorithm 2; signSGD with momentum 0.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.001.
        momentum: decay rate of the EMA of gradients; 0 is signSGD. In [0,
            1). Default: 0.9.
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        nesterov: mix the gradient in once more before the sign is taken;
            needs momentum > 0. Default: False.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        momentum_buffer: shape and dtype of the array; 0 at first; only with
            momentum.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Signum([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.001,
        momentum: float | collections.abc.Callable[[int], float] = 0.9,
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        nesterov: bool | collections.abc.Callable[[int], bool] = False,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...

class Lion(Optimizer):
    """The sign of a mix of momentum (beta1) and gradient; the momentum itself
    decays by beta2. Chen et al. 2023, arXiv:2302.06675, algorithm 2.

    Args:
        params: NumPy arrays of float16, float32 or float64, which `step`
            changes in place.
        lr: learning rate. At least 0. Default: 0.0001.
        betas: share of the EMA in the mix whose sign is taken, and decay
            rate of the EMA itself. Each in [0, 1). Default: (0.9, 0.99).
        weight_decay: weight decay, decoupled from the gradient. At least 0.
            Default: 0.0.
        decay: what weight_decay means: "coupled", "decoupled",
            "independent", "corrected" or "initial". Default: what the
            formula says.
        cautious: set to 0 the elements of the update that go up the
            gradient. Default: False.
        cautious_decay: decay only weights that the update brings nearer to
            0. Default: False.
        lookahead: steps between two updates of slow weights; 0 for none.
            Default: 0.
        lookahead_alpha: share of the way that slow weights move. Default:
            0.5.

    Raises:
        TypeError: an argument is unknown, or a value is of the wrong kind.
        ValueError: a value is out of range, or does not go with another.
        RuleError: the formula cannot be compiled; the message says what to
            write instead.

    A hyperparameter may be a function of the step, which counts from 1.

    States, in optimizer.state[index of the array]:
        step: the number of steps so far, an int.
        exp_avg: shape and dtype of the array; 0 at first.

    Example:
        >>> import numpy as np
        >>> from steprule import arrays
        >>> weight = np.ones((2, 3), np.float32)
        >>> optimizer = arrays.Lion([weight])
        >>> optimizer.step([2 * weight])
    """
    def __init__(
        self,
        params: collections.abc.Sequence[numpy.ndarray[typing.Any, typing.Any]],
        *,
        lr: float | collections.abc.Callable[[int], float] = 0.0001,
        betas: collections.abc.Sequence[float] | collections.abc.Callable[[int], collections.abc.Sequence[float]] = (0.9, 0.99),
        weight_decay: float | collections.abc.Callable[[int], float] = 0.0,
        decay: typing.Literal['coupled', 'decoupled', 'independent', 'corrected', 'initial'] | None = None,
        cautious: bool = False,
        cautious_decay: bool = False,
        lookahead: int = 0,
        lookahead_alpha: float | collections.abc.Callable[[int], float] = 0.5,
    ) -> None: ...
