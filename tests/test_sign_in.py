"""`--login` signs in with Oura, and later runs renew that sign-in."""

import base64
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shlex
import signal
import socket
import stat
import struct
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from unittest.mock import Mock

import fakes
import httpx
import pytest
from fakes import BULK, DAY, GONE, KEY, PUSHED, READINESS, READS, SLEEP, SLOW, TOKENS, Ended, answer

import oura_to_petals

CLIENT = {"client_id": "the-client", "client_secret": "s3cret"}
RENEWAL = {"grant_type": "refresh_token", "refresh_token": "refresh-1", **CLIENT}
FILE = Path(".local/state/oura-to-petals/oura-token.json")
OLD = {"access_token": "access-1", "refresh_token": "refresh-1"}
NEW = {"access_token": "access-2", "refresh_token": "refresh-2"}

REDIRECT = "https://localhost/callback/"
ADDRESS = f"{REDIRECT}?code=the-code&state=the-state"
GOOD = "GET /callback/?code=the-code&scope=extapi:daily&state=the-state HTTP/1.1\r\n\r\n"
WAIT, WEEK = ["--wait"], ["--days", "7"]
by_code_and_token = pytest.mark.parametrize("by_code", [True, False], ids=["code", "refresh token"])


def login_command():
    return shlex.join([sys.executable, str(oura_to_petals.SCRIPT), "--login"])


def tokens():
    """What the token file has."""
    return json.loads(FILE.read_text())


def missing(text, *facts):
    """The facts that a text does not have."""
    return [str(fact) for fact in facts if str(fact) not in text]


def address_in(text):
    """The address at which the user is asked to agree."""
    found = re.search(r"(http\S+\?\S*response_type=\S+)", text)
    return found[1] if found else ""


def press(number):
    """A fault that sends a signal to the thread that waits for the answer."""
    return lambda _: signal.pthread_kill(threading.get_ident(), number)


def connect(port):
    """Connect as soon as somebody listens, and once more."""

    def connects():
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True

    fakes.wait_until(connects, "a listener")
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def visit(port, request=GOOD):
    """The status that a browser gets."""
    with connect(port) as browser:
        browser.sendall(request.encode())
        page = b"".join(iter(lambda: browser.recv(9999), b"")).decode()
    assert "the-code" not in page
    return int(page.split()[1])


@pytest.fixture
def signed_in(world, monkeypatch):
    """A sign-in whose access token Oura refuses."""
    monkeypatch.delenv("OURA_TOKEN")
    for name, value in {**CLIENT, "redirect_uri": REDIRECT}.items():
        monkeypatch.setenv(f"OURA_{name.upper()}", value)
    world.oura.tokens = set()
    fakes.write(FILE, json.dumps(OLD))
    return world


