"""Base against edited, metric by metric. Imports no torch."""

from typing import Any

from schemas.artifacts import Comparison, Results


def compare(base: Results, ablated: Results) -> list[Comparison]:
    """One row a metric, in the order of groups and tasks, drift last."""
    rows = []
    for group, tasks in ablated.metrics.items():
        for task, metrics in tasks.items():
            for name, value in metrics.items():
                before = base.metrics[group][task][name]
                rows.append(
                    Comparison(
                        metric=f"{group}.{task}.{name}",
                        base=before,
                        ablated=value,
                        difference=value - before,
                        samples=ablated.samples[task],
                    )
                )
    for name, value in ablated.drift.items():
        rows.append(Comparison(metric=f"drift.{name}", base=None, ablated=value, difference=None, samples=None))
    return rows


def metric_tree(rows: list[Comparison]) -> dict[str, Any]:
    """What `dvc metrics diff` reads: the edited model's values by metric name, the base's below `base`."""
    tree: dict[str, Any] = {}
    for row in rows:
        _insert(tree, row.metric, row.ablated)
        if row.base is not None:
            _insert(tree, f"base.{row.metric}", row.base)
    return tree


def _insert(tree: dict[str, Any], name: str, value: float) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value
