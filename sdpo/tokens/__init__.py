"""Pairs to token ids: the chat template, the boundary of prompt and completion, the stored ids.

Modules, each importing only those above it: ``store`` (the files and their statistics), ``reasons``
(why rows are not used) and ``digest`` (what a tokenizer is) need neither torch nor transformers;
``content`` and ``whole`` (whether texts are printed as given), ``controls`` (whose control tokens
they are), ``template`` (text), ``boundary`` (ids), ``tokenise`` (files) and ``view`` (one pair for
a person) are handed a tokenizer and so run in the process that loaded it.
"""
