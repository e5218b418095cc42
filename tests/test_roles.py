"""Which parameters are matrices, and how each is seen as such."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from typer.testing import CliRunner

import steprule
from steprule.cli import app
from steprule.layers import ROLES, View, roles
from steprule.layers.known import BARE, PARTS

# Views


def of(words, shape):
    """The matrices of a tensor that holds the numbers of its elements."""
    return View(words).matrices(torch.arange(torch.Size(shape).numel()).reshape(shape))


def test_views_say_in_words_which_rows_belong_together():
    whole = torch.arange(24).reshape(6, 4)
    assert of("matrix", (6, 4))[0].equal(whole)
    assert of("transpose", (6, 4))[0].equal(whole.T)
    assert of("rows 3", (6, 4))[0].equal(torch.stack([whole[:2], whole[2:4], whole[4:]]))
    assert of("columns 2", (6, 4))[0].equal(torch.stack([whole[:, :2], whole[:, 2:]]))
    assert of("interleaved 2", (6, 4))[0].equal(torch.stack([whole[::2], whole[1::2]]))
    for part, rows in zip(of("split 1 3 2", (6, 4)), (whole[:1], whole[1:4], whole[4:]), strict=True):
        assert part.equal(rows)
    stack = whole.reshape(2, 3, 4)
    assert of("stack", (2, 3, 4))[0].equal(stack)
    assert of("stack, transpose, interleaved 2", (2, 3, 4))[0].equal(
        torch.stack([stack.mT[:, ::2], stack.mT[:, 1::2]], 1)
    )
    assert of("flatten", (2, 3, 4))[0].equal(whole.reshape(2, 12))
    assert of("flatten, rows 2, transpose", (2, 3, 4))[0].equal(
        torch.stack([whole[:3].reshape(1, 12).T, whole[3:].reshape(1, 12).T])
    )


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ("matrix", (6, 4)), ("transpose, rows 2", (6, 4)), ("columns 2", (6, 4)), ("split 1 5", (6, 4)), ("interleaved 3", (6, 4)),
        ("flatten", (6, 4, 3, 3)), ("flatten, rows 2, transpose", (6, 4, 3, 3)), ("stack, transpose, interleaved 2", (3, 6, 4)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels_last", [False, True])
def test_matrices_are_in_the_memory_of_the_tensor_and_hold_each_element_once(words, shape, channels_last):
    tensor = torch.zeros(shape)
    tensor = tensor.to(memory_format=torch.channels_last) if channels_last and len(shape) == 4 else tensor
    made = View(words).matrices(tensor)
    for one in made:
        one += 1
    assert tensor.eq(1).all()
    assert [(one.shape[:-2].numel(), *one.shape[-2:]) for one in made] == View(words).sizes(shape)


def test_columns_are_in_the_order_of_memory_and_strides_without_one_are_refused():
    grad = torch.randn(4, 3, 2, 2)
    (seen,) = View("flatten").matrices(grad.to(memory_format=torch.channels_last))
    assert seen.equal(grad.permute(0, 2, 3, 1).reshape(4, 12))
    with pytest.raises(ValueError, match=r"view 'flatten' of shape \(4, 3, 1, 2\): strides \(12, 4, 2, 1\) make no"):
        View("flatten").matrices(grad[:, :, :1])


def test_a_view_is_its_words():
    view = View(" stack ,transpose,  rows  2 ")
    assert str(view) == "stack, transpose, rows 2"
    assert pickle.loads(pickle.dumps(view)) == View(json.loads(json.dumps(str(view)))) == view
    assert len({view, View("stack, transpose, rows 2")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.words = "matrix"


@pytest.mark.parametrize(
    ("words", "shape", "message"),
    [
        ("row 3", (6, 4), "view 'row 3': 'row 3' is no step; use 'matrix', 'stack',"),
        ("rows 0", (6, 4), "'rows 0' is no step"),
        ("", (6, 4), "'' is no step"),
        ("rows 2, flatten", (6, 4), "'flatten' can only be the first step"),
        ("rows 4", (6, 4), r"view 'rows 4' of shape \(6, 4\): 6 rows are not 4 equal blocks"),
        ("columns 3", (6, 4), "4 columns are not 3 equal blocks"),
        ("split 2 3", (6, 4), r"2 \+ 3 = 5 is not its number of rows, 6"),
        ("matrix", (6, 4, 2), r"needs two axes, not shape \(6, 4, 2\); begin with \"stack\" or \"flatten\""),
        ("stack", (6, 4), r"needs three or more axes, not shape \(6, 4\)"),
        ("flatten", (6,), r"needs two or more axes, not shape \(6,\)"),
    ],
)
def test_what_does_not_fit_is_refused(words, shape, message):
    with pytest.raises(ValueError, match=message):
        View(words).matrices(torch.zeros(shape))


def test_who_says_what_the_first_or_last_matrix_is_has_no_other_guessed():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    plain = {row.name: row.role for row in roles(model) if row.role != "vector"}
    assert plain == {"0.weight": "input", "1.weight": "hidden", "2.weight": "hidden", "3.weight": "head"}
    for first, last in (("input", "head"), ("hidden", "hidden"), ("adamw", "adamw")):
        table = roles(model, overrides={"0.weight": first, "3.weight": last})
        assert [row.name for row in table.matrices if row.name not in ("0.weight", "3.weight")] == [
            "1.weight",
            "2.weight",
        ]
        assert not table.notes


# Models that mimic what has been decided wrongly


class Of(nn.Module):
    """Modules and parameters by name; runs the modules one after another."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


