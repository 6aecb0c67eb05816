"""What the text encoder does not see of a prompt: its end beyond the context, and words that it never had."""

import unicodedata
from collections.abc import Iterable

import numpy as np

from mav.data.shards import read_array
from mav.models.clip import ClipModel
from mav.storage import Artifact

SHARDS_READ = 1_000  # of the captions that a CLIP of the recipe's own was trained on


def end_not_seen(clip: ClipModel, prompt: str) -> str:
    """Returns the end of a prompt that is beyond the encoder's context; '' when it sees all."""
    return clip.decode(clip.encode(prompt)[clip.context - 2 :])  # without the marks of start and end


def words_not_known(clip: ClipModel, prompt: str, captions: Artifact) -> list[str]:
    """Returns the words of a prompt that are in no caption; `captions` is what `image-embed` made of them.

    Without a whole look at them, as of a large data set, nothing is said: [].
    """
    names = captions.files(".tokens.npy")
    if len(names) > SHARDS_READ:
        return []
    known: set[int] = set()
    for name in names:
        known |= set(np.unique(read_array(captions.folder, name)).tolist())
    words = [_bare(word) for word in prompt.split()]
    return [word for word in dict.fromkeys(words) if word and not known.issuperset(clip.encode(word))]


def _bare(word: str) -> str:
    """Returns a word without the punctuation around it, which captions need not have."""
    return word.strip("".join(letter for letter in word if unicodedata.category(letter).startswith("P")))


def prompt_notes(clip: ClipModel, prompts: Iterable[str], captions: Artifact | None) -> list[str]:
    """Returns a sentence on each prompt's unseen end and unknown words."""
    sentences = []
    for prompt in dict.fromkeys(prompts):
        if end := end_not_seen(clip, prompt):
            limit = f"The prompt is longer than the text encoder's context of {clip.context} tokens"
            sentences.append(f"{limit}; its end is not seen: {end!r}.")
        if captions and (words := words_not_known(clip, prompt, captions)):
            sentences.append(f"The text encoder never had these words in its training: {', '.join(words)}.")
    return sentences
