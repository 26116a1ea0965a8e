"""Each command as its own process, as a shell would start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.master import DIGEST, Master, status

from kontrol.cli import completion
from kontrol.cli.contents import ROWS
from kontrol.cli.operate import archive
from kontrol.cli.operate import commands as operate

# What a command of this part may not load: it would cost more than what it does.
HEAVY = ("asyncio", "google", "nacl", "msgpack", "yaml", "kontrol.master", "kontrol.daemon")

WORDS = {
    "status": (["status"], 0, "All is well"),
    "pods": (["pods", "--role", "proxy"], 0, "redis-0"),
    "state": (["state"], 0, '"primary"'),
    "runs": (["runs", "--limit", "1"], 0, "RESULT"),
    "explain": (["explain", "41"], 0, "Run 41 failed"),
    "run-now": (["run-now"], 0, "run 43 starts"),
    "release": (["release"], 0, "released"),
    "rollback": (["rollback", "42"], 0, "put back"),
    "forget": (["forget", "redis-7"], 0, "forgotten"),
    "completion": (["completion", "bash"], 0, "complete -o default"),
    "export": (["export"], 2, "KONTROL_ETCD"),
    "import": (["import", "/nowhere"], 2, "KONTROL_ETCD"),
}


def kontrol(master: Master, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("KONTROL_")}
    return subprocess.run(
        [sys.executable, "-m", "kontrol", *words],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={**clean, "KONTROL_MASTER": master.url, "LC_ALL": "C", **environ},
        timeout=30,
    )


def test_every_command_is_tried() -> None:
    assert set(WORDS) == {*operate.COMMANDS, *archive.COMMANDS, *completion.COMMANDS}


@pytest.mark.parametrize("name", WORDS)
def test_as_a_process(master: Master, name: str) -> None:
    words, exit_status, text = WORDS[name]
    done = kontrol(master, *words)
    assert done.returncode == exit_status, done.stderr
    assert text in done.stdout + done.stderr
    assert "\x1b" not in done.stdout  # it is no terminal
    assert (done.stderr == "") is (exit_status == 0)


def test_a_reader_that_has_enough_is_no_error(master: Master) -> None:
    code = "import os, sys; from kontrol.cli import main; r, w = os.pipe(); os.close(r)\n"
    code += "os.dup2(w, 1); sys.exit(main(['status']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={**os.environ, "KONTROL_MASTER": master.url},
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("publish key - <&-", 5),  # an empty document, which no run is there to take
        ("completion bash >&-", 0),
        ("get -x 2>&-", 2),
    ],
)
def test_streams_that_the_caller_closed_are_empty(words: str, status: int, tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m kontrol {words}'],
        env={"PATH": os.environ["PATH"], "RUN_SOCKET": str(tmp_path / "run.sock")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr


def test_json_is_the_document_whatever_the_locale(master: Master) -> None:
    done = kontrol(master, "status", "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout) == status()
    assert DIGEST in done.stdout


def test_asking_loads_little(master: Master) -> None:
    code = "import sys; from kontrol.cli import main; main(['status'])\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env={**os.environ, "KONTROL_MASTER": master.url},
        timeout=30,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_an_example_and_the_statuses() -> None:
    for row in ROWS:
        assert row.name in row.load().example
        assert row.help[0].islower()
        assert not row.help.endswith(".")
