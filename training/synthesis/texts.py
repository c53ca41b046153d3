"""The sentences: digit strings and short spoken commands, an open set from a closed vocabulary."""

import hashlib

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "fifteen", "twenty")
ROOMS = ("kitchen", "bedroom", "bathroom", "garage", "garden", "office", "hall", "living room")
DEVICES = ("light", "lamp", "fan", "heater", "radio", "television", "printer", "door")
NAMES = ("anna", "peter", "maria", "john", "susan", "robert", "emma", "david", "laura", "thomas")
MUSIC = ("jazz", "blues", "rock", "folk music", "classical music", "dance music")
THINGS = ("milk", "bread", "apples", "coffee", "sugar", "rice", "butter", "soap", "paper", "candles")
DAYS = ("today", "tomorrow", "on monday", "on tuesday", "on friday", "on saturday", "on sunday")
TEMPLATES = (
    "turn {on_off} the {device} in the {room}",
    "turn {on_off} the {room} {device}",
    "set a timer for {number} minutes",
    "wake me at {number} {day}",
    "call {name} {day}",
    "call {name} at {number}",
    "send a message to {name}",
    "play some {music}",
    "play {music} in the {room}",
    "add {thing} to the shopping list",
    "add {thing} and {thing} to the list",
    "remind {name} to buy {thing}",
    "what is the weather {day}",
    "how warm is it in the {room}",
    "open the {room} door",
    "close the window in the {room}",
    "make the {room} {number} degrees warmer",
    "stop the {music}",
)
SLOTS = {
    "on_off": ("on", "off"),
    "device": DEVICES,
    "room": ROOMS,
    "number": NUMBERS,
    "name": NAMES,
    "music": MUSIC,
    "thing": THINGS,
    "day": DAYS,
}
HELD_OUT_SHARE = 10  # one sentence in ten, and one of ten speakers, is never trained on


def draw_sentence(rng: np.random.Generator, held_out: bool) -> str:
    """A sentence of the training or of the held-out set; the two never share one."""
    while True:
        sentence = _digits(rng) if rng.random() < 0.4 else _command(rng)
        if is_held_out(sentence) == held_out:
            return sentence


def draw_fragment(rng: np.random.Generator, held_out: bool) -> str:
    """One to three words that follow each other in a sentence."""
    while True:
        words = draw_sentence(rng, bool(rng.integers(2))).split()
        count = int(rng.integers(1, 4))
        start = int(rng.integers(0, max(1, len(words) - count + 1)))
        fragment = " ".join(words[start : start + count])
        if is_held_out(fragment) == held_out:
            return fragment


def is_held_out(sentence: str) -> bool:
    """Whether a sentence belongs to the held-out set: decided by its hash, so that no list is needed."""
    return hashlib.sha256(sentence.encode()).digest()[0] % HELD_OUT_SHARE == 0


def _digits(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(DIGITS) for _ in range(rng.integers(2, 8)))


def _command(rng: np.random.Generator) -> str:
    sentence = str(rng.choice(TEMPLATES))
    while "{" in sentence:
        slot = sentence[sentence.index("{") + 1 : sentence.index("}")]
        sentence = sentence.replace(f"{{{slot}}}", str(rng.choice(SLOTS[slot])), 1)
    return sentence
