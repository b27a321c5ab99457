"""People's sounds: any rate, format and number of channels is the same to a model; what is broken is told."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    ASTFeatureExtractor,
    EvalPrediction,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperFeatureExtractor,
)

import hf_lora
from hf_lora.errors import ConfigError, DataError

from .jobs import write_csv
from .jobs_media import speller, tones, wav2vec2, whisper
from .peek import PLACE, RunSettings, media, plan_run, seconds_used


def _tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


def _row(folder: Path, name: str) -> dict[str, str]:
    return {"audio": name, PLACE: f"{folder / 'table.csv'}, line 2"}


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "PCM_16"), ("a.wav", "FLOAT"), ("a.flac", "PCM_24")])
def test_sounds_of_any_rate_are_resampled_to_the_models(rate: int, name: str, subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / name, _tone(rate), rate, subtype=subtype)
    found = media.sound(_row(tmp_path, name), name, 16000)
    assert (found.dtype, found.ndim) == (np.float32, 1)
    assert abs(len(found) - 8000) <= 1
    assert np.abs(found[1000:7000] - _tone(16000)[1000:7000]).max() < 0.01
    assert media.seconds(_row(tmp_path, name), name) == pytest.approx(0.5, abs=0.001)


def test_channels_are_averaged_and_bytes_are_read_like_files(tmp_path: Path) -> None:
    wave = _tone(16000)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, np.zeros_like(wave), wave * 0.5], axis=1), 16000)
    found = media.sound(_row(tmp_path, "a.wav"), "a.wav", 16000)
    assert np.abs(found - wave / 2).max() < 0.001
    held = (tmp_path / "a.wav").read_bytes()
    for value in (held, {"bytes": held, "path": None}, {"bytes": None, "path": "a.wav"}):
        assert np.array_equal(media.sound(_row(tmp_path, "a.wav"), value, 16000), found)


def test_sounds_that_cannot_be_used_are_told_with_file_and_row(tmp_path: Path) -> None:
    good = sorted(str(each) for each in tones(tmp_path).rglob("*.*"))
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    rows = [[name, Path(name).parent.name or "low"] for name in [*good, "text.wav", "empty.wav", "gone.wav"]]
    table = write_csv(tmp_path / "t.csv", ["clip", "label"], rows)
    (tmp_path / "scratch").mkdir()
    settings = RunSettings(model=str(wav2vec2(tmp_path / "base")), task="audio-classification", train=str(table))
    with pytest.raises(DataError) as caught:
        plan_run(settings, tmp_path / "scratch")
    for told in (
        f"{table}, line 34: text.wav cannot be read as a sound",
        f"{table}, line 35: empty.wav holds no sound",
        f"{table}, line 36: there is no file {tmp_path / 'gone.wav'}",
    ):
        assert told in str(caught.value)


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    held = io.BytesIO()
    soundfile.write(held, np.array([0.0, np.nan, 0.0]), 16000, subtype="FLOAT", format="WAV")
    with pytest.raises(DataError, match="no numbers"):
        media.sound(_row(tmp_path, "x.wav"), held.getvalue(), 16000)


def test_the_model_says_how_much_of_a_sound_it_takes() -> None:
    assert seconds_used(None, WhisperFeatureExtractor(chunk_length=30)) == 30
    assert seconds_used(None, ASTFeatureExtractor(num_mel_bins=32)) == pytest.approx(10.24)
    assert seconds_used(60, ASTFeatureExtractor(num_mel_bins=32)) == pytest.approx(10.24)
    assert seconds_used(5, ASTFeatureExtractor(num_mel_bins=32)) == 5
    assert seconds_used(60, Wav2Vec2FeatureExtractor()) == 60


def test_sounds_that_are_cut_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "scratch").mkdir()
    given = {"task": "audio-classification", "max_seconds": 0.25}
    base, rows = str(wav2vec2(tmp_path / "base")), str(tones(tmp_path))
    plan = plan_run(RunSettings(model=base, train=rows, **given), tmp_path / "scratch")
    assert "20 of 32 sounds are longer than 0.25 seconds" in caplog.text
    features = plan.preparation.features(plan.rows["train"].to_list(), plan.processor)
    assert max(len(each["input_values"]) for each in features) == 4000


def _speech(tmp_path: Path, rows: Path, base: Path | None = None, **settings: object) -> Any:
    scratch = tmp_path / f"scratch{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    base = base or speller(tmp_path / f"base{len(list(tmp_path.iterdir()))}")
    return plan_run(RunSettings(model=str(base), task="speech-recognition", train=str(rows), **settings), scratch)


def _said(tmp_path: Path, texts: list[str], seconds: float = 1.0) -> Path:
    soundfile.write(tmp_path / "a.wav", _tone(16000, seconds), 16000)
    return write_csv(tmp_path / "said.csv", ["audio", "text"], [["a.wav", text] for text in texts])


def test_texts_are_put_into_the_tokenizers_letters_and_what_it_lacks_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = _speech(tmp_path, _said(tmp_path, ["Hl,  hh!", "lll"] * 8))
    assert "does not know ',' (8 times), '!' (8 times)" in caplog.text
    assert "in upper case" in caplog.text
    rows = sorted(plan.rows["train"].to_list(), key=lambda row: row["text"])
    assert {plan.preparation.text(row) for row in rows} == {"HL HH", "LLL"}
    ids = plan.preparation.features(rows[-1:], plan.processor)[0]["labels"]
    assert (ids, plan.model.config.vocab_size) == ([5, 5, 5], 7)


def test_texts_in_another_script_or_too_long_for_their_sound_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="most of the texts; its letters are 'HL'"):
        _speech(tmp_path, _said(tmp_path, ["hallo", "привет"] * 8))
    with pytest.raises(DataError, match="has 60 letters for 1.0 seconds"):
        _speech(tmp_path, _said(tmp_path, ["hl" * 30, *["hl"] * 9]))
    with pytest.raises(DataError, match=r"takes 1\.0 seconds, and 0\.5 are used: part it"):
        _speech(tmp_path, _said(tmp_path, ["hl"] * 9), max_seconds=0.5)


def test_a_base_without_tokenizer_spells_with_the_letters_of_its_texts_and_keeps_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """XLS-R: the tokenizer is saved in the run and reads what the model writes."""
    base = wav2vec2(tmp_path / "base", (8, 8, 8))
    plan = _speech(tmp_path, _said(tmp_path, ["Ça va|?", "it's 2"] * 8), base)
    assert "in lower case: '2aistvç" in caplog.text
    assert "does not know '|' (8 times), '?' (8 times)" in caplog.text
    rows = {row["text"]: row for row in plan.rows["train"].to_list()}
    (ids,) = (each["labels"] for each in plan.preparation.features([rows["Ça va|?"]], plan.processor))
    plan.processor.save_pretrained(tmp_path / "run")
    read = Wav2Vec2Processor.from_pretrained(tmp_path / "run").tokenizer
    assert read.decode(ids, group_tokens=False) == "ça va"
    assert plan.model.config.vocab_size == len(read) == 5 + len("'2aistvç")
    assert any(name.startswith("lm_head") for name, each in plan.model.named_parameters() if each.requires_grad)
    with pytest.raises(DataError, match=r"said\.csv: the texts have no letters"):
        _speech(tmp_path, _said(tmp_path, ["?!"] * 8), base)


@pytest.mark.parametrize("family", [speller, whisper])
def test_a_long_sound_is_read_in_parts_but_not_learnt(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is at most as long as the model takes, the parts cover the sound, and the short ones stay as they are."""
    base, spoken = family(tmp_path / "base"), {"language": "de"} if family is whisper else {"max_seconds": 1.0}
    plan = _speech(tmp_path, _said(tmp_path, ["hl"] * 9, 0.5), base, **spoken)
    made = plan.preparation
    rows = plan.rows["train"].to_list()[:1]
    soundfile.write(tmp_path / "long.wav", _tone(16000, 2.5), 16000)
    long = {**rows[0], "audio": "long.wav"}
    said = "the model takes 1: part it, and its text" if family is whisper else "1 are used: part it, or train with"
    assert said in made.problem(long, labelled=True)
    made._takes = None
    made.fit_model(plan.model, plan.processor)  # what measuring a run that was trained does
    assert said in made.problem(long, labelled=True)
    assert made.problem(long, labelled=False) is None
    seen, extract = [], type(plan.processor.feature_extractor).__call__
    monkeypatch.setattr(
        type(plan.processor.feature_extractor), "__call__",
        lambda self, raw, *args, **how: (seen.append(np.shape(raw)), extract(self, raw, *args, **how))[1],
    )  # fmt: skip
    model = plan.model.eval()
    found = made.predictions(model, plan.processor, [rows[0], long, rows[0]])
    assert all(isinstance(each["text"], str) for each in found)
    assert found[0] == found[2] == made.predictions(model, plan.processor, rows)[0]
    parts = [shape[-1] for shape in seen if len(shape) == 1]
    assert max(parts) <= 16000
    assert sum(parts) >= 40000


