"""Polar factors of stacks of matrices, by Newton-Schulz polynomials.

The polar factor of X = U S V^T is U V^T: the same singular vectors, and all singular values 1. A step of the iteration,

    A = X X^T,   B = b A + c A A,   X = a X + B X,

makes a s + b s**3 + c s**5 of each singular value s, without computing any. `steprule.matrix.coefficients` has the numbers.

The Gram form does the same on A: a step makes Z A Z of A, with Z = a I + b A + c A A, and the product Q of all Z is applied to
X in the end. It costs less where X is longer than high. Rounding gives A small negative eigenvalues, though, which grow by a**2 a step;
so X is multiplied, and A computed anew, before that matters: see `segments`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from steprule.matrix import gpu
from steprule.matrix.coefficients import Coefficients, Triple, polynomial, published
from steprule.matrix.how import How, plan_for
from steprule.matrix.products import Product, product, symmetric_product

EPS = 1e-7
"""torch.optim.Muon's."""
_LARGEST = torch.finfo(torch.float32).max
SAFE = 1e-12
"""In a matrix of at least this norm, elements whose squares vanish in float32 do not count."""


@torch.no_grad()
def polar(
    stack: Tensor,
    coefficients: Coefficients = "keller",
    steps: int | None = None,
    *,
    how: How | None = None,
    eps: float = EPS,
) -> Tensor:
    """The approximate polar factor of every matrix of a stack: p(X / max(|X|, eps)), |X| being the Frobenius norm.

    Matrices may be of any rank: singular values that are 0 stay 0, but for rounding, and a matrix of zeros gives zeros. One
    with NaN or inf gives NaN, and touches no other. Nothing waits for the GPU, and all can be captured in a CUDA graph.
    `split` says how much memory that takes.

    Args:
        stack: (k, m, n), of any strides, in float32, float64, bfloat16 or float16.
        coefficients: as `steprule.matrix.coefficients.polynomial` takes them.
        steps: likewise.
        how: the form of the iteration and the dtype of its products. None takes what `plan_for` returns, with float64 for a
            float64 stack and float32 for coefficients that want it.
        eps: norms below it count as it, so that smaller matrices give smaller results. With 0 every matrix is normalized.

    Returns:
        (k, m, n), in the dtype of the products.

    >>> x = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    >>> polar(x, [(1.5, -0.5, 0.0)], 8).round(decimals=2)
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    _check(stack, eps)
    given = published(coefficients)
    if how is None:
        wide = torch.float64 if stack.dtype == torch.float64 else torch.float32 if given.exact else None
        count, rows, columns = stack.shape
        how = plan_for((rows, columns), count, stack.device, dtype=wide)
    chain = Chain(how, (stack.shape[1], stack.shape[2]), stack.device, coefficients, steps)
    out = torch.empty(stack.shape, dtype=how.dtype, device=stack.device)
    if stack.numel():
        chain(stack, out, None, eps)
    return out


class Chain:
    """A polynomial for matrices of a shape: all that does not depend on their numbers.

    Args:
        how: form, dtype and batched.
        shape: of each matrix.
        device: where they are.
        coefficients, steps: as `polar` takes them.

    Attributes:
        how: the same.
    """

    def __init__(
        self,
        how: How,
        shape: tuple[int, int],
        device: torch.device,
        coefficients: Coefficients,
        steps: int | None = None,
    ) -> None:
        triples = polynomial(coefficients, steps)
        self.how, self._device, self._even = how, device, published(coefficients).start == "aol"
        self._segments = segments(triples, how)
        on_gpu = gpu.runs_on(device)
        self._square: Product = product
        if how.form != "plain":
            self._square = gpu.symmetric_product if on_gpu else symmetric_product
        self._folds = on_gpu and how.form == "symmetric"
        self._triples = triples if how.form == "plain" and not self._even and all(c for _, _, c in triples) else None
        short, long = sorted(shape)
        self._tall = shape[0] > short
        self._shape = (short, long)
        self._squares = 2 if max(map(len, self._segments)) == 1 else 4

    def _memory(self, stacked: tuple[int, ...], rows: int, columns: int) -> Tensor:
        return torch.empty((*stacked, rows, columns), dtype=self.how.dtype, device=self._device)

    def __call__(
        self, stack: Tensor, out: Tensor, norms: Tensor | Sequence[float] | None = None, eps: float = EPS
    ) -> None:
        """Puts the polynomials of a stack, at once or one by one, into out.

        Args:
            stack, eps: as for `polar`. The stack is not changed unless it is also out.
            out: (k, m, n), of any dtype.
            norms: the Frobenius norms, (k,), finite, if the caller has read them already; or numbers that the host knows, of which
                those that are too small or too large are read anew.
        """
        stacked = stack.shape[:1] if self.how.batched else ()
        short, long = self._shape
        squares = [self._memory(stacked, short, short) for _ in range(self._squares)]
        is_same = out.dtype == self.how.dtype
        spare = [self._memory(stacked, short, long) for _ in range(1 if is_same and not self._tall else 2)]
        real = torch.float64 if self.how.dtype == torch.float64 else torch.float32
        most = torch.finfo(real).max
        if isinstance(norms, Tensor):
            norms = norms.clamp(max=min(most, torch.finfo(norms.dtype).max)).to(real)
        elif norms is not None and self.how.batched:
            norms = torch.tensor(norms, dtype=real) if all(SAFE < norm < most for norm in norms) else None
        x, y = (stack.mT, out.mT) if self._tall else (stack, out)
        if self.how.batched:
            self._run(x, y, norms.view(-1, 1, 1) if isinstance(norms, Tensor) else None, eps, squares, spare)
            return
        for i in range(len(stack)):
            norm = None if norms is None else norms[i]
            if isinstance(norm, float) and not SAFE < norm < most:
                norm = None
            self._run(x[i], y[i], norm, eps, squares, spare)

    def _run(
        self,
        x: Tensor,
        out: Tensor,
        norms: Tensor | float | None,
        eps: float,
        squares: Sequence[Tensor],
        spare: Sequence[Tensor],
    ) -> None:
        """Puts the polynomial of x into out.

        High matrices are turned while they are read and written: products of rows are faster.
        """
        is_same = out.dtype == self.how.dtype
        now, other = spare[0], spare[-1] if len(spare) == 2 else out
        if other is out and len(self._segments) % 2 == 0:  # so that the last product lands there
            now, other = other, now
        normalize(x, norms, eps, now)
        last = len(self._segments) - 1
        for number, segment in enumerate(self._segments):
            new = out if is_same and number == last else other
            if self._triples is None:
                self._advance(now, new, segment, squares, self._even and number == 0)
            else:
                self._step(now, new, self._triples[number], *squares)
            now, other = new, now
        if not is_same:
            out.copy_(now)

    def _step(self, x: Tensor, new: Tensor, triple: Triple, r: Tensor, q: Tensor) -> None:
        """One step by torch's products, and as few calls as there can be: of small matrices calls take the time."""
        (a, b, c), batched = triple, self.how.batched
        add = torch.baddbmm if batched else torch.addmm
        (torch.bmm if batched else torch.mm)(x, x.mT, out=r)
        add(r, r, r, beta=b, alpha=c, out=q)
        if new.is_contiguous():
            add(x, q, x, beta=a, out=new)
        else:
            product(q, x, new, x, beta=a)

    def _advance(
        self, x: Tensor, new: Tensor, segment: Sequence[Triple], squares: Sequence[Tensor], even: bool
    ) -> None:
        """Some steps: new = Z_k ... Z_1 x."""
        square = self._square
        (a, b, c), *more = segment
        r, q = squares[:2]
        square(x, x.mT, r)
        if even:
            rows_evened(x, r)
        if not more and self._folds:  # sums are in float32, and a launch less counts
            product(_polynomial(square, r, q, a, b, c), x, new)
            return
        if not more:  # a stays out of the product: in half precision its own rounding would double the error
            product(_polynomial(square, r, q, 0.0, b, c), x, new, x, beta=a)
            return
        z, spare = squares[2:]
        factor = _polynomial(square, r, q, a, b, c)
        for a, b, c in more:
            square(r, factor, spare)
            square(spare, factor, r)
            factor = _polynomial(square, r, z, a, b, c)
            square(q, z, spare)
            q, spare = spare, q
        product(q, x, new)


