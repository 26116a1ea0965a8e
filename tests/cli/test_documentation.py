"""The pages on commands and limits: made from the code, and nothing of it is missing."""

import ast
import importlib
import re
from pathlib import Path

from docs import commands_page, limits_page, rpc_page
from kontrol.cli.completion import tree
from kontrol.cli.contents import ROWS
from kontrol.cli.parser import parser
from kontrol.rpc.methods import Signature

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"

# Named like limits, and of no interest to who runs Kontrol: its client of etcd, and its model.
_INNER = ("kontrol.store", "kontrol.rpc.events")


def test_the_page_has_every_command_and_all_that_it_takes() -> None:
    page = commands_page.render()
    nodes = list(tree(parser()).walk())[1:]
    assert re.findall(r"^``kontrol (\w[\w-]*)``\n-", page, re.MULTILINE) == [
        row.name for row in ROWS
    ]
    for node in nodes:
        _, _, part = page.partition(f".. program:: {' '.join(node.words)}\n")
        assert part, node.words
        part, _, _ = part.partition(".. program::")
        for argument in node.arguments:
            for flag in argument.flags:
                assert f"{flag}" in part or flag in ("-h", "--help"), (node.words, flag)
    for command in (row.load() for row in ROWS):
        assert f"   $ {command.example}\n" in page
        for status in re.findall(r"^  (\d+)  ", command.statuses, re.MULTILINE):
            assert f"- Exit status {status}" in page


def test_the_texts_are_marked_up() -> None:
    escape = commands_page.escape
    assert escape("a `b*c` d* e|f g_h") == r"a ``b*c`` d\* e\|f g\_h"
    assert escape("--watch of KONTROL_TTL and KONTROL_X") == (
        "``--watch`` of :envvar:`KONTROL_TTL` and ``KONTROL_X``"
    )


def test_every_table_of_limits_is_there_with_its_lines() -> None:
    places = {limit.place for _, limits in limits_page.TABLES.values() for limit in limits}
    for path in SOURCE.glob("kontrol/**/*.py"):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        if module.startswith(_INNER):
            continue
        for statement in ast.parse(path.read_text("utf-8")).body:
            for name in _limits(statement):
                assert f"{module}:{name}" in places


def _limits(statement: ast.stmt) -> list[str]:
    """Return the names of limits that a statement defines."""
    if isinstance(statement, ast.ClassDef):
        return [statement.name] if statement.name in ("Limits", "Bounds") else []
    if not isinstance(statement, ast.Assign):
        return []
    names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return [name for name in names if re.match(r"MAX_|MOST_|(\w+_)?LIMIT\Z", name)]


def test_limits_are_shown_as_people_read_them() -> None:
    page = limits_page.render()
    frame = importlib.import_module("kontrol.rpc.limits").Limits().frame
    assert frame == 2 * 1024 * 1024
    assert "   * - 2 MiB\n     - Bytes of one event." in page
    assert "   * - 10 s\n     - Seconds in which a new connection must" in page
    assert "   * - 20,000\n     - Keepalives that wait" in page
    for _, limits in limits_page.TABLES.values():
        for line, value in limits_page.rows(limits):
            assert line.endswith(".")
            assert line.count("`") % 2 == 0
            assert value > 0


def test_the_page_has_every_method_and_every_error() -> None:
    page = rpc_page.render()
    names = [name for name, _, _ in rpc_page.methods()]
    assert names == ["ping", "published", "pods", "leader", "state", "invoke", "exec"]
    for name, method, _ in rpc_page.methods():
        doc = Signature.of(name, method).doc
        assert doc, name
        assert doc.splitlines()[0].replace("`", "``") in page
    raised = set()
    for part in ("rpc", "agent", "master", "daemon"):
        for path in (SOURCE / "kontrol" / part).glob("**/*.py"):
            text = path.read_text("utf-8")
            raised |= set(re.findall(r'\b(?:Refused|Refuse|failure)\(\s*"(\w+)"', text))
    assert raised <= set(rpc_page.ERRORS)
    assert {"Conflict", "Fenced", "Forbidden"} <= raised
