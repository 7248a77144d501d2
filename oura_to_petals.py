#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["httpx>=0.28,<1", "python-dotenv>=1.0,<2"]
# ///
"""Send the nights measured by an Oura ring to Petals.

A run goes from `main` to `push`: year by year, it reads the days from Oura (`Oura.read`), maps each
one to a `Night` (`map_day`) and stores it in Petals (`Petals.store`). Wherever there are several
days, the newest is the first.
A failure is a `RunError`. A fatal one ends the run, another one its day, or its year at a read.
Before that, a `RequestError` is tried again (`Service.request`) and, with `--wait`, waited for
(`Waiter`).
The Oura token is sent to OURA_HOST only, the Petals key to PETALS_HOST only, the client secret and
the refresh token to OURA_TOKEN_URL only. The one file that is written has the tokens of `--login`.
"The guide" is what Petals published for such a script. Both services differ from it today. Servers
that follow it work, too; its kind of Petals is called an array server here.
"""

from __future__ import annotations

import sys

try:
    import argparse
    import base64
    import errno
    import fcntl  # not on Windows
    import hashlib
    import io
    import json
    import logging
    import os
    import re
    import select
    import shlex
    import signal
    import socket
    import stat
    from collections import defaultdict
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import contextmanager, redirect_stdout, suppress
    from dataclasses import dataclass
    from datetime import UTC, date, datetime, timedelta  # UTC is new in Python 3.11
    from functools import cached_property
    from math import inf
    from pathlib import Path
    from time import monotonic, sleep
    from typing import Any, NamedTuple, NoReturn, TextIO, TypeVar, cast
    from urllib.request import getproxies, proxy_bypass

    import httpx
    from dotenv.parser import parse_stream
except ImportError as error:
    package = str(error.name).partition(".")[0]
    problem = f"{package} is missing: use .venv/bin/python or uv run"
    if error.name in ("fcntl", "datetime"):
        problem = "needs Python 3.11 or newer, on Linux, macOS or WSL"
    sys.stderr.write(f"oura_to_petals: {problem}\n")
    raise SystemExit(2) from None
except KeyboardInterrupt:  # Ctrl-C, before `main` looks after it
    raise SystemExit(130) from None

__version__ = "2.1.0"

Json = dict[str, Any]  # a JSON object
T = TypeVar("T")
ONE_DAY = timedelta(days=1)


@dataclass(eq=False, repr=False)
class RunError(Exception):
    """A failure that is told in one line. The exit code is 1."""

    reason: str
    advice: str = ""  # what to do
    fatal: bool = False  # whether every further request would fail, too, as with a refused key

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason


@dataclass(eq=False, repr=False)
class SettingsError(RunError):
    """A setting, or something else on this machine, is wrong.

    The exit code is 2 if it reaches `main`. Within a push or a check, it is like any `RunError`.
    """

    fatal: bool = True


@dataclass(eq=False, repr=False)
class RequestError(RunError):
    """A request that failed."""

    may_pass: bool = False  # whether a further attempt may work
    status: int = 0  # of the response, or 0 without one
    unreachable: bool = False  # whether there was no connection
    retry_after: float | None = None  # seconds that the server asks to wait
    body: str = ""  # what the server said, to look at: it may hold a secret


class TimeLimit(BaseException):
    """The time limit was reached. Like Ctrl-C, it is not caught by `except Exception`."""


# --- Settings ---------------------------------------------------------------------------------
# Each one comes from the environment, else from the .env file, else it has its default.


class Setting(NamedTuple):
    """A row of `SETTINGS`. The value has to match each of the regular expressions."""

    default: str
    patterns: Sequence[str] = ()


KEY = r"[\w.~+/-]+=*"  # `b64token` of RFC 6750
OF_PETALS = "petals-.+"
LOCAL = r"http://(localhost|127\.0\.0\.1|\[::1\])"
URL = rf"(https://([\w.-]+|\[[\da-f:.]+\])|{LOCAL})(:\d{{1,5}})?(/[^\s?#@\\]*)?"
REDIRECT = r"[\w.+-]+://[\w.-]*(:\d{1,5})?(/[!-~]*)?"
EXPANDED = "(?!~/).*"
PATH = "/.*"  # cron starts in another folder than a person
PROBLEMS = {  # what is said of a value that does not match
    KEY: "has a space or another character that is in no key: copy it again",
    OF_PETALS: "does not begin with petals-: copy it again",
    URL: "is not a plain https:// address (http:// only for localhost)",
    REDIRECT: "is not a complete address",
    EXPANDED: "needs a home folder, and this account has none: set it to a path that begins with /",
    PATH: "must begin with / or ~/",
}

