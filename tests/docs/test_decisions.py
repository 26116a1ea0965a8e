"""Decision records: each is of one form and is listed, and what refers to one finds it."""

import re
from pathlib import Path

import pytest

from docs import decisions_page

ROOT = Path(__file__).parents[2]
RECORDS = {
    path.name: path.read_text("utf-8") for path in (ROOT / "docs/decisions").glob("*.md")
}  # fmt: skip
NUMBERS = {name[:4] for name in RECORDS}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_record_has_its_sections_and_its_links_lead_to_records(name: str) -> None:
    text = RECORDS[name]
    assert re.match(rf"# {name[:4]}: [A-Z`a-z]", text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    for number, target in re.findall(r"\[(\d+)\]\(([^)]+)\)", text):
        assert target in RECORDS, target
        assert target.startswith(f"{number}-")
    if "**Status:**" in text:
        assert re.search(r"\n\n\*\*Status:\*\* superseded (in part )?by \[\d{4}\]\(", text)


def test_the_index_lists_each_record_once_with_its_status() -> None:
    page = decisions_page.render()
    assert re.findall(r"^   \* - (\d{4})$", page, re.MULTILINE) == sorted(NUMBERS)
    assert len(NUMBERS) == len(RECORDS)
    assert "     - Superseded by 0137\n" in page
    assert page.count("     - Accepted\n") > 90


def test_source_refers_only_to_records_that_exist() -> None:
    for folder in ("src", "tests", "image", "deploy"):
        for path in (ROOT / folder).rglob("*.py"):
            for number in re.findall(r"decisions?[ /](\d{4})", path.read_text("utf-8")):
                assert number in NUMBERS, f"{path}: {number}"
