"""`--check` says whether both services work, and writes to neither."""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest

# isort: off
from fakes import BULK, DAILY_SLEEP, LIST, SINGLE
from fakes import GONE, PAGE, SLOW, ArrayPetals, Ended, Petals, answer, session

TODAY, YESTERDAY = date.today(), date.today() - timedelta(days=1)


def check(world, *options):
    """Run `--check`; return its exit code, and what it says of each service, works or fails."""
    ended = world.run("--check", *options, day=None)
    works = {line.split(":")[0]: line for line in ended.out.splitlines()}
    fails = {re.search("Oura|Petals", problem)[0]: problem for problem in ended.problems}
    assert sorted([*works, *fails]) == ["Oura", "Petals"], ended
    assert world.petals.sent(SINGLE) == []
    assert [body for body in world.petals.sent(BULK) if body] == []  # nothing is stored
    return ended.code, works, fails


@pytest.mark.parametrize("lists_all", [True, False], ids=["lists all", "lists some"])
def test_both_services_work(world, lists_all):
    world.oura.fill(3, last=YESTERDAY)
    world.petals = Petals((*Petals.KNOWN, "mood"), lists_all=lists_all)
    for slug, day in [("oura_hrv", 9), ("oura_hrv", 10), ("oura_readiness", 8), ("mood", 30)]:
        row = {"metricSlug": slug, "value": 5, "occurredAt": f"2026-06-{day:02}T00:00:00.000Z"}
        world.petals.singles.append(row)
    code, works, _ = check(world)
    assert (code, len(works)) == (0, 2)
    assert all(word in works["Oura"] for word in ("OURA_TOKEN", str(YESTERDAY)))
    assert all(word in works["Petals"] for word in ("2 of 3", "2026-06-10"))
    assert {request.method for request in world.oura.requests} == {"GET"}
    assert [request.url.path for request in world.petals.requests] == [LIST]
    assert world.run("--check", "--quiet", day=None) == Ended(0, "", "")


def test_no_night_and_no_observation_yet(world):
    strange = [5, {}, {"slug": ["x"]}, {"slug": "oura_hrv", "stats": None}, {"slug": "oura_hrv"}]
    world.petals.fail(LIST, answer(200, metrics=strange))
    for _ in range(2):
        code, works, _ = check(world)
        assert (code, "0 of 3" in works["Petals"]) == (0, True)
        assert "latest night: none in the last 7 days" in works["Oura"]


@pytest.mark.parametrize("other_fails", [False, True])
@pytest.mark.parametrize(
    ("settings", "service", "name"),
    [
        ({"OURA_TOKEN": ""}, "Oura", "OURA_CLIENT_ID"),
        ({"OURA_TOKEN": "", "OURA_CLIENT_ID": "i", "OURA_CLIENT_SECRET": "s"}, "Oura", "--login"),
        ({"OURA_HOST": "http://x.example"}, "Oura", "OURA_HOST"),
        ({"PETALS_API_KEY": ""}, "Petals", "PETALS_API_KEY"),
        ({"PETALS_API_KEY": "sk-1"}, "Petals", "PETALS_API_KEY"),
    ],
)
def test_a_setting_that_is_seen_to_be_wrong_is_exit_2(
    world, monkeypatch, settings, service, name, other_fails
):
    for setting, value in settings.items():
        monkeypatch.setenv(setting, value)
    if other_fails:
        world.oura.fail(DAILY_SLEEP, answer(400), times=9)
        world.petals.fail(LIST, answer(400), times=9)
    code, works, fails = check(world)
    assert (code, len(works), name in fails[service]) == (2, 0 if other_fails else 1, True)


@pytest.mark.parametrize(
    ("fault", "tries", "said"),
    [
        (answer(500), 4, ["500", "new account", "--date today"]),
        (answer(503), 4, ["503"]),
        (answer(400), 1, ["400", "PETALS_HOST"]),
        *((answer(401), 1, ["401", "PETALS_API_KEY"]), (answer(429), 4, ["429"])),
        (SLOW, 2, ["no answer", "PETALS_HOST"]),
        (PAGE, 1, ["200", "PETALS_HOST"]),
        (answer(200, ok=True), 1, ["PETALS_HOST"]),
    ],
)
def test_a_list_that_fails_is_exit_1(world, fault, tries, said):
    world.petals.fail(LIST, fault, times=9)
    code, works, fails = check(world, "--wait")
    assert (code, [*works], len(world.petals.asked(LIST))) == (1, ["Oura"], tries)
    assert [word for word in said if word not in fails["Petals"]] == []
    assert "new account" in said or "new account" not in fails["Petals"]


def test_a_read_that_fails_is_exit_1(world):
    world.oura.fail(DAILY_SLEEP, answer(400))
    code, works, fails = check(world)
    assert (code, [*works], "400" in fails["Oura"]) == (1, ["Petals"], True)
    world.oura.collections["daily_readiness"] = []
    world.oura.collections["sleep"] = [session(day) for day in (TODAY, YESTERDAY)]
    assert check(world)[0] == 1  # two nights, and no document of other collections
    world.oura.fill(7, last=TODAY)
    world.oura.collections["daily_readiness"][6]["score"] = 101
    assert check(world)[0] == 1


def test_two_services_that_are_out_of_reach_take_ten_seconds_each(world):
    world.petals.fail(LIST, GONE, times=9)
    world.oura.fail(DAILY_SLEEP, GONE, times=9)
    assert check(world)[:2] == (1, {})
    assert world.waited == [1, 2, 4] * 2
    assert [len(world.oura.asked(DAILY_SLEEP)), len(world.petals.asked(LIST))] == [4, 4]


@pytest.mark.parametrize(
    ("bulk", "code", "said"),
    [
        *((answer(status), 0, "key") for status in (400, 422, 500)),
        (answer(202, jobId="job-1"), 0, "key"),
        *((answer(status), 1, "PETALS_API_KEY") for status in (401, 403)),
        *((answer(status), 1, str(status)) for status in (301, 409, 429, 502)),
        *((answer(status), 1, "PETALS_HOST is wrong") for status in (404, 405)),
        *((answer(200, jobId=job, errors=["no"]), 1, "PETALS_HOST") for job in ("", "job-1")),
        *((other, 1, "PETALS_HOST") for other in (answer(202, jobId=""), answer(202), PAGE)),
    ],
)  # fmt: skip
def test_an_empty_array_tells_a_server_of_the_guide_from_a_wrong_address(world, bulk, code, said):
    world.petals = ArrayPetals()  # without a list
    world.petals.fail(BULK, bulk, times=9)
    ended_with, works, fails = check(world)
    assert (ended_with, "Petals" in works) == (code, code == 0)
    assert said in {**works, **fails}["Petals"]
    assert world.petals.sent(BULK)[0] == []
    assert world.petals.rows == []


@pytest.mark.parametrize("listed", [answer(404), answer(405), answer(202, jobId="job-1")])
def test_a_front_that_hides_the_list_looks_like_a_server_of_the_guide(world, listed):
    world.petals.fail(LIST, listed)
    assert check(world)[0] == 0
