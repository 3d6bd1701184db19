"""diffusers through an exact export: train a MELoRA on a UNet with PEFT, serve it as a plain LoRA.

python examples/diffusers_export.py
"""

import tempfile

import torch
from diffusers import UNet2DConditionModel
from peft import get_peft_model
from safetensors.torch import load_file

from melora import MeloraConfig
from melora.conversion import export_lora


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )


noise, step, prompt = torch.randn(2, 4, 8, 8), torch.tensor([1, 5]), torch.randn(2, 3, 16)
config = MeloraConfig(r=2, n=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
model = get_peft_model(unet(), config)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
for _ in range(3):
    optimizer.zero_grad()
    model(noise, step, prompt).sample.square().mean().backward()
    optimizer.step()

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(f"{folder}/melora")
    export = export_lora(f"{folder}/melora", f"{folder}/lora")
    print(f"exported {export.modules} modules at rank {export.rank}")

    # diffusers wants a UNet's tensors under "unet.", with their alphas: those of an export equal the rank.
    tensors = load_file(f"{folder}/lora/adapter_model.safetensors")
    state = {key.replace("base_model.model.", "unet."): value for key, value in tensors.items()}
    alphas = {key.replace(".lora_A.weight", ".alpha"): export.rank for key in state if ".lora_A." in key}
    served = unet()
    served.load_lora_adapter(state, network_alphas=alphas, prefix="unet", adapter_name="film")
    expected = model(noise, step, prompt).sample
    assert torch.allclose(served(noise, step, prompt).sample, expected, atol=1e-5)
    assert not torch.allclose(unet()(noise, step, prompt).sample, expected, atol=1e-3)
