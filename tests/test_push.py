"""Pushing to the Hub: exactly the adapter's files, in one commit made once, through every fault; and back again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_lora import LoRAConfig, LoRAModel
from hf_lora.errors import AdapterFileError, AdapterStateError, HubAccessError, HubError, HubNotFoundError, ModelError

from .cases import move
from .hub import Fault, Hub, corrupt, reset, status
from .peek import cli, public_base
from .tiny import IDS, tiny

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
MADE = {".gitattributes"}  # what the Hub itself puts into a new repo
MINE = b"---\nlicense: mit\n---\nMine.\n"


@pytest.fixture
def model() -> LoRAModel:
    """A model with an adapter to a base of the Hub."""
    return adapted()


@pytest.fixture
def two(model: LoRAModel) -> LoRAModel:
    """A model with a second adapter."""
    model.add_adapter(LoRAConfig(r=4), "second")
    model.peft_config["second"].base_model_name_or_path = "org/base"
    move(model)
    return model


@pytest.fixture
def saved(model: LoRAModel, tmp_path: Path) -> Path:
    """A folder with that adapter, and with much that is nobody's business."""
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    model.save_pretrained(folder / "checkpoint-10")
    (folder / "runs").mkdir()
    for junk in (
        "training_args.bin", "optimizer.pt", "trainer_state.json", "model.safetensors", ".env", "notes.txt", "runs/x",
    ):  # fmt: skip
        (folder / junk).write_bytes(b"private")
    return folder


def adapted(base_model: str = "org/base", **config: Any) -> LoRAModel:
    lora = LoRAModel.from_model(tiny("gpt2"), LoRAConfig(r=2, **config))
    lora.peft_config["default"].base_model_name_or_path = base_model
    move(lora)
    return lora


def same(model: LoRAModel, repo: str = "me/name", **where: str) -> bool:
    """Whether a repo's adapter computes on the base what this model does."""
    back = LoRAModel.from_pretrained(repo, base_model=tiny("gpt2"), **where)
    return torch.equal(back.eval()(IDS).logits, model.eval()(IDS).logits)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what arrives -----------------------------------------------------------------------------------------------


def test_a_pushed_adapter_comes_back_with_the_same_logits(hub: Hub, model: LoRAModel) -> None:
    url = model.push_to_hub("me/name")
    assert set(hub.files("me/name")) == FILES | MADE
    assert [c.title for c in hub.log("me/name")] == ["Upload adapter", "initial commit"]
    assert url == f"{hub.endpoint}/me/name/commit/{hub.repos['me/name'].refs['main']}"
    assert same(model)


def test_a_repo_keeps_its_other_files_and_an_equal_push_makes_no_commit(hub: Hub, model: LoRAModel) -> None:
    hub.add("me/name", {"theirs.txt": b"1", "adapter_config.json": b"{}"})
    for name in ("me/name", "name"):  # without an owner it is the user's own
        model.push_to_hub(name)
        assert set(hub.files("me/name")) == {*FILES, "theirs.txt"}
        assert len(hub.log("me/name")) == 2


def test_private_message_description_and_tags_are_taken_over(hub: Hub, model: LoRAModel) -> None:
    model.push_to_hub("me/name", private=True, commit_message="a", commit_description="b", tags=["imdb", "lora"])
    assert hub.repos["me/name"].private
    assert (hub.log("me/name")[0].title, hub.log("me/name")[0].description) == ("a", "b")
    tags = ModelCard(hub.files("me/name")["README.md"].decode()).data.tags
    assert "imdb" in tags
    assert tags.count("lora") == 1
    with pytest.raises(TypeError, match="max_shard_size"):
        model.push_to_hub("me/name", max_shard_size="1GB")
    hub.add("me/public", {"a": b"1"})
    with pytest.raises(HubError, match="me/public.*private=True"):
        model.push_to_hub("me/public", private=True)
    assert set(hub.files("me/public")) == {"a"}


def test_a_branch_is_made_where_it_is_missing(hub: Hub, model: LoRAModel) -> None:
    hub.add("me/name", {"README.md": MINE})
    for _ in range(2):
        model.push_to_hub("me/name", revision="v2")
        assert set(hub.files("me/name", "v2")) == FILES
        assert b"Mine." in hub.files("me/name", "v2")["README.md"]
        assert set(hub.files("me/name")) == {"README.md"}
    assert same(model, revision="v2")


