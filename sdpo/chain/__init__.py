"""Run the chain as a recipe: data, plan, supervised stage and steps, each made once and recorded.

It imports processes, report and store below it, and no torch: what needs a model is a stage, which
it starts. What happens to finished runs is the business of :mod:`sdpo.history`.
"""
