"""Files that others made are opened in one place: what else opens a file is listed here with its reason."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llmnas"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "files")

OPENS = {
    "open", "read_text", "read_bytes", "load", "loads", "memmap", "fromfile", "safe_open", "load_file", "connect",
    "from_file", "decompress", "ParquetFile", "copyfile", "copy", "copytree", "fdopen", "safe_load", "full_load",
}  # fmt: skip
"""Names of functions that open a file, or parse what one holds, in Python and in the libraries that are used."""
OWNERS = {
    "load": {"json", "yaml", "torch", "np", "numpy", "pickle", "marshal"},
    "loads": {"json", "pickle", "marshal"},
    "copy": {"shutil"},
    "connect": {"sqlite3"},
}
"""Of names that other things have too: the modules whose function is meant. `TokenFile.open`, `Store.open` are ours."""
THE_DOOR = {"read_text", "read_bytes", "open_regular", "open_unpacked", "open_tokenizer"}
"""Functions of `llmnas.files`: by these names, without an owner, nothing else is called."""

GUARDED = "the library opens it by name, after `regular` in the same expression or function"
OWN = "writes, or reads its own open file"
ALLOWED = {
    "archive/store.py": {
        "sqlite3.connect": GUARDED,
        "json.loads": "a text that this process has just written",
    },
    "cost/device.py": {"info.read_text": "/proc/cpuinfo"},
    "data/duplicates.py": {"np.memmap": "files of a store's own work, made by this process or one before"},
    "data/parquet.py": {"ParquetFile": "of a stream from `open_regular`"},
    "data/tokenizer_child.py": {"json.loads": "lines of the process that started it"},
    "data/tokens.py": {"np.memmap": "a file whose size and blocks are checked against its description"},
    "distributed/lock.py": {
        "os.open": OWN,
        "json.loads": "4096 bytes of a lock, any fault is no lock",
        "path.open": "for its time stamp, nothing is read",
        ".read_text": "/proc",
    },
    "evaluate/power.py": {".read_text": "/sys/class/powercap", "name.read_text": "/sys/class/powercap"},
    "export/loading.py": {"safe_open": GUARDED},
    "export/tokenizer.py": {
        "shutil.copyfile": "what `check_tokenizer_file` has opened, and regular files beside it",
        "Tokenizer.from_file": "what `check_tokenizer_file` has tried",
    },
    "export/origin.py": {"shutil.copyfile": "regular files that the run keeps of a model's folder"},
    "export/ship.py": {".read_text": "files of this package"},
    "export/verify.py": {
        "Tokenizer.from_file": "in a process of its own, of a folder that was just written",
        "load_file": "in a process of its own, of a file that was just written",
    },
    "pipeline/shared_data.py": {"shutil.copyfile": "regular files of a store of our own, hashed where they are read"},
    "pipeline/team.py": {".open": OWN},
    "pipeline/examples.py": {"source.read_text": "files of this package"},
    "report/html.py": {".read_text": "files of this package"},
    "search/predictor.py": {"safe_open": GUARDED},
    "space/architecture.py": {"json.loads": "a text; shipped with checkpoints, without llmnas"},
    "supernet/packed_file.py": {"safe_open": GUARDED},
    "supernet/weights.py": {"safe_open": GUARDED},
    "tracking.py": {"path.open": OWN},
    "train/checkpoint.py": {"load_file": "whose hash the checkpoint's manifest has"},
    "train/expert_parallel.py": {"load_file": "whose hash the checkpoint's manifest has"},
    "train/state_files.py": {
        "torch.load": "within `no_pickle`, whose hash the checkpoint's manifest has",
        "path.open": OWN,
    },
    "train/stock_weights.py": {"safe_open": GUARDED},
}


def opened(path):
    """(name, line) of every call in a file that may open one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name):
            if function.id in OPENS - THE_DOOR - OWNERS.keys():
                yield function.id, node.lineno
        elif isinstance(function, ast.Attribute) and function.attr in OPENS:
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            if owner not in {"TokenFile", "Store"} and owner in OWNERS.get(function.attr, {owner}):
                yield f"{owner}.{function.attr}", node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_of_others_are_opened_by_the_door(path):
    allowed = ALLOWED.get(path.relative_to(PACKAGE).as_posix(), {})
    found = dict(opened(path))
    for name, line in found.items():
        assert name in allowed, f"{path}:{line}: {name}: open it through llmnas.files, or say in ALLOWED why not"
    assert not allowed.keys() - found.keys(), "what is allowed and not done any more: take it out of ALLOWED"


def test_every_guarded_file_names_the_guard():
    for name, calls in ALLOWED.items():
        if GUARDED in calls.values():
            assert "regular(" in (PACKAGE / name).read_text(encoding="utf-8"), name


def test_every_row_is_of_a_file():
    assert not [name for name in ALLOWED if not (PACKAGE / name).is_file()]


def test_the_search_finds_what_it_should(tmp_path):
    source = tmp_path / "x.py"
    source.write_text("open('a'); p.read_text(); json.load(f); gzip.open(p); read_text(p); f(x).open(); load(x)")
    assert [name for name, _ in opened(source)] == ["open", "p.read_text", "json.load", "gzip.open", ".open"]
