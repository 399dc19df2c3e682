"""Every config that is shipped can be run: it parses, and its budget leaves something to search."""

from pathlib import Path

import pytest

from llmnas.config import load_config
from llmnas.cost import sample
from llmnas.rng import generator

FOLDER = Path(__file__).parents[2] / "search_configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_the_quickstart_is_there():
    assert FOLDER / "quickstart.yaml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_parses_and_its_budget_can_be_met(path):
    config = load_config(path, [])
    arch = sample(config.space, generator(config.seed, "contract"), config.budget)
    assert config.space.contains(arch)
    assert config.name == path.stem
