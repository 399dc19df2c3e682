"""GGUF files for llama.cpp, with the sizes of each layer as they are, checked by reading the file back.

Architectures of llama.cpp: `llama` (one size for all layers, or experts whose weights are renormalised), `deci` where
heads or FFN sizes differ by layer, `qwen3` and `qwen3moe` with the QK norm, `bitnet` for ternary weights. `llama` and
`deci` turn neighbouring channels, so the rotate_half layout of transformers is undone for them. Ternary weights are
stored as their codes in TQ1_0 or TQ2_0 blocks of 256, with one `.scale` a matrix.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize
from torch import Tensor

from llmnas.errors import RunError, UserError
from llmnas.export.bitnet import bitnet_shape, coded_weights
from llmnas.export.layout import stock_reason
from llmnas.export.shape import StockShape, stock_shape
from llmnas.export.tokenizer import EOS_ID, chat_template, pad_id
from llmnas.export.weights import stock_weights
from llmnas.files import read_json, sync_dir
from llmnas.space import Architecture, BaseModel, LayerSpec
from llmnas.supernet import Transformer

BLOCK = 256
TERNARY_TYPES = {
    "tq1_0": (GGMLQuantizationType.TQ1_0, LlamaFileType.MOSTLY_TQ1_0),
    "tq2_0": (GGMLQuantizationType.TQ2_0, LlamaFileType.MOSTLY_TQ2_0),
}
_TURNS_NEIGHBOURS = ("llama", "deci")
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_EXPERTS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}


class Contents(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        arch: llama.cpp's name of the architecture.
        shapes: of each layer.
        tensors: float32 by name; those of `codes` hold -1, 0 and 1.
        codes: names of the tensors that are stored as ternary blocks.
    """

    arch: str
    shapes: tuple[StockShape, ...]
    tensors: dict[str, Tensor]
    codes: frozenset[str] = frozenset()


def contents(model: Transformer) -> Contents:
    """Tensors and sizes of a stand-alone model, which is float32 on the CPU.

    Raises:
        UserError: llama.cpp computes no such network, with the reason.
    """
    base, arch = replace(model.base, rope_dim=model.rope_dim), model.envelope
    if base.rope_scaling or base.layer_rope or base.rope_part != 1:
        raise UserError("export: GGUF is written for plain rotary positions only, the same in every layer")
    if any(spec.weights == "ternary" for _, spec in arch.kept):
        return _ternary(model, bitnet_shape(base, arch))
    reason = stock_reason(model)
    if reason is not None:
        raise UserError(f"{reason}; llama.cpp has no such layers either, use --format hf")
    name, shapes = gguf_shapes(base, arch)
    weights = stock_weights(model, shapes[0], o_bias=False, shapes=shapes)
    return Contents(name, shapes, _renamed(weights, name, shapes))


def gguf_shapes(base: BaseModel, arch: Architecture) -> tuple[str, tuple[StockShape, ...]]:
    """llama.cpp's architecture for dense weights, and the sizes of each layer in it.

    Raises:
        UserError: experts as none of its architectures has them.
    """
    shape = stock_shape(base, arch)
    same = (shape,) * arch.depth
    if shape.experts:
        if not base.norm_top_k and shape.experts.top_k < shape.experts.experts:
            raise UserError("export: llama.cpp renormalises the weights of the chosen experts, this network does not")
        if any(not shape.experts.has_router(spec) for _, spec in arch.kept):
            raise UserError("export: llama.cpp's qwen3moe has experts in every layer, here some have none")
        return ("qwen3moe" if base.qk_norm else "llama"), same
    if base.qk_norm:
        return "qwen3", same
    if shape.exact or base.qkv_bias:  # deci has no biases
        return "llama", same
    dim = shape.spec.head_dim
    own = [LayerSpec(s.kv_heads, s.queries_per_group, dim, s.ffn_size) for _, s in arch.kept]
    return "deci", tuple(replace(shape, spec=spec) for spec in own)


