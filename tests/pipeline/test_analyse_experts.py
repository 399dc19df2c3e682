"""`llmnas analyse experts` on a run of seconds with real text: the result, the archive, and what is refused."""

import json

import pytest
import tiny

from llmnas.archive import Archive
from llmnas.pipeline.experts import experts_tables
from llmnas.space import Architecture, SearchSpace

SPACE = {
    **tiny.CONFIG["space"],
    "experts": {"choices": [1, 2, 4], "per_layer": True},
    "top_k": {"choices": [1, 2], "per_layer": True},
}


@pytest.fixture
def searched(tmp_path, llmnas):
    """A supernet of experts, trained and searched."""
    config = tiny.write_config(
        tmp_path, tiny.write_corpus(tmp_path / "text"), space=SPACE, budget={"max_params": 40_000},
        train={**tiny.CONFIG["train"], "sampler": {"largest": "budget"}},
        search={**tiny.CONFIG["search"], "objectives": {"val_loss": "min", "params": "min", "active_params": "min"}},
    )  # fmt: skip
    for verb in ("prepare", "train", "search"):
        done = llmnas(verb, config, "--run-dir", tmp_path / "run")
        assert done.code == 0, done.err
    return config, tmp_path / "run"


def test_proposals_are_evaluated_and_added_and_the_search_goes_on(searched, llmnas):
    config, run = searched
    done = llmnas("analyse", "experts", run)
    assert done.code == 0, done.err
    assert "What the routers of the largest network learnt" in done.out
    result = json.loads((run / "experts" / "result.json").read_text())
    assert list(result["layers"]) == ["0", "1"]
    assert result["trained whole"]  # the largest is within the budget
    said = [experts_tables({**result, "trained whole": whole})[0].note for whole in (True, False)]
    assert ["in parts only" in note for note in said] == [False, True]
    for layer in result["layers"].values():
        assert sum(layer["load"]) == pytest.approx(1)
        assert sum(layer["contribution"]) == pytest.approx(1, rel=1e-4)
        assert len(layer["cosine"]) == len(layer["cka"]) == 4
    assert result["halved"].keys() == {"whole", "as they stand", "sorted by importance"}
    space = SearchSpace.from_dict(SPACE)
    archive = Archive.load(run / "evaluations.sqlite")
    before = len(archive)
    assert result["proposals"]
    for proposal in result["proposals"]:
        arch = Architecture.from_dict(proposal["architecture"])
        assert space.contains(arch)
        assert proposal["id"] in done.out
        assert archive.get(arch).proposed == any(p["new"] for p in result["proposals"] if p["id"] == proposal["id"])
        assert proposal["front"] == (arch in [e.arch for e in archive.front()])
    assert {e["id"] for e in json.loads((run / "pareto.json").read_text())} == {e.arch.id for e in archive.front()}
    proposed = sum(e.proposed for e in archive.evaluations)
    archive.close()
    assert before == 12 + proposed
    again = llmnas("analyse", "experts", config, "--run-dir", run)
    assert again.code == 2
    assert "add --resume" in again.complaint
    assert llmnas("search", config, "--run-dir", run, "--resume", "--set", "search.evaluations=16").code == 0
    archive = Archive.load(run / "evaluations.sqlite")
    assert len(archive) == 16 + proposed
    archive.close()


def test_a_space_without_experts_and_two_folders_are_refused(tiny_run, llmnas, tmp_path):
    done = llmnas("analyse", "experts", tiny_run.config, "--run-dir", tiny_run.folder)
    assert done.code == 2
    assert (
        done.complaint
        == "llmnas: space.experts is [1]: there is no router to analyse; give layers experts to choose from"
    )
    done = llmnas("analyse", "experts", tiny_run.folder, "--run-dir", tmp_path)
    assert done.code == 2
    assert "is a run folder already" in done.complaint
    done = llmnas("analyse", "heads", tiny_run.config)
    assert done.code == 2
    assert "experts" in done.complaint
