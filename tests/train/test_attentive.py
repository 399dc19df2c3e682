"""Attentive sampling: the pick, the regression it rests on, and that a resumed run goes on as if nothing had been."""

import numpy as np
import pytest
import torch
from test_sampling import BUDGET, SPACE, params, sampler
from train_script import SETTINGS, run
from train_script import SPACE as TRAINED

from llmnas.errors import UserError
from llmnas.rng import generator
from llmnas.space.encode import features
from llmnas.train.attentive import Ridge
from llmnas.train.sampling import SupernetSampler
from llmnas.train.settings import SamplerSettings, TrainSettings

ATTENTIVE = {"kind": "uniform", "random": 3, "distribution": "uniform"}


class BySize:
    """A predictor that is asked: more parameters, less loss."""

    ready = True

    def predict(self, archs):
        return np.array([-params(arch) for arch in archs])

    def observe(self, archs, losses):
        """It learns nothing."""

    def state(self):
        return {}

    def restore(self, state):
        assert state == {}


@pytest.mark.parametrize("pick", ["best", "worst"])
def test_the_extreme_of_the_pool_is_trained(pick):
    options = {"pick": pick, "pool": 5}
    drawn = SupernetSampler(SPACE, BUDGET, SamplerSettings(**ATTENTIVE, attentive=options), 0, BySize())
    for step in range(10):
        for i, arch in enumerate(drawn.networks(step)):
            rng = generator(0, "architecture", step, i)
            pool = drawn._bands[rng.integers(len(drawn._bands))].sample_many(rng, 5)
            wanted = max(pool, key=params) if pick == "best" else min(pool, key=params)
            assert params(arch) == params(wanted)
            assert BUDGET.admits(SPACE.base, arch)


def test_ridge_by_weighted_least_squares():
    """The minimum of its objective, by numpy's least squares on the weighted rows and the penalty's."""
    rng = np.random.default_rng(0)
    archs = [SPACE.sample(rng) for _ in range(80)]
    losses = rng.normal(4, 1, 80)
    ridge = Ridge(SPACE, forget=0.95, start=80, penalty=0.3)
    for i in range(0, 80, 4):
        assert not ridge.ready
        ridge.observe(archs[i : i + 4], losses[i : i + 4])
    assert ridge.ready
    rows = np.array([[*features(SPACE, arch), 1.0] for arch in archs])
    weight = np.sqrt(0.95 ** np.arange(79, -1, -1))
    system = np.vstack([rows * weight[:, None], np.sqrt(0.3) * np.eye(rows.shape[1])])
    solution = np.linalg.lstsq(system, np.append(losses * weight, np.zeros(rows.shape[1])), rcond=None)[0]
    assert ridge.predict(archs) == pytest.approx(rows @ solution, rel=1e-8)


def test_ridge_learns_what_falls_with_width_while_all_losses_fall():
    rng = np.random.default_rng(1)
    ridge = Ridge(SPACE)
    for step in range(300):
        arch = SPACE.sample(rng)
        ridge.observe([arch], np.array([6 - step / 100 - arch.hidden_size / 48 + 0.05 * rng.normal()]))
    ridge.observe([arch], np.array([np.nan]))
    wide, narrow = ([a for a in (SPACE.sample(rng) for _ in range(60)) if a.hidden_size == h] for h in (48, 32))
    assert ridge.predict(wide).mean() < ridge.predict(narrow).mean() - 0.2


SETTINGS_OF_A_RUN = TrainSettings.model_validate(
    {
        **SETTINGS.model_dump(),
        "sampler": {**ATTENTIVE, "attentive": {"pick": "worst", "start": 6, "pool": 6}},
        "steps": 12,
    }
)


def test_a_resumed_run_draws_and_learns_the_same(tmp_path):
    losses, resumed = {}, {}
    whole = run(tmp_path / "whole", SETTINGS_OF_A_RUN, log=lambda step, m: losses.update({step: m["train_loss"]}))

    class StopError(Exception):
        pass

    def stop(step, metrics):
        if step == 8:
            raise StopError

    with pytest.raises(StopError):
        run(tmp_path / "cut", SETTINGS_OF_A_RUN, log=stop)
    again = run(tmp_path / "cut", SETTINGS_OF_A_RUN, log=lambda step, m: resumed.update({step: m["train_loss"]}))
    assert min(resumed) == 7
    assert resumed == {step: loss for step, loss in losses.items() if step >= 7}
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    # and the predictions did decide: what was drawn is not what would be drawn without them
    plain = SupernetSampler(TRAINED, None, SamplerSettings(**ATTENTIVE, attentive={"pick": "worst", "pool": 6}), 0)
    taught = SupernetSampler(TRAINED, None, SETTINGS_OF_A_RUN.sampler, 0)
    taught.predictor.observe([TRAINED.smallest(), TRAINED.largest()] * 10, np.array([5.0, 4.0] * 10))
    assert plain.networks(11) != taught.networks(11)


def test_a_checkpoint_without_its_state_is_refused():
    ridge = Ridge(SPACE)
    with pytest.raises(UserError, match="no state of the attentive sampler"):
        ridge.restore({})
    with pytest.raises(UserError, match="of this space"):
        ridge.restore(Ridge(TRAINED).state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attentive": {"pick": "best"}}, "needs distribution: uniform"),
        ({"kind": "fair", "attentive": {"pick": "best"}, "distribution": "uniform"}, "does nothing with kind: fair"),
        ({"kind": "fair", "anchor_every": 2}, "anchor_every does nothing with kind: fair"),
        ({"kind": "fair", "path_dropout": {"rate": 0.1}}, "path_dropout does nothing with kind: fair"),
        ({"kind": "uniform", "anchor_every": 0}, "anchor_every does nothing with kind: uniform"),
        ({"kind": "sandwich", "anchor_every": 2}, "anchor_every does nothing with kind: sandwich"),
        ({"random": 7}, "random does nothing with kind: single"),
        ({"path_dropout": {"rate": 1.0}}, "less than 1"),
        ({"attentive": {"pick": "middle"}, "distribution": "uniform"}, "'best' or 'worst'"),
        (
            {"kind": "progressive", "phases": [{"start": 0, "open": ["depth"]}], "path_dropout": {"rate": 0.1}},
            "neither",
        ),
    ],
)
def test_options_that_do_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**settings)


def test_a_predictor_nobody_asks_is_refused():
    with pytest.raises(ValueError, match="only by the attentive sampler"):
        SupernetSampler(SPACE, None, SamplerSettings(), 0, BySize())
    assert sampler().predictor is None
