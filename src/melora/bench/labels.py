"""A row of a result file by name: its group's title, its contestant's label; as on the terminal when it was made."""

from collections.abc import Mapping

from .peers import Peer
from .row import Facts


def title(row: Mapping[str, str]) -> str:
    """The group's title, with suite and case."""
    return Facts(
        suite=row["suite"],
        case=row["case"],
        d_in=int(row["d_in"]),
        d_out=int(row["d_out"]),
        tokens=int(row["tokens"]),
        batch=int(row["batch"]),
        layers=int(row["layers"]),
        dtype=row["dtype"],
        dropout=float(row["dropout"]),
    ).title


def label(row: Mapping[str, str]) -> str:
    """The contestant's label."""
    peer = Peer(row["contestant"], int(row["n"]), int(row["r"]), int(row["rank"]), row["setting"])
    adapters = int(row["adapters"])
    return peer.label + (f", {adapters} adapters" if adapters > 1 else "")
