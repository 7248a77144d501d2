"""Several days in one run: missed mornings, and years of history."""

from __future__ import annotations

import json
import re
import signal
import sys
from datetime import date, datetime, timedelta

import httpx
import pytest

import oura_to_petals

# isort: off
from fakes import BULK, LIST, READINESS, READS, SINGLE, SLEEP
from fakes import CERTIFICATE, GONE, PAGE, PUSHED, SENTENCE, SLOW, VALUES
from fakes import Ended, Petals, answer, before, ctrl_c, later, readiness, well

TODAY = date.today()
WEEK = {before(n): VALUES for n in range(7)}
CLEAR = "\r\x1b[K"  # what a terminal shows in a line
NO = answer(400, message="no")
UNDATED = answer(200, data=[{"day": None}], next_token=None)
EMPTY = answer(200, data=[], next_token=None)
PARTLY = answer(200, inserted=2, errors=[{"index": 0, "code": "RANGE_VIOLATION"}])


def make_malformed(world, *days):
    """Have an impossible readiness for these days."""
    for n in days:
        world.oura.collections["daily_readiness"][n] = readiness(before(n), score="x")


def remove(world, *days):
    """Have no data for these days."""
    for documents in world.oura.collections.values():
        documents[:] = [one for n, one in enumerate(documents) if n not in days]


# --- What a run of several days sends and says -------------------------------------------------


def test_seven_days_are_sent_oldest_first(week):
    text = "Pushed 21 observations for 7 of 7 days, 2026-06-04 to 2026-06-10.\n"
    assert week.run("--days", "7") == Ended(0, text, "")
    assert week.petals.pushed == [*reversed(WEEK)]
    assert week.petals.stored == WEEK
    assert (len(week.oura.requests), week.petals.asked(LIST)) == (3, [])
    assert week.run("--days", "1").out == PUSHED


@pytest.mark.parametrize(
    ("empty", "summary"),
    [
        ([1, 6], "15 observations for 5 of 7 days, 2026-06-05 to 2026-06-08, 2026-06-10; 2 days"),
        ([0, 1, 2, 4, 5, 6], "3 observations for 1 of 7 days, 2026-06-07; 6 days"),
        ([0], "18 observations for 6 of 7 days, 2026-06-04 to 2026-06-09; 1 day"),
    ],
)  # fmt: skip
def test_day_without_data_is_no_failure(week, empty, summary):
    remove(week, *empty)
    assert week.run("--days", "7") == Ended(0, f"Pushed {summary} without data.\n", "")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=["", "quiet"])
def test_several_days_all_without_data_are_told(world, quiet):
    ended = world.run("--days", "3", *quiet, day="2026-01-03")
    assert (ended.code, len(ended.problems), world.petals.pushed) == (0, 1, [])
    assert "2026-01-01 to 2026-01-03: has the Oura app been opened?" in ended.err


def test_verbose_shows_each_day_and_problem_at_once(week):
    told = []
    make_malformed(week, 2)
    remove(week, 4)
    week.petals.fail(BULK, *[well] * 4, lambda _: told.append(week.capsys.readouterr()))
    ended = week.run("--days", "7", "-v")
    assert f"Pushed 3 observations for 2026-06-04. {SENTENCE}.\n" in told[0].out
    assert "No Oura data for 2026-06-06 — nothing pushed.\n" in told[0].out
    assert "2026-06-08: Oura daily_readiness score" in told[0].err
    assert "2026-06-08: " not in ended.err


def test_dry_run_prints_one_array_and_asks_petals_nothing(week):
    ended = week.run("--days", "7", "--dry-run")
    assert [row["occurredAt"][:10] for row in json.loads(ended.out)[::3]] == [*reversed(WEEK)]
    make_malformed(week, 2)
    ended = week.run("--days", "7", "--dry-run", "--wait")
    assert (ended.code, len(json.loads(ended.out))) == (1, 18)
    assert ended.command == ["--date", before(0), "--days", "3", "--wait", "--dry-run"]
    week.oura.fail(SLEEP, ctrl_c)
    ended = week.run("--dry-run")
    assert (ended.code, ended.out, week.petals.requests) == (130, "", [])


