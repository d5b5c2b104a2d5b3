"""The container files, as far as they can be checked without an engine."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from containers import DOCKER, ENTRYPOINT, ROOT, compose, entered, free_port, started
from docker.utils.build import exclude_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prefect.utilities.templating import find_placeholders

TARGETS = ("cpu", "cuda")


def instructions() -> list[tuple[str, str, str]]:
    """The Dockerfile: the stage, the instruction and its text, continued lines joined."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found, stage = [], "all"
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[1]
        found.append((stage, word, rest))
    return found


def copied() -> list[tuple[str, str]]:
    """Sources of every COPY that does not copy from another stage."""
    return [
        (stage, source)
        for stage, word, rest in instructions()
        if word == "COPY" and "--from=" not in rest
        for source in rest.split()[:-1]
    ]


def runs(stage: str) -> list[str]:
    """The commands of a stage's RUN instructions."""
    return [
        part.strip()
        for of, word, rest in instructions()
        if (of, word) == (stage, "RUN")
        for part in rest.split("&&")
    ]


def allowed() -> list[str]:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


# --- the Dockerfile


def test_there_are_two_images_that_run_as_a_user_of_their_own() -> None:
    words = instructions()
    assert {stage for stage, _, _ in words} == {"all", *TARGETS}
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ARG", "USER", "ENTRYPOINT", "CMD"}
    assert {word for _, word, _ in words} <= known
    for target in TARGETS:
        mine = [(word, rest) for stage, word, rest in words if stage == target]
        assert ("USER", "1000") in mine
        after = mine[mine.index(("USER", "1000")) :]
        assert not any(word in ("RUN", "COPY", "USER") for word, _ in after[1:])
        (entry,) = [json.loads(rest) for word, rest in mine if word == "ENTRYPOINT"]
        assert (ROOT / Path(entry[0]).relative_to("/opt/sdpo")) == ENTRYPOINT
        assert "PREFECT_SERVER_ANALYTICS_ENABLED=false" in dict(mine)["ENV"]


def test_every_path_that_is_copied_exists_and_is_in_the_context() -> None:
    assert len(copied()) >= 4
    for stage, source in copied():
        assert (ROOT / source).exists(), (stage, source)
        assert source == "." or source in allowed(), (stage, source)
    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= set(allowed())
    assert {f"docker/{path.name}" for path in DOCKER.glob("*.sh")} <= set(allowed())
    assert all(any(ROOT.glob(name)) for name in allowed())


def of_the_packages() -> set[str]:
    """The files that are installed, as pyproject.toml names them."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    data = tool["package-data"]
    kinds = {name: ["*.py", *data.get(name, ()), *data["*"]] for name in tool["packages"]}
    return {
        path.relative_to(ROOT).as_posix()
        for name, patterns in kinds.items()
        for pattern in patterns
        for path in (ROOT / name.replace(".", "/")).glob(pattern)
    }


SECRETS = [
    *(".env", ".env.local", "hf_token", "id_rsa", "prefect_auth", "secrets/another", ".netrc"),
    *("data/pairs.jsonl", "pairs.parquet", "runs/mine/model.safetensors", "cache/logps/x"),
    *(".sdpo-server/password", ".sdpo-server/prefect/prefect.db", ".git/config", "notes.ipynb"),
    *(".venv/lib/secret.py", "credentials.json", "recipe.yml", "__pycache__/x.pyc"),
]


def test_the_build_context_is_what_is_installed_whatever_lies_beside_it(tmp_path: Path) -> None:
    """By the rules as Docker's own client reads them, with secrets and data in every folder."""
    example = (DOCKER / ".env.example").read_text(encoding="utf-8")
    told = re.findall(r"=\./(\S+)", example)
    assert {"secrets/prefect_auth", "secrets/postgres_password", "data"} <= set(told)
    needed = of_the_packages() | {name for name in allowed() if "*" not in name}
    assert {"sdpo/chain/run_chain.py", "flows/recipes/demo.yaml", "docker/worker.sh"} <= needed
    folders = {"", "docker", "tests", *(str(Path(name).parent) for name in needed)}
    planted = {str(Path(folder) / name) for folder in folders for name in SECRETS}
    planted |= {f"docker/{place}{'/pairs.jsonl' if place == 'data' else ''}" for place in told}
    for name in needed | planted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    rules = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    lines = [line for line in rules if line and not line.startswith("#")]
    sent = {name for name in exclude_paths(str(tmp_path), lines) if (tmp_path / name).is_file()}
    assert sent == needed


