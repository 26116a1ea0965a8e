"""Lines, tails and drains: bounded, whatever is written and however it is cut."""

import asyncio
import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.process.command import LINE_LIMIT, Drain, Lines, Tail

TEXT = st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(TEXT), st.booleans(), st.lists(st.integers(0)))
def test_lines_come_whole_however_the_pipe_cuts_them(
    lines: list[str], closed: bool, places: list[int]
) -> None:
    data = "\n".join(lines).encode() + (b"\n" if closed and lines else b"")
    subject = Lines()
    seen = [line for chunk in cut(data, places) for line in subject.feed(chunk, 0.0)]
    seen += subject.end()
    expected = lines if closed or not lines or lines[-1] else lines[:-1]
    assert seen == expected


def test_a_long_line_is_cut_and_says_so() -> None:
    subject = Lines()
    assert subject.feed(b"x" * 100_000, 0.0) == []
    assert subject.feed(b"y" * 100_000 + b"\nnext\n", 0.0) == [
        "x" * LINE_LIMIT + f" ... {200_000 - LINE_LIMIT} bytes cut",
        "next",
    ]


def test_a_flood_is_dropped_and_counted() -> None:
    subject = Lines(burst=3, rate=1.0)
    assert subject.feed(b"a\nb\nc\nd\ne\nf", 0.0) == ["a", "b", "c"]
    assert subject.feed(b"\ng\n", 0.1) == []
    assert subject.feed(b"h\ni\n", 2.0) == ["... 4 lines are not shown here ...", "h", "i"]
    assert subject.feed(b"j\nk", 2.0) == []
    assert subject.end() == ["... 1 lines are not shown here ...", "k"]


PIECES = st.lists(st.sampled_from([b"a", b"\n", b"b\n\n", b"\xff"])).map(b"".join)


@given(st.lists(st.tuples(PIECES, st.floats(0, 0.5))), st.integers(1, 5))
def test_never_more_lines_than_burst_and_rate_allow_and_none_is_lost_silently(
    chunks: list[tuple[bytes, float]], burst: int
) -> None:
    subject = Lines(burst=burst, rate=10.0)
    now, seen = 0.0, list[str]()
    for chunk, later in chunks:
        now += later
        seen += subject.feed(chunk, now)
    told = [line for line in seen if line.startswith("... ") and line.endswith(" here ...")]
    assert len(seen) - len(told) <= burst + 10.0 * now
    seen += subject.end()
    data = b"".join(chunk for chunk, _ in chunks)
    told = [line for line in seen if line.startswith("... ") and line.endswith(" here ...")]
    dropped = sum(int(line.split()[1]) for line in told)
    complete = data.count(b"\n")
    last = bool(data) and not data.endswith(b"\n")
    assert len(seen) - len(told) + dropped == complete + last


@given(st.lists(st.binary(max_size=50)), st.integers(0, 60))
def test_the_tail_is_the_end(chunks: list[bytes], limit: int) -> None:
    subject = Tail(limit)
    for chunk in chunks:
        subject.add(chunk)
    data = b"".join(chunks)
    assert bytes(subject) == (data[-limit:] if limit else b"")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


async def test_a_drain_that_is_told_to_finish_takes_what_is_there(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    seen = bytearray()
    drain = Drain(reader, seen.extend)
    task = asyncio.ensure_future(drain.run())
    await asyncio.sleep(0)
    os.write(writer, b"last words")
    drain.finish()
    await asyncio.wait_for(task, 10)
    assert seen == b"last words"


async def test_a_drain_reads_no_further_than_its_reader_takes(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    gate, taken = asyncio.Event(), asyncio.Event()
    chunks: list[bytes] = []

    async def take(chunk: bytes) -> None:
        chunks.append(chunk)
        taken.set()
        await gate.wait()

    drain = Drain(reader, take)
    task = asyncio.ensure_future(drain.run())
    os.write(writer, b"one")
    await asyncio.wait_for(taken.wait(), 10)
    os.write(writer, b"two")
    for _ in range(10):
        await asyncio.sleep(0)
    assert chunks == [b"one"]
    gate.set()
    drain.finish()
    await asyncio.wait_for(task, 10)
    assert chunks == [b"one", b"two"]
