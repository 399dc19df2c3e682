"""A W&B server on loopback that records what it is told: enough of GraphQL and the file stream for runs and agents.

What it answers is what W&B's client of 0.31 asks for (the Go core for runs, the Python agent for sweeps). An operation
that is not known here is answered with an error that names it and kept in `strange`.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITY, PROJECT = "somebody", "llmnas"
KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Run:
    """What arrived of one run."""

    name: str
    sweep: str | None = None
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    exit_code: int | None = None
    files: dict = field(default_factory=dict)


class Server:
    """A context manager; `url` is for WANDB_BASE_URL. `trials` are handed to agents, one after the other."""

    def __init__(self, trials=(), sweep=None):
        self.runs: dict[str, Run] = {}
        self.sweep, self.trials = sweep, list(trials)
        self.strange: list[str] = []
        self.operations: dict[str, int] = defaultdict(int)
        self.lock = threading.Lock()
        self._handed = 0
        self._http = _Http(("127.0.0.1", 0), type("Bound", (_Handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def environment(self):
        """For a client: where the server is, and a key."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY}

    def graphql(self, query, variables):
        """The data that answers a query."""
        name = (re.search(r"(?:query|mutation)\s+(\w+)", query) or [None, "anonymous"])[1]
        self.operations[name] += 1
        answers = {
            "UpsertBucket": self.upsert_bucket, "Viewer": self.viewer, "RunResumeStatus": self.run_resume_status,
            "OrganizationCoreWeaveOrganizationID": self.organization, "CreateRunFiles": self.create_run_files,
            "RunStoppedStatus": self.run_stopped_status, "SweepWithRuns": self.sweep_with_runs,
            "CreateAgent": self.create_agent, "Heartbeat": self.heartbeat,
        }  # fmt: skip
        if name not in answers:
            self.strange.append(f"{name}: {' '.join(query.split())} {variables}")
            return None
        return answers[name](variables or {})

    def upsert_bucket(self, asked):
        run = self.runs.setdefault(asked["name"], Run(asked["name"]))
        run.sweep = asked.get("sweep") or run.sweep
        run.config |= {k: v["value"] for k, v in json.loads(asked.get("config") or "{}").items()}
        run.summary |= json.loads(asked.get("summaryMetrics") or "{}")
        entity = {"id": "e", "name": ENTITY}
        bucket = {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.name,
            "description": "",
            "sweepName": run.sweep,
            "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
            "historyLineCount": 0,
            "project": {"id": "p", "name": asked.get("project") or PROJECT, "entity": entity},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def viewer(self, asked):
        viewer = {"id": "v", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}

    def run_resume_status(self, asked):
        return {"model": {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY}, "bucket": None}}

    def organization(self, asked):
        return {"entity": None}

    def create_run_files(self, asked):
        files = [{"name": n, "uploadUrl": f"{self.url}/stored/{asked['run']}/{n}"} for n in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def run_stopped_status(self, asked):
        return {"project": {"run": {"stopped": False}}}

    def sweep_with_runs(self, asked):
        about = dict.fromkeys(
            ("description", "createdAt", "heartbeatAt", "updatedAt", "earlyStopJobRunning", "bestLoss")
        )
        about |= {"id": "s", "name": asked["sweep"], "method": self.sweep["method"], "state": "RUNNING"}
        about |= {"config": json.dumps(self.sweep), "controller": None, "scheduler": None, "runs": {"edges": []}}
        return {"project": {"sweep": about}}

    def create_agent(self, asked):
        return {"createAgent": {"agent": {"id": "agent"}}}

    def heartbeat(self, asked):
        """A trial for an agent that runs none; `exit` when all are done."""
        running = [name for name, state in json.loads(asked["runState"]).items() if state]
        commands = []
        if not running and self._handed < len(self.trials):
            values = self.trials[self._handed]
            args = {name: {"value": value} for name, value in values.items()}
            commands = [{"type": "run", "run_id": f"trial{self._handed}", "program": None, "args": args}]
            self._handed += 1
        elif not running:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}

    def stream(self, name, told):
        """The lines of a run's file stream."""
        run = self.runs.setdefault(name, Run(name))
        for file, part in told.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"] if line.startswith("{")]
            if file == "wandb-history.jsonl":
                run.history[part["offset"] :] = lines
            elif file == "wandb-summary.json" and lines:
                run.summary = lines[-1]
        if told.get("complete"):
            run.exit_code = told["exitcode"]


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that is gone is no error of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            raise


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Server

    def log_message(self, *_):
        pass

    def _body(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body, place = self._body(), self.path.split("/")
        with self.owner.lock:
            if self.path == "/graphql":
                asked = json.loads(body)
                data = self.owner.graphql(asked["query"], asked.get("variables"))
                self._send({"data": data} if data else {"data": None, "errors": [{"message": "not known here"}]})
            else:
                if place[-1] == "file_stream":
                    self.owner.stream(place[-2], json.loads(body))
                self._send({})

    def do_PUT(self):
        _, _, run, name = self.path.split("/", 3)
        body = self._body()
        with self.owner.lock:
            self.owner.runs[run].files[name] = body
        self._send({})

    def do_GET(self):
        self._send({})
