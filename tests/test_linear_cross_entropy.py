"""A loss without logits: the same numbers come out, whatever else looks at the logits gets them."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import ModelError

from .peek import LazyHead, LazyLogits, chunked, chunked_cross_entropy, lazy
from .test_memory import adapted, labelled, same, step
from .tiny import HIDDEN, LENGTH, VOCAB, inputs, tiny

ROWS = 14
FAMILIES = ["gpt2", "llama", "qwen2", "gemma2", "gpt_oss", "falcon", "bert_mlm", "t5", "bart", "whisper"]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK", 5 * VOCAB)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make looking at the logits an error."""

    def refuse(*args: Any) -> Tensor:
        raise AssertionError("the logits were computed")

    monkeypatch.setattr(lazy, "_computed", refuse)


# --- models -----------------------------------------------------------------------------------------------------------


def same_with_the_switch(model: LoRAModel, tolerance: float = 1e-5, name: str = "llama", **more: Any) -> None:
    """Check that a step gives the same with the switch on, and to the bit the same when it is off again."""
    plain = step(model, name, **more)
    model.enable_linear_cross_entropy()
    switched = step(model, name, **more)
    assert same(plain, switched, tolerance)
    assert plain[0].dtype == switched[0].dtype
    assert torch.allclose(plain[0], switched[0], rtol=1e-4)
    model.disable_linear_cross_entropy()
    assert same(plain, step(model, name, **more), 0.0)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_the_same_and_the_logits_are_never_computed(name: str) -> None:
    """Fails where upstream's losses do with the logits what a promise does not know."""
    model = adapted(name)
    if name not in ("gpt_oss", "whisper"):  # whose inputs or kernels are float32
        model.double()  # small random models magnify the rounding of a float32 hidden state
    same_with_the_switch(model, name=name)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("more", [{"num_items_in_batch": torch.tensor(7)}, {"num_items_in_batch": 9}, {"shift_labels": inputs("llama")["input_ids"]}, {"logits_to_keep": 7}])  # fmt: skip
def test_the_trainers_ways_to_call_the_loss_give_the_same(more: dict[str, Any]) -> None:
    same_with_the_switch(adapted(), **more)


@pytest.mark.usefixtures("unseen")
def test_half_precision_is_widened_where_transformers_widens_it() -> None:
    """A bfloat16 loss would be off by 4e-3; bfloat16's own error of the gradient is 7e-2 here."""
    model = adapted().bfloat16()
    assert step(model)[0].dtype == torch.float32
    same_with_the_switch(model, 0.1)


HEADS = {
    "LoRA": {"target_modules": ["lm_head"]},
    "DoRA": {"target_modules": ["lm_head"], "use_dora": True},
    "saved": {"modules_to_save": ["lm_head"]},
    "saved table": {"modules_to_save": ["table"]},
    "table": {"target_modules": ["table"]},
    "tokens": {"trainable_token_indices": [5, 6]},
}


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_trains_or_shares_what_trains_gets_its_gradient(name: str, head: str) -> None:
    table = {"gpt2": "wte", "llama": "embed_tokens"}[name]  # tied to the head in GPT-2
    changes = {
        k: [table if n == "table" else n for n in v] if isinstance(v, list) else v for k, v in HEADS[head].items()
    }
    same_with_the_switch(adapted(name, **changes), name=name)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("changes", [{}, HEADS["LoRA"], HEADS["saved"]])
def test_under_autocast_the_head_computes_in_half_precision_as_ever(changes: dict[str, Any]) -> None:
    model = adapted(**changes)
    with torch.autocast("cpu", torch.bfloat16):
        plain = step(model)
    model.enable_linear_cross_entropy()
    with torch.autocast("cpu", torch.bfloat16):  # anew: what it has cast before is kept
        result = step(model)
    assert torch.allclose(plain[0], result[0], rtol=1e-4)
    assert same(plain, result, 0.1)


@pytest.mark.usefixtures("unseen")
def test_a_loss_computed_outside_of_autocast_and_after_accelerates_widening_is_the_same() -> None:
    model, ids = adapted(), inputs("llama")["input_ids"]

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = convert_outputs_to_fp32(model.forward)(ids)
        assert outputs.logits.dtype == torch.float32
        return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    plain = loss()
    model.enable_linear_cross_entropy()
    assert torch.allclose(loss(), plain, rtol=1e-4)  # of bfloat16 logits


