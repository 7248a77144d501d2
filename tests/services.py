"""Fake servers that behave as Oura and Petals were measured, and a local server for them.

A fake server is a function from request to response, so respx and `local_server` can both use it.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

DAY = date(2026, 6, 10)
TOKEN = "oura-personal-token"
KEY = "petals-key-of-a-test"

Fault = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


def readiness(day: object = DAY, score: Any = 82, hrv_balance: Any = 77, **more: Any) -> dict:
    """A `PublicDailyReadiness` of Oura API 2.0."""
    return {
        "id": f"readiness-{day}",
        "contributors": {"hrv_balance": hrv_balance, "previous_night": None},
        "day": str(day),
        "score": score,
        "temperature_deviation": -0.1,
        "temperature_trend_deviation": 0.02,
        "timestamp": f"{day}T00:00:00+00:00",
        **more,
    }


def daily_sleep(day: object = DAY, score: Any = 85, **more: Any) -> dict:
    """A `PublicDailySleep`: it has a score of the total sleep, and no time."""
    return {
        "id": f"daily-sleep-{day}",
        "contributors": {"deep_sleep": 97, "efficiency": 91, "total_sleep": 88},
        "day": str(day),
        "score": score,
        "timestamp": f"{day}T00:00:00+00:00",
        **more,
    }


def session(
    day: object = DAY, seconds: Any = 25_920, type: Any = "long_sleep", **more: Any
) -> dict:
    """A `PublicModifiedSleepModel`."""
    return {
        "id": f"sleep-{day}-{type}-{seconds}",
        "average_breath": 14.5,
        "average_hrv": 54,
        "bedtime_end": f"{day}T07:00:00+02:00",
        "day": str(day),
        "deep_sleep_duration": 5400,
        "efficiency": 91,
        "light_sleep_duration": 14_400,
        "lowest_heart_rate": 48,
        "rem_sleep_duration": 6120,
        "total_sleep_duration": seconds,
        "type": type,
        **more,
    }


def hang(*_: object, **__: object) -> None:
    """Never answer, and keep the thread that waits for it."""
    threading.Event().wait()


class FakeServer:
    """A server that keeps its requests and fails on demand."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.lock = threading.Lock()

    def fail(self, path: str, *faults: Fault, times: int = 1) -> None:
        """Answer the next requests whose path ends like this with these faults, in order."""
        self.faults[path] += [*faults] * times

    def asked(self, path: str = "") -> list[httpx.Request]:
        return [request for request in self.requests if request.url.path.endswith(path)]

    def sent(self, path: str) -> list[Any]:
        """Return the JSON bodies of the requests to a path."""
        return [json.loads(request.content) for request in self.asked(path)]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            self.requests.append(request)
            fault = next(
                (
                    faults.pop(0)
                    for path, faults in self.faults.items()
                    if faults and request.url.path.endswith(path)
                ),
                None,
            )
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, httpx.Response):
            return fault
        with_fault = fault(request) if fault else None
        return with_fault or self.answer(request)

    def answer(self, request: httpx.Request) -> httpx.Response:
        raise NotImplementedError


class Oura(FakeServer):
    """The three collections, and the token address of the sign-in.

    `window` is the meaning of `start_date` and `end_date`. Users measured three of them.
    """

    WINDOWS = {
        "closed": lambda start, day, end: start <= day <= end,
        "start exclusive": lambda start, day, end: start < day <= end,
        "end exclusive": lambda start, day, end: start <= day < end,
    }

    def __init__(self) -> None:
        super().__init__()
        self.tokens = {TOKEN}
        self.window = "closed"
        self.page = 1000  # documents
        self.collections: dict[str, list[dict] | None] = {
            "daily_readiness": [readiness()],
            "daily_sleep": [daily_sleep()],
            "sleep": [session()],
        }
        self.refresh_token = "refresh-1"
        self.code = "the-code"

    def fill(self, days: int, last: date = DAY) -> None:
        """Have a night for each of these days."""
        every = [last - timedelta(days=n) for n in range(days)]
        self.collections = {
            "daily_readiness": [readiness(day) for day in every],
            "daily_sleep": [daily_sleep(day) for day in every],
            "sleep": [session(day) for day in every],
        }

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return self.give_tokens(dict(httpx.QueryParams(request.content.decode())))
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return httpx.Response(401, json={"detail": "Unauthorized"})
        documents = self.collections.get(request.url.path.rpartition("/")[2])
        if documents is None:
            return httpx.Response(404, json={"detail": "Not Found"})
        asked = request.url.params
        inside = self.WINDOWS[self.window]
        found = [
            one
            for one in documents
            if len(str(one.get("day"))) != 10
            or inside(asked["start_date"], str(one["day"]), asked["end_date"])
        ]
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
                good = good and form["code"] == self.code
                self.code = "spent"
            else:
                good = good and form["refresh_token"] == self.refresh_token
            if not good:
                return httpx.Response(400, json={"error": "invalid_grant"})
            number = int(self.refresh_token.removeprefix("refresh-")) + 1
            self.refresh_token = f"refresh-{number}"
            self.tokens = {f"access-{number}"}
            answer = {
                "access_token": f"access-{number}",
                "refresh_token": self.refresh_token,
                "expires_in": 86_400,
                "token_type": "bearer",
                "scope": "daily",
            }
            return httpx.Response(200, json=answer)


