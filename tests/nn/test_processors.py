"""What docs/reproducibility.md calls equal on every processor is so here and on one without AVX-512."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLDER = dict(re.findall(r"^test-avx2: export (\w+) := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
EQUAL = (
    "drawn architectures", "costs", "order of the data", "initial weights",
    "integers of tokens", "packed weights", "packed products",
)  # fmt: skip
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="older x86-64 processors are what is tried")


def digests(folder, **changes):
    here = {name: value for name, value in os.environ.items() if name not in OLDER}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("digests.py"))], check=True, capture_output=True, text=True,
        env=here | changes | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return json.loads(done.stdout)


def test_another_processor_has_the_same_bits(tmp_path):
    ours, older = digests(tmp_path), digests(tmp_path, **OLDER)  # one cache: numba tells processors apart
    assert (older["capability"], older["vnni"]) == ("AVX2", False)
    assert {name: older[name] for name in EQUAL} == {name: ours[name] for name in EQUAL}


def test_the_documentation_names_the_same():
    table = (ROOT / "docs" / "reproducibility.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| yes \|", table, re.MULTILINE)
    assert {row.strip() for row in rows} == set(EQUAL)
