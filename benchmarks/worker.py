"""What the worker makes of an engine: the whole worker beside vLLM alone, with real vLLM on a CPU.

    python benchmarks/worker.py                    everything, some fifteen minutes on two cores
    python benchmarks/worker.py --device simulated one of the two devices
    python benchmarks/worker.py --only one-stage   some of the comparisons
    python benchmarks/worker.py --pairs 9          more of each
    python benchmarks/worker.py --only sharing     ``benchmarks/sharing.py``, which has more to say

Needs vLLM. In one process there is one engine (the tiny model of the tests), and both sides of a
comparison take turns at it, caches cleared between them, so that whatever else the machine does
meets both; what is printed are ratios of their medians. Each answer has 8 to 128 tokens, drawn by
the hash of image and stage, so that both sides do the very same work.

- worker: the parts of ``caption-flow worker``, reading JPEG files, connected over a socket to a
  real ``caption-flow orchestrator``, which commits every row to disk.
- bare: `AsyncLLM` and images that are decoded and sized before the clock starts.
- blocking: batches of 8, loaded when the one before is done; a stage begins when the batch has left
  the one before.

Rates are those of the middle of a run, from a fifth to three quarters of its answers, with the
engine full; of batches, those of the whole. ``simulated`` makes a forward pass take as long as
`simulated_device` says, with the processor free meanwhile; ``cpu`` is the model's own arithmetic on
all cores, beside which everything else competes for them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import simulated_device
import structlog
import uvloop
from PIL import Image

from caption_flow.recipe.video import Video
from caption_flow.worker.engines.base import Completion, Engine, PreparedImage, Request
from caption_flow.worker.engines.synthetic import SyntheticEngine
from caption_flow.worker.engines.vllm import VllmEngine
from caption_flow.worker.images.load import prepare
from caption_flow.worker.service import WorkerSettings, run_worker

ROOT: Final = Path(__file__).parent.parent
MODEL: Final = str(ROOT / "tests" / "tiny_vlm" / "model")
TOKEN: Final = "benchmark"  # noqa: S105 - guards nothing
DEVICES: Final = ("simulated", "cpu")
MAX_NUM_SEQS: Final = 64
BATCH: Final = 8
IMAGE_SIZE: Final = (640, 480)
MIDDLE: Final = (0.2, 0.75)
STAGES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    # The prompts of each stage. In each but the first, {caption} is the answer of the one before.
    "one-stage": (("Describe this image in detail.",),),
    "two-stages": (
        ("Describe this image in detail.",),
        ("Please condense this elaborate caption to only the important details: {caption}",),
    ),
}

PARTS: Final = ("starvation", *STAGES, "sharing")


def drawn_tokens(image_hash: str, prompt: str) -> int:
    """Return how many tokens the answer has: 8 to 128, the same for the same image and stage."""
    digest = hashlib.blake2b(f"{image_hash}{prompt[:20]}".encode(), digest_size=4).digest()
    return 8 + int.from_bytes(digest, "big") % 121


@dataclass(frozen=True)
class Pace:
    """Answers per second, and what one costs this process, in milliseconds of processor time.

    The second hardly depends on what else the machine does.
    """

    rate: float
    cpu_ms: float


@dataclass
class Clock:
    """When each answer came, and how much processor time this process had taken by then."""

    answers: list[tuple[float, float]] = field(default_factory=list)

    def tick(self) -> None:
        """Note one answer."""
        self.answers.append((time.perf_counter(), time.process_time()))

    def pace(self) -> Pace:
        """Return the pace in the middle of the run."""
        first, last = (int(len(self.answers) * share) for share in MIDDLE)
        return self.pace_between(self.answers[first], self.answers[last], last - first)

    @staticmethod
    def pace_between(begin: tuple[float, float], end: tuple[float, float], answers: int) -> Pace:
        """Return the pace between two moments."""
        return Pace(answers / (end[0] - begin[0]), 1000 * (end[1] - begin[1]) / answers)


class Timed:
    """An `Engine` whose answers are timed; only its maker stops it."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    @property
    def model(self) -> str:
        """The engine's own."""
        return self._engine.model

    @property
    def requests_in_flight(self) -> int:
        """The engine's own."""
        return self._engine.requests_in_flight

    @property
    def beats(self) -> int:
        """The engine's own."""
        return self._engine.beats

    def expect(self, samplings: Sequence[Mapping[str, Any]], video: Video | None = None) -> None:
        """Tell the engine, which looks at it when it starts."""
        self._engine.expect(samplings, video)

    async def start(self) -> None:
        """Start the engine, unless it is up already."""
        await self._engine.start()

    async def stop(self) -> None:
        """Nothing: it is needed for the next run."""

    async def generate(self, request: Request) -> Completion:
        """Pass the request on, and note when its answer comes."""
        answer = await self._engine.generate(request)
        self._clock.tick()
        return answer


