"""Import of LoRA adapters: optimal against brute force, honest about what is lost, exact where nothing is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.adapter_files import read_adapter
from melora.conversion import export_lora
from melora.from_lora import import_lora, nearest_minis

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)


def save(make_mlp: Callable[..., nn.Module], path: Path, **kwargs: Any) -> Any:
    config = LoraConfig(**{"r": 4, "target_modules": ["first", "head"], "init_lora_weights": False, **kwargs})
    model = get_peft_model(make_mlp(), config).eval()
    model.save_pretrained(path)
    return model


def blocks(matrix: torch.Tensor, n: int) -> list[torch.Tensor]:
    """The diagonal blocks of a dense matrix."""
    rows, columns = matrix.shape[0] // n, matrix.shape[1] // n
    return [matrix[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] for i in range(n)]


def best(block: torch.Tensor, r: int) -> torch.Tensor:
    """The nearest matrix of rank r, by the dense SVD."""
    U, s, Vh = torch.linalg.svd(block, full_matrices=False)
    result: torch.Tensor = U[:, :r] * s[:r] @ Vh[:r]
    return result


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 4),
    r=st.integers(1, 5),
    R=st.integers(1, 6),
    i=st.integers(1, 6),
    o=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_the_nearest_block_diagonal_matrix(n: int, r: int, R: int, i: int, o: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    lora_A = torch.randn(R, n * i, generator=draw, dtype=torch.float64)
    lora_B = torch.randn(n * o, R, generator=draw, dtype=torch.float64)
    A, B, kept = nearest_minis(lora_A, lora_B, 0.7, n, r)
    assert A.shape == (n, r, i)
    assert B.shape == (n, o, r)
    expected = torch.block_diag(*(best(block, r) for block in blocks(0.7 * lora_B @ lora_A, n)))
    torch.testing.assert_close(torch.block_diag(*(B @ A)), expected, rtol=1e-10, atol=1e-10)
    assert kept == pytest.approx(float(expected.square().sum()), rel=1e-10)


def test_no_descent_finds_a_nearer_one() -> None:
    """Brute force: gradient descent over all block-diagonal matrices of that rank ends no lower."""
    torch.manual_seed(0)
    n, r = 2, 1
    lora_A, lora_B = torch.randn(3, 8).double(), torch.randn(6, 3).double()
    target = lora_B @ lora_A
    A, B, _ = nearest_minis(lora_A, lora_B, 1.0, n, r)
    reached = (target - torch.block_diag(*(B @ A))).square().sum()
    for seed in range(5):
        torch.manual_seed(seed)
        A_i, B_i = (torch.randn(size).double().requires_grad_() for size in (A.shape, B.shape))
        optimizer = torch.optim.LBFGS([A_i, B_i], max_iter=500, line_search_fn="strong_wolfe")

        def loss(A_i: torch.Tensor = A_i, B_i: torch.Tensor = B_i) -> torch.Tensor:
            return (target - torch.block_diag(*(B_i @ A_i))).square().sum()

        def closure(optimizer: Any = optimizer, loss: Any = loss) -> torch.Tensor:
            optimizer.zero_grad()
            value: torch.Tensor = loss()
            value.backward()
            return value

        optimizer.step(closure)
        assert loss() >= reached - 1e-9


@pytest.mark.parametrize("kwargs", [{}, {"use_rslora": True, "lora_alpha": 3}, {"n": 3, "n_pattern": {}}])
def test_a_melora_exported_and_imported_again_is_the_same(
    make_mlp: Callable[..., nn.Module], tmp_path: Path, kwargs: dict[str, Any]
) -> None:
    config = MeloraConfig(**{"r": 2, "n": 6, "target_modules": ["first", "head"], "init_weights": False, **kwargs})
    model = get_peft_model(make_mlp(), config).eval()
    model.save_pretrained(tmp_path / "melora")
    export_lora(tmp_path / "melora", tmp_path / "lora")
    done = import_lora(tmp_path / "lora", tmp_path / "again", n=config.n)
    assert (done.n, done.r) == (config.n, 2)
    assert done.share == pytest.approx(1.0, abs=1e-6)
    assert all(layer.share == pytest.approx(1.0, abs=1e-6) for layer in done.layers)
    again = PeftModel.from_pretrained(make_mlp(), tmp_path / "again").eval()
    torch.testing.assert_close(again(X), model(X), rtol=1e-5, atol=1e-5)


def test_the_shares_are_those_of_the_dense_updates(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    lora = save(make_mlp, tmp_path / "lora", lora_alpha=6, alpha_pattern={"head": 3})
    done = import_lora(tmp_path / "lora", tmp_path / "melora", n=2, r=1, min_energy=0)
    deltas = {
        name: getattr(lora.base_model.model, name).get_delta_weight("default").detach() for name in ("first", "head")
    }
    for layer in done.layers:
        delta = deltas[layer.name].double()
        kept = sum(float(best(block, 1).square().sum()) for block in blocks(delta, 2))
        assert layer.energy == pytest.approx(float(delta.square().sum()), rel=1e-4)
        assert layer.share == pytest.approx(kept / float(delta.square().sum()), rel=1e-4)
    loaded = PeftModel.from_pretrained(make_mlp(), tmp_path / "melora")
    for name, delta in deltas.items():
        got = getattr(loaded.base_model.model, name).get_delta_weight("default")
        expected = torch.block_diag(*(best(block, 1) for block in blocks(delta, 2)))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_n_1_keeps_everything_with_the_head_and_the_biases(tiny_bert: Any, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, target_modules=["query"], task_type="SEQ_CLS", bias="lora_only", init_lora_weights=False, lora_alpha=5
    )
    base = tiny_bert.state_dict()
    base = {key: value.clone() for key, value in base.items()}
    model = get_peft_model(tiny_bert, config).eval()
    model.save_pretrained(tmp_path / "lora")
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = model(input_ids=ids).logits
    done = import_lora(tmp_path / "lora", tmp_path / "melora", n=1)
    assert (done.r, done.share) == (2, pytest.approx(1.0))
    fresh = type(tiny_bert)(tiny_bert.config)
    fresh.load_state_dict(base)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "melora").eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert read_adapter(tmp_path / "melora").config.modules_to_save == ["classifier", "score"]


def test_a_poor_import_is_refused_unless_told(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    save(make_mlp, tmp_path / "lora")
    with pytest.raises(
        MeloraError, match=r"a MELoRA of n=6, r=1 keeps .*% of this LoRA's update .* in \w+.*"
    ) as caught:
        import_lora(tmp_path / "lora", tmp_path / "melora", n=6)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "melora").exists()
    offered = float(str(caught.value).rpartition("--min-energy ")[2])
    done = import_lora(tmp_path / "lora", tmp_path / "melora", n=6, min_energy=offered)
    assert offered <= done.share < 0.9
    assert read_adapter(tmp_path / "melora").config.n == 6


def test_an_update_of_zero_is_kept_whole(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    save(make_mlp, tmp_path / "lora", init_lora_weights=True)
    done = import_lora(tmp_path / "lora", tmp_path / "melora", n=2)
    assert done.share == 1.0
    assert [layer.share for layer in done.layers] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n": 5}, r"first: n=5 does not divide both d_in=24 and d_out=48; n that fit every module: 1, 2, 3, 6$"),
        ({"n": 0}, "n must be a whole number"),
        ({"n": 2, "r": 0}, "r must be a whole number"),
        ({"n": 2, "min_energy": 1.5}, "min_energy must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments(
    make_mlp: Callable[..., nn.Module], tmp_path: Path, kwargs: dict[str, Any], message: str
) -> None:
    save(make_mlp, tmp_path / "lora")
    with pytest.raises(MeloraError, match=message):
        import_lora(tmp_path / "lora", tmp_path / "melora", **kwargs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "unexpected tensor .*lora_magnitude_vector|MELoRA has no use_dora=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' means that this LoRA is for a base weight with"),
    ],
)
def test_loras_with_features_that_melora_has_not(
    make_mlp: Callable[..., nn.Module], tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    save(make_mlp, tmp_path / "lora", **config)
    with pytest.raises(MeloraError, match=message):
        import_lora(tmp_path / "lora", tmp_path / "melora", n=1)
    assert not (tmp_path / "melora").exists()


def test_a_melora_is_not_imported(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    get_peft_model(make_mlp(), MeloraConfig(n=2, target_modules=["first"])).save_pretrained(tmp_path / "melora")
    with pytest.raises(MeloraError, match="is a MELORA adapter already"):
        import_lora(tmp_path / "melora", tmp_path / "out", n=2)


def test_an_attentions_lora_is_not_imported(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

    config = LoraConfig(r=2, target_modules=["attention"], init_lora_weights=False)
    get_peft_model(Model(), config).save_pretrained(tmp_path / "lora")
    with pytest.raises(MeloraError, match=r"attention is an nn\.MultiheadAttention; only linear layers are imported"):
        import_lora(tmp_path / "lora", tmp_path / "melora", n=2)
