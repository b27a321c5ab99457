"""The stock Trainer pushing a LoRAModel: which files arrive, the last step among them, and no secret."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, snapshot_download
from safetensors.torch import load
from transformers import BertForSequenceClassification, Trainer

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import HubAccessError, HubError, ModelError

from . import trainings
from .hub import Hub, status
from .peek import Job, Pushes, commits, facts_of
from .trainings import BEST, bert, same, tokenizer

# Transformers 5.0, of fast saves
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")
PATIENCE = 600.0  # seconds for what a test waits for in another thread: what takes longer hangs
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
RESUMING = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


def public_bert(adapter_name: str = "default", **changes: object) -> LoRAModel:
    model = bert(adapter_name, **changes)
    for config in model.peft_config.values():
        config.base_model_name_or_path = "org/base"
    return model


def trainer(model: torch.nn.Module, out: Path, hub: Hub, **changes: object) -> Trainer:
    pushing = {"push_to_hub": True, "hub_model_id": "me/x", "hub_token": hub.token, "save_total_limit": 1}
    return trainings.trainer(model, out, processing_class=tokenizer("good", "bad"), **{**pushing, **changes})


def names(hub: Hub, repo: str = "me/x") -> set[str]:
    return set(hub.files(repo)) - {".gitattributes"}


def below(folder: str, files: set[str]) -> set[str]:
    return {f"{folder}/{file}" for file in files}


def assert_nothing_private(hub: Hub, out: Path) -> None:
    """Search everything that the Hub was ever sent, whatever became of it."""
    commits = [commit for repo in hub.repos.values() for commit in repo.commits.values()]
    files = [content for commit in commits for content in commit.files.values()]
    for content in [*files, *hub.blobs.values(), *(request.body for request in hub.requests)]:
        assert hub.token.encode() not in content
        assert str(out).encode() not in content


def assert_is_last(hub: Hub, model: LoRAModel) -> None:
    pushed, want = load(hub.files("me/x")["adapter_model.safetensors"]), model.get_adapter_state_dict()
    same(pushed, {f"base_model.model.{key}": value for key, value in want.items()})


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_each_strategy_brings_its_files_the_last_step_and_no_secret(strategy: str, tmp_path: Path, hub: Hub) -> None:
    out = tmp_path / "a_local_folder"
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "events").write_bytes(b"scalars")
    (out / "notes.txt").write_text("my own")
    model = public_bert()
    run = trainer(model, out, hub, hub_strategy=strategy, save_total_limit=None)
    run.train()
    top = ADAPTER | TOKENIZER | {"README.md", "runs/events"}
    folders = {
        "end": set(), "every_save": set(), "checkpoint": below("last-checkpoint", ADAPTER | RESUMING),
        "all_checkpoints": set().union(*(below(f"checkpoint-{n}", ADAPTER | RESUMING) for n in (2, 4, 6))),
    }[strategy]  # fmt: skip
    if strategy != "end":
        assert names(hub) == top | folders
        assert_is_last(hub, model)
    run.push_to_hub()
    assert names(hub) == top | folders
    assert_is_last(hub, model)
    assert_nothing_private(hub, out)
    assert (out / "checkpoint-6" / "training_args.bin").is_file(), "upstream's own, and it stays here"
    assert not list(out.glob("_push-*")), "what was staged is gone"
    assert json.loads(hub.files("me/x")["adapter_config.json"])["base_model_name_or_path"] == "org/base"


def test_saving_by_hand_pushes_as_upstream_does(tmp_path: Path, hub: Hub) -> None:
    trainer(public_bert(), tmp_path / "out", hub, hub_strategy="end").save_model()
    assert names(hub) == ADAPTER | TOKENIZER | {"README.md"}
    assert hub.log("me/x")[0].title == "Model save"


class _Gate:
    """Holds the first push until it is opened, however many saves come meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.messages, commit = threading.Event(), [], commits.commit

        def gated(folder: Path, repo_id: str, how: Any) -> object:
            self.messages.append(how.message)
            assert self.opened.wait(PATIENCE)
            return commit(folder, repo_id, how)

        monkeypatch.setattr(commits, "commit", gated)


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_the_last_step_arrives_although_a_push_is_in_flight_and_its_checkpoint_may_be_gone(
    strategy: str, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, model = _Gate(monkeypatch), public_bert()
    run = trainer(model, tmp_path / "out", hub, hub_strategy=strategy)
    ended = run.callback_handler.on_train_end
    monkeypatch.setattr(run.callback_handler, "on_train_end", lambda *args: (gate.opened.set(), ended(*args))[1])
    run.train()
    assert gate.messages == ["Training in progress, step 2", "Training in progress, step 6"], "4 is in 6, or replaced"
    assert_is_last(hub, model)
    if strategy == "all_checkpoints":
        assert {f"checkpoint-{n}/trainer_state.json" for n in (2, 4, 6)} <= names(hub)
    if strategy == "checkpoint":
        state = json.loads(hub.files("me/x")["last-checkpoint/trainer_state.json"])
        assert state["global_step"] == 6
    assert not list((tmp_path / "out").glob("_push-*"))


def test_hub_always_push_pushes_every_save_on_its_own(tmp_path: Path, hub: Hub) -> None:
    trainer(public_bert(), tmp_path / "out", hub, hub_always_push=True).train()
    titles = [commit.title for commit in reversed(hub.log("me/x"))]
    assert titles == ["initial commit", *(f"Training in progress, step {n}" for n in (2, 4, 6))]


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("failing", [{"1"}, {"2"}, {"1", "2"}, {"3"}])
def test_what_is_pushed_again_takes_the_place_of_nothing_newer(failing: set[str], always: bool, tmp_path: Path) -> None:
    there: dict[str, str] = {}
    gate, left, failed = threading.Event(), set(failing), []

    def upload(folder: Path, message: str) -> None:
        assert gate.wait(PATIENCE)
        if message in left:
            left.remove(message)
            failed.append(message)
            raise HubError(message)
        there.update({p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()})

    pushes = Pushes(upload, always)
    for number in "123":
        staged = TemporaryDirectory(dir=tmp_path)
        folder = Path(staged.name)
        (folder / f"checkpoint-{number}").mkdir()
        (folder / "adapter").write_text(number)
        (folder / f"checkpoint-{number}" / "adapter").write_text(number)
        pushes.offer(Job(staged, number))
    gate.set()
    assert pushes.settle()
    assert there == {"adapter": "3", **{f"checkpoint-{number}/adapter": number for number in "123"}}
    assert [message for message, _ in pushes.failures] == failed
    assert not list(tmp_path.iterdir())


def test_a_downloaded_last_checkpoint_resumes_to_the_same_bits(tmp_path: Path, hub: Hub) -> None:
    options = {"lr_scheduler_type": "constant", "hub_strategy": "checkpoint"}
    trainer(public_bert(), tmp_path / "first", hub, max_steps=4, **options, **BEST).train()
    whole = public_bert()
    trainer(whole, tmp_path / "whole", hub, **options, eval_strategy="steps", eval_steps=2, hub_model_id="me/y").train()
    place = Path(snapshot_download("me/x", local_dir=tmp_path / "there")) / "last-checkpoint"
    assert json.loads((place / "trainer_state.json").read_text())["best_model_checkpoint"] is None
    model = public_bert()
    again = trainer(model, tmp_path / "second", hub, **options, **BEST)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        again.train(resume_from_checkpoint=str(place))
    assert again.state.global_step == 6
    assert again.state.best_model_checkpoint is None or again.state.best_model_checkpoint.endswith("-6")
    same(model, whole)
    assert any("load_best_model_at_end" in str(w.message) for w in told)


def test_a_push_that_fails_in_the_background_is_told_without_the_token(tmp_path: Path, hub: Hub) -> None:
    run = trainer(public_bert(), tmp_path / "out", hub)
    hub.fail_next(r"^POST .*/commit/", status(500, message=f"no {hub.token} today"), times=100)
    with pytest.warns(UserWarning, match="me/x.*newest") as told:
        result = run.train()
    assert result.global_step == 6
    assert not any(hub.token in str(warning.message) for warning in told)
    assert not list((tmp_path / "out").glob("_push-*"))
    with pytest.raises(HubError, match="me/x") as raised:
        run.push_to_hub()
    assert hub.token not in str(raised.value)


def test_a_failed_push_is_made_up_for_at_the_end(tmp_path: Path, hub: Hub) -> None:
    model = public_bert()
    run = trainer(model, tmp_path / "out", hub, max_steps=2)
    hub.fail_next(r"^POST .*/commit/", status(400, message="not now"))
    with pytest.warns(UserWarning, match="1 .*me/x.*later"):
        run.train()
    assert_is_last(hub, model)


def test_pushing_without_the_right_is_an_access_error(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(HubAccessError, match="org/x"):
        trainer(public_bert(), tmp_path, hub, hub_model_id="org/x")
    run = trainer(public_bert(), tmp_path, hub, max_steps=2, hub_strategy="end")
    run.train()
    with pytest.raises(HubAccessError, match="me/x"):
        run.push_to_hub(token=hub.reader)


def test_a_local_base_is_refused_before_training_and_a_named_one_is_not(tmp_path: Path, hub: Hub) -> None:
    bert().unload().save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(
        tmp_path / "base", LoRAConfig(r=2), auto_class=BertForSequenceClassification, num_labels=2
    )
    with pytest.raises(ModelError, match="base_model_name_or_path"):
        trainer(model, tmp_path / "out", hub)
    assert not hub.repos
    model.peft_config["default"].base_model_name_or_path = "me/x"
    with pytest.raises(ModelError, match="me/x is the base's own repo"):
        trainer(model, tmp_path / "out", hub)
    model.peft_config["default"].base_model_name_or_path = "org/name"
    run = trainer(model, tmp_path / "out", hub, max_steps=2)
    run.train()
    run.push_to_hub(finetuned_from=str(tmp_path / "base"))
    assert json.loads(hub.files("me/x")["adapter_config.json"])["base_model_name_or_path"] == "org/name"
    assert_nothing_private(hub, tmp_path)
    assert ModelCard(hub.files("me/x")["README.md"].decode()).data.base_model == "org/name"


def test_the_card_is_told_what_the_trainer_knows_and_the_user_says(tmp_path: Path, hub: Hub) -> None:
    given = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "bf16": False, "optim": "adamw_torch"}
    run = trainer(public_bert(), tmp_path / "out", hub, **given, warmup_steps=0.5)
    run.train()
    data, hyperparameters = facts_of(run, license="mit", tags=["a"])
    told = {"optimizer": "adamw_torch, betas=(0.9, 0.999), epsilon=1e-08", "lr_scheduler_warmup_ratio": 0.5}
    assert hyperparameters.items() >= {"learning_rate": 0.02, "training_steps": 2, "seed": 1, **told}.items()
    assert "lr_scheduler_warmup_steps" not in hyperparameters
    assert [result.metric_type for result in data.eval_results] == ["loss"]
    assert data.license == "mit"
    run.push_to_hub(
        license="mit", language="en", tags="mine", dataset="Glue", dataset_tags="glue", tasks="text-classification"
    )
    card = ModelCard(hub.files("me/x")["README.md"].decode())
    assert card.data.library_name == "peft"
    assert card.data.base_model == "org/base"


def test_what_the_owner_wrote_into_the_card_survives_a_push(tmp_path: Path, hub: Hub) -> None:
    run = trainer(public_bert(), tmp_path / "out", hub, max_steps=2)
    run.push_to_hub()
    card = tmp_path / "out" / "README.md"
    card.write_text(card.read_text().replace("base_model: org/base", "base_model: 5") + "\nWritten by hand.\n")
    for push in (run.train, run.push_to_hub):  # metadata of another type does not end a training
        push()
        assert "Written by hand." in hub.files("me/x")["README.md"].decode()


def test_several_adapters_go_each_with_its_folder_and_a_future_is_given_where_asked(tmp_path: Path, hub: Hub) -> None:
    model = public_bert("a")
    model.add_adapter(LoRAConfig(r=3, target_modules=["query"]), "b")
    model.peft_config["b"].base_model_name_or_path = "org/base"
    model.set_adapter(["a", "b"])
    bert().save_pretrained(tmp_path / "out")  # somebody else's, which lies around
    run = trainer(model, tmp_path / "out", hub, max_steps=2, hub_strategy="checkpoint")
    run.train()
    own = ADAPTER | {"README.md"}
    both = below("a", own) | below("b", own)
    assert names(hub) - below("last-checkpoint", RESUMING) == TOKENIZER | both | below(
        "last-checkpoint/a", ADAPTER
    ) | below("last-checkpoint/b", ADAPTER)
    assert run.push_to_hub(blocking=False).result(30).oid == hub.log("me/x")[0].sha


def test_a_trainer_without_adapters_pushes_as_before(tmp_path: Path, hub: Hub) -> None:
    run = trainer(bert().unload(), tmp_path / "out", hub, max_steps=2)
    run.train()
    run.push_to_hub()
    assert {"model.safetensors", "training_args.bin"} <= names(hub)


def test_a_file_that_holds_a_token_is_never_uploaded_and_a_local_path_is_left_out(tmp_path: Path, hub: Hub) -> None:
    """As where a tokenizer keeps what it was loaded with."""
    run = trainer(public_bert(), tmp_path / "out", hub)
    given = run.processing_class.init_kwargs
    given["cache_dir"] = str(tmp_path / "out" / "cache")
    run.push_to_hub()
    assert json.loads(hub.files("me/x")["tokenizer_config.json"])["cache_dir"] is None
    for token in (hub.token, hub.stranger, "ghp_" + 36 * "a1"):
        given["comment"] = token
        with pytest.raises(ModelError, match=r"tokenizer_config\.json.*token") as raised:
            run.push_to_hub()
        assert token not in str(raised.value)
    assert_nothing_private(hub, tmp_path / "out")


def test_a_save_that_cannot_be_prepared_ends_no_training(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(public_bert(), tmp_path / "out", hub, max_steps=2)
    save = run.processing_class.save_pretrained

    def full(folder: str | Path) -> None:
        if "_push-" in str(folder):
            raise OSError("No space left on device")
        save(folder)

    monkeypatch.setattr(run.processing_class, "save_pretrained", full)
    with pytest.warns(UserWarning, match="newest.*step 2.*No space left"):
        assert run.train().global_step == 2
    assert not list((tmp_path / "out").glob("_push-*"))


def test_logs_that_grow_meanwhile_do_not_fail_the_push(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard writes on in the middle of a push."""
    out = tmp_path / "out"
    log, answer = out / "runs" / "events.out", HfApi.create_commit

    def slow(self: HfApi, *args: object, **kwargs: object) -> object:
        made = answer(self, *args, **kwargs)
        log.write_bytes(log.read_bytes() + b"scalar")
        return made

    run = trainer(public_bert(), out, hub, max_steps=2)
    log.parent.mkdir(parents=True)
    log.write_bytes(b"scalar")
    monkeypatch.setattr(HfApi, "create_commit", slow)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*failed.*")
        run.train()
    assert hub.files("me/x")["runs/events.out"] == b"scalar"


def test_logs_go_without_the_machine_s_name_and_process_and_none_that_names_its_folder(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard finds a run's files by "tfevents" in their names."""
    monkeypatch.setattr("platform.node", lambda: "box.lab")
    out = tmp_path / "Zoë"
    run, events = out / "runs" / "Nov28_03-26-59_box.lab", "events.out.tfevents.1732765619.box.lab.4711"
    logs = {
        f"{events}.0": b"train", f"{events}.1": b"eval", f"1732765620.25/{events}.2": b"hparams", "mine.csv": b"mine",
        "bad": json.dumps({"output_dir": str(out)}).encode(), "named": b"runs/Nov28_03-26-59_box.lab",
        "token": hub.reader.encode(),
    }  # fmt: skip
    for name, content in logs.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    with pytest.warns(UserWarning, match="bad, named, token are not pushed.*absolute output_dir"):
        trainer(public_bert(), out, hub).push_to_hub()
    pushed = {name: content for name, content in hub.files("me/x").items() if name.startswith("runs/")}
    time = "events.out.tfevents.1732765619"
    want = {time: b"train", f"{time}.1": b"eval", f"1732765620.25/{time}": b"hparams", "mine.csv": b"mine"}
    assert pushed == {f"runs/Nov28_03-26-59/{name}": content for name, content in want.items()}
    assert names(hub) - pushed.keys() == ADAPTER | TOKENIZER | {"README.md"}
