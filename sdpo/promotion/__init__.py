"""Promoted models: their versions, the judgement before `current` moves, retraining on what is new.

It imports history and the chain below it. It trains and measures nothing itself.
"""