def named(package, name, base=Of, **more):
    """A class as one of another package is called; it runs its own forward."""
    module, _, cls = f"{package}.{name}".rpartition(".")
    return type(cls, (base,), {"forward": lambda self, x: x, **more, "__module__": module, "__qualname__": cls})


def seen(table):
    return {row.name: f"{row.role}: {row.view}" if row.view else row.role for row in table}


def blocks(width=8, count=2):
    return nn.Sequential(
        *[Of(norm=nn.LayerNorm(width), up=nn.Linear(width, width), act=nn.GELU()) for _ in range(count)]
    )


def between(**parts):
    """Those parts in a model whose first and last matrices are others."""
    return Of(first=nn.Linear(3, 8), **parts, last=nn.Linear(8, 2))


def test_torchs_layers_are_matrices_embeddings_norms_and_vectors():
    model = Of(
        tokens=nn.Embedding(10, 8), attention=nn.MultiheadAttention(8, 2), cross=nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
        lstm=nn.LSTM(8, 4, proj_size=2), gru=nn.GRU(8, 4), rnn=nn.RNN(8, 4), cell=nn.LSTMCell(8, 4), conv=nn.Conv2d(8, 6, 3),
        groups=nn.Conv2d(8, 6, 3, groups=2), depthwise=nn.Conv2d(8, 16, 3, groups=8), up=nn.ConvTranspose1d(8, 6, 3, groups=2),
        norm=nn.LayerNorm((4, 4)), bilinear=nn.Bilinear(3, 4, 5), scale=torch.ones(()), gain=torch.ones(1, 8, 1),
        one=nn.Linear(8, 1), last=nn.Linear(8, 2),
    )  # fmt: skip
    found = seen(roles(model))
    assert {name: role for name, role in found.items() if "bias" not in name} == {
        "tokens.weight": "embedding",
        "attention.in_proj_weight": "fused: rows 3",
        "attention.out_proj.weight": "hidden: matrix",
        "cross.q_proj_weight": "hidden: matrix",
        "cross.k_proj_weight": "hidden: matrix",
        "cross.v_proj_weight": "hidden: matrix",
        "cross.out_proj.weight": "hidden: matrix",
        "lstm.weight_ih_l0": "fused: rows 4",
        "lstm.weight_hh_l0": "fused: rows 4",
        "lstm.weight_hr_l0": "hidden: matrix",
        "gru.weight_ih_l0": "fused: rows 3",
        "gru.weight_hh_l0": "fused: rows 3",
        "rnn.weight_ih_l0": "hidden: matrix",
        "rnn.weight_hh_l0": "hidden: matrix",
        "cell.weight_ih": "fused: rows 4",
        "cell.weight_hh": "fused: rows 4",
        "conv.weight": "convolution: flatten",
        "groups.weight": "convolution: flatten, rows 2",
        "depthwise.weight": "depthwise",
        "up.weight": "convolution: flatten, rows 2, transpose",
        "norm.weight": "norm",
        "bilinear.weight": "other",
        "scale": "scalar",
        "gain": "vector",
        "one.weight": "vector",
        "last.weight": "head",
    }
    assert {role for name, role in found.items() if "bias" in name} <= {"vector", "norm", "scalar"}
    assert View("flatten, rows 2, transpose").sizes((8, 3, 3)) == [(2, 9, 4)]  # each group: 4 channels to 3 of 3 taps


