"""The small model of tests/training."""

import runpy
from pathlib import Path

tiny_model = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))["tiny_model"]