class DrawnLengths(Timed):
    """A `Timed` engine that draws how long each answer is."""

    async def generate(self, request: Request) -> Completion:
        """Answer in the drawn length."""
        tokens = drawn_tokens(request.subject.content_hash, request.prompt)
        return await self.answer(request, tokens)

    async def answer(self, request: Request, tokens: int) -> Completion:
        """Answer with so many tokens."""
        sampling = {"temperature": 0.0, "ignore_eos": True, "max_tokens": tokens}
        return await super().generate(replace(request, sampling=sampling))


# --------------------------------------------------------------------------- the whole worker


@dataclass
class Setting:
    """What all runs share: files, the engine, and a folder for what they write."""

    folder: Path
    files: Sequence[Path]
    engine: VllmEngine
    said: list[str]

    @property
    def llm(self) -> Any:
        """VLLM's own engine within ours."""
        running = self.engine._running  # noqa: SLF001 - the same engine on both sides
        assert running is not None
        return running._engine  # noqa: SLF001

    async def forget(self) -> None:
        """Clear every cache, as a new run finds them."""
        await self.llm.reset_mm_cache()
        await self.llm.reset_prefix_cache()
        await self.llm.reset_encoder_cache()


async def whole_worker(setting: Setting, stages: Sequence[Sequence[str]], items: int) -> Pace:
    """Return the pace of a worker that captions the first ``items`` files."""
    clock = Clock()
    wrapped = DrawnLengths(setting.engine, clock)
    images = chosen(setting, items)
    with tempfile.TemporaryDirectory(dir=setting.folder) as scratch:
        await work(Path(scratch), images, stages, wrapped)
    return clock.pace()


async def work(
    scratch: Path, images: Path, stages: Sequence[Sequence[str]], engine: Engine
) -> None:
    """Have one worker caption a folder for an orchestrator in a process of its own."""
    config, port = scratch / "orchestrator.json", free_port()
    config.write_text(json.dumps({"orchestrator": configuration(scratch, images, stages, port)}))
    with (scratch / "log").open("wb") as log:
        orchestrator = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "caption_flow.cli", "orchestrator", "--config", str(config)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        settings = WorkerSettings(
            f"ws://127.0.0.1:{port}", TOKEN, "benchmark", when_finished="shutdown"
        )
        code = await run_worker(settings, build=lambda *_: engine)
        assert code == 0, (scratch / "log").read_text()
    finally:
        orchestrator.send_signal(signal.SIGTERM)
        await orchestrator.wait()


def configuration(
    scratch: Path, images: Path, stages: Sequence[Sequence[str]], port: int
) -> dict[str, Any]:
    """Return an orchestrator's configuration with these stages, each after the one before."""
    listed: list[dict[str, Any]] = []
    for number, prompts in enumerate(stages):
        needs = {"requires": [f"stage{number - 1}"]} if number else {}
        produced = {"output_field": "caption" if number == 0 else f"caption{number}"}
        listed.append({"name": f"stage{number}", "prompts": list(prompts), **needs, **produced})
    return {
        "host": "127.0.0.1",
        "port": port,
        "dataset": {"type": "local_filesystem", "dataset_path": str(images)},
        "vllm": {"model": MODEL, "stages": listed},
        "storage": {"data_dir": str(scratch / "run")},
        "auth": {"worker_tokens": [{"token": TOKEN, "name": "benchmark"}]},
    }


def chosen(setting: Setting, items: int) -> Path:
    """Return a folder with the first ``items`` files, as links."""
    folder = setting.folder / f"first-{items}"
    if not folder.exists():
        folder.mkdir()
        for file in setting.files[:items]:
            (folder / file.name).hardlink_to(file)
    return folder


# --------------------------------------------------------------------------- vLLM alone