def test_a_text_of_more_tokens_than_the_model_writes_is_told_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: its text has \d+ tokens, and the model writes 16: part its sound"):
        _speech(tmp_path, _said(tmp_path, ["h" * 40, *["hl"] * 9], 0.5), whisper(tmp_path / "whisper"), language="de")


def test_whisper_has_to_be_told_a_language_that_it_knows(tmp_path: Path) -> None:
    base, rows = whisper(tmp_path / "whisper"), _said(tmp_path, ["hl"] * 9, 0.5)
    for wrong in (None, "fr"):
        with pytest.raises(ConfigError, match="this Whisper knows de, en, zh"):
            _speech(tmp_path, rows, base, language=wrong)
    plan = _speech(tmp_path, rows, base, language="German", speech_task="translate")
    ids = plan.preparation.features(plan.rows["train"].to_list()[:1], plan.processor)[0]["labels"]
    words = plan.processor.tokenizer.convert_ids_to_tokens(ids)
    assert words[:4] == ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]
    batch = plan.preparation.collator(plan.processor, plan.model)(
        [{"input_features": np.zeros((32, 100)), "labels": ids}]
    )
    assert batch["labels"][0].tolist() == ids[1:]


def test_ctc_frames_are_letters_and_a_double_letter_stays_double() -> None:
    tokenizer = SimpleNamespace(
        batch_decode=lambda rows, skip_special_tokens, group_tokens: ["".join("_el"[i] for i in row) for row in rows],
        word_delimiter_token="|",
    )
    frames = np.eye(3)[[[1, 1, 2, 0, 2, 0]]]  # e e l _ l _
    compute = hf_lora.metrics("cer", "wer", processing_class=tokenizer)
    compute.begin(Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=3, pad_token_id=0, num_hidden_layers=1)))
    evaluated = EvalPrediction(predictions=frames, label_ids=np.array([[1, 2, 2, -100]]))
    assert compute(evaluated) == {"cer": 0.0, "wer": 0.0}
    assert compute.preprocess_logits_for_metrics(torch.tensor(frames), None).tolist() == [[1, 1, 2, 0, 2, 0]]