def test_a_pull_request_leaves_main_alone_and_loads(hub: Hub, model: LoRAModel) -> None:
    hub.add("org/theirs", {"a": b"1"})
    for repo, there in (("me/name", MADE), ("org/theirs", {"a"})):
        assert model.push_to_hub(repo, create_pr=True) == f"{hub.endpoint}/{repo}/discussions/1"
        assert set(hub.files(repo)) == there
        assert set(hub.files(repo, "refs/pr/1")) == FILES | there
        assert same(model, repo, revision="refs/pr/1")


def test_several_adapters_all_go_each_into_its_folder(hub: Hub, two: LoRAModel) -> None:
    hub.add("me/name", {"second/README.md": MINE})
    two.push_to_hub("me/name")
    assert set(hub.files("me/name")) == FILES | {f"second/{name}" for name in FILES}
    assert b"Mine." in hub.files("me/name")["second/README.md"]
    assert same(two, subfolder="second"), "the active one"
    two.push_to_hub("me/one", adapter_name="second")
    assert set(hub.files("me/one")) == FILES | MADE


def test_a_name_with_a_slash_is_a_folder_in_a_folder_here_and_on_the_hub(
    hub: Hub, model: LoRAModel, tmp_path: Path
) -> None:
    model.add_adapter(LoRAConfig(r=4), "me/second")
    model.peft_config["me/second"].base_model_name_or_path = "org/base"
    model.add_adapter(LoRAConfig(r=1), "me")
    model.peft_config["me"].base_model_name_or_path = "org/base"
    model.set_adapter("me/second")
    move(model)
    want = FILES | {f"me/{name}" for name in FILES} | {f"me/second/{name}" for name in FILES}
    model.save_pretrained(tmp_path / "here")
    assert set(content(tmp_path / "here")) == want
    model.push_to_hub("me/name")
    assert set(hub.files("me/name")) == want | MADE
    assert same(model, subfolder="me/second")
    assert cli.main(["push", str(tmp_path / "here"), "me/again"]) == 0
    assert set(hub.files("me/again")) == want | MADE
    before = model.get_adapter_state_dict("me/second")
    move(model)
    model.load_weights(tmp_path / "here")
    after = model.get_adapter_state_dict("me/second")
    assert all(torch.equal(after[key], value) for key, value in before.items())
    model.delete_adapter(["default", "me"])
    model.add_adapter(LoRAConfig(), "other")
    model.save_pretrained(tmp_path / "there")
    with pytest.raises(AdapterFileError, match="but adapters in me/second, other; pass subfolder="):
        LoRAModel.from_pretrained(tmp_path / "there")


def test_a_repo_that_conflicts_with_something_unnamed_is_an_error_of_the_hub(hub: Hub, model: LoRAModel) -> None:
    hub.fail_next("^POST .*/api/repos/create", status(409), times=9)
    with pytest.raises(HubError, match="conflicts with something"):
        model.push_to_hub("me/name")


@pytest.mark.parametrize("argument", ["tokenizer", "processing_class"])
def test_a_tokenizer_goes_along_when_given(hub: Hub, model: LoRAModel, argument: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]")))
    model.push_to_hub("me/name", **{argument: tokenizer})
    more = set(hub.files("me/name")) - FILES - MADE
    assert {"tokenizer.json", "tokenizer_config.json"} <= more
    assert more <= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert PreTrainedTokenizerFast.from_pretrained("me/name").get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ModelError, match="save_pretrained"):
        model.push_to_hub("me/name", **{argument: 3})


def test_the_card_that_the_owner_wrote_stays(hub: Hub, model: LoRAModel) -> None:
    model.push_to_hub("me/name")
    hub.add("me/name", {"README.md": hub.files("me/name")["README.md"] + b"\n## What I found\n\nIt likes cats.\n"})
    move(model, seed=1)
    hub.fail_next("^GET .*README", corrupt())  # what came broken is not sent back
    model.push_to_hub("me/name")
    assert b"## What I found\n\nIt likes cats." in hub.files("me/name")["README.md"]


