"""The Prefect UI in a real browser: what a person does in it."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from desk import Desk, FlowRun, wait_until
from playwright.sync_api import Locator, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or ""
_SIZE = {"width": 1280, "height": 900}
_LOST_S = 12.0


@dataclass(frozen=True, slots=True)
class Browser:
    """A browser at the UI of a server; pictures go to ``pictures`` where there is such a folder."""

    page: Page
    desk: Desk
    pictures: Path | None

    def open(self, path: str) -> None:
        """Go to a page of the UI."""
        self.page.goto(f"{self.desk.url}{path}")

    def leave(self) -> None:
        """Go away from the UI: its pages ask the server and draw without end, which takes a core
        from the run that is waited for."""
        self.page.goto("about:blank")

    def log_in(self) -> None:
        """Give the password that the UI asks for."""
        self.open("/")
        field = self.page.locator("input[type=password]")
        field.fill(self.desk.password)
        field.press("Enter")
        self.page.get_by_text("Deployments", exact=True).first.wait_for()

    def form(self, parameters: dict[str, Any]) -> None:
        """Open the form of a run, filled with parameters."""
        recipe = self.desk.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(parameters), encoding="utf-8")
        done = self.desk.sdpo("form", str(recipe))
        assert done.returncode == 0, done.stderr
        self.page.goto(done.stdout.strip())
        self.page.get_by_role("button", name="Submit").wait_for()
        self.page.locator(".schema-form-property").first.wait_for()

    def short_form(self) -> None:
        """Open the form of a run by its recipe, empty."""
        found = self.desk.api("/deployments/name/sdpo-align/align")
        self.open(f"/deployments/deployment/{found['id']}/run")
        self.page.get_by_role("button", name="Submit").wait_for()
        self.page.locator(".schema-form-property").first.wait_for()

    def own_field(self, label: str) -> Locator:
        """The field that stands in no group, by its label."""
        return _labelled(self.page.locator("body"), label)

    def field(self, group: str, label: str) -> Locator:
        """The field of a group in the form, by its label."""
        return _labelled(_labelled(self.page.locator("body"), group), label)

    def choose(self, field: Locator, value: str) -> None:
        """Choose an entry of a list."""
        field.locator("button.p-select-button__control").focus()
        self.page.keyboard.press("ArrowDown")
        self.page.locator(".p-select-option").get_by_text(value, exact=True).click()

    @property
    def _button(self) -> Locator:
        return self.page.get_by_role("button", name="Submit")

    def submit(self) -> None:
        """Press the form's button."""
        self._button.click()

    def submitted(self) -> FlowRun:
        """Press the form's button; the run that comes of it.

        A press while the form still takes in the last field is lost; then it is pressed again, as
        long as the form is there.
        """
        before = {run.id for run in self.desk.runs()}
        pressed_s = 0.0

        def new_runs() -> list[FlowRun]:
            nonlocal pressed_s
            if time.monotonic() - pressed_s > _LOST_S and self._button.is_visible():
                self.submit()
                pressed_s = time.monotonic()
            return [run for run in self.desk.runs() if run.id not in before]

        run = FlowRun(self.desk, wait_until(new_runs, 40, "a flow run")[0].id)
        self.leave()
        return run

    def run_page(self, run: FlowRun, tab: str = "Logs") -> None:
        """Open the page of a flow run at a tab."""
        self.open(f"/runs/flow-run/{run.id}")
        self.page.locator(".p-tab-navigation, .p-tabs").get_by_text(tab, exact=True).first.click()

    def picture(self, name: str) -> None:
        """Keep a picture of what is seen."""
        if self.pictures:
            self.page.wait_for_timeout(1500)  # figures that grow into their place
            self.page.screenshot(path=self.pictures / f"{name}.png")


def _labelled(within: Locator, label: str) -> Locator:
    """The property of the form whose own label is ``label``."""
    own = within.page.locator(":scope > .p-label__header .schema-form-property__label")
    whole = re.compile(rf"^\s*{re.escape(label)}( \(Optional\))?\s*$")
    exact = own.filter(has_text=label).get_by_text(whole)
    return within.locator(".schema-form-property").filter(has=exact).first


@contextmanager
def browser_at(desk: Desk, pictures: Path | None) -> Iterator[Browser]:
    """A browser that has logged in."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = chromium.new_page(viewport=_SIZE, reduced_motion="reduce")
        page.set_default_timeout(60_000)
        browser = Browser(page, desk, pictures)
        browser.log_in()
        browser.leave()
        yield browser
        chromium.close()
