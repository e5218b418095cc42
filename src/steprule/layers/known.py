"""What is known of classes of other packages: which rows of a fused matrix belong together, and what parameters that
belong to no torch layer are.

A class is known by the qualified name of the class whose `forward` it runs, so a subclass with another `forward` is
unknown. Each entry was read off that forward in
transformers 5.24, timm 1.0.31 and torchvision 0.28; tests/frameworks runs some of them, and sees which rows reach q, k and v.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn

Parts = str | Callable[[Any], str]
"""Steps of a view, "whole: reason" for what no view can part, or a function of the module that returns one of them."""


def _cross(module: Any) -> str:
    return "rows 2" if module.is_cross_attention else "rows 3"


def _grouped(module: Any) -> str:
    config = module.config
    kv = config.num_key_value_heads * module.head_dim
    return f"split {config.num_attention_heads * module.head_dim} {kv} {kv}"


def _dbrx(module: Any) -> str:
    kv = module.num_key_value_heads * module.head_dim
    return f"split {module.hidden_size} {kv} {kv}"


def _falcon(module: Any) -> str:
    if module.new_decoder_architecture or not module.config.multi_query:
        return _BY_HEAD
    return f"split {module.num_heads * module.head_dim} {module.head_dim} {module.head_dim}"


def _bigcode(module: Any) -> str:
    return f"split {module.embed_dim} {module.kv_dim} {module.kv_dim}" if module.multi_query else _BY_HEAD


def _head_first(module: Any) -> str:
    return _BY_HEAD if module.head_first else "rows 3"


_BY_HEAD = "whole: the rows of q, k and v alternate by head, which no view of equal strides can part"
_UNEQUAL = "whole: its parts are of unequal kinds and sizes"

_LAYOUTS: dict[Parts, str] = {
    "rows 3": """
        timm.layers.attention.Attention.qkv timm.layers.attention.AttentionRope.qkv
        timm.layers.attention_pool2d.AttentionPool2d.qkv timm.layers.attention_pool2d.RotAttentionPool2d.qkv
        timm.layers.diff_attention.DiffAttention.qkv timm.models.beit.Attention.qkv timm.models.cait.TalkingHeadAttn.qkv
        timm.models.coat.FactorAttnConvRelPosEnc.qkv timm.models.convit.MHSA.qkv timm.models.davit.ChannelAttention.qkv
        timm.models.davit.ChannelAttentionV2.qkv timm.models.davit.WindowAttention.qkv
        timm.models.edgenext.CrossCovarianceAttn.qkv timm.models.eva.EvaAttention.qkv timm.models.fastvit.Attention.qkv
        timm.models.hiera.MaskUnitAttention.qkv timm.models.hieradet_sam2.MultiScaleAttention.qkv
        timm.models.metaformer.Attention.qkv timm.models.mvitv2.MultiScaleAttention.qkv timm.models.nest.Attention.qkv
        timm.models.swin_transformer.WindowAttention.qkv timm.models.swin_transformer_v2.WindowAttention.qkv
        timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention.qkv timm.models.twins.LocallyGroupedAttn.qkv
        timm.models.vision_transformer_relpos.RelPosAttention.qkv timm.models.vision_transformer_sam.Attention.qkv
        timm.models.visformer.Attention.qkv timm.models.volo.Attention.qkv timm.models.xcit.XCA.qkv
        torchvision.models.maxvit.RelativePositionalMultiHeadAttention.to_qkv
        torchvision.models.swin_transformer.ShiftedWindowAttention.qkv
        torchvision.models.swin_transformer.ShiftedWindowAttentionV2.qkv
        torchvision.models.video.mvit.MultiscaleAttention.qkv
        torchvision.models.video.swin_transformer.ShiftedWindowAttention3d.qkv
        transformers.*.BarkSelfAttention.att_proj transformers.*.BlipAttention.qkv transformers.*.Blip2Attention.qkv
        transformers.*.Ernie4_5_VLMoeVisionAttention.qkv transformers.*.Florence2VisionChannelAttention.qkv
        transformers.*.Florence2VisionWindowAttention.qkv transformers.*.Glm4vVisionAttention.qkv
        transformers.*.Glm4vMoeVisionAttention.qkv transformers.*.GlmImageVisionAttention.qkv
        transformers.*.GlmOcrVisionAttention.qkv transformers.*.GotOcr2VisionAttention.qkv
        transformers.*.HieraMaskUnitAttention.qkv transformers.*.InstructBlipAttention.qkv
        transformers.*.LayoutLMv2SelfAttention.qkv_linear transformers.*.Lfm2ShortConv.in_proj
        transformers.*.ModernBertAttention.Wqkv transformers.*.MptAttention.Wqkv
        transformers.models.openai.modeling_openai.Attention.c_attn transformers.*.Qwen2_5_VLVisionAttention.qkv
        transformers.models.qwen2_vl.modeling_qwen2_vl.VisionAttention.qkv transformers.*.Qwen3_5VisionAttention.qkv
        transformers.*.Qwen3_5MoeVisionAttention.qkv transformers.*.Qwen3OmniMoeVisionAttention.qkv
        transformers.*.Qwen3VLVisionAttention.qkv transformers.*.Qwen3VLMoeVisionAttention.qkv
        transformers.*.Sam2MultiScaleAttention.qkv transformers.*.SamVisionAttention.qkv
        transformers.*.SamVisionSdpaAttention.qkv transformers.*.SamHQVisionAttention.qkv
        transformers.*.SegGptAttention.qkv transformers.*.TimesformerSelfAttention.qkv transformers.*.VitDetAttention.qkv
    """,
    "rows 2": """
        timm.layers.attention_pool.AttentionPoolLatent.kv timm.layers.mlp.GluMlp.fc1 timm.models.pvt_v2.Attention.kv
        timm.models.twins.GlobalSubSampleAttn.kv timm.models.volo.ClassAttention.kv
        transformers.*.DiaMLP.gate_up_proj transformers.*.GlmMLP.gate_up_proj transformers.*.Glm4MLP.gate_up_proj
        transformers.*.GlmImageTextMLP.gate_up_proj transformers.*.GraniteSpeechConformerAttention.to_kv
        transformers.*.JetMoeAttention.kv_proj transformers.*.MambaMixer.in_proj transformers.*.Phi3MLP.gate_up_proj
        transformers.*.Phi4MultimodalMLP.gate_up_proj transformers.*.Phi4MultimodalAudioMLP.gate_up_proj
        transformers.*.Zamba2MLP.gate_up_proj
    """,
    _cross: """
        transformers.*.GPT2Attention.c_attn transformers.*.DecisionTransformerGPT2Attention.c_attn
        transformers.*.ImageGPTAttention.c_attn
    """,
    _grouped: "transformers.*.Phi3Attention.qkv_proj transformers.*.Phi4MultimodalAttention.qkv_proj",
    _dbrx: "transformers.*.DbrxAttention.Wqkv",
    _falcon: "transformers.*.FalconAttention.query_key_value",
    _bigcode: "transformers.*.GPTBigCodeAttention.c_attn",
    _head_first: """
        timm.layers.attention2d.Attention2d.qkv timm.models.maxxvit.Attention2d.qkv timm.models.maxxvit.AttentionCl.qkv
    """,
    lambda module: "rows 2" if module.use_global else "rows 3": "timm.models.gcvit.WindowAttentionGlobal.qkv",
    lambda module: "split " + " ".join(map(str, module.in_split)): """
        timm.models.vision_transformer.ParallelScalingBlock.in_proj
        timm.models.vision_transformer.DiffParallelScalingBlock.in_proj
    """,
    lambda module: f"split {module.key_dim} {module.key_dim} {module.value_dim}": """
        transformers.*.Qwen3_5GatedDeltaNet.in_proj_qkv transformers.*.Qwen3_5MoeGatedDeltaNet.in_proj_qkv
    """,
    _BY_HEAD: """
        timm.models.efficientformer.Attention.qkv timm.models.levit.Attention.qkv
        timm.models.levit.AttentionDownsample.kv timm.models.tiny_vit.Attention.qkv
        transformers.*.BloomAttention.query_key_value transformers.*.CodeGenAttention.qkv_proj
        transformers.models.deberta.modeling_deberta.DisentangledSelfAttention.in_proj
        transformers.*.GPTNeoXAttention.query_key_value transformers.*.GPTNeoXJapaneseAttention.query_key_value
        transformers.*.MiniMaxLightningAttention.qkv_proj transformers.*.PersimmonAttention.query_key_value
        transformers.*.Qwen3NextGatedDeltaNet.in_proj_qkvz transformers.*.Qwen3NextGatedDeltaNet.in_proj_ba
    """,
    _UNEQUAL: """
        timm.models.mobilevit.LinearSelfAttention.qkv_proj transformers.*.BambaMixer.in_proj
        transformers.*.FalconH1Mixer.in_proj transformers.*.Mamba2Mixer.in_proj
        transformers.*.NemotronHMamba2Mixer.in_proj transformers.*.Zamba2MambaMixer.in_proj
    """,
}  # fmt: skip

_BARE: dict[str, str] = {
    "router": "transformers.*Router.weight",
    "position": """
        timm.*.pos_embed timm.*.pos_embed[_1-9]* timm.*.*_pos_embed timm.*.position_embedding
        timm.*.position_embedding_table timm.models.tnt.TNT.*_pos timm.*.pos_embedding
        timm.*.relative_position_bias_table
        timm.*.rel_pos timm.*.rel_pos_* timm.*.height_rel timm.*.width_rel timm.*.attention_biases
        timm.*.cls_token timm.*.reg_token timm.*.dist_token timm.*.register_tokens timm.*.latent timm.*.query
        torchvision.*.pos_embedding torchvision.*.relative_position_bias_table torchvision.*.rel_pos_*
        torchvision.*.class_token torchvision.*.*_positions
        transformers.*.position_embedding transformers.*.position_embeddings transformers.*.pos_embed
        transformers.*.absolute_pos_embed transformers.*.relative_position_bias_table transformers.*.rel_pos_*
        transformers.*.*positional_embedding transformers.*.query_tokens transformers.*.register_tokens
        transformers.*.latents transformers.*.probe transformers.*.image_newline transformers.*.class_embedding
        transformers.*.attention_biases transformers.*.latent_query transformers.*.level_embed transformers.*.group_token
        transformers.*.position_embedding_table transformers.*.pos_embed_window transformers.*.relative_attention_bias
        transformers.*.cls_token transformers.*.cls_register_token transformers.*.time_embeddings transformers.*.mask_tokens
        transformers.*.detection_tokens transformers.*.mid_position_embeddings transformers.*.memory_temporal_positional_encoding
        transformers.*.AriaProjector.query transformers.*.GraniteSpeech*Projector.query transformers.*.seg_embed
    """,
    "other": """
        transformers.*Mixer.A_log transformers.*.A_log transformers.*.D transformers.*.dt_bias
        transformers.*.bias_u transformers.*.bias_v
        transformers.*.pos_bias_u transformers.*.pos_bias_v transformers.*.r_r_bias transformers.*.r_s_bias
        transformers.*.r_w_bias transformers.*Rglru.*_gate_bias transformers.*.CohereLayerNorm.weight transformers.*Experts.*_bias timm.*.gamma timm.*.gamma_*
        timm.*.layer_scale* timm.*.alpha timm.*.beta timm.*.temperature
    """,
    "hidden: transpose": """
        transformers.pytorch_utils.Conv1D.weight transformers.*.Gemma3MultiModalProjector.mm_input_projection_weight
        transformers.*.T5Gemma2MultiModalProjector.mm_input_projection_weight
    """,
    "experts: stack": """
        transformers.*.JetMoeParallelExperts.weight
        transformers.*.LongcatFlashExperts.down_proj transformers.*.Step3p7Experts.down_proj
    """,
    "experts: stack, rows 2": "transformers.*.LongcatFlashExperts.gate_up_proj transformers.*.Step3p7Experts.gate_up_proj",
    "experts: stack, transpose": "transformers.*.Llama4TextExperts.down_proj transformers.*Rglru.*_gate_weight",
    "experts: stack, transpose, rows 2": "transformers.*.Llama4TextExperts.gate_up_proj",
}


def _patterns(table: Mapping[Any, str]) -> dict[str, Any]:
    return {pattern: value for value, text in table.items() for pattern in text.split()}


PARTS: dict[str, Parts] = _patterns(_LAYOUTS)
"""By a module's class and the name of a layer in it: the parts of that layer's matrix, whose rows are outputs."""
BARE: dict[str, str] = _patterns(_BARE)
"""By a module's class and the name of a parameter of its own: its role, and after a colon its view."""


