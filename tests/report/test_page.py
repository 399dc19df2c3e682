"""The page in a real browser: hover, click, compare, filter, keyboard, many points, hostile names."""

import math

import numpy as np
import pytest
from report_data import CORRELATION, LADDER, MANY, MANY_FRONT, TWO, evaluation, findings, many
from test_html import HOSTILE

from llmnas.pareto import Evaluation, front
from llmnas.report.findings import described, packed
from llmnas.report.html import Table, _render, write_report


def place(page, wanted):
    """Pixels of a point, worked out from the ticks that any reader sees: two known points fix each axis."""
    stage = page.locator("#scatter .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    params = [e.metrics["params"] for e in MANY]
    loss = [e.metrics["val_loss"] for e in MANY]
    left, right, top, bottom = 74, box["width"] - 14, 12, 460 - 50

    def at(value, values, low, high):
        room = (max(values) - min(values)) * 0.04
        share = (value - min(values) + room) / (max(values) - min(values) + 2 * room)
        return low + share * (high - low)

    x = at(wanted.metrics["params"], params, left, right)
    y = at(wanted.metrics["val_loss"], loss, bottom, top)
    return box["x"] + x, box["y"] + y


def says(page, text):
    """Wait until the chart's label holds this text."""
    page.wait_for_selector(f"#scatter .stage[aria-label*='{text}']")


def click(page, e):
    page.mouse.move(*place(page, e))
    page.mouse.click(*place(page, e))


def test_hover_shows_the_architecture_layer_by_layer(page):
    for e in (MANY[7], MANY_FRONT[1]):
        page.mouse.move(*place(page, e))
        page.wait_for_selector(f"#preview [data-id='{e.arch.id}']")
        assert page.locator("#scatter .tip b").text_content() == e.arch.id
        rows = page.locator("#preview .diagram [data-layer]")
        assert rows.count() == len(e.arch.layers)
        for i, spec in enumerate(e.arch.layers):
            row = rows.nth(i)
            assert (row.locator(".skip-line").count() == 1) == (spec is None)
            attends = spec is not None and spec.mixer != "none"
            assert row.locator(".head").count() == (spec.q_heads if attends else 0)
            assert row.locator(".kv").count() == (spec.kv_heads if attends else 0)
            words = row.locator(".chip + rect ~ text, .chip ~ text").all_text_contents()
            if spec is not None:
                assert spec.weights in words
                assert spec.mixer in words
                assert str(spec.ffn_size) in row.locator("text").all_text_contents()
                top_k = spec.top_k if spec.experts > 1 else 0
                assert row.locator("circle.extra").count() == spec.experts + top_k


def test_click_pins_and_a_second_click_compares(page):
    a, b = MANY_FRONT[0], MANY_FRONT[-1]
    click(page, a)
    page.wait_for_selector(f"#compare [data-id='{a.arch.id}']")
    assert "Click a second network" in page.locator("#compare").text_content()
    click(page, b)
    page.wait_for_selector(f"#compare [data-id='{b.arch.id}']")
    cells = page.locator("#compare table tr", has_text="parameters").first.locator("td").all_text_contents()
    old, new = a.metrics["params"], b.metrics["params"]
    assert cells[1:3] == [f"{int(old):,}", f"{int(new):,}"]
    assert cells[3] == f"+{int(new - old):,}"
    assert float(cells[4].strip("+ %").replace(",", "")) == pytest.approx(100 * (new - old) / old, abs=0.01)
    different = sum(x != y for x, y in zip(a.arch.layers, b.arch.layers, strict=True))
    assert page.locator("#compare .network").first.locator("rect.differs").count() == different
    page.locator("#compare .network").first.get_by_role("button", name="Unpin").click()
    page.wait_for_selector(f"#compare [data-id='{a.arch.id}']", state="detached")
    assert page.locator("#compare .network").count() == 1


def test_filter_by_range_and_the_front_of_what_is_left(page):
    middle = sorted(e.metrics["params"] for e in MANY)[30]
    page.locator("#filters summary").click()
    page.get_by_label("Filter by").select_option("params")
    page.get_by_label("parameters: at least").fill(str(middle))
    page.get_by_label("parameters: at least").press("Tab")
    left = [e for e in MANY if e.metrics["params"] >= middle]
    expected = f"{len(left)} networks, {len(front(left, TWO))} on the front"
    says(page, expected)
    assert f"{len(left)} of {len(MANY)} shown" in page.locator("#filter-count").text_content()
    page.get_by_role("button", name="Clear all").click()
    says(page, " 60 networks")


def test_brushing_an_axis_of_the_space_filters_everything(page):
    stage = page.locator("#parallel .stage")
    stage.scroll_into_view_if_needed()
    page.wait_for_selector("#parallel .stage[data-drawn='60']")
    assert stage.get_attribute("aria-label").startswith("Parallel coordinates of 60 networks over hidden size, layers")
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 40)  # the first axis: hidden size; its upper third holds the widest
    page.mouse.down()
    page.mouse.move(box["x"] + 50, box["y"] + 130, steps=3)
    page.mouse.up()
    widest = [e for e in MANY if e.arch.hidden_size == 96]
    page.wait_for_selector(f"#parallel .stage[data-drawn='{len(widest)}']")
    assert f"{len(widest)} networks" in page.locator("#scatter .stage").get_attribute("aria-label")
    page.mouse.click(box["x"] + 50, box["y"] + 200)
    page.wait_for_selector("#parallel .stage[data-drawn='60']")


