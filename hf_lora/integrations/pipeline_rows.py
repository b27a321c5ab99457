"""`pipe(texts, adapter_names=[...])`: the pipeline of a LoRAModel, in which each item is answered by its own adapter.

An item takes its adapter along: through `preprocess`, which may make several rows of it, through workers and batches,
to `forward`, where the rows of a batch are told theirs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..errors import AdapterStateError, ArgumentError
from ..layers.specialising import Specialised, plain, refine
from ..model.by_row import Given, block, check
from .trained_model import is_lora

_KEY = "adapter_names"
_WHAT = "pipe(adapter_names=)"


class _Item(NamedTuple):
    """What a pipeline was given, or nothing any more, and the entry of `adapter_names` that is for it."""

    given: Any
    entry: Any


class _Stream:
    """Items of which nobody knows how many come, each with its entry."""

    def __init__(self, items: Any, names: Given) -> None:
        self.items, self.names = items, names

    def __iter__(self) -> Iterator[_Item]:
        count = 0
        for count, item in enumerate(self.items, 1):
            if count > len(self.names):
                raise ArgumentError(f"{_WHAT}: {len(self.names)} entries are given, and more items came.")
            yield _Item(item, self.names[count - 1])
        _check_count(self.names, count)


class _List(_Stream):
    """Items that are counted, each with its entry."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _Item:
        return _Item(self.items[index], self.names[index])


class LoRAPipeline(Specialised):
    """What the pipeline of a LoRAModel does besides. Each method takes what Transformers' does.

    None says super(): a pipeline's class begins with `abc.ABC`, so it comes before this one.
    """

    model: Any

    def _sanitize_parameters(self, adapter_names: Any = None, **kwargs: Any) -> tuple[dict[str, Any], ...]:
        """Take `adapter_names` out of a call; check it before anything computes."""
        before, forward, after = _stock(self)._sanitize_parameters(self, **kwargs)
        if adapter_names is not None:
            if not is_lora(self.model):
                raise AdapterStateError(f"{_WHAT}: the model of this pipeline has no adapters any more.")
            check(self.model, adapter_names, _WHAT)
            forward = {**forward, _KEY: adapter_names}
        return before, forward, after

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, before: Any, forward: Any, after: Any
    ) -> Any:
        """Give each item its entry."""
        names, forward = _taken(forward)
        if names is not None and hasattr(inputs, "__len__"):
            _check_count(names, len(inputs))
            inputs = _List(inputs, names)
        elif names is not None:
            inputs = _Stream(inputs, names)
        return _stock(self).get_iterator(self, inputs, num_workers, batch_size, before, forward, after)

    def run_single(self, inputs: Any, before: Any, forward: Any, after: Any) -> Any:
        """Answer the one item that is given."""
        names, forward = _taken(forward)
        if names is not None:
            _check_count(names, 1)
            inputs = _Item(inputs, names[0])
        return _stock(self).run_single(self, inputs, before, forward, after)

    def preprocess(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Have all that is made of an item carry its entry."""
        if not isinstance(inputs, _Item):
            return _stock(self).preprocess(self, inputs, *args, **kwargs)
        made = _stock(self).preprocess(self, inputs.given, *args, **kwargs)
        return (_carrying(each, inputs) for each in made) if isinstance(made, Iterator) else _carrying(made, inputs)

    def forward(self, model_inputs: Any, **kwargs: Any) -> Any:
        """Compute each row of a batch with its adapter."""
        if not hasattr(model_inputs, "keys") or _KEY not in model_inputs:
            return _stock(self).forward(self, model_inputs, **kwargs)
        carried = model_inputs.pop(_KEY)
        entries = [each.entry for each in (carried if isinstance(carried, list) else [carried])]
        is_one = all(entry == entries[0] for entry in entries)  # it answers whatever the batch is made of
        with torch.no_grad(), block(self.model, None, entries[:1] if is_one else entries, whole=is_one):
            try:
                return _stock(self).forward(self, model_inputs, **kwargs)
            except AdapterStateError as error:
                if is_one:
                    raise
                where = f"{_WHAT}: a batch of {len(entries)} items"
                raise AdapterStateError(f"{where}: {error} Or use batch_size=1.") from error


def specialise(pipe: Any) -> None:
    """Make a pipeline that of a LoRAModel."""
    refine(pipe, LoRAPipeline)


def _stock(pipe: Any) -> Any:
    """Return the class that a pipeline is of without ours, whose methods ours call."""
    return plain(type(pipe))


def _taken(parameters: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    return parameters.get(_KEY), {key: value for key, value in parameters.items() if key != _KEY}


def _check_count(names: Sequence[object], count: int) -> None:
    if len(names) != count:
        raise ArgumentError(f"{_WHAT}: {len(names)} entries are given for {count} items; each item has one.")


def _carrying(made: Any, item: _Item) -> Any:
    """Return what preprocessing made of an item, with the item's entry."""
    if not hasattr(made, "keys"):
        raise AdapterStateError(
            f"{_WHAT}: this pipeline's preprocess makes a {type(made).__name__}, which cannot carry an adapter's name. "
            "Call it once for each adapter, in `with pipe.model.adapters_active(name):`."
        )
    made[_KEY] = _Item(None, item.entry)
    return made