def test_base_images_can_be_given_by_digest() -> None:
    given = {rest.split("=")[0] for stage, word, rest in instructions() if stage == "all"}
    froms = [rest.split(" AS ")[0] for _, word, rest in instructions() if word == "FROM"]
    assert {f"${{{name}}}" for name in given} == set(froms)
    services = compose()["services"]
    assert all(
        set(service["build"]["args"]) <= given
        for service in services.values()
        if "build" in service
    )


@pytest.mark.parametrize("target", TARGETS)
def test_dependencies_have_a_layer_of_their_own_before_the_source_and_are_known_by_their_hashes(
    target: str,
) -> None:
    words = [(word, rest) for stage, word, rest in instructions() if stage == target]
    source = words.index(("COPY", ". ."))
    installs = [
        i for i, (word, rest) in enumerate(words) if word == "RUN" and "pip install" in rest
    ]
    for command in (words[i][1] for i in installs if i < source):
        assert "--no-deps" in command, "a lock is whole"
        assert "--require-hashes" in command
        assert re.search(r"--requirement /opt/[\w-]+\.lock$", command)
    (after,) = [words[i][1] for i in installs if i > source]
    assert after.startswith("pip install --no-deps --no-build-isolation .")


# --- locks

LOCKS = {
    "cpu": (DOCKER / "requirements-cpu.lock", ()),
    "cuda": (DOCKER / "requirements-cuda.lock", ("deepspeed", "quantisation")),
    "development": (ROOT / "requirements.lock", ("test", "deepspeed", "quantisation", "e2e")),
}
OF_A_GPU = re.compile(r"torch|triton|(cuda|nvidia)-.+")
BUILT_WITH = {"setuptools", "wheel"}


def locked(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of every package of a lock."""
    text = path.read_text(encoding="utf-8").replace("\\\n", "")
    found = {}
    for line in text.splitlines()[1:]:
        requirement, *hashes = line.split(" --hash=")
        parsed = Requirement(requirement.strip())
        (version,) = parsed.specifier
        assert version.operator == "=="
        found[canonicalize_name(parsed.name)] = (version.version, [h.strip() for h in hashes])
    return found


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_the_versions_of_the_constraints_and_a_hash_of_every_file(name: str) -> None:
    path, _ = LOCKS[name]
    pinned = pins()
    found = locked(path)
    assert len(found) > 100
    for package, (version, hashes) in found.items():
        assert hashes, package
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes), package
        assert pinned.get(package, version) == version, package
    assert any(OF_A_GPU.fullmatch(package) for package in found) is (name == "cuda")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_what_the_project_depends_on(name: str) -> None:
    path, extras = LOCKS[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(x for e in extras for x in project["optional-dependencies"][e]),
    ]
    found = locked(path)
    for requirement in map(Requirement, wanted):
        package = canonicalize_name(requirement.name)
        if package == "torch" and name != "cuda":
            version = pins()["torch"]
        else:
            version, _ = found[package]
        assert requirement.specifier.contains(version), package


def test_what_a_lock_has_beside_the_constraints_is_another_systems_or_builds() -> None:
    """Nothing comes into an environment whose version no constraint says."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", "")
    here = [Requirement(line.split(" --hash=")[0].strip()) for line in text.splitlines()[1:]]
    wanted = {canonicalize_name(r.name) for r in here if r.marker is None or r.marker.evaluate()}
    assert wanted - set(pins()) <= BUILT_WITH
    assert set(pins()) - {canonicalize_name(r.name) for r in here} == {"torch"}


