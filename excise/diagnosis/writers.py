"""What writes the direction, by writer, by kind of writer and by expert, and which of them is named as the cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from excise.diagnosis.causes import Patches, Site, nested
from excise.residual.contributions import Source, Trace, Write
from schemas.diagnosis import ExpertEffect, NamedWriter, RoleEffect, StreamPoint, WriterEffect
from schemas.model import WriterRole

ENOUGH = 0.9
"""Share of a writer's effect that the named part of it must have."""
EXPERTS_TRIED = 16
"""Routed experts whose effect is measured: those that write most."""


@dataclass(frozen=True)
class Contrast:
    """Held-out prompts of both kinds, traced along one direction."""

    harmful: Trace
    harmless: Trace

    def means(self, site: Site) -> dict[str, float]:
        """What a site adds on average: on harmful prompts, on harmless ones, and the difference."""
        layer, role, expert = site
        harmful, harmless = (float(writes[layer, role].of_expert(expert).mean()) for writes in self._writes)
        return {"harmful": harmful, "harmless": harmless, "difference": harmful - harmless}

    def difference(self, site: Site) -> float:
        return self.means(site)["difference"]

    @property
    def sites(self) -> list[Site]:
        return [(layer, role, None) for layer, role in self.harmful.writes]

    @cached_property
    def _writes(self) -> tuple[dict[Source, Write], dict[Source, Write]]:
        """Of both kinds; asked for after all prompts have passed."""
        return self.harmful.writes, self.harmless.writes

    def stream(self) -> list[StreamPoint]:
        harmful, harmless = (kind.stream.mean(0).tolist() for kind in (self.harmful, self.harmless))
        return [
            StreamPoint(measurement=number, harmful=a, harmless=b, difference=a - b)
            for number, (a, b) in enumerate(zip(harmful, harmless, strict=True))
        ]


class Importance:
    """Which sets of sites have to be patched to find the cause, and what their effects say. Single effects would not
    do: sites that can replace each other have hardly any, and of sites that need each other each has all of it."""

    def __init__(self, patches: Patches, contrast: Contrast) -> None:
        """The contrast may be traced later, before `candidates` are asked for."""
        self._patches, self._contrast = patches, contrast

    @cached_property
    def by_role(self) -> dict[WriterRole, list[Site]]:
        sites = self._patches.sites
        roles = dict.fromkeys(role for _, role, _ in sites)
        return {role: [site for site in sites if site[1] == role] for role in roles}

    def single(self) -> list[list[Site]]:
        """Each writer, each kind of writer, and each kind but for one writer."""
        kinds = [*self.by_role.values()]
        singles = [[site] for site in self._patches.sites]
        return [*singles, *kinds, *(_without(one, kind) for kind in kinds for one in kind)]

    @property
    def cause(self) -> WriterRole:
        """The kind of writer with the largest effect."""
        return min(self.by_role, key=lambda role: self._patches.effect(self.by_role[role]))

    @cached_property
    def experts(self) -> list[Site]:
        """The routed experts that write most."""
        sites: list[Site] = [
            (layer, role, expert)
            for (layer, role), write in self._contrast.harmful.writes.items()
            for expert in range(write.experts.shape[1])
        ]
        return sorted(sites, key=lambda site: -abs(self._contrast.difference(site)))[:EXPERTS_TRIED]

    def candidates(self) -> list[list[Site]]:
        """Parts of the cause, single experts, and parts of these."""
        return [*self._of_layers(), *([one] for one in self.experts), *self._of_experts()]

    def _of_layers(self) -> list[list[Site]]:
        """Parts of the cause by what its writers write, and by what they do."""
        whole = self.by_role[self.cause]
        most = self._patches.effect(whole)

        def does(site: Site) -> float:
            rest = _without(site, whole)
            return -self._patches.effect([site]) + (self._patches.effect(rest) - most if rest else -most)

        return [*nested(whole, self._writes), *nested(whole, does)]

    def _writes(self, site: Site) -> float:
        return abs(self._contrast.difference(site))

    def _of_experts(self) -> list[list[Site]]:
        return nested(self.experts, self._writes)

    def name_writer(self) -> NamedWriter:
        """The kind of writer with the largest effect, and the smallest part of it that has nearly that: single routed
        experts if the few that were tried suffice, otherwise whole layers."""
        whole = self.by_role[self.cause]
        enough = ENOUGH * self._patches.effect(whole)

        def has_enough(sites: Sequence[Site]) -> bool:
            return self._patches.effect(sites) <= enough

        experts = self._of_experts() if self.cause == "routed_experts" else []
        few = bool(experts) and has_enough(experts[-1])
        parts = list(filter(has_enough, experts if few else self._of_layers()))
        smallest = min(parts, key=lambda part: (len(part), self._patches.effect(part)), default=whole)
        named: dict[int, list[int]] = {}
        for layer, _, expert in sorted(smallest, key=lambda site: (site[0], site[2] or 0)):
            named.setdefault(layer, []).extend([] if expert is None else [expert])
        effect = self._patches.effect(smallest)
        return NamedWriter(role=self.cause, layers=sorted(named), experts=named if few else {}, effect=effect)

    def explain_writers(self) -> list[WriterEffect]:
        return [
            WriterEffect(layer=site[0], role=site[1], **self._contrast.means(site), effect=self._patches.effect([site]))
            for site in self._patches.sites
        ]

    def explain_roles(self) -> list[RoleEffect]:
        """What each kind of writer writes, as it arrives at the last measurement, and its effect."""
        rows = []
        for role, sites in self.by_role.items():
            arriving = sum(self._contrast.harmful.reach(site[0]) * self._contrast.difference(site) for site in sites)
            rows.append(RoleEffect(role=role, difference=arriving, effect=self._patches.effect(sites)))
        return rows

    def explain_experts(self) -> list[ExpertEffect]:
        """What each routed expert writes, and the effect of those that write most."""
        tried = set(self.experts)
        rows = []
        for (layer, role), write in self._contrast.harmful.writes.items():
            for expert in range(write.experts.shape[1]):
                site = (layer, role, expert)
                effect = self._patches.effect([site]) if site in tried else None
                rows.append(
                    ExpertEffect(layer=layer, expert=expert, difference=self._contrast.difference(site), effect=effect)
                )
        return rows


def _without(site: Site, sites: Sequence[Site]) -> list[Site]:
    return [other for other in sites if other != site]
