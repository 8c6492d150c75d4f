"""The glossary: one sentence for each score. It is written into every file that holds the scores."""

import tomllib
from importlib.resources import files

from .plan import EvaluationPlan
from .reliability import PARTS
from .score_registry import scores_of


def score_definitions(plan: EvaluationPlan) -> dict[str, str]:
    """One sentence for each score: its meaning, its unit and its policy; from `glossary.toml` and `scores.toml`."""
    texts = tomllib.loads((files(__package__) / "glossary.toml").read_text(encoding="utf-8"))
    # The order in which sentences are added is their order in the files and in the report.
    sentences = dict(texts["before"])
    for score in scores_of(plan).values():
        if score.definition:
            sentences[score.name] = score.definition
        sentences |= texts["after"].get(score.name, {})
    if not plan.probabilities:
        texts["last"] = {"components": texts["last"]["components"]}
    words = texts[plan.outputs.name]
    words |= {"plan": plan, "tolerances": ", ".join(plan.tolerance_names), "finest": f"1/{PARTS * plan.bins}"}
    return {name.format(plan=plan): text.format(**words) for name, text in (sentences | texts["last"]).items()}
