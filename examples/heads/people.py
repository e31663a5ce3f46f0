"""Who a head is: everything random about it, drawn from its number alone, and what CelebA's attributes say of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)

# Targets that go both ways: the weight's sign picks the one, its size says how much; and the spread of the weight.
_PAIRS = {
    "chin/chin-bones": (("decr", "incr"), 0.3),
    "chin/chin-height": (("decr", "incr"), 0.3),
    "chin/chin-jaw-drop": (("decr", "incr"), 0.3),
    "chin/chin-prognathism": (("decr", "incr"), 0.15),
    "chin/chin-prominent": (("decr", "incr"), 0.3),
    "chin/chin-width": (("decr", "incr"), 0.3),
    "forehead/forehead-nubian": (("decr", "incr"), 0.2),
    "forehead/forehead-scale-vert": (("decr", "incr"), 0.2),
    "forehead/forehead-temple": (("decr", "incr"), 0.3),
    "forehead/forehead-trans": (("backward", "forward"), 0.2),
    "eyebrows/eyebrows-trans": (("backward", "forward"), 0.25),
    "head/head-angle": (("in", "out"), 0.15),
    "head/head-back-scale-depth": (("decr", "incr"), 0.2),
    "head/head-scale-depth": (("decr", "incr"), 0.2),
    "head/head-scale-horiz": (("decr", "incr"), 0.25),
    "head/head-scale-vert": (("decr", "incr"), 0.15),
    "mouth/mouth-angles": (("down", "up"), 0.2),
    "mouth/mouth-cupidsbow": (("decr", "incr"), 0.4),
    "mouth/mouth-laugh-lines": (("in", "out"), 0.3),
    "mouth/mouth-lowerlip-volume": (("decr", "incr"), 0.3),
    "mouth/mouth-philtrum-volume": (("decr", "incr"), 0.3),
    "mouth/mouth-scale-horiz": (("decr", "incr"), 0.3),
    "mouth/mouth-trans": (("down", "up"), 0.2),
    "mouth/mouth-upperlip-volume": (("decr", "incr"), 0.3),
    "nose/nose-base": (("down", "up"), 0.3),
    "nose/nose-curve": (("concave", "convex"), 0.3),
    "nose/nose-flaring": (("decr", "incr"), 0.3),
    "nose/nose-greek": (("decr", "incr"), 0.2),
    "nose/nose-hump": (("decr", "incr"), 0.3),
    "nose/nose-nostrils-width": (("decr", "incr"), 0.3),
    "nose/nose-point": (("down", "up"), 0.3),
    "nose/nose-point-width": (("decr", "incr"), 0.3),
    "nose/nose-scale-depth": (("decr", "incr"), 0.25),
    "nose/nose-scale-vert": (("decr", "incr"), 0.25),
    "nose/nose-width1": (("decr", "incr"), 0.3),
    "nose/nose-width2": (("decr", "incr"), 0.3),
    "neck/neck-scale-horiz": (("decr", "incr"), 0.25),
}
# The same for targets that exist once a side.
_SIDED_PAIRS = {
    "cheek/-cheek-bones": (("decr", "incr"), 0.3),
    "cheek/-cheek-inner": (("decr", "incr"), 0.2),
    "cheek/-cheek-volume": (("decr", "incr"), 0.3),
    "ears/-ear-scale": (("decr", "incr"), 0.3),
    "ears/-ear-wing": (("decr", "incr"), 0.25),
    "ears/-ear-lobe": (("decr", "incr"), 0.4),
    "eyes/-eye-corner1": (("down", "up"), 0.25),
    "eyes/-eye-corner2": (("down", "up"), 0.3),
    "eyes/-eye-eyefold": (("down", "up"), 0.3),
    "eyes/-eye-height1": (("decr", "incr"), 0.2),
    "eyes/-eye-height2": (("decr", "incr"), 0.25),
    "eyes/-eye-height3": (("decr", "incr"), 0.2),
    "eyes/-eye-scale": (("decr", "incr"), 0.2),
    "eyes/-eye-trans": (("in", "out"), 0.2),
}
# How women's and all eyes' means differ from the mesh's.
_FEMALE_MEANS = {
    "chin/chin-width": -0.35,
    "chin/chin-bones": -0.35,
    "chin/chin-height": -0.2,
    "chin/chin-prominent": -0.1,
    "head/head-scale-horiz": -0.45,
    "mouth/mouth-lowerlip-volume": 0.3,
    "mouth/mouth-upperlip-volume": 0.3,
    "neck/neck-scale-horiz": -0.45,
    "nose/nose-point-width": -0.3,
    "nose/nose-scale-vert": -0.2,
    "nose/nose-width1": -0.25,
    "nose/nose-width2": -0.25,
    "nose/nose-scale-depth": -0.3,
    "nose/nose-hump": -0.25,
    "nose/nose-point": 0.2,
    "chin/chin-jaw-drop": -0.3,
    "cheek/-cheek-bones": 0.2,
    "eyes/-eye-scale": 0.45,
    "eyes/-eye-height2": 0.2,
    "eyes/-eye-corner2": 0.15,
}
_MALE_MEANS = {"head/head-scale-horiz": -0.3, "eyes/-eye-scale": 0.2, "eyes/-eye-height2": 0.2, "chin/chin-width": 0.1}
_FACE_SHAPES = ("oval", "round", "diamond", "invertedtriangular", "square", "triangular")

# sRGB, from the palest to the darkest.
_SKINS = np.array(
    [[230, 190, 168], [222, 178, 151], [212, 163, 132], [190, 138, 104], [152, 106, 78], [112, 77, 58], [78, 55, 44]]
)
_HAIR_COLORS = {
    "black": [(24, 19, 17), (34, 26, 22), (16, 14, 16)],
    "brown": [(66, 43, 28), (88, 58, 36), (104, 72, 46), (52, 33, 23)],
    "blond": [(178, 140, 88), (202, 168, 112), (160, 122, 74), (214, 186, 138)],
    "gray": [(150, 148, 146), (186, 184, 180), (120, 118, 117), (210, 208, 204)],
    "red": [(124, 56, 28), (146, 74, 38)],
}
_IRISES = [(74, 46, 26), (96, 62, 34), (56, 34, 20), (88, 110, 128), (110, 134, 150), (92, 108, 72), (122, 98, 56)]
_LIPSTICKS = [(150, 36, 48), (164, 58, 74), (136, 40, 62), (178, 88, 94), (122, 34, 42), (166, 72, 64)]

MALE_STYLES = ("buzz", "side", "forward", "quiff", "curls", "medium", "long")
FEMALE_STYLES = ("long", "wavy", "bob", "bangs", "back", "pixie", "coils")


@dataclass
class Person:
    """One head's description; colours are linear RGB in 0…1, angles in radians, lengths in decimetres."""

    number: int
    male: bool
    young: bool
    age: float  # 0 at about 25 years, 1 at about 90
    smiling: bool
    mouth_open: bool
    weights: dict[str, float]  # morph targets
    skin: np.ndarray
    skin_tone: float  # 0 palest … 1 darkest
    rosy: float
    freckles: float
    lips: np.ndarray
    lipstick: bool
    makeup: bool
    iris: np.ndarray
    hair_style: str
    hair_color_name: str
    hair_color: np.ndarray
    hair_length: float  # 0 short … 1 long within the style
    part: float  # where the hair is parted, -0.4 … 0.4
    receding: float
    beard: str  # none, stubble, mustache, goatee, full, sideburns
    beard_length: float
    brow: np.ndarray  # height, arch, thickness, length
    brow_dark: float
    glasses: str  # none or the frame's shape
    glasses_color: np.ndarray
    glasses_metal: bool
    chubby: bool
    clothes: str
    clothes_color: np.ndarray
    second_color: np.ndarray
    yaw: float
    pitch: float
    body_yaw: float
    gaze: tuple[float, float]
    distance: float
    frame: np.ndarray  # shift of the picture (2) and its scale, 0 0 1 as CelebA-HQ is aligned
    light: dict[str, np.ndarray] = field(default_factory=dict)
    background: dict[str, object] = field(default_factory=dict)


