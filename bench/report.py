"""A run as JSON: the rows, the options, and what it was measured on. No names, no paths."""

import errno
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench.table import Row
from kontrol import __version__
from kontrol.store.embedded import find_etcd

HERE = Path(__file__).parent
RESULTS = HERE / "results"


async def environment() -> dict[str, object]:
    """Return what the figures depend on, as it is before a run."""
    etcd, _ = await find_etcd()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kontrol": __version__,
        "git": _output("git", "-C", str(HERE), "describe", "--always", "--dirty", "--tags"),
        "python": platform.python_version(),
        "packages": _packages(),
        "etcd": _output(etcd, "--version").splitlines()[0].rpartition(" ")[2],
        "system": platform.system(),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "cpu": _cpu(),
        "cores": cores,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "load": round(os.getloadavg()[0], 1),  # 0 on a machine that does nothing else
    }


def document(
    name: str,
    title: str,
    rows: Sequence[Row],
    options: Mapping[str, object],
    where: Mapping[str, object],
) -> dict[str, object]:
    """Return a run as it is written."""
    return {
        "bench": name,
        "title": title,
        "options": {name: each for name, each in options.items() if not isinstance(each, str)},
        "environment": dict(where),
        "rows": [asdict(row) for row in rows],
    }


def write(run: Mapping[str, object], path: Path) -> None:
    """Write a run to a file, in a folder that exists: see `prepare`."""
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def place(given: Path | None, name: str) -> Path:
    """Return the file of a run: `given` if that ends in .json, or else one in that folder."""
    if given is None:
        return RESULTS / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    return given if given.suffix == ".json" else given / f"{name}.json"


def prepare(path: Path) -> None:
    """Make the folder of a file that is written later. Raises `OSError` if it could not be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _packages() -> dict[str, str]:
    """Return the versions of what Kontrol needs to run."""
    needed = importlib.metadata.requires("kontrol-loop") or []
    names = [re.split(r"[^\w.-]", need)[0] for need in needed if "extra ==" not in need]
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _output(*command: str) -> str:
    """Return what a command prints, empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
