"""An exported folder appears whole and verified, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from tokenizers import Tokenizer

from llmnas.errors import RunError, UserError
from llmnas.files import ABOUT_FILE, COMPANIONS, ORIGIN_FILE, sync_dir, write_json
from llmnas.files.tokenizer_files import open_tokenizer

EOS_ID = 0  # tokenizers of this project have the end of text first


@contextlib.contextmanager
def staged(folder: Path, force: bool) -> Iterator[Path]:
    """An empty folder beside `folder`, renamed to it when the block ends without an error.

    Its parent is deleted afterwards, so what the block puts there (`checkpoint.with_name`) is temporary.

    Args:
        folder: what to make.
        force: replace an earlier export.

    Raises:
        UserError: `folder` is there already.
        RunError: the files could not be written.
    """
    check_folder(folder, force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
            checkpoint = Path(staging, "checkpoint")
            checkpoint.mkdir()
            yield checkpoint
            for path in (*checkpoint.iterdir(), checkpoint):
                sync_dir(path)  # it opens and fsyncs, files too
            with _set_aside(folder, Path(staging, "replaced")) if force else contextlib.nullcontext():
                checkpoint.rename(folder)
            sync_dir(folder.parent)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot write the export: {error}") from None


@contextlib.contextmanager
def _set_aside(folder: Path, aside: Path) -> Iterator[None]:
    """An earlier export out of the way; back where it was if the block that replaces it is interrupted or fails."""
    earlier = folder.exists()
    try:
        if earlier:
            folder.rename(aside)
        yield
    except BaseException:
        if earlier and aside.exists() and not folder.exists():
            aside.rename(folder)
        raise


def check_folder(folder: Path, force: bool) -> None:
    """Refuse a folder that is there, unless it is an export to be replaced; `UserError`."""
    if not os.path.lexists(folder):
        return
    if not force:
        raise UserError(f"{folder}: is there already; replace an earlier export with --force, or move it away")
    if not (folder / ABOUT_FILE).is_file():
        raise UserError(f"{folder}: is there and has no {ABOUT_FILE}; --force replaces only an earlier export")


def check_tokenizer_file(path: Path, vocab_size: int, eos_id: int = EOS_ID) -> None:
    """Refuse a file that is no tokenizer of this vocabulary with the end of text as entry `eos_id`; `UserError`.

    A pretrained model (there is an `ORIGIN_FILE`, or a companion) may have more rows than its tokenizer has entries,
    and any entry for the end of text.
    """
    tokenizer = open_tokenizer(path)
    rows_left = vocab_size - tokenizer.get_vocab_size()
    pretrained = bool(_companions(path)) or path.with_name(ORIGIN_FILE).is_file()
    if rows_left < 0 or (rows_left and not pretrained):
        raise UserError(
            f"{path}: has {tokenizer.get_vocab_size()} entries, the model's vocabulary {vocab_size}; they must be equal"
        )
    special = tokenizer.get_added_tokens_decoder().get(eos_id)
    marked = special is not None and special.special
    if tokenizer.id_to_token(eos_id) is None or not (marked or pretrained):
        raise UserError(f"{path}: entry {eos_id} must be a special token that ends a document")


def _companions(tokenizer_path: Path) -> list[Path]:
    return [path for name in COMPANIONS if (path := tokenizer_path.with_name(name)).is_file()]


def write_tokenizer(source: Path | None, folder: Path, max_seq: int, eos_id: int = EOS_ID) -> dict[str, str]:
    """Copy `tokenizer.json` with what it came with; where it came alone, say how to use it.

    Returns what `ABOUT_FILE` says of it; nothing without one.

    `split_special_tokens`: "<|endoftext|>" in a text is plain characters, as in training.
    """
    if source is None:
        return {}
    shutil.copyfile(source, folder / "tokenizer.json")
    companions = _companions(source)
    for path in companions:
        shutil.copyfile(path, folder / path.name)
    if companions:
        return {"tokenizer": "as it came"}
    end = Tokenizer.from_file(str(source)).id_to_token(eos_id)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq,
        "padding_side": "left",
    }
    write_json(folder / "tokenizer_config.json", settings)
    return {"tokenizer": "ours"}


def verify_fresh(checkpoint: Path, expected: Path, folder: Path) -> float:
    """Run `llmnas.export.verify` in a fresh process without a network; returns the relative difference."""
    done = subprocess.run(
        [sys.executable, "-m", "llmnas.export.verify", str(checkpoint), str(expected)],
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(checkpoint.with_name("modules"))}
        | {"TORCHDYNAMO_DISABLE": "1"},  # BitLinear compiles itself: the same values, without a C++ compiler
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunError(f"{folder}: not written, the export does not verify: {reason}")
    return float(done.stdout.split()[-1])
