"""CONTRIBUTING.md: the tree is the tree, what is named exists, and the vocabulary is in use."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SOURCE = ROOT / "src"


def listed() -> Iterator[str]:
    """Yield the paths of the tree, each with its folders."""
    _, _, tree = TEXT.partition("```text\n")
    tree, _, _ = tree.partition("```")
    folders: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        folders.append(name)
        yield "".join(folders)


def test_the_tree_has_what_there_is() -> None:
    for path in listed():
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == path.endswith("/"), path


def test_every_package_of_the_first_level_is_in_the_tree() -> None:
    paths = set(listed())
    for package in (*SOURCE.iterdir(), *(SOURCE / "kontrol").iterdir()):
        if package.is_dir() and package.name != "__pycache__":
            assert f"{package.relative_to(ROOT).as_posix()}/" in paths, package
    assert {
        f"{path.relative_to(ROOT)}/" for path in (SOURCE / "kontrol/master").glob("[a-z]*/")
    } <= paths


def test_the_layers_are_those_that_are_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    [layers] = [
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers" and "cli" in contract["layers"]
    ]
    _, _, block = TEXT.partition("from top to bottom:\n\n```text\n")
    block, _, _ = block.partition("```")
    assert block.splitlines() == [layer for layer in layers if layer != "__main__"]


def test_files_and_names_in_the_instructions_exist() -> None:
    _, _, part = TEXT.partition("## Where to add something\n")
    part, _, _ = part.partition("\n## ")
    items = re.split(r"^- ", part, flags=re.MULTILINE)[1:]
    assert len(items) >= 8
    for item in items:
        files = re.findall(r"`([\w/.-]+\.(?:py|md))`", item)
        found = ""
        for file in files:
            if "NNNN" in file:
                continue
            [path] = {
                folder / file
                for folder in (ROOT, SOURCE, SOURCE / "kontrol")
                if (folder / file).exists()
            }
            found += path.read_text("utf-8")
        for name in re.findall(r"`(_?[A-Za-z]\w+)`", item):
            if name not in ("kontrol", "cli"):
                assert re.search(rf"\b{name}\b", found), f"{name} is in none of {files}"


def test_every_term_of_the_vocabulary_is_in_use() -> None:
    source = "\n".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py")).lower()
    _, _, table = TEXT.partition("| term | meaning | where |\n| --- | --- | --- |\n")
    terms = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("|")]
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.lower)
    for term in terms:
        for one in term.split(", "):
            words = r"[\s#_]*".join(map(re.escape, one.lower().split()))
            assert re.search(rf"(?<![a-z]){words}", source), one
