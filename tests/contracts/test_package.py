"""What `import llmnas` costs, and what a wheel of it contains."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["llmnas", "llmnas.config", "llmnas.search", "llmnas.cli"])
def test_import_loads_no_heavy_library(module):
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "llmnas" in loaded
    assert not {"torch", "transformers", "deepspeed"} & set(loaded)


def test_public_names_are_there():
    import llmnas

    assert all(hasattr(llmnas, name) for name in llmnas.__all__)
    assert sorted(llmnas.__all__) == llmnas.__all__


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """Names inside a wheel that is built from a copy: a build writes beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "llmnas", source / "llmnas", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_adds_one_top_level_module(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"llmnas"}
    assert len(tops) == 2


def test_wheel_holds_every_module_the_marker_and_the_licence(wheel_names):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "llmnas").rglob("*.py")}
    modules |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "llmnas" / "report" / "assets").iterdir()}
    assert modules <= wheel_names
    assert "llmnas/py.typed" in wheel_names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)
