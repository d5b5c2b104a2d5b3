"""Name the setting that does without a kernel or compiled code that fails after its trial.

Kernels are compiled again for other shapes, so what passed a trial may still fail. Then a stage
ends with one message that names what failed and the setting under which it is not used.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sdpo
from sdpo.config import TrainingConfig
from sdpo.errors import Fault, LayoutError, SdpoError
from sdpo.model.layouts import attention
from sdpo.system.out_of_memory import first_line, is_out_of_memory

_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
_COMPILERS_CODE = (*(f"/{name.replace('.', '/')}/" for name in _COMPILERS), "torchinductor")
_MODELS = ("/torch/nn/", "/transformers", "/peft/", f"{Path(sdpo.__file__).parent}/")
_FLEX = "flex_attention"


@contextmanager
def kernels_named(training: TrainingConfig, *, layout: str) -> Iterator[None]:
    """Name the setting of ``training`` that does without a kernel, where one fails in the block.

    ``layout``: the one that is used. Other errors pass as they are, those of short memory too.

    Raises:
        Fault: attention over rows of several sequences failed, or compiled blocks did.
    """
    try:
        yield
    except Exception as error:
        remedy = _remedy(error, training, layout=layout)
        if not remedy:
            raise
        raise Fault(f"{_said(error)}: set {remedy}") from error


def _remedy(error: Exception, training: TrainingConfig, *, layout: str) -> str:
    """Return the setting that does without what failed; empty where none is known to help."""
    refused = isinstance(error, LayoutError)
    if (isinstance(error, SdpoError) and not refused) or is_out_of_memory(error):
        return ""
    frames = [frame for each in _chain(error) for frame in _frames(each)]
    by_compiler = not refused and _of_compiler(error)
    in_rows = refused or any(frame.filename == attention.__file__ for frame in frames)
    # A backward pass has no frame of ours, but the compiled code has the name in it.
    flex = any(_FLEX in f"{f.filename} {f.line}" for f in frames) or _FLEX in str(error)
    if by_compiler and training.compile and not flex:
        return "training.compile: false"
    if (in_rows or by_compiler) and layout != "padded":
        return f"training.layout: padded in place of {layout}"
    return ""


def _of_compiler(error: BaseException) -> bool:
    """Return whether a compiler, or code that it made, raised the error or one of its causes."""
    for each in _chain(error):
        frames = _frames(each)
        if type(each).__module__.startswith(_COMPILERS):
            return True
        # Not any frame: a model's code that is called from compiled code has some above it.
        places = [f.filename for f in frames if _within(f.filename, _COMPILERS_CODE + _MODELS)]
        if places and _within(places[-1], _COMPILERS_CODE):
            return True
    return False


def _within(filename: str, code: tuple[str, ...]) -> bool:
    return any(part in filename for part in code)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _frames(error: BaseException) -> traceback.StackSummary:
    return traceback.extract_tb(error.__traceback__)


def _said(error: Exception) -> str:
    said = first_line(error)
    return said if isinstance(error, LayoutError) else f"{type(error).__name__}: {said}"
