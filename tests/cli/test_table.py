"""Text that fits the terminal, and cannot steer it."""

import io
import json
import os
import pty
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.master import entry, pod, status

from kontrol.cli.operate.document import UntrustedJson, ago, lasting
from kontrol.cli.operate.pods import one, table
from kontrol.cli.operate.runs import explain, ledger, now
from kontrol.cli.operate.status import problems, screen
from kontrol.cli.table import Cell, Console, fit, tame, width
from kontrol.ensemble.canonical import JSON
from kontrol_common.text import escaped

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(_JSON)
def test_a_tame_document_cannot_steer(value: JSON) -> None:
    assert all(line.isprintable() for line in json.dumps(tame(value), ensure_ascii=False).split())


@given(st.text(), st.integers(1, 40))
def test_what_is_cut_fits(text: str, columns: int) -> None:
    cut = fit(escaped(text), columns)
    assert width(cut) <= columns
    assert cut == escaped(text) or cut.endswith("…")


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("é", 1), ("e\u0301", 1), ("日本", 4)])
def test_width_is_in_columns(text: str, columns: int) -> None:
    assert width(text) == columns


@given(
    st.lists(st.tuples(st.text(), st.text(), st.integers(0, 10**6)), max_size=5),
    st.integers(20, 100),
)
def test_tables_fit(rows: list[tuple[str, str, int]], columns: int) -> None:
    cells: list[list[str | Cell]] = [
        [str(number), escaped(a), Cell(escaped(b), "bad")] for a, b, number in rows
    ]
    for line in Console(columns).table(("N", "A", "B"), cells, ("N",)):
        assert width(line) <= columns


def test_columns_that_do_not_fit_give_way_from_the_right() -> None:
    head, *_ = Console(17).table(
        ("NUMBER", "SECOND", "THIRD"), [["1", "x" * 9, "y" * 9]], ("NUMBER",)
    )
    assert head == "NUMBER  SECOND"


@settings(deadline=None)
@given(_JSON, _JSON, st.sampled_from([None, 20, 80]))
def test_any_document_is_laid_out(one_value: JSON, other: JSON, columns: int | None) -> None:
    """Whatever a master of another version says, there is no traceback and no control character."""
    console = Console(columns)
    for base in (status(), entry(1), pod(1)):
        for name in base:
            doc = UntrustedJson.of({**base, name: one_value, "leader": other, "plan": other})
            lines = [
                *screen(doc, "http://m:8001", console),
                *explain(doc, console),
                *ledger([doc], console),
                *table([doc], console),
                *one(doc, console),
                now(doc),
                *(line for pair in problems(doc) for line in pair),
            ]
            assert all(line.isprintable() for line in lines)


def test_standard_error_keeps_its_lines() -> None:
    lines = explain(UntrustedJson.of(entry(1, stderr="a\r\n\tb\x1b[31m\n")), Console())
    assert lines[-2:] == ["  | a", "  |         b\\x1b[31m"]


def test_only_standard_error_has_lines_of_its_own() -> None:
    """A pod reports whatever it likes: under that name too, it forges no line."""
    lines = one(UntrustedJson.of(pod(1, stderr="x\nid  another")), Console())
    assert not any(line.startswith("id  another") for line in lines)


def test_a_long_name_of_a_field_is_cut() -> None:
    lines = one(UntrustedJson.of({"seq": 1, "n" * 30_000: "v" * 30_000}), Console(80))
    assert max(map(len, lines)) <= 80
    assert len(lines) < 1000


def test_colours_are_for_terminals_alone() -> None:
    assert Console.of(io.StringIO(), {}) == Console()
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        assert Console.of(null, {}) == Console()
    main, other = pty.openpty()
    with os.fdopen(other, "w", encoding="utf-8") as terminal:
        assert Console.of(terminal, {}) == Console(80, 24, colours=True)
        assert Console.of(terminal, {"NO_COLOR": ""}).colours
        assert not Console.of(terminal, {"NO_COLOR": "1"}).colours
        assert not Console.of(terminal, {"TERM": "dumb"}).colours
    os.close(main)
    assert Console(80, colours=True).paint("x", "bad") == "\x1b[1;31mx\x1b[m"
    assert Console(80).paint("x", "bad") == "x"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-1, "0 ms"),
        (0.04, "40 ms"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (172_800, "2 days"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert lasting(seconds) == told


def test_numbers_beyond_reason_are_none() -> None:
    doc = UntrustedJson({"a": 10**400, "b": True, "c": "1", "d": 7.9})
    assert [doc.number(name) for name in "abcde"] == [None, None, None, 7.9, None]
    assert [doc.count(name) for name in "ad"] == [0, 7]


def test_how_long_ago() -> None:
    doc = UntrustedJson(
        {"a": "2026-01-05T03:12:44Z", "b": "2026-01-05T03:12:44.5+01:00", "c": "yesterday"}
    )
    assert ago(doc.time("b"), doc.time("a")) == "60 min ago"
    assert ago(doc.time("c"), doc.time("a")) == ""
    assert UntrustedJson({"a": "2026-01-05"}).time("a") is None
