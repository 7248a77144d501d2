"""A fault that passes costs nothing. Any other one is told in one line, and nothing is lost."""

from __future__ import annotations

import gzip
import json
import re
import socket
import sys
import threading
import time
from math import inf, nan

import httpx
import pytest
from fakes import (
    BULK,
    DAILY_SLEEP,
    KEY,
    LIST,
    PUSHED,
    READINESS,
    READS,
    SCRIPT,
    SINGLE,
    SLEEP,
    TOKEN,
    VALUES,
    Ended,
    Petals,
    answer,
    before,
    daily_sleep,
    hang,
    hanging_ends,
    local_server,
    readiness,
    time_runs_out,
)

import oura_to_petals

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
    *map(httpx.Response, (408, 429, 500, 502, 503, 504, 507, 520, 522, 525, 530)),
]


def redirect(status, target=b"https://x.example/"):
    return httpx.Response(status, headers=[(b"Location", target)])


def later(status, seconds):
    return httpx.Response(status, headers={"Retry-After": str(seconds)})


def name(value):
    if isinstance(value, httpx.Response):
        return str(value.status_code)
    return repr(value) if isinstance(value, Exception) else None


def service(world, path):
    return world.oura if path in READS else world.petals


# fmt: off
FAULTS = [  # a path, how each of its requests fails, the reason that is told, and the advice
    (READINESS, 400, "Oura daily_readiness answered 400", "check OURA_HOST"),
    (READINESS, 429, "Oura daily_readiness answered 429 (4 tries)", "try again later"),
    (DAILY_SLEEP, 401, "Oura daily_sleep answered 401", "remove OURA_TOKEN from the env"),
    (DAILY_SLEEP, 404, "Oura daily_sleep answered 404", "check OURA_HOST"),
    (DAILY_SLEEP, 426, "Oura daily_sleep answered 426", "the Oura app on the phone is too old"),
    (DAILY_SLEEP, 500, "Oura daily_sleep answered 500 (4 tries)", "try again later"),
    (DAILY_SLEEP, SLOW, f"Oura daily_sleep: the request failed: {SLOW} (4 tries)", "OURA_HOST"),
    (SLEEP, 403, "Oura sleep answered 403", "the Oura membership has lapsed or OURA_TOKEN"),
    (SLEEP, HTML, "Oura sleep answered 200: no JSON object", "check OURA_HOST"),
    (SLEEP, redirect(302), f"Oura sleep answered 302: {REDIRECT}", "check OURA_HOST"),
    (SLEEP, REFUSED, f"could not reach Oura: {REFUSED} (6 tries)", "the network and OURA_HOST"),
    (SLEEP, CERTIFICATE, f"could not reach Oura: {CERTIFICATE}", "machine's clock; behind a"),
    (BULK, 300, f"{IN_BULK} answered 300: a redirect to nowhere, not followed", "PETALS_HOST"),
    (BULK, 401, f"{IN_BULK} answered 401", "check PETALS_API_KEY from the environment: "),
    (BULK, 404, f"{IN_BULK} answered 404", "check PETALS_HOST"),
    (BULK, 501, f"{IN_BULK} answered 501", "try again later"),
    (BULK, 505, f"{IN_BULK} answered 505", "try again later"),
    (SLEEP, 522, "Oura sleep answered 522 (4 tries)", "try again later"),
    (BULK, 504, f"{IN_BULK} answered 504 (4 tries)", "try again later"),
    (BULK, HTML, f"{IN_BULK} answered 200: no JSON object", "check PETALS_HOST"),
    (BULK, redirect(307), f"{IN_BULK} answered 307: {REDIRECT}", "check PETALS_HOST"),
    (BULK, redirect(307, b"//["), f"{IN_BULK} answered 307: a redirect to //[, ", "PETALS_HOST"),
    (BULK, redirect(307, b"//\xff\xfe/"), f"{IN_BULK} answered 307: a redirect to", "PETALS_HOST"),
    (BULK, redirect(307, b"mailto:x@y"), f"{IN_BULK}: the request failed: ", "PETALS_HOST"),
    (BULK, CERTIFICATE, f"could not reach Petals: {CERTIFICATE}", "SSL_CERT_FILE in the env"),
    (BULK, httpx.DecodingError("Error -3"), f"{IN_BULK}: the request failed: ", "PETALS_HOST"),
    (BULK, httpx.ReadError(""), f"{IN_BULK}: the request failed: ReadError (4 tries)", "network"),
]
# fmt: on


