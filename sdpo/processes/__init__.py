"""Child processes: how stages are told, started, watched and ended, on which devices.

It imports the store and system below it, never torch: the parent process lives here. What a stage
does is :mod:`sdpo.stages`'s.
"""
