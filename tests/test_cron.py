"""The script as a process of its own, mostly as cron starts it, and what its exit code says."""

from __future__ import annotations

import io
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SCRIPT, Ended, World
from services import DAY, KEY, TOKEN, Oura, Petals, hang, local_server

RESULT = "Pushed 3 observations for 2026-06-10. Slept 7h12, readiness 82, HRV 54ms.\n"


class Served:
    """Both services on a local port, and the settings for them."""

    def __init__(self, host: str, oura: Oura, petals: Petals) -> None:
        self.oura, self.petals = oura, petals
        hosts = {"OURA_HOST": host, "PETALS_HOST": f"{host}/"}
        self.env = {"OURA_TOKEN": TOKEN, "PETALS_API_KEY": KEY, **hosts}

    def write_env_file(self, path: Path) -> Path:
        path.write_text("".join(f"{name}={value}\n" for name, value in self.env.items()))
        path.chmod(0o600)
        return path


@pytest.fixture
def served() -> Iterator[Served]:
    oura, petals = Oura(), Petals()
    with local_server(oura, petals) as host:
        yield Served(host, oura, petals)


def test_a_night_is_sent_with_the_env_file_in_the_home_folder(
    cron: Callable[..., Ended], served: Served, empty_home: Path
) -> None:
    served.write_env_file(empty_home / ".env")
    assert cron("--date", "2026-06-10") == Ended(0, RESULT, "")
    assert len(served.oura.requests) == 3
    assert len(served.petals.requests) == 2


def test_yesterday_is_the_one_of_the_local_time_zone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = []
    for zone in ("UTC+12", "UTC-14"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        days.append(world.run("--demo", day=None).out.splitlines()[-1])
    monkeypatch.undo()
    time.tzset()
    assert days[0] != days[1]


@pytest.mark.parametrize(
    ("redirection", "code"),
    [("| true", 0), ("> /dev/full 2>&1", 0), (">&- 2>&-", 2)],
)
def test_output_that_nobody_can_read_is_no_failure(
    served: Served, redirection: str, code: int
) -> None:
    env = {**os.environ, **(served.env if code == 0 else {})}
    line = f"set -o pipefail; {sys.executable} {SCRIPT} --date 2026-06-10 {redirection}"
    done = subprocess.run(
        ["bash", "-c", line], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert bool(served.petals.stored) == (code == 0)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("path", [None, "/dev/full"])
def test_a_run_ends_as_usual_without_stdout_or_stderr(
    world: World, monkeypatch: pytest.MonkeyPatch, stream: str, path: str | None
) -> None:
    world.oura.tokens = {TOKEN} if stream == "stdout" else set()
    file = path and open(path, "w")  # noqa: SIM115
    monkeypatch.setattr(sys, stream, file)
    assert world.run() == Ended(int(stream == "stderr"), "", "")


def test_an_encoding_without_a_dash_is_no_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    ended = world.run(day="2026-06-01")
    assert (ended.code, ended.err) == (0, "")
    assert stdout.buffer.getvalue().startswith(b"No Oura data for 2026-06-01")


@pytest.mark.parametrize(
    ("number", "file", "options"),
    [(signal.SIGTERM, "my keys", ["--env-file", "my keys"]), (signal.SIGHUP, ".env", [])],
)
def test_an_interrupted_run_is_exit_130_with_the_command_that_goes_on(
    served: Served, empty_home: Path, number: int, file: str, options: list[str]
) -> None:
    env_file = served.write_env_file(empty_home / file)
    served.oura.fill(7)
    asked = threading.Event()
    served.petals.fail("/bulk", lambda _: None, times=2)
    served.petals.fail("/bulk", lambda _: asked.set() or hang())
    script = os.path.relpath(SCRIPT, empty_home)
    process = subprocess.Popen(
        [sys.executable, script, "--date", str(DAY), "--days", "7", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert asked.wait(10)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == "Pushed 6 observations for 2 of 7 days, 2026-06-09 to 2026-06-10.\n"
    message, command = err.split(", go on with: ")
    assert message == "oura_to_petals: interrupted; 2 of 7 days are in"
    script = f"{sys.executable} {SCRIPT.resolve()}"
    env_option = shlex.join(["--env-file", str(env_file)])
    assert command == f"{script} --date 2026-06-08 --days 5 {env_option}\n"
    if number == signal.SIGTERM:
        assert subprocess.run(command, shell=True, cwd="/", check=False).returncode == 0
        assert served.petals.stored.keys() == {str(DAY - timedelta(days=n)) for n in range(7)}


def test_a_hangup_is_ignored_under_nohup(world: World) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    world.petals.fail("/bulk", lambda _: os.kill(os.getpid(), signal.SIGHUP))
    assert world.run() == Ended(0, RESULT, "")


@pytest.mark.parametrize("name", ["httpx", "dotenv"])
def test_a_missing_library_is_exit_2_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))
    assert stop.value.code == 2
    (problem,) = capsys.readouterr().err.splitlines()
    assert problem.startswith("oura_to_petals: httpx or ")
    assert ".venv/bin/python" in problem
    assert "uv run" in problem


def test_fcntl_is_not_needed(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """As on Windows."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert runpy.run_path(str(SCRIPT))["main"](["--demo"]) == 0