@pytest.mark.parametrize("days", ["0", "-1", "3661", "1.5", ""])
def test_another_number_of_days_is_exit_2(world, days):
    assert (world.run(f"--days={days}").code, world.oura.requests) == (2, [])
    world.run("--days", "3660", day="2015-01-03")  # there is nothing before 2015
    assert {request.url.params["start_date"] for request in world.oura.requests} == {"2014-12-30"}


def test_parts_of_90_days_are_read_right_before_they_are_sent(world):
    world.oura.fill(200)
    sent_before = []
    for path in READS:
        world.oura.fail(path, lambda _: sent_before.append(len(world.petals.pushed)), times=3)
    assert world.run("--days", "200").code == 0
    assert sorted(sent_before) == [0] * 3 + [90] * 3 + [180] * 3
    assert world.petals.pushed == [before(n) for n in reversed(range(200))]


@pytest.mark.parametrize("fault", [UNDATED, EMPTY, answer(400), answer(500), SLOW, CERTIFICATE])
def test_part_that_fails_ends_the_run_but_for_its_documents(world, fault):
    world.oura.fill(200)
    world.oura.fail(SLEEP, well, *[fault] * (1 if fault in (UNDATED, EMPTY) else 6))
    ended = world.run("--days", "200")
    assert (ended.code, len(ended.problems)) == (1, 2)
    assert ended.problems[0].startswith(f"{before(109)} to {before(20)}: ")
    last = range(20) if fault in (UNDATED, EMPTY) else []
    assert world.petals.pushed == [before(n) for n in reversed([*last, *range(110, 200)])]
    assert ended.command == ["--date", before(0), "--days", "110"]


# --- Failed days, and what ends a run ----------------------------------------------------------


def test_run_that_ended_is_gone_on_with(week, home):
    (home / "my keys").touch(mode=0o600)
    week.petals.fail(BULK, well, well, answer(401))
    ended = week.run("--days", "7", "--env-file", "my keys")
    assert (ended.code, len(ended.problems)) == (1, 2)
    assert ended.problems[0].startswith("2026-06-06: ")
    assert "2 of 7 days" in ended.problems[-1]
    assert ended.out == "Pushed 6 observations for 2 of 7 days, 2026-06-04 to 2026-06-05.\n"
    assert set(week.petals.pushed) == {before(6), before(5), before(4)}
    options = ["--date", before(0), "--days", "5"]
    assert ended.command == [*options, "--env-file", str(home / "my keys")]
    assert week.run(*ended.command, day=None).code == 0
    assert week.petals.stored == WEEK


@pytest.mark.parametrize(("status", "tries"), [(413, 1), (503, 4)])
def test_failed_days_do_not_hold_back_others(week, status, tries):
    make_malformed(week, 0, 2)
    remove(week, 5)
    week.petals.fail(BULK, well, *[httpx.Response(status)] * tries)
    ended = week.run("--days", "7")
    assert (ended.code, len(ended.problems)) == (1, 3)
    assert ended.problems[0].startswith(f"2026-06-06: Petals observations/bulk answered {status}")
    assert ended.problems[1].startswith("2026-06-08, 2026-06-10: Oura daily_readiness score")
    assert week.petals.stored.keys() == {before(6), before(3), before(1)}
    assert ended.command == ["--date", before(0), "--days", "5"]


def test_run_ends_after_five_failed_days_in_a_row(world):
    world.oura.fill(20)
    world.petals.fail(BULK, *[well] * 3, *map(httpx.Response, [400, 413, 400, 422, 400]))
    ended = world.run("--days", "20")
    for days in ("2026-05-25, 2026-05-27, 2026-05-29", "2026-05-26", "2026-05-28"):
        status = {"25": 400, "26": 413, "28": 422}[days[8:10]]
        assert any(line.startswith(f"{days}: ") and str(status) in line for line in ended.problems)
    assert (ended.code, "five" in ended.err) == (1, True)
    assert world.petals.pushed == [before(n) for n in range(19, 11, -1)]
    assert ended.command == ["--date", before(0), "--days", "17"]


