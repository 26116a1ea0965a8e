"""The public API: these names, and no others. What is public is also documented and typed."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGE = TOP / "docs" / "public-api.rst"

PUBLIC = {
    "automaton.api": ["Probe", "Refused", "State", "States", "goto"],
    "kontrol": ["__version__"],
}
STATE = ["env", "force", "func", "line", "on", "retry", "tag", "timeout", "transitions"]
STATES = ["initial", "line", "live", "payload", "states", "terminal"]
PROBE = ["every", "file", "line", "run", "timeout"]


@pytest.mark.parametrize("module", PUBLIC)
def test_these_names_are_public(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == PUBLIC[module]


def test_automaton_api_has_no_other_name() -> None:
    from automaton import api

    assert [name for name in vars(api) if not name.startswith("_")] == PUBLIC["automaton.api"]
    assert {getattr(api, name).__module__ for name in PUBLIC["automaton.api"]} == {"automaton.api"}


def test_these_attributes_are_public() -> None:
    from automaton.api import Probe, State, States

    state = State(test_these_attributes_are_public)
    states = States([state], initial="a", terminal="b")
    probe = Probe("file", "script", every=1)
    for made, attributes in ((state, STATE), (states, STATES), (probe, PROBE)):
        assert sorted(name for name in vars(made) if not name.startswith("_")) == attributes
        arguments = set(inspect.signature(type(made)).parameters)
        assert set(attributes) == arguments | {"line"}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_documented(module: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"``{module}``" in page
    for name in PUBLIC[module]:
        assert re.search(rf"``{name}\b", page), f"{PAGE} does not mention {name}"
        described = getattr(importlib.import_module(module), name)
        assert isinstance(described, str) or inspect.getdoc(described)


def test_all_packages_are_typed() -> None:
    packages = [path.parent for path in (TOP / "src").glob("*/__init__.py")]
    assert len(packages) == 3
    assert all((package / "py.typed").is_file() for package in packages)