def test_transposed_convolutions_are_the_matrix_that_they_apply():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False)
    x = torch.randn(4)
    matrices = View("flatten, rows 2, transpose").matrices(layer.weight)[0]
    expected = torch.cat([matrix @ part for matrix, part in zip(matrices, x.split(2), strict=True)])
    torch.testing.assert_close(layer(x.reshape(1, 4, 1)).flatten(), expected)


def test_squeeze_and_excitation_is_hidden():
    table = roles(between(squeeze=nn.Conv2d(8, 4, 1), excite=nn.Conv2d(4, 8, 1)))
    assert seen(table)["squeeze.weight"] == seen(table)["excite.weight"] == "convolution: flatten"


def test_a_fused_name_alone_parts_nothing_and_the_table_says_so():
    table = roles(between(attention=Of(qkv=nn.Linear(8, 24), proj=nn.Linear(24, 8))))
    (row,) = (row for row in table if row.name == "attention.qkv.weight")
    assert (row.role, row.view) == ("hidden", View())
    assert row.why == "weight of Linear, seen whole: what Of.qkv holds is not known"


@pytest.mark.parametrize(
    ("cls", "attributes", "layer", "view"),
    [
        ("timm.layers.attention.Attention", {}, "qkv", "fused: rows 3"),
        ("timm.models.vision_transformer.Attention", {}, "qkv", "hidden: matrix"),
        ("elsewhere.layers.attention.Attention", {}, "qkv", "hidden: matrix"),
        ("timm.layers.attention.Attention", {}, "kv", "hidden: matrix"),
        ("transformers.models.bloom.modeling_bloom.BloomAttention", {}, "query_key_value", "hidden: matrix"),
        ("timm.models.maxxvit.AttentionCl", {"head_first": True}, "qkv", "hidden: matrix"),
        ("timm.models.maxxvit.AttentionCl", {"head_first": False}, "qkv", "fused: rows 3"),
        ("timm.models.gcvit.WindowAttentionGlobal", {"use_global": True}, "qkv", "fused: rows 2"),
        (
            "transformers.models.falcon.modeling_falcon.FalconAttention",
            {"new_decoder_architecture": False, "config": types.SimpleNamespace(multi_query=True), "num_heads": 4, "head_dim": 4},
            "query_key_value",
            "fused: split 16 4 4",
        ),
        (
            "transformers.models.falcon.modeling_falcon.FalconAttention",
            {"new_decoder_architecture": True, "config": types.SimpleNamespace(multi_query=True)},
            "query_key_value",
            "hidden: matrix",
        ),
        (
            "transformers.models.phi3.modeling_phi3.Phi3Attention",
            {"config": types.SimpleNamespace(num_attention_heads=4, num_key_value_heads=1), "head_dim": 4},
            "qkv_proj",
            "fused: split 16 4 4",
        ),
    ],
)  # fmt: skip
def test_fused_matrices_are_parted_by_class_and_configuration(cls, attributes, layer, view):
    attention = named(*cls.split(".", 1), **attributes)(**{layer: nn.Linear(8, 24)})
    assert seen(roles(between(attention=attention)))[f"attention.{layer}.weight"] == view


def test_another_release_of_a_known_class_leaves_its_matrix_whole_and_the_table_says_why():
    cls = named("transformers", "models.phi3.modeling_phi3.Phi3Attention", config=types.SimpleNamespace())
    (row,) = (row for row in roles(between(attention=cls(qkv_proj=nn.Linear(8, 24)))) if "qkv" in row.name and row.view)
    assert row.view == View() and "Phi3Attention.qkv_proj of a release that is not known" in row.why
    cls = named("timm", "layers.attention.Attention")
    (row,) = (row for row in roles(between(attention=cls(qkv=nn.Linear(8, 25)))) if "qkv" in row.name and row.view)
    assert row.view == View() and "25 rows are not 3 equal blocks, so seen whole" in row.why


