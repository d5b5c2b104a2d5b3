"""Pairs to token ids: the chat template, the boundary of prompt and completion, the stored ids.

Modules, each importing only those above it: ``store`` (the files and their statistics) and
``digest`` (what a tokenizer is) need neither torch nor transformers; ``template`` (text),
``boundary`` (ids), ``tokenise`` (files) and ``view`` (one pair for a person) are handed a tokenizer
and so run in the process that loaded it.
"""
