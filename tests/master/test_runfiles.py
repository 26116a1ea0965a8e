"""What a callback leaves in files: seconds that are a number or fail the run, and a note."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.master.runfiles import (
    AGAIN_FILE,
    AGAIN_MAX,
    AGAIN_MIN,
    NOTE_FILE,
    NOTE_LIMIT,
    RunFileError,
    output_files,
    parse_again,
    parse_note,
    read_again,
    read_note,
)

MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"5", 5.0),
        (b"5\n", 5.0),
        (b" \t0.5\r\n", 0.5),
        (b"0.1", 0.1),
        (b"86400", 86400.0),
        (b"007", 7.0),
        (b"", None),
        (b"\n", None),
        (b" " * 64, None),
        (b"5" + b" " * 63, 5.0),
    ],
)
def test_seconds_are_read_and_a_blank_file_asks_for_nothing(
    raw: bytes, seconds: float | None
) -> None:
    assert parse_again(raw) == seconds


@pytest.mark.parametrize(
    "raw",
    [
        *(b"soon", b"-1", b"+5", b"0", b"0.09", b"86400.1", b"1e9", b"1e3", b"nan", b"inf", b"5s"),
        *(b"5\n6", b"5 6", b"1_000", b"0x10", b".5", b"5.", b"5,0", b"\xff\xfe5", b"\x005"),
        *("\u0665".encode(), "\ufeff5".encode(), b"9" * 65, b" " * 65, b"5" + b"\n" * 64),
    ],
)
def test_anything_else_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(RunFileError) as caught:
        parse_again(raw)
    text = str(caught.value)
    assert text.startswith("$AGAIN_FILE holds ")
    assert "from 0.1 to 86400, as 5 or 0.5" in text
    assert text.isprintable()
    assert len(text) < 200


@given(st.binary(max_size=80))
def test_whatever_it_holds_the_seconds_are_within_the_bounds(raw: bytes) -> None:
    try:
        seconds = parse_again(raw)
    except RunFileError:
        return
    assert seconds is None or AGAIN_MIN <= seconds <= AGAIN_MAX


@pytest.mark.parametrize(
    ("raw", "note"),
    [
        (b"replica 10.0.0.3 does not answer\n", "replica 10.0.0.3 does not answer"),
        (b"two\r\n  lines\tand more\n\n", "two lines and more"),
        ("zoë ✓".encode(), "zoë ✓"),
        (b"\x1b[31mred\x07\x00", "\\x1b[31mred\\x07\\x00"),
        ("left\u202eright\u200b".encode(), "left\\u202eright\\u200b"),
        (b"a \xff b", "a \ufffd b"),
        (b"", None),
        (b" \n\t\n", None),
    ],
)
def test_a_note_is_one_line_that_is_fit_for_a_terminal(raw: bytes, note: str | None) -> None:
    assert parse_note(raw) == (note, "")


@pytest.mark.parametrize(
    "raw", [b"x" * (NOTE_LIMIT + 1), b"\0" * 300, "é".encode() * 513, b"x" * MEBIBYTE]
)
def test_a_long_note_is_cut_and_that_is_said(raw: bytes) -> None:
    note, wrong = parse_note(raw)
    assert note is not None
    assert note.endswith("...")
    assert NOTE_LIMIT - 4 <= len(note.encode()) <= NOTE_LIMIT
    assert wrong == "$NOTE_FILE is longer than 1024 bytes, and cut"


def test_a_note_of_just_the_limit_is_whole_and_one_that_was_not_read_to_its_end_is_cut() -> None:
    assert parse_note(b"x" * NOTE_LIMIT) == ("x" * NOTE_LIMIT, "")
    note, wrong = parse_note(b"x" + b" " * NOTE_LIMIT)
    assert note == "x..."
    assert wrong


@given(st.binary(max_size=2 * NOTE_LIMIT))
def test_whatever_it_holds_the_note_is_one_printable_line_within_the_limit(raw: bytes) -> None:
    note, _ = parse_note(raw)
    assert note is None or (note.isprintable() and 0 < len(note.encode()) <= NOTE_LIMIT)


def test_files_that_are_not_there_ask_for_nothing(tmp_path: Path) -> None:
    files = output_files(tmp_path)
    assert set(files) == {"AGAIN_FILE", "NOTE_FILE"}
    assert read_again(files) is None
    assert read_note(files) == (None, "")


def test_a_huge_file_is_not_read_as_a_whole(tmp_path: Path) -> None:
    files = output_files(tmp_path)
    for path in files.values():
        with Path(path).open("wb") as file:
            file.truncate(1024 * MEBIBYTE)
    with pytest.raises(RunFileError, match=r"\$AGAIN_FILE holds"):
        read_again(files)
    note, wrong = read_note(files)
    assert note is not None
    assert len(note) <= NOTE_LIMIT
    assert wrong


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "dangling link", "device link"])
def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(
    tmp_path: Path, kind: str
) -> None:
    files = output_files(tmp_path)
    other = tmp_path / "other"
    other.write_text("5")
    nothing, zero = tmp_path / "nothing", Path("/dev/zero")
    targets = {"link": other, "dangling link": nothing, "device link": zero}
    for name in files.values():
        path = Path(name)
        if kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(targets[kind])
    with pytest.raises(RunFileError, match=r"^\$AGAIN_FILE is (a symbolic link|not a regular)"):
        read_again(files)
    note, wrong = read_note(files)
    assert note is None
    assert wrong.startswith(f"${NOTE_FILE} is ")
    assert wrong.endswith("expected a file that the callback wrote; there is no note")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    files = {AGAIN_FILE: str(tmp_path / ("x" * 300)), NOTE_FILE: str(tmp_path / ("x" * 300))}
    with pytest.raises(RunFileError, match=r"^\$AGAIN_FILE is not readable \(File name too long"):
        read_again(files)
