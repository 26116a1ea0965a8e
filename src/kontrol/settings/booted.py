"""The file in which `kontrol boot` leaves what it found, for later commands of the container.

What boot exports reaches the process that it becomes, and that process's children. A command that
`kubectl exec` starts is none of them. So boot also writes `boot-PID.json` in the folder of this
user (mode 0700; the file has 0600 and no secrets). It is valid while the process that boot became
runs: a file whose process has ended, or whose number belongs to another process by now, is ignored,
and removed by the next boot. Of several, that of the oldest process counts, which is the
container's own.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from kontrol.settings import variables as v
from kontrol.settings.private import check_folder, run_folder
from kontrol.settings.resolve import NOTHING, Booted
from kontrol_common.files import replace_file

# Boot exports 13 texts of at most 100,000 bytes, of which JSON escapes some.
MAX_BYTES = 4 << 20

EXPORTED = frozenset({*v.FACTS, v.TELEGRAF_CONF.name})
"""Names of the variables that the file may have."""

_PATTERN = "boot-*.json"
_PROC = Path("/proc")


def leave(environ: Mapping[str, str], facts: Mapping[str, tuple[str, str]]) -> Path:
    """Write `facts` (text and source by name of variable) for this process; return where.

    Raises `OSError`.
    """
    folder = run_folder(environ)
    folder.mkdir(mode=0o700, exist_ok=True)
    check_folder(folder)
    for path in folder.glob(_PATTERN):
        if _age(path, _document(path)) is None:
            path.unlink(missing_ok=True)
    document = {
        "started": _started(os.getpid()),
        "facts": {name: {"text": text, "source": of} for name, (text, of) in facts.items()},
    }
    path = folder / f"boot-{os.getpid()}.json"
    replace_file(path, json.dumps(document).encode(), 0o600)
    return path


def read(environ: Mapping[str, str]) -> Booted:
    """Return what the boot of this container left; `NOTHING` if nothing, or if it has ended."""
    folder = run_folder(environ)
    try:
        check_folder(folder)
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING
    except OSError as error:
        return Booted(notes=((logging.WARNING, f"ignored what a boot left: {error}"),))
    documents = ((path, _document(path)) for path in sorted(folder.glob(_PATTERN)))
    alive = []
    for path, document in documents:
        if (age := _age(path, document)) is not None:
            alive.append((age, document))
    if not alive:
        return NOTHING
    _, oldest = min(alive, key=lambda item: item[0])
    return Booted(_facts(oldest.get("facts")))


def _document(path: Path) -> dict[str, object]:
    """Return the content of a file; empty if it cannot be read, or another version wrote it."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        document = json.loads(raw) if len(raw) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _age(path: Path, document: Mapping[str, object]) -> int | None:
    """Return when the file's process started, None if it does not run any more."""
    number = path.stem.removeprefix("boot-")
    started = _started(int(number)) if number.isascii() and number.isdecimal() else None
    return started if started == document.get("started") else None


def _started(pid: int) -> int | None:
    """Return when a process started, in ticks since the system did; None if there is none.

    Without `/proc`, 1 for any process that runs.
    """
    if not _PROC.is_dir():
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return 1
    try:
        text = _PROC.joinpath(str(pid), "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _facts(raw: object) -> dict[str, dict[str, str]]:
    """Return the texts by source; variables that no boot exports are ignored."""
    sources: dict[str, dict[str, str]] = {}
    for name, fact in raw.items() if isinstance(raw, dict) else ():
        if name in EXPORTED and isinstance(fact, dict):
            text, source = fact.get("text"), fact.get("source")
            if isinstance(text, str) and isinstance(source, str):
                sources.setdefault(f"kontrol boot ({source})", {})[name] = text.strip()
    return sources
