"""The command line: the application, its options, its groups of commands.

It imports the commands below it, each when it is called. Words and exit codes are made here; what a
command does is :mod:`flows.commands.run`'s.
"""
