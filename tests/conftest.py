from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from services import DAY, KEY, TOKEN, ArrayPetals, Oura, Petals, hang

import oura_to_petals

SCRIPT = Path(oura_to_petals.__file__)
CONTEXT = ssl.create_default_context()
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Threads of one interpreter are faster on one processor than on several.
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})
HANDLERS = {signal.SIGINT: signal.default_int_handler}
HANDLERS |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)


@dataclass
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide the settings of this machine, and share one TLS context among the tests."""
    for name in [*oura_to_petals.DEFAULTS, "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    monkeypatch.setattr(oura_to_petals, "SCRIPT", tmp_path / "beside" / "oura_to_petals.py")
    monkeypatch.setattr(httpx, "create_ssl_context", lambda: CONTEXT)
    oura_to_petals.SECRETS.clear()
    # Signals may be ignored where the tests are started, and are so after an interrupted run.
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    return home


@pytest.fixture
def both_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURA_TOKEN", TOKEN)
    monkeypatch.setenv("PETALS_API_KEY", KEY)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between the tries of a run, which are not really slept."""
    waits: list[float] = []
    monkeypatch.setattr(oura_to_petals, "sleep", waits.append)
    return waits


@dataclass
class Clock:
    """The clock of the time limit. It can be set ahead."""

    ahead: float = 0.0
    noticed: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> float:
        if self.ahead and threading.current_thread() is threading.main_thread():
            self.noticed.set()
        return time.monotonic() + self.ahead

    def to_the_end(self, *_: object) -> None:
        """Answer after the time limit."""
        self.ahead += 1000
        self.noticed.wait(10)
        time.sleep(0.05)

    def never(self, *_: object) -> None:
        """Never answer."""
        self.ahead += 1000
        hang()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(oura_to_petals, "monotonic", clock)
    return clock


@dataclass
class World:
    """Both services behind respx, and the command line in front of them."""

    oura: Oura
    petals: Any
    router: respx.MockRouter
    capsys: pytest.CaptureFixture[str]

    def use(self, petals: Any) -> None:
        """Use another fake Petals."""
        self.petals = petals

    def run(self, *argv: str, day: str | None = str(DAY)) -> Ended:
        self.capsys.readouterr()
        options = list(argv) if day is None else ["--date", day, *argv]
        try:
            code = oura_to_petals.main(options)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Ended(code, *self.capsys.readouterr())


@pytest.fixture
def world(
    capsys: pytest.CaptureFixture[str], both_keys: None, waited: list[float]
) -> Iterator[World]:
    with respx.mock(assert_all_called=False) as router:
        world = World(Oura(), Petals(), router, capsys)
        router.route(host="api.ouraring.com").mock(side_effect=world.oura)
        router.route(host="moi.ouraring.com").mock(side_effect=world.oura)
        router.route(host="petals.chat").mock(side_effect=lambda request: world.petals(request))
        yield world


@pytest.fixture
def array_world(world: World) -> World:
    """An array server, and an Oura with the total in `daily_sleep` and without `sleep`."""
    world.use(ArrayPetals())
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = 25_920
    world.oura.collections["sleep"] = None
    return world


@pytest.fixture
def cron() -> Callable[..., Ended]:
    """Run the script as cron does: from the home folder, with next to no environment."""

    def run(*argv: str, stdin: str = "", seconds: float = 30, **env: str) -> Ended:
        bare = {"HOME": os.environ["HOME"], "PATH": "/usr/bin:/bin", **env}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *argv],
            env=bare, cwd=bare["HOME"], input=stdin, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    return run
