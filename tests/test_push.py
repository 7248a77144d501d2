"""One night, from Oura to Petals."""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import date, datetime, timedelta

import httpx
import pytest
from fakes import (
    AT,
    BULK,
    DAY,
    KEY,
    LIST,
    PUSHED,
    READINESS,
    READS,
    SENTENCE,
    SINGLE,
    SLEEP,
    TOKEN,
    VALUES,
    Ended,
    Petals,
    answer,
    daily_sleep,
    readiness,
    session,
    well,
)

import oura_to_petals

TOTAL = {"total_sleep_duration": 25_920}


# --- What is asked and sent --------------------------------------------------------------------


def test_night_is_sent_in_one_request(world):
    ended = world.run()
    rows = [{"metricSlug": slug, "value": n, "occurredAt": AT} for slug, n in VALUES.items()]
    rows[0]["note"] = SENTENCE
    body = {"sourceExternalId": "oura_2026-06-10", "observations": rows}
    assert world.petals.sent(BULK) == [body]
    assert [request.url.path for request in world.petals.requests] == [LIST, BULK]
    assert ended == Ended(0, PUSHED, "")


def test_array_server_is_sent_an_array(array_world):
    ended = array_world.run()

    def row(slug, label, unit, value):
        metric = {"slug": slug, "label": label, "unit": unit, "aggregationHint": "avg"}
        return {"metric": metric, "value": value, "occurredAt": AT}

    assert array_world.petals.sent(BULK) == [
        [
            row("oura-readiness", "Oura readiness score", "score", 82),
            row("oura-hrv", "Oura HRV balance", "score", 77),
            row("oura-sleep-minutes", "Oura sleep duration", "minutes", 432),
        ]
    ]
    sentence = "Slept 7h12, readiness 82, HRV balance 77"
    assert ended == Ended(0, PUSHED.replace(SENTENCE, sentence), "")


@pytest.mark.parametrize(
    "listed",
    [
        httpx.Response(405),
        answer(202, jobId="job-1"),
        answer(200, jobId="job-1"),
        httpx.Response(202),
    ],
    ids=["405", "202 and a job", "200 and a job", "202"],
)
def test_server_without_a_list_is_an_array_server(array_world, listed):
    array_world.petals.fail(LIST, listed)
    assert array_world.run().code == 0
    assert set(array_world.petals.stored[str(DAY)].values()) == {*VALUES.values()}


def test_each_key_is_sent_only_to_its_service(world):
    world.run()
    for request in world.oura.requests:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert KEY not in f"{request.headers} {request.url}"
    for request in world.petals.requests:
        assert request.headers["x-api-key"] == KEY
        assert TOKEN not in f"{request.headers} {request.url} {request.content!r}"


def test_oura_is_asked_for_two_more_days_on_each_side(world):
    world.run()
    asked = {request.url.path: dict(request.url.params) for request in world.oura.requests}
    fields = set(asked[SLEEP].pop("fields").split(","))
    window = {"start_date": "2026-06-08", "end_date": "2026-06-12"}
    assert asked == dict.fromkeys(READS, window)
    assert fields == {
        "id", "day", "type", "total_sleep_duration", "deep_sleep_duration", "rem_sleep_duration",
        "light_sleep_duration", "efficiency", "average_hrv", "lowest_heart_rate", "average_breath",
    }  # fmt: skip


def test_collections_and_list_are_asked_at_once(world):
    together = threading.Barrier(4, timeout=5)

    def meet(_):
        together.wait()

    for path in READS:
        world.oura.fail(path, meet)
    world.petals.fail(LIST, meet)
    assert world.run() == Ended(0, PUSHED, "")


# --- Which documents count ---------------------------------------------------------------------


