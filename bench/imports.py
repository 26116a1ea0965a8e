"""What each import costs: memory and CPU, in a process that has asyncio already, as agents have.

Each is measured in processes of its own. Modules that it brings along are included, and those that
asyncio has brought count for nothing, so two imports together may cost less than their sum. asyncio
is without OpenSSL there, as in a daemon without TLS (decision 0178). What such a daemon would cost
with it is measured in an interpreter that has imported nothing.
"""

import statistics
import subprocess
import sys
from collections.abc import Iterable

from bench import Option
from bench.table import Row

TITLE = "What an import costs"
OPTIONS = {"rounds": Option(5, 1, "how often each is measured")}

BARE = ("asyncio", "ssl", "hashlib")
ON_TOP = (
    *("argparse", "ctypes", "dataclasses", "datetime", "difflib", "encodings.idna", "hashlib"),
    *("http.client", "importlib.metadata", "json", "pathlib", "random", "secrets", "shutil"),
    *("tempfile", "urllib.request", "google.protobuf.message_factory", "h11", "msgpack"),
    *("nacl.bindings", "yaml"),
    *("kontrol.settings", "kontrol.rpc.client", "kontrol.rpc.server", "kontrol.agent.agent"),
    *("kontrol.web.web", "kontrol.master.master", "kontrol.store.etcd.store"),
)
_WITHOUT = "from kontrol_common.openssl import without_openssl; without_openssl()"
_PROBE = """
import os, sys, time
{before}
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
begun, size = time.process_time(), resident()
import {module}
print(time.process_time() - begun, resident() - size)
"""
_MB = 1 << 20


async def run(*, rounds: int) -> list[Row]:
    """Measure."""
    rows = [
        _added("asyncio without OpenSSL, alone", "asyncio", "sys.modules['ssl'] = None", rounds)
    ]
    rows += _rows(BARE, ", alone", "", rounds)
    return rows + _rows(ON_TOP, "", _WITHOUT, rounds)


def _rows(modules: Iterable[str], where: str, before: str, rounds: int) -> list[Row]:
    return [_added(f"{module}{where}", module, before, rounds) for module in modules]


def _added(what: str, module: str, before: str, rounds: int) -> Row:
    """Measure what a module adds to a process that did `before`."""
    command = (sys.executable, "-c", _PROBE.format(before=before, module=module))
    found = []
    for _ in range(rounds):
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append([float(number) for number in text.split()])
    seconds, size = (statistics.median(column) for column in zip(*found, strict=True))
    name = "".join(char if char.isalnum() else "_" for char in what)
    return Row(
        what,
        f"{size / _MB:.2f} MB, {1000 * seconds:.1f} ms of CPU",
        values={f"{name}_mb": size / _MB, f"{name}_cpu_ms": 1000 * seconds},
    )
