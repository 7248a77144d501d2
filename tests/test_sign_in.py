"""`--login` signs in with Oura, and later runs renew that sign-in."""

import base64
import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import secrets
import select
import shlex
import signal
import socket
import stat
import sys
import threading
import time
import webbrowser
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
from fakes import (
    BULK,
    KEY,
    LIST,
    PUSHED,
    READINESS,
    READS,
    TOKEN,
    TOKENS,
    Ended,
    Oura,
    Petals,
    answer,
    ended,
    local_server,
    readiness,
    time_runs_out,
    wait_until,
    well,
)

import oura_to_petals

CLIENT = {"client_id": "the-client", "client_secret": "s3cret"}
RENEWAL = {"grant_type": "refresh_token", "refresh_token": "refresh-1", **CLIENT}
FILE = Path(".local/state/oura-to-petals/oura-token.json")
NEW = {"access_token": "access-2", "refresh_token": "refresh-2", "client_id": "the-client"}

REDIRECT = "https://localhost/callback/"
ADDRESS = f"{REDIRECT}?code=the-code&state=the-state"
REFUSAL = f"{REDIRECT}?error=access_denied&error_description=You+said+no&state=the-state"
GOOD = ("GET /callback/?code=the-code&scope=extapi:daily&state=the-state",)
UNUSED = ()  # a connection without a request
FINISHED = "Back to the terminal: the sign-in is finished there."


def allow_all():
    """The advice to sign in with all permissions. Its command has the path of the script."""
    return f"run {login_command()} again and allow all that Oura asks for"


def missing():
    tokens = f"the tokens in {FILE.absolute()}"
    return f"answered 401: Unauthorized; a permission is missing from {tokens}: {allow_all()}"


def again():
    return f"sign in again with {login_command()}"


def login_command():
    return shlex.join([sys.executable, str(oura_to_petals.SCRIPT), "--login"])


def tokens():
    """What the token file has."""
    return json.loads(FILE.read_text())


def write_tokens(number=1, **more):
    """Write a token file and return its bytes."""
    content = {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}"}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps({**content, **more}))
    FILE.chmod(0o600)
    return FILE.read_bytes()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def refuse_all(oura, *faults):
    """Answer the next reads of each collection with these faults."""
    for path in READS:
        oura.fail(path, *faults)


def address_in(text):
    """The address at which the user is asked to agree."""
    return re.search(r"^  (http\S+\?\S+)$", text, re.MULTILINE)[1]


def visit(port, *parts):
    """The status and the page that a browser gets for a request, which it may send in parts."""
    *first, last = parts
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for part in first:
            connection.sendall(part.encode())
            time.sleep(0.02)
        connection.sendall(f"{last} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection, method=parts[0].split()[0])
        response.begin()
        return response.status, response.read().decode()


def wait_for_listener(port):
    """Connect as soon as somebody listens, and close the connection again."""

    def connects():
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True

    wait_until(connects, "a listener")


@pytest.fixture
def application(world, monkeypatch):
    """Settings with an application at Oura and without a personal access token."""
    monkeypatch.delenv("OURA_TOKEN")
    monkeypatch.setenv("OURA_CLIENT_ID", "the-client")
    monkeypatch.setenv("OURA_CLIENT_SECRET", "s3cret")
    monkeypatch.setenv("OURA_REDIRECT_URI", REDIRECT)
    return world


@pytest.fixture
def signed_in(application):
    """A sign-in whose access token Oura accepts."""
    application.oura.tokens = {"access-1"}
    write_tokens()
    return application


@pytest.fixture
def expired(signed_in):
    """A sign-in whose access token Oura refuses."""
    signed_in.oura.tokens = set()
    return signed_in


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

    @property
    def codes(self):
        """The codes that Oura was sent."""
        return [form["code"] for form in self.oura.forms]

    def paste(self, *lines, options=()):
        """Sign in with these lines, and then the end of input."""
        os.write(self.stdin, "".join(f"{line}\n" for line in lines).encode("latin-1"))
        os.close(self.stdin)
        return self.world.run("--login", *options, day=None)

    def fails(self, *lines):
        """The one problem of a sign-in that fails with these lines."""
        ended = self.paste(*lines)
        assert (ended.code, len(ended.problems)) == (1, 1), ended
        return ended.problems[0]

    def browse(self, port, *requests):
        """Sign in with a browser that makes these requests; return the pages as well."""
        pages, unused = [], []

        def make_requests():
            try:
                wait_for_listener(port)
                for request in requests:
                    if request is UNUSED:
                        unused.append(socket.create_connection(("127.0.0.1", port)))
                    else:
                        pages.append(visit(port, *request))
            finally:
                for connection in unused:
                    connection.close()
                os.close(self.stdin)

        browser = threading.Thread(target=make_requests)
        browser.start()
        ended = self.world.run("--login", "--verbose", day=None)
        browser.join()
        secret = "the-code|s3cret|access-2|refresh-2"
        assert not re.search(secret, f"{pages}{ended}"), "a secret is shown"
        return ended, pages


@pytest.fixture
def login(application, monkeypatch):
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: "the-state")
    stdin = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    yield Login(application, writing)
    os.dup2(stdin, 0)
    os.close(stdin)


def send_to_this_thread(number):
    """A fault that sends a signal to the thread that waits for the answer."""
    return lambda _: signal.pthread_kill(threading.get_ident(), number)