def test_a_subclass_is_known_as_long_as_it_runs_the_same_forward():
    known = named("timm", "layers.attention.Attention")
    same = type("Mine", (known,), {})
    other = type("Mine", (known,), {"forward": lambda self, x: -x})
    for cls, view in ((same, "fused: rows 3"), (other, "hidden: matrix")):
        assert seen(roles(between(attention=cls(qkv=nn.Linear(8, 24)))))["attention.qkv.weight"] == view


def conv1d(rows, columns):
    return named("transformers.pytorch_utils", "Conv1D")(weight=torch.randn(rows, columns), bias=torch.zeros(columns))


@pytest.mark.parametrize(("is_cross", "count"), [(False, 3), (True, 2)])
def test_transposed_storage_is_known_by_class_and_parted_after_turning(is_cross, count):
    attention = named("transformers", "models.gpt2.modeling_gpt2.GPT2Attention", is_cross_attention=is_cross)
    model = between(attention=attention(c_attn=conv1d(8, count * 8), c_proj=conv1d(8, 8)))
    found = seen(roles(model))
    assert found["attention.c_attn.weight"] == f"fused: transpose, rows {count}"
    assert found["attention.c_proj.weight"] == "hidden: transpose"
    weight = model.attention.c_attn.weight
    matrices = View(f"transpose, rows {count}").matrices(weight)[0]
    assert matrices[1].equal(weight[:, 8:16].T)


@pytest.mark.parametrize(
    ("transposed", "concatenated", "view", "shape"),
    [
        (False, True, "stack, rows 2", (4, 12, 8)),
        (True, False, "stack, transpose, interleaved 2", (4, 8, 12)),
        (True, True, "stack, transpose, rows 2", (4, 8, 12)),
    ],
)
def test_stacks_of_experts_are_seen_as_their_module_says(transposed, concatenated, view, shape):
    cls = named("transformers", "models.x.modeling_x.XExperts", is_transposed=transposed, is_concatenated=concatenated)
    model = between(experts=cls(gate_up_proj=torch.randn(shape), down_proj=torch.randn(4, 8, 6)), gate=nn.Linear(8, 4))
    found = {row.name: row for row in roles(model)}
    assert str(found["experts.gate_up_proj"].view) == view
    assert found["experts.gate_up_proj"].view.sizes(shape) == [(8, 6, 8)]
    assert (found["gate.weight"].role, found["gate.weight"].is_doubtful) == ("router", True)
    elsewhere = named("mine", "Experts", is_transposed=transposed, is_concatenated=concatenated)
    with pytest.raises(ValueError, match=r"experts.gate_up_proj  \(4, .* a parameter of mine.Experts"):
        roles(between(experts=elsewhere(gate_up_proj=torch.randn(shape))))


def test_a_router_has_an_output_for_each_module_beside_it_whatever_it_is_called():
    experts = nn.ModuleList(Of(up=nn.Linear(8, 8)) for _ in range(5))
    table = roles(between(layer=Of(experts=experts, pick=nn.Linear(8, 5), other=nn.Linear(8, 6))))
    assert seen(table)["layer.pick.weight"] == "router"
    assert seen(table)["layer.other.weight"] == "hidden: matrix"
    alike = roles(between(layers=nn.ModuleList(nn.Linear(8, 8) for _ in range(8)), conv=nn.Conv1d(8, 8, 3)))
    assert seen(alike)["layers.0.weight"] == "hidden: matrix"


# What nobody knows


def test_what_belongs_to_no_known_layer_is_refused_with_what_to_write():
    model = between(
        block=Of(w=torch.randn(8, 8), rest=nn.Linear(8, 8)), heads=torch.randn(4, 8, 2), gain=torch.randn(8)
    )
    with pytest.raises(ValueError, match="roles cannot tell what 2 parameters are") as caught:
        roles(model)
    text = str(caught.value)
    assert f"block.w  (8, 8)  a parameter of {__name__}.Of" in text and "heads  (4, 8, 2)" in text
    assert "Say it: overrides={" in text and "'block.w': ..." in text
    table = roles(model, overrides={"block.w": "transpose", "heads": "stack"})
    assert seen(table)["block.w"] == "hidden: transpose"
    assert seen(table)["heads"] == "experts: stack"


def test_alike_names_of_several_shapes_show_them():
    sizes = (8, 16, 16, 32, 10)
    table = str(roles(torch.nn.Sequential(*(torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)))))
    assert "*.bias (16,) (32,) and 1 more  one axis" in table


