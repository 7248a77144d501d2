"""A fault that passes costs nothing. Any other one is told in one line, and nothing is lost."""

from __future__ import annotations

import json
import re
import socket

import httpx
import pytest

import oura_to_petals

# isort: off
from fakes import BULK, DAILY_SLEEP, READINESS, READS, SLEEP
from fakes import CERTIFICATE, DAY, GONE, KEY, PAGE, PUSHED, REFUSED, SCRIPT, SLOW, TOKEN
from fakes import Ended, answer, before, daily_sleep, later, local_server, readiness, well

CREATE_SSL_CONTEXT = httpx.create_ssl_context
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
IMPOSSIBLE = ["[1::2::3]", "xn--a.example", "a..b.example", ".example", f"{'a' * 64}.example"]

FAULTS = [  # how a request fails, how often it is tried, and whether that ends the run
    *((httpx.Response(status), 1, True) for status in (401, 403, 404, 426)),
    *((httpx.Response(status), 1, False) for status in (301, 400, 422, 501, 505)),
    (httpx.Response(429), 4, True),
    *((httpx.Response(s), 4, False) for s in (408, 500, 503, 507, 530)),
    *((fault, 6, True) for fault in (REFUSED, GONE, httpx.ConnectTimeout("timed out"))),
    (SLOW, 2, True),
    *((httpx.ReadError(why), 2, True) for why in ("[Errno 104] Connection reset by peer", "")),
    (httpx.RemoteProtocolError("peer closed connection"), 2, True),
    (CERTIFICATE, 1, True),
    (PAGE, 1, False),
]


@pytest.mark.parametrize(("fault", "tries", "ends"), FAULTS, ids=repr)
class TestEachKindOfFailure:
    def test_at_a_read(self, world, fault, tries, ends):
        world.oura.fail(SLEEP, fault, times=9)
        problem = world.run().failed()
        what = str(fault.status_code) if isinstance(fault, httpx.Response) else str(fault)
        assert all(word in problem for word in (what, "Oura"))
        assert len(world.oura.asked(SLEEP)) == tries
        assert world.waited == [1, 2, 4, 8, 16][: tries - 1]
        assert world.petals.requests == []

    def test_at_a_day_of_which_the_next_one_may_follow(self, week, fault, tries, ends):
        """The form was accepted on the day before, and is kept."""
        week.petals.fail(BULK, well, *[fault] * tries)
        ended = week.run("--days", "3")
        assert ended.code == 1
        expected = [before(2), *[before(1)] * tries, *([] if ends else [before(0)])]
        assert week.petals.pushed == expected
        assert len(week.petals.asked(BULK)) == len(expected)
        assert before(1) in ended.problems[0]
        assert ended.command == ["--date", before(0), "--days", "2"]

    def test_is_forgotten_when_it_passes(self, world, fault, tries, ends):
        world.oura.fail(SLEEP, *[fault] * (tries - 1))
        world.petals.fail(BULK, *[fault] * (tries - 1))
        assert world.run() == Ended(0, PUSHED, "")
        assert world.petals.stored_once()


def test_of_several_failed_reads_the_one_that_no_try_helps_is_told(world):
    for path, fault in zip(READS, (GONE, httpx.Response(401), httpx.Response(500)), strict=True):
        world.oura.fail(path, fault, times=9)
    assert "401" in world.run().failed()
    assert world.waited == []


@pytest.mark.parametrize("path", [SLEEP, BULK])
@pytest.mark.parametrize(("status", "seconds"), [(408, 7), (429, 0), (500, 7), (503, 60)])
def test_retry_after_takes_the_place_of_a_pause(world, path, status, seconds):
    world.fail(path, later(status, seconds))
    assert world.run() == Ended(0, PUSHED, "")
    assert world.waited == [seconds]


@pytest.mark.parametrize("seconds", ["61", "3600", "9" * 400])
def test_a_longer_retry_after_means_that_this_try_was_the_last(world, seconds):
    world.petals.fail(BULK, httpx.Response(503), later(429, seconds))
    problem = world.run().failed()
    assert "429" in problem
    assert len(seconds) > 9 or f"{seconds} seconds" in problem
    assert (world.waited, len(world.petals.asked(BULK))) == ([1], 2)


@pytest.mark.parametrize("header", ["-1", "1.5", "soon", "Wed, 10 Jun 2026 08:00:00 GMT", "٣", ""])
def test_any_other_retry_after_is_ignored(world, header):
    world.petals.fail(BULK, httpx.Response(503, headers=[(b"Retry-After", header.encode())]))
    assert world.run().code == 0
    assert world.waited == [1]


@pytest.mark.parametrize(("seconds", "tries"), [(59, 1), (61, 2)])
def test_an_answer_that_still_comes_in_pieces_after_a_minute_is_a_failure(
    world, monkeypatch, seconds, tries
):
    clock = [0.0]
    monkeypatch.setattr(oura_to_petals, "monotonic", lambda: clock[0])

    def drip(request):
        def pieces():
            yield b'{"inserted": '
            clock[0] += seconds
            yield b"3"
            yield b"}"

        return httpx.Response(200, content=pieces())

    world.petals.fail(BULK, drip, drip)
    ended = world.run()
    assert (ended.code, len(world.petals.asked(BULK))) == (tries - 1, tries)
    assert ("no answer" in ended.err) == (tries == 2)


