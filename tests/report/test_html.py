"""The report stands alone, shows what it was given, and runs nothing that was smuggled in as text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from report_data import CORRELATION, EVALUATIONS, FRONT, LADDER, evaluation, findings

from llmnas.report import html
from llmnas.report.html import SCRIPTS, Table, render, write_report

HOSTILE = "<script>alert(1)</script>\"'</script><!--<img src=x onerror=alert(2)>{{ 7*7 }}"


class Page(HTMLParser):
    """Tags with attributes, scripts and styles as they stand, and the text outside of both."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self.styles, self._inside = [], "", [], "", ""
        self.feed(text)

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
        elif self._inside == "style":
            self.styles += data
        else:
            self.text += data

    @property
    def policy(self):
        return next(a["content"] for t, a in self.tags if t == "meta" and "http-equiv" in a)

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def page():
    return Page(render(findings(correlation=CORRELATION, ladder=LADDER)))


def test_loads_nothing_from_anywhere(page):
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        assert tag != "link" or attributes == {"rel": "icon", "href": "data:,"}
        assert not {"src", "srcset", "action", "style"} & attributes.keys(), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "default-src 'none'" in page.policy
    assert "http" not in page.policy
    assert "connect-src" not in page.policy


def test_policy_allows_this_script_and_style_only(page):
    assert "unsafe" not in page.policy
    for kind, text in (("script", page.scripts[1]), ("style", page.styles)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in page.policy
    assert "require-trusted-types-for 'script'" in page.policy
    assert [a for t, a in page.tags if t == "script"] == [{"type": "application/json", "id": "data"}, {}]


def test_only_a_live_page_may_ask_where_it_came_from():
    assert "connect-src 'self'" in Page(render(findings(), live=True)).policy


def test_shows_summary_tables_and_counts_without_any_script(page):
    for text in ("a run", "1,000", "Pareto front", "abc", "one seed", f"{len(FRONT)} on the Pareto front"):
        assert text in page.text
    assert page.data["evaluations"]["id"] == [e.arch.id for e in EVALUATIONS]
    assert [name for name, *_ in page.data["described"]["metrics"]] == ["val_loss", "params"]


def test_hostile_text_stays_text(page):
    bad = evaluation(0, **{HOSTILE: 1.0, "params": 2.0})
    text = render(
        findings(
            title=HOSTILE, summary={HOSTILE: HOSTILE}, evaluations=[bad], objectives={HOSTILE: "min", "params": "min"},
            records=[{"stage": "s", "step": 1, "loss" + HOSTILE: 1.0}],
            tables=[Table(HOSTILE, (HOSTILE,), [(HOSTILE,)], HOSTILE)],
        )
    )  # fmt: skip
    hostile = Page(text)
    assert "<script>alert" not in text
    assert [tag for tag, _ in hostile.tags].count("script") == [tag for tag, _ in page.tags].count("script")
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in hostile.tags)
    assert hostile.text.count(HOSTILE) == 8  # page title twice, summary twice, table four times
    assert not re.search(r"[<>&]", hostile.scripts[0])
    assert hostile.data["described"]["title"] == HOSTILE
    assert HOSTILE in hostile.data["evaluations"]["metrics"]


def test_an_asset_that_would_end_its_element_is_refused(monkeypatch):
    real = html.asset
    monkeypatch.setattr(html, "asset", lambda name: real(name) + ("// </SCRIPT " if name == SCRIPTS[0] else ""))
    with pytest.raises(ValueError, match="</script"):
        render(findings())


def test_empty_search_gives_a_page():
    text = Page(render(findings(evaluations=[], records=[], tables=[Table("none", ("a",), [])]))).text
    assert "0 on the Pareto front" in text
    assert "No training curve" in text
    assert "Empty." in text


def test_failed_evaluations_are_counted_listed_and_not_drawn():
    failed = evaluation(3, failure="val_loss is nan", params=5.0)
    page = Page(render(findings(evaluations=[failed])))
    assert re.search(r"0 evaluations, and 1 that failed", page.text)
    assert "val_loss is nan" in page.text
    assert page.data["evaluations"]["id"] == []


def test_written_whole_and_the_same_for_the_same_data(tmp_path):
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, findings())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_page_without_data_is_small():
    assert len(render(findings(evaluations=[]))) < 100_000


def test_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", ("a", "b"), [("1",)])
