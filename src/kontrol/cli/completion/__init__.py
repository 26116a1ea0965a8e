"""Completion for shells, made from the parser."""
