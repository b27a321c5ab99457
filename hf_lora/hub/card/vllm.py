"""What vLLM serves: the classes of Transformers with which it takes LoRA adapters, and the ranks.

From the LoRA column of vLLM's list of supported models, 0.33. A class that is not here is not offered.
"""

__all__ = ["CLASSES", "RANKS"]

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that its --max-lora-rank takes
_CAUSAL = (
    "Afmoe Apertus Arcee Cohere Cohere2 Cwm DeepseekV2 DeepseekV3 Ernie4_5 Ernie4_5_Moe Exaone4 FalconH1 Gemma Gemma2 "
    "Gemma3 Glm Glm4 Glm4Moe GPTBigCode Granite GraniteMoe GraniteMoeHybrid GraniteMoeShared HunYuanDenseV1 "
    "HunYuanMoEV1 Jamba Lfm2 Lfm2Moe Llama Mistral Mixtral Nemotron OPT Olmo Olmo2 Olmo3 Phi Phi3 Qwen2 Qwen2Moe Qwen3 "
    "Qwen3Moe Qwen3Next SeedOss SmolLM3 Starcoder2 VaultGemma"
)
CLASSES = frozenset(f"{name}ForCausalLM" for name in _CAUSAL.split())
