"""Which masters the commands ask, by their options and settings."""

import json
from pathlib import Path

import pytest

from kontrol.cli.address import find
from kontrol.settings import SettingsError

MASTER = "KONTROL_MASTER"


def annotation(text: str) -> dict[str, str]:
    return {"KONTROL_ANNOTATIONS": json.dumps({"kontrol.unity3d.com/master": text})}


@pytest.mark.parametrize(
    ("environ", "option", "expected"),
    [
        ({}, None, ["http://127.0.0.1:8001"]),
        ({"KONTROL_HTTP_PORT": "81"}, None, ["http://127.0.0.1:81"]),
        ({"KONTROL_BIND": "10.0.0.7"}, None, ["http://10.0.0.7:8001"]),
        ({"KONTROL_BIND": "0.0.0.0"}, None, ["http://127.0.0.1:8001"]),
        ({MASTER: "m"}, None, ["http://m:8001"]),
        ({MASTER: "m:8000"}, None, ["http://m:8001"]),
        ({MASTER: "m:9000", "KONTROL_HTTP_PORT": "9001"}, None, ["http://m:9001"]),
        ({MASTER: "m"}, "10.0.0.1|10.0.0.2:8000", ["http://10.0.0.1:8001", "http://10.0.0.2:8001"]),
        ({}, "m:8001", ["http://m:8001"]),
        ({}, "m:9000", ["http://m:9000"]),
        ({}, "a|b:9000", ["http://a:9000", "http://b:9000"]),
        ({"KONTROL_HTTP_PORT": "0"}, "m:9000", ["http://m:9000"]),
        ({"KONTROL_PORT": "9000"}, "m:9000", ["http://m:8001"]),
        ({"KONTROL_PORT": "9000"}, "m:8000", ["http://m:8000"]),
        ({}, "fd00::1", ["http://[fd00::1]:8001"]),
        ({}, "http://M", ["http://m:80"]),
        ({}, "https://m/", ["https://m:443"]),
        ({}, "https://[fd00::1]:444", ["https://[fd00::1]:444"]),
        ({}, "http://a:1|https://b:2", ["http://a:1", "https://b:2"]),
        ({"KONTROL_TLS_CERT": "/c", "KONTROL_TLS_KEY": "/k"}, "m", ["https://m:8001"]),
        (annotation("a|b:8000,other"), None, ["http://a:8001", "http://b:8001"]),
        (annotation("a") | {MASTER: "b"}, None, ["http://b:8001"]),
        (annotation("a") | {"KONTROL_MODE": "agent"}, None, ["http://a:8001"]),
        (
            annotation("a") | {"KONTROL_MODE": "master,agent"},
            None,
            ["http://127.0.0.1:8001", "http://a:8001"],
        ),
        (
            annotation("127.0.0.1") | {"KONTROL_MODE": "debug"},
            None,
            ["http://127.0.0.1:8001"],
        ),
        ({MASTER: "m", "KONTROL_TTL": "x", "KONTROL_LABELS": "{"}, None, ["http://m:8001"]),
        ({"KONTROL_HTTP_PORT": "0"}, "http://m:81", ["http://m:81"]),
    ],
)
def test_masters_are_found(
    environ: dict[str, str], option: str | None, expected: list[str]
) -> None:
    target = find(environ, option, tls=False)
    assert [str(endpoint) for endpoint in target.endpoints] == expected


def test_a_port_that_is_not_that_of_rest_is_told() -> None:
    note = "m:8000: port 8000 is that of ZeroRPC (KONTROL_PORT); REST is asked, on 8001"
    assert find({}, "m:8000", tls=False).note.startswith(note)
    for option in ("m", "m:8001", "m:1", "http://m:8000"):
        assert find({}, option, tls=False).note == ""


@pytest.mark.parametrize(
    ("environ", "note"),
    [
        ({MASTER: "m:9001"}, "KONTROL_MASTER=m:9001: port 9001 is taken as that of ZeroRPC, and "),
        ({MASTER: "m:9001"}, "REST is asked on port 8001 (KONTROL_HTTP_PORT)."),
        ({MASTER: "m:9001"}, "write a URL, as http://m:9001"),
        ({MASTER: "a|[fd00::1]:9001"}, "write a URL, as http://a:9001"),
        ({MASTER: "m:9001", "KONTROL_HTTP_PORT": "81"}, "REST is asked on port 81 "),
        ({MASTER: "m:8000", "KONTROL_PORT": "9000"}, "port 8000 is taken as that of ZeroRPC"),
        ({MASTER: "m:8000"}, ""),
        ({MASTER: "m:9000", "KONTROL_PORT": "9000"}, ""),
        ({MASTER: "m:8001"}, ""),
        ({MASTER: "m"}, ""),
        ({MASTER: "fd00::1"}, ""),
        ({MASTER: "http://m:9001"}, ""),
        (annotation("m:9001"), ""),
    ],
)
def test_a_port_in_the_environment_that_is_not_used_is_told(
    environ: dict[str, str], note: str
) -> None:
    said = find(environ, None, tls=False).note
    assert note in said
    assert bool(note) is bool(said)


def test_this_process_s_master_is_known_by_its_certificate() -> None:
    environ = {"KONTROL_MODE": "master", "KONTROL_TLS_CERT": "/c", "KONTROL_TLS_KEY": "/k"}
    own, other = find(environ | annotation("m"), None, tls=False).endpoints
    assert (str(own), own.pin) == ("https://127.0.0.1:8001", Path("/c"))
    assert (str(other), other.pin) == ("https://m:8001", None)


def test_an_authority_means_tls() -> None:
    assert str(find({}, "m", tls=True).endpoints[0]) == "https://m:8001"
    assert str(find({}, "http://m:1", tls=True).endpoints[0]) == "http://m:1"


@pytest.mark.parametrize(
    ("environ", "option", "told"),
    [
        ({}, "a,b", "--master='a,b': expected a tier.*a comma would begin another tier"),
        ({}, "a b", "--master='a b'.*neither a DNS name nor an address"),
        ({}, "m:99999", "port from 1 to 65535"),
        ({}, "10.0.0.300", "is not an IPv4 address"),
        ({}, "ftp://m", "--master='ftp://m': expected a URL as http://masters:8001"),
        ({}, "http://", "expected a URL"),
        ({}, "http://m:x", "expected a URL"),
        ({}, "http://m:99999", "expected a URL"),
        ({}, "http://m/v1", "without a path"),
        ({}, "http://m?a=b", "without a path"),
        ({}, "http://10.0.0.300", "is not an IPv4 address"),
        ({}, "http://[fd00::x]", "expected a URL"),
        ({}, "http://a\nb", "expected"),
        ({}, "http://me:secret@m", "--master: .*without a password: KONTROL_TOKEN_FILE"),
        ({MASTER: "a,b"}, None, "KONTROL_MASTER='a,b': expected a tier"),
        ({"KONTROL_HTTP_PORT": "0"}, None, "KONTROL_HTTP_PORT='0': .*0 turns REST off here"),
        ({"KONTROL_HTTP_PORT": "0"}, "m", "or a URL with one in --master or KONTROL_MASTER"),
        ({"KONTROL_HTTP_PORT": "x"}, "m", "KONTROL_HTTP_PORT='x'"),
        (annotation("a b"), None, r"kontrol.unity3d.com/master='a b'"),
    ],
)
def test_mistakes_are_told(environ: dict[str, str], option: str | None, told: str) -> None:
    with pytest.raises(SettingsError, match=f"(?s){told}") as caught:
        find(environ, option, tls=False)
    assert "secret" not in str(caught.value)
