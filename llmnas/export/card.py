"""The model card: README.md of an exported folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from llmnas.cost import operations_by_kind
from llmnas.export.shape import StockShape
from llmnas.space import Architecture, BaseModel, LayerSpec


@dataclass(frozen=True)
class Card:
    """What a reader must know that the weights do not say.

    Attributes:
        name: title of the card.
        metrics: value by metric name, as measured on held-out data.
        data: what it was trained on, a phrase.
        seed: of the run.
        trained_tokens: how many tokens these weights were trained on.
        notes: further paragraphs.
        base_model: name of the pretrained model that the network was made from.
        licence: of that model, as its card says it.
    """

    name: str
    metrics: dict[str, float]
    data: str
    seed: int
    trained_tokens: int
    notes: tuple[str, ...] = ()
    base_model: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Stored:
    """How a model is stored: what the card says beyond the architecture.

    Attributes:
        class_name: the transformers class.
        shape: sizes of that class; None for our own, which has every layer as it is.
        parameters: in the file.
        own_parameters: of the architecture itself.
        tokenizer: whether one lies beside the weights.
        split_special: whether it reads special tokens in a text as plain characters.
        reason: why no stock class holds the network, where none does.
        blocks: sizes of each layer in a checkpoint with `block_configs`.
        packed: how many of the parameters are stored as codes of 2 bits or 1.
        size: bytes of all tensors in the file.
    """

    class_name: str
    shape: StockShape | None
    parameters: int
    own_parameters: int
    tokenizer: bool
    reason: str | None = None
    blocks: tuple[StockShape, ...] = ()
    packed: int = 0
    size: int = 0
    split_special: bool = False

    @property
    def tier(self) -> int:
        """1: a stock class with exactly the architecture's sizes; 2: padded; 3: our own class."""
        return 3 if self.shape is None else self.shape.tier


def render(card: Card, arch: Architecture, base: BaseModel, stored: Stored) -> str:
    """The card as Markdown with the front matter that the Hugging Face Hub reads."""
    plain = all(_kinds(spec) == ("dense", "attention", "1") for _, spec in arch.kept)
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"tags:\n- llmnas\n- neural-architecture-search\n{origin_lines(card)}---",
        f"# {card.name}",
        f"A language model of {stored.own_parameters:,} parameters, architecture `{arch.id}`, found by llmnas. It is "
        f"{'a plain' if stored.shape else 'our own'} `{stored.class_name}`: vocabulary {base.vocab_size:,}, at most "
        f"{base.max_seq:,} tokens.",
        "## Load it",
        _loading(stored),
        "## Architecture",
        f"Hidden size {arch.hidden_size}, {arch.depth} layers:",
        table(
            ("layer", "KV heads", "query heads", "head dim", "FFN size", *(() if plain else _KINDS)),
            [
                (i, s.kv_heads, s.q_heads, s.head_dim, s.ffn_size, *(() if plain else _kinds(s)))
                for i, (_, s) in enumerate(arch.kept)
            ],
        ),
        _storage(stored, any(spec.weights != "dense" for _, spec in arch.kept)),
        *_operations(arch, base),
        *_metrics(card),
        "## Training",
        f"Data: {card.data}. Tokens seen: {card.trained_tokens:,}. Seed: {card.seed}.",
        *([f"Made from {card.base_model}; its licence applies."] if card.base_model else []),
        *card.notes,
    ]
    return "\n\n".join(parts) + "\n"


def origin_lines(card: Card) -> str:
    """Lines of the front matter; quoted as JSON, which YAML reads."""
    found = {"base_model": card.base_model, "license": card.licence}
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in found.items() if value)


_KINDS = ("weights", "mixer", "experts")


def _kinds(spec: LayerSpec) -> tuple[str, str, str]:
    experts = f"{spec.top_k} of {spec.experts}" if spec.experts > 1 else "1"
    return spec.weights, spec.mixer, experts


_MEETS = {
    "dense": "multiply-adds of floats, those of attention and the head among them",
    "ternary": "int8 values added, taken away or left out",
    "binary": "signs compared and counted, or int8 values added or taken away behind a gate",
}


def _operations(arch: Architecture, base: BaseModel) -> list[str]:
    """What a token costs by the kind of weights that it meets; nothing to say where all are dense."""
    found = operations_by_kind(arch, base, base.max_seq)
    if not found["ternary"] + found["binary"]:
        return []
    rows = [(kind, _MEETS[kind], f"{twice / 2:,.0f}") for kind, twice in found.items() if twice]
    return [
        f"What the last of {base.max_seq:,} tokens needs of an engine that computes low-bit weights as integers "
        "(transformers multiplies floats):",
        table(("weights", "operations", "number"), rows),
    ]


