"""Say by one command how this project does on a GPU: ``python -m benchmarks.gpu --help``."""
