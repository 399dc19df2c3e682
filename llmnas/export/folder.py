"""An exported folder appears whole and verified, or not at all."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from llmnas.errors import RunError, UserError
from llmnas.files import ABOUT_FILE, sync_dir


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


def verify_fresh(checkpoint: Path, expected: Path, folder: Path) -> float:
    """Run `llmnas.export.verify` in a fresh process without a network; returns the relative difference."""
    done = subprocess.run(
        [sys.executable, "-m", "llmnas.export.verify", str(checkpoint), str(expected)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunError(f"{folder}: not written, the export does not verify: {reason}")
    return float(done.stdout.split()[-1])
