"""Names of classes, and the `config.json` of a stock transformers class."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from llmnas.export.experts import StockExperts
from llmnas.export.shape import StockShape
from llmnas.space import Architecture, BaseModel

CLASS_NAMES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}


def has_output_bias(kind: str, base: BaseModel) -> bool:
    """Whether the class, asked for biases on q, k and v, has one on the output projection too."""
    return base.qkv_bias and kind != "seed_oss"


def stock_config(base: BaseModel, arch: Architecture, kind: str, shape: StockShape, eos_id: int | None) -> Any:
    """A transformers `PreTrainedConfig`, for float32 weights.

    Args:
        base: of the model.
        arch: the stand-alone architecture.
        kind: `stock_class(base, arch)`.
        shape: `stock_shape(base, arch)`.
        eos_id: the token that ends and begins documents, or None without a tokenizer.
    """
    spec = shape.spec
    own: dict[str, Any]
    if shape.experts:
        own = _expert_keys(base, arch, shape.experts)
    elif kind == "smollm3":
        turning = [int(base.layer_rope is None or i not in base.layer_rope.layers) for i in range(arch.depth)]
        own = {"attention_bias": base.qkv_bias, "no_rope_layers": turning, "use_sliding_window": False}
    elif kind == "mistral":
        own = {"sliding_window": None}
    elif kind == "seed_oss":
        own = {"attention_bias": True, "attention_dropout": 0.0, "residual_dropout": 0.0}
    else:
        own = {"attention_bias": base.qkv_bias}
    return AutoConfig.for_model(
        kind,
        **common_keys(base, arch, CLASS_NAMES[kind], shape.rope_theta, eos_id),
        num_attention_heads=spec.q_heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        intermediate_size=shape.experts.ffn_size if kind == "mixtral" and shape.experts else spec.ffn_size,
        **own,
    )


def common_keys(
    base: BaseModel, arch: Architecture, class_name: str, rope_theta: float, eos_id: int | None
) -> dict[str, Any]:
    """What every config of a foreign class says in the same words."""
    return {
        "architectures": [class_name],
        "dtype": "float32",
        "vocab_size": base.vocab_size,
        "tie_word_embeddings": base.tied,
        "hidden_size": arch.hidden_size,
        "num_hidden_layers": arch.depth,
        "max_position_embeddings": base.max_seq,
        "rms_norm_eps": base.norm_eps,
        "rope_parameters": rope_parameters(base, rope_theta),
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        # nn.Embedding never trains its padding row, and ours is the end of text: only generation_config has it
        "pad_token_id": None,
    }


def rope_parameters(base: BaseModel, theta: float) -> dict[str, Any]:
    """Rotary positions as transformers writes them; `theta` is the base that the stock model's head size needs."""
    scaling = base.rope_scaling
    found: dict[str, Any] = {"rope_type": "default" if scaling is None else scaling.kind, "rope_theta": theta}
    if scaling is None:
        return found
    found["factor"] = scaling.factor
    if scaling.kind != "linear" and scaling.original_max_seq:
        found["original_max_position_embeddings"] = scaling.original_max_seq
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        found |= {name: getattr(scaling, name) for name in ("beta_fast", "beta_slow", "truncate")}
    if scaling.kind in {"yarn", "longrope"}:
        found["attention_factor"] = scaling.magnitude
    if scaling.kind == "longrope":  # `max_seq` ends where the long ones would begin
        found |= {name: list(scaling.pair_factors) for name in ("short_factor", "long_factor")}
    return found


def _expert_keys(base: BaseModel, arch: Architecture, experts: StockExperts) -> dict[str, Any]:
    """What the config says of experts: Qwen3MoE names its layers without any, Mixtral has none of those."""
    keys: dict[str, Any] = {"num_experts_per_tok": experts.top_k, "num_local_experts": experts.experts}
    if experts.kind == "mixtral":
        return keys | {"sliding_window": None}
    dense = [i for i, (_, spec) in enumerate(arch.kept) if not experts.has_router(spec)]
    return keys | {
        "moe_intermediate_size": experts.ffn_size,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
        "norm_topk_prob": base.norm_top_k,
        "attention_bias": base.qkv_bias,
        "use_sliding_window": False,
    }
