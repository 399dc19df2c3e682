"""What our own class refuses instead of computing something else; travels inside exported checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def require_positions(read: int, longest: int) -> None:
    """Refuse to read more tokens than there are positions; `ValueError`."""
    if read > longest:
        raise ValueError(
            f"input_ids: {read} tokens, max_position_embeddings is {longest}; cut the text, or set "
            "config.max_position_embeddings higher to go beyond what the model was trained for"
        )


def require_room(prompt: int, total: int, longest: int) -> None:
    """Refuse to generate beyond the positions, before a token is computed; `ValueError`."""
    if prompt >= longest or total > longest:
        raise ValueError(
            f"input_ids: {prompt} tokens and {total - prompt} new ones, max_position_embeddings is {longest}, which "
            f"leaves room for {max(longest - prompt, 0)}; cut the prompt or ask for fewer"
        )