def linear(color: object) -> np.ndarray:
    """Linear RGB in 0…1 of sRGB in 0…255."""
    return (np.asarray(color, dtype=np.float64) / 255) ** 2.2


def describe(number: int, seed: int = 0) -> Person:
    """Draw a person from its number (and the set's seed): the same one each time, whatever was drawn before."""
    rng = np.random.default_rng([seed, number])
    male, young, smiling = (bool(rng.random() < 0.5) for _ in range(3))
    age = float(rng.uniform(0.0, 0.22) if young else rng.uniform(0.5, 0.9))
    origins = rng.dirichlet([0.7, 0.35, 0.35])  # European, African, Asian
    mouth_open = bool(rng.random() < (0.6 if smiling else 0.35))
    chubby = bool(rng.random() < 0.15)
    weights = _shape(rng, male, age, origins, chubby)
    _add_expression(rng, weights, smiling, mouth_open)
    tone = float(np.clip(origins @ [0.16, 0.82, 0.33] + rng.normal(0, 0.08), 0, 1))
    skin = linear(_between(_SKINS, tone) + rng.normal(0, 3, 3))
    color_name, color = _hair_color(rng, young, origins)
    style, receding = _hair_style(rng, male, young)
    lipstick = bool(not male and rng.random() < 0.5)
    lips = skin * (np.array([0.80, 0.54, 0.54]) if male else np.array([0.82, 0.48, 0.49])) + np.array(
        [0.02, 0.0, 0.002]
    )
    if lipstick:
        lips = linear(_LIPSTICKS[rng.integers(len(_LIPSTICKS))]) * rng.uniform(0.85, 1.15)
    beard = str(rng.choice(["none", "stubble", "mustache", "goatee", "full", "sideburns"], p=_beards(male)))
    frames = ("none", "round", "square", "oval")
    glasses = str(rng.choice(frames, p=[0.78, 0.07, 0.09, 0.06] if young else [0.66, 0.1, 0.14, 0.1]))
    frame_colors = [(24, 22, 24), (70, 42, 26), (40, 46, 70), (110, 30, 36), (120, 118, 116), (150, 120, 70)]
    picked = int(rng.integers(len(frame_colors)))
    yaw = float(np.clip(rng.normal(0, 0.22), -0.5, 0.5))
    return Person(
        number=number,
        male=male,
        young=young,
        age=age,
        smiling=smiling,
        mouth_open=mouth_open,
        weights=weights,
        skin=np.clip(skin, 0.01, 0.95),
        skin_tone=tone,
        rosy=float(rng.uniform(0.3, 1.0)),
        freckles=float(rng.uniform(0.3, 1.0) if tone < 0.3 and rng.random() < 0.2 else 0.0),
        lips=lips,
        lipstick=lipstick,
        makeup=bool(lipstick and rng.random() < 0.5),
        iris=linear(_IRISES[rng.integers(3) if tone > 0.4 or color_name == "black" else rng.integers(len(_IRISES))]),
        hair_style=style,
        hair_color_name=color_name,
        hair_color=color,
        hair_length=float(rng.random()),
        part=float(rng.choice([-1, 1]) * rng.uniform(0.0, 0.2)),
        receding=receding,
        beard=beard,
        beard_length=float(rng.uniform(0.06, 0.22)),
        brow=np.array(
            [
                7.475 + rng.normal(0, 0.012),
                rng.uniform(0.02, 0.055) + (0 if male else 0.01),
                rng.uniform(0.030, 0.047) if male else rng.uniform(0.020, 0.033),
                rng.uniform(0.42, 0.47),
            ]
        ),
        brow_dark=float(rng.uniform(0.55, 1.0)),
        glasses=glasses,
        glasses_color=linear(frame_colors[picked]),
        glasses_metal=picked >= 4,
        chubby=chubby,
        clothes=str(rng.choice(["crew", "vee", "scoop", "turtle", "shirt", "jacket"], p=_garments(male))),
        clothes_color=_cloth_color(rng),
        second_color=_cloth_color(rng, pale=rng.random() < 0.6),
        yaw=yaw,
        pitch=float(np.clip(rng.normal(0.02, 0.07), -0.17, 0.17)),
        body_yaw=yaw * float(rng.uniform(0.3, 0.8)) + float(rng.normal(0, 0.06)),
        gaze=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.03))),
        distance=float(rng.uniform(9, 22)),
        frame=np.array([rng.normal(0, 0.006), rng.normal(0, 0.006), rng.normal(0.94, 0.02)]),
        light=_light(rng),
        background=_background(rng),
    )


