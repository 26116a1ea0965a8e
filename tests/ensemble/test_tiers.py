"""The list of tiers, as an annotation gives it."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.tiers import BadTiers, Tier, parse_tiers

ports = st.integers(min_value=1, max_value=65535)
labels = st.from_regex(r"[a-z_]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=5).map(".".join)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(str)
hosts = st.lists(names | ipv4 | ipv6, min_size=1, max_size=3).map("|".join)
tiers = st.builds(Tier, hosts, ports)


@given(st.lists(tiers, max_size=5, unique=True))
def test_what_tiers_write_is_read_back(written: list[Tier]) -> None:
    assert parse_tiers(", ".join(map(str, written)), 8000) == tuple(written)


@given(st.lists(names | ipv4 | ipv6, min_size=1, max_size=5, unique=True), ports)
def test_the_port_may_be_left_out(hosts: list[str], port: int) -> None:
    assert parse_tiers(",".join(hosts), port) == tuple(Tier(host, port) for host in hosts)


@given(st.text(), ports)
def test_any_text_is_tiers_or_a_clear_error(text: str, port: int) -> None:
    try:
        found = parse_tiers(text, port)
    except BadTiers:
        pass
    else:
        assert bool(found) == bool(text.strip())
        for tier in found:
            assert 1 <= tier.port <= 65535
            for host in tier.hosts:
                if ":" in host or host.rpartition(".")[2].isdecimal():
                    ipaddress.ip_address(host)
        assert parse_tiers(",".join(map(str, found)), port) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (" ", ()),
        ("masters", (Tier("masters", 8000),)),
        ("Masters.Default.svc.cluster.local.", (Tier("masters.default.svc.cluster.local", 8000),)),
        (" a:1 , b ", (Tier("a", 1), Tier("b", 8000))),
        ("10.0.0.1:9000", (Tier("10.0.0.1", 9000),)),
        ("fd00::1", (Tier("fd00::1", 8000),)),
        ("FD00:0::1", (Tier("fd00::1", 8000),)),
        ("[fd00::1]", (Tier("fd00::1", 8000),)),
        ("[fd00::1]:9000", (Tier("fd00::1", 9000),)),
        ("fe80::1%eth0", (Tier("fe80::1%eth0", 8000),)),
        ("a,b,a:8000", (Tier("a", 8000), Tier("b", 8000))),
        ("10.0.0.1|10.0.0.2:90,b", (Tier("10.0.0.1|10.0.0.2", 90), Tier("b", 8000))),
        ("[::1] | 127.0.0.1:90", (Tier("::1|127.0.0.1", 90),)),
        ("::1|127.0.0.1", (Tier("::1|127.0.0.1", 8000),)),
    ],
)
def test_examples(text: str, expected: tuple[Tier, ...]) -> None:
    assert parse_tiers(text, 8000) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,,b", "an item of 'a,,b' is empty"),
        ("a,", "an item of 'a,' is empty"),
        ("a:", "tier 'a:' has port ''"),
        ("a:0", "port '0'; expected a port from 1 to 65535"),
        ("a:65536", "port '65536'"),
        ("a:8k", "port '8k'"),
        ("a:\N{ARABIC-INDIC DIGIT FOUR}", "has port"),
        ("10.0.0.300", "'10.0.0.300' is not an IPv4 address"),
        ("10.0.0", "'10.0.0' is not an IPv4 address"),
        ("tcp://masters:8000", "'tcp://masters:8000' has a slash"),
        ("[masters]:8000", "bad brackets"),
        ("[fd00::1", "bad brackets"),
        ("[fd00::1]8000", "bad brackets"),
        ("fd00::g", "'fd00::g' is not an IPv6 address"),
        ("fe80::1%a b", "its zone is not the name"),
        ("mas ters", "'mas ters' is neither a DNS name nor an address"),
        ("a..b", "is neither a DNS name nor an address"),
        ("-a", "is neither a DNS name nor an address"),
        ("a" * 64, "is neither a DNS name nor an address"),
        (":8000", "is neither a DNS name nor an address"),
        (".", "is neither a DNS name nor an address"),
    ],
)
def test_mistakes_are_named_with_what_is_expected(text: str, complaint: str) -> None:
    with pytest.raises(BadTiers) as caught:
        parse_tiers(text, 8000)
    assert complaint in str(caught.value)
    assert "expected" in str(caught.value)
