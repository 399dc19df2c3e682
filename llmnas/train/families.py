"""The families of pretrained models that the layers here can compute, one row each.

A row says how a family differs from a Llama: which properties of `BaseModel` it has, and how its weights become those
of a Llama (renamed, split, or with a factor folded in). A new family is a new row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from llmnas.space.architecture import Activation, Norms

Weights = dict[str, Tensor]
Change = Callable[[Weights, Any], None]
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@dataclass(frozen=True)
class Family:
    """How a kind of model differs from a Llama.

    Attributes:
        qk_norm: RMSNorm on queries and keys, over each head or over all of them.
        norms: where its blocks normalise.
        norm: of the residual stream.
        parallel: attention and feed-forward are added at once, after one norm.
        activation: of its feed-forwards, and what config.json may call it.
        biased: the class has biases on q, k and v whatever the config says.
        interleaved: rotary pairs stand side by side, where a Llama has them half a head apart.
        experts: its feed-forwards are mixtures; whether the weights of the chosen ones sum to one, by its config.
        layer: changes the weights of one layer in place, in this order; names are those behind `model.layers.0.`.
        whole: changes the weights outside of layers in place.
        refused: by the name of a key of its config, for which values of it the layers here compute something else.
    """

    qk_norm: Literal["head", "heads"] | None = None
    norms: Norms = "pre"
    norm: Literal["rms", "layer"] = "rms"
    parallel: bool = False
    activation: Activation = "silu"
    biased: bool = False
    interleaved: bool = False
    experts: Callable[[Any], bool] | None = None
    layer: tuple[Change, ...] = ()
    whole: tuple[Change, ...] = ()
    refused: tuple[str, ...] = ("mlp_bias",)


def _renamed(**names: str) -> Change:
    """Norms under the names that a Llama has for them, or ours where it has none."""

    def change(weights: Weights, _config: Any) -> None:
        taken = {new: weights.pop(f"{old}.weight") for old, new in names.items() if f"{old}.weight" in weights}
        weights.update({f"{new}.weight": weight for new, weight in taken.items()})

    return change


def _split_qkv(weights: Weights, config: Any) -> None:
    """One matrix of queries, keys and values, one below the other."""
    for kind in ("weight", "bias"):
        fused = weights.pop(f"self_attn.qkv_proj.{kind}", None)
        if fused is not None:
            dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            sizes = [dim * config.num_attention_heads, *[dim * config.num_key_value_heads] * 2]
            for name, part in zip("qkv", torch.split(fused, sizes), strict=True):
                weights[f"self_attn.{name}_proj.{kind}"] = part


def _split_gate_up(weights: Weights, _config: Any) -> None:
    """One matrix of gate and up."""
    fused = weights.pop("mlp.gate_up_proj.weight", None)
    if fused is not None:
        weights["mlp.gate_proj.weight"], weights["mlp.up_proj.weight"] = fused.chunk(2)


def _one_more(weights: Weights, _config: Any) -> None:
    """Gemma stores the gains of its norms less one."""
    for name in [name for name in weights if "norm" in name]:
        weights[name] = weights[name] + 1


def _mixtral_names(weights: Weights, _config: Any) -> None:
    """Mixtral has names of its own for experts."""
    for name in [name for name in weights if name.startswith("block_sparse_moe.")]:
        new = name.replace("block_sparse_moe.", "mlp.")
        for theirs, ours in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            new = new.replace(f".{theirs}.", f".{ours}.")
        weights[new] = weights.pop(name)


def _scale(weights: Weights, factor: float, *names: str) -> None:
    for name in names:
        if name in weights and factor != 1:
            weights[name] = weights[name] * factor


def _scaled_embedding(weights: Weights, factor: float, logits: float = 1.0) -> None:
    """Multiply what the embedding gives by `factor` and the logits by `logits`: in the embedding, the head where it
    has weights of its own, and else the gain of the last norm."""
    _scale(weights, factor, EMBEDDING)
    if HEAD in weights:
        _scale(weights, logits, HEAD)
    else:
        _scale(weights, logits / factor, NORM)


def _gemma_embedding(weights: Weights, config: Any) -> None:
    _scaled_embedding(weights, math.sqrt(config.hidden_size))


def _cohere_logits(weights: Weights, config: Any) -> None:
    _scaled_embedding(weights, 1.0, config.logit_scale)


def _granite_embedding(weights: Weights, config: Any) -> None:
    _scaled_embedding(weights, config.embedding_multiplier, 1 / config.logits_scaling)


def _granite_layer(weights: Weights, config: Any) -> None:
    """Scores are multiplied by a number instead of 1 / sqrt(head_dim), and what a block adds by another."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scores = config.attention_multiplier * math.sqrt(dim)
    _scale(weights, scores, "self_attn.q_proj.weight", "self_attn.q_proj.bias")
    _scale(weights, config.residual_multiplier, "self_attn.o_proj.weight", "self_attn.o_proj.bias")
    _scale(weights, config.residual_multiplier, "mlp.down_proj.weight")


