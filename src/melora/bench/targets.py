"""What each suite's rows should reach, and whether a row does."""

from collections.abc import Callable, Mapping, Sequence

Row = Mapping[str, str]

TARGETS = {
    "layer": "added time at most a third of PEFT LoRA's of equal rank; at most 0.06 where d >= 2048 without dropout",
    "compile": "one graph without breaks (else the suite fails), and no slower than the same layer run eagerly",
    "model": "faster than PEFT's LoRA of equal rank, GraLoRA and BD-LoRA of about equal parameters",
    "decode": "less added time than PEFT's LoRA of equal rank",
    "multi": "nearly flat in the number of adapters: at most 1.5 times the time of one",
    "memory": (
        "kept for the adapter: n*r numbers of 4 bytes a token, and with dropout one bit an element of x; no temporary "
        "of x's size more than the base; of files: peak under 1.5 times "
        "the file (an export's is the LoRA's), at most twice a plain write or read"
    ),
    "scaling": "flat in n: at most 1.1 times the time at the smallest n; linear in layers and tokens",
}
FLAT_ADAPTERS, FLAT_N = 1.5, 1.1
BOUNDED_BY_DISK, FILE_PEAK = 2.0, 1.5
ADDED, SHARE_OF_LORA, WIDE = 0.06, 1 / 3, 2048


def verdict(row: Row, group: Sequence[Row]) -> str:
    """ "pass", or "miss", and the figure that decided; "" for rows that no target is about.

    Args:
        row: of read_rows.
        group: the rows that it was measured beside, itself among them.
    """
    if row["contestant"] != "melora" or row["setting"] == "merged":
        return ""
    found = _RULES[row["suite"]](row, group)
    if not found:
        return ""
    return ("pass" if all(ok for ok, _ in found) else "miss") + ": " + ", ".join(text for _, text in found)


Finding = tuple[bool, str]


def _added(row: Row) -> float:
    return float(row["ratio_p50"]) - 1


def _time(row: Row) -> float:
    return float(row["ms_p50"])


def _beside(row: Row, group: Sequence[Row], contestant: str, **same: str) -> list[Row]:
    return [r for r in group if r["contestant"] == contestant and all(r[name] == value for name, value in same.items())]


def _layer(row: Row, group: Sequence[Row]) -> list[Finding]:
    found = []
    for lora in _beside(row, group, "lora", rank=row["rank"]):
        if _added(lora) <= 0:
            found.append((False, "LoRA adds nothing that can be told from noise"))
        else:
            share = _added(row) / _added(lora)
            found.append((share <= SHARE_OF_LORA, f"{share:.2f} of LoRA's"))
    if min(int(row["d_in"]), int(row["d_out"])) >= WIDE and not float(row["dropout"]):
        found.append((_added(row) <= ADDED, f"adds {_added(row):.3f}"))
    return found


def _compile(row: Row, group: Sequence[Row]) -> list[Finding]:
    if row["setting"] != "compiled":
        return []
    eager = _beside(row, group, "melora", n=row["n"], r=row["r"], setting="")
    return [(_time(row) <= _time(one), f"{_time(row) / _time(one):.3f} of eager") for one in eager]


def _model(row: Row, group: Sequence[Row]) -> list[Finding]:
    rivals = _beside(row, group, "lora", rank=row["rank"])
    for method in ("gralora", "bdlora"):
        own = int(row["parameters"])
        rivals += sorted(_beside(row, group, method), key=lambda r: abs(int(r["parameters"]) - own))[:1]
    return [(_time(row) < _time(r), f"{_time(row) / _time(r):.3f} of {r['contestant']}") for r in rivals]


def _decode(row: Row, group: Sequence[Row]) -> list[Finding]:
    rivals = _beside(row, group, "lora", rank=row["rank"])
    return [(_added(row) < _added(r), f"adds {_added(row):.3f}, LoRA {_added(r):.3f}") for r in rivals]


def _multi(row: Row, group: Sequence[Row]) -> list[Finding]:
    one = min(_beside(row, group, "melora", n=row["n"], r=row["r"]), key=lambda r: int(r["adapters"]))
    found = [] if one is row else [(_time(row) <= FLAT_ADAPTERS * _time(one), f"{_time(row) / _time(one):.2f} of one")]
    for lora in _beside(row, group, "lora", rank=row["rank"], adapters=row["adapters"]):
        found.append((True, f"{_time(row) / _time(lora):.3f} of PEFT LoRA's loop"))
    return found


def _memory(row: Row, group: Sequence[Row]) -> list[Finding]:
    if row["case"].startswith("adapter file"):
        peak = int(row["peak_bytes"]) / int(row["saved_bytes"])
        slower = float(row["ratio_p50"])
        return [
            (peak < FILE_PEAK, f"peak {peak:.2f} of the file"),
            (slower <= BOUNDED_BY_DISK, f"{slower:.2f} of plain"),
        ]
    tokens, d_in = int(row["tokens"]), int(row["d_in"])
    numbers = 4 * tokens * int(row["rank"]) + (-(-tokens * d_in // 8) if float(row["dropout"]) else 0)
    kept = int(row["saved_bytes"])
    found = [(kept <= numbers, f"keeps {kept:,} of {numbers:,} bytes")]
    size = {"bfloat16": 2, "float16": 2, "float64": 8}.get(row["dtype"], 4) * tokens * d_in
    for base in _beside(row, group, "base"):
        more = int(row["peak_bytes"]) - int(base["peak_bytes"])
        found.append((more < size, f"peak {more / size:+.2f} of x"))
    return found


def _scaling(row: Row, group: Sequence[Row]) -> list[Finding]:
    if row["case"] != "n":
        return []
    least = min(_beside(row, group, "melora"), key=lambda r: int(r["n"]))
    if least is row:
        return []
    return [(_time(row) <= FLAT_N * _time(least), f"{_time(row) / _time(least):.3f} of n = {least['n']}")]


_RULES: dict[str, Callable[[Row, Sequence[Row]], list[Finding]]] = {
    "layer": _layer,
    "compile": _compile,
    "model": _model,
    "decode": _decode,
    "multi": _multi,
    "memory": _memory,
    "scaling": _scaling,
}
