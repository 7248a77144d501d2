"""One night, whole and right, from Oura to Petals."""

from __future__ import annotations

import json
import threading
import time
from datetime import date, timedelta

import httpx
import pytest
from conftest import World
from services import DAY, KEY, TOKEN, GuidePetals, Petals, daily_sleep, hang, readiness, session

BULK = "/api/memory/metrics/observations/bulk"
SINGLE = "/api/memory/metrics/observations"
THE_THREE = {"oura_readiness": 82, "oura_hrv": 77, "oura_sleep_minutes": 432}


def test_a_real_server_gets_the_day_under_its_own_id(world: World) -> None:
    ended = world.run()

    at = f"{DAY}T00:00:00Z"
    assert world.petals.sent(BULK) == [
        {
            "sourceExternalId": "oura_2026-06-10",
            "observations": [
                {
                    "metricSlug": "oura_readiness",
                    "value": 82,
                    "occurredAt": at,
                    "note": "Slept 7h12, readiness 82, HRV 54ms",
                },
                {"metricSlug": "oura_hrv", "value": 77, "occurredAt": at},
                {"metricSlug": "oura_sleep_minutes", "value": 432, "occurredAt": at},
            ],
        }
    ]
    assert ended.out == (
        "Pushed 3 observations for 2026-06-10. Slept 7h12, readiness 82, HRV 54ms.\n"
    )
    assert (ended.code, ended.err) == (0, "")


def test_a_server_as_in_the_guide_gets_the_guides_array(guide_world: World) -> None:
    ended = guide_world.run()

    def row(slug: str, label: str, unit: str, value: int) -> dict:
        metric = {"slug": slug, "label": label, "unit": unit, "aggregationHint": "avg"}
        return {"metric": metric, "value": value, "occurredAt": "2026-06-10T00:00:00Z"}

    assert guide_world.petals.sent(BULK) == [
        [
            row("oura-readiness", "Oura readiness score", "score", 82),
            row("oura-hrv", "Oura HRV balance", "score", 77),
            row("oura-sleep-minutes", "Oura sleep duration", "minutes", 432),
        ]
    ]
    assert ended.out == (
        "Pushed 3 observations for 2026-06-10. Slept 7h12, readiness 82, HRV balance 77.\n"
    )
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(405),
        httpx.Response(200, json={"metrics": None}),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"metrics": {}}),
        httpx.Response(200, text="<html>Petals</html>"),
    ],
    ids=["405", "metrics is null", "an array", "metrics is an object", "a page"],
)
def test_whatever_has_no_list_of_metrics_is_a_server_as_in_the_guide(
    world: World, answer: httpx.Response
) -> None:
    world.use(GuidePetals())
    world.petals.fail("/list", answer)
    assert world.run().code == 0
    assert set(world.petals.stored["2026-06-10"].values()) == {82, 77, 432}


def test_a_key_goes_only_to_its_own_service(world: World) -> None:
    world.run()
    for request in world.oura.requests:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert KEY not in f"{request.headers} {request.url}"
    for request in world.petals.requests:
        assert request.headers["x-api-key"] == KEY
        assert TOKEN not in f"{request.headers} {request.url} {request.content!r}"


def test_oura_is_asked_for_a_day_more_on_both_sides(world: World) -> None:
    world.run()
    asked = {request.url.path: dict(request.url.params) for request in world.oura.requests}
    window = {"start_date": "2026-06-09", "end_date": "2026-06-11"}
    fields = "day,type,total_sleep_duration,average_hrv"
    assert asked == {
        "/v2/usercollection/daily_readiness": window,
        "/v2/usercollection/daily_sleep": window,
        "/v2/usercollection/sleep": {**window, "fields": fields},
    }


@pytest.mark.parametrize("window", ["closed", "start exclusive", "end exclusive"])
@pytest.mark.parametrize("in_daily_sleep", [True, False])
def test_three_values_under_each_meaning_of_dates_and_each_shape(
    world: World, window: str, in_daily_sleep: bool
) -> None:
    world.oura.window = window
    days = [DAY - timedelta(days=1), DAY, DAY + timedelta(days=1)]
    total = {"total_sleep_duration": 25_920} if in_daily_sleep else {}
    world.oura.collections = {
        "daily_readiness": [readiness(day, score=82 if day == DAY else 5) for day in days],
        "daily_sleep": [daily_sleep(day, **total) for day in days],
        "sleep": [session(day, 25_920 if day == DAY else 60) for day in days],
    }
    assert world.run().code == 0
    assert world.petals.stored == {"2026-06-10": THE_THREE}


