"""Pushing to the Hub: exactly the adapter's files, in one commit made once, through every fault; and back again."""
# ruff: noqa: F811 (tests take the imported fixture by its name)

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterStateError, HubAccessError, HubError, HubNotFoundError, ModelError

from .cases import move
from .hub import Fault, Hub, corrupt, hub, reset, status  # noqa: F401 (hub is the fixture)
from .peek import cli, public_base
from .tiny import tiny

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
MADE = {".gitattributes"}  # what the Hub itself puts into a new repo
IDS = torch.tensor([[1, 2, 3]])


def base() -> GPT2LMHeadModel:
    return tiny("gpt2", cls=GPT2LMHeadModel).eval()


def logits(model: GPT2LMHeadModel) -> torch.Tensor:
    return model.eval()(IDS).logits


@pytest.fixture
def model() -> LoRAModel:
    """A model with an adapter to a base of the Hub."""
    lora = LoRAModel.from_model(base(), LoRAConfig(r=2, base_model_name_or_path="org/base"))
    lora.peft_config["default"].base_model_name_or_path = "org/base"
    move(lora)
    return lora


@pytest.fixture
def saved(model: LoRAModel, tmp_path: Path) -> Path:
    """A folder with that adapter, and with much that is nobody's business."""
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    for junk in ("training_args.bin", "optimizer.pt", "trainer_state.json", "model.safetensors", ".env", "notes.txt"):
        (folder / junk).write_bytes(b"private")
    model.save_pretrained(folder / "checkpoint-10")
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_bytes(b"private")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def text_of(files: dict[str, bytes]) -> str:
    return "".join(f"{name}: {body.decode(errors='replace')}" for name, body in files.items())


# --- what arrives -----------------------------------------------------------------------------------------------


def test_a_pushed_adapter_comes_back_with_the_same_logits(hub: Hub, model: LoRAModel) -> None:
    url = model.push_to_hub("me/name")
    assert set(hub.files("me/name")) == FILES | MADE
    assert [c.title for c in hub.log("me/name")] == ["Upload adapter", "initial commit"]
    assert url == f"{hub.endpoint}/me/name/commit/{hub.repos['me/name'].refs['main']}"
    back = LoRAModel.from_pretrained("me/name", base_model=base())
    assert torch.equal(logits(back), logits(model))


def test_a_repo_that_is_there_keeps_its_other_files_and_an_equal_push_makes_no_commit(
    hub: Hub, model: LoRAModel
) -> None:
    hub.add("me/name", {"theirs.txt": b"1", "adapter_config.json": b"{}"})
    for name in ("me/name", "name"):  # without an owner it is the user's own
        model.push_to_hub(name)
        assert set(hub.files("me/name")) == {*FILES, "theirs.txt"}
        assert len(hub.log("me/name")) == 2


def test_private_message_description_and_tags_are_taken_over(hub: Hub, model: LoRAModel) -> None:
    model.push_to_hub("me/name", private=True, commit_message="a", commit_description="b", tags=["imdb", "lora"])
    assert hub.repos["me/name"].private
    commit = hub.log("me/name")[0]
    assert (commit.title, commit.description) == ("a", "b")
    tags = ModelCard(hub.files("me/name")["README.md"].decode()).data.tags
    assert "imdb" in tags
    assert tags.count("lora") == 1
    with pytest.raises(TypeError, match="max_shard_size"):
        model.push_to_hub("me/name", max_shard_size="1GB")


def test_a_public_repo_gets_nothing_that_is_to_be_private(hub: Hub, model: LoRAModel) -> None:
    hub.add("me/name", {"a": b"1"})
    with pytest.raises(HubError, match="me/name.*private=True"):
        model.push_to_hub("me/name", private=True)
    assert set(hub.files("me/name")) == {"a"}


def test_a_branch_is_made_where_it_is_missing(hub: Hub, model: LoRAModel) -> None:
    hub.add("me/name", {"README.md": b"---\nlicense: mit\n---\nMine.\n"})
    for _ in range(2):
        model.push_to_hub("me/name", revision="v2")
        assert set(hub.files("me/name", "v2")) == FILES
        assert b"Mine." in hub.files("me/name", "v2")["README.md"]
        assert set(hub.files("me/name")) == {"README.md"}
    back = LoRAModel.from_pretrained("me/name", base_model=base(), revision="v2")
    assert torch.equal(logits(back), logits(model))


def test_a_pull_request_leaves_main_alone_and_loads(hub: Hub, model: LoRAModel) -> None:
    url = model.push_to_hub("me/name", create_pr=True)
    assert url == f"{hub.endpoint}/me/name/discussions/1"
    assert set(hub.files("me/name")) == MADE
    assert set(hub.files("me/name", "refs/pr/1")) == FILES | MADE
    back = LoRAModel.from_pretrained("me/name", base_model=base(), revision="refs/pr/1")
    assert torch.equal(logits(back), logits(model))
    hub.add("org/theirs", {"a": b"1"})
    model.push_to_hub("org/theirs", create_pr=True)
    assert set(hub.files("org/theirs", "refs/pr/1")) == {"a", *FILES}