@pytest.mark.parametrize("window", ["closed", "start exclusive", "end exclusive"])
@pytest.mark.parametrize("total", [{}, TOTAL], ids=["sum", "total"])
def test_only_documents_of_the_day_count(world, window, total):
    world.oura.window = window
    days = [DAY - timedelta(days=1), DAY, DAY + timedelta(days=1)]
    world.oura.collections = {
        "daily_readiness": [readiness(day, score=82 if day == DAY else 5) for day in days],
        "daily_sleep": [daily_sleep(day, **total) for day in days],
        "sleep": [session(day, 25_920 if day == DAY else 60) for day in days],
    }
    assert world.run().code == 0
    assert world.petals.stored_once()


def test_oldest_of_seven_days_survives_another_time_zone(week):
    """In UTC+9 and beyond, some collections leave out two days of the window."""
    assert week.run("--days", "7").code == 0
    stored = week.petals.stored

    def leave_out(request):
        start = date.fromisoformat(request.url.params["start_date"])
        found = [one for one in nights if one["day"] >= str(start + timedelta(days=2))]
        return answer(200, data=found, next_token=None)

    nights = week.oura.collections["sleep"]
    week.oura.fail(SLEEP, leave_out)
    assert week.run("--days", "7").code == 0
    assert week.petals.stored == stored


def test_all_pages_are_read(world):
    world.oura.page = 1
    world.oura.collections["sleep"] = [session(seconds=3600), session(seconds=22_320)]
    assert world.run().code == 0
    assert world.petals.stored_once()


@pytest.mark.parametrize("page", [1, 2], ids=["first page", "second page"])
@pytest.mark.parametrize("path", READS)
def test_night_is_sent_only_if_all_is_read(world, path, page):
    world.run()
    world.oura.page = 1
    for documents in world.oura.collections.values():
        documents *= 2
    world.oura.fail(path, *[well] * (page - 1), answer(404, detail="Not Found"))
    collection = path.rpartition("/")[2]
    problem = f"2026-06-10: Oura {collection} answered 404: Not Found; check OURA_HOST"
    assert world.run().failed().startswith(problem)
    assert len(world.petals.asked(BULK)) == 1


@pytest.mark.parametrize(
    ("sessions", "minutes"),
    [
        ([session(seconds=25_920)], 432),
        ([session(seconds=14_400), session(seconds=10_800, type="sleep")], 420),
        ([session(seconds=14_400), session(seconds=1800, type="late_nap")], 270),
        ([session(seconds=14_400), session(seconds=3600, type="rest")], 240),
        ([session(seconds=14_400), session(seconds=3600, type="deleted")], 240),
        ([session(seconds=14_400), session(seconds=3600, type=None)], 300),
        ([session(seconds=14_400), {"day": str(DAY), "total_sleep_duration": 3600}], 300),
        ([session(seconds=14_400), session(seconds=None)], 240),
        ([session(seconds=29)], 0),
        ([session(seconds=30)], 1),
        ([session(seconds=86_400)], 1440),
        ([session(seconds=None)], None),
        ([session(type="rest")], None),
        ([], None),
    ],
    ids=[
        "one", "two", "a nap", "falsely detected", "deleted", "type is null", "no type and no id",
        "one without a time", "29 seconds", "30 seconds", "24 hours", "none has a time",
        "only a false one", "none",
    ],
)  # fmt: skip
def test_total_sleep_is_the_sum_of_the_sessions(world, sessions, minutes):
    world.oura.collections["sleep"] = sessions
    assert world.run().code == 0
    assert world.petals.stored[str(DAY)].get("oura_sleep_minutes") == minutes


@pytest.mark.parametrize("page", [1, 1000], ids=["two pages", "one page"])
def test_session_that_comes_twice_counts_once(world, page):
    world.oura.page = page
    world.oura.collections["sleep"] *= 2
    assert world.run().code == 0
    assert world.petals.stored_once()


@pytest.mark.parametrize("ids", [{}, {"id": None}], ids=["missing", "null"])
def test_sessions_without_an_id_all_count(world, ids):
    for n, seconds in enumerate((25_920, 3600, 1800)):
        one = session(seconds=seconds)
        del one["id"]
        world.oura.collections["sleep"][n:] = [one | ids]
    assert world.run().code == 0
    assert world.petals.stored_once(oura_sleep_minutes=522)


