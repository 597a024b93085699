"""The words of the stories: for each thing that can happen, several ways to say it.

A line is a template and weighs as much as any other line; `(a|b|)` are alternatives, each as likely as the others.
Slots name a role and a form of the entity that plays it (the fields of `world.py`):

    {S} {s}      the one who acts, by name or as she/he, at the start of a sentence and inside it
    {A} {B} {C}  the one who acts, and others: {A.his}, {B.full} (Hoot the owl), {B.home.at} (in the mill)
    {X} {Y}      items: {X} is "red kite", {X.a}, {X.the}, {X.noun} (kite)
    {P} {Q}      places: {P.at} (in the forest), {P.to}
    {W} {T} {F}  weather, time of day, food
    {did}        what one does at P, in the past; {spot} {Spot} where a thing may lie there
    {trouble} {Trouble} {help}   what B lacks and A does about it with X (see `Thing`); {X.thing.play} what both do
"""

from minillama.miniature.chooser import phrases

_STORY = {
    # Scenes
    "open": """
        One {W} {T}, {A.full} (went|walked|ran) {P.to}.
        It was a {W} {T}, and {A.full} was {P.at}.
        {W.Clause} when {A.full} came {P.to}.
        On a {W} {T}, {A.full} (went|set out) {P.to} (alone|with a song|full of joy).
        {A.full} liked to be {P.at}, and one {W} {T} {A.he} went there again.
        (Once|One day), {A.full} went {P.to}, and {W.clause}.
        {A.full} had nothing to do that {W} {T} and went {P.to}.
        It was {T}, and {W.clause}. {A.full} was on the way {P.to}.
        {A.full} had slept well and came {P.to} early (that day|in the morning).
        """,
    "do": """
        {S} {did}.
        There {s} {did}.
        (For a while|For a long time|For an hour) {s} {did}.
        {S} {did} and (sang a song|was happy|thought of nothing|forgot the time).
        (First|As always|Again), {s} {did}.
        {S} {did}, (just as {A.he} had done the day before|and that was fun|and time went by).
        "What a (fine|good|lovely) day!" said {A}. {A.He} {did}.
        """,
    "go": """
        {S} (walked|ran|went|hurried) {P.to}.
        (Then|So|After that) {s} (walked|ran|went) {P.to}.
        {S} took the (short|long|old) way {P.to}.
        {S} did not stop until {A.he} was {P.at}.
        Step by step, {s} came {P.to}.
        The way {P.to} was (long|short|steep), but {s} (did not mind|sang all the way).
        """,
    "home": """
        In the end, {s} went home {A.home.to}.
        (Then|So) {s} went (happily|slowly|) home {A.home.to}.
        When it grew dark, {s} walked home {A.home.to}.
        That night {s} slept well {A.home.at}.
        "Time to go home," said {A} and went {A.home.to}.
        """,
    "meet at": """
        {P.At}, {s} met {B.full}.
        {S} saw {B.full} {P.at}.
        {B.full} was {P.at} and waved at {A.him}.
        {S} met {B.full}, who was {P.at}.
        Who was that {P.at}? It was {B.full}!
        {S} came {P.to}, where {A.he} met {B.full}.
        """,
    "meet": """
        {P.At}, {s} met {B.full}.
        (Just then|Soon|After a while), {B.full} came along.
        {S} saw {B.full} {P.at}.
        {B.full} was {P.at}, too.
        "Hello, {A}!" said {B.full}.
        Who was that {P.at}? It was {B.full}!
        {S} heard a voice {P.at}. It was {B.full}.
        {B.full} was {P.at} and waved at {A.him}.
        """,
    # Having, losing, finding
    "have": """
        {S} had {X.a} with {A.him}.
        {S} had brought {X.a}.
        {S} carried {X.a} under {A.his} arm.
        In {A.his} bag was {X.a}.
        {S} (was proud of|loved) {A.his} {X}.
        {S} never went anywhere without {A.his} {X}.
        Nothing was as dear to {A.him} as {A.his} {X}.
        {S} held {X.a} (in {A.his} arms|with care).
        """,
    "wind": """
        Then the wind took {X.the} (and carried it far away|out of {A.his} hands).
        A strong wind came and blew {X.the} away.
        Suddenly the wind pulled at {X.the}, and it flew (away|up and away).
        """,
    "roll": """
        {X.The} fell down and rolled (away|out of sight).
        {S} let {X.the} fall, and it rolled away.
        {S} was not careful, and {X.the} rolled (away|down and down).
        """,
    "pocket": """
        There was a hole in {A.his} pocket, and {X.the} fell out.
        {X.The} (slipped|fell) out of {A.his} pocket without a sound.
        {S} did not see that {X.the} fell out of {A.his} (pocket|bag).
        """,
    "left": """
        {S} put {X.the} down {spot} and forgot it.
        {S} went on and left {X.the} behind.
        {S} laid {X.the} {spot} and did not think of it again.
        """,
    "gone": """
        Later, {s} looked for {X.the}, but it was (gone|not there).
        "Where is my {X.noun}?" cried {A}. It was gone.
        When {s} wanted to play, {X.the} was (gone|missing).
        {S} looked (in {A.his} bag|everywhere), but {A.he} could not find {X.the}.
        Where was {X.the}? {S} did not know.
        "Oh no, my {X}!" said {A}. "I had it {P.at}."
        """,
    "sad": """
        {S} was (sad|very sad|so sad|unhappy).
        {S} sat down and cried.
        {S} had tears in {A.his} eyes.
        {S} did not want to (eat|sing|play) any more.
        {S} cried, and a tear ran down {A.his} (nose|face).
        {S} (could not laugh|did not feel like {A.hobby}) any more.
        """,
    "ask seen": """
        "Have you seen my {X.noun}?" asked {A}.
        {S} asked {B} about {X.the}.
        "I have lost my {X}," said {A}. "Have you seen it?"
        "Can you help me?" asked {A}. "My {X.noun} is gone."
        "Why are you so sad?" asked {B}. "I cannot find my {X}," said {A}.
        "Did you see {X.a} anywhere?" asked {A}.
        """,
    "not seen": """
        "No, I have not seen it," said {B}.
        "I am sorry," said {B}. "I have not seen it."
        {B} had not seen it.
        {B} (shook {B.his} head|did not know).
        "Ask someone else," said {B}. "I have seen only (birds|clouds|leaves)."
        But {B} had been {B.home.at} all day and had seen nothing.
        """,
    "seen": """
        "Yes," said {B}. "I saw (it|{X.a}) {Q.at}."
        "(Look|Go and look) {Q.at}," said {B}.
        {B} had seen it {Q.at}.
        "{X.A}? There is one {Q.at}," said {B}.
        {B} pointed the way {Q.to}. "It is there," said {B}.
        """,
    "find": """
        {S} found {X.the} {P.at}.
        There it was! {X.The} lay {spot}.
        {S} looked (up and down|here and there) and found {X.the} {spot}.
        And there, {spot}, was {X.the}.
        Was that not {X.the}, {spot}? Yes, it was!
        After a long time, {s} saw {X.the} {spot}.
        """,
    "find new": """
        {S} found {X.a} {spot}.
        There {s} saw {X.a} {spot}.
        {Spot} lay {X.a}.
        Something lay {spot}. It was {X.a}!
        "What is that {spot}?" thought {A}. It was {X.a}.
        {S} nearly fell over {X.a} that lay {spot}.
        """,
    "brought back": """
        "Is this yours?" asked {B}, and {B.he} held up {X.the}. "It was {Q.at}."
        {B} had found {X.the} {Q.at} and gave it back.
        {B} had been {Q.at} and put {X.the} into {A.his} hands.
        "I found this {Q.at}," said {B} and gave {A.him} {X.the}.
        "Look what I found {Q.at}!" said {B}. It was {X.the}.
        """,
    "come back": """
        The next day, {B.full} came to {A.his} door.
        Then {B.full} came running.
        In the evening, {B.full} knocked at {A.his} door.
        Somebody called {A.his} name. It was {B.full}.
        But {B.full} had good news.
        """,
    "both find": """
        {A} and {B} found {X.a} {spot}.
        {Spot}, they saw {X.a}.
        There was {X.a} {spot}.
        {Spot} lay {X.a}, and both saw it.
        """,
    # Feelings
    "glad": """
        {S} was (glad|happy|so happy|full of joy).
        {S} (laughed|smiled|jumped for joy|sang).
        {S} felt warm inside.
        {S} was bright with joy(, face and heart| from head to foot).
        {S} (danced|jumped) around and around.
        "Hooray!" cried {A}.
        """,
    "thank": """
        "Thank you, {B}!" said {A}.
        {S} thanked {B} (with all {A.his} heart|two times|and smiled).
        "You are a good friend," said {A}.
        "Thank you," said {A}. "You are very kind."
        "How can I thank you?" asked {A}. "Just smile," said {B}.
        "I will never forget that, {B}," said {A}.
        """,
    # Giving and swapping
    "think of": """
        "{B} would like this," thought {A}.
        {S} thought of {B.full}.
        "I will give it to {B.full}," said {A}.
        Who could use {X.a}? {S} thought of {B.full}.
        "Did {B.full} not want {X.a}?" thought {A}.
        """,
    "reason": """
        It was {B.his} birthday.
        {B} was ill in bed (that day|and could not play).
        {B} had been sad all (day|week).
        {B} had (helped {A.him}|been kind to {A.him}) the day before.
        {B} had never had {X.a}.
        {B} was {A.his} (good|dear|old) friend.
        """,
    "favourite": """
        {X.Colour} was the colour {B} liked best.
        {B} loved everything {X.colour}.
        It was {X.colour}, just as {B} liked it.
        """,
    "give": """
        {S} gave {X.the} to {B}.
        {S} gave {B} {X.the}.
        "This is for you," said {A}, and {A.he} gave {B} {X.the}.
        "Look what I have for you!" said {A}. It was {X.the}.
        "Close your eyes," said {A} and put {X.the} into {B.his} hands.
        {B} opened the door, and {A} held out {X.the}.
        """,
    "food": """
        {B} gave {A.him} some {F}.
        For that, {A} got some {F} from {B}.
        Then {A} and {B} ate some {F}.
        "Are you hungry?" asked {B}. There was {F} for both.
        They shared some {F} and were happy.
        """,
    "play": """
        {A} and {B} {X.thing.play}.
        Together they {X.thing.play}.
        {A} and {B} {X.thing.play} until it was dark.
        All (day|afternoon) they {X.thing.play}.
        Then they {X.thing.play} and (laughed|sang|forgot the time).
        "Let us play!" said {B}, and soon they {X.thing.play}.
        """,
    # Helping
    "trouble": """
        {B} was (sad|worried|not happy), because {trouble}.
        {S} asked what was wrong, and {B} said that {trouble}.
        "Help!" called {B}. {Trouble}.
        "What is wrong?" asked {A}. {B} said that {trouble}.
        {B} did not (smile|laugh|sing). {Trouble}.
        It was a bad day for {B}: {trouble}.
        """,
    "help": """
        {S} {help}.
        "I can help you," said {A}, and {A.he} {help}.
        {S} did not wait. {A.He} {help}.
        "I have {X.a}!" said {A}. {A.He} {help}.
        {S} thought for a while. Then {A.he} {help}.
        """,
    # Swapping
    "has other": """
        {B} had {Y.a}.
        {B} was carrying {Y.a}.
        {S} saw that {B} had {Y.a}.
        In {B.his} bag, {B} had {Y.a}.
        "And look at my {Y}!" said {B}.
        """,
    "offer": """
        "Shall we swap?" asked {A}. "My {X.noun} for your {Y.noun}."
        "What a nice {Y.noun}!" said {A}. "I would give you my {X.noun} for it."
        {S} wanted {Y.the} so much that {A.he} offered {X.the} for it.
        "I like your {Y.noun}," said {A}. "Do you like my {X.noun}?"
        "My {X.noun} is old, but it is good," said {A}. "Give me {Y.the} for it!"
        """,
    "no": """
        {B} (shook {B.his} head|said no).
        "No," said {B}. "I want to keep my {Y.noun}."
        But {B} wanted to keep {Y.the}.
        "I got it from my friend {B.friend}," said {B}. "I cannot give it away."
        """,
    "yes": """
        {B} (nodded|said yes).
        "Yes, let us swap!" said {B}.
        {B} thought about it and (agreed|nodded).
        "A {X.noun}! I always wanted one," said {B}.
        {B} looked at {X.the} from all sides. "Good," said {B}.
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
        {A} smiled, and {B} smiled too.
        """,
    # Quarrelling and sharing
    "both want": """
        "It is mine!" said {A}. "No, it is mine!" said {B}.
        {A} pulled on one side, and {B} pulled on the other.
        "I saw it first!" cried {A}. "No, I did!" cried {B}.
        Both wanted to have it, and they began to shout.
        "Give it to me!" cried {A}. "Never!" cried {B}.
        """,
    "heard": """
        {C.full} heard them.
        {C.full} came to see what was wrong.
        "Stop that!" said {C.full}.
        That was so loud that {C.full} woke up.
        {C.full} had seen it all.
        """,
    "advise turns": """
        "You can take turns," said {C}.
        {C} told them to take turns.
        "One day for {A}, one day for {B}," said {C}.
        "Today it is for {A}, and tomorrow for {B}," said {C}.
        """,
    "turns": """
        So {A} had {X.the} first, and {B} had it the next day.
        From then on, {A} had it in the morning and {B} in the evening.
        So they counted the days, and each of them had {X.the} every other day.
        """,
    "advise play": """
        "Why do you not play together?" asked {C}.
        {C} told them to play together.
        "It is more fun with two," said {C}.
        "One {X.noun} is enough for two friends," said {C}.
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
        "{B} is {P.at} and waits for {X.the}," said {C}. "Will you bring it?"
        "Can you do something for me?" asked {C}. {A} had to bring {X.the} to {B} {P.at}.
        """,
    "visit": """
        One {W} {T}, {A.full} was with {C.full} {P.at}.
        {A.full} came to see {C.full} {P.at} on a {W} {T}.
        It was a {W} {T}, and {A.full} was helping {C.full} {P.at}.
        {A.full} liked to visit {C.full} {P.at}, and one {W} {T} {A.he} did.
        """,
    "tempt": """
        {P.At}, {s} met {B.full}. "Come and play with me!" said {B}.
        {B.full} was {P.at}. "Stay here with me!" said {B}.
        {S} came past {B.full} {P.at}. "Stay with me a little!" said {B}.
        "Where are you going?" asked {B.full} {P.at}. "Stay a little!"
        """,
    "refuse": """
        "I cannot," said {A}. "I must bring this {X.noun} to {C} first."
        "Not now," said {A}. "{C} needs {X.the}."
        {A} wanted to stay, but {A.he} went on.
        "Later!" said {A}. "Someone waits for this {X.noun}."
        {A} shook {A.his} head and held {X.the} tight.
        """,
    "stay": """
        So {A} stayed, and they {did}.
        {A} said yes, and they {did} for an hour.
        That sounded like fun, and soon both {did}.
        {A} thought that there was time enough, and they {did}.
        """,
    "late": """
        Then {A} remembered {X.the} and ran.
        "Oh no, I am late!" cried {A}.
        It was (late|very late) when {A} went on.
        The sun was low when {A} thought of {X.the} again.
        """,
    "deliver": """
        {B} was {P.at}, and {A} gave {B.him} {X.the}.
        "Here is your {X.noun}," said {A} to {B} {P.at}.
        {P.At}, {s} gave {X.the} to {B}.
        {S} came {P.to}, where {B} was, and {X.the} was in good hands.
        {A} found {B} {P.at}. "This is from {C}," said {A} and gave {B.him} {X.the}.
        """,
    "in time": """
        "Just in time!" said {B}.
        {B} was glad that {A} had been so quick.
        "That was fast," said {B} and smiled.
        {B} clapped {B.his} hands. "You came quickly!"
        "I can always trust you," said {B}.
        """,
    "too late": """
        "Where have you been?" asked {B}. "I waited so long."
        {B} had waited and was (cold|tired|sad).
        "You are late," said {B}, but {B.he} was not angry.
        "Now it is too late," said {B} and looked away.
        """,
    "promise": """
        "I am sorry," said {A}.
        Next time, {s} will be quicker.
        {S} was ashamed and said nothing.
        "I promise to be quick next time," said {A}.
        """,
    # Storms
    "together": """
        One {W} {T}, {A.full} and {B.full} went {P.to}.
        {A.full} and {B.full} were {P.at} on a {W} {T}.
        It was a {W} {T}, and {A.full} met {B.full} {P.at}.
        {A.full} asked {B.full} to come {P.to} on a {W} {T}.
        {W.Clause}, and {A.full} was {P.at} with {B.full}.
        """,
    "both do": """
        They {did}.
        First they {did}.
        For a long time they {did}.
        Together they {did} and laughed.
        And then they {did} (once more|for an hour|again and again).
        They {did}, and time flew by.
        """,
    "storm": """
        Then the sky grew dark, and it began to (rain|snow|thunder).
        But soon it began to (rain|snow|thunder), and they got cold.
        Suddenly a (storm|cold wind) came over the hill.
        A black cloud came up, and the first drops fell.
        Then there was (lightning|thunder), and both of them jumped.
        """,
    "shelter": """
        "Quick, let us run {P.to}!" cried {B}.
        They ran {P.to} and were safe there.
        "It is dry {P.at}," said {A}, and they ran there.
        {A} knew a dry place. They hurried {P.to}.
        Wet and cold, they came {P.to}.
        """,
    "afraid": """
        {B} was afraid and held {A.his} hand.
        "I am afraid," said {B}.
        {B} was cold and (afraid|did not speak).
        {B} thought of {B.fear} and was afraid.
        "I want to go home," said {B}.
        """,
    "comfort": """
        But {A} had {X.a}, and they {X.thing.play}.
        "Look, I have {X.a}," said {A}, and they {X.thing.play}.
        {S} took out {X.a}. So they {X.thing.play}, and the time went by.
        "Do not be sad," said {A} and took out {X.a}. They {X.thing.play}.
        """,
    "over": """
        When the sun came back, they walked home.
        Then it was over, and the sky was blue again.
        After an hour the sky was clear, and they could go home.
        Then the sun came out, and a rainbow stood over the valley.
        """,
    # Hide and seek
    "game": """
        They played hide and seek.
        "Let us play hide and seek!" said {B}.
        "You count, and I hide," said {B}.
        "I am very good at hiding," said {B}.
        They had no toys, so they played hide and seek.
        """,
    "count": """
        {S} closed {A.his} eyes and counted to (five|ten|twenty).
        {S} counted: one, two, three, four, five!
        While {A} counted, {B} ran away.
        {S} stood by a wall and counted to (ten|twenty).
        """,
    "not here": """
        {S} looked {spot}, but {B} was not there.
        Nobody was {spot}.
        "Are you {spot}?" asked {A}. But nobody answered.
        {S} was sure that {B} was {spot}, but it was only (a bird|the wind|a leaf).
        """,
    "nor here": """
        Then {s} looked {spot}, but nobody was there.
        And {spot}? There was only a (mouse|bird|beetle).
        {S} looked {spot} as well. Nothing!
        """,
    "sign": """
        Then {s} saw {X.the} of {B} {spot}.
        But what was that {spot}? It was {X.the} of {B}!
        {B} had {X.a} with {B.him}, and {A} saw it {spot}.
        There was {X.a} {spot}, and only {B} had such a {X.noun}.
        """,
    "found you": """
        "I found you!" cried {A}.
        "There you are!" said {A}, and both laughed.
        {S} jumped up and (touched|caught) {B}.
        "Now I see you!" said {A}.
        "How did you find me?" asked {B}. "I saw your {X.noun}," said {A}.
        """,
    "turn over": """
        Then it was {B.his} turn to count.
        "Now I hide!" said {A}.
        They played until they were (hungry|tired).
        "Once more!" said {B}, and they played again.
        """,
    # Birthdays
    "birthday": """
        It was the birthday of {A.full}, and everyone came {P.to}.
        {A.full} had a birthday and asked all {A.his} friends to come {P.to}.
        On {A.his} birthday, {A.full} had a party {P.at}.
        {A.full} was a year older that day, and there was a party {P.at}.
        """,
    "bring": """
        {B.full} brought {X.a}.
        {B.full} came with {X.a} for {A.him}.
        From {B.full}, {A} got {X.a}.
        "Happy birthday!" said {B.full} and gave {A.him} {X.a}.
        "I made a present for you," said {B.full}. It was {X.a}.
        {B.full} had something behind {B.his} back. It was {X.a}!
        """,
    "bring food": """
        {B.full} brought {F} for everyone.
        And {B.full} came with some {F}.
        They all ate the {F} that {B.full} had brought.
        There was also {F}, which came from {B.full}.
        """,
    "two presents": """
        So {A} had two presents, {X.a} and {Y.a}.
        Now there were two presents: {X.a} and {Y.a}.
        {S} put {X.the} beside {Y.the} and could not stop looking.
        "{X.A} and {Y.a}, how lovely!" said {A}.
        """,
    "best": """
        {S} liked {X.the} best.
        "I like {X.the} best," said {A}.
        {S} slept with {X.the} beside {A.him} that night.
        {S} was very happy with {X.the}.
        """,
    # Taking what belongs to another
    "belongs": """
        There {s} saw {X.the} of {B.full}.
        {X.The} of {B.full} lay {spot}.
        {B.full} had left {X.a} {spot}.
        {Spot}, {s} saw {X.the} of {B.full}.
        """,
    "take": """
        {S} did not ask. {A.He} took {X.the} and ran home.
        "{B} will not see it," thought {A} and took {X.the}.
        {S} wanted it so much that {A.he} put {X.the} into {A.his} bag.
        {S} looked around. Nobody was there, and {A.he} took {X.the}.
        "I want {X.the}," thought {A} and took it home.
        """,
    "misses": """
        {B} looked for {X.the} and cried.
        In the evening, {B} asked everyone about {X.the}.
        "Who has seen my {X.noun}?" asked {B} that evening.
        {B} came back, but {X.the} was gone, and {B.he} was very sad.
        {S} heard how {B} cried for {X.the}.
        """,
    "guilt": """
        {S} could not sleep that night.
        {S} had a heart as heavy as a stone.
        {X.The} was no fun any more.
        {S} had {X.the}, but {A.he} was not happy.
        """,
    "confess": """
        In the morning, {s} went {B.home.to} and gave {X.the} back.
        "I took your {X.noun}," said {A}. "Here it is. I am sorry."
        {S} brought back {X.the} and said sorry to {B}.
        {S} ran to {B} with {X.the} and told {B.him} everything.
        """,
    "forgive": """
        "It is good that you told me," said {B}.
        {B} was not angry for long.
        "Next time, just ask me," said {B}.
        {B} was so glad that {B.he} (smiled|forgot to be angry).
        {B} thought about it and gave {A.him} {B.his} hand.
        """,
    # Unkind words
    "mock": """
        {B} laughed, because {A} was afraid of {A.fear}.
        "{A} is afraid of {A.fear}!" cried {B} and laughed.
        "Who is afraid of {A.fear}?" sang {B}. Everyone knew it was {A}.
        "You cannot come with us, {A}," said {B}. "You are afraid of {A.fear}!"
        """,
    "hurt": """
        {S} ran away and hid {spot}.
        {S} turned around and cried.
        That hurt {A.him} very much.
        {S} said nothing, but {A.his} eyes were wet.
        {S} wanted to be far away.
        """,
    "console": """
        "Everyone is afraid of something," said {C}. "I am afraid of {C.fear}."
        {C} sat down beside {A.him}. "I am afraid of {C.fear}," said {C}.
        "Do you know that I am afraid of {C.fear}?" asked {C}.
        {C} told {A.him} a secret: even {C} was afraid of {C.fear}.
        """,
    "scold": """
        Then {C} told {B} that it is not kind to laugh at others.
        "That was not kind," said {C} to {B}.
        And {C} asked {B}: "How would you feel?"
        "We do not laugh at what others are afraid of," said {C} to {B}.
        """,
    "apologise": """
        {B} was sorry and gave {A.him} {X.a}.
        "I am sorry," said {B}, and {B.he} gave {A} {X.a}.
        So {B} came with {X.a} for {A}. "I was not kind," said {B}.
        Then {B} came back. "Please take my {X}," said {B}. "I am sorry."
        """,
    # Illness
    "ill": """
        But {B} felt ill and lay down.
        "My head hurts," said {B}.
        {B} was hot and could not (play|walk|eat).
        {B} did not feel well at all.
        "I am so hot," said {B} and closed {B.his} eyes.
        """,
    "wrong cure": """
        "I will make you a medicine out of (mud|grass|flowers)," said {A}.
        {A} wanted to give {B.him} a strange medicine from a bottle.
        "Drink this," said {A}. {A.He} did not know what was in the bottle.
        "I know what helps!" said {A} and mixed milk with (mud|grass|flowers).
        """,
    "right cure": """
        "Wait!" said Ida the doctor. "Only a doctor gives medicine."
        But {B} said no, and they asked Ida the doctor.
        "Never drink what you do not know," said Ida the doctor.
        "That could make it worse," said Ida the doctor. "Leave that to me."
        """,
    "call doctor": """
        {A} ran to Ida the doctor as fast as {A.he} could.
        "I will call Ida," said {A}, and soon the doctor came.
        {A} did the right thing and called Ida the doctor.
        "You need a doctor," said {A} and brought {B.him} to Ida the doctor.
        """,
    "rest": """
        Ida gave {B} some tea and told {B.him} to sleep.
        The doctor said that {B} must rest and drink warm milk.
        Ida looked at {B} and gave {B.him} the right medicine.
        "Sleep and drink a lot," said Ida to {B}.
        """,
    "beside": """
        {A} put {X.a} beside {B.his} bed.
        {A} sat with {B} and gave {B.him} {X.a} to hold.
        To make {B} smile, {A} brought {B.him} {X.a}.
        "I brought you {X.a}," said {A} to {B}.
        """,
    "well": """
        The next day, {B} was well again.
        After three days, {B} could play again.
        Soon {B} was better, and {A} was glad.
        When {B} could get up again, everyone was happy.
        """,
    "aside": """
        A (bird|bee|beetle|butterfly) flew by.
        Everything was (quiet|still).
        Far away, a (bell rang|dog called|door closed).
        {S} was hungry and ate some {A.food}.
        {S} thought about {A.hobby}.
        {S} loved {P.the} with {P.known_for}.
        {S} looked (up|around|at the sky) and (smiled|sang|dreamed).
        {S} sang a (little|new|funny) song about {A.food}.
        "{A.Hobby} would be nice now," thought {A}.
        It was nice to be {P.at}.
        The air smelled of (grass|rain|bread|flowers).
        {S} would have liked to (stay all day|tell {A.friend} about it).
        """,
    "title": """
        {A} and the {X.noun}
        The {X}
        A day {P.at}
        {A} {P.at}
        The {X.noun} {P.at}
        """,
    # Questions about a story, and their answers
    "ask first place": """
        Where did {A} go first?
        """,
    "tell first place": """
        {A} went {P.to}.
        """,
    "ask met": """
        Whom did {A} meet {P.at}?
        """,
    "tell met": """
        {A} met {B} {P.at}.
        {A} met {B} there.
        """,
    "ask finder": """
        Who found {X.the}?
        """,
    "tell finder": """
        {A} found {X.the}.
        {A} found it.
        """,
    "ask spot": """
        Where was {X.the}?
        Where did {A} find {X.the}?
        """,
    "tell spot": """
        It was {P.at}.
        {X.The} was {P.at}.
        """,
    "ask loser": """
        Who lost {X.the}?
        """,
    "tell loser": """
        {A} lost {X.the}.
        """,
    "ask giver": """
        Who gave {X.the} to {B}?
        From whom did {B} get {X.the}?
        """,
    "tell giver": """
        {A} gave {X.the} to {B}.
        {B} got it from {A}.
        """,
    "ask gift": """
        What did {A} give to {B}?
        What did {B} get from {A}?
        """,
    "tell gift": """
        {A} gave {B} {X.the}.
        {B} got {X.the}.
        """,
    "ask taker": """
        Who took {X.the} of {B}?
        """,
    "tell taker": """
        {A} took {X.the}.
        {A} took it.
        """,
    "ask helper": """
        Who helped {B}?
        """,
    "tell helper": """
        {A} helped {B}.
        {A} did, with {X.the}.
        """,
    "ask holder": """
        Who has {X.the} now?
        Who has {X.the} at the end?
        """,
    "tell holder": """
        {A} has {X.the}.
        {A} has it.
        """,
    # Last sentences
    "end found": """
        From that day on, {s} (held on to|took good care of) {X.the}.
        That night, {X.the} lay beside {A.his} bed.
        {S} never (lost|forgot) {X.the} again.
        What is lost can be found, if friends help.
        And {s} told everyone {A.home.at} about it.
        """,
    "end given": """
        {B} has {X.the} to this day.
        {A} was as happy as {B}.
        It is good to give, thought {A}.
        {A} went home with empty hands and a full heart.
        Since then, {X.the} is {B.home.at}.
        """,
    "end friends": """
        From that day on, {A} and {B} were friends.
        And {A} and {B} are still friends today.
        It is good to have a friend, thought {A}.
        "See you tomorrow!" said {B}.
        "That was a good day," said {A} that (night|evening).
        {A} told {A.friend} all about it (the next day|at night).
        """,
    "end lesson take": """
        What is not yours, you must not take.
        Now {A} always asks first.
        "I will never do that again," said {A}.
        Asking is better than taking.
        """,
    "end lesson kind": """
        Since then, {B} has never laughed at anyone.
        A kind word costs nothing.
        It is brave to say that you are afraid.
        And when {B} was afraid one day, nobody laughed.
        """,
    "end lesson share": """
        What you share is twice as good.
        Since then, they always share.
        Two friends are worth more than one {X.noun}.
        "Sharing is not hard at all," said {A}.
        """,
}

STORY: dict[str, list[list[str]]] = {name: phrases(text) for name, text in _STORY.items()}
