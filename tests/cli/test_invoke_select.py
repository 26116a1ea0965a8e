"""Which pods a command is for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.cli.invoke.targets import BadSelection, NoMatch, Selection, condition, has, is_named

PODS: list[dict[str, Any]] = [
    {"id": "redis-0", "key": "k0", "seq": 0, "role": "redis", "payload": {"state": "READY"}},
    {"id": "redis-1", "key": "k1", "seq": 3, "role": "redis", "payload": {"n": 1, "l": [True]}},
    {"id": "web-0", "key": "k2", "seq": 10, "role": "web", "payload": ""},
]


def names(*selectors: str, roles: tuple[str, ...] = (), where: tuple[str, ...] = ()) -> list[str]:
    selection = Selection(selectors, roles, tuple(condition(text) for text in where))
    return [str(pod["id"]) for pod in selection.choose(PODS)]


def test_selects_by_id_key_number_and_glob() -> None:
    assert names() == ["redis-0", "redis-1", "web-0"]
    assert names("web-0") == names("k2") == names("#10") == ["web-0"]
    assert names("redis-*") == names("redis-[01]") == ["redis-0", "redis-1"]
    assert names("*-0") == ["redis-0", "web-0"]


def test_several_are_a_union_in_the_ensembles_order() -> None:
    assert names("#10", "redis-0", "k0") == ["redis-0", "web-0"]


def test_roles_and_conditions_leave_out() -> None:
    assert names(roles=("web", "other")) == ["web-0"]
    assert names("*-0", roles=("redis",)) == ["redis-0"]
    assert names(where=("payload.state=READY",)) == ["redis-0"]
    assert names(where=("payload.n=1", "role=redis")) == ["redis-1"]
    assert names(where=("payload.l.0=true",)) == ["redis-1"]
    assert names(where=("seq=10",)) == ["web-0"]
    assert names(where=('payload={"l": [true], "n": 1}',)) == ["redis-1"]
    assert names(where=("payload=",)) == ["web-0"]


@pytest.mark.parametrize("selector", ["web", "#1", "#03", "K2", "x-*", "#", "redis-?0"])
def test_a_selector_that_matches_nothing_stops_everything(selector: str) -> None:
    with pytest.raises(NoMatch, match="no pod has the id, key or number"):
        names("web-0", selector)


@pytest.mark.parametrize(
    "where", ["payload.state=ready", "payload.n=1.5", "payload.l.1=true", "payload.l.x=1", "a.b=1"]
)
def test_conditions_that_no_pod_meets(where: str) -> None:
    with pytest.raises(NoMatch, match="no pod of 3 matches"):
        names(where=(where,))


def test_says_why_no_payload_matches() -> None:
    selection = Selection(where=(("payload.state", "READY"),))
    with pytest.raises(NoMatch, match="only to clients with a key"):
        selection.choose([{"id": "a"}])


@pytest.mark.parametrize("text", ["payload", "=x", "a..b=1", ".a=1"])
def test_a_condition_has_a_path_and_a_value(text: str) -> None:
    with pytest.raises(BadSelection, match=r"expected a path and a value, as payload\.state=READY"):
        condition(text)


@given(st.text(), st.text())
def test_an_id_that_looks_like_a_glob_is_still_an_id(name: str, other: str) -> None:
    assert is_named({"id": f"x{name}"}, f"x{name}")
    if not any(char in other for char in "*?[#") and other not in (name, ""):
        assert not is_named({"id": name, "key": "k"}, other) or other == "k"


@given(st.text(), st.integers() | st.booleans() | st.text())
def test_a_value_is_found_by_its_text(text: str, value: int | bool | str) -> None:
    assert has({"a": {"b": text}}, "a.b", text)
    if not isinstance(value, str):
        assert has({"a": value}, "a", str(value).lower())
        assert not has({"a": value}, "a", f"{value}x")