class LogitRows(TorchDispatchMode):
    """Counts the rows of the largest tensor of logits made inside a `with` block."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        logits = [t for t in tree_leaves(out) if isinstance(t, Tensor) and not t.is_meta and t.shape[-1:] == (VOCAB,)]
        rows = [t.numel() // VOCAB for t in logits if t.shape != (HIDDEN, VOCAB)]  # the head's matrix
        self.most = max(self.most, *rows, 0)
        return out


def test_a_step_makes_as_many_rows_of_logits_as_a_chunk_holds() -> None:
    model = adapted()
    for switch, rows in ((None, 2 * LENGTH), (model.enable_linear_cross_entropy, 5)):
        if switch:
            switch()
        with LogitRows() as made:
            step(model)
        assert made.most == rows


def test_evaluation_and_no_grad_give_ordinary_logits() -> None:
    model, ids = adapted(), inputs("llama")["input_ids"]
    want = model(ids).logits
    model.enable_linear_cross_entropy()
    with torch.no_grad():
        assert type(model(ids).logits) is Tensor
    assert type(model.eval()(ids).logits) is Tensor
    assert type(model.train()(ids).logits) is LazyLogits
    assert torch.equal(model(ids).logits, want)
    assert model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (2, 9)


# --- the loss ---------------------------------------------------------------------------------------------------------

OPTIONS = [
    {"reduction": reduction, "label_smoothing": smoothing, **weighted}
    for reduction, smoothing, weighted in itertools.product(
        ("mean", "sum", "none"), (0.0, 0.2), ({}, {"weight": torch.linspace(0.1, 2.0, VOCAB, dtype=torch.float64)})
    )
]


@pytest.mark.parametrize("labelled_rows", [ROWS - 2, 0])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_chunked_loss_is_cross_entropy_to_the_last_digits(options: dict[str, Any], labelled_rows: int) -> None:
    """Without any label it gives what cross entropy gives as well: 0, or NaN for a mean."""
    leaves = [torch.randn(rows, 6, dtype=torch.float64, requires_grad=True) for rows in (ROWS, VOCAB)]
    target = torch.randint(4, VOCAB, (ROWS,))
    target[torch.randperm(ROWS)[labelled_rows:]] = 3
    options = {"ignore_index": 3, **options}

    def score(rows: Tensor) -> Tensor:
        return torch.tanh(rows @ leaves[1].T)

    results = []
    for loss in (
        F.cross_entropy(score(leaves[0]), target, **options),
        chunked_cross_entropy(score, leaves[0], target, leaves[1:], VOCAB, **options),
    ):
        uneven = loss * torch.arange(1.0, loss.numel() + 1).view(loss.shape)
        results.append((loss, *torch.autograd.grad(uneven.sum(), leaves)))
    for want, got in zip(*results, strict=True):
        assert got.shape == want.shape
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-12, equal_nan=True)


def test_labels_outside_the_vocabulary_are_refused_and_a_second_gradient_too() -> None:
    hidden, matrix = torch.randn(3, 6, requires_grad=True), torch.randn(VOCAB, 6)
    with pytest.raises((IndexError, RuntimeError), match="bounds|range"):
        chunked_cross_entropy(lambda h: h @ matrix.T, hidden, torch.tensor([0, VOCAB, 1]), (), VOCAB)
    loss = chunked_cross_entropy(lambda h: h @ matrix.T, hidden, torch.tensor([0, 2, 1]), (), VOCAB)
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.sum().backward()


# --- the promise ------------------------------------------------------------------------------------------------------


def pair(**changes: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return logits and the promise of the same, of one hidden state, and what their gradients are taken by."""
    torch.manual_seed(1)
    layer = nn.Linear(6, VOCAB)
    hidden = torch.randn(2, 7, 6, requires_grad=True)
    return layer(hidden), lazy.promise(layer, hidden, list(layer.parameters())), [hidden, *layer.parameters()]


