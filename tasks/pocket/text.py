"""Short stories in plain English, made from a grammar of events about people, animals and things.

    Mia was a quiet girl who lived near the lake. One morning she found a golden key in the garden. ...

A story keeps its people, its thing and its places, so a good reader predicts more and more of it. The level
is how much there is to keep track of: one person, two people, or two people and an animal.
"""

import re
from itertools import islice
from typing import Final

from .splits import Document, Draw, Split, documents
from .words import CATEGORIES, COLORS, HE, NAMES

LEVELS: Final = (1, 2, 3)

TRAITS: Final = ("quiet", "brave", "clever", "kind", "curious", "proud", "shy", "patient", "lazy", "cheerful")
SIZES: Final = ("small", "big", "round", "new", "heavy", "tiny")
TIMES: Final = (
    "One morning",
    "One evening",
    "Early in spring",
    "On a cold day",
    "After the rain",
    "Late at night",
)
FEELINGS: Final = ("happy", "tired", "afraid", "glad", "sad", "surprised", "angry", "calm")
WEATHER: Final = (
    "The sun was warm.",
    "It began to rain.",
    "The wind was cold.",
    "Snow fell on the hills.",
    "The sky was gray.",
)
KEPT: Final = tuple(noun for kind in ("tool", "garment", "toy", "thing") for noun in CATEGORIES[kind])

OPENINGS: Final = (
    "{A} was a {trait} {child} who lived near the {home}.",
    "Near the {home} there lived a {trait} {child} named {A}.",
    "Every day {A} walked from the {home} to the {far}.",
    "{A} had lived at the {home} for many years.",
)
FINDINGS: Final = (
    "{time} {he} found a {color} {thing} in the {far}.",
    "{time} {he} bought a {size} {color} {thing} at the {far}.",
    "{time} {he} lost {his} {color} {thing} on the way to the {far}.",
    "{time} somebody left a {size} {thing} at the door of the {home}.",
)
ALONE: Final = (
    "{He} looked at the {thing} for a long time and felt {feeling}.",
    "{He} carried the {thing} from the {far} to the {home}.",
    "{He} ate some {dish} and a {fruit} and then slept until noon.",
    "{He} wanted to paint the {thing} {color2}, but there was no paint.",
    "{He} put the {thing} into a {box} and hid it behind the {plant}.",
    "{He} went by {vehicle} to the {far} and came back before dark.",
    "{He} was {feeling}, because the {thing} was not where {he} had left it.",
    "{weather}",
)
TOGETHER: Final = (
    "{B} came to the {home} and asked about the {thing}.",
    '"Is that my {thing}?" asked {B}. "No," said {A}, "it is mine."',
    "{A} gave the {thing} to {B}, and {B} gave {A} a {fruit}.",
    "{A} and {B} went to the {far} together.",
    "{B} told {A} a story about a {trait2} {animal2} and a {color2} {vehicle}.",
    '"I am {feeling}," said {B}. {A} gave {B} some {dish}.',
    "{B} was {trait2}, and {A} was {trait}, so they were good friends.",
    "{B} wanted to see the {thing}, but {A} was {feeling} and said no.",
)
CREATURE: Final = (
    "A {size} {animal} followed {A} to the {far}.",
    "The {animal} took the {thing} and ran under the {plant}.",
    "{B} gave the {animal} some {dish}, and it was {feeling}.",
    "The {animal} slept in the {box} beside the {thing}.",
    "Nobody but the {animal} knew where the {thing} was.",
    "{A} called the {animal}, but it stayed near {B}.",
)
ENDINGS: Final = (
    "In the end {A} kept the {thing}, and everybody at the {home} was {feeling}.",
    "That night {A} put the {thing} beside the {box} and was {feeling} again.",
    "From that day on the {thing} stayed at the {home}.",
    "So {A} went home to the {home} and never spoke of the {thing} again.",
)


def make(draw: Draw, level: int) -> Document:
    """A story of the level."""
    story = " ".join(sentences(draw, level))
    return Document(level=level, prompt="", target=story, key=story, fields={"text": story})


def sentences(draw: Draw, level: int = 3) -> list[str]:
    """The 8 to 12 sentences of one story."""
    slots = _cast(draw)
    events = (ALONE, ALONE + TOGETHER, TOGETHER + CREATURE)[level - 1]
    middle = draw.sample(events, draw.between(5, min(len(events), 9)))
    lines = [draw.pick(OPENINGS), draw.pick(FINDINGS), *middle, draw.pick(ENDINGS)]
    told = [line.format(**slots, **_aside(draw)) for line in lines]
    return [re.sub(r"\ba (?=[aeiou])", "an ", sentence) for sentence in told]


def _cast(draw: Draw) -> dict[str, str]:
    """What stays the same through a story."""
    one, two = draw.sample(NAMES, 2)
    home, far = draw.sample(CATEGORIES["place"], 2)
    he, his, child = ("he", "his", "boy") if one in HE else ("she", "her", "girl")
    return {
        "A": one,
        "B": two,
        "he": he,
        "He": he.capitalize(),
        "his": his,
        "child": child,
        "home": home,
        "far": far,
        "thing": draw.pick(KEPT),
        "color": draw.pick(COLORS),
        "size": draw.pick(SIZES),
        "animal": draw.pick(CATEGORIES["animal"]),
        "plant": draw.pick(CATEGORIES["plant"]),
        "trait": draw.pick(TRAITS),
        "trait2": draw.pick(TRAITS),
        "box": draw.pick(("box", "cart", "cup", "boot")),
    }


def _aside(draw: Draw) -> dict[str, str]:
    """What is new in every sentence."""
    return {
        "time": draw.pick(TIMES),
        "feeling": draw.pick(FEELINGS),
        "weather": draw.pick(WEATHER),
        "dish": draw.pick(CATEGORIES["dish"]),
        "fruit": draw.pick(CATEGORIES["fruit"]),
        "vehicle": draw.pick(CATEGORIES["vehicle"]),
        "animal2": draw.pick(CATEGORIES["animal"]),
        "color2": draw.pick(COLORS),
    }


def train_texts(size: int = 512) -> list[str]:
    """The first stories of the training split: about 500 bytes each, never one that is scored."""
    return [document.target for document in islice(documents(make, LEVELS, Split.TRAIN, "pocket", 1), size)]
