"""Base against edited, metric by metric, over the same samples. Imports no torch."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from excise.comparison.intervals import Bounds, bootstrap_interval, mcnemar, paired_interval, rate_interval
from excise.plumbing.aggregations import AGGREGATIONS, PAIRS, Values, as_values
from excise.plumbing.errors import StageError
from excise.plumbing.files import read_document, read_lines, unreadable
from schemas.evidence import ChangedSample, Comparison, Interval, TaskChanges
from schemas.results import Metric, Results, Sample

CONFIDENCE = 0.95
MOST_SHOWN = 10
DRIFT = "drift"

Growing = Callable[[float], Bounds]
"""An interval, as if there were so many times the samples with the same results: 1 for those that there are."""


@dataclass(frozen=True)
class Side:
    """What evaluating one model left behind."""

    results: Results
    samples: Mapping[str, Sequence[Sample]]
    """By task; the drift of the edited model is one more."""


@dataclass(frozen=True)
class Measured:
    """One metric of both models, with the samples that it is made of."""

    name: str
    described: Metric
    base: float | None
    """None for drift, which is measured against the base."""
    ablated: float
    samples: int
    clusters: NDArray[np.int64]
    """``[samples]``: samples of one number share an item."""
    base_values: Values | None
    """``[samples, numbers]``; None for drift, and where samples cannot be resampled."""
    ablated_values: Values | None

    @property
    def difference(self) -> float | None:
        """Edited minus base."""
        return None if self.base is None else self.ablated - self.base

    @property
    def yes_no(self) -> bool:
        """Whether it is a rate: each sample counts or does not."""
        return self.described.aggregation == "mean" and all(
            values is None or bool(np.isin(values, (0.0, 1.0)).all())
            for values in (self.base_values, self.ablated_values)
        )

    @property
    def reason(self) -> str | None:
        """Why there is no interval; None where there is one."""
        if self.ablated_values is None:
            return "its samples cannot be resampled one by one"
        return "too few of its samples are independent" if self.value_interval(CONFIDENCE) is None else None

    def value_interval(self, confidence: float) -> Growing | None:
        """Of the edited model's value; None where it cannot be had."""
        return self._of_one(self.ablated_values, confidence)

    def base_interval(self, confidence: float) -> Growing | None:
        """Of the base's value."""
        return self._of_one(self.base_values, confidence)

    def difference_interval(self, confidence: float) -> Growing | None:
        """Of edited minus base, over the same samples; None where it cannot be had."""
        before, after = self.base_values, self.ablated_values
        if before is None or after is None or self.difference is None:
            return None
        if self.yes_no:
            return partial(paired_interval, before[:, 0], after[:, 0], self.clusters, confidence)
        value, numbers = self._value, before.shape[1]
        return _resampled(
            lambda both: value(both[:, numbers:]) - value(both[:, :numbers]),
            np.concatenate([before, after], axis=1),
            self.clusters,
            confidence,
        )

    def _of_one(self, values: Values | None, confidence: float) -> Growing | None:
        if values is None:
            return None
        if self.yes_no:
            return partial(rate_interval, values[:, 0], self.clusters, confidence)
        if self.described.aggregation == "ratio" and _counts(values):
            # So many of so many: each of them counts or does not, and all of a sample's share its cluster.
            yes, of = values.astype(int).T
            each = np.repeat(np.tile([1.0, 0.0], len(of)), np.stack([yes, of - yes], axis=1).ravel())
            return partial(rate_interval, each, np.repeat(self.clusters, of), confidence)
        return _resampled(self._value, values, self.clusters, confidence)

    @property
    def _value(self) -> Callable[[Values], Any]:
        assert self.described.aggregation is not None  # there are values
        return AGGREGATIONS[self.described.aggregation]


def _counts(values: Values) -> bool:
    return bool((values == np.rint(values)).all() and (values[:, 0] <= values[:, 1]).all() and (values >= 0).all())


def _resampled(
    value: Callable[[Values], Any], values: Values, clusters: NDArray[np.int64], confidence: float
) -> Growing | None:
    """A bootstrap; for more samples its width goes with the square root of their number."""
    found, middle = bootstrap_interval(value, values, clusters, confidence), float(value(values))
    if not math.isfinite(found.low) or not math.isfinite(found.high):
        return None
    return lambda times: Bounds(
        middle - (middle - found.low) / math.sqrt(times), middle + (found.high - middle) / math.sqrt(times)
    )


def measure_both(base: Side, ablated: Side) -> list[Measured]:
    """One entry a metric, in the order of groups and tasks, drift last.

    Raises:
        StageError: the two were not asked the same samples.
    """
    found = []
    for group, tasks in ablated.results.metrics.items():
        for task, metrics in tasks.items():
            if base.results.metrics.get(group, {}).get(task, {}).keys() != metrics.keys():
                raise _not_the_same(task)
            before, after = _paired(task, base, ablated)
            for name, value in metrics.items():
                described = ablated.results.described[task][name]
                found.append(
                    Measured(
                        name=f"{group}.{task}.{name}",
                        described=described,
                        base=base.results.metrics[group][task][name],
                        ablated=value,
                        samples=len(after),
                        clusters=_clusters(after),
                        base_values=_values(before, name, described),
                        ablated_values=_values(after, name, described),
                    )
                )
    drift = ablated.samples.get(DRIFT, [])
    for name, value in ablated.results.drift.items():
        described = ablated.results.described[DRIFT][name]
        values = _values(drift, name, described)
        found.append(Measured(f"{DRIFT}.{name}", described, None, value, len(drift), _clusters(drift), None, values))
    return found


