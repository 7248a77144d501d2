"""Metrics that Petals does not know, and what it answers to a day."""

from __future__ import annotations

import threading

import httpx
import pytest
from fakes import (
    AT,
    BULK,
    DAY,
    KEY,
    LIST,
    PUSHED,
    SENTENCE,
    SINGLE,
    TOKEN,
    VALUES,
    Ended,
    Oura,
    Petals,
    answer,
    before,
    local_server,
    readiness,
    well,
)

KEY_ADVICE = "check PETALS_API_KEY from the environment: keys expire after a year; create a new "
AGAIN = "the next run tries again"
RENAME = "rename that metric in Petals and run again"
TWO_OF_THREE = PUSHED.replace("3 observations", "2 observations")
WITHOUT_HRV = {"oura_readiness": 82, "oura_sleep_minutes": 432}
FILED = "Petals filed it under a similar metric of yours"
RACE = "Source oura_2026-06-10 changed before its derived write could be committed"
FULL_DISK = "could not extend file: No space left on device"
NO_COUNT = "Petals did not say how many of 3 observations it stored"
NO_JSON = "Petals observations/bulk answered 200: no JSON object of at most 8 MiB"
SLOW = httpx.ReadTimeout("The read timed out")


@pytest.fixture(params=[True, False], ids=["lists all", "lists those with observations"])
def petals(request, world):
    """Petals in both ways of listing metrics, for a new user."""
    world.petals = Petals(known=(), lists_all=request.param)
    return world.petals


def know(petals, *slugs):
    for slug in slugs:
        petals.define(slug, label=slug)


# --- Unknown metrics ---------------------------------------------------------------------------


def test_unknown_metrics_are_proposed_and_sent_again(world, petals):
    know(petals, "oura_hrv")
    assert world.run() == Ended(0, PUSHED, "")
    paths = [request.url.path for request in petals.requests]
    assert paths == [LIST, BULK, SINGLE, SINGLE, BULK]
    proposals = petals.sent(SINGLE)
    for proposal in proposals:
        assert len(proposal["metric"].pop("description")) > 10
    limits = {"aggregationHint": "avg", "validRangeMin": 0}
    of_score = {"slug": "oura_readiness", "label": "Oura readiness score", "unit": "score"}
    of_sleep = {"slug": "oura_sleep_minutes", "label": "Oura sleep duration", "unit": "minutes"}
    never = {"value": -1, "occurredAt": "0000-01-01T00:00:00Z"}
    assert proposals == [
        {"metric": {**of_score, **limits, "validRangeMax": 100}, **never},
        {"metric": {**of_sleep, **limits, "validRangeMax": 1440}, **never},
    ]
    assert petals.stored_once()
    assert petals.notes == [SENTENCE]


def test_each_metric_is_proposed_once_a_run(week, petals):
    week.oura.collections["daily_readiness"][0]["score"] = None
    text = "Pushed 20 observations for 7 of 7 days, 2026-06-04 to 2026-06-10.\n"
    assert week.run("--days", "7") == Ended(0, text, "")
    slugs = [body["metric"]["slug"] for body in petals.sent(SINGLE)]
    assert slugs == ["oura_hrv", "oura_sleep_minutes", "oura_readiness"]
    assert petals.pushed == [before(n) for n in (0, 0, 1, 1, 2, 3, 4, 5, 6)]
    assert len(petals.asked(LIST)) == 1
    assert petals.singles == []


def test_metric_without_a_value_is_not_proposed(world, petals):
    world.oura.collections["sleep"] = []
    assert world.run().code == 0
    assert set(petals.metrics) == {"oura_readiness", "oura_hrv"}


@pytest.mark.parametrize("known", [(), ("oura_hrv",), (*VALUES,)], ids=["none", "one", "all"])
def test_revised_night_replaces_the_first_one(world, petals, known):
    know(petals, *known)
    world.run()
    world.oura.collections["daily_readiness"] = [readiness(score=84)]
    assert world.run().code == 0
    assert petals.stored_once(oura_readiness=84)
    assert petals.notes == ["Slept 7h12, readiness 84, HRV 54ms"]


def test_metric_deleted_between_two_runs_is_defined_again(world, petals):
    world.run()
    del petals.metrics["oura_hrv"]
    assert world.run() == Ended(0, PUSHED, "")
    assert petals.stored_once()


