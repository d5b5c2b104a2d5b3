"""What a person does in the UI, in a real browser: the form, the run's page, Cancel and Retry."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from bench import Bench, Values, merged
from desk import FINAL, Desk, wait_until
from processes import is_free, stages_of
from retraining import parameters

from sdpo.promotion.versions import current
from sdpo.store.run_folder import RunFolder

pytest.importorskip("playwright", reason="playwright is not installed: extra `e2e`")
from browser import CHROMIUM, Browser, browser_at
from playwright.sync_api import TimeoutError

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def chromium(desk: Desk) -> Iterator[Browser]:
    """With SDPO_PICTURES=FOLDER it keeps pictures of the form and of a run's page."""
    pictures = os.environ.get("SDPO_PICTURES")
    with browser_at(desk, Path(pictures) if pictures else None) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    yield chromium
    chromium.leave()


def test_a_form_becomes_a_run_with_its_page(browser: Browser, recipe, runs: Path) -> None:
    browser.form(recipe("from_form"))
    browser.field("Training", "Beta").locator("input").fill("0.2")
    strategy = browser.field("Partition", "Strategy")
    browser.choose(strategy, "random")
    strategy.scroll_into_view_if_needed()
    browser.picture("whole_form")
    run = browser.submitted()
    assert run.wait() == "COMPLETED"

    folder = RunFolder(runs / "from_form")
    record = folder.read_record("step-2")
    assert record is not None
    assert record["training"]["beta"] == 0.2
    assert folder.read_run().config["partition"]["strategy"] == "random"

    names = list(run.tasks())
    # Rows that an earlier run has scored are in the cache: then there is no scoring to show.
    assert {"partition", "step 1: publish", "step 2: publish"} <= set(names)
    assert any(name.startswith("step 1: train") for name in names)
    found = run.artifacts()
    assert {a["data"] for a in found.values() if a["type"] == "progress"} == {100.0}
    page = browser.page
    browser.run_page(run)
    page.get_by_text("step 2: train").first.wait_for()
    browser.picture("run")
    browser.run_page(run, "Artifacts")
    for key in ("partition-from-form", "gamma-ref-from-form", "reserve-from-form"):
        page.get_by_text(key, exact=True).first.wait_for()
    browser.picture("artifacts")
    browser.open(f"/artifacts/artifact/{found['run-from-form']['id']}")
    page.get_by_role("heading", name="Run from_form").wait_for()
    page.get_by_text(str(folder.report)).first.wait_for()


def test_an_empty_form_is_refused_and_a_recipe_becomes_a_run_with_its_report_beside_the_ui(
    browser: Browser, desk: Desk, tiny_recipe: Values
) -> None:
    small = {"partition": {"strategy": "single"}, "training": {"warmup_ratio": 0}}
    path = desk.folder / "small.yaml"
    path.write_text(yaml.safe_dump(merged(tiny_recipe, small) | {"steps": []}), encoding="utf-8")
    before = len(desk.runs())
    browser.short_form()
    browser.submit()
    page = browser.page
    page.get_by_text("'recipe' is a required property").first.wait_for()
    assert len(desk.runs()) == before
    browser.own_field("Recipe").locator("textarea").fill("small.yaml")
    browser.own_field("Beta").locator("input").fill("0.2")
    browser.own_field("Name of the run's folder").locator("textarea").fill("by_recipe")
    overrides = browser.own_field("Overrides")
    overrides.get_by_role("button", name="Add item").click()
    overrides.locator("textarea").fill("training.max_steps=1")
    browser.own_field("Recipe").scroll_into_view_if_needed()
    browser.picture("form")
    run = browser.submitted()
    assert run.wait() == "COMPLETED"
    assert run.read()["name"] == "by_recipe"
    record = RunFolder(desk.folder / "runs" / "by_recipe").read_record("step-1")
    assert record is not None
    assert (record["training"]["beta"], record["training"]["max_steps"]) == (0.2, 1)

    browser.open(f"/artifacts/artifact/{run.artifacts()['run-by-recipe']['id']}")
    link = page.get_by_role("link", name="Open the report")
    link.wait_for()
    drawn = "[...document.images].filter(i => i.src.startsWith('data:') && i.naturalWidth).length"
    page.wait_for_function(f"{drawn} === 2")
    browser.picture("card")
    address = f"{desk.url}{link.get_attribute('href')}"
    user, _, password = desk.password.partition(":")
    assert page.context.browser is not None
    context = page.context.browser.new_context()
    refused = context.request.get(address)
    assert refused.status == 401
    assert "by_recipe" not in refused.text()
    context.close()
    known = {"username": user, "password": password}
    context = page.context.browser.new_context(http_credentials=known)
    shown = context.new_page()
    shown.goto(address)
    shown.get_by_role("heading", name="by_recipe").wait_for()
    assert shown.evaluate("() => self.origin") == "null", "the sandbox"
    context.close()