@cache
def sampling(tokens: int) -> Any:
    """Return vLLM's own parameters for an answer of so many tokens."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415

    return SamplingParams(
        temperature=0.0,
        ignore_eos=True,
        max_tokens=tokens,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


@cache
def chat_params() -> Any:
    """Return how vLLM renders a chat."""
    from vllm.renderers import ChatParams  # noqa: PLC0415

    return ChatParams(chat_template_kwargs={"add_generation_prompt": True})


async def ask(llm: Any, image: PreparedImage, prompt: str) -> str:
    """Ask vLLM about an image, with nothing of ours between."""
    output = await answer_to(llm, image, prompt)
    text: str = output.outputs[0].text
    return text.strip()


async def answer_to(
    llm: Any, image: PreparedImage, prompt: str, *, text_first: bool = False
) -> Any:
    """Return vLLM's own output for a prompt about an image."""
    content = [
        {"type": "image_pil", "image_pil": image.pixels, "uuid": image.content_hash},
        {"type": "text", "text": prompt},
    ]
    if text_first:
        content.reverse()
    _, (rendered,) = await llm.renderer.render_chat_async(
        [[{"role": "user", "content": content}]], chat_params()
    )
    output, name = None, f"bare-{time.monotonic_ns()}-{random.getrandbits(32)}"
    params = sampling(drawn_tokens(image.content_hash, prompt))
    async for part in llm.generate(rendered, params, name):
        output = part
    return output


async def bare(setting: Setting, stages: Sequence[Sequence[str]], items: int) -> Pace:
    """Return the pace of vLLM itself: images in memory, an item's stages chained by hand."""
    images = [prepare(file.read_bytes()).image for file in setting.files[:items]]
    clock, slots = Clock(), asyncio.Semaphore(setting.engine.requests_in_flight)

    async def one(image: PreparedImage) -> None:
        async with slots:
            caption = ""
            for (prompt,) in stages:
                caption = await ask(setting.llm, image, prompt.replace("{caption}", caption))
                clock.tick()

    await asyncio.gather(*(one(image) for image in images))
    return clock.pace()


async def blocking(setting: Setting, stages: Sequence[Sequence[str]], items: int) -> Pace:
    """Return the pace of batches that wait: for their files, for the slowest, for the stage."""
    clock = Clock()
    clock.tick()
    for start in range(0, items, BATCH):
        files = setting.files[start : start + BATCH]
        images = [await asyncio.to_thread(load, file) for file in files]
        captions = [""] * len(images)
        for (prompt,) in stages:
            asking = [
                ask(setting.llm, image, prompt.replace("{caption}", caption))
                for image, caption in zip(images, captions, strict=True)
            ]
            captions = list(await asyncio.gather(*asking))
    clock.tick()
    return clock.pace_between(clock.answers[0], clock.answers[1], items * len(stages))


def load(file: Path) -> PreparedImage:
    """Read and decode a file."""
    return prepare(file.read_bytes()).image


# --------------------------------------------------------------------------- comparisons

Side = Callable[[Setting, Sequence[Sequence[str]], int], Awaitable[Pace]]


async def compare(
    setting: Setting, what: str, others: Mapping[str, tuple[Side, int]], *, items: int, pairs: int
) -> None:
    """Print how the worker does beside the others, who take turns with it."""
    sides = {"worker": (whole_worker, items), **others}
    paces: dict[str, list[Pace]] = {name: [] for name in sides}
    for turn in range(pairs + 1):
        order = list(sides) if turn % 2 else list(reversed(sides))
        for name in order:
            side, amount = sides[name]
            await setting.forget()
            pace = await side(setting, STAGES[what], amount)
            if turn:  # the first one warms up files, caches and compiled code
                paces[name].append(pace)
    for name in others:
        print(f"  {what}: {compared(paces['worker'], name, paces[name])}", flush=True)


