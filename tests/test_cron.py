"""The script as a process of its own, as cron and a shell start it, and how it ends."""

from __future__ import annotations

import argparse
import ast
import builtins
import datetime
import io
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from fakes import (
    BULK,
    DAY,
    KEY,
    LIST,
    PUSHED,
    SCRIPT,
    SLEEP,
    TOKEN,
    VALUES,
    Ended,
    Oura,
    Petals,
    before,
    ended,
    hang,
    interrupt,
    local_server,
    wait_until,
    well,
)

import oura_to_petals

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")


class Served:
    """Both services on a local port, and the settings for them."""

    def __init__(self):
        self.oura, self.petals = Oura(), Petals()
        self.env = {"OURA_TOKEN": TOKEN, "PETALS_API_KEY": KEY}

    def write_env_file(self, path):
        path.touch(0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in self.env.items()))
        return path


@pytest.fixture
def served():
    served = Served()
    with local_server(served.oura, served.petals) as host:
        served.env |= {"OURA_HOST": host, "PETALS_HOST": f"{host}/"}
        yield served


def test_a_night_is_sent_as_by_cron(cron, served):
    served.write_env_file(cron.script.with_name(".env"))
    assert cron.run("--date", str(DAY)) == Ended(0, PUSHED, "")
    assert served.petals.stored_once()
    assert len(served.oura.requests) == 3
    assert len(served.petals.requests) == 2


def test_yesterday_is_that_of_the_time_zone(world, monkeypatch):
    days = []
    world.oura.empty()
    with monkeypatch.context() as patch:
        for zone in ("UTC+12", "UTC-14"):
            patch.setenv("TZ", zone)
            time.tzset()
            days.append(world.run(day=None).out)
    time.tzset()
    assert days[0] != days[1]


OUTPUT = [  # the options, where the output goes, and the exit code
    ("", "| true", 0),
    ("", ">&- 2>&-", 0),
    pytest.param("", "> /dev/full 2>&1", 0, marks=needs_full),
    pytest.param("--env-file nowhere", "2> /dev/full", 2, marks=needs_full),
    pytest.param("--days 0", "2> /dev/full", 2, marks=needs_full),
    ("--dry-run", "| true", 0),
    ("--help", "| true", 0),
    pytest.param("--help", "> /dev/full", 0, marks=needs_full),
]


@pytest.mark.parametrize(("options", "output", "code"), OUTPUT)
def test_unread_output_changes_nothing(cron, served, options, output, code):
    done = cron.shell(f"$SCRIPT --date {DAY} {options} {output}", **served.env)
    assert done == Ended(code, "", "")
    assert served.petals.stored == ({} if options else {str(DAY): VALUES})


def test_help_reaches_a_pipe(cron):
    done = cron.shell("$SCRIPT --help | cat")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: ")


@pytest.mark.parametrize(
    ("option", "closed", "code"),
    [("--help", "stdout", 0), ("--version", "stdout", 0), ("--days=0", "stderr", 2)],
)
def test_usage_goes_to_no_other_stream(monkeypatch, capsys, option, closed, code):
    with monkeypatch.context() as patch:
        patch.setattr(sys, closed, None)
        assert oura_to_petals.main([option]) == code
    assert capsys.readouterr() == ("", "")


def test_wrong_usage_is_exit_2_without_a_word(monkeypatch):
    def fail(*_):  # as in Python 3.11.2, if stderr is full
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(argparse.ArgumentParser, "_print_message", fail)
    assert oura_to_petals.main(["--days", "0"]) == 2


@needs_full
def test_a_full_disk_fails_a_dry_run(cron, served):
    done = cron.shell(f"$SCRIPT --date {DAY} --dry-run > /dev/full", **served.env)
    problem = "oura_to_petals: the output could not be written: No space left on device\n"
    assert done == Ended(1, "", problem)


