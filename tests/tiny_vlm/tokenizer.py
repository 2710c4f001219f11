"""The tiny model's tokenizer, byte-level BPE learnt from its few sentences, and its chat form."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny_vlm import scenes
from tests.tiny_vlm.lessons import picture_lesson

PADDING = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
PICTURE_START = "<|vision_start|>"
PICTURE_END = "<|vision_end|>"
PICTURE_TOKEN = "<|image_pad|>"
VIDEO_TOKEN = "<|video_pad|>"
SPECIAL_TOKENS = (
    PADDING,
    START_OF_TURN,
    END_OF_TURN,
    PICTURE_START,
    PICTURE_END,
    "<|vision_pad|>",
    PICTURE_TOKEN,
    VIDEO_TOKEN,
)

# One turn after another; pictures stand where the message puts them.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] in ('image', 'image_url', 'image_pil') %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part['type'] in ('video', 'video_url') %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# More than the sentences need: training stops early, when every word has become one token.
_MAX_VOCABULARY = 704
_CORPUS_LESSONS = 6000


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Token ids the model's configuration and the batches need to know."""

    padding: int
    end_of_turn: int
    picture_start: int
    picture_end: int
    picture: int
    video: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> SpecialIds:
        names = (PADDING, END_OF_TURN, PICTURE_START, PICTURE_END, PICTURE_TOKEN, VIDEO_TOKEN)
        ids: Any = tokenizer.convert_tokens_to_ids(list(names))
        return cls(*ids)

    def picture_tokens(self, cells: int) -> list[int]:
        """How a picture of `cells` visual tokens stands in a conversation."""
        return [self.picture_start, *[self.picture] * cells, self.picture_end]


def train_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """A tokenizer for which each word of the lessons is one token, and any byte is some token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(rng), trainer)
    make: Any = PreTrainedTokenizerFast  # its constructor carries no types
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=bpe,
        pad_token=PADDING,
        eos_token=END_OF_TURN,
        additional_special_tokens=[
            token for token in SPECIAL_TOKENS if token not in (PADDING, END_OF_TURN)
        ],
        chat_template=CHAT_TEMPLATE,
    )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer and its chat template so that transformers 4 and 5 both read them."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 writes a class name of its own, which version 4 does not know. Qwen's own
    # encodes the same, and version 4's processor for Qwen2.5-VL takes no other.
    config["tokenizer_class"] = "Qwen2Tokenizer"
    config.pop("backend", None)
    # The name version 5 has for them is in version 4 that of a mapping; both read this one.
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def conversation_frame(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """What the chat template puts before and after a user's message."""
    marker = "?"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
    )
    before, after = str(text).split(marker)
    return before, after


def _corpus(rng: random.Random) -> Iterator[str]:
    for _ in range(_CORPUS_LESSONS):
        lesson = picture_lesson(rng, scenes.random_scene(rng), scenes.random_scene(rng))
        yield from (lesson.prompt, lesson.answer, "user\nassistant\nsystem\n")
