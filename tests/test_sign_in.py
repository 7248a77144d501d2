"""Sign in once with Oura, and cron goes on for years."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import SCRIPT, Clock, Ended, World
from services import KEY, TOKEN, Oura, Petals, hang, local_server

import oura_to_petals

FIRST = "https://moi.ouraring.com/oauth/v2/ext/oauth-token"
OLD = "https://api.ouraring.com/oauth/token"
BROKEN = httpx.Response(500)
FILE = Path(".local/state/oura-to-petals/oura-token.json")


@pytest.fixture
def signing(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Someone who registered an application and has no personal access token."""
    monkeypatch.delenv("OURA_TOKEN")
    monkeypatch.setenv("OURA_CLIENT_ID", "the-client")
    monkeypatch.setenv("OURA_CLIENT_SECRET", "s3cret")
    world.router.post(FIRST).mock(side_effect=world.oura)
    world.router.post(OLD).mock(side_effect=world.oura)
    return world


def tokens() -> dict:
    return json.loads(FILE.read_text())


def write_tokens(number: int = 1, *, expires_in: float = 3600, **more: object) -> dict:
    content = {
        "access_token": f"access-{number}",
        "refresh_token": f"refresh-{number}",
        "expires_at": int(time.time() + expires_in),
        "token_url": FIRST,
        **more,
    }
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(content))
    return content


@pytest.fixture
def signed_in(signing: World) -> World:
    signing.oura.tokens = {"access-1"}
    write_tokens()
    return signing


