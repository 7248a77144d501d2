"""Which form Petals speaks, metrics that it does not know, and what it confirms of a day."""

from __future__ import annotations

from datetime import date, timedelta

import httpx
import pytest

# isort: off
from fakes import BULK, DAY, LIST, PUSHED, SENTENCE, SINGLE, SLOW, VALUES
from fakes import ArrayPetals, Ended, Petals, answer, before, well

NEVER = "0000-01-01T00:00:00Z"
WITHOUT_HRV = {"oura_readiness": 82, "oura_sleep_minutes": 432}
JINA = answer(400, message="Jina API error: 503 Service Unavailable")
TWIN = answer(400, message="duplicate key value violates unique constraint")
CONFIRMS_NOTHING = [
    *({"inserted": value} for value in (-1, True, "3", 3.0, 4, None, [3])),
    *({"jobId": value} for value in ("", None, 7)),
    {"jobId": "job-1", "errors": [{"index": 0, "message": "no"}]},
    *({}, {"ok": True}, {"errors": []}, [], None, "accepted"),
]


def days(number, values):
    return {before(n): values for n in range(number)}


# --- Unknown metrics ---------------------------------------------------------------------------


def test_unknown_metrics_are_proposed_and_the_day_is_sent_again(world):
    world.petals = petals = Petals(known=("oura_hrv",))
    assert world.run() == Ended(0, PUSHED, "")
    assert [request.url.path for request in petals.requests] == [BULK, SINGLE, SINGLE, BULK]
    proposal = petals.sent(SINGLE)[1]
    assert len(proposal["metric"].pop("description")) > 10
    words = {"slug": "oura_sleep_minutes", "label": "Oura sleep duration", "unit": "minutes"}
    limits = {"aggregationHint": "avg", "validRangeMin": 0, "validRangeMax": 1440}
    assert proposal == {"metric": words | limits, "value": -1, "occurredAt": NEVER}
    assert petals.stored_once()
    assert petals.notes == [SENTENCE]


def test_each_metric_is_proposed_once_a_run_when_it_has_a_value(week):
    week.petals = petals = Petals(known=())
    week.oura.collections["daily_readiness"][6]["score"] = None  # on the oldest day
    assert week.run("--days", "7").code == 0
    slugs = [body["metric"]["slug"] for body in petals.sent(SINGLE)]
    assert slugs == ["oura_hrv", "oura_sleep_minutes", "oura_readiness"]
    assert petals.pushed == [before(n) for n in (6, 6, 5, 5, 4, 3, 2, 1, 0)]
    assert (len(petals.rows), petals.singles) == (20, [])


@pytest.mark.parametrize("known", [(*VALUES,), (*WITHOUT_HRV,)], ids=["before", "by this run"])
def test_a_metric_that_somebody_deletes_is_defined_again(week, known):
    week.petals = petals = Petals(known)

    def delete(_):
        del petals.metrics["oura_hrv"]

    petals.fail(BULK, *[well] * (2 if known == (*VALUES,) else 3), delete)
    assert week.run("--days", "3").code == 0
    assert petals.stored == days(3, VALUES)


@pytest.mark.parametrize("is_defined", [True, False], ids=["defined", "not defined"])
@pytest.mark.parametrize(
    "fault", [SLOW, httpx.ReadError("lost"), answer(500), answer(502), JINA, TWIN], ids=repr
)
def test_two_lost_proposals_in_a_run_cost_nothing(world, fault, is_defined):
    world.petals = petals = Petals(known=())
    world.oura.fill(3)

    def lose(request):
        if is_defined:
            petals.answer(request)
        if isinstance(fault, Exception):
            raise fault
        return fault

    petals.fail(SINGLE, lose, well, lose)
    ended = world.run("--days", "3")
    assert (ended.code, ended.err) == (0, "")
    assert petals.stored == days(3, VALUES)


