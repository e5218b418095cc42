"""8-bit states under gradients that were chosen to break them: no rule goes further than it does in float32."""

from __future__ import annotations

import pytest
import torch
from settings import IDS, VARIANTS, sees_matrix

import steprule
from steprule.formats import BLOCK
from steprule.memory import Param, need
from steprule.rules import OWN
from steprule.trace.tracing import exact_states

STEPS = 400
ROWS = 2


def _streams():
    """Gradients by what is nasty about them: steps, rows of one block."""
    g = torch.Generator().manual_seed(0)
    shape = (STEPS, ROWS, BLOCK)

    def normal():
        return torch.randn(shape, generator=g)

    dominant = torch.where(torch.arange(BLOCK) == 0, 1e4, 1.0)
    t = torch.arange(STEPS)[:, None, None]
    spikes = normal()
    spikes[::40, :, 5] *= 1e4
    return {
        "one dominates": dominant.expand(shape),
        "one dominates, now and then": normal().sign() * dominant * (torch.rand(shape, generator=g) < 0.1),
        "one has spikes": spikes,
        "noise": normal(),
        "noise about 1": normal() + 1,
        "of four decades": (normal() + 1) * 10 ** torch.linspace(-4, 0, BLOCK),
        "all grow": 1.03**t * torch.ones(shape),
        "noise that grows": normal() * 1.03**t,
        "noise that jumps": normal() * torch.where(t < 200, 1.0, 1e3),
        "noise that drops": normal() * torch.where(t < 200, 1.0, 1e-3),
        "noise that stops": normal() * (t < 100),
        "alternating": (-1.0) ** t * torch.linspace(0.01, 1, BLOCK).expand(shape),
    }


STREAMS = _streams()
ESTIMATORS = {"Prodigy", "DAdaptAdam", "DoG"}
"""What finds a learning rate from gradients that have a mean; from others it makes what the last digit decides."""
WITH_MEAN = ("one dominates", "noise about 1", "of four decades")


def _go(rule, hyper, streams, states):
    """The largest update of each stream, and how far each element went, in whichever direction."""
    wide = torch.zeros(len(streams) * ROWS, BLOCK, 2)
    wide[..., 0] = 0.1 * torch.randn(ROWS, BLOCK, generator=torch.Generator().manual_seed(1)).repeat(len(streams), 1)
    p = wide[..., 0].requires_grad_()  # two elements apart: the eager fallback steps it, and nothing is compiled
    optimizer = getattr(steprule, rule.__name__)([p], **hyper, states=states)
    largest, gone = torch.zeros(len(streams)), torch.zeros(len(streams), ROWS, BLOCK)
    grads = torch.cat([STREAMS[name] for name in streams], 1)
    for grad in grads:
        p.grad = grad
        before = p.detach().clone()
        optimizer.step()
        update = (p.detach() - before).abs().view(gone.shape)
        largest = largest.maximum(update.amax((1, 2)))
        gone += update
    assert optimizer._core.plans.current is None
    return largest, gone


STRESSED = [  # streams lie side by side, and are one matrix to a rule that sees one
    place
    for place, (rule, hyper) in enumerate(VARIANTS)
    if rule.tensor_states and not rule.sparse_only and not sees_matrix(rule, hyper)
]


@pytest.mark.parametrize(
    ("rule", "hyper"),
    [
        pytest.param(
            *VARIANTS[place], id=IDS[place], marks=[] if IDS[place] in ("AdamW", "Lion") else [pytest.mark.long]
        )
        for place in STRESSED
    ],
)
def test_no_rule_goes_further_than_in_float32(rule, hyper):
    streams = WITH_MEAN if rule.__name__ in ESTIMATORS else [*STREAMS]
    if "growth_rate" in hyper:  # nothing ever stops gradients that no weight changes
        hyper = {**hyper, "growth_rate": 1.02}
    sizes = torch.stack([STREAMS[name].abs().amax(0) for name in streams])
    is_main = sizes >= sizes.amax(-1, keepdim=True) / 100
    (wide, far), (largest, gone) = (_go(rule, hyper, streams, states) for states in (None, "8bit"))
    for place, name in enumerate(streams):
        assert float(largest[place]) < 1.5 * float(wide[place]), name
        assert float(gone[place].sum()) < 1.5 * float(far[place].sum()), name
        main = is_main[place]
        assert float(gone[place][main].sum()) > float(far[place][main].sum()) / 1.5, name


AMSGRAD = [name for name, rule in OWN.items() if "amsgrad" in rule.hyperparameters]


@pytest.mark.parametrize("name", AMSGRAD)
def test_amsgrads_maximum_and_what_it_is_the_maximum_of_are_exact(name):
    rule = OWN[name]
    for amsgrad in (False, True):
        hyper = {**rule.hyperparameters, "amsgrad": amsgrad}
        kept = {state for state in exact_states(rule, hyper) if state in rule.tensor_states}
        largest = "max_exp_avg_var" if name == "adabelief" else "max_exp_avg_sq"
        assert kept == ({largest, largest.removeprefix("max_")} if amsgrad else set())
        states = 2 + ("previous_grad" in rule.states)
        low, wide = (states - 1, 2) if amsgrad else (states, 0)
        bytes_needed = need(rule, [Param((16, 10 * BLOCK))], "float32", "float32", "8bit", None, {"amsgrad": amsgrad})
        assert bytes_needed.state_bytes == 160 * BLOCK * (low * (1 + 2 / BLOCK) + 4 * wide)


def test_amsgrads_maximum_does_not_creep():
    params = [torch.nn.Parameter(torch.zeros(ROWS, BLOCK)) for _ in range(2)]
    optimizers = [
        steprule.AdamW([p], amsgrad=True, states=states) for p, states in zip(params, (None, "8bit"), strict=True)
    ]
    g = torch.Generator().manual_seed(0)
    for _ in range(2000):
        grad = torch.randn(ROWS, BLOCK, generator=g)
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = grad
            optimizer.step()
    exact, kept = (one.read(p, "max_exp_avg_sq") for one, p in zip(optimizers, params, strict=True))
    torch.testing.assert_close(kept, exact, rtol=1e-6, atol=0)


def test_a_running_maximum_of_an_own_rule_is_exact_and_one_that_decays_is_not():
    class Largest(steprule.Rule):
        def update(param, grad, largest, least, decaying, mean, *, lr=1e-3, beta=0.9):
            mean = steprule.ema(mean, abs(grad), beta)
            largest, least = steprule.maximum(largest, mean), steprule.minimum(grad, least)
            decaying = steprule.maximum(beta * decaying, mean)
            return param - lr * grad / (largest + decaying - least), largest, least, decaying, mean

    assert exact_states(Largest, Largest.hyperparameters) == {"largest", "least", "mean"}
