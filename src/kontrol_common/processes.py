"""Process trees: find, signal, await and reap everything that a child process has started.

A process that calls `setsid` leaves its group and session, and one that forks twice leaves its
parent: no process group names them. On Linux a *child subreaper* keeps them all the same, since
whatever is orphaned below it becomes its child. So the tree below a subreaper is complete, and it
is empty exactly when the subreaper has no child left: a process that lives has an ancestor that is
a child. Everything else here is a snapshot, and a snapshot of a moving tree can miss a process that
is passed from one parent to another meanwhile. So kill, await, reap, and look again until empty.

A process id is reused once its process has been reaped. What we signal is therefore named by a
pidfd, opened before we check that the process is still the one that we found.

Standard library only, and nothing heavy at import: a process that does little imports this.
Without Linux's /proc (macOS, for development) trees come from `ps`, orphans escape, and there are
no pidfds.
"""

import errno
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 64  # of one call of `kill_descendants`; callers call again while anything is left
_LINUX = sys.platform == "linux"

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that ask a daemon to end in good order."""

STRAY_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
"""Signals that mean nothing to a daemon, and that would kill it unless they are handled."""

SAME_SIGNAL = 0.1
"""Seconds within which a second signal counts as the first: `timeout` sends two in a row."""


def handled_signals() -> tuple[signal.Signals, ...]:
    """Return those of both kinds, but not a SIGHUP that is ignored: `nohup` wants it so."""
    kept = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else ()
    return tuple(sig for sig in (*ENDING_SIGNALS, *STRAY_SIGNALS) if sig not in kept)


def become_subreaper() -> bool:
    """Make orphaned descendants of this process its children. False where that does not exist."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Have the kernel SIGKILL this process when the thread that forked it ends; kept over exec.

    A parent that died before this call is not noticed: compare `os.getppid()` afterwards.
    """
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    if not _LINUX:
        return False
    call, error = _loaded()
    if call(option, value, 0, 0, 0) != 0:
        number = error()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")
    return True


@functools.cache  # a child that is to be executed soon finds it loaded
def _loaded() -> "tuple[Callable[..., int], Callable[[], int]]":
    """Return prctl(2), and the function that returns its error."""
    import ctypes  # 5 ms and 0.5 MB that only a few processes need

    call = ctypes.CDLL(None, use_errno=True).prctl
    call.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    return call, ctypes.get_errno


class _Process:
    """One process as it was found. `start` (clock ticks since boot) distinguishes reused ids."""

    __slots__ = ("group", "parent", "pid", "session", "start", "zombie")

    def __init__(
        self, pid: int, *, parent: int, group: int, session: int, start: int, zombie: bool
    ) -> None:
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.start = start
        self.zombie = zombie


def _read(path: str) -> bytes:
    """Return what a file of /proc holds; nothing if its process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except ProcessLookupError:
        return b""
    finally:
        os.close(fd)


def _look(pid: int) -> _Process | None:
    """Return the process as it is now, or None if there is none."""
    stat = _read(f"/proc/{pid}/stat")  # proc_pid_stat(5): the name may hold anything but ends in )
    if not stat:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return _Process(
        pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start=int(fields[19]),
        # Where only the first thread has ended, the state says Z, and the other threads go on.
        zombie=fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1,
    )


def _look_at_children(pid: int) -> list[_Process]:
    if not _LINUX:
        return [process for process in _ps() if process.parent == pid]
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  # pathlib costs 10 ms to import
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = []
    for thread in threads:
        for child in _read(f"/proc/{pid}/task/{thread}/children").split():
            process = _look(int(child))
            if process is not None and process.parent == pid:
                found.append(process)
    return found


def _ps() -> Iterator[_Process]:
    import subprocess

    table = subprocess.run(
        ["/bin/ps", "-A", "-o", "pid=,ppid=,pgid=,stat="],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=10,
        check=True,
    ).stdout
    for line in table.splitlines():
        pid, parent, group, state = line.split()[:4]
        yield _Process(
            int(pid),
            parent=int(parent),
            group=int(group),
            session=int(group),  # `ps` has none there
            start=0,  # nor that; ids wrap slowly
            zombie=state[:1] == b"Z",
        )


def _tree(pid: int, spare: Collection[int]) -> Iterator[_Process]:
    """Yield the descendants of `pid`, parents first, without `spare` and what is below those."""
    parents, seen = [pid], {pid, *spare}
    while parents:
        for process in _look_at_children(parents.pop()):
            if process.pid not in seen:
                seen.add(process.pid)
                parents.append(process.pid)
                yield process


