#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["httpx>=0.28,<1", "python-dotenv>=1.0,<2"]
# ///
"""Send the nights measured by an Oura ring to Petals."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from random import uniform
from time import monotonic, sleep
from typing import Any, NamedTuple, TextIO, TypeVar

try:
    import httpx
    from dotenv import dotenv_values
except ModuleNotFoundError:
    sys.stderr.write("oura_to_petals: httpx or dotenv is missing: use .venv/bin/python or uv run\n")
    raise SystemExit(2) from None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module or None

__version__ = "1.1.0"

SCRIPT = Path(__file__).resolve()
Json = dict[str, Any]  # a JSON object
Answer = tuple[str, Callable[[str], None]]  # for --login: what was entered, and how to reply
T = TypeVar("T")
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]

ONE_DAY = timedelta(days=1)
FIRST_DAY = date(2015, 1, 1)
MAX_DAYS = 3660
DAYS_PER_READ = 366
RUN_SECONDS = 115.0  # for one day; each further day adds 2
RENEWAL_SECONDS = 30.0  # a renewal is not started with less time left
MAX_ATTEMPTS = 4
NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
MAX_DELAY = 60.0  # seconds between two attempts
MAX_BYTES = 8 * 2**20
MAX_PAGES = 200
SIGN_IN_AGAIN = "sign in again with --login"
RENAME_IT = "rename that metric in Petals and run again"


class RunError(Exception):
    """A failure that is reported in one line: the reason and what to do. The exit code is 1.

    `status` and `retry_after` come from the response. `ends_run` is true if every further request
    would fail too, for example because a key is refused or a rate limit is reached.
    """

    def __init__(self, reason: str, advice: str = "", status: int = 0, retry_after: str = ""):
        self.reason, self.advice = reason, advice
        self.status, self.retry_after = status, retry_after
        self.ends_run = False

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason


class SettingsError(RunError):
    """A setting, or something else on this machine, is wrong. Before a run, the exit code is 2."""


# --- Settings ---------------------------------------------------------------------------------

DEFAULTS = {
    "OURA_CLIENT_ID": "",
    "OURA_CLIENT_SECRET": "",
    "OURA_REDIRECT_URI": "http://localhost:8080/callback/",
    "OURA_AUTHORIZE_URL": "https://cloud.ouraring.com/oauth/authorize",
    "OURA_TOKEN_URL": "",  # the first of TOKEN_URLS that accepts the code
    "OURA_TOKEN_FILE": "~/.local/state/oura-to-petals/oura-token.json",
    "OURA_TOKEN": "",
    "OURA_HOST": "https://api.ouraring.com",
    "OURA_METRICS": "default",
    "PETALS_API_KEY": "",
    "PETALS_HOST": "https://petals.chat",
}
REQUIRED = ("OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "PETALS_API_KEY")
SIGN_IN = ("OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "OURA_TOKEN_URL", "OURA_HOST")
PETALS = ("PETALS_API_KEY", "PETALS_HOST")

KEY_FORM = r"[\w.~+/-]+=*"  # `b64token` of RFC 6750
URL_FORM = (
    r"(https://([\w.-]+|\[[\da-f:.]+\])|http://(localhost|127\.0\.0\.1|\[::1\]))"
    r"(:\d{1,5})?(/[^\s?#@\\]*)?"
)
KEY_NAMES = "OURA_TOKEN|PETALS_API_KEY|OURA_CLIENT_ID|OURA_CLIENT_SECRET"
FORMS = (  # pattern of names, pattern of values, and what is wrong with any other value
    ("OURA_TOKEN", "(?!petals-).*", "begins with petals-: are the two keys swapped?"),
    ("PETALS_API_KEY", "petals-.+", "does not begin with petals-: copy it again"),
    (KEY_NAMES, KEY_FORM, "has a space or another character that is in no key: copy it again"),
    (r"\w+_(HOST|URL)", URL_FORM, "is not a plain https:// address (http:// only for localhost)"),
    ("OURA_REDIRECT_URI", r"[\w.+-]+://[\w.-]*(:\d{1,5})?(/[!-~]*)?", "is not a complete address"),
)


class Settings(dict[str, str]):
    """The settings: from the environment, then the `.env` file, then `DEFAULTS`."""

    env_file: Path | None = None
    __repr__ = object.__repr__  # without the values

    def signed_in(self) -> bool:
        """Return whether the token file has content, or is unreadable, which is reported later."""
        try:
            return bool(Path(self["OURA_TOKEN_FILE"]).read_bytes().strip())
        except OSError as error:
            return not isinstance(error, FileNotFoundError)

    def for_oura(self) -> tuple[str, ...]:
        """Return the names of the settings that are needed to read Oura."""
        return ("OURA_TOKEN", "OURA_HOST") if self["OURA_TOKEN"] else ("OURA_TOKEN_FILE", *SIGN_IN)

    def command(self, *options: str) -> str:
        """Return a shell command for this script that works in any folder."""
        env_file = ["--env-file", str(self.env_file)] if self.env_file else []
        return shlex.join([sys.executable, str(SCRIPT), *options, *env_file])

    def check(self, *names: str) -> None:
        """Raise `SettingsError` with all of these settings that are missing or wrong."""
        problems = []
        if "OURA_TOKEN_FILE" in names and not self.signed_in():
            hint = "" if self["OURA_CLIENT_ID"] else ", or set OURA_TOKEN if you have one"
            problems.append(f"not signed in: run {self.command('--login')}{hint}")
        if missing := ", ".join(name for name in names if not self[name] and name in REQUIRED):
            file = self.env_file or "a .env file (none was found)"
            problems.append(f"not set: {missing}; looked in the environment and {file}")
        for pattern, form, problem in FORMS:
            for name in filter(self.get, names):
                if re.fullmatch(pattern, name) and not re.fullmatch(form, self[name], re.ASCII):
                    problems.append(f"{name} {problem}")
        if problems:
            raise SettingsError("; ".join(problems))


def load_settings(path: Path | None) -> Settings:
    """Return the settings. Raises `SettingsError` if the `.env` file cannot be read."""
    path = path or next(filter(Path.is_file, (Path(".env"), SCRIPT.with_name(".env"))), None)
    path = path and path.absolute()
    try:
        content = path.read_bytes() if path else b""
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SettingsError(f"{path} is in UTF-16: save it as UTF-8")
    text = io.StringIO(content.decode("utf-8-sig", "replace"))
    in_file = dotenv_values(stream=text, interpolate=False)
    settings = Settings()
    settings.env_file = path
    for name, default in DEFAULTS.items():
        in_environment = os.environ.get(name, "").strip()
        settings[name] = in_environment or (in_file.get(name) or "").strip() or default
    settings["OURA_TOKEN_FILE"] = os.path.expanduser(settings["OURA_TOKEN_FILE"])
    return settings


# --- HTTP -------------------------------------------------------------------------------------

SECRETS: set[str] = set()  # the keys and tokens of this run


def clean(said: object) -> str:
    """Return what a server said as one line of at most 200 characters, with secrets masked."""
    text = said if isinstance(said, str) else json.dumps(said)
    for secret in sorted(SECRETS, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub("<[^>]*>", " ", "".join(char if char.isprintable() else " " for char in text))
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def start(work: Callable[[], T]) -> Future[T]:
    """Run a function in a daemon thread. The thread of an executor would delay the exit."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - `Future.result` raises it again
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def open_client() -> httpx.Client:
    """Return the HTTP client of a run. Raises `SettingsError` if it cannot be set up."""
    try:
        return httpx.Client(
            verify=httpx.create_ssl_context(),
            mounts={"http://": None},  # a server on this machine is not behind a proxy
            headers={"Accept-Encoding": "identity", "User-Agent": f"oura-to-petals/{__version__}"},
            timeout=httpx.Timeout(30, connect=10),
        )
    except OSError as error:
        problem = f"the certificates cannot be loaded ({error}): check SSL_CERT_FILE, SSL_CERT_DIR"
    except (ValueError, ImportError, httpx.InvalidURL):  # their text may show a password
        problem = "the proxy cannot be used: check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY"
    raise SettingsError(problem)


