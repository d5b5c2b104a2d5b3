"""The report of a run: one self-contained page, and the tables that the command line prints.

Modules, each importing only those before it: ``load`` reads the run folder, ``numbers`` measures
gamma from the probes, ``tables`` puts numbers in words, ``findings`` draws the conclusions,
``figures`` draws, ``page`` writes the file.
"""

from sdpo.report.page import write_report
from sdpo.report.tables import Table, summary_tables

__all__ = ["Table", "summary_tables", "write_report"]
