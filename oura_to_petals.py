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


