"""`ctl`, `check` and `graph`, and which words are commands."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
from tests.automaton.support import AUTOMATON, automaton, run

from automaton.graph import Trace, dot, mermaid
from automaton.manifest import Manifest, Outcome, State

BOT = """
initial: A
terminal: Z
states:
- {tag: A, next: [B]}
- {tag: B, shell: 'echo working; sleep 600', next: [A]}
- {tag: Z}
"""


def call(*words: str, cwd: Path | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [*AUTOMATON, *words], capture_output=True, timeout=30, check=False, cwd=cwd
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_ctl_has_status_0_for_ok_1_for_ko_and_4_for_a_time_out(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        ctl = (*AUTOMATON, "ctl")
        assert await run(*ctl, bot.socket, "STATE") == (0, "A\n")
        assert await run(*ctl, bot.socket, "SET", "N", "a b") == (0, "OK\n")
        assert (await run(*ctl, bot.socket, "GOTO", "Q"))[0] == 1
        assert await run(*ctl, "--timeout", "0.5", bot.socket, "WAIT", "B") == (4, "")
        assert await run(*ctl, bot.socket, "GOTO", "A", "-x", "--timeout") == (0, "OK\n")
        status = json.loads((await run(*ctl, bot.socket, "STATUS"))[1])
        assert status["state"] in ("A", "B")
        assert await bot.die() == 0


def test_ctl_without_an_automaton_has_status_2(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    status, _, error = call("ctl", path, "STATE")
    assert (status, error) == (
        2,
        f"automaton ctl: {path}: No such file or directory; is an automaton running there?\n",
    )
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    assert call("ctl", path, "STATE")[0] == 2
    assert call("ctl", path)[0] == 2
    assert "options come before it" in call("ctl", path, "--timeout", "1", "STATE")[2]


def test_ctl_times_out_on_a_peer_that_never_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        assert call("ctl", "--timeout", "0.2", str(tmp_path / "deaf"), "STATE")[0] == 4


def test_check_has_status_0_if_good_and_2_if_not(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text(BOT)
    bad.write_text(BOT.replace("[B]", "[C]"))
    assert call("check", str(good)) == (0, "", "")
    status, _, error = call("check", str(bad))
    assert status == 2
    assert f"{bad}:5:19: error: 'next' names no state: 'C'" in error


def test_a_manifest_named_like_a_command_is_reached_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "check").write_text("initial: [")
    assert "not YAML" in call("./check", cwd=tmp_path)[2]
    assert "usage: automaton check" in call("check", cwd=tmp_path)[2]


@pytest.mark.parametrize(
    "words", [(), ("x.yml", "--nonsense"), ("ctl",), ("graph", "--format", "png")]
)
def test_wrong_usage_has_status_2(words: tuple[str, ...]) -> None:
    status, _, error = call(*words)
    assert status == 2
    assert "usage: automaton" in error


@pytest.mark.parametrize("words", [(), ("ctl",), ("check",), ("graph",)])
def test_version_and_help(words: tuple[str, ...]) -> None:
    assert call(*words, "--version")[1].startswith("automaton 1.")
    status, text, _ = call(*words, "--help")
    assert status == 0
    assert "exit status" in text


MACHINE = Manifest(
    "idle",
    "end",
    {
        "idle": State("idle", reach=frozenset({"work", "end"})),
        "work": State("work", on={Outcome.SUCCESS: "idle", Outcome.FAILURE: "work"}),
        'sa"y': State('sa"y', reach=frozenset({"idle"})),
        "end": State("end"),
    },
)
TRACE = Trace("work", (("idle", "work"), ("work", "work")))


def test_mermaid() -> None:
    assert mermaid(MACHINE, Trace()).splitlines() == [
        "flowchart LR",
        "    start(( )) --> s0",
        '    s0["idle"]',
        '    s1["work"]',
        '    s2["sa&quot;y"]',
        '    s3(["end"])',
        "    s0 --> s1",
        "    s0 --> s3",
        "    s1 -->|success| s0",
        "    s1 -->|failure| s1",
        "    s1 -.-> s3",
        "    s2 --> s0",
        "    s2 -.-> s3",
    ]
    assert mermaid(MACHINE, TRACE).splitlines()[-2:] == [
        "    linkStyle 1,4 stroke:#c60,stroke-width:3px",
        "    style s1 fill:#fc6,stroke:#c60,stroke-width:3px",
    ]


def test_dot() -> None:
    lines = dot(MACHINE, TRACE).splitlines()
    assert lines[0] == "digraph automaton {"
    assert '    "" -> "idle";' in lines
    assert '    "end" [peripheries=2];' in lines
    assert '    "idle" -> "work" [color="#cc6600", penwidth=3];' in lines
    assert '    "work" -> "idle" [label="success"];' in lines
    assert '    "sa\\"y" -> "end" [style=dotted];' in lines
    assert any(line.startswith('    "work" [style="rounded,filled"') for line in lines)
    assert lines[-1] == "}"


async def test_graph_marks_where_a_running_machine_is_and_was(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        await bot.ask("GOTO B")
        await bot.says("working")
        path = str(tmp_path / "machine.yml")
        status, drawn = await run(*AUTOMATON, "graph", path, "--socket", bot.socket)
        assert status == 0
        assert "    linkStyle 1 stroke" in drawn
        assert "    style s1 fill" in drawn
        status, drawn = await run(*AUTOMATON, "graph", path, "--format", "dot")
        assert (status, drawn.splitlines()[0]) == (0, "digraph automaton {")
        assert await bot.die() == 0
    assert call("graph", path, "--socket", bot.socket)[0] == 2
