"""Check the Kubernetes manifests, and the job of a work pool, by the schemas of Kubernetes' API.

    python docker/validate.py
    python docker/validate.py --vendor
    python docker/validate.py --vendor-jobset jobset.x-k8s.io_jobsets.yaml

The schemas are in ``kubernetes/schemas.json``: those of the kinds that the manifests have, and what
these refer to, as the package kubernetes-validate has them (docker/tools.txt). ``--vendor`` takes
them from there anew, after a change of its version or where a manifest has a kind of its own. That
of a JobSet is made from the definition that its project publishes (kubernetes-sigs/jobset, in
config/components/crd/bases), with the jobs in it as Kubernetes has them; fields and types alone.
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

DOCKER = Path(__file__).resolve().parent
SCHEMAS = DOCKER / "kubernetes" / "schemas.json"
JOBSET = "jobset.x-k8s.io/v1alpha2 JobSet"
_REFERENCE = re.compile(r"^/api/_definitions\.json#/\$defs/(.+)$")


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every manifest with the name of its file, and the job that the work pool makes."""
    yield "kubernetes-work-pool.json", _job()
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield path.name, document


def _job() -> dict[str, Any]:
    template = json.loads((DOCKER / "kubernetes-work-pool.json").read_text(encoding="utf-8"))
    declared = template["variables"]["properties"]
    variables = {name: each["default"] for name, each in declared.items() if "default" in each}
    variables |= {"command": ["python", "-m", "prefect.flow_runs"], "env": []}
    job: dict[str, Any] = _filled(template["job_configuration"]["job_manifest"], variables)
    return job


def _filled(value: Any, variables: dict[str, Any]) -> Any:
    """Return a template with the defaults of its variables, as Prefect fills it in."""
    if isinstance(value, dict):
        filled = {key: _filled(each, variables) for key, each in value.items()}
        return {key: each for key, each in filled.items() if each is not None}
    if isinstance(value, list):
        return [_filled(each, variables) for each in value]
    if isinstance(value, str) and (whole := re.fullmatch(r"\{\{ (\w+) \}\}", value)):
        return variables.get(whole[1])
    if isinstance(value, str):
        return re.sub(r"\{\{ (\w+) \}\}", lambda m: str(variables.get(m[1], "x")), value)
    return value


def fault(document: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Say what is wrong with a manifest, and where; else ""."""
    name = _kind(document)
    if name not in schemas["kinds"]:
        return f"there is no schema of {name}: python docker/validate.py --vendor"
    schema = schemas["kinds"][name] | {"$defs": schemas["$defs"]}
    try:
        Draft202012Validator(schema).validate(document)
    except ValidationError as error:
        return f"{error.json_path}: {error.message}"
    return ""


def _kind(document: dict[str, Any]) -> str:
    return f"{document['apiVersion']} {document['kind']}"


def vendor() -> dict[str, Any]:
    """Return the schemas of the manifests' kinds, without the words of those who wrote them."""
    import kubernetes_validate as package

    version = package.latest_version()
    folder = resources.files(package) / "kubernetes-json-schema" / f"v{version}-local-strict"

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    kinds, known = {}, read("_definitions.json")["$defs"]
    jobset = json.loads(SCHEMAS.read_text(encoding="utf-8"))["kinds"][JOBSET]
    for _, document in documents():
        if _kind(document) == JOBSET:
            kinds[JOBSET] = jobset
            continue
        api = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", document["apiVersion"])
        kinds[_kind(document)] = _bare(read(f"{document['kind'].lower()}-{api}.json"))
    wanted, needed = [*kinds.values()], {}
    while wanted:
        for name in _references(wanted.pop()):
            if name not in needed:
                needed[name] = _bare(known[name])
                wanted.append(needed[name])
    kinds, needed = (dict(sorted(each.items())) for each in (kinds, needed))
    return {"version": version, "kinds": kinds, "$defs": needed}


def jobset_schema(definition: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a JobSet from its custom resource definition."""
    version = JOBSET.split("/")[1].split(" ", maxsplit=1)[0]
    (found,) = [each for each in definition["spec"]["versions"] if each["name"] == version]
    schema = _strict(_bare(found["schema"]["openAPIV3Schema"]))
    parts = "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    jobs = schema["properties"]["spec"]["properties"]["replicatedJobs"]["items"]
    jobs["properties"]["template"] = {
        "type": "object",
        "required": ["spec"],
        "additionalProperties": False,
        "properties": {
            "metadata": {"$ref": parts},
            "spec": {"$ref": "#/$defs/io.k8s.api.batch.v1.JobSpec"},
        },
    }
    schema["properties"] |= {"metadata": {"$ref": parts}}
    kept: dict[str, Any] = schema
    return kept


def _strict(schema: Any) -> Any:
    """Return a schema whose objects have no other fields than those that it names."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _strict(value) for key, value in schema.items()}
    if isinstance(kept.get("properties"), dict) and "type" in kept:
        kept.setdefault("additionalProperties", False)
    return kept


def _write(schemas: dict[str, Any]) -> None:
    text = json.dumps(schemas, separators=(",", ":"))
    SCHEMAS.write_text(text.replace('},"', '},\n"') + "\n", encoding="utf-8")


def _bare(schema: Any) -> Any:
    """Return a schema without descriptions, its references into the same file."""
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        is_text = key in ("description", "$schema", "$id") and isinstance(value, str)
        if not is_text and not key.startswith("x-kubernetes"):
            kept[key] = _bare(value)
    if found := _REFERENCE.match(str(kept.get("$ref", ""))):
        kept["$ref"] = f"#/$defs/{found[1]}"
    return kept


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix("#/$defs/")
        schema = list(schema.values())
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)


def main() -> int:
    """Check all of them; return 1 where one is not valid."""
    if sys.argv[1:] == ["--vendor"]:
        _write(vendor())
        return 0
    schemas = json.loads(SCHEMAS.read_text(encoding="utf-8"))
    if sys.argv[1:2] == ["--vendor-jobset"]:
        definition = yaml.safe_load(Path(sys.argv[2]).read_text(encoding="utf-8"))
        kinds = schemas["kinds"] | {JOBSET: jobset_schema(definition)}
        _write(schemas | {"kinds": dict(sorted(kinds.items()))})
        return 0
    found = [(name, each["kind"], fault(each, schemas)) for name, each in documents()]
    for name, kind, what in found:
        if what:
            print(f"{name}: {kind}: {what}", file=sys.stderr)
    faults = sum(bool(what) for *_, what in found)
    print(f"{len(found)} manifests, {faults} not valid by Kubernetes {schemas['version']}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
