from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.boot.cluster import podinfo

from kontrol.boot import Misconfigured
from kontrol.boot.downward import parse, read
from kontrol.boot.facts import Fact

SHORT = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    "\\": r"\\",
    '"': r"\"",
}


def go_quote(text: str) -> str:
    """Quote as Go's strconv.Quote does."""
    parts = []
    for char in text:
        code = ord(char)
        if char in SHORT:
            parts.append(SHORT[char])
        elif char.isprintable():
            parts.append(char)
        elif code < 0x80:
            parts.append(f"\\x{code:02x}")
        else:
            parts.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return f'"{"".join(parts)}"'


KEYS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,20}[A-Za-z0-9])?", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(KEYS, TEXTS))
def test_what_kubernetes_quotes_is_read_back(entries: dict[str, str]) -> None:
    text = "\n".join(f"{key}={go_quote(entries[key])}" for key in sorted(entries))
    assert parse(text, Path("labels")) == entries


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, Path("labels"))
    except Misconfigured as error:
        assert str(error).startswith("labels:")


@pytest.mark.parametrize(
    "line", ["app", "app=redis", 'app="redis', 'app="re"dis"', '="x"', 'app="x" role="y"']
)
def test_another_form_is_refused_with_file_and_line(line: str) -> None:
    with pytest.raises(Misconfigured, match=r'/etc/podinfo/labels:2: expected key="value"') as got:
        parse(f'a="b"\n{line}\n', Path("/etc/podinfo/labels"))
    assert repr(line)[:80] in str(got.value)


def test_octets_that_were_no_utf_8_are_replaced() -> None:
    assert parse(r'a="x\xffy\ud800z"', Path("labels")) == {
        "a": "x\N{REPLACEMENT CHARACTER}y\N{REPLACEMENT CHARACTER}z"
    }


def test_files_and_customary_variables(tmp_path: Path) -> None:
    folder = podinfo(
        tmp_path / "podinfo",
        {"labels": 'app="redis"\nrole="cache"', "annotations": 'a.b/c="x\\ny"', "name": "r-0"},
    )
    found = read({"POD_IP": "10.1.2.3", "NODE_NAME": "node-1", "HOST_IP": " "}, folder)
    assert found == {
        "KONTROL_ID": Fact("r-0", "downward"),
        "KONTROL_IP": Fact("10.1.2.3", "downward"),
        "KONTROL_HOSTNAME": Fact("node-1", "downward"),
        "KONTROL_LABELS": Fact('{"app": "redis", "role": "cache"}', "downward"),
        "KONTROL_ANNOTATIONS": Fact('{"a.b/c": "x\\ny"}', "downward"),
    }


def test_a_variable_goes_before_a_file(tmp_path: Path) -> None:
    folder = podinfo(tmp_path / "podinfo", {"name": "file", "namespace": "games"})
    found = read({"POD_NAME": "variable"}, folder)
    assert found["KONTROL_ID"].text == "variable"
    assert found["NAMESPACE"].text == "games"


def test_without_a_volume_there_is_nothing(tmp_path: Path) -> None:
    assert read({}, tmp_path / "absent") == {}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with pytest.raises(Misconfigured, match=f"{tmp_path}/labels"):
        read({}, tmp_path)
    (tmp_path / "name").write_bytes(b"\xff")
    with pytest.raises(Misconfigured, match=f"{tmp_path}/name"):
        read({}, tmp_path)
