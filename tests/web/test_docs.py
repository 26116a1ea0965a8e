"""The pages on REST and metrics say what is there, and nothing else."""

import re
from pathlib import Path

from docs import metrics_page, rest_page
from kontrol.metrics import NAMES
from kontrol.web.routes import ROUTES

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_every_route_once_with_an_answer_and_its_statuses() -> None:
    page = rest_page.render()
    names = [f"{route.method} {route.path}" for route in ROUTES]
    assert re.findall(r"^``(\S+ \S+)``\n-+$", page, re.MULTILINE) == names
    assert list(rest_page.SAMPLES) == names
    for route in ROUTES:
        assert route.doc.replace("`", "``") in page
        assert set(route.statuses) >= {200}
        for status, text in route.statuses.items():
            assert f":{status}: {text.replace('`', '``')}" in page
    assert "`" not in re.sub(r"``[^`]+``", "", page)


def test_the_page_has_exactly_the_metrics_that_are_told() -> None:
    page = metrics_page.render()
    names = [metric.name for _, table in metrics_page.TABLES for metric in table]
    assert re.findall(r"^``(\w+)``$", page, re.MULTILINE) == names
    assert len(set(names)) == len(names)


def test_what_the_page_asks_of_metrics_is_there() -> None:
    page = (DOCS / "metrics.rst").read_text("utf-8")
    names = {metric.name for _, table in metrics_page.TABLES for metric in table}
    for told in re.findall(r"kontrol_\w+", page):
        assert told in names or re.sub(r"_(sum|count)$", "", told) in names, told
    for name in NAMES:
        assert f"``{name}``" in page


def test_the_pages_are_made_from_the_tables() -> None:
    for name in ("rest", "metrics"):
        assert f".. kontrol-made:: {name}\n" in (DOCS / f"{name}.rst").read_text("utf-8")
