"""What is printed: every line whole, with its pod in front, and nothing that steers a terminal."""

import asyncio
import io
import json
import os

from hypothesis import given
from hypothesis import strategies as st

from kontrol.cli.invoke.fanout import Result, Target
from kontrol.cli.invoke.output import (
    LONGEST,
    JsonReport,
    Lines,
    Printer,
    TextReport,
    escaped_lines,
    is_terminal,
)

A, B = Target("a", "ka", "10.0.0.1", 8000), Target("bcd", "kb", "10.0.0.2", 8000)
DONE = Result(A, "done", "exit status 0", {"exit": 0, "signal": None, "seconds": 0.5, "why": None})
DEAD = Result(B, "dead", "dead: refused")


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"\n", b"a\nb", b"\r\n"])))
def test_every_line_gets_its_prefix_however_it_is_cut(pieces: list[bytes]) -> None:
    lines, whole = Lines(b"p | "), b"".join(pieces)
    printed = b"".join(lines.feed(piece) for piece in pieces) + lines.end()
    expected = whole.removesuffix(b"\n").split(b"\n") if whole else []
    assert printed == b"".join(b"p | %s\n" % line for line in expected)


def test_a_line_without_end_is_broken() -> None:
    lines = Lines(b"")
    printed = [len(lines.feed(b"x" * 1000)) for _ in range(1000)]
    assert max(printed) <= LONGEST + 1001
    assert sum(printed) + len(lines.end()) - 1_000_000 < 20


@given(st.binary())
def test_nothing_that_is_escaped_steers_a_terminal(data: bytes) -> None:
    text = escaped_lines(data).decode("utf-8")
    assert all(char.isprintable() or char in "\t\n" for char in text)


def test_escapes_show_what_was_there() -> None:
    assert escaped_lines(b"a\x1b[2Jb\r\n\tc\x9b\xff\rd\n") == b"a\\x1b[2Jb\n\tc\\x9b\\xff\\rd\n"
    assert escaped_lines("é\u202ex\u009b".encode()) == "é\\u202ex\\x9b".encode()


def report(
    *, tty: bool = False, colour: bool = False, json_: bool = False
) -> tuple[TextReport | JsonReport, io.BytesIO, io.BytesIO]:
    out, err = io.BytesIO(), io.BytesIO()
    printer = Printer(out, err, tty_out=tty, tty_err=tty)
    made = JsonReport(printer) if json_ else TextReport(printer, [A, B], colour=colour)
    return made, out, err


async def play(made: TextReport | JsonReport) -> None:
    await made.begin()
    await made.output(A, "stdout", "one\ntw")
    await made.output(B, "stderr", b"\xffbad\n")
    await made.output(A, "stdout", "o\n\x1b[2Jlast")
    await made.ended(DONE)
    await made.ended(DEAD)
    await made.finish([DONE, DEAD])


async def test_text_goes_where_it_came_from() -> None:
    made, out, err = report()
    await play(made)
    assert out.getvalue() == b"a | one\na | two\na | \x1b[2Jlast\n"
    assert err.getvalue() == (
        b"bcd | \xffbad\nkontrol: 1 of 2 pods failed:\n  POD  WHY\n  bcd  dead: refused\n"
    )


async def test_a_terminal_gets_names_in_line_colours_and_progress() -> None:
    made, out, err = report(tty=True, colour=True)
    await play(made)
    assert out.getvalue() == (
        b"\x1b[36ma   |\x1b[0m one\n\x1b[36ma   |\x1b[0m two\n\x1b[36ma   |\x1b[0m \\x1b[2Jlast\n"
    )
    shown = err.getvalue()
    assert b"\r\x1b[Kkontrol: 2 of 2 pods done, 1 failed" in shown
    assert b"\x1b[33mbcd |\x1b[0m \\xffbad\n" in shown
    assert shown.endswith(
        b"\r\x1b[Kkontrol: 1 of 2 pods failed:\n  POD  WHY\n  bcd  dead: refused\n"
    )
    made, out, _ = report(tty=True)
    await play(made)
    assert out.getvalue() == b"a   | one\na   | two\na   | \\x1b[2Jlast\n"


async def test_json_is_an_object_for_each_event() -> None:
    made, out, err = report(json_=True)
    await play(made)
    assert err.getvalue() == b""
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"pod": "a", "key": "ka", "stdout": "one\ntw"},
        {"pod": "bcd", "key": "kb", "stderr": "\ufffdbad\n"},
        {"pod": "a", "key": "ka", "stdout": "o\n\x1b[2Jlast"},
        {
            "pod": "a",
            "key": "ka",
            "ok": True,
            "kind": "done",
            "why": "exit status 0",
            "exit": 0,
            "signal": None,
            "seconds": 0.5,
        },
        {"pod": "bcd", "key": "kb", "ok": False, "kind": "dead", "why": "dead: refused"},
        {"pods": 2, "failed": ["bcd"]},
    ]


async def test_a_reader_that_stalls_does_not_stall_the_event_loop() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as inlet, os.fdopen(writer, "wb") as outlet:
        made = TextReport(Printer(outlet, outlet, tty_out=False, tty_err=False), [A], colour=False)
        writing = asyncio.create_task(made.output(A, "stdout", "x\n" * 500_000))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not writing.done()
        async with asyncio.timeout(20):
            length = 0
            while length < 500_000 * 6:
                length += len(await asyncio.to_thread(inlet.read1, 65536))
            await writing


def test_a_file_is_no_terminal() -> None:
    assert not is_terminal(io.BytesIO())
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(follower, "wb") as terminal:
        assert is_terminal(terminal)
