"""Ridge towards a prior: leave-one-out by leaving one out, and what the correction learns."""

import numpy as np
import pytest
from test_latency import SPACE, TABLE

from llmnas.cost.correction import Corrected, ridge_towards
from llmnas.errors import UserError


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_weights_minimise_the_penalised_error_and_left_out_residuals_are_exact(strength):
    rng = np.random.default_rng(0)
    rows, target, prior = rng.normal(size=(9, 3)), rng.normal(size=9), np.array([1.0, 0.0, -0.5])

    def fit(kept):
        # the penalty as rows of its own: ordinary least squares
        stacked = np.vstack([rows[kept], np.sqrt(strength * len(rows)) * np.eye(3)])
        wanted = np.concatenate([target[kept], np.sqrt(strength * len(rows)) * prior])
        return np.linalg.lstsq(stacked, wanted, rcond=None)[0]

    weights, _, error = ridge_towards(rows, target, prior, strength)
    np.testing.assert_allclose(weights, fit(np.arange(9)), rtol=1e-9, atol=1e-12)
    left_out = [target[i] - rows[i] @ fit(np.delete(np.arange(9), i)) for i in range(9)]
    assert error == pytest.approx(np.abs(left_out).mean(), rel=1e-9)


def sampled(count, seed):
    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(SPACE.sample(rng) for _ in range(count)))


def test_it_learns_what_the_table_gets_wrong():
    def truth(arch):
        return 1.3 * TABLE.latency_ms(arch) + 2.0 + 0.4 * arch.depth

    seen, unseen = sampled(30, 0), sampled(40, 1)
    corrected = Corrected.fit(TABLE, seen, [truth(arch) for arch in seen])

    def error(predict):
        return np.mean([abs(predict(arch) / truth(arch) - 1) for arch in unseen])

    assert error(corrected.latency_ms) < 0.01 < 0.1 < error(TABLE.latency_ms)


def test_pure_noise_leaves_the_table_as_it_is():
    rng = np.random.default_rng(3)
    seen = sampled(20, 0)
    corrected = Corrected.fit(TABLE, seen, [TABLE.latency_ms(arch) * rng.lognormal(sigma=0.05) for arch in seen])
    for arch in sampled(20, 1):
        assert corrected.latency_ms(arch) == pytest.approx(TABLE.latency_ms(arch), rel=0.06)


def test_too_few_networks_are_refused():
    with pytest.raises(UserError, match="at least 8"):
        Corrected.fit(TABLE, sampled(3, 0), [1.0, 1.0, 1.0])


def test_a_stored_correction_predicts_the_same_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "decode-correction-0.json"
    seen = sampled(12, 0)
    found = Corrected.fit(TABLE, seen, [1.3 * TABLE.latency_ms(arch) + 2.0 for arch in seen])
    found.save(path)
    stored = Corrected.load(path, TABLE)
    assert [stored.latency_ms(arch) for arch in seen] == [found.latency_ms(arch) for arch in seen]
    assert (stored.strength, stored.error) == (found.strength, found.error)
    for text in ("[]", '{"weights": [1.0], "strength": 1, "error": 0}', '{"weights": [NaN, 0, 0, 0, 0, 0]}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"decode-correction-0.json: not a latency correction .*; delete it"):
            Corrected.load(path, TABLE)