@pytest.mark.parametrize("card", [b"---\na: [\n---\nx", b"---\ntags: lora\n\xff\n---\nx", b"\xff\xfe no card"])
def test_a_card_that_nobody_can_read_is_told_and_left_as_it_is(hub: Hub, model: LoRAModel, card: bytes) -> None:
    hub.add("me/name", {"README.md": card})
    with pytest.warns(UserWarning, match=r"README\.md"):
        model.push_to_hub("me/name", tags=["x"])
    assert hub.files("me/name")["README.md"] == card
    assert hub.files("me/name").keys() == FILES


def test_save_pretrained_pushes_what_it_saves(hub: Hub, model: LoRAModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "name", push_to_hub=True, commit_message="saved", private=True)
    pushed = hub.files("me/name")
    for name in FILES - {"README.md"}:
        assert pushed[name] == (tmp_path / "name" / name).read_bytes()
    assert b'LoRAModel.from_pretrained("me/name")' in pushed["README.md"]
    assert hub.log("me/name")[0].title == "saved"
    assert hub.repos["me/name"].private


# --- what never goes --------------------------------------------------------------------------------------------


def test_the_base_s_own_repo_is_refused_but_for_a_branch_or_a_pull_request(hub: Hub, tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path / "base")
    model = LoRAModel.from_pretrained(tmp_path / "base", LoRAConfig(r=2))
    move(model)
    for repo in ("me/base", "base"):
        with pytest.raises(ModelError, match="me/base is the base's own repo"):
            model.push_to_hub(repo, base_model="me/base")
    assert "me/base" not in hub.repos
    model.push_to_hub("me/base", base_model="me/base", revision="with-adapter")