class Http:
    """State shared by all requests of a run: the client, the settings and the time limit."""

    def __init__(self, client: httpx.Client, settings: Settings, seconds: float) -> None:
        self.client, self.settings = client, settings
        self.seconds, self.deadline = seconds, monotonic() + seconds
        self.pending: list[str] = []  # the names of the requests that have no answer yet
        self.renewal = threading.Lock()  # held from spending a token until the next one is on disk
        SECRETS.update(value for value in map(settings.get, KEY_NAMES.split("|")) if value)

    def run(self, work: Callable[[], T]) -> T:
        """Return the result of a function, or raise `RunError` at the time limit."""
        self.deadline = monotonic() + self.seconds
        future = start(work)
        try:
            while not future.done() and monotonic() < self.deadline:
                wait([future], 0.2)  # short: a signal just before a wait does not interrupt it
        finally:
            if not future.done():
                # A second Ctrl-C must not cut off a renewal.
                handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
                self.renewal.acquire(timeout=max(0, self.deadline - monotonic()) + 5)
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if not future.done():
            names = ", ".join(sorted(set(self.pending))) or "the services"
            raise RunError(f"no answer from {names} within {self.seconds:.0f} seconds")
        return future.result()


def retry_delay(error: RunError, attempt: int, max_lost: int, remaining: float) -> float | None:
    """Return the delay before the next attempt in seconds, or None to give up.

    There are `MAX_ATTEMPTS` if the server did not process the request, else `max_lost`. The delay
    that a server asks for also becomes the advice of the error.
    """
    cause = error.__cause__
    temporary = error.status in (408, 429, 500, 502, 503, 504)
    if isinstance(cause, httpx.TransportError):
        temporary = "CERTIFICATE_VERIFY" not in str(cause)
    not_processed = error.status in (429, 503) or isinstance(cause, NOT_CONNECTED)
    if not temporary or attempt >= (MAX_ATTEMPTS if not_processed else max_lost):
        return None
    delay = 2.0 ** (attempt - 1) * uniform(0.8, 1.2)  # noqa: S311 - jitter is no secret
    if re.fullmatch("[0-9]+", error.retry_after):
        delay = float(error.retry_after)
        error.advice = f"try again in {delay:.0f} seconds"
    return delay if delay <= min(MAX_DELAY, remaining) else None


class Service:
    """A server: its address, the header with its key, and what to do about its refusals."""

    name: str
    url: str  # a path is appended to it
    url_setting: str
    key_settings: str
    headers: Mapping[str, str] = {}
    advice: Mapping[int, str] = {}  # for statuses that, like 429, end the run

    def __init__(self, http: Http) -> None:
        self.http = http
        self.settings = http.settings

    def request(self, method: str, path: str, max_lost: int = MAX_ATTEMPTS, **content: Any) -> Json:
        """Return the JSON object that answers a request, with retries. Raises `RunError`."""
        name = f"{self.name} {path}".strip()
        self.http.pending.append(name)
        attempt = 1
        try:
            while True:
                try:
                    return self.send(name, method, path, content)
                except RunError as error:
                    delay = retry_delay(error, attempt, max_lost, self.http.deadline - monotonic())
                    if delay is None:
                        error.reason += f" ({attempt} tries)" if attempt > 1 else ""
                        raise
                    logging.info(f"{error.reason}; next try in {delay:.1f} seconds")
                    sleep(delay)
                    attempt += 1
        finally:
            self.http.pending.remove(name)

    def send(self, name: str, method: str, path: str, content: Json) -> Json:
        """Send a request once and return the JSON object that answers it. Raises `RunError`."""
        url, body, answer = self.url + path, bytearray(), None
        try:
            with self.http.client.stream(method, url, headers=self.headers, **content) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise RunError(f"{name} sent more than {MAX_BYTES >> 20} MiB")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError) as error:
            unreachable = isinstance(error, NOT_CONNECTED)
            what = f"could not reach {self.name}" if unreachable else f"{name}: the request failed"
            reason = f"{what}: {clean(str(error)) or type(error).__name__}"
            raise RunError(reason, f"check the network and {self.url_setting}") from error
        with suppress(ValueError, RecursionError):
            answer = json.loads(body)
        if response.is_success and isinstance(answer, dict):
            return answer
        status, headers = response.status_code, response.headers
        fields = answer if isinstance(answer, dict) else {}
        keys = ("error_description", "message", "detail", "error", "title")
        said = clean(next(filter(None, map(fields.get, keys)), body.decode(errors="replace")))
        advice = self.advice.get(status, f"check {self.key_settings} and {self.url_setting}")
        if status == 429 or status >= 500:
            advice = "try again later"
        elif status < 400:
            target = clean(headers.get("Location", "nowhere"))
            said = "no JSON object" if status < 300 else f"a redirect to {target}, not followed"
            advice = f"check {self.url_setting}"
        reason = f"{name} answered {status}{said and f': {said}'}"
        refusal = RunError(reason, advice, status, headers.get("Retry-After", ""))
        refusal.ends_run = status in self.advice or status == 429
        raise refusal