class Served:
    """A copy of the script that is signed in, and both services on a local port."""

    def __init__(self, cron, host, oura):
        self.cron, self.oura = cron, oura
        settings = {
            "OURA_CLIENT_ID": "the-client",
            "OURA_CLIENT_SECRET": "s3cret",
            "PETALS_API_KEY": KEY,
            "OURA_AUTHORIZE_URL": f"{host}/authorize",
            "OURA_TOKEN_URL": f"{host}{TOKENS}",
            "OURA_HOST": host,
            "PETALS_HOST": host,
        }
        file = cron.script.with_name(".env")
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        file.chmod(0o600)


@pytest.fixture
def served(cron):
    oura = Oura()
    oura.tokens = set()
    write_tokens()
    with local_server(oura, Petals()) as host:
        yield Served(cron, host, oura)


class TestLogin:
    @pytest.mark.parametrize("stdin", ["<&-", "< /dev/null"])
    def test_without_a_terminal_there_is_no_paste(self, served, stdin):
        ended = served.cron.shell(f"$SCRIPT --login {stdin}", OURA_REDIRECT_URI=REDIRECT)
        (problem,) = ended.problems
        assert problem.startswith("there is no terminal to paste the address into; run ")
        assert problem.endswith(" --login again")

    def test_without_a_terminal_the_browser_is_enough(self, login, port):
        """The end of input ends nothing while somebody listens."""
        os.close(login.stdin)
        login.stdin = os.dup(0)
        ended, pages = login.browse(port, GOOD)
        assert (ended.code, pages) == (0, [(200, FINISHED)])

    def test_sign_in_from_the_address_to_the_check(self, served, port):
        FILE.unlink()
        redirect = f"http://localhost:{port}/callback/"
        run = served.cron.start("--login", OURA_REDIRECT_URI=redirect)
        shown = "".join(run.stdout.readline() for _ in range(5))
        address = address_in(shown)
        assert shown == (
            f"Your application at Oura must have exactly this redirect address:\n  {redirect}\n"
            f"Open this address in a browser and agree:\n  {address}\n"
            "If the browser ends on a page that does not load, paste its address here:\n"
        )
        back = httpx.URL(served.oura.authorize(address))
        assert visit(port, f"GET {back.raw_path.decode()}") == (200, FINISHED)
        assert run.wait(10) == 0  # while its stdin is still open
        check = shlex.join([sys.executable, str(served.cron.script.resolve()), "--check"])
        assert (run.stdout.read(), run.stderr.read()) == (
            f"You are signed in. The sign-in renews itself; its tokens are in {FILE.absolute()}.\n"
            f"Reading Oura works. Next, check both services: {check}\n",
            "",
        )
        (form,) = served.oura.forms
        assert re.fullmatch(r"[\w.~-]{43,128}", form["code_verifier"], re.ASCII)
        assert form["code_verifier"] not in address
        assert len(back.params["state"]) > 20
        checked = served.cron.shell(check)
        assert (checked.code, checked.err) == (0, "")

    def test_oura_is_asked_for_the_permission_daily(self, login, monkeypatch):
        monkeypatch.delenv("OURA_REDIRECT_URI")
        monkeypatch.delenv("PETALS_API_KEY")
        ended = login.paste("the-code")
        assert (ended.code, ended.err) == (0, "")
        url = httpx.URL(address_in(ended.out))
        page = "https://moi.ouraring.com/oauth/v2/ext/oauth-authorize"
        assert str(url.copy_with(query=None)) == page
        digest = hashlib.sha256(b"the-state").digest()  # each random text is the same here
        redirect = {"redirect_uri": "http://localhost:8080/callback/"}
        assert dict(url.params) == {
            "response_type": "code",
            "client_id": "the-client",
            "prompt": "consent",
            "scope": "extapi:daily daily",
            "state": "the-state",
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
            **redirect,
        }
        form = {"grant_type": "authorization_code", "code": "the-code", **redirect, **CLIENT}
        assert login.oura.forms == [{**form, "code_verifier": "the-state"}]

    def test_only_you_can_read_the_tokens(self, login):
        write_tokens()
        FILE.chmod(0o644)
        assert login.paste("the-code").code == 0
        assert mode(FILE) == 0o600
        assert tokens() == NEW

    def test_a_new_token_file_is_private(self, login):
        assert login.paste("the-code").code == 0
        assert (mode(FILE), mode(FILE.parent)) == (0o600, 0o700)
        assert list(FILE.parent.iterdir()) == [FILE]
        assert login.world.run() == Ended(0, PUSHED, "")

    @pytest.mark.parametrize(
        "scope", [None, "", "extapi:daily", "daily", "extapi:email extapi:daily", "email daily"]
    )
    def test_daily_is_granted_with_or_without_prefix(self, login, scope):
        login.oura.scope = scope
        assert login.paste("the-code").code == 0
        assert tokens() == NEW

    @pytest.mark.parametrize("scope", ["extapi:email", "email heartrate", "extapi:daily_activity"])
    @pytest.mark.parametrize("has_older", [True, False], ids=["older file", "no file"])
    def test_a_sign_in_without_daily_fails(self, login, scope, has_older):
        older = write_tokens() if has_older else b""
        login.oura.scope = scope
        advice = f"see that your application at Oura has daily ticked, then {allow_all()}"
        assert login.fails("the-code") == f"Oura did not grant the permission daily; {advice}"
        assert FILE.read_bytes().rstrip() == older
        assert login.oura.asked(READINESS) == []

    def test_a_sign_in_that_cannot_read_lacks_permission(self, login):
        refuse_all(login.oura, *[answer(401, detail="Unauthorized")] * 2)
        problem = login.fails("the-code")
        assert problem.startswith("Oura daily_")
        assert problem.endswith(missing())

    def test_a_lapsed_membership_keeps_the_new_tokens(self, login):
        login.oura.fail(READINESS, httpx.Response(403))
        lapsed = "the Oura membership has lapsed or a permission is missing from the tokens in "
        lapsed += str(FILE.absolute())
        assert login.fails("the-code") == (
            f"Oura daily_readiness answered 403; {lapsed}: {allow_all()}"
        )
        assert tokens() == NEW

    @pytest.mark.parametrize(
        "fault",
        [
            answer(400, error="invalid_grant"),
            answer(200, access_token="a"),
            answer(200, access_token="two words", refresh_token="r"),
            answer(200, access_token="a", refresh_token=""),
            httpx.ReadTimeout("slow"),
        ],
        ids=["refused", "no refresh token", "impossible token", "empty token", "no answer"],
    )
    def test_a_failed_sign_in_keeps_older_tokens(self, login, fault):
        older = write_tokens()
        login.oura.fail(TOKENS, fault, times=2)
        login.fails("the-code")
        assert FILE.read_bytes().rstrip() == older

    @pytest.mark.parametrize("line", ["", "refused-code"])
    def test_a_failed_sign_in_is_no_sign_in(self, login, line):
        login.fails(line)
        expected = f"not signed in: no tokens in {FILE.absolute()}; run {login_command()}"
        assert login.world.run().failed(code=2) == expected

    def test_a_refused_code_names_what_to_check(self, login):
        assert login.fails("refused-code") == f"Oura sign-in answered 400: invalid_grant; {again()}"

    @pytest.mark.parametrize("name", ["folder", "file/tokens"])
    def test_a_file_that_cannot_be_written_comes_first(self, login, monkeypatch, name):
        Path("folder").mkdir()
        Path("file").touch()
        monkeypatch.setenv("OURA_TOKEN_FILE", os.path.abspath(name))
        ended = login.paste("the-code")
        assert ended.failed(code=2).startswith(f"OURA_TOKEN_FILE {os.path.abspath(name)}: ")

    @pytest.mark.parametrize(
        ("function", "error"),
        [("pwrite", OSError(28, "No space left on device")), ("chmod", PermissionError(1, "No"))],
        ids=["full disk", "file of another owner"],
    )
    def test_a_file_that_cannot_be_kept_comes_first(self, login, monkeypatch, function, error):
        monkeypatch.setattr(os, function, Mock(side_effect=error))
        ended = login.paste("the-code")
        expected = f"OURA_TOKEN_FILE {FILE.absolute()}: {error.strerror}"
        assert ended.failed(code=2) == expected
        assert login.oura.requests == []

    @pytest.mark.parametrize("name", ["OURA_CLIENT_ID", "OURA_CLIENT_SECRET"])
    def test_login_needs_client_id_and_secret(self, login, monkeypatch, name):
        monkeypatch.delenv(name)
        assert login.paste("the-code").failed(code=2).startswith(f"not set: {name}; put ")

    @pytest.mark.parametrize(
        "address", ["localhost:8080/callback/", "http://localhost:8080/a b/", "callback"]
    )
    def test_login_needs_a_complete_redirect_address(self, login, monkeypatch, address):
        monkeypatch.setenv("OURA_REDIRECT_URI", address)
        problem = login.paste("the-code").failed(code=2)
        assert problem == "OURA_REDIRECT_URI is not a complete address"

    def test_a_personal_token_is_named_after_sign_in(self, login, monkeypatch):
        monkeypatch.setenv("OURA_TOKEN", TOKEN)
        ended = login.paste("the-code", options=("--quiet",))
        warning = "OURA_TOKEN is set and takes precedence: remove it to use the sign-in"
        assert (ended.code, ended.problems) == (0, [warning])
        assert "Open this address in a browser" in ended.out
        (read,) = login.oura.asked(READINESS)
        assert read.headers["Authorization"] == "Bearer access-2"

    def test_an_application_of_the_old_portal_works(self, login, monkeypatch):
        page = "https://cloud.ouraring.com/oauth/authorize"
        token_url = "https://api.ouraring.com/oauth/token"
        monkeypatch.setenv("OURA_AUTHORIZE_URL", page)
        monkeypatch.setenv("OURA_TOKEN_URL", token_url)
        ended = login.paste("the-code")
        assert ended.code == 0
        assert address_in(ended.out).startswith(f"{page}?")
        assert str(login.oura.requests[0].url) == token_url

    def test_no_browser_is_opened(self, login, monkeypatch):
        browser = Mock()
        monkeypatch.setattr(webbrowser, "get", browser)
        monkeypatch.setattr(webbrowser, "open", browser)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert login.paste("the-code").code == 0
        browser.assert_not_called()

    def test_the_user_may_take_any_time(self, login, monkeypatch):
        limits, wait = [], select.select

        def look(*sources):
            limits.append(signal.getitimer(signal.ITIMER_REAL)[0])
            return wait(*sources)

        monkeypatch.setattr(select, "select", look)
        assert login.paste("the-code").code == 0
        assert limits == [0]

    def test_ctrl_c_ends_the_wait_for_the_user(self, login, monkeypatch):
        main = threading.main_thread().ident
        press = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        monkeypatch.setattr(secrets, "token_urlsafe", lambda _: "the-state")
        press.start()
        ended = login.world.run("--login", day=None)
        os.close(login.stdin)
        assert (ended.code, ended.err) == (130, "")
        assert login.oura.requests == []

    def test_ctrl_c_does_not_lose_a_spent_code(self, login):
        login.oura.fail(TOKENS, send_to_this_thread(signal.SIGINT))
        ended = login.paste("the-code")
        assert (ended.code, ended.err) == (130, "")
        assert tokens() == NEW


