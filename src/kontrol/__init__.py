"""Kontrol: a control loop for an ensemble of pods, programmed by a shell script."""

__version__ = "1.0.0.dev0"
