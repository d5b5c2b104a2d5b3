"""Put the model of a run's step on the hub, or show what would go there."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.commands.export import Form, export_model, exported_step
from flows.show.console import Row, table
from sdpo.errors import Fault, UserError
from sdpo.history.hub_card import HubFacts, base_on_hub, prepare_for_hub

_LOGIN = "log in (`hf auth login`), or set HF_TOKEN to a token that may write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A model goes to this place: who may see it, and whether it goes at all.

    folder: where a dry run writes what would go; None without one.
    """

    public: bool = False
    folder: Path | None = None


def push_model(
    target: str,
    facts: HubFacts,
    to: Destination,
    *,
    step: int | None,
    form: Form,
    runs_dir: Path,
    console: Console,
) -> None:
    """Copy a step's model in ``form``, give it the hub's card, and upload it but in a dry run.

    Raises:
        UserError: a name is none, nobody is logged in, or the repository is public unasked.
        Fault: the hub did not take it.
    """
    _check_name(facts.repo)
    if facts.base_model:
        _check_name(facts.base_model)
    run, number = exported_step(target, step=step, runs_dir=runs_dir)
    form.check(run.model(number), what=f"M_{number} of run {run.name}")
    if form.adapter:
        base_on_hub(run, facts, adapter=True)
    if to.folder is None:
        _check_login()
    with tempfile.TemporaryDirectory(prefix="sdpo-push-") as scratch:
        folder = to.folder or Path(scratch) / "model"
        export_model(target, folder, step=step, form=form, runs_dir=runs_dir, console=console)
        prepare_for_hub(run, number, folder, facts)
        _show(folder, facts, to, console)
        if to.folder is None:
            url = _upload(folder, facts, to, message=f"M_{number} of run {run.name}")
            console.print(f"M_{number} of run {escape(run.name)} is at {escape(url)}")


def _check_name(repo: str) -> None:
    # huggingface_hub takes half a second, and few commands need it.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"`{repo}` cannot name a model on the hub: write ORG/NAME") from error


def _check_login() -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise UserError(f"nobody is logged in to the hub: {_LOGIN}. --dry-run needs neither")


def _show(folder: Path, facts: HubFacts, to: Destination, console: Console) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows: list[Row] = [
        {"file": str(f.relative_to(folder)), "bytes": f.stat().st_size} for f in files
    ]
    who = "public" if to.public else "private"
    console.print(table(rows, title=f"{facts.repo}, {who}"))
    if not facts.licence:
        console.print("the card names no licence: --license apache-2.0, for example")
    if "base_model:" not in (folder / "README.md").read_text(encoding="utf-8"):
        console.print("the card names no base model: --base-model ORG/NAME")


def _upload(folder: Path, facts: HubFacts, to: Destination, *, message: str) -> str:
    """Upload a folder and return the address of the repository.

    Raises:
        UserError: the token may not write there, or the repository is public unasked.
        Fault: the hub cannot be reached, or did not take it.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        url = str(api.create_repo(facts.repo, private=not to.public, exist_ok=True))
        if not to.public and not api.model_info(facts.repo).private:
            raise UserError(f"{facts.repo} is there and public: say --public, or take another name")
        api.upload_folder(repo_id=facts.repo, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403, 404):
            raise UserError(
                f"the hub refused {facts.repo} (HTTP {code}): {_LOGIN} there"
            ) from error
        raise Fault(f"the hub did not take {facts.repo} (HTTP {code}); push again") from error
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set: unset it to push, or use --dry-run") from error
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        # What the library says may quote headers: the kind of error is enough.
        what = type(error.__cause__ or error).__name__
        raise Fault(f"{facts.repo} did not reach the hub ({what}); push again") from error
    return url