@pytest.mark.parametrize(("path", "fault", "reason", "advice"), FAULTS, ids=name)
def test_a_fault_is_told_in_one_line(world, path, fault, reason, advice):
    fault = httpx.Response(fault) if isinstance(fault, int) else fault
    service(world, path).fail(path, fault, times=9)
    said, _, advised = world.run().failed().partition("; ")
    assert said.startswith(f"2026-06-10: {reason}")
    assert advice in advised
    tries = re.search(r"\((\d) tries\)", said)
    assert len(service(world, path).asked(path)) == (int(tries[1]) if tries else 1)
    assert world.petals.stored == {}


@pytest.mark.parametrize("fault", TRANSIENT, ids=name)
def test_a_request_is_tried_again(world, fault):
    world.oura.fail(SLEEP, fault, times=3)
    world.petals.fail(BULK, fault, times=3)
    ended = world.run()
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.stored_once()
    pauses = [1] * 2 + [2] * 2 + [4] * 2
    for pause, about in zip(sorted(world.waited), pauses, strict=True):
        assert 0.8 * about <= pause <= 1.2 * about


class TestANetworkThatComesLate:
    """As at the wake-up of a laptop, before the Wi-Fi is there."""

    GONE = httpx.ConnectError("[Errno -3] Temporary failure in name resolution")

    def test_is_waited_for_half_a_minute(self, world):
        for path in (*READS, LIST, BULK):
            service(world, path).fail(path, self.GONE, times=5)
        assert world.run() == Ended(0, PUSHED, "")
        for delay in (1, 2, 4, 8, 16):
            assert world.waited.count(delay) == 5

    @pytest.mark.parametrize("options", [["--check"], ["--dry-run"]])
    def test_is_waited_for_in_every_mode(self, world, options):
        for path in (*READS, LIST):
            service(world, path).fail(path, self.GONE, times=5)
        assert world.run(*options).code == 0

    def test_is_told_on_a_terminal_once_a_service(self, world, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        for path in (*READS, BULK):
            service(world, path).fail(path, self.GONE, times=5)
        ended = world.run()
        assert ended.err.replace(oura_to_petals.CLEAR_LINE, "").splitlines() == [
            f"oura_to_petals: could not reach {name}: {self.GONE}; next try in 1.0 seconds"
            for name in ("Oura", "Petals")
        ]


@pytest.mark.parametrize("wait", [[], ["--wait"]], ids=["", "wait"])
def test_a_wrong_certificate_is_not_tried_again(world, wait):
    for path in READS:
        world.oura.fail(path, CERTIFICATE, times=9)
    problem = world.run(*wait).failed()
    assert problem == (
        f"2026-06-10: could not reach Oura: {CERTIFICATE}; check this machine's clock; behind a "
        "company's proxy, set SSL_CERT_FILE in the environment"
    )
    assert {len(world.oura.asked(path)) for path in READS} == {1}
    assert world.waited == []


@pytest.mark.parametrize("fault", [REFUSED, httpx.ProxyError("407 Proxy Authentication Required")])
@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        ({"HTTPS_PROXY": "http://proxy:3128"}, "the proxy in HTTPS_PROXY"),
        ({"https_proxy": "http://proxy:3128", "ALL_PROXY": "http://x"}, "the proxy in https_proxy"),
        ({"ALL_PROXY": "http://proxy:3128"}, "the proxy in ALL_PROXY"),
        ({"HTTP_PROXY": "http://proxy:3128"}, "OURA_HOST"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "ouraring.com"}, "OURA_HOST"),
    ],
    ids=["upper case", "lower case", "all", "not for https", "not for this host"],
)
def test_a_proxy_that_is_in_use_is_named(world, monkeypatch, environment, advice, fault):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    world.oura.fail(SLEEP, fault, times=9)
    problem = world.run().failed()
    assert problem == (
        f"2026-06-10: could not reach Oura: {fault} (6 tries); check the network and {advice}"
    )


