"""Find what other installed packages add: objectives, partition strategies, data layouts, judges.

A package names them as entry points (``sdpo.objectives``, ``sdpo.strategies``, ``sdpo.layouts``,
``sdpo.judges``).
The facts about one are read from the text of its source, so that a list of all of them, the schema
and the form execute nothing; only one that a recipe names is imported. Its identity is a digest
over all files of its package.

- :mod:`.facts`: facts from the text of a source file, of this project's own parts too
- :mod:`.package`: where an installed package's files are, without importing it, and their digest
- :mod:`.source`: importing what the digest is over, whatever Python has cached of it
- :mod:`.installed`: the plug-ins that are installed, and importing one
- :mod:`.recorded`: those that a run was made with, beside those installed now
"""
