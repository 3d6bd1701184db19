"""The demo: real data and a real model through melora's own commands. Run from the repository root; never installed."""
