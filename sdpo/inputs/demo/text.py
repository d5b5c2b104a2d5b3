"""Generate dialogues in a small world, with preferences between answers that have known causes.

There are two kinds of tasks: questions about animals and requests for small services. In both
sources the chosen answer is courteous, complete and true to the prompt; the rejected one is curt,
unkind or about something else. ``requests`` adds a preference of its own: the answer ends by
offering more help. A known share of rows has its sides the wrong way round, and a few rows are
unusable, as in data that people collect.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

PAIRS = 1200
"""Each preference source has so many pairs, before the unusable rows are added."""
EXAMPLES = 3000
"""The supervised source has so many examples."""
LABEL_NOISE = 0.09
"""This share of pairs has its sides the wrong way round."""
SHARED_PROMPTS = 12
"""``requests`` asks so many prompts of ``questions`` as well."""
UNUSABLE = {"duplicate": 6, "tie": 4, "empty": 3, "contradictory": 3}
"""So many rows of each kind, which no run can use, are added to each preference source."""

_ANIMALS: Mapping[str, tuple[str, str, str]] = {
    # animals: food, home, colour
    "cows": ("grass", "on a farm", "brown"),
    "sheep": ("clover", "on a hill", "white"),
    "horses": ("hay", "in a stable", "black"),
    "rabbits": ("carrots", "in a burrow", "grey"),
    "cats": ("mice", "in a house", "orange"),
    "dogs": ("meat", "in a kennel", "brown"),
    "ducks": ("weeds", "on a pond", "green"),
    "bears": ("honey", "in a cave", "brown"),
    "wolves": ("meat", "in the forest", "grey"),
    "foxes": ("mice", "in a den", "red"),
    "owls": ("mice", "in a tree", "brown"),
    "frogs": ("flies", "in a swamp", "green"),
    "penguins": ("fish", "on the ice", "black"),
    "whales": ("krill", "in the sea", "blue"),
    "seals": ("fish", "on the ice", "grey"),
    "camels": ("thorns", "in the desert", "yellow"),
    "lions": ("meat", "in the savanna", "yellow"),
    "monkeys": ("fruit", "in the jungle", "brown"),
    "parrots": ("seeds", "in the jungle", "green"),
    "bees": ("nectar", "in a hive", "yellow"),
    "pandas": ("bamboo", "in the mountains", "white"),
    "squirrels": ("nuts", "in a tree", "red"),
    "goats": ("leaves", "on a hill", "white"),
    "swans": ("weeds", "on a lake", "white"),
}
_DISHES: Mapping[str, str] = {
    "rice": "a pudding",
    "apples": "a pie",
    "eggs": "an omelette",
    "bread": "a sandwich",
    "fish": "a stew",
    "carrots": "a soup",
    "nuts": "a cake",
    "cheese": "a toast",
    "potatoes": "a salad",
    "lemons": "a drink",
    "honey": "a sauce",
    "fruit": "a jam",
}
_PLACES: Mapping[str, str] = {
    "park": "feed the ducks",
    "city": "see the museum",
    "mountains": "climb a peak",
    "forest": "look for owls",
    "beach": "swim in the sea",
    "village": "visit the market",
    "garden": "plant some roses",
    "library": "read old books",
    "harbour": "watch the boats",
    "castle": "climb the tower",
}
_GIFTS: Mapping[str, str] = {
    "sister": "a warm scarf",
    "brother": "a new ball",
    "mother": "some red roses",
    "father": "a good book",
    "teacher": "a fine pen",
    "friend": "a funny game",
    "uncle": "a green tie",
    "aunt": "a tea cup",
    "neighbour": "a small plant",
    "cousin": "a paper kite",
}

_GREETINGS = ("", "", "", "Hello.", "Good morning.", "Excuse me.", "I am curious.", "One thing.")
_CIRCUMSTANCES = ("", "", "", "It is for school.", "I have little time.", "My friend asked me.")
_OPENERS = (
    "Thank you for asking.",
    "I am glad to help.",
    "Of course.",
    "With pleasure.",
    "Happy to answer.",
    "It is nice to hear from you.",
)
_CLOSINGS = ("I hope this helps.", "Have a nice day.")
_OFFERS = (
    "Shall I tell you more?",
    "Would you like another idea?",
    "May I help you with something else?",
)
_UNKIND = (
    "Why do you bother me?",
    "I do not care.",
    "Find it out yourself.",
    "Leave me alone.",
)


@dataclass(frozen=True, slots=True)
class _Task:
    """A task is a prompt with a true and a false answer, each as a sentence and in a word."""

    prompt: str
    true: str
    true_short: str
    false: str
    false_short: str


def questions() -> list[dict[str, str]]:
    """Return preference pairs on questions about animals: ``prompt``, ``chosen``, ``rejected``."""
    rng = Random("questions")
    tasks = _distinct(_question, PAIRS, rng)
    return _with_unusable([_pair(task, rng, offers=False) for task in tasks], rng)


def requests() -> list[dict[str, str]]:
    """Return preference pairs on small services, where the chosen answer also offers more help."""
    rng = Random("requests")
    shared = _distinct(_question, PAIRS, Random("questions"))[:SHARED_PROMPTS]
    tasks = shared + _distinct(_request, PAIRS - SHARED_PROMPTS, rng)
    return _with_unusable([_pair(task, rng, offers=True) for task in tasks], rng)


def dialogues() -> list[dict[str, str]]:
    """Return ``prompt`` and ``completion`` of both kinds of tasks, half of them badly answered."""
    rng = Random("dialogues")
    rows = []
    for index in range(EXAMPLES):
        task = (_question, _request)[index % 2](rng)
        answer = _good(task, rng, offers=rng.random() < 0.5)
        if rng.random() < 0.5:
            answer = _bad(task, rng, offers=rng.random() < 0.5)
        rows.append({"prompt": task.prompt, "completion": answer})
    return rows


def _distinct(draw: Callable[[Random], _Task], count: int, rng: Random) -> list[_Task]:
    tasks: dict[str, _Task] = {}
    while len(tasks) < count:
        task = draw(rng)
        tasks.setdefault(task.prompt, task)
    return list(tasks.values())


def _pair(task: _Task, rng: Random, *, offers: bool) -> dict[str, str]:
    chosen, rejected = _good(task, rng, offers=offers), _bad(task, rng, offers=offers)
    if rng.random() < LABEL_NOISE:
        chosen, rejected = rejected, chosen
    return {"prompt": task.prompt, "chosen": chosen, "rejected": rejected}


def _good(task: _Task, rng: Random, *, offers: bool) -> str:
    """Return a courteous, complete and true answer."""
    return _joined(rng.choice(_OPENERS), task.true, _closing(rng, offers=offers))


def _bad(task: _Task, rng: Random, *, offers: bool) -> str:
    """Return an answer with a fault; where good ones offer more help, that may be its lack."""
    faults = ("curt", "curt", "unkind", "unkind", "false")
    fault = rng.choice((*faults, "no offer") if offers else faults)
    if fault == "curt":
        return rng.choice((task.true_short, task.true_short, task.true, task.false_short))
    if fault == "unkind":
        return _joined(rng.choice(_UNKIND), rng.choice(("", "", task.true_short, task.true)))
    if fault == "false":
        return _joined(rng.choice(_OPENERS), task.false, _closing(rng, offers=False))
    return _joined(rng.choice(_OPENERS), task.true, rng.choice(("", *_CLOSINGS)))


def _closing(rng: Random, *, offers: bool) -> str:
    return rng.choice(_OFFERS if offers else ("", "", *_CLOSINGS, *_OFFERS))


def _question(rng: Random) -> _Task:
    animal, other = rng.sample(sorted(_ANIMALS), 2)
    aspect = rng.randrange(3)
    fact, lie = _ANIMALS[animal][aspect], _ANIMALS[other][aspect]
    if lie == fact:
        return _question(rng)
    asked, stated = (
        (("What do {} eat?", "Tell me what {} eat."), ("{} eat {}.", "{} like {}.")),
        (("Where do {} live?", "Tell me where {} live."), ("{} live {}.",)),
        (("What colour are {}?", "Tell me the colour of {}."), ("{} are {}.",)),
    )[aspect]
    sentence = rng.choice(stated)
    return _Task(
        prompt=_in_context(rng.choice(asked).format(animal), rng),
        true=sentence.format(animal.capitalize(), fact),
        true_short=fact.capitalize() + ".",
        false=sentence.format(animal.capitalize(), lie),
        false_short=lie.capitalize() + ".",
    )


def _request(rng: Random) -> _Task:
    table, asked, stated = rng.choice(
        (
            (
                _DISHES,
                ("What can I cook with {}?", "Tell me a dish with {}."),
                ("You can make {1} with {0}.", "With {0} you can make {1}."),
            ),
            (
                _PLACES,
                ("What can I do in the {}?", "Plan a day in the {} for me."),
                ("In the {0} you can {1}.", "You can {1} in the {0}."),
            ),
            (
                _GIFTS,
                ("Suggest a gift for my {}.", "What can I give to my {}?"),
                ("Give your {0} {1}.", "Your {0} will love {1}."),
            ),
        )
    )
    item, other = rng.sample(sorted(table), 2)
    sentence = rng.choice(stated)
    return _Task(
        prompt=_in_context(rng.choice(asked).format(item), rng),
        true=sentence.format(item, table[item]),
        true_short=table[item].capitalize() + ".",
        false=sentence.format(other, table[other]),
        false_short=table[other].capitalize() + ".",
    )


def _in_context(question: str, rng: Random) -> str:
    return _joined(rng.choice(_GREETINGS), question, rng.choice(_CIRCUMSTANCES))


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _with_unusable(pairs: list[dict[str, str]], rng: Random) -> list[dict[str, str]]:
    """Return the pairs in a new order, with rows that repeat, contradict or lack something."""
    extra = [dict(pair) for pair in rng.sample(pairs, sum(UNUSABLE.values()))]
    kinds = [kind for kind, count in UNUSABLE.items() for _ in range(count)]
    for row, kind in zip(extra, kinds, strict=True):
        if kind == "tie":
            row["rejected"] = row["chosen"]
        elif kind == "empty":
            row["rejected"] = ""
        elif kind == "contradictory":
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    rows = pairs + extra
    rng.shuffle(rows)
    return rows
