"""The service and FastAPI, LitServe, MLflow's and BentoML's servers, and the rate of decoding and inference alone.

    pip install -r requirements-bench.txt           # once, in an environment of its own
    python benchmarks/serving.py                    # about 40 minutes, on photographs that it draws itself
    python benchmarks/serving.py --quick            # the same, shorter and once
    python benchmarks/serving.py --data photos/     # your own photographs, at both sizes
    python benchmarks/serving.py --part throughput --only LitServe
    python benchmarks/serving.py --json             # ends with one JSON object of claims

All answer for one ResNet-18 of random weights at 224 px, on the same JPEG files of 640 x 427 and of
4000 x 3000 pixels, over loopback from one other process with kept-alive connections:

    ours        serve_model.py as it starts by itself, monitoring on; a raw image/jpeg body
    limit       decode and infer in one process without HTTP, in as many plain threads as ours has, or
                as there are clients, by the project's decoder and the engine that ours picks
    FastAPI     a threaded function with an UploadFile; torch in float32, torchvision's transforms; a form
    LitServe    batches of 8 within 10 ms, two workers, as in its own comparison with FastAPI; base64 in JSON
    MLflow      mlflow models serve on the same bundle; the decoded image as numbers in JSON, which is
                what it takes: decoding has been done for it and writing the JSON too, reading it has not
    BentoML     a batchable method on a list of images, as in its example BentoResnet; a form

Each is started, waited for, sent 50 requests, measured and stopped; a round is all of them in turn.
Metrics are medians over the rounds. The first half second of a load does not count. A load of n clients
is n connections that each wait for their answer; at a share of the capacity requests come at random
moments, whatever the answers. A peer may use what its installation brings; ours runs without uvloop,
which the requirements of peers install and its own do not. All use the processor, also where
there is a GPU.
"""

import itertools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, Claims, argument_parser, conclude, load, machine  # noqa: E402
from benchmarks.load import Answer, LoadMetrics, arriving, closed, load_metrics, milliseconds  # noqa: E402
from benchmarks.servers import (  # noqa: E402
    CONTEXT,
    LARGE,
    OURS,
    SERVERS,
    SIZE,
    SMALL,
    VERSIONS,
    RunningServer,
    Setup,
    engine_of,
    prepared,
    promote,
    reload,
    running,
)
from serve_model import ServeSettings  # noqa: E402
from toolkit.bundle.program import load_bundle  # noqa: E402
from toolkit.cli.settings import parse, run_script  # noqa: E402
from toolkit.cli.terminal import echo, table  # noqa: E402
from toolkit.images.decoding import load_image  # noqa: E402
from toolkit.serving.models.engines import select_engine  # noqa: E402
from toolkit.system.metrics import usable_cores  # noqa: E402

LIMIT = "limit"
PACKAGES = ["torch", "torchvision", "pillow", "fastapi", "uvicorn", "litserve", "mlflow", "bentoml"]
PACKAGES += ["openvino"] if find_spec("openvino") else []
NAMES = (OURS, LIMIT, *(name for name in SERVERS if name != OURS))
RAMP, LEAST = 0.5, 16  # s of each load that do not count; how many requests follow the first ones at least
CALM = 2.0  # s before each swap
SHARES = {"70 %": 0.7, "100 %": 1.0, "150 %": 1.5}  # of the capacity

# Goals.
OVER = {"LitServe": 6.0, "FastAPI": 7.0, LIMIT: 0.85}  # ours over them in images/s at 16 clients
MANY_CLIENTS, ALONE = 1.0, 1.3  # 64 clients over 16 in images/s; one client's median over the limit's
TAIL, OVERLOADED = 4.0, 0.95  # p99 over median at 70 %; answered at 150 % over the capacity
SWAP, GROWTH, START = 2.0, 1.05, 8.0  # p99 during a swap over usual; memory; seconds
PROVED, BACK = 10.0, 1.0  # s until a version serves under full load: one that never did, one that did before


class Scale(NamedTuple):
    """Amount of work to measure."""

    rounds: int
    seconds: float  # of one load
    swaps: int  # under load
    few: tuple[int, int]  # requests and reloads before memory is first read
    many: tuple[int, int]  # and further ones before it is read again
    starts: int


FULL = Scale(rounds=3, seconds=10, swaps=10, few=(5_000, 5), many=(95_000, 95), starts=5)
QUICK = Scale(rounds=1, seconds=2, swaps=2, few=(200, 1), many=(600, 3), starts=2)


