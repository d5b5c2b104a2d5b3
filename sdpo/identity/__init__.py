"""What bears identity, and its digests: of settings, data, tokenizers, models, steps and scores.

It imports the recipe's groups and files below it. It decides nothing: what a digest is compared
with, and what follows from a difference, is the store's and the chain's.
"""
