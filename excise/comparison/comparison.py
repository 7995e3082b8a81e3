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

ScaledInterval = Callable[[float], Interval]
"""An interval for a multiple of the samples with the same results; 1 for the actual samples."""


@dataclass(frozen=True)
class Side:
    """The evaluation of one model."""

    results: Results
    samples: Mapping[str, Sequence[Sample]]
    """By task; for the edited model also under `drift`."""


@dataclass(frozen=True)
class PairedMetric:
    """One metric of both models, with its samples."""

    name: str
    described: Metric
    base: float | None
    """None for drift, which is measured against the base."""
    ablated: float
    samples: int
    clusters: NDArray[np.int64]
    """``[samples]``: equal numbers share an item."""
    base_values: Values | None
    """``[samples, numbers]``; None for drift, and if samples cannot be resampled."""
    ablated_values: Values | None

    @property
    def difference(self) -> float | None:
        """Edited minus base."""
        return None if self.base is None else self.ablated - self.base

    @property
    def yes_no(self) -> bool:
        """Whether it is a rate, with 0 or 1 for each sample."""
        tables = [values for values in (self.base_values, self.ablated_values) if values is not None]
        return self.described.aggregation == "mean" and all(np.isin(values, (0.0, 1.0)).all() for values in tables)

    @property
    def reason(self) -> str | None:
        """Why it has no interval; None if it has one."""
        if self.ablated_values is None:
            return "its samples cannot be resampled one by one"
        if self.described.aggregation == "ratio" and not self.ablated_values[:, 1].any():
            return "none of its samples counts"
        interval = self.value_interval(self.ablated_values, CONFIDENCE)
        return "too few of its samples are independent" if interval is None else None

    def value_interval(self, values: Values | None, confidence: float) -> ScaledInterval | None:
        """The interval of one model's value, from the values of its samples; None if there is none."""
        if values is None:
            return None
        if self.yes_no:
            return partial(rate_interval, values[:, 0], self.clusters, confidence)
        if self.described.aggregation == "ratio" and not values[:, 1].any():
            return None
        counts = bool(((values == np.rint(values)) & (values >= 0)).all())
        if self.described.aggregation == "ratio" and counts and (values[:, 0] <= values[:, 1]).all():
            # A sample with a of b is b yes/no values, a of them yes, which share its cluster.
            yes, of = values.astype(int).T
            expanded = np.repeat(np.tile([1.0, 0.0], len(of)), np.stack([yes, of - yes], axis=1).ravel())
            return partial(rate_interval, expanded, np.repeat(self.clusters, of), confidence)
        return self._resampled(self._value, values, confidence)

    def difference_interval(self, confidence: float) -> ScaledInterval | None:
        """The interval of edited minus base over the same samples; None if there is none."""
        before, after = self.base_values, self.ablated_values
        if before is None or after is None or self.difference is None:
            return None
        if self.yes_no:
            return partial(paired_interval, before[:, 0], after[:, 0], self.clusters, confidence)
        value, numbers = self._value, before.shape[1]
        both = np.concatenate([before, after], axis=1)
        return self._resampled(lambda drawn: value(drawn[:, numbers:]) - value(drawn[:, :numbers]), both, confidence)

    def _resampled(self, value: Callable[[Values], Any], values: Values, confidence: float) -> ScaledInterval | None:
        """A bootstrap interval; its width falls with the square root of the number of samples."""
        interval, middle = bootstrap_interval(value, values, self.clusters, confidence), float(value(values))
        if not math.isfinite(interval.low) or not math.isfinite(interval.high):
            return None
        below, above = middle - interval.low, interval.high - middle
        return lambda times: Interval(low=middle - below / math.sqrt(times), high=middle + above / math.sqrt(times))

    @property
    def _value(self) -> Callable[[Values], Any]:
        assert self.described.aggregation is not None  # otherwise there are no values
        return AGGREGATIONS[self.described.aggregation]


def measure_both(base: Side, ablated: Side) -> list[PairedMetric]:
    """All metrics, in the order of groups and tasks, drift last. Raises `StageError`: the samples differ."""
    paired: list[PairedMetric] = []
    for group, tasks in ablated.results.metrics.items():
        for task, metrics in tasks.items():
            before, after = _same_samples(group, task, base, ablated)
            described, of_base = ablated.results.described[task], base.results.metrics[group][task]
            paired += _paired_metrics(f"{group}.{task}", described, metrics, after, of_base, before)
    drift, described = ablated.results.drift, ablated.results.described.get(DRIFT, {})
    return [*paired, *_paired_metrics(DRIFT, described, drift, ablated.samples.get(DRIFT, []), {}, None)]


def _paired_metrics(
    task: str,
    described: Mapping[str, Metric],
    metrics: Mapping[str, float],
    after: Sequence[Sample],
    of_base: Mapping[str, float],
    before: Sequence[Sample] | None,
) -> Iterator[PairedMetric]:
    clusters = _clusters(after)
    for name, value in metrics.items():
        base_values, ablated_values = (
            as_values([sample.metrics[name] for sample in samples])
            if samples is not None and described[name].aggregation is not None
            else None
            for samples in (before, after)
        )
        yield PairedMetric(
            name=f"{task}.{name}",
            described=described[name],
            base=of_base.get(name),
            ablated=value,
            samples=len(after),
            clusters=clusters,
            base_values=base_values,
            ablated_values=ablated_values,
        )


