"""What the tests of commands share: a command in this process, and a master to ask."""

import os
import sys
from collections.abc import Callable, Iterator

import pytest
from tests.cli.master import Master

from kontrol import cli

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, with an environment that holds nothing else of ours."""
    for name in [name for name in os.environ if name.startswith("KONTROL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*words: str, **environ: str) -> int:
        for name, text in environ.items():
            monkeypatch.setenv(name, text)
        return cli.main(words)

    return run


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch, run: Run) -> Iterator[Master]:
    """A master, which every command that follows asks."""
    del run  # it empties the environment first
    with Master().serving() as master:
        monkeypatch.setenv("KONTROL_MASTER", master.url)
        yield master
