"""Offer the engine to Python programs and notebooks: what `import sdpo` gives.

``recipes`` makes a recipe of what a program has, ``dataset_rows`` writes data sets that are objects
into the run, ``running`` runs, resumes and replays, ``run`` reads what came of it, ``progress``
shows how far it is. torch is loaded by :meth:`sdpo.Run.model` alone.
"""
