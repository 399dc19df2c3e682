"""Starting from a pretrained model: a local Hugging Face folder of the Llama family as the largest network.

Only `config.json` and safetensors are read: nothing is downloaded, no code of the folder runs, no pickle is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from llmnas.errors import UserError
from llmnas.files import read_object
from llmnas.nn.rope import pair_order
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.space.architecture import RopeOrder
from llmnas.space.space import MOST_LAYERS
from llmnas.supernet import Transformer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "seed_oss")


@dataclass(frozen=True)
class Pretrained:
    """A model in this project's terms.

    Attributes:
        base: with `rope_dim` set, so that a sub-network keeps these frequencies.
        arch: every layer at the same sizes.
        weights: by the names of `Transformer.state_dict`, float32.
    """

    base: BaseModel
    arch: Architecture
    weights: dict[str, Tensor]


def read_shape(folder: Path, rope_order: RopeOrder = "leading") -> tuple[BaseModel, Architecture]:
    """What `config.json` says of a model, without its weights.

    Raises:
        UserError: no such folder, another family, or a feature that this project's layers do not have.
    """
    path = folder / "config.json"
    if not path.is_file():
        what = "holds no config.json" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; give the Hugging Face folder of a model on this machine")
    return _shape(read_object(path), path, rope_order)


def read_pretrained(folder: Path, rope_order: RopeOrder = "leading") -> Pretrained:
    """Read a dense Llama, Mistral, Qwen2, Qwen3 or Seed-OSS checkpoint.

    Args:
        folder: with `config.json` and `model.safetensors` (or its shards and their index).
        rope_order: which pairs of channels a smaller head_dim keeps, see `BaseModel`.

    Raises:
        UserError: another family, a feature that this project's layers do not have, or damaged files.
    """
    base, arch = read_shape(folder, rope_order)
    return Pretrained(base, arch, _translated(_read_weights(folder), base, arch, folder))


def check_pretrained(folder: Path) -> None:
    """Refuse what `read_pretrained` would, without reading the weights: files tell their shapes at their beginning.

    Raises:
        UserError: as `read_pretrained` does.
    """
    base, arch = read_shape(folder)
    with torch.device("meta"):
        _translated(_read_weights(folder, shapes_only=True), base, arch, folder)


def _translated(stock: dict[str, Tensor], base: BaseModel, arch: Architecture, folder: Path) -> dict[str, Tensor]:
    """The weights of a stock model, all of which are used, by our names."""
    (_, spec), dim = arch.kept[0], arch.kept[0][1].head_dim
    halves = torch.tensor(pair_order(dim // 2, base.rope_order))
    # stock models turn channels (i, i + dim / 2) together, ours stand side by side
    pairs = torch.stack([halves, halves + dim // 2], 1).flatten()

    def take(name: str) -> Tensor:
        if name not in stock:
            raise UserError(f"{folder}: the weights have no {name}")
        return stock.pop(name).float()

    weights = {"embedding": take("model.embed_tokens.weight"), "norm": take("model.norm.weight")}
    if not base.tied:
        weights["head"] = take("lm_head.weight")
    stock.pop("lm_head.weight", None)
    for i in range(arch.depth):
        layer = {
            name.removeprefix(f"model.layers.{i}."): take(name)
            for name in sorted(stock)
            if name.startswith(f"model.layers.{i}.")
        }
        ours = _layer(layer, spec, pairs, folder, i)
        weights |= {f"layers.{i}.{name}": weight.contiguous() for name, weight in ours.items()}
    left = [name for name in stock if "rotary" not in name]
    if left:
        raise UserError(f"{folder}: weights that no layer here has: {', '.join(sorted(left)[:3])}")
    with torch.device("meta"):
        expected = Transformer(FixedShape(base, arch), seed=None).state_dict()
    for name, weight in weights.items():
        if name in expected and weight.shape != expected[name].shape:
            raise UserError(
                f"{folder}: {name} is {list(weight.shape)}, config.json asks for {list(expected[name].shape)}"
            )
    return weights


def warm_start(model: Transformer, pretrained: Pretrained) -> None:
    """Make the pretrained model the largest network of `model`, in place.

    Raises:
        UserError: the largest network of the space has other sizes, with both.
    """
    ours, theirs = model.envelope.to_dict(), pretrained.arch.to_dict()
    if ours != theirs or model.base.vocab_size != pretrained.base.vocab_size:
        raise UserError(
            f"warm start: the largest network of the space must be the pretrained model: {theirs['hidden_size']} wide, "
            f"{pretrained.arch.depth} layers of {theirs['layers'][0]}, vocabulary {pretrained.base.vocab_size}; "
            f"the space has {ours['hidden_size']} wide, {model.envelope.depth} layers of {ours['layers'][0]}, "
            f"vocabulary {model.base.vocab_size}"
        )
    for name in ("tied", "qk_norm", "qkv_bias", "rope_theta", "rope_order", "norm_eps"):
        own, other = getattr(model.base, name), getattr(pretrained.base, name)
        if own != other:
            raise UserError(f"warm start: base.{name} must be {other} as in the pretrained model, got {own}")
    missing = model.load_state_dict(pretrained.weights, strict=False).missing_keys
    untrained = [name for name in missing if not name.endswith(("_scale", "balance"))]
    if untrained:
        raise UserError(f"warm start: the pretrained model has no weights for {', '.join(untrained[:3])}")


def _whole(config: dict[str, Any], name: str, least: int = 1, most: int = 2**31 - 1) -> int:
    value = config.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} = {value!r}, must be a whole number from {least} to {most}")
    return value


def _longest(config: dict[str, Any]) -> int:
    """The longest sequence: as far as positions go, and where a window slides only as far as it reaches, since within
    so many tokens a model that has one is one without. A single token has no next one to learn from."""
    positions = _whole({"max_position_embeddings": 2048} | config, "max_position_embeddings", least=2)
    # the default of transformers' MistralConfig; the Qwen families have theirs behind `use_sliding_window`
    window = {"sliding_window": 4096} | config
    if config.get("model_type") != "mistral" or not window["sliding_window"]:
        return positions
    return min(positions, _whole(window, "sliding_window", least=2))


def _shape(config: dict[str, Any], where: Path, rope_order: RopeOrder) -> tuple[BaseModel, Architecture]:
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{where}: model_type is {kind!r}; allowed: {', '.join(FAMILIES)}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: not the config of a {kind} model (rope_parameters = {rope!r})")
    refused = {
        "hidden_act": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "mlp_bias": bool(config.get("mlp_bias")),
        "use_sliding_window": bool(config.get("use_sliding_window")),
    }
    wrong = [name for name, bad in refused.items() if bad]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} = {config.get(wrong[0], rope)!r} is not supported")
    given = {name: value for name, value in config.items() if value is not None}
    try:
        heads, hidden_size = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
        kv_heads = _whole({"num_key_value_heads": heads} | given, "num_key_value_heads")
        head_dim = _whole({"head_dim": hidden_size // heads} | given, "head_dim")
        spec = LayerSpec(kv_heads, heads // kv_heads, head_dim, _whole(config, "intermediate_size"))
        arch = Architecture(hidden_size, (spec,) * _whole(config, "num_hidden_layers", most=MOST_LAYERS))
        base = BaseModel(
            vocab_size=_whole(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", False)),
            qk_norm=kind == "qwen3",
            qkv_bias=kind == "qwen2" or bool(config.get("attention_bias")),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            rope_dim=head_dim,
            rope_order=rope_order,
            max_seq=_longest(config),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where}: not the config of a {kind} model ({error})") from None
    return base, arch


def _read_weights(folder: Path, *, shapes_only: bool = False) -> dict[str, Tensor]:
    """Every tensor of the files by its name; with `shapes_only` tensors without values."""
    index = folder / "model.safetensors.index.json"
    shards = {"": "model.safetensors"}
    if index.exists():
        shards = read_object(index).get("weight_map", {})
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise UserError(f"{index}: no weight_map from names of weights to files beside it")
    found: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise UserError(f"{path}: no such file; weights must be safetensors beside config.json")
        try:
            if shapes_only:
                with safe_open(path, "pt") as file:
                    for key in file.keys():  # noqa: SIM118 (no mapping)
                        found[key] = torch.empty(file.get_slice(key).get_shape(), device="meta")
            else:
                found |= load(path.read_bytes())
        except SafetensorError as error:
            raise UserError(f"{path}: damaged weights ({error})") from None
    return found


def _layer(stock: dict[str, Tensor], spec: LayerSpec, pairs: Tensor, folder: Path, number: int) -> dict[str, Tensor]:
    """One layer of a stock model by our names: heads on a grid, rotary pairs side by side."""
    kv, queries, dim = spec.kv_heads, spec.queries_per_group, spec.head_dim
    grids = {"q": (kv, queries, dim), "k": (kv, dim), "v": (kv, dim)}
    try:
        found = {
            "mixer_norm": stock.pop("input_layernorm.weight"),
            "ffn_norm": stock.pop("post_attention_layernorm.weight"),
            "attention.o": _grid(stock.pop("self_attn.o_proj.weight"), 1, grids["q"]),
        }
        for name in ("gate", "up", "down"):
            found[f"ffn.{name}"] = stock.pop(f"mlp.{name}_proj.weight")
        for name, grid in grids.items():
            for suffix, kind in (("", "weight"), ("_bias", "bias")):
                key = f"self_attn.{name}_proj.{kind}"
                if kind == "weight" or key in stock:
                    weight = _grid(stock.pop(key), 0, grid)
                    found[f"attention.{name}{suffix}"] = (
                        weight if name == "v" else weight.index_select(len(grid) - 1, pairs)
                    )
        for name in ("q_norm", "k_norm"):
            if f"self_attn.{name}.weight" in stock:
                found[f"attention.{name}"] = stock.pop(f"self_attn.{name}.weight")[pairs]
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{folder}: layer {number}: a weight is missing or has another shape than config.json says ({error})"
        ) from None
    bias = stock.pop("self_attn.o_proj.bias", None)
    if bias is not None and not bias.is_meta and bias.any():
        raise UserError(f"{folder}: layer {number}: a bias on the output projection is not supported")
    if stock:
        raise UserError(f"{folder}: layer {number}: weights that no layer here has: {', '.join(sorted(stock)[:3])}")
    return found


def _grid(weight: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """One axis of heads and channels as a grid of them."""
    return weight.reshape(*weight.shape[:axis], *sizes, *weight.shape[axis + 1 :])