@pytest.mark.parametrize(("x", "y", "log"), [("latency_ms", "val_loss", True), ("#", "val_loss", False)])
def test_front_over_any_two_axes(page, x, y, log):
    page.get_by_label("Horizontal", exact=True).select_option(x)
    page.get_by_label("Vertical", exact=True).select_option(y)
    if log:
        page.get_by_label("Horizontal: logarithmic").check()
    values = [(e.metrics.get(x, e.index), e.metrics[y]) for e in MANY]
    best = sum(not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in values) for p in values)
    text = f"60 networks, {best} on the front"
    says(page, text)


def test_drag_zooms_and_a_button_resets(page):
    e = MANY_FRONT[1]
    x, y = place(page, e)
    page.mouse.move(x - 30, y - 30)
    page.mouse.down()
    page.mouse.move(x + 30, y + 30, steps=4)
    page.mouse.up()
    page.wait_for_selector("#scatter .stage:not([aria-label*=' 60 networks'])")
    assert page.locator("#compare").is_hidden()  # a drag pins nothing
    page.get_by_role("button", name="Zoom to the front").click()
    ends = [[e.metrics[name] for e in MANY_FRONT] for name in ("params", "val_loss")]
    low, high = [min(v) - 0.12 * (max(v) - min(v)) for v in ends], [max(v) + 0.12 * (max(v) - min(v)) for v in ends]
    inside = [all(a <= e.metrics[n] <= b for n, a, b in zip(TWO, low[::-1], high[::-1], strict=True)) for e in MANY]
    says(page, f" {sum(inside)} networks, {len(MANY_FRONT)} on the front")
    page.get_by_role("button", name="Reset zoom").click()
    says(page, " 60 networks")


def test_correlation_and_ladder_are_drawn_where_they_exist(page, visit, tmp_path):
    assert page.locator("#correlation circle").count() == 3
    assert "supernet 0.33 from -1 to 1" in page.locator("#agreement svg").get_attribute("aria-label")
    assert "all values alike: parameters only" in page.locator("#agreement").text_content()
    for rung in LADDER:
        cells = page.locator(f"#kept [data-depth='{rung['depth']}'] rect")
        kinds = cells.evaluate_all("all => all.map(one => one.getAttribute('class'))")
        assert kinds == ["there" if layer in rung["kept"] else "gone" for layer in range(4)]
    legend = page.locator("#ladder .legend span").all_text_contents()
    assert legend == ["best subset", "last layers dropped", "evenly spaced", "trained alone"]
    ticks = page.locator("#ladder .axes text[text-anchor=middle]:not(.title)").all_text_contents()
    assert ticks == ["2", "3"], "no depth lies between"
    write_report(tmp_path / "r.html", findings())
    bare = visit((tmp_path / "r.html").as_uri())
    assert bare.locator("#correlation-section").is_hidden()
    assert bare.locator("#ladder-section").is_hidden()


