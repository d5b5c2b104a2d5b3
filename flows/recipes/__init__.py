"""Recipes that come with the project."""