STAY = {
    "float": lambda z: z.float(),
    "double": lambda z: z.double(),
    "to half": lambda z: z.to(torch.bfloat16),
    "to device": lambda z: z.to("cpu"),
    "to both": lambda z: z.to(device="cpu", dtype=torch.float64),
    "scaled": lambda z: 2 * z / 3.0 * 0.5,
    "capped": lambda z: torch.tanh(z / 3.0) * 3.0,
    "biased": lambda z: z + torch.arange(VOCAB).float()[None],
    "shifted": lambda z: z[..., :-1, :].contiguous(),
    "short slice": lambda z: z[:, 1:],
    "picked": lambda z: z[:, torch.tensor([0, 3]), :],
    "masked": lambda z: z[torch.tensor([[True] * 7, [False] * 7])],
    "a new dimension": lambda z: z[:, None, 2:5, :],
    "one row": lambda z: z[1, -1],
    "flat": lambda z: z.view(-1, VOCAB),
    "flat by size": lambda z: z.view(-1, z.size(-1)),
    "reshaped": lambda z: z.reshape(7, 2, -1),
    "flattened": lambda z: z.flatten(0, 1),
    "detached": lambda z: z.detach(),
}
LOOK = {
    "softmax": lambda z: z.softmax(-1),
    "log_softmax": lambda z: F.log_softmax(z.float(), dim=-1),
    "argmax": lambda z: z.argmax(-1),
    "last dimension": lambda z: z[..., 3],
    "part of the vocabulary": lambda z: z[..., :9],
    "ellipsis last": lambda z: z[:, :, 2, ...] if z.ndim > 3 else z[1, ..., 4],
    "split rows": lambda z: z.view(2, 7, 6, -1),
    "transposed": lambda z: z.transpose(1, 2),
    "another's": lambda z: z + torch.arange(14.0).view(2, 7, 1),
    "stacked": lambda z: torch.stack([z, z]),
    "gathered": lambda z: z.gather(-1, torch.zeros(2, 7, 1, dtype=torch.long)),
    "indexed by a list": lambda z: z[[1, 0]],
    "item": lambda z: torch.tensor(z[0, 0, 0].item()),
    "data": lambda z: z.data,
    "matmul": lambda z: z @ torch.eye(VOCAB),
    "a norm": lambda z: torch.linalg.vector_norm(z),
    "where": lambda z: torch.where(z > 0, z, 0.0),
    "in place": lambda z: z.mul_(2.0) + z,
    "written": lambda z: (z.__setitem__((..., 0), -1.0), z + 0)[1],
    "einsum": lambda z: torch.einsum("btv->bv", z),
    "clone": lambda z: z.clone(),
}


