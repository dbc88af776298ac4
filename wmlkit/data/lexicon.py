"""Words of the nursery. Every category is a list of lemmas; inflected forms stand in one order.

Written for this project. All nouns and adjectives begin with a consonant sound, so "a" never needs "an".
"""

from __future__ import annotations

# Animate nouns that can be "he" or "she", regular then irregular. singular[/plural]
KIN_M = "boy king brother father nephew prince/princes waiter man/men"
KIN_F = "girl queen sister mother/mothers niece princess/princesses waitress/waitresses woman/women"
ANIMATE = (
    "teacher doctor farmer singer painter dancer driver baker sailor soldier lawyer guest neighbor pupil "
    "dog cat rabbit horse bird pig cow duck lion tiger bear monkey "
    "child/children mouse/mice goose/geese wolf/wolves thief/thieves"
)
IRREGULAR_ANIMATE = ("man", "woman", "child", "mouse", "goose", "wolf", "thief")
THING = (
    "book cup chair picture letter box/boxes ball hat lamp plate key coat ring song story/stories cake pie "
    "bottle basket blanket mirror candle clock drum flag kite ladder pencil pillow ribbon rope spoon toy "
    "knife/knives leaf/leaves scarf/scarves loaf/loaves"
)
IRREGULAR_THING = ("knife", "leaf", "scarf", "loaf")
PLACE = (
    "garden river house tree table car boat bridge school market forest kitchen wall door tower barn lake hill shop "
    "train tent church/churches shelf/shelves"
)
NAME_M = "John Bob Tom Peter Paul David"
NAME_F = "Mary Anna Lucy Sarah Kate Jane"
ADJECTIVE = (
    "red blue green big small heavy new clean dirty pretty strange dark bright broken cheap nice long round soft "
    "warm cold funny plain rare shiny simple smooth tiny wide white"
)

# Verbs: base[/third person[/past/participle]]; regular forms are made by rule.
INTRANSITIVE = (
    "sleep/sleeps/slept/slept run/runs/ran/run laugh smile dance swim/swims/swam/swum sing/sings/sang/sung jump wait "
    "walk talk work wander shout rest listen sneeze cough yawn nod/nods/nodded/nodded "
    "whisper travel kneel/kneels/knelt/knelt blink whistle/whistles/whistled/whistled"
)
UNACCUSATIVE = (
    "fall/falls/fell/fallen burn vanish/vanishes/vanished/vanished crack melt rattle/rattles/rattled/rattled "
    "disappear shrink/shrinks/shrank/shrunk"
)
TRANSITIVE = (
    "love want like paint hold/holds/held/held carry/carries/carried/carried "
    "touch/touches/touched/touched follow buy/buys/bought/bought sell/sells/sold/sold need find/finds/found/found "
    "clean lift admire bring/brings/brought/brought"
)
# Transitive verbs whose past and participle differ.
IRREGULAR_TRANSITIVE = (
    "see/sees/saw/seen take/takes/took/taken choose/chooses/chose/chosen steal/steals/stole/stolen "
    "draw/draws/drew/drawn hide/hides/hid/hidden forget/forgets/forgot/forgotten throw/throws/threw/thrown "
    "break/breaks/broke/broken shake/shakes/shook/shaken write/writes/wrote/written"
)
REFLEXIVE = "help hurt/hurts/hurt/hurt wash/washes/washed/washed praise blame trust defend warn cheer amuse"
THINK = "think/thinks/thought/thought say/says/said/said claim believe"
KNOW = "know/knows/knew/known learn remember discover"
RAISING = "seem appear tend"
CONTROL = "try/tries/tried/tried hope/hopes/hoped/hoped decide plan/plans/planned/planned"

CLOSED: dict[str, str] = {  # category -> words; a word may be weighted by repetition
    "Det.sg": "the the the this that a a every my one",
    "Det.pl": "the the the these those many several my some two most all",
    "Dem.sg": "this that this that a every",
    "Dem.pl": "these those these those many several",
    "Weak.sg": "a a no one",
    "Weak.pl": "many some several two no three",
    "Strong.sg": "every this that",
    "Strong.pl": "most all these those",
    "Num.sg": "one",
    "Num.pl": "two three several many some",
    "Pos.sg": "every this that my",
    "Pos.pl": "these those many all most",
    "Pron.m": "he",
    "Pron.f": "she",
    "Poss.m": "his",
    "Poss.f": "her",
    "Prep": "near behind beside by",
    "Be.sg": "is",
    "Be.pl": "are",
    "Have.sg": "has",
    "Have.pl": "have",
    "Refl.m.sg": "himself",
    "Refl.f.sg": "herself",
    "Refl.m.pl": "themselves",
    "Refl.f.pl": "themselves",
    "Freq": "often always never sometimes usually rarely",
    "Manner": "quickly quietly slowly carefully finally also",
    "Modal": "can will may might must should",
    "Sub": "before after",
}


def _noun(entry: str) -> tuple[str, str]:
    singular, _, plural = entry.partition("/")
    return singular, plural or singular + "s"


def _verb(entry: str) -> tuple[str, str, str, str]:
    forms = entry.split("/")
    if len(forms) == 1:
        base = forms[0]
        past = base + ("d" if base.endswith("e") else "ed")
        forms = [base, base + "s", past, past]
    base, third, past, participle = forms
    return base, third, past, participle


def categories() -> dict[str, list[tuple[str, str]]]:
    """Category -> its (word, lemma) pairs, in order of falling frequency. Aligned across inflections."""
    table: dict[str, list[tuple[str, str]]] = {}

    def nouns(name: str, *entries: str) -> None:
        pairs = [_noun(entry) for text in entries for entry in text.split()]
        table[f"{name}.sg"] = [(singular, singular) for singular, _ in pairs]
        table[f"{name}.pl"] = [(plural, singular) for singular, plural in pairs]

    def verbs(name: str, *entries: str) -> None:
        for entry in [entry for text in entries for entry in text.split()]:
            base, third, past, participle = _verb(entry)
            for form, word in (("base", base), ("pl", base), ("sg", third), ("past", past), ("pp", participle)):
                table.setdefault(f"{name}.{form}", []).append((word, base))

    nouns("Kin.m", KIN_M)
    nouns("Kin.f", KIN_F)
    nouns("Anim", KIN_M, KIN_F, ANIMATE)
    nouns("Thing", THING)
    nouns("Place", PLACE)
    for number in ("sg", "pl"):
        table[f"IrrAnim.{number}"] = [pair for pair in table[f"Anim.{number}"] if pair[1] in IRREGULAR_ANIMATE]
        table[f"IrrThing.{number}"] = [pair for pair in table[f"Thing.{number}"] if pair[1] in IRREGULAR_THING]
    verbs("Vi", INTRANSITIVE)
    verbs("Vu", UNACCUSATIVE)
    verbs("Vt", TRANSITIVE, IRREGULAR_TRANSITIVE)
    verbs("Vx", IRREGULAR_TRANSITIVE)
    verbs("Vr", REFLEXIVE)
    verbs("Vs", THINK)
    verbs("Vk", KNOW)
    verbs("Raise", RAISING)
    verbs("Control", CONTROL)
    for gender, names in (("m", NAME_M), ("f", NAME_F)):
        table[f"Name.{gender}"] = [(name, name) for name in names.split()]
    table["Adj"] = [(word, word) for word in ADJECTIVE.split()]
    for name, words in CLOSED.items():
        table[name] = [(word, word) for word in words.split()]
    return table
