"""Results of finished runs: evaluation, outcomes over seeds, trackers, and one HTML page.

May import: `run` and below. Open `page.py` first: it writes the page from the figures of `facts.py` and the charts of
`charts.py`.
"""

from sector.engine.report.page import ReportPage, write_report

__all__ = ["ReportPage", "write_report"]
