"""`--check`: for the day when something is wrong, and the minute after setting up."""

from __future__ import annotations

from datetime import date, timedelta

import httpx
import pytest
from conftest import Clock, World
from services import GuidePetals, Petals

TODAY = date.today()


def check(world: World) -> tuple[int, str, str]:
    ended = world.run("--check", day=None)
    return ended.code, ended.out, ended.err


def test_both_ends_are_right(world: World) -> None:
    world.oura.fill(3, last=TODAY - timedelta(days=1))
    for slug, latest in [
        ("oura_hrv", "2026-06-09T00:00:00.000Z"),
        ("oura_readiness", "2026-06-10T00:00:00.000Z"),
    ]:
        world.petals.metrics[slug]["stats"] = {"latestAt": latest}
    world.petals.metrics["oura_sleep_minutes"].pop("stats")
    code, out, err = check(world)
    of_oura, of_petals = out.splitlines()
    assert (code, err) == (0, "")
    assert of_oura.startswith("Oura: ")
    assert "OURA_TOKEN" in of_oura
    assert str(TODAY - timedelta(days=1)) in of_oura
    assert of_petals.startswith("Petals: ")
    assert "3 of 3" in of_petals
    assert of_petals.endswith("latest observation: 2026-06-10.")
    starts = {request.url.params["start_date"] for request in world.oura.requests}
    assert starts == {str(TODAY - timedelta(days=7))}  # a day more than the seven
    assert [request.url.path for request in world.petals.requests] == ["/api/memory/metrics/list"]


def test_no_night_and_no_metric_yet(world: World) -> None:
    world.use(Petals(known=()))
    code, out, err = check(world)
    assert (code, err) == (0, "")
    assert "no night in the last seven days" in out
    assert "0 of 3 (the next push defines the rest)" in out


def test_a_server_as_in_the_guide_has_no_list(world: World) -> None:
    world.use(GuidePetals())
    code, out, err = check(world)
    assert (code, err) == (0, "")
    assert "first push" in out


@pytest.mark.parametrize("missing", ["OURA_TOKEN", "PETALS_API_KEY"])
def test_a_missing_setting_is_told_and_the_other_end_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    code, out, err = check(world)
    assert code == 1
    assert missing in err
    assert len(err.splitlines()) == len(out.splitlines()) == 1


def test_both_failing_are_two_lines(world: World) -> None:
    for path in ("/daily_readiness", "/daily_sleep", "/sleep"):
        world.oura.fail(path, httpx.Response(401))
    world.petals.fail("/list", httpx.Response(401))
    code, out, err = check(world)
    assert (code, out) == (1, "")
    of_oura, of_petals = err.splitlines()
    assert "OURA_TOKEN" in of_oura
    assert "PETALS_API_KEY" in of_petals


def test_a_read_that_fails_is_a_failure(world: World) -> None:
    world.oura.fail("/daily_sleep", httpx.Response(400))
    code, out, err = check(world)
    assert code == 1
    assert "daily_sleep" in err
    assert str(TODAY) in err
    assert out.startswith("Petals: ")


def test_an_end_that_hangs_leaves_time_for_the_other(world: World, clock: Clock) -> None:
    world.oura.fail("/daily_sleep", clock.never)
    code, out, err = check(world)
    assert code == 1
    assert "given up" in err
    assert out.startswith("Petals: ")
