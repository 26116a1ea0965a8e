"""The hooks of the balancer's pods, with stand-ins for nginx and automaton."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples.ensemble import working_in
from tests.examples.support import EXAMPLES

NGINX = """\
#!/bin/sh
case "$*" in
  *-t) cat backends.conf >> tested; test ! -e bad ;;
  *reload) echo reload >> calls; kill "$(cat worker)" ;;
esac
"""
MASTER = """\
#!/bin/sh
sh -c 'trap "sleep 0.5; exit" TERM; while :; do sleep 0.1; done' &
echo $! > worker
echo $$ > nginx.pid
echo
wait
"""
AUTOMATON = """\
#!/bin/sh
echo "$3" >> calls
test "$3" != STATE || cat state
"""
DOWN = "server 127.0.0.1:1 down;\n"


def run(hook: str, folder: Path, documents: dict[str, Any]) -> int:
    (folder / "published.json").write_text(json.dumps({"version": 1, "documents": documents}))
    environ = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "KONTROL_PUBLISHED": "published.json",
        "POD_IP": "10.0.0.1",
        "WEB_PORT": "80",
    }
    command = [sys.executable, str(EXAMPLES / "nginx" / hook)]
    return subprocess.run(command, cwd=folder, env=environ, timeout=60, check=False).returncode


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().split() if path.exists() else []


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Path]:
    """The folder of an nginx whose one worker ends on a reload."""
    program(tmp_path / "nginx", NGINX)
    (tmp_path / "backends.conf").write_text(DOWN)
    program(tmp_path / "run", MASTER)
    with subprocess.Popen([tmp_path / "run"], cwd=tmp_path, stdout=subprocess.PIPE) as master:
        assert master.stdout is not None
        master.stdout.readline()
        yield tmp_path
        for pid in working_in(tmp_path.resolve()):
            os.kill(pid, signal.SIGKILL)


def test_nginx_gets_the_list_once_and_what_it_uses_is_reported(nginx: Path) -> None:
    documents = {"backends": {"serve": ["10.0.0.1", "fd00::1"], "end": []}}
    assert run("follow.py", nginx, documents) == 0
    written = (nginx / "backends.conf").read_text()
    assert [line.split()[1] for line in written.splitlines()] == ["10.0.0.1:80", "[fd00::1]:80"]
    assert (nginx / "tested").read_text() == written
    assert int((nginx / "worker").read_text()) not in working_in(nginx.resolve())
    assert json.loads((nginx / "pod.json").read_text()) == {"serve": ["10.0.0.1", "fd00::1"]}
    assert run("follow.py", nginx, documents) == 0
    assert calls(nginx) == ["reload"]


@pytest.mark.parametrize("documents", [{}, {"backends": {"serve": [], "end": ["10.0.0.1"]}}])
def test_without_backends_nginx_has_none(nginx: Path, documents: dict[str, Any]) -> None:
    (nginx / "backends.conf").write_text("server 10.0.0.9:80;\n")
    assert run("follow.py", nginx, documents) == 0
    assert (nginx / "backends.conf").read_text() == DOWN
    assert json.loads((nginx / "pod.json").read_text()) == {"serve": []}


def test_a_list_that_nginx_refuses_is_not_kept(nginx: Path) -> None:
    (nginx / "bad").touch()
    assert run("follow.py", nginx, {"backends": {"serve": ["10.0.0.1"], "end": []}}) != 0
    assert (nginx / "backends.conf").read_text() == DOWN
    assert not (nginx / "pod.json").exists()
    assert calls(nginx) == []


@pytest.mark.parametrize(
    ("end", "state", "called"),
    [
        (["10.0.0.1"], "stopping", ["STATE", "DIE"]),
        (["10.0.0.1"], "started", ["STATE"]),  # the document is of before a restart
        (["10.0.0.2"], "stopping", []),
        (None, "stopping", []),
    ],
)
def test_a_backend_ends_if_it_may_and_wants_to(
    tmp_path: Path, end: list[str] | None, state: str, called: list[str]
) -> None:
    program(tmp_path / "automaton", AUTOMATON)
    (tmp_path / "state").write_text(f"{state}\n")
    documents = {} if end is None else {"backends": {"serve": [], "end": end}}
    assert run("drained.py", tmp_path, documents) == 0
    assert calls(tmp_path) == called
