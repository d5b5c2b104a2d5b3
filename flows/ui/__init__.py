"""What a flow shows in Prefect's UI: its form, the run's page and card, approvals, slots.

It imports Prefect and what is shown; the flows import it. The engine never hears of it.
"""
