#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["httpx>=0.27,<1", "python-dotenv>=1.0,<2"]
# ///
"""Carry a night, as an Oura ring measured it, into Petals."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
import traceback
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
from shlex import quote
from time import monotonic, sleep, time
from typing import Any, ClassVar, TextIO, TypeVar
from urllib.parse import parse_qs, quote_plus

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
        """Whether the next request would be refused like this one."""
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
    "OURA_TOKEN": "sign in once with --login, or set a personal access token if you have one",
    "PETALS_API_KEY": "make one in Petals at Settings → API keys",
}
OF_LOGIN = ["OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "OURA_REDIRECT_URI", "OURA_AUTHORIZE_URL"]
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
        return not self["OURA_TOKEN"] and self.token_file.exists()

    @property
    def of_oura(self) -> list[str]:
        """The names of the settings that reading Oura hangs on."""
        return OF_SIGN_IN if self.signed_in else ["OURA_TOKEN", "OURA_HOST"]

    def check(self, *names: str) -> None:
        """Raise `SettingsError` with all that is missing or wrong among these; shows no value."""
        problems = []
        missing = ", ".join(f"{n} ({REQUIRED[n]})" for n in names if n in REQUIRED and not self[n])
        if missing:
            file = self.env_file or ".env, which is not there"
            problems.append(f"not set: {missing}; looked in the environment and in {file}")
        for name in names:
            if not (value := self[name]):
                continue
            if name.endswith(("_HOST", "_URL")) and not is_address(value):
                problems.append(
                    f"{name} must be an https:// address with no user, password, query or fragment "
                    "(http:// only for localhost, 127.0.0.1 and [::1])"
                )
            elif not is_printable(value):
                problems.append(f"{name} has a space, a line break or no ASCII in it: copy it anew")
            elif name == "PETALS_API_KEY" and not re.match("petals-.", value):
                problems.append(f"{name} does not start with petals-: copy it anew")
        if problems:
            raise SettingsError("; ".join(problems))


def is_address(value: str) -> bool:
    """Whether a key may go to this address."""
    try:
        return bool(ADDRESS.fullmatch(value) and httpx.URL(value))
    except httpx.InvalidURL:
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
        )
    except OSError as error:
        problem = f"the certificates cannot be loaded ({error}): check SSL_CERT_FILE, SSL_CERT_DIR"
    except (ValueError, ImportError, httpx.InvalidURL):  # the text of these may show a password
        problem = "the proxy cannot be used: check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY"
    raise SettingsError(problem)


class Http:
    """What all services share: the client, the hard stop of the run, the secrets to mask."""

    def __init__(self, client: httpx.Client, settings: Settings, seconds: float) -> None:
        self.client = client
        self.stop_at = monotonic() + seconds
        names = ("OURA_CLIENT_SECRET", "OURA_TOKEN", "PETALS_API_KEY")
        self.secrets = {settings[name] for name in names if settings[name]}
        self.uncut = threading.Lock()  # whoever stops the run takes it first

    def left(self) -> float:
        """Seconds until the hard stop."""
        return self.stop_at - monotonic()

    def run(self, work: Callable[[], T]) -> T:
        """Do the work of the run; raises `Failure` at the hard stop, whatever it hangs on."""
        seconds = self.left()
        try:
            return begin(work).result(timeout=seconds)
        except TimeoutError:
            self.uncut.acquire(timeout=5)
            raise Failure(f"given up after {seconds:.0f} seconds; try again later") from None
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.uncut.acquire(timeout=max(0, self.left()) + 5)
            raise

    def clean(self, text: str) -> str:
        """A stranger's words as one line of at most 200 characters, without a secret."""
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        for secret in sorted(self.secrets, key=len, reverse=True):
            for spelling in (secret, quote_plus(secret)):
                # what was a line break may be a space anywhere in it
                text = re.sub(" ?".join(map(re.escape, spelling)), "***", text)
        return text if len(text) <= 200 else text[:199] + "…"

    def send(
        self, method: str, url: str, headers: dict[str, str], content: Mapping[str, Any]
    ) -> httpx.Response:
        """One request, one whole answer; raises `httpx.RequestError`, or `Failure` if too long."""
        with self.client.stream(
            method, url, headers=headers, timeout=TIMEOUTS[method], **content
        ) as answer:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise Failure(f"sent more than {MOST_BYTES // 2**20} MiB")
            answer.headers.pop("Content-Encoding", None)  # it is decoded
            return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(body))


def json_object(answer: httpx.Response) -> dict[str, Any] | None:
    """The JSON object in an answer, None where there is none."""
    with suppress(ValueError, RecursionError):
        content = answer.json()
        return content if isinstance(content, dict) else None
    return None


