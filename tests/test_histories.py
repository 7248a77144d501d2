"""Random histories, with an oracle of their own.

Days come, change and vanish at Oura, both services fail in every way that was seen, runs are
interrupted, and nobody runs anything for weeks. After each run, what Petals has is compared with
what the documents say, as they are read here, not as the script reads them.

A longer search, each time another one: HISTORIES=2000 python -m pytest tests/test_histories.py
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import threading
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from datetime import date, timedelta
from functools import partial

import fakes
import httpx
import pytest
import respx
from conftest import new_process
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as search

import oura_to_petals

BULK, LIST, SINGLE = fakes.BULK, fakes.LIST, fakes.SINGLE
READS, TOKENS, KEY = fakes.READS, fakes.TOKENS, fakes.KEY
LONG = int(os.environ.get("HISTORIES", "0"))  # the environment is empty later
ANY = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
PROFILE = settings(ANY, max_examples=14, stateful_step_count=20, derandomize=True)
PROFILE = settings(PROFILE, phases=[Phase.generate])  # to shrink takes minutes
if LONG:
    PHASES = (Phase.generate, Phase.shrink)
    PROFILE = settings(ANY, max_examples=LONG, stateful_step_count=40, phases=PHASES)
ONE_DAY, pick = timedelta(days=1), st.sampled_from


def days_to(last, number):
    return [last - n * ONE_DAY for n in reversed(range(number))]


# --- The oracle --------------------------------------------------------------------------------

SUMS = {f"oura_{name}_minutes": f"{name}_sleep_duration" for name in ("deep", "rem", "light")}
SUMS["oura_sleep_minutes"] = "total_sleep_duration"  # in seconds, like the others
OF_LONGEST = {"oura_hrv_ms": "average_hrv", "oura_sleep_efficiency": "efficiency"}
OF_LONGEST["oura_lowest_heart_rate"] = "lowest_heart_rate"
OF_LONGEST["oura_respiratory_rate"] = "average_breath"
READINESS = ("oura_readiness", "oura_hrv", "oura_temperature_deviation")
DEFAULT = (*READINESS[:2], "oura_sleep_minutes")
ALL = (*SUMS, *OF_LONGEST, *READINESS, "oura_sleep_score")


def of_day(found, name, day):
    """The documents of a day, each one once."""
    text, documents = str(day), found[name] or []
    return list({one["id"]: one for one in documents if one["day"] == text}.values())


def values_of(day, found, chosen):
    """What there is to store for a day, by slug, or None if it has an impossible value."""
    ready = next(iter(of_day(found, "daily_readiness", day)), {})
    asleep = next(iter(of_day(found, "daily_sleep", day)), {})
    sessions = of_day(found, "sleep", day) if asleep or day < Today.now else []  # still asleep
    sessions = [s for s in sessions if s["type"] not in ("rest", "deleted")]
    balance = ready.get("contributors", {}).get("hrv_balance")
    of_readiness = (ready.get("score"), balance, ready.get("temperature_deviation"))
    values = dict(zip(READINESS, of_readiness, strict=True), oura_sleep_score=asleep.get("score"))
    for slug, field in SUMS.items():
        seconds = [s[field] for s in [asleep] if s.get(field) is not None]
        seconds = seconds or [s[field] for s in sessions if s[field] is not None]
        values[slug] = (sum(seconds) + 30) // 60 if seconds else None
    longest = max(sessions, key=lambda s: s["total_sleep_duration"] or 0, default={})
    for slug, field in OF_LONGEST.items():
        value = longest.get(field)
        values[slug] = None if value == 0 and field != "efficiency" else value
    wanted = {slug: values[slug] for slug in chosen if values[slug] is not None}
    return None if wanted.get("oura_readiness", 0) > 100 else wanted


def is_lapse(days, found, chosen):
    """Whether two nights or more lack a needed collection, so that nothing may be sent."""
    of_sleep = {*SUMS, *OF_LONGEST} & {*chosen}
    needed = {"daily_readiness"} if {*READINESS} & {*chosen} else set()
    needed |= {"daily_sleep"} if {*chosen} - {*READINESS} else set()
    documents = {name: [one for day in days for one in of_day(found, name, day)] for name in found}
    totals = [one.get("total_sleep_duration") for one in documents["daily_sleep"]]
    if of_sleep - {"oura_sleep_minutes"} or (of_sleep and (not totals or None in totals)):
        needed.add("sleep")
    if found["sleep"] is None and "sleep" in needed:  # in the guide it has to be superfluous
        return True
    long = [one for one in documents["sleep"] if one["type"] == "long_sleep"]
    nights = [*documents["daily_readiness"], *documents["daily_sleep"], *long]
    return len({one["day"] for one in nights}) > 1 and not all(documents[name] for name in needed)


def rows_by_day(petals):
    """How often Petals has each value of a day."""
    found = {}
    for row in petals.rows:
        slug = (row.get("metric") or {"slug": row.get("metricSlug")})["slug"].replace("-", "_")
        found.setdefault(row["occurredAt"][:10], Counter())[slug, row["value"]] += 1
    return found


# --- Faults ------------------------------------------------------------------------------------
# A fault is a path, the number of requests before it, what happens, and how often in a row.

PAUSE = "a pause"  # between two requests, where only Ctrl-C can happen
PASSING = ["408", "429", "500", "502", "503", "unreachable", "silent", "lost", "502-after"]
KINDS = [*PASSING, "400", "401", "404", "429-in-5", "429-in-3600", "page", "{}", "page-after"]
WRONG = {"null": None, "true": True, "-1": -1, "more": 99}  # what bulk may say it inserted
OF_ROWS = [*WRONG, "less", "less", "less", "RESOLVE_FAILED", "RANGE_VIOLATION", "INVALID_INPUT"]
STOPS = ["Ctrl-C", "Ctrl-C-after"]
OF_LIST = ["[]", '{"metrics": {}}', '{"metrics": [7, {"stats": []}]}', '{"jobId": "j"}']
PATHS = pick([*READS, TOKENS, TOKENS, LIST, SINGLE, BULK, BULK])
STOPPED = pick([READS[0], TOKENS, SINGLE, BULK, PAUSE])  # where the main thread waits
SKIPPED, TIMES = pick([0, 0, 0, 1, 2, 5]), pick([1, 1, 1, 2, 4, 7, 40])
FAULT = (
    st.tuples(PATHS, SKIPPED, pick(KINDS), TIMES)
    | st.tuples(STOPPED, SKIPPED, pick(STOPS), st.just(1))
    | st.tuples(st.just(BULK), SKIPPED, pick(OF_ROWS), TIMES)
    | st.tuples(st.just(LIST), st.just(0), pick(OF_LIST), TIMES)
)
LENGTH, HRV = pick([None, 0, 1230, 9000, 9001, 25_920]), pick([None, 0, 40, 50])
TYPE = pick(["long_sleep", "sleep", "late_nap", "rest", "deleted"])
SLEEP = st.lists(st.tuples(LENGTH, TYPE, HRV), max_size=3)
SCORE, DAILY = pick([None, 0, *range(41, 47), 101]), ["daily_readiness", "daily_sleep"]
FAULTS = st.just([]) | st.lists(FAULT, min_size=1, max_size=1) | st.lists(FAULT, max_size=3)
WHEN, AGO = pick(["today", "yesterday", "by date"]), st.integers(0, 9)
DAYS = st.integers(1, 12) | pick([1, 7])
OPTIONS, LAPSED = st.sets(pick(["--wait", "-v", "-q"])), pick([*[""] * 9, *DAILY, "sleep"])


def passes(faults):
    """Whether there is at most one fault, which passes at once, but for those of the list."""
    faults = [fault for fault in faults if fault[0] != LIST]
    is_small = [kind in PASSING and n == 1 and path != TOKENS for path, _, kind, n in faults]
    return is_small in ([], [True])


def press_ctrl_c():
    """Interrupt the run, which waits for this request or pause."""
    if threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGINT)  # comes back if the script holds it back
    elif not fakes.hanging_ends.wait(0.02):  # until the main thread waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        fakes.hanging_ends.wait(5)


def miscount(server, request, kind):
    """What bulk answers if it loses a row, or confirms nothing. None for the other kind's body."""
    body, is_array = json.loads(request.content), isinstance(server, fakes.ArrayPetals)
    if isinstance(body, list) != is_array:
        return None
    if is_array:
        return fakes.answer(202, jobId=WRONG.get(kind, "j"), errors=[] if kind in WRONG else [kind])
    if kind in WRONG:
        return fakes.answer(200, inserted=WRONG[kind], errors=[])
    rows = body["observations"]
    rows.pop()
    said = server.bulk(body).json() if rows else {"inserted": 0, "errors": []}
    if kind != "less":
        said["errors"].append({"index": len(rows), "code": kind, "message": "no"})
    return fakes.answer(200, **said)