def attributes_of(person: Person) -> dict[str, bool]:
    """Each of CelebA's 40 attributes: true where the picture shows it; what is never drawn is false."""
    beard, style, color = person.beard, person.hair_style, person.hair_color_name
    weights = person.weights
    true = {
        "5_o_Clock_Shadow": beard == "stubble",
        "Arched_Eyebrows": person.brow[1] > 0.052,
        "Bags_Under_Eyes": weights.get("eyes/l-eye-bag-incr", 0) > 0.4,
        "Bald": style in ("bald", "rim"),
        "Bangs": style in ("bangs", "forward"),
        "Big_Lips": weights.get("mouth/mouth-lowerlip-volume-incr", 0) > 0.3,
        "Big_Nose": weights.get("nose/nose-volume-incr", 0) > 0.3,
        "Bushy_Eyebrows": person.brow[2] > 0.042,
        "Chubby": person.chubby,
        "Double_Chin": weights.get("neck/neck-double-incr", 0) > 0.5,
        "Eyeglasses": person.glasses != "none",
        "Goatee": beard == "goatee",
        "Heavy_Makeup": person.makeup,
        "High_Cheekbones": weights.get("cheek/l-cheek-bones-incr", 0) > 0.3,
        "Male": person.male,
        "Mouth_Slightly_Open": person.mouth_open,
        "Mustache": beard in ("mustache", "goatee", "full"),
        "Narrow_Eyes": weights.get("eyes/l-eye-height2-decr", 0) > 0.35,
        "No_Beard": beard in ("none", "mustache", "sideburns"),
        "Oval_Face": weights.get("head/head-oval", 0) > 0.3,
        "Pale_Skin": person.skin_tone < 0.08,
        "Receding_Hairline": person.receding > 0.2,
        "Rosy_Cheeks": person.rosy > 0.9 and person.skin_tone < 0.3,
        "Sideburns": beard in ("full", "sideburns"),
        "Smiling": person.smiling,
        "Straight_Hair": style in ("long", "bob", "bangs", "side", "medium"),
        "Wavy_Hair": style in ("wavy", "curls", "coils"),
        "Wearing_Lipstick": person.lipstick,
        "Young": person.young,
    }
    for name in ("black", "brown", "blond", "gray"):
        true[f"{name.capitalize()}_Hair"] = color == name and style != "bald"
    return {name: bool(true.get(name, False)) for name in ATTRIBUTES}


