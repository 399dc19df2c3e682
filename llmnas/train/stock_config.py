"""What a model's `config.json` says, with the defaults of transformers' own class; no code of the folder runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmnas.errors import UserError
from llmnas.files import read_object


def read_stock_config(folder: Path, families: Mapping[str, Any], others: Mapping[str, str]) -> Any:
    """The config of a model of one of `families`, as transformers' class of its `model_type` reads it.

    A folder that brings code (`auto_map`) is read by the stock class of its `model_type` where there is one.

    Args:
        folder: of the model.
        families: model types that are read here.
        others: why further ones are not.

    Raises:
        UserError: no such folder, no model, a model of another family, or values that the class refuses.
    """
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: holds a LoRA adapter, no model of its own; merge it into its base model (peft: "
            "merge_and_unload(), then save_pretrained()) and give that folder"
        )
    if not path.is_file():
        what = "holds no config.json" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; give the Hugging Face folder of a model on this machine")
    values = read_object(path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        known = others.get(kind) if isinstance(kind, str) else None
        own = "; the code that it names (auto_map) is not run" if values.get("auto_map") else ""
        reason = f": {known}" if known else ""
        raise UserError(f"{path}: model_type is {kind!r}{reason}; allowed: {', '.join(families)}{own}")
    quantised = values.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"{path}: the weights are quantised ({method}); load the model with transformers, dequantize() it and "
            "save_pretrained() it as bfloat16, or take the model that it was made from"
        )
    values = {key: value for key, value in values.items() if key not in {"auto_map", "transformers_version"}}
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # takes seconds; few runs read a model

    try:
        return CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # noqa: BLE001 (the classes check themselves with errors of many kinds)
        raise UserError(f"{path}: not the config of a {kind} model ({' '.join(str(error).split())})") from None
