"""Decide what counts for identity, and digest settings, data, tokenizers, models, steps and scores.

It imports the recipe's groups and files below it. What a digest is compared
with, and what follows from a difference, the store and the chain decide.
"""
