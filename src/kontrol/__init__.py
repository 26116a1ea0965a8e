"""Kontrol: a control loop for an ensemble of pods, programmed by a shell script."""

__all__ = ["__version__"]

try:
    from kontrol._version import __version__
except ModuleNotFoundError:  # a checkout that nothing was built or installed from yet
    __version__ = "0+unknown"
