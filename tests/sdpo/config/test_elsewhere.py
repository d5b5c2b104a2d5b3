"""Settings of other trainers are told what they are here."""

import dataclasses
import re

import pytest

from sdpo.config import RunConfig
from sdpo.config.elsewhere import ELSEWHERE
from sdpo.config.elsewhere_several import SEVERAL
from sdpo.config.load import _all_keys, make_config
from sdpo.errors import ConfigError
from sdpo.objectives import OBJECTIVES

KEYS = {*_all_keys(RunConfig)}
PATH = re.compile(
    r"`((?:model|data|training|supervised|partition|probe|launch|store|tracking)\.[\w.]+)"
)


def test_every_setting_that_is_named_exists():
    named = {path for text in ELSEWHERE.values() for path in PATH.findall(text)}
    assert named
    assert named - KEYS - {"data.sources"} == set()


def test_no_setting_of_this_project_is_said_to_be_another():
    # A source's or group's own names count where they stand alone.
    assert {key.split(".")[-1] for key in KEYS}.isdisjoint(ELSEWHERE)


def test_the_objectives_that_are_named_exist():
    names = re.findall(
        r"\b(dpo|ipo|hinge|robust|exo|sppo|nca|apo_zero|apo_down)\b", ELSEWHERE["loss_type"]
    )
    assert {*names} == {*names} & OBJECTIVES.keys()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("gradient_accumulation_steps", "training.batch_size"),
        ("max_seq_length", "data.max_length"),
        ("cutoff_len", "data.max_length"),
        ("eval_steps", "probe"),
        ("loss_type", "training.objective"),
        ("pref_ftx", "training.rpo_alpha"),
        ("min_lr_ratio", "training.min_lr_rate"),
    ],
)
@pytest.mark.parametrize("group", ["training", "data", "model"])
def test_a_setting_of_another_trainer_is_told_what_it_is_here(key, meant, group):
    with pytest.raises(ConfigError, match=rf"{group}\.{key}: unknown key; .*`{meant}"):
        make_config({group: {key: 1}})
    with pytest.raises(ConfigError, match=rf"^{key}: unknown key; .*`{meant}"):
        make_config({key: 1})


def test_every_setting_of_trls_dpo_is_known():
    """Those of transformers' trainer among them: none is told to be a misspelling of another."""
    trl = pytest.importorskip("trl")
    arguments = (trl.DPOConfig, trl.ModelConfig, trl.ScriptArguments)
    theirs = {f.name for kind in arguments for f in dataclasses.fields(kind)}
    assert len(theirs) > 150
    assert theirs - {key.split(".")[-1] for key in KEYS} - ELSEWHERE.keys() == set()


OTHERS = {
    "LLaMA-Factory": ""
    "stage finetuning_type template cutoff_len val_size pref_beta pref_ftx pref_bco_weight "
    "pref_loss simpo_gamma ld_alpha kto_chosen_weight ref_model_quantization_bit "
    "dpo_label_smoothing lora_rank lora_target additional_target adapter_name_or_path "
    "quantization_bit double_quantization moe_aux_loss_coef enable_liger_kernel use_unsloth "
    "flash_attn packing neat_packing mask_history train_on_prompt dataset dataset_dir "
    "eval_dataset mix_strategy interleave_probs tokenized_path overwrite_cache "
    "preprocessing_num_workers preprocessing_batch_size max_samples streaming plot_loss pure_bf16 "
    "shift_attn rope_scaling resize_vocab neftune_alpha use_galore use_apollo use_badam "
    "use_llama_pro loraplus_lr_ratio pissa_init use_dora use_rslora upcast_layernorm use_swanlab "
    "swanlab_project tool_format split_special_tokens new_special_tokens "
    "disable_gradient_checkpointing use_fast_tokenizer include_num_input_tokens_seen "
    "enable_thinking default_system compute_accuracy media_dir",
    "axolotl": ""
    "base_model tokenizer_type model_type adapter load_in_8bit load_in_4bit lora_model_dir "
    "lora_target_linear lora_modules_to_save peft_use_dora peft_use_rslora micro_batch_size "
    "num_epochs sequence_len sample_packing pad_to_sequence_len eval_sample_packing val_set_size "
    "test_datasets dataset_prepared_path shuffle_merged_datasets dataset_processes rl rl_beta "
    "dpo_label_smoothing cpo_alpha simpo_gamma train_on_inputs group_by_length lr_scheduler "
    "cosine_min_lr_ratio loraplus_lr_ratio embedding_lr optim_args evals_per_epoch "
    "saves_per_epoch save_safetensors flash_attention sdp_attention xformers_attention "
    "s2_attention unfrozen_parameters special_tokens chat_template_jinja wandb_project "
    "wandb_entity early_stopping_patience loss_watchdog_threshold cut_cross_entropy "
    "liger_rms_norm fsdp fsdp_config deepspeed tf32 bf16 excess_length_strategy "
    "dataset_exact_deduplication neftune_noise_alpha gptq relora precompute_ref_log_probs "
    "lora_mlp_kernel auto_resume_from_checkpoints hub_strategy",
    "open-instruct": ""
    "exp_name model_name_or_path tokenizer_name tokenizer_revision chat_template_name "
    "use_slow_tokenizer add_bos dpo_beta dpo_loss_type loss_type gamma_beta_ratio "
    "dpo_gamma_beta_ratio dpo_label_smoothing load_balancing_loss load_balancing_weight "
    "mixer_list mixer_list_splits dataset_mixer dataset_mixer_list transform_fn target_columns "
    "cache_mode local_cache_dir skip_cache max_train_samples max_seq_length num_epochs "
    "per_device_train_batch_size gradient_accumulation_steps max_train_steps clip_grad_norm "
    "use_8bit_optimizer dpo_use_paged_optimizer fused_optimizer use_lora lora_rank use_qlora "
    "checkpointing_steps keep_last_n_checkpoints resume_from_checkpoint with_tracking report_to "
    "wandb_entity push_to_hub hf_entity hf_repo_id reduce_loss low_cpu_mem_usage logging_steps "
    "output_dir packing zero_stage",
}


@pytest.mark.parametrize("trainer", OTHERS)
def test_settings_that_people_bring_from_other_trainers_are_known(trainer):
    """As their recipes for preference training have them."""
    names = {*OTHERS[trainer].split()}
    assert names - {key.split(".")[-1] for key in KEYS} - ELSEWHERE.keys() == set()


def test_no_name_is_told_twice():
    names = [name for _, names in SEVERAL for name in names.split()]
    assert len(names) == len({*names})
