"""Checkpoints for another number of processes, through DeepSpeed's universal format.

A ZeRO checkpoint holds one share of every tensor per process. DeepSpeed's converter joins the
shares into whole tensors (fp32 weights and both moments of AdamW, one folder a parameter), which
any number of processes can load and cut up again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path

from deepspeed.checkpoint import ds_to_universal

from llmnas.supernet.old_names import modern_name
from llmnas.train.no_pickle import no_pickle


def convert(source: Path, target: Path) -> None:
    """Write the universal form of the checkpoint folder `source` to `target`. One process; needs its size in disk."""
    options = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    with no_pickle(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
    for path in (target / "zero").iterdir():
        if path.is_dir():  # one of a parameter, by its name
            path.rename(path.with_name(modern_name(path.name)))