def test_several_adapters_all_go_each_into_its_folder(hub: Hub, model: LoRAModel) -> None:
    model.add_adapter(LoRAConfig(r=4), "second")
    model.peft_config["second"].base_model_name_or_path = "org/base"
    move(model)
    hub.add("me/name", {"second/README.md": b"---\nlicense: mit\n---\nMine.\n"})
    model.push_to_hub("me/name")
    assert set(hub.files("me/name")) == FILES | {f"second/{name}" for name in FILES}
    assert b"Mine." in hub.files("me/name")["second/README.md"]
    wanted = logits(model)
    back = LoRAModel.from_pretrained("me/name", base_model=base(), subfolder="second")
    assert torch.equal(logits(back), wanted)
    model.push_to_hub("me/one", adapter_name="second")
    assert set(hub.files("me/one")) == FILES | MADE


@pytest.mark.parametrize("argument", ["tokenizer", "processing_class"])
def test_a_tokenizer_goes_along_when_given(hub: Hub, model: LoRAModel, argument: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]")))
    model.push_to_hub("me/name", **{argument: tokenizer})
    files = set(hub.files("me/name"))
    assert {"tokenizer.json", "tokenizer_config.json"} <= files
    assert not files - FILES - MADE - {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert PreTrainedTokenizerFast.from_pretrained("me/name").get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ModelError, match="save_pretrained"):
        model.push_to_hub("me/name", **{argument: 3})


def test_the_card_that_the_owner_wrote_stays(hub: Hub, model: LoRAModel) -> None:
    model.push_to_hub("me/name")
    card = hub.files("me/name")["README.md"] + b"\n## What I found\n\nIt likes cats.\n"
    hub.add("me/name", {"README.md": card})
    move(model, seed=1)
    model.push_to_hub("me/name")
    assert b"## What I found\n\nIt likes cats." in hub.files("me/name")["README.md"]


def test_save_pretrained_pushes_what_it_saves(hub: Hub, model: LoRAModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "name", push_to_hub=True, commit_message="saved", private=True)
    pushed = hub.files("me/name")
    saved = content(tmp_path / "name")
    saved["README.md"] = saved["README.md"].replace(b"path/or/repo-of-this-adapter", b"me/name")
    assert {name: pushed[name] for name in FILES if name != "README.md"} == {
        n: saved[n] for n in saved if n != "README.md"
    }
    assert b'LoRAModel.from_pretrained("me/name")' in pushed["README.md"]
    assert hub.log("me/name")[0].title == "saved"
    assert hub.repos["me/name"].private


# --- what never goes --------------------------------------------------------------------------------------------


def test_a_local_base_is_refused_unless_its_public_name_is_given(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base().save_pretrained(tmp_path / "home" / "base")
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "home" / "base"), "home/base"):
        model = LoRAModel.from_pretrained(path, LoRAConfig(r=2))
        move(model)
        with pytest.raises(ModelError, match="base_model='org/name'"):
            model.push_to_hub("me/name")
        with pytest.raises(ModelError, match="base_model='/x'"):
            model.push_to_hub("me/name", base_model="/x")
        assert hub.requests == []
        model.push_to_hub("me/name", base_model="org/base")
        files = hub.files("me/name")
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
        assert b"base_model: org/base" in files["README.md"]
        assert str(tmp_path) not in text_of(files)
        assert "home/base" not in text_of(files)
        assert model.peft_config["default"].base_model_name_or_path == path
        hub.repos.clear()
        hub.requests.clear()


@pytest.mark.parametrize(
    "name",
    [None, "", "/a/b", "./b", "../b", "~/b", "~", "C:\\a\\b", "C:/a/b", "a\\b", "file:///a/b", "a/b/c", "\\\\host\\b"],
)
def test_everything_that_is_no_hub_id_is_a_local_base(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no folder is called gpt2
    with pytest.raises(ModelError, match="base_model='org/name'"):
        public_base(name, None, "the adapter")
    assert public_base(name, "org/base", "the adapter") == "org/base"
    assert public_base("gpt2", None, "the adapter") == "gpt2"


def test_a_local_path_elsewhere_in_the_files_stops_the_push(hub: Hub, tmp_path: Path) -> None:
    base().save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2))
    move(model)
    model.peft_config["default"].auto_mapping = {"base_model_class": str(tmp_path / "base"), "parent_library": "x"}
    with pytest.raises(ModelError, match=r"adapter_config\.json .*path"):
        model.push_to_hub("me/name", base_model="org/base")
    assert "me/name" not in hub.repos


