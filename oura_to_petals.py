#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["httpx>=0.28,<1", "python-dotenv>=1.0,<2"]
# ///
"""Send the nights measured by an Oura ring to Petals.

A morning goes from `main` to `Run.send_days`: read the days from Oura and, at the same time, ask
Petals for the latest day that it has; then send each night, the oldest first.
Whatever goes wrong is a `Failure`. It says how many tries there are, which `Patience` makes, and
whether it ends the run.
The Oura token is sent to OURA_HOST only, the Petals key to PETALS_HOST only, the client secret and
the refresh token to OURA_TOKEN_URL only. The one file that is written has the tokens of `--login`.
"The guide" is what Petals published for such a script. Servers that follow it work, too.
"""

from __future__ import annotations

import sys

try:
    import argparse
    import base64
    import fcntl
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
    import traceback
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import contextmanager, redirect_stdout, suppress
    from dataclasses import dataclass
    from datetime import date, datetime, timedelta
    from functools import partial
    from pathlib import Path
    from time import monotonic, sleep
    from typing import Any, Literal, NamedTuple, Never, TextIO, TypeVar, cast
    from urllib.parse import quote

    import httpx
    from dotenv.parser import parse_stream
except ImportError as error:  # fcntl on Windows, Never before Python 3.11
    needs = "needs Linux, macOS or WSL, Python 3.11 or newer, and its packages"
    install = f"use .venv/bin/python, or run '{sys.executable}' -m pip install -e ."
    sys.stderr.write(f"oura_to_petals: {error.name} cannot be imported: {needs}: {install}\n")
    raise SystemExit(2) from None
except KeyboardInterrupt:  # Ctrl-C, before `main` looks after it
    raise SystemExit(130) from None

__version__ = "3.0.0"

Json = dict[str, Any]  # a JSON object
T = TypeVar("T")
ONE_DAY = timedelta(days=1)


# --- Failures -----------------------------------------------------------------------------------

# "setting": one is wrong, or the token file; the exit code is 2, but 1 in a run that has begun.
# "documents": what Oura's documents hold. "certificate": it is not accepted. "no answer": the
# connection was there, and broke or took too long. "passing": a refusal by Petals that may not come
# again. "": anything else, such as most answers with a status.
Cause = Literal["setting", "documents", "certificate", "no connection", "no answer", "passing", ""]


@dataclass(eq=False, repr=False)
class Failure(Exception):  # noqa: N818 - not each one is a fault
    """Something that went wrong. It is told in one line."""

    reason: str
    advice: str = ""  # what to do
    cause: Cause = ""
    status: int = 0  # of the answer, if there was one
    body: str = ""  # of the answer: it may hold a secret
    retry_after: float | None = None  # seconds that the server asks to wait
    at_proposal: bool = False  # whether a metric was proposed, see `Petals.propose`

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason

    def tries(self) -> int:
        """Return how many tries there are, with those that failed already."""
        if self.cause == "no connection":
            return 6  # in half a minute: at wake-up, the network comes late
        # With two, the day of a new user would fail if two proposals lose their answers.
        if self.cause == "no answer" and not self.at_proposal:
            return 2
        status = self.status
        is_passing = status in (408, 429) or (status >= 500 and status not in (501, 505))
        return 4 if is_passing or self.at_proposal or self.cause == "passing" else 1

    def is_outage(self) -> bool:
        """Return whether `--wait` waits. Not for a plain 500: a single day may get it for good."""
        outages = (429, 502, 503, 504, *range(520, 531))
        return self.cause in ("no connection", "no answer") or self.status in outages

    def ends_run(self, is_read: bool) -> bool:
        """Return whether it ends the run: at a read, or else at a day."""
        if is_read:
            return self.cause != "documents"
        if self.at_proposal:  # the run goes on, without the metrics that Petals does not know
            return False
        lasting = ("no connection", "no answer", "certificate")
        return self.cause in lasting or self.status in (401, 403, 404, 426, 429)


# --- Printing -----------------------------------------------------------------------------------
# Results go to stdout, problems to stderr. All goes through `write`, but for argparse's own texts.

SECRETS: set[str] = set()  # the keys and tokens of this run


def mask(text: str) -> str:
    """Return a text without secrets, neither as they are nor percent-encoded."""
    for secret in sorted(SECRETS, key=len, reverse=True):
        if len(secret) >= 6:  # a shorter one would mask words
            spellings = f"{re.escape(secret)}|{re.escape(quote(secret, safe=''))}"
            text = re.sub(spellings, "***", text, flags=re.IGNORECASE)
    return text


def write(text: str, stream: TextIO) -> None:
    """Write a text in place of any progress. It is no error if the stream is full or closed."""
    with suppress(OSError):
        sys.stderr.write("\r\x1b[K" if sys.stderr.isatty() else "")  # clear the line
        sys.stderr.flush()
        stream.write(mask(text))
        stream.flush()


def say(text: str) -> None:
    """Write a line to stdout, unless it is None, as with `--quiet`."""
    if sys.stdout:
        write(f"{text}\n", sys.stdout)


def warn(text: str) -> None:
    """Write a line to stderr."""
    write(f"oura_to_petals: {text}\n", sys.stderr)


def show_progress(text: str) -> None:
    """Show a text on a terminal until something else is written, but not with `-q` or `-v`."""
    if sys.stdout and sys.stderr.isatty() and not logging.root.isEnabledFor(logging.INFO):
        write(text, sys.stderr)


