"""Live facts in the text of a keepalive: found without reading it, and no part of the pod."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.canonical import JSON, NotJSON, canonical
from kontrol.ensemble.live import LIVE_DEPTH, MAX_LIVE, NO_FACTS, attach, parse_live, split
from kontrol.ensemble.pod import MAX_BYTES, BadRecord, Keepalive, Pod, key_of, parse_keepalive

KEY = key_of("10.0.0.1")
PLAIN = Keepalive("app", "p1", "10.0.0.1", KEY, "r", nonce="a" * 24, n=1)

WORDS = st.sampled_from(["live", ', "live":', '"live"', "}", "{", '\\", "live":', "null", ""])
VALUES: st.SearchStrategy[JSON] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=5), WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES, st.dictionaries(WORDS.filter(lambda word: word != "live"), VALUES))
def test_what_an_agent_sends_comes_apart_again(
    payload: JSON, live: JSON, more: dict[str, JSON]
) -> None:
    plain = replace(PLAIN, payload=payload, more=more)
    facts = canonical(live)
    sent = replace(plain, live=facts.decode())
    assert split(plain.encode().encode()) == (plain.encode().encode(), b"")
    assert split(sent.encode().encode()) == (plain.encode().encode(), facts)
    assert parse_keepalive(sent.encode()) == sent
    assert Pod.of(sent, 3) == Pod.of(plain, 3), "they are no part of the pod, nor of its digest"


@given(VALUES, VALUES, st.sampled_from([(", ", ": "), (",", ":"), (" , ", " : "), (", ", ":")]))
def test_another_clients_text_says_the_same_wherever_the_facts_are(
    payload: JSON, live: JSON, separators: tuple[str, str]
) -> None:
    fields = {"live": live, **json.loads(replace(PLAIN, payload=payload).encode())}
    sent = json.dumps(fields, separators=separators)
    found = parse_keepalive(sent)
    assert found.live is not None
    assert json.loads(found.live) == live
    assert replace(found, live=None) == replace(PLAIN, payload=payload)
    last = dict(reversed(fields.items()))
    assert json.loads(parse_keepalive(json.dumps(last, separators=separators)).live or "") == live


def test_facts_do_not_hide_what_comes_after_them() -> None:
    text = PLAIN.encode()[:-1] + ', "live":1, "down":true}'
    found = parse_keepalive(text)
    assert (found.live, found.down) == ("1", True)


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        (json.dumps("x" * MAX_LIVE), str(MAX_LIVE)),
        ("[" * (LIVE_DEPTH + 1) + "]" * (LIVE_DEPTH + 1), "deeper"),
        ("NaN", "NaN"),
        ('{"a":1,"a":2}', "twice"),
        ("", "JSON"),
        ("1,", "JSON"),
        ('1, "live":2', "twice"),
    ],
)
def test_facts_that_are_invalid_are_refused_by_name(facts: str, names: str) -> None:
    with pytest.raises((BadRecord, NotJSON), match=names):
        parse_keepalive(attach(PLAIN.encode(), facts))


def test_facts_beside_facts_are_refused() -> None:
    with pytest.raises(BadRecord, match="live"):
        parse_keepalive(attach('{"live":1,' + PLAIN.encode()[1:], "2"))


def test_facts_take_no_room_of_the_record() -> None:
    largest = replace(PLAIN, payload="x" * (MAX_BYTES - len(PLAIN.encode())))
    assert len(largest.encode()) == MAX_BYTES
    facts = json.dumps("y" * (MAX_LIVE - 2))
    assert parse_keepalive(attach(largest.encode(), facts)).live == facts
    with pytest.raises(BadRecord, match="65536"):
        parse_keepalive(attach(replace(largest, payload=f"{largest.payload}x").encode(), "1"))


def test_null_says_that_there_are_none() -> None:
    assert parse_live(NO_FACTS.encode()) is None
    assert parse_keepalive(attach(PLAIN.encode(), NO_FACTS)).live == NO_FACTS
    assert parse_keepalive(PLAIN.encode()).live is None