def _gemma_scores(weights: Weights, config: Any) -> None:
    """Scores are divided by sqrt(query_pre_attn_scalar): in the gain of the queries' norm."""
    _scale(weights, math.sqrt(config.head_dim / config.query_pre_attn_scalar), "self_attn.q_norm.weight")


_OLMO = _renamed(post_attention_layernorm="input_layernorm", post_feedforward_layernorm="post_attention_layernorm")
_GEMMA = _renamed(
    post_attention_layernorm="mixer_out_norm",
    pre_feedforward_layernorm="post_attention_layernorm",
    post_feedforward_layernorm="ffn_out_norm",
)
_COHERE = _renamed(input_layernorm="post_attention_layernorm")
_GLM = _renamed(post_self_attn_layernorm="mixer_out_norm", post_mlp_layernorm="ffn_out_norm")

FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(),
    "qwen2": Family(biased=True),
    "qwen3": Family(qk_norm="head"),
    "seed_oss": Family(),
    "smollm3": Family(),
    "granite": Family(layer=(_granite_layer,), whole=(_granite_embedding,)),
    "phi3": Family(layer=(_split_qkv, _split_gate_up)),
    "ernie4_5": Family(interleaved=True, refused=("use_bias",)),
    "glm": Family(interleaved=True, layer=(_split_gate_up,)),
    "glm4": Family(interleaved=True, norms="both", layer=(_split_gate_up, _GLM)),
    "olmo2": Family(qk_norm="heads", norms="post", layer=(_OLMO,)),
    "olmo3": Family(qk_norm="heads", norms="post", layer=(_OLMO,)),
    "exaone4": Family(qk_norm="head", norms="post", layer=(_OLMO,)),
    "gemma": Family(activation="gelu_tanh", layer=(_one_more,), whole=(_one_more, _gemma_embedding)),
    "gemma3_text": Family(
        qk_norm="head", norms="both", activation="gelu_tanh", layer=(_one_more, _GEMMA, _gemma_scores),
        whole=(_one_more, _gemma_embedding),
        refused=("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"),
    ),
    "cohere": Family(
        norm="layer", parallel=True, interleaved=True, layer=(_COHERE,), whole=(_cohere_logits,),
        refused=("use_qk_norm",),
    ),
    "cohere2": Family(norm="layer", parallel=True, interleaved=True, layer=(_COHERE,), whole=(_cohere_logits,)),
    "mixtral": Family(experts=lambda _: True, layer=(_mixtral_names,)),
    "qwen3_moe": Family(qk_norm="head", experts=lambda c: bool(c.norm_topk_prob), refused=("mlp_only_layers",)),
}  # fmt: skip

_OTHER_NORM = "its LayerNorm has a shift, and biases have no counterpart here"
REFUSED = {
    "starcoder2": f"its feed-forward has no gate, and {_OTHER_NORM}",
    "gemma2": "soft caps on attention scores have no counterpart here",
    "gemma3": "it reads pictures; give the folder of its text model (model_type gemma3_text)",
    "gpt2": f"positions are learned vectors, and {_OTHER_NORM}",
    "gpt_neox": f"its feed-forward has no gate, and {_OTHER_NORM}",
    "phi": f"its feed-forward has no gate, and {_OTHER_NORM}",
    "stablelm": _OTHER_NORM,
    "olmo": "its LayerNorm has no gain",
    "arcee": "its feed-forward has no gate",
    "nemotron": "its feed-forward has no gate",
    "deepseek_v2": "latent attention (MLA) has no counterpart here",
    "deepseek_v3": "latent attention (MLA) has no counterpart here",
    "gpt_oss": "attention sinks have no counterpart here",
    "hunyuan_v1_dense": "queries and keys are normalised after they are rotated",
    "mamba": "state space layers have no counterpart here",
    "falcon": f"its feed-forward has no gate, and {_OTHER_NORM}",
    "lfm2": "short convolutions are not read from checkpoints",
    "qwen3_next": "gated delta layers are not read from checkpoints",
}
"""Why well-known others are not read."""
