"""Which sites share tensors: their groups, the first of each, and how large what they share has to be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import full_name
from ..kinds.table import KINDS
from .site import Site

Values = dict[str, Tensor]


def grouped(sites: Sequence[Site]) -> list[Site]:
    """Return the sites that are added at once, in their order, each with its group.

    A group is called by the first of its modules by name, which leads it, whatever the order of the sites.
    """
    names = [site.row.adapter.group_of(site, site.module) if site.row.low_rank else "" for site in sites]
    members: dict[str, list[Site]] = defaultdict(list)
    for name, site in zip(names, sites, strict=True):
        members[name].append(site)
    found = {name: _named(each) for name, each in members.items() if name}
    return [
        replace(site, group=group, leads=site.module == group, widest=widest) if name else site
        for name, site in zip(names, sites, strict=True)
        for group, widest in [found.get(name, ("", ()))]
    ]


def _named(members: Sequence[Site]) -> tuple[str, tuple[int, int]]:
    """Return a group's name, and the most outputs and the most inputs in it."""
    shapes = [KINDS[site.kind].factor_shapes(site.shape, site.r) for site in members]
    return min(site.module for site in members), (max(b[0] for _, b in shapes), max(a[-1] for a, _ in shapes))


def spread(found: Sequence[tuple[Site, Values]]) -> tuple[list[tuple[Site, Values]], list[str]]:
    """Return a file's tensors with what sites share in the place of each of them, and what is there twice."""
    held: dict[tuple[str, str], tuple[Site, Tensor]] = {}
    problems = []
    for site, values in found:
        for name in _shared(site) & values.keys():
            first, tensor = held.setdefault((site.group, name), (site, values[name]))
            if first is not site and not torch.equal(tensor, values[name]):
                one, other = (full_name(each.module, each.parameter) for each in (first, site))
                problems.append(f"{one} and {other} share one {name}, of which the file has two")
    return [
        (site, {**values, **{n: held[site.group, n][1] for n in _shared(site) if (site.group, n) in held}})
        for site, values in found
    ], problems


def _shared(site: Site) -> set[str]:
    return {stored.attribute for stored in site.row.tensors if stored.shared} if site.group else set()
