"""Train one step: the optimizer and its schedule, the tasks' losses, the gate before them.

It imports scoring and the model below it. It knows no run folder; states and models are written by
:mod:`sdpo.stages`.
"""
