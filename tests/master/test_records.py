"""Records of other versions, of operators and of bugs: read, or named in the log; never fatal."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.master.support import KEYS

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.ensemble import Member
from kontrol.ensemble.pod import Keepalive, Pod, key_of
from kontrol.master.operator.story import still
from kontrol.master.records.fields import MOST, Damaged, Record
from kontrol.master.records.masters import (
    Candidate,
    Meta,
    OperatorAnswer,
    OperatorRequest,
    Outdated,
    decode_plan,
)
from kontrol.master.records.pods import Ages, Live, Registration, decode_counter
from kontrol.master.records.records import Records
from kontrol.master.records.runs import (
    Applied,
    Head,
    Running,
    decode_entry,
    decode_rows,
    decode_state,
    encode_members,
    member_of,
)
from kontrol.store.protocol import KeyValue

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
NAMES = st.sampled_from(
    [
        "run",
        "id",
        "seq",
        "version",
        "floor",
        "kind",
        "answer",
        "samples",
        "watched",
        "digest",
        "term",
        "fover",
        "idle",
        "left",
        "n",
        "nonce",
        "seconds",
        "lost",
        "x",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text("ab", max_size=2), inner, max_size=6)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=8)
BYTES = st.binary(max_size=40) | VALUES.map(canonical) | OBJECTS.map(canonical)
MORE = st.dictionaries(st.sampled_from(["x", "later", "z"]), VALUES, max_size=3)
SMALL = st.integers(0, 10**9)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SECONDS = st.none() | st.floats(0, 1e9)

DECODERS: list[Callable[[bytes], object]] = [
    Registration.decode,
    Running.decode,
    Head.decode,
    Candidate.decode,
    Ages.decode,
    Meta.decode,
    lambda raw: OperatorRequest.decode("k/1", raw),
    lambda raw: decode_entry(raw, 1),
    decode_counter,
    decode_plan,
    decode_rows,
    decode_state,
    lambda raw: [member_of(row) for row in decode_rows(raw)],
]

GARBAGE = {
    "empty": b"",
    "text": b"hello",
    "binary": bytes(range(256)),
    "null": b"null",
    "number": b"7e5",
    "list": b'["a"]',
    "object": b"{}",
    "truncated": b'{"id":"a","nonce":"n","n":1,"se',
    "nan": b'{"seq":NaN}',
    "surrogate": b'{"id":"\\ud800"}',
    "long number": b'{"seq":' + b"9" * 5000 + b"}",
    "large number": b'{"seq":1e999,"run":1' + b"0" * 400 + b"}",
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 5000 + b"1" + b"}" * 5000,
}


@pytest.mark.parametrize("decode", DECODERS)
@given(raw=BYTES)
def test_whatever_is_stored_is_read_or_damaged(
    decode: Callable[[bytes], object], raw: bytes
) -> None:
    try:
        decode(raw)
    except (Damaged, Outdated) as error:
        assert 0 < len(str(error)) < 300


@given(raw=OBJECTS.map(canonical))
def test_what_is_read_is_read_again_as_it_is_written(raw: bytes) -> None:
    for decode in (Registration.decode, Running.decode, Head.decode, Candidate.decode, Ages.decode):
        try:
            record = decode(raw)
        except Damaged:
            continue
        assert decode(record.encode()) == record
        assert not set(record.more) & {field.name for field in fields(record)}


SENDER = st.none() | st.text("abc .", max_size=9)
RECORDS: list[st.SearchStrategy[Record]] = [
    st.builds(
        Registration, TEXT, TEXT, st.none() | SMALL, SMALL, st.booleans(), SECONDS, SENDER, MORE
    ),
    st.builds(
        Running,
        run=SMALL.filter(bool),
        term=SMALL,
        attempt=SMALL.filter(bool),
        digest=TEXT,
        fingerprint=TEXT,
        started=TEXT,
        ended=st.booleans(),
        why=TEXT,
        reason=TEXT,
        by=TEXT,
        fover=SECONDS,
        revision=st.none() | SMALL,
        follows=SMALL,
        withdrawn=st.booleans(),
        spec=st.none() | SMALL,
        more=MORE,
    ),
    st.builds(
        Head,
        SMALL,
        TEXT,
        st.none() | TEXT,
        st.none() | SMALL,
        SECONDS,
        st.none() | SMALL,
        SECONDS,
        st.none() | TEXT,
        st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
        MORE,
    ),
    st.builds(
        Candidate,
        TEXT,
        TEXT,
        TEXT,
        st.none() | SMALL,
        TEXT,
        SECONDS,
        SECONDS,
        SECONDS,
        st.none() | st.integers(1, 65535),
        MORE,
    ),
    st.builds(Meta, SMALL, st.just(1), MORE),
    st.builds(Ages, SMALL, st.floats(0, 1e9), st.tuples(st.tuples(st.floats(0, 1e9), SMALL)), MORE),
]


@given(record=st.one_of(RECORDS))
def test_a_record_is_read_as_it_was_written_with_unknown_fields(record: Record) -> None:
    decode: Any = type(record).decode  # type: ignore[attr-defined]
    assert decode(record.encode()) == record


@given(TEXT, TEXT, st.none() | SMALL, MORE, st.none() | st.builds(OperatorAnswer, TEXT, more=MORE))
def test_a_request_keeps_what_it_does_not_know(
    kind: str, by: str, run: int | None, more: Mapping[str, JSON], answer: OperatorAnswer | None
) -> None:
    request = OperatorRequest("7", kind, by, "t", run, answer, more)
    assert OperatorRequest.decode("a/b/7", request.encode()) == request


SAFE = st.text("az09_", min_size=1, max_size=9)


@given(st.lists(st.builds(Member, SMALL, SAFE, SAFE, SAFE, SAFE, TEXT), max_size=5))
def test_members_are_read_from_longer_rows(members: list[Member]) -> None:
    (chunk,) = encode_members(members)
    rows = [[*row, {"later": 1}] for row in json.loads(chunk)]
    assert [member_of(row) for row in rows] == members


@given(BYTES, st.sampled_from(["pods/x", "seqs/x", "runs/000000000001", "x", "requests/7"]))
def test_no_record_raises(raw: bytes, name: str) -> None:
    records, kv = Records(KEYS), KeyValue(KEYS.root + name, raw, 1, 2)
    methods: list[Callable[[KeyValue], object]] = [
        *(records.pod, records.registration, records.counter, records.candidate, records.running),
        *(records.head, records.rows, records.members, records.state, records.entry),
        *(records.request, records.plan, records.ages, records.last_run, records.published),
    ]
    for method in methods:
        method(kv)
    records.applied(kv, [kv])
    records.free_number([kv], [kv], [kv])
    records.highest_term([kv], [kv], [kv])


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_has_the_meaning_that_is_stated(raw: bytes) -> None:
    records = Records(KEYS)

    def at(key: str) -> KeyValue:
        return KeyValue(key, raw, 1, 2)

    assert records.pod(at(KEYS.pod("k"))) is None
    assert records.registration(at(KEYS.registration("k"))) is None
    assert records.counter(at(KEYS.counter)) is None
    assert records.candidate(at(KEYS.candidate(7))).id == "?"
    assert records.running(at(KEYS.running)) == Running()
    assert not Running().ended
    assert records.applied(at(KEYS.applied), []) is None
    assert records.members(at(KEYS.members(1))) == []
    assert records.entry(at(KEYS.run(1))) is None
    assert records.request(at(KEYS.requests + "7")) is None
    assert records.published(at(KEYS.published)) is None
    assert (records.ages(at(KEYS.ages)) or Ages()) == Ages()
    assert (records.meta(at(KEYS.meta)) or Meta()) == Meta()
    assert (records.plan(at(KEYS.plan)) or {"what": "unknown"})["what"] == "unknown"


def test_damage_is_logged_once_for_each_revision(caplog: pytest.LogCaptureFixture) -> None:
    records = Records(KEYS)
    with caplog.at_level(logging.WARNING):
        for revision in (5, 5, 5, 6, 5):
            records.registration(KeyValue(KEYS.registration("k"), b"x", 1, revision))
    assert len(caplog.messages) == 2
    said = caplog.messages[0]
    assert KEYS.registration("k") in said, "the key"
    assert "expected JSON" in said, "what is wrong"
    assert "it is ignored" in said, "what is done instead"
    assert "kontrol forget k" in said, "how to fix it"
    caplog.clear()
    for number in range(5000):
        records.registration(KeyValue(KEYS.registration("k"), b"x", 1, number))
    assert len(records._logged) <= 1000


def test_a_pod_under_another_key_is_none() -> None:
    """It would take the place of the pod whose key it names."""
    pod = Pod.of(Keepalive("app", "p1", "10.0.0.1", key_of("10.0.0.1"), "r"), 3)
    records = Records(KEYS)
    assert records.pod(KeyValue(KEYS.pod(pod.key), pod.encode(), 1, 2, lease=9)) == Live(pod, 2, 9)
    assert records.pod(KeyValue(KEYS.pod("other"), pod.encode(), 1, 2, lease=9)) is None


def test_absent_fields_have_a_meaning() -> None:
    assert Registration.decode(b'{"id":"a","seq":3}') == Registration(
        "a", "", None, 3, left=False, idle=None
    )
    assert Registration.decode(b'{"id":"a","seq":3,"n":null,"left":null}') == Registration(
        "a", "", None, 3
    )
    assert Running.decode(b'{"run":3}') == Running(run=3, attempt=1)
    assert Head.decode(b'{"run":3}') == Head(3, digest="", fingerprint=None, pods=None)
    assert Candidate.decode(b"{}") == Candidate("?")
    assert Meta.decode(b"{}") == Meta(0, 1)
    assert OperatorRequest.decode("r/7", b'{"kind":"run"}') == OperatorRequest(
        "7", "run", "?", "", None
    )


def test_a_later_layout_is_refused_whatever_else_it_says() -> None:
    for raw in (b'{"version":2,"floor":0}', b'{"version":2,"floor":"x"}', b'{"version":99}'):
        with pytest.raises(Outdated, match=r"of version \d+, .* upgrade it"):
            Records(KEYS).meta(KeyValue(KEYS.meta, raw, 1, 2))
    for raw in (b'{"version":"2"}', b'{"version":2.0}', b'{"version":true,"floor":5}'):
        assert Records(KEYS).meta(KeyValue(KEYS.meta, raw, 1, 2)) is None


def test_bad_rows_are_left_out_and_missing_ones_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = Records(KEYS)
    head = KeyValue(KEYS.applied, b'{"run":3,"digest":"d","pods":4}', 1, 9)
    rows = (
        b'[[1,"k","a","ip","r","h","more"],[2],"x",[true,"k","a","ip","r","h"],'
        b'[4,"k","a","ip","r","h","0123456789abcdef"],[5,"k","a","ip","r","h",7]]'
    )
    chunk = KeyValue(KEYS.members(3) + "0000", rows, 1, 9)
    other = KeyValue(KEYS.members(2) + "0000", b'[[9,"k","a","ip","r","h"]]', 1, 9)
    damaged = KeyValue(KEYS.members(3) + "0001", b"{", 1, 9)
    applied = records.applied(head, [other, chunk, damaged])
    plain = Member(1, "k", "a", "ip", "r", "h")
    marked = replace(plain, seq=4, mark="0123456789abcdef")
    assert applied == Applied(3, "d", None, (plain, marked, replace(plain, seq=5)))
    assert [m.split(" ")[2] for m in caplog.messages] == [chunk.key, damaged.key, head.key]


def test_a_ttl_beyond_the_settings_is_not_believed() -> None:
    """Pods that are missing are waited for as long as the TTL that they were told."""
    records = Records(KEYS)
    for ttl, believed in ((25.0, 25.0), (86_400.0, 86_400.0), (86_401.0, None), (1e12, None)):
        head = KeyValue(KEYS.applied, Head(3, ttl=ttl).encode(), 1, 9)
        applied = records.applied(head, [])
        assert applied is not None
        assert applied.ttl == believed


@given(st.floats(-1e9, 1e9), st.text(max_size=30), st.datetimes(timezones=st.timezones()))
def test_a_plan_shows_no_more_time_than_was_told(seconds: float, at: str, now: datetime) -> None:
    for said in (at, now.isoformat(), "2026-01-01T00:00:00+00:00", "2026-01-01", ""):
        assert 0 <= still(seconds, said, now) <= max(0.1, seconds + 0.1)


def test_numbers_that_are_used_are_not_free() -> None:
    records = Records(KEYS)
    pod = Pod.of(Keepalive("app", "p1", "10.0.0.1", key_of("10.0.0.1"), "r"), 3)
    pods = [KeyValue(KEYS.pod(pod.key), pod.encode(), 1, 2), KeyValue(KEYS.pod("x"), b"x", 1, 2)]
    registrations = [KeyValue(KEYS.registration("k"), b'{"id":"a","seq":8}', 1, 2)]
    chunks = [KeyValue(KEYS.members(1) + "0000", b'[[11,"k","a","ip","r","h"],[]]', 1, 2)]
    assert records.free_number(pods, [], []) == 4
    assert records.free_number(pods, registrations, []) == 9
    assert records.free_number(pods, registrations, chunks) == 12
    assert records.free_number([], [], []) == 0
    assert decode_counter(b" 12\n") == 12
    for raw in (b"-1", b"1_0", b"%d" % (MOST + 1), "\u0663".encode(), b"1.0", b"0x1"):
        with pytest.raises(Damaged):
            decode_counter(raw)


def test_names_of_lost_pods_reach_no_shell() -> None:
    """An acknowledged run of a former version may have had pods with any names."""
    row: list[JSON] = [7, "k$1", "$(reboot)", "`ip`", "-rf /", "hash"]
    member = member_of(row)
    assert (member.seq, member.hash) == (7, "hash")
    assert [member.key, member.id, member.ip, member.role] == ["k_1", "__reboot_", "_ip_", "_-rf__"]
