from matplotlib.figure import Figure

from melora.bench.plots import _lines
from melora.bench.store import HEADER


def row(contestant: str, label: str, rank: int, tokens: int) -> dict[str, str]:
    values = {"contestant": contestant, "label": label, "rank": rank, "r": 1, "tokens": tokens, "ms_p50": tokens}
    return {**dict.fromkeys(HEADER, ""), **{name: str(value) for name, value in values.items()}}


def test_loras_of_two_ranks_are_two_lines_over_tokens() -> None:
    contestants = (("base", "base", 0), ("melora", "MELoRA 8x1", 8), ("lora", "r=1", 1), ("lora", "r=8", 8))
    axis = Figure().subplots()
    _lines(axis, [row(*one, tokens) for tokens in (512, 1024) for one in contestants], "tokens")
    lines = {str(line.get_label()): list(line.get_xdata()) for line in axis.get_lines()}
    assert lines == {label: [512, 1024] for _, label, _ in contestants}
