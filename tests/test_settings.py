"""Settings come from the environment and a `.env` file, are checked first, and stay secret."""

import os
import re
import shlex
import sys
import threading
from pathlib import Path

import httpx
import pytest
from fakes import BULK, KEY, LIST, PUSHED, READINESS, SLEEP, TOKEN, TOKENS, Ended, answer, write

import oura_to_petals

BOTH = f"OURA_TOKEN={TOKEN}\nPETALS_API_KEY={KEY}\n"
CONFIG = Path(".config/oura-to-petals/.env")
CLIENT = "OURA_CLIENT_ID=the-client\nOURA_CLIENT_SECRET=s3cret\n"
NAMES = [name for name in oura_to_petals.SETTINGS if name != "PETALS_API_KEY"]


@pytest.fixture
def no_keys(world, monkeypatch):
    monkeypatch.delenv("OURA_TOKEN")
    monkeypatch.delenv("PETALS_API_KEY")
    return world


@pytest.fixture
def beside():
    """The place of the `.env` file beside the script."""
    return oura_to_petals.SCRIPT.with_name(".env")


def refused(world, *options):
    """The line of a run that ends with exit code 2 before anything is sent."""
    problem = world.run(*options).failed(code=2)
    assert world.oura.requests == world.petals.requests == []
    return problem


def names_in(problem):
    """The settings that a line names."""
    return set(re.findall(r"[A-Z_]{7,}", problem)) & oura_to_petals.SETTINGS.keys()


class TestEnvFile:
    @pytest.mark.parametrize("is_beside", [True, False], ids=["beside", "config"])
    def test_the_first_one_is_read(self, no_keys, beside, is_beside):
        """The working folder is no place for it, and a broken link is none."""
        for path in (Path(".env"), CONFIG):
            write(path, "PETALS_HOST=https://evil.example\n")
        beside.parent.mkdir()
        beside.symlink_to("nowhere")
        write(beside.with_name("nowhere") if is_beside else CONFIG, BOTH)
        assert no_keys.run() == Ended(0, PUSHED, "")

    def test_a_named_file_is_the_only_one(self, no_keys, beside, tmp_path):
        for place in (beside, CONFIG):
            write(place, f"{BOTH}PETALS_HOST=https://evil.example")
        file = write(tmp_path / "my keys", f"OURA_TOKEN={TOKEN}")
        problem = refused(no_keys, "--env-file", str(file))
        assert (names_in(problem), str(file) in problem) == ({"PETALS_API_KEY"}, True)
        write(file, BOTH)
        assert no_keys.run("--env-file", os.path.relpath(file)) == Ended(0, PUSHED, "")
        file.rename("keys")
        assert no_keys.run("--env-file", "~/keys") == Ended(0, PUSHED, "")

    @pytest.mark.parametrize("is_named", [False, True], ids=["found", "named"])
    def test_it_may_be_a_pipe(self, no_keys, beside, is_named):
        """A password manager makes one. Who may read it does not matter."""
        beside.parent.mkdir()
        os.mkfifo(beside)
        beside.chmod(0o666)
        threading.Thread(target=beside.write_text, args=(BOTH,), daemon=True).start()
        options = ["--env-file", str(beside)] if is_named else []
        assert no_keys.run(*options) == Ended(0, PUSHED, "")

    @pytest.mark.parametrize("kind", ["folder", "named folder", "named, not there"])
    def test_one_that_cannot_be_read_is_named(self, no_keys, beside, kind):
        """Docker makes a folder where a file to be mounted is not there."""
        write(CONFIG, BOTH)
        if "folder" in kind:
            beside.mkdir(parents=True)
        options = ["--env-file", str(beside)] if "named" in kind else []
        assert str(beside) in refused(no_keys, *options)

    @pytest.mark.parametrize(
        "text",
        [
            f"\ufeff{BOTH}",
            f"export OURA_TOKEN=\"{TOKEN}\"\r\nPETALS_API_KEY = '{KEY}' # of June\r\nLONE\r\n",
            f"OURA_TOKEN=' {TOKEN} '\nPETALS_API_KEY={KEY}",
            f"OURA_TOKEN=“{TOKEN}”\nPETALS_API_KEY=‘{KEY}’",  # noqa: RUF001
            f"OURA_TOKEN=„{TOKEN}“\nPETALS_API_KEY=  {KEY}",
            f"# d\xe9j\xe0\n{BOTH}",
            f"# d\xe9j\xe0\n{BOTH}".encode("latin-1"),
        ],
    )
    def test_usual_ways_to_write_it_work(self, no_keys, beside, text):
        write(beside, text)
        assert no_keys.run() == Ended(0, PUSHED, "")

    @pytest.mark.parametrize("value", ["x\nwhat is this", "x\r\nOURA TOKEN=x"])
    def test_a_line_that_makes_no_sense_is_named(self, no_keys, beside, value):
        write(beside, f"{BOTH}# more\nA={value}\n")
        done = no_keys.run()
        assert (done.code, done.out, len(done.problems)) == (0, PUSHED, 1)
        assert [fact for fact in (str(beside), "line 5") if fact not in done.err] == []

    @pytest.mark.parametrize("value", ['"all', "'all", '"all\\"', '"all" more'])
    def test_a_quote_that_never_closes_is_an_error(self, no_keys, beside, value):
        write(beside, f"{BOTH}OURA_METRICS={value}\n")
        problem = refused(no_keys)
        assert [fact for fact in (str(beside), "line 3", "quot") if fact not in problem] == []

    def test_the_environment_comes_first(self, no_keys, beside, monkeypatch):
        write(beside, f"OURA_TOKEN=not-this\nPETALS_API_KEY={KEY}")
        monkeypatch.setenv("OURA_TOKEN", f"  {TOKEN} ")
        monkeypatch.setenv("PETALS_API_KEY", "  ")
        before = dict(os.environ)
        assert no_keys.run() == Ended(0, PUSHED, "")
        assert dict(os.environ) == before

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o604])
    def test_a_file_that_everybody_can_read_is_told(self, no_keys, tmp_path, mode):
        file = write(tmp_path / "my keys", BOTH, mode)
        done = no_keys.run("--env-file", str(file))
        assert (done.code, len(done.problems)) == (0, mode == 0o604)
        assert (f"chmod 600 {shlex.quote(str(file))}" in done.err) == (mode == 0o604)


