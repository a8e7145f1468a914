"""The house holds: who imports whom, and that importing does nothing."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

FACES = ("train_cnn", "hyperopt_tuning", "model_registry", "monitoring", "serve_model")
WORKSHOPS = {
    "training": "train_cnn",
    "tuning": "hyperopt_tuning",
    "registry": "model_registry",
    "monitoring": "monitoring",
    "serving": "serve_model",
}
FACES_BELOW = {
    "train_cnn": set(),
    "hyperopt_tuning": {"train_cnn"},
    "model_registry": set(),
    "monitoring": set(),
    "serve_model": {"model_registry", "monitoring"},
}
ONLY_TRACKING_IMPORTS = "mlflow"  # its settings must be made before its first import


def sources() -> list[Path]:
    return [ROOT / f"{face}.py" for face in FACES] + sorted((ROOT / "toolkit").rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports anywhere: at the top, in functions, under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively in line {node.lineno}"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            known = {name for name in inner if (ROOT / Path(*name.split("."))).with_suffix(".py").exists()}
            known |= {name for name in inner if (ROOT / Path(*name.split("."))).is_dir()}
            found |= known or {module}
    return found


def workshop_of(module: str) -> str | None:
    words = module.split(".")
    return words[1] if words[0] == "toolkit" and len(words) > 1 and words[1] in WORKSHOPS else None


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    module, imported = module_name(path), imports_of(path)
    faces = {name for name in imported if name in FACES}
    workshops = {shop for name in imported if (shop := workshop_of(name))}
    own = workshop_of(module)
    if module in FACES:
        assert faces <= FACES_BELOW[module]
        assert all(WORKSHOPS[shop] == module for shop in workshops)
    else:
        assert not faces, "the toolkit never imports a face"
        assert workshops <= ({own} if own else set()), "one workshop never imports another, the ground floor none"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_tracking_imports_mlflow(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert ONLY_TRACKING_IMPORTS not in roots or module_name(path) == "toolkit.tracking"


def test_the_tests_would_see_a_hidden_import(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.py"
    hidden.write_text("def f():\n    import train_cnn\n    from toolkit.training import loop\n")
    assert imports_of(hidden) == {"train_cnn", "toolkit.training.loop"}


def test_every_source_file_is_on_the_list() -> None:
    flat = {path.stem for path in ROOT.glob("*.py")}
    assert flat == set(FACES)
    assert {path.name for path in (ROOT / "toolkit").iterdir() if path.is_dir() and path.name != "__pycache__"} == set(
        WORKSHOPS
    )


def fresh(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )


def test_importing_the_faces_does_nothing(tmp_path: Path) -> None:
    """No file, no connection, no thread that stays, no logging set-up, no output; the smallest first, one by one."""
    faces = sorted(FACES, key=lambda face: len(FACES_BELOW[face]))
    code = f"""
import importlib, logging, os, socket, threading
before = list(logging.getLogger().handlers)
def refuse(*args, **kwargs):
    raise SystemExit("importing opened a connection")
socket.socket.connect = refuse
for face in {faces!r}:
    importlib.import_module(face)
    ours = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert logging.getLogger().handlers == before, f"importing {{face}} set up logging"
    assert not ours, f"importing {{face}} began {{ours}}"
    assert not os.listdir(), f"importing {{face}} wrote {{os.listdir()}}"
"""
    result = fresh(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("face", "unwanted"),
    [
        ("monitoring", {"torch", "mlflow", "matplotlib", "pandas", "scipy"}),
        ("model_registry", {"torch", "torchvision", "matplotlib", "scipy.stats", "sklearn"}),
        ("serve_model", {"torchvision", "matplotlib", "scipy.stats", "sklearn"}),
        ("train_cnn", {"torchvision", "torch._dynamo"}),
    ],
)
def test_a_face_loads_only_what_everybody_needs_of_it(face: str, unwanted: set[str], tmp_path: Path) -> None:
    """Each of these takes from half a second to three: whoever lists versions waits for no compiler."""
    result = fresh(f"import sys, {face}; print(sorted({unwanted!r} & set(sys.modules)))", tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_serving_loads_neither_training_nor_tuning(tmp_path: Path) -> None:
    """Neither one's own modules nor the libraries behind them: a registered bundle is all that serving needs."""
    unwanted = ("train_cnn", "hyperopt", "toolkit.training", "toolkit.tuning")
    code = f"import sys, serve_model; print([name for name in sys.modules if name.startswith({unwanted!r})])"
    assert fresh(code, tmp_path).stdout.strip() == "[]"


SLOW = {"torch", "mlflow", "scipy", "sklearn", "pandas", "matplotlib", "openvino", "hyperopt", "fastapi"}
SLOW |= {"numpy", "sqlalchemy"}
AS_A_SCRIPT = """
import runpy, sys
sys.argv = {words!r}
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as error:
    print("status", error.code, sorted({slow!r} & set(sys.modules)))
"""


def run_as_a_script(face: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = str(ROOT / f"{face}.py")
    return fresh(AS_A_SCRIPT.format(words=[f"{face}.py", *words], path=path, slow=SLOW), folder)


@pytest.mark.parametrize("face", FACES)
def test_help_waits_for_no_slow_import_and_shows_values_people_can_read(face: str, tmp_path: Path) -> None:
    result = run_as_a_script(face, "--help", folder=tmp_path)
    assert result.stdout.splitlines()[-1] == "status 0 []", result.stderr
    assert f"usage: {face}.py" in result.stdout
    for word in (" str", " int", " float", " Path", "default factory", "default: True", "default: False"):
        assert f"{word}]" not in result.stdout, word
        assert f"({word}" not in result.stdout, word


@pytest.mark.parametrize(
    ("face", "words", "message"),
    [
        ("train_cnn", ["--epochs", "0"], "--epochs must be at least 1, got 0"),
        ("hyperopt_tuning", ["--folds", "1"], "--folds must be at least 2, got 1"),
        ("model_registry", [], "say what to do: "),
        ("model_registry", ["promote", "1"], "STAGE"),
        ("monitoring", [], "say what to do: "),
        ("monitoring", ["alerts", "--since", "soon"], "--since must be a time such as "),
        ("monitoring", ["report", "--window", "wide"], "--window must be one of short, medium, long, got wide"),
        ("serve_model", ["--port", "-1"], "--port must be at least 0, got -1"),
        ("serve_model", ["--admin-key", "x"], "keys come from SERVE_PREDICT_KEY"),
    ],
)
def test_what_is_mistyped_is_said_before_the_slow_imports(
    face: str, words: list[str], message: str, tmp_path: Path
) -> None:
    result = run_as_a_script(face, *words, folder=tmp_path)
    assert result.stdout == "status 2 []\n", result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("face", "settings"),
    [("train_cnn", "TrainSettings"), ("hyperopt_tuning", "TuneSettings"), ("serve_model", "ServeSettings")],
)
def test_each_rule_of_a_setting_can_be_checked_before_the_slow_imports(
    face: str, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are given at once, most in a form that is allowed, so that their own validators run."""
    declared = getattr(importlib.import_module(face), settings)
    for name in declared.model_fields:
        monkeypatch.setenv(f"{declared.model_config['env_prefix']}{name}".upper(), "1")
    result = run_as_a_script(face, folder=tmp_path)
    assert result.stdout == "status 2 []\n", result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
