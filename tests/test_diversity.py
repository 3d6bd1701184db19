import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, inspect_adapter
from melora.diversity import linear_cka, mean_over_pairs, mean_overlap, subspace_overlap


def overlaps_by_loops(spans: torch.Tensor) -> list[float]:
    """scipy's principal angles of every pair of minis, mean of the squared cosines."""
    found = []
    for stack in spans.double().numpy():
        for i in range(len(stack)):
            for j in range(i + 1, len(stack)):
                first, second = scipy.linalg.orth(stack[i].T), scipy.linalg.orth(stack[j].T)
                found.append(float(np.mean(np.cos(scipy.linalg.subspace_angles(first, second)) ** 2)))
    return found


@given(
    stacks=st.integers(1, 2),
    n=st.integers(2, 4),
    k=st.integers(1, 7),
    width=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_overlap_is_that_of_the_principal_angles(stacks: int, n: int, k: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    spans = torch.randn(stacks, n, k, width, dtype=torch.float64)
    found, expected = subspace_overlap(spans), overlaps_by_loops(spans)
    assert found is not None
    assert found.pairs == len(expected)
    assert found.mean == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    assert found.largest == pytest.approx(max(expected), abs=1e-9)
    if k >= width:  # each mini fills its slice
        assert (found.mean, found.chance, found.chance_deviation) == pytest.approx((1.0, 1.0, 0.0))


@given(seed=st.integers(0, 99), r=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_overlap_knows_spaces_and_not_their_bases(seed: int, r: int) -> None:
    torch.manual_seed(seed)
    spans = torch.randn(1, 3, r, 8, dtype=torch.float64)
    mixed = torch.randn(1, 3, r, r, dtype=torch.float64) @ spans * 1e-3
    turned = spans @ torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    found = subspace_overlap(spans)
    assert found is not None
    for other in (subspace_overlap(mixed), subspace_overlap(turned)):
        assert other is not None
        assert other.mean == pytest.approx(found.mean, abs=1e-8)


def test_equal_and_orthogonal_spaces() -> None:
    eye = torch.eye(8)
    equal = subspace_overlap(torch.stack([eye[:2], 3 * eye[:2].flip(0)])[None])
    apart = subspace_overlap(torch.stack([eye[:2], eye[2:4]])[None])
    nested = subspace_overlap(torch.stack([torch.cat([eye[:1], eye[:1]]), eye[:2]])[None])  # ranks 1 and 2
    assert equal is not None
    assert apart is not None
    assert nested is not None
    assert (equal.mean, apart.mean, nested.mean) == pytest.approx((1.0, 0.0, 1.0))
    assert (equal.chance, nested.chance) == (2 / 8, 2 / 8)


@pytest.mark.parametrize(("p", "q", "width"), [(1, 1, 4), (2, 2, 6), (1, 3, 5), (4, 4, 6), (6, 2, 6)])
def test_chance_and_its_deviation_are_those_of_random_subspaces(p: int, q: int, width: int) -> None:
    torch.manual_seed(0)
    draws = []
    for _ in range(600):
        spans = torch.zeros(1, 2, max(p, q), width, dtype=torch.float64)
        spans[0, 0, :p], spans[0, 1, :q] = torch.randn(p, width), torch.randn(q, width)
        overlap = subspace_overlap(spans)
        assert overlap is not None
        draws.append(overlap.mean)
    assert overlap.chance == pytest.approx(max(p, q) / width)
    assert np.mean(draws) == pytest.approx(overlap.chance, abs=4 * overlap.chance_deviation / math.sqrt(600) + 1e-12)
    assert np.std(draws) == pytest.approx(overlap.chance_deviation, rel=0.15, abs=1e-9)


def test_pairs_of_random_subspaces_are_uncorrelated() -> None:
    """The deviation of a mean over pairs that share minis."""
    torch.manual_seed(0)
    spans = torch.randn(500, 5, 2, 8, dtype=torch.float64)
    overlaps = [subspace_overlap(one[None]) for one in spans]
    means = [overlap.mean for overlap in overlaps if overlap is not None]
    assert overlaps[0] is not None
    assert np.std(means) == pytest.approx(overlaps[0].chance_deviation, rel=0.15)
    together = subspace_overlap(spans)
    joined = mean_overlap(list(overlaps))
    assert together is not None
    assert joined is not None
    assert joined.mean == pytest.approx(together.mean)
    assert joined.chance_deviation == pytest.approx(together.chance_deviation)
    assert (joined.pairs, joined.largest) == (5000, pytest.approx(together.largest))


def test_no_pairs() -> None:
    assert subspace_overlap(torch.randn(1, 1, 2, 8)) is None  # n = 1
    assert subspace_overlap(torch.zeros(1, 4, 2, 8)) is None  # B of an untrained adapter
    one = torch.zeros(1, 4, 2, 8)
    one[0, 2] = 1.0
    assert subspace_overlap(one) is None
    one[0, 3] = 2.0
    overlap = subspace_overlap(one)
    assert overlap is not None
    assert (overlap.pairs, overlap.mean, overlap.chance) == pytest.approx((1, 1.0, 1 / 8))
    assert mean_overlap([None, None]) is None
    assert mean_overlap([None, overlap]) == overlap


def test_a_report_of_an_adapter(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    config = MeloraConfig(r=2, n=6, target_modules=["first", "head"], n_pattern={"head": 1}, init_weights=False)
    model = get_peft_model(make_mlp(), config)
    model.save_pretrained(tmp_path)
    report = inspect_adapter(tmp_path)
    first, head = report.layers
    A, B = model.base_model.model.first.factors("default")
    assert first.row_overlap is not None
    assert first.column_overlap is not None
    assert first.row_overlap.mean == pytest.approx(np.mean(overlaps_by_loops(A.detach()[None])), rel=1e-4)
    assert first.column_overlap.mean == pytest.approx(np.mean(overlaps_by_loops(B.detach().mT[None])), rel=1e-4)
    assert (first.row_overlap.chance, first.column_overlap.chance, first.row_overlap.pairs) == (2 / 4, 2 / 8, 15)
    assert head.row_overlap is head.column_overlap is None  # n = 1: no pairs
    assert report.row_overlap == first.row_overlap
    assert report.to_dict()["layers"][0]["row_overlap"]["pairs"] == 15
    assert report.to_dict()["column_overlap"]["chance"] == 2 / 8


def test_a_fresh_adapter_and_a_lora(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    get_peft_model(make_mlp(), MeloraConfig(n=6, target_modules=["first"])).save_pretrained(tmp_path / "fresh")
    (layer,) = inspect_adapter(tmp_path / "fresh").layers
    assert layer.row_overlap is not None  # A starts random, B at zero
    assert layer.column_overlap is layer.off_diagonal is None
    get_peft_model(make_mlp(), LoraConfig(r=3, target_modules=["first"])).save_pretrained(tmp_path / "lora")
    (layer,) = inspect_adapter(tmp_path / "lora").layers
    assert layer.row_overlap is layer.column_overlap is None


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.conv = nn.Conv1d(12, 24, 3)
        self.grouped = nn.Conv1d(12, 24, 3, groups=4)
        self.attention = nn.MultiheadAttention(12, 2)
        self.experts = nn.Parameter(torch.randn(5, 24, 12))


@pytest.mark.filterwarnings("ignore:.*can't be merged")
def test_every_kind_of_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MeloraConfig(
        r=2,
        n=2,
        target_modules=["table", "conv", "grouped", "attention"],
        target_parameters=["inner.experts"],
        init_weights=False,
    )
    model = nn.ModuleDict({"inner": Layers()})
    get_peft_model(model, config).save_pretrained(tmp_path)
    layers = {layer.name.split(".")[-1]: layer for layer in inspect_adapter(tmp_path).layers}
    expected = {  # chance of rows and of columns, pairs of rows and of columns
        "table": (2 / 20, 2 / 6, 1, 1),
        "conv": (2 / 18, 2 / 12, 1, 1),
        "grouped": (2 / 18, 1 / 6, 1, 2),  # a mini spans two groups, with one of its ranks in each
        "attention": (2 / 6, 2 / 18, 1, 1),
        "out_proj": (2 / 6, 2 / 6, 1, 1),
        "inner": (2 / 6, 2 / 12, 5, 5),  # one pair in each expert
    }
    assert layers.keys() == expected.keys()
    for name, values in expected.items():
        rows, columns = layers[name].row_overlap, layers[name].column_overlap
        assert rows is not None
        assert columns is not None
        assert (rows.chance, columns.chance, rows.pairs, columns.pairs) == pytest.approx(values), name
        assert 0 <= rows.mean <= rows.largest <= 1


def test_a_factor_that_is_not_finite(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = get_peft_model(make_mlp(), MeloraConfig(n=6, target_modules=["first"]))
    with torch.no_grad():
        model.base_model.model.first.factors("default")[1][0, 0, 0] = math.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(MeloraError, match=r"first\.melora_B\.weight holds NaN or infinity"):
        inspect_adapter(tmp_path)


def cka_by_loops(outputs: torch.Tensor) -> list[list[float]]:
    """By the tokens' Gram matrices, centred by H: tr(H K_i H K_j) over the root of both with themselves."""
    T, n, _ = outputs.shape
    H = np.eye(T) - 1 / T
    grams = [H @ (outputs[:, i].double() @ outputs[:, i].double().T).numpy() @ H for i in range(n)]
    return [
        [
            np.trace(K @ L) / math.sqrt(np.trace(K @ K) * np.trace(L @ L)) if K.any() and L.any() else math.nan
            for L in grams
        ]
        for K in grams
    ]


@given(tokens=st.integers(3, 9), n=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_cka_is_that_of_gram_matrices(tokens: int, n: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    outputs = torch.randn(tokens, n, width, dtype=torch.float64) * 10.0 ** (torch.rand(n, 1) * 40 - 20)
    np.testing.assert_allclose(linear_cka(outputs).numpy(), cka_by_loops(outputs), atol=1e-9)


def test_cka_knows_no_rotation_scale_or_offset() -> None:
    torch.manual_seed(0)
    one = torch.randn(50, 6, dtype=torch.float64)
    turned = 1e-12 * one @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q + 3e-12
    cka = linear_cka(torch.stack([one, turned, torch.randn(50, 6), torch.zeros(50, 6)], 1))
    assert cka[0, 1] == pytest.approx(1.0)
    assert cka[0, 2] < 0.5
    assert cka[3].isnan().all()
    assert mean_over_pairs(cka) == pytest.approx(float(cka[0, 1] + cka[0, 2] + cka[1, 2]) / 3)
    assert mean_over_pairs(cka[2:, 2:]) is None


def test_cka_of_scalars_is_the_squared_correlation() -> None:
    torch.manual_seed(0)
    scalars, directions = torch.randn(40, 3, 1, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    expected = np.corrcoef(scalars[..., 0].T.numpy()) ** 2
    np.testing.assert_allclose(linear_cka(scalars * directions).numpy(), expected, atol=1e-12)
