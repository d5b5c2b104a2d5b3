"""Run part 6: measure what ``training.compile`` gains on a micro-batch, and what it costs."""

from collections.abc import Iterator

from benchmarks.gpu.findings import Finding, Settings
from benchmarks.gpu.inmemory import prepare
from benchmarks.shapes import SHAPES
from sdpo.events import EventWriter
from sdpo.stages.compiling import compiled_blocks


def run(settings: Settings) -> Iterator[Finding]:
    """Compile the blocks as a stage does, and time a micro-batch before and after."""
    training = prepare(
        settings,
        SHAPES["tiny" if settings.tiny else "1B"],
        lengths="short" if settings.tiny else "ultrafeedback-long",
        pairs=8 if settings.tiny else 32,
        batch_size=4 if settings.tiny else 32,
        compile=True,
        micro_batch_tokens=512 if settings.tiny else 16384,
    )
    events = EventWriter(training.events)
    with compiled_blocks(training.trainer, training.task, events) as found:
        compiled = found
    if compiled is None or compiled.after_s is None or compiled.left:
        left = compiled.left if compiled else "nothing was compiled"
        yield Finding(what="training.compile", seen=f"left: {left}", ok=False)
        return
    gain = compiled.before_s / compiled.after_s
    yield Finding(
        what="training.compile",
        seen=f"a micro-batch takes {compiled.after_s:.3f} s instead of "
        f"{compiled.before_s:.3f} s ({gain:.2f}x); compiling took {compiled.compile_s:.0f} s",
        ok=True,
        numbers=compiled.model_dump(exclude_unset=True) | {"gain": gain},
    )
