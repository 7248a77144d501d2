"""The files beside the script agree with it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import dotenv
import httpx
import pytest
from fakes import BULK, CERTIFICATE, LIST, READINESS, REFUSED, SCRIPT, TOKENS, answer

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
    assert found == {name: one[0] for name, one in oura_to_petals.SETTINGS.items()}
    assert not any(dotenv.dotenv_values(example).values())


def test_git_ignores_keys_and_what_editors_leave_beside_them(tmp_path):
    secret = [".env", ".env~", "#.env#", ".env.bak", "anna.env", "anna.env~", "anna.env.bak"]
    secret += [".anna.env.swp", "env.txt", "oura-token.json", "anna.env.oura-token.json"]
    tracked = [".env.example", "README.md", "oura_to_petals.py", ".gitignore", "pyproject.toml"]
    shutil.copy(ROOT / ".gitignore", tmp_path)
    git = ["git", "-c", "core.excludesFile=", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True, timeout=30)
    check = [*git, "check-ignore", "--no-index", *secret, *tracked]
    done = subprocess.run(check, capture_output=True, text=True, check=True, timeout=30)
    assert [name.strip('"') for name in done.stdout.splitlines()] == secret


def test_the_readme_has_every_option(world):
    options = set(re.findall(r"--[a-z-]+", world.run("--help").out))
    listed = re.findall(r"--[a-z-]+", " ".join(row[0] for row in table("`-")))
    assert sorted(listed) == sorted(options)


def test_the_readme_has_commands_that_work(world):
    commands = re.findall(r"(?:oura_to_petals\.py|oura-to-petals) (-[^`\n|]*)", README)
    assert len(commands) > 10
    for command in commands:
        arguments = shlex.split(re.split(r" (?:\d?>|&&|;)|, ", command)[0])
        done = world.run(*arguments, "--env-file", "nowhere", day=None)
        assert "Demo" in done.out or "nowhere cannot be read" in done.err, command


def test_the_readme_has_every_setting():
    names = set(re.findall(r"\b(?:OURA|PETALS)_[A-Z_]+", README))
    assert names == set(oura_to_petals.SETTINGS)
    rows = {name: row for row in table("`OURA_", "`PETALS_") for name in CODE.findall(row[0])}
    for name, setting in oura_to_petals.SETTINGS.items():
        assert not setting[0] or f"`{setting[0]}`" in rows[name][1]


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
    lines = README.splitlines()
    assert len(lines) <= 230
    assert lines.index("## Other machines") <= 90  # a user with cron is done before it


# --- Messages ----------------------------------------------------------------------------------

FAULTS = [
    (READINESS, CERTIFICATE),
    (READINESS, REFUSED),
    (READINESS, httpx.ReadTimeout("The read operation timed out")),
    (READINESS, answer(200, data=[])),
    (BULK, httpx.Response(403, html="<h1>Blocked</h1>")),
    (LIST, answer(500)),
    (TOKENS, answer(401, error="invalid_client")),
]


@pytest.fixture
def said(week, monkeypatch):
    """All that is said by many runs, in each of which something else is wrong."""
    texts = []

    def run(*options):
        done = week.run(*options)
        texts.extend([done.out, "\n".join(done.problems)])

    for options in ([], ["--demo"], ["--check"], ["--days", "7"]):
        run(*options)
    for path, fault in FAULTS:
        week.fail(path, fault, times=40)
        if path == TOKENS:
            Path("tokens.json").write_text('{"access_token": "a", "refresh_token": "b"}')
            monkeypatch.setenv("OURA_TOKEN_FILE", "~/tokens.json")
            monkeypatch.setenv("OURA_CLIENT_ID", "id")
            monkeypatch.setenv("OURA_CLIENT_SECRET", "secret")
            monkeypatch.delenv("OURA_TOKEN")
        run("--days", "7")
        run("--check")
        week.oura.faults.clear()
        week.petals.faults.clear()
    week.oura.tokens = {"a"}
    week.oura.empty()
    run()
    return "\n".join(texts)


def shape(text):
    """The text without its numbers."""
    return re.sub(r"\d+", "0", text)


def test_the_readme_has_messages_of_real_runs(said):
    section = README.partition("\n## When something is wrong\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.+?|.+, `.+?) \|", section, re.MULTILINE)
    messages = [code for cell in cells for code in CODE.findall(cell)]
    assert len(messages) > 5
    for message in messages:
        parts = [re.escape(part.strip()) for part in shape(message).split("…")]
        assert re.search("[^\n]*".join(parts), shape(said)), message
    shown = re.findall(r"^ {4,}((?:Pushed|Demo|No Oura) .+)$", README, re.MULTILINE)
    assert shown
    assert {*map(shape, shown)} <= {*shape(said).splitlines()}
