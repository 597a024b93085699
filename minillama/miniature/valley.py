"""The facts of the valley, as tables: the whole truth about the miniature world.

They belong to the world and to no seed. A cell "-" is empty. Columns are read by position (`world.py`).
"""

# 16 places. "at" is the preposition: in the mill, by the river.
PLACES = """
place      | at | where it lies                         | what it is known for
mill       | in | stands by the river                   | its big wheel
farm       | at | lies behind the hill                  | its fat hens
bakery     | in | is next to the school                 | its sweet cakes
school     | at | is next to the bakery                 | its little bell
harbour    | at | lies below the lighthouse             | its small ships
lighthouse | in | stands above the harbour              | its bright lamp
market     | at | is near the bridge                    | its ripe apples
garden     | in | is behind the cottage                 | its red roses
cottage    | in | stands in front of the garden         | its round door
bridge     | on | goes over the river                   | its two stone lions
forest     | in | is beyond the meadow                  | its tall trees
meadow     | in | lies between the forest and the river | its wild flowers
river      | by | runs from the hill to the sea         | its clear water
hill       | on | rises behind the village              | its long view
pond       | by | is in front of the farm               | its green lilies
cave       | in | is under the hill                     | its loud echo
"""

INDOORS = ("mill", "bakery", "school", "lighthouse", "cottage", "cave")

# What one does at a place, now/then.
DOINGS = """
place      | what one does there, now/then
mill       | watch/watched the wheel; count/counted the sacks; help/helped with the flour
farm       | feed/fed the hens; look/looked for eggs; sit/sat on the gate
bakery     | smell/smelled the bread; count/counted the cakes; watch/watched the oven
school     | learn/learned a song; draw/drew a picture; read/read a story
harbour    | count/counted the ships; wave/waved at the ships; watch/watched the gulls
lighthouse | climb/climbed the stairs; clean/cleaned the windows; look/looked at the sea
market     | look/looked at the apples; listen/listened to the music; talk/talked to the people
garden     | smell/smelled the roses; water/watered the beans; pick/picked some berries
cottage    | sit/sat by the fire; tell/told stories; drink/drank warm milk
bridge     | look/looked down at the water; sit/sat on a stone lion; count/counted the carts
forest     | look/looked for mushrooms; climb/climbed a tree; listen/listened to the birds
meadow     | pick/picked flowers; run/ran in the grass; chase/chased butterflies
river      | throw/threw stones into the water; watch/watched the fish; wash/washed the mud away
hill       | roll/rolled in the grass; look/looked at the clouds; run/ran up and down
pond       | jump/jumped over puddles; count/counted the ducks; listen/listened to the frogs
cave       | shout/shouted hello; make/made shadows on the wall; look/looked for crystals
"""

# Where something may lie or somebody may hide.
SPOTS = """
place      | where a thing may lie
mill       | behind the sacks; under the wheel; on the stairs
farm       | in the hay; behind the gate; under a cart
bakery     | behind the oven; under the table; beside the flour
school     | under a chair; behind the door; beside the books
harbour    | behind the nets; in an old boat; between two boxes
lighthouse | under the stairs; behind the lamp; beside the window
market     | under a table; behind a cart; between the apples
garden     | under the roses; behind the beans; beside the wall
cottage    | under the bed; behind the door; beside the fire
bridge     | behind a stone lion; in a hole in the wall; under a bench
forest     | behind a tree; under the leaves; between the roots
meadow     | in the tall grass; among the flowers; beside a big stone
river      | under a bush; between the stones; behind a willow
hill       | behind a rock; in the tall grass; under a bush
pond       | among the lilies; behind the reeds; in the mud
cave       | in a dark corner; behind a rock; between the crystals
"""