# --- The network of this machine ---------------------------------------------------------------


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


def test_a_proxy_that_fails_is_told_without_its_password(world):
    said = "407 Proxy Authentication Required for http://me:hunter22@proxy"
    world.oura.fail(SLEEP, httpx.ProxyError(said), times=9)
    problem = world.run("-v").err
    assert all(variable in problem for variable in VARIABLES)
    assert "hunter22" not in problem
    assert len(world.oura.asked(SLEEP)) == 6


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("url", "code"),
    [*((url, 2) for url in ("ftp://x", "http://x:y", "socks4://x", "http://[::1:80")),
     ("http://x:999999", 1)],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_told(run_at, monkeypatch, variable, url, code):
    monkeypatch.setenv(variable, url.replace("//x", "//me:hunter22@127.0.0.1"))
    problem = run_at("https://services.example").failed(code)
    assert "hunter22" not in problem
    assert code == 1 or all(name in problem for name in VARIABLES)


def test_a_server_on_this_machine_needs_no_proxy(run_at, monkeypatch, world):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with local_server(world.oura, world.petals) as host:
        assert run_at(host) == Ended(0, PUSHED, "")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "OURA_HOST" in run_at(f"http://127.0.0.1:{port}").failed()


@pytest.mark.parametrize("host", IMPOSSIBLE)
def test_an_impossible_host_is_no_bug(run_at, host):
    assert "OURA_HOST" in run_at(f"https://{host}").failed()


@pytest.mark.parametrize("value", ["/nowhere/at/all", __file__], ids=["none", "wrong"])
def test_wrong_certificates_are_exit_2(world, monkeypatch, value):
    monkeypatch.setattr(httpx, "create_ssl_context", CREATE_SSL_CONTEXT)
    monkeypatch.setenv("SSL_CERT_FILE", value)
    assert "SSL_CERT_FILE" in world.run().failed(2)


# --- What is said, and what is not -------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fault", "advice"),
    [
        (READINESS, 400, "OURA_HOST"), (DAILY_SLEEP, 401, "--login"), (SLEEP, 403, "membership"),
        (SLEEP, 426, "app"), (SLEEP, 429, "--wait"), (BULK, 429, "--wait"), (BULK, 502, "later"),
        (BULK, 401, "PETALS_API_KEY from the environment"), (BULK, 403, "expire"),
        (BULK, 404, "PETALS_HOST"), (BULK, PAGE, "PETALS_HOST"), (BULK, SLOW, "PETALS_HOST"),
    ],
)  # fmt: skip
def test_a_failure_is_told_in_one_line_with_what_to_do(world, path, fault, advice):
    fault = httpx.Response(fault) if isinstance(fault, int) else fault
    world.fail(path, fault, times=9)
    problem = world.run().failed()
    assert advice in problem.partition("; ")[2]
    assert path.rpartition("/")[2] in problem.partition("; ")[0]


def test_verbose_shows_each_try_and_no_key(world):
    world.petals.fail(BULK, answer(503, message="busy"), REFUSED)
    ended = world.run("-v")
    assert (ended.code, ended.out) == (0, PUSHED)
    requests = [*world.oura.requests, *world.petals.requests]
    addresses = [f"{request.method} {request.url}" for request in requests]
    assert all(said in ended.err for said in (*addresses, "503", "busy", str(REFUSED)))
    assert not any(secret in ended.err for secret in (KEY, TOKEN))
    for request in requests:  # each key goes to its service only
        sent = f"{request.headers!r} {request.headers.raw} {request.url} {request.content!r}"
        is_oura = request.url.host == "api.ouraring.com"
        assert (TOKEN in sent, KEY in sent) == (is_oura, not is_oura)
    assert world.run().err == ""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        *(({key: "a reason"}, "a reason") for key in ("message", "detail", "title", "error")),
        ({"error": "invalid", "error_description": "a reason"}, "a reason"),
        ({"detail": [{"msg": "bad date"}]}, "bad date"),
        ({"message": f"{'x' * 195}{KEY}"}, "xxx***"),
        ({"message": "a\r\nb\u2028c\x1b[31m\x00d\u202e"}, "a b c [31m d"),
        ({"message": "y" * 300, "trace": "a trace"}, "y" * 190),
        ({"trace": "a trace"}, "409"),
        (["a trace"], "409"),
        ("a trace", "409"),
        (f"<html>a trace {KEY}</html>", "409"),
    ],
)  # fmt: skip
def test_only_the_words_for_an_error_are_quoted(world, body, said):
    text = body if isinstance(body, str) else json.dumps(body)
    world.petals.fail(BULK, httpx.Response(409, text=text))
    problem = world.run().failed()
    assert said in problem
    assert not any(hidden in problem for hidden in (KEY, "a trace", "y" * 201, "\x1b"))


