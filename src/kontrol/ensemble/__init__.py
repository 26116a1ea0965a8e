"""The ensemble as values: pods, their order, digest and difference; damper and brake.

Pure: nothing here does I/O, reads a clock or uses an event loop. Time is an argument.
"""