def test_a_token_in_the_files_stops_the_push(hub: Hub, model: LoRAModel) -> None:
    hub.add("me/name", {"README.md": f"---\nlicense: mit\n---\nlogin('{hub.stranger}')\n".encode()})
    with pytest.raises(ModelError, match=r"README\.md .*token") as caught:
        model.push_to_hub("me/name")
    assert hub.stranger not in str(caught.value)


def test_what_cannot_be_saved_leaves_no_empty_repo(hub: Hub, model: LoRAModel) -> None:
    model.merge_adapter()
    with pytest.raises(AdapterStateError, match="merged"):
        model.push_to_hub("me/name")
    assert hub.repos == {}


# --- who may not ------------------------------------------------------------------------------------------------


def test_each_refusal_is_its_own_error(
    hub: Hub, model: LoRAModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/theirs", {"a": b"1"})
    hub.add("org/secret", {"a": b"1"}, private=True)
    cases = [
        ("me/name", {"token": hub.reader}, HubAccessError, "settings/tokens"),
        ("org/theirs", {}, HubAccessError, "settings/tokens"),
        ("org/secret", {}, HubAccessError, "settings/tokens"),
        ("me/name", {"token": "hf_expired"}, HubAccessError, "hf auth login"),
        ("a/b/c", {}, HubError, "'a/b/c'"),
        ("me/name", {"revision": "refs/pr/7"}, HubNotFoundError, "'refs/pr/7'"),
    ]
    before = content(saved)
    for repo, kwargs, kind, message in cases:
        with pytest.raises(HubError) as caught:
            model.push_to_hub(repo, **kwargs)
        assert type(caught.value) is kind, (repo, kwargs, caught.value)
        assert message in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubAccessError, match="log in"):
        model.push_to_hub("name")
    assert content(saved) == before
    assert set(hub.files("org/theirs")) == {"a"}


