"""Keep a folder in a remote store, for a process that may vanish with its machine.

A place in a store holds what one run has, by content (``files/<sha256>``), a list of it
(``index/``), and who may write (``lease/``). This room knows files, digests and groups of them, and
nothing of what a run is.
"""
