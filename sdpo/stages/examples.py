"""Read what a step trains on, in tokens: pairs with their reference, or supervised examples."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.config import TrainingConfig
from sdpo.errors import DataError
from sdpo.objectives import settings_of
from sdpo.stages.reference_rows import Reference
from sdpo.stages.step_context import StepFiles
from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile
from sdpo.training.tasks import PreferenceTask, SupervisedTask


def preference_task(
    tokens: TokenFile, reference: Reference, training: TrainingConfig
) -> PreferenceTask:
    """Return the pairs of ``reference``, to be compared with its log-probs."""
    pairs = [tokens.row(row) for row in reference.rows["token_row"].to_pylist()]
    return PreferenceTask(
        ids=reference.rows["pair_id"].to_pylist(),
        prompts=[pair.prompt_ids for pair in pairs],
        chosen=[pair.chosen_ids for pair in pairs],
        rejected=[pair.rejected_ids for pair in pairs],
        reference=reference.logps,
        objective=training.objective,
        settings=settings_of(training.model_dump()),
        rpo_alpha=training.rpo_alpha,
        router_aux_loss=training.router_aux_loss,
    )


def supervised_task(step: StepFiles) -> SupervisedTask:
    """Return what the supervised stage trains on: its examples, or a fraction drawn by the seed.

    Raises:
        DataError: every example has a reserved prompt.
    """
    spec = step.spec
    examples = sorted(_supervised_examples(step), key=lambda example: example[0])
    if not examples:
        raise DataError("the supervised stage has no examples left after setting the reserve aside")
    if spec.supervised.fraction < 1:
        count = max(1, round(len(examples) * spec.supervised.fraction))
        drawn = np.random.default_rng([spec.training.seed, 2]).permutation(len(examples))[:count]
        examples = [examples[i] for i in sorted(drawn)]
    ids, prompts, completions = zip(*examples, strict=True)
    return SupervisedTask(ids=ids, prompts=prompts, completions=completions)


def _supervised_examples(step: StepFiles) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return id, prompt and completion of every example without a reserved prompt."""
    spec = step.spec
    usable = pq.read_table(spec.usable)
    reserved = usable["reserved"].to_numpy(zero_copy_only=False)
    if spec.supervised.examples == "chosen":
        kept = usable.filter(pa.array(~reserved))
        pairs = [step.tokens.row(row) for row in kept["token_row"].to_pylist()]
        return [
            (pair_id, pair.prompt_ids, pair.chosen_ids)
            for pair_id, pair in zip(kept["pair_id"].to_pylist(), pairs, strict=True)
        ]
    held = set(usable.filter(pa.array(reserved))["prompt_key"].to_pylist())
    file = SupervisedTokenFile.open(spec.needed_supervised_tokens)
    rows = [
        file.row(int(index))
        for index in np.flatnonzero(file.usable)
        if file.prompt_keys[index] not in held
    ]
    return [(row.example_id, row.prompt_ids, row.completion_ids) for row in rows]
