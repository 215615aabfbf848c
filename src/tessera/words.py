"""The words of an image's name, as a prior is told them. No torch.

Names are split as CLDR writes them (Unicode Technical Standard 51, annex on short names). Before the colon stand words, each of
which counts alone; after it attributes, separated by commas, each of which is one word however many it is written with:

    woman firefighter: dark skin tone   ->  woman, firefighter, dark-skin-tone
    person: light skin tone, red hair   ->  person, light-skin-tone, red-hair
    flag: Côte d’Ivoire                 ->  flag, côte-d'ivoire

So `medium-dark skin tone` has no word in common with `dark skin tone`, and a new pair of a person and a tone is a new pair of
known words.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tessera.core import models
from tessera.core.conditioning import WORDS, Condition, Conditioning
from tessera.core.errors import InputError, listed

AROUND = '“”"()[]!?.,;'  # signs at the ends of a word that are none of it
SUGGESTED = 3  # nearest words in an error


def split(name: str) -> list[str]:
    """The words of a name, in lower case, in their order; a word that comes twice stands there twice."""
    plain = unicodedata.normalize("NFKC", name).lower().replace("’", "'").replace("_", " ")
    before, _, after = plain.partition(":")
    attributes = ["-".join(_cleaned(attribute)) for attribute in after.split(",")]
    return [*_cleaned(before), *(attribute for attribute in attributes if attribute)]


def _cleaned(text: str) -> list[str]:
    return [word for part in re.split(r"[\s,]+", text) if (word := part.strip(AROUND))]


class Vocabulary(NamedTuple):
    """The words that a prior knows, those that are frequent enough in training, and how many of a name it takes."""

    words: tuple[str, ...]  # the frequent ones first, equal ones by the alphabet: the order of images does not matter
    most: int

    @classmethod
    def of(cls, names: Iterable[str], least_count: int, most: int) -> Vocabulary:
        """Of the names of training images: the words that at least `least_count` of them have.

        Raises:
            InputError: no word is so frequent.
        """
        counts = Counter(word for name in names for word in set(split(name)))
        words = sorted(
            (word for word, count in counts.items() if count >= least_count), key=lambda word: (-counts[word], word)
        )
        if not words:
            raise InputError(
                f"prior.words.least_count: no word stands in {least_count} names of training images; the most frequent stands in "
                f"{max(counts.values(), default=0)}. Lower it, or set prior.conditions.words to none"
            )
        return cls(tuple(words), most)

    @classmethod
    def of_conditioning(cls, conditioning: Conditioning) -> Vocabulary:
        """Of a prior, from `prior.conditioning`.

        Raises:
            InputError: the prior knows no words.
        """
        told = conditioning[WORDS]
        return cls(told.names, told.columns)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """From the folder of a prior, or its recipe.json, which holds the words.

        Raises:
            InputError: there is no prior, or it knows no words.
        """
        path = Path(path)
        return cls.of_conditioning(models.conditioning_of(path if path.is_dir() else path.parent))

    def condition(self, dropout: float) -> Condition:
        return Condition(WORDS, self.words, self.most, dropout)

    def ids(self, names: Iterable[str]) -> Int[np.ndarray, "n m"]:
        """The known words of each name, the first `most` of them, filled up with `len(words)`. Words that are not known are left
        out: a name of none but such words is as if nothing were said."""
        index = {word: i for i, word in enumerate(self.words)}
        rows = []
        for name in names:
            known = [index[word] for word in split(name) if word in index][: self.most]
            rows.append(known + [len(self.words)] * (self.most - len(known)))
        return np.array(rows, np.int64).reshape(len(rows), self.most)

    def asked(self, text: str) -> Int[np.ndarray, " m"]:
        """The words of a wish, where each must be known.

        Raises:
            InputError: there are none, too many, or a word is not known. The message names the nearest known ones.
        """
        words = split(text)
        if unknown := [word for word in words if word not in set(self.words)]:
            raise InputError(f"words {text!r}: {'; '.join(map(self._nearest, unknown))}")
        if not words or len(words) > self.most:
            raise InputError(f"words {text!r}: must be from 1 to {self.most} words, got {len(words)}")
        return self.ids([text])[0]

    def _nearest(self, word: str) -> str:
        """Words with it inside come first: `dark` is meant by none but `dark-skin-tone`."""
        inside = [known for known in self.words if word in known.split("-")]
        near = [*inside, *difflib.get_close_matches(word, self.words, SUGGESTED, 0.6)]
        shown = list(dict.fromkeys(near))[:SUGGESTED] or self.words[:SUGGESTED]
        return f"no word {word!r} is known; {'the nearest are' if near else 'among the known are'} {listed(map(repr, shown))}"

    def text(self, ids: Sequence[int]) -> str:
        """The words of a row of `ids`."""
        return " ".join(self.words[i] for i in ids if i < len(self.words))
