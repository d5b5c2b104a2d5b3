"""Read HelpSteer3-Preference (arXiv 2505.11475): two answers, and how much better one of them
is."""

from sdpo.layouts.readers import layout
from sdpo.system.json_values import Cells


@layout(
    description="nvidia/HelpSteer3: the answer that overall_preference favours, by its sign",
    reads=("context", "response1", "response2", "overall_preference"),
)
def helpsteer3(row: Cells) -> Cells | str:
    """Take ``response1`` as chosen where the preference is below 0, ``response2`` where it is
    above."""
    preference = row["overall_preference"]
    if not isinstance(preference, int | float) or isinstance(preference, bool) or not preference:
        return f"overall_preference is {preference!r}: it favours neither answer"
    sides = (row["response1"], row["response2"])
    chosen, rejected = sides if preference < 0 else reversed(sides)
    return {"prompt": row["context"], "chosen": chosen, "rejected": rejected}
