"""Values of the options: the defaults, and the named sets that --preset and --quick stand for."""

from typing import Any

REPETITIONS = 20

DEFAULTS: dict[str, Any] = {
    "suites": ["layer"],
    "d_in": [768],
    "tokens": [2048],
    "pairs": [(8, 1)],
    "dtypes": ["float32"],
    "dropouts": [0.0],
    "batches": [1, 32],
    "adapters": [1, 8, 64, 512],
    "models": ["minilm", "smollm2"],
    "peers": ["lora-r", "lora"],
    "device": "cpu",
    "repetitions": REPETITIONS,
}

PRESETS: dict[str, dict[str, Any]] = {
    # The grid for which docs/performance.md states targets.
    "targets": {
        "d_in": [768, 2048, 4096],
        "tokens": [512, 2048, 8192],
        "pairs": [(8, 1), (8, 8), (32, 1), (64, 1)],
        "dtypes": ["float32", "bfloat16"],
        "dropouts": [0.0, 0.05],
        "peers": ["lora"],
    },
    # Every suite at sizes that show that it runs, and nothing about speed.
    "quick": {
        "d_in": [128],
        "tokens": [64],
        "adapters": [1, 8],
        "models": ["tiny"],
    },
}