def test_metric_deleted_during_a_run_is_defined_again(week, petals):
    def delete(_):
        del petals.metrics["oura_hrv"]

    petals.fail(BULK, well, well, delete)
    text = "Pushed 9 observations for 3 of 3 days, 2026-06-08 to 2026-06-10.\n"
    assert week.run("--days", "3") == Ended(0, text, "")
    assert petals.stored == {before(n): VALUES for n in range(3)}


def test_metric_that_vanishes_after_its_proposal_is_told(world, petals):
    know(petals, *VALUES)
    unknown = answer(200, inserted=2, errors=[{"index": 1, "code": "DEFINITION_NOT_FOUND"}])
    petals.fail(BULK, unknown, unknown)
    petals.fail(SINGLE, answer(400, message="no"))
    problem = f"oura_hrv left out: Petals observations answered 400: no; {AGAIN}"
    assert world.run() == Ended(1, TWO_OF_THREE, f"oura_to_petals: {problem}\n")


def test_two_first_runs_at_once_store_values_once(cron):
    petals = Petals(known=(), lists_all=False)
    petals.during_write = threading.Barrier(2, timeout=20).wait
    with local_server(Oura(), petals) as host:
        hosts = {"OURA_HOST": host, "PETALS_HOST": host}
        options = {"OURA_TOKEN": TOKEN, "PETALS_API_KEY": KEY, **hosts}
        runs = [cron.start("--date", str(DAY), **options) for _ in range(2)]
        assert [run.communicate(timeout=30) for run in runs] == [(PUSHED, "")] * 2
        assert len(petals.asked(SINGLE)) == len(petals.rows) == 6  # both stored the day
        petals.during_write = lambda: None
        assert cron.run("--date", str(DAY), **options) == Ended(0, PUSHED, "")
    assert petals.stored_once()


# --- Metrics that stay unknown -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (httpx.Response(500), "answered 500 (4 tries)"),
        (httpx.Response(502), "answered 502 (4 tries)"),
        (SLOW, f": the request failed: {SLOW} (4 tries)"),
        (
            answer(400, message="Jina API error: 503 Service Unavailable"),
            "answered 400: Jina API error: 503 Service Unavailable",
        ),
        (
            answer(400, message="duplicate key value violates unique constraint"),
            "answered 400: duplicate key value violates unique constraint",
        ),
    ],
    ids=["500", "502", "time-out", "embedding service", "duplicate key"],
)
def test_proposal_that_fails_costs_one_day(week, petals, fault, said):
    """It is made again on the next day."""
    know(petals, *WITHOUT_HRV)
    petals.fail(SINGLE, fault, times=4 if "4 tries" in said else 1)
    ended = week.run("--days", "7")
    reason = f"Petals observations {said}".replace("observations :", "observations:")
    assert ended.problems == [f"oura_hrv left out: {reason}; {AGAIN}"]
    text = "Pushed 20 observations for 7 of 7 days, 2026-06-04 to 2026-06-10.\n"
    assert (ended.code, ended.out) == (1, text)
    first, *others = (before(n) for n in range(7))
    assert petals.stored == {first: WITHOUT_HRV} | dict.fromkeys(others, VALUES)
    assert week.run("--days", "7").code == 0
    assert petals.stored == {before(n): VALUES for n in range(7)}
    assert len(petals.rows) == 21


def test_one_reason_of_several_days_is_told_once(week, petals):
    know(petals, *WITHOUT_HRV)
    petals.fail(SINGLE, answer(400, message="no"), times=7)
    ended = week.run("--days", "7")
    assert ended.problems == [f"oura_hrv left out: Petals observations answered 400: no; {AGAIN}"]
    assert len(petals.asked(SINGLE)) == 7


@pytest.mark.parametrize("fault", [SLOW, answer(500), answer(502)], ids=["lost", "500", "502"])
def test_history_of_a_new_user_survives_one_bad_second(world, petals, fault):
    world.oura.fill(60)

    def lose(request):
        petals.answer(request)
        if isinstance(fault, Exception):
            raise fault
        return fault

    petals.fail(SINGLE, well, lose)
    ended = world.run("--days", "60")
    assert (ended.code, ended.err) == (0, "")
    assert len(petals.rows) == 180