class TestPasting:
    @pytest.mark.parametrize(
        "line",
        [
            ADDRESS,
            "  localhost/callback/?state=the-state&scope=daily&code=the-code#_=_ \r",
            "the-code",
            f'"{ADDRESS}"',
            f"'{ADDRESS}'",
            f"<{ADDRESS}>",
            f"\x1b[200~{ADDRESS}\x1b[201~",
            f"\n \n{ADDRESS}",
        ],
        ids=["address", "part", "code", "quotes", "quote", "angles", "bracketed", "empty lines"],
    )
    def test_the_address_or_the_code_signs_in(self, login, line):
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
            "yes",
            "continue",
            "y1",
            f"{ADDRESS}"[:40],
            "x" * 4095,
            "\xff",  # no UTF-8
        ],
    )
    def test_another_line_is_asked_for_again(self, login, line):
        ended = login.paste(line, ADDRESS)
        assert (ended.code, ended.err, login.codes) == (0, "", ["the-code"])
        asked_again = (
            "This is not the whole address, of this try. If in doubt, open the page once more.\n"
            f"The right one begins with {REDIRECT} and contains code=. Paste it here:\n"
        )
        assert ended.out.count(asked_again) == 1

    @pytest.mark.parametrize(
        "lines", [[], ["", " "], ["two words"]], ids=["none", "empty", "wrong"]
    )
    def test_the_end_of_input_ends_a_sign_in_by_paste(self, login, lines):
        expected = "there is no terminal to paste the address into; "
        assert login.fails(*lines) == f"{expected}run {login_command()} again"
        assert login.oura.requests == []

    def test_four_wrong_lines_end_a_sign_in(self, login):
        ended = login.paste(*["two words"] * 4, ADDRESS)
        expected = f"no address of this sign-in was entered; run {login_command()} again"
        assert (ended.code, ended.problems) == (1, [expected])
        assert ended.out.count("contains code=. Paste it here:") == 3
        assert login.oura.requests == []

    def test_a_refusal_in_the_browser_is_told(self, login):
        expected = "Oura refused the sign-in: access_denied You said no; "
        expected += f"run {login_command()} again"
        assert login.fails(REFUSAL, ADDRESS) == expected
        assert login.oura.requests == []

    @pytest.mark.parametrize(
        ("redirect", "prompt"),
        [
            (
                "https://localhost/callback/",
                "Then paste the address of the page that the browser ends on, "
                "whether or not it loads:",
            ),
            (
                "http://raspberry.local:8080/callback/",
                "Then paste the address of the page that the browser ends on, "
                "whether or not it loads:",
            ),
            (
                "http://localhost:99999/callback/",
                "Port 99999 cannot be used: paste the address of the page that you end on",
            ),
        ],
        ids=["https", "another machine", "impossible port"],
    )
    def test_without_a_listener_the_address_is_pasted(self, login, monkeypatch, redirect, prompt):
        monkeypatch.setenv("OURA_REDIRECT_URI", redirect)
        ended = login.paste(f"{redirect}?code=the-code&state=the-state")
        assert (ended.code, ended.err) == (0, "")
        assert f"\n{prompt}\n" in ended.out
        assert login.oura.forms[0]["redirect_uri"] == redirect

    def test_pasting_works_if_the_port_is_taken(self, login, port):
        with socket.create_server(("127.0.0.1", port)):
            ended = login.paste(f"http://localhost:{port}/callback/?code=the-code&state=the-state")
        assert (ended.code, ended.err) == (0, "")
        line = f"Port {port} is in use: paste the address of the page that you end on"
        assert f"\n{line}\n" in ended.out

    def test_pasting_works_if_the_port_is_free(self, login, port):
        ended = login.paste(f"http://localhost:{port}/callback/?code=the-code&state=the-state")
        assert (ended.code, ended.err) == (0, "")


