"""What section 10 of the design promises, command by command, by `socat` and by `automaton ctl`."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.automaton.support import CLIENTS, Automaton, Say, automaton

BOT = """
initial: A
terminal: C
states:
- tag: A
  shell: echo starting
  next: [B]
- tag: B
  shell: |
    echo "input is <$INPUT>"
    test "$INPUT" = sleep && sleep 60
    exit 3
  next: [A, B, 'D*']
- tag: D1
- tag: D2
  next: ['*']
- tag: F
  force: true
  shell: echo forced; sleep 2.5; echo unhurt
  next: [A]
- tag: C
  shell: echo terminating
"""


@pytest.fixture(params=CLIENTS, name="say")
def _say(request: pytest.FixtureRequest) -> Say:
    return CLIENTS[request.param]


async def test_state_answers_the_tag(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, "STATE") == "A"


async def test_status_answers_json(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        await say(bot, "WAIT B x y")
        status = json.loads(await say(bot, "STATUS"))
        assert status.keys() == {"state", "since", "pid", "input", "queue", "history"}
        assert status["state"] == "B"
        assert status["input"] == "x y"
        assert status["pid"] is None
        assert status["queue"] == []
        assert [entry["state"] for entry in status["history"]] == ["A", "B"]
        assert [entry["outcome"] for entry in status["history"]] == ["success", "failure"]
        assert status["since"] == status["history"][-1]["since"]


async def test_goto_answers_ok_and_the_script_has_the_input(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, """GOTO B {"counter": 123}  'x'""") == "OK"
        await bot.says("""input is <{"counter": 123}  'x'>""")
        assert await say(bot, "STATE") == "B"


async def test_goto_without_input_gives_an_empty_one(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, "GOTO B") == "OK"
        await bot.says("input is <>")


async def test_goto_an_illegal_state_answers_ko_and_why(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, "GOTO D1") == "KO 'A' does not lead to 'D1', only to B, C"
        assert await say(bot, "GOTO BB") == "KO no state 'BB': did you mean 'B'?"
        assert await say(bot, "STATE") == "A"


async def test_glob_in_next(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        await say(bot, "WAIT B")
        assert await say(bot, "WAIT D2") == "OK"
        assert await say(bot, "WAIT F") == "OK"


async def test_a_state_without_next_is_final(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        await say(bot, "WAIT B")
        assert await say(bot, "WAIT D1") == "OK"
        assert await say(bot, "GOTO A") == "KO 'D1' does not lead to 'A', only to C"
        assert await say(bot, "GOTO C") == "OK"


async def test_wait_answers_when_the_script_has_ended(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, "WAIT B") == "OK", "whatever its status"
        assert json.loads(await bot.ask("STATUS"))["pid"] is None


async def test_wait_from_another_shell_blocks_until_then(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        other = asyncio.create_task(say(bot, "WAIT B sleep"))
        await bot.says("input is <sleep>")
        assert not other.done()
        assert await say(bot, "GOTO A") == "OK"
        assert await other == "KO interrupted"


async def test_set_is_seen_by_the_next_script(tmp_path: Path, say: Say) -> None:
    manifest = BOT.replace("input is <$INPUT>", "counter is <$COUNTER>")
    async with automaton(tmp_path, manifest) as bot:
        assert await say(bot, "SET COUNTER 1 2  3") == "OK"
        await say(bot, "WAIT B")
        await bot.says("counter is <1 2  3>")
        assert await say(bot, "SET COUNTER") == "OK"
        await say(bot, "WAIT B")
        await bot.says("counter is <>")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("", "KO no command; send one of GOTO, WAIT, SET, STATE, STATUS, DIE"),
        ("goto B", "KO unknown command 'goto'; did you mean 'GOTO'?"),
        ("STATE A", "KO STATE takes no argument; got 'A'"),
        ("GOTO", "KO GOTO needs a state: GOTO state [input]"),
        ("SET 1A x", "KO '1A' is no name: SET NAME value, of letters, digits and _"),
        ("SET SOCKET x", "KO SOCKET is set by automaton itself; choose another name"),
    ],
)
async def test_what_is_not_a_command_answers_ko_and_why(
    tmp_path: Path, say: Say, command: str, reason: str
) -> None:
    if not command and say is Automaton.ctl:
        command = " "
        reason = "KO no command; send one of GOTO, WAIT, SET, STATE, STATUS, DIE"
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, command) == reason


async def test_inner_newlines_are_input_and_no_second_command(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, "GOTO B one\nDIE\n\n") == "OK"
        await bot.says("input is <one")
        await bot.says("DIE>")
        assert await say(bot, "STATE") == "B"


async def test_force_is_not_interrupted_by_goto(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT.replace("initial: A", "initial: F")) as bot:
        await bot.says("forced")
        assert await say(bot, "GOTO A") == "OK"
        await bot.says("unhurt")
        await bot.says("F -> A")


async def test_die_answers_ok_and_ends_through_the_terminal_state(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, "DIE") == "OK"
        await bot.says("A -> C")
        await bot.says("terminating")
        assert await bot.exit() == 0


async def test_die_gives_all_that_is_pending_ko(tmp_path: Path, say: Say) -> None:
    async with automaton(tmp_path, BOT) as bot:
        running = asyncio.create_task(say(bot, "WAIT B sleep"))
        await bot.says("input is <sleep>")
        queued = asyncio.create_task(say(bot, "WAIT A"))
        await bot.says("command .*WAIT A")
        assert await say(bot, "DIE") == "OK"
        assert await running == "KO shutting down"
        assert await queued == "KO shutting down"
        assert await bot.exit() == 0


async def test_the_terminal_state_is_reached_from_any_state_and_never_left(
    tmp_path: Path, say: Say
) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await say(bot, "WAIT C") == "OK"
        assert await say(bot, "STATE") == "C"
        assert await say(bot, "GOTO A") == "KO nothing leaves 'C', the terminal state"
        assert await say(bot, "GOTO C") == "KO nothing leaves 'C', the terminal state"
        assert await say(bot, "DIE") == "OK"
        assert await bot.exit() == 0
        assert sum("terminating" in line for line in bot.lines) == 1


async def test_a_script_that_ends_with_goto_loops_on_itself(tmp_path: Path, say: Say) -> None:
    manifest = """