def test_a_ladder_without_training_alone_and_a_correlation_without_losses(visit, tmp_path):
    bare = [{**rung, "alone": []} for rung in LADDER]
    lost = {**CORRELATION, "supernet_loss": [math.nan] * 3}
    write_report(tmp_path / "r.html", findings(ladder=bare, correlation=lost))
    page = visit((tmp_path / "r.html").as_uri())
    assert page.locator("#ladder .legend span").count() == 3
    assert "alone" not in page.locator("#kept svg").get_attribute("aria-label")
    assert page.locator("#correlation").text_content() == "No network has both losses."


def test_a_dimension_that_nobody_has_heard_of_is_drawn(visit, tmp_path):
    found, columns = findings(evaluations=MANY), packed(MANY)
    for k, spec in enumerate(columns["specs"]):
        spec["conv"] = {"kernel": 3 + k % 3, "gate": ("silu", "gelu")[k % 2]}
    (tmp_path / "r.html").write_text(_render(described(found), columns, live=False), encoding="utf-8")
    page = visit((tmp_path / "r.html").as_uri())
    headings = page.locator("#preview .heading").all_text_contents()
    assert {"conv kernel", "conv gate"} <= set(headings)
    assert any(word in ("silu", "gelu") for word in page.locator("#preview text.size").all_text_contents())
    options = page.get_by_label("Horizontal", exact=True).locator("option").all_text_contents()
    assert {"mean conv kernel", "share of conv gate = silu"} <= set(options)


def test_hostile_names_are_shown_as_text(visit, tmp_path):
    bad = [evaluation(i, **{HOSTILE: 1.0 + i, "params": 9.0 - i}) for i in range(3)]
    write_report(tmp_path / "r.html", findings(
        title=HOSTILE, summary={HOSTILE: HOSTILE}, evaluations=[*bad, evaluation(3, failure=HOSTILE)],
        objectives={HOSTILE: "min", "params": "min"},
        records=[{"stage": HOSTILE, "step": step, "loss" + HOSTILE: 1.0} for step in (1, 2)],
        tables=[Table(HOSTILE, (HOSTILE,), [(HOSTILE,)], HOSTILE)], ladder=LADDER,
        correlation={**CORRELATION, "id": [HOSTILE] * 3, "agreement": {HOSTILE: CORRELATION["agreement"]["supernet"]}},
    ))  # fmt: skip
    page = visit((tmp_path / "r.html").as_uri())
    assert page.locator("h1").text_content() == HOSTILE
    page.locator("#scatter .stage").focus()
    for key in ("ArrowRight", "Enter", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("#compare table")
    page.locator("#filters summary").click()
    page.get_by_label("Filter by").select_option(HOSTILE)
    assert HOSTILE in page.locator("#filters .name").text_content()
    assert HOSTILE in page.locator("#compare").text_content()
    page.locator("#correlation svg[role=img]").focus()
    page.keyboard.press("Home")
    assert page.locator("#correlation .reading").text_content().startswith(HOSTILE)
    assert HOSTILE.replace("_", " ") in page.locator("#agreement svg text").all_text_contents()
    assert page.locator("img, script:not([id]) ~ script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(visit, address, scheme):
    page = visit(address, color_scheme=scheme)
    background = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert (page.evaluate(background) < 128) == (scheme == "dark")
    page.locator("#theme").click()
    assert (page.evaluate(background) < 128) == (scheme == "light")


def test_twenty_thousand_points(visit, tmp_path, record_property):
    few, small = many(200), []
    rng = np.random.default_rng(1)
    for i in range(20_000):
        e = few[i % len(few)]
        noise = {name: value * float(rng.uniform(1, 1.5)) for name, value in e.metrics.items()}
        small.append(Evaluation(e.arch, noise, None, i))
    write_report(tmp_path / "r.html", findings(evaluations=small))
    page = visit((tmp_path / "r.html").as_uri())
    page.wait_for_selector("#parallel .stage[data-drawn='20000']")
    assert "20000 networks" in page.locator("#scatter .stage").get_attribute("aria-label")
    page.get_by_label("Horizontal", exact=True).select_option("latency_ms")
    says(page, "latency")
    page.locator("#scatter .stage").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#preview .network")
    for name in ("scatter", "preview"):
        took = page.evaluate("name => performance.getEntriesByName(name)[0].duration", name)
        record_property(name, took)
        print(f"20,000 points: {took:.0f} ms for {name}")
