"""Settings of TRL, LLaMA-Factory, axolotl and open-instruct: what each is here, or why it is not.

A key that another trainer has is no misspelling, so the nearest name would lead astray.
"""

_BATCH = (
    "the batch is given whole: `training.batch_size` is pairs per optimizer step over all devices "
    "(devices x per-device batch x accumulation), cut into micro-batches of "
    "`training.micro_batch_tokens`"
)
_LENGTH = "here it is `data.max_length`, of prompt + completion in tokens"
_EVAL = (
    "models are not evaluated while they train: `probe` measures every M_t on the reserve "
    "(`data.reserve.fraction`) and on the partitions (`probe.max_pairs`)"
)
_SAVE = (
    "a step publishes one model, at its end; states to resume from are kept by "
    "`training.checkpoint_minutes` and `training.checkpoint_every`"
)
_LOG = "every optimizer step is in metrics.jsonl; other trackers are chosen by `tracking.tools`"
_PRECISION = "here it is `training.precision`, bf16 (over fp32 master weights) or fp32"
_LAUNCH = "how processes share the work is `launch.strategy`, with `launch.processes`"
_QUANTISED = (
    "weights are not quantised: M_t is published in fp32 and the next step starts from exactly "
    "those tensors; for less memory see `training.lora_r` and `training.gradient_checkpointing`"
)
_REFERENCE = (
    "references are chosen by `training.reference` (and `training.reference_model`); their "
    "log-probs are always computed once, beforehand, and cached"
)
_SPLITS = (
    "what is set aside for measuring is `data.reserve.fraction` of each source, or so many pairs: "
    "`data.reserve.pairs`"
)
_MIXTURE = (
    "data is mixed by the `weight` of each of `data.sources` (proportions, no pair twice), or by "
    "its `max_pairs`"
)
_DATA = "data is named in `data.sources`, each with its `path` and `columns`"
_NLL = "here it is `training.rpo_alpha`, the weight of the chosen side's NLL per token"
_COMPUTED = "processes, threads and forked workers are chosen by themselves; see `launch.threads`"
_PACKING = "how pairs lie in a micro-batch is `training.layout`"
_DROPOUT = "dropout is always off: the first loss is ln 2 to the last digit, which the gate checks"

