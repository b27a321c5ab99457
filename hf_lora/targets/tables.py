"""Where trained token rows go: the tables that a config names, and every layer tied to one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from ..config.lora_config import LoRAConfig
from ..errors import ConfigError, TargetError, full_name
from ..variants.adapter import own_tensor
from ..variants.table import TOKENS
from .names import input_table, is_saved, match_names
from .site import Site


def token_sites(model: nn.Module, config: LoRAConfig, modules: Mapping[str, nn.Module]) -> list[Site]:
    """Return the sites of trained token rows: the tables named, and every layer tied to one of them."""
    wanted = config.trainable_token_indices
    if not wanted:
        return []
    by_name = wanted if isinstance(wanted, Mapping) else {_input_embeddings(model, modules): wanted}
    by_name = {name: rows for name, rows in by_name.items() if rows}
    tables: dict[int, list[str]] = {}  # of each table that is named, the modules that it is named by
    for ending in by_name:
        names = [n for n in match_names([ending], modules) if isinstance(modules[n], nn.Embedding | nn.Linear)]
        if not names:
            raise TargetError(
                f"trainable_token_indices names {ending!r}, which ends the name of no embedding and no output layer."
            )
        for name in names:
            if own_tensor(modules[name], "weight") is None:
                raise TargetError(
                    f"trainable_token_indices names {name}, whose weight is computed from other tensors (pruned, "
                    "normalised or parametrised): make it permanent first (prune.remove or the like of torch.nn.utils)."
                )
            tables.setdefault(id(modules[name]._parameters["weight"]), []).append(name)
    return [site for names in tables.values() for site in _sites_of_table(modules, config, by_name, names)]


def _sites_of_table(
    modules: Mapping[str, nn.Module], config: LoRAConfig, by_name: Mapping[str, Sequence[int]], names: list[str]
) -> list[Site]:
    """Return the sites of one table's trained rows. Raises ConfigError where they are not one list of its rows."""
    endings = [ending for ending in by_name if match_names([ending], names)]
    if len({frozenset(by_name[ending]) for ending in endings}) > 1:
        raise ConfigError(
            f"trainable_token_indices names one table by {', '.join(map(repr, endings))}, each with other rows; name "
            "it once, with every row that is to train."
        )
    if saved := [n for n in names if is_saved(config, n)]:
        raise ConfigError(
            f"trainable_token_indices and modules_to_save both name {saved[0]}, whose rows train already where it is "
            "saved whole; name it in one of them."
        )
    table, rows = modules[names[0]]._parameters["weight"], rows_of(by_name, names[0])
    assert table is not None
    tied = [n for n, m in modules.items() if m._parameters.get("weight") is table and not is_saved(config, n)]
    embeddings = [n for n in [*names, *tied] if isinstance(modules[n], nn.Embedding)]
    owner = next((n for n in tied if modules[n] is input_table(modules[""])), (*embeddings, names[0])[0])  # as in PEFT
    if bad := [i for i in rows if not 0 <= i < table.shape[0]]:
        raise ConfigError(f"trainable_token_indices {bad} are outside {owner}'s {table.shape[0]} rows.")
    site = Site("weight", TOKENS.name, module=owner, rows=rows)
    return [site, *tied_sites(modules, site, config)]


def rows_of(by_name: Mapping[str, Sequence[int]], module: str) -> tuple[int, ...]:
    """Return the rows that trainable_token_indices names for a module, each once."""
    rows = next((rows for ending, rows in by_name.items() if match_names([ending], [module])), ())
    return tuple(dict.fromkeys(int(row) for row in rows))


def _input_embeddings(model: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    table = input_table(model)
    name = next((n for n, m in modules.items() if m is table), None)
    if name is None:
        raise ConfigError(
            "trainable_token_indices is a list, but the model does not say which table its tokens are in; "
            'write {"name.of.the.embedding": [...]}.'
        )
    return name


def tied_sites(modules: Mapping[str, nn.Module], site: Site, config: LoRAConfig) -> list[Site]:
    """Return the sites of the layers tied to a table whose rows train: they share its adapter.

    A layer that the config saves whole has all of its rows in a table of its own.
    """
    table = modules[site.module]._parameters["weight"]
    tied = [n for n, m in modules.items() if m._parameters.get("weight") is table and n != site.module]
    if table is not None and table.is_meta:  # offloaded: accelerate makes tied weights anew, each for itself
        tied = list(dict.fromkeys([*tied, *_said_to_be_tied(modules, site.module)]))
    names = [n for n in tied if not is_saved(config, n)]
    return [replace(site, module=n, shares=site.module) for n in names]


def _said_to_be_tied(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """Return the modules whose weight is a module's, by what the model says of itself."""
    keys: Mapping[str, str] = getattr(modules[""], "all_tied_weights_keys", None) or {}
    own = full_name(name, "weight")
    same = {own, keys.get(own, own)}
    same |= {key for pair in keys.items() if same.intersection(pair) for key in pair}
    return [n for n in modules if n != name and full_name(n, "weight") in same]
