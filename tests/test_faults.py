"""Whatever happens, it ends well: the night is delivered, or one line says why not."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from conftest import Ended, World
from services import DAY, KEY, Petals, hang, local_server, readiness, session

import oura_to_petals

READS = ["/daily_readiness", "/daily_sleep", "/sleep"]
LIST = "/metrics/list"
SINGLE = "/metrics/observations"
BULK = "/observations/bulk"
THE_THREE = {"oura_readiness": 82, "oura_hrv": 77, "oura_sleep_minutes": 432}

PASSING = [
    httpx.ConnectError("[Errno 111] Connection refused"),
    httpx.ConnectError("[Errno -3] Temporary failure in name resolution"),
    httpx.ConnectTimeout("timed out"),
    httpx.ReadTimeout("The read operation timed out"),
    httpx.ReadError("[Errno 104] Connection reset by peer"),
    httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
    *map(httpx.Response, (408, 429, 500, 502, 503, 504)),
]


def name(fault: object) -> str:
    return str(fault.status_code) if isinstance(fault, httpx.Response) else repr(fault)


def stand(world: World, path: str) -> object:
    return world.oura if path in READS else world.petals


def run_that_fails(world: World, path: str, fault: object) -> tuple[str, int]:
    """The line of a run that this fault fails, and how often it asked. What was stored stays."""
    world.run()
    before = len(stand(world, path).asked(path))
    stand(world, path).fail(path, fault, times=9)
    ended = world.run()
    assert (ended.code, ended.out) == (1, "")
    (problem,) = ended.problems
    assert world.petals.stored == {"2026-06-10": THE_THREE}
    return problem, len(stand(world, path).asked(path)) - before


@pytest.mark.parametrize("fault", PASSING, ids=name)
@pytest.mark.parametrize("path", ["/sleep", LIST, BULK])
def test_a_fault_that_passes_costs_nothing(
    world: World, waited: list[float], path: str, fault: object
) -> None:
    stand(world, path).fail(path, fault, times=3)
    ended = world.run()
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.stored == {"2026-06-10": THE_THREE}
    for pause, about in zip(waited, (1, 2, 4), strict=True):
        assert 0.7 * about <= pause <= 1.3 * about


@pytest.mark.parametrize("fault", PASSING[1::3], ids=name)
@pytest.mark.parametrize("path", [*READS, LIST, BULK])
def test_a_fault_that_does_not_pass_is_told_after_four_tries(
    world: World, path: str, fault: object
) -> None:
    problem, asked = run_that_fails(world, path, fault)
    assert problem.startswith("oura_to_petals: 2026-06-10: ")
    assert "Oura" in problem if path in READS else "Petals" in problem
    assert "4 tries" in problem
    if isinstance(fault, httpx.Response) and fault.status_code != 408:
        assert problem.endswith("; try again later")
    assert asked == 4


def test_the_guides_array_may_be_repeated(guide_world: World) -> None:
    guide_world.petals.fail(BULK, httpx.ReadTimeout("slow"), httpx.Response(500))
    assert guide_world.run().code == 0
    assert len(guide_world.petals.rows) == 3


@pytest.mark.parametrize("fault", PASSING, ids=name)
def test_the_single_endpoint_is_repeated_only_where_nothing_was_done(
    world: World, fault: object
) -> None:
    world.use(Petals(known=("oura_hrv", "oura_sleep_minutes")))
    world.petals.fail(SINGLE, fault)
    ended = world.run()
    repeated = isinstance(fault, (httpx.ConnectError, httpx.ConnectTimeout)) or (
        isinstance(fault, httpx.Response) and fault.status_code in (429, 503)
    )
    assert len(world.petals.asked(SINGLE)) == (2 if repeated else 1)
    assert ended.code == (0 if repeated else 1)
    assert len(world.petals.stored["2026-06-10"]) == (3 if repeated else 2)


@pytest.mark.parametrize(
    ("header", "pauses"),
    [("7", [7]), ("60", [60]), ("0", [0])],
)
def test_retry_after_is_honoured(
    world: World, waited: list[float], header: str, pauses: list[float]
) -> None:
    world.petals.fail(BULK, httpx.Response(429, headers={"Retry-After": header}))
    assert world.run().code == 0
    assert waited == pauses


@pytest.mark.parametrize("header", ["-1", "1.5", "soon", "Wed, 10 Jun 2026 08:00:00 GMT", "٣", ""])
def test_another_retry_after_is_ignored(world: World, waited: list[float], header: str) -> None:
    headers = [(b"Retry-After", header.encode())]
    world.petals.fail(BULK, httpx.Response(503, headers=headers))
    assert world.run().code == 0
    assert 0.7 <= waited[0] <= 1.3


@pytest.mark.parametrize("header", ["61", "3600", "9" * 400])
def test_a_longer_retry_after_is_not_begun(world: World, waited: list[float], header: str) -> None:
    world.petals.fail(BULK, httpx.Response(429, headers={"Retry-After": header}))
    ended = world.run()
    assert (ended.code, waited) == (1, [])
    assert header in ended.err or "inf" in ended.err
    assert len(world.petals.asked(BULK)) == 1


def test_a_retry_after_that_does_not_fit_in_the_run_is_not_begun(
    world: World, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 20.0)
    world.petals.fail(BULK, httpx.Response(429, headers={"Retry-After": "30"}))
    ended = world.run()
    assert (ended.code, waited) == (1, [])
    assert "30 seconds" in ended.err


@pytest.mark.parametrize(
    ("path", "fault", "words"),
    [
        ("/daily_readiness", httpx.Response(400), ["answered 400", "OURA_TOKEN and OURA_HOST"]),
        ("/daily_sleep", httpx.Response(401), ["answered 401", "OURA_TOKEN"]),
        ("/sleep", httpx.Response(403), ["answered 403", "membership", "permission"]),
        ("/daily_sleep", httpx.Response(404), ["answered 404", "OURA_HOST"]),
        ("/daily_sleep", httpx.Response(426), ["answered 426", "app", "phone"]),
        (LIST, httpx.Response(401), ["answered 401", "PETALS_API_KEY", "year"]),
        (LIST, httpx.Response(403), ["answered 403", "PETALS_API_KEY", "year"]),
        (LIST, httpx.Response(204), ["answered 204", "PETALS_HOST"]),
        (LIST, httpx.Response(400), ["answered 400", "PETALS_API_KEY and PETALS_HOST"]),
        (BULK, httpx.Response(401), ["answered 401", "PETALS_API_KEY", "year"]),
        (BULK, httpx.Response(300), ["answered 300", "points to nowhere"]),
        (BULK, httpx.Response(404), ["answered 404", "PETALS_HOST"]),
        (BULK, httpx.Response(413), ["answered 413", "PETALS_HOST"]),
        (BULK, httpx.Response(501), ["answered 501", "later"]),
        *(
            (
                path,
                httpx.Response(status, headers={"Location": "https://elsewhere.example/x"}),
                [f"answered {status}", "https://elsewhere.example/x", "not followed"],
            )
            for path, status in [("/daily_sleep", 302), (LIST, 301), (BULK, 307)]
        ),
        (BULK, httpx.Response(304), ["answered 304", "nowhere"]),
        *(
            (BULK, httpx.Response(307, headers=[(b"Location", target)]), ["answered 307", "points"])
            for target in (b"mailto:x@y", b"https://\xff\xfe.com/", b"//[", b"https://a..b/")
        ),
        (
            "/sleep",
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
            ["CERTIFICATE_VERIFY_FAILED", "OURA_HOST"],
        ),
        (
            BULK,
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
            ["CERTIFICATE_VERIFY_FAILED", "PETALS_HOST"],
        ),
        (BULK, httpx.DecodingError("Error -3 while decompressing data"), ["decompressing"]),
        (BULK, httpx.ReadError(""), ["ReadError"]),
    ],
    ids=lambda value: name(value) if not isinstance(value, (str, list)) else None,
)
def test_a_fault_that_stays_is_told_and_not_repeated(
    world: World, path: str, fault: object, words: list[str]
) -> None:
    problem, asked = run_that_fails(world, path, fault)
    for word in words:
        assert word in problem
    if not isinstance(fault, httpx.ReadError):
        assert asked == 1


def test_one_cause_is_one_line_and_two_services_are_two(world: World) -> None:
    for path in READS:
        world.oura.fail(path, httpx.Response(401))
    ended = world.run()
    assert len(ended.problems) == 1
    for path in READS:
        world.oura.fail(path, httpx.Response(500), times=4)
    world.petals.fail(LIST, httpx.Response(401))
    ended = world.run()
    assert (ended.code, len(ended.problems)) == (1, 2)
    assert "Oura" in ended.problems[0]
    assert "Petals" in ended.problems[1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"message": "no such key"}, ": no such key;"),
        ({"detail": [{"msg": "bad date"}]}, ': [{"msg": "bad date"}];'),
        ({"error": "invalid", "error_description": "in words"}, ": in words;"),
        ({"message": f"key {KEY} is unknown"}, ": key *** is unknown;"),
        ({"message": f"key {KEY[:10]}\n{KEY[10:]} is unknown"}, ": key *** is unknown;"),
        ({"message": f"{'x' * 195}{KEY}"}, f": {'x' * 195}***;"),
        ({"message": "y" * 300}, f": {'y' * 199}…;"),
        ({"message": "a\r\nb\u2028c\x1b[31m\x00d\u202e"}, ": a b c [31m d;"),
        ({"message": [f"key {KEY[:10]}\n{KEY[10:]}"]}, '["key ***"]'),
        (f"{'<' + 'a' * 9970}> key {KEY}", ": key ***;"),
        (f"key {KEY[:9]}\u200b{KEY[9:]}", ": key ***;"),
        ({}, "answered 400: {};"),
        ("", "answered 400; "),
        ("<html><h1>Bad gateway</h1></html>", ": Bad gateway;"),
    ],
)
def test_the_servers_reason_is_told_in_a_line_without_secrets(
    world: World, body: object, said: str
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    world.petals.fail(BULK, httpx.Response(400, text=text))
    ended = world.run()
    assert said in ended.err
    assert len(ended.problems) == 1
    assert KEY not in ended.err


@pytest.mark.parametrize(
    "page",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, text="["),
        httpx.Response(200, text="[" * 100_000),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"data": None}),
        httpx.Response(200, json={"data": {"score": 1}}),
        httpx.Response(200, json={"data": [readiness(), 5]}),
        httpx.Response(200, json={"data": [], "next_token": "again"}),
        httpx.Response(200, json={"data": [], "next_token": 5}),
        httpx.Response(204),
    ],
)
@pytest.mark.parametrize("path", ["/daily_sleep", "/sleep"])
def test_an_answer_of_another_form_is_a_failure(
    world: World, path: str, page: httpx.Response
) -> None:
    world.oura.fail(path, page, times=2)
    ended = world.run()
    assert (ended.code, ended.out) == (1, "")
    (problem,) = ended.problems
    assert f"Oura {path[1:]}" in problem
    assert world.petals.stored == {}


def test_ever_new_pages_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oura_to_petals, "MOST_PAGES", 20)
    pages = (httpx.Response(200, json={"data": [], "next_token": f"{n}"}) for n in range(99))
    world.oura.fail("/sleep", *pages)
    ended = world.run()
    assert "without end" in ended.err
    assert len(world.oura.asked("/sleep")) == 21


def nan(text: str) -> object:
    """A number that JSON does not have and Python reads."""
    return float(text)


NO_NUMBERS = ["82", True, [82], {"value": 82}, nan("nan"), nan("inf"), nan("-inf"), -1, 10**400]


@pytest.mark.parametrize(
    ("collection", "document", "field"),
    [
        *(("daily_readiness", {"score": one}, "score") for one in [*NO_NUMBERS, 101]),
        *(
            ("daily_readiness", {"contributors": {"hrv_balance": one}}, "contributors.hrv_balance")
            for one in [*NO_NUMBERS, 100.5]
        ),
        *(
            ("daily_readiness", {"contributors": one}, "contributors.hrv_balance")
            for one in ([77], 5, 0, "77", False)
        ),
        *(
            (collection, {"total_sleep_duration": one}, "total_sleep_duration")
            for collection in ("daily_sleep", "sleep")
            for one in [*NO_NUMBERS, 86_401]
        ),
        *(("sleep", {"average_hrv": one}, "average_hrv") for one in NO_NUMBERS),
    ],
)
def test_a_value_that_cannot_be_is_told_and_nothing_of_the_day_is_sent(
    world: World, collection: str, document: dict, field: str
) -> None:
    world.oura.collections[collection][0] |= document
    ended = world.run()
    assert (ended.code, ended.out) == (1, "")
    (problem,) = ended.problems
    for word in (collection, field, "2026-06-10"):
        assert word in problem
    assert world.petals.stored == {}


def test_sessions_that_are_longer_than_a_day_together_cannot_be(world: World) -> None:
    world.oura.collections["sleep"] = [session(seconds=50_000), session(seconds=50_000)]
    ended = world.run()
    assert ended.code == 1
    assert "sleep total_sleep_duration" in ended.err


@pytest.mark.parametrize("day", [None, 5, "yesterday", "2026-6-10", ["2026-06-10"], ""])
def test_a_document_without_a_readable_day_is_told_and_left_out(world: World, day: object) -> None:
    world.oura.collections["daily_readiness"].append({"day": day, "score": "no matter"})
    ended = world.run()
    assert ended.code == 1
    (problem,) = ended.problems
    assert "daily_readiness" in problem
    assert world.petals.stored == {"2026-06-10": THE_THREE}


def test_such_a_document_is_no_matter_where_it_is_not_needed(world: World) -> None:
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = 25_920
    world.oura.collections["sleep"].append({"day": None})
    ended = world.run()
    assert (ended.code, ended.err) == (0, "")


def test_a_wrong_value_of_another_day_is_no_matter(world: World) -> None:
    world.oura.collections["daily_readiness"].append(readiness("2026-06-09", score="bad"))
    assert world.run().code == 0


def test_a_bug_ends_in_one_line_without_a_secret(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError(KEY)

    monkeypatch.setattr(oura_to_petals, "read_nights", bug)
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert "RuntimeError" in ended.err
    assert KEY not in ended.err


class TestSurroundings:
    @pytest.fixture(autouse=True)
    def real_certificates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(httpx, "create_ssl_context", CREATE_SSL_CONTEXT)

    @pytest.mark.parametrize("proxy", ["nonsense://user:hunter2@proxy", "http://[::1:80"])
    @pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
    def test_a_proxy_that_cannot_be_used_is_exit_2(
        self, world: World, monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str
    ) -> None:
        monkeypatch.setenv(variable, proxy)
        ended = world.run()
        assert (ended.code, ended.out, len(ended.problems)) == (2, "", 1)
        assert "HTTPS_PROXY" in ended.err
        assert "hunter2" not in ended.err

    @pytest.mark.parametrize("content", [None, "no certificate"])
    def test_a_bad_certificate_file_is_exit_2(
        self, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: object, content: str | None
    ) -> None:
        file = tmp_path / "certificates.pem"
        if content:
            file.write_text(content)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        ended = world.run()
        assert (ended.code, ended.out, len(ended.problems)) == (2, "", 1)
        assert "SSL_CERT_FILE" in ended.err

    def test_only_one_tls_context_is_made(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        make = ssl.create_default_context
        monkeypatch.setattr(
            ssl, "create_default_context", lambda **options: made.append(1) or make(**options)
        )
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
        oura_to_petals.open_client()
        assert made == [1]


CREATE_SSL_CONTEXT = httpx.create_ssl_context


@contextmanager
def raw_server(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that says what respx cannot: bytes, when it likes."""
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65_536)
                talk(connection, done)
            except OSError:
                pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        listener.close()


