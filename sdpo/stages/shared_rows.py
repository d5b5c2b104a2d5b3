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
    if not share.is_first:
        with publish_file(folder / share.named(_ROWS)) as temporary:
            pq.write_table(mine, temporary)
    share.wait()
    if share.is_first:
        others = [
            pq.read_table(folder / Share(rank, share.count).named(_ROWS))
            for rank in range(1, share.count)
        ]
        whole = pa.concat_tables([mine, *others]).sort_by(_AT).drop_columns([_AT])
        with publish_file(out) as temporary:
            pq.write_table(whole, temporary)
    share.wait()
