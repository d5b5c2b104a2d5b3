"""Publish the rows that the processes of a stage have computed, each its share of them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.model.share import Share
from sdpo.system.files import publish_file

_ROWS = "rows.parquet"
_AT = "at"


def publish_together(
    share: Share, rows: pa.Table, at: Sequence[int], *, folder: Path, out: Path
) -> None:
    """Publish the rows of all processes, in the order of their numbers ``at``, as the file ``out``.

    Every process calls this, and goes on when the file is there. ``folder`` is where all but the
    first one leave theirs.
    """
    mine = rows.append_column(_AT, pa.array(at, pa.int64()))
    own = [] if share.is_first else [folder / share.named(_ROWS)]
    for path in own:
        with publish_file(path) as temporary:
            pq.write_table(mine, temporary)
    others = share.seen_by_all(own)
    if share.is_first:
        whole = pa.concat_tables([mine, *map(pq.read_table, others)]).sort_by(_AT)
        with publish_file(out) as temporary:
            pq.write_table(whole.drop_columns([_AT]), temporary)
    share.wait()
