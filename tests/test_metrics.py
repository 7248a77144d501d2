"""The metrics that `OURA_METRICS` chooses."""

from __future__ import annotations

from math import inf, nan

import pytest

# isort: off
from fakes import BULK, DAY, READS, SINGLE, VALUES
from fakes import Ended, Petals, daily_sleep, readiness, session

import oura_to_petals

ALL = VALUES | {
    "oura_sleep_minutes": 462, "oura_sleep_score": 85, "oura_hrv_ms": 54, "oura_deep_minutes": 100,
    "oura_rem_minutes": 102, "oura_light_minutes": 260, "oura_sleep_efficiency": 91,
    "oura_lowest_heart_rate": 48, "oura_respiratory_rate": 14.5, "oura_temperature_deviation": -0.1,
}  # fmt: skip
SENTENCE = "Slept 7h42, readiness 82, HRV 54ms"
NAP = {
    "seconds": 1800, "type": "sleep", "efficiency": 50, "lowest_heart_rate": 60,
    "deep_sleep_duration": 600, "rem_sleep_duration": None, "light_sleep_duration": 1200,
    "average_breath": 20, "average_hrv": 20,
}  # fmt: skip


@pytest.fixture
def night(world):
    """A night with a nap, and a Petals that knows all metrics."""
    world.petals = Petals(known=tuple(ALL))
    false = session(seconds=30_000, type="rest", deep_sleep_duration=9000, average_hrv=99)
    world.oura.collections["sleep"] = [session(**NAP), session(), false]
    return world


def test_all_twelve_take_three_reads_and_one_push(night, choose):
    choose("all")
    assert night.run() == Ended(0, f"Pushed 12 observations for {DAY}. {SENTENCE}.\n", "")
    assert night.petals.stored == {str(DAY): ALL}
    assert sorted(request.url.path for request in night.oura.requests) == sorted(READS)
    assert [request.url.path for request in night.petals.requests] == [BULK]


@pytest.mark.parametrize(
    ("text", "slugs"),
    [
        ("default", [*VALUES]), ("oura-hrv-ms", ["oura_hrv_ms"]), ("oura_hrv_ms", ["oura_hrv_ms"]),
        (" oura-hrv-ms , oura_hrv-ms,Oura-Readiness,", ["oura_readiness", "oura_hrv_ms"]),
        ("OURA_SLEEP_SCORE,Default", [*VALUES, "oura_sleep_score"]), ("ALL, default", [*ALL]),
    ],
)  # fmt: skip
def test_metrics_are_chosen_by_slug(night, choose, text, slugs):
    choose(text)
    assert night.run().code == 0
    assert list(night.petals.stored[str(DAY)]) == slugs


@pytest.mark.parametrize("option", ["--quiet", "--dry-run", "--check"])
@pytest.mark.parametrize(
    ("text", "named"),
    [("oura-steps", ["oura-steps"]), ("default,y,x", ["'x'"]), ("all;x", ["all;x"]), (",", [])],
)  # fmt: skip
def test_unknown_metric_is_exit_2_with_the_choice(night, choose, option, text, named):
    choose(text)
    problem = night.run(option).failed(code=2)
    choice = [slug.replace("_", "-") for slug in ALL]
    assert all(fact in problem for fact in ["OURA_METRICS", *named, *choice, "all", "default"])
    assert night.oura.requests == []


def test_sentence_is_the_same_for_all_choices(night, choose):
    for slug in ALL:
        choose(slug)
        assert night.run() == Ended(0, f"Pushed 1 observation for {DAY}. {SENTENCE}.\n", "")
        assert night.petals.stored == {str(DAY): {slug: ALL[slug]}}


def test_day_may_have_nothing_for_the_sentence(night, choose):
    choose("oura-sleep-score")
    night.oura.collections |= {"daily_readiness": [], "sleep": []}
    assert night.run().out == "Pushed 1 observation for 2026-06-10.\n"
    assert night.petals.notes == []


@pytest.mark.parametrize(
    ("collections", "sentence"),
    [
        ({"daily_readiness": [readiness(score=101)]}, "Slept 7h42, HRV 54ms"),
        ({"daily_readiness": [readiness(hrv_balance="x")], "sleep": []}, "Readiness 82"),
        ({"sleep": [session(average_hrv=-1)]}, "Slept 7h12, readiness 82, HRV balance 77"),
        ({"sleep": [session(average_hrv="54")]}, "Slept 7h12, readiness 82, HRV balance 77"),
        ({"sleep": [session(seconds=-1)]}, "Readiness 82, HRV balance 77"),
        ({"sleep": [session(seconds="x")]}, "Readiness 82, HRV balance 77"),
    ],
)
def test_impossible_value_for_the_sentence_fails_nothing(night, choose, collections, sentence):
    choose("oura-sleep-score")
    night.oura.collections |= collections
    assert night.run() == Ended(0, f"Pushed 1 observation for {DAY}. {sentence}.\n", "")


@pytest.mark.parametrize(
    ("slug", "document", "good", "bad"),
    [
        ("oura-readiness", "daily_readiness score", [0, 100],
         [-1, 101, "82", True, [82], {"value": 82}, nan, inf, 10**400]),
        ("oura-hrv", "daily_readiness hrv_balance", [0, 100], [100.5, "77"]),
        ("oura-hrv", "daily_readiness contributors", [], [[77], "77", False]),
        ("oura-sleep-minutes", "sleep total_sleep_duration", [0, 86_400], [-1, 86_401, "7h", nan]),
        ("oura-sleep-score", "daily_sleep score", [0, 100], [-1, 101, "x"]),
        ("oura-hrv-ms", "sleep average_hrv", [1, 500], [-1, 501, True]),
        ("oura-deep-minutes", "sleep deep_sleep_duration", [0, 86_400], [-1, 86_401, []]),
        ("oura-rem-minutes", "sleep rem_sleep_duration", [0, 86_400], [-1, 86_401]),
        ("oura-light-minutes", "sleep light_sleep_duration", [0, 86_400], [-1, 86_401]),
        ("oura-sleep-efficiency", "sleep efficiency", [0, 100], [-1, 101]),
        ("oura-lowest-heart-rate", "sleep lowest_heart_rate", [20, 250], [19, 251]),
        ("oura-respiratory-rate", "sleep average_breath", [3, 60], [2.9, 61]),
        ("oura-temperature-deviation", "daily_readiness temperature_deviation",
         [-10, 0, 10], [-10.1, 11, nan]),
    ],
)  # fmt: skip
def test_each_metric_has_a_range(night, choose, slug, document, good, bad):
    choose(slug)
    collection, field = document.split()
    make = {"daily_sleep": daily_sleep, "daily_readiness": readiness, "sleep": session}[collection]
    for value in good:
        night.oura.collections[collection] = [make(**{field: value})]
        assert night.run().code == 0
        sent = value // 60 if field.endswith("_duration") else value
        assert night.petals.stored == {str(DAY): {slug.replace("-", "_"): sent}}
    for value in bad:
        night.oura.collections[collection] = [make(**{field: value})]
        problem = night.run().failed()
        assert (problem.startswith(f"2026-06-10: Oura {collection} "), field in problem) == (
            True,
            True,
        )
    assert len(night.petals.asked(BULK)) == len(good)


def test_0_is_not_a_measurement(night, choose):
    choose("all")
    zeros = {"average_hrv": 0, "lowest_heart_rate": 0, "average_breath": 0.0}
    night.oura.collections["sleep"] = [session(**zeros)]
    sentence = "Slept 7h12, readiness 82, HRV balance 77"
    assert night.run() == Ended(0, f"Pushed 9 observations for {DAY}. {sentence}.\n", "")
    unmeasured = {"oura_hrv_ms", "oura_lowest_heart_rate", "oura_respiratory_rate"}
    assert ALL.keys() - night.petals.stored[str(DAY)].keys() == unmeasured


def test_each_metric_is_defined_with_its_words(night, choose):
    choose("all")
    night.petals = Petals(known=())
    assert night.run().code == 0
    proposals = night.petals.sent(SINGLE)
    definitions = [proposal["metric"] for proposal in proposals]
    metrics = oura_to_petals.METRICS.values()
    words = [(one["slug"], one["label"], one["unit"]) for one in definitions]
    assert words == [(one.petals_slug, one.label, one.unit) for one in metrics]
    assert [slug for slug, *_ in words] == [*ALL]
    assert len({one["description"] for one in definitions}) == 12
    for proposal in proposals:
        assert proposal["value"] < proposal["metric"]["validRangeMin"]
        assert proposal["occurredAt"] == "0000-01-01T00:00:00Z"
    assert night.petals.stored == {str(DAY): ALL}
