"""`kontrol export` and `kontrol import`: they read and write a tier's etcd without its masters.

They need a master's environment. For an export no master needs to run, and for an import none may.
The document contains the state, so its file is readable by its owner only, and it gets its name
only when it is complete.
"""

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kontrol.cli.command import (
    DONE,
    REFUSED,
    UNANSWERED,
    USAGE,
    Command,
    complain,
    say,
    warn_of_readers,
)
from kontrol.settings import Settings, assemble, booted, examine
from kontrol.settings import variables as v
from kontrol.settings.resolve import resolve

if TYPE_CHECKING:
    from kontrol.master.records.records import Records
    from kontrol.store.protocol import Store

_T = TypeVar("_T")
_DEPTH = 200  # twice what a state may have
_STATUSES = "  4  etcd does not answer\n"


def _export(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.master.operator.archive import export
    from kontrol_common.files import replace_file
    from kontrol_common.text import escaped_json

    text = escaped_json(_with_store(_settings(), export), indent=2) + "\n"
    if options.file is None:
        warn_of_readers("the state", "`kontrol export FILE` makes one that only you can read")
        sys.stdout.write(text)
        return DONE
    try:
        replace_file(options.file, text.encode(), 0o600, sync=True)
    except OSError as error:
        say(f"cannot write {options.file}: {(error.strerror or str(error)).lower()}")
        return USAGE
    return DONE


def _import(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.ensemble.canonical import NotJSON, parse
    from kontrol.master.operator.archive import ArchiveError, restore

    settings = _settings()
    try:
        raw = sys.stdin.buffer.read() if str(options.file) == "-" else options.file.read_bytes()
        document = parse(raw, depth=_DEPTH)
    except OSError as error:
        say(f"cannot read {options.file}: {(error.strerror or str(error)).lower()}")
        return USAGE
    except NotJSON as error:
        say(f"{options.file}: expected a file made by `kontrol export`; {error}")
        return USAGE
    try:
        print(_with_store(settings, lambda store, records: restore(store, records, document)))
    except ArchiveError as error:
        say(str(error))
        return REFUSED
    return DONE


def _settings() -> Settings:
    """Return the settings of a master, whatever KONTROL_MODE says. Exits on mistakes."""
    modes = resolve(os.environ, {}).get(v.MODE) or frozenset()
    as_master = {} if "master" in modes else {v.MODE.name: "master"}
    resolved = examine({**os.environ, **as_master}, booted=booted.read(os.environ))
    if resolved.mistakes:
        complain(resolved)
        say(
            "this command needs a master's environment: run it in a master's container, for example"
        )
        raise SystemExit(USAGE)
    return assemble(resolved)


def _with_store(settings: Settings, work: "Callable[[Store, Records], Awaitable[_T]]") -> "_T":
    """Do some work on the masters' store, and return its result. Exits if that fails."""
    import asyncio

    from kontrol.daemon.process import Children, StartupError
    from kontrol.daemon.wire_master import open_store
    from kontrol.master.records.keys import Keys
    from kontrol.master.records.records import Records
    from kontrol.store.protocol import NoSpace, StoreError

    async def run() -> _T:
        async with AsyncExitStack() as stack:
            store = await open_store(settings, stack, Children())
            keys = Keys.of(settings[v.NAMESPACE], settings.app)
            return await work(store, Records(keys))

    try:
        return asyncio.run(run())
    except StartupError as error:
        say(str(error))
        raise SystemExit(USAGE) from None
    except StoreError as error:
        where = ", ".join(settings.etcd.addresses) or "embedded"
        fix = f"{v.ETCD.name} says where it is"
        if isinstance(error, NoSpace):
            fix = (
                "free its space (`etcdctl compact REVISION`, `etcdctl defrag --cluster`, `etcdctl "
                "alarm disarm`), or raise its --quota-backend-bytes"
            )
        say(f"etcd at {where}: {error}; {fix}")
        raise SystemExit(UNANSWERED) from None


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the file to write (default: standard output)",
    )


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a file made by `kontrol export`; - for standard input",
    )


COMMANDS = {
    "export": Command(
        "kontrol export backup.json",
        _export,
        _configure_export,
        statuses=_STATUSES,
    ),
    "import": Command(
        "kontrol import backup.json",
        _import,
        _configure_import,
        statuses=f"{_STATUSES}  5  refused: the tier is in use, or the file is not an export\n",
    ),
}