# --- Histories ---------------------------------------------------------------------------------


class Today(date):
    """The date as the script sees it."""

    now = date(2025, 6, 10)

    @classmethod
    def today(cls):
        return cls.now


class Histories(RuleBasedStateMachine):
    """A user with a ring, and both services."""

    def __init__(self, is_array, folder):
        super().__init__()
        self.is_array, self.file, self.patch = is_array, folder / "token.json", pytest.MonkeyPatch()
        self.oura, self.chosen = fakes.Oura(), DEFAULT
        self.embedding_is_down = self.is_hopeless = self.tokens_are_lost = False
        Today.now = date(2025, 6, 10)
        self.patch.setattr(oura_to_petals, "date", Today)
        self.patch.setattr(oura_to_petals, "sleep", self.sleep)
        self.router = respx.mock(assert_all_called=False)
        self.router.start()
        self.router.route(host="petals.chat").mock(side_effect=lambda one: self.petals(one))
        self.router.route().mock(side_effect=self.oura)

    def teardown(self):
        self.router.stop()
        self.patch.undo()

    def sleep(self, _):
        pauses = self.oura.faults[PAUSE]
        if pauses and pauses.pop(0) != fakes.well:
            press_ctrl_c()

    @initialize(
        petals=st.tuples(pick([(), ALL]), st.booleans()),
        oura=st.tuples(pick([1000, 1000, 4]), pick(sorted(fakes.Oura.WINDOWS))),
        token=pick([fakes.TOKEN, "", ""]),  # or the sign-in
        follows_guide=pick([False, False, False, True]),
    )
    def begin(self, petals, oura, token, follows_guide):
        self.petals = fakes.ArrayPetals() if self.is_array else fakes.Petals(*petals)
        self.oura.page, self.oura.window = oura
        self.oura.empty()
        self.follows_guide = follows_guide
        if follows_guide:
            self.oura.collections["sleep"] = None
        sign_in = {"CLIENT_ID": "the-client", "CLIENT_SECRET": "s3cret", "TOKEN_FILE": self.file}
        for name, value in {**sign_in, "TOKEN": token}.items():
            self.patch.setenv(f"OURA_{name}", str(value))
        self.patch.setenv("PETALS_API_KEY", KEY)
        self.oura.tokens = {fakes.TOKEN, "access-1"}
        self.sign_in()
        self.fill(9)

    def sign_in(self):
        refresh = self.oura.refresh_token
        tokens = {"access_token": refresh.replace("refresh", "access"), "refresh_token": refresh}
        self.file.write_text(json.dumps(tokens))
        self.tokens_are_lost = False

    def put(self, day, sleep, n, without=()):
        """Replace what Oura has of a day: `n` is the score, and makes the other values."""
        other, both = n and n % 90, ("average_hrv", "deep_sleep_duration")
        total = {"total_sleep_duration": 18_000 + 61 * (n or 0)} if self.follows_guide else {}
        documents = {
            "daily_readiness": [fakes.readiness(day, n, other)],
            "daily_sleep": [fakes.daily_sleep(day, other, **total)],
            "sleep": [
                fakes.session(day, *some, **dict.fromkeys(both, hrv)) for *some, hrv in sleep
            ],
        }
        for name in [name for name, old in self.oura.collections.items() if old is not None]:
            old, new = self.oura.collections[name], [] if name in without else documents[name]
            self.oura.collections[name] = [one for one in old if one["day"] != str(day)] + new

    def fill(self, days):
        """Nights for the last days, each one different, with a second session each."""
        for day in days_to(Today.now, days):
            n = day.toordinal() % 97
            second, seconds = ("sleep", "late_nap", "rest", "deleted")[n % 4], 20_000 + 61 * n
            self.put(day, [(seconds, "long_sleep", n), (seconds, second, n + 1)], n)

    @rule(days=pick([1, 1, 1, 2, 9, 30, 100]), is_worn=st.booleans())
    @precondition(lambda self: Today.now < date(2026, 1, 1))
    def time_goes_by(self, days, is_worn):
        Today.now += days * ONE_DAY
        self.fill(days if is_worn else 0)

    @rule(ago=st.integers(0, 4), score=SCORE, without=st.sets(pick(DAILY)), sleep=SLEEP)
    def a_day_changes(self, ago, score, without, sleep):
        """It comes late, is revised, or vanishes."""
        self.put(Today.now - ago * ONE_DAY, sleep, score, without)

    @rule(slug=pick(DEFAULT), what=pick(["unknown", "similar", "narrow", "no embedding"]))
    @precondition(lambda self: not self.is_array)
    def petals_changes(self, slug, what):
        """A metric is deleted, with its values, or one of the user's own is in the way."""
        self.delete(slug)
        self.petals.ranges.clear()
        self.petals.define("someone_elses", label="Mine")
        self.petals.similar = {slug: "someone_elses"} if what == "similar" else {}
        if what == "narrow":
            self.petals.define(slug, label="Mine", low=0, high=50)
        self.is_hopeless = what in ("similar", "narrow")
        self.embedding_is_down = what == "no embedding"

    def delete(self, slug):
        self.petals.metrics.pop(slug, None)
        for rows in self.petals.by_source.values():
            rows[:] = [row for row in rows if row["metricSlug"] != slug]

    @rule(chosen=pick([DEFAULT, ALL, ALL[:1]]) | st.sets(pick(ALL), min_size=1))
    def the_user_changes_settings(self, chosen):
        """And the access token expires."""
        self.oura.tokens &= {fakes.TOKEN}
        if not self.follows_guide:
            self.chosen = sorted(chosen)
            self.patch.setenv("OURA_METRICS", ",".join(self.chosen))

    def fail(self, server, kind, request):
        """Answer a request with a fault, or not at all. None is the usual answer."""
        is_processed, is_of_tokens = kind == "lost" or "-after" in kind, request.url.path == TOKENS
        response = server.answer(request) if is_processed else None
        if kind in STOPS:
            press_ctrl_c()
            return response
        if kind in OF_ROWS:
            return miscount(server, request, kind)
        self.tokens_are_lost |= is_processed and is_of_tokens
        if kind == "unreachable":
            raise httpx.ConnectError("[Errno 111] Connection refused")
        if kind in ("silent", "lost"):
            raise httpx.ReadTimeout("The read timed out")
        sent = [request.headers.get(name) for name in ("Authorization", "x-api-key")]
        echo = f"{sent} {request.content.decode() if is_of_tokens else ''}"  # secrets included
        status, _, seconds = kind.removesuffix("-after").partition("-in-")
        if not status.isdigit():
            return httpx.Response(200, text=f"<h1>{echo}</h1>" if status == "page" else kind)
        headers = {"Retry-After": seconds} if seconds else {}
        return httpx.Response(int(status), headers=headers, json={"message": echo})

    def start(self, *argv, faults=()):
        """Run the command line like a process of its own."""
        if self.tokens_are_lost:
            self.sign_in()
        for path, skipped, kind, times in faults:
            server = self.petals if path in (LIST, SINGLE, BULK) else self.oura
            server.fail(path, *[fakes.well] * skipped, *[partial(self.fail, server, kind)] * times)
        if self.embedding_is_down:
            self.petals.fail(SINGLE, fakes.answer(400, message="Jina API error: 503"), times=500)
        self.petals.requests.clear()
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in "12")
        context = pytest.MonkeyPatch.context()
        with context as patch, new_process(patch), redirect_stdout(out), redirect_stderr(err):
            code = oura_to_petals.main(argv)
        self.oura.faults.clear()
        self.petals.faults.clear()
        return fakes.Ended(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))

    def hole(self, asked):
        """The days since the latest one that Petals has, if nobody ran for a while."""
        latest = max([row["occurredAt"][:10] for row in self.petals.rows], default=str(asked[0]))
        missing = (asked[0] - date.fromisoformat(latest)).days
        return days_to(asked[0] - ONE_DAY, min(missing, 90 - len(asked)) if missing > 1 else 0)

    @rule(when=WHEN, ago=AGO, days=DAYS, options=OPTIONS, faults=FAULTS, lapsed=LAPSED)
    def a_run(self, when, ago, days, options, faults, lapsed):
        """Run, look at what came of it, and enter the command that it printed."""
        paths = {path for path, *_ in faults}
        self.oura.tokens &= {fakes.TOKEN} if TOKENS in paths else self.oura.tokens  # so it is asked
        if SINGLE in paths and not self.is_array:
            self.delete("oura_hrv")
        last = Today.now - {"today": 0, "yesterday": 1, "by date": ago}[when] * ONE_DAY
        asked, day = days_to(last, days), str(last) if when == "by date" else when
        perhaps = (self.hole(asked) if when != "by date" and not self.is_array else []) + asked
        sure = asked if LIST in paths else perhaps
        before, truth = rows_by_day(self.petals), self.oura.collections
        # On some mornings, Oura leaves out one collection.
        found = self.oura.collections = truth | ({lapsed: []} if truth.get(lapsed) else {})
        ended = self.start("--date", day, f"--days={days}", *sorted(options), faults=faults)
        self.oura.collections = truth

        bodies = [body for body in self.petals.sent(BULK) if body]
        order = [str(body).partition("occurredAt")[2][4:14] for body in bodies]
        assert order == sorted(order), ended
        lapses = [is_lapse(some, found, self.chosen) for some in (asked, sure, perhaps)]
        assert not any(lapses[:2]) or (ended.code and not bodies), ended
        is_possible = None not in [values_of(day, found, self.chosen) for day in perhaps]
        if is_possible and passes(faults) and not (self.embedding_is_down or self.is_hopeless):
            assert ended.code == 0 or any(lapses), ended
        assert SINGLE in paths or len(self.petals.asked(SINGLE)) <= 12, ended

        lines = [line for line in ended.err.splitlines() if f" --date {last} --days " in line]
        command = shlex.split(lines[0].partition(" --date ")[2]) if lines else ["", "", "0"]
        rest = days_to(last, int(command[2]))
        assert self.is_hopeless or days == 1 or len(lines) == (ended.code != 0), ended
        lines = [] if self.is_hopeless else lines  # what was filed elsewhere is in no command
        if ended.code == 130 and not bodies:
            sure = asked  # it may have ended before it looked at the hole
        are_in = [day for day in sure if day not in rest] if lines or ended.code == 0 else []
        self.compare(ended, before, found, are_in, perhaps)
        if lines:
            self.go_on(["--date", *command], rest)

    another_run, a_third_run = a_run, a_run

    def go_on(self, command, days):
        """Enter the command that a run printed, when everything works again."""
        self.embedding_is_down = False
        before, found = rows_by_day(self.petals), self.oura.collections
        ended = self.start(*command)
        if None not in [values_of(day, found, self.chosen) for day in days]:
            assert (ended.code != 0) == is_lapse(days, found, self.chosen), ended
        self.compare(ended, before, found, days if ended.code == 0 else [], days)

    def compare(self, ended, before, found, sure, perhaps):
        """Petals has all of the `sure` days, perhaps others, and nothing wrong."""
        assert ended.code in ((0, 1, 130) if ended.err else (0, 130)), ended
        for word in ("a bug", KEY, fakes.TOKEN, "s3cret", "access-", "refresh-"):
            assert word not in ended.out + ended.err, (word, ended)
        kept = json.loads(self.file.read_text())["refresh_token"]
        assert self.tokens_are_lost or kept == self.oura.refresh_token, ended
        after = rows_by_day(self.petals)
        for text in {*before, *after, *map(str, perhaps)}:
            day, then, now = date.fromisoformat(text), before.get(text), after.get(text)
            values = values_of(day, found, self.chosen)
            want = Counter((values or {}).items())
            if self.is_array:  # it keeps all that it was ever sent
                then, now = None, Counter(set((now or Counter()) - (then or Counter()))) or None
            here = (text, then, now, want, ended)
            is_right = day in perhaps and want and (not now or now <= want)
            assert now == then or is_right, here
            assert day not in sure or (values is not None and now == want) or values == {}, here
        assert self.is_array or not self.petals.singles, ended


@pytest.mark.parametrize("is_array", [False, True], ids=["today's Petals", "the guide's Petals"])
def test_histories(is_array, tmp_path):
    search(lambda: Histories(is_array, tmp_path), settings=PROFILE)
