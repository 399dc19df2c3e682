"""Learns a tokenizer; a process of its own, since learning hears no signal: whoever waits for it does, and ends it.

Reads JSON lines on stdin: {"tokenizer": an untrained one, "options": of the trainer}, then texts, then null; writes
tokenizer.json on stdout. Started by path: it imports nothing of llmnas, so that it starts at once.
"""

import ctypes
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, trainers

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def _texts() -> Iterator[str]:
    """The texts; without their end the one who asks is gone, and so is this process."""
    for line in sys.stdin.buffer:
        text = json.loads(line)
        if text is None:
            return
        yield text
    sys.exit(1)


def main() -> None:
    """Learn from what stdin holds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the other one decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    asked: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    tokenizer = Tokenizer.from_str(asked["tokenizer"])
    tokenizer.train_from_iterator(_texts(), trainers.BpeTrainer(**asked["options"], show_progress=False))
    sys.stdout.write(tokenizer.to_str())


if __name__ == "__main__":
    main()
