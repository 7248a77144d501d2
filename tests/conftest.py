from __future__ import annotations

import os
import shutil
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fakes
import httpx
import pytest
import respx
from fakes import Cron, World, hanging_ends

import oura_to_petals

CONTEXT = ssl.create_default_context()


@contextmanager
def new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the script finds when it starts, in a process of its own."""
    monkeypatch.setattr(oura_to_petals, "SECRETS", set())
    monkeypatch.setattr(httpx, "create_ssl_context", lambda: CONTEXT)  # one for all tests
    # Signals may be ignored where the tests are started.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    hanging_ends.clear()
    yield
    hanging_ends.set()


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
    with new_process(monkeypatch):
        yield home


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A personal access token and a key for Petals."""
    monkeypatch.setenv("OURA_TOKEN", fakes.TOKEN)
    monkeypatch.setenv("PETALS_API_KEY", fakes.KEY)


@pytest.fixture
def world(
    capsys: pytest.CaptureFixture[str], keys: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Both services with a night of `DAY`, and the keys for them."""
    waited: list[float] = []
    monkeypatch.setattr(oura_to_petals, "sleep", waited.append)
    with respx.mock(assert_all_called=False) as router:
        world = World(fakes.Oura(), fakes.Petals(), router, capsys, waited)
        router.route(host="api.ouraring.com").mock(side_effect=world.oura)
        router.route(host="moi.ouraring.com").mock(side_effect=world.oura)
        router.route(host="petals.chat").mock(side_effect=lambda request: world.petals(request))
        yield world
        hanging_ends.set()  # as long as the routes are there


@pytest.fixture
def week(world: World) -> World:
    """A world with the seven nights up to `DAY`."""
    world.oura.fill(7)
    return world


@pytest.fixture
def array_world(world: World) -> World:
    """An array server, and an Oura with the total in `daily_sleep` and without `sleep`."""
    world.petals = fakes.ArrayPetals()
    world.oura.collections["daily_sleep"] = [fakes.daily_sleep(total_sleep_duration=25_920)]
    world.oura.collections["sleep"] = None
    return world


@pytest.fixture
def cron(tmp_path: Path, home: Path) -> Cron:
    """A copy of the script in a folder of its own, whose name has a space."""
    folder = tmp_path / "my scripts"
    folder.mkdir()
    return Cron(Path(shutil.copy(fakes.SCRIPT, folder)), home)
