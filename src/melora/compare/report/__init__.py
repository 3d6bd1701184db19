"""The report of `melora compare`: report.html, report.md, plots/ and results.parquet, from a study's records."""

from .parquet import read_records
from .write import write_report

__all__ = ["read_records", "write_report"]
