"""Which Redis the callback of `examples/redis` chooses, and what it publishes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CALLBACK = Path(__file__).parents[2] / "examples" / "redis" / "callback.py"
PRIMARY = {
    "id": "a",
    "ip": "10.0.0.1",
    "since": "1",
    "replicas": 1,
    "silent": "",
    "from": None,
}
IPS = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}


def pod(
    ident: str,
    live: int | None = 100,
    *,
    offset: int | None = None,
    synced: str = "10.0.0.1",
    since: str = "1",
    state: str = "serve",
    silent: str = "",
) -> dict[str, Any]:
    """Return a pod as the callback sees it; `offset` is final."""
    payload = {"state": state, "since": since, "synced": synced, "offset": offset, "silent": silent}
    facts = None if live is None else {"offset": live}
    return {"id": ident, "ip": IPS[ident], "role": "redis", "payload": payload, "live": facts}


class Run:
    """One run: `chosen` is the new state, `published` what was published, with the note."""

    def __init__(self, folder: Path, state: Any, *pods: dict[str, Any]) -> None:  # noqa: ANN401
        kontrol = folder / "kontrol"
        kontrol.write_text('#!/bin/sh\nfor word; do echo "$word"; done > published\n', "utf-8")
        kontrol.chmod(0o755)
        paths = {name: folder / name for name in ("NOTE_FILE", "AGAIN_FILE", "published")}
        for path in paths.values():
            path.unlink(missing_ok=True)
        environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        document = {"pods": pods, "state": state} if state else {"pods": pods}
        done = subprocess.run(
            [sys.executable, str(CALLBACK)],
            env={**environ, **{name: str(path) for name, path in paths.items()}},
            cwd=folder,
            input=json.dumps(document),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        self.chosen: Any = json.loads(done.stdout) if done.stdout else None
        read = {name: path.read_text("utf-8") for name, path in paths.items() if path.exists()}
        self.note = read.get("NOTE_FILE")
        self.published = None
        if "published" in read:
            verb, key, text = read["published"].splitlines()
            assert (verb, key) == ("publish", "primary")
            self.published = json.loads(text)
        assert self.published == (None if self.chosen == state else self.chosen)
        assert (self.note is None) == (read.get("AGAIN_FILE") is None) == (self.chosen is not None)


def test_at_first_the_one_that_has_come_furthest(tmp_path: Path) -> None:
    run = Run(tmp_path, None, pod("a", 5, synced=""), pod("b", 7, synced=""))
    assert run.chosen == {**PRIMARY, "id": "b", "ip": "10.0.0.2"}


def test_a_primary_stays_while_its_process_serves(tmp_path: Path) -> None:
    pods = [pod("a", 5), pod("b", 99), pod("c", 7, offset=7)]
    assert Run(tmp_path, PRIMARY, *pods).chosen == PRIMARY
    assert Run(tmp_path, PRIMARY, pods[0]).chosen == PRIMARY


def test_a_primary_that_was_silent_is_told_that_it_is_heard_again(tmp_path: Path) -> None:
    run = Run(tmp_path, PRIMARY, pod("a", silent="17.5"), pod("b", silent="17.4"))
    assert run.chosen == {**PRIMARY, "silent": "17.5"}
    assert Run(tmp_path, run.chosen, pod("a"), pod("b")).chosen == run.chosen
    run = Run(tmp_path, PRIMARY, pod("b", silent="17.4"), pod("c", 5))
    assert run.chosen == {**PRIMARY, "id": "b", "ip": "10.0.0.2", "silent": "17.4"}


def test_a_lost_one_is_followed_by_the_furthest_of_those_in_sync(tmp_path: Path) -> None:
    run = Run(tmp_path, PRIMARY, pod("b", 100), pod("c", 101))
    assert run.chosen == {**PRIMARY, "id": "c", "ip": "10.0.0.3"}
    run = Run(tmp_path, PRIMARY, pod("b", 100), pod("c", 99, offset=101))
    assert run.chosen["id"] == "c"
    run = Run(tmp_path, PRIMARY, pod("b", 100), pod("c", 999, synced="10.0.0.9"))
    assert run.chosen["id"] == "b"


@pytest.mark.parametrize(
    "last", [pod("a", 0, since="2", synced="", offset=0), pod("a", None, state="start")]
)
def test_while_replicas_receive_what_a_restarted_primary_sent_none_is_chosen(
    tmp_path: Path, last: dict[str, Any]
) -> None:
    run = Run(tmp_path, PRIMARY, last, pod("b", 100), pod("c", 99, offset=99))
    assert "still receive" in str(run.note)
    run = Run(tmp_path, PRIMARY, last, pod("b", 98, offset=100), pod("c", 99, offset=99))
    assert (run.chosen["id"], run.chosen["from"]) == ("b", None)


def test_while_one_does_not_say_how_far_it_has_come_none_is_chosen(tmp_path: Path) -> None:
    mute = pod("c")
    del mute["payload"]["synced"], mute["payload"]["offset"]
    for other in (pod("c", None), mute):
        run = Run(tmp_path, PRIMARY, pod("b", 100), other)
        assert "does not say" in str(run.note)
        assert Run(tmp_path, PRIMARY, pod("a", None), pod("b"), other).chosen == PRIMARY
    final = pod("c", None, offset=101)
    assert Run(tmp_path, PRIMARY, pod("b", 100), final).chosen["id"] == "c"


def test_one_that_stops_hands_over(tmp_path: Path) -> None:
    run = Run(tmp_path, PRIMARY, pod("a", state="stop"), pod("b", 100), pod("c", 99))
    assert run.chosen == {**PRIMARY, "id": "b", "ip": "10.0.0.2", "from": "10.0.0.1"}


def test_after_a_restart_of_all_the_last_primary_is_the_first_of_equals(tmp_path: Path) -> None:
    pods = [pod(ident, 0, since="2", synced="", offset=0) for ident in "cab"]
    assert Run(tmp_path, PRIMARY, *pods).chosen == {**PRIMARY, "since": "2", "replicas": 2}


@pytest.mark.parametrize("state", [None, PRIMARY])
def test_one_alone_is_not_chosen(tmp_path: Path, state: Any) -> None:  # noqa: ANN401
    others = [pod("a", None, state="start"), {**pod("c"), "payload": ""}]
    assert "two servers" in str(Run(tmp_path, state, pod("b"), *others).note)