class TestBrowser:
    def test_only_the_redirect_of_this_sign_in_counts(self, login, port):
        others = [
            "GET /favicon.ico",
            "GET /?code=the-code&state=the-state",
            "HEAD /callback/?code=the-code&state=the-state",
            "POST /callback/?code=the-code&state=the-state",
            "GET /callback/",
            "GET /callback/?code=the-code",
            "GET /callback/?code=the-code&state=wrong",
            "GET /callback/?error=access_denied&state=wrong",
            "GET /callback/?state=the-state",
            "GET /callback/?code=&state=the-state",
        ]
        ended, pages = login.browse(port, *[(other,) for other in others], GOOD)
        assert [status for status, _ in pages] == [404] * len(others) + [200]
        assert pages[-1] == (200, FINISHED)
        assert (ended.code, login.codes) == (0, ["the-code"])
        assert "contains code=" not in ended.out

    @pytest.mark.parametrize(
        ("redirect", "problem"),
        [
            (GOOD, "Oura sign-in answered 400: *** and *** are wrong; sign in again with {}"),
            (
                ("GET /callback/?error=no_consent&state=the-state",),
                "Oura refused the sign-in: no_consent; run {} again",
            ),
        ],
        ids=["refused code", "no consent"],
    )
    def test_the_terminal_says_why_it_failed(self, login, port, redirect, problem):
        wrong = answer(400, error_description="the-code and s3cret are wrong")
        login.oura.fail(TOKENS, wrong)
        ended, pages = login.browse(port, redirect)
        assert pages == [(200, FINISHED)]
        assert (ended.code, ended.problems[-1]) == (1, problem.format(login_command()))

    def test_the_redirect_may_have_an_escape(self, login, port, monkeypatch):
        monkeypatch.setenv("OURA_REDIRECT_URI", f"http://localhost:{port}/my%20ring/")
        ended, pages = login.browse(port, ("GET /my%20ring/?code=the-code&state=the-state",))
        assert (ended.code, pages) == (0, [(200, FINISHED)])

    def test_the_redirect_counts_after_a_wrong_line(self, login, port):
        os.write(login.stdin, b"two words\n")
        ended, _ = login.browse(port, GOOD)
        assert (ended.code, login.codes) == (0, ["the-code"])
        assert ended.out.count("contains code=") == 1

    def test_only_this_machine_can_connect(self, login, port):
        try:  # a server at another address is not in the way
            other = socket.create_server(("127.0.0.2", port))
        except OSError:
            pytest.skip("this machine has one address")
        with other:
            ended, pages = login.browse(port, GOOD)
        assert (ended.code, pages) == (0, [(200, FINISHED)])

    def test_a_request_may_come_in_parts(self, login, port):
        ended, pages = login.browse(port, ("GET /callback/?state=the-state&code=the-", "code"))
        assert (ended.code, pages) == (0, [(200, FINISHED)])

    def test_a_connection_without_a_request_times_out(self, login, port, monkeypatch):
        limit = socket.socket.settimeout

        def limit_sooner(self, seconds):
            is_answer = seconds and self.family == socket.AF_INET and self.getsockname()[1] == port
            limit(self, seconds / 20 if is_answer else seconds)

        monkeypatch.setattr(socket.socket, "settimeout", limit_sooner)
        ended, pages = login.browse(port, UNUSED, UNUSED, GOOD)
        assert (ended.code, pages) == (0, [(200, FINISHED)])

    def test_a_client_that_drips_does_not_block_the_paste(self, login, port, monkeypatch):
        start = time.monotonic()
        hurried = lambda: start + 20 * (time.monotonic() - start)  # noqa: E731 - short
        monkeypatch.setattr(oura_to_petals, "monotonic", hurried)
        ended = threading.Event()

        def drip():
            wait_for_listener(port)
            connection = socket.create_connection(("127.0.0.1", port))
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"GET /")
                os.write(login.stdin, b"http://x/?code=the-code&state=the-state\n")
                while not ended.wait(0.01):
                    connection.sendall(b"x")

        browser = threading.Thread(target=drip)
        browser.start()
        done = login.world.run("--login", day=None)
        ended.set()
        browser.join()
        os.close(login.stdin)
        assert (done.code, login.codes) == (0, ["the-code"])


