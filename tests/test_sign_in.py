"""`--login` signs in with Oura, and later runs renew that sign-in."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from conftest import SCRIPT, Clock, Ended, World
from services import KEY, TOKEN, Oura, Petals, local_server

import oura_to_petals

MonkeyPatch = pytest.MonkeyPatch
TOKEN_URL = "https://moi.ouraring.com/oauth/v2/ext/oauth-token"
OLD_TOKEN_URL = "https://api.ouraring.com/oauth/token"
CLIENT = {"client_id": "the-client", "client_secret": "s3cret"}
RENEWAL = {"grant_type": "refresh_token", "refresh_token": "refresh-1", **CLIENT}
FILE = Path(".local/state/oura-to-petals/oura-token.json")
READS = ("/daily_readiness", "/daily_sleep", "/sleep")
REDIRECT = "https://my.example/callback/"
ADDRESS = f"{REDIRECT}?code=the-code&state=the-state"
NEW = ("access-2", "refresh-2", TOKEN_URL)
REFUSAL = f"{REDIRECT}?error=access_denied&error_description=You+said+no&state=the-state"
GOOD = "GET /callback/?code=the-code&state=the-state"


def tokens() -> tuple[str, str, str]:
    """Return what the token file contains."""
    content = json.loads(FILE.read_text())
    return content["access_token"], content["refresh_token"], content["token_url"]


def write_tokens(number: int = 1, **more: object) -> bytes:
    """Write a token file and return its bytes."""
    content = {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}"}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps({**content, "token_url": TOKEN_URL, **more}))
    return FILE.read_bytes()


def forms(oura: Oura) -> list[dict[str, str]]:
    """Return the forms that the token addresses were sent."""
    posts = [request for request in oura.requests if request.method == "POST"]
    return [dict(httpx.QueryParams(request.content.decode())) for request in posts]


def pause(until: threading.Event) -> Callable[[httpx.Request], None]:
    """Return a fault that delays the answer until an event."""

    def wait(_: httpx.Request) -> None:
        until.wait(10)

    return wait


def visit(port: int, method: str, path: str) -> tuple[int, str]:
    """Return the status and the page that a browser receives."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    connection.request(method, path)
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    return response.status, response.read().decode()


@pytest.fixture
def application(world: World, monkeypatch: MonkeyPatch) -> World:
    """Settings with an application at Oura and without a personal access token."""
    monkeypatch.delenv("OURA_TOKEN")
    monkeypatch.setenv("OURA_CLIENT_ID", "the-client")
    monkeypatch.setenv("OURA_CLIENT_SECRET", "s3cret")
    monkeypatch.setenv("OURA_REDIRECT_URI", REDIRECT)
    return world


@pytest.fixture
def signed_in(application: World) -> World:
    """A sign-in whose access token Oura accepts."""
    application.oura.tokens = {"access-1"}
    write_tokens()
    return application


@pytest.fixture
def expired(signed_in: World) -> World:
    """A sign-in whose access token Oura refuses."""
    signed_in.oura.tokens = set()
    return signed_in


