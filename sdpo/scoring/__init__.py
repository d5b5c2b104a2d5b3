"""Measure a model on rows: log-probs, probes, sampled completions, divergence from another.

It imports the model and tokens below it. Nothing is trained here, and nothing is published.
"""
