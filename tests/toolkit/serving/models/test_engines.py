"""Engines agree with the program, or do not serve."""

import copy
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from support import MAX_WAIT_S
from support.bundles import SavedBundle
from support.colours import ColourNetwork
from support.disk import full_disk
from toolkit.bundle.program import load_bundle
from toolkit.errors import BundleError
from toolkit.serving.models import engines, openvino_cache
from toolkit.serving.models.engines import (
    BATCHES,
    PARITY_BOUNDS,
    GPUEngine,
    OpenVINOEngine,
    TorchEngine,
    largest_difference,
    select_engine,
    synthetic_images,
)
from toolkit.serving.models.openvino_cache import MAX_CACHED, OpenVINOModelCache, is_cached

openvino = openvino_cache.openvino()
BFLOAT16 = "BF16" in openvino_cache.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
OUTPUTS = np.array([[0.5, 0.25, 0.25]], np.float32)
ENGINES = ("torch", "OpenVINO float32", "OpenVINO bfloat16", "GPU")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A bundle with probabilities far from 0 and 1."""
    return SavedBundle(tmp_path_factory.mktemp("bundle") / "bundle", ColourNetwork(strength=1.0))


@pytest.fixture(scope="module")
def bundle(saved):
    return load_bundle(saved.folder, saved.digest)


def converted(bundle, cache):
    return OpenVINOModelCache(bundle, lambda: OUTPUTS, cache).model


@pytest.fixture(scope="module")
def make_engine(bundle):
    """A function that gives a new engine by its name; the one for GPUs runs on the CPU."""
    model = converted(bundle, None)
    build = {
        "torch": lambda: TorchEngine(bundle),
        "OpenVINO float32": lambda: OpenVINOEngine(model, "float32"),
        "OpenVINO bfloat16": lambda: OpenVINOEngine(model, "bfloat16"),
        "GPU": lambda: GPUEngine(bundle, "bfloat16", "cpu"),
    }

    def make(name):
        if name == "OpenVINO bfloat16" and not BFLOAT16:
            pytest.skip("this processor has no bfloat16")
        return build[name]()

    return make


@pytest.fixture
def one_core():
    """This process has one core for a while."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("cores cannot be given away here")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def images_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


class Fake:
    """An engine that answers with what a function makes of the program's answer."""

    name, concurrency = "fake", 2

    def __init__(self, bundle, change):
        self._bundle, self._change = bundle, change
        self.report = {"precision": "bfloat16"}

    def infer(self, images):
        return self._change(self._bundle.predict(images))

    def close(self): ...


def shifted(answer):
    """As a wrong temperature would: still probabilities, 0.05 from the right ones."""
    return answer + np.array([-0.05, 0.0, 0.05], np.float32)


def frozen(answer):
    if len(answer) > 1:
        raise RuntimeError("the input has shape [1,16,16,3]\nand some more of OpenVINO's words")
    return answer


WRONG = {
    "off by 0.05": (shifted, "its probabilities are up to 0.05 from the program's, allowed is 0.02"),
    "frozen at batch 1": (frozen, re.escape("the input has shape [1,16,16,3]")),
    "random": (
        lambda answer: answer + np.float32(0.01) * np.random.rand(*answer.shape).astype("f"),
        "different results",
    ),
    "NaN": (lambda answer: answer * np.float32("nan"), "NaN or infinity"),
    "a class less": (lambda answer: answer[:, 1:], re.escape("float32 (1, 2) instead of float32 (1, 3)")),
    "in double": (lambda answer: answer.astype(float), re.escape("float64 (1, 3) instead of float32 (1, 3)")),
    "mixed up": (lambda answer: answer[::-1].copy(), "from the program's, allowed is 0.02"),
}


