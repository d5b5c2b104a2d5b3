"""Run child processes: tell, start, watch and end stages, on the devices that they hold.

It imports the store and system below it, never torch: the parent process lives here. What a stage
does is the business of :mod:`sdpo.stages`.
"""
