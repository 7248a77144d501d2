"""One night, from Oura to Petals."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from datetime import date, timedelta

import httpx
import pytest
from conftest import SCRIPT, Ended, World
from services import DAY, KEY, TOKEN, Oura, Petals, daily_sleep, local_server, readiness, session

import oura_to_petals

BULK = "/api/memory/metrics/observations/bulk"
SINGLE = "/api/memory/metrics/observations"
DEFAULT = {"oura_readiness": 82, "oura_hrv": 77, "oura_sleep_minutes": 432}
REFUSED = {"index": 1, "code": "RANGE_VIOLATION", "message": "77 is too much"}
SENTENCE = "Slept 7h12, readiness 82, HRV 54ms"


def answer(status: int, **content: object) -> httpx.Response:
    return httpx.Response(status, json=content)


def assert_stored_once(petals: Petals, **values: int) -> None:
    """Assert that these are all values that Petals has, each once and on the right day."""
    at = f"{DAY}T00:00:00Z"
    expected = {(slug, value, at) for slug, value in (DEFAULT | values).items()}
    rows = Counter((row["metricSlug"], row["value"], row["occurredAt"]) for row in petals.rows)
    assert rows == Counter(expected)


def test_a_night_is_sent_in_one_request(world: World) -> None:
    ended = world.run()
    at = f"{DAY}T00:00:00Z"
    rows = [{"metricSlug": slug, "value": v, "occurredAt": at} for slug, v in DEFAULT.items()]
    rows[0]["note"] = SENTENCE
    assert world.petals.sent(BULK) == [
        {"sourceExternalId": "oura_2026-06-10", "observations": rows}
    ]
    assert ended == Ended(0, f"Pushed 3 observations for 2026-06-10. {SENTENCE}.\n", "")


def test_an_array_server_is_sent_an_array(array_world: World) -> None:
    ended = array_world.run()

    def row(slug: str, label: str, unit: str, value: int) -> dict:
        metric = {"slug": slug, "label": label, "unit": unit, "aggregationHint": "avg"}
        return {"metric": metric, "value": value, "occurredAt": "2026-06-10T00:00:00Z"}

    assert array_world.petals.sent(BULK) == [
        [
            row("oura-readiness", "Oura readiness score", "score", 82),
            row("oura-hrv", "Oura HRV balance", "score", 77),
            row("oura-sleep-minutes", "Oura sleep duration", "minutes", 432),
        ]
    ]
    text = "Pushed 3 observations for 2026-06-10. Slept 7h12, readiness 82, HRV balance 77.\n"
    assert ended == Ended(0, text, "")


@pytest.mark.parametrize(
    "listed",
    [
        httpx.Response(405),
        answer(200, metrics=None),
        answer(200, metrics={}),
        httpx.Response(200, json=[]),
        httpx.Response(200, text="<html>Petals</html>"),
    ],
    ids=["405", "metrics is null", "metrics is an object", "an array", "a page"],
)
def test_a_server_without_a_list_of_metrics_is_an_array_server(
    array_world: World, listed: httpx.Response
) -> None:
    array_world.petals.fail("/list", listed)
    assert array_world.run().code == 0
    assert set(array_world.petals.stored["2026-06-10"].values()) == {82, 77, 432}


def test_each_key_is_sent_only_to_its_own_service(world: World) -> None:
    world.run()
    for request in world.oura.requests:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert KEY not in f"{request.headers} {request.url}"
    for request in world.petals.requests:
        assert request.headers["x-api-key"] == KEY
        assert TOKEN not in f"{request.headers} {request.url} {request.content!r}"


def test_oura_is_asked_for_one_more_day_at_both_ends(world: World) -> None:
    world.run()
    asked = {request.url.path: dict(request.url.params) for request in world.oura.requests}
    fields = set(asked["/v2/usercollection/sleep"].pop("fields").split(","))
    window = {"start_date": "2026-06-09", "end_date": "2026-06-11"}
    names = ("daily_readiness", "daily_sleep", "sleep")
    assert asked == {f"/v2/usercollection/{name}": window for name in names}
    of_sleep = {m.field for m in oura_to_petals.METRICS.values() if m.collection == "sleep"}
    assert fields == {"day", "type", *of_sleep}


@pytest.mark.parametrize("window", ["closed", "start exclusive", "end exclusive"])
@pytest.mark.parametrize("total", [{}, {"total_sleep_duration": 25_920}], ids=["sum", "total"])
def test_only_documents_of_the_day_count(world: World, window: str, total: dict) -> None:
    world.oura.window = window
    days = [DAY - timedelta(days=1), DAY, DAY + timedelta(days=1)]
    world.oura.collections = {
        "daily_readiness": [readiness(day, score=82 if day == DAY else 5) for day in days],
        "daily_sleep": [daily_sleep(day, **total) for day in days],
        "sleep": [session(day, 25_920 if day == DAY else 60) for day in days],
    }
    assert world.run().code == 0
    assert_stored_once(world.petals)


def test_all_pages_are_read(world: World) -> None:
    world.oura.page = 1
    world.oura.collections["sleep"] = [session(seconds=3600), session(seconds=7200)]
    world.run()
    assert world.petals.stored["2026-06-10"]["oura_sleep_minutes"] == 180


@pytest.mark.parametrize(
    ("sessions", "minutes"),
    [
        ([session(seconds=25_920)], 432),
        ([session(seconds=14_400), session(seconds=10_800, type="sleep")], 420),
        ([session(seconds=14_400), session(seconds=3600, type="rest")], 240),
        ([session(seconds=14_400), session(seconds=3600, type="deleted")], 240),
        ([session(seconds=14_400), session(seconds=3600, type=None)], 300),
        ([session(seconds=14_400), session(seconds=None)], 240),
        ([session(seconds=29)], 0),
        ([session(seconds=30)], 1),
        ([session(seconds=86_400)], 1440),
        ([session(seconds=None)], None),
        ([session(type="rest")], None),
        ([], None),
    ],
)
def test_total_sleep_is_the_sum_of_the_sessions(
    world: World, sessions: list[dict], minutes: int | None
) -> None:
    world.oura.collections["sleep"] = sessions
    assert world.run().code == 0
    assert world.petals.stored["2026-06-10"].get("oura_sleep_minutes") == minutes


@pytest.mark.parametrize(("total", "minutes"), [(25_200, 420), (0, 0), (None, 432)])
def test_a_total_in_daily_sleep_is_preferred(world: World, total: int | None, minutes: int) -> None:
    world.oura.collections["daily_sleep"][0]["total_sleep_duration"] = total
    assert world.run().code == 0
    assert_stored_once(world.petals, oura_sleep_minutes=minutes)


def test_a_session_without_a_type_counts(world: World) -> None:
    del world.oura.collections["sleep"][0]["type"]
    world.run()
    assert_stored_once(world.petals)


@pytest.mark.parametrize(
    ("collections", "line", "slugs"),
    [
        ({"daily_readiness": []}, "1 observation: Slept 7h12, HRV 54ms", "sleep_minutes"),
        (
            {"daily_readiness": [readiness(score=None)]},
            "2 observations: Slept 7h12, HRV 54ms", "hrv sleep_minutes",
        ),
        (
            {"daily_readiness": [readiness(contributors=None)]},
            "2 observations: Slept 7h12, readiness 82, HRV 54ms", "readiness sleep_minutes",
        ),
        (
            {"daily_readiness": [readiness(hrv_balance=None)], "sleep": []},
            "1 observation: Readiness 82", "readiness",
        ),
        (
            {"sleep": [session(seconds=25_320, average_hrv=None)]},
            "3 observations: Slept 7h02, readiness 82, HRV balance 77",
            "readiness hrv sleep_minutes",
        ),
        (
            {"daily_readiness": [readiness(score=None)], "sleep": []},
            "1 observation: HRV balance 77", "hrv",
        ),
        (
            {"sleep": [
                session(seconds=3600, type="sleep", average_hrv=20),
                session(seconds=None, average_hrv=30),
                session(seconds=21_600, average_hrv=61),
                session(seconds=30_000, type="rest", average_hrv=99),
            ]},
            "3 observations: Slept 7h00, readiness 82, HRV 61ms", "readiness hrv sleep_minutes",
        ),
    ],
)  # fmt: skip
def test_missing_values_are_left_out(
    world: World, collections: dict, line: str, slugs: str
) -> None:
    world.oura.collections |= collections
    count, _, sentence = line.partition(": ")
    assert world.run() == Ended(0, f"Pushed {count} for 2026-06-10. {sentence}.\n", "")
    assert set(world.petals.stored["2026-06-10"]) == {f"oura_{slug}" for slug in slugs.split()}


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_day_without_data_sends_nothing(world: World, status: int) -> None:
    world.oura.collections = {"daily_readiness": [], "daily_sleep": [], "sleep": []}
    world.petals.fail("/list", answer(status, metrics=[]), times=4)
    assert world.run() == Ended(0, "No Oura data for 2026-06-10 — nothing pushed.\n", "")
    assert world.petals.asked("observations") == world.petals.asked("bulk") == []


@pytest.mark.parametrize("path", ["/daily_readiness", "/daily_sleep", "/sleep"])
@pytest.mark.parametrize("page", [1, 2])
def test_a_day_is_sent_only_if_all_collections_are_read_to_the_end(
    world: World, path: str, page: int
) -> None:
    world.run()
    world.oura.page = 1
    for documents in world.oura.collections.values():
        documents *= 2
    world.oura.fail(path, *[lambda _: None] * (page - 1), answer(404, detail="Not Found"))
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    assert f"2026-06-10: Oura {path[1:]} answered 404: Not Found; " in ended.err
    assert len(world.petals.asked(BULK)) == 1
    assert_stored_once(world.petals)


class TestFailingSleep:
    """The collection `sleep`, which servers as in Petals' guide do not have."""

    TOTAL = {"total_sleep_duration": 25_920}

    @pytest.mark.parametrize(
        ("status", "metrics"),
        [(403, "default"), (404, "oura-readiness,oura-sleep-score"), (500, "default")],
    )
    def test_is_ignored_if_each_daily_sleep_has_a_total(
        self, world: World, monkeypatch: pytest.MonkeyPatch, status: int, metrics: str
    ) -> None:
        monkeypatch.setenv("OURA_METRICS", metrics)
        world.use(Petals((*Petals.KNOWN, "oura_sleep_score")))
        world.oura.collections["daily_sleep"] = [daily_sleep(**self.TOTAL)]
        world.oura.fail("/sleep", httpx.Response(status), times=4)
        ended = world.run()
        assert (ended.code, ended.err) == (0, "")
        assert world.petals.notes == ["Slept 7h12, readiness 82, HRV balance 77"]

    @pytest.mark.parametrize(
        ("documents", "metrics"),
        [
            ([], "default"),
            ([daily_sleep()], "default"),
            ([daily_sleep(**TOTAL), daily_sleep("2026-06-09")], "default"),
            ([daily_sleep(**TOTAL)], "default,oura-hrv-ms"),
            ([daily_sleep()], "oura-readiness"),
        ],
        ids=["no daily_sleep", "no total", "one without", "another metric", "only the sentence"],
    )
    def test_fails_the_days_otherwise(
        self, world: World, monkeypatch: pytest.MonkeyPatch, documents: list, metrics: str
    ) -> None:
        monkeypatch.setenv("OURA_METRICS", metrics)
        world.oura.collections |= {"daily_sleep": documents, "sleep": None}
        ended = world.run("--days", "2")
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "2026-06-09 to 2026-06-10: Oura sleep answered 404" in ended.err
        assert world.petals.asked(BULK) == []


