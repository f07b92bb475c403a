"""The report of a run: notebooks executed with papermill, exported as one HTML and one PDF file.

``run`` executes and keeps the books (``run.json``), ``page`` renders, ``pdf`` prints.
"""

from editkit.report.run import Report, build_report

__all__ = ["Report", "build_report"]
