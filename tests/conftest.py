"""One hypothesis profile (no time limits: the machine may be slow or shared), and repeatable `torch.randn`.

Also one whole tiny run for the session (`tiny_run`; copy what you change), and `llmnas`, a verb in this process.
"""

import os
import shutil
import signal
import sys

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
    "test_interpreter",
    "test_two_processes",
    "test_retrain",
    "test_strategies",
    "test_resume",
    "test_export_hf",
    "test_expert_processes",
    "test_docs",
)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """A parallel run gives whole files out, the longest first; those that share `tiny_run` go to one worker."""
    sharing = {item.path for item in items if "tiny_run" in item.fixturenames}
    groups = {item.path: "tiny_run" if item.path in sharing else item.path.stem for item in items}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item.path]))
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(groups[item.path], len(order)))


def pytest_runtest_setup():
    """Tests that draw from the global generator draw the same whichever tests ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


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
