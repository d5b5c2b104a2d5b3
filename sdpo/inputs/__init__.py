"""Find what a recipe names: folders, hub commits, files of data, the demo's model and pairs.

It imports identity, data and system below it. It starts no process and writes no run: only the
demo's files are made here.
"""
