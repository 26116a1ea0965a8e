"""`kontrol keys`: make, print and rotate keys. No secret is ever a command-line argument."""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from kontrol.cli.command import DONE, USAGE, Command, say, warn_of_readers
from kontrol_common.text import escaped

Action = Callable[[argparse.Namespace], int]


def _make(options: argparse.Namespace) -> int:
    from kontrol.rpc.security.keyfolder import make

    names = make(options.folder, _today())
    say(f"made {', '.join(names)} in {options.folder}")
    say("keep this folder private: with its keys, commands can be run on every pod")
    return DONE


def _secret(options: argparse.Namespace) -> int:
    from kontrol.rpc.security.keyfolder import manifest

    kinds = sorted(set(options.kind))
    name = options.name or f"kontrol-keys-{'-'.join(kinds)}"
    text = manifest(options.folder, kinds, name, options.namespace)
    if sys.stdout.isatty():
        say("this is secret; better pipe it into `kubectl apply -f -`")
    warn_of_readers("secret keys", "pipe it into `kubectl apply -f -`, or run `umask 077` first")
    print(text, end="")
    return DONE


def _rotate(options: argparse.Namespace) -> int:
    from kontrol.rpc.security.keyfolder import rotate

    step = rotate(options.folder, options.kind, _today())
    say(f"step {step.number} of 3: {step.done}")
    say(f"next: {step.next}")
    return DONE


def _show(options: argparse.Namespace) -> int:
    from kontrol.rpc.security.keys import KINDS, assemble, fingerprint, list_file, parse_list, read

    folder: Path = options.folder
    texts = read(folder)
    keys = assemble(texts, folder)
    own = {pair.public: kind for kind, pair in keys.own.items()}
    rows = [("KIND", "IN LOGS", "PUBLIC KEY", "SECRET", "REMARK")]
    for kind in KINDS:
        name = list_file(kind)
        for key, remark in parse_list(texts.get(name, ""), str(folder / name)).items():
            rows.append((kind, fingerprint(key), key, "here" if key in own else "-", remark))
    rows += [
        (kind, fingerprint(key), key, "here", "not accepted: not in the list")
        for key, kind in own.items()
        if key not in keys.accepted
    ]
    if len(rows) == 1:
        say(f"there are no keys in {folder}; make them with `kontrol keys make {folder}`")
        return DONE
    for row in rows:
        print(f"{row[0]:<9} {row[1]:<9} {row[2]:<41} {row[3]:<7} {escaped(row[4])}".rstrip())
    return DONE


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _run(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.rpc.security.keys import KeysError

    action: Action = options.action
    try:
        return action(options)
    except KeysError as error:
        say(str(error))
        return USAGE


def _configure(parser: argparse.ArgumentParser) -> None:
    kinds = ("master", "agent", "operator")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, action: Action, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.add_argument("folder", type=Path, metavar="FOLDER", help="the folder with the keys")
        sub.set_defaults(action=action)
        return sub

    add("make", _make, "make a folder with keys of all kinds; existing files are not overwritten")
    secret = add(
        "secret", _secret, "print a Kubernetes Secret with the keys that a kind of process needs"
    )
    secret.add_argument(
        "--kind",
        action="append",
        required=True,
        choices=kinds,
        help="kind of the process; give master and agent for pods that are both",
    )
    secret.add_argument("--name", help="name of the Secret (default: kontrol-keys-KIND)")
    secret.add_argument("--namespace", help="namespace of the Secret (default: that of kubectl)")
    rotate = add("rotate", _rotate, "take the next of the three steps that replace a key")
    rotate.add_argument(
        "kind", choices=kinds, metavar="KIND", help=f"kind of the key: {', '.join(kinds)}"
    )
    add("show", _show, "list the public keys, and which secret keys are in the folder")


COMMANDS = {
    "keys": Command(
        "kontrol keys make keys && kontrol keys secret keys --kind agent | kubectl apply -f -",
        _run,
        _configure,
    ),
}