def compared(ours: Sequence[Pace], name: str, theirs: Sequence[Pace]) -> str:
    """Return the line that compares the worker with another side."""
    mine, other = (statistics.median(pace.rate for pace in one) for one in (ours, theirs))
    cpu, other_cpu = (statistics.median(pace.cpu_ms for pace in one) for one in (ours, theirs))
    ratios = sorted(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))
    return (
        f"worker {mine:.1f} answers/s ({cpu:.1f} ms of processor time each), {name} {other:.1f} "
        f"({other_cpu:.1f} ms): ratio of medians {mine / other:.3f} "
        f"({len(ratios)} pairs, each {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


async def starvation(folder: Path, said: Sequence[str], *, seconds: float = 40.0) -> None:
    """Print what a worker says of its starvation beside an engine that does 200 items a second."""
    items, width = int(seconds * 200), 64
    files = make_images(folder / "few images", 256)
    many = folder / "many images"
    many.mkdir()
    for number in range(items):
        (many / f"{number:06d}.jpg").hardlink_to(files[number % len(files)])
    engine = SyntheticEngine(
        MODEL,
        {"latency_ms": 1000 * width / 200, "latency_jitter": 0.5, "requests_in_flight": width},
    )
    clock = Clock()
    (folder / "scratch").mkdir()
    await work(folder / "scratch", many, STAGES["one-stage"], Timed(engine, clock))
    print(f"starvation: synthetic engine, {clock.pace().rate:.0f} items/s: {said[-1]}", flush=True)


async def measure(device: str, only: Collection[str], *, pairs: int, items: int) -> None:
    """Load the engine and print every comparison on one device."""
    said = listen()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulated_device.install_in(folder / "plugins")
        engine = VllmEngine(MODEL, engine_options())
        await engine.start()
        try:
            setting = Setting(folder, make_images(folder / "images", items), engine, said)
            print(f"{device}:", flush=True)
            await run_comparisons(setting, only, pairs=pairs, items=items)
        finally:
            await engine.stop()


async def run_comparisons(
    setting: Setting, only: Collection[str], *, pairs: int, items: int
) -> None:
    """Print every comparison, or the one that is asked for."""
    if "one-stage" in only:
        others: dict[str, tuple[Side, int]] = {"bare": (bare, items), "blocking": (blocking, 32)}
        await compare(setting, "one-stage", others, items=items, pairs=pairs)
    if "two-stages" in only:
        others = {"hand-chained": (bare, items), "blocking": (blocking, 24)}
        await compare(setting, "two-stages", others, items=items, pairs=pairs)
    for line in setting.said[-1:]:
        print(f"  the worker's own word on its last run: {line}", flush=True)


def engine_options() -> dict[str, Any]:
    # Compiling would take longer than all that this model is asked.
    return {"max_model_len": 1024, "max_num_seqs": MAX_NUM_SEQS, "enforce_eager": True}


async def measure_starvation() -> None:
    """Measure what needs no model."""
    said = listen()
    with tempfile.TemporaryDirectory() as name:
        await starvation(Path(name), said)


def listen() -> list[str]:
    """Keep the worker's log to ourselves; return where its lines about starvation will be."""
    said: list[str] = []
    structlog.configure(processors=[lambda *event: _keep(said, event[2])])
    return said


def _keep(said: list[str], event: Mapping[str, Any]) -> Any:
    if "starved" in str(event.get("event")):
        said.append(str(event["event"]))
    if event.get("level") == "error" or "exc_info" in event:
        print(event, file=sys.stderr)
    raise structlog.DropEvent


def make_images(folder: Path, count: int) -> list[Path]:
    """Write pictures that are like photographs in size and in what decoding them costs."""
    folder.mkdir()
    chance = random.Random(0)
    files = []
    for number in range(count):
        coarse = Image.frombytes("RGB", (40, 30), chance.randbytes(3600))
        picture = coarse.resize(IMAGE_SIZE, Image.Resampling.BICUBIC)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        files.append(folder / f"{number:04d}.jpg")
        files[-1].write_bytes(data.getvalue())
    return files


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Measure each device in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--items", type=int, default=384, help="images in each run, 128 at least")
    chosen = parser.parse_args()
    if chosen.device is None:
        if "starvation" in chosen.only:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(measure_starvation())
        for device in DEVICES if set(STAGES) & set(chosen.only) else ():
            subprocess.run([sys.executable, *sys.argv, "--device", device], check=True)
        if "sharing" in chosen.only:
            counting = Path(__file__).with_name("sharing.py")
            subprocess.run([sys.executable, str(counting)], check=True)
        return
    if chosen.device == "simulated":
        os.environ[simulated_device.SWITCH] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(chosen.device, chosen.only, pairs=chosen.pairs, items=chosen.items))


if __name__ == "__main__":
    main()