def made(target: str, folder: Path) -> list[str]:
    """The commands by which `make` reaches a target in a clean clone."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(DOCKER, folder / "docker", dirs_exist_ok=True)
    command = ["make", "--dry-run", "--no-print-directory", target]
    clean = {"PATH": os.environ["PATH"]}  # it may be called by a `make` itself
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ").splitlines()


OF_INSTALL = [f"docker/{name}.lock" for name in ("requirements-cpu", "torch-cpu", "torch")]
OF_TESTS = {"pytest", "trl", "deepspeed", "playwright", "ruff", "mypy", "hypothesis", "tensorboard"}


def test_what_shows_and_serves_installs_no_tools_of_tests(tmp_path: Path) -> None:
    needed = locked(DOCKER / "requirements-cpu.lock")
    assert not OF_TESTS & set(needed)
    for target in ("install", "demo", "server"):
        commands = made(target, tmp_path)
        locks = re.findall(r"--require-hashes --requirement (\S+)", "\n".join(commands))
        assert locks == OF_INSTALL


def test_what_tests_installs_them_beside_the_same_versions(tmp_path: Path) -> None:
    development = locked(ROOT / "requirements.lock")
    assert set(development) >= OF_TESTS
    # What is installed first is not exchanged by what comes later.
    for package, found in locked(DOCKER / "requirements-cpu.lock").items():
        assert development[package] == found
    for target in ("develop", "lint", "test", "quick", "e2e", "test-real", "format"):
        commands = made(target, tmp_path)
        locks = re.findall(r"--require-hashes --requirement (\S+)", "\n".join(commands))
        assert locks == [*OF_INSTALL, "requirements.lock"]


def test_flash_attn_has_its_hash_and_make_install_asks_for_hashes() -> None:
    assert locked(DOCKER / "flash-attn.lock")["flash-attn"][1]
    assert "deepspeed" in locked(DOCKER / "requirements-cuda.lock")
    assert "deepspeed" not in locked(DOCKER / "requirements-cpu.lock")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line.strip() for line in makefile.splitlines() if "$(PIP) " in line]
    assert [line for line in installs if "--no-deps --require-hashes " not in line] == [
        "$(PIP) --no-deps --no-build-isolation --editable .",
        "$(PIP) --constraint constraints.txt $(OF_SLOW_TESTS)",
    ]


PAGE = (
    '<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl#sha256={right}">'
    '<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp311-cp311-win_amd64.whl#sha256={other}">'
    '<a href="/whl/cpu/torch-2.12.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl#sha256={other}">'
    '<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp310-cp310-manylinux_2_28_x86_64.whl#sha256={other}">'
)


def test_torch_is_known_by_its_hashes_on_whichever_index_it_is_found() -> None:
    """The builds for CPUs where an index has them, else the usual one with what a GPU needs."""
    found = importlib.util.spec_from_file_location("lock", DOCKER / "lock.py")
    assert found is not None
    assert found.loader is not None
    lock = importlib.util.module_from_spec(found)
    found.loader.exec_module(lock)
    cuda = LOCKS["cuda"][0]
    of_a_gpu = {name: e for name, e in locked(cuda).items() if OF_A_GPU.fullmatch(name)}
    assert locked(DOCKER / "torch.lock") == of_a_gpu
    text = (DOCKER / "torch.lock").read_text(encoding="utf-8")
    assert text == lock.lock_torch(cuda.read_text(encoding="utf-8"))
    version, hashes = locked(DOCKER / "torch-cpu.lock")["torch"]
    assert version == f"{pins()['torch']}+cpu"
    assert len(set(hashes) - set(of_a_gpu["torch"][1])) == len(hashes) == 6
    right, other = "a" * 64, "b" * 64
    made = lock.lock_torch_cpu("2.13.0", PAGE.format(right=right, other=other))
    assert (right in made, other in made) == (True, False)
    with pytest.raises(ValueError, match=r"no build of torch 2\.14\.0"):
        lock.lock_torch_cpu("2.14.0", PAGE)


def in_place(command: str) -> list[str]:
    """An install command of the CPU image, its paths those of this machine."""
    text = re.sub(r"/opt/(?=[\w-]+\.lock)", f"{DOCKER}/", command)
    # A mirror may have the CPU build already; the image asks the index that is for it.
    return shlex.split(text.replace("${TORCH_ARGS}", os.environ.get("TORCH_ARGS", "")))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A clean environment."""
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path


