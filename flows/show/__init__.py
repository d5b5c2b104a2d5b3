"""Make what a person sees at a terminal: lines, tables, comparisons.

It imports the engine's results and Rich; it decides nothing and starts nothing.
"""