@pytest.mark.parametrize(("total", "minutes"), [(25_200, 420), (0, 0), (None, 432)])
def test_total_in_daily_sleep_is_preferred(world, total, minutes):
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = total
    assert world.run().code == 0
    assert world.petals.stored_once(oura_sleep_minutes=minutes)


@pytest.mark.parametrize("day", [None, f"{DAY}T07:00:00"], ids=["null", "a time"])
@pytest.mark.parametrize("path", READS)
def test_document_without_a_readable_day_fails_the_read(world, path, day):
    collection = path.rpartition("/")[2]
    world.oura.collections[collection].append({**session(), "day": day})
    problem = f"2026-06-10: Oura {collection} has a document without a readable day"
    assert world.run().failed() == problem
    assert world.petals.sent(BULK) == []


# --- What a day can lack -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collections", "line", "slugs"),
    [
        ({"daily_readiness": []}, "1 observation: Slept 7h12, HRV 54ms", "sleep_minutes"),
        (
            {"daily_readiness": [readiness(score=None)]},
            "2 observations: Slept 7h12, HRV 54ms", "hrv sleep_minutes",
        ),
        (
            {"daily_readiness": [readiness(contributors=None)]},
            "2 observations: Slept 7h12, readiness 82, HRV 54ms", "readiness sleep_minutes",
        ),
        (
            {"daily_readiness": [readiness(hrv_balance=None)], "sleep": []},
            "1 observation: Readiness 82", "readiness",
        ),
        (
            {"sleep": [session(seconds=25_320, average_hrv=None)]},
            "3 observations: Slept 7h02, readiness 82, HRV balance 77",
            "readiness hrv sleep_minutes",
        ),
        (
            {"daily_readiness": [readiness(score=None)], "sleep": []},
            "1 observation: HRV balance 77", "hrv",
        ),
        (
            {"sleep": [
                session(seconds=3600, type="sleep", average_hrv=20),
                session(seconds=None, average_hrv=30),
                session(seconds=21_600, average_hrv=61),
                session(seconds=30_000, type="rest", average_hrv=99),
            ]},
            "3 observations: Slept 7h00, readiness 82, HRV 61ms", "readiness hrv sleep_minutes",
        ),
    ],
    ids=[
        "no readiness", "no score", "no contributors", "no balance and no sessions", "no HRV",
        "only the balance", "HRV of the longest session",
    ],
)  # fmt: skip
def test_missing_values_are_left_out(world, collections, line, slugs):
    world.oura.collections |= collections
    count, _, sentence = line.partition(": ")
    assert world.run() == Ended(0, f"Pushed {count} for 2026-06-10. {sentence}.\n", "")
    assert set(world.petals.stored[str(DAY)]) == {f"oura_{slug}" for slug in slugs.split()}
    assert world.petals.notes == [sentence]


@pytest.mark.parametrize("status", [200, 401, 500])
def test_day_without_data_sends_nothing(world, status):
    world.oura.empty()
    world.petals.fail(LIST, answer(status, metrics=[]), times=4)
    assert world.run() == Ended(0, "No Oura data for 2026-06-10 — nothing pushed.\n", "")
    assert world.petals.sent(SINGLE) == world.petals.sent(BULK) == []


@pytest.mark.parametrize(
    ("empty", "metrics"),
    [
        ("daily_sleep", "default"),
        ("daily_sleep", "oura-hrv-ms"),
        ("sleep", "default"),
        ("sleep", "oura-hrv-ms"),
        ("daily_readiness", "default"),
        ("daily_sleep", "oura-sleep-score,oura-sleep-minutes"),
    ],
)
def test_empty_collection_deletes_nothing_of_several_days(week, monkeypatch, empty, metrics):
    monkeypatch.setenv("OURA_METRICS", metrics)
    week.petals = Petals((*VALUES, "oura_sleep_score", "oura_hrv_ms"))
    assert week.run("--days", "7").code == 0
    stored = week.petals.stored
    week.oura.collections[empty] = []
    ended = week.run("--days", "7")
    missing = f"Oura {empty}: no document, unlike other collections"
    assert ended.problems == [
        f"2026-06-04 to 2026-06-10: {missing}; nothing is sent; the next run tries again"
    ]
    assert (ended.code, ended.out) == (1, "Pushed 0 observations for 0 of 7 days.\n")
    assert week.petals.stored == stored
    assert len(week.petals.pushed) == 7


