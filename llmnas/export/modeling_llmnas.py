"""The transformers model of llmnas: a thin shell around the one `Transformer`, for every architecture of a space.

Shipped inside checkpoints (`auto_map`, `trust_remote_code=True`) together with the files that it imports, rewritten
to relative imports; the same file serves inside llmnas. Shapes: B batch, T new tokens, S tokens read with them.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from llmnas.export.configuration_llmnas import LlmnasConfig, StoredShape
from llmnas.export.decoding_cache import DecodingCache
from llmnas.export.elastic_training import STALE, Draws, checksum, measured
from llmnas.export.forward_inputs import document_numbers, one_cache
from llmnas.export.refusals import require_positions, require_room, require_whole
from llmnas.export.stopwatch import decode_ms, fingerprint
from llmnas.export.subnetworks import LatencyTable, Limits, Subnetwork, latencies, pick
from llmnas.export.transformers_names import CACHE
from llmnas.nn.kernels import FLOATS
from llmnas.space.architecture import Architecture
from llmnas.supernet.model import Transformer
from llmnas.supernet.packed import check_values, has_packed, pack, unpack

_IGNORED = {"cache_position", "token_type_ids"}  # what transformers 4 passes besides: both follow from the rest


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
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    gradient_checkpointing = False  # transformers sets it
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers wants a list)

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
        self._arch = Architecture.from_dict(config.active) if config.active else self._first()
        self._draws: Draws | None = None
        self._measured: int | None = None  # checksum of the weights that the table was measured with
        if arch is not None:
            self.arch = arch
        self.post_init()

    def _first(self) -> Architecture:
        return self.subnetworks[0].arch if self.subnetworks else self.model.envelope

    @property
    def arch(self) -> Architecture:
        """What runs where no other architecture is named; saved with the model."""
        return self._arch

    @arch.setter
    def arch(self, arch: Architecture) -> None:
        self._arch = arch
        self.config.active = None if arch == self._first() else arch.to_dict()

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
        if model.subnetworks:
            model._measured = checksum(model.parameters())
        return (model, loading) if output_loading_info else model

    def unpacked(self) -> LlmnasForCausalLM:
        """A model with floats for packed weights (code times scale), to train; shares nothing with this one."""
        config = copy.deepcopy(self.config)
        config.packed = None
        return type(self)(
            config, unpack(self.model) if has_packed(self.model) else copy.deepcopy(self.model), self.arch
        )

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' save_pretrained; the config says whether the table is still that of these weights."""
        if self.subnetworks:
            given = kwargs.get("state_dict")
            self.config.table_stale = self.table_is_stale(None if given is None else given.values())
        return super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding, as wide as the largest network."""
        return self.model.embedding

    def set_input_embeddings(self, value: Any) -> None:  # noqa: ARG002 (transformers' signature)
        """Refused: sub-networks read slices of the embedding that is here."""
        raise ValueError("the token embedding cannot be replaced; change model.model.embedding.weight in place")

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the cache, which knows recurrent layers and sizes by layer

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        """Assisted generation wants the cache before the first pass; everything else is as transformers does it."""
        if generation_mode == GenerationMode.ASSISTED_GENERATION and model_kwargs.get(CACHE) is None:
            arch = model_kwargs.get("arch") or self.arch
            model_kwargs[CACHE] = DecodingCache(arch, self.model.new_cache(arch, batch_size, length), batch_size)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, length)

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # transformers reads what it takes
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers does, without positions: the cache knows them."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        return {name: value for name, value in inputs.items() if name != "position_ids"}

    def _validate_generated_length(self, generation_config: Any, input_ids_length: int, *args: Any) -> None:
        """Refuse text beyond the positions before a token is generated."""
        require_room(input_ids_length, generation_config.max_length, self.config.max_position_embeddings)
        super()._validate_generated_length(generation_config, input_ids_length, *args)

    @property
    def _is_stateful(self) -> bool:
        """Whether a layer has a state that cannot go back (transformers then refuses assisted generation)."""
        return any(spec.mixer == "mlgru" for _, spec in self.arch.kept)

    def sharing(self, arch: Architecture) -> LlmnasForCausalLM:
        """Another model on the same weights that runs `arch` by default; copies nothing."""
        return type(self)(copy.deepcopy(self.config), self.model, arch)

    def choose(self, **limits: float) -> Subnetwork:
        """The sub-network of least loss within `latency_ms` (a token, on this device), `params`, `memory_bytes`.

        Raises:
            ValueError: one network only, unknown or impossible limits, or latencies that nobody measured here.
        """
        if not self.subnetworks:
            raise ValueError("budget: this checkpoint holds one network; `llmnas export --elastic` writes several")
        if self.config.table_stale:
            warnings.warn(STALE, stacklevel=2)
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

    def train_elastic(self, seed: int | None = 0) -> LlmnasForCausalLM:
        """Let every training forward that names no architecture train the next sub-network of the table.

        Training the default one alone ruins the others, which share its weights. `model.eval()` runs the default as
        ever. Processes that train together draw the same. Some weights get no gradient in a step, so torch's
        DistributedDataParallel needs `find_unused_parameters=True`.

        Args:
            seed: of the draws; None trains the default one again.

        Returns:
            the model, in training mode.

        Raises:
            ValueError: one network only.
        """
        if not self.subnetworks:
            raise ValueError("train_elastic: this checkpoint holds one network; any trainer trains it as it is")
        self._draws = None if seed is None else Draws(self.subnetworks, seed)
        self.train()
        return self

    def measure_losses(self, tokens: Tensor) -> tuple[Subnetwork, ...]:
        """Measure the validation loss of every sub-network on texts [B, T] and order the table by it anew.

        What runs by default stays. Returns the table.
        """
        arch = self.arch
        self.subnetworks = measured(self.model, self.subnetworks, tokens)
        self.config.subnetworks = [one.to_dict() for one in self.subnetworks]
        self.config.table_stale, self._measured = False, checksum(self.parameters())
        self.arch = arch
        return self.subnetworks

    def table_is_stale(self, weights: Iterable[Tensor] | None = None) -> bool:
        """Whether a weight changed since the losses of the table were measured; reads all weights.

        Args:
            weights: to look at instead of those of the model, which are all of its parameters and perhaps buffers.
        """
        if self._measured is None:
            return bool(self.config.table_stale)
        return bool(self.config.table_stale) or checksum(weights or self.parameters()) != self._measured

    def generate(self, *args: Any, budget: Limits | None = None, **kwargs: Any) -> Any:
        """transformers' generate, of the architecture that is the default when it starts.

        Args:
            args: of transformers.
            budget: picks a sub-network for this call alone, see `choose`.
            kwargs: of transformers; a cache that an earlier call returned is gone on from.

        Raises:
            ValueError: a budget that no sub-network keeps, or more tokens than there are positions.
        """
        cache = one_cache(kwargs)
        if cache is not None:
            kwargs[CACHE] = cache
        assistant = kwargs.get("assistant_model")
        if assistant is None:
            arch = self.arch if budget is None else self.choose(**budget).arch
            return super().generate(*args, **({"arch": arch} | kwargs))
        if budget is not None:
            raise ValueError("budget: means nothing to an assistant_model; use set_budget on both models first")
        # transformers hands one model's arguments on to the other, so each is a copy that nobody else can change
        kwargs["assistant_model"] = copy.copy(assistant)
        return GenerationMixin.generate(copy.copy(self), *args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DecodingCache | None = None,
        cache: DecodingCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        arch: Architecture | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of the next token at every position.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, S], 0 at padding, which stands on one side of a row: on the left for generation.
            position_ids: [B, T], see `document_numbers`.
            past_key_values: `cache`, as transformers up to 5.23 calls it.
            cache: what an earlier forward returned; `input_ids` follow it.
            inputs_embeds: [B, T, hidden of the architecture] instead of `input_ids`.
            labels: [B, T] int64, shifted here; -100 counts nothing.
            use_cache: return a cache even where none was given.
            output_attentions: refused, since attention weights are never formed.
            output_hidden_states: return the residual stream, [B, T, hidden] before the first layer and after each one,
                the last of them after the final norm.
            logits_to_keep: how many of the last positions get logits (0: all), or which.
            arch: the architecture to run instead of the default.
            return_dict: False for a tuple.
            kwargs: of the loss (`num_items_in_batch`).

        Raises:
            ValueError: neither or both inputs, padding on both sides or in the middle, a mask of another size, a cache
                that `arch` cannot use, more tokens than `max_position_embeddings`, or packed weights in training.
        """
        if output_attentions or self.config.output_attentions:
            raise ValueError("output_attentions: attention weights are never formed here; ask for hidden states")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        if self.config.packed and labels is not None and self.training:
            raise ValueError("packed weights only compute; model.unpacked() has floats, to train on")
        cache = one_cache({"cache": cache, "past_key_values": past_key_values})
        arch = arch or (self._draws.next() if self._draws is not None and self.training else self.arch)
        x = self.model.embedding(input_ids, arch.hidden_size) if inputs_embeds is None else inputs_embeds
        if x.shape[-1] != arch.hidden_size:
            raise ValueError(f"inputs_embeds: are {x.shape[-1]} wide, the architecture {arch.hidden_size}")
        batch, new = x.shape[:2]
        if cache is None and use_cache:
            cache = DecodingCache(arch, self.model.new_cache(arch, batch, new + 32), batch)
        read = new + (0 if cache is None else cache.inner.length)
        require_positions(read, self.config.max_position_embeddings)
        if cache is not None:
            cache.serve(arch)
            cache.inner.reserve(read)
        documents = document_numbers(attention_mask, position_ids, batch, new, cache)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: dict[int, Tensor] | None = {} if wanted else None
        hidden, _ = self.model.run(
            x, arch, documents, None if cache is None else cache.inner,
            checkpoint_blocks=self.gradient_checkpointing and self.training and cache is None, outputs=states,
        )  # fmt: skip
        kept = hidden[:, logits_to_keep] if isinstance(logits_to_keep, Tensor) else hidden[:, -logits_to_keep:]
        logits = F.linear(kept, self.model.head_weight(arch))
        loss = None
        if labels is not None:
            options = {name: value for name, value in kwargs.items() if name not in _IGNORED}
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **options)
        elif kwargs.keys() - _IGNORED - {"num_items_in_batch"}:
            raise TypeError(f"forward: unknown arguments {', '.join(sorted(kwargs.keys() - _IGNORED))}")
        every = None if states is None else (x, *list(states.values())[:-1], hidden)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=every, **{CACHE: cache})
        return output.to_tuple() if return_dict is False else output
