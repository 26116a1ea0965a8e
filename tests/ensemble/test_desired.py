"""The desired state as values: keys, what a text means, limits, what changed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.desired import (
    MAX_DEPTH,
    MAX_KEY,
    MAX_VALUE,
    BadSetting,
    Setting,
    SpecChanges,
    check_key,
    document_of,
    encode_value,
    value_of,
)
from kontrol.master.records.desired import Desired, Logged
from kontrol.master.records.fields import Damaged

KEYS = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
STATES = st.dictionaries(KEYS, VALUES, max_size=5)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-0.5", -0.5), ("1e3", 1000.0), ("true", True), ("null", None), ('"3"', "3"),
        ("pod-1", "pod-1"), ("", ""), ("yes", "yes"), ("10.0.0.1", "10.0.0.1"), ("007", "007"),
        ("3Gi", "3Gi"), ("12:30", "12:30"), ("a b", "a b"), ("=", "="), ("True", "True"),
        ('{"a": [1]}', {"a": [1]}), (" 3 ", 3), ("\u00e9", "\u00e9"), ("NaNny", "NaNny"),
        ("-", "-"),
    ],
)  # fmt: skip
def test_a_text_means_what_it_is_as_json_or_itself(text: str, value: JSON) -> None:
    found = value_of(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        "[1,2", "{a: 1}", '"', "[NaN]", "NaN", "Infinity", "-Infinity", "1e999", "-1e999",
        '{"a":1,"a":2}', '{"a":{"b":1,"b":2}}', '"\\ud800"', "[" * 40 + "]" * 40, "\udc80",
        "9" * 5000,
    ],
)  # fmt: skip
def test_a_slip_is_refused_and_no_error_has_the_value(text: str) -> None:
    with pytest.raises(BadSetting) as error:
        value_of(text)
    assert error.value.name == "BadValue"
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("key", ["a", "0", "a.b-c_d", "A" * MAX_KEY])
def test_a_key(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        "", ".", "-a", "_a", "a/b", "a b", "a=b", "\u00e9", "a\n", "A" * (MAX_KEY + 1), None, 3,
        ["a"], "a\0",
    ],
)  # fmt: skip
def test_an_odd_key_is_refused_by_name(key: object) -> None:
    with pytest.raises(BadSetting, match="expected 1 to 64 letters") as error:
        check_key(key)
    assert error.value.name == "BadKey"


def test_a_value_has_limits() -> None:
    assert len(encode_value("x" * (MAX_VALUE - 2))) == MAX_VALUE
    with pytest.raises(BadSetting, match=f"{MAX_VALUE + 1} bytes.*at most {MAX_VALUE}") as error:
        encode_value("x" * (MAX_VALUE - 1))
    assert error.value.name == "ValueTooLarge"
    deep: JSON = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert encode_value(deep)
    for wrong in ([deep], float("nan"), float("inf"), "\ud800"):
        with pytest.raises(BadSetting) as error:
            encode_value(wrong)
        assert error.value.name == "BadValue"


def test_changes_name_the_first_keys() -> None:
    some = tuple(Setting(f"k{i}") for i in range(6))
    assert str(SpecChanges(some, (Setting("x"),))) == "set k0, k1, k2, k3, k4, ..., unset x"
    assert SpecChanges(some[:1], ()).public() == {"set": ["k0"], "unset": []}
    assert len(SpecChanges(some, some)) == 12
    assert not SpecChanges()
    assert str(SpecChanges()) == "nothing changed"


@given(STATES, STATES)
def test_the_difference_leads_from_one_state_to_the_other(
    before: dict[str, JSON], now: dict[str, JSON]
) -> None:
    one, two = (
        Desired.decode(canonical({"values": {key: {"value": it} for key, it in state.items()}}))
        for state in (before, now)
    )
    changes = two.since(one.marks)
    told = changes.public()
    assert bool(changes) == (canonical(before) != canonical(now))
    assert told["unset"] == sorted(before.keys() - now.keys())
    assert told["set"] == sorted(
        key for key in now if key not in before or canonical(before[key]) != canonical(now[key])
    )


@given(STATES, KEYS, VALUES)
def test_a_record_is_read_as_it_was_written(state: dict[str, JSON], key: str, value: JSON) -> None:
    made = Desired()
    for number, (name, it) in enumerate(state.items()):
        made = made.set(canonical(it), Logged(f"{number}", name, "anna", "now"))
    read = Desired.decode(made.encode())
    assert read == made
    assert json.loads(read.document) == json.loads(canonical(state))
    assert read.document == canonical(state)
    changed = read.set(canonical(value), Logged("x", key, "ben", "later"))
    assert changed.logged("x")
    assert not read.logged("x")
    assert json.loads(changed.document) == json.loads(canonical({**state, key: value}))
    gone = changed.unset(Logged("y", key, "cleo", "then", unset=True))
    assert key not in gone.values
    assert gone.since(changed.marks).unset == (Setting(key, "cleo", "then"),)
    assert document_of({}) == b"{}"


@given(st.binary(max_size=60) | VALUES.map(canonical))
def test_no_record_raises_anything_but_damaged(raw: bytes) -> None:
    try:
        Desired.decode(raw)
    except Damaged as error:
        assert len(str(error)) < 300
