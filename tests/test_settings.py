"""Settings come from the environment and the `.env` file, are checked first, and stay secret."""

from __future__ import annotations

import os
import shlex
import sys
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


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def exit_2(world: World, *options: str) -> str:
    """Return the line of a run that ends with exit code 2 before anything is sent."""
    ended = world.run(*options)
    assert (ended.code, ended.out) == (2, "")
    assert world.oura.requests == world.petals.requests == []
    (problem,) = ended.problems
    return problem.removeprefix("oura_to_petals: ")


class TestEnvFile:
    def test_it_is_found_in_the_working_folder(self, no_keys: World) -> None:
        write(Path(".env"), BOTH)
        assert no_keys.run().code == 0

    @pytest.mark.parametrize("folder", [False, True], ids=["nothing", "a folder"])
    def test_it_is_found_beside_the_script_if_the_working_folder_has_none(
        self, no_keys: World, tmp_path: Path, folder: bool
    ) -> None:
        if folder:
            Path(".env").mkdir()
        write(tmp_path / "beside" / ".env", BOTH)
        assert no_keys.run().code == 0

    def test_only_the_first_one_is_read(self, no_keys: World, tmp_path: Path) -> None:
        path = write(Path(".env"), f"OURA_TOKEN={TOKEN}").absolute()
        write(tmp_path / "beside" / ".env", BOTH)
        expected = f"not set: PETALS_API_KEY; looked in the environment and {path}"
        assert exit_2(no_keys) == expected

    def test_another_one_can_be_named(self, no_keys: World, tmp_path: Path) -> None:
        write(Path(".env"), "OURA_TOKEN=wrong")
        assert no_keys.run("--env-file", str(write(tmp_path / "other", BOTH))).code == 0

    @pytest.mark.parametrize("folder", [False, True], ids=["nothing", "a folder"])
    def test_one_that_cannot_be_read_is_exit_2(
        self, no_keys: World, tmp_path: Path, folder: bool
    ) -> None:
        path = tmp_path / "other"
        if folder:
            path.mkdir()
        assert exit_2(no_keys, "--env-file", str(path)).startswith(f"{path} cannot be read: ")

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
    def test_utf_16_is_exit_2(self, no_keys: World, encoding: str) -> None:
        write(Path(".env"), f"\ufeff{BOTH}".encode(encoding))
        assert exit_2(no_keys).endswith(".env is in UTF-16: save it as UTF-8")

    @pytest.mark.parametrize(
        "text",
        [
            f"\ufeff{BOTH}",
            f"export OURA_TOKEN=\"{TOKEN}\"\r\nPETALS_API_KEY = '{KEY}' # of June\r\nLONE\r\n",
            f"OURA_TOKEN=' {TOKEN} '\nPETALS_API_KEY={KEY}",
            f"# d\xe9j\xe0\nOURA_TOKEN=  {TOKEN}  \nPETALS_API_KEY={KEY}",
            f"# d\xe9j\xe0\n{BOTH}".encode("latin-1"),
        ],
        ids=["byte order mark", "quotes and comments", "spaces in quotes", "UTF-8", "Latin-1"],
    )
    def test_usual_ways_to_write_it_work(self, no_keys: World, text: str | bytes) -> None:
        write(Path(".env"), text)
        ended = no_keys.run()
        assert (ended.code, ended.err) == (0, "")

    @pytest.mark.parametrize(
        ("text", "line"), [("OURA TOKEN=x\n", 1), ("# keys\r\nA=1\r\nwhat is this\r\n", 3)]
    )
    def test_a_line_that_cannot_be_parsed_is_a_warning_of_python_dotenv(
        self, no_keys: World, text: str, line: int
    ) -> None:
        write(Path(".env"), text + BOTH)
        ended = no_keys.run()
        assert ended.code == 0
        expected = f"python-dotenv could not parse statement starting at line {line}"
        assert ended.problems == [f"oura_to_petals: {expected}"]

    def test_values_are_not_expanded(self, no_keys: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HIDDEN", "all")
        write(Path(".env"), f"{BOTH}OURA_METRICS=${{HIDDEN}}\n")
        assert "'${HIDDEN}'" in exit_2(no_keys)

    def test_the_environment_comes_first_for_each_value(
        self, no_keys: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(Path(".env"), f"OURA_TOKEN=not-this\nPETALS_API_KEY={KEY}")
        monkeypatch.setenv("OURA_TOKEN", f"  {TOKEN} ")
        monkeypatch.setenv("PETALS_API_KEY", "  ")
        before = dict(os.environ)
        assert no_keys.run().code == 0
        assert dict(os.environ) == before

    @pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
    def test_one_that_others_can_read_is_a_warning(
        self, no_keys: World, mode: int, warned: bool
    ) -> None:
        path = write(Path(".env"), BOTH, mode).absolute()
        ended = no_keys.run()
        assert ended.code == 0
        assert len(ended.problems) == warned
        assert (f"chmod 600 {path}" in ended.err) == warned


@pytest.mark.parametrize(
    ("text", "hint", "missing"),
    [
        (
            None,
            ", or set OURA_TOKEN if you have one",
            "OURA_CLIENT_ID, OURA_CLIENT_SECRET, PETALS_API_KEY",
        ),
        ("OURA_CLIENT_ID=the-client", "", "OURA_CLIENT_SECRET, PETALS_API_KEY"),
    ],
    ids=["no .env file", "a client id"],
)
def test_the_missing_sign_in_comes_first_and_then_all_missing_settings(
    no_keys: World, text: str | None, hint: str, missing: str
) -> None:
    looked, env_file = "a .env file (none was found)", []
    if text:
        looked = str(write(Path(".env"), text).absolute())
        env_file = ["--env-file", looked]
    login = shlex.join([sys.executable, str(oura_to_petals.SCRIPT), "--login", *env_file])
    expected = f"not set: {missing}; looked in the environment and {looked}"
    assert exit_2(no_keys) == f"not signed in: run {login}{hint}; {expected}"


@pytest.mark.parametrize(
    "host",
    [
        "https://api.example", "https://api.example/", "https://api.example:8443/sub/folder/",
        "https://my_host.local", "https://[2001:db8::1]:8443", "http://localhost:8000",
        "http://127.0.0.1", "http://[::1]:8000/",
    ],
)  # fmt: skip
def test_https_and_local_hosts_are_accepted(
    world: World, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETALS_HOST", host)
    world.router.route(url__startswith=host.rstrip("/")).mock(side_effect=world.petals)
    world.run()
    assert str(world.petals.requests[0].url) == f"{host.rstrip('/')}/api/memory/metrics/list"


@pytest.mark.parametrize(
    "host",
    [
        "http://api.example", "http://127.0.0.1.example", "http://127.1", "http://localhost.",
        "http://LOCALHOST", "http://0.0.0.0", "http://localhost@evil.example",
        "https://user:hunter2@api.example", "https://api.example\\@evil.example",
        "https://api.example?x=1", "https://api.example/#x", "https://api.example:port",
        "https://a b.example", "https://", "ftp://api.example", "api.example", "//api.example",
    ],
)  # fmt: skip
def test_other_hosts_are_exit_2(world: World, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OURA_HOST", "PETALS_HOST"):
        monkeypatch.setenv(name, host)
    of_oura, of_petals = exit_2(world).split("; ")
    assert of_oura.startswith("OURA_HOST is no")
    assert of_petals == of_oura.replace("OURA", "PETALS")
    assert "hunter2" not in of_petals


@pytest.mark.parametrize(
    "host",
    [
        "https://[1::2::3]", "https://xn--a.example", "https://a..b.example", "https://.example",
        f"https://{'a' * 64}.example",
    ],
)  # fmt: skip
def test_a_host_that_only_httpx_refuses_is_exit_1(
    world: World, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURA_HOST", host)
    world.router.route(url__startswith=host).pass_through()
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert ended.err.endswith("; check the network and OURA_HOST\n")


@pytest.mark.parametrize(
    "names", [["OURA_TOKEN", "PETALS_API_KEY"], ["OURA_CLIENT_ID", "OURA_CLIENT_SECRET"]]
)
@pytest.mark.parametrize("tail", ["a b", "a\nb", "\xe9", "a\x7f", "a,b", "a=b", "${KEY}", "'a'"])
def test_a_character_that_is_in_no_key_is_exit_2_and_the_key_is_not_shown(
    world: World, names: list[str], tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OURA_TOKEN")
    for name in names:
        monkeypatch.setenv(name, f"petals-{tail}" if name == "PETALS_API_KEY" else tail)
    problem = exit_2(world)
    for name in names:
        assert f"{name} has a space or another character that is in no key" in problem
    assert tail not in problem


@pytest.mark.parametrize("token", ["abc", "A-Z.a_z~0+9/==", "-"])
def test_a_key_may_have_all_characters_of_a_bearer_token(
    world: World, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.oura.tokens = {token}
    monkeypatch.setenv("OURA_TOKEN", token)
    assert world.run().code == 0


@pytest.mark.parametrize("key", ["sk-123", "petals-", "PETALS-x"])
def test_a_key_that_is_no_petals_key_is_exit_2(
    world: World, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETALS_API_KEY", key)
    assert exit_2(world).startswith("PETALS_API_KEY does not begin with petals-")
    assert world.run("--dry-run").code == 0


def test_swapped_keys_are_exit_2(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURA_TOKEN", KEY)
    monkeypatch.setenv("PETALS_API_KEY", TOKEN)
    problem = exit_2(world)
    assert problem.startswith("OURA_TOKEN begins with petals-: are the two keys swapped?")
    assert KEY not in problem
    assert TOKEN not in problem


def test_the_repr_of_the_settings_shows_no_key(no_keys: World) -> None:
    write(Path(".env"), BOTH)
    settings = oura_to_petals.load_settings(None)
    assert settings["OURA_TOKEN"] == TOKEN
    assert TOKEN not in repr(settings)
    assert KEY not in repr(settings)
