"""Settings come from the environment and a `.env` file, are checked first, and stay secret."""

import os
import shlex
import sys
import threading
from pathlib import Path

import pytest
from fakes import BULK, KEY, LIST, PUSHED, READINESS, SLEEP, TOKEN, TOKENS, Ended, answer

import oura_to_petals

BOTH = f"OURA_TOKEN={TOKEN}\nPETALS_API_KEY={KEY}\n"
CONFIG = Path(".config/oura-to-petals/.env")
INSTALLED = "/opt/my tools/bin/oura-to-petals"


@pytest.fixture
def no_keys(world, monkeypatch):
    monkeypatch.delenv("OURA_TOKEN")
    monkeypatch.delenv("PETALS_API_KEY")
    return world


@pytest.fixture
def beside():
    """The place of the `.env` file beside the script."""
    return oura_to_petals.SCRIPT.with_name(".env")


def write(path, content, mode=0o600):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def refused(world, *options):
    """The line of a run that ends with exit code 2 before anything is sent."""
    problem = world.run(*options).failed(code=2)
    assert world.oura.requests == world.petals.requests == []
    return problem


def no_home(monkeypatch):
    """Be an account that the machine does not know, as in a container."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", str)


class TestEnvFile:
    def test_it_is_found_beside_the_script(self, no_keys, beside):
        write(beside, BOTH)
        assert no_keys.run() == Ended(0, PUSHED, "")

    def test_it_is_found_in_the_config_folder(self, no_keys):
        write(CONFIG, BOTH)
        assert no_keys.run() == Ended(0, PUSHED, "")

    def test_the_working_folder_is_none_of_its_places(self, no_keys, beside):
        write(Path(".env"), f"{BOTH}PETALS_HOST=https://evil.example\n")
        assert refused(no_keys) == (
            "not set: OURA_CLIENT_ID, OURA_CLIENT_SECRET, PETALS_API_KEY; "
            f"put what is missing into {beside} or {CONFIG.absolute()}; "
            "OURA_TOKEN can take the place of the client id and secret"
        )

    def test_an_installed_command_has_one_place(self, no_keys, monkeypatch, tmp_path):
        installed = tmp_path / "site-packages" / "oura_to_petals.py"
        monkeypatch.setattr(oura_to_petals, "SCRIPT", installed)
        write(installed.with_name(".env"), BOTH)
        assert f"; put what is missing into {CONFIG.absolute()}; " in refused(no_keys)

    def test_only_the_first_file_is_read(self, no_keys, beside):
        write(beside, f"OURA_TOKEN={TOKEN}")
        write(CONFIG, BOTH)
        assert refused(no_keys) == f"not set: PETALS_API_KEY; put what is missing into {beside}"

    def test_a_named_file_is_the_only_one(self, no_keys, beside, tmp_path):
        write(beside, "PETALS_HOST=https://evil.example")
        write(CONFIG, "PETALS_HOST=https://evil.example")
        file = write(tmp_path / "my keys", f"OURA_TOKEN={TOKEN}")
        missing = f"not set: PETALS_API_KEY; put what is missing into {file}"
        assert refused(no_keys, "--env-file", str(file)) == missing
        write(file, BOTH)
        assert no_keys.run("--env-file", os.path.relpath(file)) == Ended(0, PUSHED, "")
        file.rename("keys")
        assert no_keys.run("--env-file", "~/keys") == Ended(0, PUSHED, "")

    @pytest.mark.parametrize("is_named", [False, True], ids=["found", "named"])
    def test_it_may_be_a_pipe(self, no_keys, beside, is_named):
        beside.parent.mkdir()
        os.mkfifo(beside, 0o600)
        writer = threading.Thread(target=beside.write_text, args=(BOTH,))
        writer.start()
        options = ["--env-file", str(beside)] if is_named else []
        assert no_keys.run(*options) == Ended(0, PUSHED, "")
        writer.join()

    def test_a_folder_of_that_name_is_told(self, no_keys, beside):
        """Docker makes one where a file to be mounted is not there."""
        beside.mkdir(parents=True)
        write(CONFIG, BOTH)
        assert refused(no_keys) == f"{beside} is a directory"

    def test_a_broken_link_is_passed_over(self, no_keys, beside):
        beside.parent.mkdir()
        beside.symlink_to("nowhere")
        write(CONFIG, BOTH)
        assert no_keys.run() == Ended(0, PUSHED, "")

    @pytest.mark.parametrize("kind", ["closed", "impossible"])
    def test_an_unreachable_place_is_passed_over(self, world, monkeypatch, tmp_path, kind):
        if kind == "closed":
            if os.geteuid() == 0:
                pytest.skip("root can look into every folder")
            (tmp_path / "closed").mkdir(0)
            monkeypatch.setenv("HOME", str(tmp_path / "closed"))
        else:  # the operating system refuses this for root, too
            monkeypatch.setenv("HOME", f"/{'long' * 100}")
        assert world.run() == Ended(0, PUSHED, "")

    @pytest.mark.parametrize("is_folder", [False, True], ids=["nothing", "folder"])
    def test_a_named_file_has_to_be_there(self, no_keys, tmp_path, is_folder):
        path = tmp_path / "other"
        if is_folder:
            path.mkdir()
        missing = "cannot be read: No such file or directory"
        expected = f"{path} {'is a directory' if is_folder else missing}"
        assert refused(no_keys, "--env-file", str(path)) == expected

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
    def test_utf_16_is_refused(self, no_keys, beside, encoding):
        write(beside, f"\ufeff{BOTH}".encode(encoding))
        assert refused(no_keys) == f"{beside} is in UTF-16: save it as UTF-8"

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
    def test_usual_ways_to_write_it_work(self, no_keys, beside, text):
        write(beside, text)
        assert no_keys.run() == Ended(0, PUSHED, "")

    @pytest.mark.parametrize(
        ("text", "line"), [("OURA TOKEN=x\n", 1), ("# keys\r\nA=1\r\nwhat is this\r\n", 3)]
    )
    def test_a_line_that_makes_no_sense_is_named(self, no_keys, beside, text, line):
        write(beside, text + BOTH)
        ended = no_keys.run()
        expected = f"{beside} cannot be parsed at line {line}: write NAME=value"
        assert (ended.code, ended.problems) == (0, [expected])

    @pytest.mark.parametrize("value", ['"all', "'all", '"all\\"', '"all" more'])
    def test_a_quote_that_never_closes_is_an_error(self, no_keys, beside, value):
        write(beside, f"{BOTH}OURA_METRICS={value}\n")
        problem = f"{beside} cannot be parsed at line 3: see whether each quotation mark is closed"
        assert refused(no_keys) == problem

    def test_values_are_not_expanded(self, no_keys, beside, monkeypatch):
        monkeypatch.setenv("HIDDEN", "all")
        write(beside, f"{BOTH}OURA_METRICS=${{HIDDEN}}\n")
        assert "'${hidden}'" in refused(no_keys)

    def test_the_environment_comes_first(self, no_keys, beside, monkeypatch):
        write(beside, f"OURA_TOKEN=not-this\nPETALS_API_KEY={KEY}")
        monkeypatch.setenv("OURA_TOKEN", f"  {TOKEN} ")
        monkeypatch.setenv("PETALS_API_KEY", "  ")
        before = dict(os.environ)
        assert no_keys.run() == Ended(0, PUSHED, "")
        assert dict(os.environ) == before

    @pytest.mark.parametrize(
        ("mode", "warned"), [(0o600, False), (0o640, False), (0o660, False), (0o604, True)]
    )
    def test_a_file_for_everybody_is_warned_about(self, no_keys, tmp_path, mode, warned):
        file = write(tmp_path / "my keys", BOTH, mode)
        warning = f"everybody can read your keys: run chmod 600 {shlex.quote(str(file))}"
        ended = no_keys.run("--env-file", str(file))
        assert (ended.code, ended.problems) == (0, [warning] if warned else [])

    def test_a_device_or_pipe_for_everybody_is_not(self, no_keys, tmp_path):
        path = tmp_path / "pipe"
        os.mkfifo(path, 0o666)
        path.chmod(0o666)
        writer = threading.Thread(target=path.write_text, args=(BOTH,))
        writer.start()
        assert no_keys.run("--env-file", str(path)) == Ended(0, PUSHED, "")
        writer.join()

    def test_without_a_home_folder_nothing_is_looked_for_in_one(self, no_keys, monkeypatch):
        no_home(monkeypatch)
        write(Path("~/.config/oura-to-petals/.env"), BOTH)
        beside = oura_to_petals.SCRIPT.with_name(".env")
        assert f"; put what is missing into {beside}; " in refused(no_keys)
        monkeypatch.setattr(oura_to_petals, "SCRIPT", Path("/site-packages/oura_to_petals.py"))
        assert "; put what is missing into the environment; " in refused(no_keys)


class TestMissing:
    @pytest.mark.parametrize(
        ("given", "missing"),
        [
            ("OURA_CLIENT_ID=a", "OURA_CLIENT_SECRET, PETALS_API_KEY"),
            ("OURA_CLIENT_SECRET=a", "OURA_CLIENT_ID, PETALS_API_KEY"),
            (f"PETALS_API_KEY={KEY}", "OURA_CLIENT_ID, OURA_CLIENT_SECRET"),
        ],
    )
    def test_all_missing_settings_are_named(self, no_keys, beside, given, missing):
        write(beside, given)
        assert refused(no_keys) == (
            f"not set: {missing}; put what is missing into {beside}; "
            "OURA_TOKEN can take the place of the client id and secret"
        )

    @pytest.mark.parametrize(
        "given", [f"OURA_TOKEN={TOKEN}", "OURA_CLIENT_ID=a\nOURA_CLIENT_SECRET=b"]
    )
    def test_a_missing_petals_key_comes_alone(self, no_keys, beside, given):
        write(beside, given)
        assert refused(no_keys) == f"not set: PETALS_API_KEY; put what is missing into {beside}"

    def test_login_names_what_it_needs(self, no_keys, beside):
        write(beside, "")
        missing = "OURA_CLIENT_ID, OURA_CLIENT_SECRET"
        expected = f"not set: {missing}; put what is missing into {beside}"
        assert no_keys.run("--login", day=None).failed(code=2) == expected

    @pytest.mark.parametrize("content", [None, "", " \n"], ids=["no file", "empty", "blank"])
    def test_not_signed_in_names_file_and_command(self, no_keys, beside, content):
        write(beside, f"OURA_CLIENT_ID=a\nOURA_CLIENT_SECRET=b\nPETALS_API_KEY={KEY}\n")
        file = Path(".local/state/oura-to-petals/oura-token.json").absolute()
        if content is not None:
            write(file, content)
        login = shlex.join([sys.executable, str(oura_to_petals.SCRIPT), "--login"])
        assert refused(no_keys) == f"not signed in: no tokens in {file}; run {login}"

    def test_missing_and_wrong_settings_come_together(self, no_keys, beside):
        write(beside, f"OURA_TOKEN={TOKEN}\nOURA_HOST=api.example\n")
        assert refused(no_keys) == (
            f"not set: PETALS_API_KEY; put what is missing into {beside}; "
            "OURA_HOST is not a plain https:// address (http:// only for localhost)"
        )


class TestCommands:
    """The commands that a run prints are those of the way in which it was started."""

    @pytest.fixture
    def not_signed_in(self, no_keys, monkeypatch):
        monkeypatch.setenv("OURA_CLIENT_ID", "a")
        monkeypatch.setenv("OURA_CLIENT_SECRET", "b")
        monkeypatch.setenv("PETALS_API_KEY", KEY)
        return no_keys

    def test_an_installed_command_prints_its_own(self, not_signed_in, monkeypatch):
        monkeypatch.setattr(sys, "argv", [INSTALLED])
        problem = refused(not_signed_in)
        assert problem.endswith(f"; run {shlex.join([INSTALLED, '--login'])}")

    def test_printed_commands_work_in_any_folder(self, not_signed_in, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["bin/oura-to-petals"])
        write(Path("my keys"), "")
        command = [os.path.abspath("bin/oura-to-petals"), "--login"]
        command += ["--env-file", os.path.abspath("my keys")]
        problem = refused(not_signed_in, "--env-file", "my keys")
        assert problem.endswith(f"; run {shlex.join(command)}")

    def test_a_script_is_run_with_its_python(self, not_signed_in, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["./oura_to_petals.py"])
        login = shlex.join([sys.executable, str(oura_to_petals.SCRIPT), "--login"])
        assert refused(not_signed_in).endswith(f"; run {login}")

    def test_a_run_that_stops_prints_its_own(self, week, monkeypatch):
        monkeypatch.setattr(sys, "argv", [INSTALLED])
        week.oura.tokens = set()
        (problem,) = week.run("--days", "7").problems
        command = shlex.join([INSTALLED, "--date", "2026-06-10", "--days", "7"])
        assert problem.endswith(f"; 0 of 7 days are in, go on with: {command}")


class TestTokenFile:
    @pytest.mark.parametrize("path", ["token.json", "./token.json", "$HOME/token.json", "..", "~x"])
    @pytest.mark.parametrize("option", ["--login", "--dry-run"])
    def test_its_path_must_be_absolute(self, no_keys, monkeypatch, path, option):
        monkeypatch.setenv("OURA_CLIENT_ID", "a")
        monkeypatch.setenv("OURA_CLIENT_SECRET", "b")
        monkeypatch.setenv("OURA_TOKEN_FILE", path)
        assert refused(no_keys, option) == "OURA_TOKEN_FILE must begin with / or ~/"
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize("path", ["~/my/token.json", "{}/my/token.json"], ids=["~", "/"])
    def test_its_path_may_begin_with_the_home_folder(self, no_keys, monkeypatch, home, path):
        monkeypatch.setenv("OURA_CLIENT_ID", "a")
        monkeypatch.setenv("OURA_CLIENT_SECRET", "b")
        monkeypatch.setenv("OURA_TOKEN_FILE", path.format(home))
        problem = refused(no_keys, "--dry-run")
        assert problem.startswith(f"not signed in: no tokens in {home}/my/token.json; run ")

    @pytest.mark.parametrize("option", ["--login", "--dry-run"])
    def test_without_a_home_folder_it_has_to_be_named(self, no_keys, monkeypatch, option):
        no_home(monkeypatch)
        monkeypatch.setenv("OURA_CLIENT_ID", "a")
        monkeypatch.setenv("OURA_CLIENT_SECRET", "b")
        assert refused(no_keys, option) == (
            "OURA_TOKEN_FILE needs a home folder, and this account has none: "
            "set it to a path that begins with /"
        )
        assert list(Path().iterdir()) == []

    def test_a_personal_token_needs_no_home_folder(self, world, monkeypatch):
        no_home(monkeypatch)
        assert world.run() == Ended(0, PUSHED, "")


class TestHosts:
    @pytest.mark.parametrize(
        "host",
        [
            "https://api.example", "https://api.example/", "https://api.example:8443/sub/folder/",
            "https://my_host.local", "https://[2001:db8::1]:8443", "http://localhost:8000",
            "http://127.0.0.1", "http://[::1]:8000/",
        ],
    )  # fmt: skip
    def test_https_and_local_hosts_are_accepted(self, world, host, monkeypatch):
        monkeypatch.setenv("PETALS_HOST", host)
        world.router.route(url__startswith=host.rstrip("/")).mock(side_effect=world.petals)
        world.run()
        assert str(world.petals.requests[0].url) == f"{host.rstrip('/')}{LIST}"

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
    def test_other_hosts_are_refused(self, world, host, monkeypatch):
        for name in ("OURA_HOST", "PETALS_HOST"):
            monkeypatch.setenv(name, host)
        wrong = "is not a plain https:// address (http:// only for localhost)"
        assert refused(world) == f"OURA_HOST {wrong}; PETALS_HOST {wrong}"

    @pytest.mark.parametrize("name", ["OURA_AUTHORIZE_URL", "OURA_TOKEN_URL"])
    def test_sign_in_addresses_are_like_hosts(self, world, name, monkeypatch):
        monkeypatch.setenv("OURA_CLIENT_ID", "a")
        monkeypatch.setenv("OURA_CLIENT_SECRET", "b")
        monkeypatch.setenv(name, "http://cloud.example/oauth")
        wrong = "is not a plain https:// address (http:// only for localhost)"
        assert refused(world, "--login") == f"{name} {wrong}"

    @pytest.mark.parametrize(
        "host",
        [
            "https://[1::2::3]", "https://xn--a.example", "https://a..b.example",
            "https://.example", f"https://{'a' * 64}.example",
        ],
        ids=["two gaps", "no IDN", "two dots", "dot first", "long"],
    )  # fmt: skip
    def test_an_impossible_host_is_no_bug(self, world, host, monkeypatch):
        monkeypatch.setenv("OURA_HOST", host)
        world.router.route(url__startswith=host).pass_through()
        problem = world.run().failed()
        assert problem.endswith("; check the network and OURA_HOST")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("HTTPS_PROXY", "nonsense://user:hunter2@proxy"),
            ("ALL_PROXY", "http://[::1:80"),
            ("NO_PROXY", "[::1"),
            ("no_proxy", "localhost,fe80::/10"),
        ],
    )
    def test_an_impossible_proxy_names_its_settings(self, world, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        assert refused(world) == (
            "the proxy cannot be used: check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY"
        )


class TestKeys:
    @pytest.mark.parametrize(
        "names", [["OURA_TOKEN", "PETALS_API_KEY"], ["OURA_CLIENT_ID", "OURA_CLIENT_SECRET"]]
    )
    @pytest.mark.parametrize(
        "tail", ["a b", "a\nb", "\xe9", "a\x7f", "a,b", "a=b", "${KEY}", "'a'"]
    )
    def test_a_character_in_no_key_is_refused(self, world, names, tail, monkeypatch):
        monkeypatch.delenv("OURA_TOKEN")
        for name in names:
            monkeypatch.setenv(name, f"petals-{tail}" if name == "PETALS_API_KEY" else tail)
        wrong = "has a space or another character that is in no key: copy it again"
        assert refused(world) == "; ".join(f"{name} {wrong}" for name in names)

    @pytest.mark.parametrize("token", ["abc", "A-Z.a_z~0+9/==", "-"])
    def test_all_characters_of_keys_are_accepted(self, world, token, monkeypatch):
        world.oura.tokens = {token}
        monkeypatch.setenv("OURA_TOKEN", token)
        assert world.run() == Ended(0, PUSHED, "")

    @pytest.mark.parametrize("key", ["sk-123", "PETALS-x"])
    def test_another_kind_of_key_is_refused(self, world, key, monkeypatch):
        monkeypatch.setenv("PETALS_API_KEY", key)
        wrong = "PETALS_API_KEY does not begin with petals-: copy it again"
        assert refused(world) == wrong
        assert world.run("--dry-run").code == 0

    def test_swapped_keys_are_refused_and_not_shown(self, world, monkeypatch):
        monkeypatch.setenv("OURA_TOKEN", KEY)
        monkeypatch.setenv("PETALS_API_KEY", TOKEN)
        assert refused(world) == (
            "OURA_TOKEN begins with petals-: are the two keys swapped?; "
            "PETALS_API_KEY does not begin with petals-: copy it again"
        )

    @pytest.mark.parametrize("option", ["--quiet", "--login", "--check", "--dry-run"])
    @pytest.mark.parametrize(
        "name", [name for name in oura_to_petals.SETTINGS if name != "PETALS_API_KEY"]
    )
    def test_a_key_of_petals_goes_nowhere_else(self, world, monkeypatch, name, option):
        monkeypatch.setenv("OURA_CLIENT_ID", "a")
        monkeypatch.setenv("OURA_CLIENT_SECRET", "b")
        monkeypatch.setenv(name, KEY)
        problem = refused(world, option)
        assert problem == f"{name} begins with petals-: are the two keys swapped?"

    def test_a_wrong_key_of_petals_is_seen_at_login(self, world, monkeypatch):
        monkeypatch.setenv("OURA_CLIENT_ID", "a")
        monkeypatch.setenv("OURA_CLIENT_SECRET", "b")
        monkeypatch.setenv("PETALS_API_KEY", TOKEN)
        wrong = "PETALS_API_KEY does not begin with petals-: copy it again"
        assert refused(world, "--login") == wrong

    def test_a_wrong_key_of_petals_is_not_in_the_way_of_oura(self, world, monkeypatch):
        monkeypatch.setenv("PETALS_API_KEY", "petals-a b")
        assert world.run("--dry-run").code == 0
        ended = world.run("--check", day=None)
        assert (ended.code, ended.out.count("Oura: reading works")) == (1, 1)

    def test_the_settings_show_no_key(self, no_keys, beside):
        write(beside, BOTH)
        settings = oura_to_petals.load_settings(None)
        assert settings["OURA_TOKEN"] == TOKEN
        assert TOKEN not in repr(settings)
        assert KEY not in repr(settings)


SOURCES = [  # the setting, the service that refuses it, and how
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
    values = {"PETALS_API_KEY": KEY, "OURA_TOKEN": TOKEN}
    if path == TOKENS:
        application = {"OURA_CLIENT_ID": "the-client", "OURA_CLIENT_SECRET": "s3cret"}
        values = {"PETALS_API_KEY": KEY, **application}
        tokens = write(Path("tokens.json"), '{"access_token": "a", "refresh_token": "b"}')
        monkeypatch.setenv("OURA_TOKEN_FILE", str(tokens.absolute()))
    files = {"beside": beside, "config": CONFIG.absolute(), "named": Path("my.env").absolute()}
    text = "".join(f"{key}={value}\n" for key, value in values.items())
    if source == "the environment":
        write(beside, text.replace(values[name], "the-old-one"))
        monkeypatch.setenv(name, values[name])
    else:
        write(files[source], text)
    service = no_keys.petals if path in (LIST, BULK) else no_keys.oura
    service.fail(path, refusal, times=9)
    options = ["--env-file", "my.env"] if source == "named" else []
    options += ["--check"] if path == LIST else []
    ended = no_keys.run(*options)
    assert (ended.code, len(ended.problems)) == (1, 1)
    assert f"{name} from {files.get(source, source)}" in ended.problems[0]
    assert values[name] not in ended.err
