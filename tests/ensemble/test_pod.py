"""The keepalive record: what is taken, what is refused, and how it is said."""

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.pod import (
    KEY,
    MAX_BYTES,
    MAX_NAME,
    NAME,
    BadRecord,
    Keepalive,
    Pod,
    comes_before,
    key_of,
    parse_keepalive,
    safe_name,
)

GOOD: dict[str, object] = {
    "app": "redis",
    "id": "redis-0",
    "ip": "172.16.123.1",
    "key": "39mysN",
    "role": "store",
}


NONCE = "17979cfe362a00003d5a1e08"


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


def test_the_key_is_computed_by_the_master() -> None:
    assert parse_keepalive(text(key="zzz")).key == "39mysN"


def test_a_key_chosen_by_hand_is_kept() -> None:
    assert parse_keepalive(text(key="my_key-1", named=True)).key == "my_key-1"


@pytest.mark.parametrize("key", ["-", "-rf", "--all"])
def test_no_key_looks_like_an_option(key: str) -> None:
    with pytest.raises(BadRecord, match="not beginning with -") as caught:
        parse_keepalive(text(key=key, named=True))
    assert caught.value.field == "key"


@pytest.mark.parametrize("version", ["-v", "--help", "~", ".5"])
def test_no_version_looks_like_an_option_or_a_folder(version: str) -> None:
    with pytest.raises(BadRecord, match="a letter, digit or _"):
        parse_keepalive(text(version=version))


def test_unknown_fields_are_kept_and_passed_on() -> None:
    record = parse_keepalive(text(colour=["red"], zone="z1", port=8000))
    assert record.more == {"colour": ["red"], "zone": "z1", "port": 8000}
    assert Pod.of(record, 7).public()["colour"] == ["red"]


def test_agents_cannot_number_themselves() -> None:
    assert "seq" not in parse_keepalive(text(seq=99)).more


def test_the_counter_is_not_what_the_callback_sees() -> None:
    pod = Pod.of(parse_keepalive(text(n=4, nonce=NONCE)), 0)
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
        ({"app": 1}, "app", "characters"),
        ({"app": ""}, "app", "characters"),
        ({"id": "a\nb"}, "id", "characters"),
        ({"id": "x" * 254}, "id", "253"),
        ({"role": None}, "role", "characters"),
        ({"ip": "10.0.0.256"}, "ip", "IPv4 or IPv6"),
        ({"ip": "example.com"}, "ip", "IPv4 or IPv6"),
        ({"ip": "fe80::1%eth0"}, "ip", "zone"),
        ({"ip": ["10.0.0.1"]}, "ip", "a text"),
        ({"key": "../../evil"}, "key", "0-9 A-Z a-z"),
        ({"key": "a" * 65}, "key", "0-9 A-Z a-z"),
        ({"key": "a\n"}, "key", "0-9 A-Z a-z"),
        ({"key": 5}, "key", "0-9 A-Z a-z"),
        ({"nonce": "zzzz"}, "nonce", "24 of the digits"),
        ({"nonce": NONCE.upper()}, "nonce", "24 of the digits"),
        ({"nonce": f"{NONCE}\n"}, "nonce", "24 of the digits"),
        ({"nonce": None}, "nonce", "24 of the digits"),
        ({"n": -1}, "n", "whole number"),
        ({"n": 1.5}, "n", "whole number"),
        ({"n": True}, "n", "whole number"),
        ({"n": 2**63 - 1}, "n", "9007199254740991"),
        ({"down": "yes"}, "down", "true or false"),
        ({"port": 0}, "port", "65535"),
        ({"port": "8000"}, "port", "65535"),
        ({"zone": 3}, "zone", "characters"),
    ],
)
def test_a_refusal_names_field_and_expectation(
    changes: dict[str, object], field: str, says: str
) -> None:
    with pytest.raises(BadRecord, match=says) as caught:
        parse_keepalive(text(**changes))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} is ")


NAMES = ("app", "id", "role", "node", "zone", "eip")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value",
    [
        *("$(reboot)", "`id`", "a b", "a;b", "a'b", 'a"b', "a\\b", "a|b", "a&b", "a>b", "a*", "~a"),
        *(
            "-rf",
            "--help",
            ".hidden",
            "..",
            "../../etc/passwd",
            "/etc/passwd",
            "a/../b",
            "a/",
            "a//b",
        ),
        *("a\n", "a\0", "\u202eevil", "zoë", "\uff41", "a\u200b", "", "x" * 254, {"a": 1}, True),
    ],
)
def test_a_name_that_a_shell_could_take_for_more_is_refused(name: str, value: object) -> None:
    with pytest.raises(BadRecord) as caught:
        parse_keepalive(text(**{name: value}))
    assert caught.value.field == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value",
    [
        *("redis-0", "ip-10-0-0-7.eu-west-1.compute.internal", "a_b", "_x", "A", "0", "x" * 253),
        *("fd00::7", "::1", "default/redis-0", "namespace:pod", "us-east1-b", "a..b"),
    ],
)
def test_names_of_real_pods_and_nodes_are_taken(name: str, value: str) -> None:
    assert json.loads(parse_keepalive(text(**{name: value})).encode())[name] == value


@pytest.mark.parametrize(
    "ip",
    [
        *("0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.250", "255.255.255.255"),
        *("::", "ff02::1", "::ffff:224.0.0.1", "::ffff:0.0.0.0", "::ffff:255.255.255.255"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_an_address_that_is_not_one_host_s_is_refused(ip: str, *, named: bool) -> None:
    with pytest.raises(BadRecord, match="one host") as caught:
        parse_keepalive(text(ip=ip, named=named))
    assert caught.value.field == "ip"


@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "10.0.0.255", "169.254.1.1", "240.0.0.1", "::1", "fe80::1", "fd00::7"]
)
def test_an_address_of_one_host_is_taken(ip: str) -> None:
    assert parse_keepalive(text(ip=ip)).ip == ip


@pytest.mark.parametrize("changes", [{"id": "$(x)"}, {"ip": "224.0.0.1"}, {"zone": "a b"}])
def test_a_stored_record_with_a_bad_name_is_none(changes: dict[str, object]) -> None:
    with pytest.raises(BadRecord):
        Pod.decode(text(seq=1, **changes).encode())


def test_a_stored_nonce_of_another_form_is_kept_and_orders_nothing() -> None:
    pod = Pod.decode(text(seq=1, nonce="zzzz", n=2**63 - 1).encode())
    assert (pod.nonce, pod.n) == ("zzzz", 2**63 - 1)
    mine = parse_keepalive(text(nonce=NONCE, n=0))
    assert not comes_before(mine, "zzzz", 0)
    assert not comes_before(mine, NONCE, 2**63 - 1)
    assert comes_before(mine, NONCE, 1)
    assert comes_before(mine, "f" * 24, 0)


@given(st.text(max_size=300))
def test_a_name_is_made_safe_by_few_changes(name: str) -> None:
    safe = safe_name(name)
    assert NAME.match(safe)
    assert len(safe) <= MAX_NAME
    assert safe_name(safe) in (safe, safe[: MAX_NAME - 1])


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
    payload=JSON_VALUES,
    nonce=st.from_regex(r"[0-9a-f]{24}", fullmatch=True),
    n=st.integers(0, 9),
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