def reason_in(answer: httpx.Response) -> str:
    """What a server says of its refusal."""
    content = json_object(answer) or {}
    for key in ("error_description", "message", "detail", "error", "title"):
        if reason := content.get(key):
            return reason if isinstance(reason, str) else json.dumps(reason)
    return re.sub("<[^>]*>", " ", answer.content[:10_000].decode(errors="replace"))


def pause_before_retry(
    fault: httpx.Response | httpx.RequestError, tries: int, lost_tries: int
) -> float | None:
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

    name: ClassVar[str]
    settings: ClassVar[str]  # that lead to it, for the user to check
    hints: Mapping[int, str] = {}

    def __init__(self, http: Http, host: str) -> None:
        self.http = http
        self.host = host.rstrip("/")

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
            fault: httpx.Response | httpx.RequestError
            try:
                fault = self.http.send(method, self.host + path, headers, content)
            except httpx.RequestError as error:
                fault = error
            except Failure as too_long:
                raise Failure(f"{self.name} {what} {too_long}; check {self.settings}") from None
            if isinstance(fault, httpx.Response):
                if fault.is_success:
                    return fault
                if fault.status_code == 401 and not renewed and self.renew(headers):
                    renewed = True
                    continue
            tries += 1
            failure = self.failure(what, fault, tries)
            pause = pause_before_retry(fault, tries, lost_tries)
            if pause is None:
                raise failure
            if pause > min(LONGEST_PAUSE, self.http.left()):
                due = f"the next try is due in {pause:.0f} seconds, which is not waited for"
                raise Failure(f"{failure}; {due}", failure.status)
            sleep(pause)

    def failure(self, what: str, fault: httpx.Response | httpx.RequestError, tries: int) -> Failure:
        """A fault in words: what happened, and what to do."""
        what = f"{self.name} {what}"
        often = f" ({tries} tries)" if tries > 1 else ""
        if not isinstance(fault, httpx.Response):
            reason = self.http.clean(str(fault)) or type(fault).__name__
            to_do = f"check the network and {self.settings}"
            return Failure(f"{what} gave no answer{often}: {reason}; {to_do}")
        status = fault.status_code
        to_do = self.hints.get(status) or f"check {self.settings}"
        if 300 <= status < 400:
            target = self.http.clean(fault.headers.get("Location", "nowhere"))
            to_do = f"it points to {target}, which is not followed: {to_do}"
        elif status == 429 or status >= 500:
            to_do = "try again later"
        reason = self.http.clean(reason_in(fault))
        return Failure(
            f"{what} answered {status}{often}{reason and f': {reason}'}; {to_do}", status
        )


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
    settings = "OURA_CLIENT_ID, OURA_CLIENT_SECRET, OURA_REDIRECT_URI and OURA_TOKEN_URL"

    def __init__(self, http: Http, settings: Settings) -> None:
        super().__init__(http, "")
        self.file = settings.token_file
        self.client = {
            "client_id": settings["OURA_CLIENT_ID"],
            "client_secret": settings["OURA_CLIENT_SECRET"],
        }

    def load(self) -> dict[str, Any]:
        """The tokens in the file; raises `Failure` where it is broken."""
        with suppress(OSError, ValueError, RecursionError):
            tokens = json.loads(self.file.read_bytes())
            if (
                isinstance(tokens, dict)
                and is_printable(tokens.get("access_token"))
                and is_printable(tokens.get("refresh_token"))
                and type(tokens.get("expires_at")) in (int, float)
                and is_address(str(tokens.get("token_url")))
            ):
                self.http.secrets |= {tokens["access_token"], tokens["refresh_token"]}
                return tokens
        raise Failure(f"the tokens in {self.file} cannot be used: {SIGN_IN_AGAIN}")

    def start(self, code: str, redirect_uri: str, addresses: Sequence[str]) -> None:
        """Trade the code of a browser, which works once, at the first address that takes it."""
        self.http.secrets.add(code)
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        with self.alone():
            for address in addresses:
                try:
                    self.trade(address, form)
                    break
                except Failure as failure:
                    if failure.status not in (400, 401) or address == addresses[-1]:
                        raise

    def access_token(self) -> str:
        """A token that is good for another minute, renewed where that is needed."""
        tokens = self.load()
        if tokens["expires_at"] - 60 > time():
            return str(tokens["access_token"])
        return self.renewed(tokens["access_token"])

    def renewed(self, stale: str) -> str:
        """The file's access token where it is another than this one, else a new one."""
        with self.alone():
            tokens = self.load()
            if tokens["access_token"] != stale:
                return str(tokens["access_token"])
            if self.http.left() < RENEWAL_SECONDS:
                raise Failure("no time is left to renew the sign-in; run again")
            form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
            try:
                return self.trade(tokens["token_url"], form, old=tokens["refresh_token"])
            except Failure as failure:
                again = f"; {SIGN_IN_AGAIN}" if failure.status in (400, 401) else ""
                raise Failure(f"{failure}{again}") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads, other runs and the end of this one off the token file."""
        try:
            self.file.parent.mkdir(0o700, parents=True, exist_ok=True)
            with open(f"{self.file}.lock", "w", opener=private) as lock:
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
        # one more try after a lost answer: the old refresh token is the only one there is
        asking = partial(
            self.ask, "sign-in", "POST", "", lost_tries=2, data={**form, **self.client}
        )
        try:
            answer = begin(asking).result(timeout=self.http.left() - 2)
        except TimeoutError:
            raise Failure(f"Oura sign-in gave no whole answer in time; {SIGN_IN_AGAIN}") from None
        content = json_object(answer) or {}
        access, refresh = content.get("access_token"), content.get("refresh_token") or old
        if not is_printable(access) or not is_printable(refresh):
            raise Failure(f"Oura sign-in answered without usable tokens; {SIGN_IN_AGAIN}")
        self.http.secrets |= {str(access), str(refresh)}
        lifetime = content.get("expires_in")  # seconds; not required by RFC 6749, 5.1
        if not isinstance(lifetime, (int, float)) or not 0 < lifetime < 1e9:
            lifetime = 86_400
        expires_at = int(time() + lifetime)
        return {
            "access_token": access,
            "refresh_token": refresh,
            "expires_at": expires_at,
            "token_url": address,
        }


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
    settings = "OURA_TOKEN and OURA_HOST"

    def __init__(self, http: Http, settings: Settings) -> None:
        super().__init__(http, settings["OURA_HOST"])
        self.token = settings["OURA_TOKEN"]
        self.sign_in = None if self.token else SignIn(http, settings)
        key = "check OURA_TOKEN" if self.token else SIGN_IN_AGAIN
        self.hints = {
            401: f"the token is not valid: {key}",
            403: f"the Oura membership has lapsed or a permission is missing: look there, or {key}",
            426: "the Oura app on the phone is too old: update it",
        }

    def headers(self) -> dict[str, str]:
        token = self.sign_in.access_token() if self.sign_in else self.token
        return {"Authorization": f"Bearer {token}"}

    def renew(self, refused: dict[str, str]) -> bool:
        if self.sign_in:
            self.sign_in.renewed(refused["Authorization"].removeprefix("Bearer "))
        return self.sign_in is not None

    def read(self, collection: str, days: Sequence[date], fields: Sequence[str] = ()) -> Documents:
        """The documents of these days, newest day first; only these `fields`, where there are any.

        Users measured three meanings of `start_date` and `end_date`. A window that is wider by a
        day on both sides holds the days under each of them.
        """
        params = {"start_date": str(days[-1] - ONE_DAY), "end_date": str(days[0] + ONE_DAY)}
        if fields:
            params["fields"] = ",".join(fields)
        documents: dict[date | None, list[Document]] = defaultdict(list)
        seen = set[str]()
        while True:
            answer = self.ask(collection, "GET", f"/v2/usercollection/{collection}", params=params)
            page = json_object(answer) or {}
            data, token = page.get("data"), page.get("next_token")
            if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
                raise Failure(f"Oura {collection} has no list of objects as data; {FORMAT_CHANGED}")
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

    def read_sleep(self, days: Sequence[date], fields: Sequence[str]) -> Documents:
        """The sleep sessions of these days, none from a server without that collection."""
        try:
            return self.read("sleep", days, fields)
        except Failure as failure:
            if failure.status == 404:
                return {}
            raise


# --- Metrics (map) ----------------------------------------------------------------------------


class Sources:
    """The documents of one day. Looking into a collection waits for it, and makes it needed."""

    def __init__(self, day: date, reads: Mapping[str, Future[Documents]]) -> None:
        self.day = day
        self.reads = reads
        self.needed: set[str] = set()

    def documents(self, collection: str) -> Sequence[Document]:
        """The day's documents in a collection; raises the `Failure` of a read that failed."""
        self.needed.add(collection)
        return self.reads[collection].result().get(self.day, ()) if collection in self.reads else ()

    def sessions(self) -> list[Document]:
        """The day's real sleep sessions (Oura API 2.0, `PublicSleepType`)."""
        return [one for one in self.documents("sleep") if one["type"] not in ("rest", "deleted")]


