"""Manifests in Python."""

from pathlib import Path

import pytest
from tests.automaton.support import automaton

from automaton.load import load
from automaton.manifest import Manifest, ManifestError, Outcome

BOT = """\
import sys
from automaton.api import State, States, goto

def idle():
    print("idle in", __name__)

def work(number):
    print("working on", repr(number), "without a newline at the end", end="")
    if number == "0":
        raise ValueError("nothing to do")
    if number == "exit":
        sys.exit(7)
    if number:
        goto(work, str(int(number) - 1))

def sleep(_=""):
    import time
    print("asleep", flush=True)
    time.sleep(600)

def stop():
    print("stopping")

States(
    [
        State(idle, transitions=["work", sleep]),
        State(work, transitions=[work, "i*"], env={"MORE": "1"}),
        State(sleep, transitions=[idle]),
        State(stop),
    ],
    initial=idle,
    terminal="stop",
    payload="state.json",
)
"""


async def test_functions_run_with_the_input_and_goto(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        await bot.says("idle in machine")
        assert await bot.ask("GOTO work 2") == "OK"
        await bot.says("working on '2'")
        await bot.says("work -> work .GOTO")
        await bot.says("working on '1'")
        await bot.says("working on '0'")
        await bot.says("work.*exit status 1")
        assert await bot.ask("WAIT idle") == "OK"
        assert await bot.die() == 0
        assert any("stopping" in line for line in bot.lines)


async def test_a_function_that_raises_is_a_failed_script_with_its_traceback(
    tmp_path: Path,
) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await bot.ask("WAIT work 0") == "OK"
        await bot.says("work.*exit status 1")
        await bot.says("Traceback")
        await bot.says('machine.py", line 10, in work')
        await bot.says("ValueError: nothing to do")
        assert await bot.ask("WAIT work exit") == "OK"
        await bot.says("work.*exit status 7")
        assert await bot.die() == 0


async def test_a_function_is_interrupted_like_a_script(tmp_path: Path) -> None:
    async with automaton(tmp_path, BOT) as bot:
        assert await bot.ask("GOTO sleep") == "OK"
        await bot.says("asleep")
        assert await bot.ask("WAIT idle") == "OK"
        assert await bot.die() == 0


async def test_goto_raises_what_the_machine_refuses(tmp_path: Path) -> None:
    manifest = BOT.replace('print("idle in", __name__)', 'goto("nowhere")')
    async with automaton(tmp_path, manifest) as bot:
        await bot.says("idle.*exit status 1")
        await bot.says("automaton.api.Refused: no state 'nowhere'")
        assert await bot.die() == 0


def write(folder: Path, text: str) -> Path:
    path = folder / "machine.py"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str) -> Manifest:
    return load(write(folder, text))[0]


def test_a_manifest_is_read_and_not_executed_here(tmp_path: Path) -> None:
    manifest = read(tmp_path, f"import os; ran_in = os.getpid(); print('noise', end='')\n{BOT}")
    assert manifest.initial == "idle"
    assert manifest.terminal == "stop"
    assert manifest.payload == "state.json"
    assert manifest.states["idle"].reach == {"work", "sleep"}
    assert manifest.states["work"].reach == {"work", "idle"}
    assert manifest.states["work"].env == {"MORE": "1"}
    assert manifest.states["work"].argv[-2:] == (str(tmp_path / "machine.py"), "work")


def test_every_key_of_a_state_has_its_argument(tmp_path: Path) -> None:
    more = "force=True, timeout=2.5, retry=3, on={'success': stop, 'timeout': 'idle'}, tag='busy'"
    text = BOT.replace('env={"MORE": "1"}', more).replace('"work", sleep', '"busy", sleep')
    state = read(tmp_path, text.replace("transitions=[work,", "transitions=['busy',")).states[
        "busy"
    ]
    assert (state.force, state.timeout, state.retry) == (True, 2.5, 3)
    assert state.on == {Outcome.SUCCESS: "stop", Outcome.TIMEOUT: "idle"}


def test_a_file_in_the_working_directory_stands_in_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "automaton.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert read(folder, BOT).initial == "idle"


@pytest.mark.parametrize(
    ("old", "new", "at", "expected"),
    [
        ('"work", sleep', '"wrk", sleep', "State(idle", "'next' names no state: 'wrk'; did you"),
        ("def stop():", "def stop(:", "def stop", "not Python: invalid syntax"),
        ("def stop():", "def stop(a, b):", "State(stop)", "'stop' takes no argument or one"),
        ("import sys", "import nothing", "import", "ModuleNotFoundError: No module"),
        ("import sys", "raise KeyError('x')", "import", "KeyError: 'x'"),
        ("import sys", "import os; os._exit(9)", "import", "ended with status 9"),
        (
            "initial=idle",
            "initial='idel'",
            "States(\n",
            "'initial' names no state: 'idel'; did you",
        ),
        ('env={"MORE": "1"}', "retry=-1", "State(work", "'retry' is '-1'; expected"),
        ("State(stop)", "stop", "States(\n", "<function stop at 0x"),
        ("State(stop)", "State('stop')", "State(stop)", "TypeError: State('stop'): expected"),
        ("States(\n", "dict(states=\n", "import", "States(...) is called 0 times; call it once"),
        ("import sys", "import sys; sys.exit()", "import", "ended with status 0 while it was read"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, old: str, new: str, at: str, expected: str
) -> None:
    assert old in BOT
    line = BOT[: BOT.index(at)].count("\n") + 1
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, BOT.replace(old, new, 1))
    assert f"{tmp_path / 'machine.py'}:{line}:1: error: {expected}" in str(caught.value)
