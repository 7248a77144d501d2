from __future__ import annotations

import os
import shutil
import signal
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import respx
from fakes import (
    DAY,
    KEY,
    SCRIPT,
    TOKEN,
    ArrayPetals,
    Cron,
    Oura,
    Petals,
    World,
    daily_sleep,
    hanging_ends,
)

import oura_to_petals

CONTEXT = ssl.create_default_context()


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without settings: no environment, an empty home, and no `.env` anywhere."""
    for name in os.environ:
        if not name.startswith("PYTEST"):
            monkeypatch.delenv(name)
    home = tmp_path / "home of a user"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(home)
    monkeypatch.setattr(oura_to_petals, "SCRIPT", tmp_path / "beside" / "oura_to_petals.py")
    monkeypatch.setattr(oura_to_petals, "SECRETS", set())
    monkeypatch.setattr(httpx, "create_ssl_context", lambda: CONTEXT)  # one for all tests
    # A pool of its own, since a run that was given up keeps its threads.
    blocked = oura_to_petals.BLOCKED
    threads = ThreadPoolExecutor(4, initializer=signal.pthread_sigmask, initargs=blocked)
    monkeypatch.setattr(oura_to_petals, "THREADS", threads)
    # Signals may be ignored where the tests are started.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    hanging_ends.clear()
    yield home
    hanging_ends.set()
    threads.shutdown()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A personal access token and a key for Petals."""
    monkeypatch.setenv("OURA_TOKEN", TOKEN)
    monkeypatch.setenv("PETALS_API_KEY", KEY)


@pytest.fixture
def world(
    capsys: pytest.CaptureFixture[str], keys: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Both services with a night of `DAY`, and the keys for them."""
    waited: list[float] = []
    monkeypatch.setattr(oura_to_petals, "sleep", waited.append)
    with respx.mock(assert_all_called=False) as router:
        world = World(Oura(), Petals(), router, capsys, waited)
        router.route(host="api.ouraring.com").mock(side_effect=world.oura)
        router.route(host="moi.ouraring.com").mock(side_effect=world.oura)
        router.route(host="petals.chat").mock(side_effect=lambda request: world.petals(request))
        yield world
        # As long as the routes are there, since a thread may ask for the list after the run.
        hanging_ends.set()
        oura_to_petals.THREADS.shutdown()


@pytest.fixture
def week(world: World) -> World:
    """A world with the seven nights up to `DAY`."""
    world.oura.fill(7)
    return world


@pytest.fixture
def array_world(world: World) -> World:
    """An array server, and an Oura with the total in `daily_sleep` and without `sleep`."""
    world.petals = ArrayPetals()
    world.oura.collections["daily_sleep"] = [daily_sleep(DAY, total_sleep_duration=25_920)]
    world.oura.collections["sleep"] = None
    return world


@pytest.fixture
def cron(tmp_path: Path, home: Path) -> Cron:
    """A copy of the script in a folder of its own, whose name has a space."""
    folder = tmp_path / "my scripts"
    folder.mkdir()
    return Cron(Path(shutil.copy(SCRIPT, folder)), home)
