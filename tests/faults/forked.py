"""A verb in a forked process: nothing it does, a hang or an abort included, touches the tests; in milliseconds.

How it ended is one of: `done`, `noticed` (one line of ours, or a warning, and nothing of Python's), `traceback`, `hang`
and `code` (a file of a stranger ran). Silent faults are found by those who know what a verb should have done.
"""

import faulthandler
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from typing import NamedTuple

# what a verb imports when it needs it: once here, for all forked processes
import llmnas.cli
import llmnas.pipeline.elastic
import llmnas.pipeline.everything
import llmnas.pipeline.export

SECONDS = 120  # for a case; a machine may be busy
MEMORY = 4 << 30  # bytes more than this process has
EXPECTED = {0, 1, 2, 75}
CANARY = "code-ran"
"""What a stranger's code would create in the current folder."""


class Ended(NamedTuple):
    """How a forked process ended."""

    code: int  # negative: by a signal
    out: str
    err: str
    hung: bool = False
    ran: bool = False

    @property
    def lines(self):
        """What llmnas said."""
        return [line for line in self.err.splitlines() if line.startswith("llmnas: ")]

    @property
    def verdict(self):
        """One word; `done` says nothing of whether the result is right."""
        if self.ran:
            return "code"
        if self.hung:
            return "hang"
        if self.code not in EXPECTED or "Traceback (most recent" in self.err:
            return "traceback"
        if self.code and len(self.lines) != 1:
            return "traceback"
        return "noticed" if self.lines else "done"


def forked(call, folder, seconds=SECONDS):
    """Run `call` in a forked process whose current folder is `folder`; returns how it ended."""
    paths = [os.path.join(folder, f".{name}") for name in ("out", "err")]
    canary = os.path.join(folder, CANARY)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _child(call, folder, paths)
    status, hung = _wait(child, seconds)
    texts = []
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as stream:
            texts.append(stream.read())
        os.unlink(path)
    ran = os.path.exists(canary)
    if ran:
        os.unlink(canary)
    return Ended(os.waitstatus_to_exitcode(status), *texts, hung, ran)


def _child(call, folder, paths):
    code = 70
    try:
        faulthandler.disable()  # an abort is counted, not shown
        os.setsid()
        os.chdir(folder)
        for number, path in enumerate(paths, 1):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        with open("/proc/self/statm") as stream:
            most = int(stream.read().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        call()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 70
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child, seconds):
    """(status, whether it had to be killed)."""
    end, pause = time.monotonic() + seconds, 0.001
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status, False
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], True


def verb(*arguments):
    """A call of the command line, for `forked`."""

    def call():
        sys.argv = ["llmnas", *map(str, arguments)]
        llmnas.cli.main()

    return call


class Counts:
    """Cases by how they ended; the bad ones are kept in words."""

    BAD = ("silent", "traceback", "hang", "code")

    def __init__(self, name):
        self.name = name
        self.by = Counter()
        self.bad = []

    def add(self, case, verdict, ended=None):
        self.by[verdict] += 1
        if verdict in self.BAD:
            last = (ended.err.strip().splitlines() or [ended.out[-200:]])[-1] if ended else ""
            self.bad.append(f"{verdict}: {case}: {ended and ended.code}: {last[:300]}")

    def __str__(self):
        good = ", ".join(f"{count} {word}" for word, count in sorted(self.by.items()) if word not in self.BAD)
        bad = ", ".join(f"{self.by[word]} {word}" for word in self.BAD)
        return f"{self.name}: {self.by.total()} cases: {bad}; {good}"


def steady(text):
    """Text without what differs from one run to the next: times, rates, paths of the test."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+[+-]\d{4}", "TIME", text)
    return re.sub(r"(?<![\w.])\d+(\.\d+)? (a second|s each|candidates an hour)", "RATE", text)
