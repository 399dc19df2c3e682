"""The n-th write of a verb fails: one line, and the verb started again ends as if nothing had been.

Run with `failing_writes.so` preloaded: python write_failures.py CONFIG WORK MOST; prints the counts as JSON.
"""

import ctypes
import errno
import json
import sys
from pathlib import Path

from damage import copied
from forked import Counts, forked, verb
from matrix import result

VERBS = ("prepare", "train", "search", "retrain", "export", "report")
FAULTS = {"full disk": errno.ENOSPC, "write error": errno.EIO}
SKIPPED = ("supernet/checkpoints/", "checkpoints-", "search/")


def arguments(name, config, place, *, again=False):
    more = {"export": ["--force"]}.get(name, ["--resume"]) if again else []
    return verb(name, config, "--run-dir", place, *more)


def failing(call, folder, number, fault):
    """The call, whose `number`-th write below `folder` fails; 0 counts the writes and prints them."""

    def run():
        shim = ctypes.CDLL(None)
        shim.fault_count.restype = ctypes.c_long
        shim.fault_arm(str(folder).encode(), ctypes.c_long(number), fault)
        try:
            call()
        except SystemExit:
            if not number:
                print(f"writes: {shim.fault_count()}")
            raise

    return run


def left(place):
    """What a verb left, without checkpoints and times."""
    return {name: value for name, value in result(place, "")[1].items() if not any(part in name for part in SKIPPED)}


def spread(total, most):
    """All numbers from 1 to `total`, or so many of them, evenly."""
    if total <= most:
        return range(1, total + 1)
    return sorted({1 + i * (total - 1) // (most - 1) for i in range(most)})


def run_failures(config, work, most, verbs=VERBS):
    """Every verb on what the ones before it left."""
    counts = Counts("failing writes")
    before, place = work / "before", work / "run"
    before.mkdir()
    for name in verbs:
        copied(before, place)
        whole = forked(failing(arguments(name, config, place), place, 0, 0), work)
        assert whole.code == 0, whole.err
        expected, total = left(place), int(whole.out.rsplit("writes: ", 1)[1])
        assert total, f"{name} writes nothing"
        for number in spread(total, most):
            for words, fault in FAULTS.items():
                copied(before, place)
                ended = forked(failing(arguments(name, config, place), place, number, fault), work)
                verdict = ended.verdict
                if verdict in ("done", "noticed"):
                    if ended.code:
                        again = forked(arguments(name, config, place, again=True), work)
                        verdict = verdict if again.code == 0 else "traceback"
                        ended = ended if again.code == 0 else again
                    if verdict != "traceback" and left(place) != expected:
                        verdict = "silent"
                counts.add(f"{name}: {words} at write {number} of {total}", verdict, ended)
        copied(before, place)
        assert forked(arguments(name, config, place), work).code == 0
        copied(place, before)
    return counts


if __name__ == "__main__":
    found = run_failures(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), tuple(sys.argv[4:]) or VERBS)
    print(json.dumps({"counts": str(found), "bad": found.bad}))
