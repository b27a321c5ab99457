"""Routes: which adapters act is a value of a thread or task; nobody's block, load or deletion changes another's result."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_lora import LoRAConfig, LoRAError, LoRAModel, add_lora
from hf_lora.errors import AdapterNameError, AdapterStateError

from .cases import move
from .test_front import gpt2

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
NAMES = ("a", "b", "c")
TARGETS = {"a": ["c_attn"], "b": ["c_attn", "c_fc"], "c": ["c_fc"]}


@torch.no_grad()
def out(model: nn.Module) -> torch.Tensor:
    return model(IDS).logits


@pytest.fixture
def model() -> LoRAModel:
    """A model with adapters a, b, c, of which c is selected."""
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2, target_modules=TARGETS["a"]), "a")
    for name in NAMES[1:]:
        model.add_adapter(LoRAConfig(r=2, target_modules=TARGETS[name]), name)
    for name in NAMES:
        model.set_adapter(name)
        move(model)
    return model.eval()


@pytest.fixture
def want(model: LoRAModel) -> dict[tuple[str, ...], torch.Tensor]:
    """What each route gives, one after the other."""
    found = {}
    for names in ((), ("a",), ("b",), ("c",), ("a", "c")):
        model.set_adapter(list(names))
        found[names] = out(model)
    model.set_adapter("c")
    return found


def test_overlapping_blocks_without_adapters_leave_them_on(model: LoRAModel, want: dict) -> None:
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


def test_threads_that_overlap_in_blocks_without_adapters_leave_them_on(model: LoRAModel, want: dict) -> None:
    first, second, seen = threading.Event(), threading.Event(), []

    def one() -> None:
        with model.adapters_disabled():
            first.set()
            second.wait()

    def two() -> None:
        first.wait()
        with model.adapters_disabled():
            second.set()
            threads[0].join()
            seen.append(torch.equal(out(model), want[()]))

    threads = [threading.Thread(target=one), threading.Thread(target=two)]
    for thread in threads:
        thread.start()
    assert torch.equal(out(model), want["c",]), "nobody's block is this thread's"
    for thread in threads:
        thread.join()
    assert seen == [True]
    assert torch.equal(out(model), want["c",])


def test_tasks_of_one_block_have_routes_of_their_own(model: LoRAModel, want: dict) -> None:
    async def off() -> None:
        with model.adapters_disabled():
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def on() -> bool:
        await asyncio.sleep(0)
        return torch.equal(out(model), want["a",])

    async def main() -> list[object]:
        with model.adapters_active("a"):
            return await asyncio.gather(off(), on(), off(), on())

    assert asyncio.run(main()) == [None, True, None, True]


@pytest.mark.parametrize("how", ["load", "add"])
def test_an_adapter_that_is_being_added_changes_no_other_threads_result(
    how: str, model: LoRAModel, want: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at from another thread at every tensor that is filled."""
    model.save_pretrained(tmp_path, adapter_name="a")
    seen: list[bool] = []

    def look(function: Callable[..., object]) -> Callable[..., object]:
        def looking(*args: object, **kwargs: object) -> object:
            if threading.current_thread() is not threading.main_thread():  # one that looks
                return function(*args, **kwargs)
            thread = threading.Thread(target=lambda: seen.append(torch.equal(out(model), want["c",])))
            thread.start()
            thread.join()
            return function(*args, **kwargs)

        return looking

    config = LoRAConfig(r=2, init_lora_weights="pissa", target_modules=["c_proj", "c_attn"])
    monkeypatch.setattr(torch.linalg, "svd", look(torch.linalg.svd))
    monkeypatch.setattr(torch.Tensor, "contiguous", look(torch.Tensor.contiguous))
    if how == "load":
        model.load_adapter(tmp_path, "new")
    else:
        model.add_adapter(config, "new")
    assert seen
    assert all(seen)