# --- Oura (read) ------------------------------------------------------------------------------

TOKEN_URLS = (
    "https://moi.ouraring.com/oauth/v2/ext/oauth-token",
    "https://api.ouraring.com/oauth/token",  # for applications registered in Oura's old portal
)


def parse_tokens(content: str | bytes, source: str) -> dict[str, str]:
    """Return the tokens in a JSON object. Raises `RunError` if they cannot be used."""
    found: Json = {}
    with suppress(ValueError, TypeError, RecursionError):
        found = {"token_url": TOKEN_URLS[0], **json.loads(content)}
    names = ("access_token", "refresh_token", "token_url")
    tokens = {name: str(found.get(name) or "") for name in names}
    if not all(re.fullmatch("[!-~]+", value) for value in tokens.values()):
        raise RunError(f"the tokens in {source} cannot be used", SIGN_IN_AGAIN)
    SECRETS.update((tokens["access_token"], tokens["refresh_token"]))
    return tokens


def write_tokens(file: io.BufferedRandom, content: bytes) -> None:
    """Overwrite the token file in one write, and wait until it is on disk."""
    file.seek(0)
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


class SignIn(Service):
    """The OAuth2 tokens of `--login` (RFC 6749).

    A refresh token works once; the response contains the next one. The token file is locked and
    overwritten in place, so that it always holds either the old tokens or the new ones.
    """

    name = "Oura sign-in"
    url_setting = "OURA_TOKEN_URL"
    key_settings = "OURA_CLIENT_ID, OURA_CLIENT_SECRET, OURA_REDIRECT_URI"
    advice = dict.fromkeys((400, 401), f"{SIGN_IN_AGAIN}; if that fails, check {key_settings}")

    @contextmanager
    def locked_file(self) -> Iterator[io.BufferedRandom]:
        """Open the token file and hold the lock on it. Raises `SettingsError`."""
        path = self.settings["OURA_TOKEN_FILE"]
        try:
            os.makedirs(os.path.dirname(path) or ".", 0o700, exist_ok=True)
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except OSError as error:
            raise SettingsError(f"OURA_TOKEN_FILE {path}: {error.strerror}") from None

    def access_token(self, refused: str = "") -> str:
        """Return the access token; renew it first if it is the refused one. Raises `RunError`."""
        with self.locked_file() as file:
            tokens = parse_tokens(file.read(), self.settings["OURA_TOKEN_FILE"])
            if tokens["access_token"] == refused:
                if self.http.deadline - monotonic() < RENEWAL_SECONDS:
                    raise RunError("too little time is left to renew the sign-in", "run again")
                form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
                url = self.settings["OURA_TOKEN_URL"] or tokens["token_url"]
                tokens = self.trade(file, form, url)
            return tokens["access_token"]

    def exchange(self, code: str) -> None:
        """Get tokens for an authorization code. Raises `RunError`, and keeps older tokens then."""
        SECRETS.add(code)
        uri, url = self.settings["OURA_REDIRECT_URI"], self.settings["OURA_TOKEN_URL"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": uri}
        with self.locked_file() as file:
            os.chmod(self.settings["OURA_TOKEN_FILE"], 0o600)
            try:
                self.trade(file, form, url or TOKEN_URLS[0])
            except RunError as error:
                if url or error.status not in (400, 401):
                    raise
                self.trade(file, form, TOKEN_URLS[1])

    def trade(self, file: io.BufferedRandom, form: Json, url: str) -> dict[str, str]:
        """Spend a code or a refresh token; return the new tokens when they are on disk."""
        self.url = url
        client_id, secret = self.settings["OURA_CLIENT_ID"], self.settings["OURA_CLIENT_SECRET"]
        data = {**form, "client_id": client_id, "client_secret": secret}
        with self.http.renewal:
            file.seek(0)
            old = file.read() or b" " * 4096
            write_tokens(file, old)  # fail on a full disk now, before the token is spent
            # If the answer is lost, another try is worth it: the token may not have been spent.
            answer = self.request("POST", "", max_lost=2, data=data)
            kept = {name: value for name, value in answer.items() if value}
            content = {**form, **kept, "token_url": url}  # no new refresh token: keep the old one
            tokens = parse_tokens(json.dumps(content), "Oura's answer")
            write_tokens(file, json.dumps(tokens).encode().ljust(len(old)))
        return tokens


ByDay = Mapping[date | None, list[Json]]  # documents by day; None for an unreadable day


def parse_day(text: object) -> date | None:
    """Return the day that is written as YYYY-MM-DD, or None for anything else."""
    with suppress(ValueError):
        if isinstance(text, str) and str(day := date.fromisoformat(text)) == text:
            return day
    return None


class Oura(Service):
    """Oura API 2.0, read with a personal access token or the tokens of a sign-in."""

    name = "Oura"
    url_setting = "OURA_HOST"

    def __init__(self, http: Http) -> None:
        super().__init__(http)
        self.url = self.settings["OURA_HOST"].rstrip("/") + "/v2/usercollection/"
        self.token = self.settings["OURA_TOKEN"]
        self.sign_in = None if self.token else SignIn(http)
        self.renewed = False
        self.key_settings = SignIn.key_settings if self.sign_in else "OURA_TOKEN"
        new_token = SIGN_IN_AGAIN if self.sign_in else "check OURA_TOKEN"
        self.advice = {
            401: f"the token is invalid or has expired: {new_token}",
            403: f"the Oura membership has lapsed or a permission is missing: {new_token}",
            426: "the Oura app on the phone is too old: update it",
        }

    def read(self, days: Sequence[date], metrics: Sequence[Metric]) -> dict[str, ByDay]:
        """Return the documents by collection; `days` are newest first. Raises `RunError`."""
        if self.sign_in and not self.token:
            self.token = self.sign_in.access_token()
        try:
            return self.read_all(days, metrics)
        except RunError as error:
            if error.status != 401 or not self.sign_in or self.renewed:
                raise
        self.token = self.sign_in.access_token(refused=self.token)
        self.renewed = True  # at most once per run
        return self.read_all(days, metrics)

    def read_all(self, days: Sequence[date], metrics: Sequence[Metric]) -> dict[str, ByDay]:
        """Read the three collections at once, with the current token. Raises `RunError`."""
        self.headers = {"Authorization": f"Bearer {self.token}"}
        names = ("daily_readiness", "daily_sleep", "sleep")
        reads = {name: start(partial(self.read_pages, name, days)) for name in names}
        found = {name: reads[name].result() for name in names[:2]}
        try:
            found["sleep"] = reads["sleep"].result()
        except RunError:
            # As in Petals' published guide, `daily_sleep` may have all that is needed of `sleep`.
            dailies = [doc for docs in found["daily_sleep"].values() for doc in docs]
            totals = [doc.get(TOTAL_SLEEP.field) for doc in dailies]
            needed = [metric for metric in metrics if metric.collection == "sleep"]
            if not totals or None in totals or needed not in ([], [TOTAL_SLEEP]):
                raise  # something is needed that only `sleep` has
            found["sleep"] = {}
        return found

    def read_pages(self, name: str, days: Sequence[date]) -> ByDay:
        """Return the documents of a collection, from all its pages, by day. Raises `RunError`."""
        # Reports differ on what these dates mean. One more day at each end covers every meaning.
        params = {"start_date": str(days[-1] - ONE_DAY), "end_date": str(days[0] + ONE_DAY)}
        if name == "sleep":  # leave out its series, which are most of a document
            fields = [metric.field for metric in METRICS.values() if metric.collection == "sleep"]
            params["fields"] = ",".join(["day", "type", *fields])
        documents: dict[date | None, list[Json]] = defaultdict(list)
        for _ in range(MAX_PAGES):
            page = self.request("GET", name, params=params)
            data = page.get("data")
            if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
                raise RunError(f"Oura {name} has no list of objects as data", "check OURA_HOST")
            for document in data:
                day = parse_day(document.get("day"))
                if day is None or days[-1] <= day <= days[0]:
                    documents[day].append(document)
            if not page.get("next_token"):
                return documents
            params["next_token"] = page["next_token"]
        raise RunError(f"Oura {name} has more than {MAX_PAGES} pages", "check OURA_HOST")


# --- Metrics (map) ----------------------------------------------------------------------------


class Metric(NamedTuple):
    """A row of `METRICS`: a number from `low` to `high` in a field of an Oura collection."""

    slug: str
    collection: str
    field: str
    unit: str
    low: float
    high: float
    label: str
    description: str

    @property
    def key(self) -> str:
        """The slug for servers that do not accept hyphens."""
        return self.slug.replace("-", "_")

    @property
    def definition(self) -> Json:
        """The metric as it is sent inside an observation."""
        words = {"slug": self.slug, "label": self.label, "unit": self.unit}
        return {**words, "aggregationHint": "avg"}

    def check(self, value: float | None, collection: str, scale: int = 1) -> float | None:
        """Return a number or None. Raises `RunError` for an impossible value."""
        low, high = self.low * scale, self.high * scale
        if value is None or (type(value) in (int, float) and low <= value <= high):
            return value
        reason = f"Oura {collection} {self.field} is not a number from {low:g} to {high:g}"
        raise RunError(reason, "if this keeps happening, look for an update of this script")

    def value(self, documents: Mapping[str, list[Json]]) -> float | None:
        """Return the value of a day, or None if Oura has none. Raises `RunError`."""
        if self.unit == "minutes":
            # Oura API 2.0 has durations in `sleep`, Petals' published guide in `daily_sleep`.
            for name in ("daily_sleep", "sleep"):
                seconds = [self.check(item.get(self.field), name, 60) for item in documents[name]]
                if known := [value for value in seconds if value is not None]:
                    self.check(sum(known), name, 60)
                    return (sum(known) + 30) // 60
            return None
        docs = documents[self.collection]
        if docs and self.collection == "sleep":  # the longest session
            seconds_of = partial(TOTAL_SLEEP.check, collection="sleep", scale=60)
            docs = [max(docs, key=lambda doc: seconds_of(doc.get(TOTAL_SLEEP.field)) or 0)]
        value: Any = docs[0] if docs else None
        for key in self.field.split("."):
            if value is not None:
                value = value.get(key) if isinstance(value, dict) else "no object"
        return self.check(value, self.collection)


# fmt: off
METRICS = {row[0]: Metric(*row) for row in (
    ("oura-readiness", "daily_readiness", "score", "score", 0, 100,
     "Oura readiness score", "How recovered the body is for the day ahead, as Oura scores it."),
    ("oura-hrv", "daily_readiness", "contributors.hrv_balance", "score", 0, 100,
     "Oura HRV balance", "Heart rate variability of two weeks against that of three months."),
    ("oura-sleep-minutes", "sleep", "total_sleep_duration", "minutes", 0, 1440,
     "Oura sleep duration", "Total time asleep in the night that ended this day, naps included."),
    ("oura-sleep-score", "daily_sleep", "score", "score", 0, 100,
     "Oura sleep score", "Overall quality of the night from its seven contributors."),
    ("oura-hrv-ms", "sleep", "average_hrv", "ms", 0, 500,
     "Oura overnight RMSSD", "Beat-to-beat variation of the pulse, mean of the longest sleep."),
    ("oura-deep-minutes", "sleep", "deep_sleep_duration", "minutes", 0, 1440,
     "Oura deep sleep", "Slow-wave stage N3, which restores the body."),
    ("oura-rem-minutes", "sleep", "rem_sleep_duration", "minutes", 0, 1440,
     "Oura REM", "Rapid eye movement stage, in which most dreams occur."),
    ("oura-light-minutes", "sleep", "light_sleep_duration", "minutes", 0, 1440,
     "Oura light sleep", "Stages N1 and N2, the shallow part from which one wakes easily."),
    ("oura-sleep-efficiency", "sleep", "efficiency", "percent", 0, 100,
     "Oura time asleep in bed", "Efficiency: the share of the time in bed not spent awake."),
    ("oura-lowest-heart-rate", "sleep", "lowest_heart_rate", "bpm", 20, 250,
     "Oura lowest heart rate", "Slowest pulse at rest, in beats per minute."),
    ("oura-respiratory-rate", "sleep", "average_breath", "breaths/min", 3, 60,
     "Oura respiratory rate", "Breathing frequency, mean of the longest period."),
    ("oura-temperature-deviation", "daily_readiness", "temperature_deviation", "celsius", -10, 10,
     "Oura temperature deviation", "Skin warmth at night against the wearer's own baseline."),
)}
# fmt: on
TOTAL_SLEEP = METRICS["oura-sleep-minutes"]
GROUPS = {"all": list(METRICS), "default": ["oura-readiness", "oura-hrv", "oura-sleep-minutes"]}


def choose_metrics(text: str) -> list[Metric]:
    """Return the metrics that `OURA_METRICS` names. Raises `SettingsError` for unknown names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    slugs = {slug for name in names for slug in GROUPS.get(name, [name])}
    unknown = ", ".join(sorted(slugs - METRICS.keys()))
    if unknown or not slugs:
        choice = ", ".join([*METRICS, *GROUPS])
        raise SettingsError(f"OURA_METRICS: there is no metric {unknown!r}: choose from {choice}")
    return [metric for slug, metric in METRICS.items() if slug in slugs]


class Night(NamedTuple):
    """What there is to send for a day, with a sentence for people to read."""

    day: date
    values: dict[Metric, float]
    sentence: str
    occurred_at: str

    @property
    def observations(self) -> list[Json]:
        """The values as observations with their metric inside."""
        at, values = self.occurred_at, self.values.items()
        return [{"metric": m.definition, "value": v, "occurredAt": at} for m, v in values]


def map_night(day: date, documents: dict[str, list[Json]], metrics: Iterable[Metric]) -> Night:
    """Return the night for a day from its documents. Raises `RunError` for an impossible value."""
    # Sessions of these types were rejected or deleted (Oura API 2.0, `PublicSleepType`).
    real = [item for item in documents["sleep"] if item.get("type") not in ("rest", "deleted")]
    documents = {**documents, "sleep": real, "daily_sleep": documents["daily_sleep"][:1]}
    values = {m: value for m in metrics if (value := m.value(documents)) is not None}
    known = {}
    for slug in ("oura-sleep-minutes", "oura-readiness", "oura-hrv-ms", "oura-hrv"):
        with suppress(RunError):  # the sentence can do without it
            known[slug] = METRICS[slug].value(documents)
    parts = []
    if (minutes := known.get("oura-sleep-minutes")) is not None:
        parts.append(f"slept {minutes // 60:g}h{minutes % 60:02g}")
    if (readiness := known.get("oura-readiness")) is not None:
        parts.append(f"readiness {readiness:g}")
    if (hrv := known.get("oura-hrv-ms")) is not None:
        parts.append(f"HRV {hrv:g}ms")
    elif (balance := known.get("oura-hrv")) is not None:
        parts.append(f"HRV balance {balance:g}")
    sentence = ", ".join(parts)
    return Night(day, values, sentence[:1].upper() + sentence[1:], f"{day}T00:00:00Z")


# --- Petals (push) ----------------------------------------------------------------------------


class Petals(Service):
    """A Petals server. There are two kinds.

    Most servers list their metrics, know a metric by its slug after it was defined, and replace
    a day by its `sourceExternalId`. An array server, as in Petals' published guide, has no list and
    takes an array of observations, each with its metric inside.
    """

    name = "Petals"
    url_setting = "PETALS_HOST"
    key_settings = "PETALS_API_KEY"
    new_key = "keys expire after a year; create a new one in Petals at Settings → API keys"
    advice = dict.fromkeys((401, 403), f"check PETALS_API_KEY: {new_key}")

    def __init__(self, http: Http) -> None:
        super().__init__(http)
        self.url = self.settings["PETALS_HOST"].rstrip("/") + "/api/memory/metrics/"
        self.headers = {"x-api-key": self.settings["PETALS_API_KEY"]}
        self.metrics: dict[str, Json] | None = None  # by slug; None for an array server
        self.proposed: set[str] = set()

    def load_metrics(self) -> None:
        """Ask the server for its metrics, which also shows its kind. Raises `RunError`."""
        listed: Any = None
        try:
            listed = self.request("POST", "list", json={}).get("metrics")
        except RunError as error:
            if error.status not in (200, 404, 405):  # 200: an answer that is no JSON object
                raise
        self.metrics = None
        if isinstance(listed, list):
            entries = [item for item in listed if isinstance(item, dict)]
            self.metrics = {i["slug"]: i for i in entries if isinstance(i.get("slug"), str)}

    def define(self, nights: Iterable[Night]) -> dict[str, list[str]]:
        """Define new metrics. Return the slugs left undefined, for each reason. Raises `RunError`.

        Petals defines a metric even if it refuses its value as out of range (measured with version
        2.1.0). So such a value is sent: the metric is defined, and no value is stored.
        """
        if self.metrics is None:
            return {}
        known = {*self.metrics, *self.proposed}
        labels = {str(item.get("label")).lower(): slug for slug, item in self.metrics.items()}
        reasons: dict[str, str] = {}
        unknown: dict[str, list[str]] = defaultdict(list)
        for metric in dict.fromkeys(metric for night in nights for metric in night.values):
            if metric.key in known:
                continue
            self.proposed.add(metric.key)
            if slug := labels.get(metric.label.lower()):
                reason = f"your metric {clean(slug)} has the same label; {RENAME_IT}"
                unknown[reason].append(metric.key)
                continue
            words = {"slug": metric.key, "description": metric.description}
            limits = {"validRangeMin": metric.low, "validRangeMax": metric.high}
            body: Json = {"metric": {**metric.definition, **words, **limits}}
            body |= {"value": metric.low - 1, "occurredAt": "1970-01-01T00:00:00Z"}
            reasons[metric.key] = f"Petals filed it under a similar metric; {RENAME_IT}"
            try:
                self.request("POST", "observations", max_lost=1, json=body)
            except RunError as error:  # as expected for a value out of range
                if error.ends_run:
                    raise
                reasons[metric.key] = f"{error.reason}; the next run tries again"
        if reasons:
            self.load_metrics()  # the new list decides: another run may have defined them
        for key, reason in reasons.items():
            if key not in (self.metrics or {}):
                unknown[reason].append(key)
        return unknown

    def push(self, night: Night) -> int:
        """Send a night; return how many observations Petals stored. Raises `RunError`."""
        body: Any
        if self.metrics is None:
            slugs, body = [metric.slug for metric in night.values], night.observations
        else:
            values = {m.key: value for m, value in night.values.items() if m.key in self.metrics}
            slugs, at = list(values), night.occurred_at
            rows = [{"metricSlug": s, "value": v, "occurredAt": at} for s, v in values.items()]
            if not rows:
                return 0
            rows[0] |= {"note": night.sentence} if night.sentence else {}
            body = {"sourceExternalId": f"oura_{night.day}", "observations": rows}
        answer = self.request("POST", "observations/bulk", json=body)
        if errors := answer.get("errors"):
            refused = clean(errors)
            with suppress(TypeError, KeyError, IndexError):
                refused = "; ".join(f"{slugs[entry['index']]}: {clean(entry)}" for entry in errors)
            raise RunError(f"Petals refused {refused}")
        # An array server may answer with the id of a job only.
        kept = answer.get("inserted", len(slugs) if self.metrics is None else None)
        if type(kept) is not int or kept < len(slugs):
            raise RunError(f"Petals stored {clean(kept)} of {len(slugs)} observations", "run again")
        return len(slugs)


# --- Command line -----------------------------------------------------------------------------


def say(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Write text to stdout or another file. It is not an error if nobody can read it."""
    with suppress(OSError):
        print(text, file=file, end=end, flush=True)


def format_days(days: Iterable[date]) -> str:
    """Return days as in `2026-06-01, 2026-06-03 to 2026-06-07`."""
    spans: list[list[date]] = []
    for day in sorted(days):
        if not spans or spans[-1][-1] != day - ONE_DAY:
            spans.append([])
        spans[-1].append(day)
    return ", ".join(f"{s[0]} to {s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)


class Transfer:
    """The transfer of some days, newest first, and its result."""

    def __init__(self, http: Http, days: list[date], options: argparse.Namespace) -> None:
        self.oura, self.petals, self.days = Oura(http), Petals(http), days
        self.metrics = choose_metrics(http.settings["OURA_METRICS"])
        self.sends = not (options.check or options.dry_run)
        shows_days = self.sends and (options.verbose or len(days) == 1)
        self.show_day: Callable[[str], None] = say if shows_days else lambda _: None
        self.shows_progress = self.sends and not (options.quiet or shows_days)
        self.sent: list[date] = []
        self.observations = self.empty = 0
        self.failures: dict[str, list[date]] = {}  # the days lost to each problem

    def progress(self, day: date | None = None) -> None:
        """Show the current day on a terminal, or remove that line."""
        if self.shows_progress and sys.stderr and sys.stderr.isatty():
            done = f"{(self.days[0] - day).days} of {len(self.days)} days, {day}" if day else ""
            say(f"\r\x1b[K{done}", sys.stderr, end="")

    def fail(self, problem: object, days: Iterable[date] = ()) -> None:
        """Note a problem and the days lost to it."""
        self.failures.setdefault(str(problem), []).extend(days)

    def read(self) -> Iterator[list[Night]]:
        """Yield the nights of a year at a time, newest first. Raises `RunError` to end the run."""
        for first in range(0, len(self.days), DAYS_PER_READ):
            days = self.days[first : first + DAYS_PER_READ]
            self.progress(days[0])
            nights: list[Night] = []
            try:
                found = self.oura.read(days, self.metrics)
            except RunError as error:
                if error.ends_run:
                    raise
                self.fail(error, days)
                found, days = {}, []
            for day in days:
                documents = {name: by_day.get(day, []) for name, by_day in found.items()}
                try:
                    nights.append(map_night(day, documents, self.metrics))
                except RunError as error:
                    self.fail(error, [day])
            for name, by_day in found.items():
                if None in by_day:
                    self.fail(f"Oura {name} has a document without a readable day; it is left out")
            yield nights

    def send(self) -> None:
        """Send the days to Petals. Raises `RunError` if that ends the run."""
        loading = start(self.petals.load_metrics)  # while Oura is read
        failed_days = 0
        for nights in self.read():
            if self.failures or any(night.values for night in nights):
                loading.result()  # if Oura failed, a problem of Petals is reported too
            for reason, slugs in self.petals.define(nights).items():
                self.fail(f"{', '.join(slugs)} left out: {reason}")
            for night in nights:
                self.progress(night.day)
                try:
                    self.send_night(night)
                    failed_days = 0
                except RunError as error:
                    if error.ends_run:
                        raise
                    self.fail(error, [night.day])
                    failed_days += 1
                    if failed_days == 5:
                        raise RunError("stopped after five failed days in a row") from None

    def send_night(self, night: Night) -> None:
        """Send a night, if it has values, and note the result. Raises `RunError`."""
        if not night.values:
            self.empty += 1
            self.show_day(f"No Oura data for {night.day} — nothing pushed.")
        elif number := self.petals.push(night):
            self.sent.append(night.day)
            self.observations += number
            pushed = f"Pushed {number} observation{'s' * (number != 1)} for {night.day}."
            self.show_day(f"{pushed} {night.sentence}." if night.sentence else pushed)

    def print(self) -> None:
        """Print what would be sent. Raises `RunError` if Oura cannot be read."""
        rows = [row for nights in self.read() for night in nights for row in night.observations]
        if rows or not self.failures:
            say(json.dumps(rows, indent=2))

    def stop(self, problem: object) -> None:
        """Note a problem that ends the run, with the command that sends the remaining days."""
        if len(self.days) == 1 or not self.sends:
            return self.fail(problem, self.days)
        first = self.sent[-1] - ONE_DAY if self.sent else self.days[0]
        text = f"{problem}; {len(self.sent)} of {len(self.days)} days are in"
        if remaining := (first - self.days[-1]).days + 1:
            options = ("--date", str(first), "--days", str(remaining))
            text += f", go on with: {self.oura.settings.command(*options)}"
        return self.fail(text)

    def close(self) -> int:
        """Report the problems and, for several days, the result. Return the exit code."""
        self.progress()
        for problem, days in list(self.failures.items()):
            logging.error(f"{format_days(days)}: {problem}" if days else problem)
        total = len(self.days)
        if self.empty == total > 1:
            asked = format_days(self.days)
            logging.error(f"no Oura data for {asked}: has the Oura app been opened?")
        if self.sends and total > 1:
            span = " to ".join(sorted({str(day) for day in self.sent[:1] + self.sent[-1:]}))
            sent = f"{len(self.sent)} of {total} days{span and f', {span}'}"
            empty = f"; {self.empty} day{'s' * (self.empty != 1)} without data" * bool(self.empty)
            plural = "s" * (self.observations != 1)
            say(f"Pushed {self.observations} observation{plural} for {sent}{empty}.")
        return 1 if self.failures else 0


DEMO = {"OURA_TOKEN": "demo", "PETALS_API_KEY": "petals-demo", "OURA_METRICS": "all"}
# fmt: off
DEMO_NIGHT: Json = {  # the fields of all three collections
    "score": 82, "contributors": {"hrv_balance": 77}, "temperature_deviation": -0.1,
    "total_sleep_duration": 25_920, "deep_sleep_duration": 5_400, "rem_sleep_duration": 6_120,
    "light_sleep_duration": 14_400, "efficiency": 91, "average_hrv": 54, "lowest_heart_rate": 48,
    "average_breath": 14.5,
}
# fmt: on


def demo_client() -> httpx.Client:
    """Return a client that plays Oura and an array server, and shows what is sent to it."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            first = date.fromisoformat(request.url.params["start_date"])
            days = [str(first + n * ONE_DAY) for n in range(DAYS_PER_READ + 1)]
            return httpx.Response(200, json={"data": [{"day": day, **DEMO_NIGHT} for day in days]})
        for row in json.loads(request.content):  # none when asked for the list of metrics
            say(f"{row['metric']['label']:<28}{row['value']:>6} {row['metric']['unit']}")
        return httpx.Response(202, json={"jobId": "demo"})

    return httpx.Client(transport=httpx.MockTransport(answer))


def read_stdin(put: Callable[[Answer], None]) -> None:
    """Put each pasted line in the queue, and an empty one at the end of stdin."""
    # Not `sys.stdin`: Python can crash at exit while a thread waits for its buffer.
    with suppress(OSError), open(0, "rb", buffering=0, closefd=False) as stdin:
        for line in stdin:
            text = re.sub(r"\x1b?\[?20[01]~", "", line.decode(errors="replace"))  # bracketed paste
            if text := text.strip("<>'\" \t\r\n"):
                put((text, lambda _: None))
    put(("", lambda _: None))


def listen(redirect: httpx.URL, state: str, put: Callable[[Answer], None]) -> None:
    """Put the address to which Oura redirects the browser in the queue (RFC 8252, 7.3)."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            params = httpx.QueryParams(query)
            if path != redirect.path or self.command != "GET":
                self.show("There is nothing here.", 404)
            elif params.get("state") != state or not (params.get("code") or params.get("error")):
                self.show("This address is not part of the current sign-in.", 400)
            else:
                put((self.path, self.show))
                threading.Event().wait()  # the main thread replies, and the script ends

        do_HEAD = do_POST = do_GET  # noqa: N815 - names that http.server calls

        def show(self, text: str, status: int = 200) -> None:
            with suppress(OSError):  # the browser may be closed
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Log nothing, because the address contains the code."""

    if redirect.scheme == "http" and redirect.host in ("localhost", "127.0.0.1"):
        with suppress(OSError, OverflowError):  # the port cannot be used
            start(ThreadingHTTPServer(("127.0.0.1", redirect.port or 80), Handler).serve_forever)


def log_in(http: Http) -> None:
    """Sign in with Oura, with a code from the browser or a pasted line. Raises `RunError`."""
    import secrets
    import webbrowser
    from queue import SimpleQueue

    settings, state = http.settings, secrets.token_urlsafe(16)
    http.settings = Settings({**settings, "OURA_TOKEN": ""})  # or it would be used instead
    sign_in = SignIn(http)
    with sign_in.locked_file():
        pass  # check that it can be written before anybody opens a browser
    redirect_uri, token_file = settings["OURA_REDIRECT_URI"], settings["OURA_TOKEN_FILE"]
    params = {"response_type": "code", "client_id": settings["OURA_CLIENT_ID"]}
    params |= {"redirect_uri": redirect_uri, "scope": "daily", "state": state}
    url = str(httpx.URL(settings["OURA_AUTHORIZE_URL"], params=params))
    answers: SimpleQueue[Answer] = SimpleQueue()
    listen(httpx.URL(redirect_uri), state, answers.put)
    start(partial(read_stdin, answers.put))
    say(f"Your application at Oura must have exactly this redirect address:\n  {redirect_uri}")
    say(f"Open this address in a browser and agree:\n  {url}")
    say("If the browser ends on a page that does not load, paste the address of that page here:")
    if sys.stdout is not None and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ:
        webbrowser.open(url)

    ask_again = iter((True, True, True, False))  # after a wrong line
    while True:
        text, show = answers.get()
        found = httpx.QueryParams(text.partition("#")[0].rpartition("?")[2])
        bare_code = text if re.fullmatch(KEY_FORM, text, re.ASCII) else ""
        code = found.get("code") if found.get("state") == state else bare_code
        try:
            if refusal := found.get("error"):
                said = clean(f"{refusal} {found.get('error_description', '')}")
                raise RunError(f"Oura refused the sign-in: {said}", "run --login again")
            if code:
                http.run(partial(sign_in.exchange, code))
                break
            if not text or not next(ask_again):
                raise RunError("no address of this sign-in was entered", "run --login again")
        except RunError as error:
            show(str(error))
            raise
        say("This is not the address of this sign-in. If in doubt, open the address above again.")
        say(f"The right one begins with {redirect_uri} and contains code=. Paste it here:")
    show("You are signed in. You can close this tab.")
    say(f"You are signed in. The sign-in renews itself; its tokens are in {token_file}.")
    http.run(partial(Oura(http).read, [date.today()], []))
    say(f"Reading Oura works. Next, check both services: {settings.command('--check')}")
    if settings["OURA_TOKEN"]:
        logging.warning("OURA_TOKEN is set and takes precedence: remove it to use the sign-in")


def check(client: httpx.Client, settings: Settings, options: argparse.Namespace) -> int:
    """Say whether both services work, and write to neither. Return the exit code."""

    def check_oura(http: Http) -> str:
        settings.check(*settings.for_oura())
        transfer = Transfer(http, [date.today() - n * ONE_DAY for n in range(7)], options)
        latest = next((n.day for nights in transfer.read() for n in nights if n.values), None)
        if transfer.failures:
            raise RunError("; ".join(transfer.failures))
        way = "OURA_TOKEN" if settings["OURA_TOKEN"] else settings["OURA_TOKEN_FILE"]
        return f"reading works with {way}; latest night: {latest or 'none yet'}."

    def check_petals(http: Http) -> str:
        settings.check(*PETALS)
        petals, metrics = Petals(http), choose_metrics(settings["OURA_METRICS"])
        petals.load_metrics()
        if petals.metrics is None:
            return "it has no list of metrics, so the first push shows whether it accepts the key."
        known = [petals.metrics[metric.key] for metric in metrics if metric.key in petals.metrics]
        stats = [item["stats"] for item in known if isinstance(item.get("stats"), dict)]
        latest = max((str(item.get("latestAt") or "")[:10] for item in stats), default="")
        missing = ", the next push defines the others" if len(known) < len(metrics) else ""
        count = f"{len(known)} of {len(metrics)} metrics are defined{missing}"
        return f"the key is accepted; {count}; latest observation: {clean(latest) or 'none yet'}."

    code = 0
    for name, check_service in (("Oura", check_oura), ("Petals", check_petals)):
        http = Http(client, settings, RUN_SECONDS / 2)
        try:
            say(f"{name}: {http.run(partial(check_service, http))}")
        except RunError as error:
            logging.error(f"{name}: {str(error).removeprefix(f'{name} ')}")
            code = 1
    return code


def day_argument(text: str) -> date:
    """Return the day that `--date` names, in this machine's time zone."""
    today = date.today()
    day = {"today": today, "yesterday": today - ONE_DAY}.get(text) or parse_day(text)
    if not day or not FIRST_DAY <= day <= today:
        raise argparse.ArgumentTypeError(f"{text!r} is not YYYY-MM-DD from {FIRST_DAY} to today")
    return day


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line. Exits with 2 if they are wrong."""
    codes = "exit codes: 0 done, 1 something failed, 2 wrong usage or settings, 130 interrupted"
    parser = argparse.ArgumentParser(description=__doc__, epilog=codes, allow_abbrev=False)
    add, flag = parser.add_argument, partial(parser.add_argument, action="store_true")
    mode = partial(parser.add_mutually_exclusive_group().add_argument, action="store_true")
    # fmt: off
    add("--date", metavar="DAY", type=day_argument, default="yesterday",
        help="the day on which the night ended: YYYY-MM-DD, today or yesterday (the default)")
    add("--days", metavar="N", type=int, default=1,
        help=f"the last N days up to --date, from 1 (the default) to {MAX_DAYS}")
    add("--env-file", metavar="FILE", type=Path, help="read the settings from FILE, not from .env")
    mode("--login", help="sign in with Oura, once")
    mode("--check", help="check that both services work; nothing is sent")
    mode("--dry-run", help="print what would be sent, without asking Petals")
    mode("--demo", help="show what is sent for a sample night; needs no account and no network")
    flag("-q", "--quiet", help="show problems only")
    flag("-v", "--verbose", help="show each request, each failed try and, with --days, each day")
    add("--version", action="version", version=f"oura_to_petals {__version__}")
    # fmt: on
    options = parser.parse_args(argv)
    if not 1 <= options.days <= MAX_DAYS:
        parser.error(f"argument --days: {options.days} is not from 1 to {MAX_DAYS}")
    return options


def run(options: argparse.Namespace) -> int:
    """Do what the options ask for and return the exit code. Raises `RunError`."""
    settings = Settings(DEFAULTS | DEMO) if options.demo else load_settings(options.env_file)
    if (file := settings.env_file) and os.name == "posix" and file.stat().st_mode & 0o044:
        logging.warning(f"others can read your keys: run chmod 600 {shlex.quote(str(file))}")
    if options.login:
        settings.check("OURA_REDIRECT_URI", "OURA_AUTHORIZE_URL", *SIGN_IN)
    elif not options.check:
        settings.check(*settings.for_oura(), *(() if options.dry_run else PETALS))
    client = demo_client() if options.demo else open_client()
    if options.check:
        return check(client, settings, options)
    days = [day for n in range(options.days) if (day := options.date - n * ONE_DAY) >= FIRST_DAY]
    http = Http(client, settings, RUN_SECONDS + 2 * (len(days) - 1))
    if options.login:
        log_in(http)
        return 0
    transfer = Transfer(http, days, options)
    try:
        http.run(transfer.print if options.dry_run else transfer.send)
    except RunError as error:
        transfer.stop(error)
    except KeyboardInterrupt:
        transfer.stop("interrupted")
        transfer.close()
        raise
    return transfer.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # keep what nohup ignores
            signal.signal(number, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(format="oura_to_petals: %(message)s", level=level, force=True)
    try:
        with redirect_stdout(None) if options.quiet and not options.login else nullcontext():
            return run(options)
    except RunError as error:
        logging.error(error)
        return 2 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - its message could contain a key
        import traceback

        frames = traceback.extract_tb(error.__traceback__)
        line = [frame.lineno for frame in frames if frame.filename == __file__][-1]
        logging.error(f"a bug, {type(error).__name__} in line {line}: please report it")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