@pytest.fixture
def port(monkeypatch: MonkeyPatch) -> int:
    """A free port on this machine, to which the browser is redirected."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    monkeypatch.setenv("OURA_REDIRECT_URI", f"http://localhost:{port}/callback/")
    return port


@dataclass
class Login:
    """`--login` with a pipe as stdin and without a browser."""

    world: World
    oura: Oura
    monkeypatch: MonkeyPatch
    stdin: int

    @property
    def codes(self) -> list[str]:
        """The codes that were sent to Oura."""
        return [form["code"] for form in forms(self.oura)]

    def paste(self, *lines: str, options: tuple[str, ...] = ()) -> Ended:
        """Sign in with these lines, and then the end of input."""
        os.write(self.stdin, "".join(f"{line}\n" for line in lines).encode())
        os.close(self.stdin)
        return self.world.run("--login", *options, day=None)

    def browse(self, port: int, *requests: str) -> tuple[Ended, list[tuple[int, str]]]:
        """Sign in with a browser that makes these requests; return the pages as well."""
        pages: list[tuple[int, str]] = []

        def make_requests() -> None:
            try:
                for request in requests:
                    pages.append(visit(port, *request.split()))
            finally:
                os.close(self.stdin)

        browser = threading.Thread(target=make_requests)
        self.monkeypatch.setattr(webbrowser, "open", lambda _: browser.start())
        self.monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        ended = self.world.run("--login", "--verbose", day=None)
        browser.join(5)
        assert not re.search("the-code|s3cret|access-2|refresh-2", f"{pages}{ended}")
        return ended, pages


@pytest.fixture
def login(application: World, monkeypatch: MonkeyPatch) -> Iterator[Login]:
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: "the-state")
    monkeypatch.setattr(webbrowser, "open", lambda _: None)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    stdin = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    yield Login(application, application.oura, monkeypatch, writing)
    os.dup2(stdin, 0)
    os.close(stdin)


class TestLogin:
    def test_a_sign_in_is_kept_and_used(self, login: Login) -> None:
        login.monkeypatch.delenv("OURA_REDIRECT_URI")
        login.monkeypatch.delenv("PETALS_API_KEY")
        ended = login.paste("the-code")
        assert (ended.code, ended.err) == (0, "")
        redirect = {"redirect_uri": "http://localhost:8080/callback/"}
        address, query = re.search(r"(https://cloud\S+)\?(\S+)", ended.out).groups()
        assert address == "https://cloud.ouraring.com/oauth/authorize"
        asked = {"response_type": "code", "client_id": "the-client", "scope": "daily", **redirect}
        assert dict(httpx.QueryParams(query)) == {**asked, "state": "the-state"}
        form = {"grant_type": "authorization_code", "code": "the-code", **redirect, **CLIENT}
        assert forms(login.oura) == [form]
        assert tokens() == NEW
        assert [stat.S_IMODE(path.stat().st_mode) for path in (FILE, FILE.parent)] == [0o600, 0o700]
        assert list(FILE.parent.iterdir()) == [FILE]
        assert f"The sign-in renews itself; its tokens are in {FILE.absolute()}" in ended.out
        command = f"{sys.executable} {oura_to_petals.SCRIPT} --check"
        assert ended.out.endswith(f"Next, check both services: {command}\n")
        assert login.oura.asked("/daily_readiness")
        login.monkeypatch.setenv("PETALS_API_KEY", KEY)
        assert login.world.run().code == 0

    @pytest.mark.parametrize("status", [400, 401])
    def test_a_refused_code_is_tried_at_the_old_address(self, login: Login, status: int) -> None:
        write_tokens()
        FILE.chmod(0o644)
        login.oura.fail("oauth-token", httpx.Response(status))
        assert login.paste("the-code").code == 0
        assert tokens() == ("access-2", "refresh-2", OLD_TOKEN_URL)
        assert stat.S_IMODE(FILE.stat().st_mode) == 0o600

    def test_a_set_token_url_is_the_only_one(self, login: Login) -> None:
        login.monkeypatch.setenv("OURA_TOKEN_URL", TOKEN_URL)
        login.oura.fail("oauth-token", httpx.Response(400))
        assert login.paste("the-code").code == 1
        assert [str(request.url) for request in login.oura.requests] == [TOKEN_URL]

    @pytest.mark.parametrize("name", ["folder", "file/tokens"])
    def test_a_file_that_cannot_be_written_is_reported_first(self, login: Login, name: str) -> None:
        Path("folder").mkdir()
        Path("file").touch()
        login.monkeypatch.setenv("OURA_TOKEN_FILE", os.path.abspath(name))
        ended = login.paste("the-code")
        assert (ended.code, ended.out, len(ended.problems)) == (2, "", 1)
        assert os.path.abspath(name) in ended.err

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(400, json={"error": "invalid_grant"}),
            httpx.Response(200, json={"access_token": "a"}),
            httpx.Response(200, json={"access_token": "two words", "refresh_token": "r"}),
            httpx.ReadTimeout("slow"),
        ],
    )
    def test_a_failed_exchange_keeps_an_older_file(self, login: Login, answer: Any) -> None:
        before = write_tokens()
        login.oura.fail("oauth-token", answer, times=2)
        login.oura.fail("/oauth/token", httpx.Response(401))
        ended = login.paste("the-code")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert FILE.read_bytes() == before

    @pytest.mark.parametrize("line", ["", "refused-code"])
    def test_a_failed_sign_in_is_no_sign_in(self, login: Login, line: str) -> None:
        assert login.paste(line).code == 1
        ended = login.world.run()
        assert ended.code == 2
        assert "not signed in: run " in ended.err

    def test_a_sign_in_that_cannot_read_is_reported(self, login: Login) -> None:
        login.oura.fail("/daily_readiness", httpx.Response(403))
        ended = login.paste("the-code")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "a permission is missing: sign in again with --login" in ended.err
        assert tokens() == NEW

    def test_oura_token_causes_a_warning(self, login: Login) -> None:
        login.monkeypatch.setenv("OURA_TOKEN", TOKEN)
        ended = login.paste("the-code", options=("--quiet",))
        assert ended.code == 0
        assert "OURA_TOKEN is set and " in ended.err
        (read,) = login.oura.asked("/sleep")
        assert read.headers["Authorization"] == "Bearer access-2"

    @pytest.mark.parametrize("name", ["OURA_CLIENT_ID", "OURA_CLIENT_SECRET"])
    def test_the_id_and_the_secret_are_needed(self, login: Login, name: str) -> None:
        login.monkeypatch.delenv(name)
        ended = login.paste("the-code")
        assert (ended.code, ended.out) == (2, "")
        assert f"not set: {name};" in ended.err

    def test_the_time_limit_does_not_count_the_wait_for_the_user(
        self, login: Login, clock: Clock
    ) -> None:
        login.monkeypatch.setattr(sys.stdout, "isatty", lambda: setattr(clock, "ahead", 1000))
        assert login.paste("the-code").code == 0

    def test_ctrl_c_ends_the_wait_for_the_user(self, login: Login) -> None:
        later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        login.monkeypatch.setattr(secrets, "token_urlsafe", lambda _: later.start() or "the-state")
        ended = login.world.run("--login", day=None)
        os.close(login.stdin)
        assert (ended.code, ended.err) == (130, "")

    @pytest.mark.parametrize(
        ("terminal", "ssh", "count"), [(True, "", 1), (False, "", 0), (True, "1.2.3.4", 0)]
    )
    def test_a_browser_is_opened_only_on_a_terminal_of_this_machine(
        self, login: Login, terminal: bool, ssh: str, count: int
    ) -> None:
        opened: list[str] = []
        login.monkeypatch.setattr(webbrowser, "open", opened.append)
        login.monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        if ssh:
            login.monkeypatch.setenv("SSH_CONNECTION", ssh)
        ended = login.paste("the-code")
        assert (ended.code, len(opened)) == (0, count)
        assert all(f"  {url}\n" in ended.out for url in opened)


class TestPasting:
    @pytest.mark.parametrize(
        "line",
        [
            ADDRESS,
            "  my.example/callback/?state=the-state&scope=daily&code=the-code#_=_ \r",
            "the-code",
            f'"{ADDRESS}"',
            f"'{ADDRESS}'",
            f"<{ADDRESS}>",
            f"\x1b[200~{ADDRESS}\x1b[201~",
            f"\n \n{ADDRESS}",
        ],
    )
    def test_the_address_or_the_code_signs_in(self, login: Login, line: str) -> None:
        ended = login.paste(line)
        assert (ended.code, ended.err, login.codes) == (0, "", ["the-code"])
        assert "the-code" not in ended.out
        assert "contains code=" not in ended.out

    @pytest.mark.parametrize(
        "line",
        [
            f"{REDIRECT}?code=another&state=wrong",
            f"{REDIRECT}?code=another",
            f"{REDIRECT}?state=the-state",
            f"{REDIRECT}?code=&state=the-state",
            "https://elsewhere.example/",
            "code=another",
            "two words",
        ],
    )
    def test_another_line_is_asked_for_again(self, login: Login, line: str) -> None:
        ended = login.paste(line, ADDRESS)
        assert (ended.code, ended.err, login.codes) == (0, "", ["the-code"])
        assert ended.out.count(f"begins with {REDIRECT} and contains code=") == 1

    @pytest.mark.parametrize(
        ("lines", "asked_again", "said"),
        [
            ([], 0, ""),
            (["", " "], 0, ""),
            (["two words"], 1, ""),
            (["two words"] * 4 + [ADDRESS], 3, ""),
            ([REFUSAL, ADDRESS], 0, "Oura refused the sign-in: access_denied You said no; "),
        ],
        ids=["end of input", "empty lines", "a wrong line", "four wrong lines", "refusal"],
    )
    def test_a_sign_in_without_a_code_fails(
        self, login: Login, lines: list[str], asked_again: int, said: str
    ) -> None:
        ended = login.paste(*lines)
        assert (ended.code, len(ended.problems), login.oura.requests) == (1, 1, [])
        assert said in ended.err
        assert "run --login again" in ended.err
        assert ended.out.count("contains code=") == asked_again


class TestBrowser:
    def test_only_the_redirect_of_this_sign_in_counts(self, login: Login, port: int) -> None:
        statuses = {
            "GET /favicon.ico": 404,
            "GET /?code=the-code&state=the-state": 404,
            "HEAD /callback/?code=the-code&state=the-state": 404,
            "POST /callback/?code=the-code&state=the-state": 404,
            "GET /callback/": 400,
            "GET /callback/?code=the-code": 400,
            "GET /callback/?code=the-code&state=wrong": 400,
            "GET /callback/?error=access_denied&state=wrong": 400,
            "GET /callback/?state=the-state": 400,
            "GET /callback/?code=&state=the-state": 400,
            GOOD: 200,
        }
        ended, pages = login.browse(port, *statuses)
        assert dict(zip(statuses, [page[0] for page in pages], strict=False)) == statuses
        assert (ended.code, login.codes) == (0, ["the-code"])
        assert "contains code=" not in ended.out

    @pytest.mark.parametrize(
        ("request_line", "said"),
        [
            (GOOD, "answered 400: the code *** is wrong, and so is ***; sign in again"),
            ("GET /callback/?error=no_consent&state=the-state", "no_consent; run --login again"),
        ],
    )
    def test_the_page_says_why_the_sign_in_failed(
        self, login: Login, port: int, request_line: str, said: str
    ) -> None:
        answer = {"error_description": "the code the-code is wrong, and so is s3cret"}
        for path in ("oauth-token", "/oauth/token"):
            login.oura.fail(path, httpx.Response(400, json=answer))
        ended, [(_, page)] = login.browse(port, request_line)
        assert ended.code == 1
        assert said in page
        assert page in ended.err

    def test_the_redirect_counts_after_a_wrong_line(self, login: Login, port: int) -> None:
        os.write(login.stdin, b"two words\n")
        ended, _ = login.browse(port, GOOD)
        assert (ended.code, login.codes) == (0, ["the-code"])
        assert ended.out.count("contains code=") == 1

    @pytest.mark.parametrize("taken", [False, True])
    def test_pasting_works_if_the_port_is_free_or_taken(
        self, login: Login, port: int, taken: bool
    ) -> None:
        with socket.create_server(("127.0.0.1", port if taken else 0)):
            ended = login.paste(f"http://localhost:{port}/callback/?code=the-code&state=the-state")
        assert (ended.code, ended.err) == (0, "")

    def test_an_impossible_port_is_ignored(self, login: Login) -> None:
        login.monkeypatch.setenv("OURA_REDIRECT_URI", "http://localhost:99999/callback/")
        ended = login.paste("the-code")
        assert (ended.code, ended.err) == (0, "")


class TestRenewal:
    @pytest.mark.parametrize("more", [{}, {"expires_at": 1}], ids=["new file", "old file"])
    def test_a_token_is_used_until_oura_refuses_it(self, signed_in: World, more: dict) -> None:
        before = write_tokens(**more)
        assert signed_in.run().code == 0
        assert forms(signed_in.oura) == []
        assert FILE.read_bytes() == before

    @pytest.mark.parametrize("more", [{}, {"expires_at": 9e9}], ids=["new file", "old file"])
    def test_a_refused_token_is_renewed_and_everything_read_again(
        self, expired: World, more: dict
    ) -> None:
        write_tokens(**more)
        FILE.chmod(0o600)
        ended = expired.run()
        assert (ended.code, ended.err) == (0, "")
        for path in READS:
            sent = [request.headers["Authorization"] for request in expired.oura.asked(path)]
            assert sent == ["Bearer access-1", "Bearer access-2"]
        assert tokens() == NEW
        assert stat.S_IMODE(FILE.stat().st_mode) == 0o600
        assert expired.run().code == 0
        assert forms(expired.oura) == [RENEWAL]

    def test_a_run_renews_the_token_once(self, expired: World) -> None:
        refused = httpx.Response(401)
        expired.oura.fail("/daily_readiness", refused, lambda _: None, refused)
        ended = expired.run("--days", "400")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "has expired: sign in again with --login; 1 of 400 days are in" in ended.err
        assert forms(expired.oura) == [RENEWAL]

    def test_a_newer_token_of_another_run_is_used(self, expired: World) -> None:
        expired.oura.tokens = {"access-2"}
        written = threading.Event()
        expired.oura.fail(READS[0], lambda _: written.set() if write_tokens(2) else None)
        for path in READS[1:]:
            expired.oura.fail(path, pause(written))
        assert expired.run().code == 0
        assert forms(expired.oura) == []

    def test_an_answer_without_a_refresh_token_keeps_the_old_one(self, expired: World) -> None:
        expired.oura.tokens = {"fresh"}
        expired.oura.fail("oauth-token", httpx.Response(200, json={"access_token": "fresh"}))
        assert expired.run().code == 0
        assert tokens() == ("fresh", "refresh-1", TOKEN_URL)

    @pytest.mark.parametrize("status", [400, 401])
    @pytest.mark.parametrize("days", ["1", "7"])
    def test_a_refused_renewal_ends_the_run_and_says_to_sign_in_again(
        self, expired: World, status: int, days: str
    ) -> None:
        before = FILE.read_bytes()
        expired.oura.fail("oauth-token", httpx.Response(status, json={"error": "invalid_grant"}))
        ended = expired.run("--days", days)
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "sign in again with --login" in ended.err
        assert "OURA_TOKEN " not in ended.err
        assert ("; 0 of 7 days are in" in ended.err) == (days == "7")
        assert forms(expired.oura) == [RENEWAL]
        assert FILE.read_bytes() == before

    @pytest.mark.parametrize("fault", [httpx.ReadTimeout("slow"), httpx.Response(500)])
    def test_a_lost_answer_is_worth_one_more_try(self, expired: World, fault: Any) -> None:
        expired.oura.fail("oauth-token", fault)
        assert expired.run().code == 0
        assert forms(expired.oura) == [RENEWAL, RENEWAL]

    @pytest.mark.parametrize(
        ("fault", "tries"), [(httpx.ReadTimeout("slow"), 2), (httpx.ConnectError("no route"), 4)]
    )
    def test_a_network_fault_is_no_reason_to_sign_in_again(
        self, expired: World, fault: httpx.TransportError, tries: int
    ) -> None:
        before = FILE.read_bytes()
        expired.oura.fail("oauth-token", fault, times=9)
        ended = expired.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert f"{fault} ({tries} tries); check the network and OURA_TOKEN_URL" in ended.err
        assert "--login" not in ended.err
        assert FILE.read_bytes() == before

    @pytest.mark.parametrize(
        "content",
        [
            "{",
            "[]",
            pytest.param("[" * 100_000, id="deep"),
            '{"access_token": "a"}',
            '{"access_token": "two words", "refresh_token": "b"}',
        ],
    )
    def test_a_broken_file_says_to_sign_in_again(self, signed_in: World, content: str) -> None:
        FILE.write_text(content)
        ended = signed_in.run()
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert str(FILE.absolute()) in ended.err
        assert "sign in again with --login" in ended.err
        assert FILE.read_text() == content
        assert signed_in.oura.requests == []

    def test_an_unreadable_file_is_named_with_the_reason(self, signed_in: World) -> None:
        FILE.unlink()
        FILE.mkdir()
        ended = signed_in.run()
        assert (bool(ended.code), ended.out, len(ended.problems)) == (True, "", 1)
        assert re.search(f"{FILE.absolute()}.*: Is a directory", ended.err)

    def test_a_full_disk_costs_no_token(self, expired: World, monkeypatch: MonkeyPatch) -> None:
        before = FILE.read_bytes()
        full = Mock(side_effect=OSError(28, "No space left on device"))
        monkeypatch.setattr(os, "fsync", full)
        ended = expired.run()
        assert (bool(ended.code), ended.out, len(ended.problems)) == (True, "", 1)
        assert re.search(f"{FILE.absolute()}.*: No space left on device", ended.err)
        assert forms(expired.oura) == []
        assert FILE.read_bytes() == before

    def test_a_mounted_file_is_overwritten(self, expired: World, monkeypatch: MonkeyPatch) -> None:
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, Mock(side_effect=OSError(16, "Device busy")))
        assert expired.run().code == 0
        assert tokens() == NEW
        assert list(FILE.parent.iterdir()) == [FILE]

    def test_file_locks_are_not_needed(self, expired: World, monkeypatch: MonkeyPatch) -> None:
        monkeypatch.setattr(oura_to_petals, "fcntl", None)
        assert expired.run().code == 0
        assert tokens() == NEW

    @pytest.mark.parametrize("setting", ["", TOKEN_URL])
    def test_the_kept_token_url_is_used_if_none_is_set(
        self, expired: World, monkeypatch: MonkeyPatch, setting: str
    ) -> None:
        monkeypatch.setenv("OURA_TOKEN_URL", setting)
        write_tokens(token_url=OLD_TOKEN_URL)
        assert expired.run().code == 0
        (asked,) = [request for request in expired.oura.requests if request.method == "POST"]
        assert str(asked.url) == (setting or OLD_TOKEN_URL)

    def test_a_personal_token_wins(self, expired: World, monkeypatch: MonkeyPatch) -> None:
        monkeypatch.setenv("OURA_TOKEN", TOKEN)
        monkeypatch.delenv("OURA_CLIENT_ID")
        expired.oura.tokens = {TOKEN}
        assert expired.run().code == 0

    def test_another_file_can_be_named(self, expired: World, monkeypatch: MonkeyPatch) -> None:
        FILE.rename("tokens.json")
        monkeypatch.setenv("OURA_TOKEN_FILE", "~/tokens.json")
        assert expired.run().code == 0
        assert "refresh-2" in Path("tokens.json").read_text()

    def test_tokens_in_an_answer_are_masked(self, expired: World) -> None:
        echo = httpx.Response(400, json={"message": "access-1 refresh-1 refresh-2 access-2 s3cret"})
        expired.oura.fail("/daily_readiness", httpx.Response(401), echo)
        assert ": *** *** *** *** ***; " in expired.run().err


class TestInterruptions:
    def test_the_time_limit_does_not_cut_a_renewal(self, expired: World, clock: Clock) -> None:
        expired.oura.fail("oauth-token", clock.to_the_end)
        ended = expired.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "no answer from " in ended.err
        assert tokens() == NEW

    def test_a_renewal_is_not_started_late(self, expired: World, monkeypatch: MonkeyPatch) -> None:
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 29.0)
        ended = expired.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "too little time is left to renew the sign-in; run again" in ended.err
        assert expired.oura.asked("oauth-token") == []

    def test_waiting_for_a_lock_is_limited(self, expired: World, monkeypatch: MonkeyPatch) -> None:
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 0.1)
        with FILE.open() as file:
            oura_to_petals.fcntl.flock(file, oura_to_petals.fcntl.LOCK_EX)
            ended = expired.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "no answer from " in ended.err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_does_not_cut_a_renewal(self, expired: World, number: int) -> None:
        def interrupt(_: httpx.Request) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.05)

        expired.oura.fail("oauth-token", interrupt)
        ended = expired.run()
        assert (ended.code, len(ended.problems)) == (130, 1)
        assert "interrupted" in ended.err
        assert tokens() == NEW

    def test_the_file_is_whole_at_every_moment_of_a_renewal(self, expired: World) -> None:
        seen: set[bytes] = set()
        file = FILE.absolute()

        def look(frame: FrameType, event: str, _: object) -> None:
            """Read the file after each call by the script of a function that is written in C."""
            if event == "c_return" and frame.f_code.co_filename == str(SCRIPT):
                seen.add(file.read_bytes())

        threading.setprofile(look)
        try:
            assert expired.run().code == 0
        finally:
            threading.setprofile(None)
        kept = {json.loads(content)["refresh_token"] for content in seen}
        assert kept == {"refresh-1", "refresh-2"}


class TestProcesses:
    @pytest.fixture
    def oura(self) -> Iterator[Oura]:
        oura = Oura()
        oura.tokens = set()
        with local_server(oura, Petals()) as oura.host:
            write_tokens(token_url=f"{oura.host}/oauth-token")
            yield oura

    def start(self, oura: Oura, *argv: str, **env: str) -> subprocess.Popen[str]:
        env |= {"OURA_CLIENT_ID": "the-client", "OURA_CLIENT_SECRET": "s3cret"}
        env |= {"OURA_HOST": oura.host, "PETALS_HOST": oura.host, "PETALS_API_KEY": KEY}
        env |= {"HOME": str(Path.cwd())}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([sys.executable, SCRIPT, *argv], env=env, text=True, **pipes)

    def test_runs_at_once_spend_the_refresh_token_once(self, oura: Oura) -> None:
        both_read = threading.Event()
        for path in READS:
            oura.fail(path, pause(both_read), lambda _: both_read.set())
        for run in [self.start(oura), self.start(oura)]:
            assert (run.communicate(timeout=10)[1], run.returncode) == ("", 0)
        assert forms(oura) == [RENEWAL]

    @pytest.mark.parametrize(
        ("number", "ended"),
        [(signal.SIGINT, (130, "refresh-2")), (signal.SIGKILL, (-9, "refresh-1"))],
    )
    def test_a_renewal_is_finished_unless_the_run_is_killed(
        self, oura: Oura, number: int, ended: tuple[int, str]
    ) -> None:
        asked, answer = threading.Event(), threading.Event()
        oura.fail("oauth-token", lambda request: asked.set() or pause(answer)(request))
        run = self.start(oura)
        assert asked.wait(10)
        for _ in range(2):
            run.send_signal(number)
            time.sleep(0.05)
        answer.set()
        assert "Traceback" not in run.communicate(timeout=10)[1]
        assert (run.returncode, tokens()[1]) == ended

    def test_the_redirect_ends_a_sign_in_while_stdin_is_open(self, oura: Oura, port: int) -> None:
        urls = {"OURA_REDIRECT_URI": f"http://127.0.0.1:{port}/callback/"}
        run = self.start(oura, "--login", OURA_TOKEN_URL=f"{oura.host}/oauth-token", **urls)
        printed = (re.search(r"&state=([\w-]+)", line) for line in run.stdout)
        state = next(filter(None, printed))[1]
        assert len(state) > 20
        page = visit(port, "GET", f"/callback/?code=the-code&state={state}")
        assert page == (200, "You are signed in. You can close this tab.")
        assert run.wait(10) == 0
        assert "the-code" not in run.stdout.read() + run.stderr.read()
        assert tokens()[1] == "refresh-2"
