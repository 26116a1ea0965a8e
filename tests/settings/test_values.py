import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.tiers import Tier
from kontrol.settings import values
from kontrol.settings.variables import VARIABLES

ALL = frozenset(values.MODES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agent", {"agent"}),
        ("slave", {"agent"}),
        ("slave,verbose", {"agent", "verbose"}),
        (" Master , agent ,", {"agent", "master"}),
        ("debug", ALL),
    ],
)
def test_modes(text: str, expected: set[str]) -> None:
    assert values.modes(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slve", "did you mean slave"),
        ("agent,boss", "'boss' is none of them"),
        ("verbose", "names no mode"),
        (",", "names no mode"),
    ],
)
def test_bad_modes(text: str, said: str) -> None:
    with pytest.raises(values.BadValue, match=said):
        values.modes(text)


@pytest.mark.parametrize(("text", "port"), [("1", 1), ("8000", 8000), ("65535", 65535)])
def test_port(text: str, port: int) -> None:
    assert values.port(text) == values.port_or_off(text) == port


@pytest.mark.parametrize("text", ["0", "65536", "-1", "8000.0", "eight", "٣", "8_000", "+80"])
def test_bad_port(text: str) -> None:
    with pytest.raises(values.BadValue, match="1 to 65535"):
        values.port(text)


def test_port_off() -> None:
    assert values.port_or_off("0") == 0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("FD00:0::7", "fd00::7"),
        ("[fd00::7]", "fd00::7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
    ],
)
def test_address(text: str, address: str) -> None:
    assert values.address(text) == address
    assert values.bind_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "0.0.0.0",
            "0.0.0.7",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "::ffff:224.0.0.1",
        ),
        *("fe80::1%eth0", "host", "10.0.0"),
    ],
)
def test_bad_address(text: str) -> None:
    with pytest.raises(values.BadValue):
        values.address(text)


@pytest.mark.parametrize(
    ("text", "bind"), [("*", "*"), ("0.0.0.0", "0.0.0.0"), ("::", "::"), ("[::]", "::")]
)
def test_bind_to_all(text: str, bind: str) -> None:
    assert values.bind_address(text) == bind


@pytest.mark.parametrize(
    ("text", "host"), [("Node-1.local", "node-1.local"), ("fd00::1", "fd00::1"), ("10.1", None)]
)
def test_host(text: str, host: str | None) -> None:
    if host is None:
        with pytest.raises(values.BadValue):
            values.host(text)
    else:
        assert values.host(text) == host


def test_hosts() -> None:
    assert values.hosts("Masters, kontrol.example.com,,masters,fd00::1") == (
        *("masters", "kontrol.example.com", "fd00::1"),
    )
    with pytest.raises(values.BadValue, match="comma list of DNS names"):
        values.hosts("masters,masters:8001")


@pytest.mark.parametrize("text", ["a,b", "a|b", "host:80", "http://host", "a b"])
def test_bad_host(text: str) -> None:
    with pytest.raises(values.BadValue, match="without a port"):
        values.host(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "a JSON object of strings"),
        ("[]", "a JSON object of strings"),
        ('{"a": 1}', "'a' is not a string"),
        ('{"a": NaN}', "NaN"),
    ],
)
def test_bad_table(text: str, said: str) -> None:
    with pytest.raises(values.BadValue, match=said):
        values.table(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"app": "a"}', "role is missing"),
        ('{"role": "a"}', "app is missing"),
        ('{"app": "../../evil", "role": "a"}', "app has '../../evil'"),
        ('{"app": "", "role": "a"}', "app has ''"),
        ('{"app": "a", "role": "b\\n"}', "role has"),
    ],
)
def test_bad_labels(text: str, said: str) -> None:
    with pytest.raises(values.BadValue, match=said):
        values.labels(text)


@pytest.mark.parametrize("key", ["a b", "$(x)", "-x", "a/../b", "", "x" * 318, "a\nb"])
def test_a_label_s_key_that_is_no_name_is_refused(key: str) -> None:
    for parse in (values.labels, values.node_labels):
        with pytest.raises(values.BadValue, match=r"app.kubernetes.io/name"):
            parse(json.dumps({"app": "a", "role": "b", key: "c"}))
    assert values.table(json.dumps({key: "an annotation"}))


