"""The page on remote commands leaves nothing out."""

import re
from pathlib import Path
from typing import get_args

import pytest

from kontrol.agent import allow, job, request
from kontrol.agent.executor import Bounds
from kontrol.cli.invoke import commands as invoke
from kontrol.cli.invoke.fanout import Kind
from kontrol.cli.invoke.targets import LIMITS

PAGE = Path(__file__).parents[2] / "docs" / "invoke.rst"
TEXT = PAGE.read_text(encoding="utf-8")
OPTIONS = [
    option
    for action in invoke.parser()._actions
    for option in action.option_strings
    if option.startswith("--") and option != "--help"
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_explained(option: str) -> None:
    assert re.search(rf"``{option}(``| )", TEXT)


@pytest.mark.parametrize("word", [*request._MEMBERS, *allow._MEMBERS, *get_args(Kind)])
def test_every_member_is_explained(word: str) -> None:
    assert f"``{word}``" in TEXT


def test_every_status_is_explained() -> None:
    own = re.findall(r"^  (\d+)  ", invoke._OWN, re.MULTILINE)
    for status in ("0", "2", "3", *own):
        assert f"   * - {status}\n" in TEXT


def test_every_limit_is_told() -> None:
    bounds = Bounds()
    for number in (bounds.commands, bounds.commands_per_address, f"{bounds.seconds:g}"):
        assert f"     - {number}\n" in TEXT
    assert bounds.answer == 2**20
    assert f"     - {job.ROOM} and {LIMITS.window} pieces" in TEXT
    assert f"{allow.MAX_FILE // 1024} KiB, and {allow.MAX_ARGUMENT:,} characters" in TEXT
    assert f"     - {request.MOST_TIERS:,}\n" in TEXT
    assert f"up to {request.MAX_SECONDS:,.0f}" in TEXT