def test_a_value_that_only_the_sentence_needs_fails_nothing(world: World) -> None:
    world.oura.collections["sleep"] = [session(average_hrv=501)]
    ended = world.run()
    assert (ended.code, ended.err) == (0, "")
    assert world.petals.notes == ["Slept 7h12, readiness 82, HRV balance 77"]


def test_the_three_collections_and_the_list_are_asked_at_once(world: World) -> None:
    together = threading.Barrier(4, timeout=5)

    def meet(_: httpx.Request) -> None:
        together.wait()

    for path in ("/daily_readiness", "/daily_sleep", "/sleep"):
        world.oura.fail(path, meet)
    world.petals.fail("/list", meet)
    assert world.run().code == 0


class TestUnknownMetrics:
    def test_each_is_proposed_once_and_its_value_is_sent_as_any_other(self, world: World) -> None:
        world.use(Petals(known=("oura_hrv",)))
        ended = world.run()
        paths = [request.url.path.rpartition("/metrics/")[2] for request in world.petals.requests]
        assert paths == ["list", "observations", "observations", "list", "observations/bulk"]
        proposals = world.petals.sent(SINGLE)
        for proposal in proposals:
            assert len(proposal["metric"].pop("description")) > 10
        limits = {"validRangeMin": 0, "aggregationHint": "avg"}
        of_score = {"slug": "oura_readiness", "label": "Oura readiness score", "unit": "score"}
        of_sleep = {"slug": "oura_sleep_minutes", "label": "Oura sleep duration", "unit": "minutes"}
        at = {"value": -1, "occurredAt": "1970-01-01T00:00:00Z"}
        assert proposals == [
            {"metric": {**of_score, **limits, "validRangeMax": 100}, **at},
            {"metric": {**of_sleep, **limits, "validRangeMax": 1440}, **at},
        ]
        assert ended == Ended(0, f"Pushed 3 observations for 2026-06-10. {SENTENCE}.\n", "")
        assert_stored_once(world.petals)

    @pytest.mark.parametrize("known", [(), ("oura_hrv",), Petals.KNOWN], ids=["0", "1", "3"])
    def test_a_night_that_oura_revises_is_stored_as_revised(
        self, world: World, known: tuple[str, ...]
    ) -> None:
        world.use(Petals(known))
        world.run()
        assert_stored_once(world.petals)
        world.oura.collections["daily_readiness"] = [readiness(score=84)]
        assert world.run().code == 0
        assert_stored_once(world.petals, oura_readiness=84)
        assert world.petals.notes == ["Slept 7h12, readiness 84, HRV 54ms"]

    def test_two_first_runs_at_once_and_one_more_store_each_value_once(
        self, both_keys: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        petals = Petals(known=())
        petals.during_write = threading.Barrier(2, timeout=20).wait
        options = ["--date", str(DAY), "-q"]
        with local_server(Oura(), petals) as host:
            monkeypatch.setenv("OURA_HOST", host)
            monkeypatch.setenv("PETALS_HOST", host)
            runs = [subprocess.Popen([sys.executable, str(SCRIPT), *options]) for _ in range(2)]
            assert [run.wait(30) for run in runs] == [0, 0]
            assert len(petals.asked(SINGLE)) == len(petals.rows) == 6  # both stored the day
            petals.during_write = lambda: None
            assert oura_to_petals.main(options) == 0
        assert_stored_once(petals)
        assert petals.notes == [SENTENCE]

    def test_a_metric_without_a_value_is_not_proposed(self, world: World) -> None:
        world.use(Petals(known=("oura_hrv",)))
        world.oura.collections["sleep"] = []
        assert world.run().code == 0
        assert set(world.petals.metrics) == {"oura_hrv", "oura_readiness"}

    def test_a_definition_refused_for_a_while_is_made_up_for_by_the_next_run(
        self, world: World
    ) -> None:
        world.use(Petals(known=("oura_readiness", "oura_sleep_minutes")))
        world.petals.fail(SINGLE, answer(400, message="the disk is full"))
        ended = world.run()
        assert (ended.code, ended.err) == (
            1,
            "oura_to_petals: oura_hrv left out: Petals observations answered 400: "
            "the disk is full; the next run tries again\n",
        )
        assert set(world.petals.stored["2026-06-10"]) == {"oura_readiness", "oura_sleep_minutes"}
        assert ended.out == f"Pushed 2 observations for 2026-06-10. {SENTENCE}.\n"
        ended = world.run()
        assert (ended.code, ended.err) == (0, "")
        assert_stored_once(world.petals)

    def test_metrics_left_out_for_the_same_reason_are_one_line(self, world: World) -> None:
        world.use(Petals(known=()))
        world.petals.fail(SINGLE, httpx.Response(500), times=3)
        ended = world.run()
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
        assert "oura_readiness, oura_hrv, oura_sleep_minutes left out: Petals" in ended.err
        assert world.petals.asked(BULK) == []

    def test_a_metric_with_the_same_label_is_named_and_not_proposed_to(self, world: World) -> None:
        world.use(Petals(known=("oura_readiness", "oura_sleep_minutes")))
        world.petals.define({"slug": "my_hrv", "label": "OURA HRV Balance", "unit": "score"})
        ended = world.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        assert "oura_hrv left out: your metric my_hrv has the same label; rename" in ended.err
        assert world.petals.asked(SINGLE) == []
        assert set(world.petals.stored["2026-06-10"]) == {"oura_readiness", "oura_sleep_minutes"}

    def test_a_value_filed_under_a_similar_metric_is_reported(self, world: World) -> None:
        world.use(Petals(known=("oura_readiness", "oura_sleep_minutes")))
        world.petals.alike = {"oura_hrv"}
        ended = world.run()
        assert (ended.code, len(ended.problems)) == (1, 1)
        reason = "Petals filed it under a similar metric; rename that metric in Petals"
        assert f"oura_hrv left out: {reason} and run again" in ended.err
        assert set(world.petals.stored["2026-06-10"]) == {"oura_readiness", "oura_sleep_minutes"}

    def test_the_list_decides_whether_a_metric_is_defined(self, world: World) -> None:
        """Another run may define it, or the answer to the proposal may be lost."""

        def lose_answer(request: httpx.Request) -> None:
            world.petals.answer(request)
            raise httpx.ReadError("lost")

        world.use(Petals(known=()))
        world.petals.fail(SINGLE, lose_answer, times=3)
        for stale_list in ([], [httpx.Response(200, json={"metrics": []})]):
            world.petals.fail("/list", *stale_list)
            ended = world.run()
            assert (ended.code, ended.err) == (0, "")
            assert_stored_once(world.petals)
        assert len(world.petals.asked(SINGLE)) == 6

    def test_an_entry_of_the_list_that_is_no_metric_is_ignored(self, world: World) -> None:
        entries = [5, {"label": "x"}, {"slug": ["y"]}, *world.petals.metrics.values()]
        world.petals.fail("/list", answer(200, metrics=entries))
        assert world.run().code == 0
        assert world.petals.asked(SINGLE) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"inserted": 2, "errors": [REFUSED]}, ["oura_hrv", "RANGE_VIOLATION", "77 is too much"]),
        ({"inserted": 3, "errors": [{"index": 9, "code": "RESOLVE_FAILED"}]}, ["RESOLVE_FAILED"]),
        ({"inserted": 3, "errors": ["no"]}, ["no"]),
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
    world: World, content: object, words: list[str]
) -> None:
    world.petals.fail(BULK, httpx.Response(200, json=content))
    ended = world.run()
    assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)
    for word in ["2026-06-10", *words]:
        assert word in ended.err


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(200, text="fine"), "no JSON object"),
        (answer(200, inserted=1), "1 of 3"),
        (answer(200, errors=[{"index": 0, "message": "no"}]), "oura-readiness"),
    ],
)
def test_an_error_in_the_answer_of_an_array_server_is_a_failure(
    array_world: World, response: httpx.Response, words: str
) -> None:
    array_world.petals.fail(BULK, response)
    ended = array_world.run()
    assert (ended.code, ended.out) == (1, "")
    assert words in ended.err


