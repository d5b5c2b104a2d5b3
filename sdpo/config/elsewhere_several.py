"""Say what several settings of other trainers are here, under their names there."""

BATCH = (
    "the batch is given whole: `training.batch_size` is pairs per optimizer step over all devices "
    "(devices x per-device batch x accumulation), cut into micro-batches of "
    "`training.micro_batch_tokens`"
)
LENGTH = "here it is `data.max_length`, of prompt + completion in tokens"
EVAL = (
    "models are not evaluated while they train: `probe` measures every M_t on the reserve "
    "(`data.reserve.fraction`) and on the partitions (`probe.max_pairs`)"
)
SAVE = (
    "a step publishes one model, at its end; states to resume from are kept by "
    "`training.checkpoint_minutes` and `training.checkpoint_every`"
)
LOG = "every optimizer step is in metrics.jsonl; other trackers are chosen by `tracking.tools`"
PRECISION = "here it is `training.precision`, bf16 (over fp32 master weights) or fp32"
LAUNCH = "how processes share the work is `launch.strategy`, with `launch.processes`"
QUANTISED = (
    "a base under adapters (`training.lora_r`) is held in fewer bits by `model.base_precision`: "
    "bf16, int8 or nf4; weights that train are fp32"
)
REFERENCE = (
    "references are chosen by `training.reference` (and `training.reference_model`); their "
    "log-probs are always computed once, beforehand, and cached"
)
SPLITS = (
    "what is set aside for measuring is `data.reserve.fraction` of each source, or so many pairs: "
    "`data.reserve.pairs`"
)
MIXTURE = (
    "data is mixed by the `weight` of each of `data.sources` (proportions, no pair twice), or by "
    "its `max_pairs`"
)
DATA = "data is named in `data.sources`, each with its `path` and `columns`"
NLL = "here it is `training.rpo_alpha`, the weight of the chosen side's NLL per token"
COMPUTED = "processes, threads and forked workers are chosen by themselves; see `launch.threads`"
PACKING = "how pairs lie in a micro-batch is `training.layout`"
DROPOUT = "dropout is always off: the first loss is ln 2 to the last digit, which the gate checks"

