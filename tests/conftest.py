from __future__ import annotations

import os
import shutil
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import fakes
import httpx
import pytest
import respx
from fakes import Cron, World, hanging_ends

import oura_to_petals

CONTEXT = ssl.create_default_context()
HOME = "home of a user"


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


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty home. One for all tests, since to make one takes its time."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / HOME).mkdir()
    return folder


@pytest.fixture
def tmp_path(machine: Path) -> Iterator[Path]:
    yield machine
    for path in [*machine.iterdir(), *(machine / HOME).iterdir()]:
        if path.is_dir() and path.name != HOME:
            shutil.rmtree(path)
        elif path.name != HOME:
            path.unlink()


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without settings: no environment, an empty home, and no `.env` anywhere."""
    for name in os.environ:
        if not name.startswith("PYTEST"):
            monkeypatch.delenv(name)
    home = tmp_path / HOME
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(home)
    monkeypatch.setattr(oura_to_petals, "SCRIPT", tmp_path / "beside" / "oura_to_petals.py")
    with new_process(monkeypatch):
        yield home


@pytest.fixture
def world(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Both services with a night of `DAY`, and the keys for them."""
    monkeypatch.setenv("OURA_TOKEN", fakes.TOKEN)
    monkeypatch.setenv("PETALS_API_KEY", fakes.KEY)
    waited: list[float] = []
    monkeypatch.setattr(oura_to_petals, "sleep", waited.append)
    with respx.mock(assert_all_called=False) as router:
        world = World(fakes.Oura(), fakes.Petals(), router, capsys, waited)
        router.route().mock(side_effect=world.answer)
        yield world
        hanging_ends.set()
        for thread in threading.enumerate():
            if thread.name.startswith("ThreadPool"):  # one of a run that was given up may still ask
                thread.join(0.1)  # or one waits for work, and is collected later


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Choose metrics."""
    return lambda text: monkeypatch.setenv("OURA_METRICS", text)


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
def served() -> Iterator[SimpleNamespace]:
    """Both services on a local port, and the settings for them."""
    oura, petals = fakes.Oura(), fakes.Petals()
    with fakes.local_server(oura, petals) as host:
        env = {"OURA_TOKEN": fakes.TOKEN, "PETALS_API_KEY": fakes.KEY}
        env |= {"OURA_HOST": host, "PETALS_HOST": f"{host}/"}
        yield SimpleNamespace(oura=oura, petals=petals, env=env)


@pytest.fixture
def cron(tmp_path: Path, home: Path) -> Cron:
    """A copy of the script in a folder of its own, whose name has a space."""
    folder = tmp_path / "my scripts"
    folder.mkdir()
    return Cron(Path(shutil.copy(fakes.SCRIPT, folder)), home)
