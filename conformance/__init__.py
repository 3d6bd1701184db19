"""PEFT's own tests, run on MELoRA: `python -m conformance`.

The tests come with PEFT's source archive and stay in .cache/: nothing of PEFT is copied into this repository. A pytest
plugin (plugin.py) puts MELoRA in LoRA's place, twice:

- mode "melora": every parametrisation that lists config classes keeps LoRA's rows, with MELORA in place of LORA. The
  tests see a method that they do not know, and take the branches for all methods.
- mode "lora-name": `peft.LoraConfig` is MELoRA's config while the tests are imported, so that also the tests that
  construct a LoraConfig themselves meet MELoRA, and the gates that open for LoRA alone (mixed batches, weighted
  adapters) open. Where a test names lora_A or lora_B, it then finds melora_A or melora_B; where it looks for a
  LoraLayer, a MeloraLayer.
"""
