"""Tell where everything of a run is, and what names its parts have."""

import re
from dataclasses import dataclass
from pathlib import Path

from sdpo.store.run_proof import RUN_FILE
from sdpo.system import ownership

PUBLISHING = re.compile(r"(step|guide)-\d+")
FOLDERS = re.compile(
    rf"{PUBLISHING.pattern}|merged-\d+|nodes|probes|evaluations|logs|carried|sources|tracking"
)
FILES = re.compile(
    r"(run\.yaml|plan\.json|promotion\.json|remote\.json|report\.html|rejected(_supervised)?_rows\.jsonl"
    r"|(pairs|supervised|usable|plan|features)\.parquet)(\.sha256)?"
)


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The paths of one run."""

    path: Path

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.path.name

    @property
    def lock_file(self) -> Path:
        """Return the lock file, which the process that works on the run holds."""
        return self.path / ownership.LOCK

    @property
    def status_file(self) -> Path:
        """Return the file of what the process that works on the run said last."""
        return self.path / "logs" / "status.json"

    @property
    def run_file(self) -> Path:
        """Return run.yaml: resolved configuration, inputs, versions."""
        return self.path / RUN_FILE

    @property
    def sources(self) -> Path:
        """Return the folder of rows that a program gave as objects and not as files."""
        return self.path / "sources"

    @property
    def pairs(self) -> Path:
        """Return the file of normalised pairs."""
        return self.path / "pairs.parquet"

    @property
    def rejected(self) -> Path:
        """Return the file of every row that is not used, with its reason."""
        return self.path / "rejected_rows.jsonl"

    @property
    def rejected_data(self) -> Path:
        """Return the file of rejected rows that are known before tokenisation."""
        return self.path / "nodes" / "rejected_data_rows.jsonl"

    @property
    def usable(self) -> Path:
        """Return the file of usable pairs with the reserve marked."""
        return self.path / "usable.parquet"

    @property
    def plan(self) -> Path:
        """Return the table of the partition plan: every pair's step."""
        return self.path / "plan.parquet"

    @property
    def plan_file(self) -> Path:
        """Return the file of the partition plan in short."""
        return self.path / "plan.json"

    @property
    def features(self) -> Path:
        """Return the file of what was measured of every usable pair before the partition."""
        return self.path / "features.parquet"

    @property
    def probes(self) -> Path:
        """Return the folder of every model's measurements."""
        return self.path / "probes"

    @property
    def evaluations(self) -> Path:
        """Return the folder of what every model scored on suites."""
        return self.path / "evaluations"

    @property
    def report(self) -> Path:
        """Return the path of the report."""
        return self.path / "report.html"

    def step(self, number: int) -> Path:
        """Return the folder of a step; 0 is the supervised stage."""
        return self.path / f"step-{number}"

    def model(self, number: int) -> Path:
        """Return the folder of the model that a step published."""
        return self.step(number) / "model"

    def record_path(self, node: str) -> Path:
        """Return where a node's record is: with the model that it publishes, else in ``nodes/``."""
        if is_publishing(node):
            return self.path / f"{node}/record.json"
        return self.path / f"nodes/{node}.json"


def is_publishing(node: str) -> bool:
    """Return whether a node of this name publishes a model: a step or a guide."""
    return node.startswith(("step-", "guide-"))


def is_part(path: str) -> bool:
    """Return whether a path below a run, ``/`` between its parts, begins as one of a run's does.

    What only this machine has is no part: the logs, the lock, the marker, ``remote.json``.
    """
    first, _, rest = path.partition("/")
    if rest:
        return first != "logs" and FOLDERS.fullmatch(first) is not None
    return not first.startswith("remote.json") and FILES.fullmatch(first) is not None
