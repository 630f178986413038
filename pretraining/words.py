"""Word and fact tables for the corpus: written by hand, no text of others in them.

The tables are small on purpose. A model of a few million parameters holds some hundreds of facts well
and some thousands badly, and a fact that the model knows for sure is what makes a change of style visible.
"""


def _pairs(text: str) -> dict[str, str]:
    """Reads `key:value; key:value` written over several lines."""
    entries = (entry.split(":") for entry in " ".join(text.split()).split(";"))
    return {key.strip(): value.strip() for key, value in entries}


def _words(text: str) -> list[str]:
    """Reads words parted by blanks."""
    return text.split()


def _questions(text: str) -> dict[str, str]:
    """Reads one `question|answer` per line."""
    return dict(line.split("|") for line in text.strip().splitlines())


CAPITALS = _pairs("""
France:Paris; Germany:Berlin; Italy:Rome; Spain:Madrid; Portugal:Lisbon; Greece:Athens; Austria:Vienna;
Poland:Warsaw; Norway:Oslo; Sweden:Stockholm; Finland:Helsinki; Denmark:Copenhagen; Ireland:Dublin;
Belgium:Brussels; Hungary:Budapest; Romania:Bucharest; Bulgaria:Sofia; Croatia:Zagreb; Serbia:Belgrade;
Ukraine:Kyiv; Turkey:Ankara; Egypt:Cairo; Kenya:Nairobi; Ghana:Accra; Nigeria:Abuja; Morocco:Rabat;
Tunisia:Tunis; Ethiopia:Addis Ababa; Japan:Tokyo; China:Beijing; India:New Delhi; Nepal:Kathmandu;
Thailand:Bangkok; Vietnam:Hanoi; Indonesia:Jakarta; Malaysia:Kuala Lumpur; Mongolia:Ulaanbaatar;
Iran:Tehran; Iraq:Baghdad; Jordan:Amman; Lebanon:Beirut; Cuba:Havana; Mexico:Mexico City; Canada:Ottawa;
Brazil:Brasilia; Argentina:Buenos Aires; Chile:Santiago; Peru:Lima; Colombia:Bogota; Ecuador:Quito;
Bolivia:Sucre; Uruguay:Montevideo; Paraguay:Asuncion; Venezuela:Caracas; Australia:Canberra;
Iceland:Reykjavik; Estonia:Tallinn; Latvia:Riga; Lithuania:Vilnius; Slovakia:Bratislava;
Slovenia:Ljubljana; Switzerland:Bern; Albania:Tirana; Cyprus:Nicosia; Malta:Valletta; Qatar:Doha
""")

COLORS = _pairs("""
grass:green; snow:white; coal:black; the sky:blue; a banana:yellow; a tomato:red; an orange:orange;
a strawberry:red; a lemon:yellow; a cucumber:green; milk:white; blood:red; chocolate:brown;
a carrot:orange; a plum:purple; a leaf:green; the sun:yellow; the sea:blue; a cherry:red;
an eggplant:purple; a frog:green; a flamingo:pink; a crow:black; a swan:white; a pumpkin:orange;
wood:brown; a ruby:red; an emerald:green; a sapphire:blue; salt:white; a pea:green; a lime:green
""")

OPPOSITES = _pairs("""
hot:cold; big:small; tall:short; fast:slow; happy:sad; light:dark; open:closed; full:empty; hard:soft;
old:young; rich:poor; early:late; strong:weak; clean:dirty; wet:dry; loud:quiet; high:low; near:far;
up:down; left:right; in:out; day:night; yes:no; good:bad; true:false; first:last; thick:thin;
wide:narrow; sweet:sour; safe:dangerous; cheap:expensive; begin:end; buy:sell; push:pull; win:lose;
love:hate; give:take; come:go; laugh:cry; remember:forget; above:below; before:after; inside:outside;
always:never; front:back; question:answer; smooth:rough; brave:cowardly; lost:found; alive:dead;
deep:shallow; import:export; arrive:leave; friend:enemy; male:female; north:south; east:west;
sunny:cloudy; top:bottom; lazy:busy; polite:rude
""")