def _ternary(model: Transformer, shape: StockShape) -> Contents:
    sizes = {"hidden_size": model.envelope.hidden_size, "ffn_size": shape.spec.ffn_size}
    for name, size in sizes.items():
        if size % BLOCK:
            raise UserError(f"export: GGUF's ternary types have blocks of {BLOCK} weights, {name} is {size}")
    if not model.base.tied or model.base.qkv_bias:
        raise UserError("export: llama.cpp's bitnet ties its head to the embedding and has no biases")
    shapes = (shape,) * model.envelope.depth
    weights, gammas = coded_weights(model, shape)
    tensors = _renamed(weights, "bitnet", shapes)
    scales = _renamed({f"{layer}.scale": gamma for layer, gamma in gammas.items()}, "bitnet", shapes)
    return Contents("bitnet", shapes, tensors | scales, frozenset(name.replace("scale", "weight") for name in scales))


def _renamed(weights: dict[str, Tensor], arch: str, shapes: tuple[StockShape, ...]) -> dict[str, Tensor]:
    """From transformers' names and layout to llama.cpp's; experts of a layer become one tensor."""
    found: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        module, kind = name.rsplit(".", 1)
        if module in _OUTSIDE:
            found[f"{_OUTSIDE[module]}.{kind}"] = weight
            continue
        number, part = module.removeprefix("model.layers.").split(".", 1)
        spec = shapes[int(number)].spec
        if ".experts." in part:  # in the order of their numbers
            experts.setdefault(f"blk.{number}.ffn_{_EXPERTS[part.split('.')[-1]]}_exps.{kind}", []).append(weight)
            continue
        if arch in _TURNS_NEIGHBOURS and kind != "scale" and part in {"self_attn.q_proj", "self_attn.k_proj"}:
            weight = neighbours(weight, spec.q_heads if part.endswith("q_proj") else spec.kv_heads)
        found[f"blk.{number}.{_NAMES[part]}.{kind}"] = weight
    return found | {name: torch.stack(parts) for name, parts in experts.items()}