class VerboseHandler(logging.Handler):
    """With `-v`: the requests, which httpx logs, and what is tried again."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def quoted(answer: Any) -> str:
    """Return what an answer says of an error, in one line of at most 200 characters."""
    keys = ("error_description", "message", "detail", "error", "title")
    said = next((answer[key] for key in keys if answer.get(key)), "")
    text = mask(said if isinstance(said, str) else json.dumps(said))
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:200]


# --- Settings -----------------------------------------------------------------------------------
# Each one comes from the environment, else from the .env file, else it has its default.

LOCAL = r"http://(localhost|127\.0\.0\.1|\[::1\])"
ADDRESS = rf"(https://([\w.-]+|\[[\da-f:.]+\])|{LOCAL})(:\d{{1,5}})?(/[^\s?#@\\]*)?"
OAUTH, STATE = "https://moi.ouraring.com/oauth/v2/ext", "~/.local/state/oura-to-petals"
# What a value has to match, and what is said of another one.
KEY = ("[!-~]+", "has a space or a character that is in no key: copy it again")
PETALS_KEY = ("petals-[!-~]+", "does not begin with petals-, or has a space: copy it again")
URL = (ADDRESS, "is not a plain https:// address (http:// only for localhost)")
PATH = ("/.*", "must begin with / or ~/")  # cron starts in another folder than a person

SETTINGS = {  # the default, and what a value has to match
    "OURA_CLIENT_ID": ("", KEY),
    "OURA_CLIENT_SECRET": ("", KEY),
    "OURA_REDIRECT_URI": ("http://localhost:8080/callback/", URL),
    "OURA_AUTHORIZE_URL": (f"{OAUTH}/oauth-authorize", URL),
    "OURA_TOKEN_URL": (f"{OAUTH}/oauth-token", URL),
    "OURA_TOKEN_FILE": (f"{STATE}/oura-token.json", PATH),
    "OURA_TOKEN": ("", KEY),
    "OURA_HOST": ("https://api.ouraring.com", URL),
    "OURA_METRICS": ("default", (".*", "")),  # `choose_metrics` looks at it
    "PETALS_API_KEY": ("", PETALS_KEY),
    "PETALS_HOST": ("https://petals.chat", URL),
}

# What the modes need. To read from Oura takes either the first or the second.
PERSONAL_TOKEN = ("OURA_TOKEN", "OURA_HOST")
SIGN_IN = ("OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "OURA_TOKEN_URL", "OURA_TOKEN_FILE", "OURA_HOST")
LOGIN = (*SIGN_IN, "OURA_REDIRECT_URI", "OURA_AUTHORIZE_URL")
PETALS = ("PETALS_API_KEY", "PETALS_HOST")

SCRIPT = Path(__file__).resolve()
INSTALLED_NAME = "oura-to-petals"  # the name under which pip, pipx and uv install this script


class Settings(dict[str, str]):
    """The settings by name."""

    __repr__ = object.__repr__  # without the values

    def __init__(self, named_file: Path | None) -> None:
        """Load the settings. Raises `Failure` if the `.env` file cannot be read."""
        defaults = {name: default for name, (default, _) in SETTINGS.items()}
        self.env_option: list[str] = []
        places = []
        if "site-packages" not in SCRIPT.parts:  # an update removes what is there
            places.append(SCRIPT.with_name(".env"))
        config = Path(os.path.expanduser("~/.config"))
        if config.is_absolute():  # else this account has no home folder
            places.append(config / INSTALLED_NAME / ".env")
        found = [path for path in places if os.path.exists(path)][:1]
        if named_file:  # each of several people may have one, so the sign-in is beside it
            found = [Path(os.path.expanduser(named_file)).absolute()]
            self.env_option = ["--env-file", str(found[0])]
            defaults["OURA_TOKEN_FILE"] = f"{found[0]}.oura-token.json"
        # The file that was read, else where one could be.
        self.env_file = " or ".join(map(str, found or places)) or "the environment"
        in_file = read_env_file(found[0]) if found else {}
        for name, default in defaults.items():
            self[name] = os.environ.get(name, "").strip() or in_file.get(name) or default
        self["OURA_TOKEN_FILE"] = os.path.expanduser(self["OURA_TOKEN_FILE"])
        self.for_reading: Sequence[str] = PERSONAL_TOKEN if self["OURA_TOKEN"] else SIGN_IN
        for name in ("OURA_CLIENT_SECRET", "OURA_TOKEN", "PETALS_API_KEY"):
            SECRETS.add(self[name])

    def origin(self, name: str) -> str:
        """Return a setting with its place, as in `OURA_TOKEN from the environment`."""
        is_exported = os.environ.get(name, "").strip()
        return f"{name} from {'the environment' if is_exported else self.env_file}"

    def command(self, *options: str) -> str:
        """Return a shell command for this program that works in any folder."""
        program = [sys.executable, str(SCRIPT)]
        if Path(sys.argv[0]).name == INSTALLED_NAME:
            program = [os.path.abspath(sys.argv[0])]
        return shlex.join([*program, *options, *self.env_option])

    def require(self, *names: str) -> None:
        """Raise `Failure` with all of these settings that are missing or wrong.

        This also finds Petals' key in the place of another one, before it is sent or printed.
        """
        problems = []
        for name in SETTINGS:
            if self[name].startswith("petals-") and name != "PETALS_API_KEY":
                problems.append(f"{name} begins with petals-: are the two keys swapped?")
        if missing := ", ".join(name for name in names if not self[name]):
            problems.append(f"not set: {missing}; put what is missing into {self.env_file}")
        for name in names:
            pattern, problem = SETTINGS[name][1]
            if self[name] and not re.fullmatch(pattern, self[name], re.ASCII):
                problems.append(f"{name} {problem}")
        if problems:
            raise Failure("; ".join(problems), cause="setting")


def read_env_file(path: Path) -> dict[str, str]:
    """Return the values in a `.env` file, which may be a pipe. Raises `Failure`."""
    try:
        content, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}", cause="setting") from None
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        warn(f"everybody can read your keys: run chmod 600 {shlex.quote(str(path))}")
    values: dict[str, str] = {}
    for line in parse_stream(io.StringIO(content.decode("utf-8-sig", "replace"))):
        problem = f"{path} cannot be parsed at line {line.original.line}: write NAME=value"
        if line.error and re.search(r"=\s*['\"]", line.original.string):
            raise Failure(f"{problem}, and close each quotation mark", cause="setting")
        if line.error:
            warn(problem)
        else:
            values[line.key or ""] = (line.value or "").strip().strip("“”„‘’").strip()  # noqa: RUF001
    return values


def advice_by_status(settings: Settings) -> Mapping[tuple[str, int | str], str]:
    """Return what a person can do about a refusal.

    It is found by who refused (`Server.name`), and by the status or the `error` of RFC 6749, 5.2.
    """
    origin, login = settings.origin, settings.command("--login")
    again = f"sign in again with: {login}"
    # `Oura.read` renews a token after a 401. So after one that is told, the token is not too old.
    for_401 = f"a permission is missing from the tokens in {settings['OURA_TOKEN_FILE']}"
    for_401 += f": run {login} again and allow all that Oura asks for"
    for_403 = for_401
    if settings["OURA_TOKEN"]:
        for_401 = f"Oura no longer issues personal tokens: remove {origin('OURA_TOKEN')}"
        for_401 += f" and sign in with: {login}"
        for_403 = f"{origin('OURA_TOKEN')} lacks a permission: see the Oura app"
    client = f"check {origin('OURA_CLIENT_ID')} and {origin('OURA_CLIENT_SECRET')}"
    redirect = "compare OURA_REDIRECT_URI with the redirect address of your application at Oura"
    key = f"check {origin('PETALS_API_KEY')}"
    key += ": keys expire after a year; create a new one in Petals at Settings → API keys"
    return {
        ("Oura", 401): for_401,
        ("Oura", 403): f"the Oura membership has lapsed or {for_403}",
        ("Oura", 426): "the Oura app on the phone is too old: update it",
        ("Oura sign-in", "invalid_client"): client,
        ("Oura sign-in", 400): f"{redirect}, to the letter, then {again}",
        ("Oura renewal", "invalid_client"): client,
        ("Oura renewal", 400): again,
        ("Oura renewal", 401): again,
        ("Petals", 401): key,
        ("Petals", 403): key,
    }


# --- Metrics and nights -------------------------------------------------------------------------
# What is sent, and how the documents that Oura has for a day become its values.

# What is possible, by unit. Petals gets it as the valid range of a metric.
RANGES = {"score": (0, 100), "percent": (0, 100), "minutes": (0, 1440), "ms": (0, 500)}
RANGES |= {"bpm": (20, 250), "breaths/min": (3, 60), "celsius": (-10, 10)}


class Metric(NamedTuple):
    """A row of `METRICS`."""

    slug: str  # with hyphens, as in OURA_METRICS and in the guide
    collection: str  # of Oura API 2.0
    field: str  # of its documents, with a dot where it is inside of another one
    # The "only" document or, of `sleep`, the "longest" session or the "sum" of all in minutes.
    part: str
    unit: str
    label: str
    description: str

    @property
    def petals_slug(self) -> str:
        """The slug with underscores. A hyphen is an error (measured with Petals 2.1.0)."""
        return self.slug.replace("-", "_")

    @property
    def definition(self) -> Json:
        """The metric as it is in an observation of the guide."""
        return {"slug": self.slug, "label": self.label, "unit": self.unit, "aggregationHint": "avg"}


# The field of a further metric also goes into DEMO_DOCUMENT.
# Petals files a new metric under an existing one if label and description read alike (measured with
# Petals 2.1.0). So the words of each row differ from those of the others on purpose.
# fmt: off
METRICS = {row[0]: Metric(*row) for row in (
    ("oura-readiness", "daily_readiness", "score", "only", "score",
     "Oura readiness score", "How recovered the body is for the day ahead, as Oura scores it."),
    ("oura-hrv", "daily_readiness", "contributors.hrv_balance", "only", "score",
     "Oura HRV balance", "Heart rate variability of two weeks against that of three months."),
    ("oura-sleep-minutes", "sleep", "total_sleep_duration", "sum", "minutes",
     "Oura sleep duration", "Total time asleep in the night that ended this day, naps included."),
    ("oura-sleep-score", "daily_sleep", "score", "only", "score",
     "Oura sleep score", "Overall quality of the night from its seven contributors."),
    ("oura-hrv-ms", "sleep", "average_hrv", "longest", "ms",
     "Oura overnight RMSSD", "Beat-to-beat variation of the pulse, mean of the longest sleep."),
    ("oura-deep-minutes", "sleep", "deep_sleep_duration", "sum", "minutes",
     "Oura deep sleep", "Slow-wave stage N3, which restores the body."),
    ("oura-rem-minutes", "sleep", "rem_sleep_duration", "sum", "minutes",
     "Oura REM", "Rapid eye movement stage, in which most dreams occur."),
    ("oura-light-minutes", "sleep", "light_sleep_duration", "sum", "minutes",
     "Oura light sleep", "Stages N1 and N2, the shallow part from which one wakes easily."),
    ("oura-sleep-efficiency", "sleep", "efficiency", "longest", "percent",
     "Oura time asleep in bed", "Efficiency: the share of the time in bed not spent awake."),
    ("oura-lowest-heart-rate", "sleep", "lowest_heart_rate", "longest", "bpm",
     "Oura lowest heart rate", "Slowest pulse at rest, in beats per minute."),
    ("oura-respiratory-rate", "sleep", "average_breath", "longest", "breaths/min",
     "Oura respiratory rate", "Breathing frequency, mean of the longest period."),
    ("oura-temperature-deviation", "daily_readiness", "temperature_deviation", "only", "celsius",
     "Oura temperature deviation", "Skin warmth at night against the wearer's own baseline."),
)}
# fmt: on
# Every run reads every collection, and fails if one fails. So a new collection has to be in the
# permission `daily`, or all sign-ins stop working. `needed_collections` says which may be empty.
COLLECTIONS = tuple(dict.fromkeys(metric.collection for metric in METRICS.values()))
TOTAL_SLEEP = METRICS["oura-sleep-minutes"]
GROUPS = {"all": list(METRICS), "default": ["oura-readiness", "oura-hrv", "oura-sleep-minutes"]}
# Oura has these as 0 in a session that was too short to measure them (seen by users).
ZERO_IS_NO_VALUE = ("average_hrv", "lowest_heart_rate", "average_breath")


def choose_metrics(text: str) -> list[Metric]:
    """Return the metrics that `OURA_METRICS` names. Raises `Failure` for unknown names."""
    names = [name.strip() for name in text.lower().replace("_", "-").split(",")]
    chosen = {slug for name in names if name for slug in GROUPS.get(name, [name])}
    if not chosen or chosen - METRICS.keys():
        unknown = ", ".join(map(repr, sorted(chosen - METRICS.keys()))) or "''"
        choice = ", ".join([*METRICS, *GROUPS])
        reason = f"OURA_METRICS: there is no metric {unknown}: choose from {choice}"
        raise Failure(reason, cause="setting")
    return [metric for slug, metric in METRICS.items() if slug in chosen]


def number_in(document: Json, metric: Metric, collection: str) -> float | None:
    """Return the number in the metric's field, or None. Raises `Failure` if it is impossible."""
    value: Any = document
    for key in metric.field.split("."):
        if isinstance(value, dict):
            value = value.get(key)
        elif value is not None:
            value = "no object"  # `in_range` refuses it
    if value is None or (value == 0 and metric.field in ZERO_IS_NO_VALUE):
        return None
    return in_range(value, metric, collection)


