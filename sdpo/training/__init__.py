"""One step's training: optimizer and schedule, the tasks' losses, the gate before it.

It imports scoring and the model below it. It knows no run folder; states and models are written by
:mod:`sdpo.stages`.
"""