def test_no_error_and_no_log_holds_a_token(hub: Hub, model: LoRAModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for where in ("/api/repos/create", "/preupload/", "/lfs/", "/commit/"):
        for code in (400, 401, 403, 500):
            hub.faults.clear()
            hub.fail_next(where, status(code, message=f"bad {hub.token}"), times=99)
            with pytest.raises(HubError) as caught:
                model.push_to_hub("me/name", token=hub.token)
            assert hub.token not in str(caught.value)
    assert "/lfs/" in caplog.text
    assert hub.token not in caplog.text


# --- faults -----------------------------------------------------------------------------------------------------

WHERE = [
    "^GET /api/whoami", "^POST /api/repos/create", "^POST /api/validate", "/preupload/", "/info/lfs/", "^PUT /lfs/",
    "^POST .*/commit/", "^(HEAD|GET) .*README",
]  # fmt: skip
FAULTS = {
    "503": status(503, retry_after=2),
    "reset": reset(),
    "500 done": status(500, done=True),
    "reset done": reset(done=True),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_goes_wrong_once_is_made_good_and_the_commit_is_made_once(
    hub: Hub, model: LoRAModel, where: str, fault: Fault
) -> None:
    hub.add("me/name", {"README.md": b"---\nlicense: mit\n---\nMine.\n"})
    hub.fail_next(where, fault)
    url = model.push_to_hub("name", tags=["x"])
    assert hub.faults == []
    assert len(hub.log("me/name")) == 2
    assert set(hub.files("me/name")) == FILES
    assert b"Mine." in hub.files("me/name")["README.md"]
    assert url.endswith(hub.repos["me/name"].refs["main"])
    assert sum(hub.slept) < 30


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_pull_request_is_never_opened_twice(hub: Hub, model: LoRAModel, fault: Fault) -> None:
    hub.add("me/name", {"a": b"1"})
    hub.fail_next("/commit/", fault)
    with pytest.raises(HubError, match="me/name"):
        model.push_to_hub("me/name", create_pr=True)
    assert [ref for ref in hub.repos["me/name"].refs if ref != "main"] == ["refs/pr/1"] * fault.done


def test_a_hub_that_stays_broken_is_an_error_and_nothing_here_has_changed(hub: Hub, model: LoRAModel) -> None:
    before, config = logits(model), model.peft_config["default"].to_dict()
    for where in WHERE[1:]:
        for fault in (status(503), reset(), status(429, retry_after=99)):
            hub.faults.clear()
            hub.repos.clear()
            hub.blobs.clear()
            if "README" in where:
                hub.add("me/name", {"README.md": b"---\nlicense: mit\n---\nMine.\n"})
            hub.fail_next(where, fault, times=999)
            with pytest.raises(HubError, match="me/name"):
                model.push_to_hub("me/name", base_model="org/other")
    assert torch.equal(logits(model), before)
    assert model.peft_config["default"].to_dict() == config


def test_a_corrupted_card_on_the_way_here_is_not_sent_back(hub: Hub, model: LoRAModel) -> None:
    hub.add("me/name", {"README.md": b"---\nlicense: mit\n---\nMine.\n"})
    hub.fail_next("^GET .*README", corrupt())
    model.push_to_hub("me/name")
    assert b"Mine." in hub.files("me/name")["README.md"]


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_pushes_a_folder_s_adapter_and_nothing_else(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (saved / "tokenizer.json").write_text("{}")
    before = content(saved)
    assert cli.main(["push", str(saved), "me/name", "--private", "--commit-message", "hello"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{hub.endpoint}/me/name/commit/{hub.repos['me/name'].refs['main']}\n"
    files = hub.files("me/name")
    assert set(files) == {*FILES, *MADE, "tokenizer.json"}
    assert all(files[name] == before[name] for name in FILES)
    assert hub.repos["me/name"].private
    assert hub.log("me/name")[0].title == "hello"
    assert content(saved) == before
    assert cli.main(["push", str(saved), "me/name", "--create-pr"]) == 0
    assert cli.main(["push", str(saved), "me/other", "--revision", "v2"]) == 0
    assert set(hub.files("me/other", "v2")) >= FILES


def test_the_command_takes_every_adapter_of_a_folder(hub: Hub, model: LoRAModel, tmp_path: Path) -> None:
    model.add_adapter(LoRAConfig(r=4), "second")
    model.peft_config["second"].base_model_name_or_path = "org/base"
    move(model)
    model.save_pretrained(tmp_path / "two")
    assert cli.main(["push", str(tmp_path / "two"), "me/name"]) == 0
    assert set(hub.files("me/name")) == FILES | MADE | {f"second/{name}" for name in FILES}


def test_the_command_names_a_local_base_as_it_is_told(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base().save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2))
    move(model)
    model.save_pretrained(tmp_path / "saved")
    assert cli.main(["push", str(tmp_path / "saved"), "me/name"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("hf-lora: ")
    assert "--base-model org/name" in told
    assert told.count("\n") == 1
    assert hub.requests == []
    assert cli.main(["push", str(tmp_path / "saved"), "me/name", "--base-model", "org/base"]) == 0
    files = hub.files("me/name")
    assert str(tmp_path) not in text_of(files)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert ModelCard(files["README.md"].decode()).data.base_model == "org/base"


def test_the_command_keeps_the_card_that_is_there(hub: Hub, saved: Path) -> None:
    hub.add("me/name", {"README.md": b"---\nlicense: mit\n---\nMine.\n"})
    assert cli.main(["push", str(saved), "me/name"]) == 0
    assert hub.files("me/name")["README.md"] == b"---\nlicense: mit\n---\nMine.\n"


def test_the_command_pushes_no_pickle(hub: Hub, saved: Path) -> None:
    with safe_open(saved / "adapter_model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    torch.save(tensors, saved / "adapter_model.bin")
    (saved / "adapter_model.safetensors").unlink()
    assert cli.main(["push", str(saved), "me/name"]) == 0
    assert set(hub.files("me/name")) == FILES | MADE
    back = LoRAModel.from_pretrained("me/name", base_model=base())
    assert torch.equal(logits(back), logits(LoRAModel.from_pretrained(saved, base_model=base())))


def test_the_command_pushes_only_what_loads(hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(saved / "checkpoint-10")
    weights = saved / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    for folder in (saved, saved / "runs", saved / "nowhere", weights):
        assert cli.main(["push", str(folder), "me/name"]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1
    assert hub.requests == []


def test_a_token_is_no_argument_of_the_command(hub: Hub, saved: Path) -> None:
    """Others could see it in the list of processes."""
    with pytest.raises(SystemExit):
        cli.main(["push", str(saved), "name", "--token", "x"])


def test_a_push_offline_is_refused_at_once(
    hub: Hub, model: LoRAModel, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="me/name.*HF_HUB_OFFLINE"):
        model.push_to_hub("me/name")
    assert cli.main(["push", str(saved), "me/name"]) == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


@pytest.mark.parametrize("card", [b"---\na: [\n---\nx", b"---\ntags: lora\n\xff\n---\nx", b"\xff\xfe no card"])
def test_a_card_that_nobody_can_read_is_told_and_left_as_it_is(hub: Hub, model: LoRAModel, card: bytes) -> None:
    hub.add("me/name", {"README.md": card})
    with pytest.warns(UserWarning, match=r"README\.md"):
        model.push_to_hub("me/name", tags=["x"])
    assert hub.files("me/name")["README.md"] == card
    assert hub.files("me/name").keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