def test_eight_threads_and_eight_tasks_never_see_each_other(model: LoRAModel, want: dict, tmp_path: Path) -> None:
    """Each in its own nest of blocks; others add, load and delete meanwhile; all outputs are those of a serial run."""
    model.save_pretrained(tmp_path, adapter_name="b")
    routes, wrong, errors = [r for r in want if r], [], []

    def nest(rng: random.Random, depth: int) -> None:
        route = rng.choice([(), *routes])
        with model.adapters_active(list(route)) if route else model.adapters_disabled():
            if not torch.equal(out(model), want[route]):
                wrong.append(route)
            if depth:
                nest(rng, depth - 1)
                if not torch.equal(out(model), want[route]):
                    wrong.append(route)

    async def nest_slowly(rng: random.Random, depth: int) -> None:
        route = rng.choice([(), *routes])
        with model.adapters_active(list(route)) if route else model.adapters_disabled():
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            if not torch.equal(out(model), want[route]):
                wrong.append(route)
            if depth:
                await nest_slowly(rng, depth - 1)

    def change(rng: random.Random, name: str) -> None:
        if rng.random() < 0.5:
            model.load_adapter(tmp_path, name)
        else:
            config = LoRAConfig(r=1, target_modules=rng.choice([["c_attn"], ["c_proj"], ["mlp.c_fc", "wte"]]))
            model.add_adapter(config, name)
        model.set_adapter("c")
        model.delete_adapter(name)

    def guarded(what: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                what()
            except BaseException as error:
                errors.append(error)

        return run

    async def tasks() -> None:
        await asyncio.gather(*(nest_slowly(random.Random(100 + i), 2) for i in range(8) for _ in range(4)))

    work = [lambda i=i: [nest(random.Random(10 * i + k), 2) for k in range(6)] for i in range(8)]
    work += [lambda: asyncio.run(tasks())]
    work += [lambda i=i: [change(random.Random(i), f"other{i}") for _ in range(6)] for i in range(3)]
    threads = [threading.Thread(target=guarded(each)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not wrong
    assert list(model.peft_config) == list(NAMES)
    assert torch.equal(out(model), want["c",])


def test_one_that_is_merged_or_deleted_while_blocks_run_is_refused(model: LoRAModel, want: dict) -> None:
    for block in (lambda: model.adapters_active("a"), model.adapters_disabled):
        with block():
            with pytest.raises(AdapterStateError, match="block"):
                model.merge_adapter("b")
            with pytest.raises(AdapterStateError, match="block"):
                model.merge_and_unload()
    with model.adapters_active("a"):
        with pytest.raises(AdapterStateError, match="block"):
            model.delete_adapter(["b", "a"])
        assert list(model.peft_config) == list(NAMES), "all or none"
        model.delete_adapter("b")
        assert torch.equal(out(model), want["a",])


@pytest.mark.parametrize("give", [["a"], ("a", "a"), ["a", "a", "a"]])
def test_a_name_that_is_given_twice_counts_once(model: LoRAModel, want: dict, give: list[str]) -> None:
    model.set_adapter(give)
    assert model.active_adapters() == ["a"]
    assert torch.equal(out(model), want["a",])
    model.set_adapter("c")
    with model.adapters_active(give):
        assert torch.equal(out(model), want["a",])
    model.merge_adapter(give)
    once = out(model)
    model.unmerge_adapter()
    model.merge_adapter(["a"])
    assert torch.equal(once, out(model))


def test_one_name_is_a_name_and_not_its_letters(model: LoRAModel, want: dict) -> None:
    model.add_adapter(LoRAConfig(r=2), "abc")
    model.set_adapter("abc")
    move(model)
    live = out(model)
    assert model.merge_report("abc").losses.keys() == model.merge_report(["abc"]).losses.keys()
    model.merge_adapter("abc")
    assert torch.allclose(out(model), live, atol=1e-5)
    assert not torch.allclose(out(model), want["a",], atol=1e-3)
    model.unmerge_adapter()
    with pytest.raises(AdapterNameError, match="default"):
        model.merge_adapter("default")
    assert torch.allclose(out(model.merge_and_unload("abc")), live, atol=1e-5)


# --- devices ----------------------------------------------------------------------------------------------------------


class Halved(nn.Linear):
    """A linear layer with a forward of its own, which makes a tensor on the default device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * torch.tensor(0.5)


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), Halved(6, 6), nn.Embedding(6, 6))


CHANGES = {
    "lora": {"target_modules": ["0"]},
    "own forward": {"target_modules": ["1"], "lora_dropout": 0.1},
    "embedding": {"target_modules": ["2"]},
    "pissa": {"target_modules": ["0"], "init_lora_weights": "pissa"},
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
        net = _net_on_cpu()
        torch.manual_seed(1)
        model = add_lora(net, config)
        assert not [n for n, p in model.named_parameters() if p.is_meta]
        model.save_pretrained(tmp_path / "new")
        again = LoRAModel.from_pretrained(tmp_path / "plain", base_model=_net_on_cpu())
        assert again._lora.layers.keys() == plain._lora.layers.keys()
        again.load_weights(tmp_path / "plain")
        again.merge_report()
        again.merge_adapter()
        again.unmerge_adapter()
        again.save_pretrained(tmp_path / "again")
    assert {type(m) for m in model.modules()} == {type(m) for m in plain.modules()}, "the same mechanism"
    with torch.no_grad():
        assert torch.equal(again[:2].eval()(x), plain[:2].eval()(x))
    written = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("plain", "again")]
    assert written[0] == written[1]


def _net_on_cpu() -> nn.Module:
    with torch.device("cpu"):
        return _net()


def test_training_with_a_default_device_drops_and_steps(tmp_path: Path) -> None:
    model = add_lora(_net(), LoRAConfig(r=2, target_modules=["0"], lora_dropout=0.3)).train()
    with torch.device("meta"):
        model[0](torch.randn(4, 6, device="cpu")).sum().backward()
    assert model[0].adapters.default.weight.lora_B.grad.abs().sum() > 0


# --- two on one place -------------------------------------------------------------------------------------------------


def test_two_adapters_that_train_one_row_are_not_active_together() -> None:
    base = gpt2()
    model = LoRAModel.from_model(base, LoRAConfig(r=2, trainable_token_indices=[3, 7]), "a")
    model.add_adapter(LoRAConfig(r=2, trainable_token_indices=[7, 9]), "b")
    model.add_adapter(LoRAConfig(r=2, trainable_token_indices=[4, 9]), "c")
    for name in "abc":
        model.set_adapter(name)
        move(model)
    for names in (["a", "b"], ["b", "c"], ["a", "b", "c"]):
        for call in (model.set_adapter, model.merge_adapter, model.merge_and_unload):
            with pytest.raises(AdapterStateError, match="Tokens"):
                call(names)
        with pytest.raises(AdapterStateError, match="Tokens"), model.eval().adapters_active(names):
            pass
    model.set_adapter(["a", "c"])
    rows = out(model.eval())
    model.set_adapter(["c", "a"])
    assert torch.allclose(out(model), rows, atol=1e-6)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_of_one_folder_the_newest_save_is_loaded(model: LoRAModel, want: dict, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, adapter_name="a")
    model.save_pretrained(tmp_path)
    with pytest.raises(LoRAError, match="subfolder"):
        LoRAModel.from_pretrained(tmp_path, base_model=gpt2())
    assert torch.equal(out(LoRAModel.from_pretrained(tmp_path / "b", base_model=gpt2()).eval()), want["b",])
    model.delete_adapter(["b", "c"])
    model.set_adapter("a")
    move(model)
    newest = out(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(out(LoRAModel.from_pretrained(tmp_path, base_model=gpt2()).eval()), newest)
    move(model)
    model.load_weights(tmp_path)
    assert torch.equal(out(model), newest)


def test_several_with_a_default_one_keep_it_at_the_top(tmp_path: Path) -> None:
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2))
    move(model)
    model.add_adapter(LoRAConfig(r=2), "b")
    model.save_pretrained(tmp_path)
    model.set_adapter("default")
    assert torch.equal(out(LoRAModel.from_pretrained(tmp_path, base_model=gpt2())), out(model.eval()))


# --- half-way ---------------------------------------------------------------------------------------------------------


class Raw(nn.Module):
    """A module with raw parameters that are called what methods of torch's containers are."""

    def __init__(self) -> None:
        super().__init__()
        for name in RAW:
            setattr(self, name, nn.Parameter(torch.randn(4, 4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in RAW:
            x = torch.tanh(x @ getattr(self, name).T)
        return x


RAW = sorted({*dir(nn.ModuleDict)} - {*dir(nn.Module())})


def test_a_raw_parameter_may_be_called_what_a_method_of_a_container_is(tmp_path: Path) -> None:
    assert {"keys", "values", "items", "pop", "update"} <= {*RAW}
    torch.manual_seed(0)
    x, names = torch.randn(3, 4), [name for name in RAW if not name.startswith("_")]
    base = nn.Sequential(Raw())
    model = add_lora(base, LoRAConfig(r=2, target_parameters=[f"0.{name}" for name in names]))
    move(model)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    torch.randn(3, 4)
    again = LoRAModel.from_pretrained(tmp_path, base_model=nn.Sequential(Raw()))
    assert torch.equal(again(x), model(x))
    live = model(x)
    assert torch.allclose(model.merge_and_unload()(x), live, atol=1e-5)


def test_an_attach_that_fails_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from .peek import adding

    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2))
    classes, keys, attach, count = [type(m) for m in model.modules()], [*model.state_dict()], adding.attach, [0]

    def failing(*args: object) -> object:
        count[0] += 1
        if count[0] == 2:
            raise MemoryError
        return attach(*args)

    monkeypatch.setattr(adding, "attach", failing)
    with pytest.raises(MemoryError):
        model.add_adapter(LoRAConfig(r=2, target_modules=["c_attn", "c_fc"]), "b")
    assert [type(m) for m in model.modules()] == classes
    assert [*model.state_dict()] == keys
    assert list(model.peft_config) == model.active_adapters() == ["default"]
    count[0], base = 1, gpt2()
    with pytest.raises(MemoryError):
        LoRAModel.from_model(base, LoRAConfig(r=2))
    assert type(base) is type(gpt2())


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


# --- what a stranger found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"modules_to_save": ["wte"]}, {"target_modules": ["wte"], "use_dora": True}])
def test_token_rows_and_another_copy_of_their_table_are_refused_in_either_order(other: dict[str, object]) -> None:
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2, trainable_token_indices=[3, 7]), "rows")
    model.add_adapter(LoRAConfig(r=2, **other), "copy")
    for names in (["rows", "copy"], ["copy", "rows"]):
        with pytest.raises(AdapterStateError, match="Tokens"):
            model.set_adapter(names)
        with pytest.raises(AdapterStateError, match="Tokens"):
            model.merge_adapter(names)


def _select_nothing(model: LoRAModel) -> None:
    model.set_adapter([])
    model.disable_adapters()
    model.set_adapter("b")


def _delete_what_is_selected(model: LoRAModel) -> None:
    model.disable_adapters()
    model.delete_adapter("c")
    model.set_adapter("b")


def _delete_all(model: LoRAModel) -> None:
    model.disable_adapters()
    model.delete_adapter(["a", "b", "c"])
    model.add_adapter(LoRAConfig(r=2, init_lora_weights=False), "b")


@pytest.mark.parametrize("through", [_select_nothing, _delete_what_is_selected, _delete_all])
def test_adapters_stay_off_until_they_are_enabled(
    model: LoRAModel, want: dict, through: Callable[[LoRAModel], None]
) -> None:
    through(model)
    assert torch.equal(out(model), want[()])
    model.enable_adapters()
    assert model.active_adapters() == ["b"]
    assert not torch.equal(out(model), want[()])


def test_a_block_ends_for_everybody_who_took_its_route_along(model: LoRAModel, want: dict) -> None:
    """A task that outlives the block it was made in, and a generator that another task closes."""

    async def outlives(ended: asyncio.Event) -> list[bool]:
        seen = [torch.equal(out(model), want["a",])]
        await ended.wait()
        with model.adapters_active("c"):
            pass
        for block in (model.adapters_disabled(), model.adapters_active("b")):
            thread = threading.Thread(target=block.__enter__)  # a stranger's, in a context of its own
            thread.start()
            thread.join()
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


def test_a_block_waits_for_no_attach(model: LoRAModel, monkeypatch: pytest.MonkeyPatch) -> None:
    svd, seen = torch.linalg.svd, []

    def route() -> None:
        with model.adapters_disabled(), model.adapters_active("a"):
            seen.append(True)

    def slow(*args: object, **kwargs: object) -> object:
        thread = threading.Thread(target=route)
        thread.start()
        thread.join(120)
        return svd(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", slow)
    LoRAModel.from_model(gpt2(), LoRAConfig(r=2, init_lora_weights="pissa"))
    assert seen


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")  # Transformers 5.0 has no other
def test_a_backward_pass_that_cannot_know_the_block_is_refused_and_never_wrong(model: LoRAModel) -> None:
    """As GPUs run it: in a thread of its own, inside a block of the thread that called the forward."""
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    errors: list[BaseException] = []

    def backward(loss: torch.Tensor) -> None:
        try:
            loss.backward()
        except AdapterStateError as error:
            errors.append(error)

    x = torch.randn(2, 4, 16, requires_grad=True)
    with model.adapters_disabled():
        loss = model(inputs_embeds=x).logits.sum()
        thread = threading.Thread(target=backward, args=(loss,))
        thread.start()
        thread.join()
    assert [error for error in errors if "disable_adapters" in str(error)]
    x.grad = None
    torch.manual_seed(0)  # of the base's own dropout
    with model.adapters_disabled():
        model(inputs_embeds=x).logits.sum().backward()
    got, x.grad = x.grad, None
    model.disable_adapters()
    torch.manual_seed(0)
    model(inputs_embeds=x).logits.sum().backward()
    assert torch.equal(x.grad, got)


def test_switching_off_inside_a_block_without_adapters_lasts_as_long_as_the_block(model: LoRAModel, want: dict) -> None:
    with model.adapters_disabled():
        model.disable_adapters()
        assert torch.equal(out(model), want[()])
    assert torch.equal(out(model), want["c",])


class Picky(nn.Linear):
    """A linear layer whose class cannot be refined as others are."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        raise TypeError("no subclasses")


@pytest.mark.parametrize("name", ["adapters", "_lora", "_steps", "_originals"])
def test_a_layer_that_cannot_be_specialised_is_left_as_it_was(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Picky(4, 4))
    before = [{**m.__dict__, "_modules": dict(m._modules)} for m in net]
    with pytest.raises(TypeError, match="subclasses"):
        add_lora(net, LoRAConfig(r=2, target_modules=["0", "1"]))
    assert [{**m.__dict__, "_modules": dict(m._modules)} for m in net] == before
    raw = nn.Module()
    raw.register_parameter(name, nn.Parameter(torch.randn(4, 4)))
    with pytest.raises(LoRAError, match=name):
        add_lora(nn.Sequential(raw), LoRAConfig(r=2, target_parameters=[f"0.{name}"]))
    assert type(raw) is nn.Module
    assert not {"_lora", "_steps", "_originals"} & raw.__dict__.keys()


def test_one_adapter_is_read_from_its_own_folder_where_it_was_saved_beside_the_default_one(tmp_path: Path) -> None:
    model = LoRAModel.from_model(gpt2(), LoRAConfig(r=2))
    model.add_adapter(LoRAConfig(r=2), "a")
    for name in ("default", "a"):
        model.set_adapter(name)
        move(model)
    model.save_pretrained(tmp_path)
    alone = LoRAModel.from_model(gpt2(), LoRAConfig(r=2), "a")
    alone.load_weights(tmp_path)
    model.set_adapter("a")
    assert torch.equal(out(alone.eval()), out(model.eval()))


def test_a_model_that_is_a_layer_itself_gets_and_loses_adapters() -> None:
    x, net = torch.randn(3, 4), nn.Linear(4, 4)
    plain = net(x)
    model = LoRAModel.from_model(net, LoRAConfig(r=2, target_parameters=["weight"], init_lora_weights=False), "a")
    assert not torch.equal(model(x), plain)
    model.delete_adapter("a")
    assert torch.equal(model(x), plain)
    assert isinstance(model, LoRAModel)
    model.add_adapter(LoRAConfig(r=2, target_parameters=["weight"], init_lora_weights=False), "b")
    with model.adapters_disabled():
        assert torch.equal(model(x), plain)
    assert type(model.unload()) is nn.Linear
    assert torch.equal(net(x), plain)
    assert not {"_lora", "_steps", "_originals"} & net.__dict__.keys()
