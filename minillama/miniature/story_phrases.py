"""The words of the stories: for each thing that can happen, several ways to say it.

A line is a template and weighs as much as any other line; `(a|b|)` are alternatives, each as likely as the others.
Slots name a role and a form of the entity that plays it (the fields of `world.py`):

    {S} {s}      the one who acts, by name or as she/he, at the start of a sentence and inside it
    {A} {B} {C}  the one who acts, and others: {A.his}, {B.full} (Hoot the owl), {B.home.at} (in the mill)
    {X} {Y}      items: {X} is "red kite", {X.a}, {X.the}, {X.noun} (kite)
    {P} {Q}      places: {P.at} (in the forest), {P.to}
    {W} {T} {F}  weather, time of day, food
    {did}        what one does at a place, in the past; {spot} {Spot} where a thing may lie there
    {trouble} {Trouble} {help} {play}   what a thing is good for (see `Thing`)
"""

from minillama.miniature.chooser import phrases

_STORY = {
    # Scenes
    "open": """
        One {W} {T}, {A.full} went {P.to}.
        It was a {W} {T}, and {A.full} was {P.at}.
        {W.Clause} when {A.full} came {P.to}.
        On a {W} {T}, {A.full} (walked|ran) {P.to}.
        {A.full} liked to be {P.at}, and one {W} {T} {A.he} went there again.
        (Once|One day), {A.full} went {P.to}, and {W.clause}.
        """,
    "do": """
        {S} {did}.
        There {s} {did}.
        (For a while|For a long time) {s} {did}.
        {S} {did} and (sang a song|was happy|thought of nothing).
        (First|As always), {s} {did}.
        """,
    "go": """
        {S} (walked|ran|went) {P.to}.
        (Then|So|After that) {s} (walked|ran|went) {P.to}.
        {S} took the (short|long) way {P.to}.
        {S} did not stop until {A.he} was {P.at}.
        """,
    "home": """
        In the end, {s} went home {A.home.to}.
        (Then|So) {s} went home {A.home.to}.
        When it grew dark, {s} walked home {A.home.to}.
        """,
    "meet": """
        {P.At}, {s} met {B.full}.
        (Just then|Soon), {B.full} came along.
        {S} saw {B.full} {P.at}.
        {B.full} was {P.at}, too.
        "Hello, {A}!" said {B.full}.
        """,
    "weather": """
        {W.Clause}.
        {W.Clause}, but {s} did not mind.
        It was still {W}.
        """,
    # Having, losing, finding
    "have": """
        {S} had {X.a} with {A.him}.
        {S} had brought {X.a}.
        {S} carried {X.a} under {A.his} arm.
        In {A.his} bag was {X.a}.
        {S} (was proud of|loved) {A.his} {X}.
        """,
    "wind": """
        Then the wind took {X.the} (and carried it far away|out of {A.his} hands).
        A strong wind came and blew {X.the} away.
        """,
    "roll": """
        {X.The} fell down and rolled (away|out of sight).
        {S} let {X.the} fall, and it rolled away.
        """,
    "pocket": """
        There was a hole in {A.his} pocket, and {X.the} fell out.
        {X.The} (slipped|fell) out of {A.his} pocket without a sound.
        """,
    "left": """
        {S} put {X.the} down (under a tree|on a stone|on the ground) and forgot it.
        {S} went on and left {X.the} behind.
        """,
    "gone": """
        Later, {s} looked for {X.the}, but it was (gone|not there).
        "Where is my {X.noun}?" cried {A}. It was gone.
        When {s} wanted to play, {X.the} was (gone|missing).
        {S} looked (in {A.his} bag|everywhere), but {A.he} could not find {X.the}.
        """,
    "sad": """
        {S} was (sad|very sad|so sad).
        {S} sat down and cried.
        {A.His} eyes filled with tears.
        {S} did not want to (eat|sing|play) any more.
        """,
    "ask seen": """
        "Have you seen my {X.noun}?" asked {A}.
        {S} asked {B} about {X.the}.
        "I have lost my {X}," said {A}. "Have you seen it?"
        "Can you help me?" asked {A}. "My {X.noun} is gone."
        """,
    "not seen": """
        "No, I have not seen it," said {B}.
        "I am sorry," said {B}. "I have not seen it."
        {B} had not seen it.
        {B} (shook {B.his} head|did not know).
        """,
    "seen": """
        "Yes," said {B}. "I saw (it|{X.a}) {Q.at}."
        "(Look|Go and look) {Q.at}," said {B}.
        {B} had seen it {Q.at}.
        """,
    "find": """
        {S} found {X.the} {P.at}.
        There it was! {X.The} lay {spot}.
        {S} looked (up and down|here and there) and found {X.the} {spot}.
        And there, {spot}, was {X.the}.
        """,
    "find new": """
        {S} found {X.a} {spot}.
        There {s} saw {X.a} {spot}.
        {Spot} lay {X.a}.
        Something lay {spot}. It was {X.a}!
        """,
    "brought back": """
        "Is this yours?" asked {B}, and {B.he} held up {X.the}.
        {B} had found {X.the} {Q.at} and gave it back.
        {B} put {X.the} into {A.his} hands.
        """,
    "come back": """
        The next day, {B.full} came to {A.his} door.
        Then {B.full} came running.
        In the evening, {B.full} knocked at {A.his} door.
        """,
    "both find": """
        {A} and {B} found {X.a} {spot}.
        {Spot}, they saw {X.a}.
        There was {X.a} {spot}.
        """,
    # Feelings
    "glad": """
        {S} was (glad|happy|so happy).
        {S} (laughed|smiled|jumped for joy).
        {S} felt warm inside.
        {A.His} (face|heart) was bright with joy.
        """,
    "thank": """
        "Thank you, {B}!" said {A}.
        {S} thanked {B} (with all {A.his} heart|two times|and smiled).
        "You are a good friend," said {A}.
        "Thank you," said {A}. "You are very kind."
        """,
    # Giving and swapping
    "think of": """
        "{B} would like this," thought {A}.
        {S} thought of {B.full}.
        "I will give it to {B.full}," said {A}.
        """,
    "reason": """
        It was {B.his} birthday.
        {B} was ill in bed (that day|and could not play).
        {B} had been sad all (day|week).
        {B} had (helped {A.him}|been kind to {A.him}) the day before.
        """,
    "favourite": """
        {X.colour} was the colour {B} liked best.
        {B} loved everything {X.colour}.
        """,
    "give": """
        {S} gave {X.the} to {B}.
        {S} gave {B} {X.the}.
        "This is for you," said {A}, and {A.he} gave {B} {X.the}.
        "Look what I have for you!" said {A}. It was {X.the}.
        """,
    "food": """
        {B} gave {A.him} some {F}.
        For that, {A} got some {F} from {B}.
        Then {A} and {B} ate some {F}.
        """,
    "play": """
        {A} and {B} {play}.
        Together they {play}.
        {A} and {B} {play} until it was dark.
        All (day|afternoon) they {play}.
        """,
    # Helping
    "trouble": """
        {B} was (sad|worried|not happy), because {trouble}.
        {S} asked what was wrong, and {B} said that {trouble}.
        "Help!" called {B}. {Trouble}.
        "What is wrong?" asked {A}. {B} said that {trouble}.
        """,
    "help": """
        {S} {help}.
        "I can help you," said {A}, and {A.he} {help}.
        {S} did not wait. {A.He} {help}.
        """,
    # Swapping
    "has other": """
        {B} had {Y.a}.
        {B} was carrying {Y.a}.
        {S} saw that {B} had {Y.a}.
        In {B.his} bag, {B} had {Y.a}.
        """,
    "offer": """
        "Shall we swap?" asked {A}. "My {X.noun} for your {Y.noun}."
        "What a nice {Y.noun}!" said {A}. "I would give you my {X.noun} for it."
        {S} wanted {Y.the} so much that {A.he} offered {X.the} for it.
        "I like your {Y.noun}," said {A}. "Do you like my {X.noun}?"
        """,
    "no": """
        {B} (shook {B.his} head|said no).
        "No," said {B}. "I want to keep my {Y.noun}."
        But {B} wanted to keep {Y.the}.
        """,
    "yes": """
        {B} (nodded|said yes).
        "Yes, let us swap!" said {B}.
        {B} thought about it and (agreed|nodded).
        """,
    "swap": """
        So {A} took {Y.the}, and {B} took {X.the}.
        {S} gave {B} {X.the} and got {Y.the} for it.
        Now {A} had {Y.the} and {B} had {X.the}.
        """,
    "both glad": """
        Both were (glad|happy).
        {A} and {B} (laughed|smiled) and were friends.
        Both thought it was a (good|very good) day.
        """,
    # Quarrelling and sharing
    "both want": """
        "It is mine!" said {A}. "No, it is mine!" said {B}.
        {A} pulled on one side, and {B} pulled on the other.
        "I saw it first!" cried {A}. "No, I did!" cried {B}.
        Both wanted to have it, and they began to shout.
        """,
    "heard": """
        {C.full} heard them.
        {C.full} came to see what was wrong.
        "Stop that!" said {C.full}.
        That was so loud that {C.full} woke up.
        """,
    "advise turns": """
        "You can take turns," said {C}.
        {C} told them to take turns.
        "One day for {A}, one day for {B}," said {C}.
        """,
    "turns": """
        So {A} had {X.the} first, and {B} had it the next day.
        From then on, {A} had it in the morning and {B} in the evening.
        """,
    "advise play": """
        "Why do you not play together?" asked {C}.
        {C} told them to play together.
        "It is more fun with two," said {C}.
        """,
    "advise owner": """
        "Whose is it?" asked {C}. "Is it not mine?"
        "I lost that {X.noun} last week," said {C}.
        "Thank you for finding my {X.noun}," said {C}.
        """,
    "return": """
        So they gave {X.the} to {C}.
        {A} and {B} grew red and gave {C} {X.the}.
        {A} said sorry, and {C} got {X.the} back.
        """,
    # Errands
    "send": """
        "Please take {X.the} to {B}," said {C}. "{B.He} is {P.at}."
        {C} asked {A.him} to carry {X.the} to {B.full}, who was {P.at}.
        {C} gave {A.him} {X.the}. "{B} needs it {P.at}," said {C}.
        """,
    "visit": """
        One {W} {T}, {A.full} was with {C.full} {P.at}.
        {A.full} came to see {C.full} {P.at} on a {W} {T}.
        It was a {W} {T}, and {A.full} was helping {C.full} {P.at}.
        """,
    "tempt": """
        On the way, {s} met {B.full}. "Come and play with me!" said {B}.
        {B.full} was {P.at}. "Stay here with me!" said {B}.
        {S} came past {B.full} {P.at}. "Stay with me a little!" said {B}.
        """,
    "refuse": """
        "I cannot," said {A}. "I must bring this {X.noun} to {C} first."
        "Not now," said {A}. "{C} needs {X.the}."
        {A} wanted to stay, but {A.he} went on.
        """,
    "stay": """
        So {A} stayed, and they {did}.
        {A} said yes, and they {did} for an hour.
        That sounded like fun, and soon both {did}.
        """,
    "late": """
        Then {A} remembered {X.the} and ran.
        "Oh no, I am late!" cried {A}.
        It was (late|very late) when {A} went on.
        """,
    "deliver": """
        {B} was {P.at}, and {A} gave {B.him} {X.the}.
        "Here is your {X.noun}," said {A} to {B} {P.at}.
        {P.At}, {s} gave {X.the} to {B}.
        """,
    "in time": """
        "Just in time!" said {B}.
        {B} was glad that {A} had been so quick.
        "That was fast," said {B} and smiled.
        """,
    "too late": """
        "Where have you been?" asked {B}. "I waited so long."
        {B} had waited and was (cold|tired|sad).
        "You are late," said {B}, but {B.he} was not angry.
        """,
    "promise": """
        "I am sorry," said {A}.
        Next time, {s} will be quicker.
        {S} was ashamed and said nothing.
        """,
    # Storms
    "together": """
        One {W} {T}, {A.full} and {B.full} went {P.to}.
        {A.full} and {B.full} were {P.at} on a {W} {T}.
        It was a {W} {T}, and {A.full} met {B.full} {P.at}.
        """,
    "both do": """
        They {did}.
        First they {did}.
        For a long time they {did}.
        Together they {did} and laughed.
        """,
    "storm": """
        Then the sky grew dark, and it began to (rain|snow|thunder).
        But soon it began to (rain|snow|thunder), and they got cold.
        Suddenly a (storm|cold wind) came over the hill.
        """,
    "shelter": """
        "Quick, let us run {P.to}!" cried {B}.
        They ran {P.to} and were safe there.
        "It is dry {P.at}," said {A}, and they ran there.
        """,
    "afraid": """
        {B} was afraid and held {A.his} hand.
        "I am afraid," said {B}.
        {B} was cold and (afraid|did not speak).
        """,
    "comfort": """
        But {A} had {X.a}, and they {play}.
        "Look, I have {X.a}," said {A}, and they {play}.
        {S} took out {X.a}. So they {play}, and the time went by.
        """,
    "over": """
        When the sun came back, they walked home.
        Then it was over, and the sky was blue again.
        After an hour the sky was clear, and they could go home.
        """,
    # Hide and seek
    "game": """
        They played hide and seek.
        "Let us play hide and seek!" said {B}.
        "You count, and I hide," said {B}.
        """,
    "count": """
        {S} closed {A.his} eyes and counted to (five|ten|twenty).
        {S} counted: one, two, three, four, five!
        While {A} counted, {B} ran away.
        """,
    "not here": """
        {S} looked {spot}, but {B} was not there.
        Nobody was {spot}.
        "Are you {spot}?" asked {A}. But nobody answered.
        """,
    "nor here": """
        Then {s} looked {spot}, but nobody was there.
        And {spot}? There was only a (cat|bird|beetle).
        """,
    "sign": """
        Then {s} saw {X.the} of {B} {spot}.
        But what was that {spot}? It was {X.the} of {B}!
        {B} had {X.a} with {B.him}, and {A} saw it {spot}.
        """,
    "found you": """
        "I found you!" cried {A}.
        "There you are!" said {A}, and both laughed.
        {S} jumped up and (touched|caught) {B}.
        """,
    "turn over": """
        Then it was {B.his} turn to count.
        "Now I hide!" said {A}.
        They played until they were (hungry|tired).
        """,
    # Birthdays
    "birthday": """
        It was the birthday of {A.full}, and everyone came {P.to}.
        {A.full} had a birthday and asked all {A.his} friends to come {P.to}.
        On {A.his} birthday, {A.full} had a party {P.at}.
        """,
    "bring": """
        {B.full} brought {X.a}.
        {B.full} came with {X.a} for {A.him}.
        From {B.full}, {A} got {X.a}.
        "Happy birthday!" said {B.full} and gave {A.him} {X.a}.
        """,
    "bring food": """
        {B.full} brought {F} for everyone.
        And {B.full} came with some {F}.
        They all ate the {F} that {B.full} had brought.
        """,
    "two presents": """
        So {A} had two presents, {X.a} and {Y.a}.
        Now there were two presents: {X.a} and {Y.a}.
        {S} put {X.the} beside {Y.the} and could not stop looking.
        """,
    "best": """
        {S} liked {X.the} best.
        "I like {X.the} best," said {A}.
        {S} slept with {X.the} beside {A.him} that night.
        """,
    # Taking what belongs to another
    "belongs": """
        There {s} saw {X.the} of {B.full}.
        {X.The} of {B.full} lay {spot}.
        {B.full} had left {X.a} {spot}.
        """,
    "take": """
        {S} did not ask. {A.He} took {X.the} and ran home.
        "{B} will not see it," thought {A} and took {X.the}.
        {S} wanted it so much that {A.he} put {X.the} into {A.his} bag.
        """,
    "misses": """
        {B} looked for {X.the} and cried.
        In the evening, {B} asked everyone about {X.the}.
        "Who has seen my {X.noun}?" asked {B} that evening.
        """,
    "guilt": """
        {S} could not sleep that night.
        {A.His} heart was heavy as a stone.
        {X.The} was no fun any more.
        """,
    "confess": """
        In the morning, {s} went {B.home.to} and gave {X.the} back.
        "I took your {X.noun}," said {A}. "Here it is. I am sorry."
        {S} brought back {X.the} and said sorry to {B}.
        """,
    "forgive": """
        "It is good that you told me," said {B}.
        {B} was not angry for long.
        "Next time, just ask me," said {B}.
        """,
    # Unkind words
    "mock": """
        {B} laughed, because {A} was afraid of {A.fear}.
        "{A} is afraid of {A.fear}!" cried {B} and laughed.
        "Who is afraid of {A.fear}?" sang {B}. Everyone knew it was {A}.
        """,
    "hurt": """
        {S} ran away and hid {spot}.
        {S} turned around and cried.
        That hurt {A.him} very much.
        """,
    "console": """
        "Everyone is afraid of something," said {C}. "I am afraid of {C.fear}."
        {C} sat down beside {A.him}. "I am afraid of {C.fear}," said {C}.
        "Do you know that I am afraid of {C.fear}?" asked {C}.
        """,
    "scold": """
        Then {C} told {B} that it is not kind to laugh at others.
        "That was not kind," said {C} to {B}.
        And {C} asked {B}: "How would you feel?"
        """,
    "apologise": """
        {B} was sorry and gave {A.him} {X.a}.
        "I am sorry," said {B}, and {B.he} gave {A} {X.a}.
        So {B} came with {X.a} for {A}. "I was not kind," said {B}.
        """,
    # Illness
    "ill": """
        But {B} felt ill and lay down.
        "My head hurts," said {B}.
        {B} was hot and could not (play|walk|eat).
        """,
    "wrong cure": """
        "I will make you a medicine out of (mud|grass|flowers)," said {A}.
        {A} wanted to give {B.him} a strange medicine from a bottle.
        "Drink this," said {A}. {A.He} did not know what was in the bottle.
        """,
    "right cure": """
        "Wait!" said Ida the doctor. "Only a doctor gives medicine."
        But {B} said no, and they asked Ida the doctor.
        "Never drink what you do not know," said Ida the doctor.
        """,
    "call doctor": """
        {A} ran to Ida the doctor as fast as {A.he} could.
        "I will call Ida," said {A}, and soon the doctor came.
        {A} did the right thing and called Ida the doctor.
        """,
    "rest": """
        Ida gave {B} some tea and told {B.him} to sleep.
        The doctor said that {B} must rest and drink warm milk.
        Ida looked at {B} and gave {B.him} the right medicine.
        """,
    "beside": """
        {A} put {X.a} beside {B.his} bed.
        {A} sat with {B} and gave {B.him} {X.a} to hold.
        To make {B} smile, {A} brought {B.him} {X.a}.
        """,
    "well": """
        The next day, {B} was well again.
        After three days, {B} could play again.
        Soon {B} was better, and {A} was glad.
        """,
    # Last sentences
    "end found": """
        From that day on, {s} (held on to|took good care of) {X.the}.
        That night, {X.the} lay beside {A.his} bed.
        {S} never (lost|forgot) {X.the} again.
        """,
    "end given": """
        {B} has {X.the} to this day.
        {A} was as happy as {B}.
        It is good to give, thought {A}.
        """,
    "end friends": """
        From that day on, {A} and {B} were friends.
        And {A} and {B} are still friends today.
        It is good to have a friend, thought {A}.
        """,
    "end lesson take": """
        What is not yours, you must not take.
        Now {A} always asks first.
        """,
    "end lesson kind": """
        Since then, {B} has never laughed at anyone.
        A kind word costs nothing.
        """,
    "end lesson share": """
        What you share is twice as good.
        Since then, they always share.
        """,
}

STORY: dict[str, list[list[str]]] = {name: phrases(text) for name, text in _STORY.items()}
