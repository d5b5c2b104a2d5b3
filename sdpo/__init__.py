"""The engine of stepwise DPO: data, log-probs, objectives, trainer, run store, report."""

__version__ = "0.1.0"
