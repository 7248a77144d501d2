"""Settings: where they come from, what they may be, and that none is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import World
from services import KEY, TOKEN

import oura_to_petals

BOTH = f"OURA_TOKEN={TOKEN}\nPETALS_API_KEY={KEY}\n"


@pytest.fixture
def no_keys(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("OURA_TOKEN")
    monkeypatch.delenv("PETALS_API_KEY")
    return world


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    path.chmod(mode)
    return path


def test_env_file_in_the_working_folder(no_keys: World) -> None:
    write(Path(".env"), BOTH)
    assert no_keys.run().code == 0


def test_env_file_beside_the_script(no_keys: World, tmp_path: Path) -> None:
    write(tmp_path / "beside" / ".env", BOTH)
    assert no_keys.run().code == 0


def test_the_first_env_file_is_the_only_one(no_keys: World, tmp_path: Path) -> None:
    write(Path(".env"), f"OURA_TOKEN={TOKEN}")
    write(tmp_path / "beside" / ".env", BOTH)
    ended = no_keys.run()
    assert ended.code == 2
    assert "PETALS_API_KEY" in ended.err


def test_another_env_file_is_named(no_keys: World, tmp_path: Path) -> None:
    write(Path(".env"), "OURA_TOKEN=wrong")
    assert no_keys.run("--env-file", str(write(tmp_path / "other", BOTH))).code == 0


@pytest.mark.parametrize("there", [False, True], ids=["not there", "a folder"])
def test_an_env_file_that_cannot_be_read_is_exit_2(
    no_keys: World, tmp_path: Path, there: bool
) -> None:
    if there:
        (tmp_path / "other").mkdir()
    ended = no_keys.run("--env-file", str(tmp_path / "other"))
    assert (ended.code, len(ended.problems)) == (2, 1)
    assert str(tmp_path / "other") in ended.err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("OURA TOKEN=x\n", 1),
        ("# keys\n\n\nOURA_TOKEN=x\n\nwhat is this\n", 6),
        ('OURA_TOKEN="unclosed\nPETALS_API_KEY=y\n', 1),
        ("A=1\r\n\r\n= 5 5\r\n", 3),
    ],
)
def test_a_line_that_cannot_be_parsed_is_named(no_keys: World, text: str, line: int) -> None:
    write(Path(".env"), text)
    ended = no_keys.run()
    assert (ended.code, len(ended.problems)) == (2, 1)
    assert f".env, line {line}:" in ended.err


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{BOTH}",
        f"export OURA_TOKEN=\"{TOKEN}\"\r\nPETALS_API_KEY = '{KEY}' # made in June\r\nLONE\r\n",
        f"OURA_TOKEN=' {TOKEN} '\nPETALS_API_KEY={KEY}",
        f"# d\xe9j\xe0\nOURA_TOKEN=  {TOKEN}  \nPETALS_API_KEY={KEY}",
    ],
    ids=["byte order mark", "quotes and comments", "spaces inside quotes", "other words"],
)
def test_env_files_as_people_write_them(no_keys: World, text: str) -> None:
    write(Path(".env"), text)
    assert no_keys.run().code == 0


def test_the_environment_wins_value_by_value(
    no_keys: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Path(".env"), f"OURA_TOKEN=not-this\nPETALS_API_KEY={KEY}")
    monkeypatch.setenv("OURA_TOKEN", f"  {TOKEN} ")
    monkeypatch.setenv("PETALS_API_KEY", "  ")
    assert no_keys.run().code == 0


def test_values_are_plain(no_keys: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN", TOKEN)
    write(Path(".env"), f"OURA_TOKEN=${{HIDDEN}}\nPETALS_API_KEY={KEY}")
    assert no_keys.run().code == 1
    assert no_keys.oura.requests[0].headers["Authorization"] == "Bearer ${HIDDEN}"


def test_the_environment_is_left_alone(no_keys: World) -> None:
    import os

    write(Path(".env"), BOTH)
    before = dict(os.environ)
    no_keys.run()
    assert dict(os.environ) == before


def told_before_anything_is_sent(world: World, *words: str) -> str:
    """The line of a run that ends with exit 2, in which these words are."""
    ended = world.run()
    assert (ended.code, ended.out) == (2, "")
    assert world.oura.requests == world.petals.requests == []
    (problem,) = ended.problems
    for word in words:
        assert word in problem
    return problem


def test_all_that_is_missing_is_named_at_once(no_keys: World) -> None:
    told_before_anything_is_sent(no_keys, "OURA_TOKEN", "--login", "PETALS_API_KEY", ".env")


@pytest.mark.parametrize(
    "host",
    [
        "https://api.example",
        "https://api.example/",
        "https://api.example:8443/sub/folder/",
        "https://my_host.local",
        "https://[2001:db8::1]:8443",
        "http://localhost:8000",
        "http://127.0.0.1",
        "http://[::1]:8000/",
    ],
)
def test_hosts_that_keys_may_go_to(world: World, host: str, monkeypatch: object) -> None:
    monkeypatch.setenv("PETALS_HOST", host)
    world.router.route(url__startswith=host.rstrip("/")).mock(
        side_effect=lambda request: world.petals(request)
    )
    assert world.run().code != 2


@pytest.mark.parametrize("name", ["OURA_HOST", "PETALS_HOST"])
@pytest.mark.parametrize(
    "host",
    [
        "http://api.example",
        "http://127.0.0.1.example",
        "http://127.1",
        "http://localhost.",
        "http://LOCALHOST",
        "http://0.0.0.0",
        "http://localhost@evil.example",
        "https://user:hunter2@api.example",
        "https://api.example\\@evil.example",
        "https://api.example?x=1",
        "https://api.example/#x",
        "https://api.example:port",
        "https://api.example:99999",
        "https://a b.example",
        "https://[1::2::3]",
        "https://a..b.example",
        "https://.example",
        f"https://{'a' * 64}.example",
        "https://",
        "ftp://api.example",
        "api.example",
        "//api.example",
    ],
)
def test_other_hosts_are_exit_2_before_anything_is_sent(
    world: World, name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, host)
    problem = told_before_anything_is_sent(world, name)
    assert "hunter2" not in problem


@pytest.mark.parametrize("name", ["OURA_TOKEN", "PETALS_API_KEY"])
@pytest.mark.parametrize(
    "value", ["petals-a b", "petals-a\nb", "petals-\xe9", "petals-a\x7f", "petals-a\tb"]
)
def test_a_key_that_cannot_be_a_header_is_exit_2_and_not_shown(
    world: World, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    problem = told_before_anything_is_sent(world, name)
    assert value not in problem


@pytest.mark.parametrize("key", ["sk-123", "petals-", "PETALS-x"])
def test_a_key_that_is_no_petals_key_is_exit_2(
    world: World, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETALS_API_KEY", key)
    ended = world.run()
    assert (ended.code, len(ended.problems)) == (2, 1)
    assert "petals-" in ended.err
    assert world.run("--dry-run").code == 0


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_an_env_file_that_others_can_read_is_warned_of(
    no_keys: World, mode: int, warned: bool
) -> None:
    path = write(Path(".env"), BOTH, mode).absolute()
    ended = no_keys.run()
    assert ended.code == 0
    assert (f"chmod 600 {path}" in ended.err) == warned
    assert len(ended.problems) == warned


def test_no_repr_shows_a_secret(no_keys: World) -> None:
    write(Path(".env"), BOTH)
    settings = oura_to_petals.load_settings(None)
    assert settings["OURA_TOKEN"] == TOKEN
    assert TOKEN not in repr(settings)
    assert KEY not in repr(settings)