def test_alike_ones_are_named_once():
    model = between(blocks=nn.ModuleList(Of(w=torch.randn(8, 8)) for _ in range(3)))
    with pytest.raises(ValueError, match=r"3 parameters are:\n  blocks\.\*\.w  \(8, 8\)"):
        roles(model)
    assert seen(roles(model, overrides={"blocks.*.w": "hidden"}))["blocks.2.w"] == "hidden: matrix"


@pytest.mark.parametrize(
    "word", ["hidden", "transpose", "rows 2", "split 2 6", "adamw", "head", "embedding", View("columns 4")]
)
def test_a_word_decides_for_known_ones_too_and_the_first_pattern_wins(word):
    model = between(block=nn.Linear(8, 8))
    given = [("block.weight", word), ("*", "adamw"), (lambda name, param: param.ndim == 2, "hidden")]
    found = {row.name: row for row in roles(model, overrides=given)}
    assert found["block.weight"].why == "you said so"
    view = {"hidden": View(), "adamw": None, "head": None, "embedding": None}
    assert found["block.weight"].view == (view[word] if word in view else View(str(word)))
    assert found["last.weight"].role == "other"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"blocks.*": "hidden"}, ValueError, r"overrides: 'blocks.\*' matches no parameter"),
        (
            {"block.weight": "muon"},
            ValueError,
            r"overrides\['block.weight'\]='muon', for 'block.weight': .* or \"hidden\", \"adamw\"",
        ),
        ({"block.weight": "rows 3"}, ValueError, "8 rows are not 3 equal blocks"),
        ({"block.*": "hidden"}, ValueError, r"for 'block.bias': view 'matrix' needs two axes, not shape \(8,\)"),
        ({3: "hidden"}, TypeError, "overrides: 3 must be a pattern or a function"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(overrides, error, message):
    with pytest.raises(error, match=message):
        roles(between(block=nn.Linear(8, 8)), overrides=overrides)


def test_only_modules_say_what_they_are():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, whose classes say what it is, not list"):
        roles([("w", torch.zeros(2, 2))])
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet: run one forward pass"):
        roles(nn.Sequential(nn.LazyLinear(3)))


def test_flat_parameters_of_a_wrapper_are_refused_and_do_not_pass_for_vectors():
    model = between(block=nn.Linear(8, 8))
    model.block.weight = nn.Parameter(torch.zeros(64))
    with pytest.raises(ValueError, match=r"block.weight  \(64,\)  it is flat, .* call roles before you wrap the model"):
        roles(model)


# Every parameter once


def test_each_parameter_is_in_one_row_and_frozen_ones_are_left_out():
    model = between(one=nn.Linear(8, 8), two=nn.Linear(8, 8))
    model.two.weight = model.one.weight
    model.two.bias.requires_grad_(False)
    table = roles(model)
    assert table.frozen == ("two.bias",)
    params = [row.param for row in table]
    assert len(params) == len({*params}) == sum(param.requires_grad for param in model.parameters())
    assert {row.name for row in table} | {*table.frozen} == {name for name, _ in model.named_parameters()}
    (shared,) = (row for row in table if len(row.names) > 1)
    assert (shared.names, str(shared.view)) == (("one.weight", "two.weight"), "matrix")
    assert [*table.matrices, *table.rest] == sorted(table, key=lambda row: row.view is None)


def test_a_parameter_that_two_modules_see_differently_is_refused():
    model = between(one=conv1d(8, 8), two=nn.Linear(8, 8))
    model.two.weight = model.one.weight
    with pytest.raises(ValueError, match=r"modules that share it see it differently: one.weight, two.weight"):
        roles(model)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal, nn.utils.weight_norm],
)
def test_parametrized_weights_are_those_of_their_layer(make):
    found = seen(
        roles(between(layer=make(nn.Linear(8, 8)), conv=nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3))))
    )
    assert [role for name, role in found.items() if name.startswith("layer") and ":" in role] == ["hidden: matrix"]
    assert [role for name, role in found.items() if name.startswith("conv") and ":" in role] == ["convolution: flatten"]


# First and last matrices


