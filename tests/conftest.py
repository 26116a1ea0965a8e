"""What holds for every test: nothing is skipped in silence, and what is left out is named.

Tests marked `privileged` need to make network namespaces, and the programs that the mark names.
Where that is not allowed, or those are not there, they are left out, and listed by name at the end.
With KONTROL_TEST_STRICT=1, as in CI, leaving out is a failure, and so is a skip.
"""

import os
import shutil
import subprocess
from collections.abc import Generator

import pytest

STRICT = os.environ.get("KONTROL_TEST_STRICT") == "1"
LEFT_OUT = pytest.StashKey[list[str]]()
SKIPPED = pytest.StashKey[list[str]]()


def _privileged() -> bool:
    """Tell whether this process may make network namespaces, and has the tool for it."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode
        == 0
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = []
    config.stash[SKIPPED] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("privileged")]
    if not marked:
        return
    allowed = _privileged()
    left_out = [item for item in marked if not (allowed and _equipped(item))]
    config.stash[LEFT_OUT] = [item.nodeid for item in left_out]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _equipped(item: pytest.Item) -> bool:
    """Tell whether the programs that its mark names, if any, are there."""
    return all(
        shutil.which(program) for mark in item.iter_markers("privileged") for program in mark.args
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped:
        item.config.stash[SKIPPED].append(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    stash = session.config.stash
    if STRICT and (stash[LEFT_OUT] or stash[SKIPPED]) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for names, why in (
        (
            config.stash[LEFT_OUT],
            "left out: they need to make network namespaces or containers (run as root)",
        ),
        (config.stash[SKIPPED] if STRICT else [], "skipped, which is a failure here"),
    ):
        if names:
            terminalreporter.section(why)
            for name in names:
                terminalreporter.line(name)