def in_range(value: Any, metric: Metric, collection: str) -> float:
    """Return a value if it is a number in the metric's range. Raises `Failure` if not."""
    factor = 60 if metric.part == "sum" else 1  # a sum is one of seconds, and sent in minutes
    low, high = (limit * factor for limit in RANGES[metric.unit])
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return value
    reason = f"Oura {collection} {metric.field} is not a number from {low} to {high}"
    advice = "if this keeps happening, look for an update of this script"
    raise Failure(reason, advice, "documents")


class Night:
    """A day with the documents that Oura has for it."""

    def __init__(self, day: date, found: Mapping[str, Sequence[Json]]) -> None:
        self.day, own = day, str(day)
        self.documents = {name: [one for one in found[name] if one["day"] == own] for name in found}

    def is_night(self) -> bool:
        """Return whether there was a night, and not only naps or what was no sleep."""
        is_long = [one.get("type") == "long_sleep" for one in self.documents["sleep"]]
        return any([self.documents["daily_readiness"], self.documents["daily_sleep"], *is_long])

    def sources(self, collection: str) -> Sequence[Json]:
        """Return the documents of a collection that count (types: `PublicSleepType`)."""
        found = self.documents[collection]
        if collection != "sleep":
            return found[-1:]  # the last one of several
        if self.day >= date.today() and not self.documents["daily_sleep"]:
            return []  # Oura has not closed the night: there may be a nap, or a part of it
        # A `rest` was detected falsely, and the user took back what is `deleted`.
        return [session for session in found if session.get("type") not in ("rest", "deleted")]

    def value(self, metric: Metric) -> float | None:
        """Return the value of a metric, or None if Oura has none. Raises `Failure`."""
        if metric.part == "sum":
            # Oura API 2.0 has durations in `sleep` only. In the guide, `daily_sleep` has the total.
            for name in ("daily_sleep", "sleep"):
                numbers = [number_in(one, metric, name) for one in self.sources(name)]
                seconds = [number for number in numbers if number is not None]
                if seconds:
                    return (in_range(sum(seconds), metric, name) + 30) // 60
            return None
        found = self.sources(metric.collection)
        if metric.part == "longest":  # the first one of equally long ones
            found = sorted(found, key=lambda one: -(number_in(one, TOTAL_SLEEP, "sleep") or 0))
        return number_in(found[0], metric, metric.collection) if found else None

    def values(self, metrics: Sequence[Metric]) -> dict[Metric, float]:
        """Return the values that there are. Raises `Failure` if one is impossible."""
        return {one: value for one in metrics if (value := self.value(one)) is not None}

    def sentence(self) -> str:
        """Return a sentence such as "Slept 7h12, readiness 82, HRV 54ms", or "" without values."""

        values: dict[str, float] = {}
        for slug in ("oura-sleep-minutes", "oura-readiness", "oura-hrv", "oura-hrv-ms"):
            with suppress(Failure):  # an impossible value is left out
                if (value := self.value(METRICS[slug])) is not None:
                    values[slug] = value
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


# --- Requests and waiting -----------------------------------------------------------------------
# `Server.request` is one try. What is tried again is not the request but what the run wants, such
# as to read some days or to store a day: `Patience.patiently`. Redirects are not followed.