def test_documents_on_later_pages_are_found(world: World) -> None:
    world.oura.page = 1
    world.oura.collections["sleep"] = [session(seconds=3600), session(seconds=7200)]
    world.run()
    assert world.petals.stored["2026-06-10"]["oura_sleep_minutes"] == 180


@pytest.mark.parametrize(
    ("sessions", "minutes"),
    [
        ([session(seconds=25_920)], 432),
        ([session(seconds=14_400), session(seconds=10_800, type="sleep")], 420),
        ([session(seconds=14_400), session(seconds=3600, type="late_nap")], 300),
        ([session(seconds=14_400), session(seconds=3600, type="rest")], 240),
        ([session(seconds=14_400), session(seconds=3600, type="deleted")], 240),
        ([session(seconds=14_400), session(seconds=3600, type=None)], 300),
        ([session(seconds=14_400), session(seconds=None)], 240),
        ([session(seconds=29)], 0),
        ([session(seconds=30)], 1),
        ([session(seconds=90)], 2),
        ([session(seconds=86_400)], 1440),
        ([session(seconds=None)], None),
        ([session(type="rest")], None),
        ([], None),
    ],
)
def test_total_sleep_is_the_sum_of_the_real_sessions(
    world: World, sessions: list[dict], minutes: int | None
) -> None:
    world.oura.collections["sleep"] = sessions
    assert world.run().code == 0
    assert world.petals.stored["2026-06-10"].get("oura_sleep_minutes") == minutes


@pytest.mark.parametrize(("in_the_day", "minutes"), [(25_200, 420), (0, 0), (None, 432)])
def test_a_total_in_daily_sleep_goes_before_the_sessions(
    world: World, in_the_day: int | None, minutes: int
) -> None:
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = in_the_day
    assert world.run().code == 0
    assert world.petals.stored["2026-06-10"]["oura_sleep_minutes"] == minutes


def test_a_session_without_a_type_counts(world: World) -> None:
    del world.oura.collections["sleep"][0]["type"]
    world.run()
    assert world.petals.stored["2026-06-10"] == THE_THREE


@pytest.mark.parametrize(
    ("collections", "line", "slugs"),
    [
        (
            {"daily_readiness": []},
            "Pushed 1 observation for 2026-06-10. Slept 7h12, HRV 54ms.",
            {"oura_sleep_minutes"},
        ),
        (
            {"daily_readiness": [readiness(score=None)]},
            "Pushed 2 observations for 2026-06-10. Slept 7h12, HRV 54ms.",
            {"oura_hrv", "oura_sleep_minutes"},
        ),
        (
            {"daily_readiness": [readiness(contributors=None)]},
            "Pushed 2 observations for 2026-06-10. Slept 7h12, readiness 82, HRV 54ms.",
            {"oura_readiness", "oura_sleep_minutes"},
        ),
        (
            {"daily_readiness": [readiness(hrv_balance=None)], "sleep": []},
            "Pushed 1 observation for 2026-06-10. Readiness 82.",
            {"oura_readiness"},
        ),
        (
            {"sleep": [session(seconds=25_320, average_hrv=None)]},
            "Pushed 3 observations for 2026-06-10. Slept 7h02, readiness 82, HRV balance 77.",
            set(THE_THREE),
        ),
        (
            {"daily_readiness": [readiness(score=None)], "sleep": []},
            "Pushed 1 observation for 2026-06-10. HRV balance 77.",
            {"oura_hrv"},
        ),
        (
            {
                "sleep": [
                    session(seconds=3600, type="sleep", average_hrv=20),
                    session(seconds=None, average_hrv=30),
                    session(seconds=21_600, average_hrv=61),
                    session(seconds=30_000, type="rest", average_hrv=99),
                ]
            },
            "Pushed 3 observations for 2026-06-10. Slept 7h00, readiness 82, HRV 61ms.",
            set(THE_THREE),
        ),
    ],
)
def test_what_is_unknown_is_left_out(
    world: World, collections: dict, line: str, slugs: set[str]
) -> None:
    world.oura.collections |= collections
    ended = world.run()
    assert (ended.code, ended.out) == (0, f"{line}\n")
    assert set(world.petals.stored["2026-06-10"]) == slugs


@pytest.mark.parametrize("answer", [200, 401, 500])
def test_without_data_nothing_is_written(world: World, answer: int) -> None:
    world.oura.collections = {"daily_readiness": [], "daily_sleep": [], "sleep": []}
    world.petals.fail("/list", httpx.Response(answer, json={"metrics": []}), times=4)
    ended = world.run()
    assert ended.out == "No Oura data for 2026-06-10 — nothing pushed.\n"
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.asked("observations") == world.petals.asked("bulk") == []