class Pasting:
    """A stdin into which the address is pasted that fits the one that was printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], answer: str) -> None:
        self.capsys, self.answer, self.printed = capsys, answer, ""

    def readline(self) -> str:
        self.printed = self.capsys.readouterr().out
        state = re.search(r"[?&]state=([\w-]+)", self.printed)[1]
        return self.answer.replace("STATE", state)


@pytest.fixture
def log_in(
    signing: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    def log_in(answer: str, *argv: str) -> Ended:
        pasting = Pasting(capsys, answer)
        monkeypatch.setattr(sys, "stdin", pasting)
        ended = signing.run("--login", *argv, day=None)
        return Ended(ended.code, pasting.printed + ended.out, ended.err)

    return log_in


class TestLogin:
    @pytest.mark.parametrize(
        "answer",
        [
            "http://localhost:8080/callback/?code=the-code&state=STATE\n",
            "  localhost:8080/callback/?state=STATE&scope=daily&code=the-code#_=_ \n",
            "the-code\n",
        ],
    )
    def test_pasting_where_the_browser_ended_signs_in(
        self, log_in: Callable[..., Ended], signing: World, answer: str
    ) -> None:
        ended = log_in(answer)
        assert (ended.code, ended.err) == (0, "")
        address = httpx.URL(re.search(r"https://cloud\S+", ended.out)[0])
        asked = dict(address.params)
        assert len(asked.pop("state")) > 15
        assert asked == {
            "response_type": "code",
            "client_id": "the-client",
            "redirect_uri": "http://localhost:8080/callback/",
            "scope": "daily",
        }
        assert "renews itself" in ended.out
        assert str(FILE) in ended.out
        assert "the-code" not in ended.out
        form = dict(httpx.QueryParams(signing.oura.asked("oauth-token")[0].content.decode()))
        assert form == {
            "grant_type": "authorization_code",
            "code": "the-code",
            "redirect_uri": "http://localhost:8080/callback/",
            "client_id": "the-client",
            "client_secret": "s3cret",
        }
        assert tokens()["access_token"] == "access-2"
        assert tokens()["refresh_token"] == "refresh-2"
        assert tokens()["token_url"] == FIRST
        assert abs(tokens()["expires_at"] - time.time() - 86_400) < 60
        assert signing.oura.asked("/daily_readiness")
        assert signing.run().code == 0

    def test_the_tokens_are_for_their_owner_only(self, log_in: Callable[..., Ended]) -> None:
        log_in("the-code")
        assert stat.S_IMODE(FILE.stat().st_mode) == 0o600
        assert stat.S_IMODE(FILE.parent.stat().st_mode) == 0o700
        assert {path.name for path in FILE.parent.iterdir()} == {FILE.name, f"{FILE.name}.lock"}

    @pytest.mark.parametrize("status", [400, 401])
    def test_an_application_of_the_old_portal_is_served_at_the_old_address(
        self, log_in: Callable[..., Ended], signing: World, status: int
    ) -> None:
        signing.oura.fail("oauth-token", httpx.Response(status))
        assert log_in("the-code").code == 0
        assert tokens()["token_url"] == OLD

    def test_a_token_address_that_is_set_is_the_only_one(
        self, log_in: Callable[..., Ended], signing: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OURA_TOKEN_URL", FIRST)
        signing.oura.fail("oauth-token", httpx.Response(400))
        assert log_in("the-code").code == 1
        assert signing.oura.asked("/oauth/token") == []

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            ("http://localhost:8080/callback/?code=the-code&state=wrong", "not the end"),
            ("http://localhost:8080/callback/?code=the-code", "not the end"),
            ("code=the-code", "not the end"),
            ("state=STATE", "no code"),
            ("https://elsewhere.example/", "not the end"),
            ("http://localhost:8080/callback/", "not the end"),
            ("http://localhost/?state=STATE&code=", "no code"),
            ("http://localhost/?state=STATE", "no code"),
            ("localhost:8080/callback/", "not the end"),
            ("two words", "no code"),
            (
                "http://localhost/?error=access_denied&error_description=You+said+no&state=STATE",
                "access_denied You said no",
            ),
            ("", "nothing was pasted"),
            ("\n", "nothing was pasted"),
        ],
    )
    def test_anything_else_is_refused(
        self, log_in: Callable[..., Ended], signing: World, answer: str, words: str
    ) -> None:
        ended = log_in(answer)
        assert ended.code == 1
        (problem,) = ended.problems
        assert words in problem
        assert signing.oura.requests == []
        assert not FILE.exists()

    def test_without_a_stdin_nothing_is_pasted(
        self, signing: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        assert signing.run("--login", day=None).code == 1

    def test_ctrl_c_at_the_prompt_ends_it(
        self, signing: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Interrupted:
            def readline(self) -> str:
                raise KeyboardInterrupt

        monkeypatch.setattr(sys, "stdin", Interrupted())
        ended = signing.run("--login", day=None)
        assert (ended.code, ended.err) == (130, "")

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(400, json={"error": "invalid_grant"}),
            httpx.Response(403),
            httpx.Response(200, json={"access_token": "a"}),
            httpx.Response(200, json={"access_token": "two words", "refresh_token": "r"}),
            httpx.Response(200, text="<html>"),
        ],
    )
    def test_a_failed_exchange_leaves_an_older_sign_in_as_it_was(
        self, log_in: Callable[..., Ended], signing: World, answer: httpx.Response
    ) -> None:
        old = write_tokens()
        signing.oura.fail("oauth-token", answer)
        signing.oura.fail("/oauth/token", httpx.Response(401))
        ended = log_in("the-code")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert tokens() == old

    def test_a_code_is_not_sent_again_after_a_lost_answer_for_ever(
        self, log_in: Callable[..., Ended], signing: World
    ) -> None:
        signing.oura.fail("oauth-token", httpx.ReadTimeout("slow"), times=9)
        assert log_in("the-code").code == 1
        assert len(signing.oura.requests) <= 2

    def test_a_sign_in_that_does_not_read_is_told(
        self, log_in: Callable[..., Ended], signing: World
    ) -> None:
        signing.oura.fail("/daily_readiness", httpx.Response(403))
        ended = log_in("the-code")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "you are signed in, but" in ended.err
        assert "permission" in ended.err

    def test_a_token_that_will_win_is_warned_of(
        self, log_in: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OURA_TOKEN", TOKEN)
        ended = log_in("the-code", "--quiet")
        assert ended.code == 0
        assert "OURA_TOKEN" in ended.err

    @pytest.mark.parametrize("name", ["OURA_CLIENT_ID", "OURA_CLIENT_SECRET"])
    def test_id_and_secret_are_needed(
        self, signing: World, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(name)
        assert name in signing.run("--login", day=None).err
        write_tokens()
        ended = signing.run()
        assert (ended.code, len(ended.problems)) == (2, 1)
        assert name in ended.err

    def test_no_petals_key_is_needed(
        self, log_in: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PETALS_API_KEY")
        assert log_in("the-code").code == 0

    def test_the_run_is_counted_from_the_paste(
        self, signing: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Slow:
            def readline(self) -> str:
                clock.ahead += 1000
                return "the-code"

        monkeypatch.setattr(sys, "stdin", Slow())
        assert signing.run("--login", day=None).code == 0


class TestEveryMorning:
    def test_a_token_is_used_while_it_is_good(self, signed_in: World) -> None:
        assert signed_in.run().code == 0
        assert signed_in.oura.asked("oauth-token") == []

    @pytest.mark.parametrize("expires_in", [59, 0, -86_400])
    def test_a_token_is_renewed_a_minute_before_it_expires(
        self, signed_in: World, expires_in: float
    ) -> None:
        write_tokens(expires_in=expires_in)
        ended = signed_in.run()
        assert (ended.code, ended.err) == (0, "")
        (asked,) = signed_in.oura.asked("oauth-token")
        assert dict(httpx.QueryParams(asked.content.decode())) == {
            "grant_type": "refresh_token",
            "refresh_token": "refresh-1",
            "client_id": "the-client",
            "client_secret": "s3cret",
        }
        assert tokens()["refresh_token"] == "refresh-2"
        assert stat.S_IMODE(FILE.stat().st_mode) == 0o600
        assert signed_in.run().code == 0

    def test_a_refused_token_is_renewed_once_and_the_request_repeated(
        self, signed_in: World
    ) -> None:
        signed_in.oura.tokens = {"another"}
        ended = signed_in.run()
        assert (ended.code, ended.err) == (0, "")
        assert len(signed_in.oura.asked("oauth-token")) == 1
        assert tokens()["access_token"] == "access-2"

    def test_a_renewed_token_that_is_refused_too_is_not_renewed_again(
        self, signed_in: World
    ) -> None:
        for path in ("/daily_readiness", "/daily_sleep", "/sleep"):
            signed_in.oura.fail(path, httpx.Response(401), times=5)
        ended = signed_in.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "sign in again with --login" in ended.err
        assert len(signed_in.oura.asked("oauth-token")) <= 3  # a collection each

    def test_a_refusal_does_not_name_a_token_that_nobody_has(self, signed_in: World) -> None:
        signed_in.oura.fail("/daily_readiness", httpx.Response(400))
        ended = signed_in.run()
        assert "check OURA_CLIENT_ID, " in ended.err
        assert "OURA_TOKEN " not in ended.err

    def test_an_answer_without_a_refresh_token_keeps_the_old_one(self, signed_in: World) -> None:
        write_tokens(expires_in=0)
        signed_in.oura.tokens = {"fresh"}
        signed_in.oura.fail("oauth-token", httpx.Response(200, json={"access_token": "fresh"}))
        assert signed_in.run().code == 0
        assert tokens()["refresh_token"] == "refresh-1"

    @pytest.mark.parametrize("lifetime", [None, "soon", -5, 0, float("inf"), float("nan"), [1]])
    def test_a_lifetime_that_cannot_be_is_taken_for_a_day(
        self, signed_in: World, lifetime: object
    ) -> None:
        write_tokens(expires_in=0)
        signed_in.oura.tokens = {"fresh"}
        body = json.dumps({"access_token": "fresh", "expires_in": lifetime})
        signed_in.oura.fail("oauth-token", httpx.Response(200, text=body))
        assert signed_in.run().code == 0
        assert abs(tokens()["expires_at"] - time.time() - 86_400) < 60

    @pytest.mark.parametrize("status", [400, 401])
    def test_a_refused_renewal_says_to_sign_in_again(self, signed_in: World, status: int) -> None:
        old = write_tokens(expires_in=0)
        signed_in.oura.fail("oauth-token", httpx.Response(status, json={"error": "invalid_grant"}))
        ended = signed_in.run()
        assert len(signed_in.oura.asked("oauth-token")) == 1
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert "sign in again with --login" in ended.err
        assert tokens() == old
        signed_in.oura.refresh_token = "another"
        (problem,) = signed_in.run("--days", "7").problems
        assert "0 of 7 days are in" in problem

    @pytest.mark.parametrize("fault", [httpx.ReadTimeout("slow"), httpx.Response(500)])
    def test_after_a_lost_answer_there_is_one_more_try(
        self, signed_in: World, fault: object
    ) -> None:
        write_tokens(expires_in=0)
        signed_in.oura.fail("oauth-token", fault)
        assert signed_in.run().code == 0

    def test_a_fault_of_the_network_is_no_reason_to_sign_in_again(self, signed_in: World) -> None:
        old = write_tokens(expires_in=0)
        signed_in.oura.fail("oauth-token", httpx.ConnectError("refused"), times=99)
        ended = signed_in.run()
        assert ended.code == 1
        assert "--login" not in ended.err
        assert len(signed_in.oura.asked("oauth-token")) == 4
        assert tokens() == old

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{",
            "[]",
            "[" * 100_000,
            '{"access_token": "a", "refresh_token": "b"}',
            '{"access_token": "a\\nb", "refresh_token": "b", "expires_at": 1, "token_url": "X"}',
            '{"access_token": "a", "refresh_token": 5, "expires_at": 1, "token_url": "X"}',
            '{"access_token": "a", "refresh_token": "b", "expires_at": "1", "token_url": "X"}',
            '{"access_token": "a", "refresh_token": "b", "expires_at": 1, "token_url": "http://x"}',
        ],
    )
    def test_a_broken_file_says_to_sign_in_again_and_stays(
        self, signed_in: World, content: str
    ) -> None:
        content = content.replace("X", FIRST)
        FILE.write_text(content)
        ended = signed_in.run()
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert "sign in again with --login" in ended.err
        assert FILE.read_text() == content
        assert signed_in.oura.requests == []

    @pytest.mark.parametrize("setting", ["", OLD])
    def test_the_kept_token_address_is_used_unless_one_is_set(
        self, signed_in: World, monkeypatch: pytest.MonkeyPatch, setting: str
    ) -> None:
        monkeypatch.setenv("OURA_TOKEN_URL", setting)
        write_tokens(expires_in=0)
        assert signed_in.run().code == 0
        (asked,) = [one for one in signed_in.oura.requests if one.method == "POST"]
        assert str(asked.url) == (setting or FIRST)

    def test_a_personal_token_still_wins(
        self, signed_in: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OURA_TOKEN", TOKEN)
        monkeypatch.delenv("OURA_CLIENT_ID")
        signed_in.oura.tokens = {TOKEN}
        assert signed_in.run().code == 0

    def test_another_file_can_be_named(
        self, signed_in: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        write_tokens(expires_in=0)
        elsewhere = FILE.rename(tmp_path / "tokens.json")
        monkeypatch.setenv("OURA_TOKEN_FILE", str(elsewhere))
        assert signed_in.run().code == 0
        assert "refresh-2" in elsewhere.read_text()

    def test_a_full_disk_is_found_out_before_the_token_is_spent(
        self, signed_in: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = write_tokens(expires_in=0)

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        ended = signed_in.run()
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert "No space left on device" in ended.err
        assert signed_in.oura.asked("oauth-token") == []
        assert tokens() == old

    def test_it_is_not_begun_with_little_time_left(
        self, signed_in: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_tokens(expires_in=0)
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 29.0)
        ended = signed_in.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert signed_in.oura.requests == []

    def test_a_lock_that_is_never_given_back_is_not_waited_for_for_ever(
        self, signed_in: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fcntl

        write_tokens(expires_in=0)
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 30.1)
        monkeypatch.setattr(oura_to_petals, "sleep", time.sleep)
        with open(f"{FILE}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ended = signed_in.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "another run" in ended.err

    def test_the_hard_stop_does_not_cut_a_renewal(self, signed_in: World, clock: Clock) -> None:
        write_tokens(expires_in=0)
        signed_in.oura.fail("oauth-token", clock.to_the_end)
        ended = signed_in.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "given up" in ended.err
        assert tokens()["refresh_token"] == "refresh-2"

    def test_a_token_address_that_never_answers_is_given_up_in_time(
        self, signed_in: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = write_tokens(expires_in=0)
        monkeypatch.setattr(oura_to_petals, "RUN_SECONDS", 2.2)
        monkeypatch.setattr(oura_to_petals, "RENEWAL_SECONDS", 1.0)
        signed_in.oura.fail("oauth-token", hang)
        ended = signed_in.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert tokens() == old

    @pytest.mark.parametrize("token", ['a"b\\c', "a&b<c>d+e"])
    @pytest.mark.parametrize("form", ["{}", '{{"error": ["{}"]}}', "<p>{}</p>"])
    def test_a_token_is_masked_in_each_spelling(
        self, world: World, monkeypatch: pytest.MonkeyPatch, token: str, form: str
    ) -> None:
        monkeypatch.setenv("OURA_TOKEN", token)
        for spelled in (token, json.dumps(token)[1:-1], html.escape(token)):
            for path in ("/daily_readiness", "/daily_sleep", "/sleep"):
                world.oura.fail(path, httpx.Response(400, text=form.format(spelled)))
            ended = world.run()
            assert "***" in ended.err
            assert token not in ended.err
            assert spelled not in ended.err

    def test_tokens_that_a_server_echoes_are_masked(self, signed_in: World) -> None:
        echo = {"message": "bad access-1 and refresh-1 and s3cret"}
        for path in ("/daily_readiness", "/daily_sleep", "/sleep"):
            signed_in.oura.fail(path, httpx.Response(400, json=echo))
        assert "bad *** and *** and ***;" in signed_in.run().err

    def test_without_fcntl_threads_still_spend_a_token_once(
        self, signed_in: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(oura_to_petals, "fcntl", None)
        write_tokens(expires_in=0)
        assert signed_in.run().code == 0
        assert len(signed_in.oura.asked("oauth-token")) == 1


class TestRealProcesses:
    """What only processes, signals and files can show."""

    @pytest.fixture
    def served(self) -> Iterator[Oura]:
        oura = Oura()
        oura.tokens = {"access-1"}
        with local_server(oura, Petals()) as oura.host:
            yield oura

    def start(self, oura: Oura) -> subprocess.Popen:
        env = {
            "HOME": str(Path.cwd()),
            "PATH": os.environ["PATH"],
            "OURA_CLIENT_ID": "the-client",
            "OURA_CLIENT_SECRET": "s3cret",
            "OURA_HOST": oura.host,
            "PETALS_HOST": oura.host,
            "PETALS_API_KEY": KEY,
        }
        return subprocess.Popen(
            [sys.executable, SCRIPT, "--date", "2026-06-10"],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def test_runs_at_once_spend_the_refresh_token_once(self, served: Oura) -> None:
        write_tokens(expires_in=0, token_url=f"{served.host}/oauth-token")
        for run in [self.start(served) for _ in range(3)]:
            err = run.communicate(timeout=20)[1]
            assert (run.returncode, err) == (0, "")
        assert len(served.asked("oauth-token")) == 1

    def test_ctrl_c_does_not_cut_a_renewal(self, served: Oura) -> None:
        write_tokens(expires_in=0, token_url=f"{served.host}/oauth-token")
        asked, answer = threading.Event(), threading.Event()
        served.fail("oauth-token", lambda _: asked.set() or (answer.wait(10) and None))
        run = self.start(served)
        assert asked.wait(10)
        run.send_signal(signal.SIGINT)
        time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        answer.set()
        _, err = run.communicate(timeout=10)
        assert run.returncode == 130
        assert "Traceback" not in err
        assert tokens()["refresh_token"] == "refresh-2"

    @pytest.mark.parametrize("pause", [0.15, 0.25])
    def test_killed_at_any_point_the_file_is_whole(self, served: Oura, pause: float) -> None:
        write_tokens(expires_in=0, token_url=f"{served.host}/oauth-token")
        run = self.start(served)
        time.sleep(pause)
        run.kill()
        run.communicate()
        assert tokens()["refresh_token"] in ("refresh-1", "refresh-2")

    def test_killed_while_the_answer_is_under_way_the_old_file_stays(self, served: Oura) -> None:
        old = write_tokens(expires_in=0, token_url=f"{served.host}/oauth-token")
        asked, answer = threading.Event(), threading.Event()
        served.fail("oauth-token", lambda _: asked.set() or (answer.wait(10) and BROKEN))
        run = self.start(served)
        assert asked.wait(10)
        run.kill()
        run.communicate()
        answer.set()
        assert tokens() == old
        after = self.start(served)
        assert after.communicate(timeout=10)[1] == ""
        assert tokens()["refresh_token"] == "refresh-2"
        assert not Path(f"{FILE}.new").exists()
