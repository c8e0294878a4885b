"""Short English stories from a seeded grammar: a hero, a wish or a trouble, a helper, an end.

Everything here was written for this project. A plot is a list of sentences; every sentence has
several wordings, and the slots (names, animals, places, things) are filled once per story, so that
a story stays consistent from its first line to its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


def words(text: str) -> list[str]:
    """The words of a list written as one line."""
    return text.split()


GIRLS = words(
    "Anna Clara Emma Ella Grace Hannah Ida Julia Kate Lily Lucy Maria Mia Nina Nora Rosa Ruth Sara Sophie Zoe"
)
BOYS = words(
    "Adam Ben Carl David Felix Henry Hugo Jack James Leo Max Noah Oscar Paul Peter Sam Theo Tim Tom Will"
)
ANIMALS = words(
    "fox rabbit bear mouse cat dog duck frog hedgehog squirrel owl turtle goat horse pig sheep crow beaver"
)
TRAITS = words("little young brave curious gentle quiet clever cheerful shy kind patient careful")
PLACES = [
    ("forest", "in the forest", "among the tall trees"),
    ("village", "in the village", "between the small houses"),
    ("farm", "on the farm", "behind the old barn"),
    ("river", "by the river", "where the water was slow and clear"),
    ("hill", "on the green hill", "where the wind was always blowing"),
    ("garden", "in the garden", "under the apple trees"),
    ("harbour", "at the harbour", "near the fishing boats"),
    ("lake", "by the lake", "where the reeds grew high"),
    ("meadow", "in the meadow", "among the yellow flowers"),
    ("town", "in the town", "near the big clock"),
]
THINGS = [
    ("red ball", "roll"),
    ("silver key", "shine"),
    ("blue kite", "fly"),
    ("old map", "tell secrets"),
    ("wooden boat", "float"),
    ("warm scarf", "keep out the cold"),
    ("small bell", "ring"),
    ("green hat", "keep off the sun"),
    ("golden ring", "shine"),
    ("picture book", "make everyone laugh"),
    ("brass lamp", "light the dark"),
    ("music box", "play a song"),
    ("little drum", "make a noise"),
]
HIDDEN = [
    "under a stone",
    "behind the door",
    "in a hollow tree",
    "under the bridge",
    "in the long grass",
    "at the bottom of a basket",
    "beside the well",
    "under a pile of leaves",
    "next to the gate",
]
FOODS = [
    "a loaf of bread",
    "a pot of soup",
    "a basket of apples",
    "a bowl of berries",
    "a jar of honey",
    "a plate of cakes",
    "a warm pie",
    "a bag of nuts",
]
WEATHER = [
    "a sunny morning",
    "a cold winter day",
    "a rainy afternoon",
    "a bright spring day",
    "a windy autumn morning",
    "a warm summer evening",
    "a misty morning",
    "a quiet Sunday",
]
MORALS = {
    "share": ["It is good to share what you have.", "Things are better when we share them.",
              "What we share makes us richer."],
    "help": ["A friend who helps you is worth more than gold.", "Small friends can give great help.",
             "When we help others, we help ourselves too."],
    "try": ["If you keep trying, you will get there in the end.", "Nobody can do everything on the first day.",
            "Step by step, even a long road comes to an end."],
    "truth": ["It is always better to tell the truth.", "The truth may be hard to say, but it makes the heart light.",
              "A true word is the best gift."],
    "fear": ["Being brave means that you are afraid and go on.", "Most things are less frightening when you look at them.",
             "With a friend beside you, the dark is not so dark."],
    "slow": ["Careful work is better than quick work.", "Patience is stronger than speed."],
    "listen": ["It is wise to listen before you speak.", "Good advice is a gift."],
}  # fmt: skip


@dataclass(frozen=True)
class Being:
    """Someone in a story: how the text names and refers to them."""

    name: str
    kind: str
    subject: str
    object: str
    possessive: str


@dataclass(frozen=True)
class Story:
    """A finished story. `about` says what it tells, for requests of the form "a story about ..."."""

    about: str
    text: str


def _being(rng: Random, used: set[str]) -> Being:
    girl = rng.random() < 0.5
    name = rng.choice([n for n in (GIRLS if girl else BOYS) if n not in used])
    kind = rng.choice(["girl" if girl else "boy"] * 6 + [a for a in ANIMALS if a not in used])
    used |= {name, kind}
    return Being(name, kind, *(("she", "her", "her") if girl else ("he", "him", "his")))


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


class _Scene:
    """The slots of one story and the wording choices that fill them."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        used: set[str] = set()
        self.hero, self.friend = _being(rng, used), _being(rng, used)
        self.elder = rng.choice(["grandmother", "grandfather", "mother", "father", "aunt", "uncle"])
        place, where, corner = rng.choice(PLACES)
        thing, use = rng.choice(THINGS)
        h, f = self.hero, self.friend
        self.slots = {
            "h": h.name, "hk": h.kind, "he": h.subject, "him": h.object, "his": h.possessive,
            "f": f.name, "fk": f.kind, "fhe": f.subject, "fhim": f.object, "fhis": f.possessive,
            "elder": self.elder, "place": place, "where": where, "corner": corner, "thing": thing,
            "use": use, "hidden": rng.choice(HIDDEN), "food": rng.choice(FOODS),
            "weather": rng.choice(WEATHER), "trait": rng.choice(TRAITS),
        }  # fmt: skip
        for key in ("he", "fhe", "his", "where"):
            self.slots[key.capitalize()] = capital(self.slots[key])
        self.slots["a_hero"] = article(f"{self.slots['trait']} {h.kind}")
        self.slots["a_friend"] = article(f.kind)
        self.slots["a_thing"] = article(thing)

    def say(self, *wordings: str) -> str:
        return self.rng.choice(wordings).format_map(self.slots)

    def opening(self) -> str:
        return self.say(
            "Once upon a time there was {a_hero} named {h}. {He} lived {where}, {corner}.",
            "Once upon a time, {where}, there lived {a_hero} called {h}.",
            "{h} was {a_hero} who lived {where}.",
            "There was once {a_hero} whose name was {h}. {His} home was {where}.",
            "A long time ago {a_hero} named {h} lived {where}.",
            "Once there was {a_hero} named {h}. Every day {he} played {where}.",
        )

    def meet(self) -> str:
        return self.say(
            "{His} best friend was {a_friend} named {f}.",
            "{He} had a good friend, {a_friend} called {f}.",
            "Not far away lived {f}, {a_friend}, and the two were friends.",
        )

    def one_day(self) -> str:
        return self.say(
            "One day", "On {weather}", "It was {weather}, and", "Early one morning", "One afternoon"
        )

    def closing(self, moral: str) -> str:
        lesson = self.rng.choice(MORALS[moral])
        end = self.say(
            "That evening {h} fell asleep with a smile.", "From that day on, {h} and {f} were the best of friends.",
            "{h} never forgot that day.", "And so they all went home happy.", "They laughed about it for a long time.",
            "Then the stars came out, and everything was quiet.",
        )  # fmt: skip
        return self.rng.choice([f"{end} {lesson}", end, f"{lesson} {end}", f"{lesson}"])


def _lost(s: _Scene) -> list[str]:
    return [
        s.opening(),
        s.say("{He} had {a_thing} that could {use}, and {he} loved it more than anything.",
              "{His} favourite thing in the world was {a_thing}. It could {use}."),
        s.one_day() + s.say(" {h} looked for the {thing}, but it was gone.", " the {thing} was not in its place.",
                            " {h} could not find the {thing} anywhere."),
        s.say("{He} looked in the house and {he} looked {where}, but {he} did not find it. {h} began to cry.",
              "{h} was very sad and sat down {corner}."),
        s.say('"Why are you sad?" asked {f}, {a_friend} who lived near by.',
              'Just then {f}, {a_friend}, came along. "What is the matter?" {fhe} asked.'),
        s.say('"I have lost my {thing}," said {h}.', '"My {thing} is lost, and I do not know where to look," said {h}.'),
        s.say('"Do not worry," said {f}. "I will help you to look for it."', '"Then let us look together," said {f}.',
              '"Two can see more than one," said {f}. "Come with me."'),
        s.say("They looked here and they looked there. At last {f} saw something {hidden}. It was the {thing}!",
              "They searched for an hour. Then {h} looked {hidden}, and there it was!",
              "They walked slowly and looked at every corner. {Hidden_} they found the {thing}."),
        s.say('"Thank you!" said {h}. "You are a true friend."', '{h} jumped for joy. "Thank you, {f}!" {he} said.',
              "{h} was so happy that {he} gave {f} a big hug."),
        s.closing("help"),
    ]  # fmt: skip


def _share(s: _Scene) -> list[str]:
    return [
        s.opening(),
        s.one_day() + s.say(" {his} {elder} gave {him} {food}.", " {h} was given {food} by {his} {elder}."),
        s.say('"This is all for me," thought {h}, and {he} went away to eat alone.',
              "{h} was hungry and wanted to eat it all."),
        s.say("On the way {he} met {f}, {a_friend}. {f} looked tired and hungry.",
              "Then {he} saw {f}, {a_friend}, who had nothing to eat."),
        s.say('"I have not eaten since yesterday," said {f}.', '"That smells good," said {f} in a small voice.'),
        s.say("{h} thought for a moment. First {he} wanted to run away, but then {he} felt sorry for {f}.",
              "{h} looked at the food and then at {f}. {He} knew what to do."),
        s.say('"Here," said {h}, "half of it is for you."', '"Sit down with me," said {h}. "There is enough for two."'),
        s.say("They sat down {corner} and ate together. It tasted better than ever before.",
              "The two of them ate and talked until the sun went down."),
        s.say("The next day {f} came back with {a_thing} as a gift for {h}.",
              "A week later {h} was hungry, and this time {f} had food for both of them.",
              '"You are kind," said {f}. "I will not forget it."'),
        s.closing("share"),
    ]  # fmt: skip


def _learn(s: _Scene) -> list[str]:
    skill, first, last = s.rng.choice([
        ("swim", "the water was cold and {h} swallowed a lot of it", "swam all the way to the other side"),
        ("climb", "{he} slipped and fell into the soft grass", "climbed to the very top"),
        ("sing", "the notes were wrong and the birds flew away", "sang so well that everyone came to listen"),
        ("bake bread", "the bread was as hard as a stone", "baked a loaf that was soft and brown"),
        ("read", "the letters danced before {his} eyes", "read a whole page without help"),
        ("paint", "the colours ran together and everything was brown", "painted a picture of the {place}"),
        ("ride", "{he} fell down after two steps", "rode around the {place} three times"),
        ("skate", "{he} sat down on the ice with a bump", "skated in a big circle"),
    ])  # fmt: skip
    s.slots |= {
        "skill": skill,
        "first": first.format_map(s.slots),
        "last": last.format_map(s.slots),
    }
    return [
        s.opening(),
        s.say("{h} wanted to learn to {skill}.", "More than anything, {h} wished to {skill}."),
        s.one_day() + s.say(" {he} tried for the first time, but {first}.", " {h} tried, but {first}."),
        s.say('"I will never learn it," said {h}.', '"It is too hard for me," {he} said, and {he} wanted to go home.'),
        s.say('"Nobody learns it in one day," said {his} {elder}. "Try a little every day."',
              '{f}, {a_friend}, had watched. "I was bad at it too," said {f}. "Try again tomorrow."'),
        s.say("So {h} tried again the next day, and the day after that.", "So {h} tried every morning before breakfast."),
        s.say("Sometimes it went well, and sometimes it did not, but {h} did not stop.",
              "After a week it was a little better. After two weeks it was much better."),
        s.say("At last the day came: {h} {last}.", "And one fine day {h} {last}."),
        s.say('"Well done!" said {his} {elder}.', '"I knew that you could do it!" said {f}.', "Everybody clapped."),
        s.closing("try"),
    ]  # fmt: skip


def _truth(s: _Scene) -> list[str]:
    broken = s.rng.choice(
        ["blue cup", "big window", "flower pot", "old chair", "white plate", "garden gate"]
    )
    s.slots["broken"] = broken
    return [
        s.opening(),
        s.one_day() + s.say(" {h} was playing and broke the {broken}.", " {h} ran too fast, and the {broken} broke."),
        s.say("Nobody had seen it. {h} was afraid and hid {hidden}.", "{h} was frightened and ran away to hide {hidden}."),
        s.say('"Who broke the {broken}?" asked {his} {elder}.', 'Soon {his} {elder} came. "What happened to the {broken}?"'),
        s.say("{h} wanted to say that it was the wind.", '"Perhaps it was the cat," {h} wanted to say.'),
        s.say("But {his} heart was heavy, and {he} could not say it.", "But then {he} thought of {f}, who always told the truth."),
        s.say('"It was me," said {h} in a small voice. "I am sorry."', '"I did it," said {h}. "I was not careful, and I am sorry."'),
        s.say("{His_elder} was quiet for a moment and then smiled.", "{His_elder} looked at {him} kindly."),
        s.say('"Thank you for telling me," said the {elder}. "Let us mend it together."',
              '"A {broken} can be mended," said the {elder}. "I am glad that you told the truth."'),
        s.say("They worked all afternoon, and in the end the {broken} was almost as good as new.",
              "Together they mended it, and {h} felt light again."),
        s.closing("truth"),
    ]  # fmt: skip


def _night(s: _Scene) -> list[str]:
    noise, cause = s.rng.choice([
        ("a tapping at the window", "a branch that the wind was moving"),
        ("a soft scratching at the door", "a small kitten that wanted to come in"),
        ("a strange song outside", "an owl that sat on the roof"),
        ("a splash in the dark", "a duck that could not sleep"),
        ("a rattle under the bed", "a mouse that had found a nut"),
    ])  # fmt: skip
    s.slots |= {"noise": noise, "cause": cause}
    return [
        s.opening(),
        s.say("{h} was afraid of the dark.", "There was one thing that {h} did not like, and that was the night."),
        s.say("One night {he} heard {noise}.", "It was late, and the moon was hidden, when {h} heard {noise}."),
        s.say('"What is that?" {he} whispered.', "{His} heart beat fast.", '"Is somebody there?" {he} asked. Nobody answered.'),
        s.say("{He} woke {f}, {a_friend} who was sleeping in the next room.", "{h} ran to {f}, {a_friend} who was never afraid."),
        s.say('"Let us go and look," said {f}.', '"I am a little afraid too," said {f}, "but together we can look."'),
        s.say("They took a lamp and went on the tips of their toes.", "Hand in hand they went, one step and then another."),
        s.say("And what did they see? It was only {cause}!", "There was no monster. It was {cause}."),
        s.say("{h} laughed, and {f} laughed too.", '"So that was all!" said {h}, and they both began to laugh.'),
        s.closing("fear"),
    ]  # fmt: skip


def _race(s: _Scene) -> list[str]:
    return [
        s.opening(),
        s.say("{h} was slow, but {he} was careful.", "{h} never hurried, and some laughed at {him} for it."),
        s.say("{f}, {a_friend}, was quick and proud of it.", "{f} was {a_friend} who could run like the wind."),
        s.one_day() + s.say(' {f} said, "Let us race to the old bridge!"', ' they made a race from the {place} to the big oak.'),
        s.say("{f} ran ahead at once and was soon out of sight.", "At the first turn {f} was far in front."),
        s.say('"I have so much time," thought {f}, and {fhe} lay down for a nap.',
              "Then {f} saw some berries and stopped to eat them all."),
        s.say("{h} went on, step by step, and did not stop.", "But {h} kept going, slowly and steadily."),
        s.say("When {f} looked up, {h} was already there.", "{f} ran as fast as {fhe} could, but it was too late. {h} had won."),
        s.say('"You were faster," said {h}, "but I did not stop."', '"Well done," said {f}. "Next time I will not sleep."'),
        s.closing("slow"),
    ]  # fmt: skip


def _rescue(s: _Scene) -> list[str]:
    trap, tool = s.rng.choice([
        ("caught in a net", "bit through the ropes one by one"), ("stuck in the mud", "pulled with a long branch"),
        ("sitting on a rock in the rising water", "pushed a log across the water"),
        ("caught in the thorns", "bent the branches away"), ("at the bottom of a pit", "let down a strong rope"),
    ])  # fmt: skip
    s.slots |= {"trap": trap, "tool": tool}
    return [
        s.opening(),
        s.say("Everybody said that {h} was too small to be of any use.", "{h} was small, and {he} wished to be strong."),
        s.one_day() + s.say(" {h} heard somebody call for help.", " a cry came from the {place}."),
        s.say('"Help! Help!" It was {f}, {a_friend}, who was {trap}.', "{He} ran and found {f}, {a_friend}, who was {trap}."),
        s.say('"I cannot move," said {f}. "Please get somebody strong."', '"You are too small to help me," cried {f}.'),
        s.say('"There is no time," said {h}. "I will try."', '"Small is not the same as weak," said {h}.'),
        s.say("{He} {tool}.", "{He} worked hard. {He} {tool}."),
        s.say("It took a long time, but in the end {f} was free.", "At last there was a crack, and {f} was free!"),
        s.say('"You saved me," said {f}. "I will never call you small again."', '"Thank you," said {f}. "You are the bravest of all."'),
        s.closing("help"),
    ]  # fmt: skip


def _advice(s: _Scene) -> list[str]:
    rule, result = s.rng.choice([
        ("Do not walk on the thin ice", "the ice broke with a loud crack"),
        ("Take your coat with you", "it began to rain and did not stop"),
        ("Do not leave the path", "every tree looked the same, and the path was gone"),
        ("Close the gate behind you", "all the sheep ran out into the road"),
        ("Do not eat the green apples", "{his} stomach began to hurt"),
        ("Be home before dark", "it grew dark, and {he} could not see the way"),
    ])  # fmt: skip
    s.slots |= {"rule": rule, "result": result.format_map(s.slots)}
    return [
        s.opening(),
        s.one_day() + s.say(" {h} wanted to visit {f}, {a_friend} who lived far away.", " {h} set out for a long walk."),
        s.say('"{rule}," said {his} {elder}.', 'Before {he} left, {his} {elder} said, "{rule}."'),
        s.say('"Yes, yes," said {h}, but {he} did not listen.', "{h} nodded, but {he} was already thinking of other things."),
        s.say("After a while {he} forgot all about it, and {result}.", "Soon it happened: {result}."),
        s.say('"Oh dear," said {h}. "Why did I not listen?"', "{h} sat down and did not know what to do."),
        s.say("By good luck {f}, {a_friend}, came along and helped {him} home.", "Luckily {f} heard {him} and came to help."),
        s.say('At home {his} {elder} gave {him} {food}. "What have you learned today?"',
              "{His_elder} was not angry and gave {him} {food}."),
        s.say('"Next time I will listen," said {h}.', '"I have learned to listen," said {h}, and {he} meant it.'),
        s.closing("listen"),
    ]  # fmt: skip


_PLOTS = {
    "who lost something": _lost, "about sharing": _share, "about learning something new": _learn,
    "about telling the truth": _truth, "about being afraid of the dark": _night, "about a race": _race,
    "about a brave rescue": _rescue, "about listening to good advice": _advice,
}  # fmt: skip
PLOT_NAMES: Sequence[str] = tuple(_PLOTS)


def make_story(rng: Random) -> Story:
    """One story, 90 to 200 words, in one or a few paragraphs."""
    scene = _Scene(rng)
    scene.slots["Hidden_"] = capital(scene.slots["hidden"])
    scene.slots["His_elder"] = capital(f"{scene.slots['his']} {scene.slots['elder']}")
    theme = rng.choice(PLOT_NAMES)
    sentences = _PLOTS[theme](scene)
    if rng.random() < 0.35 and theme not in ("about a race",):
        sentences.insert(1, scene.say("{He} liked to sing while {he} worked.", "{He} was always ready for an adventure.",
                                      "Everyone who knew {him} liked {him}.", "{He} had a warm bed and a round window.",
                                      "{He} lived there with {his} {elder}."))  # fmt: skip
    breaks = {3, 7} if rng.random() < 0.5 else set()
    text = "".join(
        ("\n\n" if i in breaks else " " if i else "") + s for i, s in enumerate(sentences)
    )
    about = (
        f"{article(scene.hero.kind)} {theme}"
        if theme.startswith("who")
        else f"{article(scene.hero.kind)}, {theme}"
    )
    return Story(about, text)
