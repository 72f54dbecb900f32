"""Chromium without a window, for what people see of a report."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import missing

_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


class Browser:
    """A page in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1280, theme: str = "light") -> float:
        """Load a file in a window of this width; the CPU seconds of the page until it had drawn itself."""
        command = self.driver.execute_cdp_cmd
        shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        command("Emulation.setDeviceMetricsOverride", shape)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        command("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get_log("browser"), self.driver.get_log("performance")
        command("Performance.enable", {"timeDomain": "threadTicks"})
        self.driver.get(page.absolute().as_uri())
        assert self.run("return document.documentElement.dataset.ready") == "yes"
        self.run("return document.body.offsetHeight")
        metrics = command("Performance.getMetrics", {})["metrics"]
        command("Performance.disable", {})
        return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

    def run(self, script: str, *arguments: object) -> Any:
        """The value of JavaScript."""
        return self.driver.execute_script(script, *arguments)

    def press(self, key: str) -> None:
        """A key, to whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def complaints(self) -> list[str]:
        """Console messages since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def accessibility_faults(self) -> list[str]:
        """What axe-core calls serious or critical."""
        from axe_core_python.base import AXE_FILE_PATH

        self.run(Path(AXE_FILE_PATH).read_text())
        self.driver.set_script_timeout(60)
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then(done, e => done({e: `${e}`}));"
        )
        return [
            f"{fault['id']}: {fault['nodes'][0]['html'][:120]}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
        ]


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A browser that has ended after the block. Skips, or fails in CI, without Chromium."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        missing("chromium, chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="klto-chromium-") as folder:
        options = Options()
        options.binary_location = chromium
        for option in (*_OPTIONS, f"--user-data-dir={folder}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(chromedriver))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
