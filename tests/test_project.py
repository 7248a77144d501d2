"""The files beside the script agree with it."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import dotenv.main
from conftest import World

import oura_to_petals

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
SOURCE = (ROOT / "oura_to_petals.py").read_text()


def test_the_script_and_the_project_have_the_same_requirements() -> None:
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", SOURCE, re.MULTILINE)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
    assert metadata["dependencies"] == PROJECT["dependencies"]
    assert metadata["requires-python"] == PROJECT["requires-python"]


def test_the_example_has_every_setting_and_no_secret() -> None:
    text = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^#?(\w+)=", text, re.MULTILINE)) == set(oura_to_petals.DEFAULTS)
    for name, value in dotenv.dotenv_values(ROOT / ".env.example").items():
        assert not value, name


def test_the_readme_has_every_option_and_setting(world: World) -> None:
    for option in re.findall(r"--[a-z-]+", world.run("--help").out):
        assert f"`{option}" in README
    for name, default in oura_to_petals.DEFAULTS.items():
        assert f"`{name}`" in README
        assert default in README


def test_the_readme_has_every_metric() -> None:
    for metric in oura_to_petals.METRICS.values():
        assert f"| `{metric.slug}` | {metric.label} | {metric.unit} |" in README
    assert README.count("| `oura-") == len(oura_to_petals.METRICS)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_messages_in_the_readme_are_in_the_script() -> None:
    section = README.partition("## When something is wrong\n")[2].partition("\n## ")[0]
    messages = re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^\| (.+?) \|", section, re.M)))
    known = set(re.findall("[A-Za-z]+", SOURCE + inspect.getsource(dotenv.main)))
    assert messages
    for message in messages:
        words = re.findall("[A-Za-z]+", re.sub(r"\b([A-Z][A-Z_]*|\d\w*)\b", "", message))
        assert set(words) <= known, message


def test_the_installed_command_is_the_script() -> None:
    assert PROJECT["scripts"] == {"oura-to-petals": "oura_to_petals:main"}
