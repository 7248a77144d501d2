"""The files beside the script agree with it."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import dotenv
import httpx
import pytest
from fakes import (
    BULK,
    DAILY_SLEEP,
    LIST,
    READINESS,
    READS,
    SCRIPT,
    SINGLE,
    SLEEP,
    Petals,
    answer,
    ctrl_c,
    readiness,
    time_runs_out,
    well,
)

import oura_to_petals

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
CODE = re.compile("`([^`]+)`")


def table(*columns):
    """The rows of the README's tables whose first cell begins with one of these."""
    rows = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0].startswith(columns)]


def test_script_and_project_have_the_same_requirements():
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", SCRIPT.read_text(), re.MULTILINE)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
    assert metadata["dependencies"] == PROJECT["dependencies"]
    assert metadata["requires-python"] == PROJECT["requires-python"]


def test_the_installed_command_is_the_script():
    assert PROJECT["scripts"] == {oura_to_petals.INSTALLED_NAME: "oura_to_petals:run_and_exit"}


def test_the_example_has_every_setting_and_no_key():
    example = ROOT / ".env.example"
    found = dict(re.findall(r"^#?(\w+)=(.*)$", example.read_text(), re.MULTILINE))
    assert found == {name: one.default for name, one in oura_to_petals.SETTINGS.items()}
    assert not any(dotenv.dotenv_values(example).values())


def test_the_readme_has_every_option(world):
    options = set(re.findall(r"--[a-z-]+", world.run("--help").out))
    listed = re.findall(r"--[a-z-]+", " ".join(row[0] for row in table("`-")))
    assert sorted(listed) == sorted(options)


def test_the_readme_has_commands_that_work():
    commands = re.findall(r"(?:oura_to_petals\.py|oura-to-petals) (-[^`\n]*)", README)
    assert len(commands) > 5
    for command in commands:
        arguments = re.split(r" (?:\d?>|&&|\||;)", command)[0]
        oura_to_petals.parse_arguments(shlex.split(arguments))  # exits if it is wrong


def test_the_readme_has_every_setting():
    names = set(re.findall(r"\b(?:OURA|PETALS)_[A-Z_]+", README))
    assert names == set(oura_to_petals.SETTINGS)
    rows = {name: row for row in table("`OURA_", "`PETALS_") for name in CODE.findall(row[0])}
    for name, (default, _) in oura_to_petals.SETTINGS.items():
        assert not default or f"`{default}`" in rows[name][1]


def test_the_readme_has_every_metric():
    metrics = oura_to_petals.METRICS.values()
    for row, metric in zip(table("`oura-"), metrics, strict=True):
        slug, label, unit, value = row
        assert (slug, label, unit) == (f"`{metric.slug}`", metric.label, metric.unit)
        assert value.endswith(f"`{metric.collection}.{metric.field}`")


def test_the_readme_has_every_exit_code(world):
    (text,) = [part for part in README.split("\n\n") if "exit code is" in part]
    said = set(re.findall(r"\b\d+\b", text))
    helped = set(re.findall(r"\b\d+\b", world.run("--help").out.partition("exit codes:")[2]))
    assert said == helped == {"0", "1", "2", "130"}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 230


# --- Messages ----------------------------------------------------------------------------------

CERTIFICATE = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local"
FAULTS = [
    *((path, httpx.Response(400)) for path in (READINESS, SINGLE, BULK)),
    *((path, httpx.Response(401)) for path in (READINESS, LIST, BULK)),
    (BULK, httpx.Response(403, html="<h1>Blocked</h1>")),
    *((SLEEP, httpx.Response(status)) for status in (403, 404, 426, 429, 500)),
    *((path, httpx.ConnectError(CERTIFICATE)) for path in (READINESS, BULK)),
    (DAILY_SLEEP, httpx.ConnectError("[Errno 111] Connection refused")),
    (DAILY_SLEEP, httpx.ReadTimeout("The read operation timed out")),
    (DAILY_SLEEP, httpx.Response(200, html="<html>Welcome</html>")),
    (DAILY_SLEEP, httpx.Response(302)),
    (DAILY_SLEEP, answer(200)),
    (DAILY_SLEEP, answer(200, data=[{"day": None}])),
    (READINESS, answer(200, data=[])),
    (READINESS, answer(200, data=[readiness(score=101)])),
    (LIST, answer(200, metrics=[{"slug": "other", "label": "Oura HRV balance"}])),
    (BULK, answer(200, inserted=2, errors=[{"index": 0, "code": "RANGE_VIOLATION"}])),
    (BULK, answer(200)),
    (BULK, time_runs_out),
    (BULK, ctrl_c),
]


@pytest.fixture
def said(week, cron, monkeypatch):
    """All that is said by many runs, in each of which something else is wrong."""
    lines = []

    def run(*options, **settings):
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            ended = week.run(*options)
        lines.extend([*ended.out.splitlines(), *ended.problems])

    for options in ([], ["--demo"], ["--check"], ["--days", "7"], ["--days", "0"]):
        run(*options)
    for path, fault in FAULTS:
        service = week.oura if path in READS else week.petals
        service.fail(path, fault, times=20)
        week.petals.metrics.clear()
        run("--days", "7", "-v", "--wait")
        run("--check")
        service.faults.clear()
    week.petals.fail(BULK, well, time_runs_out)
    run("--days", "7")
    week.petals.similar = dict.fromkeys(Petals.KNOWN, "someone_elses")
    week.petals.metrics.clear()
    run()
    run(OURA_TOKEN="petals-key", PETALS_API_KEY="oura", OURA_METRICS="all")
    run("--env-file", "nowhere")
    monkeypatch.delenv("OURA_TOKEN")
    run()
    run(OURA_CLIENT_ID="id", OURA_CLIENT_SECRET="secret")
    week.oura.empty()
    monkeypatch.setenv("OURA_TOKEN", "the-token")
    week.oura.tokens = {"the-token"}
    run()
    run("--days", "7")
    monkeypatch.setattr(oura_to_petals, "push", lambda *_: 1 / 0)
    run()
    keys = {"OURA_CLIENT_ID": "id", "OURA_CLIENT_SECRET": "secret"}
    login = cron.run("--login", OURA_REDIRECT_URI="https://localhost/callback/", **keys)
    lines.extend([*login.out.splitlines(), *login.problems])
    return "\n".join(lines)


def shape(text):
    """The text without its numbers."""
    return re.sub(r"\d+", "0", text)


def test_the_readme_has_messages_of_real_runs(said):
    section = README.partition("\n## When something is wrong\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (.+?) \||^- ((?:\**`[^`]+`\**(?:, | or | and )*)+)", section, re.M)
    messages = [code for row in cells for cell in row for code in CODE.findall(cell)]
    messages = [message for message in messages if not message.startswith("-")]  # an option
    assert messages
    for message in messages:
        parts = [re.escape(part.strip()) for part in re.split("…|\\.\\.\\.", shape(message))]
        assert re.search("[^\n]*".join(parts), shape(said)), message
    shown = re.findall(r"^ {4,}((?:Pushed|Demo|No Oura) .+)$", README, re.MULTILINE)
    assert shown
    assert {*map(shape, shown)} <= {*shape(said).splitlines()}