class TestDryRun:
    def test_prints_an_array_and_needs_no_petals(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PETALS_API_KEY")
        ended = world.run("--dry-run")
        rows = json.loads(ended.out)
        values = [(row["metric"]["slug"].replace("-", "_"), row["value"]) for row in rows]
        assert values == list(DEFAULT.items())
        assert list(rows[0]) == ["metric", "value", "occurredAt"]
        assert (ended.code, ended.err, world.petals.requests) == (0, "", [])

    def test_prints_an_empty_array_for_a_day_without_data(self, world: World) -> None:
        world.oura.collections = {"daily_readiness": [], "daily_sleep": [], "sleep": []}
        assert world.run("--dry-run") == Ended(0, "[]\n", "")

    def test_prints_no_array_after_a_failure(self, world: World) -> None:
        world.oura.fail("/daily_readiness", httpx.Response(400))
        ended = world.run("--dry-run")
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)


class TestDemo:
    def test_prints_a_table_of_all_metrics_and_the_usual_line(self, world: World) -> None:
        ended = world.run("--demo")
        *table, last = ended.out.splitlines()
        metrics = list(oura_to_petals.METRICS.values())
        assert (ended.code, ended.err, len(table)) == (0, "", len(metrics))
        values = ["82", "77", "432", "82", "54", "90", "102", "240", "91", "48", "14.5", "-0.1"]
        for line, metric, value in zip(table, metrics, values, strict=True):
            assert line.split() == [*metric.label.split(), value, metric.unit]
        assert last == f"Pushed 12 observations for 2026-06-10. {SENTENCE}."
        assert world.oura.requests == world.petals.requests == []

    def test_needs_no_settings(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("OURA_TOKEN", "OURA_METRICS", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "nonsense://two words")
        ended = world.run("--demo", "--env-file", "/nowhere/at/all")
        assert (ended.code, ended.err) == (0, "")


class TestCommandLine:
    @pytest.mark.parametrize(("day", "ago"), [(None, 1), ("yesterday", 1), ("today", 0)])
    def test_the_day_is_yesterday_or_named(self, world: World, day: str | None, ago: int) -> None:
        expected = date.today() - timedelta(days=ago)
        assert f"No Oura data for {expected}" in world.run(day=day).out

    @pytest.mark.parametrize(
        "day",
        ["20260610", "2026-W24-3", "2026-02-30", "2014-12-31", "tomorrow", "", " 2026-06-10",
         "2026-06-1\u0660", str(date.today() + timedelta(days=1))],
    )  # fmt: skip
    def test_another_day_is_exit_2(self, world: World, day: str) -> None:
        ended = world.run(day=day)
        assert (ended.code, ended.out) == (2, "")
        assert world.oura.requests == world.petals.requests == []

    @pytest.mark.parametrize(
        "argv", ["--dry-run --demo", "--dry", "--login --check", "--check --dry-run", "x"]
    )
    def test_wrong_usage_is_exit_2(self, world: World, argv: str) -> None:
        assert world.run(*argv.split()).code == 2

    def test_the_first_day_is_2015_01_01(self, world: World) -> None:
        assert world.run(day="2015-01-01").code == 0

    def test_quiet_shows_problems_only(self, world: World) -> None:
        assert world.run("--quiet") == Ended(0, "", "")
        world.oura.fail("/sleep", httpx.Response(400))
        ended = world.run("-q")
        assert (ended.code, ended.out, len(ended.problems)) == (1, "", 1)

    def test_verbose_shows_each_request_and_no_key(self, world: World) -> None:
        ended = world.run("-v")
        assert ended.code == 0
        assert sum("HTTP Request:" in line for line in ended.problems) == 5
        assert world.run().err == ""
        for secret in (KEY, TOKEN):
            assert secret not in ended.err

    def test_version_is_shown(self, world: World) -> None:
        version = oura_to_petals.__version__
        assert world.run("--version").out == f"oura_to_petals {version}\n"
