"""What holds for every test: nothing is skipped in silence, and what is left out is named.

Tests marked `privileged` need to make network namespaces, and the programs that the mark names;
tests marked `equipped` need the programs alone. Where that is not allowed, or those are not there,
they are left out, and listed by name at the end.
With KONTROL_TEST_STRICT=1, as in CI, leaving out is a failure, and so is a skip.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest
from tests.simulation.suite import Suite
from tests.support import timeouts
from tests.support.programs import find

STRICT = os.environ.get("KONTROL_TEST_STRICT") == "1"
MOST_WORKERS = 32
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
    # A slow machine is no fault of what is tested; the time-outs of tests see to the rest.
    hypothesis.settings.register_profile(
        "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("tests")
    # A shell starts a background job with this signal ignored, and all programs below inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[LEFT_OUT] = []
    config.stash[SKIPPED] = []
    config.pluginmanager.register(timeouts)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Suite())


@pytest.hookimpl(optionalhook=True)  # without the plug-in there is none
def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n auto` means: most tests wait for most of their time."""
    return min(2 * len(os.sched_getaffinity(0)), MOST_WORKERS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("privileged")]
    allowed = not marked or _privileged()
    left_out = [item for item in items if not _equipped(item) or (item in marked and not allowed)]
    if not left_out:
        return
    config.stash[LEFT_OUT] = [item.nodeid for item in left_out]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _equipped(item: pytest.Item) -> bool:
    """Tell whether the programs that its marks name, if any, are there."""
    return all(
        find(program)
        for name in ("privileged", "equipped")
        for mark in item.iter_markers(name)
        for program in mark.args
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
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # a worker of several: the one who asked for them tells
        output.update(left_out=stash[LEFT_OUT], skipped=stash[SKIPPED])
        return
    if STRICT and (stash[LEFT_OUT] or stash[SKIPPED]) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - of a plug-in without types
    output = getattr(node, "workeroutput", {})
    for key, name in ((LEFT_OUT, "left_out"), (SKIPPED, "skipped")):
        known = node.config.stash[key]
        known += [one for one in output.get(name, []) if one not in known]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for names, why in (
        (
            config.stash[LEFT_OUT],
            "left out: they need root, or programs that are not here (see make .venv/kube)",
        ),
        (config.stash[SKIPPED] if STRICT else [], "skipped, which is a failure here"),
    ):
        if names:
            terminalreporter.section(why)
            for name in names:
                terminalreporter.line(name)
