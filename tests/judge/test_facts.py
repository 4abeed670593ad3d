"""Facts: what is documented is given, and what is given is documented."""

from __future__ import annotations

from pathlib import Path

from lipaudit.certify import certify
from lipaudit.certify.domain import parse_boxes
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.judge.guideline import documented_facts
from lipaudit.judge.subjects import subjects
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import recognise

# Seen by a run only (lipaudit.validate.profile and local).
MEASURED = {"flow", "activation", "local"}


def test_documented_facts_are_given_and_given_facts_documented(samples: Path) -> None:
    """A condition over a fact that nothing gives would never fire, and say nothing."""
    given: set[str] = set()
    catalogue = Catalogue.load()
    for path in sorted(samples.glob("*.onnx")):
        topology = recognise(simplify(load(str(path)).graph, {}, operators=catalogue.operators()))
        certificate = certify(topology, catalogue, parse_boxes([]), "l2")
        for subject in subjects(topology, certificate, catalogue, {}):
            given.update(f"{space}.{name}" for space, facts in subject.facts.items() for name in facts)
    documented = {name for name in documented_facts() if name.partition(".")[0] not in MEASURED}
    assert documented == given
