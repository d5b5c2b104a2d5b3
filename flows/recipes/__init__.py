"""Hold the recipes that come with the project."""
