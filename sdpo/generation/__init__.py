"""Let a model of the run answer prompts, of which pairs for its next step are made.

What is drawn from a model, token by token, is the business of :mod:`sdpo.scoring.sampling`; here is
what a round of thousands of prompts needs: it goes on where it was, and ends in a table.
"""
