"""What the package brings beside its code: configs that are ready to run and launch scripts, also in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
CONFIGS = "search_configs"
LAUNCH = "launch"


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every shipped config, by name."""
    return {path.stem: path for path in sorted((_PACKAGE / CONFIGS).glob("*.yaml"))}


def shipped_launch_files() -> list[Path]:
    """Launch scripts, ZeRO files, an example of a hostfile."""
    return sorted(path for path in (_PACKAGE / LAUNCH).iterdir() if path.is_file() and path.suffix != ".py")


def here_or_shipped(path: Path) -> Path:
    """The file itself where it exists, else the shipped one of the same relative path, where there is one.

    So `launch/ds_zero1.json`, as shipped configs write it, is found outside a checkout too.
    """
    shipped = _PACKAGE / path
    known = not path.is_absolute() and ".." not in path.parts and path.parts[:1] in {(CONFIGS,), (LAUNCH,)}
    return shipped if known and not path.exists() and shipped.is_file() else path