def qualified(module: nn.Module) -> str:
    """The name of the class whose forward the module runs."""
    cls = next((one for one in type(module).__mro__ if "forward" in vars(one)), type(module))
    return f"{cls.__module__}.{cls.__qualname__}"


def parts_of(module: nn.Module, layer: str) -> tuple[str, str]:
    """The steps that part the matrix of a module's layer, and why; two empty texts where nothing is known."""
    name = qualified(module)
    value = _find("PARTS", f"{name}.{layer}")
    if value is None:
        return "", ""
    short = name.rpartition(".")[2]
    try:
        steps = value(module) if callable(value) else str(value)
    except AttributeError as error:
        return "", f"{short}.{layer} of a release that is not known ({error}), so seen whole"
    if steps.startswith("whole: "):
        return "", f"{short}.{layer}: {steps.removeprefix('whole: ')}"
    return steps, f"as {short} reads it"


def bare(module: nn.Module, parameter: str) -> tuple[str, str]:
    """The role and view of a module's own parameter; two empty texts where nothing is known."""
    if qualified(module).startswith("transformers.") and hasattr(module, "is_transposed"):
        found = _experts(module, parameter)
        if found:
            return found
    role, _, view = (_find("BARE", f"{qualified(module)}.{parameter}") or "").partition(": ")
    return role, view


def _experts(module: Any, parameter: str) -> tuple[str, str] | None:
    """transformers' stacks of experts say themselves how they are stored."""
    if parameter not in ("gate_up_proj", "up_proj", "down_proj"):
        return None
    steps = ["stack", *["transpose"] * module.is_transposed]
    if parameter == "gate_up_proj":
        steps += ["rows 2" if module.is_concatenated else "interleaved 2"]
    return "experts", ", ".join(steps)


@cache
def _find(table: str, name: str) -> Any:
    patterns: Mapping[str, Any] = PARTS if table == "PARTS" else BARE
    return next((value for pattern, value in patterns.items() if fnmatchcase(name, pattern)), None)
