"""The pages of a real service in a real browser."""

import contextlib
import json
import random
import re
import shutil
import sqlite3

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from model_registry import ModelRegistry
from support import MAX_WAIT_S, wait_until
from support.colours import COLOURS, colour_image
from support.running_service import Process
from support.servers import NO_TLS, empty_store, free_port
from toolkit.tracking import connection
from toolkit.tracking.run import Run

CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
CHROMIUM_FLAGS += ("--disable-component-update", "--disable-sync")
TIMEOUT_MS = 1000 * MAX_WAIT_S
REFRESH_MS = 4_000  # as in dashboard.js
MARKUP = "<img src=x onerror=alert(1)>"  # the class of red images: text, on every page and in every message
CLASSES = ("blue", "green", MARKUP)
KEY = "schlüssel €"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; apt-get install chromium")


class Site:
    """A service as a process of its own, with its own registry and its own store, in a folder."""

    def __init__(self, folder, **variables):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=MAX_WAIT_S, verify=NO_TLS)
        (folder / "registry.db").write_bytes(empty_store())
        self.registry = f"sqlite:///{folder / 'registry.db'}"
        self._variables, self._process = variables, None

    def start(self):
        words = ["--port", str(self.port), "--poll-interval", "1", "--drain-timeout", "0"]
        words += ["--tracking-uri", self.registry, "--monitor-store", str(self.folder / "monitoring.db")]
        self._process = Process(self.folder, *words, **self._variables)

    def stop(self):
        assert self._process.end() == 0

    @contextlib.contextmanager
    def running(self):
        with self.client:
            self.start()
            try:
                yield self
            finally:
                self.stop()

    def promote(self, log_colour_run, classes):
        """Register the colour model under these class names, and put it into Production."""
        with contextlib.chdir(self.folder):  # where MLflow puts the artifacts of a database
            log_colour_run(connection.connect(self.registry), classes=classes)
        registry = ModelRegistry(self.registry)
        registry.transition_model_stage(registry.register_best_model("training", "best_val_accuracy"), "Production")

    def get(self, address):
        return self.client.get(f"/{address}").raise_for_status().json()

    def wait_for(self, address, condition):
        return wait_until(lambda: condition(answer := self.get(address)) and answer)

    def predict(self, cases):
        """Send images of colours, and a label of each."""
        for first in range(0, len(cases), 30):
            some = cases[first : first + 30]
            files = [
                ("files", (f"{seed}.png", colour_image(colour, seed))) for seed, (colour, _) in enumerate(some, first)
            ]
            results = self.client.post("/predict/batch", files=files).json()["results"]
            labels = [
                {"prediction_id": one["prediction"]["prediction_id"], "label": label}
                for one, (_, label) in zip(results, some, strict=True)
            ]
            answer = self.client.post("/feedback", json=labels).json()
            assert answer == {"recorded": len(labels)}

    def labels(self):
        """Predicted class and label of the feedback from the dashboard."""
        query = """SELECT predictions.predicted, labels.label FROM labels
                   JOIN predictions ON predictions.sequence = labels.prediction WHERE labels.source = 'dashboard'"""
        with sqlite3.connect(self.folder / "monitoring.db") as store:
            return [(CLASSES[predicted], CLASSES[label]) for predicted, label in store.execute(query)]


@pytest.fixture(scope="module")
def site(tmp_path_factory, log_colour_run):
    """A service with a model, 50 right answers and 100 wrong ones, and the alert that follows."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.promote(log_colour_run, CLASSES)
    with site.running():
        site.wait_for("health", lambda health: health["ready"])
        cases = [("blue", "blue")] * 50 + [("green", MARKUP)] * 100
        random.Random(1).shuffle(cases)  # in order they would count as bursts of one image
        site.predict(cases)
        site.wait_for("alerts", lambda alerts: any(alert["metric"] == "accuracy" for alert in alerts))
        site.wait_for("metrics", lambda metrics: metrics["monitor"]["windows"]["short"]["n_labels"] == 150)
        yield site


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service with keys, and without any model until the last of its tests."""
    site = Site(tmp_path_factory.mktemp("guarded"), SERVE_PREDICT_KEY=KEY, SERVE_ADMIN_KEY="another")
    with site.running():
        yield site


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