def test_in_order_of_registration_the_ends_are_doubtful():
    table = roles(
        Of(first=nn.Linear(3, 8), body=blocks(), classifier=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    )
    found = {row.name: row for row in table}
    assert (found["first.weight"].role, found["first.weight"].is_doubtful) == ("input", True)
    assert found["classifier.0.weight"].role == "hidden"  # though it is inside of something called classifier
    assert (found["classifier.2.weight"].role, found["classifier.2.weight"].is_doubtful) == ("head", True)
    assert not table.notes


def test_matrices_that_lead_on_or_are_repeated_are_no_heads_and_others_may_be():
    chain = nn.Sequential(nn.Linear(3, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 8), nn.Linear(8, 2))
    assert roles(chain).notes == ()
    assert roles(Of(tokens=nn.Embedding(5, 8), body=blocks(), last=nn.Linear(8, 5))).notes == ()
    table = roles(Of(trunk=chain, extra=nn.Linear(8, 3), some=nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])))
    told = "trunk.3.weight, extra.weight, some.0.weight may be of heads, too; give example to find them"
    assert table.notes == (told,) and told in str(table)


def test_a_model_that_ends_in_repeated_blocks_has_no_head():
    table = roles(Of(tokens=nn.Embedding(5, 8), body=blocks()))
    assert {row.role for row in table} == {"embedding", "norm", "hidden", "vector"}
    assert "no head found: 'body.1.up.weight'" in table.notes[0]
    table = roles(Of(tokens=nn.Embedding(5, 8), body=blocks()), example=(torch.tensor([1, 2]),))
    assert seen(table)["body.1.up.weight"] == "head"  # no connection leads around it


def test_tied_heads_are_embeddings_and_the_matrix_before_them_is_hidden():
    model = Of(tokens=nn.Embedding(10, 8), transform=nn.Linear(8, 8), decoder=nn.Linear(8, 10))
    model.decoder.weight = model.tokens.weight
    for example in (None, (torch.tensor([1, 2]),)):
        table = roles(model, example=example)
        assert seen(table) == {
            "tokens.weight": "embedding", "transform.weight": "hidden: matrix", "transform.bias": "vector", "decoder.bias": "vector",
        }  # fmt: skip
        assert table[0].names == ("tokens.weight", "decoder.weight") and not table.notes


def test_the_model_is_asked_for_its_output_embeddings():
    class Model(Of):
        def get_output_embeddings(self):
            return self.lm

    table = roles(Model(lm=nn.Linear(8, 10), tokens=nn.Embedding(10, 8), body=blocks()))
    assert seen(table)["lm.weight"] == "head" and not table.notes


class Several(nn.Module):
    """Heads by convolution, one of them in the middle, and two matrices after which there are others."""

    def __init__(self):
        super().__init__()
        self.boxes = nn.Conv2d(8, 4, 1)
        self.stem = nn.Conv2d(5, 8, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.scale = nn.BatchNorm2d(8)
        self.labels = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x):
        features = self.stem(x)
        for layer in self.body:
            features = features + nn.functional.dropout(layer(self.scale(features)).relu())
        return {"features": features, "out": [self.boxes(features), self.labels(features).sigmoid()]}


@pytest.mark.parametrize("way", ["tuple", "tensor", "dict", "function"])
def test_an_example_finds_all_heads_and_leaves_the_model_as_it_was(way):
    model, x = Several(), torch.randn(2, 5, 4, 4)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    example = {"tuple": (x,), "tensor": x, "dict": {"x": x}, "function": lambda model: model(x)}[way]
    table = roles(model, example=example)
    assert {row.name: row.role for row in table if row.role in ("input", "head")} == {
        "boxes.weight": "head",
        "stem.weight": "input",
        "labels.2.weight": "head",
    }
    assert not any(row.is_doubtful for row in table) and not table.notes
    assert all(tensor.equal(kept[name]) for name, tensor in model.state_dict().items())
    assert all(param.grad is None and param.requires_grad for param in model.parameters())
    assert torch.get_rng_state().equal(state) and model.training
    assert model.scale.num_batches_tracked == 0


def test_a_frozen_head_is_found_too_and_not_the_matrix_before_it():
    model = between(block=nn.Linear(8, 8))
    model.last.weight.requires_grad_(False)
    table = roles(model, example=torch.randn(2, 3))
    assert seen(table)["block.weight"] == "hidden: matrix" and "last.weight" in table.frozen


