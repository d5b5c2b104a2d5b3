"""Turn pairs into token ids: the chat template, the boundary of prompt and completion, the files.

``token_file`` (the stored ids and their statistics), ``lengths`` and ``reasons`` (why rows are not
used) need neither torch nor transformers. The others are given a tokenizer and so run in the
process that loaded it: ``render`` and ``probes`` (what its template prints), ``content`` and
``whole`` (whether texts are printed as given), ``encode``, ``words`` and ``controls`` (ids, and
whose control tokens are among them), ``template`` and ``boundary`` (rows, and where they are cut),
``tokenise`` (files) and ``view`` (one pair for a person).
"""
