"""The files of the pages, and the headers that protect them."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import PurePosixPath

import pytest

from serve_model import ServeSettings, create_app
from toolkit.serving.http.static import DASHBOARD, FILES, FOLDER, HEADERS, POLICY, static_page
from toolkit.serving.problems import PROBLEM_TYPES, Problem

OWN = [name for name, (folder, _) in FILES.items() if folder == FOLDER]
SCRIPTS = [name for name in OWN if name.endswith(".js")]
# What would turn text of the service into markup or code.
DANGEROUS = r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|document\.write|\beval\b|new Function"


@pytest.fixture
def get(ask):
    """A function that requests a page, without a lifespan: pages need neither a model nor a store."""
    return lambda path: ask(create_app(ServeSettings()), "GET", path, follow_redirects=True)


class Tags(HTMLParser):
    """All tags of a page with their attributes, and the text inside each script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.inline = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        if self.cdata_elem:  # inside <script> or <style>
            self.inline.append(data)


def policy_of(response):
    parts = response.headers["Content-Security-Policy"].split("; ")
    return dict(part.split(" ", 1) for part in parts)


def test_the_folder_holds_the_served_files_only():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(OWN)
    assert [name for name, (folder, _) in FILES.items() if len((folder / name).read_bytes().strip()) < 100] == []


@pytest.mark.parametrize("name", FILES)
def test_each_file_comes_with_its_type_and_all_headers(get, name):
    response, (folder, media_type) = get(f"/pages/{name}"), FILES[name]
    assert (response.status_code, response.content) == (200, (folder / name).read_bytes())
    assert response.headers["Content-Type"] == media_type
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert {header: response.headers[header] for header in HEADERS} == HEADERS
    assert policy_of(response) == POLICY


@pytest.mark.parametrize("path", ["/dashboard", "/"])
def test_the_dashboard_has_a_path_of_its_own(get, path):
    assert get(path).content == (FOLDER / DASHBOARD).read_bytes()


def test_the_swagger_page_runs_only_its_own_scripts(get):
    response = get("/docs")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert {header: response.headers[header] for header in HEADERS} == HEADERS
    page = Tags(response.text)
    [script] = page.inline
    assert "SwaggerUIBundle(" in script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    changed = {"script-src": f"'self' 'sha256-{digest}'", "img-src": "'self' blob: data:"}
    assert policy_of(response) == POLICY | changed
    loaded = [found["src"] for _, found in page.tags if "src" in found]
    loaded += [found["href"] for tag, found in page.tags if tag == "link"]
    assert {address.removeprefix("pages/") for address in loaded} < set(FILES)
    assert [found["id"] for tag, found in page.tags if tag == "section"] == [
        f"problem-{kind.slug}" for kind in PROBLEM_TYPES
    ]


@pytest.mark.parametrize("name", ["nothing.js", "Dashboard.html", "dashboard", "../pages.py", "/etc/passwd", ""])
def test_other_names_are_not_opened(name):
    with pytest.raises(Problem, match="404: there is no page file of that name"):
        static_page(name)


@pytest.mark.parametrize(
    "address", ["/pages/nothing.js", "/pages/..%2fpages.py", "/pages/%2e%2e%2fpages.py", "/pages/"]
)
def test_other_paths_are_not_found(get, address):
    response = get(address)
    assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")
    assert response.json()["type"] == "/docs#problem-not-found"


def test_the_policy_allows_no_other_origin():
    assert POLICY["default-src"] == "'none'"
    assert {source for sources in POLICY.values() for source in sources.split()} == {"'none'", "'self'", "blob:"}
    assert [name for name, sources in POLICY.items() if "blob:" in sources] == ["img-src"]


def test_the_dashboard_has_nothing_inline():
    page = Tags((FOLDER / DASHBOARD).read_text())
    assert page.inline == []
    attributes = [attribute for _, found in page.tags for attribute in found]
    assert [attribute for attribute in attributes if attribute == "style" or attribute.startswith("on")] == []
    loaded = [found["src"] for _, found in page.tags if "src" in found]
    loaded += [found["href"] for tag, found in page.tags if tag == "link"]
    assert len(loaded) >= 3
    assert {str(PurePosixPath(address).parent) for address in loaded} == {"pages"}  # relative: it may be mounted deeper
    assert {PurePosixPath(address).name for address in loaded} <= set(FILES)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_own_files_and_create_no_markup(name):
    source = (FOLDER / name).read_text()
    assert re.findall(DANGEROUS, source) == []
    assert set(re.findall(r'from "\./([^"]+)"', source)) <= set(SCRIPTS)
    assert re.findall(r'^(?:import|}).* from "(?!\./)', source, re.MULTILINE) == []
    assert [url for url in re.findall(r"https?://[^\"'` ]+", source) if url != "http://www.w3.org/2000/svg"] == []
