"""The texts of a record come back as they were written, and what is not ours is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyncette import schedule
from pyncette.errors import ERROR_CHARACTERS_MAX, TRACEBACK_CHARACTERS_MAX
from pyncette.model import Outcome
from pyncette.schedule import At, Every, NewerFormat, UnreadableHere
from pyncette.store import record
from pyncette.store.record import (
    EARLIEST_INSTANT,
    LATEST_INSTANT,
    Pause,
    Pending,
    Progress,
    Record,
    State,
    UnreadableRecord,
    check_identity,
    dump_args,
    dump_progress,
    group_of,
    load_args,
    load_progress,
    read,
)

INSTANTS = st.integers(EARLIEST_INSTANT, LATEST_INSTANT)
WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
PLAINS = st.text(st.characters(min_codepoint=32, max_codepoint=126))
NOTHING = st.none()
TEXTS = NOTHING | st.text(max_size=50)
MAYBE = NOTHING | INSTANTS
PAUSE = NOTHING | st.builds(Pause, until=MAYBE, reason=TEXTS, since=MAYBE, by=TEXTS)
FLAGS = {"paused": st.booleans(), "triggered": NOTHING | INSTANTS, "pause": PAUSE}
PENDING = st.builds(
    Pending, schedule=NOTHING, args=NOTHING, planned=NOTHING, incarnation=NOTHING, **FLAGS
) | st.builds(
    Pending, schedule=PLAINS, args=PLAINS, planned=NOTHING | INSTANTS, incarnation=WORDS, **FLAGS
)
PROGRESS = st.builds(
    Progress,
    planned=st.none() | INSTANTS,
    incarnation=WORDS,
    triggered=st.none() | INSTANTS,
    failures=st.integers(0, 10**6),
    pending=st.none() | PENDING,
    error=st.none() | st.text(max_size=100),
    pause=PAUSE,
    last=st.none() | st.from_regex(r"[0-9]{1,16}(\+[0-9]{1,12})?", fullmatch=True),
    outcome=st.none() | st.sampled_from(Outcome),
    skipped=st.integers(0, 10**6),
    traceback=st.none() | st.text(max_size=100),
    begun=st.none() | INSTANTS,
    renewed=st.none() | INSTANTS,
    backlog=st.none() | INSTANTS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def a_record(schedule: str = "1 every 60000000", progress: str = "1 5 k3") -> Record:
    return Record("group", "key", 5, 1, None, State.SCHEDULED, 0, schedule, "1 {}", progress)


@pytest.mark.exhaustive
@given(PROGRESS)
def test_progress_comes_back_as_it_was_written(progress: Progress) -> None:
    assert load_progress(dump_progress(progress)) == progress


@given(PROGRESS)
def test_progress_is_printable_ascii_so_that_every_store_can_keep_it(progress: Progress) -> None:
    text = dump_progress(progress)
    assert text.isascii()
    assert text.isprintable()


def test_the_one_control_character_that_json_leaves_alone_is_escaped() -> None:
    text = dump_args({"name": "a\x7fb"})
    assert text == '1 {"name":"a\\u007fb"}'
    assert load_args(text) == {"name": "a\x7fb"}


@pytest.mark.exhaustive
@given(st.dictionaries(st.text(), JSON))
def test_arguments_come_back_as_they_were_written(args: dict[str, object]) -> None:
    assert load_args(dump_args(args)) == args


def test_arguments_are_a_new_dictionary_at_each_call() -> None:
    text = dump_args({"to": ["ann"]})
    load_args(text)["to"].append("ben")
    assert load_args(text) == {"to": ["ann"]}


def test_the_common_progress_is_three_words() -> None:
    assert dump_progress(Progress(1764000000000000, "k3Rn9a")) == "1 1764000000000000 k3Rn9a"
    assert dump_progress(Progress(None, "k3Rn9a")) == "1 - k3Rn9a"


def test_the_last_attempt_is_a_fourth_word() -> None:
    progress = Progress(1764000000000000, "k3Rn9a", last="1763990000000000+2500000")
    text = dump_progress(progress)
    assert text == "1 1764000000000000 k3Rn9a 1763990000000000+2500000"
    assert load_progress(text) == progress
    assert (progress.last_started, progress.last_finished) == (1763990000000000, 1763990002500000)
    assert progress.last_outcome is Outcome.SUCCEEDED
    rest = dump_progress(progress._replace(failures=2, error="no"))
    assert rest == f'{text} {{"failures":2,"error":"no"}}'
    assert load_progress(rest).last_outcome is Outcome.FAILED


def test_what_is_known_of_the_last_attempt_is_only_shown() -> None:
    begun = Progress(5, "k3", last="1763990000000000")
    assert (begun.last_started, begun.last_finished, begun.last_outcome) == (
        1763990000000000,
        None,
        None,
    )
    for text in ("1", "12+", "1x", "9" * 30):
        progress = load_progress(f"1 5 k3 {text}")
        assert progress.planned == 5
        assert progress.last_finished is None
    later = load_progress('1 5 k3 {"outcome":"of a later release"}')
    assert later.outcome is None


def test_only_the_end_of_a_long_traceback_is_kept() -> None:
    progress = Progress(5, "k3", traceback="first" + "x" * 10_000 + "last")
    kept = load_progress(dump_progress(progress)).traceback
    assert kept is not None
    assert len(kept) == TRACEBACK_CHARACTERS_MAX
    assert kept.endswith("last")


def test_a_long_error_is_cut() -> None:
    progress = Progress(5, "k3", error="x" * 10_000)
    assert load_progress(dump_progress(progress)).error == "x" * ERROR_CHARACTERS_MAX


def test_a_triggered_run_is_the_occurrence_in_hand() -> None:
    assert Progress(5, "k3").occurrence == 5
    assert Progress(5, "k3", triggered=3).occurrence == 3
    assert Progress(None, "k3").occurrence is None


def test_every_instant_that_a_schedule_can_give_can_be_read() -> None:
    assert LATEST_INSTANT == schedule.INSTANT_LIMIT - 1
    latest = datetime(2255, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)
    for instant in (datetime(1, 1, 1, tzinfo=UTC), latest):
        planned = At(instant).first(0)
        progress = Progress(planned, "k3")
        assert load_progress(dump_progress(progress)) == progress


def test_reading_a_record_gives_its_plan_and_its_progress() -> None:
    reading = read(a_record())
    assert reading.schedule == Every(timedelta(minutes=1))
    assert reading.progress == Progress(5, "k3")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "0 5 k3",
        "-1 5 k3",
        "x 5 k3",
        "² 5 k3",
        "1",
        "1 5",
        "1 5 ",
        "1 - ",
        "1 five k3",
        "1 5.0 k3",
        f"1 {LATEST_INSTANT + 1} k3",
        f"1 {EARLIEST_INSTANT - 1} k3",
        f"1 {'9' * 5_000} k3",
        "1 5 k3 ",
        "1 5 k3 {",
        "1 5 k3 []",
        "1 5 k3 null",
        "1 5 k3 " + "[" * 100_000,
        '1 5 k3 {"failures":-1}',
        '1 5 k3 {"failures":true}',
        '1 5 k3 {"failures":"2"}',
        '1 5 k3 {"triggered":1.5}',
        '1 5 k3 {"triggered":true}',
        '1 5 k3 {"triggered":9999999999999999999}',
        '1 5 k3 {"pause":[9,7]}',
        '1 5 k3 {"pause":[9]}',
        '1 5 k3 {"pause":null}',
        '1 5 k3 {"pending":null}',
        '1 5 k3 {"pending":[1]}',
        '1 5 k3 {"pending":{"unknown":1}}',
        '1 5 k3 {"pending":{"paused":1}}',
        '1 5 k3 {"pending":{"triggered":"now"}}',
        '1 5 k3 {"pending":{"planned":0.5}}',
        '1 5 k3 {"pending":{"schedule":"1 every 5"}}',
        '1 5 k3 {"pending":{"schedule":"1 every 5","args":"1 {}","incarnation":7}}',
        '1 5 k3 {"pending":{"schedule":"\\ud800","args":"1 {}","incarnation":"k4"}}',
        '1 5 k3 {"pending":{"schedule":"1 every 5","args":"\\u0000","incarnation":"k4"}}',
    ],
)
def test_progress_that_is_not_ours_cannot_be_read(text: str) -> None:
    with pytest.raises(UnreadableRecord, match="progress"):
        load_progress(text)


@pytest.mark.parametrize(
    "text", ["", "{}", "1", "x {}", "1 {", "1 []", "1 5", "1 null", '1 {"a":' + "[" * 100_000]
)
def test_arguments_that_are_not_ours_cannot_be_read(text: str) -> None:
    with pytest.raises(UnreadableRecord, match="args"):
        load_args(text)


def test_a_plan_that_is_not_ours_cannot_be_read() -> None:
    with pytest.raises(UnreadableRecord, match="schedule"):
        read(a_record(schedule="1 cron UTC nonsense"))


def test_what_a_later_release_wrote_is_not_broken() -> None:
    with pytest.raises(NewerFormat, match="format 2"):
        load_progress("2 something else")
    with pytest.raises(NewerFormat, match="format 10"):
        load_args("10 {}")
    with pytest.raises(NewerFormat):
        read(a_record(schedule="3 lunar phase"))
    with pytest.raises(NewerFormat):
        read(a_record(schedule="1 lunar phase"))
    with pytest.raises(NewerFormat):
        read(a_record(progress="2 5"))


def test_a_zone_that_only_this_machine_lacks_is_not_broken() -> None:
    with pytest.raises(UnreadableHere, match="'Mars/Olympus'"):
        read(a_record(schedule="1 cron Mars/Olympus 0 9 * * *"))


def test_templates_and_partitions_share_no_group() -> None:
    names = ["a", "a:0", "a%3A0", "a%", ":static", ":control", "%3Astatic"]
    groups = [group_of(name) for name in names] + [group_of(name, 0) for name in names]
    assert len({*groups, record.STATIC_GROUP, record.CONTROL_GROUP}) == 2 * len(names) + 2


def test_a_group_reads_like_its_template() -> None:
    assert group_of("reports") == "reports"
    assert group_of("reports", 12) == "reports:12"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "must not be empty"),
        ("a\0b", "NUL"),
        ("a\ud800", "surrogate"),
        ("x" * 996, "at most 1000"),
        ("ß" * 498, "at most 1000"),
    ],
)
def test_a_name_that_some_store_could_not_keep_is_refused(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_identity("group", key, "the name")


def test_a_group_with_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        check_identity("gr\0up", "x", "the name")


def test_names_up_to_the_limit_are_kept() -> None:
    check_identity("group", "x" * 995, "the name")
    check_identity("group", "ß" * 497, "the name")
    check_identity("group", " : % \n 🕛", "the name")


def test_arguments_that_no_worker_can_read_do_not_keep_a_record_from_being_read() -> None:
    found = Record("g", "k", 1, 1, None, "scheduled", 0, "1 at 5", "garbage", "1 5 b0")
    assert record.read(found).progress.planned == 5
    with pytest.raises(UnreadableRecord):
        load_args(found.args)


SCALARS = NOTHING | st.booleans() | st.integers() | st.floats() | st.text()


@given(
    st.recursive(
        SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
    )
)
def test_arguments_have_the_text_that_json_gives_them(value: Any) -> None:
    expected = json.dumps({"value": value}, separators=(",", ":")).replace("\x7f", "\\u007f")
    assert dump_args({"value": value}) == f"1 {expected}"


_IN_C: Any = json.encoder.c_make_encoder  # type: ignore[attr-defined]


def _of_another_release(markers: Any, *arguments: Any) -> Any:
    """What ``json`` itself asks for is as usual."""
    if markers is None:
        return lambda value, level: ("something else",)
    return _IN_C(markers, *arguments)


@pytest.mark.parametrize("encoder", [None, _of_another_release])
def test_without_the_encoder_in_c_texts_are_the_same(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[Any] = [{"a": [1, None, "ä"]}, "\x7f", {}]
    expected = ["".join(record._direct()(value, 0)) for value in values]
    monkeypatch.setattr(json.encoder, "c_make_encoder", encoder)
    direct = record._direct()
    assert direct({}, 0) == "{}", "it is the plain one, which returns no tuple"
    assert ["".join(direct(value, 0)) for value in values] == expected


def test_who_made_a_pause_is_kept_and_what_is_no_such_thing_is_left_out() -> None:
    pause = Pause(5, "why", 3, "alice")
    text = dump_progress(Progress(7, "id", pause=pause))
    assert load_progress(text).pause == pause
    older = text.replace('[5,"why",3,"alice"]', '[5,"why"]')
    assert load_progress(older).pause == Pause(5, "why")
    odd = text.replace('3,"alice"', 'true,["x"]')
    assert load_progress(odd).pause == Pause(5, "why")
