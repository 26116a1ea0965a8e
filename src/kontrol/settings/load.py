"""Settings of the running process: the checks and facts that need the system.

On a plain host the pod's name is the host's, and its address is the one from which packets leave:
that of a connected UDP socket, which sends nothing.
"""

import contextlib
import logging
import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kontrol.settings import variables as v
from kontrol.settings.parse import Settings, assemble, check
from kontrol.settings.private import exposed
from kontrol.settings.resolve import NOTHING, Booted, Resolved
from kontrol.settings.variables import Variable

_INTERPRETER = re.compile(r"(ba|da|k|z)?sh\Z|(python|perl|ruby|node)[0-9.]*\Z")
_PLAIN = re.compile(r"[0-9A-Za-z_./][0-9A-Za-z_./+@=-]*\Z")  # no option, and nothing for a shell

# Addresses for documentation (RFC 5737, RFC 3849): any beyond the link has the default route.
_BEYOND = ("192.0.2.1", "2001:db8::1")


def load(environ: Mapping[str, str], found: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of this process.

    `found` are facts by name of variable, from Kubernetes or a cloud; what they lack is found on
    this host. Raises `SettingsError` with every mistake, files that cannot be read included.
    """
    return assemble(examine(environ, found))


def examine(
    environ: Mapping[str, str],
    found: Mapping[str, str] | None = None,
    booted: Booted = NOTHING,
) -> Resolved:
    """Do as `load`, but return values, sources and mistakes together.

    `booted` is what a boot left for commands; the daemon has it in its environment.
    """
    resolved = check(environ, {**host_facts(environ), **(found or {})}, booted)
    for variable in v.VARIABLES:
        path = resolved.get(variable)
        if variable.path and isinstance(path, Path):
            problem = _problem(path, folder=variable.path == "folder")
            if problem:
                resolved.refuse(variable, f"a {variable.path} that can be read: {problem}")
            elif variable.secrecy and (warning := exposed(path)) is not None:
                resolved.notes.append((logging.WARNING, f"{variable.name}: {warning}"))
    mode = resolved.get(v.MODE) or ()
    if "master" in mode and resolved.get(v.CALLBACK) is not None and resolved.argv:
        argv, shell = resolved.argv, bool(resolved.get(v.SHELL_CALLBACK))
        why = _program_problem(argv[-1:] if shell else argv, environ, shell=shell)
        _note_program(resolved, v.CALLBACK, why)
    for hook in (v.ON_SILENT, v.ON_HEARD, v.ON_PUBLISHED):
        if "agent" in mode and (words := resolved.get(hook)):
            _note_program(resolved, hook, _program_problem(words, environ, shell=False))
    return resolved


def _note_program(resolved: Resolved, variable: Variable[Any], why: str) -> None:
    """Warn of a command that cannot be started now; it may be installed later."""
    if why:
        resolved.notes.append(
            (logging.WARNING, f"{variable.name}: {why}; runs fail until this is fixed")
        )


def _program_problem(argv: tuple[str, ...], environ: Mapping[str, str], *, shell: bool) -> str:
    """Describe why a command cannot be started now; empty if no reason is seen.

    Of a line for a shell, only a plain path at its beginning is checked.
    """
    program, *others = argv[0].split() if shell else argv
    if shell and not ("/" in program and _PLAIN.match(program)):
        return ""
    path, script = Path(program), Path(others[0]) if others else None
    if _executable(program, environ.get("PATH", os.defpath)):
        interprets = not shell and script and _INTERPRETER.match(path.name)
        missing = interprets and _PLAIN.match(others[0]) and not (script and script.exists())
        return f"there is no file {script}, from {Path.cwd()}" if missing else ""
    if "/" not in program:
        return f"there is no program {program!r} in the PATH"
    if not path.exists():
        return f"there is no file {program}"
    return f"{program} is a folder" if path.is_dir() else f"{program} is not executable (chmod +x)"


def _executable(program: str, folders: str) -> bool:
    """Return whether a program is found, as execvp(3) does; `shutil` has three compressions."""
    paths = (
        [program] if "/" in program else [f"{each or '.'}/{program}" for each in folders.split(":")]
    )
    return any(Path(path).is_file() and os.access(path, os.X_OK) for path in paths)


def host_facts(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the pod's name and address by this host, without those that cannot be found."""
    facts = {v.ID.name: socket.gethostname()}
    bind, node = (environ.get(variable.name, "").strip() for variable in (v.BIND, v.HOST))
    for target in (bind, node, *_BEYOND):
        with contextlib.suppress(OSError, ValueError):
            facts[v.IP.name] = _source_address(target)
            break
    return facts


def _source_address(target: str) -> str:
    """Return the address from which packets to an address leave. Raises `OSError`, `ValueError`."""
    target = v.IP.parse(target)  # refuses names: none is looked up here
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))  # the discard port; nothing is sent
        return str(probe.getsockname()[0])


def _problem(path: Path, *, folder: bool) -> str:
    """Describe why a path is not what it should be, empty if it is."""
    try:
        found = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if found != folder:
        return "it is a file" if folder else "it is a folder"
    needed = os.R_OK | os.X_OK if folder else os.R_OK
    return "" if os.access(path, needed) else "permission denied"
