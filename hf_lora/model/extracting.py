"""An adapter of a full fine-tune: of each weight's change the best low-rank factors, what else changed in full."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..config.lora_config import LoRAConfig
from ..errors import ArgumentError, ModelError, TargetError, full_name, some
from ..formats.pairs import with_sizes
from ..kinds.kind import Kind
from ..kinds.table import kind_of, parameter_kind
from ..layers.layer import LoRALayer
from ..layers.tying import is_plain, tied_groups
from ..maths.low_rank import is_finite
from ..targets.names import as_endings, input_table, is_inside, match_names
from ..targets.presets import preset_targets
from .approximating import Approximated, Approximation, Kept, lost
from .heads import with_heads
from .lora_model import LoRAModel
from .settings import Checkpoint, settings_of
from .vocabulary import with_new_rows


def extract(base: nn.Module, tuned: nn.Module, rank: int | None = None, energy: float | None = None) -> Approximation:
    """Make an adapter on a base of what training in full changed, and return what each layer's change loses.

    base, tuned: two models of one class with the same parameters; the base becomes the LoRAModel (`.model` of the
    result), `tuned` is left as it is. rank: that of every layer; energy: instead of it, the share of each change's
    squared singular values to keep. Weights of linear layers, Conv1D, embeddings, convolutions and fused experts get
    factors. What changed besides (norms, tied tables), and what no checkpoint holds (new heads, tables that were
    resized), is saved in full, by `modules_to_save` (`.whole` of the result), biases by `bias="all"`.

    Raises ArgumentError where nothing changed, ModelError where the two are no such models, with the base unchanged.
    Warns where their configs differ.

    >>> base, tuned = (nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
    >>> _ = tuned.load_state_dict({k: v + 1 for k, v in base.state_dict().items()})
    >>> model = extract(base, tuned, rank=1).model
    >>> x = torch.randn(3, 4)
    >>> torch.allclose(model(x), tuned(x), atol=1e-5)
    True
    """
    kept = Kept(rank, energy)
    _check(base, tuned)
    modules, others = dict(base.named_modules()), dict(tuned.named_modules())
    changed = _changed(base, tuned)
    if not changed:
        raise ArgumentError("extract: the tuned model's parameters are the base's, so there is nothing to extract.")
    weights, whole, biased, tied = _sorted(base, modules, changed)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    rows = [_factored(name, *place, modules, others, kept, factors) for name, place in weights.items()]
    if not factors:
        raise ArgumentError(f"extract: no weight of a layer changed, only {some(changed)}: save those in full.")
    config = LoRAConfig(
        target_modules=as_endings([n for n in factors if n in modules], list(modules)) or None,
        target_parameters=[n for n in factors if n not in modules] or None,
        modules_to_save=as_endings(whole, list(modules)) or None,
        bias="all" if biased else "none",
        ensure_weight_tying=any(name.rpartition(".")[0] in whole for name in tied),
    )
    config = with_sizes(config, {name: (a.shape[-2], a.shape[-2]) for name, (a, _) in factors.items()})
    _warn_of_settings(base, tuned)
    sizes = {name: sum(p.numel() for p in modules[name].parameters()) for name in sorted(whole)}
    model = LoRAModel.from_model(base, config)
    _fill(model, tuned, factors)
    return Approximation(model, tuple(rows), whole=sizes)


def _check(base: nn.Module, tuned: nn.Module) -> None:
    for model in (base, tuned):
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"extract({type(model).__name__}): it takes two models, nn.Modules.")
        if any(isinstance(module, LoRALayer) for module in model.modules()):
            raise ModelError("extract: a model carries adapters; merge_and_unload() or unload() them first.")
        packed = [n for n, m in model.named_modules() if (kind := kind_of(m)) is not None and kind.is_quantised]
        if packed:
            raise ModelError(
                f"extract: {some(packed)} of a model are quantised. Load both models in float; the adapter then works "
                "on the quantised base too."
            )
    one, other = (
        {n: tuple(p.shape) for n, p in (*m.named_parameters(), *m.state_dict().items())} for m in (base, tuned)
    )
    named = [{n for n, _ in m.named_parameters()} for m in (base, tuned)]  # of tied ones the first
    odd = [n for n in {**one, **other} if one.get(n) != other.get(n) or (n in named[0]) != (n in named[1])]
    if odd:
        rows = [getattr(input_table(m), "num_embeddings", 0) for m in (base, tuned)]
        way = f" Make the vocabularies alike first: base.resize_token_embeddings({rows[1]})." * (rows[0] != rows[1])
        raise ModelError(
            f"extract: the models are not of one kind: {some(odd)} differ in shape, or in what they are tied to, or "
            f"are in one alone.{way}"
        )


def _changed(base: nn.Module, tuned: nn.Module) -> list[str]:
    """Return the names of parameters and persistent buffers that differ, of tied ones all."""
    one, other = base.state_dict(), tuned.state_dict()
    for which, values in (("base", one), ("tuned model", other)):
        if bad := [n for n, value in values.items() if value.is_floating_point() and not is_finite(value)]:
            raise ModelError(f"extract: {some(bad)} of the {which} has values that are not finite.")

    def is_same(value: Tensor, tuned_value: Tensor) -> bool:
        wide = torch.promote_types(value.dtype, tuned_value.dtype)
        return torch.equal(value.to("cpu", wide), tuned_value.to("cpu", wide))

    return [n for n, value in one.items() if not is_same(value, other[n])]


def _sorted(
    base: nn.Module, modules: Mapping[str, nn.Module], changed: Iterable[str]
) -> tuple[dict[str, tuple[str, str, Kind]], set[str], bool, set[str]]:
    """Return what gets factors (target -> module, parameter, kind), what is saved whole, if biases are, tied names."""
    weights, whole, biased = dict[str, tuple[str, str, Kind]](), set[str](), False
    tied = {name for group in tied_groups(base, {}) for name in group}
    experts = _experts(base, modules)
    for name in changed:
        module, _, parameter = name.rpartition(".")
        kind = kind_of(modules[module])
        if ".parametrizations." in name:
            raise ModelError(
                f"extract: {name} changed, which a weight is computed from (weight norm) and no adapter holds. Give "
                "the tuned model the base's, to leave that change out."
            )
        if parameter == "weight" and name not in tied and kind is not None and _is_low_rank(kind, modules[module]):
            weights[module] = module, parameter, kind
        elif parameter == "bias" and kind is not None:
            biased = True
        elif name in experts and name not in tied:
            weights[name] = (
                module,
                parameter,
                parameter_kind(modules[module], getattr(modules[module], parameter), name),
            )
        elif not module:
            raise ModelError(
                f"extract: {name} changed, a parameter of the model itself, which no adapter can name; put the part "
                "below it that is to be adapted in the models' places."
            )
        else:
            whole.add(module)
    new = with_new_rows(base, with_heads(base, LoRAConfig(target_modules=None, modules_to_save=[*whole] or None)))
    whole |= {*match_names(new.modules_to_save or (), modules)}
    whole |= set(new.trainable_token_indices) if isinstance(new.trainable_token_indices, dict) else set()
    kept = {n: place for n, place in weights.items() if not any(is_inside(place[0], outer) for outer in whole)}
    return kept, whole, biased, tied


def _is_low_rank(kind: Kind, layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    return kind.within_weight and not kind.is_quantised and weight is not None and is_plain(weight)


def _experts(base: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """Return the full names of a model's fused experts, each a stack of matrices in one parameter."""
    try:
        return {name for name in preset_targets(base, "all-linear") if name not in modules}
    except TargetError:
        return set()


def _factored(
    name: str,
    module: str,
    parameter: str,
    kind: Kind,
    modules: Mapping[str, nn.Module],
    others: Mapping[str, nn.Module],
    kept: Kept,
    factors: dict[str, tuple[Tensor, Tensor]],
) -> Approximated:
    """Note the factors of one weight's change, and return what it loses."""
    layers = modules[module], others[module]
    before, after = (kind.matrix(getattr(layer, parameter).detach()).to("cpu", torch.float64) for layer in layers)
    a, b, values = kept.split(after - before)
    factors[name] = a, b
    rank = a.shape[-2]
    return Approximated(name, values.shape[-1], rank, *lost(values, rank), before.numel(), a.numel() + b.numel())


def _warn_of_settings(base: nn.Module, tuned: nn.Module) -> None:
    """Warn where the two models' configs differ in what may change the outputs, which an adapter does not hold."""
    own = getattr(base, "config", None)
    if not isinstance(own, PreTrainedConfig) or not isinstance(getattr(tuned, "config", None), PreTrainedConfig):
        return
    notes = settings_of(tuned, Checkpoint(own, None)) or {}
    if other := [
        f"{key}={value!r} (base: {getattr(own, key, None)!r})" for key, value in notes.get("config", {}).items()
    ]:
        warnings.warn(
            f"extract: the tuned model's config has {some(other, 6)}, and the adapter computes with the base's. Give "
            "the base's from_pretrained the same, and it is noted in the adapter.",
            stacklevel=3,
        )


@torch.no_grad()
def _fill(model: LoRAModel, tuned: nn.Module, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    values = tuned.state_dict()
    adapter: Any
    for module, _, _, adapter in model._lora.carried("default"):
        name = full_name(module, adapter.parameter)
        if adapter.low_rank:
            adapter.hold(*factors[module if module in factors else name], None)
        else:
            adapter.tensors()["value"].copy_(values[name])