def _between(table: np.ndarray, place: float) -> np.ndarray:
    position = place * (len(table) - 1)
    low = min(int(position), len(table) - 2)
    return table[low] + (position - low) * (table[low + 1] - table[low])


def _shape(rng: np.random.Generator, male: bool, age: float, origins: np.ndarray, chubby: bool) -> dict[str, float]:
    weights: dict[str, float] = {}
    sexes = {"male": rng.uniform(0.9, 1.0), "female": 0.0}
    sexes["female"] = 1 - sexes["male"]
    if not male:
        sexes = {"male": sexes["female"], "female": sexes["male"]}
    ages = {"young": 1 - age, "old": age}
    heavy = rng.uniform(0.75, 1.0) if chubby else float(np.clip(rng.normal(0.05, 0.2), -0.4, 0.4))
    muscle = float(rng.uniform(-0.3, 0.5) if male else rng.uniform(-0.3, 0.2))
    masses = {"averageweight": 1 - abs(heavy), "maxweight" if heavy > 0 else "minweight": abs(heavy)}
    muscles = {"averagemuscle": 1 - abs(muscle), "maxmuscle" if muscle > 0 else "minmuscle": abs(muscle)}
    for sex, a in sexes.items():
        for years, b in ages.items():
            for origin, c in zip(("caucasian", "african", "asian"), origins):
                weights[f"macrodetails/{origin}-{sex}-{years}"] = float(a * b * c)
            for strength, c in muscles.items():
                for mass, d in masses.items():
                    weights[f"macrodetails/universal-{sex}-{years}-{strength}-{mass}"] = float(a * b * c * d)
    means = _MALE_MEANS if male else _FEMALE_MEANS
    for name, (ends, spread) in _PAIRS.items():
        weight = float(np.clip(rng.normal(means.get(name, 0.0), spread), -0.8, 0.8))
        weights[f"{name}-{ends[weight > 0]}"] = abs(weight)
    for name, (ends, spread) in _SIDED_PAIRS.items():
        weight = float(np.clip(rng.normal(means.get(name, 0.0), spread), -0.8, 0.8))
        folder, rest = name.split("/")
        for side in "lr":
            own = float(np.clip(weight + rng.normal(0, 0.03), -0.85, 0.85))
            weights[f"{folder}/{side}{rest}-{ends[own > 0]}"] = abs(own)
    shape = str(rng.choice(_FACE_SHAPES if male else _FACE_SHAPES[:4]))
    weights[f"head/head-{shape}"] = float(rng.uniform(0.1, 0.25 if shape in _FACE_SHAPES[4:] else 0.5))
    if rng.random() < (0.25 if male else 0.1):
        weights["nose/nose-volume-incr"] = float(rng.uniform(0.3, 0.7))
    bags = float(rng.uniform(0.4, 0.9) if rng.random() < 0.15 + 0.5 * age else rng.uniform(0, 0.2))
    for side in "lr":
        weights[f"eyes/{side}-eye-bag-incr"] = bags
    if origins[2] > 0.5:
        for side in "lr":
            weights[f"eyes/{side}-eye-epicanthus-in"] = float(rng.uniform(0.2, 0.6))
    if chubby:
        weights["head/head-fat-incr"] = float(rng.uniform(0.4, 0.8))
        weights["neck/neck-double-incr"] = float(rng.uniform(0.2, 0.9))
        for side in "lr":
            weights[f"cheek/{side}-cheek-volume-incr"] = float(rng.uniform(0.3, 0.7))
            weights.pop(f"cheek/{side}-cheek-volume-decr", None)
    elif rng.random() < 0.3:
        weights["head/head-fat-decr"] = float(rng.uniform(0.1, 0.4))
    return weights


