"""Metrics of a front and of its nodes as one text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class _Families(Collector):
    """Metrics that were read from servers."""

    def __init__(self) -> None:
        self.by_name: dict[str, Metric] = {}

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        return self.by_name.values()


def merge(own: str, nodes: Mapping[str, str]) -> bytes:
    """Return the metrics of a front and of its nodes in the text format. Those of a node have the label ``node``.

    Args:
        own: The front's, in the text format.
        nodes: Those of each node, by its name.

    Raises:
        ValueError: A text is not in the format.
    """
    # All lines of one metric must be one group, so the texts can't be joined as they are.
    families = _Families()
    for node, text in (("", own), *nodes.items()):
        for read in text_string_to_metric_families(text):
            metric = families.by_name.setdefault(read.name, Metric(read.name, read.documentation, read.type))
            label = {"node": node} if node else {}
            metric.samples += [each._replace(labels={**each.labels, **label}) for each in read.samples]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(families)
    return generate_latest(registry)