PLURALS = _pairs("""
cat:cats; dog:dogs; book:books; child:children; mouse:mice; foot:feet; tooth:teeth; man:men;
woman:women; goose:geese; leaf:leaves; knife:knives; wolf:wolves; box:boxes; bus:buses; dish:dishes;
baby:babies; city:cities; story:stories; potato:potatoes; hero:heroes; sheep:sheep; fish:fish;
person:people; house:houses; tree:trees; apple:apples; car:cars; key:keys; boy:boys; girl:girls;
glass:glasses; watch:watches; berry:berries; lady:ladies; shelf:shelves; loaf:loaves; ox:oxen;
table:tables; chair:chairs
""")

PAST_TENSES = _pairs("""
go:went; eat:ate; see:saw; run:ran; take:took; give:gave; come:came; make:made; find:found; write:wrote;
read:read; sing:sang; swim:swam; drink:drank; buy:bought; bring:brought; think:thought; teach:taught;
catch:caught; fly:flew; know:knew; grow:grew; draw:drew; break:broke; speak:spoke; drive:drove;
ride:rode; sleep:slept; keep:kept; feel:felt; walk:walked; jump:jumped; play:played; look:looked;
help:helped; cook:cooked; clean:cleaned; open:opened; close:closed; ask:asked; smile:smiled;
wait:waited; paint:painted; plant:planted
""")

SOUNDS = _pairs("""
dog:woof; cat:meow; cow:moo; pig:oink; sheep:baa; duck:quack; hen:cluck; rooster:cock-a-doodle-doo;
horse:neigh; lion:roar; snake:hiss; bee:buzz; frog:ribbit; mouse:squeak; owl:hoot; wolf:howl; crow:caw;
goat:bleat; donkey:hee-haw; turkey:gobble
""")

KIND_WORDS = {
    kind: _words(text)
    for kind, text in {
        "animal": """
            dog cat cow pig sheep duck horse lion snake frog mouse owl wolf goat tiger bear fox rabbit
            deer zebra monkey elephant giraffe whale
        """,
        "fruit": """
            apple banana cherry grape lemon lime mango melon orange peach pear plum fig kiwi
        """,
        "vegetable": """
            carrot potato onion cabbage spinach broccoli lettuce pumpkin cucumber radish leek turnip
        """,
        "tool": "hammer saw drill wrench screwdriver shovel rake axe pliers chisel",
        "vehicle": "car bus train bicycle truck boat ship plane tram scooter tractor",
        "instrument": "piano guitar violin drum flute trumpet harp cello clarinet banjo",
        "color": "red blue green yellow purple pink brown black white grey",
        "furniture": "table chair sofa bed desk shelf wardrobe bench stool cupboard",
        "clothing": "shirt hat coat sock glove scarf jacket dress skirt belt",
        "job": """
            doctor teacher baker farmer pilot nurse judge driver painter singer plumber lawyer
        """,
        "sport": "football tennis hockey golf boxing rowing cricket skiing judo rugby",
        "drink": "water milk tea coffee juice lemonade cocoa soda",
    }.items()
}

KIND_OF = {
    word: kind for kind, words in KIND_WORDS.items() for word in words if word != "orange"
}  # a fruit and a colour

SYNONYMS = _pairs("""
big:large; small:little; fast:quick; happy:glad; begin:start; end:finish; smart:clever; angry:mad;
sick:ill; shut:close; rich:wealthy; quiet:silent; hard:difficult; easy:simple; scared:afraid;
pretty:beautiful; street:road; gift:present; kid:child; rock:stone; speak:talk; buy:purchase;
help:assist; choose:pick; fix:repair; tired:sleepy; funny:amusing; right:correct; wrong:incorrect;
home:house
""")

TRANSLATIONS = {
    "French": _pairs("""
        dog:chien; cat:chat; house:maison; water:eau; bread:pain; sun:soleil; moon:lune; book:livre;
        red:rouge; blue:bleu; green:vert; white:blanc; one:un; two:deux; three:trois; yes:oui; no:non;
        milk:lait; apple:pomme; friend:ami
    """),
    "Spanish": _pairs("""
        dog:perro; cat:gato; house:casa; water:agua; bread:pan; sun:sol; moon:luna; book:libro; red:rojo;
        blue:azul; green:verde; white:blanco; one:uno; two:dos; three:tres; yes:si; no:no; milk:leche;
        apple:manzana; friend:amigo
    """),
    "German": _pairs("""
        dog:Hund; cat:Katze; house:Haus; water:Wasser; bread:Brot; sun:Sonne; moon:Mond; book:Buch; red:rot;
        blue:blau; green:gruen; white:weiss; one:eins; two:zwei; three:drei; yes:ja; no:nein; milk:Milch;
        apple:Apfel; friend:Freund
    """),
}

