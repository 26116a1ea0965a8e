"""Text for terminals and logs: one rule, and everything that people read follows it."""

import contextlib
import io
import json
import logging
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from automaton import cli as automaton
from automaton.log import _Format
from kontrol.cli import main
from kontrol.cli.command import say
from kontrol.cli.invoke.output import escaped_lines
from kontrol.cli.table import tame
from kontrol.logs import Event, as_text
from kontrol.settings.resolve import as_json, as_table, resolve
from kontrol_common.text import escaped, escaped_json

ANY = st.text(st.characters(exclude_categories=()))
"""Every character that Python can hold, lone surrogates too."""

DOCUMENTS: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.just(""),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)

STEERING = (
    *("\0", "\a", "\b", "\r", "\x1b[2J", "\x7f", "\x85", "\x9b2J"),  # controls
    *("\u061c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069"),  # direction
    *("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e"),  # without a width
    *("\ufff9", "\U000e0001", "\U000e0041", "\U0001d173"),  # annotations, tags, musical controls
    *("\u2028", "\u2029", "\u00a0", "\u3000", "\u1680"),  # separators
    *("\ud800", "\udcff", "\ue000", "\uffff", "\U0010ffff"),  # no characters, or private ones
)


def harmless(char: str) -> bool:
    return char == " " or unicodedata.category(char)[0] not in "CZ"


def written(text: str) -> str:
    """Return what a person gets to see, line by line, from everything that shows text."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        say(text)
    record = logging.LogRecord("automaton", logging.INFO, "", 0, text.replace("\n", ""), (), None)
    resolved = resolve({"KONTROL_ID": text}, {})
    return "\n".join(
        (
            stderr.getvalue(),
            as_text(Event(0.0, "INFO", "kontrol", text)),
            _Format().format(record),
            str(tame([text, {text: text, "stderr": text}])),
            escaped_lines(text.replace("\t", "").encode("utf-8", "surrogatepass")).decode("utf-8"),
            escaped_json({text: text}, indent=2),
            as_table(resolved),
            as_json(resolved),
        )
    )


@given(ANY)
def test_what_is_left_is_harmless_and_nothing_else_is_changed(text: str) -> None:
    shown = escaped(text)
    assert all(map(harmless, shown))
    assert shown.isprintable()
    assert escaped(shown) == shown
    assert shown == "".join(
        char if harmless(char) else char.encode("unicode_escape").decode("ascii") for char in text
    )


@given(ANY, st.text(max_size=3))
def test_what_is_to_be_kept_is_kept(text: str, keep: str) -> None:
    shown = escaped(text, keep=keep)
    assert all(harmless(char) or char in keep for char in shown)
    assert [shown.count(char) for char in keep if not harmless(char)] == [
        text.count(char) for char in keep if not harmless(char)
    ]


@pytest.mark.parametrize("code", range(0, sys.maxunicode, 0x1000))
def test_every_character_follows_the_rule(code: int) -> None:
    for char in map(chr, range(code, code + 0x1000)):
        assert (escaped(char) == char) is harmless(char)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b é 日本 e\u0301 \U0001f600 \\n", "a b é 日本 e\u0301 \U0001f600 \\n"),
        ("\x1b]0;x\x07\x9b2J", "\\x1b]0;x\\x07\\x9b2J"),
        ("\u200f\u061c\u200b\ufeff", "\\u200f\\u061c\\u200b\\ufeff"),
        ("\U000e0041\ud800\r\n\t", "\\U000e0041\\ud800\\r\\n\\t"),
    ],
)
def test_escapes_are_python_s(text: str, shown: str) -> None:
    assert escaped(text) == shown == repr(text)[1:-1].replace("\\\\", "\\")


@given(DOCUMENTS, st.sampled_from([None, 0, 2]))
@example({"\u200f": ["\U000e0001", "\x7f", "\ud800", "\n"]}, 2)
def test_json_is_the_same_document(value: object, indent: int | None) -> None:
    text = escaped_json(value, indent=indent)
    assert all(harmless(char) or char == "\n" for char in text)
    assert "\n" not in text or indent is not None
    assert json.loads(text) == value


@pytest.mark.parametrize("text", STEERING, ids=ascii)
def test_everything_that_shows_text_escapes_it(text: str) -> None:
    assert all(harmless(char) or char == "\n" for char in written(f"a{text}b"))


@pytest.mark.parametrize(
    "words", [["pods", "--{0}"], ["{0}"], ["runs", "--limit", "{0}"], ["status", "{0}"]]
)
def test_a_mistake_on_the_command_line_is_escaped(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An argument may be the words of a pod, as a callback passes them on."""
    with pytest.raises(SystemExit) as caught:
        main([word.format("a\x1b[31m\u202e") for word in words])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert not out
    assert "x1b[31m" in err
    assert all(harmless(char) or char == "\n" for char in err)


def test_the_remarks_of_keys_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "make", str(tmp_path)]) == 0
    listed = tmp_path / "agents"
    listed.write_text(listed.read_text("utf-8").rstrip("\n") + "\x1b[2J\u200f\n", "utf-8")
    capsys.readouterr()
    assert main(["keys", "show", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b[2J\\u200f" in shown
    assert all(harmless(char) or char == "\n" for char in shown)


def test_automaton_escapes_a_mistake_on_its_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        automaton.main(["check", "a", "b\x1b[31m\u200f"])
    err = capsys.readouterr().err
    assert "b\\x1b[31m\\u200f" in err
    assert all(harmless(char) or char == "\n" for char in err)


@pytest.mark.parametrize("terminal", [True, False])
def test_automaton_prints_an_answer_as_it_came_but_not_to_a_terminal(
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    *,
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    automaton._print("KO \x1b[2J\udcff")
    shown = b"KO \\x1b[2J\\udcff\n" if terminal else b"KO \x1b[2J\xff\n"
    assert capsysbinary.readouterr().out == shown
