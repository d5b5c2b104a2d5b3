"""One command that says how this project does on a GPU: ``python -m benchmarks.gpu --help``."""