class Petals(FakeServer):
    """Petals as it was measured. A request of the wrong form is answered with a bare 500."""

    KNOWN = ("oura_readiness", "oura_hrv", "oura_sleep_minutes")

    def __init__(self, known: tuple[str, ...] = KNOWN) -> None:
        super().__init__()
        self.metrics: dict[str, dict[str, Any]] = {}
        self.ranges: dict[str, tuple[float, float]] = {}
        self.by_source: dict[str, list[dict]] = {}
        self.singles: list[dict] = []
        self.alike: set[str] = set()  # slugs whose values are filed under a similar metric
        self.during_write: Callable[[], object] = lambda: None  # where two requests can overlap
        for slug in known:
            self.define({"slug": slug, "label": slug, "unit": "score"})

    @property
    def stored(self) -> dict[str, dict[str, Any]]:
        """The values by day and slug."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for row in self.rows:
            found[row["occurredAt"][:10]][row["metricSlug"]] = row["value"]
        return dict(found)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [*self.singles, *(row for rows in self.by_source.values() for row in rows)]

    @property
    def notes(self) -> list[str]:
        return [row["note"] for row in self.rows if "note" in row]

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers.get("x-api-key") != KEY:
            return httpx.Response(401, json={"message": "Invalid API key"})
        body = json.loads(request.content)
        path = request.url.path.removeprefix("/api/memory/metrics")
        if path == "/list":
            return httpx.Response(200, json={"metrics": list(self.metrics.values())})
        if path == "/observations":
            return self.single(body)
        if path == "/observations/bulk":
            return self.bulk(body)
        return httpx.Response(404)

    def define(self, metric: dict[str, Any]) -> None:
        slug = metric["slug"]
        words = {name: metric[name] for name in ("slug", "label", "unit")}
        self.metrics[slug] = {**words, "stats": {"latestAt": None}}
        if "validRangeMin" in metric:
            self.ranges[slug] = (metric["validRangeMin"], metric["validRangeMax"])

    def range_error(self, slug: str, value: float) -> str:
        low, high = self.ranges.get(slug, (value, value))
        text = f"is outside the valid range for {slug}: min {low}, max {high}"
        return "" if low <= value <= high else f"Metric value {value} {text}"

    def bulk(self, body: Any) -> httpx.Response:
        """Delete what is stored under the id, then store the rows."""
        broken = httpx.Response(500, text="500 Server Error")
        if not isinstance(body, dict) or not body.get("observations"):
            return broken
        rows, errors = [], []
        for index, row in enumerate(body["observations"]):
            if set(row) - {"metricSlug", "value", "occurredAt", "note"} or not fits(row):
                return broken
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
        return httpx.Response(200, json={"inserted": len(rows), "errors": errors})

    def single(self, body: Any) -> httpx.Response:
        """Create the definition if the slug is new, then store the value if it is in range."""
        metric = body["metric"]
        row = {key: body[key] for key in ("value", "occurredAt", "note") if key in body}
        slug = metric["slug"]
        of_form = fits({"metricSlug": slug, **row})
        if not of_form or not metric["description"] or not metric["label"]:
            return httpx.Response(500, text="500 Server Error")
        created = slug not in self.metrics and slug not in self.alike
        if created:
            self.during_write()
            with self.lock:
                if slug in self.metrics:
                    message = "duplicate key value violates unique constraint"
                    return httpx.Response(400, json={"message": message})
                self.define(metric)
        filed = "someone_elses" if slug in self.alike else slug
        if message := self.range_error(filed, row["value"]):
            data = {"errors": [{"code": "RANGE_VIOLATION"}]}
            return httpx.Response(400, json={"message": message, "data": data})
        self.singles.append({"metricSlug": filed, **row})
        answer = {"inserted": 1, "errors": [], "definitionCreated": created}
        return httpx.Response(200, json=answer)


class ArrayPetals(FakeServer):
    """An array server: it follows Petals' published guide.

    It has no list of metrics and takes an array of observations with the metric inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict] = []

    @property
    def stored(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for row in self.rows:
            found[row["occurredAt"][:10]][row["metric"]["slug"]] = row["value"]
        return dict(found)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers.get("x-api-key") != KEY:
            return httpx.Response(401)
        if request.url.path != "/api/memory/metrics/observations/bulk":
            return httpx.Response(404)
        rows = json.loads(request.content)
        if not isinstance(rows, list):
            return httpx.Response(400)
        self.rows += rows
        return httpx.Response(202, json={"jobId": "job-1"})


def fits(row: dict[str, Any]) -> bool:
    number = isinstance(row["value"], (int, float)) and not isinstance(row["value"], bool)
    slug = row["metricSlug"].replace("_", "").isalnum()
    return number and slug and row["occurredAt"].endswith("Z")


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

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignore clients that close the connection."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
