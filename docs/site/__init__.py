"""Make the site: the pages of ``docs/``, and a reference that is read from the code.

``python -m docs.site FOLDER`` writes Markdown and a configuration of MkDocs into FOLDER, and
``make docs`` builds it strictly. What is generated needs no MkDocs: tests look at it wherever the
project runs.
"""
