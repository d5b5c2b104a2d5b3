"""Records of probes that a test wrote or changed itself: a report draws no others."""

from sdpo.store.run_folder import RunFolder


def record_probes(folder: RunFolder) -> None:
    """Record every probe as it is now."""
    for path in folder.probes.glob("M_*.parquet"):
        node, files = f"probe-{path.stem}", sorted(folder.probes.glob(f"{path.stem}.*"))
        folder.write_record(node, {"node": node, "identity": {}}, files=files)