MAX_SECONDS = 60.0  # after which an answer that still comes in pieces is given up
MAX_BYTES = 8 * 2**20
PROXIES = "check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY in the environment"


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Do actions at the same time; return their results or failures.

    The first one is done in this thread: it may renew the sign-in, which holds back signals.
    """

    def outcome(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Failure as failure:
            return failure

    pool = ThreadPoolExecutor(len(actions))
    others = [pool.submit(outcome, action) for action in actions[1:]]
    outcomes = [outcome(actions[0]), *(other.result() for other in others)]
    pool.shutdown()  # after Ctrl-C, `run_and_exit` ends the threads
    return outcomes


def parsed(body: bytes | bytearray) -> Any:
    """Return what JSON says, or None if it is none."""
    with suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


def open_client() -> httpx.Client:
    """Return the HTTP client of a run. Raises `Failure` if it cannot be set up.

    With `-v`, httpx logs each request with its address, so no address may have a secret in it.
    """
    try:
        return httpx.Client(
            verify=httpx.create_ssl_context(),
            mounts={"http://": None},  # a server on this machine is not behind a proxy
            headers={"Accept-Encoding": "identity", "User-Agent": f"oura-to-petals/{__version__}"},
        )
    except OSError as error:
        reason, advice = f"the certificates cannot be loaded: {error}", "check SSL_CERT_FILE"
    except (ValueError, ImportError, httpx.InvalidURL):  # their text may have a password
        reason, advice = "the proxy cannot be used", PROXIES
    raise Failure(reason, advice, "setting")


@dataclass(repr=False)
class Server:
    """A server that is asked for JSON objects."""

    client: httpx.Client
    settings: Settings
    name: str
    setting: str  # that has its address
    path: str = ""  # before the path of a request

    def request(self, method: str, path: str, seconds: float = MAX_SECONDS, **more: Any) -> Json:
        """Return the answer to one try, if it comes within these seconds. Raises `Failure`."""
        name, url = f"{self.name} {path}".strip(), self.settings[self.setting]
        url = url.rstrip("/") + self.path + path if self.path else url
        # For each step, such as the next piece of the answer.
        timeout = httpx.Timeout(min(seconds, 25.0), connect=min(seconds, 10.0))
        body, end = bytearray(), monotonic() + seconds
        try:
            with self.client.stream(method, url, timeout=timeout, **more) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if monotonic() > end:
                        raise httpx.ReadTimeout(f"it took more than {seconds:.0f} seconds")
                    if len(body) > MAX_BYTES:
                        break  # what there is of it is no JSON
        # The last two come from an impossible host or port.
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError) as error:
            raise self.failure_without_answer(name, error) from None
        answer = parsed(body)
        if response.is_success and isinstance(answer, dict):
            return answer
        raise self.failure_of(name, response, answer, body.decode(errors="replace"))

    def failure_without_answer(self, name: str, error: Exception) -> Failure:
        """Return the failure for an exception of httpx."""
        said = mask(str(error)) or type(error).__name__
        reason = f"could not reach {self.name}: {said}"
        advice = f"check the network, a proxy if you use one, and {self.setting}"
        if isinstance(error, httpx.ProxyError):  # its text may have a password
            return Failure(f"could not reach {self.name}: proxy failure", PROXIES, "no connection")
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return Failure(reason, "check this machine's clock and its certificates", "certificate")
        not_connected = (httpx.ConnectError, httpx.ConnectTimeout)
        if isinstance(error, httpx.HTTPError) and not isinstance(error, not_connected):
            return Failure(f"no answer from {name}: {said}", advice, "no answer")
        return Failure(reason, advice, "no connection")

    def failure_of(self, name: str, response: httpx.Response, answer: Any, body: str) -> Failure:
        """Return the failure for an answer that is no success with a JSON object."""
        status, is_page = response.status_code, answer is None and bool(body.strip())
        answer = answer if isinstance(answer, dict) else {}
        said = quoted(answer)
        if response.is_success:
            said = "no JSON object of at most 8 MiB"
        elif response.is_redirect:
            said = "a redirect, which is not followed"
        header = response.headers.get("Retry-After", "")
        retry_after = float(header) if re.fullmatch("[0-9]+", header) else None
        advice = f"check {self.setting}"
        if retry_after is not None:
            advice = f"try again in {retry_after:.0f} seconds"
        elif status == 429 or status >= 500:
            advice = "try again later"
        elif is_page and (status in (401, 403) or response.is_success):
            where = f"something between here and {self.name}"
            advice = f"{where} may have answered, such as a firewall; else check {self.setting}"
        else:
            table = advice_by_status(self.settings)
            advice = table.get((self.name, status), advice)
            advice = table.get((self.name, str(answer.get("error"))), advice)
        if status == 429:
            advice += ", or let --wait do so"
        reason = f"{name} answered {status}: {said}" if said else f"{name} answered {status}"
        return Failure(reason, advice, "", status, body, retry_after)


@dataclass
class Patience:
    """The one rule by which what failed is tried again, and how long it may still wait."""

    may_wait: bool  # with `--wait`
    most_tries: int = 6
    seconds_left: float = 86_400  # of `--wait` in this run

    def patiently(self, action: Callable[[], T]) -> T:
        """Return what an action returns, after more tries if need be. Raises the last `Failure`."""
        waits = 0  # of `--wait`, for this action
        tried = 0  # since the last of these
        while True:
            try:
                return action()
            except Failure as error:
                failure = error
            tried += 1
            pause = 2.0 ** (tried - 1) if failure.retry_after is None else failure.retry_after
            may_try = tried < min(failure.tries(), self.most_tries) and pause <= 60
            # In an outage that was waited for, single tries are enough.
            if may_try and not (waits and failure.is_outage()):
                text = f"{failure.reason}; next try in {pause:.0f} seconds"
                logging.info(text)
                show_progress(text)
                sleep(pause)
                continue
            wait = 300.0 if waits else 30.0
            if failure.retry_after is not None:
                wait = max(failure.retry_after, 30.0 if waits else 0.0)
            elif failure.status == 429:
                wait = 900.0
            if not (self.may_wait and failure.is_outage()) or wait > self.seconds_left:
                raise failure
            until = datetime.now() + timedelta(seconds=wait)
            say(f"{failure.reason}; waiting until {until:%Y-%m-%d %H:%M}")
            sleep(wait)
            self.seconds_left -= wait
            tried, waits = 0, waits + 1


# --- Oura (sign in) -----------------------------------------------------------------------------
# OAuth2 (RFC 6749) with PKCE (RFC 7636). An access token is used until Oura refuses it. A refresh
# token works once, and its answer has the next one: whoever loses that has to sign in again.

LOCK_SECONDS = 120.0  # how long another process may hold the token file
LOGIN_SECONDS = 900.0  # how long `--login` waits for an address
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals_held_back() -> Iterator[None]:
    """Let Ctrl-C and its like act when the block has ended. For the main thread only."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    noted: list[int] = []
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


def overwrite(file: int, content: bytes) -> None:
    """Replace the content of an open file in one write. Raises `OSError`.

    One write, so that a process that is killed leaves the old content or the new one. It is padded
    with blanks, so that the file never gets shorter and longer tokens have room on a full disk.
    Another file and a rename would fail where this one is mounted into a container.
    """
    padded = content.ljust(max(os.fstat(file).st_size, 16_384))
    if os.pwrite(file, padded, 0) < len(padded):
        raise OSError(0, "the disk is full")


def lock(file: int, path: str) -> None:
    """Wait until no other process holds the token file. Raises `Failure`."""
    end = monotonic() + LOCK_SECONDS
    while monotonic() < end:
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sleep(0.2)
    raise Failure(f"another process holds {path}", "see whether another run hangs, and end it")


class SignIn:
    """The tokens of `--login`: a JSON object in OURA_TOKEN_FILE, which is locked while in use."""

    def __init__(self, client: httpx.Client, settings: Settings) -> None:
        self.client, self.settings, self.path = client, settings, settings["OURA_TOKEN_FILE"]
        self.login = settings.command("--login")
        self.is_new = False  # whether this run renewed the token, and read nothing with it yet

    @contextmanager
    def locked_file(self) -> Iterator[int]:
        """Open and lock the token file. An `OSError`, in the block too, is a `Failure`."""
        try:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            # O_SYNC: what is written is on the disk.
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_SYNC, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OSError(0, "is no regular file")
                lock(file, self.path)
                yield file
            finally:
                os.close(file)  # this unlocks it, too
        except OSError as error:
            reason = f"OURA_TOKEN_FILE {self.path}: {error.strerror}"
            raise Failure(reason, cause="setting") from None

    def usable(self, found: object, place: str) -> dict[str, str]:
        """Return the two tokens. Raises `Failure` if one is missing or impossible."""
        found = found if isinstance(found, dict) else {}
        tokens = {name: str(found.get(name) or "") for name in ("access_token", "refresh_token")}
        if not all(re.fullmatch("[!-~]+", token) for token in tokens.values()):
            raise Failure(f"the tokens in {place} cannot be used", f"run {self.login}")
        SECRETS.update(tokens.values())
        return tokens

    def access_token(self, refused: str = "") -> str:
        """Return the access token, renewed if it is the refused one. Raises `Failure`."""
        reason, advice = f"not signed in: no tokens in {self.path}", f"run {self.login}"
        if not os.path.exists(self.path):
            raise Failure(reason, advice, "setting")
        with self.locked_file() as file:
            content = os.pread(file, MAX_BYTES, 0)
            if not content.strip():
                raise Failure(reason, advice, "setting")
            tokens = self.usable(parsed(content), self.path)
            if tokens["access_token"] != refused:  # nobody refused it, or another run renewed it
                return tokens["access_token"]
            token = tokens["refresh_token"]
            renewed = self.spend(file, {"grant_type": "refresh_token", "refresh_token": token})
            self.is_new = True
            return renewed

    def exchange(self, code: str, verifier: str) -> None:
        """Trade an authorization code for tokens, and keep them. Raises `Failure`."""
        SECRETS.update((code, verifier))
        form = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier}
        form["redirect_uri"] = self.settings["OURA_REDIRECT_URI"]
        with self.locked_file() as file:
            self.spend(file, form)

    def spend(self, file: int, form: dict[str, str]) -> str:
        """Spend a code or a refresh token, and keep what comes. Return the new access token."""
        with stop_signals_held_back():
            # Take the room that new tokens need, and see that the file can be written at all.
            overwrite(file, os.pread(file, MAX_BYTES, 0))
            answer = self.ask(form)
            scope = answer.get("scope")  # `extapi:daily` at Oura's new address, `daily` at the old
            if "code" in form and scope and not {"extapi:daily", "daily"} & {*str(scope).split()}:
                advice = "see that your application at Oura has daily ticked, then "
                advice += f"run {self.login} again and allow all that Oura asks for"
                raise Failure("Oura did not grant the permission daily", advice)
            # Without a new refresh token, the old one stays (RFC 6749, 6).
            answer["refresh_token"] = answer.get("refresh_token") or form.get("refresh_token")
            tokens = self.usable(answer, "Oura's answer")
            overwrite(file, json.dumps(tokens).encode())
        return tokens["access_token"]

    def ask(self, form: dict[str, str]) -> Json:
        """Return Oura's answer to a code or a refresh token. Raises `Failure`."""
        name = "Oura renewal" if "refresh_token" in form else "Oura sign-in"
        server = Server(self.client, self.settings, name, "OURA_TOKEN_URL")
        form["client_id"] = self.settings["OURA_CLIENT_ID"]
        form["client_secret"] = self.settings["OURA_CLIENT_SECRET"]
        reason = ""
        for _ in range(2):  # if the answer is lost, one more try at once is worth it, and no other
            try:
                return server.request("POST", "", data=form)
            except Failure as failure:
                if failure.cause != "no answer":
                    raise
                reason = failure.reason
        raise Failure(reason, f"run again, and if Oura then refuses the sign-in, run {self.login}")


