#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["httpx>=0.28,<1", "python-dotenv>=1.0,<2"]
# ///
"""Carry a night, as an Oura ring measured it, into Petals."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # Ctrl-C may come while the rest is still being imported
    interrupt = signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import html
import io
import json
import logging
import re
import secrets
import shlex
import sys
import threading
import traceback
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from random import uniform
from time import monotonic, sleep, time
from typing import Any, TextIO, TypeVar
from urllib.parse import quote_plus

import httpx
from dotenv.parser import parse_stream

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module or None

__version__ = "1.0.0"

ONE_DAY = timedelta(days=1)
FIRST_DAY = date(2015, 1, 1)
MOST_DAYS = 3660
SPAN_DAYS = 366  # of one read
DAYS_ALIKE = 5  # that fail in a row, and the run ends
RUN_SECONDS = 115.0  # of a day, so that start-up and goodbye are within two minutes
FURTHER_DAY_SECONDS = 2.0
GRACE_SECONDS = 0.2
RENEWAL_SECONDS = 30.0
LONGEST_PAUSE = 60.0  # seconds
TRIES = 4
TIMEOUTS = {"GET": httpx.Timeout(15, connect=10), "POST": httpx.Timeout(30, connect=10)}
MOST_BYTES = 8 * 2**20
MOST_PAGES = 1000

T = TypeVar("T")


class Failure(Exception):  # noqa: N818 - to the user it is none of Python's errors
    """What happened and what to do, in one line for the user; exit 1.

    `status` is the HTTP status behind it, where there was one.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status

    @property
    def final(self) -> bool:
        """Whether the next request would be refused like this one, as by a key or a limit."""
        return self.status in (401, 403, 429)


class SettingsError(Failure):
    """Something around the run is wrong, such as a missing setting; exit 2, before any request."""


# --- Settings ---------------------------------------------------------------------------------

