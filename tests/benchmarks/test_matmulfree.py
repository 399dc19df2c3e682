"""The study of MatMul-free layers: its networks weigh the same, and its fronts are fronts."""

import statistics

import pytest
from test_benchmarks import load

from llmnas.space import Architecture, FixedShape
from llmnas.supernet import Transformer, packable


@pytest.fixture(scope="module")
def study():
    return load("matmulfree_study")


@pytest.fixture(scope="module")
def equal():
    return load("matmulfree_bytes")


def test_candidates_of_equal_bytes_are_equal_and_packable(equal):
    cells = equal.candidates()
    archs = [Architecture.from_dict(cell["arch"]) for cell in cells]
    assert len({arch.id for arch in archs}) == len(cells) == 12
    assert all(0.97 * equal.MAX_BYTES <= cell["weight_bytes"] <= equal.MAX_BYTES for cell in cells)
    assert all(equal.weight_bytes(arch) == cell["weight_bytes"] for arch, cell in zip(archs, cells, strict=True))
    for arch, cell in zip(archs, cells, strict=True):
        kinds = {spec.weights for _, spec in arch.kept}
        assert kinds == ({"dense", "ternary"} if cell["family"] == "mixed" else {cell["family"]})
        assert packable(Transformer(FixedShape(equal.BASE, arch))) == ("ternary" in kinds)
    tokens = equal.steps_of(cells) * equal.BATCH * equal.SEQ
    assert tokens >= 20 * max(cell["layer_params"] for cell in cells)


def test_differences_are_paired_and_have_an_interval(equal):
    """Three pairs: mean, and Student's t with two degrees of freedom (4.303) times the standard error."""
    losses = {"dense": [2.0, 2.1, 2.3], "ternary": [1.0, 1.0, 1.0], "mixed": [1.9, 2.1, 2.1]}
    found = equal.differences({family: {"losses": values} for family, values in losses.items()})
    pairs = [-0.1, 0.0, -0.2]
    assert found["mixed - dense"]["mean"] == pytest.approx(-0.1)
    assert found["mixed - dense"]["half_interval"] == pytest.approx(4.303 * statistics.stdev(pairs) / 3**0.5, rel=1e-3)


def test_fronts_are_of_one_family_and_nobody_of_it_is_better(study):
    space = study.space_of("mixed")
    archs = [space.smallest(), space.largest(), space.middle()]
    looked = [
        {"id": arch.id, "arch": arch.to_dict(), "val_loss": loss, "weight_bytes": size, "decode_ms": ms}
        for arch in archs
        for loss, size, ms in ((3.0, 10, 1.0), (2.0, 20, 2.0), (2.5, 30, 3.0), (1.0, 40, 4.0))
    ]
    for cost in ("weight_bytes", "decode_ms"):
        for family, rows in study.fronts(looked, cost).items():
            there = [arch for arch in archs if study.belongs(arch, family)]
            assert [row["val_loss"] for row in rows] == ([3.0, 2.0, 1.0] if there else [])
