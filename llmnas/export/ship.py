"""The code that travels with a checkpoint: our own files, flat in one folder, with relative imports."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from llmnas.files import write_text

SHELL = "modeling_llmnas"
OPTIONAL = {"flash_attn", "llvmlite", "numba", "triton"}
"""What shipped files import where it is there: compiled loops on the CPU, kernels on a GPU."""
_PACKAGE = Path(__file__).parents[1]


def shipped_files(module: str = f"llmnas.export.{SHELL}") -> dict[str, str]:
    """File name -> text of `module` and everything of ours that it imports, wherever in a file.

    Raises:
        ValueError: two files of one name, or an import that cannot be rewritten.
    """
    found: dict[str, str] = {}
    origin: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        file = f"{name.rpartition('.')[2]}.py"
        if origin.setdefault(file, name) != name:
            raise ValueError(f"{name} and {origin[file]}: the folder is flat, two files cannot have one name")
        if file not in found:
            text, more = relative_imports(_path(name).read_text(encoding="utf-8"), name)
            found[file] = tried_imports(text)
            todo += more
    return {name: _naming(text, name, found) for name, text in found.items()}


def _naming(text: str, name: str, files: Mapping[str, str]) -> str:
    """A file that `auto_map` names, with lines that name all others: from a folder, transformers 4 copies no more."""
    if not name.startswith(("configuration_", "modeling_")):
        return text
    others = [file.removesuffix(".py") for file in sorted(files) if file != name]
    lines = ["\nif False:  # transformers 4 copies the files that this one names\n"]
    lines += [f"    from .{other} import __doc__\n" for other in others]
    return text + "".join(lines if others else ())


def write_code(folder: Path, files: Mapping[str, str]) -> None:
    """What `shipped_files` found, into a checkpoint."""
    for name, text in files.items():
        write_text(folder / name, text)


def relative_imports(text: str, module: str) -> tuple[str, list[str]]:
    """Rewrite `from llmnas.a.b import c` to `from .b import c`; returns the text and the modules named.

    transformers copies the files that it finds by exactly that form (`get_relative_imports`), so `from llmnas.a
    import b` of a module b needs a line of it too.

    Raises:
        ValueError: another form of import, with the line.
    """
    lines, named = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
            raise ValueError(f"{module}, line {node.lineno}: a shipped file writes `from {node.names[0].name} import`")
        if not isinstance(node, ast.ImportFrom) or not _is_ours(node.module or ""):
            continue
        source, names, line = str(node.module), [alias.name for alias in node.names], lines[node.lineno - 1]
        old = f"from {source} import"
        if _is_module(source):
            named.append(source)
            new = f"from .{source.rpartition('.')[2]} import"
        elif len(names) == 1 and _is_module(f"{source}.{names[0]}"):
            named.append(f"{source}.{names[0]}")
            new = f"from .{names[0]} import __doc__ as _; from . import"
        else:
            raise ValueError(f"{module}, line {node.lineno}: {old} {', '.join(names)} is not one module of the package")
        lines[node.lineno - 1] = line.replace(old, new)
    return "".join(lines), sorted(set(named))


def tried_imports(text: str) -> str:
    """Put every import of an `OPTIONAL` library into a `try`, which changes nothing when it runs.

    transformers refuses a repository of the Hub when a library is missing that any of its files imports elsewhere
    (`check_imports`), also where the file itself would never be imported.
    """
    lines = text.splitlines(keepends=True)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: -node.lineno):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if not any(name.split(".")[0] in OPTIONAL for name in names):
            continue
        first, last, margin = node.lineno - 1, node.end_lineno or node.lineno, " " * node.col_offset
        inner = [f"    {line}" for line in lines[first:last]]
        lines[first:last] = [f"{margin}try:\n", *inner, f"{margin}finally:\n", f"{margin}    pass\n"]
    return "".join(lines)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == "llmnas"


def _is_module(module: str) -> bool:
    return _path(module).is_file()


def _path(module: str) -> Path:
    return _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