def check(want: Tensor, got: Tensor, ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert want.shape == got.shape
    assert want.dtype == got.dtype
    assert want.requires_grad == got.requires_grad
    assert torch.allclose(want, got, rtol=1e-5, atol=1e-6)
    if want.requires_grad:
        weights = torch.linspace(-1, 1, want.numel()).view(want.shape)
        grads = [torch.autograd.grad((y.float() * weights).sum(), by) for y, by in ((want, theirs), (got, ours))]
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("what", STAY)
def test_what_losses_do_to_logits_gives_another_promise_of_the_same_values(what: str) -> None:
    (want, _, theirs), (_, got, ours) = pair(), pair()
    want, got = STAY[what](want), STAY[what](got)
    assert type(got) is LazyLogits
    for what in ("shape", "dtype", "requires_grad", "ndim"):
        assert getattr(got, what) == getattr(want, what)
    assert got.sin().requires_grad == want.requires_grad
    check(want, got, ours, theirs)


@pytest.mark.parametrize("what", LOOK)
def test_whoever_looks_at_the_logits_gets_them_with_their_graph(what: str) -> None:
    (want, _, theirs), (_, got, ours) = pair(), pair()
    want, got = LOOK[what](want), LOOK[what](got)
    assert type(got) is Tensor
    check(want, got, ours, theirs)


def test_a_promise_looks_like_logits() -> None:
    want, got, _ = pair()
    assert isinstance(got, Tensor)
    assert (len(got), got.size(), got.dim(), got.device, got.numel()) == (2, want.size(), 3, want.device, want.numel())
    assert got.grad_fn is not None
    assert not got.is_leaf
    assert repr(got).split("grad_fn")[0] == repr(want).split("grad_fn")[0]
    assert torch.equal(pickle.loads(pickle.dumps(got.detach())), want)
    assert got.tolist() == want.tolist()


def test_logits_looked_at_without_gradients_have_them_afterwards() -> None:
    want, got, by = pair()
    with torch.no_grad():
        part = got[:, :-1]
    assert not part.sin().requires_grad
    with torch.no_grad():
        assert torch.equal(got.argmax(-1), want.argmax(-1))
    for z in (want, got):
        assert torch.autograd.grad(z.sin().sum(), by[0])[0].abs().sum() > 0


def test_logits_are_computed_once() -> None:
    calls = []
    layer, hidden = nn.Linear(6, VOCAB), torch.randn(2, 6, requires_grad=True)
    got = lazy.promise(lambda h: (calls.append(len(h)), layer(h))[1], hidden, [])
    assert torch.equal(got.exp(), got.clone().exp())
    assert calls == [0, 2]


def test_a_function_that_autograd_does_not_see_into_passes_its_gradient_on() -> None:
    class Squares(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            ctx.save_for_backward(z + 0)
            return (z * z).sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad * ctx.saved_tensors[0]

    (want, _, theirs), (_, got, ours) = pair(), pair()
    grads = [torch.autograd.grad(Squares.apply(z), by) for z, by in ((want, theirs), (got.float()[:, :], ours))]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_what_slips_past_the_promise_is_an_error_and_no_silent_zero() -> None:
    _, got, _ = pair()
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(RuntimeError, match="disable_linear_cross_entropy"):
        got.exp()


@pytest.mark.parametrize("options", [{"reduction": "none"}, {"label_smoothing": 0.1}, {"weight": torch.linspace(0.1, 2, VOCAB)}, {"ignore_index": 3}])  # fmt: skip
def test_every_option_of_cross_entropy_is_heard(options: dict[str, Any]) -> None:
    (want, _, theirs), (_, got, ours) = pair(), pair()
    target = torch.arange(14) % 5
    check(*(F.cross_entropy(z.view(-1, VOCAB), target, **options) for z in (want, got)), ours, theirs)
    loss = nn.CrossEntropyLoss(**options)
    (want, _, theirs), (_, got, ours) = pair(), pair()
    check(*(loss(z.transpose(1, 2), target.view(2, 7)) for z in (want, got)), ours, theirs)


def test_class_probabilities_as_targets_and_evaluation_under_no_grad_are_right() -> None:
    want, got, _ = pair()
    target = torch.rand(14, VOCAB)
    assert torch.allclose(F.cross_entropy(got.view(-1, VOCAB), target), F.cross_entropy(want.view(-1, VOCAB), target))
    with torch.no_grad():
        loss = F.cross_entropy(got.view(-1, VOCAB), torch.arange(14))
    assert not loss.requires_grad
    assert torch.allclose(loss, F.cross_entropy(want.view(-1, VOCAB), torch.arange(14)))


# --- a model stays what it was ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unseen")
def test_adapters_on_the_head_come_and_go_while_it_is_lazy(tmp_path: Path) -> None:
    model = adapted("gpt2")
    model.enable_linear_cross_entropy()
    model.add_adapter(LoRAConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), "head")
    lazily = step(model, "gpt2")
    model.save_pretrained(tmp_path, adapter_name="head")
    model.disable_linear_cross_entropy()
    assert same(step(model, "gpt2"), lazily)
    model.enable_linear_cross_entropy()
    model.load_adapter(tmp_path, "again", is_trainable=True)
    again = step(model, "gpt2")
    assert same(lazily, (again[0], {n.replace("again", "head"): g for n, g in again[1].items()}))
    model.delete_adapter(["head", "again"])
    assert isinstance(model.lm_head, LazyHead)
    assert model.lm_head._lora_made.base is nn.Linear
    LoRAModel.from_pretrained(tmp_path, base_model=model, adapter_name="third", is_trainable=True)
    assert torch.allclose(step(model, "gpt2")[0], lazily[0])
    assert type(model.unload().lm_head) is nn.Linear


def test_a_resized_head_is_lazy_too() -> None:
    model = adapted()
    model.enable_linear_cross_entropy()
    model.resize_token_embeddings(VOCAB + 8)
    assert type(model(**labelled()).logits) is LazyLogits
    assert model(**labelled()).logits.shape == (2, 7, VOCAB + 8)


def test_logits_are_those_of_the_forward_whatever_happened_since() -> None:
    model, ids = adapted("gpt2", target_modules=["lm_head", "c_attn"]), inputs("gpt2")["input_ids"]
    want = model(ids).logits
    with model.adapters_disabled():
        base = model(ids).logits
    model.enable_linear_cross_entropy()
    with model.adapters_disabled():
        out = model(ids).logits
    assert type(out) is LazyLogits
    assert torch.equal(out, base)
    late = model(ids).logits
    model.eval().disable_adapters()
    model.disable_linear_cross_entropy()
    assert torch.equal(late, want)
    assert torch.equal(model(ids).logits, base)


def test_logits_that_an_optimizer_step_has_taken_away_are_an_error() -> None:
    model = adapted(target_modules=["lm_head"])
    model.enable_linear_cross_entropy()
    out = model(**labelled())
    out.loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for look in (lambda: out.logits.detach().argmax(-1), lambda: F.cross_entropy(out.logits[0], torch.arange(7))):
        with pytest.raises(RuntimeError, match=r"optimizer\.step"):
            look()


def test_hooks_on_the_head_see_hidden_states_and_logits() -> None:
    model, seen = adapted(), {}
    model.enable_linear_cross_entropy()
    model.lm_head.register_forward_pre_hook(lambda m, args: seen.update(hidden=args[0]))
    model.lm_head.register_forward_hook(lambda m, args, out: seen.update(logits=out))
    out = model(**labelled())
    assert seen["hidden"].shape == (2, 7, HIDDEN)
    assert seen["logits"] is out.logits
    model.lm_head.register_full_backward_hook(lambda m, gi, go: seen.update(grad=go[0]))
    model(**labelled()).loss.backward()
    assert seen["grad"].shape == (2, 7, VOCAB)


def test_an_offloaded_head_is_refused() -> None:
    offloaded = tiny("llama")
    cpu_offload(offloaded, torch.device("cpu"))
    model = LoRAModel.from_model(offloaded, LoRAConfig(r=2))
    with pytest.raises(ModelError, match="device_map"):
        model.enable_linear_cross_entropy()
