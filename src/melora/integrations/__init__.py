"""Plugins for trainers that take third-party methods; each module imports its trainer, so import it only for that."""
