"""Rows for models that write: what is trained, what is cut, what is packed, and what a model is asked to go on with."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import ConfigError, DataError, MissingExtraError

from . import jobs_generation
from .jobs import write_csv
from .peek import TRAINING_TASKS, RunSettings, TrainedRun, cli, generate, load_run, plan_run, training_arguments
from .trainings import tokenizer

WORDS = "a b c d e f g".split()


def preparation(task: str, rows: list[dict[str, Any]], words: Any, **options: Any) -> Any:
    """Return what a task does with rows, whose columns are named as its roles."""
    row = TRAINING_TASKS[task]
    made = row.preparation(row, {name: name for name in rows[0]}, **{"max_length": 64, **options})
    made.learn(Dataset.from_list(rows), words)
    return made


def words_of(words: Any, feature: dict[str, Any]) -> tuple[str, str]:
    """Return the words of a feature, and those of them that are trained."""
    trained = [label for label in feature["labels"] if label != -100]
    assert all(label in (-100, token) for token, label in zip(feature["input_ids"], feature["labels"], strict=True))
    return words.decode(feature["input_ids"]), words.decode(trained)


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"text": "a b"}, ("a b [EOS]", "a b [EOS]")),
        ({"prompt": "a b", "completion": "c"}, ("a b c [EOS]", "c [EOS]")),
    ],
    ids=["text", "prompt and completion"],
)
def test_a_completion_alone_is_trained_and_a_text_as_a_whole_each_with_its_end(row: Any, want: Any) -> None:
    words = tokenizer(*WORDS)
    assert words_of(words, preparation("causal-lm", [row], words).features([row], words)[0]) == want


@pytest.mark.parametrize(("prompt", "separator"), [("a", "\n"), ("a ", "")])
def test_prompts_and_completions_are_joined_by_a_line_break_unless_the_rows_have_space_there(
    prompt: str, separator: str
) -> None:
    rows = [{"prompt": prompt, "completion": "b"}]
    assert preparation("causal-lm", rows, tokenizer(*WORDS)).options["separator"] == separator


def test_packing_trains_every_token_once_with_an_end_after_each_row() -> None:
    words = tokenizer(*WORDS)
    rows = [{"text": "a b c d e"}, {"text": "f"}, {"text": "g a"}]
    made = preparation("causal-lm", rows, words, packing=True, max_length=4)
    blocks = made.dataset(Dataset.from_list(rows), words)[:]
    assert max(map(len, blocks["input_ids"])) == 4
    seen = blocks["input_ids"][0][:1] + [token for block in blocks["labels"] for token in block[1:]]
    assert words.decode(seen) == "a b c d e [EOS] f [EOS] g a [EOS]"


@pytest.mark.parametrize("max_length", [12, 5])
def test_packed_texts_are_learnt_as_each_alone(tmp_path: Path, max_length: int) -> None:
    """The losses of all tokens in blocks are those of the texts, or of their parts in a block, by themselves."""
    file = str(write_csv(tmp_path / "t.csv", ["text"], [["grass is green"], ["the sky"], ["of what colour is snow ?"]]))
    settings = RunSettings(
        model=str(jobs_generation.llama(tmp_path / "base")), task="causal-lm", train=file, packing=True,
        max_length=max_length, output=str(tmp_path / "run"), test_share=0.0, eval=file,
    )  # fmt: skip
    plan = plan_run(settings, tmp_path)
    trainer = plan.trainer()
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    assert "attention_mask" not in batch
    torch.manual_seed(1)
    for parameter in filter(lambda each: each.requires_grad, plan.model.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    model, count, total = plan.model.eval().requires_grad_(False), 0, 0.0
    for ids, labels, places in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
        starts = [at for at, place in enumerate(places.tolist()) if place == 0] + [len(places)]
        for start, end in itertools.pairwise(starts):
            if trained := int((labels[start + 1 : end] != -100).sum()):
                total += trained * float(model(input_ids=ids[None, start:end], labels=labels[None, start:end]).loss)
                count += trained
    assert count == 3 + 2 + 6  # each word but a text's first, and its end
    assert float(model(**batch).loss) == pytest.approx(total / count, rel=1e-5)


def test_a_base_that_cannot_keep_packed_texts_apart_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = tokenizer(*WORDS)
    sizes = {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16, "num_attention_heads": 2}
    special = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    opt = transformers.OPTForCausalLM(
        transformers.OPTConfig(vocab_size=len(words), num_hidden_layers=1, **sizes, **special)
    )
    rows = [{"text": "a b"}, {"text": "c"}]
    made = preparation("causal-lm", rows, words, packing=True, max_length=8)
    made.fit_model(opt, words)
    assert "each sees those before it" in caplog.text
    assert set(made.dataset(Dataset.from_list(rows), words).column_names) == {"input_ids", "labels"}


def test_a_cut_keeps_something_to_train_on() -> None:
    words = tokenizer(*WORDS)
    rows = [{"prompt": "a b c d e f", "completion": "g"}, {"prompt": "a", "completion": "b c d e f g"}]
    made = preparation("causal-lm", rows, words, max_length=4)
    first, second = (words_of(words, feature) for feature in made.features(rows, words))
    assert first == ("e f g [EOS]", "g [EOS]")
    assert second == ("a b c d", "b c d")
    assert words.decode(made.features(rows, words, labelled=False)[0]["input_ids"]) == "c d e f"


START, ASK = "{% for m in messages %}{{ m.role[0] | upper }} ", "{% endfor %}{{ 'A ' if add_generation_prompt }}"
PLAIN = START + "{{ m.content }} [EOS] " + ASK
MARKED = (
    START + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} [EOS] {% endgeneration %}"
    "{% else %}{{ m.content }} [EOS] {% endif %}" + ASK
)  # fmt: skip
REWRITING = START + "{{ 'g ' if loop.last and m.role == 'assistant' }}{{ m.content }} [EOS] " + ASK
CHAT = [
    {"role": "system", "content": "a"},
    *({"role": role, "content": said} for role, said in zip(["user", "assistant"] * 2, "bcde", strict=True)),
]  # fmt: skip


def talker(template: str | None) -> Any:
    words = tokenizer(*WORDS, "S", "U", "A", "System", "User", "Assistant", ":")
    words.chat_template = template
    return words


@pytest.mark.parametrize("answers", ["all", "last"])
@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["told by what an answer adds", "marked by the template"])
def test_answers_and_their_ends_are_trained_and_nothing_else_of_a_chat(template: str, answers: str) -> None:
    words, rows = talker(template), [{"messages": CHAT}]
    made = preparation("chat", rows, words, answers=answers)
    whole, trained = words_of(words, made.features(rows, words)[0])
    assert whole == "S a [EOS] U b [EOS] A c [EOS] U d [EOS] A e [EOS]"
    assert trained == ("c [EOS] e [EOS]" if answers == "all" else "e [EOS]")
    assert made.shown(made.features(rows, words)[0], words) == {"input_ids": whole, "learnt": trained}
    asked = made.features(rows, words, labelled=False)[0]["input_ids"]
    assert words.decode(asked) == "S a [EOS] U b [EOS] A c [EOS] U d [EOS] A"


def test_a_template_that_rewrites_earlier_turns_is_refused_and_its_last_answers_can_be_learnt() -> None:
    words, rows = talker(REWRITING), [{"messages": CHAT, "__place__": "chats.jsonl, line 7"}]
    with pytest.raises(DataError, match=r"chats.jsonl, line 7: .* turn 3 .* --answers last"):
        preparation("chat", rows, words).features(rows, words)
    made = preparation("chat", rows, words, answers="last")
    assert words_of(words, made.features(rows, words)[0])[1] == "g e [EOS]"


def test_a_tokenizer_without_template_asks_for_one_and_keeps_the_one_that_is_named(tmp_path: Path) -> None:
    rows = [{"messages": CHAT}]
    with pytest.raises(ConfigError, match="--chat-template simple"):
        preparation("chat", rows, talker(None))
    words = talker(None)
    made = preparation("chat", rows, words, chat_template="simple")
    whole, trained = words_of(words, made.features(rows, words)[0])
    assert whole == "System : a User : b Assistant : c [EOS] User : d Assistant : e [EOS]"
    assert trained == "c [EOS] e [EOS]"
    words.save_pretrained(tmp_path)
    assert type(words).from_pretrained(tmp_path).chat_template == words.chat_template
    (tmp_path / "mine.jinja").write_text(MARKED)
    words = talker(None)
    preparation("chat", rows, words, chat_template=str(tmp_path / "mine.jinja"))
    assert words.chat_template == MARKED


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            START.replace("upper }} ", "upper }}") + " {{ m.content }}" + ASK.replace("'A '", "'A'"),
            "ends an answer with nothing",
        ),
        (START + "[EOS] " + ASK, "leaves out what the assistant says"),
        ("{{ raise_exception('no system here') }}", "no system here"),
    ],
)
def test_a_chat_that_a_template_cannot_write_is_told_with_its_row_and_the_reason(template: str, told: str) -> None:
    words, rows = talker(template), [{"messages": CHAT, "__place__": "chats.jsonl, line 2"}]
    with pytest.raises(DataError, match=f"chats.jsonl, line 2: .*{told}"):
        preparation("chat", rows, words).features(rows, words)


def test_a_long_chat_is_cut_around_what_is_trained() -> None:
    words = talker(PLAIN)
    rows = [{"messages": [{"role": "user", "content": "a b c d e f a b c d"}, {"role": "assistant", "content": "g"}]}]
    made = preparation("chat", rows, words, max_length=6)
    assert words_of(words, made.features(rows, words)[0]) == ("c d [EOS] A g [EOS]", "g [EOS]")


def fitted(made: Any, words: Any, model_type: str = "bart") -> Any:
    """Tell a preparation of its model, and return that as far as it goes."""
    model = SimpleNamespace(config=SimpleNamespace(model_type=model_type), generation_config=SimpleNamespace())
    made.fit_model(model, words)
    return model


@pytest.mark.parametrize(
    ("task", "row", "prefix"),
    [
        ("summarization", {"source": "a b", "target": "c"}, "summarize: "),
        ("translation", {"source": "a b", "target": "c"}, ""),
        ("translation", {"pair": {"de": "c", "en": "a b"}}, "translate English to German: "),
    ],
    ids=["summary", "unnamed languages", "both texts in one column"],
)
def test_a_text_is_read_behind_what_t5_was_taught_and_its_target_is_learnt_with_an_end(
    task: str, row: dict[str, Any], prefix: str
) -> None:
    words = tokenizer(*WORDS, "summarize", "translate", "English", "to", "German", ":")
    made = preparation(task, [row], words)
    fitted(made, words, "t5")
    assert made.options["prefix"] == prefix
    feature = made.features([row], words)[0]
    assert words.decode(feature["input_ids"]) == " ".join([*prefix.replace(":", " :").split(), "a b"])
    assert words.decode(feature["labels"]) == "c [EOS]"


@pytest.mark.parametrize(
    ("task", "row", "line"),
    [
        ("summarization", {"source": "a b c d e f", "target": "g a b c"}, "TL ; DR :"),
        ("translation", {"source": "a b c d e f", "target": "g a b c"}, "Translation :"),
        ("translation", {"pair": {"de": "g a b c", "en": "a b c d e f"}}, "German :"),
    ],
)
def test_a_decoder_reads_the_beginning_of_a_text_and_learns_the_target_behind_it(
    task: str, row: dict[str, Any], line: str
) -> None:
    words = tokenizer(*WORDS, ";", ":", "TL", "DR", "German", "Translation")
    made = TRAINING_TASKS[task].preparation(
        TRAINING_TASKS[task], {name: name for name in row}, max_length=12, max_target_length=5
    )
    made.know_base(SimpleNamespace(is_encoder_decoder=False))
    made.learn(Dataset.from_list([row]), words)
    fitted(made, words, "gpt2")
    read = " ".join("abcdef"[: 12 - 5 - len(line.split())])
    assert words_of(words, made.features([row], words)[0]) == (f"{read} {line} g a b c [EOS]", "g a b c [EOS]")
    assert words.decode(made.features([row], words, labelled=False)[0]["input_ids"]) == f"{read} {line}"
    assert not made.training_arguments()  # a Seq2SeqTrainer that generates would read the target, too


def test_targets_keep_their_length_and_what_is_cut_is_told(caplog: pytest.LogCaptureFixture) -> None:
    words = transformers.ByT5Tokenizer()  # whose tokens are bytes
    rows = [{"source": "a", "target": "b" * 200}, {"source": "a", "target": "c"}]
    made = preparation("summarization", rows, words)
    assert (made.options["max_target_length"], caplog.text) == (201, "")
    assert len(made.features(rows, words)[0]["labels"]) == 201
    preparation("summarization", rows, words, max_target_length=100)
    assert "50.0% of the targets have more than 100 tokens and are cut" in caplog.text
    assert preparation("summarization", rows[1:], words).options["max_target_length"] == 128


@pytest.mark.parametrize("task", TRAINING_TASKS)
def test_labels_are_smoothed_or_that_is_refused(task: str, tmp_path: Path) -> None:
    row = TRAINING_TASKS[task]
    given = {"output": str(tmp_path), "task": task, "trainer": {"label_smoothing_factor": 0.1}, "metric": ["loss"]}
    settings = RunSettings(epochs=1.0, batch_size=2, learning_rate=0.1, **given)
    made = row.preparation(row, {}, **dict.fromkeys(row.preparation.OPTIONS, 1))
    if task in ("regression", "multi-label", "question-answering", "object-detection", "speech-recognition",
                "preference", "recommendation"):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{task} has no classes or tokens that the Trainer could smooth"):
            training_arguments(settings, made)
    else:
        assert training_arguments(settings, made).label_smoothing_factor == 0.1


def test_smoothed_labels_of_an_encoder_decoder_are_the_formula(tmp_path: Path) -> None:
    """Loss = (1 - e) nll + e mean(-log p) over the words, in the mean over the labels. Szegedy et al. 2015."""
    file = str(
        write_csv(tmp_path / "t.csv", ["article", "summary"], [["the sky is", "blue"], ["snow", "is white"]] * 4)
    )
    base = str(jobs_generation.t5(tmp_path / "base"))
    settings = RunSettings(
        model=base,
        task="summarization",
        train=file,
        output=str(tmp_path / "run"),
        trainer={"label_smoothing_factor": 0.2},
    )
    trainer = plan_run(settings, tmp_path).trainer()
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    labels = batch["labels"]
    with torch.no_grad():
        shares = trainer.model(**batch).logits.log_softmax(-1)
        found = trainer.compute_loss(trainer.model, dict(batch))
    kept = labels != -100
    nll = -shares.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    want = (0.8 * nll - 0.2 * shares.mean(-1))[kept].mean()
    assert float(found) == pytest.approx(float(want), rel=1e-5)


def test_languages_are_those_of_the_columns_unless_a_flag_says_another_way_round() -> None:
    words, row = tokenizer(*WORDS), {"pair": {"de": "c", "en": "a b", "fr": "d"}}
    with pytest.raises(DataError, match="de, en, fr.*--source-lang"):
        preparation("translation", [row], words)
    made = preparation("translation", [row], words, source_lang="French", target_lang="de_DE")
    assert [made.value(row, role) for role in ("source", "target")] == ["d", "c"]
    task = TRAINING_TASKS["translation"]
    made = task.preparation(task, {"source": "en", "target": "de"}, source_lang="de")
    with pytest.raises(ConfigError, match="--column source=NAME"):
        made.learn(Dataset.from_list([{"en": "a", "de": "b"}]), words)


@pytest.mark.parametrize(
    ("name", "setting"), [("MBart50Tokenizer", "forced_bos_token_id"), ("MBartTokenizer", "decoder_start_token_id")]
)
def test_a_model_of_many_languages_is_told_which_one_to_read_and_to_begin_with(name: str, setting: str) -> None:
    pieces = [(piece, 0.0) for piece in ("<unk>", "<s>", "</s>", "▁a", "▁b")]
    words, row = getattr(transformers, name)(vocab=pieces), {"source": "a", "target": "b"}
    with pytest.raises(ConfigError, match="--source-lang is missing: .*de_DE"):
        fitted(preparation("translation", [row], words), words)
    made = preparation("translation", [row], words, source_lang="en", target_lang="German")
    model = fitted(made, words)
    feature = made.features([row], words)[0]
    assert {"en_XX", "▁a"} <= set(words.convert_ids_to_tokens(feature["input_ids"]))
    assert {"de_DE", "▁b", "</s>"} == set(words.convert_ids_to_tokens(feature["labels"]))
    assert words.convert_ids_to_tokens(getattr(model.generation_config, setting)) == "de_DE"


def test_of_two_answers_the_one_is_preferred_that_trl_rewards_more(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    base = jobs_generation.llama(tmp_path / "base")
    rows = [
        [question, *([colour, "of"], ["of", colour])[at % 2]]
        for at, (question, colour) in enumerate(jobs_generation.asked()[:6])
    ]
    file = str(write_csv(tmp_path / "duels.csv", ["prompt", "chosen", "rejected"], rows))
    settings = RunSettings(
        model=str(base), task="preference", train=file, eval=file,
        chat_template="simple", beta=0.5, output=str(tmp_path / "run"), test_share=0.0, batch_size=4,
    )  # fmt: skip
    plan = plan_run(settings, tmp_path)
    seen = plan.preparation.shown(plan.preparation.features([plan.rows["train"][0]], plan.processor)[0], plan.processor)
    assert seen["prompt and chosen"] == "User : what colour is the grass ? Assistant : green [EOS]"
    assert seen["rejected"] == "of [EOS]"
    trainer = plan.trainer()
    torch.manual_seed(1)
    for parameter in filter(lambda each: each.requires_grad, plan.model.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)  # as after a training
    measured = trainer.evaluate(plan.preparation.dataset(plan.rows["train"], plan.processor))
    said = list(TrainedRun(plan.model.eval(), plan.processor, plan.preparation).predict(plan.rows["train"], 4))
    rewards = [answer["log_ratio"] * 0.5 for answer in said]
    weights = [1 / 4] * 4 + [1 / 2] * 2  # TRL takes the mean of the batches' means
    weighed = [
        sum(w * v for w, v in zip(weights, values, strict=True)) / 2 for values in (rewards, [r > 0 for r in rewards])
    ]
    assert weighed[0] == pytest.approx(measured["eval_rewards/margins"], rel=1e-4)
    assert weighed[1] == pytest.approx(measured["eval_rewards/accuracies"])
    assert 0 < weighed[1] < 1
    assert [answer["preferred"] for answer in said] == ["chosen" if r > 0 else "rejected" for r in rewards]


def test_preferences_need_trl_and_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    with pytest.raises(MissingExtraError, match=r"pip install 'hf-lora\[trl\]'"):
        preparation("preference", rows, talker(PLAIN))


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """Return a folder with an adapter that others may have trained, of a base that knows words, and a template."""
    base = jobs_generation.llama(tmp_path / "base")
    words = transformers.AutoTokenizer.from_pretrained(base)
    words.chat_template = PLAIN
    torch.manual_seed(3)
    model = LoRAModel.from_pretrained(str(base), LoRAConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    words.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def said(helper: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any, *flags: str) -> list[str]:
    """Return what `hf-lora chat` answers to lines."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert cli.main(["chat", str(helper), "--max-new-tokens", "12", "--temperature", "0", *flags]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_chat_goes_on_with_its_turns_and_forgets_them_when_it_is_told(
    helper: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lines = ["what is grass ?", "what is snow ?", "/reset", "what is snow ?", "/system the colour", "what is snow ?"]
    answers = said(helper, [*lines, "/nonsense", "/quit", "?"], monkeypatch, capsys)
    run = load_run(helper, "chat")

    def expected(*turns: tuple[str, str]) -> str:
        row = {"messages": [{"role": role, "content": what} for role, what in turns]}
        run.preparation.columns, run.preparation.options["max_new_tokens"] = {"messages": "messages"}, 12
        return next(iter(run.predict([row], 1)))["generated_text"]

    first = expected(("user", lines[0]))
    alone = expected(("user", lines[1]))
    behind = expected(("user", lines[0]), ("assistant", first), ("user", lines[1]))
    told = expected(("system", "the colour"), ("user", lines[1]))
    assert answers == [first, behind, alone, told]
    assert len({behind, alone, told}) == 3


