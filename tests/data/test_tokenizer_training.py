"""Learning a tokenizer goes on in a child process, which signals end, and which leaves nobody behind."""

import os
import signal
import sys
import time

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llmnas.data.tokenizer import train_tokenizer
from llmnas.data.tokenizer_training import trained
from llmnas.errors import RunError, UserError
from llmnas.process import run_process

TEXTS = ["the cat sat on the mat", "zeile\neins\u2028\ud7ff", "", "a" * 500, "ünï \x00 \x1e code 🙂"]


def untrained():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def test_it_is_the_tokenizer_that_this_process_would_learn():
    options = {"vocab_size": 300, "special_tokens": ["<s>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    here = untrained()
    here.train_from_iterator(TEXTS, trainers.BpeTrainer(**options, show_progress=False))
    assert trained(untrained(), iter(TEXTS), options).to_str() == here.to_str()


def words(number):
    """Text that takes minutes to learn from: a million words of their own."""
    letters = np.random.default_rng(0).integers(97, 123, (number, 12), dtype=np.uint8)
    letters[:, -1] = 32
    return letters.tobytes().decode()


@pytest.fixture
def learning(tmp_path):
    """A fork that learns from `text` as a verb does; (its number, its child process)."""
    text = words(1_000_000)
    sent, err = tmp_path / "sent", tmp_path / "err"

    def texts():
        yield text
        sent.touch()

    process = os.fork()
    if not process:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stderr = err.open("w")
            code = run_process(lambda _: train_tokenizer(texts(), 20000))
        except KeyboardInterrupt:
            code = 130
        except SystemExit as error:
            code = error.code
        finally:
            os._exit(code)
    wait_until(sent.exists)
    (child,) = psutil.Process(process).children()
    yield process, child
    for left in (process, child.pid):
        try:
            os.kill(left, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(reached):
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(child):
    return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_ends_both_at_once(learning, number, code):
    process, child = learning
    time.sleep(0.2)
    assert not ended(child)
    os.kill(process, number)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code
    wait_until(lambda: ended(child))


def test_a_child_that_is_killed_is_one_line(learning, tmp_path):
    process, child = learning
    child.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    said = (tmp_path / "err").read_text()
    assert said.startswith("llmnas: training the tokenizer: its process ended (SIGKILL: out of memory? ")
    assert said.count("\n") == 1


def test_what_reading_the_text_raises_is_raised():
    def texts():
        yield "a text"
        raise UserError("the disk is gone")

    with pytest.raises(UserError, match="the disk is gone"):
        trained(untrained(), texts(), {"vocab_size": 300})


def test_what_the_child_says_is_told():
    with pytest.raises(RunError, match=r"its process ended \(OverflowError: can't convert negative"):
        trained(untrained(), ["a"], {"vocab_size": -1})
