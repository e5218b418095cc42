"""Muon and Adafactor beside torch.optim's, which look at whole matrices.

torch's Muon computes its products in bfloat16 whatever the parameters are. Here it is made to compute them in the
parameters' dtype: `exact`.
"""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
from dropin import Config, Pair, fill, leaves, mine, outcome, random, run, same_groups, same_value, torchs

import steprule

SHAPES = {
    "Muon": ((4, 3), (3, 5), (6, 6), (1, 4), (5, 1)),
    "Adafactor": ((4, 3), (5,), (), (2, 3, 4), (2, 1, 3, 3), (5, 1)),
}
NAMES = [name for name in SHAPES if hasattr(torch.optim, name)]
pytestmark = pytest.mark.skipif(not NAMES, reason="torch before 2.5 has neither")

MUON = [
    {"lr": 0.05, "momentum": 0.8, "nesterov": nesterov, "weight_decay": decay, "adjust_lr_fn": scale}
    for nesterov in (True, False)
    for decay in (0.0, 0.1)
    for scale in (None, "original", "match_rms_adamw")
]
MUON += [
    {"lr": 0.05, "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "eps": 5.0},
    {"lr": 0.05, "ns_coefficients": [2.0, -1.5, 0.5], "momentum": 0.0},
]
ADAFACTOR = [
    {"lr": lr, "beta2_decay": decay, "weight_decay": weight_decay, "eps": eps, "d": d, "maximize": maximize}
    for lr, decay, weight_decay, eps, d, maximize in (
        (1e-2, -0.8, 0.0, (None, 1e-3), 1.0, False),
        (0.5, -0.7, 0.1, (None, 0.9), 1.5, True),
        (0.5, -0.7, 0.1, (0.5, 1e-3), 1.0, False),
        (0.5, 0.0, 0.1, [None, 1e-3], 1.0, False),
    )
]
CONFIGS = [
    Config(name, options)
    for name, all_of in (("Muon", MUON), ("Adafactor", ADAFACTOR))
    if name in NAMES
    for options in all_of
]
PLAIN = [Config(name, {"lr": 0.05}) for name in NAMES]
EVERY = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}-{CONFIGS.index(config)}")
FEW = pytest.mark.parametrize("config", PLAIN, ids=str)


