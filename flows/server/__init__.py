"""The Prefect server as this project runs it: for its owner alone. ``python -m flows.server``."""
