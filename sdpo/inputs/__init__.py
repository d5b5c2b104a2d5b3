"""What a recipe names, found: folders, hub commits, files of data, the demo's model and pairs.

It imports identity, data and system below it. It starts no process and writes no run; the demo's
files alone are made here.
"""
