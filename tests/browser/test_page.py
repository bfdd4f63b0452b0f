"""The page at `/`, in a browser."""

import httpx
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.conftest import KEYS, Page
from tests.executor_process import ExecutorProcess
from tests.integration.executor.conftest import Session

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


def test_a_pending_cell_is_shown_run_and_its_output_appears(page: Page, http: httpx.Client) -> None:
    session = Session(http)
    session.queue("print(6 * 7)\n'the ' + 'result'")
    page.open()
    page.click(f'a[href="#{session.id}"]')
    page.until(lambda: page.texts(".cell .status") == ["deferred"])
    assert page.texts(".cell pre.code") == ["print(6 * 7)\n'the ' + 'result'"]
    page.click("#run")
    page.until(lambda: page.texts(".cell .status") == ["ok"])
    assert page.texts(".cell pre.stdout") == ["42\n"]
    assert page.texts(".cell pre.result") == ["'the result'"]
    page.until(lambda: page.texts("#notice")[0].startswith("Run ended: ok, 1 cell"))
    assert page.complaints == []


def test_what_others_do_in_the_session_appears(page: Page, http: httpx.Client) -> None:
    session = Session(http)
    page.open(session.id)
    page.until(lambda: page.texts("#session-id") == [session.id])
    session.run("print('from elsewhere')")
    page.until(lambda: page.texts(".cell pre.stdout") == ["from elsewhere\n"])
    session.run("1 / 0")
    page.until(lambda: page.texts(".cell .status") == ["ok", "error"])
    assert "ZeroDivisionError" in page.texts(".cell pre.error")[0]


def test_hostile_text_is_text(page: Page, http: httpx.Client) -> None:
    session = Session(http, metadata={"name": HOSTILE})
    session.run(f"import sys\nprint({HOSTILE!r})\nprint({HOSTILE!r}, file=sys.stderr)\n{HOSTILE!r}")
    session.run(f"raise ValueError({HOSTILE!r})")
    page.open(session.id)
    page.until(lambda: len(page.texts(".cell")) == 2)
    assert page.texts(".cell pre.stdout") == page.texts(".cell pre.stderr") == [HOSTILE + "\n"]
    assert HOSTILE in page.texts(".cell pre.error")[0]
    assert "onerror" in page.texts("#facts")[0]
    assert page.all("img") == []
    assert len(page.all("script")) == 1
    assert page.driver.title == "Cellar"
    assert page.complaints == []


def test_the_policy_lets_no_string_become_markup(page: Page) -> None:
    """The second wall, should a later version of the page make the mistake."""
    page.open()
    attempt = "try { document.body.innerHTML = arguments[0]; return 'made' } catch (error) { return error.name }"
    assert page.driver.execute_script(attempt, HOSTILE) == "TypeError"
    handler = attempt.replace("document.body.innerHTML =", "document.body.setAttribute('onclick',").replace(
        "[0];", "[0]);"
    )
    assert page.driver.execute_script(handler, HOSTILE) == "TypeError"


def test_a_long_output_is_folded_until_it_is_asked_for(page: Page, http: httpx.Client) -> None:
    session = Session(http)
    session.run("for i in range(100): print('line', i)")
    page.open(session.id)
    page.until(lambda: page.texts(".toggle") == ["Show all of the output: 100 lines"])
    assert "line 99" not in page.texts(".cell pre.stdout")[0]
    page.click(".toggle")
    assert "line 99" in page.texts(".cell pre.stdout")[0]


def test_cells_are_run_and_deferred_from_the_page(page: Page, http: httpx.Client) -> None:
    session = Session(http)
    page.open(session.id)
    page.until(lambda: page.texts("#session-id") == [session.id])
    page.find("#code").send_keys("x = 5")
    page.click("#defer")
    page.until(lambda: page.texts(".cell .status") == ["deferred"])
    page.find("#code").send_keys("print(x)", Keys.CONTROL + Keys.ENTER)
    page.until(lambda: page.texts(".cell .status") == ["ok", "ok"])
    assert page.texts(".cell pre.stdout") == ["5\n"]
    assert page.find("#code").get_property("value") == ""


def test_a_running_cell_is_interrupted(page: Page, http: httpx.Client) -> None:
    session = Session(http)
    page.open(session.id)
    page.until(lambda: page.texts("#session-id") == [session.id])
    page.find("#code").send_keys("import time; time.sleep(50)", Keys.CONTROL + Keys.ENTER)
    page.until(lambda: page.texts(".cell .status") == ["running"])
    page.click("#interrupt")
    page.until(lambda: page.texts(".cell .status") == ["error"])
    assert "KeyboardInterrupt" in page.texts(".cell pre.error")[0]