@pytest.fixture
def exact(monkeypatch):
    """Newton-Schulz of torch's in the dtype of the parameters, on a copy, as it was meant."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


class Both(Pair):
    """A pair whose states are compared as far as torch.optim has them."""

    def __init__(self, config: Config, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        super().__init__(config, lambda: leaves(SHAPES[config.name], dtype), **options)

    def check(self, rtol: float | None = None, atol: float | None = None, strides: bool = True) -> None:
        is_wide = self.my_params[0].dtype == torch.float64
        rtol, atol = (1e-9, 1e-12) if is_wide else (2e-5, 1e-6)
        same_groups(self.mine, self.its)
        saved, its = self.mine.state_dict()["state"], self.its.state_dict()["state"]
        assert list(saved) == list(its)
        for number, (p, q) in enumerate(zip(self.my_params, self.its_params, strict=True)):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=rtol, atol=atol, msg=f"parameter {number}")
            theirs = its.get(number, {})
            theirs = {
                key: x for key, x in theirs.items() if "variance" not in theirs or not key.endswith("_var")
            }  # ours, which it keeps as they are
            for key, value in theirs.items():
                torch.testing.assert_close(saved[number][key], value, rtol=rtol, atol=atol, msg=f"{key} of {number}")


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_numbers_are_torchs(config, dtype, exact):
    Both(config, dtype).step(6)


@FEW
def test_numbers_and_groups_may_change_between_steps(config, exact):
    both = Both(config)
    both.step(2)
    changes = {
        "lr": (0.3, torch.tensor(0.01, dtype=torch.float64)),
        "weight_decay": (0.2,),
        "momentum": (0.5,),
        "d": (2.0,),
    }
    changes |= {
        "nesterov": (False,),
        "ns_steps": (3,),
        "adjust_lr_fn": ("match_rms_adamw",),
        "beta2_decay": (-0.5,),
        "eps": (),
    }
    changes |= {"ns_coefficients": ((2.0, -1.5, 0.5),)}
    for key, values in changes.items():
        for value in values if key in both.mine.param_groups[0] else ():
            for optimizer, _ in both.sides:
                optimizer.param_groups[0][key] = value
            both.step(2)


@FEW
def test_gradients_may_pause(config, exact):
    both = Both(config)
    both.step(2, active=[0, 2])
    both.step(2)
    both.step(2, active=[])


@FEW
def test_checkpoints_go_both_ways(config, exact):
    both = Both(config)
    both.step(3)
    ours, its = (copy.deepcopy(optimizer.state_dict()) for optimizer, _ in both.sides)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    assert set(ours["param_groups"][0]) == set(its["param_groups"][0])
    both.mine.load_state_dict(its)
    both.its.load_state_dict(torch.load(file, weights_only=True))
    both.step(3)
    both.its.load_state_dict(copy.deepcopy(both.mine.plain_state_dict()))
    both.step(2)


@FEW
def test_a_state_of_a_vector_is_kept_to_the_last_bit(config):
    both = Both(config)
    run(both.mine, range(3))
    saved = copy.deepcopy(both.mine.state_dict())
    other = mine(config.name)(leaves(SHAPES[config.name]), **config.options)
    other.load_state_dict(saved)
    for p, q in zip(both.my_params, other.param_groups[0]["params"], strict=True):
        assert list(both.mine.state[p]) == list(other.state[q])
        assert all(torch.equal(x, other.state[q][key]) for key, x in both.mine.state[p].items())


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_and_the_defaults_are_torchs(name):
    def described(cls):
        return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]

    theirs = described(torchs(name))
    assert described(mine(name))[: len(theirs)] == theirs
    ours, its = (cls(leaves(SHAPES[name])) for cls in (mine(name), torchs(name)))
    assert ours.defaults.keys() == its.defaults.keys()
    for key, value in its.defaults.items():
        same_value(ours.defaults[key], value, key)
    values = [value for _, kind, value in theirs[1:] if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert mine(name)(leaves(SHAPES[name]), *values).defaults == ours.defaults
    assert repr(ours) == repr(its)


WRONG = [
    ("Muon", {"lr": -1.0}), ("Muon", {"momentum": -0.5}), ("Muon", {"weight_decay": -1}), ("Muon", {"adjust_lr_fn": "orthogonal"}),
    ("Muon", {"lr": torch.tensor([0.1, 0.2])}), ("Adafactor", {"lr": -1.0}), ("Adafactor", {"beta2_decay": 0.1}),
    ("Adafactor", {"eps": (-1.0, 1e-3)}), ("Adafactor", {"eps": (None, -1.0)}), ("Adafactor", {"d": 0.5}),
    ("Adafactor", {"weight_decay": -0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), WRONG)
def test_bad_values_are_refused_in_torchs_words(name, arguments):
    if name not in NAMES:
        pytest.skip("this torch has none")
    (kind, text), its = outcome(lambda: mine(name)(None, **arguments)), outcome(lambda: torchs(name)(None, **arguments))
    assert kind == its[0] == "ValueError" and text.startswith(its[1])


@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_muon_refuses_what_is_no_matrix(shape):
    """As torch.optim's does; tensors of more dimensions are matrices here."""
    named = [("layer.weight", random((2, 2), 0)), ("layer.bias", random(shape, 0))]
    told = rf"Muon looks at whole matrices, and parameter 1 of group 0 \(layer.bias\) has the shape \({', '.join(map(str, shape))},?\)"
    with pytest.raises(ValueError, match=told + ".*AdamW"):
        steprule.Muon(named)
    optimizer = steprule.Muon(named[:1])
    with pytest.raises(ValueError, match="parameter 0 of group 1"):
        optimizer.add_param_group({"params": [("more", random(shape, 0))]})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["params"].append(random(shape, 0))
    with pytest.raises(ValueError, match="parameter 1 of group 0"):
        optimizer.step()
    optimizer.param_groups[0]["params"].pop()
    run(optimizer, [0])
    optimizer.param_groups[0]["params"][0].data = random((4,), 0)
    fill(optimizer, 0)
    with pytest.raises((RuntimeError, ValueError), match=r"has the shape|is flat"):
        optimizer.step()
    with pytest.raises(ValueError, match="params\\[0\\] has the shape"):
        steprule.arrays.Muon([random(shape, 0).numpy()])


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_momentum_of_a_bfloat16_parameter_is_an_average(nesterov):
    """torch.optim 2.13 divides it by its norm in place without Nesterov."""
    param = random((8, 4), 0, torch.bfloat16).requires_grad_()
    optimizer = steprule.Muon([param], nesterov=nesterov, momentum=0.9, weight_decay=0.0)
    average = torch.zeros(8, 4, dtype=torch.float64)
    for step in range(3):
        param.grad = 100 * random((8, 4), 1 + step, torch.bfloat16)
        average.lerp_(param.grad.double(), 0.1)
        optimizer.step()
    error = (optimizer.state[param]["momentum_buffer"].double() - average).abs().max()
    assert (
        float(error) <= 3 * 2.0**-9 * float(average.abs().max()) * 2
    )  # three roundings, of numbers that were at most twice as large