class Visit:
    """One open page, and what must not happen on it."""

    def __init__(self, page):
        self.page = page
        self.expected = r"(?!)"  # pattern of allowed console errors: matches nothing
        self._errors = []
        self.requested = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        page.on("dialog", lambda dialog: (self._errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requested.append(request.url))

    def _console(self, message):
        if message.type in ("error", "warning"):  # violations of the policy among them
            self._errors.append(message.text)

    def check(self):
        assert [error for error in self._errors if not re.search(self.expected, error)] == []
        own = self.page.url.split("/")[2]
        assert {url.split("/")[2] for url in self.requested if not url.startswith("blob:")} == {own}


@pytest.fixture
def visit(browser):
    """A function that opens a page; at the end it had no errors, and no requests to another host."""
    visits = []
    expect.set_options(timeout=TIMEOUT_MS)

    def open_page(address, **context):
        context.setdefault("reduced_motion", "reduce")
        visits.append(Visit(browser.new_context(**context).new_page()))
        visits[-1].page.set_default_timeout(TIMEOUT_MS)
        visits[-1].page.goto(address)
        return visits[-1]

    yield open_page
    for one in visits:
        one.check()
        one.page.context.close()


def choose(page, content, name="image.png"):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def fact(page, place, name):
    """The value of a term in a list of facts."""
    return (
        page.locator(f"{place} .facts > div", has=page.locator("dt", has_text=re.compile(f"^{name}$")))
        .locator("dd")
        .inner_text()
    )


# --- the dashboard ----------------------------------------------------------------------------


def test_the_dashboard_shows_the_state_of_the_service(site, visit):
    page = visit(f"{site.url}/dashboard").page
    worst = next(alert for alert in site.get("alerts") if alert["level"] == "immediate")
    expect(page.locator("#state")).to_have_text("critical")
    expect(page.locator("#state")).to_have_class("badge critical")
    expect(page.locator("#release")).to_have_text("version 1 · Production")
    expect(page.locator("#banner")).to_have_text(f"immediate ({worst['status']}): {worst['message']}")
    expect(page.locator("#model dd code").nth(1)).to_have_text(site.get("model-info")["digest"])
    assert page.title() == "critical · image-classifier"

    stored = site.get("metrics")["monitor"]["stats"]["written"]
    tiles = dict(
        zip(page.locator(".tile h3").all_inner_texts(), page.locator(".tile .value").all_inner_texts(), strict=True)
    )
    assert (tiles["Predictions"], tiles["Stored"]) == (f"{stored:,}", f"{stored:,}")
    assert re.fullmatch(r"[\d.]+ ms", tiles["Latency, p95"])

    for window in ("short", "medium", "long"):  # 50 of 150 right; the model had all of its 300 images right
        card = f'[data-window="{window}"]'
        expect(page.locator(card)).to_contain_text("33.3 % accuracy")
        expect(page.locator(card)).to_contain_text("95 % interval 26.3 % to 41.2 %")  # Wilson
        assert fact(page, card, "labels") == "150"
        assert fact(page, card, "degradation").startswith("66.7 %, at least ")
        assert fact(page, card, "reference") == "100 % of 300 images"
        assert page.locator(f"{card} .badge").inner_text() == "immediate, confirmed"


def test_drift_and_classes_follow_the_chosen_window(site, visit):
    seen = visit(f"{site.url}/dashboard")
    page, rows = seen.page, seen.page.locator("#drift tbody tr:has(td)")
    expect(rows.first).to_be_visible()
    for window in ("short", "long"):
        page.locator(f"#window input[value={window}]").check()
        expect(page.locator("#classes .note")).to_have_text(f"Of the {window} window.")
        results = site.get(f"drift?window={window}")["results"]
        texts = {"drift": "drift", "no_drift": "no drift", "insufficient_data": "insufficient data"}
        expect(rows.locator("th")).to_have_text([result["metric"].replace("_", " ") for result in results])
        expect(rows.locator(".badge")).to_have_text([texts[result["status"]] for result in results])
    assert any(url.endswith("/drift?window=long") for url in seen.requested)
    shares = site.get("metrics")["monitor"]["windows"]["long"]["class_shares"]
    ranked = sorted(shares, key=shares.__getitem__, reverse=True)
    assert page.locator("#classes .name").all_inner_texts() == ranked


def test_markup_in_names_and_messages_stays_text(site, visit):
    alert = next(alert for alert in site.get("alerts") if alert["metric"] == "accuracy")
    assert MARKUP in alert["message"] or MARKUP[:20] in alert["message"]
    page = visit(f"{site.url}/dashboard").page
    shown = page.locator("#alerts li", has_text=alert["message"])
    expect(shown).to_have_class("immediate")
    expect(shown).to_contain_text("active")
    page.locator("#model summary").click()
    assert page.locator("#model .chips li").all_inner_texts() == list(CLASSES)
    choose(page, colour_image("red"))
    expect(page.locator("#answer .value")).to_contain_text(MARKUP)
    assert page.locator("#label option").all_inner_texts() == ["choose a class", *CLASSES]
    assert page.locator('img[src="x"], [onerror]').count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_dashboard_fits_a_phone_in_light_and_dark(site, visit, scheme):
    page = visit(f"{site.url}/dashboard", viewport={"width": 360, "height": 740}, color_scheme=scheme).page
    expect(page.locator("#model dl")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    overflows = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
    assert page.locator("main, .card").evaluate_all(overflows) == 0
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 3 * 128) == (scheme == "light")


# --- predicting an image ---------------------------------------------------------------------


@pytest.mark.parametrize(("colour", "way"), [("green", "chosen"), ("blue", "dropped")])
def test_an_image_is_predicted_and_labelled(site, visit, colour, way):
    before = site.labels()
    page = visit(f"{site.url}/dashboard").page
    expect(page.locator("#model .chips")).to_be_attached()
    if way == "chosen":
        choose(page, colour_image(colour, 5))
    else:
        page.evaluate(
            """(bytes) => {
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
                document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
            }""",
            list(colour_image(colour, 5)),
        )
    expect(page.locator("#answer .value")).to_contain_text(colour)
    expect(page.locator("#answer .bars .name")).to_have_text([colour, re.compile(".+"), re.compile(".+")])
    expect(page.locator("#preview")).to_be_visible()
    assert page.locator("#preview").evaluate("image => image.naturalWidth") == 48

    page.locator("#label-form button").click()  # no class is chosen yet: nothing is sent
    page.locator("#label").select_option(MARKUP)
    page.locator("#label-form button").click()
    expect(page.locator("#feedback")).to_have_text(f"Recorded: {MARKUP}. The prediction was wrong.")
    assert site.labels() == [*before, (colour, MARKUP)]


def test_a_file_that_is_no_image_is_refused_with_a_link(site, visit):
    seen = visit(f"{site.url}/dashboard")
    seen.expected = "status of 400"
    choose(seen.page, b"no image")
    expect(seen.page.locator("#answer .error")).to_contain_text("not an image")
    expect(seen.page.locator("#preview")).to_be_hidden()
    expect(seen.page.locator("#label-form")).to_be_hidden()

    link, requests = seen.page.locator("#metrics a", has_text="undecodable-image"), seen.page.locator(".tile").nth(1)
    link.focus()
    before = requests.text_content() or ""
    expect(requests).not_to_have_text(before)
    expect(link).to_be_focused()  # though the metrics were drawn again

    seen.page.locator("#answer a").click()
    expect(seen.page.locator(":target h3")).to_contain_text("The image cannot be decoded")


# --- without a model, without a service -------------------------------------------------------


def test_the_dashboard_shows_an_unreachable_service(guarded, visit):
    seen = visit(f"{guarded.url}/dashboard")
    page = seen.page
    expect(page.locator("#state")).to_have_text("waiting")
    seen.expected = "ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE"
    guarded.stop()
    expect(page.locator("#banner")).to_contain_text("The service cannot be reached; the data shown is from")
    expect(page.locator("#state")).to_have_text("no answer")
    expect(page.locator("main")).to_have_class("stale")
    expect(page.locator("#metrics .tile").first).to_be_visible()
    guarded.start()
    expect(page.locator("#state")).to_have_text("waiting")
    expect(page.locator("main")).not_to_have_class("stale")


def test_no_refresh_while_one_is_under_way_or_the_page_is_hidden(site, visit):
    seen = visit(f"{site.url}/dashboard")
    page, held = seen.page, []
    expect(page.locator("#state")).to_have_text("critical")
    page.route("**/health", lambda route: held.append(route))  # noqa: PLW0108  Playwright marks what it is given
    with page.expect_request("**/health"):
        pass
    page.wait_for_timeout(1000)  # for the other requests of that refresh
    before = len(seen.requested)
    page.wait_for_timeout(1.5 * REFRESH_MS)
    assert seen.requested[before:] == []
    held[0].continue_()
    page.unroute("**/health")
    with page.expect_request("**/health"):
        pass

    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true })")
    page.evaluate("window.away = true")
    page.wait_for_timeout(REFRESH_MS)  # for requests under way
    before = len(seen.requested)
    page.wait_for_timeout(1.5 * REFRESH_MS)
    assert seen.requested[before:] == []
    with page.expect_request("**/health"):
        page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")


