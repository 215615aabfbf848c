"""The values of params.yaml that the run used."""

from __future__ import annotations

from html import escape
from typing import Any

from stages.report import elements
from tessera.core import trees


def body(chosen: dict[str, Any]) -> str:
    """Chosen values by section, folded. Thresholds are left to the verdicts. A loss of weight 0 is not built, only named."""
    cards = [
        "<p>Values of params.yaml. If the data set is too small for some, the model's card names the values used instead.</p>"
    ]
    for section in [name for name in chosen if name not in ("runtime", "gate", "criteria")]:
        values = chosen[section]
        if section == "losses":
            off = [name for name, term in values.items() if not term["weight"]]
            values = {name: term for name, term in values.items() if term["weight"]}
            values |= {"of weight 0": ", ".join(off)} if off else {}
        flat = dict(trees.leaves(values)) if isinstance(values, dict) else {section: values}
        shown = values["name"] if is_choice(values) else values if not isinstance(values, dict) else ""
        rows = [[f"<code>{escape(name)}</code>", escape(elements.text(value))] for name, value in flat.items()]
        summary = f"<summary>{escape(section)} <b>{escape(str(shown))}</b></summary>"
        cards.append(f"<details>{summary}{elements.table([], rows)}</details>")
    return f'<div class="cards">{"".join(cards)}</div>\n'


def is_choice(values: Any) -> bool:
    """Whether a section chooses one of several plug-ins."""
    return isinstance(values, dict) and "name" in values