@pytest.mark.parametrize("relative", [False, True])
def test_a_local_base_is_refused_unless_its_public_name_is_given(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    tiny("gpt2").save_pretrained(tmp_path / "home" / "base")
    monkeypatch.chdir(tmp_path)
    path = "home/base" if relative else str(tmp_path / "home" / "base")
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
    assert not any(b"home/base" in body for body in files.values())
    assert model.peft_config["default"].base_model_name_or_path == path
    model.peft_config["default"].auto_mapping = {"base_model_class": path, "parent_library": "x"}
    with pytest.raises(ModelError, match=r"adapter_config\.json .*path"):
        model.push_to_hub("me/name", base_model="org/base")


@pytest.mark.parametrize(
    "name",
    [None, "", "/a/b", "./b", "../b", "~/b", "~", "C:\\a\\b", "C:/a/b", "a\\b", "file:///a/b", "a/b/c", "\\\\host\\b"],
)
def test_everything_that_is_no_hub_id_is_a_local_base(name: str | None, elsewhere: None) -> None:
    with pytest.raises(ModelError, match="base_model='org/name'"):
        public_base(name, None, "the adapter")
    assert public_base(name, "org/base", "the adapter") == "org/base"
    assert public_base("gpt2", None, "the adapter") == "gpt2"


def test_a_token_in_the_files_stops_the_push(hub: Hub, model: LoRAModel) -> None:
    hub.add("me/name", {"README.md": MINE + f"login('{hub.stranger}')\n".encode()})
    with pytest.raises(ModelError, match=r"README\.md .*token") as caught:
        model.push_to_hub("me/name")
    assert hub.stranger not in str(caught.value)


@pytest.mark.parametrize(
    "token",
    ["npm_" + "a1" * 18, "pypi-AgEIcHlwaS5vcmc" + "a" * 40, "sk_live_" + "a1" * 12, "wandb_v1_" + "a1" * 20, "rk_test_" + "b2" * 9],
)  # fmt: skip
def test_tokens_of_other_services_stop_the_push_of_a_folder(
    token: str, hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (saved / "tokenizer_config.json").write_text(json.dumps({"note": token}))
    assert cli.main(["push", str(saved), "me/name"]) == 2
    assert "tokenizer_config.json would publish what is, or looks like, a token" in capsys.readouterr().err
    assert hub.repos == {}


@pytest.mark.parametrize(
    "path", ["/home/bob/x", "/data/x y", "~/.cache", "C:\\Users\\bob", "\\\\box\\share", "file:///x", "../up"]
)
def test_paths_in_configs_are_not_pushed(path: str, hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = {"mask_token": "</s>", "pad_token": "/", "chat_template": "{{ a }}/b/c\n</s>", "extra": ["/", "a/b/"]}
    (saved / "tokenizer_config.json").write_text(json.dumps({**tokens, "name_or_path": path, "from": [path, "x"]}))
    assert cli.main(["push", str(saved), "me/name"]) == 0
    pushed = json.loads(hub.files("me/name")["tokenizer_config.json"])
    assert pushed == {**tokens, "name_or_path": None, "from": ["x"]}
    config = json.loads((saved / "adapter_config.json").read_text())
    for key, value in {"revision": path, "exclude_modules": [path]}.items():
        (saved / "adapter_config.json").write_text(json.dumps({**config, key: value}))
        assert cli.main(["push", str(saved), "me/other"]) == 2
        assert f"adapter_config.json would publish a local path under {key};" in capsys.readouterr().err
    assert "me/other" not in hub.repos
    plain = {"exclude_modules": r"\w+\.(q|v)/?..\..*|/x"}  # an expression
    (saved / "adapter_config.json").write_text(json.dumps({**config, **plain}))
    assert cli.main(["push", str(saved), "me/other"]) == 0


def test_what_cannot_be_saved_leaves_no_empty_repo(hub: Hub, model: LoRAModel) -> None:
    model.merge_adapter()
    with pytest.raises(AdapterStateError, match="merged"):
        model.push_to_hub("me/name")
    assert hub.repos == {}


# --- who may not, and what goes wrong ---------------------------------------------------------------------------


def test_each_refusal_is_its_own_error(hub: Hub, model: LoRAModel, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/theirs", {"a": b"1"})
    hub.add("org/secret", {"a": b"1"}, private=True)
    for repo, kwargs, kind, message in (
        ("me/name", {"token": hub.reader}, HubAccessError, "settings/tokens"),
        ("org/theirs", {}, HubAccessError, "settings/tokens"),
        ("org/secret", {}, HubAccessError, "settings/tokens"),
        ("me/name", {"token": "hf_expired"}, HubAccessError, "hf auth login"),
        ("a/b/c", {}, HubError, "'a/b/c'"),
        ("me/name", {"revision": "refs/pr/7"}, HubNotFoundError, "'refs/pr/7'"),
    ):
        with pytest.raises(HubError) as caught:
            model.push_to_hub(repo, **kwargs)
        assert type(caught.value) is kind, (repo, kwargs, caught.value)
        assert message in str(caught.value)
    assert set(hub.files("org/theirs")) == {"a"}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubAccessError, match="log in"):
        model.push_to_hub("name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="me/name.*HF_HUB_OFFLINE"):
        model.push_to_hub("me/name")


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


WHERE = [
    "^GET /api/whoami", "^POST /api/repos/create", "^POST /api/validate", "/preupload/", "/info/lfs/", "^PUT /lfs/",
    "^POST .*/commit/", "^(HEAD|GET) .*README",
]  # fmt: skip
FAULTS = {
    "503": status(503, retry_after=2), "reset": reset(), "500 done": status(500, done=True),
    "reset done": reset(done=True),
}  # fmt: skip


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_goes_wrong_once_is_made_good_in_one_commit(hub: Hub, model: LoRAModel, where: str, fault: Fault) -> None:
    hub.add("me/name", {"README.md": MINE})
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
    before, config = model.eval()(IDS).logits, model.peft_config["default"].to_dict()
    for where in WHERE[1:]:
        for fault in (status(503), reset(), status(429, retry_after=99)):
            hub.faults.clear()
            hub.repos.clear()
            hub.blobs.clear()
            if "README" in where:
                hub.add("me/name", {"README.md": MINE})
            hub.fail_next(where, fault, times=999)
            with pytest.raises(HubError, match="me/name"):
                model.push_to_hub("me/name", base_model="org/other")
    assert torch.equal(model.eval()(IDS).logits, before)
    assert model.peft_config["default"].to_dict() == config


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_pushes_a_folder_s_adapter_alone(hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (saved / "tokenizer.json").write_text("{}")
    before = content(saved)
    assert cli.main(["push", str(saved), "me/name", "--private", "--commit-message", "hello"]) == 0
    assert capsys.readouterr().out == f"{hub.endpoint}/me/name/commit/{hub.repos['me/name'].refs['main']}\n"
    files = hub.files("me/name")
    assert set(files) == {*FILES, *MADE, "tokenizer.json"}
    assert all(files[name] == before[name] for name in FILES)
    assert hub.repos["me/name"].private
    assert hub.log("me/name")[0].title == "hello"
    assert content(saved) == before
    hub.add("me/other", {"README.md": MINE})
    assert cli.main(["push", str(saved), "me/other", "--create-pr"]) == 0
    assert cli.main(["push", str(saved), "me/other", "--revision", "v2"]) == 0
    assert set(hub.files("me/other", "v2")) == set(hub.files("me/other", "refs/pr/1")) == {*FILES, "tokenizer.json"}
    assert hub.files("me/other", "v2")["README.md"] == MINE, "the card that is there stays"


def test_the_command_takes_every_adapter_of_a_folder(hub: Hub, two: LoRAModel, tmp_path: Path) -> None:
    two.save_pretrained(tmp_path / "two")
    assert cli.main(["push", str(tmp_path / "two"), "me/name"]) == 0
    assert set(hub.files("me/name")) == FILES | MADE | {f"second/{name}" for name in FILES}


@pytest.mark.parametrize("place", ["", "second"])
@pytest.mark.parametrize("before", [True, False], ids=["over an older one", "the first"])
def test_the_command_pushes_the_config_of_a_save_that_was_cut_off(
    hub: Hub, model: LoRAModel, tmp_path: Path, place: str, before: bool
) -> None:
    folder = tmp_path / "cut" / place
    if before:
        model.save_pretrained(folder)
    newer = tmp_path / "newer"
    adapted(lora_alpha=64).save_pretrained(newer)
    folder.mkdir(parents=True, exist_ok=True)
    (newer / "adapter_model.safetensors").replace(folder / "adapter_model.safetensors")  # and then the process died
    (newer / "adapter_config.json").replace(folder / ".adapter_config.json.pending")
    assert LoRAConfig.from_pretrained(folder).lora_alpha == 64
    assert cli.main(["push", str(tmp_path / "cut"), "me/name"]) == 0
    files = hub.files("me/name")
    assert json.loads(files[f"{place}/adapter_config.json".lstrip("/")])["lora_alpha"] == 64


def test_the_command_names_a_local_base_as_told(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted(str(tmp_path / "base")).save_pretrained(tmp_path / "saved")
    assert cli.main(["push", str(tmp_path / "saved"), "me/name"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("hf-lora: ")
    assert "--base-model org/name" in told
    assert told.count("\n") == 1
    assert hub.requests == []
    assert cli.main(["push", str(tmp_path / "saved"), "me/name", "--base-model", "org/base"]) == 0
    files = hub.files("me/name")
    assert not any(str(tmp_path).encode() in body for body in files.values())
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert ModelCard(files["README.md"].decode()).data.base_model == "org/base"


def test_the_command_says_where_the_repo_s_card_may_be_of_other_weights(
    hub: Hub, model: LoRAModel, saved: Path, tmp_path: Path
) -> None:
    assert cli.main(["push", str(saved), "me/name"]) == 0
    card = hub.files("me/name")["README.md"]
    assert cli.main(["push", str(saved), "me/name"]) == 0
    move(model, seed=1)
    model.save_pretrained(tmp_path / "trained")
    with pytest.warns(UserWarning, match="card stays and may describe other weights"):
        assert cli.main(["push", str(tmp_path / "trained"), "me/name"]) == 0
    assert hub.files("me/name")["README.md"] == card


def test_the_command_pushes_no_pickle(hub: Hub, model: LoRAModel, saved: Path) -> None:
    torch.save(load_file(saved / "adapter_model.safetensors"), saved / "adapter_model.bin")
    (saved / "adapter_model.safetensors").unlink()
    assert cli.main(["push", str(saved), "me/name"]) == 0
    assert set(hub.files("me/name")) == FILES | MADE
    assert same(model)


def test_the_command_pushes_what_loads_and_takes_no_token(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (saved / "checkpoint-10").rename(saved / "runs" / "checkpoint-10")
    weights = saved / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    for folder in (saved, saved / "runs", saved / "nowhere", weights):
        assert cli.main(["push", str(folder), "me/name"]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1
    assert cli.main(["push", str(saved), "name", "--token", "x"]) == 2  # others could see it in the list of processes
    assert "No such option: --token" in capsys.readouterr().err
    assert hub.requests == []