def test_withdraw_reset_and_delete(page: Page, http: httpx.Client) -> None:
    session = Session(http)
    session.queue("1")
    page.open(session.id)
    page.click(".cell button")
    page.until(lambda: page.texts(".cell .status") == ["withdrawn"])
    page.click("#reset")
    page.click("#confirm button[value=no]")
    page.click("#reset")
    page.click("#confirm-yes")
    page.until(lambda: page.texts("#notice") == ["Fresh: generation 2"])
    assert session.get()["generation"] == 2
    page.click("#delete")
    page.click("#confirm-yes")
    page.until(lambda: page.texts("#nothing") == ["Choose a session to see its cells."])
    assert http.get(session.path).status_code == 404


def test_the_keyboard_suffices(page: Page, http: httpx.Client) -> None:
    session = Session(http)
    session.queue("print('by key')")
    page.open()
    page.until(lambda: session.id in "".join(page.texts(".row .name")))
    page.find("#search").send_keys(session.id)
    page.until(lambda: len(page.texts(".row")) == 1)
    page.find("#search").send_keys(Keys.TAB)
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.until(lambda: page.driver.switch_to.active_element.get_attribute("id") == "session-id")
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.until(lambda: page.texts(".cell pre.stdout") == ["by key\n"])


def test_sessions_are_filtered(page: Page, http: httpx.Client) -> None:
    one, other = Session(http, metadata={"task": "needle-1"}), Session(http, metadata={"task": "needle-2"})
    other.queue("1")
    page.open()
    page.find("#search").send_keys("needle")
    page.until(lambda: set(page.texts(".row .name")) == {one.id, other.id})
    page.find("#status").find_element(By.CSS_SELECTOR, "[value=pending]").click()
    page.until(lambda: page.texts(".row .name") == [other.id])


def test_it_fits_a_narrow_screen(page: Page, http: httpx.Client) -> None:
    session = Session(http)
    session.run("print('w' * 500)")
    narrow = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    try:
        page.open(session.id)
        page.until(lambda: page.texts(".cell"))
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == 400
        page.click("#back")
        page.until(lambda: page.texts(".row") and not page.texts("#session-id"))
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_absent_server_is_said_and_waited_for(page: Page) -> None:
    page.open()
    page.until(lambda: page.texts("#connection") == ["live"])
    page.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        page.until(lambda: page.texts("#connection") == ["the server does not answer; trying again"])
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    page.until(lambda: page.texts("#connection") == ["live"])


def test_a_key_opens_the_tenants_sessions_and_no_others(locked_page: Page, locked: ExecutorProcess) -> None:
    page = locked_page
    ids = {}
    for tenant, key in KEYS.items():
        with httpx.Client(base_url=locked.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
            ids[tenant] = Session(http).id
    page.open()
    page.until(lambda: page.driver.switch_to.active_element.get_attribute("id") == "key")
    page.find("#key").send_keys("not-a-key-of-anybody", Keys.ENTER)
    page.until(lambda: "A valid API key" in "".join(page.texts("#key-problem")))
    page.find("#key").send_keys(KEYS["one"], Keys.ENTER)
    page.until(lambda: page.texts(".row .name") == [ids["one"]])
    assert page.driver.execute_script("return [localStorage.length, document.cookie]") == [0, ""]
    page.open(ids["two"])
    page.until(lambda: page.texts(".row .name") == [ids["one"]])
    assert page.texts("#session-id") == []
    page.click("#forget-key")
    page.until(lambda: page.texts("#key-title"))
    assert page.texts(".row") == []
    assert page.driver.execute_script("return sessionStorage.length") == 0


def test_many_sessions_do_not_freeze_it(page: Page, http: httpx.Client) -> None:
    made = [http.post("/v1/sessions").json()["session_id"] for _ in range(500)]
    page.open()
    page.until(lambda: set(made) <= listed(page))
    stalls = (
        "const done = arguments[0]; const seen = []; new PerformanceObserver(list => seen.push(...list.getEntries()"
        ".map(e => e.duration))).observe({type: 'longtask'}); setTimeout(() => done(seen), 3000)"
    )
    assert max(page.driver.execute_async_script(stalls), default=0) < 1000  # ms; it polls meanwhile
    for session_id in made:
        http.delete(f"/v1/sessions/{session_id}")
    page.until(lambda: not set(made) & listed(page))


def listed(page: Page) -> set[str]:
    """Those that are out of sight included."""
    hrefs = "return [...document.querySelectorAll('.row')].map(row => row.getAttribute('href'))"
    return {href[1:] for href in page.driver.execute_script(hrefs)}
