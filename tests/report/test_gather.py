"""What the pipeline gathers from a run folder, once and again."""

import json

import pytest
from report_data import CORRELATION, EVALUATIONS, LADDER, TWO, left_by_stages
from test_html import Page
from test_serve import CONFIG, full

from llmnas.archive import Archive
from llmnas.config import load_config
from llmnas.errors import UserError
from llmnas.pipeline.context import Context
from llmnas.pipeline.report import Gatherer, follow, report
from llmnas.runs import RunFolder
from llmnas.tracking import Tracker


@pytest.fixture
def context(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "c.yaml", [])
    (tmp_path / "run").mkdir()
    return Context(config, RunFolder(tmp_path / "run"), Tracker(tmp_path / "run", "off", "p", {}))


def store(context, chosen, search=1):
    archive = Archive(context.run.evaluations, TWO, {"params": 1e9}, {"search": search})
    archive.append([e.arch for e in chosen], [full(e) for e in chosen])
    archive.close()


def test_before_the_search_there_is_the_space_and_nothing_else(context):
    found = Gatherer(context).findings()
    assert found.evaluations == ()
    assert found.objectives == TWO
    assert found.summary["architectures in the space"] == f"{context.config.space.size():,}"
    with pytest.raises(UserError, match="llmnas search"):
        report(context)


def test_looks_again_only_where_something_changed(context):
    gatherer = Gatherer(context)
    store(context, EVALUATIONS[:4])
    first = gatherer.findings()
    assert [e.arch for e in first.evaluations] == [e.arch for e in EVALUATIONS[:4]]
    assert first.constraints == {"params": [None, 1e9]}
    assert gatherer.findings() is first
    store(context, EVALUATIONS[4:])
    second = gatherer.findings()
    assert [e.arch for e in second.evaluations] == [e.arch for e in EVALUATIONS]
    assert second.evaluations[0] is first.evaluations[0]  # what was read is not read again
    context.run.metrics.write_text(json.dumps({"stage": "supernet", "step": 1, "train_loss": 1.0}) + "\n")
    assert gatherer.findings().records == [{"stage": "supernet", "step": 1, "train_loss": 1.0}]


@pytest.mark.parametrize("chosen", [EVALUATIONS[5:8], EVALUATIONS[:0], EVALUATIONS[::-1]])
def test_another_search_takes_the_place_of_the_first(context, chosen):
    gatherer = Gatherer(context)
    store(context, EVALUATIONS)
    gatherer.findings()
    context.run.evaluations.unlink()
    if chosen:
        store(context, chosen, search=2)
    assert [e.arch for e in gatherer.findings().evaluations] == [e.arch for e in chosen]


def test_report_holds_what_the_stages_left_and_the_pictures(context):
    store(context, EVALUATIONS)
    left_by_stages(context.run)
    path, tables = report(context)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.data["described"]["correlation"]["id"] == [e.arch.id for e in EVALUATIONS[:3]]
    assert page.data["described"]["correlation"]["supernet_loss"] == CORRELATION["supernet_loss"]
    assert page.data["described"]["ladder"] == LADDER
    titles = ["Pareto front", "Does the supernet rank as stand-alone training does?", "Depth ladder"]
    assert [table.title for table in tables] == titles
    assert (context.run.path / "front.png").stat().st_size > 5000
    assert (context.run.path / "curves.png").stat().st_size > 5000
    assert "report" in json.loads(context.run.manifest.read_text())["stages"]


def test_following_needs_a_run_folder(context):
    context.run.path.rmdir()
    with pytest.raises(UserError, match="no such run folder"):
        follow(context, 0)