_SPLIT = (
    "A special token written out in a text is read as plain characters (`split_special_tokens`), so that no text can "
    "forge the end of a document; append `tokenizer.eos_token_id` where you mean it."
)
_SPECIAL = (
    "A special token written out in a text is that token, as chat templates need it. Where strangers write the text, "
    "pass `split_special_tokens=True`: it is then read as plain characters, and no text can forge the end of another."
)
_COMPILER = (
    "transformers wants accelerate for this class (`pip install accelerate`). On a CPU it compiles parts of it, which "
    "needs a C++ compiler (`apt install g++`); with "
    "`TORCHDYNAMO_DISABLE=1` in the environment it computes the same without one."
)


def _loading(stored: Stored) -> str:
    compiler = ["", _COMPILER] if "BitNet" in stored.class_name else []
    tokenizer, trust = stored.tokenizer, "" if stored.shape else ", trust_remote_code=True"
    lines = [
        "```python",
        f"from transformers import AutoModelForCausalLM{', AutoTokenizer' if tokenizer else ''}",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{trust})',
    ]
    if not tokenizer:
        return "\n".join([*lines, "```", "", "No tokenizer comes with it: it takes and gives token ids.", *compiler])
    lines += [
        f'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"{trust})',
        'ids = tokenizer("The state of", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))",
        "```",
        "",
        _SPLIT if stored.split_special else _SPECIAL,
        *compiler,
    ]
    return "\n".join(lines)


def _storage(stored: Stored, low_bit: bool) -> str:
    if stored.blocks:
        return _block_storage(stored)
    if stored.shape is None:
        return (
            f"Tier 3: no stock class computes this network ({stored.reason}), so the code that computes it lies beside "
            "the weights (`modeling_llmnas.py` and what it imports; llmnas is not needed). transformers 4.57 or "
            "later loads it with `trust_remote_code=True` and generates with it; llama.cpp and vLLM do not know it. "
            f"All weights take {stored.size:,} bytes.{_low_bit(stored) if low_bit else ''}"
        )
    spec, extra, price = stored.shape.spec, stored.parameters - stored.own_parameters, _price(stored)
    if not stored.shape.exact:
        return (
            "Tier 2: stock classes have one size for all layers, so every layer is padded with zeros (and copies of "
            f"KV heads where that is cheaper) to {spec.kv_heads} KV heads, {spec.q_heads} query heads, head dim "
            f"{spec.head_dim}, FFN size {spec.ffn_size}{_experts(stored.shape)}. The logits are "
            f"unchanged. The price: {price} are stored and computed with."
        )
    text = "Tier 1: stored with exactly these sizes."
    if "BitNet" in stored.class_name:
        return (
            f"{text} Ternary weights are stored as 2-bit codes with their scale, so saving again never quantises "
            "again. Activations are rounded to 8 bits as in training; another order of float arithmetic may tip one "
            "over to the next step, so logits are equal within 2 % of their scale, and far closer nearly everywhere."
        )
    return f"{text} {price}: the class has a bias on the output projection, here zero." if extra else text


def _low_bit(stored: Stored) -> str:
    """How our own class stores ternary and binary weights."""
    packed = (
        f"{stored.packed:,} of {stored.parameters:,} parameters are low-bit weights stored as codes, 2 bits a ternary "
        "and 1 a binary one; those whose inputs are no whole groups (of 64, binary ones of 32)"
    )
    text = (
        f" {packed if stored.packed else 'Low-bit weights'} are stored as code times scale. The scales lie beside "
        "them, so saving again never quantises again."
    )
    return f"{text} Codes only compute; `model.unpacked()` has floats, to train on." if stored.packed else text


def _price(stored: Stored) -> str:
    extra = (stored.parameters - stored.own_parameters) / stored.own_parameters
    return f"{stored.parameters:,} parameters for {stored.own_parameters:,} ({extra:+.1%})"


def _block_storage(stored: Stored) -> str:
    """What a checkpoint with `block_configs` says of itself."""
    heads = stored.blocks[0].spec
    rows = [(i, s.spec.kv_heads, s.spec.ffn_size) for i, s in enumerate(stored.blocks)]
    return (
        "Stored with `block_configs`, the layout of DeciLM and Nemotron-NAS, for engines that read it: vLLM "
        "(`vllm serve path/to/this/folder --trust-remote-code`; the layout follows vLLM's source, this model has not "
        "been run there). transformers loads it with the code beside the weights. Every layer has "
        f"{heads.q_heads} query heads of {heads.head_dim} channels, and FFN sizes are multiples of 256; what a layer "
        f"lacks are zeros, so the logits are unchanged. The price: {_price(stored)} are stored and computed with.\n\n"
        + table(("layer", "stored KV heads", "stored FFN size"), rows)
    )


def _experts(shape: StockShape) -> str:
    if shape.experts is None:
        return ""
    grid = shape.experts
    return f", experts {grid.top_k} of {grid.experts} of size {grid.ffn_size} (repeated where a layer has fewer)"


def _metrics(card: Card) -> list[str]:
    rows = [(name, f"{value:.6g}") for name, value in card.metrics.items()]
    return ["## Metrics", table(("metric", "value"), rows)] if rows else []


def table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
