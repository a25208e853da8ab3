"""The words that every pocket task is written in: few enough that each is one token of a small tokenizer."""

from typing import Final

NAMES: Final = (
    *("Ada", "Ben", "Cora", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jill", "Kim", "Leo"),
    *("Mia", "Ned", "Olga", "Pia", "Rosa", "Sam", "Tess", "Uma", "Vera", "Will", "Yara", "Zoe"),
)
HE: Final = frozenset({"Ben", "Dan", "Finn", "Gus", "Ivo", "Leo", "Ned", "Sam", "Will"})

CATEGORIES: Final[dict[str, tuple[str, ...]]] = {
    "animal": ("fox", "cat", "dog", "owl", "bear", "goat", "duck", "frog", "hen", "wolf", "crab", "mole"),
    "fruit": (
        "apple",
        "pear",
        "plum",
        "fig",
        "lemon",
        "grape",
        "peach",
        "melon",
        "lime",
        "date",
        "berry",
        "mango",
    ),
    "tool": (
        "hammer",
        "saw",
        "drill",
        "rake",
        "spade",
        "axe",
        "file",
        "brush",
        "wrench",
        "knife",
        "shovel",
        "ladder",
    ),
    "garment": (
        "hat",
        "coat",
        "scarf",
        "shirt",
        "sock",
        "glove",
        "boot",
        "belt",
        "cap",
        "dress",
        "vest",
        "shoe",
    ),
    "vehicle": (
        "car",
        "bus",
        "train",
        "truck",
        "boat",
        "ship",
        "bike",
        "cart",
        "sled",
        "tram",
        "van",
        "plane",
    ),
    "toy": (
        "ball",
        "doll",
        "kite",
        "top",
        "puzzle",
        "robot",
        "drum",
        "whistle",
        "marble",
        "yoyo",
        "dice",
        "puppet",
    ),
    "plant": ("oak", "rose", "fern", "moss", "reed", "pine", "tulip", "ivy", "daisy", "palm", "lily", "elm"),
    "dish": (
        "soup",
        "bread",
        "cake",
        "stew",
        "rice",
        "pie",
        "salad",
        "toast",
        "pasta",
        "jam",
        "cheese",
        "honey",
    ),
    "place": (
        "mill",
        "farm",
        "lake",
        "cave",
        "tower",
        "bridge",
        "market",
        "garden",
        "harbor",
        "school",
        "inn",
        "barn",
    ),
    "thing": (
        "lamp",
        "clock",
        "chair",
        "table",
        "mirror",
        "book",
        "key",
        "rope",
        "bell",
        "box",
        "cup",
        "map",
    ),
}
"""Nouns by kind. No noun has two kinds, which the category questions rely on."""

NOUNS: Final = tuple(noun for nouns in CATEGORIES.values() for noun in nouns)
COUNTABLE: Final = (
    "shells",
    "coins",
    "stones",
    "stamps",
    "beads",
    "cards",
    "pens",
    "nuts",
    "eggs",
    "buttons",
)
COLORS: Final = ("red", "blue", "green", "black", "white", "brown", "golden", "gray")


def with_article(noun: str) -> str:
    """The noun after its indefinite article: ``an owl``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
