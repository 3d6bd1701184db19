import logging
from pathlib import Path

import pytest

from melora.compare.state import curve_lines


def test_a_damaged_line_of_a_curve_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert curve_lines(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with caplog.at_level(logging.WARNING):
        assert curve_lines(tmp_path) == [{"step": 1}, {"step": 3}]
    assert "line 2 is damaged" in caplog.text
