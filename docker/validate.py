"""Check the Kubernetes manifests, and the job of a work pool, by the schemas of Kubernetes' API.

``make check-docker`` calls it, in the environment of docker/tools.txt.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

DOCKER = Path(__file__).resolve().parent


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


def _job() -> dict[str, Any]:
    template = json.loads((DOCKER / "kubernetes-work-pool.json").read_text(encoding="utf-8"))
    declared = template["variables"]["properties"]
    variables = {name: each["default"] for name, each in declared.items() if "default" in each}
    variables |= {"command": ["python", "-m", "prefect.flow_runs"], "env": []}
    job: dict[str, Any] = _filled(template["job_configuration"]["job_manifest"], variables)
    return job


def main() -> int:
    """Check all of them; return 1 where one is not valid."""
    found = [("kubernetes-work-pool.json", _job())]
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml")):
        content = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        found += [(path.name, document) for document in content]
    version, faults = kubernetes_validate.latest_version(), 0
    for name, document in found:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults += 1
            print(f"{name}: {document['kind']}: {error}", file=sys.stderr)
    print(f"{len(found)} manifests, {faults} not valid by Kubernetes {version}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