def test_a_sleep_collection_that_hangs_is_not_waited_for_where_it_is_not_needed(
    world: World,
) -> None:
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = 25_920
    world.oura.fail("/sleep", hang)
    started = time.monotonic()
    ended = world.run()
    assert time.monotonic() - started < 2
    assert "Slept 7h12, readiness 82, HRV balance 77." in ended.out
    assert world.petals.stored["2026-06-10"] == THE_THREE


@pytest.mark.parametrize(
    "documents",
    [httpx.Response(403), httpx.Response(200, json={"data": [session(average_hrv="x")]})],
)
def test_a_failure_of_sleep_is_none_where_it_is_not_needed(
    world: World, documents: httpx.Response
) -> None:
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = 25_920
    world.oura.fail("/sleep", documents)
    ended = world.run()
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.stored["2026-06-10"] == THE_THREE


def test_average_hrv_is_said_where_sleep_was_read_though_not_needed(world: World) -> None:
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = 25_920
    assert "HRV 54ms" in world.run().out


def test_a_server_without_a_sleep_collection_has_no_sessions(world: World) -> None:
    world.oura.collections["sleep"] = None
    ended = world.run()
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.stored["2026-06-10"] == {"oura_readiness": 82, "oura_hrv": 77}


def test_the_three_collections_and_the_list_are_asked_at_once(world: World) -> None:
    together = threading.Barrier(4, timeout=5)

    def meet(_: httpx.Request) -> None:
        together.wait()

    for path in ("/daily_readiness", "/daily_sleep", "/sleep"):
        world.oura.fail(path, meet)
    world.petals.fail("/list", meet)
    assert world.run().code == 0


