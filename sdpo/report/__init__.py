"""Make the report of a run: one self-contained page, and tables that the command line prints.

Each module imports only those before it: ``load`` reads the run folder, ``numbers`` measures
gamma from the probes, ``tables`` puts numbers in words, ``findings`` draws the conclusions,
``health`` those on what the chain keeps and loses, ``evaluations`` shows what suites say,
``figures`` draws, ``template`` fills pages, ``page`` writes the file, ``summary`` is its short
form.
"""

from sdpo.report.page import write_report
from sdpo.report.summary import Summary, summarise

__all__ = ["Summary", "summarise", "write_report"]
