"""`kontrol set`, `get` and `unset`: the desired state, which the callback gets as `$SPEC`."""

import argparse
from typing import TYPE_CHECKING

from kontrol.cli.command import DONE, UNANSWERED, USAGE, Command, say
from kontrol.cli.operate.asking import ASKING, asking, configure, show_json

if TYPE_CHECKING:
    from kontrol.cli.rest import Rest
    from kontrol.cli.table import Console
    from kontrol.ensemble.canonical import JSON

_WAIT = 10.0  # seconds that a master waits for etcd
_STATUSES = """\
  4  no master answered, or etcd did not confirm it: it may have been done
  5  refused: token missing or insufficient, or a limit would be exceeded
  7  the value is not the expected one (--if-is, --if-absent): nothing was changed
"""


def _get(options: argparse.Namespace, rest: "Rest", _console: "Console") -> int:
    from kontrol.ensemble.desired import BadSetting, check_key

    if options.key is None:
        document = rest.get("/v1/spec").document
        show_json(document if options.json else document.get("spec"))
        return DONE
    try:
        key = check_key(options.key)
    except BadSetting as error:
        say(str(error))
        return USAGE
    document = rest.get(f"/v1/spec/{key}").document
    show_json(document if options.json else document.get("value"))
    return DONE


def _set(options: argparse.Namespace, rest: "Rest", console: "Console") -> int:
    key, sign, text = options.setting.partition("=")
    if not sign:
        say(f"{key!r} has no value: expected KEY=VALUE, as replicas=3")
        return USAGE
    return _change(key, text, options, rest, console)


def _unset(options: argparse.Namespace, rest: "Rest", console: "Console") -> int:
    return _change(options.key, None, options, rest, console)


def _change(
    key: str, text: str | None, options: argparse.Namespace, rest: "Rest", console: "Console"
) -> int:
    """Set a key to the value that `text` means, or unset it with None."""
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.ensemble.desired import BadSetting, check_key, encode_value, value_of

    def value(text: str) -> "JSON":
        found = text if options.string else value_of(text)
        encode_value(found)
        return found

    try:
        body: dict[str, JSON] = {"key": check_key(key)}
        if text is not None:
            body["value"] = value(text)
        if options.if_is is not None:
            body["if-is"] = value(options.if_is)
        if getattr(options, "if_absent", False):
            body["if-absent"] = True
    except BadSetting as error:
        say(str(error))
        return USAGE
    path = "/v1/unset" if text is None else "/v1/set"
    answer = rest.post(path, body, wait=_WAIT)
    reply = UntrustedJson.of(answer.document)
    done = reply.true("done")
    if options.json:
        show_json(answer.document)
    else:
        message = console.remedy(reply.text("message", "done"))
        print(message) if done else say(message)
    return DONE if done else UNANSWERED


def _configure_get(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument("key", nargs="?", metavar="KEY", help="print this value (default: all)")


def _configure_set(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument(
        "setting",
        metavar="KEY=VALUE",
        help="the key, and its value as JSON; what is not JSON is a string",
    )
    conditions = parser.add_mutually_exclusive_group()
    _if_is(conditions)
    conditions.add_argument(
        "--if-absent", action="store_true", help="set it only if the key is not set"
    )
    _string(parser)


def _configure_unset(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument("key", metavar="KEY", help="the key to unset")
    _if_is(parser)
    _string(parser)


def _if_is(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--if-is", metavar="VALUE", help="change it only if the key has this value now"
    )


def _string(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--string", action="store_true", help="take each VALUE as a string, even if it is JSON"
    )


COMMANDS = {
    "set": Command(
        "kontrol set primary=redis-1 --if-is redis-0",
        asking(_set),
        _configure_set,
        statuses=_STATUSES,
    ),
    "get": Command(
        "kontrol get replicas",
        asking(_get),
        _configure_get,
        statuses=ASKING,
    ),
    "unset": Command(
        "kontrol unset replicas",
        asking(_unset),
        _configure_unset,
        statuses=_STATUSES,
    ),
}
