"""The code beside a checkpoint: all of it there, nothing of llmnas asked for, nothing else that may be missing."""

import ast
import sys

import pytest
from transformers.dynamic_module_utils import get_imports

from llmnas.export.ship import relative_imports, shipped_files, tried_imports


def test_shipped_files_import_nothing_of_llmnas_and_are_all_there():
    files = shipped_files()
    assert {"modeling_llmnas.py", "architecture.py", "model.py", "mlgru_scan.py"} <= files.keys()
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "llmnas" for alias in node.names), name
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "llmnas", name
                if node.level and node.module:
                    assert f"{node.module}.py" in files, name


def test_no_shipped_file_asks_for_more_than_transformers_has(tmp_path):
    """As transformers asks before it runs the code of a repository of the Hub."""
    asked = set()
    for name, text in shipped_files().items():
        (tmp_path / name).write_text(text)
        asked |= set(get_imports(tmp_path / name))
    assert asked - set(sys.stdlib_module_names) == {"torch", "transformers", "numpy"}


def test_imports_of_what_may_be_missing_are_tried():
    text = "import os\nimport triton.language as tl\ndef f():\n    from numba.core import (\n        cgutils,\n    )\n"
    assert tried_imports(text) == (
        "import os\ntry:\n    import triton.language as tl\nfinally:\n    pass\ndef f():\n"
        "    try:\n        from numba.core import (\n            cgutils,\n        )\n    finally:\n        pass\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import llmnas.space.space", "writes `from llmnas.space.space import`"),
        ("from llmnas.space import Architecture", "is not one module"),
        ("from llmnas.space import architecture, space", "is not one module"),
    ],
)
def test_imports_that_a_flat_folder_cannot_have_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        relative_imports(text, "llmnas.example")


def test_imports_are_rewritten_wherever_they_stand():
    text = "from llmnas.nn.rope import (\n    rotate,\n)\ndef f():\n    from llmnas.nn import norm as n  # why\n"
    found, modules = relative_imports(text, "llmnas.example")
    assert modules == ["llmnas.nn.norm", "llmnas.nn.rope"]
    assert found == (
        "from .rope import (\n    rotate,\n)\ndef f():\n"
        "    from .norm import __doc__ as _; from . import norm as n  # why\n"
    )
