"""Every refusal in what a run does before its first optimizer step is reached by `sdpo check`.

What a run and a look do in common (preparing, tokenising, planning) needs no proof: `check` calls
the same functions. What only a run comes to is walked here, in the code: a function that refuses
is in one of the two tables, or this test fails.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REFUSALS = {
    *("ConfigError", "DataError", "ModelError", "UserError", "RunExistsError"),
    *("ForeignFolderError", "Fault", "IntegrityError", "DiskFullError", "LowMemoryError"),
    *("LayoutError", "GateError", "DivergedError"),
}
ONLY_A_RUN = (
    *("stages", "model", "scoring", "training", "objectives", "processes", "generation"),
    *("chain/step.py", "chain/step_models.py", "chain/other_reference.py", "chain/supervised.py"),
    *("chain/start_stage.py", "chain/kl.py", "chain/probes.py", "chain/views.py"),
    *("chain/merged.py", "chain/win_rates.py", "chain/win_prompts.py"),
    *("chain/open_run.py", "chain/rounds.py", "chain/round_pairs.py", "chain/round_prompts.py"),
)

BAD_INPUT, CHECK, CLI = "test_bad_input", "test_check", "test_cli"
ADAPTERS = "test_adapters"
BROKEN_ADAPTER = "test_a_broken_or_unknown_adapter_is_refused_by_check"
ARCHITECTURE = "test_an_architecture_that_a_run_would_refuse_is_refused"
REACHED = {
    # function that refuses: test module, and the case or test there
    "check_complete": (BAD_INPUT, "weights that lack a tensor"),
    "_check_tied": (BAD_INPUT, "head beside the embedding it is tied to"),
    "check_training_mode": (CHECK, ARCHITECTURE),
    "forwards_known": (CHECK, ARCHITECTURE),
    "known_kernels": (CHECK, ARCHITECTURE),
    "settle_layout": (CHECK, ARCHITECTURE),
    "check_head": (BAD_INPUT, "weights that are no numbers"),
    "add_adapters": (CHECK, "test_adapters_on_a_tied_embedding_are_refused"),
    # A part of `add_adapters`, which a look calls as it stands.
    "check_names": (CHECK, "test_adapters_on_a_tied_embedding_are_refused"),
    "check_adapters": (CHECK, "test_adapters_on_a_tied_embedding_are_refused"),
    "_refuse": (
        "test_check_architectures",
        "test_what_a_run_could_not_train_or_publish_is_refused",
    ),
    "put_over": (ADAPTERS, BROKEN_ADAPTER),
    "hold_base": (
        "test_check_architectures",
        "test_a_base_that_has_no_layers_to_hold_is_refused",
    ),
    "_lora_config": (ADAPTERS, BROKEN_ADAPTER),
    "check_whole": (ADAPTERS, "test_a_module_to_train_whole_that_is_none_is_refused_by_check"),
    "check_form": (
        ADAPTERS,
        "test_an_adapter_of_another_form_than_the_recipe_asks_for_is_refused_by_check",
    ),
    "_try": (
        CHECK,
        "test_a_router_loss_for_a_model_without_routers_is_refused_before_anything_is_trained",
    ),
    "check_routers": (
        CHECK,
        "test_a_router_loss_for_a_mixture_whose_layers_are_all_dense_is_refused",
    ),
    "router_load": (
        CHECK,
        "test_a_router_loss_for_a_mixture_whose_layers_are_all_dense_is_refused",
    ),
    "modules.run": (
        CHECK,
        "test_adapters_that_a_later_step_cannot_have_are_refused_before_the_first_is_trained",
    ),
    "supervised_task": (
        CHECK,
        "test_supervised_data_of_which_nothing_is_left_is_refused_with_the_reason",
    ),
    "check_readable": (CHECK, "test_a_reference_that_cannot_read_the_pairs_is_refused"),
    "_check_prompts": (CHECK, "test_rounds_without_prompts_are_refused"),
    "check_space": (CHECK, "test_a_step_that_the_disk_has_no_room_for_is_refused"),
    "run_folder_of": (CHECK, "test_a_recipe_without_a_name_is_refused"),
    "_check_same": (CLI, "test_check_says_that_a_run_of_this_name_was_made_from_something_else"),
    "score_rows._check_finite": (BAD_INPUT, "weights that are no numbers"),
}
LATER = {
    "check_digest": "a model that was changed after the run was opened",
    "_copy_adapter": "a model that was changed while it was exported",
    "_refuse_lost": "a run that is extended has lost its S; `check` extends nothing",
    "lock_folder": "another account's locks, where there is no folder of one's own",
    "_lower": "memory while it trains",
    "lower": "memory while it trains",
    "_diverged": "an update that spoiled the weights",
    "evaluate": "an update that spoiled the weights",
    "evaluate.run": "a task that was changed between two looks at it",
    "save_model._check_finite": "an update that spoiled the weights",
    "_copy_into": "a damaged state of a step that was cut short",
    "_load_optimizer": "a damaged state of a step that was cut short",
    **dict.fromkeys(("load_zero", "own_parts"), "a damaged state of a step that was cut short"),
    "cached_values": "rows that were scored before, and the cache no longer has",
    "compared_with": "rows that were scored before, and the cache no longer has",
    "score_rows": "a cache that lost what was written a moment ago",
    **dict.fromkeys(("make_accelerator", "join"), "processes that do not find each other"),
    "_fitting": "of the tokens of prompts, once they are read",
    "_read_file": "of the tokens of prompts, once they are read",
    **dict.fromkeys(("_missing", "refuse"), "a file of prompts that has gone since"),
    "segmented_attention": "caught: the layout's trial falls back to the plain one",
    "kernels_named": "a kernel that served in its trial and fails later",
    "_compute_by_length": "of ranks that share weights, whose processes `check` has not",
    "_noise": "the gate, of the rows of the step's own reference",
    "compare_rows": "the gate, of the rows of the step's own reference",
    "run_stage": "a stop that was asked for",
    "listener": "of several nodes: an address that somebody else has taken by then",
    **dict.fromkeys(("submit", "tool"), "of jobs of SLURM, when a stage is submitted"),
    "_scored": "a spec that no node gives",
    "planned": "a spec that no node gives",
    "needed_supervised_tokens": "a spec that no node gives",
    **dict.fromkeys(
        ("_empty", "_check_names", "_check_forms", "fully_sharded._read", "merged_tensors"),
        "of launch.strategy fsdp2, whose processes `check` has not",
    ),
    "publish_shares": "an update that spoiled the weights",
    "load_rows": "a damaged state of a step that was cut short",
    "_rows": "a damaged state of a step that was cut short",
    "fp32_sums_of_ranks": "of launch.strategy deepspeed_zero3, whose processes `check` has not",
    "start_trackers": "a tracker that does not answer, or refuses, while the run is at work",
    "track.run": "a tracker that does not answer, or refuses, when all is measured",
    "judge": "hands on what a stage said",
    **dict.fromkeys(("_generate", "make"), "of the tokens of prompts, once they are drawn"),
    **dict.fromkeys(
        ("settle_form", "_as_text", "_ask", "_post", "completions_client._read", "check_served"),
        "of what a server answers once it runs",
    ),
    **dict.fromkeys(
        ("_ready", "_check_port", "_said_of_itself"), "a server is not started for a look"
    ),
    "check": "ceilings of tokens and of time, while samples are drawn",
    "draw_prompts": "of prompts that earlier rounds have answered",
    "_pool": "a file of prompts that was changed after the run was opened",
}


def refusals() -> dict[str, list[str]]:
    """Functions in that code which raise a mistake of the user's or a fault, with their modules."""
    found: dict[str, list[str]] = {}
    for entry in ONLY_A_RUN:
        path = ROOT / "sdpo" / entry
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and raised_in(node) & REFUSALS:
                    found.setdefault(node.name, []).append(file.stem)
    return found


def raised_in(function: ast.FunctionDef) -> set[str]:
    """Names of the errors that a function raises itself."""
    return {
        node.exc.func.id
        for node in ast.walk(function)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    }


def named(found: dict[str, list[str]]) -> set[str]:
    """Function names, with the module's where one name is none."""
    return {
        name if len(files) == 1 and name != "run" else f"{file}.{name}"
        for name, files in found.items()
        for file in files
    }


def test_every_refusal_is_reached_by_check_or_comes_of_what_happens_after_it() -> None:
    assert named(refusals()) == REACHED.keys() | LATER.keys()


def test_the_tests_that_reach_them_exist() -> None:
    for module, name in REACHED.values():
        source = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
        assert (f'"{name}": (' if module == BAD_INPUT else f"def {name}(") in source
