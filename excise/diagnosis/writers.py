"""What writes the direction, by writer, by kind of writer and by expert, and which of them is named as the cause."""

from collections.abc import Sequence
from dataclasses import dataclass

from excise.diagnosis.causes import ENOUGH, ActivationPatching, Site
from excise.residual.contributions import Trace
from schemas.diagnosis import ExpertEffect, NamedWriter, RoleEffect, StreamPoint, WriterEffect
from schemas.model import WriterRole

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
        writes = (kind.writes[layer, role].of_expert(expert) for kind in (self.harmful, self.harmless))
        harmful, harmless = (float(write.mean()) for write in writes)
        return {"harmful": harmful, "harmless": harmless, "difference": harmful - harmless}

    def difference(self, site: Site) -> float:
        return self.means(site)["difference"]

    @property
    def sites(self) -> list[Site]:
        return [(layer, role, None) for layer, role in self.harmful.writes]

    def stream(self) -> list[StreamPoint]:
        harmful, harmless = (kind.stream.mean(0).tolist() for kind in (self.harmful, self.harmless))
        return [
            StreamPoint(measurement=number, harmful=a, harmless=b, difference=a - b)
            for number, (a, b) in enumerate(zip(harmful, harmless, strict=True))
        ]


def explain_writers(contrast: Contrast, patching: ActivationPatching) -> list[WriterEffect]:
    effects = patching.effects([[site] for site in contrast.sites])
    return [
        WriterEffect(layer=site[0], role=site[1], **contrast.means(site), effect=effect)
        for site, effect in zip(contrast.sites, effects, strict=True)
    ]


def explain_roles(contrast: Contrast, patching: ActivationPatching) -> list[RoleEffect]:
    """What each kind of writer writes, as it arrives at the last measurement, and its effect."""
    by_role = {role: [site for site in contrast.sites if site[1] == role] for _, role, _ in contrast.sites}
    rows = []
    for (role, sites), effect in zip(by_role.items(), patching.effects([*by_role.values()]), strict=True):
        arriving = sum(contrast.harmful.reach(site[0]) * contrast.difference(site) for site in sites)
        rows.append(RoleEffect(role=role, difference=arriving, effect=effect))
    return rows


def explain_experts(contrast: Contrast, patching: ActivationPatching) -> list[ExpertEffect]:
    """What each routed expert writes, and the effect of those that write most."""
    differences: dict[tuple[int, WriterRole, int], float] = {}
    for (layer, role), write in contrast.harmful.writes.items():
        for expert in range(write.experts.shape[1]):
            differences[layer, role, expert] = contrast.difference((layer, role, expert))
    largest = sorted(differences, key=lambda site: -abs(differences[site]))[:EXPERTS_TRIED]
    effects = dict(zip(largest, patching.effects([[site] for site in largest]), strict=True))
    return [
        ExpertEffect(layer=site[0], expert=site[2], difference=difference, effect=effects.get(site))
        for site, difference in differences.items()
    ]


def name_writer(
    roles: Sequence[RoleEffect], experts: Sequence[ExpertEffect], contrast: Contrast, patching: ActivationPatching
) -> NamedWriter:
    """The kind of writer with the largest effect, and a small part of it with nearly that effect: single routed experts
    if the few that were measured suffice, otherwise whole layers."""
    cause = min(roles, key=lambda row: row.effect)
    layers = [site for site in contrast.sites if site[1] == cause.role]
    measured: list[Site] = [(row.layer, "routed_experts", row.expert) for row in experts if row.effect is not None]
    few = cause.role == "routed_experts" and patching.effect(measured) <= ENOUGH * cause.effect
    # Sites that write least are left out first.
    candidates = sorted(measured if few else layers, key=lambda site: abs(contrast.difference(site)))
    smallest = patching.smallest(candidates, cause.effect)
    named: dict[int, list[int]] = {}
    for layer, _, expert in sorted(smallest, key=lambda site: (site[0], site[2] or 0)):
        named.setdefault(layer, []).extend([] if expert is None else [expert])
    return NamedWriter(
        role=cause.role, layers=sorted(named), experts=named if few else {}, effect=patching.effect(smallest)
    )
