"""Loads a manifest from its file: YAML, or Python if its name ends in `.py`."""

from pathlib import Path

from automaton.manifest import Manifest, ManifestError, Problem
from automaton.validate import validate


def load(path: Path) -> tuple[Manifest, list[Problem]]:
    """Return the manifest and its warnings. Raises `ManifestError`."""
    # Each reader is imported on use: a machine needs only one.
    if path.suffix == ".py":
        from automaton import pyfile

        _content(path)
        root, argv, probes = pyfile.read(path)
        return validate(str(path), root, argv, probes)
    from automaton import yamlfile

    return validate(str(path), yamlfile.read(str(path), _content(path)))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{error.strerror}; name a readable manifest"
        raise ManifestError(str(path), [Problem(1, 1, message)]) from error
