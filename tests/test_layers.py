"""The layers hold: what imports what, and that importing does nothing."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import MAX_WAIT_S, ROOT

SCRIPTS = {  # and the scripts that each may import
    "train_cnn": set(),
    "hyperopt_tuning": {"train_cnn"},
    "model_registry": set(),
    "monitoring": set(),
    "serve_model": {"model_registry", "monitoring"},
}
PACKAGES = {  # and the one script that may import each
    "training": "train_cnn",
    "tuning": "hyperopt_tuning",
    "registry": "model_registry",
    "monitoring": "monitoring",
    "serving": "serve_model",
}
SHARED = ""
# What may import what within a package, and among the shared modules: a part may import those to the left of it, by
# one chain or by several in a row. A slash marks a sub-package, the asterisk all modules that are not named. A package
# without sub-packages has no order.
ORDERS = {
    SHARED: "errors, redaction < cli/ < system/, images/, statistics/ < tracking/, plotting/ < bundle/",
    "training": "data/ < * < checkpointing/, results/",
    "monitoring": "base/ < stats/ < windows/, store/ < alerting/ < pipeline/, report < plots/",
    "serving": """
        problems, schemas, cached_call, workers < models/ < inference/ < metrics < http/;
        metrics < service;
        http/, service < routes/
    """,
}
ONLY_TRACKING_IMPORTS = "mlflow"  # its settings must be made before its first import


def sources(root=ROOT):
    return sorted(root.glob("*.py")) + sorted((root / "toolkit").rglob("*.py"))


def module_name(path, root=ROOT):
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path, root=ROOT):
    """Every module that a file imports anywhere: at the top, in functions, under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively in line {node.lineno}"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            places = {name: root / Path(*name.split(".")) for name in inner}
            known = {name for name, place in places.items() if place.with_suffix(".py").exists() or place.is_dir()}
            found |= known or {module}
    return found


def package_of(module):
    """The package of a module, ``SHARED`` for a shared one, None outside the toolkit."""
    root, *rest = module.split(".")
    if root != "toolkit" or not rest:
        return None
    return rest[0] if rest[0] in PACKAGES else SHARED


def part_of(module, root=ROOT):
    """The sub-package or module below its package that a module is or belongs to; None for the package itself."""
    package = package_of(module)
    if package is None:
        return None
    _, *rest = module.split(".")
    above = [package] if package else []
    if rest == above:
        return None
    part = rest[len(above)]
    return f"{part}/" if root.joinpath("toolkit", *above, part).is_dir() else part


def may_import(order):
    """The parts that each part of an order may import.

    >>> {part: sorted(below) for part, below in may_import("a < b/, c; b/ < d").items()}
    {'a': [], 'b/': ['a'], 'c': ['a'], 'd': ['a', 'b/']}
    """
    below = {}
    for chain in order.split(";"):
        lower = set()
        for level in chain.split("<"):
            parts = [part.strip() for part in level.split(",")]
            for part in parts:
                below.setdefault(part, set()).update(lower)
            lower = lower | set(parts)
    for middle in below:
        for part in below:
            if middle in below[part]:
                below[part] |= below[middle]
    return below


def disorder(package, order, root=ROOT):
    """What contradicts the order within a package, a line each; a package without sub-packages needs none."""
    names = {path: module_name(path, root) for path in sources(root)}
    parts = {
        path: part for path, name in names.items() if package_of(name) == package and (part := part_of(name, root))
    }
    if not any(part.endswith("/") for part in parts.values()):
        return []
    below = may_import(order)
    places = {part: part if part in below or part.endswith("/") else "*" for part in parts.values()}
    found = [f"{part} has no place in the order" for part, place in sorted(places.items()) if place not in below]
    for path, part in parts.items():
        for imported in sorted(imports_of(path, root)):
            place = places.get(part_of(imported, root) or "") if package_of(imported) == package else None
            if place and place != places[part] and place not in below.get(places[part], set()):
                found.append(f"{names[path]} imports {imported}")
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_point_down(path):
    module, imported = module_name(path), imports_of(path)
    scripts = {name for name in imported if name in SCRIPTS}
    packages = {package for name in imported if (package := package_of(name))}
    if module in SCRIPTS:
        assert scripts <= SCRIPTS[module]
        assert all(PACKAGES[package] == module for package in packages)
    else:
        assert not scripts, "the toolkit never imports a script"
        assert packages <= {package_of(module)}, "one package never imports another, the shared modules none"


@pytest.mark.parametrize("package", [SHARED, *PACKAGES])
def test_the_order_within_a_package_holds(package):
    assert disorder(package, ORDERS.get(package, "")) == []


def test_no_order_is_circular():
    circles = [
        (package, part)
        for package, order in ORDERS.items()
        for part, below in may_import(order).items()
        if part in below
    ]
    assert circles == []


def test_the_architecture_page_has_the_orders():
    page = (ROOT / "docs" / "architecture.md").read_text()
    chains = [" ".join(chain.split()) for order in ORDERS.values() for chain in order.split(";")]
    assert [chain for chain in chains if f"`{chain}`" not in page] == []


