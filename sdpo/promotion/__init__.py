"""Promote models: keep their versions, judge before `current` moves, retrain on what is new.

It imports history and the chain below it. It trains and measures nothing itself.
"""
