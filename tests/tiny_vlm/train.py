"""Train the tiny vision-language model from nothing and write it as vLLM loads it.

    python -m tests.tiny_vlm.train --out tests/tiny_vlm/model

Runs on a CPU, in two phases: first the vision tower alone learns to see, through the probes; then
everything learns together. Every tenth of the later batches is text alone.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor

from tests.tiny_vlm import network, scenes
from tests.tiny_vlm.batches import Batch, Teacher, patches_of
from tests.tiny_vlm.tokenizer import SpecialIds, save_tokenizer, train_tokenizer

PEAK_LEARNING_RATE = 2e-3
LAST_LEARNING_RATE_SHARE = 0.02
VISION_RAMP_STEPS = 50
RAMP_STEPS = 100
PROBE_WEIGHT = 0.5
REPORT_EVERY_STEPS = 100


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line can choose."""

    out: Path
    steps: int
    vision_steps: int
    batch_size: int
    drawings_per_size: int
    seed: int
    threads: int


def parse_options() -> Options:
    parser = argparse.ArgumentParser(
        description="Train the tiny vision-language model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write the model to")
    add("--steps", type=int, default=4000, help="steps of the whole model")
    add("--vision-steps", type=int, default=800, help="steps of the vision tower alone, before")
    add("--batch-size", type=int, default=48, help="conversations per step")
    add("--drawings-per-size", type=int, default=4000, help="distinct geometries per picture size")
    add("--seed", type=int, default=0, help="seed of weights, scenes and order")
    add("--threads", type=int, default=1, help="CPU threads for torch")
    return Options(**vars(parser.parse_args()))


class Losses:
    """Running means of named losses since the last report."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)
        self._started = time.perf_counter()

    def add(self, name: str, loss: torch.Tensor) -> None:
        self._values[name].append(loss.item())

    def report(self, phase: str, step: int) -> None:
        means = (f"{name} {sum(v) / len(v):.4f}" for name, v in sorted(self._values.items()))
        seconds = time.perf_counter() - self._started
        print(f"{phase} {step:5d}  {'  '.join(means)}  {seconds:.0f} s", flush=True)
        self._values.clear()


class Course:
    """The model in training, its probes and its teacher."""

    def __init__(self, options: Options, tokenizer: PreTrainedTokenizerFast) -> None:
        self.ids = SpecialIds.of(tokenizer)
        self.model = network.build_model(len(tokenizer), self.ids)
        network.speed_up_equal_pictures(self.model)
        self.probes = network.Probes()
        self.losses = Losses()
        self.teacher = Teacher(
            tokenizer,
            random.Random(options.seed + 1),
            batch_size=options.batch_size,
            drawings_per_size=options.drawings_per_size,
        )

    def train_vision(self, steps: int) -> None:
        """The vision tower alone, at a constant rate after a ramp."""
        optimizer = _optimizer(self.model.model.visual, self.probes.readers)
        for step in range(steps):
            _set_rate(optimizer, min(1.0, (step + 1) / VISION_RAMP_STEPS))
            loss = self._seeing_loss(self.teacher.picture_batch())
            _descend(optimizer, loss)
            self._report("vision", step)

    def train_all(self, steps: int) -> None:
        """Everything together, at a rate that falls along a cosine after a ramp."""
        optimizer = _optimizer(self.model, self.probes.readers)
        for step in range(steps):
            _set_rate(optimizer, _cosine_share(step, steps))
            _descend(optimizer, self._loss(step, steps))
            self._report("all", step)

    def _loss(self, step: int, steps: int) -> torch.Tensor:
        text_every = 5 if step < steps // 3 else 10
        if step % text_every == text_every - 1:
            return self._reading_loss("text", self.teacher.text_batch(), None)
        batch = self.teacher.picture_batch()
        seen, probe_loss = self._see(batch)
        return self._reading_loss("picture", batch, seen) + PROBE_WEIGHT * probe_loss

    def _seeing_loss(self, batch: Batch) -> torch.Tensor:
        return self._see(batch)[1]

    def _see(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The visual tokens, and the probes' loss on them."""
        if batch.pictures is None:
            raise ValueError("a batch of text alone has nothing to see")
        seen = network.visual_tokens(self.model, batch.pictures)
        loss = self.probes.loss(seen, batch.pictures.truths)
        self.losses.add("probes", loss)
        return seen, loss

    def _reading_loss(self, name: str, batch: Batch, seen: torch.Tensor | None) -> torch.Tensor:
        """Cross-entropy of the answer tokens, each predicted from what stands before it."""
        language = self.model.model.language_model
        embedded = language.embed_tokens(batch.tokens)
        if seen is not None:
            here = (batch.tokens == self.ids.picture).unsqueeze(-1).expand_as(embedded)
            embedded = embedded.masked_scatter(here, seen)
        # Causal, and padded on the right where no label looks: no attention mask is needed.
        hidden = language(
            inputs_embeds=embedded, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        labels = batch.labels[:, 1:]
        answers = labels != -100
        logits = self.model.lm_head(hidden[:, :-1][answers])
        loss = functional.cross_entropy(logits, labels[answers])
        self.losses.add(name, loss)
        return loss

    def _report(self, phase: str, step: int) -> None:
        if (step + 1) % REPORT_EVERY_STEPS == 0:
            self.losses.report(phase, step + 1)

    def save(self, folder: Path) -> None:
        """The weights in bfloat16 and the configuration; the probes stay behind."""
        network.save_model(self.model.to(torch.bfloat16), folder)


def check_layout(course: Course) -> None:
    """Compare our patches and positions with the library's: a mistake would only look like noise.

    Raises `AssertionError` from `torch.testing`, with the difference.
    """
    _check_positions(course)
    _check_patches()


def _check_positions(course: Course) -> None:
    batch = course.teacher.picture_batch()
    if batch.pictures is None:
        raise ValueError("a picture batch came without pictures")
    tokens, grids = batch.tokens[:2], batch.pictures.grids[:2]
    is_picture = (tokens == course.ids.picture).int()
    theirs, _ = course.model.model.get_rope_index(tokens, is_picture, image_grid_thw=grids)
    torch.testing.assert_close(batch.positions[:, :2], theirs)


def _check_patches() -> None:
    picture = scenes.render(scenes.random_scene(random.Random(0)), 140, 84)
    process: Any = Qwen2VLImageProcessor(**network.image_processor_options())
    theirs = process(images=[picture], return_tensors="pt")["pixel_values"]
    ours = patches_of(torch.from_numpy(np.array(picture)[np.newaxis]))
    torch.testing.assert_close(ours, theirs)


def _optimizer(*modules: nn.Module) -> torch.optim.AdamW:
    parameters = chain.from_iterable(module.parameters() for module in modules)
    return torch.optim.AdamW(parameters, PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)


def _set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = PEAK_LEARNING_RATE * share


def _cosine_share(step: int, steps: int) -> float:
    cosine = 0.5 * (1.0 + math.cos(math.pi * step / steps))
    share = LAST_LEARNING_RATE_SHARE + (1.0 - LAST_LEARNING_RATE_SHARE) * cosine
    return share * min(1.0, (step + 1) / RAMP_STEPS)


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(random.Random(options.seed))
    course = Course(options, tokenizer)
    check_layout(course)
    print(f"{course.model.num_parameters()} parameters", flush=True)
    course.train_vision(options.vision_steps)
    course.train_all(options.steps)
    save_tokenizer(tokenizer, options.out)
    network.save_image_processor(options.out)
    course.save(options.out)


if __name__ == "__main__":
    main()
