"""`kontrol keys` as its user runs it: what it prints, and what it never does."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kontrol.rpc.security.keys import KINDS, Keyring, Kind


def keys(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kontrol", "keys", *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )


def secrets(folder: Path) -> list[str]:
    return [path.read_text("utf-8").strip() for path in folder.glob("*.secret*")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = keys("make", tmp_path / "keys")
    assert (made.returncode, made.stdout) == (0, "")
    assert "made master.secret, agent.secret, operator.secret, masters, agents" in made.stderr
    return tmp_path / "keys"


def test_nothing_is_overwritten(folder: Path) -> None:
    before = secrets(folder)
    again = keys("make", folder)
    assert again.returncode == 2
    assert "nothing was changed: name another folder" in again.stderr
    assert secrets(folder) == before


def test_a_folder_without_keys_is_said_to_be_one(tmp_path: Path) -> None:
    shown = keys("show", tmp_path)
    assert (shown.returncode, shown.stdout) == (0, "")
    assert f"no keys in {tmp_path}; make them with `kontrol keys make {tmp_path}`" in shown.stderr


def test_only_the_secret_that_was_asked_for_is_printed(folder: Path) -> None:
    whole = Keyring.load(folder)
    for kind in KINDS:
        printed = keys("secret", folder, "--kind", kind, "--namespace", "games")
        assert (printed.returncode, printed.stderr) == (0, "")
        made = yaml.safe_load(printed.stdout)
        assert made["metadata"] == {"name": f"kontrol-keys-{kind}", "namespace": "games"}
        assert [name for name in made["data"] if name.endswith("secret")] == [f"{kind}.secret"]
    both = yaml.safe_load(keys("secret", folder, "--kind", "master", "--kind", "agent").stdout)
    assert both["metadata"]["name"] == "kontrol-keys-agent-master"
    assert set(both["data"]) == {"master.secret", "agent.secret", "masters", "agents", "operators"}
    assert whole.own("master").public in (folder / "masters").read_text("utf-8")


@pytest.mark.parametrize(("mode", "warns"), [(0o644, True), (0o620, True), (0o600, False)])
def test_a_file_that_others_can_read_is_warned_of(
    folder: Path, tmp_path: Path, mode: int, warns: bool
) -> None:
    path = tmp_path / "secret.yaml"
    path.touch(mode)
    path.chmod(mode)
    with path.open("w", encoding="utf-8") as file:
        printed = subprocess.run(
            [sys.executable, "-m", "kontrol", "keys", "secret", str(folder), "--kind", "agent"],
            stdout=file,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=30,
            check=True,
        )
    warning = f"warning: others can read this file (mode {mode:03o}), which gets secret keys: pipe"
    assert (warning in printed.stderr) == warns


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotation_tells_what_to_do_next_and_shows_no_secret(folder: Path, kind: Kind) -> None:
    told = []
    for step in (1, 2, 3):
        done = keys("rotate", folder, kind)
        assert done.returncode == 0
        assert f"step {step} of 3" in done.stderr
        assert "next: renew the Secrets of" in done.stderr
        shown = keys("show", folder)
        assert shown.returncode == 0
        told += [done.stdout, done.stderr, shown.stdout, shown.stderr]
        assert shown.stdout.count("here") == 3
        assert ("retired" in shown.stdout) == (step == 2)
        assert not any(secret in text for text in told for secret in secrets(folder))


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("show", "nowhere"), "`kontrol keys make` makes one"),
        (("secret", "nowhere", "--kind", "agent"), "`kontrol keys make` makes one"),
        (("secret", "nowhere", "--kind", "pod"), "expected master, agent, operator"),
        (("rotate", "nowhere", "agent"), "`kontrol keys make` makes one"),
        (("rotate", "nowhere", "agent", "AKEY"), "unrecognized arguments"),
        ((), "ACTION"),
    ],
)
def test_mistakes_end_with_status_2_and_the_fix(words: tuple[str, ...], fix: str) -> None:
    failed = keys(*words)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert fix in failed.stderr