def test_the_places_of_a_file_are_named(no_keys, beside, monkeypatch):
    places = [beside, CONFIG.absolute()]
    assert [place for place in places if str(place) not in refused(no_keys)] == []
    installed = Path("/usr/lib/site-packages/oura_to_petals.py")  # an update removes what is there
    monkeypatch.setattr(oura_to_petals, "SCRIPT", installed)
    problem = refused(no_keys)
    assert (str(CONFIG.absolute()) in problem, "site-packages" in problem) == (True, False)


def test_without_a_home_folder(no_keys, beside, monkeypatch):
    """As in a container. Nothing is looked for or written in a folder called `~`."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", str)
    write(Path("~/.config/oura-to-petals/.env"), BOTH)
    assert str(beside) in refused(no_keys)
    for line in CLIENT.splitlines():
        monkeypatch.setenv(*line.split("="))
    assert names_in(refused(no_keys, "--login")) == {"OURA_TOKEN_FILE"}
    assert list(Path().iterdir()) == [Path("~")]
    monkeypatch.setenv("OURA_TOKEN", TOKEN)
    monkeypatch.setenv("PETALS_API_KEY", KEY)
    assert no_keys.run() == Ended(0, PUSHED, "")


class TestMissing:
    @pytest.mark.parametrize(
        ("given", "options", "missing"),
        [
            ("", [], {"OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "PETALS_API_KEY"}),
            (f"PETALS_API_KEY={KEY}", [], {"OURA_CLIENT_ID", "OURA_CLIENT_SECRET"}),
            (f"OURA_TOKEN={TOKEN}", [], {"PETALS_API_KEY"}),
            ("", ["--login"], {"OURA_CLIENT_ID", "OURA_CLIENT_SECRET"}),
            ("", ["--dry-run"], {"OURA_CLIENT_ID", "OURA_CLIENT_SECRET"}),
            (f"OURA_TOKEN={TOKEN}\nOURA_HOST=api.example", [], {"PETALS_API_KEY", "OURA_HOST"}),
        ],
    )
    def test_all_of_them_are_in_one_line(self, no_keys, beside, given, options, missing):
        write(beside, given)
        problem = refused(no_keys, *options)
        assert (names_in(problem), str(beside) in problem) == (missing, True)

    @pytest.mark.parametrize("content", [None, "", " \n"], ids=["no file", "empty", "blank"])
    @pytest.mark.parametrize("folder", ["~", "{}"])
    def test_not_signed_in_names_file_and_command(self, no_keys, beside, home, content, folder):
        file = home / "my token.json"
        setting = f"OURA_TOKEN_FILE={folder.format(home)}/my token.json"
        write(beside, f"{CLIENT}PETALS_API_KEY={KEY}\n{setting}\n")
        if content is not None:
            write(file, content)
        problem = refused(no_keys)
        login = shlex.join([sys.executable, str(oura_to_petals.SCRIPT), "--login"])
        assert (str(file) in problem, login in problem) == (True, True)

    @pytest.mark.parametrize("path", ["token.json", "./token.json", "$HOME/token.json", "..", "~x"])
    @pytest.mark.parametrize("option", ["--login", "--dry-run"])
    def test_the_path_of_the_token_file_is_absolute(self, no_keys, beside, option, path):
        write(beside, f"{CLIENT}OURA_TOKEN_FILE={path}")
        before = list(Path().iterdir())
        assert names_in(refused(no_keys, option)) == {"OURA_TOKEN_FILE"}
        assert list(Path().iterdir()) == before

    @pytest.mark.parametrize("program", ["/opt/my tools/bin/oura-to-petals", "bin/oura-to-petals"])
    def test_an_installed_command_prints_its_own(self, no_keys, monkeypatch, program):
        """It works in any folder."""
        monkeypatch.setattr(sys, "argv", [program])
        file = write(Path("my keys"), f"{CLIENT}PETALS_API_KEY={KEY}\n").absolute()
        command = [os.path.abspath(program), "--login", "--env-file", str(file)]
        assert shlex.join(command) in refused(no_keys, "--env-file", "my keys")


RIGHT = ["https://api.example/", "https://my_host.local:8443/sub/folder/", "http://127.0.0.1"]
RIGHT += ["https://[2001:db8::1]:8443", "http://localhost:8000", "http://[::1]:8000/"]
WRONG = [
    "http://api.example", "http://127.0.0.1.example", "http://127.1", "http://localhost.",
    "http://LOCALHOST", "http://0.0.0.0", "http://localhost@evil.example", "https://", "//api",
    "https://user:hunter2@api.example", "https://api.example\\@evil.example", "api.example",
    "https://api.example?x=1", "https://api.example/#x", "https://api.example:port", "ftp://api",
]  # fmt: skip


class TestAddresses:
    @pytest.mark.parametrize("host", RIGHT)
    def test_https_and_local_ones_are_accepted(self, world, host, monkeypatch):
        monkeypatch.setenv("PETALS_HOST", host)
        world.petals_host = httpx.URL(host).host
        assert world.run().code == 0
        assert str(world.petals.requests[0].url) == f"{host.rstrip('/')}{BULK}"

    @pytest.mark.parametrize("host", WRONG)
    def test_others_are_refused(self, no_keys, host, beside, monkeypatch):
        write(beside, CLIENT)
        names = {name for name in NAMES if name.endswith(("HOST", "URL", "URI"))} - {"PETALS_HOST"}
        for name in names:
            monkeypatch.setenv(name, host)
        problem = refused(no_keys, "--login")
        assert (names_in(problem), "hunter2" in problem) == (names, False)


class TestKeys:
    @pytest.mark.parametrize("name", ["OURA_TOKEN", "OURA_CLIENT_ID", "OURA_CLIENT_SECRET"])
    @pytest.mark.parametrize("key", ["key b", "key\nb", "key\xe9", "key\x7f"])
    def test_a_character_in_no_key_is_refused(self, no_keys, beside, monkeypatch, name, key):
        write(beside, f"{CLIENT}PETALS_API_KEY={KEY}")
        monkeypatch.setenv(name, key)
        problem = refused(no_keys)
        assert (names_in(problem), key in problem) == ({name}, False)

    @pytest.mark.parametrize("token", ["abc", "A-Z.a_z~0+9/==", "-", "a,b=${c}'d'"])
    def test_all_characters_of_keys_are_accepted(self, world, token, monkeypatch):
        world.oura.tokens = {token}
        monkeypatch.setenv("OURA_TOKEN", token)
        assert world.run() == Ended(0, PUSHED, "")

    @pytest.mark.parametrize("key", [TOKEN, "PETALS-x", "petals-a b"])
    def test_a_wrong_key_of_petals_is_seen_first(self, world, beside, monkeypatch, key):
        write(beside, CLIENT)
        monkeypatch.setenv("PETALS_API_KEY", key)
        for options in ([], ["--login"]):
            problem = refused(world, *options)
            assert (names_in(problem), key in problem) == ({"PETALS_API_KEY"}, False)
        assert world.run("--dry-run").code == 0  # it is not in the way of Oura
        done = world.run("--check", day=None)
        assert (done.code, done.out.count("Oura")) == (2, 1)

    @pytest.mark.parametrize("name", NAMES)
    def test_swapped_keys_go_nowhere(self, world, beside, monkeypatch, name):
        write(beside, CLIENT)
        monkeypatch.setenv(name, KEY)
        for option in ("--quiet", "--login", "--check", "--dry-run"):
            problem = refused(world, option)
            assert (names_in(problem), KEY in problem) == ({name}, False)


SOURCES = [  # the setting, the request that is refused, and how
    ("PETALS_API_KEY", LIST, answer(401, message="no")),
    ("PETALS_API_KEY", BULK, answer(403, message="no")),
    ("OURA_TOKEN", READINESS, answer(401, detail="no")),
    ("OURA_TOKEN", SLEEP, answer(403, detail="no")),
    ("OURA_CLIENT_ID", TOKENS, answer(401, error="invalid_client")),
    ("OURA_CLIENT_SECRET", TOKENS, answer(400, error="invalid_client")),
]


@pytest.mark.parametrize("source", ["the environment", "beside", "config", "named"])
@pytest.mark.parametrize(("name", "path", "refusal"), SOURCES)
def test_a_refusal_says_where_the_value_came_from(
    no_keys, beside, monkeypatch, name, path, refusal, source
):
    text = BOTH
    if path == TOKENS:
        tokens = write(Path("tokens.json"), '{"access_token": "a", "refresh_token": "b"}')
        text = f"{CLIENT}PETALS_API_KEY={KEY}\nOURA_TOKEN_FILE={tokens.absolute()}\n"
    value = dict(line.split("=") for line in text.splitlines())[name]
    files = {"beside": beside, "config": CONFIG.absolute(), "named": Path("my.env").absolute()}
    if source == "the environment":
        write(beside, text.replace(value, "the-old-one"))
        monkeypatch.setenv(name, value)
    else:
        write(files[source], text)
    (no_keys.petals if path in (LIST, BULK) else no_keys.oura).fail(path, refusal, times=9)
    options = ["--env-file", "my.env"] if source == "named" else []
    done = no_keys.run(*options, *(["--check"] if path == LIST else []))
    (problem,) = done.problems
    facts = [str(refusal.status_code), f"{name} from {files.get(source, source)}"]
    assert (done.code, [fact for fact in facts if fact not in problem]) == (1, [])
    assert ("--login" in problem) == (path == READINESS)
    assert value not in problem
