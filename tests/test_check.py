"""`--check` says whether both services work, and writes to neither."""

from __future__ import annotations

from datetime import date, timedelta

import httpx
import pytest
from fakes import (
    BULK,
    DAILY_SLEEP,
    LIST,
    READS,
    SINGLE,
    ArrayPetals,
    Ended,
    Petals,
    answer,
    session,
    time_runs_out,
)

OURA = "Oura: reading works with OURA_TOKEN; latest night: none yet.\n"
PETALS = "Petals: the key is accepted; 0 of 3 metrics have observations; latest observation: "
PETALS += "none yet.\n"
SLOW = httpx.ReadTimeout("The read timed out")
NEW = "with a new account, this can be so until the first push"


def check(world, *options):
    return world.run("--check", *options, day=None)


def days_ago(days):
    return date.today() - timedelta(days=days)


@pytest.mark.parametrize("lists_all", [True, False], ids=["lists all", "lists some"])
def test_both_services_work(world, lists_all):
    world.oura.fill(3, last=days_ago(1))
    world.petals = Petals((*Petals.KNOWN, "mood"), lists_all=lists_all)
    for slug, day in [("oura_hrv", 9), ("oura_hrv", 10), ("oura_readiness", 8), ("mood", 30)]:
        row = {"metricSlug": slug, "value": 5, "occurredAt": f"2026-06-{day:02}T00:00:00.000Z"}
        world.petals.singles.append(row)
    oura = OURA.replace("none yet", str(days_ago(1)))
    petals = PETALS.replace("0 of 3", "2 of 3").replace("none yet", "2026-06-10")
    assert check(world) == Ended(0, oura + petals, "")
    assert {request.method for request in world.oura.requests} == {"GET"}
    starts = {request.url.params["start_date"] for request in world.oura.requests}
    assert starts == {str(days_ago(8))}  # two days more than the seven
    assert [request.url.path for request in world.petals.requests] == [LIST]
    assert check(world, "--quiet") == Ended(0, "", "")


def test_metrics_without_observations_are_not_counted(world):
    world.petals = Petals(known=("oura_hrv", "mood"))
    entries = [
        5,
        {},
        {"slug": ["x"]},
        {"slug": "oura_hrv", "stats": None},
        {"slug": "oura_readiness"},
    ]
    world.petals.fail(LIST, answer(200, metrics=entries))
    assert check(world) == check(world) == Ended(0, OURA + PETALS, "")


def test_array_server_has_no_list(world):
    world.petals = ArrayPetals()
    petals = "either this server has no list of metrics, or PETALS_HOST is wrong; the first push "
    petals += "shows which, and whether it accepts the key."
    assert check(world) == Ended(0, f"{OURA}Petals: {petals}\n", "")


@pytest.mark.parametrize(
    ("name", "value", "message", "works"),
    [
        ("OURA_TOKEN", "", "Oura: not set: OURA_CLIENT_ID, OURA_CLIENT_SECRET; put ", PETALS),
        ("PETALS_API_KEY", "", "Petals: not set: PETALS_API_KEY; put what is missing ", OURA),
        ("PETALS_API_KEY", "sk-1", "Petals: PETALS_API_KEY does not begin with petals-", OURA),
    ],
    ids=["no sign-in", "no key", "another key"],
)
def test_wrong_setting_leaves_the_other_service(world, monkeypatch, name, value, message, works):
    monkeypatch.setenv(name, value)
    ended = check(world)
    assert (ended.code, ended.out, len(ended.problems)) == (1, works, 1)
    assert ended.problems[0].startswith(message)


def test_each_failure_is_one_line_without_a_date(world):
    for path in READS:
        world.oura.fail(path, httpx.Response(403))
    world.petals.fail(LIST, httpx.Response(401))
    ended = check(world)
    assert (ended.code, ended.out) == (1, "")
    oura, petals = ended.problems
    assert oura.startswith("Oura: ")
    assert " answered 403; the Oura membership has lapsed or OURA_TOKEN from the " in oura
    assert petals.startswith("Petals: list answered 401; check PETALS_API_KEY from the env")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (httpx.Response(500), f"list answered 500 (4 tries); try again later; {NEW}"),
        (httpx.Response(503), "list answered 503 (4 tries); try again later"),
        (SLOW, f"list: the request failed: {SLOW} (4 tries); check the network and PETALS_HOST"),
        (
            httpx.ConnectError("refused"),
            "could not reach Petals: refused (6 tries); check the network and PETALS_HOST",
        ),
        (httpx.Response(400), "list answered 400; check PETALS_HOST"),
        (
            answer(200, jobId="job-1"),
            "list answered as if it were sent observations; the first push shows whether it "
            "accepts them",
        ),
    ],
    ids=["500", "503", "time-out", "no connection", "400", "a job"],
)
def test_list_that_fails_is_a_failure(world, fault, message):
    world.petals.fail(LIST, fault, times=6)
    prefix = "" if message.startswith("could not reach") else "Petals: "
    assert check(world) == Ended(1, OURA, f"oura_to_petals: {prefix}{message}\n")
    assert world.petals.sent(SINGLE) == world.petals.sent(BULK) == []


def test_failed_read_is_a_failure(world):
    world.oura.fail(DAILY_SLEEP, httpx.Response(400))
    failed = "oura_to_petals: Oura: daily_sleep answered 400; check OURA_HOST\n"
    assert check(world) == Ended(1, PETALS, failed)


def test_impossible_value_of_the_week_is_a_failure(world):
    world.oura.fill(7, last=days_ago(0))
    world.oura.collections["daily_readiness"][6]["score"] = 101
    ended = check(world)
    assert (ended.code, ended.out, len(ended.problems)) == (1, PETALS, 1)
    assert ended.problems[0].startswith("Oura: daily_readiness score is not a number from 0 to 100")


def test_empty_collection_of_the_week_is_a_failure(world):
    world.oura.empty()
    world.oura.collections["sleep"] = [session(days_ago(1))]
    ended = check(world)
    assert (ended.code, ended.out, len(ended.problems)) == (1, PETALS, 1)
    assert ended.problems[0].startswith("Oura: daily_readiness and daily_sleep: no document, ")


@pytest.mark.parametrize(
    ("path", "name", "works"), [(DAILY_SLEEP, "Oura", PETALS), (LIST, "Petals", OURA)]
)
def test_each_service_has_its_own_time(world, path, name, works):
    server = world.oura if name == "Oura" else world.petals
    server.fail(path, time_runs_out)
    what = f"{name} {path.rpartition('/')[2]}"
    problem = f"oura_to_petals: no answer from {what} within 115 seconds\n"
    assert check(world) == Ended(1, works, problem)
