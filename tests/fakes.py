"""Fake servers that behave as Oura and Petals were measured, and what all tests share."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

import oura_to_petals

DAY = date(2026, 6, 10)
AT = "2026-06-10T00:00:00Z"
TOKEN = "oura-personal-token"
KEY = "petals-key-of-a-test"

READINESS = "/v2/usercollection/daily_readiness"
DAILY_SLEEP = "/v2/usercollection/daily_sleep"
SLEEP = "/v2/usercollection/sleep"
READS = (READINESS, DAILY_SLEEP, SLEEP)
TOKENS = "/oauth/v2/ext/oauth-token"
LIST = "/api/memory/metrics/list"
SINGLE = "/api/memory/metrics/observations"
BULK = "/api/memory/metrics/observations/bulk"

VALUES = {"oura_readiness": 82, "oura_hrv": 77, "oura_sleep_minutes": 432}  # of the default metrics
SENTENCE = "Slept 7h12, readiness 82, HRV 54ms"
PUSHED = f"Pushed 3 observations for 2026-06-10. {SENTENCE}.\n"

SCRIPT = Path(oura_to_petals.__file__)
Fault = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response | None]

REFUSED = httpx.ConnectError("[Errno 111] Connection refused")
GONE = httpx.ConnectError("[Errno -3] Temporary failure in name resolution")
SLOW = httpx.ReadTimeout("The read timed out")
CERTIFICATE = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
PAGE = httpx.Response(200, html="<html><h1>Welcome</h1></html>")


def before(days: int, day: date = DAY) -> str:
    """The day that is so many days before `DAY`."""
    return str(day - timedelta(days=days))


def answer(status: int, **content: object) -> httpx.Response:
    return httpx.Response(status, json=content)


def later(status: int, seconds: object) -> httpx.Response:
    """A fault that says when to try again."""
    return httpx.Response(status, headers={"Retry-After": str(seconds)})


def well(_: httpx.Request) -> None:
    """A fault that is none: the server answers as usual."""


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    """Write a file with keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


# --- Documents, in the form of Oura API 2.0 ----------------------------------------------------


def readiness(day: object = DAY, score: Any = 82, hrv_balance: Any = 77, **more: Any) -> dict:
    """A `PublicDailyReadiness`."""
    contributors = {"hrv_balance": hrv_balance, "previous_night": None}
    scores = {"score": score, "contributors": contributors, "temperature_deviation": -0.1}
    return {"id": f"readiness-{day}", "day": str(day), **scores, **more}


def daily_sleep(day: object = DAY, score: Any = 85, **more: Any) -> dict:
    """A `PublicDailySleep`: it has a score of the total sleep, and no time."""
    contributors = {"deep_sleep": 97, "efficiency": 91, "total_sleep": 88}
    scores = {"score": score, "contributors": contributors}
    return {"id": f"daily-sleep-{day}", "day": str(day), **scores, **more}


def session(
    day: object = DAY, seconds: Any = 25_920, type: Any = "long_sleep", **more: Any
) -> dict:
    """A `PublicModifiedSleepModel`."""
    return {
        "id": f"sleep-{day}-{type}-{seconds}", "day": str(day), "type": type,
        "bedtime_start": f"{day}T00:00:00+02:00", "bedtime_end": f"{day}T07:00:00+02:00",
        "total_sleep_duration": seconds, "deep_sleep_duration": 5400,
        "light_sleep_duration": 14_400, "rem_sleep_duration": 6120, "efficiency": 91,
        "average_hrv": 54, "lowest_heart_rate": 48, "average_breath": 14.5,
        "hrv": {"interval": 300, "items": [50, 58], "timestamp": f"{day}T00:00:00+02:00"},
        **more,
    }  # fmt: skip


# --- Servers -----------------------------------------------------------------------------------

hanging_ends = threading.Event()  # set at the end of each test