@pytest.mark.parametrize("name", ENGINES)
def test_many_threads_at_once_each_get_the_programs_answer(bundle, make_engine, name):
    engine = make_engine(name)
    batches = [images_of(1 + seed % 3, seed) for seed in range(50)]
    alone = [engine.infer(batch) for batch in batches]
    bound = PARITY_BOUNDS[engine.report["precision"]]
    for batch, answer in zip(batches, alone, strict=True):
        np.testing.assert_allclose(answer, bundle.predict(batch), rtol=0, atol=bound)
        np.testing.assert_allclose(answer.sum(axis=1), 1, atol=2**-8 if name == "GPU" else 1e-5)  # torch's softmax
        assert answer.dtype == np.float32
    start = threading.Barrier(8)

    def ask(_):
        start.wait()
        return [engine.infer(batch) for batch in batches]

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(ask, range(8)):
            for answer, right in zip(answers, alone, strict=True):
                np.testing.assert_array_equal(answer, right)


@pytest.mark.parametrize("name", ENGINES)
def test_outputs_are_copies_and_images_may_have_any_strides(make_engine, name):
    engine = make_engine(name)
    turned = images_of(4)[::-1, :, ::-1]
    turned.flags.writeable = False
    first = engine.infer(turned)
    kept = first.copy()
    np.testing.assert_array_equal(engine.infer(np.ascontiguousarray(turned)), kept)
    engine.infer(images_of(4, seed=1))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # theirs to change
    np.testing.assert_array_equal(engine.infer(turned), kept)
    engine.close()
    np.testing.assert_array_equal(engine.infer(turned), kept)


@pytest.mark.parametrize("name", ENGINES)
def test_batches_of_any_size_are_answered_row_by_row(bundle, make_engine, name):
    engine = make_engine(name)
    for count in (0, 1, 5, 33, 2, 70):  # as they come, not in order
        images = images_of(count, seed=count)
        answer = engine.infer(images)
        assert (answer.shape, answer.dtype) == ((count, 3), np.float32)
        np.testing.assert_allclose(
            answer, bundle.predict(images), rtol=0, atol=PARITY_BOUNDS[engine.report["precision"]]
        )


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("shape", [(1, 17, 16, 3), (1, 3, 16, 16), (16, 16, 3), (1, 16, 16, 4)])
def test_images_of_another_shape_are_rejected(make_engine, name, shape):
    engine = make_engine(name)
    right = engine.infer(images_of(2))
    with pytest.raises(RuntimeError) as refused:
        engine.infer(np.zeros(shape, np.uint8))
    assert engines._reason(refused.value)
    np.testing.assert_array_equal(engine.infer(images_of(2)), right)


def test_openvino_refuses_images_of_another_size_on_one_core(make_engine, one_core):
    engine = make_engine("OpenVINO float32")
    right = engine.infer(images_of(1))
    with pytest.raises(RuntimeError) as refused:
        engine.infer(np.zeros((1, 17, 16, 3), np.uint8))
    assert "17" in engines._reason(refused.value)  # and not where in its sources that is
    np.testing.assert_array_equal(engine.infer(images_of(1)), right)


def test_the_program_keeps_its_device_and_precision(bundle, make_engine):
    before = bundle.predict(images_of(3))
    GPUEngine(bundle, "float16", "meta")  # a device that holds nothing
    make_engine("GPU")
    assert {tensor.device.type for tensor in bundle.export().state_dict.values()} == {"cpu"}
    assert {tensor.dtype for tensor in bundle.export().state_dict.values()} == {torch.float32}
    np.testing.assert_array_equal(bundle.predict(images_of(3)), before)


