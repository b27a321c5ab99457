"""Where an adapter comes from: the base it was trained on, noted in its file and checked when it is loaded.

Names say little (mirrors, local copies, revisions that move), so that only the weights decide: see `fingerprint`.
Of a quantised base those decide that stay in float, its tables and norms, which its float form has as well.
A base none of whose weights can be read where they are (offloaded, sharded) is not checked.
"""

import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import huggingface_hub
import torch
from torch import Tensor, nn
from transformers.utils import logging

from .._version import __version__
from ..config.lora_config import LoRAConfig
from ..errors import BaseMismatchError
from ..files.privacy import hub_id
from ..formats.notes import FLOATS, FORMAT, read_base_note
from ..kinds.quantised import QuantisedKind
from ..kinds.table import kind_of
from ..layers.layer import base_modules
from ..layers.specialising import base_of
from ..layers.state import AdapterState
from ..layers.tying import is_plain
from ..maths import fingerprint as fp
from ..variants.adapter import Adapter, own_tensor
from ..variants.initial import INITS
from ..variants.table import SAVED, formula_of

logger = logging.get_logger(__name__)
_START, _SEEDED = "start", "seeded"
_REDRAWN = 1e-3  # of the product at birth: the adapter's own effect may be as small as a hundredth of it
_ROWS, _TABLES, _NORMS = 8192, 4, 12  # rows of a table, tables and norms that are looked at
_MOST = 1024  # weights that are looked at: a mixture of single experts has tens of thousands

Weights = Iterable[tuple[str, str]]  # (module, parameter)


def observe(modules: Mapping[str, nn.Module], weights: Weights, packed: bool = False) -> fp.Fingerprint:
    """Return the fingerprint of the base's own values of some adapted weights, in the order of their names.

    packed: quantised ones are read as well, for an adapter that took its start out of what they stand for. Any other
    adapter may be used on the same base in float.
    """
    return fp.fingerprint([_readable(modules[module], parameter, packed) for module, parameter in _chosen(weights)])


