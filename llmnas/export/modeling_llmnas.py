"""The transformers model of llmnas: a thin shell around the one `Transformer`, for every architecture of a space.

Shipped inside checkpoints (`auto_map`, `trust_remote_code=True`) together with the files that it imports, rewritten
to relative imports; the same file serves inside llmnas. Shapes: B batch, T new tokens, S tokens read with them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from llmnas.export.decoding_cache import DecodingCache
from llmnas.export.stopwatch import decode_ms, fingerprint
from llmnas.export.subnetworks import LatencyTable, Limits, Subnetwork, latencies, pick
from llmnas.nn.kernels import FLOATS
from llmnas.space.architecture import Architecture, BaseModel, LayerKinds, Shape
from llmnas.supernet.model import Transformer
from llmnas.supernet.packed import FORMAT, check_values, has_packed, pack, unpack


@dataclass(frozen=True)
class StoredShape:
    """The shape of the weights in a checkpoint: of one network, or of a supernet."""

    base: BaseModel
    envelope: Architecture
    kinds: tuple[LayerKinds, ...]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> StoredShape:
        """Inverse of `to_dict`; raises ValueError on anything else."""
        kinds = tuple(LayerKinds(tuple(kind["weights"]), tuple(kind["mixers"])) for kind in value["kinds"])
        return cls(BaseModel(**value["base"]), Architecture.from_dict(value["envelope"]), kinds)

    @staticmethod
    def to_dict(shape: Shape) -> dict[str, Any]:
        """Plain values of any shape, as stored in config.json."""
        kinds = [{"weights": list(kind.weights), "mixers": list(kind.mixers)} for kind in shape.kinds]
        return {"base": asdict(shape.base), "envelope": shape.envelope.to_dict(), "kinds": kinds}


def require_whole(loading: Mapping[str, Any]) -> None:
    """Refuse weights that transformers would fill at random.

    Args:
        loading: the `output_loading_info` of a `from_pretrained` that ignored mismatched sizes.

    Raises:
        ValueError: a weight has another shape, or is missing; names the first one.
    """
    if loading["mismatched_keys"]:
        name, found, wanted = min(loading["mismatched_keys"])
        raise ValueError(f"{name} is {list(found)}, must be {list(wanted)}")
    if loading["missing_keys"]:
        raise ValueError(f"{min(loading['missing_keys'])} is missing")


class LlmnasConfig(PreTrainedConfig):  # type: ignore[misc]
    """config.json of a checkpoint.

    Args:
        shape: `StoredShape.to_dict` of the weights.
        subnetworks: `Subnetwork.to_dict` of those that a budget may pick, the first one runs by default; none for a
            single network.
        latency_tables: `LatencyTable.to_dict` of every device that was measured.
        packed: `FORMAT` where low-bit weights are codes, see `llmnas.supernet.packed.pack`; None where all are floats.
        kwargs: what every transformers config has.

    Raises:
        ValueError: another format of packed weights.
    """

    model_type = "llmnas"

    def __init__(
        self,
        shape: dict[str, Any] | None = None,
        subnetworks: list[dict[str, Any]] | None = None,
        latency_tables: list[dict[str, Any]] | None = None,
        packed: str | None = None,
        **kwargs: Any,
    ) -> None:
        if packed not in {None, FORMAT}:
            raise ValueError(f"config: packed is {packed!r}, must be {FORMAT!r} or absent")
        self.shape = shape  # None: transformers makes an empty one to compare with
        self.subnetworks = subnetworks or []
        self.latency_tables = latency_tables or []
        self.packed = packed
        if shape is not None:
            stored = StoredShape.from_dict(shape)
            kwargs |= {
                "vocab_size": stored.base.vocab_size,
                "hidden_size": stored.envelope.hidden_size,
                "num_hidden_layers": stored.envelope.depth,
                "max_position_embeddings": stored.base.max_seq,
            }
        # the head of a tied model is no weight of its own here, so there is nothing for transformers to tie
        super().__init__(**(kwargs | {"tie_word_embeddings": False}))


class LlmnasForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Any architecture of llmnas as a causal language model.

    The architecture is an argument of everything below this class; here it is the default that `forward` takes,
    since transformers' callers pass none.

    Args:
        config: of the checkpoint.
        transformer: weights to share instead of having own ones.
        arch: the architecture to run by default; None for the first of the table, else the largest.
    """

    config_class = LlmnasConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ("Block",)

    def __init__(
        self, config: LlmnasConfig, transformer: Transformer | None = None, arch: Architecture | None = None
    ) -> None:
        super().__init__(config)
        if transformer is None:
            if config.shape is None:
                raise ValueError("config: has no shape, so it says nothing about the network")
            transformer = Transformer(StoredShape.from_dict(config.shape))
            transformer = pack(transformer) if config.packed else transformer
        self.model = transformer
        self.subnetworks = tuple(Subnetwork.from_dict(one) for one in config.subnetworks)
        first = self.subnetworks[0].arch if self.subnetworks else self.model.envelope
        self.arch = arch or first
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Nothing: `Transformer` has filled its weights, or a file does."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """transformers' from_pretrained; packed weights stay integers, and their scales float32, in every `dtype`.

        Raises:
            ValueError: a `dtype` that nothing computes in, a weight that is missing or has another shape (nothing
                would fill it), or packed ones with a code or a scale that no weight has.
        """
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype  # "auto" is none
        if isinstance(dtype, torch.dtype) and dtype not in FLOATS:
            raise ValueError(f"dtype: {dtype}, must be one of {', '.join(map(str, FLOATS))}")
        model, loading = super().from_pretrained(
            *args, output_loading_info=True, **(kwargs | {"ignore_mismatched_sizes": True})
        )
        require_whole(loading)
        if has_packed(model.model):
            check_values(model.model, f"{cls.base_model_prefix}.")
            model.requires_grad_(False)  # a packed weight passes no gradient on, so nothing below it could learn
        return (model, loading) if output_loading_info else model

    def unpacked(self) -> LlmnasForCausalLM:
        """A model with floats for packed weights (code times scale), to train; shares nothing with this one."""
        config = copy.deepcopy(self.config)
        config.packed = None
        return type(self)(
            config, unpack(self.model) if has_packed(self.model) else copy.deepcopy(self.model), self.arch
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the cache, which knows recurrent layers and sizes by layer

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        """Assisted generation wants the cache before the first pass; everything else is as transformers does it."""
        if generation_mode == GenerationMode.ASSISTED_GENERATION and model_kwargs.get("cache") is None:
            arch = model_kwargs.get("arch") or self.arch
            inner = self.model.new_cache(arch, batch_size, length)
            model_kwargs["cache"] = DecodingCache(arch, inner, batch_size)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, length)

    @property
    def _is_stateful(self) -> bool:
        """Whether a layer has a state that cannot go back (transformers then refuses assisted generation)."""
        return any(spec.mixer == "mlgru" for _, spec in self.arch.kept)

    def sharing(self, arch: Architecture) -> LlmnasForCausalLM:
        """Another model on the same weights that runs `arch` by default; copies nothing."""
        return type(self)(self.config, self.model, arch)

    def choose(self, **limits: float) -> Subnetwork:
        """The sub-network of least loss within `latency_ms` (a token, on this device), `params`, `memory_bytes`.

        Raises:
            ValueError: one network only, unknown or impossible limits, or latencies that nobody measured here.
        """
        if not self.subnetworks:
            raise ValueError("budget: this checkpoint holds one network; `llmnas export --elastic` writes several")
        ms = latencies(self.config.latency_tables, fingerprint(self.model)) if "latency_ms" in limits else None
        return pick(self.subnetworks, limits, ms)

    def set_budget(self, **limits: float) -> Subnetwork:
        """Run what `choose` picks from now on; no weight is copied. Returns it."""
        chosen = self.choose(**limits)
        self.arch = chosen.arch
        return chosen

    def measure_latency(self, context: int | None = None, seconds: float = 2.0) -> LatencyTable:
        """Time every sub-network on this device with the present number of threads, and remember the table.

        Args:
            context: tokens of the text while a token is generated; None for the longest that the model takes.
            seconds: about how long in all.
        """
        archs = [one.arch for one in self.subnetworks]
        context = context or self.config.max_position_embeddings
        ms = decode_ms(self.model, archs, context, seconds)
        table = LatencyTable(fingerprint(self.model), context, {a.id: t for a, t in zip(archs, ms, strict=True)})
        others = [old for old in self.config.latency_tables if old["fingerprint"] != table.fingerprint]
        self.config.latency_tables = [*others, table.to_dict()]
        return table

    def generate(self, *args: Any, budget: Limits | None = None, **kwargs: Any) -> Any:
        """transformers' generate; `budget` picks a sub-network for this call alone, see `choose`."""
        if budget is not None:
            if kwargs.get("assistant_model") is not None:
                raise ValueError("budget: means nothing to an assistant_model; use set_budget on both models first")
            kwargs["arch"] = self.choose(**budget).arch
        return super().generate(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: DecodingCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        arch: Architecture | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of the next token at every position.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, S], 0 at padding, which stands on one side of a row: on the left for generation.
            cache: what an earlier forward returned; `input_ids` follow it.
            labels: [B, T] int64, shifted here; -100 counts nothing.
            use_cache: return a cache even where none was given.
            logits_to_keep: how many of the last positions get logits (0: all), or which.
            arch: the architecture to run instead of the default.
            return_dict: False for a tuple.

        Raises:
            ValueError: padding on both sides or in the middle, a mask of another size, a cache that `arch` cannot use.
        """
        arch = arch or self.arch
        batch, new = input_ids.shape
        if cache is None and use_cache:
            cache = DecodingCache(arch, self.model.new_cache(arch, batch, new + 32), batch)
        if cache is not None:
            cache.serve(arch)
            cache.inner.reserve(cache.inner.length + new)
        documents = _documents(attention_mask, new, cache)
        hidden, _ = self.model.run(input_ids, arch, documents, None if cache is None else cache.inner)
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = F.linear(hidden, self.model.head_weight(arch))
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)
        return output.to_tuple() if return_dict is False else output


def _documents(mask: Tensor | None, new: int, cache: DecodingCache | None) -> Tensor | None:
    """Padding as a document of its own, [B, S]; None where there is none."""
    read = new + (0 if cache is None else cache.inner.length)
    if mask is None:
        if cache is not None and cache.padded:
            raise ValueError("attention_mask: the text before was padded, so the mask must be given on")
        return None
    if mask.dim() != 2 or mask.shape[1] != read:
        raise ValueError(f"attention_mask: is {list(mask.shape)}, must be [batch, {read}] for all tokens read so far")
    present = mask != 0
    if present.all():
        return None
    if int((present[:, 1:] != present[:, :-1]).sum(1).max()) > 1:
        raise ValueError("attention_mask: padding in the middle of a row; pad on the left (tokenizer.padding_side)")
    if cache is not None:
        cache.padded = True
    return present.long()