@pytest.mark.parametrize(("fault", "said"), [(JINA, "Jina API error"), (SLOW, "no answer")])
def test_an_embedding_service_that_is_down_costs_few_requests(world, choose, fault, said):
    """Nine new metrics, thirty days: the known values are in, and the command does the rest."""
    choose("all")
    world.oura.fill(30)
    world.petals.fail(SINGLE, fault, times=500)
    ended = world.run("--days", "30")
    assert (ended.code, ended.err.count(said)) == (1, 1)
    assert ended.problems[-1].startswith("0 of 30 days")
    assert len(world.petals.requests) <= 60
    assert world.petals.stored == days(30, VALUES)
    assert len(world.petals.sent(BULK)[-1]["observations"]) == 3  # without the unknown ones
    world.petals.faults.clear()
    assert world.run(*ended.command, day=None).code == 0
    assert {len(values) for values in world.petals.stored.values()} == {12}
    assert len(world.petals.rows) == 360


def test_a_new_user_whose_proposals_fail_ends_after_five_days(world):
    world.petals = petals = Petals(known=())
    world.oura.fill(30)
    petals.fail(SINGLE, JINA, times=500)
    ended = world.run("--days", "30")
    assert (ended.code, petals.rows, len(petals.requests) <= 20) == (1, [], True)
    assert ended.command == ["--date", before(0), "--days", "30"]


def test_no_metric_is_proposed_after_one_that_failed_nor_on_a_later_day(world):
    world.petals = petals = Petals(known=("oura_sleep_minutes",))
    world.oura.fill(2)
    world.oura.collections["daily_readiness"][1]["score"] = None  # on the older day
    petals.fail(SINGLE, JINA, times=99)
    assert world.run("--days", "2").code == 1
    assert [body["metric"]["slug"] for body in petals.sent(SINGLE)] == ["oura_hrv"] * 4
    assert petals.stored == {before(n): {"oura_sleep_minutes": 432} for n in range(2)}


def test_a_day_without_the_metric_whose_proposal_failed_is_sent_once(world):
    """Petals stops answering after the proposal, and is back for the next day."""
    world.petals = petals = Petals(known=(*WITHOUT_HRV,))
    world.oura.fill(2)
    world.oura.collections["daily_readiness"][0]["contributors"] = None
    petals.fail(SINGLE, answer(500))
    asked_for_ever = AssertionError("it asked for ever")
    petals.fail(BULK, well, *[answer(500)] * 3, *[well] * 20, asked_for_ever)
    ended = world.run("--days", "2")
    assert petals.faults[BULK][-1:] == [asked_for_ever], ended
    assert ended.code == 1
    assert petals.pushed.count(before(0)) == 1
    assert petals.stored[before(0)] == WITHOUT_HRV
    assert world.run(*ended.command, day=None).code == 0
    assert petals.stored[before(1)] == VALUES


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (404, 1), (429, 4)])
def test_a_refused_key_or_a_limit_at_a_proposal_ends_the_run(week, status, tries):
    week.petals = petals = Petals(known=(*WITHOUT_HRV,))
    petals.fail(SINGLE, httpx.Response(status), times=9)
    ended = week.run("--days", "3")
    assert (ended.code, len(petals.asked(SINGLE))) == (1, tries)
    assert str(status) in ended.problems[0]
    assert petals.stored == {before(2): WITHOUT_HRV}
    assert ended.command == ["--date", before(0), "--days", "3"]


# --- Metrics that Petals files elsewhere -------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "is_named"),
    [({}, False), ({"low": 0, "high": 100}, True), ({"low": -50, "high": 100}, False)],
    ids=["no range", "the same range", "a wider range"],
)
def test_a_metric_that_is_filed_elsewhere_is_told_once_and_left_out(week, limits, is_named):
    week.petals = petals = Petals(known=(*WITHOUT_HRV,))
    petals.define("someone_elses", label="Oura HRV balance", **limits)
    petals.similar = {"oura_hrv": "someone_elses"}
    for _ in range(2):  # in each run
        ended = week.run("--days", "3")
        assert (ended.code, len(ended.problems), "3 of 3 days" in ended.out) == (1, 1, True)
        assert "oura_hrv" in ended.err
        assert ("someone_elses" in ended.err) == is_named  # only if the refusal names it
        assert petals.stored == days(3, WITHOUT_HRV)
    assert len(petals.asked(SINGLE)) == 2
    petals.similar = {}  # they gave it another label and description
    assert week.run("--days", "3").code == 0
    assert petals.stored == days(3, VALUES)
    assert petals.singles == []


