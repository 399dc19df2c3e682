"""Opens an exported folder, a stranger's too: no code in it runs, no pickle is read, nothing asks or reaches out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from llmnas.errors import UserError
from llmnas.export.bitnet import BITNET
from llmnas.export.config import CLASS_NAMES
from llmnas.export.configuration_decilm import DeciLMConfig
from llmnas.export.configuration_llmnas import LlmnasConfig
from llmnas.export.modeling_decilm import DeciLMForCausalLM
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.refusals import require_whole
from llmnas.files import ABOUT_FILE, read_object, regular
from llmnas.files.companions import SETTINGS_FILE
from llmnas.files.tokenizer_files import open_tokenizer
from llmnas.supernet.old_names import modern_state

OURS = {
    LlmnasForCausalLM.__name__: (LlmnasForCausalLM, LlmnasConfig),
    DeciLMForCausalLM.__name__: (DeciLMForCausalLM, DeciLMConfig),
}
"""Classes that transformers does not have, as they are installed here; a folder's own copies are for other machines."""
STOCK = {*CLASS_NAMES.values(), BITNET}
_UNDECLARED = "head_dim"
"""Some classes read it and do not declare it: Qwen3MoE."""
_OLD_ROPE = {"rope_theta", "rope_scaling"}


def class_of(folder: Path) -> str:
    """The class that an export is of.

    Raises:
        UserError: not an export of llmnas, or one of a class that llmnas does not write.
    """
    path = folder / ABOUT_FILE
    about = read_object(path).get("export")
    if not isinstance(about, dict) or "class" not in about:
        raise UserError(f"{path}: does not say which class the export is of; export it again")
    name = about["class"]
    if not isinstance(name, str) or name not in {*OURS, *STOCK}:
        raise UserError(f"{path}: export.class = {name!r}, must be one of {', '.join(sorted({*OURS, *STOCK}))}")
    return name


def open_config(folder: Path) -> Any:
    """The transformers config of an export, of what its class itself knows and nothing else.

    Other keys choose code: implementations of attention by the name of a repository, other files of weights.

    Raises:
        UserError: files or keys that ask for more than a model of that class, or a damaged `config.json`.
    """
    path, name = folder / "config.json", class_of(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: holds adapter_config.json, so another model is meant; merge the adapter first")
    raw = read_object(path)
    _refuse_code(path, raw, name)
    model_type = raw.get("model_type")
    if name in OURS:
        kind: Any = OURS[name][1]
    else:
        holds = isinstance(model_type, str) and MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) == name
        kind = CONFIG_MAPPING[model_type] if holds else None
    if kind is None or kind.model_type != model_type or raw.get("architectures") != [name]:
        raise UserError(
            f"{path}: model_type {model_type!r} and architectures {raw.get('architectures')} are not {name}"
        )
    known = {*kind().to_dict(), *kind.attribute_map, *_OLD_ROPE, _UNDECLARED}
    if name == BITNET:
        known.add("quantization_config")
    try:
        return kind.from_dict({key: value for key, value in raw.items() if key in known})
    except Exception as error:  # noqa: BLE001 (damaged values end in whatever reading them raises)
        raise UserError(f"{path}: damaged: {_line(error)}") from None


def _refuse_code(path: Path, raw: dict[str, Any], name: str) -> None:
    """Refuse an `auto_map` but that of our own class: it names code, and nothing of a folder runs here."""
    modules = {kind.__module__.rpartition(".")[2] for kind in OURS.get(name, ())}
    allowed = {f"{module}.{kind.__name__}" for module in modules for kind in OURS.get(name, ())}
    given = raw.get("auto_map", {})
    if not isinstance(given, dict) or not {str(value) for value in given.values()} <= allowed:
        raise UserError(f"{path}: auto_map names code, {given}; llmnas runs none of a folder, remove the key to go on")
    settings = path.with_name(SETTINGS_FILE)
    if settings.is_file() and "auto_map" in read_object(settings):
        raise UserError(f"{settings}: auto_map names code; llmnas runs none of a folder, remove the key to go on")


def open_model(folder: Path, **options: Any) -> Any:
    """The model of an export in float32, by transformers' own class or ours as it is installed.

    Args:
        folder: of the export.
        options: more for `from_pretrained`.

    Raises:
        UserError: not an export, one that asks for code, or weights that are damaged or do not fit.
    """
    name, config = class_of(folder), open_config(folder)
    kind: Any = OURS[name][0] if name in OURS else AutoModelForCausalLM
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of what does not fit is a page long
    logging.disable_progress_bar()
    try:
        old = _old_weights(folder, config, name)
        model, loading = kind.from_pretrained(
            None if old else folder, state_dict=old, config=config, dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True, trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa",
            local_files_only=True, **options,
        )  # fmt: skip
        require_whole(loading)
    except Exception as error:  # noqa: BLE001 (damaged values end in whatever reading them raises)
        raise UserError(f"{folder}: {_line(error)}") from None
    finally:
        logging.set_verbosity(verbosity)
    if type(model).__name__ != name:
        raise UserError(f"{folder}: loads as {type(model).__name__}, {ABOUT_FILE} says {name}")
    left = sorted(loading["unexpected_keys"])
    if left:
        raise UserError(f"{folder}: the weights hold {left[0]}, which {name} does not have")
    return model.eval()


def _old_weights(folder: Path, config: Any, name: str) -> dict[str, Tensor] | None:
    """The weights of our own class from before linear layers were modules, by today's names; None for others."""
    path = folder / "model.safetensors"
    if name != LlmnasForCausalLM.__name__ or config.shape is None or not path.is_file():
        return None
    with safe_open(regular(path), framework="pt") as file:
        if "model.embedding" not in file.keys():  # noqa: SIM118 (not a dictionary)
            return None
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        model = LlmnasForCausalLM(config)
    prefix = f"{LlmnasForCausalLM.base_model_prefix}."
    state = modern_state({key.removeprefix(prefix): value for key, value in stored.items()}, model.model)
    return {f"{prefix}{key}": value for key, value in state.items()}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an export, by the class that reads `tokenizer.json` as it is.

    Raises:
        UserError: none there, or one that does not load.
    """
    open_tokenizer(folder / "tokenizer.json")  # in a child process: a bad one ends the process that loads it
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 (loading raises errors of every kind)
        raise UserError(f"{folder}: no tokenizer that loads ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