@pytest.mark.parametrize("between", ["no data", "impossible", "filed elsewhere"])
def test_day_of_which_nothing_can_be_stored_does_not_end_the_row(world, monkeypatch, between):
    world.oura.fill(9)
    if between == "impossible":
        make_malformed(world, 6)
    elif between == "no data":
        remove(world, 6)
    else:
        world.petals = Petals(known=("oura_readiness", "mine"))
        world.petals.similar["oura_hrv"] = "mine"
        monkeypatch.setenv("OURA_METRICS", "oura-readiness,oura-hrv")
        world.oura.collections["daily_readiness"][6] = readiness(before(6), score=None)
    sent = [well, well] if between == "filed elsewhere" else [well]  # again after the proposal
    world.petals.fail(BULK, *sent, *[NO] * 20)
    assert world.run("--days", "9").code == 1
    assert world.petals.pushed[len(sent) :] == [before(n) for n in (7, 5, 4, 3, 2)]


def test_day_of_which_something_was_stored_ends_the_row(world):
    world.oura.fill(14)
    world.petals.fail(BULK, well, *[NO] * 4, PARTLY, *[NO] * 4)
    ended = world.run("--days", "14")
    assert (ended.code, len(world.petals.pushed)) == (1, 14)
    assert ended.command == ["--date", before(0), "--days", "13"]


