"""Completion: the scripts hold every command and option, and bash does as it is told."""

import argparse
import subprocess
from collections.abc import Sequence

import pytest
from tests.cli.conftest import Run

from kontrol.cli.completion import tree
from kontrol.cli.contents import ROWS
from kontrol.cli.parser import parser

ROOT = tree(parser())


def script(run: Run, capsys: pytest.CaptureFixture[str], shell: str) -> str:
    assert run("completion", shell) == 0
    return capsys.readouterr().out


def completed(text: str, *words: str) -> Sequence[str]:
    """Return what bash offers in place of the last word."""
    program = f"""{text}
COMP_WORDS=({" ".join(f"'{word}'" for word in ("kontrol", *words))})
COMP_CWORD={len(words)}
_kontrol
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, check=True, text=True, timeout=30
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_tree_has_every_command_and_its_options() -> None:
    nodes = {node.words[1:]: node for node in ROOT.walk()}
    assert {words[0] for words in nodes if words} == {row.name for row in ROWS}
    assert ("keys", "rotate") in nodes
    flags = {flag for argument in nodes["invoke",].arguments for flag in argument.flags}
    assert {"--where", "--parallel", "--help"} <= flags
    [run] = [one for one in nodes["rollback",].arguments if not one.flags]
    assert (run.value, run.required) == ("RUN", True)
    [pod] = [one for one in nodes["pods",].arguments if not one.flags]
    assert (pod.value, pod.required) == ("POD", False)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_word_is_in_each_script(
    run: Run, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    text = script(run, capsys, shell)
    for node in ROOT.walk():
        assert node.words[-1] in text
        for argument in node.arguments:
            for flag in argument.flags:
                assert (flag if shell != "fish" else flag.lstrip("-")) in text
    assert text.count("'") % 2 == 0


def test_bash_completes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(run, capsys, "bash")
    assert completed(text, "ru") == ["runs", "run-now"]
    assert completed(text, "-d", "rele") == ["release"]
    assert completed(text, "pods", "--w") == ["--watch"]
    assert completed(text, "keys", "rot") == ["rotate"]
    assert completed(text, "keys", "rotate", "op") == ["operator"]
    assert completed(text, "completion", "") == ["-h", "--help", "bash", "zsh", "fish"]
    # Where a value or a file is due, nothing is said, and bash offers files.
    assert completed(text, "status", "--ca", "") == []
    assert completed(text, "import", "back") == []
    assert completed(text, "status", "pods") == []


def test_hidden_options_stay_hidden() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--secret", help=argparse.SUPPRESS)
    parser.add_argument("--rate", default=50, help="%(default)s %% of it")
    help_, rate = tree(parser).arguments
    assert help_.flags == ("-h", "--help")
    assert (rate.flags, rate.value, rate.help) == (("--rate",), "RATE", "50 % of it")