def test_metrics_with_one_reason_are_one_line(world, petals):
    petals.fail(SINGLE, *[httpx.Response(500)] * 8, answer(400, message="no"))
    ended = world.run()
    said = "Petals observations answered"
    assert ended.problems == [
        f"oura_readiness, oura_hrv left out: {said} 500 (4 tries); {AGAIN}",
        f"oura_sleep_minutes left out: {said} 400: no; {AGAIN}",
    ]
    assert (ended.code, ended.out) == (1, "")
    assert petals.pushed == [before(0)] * 2


def test_night_of_metrics_that_stay_left_out_is_not_sent(week, petals):
    petals.define("someone_elses", label="Everything")
    petals.similar = dict.fromkeys(VALUES, "someone_elses")
    ended = week.run("--days", "3")
    (problem,) = ended.problems
    assert problem == f"{', '.join(VALUES)} left out: {FILED}; {RENAME}"
    assert (ended.code, ended.out) == (1, "Pushed 0 observations for 0 of 3 days.\n")
    assert petals.pushed == [before(0)] * 2
    assert petals.singles == []


@pytest.mark.parametrize("fault", [SLOW, httpx.ReadError("lost")], ids=["time-out", "lost"])
def test_answer_of_a_proposal_may_be_lost(world, petals, fault):
    def lose(request):
        petals.answer(request)
        raise fault

    petals.fail(SINGLE, lose, times=12)
    assert world.run() == Ended(0, PUSHED, "")
    assert petals.stored_once()


@pytest.mark.parametrize(
    ("limits", "where"),
    [
        ({}, ""),
        ({"low": 0, "high": 100}, ", someone_elses"),
        ({"low": -50, "high": 100}, ""),
    ],
    ids=["no range", "the same range", "a wider range"],
)
def test_nothing_is_stored_in_a_similar_metric(world, petals, limits, where):
    know(petals, *WITHOUT_HRV)
    petals.define("someone_elses", label="My HRV", **limits)
    petals.similar = {"oura_hrv": "someone_elses"}
    problem = f"oura_hrv left out: {FILED}{where}; {RENAME}"
    assert world.run() == Ended(1, TWO_OF_THREE, f"oura_to_petals: {problem}\n")
    assert petals.stored == {str(DAY): WITHOUT_HRV}
    assert petals.singles == []


def test_metric_that_is_filed_elsewhere_is_proposed_once_a_run(week, petals):
    know(petals, *WITHOUT_HRV)
    petals.define("someone_elses", label="My HRV")
    petals.similar = {"oura_hrv": "someone_elses"}
    assert len(week.run("--days", "7").problems) == 1
    assert petals.pushed == [before(n) for n in (0, 0, 1, 2, 3, 4, 5, 6)]
    assert petals.stored == {before(n): WITHOUT_HRV for n in range(7)}


def test_metric_with_the_same_label_is_named(world, petals):
    know(petals, *WITHOUT_HRV)
    petals.define("someone_elses", label="OURA HRV Balance")
    petals.similar = {"oura_hrv": "someone_elses"}
    theirs = {"metricSlug": "someone_elses", "value": 5, "occurredAt": AT}
    petals.singles = [theirs]  # so both ways of listing show it
    problem = f"oura_hrv left out: {FILED}, someone_elses; {RENAME}"
    assert world.run() == Ended(1, TWO_OF_THREE, f"oura_to_petals: {problem}\n")
    assert petals.singles == [theirs]


def test_rename_of_the_other_metric_is_enough(world, petals):
    petals.define("someone_elses", label="Oura HRV balance")
    petals.similar = {"oura_hrv": "someone_elses"}
    assert world.run().code == 1
    petals.define("someone_elses", label="Balance of my mood")
    petals.similar = {}
    assert world.run() == Ended(0, PUSHED, "")
    assert petals.stored_once()


def test_proposal_that_was_taken_says_to_rename(world, petals):
    know(petals, *WITHOUT_HRV)
    petals.fail(SINGLE, answer(200, inserted=0, errors=[], definitionCreated=False))
    problem = f"oura_hrv left out: {FILED}; {RENAME}"
    assert world.run() == Ended(1, TWO_OF_THREE, f"oura_to_petals: {problem}\n")


@pytest.mark.parametrize(
    ("status", "advice"), [(401, KEY_ADVICE), (403, KEY_ADVICE), (429, "try again later")]
)
@pytest.mark.parametrize("path", [SINGLE, BULK])
def test_refused_key_or_a_limit_ends_the_run(world, petals, path, status, advice):
    petals.fail(path, httpx.Response(status), times=4)
    question = path.removeprefix("/api/memory/metrics/")
    tried = " (4 tries)" if status == 429 else ""
    problem = f"2026-06-10: Petals {question} answered {status}{tried}; {advice}"
    assert world.run().failed().startswith(problem)
    assert len(petals.asked(path)) == (4 if tried else 1)
    assert petals.rows == []


