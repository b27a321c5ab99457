"""Data that is made: numbers in words of four languages, and melodies with the names of their notes."""

import itertools
import random

import numpy as np

UNITS = {
    "English": "one two three four five six seven eight nine",
    "German": "ein zwei drei vier fünf sechs sieben acht neun",
    "Spanish": "uno dos tres cuatro cinco seis siete ocho nueve",
    "Dutch": "een twee drie vier vijf zes zeven acht negen",
}
TENS = {  # from thirty on, where all four languages are regular
    "English": "thirty forty fifty sixty seventy eighty ninety",
    "German": "dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
    "Spanish": "treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    "Dutch": "dertig veertig vijftig zestig zeventig tachtig negentig",
}
HUNDREDS = {
    "English": [f"{unit} hundred and " for unit in UNITS["English"].split()],
    "German": [f"{unit}hundert" for unit in UNITS["German"].split()],
    "Spanish": [f"{stem}ientos " for stem in ["dosc", "tresc", "cuatroc", "quin", "seisc", "setec", "ochoc", "novec"]],
    "Dutch": [f"{unit}honderd" for unit in UNITS["Dutch"].split()],
}
HUNDREDS["Spanish"].insert(0, "ciento ")
HUNDREDS["Dutch"][0] = "honderd"
JOINED = {"English": "{1}-{0}", "German": "{0}und{1}", "Spanish": "{1} y {0}", "Dutch": "{0}en{1}"}
NOTES = {"do": 262, "re": 294, "mi": 330, "fa": 349, "sol": 392, "la": 440}  # hertz
RATE = 16_000  # samples a second, as Whisper hears them


def numbers(language: str) -> dict[int, str]:
    """Return numbers from 31 to 999, those that end in 31 to 99 but in no zero, in words of a language.

    >>> numbers("English")[42], numbers("German")[342], numbers("Spanish")[542], numbers("Dutch")[182]
    ('forty-two', 'dreihundertzweiundvierzig', 'quinientos cuarenta y dos', 'honderdtweeëntachtig')
    """
    found = {}
    for ten, tens in enumerate(TENS[language].split(), start=3):
        for unit, units in enumerate(UNITS[language].split(), start=1):
            word = JOINED[language].format(units, tens).replace("eeen", "eeën")  # Dutch parts the vowels
            for hundred, before in enumerate(["", *HUNDREDS[language]]):
                found[100 * hundred + 10 * ten + unit] = before + word
    return found


def melodies(number: int) -> list[tuple[np.ndarray, str]]:
    """Return sounds of a second, float32 at 16 kHz, and their three notes' names; each melody once, in random order."""
    draw, rows = random.Random(0), []
    melodies = list(itertools.product(NOTES, repeat=3))
    draw.shuffle(melodies)
    noise = np.random.default_rng(0)
    time = np.arange(RATE // 3) / RATE
    for notes in melodies[:number]:
        tune = [sum(np.sin(2 * np.pi * NOTES[note] * k * time) / k for k in (1, 2, 3)) for note in notes]
        wave = 0.1 * np.concatenate(tune) + 0.002 * noise.normal(size=3 * len(time))
        rows.append((wave.astype(np.float32), " ".join(notes)))
    return rows