# --- Swagger's page -----------------------------------------------------------------------------


def operation(page, method, path):
    """The block of an operation, opened."""
    block = page.locator(f".opblock-{method}", has=page.locator(f'[data-path="{path}"]'))
    block.locator(".opblock-summary-control").click()
    return block


def execute(block):
    """Status and JSON of what an operation answers when it is tried, once the page shows that answer."""
    with block.page.expect_response(lambda response: response.request.resource_type == "fetch") as received:
        block.locator("button.execute").click()
    response = received.value
    expect(block.locator(".live-responses-table tbody .response-col_status")).to_contain_text(str(response.status))
    return response.status, response.json()


def test_swagger_lists_every_route_and_every_problem(site, visit):
    api = site.get("openapi.json")
    page = visit(f"{site.url}/docs").page
    described = {(method.upper(), path) for path, methods in api["paths"].items() for method in methods}
    expect(page.locator(".opblock")).to_have_count(len(described))
    shown = zip(
        page.locator(".opblock-summary-method").all_inner_texts(),
        page.locator(".opblock-summary-path").evaluate_all("all => all.map(one => one.dataset.path)"),
        strict=True,
    )
    assert set(shown) == described
    assert len(described) >= 11
    for problem in api["x-problems"]:
        entry = page.locator(f"#problem-{problem['slug']}")
        expect(entry.locator("h3")).to_have_text(f"{problem['status']} {problem['title']}")
        assert len(entry.locator("p").inner_text()) > 20 + len(problem["slug"])


