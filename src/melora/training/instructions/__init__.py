"""Instruction tuning of causal language models: rows, prompt formats, token ids, trainer and answers."""