class TestRenewal:
    @pytest.mark.parametrize(
        "more",
        [{}, {"token_url": "https://api.ouraring.com/oauth/token", "expires_at": 1}],
        ids=["new file", "file of an older version"],
    )
    def test_a_token_is_used_until_oura_refuses_it(self, signed_in, more):
        before = write_tokens(**more)
        assert signed_in.run() == Ended(0, PUSHED, "")
        assert signed_in.oura.forms == []
        assert FILE.read_bytes().rstrip() == before

    def test_a_refused_token_is_renewed(self, expired):
        assert expired.run() == Ended(0, PUSHED, "")
        for path in READS:
            sent = [request.headers["Authorization"] for request in expired.oura.asked(path)]
            assert sent == ["Bearer access-1", "Bearer access-2"]
        assert tokens() == NEW
        assert expired.run().code == 0
        assert expired.oura.forms == [RENEWAL]

    def test_the_token_file_is_overwritten_in_place(self, expired):
        inode = FILE.stat().st_ino  # a mounted file cannot be replaced
        assert expired.run().code == 0
        assert (FILE.stat().st_ino, mode(FILE)) == (inode, 0o600)
        assert list(FILE.parent.iterdir()) == [FILE]
        assert tokens() == NEW

    def test_shorter_tokens_replace_longer_ones(self, expired):
        write_tokens(scope="daily " * 1000)
        assert expired.run().code == 0
        assert tokens() == NEW

    def test_each_refused_read_of_years_is_renewed(self, expired):
        expired.oura.fail(READINESS, well, well, answer(401))  # the third is of the second year
        ended = expired.run("--days", "400")
        assert (ended.code, ended.err) == (0, "")
        spent = [form["refresh_token"] for form in expired.oura.forms]
        assert spent == ["refresh-1", "refresh-2"]

    @pytest.mark.parametrize("days", [1, 7])
    def test_a_refusal_after_renewal_is_missing_permission(self, expired, days):
        refuse_all(expired.oura, *[answer(401, detail="Unauthorized")] * 2)
        ended = expired.run("--days", str(days))
        (problem,) = ended.problems
        assert ended.code == 1
        assert re.search(r"\bOura daily_(readiness|sleep) answered 401", problem)
        assert missing() in problem
        assert ("; 0 of 7 days are in, go on with: " in problem) == (days == 7)
        assert "expired" not in ended.err
        assert expired.oura.forms == [RENEWAL]

    def test_a_refused_personal_token_leads_to_login(self, world):
        world.oura.tokens = set()
        problem = world.run().failed()
        assert problem.startswith("2026-06-10: Oura daily_")
        assert problem.endswith(
            " answered 401: Unauthorized; Oura no longer issues personal tokens: "
            f"remove OURA_TOKEN from the environment and sign in with {login_command()}"
        )
        assert world.oura.forms == []

    def test_a_newer_token_of_another_run_is_used(self, expired):
        expired.oura.tokens = {"access-2"}
        written = threading.Event()

        def write_newer(_):
            write_tokens(2)
            written.set()

        expired.oura.fail(READS[0], write_newer)
        for path in READS[1:]:
            expired.oura.fail(path, lambda _: written.wait(10) and None)
        assert expired.run().code == 0
        assert expired.oura.forms == []

    def test_without_a_new_refresh_token_the_old_stays(self, expired):
        expired.oura.tokens = {"fresh"}
        expired.oura.fail(TOKENS, answer(200, access_token="fresh"))
        assert expired.run().code == 0
        assert tokens() == NEW | {"access_token": "fresh", "refresh_token": "refresh-1"}

    def test_a_renewal_may_name_any_scope(self, expired):
        expired.oura.scope = "extapi:email"  # the refresh token is spent: keep the next one
        assert expired.run().code == 0
        assert tokens() == NEW

    @pytest.mark.parametrize("status", [400, 401])
    @pytest.mark.parametrize("days", [1, 7])
    def test_a_refused_renewal_ends_the_run(self, expired, status, days):
        before = FILE.read_bytes()
        expired.oura.fail(TOKENS, answer(status, error="invalid_grant"))
        ended = expired.run("--days", str(days))
        (problem,) = ended.problems
        assert ended.code == 1
        assert f"Oura sign-in answered {status}: invalid_grant; {again()}" in problem
        assert ("; 0 of 7 days are in" in problem) == (days == 7)
        assert expired.oura.forms == [RENEWAL]
        assert expired.petals.pushed == []
        assert FILE.read_bytes().rstrip() == before

    @pytest.mark.parametrize(
        "fault", [httpx.ReadTimeout("slow"), httpx.Response(500)], ids=["no answer", "500"]
    )
    def test_a_lost_answer_is_worth_one_more_try(self, expired, fault):
        expired.oura.fail(TOKENS, fault)
        assert expired.run().code == 0
        assert expired.oura.forms == [RENEWAL, RENEWAL]

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (httpx.ReadTimeout("slow"), "Oura sign-in: the request failed: slow (2 tries)"),
            (httpx.ConnectError("no route"), "could not reach Oura sign-in: no route (6 tries)"),
        ],
        ids=["no answer", "no connection"],
    )
    def test_a_network_fault_keeps_the_sign_in(self, expired, fault, said):
        before = FILE.read_bytes()
        expired.oura.fail(TOKENS, fault, times=9)
        assert expired.run().failed() == f"2026-06-10: {said}; check the network and OURA_TOKEN_URL"
        assert FILE.read_bytes().rstrip() == before

    @pytest.mark.parametrize(
        "content",
        [
            "{",
            "[]",
            "[" * 100_000,
            '{"access_token": "a"}',
            '{"access_token": "two words", "refresh_token": "b"}',
        ],
        ids=["cut off", "list", "deep", "no refresh token", "two words"],
    )
    def test_a_broken_token_file_says_to_sign_in(self, signed_in, content):
        FILE.write_text(content)
        assert signed_in.run().failed() == (
            f"the tokens in {FILE.absolute()} cannot be used; {again()}"
        )
        assert FILE.read_text() == content
        assert signed_in.oura.requests == []

    def test_an_unreadable_token_file_has_a_reason(self, signed_in):
        FILE.unlink()
        FILE.mkdir()
        expected = f"OURA_TOKEN_FILE {FILE.absolute()}: Is a directory"
        assert signed_in.run().failed(code=2) == expected

    @pytest.mark.parametrize("written", [0, 100, 16_383], ids=["nothing", "a part", "almost all"])
    def test_a_full_disk_costs_no_token(self, expired, monkeypatch, written):
        before = FILE.read_bytes()
        write = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda *some: write(*some) and written)
        expected = f"2026-06-10: OURA_TOKEN_FILE {FILE.absolute()}: No space left on device"
        assert expired.run().failed() == expected
        assert expired.oura.forms == []
        assert FILE.read_bytes().rstrip() == before

    def test_tokens_may_grow_on_a_full_disk(self, expired):
        """There is room for them before the old ones are spent."""
        sizes = []
        expired.oura.fail(TOKENS, lambda _: sizes.append(FILE.stat().st_size))
        assert expired.run().code == 0
        assert sizes == [16_384]
        assert (FILE.stat().st_size, tokens()) == (16_384, NEW)

    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
    @pytest.mark.parametrize("option", ["--quiet", "--login"])
    def test_a_file_system_without_locks_is_named(self, signed_in, monkeypatch, option, code):
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(code, "No locks")))
        problem = signed_in.run(option, day=None).failed(code=2)
        file = FILE.absolute()
        assert problem == f"{file} has no locks: put OURA_TOKEN_FILE on a local disk"

    def test_another_error_of_a_lock_has_its_reason(self, signed_in, monkeypatch):
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(5, "Input/output error")))
        expected = f"OURA_TOKEN_FILE {FILE.absolute()}: Input/output error"
        assert signed_in.run().failed(code=2) == expected

    @pytest.mark.parametrize("kind", ["FIFO", "device"])
    def test_a_token_file_that_is_no_file_has_a_reason(self, signed_in, monkeypatch, kind):
        path = os.devnull
        if kind == "FIFO":
            path = os.path.abspath("fifo")
            os.mkfifo(path)
        monkeypatch.setenv("OURA_TOKEN_FILE", path)
        for option in ("--quiet", "--login"):
            problem = f"OURA_TOKEN_FILE {path} is no regular file"
            assert signed_in.run(option, day=None).failed(code=2) == problem

    def test_a_personal_token_wins(self, expired, monkeypatch):
        monkeypatch.setenv("OURA_TOKEN", TOKEN)
        monkeypatch.delenv("OURA_CLIENT_ID")
        expired.oura.tokens = {TOKEN}
        assert expired.run().code == 0

    def test_another_token_file_can_be_named(self, expired, monkeypatch):
        FILE.rename("tokens.json")
        monkeypatch.setenv("OURA_TOKEN_FILE", "~/tokens.json")
        assert expired.run().code == 0
        assert "refresh-2" in Path("tokens.json").read_text()
        assert not FILE.exists()

    def test_tokens_in_an_answer_are_masked(self, expired):
        echo = answer(400, message="access-1 refresh-1 refresh-2 access-2 s3cret")
        expired.oura.fail(READINESS, answer(401), echo)
        assert ": *** *** *** *** ***; " in expired.run().failed()

    def test_the_check_renews_the_sign_in(self, expired):
        ended = expired.run("--check", day=None)
        assert (ended.code, ended.err) == (0, "")
        assert expired.oura.forms == [RENEWAL]