initial: X
terminal: Z
states:
- tag: X
  shell: |
    echo "turn <$INPUT>"
    echo GOTO X "$INPUT+" | LOOP
  next: [X]
- tag: Z
"""
    loop = {
        "socat": "socat - UNIX-CONNECT:$SOCKET",
        "ctl": "xargs $PYTHON -m automaton ctl $SOCKET",
    }
    how = loop["ctl" if say is Automaton.ctl or not shutil.which("socat") else "socat"]
    async with automaton(tmp_path, manifest.replace("LOOP", how), PYTHON=sys.executable) as bot:
        await bot.says("turn <>")
        await bot.says(r"turn <\+>")
        await bot.says(r"turn <\+\+>")
        assert await say(bot, "DIE") == "OK"
        assert await bot.exit() == 0


async def test_lines_mode_answers_each_line(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        answers = (await bot.ask("LINES\nSTATE\n\nWAIT B x\nSTATE\nGOTO Q\nSTATUS")).split("\n")
        assert answers[:2] == [
            "A",
            "KO no command; send one of GOTO, WAIT, SET, STATE, STATUS, DIE",
        ]
        assert answers[2:4] == ["OK", "B"]
        assert answers[4].startswith("KO no state 'Q'")
        assert json.loads(answers[5])["state"] == "B"
        assert len(answers) == 6


async def test_scripts_run_where_automaton_was_started_with_an_absolute_socket(
    tmp_path: Path,
) -> None:
    manifest = BOT.replace("echo starting", "echo at $(pwd) by $SOCKET")
    async with automaton(tmp_path, manifest, "-s", "socket") as bot:
        await bot.says(f"at {tmp_path} by {tmp_path}/socket")


async def test_payload_env_on_and_timeout(tmp_path: Path) -> None:
    manifest = """
initial: warm
terminal: end
payload: payload.json
states:
- tag: warm
  shell: sleep 1; echo "$WHO $SHARED"
  env: {WHO: me, SHARED: manifest}
  on: {success: work}
- {tag: work, shell: 'echo "attempt"; exit 1', retry: 1, on: {failure: stuck}, next: [warm]}
- {tag: stuck, shell: sleep 60, timeout: 0.5, on: {timeout: rest}}
- {tag: rest, next: [warm]}
- {tag: end}
"""
    async with automaton(tmp_path, manifest) as bot:
        assert json.loads((tmp_path / "payload.json").read_text())["state"] == "warm"
        await bot.says("me manifest")
        await bot.says("warm -> work .success")
        await bot.says("attempt")
        await bot.says("attempt")
        await bot.says("work -> stuck .failure")
        await bot.says("stuck -> rest .timeout")
        assert json.loads((tmp_path / "payload.json").read_text())["state"] == "rest"
        await bot.ask("SET SHARED set")
        await bot.ask("GOTO warm")
        await bot.says("me set")
        assert await bot.die() == 0
        assert json.loads((tmp_path / "payload.json").read_text())["state"] == "end"
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]  # noqa: PTH208  # async
