"""The images' files, judged without building: what both share, and what a build refuses."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
BASES = {
    "debian-13": "debian:trixie-slim",
    "debian-12": "debian:bookworm-slim",
    "alpine-3.24": "alpine:3.24",
}
SCRIPTS = [
    *(TOP / "image" / name for name in ("finish", "packages", "telegraf", "user", "venv")),
    TOP / "image/root/home/kontrol/boot.sh",
    TOP / "image/root/usr/bin/kontrol-health",
]
TOOLS = [
    *("cat", "chmod", "cp", "dirname", "echo", "gunzip", "mkdir", "mktemp"),
    *("sed", "sha256sum", "tar", "uname"),
]
ARCH = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]


def steps(folder: str) -> str:
    text = (TOP / folder / "Dockerfile").read_text("utf-8")
    assert f"{folder}/Dockerfile" in text
    assert BASES[folder] in text
    return text[text.index("FROM") :].replace(BASES[folder], "BASE")


def test_the_images_differ_in_their_base_alone() -> None:
    """So that what is tested on Debian is what Alpine runs."""
    assert len({steps(folder) for folder in BASES}) == 1
    assert {path.parent.name for path in TOP.glob("*/Dockerfile")} == set(BASES)


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, "http://localhost:8001/healthz"),
        ({"KONTROL_HTTP_PORT": "9", "KONTROL_BIND": "*"}, "http://localhost:9/healthz"),
        ({"KONTROL_BIND": "10.0.0.7"}, "http://10.0.0.7:8001/healthz"),
        ({"KONTROL_BIND": "fd00::7"}, "http://[fd00::7]:8001/healthz"),
        ({"KONTROL_BIND": "[fd00::7]"}, "http://[fd00::7]:8001/healthz"),
        ({"KONTROL_TLS_CERT": "/cert.pem"}, "https://localhost:8001/healthz"),
        ({"KONTROL_HTTP_PORT": "0"}, ""),
    ],
)
def test_health_is_asked_where_kontrol_listens(
    environ: dict[str, str], asked: str, tmp_path: Path
) -> None:
    """Where no supervisord runs; in containers, the tests of the image ask with one."""
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\nfor url; do :; done\necho "$url"\n', encoding="utf-8")
    curl.chmod(0o755)
    health = (TOP / "image/root/usr/bin/kontrol-health").read_text("utf-8")
    result = subprocess.run(
        ["/bin/sh", "-c", health.replace("/tmp/supervisor.sock", f"{tmp_path}/none")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **environ},
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert result.stdout.strip() == asked


@pytest.fixture
def telegraf(tmp_path: Path) -> Path:
    """The script, where it installs no packages, and an archive of a release that never was."""
    folder = tmp_path / "image"
    folder.mkdir()
    script = folder / "telegraf"
    script.write_bytes((TOP / "image" / "telegraf").read_bytes())
    script.chmod(0o755)
    packages = folder / "packages"
    packages.write_text("#!/bin/sh\n", encoding="utf-8")
    packages.chmod(0o755)
    program = tmp_path / "telegraf-9.9.9" / "usr" / "bin" / "telegraf"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 9.9.9\n", encoding="utf-8")
    archive = tmp_path / f"telegraf-9.9.9_linux_{ARCH}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "telegraf-9.9.9", "telegraf-9.9.9")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (folder / "telegraf.sha256").write_text(f"{digest}  {archive.name}\n", encoding="utf-8")
    return script


def fetch(
    script: Path, version: str, sha256: str = "", *, path: str = os.environ["PATH"]
) -> "subprocess.CompletedProcess[str]":
    folder = script.parents[1]
    return subprocess.run(
        ["/usr/bin/env", "sh", script, folder / "out"],
        env={
            "PATH": path,
            "TELEGRAF": version,
            "TELEGRAF_SHA256": sha256,
            "TELEGRAF_URL": folder.as_uri(),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_telegraf_that_is_what_was_expected(telegraf: Path) -> None:
    result = fetch(telegraf, "9.9.9")
    assert result.returncode == 0, result.stderr
    program = telegraf.parents[1] / "out/usr/bin/telegraf"
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"9.9.9\n"


@pytest.mark.privileged("busybox")
def test_the_steps_with_busybox(telegraf: Path, tmp_path: Path) -> None:
    """Alpine's shell and tools are busybox'."""
    tools = tmp_path / "bin"
    tools.mkdir()
    busybox = str(shutil.which("busybox"))
    for name in ("sh", *TOOLS):
        (tools / name).symlink_to(busybox)
    (tools / "curl").symlink_to(str(shutil.which("curl")))
    result = fetch(telegraf, "9.9.9", path=str(tools))
    assert result.returncode == 0, result.stderr
    assert (telegraf.parents[1] / "out/usr/bin/telegraf").exists()
    for script in SCRIPTS:
        subprocess.run([busybox, "sh", "-n", script], check=True, timeout=10)


def test_telegraf_left_out(telegraf: Path) -> None:
    result = fetch(telegraf, "none")
    assert result.returncode == 0, result.stderr
    assert list((telegraf.parents[1] / "out/usr/bin").iterdir()) == []


@pytest.mark.parametrize(
    ("version", "sha256", "says"),
    [
        ("9.9.9", "0" * 64, "is not what was expected"),
        ("9.9.8", "", "SHA-256 of telegraf-9.9.8"),
        ("9.9.8", "0" * 64, "telegraf-9.9.8"),
    ],
)
def test_telegraf_refused(telegraf: Path, version: str, sha256: str, says: str) -> None:
    result = fetch(telegraf, version, sha256)
    assert result.returncode != 0
    assert says in result.stderr
    assert list((telegraf.parents[1] / "out/usr/bin").iterdir()) == []


def test_the_default_telegraf_has_a_checksum_for_both_architectures() -> None:
    found = re.search(
        r"^ARG TELEGRAF=(.+)$", (TOP / "debian-13" / "Dockerfile").read_text("utf-8"), re.MULTILINE
    )
    assert found
    lines = (TOP / "image" / "telegraf.sha256").read_text("utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.split(" ") for line in lines)}
    for arch in ("amd64", "arm64"):
        digest = sums[f"telegraf-{found[1]}_linux_{arch}.tar.gz"]
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
