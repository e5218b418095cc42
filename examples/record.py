"""The optimizer of record 46 of modded-nanogpt's optimization benchmark, as rules and wrappers: `record(model)`.

As there: row floor, radial brake, radius pin, cautious decay, EMA-Nesterov, PowerCool, momentum's schedule, beta2 by kind of parameter.
Not as there: momentum adds up; SOAP's squares are of it, bases exact, and second moments carried into them; no trust gate; bias
correction; averages from the start, taken whole.
"""

from functools import partial

import steprule
from steprule import chain, transforms, wrap, wrappers

SOAP = partial(steprule.SOAP.rule, betas=(0.0, 0.9), shampoo_beta=0.9, precondition_frequency=1, weight_decay=0.0)
HIDDEN = wrap(
    chain(transforms.nesterov, SOAP, partial(steprule.Muon.rule, momentum=0.0, nesterov=False, weight_decay=0.0)),
    wrappers.radial_brake, wrappers.row_floor, wrappers.radius_pin,
    partial(wrappers.cautious_decay, weight_decay=0.025), wrappers.ema_nesterov, name="Record",
)  # fmt: skip
OTHERS = wrap(steprule.AdamW.rule, wrappers.ema_nesterov)
LR, BETA2 = {"embedding": 0.3, "head": 1 / 320}, {"vector": 0.997}


def record(model, steps=2900):  # type: ignore[no-untyped-def]
    """One optimizer of all parameters; call eval() of its two parts before evaluation, and train() after it."""

    def cooled(lr, flat):  # type: ignore[no-untyped-def]
        return lambda step: lr * min(1.0, (max(0.0, 1 - step / steps) / (1 - flat)) ** 1.2)

    def momentum(step):  # type: ignore[no-untyped-def]
        return 0.85 + 0.1 * min(1.0, step / steps * 9.7, max(0.0, 1 - step / steps) * 14.5)

    table, lr = steprule.roles(model), cooled(0.0375, 0.18)
    wrapped = {"nesterov_scale": lambda step: 8 * lr(step) * (0.1 <= step / steps < 0.67), "average": 1 - 1 / 150}
    hidden = steprule.Optimizer.of(HIDDEN)([row.param for row in table.matrices], lr=lr, momentum=momentum, **wrapped)
    own = {x.param: (LR.get(x.role, 0.01), BETA2.get(x.role, 0.99)) for x in table.rest}
    groups = [{"params": [param], "lr_mult": rate, "betas": (0.8, beta2)} for param, (rate, beta2) in own.items()]
    others = steprule.Optimizer.of(OTHERS)(groups, lr=cooled(1.0, 0.51), eps=1e-10, weight_decay=0.0, **wrapped)
    return steprule.Together([hidden, others])