def test_a_chat_with_the_base_is_one_without_the_adapter(
    helper: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with_adapter, base = said(helper, ["what is grass ?", "/base", "/reset", "what is grass ?"], monkeypatch, capsys)
    assert said(helper, ["what is grass ?"], monkeypatch, capsys, "--base") == [base] != [with_adapter]
    drawn = [
        said(helper, ["what is grass ?"], monkeypatch, capsys, "--temperature", "5", "--seed", "1") for _ in range(2)
    ]
    assert drawn[0] == drawn[1] != [with_adapter]


def test_a_prompt_keeps_half_of_the_positions_where_the_answer_could_take_all(tmp_path: Path) -> None:
    """An answer that may have as many tokens as the model has positions leaves the prompt there; what fits is written."""
    folder = jobs_generation.llama(tmp_path / "base")
    model, words = (
        transformers.AutoModelForCausalLM.from_pretrained(folder).eval(),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    prompts = [words(text)["input_ids"][:-1] for text in ("what is grass ?", "the colour of snow")]
    alone = [generate(model, words, [prompt], 8) for prompt in prompts]
    assert alone[0] != alone[1]
    for prompt, short in zip(prompts, alone, strict=True):
        assert generate(model, words, [prompt], 128)[0].startswith(short[0].strip())
    seen = []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True)
    generate(model, words, [prompts[0] * 20], 128)
    assert seen[0] == model.config.max_position_embeddings // 2
    assert len(seen) <= model.config.max_position_embeddings // 2
