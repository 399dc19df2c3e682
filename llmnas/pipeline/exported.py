"""Where the checkpoint is that a user means; torch and transformers are not loaded to say that there is none."""

from __future__ import annotations

from pathlib import Path

from llmnas.errors import UserError
from llmnas.files import ABOUT_FILE, inside, read_json
from llmnas.files.export_hashes import require_whole
from llmnas.pipeline.results import export_facts
from llmnas.runs import RunFolder

ELASTIC = "elastic"


def exported_folder(folder: Path) -> Path:
    """The checkpoint that a run folder holds; an exported checkpoint is one itself.

    Raises:
        UserError: neither; or a file of it is not what was written.
    """
    if (folder / ABOUT_FILE).is_file():
        require_whole(folder)
        return folder
    run = RunFolder(folder)
    if not run.manifest.is_file():
        raise UserError(f"{folder}: neither a run folder (no {run.manifest.name}) nor an export (no {ABOUT_FILE})")
    done = export_facts(run)
    checkpoint = None if done is None else inside(folder, done["folder"])
    if checkpoint is None or not (checkpoint / ABOUT_FILE).is_file():
        raise UserError(f"{folder}: nothing exported there yet; run `llmnas export CONFIG --run-dir {folder}` first")
    require_whole(checkpoint)
    return checkpoint


def elastic_folder(folder: Path) -> Path:
    """The elastic checkpoint that a run folder holds, or the folder itself where it is one.

    Raises:
        UserError: neither.
    """
    own = not (folder / ABOUT_FILE).is_file()
    checkpoint = RunFolder(folder).export(ELASTIC) if own else folder
    if (checkpoint / ABOUT_FILE).is_file() and "elastic" in read_json(checkpoint / ABOUT_FILE)["export"]:
        require_whole(checkpoint)
        return checkpoint
    if own:
        raise UserError(f"{folder}: no elastic checkpoint there; run `llmnas export CONFIG --elastic` first")
    raise UserError(f"{folder}: holds one network; a budget needs the folder of `llmnas export CONFIG --elastic`")
