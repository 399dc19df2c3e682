"""Metrics of extreme magnitudes: a search goes on, and sees the same order as with ordinary ones."""

import warnings

import pytest
from toy_problem import EACH, LIGHT, SPACE, TWO, measure

from llmnas.search import search


@pytest.mark.parametrize("factor", [1e300, -1e300, 1e-300], ids=str)
@pytest.mark.parametrize("name", EACH)
def test_a_metric_may_have_any_magnitude(name, factor):
    def scaled(archs):
        return [{**row, "val_loss": factor * row["val_loss"]} for row in measure(archs)]

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        archive = search(SPACE, scaled, name, TWO, evaluations=40, seed=1, options=LIGHT.get(name, {}))
    assert len(archive) == 40
    assert not any(e.failure for e in archive.evaluations)
    assert archive.front()


def test_bayes_searches_at_a_great_magnitude_as_at_one():
    """Scaled by a power of two, as far as floating point lets it be the same."""
    best = {}
    for factor in (1.0, 2.0**1000):

        def scaled(archs, factor=factor):
            return [{"val_loss": factor * row["val_loss"]} for row in measure(archs)]

        archive = search(SPACE, scaled, "bayes", {"val_loss": "min"}, evaluations=32, options=LIGHT["bayes"])
        best[factor] = min(e.metrics["val_loss"] for e in archive.evaluations) / factor
    assert best[2.0**1000] == pytest.approx(best[1.0], abs=0.1)