@pytest.fixture
def port(monkeypatch):
    """A free port of this machine, to which the browser is redirected."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    monkeypatch.setenv("OURA_REDIRECT_URI", f"http://localhost:{number}/callback/")
    return number


class Login:
    """`--login` with a pipe as stdin."""

    def __init__(self, world, stdin):
        self.world, self.oura, self.stdin = world, world.oura, stdin

    def close(self):
        """End the input."""
        if self.stdin:
            os.close(self.stdin)
            self.stdin = 0

    def paste(self, *lines, options=()):
        """Sign in with these lines, and then the end of input."""
        os.write(self.stdin, "".join(f"{line}\n" for line in lines).encode("latin-1"))
        self.close()
        return self.world.run("--login", *options, day=None)

    def fails(self, *lines):
        """The one problem of a sign-in that fails with these lines."""
        done = self.paste(*lines)
        assert (done.code, len(done.problems)) == (1, 1), done
        return done.problems[0]

    def during(self, act, seconds=20):
        """Sign in while a thread does something. Ctrl-C ends what takes too long."""
        thread = threading.Thread(target=act, daemon=True)
        rescue = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), 2))
        thread.start()
        rescue.start()
        done = self.world.run("--login", "--verbose", day=None)
        rescue.cancel()
        thread.join(10)
        assert not re.search("the-code|s3cret|access-|refresh-", str(done)), "a secret is shown"
        return done


@pytest.fixture
def login(signed_in, monkeypatch):
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: "the-state")
    assert oura_to_petals.LOGIN_SECONDS == 900
    monkeypatch.setattr(oura_to_petals, "LOGIN_SECONDS", 10)  # if a test goes wrong
    stdin = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    login = Login(signed_in, writing)
    yield login
    login.close()
    os.dup2(stdin, 0)
    os.close(stdin)


@pytest.fixture
def by_sign_in(served, signed_in):
    """Both services on a local port, and the sign-in in place of a personal token."""
    host = served.env["OURA_HOST"]
    served.oura.tokens = set()
    served.env |= {f"OURA_{name.upper()}": value for name, value in CLIENT.items()}
    served.env |= {"OURA_AUTHORIZE_URL": f"{host}/authorize", "OURA_TOKEN_URL": f"{host}{TOKENS}"}
    del served.env["OURA_TOKEN"]
    return served


class TestLogin:
    def test_from_the_address_to_the_first_night(self, cron, by_sign_in, port):
        FILE.unlink()
        FILE.parent.rmdir()
        redirect = f"http://localhost:{port}/callback/"
        run = cron.start("--login", **by_sign_in.env, OURA_REDIRECT_URI=redirect)
        end = threading.Timer(20, run.kill)
        end.start()
        shown = ""
        while not address_in(shown) and (line := run.stdout.readline()):
            shown += line
        back = httpx.URL(by_sign_in.oura.authorize(address_in(shown)))
        assert visit(port, f"GET {back.raw_path.decode()} HTTP/1.1\r\n\r\n") == 200
        assert run.wait(10) == 0  # while its stdin is still open
        end.cancel()
        shown += run.stdout.read()
        command = shlex.join([sys.executable, str(cron.script.resolve()), "--date", "today"])
        assert not missing(shown, redirect, FILE.absolute(), command)
        assert run.stderr.read() == ""
        (form,) = by_sign_in.oura.forms
        assert re.fullmatch(r"[\w.~-]{43,128}", form["code_verifier"], re.ASCII)
        assert form["code_verifier"] not in shown
        assert len(back.params["state"]) > 20
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (FILE, FILE.parent)]
        assert (modes, list(FILE.parent.iterdir())) == ([0o600, 0o700], [FILE])
        assert cron.run("--date", str(DAY), **by_sign_in.env) == Ended(0, PUSHED, "")

    def test_oura_is_asked_for_the_permission_daily(self, login, monkeypatch):
        place = "https://moi.ouraring.com/oauth/v2/ext/oauth"
        monkeypatch.delenv("OURA_REDIRECT_URI")
        monkeypatch.delenv("PETALS_API_KEY")
        done = login.paste(ADDRESS)
        sent_to = str(login.oura.requests[0].url)
        assert (done.code, done.err, sent_to) == (0, "", f"{place}-token")
        url = httpx.URL(address_in(done.out))
        assert str(url.copy_with(query=None)) == f"{place}-authorize"
        digest = hashlib.sha256(b"the-state").digest()  # each random text is the same here
        redirect = {"redirect_uri": "http://localhost:8080/callback/"}
        assert dict(url.params) == {
            "response_type": "code", "client_id": "the-client", "prompt": "consent",
            "scope": "extapi:daily daily", "state": "the-state", "code_challenge_method": "S256",
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="), **redirect,
        }  # fmt: skip
        form = {"grant_type": "authorization_code", "code": "the-code", **redirect, **CLIENT}
        assert login.oura.forms == [{**form, "code_verifier": "the-state"}]

    @pytest.mark.parametrize("scope", [None, "", "extapi:daily", "daily", "email extapi:daily"])
    def test_daily_is_granted_with_or_without_prefix(self, login, scope):
        FILE.chmod(0o644)
        login.oura.scope = scope
        assert login.paste(ADDRESS).code == 0
        assert (tokens(), stat.S_IMODE(FILE.stat().st_mode)) == (NEW, 0o600)

    @pytest.mark.parametrize("has_older", [True, False], ids=["older file", "no file"])
    @pytest.mark.parametrize(
        "fault",
        [
            answer(400, error="invalid_grant"), answer(200, access_token="a"),
            answer(200, access_token="two words", refresh_token="r"),
            answer(200, access_token="a", refresh_token=""),
            answer(200, **NEW, scope="email"),
            answer(200, **NEW, scope="extapi:daily_activity heartrate"),
        ],
    )  # fmt: skip
    def test_a_failed_sign_in_changes_nothing(self, login, fault, has_older):
        if not has_older:
            FILE.unlink()
        login.oura.fail(TOKENS, fault)
        problem = login.fails(ADDRESS)
        assert login_command() in problem
        assert ("permission daily" in problem) == ("scope" in fault.text)
        assert login.oura.asked(READINESS) == []
        if has_older:
            assert tokens() == OLD
        else:
            assert not missing(login.world.run().failed(code=2), FILE.absolute(), login_command())

    def test_a_refused_code_or_redirect_names_the_setting_first(self, login):
        """To sign in again alone leads in a circle."""
        problem = login.fails(ADDRESS.replace("the-code", "another"))
        assert not missing(problem, "400", "OURA_REDIRECT_URI", login_command())
        assert problem.index("OURA_REDIRECT_URI") < problem.index(login_command())

    @pytest.mark.parametrize(("status", "word"), [(401, "permission"), (403, "membership")])
    def test_a_sign_in_that_cannot_read_lacks_a_permission(self, login, status, word):
        login.oura.fail(READINESS, answer(status), times=9)
        problem = login.fails(ADDRESS)
        assert not missing(problem, status, word, FILE.absolute(), login_command())
        assert tokens()["refresh_token"] == login.oura.refresh_token

    def test_a_dead_personal_token_is_named_and_fails_nothing(self, login, monkeypatch):
        monkeypatch.setenv("OURA_TOKEN", fakes.TOKEN)  # Oura accepts the new tokens alone
        done = login.paste(ADDRESS, options=["--quiet"])
        assert (done.code, len(done.problems)) == (0, 1)
        assert "OURA_TOKEN" in done.problems[0]
        assert address_in(done.out)
        (read,) = login.oura.asked(READINESS)
        assert read.headers["Authorization"] == "Bearer access-2"

    def test_ctrl_c_ends_the_wait_for_the_user(self, login, port):
        main = threading.main_thread().ident
        done = login.during(lambda: connect(port).close() or signal.pthread_kill(main, 2))
        assert (done.code, done.err, login.oura.requests) == (130, "", [])

    @pytest.mark.parametrize("source", ["https", "no terminal", "half a line", "browser"])
    def test_it_gives_up_after_15_minutes(self, login, port, monkeypatch, source):
        """Whatever it waits for, as a browser that sends bit by bit."""
        monkeypatch.setattr(oura_to_petals, "LOGIN_SECONDS", 0.2)
        if source == "https":
            monkeypatch.setenv("OURA_REDIRECT_URI", REDIRECT)
        elif source == "browser":
            monkeypatch.setattr(oura_to_petals, "monotonic", lambda: 20 * time.monotonic())

        def act():
            if source == "no terminal":
                login.close()
            elif source == "browser":
                with suppress(OSError), connect(port) as browser:
                    for _ in range(60):  # three seconds at most
                        browser.sendall(b"x")
                        time.sleep(0.05)

        os.write(login.stdin, ADDRESS[:30].encode() if source == "half a line" else b"words\n")
        done = login.during(act, seconds=2)
        assert (done.code, login.oura.requests) == (1, [])
        assert not missing(done.problems[-1], "minutes", login_command())

    @pytest.mark.parametrize(
        "line", [f' "{ADDRESS}"', f"<{ADDRESS}>", f"\n \n{ADDRESS}#_=_ \r", ADDRESS[8:]]
    )
    def test_the_address_may_be_pasted_in_many_ways(self, login, line):
        done = login.paste(line)
        assert (done.code, done.err, tokens()) == (0, "", NEW)
        assert "the-code" not in done.out

    @pytest.mark.parametrize(
        "line",
        [
            KEY, "another-code", f"code={KEY}", "x" * 4095, "\xff\xff\xff",  # no UTF-8
            f"https://elsewhere.example/{KEY}?state=the-state",
            f"{REDIRECT}?code=another-code",
            f"{REDIRECT}?code=another-code&state=of-an-older-try",
            f"{REDIRECT}?error=access_denied&error_description=another-code&state=of-an-older-try",
        ],
    )  # fmt: skip
    def test_whatever_else_is_entered_stays_here(self, login, line):
        done = login.paste(*[line] * 5, ADDRESS)
        assert (done.code, done.err, tokens()) == (0, "", NEW)
        assert done.out.count("code=") == 5  # says what the right one contains
        sent = str([(one.url, one.headers, one.content) for one in login.oura.requests])
        for secret in (line, "another-code", "of-an-older-try", KEY):
            assert secret not in done.out + sent

    @pytest.mark.parametrize("lines", [["code=the-code&state=the-state"], [], ["two words"]])
    @pytest.mark.parametrize("kind", ["taken", "impossible", "https"])
    def test_without_a_listener_it_ends_with_the_input(self, login, port, monkeypatch, kind, lines):
        port = 99_999 if kind == "impossible" else port
        redirect = REDIRECT if kind == "https" else f"http://localhost:{port}/callback/"
        monkeypatch.setenv("OURA_REDIRECT_URI", redirect)
        with socket.create_server(("127.0.0.1", port)) if kind == "taken" else nullcontext():
            done = login.paste(*[f"{redirect}?{line}" for line in lines])
        assert (f"Port {port} " in done.out) == (kind != "https")
        if "code" in str(lines):
            assert (done.code, done.err, tokens()) == (0, "", NEW)
        else:
            assert (done.code, login.oura.requests) == (1, [])
            assert not missing(done.problems[0], "input", "end", login_command())

    def test_a_closed_stdin_is_an_end_of_input(self, cron, by_sign_in):
        done = cron.shell("$SCRIPT --login <&-", **by_sign_in.env, OURA_REDIRECT_URI=REDIRECT)
        assert (done.code, missing(done.err, "input", "--login"), tokens()) == (1, [], OLD)


class TestBrowser:
    def test_after_the_input_it_waits_for_the_redirect_of_this_sign_in(self, login, port):
        """Nobody else can connect than this machine."""
        others = ["favicon.ico", "callback/", "callback/?code=x", "callback/?code=x&state=wrong"]
        others += ["callback/?error=access_denied&state=wrong"]
        outside = []

        def browse():
            for other in others:
                visit(port, f"GET /{other} HTTP/1.1\r\n\r\n")
            outside.append(socket.socket().connect_ex(("127.0.0.2", port)))
            visit(port)

        login.close()
        done = login.during(browse)
        assert (done.code, tokens(), outside == [0]) == (0, NEW, False)
        assert any(not missing(line, "input", "browser") for line in done.out.splitlines())

    @pytest.mark.parametrize("query", ["code=the-code", "error=x&error_description=are+wrong"])
    def test_the_terminal_says_why_it_failed(self, login, port, query):
        login.oura.fail(TOKENS, answer(400, error_description="the-code and s3cret are wrong"))
        request = f"GET /callback/?{query}&state=the-state HTTP/1.1\r\n\r\n"
        done = login.during(lambda: visit(port, request))
        assert (done.code, tokens()) == (1, OLD)
        assert not missing(done.problems[-1], "are wrong", login_command())

    def test_a_browser_that_closes_early_does_not_lose_the_code(self, login, port, monkeypatch):
        """It has a spare connection, sends in two parts, and does not take an answer."""
        limit = socket.socket.settimeout
        monkeypatch.setattr(socket.socket, "settimeout", lambda *of: limit(of[0], of[1] / 10))

        def close_early():
            with connect(port), connect(port) as browser:
                for part in (GOOD[:30], GOOD[30:]):
                    browser.sendall(part.encode())
                    time.sleep(0.02)
                browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        assert (login.during(close_early).code, tokens()) == (0, NEW)


class TestTokenFile:
    def test_a_token_is_used_until_oura_refuses_it(self, signed_in):
        """Also in a file of an older version."""
        older = {**OLD, "client_id": "other", "token_url": "x", "expires_at": 1}
        FILE.write_text(json.dumps(older))
        signed_in.oura.tokens = {"access-1"}
        assert signed_in.run() == Ended(0, PUSHED, "")
        assert (signed_in.oura.forms, tokens()) == ([], older)

    def test_it_is_overwritten_in_place_and_whole_at_every_moment(self, signed_in):
        """A mounted file cannot be replaced. Nor does it grow once the old token is spent."""
        FILE.write_text(json.dumps({**OLD, "scope": "daily " * 1000}))
        seen, sizes, file, inode = set(), [], FILE.absolute(), FILE.stat().st_ino
        signed_in.oura.fail(TOKENS, lambda _: sizes.append(FILE.stat().st_size))

        def look(frame, event, _):
            """Read the file after each call by the script of a function that is written in C."""
            if event == "c_return" and frame.f_code.co_filename == oura_to_petals.__file__:
                seen.add(json.loads(file.read_bytes())["refresh_token"])

        sys.setprofile(look)
        try:
            assert signed_in.run().code == 0
        finally:
            sys.setprofile(None)
        assert (seen, tokens()) == ({"refresh-1", "refresh-2"}, NEW)
        assert (FILE.stat().st_ino, list(FILE.parent.iterdir())) == (inode, [FILE])
        assert sizes == [FILE.stat().st_size]
        assert sizes[0] > 10_000

    @pytest.mark.parametrize(
        "content", ["{", "[]", "[" * 100_000, '{"access_token": "a"}', '{"access_token": "a b"}']
    )
    def test_a_broken_one_says_to_sign_in(self, signed_in, content):
        FILE.write_text(content)
        assert not missing(signed_in.run().failed(), FILE.absolute(), login_command())
        assert (FILE.read_text(), signed_in.oura.requests) == (content, [])

    @pytest.mark.parametrize("option", ["--quiet", "--login"])
    @pytest.mark.parametrize("kind", ["folder", "pipe", "below a file", "flock", "pwrite", "chmod"])
    def test_one_that_cannot_be_used_is_named(self, signed_in, monkeypatch, kind, option):
        """`--login` sees it before anybody opens a browser. No locks are an error of flock."""
        if kind in ("flock", "pwrite", "chmod"):
            place = fcntl if kind == "flock" else os
            monkeypatch.setattr(place, kind, Mock(side_effect=OSError(errno.ENOLCK, "No")))
        elif kind == "below a file":
            monkeypatch.setenv("OURA_TOKEN_FILE", str(FILE.absolute() / "tokens"))
        else:
            FILE.unlink()
            os.mkfifo(FILE) if kind == "pipe" else FILE.mkdir()
        done = signed_in.run(option, day=None)
        is_needed = (kind, option) != ("chmod", "--quiet")  # only --login makes it private
        assert not is_needed or not missing(done.err, FILE.absolute())
        assert (done.code > 0, done.out) == (is_needed, "")
        assert not is_needed or signed_in.oura.forms == []

    @pytest.mark.parametrize("written", [0, 100, 16_383], ids=["nothing", "a part", "almost all"])
    def test_a_full_disk_costs_no_token(self, signed_in, monkeypatch, written):
        write = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda *some: write(*some) and written)
        assert not missing(signed_in.run().failed(), FILE.absolute(), "full")
        assert (signed_in.oura.forms, tokens()) == ([], OLD)

    @pytest.mark.parametrize("option", ["--quiet", "--check", "--dry-run", "--login"])
    def test_another_process_is_waited_for_two_minutes(self, signed_in, monkeypatch, option):
        assert oura_to_petals.LOCK_SECONDS == 120
        monkeypatch.setattr(oura_to_petals, "LOCK_SECONDS", 0.05)
        with FILE.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            done = signed_in.run(option, day=None)
        assert (done.code, signed_in.oura.requests) == (1, [])
        assert f"another process holds {FILE.absolute()}" in done.problems[0]

    def test_two_runs_spend_a_refresh_token_once(self, cron, by_sign_in):
        both_read = threading.Event()
        for path in READS:
            by_sign_in.oura.fail(path, lambda _: both_read.wait(10) and None)
            by_sign_in.oura.fail(path, lambda _: both_read.set())
        runs = [cron.start("--date", str(DAY), **by_sign_in.env) for _ in range(2)]
        assert [fakes.ended(run) for run in runs] == [Ended(0, PUSHED, "")] * 2
        assert by_sign_in.oura.forms == [RENEWAL]


class TestRenewal:
    @pytest.mark.parametrize("option", ["--quiet", "--check", "--dry-run"])
    def test_a_refused_token_is_renewed(self, signed_in, option):
        done = signed_in.run(option)
        assert (done.code, done.err, tokens()) == (0, "", NEW)
        for path in READS:
            sent = [request.headers["Authorization"] for request in signed_in.oura.asked(path)]
            assert sent == ["Bearer access-1", "Bearer access-2"]
        assert signed_in.run().code == 0
        assert signed_in.oura.forms == [RENEWAL]

    def test_a_run_renews_once_for_each_refused_token(self, signed_in):
        # The third read is of the next days.
        signed_in.oura.fail(READINESS, fakes.well, fakes.well, answer(401))
        done = signed_in.run("--days", "400")
        assert (done.code, done.err) == (0, "")
        spent = [form["refresh_token"] for form in signed_in.oura.forms]
        assert spent == ["refresh-1", "refresh-2"]

    @pytest.mark.parametrize("options", [[], WEEK, WAIT])
    @pytest.mark.parametrize("path", [TOKENS, READINESS, SLEEP])
    @pytest.mark.parametrize("status", [400, 401])
    def test_a_refusal_in_a_renewal_ends_the_run(self, signed_in, path, status, options):
        """A new token that is refused lacks a permission, for all or for one collection."""
        faults = [answer(status)] if path == TOKENS else [fakes.well, answer(401)]
        signed_in.oura.fail(path, *faults)
        done = signed_in.run(*options)
        facts = [status] if path == TOKENS else [401, "permission", FILE.absolute()]
        assert (done.code, missing(done.problems[0], *facts, login_command())) == (1, [])
        assert ("--date 2026-06-10 --days 7" in done.err) == (options == WEEK)
        assert tokens() == (OLD if path == TOKENS else NEW)
        assert (signed_in.oura.forms, signed_in.waited) == ([RENEWAL], [])
        assert signed_in.petals.requests == []

    @pytest.mark.parametrize("more", [{}, {"refresh_token": None}], ids=["missing", "null"])
    def test_without_a_new_refresh_token_the_old_one_stays(self, signed_in, more):
        signed_in.oura.tokens = {"fresh"}
        signed_in.oura.fail(TOKENS, answer(200, access_token="fresh", scope="email", **more))
        assert signed_in.run().code == 0  # whatever the scope is: the old token may be spent
        assert tokens() == {**OLD, "access_token": "fresh"}

    @by_code_and_token
    @pytest.mark.parametrize(
        ("fault", "options", "times", "waited"),
        [
            (SLOW, WAIT, 1, []), (SLOW, WAIT, 9, []), (SLOW, [], 9, []),
            (answer(503), [], 3, [1, 2, 4]), (answer(500), WAIT, 9, [1, 2, 4]),
            (answer(503), WAIT, 5, [1, 2, 4, 30, 300]),
            (GONE, [], 5, [1, 2, 4, 8, 16]), (GONE, [], 9, [1, 2, 4, 8, 16]),
        ],
    )  # fmt: skip
    def test_an_outage(self, login, by_code, fault, options, times, waited):
        """It is waited for. A lost answer is worth one more try at once, and no other."""
        login.oura.fail(TOKENS, fault, times=times)
        done = login.paste(ADDRESS, options=options) if by_code else login.world.run(*options)
        assert (login.world.waited, len(login.oura.forms)) == (waited, len(waited or [1]) + 1)
        assert (done.code, tokens()) == ((1, OLD) if times == 9 else (0, NEW))

    def test_in_a_pause_others_can_lock_and_signals_act(self, signed_in, monkeypatch):
        def interrupt(_):
            with FILE.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if it is held
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(oura_to_petals, "sleep", interrupt)
        signed_in.oura.fail(TOKENS, answer(503), times=3)
        assert (signed_in.run().code, signed_in.oura.forms) == (130, [RENEWAL])

    @by_code_and_token
    @pytest.mark.parametrize("fault", [None, SLOW], ids=["answer", "lost answer"])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_does_not_lose_what_was_spent(self, login, by_code, number, fault):
        def press_and_fail(request):
            press(number)(request)
            if fault:
                raise fault

        login.oura.fail(TOKENS, press_and_fail)
        done = login.paste(ADDRESS) if by_code else login.world.run()
        assert (done.code, tokens()) == (130, NEW)
        assert len(login.oura.asked(READINESS)) == (0 if by_code else 1)

    def test_what_nohup_ignores_stays_ignored(self, signed_in):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signed_in.oura.fail(TOKENS, press(signal.SIGHUP))
        signed_in.petals.fail(BULK, press(signal.SIGHUP))
        assert signed_in.run() == Ended(0, PUSHED, "")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    @pytest.mark.parametrize("status", [400, 401])
    def test_a_wrong_client_is_named_with_its_place(self, login, status):
        login.oura.fail(TOKENS, answer(status, error="invalid_client"))
        problem = login.fails(ADDRESS)
        places = [f"OURA_CLIENT_{name} from the environment" for name in ("ID", "SECRET")]
        assert not missing(problem, status, "invalid_client", *places)
        assert login_command() not in problem  # to sign in again does not help


def test_each_night_of_a_household_goes_to_its_owner(login, monkeypatch):
    """One application serves two people, each with a settings file and a sign-in."""
    monkeypatch.delenv("PETALS_API_KEY")
    scores = {"anna": 71, "ben": 62}
    for name in scores:
        fakes.write(Path(f"{name}.env"), f"PETALS_API_KEY=petals-{name}\n")

    def oura(request):
        if request.method == "POST":
            name = login.oura.forms[-1]["code"]
            return answer(200, access_token=f"of-{name}", refresh_token=f"next-{name}")
        name = request.headers["Authorization"].removeprefix("Bearer of-")
        login.oura.collections["daily_readiness"] = [fakes.readiness(score=scores[name])]
        login.oura.tokens = {f"of-{name}"}
        return None

    for path in (TOKENS, *READS):
        login.oura.fail(path, oura, times=20)
    login.world.petals.fail(BULK, answer(200, inserted=3), times=3)
    for name in scores:
        os.write(login.stdin, f"{ADDRESS.replace('the-code', name)}\n".encode())
        assert login.world.run("--login", "--env-file", f"{name}.env", day=None).code == 0
    for name in ("anna", "ben", "anna"):
        assert login.world.run("--env-file", f"{name}.env").code == 0
    sent = [(one.headers["x-api-key"], one.content) for one in login.world.petals.asked(BULK)]
    values = [(key, json.loads(content)["observations"][0]["value"]) for key, content in sent]
    assert values == [("petals-anna", 71), ("petals-ben", 62), ("petals-anna", 71)]
    for name in scores:
        assert f"next-{name}" in Path(f"{name}.env.oura-token.json").read_text()
    assert tokens() == OLD
