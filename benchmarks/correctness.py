"""Whether a device computes what the CPU computes, which the tests hold against formulas in float64.

A row a check: its error, the limit, and whether it holds. What raises is a row as well.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_lora import LoRAConfig, LoRAModel, add_lora

from .measure import Options, Row

CPU = torch.device("cpu")
EXACT = 0.0
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2.0**-5}  # of the largest value
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 96,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("BertForSequenceClassification", SIZES),
    "RoBERTa": ("RobertaForSequenceClassification", {**SIZES, "pad_token_id": 1}),
    "GPT-2": (
        "GPT2ForSequenceClassification",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 32, "pad_token_id": 0},
    ),
}
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0
)

Check = Callable[[], Iterator[tuple[str, float, float]]]  # yields name, error, limit


def run(options: Options) -> Iterator[Row]:
    """Make every check, print its line and yield its row."""
    for title, check in _checks(options.device, options.scale == "smoke"):
        if options.budget.over():
            return
        try:
            for name, error, limit in check():
                yield _told(f"{title}: {name}", error, limit)
        except Exception as error:  # of whatever a device holds in store: the other checks still run
            yield _told(title, float("nan"), EXACT, f"{type(error).__name__}: {error}"[:400])


def _told(name: str, error: float, limit: float, raised: str | None = None) -> Row:
    ok = error <= limit
    print(f"  {'ok  ' if ok else 'FAIL'} {name:<72}{error:>10.2g}{limit:>10.2g}  {raised or ''}", flush=True)
    return {"check": name, "error": error, "limit": limit, "ok": ok, "raised": raised}


def _checks(device: torch.device, small: bool) -> Iterator[tuple[str, Check]]:
    for name in MODELS:
        for dtype in (torch.bfloat16, torch.float32):
            yield f"{name}, {_called(dtype)}", partial(_training, name, dtype, device)
    for kind in KINDS:
        for formula, settings in FORMULAS.items():
            if kind == "experts" and formula == "DoRA":
                continue  # has no published layout: refused
            for dtype in (torch.float64, torch.bfloat16):
                yield f"{kind}, {formula}, {_called(dtype)}", partial(_laws, kind, settings, dtype, device)
    for p in (0.05, 0.5):
        for dtype in (torch.float32, torch.bfloat16):
            yield f"dropout {p}, {_called(dtype)}", partial(_dropout, p, dtype, device)
    for reentrant in (True, False):
        yield f"gradient checkpointing, use_reentrant={reentrant}", partial(_checkpointing, reentrant, device)
    for switch in ("mlp_recompute", "linear_cross_entropy"):
        yield switch, partial(_switched, switch, device)
    yield "torch.compile", partial(_compiled, device, "aot_eager" if small else "inductor")


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _distance(got: Tensor, want: Tensor) -> float:
    """Return the largest difference as a part of the largest wanted value."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-300))


def _changed(got: nn.Module, want: dict[str, Tensor]) -> float:
    """Return how many of a model's parameters of these names are not the same to the bit."""
    there = got.state_dict()
    return float(sum(not torch.equal(there[name].cpu(), value.cpu()) for name, value in want.items()))


def _base(name: str, dtype: torch.dtype) -> Any:
    cls = getattr(transformers, MODELS[name][0])
    config = cls.config_class(**{**MODELS[name][1], "num_labels": 3})
    for key, value in NO_DROPOUT.items():
        if hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(0)
    return cls(config).to(dtype)


def _ids(device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, 96, (8, 12), generator=torch.Generator().manual_seed(1))
    return ids.to(device), (ids[:, 0] % 3).to(device)


def _trained(name: str, dtype: torch.dtype, device: torch.device, **settings: Any) -> tuple[Any, list[float]]:
    """Return an auto-mapped model after 5 steps, and the steps' losses."""
    base = _base(name, dtype)
    torch.manual_seed(1)
    model = LoRAModel.from_model(base, LoRAConfig(r=4, lora_alpha=8, **settings)).to(device).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    ids, labels = _ids(device)
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return model.eval(), losses


