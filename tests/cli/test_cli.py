import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cli.conftest import Run

from kontrol import __version__, cli
from kontrol.cli.command import say
from kontrol.settings import Settings

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
    for command in cli.COMMANDS:
        assert command.help
        assert f"kontrol {command.name}" in command.example


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["--verbos"], ["config", "x"], ["leave", "--timeout", "0"], ["leave", "-x"]],
)
def test_bad_usage_is_status_2(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert exits(run, *words) == 2
    assert "usage: kontrol" in capsys.readouterr().err


def test_config_shows_values_and_sources(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", **DEBUG, KONTROL_TTL="5", KONTROL_TTX="6") == 0
    out, err = capsys.readouterr()
    [line] = [line.split() for line in out.splitlines() if line.startswith("KONTROL_TTL")]
    assert line == ["KONTROL_TTL", "5", "environment"]
    assert err == "kontrol: warning: KONTROL_TTX is unknown: did you mean KONTROL_TTL?\n"


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
    assert seen[0].pod.id == socket.gethostname()


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


@pytest.mark.parametrize(
    ("tiers", "status"), [({"m:8000": None}, 0), ({"m:8000": "it is silent"}, 4)]
)
def test_leave_asks_the_agent(
    run: Run, tmp_path: Path, tiers: dict[str, str | None], status: int
) -> None:
    path = tmp_path / "socket"
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(100))
                connection.sendall(json.dumps({"tiers": tiers}).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert run("leave", "--socket", str(path)) == status
        thread.join(10)
    assert asked == [b"LEAVE\n"]


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


def test_commands_load_no_more_than_they_need() -> None:
    heavy = ["asyncio", "grpc", "zmq", "kontrol.daemon", "kontrol.store"]
    code = "import sys; from kontrol.cli import main; main(['config'])\n"
    done = command(f"{code}print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.splitlines()[-1] == "[]"


def test_nothing_that_is_said_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("no master answered:\n  m1: \x1b[31mred\u202e\r")
    assert capsys.readouterr().err == (
        "kontrol: no master answered:\n  m1: \\x1b[31mred\\u202e\\r\n"
    )