def python(clean: Path, arguments: list[str]) -> str:
    command = [str(clean / "venv" / "bin" / "python"), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_install_commands_of_the_cpu_image_run_as_written(clean: Path) -> None:
    commands = [c for c in runs("cpu") if c.startswith("pip ")]
    assert len(commands) == 4
    for command in commands:
        python(clean, ["-m", *in_place(command)])
    sdpo = str(clean / "venv" / "bin" / "sdpo")
    done = subprocess.run([sdpo, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bills_of_material_list_what_the_locks_have(clean: Path) -> None:
    tools = ["-m", "pip", "install", "--quiet", "--requirement", str(DOCKER / "tools.txt")]
    python(clean, tools)
    # Validated against the schema while it is written.
    python(clean, [str(DOCKER / "bill.py"), str(clean)])
    for target in TARGETS:
        bill = json.loads((clean / f"sdpo-{target}.cdx.json").read_text(encoding="utf-8"))
        assert bill["bomFormat"] == "CycloneDX"
        listed = {canonicalize_name(c["name"]): c["version"] for c in bill["components"]}
        expected = {name: v for name, (v, _) in locked(LOCKS[target][0]).items()}
        more = {"torch": pins()["torch"]} if target == "cpu" else {}
        if target == "cuda":
            more = {n: v for n, (v, _) in locked(DOCKER / "flash-attn.lock").items()}
        assert listed == expected | more
        assert all(c["purl"].startswith("pkg:pypi/") for c in bill["components"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_dockerfile_is_clean_and_the_manifests_are_valid_by_the_schemas_of_the_api(
    clean: Path,
) -> None:
    tools = ["-m", "pip", "install", "--quiet", "--requirement", str(DOCKER / "tools.txt")]
    python(clean, tools)
    hadolint = str(clean / "venv" / "bin" / "hadolint")
    checked = [hadolint, "--no-color", str(DOCKER / "Dockerfile")]
    assert subprocess.run(checked, capture_output=True, text=True, check=False).stdout == ""
    assert "10 manifests, 0 not valid" in python(clean, [str(DOCKER / "validate.py")])
    script = "import validate; print(validate.vendor() == json.loads(validate.SCHEMAS.read_text()))"
    path = f"import json, sys; sys.path.insert(0, {str(DOCKER)!r}); "
    assert python(clean, ["-c", path + script]) == "True\n", "they are those of the package"


# --- entry point


def test_the_scripts_parse_and_may_be_executed() -> None:
    scripts = sorted(DOCKER.glob("*.sh"))
    assert {script.name for script in scripts} == {"entrypoint.sh", "worker.sh"}
    for script in scripts:
        assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
        assert script.stat().st_mode & stat.S_IXUSR
        subprocess.run(["sh", "-n", str(script)], check=True)


def test_secrets_come_from_files_and_one_serves_server_and_clients(tmp_path: Path) -> None:
    auth, password = tmp_path / "auth", tmp_path / "password"
    auth.write_text("sdpo:s3 cr'et$\n", encoding="utf-8")
    password.write_text('p"w\\n', encoding="utf-8")
    done = entered(
        *("env", "-0"),
        PREFECT_AUTH_FILE=str(auth),
        PREFECT_SERVER_DATABASE_PASSWORD_FILE=str(password),
    )
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert seen["PREFECT_API_AUTH_STRING"] == "sdpo:s3 cr'et$"
    assert seen["PREFECT_SERVER_API_AUTH_STRING"] == "sdpo:s3 cr'et$"
    assert seen["PREFECT_SERVER_DATABASE_PASSWORD"] == 'p"w\\n'
    assert "PREFECT_AUTH" not in seen
    assert "HF_TOKEN" not in seen


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "is not there"), ("", "is empty"), ("nouser", "write it as user:password")],
)
def test_a_secret_that_is_missing_or_empty_stops_it(
    tmp_path: Path, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "auth").write_text(content, encoding="utf-8")
    done = entered("echo", "started", PREFECT_AUTH_FILE=str(tmp_path / "auth"))
    assert done.returncode == 1
    assert "started" not in done.stdout
    assert told in done.stderr


def test_arguments_pass_through_and_so_does_the_exit_code() -> None:
    done = entered("sh", "-c", 'echo "$1"; exit 7', "sh", "two words")
    assert (done.stdout, done.returncode) == ("two words\n", 7)


@contextmanager
def server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The Prefect server as the compose file starts it, with a database of its own; yields the
    environment of its clients but for the secret."""
    port, auth = free_port(), tmp_path / "auth"
    auth.write_text("sdpo:secret\n", encoding="utf-8")
    url = f"http://127.0.0.1:{port}/api"
    home = {"HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    with started(
        *compose()["services"]["server"]["command"],
        log=tmp_path / "server.log",
        HEALTH=f"{url}/health",
        PREFECT_AUTH_FILE=str(auth),
        PREFECT_SERVER_API_PORT=str(port),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        **home,
    ):
        yield {"PREFECT_API_URL": url, **home}


def test_the_server_of_the_compose_file_asks_for_the_secret_and_its_clients_have_it(
    tmp_path: Path,
) -> None:
    asked = ("prefect", "work-pool", "ls")
    with server(tmp_path) as base:
        refused = entered(*asked, **base)
        assert refused.returncode != 0
        assert "401" in refused.stdout + refused.stderr
        known = base | {"PREFECT_AUTH_FILE": str(tmp_path / "auth")}
        assert entered(*asked, **known).returncode == 0


SCHEDULED = (
    *("deployment", "schedule", "create", "sdpo-retrain/retrain", "--cron", "17 5 * * *"),
    *("--timezone", "Asia/Seoul", "--accept-yes"),
)
"""A schedule as a person sets it by Prefect's own command."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_worker_makes_the_deployments_once_and_is_well(tmp_path: Path) -> None:
    with server(tmp_path) as base:
        known = base | {"PREFECT_AUTH_FILE": str(tmp_path / "auth")}
        for start in range(2):  # a second start changes nothing, and nothing that a person set
            port = free_port()
            with started(
                str(DOCKER / "worker.sh"),
                log=tmp_path / "worker.log",
                cwd=tmp_path,
                HEALTH=f"http://127.0.0.1:{port}/health",
                PREFECT_WORKER_WEBSERVER_HOST="127.0.0.1",
                PREFECT_WORKER_WEBSERVER_PORT=str(port),
                **known,
            ):
                there = entered("prefect", "deployment", "ls", **known)
                if not start:
                    set_there = entered("prefect", *SCHEDULED, **known)
                    assert set_there.returncode == 0, set_there.stderr
                told = entered("prefect", "deployment", "inspect", "sdpo-retrain/retrain", **known)
            # Names that begin so are those of other deployments.
            names = re.findall(r"sdpo-align/align(?![\w-])", there.stdout)
            assert len(names) == 1, there.stdout
            assert "17 5 * * *" in told.stdout, told.stdout
            assert "Asia/Seoul" in told.stdout, told.stdout


# --- compose and Kubernetes


def test_the_compose_file_has_its_services_healthy_in_order_and_their_volumes_declared() -> None:
    content = compose()
    services = content["services"]
    assert set(services) == {"postgres", "server", "worker", "worker-cuda"}
    assert all("healthcheck" in service for service in services.values())
    assert services["server"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["worker"]["depends_on"] == {"server": {"condition": "service_healthy"}}
    named = {
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if not volume.startswith(("$", ".", "/"))
    }
    assert named == set(content["volumes"]) == {"postgres", "runs", "cache", "hub", "locks"}
    stages = {stage for stage, _, _ in instructions()}
    for service in services.values():
        if "build" in service:
            build = service["build"]
            assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == (
                DOCKER / "Dockerfile"
            )
            assert build["target"] in stages
    worker = services["worker"]["command"][0]
    assert (ROOT / Path(worker).relative_to("/opt/sdpo")) == DOCKER / "worker.sh"
    assert int(services["worker"]["stop_grace_period"].removesuffix("s")) > 25


def test_the_workers_have_pools_of_their_own_and_deployments_that_say_which() -> None:
    services = compose()["services"]
    told = [services[name]["environment"] for name in ("worker", "worker-cuda")]
    assert [each["SDPO_WORK_POOL"] for each in told] == ["sdpo", "sdpo-cuda"]
    assert [each.get("SDPO_DEPLOYMENT_SUFFIX", "") for each in told] == ["", "-cuda"]
    assert told[1] | told[0] | {"SDPO_DEPLOYMENT_SUFFIX": "-cuda"} == told[1] | told[0]


def test_the_containers_write_to_their_volumes_alone_and_may_nothing_more() -> None:
    services = compose()["services"]
    for name in ("server", "worker", "worker-cuda"):
        assert services[name]["read_only"], name
        assert services[name]["cap_drop"] == ["ALL"], name
        assert services[name]["security_opt"] == ["no-new-privileges:true"], name
    (runs,) = [v for v in services["server"]["volumes"] if v.startswith("runs:")]
    assert runs == "runs:/opt/sdpo/runs:ro"
    assert services["server"]["command"][-2:] == ["--runs-dir", "/opt/sdpo/runs"]
    assert services["worker"]["environment"]["SDPO_REPORTS"] == "/opt/sdpo/runs"


def test_no_secret_is_in_the_compose_file_and_none_in_an_environment() -> None:
    content = compose()
    for service in content["services"].values():
        environment = service.get("environment", {})
        held = [name for name in environment if re.search("PASSWORD|AUTH|TOKEN|KEY", name)]
        assert all(name.endswith("_FILE") for name in held)
        for name in held:
            secret = environment[name].removeprefix("/run/secrets/")
            assert secret in service["secrets"]
        assert set(service.get("secrets", [])) <= set(content["secrets"])
    assert all("file" in secret for secret in content["secrets"].values())
    for name in ("server", "worker", "worker-cuda"):
        assert "PREFECT_AUTH_FILE" in content["services"][name]["environment"]
    server_environment = content["services"]["server"]["environment"]
    assert server_environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_the_example_of_the_environment_has_every_variable_and_its_default() -> None:
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    used = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text))
    assert len(used) == len(set(re.findall(r"\$\{([A-Z_]+)", text))), "each has a default"
    lines = (DOCKER / ".env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert example == used


def test_the_kubernetes_template_declares_what_it_uses_and_uses_what_it_declares() -> None:
    path = DOCKER / "kubernetes-work-pool.json"
    template = json.loads(path.read_text(encoding="utf-8"))
    assert set(template) == {"job_configuration", "variables"}
    used = {p.name for p in find_placeholders(template["job_configuration"])}
    declared = template["variables"]["properties"]
    assert used == set(declared)
    for name, variable in declared.items():
        assert variable["title"], name
        assert variable["description"], name
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["terminationGracePeriodSeconds"] > 25
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def manifests() -> list[dict[str, Any]]:
    """All documents of docker/kubernetes."""
    files = sorted((DOCKER / "kubernetes").glob("*.yaml"))
    return [each for file in files for each in yaml.safe_load_all(file.read_text("utf-8"))]


def test_the_pods_are_confined_and_get_their_passwords_from_a_secret() -> None:
    found = manifests()
    claims = {d["metadata"]["name"] for d in found if d["kind"] == "PersistentVolumeClaim"}
    accounts = {d["metadata"]["name"] for d in found if d["kind"] == "ServiceAccount"}
    template = json.loads((DOCKER / "kubernetes-work-pool.json").read_text(encoding="utf-8"))
    declared = template["variables"]["properties"]
    assert declared["volume_claim"]["default"] in claims
    assert declared["service_account_name"]["default"] in accounts
    job = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    pods = [d["spec"]["template"]["spec"] for d in found if d["kind"] == "Deployment"]
    assert len(pods) == 2
    for pod in (*pods, job):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
    for pod in pods:
        (container,) = pod["containers"]
        secret = [each for each in container["env"] if re.search("AUTH|PASSWORD", each["name"])]
        assert secret
        assert all(each["valueFrom"]["secretKeyRef"]["name"] == "sdpo" for each in secret)
        for volume in pod["volumes"]:
            assert volume.get("persistentVolumeClaim", {"claimName": "sdpo"})["claimName"] in claims


def test_the_guide_names_files_and_keys_that_are_there() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for name in re.findall(r"docker/[\w./-]+\.(?:yaml|json)", guide):
        assert (ROOT / name).is_file(), name
    assert {p.name for p in (DOCKER / "kubernetes").glob("*.yaml")} == {
        *re.findall(r"docker/kubernetes/([\w-]+\.yaml)", guide)
    }
    pool = (DOCKER / "kubernetes-work-pool.json").read_text(encoding="utf-8")
    assert '"default": "sdpo:cuda"' in pool, "the guide replaces it"