def neighbours(weight: Tensor, heads: int) -> Tensor:
    """[heads D, ..] whose pairs are channels (i, i + D / 2) -> the same with pairs (2 i, 2 i + 1)."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def export_gguf(
    model: Transformer,
    path: Path,
    *,
    tokenizer_path: Path | None,
    name: str,
    eos_id: int = EOS_ID,
    force: bool = False,
    ternary: str | None = None,
) -> Contents:
    """`write_gguf` under a temporary name, renamed to `path` when it has been read back.

    Raises:
        UserError: `path` is there already, or llama.cpp computes no such network.
        RunError: the file cannot be written, or does not hold what was written.
    """
    if path.exists() and not force:
        raise UserError(f"{path}: is there already; replace it with --force")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = write_gguf(
            model.float().cpu(), partial, tokenizer_path=tokenizer_path, name=name, ternary=ternary, eos_id=eos_id
        )
        sync_dir(partial)  # it opens and fsyncs, files too
        partial.replace(path)
        sync_dir(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot write the export: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return held


def write_gguf(
    model: Transformer,
    path: Path,
    *,
    tokenizer_path: Path | None,
    name: str,
    ternary: str | None = None,
    eos_id: int = EOS_ID,
) -> Contents:
    """Write one file and read it back.

    Args:
        model: stand-alone, float32 on the CPU.
        path: of the new file.
        tokenizer_path: a byte-level `tokenizer.json`, or None; the chat template beside it is kept.
        name: of the model, in the file.
        ternary: a key of `TERNARY_TYPES`; None for TQ2_0 where there are ternary weights.
        eos_id: the tokenizer's entry that ends a text.

    Raises:
        UserError: llama.cpp computes no such network, or `ternary` is given for one without ternary weights.
        RunError: the file does not hold what was written.
    """
    held = contents(model)
    if ternary and not held.codes:
        raise UserError(f"export: {ternary} is a type of ternary weights, and this network has none")
    quantisation, file_type = TERNARY_TYPES[ternary or "tq2_0"]
    writer = GGUFWriter(path, held.arch)
    writer.add_name(name)
    _add_sizes(writer, model, held)
    writer.add_file_type(file_type if held.codes else LlamaFileType.ALL_F32)
    _add_tokenizer(writer, tokenizer_path, model.base.vocab_size, eos_id)
    for tensor, weight in held.tensors.items():
        values = weight.contiguous().numpy()
        if tensor in held.codes:
            writer.add_tensor(tensor, quantize(values, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_gguf(path, held)
    return held


def _add_sizes(writer: GGUFWriter, model: Transformer, held: Contents) -> None:
    base, first, specs = model.base, held.shapes[0], [shape.spec for shape in held.shapes]
    writer.add_block_count(len(specs))
    writer.add_context_length(base.max_seq)
    writer.add_embedding_length(model.envelope.hidden_size)
    writer.add_vocab_size(base.vocab_size)
    writer.add_layer_norm_rms_eps(base.norm_eps)
    writer.add_rope_freq_base(first.rope_theta)
    writer.add_rope_dimension_count(first.spec.head_dim)
    writer.add_key_length(first.spec.head_dim)
    writer.add_value_length(first.spec.head_dim)
    by_layer = held.arch == "deci"
    writer.add_head_count([s.q_heads for s in specs] if by_layer else specs[0].q_heads)
    writer.add_head_count_kv([s.kv_heads for s in specs] if by_layer else specs[0].kv_heads)
    grid = first.experts
    if grid:
        writer.add_expert_count(grid.experts)
        writer.add_expert_used_count(grid.top_k)
        writer.add_expert_feed_forward_length(grid.ffn_size)
    ffn_size = grid.ffn_size if grid else specs[0].ffn_size
    writer.add_feed_forward_length([s.ffn_size for s in specs] if by_layer else ffn_size)


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _splits_as_gpt2(splits: dict[str, Any]) -> bool:
    """Whether text is cut into words as GPT-2 does it, or so except that no word is longer than a limit.

    llama.cpp knows no limit: it reads a run of more than so many letters in other tokens, of the same text.
    """
    if splits.get("type") == "ByteLevel":
        return True
    parts = splits.get("pretokenizers") or []
    if splits.get("type") != "Sequence" or [part.get("type") for part in parts] != ["Split", "ByteLevel"]:
        return False
    words = re.sub(r"\{1,\d+\}", "+", str(parts[0].get("pattern", {}).get("Regex")))
    return words == _GPT2 and parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")


def _add_tokenizer(writer: GGUFWriter, path: Path | None, vocab_size: int, eos_id: int) -> None:
    """Byte-level BPE with GPT-2's splitting, as all tokenizers of this project (see `_splits_as_gpt2`)."""
    if path is None:
        writer.add_tokenizer_model("none")
        return
    stored: dict[str, Any] = read_json(path)
    if stored["model"].get("type") != "BPE" or not _splits_as_gpt2(stored.get("pre_tokenizer") or {}):
        raise UserError(f"{path}: GGUF export knows byte-level BPE with GPT-2's splitting only")
    ids: dict[str, int] = stored["model"]["vocab"] | {t["content"]: t["id"] for t in stored["added_tokens"]}
    special = {token["id"] for token in stored["added_tokens"] if token["special"]} | {eos_id}
    texts = sorted(ids, key=lambda text: ids[text])
    if len(texts) != vocab_size:
        raise UserError(f"{path}: has {len(texts)} entries, the model's vocabulary {vocab_size}; they must be equal")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types([TokenType.CONTROL if ids[text] in special else TokenType.NORMAL for text in texts])
    merges = stored["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(eos_id)
    writer.add_eos_token_id(eos_id)
    writer.add_pad_token_id(pad_id(path, eos_id))
    writer.add_add_bos_token(False)
    template = chat_template(path)
    if template is not None:
        writer.add_chat_template(template)


def check_gguf(path: Path, held: Contents) -> None:
    """Read a file with gguf's own reader and compare every tensor, bit for bit after dequantisation.

    Raises:
        RunError: names, shapes or values are not those of `held`.
    """
    reader = GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if found.keys() != held.tensors.keys():
        raise RunError(f"{path}: holds other tensors: {sorted(found.keys() ^ held.tensors.keys())[:3]}")
    for name, weight in held.tensors.items():
        values = dequantize(found[name].data, found[name].tensor_type).reshape(weight.shape)
        if not np.array_equal(values, weight.numpy()):
            raise RunError(f"{path}: {name} does not read back as written")
