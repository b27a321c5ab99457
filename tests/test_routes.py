"""Routes: which adapters act is a value of a thread or task; nobody's block, load or deletion changes another's result."""

from __future__ import annotations

import asyncio
import copy
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from hf_lora import LoRAConfig, LoRAError, LoRAModel, add_lora
from hf_lora.errors import AdapterNameError, AdapterStateError

from .cases import move
from .tiny import CLOSE, DECODER, IDS, SIZES, tiny

NAMES = ("a", "b", "c")
TARGETS = {"a": ["c_attn"], "b": ["c_attn", "c_fc"], "c": ["c_fc"]}
Want = dict[tuple[str, ...], torch.Tensor]


@torch.no_grad()
def out(model: Any) -> torch.Tensor:
    return model(IDS).logits


def several(**configs: LoRAConfig) -> LoRAModel:
    """A model with adapters that have all learnt something; the last one is selected."""
    first, *others = configs
    model = LoRAModel.from_model(tiny("gpt2"), configs[first], first)
    for name in others:
        model.add_adapter(configs[name], name)
    for name in configs:
        model.set_adapter(name)
        move(model)
    return model.eval()


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)


@pytest.fixture
def model() -> LoRAModel:
    return several(**{name: LoRAConfig(r=2, target_modules=TARGETS[name]) for name in NAMES})


@pytest.fixture
def want(model: LoRAModel) -> Want:
    """What each route gives, one after the other."""
    found = {}
    for names in ((), ("a",), ("b",), ("c",), ("a", "c")):
        model.set_adapter(list(names))
        found[names] = out(model)
    model.set_adapter("c")
    return found


# --- threads and tasks ------------------------------------------------------------------------------------------------


def test_overlapping_blocks_without_adapters_leave_them_on(model: LoRAModel, want: Want) -> None:
    async def task(begin: int, end: int) -> list[bool]:
        seen = []
        for _ in range(begin):
            await asyncio.sleep(0)
        with model.adapters_disabled():
            for _ in range(end - begin):
                await asyncio.sleep(0)
                seen.append(torch.equal(out(model), want[()]))
        return [*seen, torch.equal(out(model), want["c",])]

    async def both() -> list[list[bool]]:
        return await asyncio.gather(task(0, 3), task(1, 6), task(2, 4))

    assert all(map(all, asyncio.run(both())))
    assert torch.equal(out(model), want["c",])


