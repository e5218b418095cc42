"""Formats and services in the specifications that `steprule compare` takes."""

from __future__ import annotations

import pytest
import torch

from steprule.compare.errors import UsageError
from steprule.compare.spec import check, parse


@pytest.mark.parametrize(
    "text",
    [
        "adamw:lr=0.001,states=8bit,weights=24bit",
        "sgd:lr=0.1,states=bfloat16",
        "adamw:dtype=bfloat16",
        "torch.Adam:dtype=float16",
        "sgd:lr=0.1,clip=1.0,nonfinite=skip,average=0.9",
    ],
)
def test_formats_are_settings_without_quotes(text):
    spec = parse(text)
    assert str(spec) == text and parse(str(spec)) == spec
    assert spec.with_lr(0.5).label == spec.label
    check(spec, torch.nn.Linear(64, 4))


def test_weights_bring_the_model_to_bfloat16():
    model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    optimizer = parse("adamw:weights=24bit,states=8bit").build(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    output = model(torch.ones(3, 64))
    assert output.dtype == torch.float32
    output.sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["exp_avg_8bit"].dtype == torch.int8
    plain = torch.nn.Linear(3, 3)
    parse("adamw:states=8bit").build(plain)
    assert plain.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adamw:states=8bits", "states=8bits; did you mean '8bit'"),
        ("adamw:weights=stochastics", "did you mean 'stochastic'"),
        ("adamw:dtype=int8", "dtype=int8"),
        ("adamw:nonfinite=skipp", "did you mean 'skip'"),
        ("torch.AdamW:states=8bit", "takes no 'states'"),
    ],
)
def test_what_is_no_format_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse(text)
