"""The page that teaches automaton is true: its files are written, its commands run, in order."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.automaton.support import HALF_CLOSING

from automaton.load import load

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "automaton.rst"
DIRECTIVE = re.compile(r"\.\. (code-block|literalinclude):: (\S+)")


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each block's directive argument, caption and text, in the order of the page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        found = DIRECTIVE.fullmatch(line)
        if not found:
            continue
        indented = []
        for after in lines[number + 1 :]:
            if after and not after.startswith("   "):
                break
            indented.append(after[3:])
        options = {}
        while indented and indented[0].startswith(":"):
            name, _, value = indented.pop(0)[1:].partition(": ")
            options[name] = value
        text = "\n".join(indented).strip("\n") + "\n"
        if found[1] == "literalinclude":
            text = (page.parent / found[2]).read_text(encoding="utf-8")
        yield found[2], options.get("caption", ""), text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stand_in(folder: Path) -> Path:
    """Make a `socat` for machines without it, in `folder`: its last argument is the socket."""
    folder.mkdir()
    program = folder / "socat"
    program.write_text(
        f"#!/bin/sh\nfor path; do :; done\nexec {sys.executable} -c '{HALF_CLOSING}' \"$path\"\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return folder


def test_every_block_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    port = str(free_port())
    script = ["export LC_ALL=C.UTF-8"]
    expected: list[tuple[str, str]] = []
    for kind, caption, text in blocks(PAGE):
        text = text.replace("8080", port)
        if kind == "console":
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                expected.append((command, shown))
                script += [command, 'printf "\\n@@@\\n"']
        elif caption:
            quoted = shlex.quote(text)
            script.append(f"printf %s {quoted} > {caption}")
    assert len(expected) > 30
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "page.sh").write_text("\n".join(script), encoding="utf-8")
    path = [str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep)]
    if not shutil.which("socat"):
        path.insert(0, str(stand_in(tmp_path / "bin")))
    done = subprocess.run(
        ["bash", str(tmp_path / "page.sh")],
        cwd=place,
        env={**os.environ, "PATH": os.pathsep.join(path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=140,
        check=False,
    )
    said = done.stdout.decode().split("\n@@@\n")
    for (command, shown), output in zip(expected, said, strict=False):
        assert timeless(output).strip("\n") == timeless(shown).strip("\n"), command
    assert len(said) == len(expected) + 1, said[-1]


def timeless(text: str) -> str:
    return re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "TIME", text)


def test_the_examples_are_sound() -> None:
    manifest, warnings = load(DOCS.parent / "examples" / "automaton" / "lifecycle.yml")
    assert warnings == []
    assert list(manifest.states) == ["configure", "start", "serve", "drain", "stop"]


def test_the_diagram_shows_the_states_and_no_others() -> None:
    manifest, _ = load(DOCS.parent / "examples" / "automaton" / "lifecycle.yml")
    drawing = (DOCS / "_static" / "automaton-lifecycle.svg").read_text(encoding="utf-8")
    assert re.findall(r'class="l-fg"[^>]*>([^<]*)<', drawing) == list(manifest.states)