def test_night_that_oura_reopens_for_a_moment_stays(world):
    """Today's only session is a short one, so it counts once `daily_sleep` has the day."""
    today = date.today()
    world.oura.fill(7, last=today)
    world.oura.collections["sleep"][0] = session(today, 7200, type="sleep")
    assert world.run("--days", "7", day="today").code == 0
    stored = world.petals.stored
    assert stored[str(today)]["oura_sleep_minutes"] == 120
    world.oura.collections["daily_sleep"] = []
    assert world.run("--days", "7", day="today").code == 1
    assert world.petals.stored == stored


@pytest.mark.parametrize("collection", ["daily_readiness", "daily_sleep"])
def test_last_of_two_documents_of_a_day_counts(world, monkeypatch, collection):
    monkeypatch.setenv("OURA_METRICS", "oura-readiness,oura-sleep-score,oura-sleep-minutes")
    world.petals = Petals(("oura_readiness", "oura_sleep_score", "oura_sleep_minutes"))
    revised = {"id": "revised", "score": 60, "total_sleep_duration": 6000}
    documents = world.oura.collections[collection]
    documents[0] |= {"total_sleep_duration": 25_920}
    documents.append({**documents[0], **revised})
    assert world.run().code == 0
    stored = world.petals.stored[str(DAY)]
    if collection == "daily_readiness":
        assert stored["oura_readiness"] == 60
    else:
        assert (stored["oura_sleep_score"], stored["oura_sleep_minutes"]) == (60, 100)


@pytest.mark.parametrize(
    ("empty", "metrics", "total", "observations"),
    [
        ("daily_sleep", "oura-readiness", {}, 7),
        ("sleep", "oura-readiness", {}, 7),
        ("sleep", "default", TOTAL, 21),
        ("daily_readiness", "oura-sleep-minutes", {}, 7),
    ],
    ids=["daily_sleep", "only readiness", "daily_sleep has the totals", "only minutes"],
)
def test_empty_collection_that_is_not_needed_fails_nothing(
    week, monkeypatch, empty, metrics, total, observations
):
    monkeypatch.setenv("OURA_METRICS", metrics)
    for document in week.oura.collections["daily_sleep"]:
        document |= total
    week.oura.collections[empty] = []
    text = f"Pushed {observations} observations for 7 of 7 days, 2026-06-04 to 2026-06-10.\n"
    assert week.run("--days", "7") == Ended(0, text, "")


def test_collection_with_one_of_several_days_is_sent(week):
    del week.oura.collections["sleep"][1:]
    assert week.run("--days", "7").code == 0
    assert len(week.petals.rows) == 15


@pytest.mark.parametrize(
    ("types", "others", "sentence"),
    [
        (["late_nap"], {}, ""),
        (["late_nap", "sleep"], {}, ""),
        (["late_nap"], {"daily_readiness": readiness}, "Readiness 82, HRV balance 77"),
        (["late_nap"], {"daily_sleep": daily_sleep}, "Slept 0h30, HRV 54ms"),
        (["late_nap", "long_sleep"], {}, "Slept 1h00, HRV 54ms"),
    ],
    ids=["a nap", "two short ones", "only readiness", "a closed night", "a long sleep"],
)
def test_nap_is_not_the_night_of_today(world, types, others, sentence):
    today = date.today()
    world.oura.empty()
    world.oura.collections["sleep"] = [session(today, 1800, type=one) for one in types]
    for collection, document in others.items():
        world.oura.collections[collection] = [document(today)]
    ended = world.run(day="today")
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.notes == ([sentence] if sentence else [])
    nothing = f"No Oura data for {today} — nothing pushed.\n"
    assert ended.out.endswith(f". {sentence}.\n" if sentence else nothing)


