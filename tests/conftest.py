"""One hypothesis profile (no time limits: the machine may be slow or shared), and repeatable `torch.randn`.

Also one whole tiny run for the session (`tiny_run`; copy what you change), and `llmnas`, a verb in this process.
"""

import functools
import os
import re
import shutil
import signal
import sys
from pathlib import Path

# Before torch is imported, here and in every process that a test starts: the workers of a parallel run share the cores,
# and threads that wait for a core by spinning made the suite four times as expensive.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny
from hypothesis import HealthCheck, settings

settings.register_profile("llmnas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llmnas")


FIRST = (
    "tiny_run",
    "triton_kernels/test_interpreter.py",
    "train/test_two_processes.py",
    "pipeline/test_retrain.py",
    "search/test_strategies.py",
    "train/test_resume.py",
    "export/test_export_hf.py",
    "train/test_expert_processes.py",
)
"""Groups of tests that take longest: a parallel run ends when the last group does."""
HERE = Path(__file__).parent


@functools.cache
def group_of(file):
    """A file by itself; those that share `tiny_run`, which takes a while to make, together."""
    uses = re.search(r"\b(tiny_run|copied)\b", file.read_text(encoding="utf-8"))
    return "tiny_run" if uses else file.relative_to(HERE).as_posix()


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(group_of(item.path), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A parallel run gives whole groups out (xdist 3.8's own `loadgroup` finds no groups under pytest 9.2)."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(config.rootpath / nodeid.split("::")[0])

    return ByGroup(config, log)


def pytest_terminal_summary(terminalreporter):
    """Print what tests have counted (`record_property("counts", ...)`)."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    for line in [text for report in reports for name, text in report.user_properties if name == "counts"]:
        terminalreporter.write_line(line)


def pytest_runtest_setup():
    """Tests that draw from the global generator draw the same whichever tests ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing that a test measures is kept for the user, here and in every process that a test starts."""
    os.environ["LLMNAS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """`llmnas run` on a few speeches, once."""
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny.write_config(folder, tiny.write_corpus(folder / "text"))
    done = tiny.run("run", config, "--run-dir", folder / "run", cwd=folder)
    assert done.code == 0, done.err
    return tiny.Run(config, folder / "run", done)


@pytest.fixture
def copied(tiny_run, tmp_path):
    """The config of the tiny run and a copy of its folder, to be changed."""
    return tiny.Run(tiny_run.config, shutil.copytree(tiny_run.folder, tmp_path / "run"), tiny_run.done)


@pytest.fixture
def llmnas(monkeypatch, capfd):
    """Call a verb as the command line does, in this process."""
    from llmnas import cli

    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["llmnas", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return tiny.Done(int(ended.value.code or 0), *capfd.readouterr())

    yield call
    signal.signal(signal.SIGTERM, before)
