"""Reserved pairs by the step that a curriculum would have given them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.stats.assigned import assigned

NAN = float("nan")
ENTRIES = [
    # pair, step, feature: step 1 has 1 to 2, step 2 has 5 to 9, and rehearses a pair of step 1
    ("a", 0, 0.5),
    ("b", 1, 1.0),
    ("b", 2, 1.0),
    ("c", 0, 3.0),
    ("d", 0, 4.0),
    ("e", 1, 2.0),
    ("f", 2, 5.0),
    ("g", 2, 9.0),
    ("h", 0, NAN),
    ("i", 0, 12.0),
    ("j", 0, 7.0),
    ("k", 3, NAN),  # an extension's step, whose pairs nobody measured
]


def plan(folder: Path, *, features: int = 1) -> Path:
    ids, steps, values = zip(*ENTRIES, strict=True)
    rows = {"pair_id": ids, "token_row": [ord(one) for one in ids], "step": steps}
    rows |= {f"feature:{n}": np.array(values, np.float32) for n in range(features)}
    path = folder / "plan.parquet"
    pq.write_table(pa.table(rows), path, row_group_size=3)
    return path


def test_a_reserved_pair_goes_to_the_step_whose_pairs_are_nearest(tmp_path: Path) -> None:
    found = assigned(plan(tmp_path))
    assert {step: ids.tolist() for step, ids in found.items()} == {
        1: ["a", "c"],  # 0.5 lies below its range, 3 is nearer to 2 than to 5
        2: ["d", "i", "j"],
    }


def test_a_plan_that_goes_by_no_feature_or_by_several_assigns_none(tmp_path: Path) -> None:
    assert assigned(plan(tmp_path, features=0)) == {}
    assert assigned(plan(tmp_path, features=2)) == {}
