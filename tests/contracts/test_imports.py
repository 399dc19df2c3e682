"""Who may import whom, inside the package and outside of it. The table below is the rule."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llmnas"
# triton_kernels is a link to the folder at the root, and rglob follows none
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "triton_kernels").glob("*.py")})

EVERYWHERE = {"errors", "files", "extras", "memory"}
BELOW_PIPELINE = {"space", "rng", "data", "cost", "config", "runs", "tracking", "pareto", "nn", "supernet", "train"}
BELOW_PIPELINE |= {"archive", "distributed"}
BELOW_PIPELINE |= {"evaluate", "search", "export", "serve", "report"}

# room -> what it may import: a room, or one module of a room
MAY_IMPORT = {
    "__init__": {"space", "cost", "pareto", "waiting"},
    "waiting": set(),
    "errors": set(),
    "memory": {"errors"},
    "extras": {"errors"},
    "files": {"errors"},
    "rng": set(),
    "space": set(),
    "cost": {"space"},
    "pareto": {"space"},
    "archive": {"pareto", "space", "report.notebook", "report.findings"},
    "nn": {"space", "triton_kernels"},
    "triton_kernels": set(),
    "data": {"rng"},
    "distributed": set(),
    "supernet": {"nn", "space"},
    "config": {
        "space",
        "cost",
        "train.settings",
        "train.numbers",
        "train.darts_settings",
    },  # the knobs of training, without torch
    "manifest": set(),
    "runs": {"manifest"},
    "tracking": set(),
    "train": {"supernet", "nn", "cost", "space", "data", "rng", "distributed"},
    "evaluate": {"supernet", "cost", "space", "data", "pareto", "rng"},
    "search": {"space", "cost", "pareto", "archive", "rng", "report.notebook"},
    "export": {"supernet", "space", "nn", "cost"},
    "serve": {"supernet", "space", "nn", "cost", "export.modeling_llmnas", "export.subnetworks"},
    "report": {"pareto", "space"},
    "pipeline": BELOW_PIPELINE,
    "process": set(),
    "cli": {"__init__", "pipeline", "config", "runs", "tracking", "process", "distributed", "report.terminal"},
}

# foreign library -> the only files that may import it
ONLY_IN = {
    "deepspeed": {"train/engine.py", "train/no_pickle.py", "train/state_files.py", "train/universal.py"},
    "pymoo": {"search/nsga2.py"},
    "botorch": {
        f"search/{name}.py" for name in ("bayes", "hypervolume", "pool_model", "sampled_hypervolume", "surrogate")
    },
    "gpytorch": {"search/arch_kernel.py", "search/pool_model.py", "search/surrogate.py"},
    "moocore": {"pareto.py"},
    "wandb": {"tracking.py"},
    "transformers": {"export/*.py", "train/stock_config.py", "data/chat.py"},
    "typer": {"cli/*.py", "process.py"},
    "matplotlib": {"report/plots.py"},
    "jinja2": {"report/html.py"},
    "zeus": {"evaluate/power.py"},
}

# rooms that work without torch: configs, spaces, costs and searches are plain values
NO_TORCH = {
    "__init__",
    "waiting",
    "errors",
    "extras",
    "memory",
    "files",
    "rng",
    "space",
    "cost",
    "pareto",
    "config",
    "manifest",
    "runs",
    "tracking",
}
NO_TORCH |= {"archive", "distributed", "manifest", "search", "report", "cli", "process"}
LIGHT = {
    "pipeline/exported.py",
    "pipeline/examples.py",
}  # says what is wrong with a folder before anything heavy is loaded
# strategies that fit models: loaded by name when a search asks for one (`load_strategy`), never with the room
FITTED = (
    "arch_kernel",
    "surrogate",
    "hypervolume",
    "sampled_hypervolume",
    "pool_model",
    "bayes",
    "reinforce",
    "predictor",
    "ofa",
)
MODELS = {f"search/{name}.py" for name in FITTED}


def module_of(path: Path) -> str:
    """`llmnas.space` for llmnas/space/__init__.py, `llmnas.space.encode` for llmnas/space/encode.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return (*module.split("."), "__init__")[1]


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, wherever in it: lazy and type-checking imports count."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & {module_of(file) for file in FILES}
            found |= submodules or {node.module}
    return frozenset(found)


def ours(path: Path) -> list[str]:
    return sorted(module for module in imports(path) if module.split(".")[0] == "llmnas")


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_room_imports_only_what_its_row_allows(path):
    room = room_of(module_of(path))
    assert room in MAY_IMPORT, f"{room} has no row in MAY_IMPORT; decide what it may import"
    allowed = MAY_IMPORT[room] | EVERYWHERE | {room}
    for module in ours(path):
        inner = module.removeprefix("llmnas.")
        assert room_of(module) in allowed or inner in allowed, f"{relative(path)} may not import {module}"


def test_every_row_is_of_a_room_that_exists():
    assert MAY_IMPORT.keys() == {room_of(module_of(path)) for path in FILES}


def test_no_import_cycle():
    graph = {module_of(path): set(ours(path)) - {module_of(path)} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("library", ONLY_IN)
def test_foreign_library_has_one_door(library):
    doors = {path for pattern in ONLY_IN[library] for path in PACKAGE.glob(pattern)}
    users = {path for path in FILES if any(module.split(".")[0] == library for module in imports(path))}
    assert users, f"nothing imports {library} any more; drop its row and the dependency"
    assert not {relative(path) for path in users - doors}


PLAIN = [p for p in FILES if relative(p) in LIGHT or (room_of(module_of(p)) in NO_TORCH and relative(p) not in MODELS)]


@pytest.mark.parametrize("path", PLAIN, ids=relative)
def test_plain_rooms_do_not_import_torch(path):
    assert not {f"llmnas.{file.removesuffix('.py').replace('/', '.')}" for file in MODELS} & imports(path)
    assert not {module for module in imports(path) if module.split(".")[0] in {"torch", "transformers", "deepspeed"}}