ELSEWHERE: dict[str, str] = {
    # batches and steps
    "gradient_accumulation_steps": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "train_batch_size": _BATCH,
    "micro_batch_size": _BATCH,
    "per_gpu_train_batch_size": _BATCH,
    "mini_batch_size": _BATCH,
    "auto_find_batch_size": _BATCH,
    "num_train_epochs": "here it is `training.epochs`",
    "num_epochs": "here it is `training.epochs`",
    "max_train_steps": "here it is `training.max_steps`",
    "max_train_samples": "here it is `data.limit`, or `max_pairs` of a source",
    "max_samples": "here it is `data.limit`, or `max_pairs` of a source",
    "group_by_length": "the order of pairs is drawn by `training.seed` alone",
    # lengths
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "sequence_len": _LENGTH,
    "cutoff_len": _LENGTH,
    "model_max_length": _LENGTH,
    "max_completion_length": f"completions are not cut on their own; {_LENGTH}",
    "max_target_length": f"completions are not cut on their own; {_LENGTH}",
    "truncation_mode": "of a sequence the start is kept (`data.max_length`), of a prompt the end "
    "(`data.max_prompt_length`)",
    "sample_packing": _PACKING,
    "packing": _PACKING,
    "padding_free": _PACKING,
    "pad_to_sequence_len": _PACKING,
    # objectives
    "loss_type": "here it is `training.objective` (sigmoid is dpo; ipo, hinge, robust, exo_pair is "
    "exo, sppo_hard is sppo, nca_pair is nca, apo_zero, apo_down)",
    "pref_loss": "here it is `training.objective`",
    "dpo_loss_type": "here it is `training.objective`",
    "rl": "here it is `training.objective`",
    "stage": "what is trained is chosen by `training.objective`, and `supervised.enabled`",
    "pref_beta": "here it is `training.beta`",
    "dpo_beta": "here it is `training.beta`",
    "rl_beta": "here it is `training.beta`",
    "pref_ftx": _NLL,
    "sft_alpha": _NLL,
    "ld_alpha": "LD-DPO's weight of a longer side's tail is not implemented; length-normalised "
    "objectives are among those of `training.objective`",
    "dpo_label_smoothing": "here it is `training.label_smoothing`",
    "simpo_gamma": "here it is `training.simpo_gamma_beta_ratio`, gamma divided by beta",
    "gamma_beta_ratio": "here it is `training.simpo_gamma_beta_ratio`",
    "cpo_alpha": _NLL,
    "orpo_alpha": "here it is `training.preference_weight` of objective orpo",
    "orpo_beta": "here it is `training.preference_weight` of objective orpo",
    "use_weighting": "WPO's weights are not implemented; see `training.objective`",
    "loss_weights": "a step has one objective, `training.objective`, and beside it the NLL by "
    "`training.rpo_alpha`; steps may differ",
    "f_alpha_divergence_coef": "only the reverse KL is implemented; see `training.objective`",
    "router_aux_loss_coef": "here it is `training.router_aux_loss`, 0 unless it is set",
    "discopop_tau": "DiscoPOP is not implemented; see `training.objective`",
    "f_divergence_type": "only the reverse KL is implemented; see `training.objective`",
    # references
    "ref_model": _REFERENCE,
    "ref_model_name_or_path": _REFERENCE,
    "model_ref": _REFERENCE,
    "ref_model_adapters": _REFERENCE,
    "precompute_ref_log_probs": _REFERENCE,
    "precompute_ref_batch_size": _REFERENCE,
    "reference_free": "objectives without a reference are among those of `training.objective`",
    "sync_ref_model": "a reference that moves while a step trains cannot be cached: it moves "
    "between steps, see `partition.fractions`",
    "ref_model_mixup_alpha": "a reference that moves while a step trains cannot be cached: it "
    "moves between steps, see `partition.fractions`",
    "ref_model_sync_steps": "a reference that moves while a step trains cannot be cached: it moves "
    "between steps, see `partition.fractions`",
    "disable_dropout": _DROPOUT,
    # optimizer
    "lr": "here it is `training.learning_rate`",
    "lr_scheduler_type": "here it is `training.lr_schedule`",
    "lr_scheduler": "here it is `training.lr_schedule`",
    "lr_scheduler_kwargs": "here the lowest rate of `training.lr_schedule: cosine_with_min_lr` is "
    "`training.min_lr_rate`",
    "min_lr_ratio": "here it is `training.min_lr_rate`",
    "optim": "here it is `training.optimizer`",
    "max_gradient_norm": "here it is `training.max_grad_norm`",
    "clip_grad_norm": "here it is `training.max_grad_norm`",
    # precision, memory and devices
    "bf16": _PRECISION,
    "fp16": f"{_PRECISION}; fp16 is not supported",
    "fp32": _PRECISION,
    "tf32": _PRECISION,
    "pure_bf16": f"{_PRECISION}: weights in bf16 lose updates at these learning rates",
    "mixed_precision": _PRECISION,
    "dtype": _PRECISION,
    "torch_dtype": _PRECISION,
    "load_in_4bit": _QUANTISED,
    "load_in_8bit": _QUANTISED,
    "quantization_bit": _QUANTISED,
    "quantization_method": _QUANTISED,
    "use_qlora": _QUANTISED,
    "deepspeed": _LAUNCH,
    "fsdp": f"{_LAUNCH}; FSDP is not among them",
    "fsdp_config": f"{_LAUNCH}; FSDP is not among them",
    "ddp_timeout": _LAUNCH,
    "num_processes": "here it is `launch.processes`",
    "device_map": "here it is `launch.device`",
    "flash_attention": "here it is `model.attention`",
    "flash_attn": "here it is `model.attention`",
    "attn_implementation": "here it is `model.attention`",
    "use_flash_attn": "here it is `model.attention`",
    "use_flash_attention_2": "here it is `model.attention`",
    "sdp_attention": "here it is `model.attention`",
    "torch_compile": "here it is `training.compile`",
    "use_liger_kernel": "the head is computed in chunks, and fused blocks are used where they "
    "compute the same: there is nothing to switch",
    "activation_offloading": "here it is `training.gradient_checkpointing`",
    "disable_gradient_checkpointing": "here it is `training.gradient_checkpointing`",
    # LoRA
    "lora_rank": "here it is `training.lora_r`",
    "use_peft": "LoRA is used where `training.lora_r` is above 0",
    "use_lora": "LoRA is used where `training.lora_r` is above 0",
    "finetuning_type": "LoRA is used where `training.lora_r` is above 0",
    "adapter": "LoRA is used where `training.lora_r` is above 0",
    "lora_target": "here it is `training.lora_target_modules`",
    "lora_target_linear": "here it is `training.lora_target_modules: [all-linear]`",
    "lora_modules_to_save": "modules beside the adapters are not trained; see "
    "`training.lora_target_modules`",
    "use_rslora": "here the scale is `training.lora_alpha` / `training.lora_r`",
    "use_dora": "DoRA is not supported; see `training.lora_r`",
    # model and template
    "model_name_or_path": "here it is `model.name_or_path`",
    "base_model": "here it is `model.name_or_path`",
    "model_revision": "here it is `model.revision`",
    "tokenizer_name_or_path": "the tokenizer is that of `model.name_or_path`",
    "template": "the tokenizer's own chat template is used; give another in `model.chat_template`",
    "chat_template_path": "here it is `model.chat_template`",
    "chat_template_name": "here it is `model.chat_template`, a file, or a name of the tokenizer's",
    "chat_template_jinja": "here it is `model.chat_template`, a file",
    "default_system": "a system text is a column of the data, or the template's own: see "
    "`model.chat_template`",
    "add_bos": "one BOS stands in front where the tokenizer puts one: there is nothing to set",
    "model_init_kwargs": "the model is loaded by `model.name_or_path`, `model.revision` and "
    "`model.attention` alone",
    "pad_token": "padding is masked whatever its token is: there is nothing to set",
    "pad_to_multiple_of": "padding is masked whatever its length is: see `training.layout`",
    "use_slow_tokenizer": "the tokenizer is read from its tokenizer.json",
    # data
    "dataset": _DATA,
    "datasets": _DATA,
    "dataset_name": _DATA,
    "dataset_dir": _DATA,
    "dataset_mixer": _MIXTURE,
    "dataset_mixer_list": _MIXTURE,
    "interleave_probs": _MIXTURE,
    "mix_strategy": _MIXTURE,
    "dataset_config": "here it is `subset` of a source",
    "dataset_split": "here it is `split` of a source",
    "dataset_train_split": "here it is `split` of a source",
    "dataset_text_field": "here they are the `columns` of a source",
    "field_messages": "here they are the `columns` of a source",
    "ranking": "whether data is paired is seen by its columns: see `data.sources`",
    "dataset_num_proc": _COMPUTED,
    "dataset_processes": _COMPUTED,
    "preprocessing_num_workers": _COMPUTED,
    "dataloader_num_workers": _COMPUTED,
    "overwrite_cache": "caches are keyed by content and need no overwriting; `store.cache_dir` "
    "says where they are",
    "val_set_size": _SPLITS,
    "val_size": _SPLITS,
    "test_datasets": _SPLITS,
    "dataset_test_split": _SPLITS,
    # measuring, saving, logging
    "eval_steps": _EVAL,
    "eval_strategy": _EVAL,
    "evaluation_strategy": _EVAL,
    "do_eval": _EVAL,
    "evals_per_epoch": _EVAL,
    "per_device_eval_batch_size": _EVAL,
    "generate_during_eval": "completions of reserved prompts are `probe.completions`",
    "save_steps": _SAVE,
    "save_strategy": _SAVE,
    "saves_per_epoch": _SAVE,
    "checkpointing_steps": _SAVE,
    "save_only_model": _SAVE,
    "load_best_model_at_end": _SAVE,
    "save_total_limit": "here it is `training.checkpoints_kept`",
    "resume_from_checkpoint": "a run goes on by itself: `sdpo run` again, with the same name",
    "output_dir": "here it is `store.runs_dir`, with the run's `name` under it",
    "overwrite_output_dir": "a run is never overwritten: give another `name`",
    "run_name": "here it is `name`",
    "logging_steps": _LOG,
    "logging_dir": _LOG,
    "logging_strategy": _LOG,
    "report_to": _LOG,
    "with_tracking": _LOG,
    "wandb_project": "here it is `tracking.project`, with `tracking.tools`",
    "plot_loss": "the report shows the loss of every step",
    "push_to_hub": "nothing is uploaded; `sdpo export` writes a folder that can be",
    "hub_model_id": "nothing is uploaded; `sdpo export` writes a folder that can be",
    "data_seed": "the draw of pairs is by `data.seed`, their order by `training.seed`",
}
"""By the setting's last name."""
