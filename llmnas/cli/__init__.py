"""The command line: one verb, one function; the files beside this one hold them, this one puts them in order."""

from __future__ import annotations

import sys

import typer

from llmnas.cli import begin, compress, examine, prepare, stages
from llmnas.cli.app import app
from llmnas.process import run_process

__all__ = ["app", "begin", "compress", "examine", "main", "prepare", "stages"]

_GROUPS = {
    "Begin": ("init", "doctor"),
    "Everything at once": ("run", "compress"),
    "One stage alone": ("prepare", "train", "search", "retrain", "export", "report"),
    "Use and examine": (
        "generate",
        "verify",
        "correlate",
        "ladder",
        "speculate",
        "compare",
        "extract",
        "analyse",
        "plan",
    ),
}
_ORDER = [(group, verb) for group, verbs in _GROUPS.items() for verb in verbs]


def _place(info: typer.models.CommandInfo) -> int:
    """Where a verb stands in the help; one without a group at the end."""
    name = info.name or str(getattr(info.callback, "__name__", ""))
    return next((i for i, (_, verb) in enumerate(_ORDER) if verb == name), len(_ORDER))


app.registered_commands.sort(key=_place)
for _info in app.registered_commands:
    _info.rich_help_panel = [*(group for group, _ in _ORDER), "More"][_place(_info)]


def main() -> None:
    """Run the command line; exit codes are those of `process.run`."""
    sys.exit(run_process(lambda arguments: app(arguments, prog_name="llmnas", standalone_mode=False)))
