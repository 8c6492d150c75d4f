"""A verb that has another name now is refused with that name."""

from __future__ import annotations

import pytest
from shell import Run, every_verb, shell

from monai_unet_app.cli.parser import OLD_NAMES

run = pytest.fixture(shell)


def test_an_old_name_of_a_verb_is_refused_with_the_present_one(run: Run) -> None:
    verbs = every_verb()
    for name, new in OLD_NAMES.items():
        answer = run(name, "--json")
        assert (answer.code, answer.out) == (2, "")
        assert f"{name} has another name now: monai-unet {new}\n" in answer.err
        assert name not in verbs
        verb, _, flag = new.partition(" --")
        assert flag in "".join(verbs[verb].format_usage().split("--")) if flag else verb in verbs