@pytest.mark.parametrize("number", [1, 7])
def test_a_day_whose_metrics_are_all_filed_elsewhere_is_not_pushed(week, number):
    week.petals = petals = Petals(known=("someone_elses",))
    petals.similar = dict.fromkeys(VALUES, "someone_elses")
    ended = week.run("--days", str(number))
    assert (ended.code, "2026-" in ended.out, "--date" in ended.err) == (1, False, False)
    assert [ended.err.count(slug) for slug in VALUES] == [1, 1, 1]
    assert (petals.rows, len(petals.asked(SINGLE))) == ([], 3)


@pytest.mark.parametrize("is_defined", [True, False])
def test_a_proposal_that_is_taken_counts_as_refused(world, is_defined):
    """Bulk shows whether the metric is known now."""
    world.petals = petals = Petals(known=(*WITHOUT_HRV,))
    taken = answer(200, inserted=0)
    petals.fail(SINGLE, lambda request: (is_defined and petals.answer(request) and taken) or taken)
    ended = world.run()
    assert (ended.code, len(petals.asked(SINGLE))) == (not is_defined, 1)
    assert ("similar metric" in ended.err) == (not is_defined)
    assert petals.stored == days(1, VALUES if is_defined else WITHOUT_HRV)


def test_a_page_in_between_is_no_answer_to_a_proposal(world):
    world.petals = petals = Petals(known=(*WITHOUT_HRV,))
    petals.fail(SINGLE, httpx.Response(200, html="<p>Sign in to this network"))
    assert (world.run().code, petals.stored) == (0, days(1, VALUES))


# --- Rows that are refused ---------------------------------------------------------------------


def test_a_row_out_of_range_is_for_good(week):
    week.petals.define("oura_hrv", label="Mine", low=80, high=100)
    ended = week.run("--days", "3")
    assert (ended.code, len(week.petals.asked(BULK))) == (1, 3)
    (reason, _) = ended.problems  # one line for the same reason, and one with the command
    assert all(word in reason for word in (f"{before(2)} to {before(0)}: ", "oura_hrv", "range"))
    assert ended.command == ["--date", before(0), "--days", "3"]
    assert week.petals.stored == days(3, WITHOUT_HRV)


@pytest.mark.parametrize(
    ("inserted", "errors", "said"),
    [
        (2, [{"index": 1, "code": "RESOLVE_FAILED", "message": "no space"}], "oura_hrv no space"),
        (2, [{"index": 2, "code": "INVALID_INPUT"}], "oura_sleep_minutes INVALID_INPUT"),
        (1, [{"index": n, "message": "a race"} for n in (0, 1)], "oura_readiness oura_hrv a race"),
        (3, [{"index": 9, "code": "INVALID_INPUT"}], "INVALID_INPUT"),
        (3, [{"index": -1, "message": "no"}], "no"),
        (2, [{"code": "DEFINITION_NOT_FOUND"}], "DEFINITION_NOT_FOUND"),
        (3, ["foreign"], "foreign"),
        (3, {"message": "foreign"}, "foreign"),
        (2, [], ""),
        (1, [{"index": 0, "code": "RANGE_VIOLATION"}], "oura_readiness range"),
        (1, [{"index": 0, "code": "RANGE_VIOLATION"}, {"index": 1, "message": "x"}], "range x"),
        (0, [{"index": n, "message": "x" * 300} for n in range(3)], "xxx"),
    ],
    ids=[
        "a full disk", "a code", "two", "no such row", "below 0", "no row", "a text", "an object",
        "too few", "too few beside a range", "beside a range", "none stored",
    ],
)  # fmt: skip
def test_any_other_refused_row_may_pass(world, inserted, errors, said):
    refused = answer(200, inserted=inserted, errors=errors)
    world.petals.fail(BULK, refused, times=3)
    assert world.run() == Ended(0, PUSHED, "")
    world.petals.fail(BULK, refused, times=9)
    ended = world.run()
    assert (ended.code, len(ended.problems)) == (1, 1)
    assert len(world.petals.asked(BULK)) == 4 + 4
    assert all(word in ended.err for word in [str(DAY), *said.split()])
    assert len(ended.err) < 900
    assert (f" {inserted} observation" in ended.out) == bool(inserted)


