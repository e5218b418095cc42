r"""Writes trajectories.json: what published implementations make of peers.problem, for tests/test_peers.py.

Needs an environment of its own, for the peers are no dependency of steprule's tests::

    python3.11 -m venv peers
    peers/bin/pip install torch==2.13.0 numpy "jax[cpu]" optax einops tabulate colorama
    peers/bin/pip install --no-deps schedulefree prodigyopt dadaptation madgrad dog-optimizer lion-pytorch \
        adan-pytorch adabelief-pytorch adam-atan2-pytorch timm torch-optimi heavyball pytorch-optimizer \
        torch-optimizer pytorch-ranger grams-pytorch pytorch-lamb
    peers/bin/python tests/peers/make.py

An entry of the file has these keys, the last five only where they are needed:

    rule, options: steprule's rule by its registry name, and the arguments that should mean the same as the peer's.
    peer, version, peer_options: the implementation, and what it is given. A string that begins with "lambda" stands
        for that function, and a dict with "peer" for an optimizer inside a wrapper.
    first, params: every tensor after step 1 and after the last step.
    agrees: whether that is what steprule's definition of the rule says; null where only a test can tell.
    why: what the peer does otherwise, or what was chosen so that it does not.
    lrs: the learning rate of every step, where it changes.
    zeros: true where problem(..., zeros=True) is stepped.
    eval: the averaged weights at the end, of optimizers with train() and eval().
    precision: "float32" where the peer computes in float32.
    rtol: the tolerance, where the peer has a small constant that nothing switches off.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import torch
from problem import STEPS, Arrays, problem

SEED = 20
LR = 0.05
LRS = [round(LR * (1 - 0.04 * step), 6) for step in range(STEPS)]
B2 = (0.8, 0.95)
B3 = (0.8, 0.7, 0.95)

Options = dict[str, Any]


def case(
    rule: str, peer: str, peer_options: Options, options: Options, agrees: bool | None, why: str = "", **extra: Any
) -> Options:
    """An entry without its numbers."""
    entry = {"rule": rule, "peer": peer, "peer_options": peer_options, "options": options}
    return {**entry, "agrees": agrees, "why": why, **extra}


# Two lines a case, which the formatter would make ten of.
# fmt: off
def lamb() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1}
    plain = {"max_grad_norm": None, "always_adapt": True}
    optaxs = {"learning_rate": LR, "b1": 0.8, "b2": 0.95, "eps": 0.02, "weight_decay": 0.1}
    undecayed = {**mine, "weight_decay": 0.0}
    return [
        case("lamb", "timm.optim.lamb.Lamb", {**mine, **plain}, mine, True),
        case("lamb", "timm.optim.lamb.Lamb", {**mine, **plain}, mine, True, zeros=True),
        case("lamb", "timm.optim.lamb.Lamb", {**undecayed, **plain}, undecayed, True, "always_adapt had to be set."),
        case("lamb", "timm.optim.lamb.Lamb", {**undecayed, "max_grad_norm": None}, undecayed, False,
             "Without weight decay and always_adapt, the trust ratio is left out."),
        case("lamb", "timm.optim.lamb.Lamb", mine, mine, False,
             "Clips the gradients to a global norm of 1 unless max_grad_norm is None."),
        case("lamb", "timm.optim.lamb.Lamb", {**mine, **plain, "caution": True}, {**mine, "cautious": True}, False,
             "The mask comes before decay and trust ratio, whose norm it changes, and scales by size / kept."),
        case("lamb", "optax.lamb", optaxs, mine, True),
        case("lamb", "optax.lamb", optaxs, mine, True, zeros=True),
        case("lamb", "optax.lamb", {**optaxs, "learning_rate": LRS}, mine, True, lrs=LRS),
        case("lamb", "torch_optimizer.Lamb", {**mine, "debias": True}, mine, False,
             "Bias correction scales the learning rate, after the decay has been added and the trust ratio taken, "
             "and eps is added to a root without it; |w| is clamped to 10."),
        case("lamb", "pytorch_optimizer.Lamb", {**mine, "weight_decouple": False}, mine, False,
             "Only the first moment is debiased, by way of the learning rate, which the decay then shares; |w| is "
             "clamped to 10 and eps is added to the norm of the update."),
        case("lamb", "pytorch_optimizer.Lamb", mine, mine, False,
             "By default decay is decoupled and outside the trust ratio; only the first moment is debiased."),
        case("lamb", "pytorch_lamb.Lamb", mine, mine, False,
             "Nothing is debiased, as in the paper's third version, and |w| is clamped to 10."),
    ]


def lars() -> list[Options]:
    mine = {"lr": 2.0, "momentum": 0.8, "weight_decay": 0.1, "trust_coefficient": 0.02}
    undecayed = {**mine, "weight_decay": 0.0}
    timms = {"lr": 2.0, "momentum": 0.8, "weight_decay": 0.1, "trust_coeff": 0.02, "eps": 0.0, "always_adapt": True}
    optaxs = {"learning_rate": 2.0, "momentum": 0.8, "weight_decay": 0.1, "trust_coefficient": 0.02}
    lrs = [round(40 * lr, 6) for lr in LRS]
    return [
        case("lars", "timm.optim.lars.Lars", timms, mine, True, "eps had to be set to 0."),
        case("lars", "timm.optim.lars.Lars", timms, mine, True, zeros=True),
        case("lars", "timm.optim.lars.Lars", {**timms, "weight_decay": 0.0}, undecayed, True),
        case("lars", "timm.optim.lars.Lars", {**timms, "nesterov": True}, {**mine, "nesterov": True}, True),
        case("lars", "timm.optim.lars.Lars", {**timms, "eps": 0.1}, mine, False,
             "eps is added to the denominator of the trust ratio, which has none in the paper."),
        case("lars", "timm.optim.lars.Lars", timms, mine, False,
             "The learning rate scales the momentum buffer, not each gradient that enters it.", lrs=lrs),
        case("lars", "torch_optimizer.LARS", {**mine, "eps": 0.0}, mine, True),
        case("lars", "torch_optimizer.LARS", {**mine, "eps": 0.0}, mine, True, zeros=True),
        case("lars", "torch_optimizer.LARS", {**mine, "weight_decay": 0.0, "eps": 0.0}, undecayed, False,
             "Without weight decay the trust ratio is left out."),
        case("lars", "optax.lars", {**optaxs, "weight_decay": 0.0}, undecayed, True),
        case("lars", "optax.lars", {**optaxs, "weight_decay": 0.0, "learning_rate": lrs}, undecayed, True, lrs=lrs),
        case("lars", "optax.lars", {**optaxs, "weight_decay": 0.0, "nesterov": True},
             {**undecayed, "nesterov": True}, True),
        case("lars", "optax.lars", optaxs, mine, False,
             "Divides by the norm of the decayed gradient, |g + wd w|, instead of |g| + wd |w|."),
        case("lars", "pytorch_optimizer.LARS", mine, mine, False,
             "Tensors of fewer than two dimensions are stepped by SGD without decay and trust ratio."),
    ]


def lion() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "weight_decay": 0.1}
    undecayed = {**mine, "weight_decay": 0.0}
    optaxs = {"b1": 0.8, "b2": 0.95, "weight_decay": 0.1}
    return [
        case("lion", "lion_pytorch.Lion", mine, mine, True),
        case("lion", "lion_pytorch.Lion", {**mine, "decoupled_weight_decay": True}, {**mine, "decay": "independent"},
             True),
        case("lion", "lion_pytorch.Lion", {**mine, "decoupled_weight_decay": True}, {**mine, "decay": "independent"},
             False, "decoupled_weight_decay divides by the first learning rate, so decay still follows a schedule.",
             lrs=LRS),
        case("lion", "timm.optim.lion.Lion", mine, mine, True),
        case("lion", "timm.optim.lion.Lion", mine, mine, True, lrs=LRS),
        case("lion", "timm.optim.lion.Lion", {**mine, "corrected_weight_decay": True}, {**mine, "decay": "corrected"},
             True, lrs=LRS),
        case("lion", "timm.optim.lion.Lion", {**undecayed, "caution": True}, {**undecayed, "cautious": True}, False,
             "Scales what is kept by size / kept instead of size / (kept + 1)."),
        case("lion", "optimi.Lion", mine, mine, True),
        case("lion", "optimi.Lion", {**mine, "decouple_lr": True}, {**mine, "decay": "independent"}, True),
        case("lion", "optimi.Lion", {**mine, "decouple_lr": True}, {**mine, "decay": "independent"}, False,
             "decouple_lr decays by lr / max_lr * weight_decay, which still follows a schedule.", lrs=LRS),
        case("lion", "optax.lion", {**optaxs, "learning_rate": LRS}, mine, True, lrs=LRS),
        case("lion", "pytorch_optimizer.Lion", mine, mine, True),
        case("lion", "pytorch_optimizer.Lion", {**mine, "fixed_decay": True}, {**mine, "decay": "independent"}, True,
             lrs=LRS),
        case("lion", "pytorch_optimizer.Lion", {**mine, "weight_decouple": False}, {**mine, "decay": "coupled"}, True),
        case("lion", "pytorch_optimizer.Lion", {**undecayed, "cautious": True}, {**undecayed, "cautious": True}, True),
        case("lion", "pytorch_optimizer.Lion", {**mine, "cautious": True}, {**mine, "cautious": True}, True,
             "Decay is neither masked nor rescaled, as in the code of the paper's authors."),
    ]


def signum() -> list[Options]:
    mine = {"lr": LR, "momentum": 0.8, "weight_decay": 0.1}
    undecayed = {**mine, "weight_decay": 0.0}
    optaxs = {"learning_rate": LRS, "beta": 0.8}
    return [
        case("signum", "pytorch_optimizer.SignSGD", mine, mine, True),
        case("signum", "pytorch_optimizer.SignSGD", {**mine, "momentum": 0.0}, {**mine, "momentum": 0.0}, True),
        case("signum", "pytorch_optimizer.SignSGD", {**mine, "weight_decouple": False}, {**mine, "decay": "coupled"},
             True),
        case("signum", "optax.signum", optaxs, undecayed, True, lrs=LRS),
    ]


def adan() -> list[Options]:
    mine = {"lr": LR, "betas": B3, "eps": 0.05, "weight_decay": 0.5}
    undecayed = {**mine, "weight_decay": 0.0}
    optaxs = {"learning_rate": LR, "b1": 0.8, "b2": 0.7, "b3": 0.95, "eps": 0.05, "eps_root": 0.0}
    return [
        case("adan", "timm.optim.adan.Adan", mine, mine, True),
        case("adan", "timm.optim.adan.Adan", {**mine, "no_prox": True}, {**mine, "decay": "decoupled"}, True),
        case("adan", "timm.optim.adan.Adan", {**undecayed, "caution": True}, {**undecayed, "cautious": True}, False,
             "Only the part of the mean gradient is masked, not that of the differences; the scale is size / kept."),
        case("adan", "optimi.Adan", mine, mine, True, lrs=LRS),
        case("adan", "pytorch_optimizer.Adan", mine, mine, True),
        case("adan", "optax.adan", optaxs, undecayed, False,
             "Weighs the differences by 1 - b2, as the paper does, where the paper's b2 is the share of the new "
             "value; here b2 is the share of the past, so that the weight should be b2."),
        case("adan", "adan_pytorch.Adan", {**mine, "betas": (0.2, 0.3, 0.05)}, mine, False,
             "The first gradient enters no average, though the bias correction counts it, and the first step only "
             "decays; betas are shares of the new value."),
    ]


def adabelief() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1}
    undecayed = {**mine, "weight_decay": 0.0}
    amsgrad = {**mine, "amsgrad": True}
    quiet = {"print_change_log": False, "rectify": False}
    optaxs = {"learning_rate": LR, "b1": 0.8, "b2": 0.95, "eps": 0.02, "eps_root": 0.02}
    rectified = "Rectified as RAdam is, unless rectify is False."
    return [
        case("adabelief", "adabelief_pytorch.AdaBelief", {**mine, **quiet}, mine, True, "rectify had to be off."),
        case("adabelief", "adabelief_pytorch.AdaBelief", {**amsgrad, **quiet}, amsgrad, True),
        case("adabelief", "adabelief_pytorch.AdaBelief", {**mine, **quiet, "fixed_decay": True},
             {**mine, "decay": "independent"}, True),
        case("adabelief", "adabelief_pytorch.AdaBelief", {**mine, **quiet, "weight_decouple": False},
             {**mine, "decay": "coupled"}, True),
        case("adabelief", "adabelief_pytorch.AdaBelief", {**mine, "print_change_log": False}, mine, False, rectified),
        case("adabelief", "timm.optim.adabelief.AdaBelief", {**mine, "rectify": False}, mine, True, lrs=LRS),
        case("adabelief", "timm.optim.adabelief.AdaBelief", {**amsgrad, "rectify": False}, amsgrad, True),
        case("adabelief", "timm.optim.adabelief.AdaBelief", mine, mine, False, rectified),
        case("adabelief", "optax.adabelief", optaxs, undecayed, True, "eps_root had to be set to eps."),
        case("adabelief", "pytorch_optimizer.AdaBelief", mine, mine, True),
        case("adabelief", "pytorch_optimizer.AdaBelief", {**mine, "ams_bound": True}, amsgrad, True),
        case("adabelief", "torch_optimizer.AdaBelief", {**mine, "weight_decouple": True}, mine, True),
        case("adabelief", "torch_optimizer.AdaBelief", {**amsgrad, "weight_decouple": True}, amsgrad, False,
             "With amsgrad, eps is added to the maximum at each step and never to the average itself."),
    ]


def yogi() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1, "initial_accumulator_value": 0.01}
    undecayed = {**mine, "weight_decay": 0.0}
    theirs = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1, "initial_accumulator": 0.01}
    optaxs = {"learning_rate": LR, "b1": 0.8, "b2": 0.95, "eps": 0.02}
    return [
        case("yogi", "optax.scale_by_yogi", {**optaxs, "initial_accumulator_value": 0.01}, undecayed, True),
        case("yogi", "optax.yogi", optaxs, {**undecayed, "initial_accumulator_value": 1e-6}, True),
        case("yogi", "pytorch_optimizer.Yogi", theirs, mine, True),
        case("yogi", "pytorch_optimizer.Yogi", {**theirs, "weight_decouple": False}, {**mine, "decay": "coupled"},
             True),
        case("yogi", "torch_optimizer.Yogi", {**theirs, "weight_decay": 0.0}, undecayed, True),
        case("yogi", "torch_optimizer.Yogi", theirs, mine, False, "Decay is L2, added to the gradient."),
        case("yogi", "torch_optimizer.Yogi", theirs, {**mine, "decay": "coupled"}, True),
    ]


def laprop() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1}
    undecayed = {**mine, "weight_decay": 0.0}
    bare = {**undecayed, "eps": 0.0}
    loop = {"foreach": False}
    tiny = "1e-15 is added to the mean square under the root; eps was set to 0."
    return [
        case("laprop", "timm.optim.laprop.LaProp", undecayed, undecayed, True),
        case("laprop", "timm.optim.laprop.LaProp", mine, mine, False,
             "Decay comes after the step, so that it shrinks the step just taken too."),
        case("laprop", "timm.optim.laprop.LaProp", undecayed, undecayed, False,
             "The learning rate enters the average with its gradient and is debiased there, so that a change of it "
             "shows only after a while.", lrs=LRS),
        case("laprop", "timm.optim.laprop.LaProp", {**undecayed, "caution": True}, {**undecayed, "cautious": True},
             False, "Scales what is kept by size / kept instead of size / (kept + 1)."),
        case("laprop", "pytorch_optimizer.LaProp", {**bare, **loop}, bare, True, tiny, rtol=1e-6),
        case("laprop", "pytorch_optimizer.LaProp", {**bare, **loop, "ams_bound": True}, {**bare, "amsgrad": True},
             True, tiny, rtol=1e-6),
        case("laprop", "pytorch_optimizer.LaProp", {**bare, **loop, "cautious": True}, {**bare, "cautious": True},
             True, tiny, rtol=1e-6),
        case("laprop", "pytorch_optimizer.LaProp", {**undecayed, **loop}, undecayed, False,
             "eps is divided by the root of the bias correction together with the root mean square."),
        case("laprop", "pytorch_optimizer.LaProp", {**mine, **loop, "eps": 0.0, "weight_decouple": False},
             {**mine, "eps": 0.0, "decay": "coupled"}, False,
             "Coupled decay is added to the gradient when the step has been taken already, and has no effect."),
        case("laprop", "heavyball.LaProp", {**bare, "storage_dtype": "float64"}, bare, True,
             "eps is not passed on: whatever it is, the root is at least 1e-8, and nothing is added to it."),
        case("laprop", "heavyball.LaProp", {**mine, "eps": 0.0, "storage_dtype": "float64"}, {**mine, "eps": 0.0},
             True),
        case("laprop", "heavyball.LaProp", {**mine, "storage_dtype": "float64"}, mine, False,
             "eps is ignored for 1e-8, a lower bound of the root."),
    ]


def adopt() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.1, "weight_decay": 0.1}
    undecayed = {**mine, "weight_decay": 0.0}
    timms = {**mine, "decoupled": True, "clip_exp": 0.25}
    late = "lambda step: (step - 1) ** 0.25"
    optaxs = {"learning_rate": LR, "b1": 0.8, "b2": 0.95, "eps": 0.1}
    return [
        case("adopt", "timm.optim.adopt.Adopt", timms, mine, True, "clip_exp had to be set to 0.25.", lrs=LRS),
        case("adopt", "timm.optim.adopt.Adopt", {**timms, "decoupled": False}, {**mine, "decay": "coupled"}, True),
        case("adopt", "timm.optim.adopt.Adopt", {**mine, "decoupled": True}, mine, False,
             "Clips at t ** 0.333 unless clip_exp is set."),
        case("adopt", "timm.optim.adopt.Adopt", {**timms, "caution": True}, {**mine, "cautious": True}, False,
             "Scales what is kept by size / kept instead of size / (kept + 1)."),
        case("adopt", "optax.contrib.adopt", optaxs, undecayed, True),
        case("adopt", "pytorch_optimizer.ADOPT", {**undecayed, "clip_lambda": late}, undecayed, True,
             "clip_lambda is given steps counted from 1 and had to be set."),
        case("adopt", "pytorch_optimizer.ADOPT", {**undecayed, "clip_lambda": late, "cautious": True},
             {**undecayed, "cautious": True}, True),
        case("adopt", "pytorch_optimizer.ADOPT", undecayed, undecayed, False,
             "The clipping bound counts steps from 1: the step after the first is clipped at 2 ** 0.25."),
        case("adopt", "pytorch_optimizer.ADOPT", {**mine, "weight_decouple": True, "clip_lambda": late}, mine, False,
             "Decays at the first step too, where nothing else moves."),
        case("adopt", "adam_atan2_pytorch.adopt.Adopt", undecayed, undecayed, True),
        case("adopt", "adam_atan2_pytorch.adopt.Adopt", {**mine, "decoupled_wd": False}, mine, False,
             "Decays at the first step too, where nothing else moves."),
        case("adopt", "heavyball.ADOPT", {**undecayed, "storage_dtype": "float64"}, undecayed, False,
             "Nothing is clipped, and both averages are debiased."),
    ]


def ademamix() -> list[Options]:
    mine = {"lr": LR, "betas": (0.8, 0.95, 0.99), "eps": 0.02, "weight_decay": 0.1, "alpha": 3.0}
    undecayed = {**mine, "weight_decay": 0.0}
    theirs = {**mine, "weight_decouple": True}
    optaxs = {"learning_rate": LR, "b1": 0.8, "b2": 0.95, "b3": 0.99, "eps": 0.02, "alpha": 3.0, "weight_decay": 0.1}
    heavys = {**mine, "eps": 0.0, "storage_dtype": "float64"}
    return [
        case("ademamix", "pytorch_optimizer.AdEMAMix", theirs, mine, True),
        case("ademamix", "pytorch_optimizer.AdEMAMix", {**theirs, "t_alpha_beta3": 12.0}, {**mine, "warmup": 12}, True),
        case("ademamix", "pytorch_optimizer.AdEMAMix", {**theirs, "t_alpha_beta3": 40.0}, {**mine, "warmup": 40}, True),
        case("ademamix", "pytorch_optimizer.AdEMAMix", {**undecayed, "cautious": True},
             {**undecayed, "cautious": True}, False, "Only the part of the fast average is masked."),
        case("ademamix", "optax.contrib.ademamix", optaxs, mine, True),
        case("ademamix", "optax.contrib.ademamix", {**optaxs, "learning_rate": LRS}, mine, True, lrs=LRS),
        case("ademamix", "heavyball.AdEMAMix", heavys, {**mine, "eps": 0.0}, True,
             "eps, which bounds the root from below instead of being added, was set to 0."),
        case("ademamix", "heavyball.AdEMAMix", {**heavys, "alpha_warmup": 12, "beta3_warmup": 12},
             {**mine, "eps": 0.0, "warmup": 12}, True,
             "1e-8 is added to beta in the logarithms of the warm-up.", rtol=1e-4),
        case("ademamix", "heavyball.AdEMAMix", {**heavys, "eps": 0.1}, {**mine, "eps": 0.1}, False,
             "eps bounds the root from below instead of being added to it."),
    ]


def stableadamw() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1}
    bare = {**mine, "eps": 0.0, "weight_decay": 0.0}
    legacy = "timm.optim.adamw.AdamWLegacy"
    return [
        case("stableadamw", "optimi.StableAdamW", mine, mine, True),
        case("stableadamw", "optimi.StableAdamW", mine, mine, True, lrs=LRS),
        case("stableadamw", "pytorch_optimizer.StableAdamW", mine, mine, True),
        case("stableadamw", legacy, {**bare, "clipping_threshold": 1.0}, bare, True, "eps and decay were set to 0."),
        case("stableadamw", legacy, {**mine, "clipping_threshold": 1.0}, mine, False,
             "The root mean square is that of g / (sqrt(u) + eps), and decay keeps the learning rate as it is."),
    ]


def adamatan2() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "weight_decay": 0.1, "a": 1.2, "b": 0.7}
    undecayed = {**mine, "weight_decay": 0.0}
    peer, foreach = "adam_atan2_pytorch.AdamAtan2", "adam_atan2_pytorch.foreach.AdamAtan2"
    initial = {**undecayed, "regen_reg_rate": 0.1}
    return [
        case("adamatan2", peer, mine, mine, True, lrs=LRS),
        case("adamatan2", peer, {**mine, "decoupled_wd": True}, {**mine, "decay": "independent"}, True),
        case("adamatan2", peer, initial, {**mine, "decay": "initial"}, True, lrs=LRS),
        case("adamatan2", peer, {**mine, "cautious_wd": True}, {**mine, "cautious_decay": True}, True,
             "The share that decay leaves is computed in float32.", precision="float32"),
        case("adamatan2", peer, {**undecayed, "cautious_factor": 0.0}, {**undecayed, "cautious": True}, False,
             "Scales what is kept by size / kept instead of size / (kept + 1)."),
        case("adamatan2", foreach, mine, mine, True),
        case("adamatan2", foreach, initial, {**mine, "decay": "initial"}, False,
             "The pull to the start is lr / first lr * rate, so that it does not shrink with a smaller learning rate."),
    ]


def mars() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1, "gamma": 0.1}
    timms = {**mine, "optimize_1d": True}
    plain = {**mine, "eps": 0.0, "weight_decay": 0.0, "gamma": 0.0}
    return [
        case("mars", "timm.optim.mars.Mars", timms, mine, True, "optimize_1d had to be set."),
        case("mars", "timm.optim.mars.Mars", timms, mine, True, lrs=LRS),
        case("mars", "timm.optim.mars.Mars", {**timms, "caution": True}, {**mine, "cautious": True}, False,
             "Scales what is kept by size / kept instead of size / (kept + 1)."),
        case("mars", "timm.optim.mars.Mars", mine, mine, False,
             "Tensors of fewer than two dimensions are stepped by AdamW unless optimize_1d is set."),
        case("mars", "pytorch_optimizer.MARS", {**timms, "eps": 0.0}, {**mine, "eps": 0.0}, False,
             "The gradient before the first is 0, so that the first difference is the gradient itself."),
        case("mars", "pytorch_optimizer.MARS", {**timms, "gamma": 0.0}, {**mine, "gamma": 0.0}, False,
             "eps is divided by the root of the bias correction together with the root mean square."),
        case("mars", "pytorch_optimizer.MARS", {**plain, "optimize_1d": True, "ams_bound": True},
             {**plain, "amsgrad": True}, True, "1e-15 is added to the mean square under the root.", rtol=1e-6),
        case("mars", "pytorch_optimizer.MARS", {**plain, "optimize_1d": True, "cautious": True},
             {**plain, "cautious": True}, True, "1e-15 is added to the mean square under the root.", rtol=1e-6),
    ]


def madgrad() -> list[Options]:
    mine = {"lr": LR, "momentum": 0.8, "weight_decay": 0.1, "eps": 0.02}
    still = {**mine, "momentum": 0.0}
    optaxs = {"learning_rate": LR, "momentum": 0.8, "weight_decay": 0.1, "eps": 0.02}
    return [
        case("madgrad", "madgrad.MADGRAD", mine, mine, True),
        case("madgrad", "madgrad.MADGRAD", still, still, True),
        case("madgrad", "madgrad.MADGRAD", mine, mine, True, lrs=LRS),
        case("madgrad", "timm.optim.madgrad.MADGRAD", mine, mine, True),
        case("madgrad", "pytorch_optimizer.MADGRAD", mine, mine, True),
        case("madgrad", "torch_optimizer.MADGRAD", mine, mine, True),
        case("madgrad", "optax.contrib.madgrad", optaxs, mine, True,
             "The root of the step's number is computed in float32.", precision="float32"),
    ]


def grams() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1}
    bare = {**mine, "eps": 0.0}
    return [
        case("grams", "grams.Grams", bare, bare, True, "eps was set to 0."),
        case("grams", "grams.Grams", bare, bare, True, lrs=LRS),
        case("grams", "grams.Grams", mine, mine, False,
             "Bias correction is in the learning rate, and eps is added to a root without it."),
        case("grams", "pytorch_optimizer.Grams", mine, mine, True),
        case("grams", "pytorch_optimizer.Grams", {**mine, "weight_decouple": False}, {**mine, "decay": "coupled"},
             False, "Coupled decay is added to the gradient when the step has been computed, and has no effect."),
    ]


def adamc() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.3}
    bare = {**mine, "eps": 0.0}
    heavys = {**bare, "storage_dtype": "float64"}
    return [
        case("adamc", "timm.optim.adamw.AdamWLegacy", {**mine, "corrected_weight_decay": True}, mine, True, lrs=LRS),
        case("adamc", "timm.optim.adamw.AdamWLegacy", {**mine, "corrected_weight_decay": True, "amsgrad": True},
             {**mine, "amsgrad": True}, True, lrs=LRS),
        case("adamc", "timm.optim.adamw.AdamWLegacy", mine, mine, False,
             "Decay is plain unless corrected_weight_decay is set.", lrs=LRS),
        case("adamc", "pytorch_optimizer.AdamC", {**bare, "normalized": True}, bare, True,
             "normalized had to be set; 1e-15 is added to the mean square under the root.", lrs=LRS, rtol=1e-6),
        case("adamc", "pytorch_optimizer.AdamC", {**mine, "normalized": True}, mine, False,
             "eps is divided by the root of the bias correction together with the root mean square.", lrs=LRS),
        case("adamc", "heavyball.AdamC", {**heavys, "max_lr": LR}, bare, True, "eps was set to 0.", lrs=LRS),
        case("adamc", "heavyball.AdamC", {**heavys, "max_lr": 2 * LR}, {**bare, "max_lr": 2 * LR}, True, lrs=LRS),
        case("adamc", "heavyball.AdamC", {**heavys, "eps": 0.1, "max_lr": LR}, {**bare, "eps": 0.1}, False,
             "eps bounds the root from below instead of being added to it.", lrs=LRS),
    ]


def novograd() -> list[Options]:
    mine = {"lr": LR, "betas": B2, "eps": 0.1, "weight_decay": 0.1}
    bare = {**mine, "eps": 0.0}
    optaxs = {"b1": 0.8, "b2": 0.95, "eps": 0.1, "weight_decay": 0.1}
    decoupled, nvidia = {**bare, "decoupled_decay": True}, "timm.optim.nvnovograd.NvNovoGrad"
    first = "eps is added at the first step too, where the paper divides by the norm alone."
    return [
        case("novograd", nvidia, bare, bare, True),
        case("novograd", nvidia, mine, mine, True, first),
        case("novograd", nvidia, decoupled, {**bare, "decay": "decoupled"}, True, lrs=LRS),
        case("novograd", nvidia, {**decoupled, "corrected_weight_decay": True}, {**bare, "decay": "corrected"}, True,
             lrs=LRS),
        case("novograd", "torch_optimizer.NovoGrad", mine, mine, True, first),
        case("novograd", "pytorch_optimizer.NovoGrad", mine, mine, True, first),
        case("novograd", "optax.novograd", {**optaxs, "eps": 0.0, "learning_rate": LRS}, bare, True, lrs=LRS),
        case("novograd", "optax.novograd", {**optaxs, "learning_rate": LR}, mine, True, first),
    ]


def prodigy() -> list[Options]:
    mine = {"lr": 0.8, "betas": B2, "eps": 0.02, "weight_decay": 0.1, "d0": 0.01, "d_coef": 1.3}
    corrected = {**mine, "bias_correction": True}
    theirs = {**mine, "use_bias_correction": True}
    optaxs = {"learning_rate": 0.8, "betas": B2, "eps": 0.02, "weight_decay": 0.1, "estim_lr0": 0.01}
    lrs = [round(16 * lr, 6) for lr in LRS]
    return [
        case("prodigy", "prodigyopt.Prodigy", mine, mine, True),
        case("prodigy", "prodigyopt.Prodigy", mine, mine, True, zeros=True),
        case("prodigy", "prodigyopt.Prodigy", mine, mine, True, lrs=lrs),
        case("prodigy", "prodigyopt.Prodigy", {**theirs, "growth_rate": 1.1}, {**corrected, "growth_rate": 1.1}, True),
        case("prodigy", "prodigyopt.Prodigy", {**mine, "decouple": False}, {**mine, "decay": "coupled"}, True),
        case("prodigy", "prodigyopt.Prodigy", {**mine, "safeguard_warmup": True}, mine, False,
             "safeguard_warmup leaves the learning rate out of the denominator of d."),
        case("prodigy", "prodigyopt.prodigy_reference.ProdigyReference", theirs, corrected, True),
        case("prodigy", "pytorch_optimizer.Prodigy", mine, mine, True),
        case("prodigy", "pytorch_optimizer.Prodigy", corrected, corrected, True),
        case("prodigy", "optax.contrib.prodigy", {**optaxs, "estim_lr_coef": 1.3}, corrected, True),
    ]


def dadaptadam() -> list[Options]:
    mine = {"lr": 0.8, "betas": B2, "eps": 0.02, "weight_decay": 0.1, "d0": 0.01}
    corrected = {**mine, "bias_correction": True}
    theirs = {**mine, "decouple": True}
    optaxs = {"learning_rate": 0.8, "betas": B2, "eps": 0.02, "weight_decay": 0.1, "estim_lr0": 0.01}
    lrs = [round(16 * lr, 6) for lr in LRS]
    peer = "dadaptation.DAdaptAdam"
    return [
        case("dadaptadam", peer, theirs, mine, True),
        case("dadaptadam", peer, theirs, mine, True, lrs=lrs),
        case("dadaptadam", peer, {**theirs, "use_bias_correction": True}, corrected, True),
        case("dadaptadam", peer, {**theirs, "growth_rate": 1.1}, {**mine, "growth_rate": 1.1}, True),
        case("dadaptadam", peer, mine, {**mine, "decay": "coupled"}, True),
        case("dadaptadam", "pytorch_optimizer.DAdaptAdam", {**corrected, "weight_decouple": True}, corrected, True),
        case("dadaptadam", "optax.contrib.dadapt_adamw", optaxs, corrected, True),
    ]


def dog() -> list[Options]:
    mine = {"lr": 1.5, "reps_rel": 0.01, "eps": 0.5, "weight_decay": 0.1}
    optaxs = {"learning_rate": 1.5, "init_step": ("heuristic", 0.01), "eps": 0.5, "weight_decay": 0.1}
    return [
        case("dog", "dog.DoG", mine, mine, True),
        case("dog", "dog.DoG", mine, mine, True, zeros=True),
        case("dog", "dog.DoG", mine, mine, True, lrs=[round(30 * lr, 6) for lr in LRS]),
        case("dog", "dog.LDoG", mine, mine, False, "Distances and gradients are summed over each tensor, not all."),
        case("dog", "optax.contrib.dog", optaxs, mine, True),
        case("dog", "optax.contrib.dog", {**optaxs, "init_step": ("distance", 0.01)}, mine, False,
             "The first distance is not multiplied by 1 + |x|."),
    ]


def schedulefree() -> list[Options]:
    sgd = {"lr": LR, "momentum": 0.8, "weight_decay": 0.1}
    warm = {"warmup_steps": 6, "r": 0.5, "weight_lr_power": 1.5}
    adamw = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1}
    loud = {**adamw, "silent_sgd_phase": False}
    mid = {**adamw, "r": 0.5, "weight_lr_power": 1.5}
    optaxs = {"learning_rate": LR, "b1": 0.8, "weight_decay": 0.1}
    optaxa = {**optaxs, "b2": 0.95, "eps": 0.02}
    bare = {**adamw, "eps": 0.0}
    reference = "schedulefree.sgd_schedulefree_reference.SGDScheduleFreeReference"
    decayless = {**adamw, "weight_decay": 0.0}
    lag = "The inner optimizer's warm-up begins a step later than that of the weights of the average."
    s, a, r = "schedulefreesgd", "schedulefreeadamw", "schedulefreeradam"
    return [
        case(s, "schedulefree.SGDScheduleFree", sgd, sgd, True),
        case(s, "schedulefree.SGDScheduleFree", {**sgd, **warm}, {**sgd, **warm}, True),
        case(s, "schedulefree.SGDScheduleFree", {**sgd, **warm}, {**sgd, **warm}, True, lrs=LRS),
        case(s, reference, {**sgd, **warm}, {**sgd, **warm}, True),
        case(s, "pytorch_optimizer.ScheduleFreeSGD", {**sgd, **warm}, {**sgd, **warm}, True),
        case(s, "optax.contrib.schedule_free_sgd", optaxs, sgd, True),
        case(s, "optax.contrib.schedule_free_sgd", {**optaxs, "warmup_steps": 6}, {**sgd, "warmup_steps": 6}, False,
             lag),
        case(a, "schedulefree.AdamWScheduleFree", adamw, adamw, True),
        case(a, "schedulefree.AdamWScheduleFree", {**adamw, **warm}, {**adamw, **warm}, True),
        case(a, "schedulefree.AdamWScheduleFree", {**adamw, **warm}, {**adamw, **warm}, True, lrs=LRS),
        case(a, "schedulefree.AdamWScheduleFreeReference", {**adamw, **warm}, {**adamw, **warm}, True),
        case(a, "schedulefree.AdamWScheduleFreeReference", {**adamw, "decay_at_z": True}, adamw, False,
             "decay_at_z decays the weights without averaging, z, by themselves."),
        case(a, "schedulefree.AdamWScheduleFreePaper", adamw, adamw, False,
             "The root of the second bias correction multiplies the learning rate, so that eps is added to a root "
             "without it, and decay and the weights of the average follow it."),
        case(a, "pytorch_optimizer.ScheduleFreeAdamW", {**adamw, **warm}, {**adamw, **warm}, True,
             "1e-15 is added to the debiased mean square under the root.", rtol=1e-6),
        case(a, "optax.contrib.schedule_free_adamw", optaxa, adamw, True),
        case(a, "optax.contrib.schedule_free_adamw", {**optaxa, "warmup_steps": 6}, {**adamw, "warmup_steps": 6},
             False, lag),
        case(a, "heavyball.SFAdamW", {**bare, "storage_dtype": "float64"}, bare, True,
             "eps, which bounds the root from below instead of being added, was set to 0."),
        case(r, "schedulefree.RAdamScheduleFree", adamw, adamw, True),
        case(r, "schedulefree.RAdamScheduleFree", mid, mid, True, lrs=LRS),
        case(r, "schedulefree.RAdamScheduleFree", loud, loud, True),
        case(r, "pytorch_optimizer.ScheduleFreeRAdam", mid, mid, True),
        case(r, "pytorch_optimizer.ScheduleFreeRAdam", {**decayless, "silent_sgd_phase": False},
             {**decayless, "silent_sgd_phase": False}, False,
             "The steps of SGD before the rectified ones take a learning rate of 1 whatever lr is."),
    ]


def around() -> list[Options]:
    """Cautious, cautious decay, corrected decay and Lookahead around the rules that there have been before."""
    mine = {"lr": LR, "betas": B2, "eps": 0.02, "weight_decay": 0.1}
    undecayed = {**mine, "weight_decay": 0.0}
    bare = {**mine, "eps": 0.0, "weight_decay": 0.5}
    heavys = {**bare, "storage_dtype": "float64"}
    legacy = "timm.optim.adamw.AdamWLegacy"
    sgd = {"lr": LR, "momentum": 0.8}
    ahead = {"lookahead": 5, "lookahead_alpha": 0.3}
    inner = {"optimizer": {"peer": "torch.optim.SGD", **sgd}, "k": 5, "alpha": 0.3}
    adam = {"peer": "optax.adam", "learning_rate": LR, "b1": 0.8, "b2": 0.95, "eps": 0.02}
    synced = {"sync_period": 5, "slow_step_size": 0.3}
    optaxs = {"peer": "optax.sgd", "learning_rate": LR, "momentum": 0.8}
    return [
        case("adamw", legacy, {**undecayed, "caution": True}, {**undecayed, "cautious": True}, False,
             "Scales what is kept by size / kept instead of size / (kept + 1)."),
        case("adamw", legacy, {**mine, "corrected_weight_decay": True}, {**mine, "decay": "corrected"}, True, lrs=LRS),
        case("adamw", "heavyball.AdamW", {**heavys, "cautious_weight_decay": True}, {**bare, "cautious_decay": True},
             True, "eps, which bounds the root from below instead of being added, was set to 0."),
        case("adamw", "heavyball.AdamW", {**heavys, "weight_decay": 0.0, "caution": True},
             {**bare, "weight_decay": 0.0, "cautious": True}, False,
             "Scales what is kept by size / kept instead of size / (kept + 1)."),
        case("adam", "optax.lookahead", {"fast_optimizer": adam, **synced}, {**undecayed, **ahead}, True),
        case("sgd", "optax.lookahead", {"fast_optimizer": optaxs, **synced}, {**sgd, **ahead}, True),
        case("sgd", "pytorch_optimizer.Lookahead", inner, {**sgd, **ahead}, True),
        case("sgd", "torch_optimizer.Lookahead", inner, {**sgd, **ahead}, False,
             "The slow weights begin as those after the first step, and meet the fast ones at steps 6, 11, 16."),
        case("sgd", "timm.optim.lookahead.Lookahead", {"base_optimizer": inner["optimizer"], "k": 5, "alpha": 0.3},
             {**sgd, **ahead}, False, "The slow weights begin as those after step 5, which are left as they are."),
    ]


FAMILIES = (
    lamb, lars, lion, signum, adan, adabelief, yogi, laprop, adopt, ademamix, stableadamw, adamatan2, mars, madgrad,
    grams, adamc, novograd, prodigy, dadaptadam, dog, schedulefree, around,
)
# fmt: on


def resolve(peer: str) -> Any:
    module, name = peer.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def understood(options: Options) -> Options:
    """The options with functions for strings that spell one."""
    spelled = {name: value for name, value in options.items() if isinstance(value, str) and value[:6] == "lambda"}
    return {**options, **{name: eval(value) for name, value in spelled.items()}}


def lists(arrays: Any) -> list[Any]:
    return [np.asarray(array, dtype=np.float64).tolist() for array in arrays]


def step_torch(entry: Options, params: Arrays, grads: list[Arrays]) -> Options:
    tensors = [torch.nn.Parameter(torch.tensor(array)) for array in params]

    def build(peer: str, **options: Any) -> Any:
        inner = [build(**options.pop(name)) for name in list(options) if isinstance(options[name], dict)]
        return resolve(peer)(*(inner or [tensors]), **understood(options))

    optimizer = build(entry["peer"], **entry["peer_options"])
    if hasattr(optimizer, "train"):
        optimizer.train()
    result: Options = {}
    for step, arrays in enumerate(grads):
        for group in optimizer.param_groups:
            group["lr"] = entry["lrs"][step] if "lrs" in entry else group["lr"]
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.grad = torch.tensor(array)
        optimizer.step()
        assert all(tensor.dtype == torch.float64 for tensor in tensors)
        result["params"] = lists(tensor.detach() for tensor in tensors)
        result.setdefault("first", result["params"])
    if hasattr(optimizer, "eval"):
        optimizer.eval()
        result["eval"] = lists(tensor.detach() for tensor in tensors)
    return result


def step_optax(entry: Options, params: Arrays, grads: list[Arrays]) -> Options:
    def build(peer: str, **options: Any) -> Any:
        options = {name: build(**value) if isinstance(value, dict) else value for name, value in options.items()}
        if isinstance(rates := options.get("learning_rate"), list):
            options["learning_rate"] = lambda count: jax.numpy.asarray(rates)[count]
        if ".scale_by_" in peer:
            rate = options.pop("learning_rate")
            return optax.chain(resolve(peer)(**options), optax.scale_by_learning_rate(rate))
        return resolve(peer)(**options)

    optimizer = build(entry["peer"], **entry["peer_options"])
    tensors: Any = [jax.numpy.asarray(array) for array in params]
    if entry["peer"] == "optax.lookahead":
        tensors = optax.LookaheadParams.init_synced(tensors)
    state = optimizer.init(tensors)
    result: Options = {}
    for arrays in grads:
        updates, state = optimizer.update([jax.numpy.asarray(array) for array in arrays], state, tensors)
        tensors = optax.apply_updates(tensors, updates)
        fast = tensors.fast if entry["peer"] == "optax.lookahead" else tensors
        assert all(tensor.dtype == np.float64 for tensor in fast)
        result["params"] = lists(fast)
        result.setdefault("first", result["params"])
    if "schedule_free" in entry["peer"]:
        result["eval"] = lists(optax.contrib.schedule_free_eval_params(state, tensors))
    return result


def prepare() -> None:
    """Float64 wherever there is a choice, and imports that do without what optimizers do not need."""
    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.submodule_search_locations is not None
    for name, folder in ("timm", ""), ("timm.optim", "optim"):  # their own import torchvision
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(Path(path, folder)) for path in spec.submodule_search_locations]
    sys.modules["tensorboardX"] = types.ModuleType("tensorboardX")  # pytorch_lamb only annotates with it
    vars(sys.modules["tensorboardX"])["SummaryWriter"] = None
    importlib.import_module("heavyball").utils.compile_mode = None


def main() -> None:
    prepare()
    distributions = importlib.metadata.packages_distributions()
    entries = []
    for family in FAMILIES:
        for entry in family():
            params, grads = problem(SEED, zeros=entry.get("zeros", False))
            step = step_optax if entry["peer"].startswith("optax.") else step_torch
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                numbers = step(entry, params, grads)
            distribution = distributions[entry["peer"].split(".")[0]][0]
            entries.append({**entry, "version": importlib.metadata.version(distribution), **numbers})
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    text = f'{{"seed":{SEED},"entries":[\n{lines}\n]}}\n'
    assert "NaN" not in text and "Infinity" not in text
    Path(__file__).with_name("trajectories.json").write_text(text)
    print(f"{len(entries)} trajectories of {len({entry['peer'] for entry in entries})} peers, {len(text)} bytes")


if __name__ == "__main__":
    main()
