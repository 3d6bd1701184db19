"""Experiments that docs/ reports: each can be stopped at any moment and goes on where it was."""
