"""Decisions about models, by an approver: each is a line of the audit trail."""

import json
from typing import TYPE_CHECKING, Any

from monai_unet_app.service.child_processes import run_verb
from monai_unet_app.service.observed import FROZEN

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_DRIFT_S = 120.0  # reading a trail of a million lines takes less


def drift_of(node: "Node", *more: str) -> list[dict[str, Any]]:
    """What `monai-unet node drift` says of each rule, in a process of its own. Raises AppError if it fails."""
    # Exit code 1: something has drifted
    found = json.loads(run_verb(["node", "drift", "--config", str(node.site.path), "--json", *more], _DRIFT_S, (0, 1)))
    return list(found["rules"])


def freeze_reference(node: "Node", rule: str, results: int, approver: str) -> dict[str, Any]:
    """Freezes the first accepted results of a rule as what later ones are held against; a later one replaces it.

    Args:
        node: Its trail has the results, and gets the line.
        rule: Name of the rule.
        results: How many.
        approver: Name of the person.

    Returns:
        The facts of the line.

    Raises:
        InputRefusedError: There is no such rule, or fewer results were accepted.
    """
    (found,) = drift_of(node, "--rule", node.site.named_rule(rule).name, "--propose", str(results))
    facts = {**found["proposed"], "who": approver}
    node.audit.write(FROZEN, **facts)
    return facts
