"""The page a run leaves behind."""

from avssl.report.page import write_report

__all__ = ["write_report"]
