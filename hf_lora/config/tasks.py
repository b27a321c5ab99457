"""What models are for: one table of the Hub's tags, Transformers' and PEFT's classes and PEFT's task types.

The Hub's tags are those of huggingface.js. It has no "text2text-generation" any more (a search for it finds nothing):
such models are "text-generation" there, and keep their old name as a plain tag.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task: the Hub's pipeline tag, the Auto class that loads its models, and the mapping that lists them.

    mapping: X of Transformers' MODEL_FOR_X_MAPPING_NAMES. task_type, peft_class: PEFT's names, where it has some.
    heads: what Transformers calls the heads that PEFT trains along. tags: further ones on the Hub. pipeline: whether
    Transformers' `pipeline` runs it under that tag.
    """

    tag: str | None
    auto_class: str
    mapping: str | None = None
    task_type: str | None = None
    peft_class: str | None = None
    heads: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pipeline: bool = True
    learning_rate: float = 1e-3


# A class that several mappings list has the first one's task: the narrower a mapping, the earlier it stands.
TASKS = (
    Task("automatic-speech-recognition", "AutoModelForSpeechSeq2Seq", "SPEECH_SEQ_2_SEQ"),
    Task("automatic-speech-recognition", "AutoModelForCTC", "CTC"),
    Task("audio-classification", "AutoModelForAudioClassification", "AUDIO_CLASSIFICATION"),
    Task("text-to-audio", "AutoModelForTextToWaveform", "TEXT_TO_WAVEFORM"),
    Task("text-to-speech", "AutoModelForTextToSpectrogram", "TEXT_TO_SPECTROGRAM"),
    Task("image-text-to-text", "AutoModelForImageTextToText", "IMAGE_TEXT_TO_TEXT"),
    Task("document-question-answering", "AutoModelForDocumentQuestionAnswering", "DOCUMENT_QUESTION_ANSWERING"),
    Task(
        "visual-question-answering", "AutoModelForVisualQuestionAnswering", "VISUAL_QUESTION_ANSWERING", pipeline=False
    ),
    Task("table-question-answering", "AutoModelForTableQuestionAnswering", "TABLE_QUESTION_ANSWERING"),
    Task("image-classification", "AutoModelForImageClassification", "IMAGE_CLASSIFICATION"),
    Task("zero-shot-image-classification", "AutoModelForZeroShotImageClassification", "ZERO_SHOT_IMAGE_CLASSIFICATION"),
    Task("image-segmentation", "AutoModelForImageSegmentation", "IMAGE_SEGMENTATION"),
    Task("image-segmentation", "AutoModelForSemanticSegmentation", "SEMANTIC_SEGMENTATION"),
    Task("image-segmentation", "AutoModelForInstanceSegmentation", "INSTANCE_SEGMENTATION"),
    Task("image-segmentation", "AutoModelForUniversalSegmentation", "UNIVERSAL_SEGMENTATION"),
    Task("object-detection", "AutoModelForObjectDetection", "OBJECT_DETECTION"),
    Task("zero-shot-object-detection", "AutoModelForZeroShotObjectDetection", "ZERO_SHOT_OBJECT_DETECTION"),
    Task("depth-estimation", "AutoModelForDepthEstimation", "DEPTH_ESTIMATION"),
    Task("video-classification", "AutoModelForVideoClassification", "VIDEO_CLASSIFICATION"),
    Task("mask-generation", "AutoModelForMaskGeneration", "MASK_GENERATION"),
    Task("keypoint-detection", "AutoModelForKeypointDetection", "KEYPOINT_DETECTION", pipeline=False),
    Task("image-to-image", "AutoModelForImageToImage", "IMAGE_TO_IMAGE", pipeline=False),
    Task(
        "text-classification", "AutoModelForSequenceClassification", "SEQUENCE_CLASSIFICATION",
        "SEQ_CLS", "AutoPeftModelForSequenceClassification", heads=("classifier", "score"),
    ),
    Task(
        "token-classification", "AutoModelForTokenClassification", "TOKEN_CLASSIFICATION",
        "TOKEN_CLS", "AutoPeftModelForTokenClassification", heads=("classifier", "score"),
    ),
    Task(
        "question-answering", "AutoModelForQuestionAnswering", "QUESTION_ANSWERING",
        "QUESTION_ANS", "AutoPeftModelForQuestionAnswering", heads=("qa_outputs",), pipeline=False,
    ),
    Task("multiple-choice", "AutoModelForMultipleChoice", "MULTIPLE_CHOICE", pipeline=False),
    Task(
        "text-generation", "AutoModelForSeq2SeqLM", "SEQ_TO_SEQ_CAUSAL_LM",
        "SEQ_2_SEQ_LM", "AutoPeftModelForSeq2SeqLM", tags=("text2text-generation",), pipeline=False,
        learning_rate=3e-4,
    ),
    Task(
        "text-generation", "AutoModelForCausalLM", "CAUSAL_LM", "CAUSAL_LM", "AutoPeftModelForCausalLM",
        learning_rate=3e-4,
    ),
    Task("fill-mask", "AutoModelForMaskedLM", "MASKED_LM"),
    Task("any-to-any", "AutoModelForMultimodalLM", "MULTIMODAL_LM"),
    Task("feature-extraction", "AutoModel", None, "FEATURE_EXTRACTION", "AutoPeftModelForFeatureExtraction"),
)  # fmt: skip
TASK_TYPES = {task.task_type: task for task in TASKS if task.task_type}


def classes_of(mapping: str) -> set[str]:
    """Return the names of the classes that a mapping of Transformers lists, as MODEL_FOR_CAUSAL_LM_MAPPING_NAMES."""
    from transformers.models.auto import modeling_auto  # not above: importing it takes a quarter of a second

    values = getattr(modeling_auto, mapping, {}).values()  # older versions have fewer
    return {name for value in values for name in ((value,) if isinstance(value, str) else value)}
