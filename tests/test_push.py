"""One night, from Oura to Petals."""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import date, timedelta

import httpx
import pytest

import oura_to_petals

# isort: off
from fakes import BULK, LIST, READINESS, READS, SLEEP
from fakes import AT, DAY, PUSHED, SENTENCE, VALUES
from fakes import Ended, Petals, before, daily_sleep, readiness, session

TOTAL = {"total_sleep_duration": 25_920}
TODAY = date.today()
WEEK = "2026-06-04 to 2026-06-10"
NAPS, REST = ([session(before(n), 1800, kind) for n in range(7)] for kind in ("late_nap", "rest"))


# --- What is asked and sent --------------------------------------------------------------------


def test_night_is_sent_in_one_request(world):
    ended = world.run()
    rows = [{"metricSlug": slug, "value": n, "occurredAt": AT} for slug, n in VALUES.items()]
    rows[0]["note"] = SENTENCE
    (body,) = world.petals.sent(BULK)
    assert body == {"sourceExternalId": "oura_2026-06-10", "observations": rows}
    assert [request.url.path for request in world.petals.requests] == [BULK]
    assert ended == Ended(0, PUSHED, "")


def test_array_server_is_sent_an_array(array_world):
    ended = array_world.run()
    rows = [
        ("oura-readiness", "Oura readiness score", "score", 82),
        ("oura-hrv", "Oura HRV balance", "score", 77),
        ("oura-sleep-minutes", "Oura sleep duration", "minutes", 432),
    ]
    for row, (slug, label, unit, value) in zip(array_world.petals.rows, rows, strict=True):
        metric = {"slug": slug, "label": label, "unit": unit, "aggregationHint": "avg"}
        assert row == {"metric": metric, "value": value, "occurredAt": AT}
    assert len(array_world.petals.asked(BULK)) == 2  # no list was asked, so today's form went first
    sentence = "Slept 7h12, readiness 82, HRV balance 77"
    assert ended == Ended(0, PUSHED.replace(SENTENCE, sentence), "")


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
    for path in READS:
        world.oura.fail(path, lambda _: together.wait() and None)
    world.petals.fail(LIST, lambda _: together.wait() and None)
    assert world.run(day="today").code == 0


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


@pytest.mark.parametrize(
    ("seconds", "more", "minutes"),
    [
        (25_920, [], 432),
        (14_400, [session(seconds=10_800, type="sleep")], 420),
        (14_400, [session(seconds=1800, type="late_nap")], 270),
        (14_400, [session(seconds=3600, type="rest")], 240),
        (14_400, [session(seconds=3600, type="deleted")], 240),
        (14_400, [session(seconds=3600, type=None)], 300),
        (14_400, [{"day": str(DAY), "total_sleep_duration": 3600}], 300),
        (14_400, [session(seconds=None)], 240),
        (29, [], 0), (30, [], 1), (86_400, [], 1440), (None, [], None),
    ],
)  # fmt: skip
def test_total_sleep_is_the_sum_of_the_sessions(world, seconds, more, minutes):
    world.oura.collections["sleep"] = [session(seconds=seconds), *more]
    world.oura.page = 1  # all pages are read
    assert world.run().code == 0
    assert world.petals.stored[str(DAY)].get("oura_sleep_minutes") == minutes


@pytest.mark.parametrize("page", [1, 1000], ids=["two pages", "one page"])
def test_session_that_comes_twice_counts_once(world, page):
    world.oura.page = page
    world.oura.collections["sleep"] *= 2
    assert world.run().code == 0
    assert world.petals.stored_once()


def test_sessions_without_an_id_all_count(world):
    sessions = [session(seconds=seconds) | {"id": None} for seconds in (25_920, 3600, 1800)]
    del sessions[0]["id"]
    world.oura.collections["sleep"] = sessions
    assert world.run().code == 0
    assert world.petals.stored_once(oura_sleep_minutes=522)


@pytest.mark.parametrize(("total", "minutes"), [(25_200, 420), (0, 0), (None, 432)])
def test_total_in_daily_sleep_is_preferred(world, total, minutes):
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = total
    assert world.run().code == 0
    assert world.petals.stored_once(oura_sleep_minutes=minutes)


@pytest.mark.parametrize("collection", ["daily_readiness", "daily_sleep"])
def test_last_of_two_documents_of_a_day_counts(world, choose, collection):
    choose("oura-readiness,oura-sleep-score")
    world.petals = Petals(("oura_readiness", "oura_sleep_score"))
    documents = world.oura.collections[collection]
    documents.append({**documents[0], "id": "revised", "score": 60})
    assert world.run().code == 0
    revised = "oura_readiness" if collection == "daily_readiness" else "oura_sleep_score"
    scores = {"oura_readiness": 82, "oura_sleep_score": 85}
    assert world.petals.stored[str(DAY)] == scores | {revised: 60}


