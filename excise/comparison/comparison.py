"""Base against edited, metric by metric, over the same samples. Imports no torch."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from excise.comparison.intervals import bootstrap_interval, mcnemar, paired_interval, rate_interval
from excise.plumbing.aggregations import AGGREGATIONS, PAIRS, Values, as_values
from excise.plumbing.errors import StageError
from excise.plumbing.files import read_document, read_lines, unreadable
from schemas.evidence import ChangedSample, Comparison, Interval, TaskChanges
from schemas.results import Metric, Results, Sample

CONFIDENCE = 0.95
MOST_SHOWN = 10
DRIFT = "drift"

Growing = Callable[[float], Interval]
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
        sides = [values for values in (self.base_values, self.ablated_values) if values is not None]
        return self.described.aggregation == "mean" and all(np.isin(values, (0.0, 1.0)).all() for values in sides)

    @property
    def reason(self) -> str | None:
        """Why there is no interval; None where there is one."""
        if self.ablated_values is None:
            return "its samples cannot be resampled one by one"
        interval = self.value_interval(self.ablated_values, CONFIDENCE)
        return "too few of its samples are independent" if interval is None else None

    def value_interval(self, values: Values | None, confidence: float) -> Growing | None:
        """Of one model's value, given the values of its samples; None where it cannot be had."""
        if values is None:
            return None
        if self.yes_no:
            return partial(rate_interval, values[:, 0], self.clusters, confidence)
        if self.described.aggregation == "ratio" and _counts(values):
            # So many of so many: each of them counts or does not, and all of a sample's share its cluster.
            yes, of = values.astype(int).T
            each = np.repeat(np.tile([1.0, 0.0], len(of)), np.stack([yes, of - yes], axis=1).ravel())
            return partial(rate_interval, each, np.repeat(self.clusters, of), confidence)
        return self._resampled(self._value, values, confidence)

    def difference_interval(self, confidence: float) -> Growing | None:
        """Of edited minus base, over the same samples; None where it cannot be had."""
        before, after = self.base_values, self.ablated_values
        if before is None or after is None or self.difference is None:
            return None
        if self.yes_no:
            return partial(paired_interval, before[:, 0], after[:, 0], self.clusters, confidence)
        value, numbers = self._value, before.shape[1]
        both = np.concatenate([before, after], axis=1)
        return self._resampled(lambda drawn: value(drawn[:, numbers:]) - value(drawn[:, :numbers]), both, confidence)

    def _resampled(self, value: Callable[[Values], Any], values: Values, confidence: float) -> Growing | None:
        """A bootstrap; for more samples its width goes with the square root of their number."""
        found, middle = bootstrap_interval(value, values, self.clusters, confidence), float(value(values))
        if not math.isfinite(found.low) or not math.isfinite(found.high):
            return None
        below, above = middle - found.low, found.high - middle
        return lambda times: Interval(low=middle - below / math.sqrt(times), high=middle + above / math.sqrt(times))

    @property
    def _value(self) -> Callable[[Values], Any]:
        assert self.described.aggregation is not None  # there are values
        return AGGREGATIONS[self.described.aggregation]


def _counts(values: Values) -> bool:
    return bool((values == np.rint(values)).all() and (values[:, 0] <= values[:, 1]).all() and (values >= 0).all())


def measure_both(base: Side, ablated: Side) -> list[Measured]:
    """One entry a metric, in the order of groups and tasks, drift last. Raises `StageError`: the two were not asked the
    same samples."""
    found: list[Measured] = []
    for group, tasks in ablated.results.metrics.items():
        for task, metrics in tasks.items():
            before, after = _paired(group, task, base, ablated)
            described, of_base = ablated.results.described[task], base.results.metrics[group][task]
            found += _measured(f"{group}.{task}", described, metrics, after, of_base, before)
    drift, described = ablated.results.drift, ablated.results.described.get(DRIFT, {})
    return [*found, *_measured(DRIFT, described, drift, ablated.samples.get(DRIFT, []), {}, None)]


def _measured(
    task: str,
    described: Mapping[str, Metric],
    metrics: Mapping[str, float],
    after: Sequence[Sample],
    of_base: Mapping[str, float],
    before: Sequence[Sample] | None,
) -> Iterator[Measured]:
    clusters = _clusters(after)
    for name, value in metrics.items():
        base_values, ablated_values = (
            as_values([sample.metrics[name] for sample in samples])
            if samples is not None and described[name].aggregation is not None
            else None
            for samples in (before, after)
        )
        yield Measured(
            name=f"{task}.{name}",
            described=described[name],
            base=of_base.get(name),
            ablated=value,
            samples=len(after),
            clusters=clusters,
            base_values=base_values,
            ablated_values=ablated_values,
        )


