"""One prompt about one picture or video, asked until the answer is good enough.

A flagged answer is asked for again as often as the stage's quality says, with other sampling; of
all attempts the one with the fewest flags is kept, the earlier of equals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from caption_flow.recipe.stages import Stage
from caption_flow.worker.core.judgement import Judge
from caption_flow.worker.draft import Answer
from caption_flow.worker.engines.base import Request, Subject
from caption_flow.worker.supervision import Rider, SupervisedEngine


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks a stage's prompts about a picture or video; ``names`` gives each request its own.

    ``rendering`` is for the engine: see `Request`.
    """

    engine: SupervisedEngine
    stage: Stage
    subject: Subject
    judge: Judge
    names: Iterator[str]
    rendering: Callable[[], AbstractContextManager[None]]

    async def answer(self, prompt: str, rider: Rider) -> Answer:
        """Return the best answer to a prompt.

        Raises:
            RequestRefused: it cannot be answered.
            EngineDied: the engine died meanwhile; attempts before that are forgotten.
            EngineUnavailable: it is gone for good.

        """
        first, *others = self.stage.samplings()
        retry = self.stage.quality.retry
        attempts = [await self._attempt(prompt, first, rider)]
        while len(attempts) <= retry.attempts and attempts[-1].flags & set(retry.flags):
            attempts.append(await self._attempt(prompt, others[0], rider))
        best = min(attempts, key=lambda answer: len(answer.flags))
        tokens_in = sum(answer.completion.tokens_in for answer in attempts)
        tokens_out = sum(answer.completion.tokens_out for answer in attempts)
        return Answer(best.completion, best.flags, tokens_in, tokens_out)

    async def _attempt(self, prompt: str, sampling: Mapping[str, Any], rider: Rider) -> Answer:
        request = Request(next(self.names), prompt, self.subject, sampling, self.rendering)
        completion = await self.engine.ask(request, rider)
        structure = self.stage.structure
        flags = self.judge.flags(
            completion.text,
            completion.finish_reason,
            stage=self.stage.name,
            image=self.subject.content_hash,
            is_free=structure is None or structure.json_schema is not None,
        )
        return Answer(completion, flags & set(self.stage.quality.flags))
