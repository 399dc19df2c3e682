"""SIGTERM is heard wherever it comes."""

import os
import signal
import time

import pytest

from llmnas.process import run_process


class Finalised:
    """Gets a SIGTERM while it is finalised, where Python forgets exceptions."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_within_a_finalizer_is_heard_after_it(monkeypatch, capfd):
    def command(_):
        one = Finalised()
        del one
        time.sleep(60)

    monkeypatch.setattr("sys.argv", ["llmnas"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_process(command)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    err = capfd.readouterr().err
    assert err == "llmnas: terminated; what is stored is kept, --resume goes on from there\n"