def test_keys_of_labels_in_kubernetes_are_taken() -> None:
    text = '{"app": "a", "role": "b", "app.kubernetes.io/name": "x y", "topology_zone": ""}'
    assert values.labels(text) == json.loads(text)


@pytest.mark.parametrize("text", ["a b", "$(x)", "-rf", "../x", "zoë", "x" * 254])
def test_a_bad_name_says_what_may_be_in_one(text: str) -> None:
    with pytest.raises(values.BadValue, match="253 of the characters"):
        values.name(text)


def test_tables_are_read_only() -> None:
    found = values.labels('{"app": "a", "role": "b", "x": "y"}')
    with pytest.raises(TypeError):
        found["app"] = "c"  # type: ignore[index]  # that is the point


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1.9", "86401", "25s", ""])
def test_bad_seconds(text: str) -> None:
    with pytest.raises(values.BadValue, match="from 2 to 86400"):
        values.seconds(2)(text)


@given(st.floats(2, 86_400))
def test_seconds_take_fractions(number: float) -> None:
    assert values.seconds(2)(repr(number)) == number


def test_percent() -> None:
    assert values.percent("50") == values.percent("50 %") == 50
    with pytest.raises(values.BadValue):
        values.percent("101")


def test_truth() -> None:
    assert values.truth("TRUE")
    assert not values.truth("False")
    with pytest.raises(values.BadValue):
        values.truth("maybe")


def test_a_command_line_is_split_as_by_a_shell_or_left_to_one() -> None:
    assert values.argv("a 'b c' $D", shell=False) == ("a", "b c", "$D")
    assert values.argv("a 'b c' $D", shell=True) == ("/bin/sh", "-c", "a 'b c' $D")  # noqa: S604
    with pytest.raises(values.BadValue, match=r"no closing quotation.*KONTROL_SHELL_CALLBACK=TRUE"):
        values.argv("a 'b", shell=False)
    for empty in ("", "  ", "''", "'' a"):
        with pytest.raises(values.BadValue, match="with a program to run"):
            values.argv(empty, shell=False)
        with pytest.raises(values.BadValue, match="with a program to run"):
            values.hook(empty)
    assert values.hook("a 'b c' $D") == ("a", "b c", "$D")
    with pytest.raises(values.BadValue, match=r"no closing quotation.*as in sh -c"):
        values.hook("a 'b")
    with pytest.raises(values.BadValue, match="without NUL"):
        values.hook("a\0b")


@pytest.mark.parametrize(
    ("text", "addresses", "tls"),
    [
        ("embedded", (), False),
        ("etcd", ("etcd:2379",), False),
        ("a, b:1 ,a", ("a:2379", "b:1"), False),
        ("http://a:1/", ("a:1",), False),
        ("HTTPS://a,https://[fd00::1]:1", ("a:2379", "[fd00::1]:1"), True),
        ("fd00::1", ("[fd00::1]:2379",), False),
        ("unix:///run/etcd/client:0", ("unix:///run/etcd/client:0",), False),
        ("unix:/a b,a", ("unix:///a b", "a:2379"), False),
    ],
)
def test_endpoints(text: str, addresses: tuple[str, ...], tls: bool) -> None:
    assert values.endpoints(text) == (addresses, tls)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,", "empty"),
        ("ftp://a", "not http or https"),
        ("http://a/v3", "ends after the port"),
        ("http://user:hush@a", "KONTROL_ETCD_USER"),
        ("https://a,b", "all https"),
        ("https://a,unix:///b", "all https"),
        ("unix://b", "absolute path"),
        ("unix:b", "absolute path"),
        ("embedded,a:x", "embedded stands alone"),
        ("a, embedded", "embedded stands alone"),
        ("Embedded", "in lower case"),
        ("a|b", "separates the masters"),
    ],
)
def test_bad_endpoints(text: str, said: str) -> None:
    with pytest.raises(values.BadValue, match=said) as caught:
        values.endpoints(text)
    assert "hush" not in str(caught.value)


def test_statsd() -> None:
    assert values.statsd("h") == Tier("h", 8125)
    assert values.statsd("h:1") == Tier("h", 1)
    for text in ("a,b", "a|b"):
        with pytest.raises(values.BadValue):
            values.statsd(text)


@given(st.text(min_size=1).map(str.strip).filter(bool))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for variable in VARIABLES:
        try:
            variable.parse(text)
        except values.BadValue as error:
            assert str(error)