def observe_floats(model: nn.Module, saved: Collection[str]) -> tuple[fp.Fingerprint, str]:
    """Return the fingerprint of what quantising a base leaves in float, and a checksum of the names.

    These are tables and norms of the model without its head, by their names there. saved: the modules of which the
    adapter holds a copy, since the base's own may be new and random.
    """
    trunk = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    trunk = trunk if isinstance(trunk, nn.Module) else model
    skipped = {id(module) for name, module in base_modules(model) if name in saved}
    tables, norms = dict[str, Tensor | None](), dict[str, Tensor | None]()
    for name, module in base_modules(trunk):
        kind, own = kind_of(module), own_tensor(module, "weight")
        if own is None or id(module) in skipped:
            continue
        if kind is None:
            norms[name] = _plain(own)
        elif kind.embeds:
            # The first rows alone: the last ones may be new, and the table resized.
            tables[name] = None if (table := _plain(own)) is None else table[: min(len(table), _ROWS) // 2]
    chosen = dict(sorted(tables.items())[:_TABLES])
    chosen |= dict(sorted(norms.items())[:: -(-len(norms) // _NORMS) or 1])
    return fp.fingerprint(list(chosen.values())), f"{zlib.crc32(' '.join(chosen).encode()):08x}"


def check(
    note: object,
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    weights: Weights,
    saved: Collection[str] = (),
) -> None:
    """Raise BaseMismatchError where a model's weights are not those that an adapter's note tells of.

    note: the one of its file, if it has one; one of a later format is not checked. saved: the modules of which the
    adapter holds a copy. Raises AdapterFileError where the note is damaged.
    """
    found = read_base_note(note)
    if found is None:
        return
    known, theirs, floats = found
    weights = list(weights)
    # A class that names its layers otherwise may sort them otherwise.
    in_order = known.get("names") == _names(weights)
    took = known.get(_START) is not None
    differ = None if theirs is None else fp.differ(observe(modules, weights, took), theirs, in_order=in_order)
    if differ is None and floats is not None:
        mine, names = observe_floats(model, saved)
        differ = fp.differ(mine, floats) if known[FLOATS].get("names") == names else None
    if differ is None:
        logger.info("The base was not checked: its weights cannot be read here, or are others by number.")
    if differ:
        wanted, commit = known.get("id"), known.get("commit") or known.get("revision")
        load = f"base_model={wanted!r}" + (f", revision={commit!r}" if commit else "") if wanted else "base_model=..."
        was, now = _described(known), _described(_identity(model))
        apart = f"on {was}; this is {now}" if was != now else f"on {was} that is another, or was changed before"
        raise BaseMismatchError(
            f"the adapter fits {type(model).__name__}, but was trained on other weights: {apart}. Load the base it was "
            f"trained on ({load}), or pass check_base=False to use it on this one all the same."
        )


def knows_start(note: object) -> bool:
    """Return whether a file's note says that what its adapter took out of the base is the same whenever it is drawn."""
    return isinstance(note, Mapping) and note.get(_START) == _SEEDED


def check_start(redrawn: float, layer: str) -> None:
    """Raise BaseMismatchError where what an adapter took out of a layer's weight cannot be found again.

    redrawn: the share by which other random numbers would change it.
    """
    if redrawn > _REDRAWN:
        raise BaseMismatchError(
            f"{layer}: the adapter started from a randomised SVD of the base, whose random numbers its file does not "
            f"hold; drawn anew it is {redrawn:.1%} off, and so would the outputs be (PEFT loads it so without a word). "
            "Ask for a plain LoRA adapter, which PEFT writes where it was trained: save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...); or pass check_base=False to use it all the same."
        )


def check_taken(adapter: Adapter, values: Mapping[str, Tensor], layer: str, checks: bool = True) -> dict[str, Tensor]:
    """Return a file's tensors without those that tell what its adapter took out of the base.

    adapter: has taken its own. Raises BaseMismatchError where the two differ, unless told not to check.
    """
    told = {n: t for n, t in values.items() if adapter.row.stored[n].of_base and not getattr(adapter, n).is_meta}
    for name, theirs in told.items() if checks else ():
        own, theirs = (t.detach().to("cpu", torch.float64) for t in (getattr(adapter, name), theirs))
        apart = float(((own - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-30)).max())
        if not apart <= _REDRAWN:
            raise BaseMismatchError(
                f"{layer}: the adapter ({adapter.row.title}) is built on factors of the base's weight, which its file "
                f"does not hold; those of this base are others, by {apart:.1%}. Load the base it was trained on, in "
                "the dtype of then; singular values that lie too close for any machine to tell apart do the same. "
                "check_base=False uses it on the factors that are here, which computes something else."
            )
    return {name: tensor for name, tensor in values.items() if not adapter.row.stored[name].of_base}


def note_of(model: nn.Module, state: AdapterState, name: str, config: LoRAConfig | None = None) -> dict[str, Any]:
    """Return what an adapter's file says of its base, as JSON; empty where that is not known.

    Of a trained adapter that is the base as it is now, for a loaded one what its own file said.
    config: as it is written, the adapter's own unless given.
    """
    origin = state.records[name].origin
    if origin.note is not None:
        return dict(origin.note)
    weights = adapted(state, name)
    took = any(each.adapter.is_computed_again for each in state.carried(name))
    found = observe(state.layers, weights, took)
    if origin.seen is not None and origin.seen.read > found.read and len(origin.seen.grids) == len(found.grids):
        found = origin.seen
    note: dict[str, Any] = {"format": FORMAT, "hf_lora": __version__, **_identity(model)}
    written = config or state.configs[name]
    if took:
        note[_START] = _SEEDED
        if origin.seen is not None and fp.differ(found, origin.seen):
            raise BaseMismatchError(
                f"the base's weights are not those that the adapter {name!r} took its factors out of "
                f"({_taken_by(state.configs[name])}): its file would come back as another "
                "adapter. Load the base's weights before the adapter is added; merge_and_unload() keeps what it learnt."
            )
    note |= {"id": hub_id(written.base_model_name_or_path), "revision": written.revision}
    if found.read:
        note |= {"fingerprint": fp.encode(found), "names": _names(weights)}
    if origin.floats is not None:
        copied = {module for module, _, _, adapter in state.carried(name) if adapter.role == SAVED.name}
        now, then = observe_floats(model, copied), origin.floats
        floats, names = now if now[1] == then[1] and now[0].read >= then[0].read else then
        note[FLOATS] = {**fp.encode(floats), "names": names}
    return {key: value for key, value in note.items() if value is not None}


def _taken_by(config: LoRAConfig) -> str:
    init, row = config.init_lora_weights, formula_of(config)
    return f"init_lora_weights={init!r}" if INITS[init].moves_base else f"{row.switch}=True"


def adapted(state: AdapterState, name: str) -> list[tuple[str, str]]:
    """Return (module, parameter) of every weight that the adapter of a name adds a product to."""
    return sorted({(module, adapter.parameter) for module, _, _, adapter in state.carried(name) if adapter.low_rank})


def commit_of(name: str, kwargs: Mapping[str, Any]) -> str | None:
    """Return the commit of a base that was just loaded from the Hub, as the cache has it; None where it is not known.

    kwargs: those it was loaded with. Nothing is asked of the Hub.
    """
    if hub_id(name) is None:
        return None
    file = "/".join(filter(None, (kwargs.get("subfolder"), "config.json")))
    try:
        found = huggingface_hub.try_to_load_from_cache(
            name, file, revision=kwargs.get("revision"), cache_dir=kwargs.get("cache_dir")
        )
    except ValueError:  # the name, or the revision, is not one
        return None
    commit = re.search(r"[\\/]snapshots[\\/]([0-9a-f]{40})[\\/]", found) if isinstance(found, str) else None
    return commit[1] if commit else None


def _identity(model: nn.Module) -> dict[str, Any]:
    """Return id, commit, class and model type of a base, None where it has none."""
    config = getattr(model, "config", None)
    commit = getattr(model, "_lora", None) and model._lora.commit  # type: ignore[union-attr]
    return {
        "id": hub_id(getattr(model, "name_or_path", None)),
        "commit": commit or getattr(config, "_commit_hash", None),
        "class": base_of(type(model)).__name__,
        "model_type": getattr(config, "model_type", None) or None,
    }


def _described(known: Mapping[str, Any]) -> str:
    name = known.get("id") or f"a local {known.get('class') or 'model'}"
    at = known.get("commit") or known.get("revision")
    return f"{name} at {str(at)[:12]}" if at else str(name)


def _chosen(weights: Weights) -> list[tuple[str, str]]:
    """Return the weights that are looked at: all of them in the order of their names, or a share spread over them."""
    every = sorted(set(weights))
    return every[:: -(-len(every) // _MOST)] if every else []


def _names(weights: Weights) -> str:
    """Return a checksum of the weights' names: where it is the same, so is their order."""
    return f"{zlib.crc32(' '.join('.'.join(w) for w in _chosen(weights)).encode()):08x}"


def _readable(layer: nn.Module, parameter: str, packed: bool) -> Tensor | None:
    """Return a base's own weight where all its numbers can be looked at here."""
    # FSDP1 and DeepSpeed leave a flat piece of it, or nothing, under the same name.
    # What is packed is rounded: a forward of bitsandbytes on a CPU rounds its scales to bfloat16, in place.
    own, kind = own_tensor(layer, parameter), kind_of(layer)
    if own is not None and packed and parameter == "weight" and isinstance(kind, QuantisedKind) and not own.is_meta:
        return kind.numbers(layer, own).to(torch.bfloat16)
    return None if own is None or own.ndim < 2 else _plain(own)


def _plain(own: Tensor) -> Tensor | None:
    readable = is_plain(own) and not own.is_meta and own.is_floating_point() and own.element_size() > 1
    return own if readable else None