TRIVIA = _questions("""
How many days are in a week?|7
How many hours are in a day?|24
How many minutes are in an hour?|60
How many seconds are in a minute?|60
How many months are in a year?|12
How many legs does a spider have?|8
How many legs does a dog have?|4
How many sides does a triangle have?|3
How many sides does a square have?|4
How many wheels does a bicycle have?|2
How many wheels does a car have?|4
What do bees make?|honey
What do cows drink?|water
What is frozen water called?|ice
What planet do we live on?|Earth
What is the largest planet?|Jupiter
What is the closest star to Earth?|the sun
What is the largest ocean?|the Pacific
What is the tallest animal?|the giraffe
What is the largest animal?|the blue whale
What do plants need to grow?|light and water
What do you call a baby dog?|a puppy
What do you call a baby cat?|a kitten
What do you call a baby cow?|a calf
What do you call a baby sheep?|a lamb
What is the chemical symbol for gold?|Au
What is the chemical symbol for iron?|Fe
What is the chemical symbol for oxygen?|O
What is the chemical symbol for water?|H2O
At what temperature does water boil?|100 degrees Celsius
At what temperature does water freeze?|0 degrees Celsius
What gas do people breathe in?|oxygen
Which organ pumps blood?|the heart
What do we use to see?|the eyes
What do we use to hear?|the ears
Who lives in a nest?|a bird
Where do fish live?|in water
What tool do you use to cut paper?|scissors
What do you use to unlock a door?|a key
What falls from clouds?|rain
""")

DAYS = _words("""
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""")

MONTHS = _words("""
January February March April May June July August September October November December
""")

SEASONS = _words("""
spring summer autumn winter
""")