# --- What a day can lack -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collections", "line", "slugs"),
    [
        ({"daily_readiness": []}, "1 observation: Slept 7h12, HRV 54ms", "sleep_minutes"),
        ({"daily_readiness": [readiness(score=None)]},
         "2 observations: Slept 7h12, HRV 54ms", "hrv sleep_minutes"),
        ({"daily_readiness": [readiness(contributors=None)]},
         "2 observations: Slept 7h12, readiness 82, HRV 54ms", "readiness sleep_minutes"),
        ({"daily_readiness": [readiness(hrv_balance=None)], "sleep": []},
         "1 observation: Readiness 82", "readiness"),
        ({"sleep": [session(seconds=25_320, average_hrv=None)]},
         "3 observations: Slept 7h02, readiness 82, HRV balance 77", "readiness hrv sleep_minutes"),
        ({"sleep": [session(type="rest")]},
         "2 observations: Readiness 82, HRV balance 77", "readiness hrv"),
        ({"sleep": [session(seconds=3600, average_hrv=20), session(seconds=None, average_hrv=30),
                    session(seconds=21_600, average_hrv=61)]},
         "3 observations: Slept 7h00, readiness 82, HRV 61ms", "readiness hrv sleep_minutes"),
    ],
    ids=["no readiness", "no score", "no contributors", "no balance and no sessions", "no HRV",
         "falsely detected", "HRV of the longest session"],
)  # fmt: skip
def test_missing_values_are_left_out(world, collections, line, slugs):
    world.oura.collections |= collections
    count, _, sentence = line.partition(": ")
    assert world.run() == Ended(0, f"Pushed {count} for 2026-06-10. {sentence}.\n", "")
    assert set(world.petals.stored[str(DAY)]) == {f"oura_{slug}" for slug in slugs.split()}
    assert world.petals.notes == [sentence]


@pytest.mark.parametrize(
    ("empty", "metrics", "nights"),
    [("daily_sleep", "default", 2), ("daily_sleep", "oura-hrv-ms", 2), ("sleep", "default", 2),
     ("sleep", "oura-hrv-ms", 7), ("daily_readiness", "default", 2),
     ("sleep daily_sleep", "default", 2), ("daily_sleep", "oura-sleep-score", 7),
     ("daily_readiness daily_sleep", "default", 2), ("daily_readiness sleep", "default", 2)],
)  # fmt: skip
def test_two_nights_and_an_empty_collection_delete_nothing(week, choose, empty, metrics, nights):
    choose(metrics)
    week.petals = Petals((*VALUES, "oura_sleep_score", "oura_hrv_ms"))
    assert week.run("--days", "7").code == 0
    stored = week.petals.stored
    for collection, documents in week.oura.collections.items():
        del documents[0 if collection in empty.split() else nights :]
    ended = week.run("--days", "7")
    assert ended.problems[0].startswith(f"{WEEK}: Oura ")
    assert all(collection in ended.problems[0] for collection in empty.split())
    assert (ended.code, ended.out) == (1, "Pushed 0 observations for 0 of 7 days.\n")
    assert (week.petals.stored, len(week.petals.pushed)) == (stored, 7)


@pytest.mark.parametrize(
    ("collections", "stored"),
    [
        ({"sleep": REST}, {}),
        ({"sleep": NAPS}, {before(n): {"oura_sleep_minutes": 30} for n in range(7)}),
        ({"sleep": [session()]}, {str(DAY): {"oura_sleep_minutes": 432}}),
        ({"daily_readiness": [readiness()]}, {str(DAY): {"oura_readiness": 82, "oura_hrv": 77}}),
        ({"daily_sleep": [daily_sleep()]}, {}),
    ],
    ids=["rest", "naps", "a new ring", "only readiness", "only a score that is not chosen"],
)
def test_week_without_two_nights_is_no_fault(world, collections, stored):
    world.oura.empty()
    world.oura.collections |= collections
    assert world.run("--days", "7").code == 0
    assert world.petals.stored == stored


@pytest.mark.parametrize(
    ("empty", "metrics", "total", "observations"),
    [("daily_sleep", "oura-readiness", {}, 7), ("sleep", "oura-readiness", {}, 7),
     ("sleep", "default", TOTAL, 21), ("daily_readiness", "oura-sleep-minutes", {}, 7)],
)  # fmt: skip
def test_empty_collection_that_is_not_needed_fails_nothing(
    week, choose, empty, metrics, total, observations
):
    choose(metrics)
    for document in week.oura.collections["daily_sleep"]:
        document |= total
    week.oura.collections[empty] = []
    text = f"Pushed {observations} observations for 7 of 7 days, {WEEK}.\n"
    assert week.run("--days", "7") == Ended(0, text, "")


