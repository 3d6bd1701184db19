import torch

from melora.bench.peers import build
from melora.bench.problem import Problem

PROBLEM = Problem(d_in=32, d_out=64, tokens=8, n=4, r=2, dtype="float32", dropout=0.1)


def test_contestants_train_what_their_method_trains() -> None:
    found = [(c.label, c.parameters) for c in build(PROBLEM)]
    assert found == [
        ("frozen base", 0),
        ("PEFT LoRA, rank 2", 2 * 96),
        ("PEFT LoRA, rank 8", 8 * 96),
        ("MELoRA, rank 8", 2 * 96),
    ]


def test_contestants_share_one_frozen_weight_and_differ_in_output() -> None:
    base, *peers = build(PROBLEM)
    weight = base.module.get_parameter("proj.weight")
    x = torch.randn(8, 32)
    for peer in peers:
        shared = peer.module.get_parameter("base_model.model.proj.base_layer.weight")
        assert shared is weight
        assert not shared.requires_grad
        assert peer.module.training
        assert not torch.equal(peer.module(x), base.module(x))  # B is random: no gradient is a product of zeros
        assert sum(parameter.numel() for parameter in peer.trainable) == peer.parameters
