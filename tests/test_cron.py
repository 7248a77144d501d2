"""The script as a process of its own, as cron and a shell start it, and how it ends."""

from __future__ import annotations

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

import oura_to_petals

# isort: off
from fakes import BULK, DAY, LIST, SCRIPT, SLEEP, VALUES, Ended
from fakes import before, ended, hang, interrupt, wait_until, well, write

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")


def write_env_file(path, env):
    write(path, "".join(f"{name}={value}\n" for name, value in env.items()))


def test_the_line_of_the_crontab_sends_last_night(cron, served):
    write_env_file(cron.script.with_name(".env"), served.env)
    today = datetime.date.today()
    served.oura.fill(9, today)
    assert cron.run("--date", "today", "--days", "7", "--quiet") == Ended(0, "", "")
    assert served.petals.stored == {before(n, today): VALUES for n in range(7)}
    served.oura.fill(9, today - datetime.timedelta(days=1))  # before the ring has synced
    assert cron.run("--date", "today", "--days", "7", "--quiet") == Ended(0, "", "")
    assert (len(served.oura.requests), len(served.petals.requests)) == (6, 1 + 7 + 1 + 6)


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


@pytest.mark.parametrize(
    "end", ["| true", ">&- 2>&-", pytest.param("> /dev/full 2>&1", marks=needs_full)]
)
def test_unread_output_changes_nothing(cron, served, end):
    assert cron.shell(f"$SCRIPT --date {DAY} {end}", **served.env) == Ended(0, "", "")
    assert served.petals.stored == {str(DAY): VALUES}


def test_output_reaches_a_pipe_if_somebody_reads_it(cron):
    done = cron.shell("$SCRIPT --help | cat && $SCRIPT --help | true")
    assert (done.code, done.err, done.out.count("usage: ")) == (0, "", 1)


@pytest.mark.parametrize(
    ("option", "closed", "code"), [("--help", "stdout", 0), ("--days=0", "stderr", 2)]
)
def test_usage_goes_to_no_other_stream(monkeypatch, capsys, option, closed, code):
    with monkeypatch.context() as patch:
        patch.setattr(sys, closed, None)
        assert oura_to_petals.main([option]) == code
    assert capsys.readouterr() == ("", "")


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
    """The days that are in are the oldest ones."""
    write_env_file(home / "my keys", served.env)
    served.oura.fill(7)
    served.petals.fail(BULK, well, well, hang)
    process = cron.start("--date", str(DAY), "--days", "7", "--env-file", "my keys")
    wait_until(lambda: len(served.petals.asked(BULK)) == 3, "the third day", process)
    interrupt(process, signal.SIGTERM)
    stopped = ended(process)
    assert stopped.code == 130
    assert served.petals.stored == {before(n): VALUES for n in (5, 6)}
    assert "6 observations for 2 of 7 days" in stopped.out
    assert "interrupted" in stopped.err
    options = ["--date", DAY, "--days", "5", "--env-file", home / "my keys"]
    command = shlex.join(map(str, [sys.executable, cron.script, *options]))
    assert stopped.problems[-1].endswith(command)
    env = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, shell=True, cwd="/", env=env, check=False, timeout=30)
    assert done.returncode == 0
    assert served.petals.stored == {before(n): VALUES for n in range(7)}


def test_a_process_ends_at_once(cron, served):
    """Its threads still wait for Oura and for the list of metrics."""
    served.oura.fail(SLEEP, hang)
    served.petals.fail(LIST, hang)
    process = cron.start("--date", "today", **served.env)
    wait_until(lambda: served.oura.asked(SLEEP) and served.petals.asked(LIST), "both", process)
    interrupt(process, signal.SIGHUP)
    started = time.monotonic()
    assert "interrupted" in ended(process).failed(130)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["httpx", "dotenv.parser", "fcntl", "datetime"])
def test_a_module_that_cannot_be_imported_is_exit_2(monkeypatch, capsys, name):
    """A package that is not installed, Windows, or an older Python, whose datetime has no UTC."""
    older = types.ModuleType("datetime")
    older.__dict__.update({name: getattr(datetime, name) for name in ("date", "timedelta")})
    monkeypatch.setitem(sys.modules, name, older if name == "datetime" else None)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT))
    said = Ended(stop.value.code, *capsys.readouterr()).failed(2)
    facts = [name, "3.11", "Linux", "macOS", "WSL", sys.executable, "-m pip install -e ."]
    assert [fact for fact in facts if fact not in said] == []
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