def test_the_type_of_a_problem_leads_to_its_entry(site, visit):
    problem = site.client.get("/nowhere").json()
    page = visit(f"{site.url}{problem['type']}").page
    expect(page.locator(".opblock").first).to_be_visible()
    expect(page.locator(":target h3")).to_contain_text(problem["title"])
    expect(page.locator(":target")).to_be_in_viewport()


def test_swagger_tries_a_prediction_and_its_feedback(site, visit):
    page = visit(f"{site.url}/docs").page
    predict = operation(page, "post", "/predict")
    predict.get_by_role("button", name="Try it out").click()
    predict.locator("input[type=file]").set_input_files(
        {"name": "green.png", "mimeType": "image/png", "buffer": colour_image("green")}
    )
    status, prediction = execute(predict)
    assert (status, prediction["predicted_class"]) == (200, "green")
    feedback = operation(page, "post", "/feedback")
    feedback.get_by_role("button", name="Try it out").click()
    label = {"prediction_id": prediction["prediction_id"], "label": "green"}
    feedback.locator("textarea").fill(json.dumps(label))
    assert execute(feedback) == (200, {"recorded": 1})


@pytest.mark.parametrize("scheme", ["bearer", "header"])
def test_swagger_sends_the_key_that_it_is_given(guarded, visit, scheme):
    seen = visit(f"{guarded.url}/docs")
    seen.expected = "status of 401"
    reload = operation(seen.page, "post", "/admin/reload")
    reload.get_by_role("button", name="Try it out").click()
    status, problem = execute(reload)
    assert (status, problem["type"]) == (401, "/docs#problem-key-missing")
    seen.page.locator(".scheme-container .authorize").click()
    form = seen.page.locator(".auth-container", has=seen.page.locator("h4", has_text=re.compile(rf"^{scheme}\b")))
    form.locator("input").fill("another")
    form.get_by_role("button", name="Apply credentials").click()
    seen.page.locator(".close-modal").click()
    status, found = execute(reload)
    assert (status, found["model"]) == (200, None)


