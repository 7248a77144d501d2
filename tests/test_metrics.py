"""Everything that the ring measured, for whoever wants it."""

from __future__ import annotations

import json

import httpx
import pytest
from conftest import World
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
    "seconds": 1800,
    "type": "sleep",
    "deep_sleep_duration": 600,
    "rem_sleep_duration": None,
    "light_sleep_duration": 1200,
    "efficiency": 50,
    "lowest_heart_rate": 60,
    "average_breath": 20,
    "average_hrv": 20,
}


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


def test_all_twelve_go_in_three_reads_and_one_push(choose: World) -> None:
    choose.choose("all")
    ended = choose.run()
    assert choose.petals.stored == {"2026-06-10": ALL}
    assert (len(choose.oura.requests), len(choose.petals.requests)) == (3, 2)
    assert ended.out == (
        "Pushed 12 observations for 2026-06-10. Slept 7h42, readiness 82, HRV 54ms.\n"
    )


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


@pytest.mark.parametrize("text", ["oura-steps", "default,x", ",", "all;default", "ALL"])
def test_an_unknown_metric_is_exit_2_with_the_list(choose: World, text: str) -> None:
    choose.choose(text)
    ended = choose.run()
    assert (ended.code, ended.out, len(ended.problems)) == (2, "", 1)
    assert "OURA_METRICS" in ended.err
    for slug in oura_to_petals.METRICS:
        assert slug in ended.err
    assert choose.oura.requests == []


def test_sleep_is_not_read_where_no_chosen_metric_needs_it(choose: World) -> None:
    choose.choose("oura-readiness,oura-sleep-score,oura-temperature-deviation")
    ended = choose.run()
    assert choose.oura.asked("/sleep") == []
    assert ended.out == ("Pushed 3 observations for 2026-06-10. Readiness 82, HRV balance 77.\n")


def test_the_sentence_says_what_was_read_whichever_metrics_are_chosen(choose: World) -> None:
    choose.choose("oura-temperature-deviation")
    choose.oura.collections["daily_sleep"] = [daily_sleep(total_sleep_duration=25_920)]
    assert choose.run().out == (
        "Pushed 1 observation for 2026-06-10. Slept 7h12, readiness 82, HRV balance 77.\n"
    )
    choose.choose("oura-deep-minutes")
    assert "Slept 7h12, readiness 82, HRV 54ms." in choose.run().out


def test_a_day_with_nothing_to_say_is_sent_without_a_sentence(choose: World) -> None:
    choose.choose("oura-sleep-score")
    choose.oura.collections["daily_readiness"] = []
    ended = choose.run()
    assert ended.out == "Pushed 1 observation for 2026-06-10.\n"
    assert choose.petals.notes == []


@pytest.mark.parametrize("path", ["/daily_readiness", "/daily_sleep"])
def test_a_read_that_no_chosen_metric_needs_may_fail(choose: World, path: str) -> None:
    choose.choose("oura-sleep-score" if path == "/daily_readiness" else "oura-readiness")
    choose.oura.fail(path, httpx.Response(400))
    ended = choose.run()
    assert (ended.code, ended.err) == (0, "")


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


def test_each_missing_metric_is_defined_with_words_of_its_own(choose: World) -> None:
    choose.choose("all")
    choose.use(Petals(known=()))
    assert choose.run().code == 0
    defined = [one["metric"] for one in choose.petals.sent("/observations")]
    assert len(defined) == 12
    for words in ("slug", "label", "description"):
        assert len({one[words] for one in defined}) == 12
    assert choose.petals.stored == {"2026-06-10": ALL}


def test_the_readmes_table_is_the_codes_table() -> None:
    readme = (oura_to_petals.Path(__file__).parents[1] / "README.md").read_text()
    for metric in oura_to_petals.METRICS.values():
        row = f"| `{metric.slug}` | {metric.label} | {metric.unit} |"
        assert row in readme
    assert readme.count("| `oura-") == len(oura_to_petals.METRICS)


def test_the_dry_run_shows_the_chosen_ones(choose: World) -> None:
    choose.choose("all")
    rows = json.loads(choose.run("--dry-run").out)
    assert [row["metric"]["slug"].replace("-", "_") for row in rows] == list(ALL)
