"""A model's task, read from its class: the Hub's pipeline tag, and the Auto classes that load it.

The Hub's tags are those of huggingface.js. It has no "text2text-generation" any more (a search for it finds nothing):
such models are "text-generation" there, and keep their old name as a plain tag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config.keys import TASK_TYPES
from ...config.lora_config import LoRAConfig
from ...layers.specialising import name_of

__all__ = ["Task", "task_of"]

TEXT2TEXT = "text2text-generation"


@dataclass(frozen=True)
class Task:
    """A task: the Hub's pipeline tag, Transformers' Auto class, PEFT's Auto class where it has one, and further tags.

    pipeline: whether Transformers' `pipeline` runs it under that tag.
    """

    tag: str | None
    auto_class: str
    peft_class: str | None = None
    tags: tuple[str, ...] = ()
    pipeline: bool = True


# By task type, as PEFT names them.
TASKS: dict[str, Task] = {
    "SEQ_CLS": Task("text-classification", TASK_TYPES["SEQ_CLS"], "AutoPeftModelForSequenceClassification"),
    "TOKEN_CLS": Task("token-classification", TASK_TYPES["TOKEN_CLS"], "AutoPeftModelForTokenClassification"),
    "CAUSAL_LM": Task("text-generation", TASK_TYPES["CAUSAL_LM"], "AutoPeftModelForCausalLM"),
    "SEQ_2_SEQ_LM": Task(
        "text-generation", TASK_TYPES["SEQ_2_SEQ_LM"], "AutoPeftModelForSeq2SeqLM", (TEXT2TEXT,), pipeline=False
    ),
    "QUESTION_ANS": Task(
        "question-answering", TASK_TYPES["QUESTION_ANS"], "AutoPeftModelForQuestionAnswering", pipeline=False
    ),
    "FEATURE_EXTRACTION": Task(
        "feature-extraction", TASK_TYPES["FEATURE_EXTRACTION"], "AutoPeftModelForFeatureExtraction"
    ),
}
# By Transformers' mapping of architectures (MODEL_FOR_..._MAPPING_NAMES). A class in several is the first one's: the
# narrower a mapping, the earlier it stands.
_BY_MAPPING: dict[str, Task] = {
    "SPEECH_SEQ_2_SEQ": Task("automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
    "CTC": Task("automatic-speech-recognition", "AutoModelForCTC"),
    "AUDIO_CLASSIFICATION": Task("audio-classification", "AutoModelForAudioClassification"),
    "TEXT_TO_WAVEFORM": Task("text-to-audio", "AutoModelForTextToWaveform"),
    "TEXT_TO_SPECTROGRAM": Task("text-to-speech", "AutoModelForTextToSpectrogram"),
    "IMAGE_TEXT_TO_TEXT": Task("image-text-to-text", "AutoModelForImageTextToText"),
    "DOCUMENT_QUESTION_ANSWERING": Task("document-question-answering", "AutoModelForDocumentQuestionAnswering"),
    "VISUAL_QUESTION_ANSWERING": Task(
        "visual-question-answering", "AutoModelForVisualQuestionAnswering", pipeline=False
    ),
    "TABLE_QUESTION_ANSWERING": Task("table-question-answering", "AutoModelForTableQuestionAnswering"),
    "IMAGE_CLASSIFICATION": Task("image-classification", "AutoModelForImageClassification"),
    "ZERO_SHOT_IMAGE_CLASSIFICATION": Task("zero-shot-image-classification", "AutoModelForZeroShotImageClassification"),
    "IMAGE_SEGMENTATION": Task("image-segmentation", "AutoModelForImageSegmentation"),
    "SEMANTIC_SEGMENTATION": Task("image-segmentation", "AutoModelForSemanticSegmentation"),
    "INSTANCE_SEGMENTATION": Task("image-segmentation", "AutoModelForInstanceSegmentation"),
    "UNIVERSAL_SEGMENTATION": Task("image-segmentation", "AutoModelForUniversalSegmentation"),
    "OBJECT_DETECTION": Task("object-detection", "AutoModelForObjectDetection"),
    "ZERO_SHOT_OBJECT_DETECTION": Task("zero-shot-object-detection", "AutoModelForZeroShotObjectDetection"),
    "DEPTH_ESTIMATION": Task("depth-estimation", "AutoModelForDepthEstimation"),
    "VIDEO_CLASSIFICATION": Task("video-classification", "AutoModelForVideoClassification"),
    "MASK_GENERATION": Task("mask-generation", "AutoModelForMaskGeneration"),
    "KEYPOINT_DETECTION": Task("keypoint-detection", "AutoModelForKeypointDetection", pipeline=False),
    "IMAGE_TO_IMAGE": Task("image-to-image", "AutoModelForImageToImage", pipeline=False),
    "SEQUENCE_CLASSIFICATION": TASKS["SEQ_CLS"],
    "TOKEN_CLASSIFICATION": TASKS["TOKEN_CLS"],
    "QUESTION_ANSWERING": TASKS["QUESTION_ANS"],
    "MULTIPLE_CHOICE": Task("multiple-choice", "AutoModelForMultipleChoice", pipeline=False),
    "SEQ_TO_SEQ_CAUSAL_LM": TASKS["SEQ_2_SEQ_LM"],
    "CAUSAL_LM": TASKS["CAUSAL_LM"],
    "MASKED_LM": Task("fill-mask", "AutoModelForMaskedLM"),
    "MULTIMODAL_LM": Task("any-to-any", "AutoModelForMultimodalLM"),
}
# A base without a head gives features; of what, its main input says.
_FEATURES = {
    "pixel_values": Task("image-feature-extraction", "AutoModel"),
    "input_ids": TASKS["FEATURE_EXTRACTION"],
}


def task_of(model: Any, config: LoRAConfig) -> Task | None:
    """Return what an adapted model is for, None where nothing says it.

    The class decides where Transformers knows it, because task types are few: people write SEQ_2_SEQ_LM for Whisper
    and CAUSAL_LM for vision-language models. Else the task type does.
    """
    name = name_of(model)
    for mapping, task in _BY_MAPPING.items():
        if name in _classes(f"MODEL_FOR_{mapping}_MAPPING_NAMES"):
            return _hearing(task) if task.tags == (TEXT2TEXT,) and _hears(model) else task
    if config.task_type is not None:
        return TASKS[config.task_type]
    if name in _classes("MODEL_MAPPING_NAMES"):
        return _FEATURES.get(getattr(model, "main_input_name", ""), Task(None, "AutoModel"))
    return None


def _classes(mapping: str) -> set[str]:
    from transformers.models.auto import modeling_auto  # not above: importing it takes a quarter of a second

    values = getattr(modeling_auto, mapping, {}).values()  # older versions have fewer
    return {name for value in values for name in ((value,) if isinstance(value, str) else value)}


def _hears(model: Any) -> bool:
    return getattr(getattr(model, "config", None), "audio_config", None) is not None


def _hearing(task: Task) -> Task:
    return Task("audio-text-to-text", task.auto_class, task.peft_class, pipeline=False)