def code_in(address: str, state: str) -> str:
    """Return the code in an address of this sign-in, else "". Raises `Failure` for a refusal."""
    query = httpx.QueryParams(address.partition("#")[0].partition("?")[2])
    if query.get("state") != state:
        return ""
    if "error" in query:
        raise Failure(f"Oura refused the sign-in: {quoted(query)}")
    return str(query.get("code", ""))


def answer_browser(listener: socket.socket) -> str:
    """Answer a browser; return the address that it asks for."""
    request = b""
    connection, _ = listener.accept()
    with connection, suppress(OSError):  # a browser may close it before it has the answer
        connection.settimeout(2)  # browsers open connections that they do not use
        end = monotonic() + 2
        while b"\r\n\r\n" not in request and monotonic() < end:
            chunk = connection.recv(65_536)
            if not chunk:
                break
            request += chunk
        text = "This page belongs to oura_to_petals: go on in the terminal."
        headers = f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close"
        connection.sendall(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n{text}".encode())
    return request.decode(errors="replace").partition(" ")[2].partition(" ")[0]


def wait_for_code(redirect_uri: str, state: str) -> str:
    """Return the code of this sign-in, from the browser or a pasted line. Raises `Failure`."""
    redirect, end = httpx.URL(redirect_uri), monotonic() + LOGIN_SECONDS
    sources: list[Any] = [0]  # stdin
    prompt = "Then paste here the address of the page that the browser ends on:"
    if redirect.scheme == "http":  # the browser comes to this machine
        port = redirect.port or 80
        try:
            sources.append(socket.create_server(("127.0.0.1", port)))  # RFC 8252, 7.3
            prompt = "If the browser ends on a page that does not load, paste its address here:"
        except (OSError, OverflowError) as error:
            prompt = f"Port {port} cannot be used ({error}). {prompt}"
    say(prompt)
    while sources:
        ready, _, _ = select.select(sources, [], [], max(end - monotonic(), 0))
        if not ready:
            raise Failure(f"nobody signed in within {LOGIN_SECONDS / 60:.0f} minutes")
        if isinstance(ready[0], socket.socket):
            addresses = [answer_browser(ready[0])]
        elif pasted := os.read(0, 65_536):
            addresses = pasted.decode(errors="replace").splitlines()
        else:
            addresses = []
            sources.remove(0)
            say("The input has ended. If the browser comes here, this goes on.")
        for address in addresses:
            if code := code_in(address.strip("<>'\" \t"), state):
                return code
            if ready[0] == 0:
                say("This is not the address of a page that this sign-in ended on. It begins with")
                say(f"{redirect_uri} and contains code= and state=. Paste all of it:")
    raise Failure("the input has ended, and the browser cannot come here")


def log_in(client: httpx.Client, settings: Settings, patience: Patience) -> int:
    """Sign in with Oura and try to read. Return the exit code. Raises `Failure`."""
    import secrets  # a morning does not need it

    sign_in = SignIn(client, settings)
    with sign_in.locked_file() as file:  # if this fails, it fails before anybody opens a browser
        os.chmod(file, 0o600)
        overwrite(file, os.pread(file, MAX_BYTES, 0))
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
    except Failure as failure:
        raise Failure(failure.reason, f"run {settings.command('--login')} again") from None
    patience.patiently(lambda: sign_in.exchange(code, verifier))
    say(f"You are signed in. The sign-in renews itself; its tokens are in {sign_in.path}.")
    # Try the sign-in, not a personal token, which may be dead.
    personal_token, settings["OURA_TOKEN"] = settings["OURA_TOKEN"], ""
    # Without a metric, an empty collection is no failure.
    oura = Oura(client, settings, metrics=[])
    patience.patiently(lambda: oura.read([date.today()]))
    if personal_token:
        warn(f"{settings.origin('OURA_TOKEN')} takes precedence: remove it to use the sign-in")
    say(f"Reading Oura works. Next, send last night: {settings.command('--date', 'today')}")
    return 0


# --- Oura (read) --------------------------------------------------------------------------------
# Oura API 2.0, with a personal access token or with the tokens of a sign-in.

MAX_PAGES = 200


def parse_day(text: object) -> date | None:
    """Return the day that is written as YYYY-MM-DD, or None for anything else."""
    with suppress(ValueError):
        if isinstance(text, str) and str(day := date.fromisoformat(text)) == text:
            return day
    return None


def needed_collections(found: Mapping[str, Sequence[Json]], metrics: Sequence[Metric]) -> set[str]:
    """Return the collections that must have a document if several days have a night."""
    needed = {metric.collection for metric in metrics if metric != TOTAL_SLEEP}
    totals = [document.get(TOTAL_SLEEP.field) for document in found["daily_sleep"]]
    if TOTAL_SLEEP in metrics and (not totals or None in totals):  # else as in the guide
        needed.add("sleep")
    if any(metric.collection == "sleep" for metric in metrics):
        needed.add("daily_sleep")  # it tells whether today's night is over
    return needed


class Oura:
    """The nights that Oura has, read with a personal token or else with the sign-in.

    Raises `Failure` if nobody has signed in.
    """

    def __init__(self, client: httpx.Client, settings: Settings, metrics: Sequence[Metric]) -> None:
        self.settings, self.metrics, self.sign_in = settings, metrics, SignIn(client, settings)
        self.server = Server(client, settings, "Oura", "OURA_HOST", "/v2/usercollection/")
        self.token = settings["OURA_TOKEN"] or self.sign_in.access_token()

    def read(self, days: Sequence[date]) -> list[Night]:
        """Return the night of each day, if need be with a new token. Raises `Failure`."""
        while True:
            try:
                nights = self.read_collections(days)
            except Failure as failure:
                # A 401 to a new token means that a permission is missing.
                if failure.status != 401 or self.settings["OURA_TOKEN"] or self.sign_in.is_new:
                    raise
                self.token = self.sign_in.access_token(refused=self.token)
            else:
                self.sign_in.is_new = False
                return nights

    def read_collections(self, days: Sequence[date]) -> list[Night]:
        """Read all collections at the same time. Raises `Failure` if the read is not whole."""
        reads = [partial(self.read_pages, name, days) for name in COLLECTIONS]
        found = dict(zip(COLLECTIONS, at_once(*reads), strict=True))
        missing = None  # in the guide, there is no `sleep`
        if isinstance(found["sleep"], Failure) and found["sleep"].status == 404:
            missing, found["sleep"] = found["sleep"], []
        if failures := [one for one in found.values() if isinstance(one, Failure)]:
            raise min(failures, key=Failure.tries)  # first the one that no other try helps
        needed = needed_collections(found, self.metrics)
        if missing and "sleep" in needed:
            raise missing
        nights = [Night(day, found) for day in days]
        empty = [name for name in COLLECTIONS if name in needed and not found[name]]
        # On some mornings, Oura leaves a collection out (seen by users). A day that is sent
        # replaces what Petals has, so values would be deleted. A single night may really lack it.
        if empty and sum(night.is_night() for night in nights) > 1:
            reason = f"Oura {' and '.join(empty)}: no document, unlike other collections"
            raise Failure(reason, "nothing is sent; run again later", "documents")
        return nights

    def read_pages(self, collection: str, days: Sequence[date]) -> list[Json]:
        """Return the documents of consecutive days from all pages of a collection."""
        # Users measured that the first or the last day is left out, and that some collections go by
        # the day in UTC. So ask for two more days at each end.
        params = {"start_date": str(days[0] - 2 * ONE_DAY), "end_date": str(days[-1] + 2 * ONE_DAY)}
        if collection == "sleep":  # without its 5-minute series, which are most of a document
            rows = [row for row in METRICS.values() if row.collection == "sleep"]
            params["fields"] = ",".join(["id", "day", "type", *(row.field for row in rows)])
        headers = {"Authorization": f"Bearer {self.token}"}
        documents: dict[str, Json] = {}
        for _ in range(MAX_PAGES):
            page = self.server.request("GET", collection, params=params, headers=headers)
            data = page.get("data")
            for document in data if isinstance(data, list) else [None]:
                day = parse_day(document.get("day")) if isinstance(document, dict) else None
                if document is None or day is None:
                    reason = f"Oura {collection} has a document without a readable day"
                    raise Failure(reason, "check OURA_HOST", "documents")
                # A document comes twice if a page boundary moves between two requests.
                identity = document.get("id") or f"without an id, {len(documents)}"
                if days[0] <= day <= days[-1]:
                    documents[str(identity)] = document
            if not page.get("next_token"):
                return list(documents.values())
            params["next_token"] = page["next_token"]
        raise Failure(f"Oura {collection} has more than {MAX_PAGES} pages", cause="documents")

    def check(self, patience: Patience) -> str:
        """Return what is to be said of Oura if it works. Raises `Failure` if not."""
        week = [date.today() - n * ONE_DAY for n in reversed(range(7))]
        nights = patience.patiently(lambda: self.read(week))
        with_values = [str(night.day) for night in nights if night.values(self.metrics)]
        latest = max(with_values, default="none in the last 7 days")
        way = "OURA_TOKEN" if self.settings["OURA_TOKEN"] else self.sign_in.path
        return f"reading works with {way}; latest night: {latest}."


# --- Petals -------------------------------------------------------------------------------------
# Each day is sent as a whole, and replaces what Petals has of it. Servers of today take an object,
# and those of the guide an array: bulk itself tells which (`Petals.send`).

YEAR_0 = "0000-01-01T00:00:00Z"  # PostgreSQL has no year 0
# How a server may answer a form that it does not know: also with a success that says nothing.
REFUSES_FORM = (400, 404, 405, 415, 422, 500, *range(200, 300))

Values = Mapping[Metric, float]
Form = Literal["object", "array"]  # what bulk takes today, and what it takes in the guide


def bulk_body(form: Form, night: Night, values: Values) -> Any:
    """Return values (at least one) of a night as bulk takes them."""
    rows, is_array = list[Json](), form == "array"
    for metric, value in values.items():
        name = {"metric": metric.definition} if is_array else {"metricSlug": metric.petals_slug}
        rows.append({**name, "value": value, "occurredAt": f"{night.day}T00:00:00Z"})
    if is_array:
        return rows
    if sentence := night.sentence():
        rows[0]["note"] = sentence
    return {"sourceExternalId": f"oura_{night.day}", "observations": rows}


def confirmed(form: Form, answer: Json, rows: int) -> int:
    """Return how many rows an answer confirms. Raises `Failure` if it confirms nothing."""
    job, inserted = answer.get("jobId"), answer.get("inserted")
    if form == "array" and isinstance(job, str) and job and not answer.get("errors"):
        return rows
    if form == "object" and type(inserted) is int and 0 <= inserted <= rows:  # True is no number
        return inserted
    said = f": {text}" if (text := quoted(answer)) else ""
    reason = f"Petals observations/bulk did not confirm that it stored the day{said}"
    raise Failure(reason, "check PETALS_HOST", status=200)


class Petals:
    """A Petals server, and what this run knows of it.

    A metric is known to bulk (then it has no state), or "unknown". An unknown one is "proposed",
    and the next answer of bulk tells whether it is known then. If not, it is "elsewhere": Petals
    has filed it under a similar metric of the user's, and it is not sent any more.
    """

    def __init__(self, client: httpx.Client, settings: Settings) -> None:
        self.settings = settings
        self.server = Server(client, settings, "Petals", "PETALS_HOST", "/api/memory/metrics/")
        self.forms: list[Form] = ["object", "array"]  # one, once it was accepted
        self.stored: dict[date, int] = {}  # observations of a day, by the last answer of bulk
        self.states: dict[Metric, str] = {}
        self.similar: dict[Metric, str] = {}  # the name of a similar metric, for a message
        # No metric is proposed any more after this one, see `Run.store`.
        self.failed_proposal: Failure | None = None

    def post(self, path: str, body: object, seconds: float = MAX_SECONDS) -> Json:
        """Return the answer to a body. Raises `Failure`."""
        headers = {"x-api-key": self.settings["PETALS_API_KEY"]}
        return self.server.request("POST", path, seconds, json=body, headers=headers)

    def read_list(self, seconds: float = MAX_SECONDS) -> dict[Metric, date]:
        """Return the latest day of each metric that has one. Raises `Failure`.

        If the server has no list, it is one of the guide, whose form goes first from now on.
        """
        try:
            answer = self.post("list", {}, seconds)
            has_list = "jobId" not in answer  # else it answers all as it answers observations
        except Failure as failure:
            if failure.status not in (404, 405):
                raise
            has_list = False
        if not has_list:
            self.forms = ["array", "object"]
            return {}
        if not isinstance(answer.get("metrics"), list):
            raise Failure("Petals list answered without a list of metrics", "check PETALS_HOST")
        days: dict[str, date | None] = {}
        for entry in answer["metrics"]:
            stats = entry.get("stats") if isinstance(entry, dict) else None
            if isinstance(stats, dict):
                days[str(entry.get("slug"))] = parse_day(str(stats.get("latestAt"))[:10])
        return {one: day for one in METRICS.values() if (day := days.get(one.petals_slug))}

    def store(self, night: Night, values: Values) -> None:
        """Make one try to store a day: send it and propose what is unknown, until nothing is.

        Raises `Failure` if not all is stored that can be.
        """
        while True:
            left_out = ("elsewhere", "unknown") if self.failed_proposal else ("elsewhere",)
            sendable = {one: values[one] for one in values if self.states.get(one) not in left_out}
            refusal = self.send(night, sendable)
            unknown = self.unknown(sendable)
            if self.failed_proposal or not unknown:
                break
            for metric in unknown:
                self.propose(metric)
        if refusal:
            raise refusal
        if self.failed_proposal and self.unknown(values):
            # Told with the same reason as the proposal. Another try would be no use.
            raise Failure(self.failed_proposal.reason, self.failed_proposal.advice)

    def unknown(self, values: Values) -> list[Metric]:
        """Return the metrics that Petals does not know, and that were not proposed."""
        return [metric for metric in values if self.states.get(metric) == "unknown"]

    def send(self, night: Night, values: Values) -> Failure | None:
        """Send values of a day, in place of what Petals has; return why some are not stored.

        Until a form was accepted, each refusal of one is followed by one try of the other.
        """
        if not values:  # a day without values would only delete
            return None
        refusals = []
        for form in self.forms:
            try:
                answer = self.post("observations/bulk", bulk_body(form, night, values))
                self.stored[night.day] = confirmed(form, answer, len(values))
            except Failure as failure:
                if failure.status not in REFUSES_FORM:
                    raise
                refusals.append(failure)
            else:
                self.forms = [form]
                return self.read_answer(answer, list(values), self.stored[night.day])
        raise refusals[0]

    def read_answer(self, answer: Json, metrics: Sequence[Metric], stored: int) -> Failure | None:
        """Note which metrics Petals does not know; return why rows of others are not stored."""
        errors, problems, codes = answer.get("errors") or [], list[str](), set[str]()
        unknown: set[Metric] = set()
        for error in errors if isinstance(errors, list) else [errors]:
            entry = error if isinstance(error, dict) else {"message": error}
            code, index = str(entry.get("code")), cast(Any, entry.get("index"))
            is_row = isinstance(index, int) and 0 <= index < len(metrics)
            if is_row and code == "DEFINITION_NOT_FOUND":
                unknown.add(metrics[index])
                continue
            slug = metrics[index].petals_slug if is_row else "a row"
            reason = "outside its valid range" if code == "RANGE_VIOLATION" else quoted(entry)
            problems.append(f"; {slug} refused: {reason or code}")
            codes.add(code)
        for metric in metrics:
            if metric not in unknown:
                self.states.pop(metric, None)
            else:
                was_proposed = self.states.get(metric) == "proposed"
                self.states[metric] = "elsewhere" if was_proposed else "unknown"
        is_complete = stored + len(problems) == len(metrics) - len(unknown)
        if is_complete and not problems:
            return None
        reason = f"Petals stored {stored} of {len(metrics)} observations{''.join(problems)}"
        if is_complete and codes == {"RANGE_VIOLATION"}:
            return Failure(reason[:600], "widen that range in Petals, then run again")
        return Failure(reason[:600], "run again", "passing")

    def propose(self, metric: Metric) -> None:
        """Propose a metric. Raises `Failure` if Petals did not look at it.

        A proposal is an observation that Petals has to refuse, since a stored one can never be
        removed. Petals defines the metric first and refuses the observation then: its value is
        below the range, and PostgreSQL has no year 0. The second reason is for a proposal that is
        filed under a similar metric, whose range the value may fit (measured with Petals 2.1.0 and
        2.5.0). So only the next answer of bulk shows whether the metric is known.
        """
        low, high = RANGES[metric.unit]
        words = {"slug": metric.petals_slug, "description": metric.description}
        proposal = {**metric.definition, **words, "validRangeMin": low, "validRangeMax": high}
        said = ""
        try:
            self.post("observations", {"metric": proposal, "value": low - 1, "occurredAt": YEAR_0})
        except Failure as failure:
            said = failure.body
            # Asked before `at_proposal` is set, which changes what `ends_run` and `tries` return.
            # A lost answer is about one metric, and no reason to end the run.
            if failure.ends_run(is_read=False) and failure.cause != "no answer":
                raise
            is_refusal = "RANGE_VIOLATION" in said or YEAR_0[:10] in said
            if not is_refusal:
                if failure.tries() == 1:  # such as the 400 of an embedding service that is down
                    failure.advice = "run again"
                failure.reason = f"{metric.petals_slug} could not be defined: {failure.reason}"
                failure.at_proposal = True
                raise
        self.states[metric] = "proposed"
        names = re.findall(r"valid range for (\w+)", said)
        self.similar[metric] = "".join(f", {name}" for name in names if name != words["slug"])

    def filed_elsewhere(self) -> list[str]:
        """Return a line for each metric that Petals filed under a similar one."""
        filed = "left out: Petals filed it under a similar metric of yours"
        advice = "give that metric another label and description in Petals, then run again"
        found = [metric for metric, state in self.states.items() if state == "elsewhere"]
        return [f"{one.petals_slug} {filed}{self.similar[one]}; {advice}" for one in found]

    def try_empty_array(self) -> None:
        """See whether there is a bulk endpoint, and store nothing. Raises `Failure` if not."""
        try:
            confirmed("array", self.post("observations/bulk", []), 0)
        except Failure as failure:
            if failure.status not in (400, 422, 500):
                raise

    def check(self, metrics: Sequence[Metric], patience: Patience) -> str:
        """Return what is to be said of Petals if it works. Raises `Failure` if not."""
        try:
            listed = patience.patiently(self.read_list)
            if self.forms[0] == "array":
                patience.patiently(self.try_empty_array)
        except Failure as failure:
            if failure.status in (404, 405):
                failure.advice = "PETALS_HOST is wrong"
            if failure.status == 500:
                send = f"send one with: {self.settings.command('--date', 'today')}"
                failure.advice = f"a new account answers so until its first night: {send}"
            raise
        if self.forms[0] == "array":
            return "there is no list of metrics; the first night shows whether the key is accepted."
        latest = [str(listed[metric]) for metric in metrics if metric in listed]
        count = f"{len(latest)} of {len(metrics)} metrics have observations"
        newest = max(latest, default="none yet")
        return f"the key is accepted; {count}; latest observation: {newest}."


# --- Runs ---------------------------------------------------------------------------------------
# Read and send the days, the oldest first. So the latest day that Petals has is how far the work
# came, whatever interrupted it: the days before it were stored, or it was told that they were not.

FIRST_DAY = date(2015, 1, 1)
MAX_DAYS = 3660
DAYS_AT_ONCE = 90  # in a read, also in that of a hole with the asked days


class RunEnded(Exception):  # noqa: N818 - no fault of its own
    """No other day is read or sent. Why was told."""


def days_from(first: date, last: date) -> list[date]:
    """Return the days from the first to the last."""
    return [first + n * ONE_DAY for n in range((last - first).days + 1)]


def spans(days: Sequence[date]) -> str:
    """Return days, the oldest first, as in `2026-06-04 to 2026-06-08, 2026-06-10`."""
    found: list[list[date]] = []
    for day in days:
        if found and day == found[-1][-1] + ONE_DAY:
            found[-1].append(day)
        else:
            found.append([day])
    return ", ".join(f"{one[0]} to {one[-1]}" if len(one) > 1 else str(one[0]) for one in found)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as in `1 day` and `2 days`."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


class Run:
    """The days of a run, what came of them, and how that is shown."""

    def __init__(self, options: argparse.Namespace, oura: Oura, petals: Petals) -> None:
        self.options, self.oura, self.petals = options, oura, petals
        self.patience = Patience(options.wait)
        first = max(options.day - (options.days - 1) * ONE_DAY, FIRST_DAY)
        self.asked = days_from(first, options.day)
        self.days = self.asked  # with those of a hole before them
        self.older: list[date] = []  # those of a hole that are too many for one read
        self.rows: list[Json] = []  # of a dry run, in the form of the guide
        self.pushed: list[date] = []  # days of which observations were stored
        self.observations = 0
        self.without_data: list[date] = []
        self.done: set[date] = set()  # stored, without data, or all filed elsewhere
        self.failed_in_a_row = 0  # days with values of which Petals stored none
        self.problems: dict[str, list[date]] = {}  # the days by reason

    def push(self) -> int:
        """Send the days, tell how it ended, and return the exit code."""
        try:
            with suppress(RunEnded):
                self.send_days()
        except KeyboardInterrupt:
            self.add_problem("interrupted", self.days if len(self.days) == 1 else [])
            raise
        finally:  # also after a bug
            for problem in self.petals.filed_elsewhere():
                self.add_problem(problem, [])
            self.show_end()
        return 1 if self.problems else 0

    def send_days(self) -> None:
        """Read and send the days, in parts. Raises `RunEnded`."""
        # In a thread, this puts days before the asked ones, up to DAYS_AT_ONCE in all.
        meanwhile = [self.add_hole] if self.options.catches_up else []
        nights = self.read(self.days[:DAYS_AT_ONCE], *meanwhile)
        if nights and len(self.days) > len(self.asked):
            nights = self.read(self.days)  # as a whole, see `Oura.read_collections`
        for night in nights:
            self.send(night)
        for start in range(DAYS_AT_ONCE, len(self.days), DAYS_AT_ONCE):
            for night in self.read(self.days[start : start + DAYS_AT_ONCE]):
                self.send(night)

    def add_hole(self) -> None:
        """Add the hole: the days from the latest one of Petals, which may be half stored.

        The list is asked once, and a failure means nothing: for a new user it can be a 500 until
        the first observation (measured with Petals 2.5.0), and bulk tells of a refused key.
        """
        latest: list[date] = []
        with suppress(Failure):
            latest = [*self.petals.read_list(seconds=10).values()]
        before, earliest = self.asked[0] - ONE_DAY, self.asked[-1] - (DAYS_AT_ONCE - 1) * ONE_DAY
        if latest and max(latest) < before:
            hole = days_from(max(*latest, FIRST_DAY), before)
            self.older = [day for day in hole if day < earliest][-MAX_DAYS:]
            self.days = [*(day for day in hole if day >= earliest), *self.asked]

    def read(self, days: Sequence[date], *meanwhile: Callable[[], None]) -> list[Night]:
        """Return the nights of some days, or none if the read failed. Raises `RunEnded`."""
        show_progress(f"reading {spans(days)}")
        read = partial(self.oura.read, days)
        outcome, *_ = at_once(partial(self.patience.patiently, read), *meanwhile)
        if isinstance(outcome, Failure):
            self.add_problem(str(outcome), days, outcome.ends_run(is_read=True))
            return []
        return cast(list[Night], outcome)

    def send(self, night: Night) -> None:
        """Send a night, and note what came of it. Raises `RunEnded`."""
        show_progress(f"{self.progress()}, {night.day}")
        try:
            if values := night.values(self.oura.metrics):
                self.store(night, values)
            else:
                self.without_data.append(night.day)
                sync = " Open the Oura app to sync the ring." if night.day >= date.today() else ""
                self.show_day(f"No Oura data for {night.day} — nothing pushed.{sync}")
            self.done.add(night.day)
        except Failure as failure:
            self.add_problem(str(failure), [night.day], failure.ends_run(is_read=False))
        if self.failed_in_a_row == 5:
            self.add_problem("stopped: Petals stored nothing of five days in a row", [], ends=True)

    def store(self, night: Night, values: Values) -> None:
        """Store the values of a night, or keep them for a dry run. Raises `Failure`."""
        if self.options.dry_run:
            self.rows += bulk_body("array", night, values)
            self.pushed.append(night.day)
            return
        failure = None
        try:
            self.patience.patiently(partial(self.petals.store, night, values))
        except Failure as error:
            failure = error
        if stored := self.petals.stored.get(night.day, 0):  # perhaps only a part of the day
            self.failed_in_a_row = 0
            self.pushed.append(night.day)
            self.observations += stored
            sentence = f" {text}." if (text := night.sentence()) else ""
            self.show_day(f"Pushed {counted(stored, 'observation')} for {night.day}.{sentence}")
        if failure:
            self.failed_in_a_row += 0 if stored else 1
            if failure.at_proposal:  # the tries of this day are used up, so propose no more
                self.petals.failed_proposal = failure
            raise failure

    def add_problem(self, problem: str, days: Sequence[date], ends: bool = False) -> None:
        """Note a problem of some days. Raises `RunEnded` if it ends the run."""
        self.problems.setdefault(problem, []).extend(days)
        if self.options.verbose:
            warn(f"{spans(days)}: {problem}" if days else problem)
        if ends:
            raise RunEnded

    def show_day(self, text: str) -> None:
        """Show what came of a day, if each one has a line."""
        if len(self.days) == 1 or self.options.verbose:
            say(text)

    def progress(self) -> str:
        """Return how many of the days are complete."""
        return f"{len(self.done.intersection(self.pushed))} of {len(self.days)} days"

    def command(self, days: Sequence[date]) -> str:
        """Return the command that sends these days, which follow one another."""
        options = ["--date", str(days[-1]), "--days", str(len(days))]
        options += ["--wait"] if self.options.wait else []
        options += ["--dry-run"] if self.options.dry_run else []
        return self.oura.settings.command(*options)

    def show_end(self) -> None:
        """Tell the problems that were not told yet, and the result of several days."""
        for problem, days in self.problems.items():
            if not self.options.verbose:
                warn(f"{spans(sorted(days))}: {problem}" if days else problem)
        if self.older and self.observations:  # else the next run finds this hole again
            warn(f"{spans(self.older)} may be missing, send with: {self.command(self.older)}")
        if len(self.days) == 1:
            return
        if left := [day for day in self.days if day not in self.done]:
            rest = self.command(days_from(left[0], self.days[-1]))
            warn(f"{self.progress()} are complete, go on with: {rest}")
        if len(self.asked) > 1 and set(self.asked) <= set(self.without_data):
            warn(f"no Oura data for {spans(self.asked)}: has the Oura app been opened?")
        result = f"{len(self.pushed)} of {len(self.days)} days"
        if self.pushed:
            result += f", {spans(self.pushed)}"
        if self.without_data:
            result += f"; {counted(len(self.without_data), 'day')} without data"
        say(f"Pushed {counted(self.observations, 'observation')} for {result}.")


def check_services(client: httpx.Client, settings: Settings, metrics: Sequence[Metric]) -> int:
    """Say whether each service works, and store nothing. Return the exit code."""
    code = 0
    patience = Patience(may_wait=False, most_tries=4)
    for name, needed in (("Oura", settings.for_reading), ("Petals", PETALS)):
        try:
            settings.require(*needed)
            if name == "Oura":
                said = Oura(client, settings, metrics).check(patience)
            else:
                said = Petals(client, settings).check(metrics, patience)
            say(f"{name}: {said}")
        except Failure as failure:
            warn(f"{name}: {str(failure).removeprefix(f'{name} ')}")
            code = max(code, 2 if failure.cause == "setting" else 1)
    return code


# --- Command line -------------------------------------------------------------------------------
# What the options ask for, and how the process ends.

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
    night = Night(day, {name: [{**DEMO_DOCUMENT, "day": str(day)}] for name in COLLECTIONS})
    values = night.values([*METRICS.values()])
    for metric, value in values.items():
        say(f"{metric.label:<28}{value:>6} {metric.unit}")
    say(f"Demo: would push {len(values)} observations. {night.sentence()}.")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, with the last `day`. Raises `SystemExit` if they are wrong."""
    codes = "exit codes: 0 done, 1 something failed, 2 wrong usage or settings, 130 interrupted"
    summary = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(description=summary, epilog=codes, allow_abbrev=False)
    # fmt: off
    add, add_mode = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("--date", metavar="DAY", default="yesterday",
        help="the day on which the night ended: YYYY-MM-DD, today or yesterday (the default)")
    add("--days", metavar="N", type=int, default=1,
        help=f"the last N days up to --date, from 1 (the default) to {MAX_DAYS}")
    add("--wait", action="store_true",
        help="at a rate limit, or if a server does not answer, wait and go on, up to 24 hours")
    add("--env-file", metavar="FILE", type=Path, help="read the settings from FILE, not from .env")
    add_mode("--login", action="store_true", help="sign in with Oura, once")
    add_mode("--check", action="store_true", help="check both services; nothing is stored")
    add_mode("--dry-run", action="store_true", help="print the observations; nothing is sent")
    add_mode("--demo", action="store_true", help="show what is sent for a sample night")
    add("-q", "--quiet", action="store_true", help="show problems only")
    add("-v", "--verbose", action="store_true", help="show each request, each failed try, each day")
    add("--version", action="version", version=f"oura_to_petals {__version__}")
    # fmt: on
    options = parser.parse_args(argv)
    today = date.today()  # in this machine's time zone
    words = {"today": today, "yesterday": today - ONE_DAY}
    # Unless a date is given, the run also sends the days that Petals lacks before the asked ones.
    options.catches_up = options.date.lower() in words and not options.dry_run
    options.day = words.get(options.date.lower()) or parse_day(options.date)
    latest = today + ONE_DAY  # the owner may live in another zone than the machine
    if options.day is None or not FIRST_DAY <= options.day <= latest:
        choice = f"today, yesterday or YYYY-MM-DD, from {FIRST_DAY} to {latest}"
        parser.error(f"argument --date: {options.date!r} is no day to send: use {choice}")
    if not 1 <= options.days <= MAX_DAYS:
        parser.error(f"argument --days: {options.days} is not from 1 to {MAX_DAYS}")
    return options


def do(options: argparse.Namespace) -> int:
    """Do what the options ask for and return the exit code. Raises `Failure`."""
    if options.demo:
        return show_demo(options.day)
    settings = Settings(options.env_file)
    if options.login:
        # It needs no key of Petals, but a wrong one is better seen now.
        settings.require(*LOGIN, *(name for name in PETALS if settings[name]))
    elif options.check:
        settings.require()  # swapped keys only: it tells for each service what is missing
    else:
        settings.require(*settings.for_reading, *(() if options.dry_run else PETALS))
    metrics = choose_metrics(settings["OURA_METRICS"])
    client = open_client()
    if options.check:
        return check_services(client, settings, metrics)
    if options.login:
        return log_in(client, settings, Patience(options.wait))
    run = Run(options, Oura(client, settings, metrics), Petals(client, settings))
    with redirect_stdout(None if options.dry_run else sys.stdout):  # a dry run prints rows only
        code = run.push()
    if options.dry_run and (run.rows or not code):
        say(json.dumps(run.rows, indent=2))
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # A stream that the shell has closed is None. Open it, or the token file would get its number.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - open to the end
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - open to the end
    logging.basicConfig(handlers=[VerboseHandler()], level=logging.WARNING, force=True)
    try:
        options = parse_arguments(argv)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # keep what nohup ignores
                signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="replace")
        if options.verbose:
            logging.root.setLevel(logging.INFO)
        with redirect_stdout(None if options.quiet and not options.login else sys.stdout):
            return do(options)
    except SystemExit as stop:  # argparse has written why
        return int(stop.code or 0)
    except Failure as failure:
        warn(str(failure))
        return 2 if failure.cause == "setting" else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - its message could contain a key
        frames = traceback.extract_tb(error.__traceback__)
        line = [frame.lineno for frame in frames if frame.filename == __file__][-1]
        warn(f"a bug, {type(error).__name__} in line {line}: please report it")
        return 1


def run_and_exit() -> Never:
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
