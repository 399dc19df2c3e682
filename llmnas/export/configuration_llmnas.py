"""config.json of a checkpoint of our own class; travels inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmnas.export.transformers_names import PreTrainedConfig
from llmnas.space.architecture import Architecture, BaseModel, LayerKinds, Shape
from llmnas.supernet.packed import FORMAT


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


class LlmnasConfig(PreTrainedConfig):  # type: ignore[misc]
    """config.json of a checkpoint.

    Args:
        shape: `StoredShape.to_dict` of the weights.
        subnetworks: `Subnetwork.to_dict` of those that a budget may pick, the first one runs by default; none for a
            single network.
        latency_tables: `LatencyTable.to_dict` of every device that was measured.
        active: `Architecture.to_dict` of what runs by default where a budget chose it; None for the first one.
        table_stale: whether weights changed since the losses of the sub-networks were measured.
        packed: `FORMAT` where low-bit weights are codes, see `llmnas.supernet.packed.pack`; None where all are floats.
        kwargs: what every transformers config has; `max_position_embeddings` may differ from that of the training.

    Raises:
        ValueError: another format of packed weights.
    """

    model_type = "llmnas"

    def __init__(
        self,
        shape: dict[str, Any] | None = None,
        subnetworks: list[dict[str, Any]] | None = None,
        latency_tables: list[dict[str, Any]] | None = None,
        active: dict[str, Any] | None = None,
        table_stale: bool = False,
        packed: str | None = None,
        **kwargs: Any,
    ) -> None:
        if packed not in {None, FORMAT}:
            raise ValueError(f"config: packed is {packed!r}, must be {FORMAT!r} or absent")
        self.shape = shape  # None: transformers makes an empty one to compare with
        self.subnetworks = subnetworks or []
        self.latency_tables = latency_tables or []
        self.active = active
        self.table_stale = table_stale
        self.packed = packed
        if shape is not None:
            stored = StoredShape.from_dict(shape)
            kwargs = {"max_position_embeddings": stored.base.max_seq} | kwargs
            kwargs |= {
                "vocab_size": stored.base.vocab_size,
                "hidden_size": stored.envelope.hidden_size,
                "num_hidden_layers": stored.envelope.depth,
            }
        # the head of a tied model is no weight of its own here, so there is nothing for transformers to tie
        super().__init__(**(kwargs | {"tie_word_embeddings": False}))