DEFAULTS = {
    "OURA_CLIENT_ID": "",
    "OURA_CLIENT_SECRET": "",
    "OURA_REDIRECT_URI": "http://localhost:8080/callback/",
    "OURA_AUTHORIZE_URL": "https://cloud.ouraring.com/oauth/authorize",
    "OURA_TOKEN_URL": "",  # the first of TOKEN_ADDRESSES that takes the code
    "OURA_TOKEN_FILE": "~/.local/state/oura-to-petals/oura-token.json",
    "OURA_TOKEN": "",
    "OURA_HOST": "https://api.ouraring.com",
    "OURA_METRICS": "default",
    "PETALS_API_KEY": "",
    "PETALS_HOST": "https://petals.chat",
}
REQUIRED = {
    "OURA_CLIENT_ID": "of the application that you registered with Oura",
    "OURA_CLIENT_SECRET": "of that application",
    "OURA_TOKEN": "not signed in: use --login once, or set a personal access token if you have one",
    "PETALS_API_KEY": "make one in Petals at Settings → API keys",
}
OF_LOGIN = ["OURA_REDIRECT_URI", "OURA_AUTHORIZE_URL"]
OF_SIGN_IN = ["OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "OURA_TOKEN_URL", "OURA_HOST"]
OF_PETALS = ["PETALS_API_KEY", "PETALS_HOST"]
# https, or http where nothing leaves the machine; no user, password, backslash, query, fragment
ADDRESS = re.compile(
    r"(https://([\w.-]+|\[[\da-fA-F:.]+\])|http://(localhost|127\.0\.0\.1|\[::1\]))"
    r"(:\d{1,5})?(/[^\s?#@\\]*)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Settings:
    """What the environment says, else the `.env` file, else `DEFAULTS`."""

    values: Mapping[str, str] = field(repr=False)
    env_file: Path | None = None

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    @property
    def token_file(self) -> Path:
        """Where `--login` keeps its tokens."""
        return Path(os.path.realpath(os.path.expanduser(self["OURA_TOKEN_FILE"])))

    @property
    def signed_in(self) -> bool:
        """Whether those tokens are used; a personal access token wins over them."""
        return not self["OURA_TOKEN"] and os.path.exists(self.token_file)

    @property
    def of_oura(self) -> list[str]:
        """The names of the settings that reading Oura hangs on."""
        return OF_SIGN_IN if self.signed_in else ["OURA_TOKEN", "OURA_HOST"]

    def check(self, *names: str) -> None:
        """Raise `SettingsError` with all that is missing or wrong among these; shows no value."""
        problems = []
        missing = ", ".join(f"{n} ({REQUIRED[n]})" for n in names if n in REQUIRED and not self[n])
        if missing:
            file = self.env_file or "no .env: there is none here, nor beside the script"
            problems.append(
                f"not set: {missing}; looked in the environment and in {file} (--env-file names "
                "another)"
            )
        for name in names:
            if not (value := self[name]):
                continue
            if name.endswith(("_HOST", "_URL")) and not is_address(value):
                problems.append(
                    f"{name} must be an https:// address with no user, password, query or fragment "
                    "(http:// only for localhost, 127.0.0.1 and [::1])"
                )
            elif not is_printable(value):
                problems.append(
                    f"{name} has a space, a line break or a character beyond ASCII in it"
                )
            elif name == "PETALS_API_KEY" and not re.match("petals-.", value):
                problems.append(f"{name} does not start with petals-: copy it anew")
        if problems:
            raise SettingsError("; ".join(problems))


def is_address(value: str) -> bool:
    """Whether a key may go to this address."""
    with suppress(httpx.InvalidURL, ValueError):
        url = httpx.URL(value)
        url.host.encode("idna")  # as it is when it is looked up
        return ADDRESS.fullmatch(value) is not None and (url.port or 0) < 2**16
    return False


def is_printable(value: object) -> bool:
    """Whether this can be a header's value: printable ASCII without a space."""
    return isinstance(value, str) and re.fullmatch("[!-~]+", value) is not None


def read_env_file(path: Path) -> dict[str, str]:
    """The settings in a `.env` file as they stand there, no `${}` expanded.

    Raises `SettingsError` with the file's name, and the number of a line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    values = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            statement = binding.original.string  # with the blank lines before it
            blank = len(statement) - len(statement.lstrip())
            line = binding.original.line + statement.count("\n", 0, blank)
            raise SettingsError(f"{path}, line {line}: not of the form NAME=value")
        if binding.key:
            values[binding.key] = binding.value or ""
    return values


def load_settings(env_file: Path | None) -> Settings:
    """The settings, with this `.env` file, else that of the working folder or beside the script."""
    places = (Path(".env"), Path(__file__).resolve().with_name(".env"))
    found = env_file or next((place for place in places if os.path.exists(place)), None)
    in_file = read_env_file(found.absolute()) if found else {}
    values = {
        name: os.environ.get(name, "").strip() or in_file.get(name, "").strip() or default
        for name, default in DEFAULTS.items()
    }
    return Settings(values, found and found.absolute())


# --- HTTP -------------------------------------------------------------------------------------


def begin(work: Callable[[], T]) -> Future[T]:
    """Start work in a thread that, unlike an executor's, does not hold up the exit."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


POINTS_TO = "X-Location"


def keep_location(answer: httpx.Response) -> None:
    """Put a redirect's target where httpx, which would parse it, does not look for it."""
    answer.headers[POINTS_TO] = answer.headers.pop("Location", "nowhere")


def open_client() -> httpx.Client:
    """The client of a run; raises `SettingsError` for certificates or a proxy that do not work."""
    try:
        return httpx.Client(
            verify=httpx.create_ssl_context(),
            mounts={"http://": None},  # http stays on this machine, past any proxy
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",  # so that size is size
                "User-Agent": f"oura-to-petals/{__version__}",
            },
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            event_hooks={"response": [keep_location]},
        )
    except OSError as error:
        problem = f"the certificates cannot be loaded ({error}): check SSL_CERT_FILE, SSL_CERT_DIR"
    except (ValueError, ImportError, httpx.InvalidURL):  # the text of these may show a password
        problem = "the proxy cannot be used: check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY"
    raise SettingsError(problem)


Outcome = httpx.Response | httpx.RequestError  # of a request
BETWEEN = r"(?: |\\[bfnrt]|\\u[0-9a-fA-F]{4})*"


class Http:
    """What all services share: client, settings, the run's hard stop, the secrets to mask."""

    def __init__(self, client: httpx.Client, settings: Settings, seconds: float) -> None:
        self.client = client
        self.settings = settings
        self.stop_at = monotonic() + seconds
        names = ("OURA_CLIENT_SECRET", "OURA_TOKEN", "PETALS_API_KEY")
        self.secrets = {settings[name] for name in names if settings[name]}
        self.uncut = threading.Lock()  # held by a renewal; whoever ends the run takes it first

    def left(self) -> float:
        """Seconds until the hard stop."""
        return self.stop_at - monotonic()

    def run(self, work: Callable[[], T]) -> T:
        """Do the work of the run; raises `Failure` at the hard stop, whatever it hangs on."""
        seconds = self.left()
        try:
            future = begin(work)
            while not future.done() and self.left() > 0:
                # a short wait, for a Ctrl-C that comes just ahead of it does not end it
                wait([future], timeout=min(0.2, self.left()))
            if not future.done():
                self.uncut.acquire(timeout=5)
                raise Failure(f"given up after {seconds:.0f} seconds; try again later")
            return future.result()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            self.uncut.acquire(timeout=max(0, self.left()) + 5)
            raise

    def mask(self, text: str) -> str:
        """A stranger's words as one printable line without a secret."""
        text = "".join(c if c.isprintable() else " " for c in text)
        for secret in sorted(self.secrets, key=len, reverse=True):
            in_json = json.dumps(secret)[1:-1]
            for spelling in {secret, in_json, quote_plus(secret), html.escape(secret)}:
                # what was a line break or the like may stand anywhere in it
                text = re.sub(BETWEEN.join(map(re.escape, spelling)), "***", text)
        return " ".join(text.split())

    def clean(self, text: str) -> str:
        """The same without tags, and at most 200 characters of it."""
        text = " ".join(re.sub("<[^>]*>", " ", self.mask(text)).split())
        return text if len(text) <= 200 else text[:199] + "…"

    def send(
        self, method: str, url: str, headers: dict[str, str], content: Mapping[str, Any]
    ) -> Outcome:
        """One request, and its whole answer, or the error that came in its place."""
        too_long = httpx.RequestError(f"it is over {MOST_BYTES // 2**20} MiB long")
        try:
            with self.client.stream(
                method, url, headers=headers, timeout=TIMEOUTS[method], **content
            ) as answer:
                body = bytearray()
                for chunk in answer.iter_raw():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        return too_long
                if answer.headers.pop("Content-Encoding", "identity") != "identity":
                    # httpx would unpack any amount
                    body[:] = zlib.decompressobj(wbits=47).decompress(body, MOST_BYTES + 1)
                    if len(body) > MOST_BYTES:
                        return too_long
                status = answer.status_code
                return httpx.Response(status, headers=answer.headers, content=bytes(body))
        except httpx.RequestError as error:
            return error
        except (zlib.error, ValueError, OverflowError, httpx.InvalidURL) as error:
            return httpx.RequestError(f"{type(error).__name__}: {error}")


def json_object(answer: httpx.Response) -> dict[str, Any] | None:
    """The JSON object in an answer, None where there is none."""
    with suppress(ValueError, RecursionError):
        if isinstance(content := answer.json(), dict):
            return content
    return None


def reason_in(answer: httpx.Response) -> str:
    """What a server says of its refusal."""
    content = json_object(answer) or {}
    for key in ("error_description", "message", "detail", "error", "title"):
        if reason := content.get(key):
            return reason if isinstance(reason, str) else json.dumps(reason)
    return answer.content.decode(errors="replace")


def pause_before_retry(fault: Outcome, tries: int, lost_tries: int) -> float | None:
    """The fault policy: seconds to wait before the next try, None where there is to be none.

    There were `tries` so far. There are `TRIES` in all where the request was surely not carried
    out, `lost_tries` where it may have been.
    """
    if isinstance(fault, httpx.Response):
        passes = fault.status_code in (408, 429, 500, 502, 503, 504)
        not_carried_out = fault.status_code in (429, 503)
        asked = fault.headers.get("Retry-After", "")
    else:
        passes = isinstance(fault, httpx.TransportError) and "CERTIFICATE_VERIFY" not in str(fault)
        not_carried_out = isinstance(fault, (httpx.ConnectError, httpx.ConnectTimeout))
        asked = ""
    if not passes or tries >= (TRIES if not_carried_out else lost_tries):
        return None
    if asked.isascii() and asked.isdigit():
        return float(asked)
    return 2.0 ** (tries - 1) * uniform(0.8, 1.2)  # noqa: S311 - jitter is no secret


class Service:
    """A server that is asked: where it is, with which key, and what its refusals mean."""

    name: str
    key: str  # the settings that a refusal may be due to
    address: str  # the setting that says where it is
    hints: Mapping[int, str] = {}

    def __init__(self, http: Http) -> None:
        self.http = http
        self.settings = http.settings
        self.host = self.settings[self.address].rstrip("/")

    def headers(self) -> dict[str, str]:
        """The headers with this service's key; they go to no other."""
        return {}

    def renew(self, refused: dict[str, str]) -> bool:  # noqa: ARG002 - others use it
        """Whether there is now another key than the refused one in these headers."""
        return False

    def ask(
        self, what: str, method: str, path: str, *, lost_tries: int = TRIES, **content: Any
    ) -> httpx.Response:
        """The 2xx answer to a request that the user knows as `what`, else raises `Failure`."""
        tries, renewed = 0, False
        while True:
            headers = self.headers()
            outcome = self.http.send(method, self.host + path, headers, content)
            if isinstance(outcome, httpx.Response):
                if outcome.is_success:
                    return outcome
                if outcome.status_code == 401 and not renewed and self.renew(headers):
                    renewed = True
                    continue
            tries += 1
            pause = pause_before_retry(outcome, tries, lost_tries)
            if pause is None or pause > min(LONGEST_PAUSE, self.http.left()):
                raise self.failure(what, outcome, tries, pause)
            sleep(pause)

    def failure(
        self, what: str, fault: Outcome, tries: int = 1, pause: float | None = None
    ) -> Failure:
        """A fault in words: what happened, and what to do; `pause` is one that was too long."""
        happened = f"{self.name} {what}{f' ({tries} tries)' if tries > 1 else ''}"
        if isinstance(fault, httpx.Response):
            status, reason = fault.status_code, self.http.clean(reason_in(fault))
            happened += f" answered {status}{f': {reason}' if reason else ''}"
            to_do = self.hints.get(status) or f"check {self.key} and {self.address}"
            if 300 <= status < 400:
                target = self.http.clean(fault.headers[POINTS_TO])
                to_do = f"it points to {target}, which is not followed: check {self.address}"
            elif status == 429 or status >= 500:
                to_do = "try again later"
        else:
            status = None
            happened += (
                f" gave no whole answer: {self.http.clean(str(fault)) or type(fault).__name__}"
            )
            to_do = f"check the network and {self.address}"
        if pause is not None:
            to_do = f"try again in {pause:.0f} seconds, for which this run does not wait"
        return Failure(f"{happened}; {to_do}", status)


# --- Signing in -------------------------------------------------------------------------------

# Applications of Oura's old portal are served at the second address, the others at the first.
TOKEN_ADDRESSES = (
    "https://moi.ouraring.com/oauth/v2/ext/oauth-token",
    "https://api.ouraring.com/oauth/token",
)
SIGN_IN_AGAIN = "sign in again with --login"


class SignIn(Service):
    """The tokens of a person who signed in with Oura (OAuth2, RFC 6749), kept in a file.

    A refresh token works once. So its successor is on the disk before it is used, and the file
    is held alone from spending the one to keeping the other.
    """

    name = "Oura"
    key = "OURA_CLIENT_ID, OURA_CLIENT_SECRET, OURA_REDIRECT_URI"
    address = "OURA_TOKEN_URL"
    hints = dict.fromkeys((400, 401), f"{SIGN_IN_AGAIN}; if that does not help, check {key}")

    def __init__(self, http: Http) -> None:
        super().__init__(http)
        self.file = self.settings.token_file
        self.failed: Failure | None = None
        self.one_thread = threading.Lock()  # a thread of this run is no other run

    def load(self) -> dict[str, Any]:
        """The tokens in the file; raises `Failure` where it is broken."""
        with suppress(OSError, ValueError, RecursionError, AttributeError):
            tokens: dict[str, Any] = json.loads(self.file.read_bytes())
            kept = tokens.get("token_url", TOKEN_ADDRESSES[0])
            tokens["token_url"] = self.settings["OURA_TOKEN_URL"] or kept
            if (
                is_printable(tokens.get("access_token"))
                and is_printable(tokens.get("refresh_token"))
                and type(tokens.get("expires_at")) in (int, float)
                and is_address(str(tokens["token_url"]))
            ):
                self.http.secrets |= {tokens["access_token"], tokens["refresh_token"]}
                return tokens
        raise Failure(f"the tokens in {self.file} cannot be used: {SIGN_IN_AGAIN}")

    def start(self, code: str) -> None:
        """Trade the code of a browser, which works once, at the first address that takes it."""
        self.http.secrets.add(code)
        redirect_uri = self.settings["OURA_REDIRECT_URI"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        only = self.settings["OURA_TOKEN_URL"]
        first, *others = [only] if only else TOKEN_ADDRESSES
        with self.alone():
            try:
                self.trade(first, form)
            except Failure as failure:
                if failure.status not in (400, 401) or not others:
                    raise
                self.trade(others[0], form)

    def access_token(self) -> str:
        """A token that is good for another minute, renewed where that is needed."""
        tokens = self.load()
        if tokens["expires_at"] - 60 > time():
            return str(tokens["access_token"])
        return self.renewed(tokens["access_token"])

    def renewed(self, stale: str) -> str:
        """The file's access token where it is another than this one, else a new one.

        Raises `Failure` where there is neither; the file is as it was then.
        """
        with self.alone():
            tokens = self.load()
            if tokens["access_token"] != stale:
                return str(tokens["access_token"])
            if self.failed:  # in another thread, so it is over for this run
                raise self.failed
            if self.http.left() < RENEWAL_SECONDS:
                raise Failure("no time is left to renew the sign-in; run again")
            address, old = tokens["token_url"], tokens["refresh_token"]
            form = {"grant_type": "refresh_token", "refresh_token": old}
            try:
                return self.trade(address, form, old)
            except Failure as failure:
                # refused as a refresh token is (400, RFC 6749), it is the end as for any key
                status = 401 if failure.status == 400 else failure.status
                self.failed = Failure(str(failure), status)
                raise self.failed from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads, other runs and the end of this one off the token file."""
        try:
            self.file.parent.mkdir(0o700, parents=True, exist_ok=True)
            with self.one_thread, open(f"{self.file}.lock", "w", opener=private) as lock:
                while fcntl:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if self.http.left() < RENEWAL_SECONDS:
                            raise Failure("another run holds the sign-in; run again") from None
                        sleep(0.05)
                with self.http.uncut:
                    yield
        except OSError as error:
            raise Failure(
                f"tokens cannot be kept in {self.file.parent} ({error.strerror}): make room there "
                f"and make it writable; if Oura refuses the old ones after that, {SIGN_IN_AGAIN}"
            ) from None

    def trade(self, address: str, form: Mapping[str, str], old: str = "") -> str:
        """Spend a code, or the `old` refresh token, for tokens; returns the access token.

        Raises `OSError` before anything is spent where the disk is full or read-only.
        """
        new = Path(f"{self.file}.new")
        new.unlink(missing_ok=True)
        try:
            with open(new, "xb", opener=private) as file:
                keep(file, b" " * 16_384)
                tokens = self.ask_for_tokens(address, form, old)
                keep(file, json.dumps(tokens, indent=2).encode())
            new.replace(self.file)
        finally:
            new.unlink(missing_ok=True)
        return str(tokens["access_token"])

    def ask_for_tokens(self, address: str, form: Mapping[str, str], old: str) -> dict[str, Any]:
        """The tokens that a token address answers with, as the file keeps them."""
        self.host = address
        client_id, secret = self.settings["OURA_CLIENT_ID"], self.settings["OURA_CLIENT_SECRET"]
        data = {**form, "client_id": client_id, "client_secret": secret}
        # one more try after a lost answer: the old refresh token is the only one there is
        asking = partial(self.ask, "sign-in", "POST", "", lost_tries=2, data=data)
        seconds = self.http.left() - 2
        try:
            answer = begin(asking).result(timeout=seconds)
        except TimeoutError:
            raise Failure("Oura sign-in gave no whole answer in time; run again") from None
        content = json_object(answer) or {}
        access, refresh = content.get("access_token"), content.get("refresh_token") or old
        if not is_printable(access) or not is_printable(refresh):
            raise Failure(f"Oura sign-in answered without usable tokens; {SIGN_IN_AGAIN}")
        self.http.secrets |= {str(access), str(refresh)}
        lifetime = content.get("expires_in")  # seconds; not required by RFC 6749, 5.1
        if not isinstance(lifetime, (int, float)) or not 0 < lifetime < 1e9:
            lifetime = 86_400
        tokens = {"access_token": access, "refresh_token": refresh, "token_url": address}
        return {**tokens, "expires_at": int(time() + lifetime)}


def private(path: str, flags: int) -> int:
    """Open a file that only its owner can read."""
    return os.open(path, flags, 0o600)


def keep(file: io.BufferedWriter, content: bytes) -> None:
    """Make this the content of a file, on the disk."""
    file.seek(0)
    file.write(content)
    file.truncate()
    file.flush()
    os.fsync(file.fileno())


# --- Oura (read) ------------------------------------------------------------------------------

Document = dict[str, Any]
Documents = Mapping[date | None, Sequence[Document]]  # by day; None: those without a readable one
FORMAT_CHANGED = "if it stays so, look for a newer version of this script"


def parse_day(text: object) -> date | None:
    """The day that is written as YYYY-MM-DD, None for anything else."""
    with suppress(ValueError):
        if isinstance(text, str) and str(day := date.fromisoformat(text)) == text:
            return day
    return None


class Oura(Service):
    """Oura API 2.0, read with a personal access token or the tokens of a sign-in."""

    name = "Oura"
    key = "OURA_TOKEN"
    address = "OURA_HOST"

    def __init__(self, http: Http) -> None:
        super().__init__(http)
        self.sign_in = None if self.settings["OURA_TOKEN"] else SignIn(http)
        if self.sign_in:
            self.key = self.sign_in.key
        to_do = SIGN_IN_AGAIN if self.sign_in else "check OURA_TOKEN"
        self.hints = {
            401: f"the token is not valid: {to_do}",
            403: f"the Oura membership has lapsed, or a permission is missing: {to_do}",
            426: "the Oura app on the phone is too old: update it",
        }

    def headers(self) -> dict[str, str]:
        token = self.sign_in.access_token() if self.sign_in else self.settings["OURA_TOKEN"]
        return {"Authorization": f"Bearer {token}"}

    def renew(self, refused: dict[str, str]) -> bool:
        if self.sign_in:
            self.sign_in.renewed(refused["Authorization"].removeprefix("Bearer "))
        return self.sign_in is not None

    def read(self, collection: str, days: Sequence[date], fields: Sequence[str] = ()) -> Documents:
        """The documents of these days, newest day first; only these `fields`, where there are any.

        Raises `Failure` where they cannot be read, or are of another form.
        Users measured three meanings of `start_date` and `end_date`. A window that is wider by a
        day on both sides holds the days under each of them.
        """
        params = {"start_date": str(days[-1] - ONE_DAY), "end_date": str(days[0] + ONE_DAY)}
        if fields:
            params["fields"] = ",".join(fields)
        documents: dict[date | None, list[Document]] = defaultdict(list)
        seen = set[str]()
        path = f"/v2/usercollection/{collection}"
        while True:
            try:
                page = json_object(self.ask(collection, "GET", path, params=params)) or {}
            except Failure as failure:
                if failure.status == 404 and collection == "sleep":
                    return {}  # a server that has what the guide's script needs
                raise
            data, token = page.get("data"), page.get("next_token")
            if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
                raise Failure(
                    f"Oura {collection} has no list of objects as data; check {self.address}, "
                    f"and {FORMAT_CHANGED}"
                )
            for document in data:
                day = parse_day(document.get("day"))
                if day is None or days[-1] <= day <= days[0]:
                    documents[day].append({key: document.get(key) for key in fields or document})
            if not token:
                return documents
            if not isinstance(token, str) or token in seen or len(seen) >= MOST_PAGES:
                raise Failure(f"Oura {collection} has pages without end; {FORMAT_CHANGED}")
            seen.add(token)
            params["next_token"] = token


# --- Metrics (map) ----------------------------------------------------------------------------


# Gives a day's documents in a collection, or raises the `Failure` of a read that failed.
Look = Callable[[str], Sequence[Document]]


def number(value: Any, low: float, high: float, name: str) -> float | None:
    """This value, None where it is null; raises `Failure` unless it is a number in this range."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Failure(f"Oura {name} is not a number from {low:g} to {high:g}; {FORMAT_CHANGED}")
    return value


@dataclass(frozen=True, eq=False)
class Metric:
    """One row of `METRICS`: its value is in Oura's `collection` under `field`."""

    slug: str
    label: str
    unit: str
    low: float
    high: float
    collection: str
    field: str
    description: str

    @property
    def key(self) -> str:
        """The slug on a real server, which refuses a hyphen."""
        return self.slug.replace("-", "_")

    @property
    def definition(self) -> dict[str, Any]:
        """The metric as the guide shows it."""
        words = {"slug": self.slug, "label": self.label, "unit": self.unit}
        return {**words, "aggregationHint": "avg"}

    def take(self, look: Look) -> float | None:
        """Its value of a day: minutes are of all the day's sleep, the others of one document."""
        if self.unit == "minutes":
            return self.minutes(look)
        documents = sessions(look) if self.collection == "sleep" else look(self.collection)
        value: Any = documents[0] if documents else None
        for key in self.field.split("."):
            if value is not None:
                # what should be an object and is none has no number in it either
                value = value.get(key) if isinstance(value, dict) else {}
        return number(value, self.low, self.high, f"{self.collection} {self.field}")

    def minutes(self, look: Look) -> int | None:
        """Seconds of the whole day as minutes, a half rounded up.

        Oura API 2.0 has no durations in `daily_sleep`, they are summed over the sessions. A
        server that follows the guide has them there.
        """
        seconds = self.seconds("daily_sleep", look("daily_sleep")[:1])
        if seconds is None:
            seconds = self.seconds("sleep", sessions(look))
        return None if seconds is None else int((seconds + 30) // 60)

    def seconds(self, collection: str, documents: Iterable[Document]) -> float | None:
        """A duration, summed over these documents, None where it is null in each."""
        low, high, name = 60 * self.low, 60 * self.high, f"{collection} {self.field}"
        found = [number(document.get(self.field), low, high, name) for document in documents]
        known = [one for one in found if one is not None]
        return number(sum(known), low, high, name) if known else None


# fmt: off
METRICS = {metric.slug: metric for metric in (
    Metric("oura-readiness", "Oura readiness score", "score", 0, 100,
           "daily_readiness", "score",
           "How recovered the body is for the day ahead, as Oura scores it."),
    Metric("oura-hrv", "Oura HRV balance", "score", 0, 100,
           "daily_readiness", "contributors.hrv_balance",
           "Readiness contributor: heart rate variability of two weeks against three months."),
    Metric("oura-sleep-minutes", "Oura sleep duration", "minutes", 0, 1440,
           "sleep", "total_sleep_duration",
           "Total time asleep in the night that ended on this day, naps included."),
    Metric("oura-sleep-score", "Oura sleep score", "score", 0, 100,
           "daily_sleep", "score",
           "Overall quality of the night from its seven contributors."),
    Metric("oura-hrv-ms", "Oura overnight RMSSD", "ms", 0, 500,
           "sleep", "average_hrv",
           "Beat-to-beat variation of the pulse, averaged over the longest sleep."),
    Metric("oura-deep-minutes", "Oura deep sleep", "minutes", 0, 1440,
           "sleep", "deep_sleep_duration",
           "Slow-wave stage N3, which restores the body."),
    Metric("oura-rem-minutes", "Oura REM", "minutes", 0, 1440,
           "sleep", "rem_sleep_duration",
           "Rapid eye movement stage, in which most dreams are."),
    Metric("oura-light-minutes", "Oura light sleep", "minutes", 0, 1440,
           "sleep", "light_sleep_duration",
           "Stages N1 and N2, the shallow part from which one wakes easily."),
    Metric("oura-sleep-efficiency", "Oura time asleep in bed", "percent", 0, 100,
           "sleep", "efficiency",
           "Efficiency: the share of the time in bed that was not spent awake."),
    Metric("oura-lowest-heart-rate", "Oura lowest heart rate", "bpm", 20, 250,
           "sleep", "lowest_heart_rate",
           "Slowest pulse at rest, in beats per minute."),
    Metric("oura-respiratory-rate", "Oura respiratory rate", "breaths/min", 3, 60,
           "sleep", "average_breath",
           "Breathing frequency, mean of the longest period."),
    Metric("oura-temperature-deviation", "Oura temperature deviation", "celsius", -10, 10,
           "daily_readiness", "temperature_deviation",
           "Skin warmth at night above or below the wearer's own baseline."),
)}
# fmt: on
DEFAULT_METRICS = ("oura-readiness", "oura-hrv", "oura-sleep-minutes")


def sessions(look: Look) -> list[Document]:
    """The day's real sleep sessions (Oura API 2.0, `PublicSleepType`), the longest first."""
    total = METRICS["oura-sleep-minutes"]
    real = [one for one in look("sleep") if one["type"] not in ("rest", "deleted")]
    return sorted(real, key=lambda one: total.seconds("sleep", [one]) or 0, reverse=True)


def choose_metrics(text: str) -> list[Metric]:
    """The metrics that `OURA_METRICS` names; raises `SettingsError` where one does not exist."""
    groups = {"all": set(METRICS), "default": set(DEFAULT_METRICS), "": set[str]()}
    words = [word.strip() for word in text.split(",")]
    chosen = set[str]().union(*(groups.get(word, {word}) for word in words))
    if not chosen or chosen - set(METRICS):
        raise SettingsError(f"OURA_METRICS must name some of: {', '.join(METRICS)}, default, all")
    return [metric for slug, metric in METRICS.items() if slug in chosen]


@dataclass
class Night:
    """What there is to send of a day, with a sentence for people."""

    day: date
    values: dict[Metric, float]
    sentence: str
    needed: set[str]  # the collections that its values hang on
    stored: int = 0  # how many of its values Petals has

    @property
    def occurred_at(self) -> str:
        """The time that its values are stored under."""
        return f"{self.day}T00:00:00Z"

    def observation(self, metric: Metric) -> dict[str, Any]:
        """One of its values as the guide shows it, with its metric inside."""
        value = self.values[metric]
        return {"metric": metric.definition, "value": value, "occurredAt": self.occurred_at}


def in_words(known: Callable[[str], float | None]) -> str:
    """A night as a sentence without its full stop; what is not `known` is left out."""
    parts = []
    if (slept := known("oura-sleep-minutes")) is not None:
        parts.append("slept {}h{:02}".format(*divmod(int(slept), 60)))
    if (readiness := known("oura-readiness")) is not None:
        parts.append(f"readiness {readiness:g}")
    if (ms := known("oura-hrv-ms")) is not None:
        parts.append(f"HRV {ms:g}ms")
    elif (balance := known("oura-hrv")) is not None:
        parts.append(f"HRV balance {balance:g}")
    sentence = ", ".join(parts)
    return sentence[:1].upper() + sentence[1:]


def observe(day: date, reads: Mapping[str, Future[Documents]], metrics: Iterable[Metric]) -> Night:
    """Map a day's documents.

    Raises the `Failure` of what a metric needs. The sentence needs nothing beside that: the rest
    of it is taken where it is at hand.
    """
    needed: set[str] = set()

    def need(collection: str) -> Sequence[Document]:
        needed.add(collection)
        return reads[collection].result().get(day, ())

    def at_hand(collection: str) -> Sequence[Document]:
        read = reads.get(collection)
        return read.result().get(day, ()) if read and read.done() else ()

    def known(slug: str) -> float | None:
        metric = METRICS[slug]
        try:
            return metric.take(at_hand)
        except Failure:
            if metric.collection in needed:
                raise
            return None

    values = {metric: metric.take(need) for metric in metrics}
    present = {metric: value for metric, value in values.items() if value is not None}
    return Night(day, present, in_words(known), needed)


def read_nights(oura: Oura, metrics: Sequence[Metric], report: Report) -> list[Night]:
    """The nights of the report's days that have anything to send, newest first."""
    of_sleep = [metric.field for metric in metrics if metric.collection == "sleep"]
    # the sentence has a duration and an HRV in it, whatever the metrics
    fields = dict.fromkeys(["day", "type", "total_sleep_duration", "average_hrv", *of_sleep])
    nights: list[Night] = []
    for start in range(0, len(report.days), SPAN_DAYS):
        days = report.days[start : start + SPAN_DAYS]
        report.progress(days[0])
        reads = {c: begin(partial(oura.read, c, days)) for c in ("daily_readiness", "daily_sleep")}
        dailies = list(reads.values())
        if of_sleep:
            reads["sleep"] = begin(partial(oura.read, "sleep", days, list(fields)))
        wait(dailies, return_when=FIRST_EXCEPTION)
        # `sleep` may not be needed: it gets a moment, so that the sentence hangs on no race
        wait(reads.values(), timeout=GRACE_SECONDS)
        needed: set[str] = set()
        for day in days:
            try:
                night = observe(day, reads, metrics)
            except Failure as failure:
                if failure.final:
                    report.stop(str(failure))
                    return nights
                report.fail(str(failure), day)
                continue
            needed |= night.needed
            if night.values:
                nights.append(night)
            else:
                report.skip(day)
        for collection in sorted(needed):
            if reads[collection].result().get(None):
                report.fail(f"Oura {collection} has a document whose day cannot be read, left out")
    return nights


# --- Petals (push) ----------------------------------------------------------------------------

LIST_PATH = "/api/memory/metrics/list"
SINGLE_PATH = "/api/memory/metrics/observations"
BULK_PATH = "/api/memory/metrics/observations/bulk"


class Petals(Service):
    """The metrics of a Petals server, in the form that it takes."""

    name = "Petals"
    key = "PETALS_API_KEY"
    address = "PETALS_HOST"
    hints = dict.fromkeys(
        (401, 403),
        "check PETALS_API_KEY: a key works for a year, make a new one at Settings → API keys",
    )

    def headers(self) -> dict[str, str]:
        return {"x-api-key": self.settings["PETALS_API_KEY"]}

    def listing(self) -> dict[str, Document] | None:
        """The metrics that the server knows, by slug; None where it has the guide's form only."""
        try:
            answer = self.ask("metrics/list", "POST", LIST_PATH, json={})
        except Failure as failure:
            if failure.status in (404, 405):
                return None
            raise
        if answer.status_code != 200:
            raise self.failure("metrics/list", answer)
        metrics = (json_object(answer) or {}).get("metrics")
        if not isinstance(metrics, list):
            return None
        return {
            metric["slug"]: metric
            for metric in metrics
            if isinstance(metric, dict) and isinstance(metric.get("slug"), str)
        }

    def define(self, metric: Metric, night: Night) -> dict[str, Any]:
        """Store a value by the endpoint that makes its metric, and take it out of the night.

        Petals stores it anew each time and under no `sourceExternalId`. So the value that defined
        a metric stays when its day is sent again: once, equal to its twin, harmless under `avg`.
        """
        body = night.observation(metric)
        body["metric"] |= {"slug": metric.key, "description": metric.description}
        if len(night.values) == 1 and night.sentence:  # no bulk will carry the sentence
            body["note"] = night.sentence
        answer = self.ask("observations", "POST", SINGLE_PATH, lost_tries=1, json=body)
        content = self.stored(answer, [metric.key])
        del night.values[metric]
        night.stored += 1
        return content

    def push(self, night: Night, *, as_in_guide: bool) -> None:
        """Replace all that is stored under the day's `sourceExternalId` by its values.

        A server as in the guide has no such id; there a series is updated by slug and time.
        """
        body: Any
        if as_in_guide:
            sent = [metric.slug for metric in night.values]
            body = [night.observation(metric) for metric in night.values]
        else:
            sent = [metric.key for metric in night.values]
            rows: list[dict[str, Any]] = [
                {"metricSlug": metric.key, "value": value, "occurredAt": night.occurred_at}
                for metric, value in night.values.items()
            ]
            if night.sentence:
                rows[0]["note"] = night.sentence
            body = {"sourceExternalId": f"oura_{night.day}", "observations": rows}
        answer = self.ask("observations/bulk", "POST", BULK_PATH, json=body)
        self.stored(answer, sent, may_be_silent=as_in_guide)
        night.stored += len(sent)

    def stored(
        self, answer: httpx.Response, sent: Sequence[str], *, may_be_silent: bool = False
    ) -> dict[str, Any]:
        """The answer to a write of these slugs; raises `Failure` unless it says all are stored."""
        content = json_object(answer)
        if content is None:
            raise Failure(f"Petals answered with no JSON object; check {self.address}")
        if errors := content.get("errors"):
            refused = errors if isinstance(errors, list) else [errors]
            reasons = (self.http.clean(refusal(entry, sent)) for entry in refused[:20])
            raise Failure(f"Petals refused {'; '.join(reasons)}")
        inserted = content.get("inserted", len(sent) if may_be_silent else None)
        if type(inserted) is not int or inserted < len(sent):
            told = self.http.clean(json.dumps(inserted))
            raise Failure(f"Petals stored {told} of {len(sent)} observations; try again later")
        return content


def refusal(entry: Any, sent: Sequence[str]) -> str:
    """An entry of `errors` in words: which metric, and the server's reason."""
    words = entry if isinstance(entry, dict) else {}
    index = words.get("index")
    slug = sent[index] if isinstance(index, int) and 0 <= index < len(sent) else "a metric"
    reason = f"{words.get('code', '')} {words.get('message', '')}".strip()
    return f"{slug}: {reason or json.dumps(entry)}"


def define_missing(
    petals: Petals, known: Collection[str], nights: Sequence[Night], report: Report
) -> None:
    """Define each metric that the server lacks, once, by its newest value.

    One that is refused or goes astray drops out of all the nights.
    """
    newest = {m: night for night in reversed(nights) for m in night.values if m.key not in known}
    lost, unsure = [], []
    refused: dict[str, list[str]] = defaultdict(list)
    for metric, night in newest.items():
        try:
            answer = petals.define(metric, night)
        except Failure as failure:
            if failure.final:
                raise
            lost.append(metric)
            refused[str(failure)].append(metric.key)
            continue
        if answer.get("needsReview"):
            report.console.tell(f"{metric.key} is new in Petals, which asks you to review it")
        if answer.get("definitionCreated") is not True:
            unsure.append(metric)
    for text, keys in refused.items():
        report.fail(f"{', '.join(keys)} could not be defined, left out: {text}")
    known = petals.listing() or () if unsure else ()
    for metric in unsure:
        if metric.key not in known:
            lost.append(metric)
            newest[metric].stored -= 1
            report.fail(
                f"{metric.key} went astray, Petals filed its value of {newest[metric].day} under "
                "a metric that reads alike: remove the value there, rename that metric, run again"
            )
    for night in nights:
        for metric in lost:
            night.values.pop(metric, None)


def deliver(oura: Oura, petals: Petals, metrics: Sequence[Metric], report: Report) -> None:
    """Carry the report's days from Oura to Petals, the newest first."""
    listing = begin(petals.listing)
    nights = read_nights(oura, metrics, report)
    if not nights and not report.failed:
        return
    known = listing.result()
    if known is not None:
        define_missing(petals, known, nights, report)
    alike = 0  # days in a row, by date, that failed for the same reason
    next_alike = None
    for night in nights:
        report.progress(night.day)
        try:
            if night.values:
                petals.push(night, as_in_guide=known is None)
        except Failure as failure:
            if failure.final:
                raise
            report.fail(str(failure), night.day)
            # a reason may name the day or a number of the request
            reason = (failure.status, re.sub(r"\w*\d\w*", "#", str(failure)))
            alike = alike + 1 if (night.day, reason) == next_alike else 1
            next_alike = (night.day - ONE_DAY, reason)
            if alike == DAYS_ALIKE:
                raise Failure("five days in a row failed alike, no further is tried") from None
        else:
            if night.stored:
                report.deliver(night)


# --- Command line -----------------------------------------------------------------------------


class Console:
    """The one place from which anything is said: results to stdout, problems to stderr."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.drawn = False
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")

    def say(self, text: str) -> None:
        """A result, unless quiet."""
        if not self.quiet:
            self.write(sys.stdout, f"{text}\n")

    def tell(self, text: str) -> None:
        """A problem, in one line."""
        self.progress("")
        self.write(sys.stderr, f"oura_to_petals: {text}\n")

    def log(self, text: str) -> bool:
        """A line of httpx's own log; returns that it needs no other handler."""
        self.write(sys.stderr, f"{text}\n")
        return False

    def progress(self, text: str) -> None:
        """Redraw the line of progress; an empty one removes it."""
        shown = sys.stderr and sys.stderr.isatty() and not self.quiet and not self.verbose
        if shown and (text or self.drawn):
            self.write(sys.stderr, f"\r\x1b[K{text}")
            self.drawn = bool(text)

    def write(self, stream: TextIO | None, text: str) -> None:
        """Write at once. That nobody can read it is no failure of what was done."""
        if not stream:  # closed before the start
            return
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            # what waits in the buffer would fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Report:
    """What became of the days of a run, newest first, and all that is said of it."""

    def __init__(
        self, days: Sequence[date], console: Console, options: str = "", *, told: bool = True
    ) -> None:
        self.days = days
        self.console = console
        self.options = options  # of the command that goes on, beside the days
        self.told = told  # whether anything but failures is said of the days
        self.delivered: dict[date, int] = {}  # the observations of each day that is in
        self.empty: set[date] = set()
        self.failures: dict[str, list[date]] = {}  # the days that each text is told of
        self.stops: list[str] = []

    @property
    def failed(self) -> bool:
        """Whether anything did."""
        return bool(self.failures or self.stops)

    def progress(self, day: date) -> None:
        """The day at hand."""
        if len(self.days) > 1 and self.told:
            done = len(self.delivered) + len(self.empty) + sum(map(len, self.failures.values()))
            self.console.progress(f"{done} of {len(self.days)} days, {day}")

    def deliver(self, night: Night) -> None:
        """A day is in."""
        self.delivered[night.day] = night.stored
        if len(self.days) == 1 or self.console.verbose:
            sentence = night.sentence and f" {night.sentence}."
            pushed = plural(night.stored, "observation")
            self.console.say(f"Pushed {pushed} for {night.day}.{sentence}")

    def skip(self, day: date) -> None:
        """A day has no data."""
        self.empty.add(day)
        if self.told and (len(self.days) == 1 or self.console.verbose):
            self.console.say(f"No Oura data for {day} — nothing pushed.")

    def fail(self, text: str, day: date | None = None) -> None:
        """Something failed, or one day did."""
        self.failures.setdefault(text, []).extend([day] if day else [])

    def stop(self, text: str) -> None:
        """The run ends before its last day."""
        if len(self.days) == 1:
            self.fail(text, self.days[0])
        else:
            self.stops.append(text)

    def what_is_left(self) -> str:
        """How many days are in, and the command that goes on with the others."""
        oldest_in = min(self.delivered, default=date.max)
        left = [day for day in self.days if day < oldest_in and day not in self.empty]
        told = f"{len(self.delivered)} of {len(self.days)} days are in"
        if not left:
            return told
        days = (left[0] - self.days[-1]).days + 1
        command = shlex.join([sys.executable, os.path.abspath(sys.argv[0])])
        return f"{told}, go on with: {command} --date {left[0]} --days {days}{self.options}"

    def problems(self) -> list[str]:
        """What failed, a line for each cause, with the days that it cost."""
        lines = []
        for text, days in list(self.failures.items()):  # work that was given up may add to them
            which = ", ".join(map(str, days))
            if len(days) > 31 and len(days) == len(self.days):
                which = f"all days, {days[-1]} to {days[0]}"
            lines.append(f"{which}: {text}" if days else text)
        return lines

    def close(self) -> int:
        """Tell what has not been told yet; returns the exit code."""
        for line in self.problems():
            self.console.tell(line)
        for text in self.stops:
            self.console.tell(f"{text}; {self.what_is_left()}" if self.told else text)
        total = len(self.days)
        self.console.progress("")
        if total > 1:
            span = f"{self.days[-1]} to {self.days[0]}"
            if len(self.empty) == total:
                self.console.tell(f"no Oura data for {span}: has the Oura app been opened?")
            if self.told:
                empty = f"; {plural(len(self.empty), 'day')} without data" if self.empty else ""
                pushed = plural(sum(self.delivered.values()), "observation")
                delivered = f"{len(self.delivered)} of {total} days"
                self.console.say(f"Pushed {pushed} for {delivered}, {span}{empty}.")
        return 1 if self.failed else 0


def plural(count: int, noun: str) -> str:
    """So many of a thing."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def dry_run(oura: Oura, metrics: Sequence[Metric], report: Report) -> None:
    """Print what would be sent."""
    nights = read_nights(oura, metrics, report)
    if nights or not report.failed:
        rows = [night.observation(metric) for night in nights for metric in night.values]
        report.console.say(json.dumps(rows, indent=2))


SAMPLE_SETTINGS = {"OURA_TOKEN": "sample", "PETALS_API_KEY": "petals-sample", "OURA_METRICS": "all"}
# fmt: off
SAMPLE_NIGHT: dict[str, Document] = {
    "daily_readiness": {"score": 82, "contributors": {"hrv_balance": 77},
                        "temperature_deviation": -0.1},
    "daily_sleep": {"score": 85},
    "sleep": {"type": "long_sleep", "total_sleep_duration": 25_920, "average_hrv": 54,
              "deep_sleep_duration": 5_400, "rem_sleep_duration": 6_120,
              "light_sleep_duration": 14_400, "efficiency": 91, "lowest_heart_rate": 48,
              "average_breath": 14.5},
}
# fmt: on


def sample_client(console: Console) -> httpx.Client:
    """A client with stand-ins at its other end: a sample night, and a Petals as in the guide."""

    def reply(status: int, content: object) -> httpx.Response:
        return httpx.Response(status, stream=httpx.ByteStream(json.dumps(content).encode()))

    def answer(request: httpx.Request) -> httpx.Response:
        params = request.url.params
        if sample := SAMPLE_NIGHT.get(request.url.path.rpartition("/")[2]):
            first, last = map(date.fromisoformat, (params["start_date"], params["end_date"]))
            days = [str(first + n * ONE_DAY) for n in range((last - first).days + 1)]
            return reply(200, {"data": [{"day": day, **sample} for day in days]})
        if request.url.path == LIST_PATH:
            return reply(404, {})
        sent = json.dumps(json.loads(request.content), indent=2)
        console.say(f"Sent to a stand-in for {request.url}:\n{sent}")
        console.say('It answered: {"jobId": "sample"}')
        return reply(202, {"jobId": "sample"})

    return httpx.Client(transport=httpx.MockTransport(answer))


def pasted_code(pasted: str, state: str, http: Http) -> str:
    """The code in what was pasted: the address that the browser ended on, or the code itself.

    Raises `Failure` for an address that tells of an error, or was not made for this sign-in.
    """
    told = httpx.QueryParams(pasted.partition("#")[0].rpartition("?")[2])
    if "error" in told:
        words = http.clean(f"{told['error']} {told.get('error_description', '')}")
        raise Failure(f"Oura did not agree to the sign-in: {words}; run --login again")
    code = pasted
    from_address = {"code", "state"} & told.keys() or "://" in pasted
    if from_address or pasted in http.settings["OURA_REDIRECT_URI"]:
        if told.get("state") != state:
            raise Failure("this address is not the end of this sign-in: run --login again")
        code = told.get("code", "")
    if not is_printable(code):
        raise Failure("there is no code in what was pasted: run --login again")
    return code


def log_in(http: Http, console: Console) -> None:
    """Sign in with Oura: a person opens an address in a browser, and pastes where it ended."""
    settings = http.settings
    state = secrets.token_urlsafe(16)
    params = {
        "response_type": "code",
        "client_id": settings["OURA_CLIENT_ID"],
        "redirect_uri": settings["OURA_REDIRECT_URI"],
        "scope": "daily",
        "state": state,
    }
    console.write(
        sys.stdout,
        "Your application at Oura must have this redirect address, to the letter:\n"
        f"  {settings['OURA_REDIRECT_URI']}\n"
        "Open this address in any browser, and agree:\n"
        f"  {httpx.URL(settings['OURA_AUTHORIZE_URL'], params=params)}\n"
        "Then paste the address that the browser ended on, whether or not that page loaded:\n",
    )
    pasted = (sys.stdin.readline() if sys.stdin else "").strip()
    if not pasted:
        raise Failure("nothing was pasted, so nobody is signed in: run --login again")
    code = pasted_code(pasted, state, http)
    http.stop_at = monotonic() + RUN_SECONDS
    http.settings = Settings({**settings.values, "OURA_TOKEN": ""})  # which would win

    def sign_in_and_read() -> None:
        SignIn(http).start(code)
        try:
            Oura(http).read("daily_readiness", [date.today()])
        except Failure as failure:
            raise Failure(f"you are signed in, but Oura was not read: {failure}") from None

    http.run(sign_in_and_read)
    console.say(
        "You are signed in, and Oura was read. The sign-in renews itself; "
        f"its tokens are in {settings.token_file}."
    )
    if settings["OURA_TOKEN"]:
        console.tell("OURA_TOKEN is set and wins over the sign-in: remove it to use the sign-in")


def check(
    settings: Settings, client: httpx.Client, metrics: Sequence[Metric], console: Console
) -> int:
    """Say of both ends what is right or wrong, and write to neither; returns the exit code."""

    def of_oura(http: Http) -> str:
        settings.check(*settings.of_oura)
        report = Report([date.today() - n * ONE_DAY for n in range(7)], console, told=False)
        nights = read_nights(Oura(http), metrics, report)
        if told := report.problems() + report.stops:
            raise Failure("; ".join(told))
        way = f"the sign-in in {settings.token_file}" if settings.signed_in else "OURA_TOKEN"
        latest = "no night in the last seven days, has the Oura app been opened?"
        if nights:
            latest = f"the latest night is {nights[0].day}."
        return f"reading works with {way}; {latest}"

    def of_petals(http: Http) -> str:
        settings.check(*OF_PETALS)
        listing = Petals(http).listing()
        if listing is None:
            return (
                "the server is as in the guide and has no list of metrics, "
                "so whether it takes the key shows at the first push."
            )
        known = [listing[metric.key] for metric in metrics if metric.key in listing]
        stats = [one["stats"] for one in known if isinstance(one.get("stats"), dict)]
        latest = max((str(one.get("latestAt") or "")[:10] for one in stats), default="")
        missing = " (the next push defines the rest)" if len(known) < len(metrics) else ""
        return (
            f"the key is taken; the server has a list of metrics and knows {len(known)} of "
            f"{len(metrics)}{missing}; latest observation: {http.clean(latest) or 'none yet'}."
        )

    code = 0
    for name, look in (("Oura", of_oura), ("Petals", of_petals)):
        http = Http(client, settings, RUN_SECONDS / 2)
        try:
            console.say(f"{name}: {http.run(partial(look, http))}")
        except Failure as failure:
            console.tell(f"{name}: {failure}")
            code = 1
    return code


def day_argument(text: str) -> date:
    """The day that `--date` means, by the machine's own calendar."""
    today = date.today()
    day = {"today": today, "yesterday": today - ONE_DAY}.get(text) or parse_day(text)
    if not day or not FIRST_DAY <= day <= today:
        wanted = f"today, yesterday, or YYYY-MM-DD from {FIRST_DAY} on and not after today"
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return day


def days_argument(text: str) -> int:
    """The number of days that `--days` means."""
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_DAYS}")
    return int(text)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; raises `SystemExit` with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="exit codes: 0 done, also with nothing to send; 1 something failed; "
        "2 wrong usage or settings; 130 interrupted",
        allow_abbrev=False,
    )
    add, flag = parser.add_argument, partial(parser.add_argument, action="store_true")
    instead = partial(parser.add_mutually_exclusive_group().add_argument, action="store_true")
    # fmt: off
    add("--date", metavar="DAY", type=day_argument, default="yesterday",
        help="the day on which the night ended: YYYY-MM-DD, today or yesterday (the default)")
    add("--days", metavar="N", type=days_argument, default=1,
        help=f"the last N days up to --date: 1 (the default) to {MOST_DAYS}")
    add("--env-file", metavar="FILE", type=Path, help="take the settings from FILE, not .env")
    instead("--login", help="sign in with Oura, once")
    instead("--check", help="see whether both ends work; nothing is sent")
    instead("--dry-run", help="print what would be sent; Petals is not asked")
    instead("--demo", help="see a sample night go through; needs no account and no network")
    flag("-q", "--quiet", help="no results on stdout; problems still show")
    flag("-v", "--verbose", help="show each answered request, and with --days each day")
    add("--version", action="version", version=f"oura_to_petals {__version__}")
    # fmt: on
    return parser.parse_args(argv)


def run(options: argparse.Namespace, console: Console) -> int:
    """Do what the command line asks for; returns the exit code, or raises a `Failure`."""
    settings = (
        Settings(DEFAULTS | SAMPLE_SETTINGS) if options.demo else load_settings(options.env_file)
    )
    file = settings.env_file
    if file and os.name == "posix" and file.stat().st_mode & 0o044:
        console.tell(f"others can read your keys: chmod 600 {shlex.quote(str(file))}")
    metrics = choose_metrics(settings["OURA_METRICS"])
    if options.login:
        settings.check(*OF_LOGIN, *OF_SIGN_IN)
    elif not options.check:
        settings.check(*settings.of_oura, *(() if options.dry_run else OF_PETALS))
    # the client stays open: a read that turned out not to be needed may be using it
    client = sample_client(console) if options.demo else open_client()
    days = [day for n in range(options.days) if (day := options.date - n * ONE_DAY) >= FIRST_DAY]
    http = Http(client, settings, RUN_SECONDS + FURTHER_DAY_SECONDS * (len(days) - 1))
    log = logging.getLogger("httpx")
    log.setLevel(logging.INFO if options.verbose else logging.WARNING)
    # a filter and no handler, which would tell of a stderr that takes nothing by a traceback
    log.filters = [lambda record: console.log(http.mask(record.getMessage()))]
    if options.login:
        log_in(http, console)
        return 0
    if options.check:
        return check(settings, client, metrics, console)
    again = f" --env-file {shlex.quote(str(options.env_file))}" if options.env_file else ""
    report = Report(days, console, again, told=not options.dry_run)
    oura, petals = Oura(http), Petals(http)
    work = partial(dry_run, oura) if options.dry_run else partial(deliver, oura, petals)
    try:
        http.run(partial(work, metrics, report))
    except Failure as failure:
        report.stop(str(failure))
    except KeyboardInterrupt:
        report.stop("interrupted")
        report.close()
        raise
    return report.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(argv)
    console = Console(options.quiet, options.verbose)
    try:
        return run(options, console)
    except Failure as failure:
        console.tell(str(failure))
        return 2 if isinstance(failure, SettingsError) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the text of a bug could show a key
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        console.tell(f"a bug, {type(error).__name__} in line {line}: please report it")
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)  # from here on it is a KeyboardInterrupt
    raise SystemExit(main())