class Case(NamedTuple):
    """A load of clients that wait."""

    size: str
    clients: int

    def __str__(self) -> str:
        return f"{self.size}, {self.clients} client{'s' if self.clients > 1 else ''}"


ALONE_CASE, USUAL, CROWD = (Case(SMALL, clients) for clients in (1, 16, 64))
CASES = (ALONE_CASE, USUAL, CROWD, Case(LARGE, USUAL.clients))


def main() -> None:
    """Measure and print."""
    parser = argument_parser(__doc__, quick="shorter and once")
    parser.add_argument("--data", type=Path, help="folder of photographs, instead of drawn ones")
    parser.add_argument("--only", choices=NAMES, help="measure the throughput of this one alone")
    parser.add_argument("--part", choices=PARTS, help="what is measured, instead of everything")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    claims: Claims = {}
    echo(machine(*PACKAGES))
    with tempfile.TemporaryDirectory(prefix="serving-") as folder, prepared(Path(folder), options.data) as setup:
        for part in [options.part] if options.part else PARTS:
            claims |= PARTS[part](setup, scale, [options.only] if options.only else NAMES)
    conclude(claims, options.json)


PLOTS = ("images/s", "median, ms", "p99, ms", "failed", "refused")


def _row(found: LoadMetrics) -> list[str]:
    times = [f"{value:,.1f}" for value in (found.rate, found.median, found.p99)]
    return [*times, f"{found.failed:,.0f}", f"{found.refused:.1%}"]


def _median(rounds: Sequence[LoadMetrics]) -> LoadMetrics:
    return LoadMetrics(*np.median(rounds, axis=0))


def _conditions(*more: str) -> str:
    return ", ".join([f"ResNet-18, {SIZE} px, JPEGs of {SMALL}, {usable_cores()} cores", *more])


# --- throughput ---------------------------------------------------------------------------------

Results = Mapping[tuple[str, Case], LoadMetrics]


def throughput(setup: Setup, scale: Scale, names: Sequence[str]) -> Claims:
    """All contestants in turn, round by round."""
    found: dict[tuple[str, Case], list[LoadMetrics]] = defaultdict(list)
    for _, name in itertools.product(range(scale.rounds), names):
        answers = limit(setup, scale.seconds) if name == LIMIT else served(setup, name, scale.seconds)
        for case in CASES:
            found[name, case].append(load_metrics(answers[case], RAMP))
    medians = {key: _median(rounds) for key, rounds in found.items()}
    for case in CASES:
        rows = [[name, *_row(medians[name, case]), _times(medians, name, case)] for name in names]
        echo(f"\n{case}, load {load()}\n\n{table(['', *PLOTS, 'ours over it'], rows)}")
    return _throughput_claims(medians, _conditions(f"medians of {scale.rounds} rounds of {scale.seconds:g} s"))


def served(setup: Setup, name: str, seconds: float) -> dict[Case, list[Answer]]:
    """All loads on one server."""
    with running(name, setup) as server:
        if name == OURS:
            echo(f"\nours runs {engine_of(server)}")
        return {case: _crowded(setup, server, case, seconds) for case in CASES}


def _crowded(setup: Setup, server: RunningServer, case: Case, seconds: float) -> list[Answer]:
    """A load that lasts long enough for slow servers too."""
    size, clients = case
    return setup.send(
        closed, server.port, server.requests[size], clients, count=clients + LEAST, seconds=RAMP + seconds
    )


def limit(setup: Setup, seconds: float) -> dict[Case, list[Answer]]:
    """The same images without a server, in a process of their own."""
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        return pool.submit(_limit, setup.bundle, setup.digest, setup.images, RAMP + seconds).result()


