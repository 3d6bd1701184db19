"""Benchmarks of language models, run by lm-eval (EleutherAI's lm-evaluation-harness) with the adapter in place."""
