"""House rules that a reader would otherwise have to check by eye."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "llmnas",
    "triton_kernels",
    "tests",
    "benchmarks",
    "search_configs",
    "requirements",
    "docs",
    "examples",
    "launch",
    ".ci",
)
LOOSE = ("Makefile", "pyproject.toml", "README.md", "CONTRIBUTING.md", ".pre-commit-config.yaml")
SKIP = {".pyc", ".nbi", ".nbc", ".png", ".gz", ".npz", ".safetensors"}
TEXTS = sorted(
    path
    for path in (*(p for folder in FOLDERS for p in (ROOT / folder).rglob("*")), *(ROOT / name for name in LOOSE))
    if path.is_file() and path.suffix not in SKIP
)
MODULES = sorted((ROOT / "llmnas").rglob("*.py"))

MACHINE_PATH = re.compile(r"(?<![\w.~-])/(root|home|work|Users|mnt)/\w")
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|NotImplemented[E]rror)\b")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def hits(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_one_machine():
    assert hits(MACHINE_PATH) == []


def test_nothing_unfinished():
    assert hits(UNFINISHED) == []


def test_the_patterns_find_what_they_should():
    assert MACHINE_PATH.search("open('" + "/home" + "/me/x')")
    assert not MACHINE_PATH.search("runs/home/x")
    assert UNFINISHED.search("# TO" + "DO: later")


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_says_what_it_is_for_and_fits(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) <= 350
