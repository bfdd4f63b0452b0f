"""A real Chromium without a window, on a page of a real server."""

import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.executor_process import ExecutorProcess
from tests.integration.executor.conftest import wait_until

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1280,860"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
KEYS = {"one": "key-of-tenant-one-0001", "two": "key-of-tenant-two-0002"}


class Page:
    """What a user sees and does."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, session_id: str = "") -> None:
        self.driver.get("about:blank")  # else only the fragment changes
        self.driver.get(f"{self.url}/#{session_id}")

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def click(self, css: str) -> None:
        self.until(lambda: self.texts(f"{css}:not(:disabled)"))
        self.find(css).click()

    def texts(self, css: str) -> list[str]:
        """At one moment: an element may be replaced between two looks."""
        found = (
            "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.innerText)"
        )
        texts: list[str] = self.driver.execute_script(found, css)
        return texts

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(condition, timeout_s=20)

    def _log(self) -> list[dict[str, str]]:
        entries: list[dict[str, str]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return entries

    @property
    def complaints(self) -> list[str]:
        """What the browser wrote to its console, failed requests left out."""
        return [entry["message"] for entry in self._log() if entry["source"] != "network"]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("there is no chromium with chromedriver on PATH: `tools/setup browser` as root")
    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    with ExecutorProcess(tmp_path_factory.mktemp("executor"), "--ready-sessions", "2") as executor:
        yield executor


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    """A server that asks for a key."""
    keys = {"CELLAR_EXECUTOR_API_KEYS": ",".join(f"{tenant}:{key}" for tenant, key in KEYS.items())}
    with ExecutorProcess(tmp_path_factory.mktemp("locked"), "--ready-sessions", "2", env=keys) as executor:
        yield executor


@pytest.fixture
def page(chromium: webdriver.Chrome, executor: ExecutorProcess) -> Iterator[Page]:
    yield from _page(chromium, executor)


@pytest.fixture
def locked_page(chromium: webdriver.Chrome, locked: ExecutorProcess) -> Iterator[Page]:
    yield from _page(chromium, locked)


def _page(chromium: webdriver.Chrome, executor: ExecutorProcess) -> Iterator[Page]:
    page = Page(chromium, executor.url)
    _ = page.complaints  # those of the test before are forgotten
    yield page
    page.driver.get(page.url)
    page.driver.execute_script("sessionStorage.clear()")
    page.driver.get("about:blank")


@pytest.fixture
def http(executor: ExecutorProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=executor.url, timeout=60) as client:
        yield client