# --- The form, and what confirms ---------------------------------------------------------------


@pytest.mark.parametrize("content", [{"errors": None}, {}, {"jobId": ""}])
def test_a_whole_number_of_rows_confirms_a_day(world, content):
    world.petals.fail(BULK, answer(200, inserted=3, **content))
    assert world.run() == Ended(0, PUSHED, "")
    assert len(world.petals.asked(BULK)) == 1


@pytest.mark.parametrize("content", [{"errors": None}, {"errors": []}, {"inserted": 0}])
def test_a_job_confirms_a_day(array_world, content):
    array_world.petals.fail(BULK, answer(400), answer(200, jobId="job-1", **content))
    ended = array_world.run()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Pushed 3 observations for 2026-06-10.")


def test_a_number_of_rows_does_not_confirm_the_form_of_the_guide(array_world):
    array_world.petals.fail(BULK, answer(400), answer(200, inserted=3))
    assert "Petals" in array_world.run().failed()


@pytest.mark.parametrize("content", CONFIRMS_NOTHING, ids=str)
def test_an_answer_that_confirms_nothing_is_a_failure(week, content):
    """It is not repeated, neither in both forms nor in the one that was accepted."""
    foreign = httpx.Response(202, json=content)
    week.petals.fail(BULK, foreign, foreign, well, foreign)
    ended = week.run("--days", "3")
    assert (ended.code, "1 of 3 days" in ended.out) == (1, True)
    forms = [type(body) for body in week.petals.sent(BULK)]
    assert forms == [dict, list, dict, dict]
    assert week.petals.stored == {before(1): VALUES}
    assert ended.command == ["--date", before(0), "--days", "3"]


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        (answer(200, metrics=[]), dict), (answer(404), list), (answer(405), list),
        (answer(202, jobId="j"), list), (answer(500), dict), (answer(401), dict),
        (answer(200), dict), (SLOW, dict), (answer(200, jobId="j"), list),
    ],
    ids=["a list", "404", "405", "a job", "500", "401", "an object", "no answer", "a job at once"],
)  # fmt: skip
@pytest.mark.parametrize("server", [Petals, ArrayPetals])
def test_the_list_says_which_form_goes_first_and_bulk_decides(world, server, listed, first):
    """Also behind a front that hides the list of the real Petals."""
    world.oura.fill(3, last=date.today() - timedelta(days=1))
    world.petals = server()
    world.petals.wrong_form = 400
    world.petals.fail(LIST, listed)
    ended = world.run("--days", "3", day=None)
    assert (ended.code, ended.err) == (0, "")
    right = dict if server is Petals else list
    forms = [type(body) for body in world.petals.sent(BULK)]
    assert forms == [first] * (first is not right) + [right] * 3  # kept once it was accepted
    assert [len(values) for values in world.petals.stored.values()] == [3, 3, 3]


@pytest.mark.parametrize("status", [400, 404, 405, 415, 422, 500, 200, 204])
def test_a_form_that_is_refused_is_followed_by_the_other(array_world, status):
    array_world.petals.fail(BULK, httpx.Response(status), well, httpx.Response(503))
    array_world.oura.fill(2)
    assert array_world.run("--days", "2").code == 0
    forms = [type(body) for body in array_world.petals.sent(BULK)]
    assert forms == [dict, list, list, list]
    assert array_world.petals.asked(SINGLE) == []


@pytest.mark.parametrize("status", [401, 402, 403, 410, 413, 501, 505])
def test_no_other_refusal_is_followed_by_the_other_form(world, status):
    world.petals.fail(BULK, httpx.Response(status), times=9)
    assert str(status) in world.run().failed()
    assert [type(body) for body in world.petals.sent(BULK)] == [dict]


def test_the_reason_of_the_first_form_is_told(world):
    world.petals.fail(BULK, answer(400, message="of today"), answer(422, message="of the guide"))
    assert "of today" in (said := world.run().failed())
    assert "of the guide" not in said
    assert world.waited == []