@pytest.mark.parametrize("path", [BULK, SLEEP], ids=["Petals", "Oura"])
def test_ctrl_c_prints_the_command(week, monkeypatch, path):
    week.fail(path, ctrl_c)
    ended = week.run("--days", "7")
    assert (ended.code, ended.command) == (130, ["--date", before(0), "--days", "7"])
    assert "0 of 7 days" in ended.problems[-1]
    week.fail(path, ctrl_c)
    assert week.run().failed(130).startswith("2026-06-10: ")  # there is no command for one day
    monkeypatch.setattr(oura_to_petals, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    week.petals.fail(BULK, well, well, later(429, 3000))
    ended = week.run("--days", "7", "--wait")
    assert (ended.code, ended.command) == (130, ["--date", before(0), "--days", "5", "--wait"])


# --- `--wait` ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SLEEP, SINGLE, BULK])
@pytest.mark.parametrize(
    ("fault", "waited"),
    [
        *((answer(status), [1, 2, 4, 30, 300, 300]) for status in (502, 503, 504, 520, 530)),
        (GONE, [1, 2, 4, 8, 16, 30, 300, 300]), (SLOW, [1, 30, 300, 300]),
        (answer(429), [1, 2, 4, 900, 900]), (later(429, 3000), [3000, 3000]),
        (later(503, 3000), [3000, 3000]), (later(429, 20), [20] * 4 + [30]),
        (later(429, 0), [0] * 4 + [30]),
    ],
)  # fmt: skip
def test_wait_lasts_as_long_as_an_outage(week, path, fault, waited):
    week.petals = Petals(known=("oura_hrv", "oura_sleep_minutes"))
    if path == SINGLE and fault is SLOW:
        waited = [1, 2, 4, *waited[1:]]  # all proposals of a day may have been lost
    week.fail(path, fault, times=len(waited))
    ended = week.run("--days", "7", "--wait")
    assert (ended.code, ended.err, week.waited) == (0, "", waited)
    assert (week.petals.stored, len(week.petals.rows)) == (WEEK, 21)


def test_wait_tells_until_when(world):
    world.petals.fail(BULK, later(429, 3000), well, later(429, 3000))
    end = datetime.now() + timedelta(seconds=3000)
    waiting, pushed = world.run("--wait").out.splitlines(keepends=True)
    assert ("429" in waiting, pushed) == (True, PUSHED)
    until = datetime.fromisoformat(re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d", waiting)[0])
    assert abs(until - end) < timedelta(minutes=1)
    assert world.run("--wait", "-q") == Ended(0, "", "")


@pytest.mark.parametrize("path", [READINESS, BULK], ids=["Oura", "Petals"])
@pytest.mark.parametrize(
    ("fault", "pauses"),
    [
        (answer(500), [1, 2, 4]), (answer(408), [1, 2, 4]), (answer(505), []), (CERTIFICATE, []),
        (later(429, 86_401), []), (later(401, 3000), []),
    ],
)  # fmt: skip
def test_nothing_else_is_waited_for(world, path, fault, pauses):
    if path == BULK:  # the form is known
        world.oura.fill(2)
        world.petals.fail(BULK, well)
    world.fail(path, fault, times=9)
    ended = world.run("--days", "2", "--wait")
    assert (ended.code, world.waited) == (1, pauses)


def test_wait_is_up_to_24_hours_in_all(week):
    week.petals.fail(BULK, *[later(429, 6 * 3600), well] * 5)
    ended = week.run("--days", "7", "--wait")
    assert (ended.code, week.waited) == (1, [6 * 3600] * 4)
    assert ended.command == ["--date", before(0), "--days", "3", "--wait"]


# --- Catching up -------------------------------------------------------------------------------


class TestAbsence:
    @pytest.fixture
    def away(self, world):
        """Make an Oura with the nights up to today, and a Petals whose latest day is so old."""

        def make(days, slug="oura_readiness"):
            day = before(days, TODAY)
            world.oura.fill(days + 7, last=TODAY)
            world.petals.define(slug, slug)
            row = {"metricSlug": slug, "value": 1, "occurredAt": f"{day}T00:00:00Z"}
            world.petals.by_source[f"oura_{day}"] = [row]
            return world

        return make

    def days(self, first, last):
        return [before(n, TODAY) for n in range(first, last - 1, -1)]

    @pytest.mark.parametrize(
        ("day", "last", "asked"),
        [("today", 0, 1), ("today", 0, 7), ("Yesterday", 1, 7), (None, 1, 1)],
    )
    def test_is_made_up_for(self, away, day, last, asked):
        world = away(20)
        ended = world.run("--days", str(asked), day=day)
        assert (ended.code, ended.err) == (0, "")
        assert world.petals.pushed == self.days(20, last)
        assert f"for {21 - last} of {21 - last} days" in ended.out
        assert len(world.petals.asked(LIST)) == 1
        starts = [request.url.params["start_date"] for request in world.oura.asked(READINESS)]
        assert starts == [before(last + asked + 1, TODAY), before(22, TODAY)]

    @pytest.mark.parametrize(("latest", "sent"), [(0, 7), (6, 7), (7, 7), (8, 9)])
    def test_begins_before_the_day_that_precedes_the_asked_ones(self, away, latest, sent):
        world = away(latest)
        assert world.run("--days", "7", day="today").code == 0
        assert world.petals.pushed == self.days(sent - 1, 0)

    @pytest.mark.parametrize("slug", [*oura_to_petals.METRICS, "steps"])
    def test_is_seen_in_each_of_the_twelve_metrics(self, away, slug):
        world = away(9, slug.replace("-", "_"))
        world.petals.by_source["older"] = away(15).petals.by_source[f"oura_{before(15, TODAY)}"]
        assert world.run(day="today").code == 0
        assert world.petals.pushed == self.days(15 if slug == "steps" else 9, 0)

    @pytest.mark.parametrize(("options", "asked", "sent"), [([], 7, 90), (["--quiet"], 100, 100)])
    def test_of_more_than_90_days_has_a_command(self, away, options, asked, sent):
        world = away(110)
        ended = world.run("--days", str(asked), *options, day="today")
        assert (ended.code, len(ended.problems)) == (0, 1)
        assert world.petals.pushed == self.days(sent - 1, 0)
        older = ["--date", before(sent, TODAY), "--days", str(111 - sent)]
        assert ended.command == older
        assert world.run(*older, day=None).code == 0
        assert world.petals.stored.keys() == {*self.days(110, 0)}

    @pytest.mark.parametrize("stored", [1, 0])
    def test_has_the_command_if_the_run_fails_later(self, away, stored):
        world = away(100)
        world.petals.fail(BULK, *[well] * stored, httpx.Response(401))
        ended = world.run(day="today")
        last_days = [*[before(90, TODAY)] * stored, str(TODAY)]
        assert (ended.code, [command[1] for command in ended.commands]) == (1, last_days)

    def test_is_not_looked_for_otherwise(self, away):
        world = away(20)
        assert world.run(day=str(TODAY)).code == 0
        assert world.run("--dry-run", day="today").code == 0
        assert (world.petals.pushed, world.petals.asked(LIST)) == ([str(TODAY)], [])

    @pytest.mark.parametrize(
        "fault",
        [*map(httpx.Response, (301, 401, 403, 429, 500, 503)), GONE, SLOW, CERTIFICATE, PAGE]
        + [answer(200)]
        + [answer(200, metrics=metrics) for metrics in ("x", ["x", {"slug": "oura_hrv"}])]
        + [
            answer(200, metrics=[{"slug": "oura_hrv", "stats": stats}])
            for stats in ([], None, {"latestAt": 5}, {"latestAt": "soon"}, {"latestAt": None})
        ],
    )
    def test_is_not_known_from_a_list_that_fails(self, away, fault):
        world = away(20)
        world.petals.fail(LIST, fault)
        ended = world.run(day="today")
        assert (ended.code, ended.err, world.waited) == (0, "", [])
        assert world.petals.pushed == [str(TODAY)]
        (asked,) = world.petals.asked(LIST)
        assert max(asked.extensions["timeout"].values()) <= 10

    def test_is_in_the_command_if_the_asked_days_cannot_be_read(self, away):
        world = away(20)
        world.oura.fail(SLEEP, UNDATED)
        ended = world.run(day="today")
        assert (ended.code, ended.command) == (1, ["--date", str(TODAY), "--days", "21"])
        assert (len(world.oura.requests), world.petals.pushed) == (3, [])

    def test_is_told_if_only_a_later_part_of_the_asked_days_is_stored(self, away):
        """The newer days hide what is missing before them from the next run."""
        world = away(100)
        world.oura.fail(SLEEP, UNDATED)
        ended = world.run("--days", "95", day="today")
        assert world.petals.pushed == [] or before(95, TODAY) in ended.err

    def test_is_read_with_the_asked_days_as_a_whole(self, away):
        """One night may lack readiness; several that lack it are a lapse of Oura."""
        world = away(20)
        world.oura.collections["daily_readiness"] = []
        ended = world.run(day="today")
        assert (ended.code, world.petals.pushed) == (1, [])
        assert ended.problems[0].startswith(f"{before(20, TODAY)} to {TODAY}: Oura daily_readiness")

    def test_is_left_to_the_next_run_if_that_is_interrupted(self, away):
        world = away(20)
        world.petals.fail(BULK, *[well] * 5, ctrl_c)
        assert world.run("-q", day="today").code == 130
        assert world.run(day="today").code == 0
        assert world.petals.stored.keys() == {*self.days(20, 0)}

    def test_does_not_hide_that_the_asked_days_have_no_data(self, away):
        world = away(20)
        remove(world, 0, 1, 2)
        ended = world.run("--days", "3", day="today")
        assert (ended.code, len(world.petals.pushed)) == (0, 18)
        assert f"{before(2, TODAY)} to {TODAY}" in ended.err
        assert "has the Oura app been opened?" in ended.err


def test_progress_is_shown_and_removed(week, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", sys.stderr)  # one terminal
    make_malformed(week, 3)
    week.petals.fail(BULK, well, answer(503))
    text = week.run("--days", "7").err
    shown = [line.rpartition("\n")[2] for line in text.split(CLEAR)]
    for fact in ("2026-06-04 to 2026-06-10", "5 of 7 days, 2026-06-10", "in 1 second"):
        assert any(fact in one for one in shown)
    stays = [line.rpartition(CLEAR)[2] for line in text.split("\n")]
    assert [stays[0][:27], stays[2][:13], *stays[3:]] == [
        "oura_to_petals: 2026-06-07:", "Pushed 18 obs", "",
    ]  # fmt: skip
    for options in ("-q", "-v"):
        assert "reading" not in week.run("--days", "7", options).err