SETTINGS = {
    "OURA_CLIENT_ID": Setting("", [KEY]),
    "OURA_CLIENT_SECRET": Setting("", [KEY]),
    "OURA_REDIRECT_URI": Setting("http://localhost:8080/callback/", [REDIRECT]),
    "OURA_AUTHORIZE_URL": Setting("https://moi.ouraring.com/oauth/v2/ext/oauth-authorize", [URL]),
    "OURA_TOKEN_URL": Setting("https://moi.ouraring.com/oauth/v2/ext/oauth-token", [URL]),
    "OURA_TOKEN_FILE": Setting("~/.local/state/oura-to-petals/oura-token.json", [EXPANDED, PATH]),
    "OURA_TOKEN": Setting("", [KEY]),
    "OURA_HOST": Setting("https://api.ouraring.com", [URL]),
    "OURA_METRICS": Setting("default"),  # `choose_metrics` looks at it
    "PETALS_API_KEY": Setting("", [OF_PETALS, KEY]),
    "PETALS_HOST": Setting("https://petals.chat", [URL]),
}
KEYS = ("OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "OURA_TOKEN", "PETALS_API_KEY")

# What the modes need. Reading Oura takes either the first or the second.
PERSONAL_TOKEN = ("OURA_TOKEN", "OURA_HOST")
SIGN_IN = ("OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "OURA_TOKEN_URL", "OURA_TOKEN_FILE", "OURA_HOST")
LOGIN = (*SIGN_IN, "OURA_REDIRECT_URI", "OURA_AUTHORIZE_URL")
PETALS = ("PETALS_API_KEY", "PETALS_HOST")

SCRIPT = Path(__file__).resolve()
INSTALLED_NAME = "oura-to-petals"  # the name under which pip, pipx and uv install this script


class Settings(dict[str, str]):
    """The settings by name."""

    __repr__ = object.__repr__  # without the values

    def __init__(self) -> None:
        self.named_file: Path | None = None  # with --env-file
        self.env_places: Sequence[Path] = ()  # where `.env` was found, else was looked for
        self.origins: dict[str, str] = {}  # as in "OURA_TOKEN from the environment"

    def command(self, *options: str) -> str:
        """Return a shell command for this program that works in any folder."""
        program = [sys.executable, str(SCRIPT)]
        if Path(sys.argv[0]).name == INSTALLED_NAME:
            program = [os.path.abspath(sys.argv[0])]
        env_file = ["--env-file", str(self.named_file)] if self.named_file else []
        return shlex.join([*program, *options, *env_file])

    def problem(self, name: str) -> str:
        """Return what is wrong with a value, without the value, or ""."""
        for pattern in SETTINGS[name].patterns:
            if not re.fullmatch(pattern, self[name], re.ASCII | re.DOTALL):
                return PROBLEMS[pattern]
        return ""

    def require(self, *names: str, hint: str = "") -> None:
        """Raise `SettingsError` with all of these settings that are missing or wrong.

        The key of Petals in the place of any setting is found, too, before it is sent or printed.
        """
        swapped = [name for name in SETTINGS if self[name].startswith("petals-")]
        swapped = [name for name in swapped if name != "PETALS_API_KEY"]
        problems = [f"{name} begins with petals-: are the two keys swapped?" for name in swapped]
        if missing := [name for name in names if not self[name]]:
            places = " or ".join(map(str, self.env_places)) or "the environment"
            problems.append(f"not set: {', '.join(missing)}; put what is missing into {places}")
        if hint:
            problems.append(hint)
        for name in names:
            if self[name] and name not in swapped and (problem := self.problem(name)):
                problems.append(f"{name} {problem}")
        if problems:
            raise SettingsError("; ".join(problems))

    def require_for_reading(self, *more_names: str) -> None:
        """Raise `SettingsError` if what Oura or `more_names` need is missing or wrong."""
        hint = ""
        if not self["OURA_TOKEN"] and not (self["OURA_CLIENT_ID"] and self["OURA_CLIENT_SECRET"]):
            hint = "OURA_TOKEN can take the place of the client id and secret"
        self.require(*(PERSONAL_TOKEN if self["OURA_TOKEN"] else SIGN_IN), *more_names, hint=hint)


def read_env_file(path: Path) -> dict[str, str]:
    """Return the values in a `.env` file. Raises `SettingsError` if it cannot be read."""
    try:
        if path.is_dir():  # Docker makes one where a file to be mounted is not there
            raise SettingsError(f"{path} is a directory")
        content, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        logging.warning(f"everybody can read your keys: run chmod 600 {shlex.quote(str(path))}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SettingsError(f"{path} is in UTF-16: save it as UTF-8")
    values: dict[str, str] = {}
    for line in parse_stream(io.StringIO(content.decode("utf-8-sig", "replace"))):
        if not line.error:
            values[line.key or ""] = line.value or ""
            continue
        problem = f"{path} cannot be parsed at line {line.original.line}"
        if re.search(r"=\s*['\"]", line.original.string):
            raise SettingsError(f"{problem}: see whether each quotation mark is closed")
        logging.warning(f"{problem}: write NAME=value")
    return values


def load_settings(named_file: Path | None) -> Settings:
    """Return the settings. Raises `SettingsError` if the `.env` file cannot be read."""
    settings = Settings()
    places = []
    if "site-packages" not in SCRIPT.parts:  # an update removes what is there
        places.append(SCRIPT.with_name(".env"))
    config = Path(os.path.expanduser("~/.config"))
    if config.is_absolute():  # else this account has no home folder
        places.append(config / INSTALLED_NAME / ".env")
    found = [path for path in places if os.path.exists(path)]  # it may be a pipe
    defaults = {name: setting.default for name, setting in SETTINGS.items()}
    if named_file:  # it may be one person's of several, so the sign-in is beside it
        settings.named_file = Path(os.path.expanduser(named_file)).absolute()
        found = [settings.named_file]
        defaults["OURA_TOKEN_FILE"] = f"{settings.named_file}.oura-token.json"
    settings.env_places = found[:1] or places
    in_file = read_env_file(found[0]) if found else {}
    for name, default in defaults.items():
        from_environment = os.environ.get(name, "").strip()
        settings[name] = from_environment or in_file.get(name, "").strip() or default
        file = found[0] if found and not from_environment else "the environment"
        settings.origins[name] = f"{name} from {file}"
    settings["OURA_TOKEN_FILE"] = os.path.expanduser(settings["OURA_TOKEN_FILE"])
    return settings


# --- HTTP -------------------------------------------------------------------------------------
# A request is tried again after a fault that may pass. Redirects are not followed. There are four
# clocks: TIME_OUT for each part of an answer, MAX_DELAY between two attempts, `time_limit` for the
# run, which says RUN_SECONDS, and MAX_WAITING for `--wait`, which stops the third one.

MAX_ATTEMPTS = 4
UNREACHABLE_ATTEMPTS = 6  # with their delays, half a minute: at wake-up, the network comes late
MAX_DELAY = 60.0  # seconds between two attempts
TIME_OUT = 25.0  # seconds; four attempts fit into the time limit of a run, RUN_SECONDS
MAX_BYTES = 8 * 2**20
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# Signals are blocked in all other threads. So the main one gets them, and can hold them back.
BLOCKED = (signal.SIG_BLOCK, {*STOP_SIGNALS, signal.SIGALRM})
THREADS = ThreadPoolExecutor(8, initializer=signal.pthread_sigmask, initargs=BLOCKED)
SECRETS: set[str] = set()  # the keys and tokens of this run
ANSWERED: dict[
    str, bool
] = {}  # for the text of `TimeLimit`: requests, and whether they were answered


def spellings(char: str) -> str:
    """Return a pattern for a character as it is, and as it is in JSON, a form or HTML."""
    code = f"{ord(char):02x}"
    return rf"(?:\\?{re.escape(char)}|%{code}|\\u00{code}|&#(?:x{code}|{ord(char)});)"


def clean(said: object) -> str:
    """Return what a server said as one line of at most 200 characters, with secrets masked."""
    text = said if isinstance(said, str) else json.dumps(said)
    for secret in sorted(SECRETS, key=len, reverse=True):
        text = re.sub("".join(map(spellings, secret)), "***", text, flags=re.IGNORECASE)
    text = "".join(char if char.isprintable() else " " for char in text)
    text = re.sub("<[^<>]*>", " ", text)  # the tags of a page
    return shorten(" ".join(text.split()), 200)


def shorten(text: str, length: int) -> str:
    """Return a text, cut to at most so many characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimit` in the main thread if the block takes longer.

    The time-outs of a client are not enough: an answer that drips byte by byte never times out.
    """

    def stop(*_: object) -> None:
        silent = sorted(name for name, answered in list(ANSWERED.items()) if not answered)
        what = f"no answer from {' and '.join(silent)}" if silent else "not finished"
        raise TimeLimit(f"{what} within {seconds:.0f} seconds")

    ANSWERED.clear()
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def sleep_outside_time_limit(seconds: float, limit: float) -> None:
    """Sleep, and begin the time limit anew after that, with `limit` seconds."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    sleep(seconds)
    signal.setitimer(signal.ITIMER_REAL, limit)


def seconds_left() -> float:
    """Return the seconds to the time limit, or infinity if there is none."""
    return signal.getitimer(signal.ITIMER_REAL)[0] or inf


@contextmanager
def stop_signals_held_back() -> Iterator[None]:
    """Hold back Ctrl-C and its like until the block has ended, but not the time limit.

    For the main thread only: the other ones never get them, see THREADS.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def open_client() -> httpx.Client:
    """Return the HTTP client of a run. Raises `SettingsError` if it cannot be set up.

    With `-v`, httpx logs each request with its address, so no address may have a secret in it.
    """
    try:
        return httpx.Client(
            verify=httpx.create_ssl_context(),
            mounts={"http://": None},  # a server on this machine is not behind a proxy
            headers={"Accept-Encoding": "identity", "User-Agent": f"oura-to-petals/{__version__}"},
            timeout=httpx.Timeout(TIME_OUT, connect=10),
        )
    except OSError as error:
        problem = f"the certificates cannot be loaded ({error}): check SSL_CERT_FILE, SSL_CERT_DIR"
    except (ValueError, ImportError, httpx.InvalidURL):  # their text may show a password
        problem = "the proxy cannot be used: check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY"
        if any(url.lower().startswith("socks") for url in getproxies().values()):
            problem = "SOCKS proxies are not supported; "
            problem += "name an HTTP proxy in HTTPS_PROXY, or none in HTTPS_PROXY and ALL_PROXY"
    raise SettingsError(problem)


def retry_delay(error: RequestError, attempt: int, attempts: int, left: float) -> float | None:
    """Return the seconds before the next attempt, or None if there is none.

    `attempt` is the number of the one that failed. `left` is the seconds to the time limit.
    """
    most = UNREACHABLE_ATTEMPTS if error.unreachable else attempts
    if not error.may_pass or attempt >= most:
        return None
    delay = 2.0 ** (attempt - 1) if error.retry_after is None else error.retry_after
    has_time = delay + TIME_OUT <= left  # for the next attempt
    return delay if delay <= MAX_DELAY and has_time else None


class Service:
    """A server that is asked for JSON objects."""

    name = url_setting = path = ""
    failure_is_fatal = False  # whether nothing works any more after a failed request

    def __init__(self, client: httpx.Client, settings: Settings) -> None:
        self.client, self.settings = client, settings
        self.told_unreachable = False  # on a terminal, where somebody waits
        url = settings[self.url_setting]
        self.url = url.rstrip("/") + self.path if self.path else url

    def advice(self, status: int) -> str:
        """Return what a person can do about a refusal."""
        if status == 429 or status >= 500:
            return "try again later"
        return f"check {self.url_setting}"

    def request(self, method: str, path: str, attempts: int = MAX_ATTEMPTS, **content: Any) -> Json:
        """Return the answer to a request. Raises `RequestError`.

        It is tried again after a failure that may pass, if the time limit leaves time for that.
        `attempts` is for a server that was reached; otherwise there are UNREACHABLE_ATTEMPTS.
        """
        attempt = 1
        while True:
            try:
                return self.request_once(method, path, content, attempt)
            except RequestError as error:
                delay = retry_delay(error, attempt, attempts, seconds_left())
                if delay is None:
                    raise
                is_news = error.unreachable and sys.stderr.isatty() and not self.told_unreachable
                self.told_unreachable |= is_news
                level = logging.WARNING if is_news else logging.INFO
                logging.log(level, f"{error.reason}; next try in {delay:.1f} seconds")
            sleep(delay)
            attempt += 1

    def request_once(self, method: str, path: str, content: Json, attempt: int) -> Json:
        """Return the answer to the given attempt of a request. Raises `RequestError`."""
        name, body, answer = f"{self.name} {path}".strip(), bytearray(), None
        tries = f" ({attempt} tries)" if attempt > 1 else ""
        ANSWERED.setdefault(name, False)
        try:
            with self.client.stream(method, self.url + path, **content) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        break
        # The last two come from an impossible host or port.
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError) as error:
            raise self.no_answer(name, error, tries) from None
        ANSWERED[name] = True
        with suppress(ValueError, RecursionError):
            answer = json.loads(body)
        status, text = response.status_code, body.decode(errors="replace")
        if status == 202:  # Accepted: in the guide, bulk answers with a job, see `Petals.send`
            answer = {"jobId": "", **(answer if isinstance(answer, dict) else {})}
        if response.is_success and isinstance(answer, dict):
            return answer
        said = what_was_said(response, answer, text)
        reason = f"{name} answered {status}: {said}" if said else f"{name} answered {status}"
        header = response.headers.get("Retry-After", "")
        retry_after = float(header) if re.fullmatch("[0-9]+", header) else None
        if retry_after is not None:
            advice = f"try again in {retry_after:.0f} seconds"
        elif status in (401, 403) and answer is None and text.strip():  # a page
            advice = f"something between here and {self.name} refused this, such as a firewall"
        else:
            advice = self.advice(status)
        fatal = status in (401, 403, 426, 429) or self.failure_is_fatal
        may_pass = status in (408, 429) or (status >= 500 and status not in (501, 505))
        reason += tries
        raise RequestError(
            reason, advice, fatal, may_pass, status, retry_after=retry_after, body=text
        )

    def no_answer(self, name: str, error: Exception, tries: str) -> RequestError:
        """Return the error for a request without an answer. It blames what failed."""
        said = clean(str(error)) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in said:
            advice = "check this machine's clock; behind a company's proxy, set SSL_CERT_FILE"
            reason = f"could not reach {self.name}: {said}"
            return RequestError(reason, f"{advice} in the environment", fatal=True)
        failures = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
        unreachable = isinstance(error, failures)
        what = f"could not reach {self.name}" if unreachable else f"{name}: the request failed"
        proxy = proxy_variable(self.url)
        advice = f"check the network and {self.url_setting}"
        if unreachable and proxy:
            advice = f"check the network and the proxy in {proxy}"
        fatal = unreachable or self.failure_is_fatal
        reason = f"{what}: {said}{tries}"
        return RequestError(reason, advice, fatal, may_pass=True, unreachable=unreachable)


def proxy_variable(url: str) -> str:
    """Return the environment variable with the proxy for an address, or ""."""
    host = re.match(r"https://([\w.-]+)", url)  # no other address is behind a proxy
    if not host or proxy_bypass(host[1]):
        return ""
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")  # in the order of httpx
    return next((name for name in names if os.environ.get(name)), "")


def what_was_said(response: httpx.Response, answer: Any, body: str) -> str:
    """Return in a few words what a response says that is not a success with a JSON object."""
    if response.is_success:
        return "no JSON object of at most 8 MiB"
    if response.status_code < 400:
        return f"a redirect to {clean(response.headers.get('Location', 'nowhere'))}, not followed"
    said: object = body
    if isinstance(answer, dict):
        for key in ("title", "error", "detail", "message", "error_description"):
            said = answer.get(key) or said  # the last one has the most to say
    return clean(said)


# --- Metrics ----------------------------------------------------------------------------------
# What is sent, and how the documents that Oura has for a day become a `Night`.

Documents = Mapping[str, Sequence[Json]]  # what Oura has for one day, by collection

# Where in a collection the value of a day is.
ONLY = "the only document"
LONGEST = "the session with the longest sleep"  # for `sleep` only
SUM = "all sessions: the sum of their seconds, in minutes"  # for `sleep` only, see `minutes_in`


class Metric(NamedTuple):
    """A row of `METRICS`: where its value comes from, and its range in Petals' unit."""

    slug: str  # with hyphens, as in OURA_METRICS and in the guide
    collection: str  # of Oura API 2.0
    part: str  # ONLY, LONGEST or SUM
    field: str
    unit: str
    low: float
    high: float
    label: str
    description: str

    def value_in(self, documents: Documents) -> float | None:
        """Return the value of a day, or None if Oura has none. Raises `RunError`."""
        if self.part == SUM:
            return self.minutes_in(documents)
        found = documents[self.collection]
        if self.part == LONGEST and found:
            found = [max(found, key=seconds_asleep)]
        return self.number_in(found[0], self.collection) if found else None

    def minutes_in(self, documents: Documents) -> float | None:
        """Return the total of a day in minutes, or None. Raises `RunError`."""
        # Oura API 2.0 has durations in `sleep` only. In the guide, `daily_sleep` has the total.
        for name in ("daily_sleep", self.collection):
            numbers = [self.number_in(one, name, 60) for one in documents[name]]
            seconds = [number for number in numbers if number is not None]
            if seconds:
                return (self.in_range(sum(seconds), name, 60) + 30) // 60
        return None

    def number_in(self, document: Json, collection: str, factor: int = 1) -> float | None:
        """Return the number in a document, or None. Raises `RunError` if it is impossible.

        `factor` is 60 for a field in seconds, since the range of the metric is in minutes.
        """
        value: Any = document
        for key in self.field.split("."):
            if isinstance(value, dict):
                value = value.get(key)
            elif value is not None:
                value = "no object"  # it is refused below
        if value is None or (value == 0 and self.field in ZERO_IS_NO_VALUE):
            return None
        return self.in_range(value, collection, factor)

    def in_range(self, value: Any, collection: str, factor: int) -> float:
        """Return a value if it is a number in the range. Raises `RunError` if not."""
        low, high = self.low * factor, self.high * factor
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return value
        reason = f"Oura {collection} {self.field} is not a number from {low:g} to {high:g}"
        raise RunError(reason, "if this keeps happening, look for an update of this script")


def seconds_asleep(session: Json) -> float:
    """Return the total sleep of a session in seconds. Raises `RunError` if it is impossible."""
    return TOTAL_SLEEP.number_in(session, "sleep", 60) or 0


# Oura has these as 0 in a session that was too short to measure them (seen by users).
ZERO_IS_NO_VALUE = ("average_hrv", "lowest_heart_rate", "average_breath")

# The field of a further metric also goes into DEMO_DOCUMENT.
# Petals files a new metric under an existing one if label and description read alike (measured with
# Petals 2.1.0). So the words of each row differ from those of the others on purpose.
# fmt: off
METRICS = {row[0]: Metric(*row) for row in (
    ("oura-readiness", "daily_readiness", ONLY, "score", "score", 0, 100,
     "Oura readiness score", "How recovered the body is for the day ahead, as Oura scores it."),
    ("oura-hrv", "daily_readiness", ONLY, "contributors.hrv_balance", "score", 0, 100,
     "Oura HRV balance", "Heart rate variability of two weeks against that of three months."),
    ("oura-sleep-minutes", "sleep", SUM, "total_sleep_duration", "minutes", 0, 1440,
     "Oura sleep duration", "Total time asleep in the night that ended this day, naps included."),
    ("oura-sleep-score", "daily_sleep", ONLY, "score", "score", 0, 100,
     "Oura sleep score", "Overall quality of the night from its seven contributors."),
    ("oura-hrv-ms", "sleep", LONGEST, "average_hrv", "ms", 0, 500,
     "Oura overnight RMSSD", "Beat-to-beat variation of the pulse, mean of the longest sleep."),
    ("oura-deep-minutes", "sleep", SUM, "deep_sleep_duration", "minutes", 0, 1440,
     "Oura deep sleep", "Slow-wave stage N3, which restores the body."),
    ("oura-rem-minutes", "sleep", SUM, "rem_sleep_duration", "minutes", 0, 1440,
     "Oura REM", "Rapid eye movement stage, in which most dreams occur."),
    ("oura-light-minutes", "sleep", SUM, "light_sleep_duration", "minutes", 0, 1440,
     "Oura light sleep", "Stages N1 and N2, the shallow part from which one wakes easily."),
    ("oura-sleep-efficiency", "sleep", LONGEST, "efficiency", "percent", 0, 100,
     "Oura time asleep in bed", "Efficiency: the share of the time in bed not spent awake."),
    ("oura-lowest-heart-rate", "sleep", LONGEST, "lowest_heart_rate", "bpm", 20, 250,
     "Oura lowest heart rate", "Slowest pulse at rest, in beats per minute."),
    ("oura-respiratory-rate", "sleep", LONGEST, "average_breath", "breaths/min", 3, 60,
     "Oura respiratory rate", "Breathing frequency, mean of the longest period."),
    ("oura-temperature-deviation", "daily_readiness", ONLY, "temperature_deviation", "celsius",
     -10, 10,
     "Oura temperature deviation", "Skin warmth at night against the wearer's own baseline."),
)}
# fmt: on
# Every run reads every collection. It fails if one fails, or if one of a chosen metric is empty for
# several days (`read_collections`). So a new collection has to be in the permission `daily`, or all
# sign-ins stop working, and to have one document for each day, with its `day`.
COLLECTIONS = tuple(dict.fromkeys(metric.collection for metric in METRICS.values()))
TOTAL_SLEEP = METRICS["oura-sleep-minutes"]
GROUPS = {"all": list(METRICS), "default": ["oura-readiness", "oura-hrv", "oura-sleep-minutes"]}


def choose_metrics(text: str) -> list[Metric]:
    """Return the metrics that `OURA_METRICS` names. Raises `SettingsError` for unknown names."""
    names = [name.strip() for name in text.lower().replace("_", "-").split(",")]
    chosen = {slug for name in names if name for slug in GROUPS.get(name, [name])}
    if not chosen or chosen - METRICS.keys():
        unknown = ", ".join(map(repr, sorted(chosen - METRICS.keys()))) or "''"
        choice = ", ".join([*METRICS, *GROUPS])
        raise SettingsError(f"OURA_METRICS: there is no metric {unknown}: choose from {choice}")
    return [metric for slug, metric in METRICS.items() if slug in chosen]


class Night(NamedTuple):
    """What there is to send for a day, and a sentence about it."""

    day: date
    occurred_at: str
    values: dict[str, float]  # by slug, as in METRICS
    sentence: str


def sessions_of_night(day: date, documents: Documents) -> list[Json]:
    """Return the sessions that count (types are those of Oura API 2.0, `PublicSleepType`)."""
    sessions = documents["sleep"]
    has_night = documents["daily_sleep"] or any(s.get("type") == "long_sleep" for s in sessions)
    if day >= date.today() and not has_night:
        return []  # before the ring has synced, there may be a nap of yesterday evening only
    # Oura detected a `rest` falsely, and the user deleted a `deleted`.
    return [session for session in sessions if session.get("type") not in ("rest", "deleted")]


def describe(values: Mapping[str, float]) -> str:
    """Return a sentence such as "Slept 7h12, readiness 82, HRV 54ms", or "" without values."""
    parts = []
    if "oura-sleep-minutes" in values:
        hours, minutes = divmod(values["oura-sleep-minutes"], 60)
        parts.append(f"slept {hours:g}h{minutes:02g}")
    if "oura-readiness" in values:
        parts.append(f"readiness {values['oura-readiness']:g}")
    if "oura-hrv-ms" in values:
        parts.append(f"HRV {values['oura-hrv-ms']:g}ms")
    elif "oura-hrv" in values:
        parts.append(f"HRV balance {values['oura-hrv']:g}")
    sentence = ", ".join(parts)
    return sentence[:1].upper() + sentence[1:]


def map_day(day: date, documents: Documents, chosen: Sequence[Metric]) -> Night:
    """Return the night of a day. Raises `RunError` if a chosen metric has an impossible value."""
    documents = {**documents, "sleep": sessions_of_night(day, documents)}
    values: dict[str, float] = {}
    for metric in METRICS.values():  # all of them, for the sentence
        try:
            value = metric.value_in(documents)
        except RunError:
            if metric in chosen:
                raise
            continue  # the sentence can do without it
        if value is not None:
            values[metric.slug] = value
    sent = {metric.slug: values[metric.slug] for metric in chosen if metric.slug in values}
    return Night(day, f"{day}T00:00:00Z", sent, describe(values))


# --- Oura (read) ------------------------------------------------------------------------------
# Oura API 2.0, with a personal access token or with the tokens of a sign-in.

MAX_PAGES = 200


def parse_day(text: object) -> date | None:
    """Return the day that is written as YYYY-MM-DD, or None for anything else."""
    with suppress(ValueError):
        if isinstance(text, str) and str(day := date.fromisoformat(text)) == text:
            return day
    return None


def sleep_is_needed(daily_sleep: Sequence[Json], metrics: Sequence[Metric]) -> bool:
    """Return whether a failed `sleep` fails the read.

    In the guide, `daily_sleep` has the totals. Then `sleep` is only needed for other metrics. With
    Oura API 2.0 it always is, if only for the sentence.
    """
    totals = [document.get(TOTAL_SLEEP.field) for document in daily_sleep]
    others = [row for row in metrics if row.collection == "sleep" and row != TOTAL_SLEEP]
    return not totals or None in totals or bool(others)


def group_by_day(
    found: Mapping[str, Sequence[Json]], days: Sequence[date]
) -> Mapping[date, Documents]:
    """Return the documents of each day. If a daily collection has several, the last one counts."""
    by_day = {day: {name: list[Json]() for name in COLLECTIONS} for day in days}
    for name, documents in found.items():
        for document in documents:
            of_day = by_day[date.fromisoformat(document["day"])]
            of_day[name] = [*of_day[name], document] if name == "sleep" else [document]
    return by_day


class Oura(Service):
    """The documents that Oura has for some days.

    Without a `personal_token` it needs a sign-in. Raises `SettingsError` if there is none.
    """

    name, url_setting, path = "Oura", "OURA_HOST", "/v2/usercollection/"

    def __init__(self, client: httpx.Client, settings: Settings, personal_token: str) -> None:
        super().__init__(client, settings)
        self.personal_token = personal_token
        self.sign_in = SignIn(client, settings)
        self.token = personal_token or self.sign_in.access_token()

    def advice(self, status: int) -> str:
        """Return what a person can do about a refusal."""
        login, token = self.settings.command("--login"), self.settings.origins["OURA_TOKEN"]
        file = self.settings["OURA_TOKEN_FILE"]
        lapsed = "the Oura membership has lapsed or "
        if self.personal_token and status == 401:
            return f"Oura no longer issues personal tokens: remove {token} and sign in with {login}"
        if self.personal_token and status == 403:
            return f"{lapsed}{token} lacks a permission: see the membership in the Oura app"
        if status in (401, 403):  # `read` renews a token that has expired, so this one was new
            missing = f"a permission is missing from the tokens in {file}"
            allow = f"run {login} again and allow all that Oura asks for"
            return f"{lapsed if status == 403 else ''}{missing}: {allow}"
        if status == 426:
            return "the Oura app on the phone is too old: update it"
        return super().advice(status)

    def read(self, days: Sequence[date], metrics: Sequence[Metric]) -> Mapping[date, Documents]:
        """Return what Oura has for each day, if need be with a new token. Raises `RunError`."""
        try:
            return self.read_collections(days, metrics)
        except RequestError as error:
            if error.status != 401 or self.personal_token:
                raise
        self.token = self.sign_in.access_token(refused=self.token)
        return self.read_collections(days, metrics)

    def read_collections(
        self, days: Sequence[date], metrics: Sequence[Metric]
    ) -> Mapping[date, Documents]:
        """Read all collections at the same time. Raises `RunError`."""
        reads = {name: THREADS.submit(self.read_pages, name, days) for name in COLLECTIONS}
        errors = [read.exception() for read in reads.values()]  # waits for all of them
        for error in errors:  # a fatal failure counts more than another
            if isinstance(error, RunError) and error.fatal:
                raise error
        found = {name: read.result() for name, read in reads.items() if name != "sleep"}
        needs_sleep = sleep_is_needed(found["daily_sleep"], metrics)
        may_lack_it = not needs_sleep and reads["sleep"].exception()
        found["sleep"] = [] if may_lack_it else reads["sleep"].result()
        needed = {metric.collection for metric in metrics if needs_sleep or metric != TOTAL_SLEEP}
        if any(metric.collection == "sleep" for metric in metrics):
            needed.add("daily_sleep")  # which tells `sessions_of_night` that today's is over
        empty = [name for name in COLLECTIONS if name in needed and not found[name]]
        if empty and any(found.values()) and len(days) > 1:
            # On some mornings, Oura leaves one collection empty (seen by users). A day that is sent
            # replaces what Petals has, so values would be deleted. (One day may really have none.)
            reason = f"Oura {' and '.join(empty)}: no document, unlike other collections"
            raise RunError(reason, "nothing is sent; the next run tries again")
        return group_by_day(found, days)

    def read_pages(self, collection: str, days: Sequence[date]) -> list[Json]:
        """Return the documents of these days, from all pages of a collection. Raises `RunError`.

        The days follow one another.
        """
        newest, oldest = days[0], days[-1]
        # Users measured that the first or the last day is left out, and that some collections go by
        # the day in UTC. So ask for two more days at each end.
        start, end = oldest - 2 * ONE_DAY, newest + 2 * ONE_DAY
        params = {"start_date": str(start), "end_date": str(end)}
        if collection == "sleep":  # without its 5-minute series, which are most of a document
            rows = [row for row in METRICS.values() if row.collection == "sleep"]
            fields = [row.field.partition(".")[0] for row in rows]
            params["fields"] = ",".join(["id", "day", "type", *fields])
        headers = {"Authorization": f"Bearer {self.token}"}
        documents: dict[str, Json] = {}
        for _ in range(MAX_PAGES):
            page = self.request("GET", collection, params=params, headers=headers)
            data = page.get("data")
            if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
                raise RunError(f"Oura {collection}: data is no list of objects", "check OURA_HOST")
            for document in data:
                day = parse_day(document.get("day"))
                if day is None:
                    raise RunError(f"Oura {collection} has a document without a readable day")
                # A document comes twice if a page boundary moves between two requests.
                identity = document.get("id") or f"without an id, {len(documents)}"
                if oldest <= day <= newest:
                    documents[str(identity)] = document
            if not page.get("next_token"):
                return list(documents.values())
            params["next_token"] = page["next_token"]
        raise RunError(f"Oura {collection} has more than {MAX_PAGES} pages", "check OURA_HOST")

    def check(self, metrics: Sequence[Metric]) -> str:
        """Return what is to be said of Oura if it works. Raises `RunError` if not."""
        week = [date.today() - n * ONE_DAY for n in range(7)]
        found = self.read(week, metrics)
        nights = [map_day(day, found[day], metrics) for day in week]
        latest = next((str(night.day) for night in nights if night.values), "none yet")
        way = "OURA_TOKEN" if self.personal_token else self.settings["OURA_TOKEN_FILE"]
        return f"reading works with {way}; latest night: {latest}."


# --- Oura (sign in) ---------------------------------------------------------------------------
# OAuth2 (RFC 6749) with PKCE (RFC 7636). An access token is used until Oura refuses it. A refresh
# token works once, and its answer has the next one: whoever loses that has to sign in again.

RENEWAL_SECONDS = 60.0  # that a renewal takes at most: two attempts and the pause between them


def overwrite(file: int, content: bytes) -> None:
    """Replace the content of an open file in one write. Raises `OSError`.

    One write, so that a process that is killed leaves the old content or the new one. It is padded
    with blanks, so that the file never gets shorter and longer tokens have room on a full disk.
    Another file and a rename would fail where this one is mounted into a container.
    """
    padded = content.ljust(max(os.fstat(file).st_size, 16_384))
    if os.pwrite(file, padded, 0) < len(padded):  # the disk is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class SignIn(Service):
    """The tokens of `--login`. They are in OURA_TOKEN_FILE, which is locked while it is used.

    The file has a JSON object with `access_token`, `refresh_token` and the `client_id` of the
    application that they belong to, padded by `overwrite`. With blanks alone, it has no tokens yet.
    """

    name, url_setting = "Oura sign-in", "OURA_TOKEN_URL"
    failure_is_fatal = True

    def __init__(self, client: httpx.Client, settings: Settings) -> None:
        super().__init__(client, settings)
        self.token_file, self.login = settings["OURA_TOKEN_FILE"], settings.command("--login")

    def advice(self, status: int) -> str:
        """Return what a person can do about a refusal."""
        if status in (400, 401):
            return f"sign in again with {self.login}"
        return super().advice(status)

    @contextmanager
    def open_file(self, create: bool = False) -> Iterator[int]:
        """Open and lock the token file. An `OSError`, in the block too, is a `SettingsError`."""
        try:
            if create:
                os.makedirs(os.path.dirname(self.token_file), 0o700, exist_ok=True)
            # O_SYNC: what is written is on the disk.
            flags = os.O_RDWR | os.O_SYNC | (os.O_CREAT if create else 0)
            file = os.open(self.token_file, flags, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise SettingsError(f"OURA_TOKEN_FILE {self.token_file} is no regular file")
                self.lock(file)
                yield file
            finally:
                os.close(file)
        except FileNotFoundError:
            raise self.not_signed_in() from None
        except OSError as error:
            reason = f"OURA_TOKEN_FILE {self.token_file}: {error.strerror}"
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                reason = f"{self.token_file} has no locks: put OURA_TOKEN_FILE on a local disk"
            raise SettingsError(reason) from None

    def lock(self, file: int) -> None:
        """Wait until no other process holds the token file. Raises a fatal `RunError`."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except TimeLimit:
            reason = f"another process holds OURA_TOKEN_FILE {self.token_file}"
            advice = f"see which with: lsof {shlex.quote(self.token_file)}"
            raise RunError(reason, advice, fatal=True) from None

    def not_signed_in(self) -> SettingsError:
        """Return the error for a token file that is not there or has no tokens."""
        return SettingsError(f"not signed in: no tokens in {self.token_file}", f"run {self.login}")

    def parse_own(self, content: bytes) -> Json:
        """Return what the token file has. Raises `SettingsError` if it is not ours."""
        found: Json = {}
        with suppress(ValueError, TypeError, RecursionError):
            found = dict(json.loads(content))
        client_id = self.settings["OURA_CLIENT_ID"]
        if found.get("client_id", client_id) != client_id:  # earlier versions wrote none
            file = shlex.quote(self.token_file)
            advice = f"set OURA_TOKEN_FILE, or sign in with: mv {file} {file}.old && {self.login}"
            raise SettingsError(
                f"the tokens in {self.token_file} belong to another application", advice
            )
        return found

    def usable(self, found: Json, place: str) -> dict[str, str]:
        """Return the two tokens. Raises a fatal `RunError` if one is missing or impossible."""
        tokens = {name: str(found.get(name) or "") for name in ("access_token", "refresh_token")}
        if not all(re.fullmatch("[!-~]+", token) for token in tokens.values()):
            advice = f"sign in again with {self.login}"
            raise RunError(f"the tokens in {place} cannot be used", advice, fatal=True)
        SECRETS.update(tokens.values())
        return tokens

    def access_token(self, refused: str = "") -> str:
        """Return the access token, renewed if it is the refused one. Raises a fatal `RunError`."""
        with self.open_file() as file:
            content = os.pread(file, MAX_BYTES, 0)
            if not content.strip():
                raise self.not_signed_in()
            tokens = self.usable(self.parse_own(content), self.token_file)
            if tokens["access_token"] != refused:  # maybe because another run has renewed it
                return tokens["access_token"]
            if seconds_left() < RENEWAL_SECONDS:
                reason = "too little time is left to renew the sign-in"
                raise RunError(reason, "run again", fatal=True)
            form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
            with stop_signals_held_back():
                # If the file cannot be written, see it before the token is spent.
                overwrite(file, content)
                answer = self.ask_for_tokens(form)
                # Without a new refresh token, the old one stays (RFC 6749, 6).
                answer["refresh_token"] = answer.get("refresh_token") or tokens["refresh_token"]
                return self.keep(file, answer)

    def prepare(self) -> None:
        """See that new tokens can be kept. Raises `SettingsError`."""
        with self.open_file(create=True) as file:
            content = os.pread(file, MAX_BYTES, 0)
            self.parse_own(content)  # raises if they belong to another application
            os.chmod(file, 0o600)
            overwrite(file, content)

    def exchange(self, code: str, verifier: str) -> None:
        """Trade an authorization code for tokens, and keep them. Raises `RunError`."""
        SECRETS.update((code, verifier))
        form = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier}
        form["redirect_uri"] = self.settings["OURA_REDIRECT_URI"]
        with self.open_file() as file, stop_signals_held_back():
            answer = self.ask_for_tokens(form)
            scope = answer.get("scope")  # `extapi:daily` at Oura's new address, `daily` at the old
            if scope and "daily" not in str(scope).replace("extapi:", "").split():
                advice = "see that your application at Oura has daily ticked, then "
                advice += f"run {self.login} again and allow all that Oura asks for"
                raise RunError("Oura did not grant the permission daily", advice)
            self.keep(file, answer)

    def ask_for_tokens(self, form: dict[str, str]) -> Json:
        """Spend a code or a refresh token; return Oura's answer. Raises `RequestError`."""
        client_id, secret = self.settings["OURA_CLIENT_ID"], self.settings["OURA_CLIENT_SECRET"]
        data = {**form, "client_id": client_id, "client_secret": secret}
        try:
            # If an answer is lost, the token may be spent. One more attempt is still worth it.
            return self.request("POST", "", attempts=2, data=data)
        except RequestError as error:
            if "invalid_client" not in error.body:  # RFC 6749, 5.2
                raise
            origins = self.settings.origins
            both = f"{origins['OURA_CLIENT_ID']} and {origins['OURA_CLIENT_SECRET']}"
            advice = f"the client id or secret is wrong: check {both}"
            raise RunError(error.reason, advice, fatal=True) from None

    def keep(self, file: int, answer: Json) -> str:
        """Write the tokens of an answer to the file; return the access token. Raises `RunError`."""
        tokens = self.usable(answer, "Oura's answer")
        content = {**tokens, "client_id": self.settings["OURA_CLIENT_ID"]}
        overwrite(file, json.dumps(content).encode())
        return tokens["access_token"]


def code_in(entered: str, state: str) -> str:
    """Return the code in an address, or a code alone, or "". Raises `RunError` for a refusal."""
    query = httpx.QueryParams(entered.partition("#")[0].rpartition("?")[2])
    if "error" in query:
        said = clean(f"{query['error']} {query.get('error_description', '')}")
        raise RunError(f"Oura refused the sign-in: {said}")
    if query.get("state") == state:  # otherwise the address is not one of this sign-in
        return str(query.get("code", ""))
    is_word = len(entered) < 8 or entered.isalpha()  # such as `yes` and `continue`
    return entered if re.fullmatch(KEY, entered, re.ASCII) and not is_word else ""


def answer_browser(listener: socket.socket, path: str, state: str) -> str:
    """Answer a browser; return the address that it asks for if it is the redirect, else ""."""
    redirect = ""
    status, text = "404 Not Found", "This address is not part of the current sign-in."
    connection, _ = listener.accept()
    with connection, suppress(OSError):
        # Browsers open connections that they do not use. This one has two seconds in all.
        end = monotonic() + 2
        request = b""
        while b"\r\n\r\n" not in request:
            connection.settimeout(max(end - monotonic(), 0.001))
            chunk = connection.recv(65_536)
            if not chunk:
                break
            request += chunk
        method, _, rest = request.decode(errors="replace").partition(" ")
        address = rest.partition(" ")[0]
        asked_path, _, query = address.partition("?")
        params = httpx.QueryParams(query)
        is_of_sign_in = method == "GET" and asked_path == path and params.get("state") == state
        if is_of_sign_in and (params.get("code") or params.get("error")):
            redirect = address
            status, text = "200 OK", "Back to the terminal: the sign-in is finished there."
        headers = f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close"
        connection.sendall(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n{text}".encode())
    return redirect


def wait_for_code(redirect_uri: str, state: str) -> str:
    """Return the code of this sign-in, from the browser or a pasted line. Raises `RunError`."""
    redirect = httpx.URL(redirect_uri)
    stdin = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - it stays open
    sources: list[Any] = [stdin]
    prompt = "Then paste the address of the page that the browser ends on, whether or not it loads:"
    if redirect.scheme == "http" and redirect.host in ("localhost", "127.0.0.1"):
        port = redirect.port or 80
        try:
            sources.append(socket.create_server(("127.0.0.1", port)))  # RFC 8252, 7.3
            prompt = "If the browser ends on a page that does not load, paste its address here:"
        except (OSError, OverflowError) as error:
            in_use = getattr(error, "errno", None) == errno.EADDRINUSE
            problem = "is in use" if in_use else "cannot be used"
            prompt = f"Port {port} {problem}: paste the address of the page that you end on"
    say(prompt)
    wrong_lines = 0
    while True:
        ready, _, _ = select.select(sources, [], [])
        if stdin in ready:
            line = stdin.readline()
            if not line:  # the end of input
                sources.remove(stdin)
                if not sources:
                    raise RunError("there is no terminal to paste the address into")
            text = re.sub(r"\x1b?\[?20[01]~", "", line.decode(errors="replace"))  # bracketed paste
            text = text.strip("<>'\" \t\r\n")
        else:
            path = redirect.raw_path.decode().partition("?")[0]
            text = answer_browser(ready[0], path, state)
        if code := code_in(text, state):
            return code
        if text:
            wrong_lines += 1
            if wrong_lines == 4:
                raise RunError("no address of this sign-in was entered")
            # A terminal cuts a line at 4,095 bytes, and a paste can be split in two.
            say("This is not the whole address, of this try. If in doubt, open the page once more.")
            say(f"The right one begins with {redirect_uri} and contains code=. Paste it here:")


def log_in(client: httpx.Client, settings: Settings) -> int:
    """Sign in with Oura and try to read. Return the exit code. Raises `RunError`."""
    import secrets  # a morning does not need it

    sign_in = SignIn(client, settings)
    with time_limit(RENEWAL_SECONDS):  # so long, another run may hold the file
        sign_in.prepare()  # if this fails, it fails before anybody opens a browser
    redirect_uri = settings["OURA_REDIRECT_URI"]
    state, verifier = secrets.token_urlsafe(16), secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    params = {
        "response_type": "code",
        "client_id": settings["OURA_CLIENT_ID"],
        "redirect_uri": redirect_uri,
        "prompt": "consent",  # or an earlier consent, with nothing ticked, may be used again
        "scope": "extapi:daily daily",  # at the new and the old address; a wrong one is ignored
        "state": state,
        "code_challenge": challenge.decode().rstrip("="),
        "code_challenge_method": "S256",
    }
    say(f"Your application at Oura must have exactly this redirect address:\n  {redirect_uri}")
    address = httpx.URL(settings["OURA_AUTHORIZE_URL"], params=params)
    say(f"Open this address in a browser and agree:\n  {address}")
    try:
        code = wait_for_code(redirect_uri, state)
    except RunError as error:
        raise RunError(error.reason, f"run {settings.command('--login')} again") from None
    with time_limit(RUN_SECONDS):
        sign_in.exchange(code, verifier)
        file = settings["OURA_TOKEN_FILE"]
        say(f"You are signed in. The sign-in renews itself; its tokens are in {file}.")
        # Without a metric, an empty collection is no failure.
        Oura(client, settings, personal_token="").read([date.today()], metrics=[])
    say(f"Reading Oura works. Next, check both services: {settings.command('--check')}")
    if settings["OURA_TOKEN"]:
        logging.warning("OURA_TOKEN is set and takes precedence: remove it to use the sign-in")
    return 0


# --- Petals -----------------------------------------------------------------------------------
# Each day is sent as a whole, and replaces what Petals has of it.

LIST_SECONDS = 10.0
NEVER = "0000-01-01T00:00:00Z"  # PostgreSQL has no year 0


class MetricList(NamedTuple):
    """What the list of metrics shows. An array server has none, and takes `array_body`."""

    is_array_server: bool
    metrics: Sequence[Json] = ()
    is_sure: bool = True  # not if the answer was one to observations


NO_LIST = MetricList(is_array_server=False)


class IfUnknown(NamedTuple):
    """What it means if Petals does not know a metric although it was proposed."""

    reason: str
    lasts: bool  # whether it stays so until the user has done something


def petals_slug(metric: Metric) -> str:
    """Return the slug with underscores. A hyphen is an error (measured with Petals 2.1.0)."""
    return metric.slug.replace("-", "_")


def definition(metric: Metric) -> Json:
    """Return a metric as it is in an observation of the guide."""
    words = {"slug": metric.slug, "label": metric.label, "unit": metric.unit}
    return {**words, "aggregationHint": "avg"}


def array_body(night: Night, metrics: Sequence[Metric]) -> list[Json]:
    """Return these metrics of a night as an array of observations, each with its metric inside."""
    rows: list[Json] = []
    for metric in metrics:
        row = {"metric": definition(metric), "value": night.values[metric.slug]}
        rows.append({**row, "occurredAt": night.occurred_at})
    return rows


def day_body(night: Night, metrics: Sequence[Metric]) -> Json:
    """Return these metrics (at least one) of a night as a day, with the sentence as its note."""
    rows: list[Json] = []
    for metric in metrics:
        row = {"metricSlug": petals_slug(metric), "value": night.values[metric.slug]}
        rows.append({**row, "occurredAt": night.occurred_at})
    if night.sentence:
        rows[0]["note"] = night.sentence
    return {"sourceExternalId": f"oura_{night.day}", "observations": rows}


def by_reason(reasons: Iterable[tuple[str, str]], verb: str) -> list[str]:
    """Return a text such as "oura_hrv, oura_readiness refused: why" for each reason."""
    slugs: dict[str, list[str]] = defaultdict(list)
    for slug, reason in reasons:
        slugs[reason].append(slug)
    return [f"{', '.join(names)} {verb}: {reason}" for reason, names in slugs.items()]


class Petals(Service):
    """A Petals server, and what this run knows of its metrics.

    It is asked for its list of metrics at once, with so many attempts.
    """

    name, url_setting, path = "Petals", "PETALS_HOST", "/api/memory/metrics/"

    def __init__(self, client: httpx.Client, settings: Settings, list_attempts: int) -> None:
        super().__init__(client, settings)
        self.left_out: set[Metric] = set()  # not sent any more in this run
        self.list_request = THREADS.submit(self.read_list, list_attempts)  # while Oura is read

    def advice(self, status: int) -> str:
        """Return what a person can do about a refusal."""
        if status in (401, 403):
            new_key = "keys expire after a year; create a new one in Petals at Settings → API keys"
            return f"check {self.settings.origins['PETALS_API_KEY']}: {new_key}"
        return super().advice(status)

    def post(self, path: str, body: object, attempts: int = MAX_ATTEMPTS) -> Json:
        """Return the answer to a body. Raises `RequestError`."""
        headers = {"x-api-key": self.settings["PETALS_API_KEY"]}
        return self.request("POST", path, attempts, json=body, headers=headers)

    def read_list(self, attempts: int) -> MetricList:
        """Return the list of metrics, or that this is an array server. Raises `RequestError`."""
        try:
            answer = self.post("list", {}, attempts)
        except RequestError as error:
            if error.status in (404, 405):
                return MetricList(is_array_server=True)
            raise
        listed = answer.get("metrics")
        if isinstance(listed, list):
            return MetricList(False, [metric for metric in listed if isinstance(metric, dict)])
        if "jobId" in answer:  # it answers everything as it answers observations
            return MetricList(is_array_server=True, is_sure=False)
        reason = "Petals list answered 200: no list of metrics"
        raise RequestError(reason, f"check {self.url_setting}", fatal=False, status=200)

    @cached_property
    def listed(self) -> MetricList:
        """Wait once for the list of metrics, for LIST_SECONDS, or do without it in this run.

        A failure proves nothing: for a new user the list can be a 500 until the first observation,
        and it leaves out metrics that have none (measured with Petals 2.5.0). A refused key is not
        told here, since bulk tells it.
        """
        try:
            return self.list_request.result(LIST_SECONDS)
        except TimeoutError:
            return NO_LIST
        except RequestError as error:
            is_strange = 200 <= error.status < 300  # a page or an object that is no list
            level = logging.WARNING if is_strange else logging.INFO
            logging.log(level, f"{error}; going on without the list")
            return NO_LIST

    def store(self, night: Night) -> tuple[int, list[str]]:
        """Store a night, and define the metrics that Petals does not know. Raises `RunError`.

        Returns the number of stored observations, and the problems to report.
        """
        chosen = [METRICS[slug] for slug in night.values]
        metrics = [metric for metric in chosen if metric not in self.left_out]
        if not metrics:  # all are left out, which was reported
            return 0, []
        proposed: dict[Metric, IfUnknown] = {}  # each one once a night
        while True:
            stored, unknown, refused = self.send(night, metrics)
            new = [metric for metric in unknown if metric not in proposed]
            if not new:
                break
            proposed |= {metric: self.propose(metric) for metric in new}
        self.left_out |= {metric for metric in unknown if proposed[metric].lasts}
        reasons = [(petals_slug(metric), proposed[metric].reason) for metric in unknown]
        return stored, by_reason(reasons, "left out") + refused

    def send(self, night: Night, metrics: Sequence[Metric]) -> tuple[int, list[Metric], list[str]]:
        """Send these metrics of a night, in place of what Petals has of it. Raises `RunError`.

        Returns the number of stored observations, the metrics that Petals does not know, and what
        to report if others are not stored, in one line.
        """
        as_array = self.listed.is_array_server
        body = array_body(night, metrics) if as_array else day_body(night, metrics)
        slugs = [metric.slug if as_array else petals_slug(metric) for metric in metrics]
        answer = self.post("observations/bulk", body)
        unknown: list[Metric] = []
        refused: list[tuple[str, str]] = []
        second_run_helps = False  # as after another run or a full disk was in the way
        errors = answer.get("errors") or []
        for error in errors if isinstance(errors, list) else [errors]:
            entry = error if isinstance(error, dict) else {"message": error}
            index, code = entry.get("index", -1), entry.get("code")
            has_slug = isinstance(index, int) and 0 <= index < len(slugs)
            # An array server defines the metrics itself: there, this is a refusal like any other.
            if code == "DEFINITION_NOT_FOUND" and has_slug and not as_array:
                unknown.append(metrics[index])
                continue
            reason = str(entry.get("message") or code or "no reason")
            if code == "RESOLVE_FAILED" or "changed before its derived write" in reason:
                second_run_helps = True
            reason = "outside the valid range" if code == "RANGE_VIOLATION" else clean(reason)
            refused.append((slugs[index] if has_slug else "an observation", reason))
        stored = answer.get("inserted")
        if stored is None and as_array and "jobId" in answer:  # the answer of the guide
            stored = len(slugs) - len(refused)
        if type(stored) is not int:
            reason = f"Petals did not say how many of {len(slugs)} observations it stored"
            raise RunError(reason, "check PETALS_HOST")
        if not refused and stored >= len(slugs) - len(unknown):
            return stored, unknown, []
        problem = f"{night.day}: Petals stored {stored} of {len(slugs)} observations"
        problem = shorten("; ".join([problem, *by_reason(refused, "refused")]), 600)
        return stored, unknown, [f"{problem}; run again" if second_run_helps else problem]

    def propose(self, metric: Metric) -> IfUnknown:
        """Propose a metric; return what it means if Petals does not know it all the same.

        A proposal is an observation that Petals has to refuse, since a stored one can never be
        removed. Petals defines the metric first and refuses the observation then, usually with a
        400, so only the next `send` shows whether the metric is known. There are two reasons to
        refuse it: its value is below the range, and PostgreSQL has no year 0. The second one is for
        a proposal that Petals files under a similar metric, whose range the value may fit (measured
        with Petals 2.1.0 and 2.5.0). Raises a fatal `RequestError`.
        """
        words = {"slug": petals_slug(metric), "description": metric.description}
        limits = {"validRangeMin": metric.low, "validRangeMax": metric.high}
        body = {
            "metric": {**definition(metric), **words, **limits},
            "value": metric.low - 1,
            "occurredAt": NEVER,
        }
        try:
            self.post("observations", body)
            said = ""
        except RequestError as error:
            if error.fatal:
                raise
            said = error.body
            if "RANGE_VIOLATION" not in said and NEVER[:10] not in said:  # the usual refusals
                return IfUnknown(f"{error.reason}; the next run tries again", lasts=False)
        others = re.findall(r"valid range for (\w+)", said)
        for other in self.listed.metrics:
            if str(other.get("label")).lower() == metric.label.lower():
                others.append(clean(other.get("slug")))
        name = next((f", {other}" for other in others if other != petals_slug(metric)), "")
        where = f"Petals filed it under a similar metric of yours{name}"
        return IfUnknown(f"{where}; rename that metric in Petals and run again", lasts=True)

    def check(self, metrics: Sequence[Metric]) -> str:
        """Return what is to be said of Petals if it works. Raises `RunError` if not."""
        try:
            listed = self.list_request.result()
        except RequestError as error:
            if error.status != 500:
                raise
            hint = "with a new account, this can be so until the first push"
            raise RunError(error.reason, f"{error.advice}; {hint}") from None
        if not listed.is_sure:
            reason = "Petals list answered as if it were sent observations"
            raise RunError(reason, "the first push shows whether it accepts them")
        if listed.is_array_server:
            either = "either this server has no list of metrics, or PETALS_HOST is wrong"
            return f"{either}; the first push shows which, and whether it accepts the key."
        slugs = [petals_slug(metric) for metric in metrics]
        stats = [one.get("stats") or {} for one in listed.metrics if one.get("slug") in slugs]
        latest = [clean(one["latestAt"])[:10] for one in stats if one.get("latestAt")]
        count = f"{len(latest)} of {len(metrics)} metrics have observations"
        newest = max(latest, default="none yet")
        return f"the key is accepted; {count}; latest observation: {newest}."


# --- Runs -------------------------------------------------------------------------------------
# Read, map and send the days that are asked for, the newest first.

FIRST_DAY = date(2015, 1, 1)
RUN_SECONDS = 115.0  # for one day; each further day adds 2
LIMIT_SECONDS = 900.0  # how long `--wait` waits at a rate limit that names no time
UNREACHABLE_SECONDS = 300.0  # how long it waits if a server cannot be reached
MAX_WAITING = 86_400.0  # seconds of `--wait` in all
CLEAR_LINE = "\r\x1b[K"  # on a terminal


def say(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Write a line to stdout or another file. It is not an error if nobody can read it."""
    with suppress(OSError):
        print(text, file=file, end=end, flush=True)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as in `1 day` and `2 days`."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def span(days: Sequence[date]) -> str:
    """Return days, newest first, as in `2026-06-04 to 2026-06-10`."""
    return f"{days[-1]} to {days[0]}" if len(days) > 1 else str(days[0])


def years(days: Sequence[date]) -> list[Sequence[date]]:
    """Return the days in parts of a year: nobody has seen Oura answer for more than two."""
    return [days[start : start + 366] for start in range(0, len(days), 366)]


class Report:
    """The days that are asked for, what came of them, and how that is shown."""

    def __init__(self, settings: Settings, options: argparse.Namespace) -> None:
        self.settings, self.options = settings, options
        days = [options.date - n * ONE_DAY for n in range(options.days)]
        self.days = [day for day in days if day >= FIRST_DAY]
        self.seconds = RUN_SECONDS + 2 * (len(self.days) - 1)  # to the time limit
        self.shows_days = len(self.days) == 1 or options.verbose
        self.sent: list[date] = []
        self.observations = 0
        self.without_data: list[date] = []
        self.problems: list[str] = []
        self.failed_in_a_row = 0  # days that Petals did not take

    def show_progress(self, text: str) -> None:
        """Replace the line that shows the progress of several days on a terminal."""
        if sys.stderr.isatty() and not self.shows_days and not self.options.quiet:
            say(f"{CLEAR_LINE}{text}", file=sys.stderr, end="")

    def add_problem(self, problem: str) -> None:
        """Tell a problem, once: a metric that is left out may be so on many days."""
        if problem not in self.problems:
            self.problems.append(problem)
            logging.error(problem)

    def add_empty_day(self, day: date) -> None:
        """Show a day without data. It ends a row of failed days."""
        self.failed_in_a_row = 0
        self.without_data.append(day)
        if self.shows_days:
            say(f"No Oura data for {day} — nothing pushed.")

    def add_night(self, night: Night, stored: int, problems: Sequence[str]) -> None:
        """Show what came of a night. Raises `RunError` if it is the fifth failure in a row."""
        for problem in problems:
            self.add_problem(problem)
        if stored:
            self.failed_in_a_row = 0
            self.sent.append(night.day)
            self.observations += stored
            if self.shows_days:
                pushed = f"Pushed {counted(stored, 'observation')} for {night.day}."
                say(f"{pushed} {night.sentence}." if night.sentence else pushed)
        elif problems:
            self.failed_in_a_row += 1
            if self.failed_in_a_row == 5:
                raise RunError("stopped after five failed days in a row")

    def add_end(self, problem: object) -> None:
        """Tell a problem that ends the run, with the command that sends the days left.

        These are the days that are older than the last one that was sent. Newer ones that failed
        without ending the run are not among them: they were told.
        """
        if len(self.days) == 1:
            self.add_problem(f"{self.days[0]}: {problem}")
            return
        text = f"{problem}; {self.progress()} are in"
        if left := [day for day in self.days if not self.sent or day < self.sent[-1]]:
            options = ["--date", str(left[0]), "--days", str(len(left))]
            options += ["--wait"] if self.options.wait else []
            text += f", go on with: {self.settings.command(*options)}"
        self.add_problem(text)

    def progress(self) -> str:
        """Return how many of the days were sent."""
        return f"{len(self.sent)} of {len(self.days)} days"

    def show_waiting(self, reason: str, seconds: float) -> None:
        """Say until when the run waits, and why."""
        self.show_progress("")
        until = datetime.now() + timedelta(seconds=seconds)
        say(f"{reason}; {self.progress()} are in, waiting until {until:%Y-%m-%d %H:%M}")

    def show_summary(self) -> None:
        """Show the result of several days."""
        self.show_progress("")
        if len(self.days) == 1:
            return
        if len(self.without_data) == len(self.days):
            logging.warning(f"no Oura data for {span(self.days)}: has the Oura app been opened?")
        sent = f", {span(self.sent)}" if self.sent else ""
        empty = counted(len(self.without_data), "day") + " without data"
        end = f"; {empty}." if self.without_data else "."
        say(f"Pushed {counted(self.observations, 'observation')} for {self.progress()}{sent}{end}")


class Waiter:
    """What `--wait` does at a rate limit, or if a server cannot be reached: wait and go on."""

    def __init__(self, report: Report, may_wait: bool) -> None:
        self.report, self.may_wait = report, may_wait
        self.seconds_left = MAX_WAITING
        self.least = 1.0  # seconds that the next wait lasts at least

    def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Return the answer to a question, asked again after each wait. Raises `RunError`."""
        while True:
            try:
                answer = question(*arguments)
            except RequestError as error:
                seconds = self.seconds_to_wait(error)
                if not self.may_wait or seconds > self.seconds_left:
                    raise
                self.report.show_waiting(error.reason, seconds)
            else:
                self.least = 1.0
                return answer
            sleep_outside_time_limit(seconds, self.report.seconds)
            self.seconds_left -= seconds
            self.least = 30.0  # for the case that this was not enough

    def seconds_to_wait(self, error: RequestError) -> float:
        """Return how long a question waits after an error, infinity if that is no use."""
        if error.status == 429:
            asked = LIMIT_SECONDS if error.retry_after is None else error.retry_after
            return max(asked, self.least)
        return UNREACHABLE_SECONDS if error.unreachable else inf


def read_nights(
    report: Report, waiter: Waiter, oura: Oura, days: Sequence[date], metrics: Sequence[Metric]
) -> list[Night]:
    """Return the nights of some days, and report those that fail. Raises `RunError` if fatal."""
    nights = []
    try:
        found = waiter.ask(oura.read, days, metrics)
    except RunError as error:
        if error.fatal:
            raise
        report.add_problem(f"{span(days)}: {error}")
        return []
    for day in days:
        try:
            nights.append(map_day(day, found[day], metrics))
        except RunError as error:
            report.add_problem(f"{day}: {error}")
    return nights


def send_night(report: Report, waiter: Waiter, petals: Petals, night: Night) -> None:
    """Send a night, and report what came of it. Raises `RunError` if no further one can be sent."""
    done = len(report.sent) + len(report.without_data)
    report.show_progress(f"{done} of {len(report.days)} days, {night.day}")
    if not night.values:
        report.add_empty_day(night.day)
        return
    try:
        stored, problems = waiter.ask(petals.store, night)
    except RunError as error:
        if error.fatal:
            raise
        stored, problems = 0, [f"{night.day}: {error}"]
    report.add_night(night, stored, problems)


def push(report: Report, oura: Oura, petals: Petals, metrics: Sequence[Metric]) -> int:
    """Send the days, say how it ended, and return the exit code."""
    waiter = Waiter(report, report.options.wait)
    try:
        for days in years(report.days):
            report.show_progress(f"reading {span(days)}")
            for night in read_nights(report, waiter, oura, days, metrics):
                send_night(report, waiter, petals, night)
    except (RunError, TimeLimit) as problem:
        report.add_end(problem)
    except KeyboardInterrupt:
        report.add_end("interrupted")
        report.show_summary()
        return 130
    report.show_summary()
    return 1 if report.problems else 0


def print_observations(report: Report, oura: Oura, metrics: Sequence[Metric]) -> int:
    """Print the observations in the form of the guide; return the exit code. Raises `RunError`.

    Which form a server takes is not asked. One of today gets `day_body` instead.
    """
    rows: list[Json] = []
    waiter = Waiter(report, may_wait=False)  # or its line would be among the observations
    for days in years(report.days):
        for night in read_nights(report, waiter, oura, days, metrics):
            rows += array_body(night, [METRICS[slug] for slug in night.values])
    if rows or not report.problems:
        try:
            with suppress(BrokenPipeError):  # whoever reads it has seen enough
                print(json.dumps(rows, indent=2), flush=True)
        except OSError as error:
            raise RunError(f"the output could not be written: {error.strerror}") from None
    return 1 if report.problems else 0


def check_services(client: httpx.Client, settings: Settings, metrics: Sequence[Metric]) -> int:
    """Say whether each service works, and write to neither. Return the exit code."""
    code = 0
    for name in ("Oura", "Petals"):
        try:
            with time_limit(RUN_SECONDS):
                if name == "Oura":
                    settings.require_for_reading()
                    said = Oura(client, settings, settings["OURA_TOKEN"]).check(metrics)
                else:
                    settings.require(*PETALS)
                    said = Petals(client, settings, MAX_ATTEMPTS).check(metrics)
                say(f"{name}: {said}")
        except (RunError, TimeLimit) as error:
            text = str(error).removeprefix(f"{name} ")
            has_name = name in re.split("[:;]", text)[0]  # "could not reach Oura: ..."
            logging.error(text if has_name else f"{name}: {text}")
            code = 1
    return code


# --- Command line -----------------------------------------------------------------------------
# What the options ask for, and how the process ends.

MAX_DAYS = 3660
# fmt: off
DEMO_DOCUMENT: Json = {  # the fields of all collections
    "score": 82, "contributors": {"hrv_balance": 77}, "temperature_deviation": -0.1,
    "type": "long_sleep", "total_sleep_duration": 25_920, "deep_sleep_duration": 5_400,
    "rem_sleep_duration": 6_120, "light_sleep_duration": 14_400, "efficiency": 91,
    "average_hrv": 54, "lowest_heart_rate": 48, "average_breath": 14.5,
}
# fmt: on


def show_demo(day: date) -> int:
    """Show what would be sent for a sample night, without a request. Return the exit code."""
    documents = {collection: [DEMO_DOCUMENT] for collection in COLLECTIONS}
    night = map_day(day, documents, list(METRICS.values()))
    for slug, value in night.values.items():
        say(f"{METRICS[slug].label:<28}{value:>6} {METRICS[slug].unit}")
    say(f"Demo: would push {len(night.values)} observations. {night.sentence}.")
    return 0


def check_clock() -> None:
    """Raise `RunError` if this machine's clock is wrong."""
    if date.today() < date(2025, 1, 1):  # without a battery, a clock begins in 1970
        raise RunError(f"this machine's clock says {date.today()}: set it")


def check_time_zone() -> None:
    """Warn of a time zone that this machine does not know: it would silently be UTC."""
    zone = os.environ.get("TZ", "").removeprefix(":")
    if zone and not re.match(r"(<[^>]+>|[A-Za-z]{3,})[+-]?\d", zone):  # UTC-2 needs no file
        from zoneinfo import TZPATH  # a morning without TZ does not need it

        if not any(os.path.isfile(os.path.join(folder, zone)) for folder in TZPATH):
            logging.warning(f"there is no time zone TZ={zone} here: days are those of UTC")


def day_argument(text: str) -> date:
    """Return the day that `--date` names, in this machine's time zone."""
    check_clock()
    today = date.today()
    day = {"today": today, "yesterday": today - ONE_DAY}.get(text.lower()) or parse_day(text)
    # The owner may live in another zone than the machine, up to 14 hours ahead of UTC.
    latest = (datetime.now(UTC) + timedelta(hours=14)).date()
    if day is None or not FIRST_DAY <= day <= latest:
        choice = f"today, yesterday or YYYY-MM-DD, from {FIRST_DAY} to {latest}"
        raise argparse.ArgumentTypeError(f"{text!r} is no day to send: use {choice}")
    return day


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line. Raises `SystemExit` with 2 if they are wrong."""
    codes = "exit codes: 0 done, 1 something failed, 2 wrong usage or settings, 130 interrupted"
    summary = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(description=summary, epilog=codes, allow_abbrev=False)
    # fmt: off
    add, add_mode = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("--date", metavar="DAY", type=day_argument, default=date.today() - ONE_DAY,
        help="the day on which the night ended: YYYY-MM-DD, today or yesterday (the default)")
    add("--days", metavar="N", type=int, default=1,
        help=f"the last N days up to --date, from 1 (the default) to {MAX_DAYS}")
    add("--wait", action="store_true",
        help="at a rate limit, or if a server cannot be reached, wait and go on, up to 24 hours")
    add("--env-file", metavar="FILE", type=Path, help="read the settings from FILE, not from .env")
    add_mode("--login", action="store_true", help="sign in with Oura, once")
    add_mode("--check", action="store_true", help="check both services; nothing is sent")
    add_mode("--dry-run", action="store_true", help="print the observations; nothing is sent")
    add_mode("--demo", action="store_true", help="show what is sent for a sample night")
    add("-q", "--quiet", action="store_true", help="show problems only")
    add("-v", "--verbose", action="store_true", help="show each request, each failed try, each day")
    add("--version", action="version", version=f"oura_to_petals {__version__}")
    # fmt: on
    try:
        options = parser.parse_args(argv)
        if not 1 <= options.days <= MAX_DAYS:
            parser.error(f"argument --days: {options.days} is not from 1 to {MAX_DAYS}")
    except OSError:  # what is wrong could not be written
        raise SystemExit(2) from None
    return options


def run(options: argparse.Namespace) -> int:
    """Do what the options ask for and return the exit code. Raises `RunError`."""
    if options.demo:
        return show_demo(options.date)
    check_clock()
    check_time_zone()
    settings = load_settings(options.env_file)
    if options.login:
        # It needs no key of Petals, but a wrong one is better seen now.
        key = ["PETALS_API_KEY"] if settings["PETALS_API_KEY"] else []
        settings.require(*LOGIN, *key)
    elif options.dry_run:
        settings.require_for_reading()
    elif options.check:
        settings.require()  # swapped keys only: it tells for each service what is missing
    else:
        settings.require_for_reading(*PETALS)
    metrics = choose_metrics(settings["OURA_METRICS"])
    SECRETS.update(settings[name] for name in KEYS if settings[name])
    client = open_client()
    if options.check:
        return check_services(client, settings, metrics)
    if options.login:
        return log_in(client, settings)
    report = Report(settings, options)
    with time_limit(report.seconds):
        oura = Oura(client, settings, settings["OURA_TOKEN"])
        if options.dry_run:
            return print_observations(report, oura, metrics)
        return push(report, oura, Petals(client, settings, list_attempts=1), metrics)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # A stream is None if the shell has closed it. With these open, no other file gets its number.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - open to the end
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - open to the end
    clear = CLEAR_LINE if sys.stderr.isatty() else ""  # there may be progress in the line
    form = f"{clear}oura_to_petals: %(message)s"
    logging.basicConfig(format=form, level=logging.WARNING, force=True)
    try:
        options = parse_arguments(argv)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # keep what nohup ignores
                signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="replace")
        if options.verbose:
            logging.getLogger().setLevel(logging.INFO)
        is_quiet = options.quiet and not options.login
        with redirect_stdout(None if is_quiet else sys.stdout):  # to None, `print` writes nothing
            return run(options)
    except SystemExit as stop:  # argparse has written why
        return int(stop.code or 0)
    except (RunError, TimeLimit) as error:
        logging.error(error)
        return 2 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - its message could contain a key
        if isinstance(error, MemoryError) or str(error) == "can't start new thread":
            logging.error("this machine has no memory or no thread left: stop what uses them")
            return 1
        import traceback

        frames = traceback.extract_tb(error.__traceback__)
        line = [frame.lineno for frame in frames if frame.filename == __file__][-1]
        logging.error(f"a bug, {type(error).__name__} in line {line}: please report it")
        return 1


def run_and_exit() -> NoReturn:
    """Run `main` and end the process at once, with its exit code.

    Python's own end takes its time, waits for threads, and complains of a stdout that is closed.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # it is full, or nobody reads it
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run_and_exit()