# --- with the first model ------------------------------------------------------------------------


def test_the_dashboard_waits_for_a_model_and_asks_for_a_key(guarded, visit, log_colour_run):
    site = guarded
    seen = visit(f"{site.url}/dashboard")
    page = seen.page
    expect(page.locator("#state")).to_have_text("waiting")
    reason = "no model 'image-classifier' is registered yet"
    reason = site.wait_for("health", lambda health: health["reason"].startswith(reason))["reason"]
    expect(page.locator("#banner")).to_have_text(f"No model is loaded yet: {reason}.")
    expect(page.locator("#model")).to_have_text("No model is loaded yet.")
    expect(page.locator("#alerts")).to_contain_text("No alerts.")

    site.promote(log_colour_run, COLOURS)
    expect(page.locator("#state")).to_have_text("ok")
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#release")).to_have_text("version 1 · Production")

    seen.expected = "status of 40[13]"
    choose(page, colour_image("red"))
    expect(page.locator("#answer .error")).to_contain_text("key-missing")
    for key, answer in (("wrong", "key-wrong"), (KEY, "red")):
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        expect(page.locator("#answer")).to_contain_text(answer)
    expect(page.locator("#key-form")).to_be_hidden()
    page.locator("#label").select_option("red")
    page.locator("#label-form button").click()
    expect(page.locator("#feedback")).to_have_text("Recorded: red. The prediction was correct.")
    kept = "[localStorage.length, sessionStorage.length, document.cookie, location.search]"
    assert page.evaluate(kept) == [0, 0, "", ""]


# --- MLflow's own pages -------------------------------------------------------------------------


def test_mlflows_pages_show_a_training_run(mlflow_server, browser, log_colour_run, tmp_path):
    client = connection.connect(mlflow_server)
    metrics = {"held_out_accuracy": 0.8125, "best_val_accuracy": 0.875, "system/ram_mb": 512.0}
    run_id = log_colour_run(client, "pages", metrics=metrics, folder=tmp_path)
    run = Run.reopen(client, run_id)
    run.dataset("colours", "f" * 16, "colours/", profile={"images": 120}, context="training")
    run.json("per_class.json", {"red": 1.0})
    run.end("FINISHED")
    ModelRegistry(mlflow_server, "pages-model").register_best_model("pages", "best_val_accuracy")
    assert run.table_url is not None
    assert run.url is not None
    page = browser.new_context(viewport={"width": 1900, "height": 900}).new_page()
    page.goto(run.table_url)
    for shown in ("held_out_accuracy", "best_val_accuracy", "0.8125", "0.875", "colours (ffffffffffffffff)"):
        expect(page.get_by_text(shown, exact=True).first).to_be_visible(timeout=TIMEOUT_MS)
    expect(page.get_by_text("Evaluation runs")).to_have_count(0)  # of language models
    page.goto(run.url)
    for shown in ("0.8125", "colours (ffffffffffffffff)", "pages-model"):
        expect(page.get_by_text(shown).first).to_be_visible(timeout=TIMEOUT_MS)
    page.get_by_role("tab", name="System metrics").click()
    expect(page.get_by_text("ram_mb").first).to_be_visible(timeout=TIMEOUT_MS)
    page.get_by_role("tab", name="Artifacts").click()
    expect(page.get_by_text("per_class.json").first).to_be_visible(timeout=TIMEOUT_MS)
    page.context.close()
