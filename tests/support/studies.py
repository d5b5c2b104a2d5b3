"""Recipes of studies that tests train."""

from bench import Values


def small(recipe: Values, *, updates: int = 2) -> Values:
    """The recipe with so many optimizer steps a step, and a reserve of some use."""
    return recipe | {
        "data": recipe["data"] | {"reserve": {"pairs": 12}},
        "training": recipe["training"] | {"max_steps": updates},
        "probe": recipe["probe"] | {"max_pairs": 8, "completions": 0},
    }
