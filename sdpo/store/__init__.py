"""What lies on disk for runs: run folders and records, reuse, links, caches, states, model cards.

It imports identity, data and system below it. It knows what a record holds and whether it still
stands; what a step is and when it runs is the chain's.
"""