# 20 things, in three colours each. "slips away" is how one loses it: to the wind, by rolling, out of a pocket,
# or by leaving it behind.
THINGS = """
thing    | colours               | what it is for        | slips away
kite     | red, blue, yellow     | playing in the wind   | wind
ball     | red, green, white     | throwing and catching | roll
hat      | brown, red, black     | keeping the sun off   | wind
scarf    | red, blue, green      | keeping warm          | wind
map      | yellow, white, brown  | finding the way       | wind
key      | silver, golden, black | opening doors         | pocket
ring     | silver, golden, red   | wearing on a finger   | pocket
coin     | silver, golden, brown | buying things         | roll
shell    | white, pink, brown    | hearing the sea       | pocket
feather  | white, blue, black    | writing letters       | wind
lantern  | red, green, black     | seeing in the dark    | left
rope     | yellow, brown, white  | pulling and climbing  | left
basket   | brown, white, green   | carrying fruit        | left
umbrella | blue, black, yellow   | staying dry           | wind
blanket  | green, white, red     | sleeping under        | left
drum     | red, blue, brown      | making a loud noise   | roll
flute    | silver, brown, black  | playing songs         | left
bell     | silver, golden, green | calling people        | left
book     | blue, green, black    | reading               | left
boat     | white, red, blue      | sailing on the water  | left
"""

# What a thing is good for among people: the trouble that someone is in without it, what someone does who has it, and
# what two do with it. {he} is the one in trouble.
DEEDS = """
thing    | trouble                              | help                                 | what two do with it
kite     | {he} had nobody to play with         | let {him} fly the kite               | flew the kite over the roofs
ball     | {he} had nothing to play with        | played ball with {him}               | threw the ball to each other
hat      | the sun was too hot for {him}        | put the hat on {his} head            | took turns wearing the hat
scarf    | {his} neck was cold                  | put the scarf around {his} neck      | danced with the scarf
map      | {he} had lost {his} way              | showed {him} the way on the map      | followed the map to a treasure
key      | {he} could not open an old door      | opened the door with the key         | tried the key in every door
ring     | {he} had nothing nice to wear        | put the ring on a string for {him}   | rolled the ring over the floor
coin     | {he} had no money for bread          | bought {him} bread with the coin     | hid the coin and looked for it
shell    | {he} wanted to hear the sea          | held the shell to {his} ear          | listened to the shell
feather  | {he} had nothing to write with       | wrote the letter with the feather    | blew the feather up and down
lantern  | it was too dark to see               | lit the lantern for {him}            | made shadows with the lantern
rope     | {he} had fallen into a hole          | pulled {him} out with the rope       | jumped over the rope
basket   | {he} had too many apples to carry    | put the apples into the basket       | filled the basket with berries
umbrella | {he} was wet from the rain           | held the umbrella over {his} head    | danced under the umbrella
blanket  | {he} was too cold to sleep           | put the blanket over {him}           | made a tent out of the blanket
drum     | the crows ate all {his} corn         | scared the crows away with the drum  | marched behind the drum
flute    | {he} could not fall asleep           | played a soft song on the flute      | sang to the flute
bell     | nobody heard {him} call              | rang the bell until help came        | rang the bell at every door
book     | {he} had a long and dull day         | read {him} a story from the book     | looked at pictures in the book
boat     | {he} had a letter for the other side | sent the letter over in the boat     | sailed the boat on a puddle
"""

