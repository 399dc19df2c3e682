"""What a stranger gets: configs by name, launch scripts, one version, and a wheel that runs outside a checkout."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny
import yaml
from test_extras import CORE, HEAVY

import llmnas as package
from llmnas.config import load_config
from llmnas.files.shipped import here_or_shipped

ROOT = Path(__file__).parents[1]


def test_there_is_one_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == package.__version__
    assert 'dynamic = ["version"' in (ROOT / "pyproject.toml").read_text()


def test_version_and_completion(llmnas, tmp_path):
    assert llmnas("--version").out == f"llmnas {package.__version__}\n"
    asked = {"_LLMNAS_COMPLETE": "complete_bash", "COMP_WORDS": "llmnas tr", "COMP_CWORD": "1"}
    done = subprocess.run(tiny.command(), capture_output=True, text=True, env=tiny.environment(**asked), cwd=tmp_path)
    assert done.stdout.split() == ["train"]


def test_a_shipped_config_is_found_by_name_and_a_file_here_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder of that name is no config
    assert load_config(Path("quickstart"), []).name == "quickstart"
    assert load_config(Path("search_configs/darts.yaml"), []).name == "darts"
    (tmp_path / "darts").write_text((ROOT / "search_configs" / "quickstart.yaml").read_text())
    assert load_config(Path("darts"), []).name == "quickstart"


def test_the_zero_files_of_shipped_configs_are_found_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt_125m", "llama_1b", "llama_7b"):
        named = Path(load_config(Path(name), []).train.deepspeed)
        assert not named.exists()
        assert json.loads(here_or_shipped(named).read_text())
    for escaping in ("launch/../pyproject.toml", "../launch/ds_zero1.json", "/launch/ds_zero1.json"):
        assert here_or_shipped(Path(escaping)) == Path(escaping)


def test_an_example_is_written_out_to_edit(llmnas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = llmnas("init", "--example", "quickstart")
    assert done.code == 0, done.err
    assert Path("quickstart.yaml").read_text() == (ROOT / "search_configs" / "quickstart.yaml").read_text()
    assert "exists already" in llmnas("init", "--example", "quickstart").complaint
    assert llmnas("init", "--example", "darts", "mine.yaml").code == 0
    assert load_config(Path("mine.yaml"), []).name == "darts"


@pytest.mark.parametrize(
    ("kind", "script"), [("one-node", "one_node.sh"), ("many-nodes", "many_nodes.sh"), ("slurm", "slurm.sh")]
)
def test_launch_scripts_come_with_their_zero_files(kind, script, llmnas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = llmnas("init", "--launch", kind, "here/launch")
    assert done.code == 0, done.err
    names = {path.name for path in Path("here/launch").iterdir()}
    zero = {path.name for path in (ROOT / "launch").glob("*.json")}
    assert names == {script, *zero, *(["hostfile.example"] if kind == "many-nodes" else [])}
    usage = subprocess.run(["bash", f"here/launch/{script}"], capture_output=True, text=True)
    assert (usage.returncode, usage.stderr[:7]) == (2, "usage: ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "quickest"), "quickest: no such file, and no shipped config of that name; shipped: darts, "),
        (("init", "--example", "quickest"), "--example quickest: no such config; shipped: darts, "),
        (("init", "--launch", "cloud", "x"), "--launch cloud: no such launcher; allowed: one-node, many-nodes, slurm"),
        (("init", "--launch", "slurm"), "name a folder: llmnas init --launch slurm launch"),
        (("init", "--launch", "slurm", "--example", "darts"), "one at a time"),
        (("init", "--example", "darts", "--corpus", "sotu"), "--corpus: not with --example"),
        (("init", "--example", "darts", "darts.txt"), "a config's name ends in .yaml"),
        (("init", "my.yaml"), "init: needs CONFIG, --corpus and --max-params; or --example NAME"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_one_line_and_nothing_is_written(arguments, line, llmnas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = llmnas(*arguments)
    assert done.code == 2
    assert line in done.complaint
    assert list(tmp_path.iterdir()) == []


def test_the_long_description_has_no_picture_or_link_that_only_a_checkout_has():
    sys.path.insert(0, str(ROOT))
    from setup import long_description

    text = long_description((ROOT / "README.md").read_text(encoding="utf-8"))
    assert not re.findall(r"\]\((?!https?://)", text)
    assert "docs/results.md" in text
    assert text.startswith("# llmnas\n")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, by way of a source distribution as for a package index."""
    source = tmp_path_factory.mktemp("source") / "llmnas"
    clone = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(clone, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(os.readlink(ROOT / name))
        elif name and (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (source / "dist").glob("*.whl")
    return found


def fresh(folder, wheel, extras, pins):
    """A new environment outside the checkout with the wheel and some extras, at the versions of this environment."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    link = os.environ.get("PIP_FIND_LINKS", "").split()
    uv = [*(["uv"] if not Path(sys.executable).with_name("uv").exists() else [Path(sys.executable).with_name("uv")])]
    done = subprocess.run(
        [*uv, "pip", "install", "--quiet", "--python", python, *(f"--find-links={place}" for place in link),
         "--constraint", pins, f"{wheel}{extras}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return python


def run(python, folder, *command):
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment = clean | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_wheel_holds_configs_scripts_and_kernels(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (record,) = [name for name in names if name.endswith("METADATA")]
        metadata = archive.read(record).decode()
    for folder, pattern in (("search_configs", "**/*.yaml"), ("launch", "*"), ("triton_kernels", "*.py")):
        files = {f"llmnas/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).glob(pattern)}
        assert {name for name in files if "__pycache__" not in name} <= names
    assert f"\nVersion: {package.__version__}\n" in metadata
    assert "![" not in metadata


@pytest.mark.full
def test_the_core_alone_searches_in_a_fresh_environment(wheel, tmp_path):
    python = fresh(tmp_path / "core", wheel, "", ROOT / "requirements" / "cpu.txt")
    out = run(python, tmp_path, "-c", f"import sys\n{CORE}")
    assert [line.split()[0] for line in out.splitlines()] == ["random", "evolution", "nsga2", "local", "mip"]
    installed = json.loads(run(python, tmp_path, "-c", "import importlib.metadata as m, json; "
                           "print(json.dumps([d.metadata['Name'] for d in m.distributions()]))"))  # fmt: skip
    assert not set(HEAVY) & {name.lower() for name in installed}
    assert run(python, tmp_path, "-m", "llmnas.cli", "--version") == f"llmnas {package.__version__}\n"


@pytest.mark.full
def test_the_quickstart_runs_from_a_wheel_outside_the_checkout(wheel, tmp_path):
    python = fresh(tmp_path / "wheel", wheel, "[train,export,report,corpus]", ROOT / "requirements" / "cpu.txt")
    work = tmp_path / "work"
    work.mkdir()
    short = (
        "train.steps=4", "train.eval_every=4", "train.eval_sequences=2", "train.batch_size=2", "search.evaluations=6",
        "search.windows=4", "search.sample=3", "retrain.train={steps: 2}", "retrain.seeds=2",
    )  # fmt: skip
    out = run(python, work, "-m", "llmnas.cli", "run", "quickstart", *(f"--set={knob}" for knob in short))
    assert "logits differ by" in out
    assert (work / "runs" / "quickstart" / "report.html").exists()