# --- The list ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [answer(500), SLOW], ids=["500", "time-out"])
@pytest.mark.parametrize("known", [(), (*VALUES,)], ids=["new user", "old user"])
def test_list_that_fails_means_nothing(world, petals, known, fault):
    know(petals, *known)
    petals.fail(LIST, fault, times=9)
    assert world.run() == Ended(0, PUSHED, "")
    assert petals.stored_once()


def test_outage_is_told_of_the_night(world, petals):
    for path in (LIST, BULK):
        petals.fail(path, answer(500, message="moved"), times=4)
    problem = "2026-06-10: Petals observations/bulk answered 500: moved (4 tries); try again later"
    assert world.run().failed() == problem


@pytest.mark.parametrize("known", [(*VALUES,), (*WITHOUT_HRV,)], ids=["known", "unknown"])
def test_list_entry_that_is_no_metric_is_ignored(world, petals, known):
    know(petals, *known)
    entries = [5, None, [], {}, {"label": None}, {"label": 7}, {"slug": ["oura_hrv"]}]
    petals.fail(LIST, answer(200, metrics=entries))
    assert world.run() == Ended(0, PUSHED, "")
    assert petals.stored_once()


# --- The answer of bulk ------------------------------------------------------------------------


def test_refused_row_is_told_and_the_others_counted(world, petals):
    know(petals, *VALUES)
    petals.define("oura_readiness", label="Mine", low=0, high=50)
    problem = "2026-06-10: Petals stored 2 of 3 observations; oura_readiness refused: outside "
    problem += "the valid range"
    assert world.run() == Ended(1, TWO_OF_THREE, f"oura_to_petals: {problem}\n")
    assert petals.stored == {str(DAY): {"oura_hrv": 77, "oura_sleep_minutes": 432}}


def test_refused_rows_of_several_days_are_counted(week, petals):
    know(petals, *VALUES)
    petals.define("oura_hrv", label="Mine", low=80, high=100)
    ended = week.run("--days", "3")
    reason = "Petals stored 2 of 3 observations; oura_hrv refused: outside the valid range"
    assert ended.problems == [f"{before(n)}: {reason}" for n in range(3)]
    text = "Pushed 6 observations for 3 of 3 days, 2026-06-08 to 2026-06-10.\n"
    assert (ended.code, ended.out) == (1, text)


def test_unknown_and_refused_metrics_are_told_apart(world, petals):
    know(petals, "oura_readiness")
    petals.define("oura_sleep_minutes", label="Mine", low=0, high=1)
    petals.fail(SINGLE, answer(400, message="no"))
    ended = world.run()
    assert ended.problems == [
        "oura_hrv left out: Petals observations answered 400: no; the next run tries again",
        "2026-06-10: Petals stored 1 of 3 observations; oura_sleep_minutes refused: outside "
        "the valid range",
    ]
    assert ended.out == PUSHED.replace("3 observations", "1 observation")


@pytest.mark.parametrize(
    ("inserted", "errors", "problem"),
    [
        (2, [{"index": 1, "code": "RESOLVE_FAILED", "message": "no"}],
         "; oura_hrv refused: no; run again"),
        (2, [{"index": 2, "code": "INVALID_INPUT"}], "; oura_sleep_minutes refused: INVALID_INPUT"),
        (3, [{"index": 9, "code": "INVALID_INPUT"}], "; an observation refused: INVALID_INPUT"),
        (3, [{"index": -1, "message": "no"}], "; an observation refused: no"),
        (2, [{"code": "DEFINITION_NOT_FOUND"}], "; an observation refused: DEFINITION_NOT_FOUND"),
        (3, ["no"], "; an observation refused: no"),
        (3, {"message": "no"}, "; an observation refused: no"),
        (1, [{"index": n, "message": "no"} for n in (0, 1)],
         "; oura_readiness, oura_hrv refused: no"),
        (2, [{"index": 1, "message": "x" * 300}], f"; oura_hrv refused: {'x' * 199}…"),
        (2, [], ""),
        (1, [{"index": n, "message": RACE} for n in (0, 2)],
         f"; oura_readiness, oura_sleep_minutes refused: {RACE}; run again"),
        (2, [{"index": 0, "code": "RESOLVE_FAILED", "message": FULL_DISK}],
         f"; oura_readiness refused: {FULL_DISK}; run again"),
    ],
    ids=[
        "message", "code", "no such row", "a row below 0", "no row", "text", "an object", "two",
        "long", "no reason", "a race", "a full disk",
    ],
)  # fmt: skip
def test_answer_with_refused_rows_is_told(world, inserted, errors, problem):
    world.petals.fail(BULK, answer(200, inserted=inserted, errors=errors))
    ended = world.run()
    assert ended.problems == [f"2026-06-10: Petals stored {inserted} of 3 observations{problem}"]
    assert (ended.code, len(world.petals.requests)) == (1, 2)
    count = "1 observation" if inserted == 1 else f"{inserted} observations"
    assert ended.out == PUSHED.replace("3 observations", count)


