"""A language model in this process: its policy, head, operations, lanes and batches of rows.

It imports tokens, config and system below it, and torch. It trains nothing and knows no run: what
is computed with a model is :mod:`sdpo.scoring`'s and :mod:`sdpo.training`'s.
"""
