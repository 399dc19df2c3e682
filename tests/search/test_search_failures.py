"""Evaluations that fail: what is caught, what is stored of it, and what is said of a front that stays empty."""

import math

import numpy as np
import pytest
from toy_problem import EACH, LIGHT, SPACE, measure

from llmnas.archive import Archive
from llmnas.errors import UserError
from llmnas.search import Failed, search


def breaks(archs):
    """On every network of 96 channels, in two ways."""
    for arch in archs:
        if arch.hidden_size == 96:
            if arch.depth == 4:
                raise MemoryError("no room\nfor it" + "!" * 400)
            raise RuntimeError
    return measure(archs)


@pytest.mark.parametrize("name", EACH)
def test_one_exception_is_one_failed_evaluation_with_its_reason(name, tmp_path):
    path = tmp_path / "evaluations.sqlite"
    archive = search(SPACE, breaks, name, evaluations=40, catch=(RuntimeError, MemoryError), archive_path=path,
                     options=LIGHT.get(name, {}))  # fmt: skip
    archive.close()
    assert len(archive) == 40
    found = Archive.load(path).evaluations
    assert found == archive.evaluations
    failed = [e for e in found if e.arch.hidden_size == 96]
    assert failed
    for e in found:
        if e.arch.hidden_size != 96:
            assert (e.failure, e.metrics) == (None, measure([e.arch])[0])
        elif e.arch.depth == 4:
            assert e.failure.startswith("MemoryError: no room for it!!!")
            assert len(e.failure) < 250
        else:
            assert e.failure == "RuntimeError"
    assert all(e.arch.hidden_size != 96 for e in archive.front())


def test_of_a_batch_that_raised_each_is_evaluated_alone_and_only_then(tmp_path):
    calls = []

    def noted(archs):
        calls.append(len(archs))
        return breaks(archs)

    archive = search(SPACE, noted, "random", evaluations=40, catch=Exception)
    whole = [n for n in calls if n > 1]
    assert whole == [8] * 5
    assert len(calls) % 8 == 5  # each batch that raised has 8 more calls
    assert archive.evaluations == search(SPACE, breaks, "random", evaluations=40, catch=Exception).evaluations


@pytest.mark.parametrize("catch", [(), KeyError, (KeyError, ValueError)])
def test_what_is_not_caught_ends_the_search_and_keeps_what_is_stored(catch, tmp_path):
    path = tmp_path / "evaluations.sqlite"
    with pytest.raises((RuntimeError, MemoryError)):
        search(SPACE, breaks, "random", evaluations=400, catch=catch, archive_path=path, batch=1)
    stored = len(Archive.load(path))
    assert stored > 0
    assert len(search(SPACE, breaks, "random", evaluations=40, catch=Exception, archive_path=path, batch=1)) == 40


def test_results_that_are_wrong_are_not_caught():
    with pytest.raises(UserError, match="returned 7 results for 8"):
        search(SPACE, lambda archs: measure(archs)[1:], evaluations=8, catch=Exception)
    with pytest.raises(UserError, match="must return a mapping for each architecture"):
        search(SPACE, lambda archs: None, evaluations=8, catch=Exception)
    with pytest.raises(UserError, match="returned no 'val_loss'"):
        search(SPACE, lambda archs: [{}] * len(archs), evaluations=8, catch=Exception)


def test_what_a_generator_raises_is_caught_too():
    def lazily(archs):
        yield from breaks(archs)

    archive = search(SPACE, lazily, "random", evaluations=40, catch=Exception)
    assert {e.failure is None for e in archive.evaluations} == {True, False}


@pytest.mark.parametrize("wrong", [3, "RuntimeError", int, (RuntimeError, 3), RuntimeError("x"), None])
def test_what_is_no_exception_cannot_be_caught(wrong):
    with pytest.raises(UserError, match=r"catch: must be types of exceptions, got"):
        search(SPACE, measure, evaluations=8, catch=wrong)


def test_an_interrupt_is_caught_only_by_name():
    def interrupted(archs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, interrupted, evaluations=8, catch=Exception)


def test_an_evaluator_may_say_itself_what_failed():
    def told(archs):
        return [Failed("too wide", {"width": a.hidden_size}) if a.hidden_size == 96 else measure([a])[0] for a in archs]

    archive = search(SPACE, told, "random", evaluations=40)
    failed = [e for e in archive.evaluations if e.failure]
    assert failed
    assert {e.failure for e in failed} == {"too wide"}
    assert {e.metrics["width"] for e in failed} == {96.0}


@pytest.mark.parametrize("name", EACH)
def test_nan_in_a_metric_that_nobody_asked_for_fails_nothing(name):
    def with_more(archs):
        return [{**row, "energy_j": math.nan, "latency_ms": np.inf} for row in measure(archs)]

    options = LIGHT.get(name, {})
    archive = search(SPACE, with_more, name, evaluations=24, options=options)
    assert archive.evaluations == search(SPACE, measure, name, evaluations=24, options=options).evaluations


def test_an_empty_front_is_explained(caplog):
    def failing(archs):
        return [{**row, "val_loss": math.nan} for row in measure(archs)]

    archive = search(SPACE, failing, "random", evaluations=8)
    assert archive.front() == []
    assert archive.why_empty() == "All 8 evaluations failed, 8 of them because val_loss is nan."
    assert f"the front is empty. {archive.why_empty()}" in caplog.text
    caplog.clear()
    archive = search(SPACE, measure, "random", constraints={"params": 10}, evaluations=8)
    least = min(archive.evaluations, key=lambda e: e.metrics["params"])
    assert archive.why_empty() == (
        "None of the 8 evaluations that succeeded (of 8) meets all constraints; nearest is "
        f"{least.arch.id}: params = {least.metrics['params']:.6g} is {least.metrics['params'] - 10:.6g} above 10."
    )
    assert archive.why_empty() in caplog.text
    caplog.clear()
    assert search(SPACE, measure, "random", evaluations=8).why_empty() == ""
    assert "empty" not in caplog.text