class TestMetricsThatThePetalsLacks:
    def test_each_is_defined_once_and_not_sent_again_by_bulk(self, world: World) -> None:
        world.use(Petals(known=("oura_hrv",)))
        ended = world.run()
        defined = world.petals.sent(SINGLE)
        assert [one["metric"]["slug"] for one in defined] == [
            "oura_readiness",
            "oura_sleep_minutes",
        ]
        for one in defined:
            assert one["metric"]["description"]
            assert one["metric"]["aggregationHint"] == "avg"
            assert one["occurredAt"] == "2026-06-10T00:00:00Z"
        (bulk,) = world.petals.sent(BULK)
        assert [row["metricSlug"] for row in bulk["observations"]] == ["oura_hrv"]
        assert world.petals.stored == {"2026-06-10": THE_THREE}
        assert ended.out.startswith("Pushed 3 observations for 2026-06-10.")
        assert (ended.code, ended.err) == (0, "")

    def test_what_is_no_metric_in_the_list_is_passed_over(self, world: World) -> None:
        entries = [5, {"label": "x"}, {"slug": ["y"]}, *world.petals.metrics.values()]
        world.petals.fail("/list", httpx.Response(200, json={"metrics": entries}))
        assert world.run().code == 0
        assert world.petals.asked(SINGLE) == []

    def test_on_the_first_run_no_empty_bulk_is_sent(self, world: World) -> None:
        world.use(Petals(known=()))
        assert world.run().code == 0
        assert world.petals.sent(BULK) == []
        assert world.petals.stored == {"2026-06-10": THE_THREE}

    @pytest.mark.parametrize("known", [(), ("oura_hrv",), Petals.KNOWN])
    def test_the_sentence_is_the_note_of_just_one(
        self, world: World, known: tuple[str, ...]
    ) -> None:
        world.use(Petals(known=known))
        world.run()
        assert world.petals.notes == ["Slept 7h12, readiness 82, HRV 54ms"]

    def test_a_review_is_told_and_is_no_failure(self, world: World) -> None:
        world.use(Petals(known=("oura_readiness", "oura_hrv")))
        world.petals.review = True
        ended = world.run()
        assert ended.code == 0
        assert [
            line for line in ended.problems if "oura_sleep_minutes" in line and "review" in line
        ]
        assert len(ended.problems) == 1

    def test_a_value_that_goes_astray_is_told_and_the_others_go(self, world: World) -> None:
        world.use(Petals(known=("oura_readiness", "oura_sleep_minutes")))
        world.petals.alike = {"oura_hrv"}
        ended = world.run()
        assert ended.code == 1
        (problem,) = ended.problems
        for word in ("oura_hrv", "2026-06-10", "remove the value", "rename"):
            assert word in problem
        assert len(world.petals.asked("/list")) == 2
        (bulk,) = world.petals.sent(BULK)
        assert len(bulk["observations"]) == 2
        assert ended.out.startswith("Pushed 2 observations")

    def test_a_metric_that_another_run_defined_meanwhile_is_none_that_went_astray(
        self, world: World
    ) -> None:
        world.use(Petals())
        world.petals.fail("/list", httpx.Response(200, json={"metrics": []}))
        ended = world.run()
        assert (ended.code, ended.err) == (0, "")
        assert world.petals.stored == {"2026-06-10": THE_THREE}

    def test_one_that_is_refused_is_told_and_the_others_go(self, world: World) -> None:
        world.use(Petals(known=("oura_readiness", "oura_sleep_minutes")))
        world.petals.fail(SINGLE, httpx.Response(400, json={"message": "out of range"}))
        ended = world.run()
        assert ended.code == 1
        (problem,) = ended.problems
        assert "oura_hrv" in problem
        assert "out of range" in problem
        assert set(world.petals.stored["2026-06-10"]) == {"oura_readiness", "oura_sleep_minutes"}
        assert ended.out.startswith("Pushed 2 observations")

    def test_where_none_can_be_defined_nothing_is_claimed(self, world: World) -> None:
        world.use(Petals(known=()))
        world.petals.fail(SINGLE, httpx.Response(400), times=3)
        ended = world.run()
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert "oura_readiness, oura_hrv, oura_sleep_minutes could not be defined" in ended.err

    def test_a_refused_key_ends_it(self, world: World) -> None:
        world.use(Petals(known=()))
        world.petals.fail(SINGLE, httpx.Response(401))
        ended = world.run()
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert len(world.petals.asked(SINGLE)) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            {
                "inserted": 2,
                "errors": [{"index": 1, "code": "RANGE_VIOLATION", "message": "77 is too much"}],
            },
            ["oura_hrv", "RANGE_VIOLATION", "77 is too much"],
        ),
        ({"inserted": 3, "errors": [{"index": 9, "code": "RESOLVE_FAILED"}]}, ["RESOLVE_FAILED"]),
        ({"inserted": 3, "errors": ["no"]}, ["no"]),
        ({"inserted": 3, "errors": {"message": "no"}}, ["no"]),
        ({"inserted": 3, "errors": {"0": "bad stuff"}}, ["bad stuff"]),
        (
            {"inserted": 0, "errors": [{"index": n, "message": "x" * 300} for n in range(3)]},
            ["oura_readiness", "oura_hrv", "oura_sleep_minutes"],
        ),
        ({"inserted": 2, "errors": []}, ["2 of 3"]),
        ({"inserted": "3", "errors": []}, ["of 3"]),
        ({"inserted": True, "errors": []}, ["of 3"]),
        ({"errors": []}, ["of 3"]),
        ([], ["no JSON object"]),
    ],
)
def test_an_answer_that_does_not_say_that_all_is_stored_is_a_failure(
    world: World, answer: object, words: list[str]
) -> None:
    world.petals.fail(BULK, httpx.Response(200, json=answer))
    ended = world.run()
    assert (ended.code, ended.out) == (1, "")
    (problem,) = ended.problems
    for word in ["2026-06-10", *words]:
        assert word in problem


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(200, text="fine"), "no JSON object"),
        (httpx.Response(200, json={"inserted": 1}), "1 of 3"),
        (httpx.Response(200, json={"errors": [{"index": 0, "message": "no"}]}), "oura-readiness"),
    ],
)
def test_the_guides_server_is_not_believed_blindly_either(
    guide_world: World, answer: httpx.Response, words: str
) -> None:
    guide_world.petals.fail(BULK, answer)
    ended = guide_world.run()
    assert (ended.code, ended.out) == (1, "")
    assert words in ended.err


def test_a_second_push_of_the_day_replaces_the_first(world: World) -> None:
    world.run()
    world.oura.collections["daily_readiness"] = [readiness(score=84)]
    world.run()
    assert len(world.petals.by_source) == 1
    assert world.petals.stored == {"2026-06-10": THE_THREE | {"oura_readiness": 84}}


@pytest.mark.parametrize("path", ["/daily_readiness", "/daily_sleep", "/sleep"])
def test_a_needed_read_that_fails_leaves_what_is_stored(world: World, path: str) -> None:
    world.run()
    world.oura.fail(path, httpx.Response(400))
    ended = world.run()
    assert (ended.code, ended.out) == (1, "")
    assert len(world.petals.asked(BULK)) == 1
    assert world.petals.stored == {"2026-06-10": THE_THREE}


