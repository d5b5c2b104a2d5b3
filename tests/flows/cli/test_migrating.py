"""``sdpo from-…`` prints a recipe, which is one, and says on stderr what it came to."""

import re
from pathlib import Path

import pytest
from command_line import Sdpo

from sdpo.config.load import load_recipe
from sdpo.migration import from_trl

DOCS = Path(__file__).resolve().parents[3] / "docs" / "from-trl.md"


def test_a_script_becomes_a_recipe_on_standard_output(sdpo: Sdpo, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("DPOConfig(beta=0.2, ld_alpha=0.5)\n")
    made = sdpo("from-trl", script, "--devices", "2", "--set", "training.seed=5")
    assert made.code == 0
    assert "1 setting of TRL has no counterpart" in made.told
    assert "fill in: model.name_or_path" in made.told
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(made.out)
    training = load_recipe(recipe).training
    assert (training.beta, training.batch_size, training.seed) == (0.2, 16, 5)


def test_a_mistake_ends_with_code_2_and_no_recipe(sdpo: Sdpo, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("print(1)\n")
    made = sdpo("from-trl", script)
    assert (made.code, made.out) == (2, "")
    assert "no call of DPOConfig" in made.told
    assert sdpo("from-trl", tmp_path / "non.py").code == 2


ROWS = re.findall(r"^\| `(\w+): ([^`]+)` \| `([\w.]+): ([^`]+)` \|", DOCS.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("theirs", "value", "path", "ours"), ROWS, ids=[r[0] + r[1] for r in ROWS])
def test_each_row_of_the_table_in_the_docs_is_so(
    tmp_path: Path, theirs: str, value: str, path: str, ours: str
) -> None:
    file = tmp_path / "dpo.yaml"
    beside = "use_peft: true\n" if "lora" in path or "base_" in path else ""
    file.write_text(
        f"{beside}{theirs}: {value}\n" + ("label_smoothing: 0.1\n" if value == "robust" else "")
    )
    found: object = from_trl(file).config
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else getattr(found, part)
    assert str(found).lower() == ours.lower()


def test_the_table_is_there() -> None:
    assert len(ROWS) > 25
