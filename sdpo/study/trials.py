"""Hold a study and run its trials, one after the other or side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sdpo.hooks import Host
from sdpo.study.arms import Trial
from sdpo.study.before import withheld_from
from sdpo.study.folder import StudyFile, StudyFolder
from sdpo.study.kept import kept_study
from sdpo.study.run_trials import Outcome, run_trials, store_of
from sdpo.study.side_by_side import run_side_by_side
from sdpo.system.privacy import withholding


@contextmanager
def trials_run(
    study: StudyFolder,
    trials: Sequence[Trial],
    said: StudyFile,
    *,
    side_by_side: int = 1,
    host: Host,
    host_of: Callable[[str], Host] | None,
    keeps_models: bool,
    wait: bool,
) -> Iterator[Outcome]:
    """Hold a study, its new files as private as its data, and yield what came of its trials.

    ``side_by_side``: so many at a time.

    Raises:
        Interrupted, KeyboardInterrupt: as :func:`run_trials`.
    """
    with (
        withholding(withheld_from(study, trials)),
        study.held(said, wait=wait, listen=host.listen) as lock,
        kept_study(study, store_of(trials), listen=host.listen, wait=wait) as saved,
    ):
        outcome = Outcome(saved=saved)
        if side_by_side > 1:
            yield run_side_by_side(
                study,
                trials,
                count=side_by_side,
                lock=lock,
                host=host,
                host_of=host_of,
                keeps_models=keeps_models,
                wait=wait,
                outcome=outcome,
            )
            return
        yield run_trials(
            study,
            trials,
            host=host,
            host_of=host_of,
            keeps_models=keeps_models,
            wait=wait,
            outcome=outcome,
        )