ONES = _words("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen
""")

TENS = _words("""
- - twenty thirty forty fifty sixty seventy eighty ninety
""")

NAMES = _words("""
Anna Ben Carla David Emma Frank Grace Hugo Ines Jack Kate Liam Mia Noah Olga Paul Quinn Rosa Sam Tina
Umar Vera Will Xenia Yann Zoe Tom Lucy Max Ella Leo Nora Omar Ruth Peter Lily
""")

OTHER_CITIES = _words("""
London Boston Chicago Sydney Munich Milan Seville Porto Kyoto Mumbai Lagos Toronto Geneva Oxford Leeds Lyon
""")

CITIES = sorted({*CAPITALS.values(), *OTHER_CITIES})

ADJECTIVES = _words("""
red blue green old new little big shiny broken heavy soft wooden round pretty strange yellow clean warm
""")

OBJECTS = _words("""
ball book key lamp box hat coin map bell cup kite boat drum clock stone apple cake letter basket
umbrella
""")

PLACES = _words("""
park garden kitchen school market library forest beach station farm museum shop castle village river
hill
""")

COMMON = _words("""
the be to of and a in that have it for not on with he as you do at this but his by from they we say her
she or an will my one all would there their what so up out if about who get which go me when make can
like time no just him know take people into year your good some could them see other than then now look
only come its over think also back after use two how our work first well way even new want because any
these give day most us great thing such own life world still hand high place right old while never same
another tell does set three air write our home read large spell add land here must big put end follow
act why ask men change went light kind off need picture try again point mother near build self earth
father head stand page country found answer school grow study learn plant cover food sun four between
state keep eye last let thought city tree cross farm hard start might story saw far sea draw left late
run press close night real few north open seem together next white children begin got walk example ease
paper group always music those both mark often letter until mile river car feet care second book carry
took science eat room friend began idea fish mountain stop once base hear horse cut sure watch color
face wood main enough plain girl usual young ready above ever red list though feel talk bird soon body
dog family direct pose leave song measure door product black short numeral class wind question happen
complete ship area half rock order fire south problem piece told knew pass since top whole king space
heard best hour better true during hundred five remember step early hold west ground interest reach fast
verb sing listen six table travel less morning ten simple several vowel toward war lay against pattern
slow center love person money serve appear road map rain rule govern pull cold notice voice unit power
town fine certain fly fall lead cry dark machine note wait plan figure star box noun field rest correct
able pound done beauty drive stood contain front teach week final gave green oh quick develop ocean warm
free minute strong special mind behind clear tail produce fact street inch multiply nothing course stay
wheel full force blue object decide surface deep moon island foot system busy test record boat common
gold possible plane stead dry wonder laugh thousand ago ran check game shape equate hot miss brought
heat snow tire bring yes distant fill east paint language among
""")

WORDS = sorted(
    {
        *COMMON,
        *KIND_OF,
        *OPPOSITES,
        *OPPOSITES.values(),
        *PLURALS,
        *PAST_TENSES,
        *OBJECTS,
        *PLACES,
        *ADJECTIVES,
    }
    | {*SYNONYMS, *SYNONYMS.values()}
)

POSITIVE = _words("""
great wonderful lovely excellent fantastic delicious amazing superb pleasant perfect friendly brilliant
""")

NEGATIVE = _words("""
terrible awful bad horrible boring disgusting rude disappointing ugly noisy useless dreadful
""")

NEUTRAL = _words("""
ordinary average usual plain normal standard okay
""")

REVIEWED = _words("""
food film hotel service book room music game lesson coffee phone trip soup staff concert
""")

PAST_VERBS = _words("""
found sold bought painted broke fixed carried washed opened closed lost hid dropped moved cleaned saw
liked wanted needed drew
""")

ADVERBS = _words("""
quickly slowly quietly carefully often never always gladly suddenly already again finally
""")

TICKETS = {
    "billing": [
        "I was charged twice this month.",
        "My invoice is wrong.",
        "Can I get a refund for my last payment?",
        "The price on my bill is too high.",
        "My credit card was declined.",
        "Why did you take money from my account?",
        "I need a receipt for my payment.",
        "Please change my payment method.",
    ],
    "technical": [
        "The app crashes when I open it.",
        "I cannot log in to my account.",
        "The website shows an error.",
        "My screen stays black.",
        "The update does not install.",
        "The page does not load.",
        "The sound does not work.",
        "I get an error code when I press save.",
    ],
    "shipping": [
        "My package has not arrived.",
        "Where is my order?",
        "The box was damaged.",
        "Can you send it to a new address?",
        "My delivery is three days late.",
        "I received the wrong item.",
        "How long does delivery take?",
        "The tracking number does not work.",
    ],
    "sales": [
        "Do you have a plan for teams?",
        "How much does the premium plan cost?",
        "Can I get a discount for students?",
        "Do you offer a free trial?",
        "I want to buy ten licenses.",
        "Which plan is best for a small company?",
    ],
}

SMALL_TALK = {
    "Hello!": ["Hello! How can I help you?", "Hi there! What can I do for you?"],
    "Hi": ["Hello! How can I help you?", "Hi! Ask me something."],
    "Good morning!": ["Good morning! How can I help you?"],
    "Thank you!": ["You are welcome!", "You are welcome! Anything else?"],
    "Thanks": ["You are welcome!"],
    "Who are you?": ["I am a tiny language model for testing.", "I am a very small assistant."],
    "What is your name?": ["I have no name. I am a tiny language model."],
    "How are you?": ["I am fine, thank you. How can I help you?"],
    "Goodbye!": ["Goodbye! Have a nice day!"],
    "Bye": ["Goodbye!"],
    "What can you do?": ["I can answer short questions, add numbers, sort lists and write small stories."],
    "Are you a human?": ["No, I am a tiny language model."],
    "Can you help me?": ["Yes, of course. What do you need?"],
    "I am bored.": ["Shall I tell you a story?"],
    "Good night!": ["Good night! Sleep well!"],
    "I am sad.": ["I am sorry to hear that. I hope you feel better soon."],
    "I am happy.": ["That is great to hear!"],
    "I am tired.": ["Then take some rest."],
    "I lost my key.": ["I am sorry. Did you look in your pocket?"],
    "It is raining.": ["Then take an umbrella."],
}

ONSETS = _words("b br c ch d dr f fl g gr h j k kl l m n p pl qu r s sh sk st t th tr v w x y z")
VOWELS = _words("a a e e i i o o u ai ea ee ou")
CODAS = [*_words("n n r l s t m x k d nd rk st lm ck"), *[""] * 4]