def test_a_proxy_is_not_blamed_for_a_local_server(run_at, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ended = run_at(f"http://127.0.0.1:{port}")
    assert ended.failed().endswith("; check the network and OURA_HOST")


@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
@pytest.mark.parametrize("url", ["socks5://localhost:9050", "socks://localhost", "SOCKS4://x"])
def test_a_socks_proxy_is_named(world, monkeypatch, name, url):
    monkeypatch.setenv(name, url)
    assert world.run().failed(2).startswith("SOCKS proxies are not supported; ")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_limit_of_the_machine_is_no_bug(world, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(oura_to_petals.THREADS, "submit", fail)
    assert world.run().failed().startswith("this machine has no memory or no thread left: ")


@pytest.mark.parametrize("fault", TRANSIENT, ids=name)
def test_a_proposal_is_made_again(world, fault):
    """It can store nothing."""
    world.petals = Petals(known=("oura_hrv", "oura_sleep_minutes"))
    world.petals.fail(SINGLE, fault, times=3)
    assert world.run() == Ended(0, PUSHED, "")
    assert len(world.petals.asked(SINGLE)) == 4
    assert world.petals.stored_once()


def test_an_array_is_sent_again(array_world):
    array_world.petals.fail(BULK, SLOW, httpx.Response(500))
    assert array_world.run().code == 0
    assert len(array_world.petals.rows) == 3


@pytest.mark.parametrize(
    "fault", [SLOW, REFUSED, *map(httpx.Response, (301, 400, 401, 403, 429, 500, 503))], ids=name
)
def test_a_list_that_fails_decides_nothing(world, fault):
    world.petals.fail(LIST, fault, times=9)
    ended = world.run("-v")
    assert (ended.code, ended.out) == (0, PUSHED)
    assert ended.err.count("; going on without the list") == 1
    assert world.petals.stored_once()
    tries = 6 if fault is REFUSED else 1  # what is not reached is not asked
    assert len(world.petals.asked(LIST)) == tries
    world.petals.fail(LIST, fault, times=9)
    assert world.run() == Ended(0, PUSHED, "")


FOREIGN = [
    answer(200, ok=False, error="maintenance"),
    answer(200),
    answer(200, captive=True),
    answer(200, metrics=None),
    answer(200, metrics={}),
    httpx.Response(200, json=[]),
    httpx.Response(200, text='{"metrics": [{"slug"'),
    httpx.Response(204),
    HTML,
]
FOREIGN_IDS = [
    "maintenance",
    "empty",
    "captive",
    "null",
    "object",
    "array",
    "cut off",
    "204",
    "page",
]


@pytest.mark.parametrize("strange", FOREIGN, ids=FOREIGN_IDS)
class TestStrangeAnswers:
    """Something else answers in place of Petals, or of its list."""

    def test_no_night_counts_as_stored(self, world, strange):
        for path in (LIST, SINGLE, BULK):
            world.petals.fail(path, strange, times=99)
        world.oura.fill(7)
        for options in ([], ["--days", "7", "--quiet"]):
            ended = world.run(*options)
            assert (ended.code, "Pushed 3" in ended.out) == (1, False)
            assert world.petals.stored == {}
            said = "Petals did not say how many of 3 observations it stored"
            assert said in ended.err or "no JSON object" in ended.err

    def test_a_list_is_told_and_decides_nothing(self, world, strange):
        world.petals.fail(LIST, strange)
        ended = world.run()
        assert (ended.code, ended.out, len(ended.problems)) == (0, PUSHED, 1)
        assert ended.problems[0].startswith(f"Petals list answered {strange.status_code}: no ")
        assert ended.problems[0].endswith("; check PETALS_HOST; going on without the list")
        assert world.petals.stored_once()

    def test_a_check_fails(self, world, strange):
        world.petals.fail(LIST, strange)
        ended = world.run("--check", day=None)
        assert (ended.code, "accepted" in ended.out) == (1, False)
        assert ended.problems[0].startswith(f"Petals: list answered {strange.status_code}: no ")


def test_a_list_that_hangs_takes_ten_seconds(world, monkeypatch):
    assert oura_to_petals.LIST_SECONDS == 10
    monkeypatch.setattr(oura_to_petals, "LIST_SECONDS", 0.1)
    world.petals.fail(LIST, hang)
    world.oura.fill(7)
    started = time.monotonic()
    assert world.run("--days", "7").code == 0
    assert time.monotonic() - started < 2
    assert len(world.petals.stored) == 7
    assert len(world.petals.asked(LIST)) == 1


def test_verbose_shows_each_try_and_no_key(world):
    world.petals.fail(BULK, httpx.Response(503, text="busy"), REFUSED)
    ended = world.run("-v")
    assert ended.code == 0
    assert ended.err.count("oura_to_petals: ") == len(ended.problems)
    reasons = [f"{IN_BULK} answered 503: busy", f"could not reach Petals: {REFUSED} (2 tries)"]
    for reason, pause in zip(reasons, world.waited, strict=True):
        assert f"{reason}; next try in {pause:.1f} seconds" in ended.problems
    assert "POST https://petals.chat/api/memory/metrics/observations/bulk" in ended.err
    assert KEY not in ended.err
    assert TOKEN not in ended.err


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("seconds", [0, 7, 60])
def test_retry_after_is_the_wait(world, status, seconds):
    world.petals.fail(BULK, later(status, seconds))
    assert world.run().code == 0
    assert world.waited == [seconds]


@pytest.mark.parametrize("header", ["-1", "1.5", "soon", "Wed, 10 Jun 2026 08:00:00 GMT", "٣", ""])
def test_any_other_retry_after_is_ignored(world, header):
    world.petals.fail(BULK, httpx.Response(503, headers=[(b"Retry-After", header.encode())]))
    assert world.run().code == 0
    assert 0.8 <= world.waited[0] <= 1.2


@pytest.mark.parametrize(
    ("seconds", "limit"), [("61", 115.0), ("3600", 115.0), ("9" * 400, 115.0), ("30", 20.0)]
)
def test_a_retry_after_that_is_too_long(world, monkeypatch, seconds, limit):
    monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", limit)
    world.petals.fail(BULK, later(429, seconds))
    assert world.run().failed().endswith(f"; try again in {float(seconds):.0f} seconds")
    assert world.waited == []
    assert len(world.petals.asked(BULK)) == 1


def test_one_cause_is_one_line(world):
    for path in READS:
        world.oura.fail(path, httpx.Response(401))
    assert "Oura" in world.run().failed()


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
    ids=[
        "a message", "a list", "two fields", "a key", "two keys", "a key at the end", "long",
        "control characters", "a long tag", "no field", "nothing", "a page",
    ],
)  # fmt: skip
def test_a_server_is_quoted_without_keys(world, body, said):
    text = body if isinstance(body, str) else json.dumps(body)
    world.petals.fail(BULK, httpx.Response(400, text=text))
    problem = world.run().failed()
    assert said in problem
    assert KEY not in problem


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("path", "service_name"), [(READINESS, "Oura"), (BULK, "Petals")])
def test_a_page_in_between_is_not_the_service(world, path, service_name, status):
    page = httpx.Response(status, html="<h1>Blocked</h1>")
    service(world, path).fail(path, page, times=9)
    problem = world.run().failed()
    assert f"; something between here and {service_name} refused this" in problem
    for word in ("membership", "keys expire", "--login"):
        assert word not in problem


