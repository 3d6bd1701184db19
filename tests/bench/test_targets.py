import pytest

from melora.bench.markdown import report
from melora.bench.store import HEADER
from melora.bench.suites import SUITES
from melora.bench.targets import TARGETS, verdict

BLANK = dict.fromkeys(HEADER, "")


def row(contestant: str, **values: object) -> dict[str, str]:
    common = {"suite": "layer", "contestant": contestant, "d_in": 2048, "d_out": 2048, "dropout": 0.0, "tokens": 8,
              "dtype": "float32", "rank": 8, "n": 8, "r": 1, "adapters": 1, "load": 0.1, "label": contestant,
              "title": "layer", "parameters": 64}  # fmt: skip
    return {**BLANK, **{name: str(value) for name, value in {**common, **values}.items()}}


def test_every_suite_has_a_target_and_a_rule() -> None:
    assert set(TARGETS) == set(SUITES)


@pytest.mark.parametrize(
    ("added", "lora", "wanted"),
    [
        (0.05, 0.16, "pass: 0.31 of LoRA's, adds 0.050"),
        (0.07, 0.30, "miss: 0.23 of LoRA's, adds 0.070"),
        (0.05, 0.10, "miss: 0.50 of LoRA's, adds 0.050"),
        (0.05, -0.01, "miss: LoRA adds nothing that can be told from noise, adds 0.050"),
    ],
)
def test_a_layer_adds_a_third_of_lora_and_little_to_the_base(added: float, lora: float, wanted: str) -> None:
    own = row("melora", ratio_p50=1 + added)
    other = row("lora", rank=64, ratio_p50=9)  # of another rank: not the one to beat
    group = [row("base"), own, row("lora", ratio_p50=1 + lora), other]
    assert verdict(own, group) == wanted
    assert verdict(other, group) == ""


def test_the_bound_on_the_base_is_for_wide_layers_without_dropout() -> None:
    for values in ({"d_in": 768}, {"dropout": 0.05}):
        own = row("melora", ratio_p50=1.08, **values)
        assert verdict(own, [own, row("lora", ratio_p50=1.3)]) == "pass: 0.27 of LoRA's"


def test_a_model_is_faster_than_all_three() -> None:
    own = row("melora", suite="model", ms_p50=9)
    rivals = [row("lora", ms_p50=10), row("gralora", ms_p50=12), row("bdlora", ms_p50=8)]
    assert verdict(own, [own, *rivals]) == "miss: 0.900 of lora, 0.750 of gralora, 1.125 of bdlora"
    assert verdict(own, [own, *rivals[:2]]).startswith("pass")


def test_a_compiled_layer_is_compared_with_itself() -> None:
    eager = row("melora", suite="compile", ms_p50=10)
    compiled = row("melora", suite="compile", ms_p50=11, setting="compiled")
    assert verdict(compiled, [eager, compiled]) == "miss: 1.100 of eager"
    assert verdict(eager, [eager, compiled]) == ""


def test_decoding_adds_less_than_lora() -> None:
    own = row("melora", suite="decode", ratio_p50=1.2)
    assert verdict(own, [own, row("lora", ratio_p50=1.3)]) == "pass: adds 0.200, LoRA 0.300"
    assert verdict({**own, "setting": "merged"}, [own]) == ""


def test_mixed_batches_are_nearly_flat() -> None:
    one, many = (row("melora", suite="multi", ms_p50=ms, adapters=k) for ms, k in ((1.0, 1), (1.6, 64)))
    lora = row("lora", ms_p50=8.0, adapters=64)
    assert verdict(many, [one, many, lora]) == "miss: 1.60 of one, 0.200 of PEFT LoRA's loop"


def test_memory_is_counted_to_the_byte() -> None:
    base = row("base", peak_bytes=100_000)
    own = row("melora", suite="memory", saved_bytes=4 * 8 * 8 + 2048, peak_bytes=110_000, dropout=0.1)
    assert verdict(own, [base, own]) == "pass: keeps 2,304 of 2,304 bytes, peak +0.15 of x"
    assert verdict({**own, "saved_bytes": "2305"}, [base, own]).startswith("miss")
    assert verdict({**own, "peak_bytes": "170000"}, [base, own]).startswith("miss")
    file = row("melora", suite="memory", case="adapter file, save", ratio_p50=1.5, peak_bytes=400, saved_bytes=256)
    assert verdict(file, [file]) == "miss: peak 1.56 of the file, 1.50 of plain"


def test_cost_is_flat_in_n() -> None:
    rows = [row("melora", suite="scaling", case="n", n=n, ms_p50=ms) for n, ms in ((1, 10.0), (64, 10.5))]
    assert [verdict(one, rows) for one in rows] == ["", "pass: 1.050 of n = 1"]


def test_a_report_counts_what_reaches_the_target() -> None:
    own = row("melora", ratio_p50=1.05, repetitions=20)
    text = report([row("base", repetitions=20), own, row("lora", ratio_p50=1.3, repetitions=20)])
    assert "| melora | 64 | 1.050 | pass: 0.17 of LoRA's, adds 0.050 |" in text
    assert "1 of 1 rows reach the target." in text