@torch.no_grad()
def _training(name: str, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Attach, train, save, reload and merge on a device; the training is held against the CPU's."""
    with torch.enable_grad():
        (model, losses), (other, wanted) = _trained(name, dtype, device), _trained(name, dtype, CPU)
    ids, _ = _ids(device)
    limit = ROUNDING[dtype]
    yield "losses as on the CPU", _distance(torch.tensor(losses), torch.tensor(wanted)), limit
    logits = model(input_ids=ids).logits
    yield "logits as on the CPU", _distance(logits, other(input_ids=ids.cpu()).logits), limit
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = LoRAModel.from_pretrained(folder, base_model=_base(name, dtype).to(device)).eval()
        yield "saved and reloaded, to the bit", _distance(again(input_ids=ids).logits, logits), EXACT
    with model.adapters_disabled():
        base = _base(name, dtype).to(device).eval()
        yield (
            "disabled is the base, to the bit",
            _distance(model(input_ids=ids).logits, base(input_ids=ids).logits),
            EXACT,
        )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.merge_adapter()
    yield "merged", _distance(model(input_ids=ids).logits, logits), limit
    model.unmerge_adapter()
    yield "unmerged, to the bit", _changed(model, before), EXACT


class _Experts(nn.Module):
    """Fused experts: a stack of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 20, 12)), nn.Parameter(torch.randn(3, 8, 20))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.up.mT) @ self.down.mT


# How each kind of layer is made, an input of it, and what names it in the config.
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "linear": (lambda: nn.Linear(12, 20), lambda: torch.randn(6, 5, 12), {"target_modules": ["0"]}),
    "conv1d": (lambda: Conv1D(20, 12), lambda: torch.randn(6, 5, 12), {"target_modules": ["0"]}),
    "embedding": (lambda: nn.Embedding(30, 12), lambda: torch.randint(30, (6, 5)), {"target_modules": ["0"]}),
    "experts": (_Experts, lambda: torch.randn(3, 4, 12), {"target_parameters": ["0.up", "0.down"]}),
}
FORMULAS: dict[str, dict[str, Any]] = {"LoRA": {}, "DoRA": {"use_dora": True}}


def _laws(
    kind: str, settings: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, float, float]]:
    """Hold output and gradients against the CPU's in float64, and merging and switching off against themselves."""
    make, example, targets = KINDS[kind]
    torch.manual_seed(0)
    base, x = nn.Sequential(make()), example()
    reference: Any = add_lora(copy.deepcopy(base).double(), LoRAConfig(r=2, lora_alpha=3, **targets, **settings))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_((parameter + 0.3 * torch.randn_like(parameter) * parameter.requires_grad).to(dtype))
    model = copy.deepcopy(reference).to(device, dtype)
    x64, x = (x.to(dtype).double(), x.to(device, dtype)) if x.is_floating_point() else (x, x.to(device))
    want, got, limit = reference(x64), model(x), ROUNDING[dtype]
    yield "output as on the CPU in float64", _distance(got, want), limit
    want.sin().sum().backward()
    got.sin().sum().backward()
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    grads: list[Any] = [(p.grad, q.grad) for p, q in pairs if p.requires_grad]
    yield "gradients", max(_distance(p, q) for p, q in grads), limit
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.merge_adapter()
        yield "merged", _distance(model(x), got), limit
        model.unmerge_adapter()
        yield "unmerged, to the bit", _changed(model, before), EXACT
        with model.adapters_disabled():
            plain = nn.Sequential(make()).to(device, dtype)
            plain.load_state_dict({name: before[name] for name in plain.state_dict()})
            yield "disabled is the base, to the bit", _distance(model(x), plain(x)), EXACT


def _dropout(p: float, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Look at the mask itself: through a base of zeros and factors that are the identity."""
    size, rows = 64, 4096
    model: Any = add_lora(
        nn.Sequential(nn.Linear(size, size, bias=False)),
        LoRAConfig(r=size, lora_alpha=size, lora_dropout=p, target_modules=["0"]),
    ).to(device, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.eye(size) if parameter.requires_grad else torch.zeros(size, size))
    x = torch.ones(rows, size, device=device, dtype=dtype, requires_grad=True)
    model.train()
    y = model(x)
    y.sum().backward()
    kept = float(torch.tensor(1 / (1 - p), dtype=dtype))
    is_kept, is_dropped = (y - kept).abs() <= 0.01 * kept, y == 0
    yield "elements that are neither kept nor dropped", float((~(is_kept | is_dropped)).sum()), EXACT
    deviation = (p * (1 - p) / y.numel()) ** 0.5
    yield "share of dropped ones, in standard deviations", abs(float(is_dropped.float().mean()) - p) / deviation, 5.0
    assert x.grad is not None
    yield "the backward has another mask", float(((x.grad == 0) != is_dropped).sum()), EXACT
    same = float(((model(x) == 0) == is_dropped).float().mean())
    yield "two masks agree, beyond chance", abs(same - (p * p + (1 - p) ** 2)), 0.02


def _gradients(model: Any, device: torch.device) -> dict[str, Tensor]:
    ids, labels = _ids(device)
    torch.manual_seed(2)
    model.train()(input_ids=ids, labels=labels).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _checkpointing(reentrant: bool, device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Hold the gradients with checkpointing and dropout against those without checkpointing."""
    model, _ = _trained("BERT", torch.float32, device, lora_dropout=0.2)
    model.zero_grad()
    want = {name: grad.clone() for name, grad in _gradients(model, device).items()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    got = _gradients(model, device)
    yield "parameters without a gradient", float(len(want.keys() - got.keys())), EXACT
    yield "gradients", max(_distance(got[name], want[name]) for name in want), ROUNDING[torch.float32]


def _switched(switch: str, device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Hold a Llama's loss and gradients with a switch that saves memory against those without."""
    torch.manual_seed(0)
    model = LoRAModel.from_model(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), LoRAConfig(r=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    model = model.to(device).train()
    ids, _ = _ids(device)
    found = []
    for _ in range(2):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
        getattr(model, f"enable_{switch}")()
    yield "loss and gradients", max(map(_distance, *reversed(found))), ROUNDING[torch.float32]


def _compiled(device: torch.device, backend: str) -> Iterator[tuple[str, float, float]]:
    """Hold a compiled model's output and gradients against the same model's without."""
    model, _ = _trained("GPT-2", torch.float32, device)
    model.zero_grad()
    want = {name: grad.clone() for name, grad in _gradients(model, device).items()}
    model.zero_grad()
    compiled: Any = torch.compile(model, backend=backend)
    ids, labels = _ids(device)
    compiled(input_ids=ids, labels=labels).loss.backward()
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    yield (
        f"gradients by {backend}",
        max(_distance(got[name], want[name]) for name in want),
        10 * ROUNDING[torch.float32],
    )
