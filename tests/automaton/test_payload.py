"""The payload file: what it says, and that `since` tells whatever was left and came back."""

import itertools
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.automaton.support import automaton

from automaton.payload import Payload, timestamp, timestamp_after

BOT = """
initial: up
terminal: end
payload: payload.json
states:
- {tag: up, next: [up, down]}
- {tag: down, next: [up]}
- {tag: end}
"""
START = datetime(2026, 11, 29, 10, 30, 0, 123_456, tzinfo=UTC)


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "payload.json").read_text("utf-8"))
    assert content.keys() == {"state", "since"}
    assert timestamp(datetime.fromisoformat(content["since"])) == content["since"]
    return content


def test_the_time_is_rfc_3339_in_utc() -> None:
    assert timestamp(START) == timestamp_after(None, START) == "2026-11-29T10:30:00.123Z"


CLOCK = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(
    start=CLOCK,
    steps=st.lists(
        st.integers(-2_000_000, 2_000_000) | st.integers(-(10**15), 10**15) | st.just(0),
        max_size=20,
    ),
)
def test_whatever_the_clock_does_no_time_is_the_one_before(
    start: datetime, steps: list[int]
) -> None:
    now, times = start, [timestamp_after(None, start)]
    for microseconds in steps:
        now += timedelta(microseconds=microseconds)
        times.append(timestamp_after(times[-1], now))
        off = datetime.fromisoformat(times[-1]) - now
        assert abs(off) <= timedelta(seconds=1, milliseconds=1)
    assert all(one != other for one, other in itertools.pairwise(times))


def test_a_clock_that_stands_still_gives_rising_times() -> None:
    times = list(
        itertools.accumulate(range(100), lambda t, _: timestamp_after(t, START), initial="")
    )
    assert times == sorted(set(times))


@given(text=st.text() | st.sampled_from(["2026-11-29", "2026-11-29T10:30:00", "9999-12-31T23:59Z"]))
def test_any_former_time_is_endured(text: str) -> None:
    assert timestamp_after(text, START) == timestamp(START)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"[" * 5000, b'{"state": "up"}', b'{"since": 7}', b"[]", b'{"since": "x"}',
        b" " * 70_000 + b'{"since": "2026-11-29T10:30:00.123Z"}',
    ],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_bytes(content)
    payload = Payload(str(tmp_path / "payload.json"))
    assert payload.since() in (None, "x")
    payload.write("up", timestamp_after(payload.since(), START))
    assert read(tmp_path) == {"state": "up", "since": "2026-11-29T10:30:00.123Z"}


def test_where_a_fifo_is_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "payload.json")
    assert Payload(str(tmp_path / "payload.json")).since() is None
    assert Payload(str(tmp_path / "none.json")).since() is None
    assert Payload(str(tmp_path)).since() is None


def test_it_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    payload = Payload(str(tmp_path / "payload.json"))
    payload.write("A", "t1")
    first = (tmp_path / "payload.json").stat()
    payload.write("A", "t1")
    assert (tmp_path / "payload.json").stat().st_ino == first.st_ino, "nothing changed"
    payload.write("B", "t2")
    assert (tmp_path / "payload.json").read_text() == '{"state": "B", "since": "t2"}\n'
    gone = Payload(str(tmp_path / "no" / "payload.json"))
    with pytest.raises(FileNotFoundError):
        gone.write("A", "t3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["payload.json"]


async def test_since_moves_with_the_state_and_not_with_entering_it_again(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        seen = [read(tmp_path)]
        for state in ("up", "down", "up"):
            assert await bot.ask(f"WAIT {state}") == "OK"
            seen.append(read(tmp_path))
        status = json.loads(await bot.ask("STATUS"))
        assert seen[-1] == {"state": status["state"], "since": status["since"]}
        assert [entry["state"] for entry in status["history"]] == ["up", "up", "down", "up"]
        assert status["history"][-1]["since"] == status["since"]
        assert await bot.die() == 0
    first, again, down, up = (one["since"] for one in seen)
    assert first == again < down < up


@pytest.mark.parametrize("clock", ["right", "back by less than a second", "back by years"])
async def test_since_moves_with_a_new_process(tmp_path: Path, clock: str) -> None:
    async with automaton(tmp_path, BOT) as bot:
        bot.process.kill()
        await bot.process.wait()
    former = read(tmp_path)
    ahead = {"right": 0.0, "back by less than a second": 0.9, "back by years": 1e9}[clock]
    former["since"] = timestamp(datetime.now(UTC) + timedelta(seconds=ahead))
    (tmp_path / "payload.json").write_text(json.dumps(former), "utf-8")
    async with automaton(tmp_path, BOT) as bot:
        now = read(tmp_path)
        assert now["state"] == former["state"]
        assert now["since"] != former["since"]
        assert await bot.die() == 0
