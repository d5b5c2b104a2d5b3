"""Every change to another library stands in one module, and names the check that guards it."""

import ast
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sdpo
from sdpo.model import patches

HOME = Path(patches.__file__)
REACHING_IN = re.compile(r"MethodType\(|\._set_sync_gradients|_compiled_call_impl|config\.patch\(")


def modules() -> list[Path]:
    return sorted(Path(sdpo.__file__).parent.rglob("*.py"))


def test_nobody_else_binds_a_forward_or_sets_what_a_library_keeps_for_itself():
    found = [path.name for path in modules() if REACHING_IN.search(path.read_text("utf-8"))]
    assert found == [HOME.name]


def test_nobody_else_assigns_a_forward_or_a_function_of_another_module():
    """``x.forward = ...`` and ``code.apply_rotary_pos_emb = ...``, however they are written."""
    names = {"forward", "apply_rotary_pos_emb", "generation_config"}
    found: set[str] = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else []
            flat = [part for t in targets for part in (t.elts if isinstance(t, ast.Tuple) else [t])]
            if any(isinstance(t, ast.Attribute) and t.attr in names for t in flat):
                found.add(path.name)
    assert found == {HOME.name}


@pytest.mark.parametrize("name", patches.PATCHES)
def test_the_check_that_guards_a_patch_exists(name):
    parts = patches.PATCHES[name].guard.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        assert callable(found)
        return
    raise AssertionError(f"no module of {parts}")


def test_what_was_bound_to_a_module_can_be_taken_off_again():
    linear = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    own = linear(x)
    patches.bind_forward(linear, lambda self, y: y + len(self.weight))
    assert patches.has_own_forward(linear)
    assert torch.equal(linear(x), x + 2)
    patches.restore_forward(linear)
    assert not patches.has_own_forward(linear)
    assert torch.equal(linear(x), own)


def test_a_models_settings_of_generation_come_back_when_generating_fails():
    model = SimpleNamespace(generation_config="own")

    def fail() -> None:
        with patches.generating_with(model, "plain"):
            assert model.generation_config == "plain"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert model.generation_config == "own"


def test_torch_has_its_limit_of_graphs_again_after_a_call():
    before = torch._dynamo.config.recompile_limit
    with patches.more_graphs(before + 7):
        assert torch._dynamo.config.recompile_limit == before + 7
    assert torch._dynamo.config.recompile_limit == before
