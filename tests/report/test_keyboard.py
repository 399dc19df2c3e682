"""The page by keyboard alone: walking, reading, and never losing the place."""

import pytest
from report_data import MANY, MANY_FRONT, RECORDS


def test_keyboard_walks_the_front_pins_and_speaks(page):
    page.locator("#scatter .stage").focus()
    for e in MANY_FRONT[:3]:
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"#preview [data-id='{e.arch.id}']")
        assert e.arch.id in page.locator("#spoken").text_content()
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector("#compare .network >> nth=1")
    shown = page.locator("#compare .network").evaluate_all("all => all.map(one => one.dataset.id)")
    assert shown == [MANY_FRONT[2].arch.id, MANY_FRONT[-1].arch.id]
    page.keyboard.press("ArrowUp")  # a worse point: above the front's end
    assert page.locator("#preview .network").get_attribute("data-id") is not None
    page.keyboard.press("Escape")
    page.wait_for_selector("#compare", state="hidden")


def test_tab_reaches_the_chart_and_every_control_has_a_name(page):
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('stage')"):
            break
    assert page.evaluate("document.activeElement.getAttribute('aria-roledescription')") == "scatter plot"
    assert f"{len(MANY)} networks, {len(MANY_FRONT)} on the front" in page.evaluate("document.activeElement.ariaLabel")
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, select, input, svg[role=img], .stage')]
        .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.closest('label')?.textContent.trim())).length""")
    assert nameless == 0


def test_curves_can_be_read_by_keyboard_and_as_tables(page):
    chart = page.locator("#training svg[role=img]")
    chart.focus()
    page.keyboard.press("End")
    reading = page.locator("#training .reading").text_content()
    assert reading.startswith("optimizer step 20:")
    assert "val loss smallest 6.1" in reading
    page.locator("#training summary").click()
    page.wait_for_selector("#training tbody tr")
    assert page.locator("#training tbody tr").count() == len({r["step"] for r in RECORDS})
    page.locator("#front-table summary").click()
    page.wait_for_selector("#front-table tbody tr")
    assert page.locator("#front-table tbody tr").count() == len(MANY_FRONT)
    page.get_by_role("button", name=f"Pin {MANY_FRONT[0].arch.id}").click()
    page.wait_for_selector(f"#compare [data-id='{MANY_FRONT[0].arch.id}']")


def test_ladder_and_correlation_can_be_read_by_keyboard_and_as_tables(page):
    page.locator("#ladder svg[role=img]").focus()
    page.keyboard.press("Home")
    assert page.locator("#ladder .reading").text_content() == (
        "layers kept 2: best subset 5, last layers dropped 5.5, evenly spaced 5.25, trained alone 4.75"
    )
    words = page.locator("#kept svg").get_attribute("aria-label")
    assert words.startswith(
        "Depth 3 keeps layers 0, 1, 3: loss 4, +6.7 % over trained alone. Depth 2 keeps layers 0, 2:"
    )
    page.locator("#correlation svg[role=img]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    reading = page.locator("#correlation .reading")
    assert reading.text_content() == ("network1: 1,010 parameters, supernet 4.1, alone 3.65 (3.6 to 3.7 over 2 seeds)")
    page.locator("#correlation .truth circle").last.hover()
    page.wait_for_selector("#correlation .reading:text('network2: 990 parameters')")
    page.locator("#correlation summary").click()
    cells = page.locator("#correlation tbody tr").first.locator("td").all_text_contents()
    assert cells == ["network0", "1,000", "4", "3.55", "3.5", "3.6"]


FOCUSED = "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"


def until(page, condition, value):
    """Wait until a condition of the page holds; the page's own policy forbids the evaluation that would wait there."""
    for _ in range(200):
        if page.evaluate(condition, value):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {condition} with {value!r}")


def focused(page, name):
    """Wait until the control of this name has the focus."""
    until(page, f"name => ({FOCUSED}) === name", name)


def test_a_control_that_is_drawn_anew_keeps_the_focus(page):
    """Else the next key would begin at the top of the page again."""
    page.get_by_label("Horizontal", exact=True).focus()
    page.keyboard.press("ArrowDown")  # the next metric, and all controls anew
    page.wait_for_selector("#scatter .stage[aria-label*='latency']")
    focused(page, "Horizontal")
    page.get_by_label("Colour").select_option("val_loss")
    page.locator("#filters summary").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Filter by").focus()
    page.get_by_label("Filter by").select_option("params")
    page.wait_for_selector("#filters .filter-row")
    focused(page, "Filter by")
    page.get_by_label("parameters: at least").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("100000")
    page.keyboard.press("Tab")
    page.wait_for_selector("#scatter .stage:not([aria-label*=' 60 networks'])")
    focused(page, "parameters: at most")


def test_unpinning_goes_back_to_the_chart(page):
    page.locator("#scatter .stage").focus()
    for key in ("ArrowRight", "Enter", "End", "Enter"):
        page.keyboard.press(key)
    for left in (1, 0):
        page.locator("#compare button").first.focus()
        page.keyboard.press("Enter")
        until(page, "left => document.querySelectorAll('#compare .network').length === left", left)
        assert page.evaluate("document.activeElement.classList.contains('stage')")
