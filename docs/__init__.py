"""The documentation: pages in Markdown, and in :mod:`docs.site` what makes a site of them."""
