"""The peers: methods that MELoRA is measured beside, and what of each is made equal to what of MELoRA."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from peft import BdLoraConfig, GraloraConfig, LoraConfig, MissConfig, PeftConfig, VeraConfig

from ..config import MeloraConfig
from ..errors import MeloraError


@dataclass(frozen=True)
class Peer:
    """A method and its size.

    Attributes:
        method: a key of METHODS.
        n, r, rank: blocks and rank of one, as the method counts them, and the rank of the whole update.
        setting: what was made equal, or how the contestant is run ("merged").
    """

    method: str
    n: int = 0
    r: int = 0
    rank: int = 0
    setting: str = ""

    @property
    def label(self) -> str:
        size = f" {self.n}x{self.r}" if self.n > 1 else f" r={self.r}" if self.r else ""
        return METHODS[self.method] + size + (f", {self.setting}" if self.setting else "")

    def config(self, dropout: float, targets: list[str]) -> PeftConfig:
        """PEFT's config of a method of PEFT's. It starts at an update of 0; `attach.start` gives it one."""
        make: dict[str, Callable[[], Any]] = {
            "melora": lambda: MeloraConfig(r=self.r, n=self.n, lora_dropout=dropout),
            "learned": lambda: MeloraConfig(r=self.r, n=self.n, lora_dropout=dropout, mixing="learned"),
            "shuffle": lambda: MeloraConfig(r=self.r, n=self.n, lora_dropout=dropout, mixing="shuffle"),
            "lora": lambda: LoraConfig(r=self.r, lora_dropout=dropout),
            "gralora": lambda: GraloraConfig(r=self.r, gralora_k=self.n, gralora_dropout=dropout, alpha=self.r),
            "bdlora": lambda: LoraConfig(
                r=self.r,
                lora_dropout=dropout,
                use_bdlora=BdLoraConfig(target_modules_bd_b=targets, nblocks=self.n),
            ),
            "vera": lambda: VeraConfig(r=self.r, vera_dropout=dropout),
            "miss": lambda: MissConfig(r=self.r, miss_dropout=dropout),
        }
        config: PeftConfig = make[self.method]()
        config.target_modules = list(targets)
        return config


BASE = Peer("base")
METHODS = {
    "base": "frozen base",
    "plain": "plain write or read",
    "melora": "MELoRA",
    "learned": "MELoRA, learned mixing",
    "shuffle": "MELoRA, shuffle",
    "lora": "PEFT LoRA",
    "gralora": "PEFT GraLoRA",
    "bdlora": "PEFT BD-LoRA",
    "vera": "PEFT VeRA",
    "miss": "PEFT MiSS",
    "loop": "loop over minis",
    "einsum": "einsum",
    "dense": "dense blocks",
}
# What --peers takes, and what it stands for beside a MELoRA of n minis of rank r.
PEERS = {
    "lora": "PEFT's LoRA of rank n*r",
    "lora-r": "PEFT's LoRA of rank r: equal parameters",
    "learned": "MELoRA with mixing='learned': r n^2 parameters more",
    "shuffle": "MELoRA with mixing='shuffle', n = gcd(n, r) blocks",
    "gralora": "PEFT's GraLoRA of equal parameters, k = gcd(n, r) blocks",
    "bdlora": "PEFT's BD-LoRA, block-diagonal B, of the nearest number of parameters",
    "vera": "PEFT's VeRA of rank n*r",
    "miss": "PEFT's MiSS of the nearest number of parameters",
    "loop": "the paper's loop: chunk, 2n small linears, concatenate",
    "einsum": "two einsums",
    "dense": "n trained diagonal blocks without low rank",
}


def choose(names: Iterable[str], pairs: Iterable[tuple[int, int]], d_in: int, d_out: int) -> tuple[Peer, ...]:
    """The base, then each MELoRA (n, r), then its peers by name, each once however many MELoRAs it stands beside.

    Args:
        d_in, d_out: the width for which parameters are made equal.

    Raises:
        MeloraError: an unknown name.
    """
    pairs, names = list(pairs), list(names)
    for name in names:
        if name not in PEERS:
            raise MeloraError(f"--peers {name} is not known: choose from {', '.join(PEERS)}")
    found = [BASE, *(Peer("melora", n, r, n * r) for n, r in pairs)]
    for name in names:
        found += [_peer(name, n, r, d_in, d_out) for n, r in pairs]
    unique: dict[tuple[str, int, int], Peer] = {}
    for peer in found:
        unique.setdefault((peer.method, peer.n, peer.r), peer)
    return tuple(unique.values())


def _peer(name: str, n: int, r: int, d_in: int, d_out: int) -> Peer:
    if name in ("lora", "lora-r"):
        rank = n * r if name == "lora" else r
        return Peer("lora", 1, rank, rank)
    if name == "shuffle":
        return Peer("shuffle", math.gcd(n, r), r, math.gcd(n, r) * r, "equal parameters")
    if name == "gralora":
        return Peer("gralora", math.gcd(n, r), r, r, "equal parameters")
    if name == "bdlora":
        blocks, rank = _bdlora(n, r, d_in, d_out)
        return Peer("bdlora", blocks, rank, rank, "nearest parameters")
    if name == "vera":
        return Peer("vera", 1, n * r, n * r, "equal rank")
    if name == "miss":
        rank = max(1, min(round(r * (d_in + d_out) / d_out), d_in))
        return Peer("miss", 1, rank, rank, "nearest parameters")
    if name == "dense":
        return Peer("dense", n, min(d_in, d_out) // n, min(d_in, d_out), "full rank")
    return Peer(name, n, r, n * r)


def _bdlora(n: int, r: int, d_in: int, d_out: int) -> tuple[int, int]:
    """(blocks, rank) whose R d_in + R d_out / blocks is nearest to r (d_in + d_out); blocks divide R and n."""
    wanted = r * (d_in + d_out)
    options = []
    for blocks in (b for b in range(2 if n > 1 else 1, n + 1) if n % b == 0):
        of_one = blocks * d_in + d_out  # parameters of R = blocks
        multiple = max(1, round(wanted / of_one))
        options.append((abs(multiple * of_one - wanted), blocks, multiple * blocks))
    _, blocks, rank = min(options)
    return blocks, rank