def _paired(group: str, task: str, base: Side, ablated: Side) -> tuple[Sequence[Sample], Sequence[Sample]]:
    before, after = base.samples.get(task, []), ablated.samples[task]
    metrics = [side.results.metrics.get(group, {}).get(task, {}).keys() for side in (base, ablated)]
    asked = [[(one.id, one.item, one.prompt, one.metrics.keys()) for one in side] for side in (before, after)]
    if metrics[0] != metrics[1] or asked[0] != asked[1]:
        raise StageError(
            f"results: the base and the edited model were not asked the same samples of {task}; run `dvc repro --force "
            "evaluate@base evaluate@ablated`"
        )
    return before, after


def _clusters(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """A number for each item, and one for each sample that has none."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [("id", sample.id) if sample.item is None else ("item", sample.item) for sample in samples]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def compare(measured: Sequence[Measured]) -> list[Comparison]:
    """What a report says of each metric, with intervals at 95 %."""
    rows = []
    for one in measured:
        rose = fell = p_value = None
        if one.base_values is not None and one.ablated_values is not None:
            change = one.ablated_values[:, 0] - one.base_values[:, 0]
            rose, fell = int((change > 0).sum()), int((change < 0).sum())
            p_value = mcnemar(rose, fell) if one.yes_no else None
        growing = {
            "base_interval": one.value_interval(one.base_values, CONFIDENCE),
            "ablated_interval": one.value_interval(one.ablated_values, CONFIDENCE),
            "difference_interval": one.difference_interval(CONFIDENCE),
        }
        rows.append(
            Comparison(
                metric=one.name,
                base=one.base,
                ablated=one.ablated,
                difference=one.difference,
                **{name: found and found(1.0) for name, found in growing.items()},
                higher_is_better=one.described.higher_is_better,
                samples=one.samples,
                clusters=len(np.unique(one.clusters)),
                rose=rose,
                fell=fell,
                p_value=p_value,
                reason=one.reason,
            )
        )
    return rows


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
                for before, after in _one_of_each_item_first(*_paired(group, task, base, ablated))
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
    turns: defaultdict[str, Iterator[int]] = defaultdict(count)
    pairs = [(next(turns[one.item or one.id]), one, other) for one, other in zip(base, ablated, strict=True)]
    return [(one, other) for _, one, other in sorted(pairs, key=lambda pair: pair[0])]


def _moved(before: Sample, after: Sample) -> dict[str, tuple[float, float]]:
    """The metrics that a sample changed in; the first number where a metric has several."""
    firsts = {name: as_values([before.metrics[name], value])[:, 0].tolist() for name, value in after.metrics.items()}
    return {name: (old, new) for name, (old, new) in firsts.items() if old != new}


def metric_tree(rows: Sequence[Comparison]) -> dict[str, Any]:
    """What `dvc metrics diff` reads: the edited model's values by metric name, the base's below `base`."""
    tree: dict[str, Any] = {}
    for row in rows:
        for name, value in ((row.metric, row.ablated), (f"base.{row.metric}", row.base)):
            if value is not None:
                *parents, last = name.split(".")
                branch = tree
                for parent in parents:
                    branch = branch.setdefault(parent, {})
                branch[last] = value
    return tree


def read_side(folder: Path) -> Side:
    """The metrics and all samples of one model, from `results/base` or `results/ablated`. Raises `StageError`: a
    file is missing or not whole, or they do not belong together."""
    path = folder / "results.json"
    results = read_document(Results, path)
    tasks = {*results.samples, *([DRIFT] if results.drift else [])}
    samples = {task: read_lines(Sample, folder / f"samples/{task}.jsonl") for task in sorted(tasks)}
    for task, counted in results.samples.items():
        if len(samples[task]) != counted:
            what = f"holds {len(samples[task])} samples, where {path.name} counts {counted}"
            raise unreadable(folder / f"samples/{task}.jsonl", what)
    metrics = {task: names for group in results.metrics.values() for task, names in group.items()}
    for task, names in {**metrics, DRIFT: results.drift}.items():
        for name in names:
            described = results.described.get(task, {}).get(name)
            if described is None or task not in samples:
                raise unreadable(path, f"does not describe {name} of {task}")
            if described.aggregation is not None:
                values = [sample.metrics.get(name, []) for sample in samples[task]]
                numbers = {len(value) if isinstance(value, list) else 1 for value in values}
                if len(numbers) > 1 or min(numbers, default=2) < (2 if described.aggregation in PAIRS else 1):
                    raise unreadable(folder / f"samples/{task}.jsonl", f"has a sample without its {name}")
    return Side(results=results, samples=samples)