def test_on_a_gpu_all_of_the_program_has_the_gpus_number(bundle, monkeypatch):
    """Fake tensors refuse two devices in one operation, and a check of the graph for ``cuda`` finds ``cuda:1``."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    program = copy.deepcopy(bundle.export())
    monkeypatch.setattr(
        engines, "copy", SimpleNamespace(deepcopy=lambda _: program)
    )  # fake tensors cannot be copied so
    with FakeTensorMode(allow_non_fake_inputs=True):
        engine = GPUEngine(bundle, "float16")
        answer = engine._program(torch.zeros(3, 16, 16, 3, dtype=torch.uint8, device="cuda:1"))
    assert (answer.device, answer.shape) == (torch.device("cuda", 1), (3, 3))
    assert engine.report["device"] == "cuda"


def test_the_fastest_engine_is_selected_and_has_a_report(bundle, caplog):
    caplog.set_level(logging.INFO, "toolkit.serving.models.engines")
    root = logging.getLogger()
    before = (root.level, list(root.filters), list(root.handlers))
    engine = select_engine(bundle, threads=1)
    report = dict(engine.report)
    assert report.pop("seconds") > 0
    precision = "bfloat16" if BFLOAT16 else "float32"
    assert 0 <= report.pop("largest_difference") <= PARITY_BOUNDS[precision]
    assert len(report.pop("failed_engines")) == (0 if BFLOAT16 else 1)
    assert report == {
        "engine": engine.name, "precision": precision, "device": "cpu", "concurrency": engine.concurrency, "images": 16
    }  # fmt: skip
    assert (engine.name, engine.concurrency) == (f"OpenVINO {precision} on the CPU", 1)
    assert f"OpenVINO {precision} on the CPU, 1 at once, differs by" in caplog.text
    assert (root.level, root.filters, root.handlers) == before  # OpenVINO changes them while it converts


def test_torch_by_name_has_the_outputs_of_the_bundle(bundle):
    engine = select_engine(bundle, "torch", threads=3)
    np.testing.assert_array_equal(engine.infer(images_of(5)), bundle.predict(images_of(5)))
    assert (engine.name, engine.concurrency) == ("torch float32 on the CPU", 3)
    assert engine.report["failed_engines"] == []
    assert engine.report["largest_difference"] == 0


@pytest.mark.parametrize("wrong", WRONG)
def test_an_engine_that_is_wrong_fails_its_check(bundle, wrong):
    change, message = WRONG[wrong]
    batches = np.split(synthetic_images(16), np.cumsum(BATCHES)[:-1])
    expected = [bundle.predict(batch) for batch in batches]
    assert largest_difference(Fake(bundle, lambda answer: answer), batches, expected) == 0
    with pytest.raises((BundleError, RuntimeError), match=message):
        largest_difference(Fake(bundle, change), batches, expected)


@pytest.mark.parametrize(
    ("wanted", "found", "passes"),
    [
        ((0.505, 0.495), (0.495, 0.505), True),  # another class, but the two were 0.01 apart
        ((0.5125, 0.4875), (0.4985, 0.5015), False),  # 0.014 off is allowed, but they were 0.025 apart
        ((0.5125, 0.4875), (0.5265, 0.4735), True),
        ((0.6, 0.4), (0.579, 0.421), False),  # 0.021 off
    ],
)
def test_another_class_is_allowed_only_for_near_ties(bundle, wanted, found, passes):
    engine = Fake(bundle, lambda answer: np.array([found], np.float32))
    arguments = engine, [images_of(1)], [np.array([wanted], np.float32)]
    if passes:
        assert largest_difference(*arguments) == pytest.approx(abs(wanted[0] - found[0]), abs=1e-6)
    else:
        with pytest.raises(BundleError, match=r"predicts another class than the program for 1 of 1|up to 0\.021 from"):
            largest_difference(*arguments)


def test_a_broken_engine_is_skipped_and_an_error_if_chosen(bundle, monkeypatch, caplog):
    class Broken(OpenVINOEngine):
        def infer(self, images):
            return shifted(super().infer(images))

    monkeypatch.setattr(engines, "OpenVINOEngine", Broken)
    engine = select_engine(bundle)
    assert isinstance(engine, TorchEngine)
    failed = engine.report["failed_engines"]
    assert [entry["engine"] for entry in failed] == ["OpenVINO bfloat16 on the CPU", "OpenVINO float32 on the CPU"]
    assert re.search(r"probabilities are up to 0\.05\d* from the program's, allowed is 0\.0001", failed[1]["reason"])
    assert caplog.text.count("is skipped") == 2
    with pytest.raises(BundleError, match=r"no engine runs.*OpenVINO float32 on the CPU: its probabilities are up to"):
        select_engine(bundle, "openvino")


def test_without_bfloat16_openvino_runs_in_float32(bundle, monkeypatch):
    class OlderProcessor(OpenVINOEngine):
        def __init__(self, model, precision, threads, cores):
            if precision == "bfloat16":
                raise BundleError("the processor has no bfloat16")
            super().__init__(model, precision, threads, cores)

    monkeypatch.setattr(engines, "OpenVINOEngine", OlderProcessor)
    engine = select_engine(bundle)
    assert engine.name == "OpenVINO float32 on the CPU"
    assert engine.report["failed_engines"] == [
        {"engine": "OpenVINO bfloat16 on the CPU", "reason": "the processor has no bfloat16"}
    ]


def test_a_program_that_was_not_exported_runs_in_torch(make_bundle):
    assert select_engine(make_bundle()).name == "torch float32 on the CPU"
    with pytest.raises(BundleError, match="the bundle has no exported program"):
        select_engine(make_bundle(), "openvino")


def test_a_program_that_returns_nan_is_an_error(make_bundle):
    with pytest.raises(BundleError, match="NaN or infinity"):
        select_engine(make_bundle(row=[0.5, float("nan"), 0.5]))


def test_a_signal_does_no_harm_when_all_engines_are_gone(bundle):
    engine = select_engine(bundle, "openvino")
    engine.infer(images_of(1))
    engine.close()
    del engine
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_synthetic_images_are_fixed_and_distinct():
    images = synthetic_images(24)
    np.testing.assert_array_equal(images, synthetic_images(24))
    assert len({image.tobytes() for image in images}) == len(images) == sum(BATCHES) == 16
    contrasts = images.std(axis=(1, 2, 3))
    assert (contrasts[:-3] > 10).all()
    assert (contrasts[-3:] == 0).all()


def cached(folder):
    return sorted(folder.glob("*"))


def test_a_converted_model_is_cached(bundle, tmp_path, monkeypatch):
    cache = tmp_path / "not" / "there yet"
    first = select_engine(bundle, "openvino", cache=cache)
    (kept,) = cached(cache)
    assert kept.name.startswith(f"openvino-{openvino.__version__.split('-')[0]}-torch-2")
    assert f"-{bundle.digest}-" in kept.name
    assert sorted(path.name for path in kept.iterdir()) == ["model.bin", "model.xml", "outputs.npy"]

    def refuse(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino, "convert_model", refuse)
    never = replace(bundle, program=refuse, export=refuse)  # neither is needed any more
    again = select_engine(never, "openvino", cache=cache)
    assert again.name == first.name
    np.testing.assert_array_equal(again.infer(images_of(9)), first.infer(images_of(9)))
    with pytest.raises(BundleError, match="converted again"):
        select_engine(replace(bundle, digest="another"), "openvino", cache=cache)


@pytest.mark.parametrize(
    ("file", "damage"),
    [("model.bin", "emptied"), ("model.bin", "altered"), ("model.xml", "cut"), ("model.xml", "gone"),
     ("outputs.npy", "altered"), ("outputs.npy", "gone")],
)  # fmt: skip
def test_a_broken_conversion_is_made_again(bundle, make_engine, tmp_path, monkeypatch, caplog, file, damage):
    model = converted(bundle, tmp_path)
    monkeypatch.setattr(openvino, "convert_model", lambda _: model)  # as before, and at once
    (folder,) = cached(tmp_path)
    whole = (folder / file).read_bytes()
    broken = {"emptied": b"", "cut": whole[:-9], "altered": whole[:-9] + bytes(1) + whole[-8:], "gone": None}[damage]
    (folder / file).unlink()
    if broken is not None:
        (folder / file).write_bytes(broken)
    converted(bundle, tmp_path)
    assert "is made again: it was altered" in caplog.text
    assert cached(tmp_path) == [folder]
    assert (folder / file).read_bytes() == whole


def test_of_several_that_convert_a_bundle_one_does(bundle, tmp_path):
    made = []

    class Counted(OpenVINOModelCache):
        def _convert(self):
            made.append(self)
            return super()._convert()

    conversions = [Counted(bundle, lambda: bundle.predict, tmp_path) for _ in range(3)]
    for one in conversions:
        one.reference_outputs = bundle.baseline.probabilities[:1]
        assert one._cached is None
    threads = [threading.Thread(target=lambda one=one: one.model) for one in conversions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert is_cached(bundle, tmp_path)


def test_a_cache_that_cannot_be_written_is_not_needed(bundle, tmp_path, monkeypatch, caplog):
    model = converted(bundle, None)
    monkeypatch.setattr(openvino, "convert_model", lambda _: model)
    (tmp_path / "file").write_text("not a folder")
    assert converted(bundle, tmp_path / "file") is model
    with full_disk(100):
        assert converted(bundle, tmp_path / "full") is model
    assert cached(tmp_path / "full") == []
    assert caplog.text.count("the converted model cannot be cached") == 2


def test_a_cache_keeps_the_newest(bundle, tmp_path, monkeypatch):
    model = converted(bundle, None)
    monkeypatch.setattr(openvino, "convert_model", lambda _: model)
    (tmp_path / "mine").mkdir()
    for number in range(MAX_CACHED + 2):
        converted(replace(bundle, digest=f"d{number}"), tmp_path)
        for age, folder in enumerate(sorted(tmp_path.glob("openvino-*"), key=lambda path: path.stat().st_mtime)):
            os.utime(folder, (age, age))  # in the same order, clearly in the past
    names = " ".join(path.name for path in cached(tmp_path))
    assert [f"-d{number}-" in names for number in range(MAX_CACHED + 2)] == [False] * 2 + [True] * MAX_CACHED
    assert (tmp_path / "mine").is_dir()


FRESH = """
import sys, pathlib, threading
seen = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.fork"):
        seen.append((event, str(arguments)))
        raise OSError("refused")
