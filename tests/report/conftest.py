"""One headless Chromium for all tests of the page, and pages that must stay quiet and at home."""

import shutil

import pytest
from report_data import ALL_SECTIONS, findings

from llmnas.report.html import write_report

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (chromium, chromium-browser or google-chrome on the path)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--disable-sync"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser):
    """Open an address; at the end no error was logged, no dialog shown, and nothing but that address was asked for."""
    opened, wrong = [], []

    def go(address, **options):
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.set_default_timeout(90_000)
        home = address.split("?")[0]
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(error.message))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda r: r.url.startswith((home, "data:")) or wrong.append(f"asked for {r.url}"))
        page.goto(address)
        opened.append(page)
        return page

    yield go
    for page in opened:
        page.close()
    assert wrong == []


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, findings(**ALL_SECTIONS))
    return path.as_uri()


@pytest.fixture
def page(visit, address):
    return visit(address)
