"""The script as cron runs it: a process of its own, in the home folder, seen from outside."""

from __future__ import annotations

import io
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SCRIPT, Ended, World
from services import KEY, TOKEN, Oura, Petals, hang, local_server

Cron = Callable[..., Ended]
SUCCESS = "Pushed 3 observations for 2026-06-10. Slept 7h12, readiness 82, HRV 54ms.\n"


class Served:
    def __init__(self, host: str, oura: Oura, petals: Petals) -> None:
        self.oura, self.petals = oura, petals
        self.env = {
            "OURA_TOKEN": TOKEN,
            "PETALS_API_KEY": KEY,
            "OURA_HOST": host,
            "PETALS_HOST": f"{host}/",
        }


@pytest.fixture
def served() -> Iterator[Served]:
    oura, petals = Oura(), Petals()
    with local_server(oura, petals) as host:
        yield Served(host, oura, petals)


def test_a_night_from_the_env_file_in_the_home_folder(
    cron: Cron, served: Served, empty_home: Path
) -> None:
    path = empty_home / ".env"
    path.write_text("".join(f"{name}={value}\n" for name, value in served.env.items()))
    path.chmod(0o600)
    ended = cron("--date", "2026-06-10")
    assert (ended.code, ended.out, ended.err) == (0, SUCCESS, "")
    assert len(served.oura.requests) == 3
    assert len(served.petals.requests) == 2


def test_nothing_set_up_is_exit_2_with_one_line(cron: Cron) -> None:
    ended = cron()
    assert (ended.code, ended.out, len(ended.problems)) == (2, "", 1)
    assert ended.err.startswith("oura_to_petals: not set: OURA_TOKEN")


def test_a_failure_is_exit_1_with_one_line(cron: Cron, served: Served) -> None:
    ended = cron("--date", "2026-06-10", **{**served.env, "PETALS_API_KEY": "petals-old"})
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert ended.err.startswith("oura_to_petals: 2026-06-10: Petals metrics/list answered 401")


def test_nobody_listens_and_still_it_ends(cron: Cron, served: Served) -> None:
    """Also that threads which hang do not hold up the exit."""
    served.oura.collections["daily_sleep"][0]["total_sleep_duration"] = 25_920
    served.oura.fail("/sleep", hang)
    ended = cron("--date", "2026-06-10", seconds=10, **served.env)
    assert ended.code == 0


def test_demo_needs_nothing(cron: Cron) -> None:
    ended = cron("--demo", PYTHONIOENCODING="utf-8")
    assert (ended.code, ended.err) == (0, "")
    assert "Pushed 12 observations" in ended.out


def test_yesterday_is_by_the_machines_own_calendar(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for zone in ("UTC+12", "UTC-14"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        told.append(world.run("--demo", day=None).out.splitlines()[-1])
    monkeypatch.undo()
    time.tzset()
    assert told[0] != told[1]


@pytest.mark.parametrize("closed", ["pipe", "full", "gone"])
def test_a_stdout_that_takes_nothing_makes_no_traceback(served: Served, closed: str) -> None:
    redirect = {"pipe": "| true", "full": "> /dev/full", "gone": ">&-"}[closed]
    line = f"sleep 0.05; {sys.executable} {SCRIPT} --date 2026-06-10 {redirect}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env={**os.environ, **served.env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert served.petals.stored


def test_a_stderr_that_takes_nothing_keeps_the_exit_code(served: Served) -> None:
    env = {**os.environ, **served.env, "OURA_TOKEN": "old"}
    command = f"{sys.executable} {SCRIPT} --date 2026-06-10 2> /dev/full"
    done = subprocess.run(["bash", "-c", command], env=env, check=False)
    assert done.returncode == 1


def test_an_encoding_without_a_dash_is_no_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    ended = world.run(day="2026-06-01")
    assert (ended.code, ended.err) == (0, "")
    assert stdout.buffer.getvalue().startswith(b"No Oura data for 2026-06-01")


def test_ctrl_c_is_exit_130_without_a_traceback(served: Served) -> None:
    asked = threading.Event()

    def answer(_: object) -> None:
        asked.set()
        hang()

    served.oura.fail("/daily_sleep", answer)
    command = [sys.executable, SCRIPT, "--date", "2026-06-10", "--days", "30"]
    process = subprocess.Popen(
        command, env={**os.environ, **served.env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert asked.wait(10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert all(line.startswith(b"oura_to_petals: ") for line in err.splitlines())
    assert b"Pushed 3" not in out


def test_ctrl_c_while_it_starts_is_exit_130_too(cron: Cron, empty_home: Path) -> None:
    interrupt = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (empty_home / "httpx.py").write_text(interrupt)
    ended = cron("--demo", PYTHONPATH=str(empty_home))
    assert (ended.code, ended.out, ended.err) == (130, "", "")


def test_a_full_stdout_is_no_failure_of_what_was_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        ended = world.run()
    assert (ended.code, ended.err) == (0, "")


def test_where_there_is_no_fcntl_it_runs_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert runpy.run_path(str(SCRIPT))["main"](["--demo"]) == 0


def test_without_a_stderr_problems_do_not_go_to_stdout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    world.oura.tokens = set()
    ended = world.run()
    assert (ended.code, ended.out) == (1, "")
