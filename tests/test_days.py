"""Missed mornings and years of history."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import threading
import time
from datetime import date, timedelta

import httpx
import pytest
from conftest import Clock, World
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


def test_a_week_heals_the_mornings_that_were_missed(week: World) -> None:
    ended = week.run("--days", "7")
    assert pushed(week) == [before(n) for n in range(7)]
    assert ended.out == "Pushed 21 observations for 7 of 7 days, 2026-06-04 to 2026-06-10.\n"
    assert (ended.code, ended.err) == (0, "")
    assert (len(week.oura.requests), len(week.petals.asked("/list"))) == (3, 1)


def test_two_days_are_one_line_already(week: World) -> None:
    ended = week.run("--days", "2")
    assert ended.out == "Pushed 6 observations for 2 of 2 days, 2026-06-09 to 2026-06-10.\n"


def test_one_day_is_told_as_before(week: World) -> None:
    assert week.run("--days", "1").out.startswith("Pushed 3 observations for 2026-06-10. Slept")


def test_a_day_without_data_is_no_failure_and_is_left_alone(week: World) -> None:
    for documents in week.oura.collections.values():
        del documents[3]
    ended = week.run("--days", "7")
    assert ended.out == (
        "Pushed 18 observations for 6 of 7 days, 2026-06-04 to 2026-06-10; 1 day without data.\n"
    )
    assert (ended.code, ended.err) == (0, "")
    assert before(3) not in pushed(week)


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_no_data_at_all_is_told_and_no_failure(world: World, quiet: list[str]) -> None:
    ended = world.run("--days", "3", *quiet, day="2026-01-03")
    assert (ended.code, len(ended.problems)) == (0, 1)
    assert "Oura app" in ended.err
    assert world.petals.asked(BULK) == []


def test_quiet_and_verbose(week: World) -> None:
    assert week.run("--days", "7", "-q").out == ""
    del week.oura.collections["sleep"][3], week.oura.collections["daily_readiness"][3]
    lines = week.run("--days", "7", "-v").out.splitlines()
    assert len(lines) == 8
    assert "No Oura data for 2026-06-07 — nothing pushed." in lines
    assert "Pushed 3 observations for 2026-06-04. Slept 7h12, readiness 82, HRV 54ms." in lines


def test_a_dry_run_is_one_flat_array_newest_day_first(week: World) -> None:
    ended = week.run("--days", "7", "--dry-run")
    rows = json.loads(ended.out)
    assert [row["occurredAt"][:10] for row in rows[::3]] == [before(n) for n in range(7)]
    assert len(rows) == 21
    assert week.petals.requests == []
    week.oura.tokens = set()
    ended = week.run("--days", "7", "--dry-run")
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert "days are in" not in ended.err


@pytest.mark.parametrize("days", ["0", "-1", "3661", "1.5", "seven", "", " 7", "7_0", "\u0667"])
def test_another_number_of_days_is_exit_2(world: World, days: str) -> None:
    assert world.run(f"--days={days}").code == 2


def test_nothing_before_2015_is_asked_for(world: World) -> None:
    world.run("--days", "3660", day="2015-01-03")
    assert {request.url.params["start_date"] for request in world.oura.requests} == {"2014-12-31"}


def test_a_long_history_is_read_in_spans_of_a_year(world: World) -> None:
    world.oura.fill(400)
    ended = world.run("--days", "400")
    assert len(world.oura.requests) == 6
    spans = sorted(
        {(r.url.params["start_date"], r.url.params["end_date"]) for r in world.oura.requests}
    )
    for start, end in spans:
        assert date.fromisoformat(end) - date.fromisoformat(start) <= timedelta(days=367)
    assert ended.code == 0
    assert pushed(world) == [before(n) for n in range(400)]


class TestDaysAreIndependent:
    def test_a_malformed_document_costs_its_own_day(self, week: World) -> None:
        week.oura.collections["daily_readiness"][2] = readiness(before(2), score="x")
        ended = week.run("--days", "7")
        assert ended.code == 1
        (problem,) = ended.problems
        assert problem.startswith("oura_to_petals: 2026-06-08: Oura daily_readiness score")
        assert pushed(week) == [before(n) for n in range(7) if n != 2]
        assert ended.out.startswith("Pushed 18 observations for 6 of 7 days,")

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(400, json={"message": "no"}),
            httpx.Response(200, json={"inserted": 2, "errors": [{"index": 0, "message": "no"}]}),
        ],
    )
    def test_a_failed_push_or_a_refused_row_costs_its_own_day(
        self, week: World, answer: httpx.Response
    ) -> None:
        week.petals.fail(BULK, answer)
        ended = week.run("--days", "7")
        assert ended.code == 1
        (problem,) = ended.problems
        assert problem.startswith("oura_to_petals: 2026-06-10: Petals")
        assert ended.out.startswith("Pushed 18 observations for 6 of 7 days,")

    def test_a_failed_read_costs_the_days_of_its_span(self, world: World) -> None:
        world.oura.fill(370)

        def second_span(request: httpx.Request) -> httpx.Response | None:
            late = request.url.params["end_date"] > "2026"
            return None if late else httpx.Response(400)

        world.oura.fail("/daily_readiness", second_span, times=2)
        ended = world.run("--days", "370")
        assert ended.code == 1
        (problem,) = ended.problems
        for n in range(366, 370):
            assert before(n) in problem
        assert len(pushed(world)) == 366

    def test_each_failed_day_is_told_by_its_date(self, world: World) -> None:
        world.oura.fill(40)
        world.oura.collections["daily_readiness"][1:] = [
            readiness(before(n), score="x") for n in range(1, 40)
        ]
        (problem,) = world.run("--days", "40").problems
        for n in range(1, 40):
            assert before(n) in problem

    def test_very_many_days_that_all_fail_are_told_by_their_ends(self, world: World) -> None:
        world.oura.fill(100)
        world.oura.fail("/daily_sleep", httpx.Response(400))
        (problem,) = world.run("--days", "100").problems
        assert f"all days, {before(99)} to {before(0)}: " in problem
        assert len(problem) < 500


class TestMetricsThatThePetalsLacks:
    def test_each_is_defined_once_by_its_newest_value(self, week: World) -> None:
        week.use(Petals(known=()))
        week.oura.collections["daily_readiness"][0]["score"] = None
        assert week.run("--days", "7").code == 0
        defined = {
            one["metric"]["slug"]: one["occurredAt"][:10] for one in week.petals.sent(SINGLE)
        }
        assert defined == {
            "oura_readiness": before(1),
            "oura_hrv": before(0),
            "oura_sleep_minutes": before(0),
        }
        assert len(week.petals.asked(SINGLE)) == 3
        first_bulk = week.petals.requests.index(week.petals.asked(BULK)[0])
        assert first_bulk > week.petals.requests.index(week.petals.asked(SINGLE)[-1])
        assert sum(map(len, week.petals.stored.values())) == 20

    def test_one_that_is_refused_drops_out_of_the_run(self, week: World) -> None:
        week.use(Petals(known=("oura_readiness", "oura_sleep_minutes")))
        week.petals.fail(SINGLE, httpx.Response(400))
        ended = week.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert ended.out.startswith("Pushed 14 observations for 7 of 7 days")


class TestALongHistoryInSeveralSittings:
    def goes_on(self, problem: str) -> list[str]:
        return shlex.split(re.search(r"--date .*", problem)[0])

    @pytest.mark.parametrize(
        "limit", [httpx.Response(429, headers={"Retry-After": "3000"}), httpx.Response(429)]
    )
    def test_past_the_limit_the_run_ends_with_the_command_that_goes_on(
        self, world: World, limit: httpx.Response
    ) -> None:
        world.oura.fill(30)
        for _ in range(12):
            world.petals.fail(BULK, lambda _: None)
        world.petals.fail(BULK, limit, times=4)
        ended = world.run("--days", "30")
        assert ended.code == 1
        (problem,) = ended.problems
        assert "12 of 30 days are in" in problem
        options = self.goes_on(problem)
        assert options == ["--date", before(12), "--days", "18"]
        world.petals.faults.clear()
        sent = len(pushed(world))
        assert world.run(*options, day=None).code == 0
        assert pushed(world)[sent:] == [before(n) for n in range(12, 30)]
        assert len(world.petals.stored) == 30

    def test_days_without_data_are_not_begun_with(self, world: World) -> None:
        world.oura.fill(5, last=DAY - timedelta(days=2))
        world.petals.fail(BULK, httpx.Response(401))
        ended = world.run("--days", "7")
        assert f"--date {before(2)} --days 5" in ended.err

    def test_the_env_file_is_part_of_the_command(self, week: World, tmp_path: object) -> None:
        path = tmp_path / "my keys"
        path.write_text("")
        path.chmod(0o600)
        week.petals.fail(BULK, httpx.Response(403))
        ended = week.run("--days", "7", "--env-file", str(path))
        assert self.goes_on(ended.problems[0]) == [
            "--date", before(0), "--days", "7", "--env-file", str(path),
        ]  # fmt: skip

    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize("path", [BULK, "/list", SINGLE])
    def test_a_refused_key_ends_the_run_at_once(self, week: World, path: str, status: int) -> None:
        if path == SINGLE:
            week.use(Petals(known=()))
        week.petals.fail(path, httpx.Response(status))
        ended = week.run("--days", "7")
        assert ended.code == 1
        (problem,) = ended.problems
        assert "0 of 7 days are in" in problem
        assert f"--date {before(0)} --days 7" in problem
        assert len(week.petals.asked(path)) == 1

    def test_a_refused_token_ends_the_reading(self, world: World) -> None:
        world.oura.fill(800)

        def second_span(request: httpx.Request) -> httpx.Response | None:
            return None if request.url.params["end_date"] > "2026" else httpx.Response(401)

        for path in ("/daily_readiness", "/daily_sleep", "/sleep"):
            world.oura.fail(path, second_span, times=9)
        ended = world.run("--days", "800")
        assert ended.code == 1
        (problem,) = ended.problems
        assert "366 of 800 days are in" in problem
        assert f"--date {before(366)} --days 434" in problem
        assert len(world.oura.requests) == 6

    def test_five_days_that_fail_alike_end_the_run(self, world: World) -> None:
        world.oura.fill(20)
        for _ in range(3):
            world.petals.fail(BULK, lambda _: None)
        world.petals.fail(BULK, httpx.Response(500, text="down"), times=99)
        ended = world.run("--days", "20")
        assert ended.code == 1
        told, last = ended.problems
        for n in range(3, 8):
            assert before(n) in told
        assert "3 of 20 days are in" in last
        assert f"--date {before(3)} --days 17" in last
        assert len(world.petals.asked(BULK)) == 3 + 5 * 4

    def test_a_reason_may_name_the_day(self, world: World) -> None:
        world.oura.fill(20)

        def refuse(request: httpx.Request) -> httpx.Response:
            day = json.loads(request.content)["sourceExternalId"]
            return httpx.Response(400, json={"message": f"bad {day}, request 7f{day[-2:]}"})

        world.petals.fail(BULK, refuse, times=20)
        ended = world.run("--days", "20")
        assert (ended.code, len(ended.problems)) == (1, 6)
        assert len(world.petals.asked(BULK)) == 5

    def test_days_apart_are_not_in_a_row(self, world: World) -> None:
        world.oura.fill(8)
        for documents in world.oura.collections.values():
            del documents[3]
        world.petals.fail(BULK, httpx.Response(400), times=7)
        ended = world.run("--days", "8")
        assert len(world.petals.asked(BULK)) == 7
        assert before(3) not in ended.err

    def test_four_alike_and_another_do_not(self, world: World) -> None:
        world.oura.fill(20)
        for status in (400, 400, 400, 400, 413, 400, 400, 400, 400):
            world.petals.fail(BULK, httpx.Response(status))
        ended = world.run("--days", "20")
        assert (ended.code, len(ended.problems)) == (1, 2)
        assert ended.out.startswith("Pushed 33 observations for 11 of 20 days")

    def test_the_hard_stop_gives_the_command_too(self, week: World, clock: Clock) -> None:
        for _ in range(2):
            week.petals.fail(BULK, lambda _: None)
        week.petals.fail(BULK, clock.never)
        ended = week.run("--days", "7")
        assert ended.code == 1
        assert "given up after 127 seconds" in ended.err  # two more for each further day
        assert "2 of 7 days are in" in ended.err
        assert f"--date {before(2)} --days 5" in ended.err

    def test_ctrl_c_gives_the_command_too(self, week: World) -> None:
        for _ in range(2):
            week.petals.fail(BULK, lambda _: None)

        def interrupt(_: httpx.Request) -> None:
            # as where it comes just ahead of the main thread's wait, which it does not end
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            hang()

        week.petals.fail(BULK, interrupt)
        started = time.monotonic()
        try:
            ended = week.run("--days", "7")
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        assert time.monotonic() - started < 60
        assert ended.code == 130
        (problem,) = ended.problems
        assert "2 of 7 days are in, go on with: " in problem
        assert problem.endswith(f" --date {before(2)} --days 5")

    def test_where_all_is_in_there_is_no_command(self, week: World) -> None:
        report = oura_to_petals.Report([DAY, DAY - timedelta(days=1)], None)
        report.delivered = dict.fromkeys(report.days, 3)
        assert report.what_is_left() == "2 of 2 days are in"


def test_progress_is_drawn_on_a_terminal_and_gone_at_the_end(
    week: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ended = week.run("--days", "7")
    assert "\r\x1b[K6 of 7 days, 2026-06-04" in ended.err
    assert ended.err.endswith("\r\x1b[K")
    assert "\n" not in ended.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert week.run("--days", "7", "-q").err == ""
