import re
import shlex
from pathlib import Path

import pytest
from docs.settings_page import render, render_sample, sample

from kontrol.settings import SettingsError, examine, parse, values
from kontrol.settings import variables as v
from kontrol.settings.resolve import rows
from kontrol.settings.variables import FACTS, VARIABLES

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_every_variable_once_with_its_default() -> None:
    page = render(VARIABLES)
    names = [variable.name for variable in VARIABLES]
    assert re.findall(r"envvar:: (\w+)", page) == names
    assert len(set(names)) == len(names)
    for variable in VARIABLES:
        assert variable.doc.replace("`", "``") in page
        if variable.default and not variable.fallback:
            assert f"*Default:* ``{variable.default}``." in page
        assert (f"*Example:* ``{variable.example}``." in page) is (variable.secrecy != "value")


def test_the_sample_file_is_a_valid_environment() -> None:
    """As a shell reads it, and as the page shows it."""
    text = sample(VARIABLES)
    environ = dict(word.split("=", 1) for word in shlex.split(text, comments=True))
    assert [*environ] == [one.name for one in VARIABLES if one.secrecy != "value"]
    assert parse(environ).notes == ()
    assert all(f"   {line}".rstrip() in render_sample(VARIABLES) for line in text.splitlines())


def test_a_setting_takes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default, parsing, mistakes, required value, report, documentation and sample."""
    row = v.Variable[int]("KONTROL_NEW", "New", values.port, "A new port.", "7", default="5")
    must = v.Variable[str](
        "KONTROL_MUST", "New", values.name, "A name.", "x", required="a name", fact=True
    )
    monkeypatch.setattr(v, "VARIABLES", (*v.VARIABLES, row, must))
    debug = {"KONTROL_MODE": "debug", "KONTROL_MUST": "y"}
    assert parse(debug)[row] == 5
    settings = parse({**debug, "KONTROL_NEW": "8"}, {"KONTROL_MUST": "z"})
    assert (settings[row], settings[must], settings.notes) == (8, "y", ())
    with pytest.raises(SettingsError) as caught:
        parse({"KONTROL_MODE": "debug", "KONTROL_NEW": "x"})
    assert {str(mistake) for mistake in caught.value.mistakes} == {
        "KONTROL_NEW='x': expected a TCP port, 1 to 65535",
        "KONTROL_MUST: expected a name",
    }
    assert ("KONTROL_NEW", "5", "default") in rows(examine(debug))
    assert "envvar:: KONTROL_NEW" in render(v.VARIABLES)
    assert "KONTROL_NEW='7'" in sample(v.VARIABLES)


def test_groups_are_whole() -> None:
    groups = re.findall(r"^(.+)\n-+$", render(VARIABLES), re.MULTILINE)
    assert len(set(groups)) == len(groups)


def test_a_default_that_cannot_be_seen_is_described() -> None:
    for variable in VARIABLES:
        if variable.name in FACTS:
            assert variable.fallback.startswith("found"), variable.name
        assert isinstance(variable.default, str) or variable.fallback, variable.name


def test_pages_name_only_variables_that_there_are() -> None:
    known = {variable.name for variable in VARIABLES}
    for page in DOCS.glob("*.rst"):
        named = set(re.findall(r":envvar:`(\w+)`", page.read_text("utf-8")))
        assert named <= known, page.name


def test_code_in_the_texts_is_closed() -> None:
    for variable in VARIABLES:
        assert variable.doc.count("`") % 2 == variable.fallback.count("`") % 2 == 0
        assert variable.doc.endswith(".")
