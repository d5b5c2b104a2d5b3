"""Keep what runs have on disk: run folders, records, reuse, links, caches, states, model cards.

It imports identity, data and system below it. It knows what a record holds and whether it is still
valid; what a step is and when it runs, the chain knows.
"""