def children(pid: int) -> list[int]:
    """Return the ids of the children of `pid`, zombies too."""
    return [process.pid for process in _look_at_children(pid)]


def descendants(pid: int, spare: Collection[int] = ()) -> list[int]:
    """Return the ids of all living (not zombie) descendants of `pid`, parents first.

    `spare` and their descendants are left out. A snapshot: see the module's word on moving trees.
    """
    return [process.pid for process in _tree(pid, spare) if not process.zombie]


def kill_descendants(pid: int, sig: int = signal.SIGKILL, spare: Collection[int] = ()) -> list[int]:
    """Signal every living descendant of `pid` but `spare` and theirs; return the ids signalled.

    SIGKILL is sent in rounds, until no new process is found: one that has it can fork no more. It
    is sent to whole process groups too, in one call, so that a process that forks and exits without
    end cannot outrun us. Any other signal goes once to each. Processes that we may not signal (of
    another user) are passed over. Nothing is awaited: once those returned have exited, call again,
    until it returns none.
    """
    ours = os.getsid(0)
    shared = {_group(other) for other in spare}
    tried: set[int] = set()
    sent: list[int] = []
    for _ in range(_ROUNDS if sig == signal.SIGKILL else 1):
        fresh = [p for p in _tree(pid, spare) if not p.zombie and p.pid not in tried]
        if not fresh:
            break
        for process in fresh:
            tried.add(process.pid)
            if not _send(process, sig):
                continue
            sent.append(process.pid)
            # Another session than ours was made below us: all in it, so in the group, is below us.
            if sig == signal.SIGKILL and process.session != ours and process.group not in shared:
                _send_group(process.group)
    return sent


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _send_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # each of its members gets its own


def _send(process: _Process, sig: int) -> bool:
    """Signal exactly this process. False if it is gone or is not ours to signal."""
    pidfd = None
    try:
        pidfd = _open_pidfd(process.pid)
        now = _look(process.pid) if _LINUX else process
        if now is None or now.start != process.start:
            return False
        if pidfd is None:
            os.kill(process.pid, sig)
        else:
            signal.pidfd_send_signal(pidfd, sig)
    except (ProcessLookupError, PermissionError):
        return False
    else:
        return True
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _open_pidfd(pid: int) -> int | None:
    """Return a pidfd; None where there are none. Raises ProcessLookupError if no such process."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError as error:
        # Linux before 5.3 has none, and the filters of old sandboxes refuse what they do not know.
        if error.errno in {errno.ENOSYS, errno.EPERM}:
            return None
        raise


def reap_orphans(known: Collection[int]) -> list[int]:
    """Reap the zombies among our children that are not in `known`; return their ids.

    `known` must hold every child of this process that is awaited elsewhere: its status is needed.
    Each is waited for by its own id, never "any child", so that no status can be stolen.
    """
    reaped = []
    for process in _look_at_children(os.getpid()):
        if process.zombie and process.pid not in known:
            try:
                pid, _ = os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                continue  # it was reaped meanwhile
            if pid:
                reaped.append(pid)
    return reaped


async def exited(pid: int) -> None:
    """Wait until the process has exited, without reaping it; return immediately if there is none.

    `pid` must be a child, or the caller must know that its id is not reused meanwhile.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    try:
        pidfd = _open_pidfd(pid)
    except ProcessLookupError:
        return
    if pidfd is None:
        await loop.run_in_executor(None, _wait, pid)
        return
    done = asyncio.Event()
    loop.add_reader(pidfd, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _wait(pid: int) -> None:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return  # not our child, or reaped by others: nothing that we could await


async def kill_orphans(known: Callable[[], Collection[int]], timeout: float = 5.0) -> list[int]:
    """SIGKILL, await and reap all children but `known()`, with all that is below them.

    For a subreaper whose own children are `known()` (called again in each round, since others may
    start children meanwhile): on return nothing else is left below it. Returns the ids of children
    that are left after `timeout` seconds all the same: of another user, or stuck in the kernel.
    """
    import asyncio

    end = time.monotonic() + timeout
    while True:
        kill_descendants(os.getpid(), spare=known())
        reap_orphans(known())
        left = [pid for pid in children(os.getpid()) if pid not in known()]
        remaining = end - time.monotonic()
        if not left or remaining <= 0:
            return left
        waits = [asyncio.ensure_future(exited(pid)) for pid in left]
        try:
            await asyncio.wait(waits, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
