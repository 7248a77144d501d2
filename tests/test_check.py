"""`--check` says whether both services work, and writes to neither."""

from __future__ import annotations

import re
from datetime import date, timedelta

import httpx
import pytest
from conftest import Clock, Ended, World
from services import ArrayPetals, Petals

TODAY = date.today()
OURA = "Oura: reading works with OURA_TOKEN; latest night: none yet.\n"
PETALS = "Petals: the key is accepted; 3 of 3 metrics are defined; latest observation: none yet.\n"
READS = ("/daily_readiness", "/daily_sleep", "/sleep")


def check(world: World) -> Ended:
    return world.run("--check", day=None)


def test_both_services_work(world: World) -> None:
    yesterday = TODAY - timedelta(days=1)
    world.oura.fill(3, last=yesterday)
    for slug, day in [("oura_hrv", "2026-06-09"), ("oura_readiness", "2026-06-10")]:
        world.petals.metrics[slug]["stats"] = {"latestAt": f"{day}T00:00:00.000Z"}
    world.petals.metrics["oura_sleep_minutes"].pop("stats")
    ended = check(world)
    oura, petals = (line.replace("none yet", "{}") for line in (OURA, PETALS))
    assert ended == Ended(0, oura.format(yesterday) + petals.format("2026-06-10"), "")
    assert {request.method for request in world.oura.requests} == {"GET"}
    starts = {request.url.params["start_date"] for request in world.oura.requests}
    assert starts == {str(TODAY - timedelta(days=7))}  # a day more than the seven
    assert [request.url.path for request in world.petals.requests] == ["/api/memory/metrics/list"]


def test_metrics_that_are_not_defined_are_counted(world: World) -> None:
    world.use(Petals(known=("oura_hrv", "oura_readiness", "mood")))
    ended = check(world)
    count = "2 of 3 metrics are defined, the next push defines the others"
    petals = PETALS.replace("3 of 3 metrics are defined", count)
    assert ended == Ended(0, OURA + petals, "")


def test_an_array_server_has_no_list(world: World) -> None:
    world.use(ArrayPetals())
    ended = check(world)
    assert (ended.code, ended.err) == (0, "")
    assert "Petals: it has no list of metrics, so the first push shows whether" in ended.out


@pytest.mark.parametrize(
    ("name", "value", "message", "works"),
    [
        ("OURA_TOKEN", "", "Oura: not signed in: run ", PETALS),
        ("OURA_TOKEN", "petals-x", "Oura: OURA_TOKEN begins with petals-: are the two", PETALS),
        ("PETALS_API_KEY", "", "Petals: not set: PETALS_API_KEY; looked in ", OURA),
    ],
)
def test_a_wrong_setting_is_reported_and_the_other_service_is_checked(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str, works: str
) -> None:
    monkeypatch.setenv(name, value)
    ended = check(world)
    assert (ended.code, ended.out, len(ended.problems)) == (1, works, 1)
    assert ended.err.startswith(f"oura_to_petals: {message}")


def test_each_failure_is_one_line_without_a_date(world: World) -> None:
    for path in READS:
        world.oura.fail(path, httpx.Response(401))
    world.petals.fail("/list", httpx.Response(503), times=4)
    ended = check(world)
    assert (ended.code, ended.out) == (1, "")
    oura, petals = ended.problems
    assert oura.startswith("oura_to_petals: Oura: daily_readiness answered 401; the token is ")
    assert petals == "oura_to_petals: Petals: list answered 503 (4 tries); try again later"
    assert not re.search(r"\d{4}-\d\d", ended.err)


def test_a_read_or_a_day_that_fails_is_a_failure(world: World) -> None:
    world.oura.fail("/daily_sleep", httpx.Response(400))
    failed = "oura_to_petals: Oura: daily_sleep answered 400; check OURA_TOKEN and OURA_HOST\n"
    assert check(world) == Ended(1, PETALS, failed)
    world.oura.fill(2, last=TODAY)
    world.oura.collections["daily_readiness"][1]["score"] = 101
    ended = check(world)
    assert (ended.code, ended.out, len(ended.problems)) == (1, PETALS, 1)
    assert ended.err.startswith("oura_to_petals: Oura: daily_readiness score is not a number from")


def test_a_service_that_does_not_answer_leaves_time_for_the_other(
    world: World, clock: Clock
) -> None:
    world.oura.fail("/daily_sleep", clock.never)
    problem = "oura_to_petals: Oura: no answer from Oura daily_sleep within 58 seconds\n"
    assert check(world) == Ended(1, PETALS, problem)