from toolkit.bundle.program import load_bundle
from toolkit.serving.models.engines import select_engine
assert "openvino" not in sys.modules, "importing the engines imports OpenVINO"
bundle = load_bundle(pathlib.Path(sys.argv[1]), sys.argv[2])
sys.addaudithook(watch)
print(select_engine(bundle, "openvino").name)
for thread in threading.enumerate():
    if thread is not threading.main_thread() and not thread.daemon:
        thread.join()
print(seen)
"""


def test_openvino_sends_no_telemetry(saved, tmp_path):
    variables = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD")}
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(saved.folder), saved.digest],
        check=False, capture_output=True, text=True, timeout=MAX_WAIT_S, cwd=tmp_path,
        env={**variables, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    name, seen = result.stdout.splitlines()
    assert name.startswith("OpenVINO")
    assert seen == "[]"
    assert list(tmp_path.iterdir()) == []  # openvino-telemetry would write an identity into the home folder


FIRST_RUNS = """
import os, sys, threading
import numpy as np
from toolkit.serving.models import openvino_cache

def first_run():
    library = openvino_cache.openvino()
    from openvino import opset13
    given = opset13.parameter([-1, 8], np.float32)
    model = openvino_cache.core().compile_model(library.Model([opset13.relu(given)], [given], "relu"), "CPU")
    requests, begin = [model.create_infer_request() for _ in range(2)], threading.Event()

    def run(request):
        while not begin.is_set():
            pass
        request.start_async({0: np.ones((2, 8), np.float32)})
        request.wait()

    threads = [threading.Thread(target=run, args=(request,), daemon=True) for request in requests]
    for thread in threads:
        thread.start()
    begin.set()
    for thread in threads:
        thread.join()
    os._exit(int(requests[0].get_output_tensor().data.sum() != 16))

sys.setswitchinterval(0.0005)
for _ in range(8):
    if not (child := os.fork()):
        first_run()
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_the_first_use_of_openvino_in_two_threads_does_not_deadlock():
    """Without the import of numpy, a third of such starts was deadlocked while holding Python's lock."""
    ended = subprocess.run(
        [sys.executable, "-c", FIRST_RUNS], check=False, capture_output=True, text=True, timeout=MAX_WAIT_S
    )
    assert ended.stdout.split() == ["0"] * 8, ended.stderr