def test_nap_of_a_day_that_is_over_counts(world):
    world.oura.empty()
    world.oura.collections["sleep"] = [session(seconds=1800, type="late_nap")]
    assert world.run().code == 0
    assert world.petals.stored == {str(DAY): {"oura_sleep_minutes": 30}}


# --- Without Petals ----------------------------------------------------------------------------


class TestDryRun:
    def test_prints_what_would_be_sent(self, world, monkeypatch):
        monkeypatch.delenv("PETALS_API_KEY")
        ended = world.run("--dry-run")
        rows = json.loads(ended.out)
        values = {row["metric"]["slug"].replace("-", "_"): row["value"] for row in rows}
        assert list(values.items()) == list(VALUES.items())
        assert [list(row) for row in rows] == [["metric", "value", "occurredAt"]] * 3
        assert {row["occurredAt"] for row in rows} == {AT}
        assert (ended.code, ended.err, world.petals.requests) == (0, "", [])

    def test_prints_an_empty_array_without_data(self, world):
        world.oura.empty()
        assert world.run("--dry-run") == Ended(0, "[]\n", "")

    def test_prints_nothing_if_all_days_fail(self, week):
        week.oura.fail(READINESS, httpx.Response(400))
        problem = week.run("--dry-run", "--days", "7").failed()
        assert problem.startswith("2026-06-04 to 2026-06-10: Oura daily_readiness answered 400")

    def test_fails_if_the_disk_is_full(self, world, monkeypatch):
        full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
        monkeypatch.setattr(sys, "stdout", full)
        problem = "the output could not be written: No space left on device"
        assert world.run("--dry-run").failed() == problem

    def test_is_well_if_its_reader_has_gone(self, world, monkeypatch):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
        assert world.run("--dry-run") == Ended(0, "", "")


class TestDemo:
    def test_shows_a_night_with_all_metrics(self, world):
        ended = world.run("--demo")
        *table, last = ended.out.splitlines()
        metrics = list(oura_to_petals.METRICS.values())
        values = ["82", "77", "432", "82", "54", "90", "102", "240", "91", "48", "14.5", "-0.1"]
        for line, metric, value in zip(table, metrics, values, strict=True):
            assert line.split() == [*metric.label.split(), value, metric.unit]
        assert last == f"Demo: would push 12 observations. {SENTENCE}."
        assert (ended.code, ended.err) == (0, "")

    def test_makes_no_request(self, world):
        assert world.run("--demo", "-v") == world.run("--demo")
        assert world.oura.requests == world.petals.requests == []

    def test_needs_no_settings(self, world, monkeypatch):
        for name in ("OURA_TOKEN", "OURA_METRICS", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "nonsense://two words")
        ended = world.run("--demo", "--env-file", "/nowhere/at/all")
        assert (ended.code, ended.err) == (0, "")


# --- Command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "ago"), [(None, 1), ("yesterday", 1), ("Yesterday", 1), ("today", 0), ("TODAY", 0)]
)
def test_day_is_yesterday_or_named(world, day, ago):
    expected = date.today() - timedelta(days=ago)
    text = f"No Oura data for {expected} — nothing pushed.\n"
    assert world.run(day=day) == Ended(0, text, "")


@pytest.mark.parametrize(("now", "latest"), [("09:59", DAY), ("10:00", DAY + timedelta(days=1))])
def test_day_may_have_begun_anywhere_on_earth(world, monkeypatch, now, latest):
    class Clock(datetime):
        @classmethod
        def now(cls, tz):
            return datetime.fromisoformat(f"{DAY}T{now}+00:00").astimezone(tz)

    monkeypatch.setattr(oura_to_petals, "datetime", Clock)
    world.oura.empty()
    for day in ("2015-01-01", str(latest)):
        assert world.run(day=day).out == f"No Oura data for {day} — nothing pushed.\n"
    ended = world.run(day=str(latest + timedelta(days=1)))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith(f", from 2015-01-01 to {latest}\n")


