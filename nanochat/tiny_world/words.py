"""The word list of the tiny world: common words of three to nine letters, whose spelling the text tells.

Many, so that hardly any of them becomes a token of its own: a word is then spelled by knowing its pieces, and what is learned
from the spelling of some words helps with the others. Measured on words whose spelling no training conversation asks for:
0.1 to 0.4 spelled right with 318 words in the list, 0.7 to 0.8 with 1,744.
"""

TEXT = """
ability able about above accident account acid across act actor add address adult advance advice afraid after again against
age agent ago agree air airport alarm album alive alley allow almost alone along already also always amount ancient anger
angle animal ankle answer ant any apart apple april arch area argue arm army around arrive arrow art artist ask asleep attack
attend attic aunt author autumn average avoid awake award away baby back bacon badge bag bake balance ball balloon banana band
bank bar bare barn barrel base basic basket bat bath battle beach bean bear beard beat beauty because become bed bee beef
before beg begin behave behind believe bell belong below belt bench bend beneath berry beside best better between beyond
bicycle big bill bird birth biscuit bit bite bitter blade blame blanket blast blaze bleed bless blind block blood bloom blow
board boat body boil bold bolt bomb bone bonus book boot border borrow bottle bottom bounce bow bowl box boy brain branch
brave bread break breath brick bridge brief bright bring broad broken brook broom brother bubble bucket budget bug build
bullet bunch bundle burn burst bus bush busy butcher butter button buy cabin cable cage cake calf call calm camel camera camp
canal candle candy canoe canyon cap capital captain car card care carpet carrot carry cart carve case cash castle catch cattle
cause cave ceiling cellar cent centre century chain chair chalk chance change chapter charge charm chase cheap check cheek
cheese cherry chess chest chew chicken chief child chimney chin choice choose church cider cinema circle circus citizen city
claim clap class clay clean clear clerk clever cliff climb clock close cloth cloud clown club coach coal coast coat coffee
coin cold collar collect comb come comfort common company compare compass concert cook cool copper copy coral corn corner
correct cost cotton cough count country couple courage course court cousin cover cow crab crack cradle craft crane crash crawl
crazy cream create credit creek crew crime crisp crop cross crowd crown cruel crumb crush cry cup curb cure curious curl
current curtain curve cushion custom cut cycle daily dairy damage damp dance danger dark daughter dawn day dead deaf dear
death debt decide deck deep deer delay deliver demand dentist depend depth desert desk dessert detail devil dial diamond diary
dictate diet differ dig dinner dirt dish distant ditch dive divide dizzy dock doll dollar door double doubt dough down dozen
draft dragon drain draw drawer dream dress drift drill drink drive drop drown drum dry dull dust duty dwarf eager eagle ear
early earn earth east easy eat echo edge edit effect effort egg eight elbow elder elect elephant eleven empty end enemy engine
enjoy enough enter equal error escape even evening event ever evil exact example except excite excuse exit expect expert
explain extra eye fable face fact factory fade fail faint fair fairy faith fall false fame family fancy far farm fast fat
father fault favour fear feast feather feed feel fellow fence fever few field fifteen fight figure file fill film final find
fine finger finish fire firm first fish fit five fix flag flame flash flat flavour flesh flight float flock flood floor flour
flow flower fluid flute foam fog fold follow food fool foot force foreign forest forget fork form fort forward fossil fountain
fox frame free freeze fresh friend fright frog frost fruit fry fuel full funny fur future gain galaxy gale gallery game gap
garage garden garlic gas gate gather gentle ghost giant gift ginger giraffe girl give glad glass globe glory glove glue goal
gold golf good goose grab grace grade grain grand grape grass grave gravel gravy great greet grief grin grip grocer ground
group grow guard guess guest guide guilty guitar gulf gum gutter habit hair half hall ham hammer hand handle hang happen happy
harbour hard harm harvest hat hate haunt hawk head heal health heap hear heart heat heavy hedge heel height helmet help hen
herb herd here hero hidden hide high hill hint hip hire history hit hive hobby hold hole holiday hollow holy honest honey hood
hook hope horn hospital host hot hotel hour huge human humble humour hundred hunger hunt hurry hurt husband hut ice idea idle
ill image inch include indoor infant ink inn insect inside invent invite iron island item ivory jacket jail jam january jar
jaw jazz jealous jelly jewel job join joke journey joy judge juice july jump june jungle junior jury just keep kettle key kick
kid kidney kind king kiss kitchen kite knee kneel knife knight knit knock knot know label labour lace ladder lady lake lamb
lamp land lane language lantern large last late laugh laundry law lawn lazy lead leaf leak lean learn leather leave lecture
left leg legend lemon lend length lens leopard lesson letter level lever liberty library lick lid lie life lift light limb
limit linen lion lip liquid list listen little liver lizard load loaf loan lobster local lock lodge log lonely long look loop
loose lord lose lot loud love low loyal luck luggage lunch lung machine mad magic magnet maid mail main make male mammal
manage mango manner many map maple marble march margin mark market marry marsh mask mass master match matter may mayor meadow
meal mean meat medal medicine meet melon melt member memory mend menu mercy merry mess message metal method middle midnight
mile milk mill mind mine minor minute mirror miss mist mix model modern moment money month mood moon moral morning mosquito
moss moth mother motion motor mountain mouse mouth move mud muffin muscle museum mushroom music must mystery nail name narrow
nation nature naughty navy near neat neck needle neighbour nephew nerve nest net never new news next nice niece night nine
noble nobody noise noon north nose note nothing notice novel now number nurse nut oak oar obey object ocean odd offer office
often oil old olive once onion open opera opinion orchard order organ other otter ought ounce out oven over owl own owner
oxygen oyster pack paddle page pain pair palace pale palm pan panda panic paper parade parcel parent park part partner party
pass past paste path patient pattern pause pay peace peach peacock pear pearl pebble pen pencil penny people pepper perfect
perfume period permit person phone photo piano picnic picture piece pigeon pile pill pillow pin pine pint pipe pirate pitch
place plain plan plane planet plant plate play please plenty plough plug plum pocket poem poet point poison polar pole police
polish polite pond pool poor pope popular porch port post pot potato pound pour powder power praise pray prefer present press
pretty price pride priest prince print prison private prize problem profit promise proof proud prove public pull pulse pump
pumpkin punch pupil puppet pure purse push puzzle quality quarrel quarter queen question quick quiet quilt quit quite race
radio rail rain raise range rank rapid rare rat rate raven raw ray razor reach read ready real reason record refuse region
regret relax remain remember remind remove rent repair repeat reply report rescue rest result return reward rhyme rhythm rib
ribbon rice rich ride right ring ripe rise risk river road roar roast rob robot rock rocket rod roll roof room root rope rough
round route row royal rub rubber rude rug ruin rule run rural rush rust sack sad saddle safe sail saint salad salary sale
salmon salt same sand sandwich satin sauce saucer sausage save saw say scale scar scarce scare scarf scene school science
scissors score scout scrap scratch scream screen screw sea search season seat second secret see seed seek seldom select self
sell send sense sentence separate serious serve seven shade shadow shake shallow shame shape share shark sharp shave shed
sheep sheet shelf shell shield shift shine ship shirt shock shoe shoot shop shore short shout show shower shrimp shut shy sick
side sight sign signal silence silk silly simple since single sink sister sit six size skate skill skin skirt skull sky sleep
sleeve slice slide slip slope slow small smart smell smile smoke smooth snail sneeze snow soap social sock soft soil soldier
solid solve some son soon sore sorry sort soul sound soup sour south space spade spare spark speak special speech speed spell
spend spice spider spill spin spirit spite splash split spoil sponge spoon sport spot spray spread spring spy square squirrel
stable staff stage stair stale stamp stand star start state statue stay steak steal steam steel steep stem step stick stiff
still sting stir stocking stomach stone stool stop store storm story stove straight strange straw stream street strike string
strip strong student study stuff stupid style subject submarine succeed sudden suffer sugar suit summer sun supper supply sure
surface surgeon surprise swallow swamp swan swear sweat sweep sweet swell swift swim swing switch sword symbol table tail take
tale talent talk tall tame tank tap target task taste tax taxi tea tear tease telephone temper temple tend tennis tent term
terrible test thank theatre theory thick thief thigh thin thing think third thirst thorn thought thousand thread threat throat
throne throw thumb thunder ticket tide tidy tie tiger tight tile timber time tin tiny tip tired title toad toast tobacco toe
together toilet tomato tomorrow tongue tonight tool tooth top torch total touch tough tour toward towel tower town toy track
trade traffic trail train trap travel tray treasure treat tree tremble tribe trick trip trouble trousers truck true trumpet
trunk trust truth try tube tulip tune tunnel turkey turn twelve twenty twice twig twin twist type ugly umbrella uncle under
uniform union unit upper upset urgent use usual vain valley value van vanilla vase vast vegetable veil velvet venture verb
verse very vessel victim victory video view village vine violet violin virtue visit voice volcano volume vote voyage vulture
wage wagon waist wait wake walk wall walnut wander want war ward warm warn wash wasp waste watch water wave wax way weak
wealth weapon weather weave wedding weed week weep weigh welcome well west wet whale wheat wheel where whip whisper whistle
whole wicked wide widow width wife wild will willow win wind window wine wing winner winter wipe wire wise wish wit witch
within witness wizard wolf woman wonder wood wool word work world worm worry worth wound wrap wreck wrist write wrong yacht
yard yarn year yeast yell yesterday yet yield young youth zebra zero zone
"""

WORDS = TEXT.split()