def test_day_without_stored_rows_is_not_pushed(world):
    errors = [{"index": n, "code": "RANGE_VIOLATION"} for n in range(3)]
    world.petals.fail(BULK, answer(200, inserted=0, errors=errors))
    why = f"{', '.join(VALUES)} refused: outside the valid range"
    problem = f"2026-06-10: Petals stored 0 of 3 observations; {why}"
    assert world.run().failed() == problem


@pytest.mark.parametrize("content", [{"inserted": 3}, {"inserted": 3, "errors": None}])
def test_answer_without_errors_is_well(world, content):
    world.petals.fail(BULK, answer(200, **content))
    assert world.run() == Ended(0, PUSHED, "")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"inserted": "3"}, NO_COUNT),
        ({"inserted": True}, NO_COUNT),
        ({"errors": []}, NO_COUNT),
        ({}, NO_COUNT),
        ([], NO_JSON),
        (None, NO_JSON),
    ],
    ids=["text", "true", "no count", "empty object", "array", "null"],
)
def test_answer_without_a_count_is_a_failure(world, content, problem):
    world.petals.fail(BULK, httpx.Response(200, json=content))
    assert world.run().failed() == f"2026-06-10: {problem}; check PETALS_HOST"


@pytest.mark.parametrize(
    ("content", "stored", "problem"),
    [
        ({"jobId": "job-1"}, 3, None),
        ({"inserted": 3}, 3, None),
        ({"inserted": 1}, 1, "Petals stored 1 of 3 observations"),
        ({}, 0, f"{NO_COUNT}; check PETALS_HOST"),
        ({"ok": False}, 0, f"{NO_COUNT}; check PETALS_HOST"),
        ({"errors": []}, 0, f"{NO_COUNT}; check PETALS_HOST"),
        (
            {"jobId": "job-1", "errors": [{"index": 0, "message": "no"}]}, 2,
            "Petals stored 2 of 3 observations; oura-readiness refused: no",
        ),
        (
            {"jobId": 1, "errors": [{"index": 1, "code": "DEFINITION_NOT_FOUND"}]}, 2,
            "Petals stored 2 of 3 observations; oura-hrv refused: DEFINITION_NOT_FOUND",
        ),
        ({"inserted": "3"}, 0, f"{NO_COUNT}; check PETALS_HOST"),
        ([], 0, f"{NO_JSON}; check PETALS_HOST"),
    ],
    ids=["a job", "all", "one", "nothing", "foreign", "no errors", "refused", "unknown",
         "no number", "array"],
)  # fmt: skip
def test_answer_of_an_array_server_is_believed(array_world, content, stored, problem):
    array_world.petals.fail(BULK, httpx.Response(200, json=content))
    ended = array_world.run()
    assert ended.problems == ([f"2026-06-10: {problem}"] if problem else [])
    assert ended.code == (1 if problem else 0)
    count = "1 observation" if stored == 1 else f"{stored} observations"
    assert ended.out.startswith(f"Pushed {count} for 2026-06-10." if stored else "")
    assert bool(ended.out) == bool(stored)
    assert array_world.petals.asked(SINGLE) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"accepted", b'{"jobId": "job-1"}'])
def test_202_of_an_array_server_is_believed(array_world, content):
    array_world.petals.fail(BULK, httpx.Response(202, content=content))
    ended = array_world.run()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Pushed 3 observations for 2026-06-10.")