def test_normalized_weights_and_residual_streams_in_an_example():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 8))
    table = roles(Of(layer=layer, body=blocks(), last=nn.Linear(8, 2)), example=torch.randn(2, 3))
    assert seen(table)["layer.parametrizations.weight.original1"] == "input"

    class Residual(Of):
        def forward(self, x):
            x = self.first(x)
            return x + self.second(x)

    table = roles(Residual(first=nn.Linear(3, 8), second=nn.Linear(8, 8)), example=torch.randn(2, 3))
    assert seen(table)["second.weight"] == "hidden: matrix" and "so none is a head" in table.notes[0]


def test_a_matrix_before_another_output_is_no_head():
    class Both(Of):
        def forward(self, x):
            hidden = self.block(self.first(x))
            return hidden, self.last(hidden.relu())

    table = roles(Both(first=nn.Linear(3, 8), block=nn.Linear(8, 8), last=nn.Linear(8, 2)), example=torch.randn(2, 3))
    assert seen(table)["block.weight"] == "hidden: matrix" and seen(table)["last.weight"] == "head"


def test_an_example_that_uses_no_parameter_is_refused():
    with pytest.raises(ValueError, match="example: no output of the model comes from a parameter"):
        roles(between(), example=lambda model: torch.zeros(3))


def test_heads_are_parted_on_request():
    attention = named("transformers", "models.llama.modeling_llama.LlamaAttention", head_dim=4)
    model = between(
        mha=nn.MultiheadAttention(8, 2),
        attention=attention(q_proj=nn.Linear(8, 8), k_proj=nn.Linear(8, 4), o_proj=nn.Linear(8, 8)),
        mine=Of(q_proj=nn.Linear(8, 8)),
    )
    found = seen(roles(model, heads=True))
    assert found["mha.in_proj_weight"] == "fused: rows 6"
    assert found["attention.q_proj.weight"] == "hidden: rows 2"
    assert found["attention.k_proj.weight"] == found["attention.o_proj.weight"] == "hidden: matrix"
    assert found["mine.q_proj.weight"] == "hidden: matrix"


# The table


def test_the_table_says_what_is_seen_how_and_why():
    model = between(body=blocks())
    model.first.bias.requires_grad_(False)
    lines = str(roles(model)).splitlines()
    assert lines[0].split() == ["role", "tensors", "seen", "as", "matrices", "(m,", "n)", "parameters", "why"]
    assert lines[1].split("  ")[0] == "hidden" and "body.*.up.weight (8, 8)" in lines[1] and "(8, 8)" in lines[1]
    assert "? the last matrix in order of registration" in str(roles(model))
    assert "frozen, and left out: first.bias" in lines


def test_every_word_of_the_table_of_known_classes_is_one():
    assert len(PARTS) > 100
    for parts in PARTS.values():
        if isinstance(parts, str) and not parts.startswith("whole: "):
            View(parts)
    for value in BARE.values():
        role, _, words = value.partition(": ")
        assert role in ROLES and (not words or View(words))


def model_of_test():
    return between(attention=Of(w=torch.randn(8, 8)))


def test_the_command_takes_a_function_and_prints_the_table_or_json(monkeypatch):
    monkeypatch.setitem(sys.modules, "roles_of_a_test", types.SimpleNamespace(make=model_of_test, other=lambda: 3))
    run = CliRunner().invoke
    refused = run(app, ["roles", "roles_of_a_test:make"])
    assert refused.exit_code == 2 and "steprule roles: roles cannot tell what 1 parameter is" in refused.stderr
    shown = run(app, ["roles", "roles_of_a_test:make", "--set", "attention.w=transpose"])
    assert shown.exit_code == 0 and shown.stdout.startswith("role") and "transpose" in shown.stdout
    told = json.loads(run(app, ["roles", "roles_of_a_test:make", "--set", "*.w=rows 2", "--json"]).stdout)
    (row,) = (row for row in told["rows"] if row["names"] == ["attention.w"])
    assert (row["view"], row["matrices"], row["shape"]) == ("rows 2", [[2, 4, 8]], [8, 8])
    for wrong in ("make", "roles_of_a_test:other"):
        assert run(app, ["roles", wrong]).exit_code == 2
    assert "--set 'w' must be PATTERN=WORD" in run(app, ["roles", "roles_of_a_test:make", "--set", "w"]).stderr


def test_it_is_a_name_of_the_package():
    assert steprule.roles is roles
