import pytest
import torch
from torch import nn

from melora.bench.attach import Stack, attach
from melora.bench.peers import BASE, METHODS, PEERS, Peer, choose
from melora.errors import MeloraError

D_IN, D_OUT = 32, 64


def stack() -> Stack:
    return Stack([nn.Linear(D_IN, D_OUT)])


def test_peers_stand_once_beside_several_meloras() -> None:
    labels = [peer.label for peer in choose(["lora-r", "lora"], [(8, 1), (1, 8), (4, 1)], D_IN, D_OUT)]
    assert labels == [
        "frozen base",
        "MELoRA 8x1",
        "MELoRA r=8",
        "MELoRA 4x1",
        "PEFT LoRA r=1",
        "PEFT LoRA r=8",
        "PEFT LoRA r=4",
    ]


def test_an_unknown_peer_is_named() -> None:
    with pytest.raises(MeloraError, match="--peers dora is not known: choose from lora, lora-r"):
        choose(["dora"], [(4, 2)], D_IN, D_OUT)


@pytest.mark.parametrize("peer", choose(PEERS, [(4, 2)], D_IN, D_OUT)[1:], ids=lambda peer: peer.label)
def test_every_peer_trains_on_one_frozen_weight(peer: Peer) -> None:
    base = stack()
    contestant = attach(peer, base, 0.0, ["proj"])
    x = torch.randn(8, D_IN, requires_grad=True)
    y = contestant.module(x)
    assert not torch.equal(y, base(x))  # B is random: no gradient is a product of zeros
    gradients = torch.autograd.grad(y.square().sum(), [x, *contestant.trainable])
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)
    frozen = [p for p in contestant.module.parameters() if p.shape == (D_OUT, D_IN) and not p.requires_grad]
    assert any(weight is base.layers[0]["proj"].weight for weight in frozen)


@pytest.mark.parametrize("peer", choose(PEERS, [(8, 1)], 64, 64)[1:], ids=lambda peer: peer.label)
def test_an_update_is_small_beside_the_base(peer: Peer) -> None:
    """As in training. A large one saturates what follows, whose time is then the numbers', not the method's."""
    base = Stack([nn.Linear(64, 64)])
    x = torch.randn(256, 64)
    with torch.no_grad():
        y, of_base = attach(peer, base, 0.0, ["proj"]).module(x), base(x)
    assert 0.0 < (y - of_base).std() < 0.5 * of_base.std()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lora", 4 * 2 * (D_IN + D_OUT)),
        ("lora-r", 2 * (D_IN + D_OUT)),
        ("gralora", 2 * (D_IN + D_OUT)),
        ("loop", 2 * (D_IN + D_OUT)),
        ("einsum", 2 * (D_IN + D_OUT)),
        ("dense", D_IN * D_OUT // 4),
        ("bdlora", 4 * D_IN + 4 * D_OUT // 4),  # 4 blocks of rank 4: exactly as many as 2 * (D_IN + D_OUT)
    ],
)
def test_settings_are_what_they_say(name: str, parameters: int) -> None:
    peer = choose([name], [(4, 2)], D_IN, D_OUT)[-1]
    assert attach(peer, stack(), 0.0, ["proj"]).parameters == parameters


def test_three_ways_to_compute_the_layer_agree() -> None:
    base, x = stack(), torch.randn(8, D_IN)
    loop, einsum = (attach(Peer(name, 4, 2, 8), base, 0.0, ["proj"]).module for name in ("loop", "einsum"))
    A = torch.stack([linear.weight for linear in loop.layers[0]["proj"].A])
    B = torch.stack([linear.weight for linear in loop.layers[0]["proj"].B])
    own = einsum.layers[0]["proj"]
    own.A.data.copy_(A)
    own.B.data.copy_(B)
    torch.testing.assert_close(einsum(x), loop(x))
    dense = attach(Peer("dense", 4, 8, 32), base, 0.0, ["proj"]).module
    dense.layers[0]["proj"].blocks.data.copy_((B @ A).transpose(1, 2) * 8)
    torch.testing.assert_close(dense(x), loop(x))


def test_a_merged_contestant_has_weights_of_its_own() -> None:
    base = stack()
    before = base.layers[0]["proj"].weight.clone()
    attach(Peer("melora", 4, 2, 8, "merged"), base, 0.0, ["proj"])
    assert torch.equal(base.layers[0]["proj"].weight, before)
    assert attach(BASE, base, 0.0, ["proj"]).module is base
    assert set(METHODS) >= {peer.method for peer in choose(PEERS, [(4, 2)], D_IN, D_OUT)}