SPELLINGS = [  # of +, / and =
    "+/=",
    "%2B%2F%3D",
    "%2b%2f%3d",
    "+\\/=",
    "\\u002b\\u002F\\u003d",
    "&#43;&#x2F;&#x3D;",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("form", ["text", "JSON"])
def test_a_key_is_masked_in_every_spelling(world, monkeypatch, spelling, form):
    monkeypatch.setenv("PETALS_API_KEY", "petals-a+/=")
    said = f"key petals-a{spelling} is unknown"
    echo = httpx.Response(400, text=said) if form == "text" else answer(400, message=said)
    world.petals.fail(BULK, echo)
    assert ": key *** is unknown;" in world.run().failed()


@pytest.mark.parametrize(
    "page",
    [
        httpx.Response(200, text="["),
        httpx.Response(200, text="[" * 100_000),
        httpx.Response(200, json=[]),
        answer(200),
        answer(200, data=None),
        answer(200, data={"score": 1}),
        answer(200, data=[readiness(), 5]),
        httpx.Response(200, text='{"data": [], "next_token": "\\ud800"}'),
        httpx.Response(204),
    ],
    ids=[
        "no JSON", "deep", "an array", "no data", "null", "an object", "a number in it",
        "half a character", "nothing",
    ],
)  # fmt: skip
def test_a_page_in_another_form_fails_the_read(world, page):
    world.oura.fail(DAILY_SLEEP, page)
    assert world.run().failed().startswith("2026-06-10: Oura daily_sleep")
    assert world.petals.stored == {}


def test_pages_without_end_fail_the_read(world, monkeypatch):
    monkeypatch.setattr(oura_to_petals, "MAX_PAGES", 20)
    world.oura.fail(SLEEP, *[answer(200, data=[], next_token=f"{n}") for n in range(99)])
    assert "Oura sleep has more than 20 pages" in world.run().failed()
    assert len(world.oura.asked(SLEEP)) == 20


def fail_sleep(world, status, page):
    """Answer the first or the second page of `sleep` with this status, in every try."""
    world.oura.page = 1

    def fault(request):
        is_second = "next_token" in request.url.params
        return httpx.Response(status) if is_second == (page == 2) else None

    world.oura.fail(SLEEP, fault, times=9)


class TestFailingSleep:
    """Without the sessions a day is incomplete, and would replace the complete one in Petals."""

    @pytest.mark.parametrize("page", [1, 2])
    @pytest.mark.parametrize("status", [404, 403, 500])
    def test_seven_stored_days_stay_as_they_were(self, week, status, page):
        stored = {before(n): VALUES for n in range(7)}
        assert week.run("--days", "7").code == 0
        assert week.petals.stored == stored
        fail_sleep(week, status, page)
        ended = week.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert f"Oura sleep answered {status}" in ended.err
        assert len(week.petals.asked(BULK)) == 7
        assert week.petals.stored == stored

    @pytest.mark.parametrize(
        ("status", "page", "metrics", "totals", "code"),
        [
            (404, 1, "default", [25_920, 25_920], 0),
            (500, 2, "default", [25_920, 25_920], 0),
            (404, 1, "oura-readiness,oura-hrv", [25_920, 0], 0),
            (404, 1, "oura-readiness,oura-sleep-score", [25_920, 25_920], 0),
            (401, 1, "default", [25_920, 25_920], 1),
            (403, 2, "default", [25_920, 25_920], 1),
            (429, 1, "default", [25_920, 25_920], 1),
            (404, 2, "oura-readiness,oura-hrv", [None, None], 1),
            (404, 2, "default", [25_920, None], 1),
            (404, 1, "default", [], 1),
            (404, 1, "default,oura-hrv-ms", [25_920, 25_920], 1),
        ],
    )
    def test_is_ignored_on_an_array_server(
        self, array_world, monkeypatch, status, page, metrics, totals, code
    ):
        monkeypatch.setenv("OURA_METRICS", metrics)
        array_world.oura.fill(2)
        array_world.oura.collections["daily_sleep"] = [
            daily_sleep(before(n), total_sleep_duration=total) for n, total in enumerate(totals)
        ]
        fail_sleep(array_world, status, page)
        ended = array_world.run("--days", "2")
        assert ended.code == code
        assert (f"Oura sleep answered {status}" in ended.err) == bool(code)
        assert len(array_world.petals.stored) == (0 if code else 2)

    def test_is_shown_with_verbose(self, array_world):
        ended = array_world.run("-v")
        assert "404 Not Found" in ended.err
        pushed = "Pushed 3 observations for 2026-06-10."
        assert ended.out == f"{pushed} Slept 7h12, readiness 82, HRV balance 77.\n"


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
def test_an_impossible_value_fails_its_day(world, collection, document, field):
    world.oura.collections[collection][0] |= document
    expected = f"2026-06-10: Oura {collection} {field} is not a number from 0 to "
    assert world.run().failed().startswith(expected)
    assert world.petals.stored == {}


def test_no_day_has_sessions_of_25_hours(world):
    sessions = world.oura.collections["sleep"]
    sessions[:] = [{**sessions[0], "id": n, "total_sleep_duration": 45_000} for n in range(2)]
    problem = world.run().failed()
    assert "Oura sleep total_sleep_duration is not a number from 0 to 86400" in problem


def test_an_impossible_value_of_another_day(world):
    world.oura.collections["daily_readiness"].append(readiness(before(1), score="bad"))
    assert world.run().code == 0


def test_a_bug_is_one_line_without_keys(world, monkeypatch):
    def bug(*_, **__):
        raise RuntimeError(KEY)

    monkeypatch.setattr(httpx.Client, "send", bug)  # a library raises it
    problem = world.run().failed()
    number = re.fullmatch(r"a bug, RuntimeError in line (\d+): please report it", problem)[1]
    assert "client." in SCRIPT.read_text().splitlines()[int(number) - 1]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (SLEEP, "no answer from Oura sleep within 115 seconds"),
        (BULK, f"no answer from {IN_BULK} within 115 seconds"),
    ],
)
def test_the_time_limit_says_who_has_not_answered(world, path, said):
    service(world, path).fail(path, time_runs_out)
    assert world.run().failed() == f"2026-06-10: {said}"
    assert world.petals.stored == {}


