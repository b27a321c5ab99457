"""Tied weights that a config keeps tied (`ensure_weight_tying`): a saved one is one copy for all of its names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import ConfigError
from .names import saved_modules
from .plan import saved_sites
from .site import Site


def tied_names(modules: Mapping[str, nn.Module], site: Site) -> list[str]:
    """Return the modules whose weight is a site's, in model order; none where a site is not on a weight."""
    weight = modules[site.module]._parameters.get("weight")
    if weight is None or site.parameter != "weight":
        return []
    return [name for name, module in modules.items() if module._parameters.get("weight") is weight]


def tied_copies(modules: Mapping[str, nn.Module], config: LoRAConfig, sites: list[Site]) -> list[Site]:
    """Return sites in which what is saved of a tied weight is one copy, in the place of each of its names.

    Raises ConfigError where a product would part what the config says to keep tied.
    """
    if not config.ensure_weight_tying:
        return sites
    check_products(modules, config, sites)
    result: dict[tuple[str, str], Site] = {}
    for site in sites:
        names = tied_names(modules, site) if site.row.whole else []
        for name in names or [site.module]:
            shares = names[0] if names and name != names[0] else site.shares
            result.setdefault((name, site.key), replace(site, module=name, shares=shares))
            for other in saved_sites(modules[name], name) if names else ():  # a head's bias: a module is saved whole
                if other.key != site.key:
                    result.setdefault((name, other.key), other)
    return list(result.values())


def check_products(modules: Mapping[str, nn.Module], config: LoRAConfig, sites: Sequence[Site]) -> None:
    """Raise ConfigError where products would train on names of a tied weight that the config keeps tied."""
    for site in sites if config.ensure_weight_tying else ():
        if site.row.low_rank and len(names := tied_names(modules, site)) > 1:
            raise ConfigError(
                f"ensure_weight_tying=True: {' and '.join(names)} are one weight, and hf_lora trains no product on all "
                f"of its names at once. Leave ensure_weight_tying out (the product acts on {site.module} alone), or "
                "train it by trainable_token_indices or modules_to_save, which stay tied."
            )


def named_copies(config: LoRAConfig, sites: Sequence[Site]) -> list[str]:
    """Return modules_to_save with every name of what is one copy, as other tools need it."""
    saved = list(config.modules_to_save or ())
    shared = {site.shares for site in sites if site.row.whole} - {""}
    names = [site.module for site in sites if site.row.whole and (site.shares or site.module in shared)]
    return [*saved, *(name for name in names if not saved_modules(saved, [name]))]