def silence(_: socket.socket, done: threading.Event) -> None:
    done.wait()


def drip(before: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def talk(connection: socket.socket, done: threading.Event) -> None:
        connection.sendall(before)
        while not done.wait(0.02):
            connection.sendall(b"x")

    return talk


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


class TestWhatOnlyARealServerCanDo:
    @pytest.fixture
    def run(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        both_keys: None,
        waited: list[float],
    ) -> Callable[[str], Ended]:
        def run(host: str) -> Ended:
            monkeypatch.setenv("OURA_HOST", host)
            monkeypatch.setenv("PETALS_HOST", host)
            code = oura_to_petals.main(["--date", str(DAY)])
            return Ended(code, *capsys.readouterr())

        return run

    @pytest.mark.parametrize(
        "talk", [silence, drip(b""), drip(b"HTTP/1.1 200 OK\r\nX: "), drip(HEAD)],
        ids=["silence", "status drips", "header drips", "body drips"],
    )  # fmt: skip
    def test_a_server_that_never_ends_is_given_up(
        self, run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch, talk: object
    ) -> None:
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 0.15)
        started = time.monotonic()
        with raw_server(talk) as host:
            ended = run(host)
        assert time.monotonic() - started < 2
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert "given up" in ended.err

    def test_a_resolver_that_hangs_is_given_up(
        self, run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 0.2)
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        ended = run("https://hangs.example")
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)

    def test_a_proxys_port_that_is_none_is_told(
        self, run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{10**24}")
        ended = run("https://services.example")
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 2)
        assert "a bug" not in ended.err

    def test_a_flood_is_abandoned(
        self, run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(oura_to_petals, "MOST_BYTES", 2**20)

        def flood(connection: socket.socket, done: threading.Event) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not done.is_set():
                connection.sendall(b" " * 65_536)

        with raw_server(flood) as host:
            ended = run(host)
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 2)
        assert "over 1 MiB" in ended.err

    def test_answers_are_asked_for_uncompressed(self, world: World) -> None:
        world.run()
        for request in [*world.oura.requests, *world.petals.requests]:
            assert request.headers["Accept-Encoding"] == "identity"

    @pytest.fixture
    def run_packed(
        self, run: Callable[[str], Ended], world: World
    ) -> Callable[[bytes, World], Ended]:
        def run_packed(body: bytes) -> Ended:
            answer = httpx.Response(
                200, stream=httpx.ByteStream(body), headers={"Content-Encoding": "gzip"}
            )
            world.oura.fail("/daily_readiness", answer)
            world.router.stop()
            with local_server(world.oura, world.petals) as host:
                ended = run(host)
            world.router.start()
            return ended

        return run_packed

    @pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
    def test_a_server_that_compresses_all_the_same_is_understood(
        self, run_packed: Callable[[bytes], Ended], pack: Callable[[bytes], bytes]
    ) -> None:
        assert run_packed(pack(json.dumps({"data": [readiness()]}).encode())).code == 0

    @pytest.mark.parametrize(
        ("body", "words"), [(gzip.compress(b" " * 10**8), "over 8 MiB"), (b"{}", "header check")]
    )
    def test_what_cannot_be_unpacked_is_abandoned(
        self, run_packed: Callable[[bytes], Ended], body: bytes, words: str
    ) -> None:
        ended = run_packed(body)
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert words in ended.err

    def test_a_page_that_cannot_be_asked_for_is_a_failure(self, world: World) -> None:
        page = httpx.Response(200, text='{"data": [], "next_token": "\\ud800"}')
        world.oura.fail("/daily_sleep", page)
        ended = world.run()
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert "Oura daily_sleep" in ended.err

    def test_a_local_server_is_asked_past_any_proxy(
        self, run: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch, world: World
    ) -> None:
        world.router.stop()
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with local_server(world.oura, world.petals) as host:
            ended = run(host)
        world.router.start()
        assert (ended.code, ended.err) == (0, "")
