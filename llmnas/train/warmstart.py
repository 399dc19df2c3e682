"""Starting from a pretrained model: a local Hugging Face folder as the largest network.

Only `config.json` and safetensors are read: nothing is downloaded, no code of the folder runs, no pickle is opened.
Which families there are is said in `families`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmnas.errors import UserError
from llmnas.nn.rope import pair_order, rotated
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec
from llmnas.space.architecture import RopeOrder
from llmnas.space.space import MOST_LAYERS
from llmnas.supernet import Transformer
from llmnas.train.families import EMBEDDING, FAMILIES, HEAD, NORM, REFUSED, Family
from llmnas.train.stock_config import read_stock_config
from llmnas.train.stock_rope import rope_of
from llmnas.train.stock_weights import StockWeights

_FREE = {"vocab_size", "rope_dim", "max_seq", "router", "norm_top_k", "shared_gate"}
"""What of a base the sizes say already, or only experts have."""
_OF_THE_FUNCTION = [field.name for field in fields(BaseModel) if field.name not in _FREE]


@dataclass(frozen=True)
class Pretrained:
    """A model in this project's terms.

    Attributes:
        base: with `rope_dim` set, so that a sub-network keeps these frequencies.
        arch: every layer at the same sizes.
        weights: by the names of `Transformer.state_dict`, float32.
        dtype: what the numbers are stored as.
    """

    base: BaseModel
    arch: Architecture
    weights: dict[str, Tensor]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class StockFolder:
    """A folder whose descriptions have been read, and no weights but those that decide whether the head is tied."""

    folder: Path
    config: Any
    family: Family
    weights: StockWeights
    base: BaseModel
    arch: Architecture


def open_pretrained(folder: Path, rope_order: RopeOrder = "leading") -> StockFolder:
    """Read what `config.json` and the lists of tensors say.

    Args:
        folder: with `config.json` and `model.safetensors` (or its shards and their index).
        rope_order: which pairs of channels a smaller head_dim keeps, see `BaseModel`.

    Raises:
        UserError: no such folder, another family, or a feature that this project's layers do not have.
    """
    config = read_stock_config(folder, FAMILIES, REFUSED)
    family = FAMILIES[config.model_type]
    base, arch = _shape(config, family, folder / "config.json", rope_order)
    weights = StockWeights(folder)
    return StockFolder(folder, config, family, weights, replace(base, tied=base.tied and _tied(weights)), arch)


def read_shape(folder: Path, rope_order: RopeOrder = "leading") -> tuple[BaseModel, Architecture]:
    """What a model is, without its weights; raises as `open_pretrained` does."""
    opened = open_pretrained(folder, rope_order)
    return opened.base, opened.arch


def read_pretrained(folder: Path, rope_order: RopeOrder = "leading") -> Pretrained:
    """Read a checkpoint of one of `FAMILIES`.

    Raises:
        UserError: as `open_pretrained` does, or weights that are missing, left over, damaged or of other shapes.
    """
    opened = open_pretrained(folder, rope_order)
    weights = _translated(opened.weights.read(), opened)
    return Pretrained(opened.base, opened.arch, weights, opened.weights.dtype)


def check_pretrained(folder: Path) -> Pretrained:
    """Refuse what `read_pretrained` would by names and shapes, reading nearly no weights; they are on the device meta.

    Raises:
        UserError: as `read_pretrained` does.
    """
    opened = open_pretrained(folder)
    stock = opened.weights.shapes()
    # whether these are zero matters
    stock |= opened.weights.read({name: None for name in stock if name.endswith(_OUTPUT_BIAS)})
    with torch.device("meta"):
        weights = _translated(stock, opened)
    return Pretrained(opened.base, opened.arch, weights, opened.weights.dtype)


def _tied(weights: StockWeights) -> bool:
    """Whether a model whose config ties the head is tied: transformers keeps a head that is stored and differs."""
    names = [name for name in (EMBEDDING, HEAD) if name in weights.tensors]
    if len(names) < 2:
        return True
    if len({weights.tensors[name].shape for name in names}) > 1:
        return False
    embedding, head = weights.read(dict.fromkeys(names)).values()
    return torch.equal(embedding, head)


def _by_layer(stock: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """The weights outside of layers, and those of each layer by what follows `model.layers.0.`."""
    whole: dict[str, Tensor] = {}
    layers: dict[int, dict[str, Tensor]] = {}
    for name, weight in stock.items():
        number, _, rest = name.removeprefix("model.layers.").partition(".")
        if name.startswith("model.layers.") and number.isdecimal():
            layers.setdefault(int(number), {})[rest] = weight
        else:
            whole[name] = weight
    return whole, layers


def _translated(stock: dict[str, Tensor], opened: StockFolder) -> dict[str, Tensor]:
    """The weights of a stock model, all of which are used, by our names."""
    folder, base, arch = opened.folder, opened.base, opened.arch
    (_, spec), dim = arch.kept[0], arch.kept[0][1].head_dim
    half = rotated(dim, base.rope_part) // 2
    # stock models turn channels (i, i + half) together, ours stand side by side; those that do not turn come last
    turning = torch.stack([torch.arange(half), torch.arange(half, 2 * half)], 1)
    if opened.family.interleaved:
        turning = torch.arange(2 * half).view(-1, 2)
    together = torch.cat([turning, torch.arange(2 * half, dim).view(-1, 2)])
    pairs = together[torch.tensor(pair_order(dim // 2, base.rope_order))].flatten()
    whole, layers = _by_layer(stock)
    if base.tied and HEAD in whole:
        whole.setdefault(EMBEDDING, whole.pop(HEAD))
    for change in opened.family.whole:
        change(whole, opened.config)

    def take(name: str) -> Tensor:
        if name not in whole:
            raise UserError(f"{folder}: the weights have no {name}")
        return whole.pop(name)

    weights = {"embedding.weight": take(EMBEDDING), "norm": take(NORM)}
    if not base.tied:
        weights["head.weight"] = take(HEAD)
    for i in range(arch.depth):
        layer = layers.pop(i, {})
        for change in opened.family.layer:
            change(layer, opened.config)
        ours = _layer(layer, spec, pairs, folder, i, over_heads=base.qk_norm_over == "heads", parallel=base.parallel)
        weights |= {f"layers.{i}.{name}": weight.contiguous() for name, weight in ours.items()}
    left = [*whole, *(f"model.layers.{i}.{name}" for i, layer in layers.items() for name in layer)]
    if left:
        raise UserError(f"{folder}: weights that no layer here has: {', '.join(sorted(left)[:3])}")
    _require_shapes(weights, base, arch, folder)
    return weights


def _require_shapes(weights: dict[str, Tensor], base: BaseModel, arch: Architecture, folder: Path) -> None:
    with torch.device("meta"):
        expected = Transformer(FixedShape(base, arch), seed=None).state_dict()
    for name, weight in weights.items():
        if name in expected and weight.shape != expected[name].shape:
            raise UserError(
                f"{folder}: {name} is {list(weight.shape)}, config.json asks for {list(expected[name].shape)}"
            )


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
    for name in _OF_THE_FUNCTION:
        own, other = getattr(model.base, name), getattr(pretrained.base, name)
        if own != other:
            raise UserError(f"warm start: base.{name} must be {other} as in the pretrained model, got {own}")
    missing = model.load_state_dict(pretrained.weights, strict=False).missing_keys
    untrained = [name for name in missing if not name.endswith(("_scale", "balance"))]
    if untrained:
        raise UserError(f"warm start: the pretrained model has no weights for {', '.join(untrained[:3])}")


def _whole(config: Any, name: str, least: int = 1, most: int = 2**31 - 1) -> int:
    value = getattr(config, name, None)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} = {value!r}, must be a whole number from {least} to {most}")
    return value


def _longest(config: Any) -> int:
    """The longest sequence: as far as positions go, and where a window slides only as far as it reaches, since within
    so many tokens a model that has one is one without. A single token has no next one to learn from."""
    positions = _whole(config, "max_position_embeddings", least=2)
    if not getattr(config, "sliding_window", None) or not getattr(config, "use_sliding_window", True):
        return positions
    return min(positions, _whole(config, "sliding_window", least=2))


def _shape(config: Any, family: Family, where: Path, rope_order: RopeOrder) -> tuple[BaseModel, Architecture]:
    act = next(name for name in ("hidden_activation", "hidden_act") if getattr(config, name, None))
    wrong = [act] if getattr(config, act) not in _ACTIVATIONS[family.activation] else []
    wrong += [name for name in family.refused if getattr(config, name, None)]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} = {getattr(config, wrong[0])!r} is not supported")
    try:
        heads, hidden_size = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
        kv_heads = _whole(config, "num_key_value_heads")
        head_dim = getattr(config, "head_dim", None) or hidden_size // heads
        spec = LayerSpec(kv_heads, heads // kv_heads, head_dim, **_feed_forward(config, family))
        arch = Architecture(hidden_size, (spec,) * _whole(config, "num_hidden_layers", most=MOST_LAYERS))
        turns = rope_of(config, head_dim, arch.depth, _longest(config))
        base = BaseModel(
            vocab_size=_whole(config, "vocab_size"),
            tied=config.tie_word_embeddings,
            qk_norm=family.qk_norm is not None,
            qk_norm_over=family.qk_norm or "head",
            norms=family.norms,
            norm=family.norm,
            parallel=family.parallel,
            activation=family.activation,
            norm_top_k=family.experts is not None and family.experts(config),
            qkv_bias=family.biased or bool(getattr(config, "attention_bias", False)),
            rope_dim=head_dim,
            rope_order=rope_order,
            **turns,
            norm_eps=float(config.rms_norm_eps if family.norm == "rms" else config.layer_norm_eps),
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where}: not the config of a {config.model_type} model ({error})") from None
    return base, arch


def _feed_forward(config: Any, family: Family) -> dict[str, Any]:
    """Sizes of the feed-forwards of a layer."""
    if family.experts is None:
        return {"ffn_size": _whole(config, "intermediate_size")}
    number = "num_local_experts" if config.model_type == "mixtral" else "num_experts"
    size = "intermediate_size" if config.model_type == "mixtral" else "moe_intermediate_size"
    if getattr(config, "decoder_sparse_step", 1) != 1:
        raise ValueError("decoder_sparse_step must be 1: every layer has experts")
    experts, top_k = _whole(config, number, least=2), _whole(config, "num_experts_per_tok")
    return {"ffn_size": _whole(config, size), "experts": experts, "top_k": top_k}


_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new")}
_OUTPUT_BIAS = "self_attn.o_proj.bias"


def _layer(
    stock: dict[str, Tensor],
    spec: LayerSpec,
    pairs: Tensor,
    folder: Path,
    number: int,
    *,
    over_heads: bool,
    parallel: bool,
) -> dict[str, Tensor]:
    """One layer of a stock model by our names: rotary pairs side by side."""
    kv, queries, dim = spec.kv_heads, spec.queries_per_group, spec.head_dim
    grids = {"q_norm": (kv, queries, dim), "k_norm": (kv, dim)}
    try:
        found = {
            ours: stock.pop(f"{theirs}.weight")
            for ours, theirs in (("mixer_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"))
            if not (parallel and ours == "mixer_norm")
        } | {
            "attention.o.weight": stock.pop("self_attn.o_proj.weight"),
        }
        found |= {name: stock.pop(f"{name}.weight") for name in _OUT_NORMS if f"{name}.weight" in stock}
        found |= (
            _experts(stock, spec.experts)
            if spec.experts > 1
            else {f"ffn.{name}.weight": stock.pop(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down")}
        )
        for name in "qkv":
            for kind in ("weight", "bias"):
                key = f"self_attn.{name}_proj.{kind}"
                if kind == "weight" or key in stock:
                    stored = stock.pop(key)
                    heads = stored.view(-1, dim, *stored.shape[1:])
                    found[f"attention.{name}.{kind}"] = (heads if name == "v" else heads[:, pairs]).flatten(0, 1)
        for name, grid in grids.items():
            if f"self_attn.{name}.weight" in stock:
                gain = stock.pop(f"self_attn.{name}.weight")
                found[f"attention.{name}"] = gain.reshape(grid if over_heads else (dim,))[..., pairs]
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{folder}: layer {number}: a weight is missing or has another shape than config.json says ({error})"
        ) from None
    bias = stock.pop(_OUTPUT_BIAS, None)
    if bias is not None and bias.any():
        raise UserError(f"{folder}: layer {number}: a bias on the output projection is not supported")
    if stock:
        raise UserError(f"{folder}: layer {number}: weights that no layer here has: {', '.join(sorted(stock)[:3])}")
    return found


_OUT_NORMS = ("mixer_out_norm", "ffn_out_norm")


def _experts(stock: dict[str, Tensor], experts: int) -> dict[str, Tensor]:
    """The feed-forwards of a mixture, stacked, and its router."""
    found = {
        f"ffn.{name}.weight": torch.stack([stock.pop(f"mlp.experts.{e}.{name}_proj.weight") for e in range(experts)])
        for name in ("gate", "up", "down")
    }
    return found | {"ffn.router.weight": stock.pop("mlp.gate.weight")}