def test_the_time_limit_names_all_that_are_silent(world):
    both_asked = threading.Barrier(2, timeout=10)

    def run_out(_):
        both_asked.wait()
        time_runs_out()

    def stay_silent(_):
        both_asked.wait()
        hang()

    world.oura.fail(READINESS, run_out)
    world.oura.fail(SLEEP, stay_silent)
    said = "no answer from Oura daily_readiness and Oura sleep within 115 seconds"
    assert world.run().failed() == f"2026-06-10: {said}"


def test_the_time_limit_of_a_slow_run_blames_nobody(world):
    world.petals.fail(BULK, httpx.Response(503), time_runs_out)
    assert world.run().failed() == "2026-06-10: not finished within 115 seconds"


def test_a_dripping_header_does_not_outlast_the_limit(world, monkeypatch):
    """Each byte is a sign of life, so no time-out of a client ends this."""
    server = socket.create_server(("127.0.0.1", 0))

    def drip():
        with server, server.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not hanging_ends.wait(0.01):
                connection.sendall(b"x")

    threading.Thread(target=drip, daemon=True).start()
    monkeypatch.setenv("PETALS_HOST", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 0.3)
    monkeypatch.setattr(oura_to_petals, "LIST_SECONDS", 0.1)
    world.router.route(host="127.0.0.1").pass_through()
    started = time.monotonic()
    assert f": no answer from Petals list and {IN_BULK} within " in world.run().failed()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("value", ["/nowhere/at/all", __file__], ids=["none", "wrong"])
