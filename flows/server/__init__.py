"""Run the Prefect server as this project does, for its owner alone: ``python -m flows.server``."""
