"""The one reader of JSON from elsewhere: strict, and the only one."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.agent.allow import parse_allow_list
from kontrol.agent.payload import PayloadFile
from kontrol.agent.request import read_exec, read_invoke
from kontrol.ensemble.canonical import NotJSON, parse
from kontrol.ensemble.pod import parse_keepalive
from kontrol.master.callback import parse_state
from kontrol.settings import variables as v

SOURCE = Path(__file__).parents[2] / "src"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)

READERS: dict[str, Callable[[str], object]] = {
    "keepalive": parse_keepalive,
    "labels": v.LABELS.parse,
    "annotations": v.ANNOTATIONS.parse,
    "exec": read_exec,
    "invoke": lambda text: read_invoke(text, 60),
    "allow-list": lambda text: parse_allow_list(text.encode()),
    "state": lambda text: parse_state(text.encode()),
}
TWICE = '{"a": {"argv": ["x"], "args": []}, "cmd": "x", "a": {"argv": ["y"]}}'

# What reads JSON that this project wrote itself, or passes on what was read before.
_OWN = {
    "automaton/cli.py",  # the answer of our own machine
    "automaton/payload.py",  # the file that we wrote
    "automaton/pyfile.py",  # our own worker
    "kontrol/agent/control.py",
    "kontrol/cli/publish.py",  # the answer of our own leader
    "kontrol/demo/callback.py",
    "kontrol/demo/daemons.py",
    "kontrol/master/master.py",  # the state, which `parse_state` has read
    "kontrol/master/operator/archive.py",
    "kontrol/process/supervisor.py",
    "kontrol/process/guard_main.py",
    "kontrol/process/spawn.py",
    "kontrol/settings/booted.py",  # what our own boot left
    "kontrol/store/embedded.py",  # the log of our own etcd
}


@pytest.mark.parametrize("reader", READERS)
def test_a_member_that_is_there_twice_is_refused_by_name(reader: str) -> None:
    with pytest.raises(ValueError, match="the member 'a' is there twice") as raised:
        READERS[reader](TWICE)
    assert "\n" not in str(raised.value)


def test_and_in_a_payload_file(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    path.write_text('{"state": "A", "state": "B"}', encoding="utf-8")
    file = PayloadFile(path)
    told: list[object] = []
    file.refresh(told.append)
    assert not told
    assert file.error == "the member 'state' is there twice: keep one"


@given(VALUES)
def test_every_document_is_read(value: object) -> None:
    assert parse(json.dumps(value), depth=64) == value


@given(st.dictionaries(st.text(), VALUES, min_size=1), st.data())
def test_twice_is_twice_however_it_is_spelled(
    members: dict[str, object], data: st.DataObject
) -> None:
    pairs = [*members.items(), (data.draw(st.sampled_from(sorted(members))), None)]
    pairs = data.draw(st.permutations(pairs))
    for ascii_ in (True, False):
        text = ",".join(
            f"{json.dumps(name, ensure_ascii=ascii_)}:{json.dumps(value)}" for name, value in pairs
        )
        with pytest.raises(NotJSON, match="is there twice"):
            parse(f'[{{"within": {{{text}}}}}]', depth=64)


def test_a_member_that_is_there_twice_is_found_in_one_pass() -> None:
    names = [f"{number:x}" for number in range(60_000)]  # half a MiB: a second name is the last
    text = ",".join(f'"{name}":0' for name in [*names, names[-1]])
    began = time.process_time()
    with pytest.raises(NotJSON, match=f"'{names[-1]}' is there twice"):
        parse(f"{{{text}}}", depth=64)
    assert time.process_time() - began < 2  # comparing each with each takes 40 s


def test_there_is_no_other_reader_of_what_others_wrote() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"\bjson\.loads?\(|JSONDecoder", path.read_text(encoding="utf-8"))
    }
    assert found == {"kontrol_common/strictjson.py"} | _OWN
