"""The units of a plain host: understood by systemd, and with settings that Kontrol takes."""

import configparser
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kontrol.daemon.notify import LATEST

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
ROLES = ("agent", "master")


def unit(role: str) -> dict[str, str]:
    """Return what the service section says."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)  # some come twice
    parser.optionxform = str  # type: ignore[assignment,method-assign] # keep the case of keys
    parser.read(UNITS / f"kontrol-{role}.service", encoding="utf-8")
    return dict(parser["Service"])


def analyze(role: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str] | None:
    """Return what `systemd-analyze` says of a unit; None without systemd."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return None
    # What it starts and reads must exist here to be judged.
    text = (UNITS / f"kontrol-{role}.service").read_text("utf-8")
    text = text.replace("/opt/kontrol/bin/kontrol", "/bin/true")
    text = text.replace("/etc/kontrol/", f"{UNITS}/")
    copy = folder / f"kontrol-{role}.service"
    copy.write_text(text, encoding="utf-8")
    return subprocess.run(
        [program, *words, copy], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("role", ROLES)
def test_systemd_understands_it(role: str, tmp_path: Path) -> None:
    """As `systemd-analyze verify` judges; without systemd, our own reading of it."""
    assert unit(role)["ExecStart"] == "/opt/kontrol/bin/kontrol"
    result = analyze(role, tmp_path, "verify", "--man=no", "--recursive-errors=no")
    if result is not None:
        assert result.returncode == 0, result.stderr
        assert f"kontrol-{role}.service" not in result.stderr, result.stderr


@pytest.mark.parametrize("role", ROLES)
def test_it_is_confined(role: str, tmp_path: Path) -> None:
    """As `systemd-analyze security` judges: 2.0 at most, of 10."""
    service = unit(role)
    for name, value in {
        "UMask": "0077",
        "ProtectProc": "invisible",
        "RestrictNamespaces": "yes",
        "SystemCallArchitectures": "native",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
    }.items():
        assert service[name] == value
    text = (UNITS / f"kontrol-{role}.service").read_text("utf-8")
    assert "SystemCallFilter=@system-service\nSystemCallFilter=~@privileged\n" in text
    result = analyze(role, tmp_path, "security", "--offline=true", "--threshold=20")
    if result is not None:
        assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.parametrize("role", ROLES)
def test_it_tells_when_it_is_ready_and_that_it_lives(role: str) -> None:
    service = unit(role)
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"  # which a missed watchdog is
    assert int(service["WatchdogSec"]) >= 15, "a busy machine must not kill it"
    assert int(service["TimeoutStartSec"]) > 2 * LATEST, "`kontrol boot` may come before"


@pytest.mark.parametrize("role", ROLES)
def test_kontrol_takes_its_settings(role: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n", "utf-8")
    (tmp_path / "token").chmod(0o600)
    words = shlex.split(unit(role)["Environment"].replace("%d", str(tmp_path)))
    variables = dict(word.split("=", 1) for word in words)
    assert variables["KONTROL_MODE"] == role
    for line in (UNITS / f"{role}.env").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            (word,) = shlex.split(line)
            name, _, value = word.partition("=")
            variables[name] = value
    if "KONTROL_CALLBACK" in variables:
        variables["KONTROL_CALLBACK"] = "/bin/true"  # that of the example is not here
    result = subprocess.run(
        [sys.executable, "-m", "kontrol", "config"],
        env={"PATH": os.environ["PATH"], "KONTROL_IP": "192.0.2.7", **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "warning" in line]
    callback = "warning: KONTROL_CALLBACK: there is no file /usr/local/bin/on-change"  # not here
    assert [line for line in warnings if callback not in line] == []


@pytest.mark.parametrize("role", ROLES)
def test_kontrol_ends_itself_and_what_it_started(role: str) -> None:
    """A SIGTERM to all processes would end a callback before its leader gets it."""
    service = unit(role)
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= 15
    assert service["RestartPreventExitStatus"] == "2"
