"""Several days in one run: missed mornings and years of history."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import sys
import threading
import time
from datetime import date, timedelta
from pathlib import Path

import httpx
import pytest
from conftest import Clock, Ended, World
from services import DAY, Petals, hang, readiness

import oura_to_petals

BULK = "/observations/bulk"
SINGLE = "/metrics/observations"


def before(days: int) -> str:
    return str(DAY - timedelta(days=days))


@pytest.fixture
def week(world: World) -> World:
    world.oura.fill(7)
    return world


def pushed(world: World) -> list[str]:
    return [body["sourceExternalId"].removeprefix("oura_") for body in world.petals.sent(BULK)]


def make_malformed(world: World, *days: int) -> None:
    for n in days:
        world.oura.collections["daily_readiness"][n] = readiness(before(n), score="x")


def test_seven_days_are_sent_newest_first(week: World) -> None:
    ended = week.run("--days", "7")
    assert pushed(week) == [before(n) for n in range(7)]
    text = "Pushed 21 observations for 7 of 7 days, 2026-06-04 to 2026-06-10.\n"
    assert ended == Ended(0, text, "")
    assert (len(week.oura.requests), len(week.petals.asked("/list"))) == (3, 1)


@pytest.mark.parametrize(
    ("days", "line"),
    [
        ("1", "Pushed 3 observations for 2026-06-10. Slept 7h12, readiness 82, HRV 54ms.\n"),
        ("2", "Pushed 6 observations for 2 of 2 days, 2026-06-09 to 2026-06-10.\n"),
    ],
)
def test_one_day_has_a_sentence_and_more_have_a_summary(week: World, days: str, line: str) -> None:
    assert week.run("--days", days).out == line


@pytest.mark.parametrize(
    ("empty", "summary"),
    [
        ([3], "18 observations for 6 of 7 days, 2026-06-04 to 2026-06-10; 1 day without data"),
        ([0, 6], "15 observations for 5 of 7 days, 2026-06-05 to 2026-06-09; 2 days without data"),
        ([0, 1, 2, 4, 5, 6], "3 observations for 1 of 7 days, 2026-06-07; 6 days without data"),
    ],
)
def test_a_day_without_data_is_no_failure(week: World, empty: list[int], summary: str) -> None:
    for documents in week.oura.collections.values():
        documents[:] = [one for n, one in enumerate(documents) if n not in empty]
    assert week.run("--days", "7") == Ended(0, f"Pushed {summary}.\n", "")
    assert pushed(week) == [before(n) for n in range(7) if n not in empty]


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_several_days_all_without_data_are_reported(world: World, quiet: list[str]) -> None:
    ended = world.run("--days", "3", *quiet, day="2026-01-03")
    assert (ended.code, len(ended.problems)) == (0, 1)
    assert "no Oura data for 2026-01-01 to 2026-01-03: has the Oura app been opened?" in ended.err
    assert world.petals.asked(BULK) == []


def test_quiet_and_verbose(week: World) -> None:
    assert week.run("--days", "7", "-q").out == ""
    del week.oura.collections["sleep"][3], week.oura.collections["daily_readiness"][3]
    lines = week.run("--days", "7", "-v").out.splitlines()
    assert len(lines) == 8
    assert "No Oura data for 2026-06-07 — nothing pushed." in lines
    assert "Pushed 3 observations for 2026-06-04. Slept 7h12, readiness 82, HRV 54ms." in lines


def test_a_dry_run_prints_one_array_newest_day_first(week: World) -> None:
    ended = week.run("--days", "7", "--dry-run")
    rows = json.loads(ended.out)
    assert [row["occurredAt"][:10] for row in rows[::3]] == [before(n) for n in range(7)]
    assert len(rows) == 21
    assert week.petals.requests == []
    week.oura.tokens = set()
    ended = week.run("--days", "7", "--dry-run")
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert "days are in" not in ended.err


@pytest.mark.parametrize("days", ["0", "-1", "3661", "1.5", ""])
def test_another_number_of_days_is_exit_2(world: World, days: str) -> None:
    assert world.run(f"--days={days}").code == 2


def test_no_day_before_2015_is_asked_for(world: World) -> None:
    world.run("--days", "3660", day="2015-01-03")
    assert {request.url.params["start_date"] for request in world.oura.requests} == {"2014-12-31"}


def test_a_long_history_is_read_a_year_at_a_time(world: World) -> None:
    world.oura.fill(370)
    for documents in world.oura.collections.values():
        del documents[2:364]
    ended = world.run("--days", "370")
    asked = [request.url.params for request in world.oura.requests]
    spans = {(params["start_date"], params["end_date"]) for params in asked}
    assert (len(asked), len(spans)) == (6, 2)
    for start, end in spans:
        assert date.fromisoformat(end) - date.fromisoformat(start) <= timedelta(days=367)
    assert ended.code == 0
    assert pushed(world) == [before(n) for n in (0, 1, *range(364, 370))]


class TestDaysFailOnTheirOwn:
    def test_a_malformed_document_fails_its_day(self, week: World) -> None:
        make_malformed(week, 2)
        ended = week.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert ended.err.startswith("oura_to_petals: 2026-06-08: Oura daily_readiness score")
        assert pushed(week) == [before(n) for n in range(7) if n != 2]
        assert ended.out.startswith("Pushed 18 observations for 6 of 7 days,")

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(400, json={"message": "no"}),
            httpx.Response(200, json={"inserted": 2, "errors": [{"index": 0, "message": "no"}]}),
        ],
        ids=["the day is refused", "a row is refused"],
    )
    def test_a_refused_day_fails_alone(self, week: World, answer: httpx.Response) -> None:
        week.petals.fail(BULK, answer)
        ended = week.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert ended.err.startswith("oura_to_petals: 2026-06-10: Petals")
        assert ended.out.startswith("Pushed 18 observations for 6 of 7 days,")

    def test_a_failed_read_fails_the_days_that_it_is_for(self, world: World) -> None:
        world.oura.fill(3)

        def second_read(request: httpx.Request) -> httpx.Response | None:
            recent = request.url.params["end_date"] > "2026"
            return None if recent else httpx.Response(400)

        world.oura.fail("/daily_readiness", second_read, times=2)
        ended = world.run("--days", "370")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert f": {before(369)} to {before(366)}: Oura daily_readiness answered 400" in ended.err
        assert pushed(world) == [before(n) for n in range(3)]

    @pytest.mark.parametrize(
        ("days", "text"),
        [
            ([0, 1, 2], "2026-06-08 to 2026-06-10"),
            ([9, 3, 4, 5, 6, 7], "2026-06-01, 2026-06-03 to 2026-06-07"),
            (range(40), "2026-05-02 to 2026-06-10"),
        ],
    )
    def test_days_that_failed_for_the_same_reason_are_one_line(
        self, world: World, days: list[int], text: str
    ) -> None:
        world.oura.fill(40)
        make_malformed(world, *days)
        (problem,) = world.run("--days", "40").problems
        assert problem.startswith(f"oura_to_petals: {text}: Oura daily_readiness score is not")


class TestUnknownMetrics:
    def test_each_is_proposed_once_before_the_first_day_is_sent(self, week: World) -> None:
        week.use(Petals(known=()))
        week.oura.collections["daily_readiness"][0]["score"] = None
        assert week.run("--days", "7").code == 0
        slugs = [one["metric"]["slug"] for one in week.petals.sent(SINGLE)]
        assert sorted(slugs) == ["oura_hrv", "oura_readiness", "oura_sleep_minutes"]
        paths = [request.url.path.rpartition("/metrics/")[2] for request in week.petals.requests]
        assert paths[:6] == ["list", *["observations"] * 3, "list", "observations/bulk"]
        assert set(week.petals.stored) == {before(n) for n in range(7)}
        assert len(week.petals.rows) == 20

    def test_one_that_is_refused_is_left_out_of_all_days(self, week: World) -> None:
        week.use(Petals(known=("oura_readiness", "oura_sleep_minutes")))
        week.petals.fail(SINGLE, httpx.Response(400))
        ended = week.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert ended.out.startswith("Pushed 14 observations for 7 of 7 days")


class TestARunThatStops:
    def command(self, ended: Ended) -> list[str]:
        """Return the command of the last line of stderr, which sends the other days."""
        return shlex.split(ended.problems[-1].partition("go on with: ")[2])

    @pytest.mark.parametrize("headers", [{"Retry-After": "3000"}, {}])
    def test_prints_the_command_that_sends_the_other_days(
        self, world: World, headers: dict
    ) -> None:
        world.oura.fill(30)
        world.petals.fail(BULK, *[lambda _: None] * 12)
        world.petals.fail(BULK, httpx.Response(429, headers=headers), times=4)
        ended = world.run("--days", "30")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "12 of 30 days are in, go on with: " in ended.err
        python, script, *options = self.command(ended)
        assert (python, script) == (sys.executable, str(oura_to_petals.SCRIPT))
        assert options == ["--date", before(12), "--days", "18"]
        world.petals.faults.clear()
        sent = len(pushed(world))
        assert world.run(*options, day=None).code == 0
        assert pushed(world)[sent:] == [before(n) for n in range(12, 30)]
        assert len(world.petals.stored) == 30

    @pytest.mark.parametrize("options", [["--env-file", "my keys"], []], ids=["named", "found"])
    def test_prints_the_env_file_that_was_used(
        self, week: World, empty_home: Path, options: list[str]
    ) -> None:
        path = empty_home / (options[-1] if options else ".env")
        path.write_text("")
        path.chmod(0o600)
        week.petals.fail(BULK, httpx.Response(403))
        ended = week.run("--days", "7", *options)
        last = ["--date", before(0), "--days", "7", "--env-file", str(path)]
        assert self.command(ended)[2:] == last

    @pytest.mark.parametrize("status", [401, 403, 429])
    @pytest.mark.parametrize("path", [BULK, "/list", SINGLE])
    def test_a_refused_key_or_a_limit_ends_the_run(
        self, week: World, path: str, status: int
    ) -> None:
        if path == SINGLE:
            week.use(Petals(known=()))
        week.petals.fail(path, httpx.Response(status), times=4)
        ended = week.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert ended.out == "Pushed 0 observations for 0 of 7 days.\n"
        assert f"Petals {path.rpartition('metrics')[2].strip('/')} answered {status}" in ended.err
        assert "0 of 7 days are in" in ended.err
        assert self.command(ended)[2:] == ["--date", before(0), "--days", "7"]
        assert len(week.petals.asked(path)) == (4 if status == 429 else 1)

    def test_a_refused_token_ends_the_reading(self, world: World) -> None:
        world.oura.fill(10)

        def second_read(request: httpx.Request) -> httpx.Response | None:
            return None if request.url.params["end_date"] > "2026" else httpx.Response(401)

        for path in ("/daily_readiness", "/daily_sleep", "/sleep"):
            world.oura.fail(path, second_read, times=9)
        ended = world.run("--days", "1000")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "10 of 1000 days are in" in ended.err
        assert self.command(ended)[2:] == ["--date", before(10), "--days", "990"]
        assert len({request.url.params["end_date"] for request in world.oura.requests}) == 2

    @pytest.mark.parametrize("statuses", [[400] * 5, [400, 413, 400, 422, 404]])
    def test_five_failed_days_in_a_row_end_the_run(self, world: World, statuses: list[int]) -> None:
        world.oura.fill(20)
        world.petals.fail(BULK, *[lambda _: None] * 3, *map(httpx.Response, statuses))
        ended = world.run("--days", "20")
        *reasons, last = ended.problems
        assert (ended.code, len(reasons)) == (1, len(set(statuses)))
        failed = set(re.findall(r"\d{4}-\d\d-\d\d", "".join(reasons)))
        assert failed <= {before(n) for n in range(3, 8)}
        assert "stopped after five failed days in a row; 3 of 20 days are in" in last
        assert self.command(ended)[2:] == ["--date", before(3), "--days", "17"]
        assert len(pushed(world)) == 8

    def test_a_reason_that_differs_every_day_is_a_line_a_day(self, world: World) -> None:
        world.oura.fill(20)

        def refuse(request: httpx.Request) -> httpx.Response:
            day = json.loads(request.content)["sourceExternalId"]
            return httpx.Response(400, json={"message": f"bad {day}, request 7f{day[-2:]}"})

        world.petals.fail(BULK, refuse, times=20)
        ended = world.run("--days", "20")
        assert (ended.code, len(ended.problems), len(pushed(world))) == (1, 6, 5)

    def test_a_day_that_is_sent_or_has_no_data_starts_the_count_again(self, world: World) -> None:
        world.oura.fill(14)
        for documents in world.oura.collections.values():
            del documents[4]
        refused = [httpx.Response(400)] * 4
        world.petals.fail(BULK, *refused, *refused, lambda _: None, *refused)
        ended = world.run("--days", "14")
        assert (ended.code, len(pushed(world))) == (1, 13)
        assert "stopped" not in ended.err
        assert "for 1 of 14 days, 2026-06-01; 1 day without data." in ended.out

    def test_the_time_limit_names_the_request_and_gives_the_command(
        self, week: World, clock: Clock
    ) -> None:
        week.petals.fail(BULK, *[lambda _: None] * 2, clock.never)
        ended = week.run("--days", "7")
        assert ended.code == 1
        assert "no answer from Petals observations/bulk within 127 seconds; 2 of 7" in ended.err
        assert self.command(ended)[2:] == ["--date", before(2), "--days", "5"]

    def test_ctrl_c_gives_the_command(self, week: World) -> None:
        def interrupt(_: httpx.Request) -> None:
            # sent to this thread, so that it does not wake the main thread from its wait
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            hang()

        week.petals.fail(BULK, *[lambda _: None] * 2, interrupt)
        started = time.monotonic()
        ended = week.run("--days", "7")
        assert time.monotonic() - started < 60
        assert (ended.code, len(ended.problems)) == (130, 1)
        assert "interrupted; 2 of 7 days are in, go on with: " in ended.err
        assert self.command(ended)[2:] == ["--date", before(2), "--days", "5"]

    def test_after_the_last_day_there_is_no_command(
        self, week: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Terminal(io.StringIO):
            def write(self, text: str) -> int:
                if f"for {before(1)}" in text:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                    hang()
                return len(text)

        monkeypatch.setattr(sys, "stdout", Terminal())
        ended = week.run("--days", "2", "-v")
        assert ended.code == 130
        assert ended.problems[-1] == "oura_to_petals: interrupted; 2 of 2 days are in"


def test_progress_is_shown_on_a_terminal_and_removed_at_the_end(
    week: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ended = week.run("--days", "7")
    assert "\r\x1b[K6 of 7 days, 2026-06-04" in ended.err
    assert ended.err.endswith("\r\x1b[K")
    assert "\n" not in ended.err
    assert week.run("--days", "7", "-q").err == ""
