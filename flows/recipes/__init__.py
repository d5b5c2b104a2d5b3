"""Hold the recipes that come with the project, and find, list and print them."""
