"""Compare recipes on one reserve: arms and trials that are ordinary runs of one study.

Each module imports only those before it: ``folder`` knows where everything of a study is, ``arms``
names what is compared and makes its recipes, ``before`` refuses what would fail, ``scored`` counts
rows, ``results`` keeps what came of each run, ``run_trials`` runs what is not done, ``comparison``
computes, ``conclusions`` says what follows, ``tables`` and ``page`` show it, ``compare`` is all of
it together. For a sweep ``grid`` makes trials, ``split`` and ``selection`` choose on one part of
the reserve, ``pareto`` and ``sweep_page`` show it, ``sweep`` is all of that together; ``search``
lets Optuna propose the trials, ``sweeping`` is either.
"""