def _polynomial(square: Product, r: Tensor, out: Tensor, a: float, b: float, c: float) -> Tensor:
    """out = a I + b R + c R R."""
    if c:
        return square(r, r, out, r, alpha=c, beta=b, diagonal=a)
    torch.mul(r, b, out=out)
    if a:
        out.diagonal(dim1=-2, dim2=-1).add_(a)
    return out


def segments(triples: Sequence[Triple], how: How) -> list[list[Triple]]:
    """The steps between two products with the matrix itself.

    In the Gram form bfloat16 bears one step on a Gram matrix that is not fresh, and none after the first step, whose
    a is the largest: the steps go by 1, 2, 2, ... Its errors are then those of the plain form. With 2, 3, ..., as first proposed for float16, singular values of
    bfloat16 results reach 1.3 in place of 1.2 with Keller Jordan's coefficients, 2 with Polar Express, and infinity with others.
    The other dtypes go by 2, 3, 3, ...
    """
    if how.form != "gram":
        return [[triple] for triple in triples]
    first, others = (1, 2) if how.dtype == torch.bfloat16 else (2, 3)
    starts = [0, *range(first, len(triples), others), len(triples)]
    return [list(triples[start:end]) for start, end in itertools.pairwise(starts)]


def normalize(x: Tensor, norms: Tensor | float | None, eps: float, out: Tensor) -> None:
    """out = x / max(|x|, eps), whatever the size of the elements.

    Args:
        x: (m, n) or (k, m, n).
        norms: a number or (k, 1, 1); None reads them.
        eps: norms below it count as it.
        out: of the shape of x; it may be x.
    """
    real = torch.float64 if out.dtype == torch.float64 else torch.float32
    tiny = torch.finfo(real).tiny
    if isinstance(norms, float) and x.dtype == out.dtype:
        torch.div(x, max(norms, eps, tiny), out=out)
        return
    known = torch.tensor(norms, dtype=real) if isinstance(norms, float) else norms
    stacked = x.dim() == 3
    if known is None and x.device.type == "cpu":  # where looking at a number waits for nothing
        kind = torch.promote_types(x.dtype, real)
        known = torch.linalg.vector_norm(x, 2, (-2, -1), keepdim=stacked, dtype=kind)
        low, high = torch.aminmax(known)
        if not (float(low) > SAFE and float(high) < math.inf):
            known = None
    elif known is None and eps >= SAFE:  # in float64 no square of what is not divided by eps overflows or vanishes
        known = (
            torch.linalg.vector_norm(x, 2, (-2, -1), keepdim=stacked, dtype=torch.float64).clamp_(max=_LARGEST).to(real)
        )
    is_apart = {x.dtype, out.dtype} == {torch.bfloat16, torch.float16}  # of which neither holds the other
    if known is not None and is_apart:
        known = known.clamp(min=max(eps, tiny)).view(-1, *[1] * (x.dim() - 1))
        torch.div(x, known, out=out)
        return
    if not is_apart and torch.promote_types(x.dtype, out.dtype) != x.dtype:  # a division would round to the dtype of x
        x = out.copy_(x)
    if known is not None:
        torch.div(x, known.clamp(min=max(eps, tiny)), out=out)
        return
    power = largest_power(x, (-2, -1))
    power = power if stacked or is_apart else power.view(())  # with axes it has x divided in its own dtype
    torch.div(x, power, out=out)
    known = torch.linalg.vector_norm(out, 2, (-2, -1), keepdim=stacked, dtype=real)
    out.div_(torch.maximum(known, eps / power).clamp_(min=tiny))