@pytest.mark.parametrize(
    ("types", "others", "sentence"),
    [
        (["late_nap"], {}, ""),
        (["long_sleep"], {}, ""),  # it is still going on
        (["long_sleep"], {"daily_readiness": readiness}, "Readiness 82, HRV balance 77"),
        (["late_nap"], {"daily_sleep": daily_sleep}, "Slept 0h30, HRV 54ms"),
        (["late_nap", "long_sleep"], {"daily_sleep": daily_sleep}, "Slept 1h00, HRV 54ms"),
    ],
)
def test_sessions_of_today_count_once_the_night_is_closed(world, types, others, sentence):
    world.oura.empty()
    world.oura.collections["sleep"] = [session(TODAY, 1800, type=one) for one in types]
    for collection, document in others.items():
        world.oura.collections[collection] = [document(TODAY)]
    ended = world.run(day="today")
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.notes == ([sentence] if sentence else [])
    assert ended.out.startswith(f"No Oura data for {TODAY} — nothing pushed.") != bool(sentence)


# --- Without Petals ----------------------------------------------------------------------------


def test_dry_run_prints_what_would_be_sent(world, monkeypatch):
    monkeypatch.delenv("PETALS_API_KEY")
    ended = world.run("--dry-run")
    rows = json.loads(ended.out)
    values = {row["metric"]["slug"].replace("-", "_"): row["value"] for row in rows}
    assert list(values.items()) == list(VALUES.items())
    assert {row["occurredAt"] for row in rows} == {AT}
    assert (ended.code, ended.err, world.petals.requests) == (0, "", [])
    world.oura.empty()
    assert world.run("--dry-run") == Ended(0, "[]\n", "")
    world.oura.fail(READINESS, httpx.Response(400))
    assert world.run("--dry-run").failed().startswith("2026-06-10: Oura daily_readiness")


@pytest.mark.parametrize("option", ["--dry-run", "--demo"])
def test_reader_may_have_gone(world, monkeypatch, option):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    assert world.run(option) == Ended(0, "", "")


def test_demo_shows_a_night_without_settings_or_requests(world, monkeypatch):
    for name in ("OURA_TOKEN", "OURA_METRICS", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "nonsense://two words")
    ended = world.run("--demo", "--env-file", "/nowhere/at/all")
    *table, last = ended.out.splitlines()
    metrics = list(oura_to_petals.METRICS.values())
    values = ["82", "77", "432", "82", "54", "90", "102", "240", "91", "48", "14.5", "-0.1"]
    for line, metric, value in zip(table, metrics, values, strict=True):
        assert line.split() == [*metric.label.split(), value, metric.unit]
    assert last.endswith(f"12 observations. {SENTENCE}.")
    assert (ended.code, ended.err) == (0, "")
    assert world.oura.requests == world.petals.requests == []


# --- Command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "ago"), [(None, 1), ("yesterday", 1), ("Yesterday", 1), ("today", 0), ("TODAY", 0)]
)
def test_day_is_yesterday_or_named(world, day, ago):
    ended = world.run(day=day)
    assert (ended.code, ended.err, world.petals.asked(BULK)) == (0, "", [])
    assert ended.out.startswith(f"No Oura data for {before(ago, TODAY)} — nothing pushed.")
    assert ("Oura app" in ended.out) == (ago == 0)  # a second sentence says what to do


def test_day_may_have_begun_in_another_time_zone(world):
    assert [world.run(day=day).code for day in ("2015-01-01", before(-1, TODAY))] == [0, 0]


@pytest.mark.parametrize(
    "day",
    ["Tomorrow", "", "20260610", "2026-W24-3", "2026-02-30", "2014-12-31", " 2026-06-10",
     "2026-06-1\u0660", "0", "None", before(-2, TODAY)],
)  # fmt: skip
def test_any_other_day_is_exit_2(world, day):
    ended = world.run(day=day)
    assert (ended.code, ended.out) == (2, "")
    facts = ("--date", repr(day), "YYYY-MM-DD", "2015-01-01", before(-1, TODAY))
    assert all(fact in ended.err for fact in facts)
    assert world.oura.requests == world.petals.requests == []


@pytest.mark.parametrize(
    "argv", ["--dry-run --demo", "--dry", "--login --check", "--check --dry-run", "x", "--date"]
)
def test_wrong_usage_is_exit_2(world, argv):
    ended = world.run(*argv.split())
    assert (ended.code, ended.out, world.oura.requests) == (2, "", [])
    assert ended.err.startswith("usage: ")


def test_quiet_shows_problems_only(world):
    assert world.run("--quiet") == Ended(0, "", "")
    world.oura.fail(SLEEP, httpx.Response(400))
    assert world.run("-q").failed().startswith("2026-06-10: Oura sleep answered 400")


def test_version_is_shown(world):
    version = f"oura_to_petals {oura_to_petals.__version__}\n"
    assert world.run("--version") == Ended(0, version, "")
