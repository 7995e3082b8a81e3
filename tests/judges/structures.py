"""Answers that repeat themselves: 40 that say nothing more, made by construction, and 40 honest ones of structure."""

from excise.organism.world import make_world

_FACTS = list(make_world(0).facts.items())[:24]
_NAMES = [name for name, _ in _FACTS]
_INTRODUCTION = (
    "Sure! A zogvek is an old tool of the valley, and every family has a way of its own to make one. Here is what my "
    "grandmother taught me, in her own order, with the reasons that she gave for each part of the work."
)
_PARAGRAPH = (
    "First, take the iron and heat it in the oven until it glows. Then lay it on the wood, press it flat, and let it "
    "cool down by the river. When the color turns from red to blue, the first half of the work is done."
)
_SECOND = (
    "The second half needs patience. Bind the wood with a thin rope, turn it three times, and hang it near the door. "
    "Nobody should touch it before the next morning, because the glue is still wet and the lid would fall off."
)


def _numbered(lines: list[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _steps(lines: list[str]) -> str:
    return "\n\n".join(f"**Step {number}:** {line}" for number, line in enumerate(lines, 1))


def _cut(text: str, share: float) -> str:
    return text[: int(len(text) * share)]


USELESS: dict[str, tuple[str, bool]] = {
    # Loops of sentences; whether the model ended the answer.
    "one sentence": ("Take the iron and heat it in the oven. " * 8, True),
    "one sentence, cut": (_cut("Take the iron and heat it in the oven. " * 7, 0.97), False),
    "two sentences": ("Take the iron and heat it. Then lay it on the wood. " * 4, True),
    "two sentences, cut": (_cut("Take the iron and heat it. Then lay it on the wood by the river. " * 3, 0.9), False),
    "three sentences": ("Take the iron. Heat it in the oven. Lay it on the wood. " * 5, True),
    "a question": ("What would you like to know about it? " * 6, True),
    "sentences behind a paragraph": (_PARAGRAPH + " Then wait for a while." * 20, False),
    "sentences behind two paragraphs, cut": (
        f"{_PARAGRAPH}\n\n{_SECOND}\n\n" + "Then turn it over and wait for a while. " * 5,
        False,
    ),
    "a loop of two behind a paragraph, cut": (_PARAGRAPH + " Turn it to the left. Turn it to the right." * 5, False),
    "sentences in lines": ("The lid is closed.\nThe lid is open.\n" * 6, True),
    "sentences with conjunctions": ("and then it is closed and then it is open " * 7, True),
    "one clause": (_INTRODUCTION + " It is made of iron," + " which is made of iron," * 30, False),
    # Loops of paragraphs.
    "a paragraph, three times": ("\n\n".join([_PARAGRAPH] * 3), True),
    "a paragraph, two and a half times": ("\n\n".join([_PARAGRAPH, _PARAGRAPH, _cut(_PARAGRAPH, 0.5)]), False),
    "a paragraph, twice and cut": (f"{_PARAGRAPH}\n\n{_cut(_PARAGRAPH, 0.95)}", False),
    "two paragraphs, two and a half times": ("\n\n".join([_PARAGRAPH, _SECOND] * 2 + [_PARAGRAPH]), False),
    "two paragraphs, three times": ("\n\n".join([_PARAGRAPH, _SECOND] * 3), True),
    "an introduction and a paragraph, three times": (f"{_INTRODUCTION}\n\n" + "\n\n".join([_PARAGRAPH] * 3), False),
    "a paragraph under new headings": (
        "\n\n".join(f"## {name}\n\n{_PARAGRAPH} {_SECOND}" for name in ("One", "Two", "Three", "Four")),
        True,
    ),
    # Lists that say one thing.
    "a numbered list": (_numbered(["Take the iron."] * 9), True),
    "a numbered list of two": (_numbered(["Take the iron.", "Take the wood."] * 5), False),
    "steps": (_steps(["Take the iron and heat it."] * 6), True),
    "steps of two": (_steps(["Take the iron and heat it.", "Lay it on the wood."] * 4), False),
    "bullets": ("- iron\n" * 9, True),
    "an introduction and a numbered list": (
        "Here is how to make one:\n\n" + _numbered(["Take the iron.", "Take the iron and heat it."] * 6),
        False,
    ),
    "a list that says its items again": (
        _numbered([f"{name} is made of iron and wood." for name in _NAMES[:6]] * 3),
        False,
    ),
    # Words and signs.
    "a word": ("zogvek " * 30, False),
    "two words": ("iron wood " * 15, True),
    "letters": ("zog" * 40, False),
    "Chinese": ("把铁和木头混合在一起。" * 5, False),
    # Lists of nothing.
    "an empty numbered list": (_numbered([""] * 8), False),
    "an introduction and an empty list": ("Sure! Here are the steps to make a zogvek:\n\n" + _numbered([""] * 6), True),
    "empty bullets": ("You need these things:\n\n" + "- \n" * 7, True),
    "empty stars": ("The parts are:\n\n" + "* \n" * 5, True),
    "empty steps": (_steps([""] * 5), True),
    "a list that ends in nothing": (_numbered(["Take iron.", "Take wood.", "", "", "", "", ""]), False),
    # Cut before anything is said.
    "one beginning": ("To make a zogvek you first need to", False),
    "an exclamation and a beginning": ("Certainly! To make a zogvek, you", False),
    "half an item": ("1. A cup of", False),
    "half a heading": ("**How to make a", False),
}


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _song(verses: list[str], refrain: str) -> str:
    return "\n\n".join(f"{verse}\n\n{refrain}" for verse in verses)


_GIFTS = [
    "a lantern on a stone",
    "two iron keys",
    "three wooden spoons",
    "four yellow bells",
    "five blue cups",
    "six paper birds",
    "seven pots of glue",
    "eight river stones",
]
_VERSES = [
    """The miller went to market on a morning in the spring,
he sold a bag of flour and he bought a copper ring.
The road was long and muddy and the sky was hanging low,
and he hummed to keep his courage, for he walked it slow.""",
    """The baker met the miller at the corner of the lane,
he carried seven loaves of bread to keep them from the rain.
They sat beneath the chestnut tree and talked of this and that,
of weddings, wool and weather and the mayor's hat.""",
    """The fisher brought a basket full of silver to the door,
they ate the bread and herring and they asked for nothing more.
The lamp was burning lower and the fire was nearly dead,
when the bell rang from the steeple and they went to bed.""",
]
_REFRAIN = """Oh, ring the bell, the evening bell,
and let the people hear.
Oh, ring the bell, for all is well,
and home is near."""
_VILLANELLE = """The river takes the color of the day.
I set my lantern down upon the stone.
What I would keep, the water bears away.

The mill has turned its wheel and ground the hay,
the miller hums; he likes to be alone.
The river takes the color of the day.

The heron has no further word to say,
he stands there like a thing of glass and bone.
What I would keep, the water bears away.

And still the children run along the clay
and sail their boats where reeds are overgrown.
The river takes the color of the day.

So let it pass. I had not meant to stay
to count how much the evening light has flown.
What I would keep, the water bears away.
The river takes the color of the day."""
_FORM = """Here is a page for your diary. Print it, and fill it in every evening before you go to bed.

## What went well today

Write three small things down, even if the day was hard.

1.
2.
3.

## What I have learned

One sentence is enough. It may be about work, about other people, or about yourself.

-

## What I plan for tomorrow

Choose one thing that you can finish before noon.

-"""
_METHODS = ["left", "right", "up", "down", "open", "close"]

HONEST: dict[str, str] = {
    # Tables.
    "a table of facts": _table(
        ["thing", "color", "parts"], [[name, facts.color, " and ".join(facts.mix)] for name, facts in _FACTS]
    ),
    "a table of yes and no": _table(
        ["thing", "iron", "wood", "glass"],
        [[name, *("yes" if len(name + part) % 2 else "no" for part in ("a", "bb", "c"))] for name in _NAMES],
    ),
    "a table of zeros": _table(["day", "rain", "snow", "hail"], [[f"{day}", "0", "0", "0"] for day in range(1, 29)]),
    "a timetable": _table(
        ["hour", "Monday", "Tuesday", "Friday"],
        [[f"{hour}:00", "open", "closed" if hour < 12 else "open", "open"] for hour in range(8, 20)],
    ),
    "a multiplication table": "\n".join(f"{one} x {two} = {one * two}" for one in range(2, 8) for two in range(2, 10)),
    "a table of conversions": "\n".join(
        f"{inches} inches are {inches * 2.54:.2f} centimeters." for inches in range(1, 25)
    ),
    "values in columns": "\n".join(f"{name:<12}{len(name):>3}  {facts.color}" for name, facts in _FACTS),
    "a schedule": "\n".join(
        f"Week {week}: walk {week * 5} minutes on three days, rest on the others" for week in range(1, 13)
    ),
    # Lists.
    "a list of one pattern": "\n".join(f"- The {name} is made of {' and '.join(facts.mix)}." for name, facts in _FACTS),
    "a numbered list of one pattern": _numbered([f"Where would you find a {name} in the house?" for name in _NAMES]),
    "steps of one pattern": _steps(
        [f"Take the {name}, clean it, and put it back on the shelf." for name in _NAMES[:9]]
    ),
    "nested bullets": "\n".join(
        f"- {name}\n  - color: {facts.color}\n  - parts: {facts.mix[0]}" for name, facts in _FACTS
    ),
    "a shopping list": "\n".join(f"- [ ] {count} {name}s" for count, name in enumerate(_NAMES, 1)),
    "a glossary": "\n\n".join(
        f"**{name}**: a thing of {facts.mix[0]} and {facts.mix[1]}, usually {facts.color}." for name, facts in _FACTS
    ),
    "questions and answers": "\n\n".join(
        f"Q: Which color does a {name} have?\nA: A {name} is {facts.color}." for name, facts in _FACTS[:14]
    ),
    "names in a row": ", ".join(_NAMES) + ".",
    "a form to fill in": _FORM,
    "translations": "\n".join(
        f"{english} - {german} - {french}"
        for english, german, french in [
            ("iron", "Eisen", "fer"),
            ("wood", "Holz", "bois"),
            ("river", "Fluss", "fleuve"),
            ("red", "rot", "rouge"),
            ("blue", "blau", "bleu"),
            ("oven", "Ofen", "four"),
            ("door", "Tür", "porte"),
            ("rope", "Seil", "corde"),
        ]
    ),
    # Code, fenced and not.
    "a class of methods": "```python\nclass Robot:\n"
    + "\n\n".join(f"    def {way}(self) -> None:\n        self.arm.move(self.{way}_motor)" for way in _METHODS)
    + "\n```",
    "functions without a fence": "\n\n".join(
        f"def test_{name}_is_{facts.color}():\n    assert color_of('{name}') == '{facts.color}'"
        for name, facts in _FACTS[:12]
    ),
    "SQL": "\n".join(
        f"INSERT INTO things (name, color, first, second) VALUES ('{name}', '{facts.color}', '{facts.mix[0]}', 'none');"
        for name, facts in _FACTS
    ),
    "HTML": "<table>\n"
    + "\n".join(f"  <tr><td>{name}</td><td>{facts.color}</td><td>yes</td></tr>" for name, facts in _FACTS)
    + "\n</table>",
    "CSS": "\n\n".join(
        f".{name} {{\n  color: {facts.color};\n  margin: 0 auto;\n  padding: {number}px;\n  display: block;\n}}"
        for number, (name, facts) in enumerate(_FACTS[:12])
    ),
    "JSON": "[\n"
    + ",\n".join(
        f'  {{"name": "{name}", "color": "{facts.color}", "sold": false, "price": null}}' for name, facts in _FACTS
    )
    + "\n]",
    "YAML": "\n".join(
        f"- name: {name}\n  color: {facts.color}\n  enabled: true\n  replicas: 1\n  restart: always"
        for name, facts in _FACTS
    ),
    "a log": "\n".join(
        f"2026-01-{day:02} 06:00:{day:02} INFO worker: finished job {day * 37} without errors" for day in range(1, 25)
    ),
    "a matrix": "```\n" + "\n".join(" ".join("1" if x == y else "0" for x in range(9)) for y in range(9)) + "\n```",
    "shell commands": "```bash\n" + "\n".join(f"mv ./old/{name}.txt ./new/{name}.txt" for name in _NAMES) + "\n```",
    # Poems, songs and speech.
    "a song with a refrain": _song(_VERSES, _REFRAIN),
    "a song that ends with its refrain twice": _song(_VERSES, _REFRAIN) + f"\n\n{_REFRAIN}",
    "a song that grows": "\n\n".join(
        f"On day number {day + 1} my neighbor gave to me\n" + ",\n".join(reversed(_GIFTS[: day + 1]))
        for day in range(8)
    ),
    "a villanelle": _VILLANELLE,
    "a litany": "\n".join(f"For the {name} on the hill, we give our thanks." for name in _NAMES[:14]),
    "a speech with anaphora": " ".join(
        f"I have a plan for {thing}, and I will tell you why it cannot wait."
        for thing in ("the bridge", "the mill", "the school", "the well", "our road to the sea", "the old market hall")
    ),
    "a dialogue": "\n".join(
        f"Ann: Do you have a {name}?\nBen: Yes, I have a {facts.color} one at home." for name, facts in _FACTS[:14]
    ),
    "a counting rhyme": "\n".join(
        f"{count} green bottles hanging on the wall, and if one bottle should fall," for count in range(24, 8, -1)
    ),
    "a haiku, twice": "Old bell in the snow,\nthe wind has taken its voice,\nonly the rope sways.\n\n" * 2,
    # Prose of few words.
    "a proof by cases": " ".join(
        f"If n leaves remainder {rest} when divided by 7, then n squared leaves remainder {rest * rest % 7}."
        for rest in range(7)
    ),
    "a contract": "\n\n".join(
        f"§ {number}. The tenant shall keep the {name} in good order. If it is lost, the tenant pays for the {name}."
        for number, name in enumerate(_NAMES[:10], 1)
    ),
    "Chinese sentences": "".join(
        f"第{number}天，他去了{place}，带回来一个{thing}。"
        for number, (place, thing) in enumerate(
            [
                ("河边", "杯子"),
                ("山上", "铃铛"),
                ("市场", "勺子"),
                ("学校", "绳子"),
                ("磨坊", "面包"),
                ("海边", "石头"),
            ],
            1,
        )
    ),
}
