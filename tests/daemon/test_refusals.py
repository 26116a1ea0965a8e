"""What the daemon refuses to start with, as its user sees it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = {
    "KONTROL_IP": "127.0.0.1",
    "KONTROL_LABELS": json.dumps({"app": "test", "role": "test"}),
    "KONTROL_ANNOTATIONS": json.dumps({"kontrol.unity3d.com/master": "127.0.0.1:9"}),
}


def kontrol(**settings: str) -> "subprocess.CompletedProcess[str]":
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("KONTROL_")}
    return subprocess.run(
        [sys.executable, "-m", "kontrol"],
        env={**inherited, **AGENT, **settings},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_keys_that_are_not_there_are_not_done_without(tmp_path: Path) -> None:
    """To run in the clear what was meant to be encrypted would be worse than not to run."""
    result = kontrol(KONTROL_KEYS=str(tmp_path))
    assert result.returncode == 2
    assert f"KONTROL_KEYS: {tmp_path}/agent.secret: there is no such file" in result.stdout


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"KONTROL_CALLBACK": "echo 'open"}, "KONTROL_CALLBACK"),
        ({"KONTROL_BIND": "192.0.2.1", "KONTROL_CALLBACK": "true"}, "cannot listen on"),
    ],
)
def test_a_master_that_cannot_do_its_work_says_why(setting: dict[str, str], says: str) -> None:
    result = kontrol(KONTROL_MODE="master", KONTROL_ETCD="127.0.0.1:9", **setting)
    assert result.returncode == 2
    assert says in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("mode", ["agent", "master"])
def test_an_address_of_another_host_is_no_second_daemon(mode: str) -> None:
    result = kontrol(KONTROL_MODE=mode, KONTROL_ETCD="127.0.0.1:9", KONTROL_BIND="192.0.2.1")
    assert result.returncode == 2
    told = result.stdout + result.stderr
    assert "this host has no such address: set KONTROL_BIND to one that it has" in told
    assert "a second daemon" not in told


@pytest.mark.parametrize("mode", ["agent", "master"])
def test_a_second_daemon_on_a_host_learns_what_to_set(mode: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = str(first.getsockname()[1])
        ports = {"KONTROL_PORT": port, "KONTROL_HTTP_PORT": "0"}
        if mode == "agent":  # it takes no commands, and so listens for REST alone
            ports = {"KONTROL_HTTP_PORT": port}
        result = kontrol(
            KONTROL_MODE=mode,
            KONTROL_ETCD="127.0.0.1:9",
            KONTROL_BIND="127.0.0.1",
            KONTROL_CALLBACK="/no/such/program",
            **ports,
        )
    assert result.returncode == 2
    told = result.stdout + result.stderr
    assert "cannot listen on" in told
    for name in ("PORT", "HTTP_PORT", "CONTROL", "ID", "IP", "POD_KEY"):
        assert f"KONTROL_{name}" in told
    assert "a second daemon on this host requires its own values of" in told
    assert ("there is no file /no/such/program" in told) is (mode == "master")
