"""The keepalive record: what is taken, what is refused, and how it is said."""

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.pod import KEY, MAX_BYTES, BadRecord, Keepalive, Pod, key_of, parse_keepalive

GOOD: dict[str, object] = {
    "app": "redis",
    "id": "redis-0",
    "ip": "172.16.123.1",
    "key": "39mysN",
    "role": "store",
}


def text(**changes: object) -> str:
    return json.dumps({**GOOD, **changes})


def test_the_original_record_is_taken() -> None:
    record = parse_keepalive(text(payload={"some": "stuff"}))
    assert record == Keepalive(
        app="redis",
        id="redis-0",
        ip="172.16.123.1",
        key="39mysN",
        role="store",
        payload={"some": "stuff"},
    )


def test_payload_is_an_empty_string_by_default() -> None:
    assert parse_keepalive(text()).payload == ""


def test_the_key_is_computed_anew() -> None:
    assert parse_keepalive(text(key="zzz")).key == "39mysN"


def test_a_key_chosen_by_hand_is_kept() -> None:
    assert parse_keepalive(text(key="my_key-1", named=True)).key == "my_key-1"


def test_unknown_fields_are_kept_and_passed_on() -> None:
    record = parse_keepalive(text(colour=["red"], zone="z1", port=8000))
    assert record.more == {"colour": ["red"], "zone": "z1", "port": 8000}
    assert Pod.of(record, 7).public()["colour"] == ["red"]


def test_agents_cannot_number_themselves() -> None:
    assert "seq" not in parse_keepalive(text(seq=99)).more


def test_the_counter_is_not_what_the_callback_sees() -> None:
    pod = Pod.of(parse_keepalive(text(n=4, nonce="a1")), 0)
    assert "n" not in pod.public()
    assert Pod.decode(pod.encode()) == pod


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_missing_field_is_named(missing: str) -> None:
    raw = json.dumps({name: value for name, value in GOOD.items() if name != missing})
    with pytest.raises(BadRecord, match=missing) as caught:
        parse_keepalive(raw)
    assert caught.value.field == missing


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"app": 1}, "app", "printable"),
        ({"app": ""}, "app", "printable"),
        ({"id": "a\nb"}, "id", "printable"),
        ({"id": "x" * 254}, "id", "253"),
        ({"role": None}, "role", "printable"),
        ({"ip": "10.0.0.256"}, "ip", "IPv4 or IPv6"),
        ({"ip": "example.com"}, "ip", "IPv4 or IPv6"),
        ({"ip": "fe80::1%eth0"}, "ip", "zone"),
        ({"ip": ["10.0.0.1"]}, "ip", "printable"),
        ({"key": "../../evil"}, "key", "0-9 A-Z a-z"),
        ({"key": "a" * 65}, "key", "0-9 A-Z a-z"),
        ({"key": "a\n"}, "key", "0-9 A-Z a-z"),
        ({"key": 5}, "key", "0-9 A-Z a-z"),
        ({"nonce": "a b"}, "nonce", "0-9 A-Z a-z"),
        ({"n": -1}, "n", "whole number"),
        ({"n": 1.5}, "n", "whole number"),
        ({"n": True}, "n", "whole number"),
        ({"n": 2**63}, "n", "2\\^63"),
        ({"down": "yes"}, "down", "true or false"),
        ({"port": 0}, "port", "65535"),
        ({"port": "8000"}, "port", "65535"),
        ({"zone": 3}, "zone", "printable"),
    ],
)
def test_a_refusal_names_field_and_expectation(
    changes: dict[str, object], field: str, says: str
) -> None:
    with pytest.raises(BadRecord, match=says) as caught:
        parse_keepalive(text(**changes))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} is ")


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "null",
        "[]",
        '"x"',
        "{",
        b"\xff\xfe",
        b"\x80\x04\x95",
        "[" * 60_000,
        '{"a":' * 12_000,
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_no_record_is_refused(raw: str | bytes) -> None:
    with pytest.raises(BadRecord) as caught:
        parse_keepalive(raw)
    assert len(str(caught.value)) < 400


def test_a_record_may_be_64_kib_and_no_more() -> None:
    room = MAX_BYTES - len(text(payload=""))
    assert parse_keepalive(text(payload="x" * room)).payload == "x" * room
    with pytest.raises(BadRecord, match=f"{MAX_BYTES + 1} bytes"):
        parse_keepalive(text(payload="x" * (room + 1)))


def test_a_record_may_be_32_deep_and_no_more() -> None:
    def nested(depth: int) -> object:
        value: object = 1
        for _ in range(depth):
            value = [value]
        return value

    wide: list[object] = [[] for _ in range(100)]  # brackets alone are not depth
    parse_keepalive(text(payload=nested(31), wide=wide))
    with pytest.raises(BadRecord, match="deeper than 32"):
        parse_keepalive(text(payload=nested(32), wide=wide))


@given(st.ip_addresses(v=4))
def test_keys_of_ipv4_are_unique(address: ipaddress.IPv4Address) -> None:
    key = key_of(str(address))
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    number = 0
    for digit in key:
        number = number * 62 + digits.index(digit)
    assert number == int(address)
    assert key_of(f"::ffff:{address}") == key


@given(st.integers(0, 2**128 - 1))
def test_keys_of_ipv6_are_22_digits(number: int) -> None:
    address = ipaddress.IPv6Address(number)
    key = key_of(str(address))
    assert (
        len(key) == 22 if address.ipv4_mapped is None else key == key_of(str(address.ipv4_mapped))
    )
    assert KEY.match(key)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    payload=JSON_VALUES, nonce=st.from_regex(r"[0-9a-z]{1,16}", fullmatch=True), n=st.integers(0, 9)
)
def test_a_record_survives_its_round_trips(payload: object, nonce: str, n: int) -> None:
    sent = parse_keepalive(text(payload=payload, nonce=nonce, n=n))
    assert parse_keepalive(sent.encode()) == sent
    pod = Pod.of(sent, 3)
    assert Pod.decode(pod.encode()) == pod
    assert json.loads(pod.canonical) == pod.public()


@given(st.binary(max_size=200))
def test_junk_is_only_ever_refused(raw: bytes) -> None:
    with pytest.raises(BadRecord):
        parse_keepalive(raw)
