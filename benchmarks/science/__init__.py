"""Run the paper's comparison on a real model in parts: ``python -m benchmarks.science --help``.

Each module imports only those before it: ``design`` says what is compared and how surely it can be
told, ``sources`` makes the pairs, ``recipe`` the trials, ``parts`` keeps what came of each in small
files, ``campaign`` runs those that are missing, ``tables`` says what came of it.
"""
