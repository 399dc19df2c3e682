"""Metrics join those of the evaluator, in order, and only the providers given are run."""

import pytest

from llmnas.errors import RunError
from llmnas.evaluate.providers import Provider, with_providers
from llmnas.space import Architecture, LayerSpec

ARCHS = [Architecture(h, (LayerSpec(1, 1, 4, 8),)) for h in (4, 8, 12)]


def losses(archs):
    return [{"val_loss": float(arch.hidden_size)} for arch in archs]


def test_values_stand_beside_the_metrics_of_their_architecture():
    width = Provider("width", lambda archs: [arch.hidden_size for arch in archs], "counted")
    depth = Provider("depth", lambda archs: [arch.depth for arch in archs], "counted")
    assert with_providers(losses, [width, depth])(ARCHS) == [
        {"val_loss": h, "width": h, "depth": 1} for h in (4.0, 8.0, 12.0)
    ]
    assert with_providers(losses, [])(ARCHS) == losses(ARCHS)


def test_a_provider_that_loses_count_is_an_error():
    with pytest.raises(RunError, match="width: 1 values for 3 architectures"):
        with_providers(losses, [Provider("width", lambda archs: [1.0], "")])(ARCHS)
