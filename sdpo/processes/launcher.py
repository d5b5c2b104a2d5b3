"""Run ``accelerate launch`` for the ranks of a stage, and end with the process that started it."""

import runpy

from sdpo.processes.supervisor import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    runpy.run_module("accelerate.commands.launch", run_name="__main__", alter_sys=True)
