import asyncio
import contextlib
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cli.conftest import Run

from kontrol import __version__
from kontrol.agent.control import Who, serve
from kontrol.cli.command import say
from kontrol.cli.contents import ROWS
from kontrol.ensemble.pod import key_of
from kontrol.settings import Settings
from kontrol.settings import variables as v
from kontrol.store.protocol import NoSpace

DEBUG = {"KONTROL_MODE": "debug"}


def exits(run: Run, *words: str) -> object:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    return caught.value.code


def daemon(monkeypatch: pytest.MonkeyPatch, run: Callable[[Settings], int]) -> None:
    monkeypatch.setitem(sys.modules, "kontrol.daemon", SimpleNamespace(run=run))


def test_version(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(run, "--version") == 0
    assert capsys.readouterr().out == f"kontrol {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["config", "--help"], ["leave", "--help"]])
def test_help_has_an_example_and_the_statuses(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert exits(run, *words) == 0
    text = capsys.readouterr().out
    assert "example:\n" in text
    assert "exit status:\n" in text


def test_every_command_has_help_and_an_example() -> None:
    for row in ROWS:
        assert row.help
        assert f"kontrol {row.name}" in row.load().example


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["--verbos"], ["config", "x"], ["leave", "--timeout", "0"], ["leave", "-x"]],
)
def test_bad_usage_is_status_2(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert exits(run, *words) == 2
    assert "usage: kontrol" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stauts"], "'stauts' is unknown: did you mean status?"),
        (["Rollbck", "7"], "did you mean rollback?"),
        (["keys", "maek"], "'maek' is unknown: did you mean make?"),
        (["completion", "fihs"], "did you mean fish?"),
        (["qqqqqq"], "'qqqqqq' is unknown (expected config, leave, "),
    ],
)
def test_the_nearest_of_what_is_known_is_named(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert exits(run, *words) == 2
    assert told in capsys.readouterr().err


def test_every_exit_status_is_in_the_help(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(run, "--help") == 0
    shown = set(re.findall(r"^  (\d+)  ", capsys.readouterr().out, re.MULTILINE))
    own = {
        status
        for row in ROWS
        for status in re.findall(r"^  (\d+)  ", row.load().statuses, re.MULTILINE)
    }
    assert own <= shown
    page = (Path(__file__).parents[2] / "docs" / "commands.rst").read_text("utf-8")
    assert shown == set(re.findall(r"^   \* - (\d+)$", page, re.MULTILINE))


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        ("/no/such/program", "there is no file /no/such/program; runs fail until this is fixed"),
        ("no-such-program", "there is no program 'no-such-program' in the PATH"),
        ("sh /no/such/script", "there is no file /no/such/script, from "),
        ("{0}", "{0} is a folder"),
        ("{0}/plain 'a b'", "{0}/plain is not executable (chmod +x)"),
        ("{0}/good x", ""),
        ("sh {0}/plain", ""),
        ("sh -c 'exit 3'", ""),
        ("printf {0}/made/by/it", ""),
    ],
)
def test_a_callback_that_is_not_there_is_told(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, callback: str, told: str
) -> None:
    for name, mode in (("plain", 0o644), ("good", 0o755)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    given = {**DEBUG, "KONTROL_CALLBACK": callback.format(tmp_path)}
    assert run("config", **given) == 0
    err = capsys.readouterr().err
    assert told.format(tmp_path) in err
    assert ("warning: KONTROL_CALLBACK" in err) is bool(told)
    assert run("config", **{**given, "KONTROL_MODE": "agent"}) == 2  # without a tier
    assert "warning: KONTROL_CALLBACK" not in capsys.readouterr().err
    for hook in ("KONTROL_ON_SILENT", "KONTROL_ON_HEARD"):
        assert run("config", **DEBUG, **{hook: callback.format(tmp_path)}) == 0
        err = capsys.readouterr().err
        assert told.format(tmp_path) in err
        assert (f"warning: {hook}" in err) is bool(told)


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        ("/no/such x | y", "there is no file /no/such; runs"),
        ("while read x; do :; done", ""),
        ("/no/$SUCH", ""),
        ("no-such-function", ""),
    ],
)
def test_of_a_shell_s_line_a_path_at_its_beginning_is_judged(
    run: Run, capsys: pytest.CaptureFixture[str], callback: str, told: str
) -> None:
    given = {**DEBUG, "KONTROL_CALLBACK": callback, "KONTROL_SHELL_CALLBACK": "TRUE"}
    assert run("config", **given) == 0
    err = capsys.readouterr().err
    assert told in err
    assert ("warning: KONTROL_CALLBACK" in err) is bool(told)


