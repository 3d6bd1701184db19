import pytest

from melora import MeloraError
from melora.shapes import check_shape, divisors


def test_divisors() -> None:
    assert divisors(1) == [1]
    assert divisors(768) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 768]
    assert divisors(49) == [1, 7, 49]


def test_accepts_every_common_divisor() -> None:
    for n in (1, 2, 4, 8, 16):
        check_shape("q", 32, 48, n, 1)


def test_n_that_divides_one_side_alone_names_module_sizes_and_choices() -> None:
    with pytest.raises(
        MeloraError, match=r"^layer\.3\.query: n=5 .*d_in=20.*d_out=12; choose n from 1, 2, 4, "
    ) as caught:
        check_shape("layer.3.query", 20, 12, 5, 1)
    assert "\n" not in str(caught.value)


def test_a_long_list_of_choices_is_cut() -> None:
    with pytest.raises(MeloraError, match=r", \.\.\., 720720,"):
        check_shape("q", 720720, 720720, 17**3, 1)


def test_r_above_the_weight_itself() -> None:
    check_shape("q", 20, 4, 4, 20)
    with pytest.raises(MeloraError, match=r"^q: r=21 is larger than the weight \(4 x 20\).*at most rank 1:"):
        check_shape("q", 20, 4, 4, 21)
