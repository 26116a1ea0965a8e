"""Every dependency of the images has a wheel where the images are: no compiler is ever needed.

Asks the package index, so it belongs to what `make test` leaves out where it must.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
# Alpine 3.22 has Python 3.12 and musl 1.2; Debian 12 has Python 3.11 and glibc 2.36.
TARGETS = {
    "alpine": ("3.12", ("musllinux_1_2", "musllinux_1_1")),
    "debian": (
        "3.11",
        ("manylinux_2_36", "manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_5"),
    ),
}

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(120)]


def wanted() -> list[str]:
    """Return what the images install, apart from Kontrol itself."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]
    extra = (TOP / "image" / "requirements.txt").read_text("utf-8").split()
    return [*project["dependencies"], *extra]


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
            *("--constraint", TOP / "constraints.txt"),
            *wanted(),
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
    assert {"grpcio", "protobuf", "pyzmq", "msgpack", "pyyaml", "supervisor"} <= chosen.keys()
    native = [name for name in chosen.values() if not name.endswith("-none-any.whl")]
    assert all(machine in name for name in native), native
    if system == "alpine":
        assert all("musllinux" in name for name in native), native