def _limit(
    folder: Path, digest: str, images: Mapping[str, Sequence[bytes]], seconds: float
) -> dict[Case, list[Answer]]:
    engine = select_engine(load_bundle(folder, digest))
    answers: dict[Case, list[Answer]] = {case: [] for case in CASES}

    def work(case: Case, numbers: Iterator[int], end: float) -> None:
        torch.set_num_threads(1)
        while (began := time.monotonic()) < end:
            data = images[case.size][next(numbers) % len(images[case.size])]
            engine.infer(load_image(data, SIZE).pixels[np.newaxis])
            answers[case].append(Answer(began, time.monotonic() - began, 200))

    for case in CASES:
        shared = (case, itertools.count(), time.monotonic() + seconds)
        threads = [
            Thread(target=work, args=shared) for _ in range(min(case.clients, parse(ServeSettings, None, ()).n_threads))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return answers


def _times(medians: Results, name: str, case: Case) -> str:
    ours, theirs = medians.get((OURS, case)), medians[name, case]
    return f"{ours.rate / theirs.rate:.2f}" if ours and theirs.rate and name != OURS else ""


def _throughput_claims(medians: Results, conditions: str) -> Claims:
    """The contestants that were measured."""
    claims = {}

    def compare(name: str, one: tuple[str, Case], other: tuple[str, Case], goal: float, metric: str = "rate") -> None:
        if one in medians and other in medians:
            value = getattr(medians[one], metric) / getattr(medians[other], metric)
            claims[name] = Claim(value, goal, "higher" if metric == "rate" else "lower", conditions)

    for rival, goal in OVER.items():
        compare(f"throughput at 16 clients: ours over {rival}", (OURS, USUAL), (rival, USUAL), goal)
    compare("throughput at 64 clients over 16", (OURS, CROWD), (OURS, USUAL), MANY_CLIENTS)
    alone = "one client's median over decode and infer alone"
    compare(alone, (OURS, ALONE_CASE), (LIMIT, ALONE_CASE), ALONE, "median")
    return claims


# --- arrivals at a rate -------------------------------------------------------------------------


def open_loop(setup: Setup, scale: Scale, _: Sequence[str]) -> Claims:
    """Shares of the capacity, which is what 64 waiting clients get; in turn, round by round."""
    found: dict[str, list[LoadMetrics]] = defaultdict(list)
    with running(OURS, setup) as server:
        requests = server.requests[SMALL]
        for number in range(scale.rounds):
            capacity = load_metrics(_crowded(setup, server, CROWD, scale.seconds), RAMP)
            found["capacity"].append(capacity)
            for name, share in SHARES.items():
                rate, seconds = share * capacity.rate, RAMP + 2 * scale.seconds
                found[name].append(
                    load_metrics(setup.send(arriving, server.port, requests, rate, seconds, number), RAMP)
                )
    medians = {name: _median(rounds) for name, rounds in found.items()}
    rows = [[name, *_row(median)] for name, median in medians.items()]
    above, full = medians["150 %"], medians["100 %"]
    echo(f"\narrivals at a rate, load {load()}\n\n{table(['', *PLOTS], rows)}")
    echo(
        f"\nat 150 %: {above.refused:.0%} refused with 503, half of them within {above.refusal:.1f} ms;"
        f" the others' median is {above.median / full.median:.2f} times that at 100 %"
    )
    return _open_claims(found, _conditions(f"medians of {scale.rounds} rounds of {2 * scale.seconds:g} s"))


def _open_claims(found: Mapping[str, Sequence[LoadMetrics]], conditions: str) -> Claims:
    tails = [calm.p99 / calm.median for calm in found["70 %"]]
    shares = [above.rate / capacity.rate for above, capacity in zip(found["150 %"], found["capacity"], strict=True)]
    lost = sum(above.failed for above in found["150 %"])
    return {
        "at 70 % of capacity: p99 over median": Claim(float(np.median(tails)), TAIL, "lower", conditions),
        "at 150 %: answered over capacity": Claim(float(np.median(shares)), OVERLOADED, "higher", conditions),
        "at 150 %: neither answered nor refused with 503": Claim(lost, 0, "lower", f"requests, {conditions}"),
    }


# --- reloads ------------------------------------------------------------------------------------


class Span(NamedTuple):
    """A time, in s on the monotonic clock."""

    began: float
    ended: float

    def touches(self, answer: Answer) -> bool:
        """Whether a request was under way in it."""
        return answer.began < self.ended and self.began < answer.ended


def reloads(setup: Setup, scale: Scale, _: Sequence[str]) -> Claims:
    """Versions are swapped repeatedly under full load; the cost of a promotion is not counted."""
    enough = setup.folder / "enough"
    with running(OURS, setup, watching=False) as server:
        sent = setup.sender.submit(closed, server.port, server.requests[SMALL], USUAL.clients, until=enough)
        try:
            spans = [_swap_later(number, setup, server) for number in _alternating(scale.swaps)]
        finally:
            enough.touch()
        answers = sent.result()
    promote(setup, VERSIONS[0])
    promotions, swaps = zip(*spans, strict=True)
    during = [answer for answer in answers if any(swap.touches(answer) for swap in swaps)]
    usual = [answer for answer in answers if not any(span.touches(answer) for span in (*swaps, *promotions))]
    rows = [
        [name, len(some), *(f"{milliseconds(some, percentile):,.1f}" for percentile in (50, 99, 100))]
        for name, some in (("usual", usual), ("during a swap", during))
    ]
    echo(f"\n{len(swaps)} swaps under {USUAL.clients} clients, load {load()}\n")
    echo(table(["", "requests", "median, ms", "p99, ms", "longest, ms"], rows))
    failed = sum(answer.status != 200 for answer in answers)
    conditions = _conditions(f"{USUAL.clients} clients, {len(answers):,} requests, {len(swaps)} swaps")
    longer = milliseconds(during, 99) / milliseconds(usual, 99)
    first, *again = (swap.ended - swap.began for swap in swaps)  # the first is of a version that has to be proved
    echo(f"\nseconds until it served: {first:.1f} of the new version, then {', '.join(f'{one:.2f}' for one in again)}")
    return {
        "promotion of a new version under full load: seconds to service": Claim(first, PROVED, "lower", conditions),
        "return of a former version under full load: longest, seconds": Claim(max(again), BACK, "lower", conditions),
        "reload under full load: failed requests": Claim(failed, 0, "lower", conditions),
        "reload under full load: p99 during it over usual": Claim(longer, SWAP, "lower", conditions),
    }


def _swap_later(number: int, setup: Setup, server: RunningServer) -> tuple[Span, Span]:
    time.sleep(CALM)
    return swap_to(number, setup, server)


def _alternating(count: int) -> Iterator[int]:
    """So many versions, each another than the one before; the first version serves already."""
    return itertools.islice(itertools.cycle(reversed(VERSIONS)), count)


def swap_to(number: int, setup: Setup, server: RunningServer) -> tuple[Span, Span]:
    """Promote a version, then have the service take it; when each was."""
    began = time.monotonic()
    promote(setup, number)
    promoted = time.monotonic()
    reload(server, number)
    return Span(began, promoted), Span(promoted, time.monotonic())


# --- memory and start ---------------------------------------------------------------------------


def memory(setup: Setup, scale: Scale, _: Sequence[str]) -> Claims:
    """Memory of the service after few requests and reloads, and after many more."""
    sizes = []
    versions = _alternating(scale.few[1] + scale.many[1])
    with running(OURS, setup, watching=False) as server:
        for requests, times in (scale.few, scale.many):
            for _round in range(times):
                swap_to(next(versions), setup, server)
                setup.send(closed, server.port, server.requests[SMALL], USUAL.clients, count=requests // times)
            sizes.append(held(server.process))
    promote(setup, VERSIONS[0])
    few, many = ("{:,} requests and {} reloads".format(*amount) for amount in (scale.few, scale.many))
    megabytes = [f"{size / 2**20:,.0f} MiB" for size in sizes]
    echo(f"\nmemory: {megabytes[0]} after {few}, {megabytes[1]} after {many} more; load {load()}")
    conditions = f"unshared memory, {few}, then {many} more"
    return {"memory after many requests and reloads over few": Claim(sizes[1] / sizes[0], GROWTH, "lower", conditions)}


def held(process: psutil.Process) -> int:
    """Bytes of memory that a process and those it started have for themselves."""
    return sum(one.memory_full_info().uss for one in (process, *process.children(recursive=True)))


def starts(setup: Setup, scale: Scale, _: Sequence[str]) -> Claims:
    """Time until the service is ready; the first start may have a model to convert."""
    seconds = []
    for _round in range(1 + scale.starts):
        with running(OURS, setup) as server:
            seconds.append(server.seconds)
    echo(f"\nready after {', '.join(f'{one:.1f}' for one in seconds)} s; the first does not count; load {load()}")
    conditions = f"median of {scale.starts} starts, the model on disk"
    return {"seconds from start to ready": Claim(float(np.median(seconds[1:])), START, "lower", conditions)}


PARTS: dict[str, Callable[[Setup, Scale, Sequence[str]], Claims]] = {
    "throughput": throughput,
    "open": open_loop,
    "reload": reloads,
    "memory": memory,
    "start": starts,
}


if __name__ == "__main__":
    run_script(main)
