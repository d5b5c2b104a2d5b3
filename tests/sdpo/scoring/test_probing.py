import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdpo.data.pairs_file import iter_pairs, pair_from_row
from sdpo.events import EventWriter
from sdpo.inputs.demo.text import questions
from sdpo.scoring.probes import completion_prompts, measure, probe_rows, write_completions
from sdpo.store.logp_cache import LogpCache
from sdpo.system.files import read_json

from ..training_helpers.models import (
    RecordedEvents,
    double,
    hf_pair_logps,
    make_scorer,
    preference_task,
    tiny_llama,
    write_tokens,
)
from ..training_helpers.runs import prepare_run


def plan_of(steps: list[int], *, sampled: list[bool] | None = None) -> pa.Table:
    rows = len(steps)
    return pa.table(
        {
            "pair_id": [f"pair-{row:02d}" for row in range(rows)],
            "prompt_key": [f"prompt-{row:02d}" for row in range(rows)],
            "source": [("a", "b")[row % 2] for row in range(rows)],
            "token_row": list(range(rows)),
            "step": pa.array(steps, pa.int32()),
            "sampled": sampled or [True] * rows,
        }
    )


def test_a_model_is_measured_on_the_samples_and_on_the_next_partition_whole():
    steps = [0, 0, 1, 1, 2, 2, 3, 3]
    plan = plan_of(steps, sampled=[True, True, True, False, True, False, True, False])
    rows = probe_rows(plan, step=1)
    assert rows.token_rows.tolist() == [0, 1, 2, 4, 5, 6]
    assert rows.probes.to_pylist() == ["reserve:a", "reserve:b", "D_1", "D_2", "D_2", "D_3"]
    assert rows.sampled.tolist() == [True, True, True, True, False, True]
    ids = ["pair-00", "pair-01", "pair-02", "pair-04", "pair-05", "pair-06"]
    assert rows.pair_ids.to_pylist() == ids


def test_a_partition_whose_step_reads_no_reference_is_measured_on_its_sample():
    plan = plan_of([0, 1, 1, 2, 2, 3], sampled=[True, True, False, True, False, True])
    assert probe_rows(plan, step=1, next_whole=False).token_rows.tolist() == [0, 1, 3, 5]


def test_the_last_model_is_measured_on_the_samples_alone():
    plan = plan_of([0, 1, 1], sampled=[True, True, False])
    assert probe_rows(plan, step=1).token_rows.tolist() == [0, 1]


def test_a_measurement_publishes_every_row_with_its_log_probs(tmp_path):
    task, policy = preference_task(6), tiny_llama()
    tokens = write_tokens(tmp_path / "tokens.arrow", task)
    plan = plan_of([0, 0, 1, 1, 2, 2], sampled=[True, True, True, False, True, True])
    out, key = tmp_path / "probes", {"model": "M_0"}
    with torch.no_grad():
        exact = hf_pair_logps(double(policy), task, np.array([0, 1, 2, 3, 4, 5])).numpy()

    computed = [
        measure(
            make_scorer(policy),
            tokens,
            probe_rows(plan, step=0),
            name="M_0",
            cache=LogpCache(tmp_path / "cache", key),
            out=out,
            events=EventWriter(None),
        )
        for _ in range(2)
    ]

    assert computed == [6, 0], "what was measured once is measured"
    table = pq.read_table(out / "M_0.parquet").to_pydict()
    assert table["pair_id"] == list(task.ids)
    assert table["probe"] == ["reserve:a", "reserve:b", "D_1", "D_1", "D_2", "D_2"]
    assert table["complete"] == [True] * 6
    assert table["chosen_tokens"] == [len(ids) for ids in task.chosen]
    assert table["rejected_tokens"] == [len(ids) for ids in task.rejected]
    np.testing.assert_allclose(table["chosen_logps"], exact[:, 0], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(table["rejected_logps"], exact[:, 1], rtol=1e-6, atol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Eight reserved pairs, of which two share a prompt, and four of D_1."""
    rows = questions()[:11]
    rows.insert(1, dict(rows[0], chosen=rows[0]["chosen"] + " Indeed."))
    return prepare_run(tmp_path_factory.mktemp("run"), pairs={0: 8, 1: 4}, rows=rows)


def test_completion_prompts_are_reserved_ones_each_once(run):
    plan = pq.read_table(run.folder.plan)
    prompts = completion_prompts(plan, run.token_file(), run.folder.pairs, count=100)
    reserved = {row["prompt_key"] for row in run.rows_of(0)}
    assert len(reserved) == 7
    assert {prompt["prompt_key"] for prompt in prompts} == reserved
    texts = {pair_from_row(row).prompt_key: pair_from_row(row) for row in rows_in(run)}
    for prompt in prompts:
        assert prompt["prompt"] == texts[prompt["prompt_key"]].prompt[0].content


def test_completion_prompts_take_turns_between_the_sources(run):
    plan = pq.read_table(run.folder.plan)
    sources = pa.array(["b" if step else "a" for step in plan["step"].to_pylist()])
    everything = plan.set_column(4, "step", pa.array([0] * plan.num_rows, pa.int32()))
    everything = everything.set_column(2, "source", sources)
    prompts = completion_prompts(everything, run.token_file(), run.folder.pairs, count=5)
    assert [prompt["source"] for prompt in prompts] == ["a", "b", "a", "b", "a"]
    again = completion_prompts(
        everything.take(pa.array(range(plan.num_rows - 1, -1, -1))),
        run.token_file(),
        run.folder.pairs,
        count=5,
    )
    ids = [[prompt["prompt_key"] for prompt in drawn] for drawn in (prompts, again)]
    assert ids[0] == ids[1], "whatever the order of the rows"


def rows_in(run):
    return [row for batch in iter_pairs(run.folder.pairs) for row in batch.to_pylist()]


@pytest.mark.parametrize("ends", [False, True])
def test_completions_are_greedy_and_say_whether_they_ended(run, tmp_path, ends):
    policy = AutoModelForCausalLM.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    if ends:  # every hidden state now points at the end token
        head = policy.get_output_embeddings().weight
        with torch.no_grad():
            head[tokenizer.eos_token_id] = 0
            bias = torch.nn.Parameter(torch.zeros(head.shape[0]))
            bias[tokenizer.eos_token_id] = 100.0
            policy.lm_head.bias = bias
    prompts = completion_prompts(
        pq.read_table(run.folder.plan), run.token_file(), run.folder.pairs, count=2
    )
    events = RecordedEvents()
    write_completions(
        policy,
        tokenizer,
        prompts,
        name="M_0",
        max_new_tokens=6,
        device=torch.device("cpu"),
        out=tmp_path,
        events=events,
    )
    written = read_json(tmp_path / "M_0.completions.json")
    assert [entry["prompt_key"] for entry in written] == [p["prompt_key"] for p in prompts]
    assert [entry["finished"] for entry in written] == [ends, ends]
    for entry, prompt in zip(written, prompts, strict=True):
        expected = greedy(policy, prompt["prompt_ids"], 6, end=tokenizer.eos_token_id)
        assert entry["completion"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert (events.all[-1]["done"], events.all[-1]["total"]) == (2, 2)


@torch.no_grad()
def greedy(policy, prompt_ids, count: int, *, end: int) -> list[int]:
    ids = [int(token) for token in prompt_ids]
    for _ in range(count):
        ids.append(int(policy(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt_ids) :]
