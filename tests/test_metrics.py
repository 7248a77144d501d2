"""The metrics that `OURA_METRICS` chooses."""

from __future__ import annotations

import pytest
from conftest import Ended, World
from services import Petals, daily_sleep, readiness, session

import oura_to_petals

ALL = {
    "oura_readiness": 82,
    "oura_hrv": 77,
    "oura_sleep_minutes": 462,
    "oura_sleep_score": 85,
    "oura_hrv_ms": 54,
    "oura_deep_minutes": 100,
    "oura_rem_minutes": 102,
    "oura_light_minutes": 260,
    "oura_sleep_efficiency": 91,
    "oura_lowest_heart_rate": 48,
    "oura_respiratory_rate": 14.5,
    "oura_temperature_deviation": -0.1,
}
NAP = {
    "seconds": 1800, "type": "sleep", "efficiency": 50, "lowest_heart_rate": 60,
    "deep_sleep_duration": 600, "rem_sleep_duration": None, "light_sleep_duration": 1200,
    "average_breath": 20, "average_hrv": 20,
}  # fmt: skip


@pytest.fixture
def choose(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    world.use(Petals(known=tuple(ALL)))
    world.oura.collections["sleep"] = [
        session(**NAP),
        session(),
        session(seconds=30_000, type="rest", deep_sleep_duration=9000, average_hrv=99),
    ]
    world.choose = lambda text: monkeypatch.setenv("OURA_METRICS", text)
    return world


def test_all_twelve_take_three_reads_and_one_push(choose: World) -> None:
    choose.choose("all")
    text = "Pushed 12 observations for 2026-06-10. Slept 7h42, readiness 82, HRV 54ms.\n"
    assert choose.run() == Ended(0, text, "")
    assert choose.petals.stored == {"2026-06-10": ALL}
    assert (len(choose.oura.requests), len(choose.petals.requests)) == (3, 2)


@pytest.mark.parametrize(
    ("text", "slugs"),
    [
        ("default", {"oura_readiness", "oura_hrv", "oura_sleep_minutes"}),
        ("oura-hrv-ms", {"oura_hrv_ms"}),
        (" oura-hrv-ms , oura-hrv-ms,oura-readiness,", {"oura_hrv_ms", "oura_readiness"}),
        ("default,oura-sleep-score", {*list(ALL)[:4]}),
        ("all, default", set(ALL)),
    ],
)
def test_metrics_are_chosen_by_slug(choose: World, text: str, slugs: set[str]) -> None:
    choose.choose(text)
    assert choose.run().code == 0
    assert set(choose.petals.stored["2026-06-10"]) == slugs


@pytest.mark.parametrize(
    ("text", "named"),
    [("oura-steps", "oura-steps"), ("default,y,x", "x, y"), (",", ""), ("all;ALL", "all;ALL")],
)
def test_an_unknown_metric_is_exit_2_with_the_choice(choose: World, text: str, named: str) -> None:
    choose.choose(text)
    ended = choose.run()
    assert (ended.code, ended.out, len(ended.problems)) == (2, "", 1)
    assert f"OURA_METRICS: there is no metric '{named}': choose from oura-readiness" in ended.err
    for slug in [*oura_to_petals.METRICS, "all", "default"]:
        assert slug in ended.err
    assert choose.oura.requests == []


def test_the_sentence_is_the_same_for_all_choices(choose: World) -> None:
    for slug in ("oura-temperature-deviation", "oura-sleep-score", "oura-deep-minutes"):
        choose.choose(slug)
        assert choose.run().out == (
            "Pushed 1 observation for 2026-06-10. Slept 7h42, readiness 82, HRV 54ms.\n"
        )
    assert len(choose.oura.requests) == 9


def test_a_day_with_nothing_for_the_sentence_is_sent_without_one(choose: World) -> None:
    choose.choose("oura-sleep-score")
    choose.oura.collections |= {"daily_readiness": [], "sleep": []}
    assert choose.run().out == "Pushed 1 observation for 2026-06-10.\n"
    assert choose.petals.notes == []


@pytest.mark.parametrize(
    ("collections", "sentence"),
    [
        ({"daily_readiness": [readiness(score=101)]}, "Slept 7h42, HRV 54ms"),
        ({"daily_readiness": [readiness(hrv_balance="x")], "sleep": []}, "Readiness 82"),
        ({"sleep": [session(average_hrv=-1)]}, "Slept 7h12, readiness 82, HRV balance 77"),
        ({"sleep": [session(seconds=-1)]}, "Readiness 82"),
        ({"sleep": [session(seconds="x")]}, "Readiness 82"),
    ],
    ids=["readiness", "balance", "hrv", "negative sleep", "sleep is text"],
)
def test_an_impossible_value_that_no_chosen_metric_needs_fails_nothing(
    choose: World, collections: dict, sentence: str
) -> None:
    choose.choose("oura-sleep-score")
    choose.oura.collections |= collections
    ended = choose.run()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Pushed 1 observation for 2026-06-10. {sentence}")


@pytest.mark.parametrize(
    ("slug", "document", "good", "bad"),
    [
        ("oura-sleep-score", "daily_sleep score", [0, 100], [-1, 101, "x"]),
        ("oura-hrv-ms", "sleep average_hrv", [0, 500], [-1, 501, True]),
        ("oura-deep-minutes", "sleep deep_sleep_duration", [0, 86_400], [-1, 86_401, []]),
        ("oura-rem-minutes", "sleep rem_sleep_duration", [0, 86_400], [-1, 86_401]),
        ("oura-light-minutes", "sleep light_sleep_duration", [0, 86_400], [-1, 86_401]),
        ("oura-sleep-efficiency", "sleep efficiency", [0, 100], [-1, 101]),
        ("oura-lowest-heart-rate", "sleep lowest_heart_rate", [20, 250], [19, 251]),
        ("oura-respiratory-rate", "sleep average_breath", [3, 60], [2.9, 61]),
        (
            "oura-temperature-deviation",
            "daily_readiness temperature_deviation",
            [-10, 0, 10],
            [-10.1, 11, float("nan")],
        ),
    ],
)
def test_each_metric_has_a_range(
    choose: World, slug: str, document: str, good: list, bad: list
) -> None:
    choose.choose(slug)
    collection, field = document.split()
    make = {"daily_sleep": daily_sleep, "daily_readiness": readiness, "sleep": session}[collection]
    for value in good:
        choose.oura.collections[collection] = [make(**{field: value})]
        assert choose.run().code == 0
    for value in bad:
        choose.oura.collections[collection] = [make(**{field: value})]
        ended = choose.run()
        assert ended.code == 1
        assert document in ended.err
    assert len(choose.petals.asked("/bulk")) == len(good)


def test_each_metric_is_defined_with_its_own_words_and_range(choose: World) -> None:
    choose.choose("all")
    choose.use(Petals(known=()))
    assert choose.run().code == 0
    proposals = choose.petals.sent("/metrics/observations")
    assert len(proposals) == 12
    for name in ("slug", "label", "description"):
        assert len({one["metric"][name] for one in proposals}) == 12
    for one, metric in zip(proposals, oura_to_petals.METRICS.values(), strict=True):
        limits = (one["metric"]["validRangeMin"], one["metric"]["validRangeMax"])
        assert (*limits, one["value"]) == (metric.low, metric.high, metric.low - 1)
    assert choose.petals.stored == {"2026-06-10": ALL}
