"""What an emoji is called, which family and which class it has: the union of the tables that lie beside the drawings.

Drawings are named by code points, in several spellings, or by slugs: the words of a name joined by hyphens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from tessera.core.errors import InputError
from tessera.datasets.emoji.packages import Package
from tessera.decoding.emoji import family, spelling

# 1f468-200d-1f4bb, u1f600, U+1F600; and as in Noto's repository: emoji_u1f468_200d_1f4bb
CODE_POINTS = re.compile(r"(?:emoji_)?(?:u\+?)?([0-9a-f]{1,6}(?:[-_][0-9a-f]{1,6})*)", re.IGNORECASE)
TAG = re.compile(r".*-e00[2-7][0-9a-f]")  # the last code point is a tag, as in the flag of Scotland
LAST_TAG = "e007f"  # ends a sequence of tags; @lobehub/fluent-emoji-3d leaves it out
OWN = "extras-"  # groups of OpenMoji that are none of Unicode's
TONES = {  # end of a slug -> skin tone
    "-medium-light": "1f3fc",
    "-medium-dark": "1f3fe",
    "-default": "",
    "-light": "1f3fb",
    "-medium": "1f3fd",
    "-dark": "1f3ff",
}
PEOPLE_FIRST = "elf|fairy|genie|mage|superhero|supervillain|vampire|zombie"  # who are persons anyway
REWORDED = (  # pattern in a slug of fluentui-emoji -> the words of Unicode
    (r"-blonde-hair", "-blond-hair"),
    (r"^(man|woman)-deaf", r"deaf-\1"),
    (r"^person-deaf", "deaf-person"),
    (r"^man-merpeople", "merman"),
    (r"^woman-merpeople", "mermaid"),
    (r"^person-merpeople", "merperson"),
    (rf"^person-({PEOPLE_FIRST})", r"\1"),
    (r"^man-with-bunny-ears", "men-with-bunny-ears"),
    (r"^woman-with-bunny-ears", "women-with-bunny-ears"),
    (r"^person-with-bunny-ears", "people-with-bunny-ears"),
    (r"^man-wrestling", "men-wrestling"),
    (r"^woman-wrestling", "women-wrestling"),
    (r"^person-wrestling", "people-wrestling"),
    (r"^blackbird", "black-bird"),
    (r"^knocked-out-face", "face-with-crossed-out-eyes"),
    (r"^phoenix-bird", "phoenix"),
    (r"^red-triangle$", "red-triangle-pointed-up"),
    (r"^stuffedbread(-flat)?$", "stuffed-flatbread"),
)


class Meaning(NamedTuple):
    """Name, family and class of an emoji."""

    name: str
    family: str
    label: str


class Meanings:
    """Of each emoji the first table that has it decides. Code points are in the common spelling of `decoding.emoji.spelling`."""

    def __init__(self, label: Literal["group", "subgroup"]) -> None:
        self.label = label
        self._known: dict[str, Meaning] = {}
        self._relatives: dict[str, Meaning] = {}  # family -> its first row
        self._slugs: dict[str, str] = {}  # slug of a name -> code points
        self._names: set[str] = set()

    def add(self, codepoints: str, label: str, names: Iterable[str]) -> None:
        """One row of a table. Of `names` the first is what the emoji is called, and all are ways to name a file.

        Args:
            codepoints: as the table spells them: with the variation selectors that `decoding.emoji.family` knows of.
        """
        spelt, names = spelling(codepoints), [name for name in names if name]
        for name in names:
            self._slugs.setdefault(slug(name), spelt)
        if spelt in self._known:
            return
        name = names[0] if names and names[0] not in self._names else spelt
        self._names.add(name)
        self._known[spelt] = meaning = Meaning(name, family(codepoints), label)
        self._relatives.setdefault(meaning.family, meaning)

    def add_package(self, package: Package) -> None:
        """The table of a package, if it has one. Names of classes are those of Unicode; where a table has them as slugs, those of
        the tables before it are meant.

        Raises:
            InputError: the table is missing or has another form.
        """
        if not package.layout.table:
            return
        try:
            for codepoints, label, names in self._rows(package.table()):
                self.add(codepoints, label, names)
        except (KeyError, TypeError, AttributeError) as error:
            remedy = f"Take a version that has the form of that of {package.name} in docs/data.md"
            raise InputError(
                f"{package.title}, {package.layout.table} has another form ({error!r}). {remedy}"
            ) from None

    def _rows(self, table: list[dict[str, Any]]) -> Iterator[tuple[str, str, list[str]]]:
        classes = {slug(name): name for name in self.label_names}
        key = {"group": "category", "subgroup": "subcategory"}[self.label]
        own_key = {"group": "group", "subgroup": "subgroups"}[self.label]
        for row in table:
            if "unified" in row:  # emoji-datasource
                yield row["unified"].lower(), row[key], [(row["name"] or "").lower(), *row["short_names"]]
            elif not row["group"].startswith(OWN) and slug(row[own_key]) in classes:  # OpenMoji
                yield row["hexcode"].lower(), classes[slug(row[own_key])], [row["annotation"]]

    @property
    def label_names(self) -> list[str]:
        """The classes, in the order of the rows."""
        return list(dict.fromkeys(meaning.label for meaning in self._known.values()))

    def of(self, codepoints: str) -> Meaning | None:
        """What an emoji means; if no table has it, what its family means, under its code points as name."""
        if found := self._known.get(codepoints):
            return found
        relative = self._relatives.get(family(codepoints))
        return relative and relative._replace(name=codepoints)

    def codepoints(self, stem: str, slugs: bool) -> str | None:
        """The code points that a file is named by; None if its name, without ending, is no such name."""
        if slugs:
            return self._of_slug(stem)
        match = CODE_POINTS.fullmatch(stem)
        if match is None:
            return None
        spelt = spelling(match[1])
        return f"{spelt}-{LAST_TAG}" if TAG.fullmatch(spelt) and not spelt.endswith(LAST_TAG) else spelt

    def _of_slug(self, stem: str) -> str | None:
        reworded = (re.sub(old, new, stem) for old, new in REWORDED)
        for words in [*(words for words in reworded if words != stem), stem]:
            if found := self._slugs.get(words):
                return found
            for end, tone in TONES.items():
                if words.endswith(end) and (base := self._slugs.get(words.removesuffix(end))):
                    first, *rest = base.split("-")
                    return "-".join([first, *([tone] if tone else []), *rest])
        return None


def slug(name: str) -> str:
    """`flag: Côte d’Ivoire` -> `flag-cote-divoire`, `keycap: #` -> `keycap-hashtag`, `waving_hand` -> `waving-hand`."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("#", " hashtag").replace("*", " asterisk"))
    letters = "".join(letter for letter in plain if not unicodedata.combining(letter) and letter not in "'’")
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")