def _paired(task: str, base: Side, ablated: Side) -> tuple[Sequence[Sample], Sequence[Sample]]:
    before, after = base.samples.get(task, []), ablated.samples[task]
    asked, asked_again = (
        [(sample.id, sample.item, sample.prompt, sample.metrics.keys()) for sample in side] for side in (before, after)
    )
    if asked != asked_again:
        raise _not_the_same(task)
    return before, after


def _not_the_same(task: str) -> StageError:
    return StageError(
        f"results: the base and the edited model were not asked the same samples of {task}; run `dvc repro --force "
        "evaluate@base evaluate@ablated`"
    )


def _clusters(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """A number for each item, and one for each sample that has none."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [("id", sample.id) if sample.item is None else ("item", sample.item) for sample in samples]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _values(samples: Sequence[Sample], name: str, described: Metric) -> Values | None:
    if described.aggregation is None:
        return None
    return as_values([sample.metrics[name] for sample in samples])


def compare(measured: Sequence[Measured]) -> list[Comparison]:
    """What a report says of each metric, with intervals at 95 %."""
    return [_row(one) for one in measured]


def _row(one: Measured) -> Comparison:
    rose = fell = p_value = None
    if one.base_values is not None and one.ablated_values is not None:
        change = one.ablated_values[:, 0] - one.base_values[:, 0]
        rose, fell = int((change > 0).sum()), int((change < 0).sum())
        p_value = mcnemar(rose, fell) if one.yes_no else None
    return Comparison(
        metric=one.name,
        base=one.base,
        ablated=one.ablated,
        difference=one.difference,
        base_interval=as_interval(one.base_interval(CONFIDENCE)),
        ablated_interval=as_interval(one.value_interval(CONFIDENCE)),
        difference_interval=as_interval(one.difference_interval(CONFIDENCE)),
        higher_is_better=one.described.higher_is_better,
        samples=one.samples,
        clusters=len(np.unique(one.clusters)),
        rose=rose,
        fell=fell,
        p_value=p_value,
        reason=one.reason,
    )


def as_interval(growing: Growing | None) -> Interval | None:
    """That of the samples that there are, for a file."""
    if growing is None:
        return None
    bounds = growing(1.0)
    return Interval(low=float(bounds.low), high=float(bounds.high))


def changes(base: Side, ablated: Side) -> list[TaskChanges]:
    """Of each task, the samples that changed most: those with the largest changes over all its metrics."""
    found = []
    for group, tasks in ablated.results.metrics.items():
        for task in tasks:
            changed = [
                ChangedSample(
                    id=before.id,
                    prompt=before.prompt,
                    base=before.response,
                    ablated=after.response,
                    base_verdict=before.verdict,
                    ablated_verdict=after.verdict,
                    metrics=moved,
                )
                for before, after in _one_of_each_item_first(*_paired(task, base, ablated))
                if (moved := _moved(before, after))
            ]
            changed.sort(key=lambda one: -sum(abs(new - old) for old, new in one.metrics.values()))
            samples = len(ablated.samples[task])
            found.append(
                TaskChanges(group=group, task=task, samples=samples, changed=len(changed), shown=changed[:MOST_SHOWN])
            )
    return found


def _one_of_each_item_first(base: Sequence[Sample], ablated: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """The pairs of samples, so that wordings of one question do not stand together."""
    seen: Counter[str] = Counter()
    turns = []
    for before in base:
        item = before.item or before.id
        turns.append(seen[item])
        seen[item] += 1
    pairs = list(zip(base, ablated, strict=True))
    return [pairs[place] for place in sorted(range(len(pairs)), key=turns.__getitem__)]


def _moved(before: Sample, after: Sample) -> dict[str, tuple[float, float]]:
    """The metrics that a sample changed in; the first number where a metric has several."""
    firsts = {
        name: tuple(
            float(value[0] if isinstance(value, list) else value)
            for value in (before.metrics[name], after.metrics[name])
        )
        for name in after.metrics
    }
    return {name: (old, new) for name, (old, new) in firsts.items() if old != new}


def metric_tree(rows: Sequence[Comparison]) -> dict[str, Any]:
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


def read_side(folder: Path) -> Side:
    """The metrics and all samples of one model, from `results/base` or `results/ablated`.

    Raises:
        StageError: a file is missing or not whole, or they do not belong together.
    """
    path = folder / "results.json"
    results = read_document(Results, path)
    tasks = {*results.samples, *([DRIFT] if results.drift else [])}
    samples = {task: read_lines(Sample, folder / f"samples/{task}.jsonl") for task in sorted(tasks)}
    for task, count in results.samples.items():
        if len(samples[task]) != count:
            what = f"holds {len(samples[task])} samples, where {path.name} counts {count}"
            raise unreadable(folder / f"samples/{task}.jsonl", what)
    metrics = {task: names for group in results.metrics.values() for task, names in group.items()}
    for task, names in {**metrics, DRIFT: results.drift}.items():
        for name in names:
            described = results.described.get(task, {}).get(name)
            if described is None or task not in samples:
                raise unreadable(path, f"does not describe {name} of {task}")
            if described.aggregation is not None:
                numbers = {_numbers(sample, name) for sample in samples[task]}
                if len(numbers) > 1 or min(numbers, default=2) < (2 if described.aggregation in PAIRS else 1):
                    raise unreadable(folder / f"samples/{task}.jsonl", f"has a sample without its {name}")
    return Side(results=results, samples=samples)


def _numbers(sample: Sample, name: str) -> int:
    """How many numbers a metric has of a sample."""
    value = sample.metrics.get(name, [])
    return len(value) if isinstance(value, list) else 1