def test_disorder_is_found(tmp_path):
    files = {
        "base/ids.py": "from toolkit.monitoring import report",
        "store/rows.py": "def later():\n    from toolkit.monitoring.base import ids",
        "extra/new.py": "",
        "report.py": "import toolkit.monitoring.store.rows",
    }
    for name, text in files.items():
        path = tmp_path / "toolkit" / "monitoring" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert disorder("monitoring", "base/ < store/ < report", tmp_path) == [
        "extra/ has no place in the order",
        "toolkit.monitoring.base.ids imports toolkit.monitoring.report",
    ]
    assert disorder("monitoring", "store/ < base/ < extra/, *", tmp_path) == [
        "toolkit.monitoring.base.ids imports toolkit.monitoring.report",
        "toolkit.monitoring.store.rows imports toolkit.monitoring.base.ids",
    ]
    unplaced = [line.split()[0] for line in disorder("monitoring", "", tmp_path) if "no place" in line]
    assert unplaced == ["base/", "extra/", "report", "store/"]
    assert disorder(SHARED, "", tmp_path) == []


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_tracking_imports_mlflow(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert ONLY_TRACKING_IMPORTS not in roots or module_name(path) == "toolkit.tracking.connection"


def test_hidden_imports_are_found(tmp_path):
    hidden = tmp_path / "hidden.py"
    hidden.write_text("def f():\n    import train_cnn\n    from toolkit.training import loop\n")
    assert imports_of(hidden) == {"train_cnn", "toolkit.training.loop"}


def test_every_script_and_package_is_on_the_list():
    assert {path.stem for path in ROOT.glob("*.py")} == SCRIPTS.keys()
    assert all((ROOT / "toolkit" / package / "__init__.py").is_file() for package in PACKAGES)


def fresh(code, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    return subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=folder, capture_output=True, text=True, timeout=MAX_WAIT_S,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


UNWANTED = {  # what importing a script must not load, in an order in which none loads it for a later one
    "monitoring": {"torch", "mlflow", "matplotlib", "pandas", "pyarrow", "scipy", "requests", "urllib3"},
    "model_registry": {"torch", "torchvision", "matplotlib", "scipy.stats", "sklearn"},
    "serve_model": {  # a registered bundle is all that serving needs
        "torchvision", "matplotlib", "scipy.stats", "sklearn", "train_cnn", "hyperopt", "toolkit.training",
        "toolkit.tuning",
    },
    "train_cnn": {"torchvision", "torch._dynamo"},
    "hyperopt_tuning": set(),
}  # fmt: skip


def test_importing_a_script_does_nothing_and_loads_only_what_all_its_users_need(tmp_path):
    """No file, no connection, no thread that stays, no logging set-up, no output; a list waits for no compiler."""
    code = f"""
import importlib, logging, os, socket, sys, threading
before = list(logging.getLogger().handlers)
def refuse(*args, **kwargs):
    raise SystemExit("importing opened a connection")
socket.socket.connect = refuse
for script, unwanted in {UNWANTED!r}.items():
    importlib.import_module(script)
    ours = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert logging.getLogger().handlers == before, f"importing {{script}} set up logging"
    assert not ours, f"importing {{script}} began {{ours}}"
    assert not os.listdir(), f"importing {{script}} wrote {{os.listdir()}}"
    assert not unwanted & set(sys.modules), f"importing {{script}} loaded {{unwanted & set(sys.modules)}}"
"""
    assert UNWANTED.keys() == SCRIPTS.keys()
    result = fresh(code, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


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


def run_as_a_script(script, *words, folder):
    path = str(ROOT / f"{script}.py")
    return fresh(AS_A_SCRIPT.format(words=[f"{script}.py", *words], path=path, slow=SLOW), folder)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_waits_for_no_slow_import_and_shows_readable_values(script, tmp_path):
    result = run_as_a_script(script, "--help", folder=tmp_path)
    assert result.stdout.splitlines()[-1] == "status 0 []", result.stderr
    assert f"usage: {script}.py" in result.stdout
    for word in (" str", " int", " float", " Path", "default factory", "default: True", "default: False"):
        assert f"{word}]" not in result.stdout, word
        assert f"({word}" not in result.stdout, word


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("train_cnn", ["--epochs", "0"], "--epochs must be at least 1, got 0"),
        ("hyperopt_tuning", ["--folds", "1"], "--folds must be at least 2, got 1"),
        ("model_registry", [], "a subcommand is required: "),
        ("model_registry", ["promote", "1"], "STAGE"),
        ("monitoring", [], "a subcommand is required: "),
        ("monitoring", ["alerts", "--since", "soon"], "--since must be a time such as "),
        ("monitoring", ["report", "--window", "wide"], "--window must be one of short, medium, long, got wide"),
        ("serve_model", ["--port", "-1"], "--port must be at least 0, got -1"),
        ("serve_model", ["--admin-key", "x"], "keys come from SERVE_PREDICT_KEY"),
    ],
)
def test_errors_come_before_the_slow_imports(script, words, message, tmp_path):
    result = run_as_a_script(script, *words, folder=tmp_path)
    assert result.stdout == "status 2 []\n", result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "settings"),
    [("train_cnn", "TrainSettings"), ("hyperopt_tuning", "TuneSettings"), ("serve_model", "ServeSettings")],
)
def test_each_rule_is_checked_before_the_slow_imports(script, settings, tmp_path, monkeypatch):
    """All are given at once, most in a form that is allowed, so that their own validators run."""
    declared = getattr(importlib.import_module(script), settings)
    for name in declared.model_fields:
        monkeypatch.setenv(f"{declared.model_config['env_prefix']}{name}".upper(), "1")
    result = run_as_a_script(script, folder=tmp_path)
    assert result.stdout == "status 2 []\n", result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