def test_a_value_that_cannot_be_is_refused_by_the_form(browser: Browser, recipe, runs) -> None:
    before = len(browser.desk.runs())
    browser.form(recipe("refused"))
    browser.field("Training", "Beta").locator("input").fill("-1")
    browser.submit()
    browser.page.get_by_text("Validation failed for field 'training.beta'").first.wait_for()
    assert len(browser.desk.runs()) == before
    assert not runs.exists()


def test_cancel_and_retry_are_the_buttons_of_the_page(browser: Browser, long: Values, runs) -> None:
    browser.form(long)
    run = browser.submitted()
    run.until_training(runs / "long")
    page = browser.page
    browser.run_page(run)
    page.get_by_role("button", name="Cancel").first.click()
    asked_s = time.time()
    page.locator(".p-modal").get_by_role("button", name="Confirm").click()
    page.locator(".p-modal").wait_for(state="hidden")
    browser.leave()
    assert run.wait(60, ("CANCELLED",)) == "CANCELLED"
    assert run.ended_s - asked_s < 35
    wait_until(lambda: not run.all_processes(), 1, "the end of its processes")
    assert stages_of(runs / "long") == []
    wait_until(lambda: is_free(RunFolder(runs / "long").lock_file), 1, "a free run")
    browser.run_page(run)
    page.get_by_role("button", name="Retry").first.click()
    page.locator(".p-modal").get_by_role("button", name="Retry").click()
    wait_until(lambda: run.state not in FINAL, 20, "the retry")
    browser.leave()
    assert run.wait() == "COMPLETED"
    assert any("goes on after optimizer step" in line for line in run.lines())
    assert RunFolder(runs / "long").complete_steps() == [1]


IMPATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "2"}
"""A run that gives up on its server within seconds, where Prefect's client would wait a minute."""


def test_training_and_a_paused_approval_outlive_the_server_and_its_form_is_answered(
    browser: Browser, desk: Desk, promoted: Bench, long: Values, runs: Path
) -> None:
    asked = parameters(promoted, approval={"required": True})
    run = desk.submit("sdpo-retrain/retrain", asked, environment=IMPATIENT)
    assert run.wait(states=("PAUSED", *FINAL)) == "PAUSED", run.read()["state"]["message"]
    assert not run.read()["state"]["state_details"]["deployment_concurrency_lease_id"]
    other = desk.submit("sdpo-retrain/retrain", asked)
    assert other.wait() == "CANCELLED"
    assert "the lineage tiny is in use by process" in other.read()["state"]["message"]
    training = desk.submit("sdpo-align-full/align-full", long)
    training.until_training(runs / "long")
    secret = desk.password.partition(":")[2]
    assert not [stage for stage in stages_of(runs / "long") if secret in str(stage.environ())]
    desk.kill(desk.processes.server, whole_group=True)
    assert stages_of(runs / "long")
    log = desk.folder / ".sdpo-server" / "worker.log"
    wait_until(lambda: "still waiting" in log.read_text(errors="replace"), 60)
    desk.restart("server")
    assert training.wait() == "COMPLETED"
    assert RunFolder(runs / "long").complete_steps() == [1]
    page = browser.page
    browser.run_page(run)
    page.get_by_role("button", name="Resume").first.click()
    both = page.get_by_role("link", name="The numbers of both, and what both write").first
    shown = both.get_attribute("href")
    browser.open(str(shown))
    page.get_by_text("M_3 against M_2, which is in use").first.wait_for()
    page.get_by_role("heading", name="10 reserved prompts").wait_for()
    page.get_by_role("cell", name="accuracy against S").first.wait_for()
    page.get_by_role("columnheader", name="M_3, new").first.wait_for()
    browser.picture("judgement")
    browser.run_page(run)
    page.get_by_role("button", name="Resume").first.click()
    form = page.locator(".p-modal")
    form.get_by_text("Decision").first.wait_for()
    browser.choose(form, "promote")
    form.locator("textarea").first.fill("looks right")
    browser.picture("approval")
    submit = form.get_by_role("button", name="Submit")
    submit.click()
    with suppress(TimeoutError):  # a press is lost while the form takes in the last field
        submit.wait_for(state="hidden", timeout=5_000)
    if submit.is_visible():
        submit.click()
    wait_until(lambda: run.state != "PAUSED", 20, "the answer")
    browser.leave()
    assert run.wait() == "COMPLETED"
    assert run.read()["state"]["message"].startswith("promoted")
    found = current("tiny", runs_dir=promoted.runs).in_use
    assert found.step == 3
