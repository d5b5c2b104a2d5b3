"""Show a flow in Prefect's UI: its form, the run's page and card, approvals, slots.

It imports Prefect and :mod:`flows.show`; the flows import it, and the engine does not know it.
"""
