"""Whether a file that holds a secret is its owner's alone."""

import os
from pathlib import Path


def exposed(path: Path) -> str | None:
    """Say that a file of a secret can be read by more than its owner; None if it cannot.

    Also None for a file that is not there: that is said elsewhere.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    mode = found.st_mode & 0o777
    # A file of another owner's is ours by its group alone: in Kubernetes, the fsGroup.
    if not mode & (0o077 if found.st_uid == os.geteuid() else 0o007):
        return None
    return (
        f"{path} can be read by more than its owner (mode {mode:03o}): expected 600, or in"
        " Kubernetes `defaultMode: 0440` with an fsGroup"
    )