@pytest.mark.parametrize("how", ["load", "add"])
def test_an_adapter_that_is_being_added_changes_no_other_threads_result(
    how: str, model: LoRAModel, want: Want, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at from another thread, in a block of its own and outside, at every tensor that is filled."""
    model.save_pretrained(tmp_path, adapter_name="a")
    seen: list[bool] = []

    def look() -> None:
        seen.append(torch.equal(out(model), want["c",]))
        with model.adapters_disabled(), model.adapters_active("a"):
            seen.append(torch.equal(out(model), want["a",]))

    def looking(function: Callable[..., object]) -> Callable[..., object]:
        def looked_at(*args: object, **kwargs: object) -> object:
            if threading.current_thread() is threading.main_thread():
                in_thread(look)
            return function(*args, **kwargs)

        return looked_at

    monkeypatch.setattr(torch.linalg, "svd", looking(torch.linalg.svd))
    monkeypatch.setattr(torch.Tensor, "contiguous", looking(torch.Tensor.contiguous))
    if how == "load":
        model.load_adapter(tmp_path, "new")
    else:
        model.add_adapter(LoRAConfig(r=2, init_lora_weights="pissa", target_modules=["c_proj", "c_attn"]), "new")
    assert seen
    assert all(seen)


def test_eight_threads_and_eight_tasks_never_see_each_other(model: LoRAModel, want: Want, tmp_path: Path) -> None:
    """Each in its own nest of blocks; others add, load and delete meanwhile; all outputs are those of a serial run."""
    model.save_pretrained(tmp_path, adapter_name="b")
    routes, wrong, errors = [r for r in want if r], [], []

    async def nest(rng: random.Random, depth: int) -> None:
        route = rng.choice([(), *routes])
        with model.adapters_active(list(route)) if route else model.adapters_disabled():
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            wrong.extend([] if torch.equal(out(model), want[route]) else [route])
            if depth:
                await nest(rng, depth - 1)
                wrong.extend([] if torch.equal(out(model), want[route]) else [route])

    async def inherits() -> None:
        await asyncio.sleep(0)
        wrong.extend([] if torch.equal(out(model), want["a",]) else ["inherited"])

    async def tasks(seed: int, count: int) -> None:
        with model.adapters_active("a"):
            await asyncio.gather(*(nest(random.Random(seed + i), 2) for i in range(count)), inherits())

    def change(rng: random.Random, name: str) -> None:
        for _ in range(6):
            if rng.random() < 0.5:
                model.load_adapter(tmp_path, name)
            else:
                targets = rng.choice([["c_attn"], ["c_proj"], ["mlp.c_fc", "wte"]])
                model.add_adapter(LoRAConfig(r=1, target_modules=targets), name)
            model.set_adapter("c")
            model.delete_adapter(name)

    def guarded(what: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                what()
            except BaseException as error:
                errors.append(error)

        return run

    work = [lambda i=i: [asyncio.run(tasks(10 * i + k, 1)) for k in range(6)] for i in range(8)]
    work += [lambda: asyncio.run(tasks(100, 8))]
    work += [lambda i=i: change(random.Random(i), f"other{i}") for i in range(3)]
    threads = [threading.Thread(target=guarded(each)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not wrong
    assert list(model.peft_config) == list(NAMES)
    assert torch.equal(out(model), want["c",])


def test_a_block_ends_for_everybody_who_took_its_route_along(model: LoRAModel, want: Want) -> None:
    """A task that outlives the block it was made in, and a generator that another task closes."""

    async def outlives(ended: asyncio.Event) -> list[bool]:
        seen = [torch.equal(out(model), want["a",])]
        await ended.wait()
        with model.adapters_active("c"):
            pass
        for block in (model.adapters_disabled(), model.adapters_active("b")):
            in_thread(block.__enter__)  # a stranger's, in a context of its own
            seen.append(torch.equal(out(model), want["c",]))
        return seen

    async def rows() -> object:
        with model.adapters_disabled():
            yield 1

    async def main() -> None:
        ended = asyncio.Event()
        with model.adapters_active("a"):
            task = asyncio.create_task(outlives(ended))
            await asyncio.sleep(0)
        ended.set()
        assert await task == [True, True, True]
        generator = rows()
        await generator.__anext__()
        await asyncio.create_task(generator.aclose())
        assert torch.equal(out(model), want["c",])
        model.disable_adapters()
        model.enable_adapters()

    asyncio.run(main())
    assert torch.equal(out(model), want["c",])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")  # Transformers 5.0 has no other
def test_a_backward_pass_that_cannot_know_the_block_is_refused_and_never_wrong(model: LoRAModel) -> None:
    """As GPUs run it: in a thread of its own, inside a block of the thread that called the forward.

    It knows the block where Transformers' own checkpointing is used, and not where somebody's own is.
    """
    model.train()
    errors: list[BaseException] = []

    def backward() -> None:
        try:
            loss.backward()
        except AdapterStateError as error:
            errors.append(error)

    def forward(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)  # of the base's own dropout
        return model(inputs_embeds=x).logits.sum()

    x = torch.randn(2, 4, 16, requires_grad=True)
    with model.adapters_disabled():
        loss = torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=True)
        in_thread(backward)
    assert [error for error in errors if "disable_adapters" in str(error)]
    x.grad = None
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with model.adapters_disabled():
        loss = forward(x)
        in_thread(backward)
    assert len(errors) == 1
    got, x.grad = x.grad, None
    model.disable_adapters()
    forward(x).backward()
    assert torch.equal(x.grad, got)


# --- blocks and switches ----------------------------------------------------------------------------------------------


def test_a_block_nests_leaves_what_is_selected_and_is_refused_where_it_means_nothing(
    model: LoRAModel, want: Want
) -> None:
    with model.adapters_active("a"):
        with model.adapters_active("b"):
            assert torch.equal(out(model), want["b",])
        assert torch.equal(out(model), want["a",])
        model.set_adapter("b")
        assert torch.equal(out(model), want["a",]), "the block's own choice stands"
        with model.adapters_disabled():
            model.disable_adapters()
            assert torch.equal(out(model), want[()])
        assert torch.equal(out(model), want["a",])
        again = copy.deepcopy(model)
    assert torch.equal(out(model), want["b",])
    assert torch.equal(out(again), want["b",])
    with pytest.raises(ZeroDivisionError), model.adapters_active("a"):
        raise ZeroDivisionError
    assert torch.equal(out(model), want["b",])
    model.disable_adapters()
    with model.adapters_active("a"):
        assert torch.equal(out(model), want["a",])
    with pytest.raises(AdapterNameError), model.adapters_active("missing"):
        pass
    with pytest.raises(AdapterStateError, match=r"eval\(\)"), model.train().adapters_active("a"):
        pass
    model.merge_adapter("a")
    with pytest.raises(AdapterStateError, match="unmerge_adapter"), model.eval().adapters_active("a"):
        pass


def _granite_speech(plus: bool) -> Any:
    text = {**DECODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "model_type": "granite"}
    sound = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "dim_head": 8, "input_dim": 8, "output_dim": 8}
    sound |= {"context_size": 20, "max_pos_emb": 64, "feedforward_mult": 2, "conv_kernel_size": 3}
    bridge = {**SIZES, "num_hidden_layers": 1, "encoder_hidden_size": 16, "model_type": "blip_2_qformer"}
    name = "GraniteSpeechPlus" if plus else "GraniteSpeech"
    config = getattr(transformers, f"{name}Config")(
        text_config=text, encoder_config=sound, projector_config=bridge, audio_token_index=47, has_lora_adapter=False
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()


@pytest.mark.parametrize("plus", [False, True], ids=["GraniteSpeech", "GraniteSpeechPlus"])
@pytest.mark.parametrize("chosen", ["on", "off", "merged"])
def test_a_model_that_switches_adapters_by_itself_leaves_the_user_s_alone(plus: bool, chosen: str) -> None:
    config = LoRAConfig(target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False)
    model = LoRAModel.from_model(_granite_speech(plus), config)
    {"on": model.enable_adapters, "off": model.disable_adapters, "merged": model.merge_adapter}[chosen]()
    seen: list[torch.Tensor] = []
    want = out(model)
    hook = model.register_forward_hook(lambda *args: seen.append(args[-1].logits[:, -1]))
    model.generate(IDS, max_new_tokens=2, do_sample=False)
    hook.remove()
    assert torch.allclose(seen[0], want[:, -1], **CLOSE)
    assert torch.equal(out(model), want)
    if chosen == "on":
        model.disable_adapters()
        assert not torch.equal(out(model), want), "the user's own switch goes on working"


def test_inside_a_block_nothing_is_merged_deleted_or_switched_off_without_a_word(model: LoRAModel, want: Want) -> None:
    refused: list[str] = []

    def elsewhere() -> None:
        for call in (
            lambda: model.merge_adapter("b"),
            model.merge_and_unload,
            lambda: model.delete_adapter(["b", "a"]),
        ):
            with pytest.raises(AdapterStateError, match="block") as error:
                call()
            refused.append(str(error.value))

    with model.adapters_active("a"):
        with pytest.raises(AdapterStateError, match="adapters_disabled"):
            model.disable_adapters()
        elsewhere()
        in_thread(elsewhere)
        assert list(model.peft_config) == list(NAMES), "all or none"
        model.delete_adapter("b")
        assert torch.equal(out(model), want["a",])
    with model.adapters_disabled(), pytest.raises(AdapterStateError, match="block"):
        model.merge_adapter("c")
    assert len(refused) == 6
    model.delete_adapter("a")
    model.merge_adapter()


@pytest.mark.parametrize("gone", [[], ["c"], [*NAMES]])
def test_adapters_stay_off_until_they_are_enabled(model: LoRAModel, want: Want, gone: list[str]) -> None:
    model.disable_adapters()
    model.delete_adapter(gone) if gone else model.set_adapter([])
    if "b" in gone:
        model.add_adapter(LoRAConfig(r=2, init_lora_weights=False), "b")
    else:
        model.set_adapter("b")
    assert torch.equal(out(model), want[()])
    model.enable_adapters()
    assert model.active_adapters() == ["b"]
    assert not torch.equal(out(model), want[()])


def test_a_name_that_is_given_twice_counts_once_and_one_name_is_not_its_letters(model: LoRAModel, want: Want) -> None:
    for give in (["a"], ("a", "a"), ["a", "a", "a"]):
        model.set_adapter(give)
        assert model.active_adapters() == ["a"]
        assert torch.equal(out(model), want["a",])
        with model.adapters_active(give):
            assert torch.equal(out(model), want["a",])
        model.merge_adapter(give)
        assert torch.allclose(out(model), want["a",], atol=1e-5)
        model.unmerge_adapter()
    model.add_adapter(LoRAConfig(r=2, init_lora_weights=False), "abc")
    live = out(model)
    model.merge_adapter("abc")
    assert torch.allclose(out(model), live, atol=1e-5)
    model.unmerge_adapter()
    with pytest.raises(AdapterNameError, match="default"):
        model.merge_adapter("default")


def test_a_compiled_model_that_is_never_routed_compiles_each_choice_once() -> None:
    torch._dynamo.reset()
    model = add_lora(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoRAConfig(r=2, target_modules=["0", "1"]), "a")
    model.add_adapter(LoRAConfig(r=2, target_modules=["0"], use_dora=True), "b")
    model.add_adapter(LoRAConfig(r=2, target_modules=["0"]), "c")
    move(model)
    graphs: list[object] = []

    def counting(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled, x = torch.compile(model, fullgraph=True, backend=counting), torch.randn(3, 4)
    choices = [["a"], ["b"], ["a", "c"], []]
    for names in choices * 3:
        model.set_adapter(names)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
    assert len(graphs) == len(choices)


# --- two on one place -------------------------------------------------------------------------------------------------

APART = {
    "another's row": LoRAConfig(r=2, trainable_token_indices=[7, 9]),
    "a copy of the table": LoRAConfig(r=2, modules_to_save=["wte"]),
    "a formula that replaces it": LoRAConfig(r=2, target_modules=["wte"], use_dora=True),
}


@pytest.mark.parametrize("other", APART.values(), ids=APART)
def test_token_rows_and_what_trains_them_as_well_are_not_active_together(other: LoRAConfig) -> None:
    rows = LoRAConfig(r=2, trainable_token_indices=[3, 7])
    model = several(rows=rows, beside=LoRAConfig(r=2, trainable_token_indices=[4, 8]), other=other)
    for names in (["rows", "other"], ["other", "rows"], ["rows", "beside", "other"]):
        for call in (model.set_adapter, model.merge_adapter, model.merge_and_unload):
            with pytest.raises(AdapterStateError, match="Tokens"):
                call(names)
        with pytest.raises(AdapterStateError, match="Tokens"), model.adapters_active(names):
            pass
    model.set_adapter(["rows", "beside"])
    both = out(model)
    model.set_adapter(["beside", "rows"])
    assert torch.allclose(out(model), both, atol=1e-6)


# --- devices ----------------------------------------------------------------------------------------------------------


class Halved(nn.Linear):
    """A linear layer with a forward of its own, which makes a tensor on the default device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * torch.tensor(0.5)


def _net() -> nn.Module:
    torch.manual_seed(0)
    with torch.device("cpu"):
        return nn.Sequential(nn.Linear(6, 6), Halved(6, 6), nn.Embedding(6, 6))


CHANGES = {
    "own forward": {"target_modules": ["1"], "lora_dropout": 0.1},
    "embedding": {"target_modules": ["2"]},
    "pissa": {"target_modules": ["0"], "init_lora_weights": "pissa", "lora_dropout": 0.3},
    "dora": {"target_modules": ["0"], "use_dora": True},
    "saved and rows": {"target_modules": ["0"], "modules_to_save": ["1"], "trainable_token_indices": {"2": [1, 3]}},
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_default_device_is_none_of_our_business(case: str, tmp_path: Path) -> None:
    config, x = LoRAConfig(r=2, **CHANGES[case]), torch.randn(3, 6)
    torch.manual_seed(1)
    plain = add_lora(_net(), config)
    move(plain)
    plain.save_pretrained(tmp_path / "plain")
    with torch.device("meta"):
        net = _net()
        torch.manual_seed(1)
        model = add_lora(net, config)
        assert not [n for n, p in model.named_parameters() if p.is_meta]
        model.save_pretrained(tmp_path / "new")
        again = LoRAModel.from_pretrained(tmp_path / "plain", base_model=_net())
        assert again._lora.layers.keys() == plain._lora.layers.keys()
        again.load_weights(tmp_path / "plain")
        again.merge_report()
        again.merge_adapter()
        again.unmerge_adapter()
        again.save_pretrained(tmp_path / "again")
        if case in ("pissa", "dora"):
            model[0].train()(torch.randn(4, 6, device="cpu")).sum().backward()
            assert model[0].adapters.default.weight.lora_B.grad.any()
    assert {type(m) for m in model.modules()} == {type(m) for m in plain.modules()}, "the same mechanism"
    with torch.no_grad():
        assert torch.equal(again[:2].eval()(x), plain[:2].eval()(x))
    written = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("plain", "again")]
    assert written[0] == written[1]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_of_one_folder_the_newest_save_is_loaded(model: LoRAModel, want: Want, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, adapter_name="a")
    model.save_pretrained(tmp_path)
    with pytest.raises(LoRAError, match="subfolder"):
        LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"))
    assert torch.equal(out(LoRAModel.from_pretrained(tmp_path / "b", base_model=tiny("gpt2"))), want["b",])
    model.delete_adapter(["b", "c"])
    model.set_adapter("a")
    move(model)
    newest = out(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(out(LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"))), newest)
    move(model)
    model.load_weights(tmp_path)
    assert torch.equal(out(model), newest)


def test_the_default_adapter_lies_at_the_top_and_another_one_in_its_folder(tmp_path: Path) -> None:
    model = several(default=LoRAConfig(r=2), a=LoRAConfig(r=2))
    live = out(model)
    model.save_pretrained(tmp_path)
    alone = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2), "a")
    alone.load_weights(tmp_path)
    assert torch.equal(out(alone), live)
    model.set_adapter("default")
    assert torch.equal(out(LoRAModel.from_pretrained(tmp_path, base_model=tiny("gpt2"))), out(model))


# --- half-way ---------------------------------------------------------------------------------------------------------

RAW = sorted({*dir(nn.ModuleDict)} - {*dir(nn.Module())})
INSIDE = {"_lora", "_steps", "_originals", "_watch"}


class Raw(nn.Module):
    """A module with raw parameters that are called what methods of torch's containers are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in RAW:
            setattr(self, name, nn.Parameter(torch.randn(4, 4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in RAW:
            x = torch.tanh(x @ getattr(self, name).T)
        return x


def test_a_raw_parameter_may_be_called_what_a_method_of_a_container_is(tmp_path: Path) -> None:
    assert {"keys", "values", "items", "pop", "update"} <= {*RAW}
    x, names = torch.randn(3, 4), [name for name in RAW if not name.startswith("_")]
    model = add_lora(nn.Sequential(Raw()), LoRAConfig(r=2, target_parameters=[f"0.{name}" for name in names]))
    move(model)
    model.save_pretrained(tmp_path)
    live = model(x)
    assert torch.equal(LoRAModel.from_pretrained(tmp_path, base_model=nn.Sequential(Raw()))(x), live)
    assert torch.allclose(model.merge_and_unload()(x), live, atol=1e-5)


def test_an_attach_that_fails_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from .peek import attaching

    model = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2))
    classes, keys, attach, count = [type(m) for m in model.modules()], [*model.state_dict()], attaching.attach, [0]

    def failing(*args: object) -> object:
        count[0] += 1
        if count[0] == 2:
            raise MemoryError
        return attach(*args)

    monkeypatch.setattr(attaching, "attach", failing)
    with pytest.raises(MemoryError):
        model.add_adapter(LoRAConfig(r=2, target_modules=["c_attn", "c_fc"]), "b")
    assert [type(m) for m in model.modules()] == classes
    assert [*model.state_dict()] == keys
    assert list(model.peft_config) == model.active_adapters() == ["default"]
    count[0], base = 1, tiny("gpt2")
    with pytest.raises(MemoryError):
        LoRAModel.from_model(base, LoRAConfig(r=2))
    assert type(base) is type(tiny("gpt2"))


class Picky(nn.Linear):
    """A linear layer whose class cannot be refined as others are."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        raise TypeError("no subclasses")


def test_a_layer_that_cannot_be_specialised_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Picky(4, 4))
    before = [{**m.__dict__, "_modules": dict(m._modules)} for m in net]
    with pytest.raises(TypeError, match="subclasses"):
        add_lora(net, LoRAConfig(r=2, target_modules=["0", "1"]))
    assert [{**m.__dict__, "_modules": dict(m._modules)} for m in net] == before
    for name in ("adapters", *sorted(INSIDE)):
        raw = nn.Module()
        raw.register_parameter(name, nn.Parameter(torch.randn(4, 4)))
        with pytest.raises(LoRAError, match=name):
            add_lora(nn.Sequential(raw), LoRAConfig(r=2, target_parameters=[f"0.{name}"]))
        assert type(raw) is nn.Module
        assert not INSIDE & raw.__dict__.keys()


def test_a_model_that_is_a_layer_itself_gets_and_loses_adapters() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.bias = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + self.bias

    x, net = torch.randn(3, 4), Shifted()
    plain = net(x)
    config = LoRAConfig(r=2, target_modules=["fc"], bias="all", init_lora_weights=False)
    model = LoRAModel.from_model(net, config, "a")
    assert "adapters" in model._modules, "it is no layer with adapters itself"
    assert not torch.equal(model(x), plain)
    model.delete_adapter("a")
    assert torch.equal(model(x), plain)
    assert isinstance(model, LoRAModel)
    model.add_adapter(config, "b")
    with model.adapters_disabled():
        assert torch.equal(model(x), plain)
    assert type(model.unload()) is Shifted
    assert torch.equal(net(x), plain)
    assert not INSIDE & net.__dict__.keys()
