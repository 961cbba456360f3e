"""A report on finished runs that a person can read: one HTML file that needs nothing else, and its pictures as PNG."""

from sector.engine.report.page import Report, write_report

__all__ = ["Report", "write_report"]