class TestRefusals:
    """Each says what is wrong and which command helps."""

    @pytest.mark.parametrize("status", [400, 401])
    @pytest.mark.parametrize("at_login", [True, False], ids=["sign-in", "renewal"])
    def test_a_wrong_secret_needs_no_new_sign_in(self, login, monkeypatch, at_login, status):
        write_tokens()
        login.oura.tokens = set()
        login.oura.fail(TOKENS, answer(status, error="invalid_client"))
        ended = login.paste("the-code") if at_login else login.world.run()
        (problem,) = ended.problems
        assert problem.removeprefix("2026-06-10: ") == (
            f"Oura sign-in answered {status}: invalid_client; the client id or secret is wrong: "
            "check OURA_CLIENT_ID from the environment and OURA_CLIENT_SECRET from the environment"
        )
        assert ended.code == 1

    def test_a_lapsed_membership_with_a_personal_token(self, world):
        world.oura.fail(READINESS, answer(403, detail="Forbidden"))
        problem = world.run().failed()
        assert "the Oura membership has lapsed" in problem
        assert "--login" not in problem


class TestHousehold:
    """Two people with one account on one machine, each with a settings file."""

    @pytest.fixture
    def people(self, login, monkeypatch):
        """Run for one of them. Oura gives Anna tokens with an a, and Ben with a b."""
        for name in ("OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "PETALS_API_KEY"):
            monkeypatch.delenv(name)
        scores = {"anna": 71, "ben": 62}
        for name in scores:
            settings = f"OURA_CLIENT_ID={name}-id\nOURA_CLIENT_SECRET={name}-secret\n"
            settings += f"OURA_REDIRECT_URI={REDIRECT}\nPETALS_API_KEY=petals-{name}\n"
            Path(f"{name}.env").write_text(settings)
            Path(f"{name}.env").chmod(0o600)
        sent = []

        def oura(request):
            if request.method == "POST":
                name = dict(httpx.QueryParams(request.content.decode()))["client_id"][:-3]
                return answer(200, access_token=f"of-{name}", refresh_token=f"next-{name}")
            name = request.headers["Authorization"].removeprefix("Bearer of-")
            login.oura.collections["daily_readiness"] = [readiness(score=scores[name])]
            login.oura.tokens = {f"of-{name}"}
            return None

        def petals(request):
            rows = json.loads(request.content)["observations"]
            sent.append((request.headers["x-api-key"], rows[0]["value"]))
            return answer(200, inserted=len(rows), errors=[])

        for path in (TOKENS, *READS):
            login.oura.fail(path, oura, times=20)
        login.world.petals.fail(LIST, answer(200, metrics=[]), times=20)
        login.world.petals.fail(BULK, petals, times=20)
        return login, sent

    def test_each_night_goes_to_its_owner(self, people):
        login, sent = people
        for name in ("anna", "ben"):
            os.write(login.stdin, f"{REDIRECT}?code=the-code&state=the-state\n".encode())
            assert login.world.run("--login", "--env-file", f"{name}.env", day=None).code == 0
        for name in ("anna", "ben", "anna"):
            assert login.world.run("--env-file", f"{name}.env").code == 0
        os.close(login.stdin)
        assert sent == [("petals-anna", 71), ("petals-ben", 62), ("petals-anna", 71)]
        for name in ("anna", "ben"):
            kept = json.loads(Path(f"{name}.env.oura-token.json").read_text())
            assert kept["client_id"] == f"{name}-id"
        assert not FILE.exists()

    @pytest.mark.parametrize("options", [["--login"], ["--quiet"], ["--dry-run"]])
    def test_tokens_of_another_application_are_left_alone(self, people, monkeypatch, options):
        login, _ = people
        tokens_of_anna = write_tokens(client_id="anna-id")
        monkeypatch.setenv("OURA_TOKEN_FILE", str(FILE.absolute()))
        problem = login.world.run(*options, "--env-file", "ben.env", day=None).failed(code=2)
        said, command = problem.split("; set OURA_TOKEN_FILE, or sign in with: ")
        assert said == f"the tokens in {FILE.absolute()} belong to another application"
        assert FILE.read_bytes() == tokens_of_anna
        assert login.oura.requests == login.world.petals.requests == []
        moved, sign_in = command.split(" && ")
        assert sign_in.endswith(f" --login --env-file {shlex.quote(os.path.abspath('ben.env'))}")
        assert os.system(moved) == 0
        assert FILE.with_name("oura-token.json.old").read_bytes() == tokens_of_anna

    def test_tokens_without_a_client_id_get_it_at_the_renewal(self, expired):
        assert "client_id" not in tokens()
        assert expired.run().code == 0
        assert tokens() == NEW


class TestInterruptions:
    def test_the_time_limit_counts_during_a_renewal(self, expired):
        before = FILE.read_bytes()
        expired.oura.fail(TOKENS, time_runs_out)
        expected = "2026-06-10: no answer from Oura sign-in within 115 seconds"
        assert expired.run().failed() == expected
        assert FILE.read_bytes().rstrip() == before

    def test_a_renewal_is_not_started_late(self, expired, monkeypatch):
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 59.0)
        expected = "2026-06-10: too little time is left to renew the sign-in; run again"
        assert expired.run().failed() == expected
        assert expired.oura.forms == []

    @pytest.mark.parametrize("option", ["--quiet", "--check", "--dry-run", "--login"])
    def test_waiting_for_another_process_is_limited(self, signed_in, monkeypatch, option):
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 0.1)
        monkeypatch.setattr(oura_to_petals, "RENEWAL_SECONDS", 0.1)
        with FILE.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            ended = signed_in.run(option, day=None)
        file = FILE.absolute()
        command = shlex.join(["lsof", str(file)])
        problem = f"another process holds OURA_TOKEN_FILE {file}; see which with: {command}"
        assert ended.code == 1
        assert ended.problems[0].removeprefix("Oura: ") == problem
        assert signed_in.oura.requests == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_does_not_cut_a_renewal(self, expired, number):
        expired.oura.fail(TOKENS, send_to_this_thread(number))
        assert expired.run().failed(code=130) == "2026-06-10: interrupted"
        assert tokens() == NEW
        assert len(expired.oura.asked(READINESS)) == 1

    def test_the_token_file_is_whole_at_every_moment(self, expired):
        seen, file = set(), FILE.absolute()

        def look(frame, event, _):
            """Read the file after each call by the script of a function that is written in C."""
            if event == "c_return" and frame.f_code.co_filename == oura_to_petals.__file__:
                seen.add(file.read_bytes())

        sys.setprofile(look)
        try:
            assert expired.run().code == 0
        finally:
            sys.setprofile(None)
        kept = {json.loads(content)["refresh_token"] for content in seen}
        assert kept == {"refresh-1", "refresh-2"}

    @pytest.mark.parametrize(
        ("number", "code", "refresh_token"),
        [(signal.SIGINT, 130, "refresh-2"), (signal.SIGKILL, -9, "refresh-1")],
        ids=["interrupted", "killed"],
    )
    def test_an_ended_renewal_leaves_a_whole_file(self, served, number, code, refresh_token):
        asked, may_answer = threading.Event(), threading.Event()

        def answer_later(_):
            asked.set()
            may_answer.wait(10)

        served.oura.fail(TOKENS, answer_later)
        run = served.cron.start("--date", "2026-06-10")
        assert asked.wait(10)
        for _ in range(2):
            run.send_signal(number)
            time.sleep(0.05)
        may_answer.set()
        assert ended(run).code == code
        assert tokens()["refresh_token"] == refresh_token

    def test_two_runs_spend_a_refresh_token_once(self, served):
        both_read = threading.Event()
        for path in READS:
            served.oura.fail(path, lambda _: both_read.wait(10) and None)
            served.oura.fail(path, lambda _: both_read.set())
        runs = [served.cron.start("--date", "2026-06-10") for _ in range(2)]
        assert [ended(run) for run in runs] == [Ended(0, PUSHED, "")] * 2
        assert served.oura.forms == [RENEWAL]
