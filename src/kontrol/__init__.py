"""Kontrol: a control loop for an ensemble of pods, programmed by a shell script."""