class TestDryRun:
    def test_it_prints_the_guides_array_and_needs_no_petals(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PETALS_API_KEY")
        ended = world.run("--dry-run")
        rows = json.loads(ended.out)
        assert [(row["metric"]["slug"], row["value"]) for row in rows] == [
            ("oura-readiness", 82),
            ("oura-hrv", 77),
            ("oura-sleep-minutes", 432),
        ]
        assert list(rows[0]) == ["metric", "value", "occurredAt"]
        assert (ended.code, ended.err, world.petals.requests) == (0, "", [])

    def test_without_data_it_prints_an_empty_array(self, world: World) -> None:
        world.oura.collections = {"daily_readiness": [], "daily_sleep": [], "sleep": []}
        ended = world.run("--dry-run")
        assert (ended.code, ended.out, ended.err) == (0, "[]\n", "")

    def test_a_failure_is_not_called_no_data(self, world: World) -> None:
        world.oura.fail("/daily_readiness", httpx.Response(400))
        ended = world.run("--dry-run")
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)


class TestDemo:
    def test_it_shows_what_goes_and_what_comes_back(self, world: World) -> None:
        ended = world.run("--demo")
        assert (ended.code, ended.err) == (0, "")
        assert '"slug": "oura-readiness"' in ended.out
        assert '"jobId"' in ended.out
        assert ended.out.splitlines()[-1].startswith("Pushed 12 observations for 2026-06-10. Slept")
        assert world.oura.requests == world.petals.requests == []

    def test_it_ignores_keys_env_file_and_proxy(
        self, world: World, monkeypatch: pytest.MonkeyPatch, empty_home: object
    ) -> None:
        monkeypatch.setenv("OURA_TOKEN", "two words")
        monkeypatch.setenv("OURA_METRICS", "nonsense")
        monkeypatch.setenv("HTTPS_PROXY", "nonsense://x")
        ended = world.run("--demo", "--env-file", "/nowhere/at/all")
        assert (ended.code, ended.err) == (0, "")


class TestCommandLine:
    def test_yesterday_is_the_default(self, world: World) -> None:
        yesterday = date.today() - timedelta(days=1)
        assert f"No Oura data for {yesterday}" in world.run(day=None).out

    @pytest.mark.parametrize(("word", "days"), [("today", 0), ("yesterday", 1)])
    def test_days_have_names(self, world: World, word: str, days: int) -> None:
        day = date.today() - timedelta(days=days)
        assert f"No Oura data for {day}" in world.run(day=word).out

    @pytest.mark.parametrize(
        "day",
        ["2026-6-1", "20260610", "2026-W24-3", "2026-02-30", "2014-12-31", "Today", "tomorrow", "",
         " 2026-06-10", "2026-06-10T00:00", "2026-06-1\u0660",
         str(date.today() + timedelta(days=1))],
    )  # fmt: skip
    def test_another_day_is_wrong_usage(self, world: World, day: str) -> None:
        ended = world.run(day=day)
        assert (ended.code, ended.out) == (2, "")
        assert world.oura.requests == world.petals.requests == []

    @pytest.mark.parametrize(
        "argv",
        [
            ["--dry-run", "--demo"],
            ["--dry"],
            ["--login", "--check"],
            ["--check", "--dry-run"],
            ["x"],
        ],
    )
    def test_wrong_usage_is_exit_2(self, world: World, argv: list[str]) -> None:
        assert world.run(*argv).code == 2

    def test_the_first_day_is_2015_01_01(self, world: World) -> None:
        assert world.run(day="2015-01-01").code == 0

    def test_quiet_says_nothing_on_success(self, world: World) -> None:
        ended = world.run("--quiet")
        assert (ended.code, ended.out, ended.err) == (0, "", "")

    def test_quiet_still_tells_problems(self, world: World) -> None:
        world.oura.fail("/sleep", httpx.Response(400))
        ended = world.run("-q")
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)

    def test_verbose_shows_each_request_and_no_secret(self, world: World) -> None:
        world.petals.fail(
            "/bulk",
            httpx.Response(200, json={"inserted": 3}, extensions={"reason_phrase": KEY.encode()}),
        )
        ended = world.run("-v")
        assert ended.code == 0
        assert sum("HTTP Request:" in line for line in ended.problems) == 5
        assert KEY not in ended.err
        assert TOKEN not in ended.err
        assert world.run().err == ""

    def test_version(self, world: World) -> None:
        assert world.run("--version").out == "oura_to_petals 1.0.0\n"