# 8 children, 8 grown-ups, 8 animals. "family" is what X is to them (a child: father Hugo), what they are to X (a
# grown-up: father Mia), or who owns them.
WHO = """
name    | kind     | he  | home       | age   | job       | work                     | family
Mia     | girl     | she | mill       | six   | -         | -                        | father Hugo
Ben     | boy      | he  | farm       | seven | -         | -                        | father Sam
Ada     | girl     | she | lighthouse | eight | -         | -                        | grandfather Walter
Tom     | boy      | he  | bakery     | five  | -         | -                        | mother Rosa
Lily    | girl     | she | cottage    | six   | -         | -                        | mother Greta
Max     | boy      | he  | bridge     | nine  | -         | -                        | mother Ida
Zoe     | girl     | she | school     | nine  | -         | -                        | mother Clara
Finn    | boy      | he  | harbour    | eight | -         | -                        | father Otto
Hugo    | man      | he  | mill       | -     | miller    | grinds the flour         | father Mia
Sam     | man      | he  | farm       | -     | farmer    | feeds the hens and cows  | father Ben
Walter  | man      | he  | lighthouse | -     | keeper    | lights the lamp          | grandfather Ada
Rosa    | woman    | she | bakery     | -     | baker     | bakes bread and cakes    | mother Tom
Greta   | woman    | she | cottage    | -     | gardener  | grows roses and beans    | mother Lily
Ida     | woman    | she | bridge     | -     | doctor    | helps people who are ill | mother Max
Clara   | woman    | she | school     | -     | teacher   | teaches the children     | mother Zoe
Otto    | man      | he  | harbour    | -     | fisherman | catches fish             | father Finn
Pip     | cat      | he  | mill       | -     | -         | -                        | owner Mia
Rex     | dog      | he  | farm       | -     | -         | -                        | owner Ben
Biscuit | donkey   | he  | bakery     | -     | -         | -                        | owner Rosa
Pearl   | goose    | she | garden     | -     | -         | -                        | owner Greta
Hoot    | owl      | she | forest     | -     | -         | -                        | -
Moss    | frog     | he  | pond       | -     | -         | -                        | -
Hazel   | squirrel | she | forest     | -     | -         | -                        | -
Bruno   | bear     | he  | cave       | -     | -         | -                        | -
"""

# What they like, own and fear.
TASTES = """
name    | likes                | food      | colour | has           | friend  | afraid of
Mia     | painting             | pears     | blue   | red kite      | Ben     | thunder
Ben     | climbing trees       | cheese    | green  | brown drum    | Mia     | the dark
Ada     | reading              | soup      | white  | silver key    | Finn    | spiders
Tom     | singing              | honey     | red    | green ball    | Lily    | bees
Lily    | picking flowers      | plums     | yellow | white shell   | Tom     | storms
Max     | telling jokes        | cookies   | black  | brown map     | Zoe     | deep water
Zoe     | running              | nuts      | red    | golden bell   | Max     | snakes
Finn    | swimming             | carrots   | blue   | white boat    | Ada     | ghosts
Hugo    | dancing              | bread     | brown  | brown hat     | Sam     | mice
Sam     | whistling            | eggs      | green  | yellow rope   | Hugo    | foxes
Walter  | looking at the stars | tea       | silver | black lantern | Otto    | getting lost
Rosa    | laughing             | cake      | pink   | white basket  | Clara   | empty ovens
Greta   | digging              | berries   | yellow | green scarf   | Ida     | snails
Ida     | riding               | apples    | white  | blue umbrella | Greta   | heights
Clara   | writing letters      | chocolate | blue   | blue book     | Rosa    | silence
Otto    | sailing              | fish      | black  | red blanket   | Walter  | fog
Pip     | sleeping in the sun  | milk      | golden | pink shell    | Rex     | water
Rex     | digging holes        | bones     | brown  | white ball    | Pip     | loud noises
Biscuit | carrying bread       | hay       | green  | silver bell   | Pearl   | narrow bridges
Pearl   | shouting at people   | grass     | white  | golden ring   | Biscuit | foxes
Hoot    | flying at night      | pies      | silver | black feather | Hazel   | bright light
Moss    | jumping              | flies     | green  | silver flute  | Bruno   | storks
Hazel   | hiding nuts          | acorns    | red    | brown basket  | Hoot    | hunger
Bruno   | scratching his back  | honey     | black  | green blanket | Moss    | cold water
"""

# Six kinds of weather, and what one sees.
WEATHERS = """
weather | what one sees
sunny   | the sun was shining
windy   | the wind blew hard
rainy   | rain fell on the roofs
foggy   | fog lay over the valley
cloudy  | white clouds sailed over the hill
warm    | the air was warm and still
"""
