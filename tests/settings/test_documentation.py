import re
from pathlib import Path

from docs.settings_page import render

from kontrol.settings.variables import FACTS, VARIABLES

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_every_variable_once_with_its_default() -> None:
    page = render(VARIABLES)
    names = [variable.name for variable in VARIABLES]
    assert re.findall(r"envvar:: (\w+)", page) == names
    assert len(set(names)) == len(names)
    for variable in VARIABLES:
        assert variable.doc.replace("`", "``") in page
        if variable.default and not variable.otherwise:
            assert f"*Default:* ``{variable.default}``." in page


def test_groups_are_whole() -> None:
    groups = re.findall(r"^(.+)\n-+$", render(VARIABLES), re.MULTILINE)
    assert len(set(groups)) == len(groups)


def test_what_has_no_default_says_what_holds_instead() -> None:
    for variable in VARIABLES:
        if variable.name in FACTS:
            assert variable.otherwise.startswith("found"), variable.name


def test_pages_name_only_variables_that_there_are() -> None:
    known = {variable.name for variable in VARIABLES}
    for page in DOCS.glob("*.rst"):
        named = set(re.findall(r":envvar:`(\w+)`", page.read_text("utf-8")))
        assert named <= known, page.name


def test_code_in_the_texts_is_closed() -> None:
    for variable in VARIABLES:
        assert variable.doc.count("`") % 2 == variable.otherwise.count("`") % 2 == 0
        assert variable.doc.endswith(".")
