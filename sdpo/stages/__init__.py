"""Run stages in child processes: one module per kind of stage, heavy libraries welcome."""
