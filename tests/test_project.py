"""The promises of the files beside the script."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from conftest import World
from dotenv import dotenv_values

import oura_to_petals

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_script_and_the_project_need_the_same() -> None:
    script = (ROOT / "oura_to_petals.py").read_text()
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script, re.MULTILINE)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
    assert metadata["dependencies"] == PROJECT["dependencies"]
    assert metadata["requires-python"] == PROJECT["requires-python"]


def test_the_example_has_every_setting_and_no_secret() -> None:
    text = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^#?(\w+)=", text, re.MULTILINE)) == set(oura_to_petals.DEFAULTS)
    for name, value in dotenv_values(ROOT / ".env.example").items():
        assert not value, name


def test_the_readme_has_every_option_and_setting(world: World) -> None:
    readme = (ROOT / "README.md").read_text()
    for option in re.findall(r"--[a-z-]+", world.run("--help").out):
        assert f"`{option}" in readme
    for name, default in oura_to_petals.DEFAULTS.items():
        assert f"`{name}`" in readme
        assert default in readme


def test_the_script_is_the_command() -> None:
    assert PROJECT["scripts"] == {"oura-to-petals": "oura_to_petals:main"}


def test_the_readmes_messages_are_the_codes_messages() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("| message | what to do |")[2].partition("\n\n")[0]
    code = re.sub(r'"\n\s+f?"', "", (ROOT / "oura_to_petals.py").read_text())
    names = r"oura_\w+|\b(?:OURA_HOST|PETALS_API_KEY|Oura|Petals|N|\d+|\dxx)\b"
    examples = rf"…|, line \d+|, |{names}"
    for message in re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^\| (.+?) \|", table, re.M))):
        for words in re.split(examples, message):
            if len(words.strip(" ;:,")) > 3 and words != "CERTIFICATE_VERIFY_FAILED":
                assert words.strip(" ;:,") in code, message