def _add_expression(rng: np.random.Generator, weights: dict[str, float], smiling: bool, mouth_open: bool) -> None:
    units: dict[str, float] = {}
    lopsided = rng.normal(0, 0.06)
    if smiling:
        strength = rng.uniform(0.75, 1.0)
        units |= {"mouthSmile": strength, "cheekSquint": strength * rng.uniform(0.3, 0.7)}
        units |= {"eyeSquint": rng.uniform(0.05, 0.25), "mouthDimple": rng.uniform(0, 0.4)}
        if mouth_open:
            units |= {"mouthUpperUp": rng.uniform(0.3, 0.55), "mouthLowerDown": rng.uniform(0.2, 0.5)}
            weights["faceunits/jawOpen"] = float(rng.uniform(0.05, 0.22))
    else:
        units |= {"mouthFrown": max(0.0, rng.normal(0.05, 0.15)), "mouthPress": max(0.0, rng.normal(0, 0.15))}
        if mouth_open:
            weights["faceunits/jawOpen"] = float(rng.uniform(0.18, 0.42))
            units["mouthUpperUp"] = rng.uniform(0, 0.25)
        elif rng.random() < 0.2:
            weights["faceunits/mouthPucker"] = float(rng.uniform(0.1, 0.35))
    units["eyeWide"] = rng.uniform(0.0, 0.25)
    brows = rng.random()
    if brows < 0.25:
        units["browDown"] = rng.uniform(0.1, 0.5)
    elif brows < 0.5:
        units["browOuterUp"] = rng.uniform(0.1, 0.5)
        weights["faceunits/browInnerUp"] = float(rng.uniform(0, 0.4))
    for name, weight in units.items():
        for side, sign in (("Left", 1), ("Right", -1)):
            weights[f"faceunits/{name}{side}"] = float(max(0.0, weight * (1 + sign * lopsided)))