def number(value: Any, low: float, high: float, name: str) -> float | None:
    """This value, None where it is null; raises `Failure` unless it is a number in this range."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Failure(f"Oura {name} is no number from {low:g} to {high:g}; {FORMAT_CHANGED}")
    return value


def durations(documents: Iterable[Document], collection: str, field: str) -> list[float]:
    """A duration in each of these documents, in seconds, where it is not null."""
    name = f"{collection} {field}"
    found = [number(document.get(field), 0, 86_400, name) for document in documents]
    seconds = [one for one in found if one is not None]
    number(sum(seconds), 0, 86_400, name)
    return seconds


@dataclass(frozen=True, eq=False)
class Metric:
    """One row of `METRICS`: `take` finds its value in Oura's `collection` under `field`."""

    slug: str
    label: str
    unit: str
    low: float
    high: float
    take: Callable[[Metric, Sources], float | None]
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

    def of(self, document: Document) -> float | None:
        """Its value in a document."""
        value: Any = document
        for key in self.field.split("."):
            if not isinstance(value, dict):
                break  # null has nothing in it, and all else is no number
            value = value.get(key)
        return number(value, self.low, self.high, f"{self.collection} {self.field}")

    def daily(self, sources: Sources) -> float | None:
        """From the collection's one document of the day."""
        documents = sources.documents(self.collection)
        return self.of(documents[0]) if documents else None

    def minutes(self, sources: Sources) -> float | None:
        """Seconds of the whole day as minutes, a half rounded up.

        Oura API 2.0 has no durations in `daily_sleep`, they are summed over the sessions. A
        server that follows the guide has them there.
        """
        of_day = sources.documents("daily_sleep")[:1]
        seconds = durations(of_day, "daily_sleep", self.field)
        seconds = seconds or durations(sources.sessions(), "sleep", self.field)
        return int((sum(seconds) + 30) // 60) if seconds else None

    def of_main_session(self, sources: Sources) -> float | None:
        """From the longest real session of the day."""

        def length(session: Document) -> float:
            return sum(durations([session], "sleep", "total_sleep_duration"))

        main = max(sources.sessions(), key=length, default=None)
        return self.of(main) if main else None


# fmt: off
METRICS = {metric.slug: metric for metric in (
    Metric("oura-readiness", "Oura readiness score", "score", 0, 100,
           Metric.daily, "daily_readiness", "score",
           "How recovered the body is for the day ahead, as Oura scores it."),
    Metric("oura-hrv", "Oura HRV balance", "score", 0, 100,
           Metric.daily, "daily_readiness", "contributors.hrv_balance",
           "Readiness contributor: heart rate variability of two weeks against three months."),
    Metric("oura-sleep-minutes", "Oura sleep duration", "minutes", 0, 1440,
           Metric.minutes, "sleep", "total_sleep_duration",
           "Total time asleep in the night that ended on this day, naps included."),
    Metric("oura-sleep-score", "Oura sleep score", "score", 0, 100,
           Metric.daily, "daily_sleep", "score",
           "Overall quality of the night from its seven contributors."),
    Metric("oura-hrv-ms", "Oura overnight RMSSD", "ms", 0, 500,
           Metric.of_main_session, "sleep", "average_hrv",
           "Beat-to-beat variation of the pulse, averaged over the longest sleep."),
    Metric("oura-deep-minutes", "Oura deep sleep", "minutes", 0, 1440,
           Metric.minutes, "sleep", "deep_sleep_duration",
           "Slow-wave stage N3, which restores the body."),
    Metric("oura-rem-minutes", "Oura REM", "minutes", 0, 1440,
           Metric.minutes, "sleep", "rem_sleep_duration",
           "Rapid eye movement stage, in which most dreams are."),
    Metric("oura-light-minutes", "Oura light sleep", "minutes", 0, 1440,
           Metric.minutes, "sleep", "light_sleep_duration",
           "Stages N1 and N2, the shallow part from which one wakes easily."),
    Metric("oura-sleep-efficiency", "Oura time asleep in bed", "percent", 0, 100,
           Metric.of_main_session, "sleep", "efficiency",
           "Efficiency: the share of the time in bed that was not spent awake."),
    Metric("oura-lowest-heart-rate", "Oura lowest heart rate", "bpm", 20, 250,
           Metric.of_main_session, "sleep", "lowest_heart_rate",
           "Slowest pulse at rest, in beats per minute."),
    Metric("oura-respiratory-rate", "Oura respiratory rate", "breaths/min", 3, 60,
           Metric.of_main_session, "sleep", "average_breath",
           "Breathing frequency, mean of the longest period."),
    Metric("oura-temperature-deviation", "Oura temperature deviation", "celsius", -10, 10,
           Metric.daily, "daily_readiness", "temperature_deviation",
           "Skin warmth at night above or below the wearer's own baseline."),
)}
# fmt: on
DEFAULT_METRICS = ("oura-readiness", "oura-hrv", "oura-sleep-minutes")
IN_WORDS = ("oura-sleep-minutes", "oura-readiness", "oura-hrv-ms", "oura-hrv")


def choose_metrics(text: str) -> list[Metric]:
    """The metrics that `OURA_METRICS` names; raises `SettingsError` where one does not exist."""
    groups = {"all": set(METRICS), "default": set(DEFAULT_METRICS), "": set[str]()}
    words = [word.strip() for word in text.split(",")]
    chosen = set[str]().union(*(groups.get(word, {word}) for word in words))
    if not chosen or chosen - set(METRICS):
        raise SettingsError(f"OURA_METRICS must be of: {', '.join(METRICS)}, default, all")
    return [metric for slug, metric in METRICS.items() if slug in chosen]


@dataclass
class Night:
    """What there is to send of a day, with a sentence for people."""

    day: date
    values: dict[Metric, float]
    sentence: str
    stored: int = 0  # how many of its values Petals has

    def observations(self) -> list[dict[str, Any]]:
        """Its values as the guide shows them, each with its metric inside."""
        return [
            {"metric": metric.definition, "value": value, "occurredAt": f"{self.day}T00:00:00Z"}
            for metric, value in self.values.items()
        ]


def in_words(
    slept: float | None, readiness: float | None, ms: float | None, balance: float | None
) -> str:
    """A night as a sentence without its full stop; what is unknown is left out."""
    parts = []
    if slept is not None:
        parts.append("slept {}h{:02}".format(*divmod(int(slept), 60)))
    if readiness is not None:
        parts.append(f"readiness {readiness:g}")
    if ms is not None:
        parts.append(f"HRV {ms:g}ms")
    elif balance is not None:
        parts.append(f"HRV balance {balance:g}")
    sentence = ", ".join(parts)
    return sentence[:1].upper() + sentence[1:]


def observe(
    day: date, reads: Mapping[str, Future[Documents]], metrics: Iterable[Metric]
) -> tuple[Night, set[str]]:
    """Map a day's documents; returns also the collections that it needed.

    Raises the `Failure` of what a metric needs. The sentence needs nothing beside that: the rest
    of it is taken where it is at hand.
    """
    sources = Sources(day, reads)
    values = {metric: metric.take(metric, sources) for metric in metrics}
    needed = sources.needed
    at_hand = Sources(day, {c: read for c, read in reads.items() if c in needed or read.done()})

    def known(slug: str) -> float | None:
        metric = METRICS[slug]
        try:
            return metric.take(metric, at_hand)
        except Failure:
            if metric.collection in needed:
                raise
            return None

    sentence = in_words(*map(known, IN_WORDS))
    return Night(day, {m: v for m, v in values.items() if v is not None}, sentence), needed


def read_nights(oura: Oura, metrics: Sequence[Metric], report: Report) -> list[Night]:
    """The nights of the report's days that have anything to send, newest first."""
    of_sleep = [
        m for m in (*metrics, *map(METRICS.__getitem__, IN_WORDS)) if m.collection == "sleep"
    ]
    fields = list(dict.fromkeys(["day", "type", *(metric.field for metric in of_sleep)]))
    nights: list[Night] = []
    for start in range(0, len(report.days), SPAN_DAYS):
        days = report.days[start : start + SPAN_DAYS]
        report.progress(days[0])
        reads = {c: begin(partial(oura.read, c, days)) for c in ("daily_readiness", "daily_sleep")}
        dailies = list(reads.values())
        if any(metric.collection == "sleep" for metric in metrics):
            reads["sleep"] = begin(partial(oura.read_sleep, days, fields))
        wait(dailies, return_when=FIRST_EXCEPTION)
        # `sleep` may not be needed: it gets a moment, so that the sentence hangs on no race
        wait(reads.values(), timeout=GRACE_SECONDS)
        needed = set()
        for day in days:
            try:
                night, of_day = observe(day, reads, metrics)
            except Failure as failure:
                if failure.final:
                    report.stop(str(failure))
                    return nights
                report.fail(str(failure), day)
                continue
            needed |= of_day
            if night.values:
                nights.append(night)
            else:
                report.skip(day)
        for collection in sorted(needed & set(reads)):
            if reads[collection].result().get(None):
                report.fail(f"Oura {collection} has a document whose day cannot be read, left out")
    return nights
