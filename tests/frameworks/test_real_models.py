"""Roles of models of transformers, timm and torchvision, built from their configurations.

`nox -s frameworks` installs them. Which rows of a fused matrix become q, k and v is not read off the source here: the models
run, and autograd says which rows reach each argument of scaled_dot_product_attention.
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from fnmatch import fnmatchcase

import pytest
import torch
from torch.nn import functional

import steprule
from steprule.layers import View, roles
from steprule.layers.known import qualified

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("transformers").setLevel(logging.ERROR)


def package(name):
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError beside a torch of another build
        pytest.skip(f"{name}: {error}")


def vision(name, **settings):
    return package("torchvision").models.get_model(name, weights=None, **settings).eval()


def timm(name, **settings):
    return package("timm").create_model(name, pretrained=False, **settings).eval()


SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}


def text(model, config, **settings):
    of = package("transformers")
    sentinel = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return getattr(of, model)(getattr(of, config)(**{**sentinel, **settings})).eval()


def pixels(size=224):
    return (torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)),)


TOKENS = {"input_ids": torch.arange(3, 11).reshape(1, 8)}

CASES = {
    "resnet18": (lambda: vision("resnet18"), pixels(64), ["conv1.weight", "fc.weight"], {}),
    "mobilenet_v3": (
        lambda: vision("mobilenet_v3_small"), pixels(64), ["features.0.0.weight", "classifier.3.weight"],
        {"classifier.0.weight": "hidden: matrix", "features.1.block.1.fc1.weight": "convolution: flatten", "features.1.block.0.0.weight": "depthwise"},
    ),
    "swin": (lambda: vision("swin_t"), pixels(64), ["features.0.0.weight", "head.weight"], {"*.qkv.weight": "fused: rows 3"}),
    "maxvit": (
        lambda: vision("maxvit_t"), pixels(), ["stem.0.0.weight", "classifier.5.weight"],
        {"classifier.3.weight": "hidden: matrix", "*.to_qkv.weight": "fused: rows 3"},
    ),
    "lraspp": (
        lambda: vision("lraspp_mobilenet_v3_large", weights_backbone=None), pixels(64),
        ["backbone.0.0.weight", "classifier.low_classifier.weight", "classifier.high_classifier.weight"], {},
    ),
    "vit": (lambda: timm("vit_tiny_patch16_224"), pixels(), ["patch_embed.proj.weight", "head.weight"], {"*.qkv.weight": "fused: rows 3", "pos_embed": "position"}),
    "eva02, no head": (lambda: timm("eva02_tiny_patch14_224"), pixels(), ["patch_embed.proj.weight"], {"*.fc2.weight": "hidden: matrix"}),
    "levit, two heads": (
        lambda: timm("levit_128s"), pixels(), ["stem.conv1.linear.weight", "head.linear.weight", "head_dist.linear.weight"],
        {"*.attn.qkv.linear.weight": "hidden: matrix", "*.attention_biases": "position"},
    ),
    "coatnet, by head": (lambda: timm("coatnet_0_rw_224"), pixels(), ["stem.conv1.weight", "head.fc.weight"], {"*.attn.qkv.weight": "convolution: flatten"}),
    "gpt2": (
        lambda: text("GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4, vocab_size=100), TOKENS, [],
        {"*.c_attn.weight": "fused: transpose, rows 3", "*.c_proj.weight": "hidden: transpose", "*.wte.weight": "embedding"},
    ),
    "albert": (lambda: text("AlbertForMaskedLM", "AlbertConfig", embedding_size=32, **SMALL), TOKENS, [], {"predictions.dense.weight": "hidden: matrix"}),
    "bert, two heads": (
        lambda: text("BertForPreTraining", "BertConfig", **SMALL), TOKENS, ["cls.seq_relationship.weight"], {"cls.predictions.transform.dense.weight": "hidden: matrix"},
    ),
    "phi3": (lambda: text("Phi3ForCausalLM", "Phi3Config", **GROUPED), TOKENS, ["lm_head.weight"], {"*.qkv_proj.weight": "fused: split 64 32 32", "*.gate_up_proj.weight": "fused: rows 2"}),
    "mixtral": (
        lambda: text("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **GROUPED), TOKENS, ["lm_head.weight"],
        {"*.experts.gate_up_proj": "experts: stack, rows 2", "*.experts.down_proj": "experts: stack", "*.gate.weight": "router"},
    ),
    "gpt-oss": (
        lambda: text("GptOssForCausalLM", "GptOssConfig", num_local_experts=4, head_dim=16, **GROUPED), TOKENS, ["lm_head.weight"],
        {"*.experts.gate_up_proj": "experts: stack, transpose, interleaved 2", "*.experts.*_bias": "other", "*.router.weight": "router"},
    ),
    "gpt-neox": (lambda: text("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL), TOKENS, ["embed_out.weight|lm_head.weight"], {"*.query_key_value.weight": "hidden: matrix"}),
    "falcon": (
        lambda: text("FalconForCausalLM", "FalconConfig", **{key: value for key, value in SMALL.items() if key != "intermediate_size"}), TOKENS, [],
        {"*.query_key_value.weight": "fused: split 64 16 16"},
    ),
    "wav2vec2": (
        lambda: text(
            "Wav2Vec2ForCTC", "Wav2Vec2Config", conv_dim=(32, 32), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **SMALL,
        ),
        {"input_values": torch.randn(1, 4000)}, ["wav2vec2.feature_extractor.conv_layers.0.conv.weight", "lm_head.weight"],
        {"*.original1": "convolution: flatten, rows 4"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_models_parameters_are_what_they_are(case):
    make, example, ends, expected = CASES[case]
    model = make()
    table = roles(model, example=example)
    assert {id(row.param) for row in table} == {id(param) for param in model.parameters()} and len(table) == len(
        {*table}
    )
    found = {row.name for row in table if row.role in ("input", "head")}
    assert len(found) == len(ends) and all(found & {*end.split("|")} for end in ends)
    assert not any(row.is_doubtful for row in table if row.role != "router")
    for pattern, role in expected.items():
        matched = [row for row in table if fnmatchcase(row.name, pattern)]
        assert matched, pattern
        for row in matched:
            assert (f"{row.role}: {row.view}" if row.view else row.role) == role, row
    for row in table.matrices:
        assert sum(one.numel() for one in row.view.matrices(row.param)) == row.param.numel()


def matrices_of(view, tensor, like=None):
    """Every matrix of a tensor, contiguous."""
    stacks = View(view or "matrix").matrices(
        (tensor if like is None else torch.empty_like(like).copy_(tensor)).detach()
    )
    return [one.contiguous().clone() for stack in stacks for one in stack.reshape(-1, *stack.shape[-2:])]


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_stepped_as_its_matrices_and_the_rest_by_adamw(case):
    """Every parameter once; with gradients of random numbers, Muon's step is that of the matrices as parameters of their own.

    In float64, whose rounding leaves some 1e-14. Another view is off by 1e-3.
    """
    make, example, _, _ = CASES[case]
    model = make()
    table = roles(model, example=example)
    model.double()
    optimizer = steprule.create_optimizer(model, "muon", lr=0.02, adamw_lr=0.01, weight_decay=0.1, roles=table)
    groups = {param: group for group in optimizer.param_groups for param in group["params"]}
    assert groups.keys() == {param for param in model.parameters() if param.requires_grad}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(groups)
    for row in table:
        assert groups[row.param]["rule"] == ("muon" if row.view else "adamw")
        if row.view:
            assert (groups[row.param].get("view") or "matrix") == str(row.view)
    matrices = {row.param: matrices_of(row.view, row.param) for row in table.matrices}
    own = {param: [torch.nn.Parameter(one) for one in every] for param, every in matrices.items()}
    rest = {row.param: torch.nn.Parameter(row.param.detach().clone()) for row in table.rest}
    muon = steprule.Muon([one for every in own.values() for one in every], lr=0.02, weight_decay=0.1)
    decay = {param for param in rest if groups[param]["weight_decay"]}
    adamw = steprule.AdamW(
        [
            {"params": [rest[param] for param in decay], "weight_decay": 0.1},
            {"params": [one for param, one in rest.items() if param not in decay], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    torch.manual_seed(0)
    for param, group in groups.items():
        param.grad = torch.randn_like(param)
        if param in rest:
            rest[param].grad = param.grad.clone()
            continue
        for one, grad in zip(own[param], matrices_of(group.get("view"), param.grad, param), strict=True):
            one.grad = grad
    for each in (optimizer, muon, adamw):
        each.step()
    for param, one in rest.items():
        assert torch.equal(param, one)
    for param, every in own.items():
        for one, its in zip(every, matrices_of(groups[param].get("view"), param), strict=True):
            torch.testing.assert_close(its, one, rtol=0, atol=1e-10)


T5 = {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
WHISPER = {
    "vocab_size": 100, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "decoder_start_token_id": 1,
}  # fmt: skip
DEEPSEEK = {
    "moe_intermediate_size": 32, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 16, "first_k_dense_replace": 1,
}  # fmt: skip
QWEN_MOE = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
CLIP = {
    "text_config": {**SMALL, "max_position_embeddings": 32},
    "vision_config": {**SMALL, "image_size": 32, "patch_size": 8},
}

BY_VIEW = {
    "resnet18": (CASES["resnet18"][0], {"flatten": 19}),
    "mobilenet_v3": (CASES["mobilenet_v3"][0], {"flatten": 40, "matrix": 1}),
    "efficientnet_b0": (lambda: vision("efficientnet_b0"), {"flatten": 64}),
    "convnext_tiny": (lambda: vision("convnext_tiny"), {"flatten": 3, "matrix": 36}),
    "swin": (CASES["swin"][0], {"rows 3": 12, "matrix": 39}),
    "densenet121": (lambda: vision("densenet121"), {"flatten": 119}),
    "vit_b_16": (lambda: vision("vit_b_16"), {"rows 3": 12, "matrix": 36}),
    "inception_v3": (lambda: vision("inception_v3", init_weights=False), {"flatten": 95, "matrix": 1}),
    "maxvit": (CASES["maxvit"][0], {"flatten": 49, "rows 3": 22, "matrix": 67}),
    "lraspp": (CASES["lraspp"][0], {"flatten": 48}),
    "vit": (CASES["vit"][0], {"rows 3": 12, "matrix": 36}),
    "mixer": (lambda: timm("mixer_s16_224"), {"matrix": 32}),
    "eva02, no head": (CASES["eva02, no head"][0], {"rows 3": 12, "rows 2": 12, "matrix": 24}),
    "xcit": (lambda: timm("xcit_nano_12_p16_224"), {"flatten": 4, "rows 3": 12, "matrix": 48}),
    "beit": (lambda: timm("beit_base_patch16_224"), {"rows 3": 12, "matrix": 36}),
    "coatnet": (CASES["coatnet, by head"][0], {"flatten": 61}),
    "resmlp": (lambda: timm("resmlp_12_224"), {"matrix": 36}),
    "mobilevit": (lambda: timm("mobilevit_xxs"), {"flatten": 27, "rows 3": 9, "matrix": 27}),
    "levit": (CASES["levit, two heads"][0], {"flatten": 3, "matrix": 46}),
    "nfnet": (lambda: timm("nfnet_f0"), {"flatten": 58, "flatten, rows 2": 4, "flatten, rows 6": 18}),
    "siglip": (lambda: timm("vit_base_patch16_siglip_224"), {"rows 3": 12, "rows 2": 1, "matrix": 39}),
    "naflexvit": (lambda: timm("naflexvit_base_patch16_gap"), {"rows 3": 12, "matrix": 36}),
    "gpt2": (CASES["gpt2"][0], {"transpose": 6, "transpose, rows 3": 2}),
    "bert": (lambda: text("BertForMaskedLM", "BertConfig", **SMALL), {"matrix": 13}),
    "bert, classes": (lambda: text("BertForSequenceClassification", "BertConfig", **SMALL), {"matrix": 13}),
    "llama": (lambda: text("LlamaForCausalLM", "LlamaConfig", **GROUPED), {"matrix": 14}),
    "qwen3, tied": (lambda: text("Qwen3ForCausalLM", "Qwen3Config", tie_word_embeddings=True, **GROUPED), {"matrix": 14}),
    "mixtral": (CASES["mixtral"][0], {"matrix": 8, "stack": 2, "stack, rows 2": 2}),
    "qwen2 moe": (lambda: text("Qwen2MoeForCausalLM", "Qwen2MoeConfig", **QWEN_MOE, **GROUPED), {"matrix": 14, "stack": 2, "stack, rows 2": 2}),
    "phi3": (CASES["phi3"][0], {"matrix": 4, "rows 2": 2, "split 64 32 32": 2}),
    "gpt-neox": (CASES["gpt-neox"][0], {"matrix": 8}),
    "bloom": (lambda: text("BloomForCausalLM", "BloomConfig", vocab_size=100, hidden_size=64, n_layer=2, n_head=4), {"matrix": 8}),
    "falcon": (CASES["falcon"][0], {"matrix": 6, "split 64 16 16": 2}),
    "t5": (lambda: text("T5ForConditionalGeneration", "T5Config", **T5), {"matrix": 32}),
    "whisper": (lambda: text("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER), {"flatten": 1, "matrix": 16}),
    "deepseek v3": (lambda: text("DeepseekV3ForCausalLM", "DeepseekV3Config", **DEEPSEEK, **SMALL), {"matrix": 16, "stack": 1, "stack, rows 2": 1}),
    "mamba2": (
        lambda: text("Mamba2ForCausalLM", "Mamba2Config", vocab_size=100, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, state_size=16, n_groups=1),
        {"matrix": 4},
    ),
    "clip": (lambda: package("transformers").CLIPModel(package("transformers").CLIPConfig(**CLIP)), {"matrix": 24}),
    "deberta": (lambda: text("DebertaV2ForMaskedLM", "DebertaV2Config", relative_attention=True, **SMALL), {"matrix": 13}),
    "albert": (CASES["albert"][0], {"matrix": 8}),
    "gpt-oss": (CASES["gpt-oss"][0], {"matrix": 8, "stack, transpose": 2, "stack, transpose, interleaved 2": 2}),
    "wav2vec2": (CASES["wav2vec2"][0], {"flatten": 1, "flatten, rows 4": 1, "matrix": 13}),
    "torch": (
        lambda: torch.nn.ModuleDict({"a": torch.nn.TransformerEncoderLayer(32, 4), "b": torch.nn.LSTM(32, 64), "head": torch.nn.Linear(64, 10)}),
        {"rows 3": 1, "rows 4": 2, "matrix": 3},
    ),
}  # fmt: skip
"""43 architectures: how many parameters Muon is to step, by how they are seen. Counted by hand, but for networks of convolutions."""
SEVERAL_HEADS = {"lraspp": 1, "levit": 1, "clip": 1}
"""How many heads Muon steps where nothing says what the others are, and the log says so."""


@pytest.mark.parametrize("case", BY_VIEW)
def test_nothing_is_wrong_without_a_word(case, caplog):
    """Without an example: right, or what may be wrong is logged."""
    make, expected = BY_VIEW[case]
    model = make()
    optimizer = steprule.create_optimizer(model, "muon")
    params = [param for group in optimizer.param_groups for param in group["params"]]
    assert len(params) == len({*params}) and {*params} == {param for param in model.parameters() if param.requires_grad}
    found = Counter(
        group.get("view") or "matrix"
        for group in optimizer.param_groups
        if group["rule"] == "muon"
        for _ in group["params"]
    )
    more = found.total() - sum(expected.values())
    assert more == SEVERAL_HEADS.get(case, 0)
    assert all(found[view] - count in (0, more) for view, count in expected.items()) and found.keys() == expected.keys()
    if more:
        assert "give example to find them" in caplog.text


ATTENTION = {
    "Attention": (lambda: timm("vit_tiny_patch16_224", depth=1), pixels()),
    "EvaAttention": (lambda: timm("eva02_tiny_patch14_224", depth=1), pixels()),
    "beit": (lambda: timm("beit_base_patch16_224", depth=1), pixels()),
    "attention pool": (lambda: timm("vit_base_patch16_siglip_224", depth=1), pixels()),
    "twins": (lambda: timm("twins_svt_small"), pixels()),
    "pvt": (lambda: timm("pvt_v2_b0"), pixels()),
    "nest": (lambda: timm("nest_tiny"), pixels()),
    "hiera": (lambda: timm("hiera_tiny_224"), pixels()),
    "gpt2": (lambda: text("GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=1, n_head=4, vocab_size=100), TOKENS),
    "phi3": (lambda: text("Phi3ForCausalLM", "Phi3Config", **GROUPED), TOKENS),
    "falcon": (lambda: text("FalconForCausalLM", "FalconConfig", **{k: v for k, v in SMALL.items() if k != "intermediate_size"}), TOKENS),
    "modernbert": (lambda: text("ModernBertForMaskedLM", "ModernBertConfig", **SMALL), TOKENS),
}  # fmt: skip


@pytest.mark.parametrize("case", ATTENTION)
def test_each_part_reaches_one_of_q_k_and_v(case, monkeypatch):
    make, example = ATTENTION[case]
    model = make()
    fused = {}  # one of each class
    for row in roles(model):
        parent = qualified(model.get_submodule(row.name.rpartition(".")[0].rpartition(".")[0]))
        if row.role == "fused" and "gate_up" not in row.name and "fc1" not in row.name:
            fused.setdefault(parent, row)
    rows = list(fused.values())
    real, reached = functional.scaled_dot_product_attention, {}

    def attention(q, k, v, *args, **more):
        todo = [row for row in rows if row.name not in reached]
        params = [row.param for row in todo]
        for letter, argument in zip("qkv", (q, k, v), strict=True) if todo else ():
            summed = (argument * torch.randn_like(argument)).sum()
            grads = torch.autograd.grad(summed, params, retain_graph=True, allow_unused=True)
            for row, grad in zip(todo, grads, strict=True):
                if grad is not None:
                    parts = [
                        part
                        for one in row.view.matrices(torch.empty_like(row.param).copy_(grad).detach())
                        for part in one.reshape(-1, *one.shape[-2:])
                    ]
                    reached.setdefault(row.name, {})[letter] = (
                        [bool(part.abs().sum(1).gt(0).all()) for part in parts],
                        sum(bool(part.any()) for part in parts),
                    )
        return real(q, k, v, *args, **more)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    model(**example) if isinstance(example, dict) else model(*example)
    assert reached.keys() == {row.name for row in rows} and rows
    for name, letters in reached.items():
        parts = [whole.index(True) for whole, touched in letters.values() if touched == 1]
        assert sorted(parts) == list(range(len(letters))), (name, letters)


def test_gate_and_up_of_experts_are_the_rows_that_the_module_calls_so():
    """Doubling a part of what the view shows doubles what the module gets of it."""
    model = text("GptOssForCausalLM", "GptOssConfig", num_local_experts=4, head_dim=16, **GROUPED)
    experts = model.model.layers[0].mlp.experts
    (parts,) = View("stack, transpose, interleaved 2").matrices(experts.gate_up_proj)
    x = torch.randn(64)
    gate_up = x @ experts.gate_up_proj[2]
    torch.testing.assert_close(parts[2, 0] @ x, gate_up[::2])
    torch.testing.assert_close(parts[2, 1] @ x, gate_up[1::2])
