"""What a rule writes instead of what a formula cannot have, by the name of the method or function."""

from __future__ import annotations

from steprule.names import HOME

SUMS = "mean(x), total(x) or norm(x), over the whole tensor, or row_mean(x), col_mean(x) for each row or column of a matrix"
_ALIKE = "a plain number, which broadcasts, or x * 0"
_SAME = "x itself: values are never changed in place, and all are of one dtype on one device"
_OWN = "write a subclass of torch.optim.Optimizer"
SHAPES = f"size(x), rows(x) or cols(x) for how many there are, or transpose(x) of a matrix; for other shapes {_OWN}"
PRODUCTS = (
    "matmul(a, b), gram(x), transpose(x), decorrelate(x), polar(x), eigenbasis(x) or inverse_root(x, root) of whole matrices; "
    f"for others {_OWN}"
)
_NO_RANDOM = "a formula without it: rules have no random numbers"
ROUNDING = "a formula without it: only hyperparameters and the step can be rounded, by floor(x)"
_WHOLE = "a formula without it: of a whole tensor there are mean(x), total(x), norm(x) and size(x)"
_FINITE = "abs(x) < math.inf for finite, x != x for NaN; or give the optimizer nonfinite='zero' or 'skip'"
_ARITHMETIC = "+, -, *, / and **, with plain Python numbers"
TRUTH = "(a > 0) & (b > 0), with | for or and ~ for not"
_OF_STEP = "a hyperparameter whose default is a function of the step, as in turn=lambda step: math.cos(0.01 * step)"
_SAVED = "a state: an argument of update after grad, whose new value is returned"

_GROUPS = {
    "sum mean norm average nanmean nansum var std vector_norm dist": SUMS,
    "zeros zeros_like ones ones_like full full_like empty empty_like new_zeros new_ones new_full tensor as_tensor": _ALIKE,
    "clone detach copy data item tolist numpy cpu cuda to type float double half bfloat16 int long bool astype contiguous "
    "requires_grad dtype device is_cuda": _SAME,
    "shape size numel ndim dim len ndimension reshape view view_as flatten ravel squeeze unsqueeze expand expand_as T mT H "
    "t transpose permute swapaxes broadcast_to repeat tile stride is_sparse layout chunk split cat stack concatenate": SHAPES,
    "matmul mm bmm mv dot vdot inner outer ger einsum tensordot addmm linalg svd qr inv inverse eigh": PRODUCTS,
    "rand randn randint rand_like randn_like randint_like random normal uniform bernoulli "
    "dropout multinomial randperm": _NO_RANDOM,
    "round rint ceil trunc fix floor frac remainder fmod mod modf divmod floor_divide": ROUNDING,
    "any all argmax argmin sort argsort topk kthvalue quantile median mode cumsum cumprod prod unique nonzero amax amin "
    "count_nonzero histc": _WHOLE,
    "isnan isinf isfinite nan_to_num": _FINITE,
    "add sub subtract mul multiply div divide true_divide neg negative pow power rsub": _ARITHMETIC,
    "logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not": TRUTH,
    "grad is_leaf backward register_hook state": _SAVED,
}
FUNCTIONS = {
    "clamp": "clip(x, low, high)",
    "clamp_min": "maximum(x, low)",
    "clamp_max": "minimum(x, high)",
    "max": "maximum(a, b), or row_largest(col_largest(x)) for the largest absolute value of a tensor",
    "min": "minimum(a, b); the smallest element of a tensor is not available",
    "square": "x * x",
    "rsqrt": "1 / sqrt(x)",
    "reciprocal": "1 / x",
    "lerp": "ema(avg, value, beta), or a + weight * (b - a)",
    "addcmul": "x + value * a * b",
    "addcdiv": "x + value * a / b",
    "sigmoid": "1 / (1 + exp(-x))",
    "tanh": "1 - 2 / (1 + exp(2 * x))",
    "relu": "maximum(x, 0.0)",
    "atan": "atan2(x, 1.0)",
    "arctan": "atan2(x, 1.0)",
    "arctan2": "atan2(y, x)",
    "heaviside": "where(x > 0, 1.0, 0.0)",
    "absolute": "abs(x)",
    "sgn": "sign(x)",
    "masked_fill": "where(condition, value, x)",
    **dict.fromkeys(("cos", "sin", "tan"), _OF_STEP),
}
"""Functions of elements and what to write in their place."""
INSTEAD = {**{name: words for names, words in _GROUPS.items() for name in names.split()}, **FUNCTIONS}
"""What to write instead, by the name of what a formula cannot have."""
_KNOWN = sorted(("abs", *HOME["pieces"]))


def with_pieces(words: str) -> str:
    """These words, and where the functions in them are."""
    return f"{words} (steprule.pieces has the functions)"


def instead_of(name: str) -> str:
    """What to write, as the end of a sentence that begins with "Write"."""
    name = name.removeprefix("linalg_")
    in_place = (
        ", and give the result a name, as in avg = avg * 0.9: nothing changes in place" if name.endswith("_") else ""
    )
    for known in (name, name.rstrip("_")):
        if known in INSTEAD:
            words = INSTEAD[known]
            return (words if words is _OF_STEP else with_pieces(words)) + in_place
        if known in _KNOWN:
            return f"{known}(...), the function of that name from steprule.pieces{in_place}"
    return f"a formula with + - * / ** and the functions of steprule.pieces: {', '.join(_KNOWN)}"
