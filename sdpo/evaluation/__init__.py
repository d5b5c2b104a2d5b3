"""Judge models by tasks of lm-evaluation-harness: find tasks, put a model before them, score.

It is used by stages alone: the harness imports torch. What a run keeps of it is defined in
:mod:`sdpo.store.evaluations`.
"""
