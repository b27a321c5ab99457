"""Each engine's rules of adapters, as one table: what it does with one of which a condition holds, and why.

Read in the engines' sources, of the versions that `ENGINES` names, and seen in their loading code run (docs/deploy.md
says how). A condition without a cell for an engine changes nothing there. To add an engine: its row in `ENGINES`, and
its cells.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ...variants.table import formula_of
from ..elsewhere import refused_by_type
from .facts import Facts

Verdict = Literal["loads", "refused", "silently wrong", "not known"]
Layout = Literal["peft", "gguf", "mlx"]
CONVERT, MERGE, REFACTOR, CORRECT, SPLIT = "convert", "merge", "refactor", "correct", "split"


@dataclass(frozen=True)
class Engine:
    """One that loads adapters. version, source: where its rules were read. layout: of the files that it takes.

    classes, types: the base's classes, or types of models, whose adapters it is known to load; empty for any. refuses:
    types that it takes no adapters of. by_expert: whether it wants fused experts one by one. every_layer: whether
    a kind of layer needs factors in all layers. beside: of which layers it wants factors beside those of one, by the
    last part of its name. targets: what the config has to call a kind of layer whose factors have another name.
    fills: whether it fills ranks up (`filled`) and scales by the rank so filled what comes later. max_rank: of its
    server, unless it is started with another; 0 for none.
    """

    title: str
    version: str
    source: str
    layout: Layout = "peft"
    classes: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    by_expert: bool = False
    every_layer: bool = False
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    fills: bool = False
    max_rank: int = 0


def filled(rank: int) -> int:
    """Return the rank that TGI's kernels fill another up to on one GPU: 8, or a multiple of 16."""
    return 8 if rank <= 8 else -(-rank // 16) * 16


# Of vLLM's supported models those whose class takes adapters.
_CAUSAL = (
    "Afmoe Apertus Arcee Cohere Cohere2 Cwm DeepseekV2 DeepseekV3 Ernie4_5 Ernie4_5_Moe Exaone4 FalconH1 Gemma Gemma2 "
    "Gemma3 Glm Glm4 Glm4Moe GPTBigCode Granite GraniteMoe GraniteMoeHybrid GraniteMoeShared HunYuanDenseV1 "
    "HunYuanMoEV1 Jamba Lfm2 Lfm2Moe Llama Mistral Mixtral Nemotron OPT Olmo Olmo2 Olmo3 Phi Phi3 Qwen2 Qwen2Moe Qwen3 "
    "Qwen3Moe Qwen3Next SeedOss SmolLM3 Starcoder2 VaultGemma"
)
VLLM_CLASSES = frozenset(f"{name}ForCausalLM" for name in _CAUSAL.split())
_ENCODERS = frozenset({"BertForSequenceClassification"})
_SEEN = frozenset({"gemma", "gemma2", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe"})
# What SGLang stacks: a key may be missing, and an up_proj.
_STACKED = {"q_proj": ("v_proj",), "k_proj": ("q_proj", "v_proj"), "v_proj": ("q_proj",), "up_proj": ("gate_proj",)}
# Layers that TGI gives no adapters: Qwen2's it looks up by their whole names.
_PASSED = {
    "phi3": frozenset({"gate_up_proj"}), "qwen2": frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}),
}  # fmt: skip

ENGINES: dict[str, Engine] = {
    "vllm": Engine(
        "vLLM", "0.33.0", "vllm/lora/peft_helper.py, vllm/lora/lora_model.py, vllm/model_executor/models/",
        classes=VLLM_CLASSES | {f"{name}ForSequenceClassification" for name in _CAUSAL.split()} | _ENCODERS,
        refuses=frozenset({"bloom", "dbrx", "falcon", "gpt2", "gptj"}), by_expert=True, max_rank=16,
    ),
    "sglang": Engine(
        "SGLang", "0.5.23", "python/sglang/srt/lora/lora_config.py, lora.py, lora_manager.py, mem_pool.py",
        types=_SEEN, refuses=frozenset({"bloom", "falcon", "gpt2", "gptj", "opt"}), by_expert=True, beside=_STACKED,
        targets={"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"},
    ),
    "tgi": Engine(
        "TGI", "commit 45d95bd", "server/text_generation_server/adapters/lora.py, utils/adapter.py",
        types=frozenset({"llama", "mistral", "phi3", "qwen2"}), every_layer=True, fills=True,
    ),
    "llama.cpp": Engine(
        "llama.cpp", "build 11434", "convert_lora_to_gguf.py, src/llama-adapter.cpp", layout="gguf",
        types=_SEEN | {"gpt2"},
    ),
    "peft": Engine("PEFT", "0.21.2", "src/peft/config.py, src/peft/utils/save_and_load.py"),
    "mlx": Engine("mlx-lm", "0.32.2", "mlx_lm/tuner/utils.py, mlx_lm/tuner/lora.py", layout="mlx"),
}  # fmt: skip


class Cell(NamedTuple):
    """What an engine does where a condition holds, and why. types: of which types of base alone, empty for all."""

    verdict: Verdict
    why: str
    types: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rule:
    """A condition and its cells, by engine; of several the first of the base's type. said: what the adapter has. cure:
    what mends it. narrows: whether it is said elsewhere what the engines without a cell do."""

    said: str
    holds: Callable[[Facts], bool]
    cure: str
    cells: dict[str, Cell | tuple[Cell, ...]]
    narrows: bool = False

    def cell(self, engine: str, model_type: str) -> Cell | None:
        """Return what an engine does on a base of this type, None where the condition changes nothing."""
        found = self.cells.get(engine, ())
        each = (found,) if isinstance(found, Cell) else found
        return next((cell for cell in each if not cell.types or model_type in cell.types), None)


def _refused(why: str, *types: str) -> Cell:
    return Cell("refused", why, frozenset(types))


def _wrong(why: str) -> Cell:
    return Cell("silently wrong", why)


def _unknown(why: str = "nobody has looked") -> Cell:
    return Cell("not known", why)


_ONLY_PAIRS = "it takes lora_A and lora_B alone"
_ONE_BY_ONE = "it knows experts one by one"
_NO_PARTS = "it takes no parts in full"
_PLAIN_SCALE = "it scales by lora_alpha / r of the config"
_DROPPED = "it loads the factors and drops the rest without a word"
_NO_SAVED = _refused("modules_to_save has to be empty")
_WHOLE_BASE = _wrong("it adds the factors to the whole base")
_ONE_RANK = _refused("its buffers hold the rank r of the config alone")
_NO_METHOD = _refused("it reads the config as one of LoRA")
_FOREIGN = _refused("it reads a layout of its own (num_layers, lora_parameters, A as (in, r))")

RULES: tuple[Rule, ...] = (
    Rule("PEFT's layout", lambda f: True, CONVERT, {"mlx": _FOREIGN}),
    Rule("targets as a regular expression", lambda f: f.has_expression, CONVERT, {
        "sglang": _refused("it reads target_modules as a list"),
    }),
    Rule("factors of the token table or the output head", lambda f: f.adapts_tables, MERGE, {
        "vllm": (
            Cell("loads", "", frozenset({"llama", "mixtral", "phi3", "qwen3", "qwen3_moe"})),
            _refused("this model's class names no embedding modules", "gemma", "gemma2", "mistral", "qwen2"),
            _unknown("it depends on the model's class there"),
        ),
        "tgi": _wrong("it adapts linear layers of its own list alone, and drops the others without a word"),
    }),
    Rule("factors of the output head", lambda f: f.adapts_head, MERGE, {
        "sglang": (
            _refused("this model has no output head of its own there", "gemma", "gemma2"), Cell("loads", ""),
        ),
    }, narrows=True),
    Rule("factors of a table that is the output head as well (tied)", lambda f: f.adapts_tables and f.tied, MERGE, {
        "llama.cpp": _refused("it has one tensor for both, and ends at the first token"),
    }, narrows=True),
    Rule("modules_to_save: token table or output head", lambda f: f.saves("table"), SPLIT, {
        "vllm": _NO_SAVED, "sglang": _wrong(_DROPPED), "tgi": _wrong(_DROPPED),
        "llama.cpp": _refused(_NO_PARTS),
    }),
    Rule("modules_to_save: norms", lambda f: f.saves("norm"), SPLIT, {
        "vllm": _NO_SAVED, "sglang": _wrong(_DROPPED), "tgi": _wrong(_DROPPED),
        "llama.cpp": _wrong("its converter writes them, and loading passes over them"),
    }),
    Rule("modules_to_save: a classification head", lambda f: f.saves("head") and f.classifies, SPLIT, {
        "sglang": _wrong(_DROPPED), "tgi": _wrong(_DROPPED), "llama.cpp": _refused(_NO_PARTS),
    }),
    Rule("modules_to_save: other parts", lambda f: f.saves("head") and not f.classifies, SPLIT, {
        "vllm": _NO_SAVED, "sglang": _wrong(_DROPPED), "tgi": _wrong(_DROPPED),
        "llama.cpp": _refused(_NO_PARTS),
    }),
    Rule("modules_to_save: parts inside layers", lambda f: f.saves_in_layers, SPLIT, {
        "sglang": _refused("it knows no such part of a layer"),
    }, narrows=True),
    Rule("a classifier of Mistral as its base", lambda f: f.base_class == "MistralForSequenceClassification", MERGE, {
        "sglang": _wrong("it adapts no layer of this class"),
    }, narrows=True),
    Rule("another scaling than alpha / r (rsLoRA)", lambda f: f.has_other_scaling, CONVERT, {
        "sglang": _wrong(_PLAIN_SCALE), "llama.cpp": _wrong("it scales by lora_alpha / r of each tensor"),
    }),
    Rule("rank_pattern", lambda f: f.has_other_ranks, CONVERT, {
        "sglang": _ONE_RANK, "tgi": _wrong(_PLAIN_SCALE),
    }),
    Rule("several kinds of layers, of a rank other than 8 or a multiple of 16",
         lambda f: len(f.kinds) > 1 and f.rank != filled(f.rank), CONVERT, {
        "tgi": _wrong("it fills the rank up, and scales all kinds of layers but the first by the rank so filled"),
    }),
    Rule("alpha_pattern", lambda f: f.has_other_alphas, CONVERT, {
        "sglang": _wrong(_PLAIN_SCALE), "tgi": _wrong(_PLAIN_SCALE),
        "llama.cpp": _wrong("it has one lora_alpha for the whole file"),
    }),
    Rule("tensors of another rank than its config says", lambda f: f.has_false_ranks, CORRECT, {
        "vllm": _wrong(_PLAIN_SCALE), "sglang": _ONE_RANK,
        "tgi": _wrong(_PLAIN_SCALE), "peft": _refused("the shapes differ from those that it makes"),
    }),
    Rule("a formula with tensors of its own beside A and B", lambda f: f.has_own_tensors, REFACTOR, {
        "vllm": _refused(_ONLY_PAIRS), "sglang": _refused(_ONLY_PAIRS), "tgi": _wrong(_DROPPED),
        "llama.cpp": _refused(_ONLY_PAIRS),
    }),
    Rule("a method of its own that adds a product", lambda f: f.is_method and f.is_sum, CONVERT, {
        "vllm": _refused(_ONLY_PAIRS), "sglang": _refused("peft_type has to be LORA"), "tgi": _NO_METHOD,
        "llama.cpp": _refused(_ONLY_PAIRS),
    }),
    Rule("a method of its own that adds no product", lambda f: f.is_method and not f.is_sum, REFACTOR, {
        "vllm": _refused(_ONLY_PAIRS), "sglang": _refused("peft_type has to be LORA"), "tgi": _NO_METHOD,
        "llama.cpp": _refused(_ONLY_PAIRS),
    }),
    Rule("a method that PEFT has not", lambda f: not formula_of(f.looked.config).in_peft, CONVERT, {
        "peft": _refused("it knows no such peft_type"),
    }, narrows=True),
    Rule("lora_bias, or trained biases", lambda f: f.has_biases, MERGE, {
        "vllm": _refused("it takes no biases"), "sglang": _wrong(_DROPPED), "tgi": _wrong(_DROPPED),
        "llama.cpp": _refused(_ONLY_PAIRS),
    }),
    Rule("bias='all', q_proj without k_proj, which has a bias",
         lambda f: f.has_key_bias and "q_proj" in f.kinds and "k_proj" not in f.kinds, MERGE, {
        "sglang": _refused("it stacks what it finds of query, key and value, and finds half"),
    }, narrows=True),
    Rule("trained token rows", lambda f: f.has_rows, MERGE, {
        "vllm": _refused(_ONLY_PAIRS), "sglang": _wrong(_DROPPED), "tgi": _wrong(_DROPPED),
        "llama.cpp": _refused(_ONLY_PAIRS),
    }),
    Rule("factors taken out of the base (PiSSA, OLoRA) as they are", lambda f: f.needs_start, CONVERT, {
        "vllm": _refused("it knows no such init_lora_weights; older versions add the factors to the whole base"),
        "sglang": _WHOLE_BASE,
        "tgi": _WHOLE_BASE,
        "llama.cpp": _WHOLE_BASE,
    }),
    Rule("layers that store their weight the other way round (GPT-2's)", lambda f: f.transposed == "some", CONVERT, {
        "llama.cpp": _refused("its converter transposes these factors, and loading refuses their shapes"),
    }, narrows=True),
    Rule("such layers, and square ones alone", lambda f: f.transposed == "square", CONVERT, {
        "llama.cpp": _wrong("its converter transposes these factors"),
    }, narrows=True),
    Rule("q_proj without v_proj, k_proj or v_proj without q_proj, up_proj without gate_proj",
         lambda f: f.lacks(_STACKED), CONVERT, {
        "sglang": _refused("it stacks these layers, and finds no place for one without the other"),
    }),
    Rule("some layers alone (layers_to_transform)", lambda f: f.lacks_layers, CONVERT, {
        "tgi": _wrong("it drops a kind of layer in all layers where one of them has no factors"),
    }),
    Rule("stacked layers of Qwen2, gate_up_proj of Phi-3",
         lambda f: bool(_PASSED.get(f.model_type, frozenset()) & f.kinds), MERGE, {
        "tgi": _wrong("its model asks for no factors of these layers by the name that they are loaded under"),
    }),
    Rule("factors of experts", lambda f: f.has_experts, MERGE, {
        "tgi": _wrong("it adapts linear layers of its own list alone, and drops the others without a word"),
    }),
    Rule("experts of Mixtral in one parameter", lambda f: f.has_stacks and f.model_type == "mixtral", CONVERT, {
        "vllm": _wrong("it drops these factors without a word"), "sglang": _refused(_ONE_BY_ONE),
        "llama.cpp": _refused(_ONE_BY_ONE),
    }, narrows=True),
    Rule("experts of other mixtures in one parameter", lambda f: f.has_stacks and f.model_type != "mixtral", CONVERT, {
        "vllm": _refused("it takes them with --enable-mixed-moe-lora-format, in requests of is_3d_lora_weight, alone"),
        "sglang": _refused(_ONE_BY_ONE), "llama.cpp": _refused(_ONE_BY_ONE),
    }, narrows=True),
    Rule("layers whose names PEFT takes for others", lambda f: bool(refused_by_type(f.model_type, f.modules)), MERGE, {
        "peft": _refused("of this type of model it takes them for experts, or takes no adapters on them"),
    }, narrows=True),
)  # fmt: skip