def test_adafactors_eps_is_that_of_each_parameters_dtype():
    """torch.optim 2.13 keeps a bfloat16 parameter's for the float32 ones after it: here steps that are 100 times smaller."""
    runs = []
    for others in ([], [torch.ones(4, 4, dtype=torch.bfloat16)]):
        params = [param.requires_grad_() for param in (*others, torch.ones(4, 4))]
        for param in params:
            param.grad = torch.full_like(param, 1e-4)
        steprule.Adafactor(params, lr=0.01).step()
        runs.append(params[-1].detach())
    assert torch.equal(*runs) and bool((runs[0] < 0.991).all())


SETS = ["keller", "you", "polar_express", "cans", "aol", "deepseek", "cubic5"]


@pytest.mark.parametrize("name", SETS)
def test_coefficients_may_be_named(name):
    """A name is the published numbers."""
    from steprule.matrix.coefficients import polynomial

    steps = 10 if name == "deepseek" else 5
    runs = []
    for given in (name, tuple(polynomial(name, steps)), [list(one) for one in polynomial(name, steps)]):
        optimizer = steprule.Muon(leaves([(5, 4)]), lr=0.1, ns_coefficients=given, ns_steps=steps)
        run(optimizer, range(3))
        runs.append(optimizer.param_groups[0]["params"][0].detach())
        assert optimizer.param_groups[0]["ns_coefficients"] == (
            given if given == name else tuple(polynomial(name, steps))
        )
    torch.testing.assert_close(runs[1], runs[2], rtol=0, atol=0)
    if name != "aol":  # which begins otherwise
        torch.testing.assert_close(runs[0], runs[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            {"ns_coefficients": "polar_expres"},
            "Invalid ns_coefficients value: 'polar_expres'; did you mean 'polar_express'",
        ),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients must be a tuple of 3 numbers"),
        ({"ns_coefficients": ((1.0, 2.0), (1.0, 2.0))}, "a tuple of such tuples or a text"),
        ({"ns_coefficients": "deepseek"}, "ns_coefficients='deepseek', ns_steps=5: 'deepseek' has at least 10 steps"),
        (
            {"ns_coefficients": "cubic5", "ns_steps": 6},
            "ns_coefficients='cubic5', ns_steps=6: 'cubic5' has exactly 5 steps",
        ),
        ({"ns_steps": 100}, "Invalid ns_steps value: 100"),
        ({"ns_steps": 2.5}, "Invalid ns_steps value: 2.5"),
        ({"adjust_lr_fn": 0.2}, "Adjust learning rate function 0.2 is not supported; it can be None, 'original'"),
    ],
)
def test_wrong_coefficients_are_refused_before_anything_changes(arguments, told):
    with pytest.raises((ValueError, TypeError)) as raised:
        steprule.Muon(leaves([(5, 4)]), **arguments)
    assert told in str(raised.value)
    optimizer = steprule.Muon(leaves([(5, 4)]))
    run(optimizer, [0])
    (param,) = optimizer.param_groups[0]["params"]
    before = [param.detach().clone(), optimizer.state[param]["momentum_buffer"].clone()]
    optimizer.param_groups[0].update(arguments)
    with pytest.raises((ValueError, TypeError)) as raised:
        run(optimizer, [1])
    assert told in str(raised.value)
    assert torch.equal(before[0], param) and torch.equal(before[1], optimizer.state[param]["momentum_buffer"])


def test_every_name_of_a_scale_is_its_factor():
    from steprule.rules.scales import SCALES, convert_lr

    def moved(**options):
        optimizer = steprule.Muon(leaves([(6, 3)]), weight_decay=0.0, **options)
        run(optimizer, [0])
        return optimizer.param_groups[0]["params"][0].detach() - leaves([(6, 3)])[0].detach()

    plain = moved(lr=0.1, adjust_lr_fn="none")
    for name in SCALES:
        factor = convert_lr(1.0, (6, 3), name, "none")
        torch.testing.assert_close(moved(lr=0.1, adjust_lr_fn=name), factor * plain, rtol=1e-9, atol=1e-12)
    assert convert_lr(1.0, (6, 3), "spectral_unclamped", "none") == 2**0.5
