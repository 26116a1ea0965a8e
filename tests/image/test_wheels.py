"""Every dependency of the images has a wheel where the images are: no compiler is ever needed.

Asks the package index, so it belongs to what `make test` leaves out where it must.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
# Debian 13 has Python 3.13 and glibc 2.41, Debian 12 has 3.11 and 2.36. Alpine has musl 1.2, and
# changes its Python from one release to the next.
MUSL = ("musllinux_1_2", "musllinux_1_1")
GLIBC = ("manylinux_2_36", "manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_5")
TARGETS = {
    "alpine-3.12": ("3.12", MUSL),
    "alpine-3.13": ("3.13", MUSL),
    "alpine-3.14": ("3.14", MUSL),
    "debian-12": ("3.11", GLIBC),
    "debian-13": ("3.13", GLIBC),
}

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("system", TARGETS)
def test_every_dependency_has_a_wheel(system: str, machine: str, tmp_path: Path) -> None:
    python, platforms = TARGETS[system]
    found = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-"),
            *("--ignore-installed", "--target", tmp_path, "--only-binary", ":all:"),
            *("--implementation", "cp", "--python-version", python),
            *(word for name in platforms for word in ("--platform", f"{name}_{machine}")),
            *("--require-hashes", "--requirement", TOP / "requirements" / "image.txt"),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    chosen = {
        item["metadata"]["name"].lower(): item["download_info"]["url"].rpartition("/")[2]
        for item in json.loads(found.stdout)["install"]
    }
    assert all(name.endswith(".whl") for name in chosen.values()), chosen
    assert {"protobuf", "msgpack", "pyyaml", "supervisor", "pynacl"} <= chosen.keys()
    native = [name for name in chosen.values() if not name.endswith("-none-any.whl")]
    assert all(machine in name for name in native), native
    if system.startswith("alpine"):
        assert all("musllinux" in name for name in native), native