SEVERAL: list[tuple[str, str]] = [
    (
        LOG,
        "logging_first_step logging_nan_inf_filter log_on_each_node log_level log_level_replica "
        "disable_tqdm include_num_input_tokens_seen include_tokens_per_second skip_memory_metrics "
        "include_num_tokens_seen print_param_status use_swanlab swanlab_project use_wandb "
        "use_tensorboard use_mlflow use_comet trackio_space_id trackio_bucket_id "
        "trackio_static_space_id log_with wandb_entity wandb_name wandb_run_id",
    ),
    (
        EVAL,
        "eval_delay eval_on_start eval_accumulation_steps eval_batch_size eval_do_concat_batches "
        "eval_use_gather_object eval_sample_packing eval_table_size eval_max_new_tokens "
        "eval_on_each_dataset eval_dataset eval_num_beams prediction_loss_only batch_eval_metrics "
        "include_for_metrics per_gpu_eval_batch_size do_predict do_causal_lm_eval "
        "compute_accuracy bf16_full_eval fp16_full_eval early_stopping_patience "
        "loss_watchdog_threshold",
    ),
    (
        SAVE,
        "save_on_each_node save_first_step enable_jit_checkpoint metric_for_best_model "
        "greater_is_better restore_callback_states_from_checkpoint ignore_data_skip "
        "auto_resume_from_checkpoints save_steps_per_epoch save_safetensors save_hf_model",
    ),
    (
        "here it is `training.checkpoints_kept`",
        "keep_last_n_checkpoints",
    ),
    (
        "`sdpo push` uploads the model of a step, when it is asked to",
        "hub_token hub_private_repo hub_strategy hub_always_push hub_revision push_dataset_to_hub "
        "hf_entity hf_repo_id hf_repo_revision hf_repo_url hf_use_auth_token hub_model_revision",
    ),
    (
        COMPUTED,
        "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order torch_empty_cache_steps "
        "preprocessing_batch_size gc_steps",
    ),
    (
        "every pair of a step is trained on, and the last batch may be smaller",
        "dataloader_drop_last",
    ),
    (
        LAUNCH,
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
        "ddp_backend accelerator_config parallelism_config local_rank fsdp_version zero_stage "
        "zero_hpz_partition_size tensor_parallel_size context_parallel_size "
        "sequence_parallel_size sequence_parallel_degree dp_shard_size dp_replicate_size "
        "fsdp_min_num_params",
    ),
    (
        "here it is `launch.device`",
        "use_cpu no_cuda use_mps_device",
    ),
    (
        "the columns that a source is read from are its `columns`; others are shown by `sdpo "
        "check`, and not used",
        "remove_unused_columns label_names length_column_name",
    ),
    (
        "the order of pairs is drawn by `training.seed` alone",
        "train_sampling_strategy shuffle_merged_datasets shuffle_before_merging_datasets "
        "curriculum_sampling disable_shuffling shuffle_dataset length_group",
    ),
    (
        "here it is `training.gradient_checkpointing`",
        "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs "
        "use_reentrant_gc use_unsloth_gc",
    ),
    (
        "here it is `training.recomputation`",
        "selective_checkpointing",
    ),
    (
        "here it is `training.compile`",
        "torch_compile_backend torch_compile_mode",
    ),
    (
        "the head is computed in chunks, and fused blocks are used where they compute the same: "
        "there is nothing to switch",
        "liger_kernel_config enable_liger_kernel liger_rope liger_rms_norm liger_glu_activation "
        "liger_fused_linear_cross_entropy cut_cross_entropy use_unsloth unsloth fused_optimizer "
        "use_fused_kernels chunked_cross_entropy flash_attn_cross_entropy flash_attn_rms_norm "
        "use_v1_kernels",
    ),
    (
        "here it is `model.attention`",
        "xformers_attention sdpa_attention flex_attention eager_attention s2_attention shift_attn",
    ),
    (
        PRECISION,
        "upcast_layernorm upcast_lmhead_output fp8 infer_dtype amp half_precision_backend "
        "bfloat16 float16 float32",
    ),
    (
        QUANTISED,
        "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage quantization_type "
        "double_quantization gptq bnb_config_kwargs use_hqq ref_model_quantization_bit "
        "qlora_sharded_model_loading",
    ),
    (
        "LoRA has `training.lora_r`, `lora_alpha`, `lora_dropout`, `lora_target_modules`, "
        "`lora_rslora`, `lora_dora`, `lora_modules_to_save` and `lora_handoff`",
        "lora_target_parameters lora_task_type lora_fan_in_fan_out peft_layers_to_transform "
        "peft_layers_pattern peft_use_dora peft_use_rslora peft_init_lora_weights "
        "peft_trainable_token_indices loraplus_lr_ratio loraplus_lr_embedding pissa_init "
        "pissa_iter pissa_convert additional_target create_new_adapter lora_on_cpu merge_lora "
        "relora relora_steps loftq_config use_galore galore_target galore_rank use_apollo "
        "use_badam lisa_n_layers use_llama_pro oft_rank freeze_trainable_layers "
        "freeze_trainable_modules unfrozen_parameters lora_bias lora_qkv_kernel lora_mlp_kernel "
        "lora_o_kernel",
    ),
    (
        "an adapter's folder is a model: name it in `model.name_or_path`",
        "adapter_name_or_path lora_model_dir adapter_folder model_adapter_name ref_adapter_name "
        "peft_config",
    ),
    (
        REFERENCE,
        "force_use_ref_model ref_model_init_kwargs rl_adapter_ref_model "
        "reference_logprobs_cache_path",
    ),
    (
        "here it is `training.objective` (dpo_norm is not implemented, wpo neither)",
        "dpo_norm rlhf_type",
    ),
    (
        "BCO's weight beside DPO is not implemented; see `training.objective`",
        "pref_bco_weight",
    ),
    (
        "here it is `training.beta`, ORPO's weight `training.preference_weight`",
        "kto_beta simpo_beta",
    ),
    (
        "the data of KTO is unpaired, and pairs alone are read: see `training.objective`",
        "kto_chosen_weight kto_rejected_weight kto_desirable_weight kto_undesirable_weight "
        "desirable_weight undesirable_weight",
    ),
    (
        "here it is `training.simpo_gamma_beta_ratio`",
        "dpo_gamma_beta_ratio",
    ),
    (
        "here it is `training.router_aux_loss`, 0 unless it is set",
        "moe_aux_loss_coef load_balancing_loss load_balancing_weight output_router_logits "
        "aux_loss_coef",
    ),
    (
        "a pair's loss is that of its whole sides: padding and prompts are never in it",
        "label_pad_token_id padding_value ignore_pad_token_for_loss train_on_inputs "
        "train_on_prompt mask_history train_on_eos label_smoothing_factor roles_to_train "
        "train_on_eot padding_side reduce_loss average_tokens_across_devices loss_scale "
        "ignore_bias_buffers is_encoder_decoder",
    ),
    (
        "noise on the embeddings is not implemented: the first loss is ln 2 to the last digit, "
        "which the gate checks",
        "neftune_noise_alpha neftune_alpha noisy_embedding_alpha",
    ),
    (
        "optimizers are those of `training.optimizer`, with `training.adam_beta1`, "
        "`training.adam_beta2`, `training.adam_epsilon` and `training.weight_decay`",
        "optim_args optim_target_modules use_8bit_optimizer use_paged_optimizer "
        "dpo_use_paged_optimizer embedding_lr embedding_lr_scale lr_groups adam_beta3 "
        "adam_epsilon2 use_muon",
    ),
    (
        "here it is `training.lr_schedule`, with `training.min_lr_rate`",
        "cosine_min_lr_ratio cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor min_lr "
        "num_cycles lr_end",
    ),
    (
        "here it is `training.batch_size`",
        "global_batch_size effective_batch_size generation_batch_size total_batch_size",
    ),
    (
        DATA,
        "dataset_streaming streaming dataset_mixer_list_splits mixer_list train_file dataset_path "
        "data_files data_path train_files custom_train_dataset_path pretraining_dataset media_dir "
        "transform_fn target_columns columns_mapping ds_type",
    ),
    (
        "here they are the `weight` and `split` of each of `data.sources`",
        "mixer_list_splits",
    ),
    (
        "here it is `subset` of a source",
        "dataset_config_name",
    ),
    (
        "prepared data and tokens are kept by content under `store.cache_dir`",
        "dataset_prepared_path tokenized_path dataset_local_cache_dir local_cache_dir "
        "dataset_cache_mode dataset_skip_cache skip_cache cache_mode dataset_mix_dir "
        "overwrite_dataset_cache",
    ),
    (
        "pairs are compared by their text, and one of two that are equal is used: there is "
        "nothing to switch",
        "dataset_exact_deduplication",
    ),
    (
        "of a sequence the start is kept (`data.max_length`), of a prompt the end "
        "(`data.max_prompt_length`)",
        "excess_length_strategy truncation_side truncation_strategy drop_long_prompts "
        "sequence_len_overflow_handling min_sample_len",
    ),
    (
        PACKING,
        "neat_packing multipack_real_batches flash_attn_fuse_qkv batch_flattening "
        "packing_strategy sample_packing_eff_est",
    ),
    (
        "the tokenizer is that of `model.name_or_path`, with all that its files say",
        "tokenizer_config tokenizer_type tokenizer_name tokenizer_revision tokenizer_path "
        "use_fast_tokenizer resize_vocab split_special_tokens add_tokens add_special_tokens "
        "special_tokens new_special_tokens resize_token_embeddings_to_32x tokenizer_use_fast "
        "eos_token bos_token tokenizer_legacy added_tokens_overrides",
    ),
    (
        "the model is loaded by `model.name_or_path`, `model.revision` and `model.attention` alone",
        "base_model_config model_type revision_of_model cls_model_config low_cpu_mem_usage "
        "rope_scaling use_cache use_kv_cache model_config overrides_of_model_config "
        "overrides_of_model_kwargs is_llama_derived_model rope_theta mixture_of_depths "
        "train_from_scratch config_name model_kwargs device_map_kwargs",
    ),
    (
        "tools and their calls are printed by the tokenizer's chat template: see "
        "`model.chat_template`",
        "tool_format",
    ),
    (
        "variables of the chat template are `model.chat_template_kwargs`",
        "enable_thinking template_kwargs tokenizer_chat_template_kwargs chat_template_args",
    ),
    (
        "runs are repeatable by their seeds: see `training.seed`",
        "full_determinism deterministic",
    ),
    (
        "a run is one command, `sdpo run`: there is nothing to switch",
        "do_train debug exp_name",
    ),
]
"""Each entry has what is said, and the settings that it is said of, separated by spaces."""
SYNCHRONISED = (
    "within a step the reference stays as it was, so that it is scored once; it moves between "
    "steps, by `partition.strategy: stratified` with a step in `partition.fractions` for each sync"
)
"""Of settings that move the reference towards the target while they train."""
