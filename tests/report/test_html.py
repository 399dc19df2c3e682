"""The report stands alone, shows what it was given, and runs nothing that was smuggled in as text."""

import re
from html.parser import HTMLParser

import pytest
from report_data import EVALUATIONS, FRONT, RECORDS, TWO, evaluation

from llmnas.report.html import Table, describe, write_report
from llmnas.space import Architecture, LayerSpec

HOSTILE = "<script>alert(1)</script>\"'</script><img src=x onerror=alert(2)>{{ 7*7 }}"


class Page(HTMLParser):
    """Tags with attributes, and the text outside of scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.scripts, self._inside = [], "", [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def write(path, **changes):
    given = {
        "title": "a run",
        "space_summary": {"architectures": "1,000"},
        "evaluations": EVALUATIONS,
        "front": FRONT,
        "objectives": TWO,
        "records": RECORDS,
        "tables": [Table("Pareto front", ("architecture", "loss"), [("abc", "5.0")], "one seed")],
    }
    write_report(path, **{**given, **changes})
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(write(tmp_path_factory.mktemp("report") / "report.html"))


def test_loads_nothing_from_anywhere(page):
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcset", "action"} & attributes.keys(), (tag, attributes)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_plotly_is_inside_once(page):
    large = [script for script in page.scripts if len(script) > 1_000_000]
    assert len(large) == 1
    assert sum("Plotly.newPlot(" in script and len(script) < 1_000_000 for script in page.scripts) == 2


def test_shows_summary_tables_counts_and_architectures(page):
    for text in ("a run", "1,000", "Pareto front", "abc", "one seed", f"{len(FRONT)} on the Pareto front"):
        assert text in page.text
    figures = "".join(script for script in page.scripts if len(script) < 1_000_000)
    for e in EVALUATIONS:
        assert describe(e.arch).splitlines()[0] in figures
    for name in ("train loss", "val loss smallest", "validation loss (nats\\u002ftoken)"):
        assert name in figures


def test_hostile_text_stays_text(tmp_path, page):
    bad = evaluation(0, **{HOSTILE: 1.0, "params": 2.0})
    html = write(
        tmp_path / "report.html",
        title=HOSTILE,
        space_summary={HOSTILE: HOSTILE},
        evaluations=[bad],
        front=[bad],
        objectives={HOSTILE: "min", "params": "min"},
        records=[{"stage": "s", "step": 1, "loss" + HOSTILE: 1.0}],
        tables=[Table(HOSTILE, (HOSTILE,), [(HOSTILE,)], HOSTILE)],
    )
    hostile = Page(html)
    assert "<script>alert" not in html
    assert [tag for tag, _ in hostile.tags].count("script") == [tag for tag, _ in page.tags].count("script")
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in hostile.tags)
    assert hostile.text.count(HOSTILE) == 8  # page title twice, summary twice, table four times
    figures = [script for script in hostile.scripts if len(script) < 1_000_000]
    assert not any(re.search(r"<\s*/?\s*(script|img)", figure) for figure in figures)
    # plotly reads tags in its texts, so there the text arrives escaped a second time
    assert not any(re.search(r"\\u003c(script|img)", figure) for figure in figures)
    assert any("\\u0026lt;script" in figure or "&lt;script" in figure for figure in figures)


def test_empty_search_gives_a_page(tmp_path):
    html = write(tmp_path / "report.html", evaluations=[], front=[], records=[], tables=[Table("none", ("a",), [])])
    text = Page(html).text
    assert "0 on the Pareto front" in text
    assert "No training curve" in text
    assert "Empty." in text


def test_failed_evaluations_are_counted_and_not_drawn(tmp_path):
    failed = evaluation(3, failure="val_loss is nan", params=5.0)
    page = Page(write(tmp_path / "report.html", evaluations=[failed], front=[]))
    assert "0 evaluations, and 1 that failed" in page.text
    assert not any(failed.arch.id in script for script in page.scripts)


def test_same_data_gives_the_same_page(tmp_path):
    assert write(tmp_path / "a.html") == write(tmp_path / "b.html")


def test_architecture_in_words_joins_equal_neighbours():
    spec, other = LayerSpec(2, 2, 8, 64), LayerSpec(1, 2, 8, 32)
    arch = Architecture(32, (spec, spec, None, other))
    assert describe(arch).splitlines() == [
        f"{arch.id}: hidden 32, 3 of 4 layers",
        "layer 0-1: 4 heads / 2 KV x 8, FFN 64",
        "layer 2: skipped",
        "layer 3: 2 heads / 1 KV x 8, FFN 32",
    ]


def test_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", ("a", "b"), [("1",)])