@pytest.mark.parametrize("spelling", ["a+/=b c", "a%2B%2F%3Db", "A%2b%2f%3dB"])
def test_a_key_is_masked_as_it_is_and_percent_encoded(world, monkeypatch, spelling):
    monkeypatch.setenv("PETALS_API_KEY", "petals-a+/=b")
    monkeypatch.setenv("OURA_TOKEN", "Oura")  # too short: it would mask words
    world.oura.tokens = {"Oura"}
    world.petals.fail(BULK, answer(409, message=f"key petals-{spelling} at Oura"))
    problem = world.run("-v").err
    assert all(said in problem for said in ("key ***", "at Oura"))
    assert "petals-a" not in problem.lower()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("path", "service_name"), [(READINESS, "Oura"), (BULK, "Petals")])
def test_a_page_in_between_is_not_the_service(world, path, service_name, status):
    world.fail(path, httpx.Response(status, html="<h1>Blocked</h1>"))
    problem = world.run().failed()
    assert f"between here and {service_name}" in problem
    assert not any(word in problem for word in ("membership", "expire", "--login", "Blocked"))


def test_a_bug_is_one_line_without_keys(world, monkeypatch):
    def bug(*_, **__):
        raise RuntimeError(KEY)

    monkeypatch.setattr(httpx.Client, "send", bug)  # a library raises it
    problem = world.run().failed()
    assert "RuntimeError" in problem
    number = int(re.search(r"line (\d+)", problem)[1])
    assert "client." in SCRIPT.read_text().splitlines()[number - 1]


@pytest.mark.parametrize(
    "page",
    [
        *(httpx.Response(200, text=text) for text in ("[", "[" * 100_000, "[]", "{}")),
        *(answer(200, data=data) for data in (None, {"score": 1}, [readiness(), 5])),
        *(answer(200, data=[readiness(), {"day": day}]) for day in (None, f"{DAY}T07:00", "soon")),
        answer(200, data=[readiness(), {"score": 1}]),
        httpx.Response(204),
    ],
)
def test_a_page_in_another_form_fails_the_read(world, page):
    world.oura.fail(DAILY_SLEEP, page)
    assert world.run().failed().startswith("2026-06-10: Oura daily_sleep ")
    assert world.petals.requests == []


def test_pages_without_end_fail_the_read(world, monkeypatch):
    monkeypatch.setattr(oura_to_petals, "MAX_PAGES", 20)
    world.oura.fail(SLEEP, *[answer(200, data=[], next_token=f"{n}") for n in range(99)])
    assert "Oura sleep" in world.run().failed()
    assert len(world.oura.asked(SLEEP)) == 20


@pytest.mark.parametrize("path", [SLEEP, BULK])
def test_a_long_answer_is_given_up(world, monkeypatch, path):
    chunks = iter([b" " * 2**19] * 100)
    monkeypatch.setattr(oura_to_petals, "MAX_BYTES", 2**20)
    world.fail(path, httpx.Response(200, content=chunks), answer(400))
    assert "8 MiB" in world.run().failed()
    assert len(list(chunks)) > 90
    assert world.petals.stored == {}


# --- A collection that fails -------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 2], ids=["first page", "second page"])
@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("status", [404, 403, 500])
def test_stored_days_stay_as_they_were_if_not_all_is_read(week, path, status, page):
    """An incomplete day would replace the complete one in Petals."""
    assert week.run("--days", "7").code == 0
    stored = week.petals.stored

    def fault(request):
        is_second = "next_token" in request.url.params
        return answer(status, detail="Sorry") if is_second == (page == 2) else None

    week.oura.page = 4
    week.oura.fail(path, fault, times=9)
    ended = week.run("--days", "7")
    assert (ended.code, len(week.petals.asked(BULK)), week.petals.stored) == (1, 7, stored)
    for fact in (before(6), before(0), path.rpartition("/")[2], str(status), "Sorry"):
        assert fact in ended.problems[0]


@pytest.mark.parametrize(
    ("status", "metrics", "totals", "code"),
    [
        (404, "default", [25_920, 25_920], 0), (404, "oura-readiness", [25_920, 0], 0),
        *((status, "default", [25_920, 25_920], 1) for status in (401, 403, 429, 500)),
        (404, "default", [25_920, None], 1), (404, "default", [], 1),
        (404, "default,oura-hrv-ms", [25_920, 25_920], 1),
    ],
)  # fmt: skip
def test_only_a_404_of_an_unneeded_sleep_is_no_failure(
    array_world, choose, status, metrics, totals, code
):
    choose(metrics)
    array_world.oura.fill(2)
    array_world.oura.collections["daily_sleep"] = [
        daily_sleep(before(n), total_sleep_duration=total) for n, total in enumerate(totals)
    ]
    array_world.oura.fail(SLEEP, answer(status), times=9)
    ended = array_world.run("--days", "2")
    assert (ended.code, str(status) in ended.err) == (code, bool(code))
    assert len(array_world.petals.stored) == (0 if code else 2)
