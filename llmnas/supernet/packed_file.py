"""A packed network in one safetensors file, with what it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from llmnas.errors import UserError
from llmnas.files import atomic_open, parse_json, regular
from llmnas.nn.lowbit import is_packed
from llmnas.space.architecture import Architecture, BaseModel
from llmnas.supernet.model import Transformer
from llmnas.supernet.old_names import modern_state
from llmnas.supernet.packed import FORMAT, check_values, empty_packed, filled


def save_packed(model: Transformer, path: Path) -> None:
    """Write a packed network, with what it is, in one safetensors file (whole or not at all)."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    about = {"format": FORMAT, "architecture": model.envelope.to_json(), "base": json.dumps(asdict(model.base))}
    with atomic_open(path) as stream:
        stream.write(save(tensors, about))


def load_packed(path: Path) -> Transformer:
    """Read what `save_packed` wrote; codes and scales are taken as they are.

    Raises:
        UserError: no such file, a damaged one, another format, or a code that no ternary weight has.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged weights ({error})") from None
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: format {about.get('format')!r}, must be {FORMAT!r} (written by save_packed)")
    try:
        model = empty_packed(BaseModel(**parse_json(about["base"])), Architecture.from_json(about["architecture"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its description of the network is damaged ({error})") from None
    state = modern_state(state, model)
    for name, wanted in model.state_dict().items():
        found = state.get(name)
        packed = wanted.dtype if is_packed(wanted) else None
        if found is None or found.shape != wanted.shape or (found.dtype if is_packed(found) else None) != packed:
            what = "missing" if found is None else f"{list(found.shape)} of {found.dtype}"
            raise UserError(f"{path}: {name} is {what}, must be {list(wanted.shape)} of {wanted.dtype}")
    if extra := sorted(state.keys() - model.state_dict().keys()):
        raise UserError(f"{path}: {extra[0]} belongs to no weight of the network that it describes")
    try:
        check_values(filled(model, state))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return model