def largest_power(x: Tensor, dims: int | tuple[int, int]) -> Tensor:
    """A power of 2 near the largest element along dims, which are kept. Sums of squares of x / it neither overflow nor vanish."""
    kind = torch.promote_types(x.dtype, torch.float32)
    largest = torch.maximum(-x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)).to(kind)
    exponent = torch.frexp(largest.clamp_(min=torch.finfo(kind).tiny)).exponent
    return torch.ldexp(torch.ones_like(largest), exponent - 1)


def rows_evened(x: Tensor, r: Tensor) -> None:
    """Divides each row i of x by (sum over j of |(x x^T)_ij|)**0.5, in place, so that no singular value is above 1.

    That is almost-orthogonal scaling (arXiv:2208.03160), from where Turbo-Muon starts. Where rows are not orthogonal already it turns
    singular vectors too: the result is the polar factor of the scaled matrix, which is near that of x.

    Args:
        x: (m, n) or (k, m, n).
        r: x x^T, which is made that of the new x.
    """
    sums = r.abs().sum(-1, keepdim=True, dtype=torch.promote_types(r.dtype, torch.float32))
    scale = sums.clamp_(min=EPS).rsqrt_()
    x.mul_(scale)
    r.mul_(scale).mul_(scale.mT)


def split(shape: tuple[int, int], count: int, how: How, most_bytes: int = 2**28) -> Iterator[slice]:
    """Slices of a stack for which `polar` takes at most so much memory beyond the stack and the result; at least one matrix each.

    For a (k, m, n) stack at once that is k m n + 2 k s s elements of the products' dtype, s being the shorter side, and 4 k s s in
    the form "gram". One by one it is m n + 2 s s, or 4 s s, whatever k is. Another m n, or k m n, is for matrices that are higher
    than long, and for a result of another dtype.

    >>> list(split((64, 64), 5, How("plain", torch.float32, True), 100_000))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    short, long = sorted(shape)
    squares = 4 if how.form == "gram" else 2
    each = (short * long + squares * short * short) * how.dtype.itemsize
    step = max(1, most_bytes // max(each, 1)) if how.batched else max(count, 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _check(stack: Tensor, eps: float) -> None:
    if stack.dim() != 3 or stack.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(
            f"stack must be (k, m, n) in float32, float64, bfloat16 or float16, got {tuple(stack.shape)} in {stack.dtype}"
        )
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
