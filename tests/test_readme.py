"""The README is true: every command and every line of Python in it runs, in order, in a folder of its own.

All blocks become one script, as if one person typed them one after the other; where the README says
"in another terminal" the server is started in the background and waited for. Variables make studies
and trainings short, and ports are free ones. The two commands of make are typed by
end_to_end/test_make.py, which can run at the same time. Where the system allows it, all that happens in a
network of its own that has nothing but loopback, which proves that nothing is fetched and nothing
phones home.
"""

import importlib
import json
import re
import subprocess

import numpy as np
import pytest
from pydantic import BaseModel

from support import ROOT
from support.colours import colour_pixels, encode
from support.servers import free_port
from support.shell_session import run_shell
from toolkit.serving.schemas import Prediction

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ("train_cnn", "hyperopt_tuning", "model_registry", "monitoring", "serve_model")
OTHER_FLAGS = {"--device", "--help", "--nproc-per-node", "--part", "--quick"}  # of torchrun and the benchmarks
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SERVERS = {"mlflow server": ("5000", "/health"), "python serve_model.py": ("8000", "/readyz")}
SPACE = "image_size: 16\nepochs: [1, 2]\n"
SHORT = {
    "TUNE_PRESET": "quick",
    "TUNE_SPACE": "space.yaml",
    "TUNE_MAX_TRIALS": "1",
    "TUNE_FOLDS": "2",
    "TRAIN_EPOCHS": "2",
    "TRAIN_IMAGE_SIZE": "16",
    "MLFLOW_WORKERS": "1",  # processes of its server instead of four
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more
}
FUNCTIONS = """
stop() { if [ -n "${!1:-}" ]; then kill "${!1}"; wait "${!1}" || true; fi; }
answers() {
    { set +x; } 2>/dev/null
    until curl --silent --fail --output /dev/null "$1"; do kill -0 "$2"; sleep 0.2; done
    set -x
}
PS4='+ $SECONDS s: '
"""


def script():
    """The blocks as one bash script that stops at the first failure and says each line before it runs it."""
    lines = ["set -euo pipefail", FUNCTIONS, "set -x"]
    for language, text in BLOCKS:
        if language == "bash":
            lines += [line for command in text.splitlines() for line in typed(command)]
        elif language == "python":
            lines += ["python - <<'PYTHON'", text.rstrip(), "PYTHON"]
    ports = {port: str(free_port()) for port, _ in SERVERS.values()}
    return re.sub(r"\b(5000|8000)\b", lambda match: ports[match[0]], "\n".join(lines))


def typed(command):
    """The line itself, or a server in the background in place of the one that ran before."""
    if command.startswith("make "):
        return
    for number, (server, (port, path)) in enumerate(SERVERS.items()):
        if command.startswith(server):
            yield f"stop server{number}"
            yield f"{command.split('#')[0]} >server{number}.log 2>&1 & server{number}=$!"
            yield f"answers http://127.0.0.1:{port}{path} $server{number}"
            return
    yield command


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    text = script()
    port = re.search(r"localhost:(\d+)/predict", text)
    assert port
    return run_shell(tmp_path_factory.mktemp("readme") / "project", text, {**SHORT, "SERVE_PORT": port[1]}, prepare)


def prepare(folder):
    generator = np.random.default_rng(0)
    (folder / "space.yaml").write_text(SPACE)
    for name, colour in (("cat", "red"), ("dog", "blue")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(40):
            (folder / "photos" / name / f"{index}.png").write_bytes(encode(colour_pixels(colour, 24, generator)))
    (folder / "cat.jpg").write_bytes(encode(colour_pixels("red", 64, generator), "JPEG"))


@pytest.mark.timeout(960)
def test_every_line_runs(session):
    logs = "".join(f"\n== {log.name}\n{log.read_text()[-3000:]}" for log in sorted(session.folder.glob("server*.log")))
    assert session.status == 0, session.output[-6000:] + logs
    assert "Traceback" not in session.output


def test_it_has_shown_what_it_promises(session):
    output = session.output
    for promise in (
        r"next: python model_registry.py promote 1 Production",
        r"v1 of image-classifier moved from None to Production",
        r'"predicted_class":\s?"cat"',
        r"v2 of image-classifier moved from None to Production; v1 is Archived",
        r"Model version \d+, short window",  # monitoring.py report
    ):
        assert re.search(promise, output), f"{promise!r} is not in:\n{output[-6000:]}"


def test_nothing_was_fetched(session):
    if not session.offline:
        pytest.skip("this system does not let a test have a network of its own")
    assert session.status == 0, session.output[-6000:]


def test_the_example_of_an_answer_has_the_shape_of_one():
    (text,) = [text for language, text in BLOCKS if language == "json"]
    assert Prediction.model_validate_json(text).model_dump() == json.loads(text)


def test_the_steps_without_make_are_those_of_make():
    steps = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for said in (".venv/bin/python -m pip install", "-r requirements-dev.txt", ".venv/bin/python -m pytest"):
        assert said in steps
        assert said in README
    assert ".venv/bin/python examples/end_to_end.py" in steps
    assert ".venv/bin/python examples/end_to_end.py" in README


def flags_of(settings):
    """The flags that the fields of a class of settings become."""
    fields = settings.model_fields.items()
    names = [str(field.validation_alias or field.alias or name).replace("_", "-") for name, field in fields]
    names += (settings.model_config.get("cli_shortcuts") or {}).values()
    return {f"--{prefix}{name}" for name in names for prefix in ("", "no-")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_on_a_page_exists(page):
    settings = [
        each
        for script in SCRIPTS
        for each in vars(importlib.import_module(script)).values()
        if isinstance(each, type) and issubclass(each, BaseModel)
    ]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text()))
    assert named - OTHER_FLAGS - set().union(*map(flags_of, settings)) == set()


def test_links_to_files_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []
