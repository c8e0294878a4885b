"""Small facts of the world, as sentences, as questions with answers, and as multiple choice."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from seekernel.model.demo.stories import BOYS, GIRLS, article, capital, words

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Poland": "Warsaw", "Austria": "Vienna", "Greece": "Athens", "Russia": "Moscow",
    "China": "Beijing", "Japan": "Tokyo", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Hungary": "Budapest", "Belgium": "Brussels",
    "Turkey": "Ankara", "Korea": "Seoul", "Thailand": "Bangkok", "the United States": "Washington",
    "the Netherlands": "Amsterdam", "Iceland": "Reykjavik",
}  # fmt: skip
CONTINENT = {
    "Europe": words("France Germany Italy Spain Portugal England Ireland Norway Sweden Denmark Finland Poland Austria "
               "Greece Hungary Belgium Iceland") + ["the Netherlands"],
    "Asia": words("China Japan India Korea Thailand"), "Africa": words("Egypt Kenya"),
    "North America": ["Canada", "Mexico", "Cuba", "the United States"], "South America": words("Peru Chile Argentina"),
}  # fmt: skip
COLOURS = {"grass": "green", "the sky on a clear day": "blue", "snow": "white", "coal": "black", "a ripe lemon": "yellow",
           "blood": "red", "an orange": "orange", "milk": "white", "a ripe banana": "yellow", "a crow": "black",
           "a raspberry": "red", "chocolate": "brown"}  # fmt: skip
SOUNDS = {"dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "lion": "roars", "sheep": "bleats", "horse": "neighs",
          "wolf": "howls", "bee": "buzzes", "frog": "croaks", "owl": "hoots", "pig": "grunts"}  # fmt: skip
YOUNG = {"dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal", "duck": "duckling",
         "goat": "kid", "bear": "cub", "hen": "chick", "frog": "tadpole", "pig": "piglet", "swan": "cygnet"}  # fmt: skip
LEGS = {
    "dog": 4,
    "bird": 2,
    "spider": 8,
    "ant": 6,
    "horse": 4,
    "snake": 0,
    "bee": 6,
    "human being": 2,
    "frog": 4,
}
HOMES = {
    "bee": "hive",
    "bird": "nest",
    "spider": "web",
    "lion": "den",
    "rabbit": "burrow",
    "horse": "stable",
    "dog": "kennel",
}
OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "day": "night", "old": "young", "happy": "sad", "fast": "slow",
             "early": "late", "open": "closed", "full": "empty", "light": "dark", "long": "short", "wet": "dry", "left": "right"}  # fmt: skip
MONTHS = words(
    "January February March April May June July August September October November December"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
)
NUMBERS = words("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty")  # fmt: skip
SCIENCE = {
    "At what temperature does water freeze, in degrees Celsius?": ("0", ["100", "50", "20"]),
    "At what temperature does water boil, in degrees Celsius?": ("100", ["0", "50", "20"]),
    "How many days are there in a week?": ("7", ["5", "10", "12"]),
    "How many months are there in a year?": ("12", ["7", "10", "24"]),
    "How many hours are there in a day?": ("24", ["12", "60", "7"]),
    "How many minutes are there in an hour?": ("60", ["24", "100", "12"]),
    "Which planet do we live on?": ("Earth", ["Mars", "Venus", "Jupiter"]),
    "Which planet is the largest?": ("Jupiter", ["Earth", "Mars", "Venus"]),
    "What does the Earth go around?": ("the Sun", ["the Moon", "Mars", "Jupiter"]),
    "What goes around the Earth?": ("the Moon", ["the Sun", "Mars", "Venus"]),
    "What is frozen water called?": ("ice", ["steam", "sand", "oil"]),
    "What do bees make?": ("honey", ["milk", "wool", "silk"]),
    "What do cows give us?": ("milk", ["honey", "silk", "ink"]),
    "What do sheep give us?": ("wool", ["honey", "silk", "sand"]),
    "Which gas do we need to breathe?": ("oxygen", ["helium", "neon", "hydrogen"]),
    "What do plants need to grow?": ("light and water", ["salt and sand", "snow and ice", "iron and gold"]),
    "In which direction does the Sun rise?": ("east", ["west", "north", "south"]),
    "In which direction does the Sun set?": ("west", ["east", "north", "south"]),
    "How many sides does a triangle have?": ("3", ["4", "5", "6"]),
    "How many sides does a square have?": ("4", ["3", "5", "6"]),
    "Which season comes after winter?": ("spring", ["summer", "autumn", "winter"]),
    "Which season comes after spring?": ("summer", ["spring", "autumn", "winter"]),
    "Who wrote Emma?": ("Jane Austen", ["Herman Melville", "Homer", "Dante"]),
    "Who wrote Moby Dick?": ("Herman Melville", ["Jane Austen", "Homer", "Dante"]),
}  # fmt: skip
PRESIDENT = [
    "The president of the United States is the head of state and the head of the government.",
    "The president of the United States is elected for a term of four years.",
    "The president of the United States is the leader of the country and lives in the White House.",
]
PRESIDENT_MORE = [
    "The president lives in the White House in Washington.", "The elections are held every four years.",
    "The president signs the laws that Congress has made.", "Nobody may be elected to the office more than twice.",
    "The president is also the head of the army.", "The people vote in November.",
]  # fmt: skip
FUTURE = [
    "The future of AI is open, and many people are working to make it useful and safe.",
    "The future of AI is in the hands of the people who build it and of those who use it.",
    "The future of AI is hard to know, but it will surely change the way we work and learn.",
    "The future of AI is bright if we use it with care.",
]
FUTURE_MORE = [
    "Computers can already read, write and answer questions.", "A good machine should help people and do no harm.",
    "Machines will do more of the dull work, and people will have more time for each other.",
    "Nobody can say today how far it will go.", "Doctors, teachers and farmers will all use it.",
    "It is important that everyone can learn how it works.", "Small models can run on an ordinary computer.",
]  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A question, its short answer, three or more wrong answers, and the answer as a sentence."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    sentence: str


def _others(rng: Random, values: list[str], answer: str) -> tuple[str, ...]:
    return tuple(rng.sample(sorted(set(values) - {answer}), 3))


def make_fact(rng: Random) -> Fact:
    """One fact, drawn from the tables above."""
    match rng.choice("ccccckklsyhgomdnsqqqq"):
        case "c":
            country, city = rng.choice(list(CAPITALS.items()))
            return Fact(f"What is the capital of {country}?", city, _others(rng, list(CAPITALS.values()), city),
                        f"The capital of {country} is {city}.")  # fmt: skip
        case "k":
            where = rng.choice(list(CONTINENT))
            country = rng.choice(CONTINENT[where])
            return Fact(f"On which continent is {country}?", where, _others(rng, list(CONTINENT), where),
                        f"{capital(country)} is in {where}.")  # fmt: skip
        case "l":
            thing, colour = rng.choice(list(COLOURS.items()))
            return Fact(f"What colour is {thing}?", colour, _others(rng, list(COLOURS.values()), colour),
                        f"{capital(thing)} is {colour}.")  # fmt: skip
        case "s":
            animal, sound = rng.choice(list(SOUNDS.items()))
            return Fact(f"What does {article(animal)} do?", f"it {sound}",
                        tuple(f"it {w}" for w in _others(rng, list(SOUNDS.values()), sound)),
                        f"{capital(article(animal))} {sound}.")  # fmt: skip
        case "y":
            animal, young = rng.choice(list(YOUNG.items()))
            return Fact(f"What is a young {animal} called?", article(young),
                        tuple(article(w) for w in _others(rng, list(YOUNG.values()), young)),
                        f"A young {animal} is called {article(young)}.")  # fmt: skip
        case "h":
            animal, home = rng.choice(list(HOMES.items()))
            return Fact(f"Where does {article(animal)} live?", f"in {article(home)}",
                        tuple(f"in {article(w)}" for w in _others(rng, list(HOMES.values()), home)),
                        f"{capital(article(animal))} lives in {article(home)}.")  # fmt: skip
        case "g":
            animal, legs = rng.choice(list(LEGS.items()))
            return Fact(f"How many legs does {article(animal)} have?", str(legs),
                        _others(rng, [str(n) for n in range(0, 11, 2)], str(legs)),
                        f"{capital(article(animal))} has {legs or 'no'} legs.")  # fmt: skip
        case "o":
            word, other = rng.choice(list(OPPOSITES.items()))
            return Fact(f"What is the opposite of {word}?", other, _others(rng, list(OPPOSITES.values()), other),
                        f"The opposite of {word} is {other}.")  # fmt: skip
        case "m":
            i = rng.randrange(12)
            return Fact(f"Which month comes after {MONTHS[i - 1]}?", MONTHS[i], _others(rng, MONTHS, MONTHS[i]),
                        f"{MONTHS[i]} comes after {MONTHS[i - 1]}.")  # fmt: skip
        case "d":
            i = rng.randrange(7)
            return Fact(f"Which day comes after {DAYS[i - 1]}?", DAYS[i], _others(rng, DAYS, DAYS[i]),
                        f"{DAYS[i]} comes after {DAYS[i - 1]}.")  # fmt: skip
        case "n":
            i = rng.randrange(12)
            return Fact(f"Which is the {ORDINALS[i]} month of the year?", MONTHS[i], _others(rng, MONTHS, MONTHS[i]),
                        f"The {ORDINALS[i]} month of the year is {MONTHS[i]}.")  # fmt: skip
    question, (answer, wrong) = rng.choice(list(SCIENCE.items()))
    return Fact(question, answer, tuple(wrong), f"The answer is {answer}.")


def make_choice(rng: Random) -> tuple[str, str]:
    """A multiple-choice question in MMLU's layout, up to "Answer:", and the letter of the answer."""
    fact = make_fact(rng)
    options = [fact.answer, *rng.sample(fact.wrong, 3)]
    rng.shuffle(options)
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
    return "\n".join([fact.question, *lines, "Answer:"]), "ABCD"[options.index(fact.answer)]


def _country_text(rng: Random) -> str:
    country, city = rng.choice(list(CAPITALS.items()))
    where = next((c for c, names in CONTINENT.items() if country in names), None)
    more = [f"Many people live and work in {city}.", f"Every year many visitors come to see {city}.",
            f"{city} is a large and busy city.", f"The government of {country} meets there."]  # fmt: skip
    if where:
        more += [f"{capital(country)} is in {where}."] * 2
    return " ".join(
        [f"The capital of {country} is {city}.", *rng.sample(sorted(set(more)), rng.randint(1, 3))]
    )


def _hello_text(rng: Random) -> str:
    girl = rng.random() < 0.5
    name = rng.choice(GIRLS if girl else BOYS)
    age = rng.randint(6, 12)
    country = rng.choice(list(CAPITALS))
    job = rng.choice(
        ["a teacher", "a doctor", "a baker", "a farmer", "a sailor", "a nurse", "a gardener"]
    )
    likes = rng.sample(
        [
            "reading",
            "swimming",
            "drawing",
            "singing",
            "running",
            "cooking",
            "playing chess",
            "telling stories",
        ],
        2,
    )
    pet = rng.choice(["dog", "cat", "rabbit", "horse", "turtle"])
    first = rng.choice([f"Hello, my name is {name}.", f"Hello, my name is {name}, and I am {NUMBERS[age]} years old.",
                        f"Hello! My name is {name}.", f"Hello, my name is {name} and I live in {country}."])  # fmt: skip
    more = [f"I like {likes[0]} and {likes[1]}.", f"I live in {rng.choice(['a small house', 'a big town', 'a little village'])} with my family.",
            f"My mother is {job}.", f"I have a {pet} called {rng.choice(['Spot', 'Snow', 'Coco', 'Lucky', 'Daisy'])}.",
            f"I come from {country}.", f"When I grow up, I want to be {job}."]  # fmt: skip
    last = rng.choice(
        ["It is nice to meet you!", "What is your name?", "I hope that we will be friends."]
    )
    return " ".join([first, *rng.sample(more, rng.randint(2, 4)), last])


def _counting_text(rng: Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        a = rng.randint(0, 8)
        return f"Let us count: {', '.join(NUMBERS[a : a + rng.randint(5, 12)])}."
    if kind == 1:
        step, a = rng.choice([1, 2, 5, 10]), rng.randint(0, 20)
        numbers = ", ".join(str(a + step * i) for i in range(rng.randint(5, 10)))
        return f"Count in steps of {step} from {a}: {numbers}."
    if kind == 2:
        return f"The months of the year are {', '.join(MONTHS[:-1])} and {MONTHS[-1]}."
    return f"The days of the week are {', '.join(DAYS[:-1])} and {DAYS[-1]}."


def make_text(rng: Random) -> str:
    """A paragraph of plain statements: countries, a person's greeting, counting, single facts."""
    match rng.choice("cchhhpffnssss"):
        case "c":
            return _country_text(rng)
        case "h":
            return _hello_text(rng)
        case "p":
            return " ".join([rng.choice(PRESIDENT), *rng.sample(PRESIDENT_MORE, rng.randint(1, 3))])
        case "f":
            return " ".join([rng.choice(FUTURE), *rng.sample(FUTURE_MORE, rng.randint(1, 3))])
        case "n":
            return _counting_text(rng)
    facts = [make_fact(rng) for _ in range(rng.randint(2, 5))]
    return " ".join(
        f.sentence if not f.sentence.startswith("The answer") else f"{f.question} {f.sentence}"
        for f in facts
    )
