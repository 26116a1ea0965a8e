"""The list of banned words: it finds them, and the repository has none."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.words.check import LIST, ROOT, Banned, files

BANNED = Banned.load(LIST.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("what mends it", "mends"),
        ("def test_farewell() -> None:", "farewell"),
        ("class PodSeat:", "seat"),
        ("SEATS = 3", "seats"),
        ("It runs\n    # for\n    # ever.", "for # ever"),
        ('"it answers at "\n        "once"', 'at " "once'),
        ("| to and\n  | fro", "to and | fro"),
    ],
)
def test_a_banned_word_is_found_in_text_names_and_over_the_end_of_a_line(
    text: str, found: str
) -> None:
    assert [word for _, word, _ in BANNED.in_text(text)] == [found]


@pytest.mark.parametrize(
    "text",
    ["amend", "recommended", "seatbelt", "operation", "Troubleshooting", "norm", "hereditary"],
)
def test_a_part_of_another_word_is_not(text: str) -> None:
    assert not list(BANNED.in_text(text))


def test_lines_are_counted_and_the_replacement_is_named() -> None:
    [(line, word, instead)] = BANNED.in_text("one\ntwo\nthree seats")
    assert (line, word) == (3, "seats")
    assert "registration" in instead


def test_text_names_of_files_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/seat.py").write_text("farewell = 1\n", encoding="utf-8")
    (tmp_path / "src/exempt.py").write_text("farewell = 1\n", encoding="utf-8")
    (tmp_path / "src/binary").write_bytes(b"\xff farewell")
    (tmp_path / "README.md").write_text("The farewell of the original, and anew.", encoding="utf-8")
    banned = Banned.load(
        """
        [instead]
        "farewell" = "deregistration"
        "seat" = "registration"
        "anew" = "again"
        [exempt]
        paths = ["src/exempt.py"]
        [quoted."README.md"]
        farewell = "the original's word"
        """
    )
    assert sorted(banned.in_tree(tmp_path)) == [
        "README.md:1: anew: write again",
        "src/seat.py:1: farewell: write deregistration",
        "src/seat.py:1: seat: write registration",
    ]


def test_every_exemption_and_quote_is_still_needed() -> None:
    paths = set(files(ROOT))
    for exempt in BANNED.exempt:
        assert any(path == exempt or path.startswith(f"{exempt}/") for path in paths), exempt
    for path, quoted in BANNED.quoted.items():
        found = {word for _, word, _ in BANNED.in_text((ROOT / path).read_text("utf-8"))}
        assert set(quoted) <= found, f"{path} has none of {set(quoted) - found} any more"


def test_the_repository_uses_no_banned_word() -> None:
    check = subprocess.run(
        [sys.executable, "-m", "tests.words.check"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (check.returncode, check.stdout) == (0, ""), check.stdout