def test_wrong_certificates_are_exit_2(world, monkeypatch, value):
    monkeypatch.setattr(httpx, "create_ssl_context", CREATE_SSL_CONTEXT)
    monkeypatch.setenv("SSL_CERT_FILE", value)
    problem = world.run().failed(2)
    assert problem.startswith("the certificates cannot be loaded (")
    assert problem.endswith("): check SSL_CERT_FILE, SSL_CERT_DIR")


@pytest.fixture
def run_at(world, monkeypatch):
    """Run with real connections, to one host for both services."""

    def run(host) -> Ended:
        monkeypatch.setenv("OURA_HOST", host)
        monkeypatch.setenv("PETALS_HOST", host)
        return world.run()

    world.router.stop()
    yield run
    world.router.start()


def test_a_proxy_at_an_impossible_port(run_at, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{10**24}")
    ended = run_at("https://services.example")
    assert ended.code in (1, 2)
    assert "a bug" not in ended.err


def test_a_local_server_needs_no_proxy(run_at, monkeypatch, world):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with local_server(world.oura, world.petals) as host:
        ended = run_at(host)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("path", [SLEEP, BULK])
def test_a_long_answer_is_given_up(world, monkeypatch, path):
    chunks = iter([b" " * 2**19] * 100)
    monkeypatch.setattr(oura_to_petals, "MAX_BYTES", 2**20)
    service(world, path).fail(path, httpx.Response(200, content=chunks))
    assert "answered 200: no JSON object of at most 8 MiB; check " in world.run().failed()
    assert len(list(chunks)) > 90
    assert world.petals.stored == {}


def test_a_strange_answer_is_read_at_once(world):
    world.petals.fail(BULK, httpx.Response(400, text="<" * 2**20))
    assert "Petals observations/bulk answered 400: " in world.run().failed()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (gzip.compress(json.dumps({"data": [readiness()]}).encode()), ""),
        (gzip.compress(b" " * (2**20 + 1)), "Oura daily_readiness answered 200: no JSON object"),
        (b"{}", "Oura daily_readiness: the request failed: "),
    ],
    ids=["compressed", "too long", "not compressed"],
)
def test_a_compressed_answer_has_the_same_limit(world, monkeypatch, body, problem):
    monkeypatch.setattr(oura_to_petals, "MAX_BYTES", 2**20)
    headers = {"Content-Encoding": "gzip"}
    packed = httpx.Response(200, stream=httpx.ByteStream(body), headers=headers)
    world.oura.fail(READINESS, packed, times=4)
    ended = world.run()
    assert ended.code == bool(problem)
    assert problem in ended.err