def hang(*_: object) -> None:
    """Do not answer before the test has ended."""
    hanging_ends.wait(60)


def ctrl_c(*_: object) -> None:
    """Press Ctrl-C while the server does not answer."""
    if threading.current_thread() is not threading.main_thread():
        # Python sees a signal late that comes just before the run begins to wait.
        hanging_ends.wait(0.1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    hang()


class FakeServer:
    """A server that keeps its requests and fails on demand, else does what `answer` says."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.lock = threading.Lock()

    def fail(self, path: str, *faults: Fault, times: int = 1) -> None:
        """Answer the next requests to this path with these faults, in order."""
        self.faults[path] += [*faults] * times

    def asked(self, path: str = "") -> list[httpx.Request]:
        return [request for request in self.requests if request.url.path.endswith(path)]

    def sent(self, path: str) -> list[Any]:
        """The JSON bodies of the requests to a path."""
        return [json.loads(request.content) for request in self.asked(path)]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            self.requests.append(request)
            faults = self.faults[request.url.path]
            fault = faults.pop(0) if faults else None
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, httpx.Response):
            return fault
        with_fault = fault(request) if fault else None
        return with_fault or self.answer(request)


class Oura(FakeServer):
    """The three collections, and the addresses of the sign-in."""

    WINDOWS = {  # the meanings of `start_date` and `end_date`, as users measured them
        "closed": lambda start, day, end: start <= day <= end,
        "start exclusive": lambda start, day, end: start < day <= end,
        "end exclusive": lambda start, day, end: start <= day < end,
    }

    def __init__(self) -> None:
        super().__init__()
        self.fill(1)
        self.window, self.page = "closed", 1000  # documents
        self.tokens, self.refresh_token, self.code = {TOKEN}, "refresh-1", "the-code"
        self.scope: str | None = "extapi:daily"
        self.challenge = ""  # checked if a browser asked for the authorization

    def fill(self, days: int, last: date = DAY) -> None:
        """Have a night for each of these days, the newest first."""
        every = [last - timedelta(days=n) for n in range(days)]
        self.collections: dict[str, list[dict] | None] = {
            "daily_readiness": [readiness(day) for day in every],
            "daily_sleep": [daily_sleep(day) for day in every],
            "sleep": [session(day) for day in every],
        }

    def empty(self) -> None:
        self.collections = {"daily_readiness": [], "daily_sleep": [], "sleep": []}

    @property
    def forms(self) -> list[dict[str, str]]:
        """The forms that the token address was sent."""
        posts = [request for request in self.requests if request.method == "POST"]
        return [dict(httpx.QueryParams(request.content.decode())) for request in posts]

    def authorize(self, address: str) -> str:
        """Agree in the browser; return the address to which it is redirected."""
        params = httpx.URL(address).params
        assert (params["response_type"], params["code_challenge_method"]) == ("code", "S256")
        self.challenge = params["code_challenge"]
        answers = {"code": self.code, "scope": self.scope or "", "state": params["state"]}
        return str(httpx.URL(params["redirect_uri"], params=answers))

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return self.give_tokens(self.forms[-1])
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return answer(401, detail="Unauthorized")
        documents = self.collections.get(request.url.path.rpartition("/")[2])
        if documents is None:
            return answer(404, detail="Not Found")
        asked = request.url.params
        inside = self.WINDOWS[self.window]
        span, found = (asked["start_date"], asked["end_date"]), []
        for one in documents:
            if len(day := str(one.get("day"))) != 10 or inside(span[0], day, span[1]):
                found.append(one)
        if "fields" in asked:
            names = {"id", *asked["fields"].split(",")}
            found = [{key: one[key] for key in one if key in names} for one in found]
        start = int(asked.get("next_token", "page-0").removeprefix("page-"))
        end = start + self.page
        more = f"page-{end}" if end < len(found) else None
        body = json.dumps({"data": found[start:end], "next_token": more})
        return httpx.Response(200, text=body, headers={"Content-Type": "application/json"})

    def give_tokens(self, form: dict[str, str]) -> httpx.Response:
        with self.lock:
            good = form.get("client_id") == "the-client" and form.get("client_secret") == "s3cret"
            if form["grant_type"] == "authorization_code":
                digest = hashlib.sha256(form["code_verifier"].encode()).digest()
                challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
                good = good and form["code"] == self.code and self.challenge in ("", challenge)
                self.code = "spent"
            else:
                good = good and form["refresh_token"] == self.refresh_token
            if not good:
                return answer(400, error="invalid_grant")
            number = int(self.refresh_token.removeprefix("refresh-")) + 1
            self.refresh_token = f"refresh-{number}"
            self.tokens = {f"access-{number}"}
            given = {"access_token": f"access-{number}", "refresh_token": self.refresh_token}
            scope = {} if self.scope is None else {"scope": self.scope}
            return answer(200, **given, expires_in=86_400, token_type="bearer", **scope)


class PetalsServer(FakeServer):
    """What both kinds of Petals have in common: the key, and `rows`."""

    @property
    def stored(self) -> dict[str, dict[str, Any]]:
        """The values by day and slug."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for row in self.rows:
            slug = row["metric"]["slug"] if "metric" in row else row["metricSlug"]
            found[row["occurredAt"][:10]][slug] = row["value"]
        return dict(found)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers.get("x-api-key") != KEY:
            return answer(401, message="Invalid API key")
        path = request.url.path.removeprefix("/api/memory/metrics/")
        return self.answer_key(path, json.loads(request.content))


class Petals(PetalsServer):
    """Petals as it was measured.

    `lists_all` is how version 2.1.0 lists metrics; 2.5.0 lists only those with an observation.
    """

    KNOWN = tuple(VALUES)
    wrong_form = 500  # what a body in another form is answered; 400 by version 2.5.0

    def __init__(self, known: tuple[str, ...] = KNOWN, lists_all: bool = True) -> None:
        super().__init__()
        self.lists_all = lists_all
        self.metrics, self.ranges = {}, {}  # by slug
        self.by_source: dict[str, list[dict]] = {}
        self.singles: list[dict] = []  # stored by the single endpoint, for good
        self.similar: dict[str, str] = {}  # slugs whose values are filed under another metric
        self.during_write: Callable[[], object] = lambda: None  # where two requests can overlap
        for slug in known:
            self.define(slug, label=slug)

    def define(self, slug: str, label: str, unit: str = "score", **limits: float) -> None:
        self.metrics[slug] = {"slug": slug, "label": label, "unit": unit}
        if limits:
            self.ranges[slug] = (limits["low"], limits["high"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [*self.singles, *(row for rows in self.by_source.values() for row in rows)]

    @property
    def notes(self) -> list[str]:
        return [row["note"] for row in self.rows if "note" in row]

    def stored_once(self, **values: float) -> bool:
        """Whether the default values, or these instead, are all there is, each one once."""
        rows = Counter((row["metricSlug"], row["value"], row["occurredAt"]) for row in self.rows)
        return rows == Counter({(s, v, AT): 1 for s, v in (VALUES | values).items()})

    @property
    def pushed(self) -> list[str]:
        """The days that bulk was sent in today's form, in order."""
        bodies = [body for body in self.sent(BULK) if isinstance(body, dict)]
        return [body["sourceExternalId"].removeprefix("oura_") for body in bodies]

    def answer_key(self, path: str, body: Any) -> httpx.Response:
        if path == "list":
            return answer(200, metrics=self.listed)
        return self.single(body) if path == "observations" else self.bulk(body)

    @property
    def listed(self) -> list[dict[str, Any]]:
        entries = []
        for slug, metric in self.metrics.items():
            days = [row["occurredAt"] for row in self.rows if row["metricSlug"] == slug]
            stats = {"observationCount": len(days), "latestAt": max(days, default=None)}
            if days or self.lists_all:
                entries.append({**metric, "aggregationHint": "avg", "stats": stats})
        return entries

    def range_error(self, slug: str, value: float) -> str:
        low, high = self.ranges.get(slug, (value, value))
        text = f"is outside the valid range for {slug}: min {low}, max {high}"
        return "" if low <= value <= high else f"Metric value {value} {text}"

    def bulk(self, body: Any) -> httpx.Response:
        """Delete what is stored under the id, then store the rows."""
        if not isinstance(body, dict) or not body.get("observations"):
            return answer(self.wrong_form, message="expected object")
        rows, errors = [], []
        for index, row in enumerate(body["observations"]):
            if set(row) - {"metricSlug", "value", "occurredAt", "note"} or not fits(row):
                return answer(self.wrong_form, message="wrong row")
            if row["metricSlug"] not in self.metrics:
                error = {"code": "DEFINITION_NOT_FOUND", "message": "No such metric"}
                errors.append({"index": index, **error})
            elif message := self.range_error(row["metricSlug"], row["value"]):
                errors.append({"index": index, "code": "RANGE_VIOLATION", "message": message})
            else:
                rows.append(row)
        self.by_source[body["sourceExternalId"]] = []
        self.during_write()
        with self.lock:
            self.by_source[body["sourceExternalId"]] += rows
        return answer(200, inserted=len(rows), errors=errors)

    def single(self, body: Any) -> httpx.Response:
        """Define the metric if its slug is new, then look at the value."""
        metric = body["metric"]
        row = {key: body[key] for key in ("value", "occurredAt", "note") if key in body}
        slug = self.similar.get(metric["slug"], metric["slug"])
        words = metric["description"] and metric["label"]
        if not words or not fits({"metricSlug": slug, **row}):
            return answer(self.wrong_form, message="wrong proposal")
        if created := slug not in self.metrics:
            self.during_write()
            with self.lock:
                if slug in self.metrics:
                    return answer(400, message="duplicate key value violates unique constraint")
                limits = {"low": metric["validRangeMin"], "high": metric["validRangeMax"]}
                self.define(slug, metric["label"], metric["unit"], **limits)
        if message := self.range_error(slug, row["value"]):
            return answer(400, message=message, data={"errors": [{"code": "RANGE_VIOLATION"}]})
        if row["occurredAt"] < "0001":
            message = f'date/time field value out of range: "{row["occurredAt"]}"'
            return answer(400, message=message, data={"errors": [{"code": "INVALID_INPUT"}]})
        self.singles.append({"metricSlug": slug, **row})
        return answer(200, inserted=1, errors=[], definitionCreated=created)


class ArrayPetals(PetalsServer):
    """A server of the guide: no list of metrics, and an array with the metric in each row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict] = []

    def answer_key(self, path: str, body: Any) -> httpx.Response:
        if path != "observations/bulk" or not isinstance(body, list):
            return httpx.Response(400 if path == "observations/bulk" else 404)
        self.rows += body
        return answer(202, jobId="job-1")


def fits(row: dict[str, Any]) -> bool:
    """Whether Petals accepts the form of an observation."""
    number = isinstance(row["value"], (int, float)) and not isinstance(row["value"], bool)
    slug = row["metricSlug"].replace("_", "").isalnum()
    return number and slug and len(row["occurredAt"]) == 20 and row["occurredAt"].endswith("Z")


@contextmanager
def local_server(*servers: FakeServer, delay: float = 0) -> Iterator[str]:
    """Serve these fake servers on one local port, Petals under its path and Oura elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length)
            url = f"http://{self.headers['Host']}{self.path}"
            request = httpx.Request(self.command, url, headers=dict(self.headers), content=content)
            threading.Event().wait(delay)
            of_petals = request.url.path.startswith("/api/memory")
            fake = next(one for one in servers if isinstance(one, Oura) != of_petals)
            response = fake(request)
            self.send_response(response.status_code)
            for name, value in response.headers.items():
                if name.lower() not in ("content-length", "date"):
                    self.send_header(name, value)
            body = b"".join(response.stream)  # as it is, compressed or not
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = handle_one

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # ignore clients that close the connection
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# --- Runs --------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def commands(self) -> list[list[str]]:
        """The options of the commands that the run gave, each at the end of a line."""
        program = shlex.join([sys.executable, str(oura_to_petals.SCRIPT), "--date"])
        lines = [line for line in self.problems if " --days " in line]
        return [shlex.split(f"--date{line.split(program)[1]}") for line in lines]

    @property
    def command(self) -> list[str]:
        """The options of the one command, in the last line, that sends what is missing."""
        (command,) = self.commands
        assert " --days " in self.problems[-1]
        return command

    @property
    def problems(self) -> list[str]:
        """The lines of stderr, without the name of the script."""
        return [line.removeprefix("oura_to_petals: ") for line in self.err.splitlines()]

    def failed(self, code: int = 1) -> str:
        """The one line of a run that ended with this exit code and told nothing else."""
        assert (self.code, self.out, len(self.problems)) == (code, "", 1), self
        assert self.err.startswith("oura_to_petals: ")
        return self.problems[0]


@dataclass
class World:
    """Both services behind respx, and the command line in front of them."""

    oura: Oura
    petals: Any
    router: respx.MockRouter
    capsys: pytest.CaptureFixture[str]
    waited: list[float]  # the seconds that the run slept, which are not really slept
    petals_host: str = "petals.chat"

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer as the service at this host. At any other host there is none."""
        servers = {"api.ouraring.com": self.oura, "moi.ouraring.com": self.oura}
        return {**servers, self.petals_host: self.petals}[request.url.host](request)

    def fail(self, path: str, *faults: Fault, times: int = 1) -> None:
        """Let the service that has this path fail, as in `FakeServer.fail`."""
        service = self.petals if path in (LIST, SINGLE, BULK) else self.oura
        service.fail(path, *faults, times=times)

    def run(self, *argv: str, day: str | None = str(DAY)) -> Ended:
        """Run the command line, for `DAY` unless another one or none is named."""
        self.capsys.readouterr()
        options = list(argv) if day is None else ["--date", day, *argv]
        code = oura_to_petals.main(options)
        return Ended(code, *self.capsys.readouterr())


@dataclass
class Cron:
    """A copy of the script that runs as cron runs it, with next to no environment."""

    script: Path
    home: Path

    def start(self, *argv: str, **env: str) -> subprocess.Popen[str]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", **env}
        command = [sys.executable, str(self.script), *argv]
        return subprocess.Popen(command, env=environment, cwd=self.home, text=True, **pipes)

    def run(self, *argv: str, stdin: str = "", **env: str) -> Ended:
        return ended(self.start(*argv, **env), stdin)

    def shell(self, line: str, **env: str) -> Ended:
        """Run a line of bash in which $SCRIPT is the script."""
        script = f'"{sys.executable}" "{self.script}"'
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", **env}
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line.replace("$SCRIPT", script)],
            env=environment, cwd=self.home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)


def ended(process: subprocess.Popen[str], stdin: str = "") -> Ended:
    """Wait for a process."""
    out, err = process.communicate(stdin, timeout=30)
    return Ended(process.returncode, out, err)


def wait_until(
    happened: Callable[[], object], what: str, process: subprocess.Popen[str] | None = None
) -> None:
    """Wait for something that a run does, while its process lives, for up to 20 seconds."""
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen"
        assert process is None or process.poll() is None, f"{what}: {ended(process)}"
        time.sleep(0.01)


def interrupt(process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
    """Send a signal to a process that waits for an answer."""
    time.sleep(0.1)  # it has asked, but may not wait yet
    os.kill(process.pid, number)