def _same_samples(group: str, task: str, base: Side, ablated: Side) -> tuple[Sequence[Sample], Sequence[Sample]]:
    before, after = base.samples.get(task, []), ablated.samples[task]
    metrics = [side.results.metrics.get(group, {}).get(task, {}).keys() for side in (base, ablated)]
    asked = [
        [(sample.id, sample.item, sample.prompt, sample.metrics.keys()) for sample in samples]
        for samples in (before, after)
    ]
    if metrics[0] != metrics[1] or asked[0] != asked[1]:
        raise StageError(
            f"results: the base and the edited model were not asked the same samples of {task}; run `dvc repro --force "
            "evaluate@base evaluate@ablated`"
        )
    return before, after


def _clusters(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """A number for each item, or for each sample without an item."""
    numbers: dict[tuple[str, str], int] = {}
    keys = [("id", sample.id) if sample.item is None else ("item", sample.item) for sample in samples]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def compare(metrics: Sequence[PairedMetric]) -> list[Comparison]:
    """The report's row for each metric, with 95 % intervals."""
    rows = []
    for metric in metrics:
        rose = fell = p_value = None
        if metric.base_values is not None and metric.ablated_values is not None:
            change = metric.ablated_values[:, 0] - metric.base_values[:, 0]
            rose, fell = int((change > 0).sum()), int((change < 0).sum())
            p_value = mcnemar(rose, fell) if metric.yes_no else None
        intervals = {
            "base_interval": metric.value_interval(metric.base_values, CONFIDENCE),
            "ablated_interval": metric.value_interval(metric.ablated_values, CONFIDENCE),
            "difference_interval": metric.difference_interval(CONFIDENCE),
        }
        rows.append(
            Comparison(
                metric=metric.name,
                base=metric.base,
                ablated=metric.ablated,
                difference=metric.difference,
                **{name: interval and interval(1.0) for name, interval in intervals.items()},
                higher_is_better=metric.described.higher_is_better,
                samples=metric.samples,
                clusters=len(np.unique(metric.clusters)),
                rose=rose,
                fell=fell,
                p_value=p_value,
                reason=metric.reason,
            )
        )
    return rows


def changes(base: Side, ablated: Side) -> list[TaskChanges]:
    """The samples of each task that changed most, over all its metrics."""
    listed = []
    for group, tasks in ablated.results.metrics.items():
        for task in tasks:
            changed = [
                ChangedSample(
                    id=before.id,
                    prompt=before.prompt,
                    base=before.response,
                    ablated=after.response,
                    base_reasoning=before.reasoning,
                    ablated_reasoning=after.reasoning,
                    base_verdict=before.verdict,
                    ablated_verdict=after.verdict,
                    metrics=moved,
                )
                for before, after in _one_of_each_item_first(*_same_samples(group, task, base, ablated))
                if (moved := _moved(before, after))
            ]
            changed.sort(key=lambda sample: -sum(abs(new - old) for old, new in sample.metrics.values()))
            samples = len(ablated.samples[task])
            listed.append(
                TaskChanges(group=group, task=task, samples=samples, changed=len(changed), shown=changed[:MOST_SHOWN])
            )
    return listed


def _one_of_each_item_first(base: Sequence[Sample], ablated: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Pairs of samples, ordered so that wordings of one question are not next to each other."""
    turns: defaultdict[str, Iterator[int]] = defaultdict(count)
    pairs = [(next(turns[old.item or old.id]), old, new) for old, new in zip(base, ablated, strict=True)]
    return [(old, new) for _, old, new in sorted(pairs, key=lambda pair: pair[0])]


def _moved(before: Sample, after: Sample) -> dict[str, tuple[float, float]]:
    """The metrics that changed in a sample, by the first number if a metric has several."""
    firsts = {name: as_values([before.metrics[name], value])[:, 0].tolist() for name, value in after.metrics.items()}
    return {name: (old, new) for name, (old, new) in firsts.items() if old != new}


def metric_tree(rows: Sequence[Comparison]) -> dict[str, Any]:
    """The tree that `dvc metrics diff` reads: the edited model's values by metric name, the base's below `base`."""
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
    """Read `results/base` or `results/ablated`. Raises `StageError`: files are missing, damaged or do not match."""
    path = folder / "results.json"
    results = read_document(Results, path)
    tasks = {*results.samples, *([DRIFT] if results.drift else [])}
    samples = {task: read_lines(Sample, folder / f"samples/{task}.jsonl") for task in sorted(tasks)}
    for task, counted in results.samples.items():
        if len(samples[task]) != counted:
            reason = f"holds {len(samples[task])} samples, but {path.name} counts {counted}"
            raise unreadable(folder / f"samples/{task}.jsonl", reason)
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