class TestClock:
    @pytest.fixture
    def in_1970(self, monkeypatch):
        class Frozen(date):
            @classmethod
            def today(cls):
                return cls(1970, 1, 1)

        monkeypatch.setattr(oura_to_petals, "date", Frozen)

    @pytest.mark.parametrize("option", ["--quiet", "--check", "--login", "--dry-run", "--days=7"])
    @pytest.mark.parametrize("day", [None, "today", str(DAY)])
    def test_that_is_wrong_is_told(self, world, in_1970, option, day):
        problem = "this machine's clock says 1970-01-01: set it"
        assert world.run(option, day=day).failed() == problem
        assert world.oura.requests == world.petals.requests == []

    def test_is_not_needed_for_the_demo(self, world, in_1970):
        assert world.run("--demo", day=None).code == 0

    @pytest.mark.parametrize(
        ("zone", "known"),
        [
            ("Europe/Berlin", True),
            (":Europe/Berlin", True),
            ("UTC", True),
            ("CET-1CEST,M3.5.0,M10.5.0/3", True),
            ("<+03>-3", True),
            ("UTC-14", True),
            ("", True),
            ("Europe/Berln", False),
            ("Berlin", False),
            ("Europe", False),
        ],
    )
    def test_has_a_time_zone_that_the_machine_knows(self, world, monkeypatch, zone, known):
        monkeypatch.setenv("TZ", zone)
        warning = f"there is no time zone TZ={zone} here: days are those of UTC"
        ended = world.run()
        assert (ended.code, ended.problems) == (0, [] if known else [warning])


@pytest.mark.parametrize(
    "day",
    ["Tomorrow", "", "20260610", "2026-W24-3", "2026-02-30", "2014-12-31", " 2026-06-10",
     "2026-06-1\u0660", "0", "None"],
)  # fmt: skip
def test_any_other_day_is_exit_2(world, day):
    ended = world.run(day=day)
    assert (ended.code, ended.out) == (2, "")
    choice = "is no day to send: use today, yesterday or YYYY-MM-DD, from 2015-01-01 to "
    assert f"error: argument --date: {day!r} {choice}" in ended.err
    assert world.oura.requests == world.petals.requests == []


@pytest.mark.parametrize(
    "argv", ["--dry-run --demo", "--dry", "--login --check", "--check --dry-run", "x", "--date"]
)
def test_wrong_usage_is_exit_2(world, argv):
    ended = world.run(*argv.split())
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("usage: ")
    assert world.oura.requests == world.petals.requests == []


def test_quiet_shows_problems_only(world):
    assert world.run("--quiet") == Ended(0, "", "")
    assert world.petals.stored_once()
    world.oura.fail(SLEEP, httpx.Response(400))
    assert world.run("-q").failed().startswith("2026-06-10: Oura sleep answered 400")


def test_verbose_shows_each_request_and_no_key(world):
    ended = world.run("-v")
    assert (ended.code, ended.out) == (0, PUSHED)
    assert len(ended.problems) == 5
    assert all(line.startswith("HTTP Request: ") for line in ended.problems)
    assert world.run().err == ""
    assert KEY not in ended.err
    assert TOKEN not in ended.err


def test_version_is_shown(world):
    version = f"oura_to_petals {oura_to_petals.__version__}\n"
    assert world.run("--version") == Ended(0, version, "")


def test_help_names_the_exit_codes(world):
    ended = world.run("--help")
    assert (ended.code, ended.err) == (0, "")
    codes = "exit codes: 0 done, 1 something failed, 2 wrong usage or settings, 130 interrupted"
    assert codes in " ".join(ended.out.split())
