"""Find the settings of a training script for TRL by reading it as text; nothing in it runs."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from sdpo.errors import ConfigError
from sdpo.migration.files import text_of
from sdpo.migration.reading import Value
from sdpo.migration.script_values import Names
from sdpo.migration.written import OUTPUT, SAVED

_FROM_PEFT: dict[str, Value] = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
"""Defaults of peft's LoraConfig, which are not those of TRL's command line."""
_OF_LORA = {
    **{"r": "lora_r", "target_modules": "lora_target_modules"},
    **{"modules_to_save": "lora_modules_to_save", "task_type": "lora_task_type"},
    "target_parameters": "lora_target_parameters",
}
_OF_MODELS = {"revision": "model_revision"}
ROWS_CHANGED = "methods of the data that the script calls"
"""A script's settings have this beside those of TRL."""
_FIRST = (OUTPUT,)
_OF_TRAINERS = ("model", "ref_model", "args")


def script_settings(path: Path) -> Mapping[str, Value]:
    """Return the settings of the script's one DPOConfig, with its model, data and adapters.

    They are under the names that TRL's command line has for them.

    Raises:
        ConfigError: the script is not Python, or has no DPOConfig, or several.
    """
    try:
        tree = ast.parse(text_of(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{path} is not Python{line}: {error.args[0]}") from error
    return _Script(tree, path).settings()


def _called(node: ast.AST) -> str:
    """Return the last part of the name that a call has; empty where it is no plain call."""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


class _Script:
    def __init__(self, tree: ast.Module, path: Path) -> None:
        self._path = path
        self._names = Names(tree)
        self._calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        self._tree = tree

    def settings(self) -> Mapping[str, Value]:
        """Return what the script sets."""
        config = self._one("DPOConfig")
        if config is None:
            raise ConfigError(
                f"{self._path} has no call of DPOConfig. A script that takes its settings from the "
                "command line (TrlParser, HfArgumentParser) does not hold them: name the YAML or "
                "JSON file of its `--config`, or write its options into one"
            )
        found = self._keywords(config, first=_FIRST)
        found |= self._set_later(config)
        trainer = self._one("DPOTrainer")
        given = self._nodes(trainer, first=_OF_TRAINERS) if trainer else {}
        found |= self._model(given.get("model"))
        found |= self._reference(given.get("ref_model"), str(found.get("model_name_or_path")))
        found |= self._data(given.get("train_dataset"))
        found |= self._adapters()
        found |= self._saved()
        return found

    def _one(self, name: str) -> ast.Call | None:
        found = [call for call in self._calls if _called(call) == name]
        if len(found) > 1:
            lines = ", ".join(str(call.lineno) for call in found)
            raise ConfigError(
                f"{self._path} calls {name} on lines {lines}: leave one of them in a copy of it"
            )
        return found[0] if found else None

    def _nodes(self, call: ast.Call, *, first: tuple[str, ...] = ()) -> dict[str, ast.expr]:
        """Return the arguments of a call by name; positional ones are named by ``first``."""
        found = dict(zip(first, call.args, strict=False))
        for keyword in call.keywords:
            if keyword.arg:
                found[keyword.arg] = keyword.value
                continue
            inner = self._names.resolved(keyword.value)
            if not isinstance(inner, ast.Dict) or not all(
                isinstance(key, ast.Constant) for key in inner.keys
            ):
                raise ConfigError(
                    f"{self._path}, line {keyword.value.lineno}: **{ast.unparse(keyword.value)} is "
                    "computed when the script runs: write its settings out"
                )
            for key, value in zip(inner.keys, inner.values, strict=True):
                if isinstance(key, ast.Constant):
                    found[str(key.value)] = value
        return found

    def _keywords(self, call: ast.Call, *, first: tuple[str, ...] = ()) -> dict[str, Value]:
        nodes = self._nodes(call, first=first)
        return {name: self._names.value(node) for name, node in nodes.items()}

    def _set_later(self, config: ast.Call) -> dict[str, Value]:
        """Return what is assigned to the config after it was made: ``args.beta = 0.2``."""
        owners = self._names.names_of(config)
        found: dict[str, Value] = {}
        for node in ast.walk(self._tree):
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if (
                    isinstance(target, ast.Attribute)
                    and isinstance(target.value, ast.Name)
                    and target.value.id in owners
                    and isinstance(node, ast.Assign)
                ):
                    found[target.attr] = self._names.value(node.value)
        return found

    def _model(self, node: ast.expr | None) -> dict[str, Value]:
        loaded = self._names.resolved(node) if node is not None else self._loaded_model()
        if loaded is None:
            return {}
        if _called(loaded) == "get_peft_model" and isinstance(loaded, ast.Call) and loaded.args:
            loaded = self._names.resolved(loaded.args[0])
        if isinstance(loaded, ast.Call) and _called(loaded) == "from_pretrained":
            found = self._keywords(loaded, first=("model_name_or_path",))
            found["model_name_or_path"] = found.pop(
                "pretrained_model_name_or_path", found.get("model_name_or_path")
            )
            found.pop("device_map", None)
            found.pop("quantization_config", None)
            return {_OF_MODELS.get(name, name): value for name, value in found.items()}
        return {"model_name_or_path": self._names.text(loaded)}

    def _loaded_model(self) -> ast.expr | None:
        found = [
            call
            for call in self._calls
            if _called(call) == "from_pretrained" and "AutoModel" in ast.unparse(call.func)
        ]
        return found[0] if len(found) == 1 else None

    def _reference(self, node: ast.expr | None, model: str) -> dict[str, Value]:
        if node is None:
            return {}
        name = self._model(node).get("model_name_or_path")
        return {"ref_model": name} if name not in (None, model) else {}

    def _data(self, node: ast.expr | None) -> dict[str, Value]:
        nodes = list(self._names.closure(node)) if node is not None else list(ast.walk(self._tree))
        loads = list({id(each): each for each in nodes if _called(each) == "load_dataset"}.values())
        if len(loads) != 1 or not isinstance(loads[0], ast.Call):
            return {}
        arguments = self._keywords(loads[0], first=("path", "name"))
        files = arguments.get("data_files")
        found: dict[str, Value] = {
            "dataset_name": arguments.get("path"),
            "dataset_config": arguments.get("name"),
            "data_files": files,
        }
        split = arguments.get("split") or next(_subscripts(nodes), None)
        if split is not None:
            found["dataset_train_split"] = split
        if made := sorted({_called(each) for each in nodes} & {"map", "filter", "rename_column"}):
            found[ROWS_CHANGED] = ", ".join(made)
        return found

    def _saved(self) -> dict[str, Value]:
        """Return where the script saves the trained model, by the last call that says a place."""
        calls = [call for call in self._calls if _called(call) == SAVED]
        places = [self._keywords(call, first=_FIRST).get(OUTPUT) for call in calls]
        said = [place for place in places if place is not None]
        return {SAVED: said[-1]} if said else {}

    def _adapters(self) -> dict[str, Value]:
        lora, bits = self._one("LoraConfig"), self._one("BitsAndBytesConfig")
        found: dict[str, Value] = {}
        if lora is not None:
            said = self._keywords(lora)
            renamed = {_OF_LORA.get(name, name): value for name, value in said.items()}
            found = {"use_peft": True, **_FROM_PEFT, **renamed}
            found.pop("lora_task_type", None)
        if bits is not None:
            found |= {"bnb_4bit_quant_type": "fp4", **self._keywords(bits)}
            nested = found.pop("bnb_4bit_use_double_quant", None)
            found |= {"use_bnb_nested_quant": nested} if nested else {}
            found.pop("bnb_4bit_compute_dtype", None)
        return found


def _subscripts(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and isinstance(node.slice.value, str)
        ):
            yield node.slice.value