def test_config_shows_values_and_sources(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", **DEBUG, KONTROL_TTL="5", KONTROL_TTX="6") == 0
    out, err = capsys.readouterr()
    [line] = [line.split() for line in out.splitlines() if line.startswith("KONTROL_TTL")]
    assert line == ["KONTROL_TTL", "5", "environment"]
    assert err == "kontrol: warning: KONTROL_TTX is unknown: did you mean KONTROL_TTL?\n"


@pytest.mark.parametrize("words", [["config"], []])
def test_a_cloud_that_boot_does_not_know_is_a_mistake(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(*words, **DEBUG, KONTROL_CLOUD="heaven") == 2
    assert "KONTROL_CLOUD='heaven': expected one of auto, none, aws" in capsys.readouterr().err


def test_config_shows_mistakes_beside_the_rest(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("config", "--json", **DEBUG, KONTROL_TTL="x", KONTROL_TOKEN="hush") == 2
    out, err = capsys.readouterr()
    assert {item["variable"] for item in json.loads(out)["mistakes"]} == {
        "KONTROL_TTL",
        "KONTROL_TOKEN",
    }
    assert "2 mistakes" in err
    assert "hush" not in out + err


def test_without_a_command_the_daemon_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def fake(settings: Settings) -> int:
        seen.append(settings)
        return 7

    daemon(monkeypatch, fake)
    agent = {
        "KONTROL_LABELS": '{"app": "a", "role": "b"}',
        "KONTROL_ANNOTATIONS": '{"kontrol.unity3d.com/master": "m"}',
        "KONTROL_IP": "10.0.0.7",
    }
    assert run(**agent) == 7
    assert run("-d") == 7
    assert [settings.verbose for settings in seen] == [False, True]
    assert seen[0][v.ID] == socket.gethostname()


def test_the_daemon_logs_as_it_was_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(_settings: Settings) -> int:
        logging.getLogger("kontrol").debug("hello")
        return 0

    daemon(monkeypatch, fake)
    assert run(**DEBUG, KONTROL_LOG="json") == 0
    assert json.loads(capsys.readouterr().out)["message"] == "hello"


def test_a_daemon_with_mistakes_never_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon(monkeypatch, lambda _settings: pytest.fail("it started"))
    assert run(KONTROL_TTL="x") == 2
    err = capsys.readouterr().err
    assert "KONTROL_TTL='x': expected a number of seconds" in err
    assert "kontrol demo" in err


@pytest.mark.parametrize(
    ("environ", "shown"),
    [(DEBUG, ""), ({"KONTROL_PORT": "x"}, "KONTROL_PORT='x'")],
)
def test_leave_without_an_agent(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    environ: dict[str, str],
    shown: str,
) -> None:
    path = str(tmp_path / "socket")
    # Other mistakes are none of its business: an application's container sets little else.
    status = run("leave", **environ, KONTROL_CONTROL=path, KONTROL_TTL="x")
    assert status == (2 if shown else 4)
    assert (shown or path) in capsys.readouterr().err


class Agent:
    """An agent's control socket, in a thread; `left` is whether it was asked to leave."""

    def __init__(self, path: Path, who: Who, answer: Mapping[str, str | None]) -> None:
        self.left = False
        self._path, self._who, self._answer = path, who, answer

    def serve(self) -> None:
        async def left() -> Mapping[str, str | None]:
            self.left = True
            return self._answer

        async def run() -> None:
            task = asyncio.create_task(serve(self._path, self._who, left))
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            await asyncio.sleep(0)
            self._up.set()
            await self._stop.wait()
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(run())

    @contextlib.contextmanager
    def serving(self) -> Iterator["Agent"]:
        self._up = threading.Event()
        thread = threading.Thread(target=self.serve)
        thread.start()
        assert self._up.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(10)


KEY = key_of("10.0.0.1")
WHO = Who("redis-0", KEY, ("m:8000", "n:8000"))
HOST = socket.gethostname()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    path = tmp_path / f"kontrol-{os.getuid()}" / "8000.sock"
    with Agent(path, WHO, {"m:8000": None, "n:8000": None}).serving() as agent:
        yield agent


def test_an_export_from_a_full_etcd_says_how_to_free_its_space(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def full(*_: object) -> None:
        raise NoSpace("database space exceeded")

    monkeypatch.setattr("kontrol.daemon.wire_master.open_store", full)
    with pytest.raises(SystemExit) as caught:
        run("export", **DEBUG)
    assert caught.value.code == 4
    assert "database space exceeded; free its space (`etcdctl compact" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named_without_numbers(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "none"
    assert run("import", str(path), **DEBUG) == 2
    assert capsys.readouterr().err == f"kontrol: cannot read {path}: no such file or directory\n"


def test_words_that_a_command_does_not_take_are_refused_with_its_usage(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("pods", "a", "b")
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: kontrol pods ")
    assert err.endswith("kontrol pods: error: unrecognized arguments: b\n")


def test_leave_names_the_pod_and_its_tiers(
    run: Run, capsys: pytest.CaptureFixture[str], agent: Agent, tmp_path: Path
) -> None:
    assert run("leave", "redis-0", XDG_RUNTIME_DIR=str(tmp_path)) == 0
    assert agent.left
    assert capsys.readouterr().out == f"pod redis-0 (key {KEY}) left m:8000, n:8000\n"


def test_leave_says_that_the_pod_had_already_left(
    run: Run, capsys: pytest.CaptureFixture[str], agent: Agent, tmp_path: Path
) -> None:
    for told in ("left", "had already left", "had already left"):
        assert run("leave", "redis-0", XDG_RUNTIME_DIR=str(tmp_path)) == 0
        assert capsys.readouterr().out == f"pod redis-0 (key {KEY}) {told} m:8000, n:8000\n"
    assert agent.left


def test_leave_says_which_tier_does_not_know(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with Agent(path, WHO, {"m:8000": "it is silent"}).serving():
        assert run("leave", "--socket", str(path)) == 4
    assert "tier m:8000 did not acknowledge: it is silent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "environ", "told"),
    [
        ([], {}, f"but this environment is of pod {HOST} (KONTROL_ID, found)"),
        (["--yes"], {}, f"but this environment is of pod {HOST} (KONTROL_ID, found)"),
        ([], {"KONTROL_ID": "redis-1"}, "pod redis-1 (KONTROL_ID, environment)"),
        ([], {"KONTROL_MODE": "debug"}, "has address 127.0.0.1 (KONTROL_IP)"),
        (
            [],
            {"KONTROL_ID": "redis-0", "KONTROL_IP": "10.0.0.2"},
            "has address 10.0.0.2 (KONTROL_IP)",
        ),
        ([], {"KONTROL_ID": "redis-0", "KONTROL_POD_KEY": "x"}, "has key x (KONTROL_POD_KEY)"),
        (["--socket", "SOCKET"], {"KONTROL_ID": "redis-1"}, "pod redis-1 (KONTROL_ID"),
        (["redis-1"], {}, ", not redis-1;"),
        (["--yes", "redis-1"], {"KONTROL_ID": "redis-0"}, ", not redis-1;"),
    ],
)
def test_leave_never_acts_on_a_pod_that_is_not_meant(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    agent: Agent,
    tmp_path: Path,
    *,
    words: list[str],
    environ: dict[str, str],
    told: str,
) -> None:
    path = tmp_path / f"kontrol-{os.getuid()}" / "8000.sock"
    words = [str(path) if word == "SOCKET" else word for word in words]
    assert run("leave", *words, XDG_RUNTIME_DIR=str(tmp_path), **environ) == 5
    out, err = capsys.readouterr()
    assert (out, agent.left) == ("", False)
    assert f"the agent at {path} reports pod redis-0 (key {KEY}), " in err
    anyway = f"kontrol leave redis-0 --socket {path}" if "--socket" in words else "leave redis-0`"
    assert anyway in err
    assert told in err
    assert "nothing was done" in err


@pytest.mark.parametrize(
    ("words", "environ"),
    [
        (["redis-0"], {"KONTROL_ID": "redis-1"}),
        ([KEY], {}),
        ([], {"KONTROL_ID": "redis-0"}),
        ([], {"KONTROL_ID": "redis-0", "KONTROL_IP": "10.0.0.1"}),
        ([], {"KONTROL_ID": "redis-0", "KONTROL_IP": "10.0.0.2", "KONTROL_POD_KEY": KEY}),
        (["--socket", "SOCKET"], {}),
        ([], {"KONTROL_CONTROL": "SOCKET"}),
    ],
)
def test_leave_acts_on_the_pod_that_is_meant(
    run: Run, agent: Agent, tmp_path: Path, words: list[str], environ: dict[str, str]
) -> None:
    path = str(tmp_path / f"kontrol-{os.getuid()}" / "8000.sock")
    given = {name: path if text == "SOCKET" else text for name, text in environ.items()}
    words = [path if word == "SOCKET" else word for word in words]
    assert run("leave", *words, XDG_RUNTIME_DIR=str(tmp_path), **given) == 0
    assert agent.left


@pytest.mark.parametrize(
    ("says", "words", "status"),
    [
        ("y\n", [], 0),
        ("YES\n", [], 0),
        ("\n", [], 5),
        ("no\n", [], 5),
        ("", [], 5),
        ("", ["-y"], 0),
    ],
)
def test_leave_asks_on_a_terminal(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    agent: Agent,
    tmp_path: Path,
    *,
    says: str,
    words: list[str],
    status: int,
) -> None:
    terminal = io.StringIO(says)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert run("leave", "redis-0", *words, XDG_RUNTIME_DIR=str(tmp_path)) == status
    assert agent.left is (status == 0)
    question = f"Deregister pod redis-0 (key {KEY}) from m:8000, n:8000? [y/N] "
    assert (question in capsys.readouterr().err) is not bool(words)


def test_demo_takes_its_own_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def main(words: list[str]) -> int:
        seen.append(words)
        return 0

    monkeypatch.setitem(sys.modules, "kontrol.demo", SimpleNamespace(main=main))
    assert run("demo", "--help") == 0
    assert run("demo", "--pods", "3") == 0
    assert seen == [["--help"], ["--pods", "3"]]


def command(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code that ends in a command, as its own process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, **DEBUG},
        timeout=30,
    )


FAKE = """
import sys, types
from kontrol.cli import main
def run(settings):
    {body}
sys.modules["kontrol.daemon"] = types.SimpleNamespace(run=run)
sys.exit(main([]))
"""


def test_an_internal_error_is_status_1_and_asks_for_a_report() -> None:
    done = command(FAKE.format(body="{}['what']"))
    assert done.returncode == 1
    assert "KeyError: 'what'" in done.stderr
    assert f"internal error in version {__version__}" in done.stderr
    assert "please report it" in done.stderr


def test_an_interrupt_is_no_internal_error() -> None:
    done = command(FAKE.format(body="raise KeyboardInterrupt"))
    assert done.returncode == 130
    assert done.stderr == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import os, sys; from kontrol.cli import main; r, w = os.pipe(); os.close(r)\n"
    done = command(f"{code}os.dup2(w, 1); sys.exit(main(['config']))")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_of_a_module_is_in_the_table() -> None:
    there = {(row.module, name) for row in ROWS for name in import_module(row.module).COMMANDS}
    assert there == {(row.module, row.name) for row in ROWS}


def test_the_command_is_the_first_word_that_is_no_option(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-d", "config", "--json", **DEBUG) == 0
    assert json.loads(capsys.readouterr().out)


def test_commands_load_no_more_than_they_need() -> None:
    heavy = ["asyncio", "google", "nacl", "kontrol.daemon", "kontrol.store"]
    code = "import sys; from kontrol.cli import main; main(['config'])\n"
    done = command(f"{code}print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.splitlines()[-1] == "[]"


def test_nothing_that_is_said_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("no master answered:\n  m1: \x1b[31mred\u202e\r")
    assert capsys.readouterr().err == (
        "kontrol: no master answered:\n  m1: \\x1b[31mred\\u202e\\r\n"
    )