def _hair_color(rng: np.random.Generator, young: bool, origins: np.ndarray) -> tuple[str, np.ndarray]:
    names = ["black", "brown", "blond", "gray", "red"]
    light = float(origins[0])
    odds = np.array([0.75 - 0.6 * light, 0.2 + 0.2 * light, 0.06 + 0.32 * light, 0.0, 0.02 + 0.05 * light])
    if not young:
        odds *= 0.5 / odds.sum()
        odds[3] = 0.5
    name = str(rng.choice(names, p=odds / odds.sum()))
    shades = _HAIR_COLORS[name]
    return name, linear(shades[rng.integers(len(shades))]) * rng.uniform(0.85, 1.2)


def _hair_style(rng: np.random.Generator, male: bool, young: bool) -> tuple[str, float]:
    if male:
        bald, rim = (0.08, 0.01) if young else (0.13, 0.12)
        rest = np.array([15, 24, 14, 18, 14, 9, 6]) / 100 * (1 - bald - rim)
        style = str(rng.choice(["bald", "rim", *MALE_STYLES], p=[bald, rim, *rest]))
        receding = float(rng.uniform(0.1, 0.4) if rng.random() < (0.15 if young else 0.55) else 0.0)
        return style, 0.0 if style in ("bald", "rim", "long", "forward") else receding
    style = str(rng.choice(FEMALE_STYLES, p=np.array([26, 22, 15, 12, 11, 6, 8]) / 100))
    return style, 0.0


def _beards(male: bool) -> list[float]:
    return [0.46, 0.16, 0.07, 0.11, 0.14, 0.06] if male else [1.0, 0, 0, 0, 0, 0]


def _garments(male: bool) -> list[float]:
    return [0.28, 0.1, 0.0, 0.1, 0.26, 0.26] if male else [0.2, 0.2, 0.22, 0.12, 0.12, 0.14]


def _cloth_color(rng: np.random.Generator, pale: bool = False) -> np.ndarray:
    if pale:
        return linear(rng.uniform(190, 238) + rng.normal(0, 8, 3))
    hue, strength, value = rng.random(), rng.uniform(0.05, 0.65), rng.uniform(30, 200)
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3])))
    return linear(np.clip(value * (1 - strength + strength * wheel), 8, 235))


def _light(rng: np.random.Generator) -> dict[str, np.ndarray]:
    side = rng.choice([-1, 1])
    azimuth, height = side * rng.uniform(0.2, 1.05), rng.uniform(0.25, 0.85)
    warmth = rng.normal(0, 0.06)
    key = np.array([np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)])
    rim = np.array([-side * 0.8, 0.35, -0.55 + rng.normal(0, 0.1)])
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    strength = rng.uniform(1.6, 2.3)
    return {
        "key": key,
        "key_color": strength * tint,
        "fill": np.array([-side * 0.7, 0.15, 0.7]) / np.linalg.norm([0.7, 0.15, 0.7]),
        "fill_color": rng.uniform(0.35, 0.7) * np.array([1 - warmth, 1.0, 1 + warmth]),
        "rim": rim / np.linalg.norm(rim),
        "rim_color": rng.uniform(0.0, 1.2) * tint,
        "sky": rng.uniform(0.5, 0.8) * np.array([1 - warmth, 1.0, 1 + 1.5 * warmth]),
        "ground": rng.uniform(0.22, 0.4) * np.array([1.05, 1.0, 0.94]),
        "softness": np.array([rng.uniform(1.0, 3.0)]),
    }


def _background(rng: np.random.Generator) -> dict[str, object]:
    base = _cloth_color(rng, pale=rng.random() < 0.25)
    return {
        "kind": str(rng.choice(["studio", "bokeh", "wall", "outdoors"], p=[0.4, 0.2, 0.2, 0.2])),
        "colors": np.stack([base, _cloth_color(rng), _cloth_color(rng, pale=True)]),
        "center": rng.uniform(0.2, 0.8, 2),
        "seed": float(rng.uniform(0, 500)),
        "discs": rng.random((18, 6)),
    }
