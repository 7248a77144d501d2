"""Several days in one run: missed mornings, and years of history."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import time
from datetime import date, datetime, timedelta

import httpx
import pytest
from fakes import (
    BULK,
    DAILY_SLEEP,
    LIST,
    PUSHED,
    READINESS,
    READS,
    SENTENCE,
    SINGLE,
    SLEEP,
    VALUES,
    Ended,
    Petals,
    answer,
    before,
    ctrl_c,
    readiness,
    time_runs_out,
    well,
)

import oura_to_petals

REFUSED = httpx.Response(400)
WEEK = {before(n): VALUES for n in range(7)}


def later(seconds):
    """The limit is reached; `seconds` may be None."""
    headers = {} if seconds is None else {"Retry-After": str(seconds)}
    return httpx.Response(429, headers=headers)


def make_malformed(world, *days):
    for n in days:
        world.oura.collections["daily_readiness"][n] = readiness(before(n), score="x")


def service(world, path):
    return world.oura if path in READS else world.petals


def command(ended):
    """The options of the command that sends the other days, at the end of stderr."""
    python, script, *options = shlex.split(ended.problems[-1].partition("go on with: ")[2])
    assert (python, script) == (sys.executable, str(oura_to_petals.SCRIPT))
    return options


def test_seven_days_are_sent_newest_first(week):
    text = "Pushed 21 observations for 7 of 7 days, 2026-06-04 to 2026-06-10.\n"
    assert week.run("--days", "7") == Ended(0, text, "")
    assert week.petals.pushed == [before(n) for n in range(7)]
    assert week.petals.stored == WEEK
    assert (len(week.oura.requests), len(week.petals.asked(LIST))) == (3, 1)


@pytest.mark.parametrize(
    ("days", "line"),
    [
        ("1", PUSHED),
        ("2", "Pushed 6 observations for 2 of 2 days, 2026-06-09 to 2026-06-10.\n"),
    ],
)
def test_several_days_have_a_summary(week, days, line):
    assert week.run("--days", days).out == line


@pytest.mark.parametrize(
    ("empty", "summary"),
    [
        ([3], "18 observations for 6 of 7 days, 2026-06-04 to 2026-06-10; 1 day without data"),
        ([0, 6], "15 observations for 5 of 7 days, 2026-06-05 to 2026-06-09; 2 days without data"),
        ([0, 1, 2, 4, 5, 6], "3 observations for 1 of 7 days, 2026-06-07; 6 days without data"),
    ],
    ids=["one", "two", "six"],
)
def test_a_day_without_data_is_no_failure(week, empty, summary):
    for documents in week.oura.collections.values():
        documents[:] = [one for n, one in enumerate(documents) if n not in empty]
    assert week.run("--days", "7") == Ended(0, f"Pushed {summary}.\n", "")
    assert week.petals.pushed == [before(n) for n in range(7) if n not in empty]


@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=["", "quiet"])
def test_several_days_all_without_data_are_told(world, quiet):
    ended = world.run("--days", "3", *quiet, day="2026-01-03")
    text = "no Oura data for 2026-01-01 to 2026-01-03: has the Oura app been opened?"
    assert (ended.code, ended.problems) == (0, [text])
    assert world.petals.pushed == []


def test_quiet_shows_problems_only(week):
    assert week.run("--days", "7", "-q") == Ended(0, "", "")
    make_malformed(week, 2)
    assert "2026-06-08: Oura" in week.run("--days", "7", "-q").failed()


def test_verbose_shows_each_day(week):
    for documents in week.oura.collections.values():
        del documents[3]
    lines = week.run("--days", "7", "-v").out.splitlines()
    assert len(lines) == 8
    assert lines[3] == "No Oura data for 2026-06-07 — nothing pushed."
    assert lines[6] == f"Pushed 3 observations for 2026-06-04. {SENTENCE}."


def test_a_dry_run_prints_one_array(week):
    ended = week.run("--days", "7", "--dry-run")
    rows = json.loads(ended.out)
    assert [row["occurredAt"][:10] for row in rows[::3]] == [before(n) for n in range(7)]
    assert len(rows) == 21
    assert week.petals.requests == []
    make_malformed(week, 2)
    ended = week.run("--days", "7", "--dry-run")
    assert (ended.code, len(json.loads(ended.out)), len(ended.problems)) == (1, 18, 1)
    week.oura.tokens = set()
    assert "days are in" not in week.run("--days", "7", "--dry-run").failed()


def test_a_dry_run_can_be_stopped(world):
    world.oura.fail(SLEEP, ctrl_c, time_runs_out)
    assert world.run("--dry-run") == Ended(130, "", "")
    problem = "no answer from Oura sleep within 115 seconds"
    assert world.run("--dry-run").failed() == problem


@pytest.mark.parametrize("days", ["0", "-1", "3661", "1.5", ""])
def test_another_number_of_days_is_exit_2(world, days):
    assert world.run(f"--days={days}").code == 2
    assert world.oura.requests == []


def test_no_day_before_2015_is_asked_for(world):
    world.run("--days", "3660", day="2015-01-03")
    assert {request.url.params["start_date"] for request in world.oura.requests} == {"2014-12-30"}


def test_a_history_is_read_year_by_year(world):
    world.oura.fill(370)
    for documents in world.oura.collections.values():
        del documents[2:364]
    ended = world.run("--days", "370")
    asked = [request.url.params for request in world.oura.requests]
    spans = {(params["start_date"], params["end_date"]) for params in asked}
    assert (len(asked), len(spans)) == (6, 2)
    for start, end in spans:
        assert date.fromisoformat(end) - date.fromisoformat(start) <= timedelta(days=369)
    assert ended.code == 0
    assert world.petals.pushed == [before(n) for n in (0, 1, *range(364, 370))]
    assert len(world.petals.asked(LIST)) == 1


class TestDaysFailOnTheirOwn:
    def test_a_malformed_document_fails_its_day(self, week):
        make_malformed(week, 2, 3)
        ended = week.run("--days", "7")
        assert ended.code == 1
        for problem, n in zip(ended.problems, (2, 3), strict=True):
            assert problem.startswith(f"{before(n)}: Oura daily_readiness score is not a number")
        assert week.petals.pushed == [before(n) for n in (0, 1, 4, 5, 6)]
        assert ended.out.startswith("Pushed 15 observations for 5 of 7 days,")

    @pytest.mark.parametrize(
        ("fault", "summary"),
        [
            (answer(400, message="no"), "18 observations for 6 of 7 days,"),
            (
                answer(200, inserted=2, errors=[{"index": 0, "message": "no"}]),
                "20 observations for 7 of 7 days,",
            ),
        ],
        ids=["the day", "a row"],
    )
    def test_a_refused_day_fails_alone(self, week, fault, summary):
        week.petals.fail(BULK, fault)
        ended = week.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert ended.problems[0].startswith("2026-06-10: Petals")
        assert ended.out.startswith(f"Pushed {summary}")

    def test_a_failed_read_names_its_days(self, world):
        world.oura.fill(3)

        def second_read(request):
            recent = request.url.params["end_date"] > "2026"
            return None if recent else REFUSED

        world.oura.fail(READINESS, second_read, times=2)
        ended = world.run("--days", "370")
        assert (ended.code, len(ended.problems)) == (1, 1)
        days = f"{before(369)} to {before(366)}"
        assert ended.problems[0].startswith(f"{days}: Oura daily_readiness answered 400; ")
        assert world.petals.pushed == [before(n) for n in range(3)]

    def test_a_problem_is_told_when_it_happens(self, week):
        told = []

        def look(_):
            told.append(week.capsys.readouterr().err)

        make_malformed(week, 6)
        week.petals.fail(BULK, look, REFUSED, look)
        ended = week.run("--days", "7")
        assert ended.code == 1
        of_reading, of_sending = told
        assert re.fullmatch("oura_to_petals: 2026-06-04: Oura .+\n", of_reading)
        assert re.fullmatch("oura_to_petals: 2026-06-09: Petals .+\n", of_sending)
        assert ended.err == ""


class TestARunThatStops:
    @pytest.mark.parametrize("seconds", [3000, None])
    def test_prints_the_command_that_goes_on(self, world, seconds):
        world.oura.fill(30)
        world.petals.fail(BULK, *[well] * 12, *[later(seconds)] * 4)
        ended = world.run("--days", "30")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "; 12 of 30 days are in, go on with: " in ended.err
        assert ended.out == "Pushed 36 observations for 12 of 30 days, 2026-05-30 to 2026-06-10.\n"
        options = command(ended)
        assert options == ["--date", before(12), "--days", "18"]
        world.petals.faults.clear()
        sent = len(world.petals.pushed)
        assert world.run(*options, day=None).code == 0
        assert world.petals.pushed[sent:] == [before(n) for n in range(12, 30)]
        assert len(world.petals.stored) == 30

    @pytest.mark.parametrize("options", [["--env-file", "my keys"], []], ids=["named", "found"])
    def test_prints_the_env_file_if_named(self, week, home, options):
        (home / "my keys").touch(mode=0o600)
        week.petals.fail(BULK, httpx.Response(403))
        ended = week.run("--days", "7", *options)
        env_file = options and ["--env-file", str(home / "my keys")]
        assert command(ended) == ["--date", before(0), "--days", "7", *env_file]

    @pytest.mark.parametrize("status", [401, 403, 429])
    @pytest.mark.parametrize("path", [SINGLE, BULK])
    def test_is_stopped_by_a_refused_key(self, week, path, status):
        week.petals = Petals(known=())
        week.petals.fail(path, httpx.Response(status), times=4)
        ended = week.run("--days", "7")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert ended.out == "Pushed 0 observations for 0 of 7 days.\n"
        assert f"Petals {path.partition('/metrics/')[2]} answered {status}" in ended.err
        assert "0 of 7 days are in" in ended.err
        assert command(ended) == ["--date", before(0), "--days", "7"]
        tries = 4 if status == 429 else 1
        assert len(week.petals.asked(path)) == tries

    @pytest.mark.parametrize("status", [401, 403, 426, 429])
    def test_is_stopped_by_a_refused_token(self, world, status):
        world.oura.fill(10)

        def second_read(request):
            recent = request.url.params["end_date"] > "2026"
            return None if recent else httpx.Response(status)

        for path in READS:
            world.oura.fail(path, second_read, times=9)
        ended = world.run("--days", "1000")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "10 of 1000 days are in" in ended.err
        assert command(ended) == ["--date", before(10), "--days", "990"]
        assert len({request.url.params["end_date"] for request in world.oura.requests}) == 2

    @pytest.mark.parametrize("statuses", [[400] * 5, [400, 413, 400, 422, 404]], ids=["same", ""])
    def test_is_stopped_by_five_failed_days(self, world, statuses):
        world.oura.fill(20)
        world.petals.fail(BULK, *[well] * 3, *map(httpx.Response, statuses))
        ended = world.run("--days", "20")
        *reasons, last = ended.problems
        assert ended.code == 1
        for n, reason, status in zip(range(3, 8), reasons, statuses, strict=True):
            assert reason.startswith(f"{before(n)}: Petals observations/bulk answered {status}; ")
        stopped = "stopped after five failed days in a row; 3 of 20 days are in, go on with: "
        assert last.startswith(stopped)
        assert command(ended) == ["--date", before(3), "--days", "17"]
        assert len(world.petals.pushed) == 8
        assert ended.out.startswith("Pushed 9 observations for 3 of 20 days,")

    def test_counts_failed_days_anew_after_another(self, world):
        """A day that was sent, or has no data, shows that the services work."""
        world.oura.fill(14)
        for documents in world.oura.collections.values():
            del documents[4]
        four = [REFUSED] * 4
        world.petals.fail(BULK, *four, *four, well, *four)
        ended = world.run("--days", "14")
        assert (ended.code, len(ended.problems), len(world.petals.pushed)) == (1, 12, 13)
        assert "stopped" not in ended.err
        assert "for 1 of 14 days, 2026-06-01; 1 day without data." in ended.out

    def test_is_stopped_by_the_time_limit(self, week):
        week.petals.fail(BULK, well, well, time_runs_out)
        ended = week.run("--days", "7")
        assert ended.code == 1
        text = "not finished within 127 seconds; 2 of 7 days are in, go on with: "
        assert ended.problems[-1].startswith(text)
        assert command(ended) == ["--date", before(2), "--days", "5"]
        assert ended.out.startswith("Pushed 6 observations for 2 of 7 days")

    @pytest.mark.parametrize("path", [BULK, SLEEP], ids=["Petals", "Oura"])
    def test_is_stopped_by_ctrl_c(self, week, path):
        service(week, path).fail(path, ctrl_c)
        started = time.monotonic()
        ended = week.run("--days", "7")
        assert time.monotonic() - started < 5
        assert (ended.code, len(ended.problems)) == (130, 1)
        assert ended.problems[0].startswith("interrupted; 0 of 7 days are in, go on with: ")
        assert command(ended) == ["--date", before(0), "--days", "7"]
        assert ended.out == "Pushed 0 observations for 0 of 7 days.\n"

    def test_has_no_command_for_one_day(self, world):
        world.petals.fail(BULK, ctrl_c)
        assert world.run().failed(130) == "2026-06-10: interrupted"

    def test_has_no_command_after_the_last_day(self, week, monkeypatch):
        def interrupt_last(text):
            if f"for {before(1)}" in text:
                signal.raise_signal(signal.SIGINT)
            return len(text)

        monkeypatch.setattr(sys.stdout, "write", interrupt_last)
        ended = week.run("--days", "2", "-v")
        assert ended.code == 130
        assert ended.problems[-1] == "interrupted; 2 of 2 days are in"


class TestWait:
    """With `--wait`, a run goes on after a limit."""

    @pytest.mark.parametrize(("asked", "waited"), [(3000, 3000), (None, 900)])
    @pytest.mark.parametrize(
        ("path", "where"),
        [
            (READINESS, "Oura daily_readiness"),
            (DAILY_SLEEP, "Oura daily_sleep"),
            (SLEEP, "Oura sleep"),
            (SINGLE, "Petals observations"),
            (BULK, "Petals observations/bulk"),
        ],
    )
    def test_waits_at_a_limit_and_goes_on(self, week, path, where, asked, waited):
        week.petals = Petals(known=("oura_hrv", "oura_sleep_minutes"))
        tries = 4 if asked is None else 1
        service(week, path).fail(path, *[later(asked)] * tries)
        started = datetime.now()
        ended = week.run("--days", "7", "--wait")
        assert (ended.code, ended.err) == (0, "")
        waiting, summary = ended.out.splitlines()
        text, _, until = waiting.partition(", waiting until ")
        count = "" if asked else f" ({tries} tries)"
        assert text == f"{where} answered 429{count}; 0 of 7 days are in"
        late = datetime.strptime(until, "%Y-%m-%d %H:%M") - started - timedelta(seconds=waited)
        assert timedelta(minutes=-1) < late < timedelta(minutes=1)
        assert summary == "Pushed 21 observations for 7 of 7 days, 2026-06-04 to 2026-06-10."
        assert [seconds for seconds in week.waited if seconds > 60] == [waited]
        assert week.petals.stored == WEEK
        assert len(week.petals.rows) == 21

    def test_sends_a_long_history_in_one_run(self, world, monkeypatch):
        """As Petals does, allow so many requests an hour."""
        world.oura.fill(100)
        world.petals = Petals(known=())
        used = []

        def limit(_):
            used.append(1)
            return later(3600) if len(used) > 30 else None

        for path in (LIST, SINGLE, BULK):
            world.petals.fail(path, limit, times=999)
        monkeypatch.setattr(oura_to_petals, "sleep", lambda _: used.clear())
        ended = world.run("--days", "100", "--wait")
        assert (ended.code, ended.err) == (0, "")
        *waits, summary = ended.out.splitlines()
        in_hour = [re.search(r"; (\d+) of 100 days are in, waiting", line)[1] for line in waits]
        assert in_hour == sorted(in_hour, key=int)
        assert len(waits) == 3
        assert summary.startswith("Pushed 300 observations for 100 of 100 days, ")
        assert world.petals.stored == {before(n): VALUES for n in range(100)}
        assert len(world.petals.rows) == 300

    def test_does_not_send_a_day_twice(self, week):
        week.petals.fail(BULK, well, well, later(3000))
        ended = week.run("--days", "7", "--wait")
        assert ended.code == 0
        assert "; 2 of 7 days are in, waiting until " in ended.out
        days = [before(n) for n in range(7)]
        assert week.petals.pushed == [*days[:3], *days[2:]]  # the third was refused

    def test_waits_for_one_day_too(self, world):
        world.petals.fail(BULK, later(3000))
        ended = world.run("--wait")
        assert (ended.code, ended.err, world.waited) == (0, "", [3000])
        assert ended.out.endswith(PUSHED)
        assert world.petals.stored_once()

    def test_waits_up_to_24_hours_in_all(self, week):
        week.petals.fail(BULK, well, *[later(6 * 3600)] * 9)
        ended = week.run("--days", "7", "--wait")
        assert week.waited == [6 * 3600] * 4
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "answered 429; try again in 21600 seconds; 1 of 7 days are in, go on" in ended.err
        assert command(ended) == ["--date", before(1), "--days", "6", "--wait"]

    @pytest.mark.parametrize(
        ("options", "fault"),
        [
            ([], later(3000)),
            (["--wait"], later(86_401)),
            (["--wait"], httpx.Response(401, headers={"Retry-After": "3000"})),
        ],
        ids=["without --wait", "more than 24 hours", "a refused key"],
    )
    def test_does_not_wait_otherwise(self, week, options, fault):
        week.petals.fail(BULK, fault)
        ended = week.run("--days", "7", *options)
        assert (ended.code, len(ended.problems), week.waited) == (1, 1, [])
        assert command(ended) == ["--date", before(0), "--days", "7", *options]

    def test_is_quiet_with_quiet(self, week):
        week.petals.fail(BULK, later(3000))
        assert week.run("--days", "7", "--wait", "-q") == Ended(0, "", "")

    def test_ctrl_c_prints_the_command_with_wait(self, week, monkeypatch):
        monkeypatch.setattr(oura_to_petals, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
        week.petals.fail(BULK, well, well, later(3000))
        ended = week.run("--days", "7", "--wait")
        assert (ended.code, len(ended.problems)) == (130, 1)
        assert ended.problems[0].startswith("interrupted; 2 of 7 days are in, go on with: ")
        assert command(ended) == ["--date", before(2), "--days", "5", "--wait"]
        assert ended.out.endswith(
            "Pushed 6 observations for 2 of 7 days, 2026-06-09 to 2026-06-10.\n"
        )

    def test_the_time_limit_does_not_count_waiting(self, week, monkeypatch):
        def oversleep(_):
            if signal.getitimer(signal.ITIMER_REAL)[0]:  # it would run out
                signal.raise_signal(signal.SIGALRM)

        monkeypatch.setattr(oura_to_petals, "sleep", oversleep)
        week.petals.fail(BULK, well, later(3000))
        assert week.run("--days", "7", "--wait").code == 0
        assert week.petals.stored == WEEK

    def test_the_time_limit_starts_anew_after_a_wait(self, week):
        left = []
        look = lambda _: left.append(signal.getitimer(signal.ITIMER_REAL)[0])  # noqa: E731
        week.petals.fail(BULK, look, later(3000), look)
        assert week.run("--days", "7", "--wait").code == 0
        assert left == pytest.approx([127, 127], abs=1)

    def test_a_malformed_day_is_told_once(self, week):
        make_malformed(week, 5)
        week.petals.fail(BULK, well, later(3000), well, later(3000))
        ended = week.run("--days", "7", "--wait")
        assert (ended.code, len(ended.problems)) == (1, 1)

    def test_the_list_is_asked_once_a_run(self, week):
        week.petals.fail(BULK, well, later(3000), well, later(3000))
        assert week.run("--days", "7", "--wait").code == 0
        assert len(week.petals.asked(LIST)) == 1

    def test_does_not_rush_a_server(self, world):
        """Without progress since the last wait, it waits for 30 seconds."""
        world.petals.fail(BULK, *[later(0)] * 8)
        assert world.run("--wait").code == 0
        assert world.waited == [0, 0, 0, 1, 0, 0, 0, 30]

    def test_may_be_short_after_progress(self, week):
        week.petals.fail(BULK, *[later(0)] * 4, well, *[later(0)] * 4)
        assert week.run("--days", "7", "--wait").code == 0
        assert week.waited == [0, 0, 0, 1] * 2

    @pytest.mark.parametrize("path", [READINESS, BULK], ids=["Oura", "Petals"])
    def test_lasts_while_a_server_cannot_be_reached(self, week, path):
        gone = httpx.ConnectError("[Errno 101] Network is unreachable")
        service(week, path).fail(path, *[gone] * 6 * 20)
        ended = week.run("--days", "7", "--wait")
        assert (ended.code, ended.err) == (0, "")
        assert week.waited.count(300) == 20
        assert week.petals.stored == WEEK
        first = ended.out.splitlines()[0]
        assert re.search(r"could not reach \w+: .+ 0 of 7 days are in, waiting until ", first)

    def test_counts_each_day_once(self, week):
        """The day has data only after the wait, and was without any before."""
        day = {name: documents.pop(0) for name, documents in week.oura.collections.items()}

        def appear(_):
            for name, document in day.items():
                week.oura.collections[name].insert(0, document)
            return later(3000)

        week.petals.fail(BULK, well, appear)
        ended = week.run("--days", "7", "--wait")
        assert ended.out.splitlines()[-1] == (
            "Pushed 18 observations for 6 of 7 days, 2026-06-04 to 2026-06-09; 1 day without data."
        )
        assert len(week.oura.asked(READINESS)) == 1


CLEAR = "\r\x1b[K"


@pytest.fixture
def on_terminal(monkeypatch):
    """Run with one terminal as stdout and stderr; return what was written there."""

    def run(world, *options):
        with monkeypatch.context() as patch:
            patch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
            patch.setattr(sys, "stdout", sys.stderr)
            return world.run(*options).err

    return run


def visible(text):
    """The lines that stay on the terminal."""
    return [line.rpartition(CLEAR)[2] for line in text.split("\n")]


class TestProgress:
    def test_is_shown_and_removed_at_the_end(self, week, on_terminal):
        text = on_terminal(week, "--days", "7")
        assert f"{CLEAR}reading 2026-06-04 to 2026-06-10{CLEAR}" in text
        assert f"{CLEAR}6 of 7 days, 2026-06-04{CLEAR}" in text
        summary = "Pushed 21 observations for 7 of 7 days, 2026-06-04 to 2026-06-10."
        assert visible(text) == [summary, ""]

    def test_no_problem_stands_behind_it(self, week, on_terminal):
        make_malformed(week, 3)
        week.petals.fail(BULK, REFUSED, later(3000), well, well, httpx.Response(401))
        lines = visible(on_terminal(week, "--days", "7", "--wait"))
        expected = [
            "oura_to_petals: 2026-06-07: Oura daily_readiness score is not a number",
            "oura_to_petals: 2026-06-10: Petals observations/bulk answered 400; ",
            "Petals observations/bulk answered 429; 0 of 7 days are in, waiting until ",
            "oura_to_petals: Petals observations/bulk answered 401; ",
            "Pushed 6 observations for 2 of 7 days, ",
        ]
        for start in expected:
            assert any(line.startswith(start) for line in lines)
        assert lines[-1] == ""

    @pytest.mark.parametrize("options", [["-q"], ["-v"], ["--days", "1"]], ids=" ".join)
    def test_is_not_shown_otherwise(self, week, on_terminal, options):
        assert "reading " not in on_terminal(week, "--days", "7", *options)

    def test_is_not_shown_without_a_terminal(self, week):
        assert week.run("--days", "7").err == ""
