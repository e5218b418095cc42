"""Calls as users write them. A type checker must take what has no comment and refuse what has one (`make types`)."""

from __future__ import annotations

import numpy as np
import torch
from typing_extensions import assert_type

import steprule
from steprule import AdamW, Lion, Muon, Optimizer, Rule, ScheduleFreeAdamW, arrays, create_optimizer, rules
from steprule.services import Average, ClipQuantile, Telemetry

model = torch.nn.Linear(2, 2)
p = list(model.parameters())
array = np.ones(3, dtype=np.float32)

# Right

AdamW(p)
AdamW(model.parameters(), 1e-3, (0.9, 0.95), eps=1e-6, weight_decay=0.1, amsgrad=True, fused=True)
AdamW(model.named_parameters(), lr=torch.tensor(1e-3), betas=[0.9, 0.95])
AdamW([{"params": p, "lr": 1e-2}], lr=lambda step: 1e-3 / step, betas=lambda step: (0.9, 0.95))
AdamW(p, states="8bit", weights="24bit", seed=1, clip=1, nonfinite="skip", average=0.999, telemetry=10, grads="32bit")
AdamW(p, clip=ClipQuantile(), average=Average(0.9), telemetry=Telemetry(every=10), decay="initial", lookahead=5)
steprule.SGD(p, lr=1e-2, momentum=0.9, nesterov=True)
steprule.RMSprop(p, 1e-2, 0.99, 1e-8, 0.0, 0.0, False, False, None)
Muon(p, lr=1e-2, ns_coefficients="polar_express", adjust_lr_fn="match_rms_adamw")
Muon(p, ns_coefficients=[(2.0, -1.5, 0.5), (1.875, -1.25, 0.375)], ns_steps=2)
schedule_free = ScheduleFreeAdamW(p)
schedule_free.eval()
assert_type(Lion(p), Lion)
assert_type(create_optimizer(model, "adamw", lr=1e-3), Optimizer)
assert_type(steprule.roles(model, overrides={"*.w": "transpose"})[0].view, steprule.layers.View | None)
assert_type(arrays.Adam([array]), arrays.Adam)
arrays.AdamW([array], lr=1e-3, betas=[0.9, 0.99]).step([array])
rule: type[Rule] = rules.AdamW
optimizer: torch.optim.Optimizer = AdamW(p)
steprule.services.ClipNorm(1.0)


class Mine(Optimizer, rule=rules.Lion):
    """A class of one's own."""


Mine(p, lr=1e-3)

# Wrong

AdamW(p).lr = 3  # type: ignore[attr-defined]
AdamW()  # type: ignore[call-arg]
AdamW(5)  # type: ignore[arg-type]
AdamW("abc")  # type: ignore[arg-type]
AdamW(p, learning_rate=1)  # type: ignore[call-arg]
AdamW(p, sttaes="8bit")  # type: ignore[call-arg]
AdamW(p, states="9bit")  # type: ignore[arg-type]
AdamW(p, decay="Decoupled")  # type: ignore[arg-type]
AdamW(p, betas=0.9)  # type: ignore[arg-type]
AdamW(p, amsgrad="yes")  # type: ignore[arg-type]
AdamW(p, clip="1.0")  # type: ignore[arg-type]
AdamW(p, momentum=0.9)  # type: ignore[call-arg]
Lion(p, lr="x")  # type: ignore[arg-type]
Lion(p, amsgrad=True)  # type: ignore[call-arg]
steprule.SGD(p, capturable=True)  # type: ignore[call-arg]
steprule.Adamw(p)  # type: ignore[attr-defined]
arrays.AdamW([array], learning_rate=1)  # type: ignore[call-arg]
arrays.Lion([array], lr="x")  # type: ignore[arg-type]
arrays.Lion([array], states="8bit")  # type: ignore[call-arg]
arrays.Lion([array], 1e-3)  # type: ignore[call-arg]
arrays.Lion(array)  # type: ignore[arg-type]
arrays.LBFGS([array])  # type: ignore[attr-defined]
Muon(p, ns_coefficients="polar")  # type: ignore[arg-type]
Muon(p, adjust_lr_fn="rms")  # type: ignore[arg-type]
AdamW(p).step(closur=None)  # type: ignore[call-arg]
