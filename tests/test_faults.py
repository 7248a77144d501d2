"""A fault that passes costs nothing. Any other one is reported in one line, and nothing is lost."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from math import inf, nan

import httpx
import pytest
from conftest import SCRIPT, Clock, Ended, World
from services import DAY, KEY, TOKEN, ArrayPetals, Petals, daily_sleep, local_server, readiness

import oura_to_petals

READS = ["/daily_readiness", "/daily_sleep", "/sleep"]
LIST = "/metrics/list"
SINGLE = "/metrics/observations"
BULK = "/observations/bulk"
ALL_VALUES = {"oura_readiness": 82, "oura_hrv": 77, "oura_sleep_minutes": 432}
CREATE_SSL_CONTEXT = httpx.create_ssl_context

REFUSED = httpx.ConnectError("[Errno 111] Connection refused")
SLOW = httpx.ReadTimeout("The read timed out")
CERTIFICATE = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
HTML = httpx.Response(200, html="<html><h1>Welcome</h1></html>")
REDIRECT = "a redirect to https://x.example/, not followed"
IN_BULK = "Petals observations/bulk"
TRANSIENT = [
    REFUSED,
    httpx.ConnectError("[Errno -3] Temporary failure in name resolution"),
    httpx.ConnectTimeout("timed out"),
    SLOW,
    httpx.ReadError("[Errno 104] Connection reset by peer"),
    httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
    *map(httpx.Response, (408, 429, 500, 502, 503, 504)),
]


def redirect(status: int, target: bytes = b"https://x.example/") -> httpx.Response:
    return httpx.Response(status, headers=[(b"Location", target)])


# fmt: off
FAULTS = [  # a path, how each of its requests fails, the reason that is reported, and the advice
    ("/daily_readiness", 400, "Oura daily_readiness answered 400", "OURA_TOKEN and OURA_HOST"),
    ("/daily_readiness", 429, "Oura daily_readiness answered 429 (4 tries)", "try again later"),
    ("/daily_sleep", 401, "Oura daily_sleep answered 401", "OURA_TOKEN"),
    ("/daily_sleep", 404, "Oura daily_sleep answered 404", "OURA_TOKEN and OURA_HOST"),
    ("/daily_sleep", 426, "Oura daily_sleep answered 426", "the Oura app on the phone"),
    ("/daily_sleep", 500, "Oura daily_sleep answered 500 (4 tries)", "try again later"),
    ("/daily_sleep", SLOW, f"Oura daily_sleep: the request failed: {SLOW} (4 tries)", "OURA_HOST"),
    ("/sleep", 403, "Oura sleep answered 403", "membership has lapsed or a permission is missing"),
    ("/sleep", HTML, "Oura sleep answered 200: no JSON object", "OURA_HOST"),
    ("/sleep", redirect(302), f"Oura sleep answered 302: {REDIRECT}", "OURA_HOST"),
    ("/sleep", REFUSED, f"could not reach Oura: {REFUSED} (4 tries)", "the network and OURA_HOST"),
    ("/sleep", CERTIFICATE, f"could not reach Oura: {CERTIFICATE}", "OURA_HOST"),
    (LIST, 204, "Petals list answered 204: no JSON object", "PETALS_HOST"),
    (LIST, 400, "Petals list answered 400", "PETALS_API_KEY and PETALS_HOST"),
    (LIST, 401, "Petals list answered 401", "create a new one in Petals at Settings → API keys"),
    (LIST, 403, "Petals list answered 403", "PETALS_API_KEY"),
    (LIST, 503, "Petals list answered 503 (4 tries)", "try again later"),
    (LIST, redirect(301), f"Petals list answered 301: {REDIRECT}", "PETALS_HOST"),
    (LIST, REFUSED, f"could not reach Petals: {REFUSED} (4 tries)", "the network and PETALS_HOST"),
    (BULK, 300, f"{IN_BULK} answered 300: a redirect to nowhere, not followed", "PETALS_HOST"),
    (BULK, 401, f"{IN_BULK} answered 401", "PETALS_API_KEY"),
    (BULK, 404, f"{IN_BULK} answered 404", "PETALS_API_KEY and PETALS_HOST"),
    (BULK, 501, f"{IN_BULK} answered 501", "try again later"),
    (BULK, 504, f"{IN_BULK} answered 504 (4 tries)", "try again later"),
    (BULK, HTML, f"{IN_BULK} answered 200: no JSON object", "PETALS_HOST"),
    (BULK, redirect(307), f"{IN_BULK} answered 307: {REDIRECT}", "PETALS_HOST"),
    (BULK, redirect(307, b"//["), f"{IN_BULK} answered 307: a redirect to //[, ", "PETALS_HOST"),
    (BULK, redirect(307, b"//\xff\xfe/"), f"{IN_BULK} answered 307: a redirect to", "PETALS_HOST"),
    (BULK, redirect(307, b"mailto:x@y"), f"{IN_BULK}: the request failed: ", "PETALS_HOST"),
    (BULK, CERTIFICATE, f"could not reach Petals: {CERTIFICATE}", "PETALS_HOST"),
    (BULK, httpx.DecodingError("Error -3"), f"{IN_BULK}: the request failed: ", "PETALS_HOST"),
    (BULK, httpx.ReadError(""), f"{IN_BULK}: the request failed: ReadError (4 tries)", "network"),
]
# fmt: on


def name(value: object) -> str | None:
    if isinstance(value, httpx.Response):
        return str(value.status_code)
    return repr(value) if isinstance(value, Exception) else None


def service(world: World, path: str) -> object:
    return world.oura if path in READS else world.petals


@pytest.mark.parametrize(("path", "fault", "reason", "advice"), FAULTS, ids=name)
def test_a_fault_is_reported_in_one_line_and_nothing_is_stored(
    world: World, path: str, fault: object, reason: str, advice: str
) -> None:
    fault = httpx.Response(fault) if isinstance(fault, int) else fault
    service(world, path).fail(path, fault, times=9)
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    said, _, advised = ended.err.partition("; ")
    assert said.startswith(f"oura_to_petals: 2026-06-10: {reason}")
    assert advice in advised
    assert len(service(world, path).asked(path)) == said.count("(4 tries)") * 3 + 1
    assert world.petals.stored == {}


@pytest.mark.parametrize("fault", TRANSIENT, ids=name)
def test_a_transient_fault_is_retried(world: World, waited: list[float], fault: object) -> None:
    for path in ("/sleep", LIST, BULK):
        service(world, path).fail(path, fault, times=3)
    ended = world.run()
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.stored == {"2026-06-10": ALL_VALUES}
    for pause, about in zip(sorted(waited), [1, 1, 1, 2, 2, 2, 4, 4, 4], strict=True):
        assert 0.7 * about <= pause <= 1.3 * about


def test_an_array_is_sent_again_after_a_transient_fault(world: World) -> None:
    world.use(ArrayPetals())
    world.petals.fail(BULK, SLOW, httpx.Response(500))
    assert world.run().code == 0
    assert len(world.petals.rows) == 3


@pytest.mark.parametrize("fault", TRANSIENT, ids=name)
def test_a_definition_is_proposed_again_only_if_nothing_was_processed(
    world: World, fault: object
) -> None:
    world.use(Petals(known=("oura_hrv", "oura_sleep_minutes")))
    world.petals.fail(SINGLE, fault)
    ended = world.run()
    not_processed = isinstance(fault, (httpx.ConnectError, httpx.ConnectTimeout)) or (
        isinstance(fault, httpx.Response) and fault.status_code in (429, 503)
    )
    assert len(world.petals.asked(SINGLE)) == (2 if not_processed else 1)
    assert ended.code == (0 if not_processed else 1)
    assert len(world.petals.stored["2026-06-10"]) == (3 if not_processed else 2)


def test_verbose_shows_each_failed_try_and_the_wait(world: World, waited: list[float]) -> None:
    world.petals.fail(BULK, httpx.Response(503, text="busy"), REFUSED)
    ended = world.run("-v")
    assert ended.code == 0
    assert all(line.startswith("oura_to_petals: ") for line in ended.problems)
    for reason, pause in zip(
        ["Petals observations/bulk answered 503: busy", f"could not reach Petals: {REFUSED}"],
        waited,
        strict=True,
    ):
        assert f"oura_to_petals: {reason}; next try in {pause:.1f} seconds" in ended.problems
    assert "POST https://petals.chat/api/memory/metrics/observations/bulk" in ended.err
    assert KEY not in ended.err
    assert TOKEN not in ended.err


@pytest.mark.parametrize("header", ["0", "7", "60"])
def test_retry_after_is_the_wait(world: World, waited: list[float], header: str) -> None:
    world.petals.fail(BULK, httpx.Response(429, headers={"Retry-After": header}))
    assert world.run().code == 0
    assert waited == [int(header)]


@pytest.mark.parametrize("header", ["-1", "1.5", "soon", "Wed, 10 Jun 2026 08:00:00 GMT", "٣", ""])
def test_any_other_retry_after_is_ignored(world: World, waited: list[float], header: str) -> None:
    world.petals.fail(BULK, httpx.Response(503, headers=[(b"Retry-After", header.encode())]))
    assert world.run().code == 0
    assert 0.7 <= waited[0] <= 1.3


@pytest.mark.parametrize(
    ("seconds", "limit"), [("61", 115.0), ("3600", 115.0), ("9" * 400, 115.0), ("30", 20.0)]
)
def test_a_retry_after_that_is_too_long_is_reported(
    world: World, waited: list[float], monkeypatch: pytest.MonkeyPatch, seconds: str, limit: float
) -> None:
    monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", limit)
    world.petals.fail(BULK, httpx.Response(429, headers={"Retry-After": seconds}))
    ended = world.run()
    assert (ended.code, waited) == (1, [])
    assert ended.err.endswith(f"; try again in {float(seconds):.0f} seconds\n")
    assert len(world.petals.asked(BULK)) == 1


def test_one_cause_is_one_line_and_two_services_are_two(world: World) -> None:
    for path in READS:
        world.oura.fail(path, httpx.Response(401))
    assert len(world.run().problems) == 1
    for path in READS:
        world.oura.fail(path, httpx.Response(500), times=4)
    world.petals.fail(LIST, httpx.Response(401))
    ended = world.run()
    assert ended.code == 1
    of_oura, of_petals = ended.problems
    assert "Oura" in of_oura
    assert "Petals" in of_petals


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"message": "no such key"}, ": no such key;"),
        ({"detail": [{"msg": "bad date"}]}, ': [{"msg": "bad date"}];'),
        ({"error": "invalid", "error_description": "a reason"}, ": a reason;"),
        ({"message": f"key {KEY} is unknown"}, ": key *** is unknown;"),
        ({"detail": [{"key": KEY, "token": TOKEN}]}, ': [{"key": "***", "token": "***"}];'),
        ({"message": f"{'x' * 195}{KEY}"}, f": {'x' * 195}***;"),
        ({"message": "y" * 300}, f": {'y' * 199}…;"),
        ({"message": "a\r\nb\u2028c\x1b[31m\x00d\u202e"}, ": a b c [31m d;"),
        (f"{'<' + 'a' * 9970}> key {KEY}", ": key ***;"),
        ({}, "answered 400: {};"),
        ("", "answered 400; "),
        ("<html><h1>Bad gateway</h1></html>", ": Bad gateway;"),
    ],
)
def test_what_a_server_says_is_one_line_without_keys(world: World, body: object, said: str) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    world.petals.fail(BULK, httpx.Response(400, text=text))
    ended = world.run()
    assert said in ended.err
    assert len(ended.problems) == 1
    assert KEY not in ended.err


@pytest.mark.parametrize("paths", [[LIST], [BULK], [LIST, BULK]])
def test_an_html_page_with_status_200_is_never_success(world: World, paths: list[str]) -> None:
    for path in paths:
        world.petals.fail(path, HTML, times=9)
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert world.petals.stored == {}


@pytest.mark.parametrize(
    "page",
    [
        httpx.Response(200, text="["),
        httpx.Response(200, text="[" * 100_000),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"data": None}),
        httpx.Response(200, json={"data": {"score": 1}}),
        httpx.Response(200, json={"data": [readiness(), 5]}),
        httpx.Response(200, text='{"data": [], "next_token": "\\ud800"}'),
        httpx.Response(204),
    ],
)
def test_a_page_in_another_format_fails_the_read(world: World, page: httpx.Response) -> None:
    world.oura.fail("/daily_sleep", page)
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert "Oura daily_sleep" in ended.err
    assert world.petals.stored == {}


def test_pages_without_end_fail_the_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oura_to_petals, "MAX_PAGES", 20)
    pages = (httpx.Response(200, json={"data": [], "next_token": f"{n}"}) for n in range(99))
    world.oura.fail("/sleep", *pages)
    ended = world.run()
    assert ended.code == 1
    assert "Oura sleep has " in ended.err
    assert len(world.oura.asked("/sleep")) == 20


class TestFailingSleep:
    """Without the sessions a day is incomplete, and would replace the complete one in Petals."""

    def fail(self, world: World, status: int, page: int) -> None:
        """Answer the first or the second page of `sleep` with this status, in every try."""
        world.oura.page = 1

        def fault(request: httpx.Request) -> httpx.Response | None:
            is_second = "next_token" in request.url.params
            return httpx.Response(status) if is_second == (page == 2) else None

        world.oura.fail("/sleep", fault, times=9)

    @pytest.mark.parametrize("page", [1, 2])
    @pytest.mark.parametrize("status", [404, 403, 500])
    def test_seven_stored_days_stay_as_they_were(
        self, world: World, status: int, page: int
    ) -> None:
        world.oura.fill(7)
        week = {str(DAY - timedelta(days=n)): ALL_VALUES for n in range(7)}
        assert world.run("--days", "7").code == 0
        assert world.petals.stored == week
        self.fail(world, status, page)
        ended = world.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert f"Oura sleep answered {status}" in ended.err
        assert len(world.petals.asked(BULK)) == 7
        assert world.petals.stored == week

    @pytest.mark.parametrize(
        ("status", "page", "metrics", "totals", "code"),
        [
            (404, 1, "default", [25_920, 25_920], 0),
            (403, 1, "default", [25_920, 25_920], 0),
            (500, 2, "default", [25_920, 25_920], 0),
            (404, 1, "oura-readiness,oura-hrv", [25_920, 0], 0),
            (404, 2, "oura-readiness,oura-hrv", [None, None], 1),
            (404, 2, "default", [25_920, None], 1),
            (404, 1, "default", [], 1),
            (404, 1, "default,oura-hrv-ms", [25_920, 25_920], 1),
        ],
    )
    def test_sleep_is_not_needed_if_all_daily_sleep_has_a_total_and_no_more_is_chosen(
        self, world: World, monkeypatch: pytest.MonkeyPatch,
        status: int, page: int, metrics: str, totals: list, code: int,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("OURA_METRICS", metrics)
        world.oura.fill(2)
        world.oura.collections["daily_sleep"] = [
            daily_sleep(DAY - timedelta(days=n), total_sleep_duration=total)
            for n, total in enumerate(totals)
        ]
        self.fail(world, status, page)
        ended = world.run("--days", "2")
        assert ended.code == code
        assert (f"Oura sleep answered {status}" in ended.err) == bool(code)
        assert len(world.petals.stored) == (0 if code else 2)
        if metrics == "default" and not code:
            assert world.petals.stored["2026-06-10"] == ALL_VALUES
            assert world.petals.notes[0] == "Slept 7h12, readiness 82, HRV balance 77"


IMPOSSIBLE = ["82", True, [82], {"value": 82}, nan, inf, -inf, -1, 10**400]


@pytest.mark.parametrize(
    ("collection", "document", "field"),
    [
        *(("daily_readiness", {"score": value}, "score") for value in [*IMPOSSIBLE, 101]),
        *(
            ("daily_readiness", {"contributors": value}, "contributors.hrv_balance")
            for value in ({"hrv_balance": 100.5}, [77], "77", False)
        ),
        *(
            (collection, {"total_sleep_duration": value}, "total_sleep_duration")
            for collection in ("daily_sleep", "sleep")
            for value in ["7h", True, nan, -1, 86_401]
        ),
    ],
)
def test_an_impossible_value_is_reported_and_nothing_of_its_day_is_sent(
    world: World, collection: str, document: dict, field: str
) -> None:
    world.oura.collections[collection][0] |= document
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    expected = f"oura_to_petals: 2026-06-10: Oura {collection} {field} is not a number from 0 to "
    assert ended.err.startswith(expected)
    assert world.petals.stored == {}


def test_sessions_that_are_longer_than_a_day_together_are_impossible(world: World) -> None:
    world.oura.collections["sleep"][0]["total_sleep_duration"] = 50_000
    world.oura.collections["sleep"] *= 2
    ended = world.run()
    assert ended.code == 1
    assert "sleep total_sleep_duration is not a number from 0 to 86400" in ended.err


@pytest.mark.parametrize("value", [501, "54"])
def test_an_impossible_value_that_is_only_in_the_sentence_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    world.oura.collections["sleep"][0]["average_hrv"] = value
    ended = world.run()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith(" Slept 7h12, readiness 82, HRV balance 77.\n")
    monkeypatch.setenv("OURA_METRICS", "default,oura-hrv-ms")
    ended = world.run()
    assert ended.code == 1
    assert "Oura sleep average_hrv is not a number from 0 to 500" in ended.err


@pytest.mark.parametrize("day", [None, 5, "yesterday", "20260610", ["2026-06-10"], ""])
def test_a_document_without_a_readable_day_is_reported_and_left_out(
    world: World, day: object
) -> None:
    world.oura.collections["daily_readiness"].append({"day": day, "score": "ignored"})
    ended = world.run()
    assert (ended.code, len(ended.problems)) == (1, 1)
    assert "Oura daily_readiness has a document without" in ended.err
    assert world.petals.stored == {"2026-06-10": ALL_VALUES}


def test_an_impossible_value_of_a_day_that_is_not_asked_for_is_ignored(world: World) -> None:
    world.oura.collections["daily_readiness"].append(readiness("2026-06-09", score="bad"))
    assert world.run().code == 0


def test_a_bug_is_one_line_with_the_line_of_this_script_and_no_key(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise RuntimeError(KEY)

    monkeypatch.setattr(httpx.Client, "send", bug)  # a library raises it
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    number = re.search(r": a bug, RuntimeError in line (\d+): please report it$", ended.err)[1]
    assert "client." in SCRIPT.read_text().splitlines()[int(number) - 1]
    assert KEY not in ended.err


class Body(httpx.SyncByteStream):
    """A body of 100 chunks, with a pause before each."""

    def __init__(self, chunk: bytes, pause: float) -> None:
        self.chunk, self.pause = chunk, pause

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(self.pause)
            yield self.chunk


@pytest.mark.parametrize(
    ("path", "days", "message"),
    [
        ("/sleep", "1", "2026-06-10: no answer from Oura sleep within 115 seconds\n"),
        (BULK, "2", "no answer from Petals observations/bulk within 117 seconds; 0 of 2 days"),
    ],
)
def test_an_answer_that_does_not_end_is_named_at_the_time_limit(
    world: World, clock: Clock, path: str, days: str, message: str
) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        clock.ahead = 1000
        return httpx.Response(200, stream=Body(b" ", 0.02))

    service(world, path).fail(path, answer)
    ended = world.run("--days", days)
    assert (ended.code, len(ended.problems)) == (1, 1)
    assert ended.err.startswith(f"oura_to_petals: {message}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "nonsense://user:hunter2@proxy"),
        ("ALL_PROXY", "http://[::1:80"),
        ("SSL_CERT_FILE", "/nowhere/at/all"),
        ("SSL_CERT_FILE", __file__),
    ],
)
def test_a_proxy_or_certificates_that_cannot_be_used_are_exit_2(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(httpx, "create_ssl_context", CREATE_SSL_CONTEXT)
    monkeypatch.setenv(name, value)
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (2, "", 1)
    assert name in ended.err
    assert "hunter2" not in ended.err


@pytest.fixture
def run_at(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Ended]]:
    """Run with real connections, to one host for both services."""

    def run(host: str) -> Ended:
        monkeypatch.setenv("OURA_HOST", host)
        monkeypatch.setenv("PETALS_HOST", host)
        return world.run()

    world.router.stop()
    yield run
    world.router.start()


def test_a_proxy_with_an_impossible_port_is_no_bug(
    run_at: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{10**24}")
    ended = run_at("https://services.example")
    assert (ended.code, ended.out) in [(1, ""), (2, "")]
    assert "a bug" not in ended.err


def test_a_local_server_is_asked_without_a_proxy(
    run_at: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with local_server(world.oura, world.petals) as host:
        ended = run_at(host)
    assert (ended.code, ended.err) == (0, "")


def test_a_long_answer_is_given_up_at_8_mib(world: World) -> None:
    world.petals.fail(LIST, httpx.Response(200, stream=Body(b" " * 2**20, 0)))
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert "Petals list sent more than 8 MiB" in ended.err


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (gzip.compress(json.dumps({"data": [readiness()]}).encode()), ""),
        (gzip.compress(b" " * (2**20 + 1)), "Oura daily_readiness sent more than 1 MiB"),
        (b"{}", "Oura daily_readiness: the request failed: "),
    ],
    ids=["compressed", "too long", "not compressed"],
)
def test_a_compressed_answer_is_read_up_to_the_limit(
    world: World, monkeypatch: pytest.MonkeyPatch, body: bytes, problem: str
) -> None:
    monkeypatch.setattr(oura_to_petals, "MAX_BYTES", 2**20)
    headers = {"Content-Encoding": "gzip"}
    packed = httpx.Response(200, stream=httpx.ByteStream(body), headers=headers)
    world.oura.fail("/daily_readiness", packed)
    ended = world.run()
    assert ended.code == bool(problem)
    assert problem in ended.err
