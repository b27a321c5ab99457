"""The papers behind the rows of the three tables, by the rows' names; a row without one is nobody's paper."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper. authors: as BibTeX writes them. arxiv: its number there, or its whole address elsewhere."""

    short: str
    title: str
    authors: str
    year: int
    arxiv: str

    @property
    def link(self) -> str:
        """Its address."""
        return self.arxiv if "://" in self.arxiv else f"https://arxiv.org/abs/{self.arxiv}"

    def bibtex(self, key: str) -> str:
        """Return its BibTeX entry."""
        where = {} if self.link == self.arxiv else {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        fields = {"title": self.title, "author": self.authors, "year": self.year, **where, "url": self.link}
        return f"@misc{{{key},\n" + ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items()) + "\n}"


PAPERS: dict[str, Paper] = {
    "lora": Paper(
        "LoRA", "LoRA: Low-Rank Adaptation of Large Language Models",
        "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean "
        "and Wang, Lu and Chen, Weizhu", 2021, "2106.09685",
    ),
    "rslora": Paper(
        "rsLoRA", "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", "Kalajdzievski, Damjan", 2023,
        "2312.03732",
    ),
    "dora": Paper(
        "DoRA", "DoRA: Weight-Decomposed Low-Rank Adaptation",
        "Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo and Wang, Yu-Chiang Frank and Cheng, "
        "Kwang-Ting and Chen, Min-Hung", 2024, "2402.09353",
    ),
    "hira": Paper(
        "HiRA", "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models",
        "Huang, Qiushi and Ko, Tom and Zhuang, Zhan and Tang, Lilian and Zhang, Yu", 2025,
        "https://openreview.net/forum?id=TwJrTz9cRS",
    ),
    "lora_fa": Paper(
        "LoRA-FA", "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning",
        "Zhang, Longteng and Zhang, Lin and Shi, Shaohuai and Chu, Xiaowen and Li, Bo", 2023, "2308.03303",
    ),
    "lora_xs": Paper(
        "LoRA-XS", "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
        "Bałazy, Klaudia and Banaei, Mohammadreza and Aberer, Karl and Tabor, Jacek", 2024, "2405.17604",
    ),
    "vera": Paper(
        "VeRA", "VeRA: Vector-based Random Matrix Adaptation",
        "Kopiczko, Dawid J. and Blankevoort, Tijmen and Asano, Yuki M.", 2023, "2310.11454",
    ),
    "adalora": Paper(
        "AdaLoRA", "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        "Zhang, Qingru and Chen, Minshuo and Bukharin, Alexander and Karampatziakis, Nikos and He, Pengcheng and "
        "Cheng, Yu and Chen, Weizhu and Zhao, Tuo", 2023, "2303.10512",
    ),
    "sharelora": Paper(
        "ShareLoRA", "ShareLoRA: Parameter Efficient and Robust Large Language Model Fine-tuning via Shared Low-Rank "
        "Adaptation", "Song, Yurun and Zhao, Junchen and Harris, Ian G. and Jyothi, Sangeetha Abdu", 2024, "2406.10785",
    ),
    "pissa": Paper(
        "PiSSA", "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
        "Meng, Fanxu and Wang, Zhaohui and Zhang, Muhan", 2024, "2404.02948",
    ),
    "olora": Paper(
        "OLoRA", "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", "Büyükakyüz, Kerim", 2024,
        "2406.01775",
    ),
    "eva": Paper(
        "EVA", "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
        "Paischer, Fabian and Hauzenberger, Lukas and Schmied, Thomas and Alkin, Benedikt and Deisenroth, Marc Peter "
        "and Hochreiter, Sepp", 2024, "2410.07170",
    ),
    "lora_ga": Paper(
        "LoRA-GA", "LoRA-GA: Low-Rank Adaptation with Gradient Approximation",
        "Wang, Shaowen and Yu, Linxi and Li, Jian", 2024, "2407.05000",
    ),
    "loftq": Paper(
        "LoftQ", "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
        "Li, Yixiao and Yu, Yifan and Liang, Chen and He, Pengcheng and Karampatziakis, Nikos and Chen, Weizhu and "
        "Zhao, Tuo", 2023, "2310.08659",
    ),
    "milora": Paper(
        "MiLoRA", "MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM Finetuning",
        "Wang, Hanqing and Li, Yixia and Wang, Shuo and Chen, Guanhua and Chen, Yun", 2024, "2406.09044",
    ),
    "mica": Paper(
        "MiCA", "MiCA Learns More Knowledge Than LoRA and Full Fine-Tuning", "Rüdiger, Sten and Raschka, Sebastian",
        2026, "2604.01694",
    ),
}  # fmt: skip
