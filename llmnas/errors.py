"""The ways a command ends before its end, each one line for a person to read."""

from __future__ import annotations

from pydantic import ValidationError


class UserError(Exception):
    """Bad input: says what is wrong, where, and what is allowed. The CLI exits with 2."""


class RunError(Exception):
    """A run that failed although its input was good. The CLI exits with 1."""


class Preempted(Exception):  # noqa: N818 (not an error: the run goes on later)
    """The run was asked to stop (SIGTERM) and has saved its state. The CLI exits with 75 (EX_TEMPFAIL): start again."""


def explain(where: str, error: ValidationError) -> UserError:
    """Turn pydantic's report into one line: file, dotted key, what is wrong with it."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "(top level)"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        message = "unknown key"
    elif first["type"] == "missing":
        message = "missing key"
    elif first["type"] not in {"value_error", "literal_error"}:
        message = f"{message}, got {first['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return UserError(f"{where}: {key}: {message}{more}")
