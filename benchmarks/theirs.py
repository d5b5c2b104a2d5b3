"""Run TRL's side: a plain script around DPOTrainer (``python -m benchmarks.theirs SPEC``).

Both sides have the same precision, batch, optimizer and learning rate; what else takes time or
memory the specification says (:class:`benchmarks.rivals.Way`). Rows are taken in the order of their
file, and completions end with their end token: TRL trains on what a template writes after it (a
newline), and this project does not. It times the trainer's own methods.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from benchmarks.workload import tokens_digest


class StepEnds(TrainerCallback):
    """This callback notes when an optimizer step ended; logging its loss waits for the device."""

    def __init__(self, ends: list[float]) -> None:
        self._ends = ends

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the time at which a step's numbers were logged."""
        self._ends.append(time.perf_counter())


class TimedTrainer(DPOTrainer):
    """A timed trainer is a DPOTrainer with a clock around preparation and precomputing."""

    seconds: dict[str, float]
    step_ends: list[float]

    def __init__(self, *, end_token: int, **options: Any) -> None:
        self._end_token = end_token
        self.seconds = {}
        self.step_ends = []
        super().__init__(**options)
        self.add_callback(StepEnds(self.step_ends))

    def _timed(self, name: str, method: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = method(*arguments)
        self.seconds[name] = time.perf_counter() - start
        return result

    def _prepare_dataset(self, *arguments: Any) -> Any:
        prepared = self._timed("prepare", super()._prepare_dataset, *arguments)
        return prepared.map(partial(_ended, end=self._end_token))

    def _precompute_ref_logps(self, *arguments: Any) -> Any:
        return self._timed("score", super()._precompute_ref_logps, *arguments)


def _ended(row: dict[str, list[int]], *, end: int) -> dict[str, list[int]]:
    """Return both completions up to their last ``end``; whole where a cut has taken it."""
    sides = {side: row[side] for side in ("chosen_ids", "rejected_ids")}
    return {
        side: ids[: len(ids) - ids[::-1].index(end)] if end in ids else ids
        for side, ids in sides.items()
    }


def trainer(spec: dict[str, Any], *, model: str, rows: str) -> TimedTrainer:
    """Return a trainer of ``model`` on the file ``rows``, with the settings of ``spec``."""
    on_cpu = spec["device"] == "cpu"
    arguments = DPOConfig(
        output_dir=spec["out"],
        beta=spec["beta"],
        max_length=spec["max_length"],
        precompute_ref_log_probs=spec["precompute"],
        per_device_train_batch_size=spec["per_device"],
        gradient_accumulation_steps=spec["batch_size"] // spec["per_device"],
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch_fused",
        max_grad_norm=spec["max_grad_norm"],
        gradient_checkpointing=spec["gradient_checkpointing"],
        bf16=spec["bf16"],
        use_cpu=on_cpu,
        dataset_num_proc=spec.get("num_proc"),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=spec["seed"],
    )
    return TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        processing_class=AutoTokenizer.from_pretrained(spec["tokenizer"]),
        end_token=spec["end_token"],
        peft_config=LoraConfig(**spec["lora"]) if spec.get("lora") else None,
    )


def main() -> None:
    """Train on each file of rows in a row, from the model saved before, and write what it took."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model, results = spec["model"], []
    for number, rows in enumerate(spec["rows"], start=1):
        dpo = trainer(spec, model=model, rows=rows)
        seconds = dpo.seconds
        if spec.get("train", True):
            start = time.perf_counter()
            dpo.train()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = seconds | {"train": time.perf_counter() - start}
        losses = [entry["loss"] for entry in dpo.state.log_history if "loss" in entry]
        result = {"seconds": seconds, "losses": losses, "step_ends": dpo.step_ends[: len(losses)]}
        if spec["save"]:
            model = f"{spec['out']}/M_{number}"
            dpo.save_model(model)
        else:
            sides = ("prompt_ids", "chosen_ids", "rejected_ids")
            ids = ([row[side] for side in sides] for row in dpo.train_dataset)
            result["tokens"] = tokens_digest(ids)
        results.append(result)
        del dpo
    Path(spec["results"]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
