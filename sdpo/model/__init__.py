"""Hold a language model in this process: its policy, head, operations, lanes and batches of rows.

It imports tokens, config and system below it, and torch. It trains nothing and knows no run: what
is computed with a model is in :mod:`sdpo.scoring` and :mod:`sdpo.training`.
"""