@pytest.mark.parametrize(("argv", "code"), [(["--demo"], 0), (["--env-file", "nowhere"], 2)])
@pytest.mark.parametrize("streams", ["usual", "none", pytest.param("full", marks=needs_full)])
def test_the_command_ends_with_the_code(monkeypatch, capsys, argv, code, streams):
    codes = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "_exit", codes.append)
        patch.setattr(sys, "argv", ["oura-to-petals", *argv])
        for name in ("stdout", "stderr"):
            if streams != "usual":
                patch.setattr(sys, name, None if streams == "none" else FULL.open("w"))
        oura_to_petals.run_and_exit()
    assert codes == [code]


def test_an_encoding_without_a_dash(world, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        done = world.run(day="2026-06-01")
    assert (done.code, done.err) == (0, "")
    assert stdout.buffer.getvalue().startswith(b"No Oura data for 2026-06-01")


def test_a_stopped_run_prints_a_working_command(cron, served, home):
    env_file = served.write_env_file(home / "my keys")
    served.oura.fill(7)
    served.petals.fail(BULK, well, well, hang)
    process = cron.start("--date", str(DAY), "--days", "7", "--env-file", "my keys")
    wait_until(lambda: len(served.petals.asked(BULK)) == 3, "the third day", process)
    interrupt(process, signal.SIGTERM)
    stopped = ended(process)
    assert stopped.code == 130
    assert stopped.out == "Pushed 6 observations for 2 of 7 days, 2026-06-09 to 2026-06-10.\n"
    said, command = stopped.err.split(", go on with: ")
    assert said == "oura_to_petals: interrupted; 2 of 7 days are in"
    options = ["--date", before(2), "--days", "5", "--env-file", env_file]
    assert command == shlex.join(map(str, [sys.executable, cron.script, *options])) + "\n"
    env = {"HOME": str(home), "PATH": os.environ["PATH"]}
    assert subprocess.run(command, shell=True, cwd="/", env=env, check=False).returncode == 0
    assert served.petals.stored == {before(n): VALUES for n in range(7)}


def test_a_process_ends_at_once(cron, served):
    """Its threads still wait for Oura and for the list of metrics."""
    served.oura.fail(SLEEP, hang)
    served.petals.fail(LIST, hang)
    process = cron.start("--date", str(DAY), **served.env)
    both = lambda: served.oura.asked(SLEEP) and served.petals.asked(LIST)  # noqa: E731 - short
    wait_until(both, "a read and the list", process)
    interrupt(process, signal.SIGHUP)
    started = time.monotonic()
    assert ended(process).failed(130) == "2026-06-10: interrupted"
    assert time.monotonic() - started < 5


def test_a_hangup_is_ignored_under_nohup(world):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    world.petals.fail(BULK, lambda _: os.kill(os.getpid(), signal.SIGHUP))
    assert world.run() == Ended(0, PUSHED, "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("httpx", "httpx is missing: use .venv/bin/python or uv run"),
        ("dotenv.parser", "dotenv is missing: use .venv/bin/python or uv run"),
        ("fcntl", "needs Python 3.11 or newer, on Linux, macOS or WSL"),
    ],
)
def test_a_missing_module_is_exit_2(monkeypatch, capsys, name, said):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))
    assert Ended(stop.value.code, *capsys.readouterr()).failed(2) == said


def test_an_older_python_is_exit_2(monkeypatch, capsys):
    older = types.ModuleType("datetime")
    older.__dict__.update({name: getattr(datetime, name) for name in ("date", "timedelta")})
    monkeypatch.setitem(sys.modules, "datetime", older)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))
    said = "needs Python 3.11 or newer, on Linux, macOS or WSL"
    assert Ended(stop.value.code, *capsys.readouterr()).failed(2) == said
    ast.parse(SCRIPT.read_text(), feature_version=(3, 9))


def test_ctrl_c_during_the_imports_is_quiet(monkeypatch, capsys):
    import_module = builtins.__import__

    def press(name, *rest):
        return signal.raise_signal(signal.SIGINT) if name == "httpx" else import_module(name, *rest)

    monkeypatch.setattr(builtins, "__import__", press)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))
    monkeypatch.undo()
    assert Ended(stop.value.code, *capsys.readouterr()) == Ended(130, "", "")
