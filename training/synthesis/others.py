"""Speech that is not to be written down: other English words, and other languages. A model that has heard none of it
makes commands of everything."""

import numpy as np

from salmonrun.training.synthesis.texts import is_held_out

# Common words of English that no sentence of texts.py has, and of languages that espeak-ng speaks, by its names.
WORDS = {
    "en": """
        about above across after again against air all almost along always animal another answer any are around ask
        away back ball bank be bear beautiful because bed been before began begin behind being believe best better
        between big bird black blood blue boat body book both bottle box boy bring brother brought brown build
        building but cannot car care carry cat cause center certain chair chance change child children church circle
        city class clear climb cloth cloud cold color common company complete could country course cover cross crowd
        cut dark daughter dead deal dear decide deep did difficult dinner do doctor does dog done down draw dream
        dress drink drive during each early earth east easy eat edge either else empty end enough even evening ever
        every example eye face fact fall family far farm fast father feel feet felt few field fight figure fill final
        find fine finger finish fire first fish floor flower fly follow food foot force forest forget found free fresh
        friend front fruit full game gave general get girl give glass go god gold gone good government grand grass
        gray great green ground group grow guess gun had hair half hand happen happy hard has hat have he head hear
        heard heart heavy held help her here high hill him himself history hold hole home hope horse hospital hour
        house human hundred hurry ice idea if important inside instead island job join journey judge jump just keep
        kept key kill kind king knew know lady lake land language large last late laugh law lay lead learn leave left
        leg less lesson let letter life like line lion listen little live long look lose lost love low machine made
        main man many map mark market marry master matter may maybe mean meat meet member men might mile mind mine
        miss moment money month moon more morning most mother mountain mouth move much must my name nature near neck
        need neighbor never new news next night no noise none nor north nose not nothing notice now object ocean of
        often oil old once only or orange order other our outside over own page paint pair part party pass past path
        pay people perhaps person picture piece pig plan plant please pocket point police poor possible power present
        president press pretty price probably problem promise public pull push put queen question quick quiet quite
        race rain ran rather reach read ready real reason red remember rest result return rich ride right ring river
        road rose round rule run sad safe said sail salt same sand save saw say school science sea season seat second
        secret see seem seen self sense sentence serious several shall shape sharp she ship shirt shoe short should
        shoulder show shut side sign silver simple since sing sister sit size skin sky sleep slow small smile snow so
        social soft soldier son song soon sound south space speak special spring square stage stand star start state
        station stay step still stone stood story strange street strong student study such sudden summer sun sure
        surface swim system table tail take talk tall taste teach tell temper test than that their them then there
        these they thin think third this those though thought thousand through throw thus till tiny together told
        tomato too took top total touch town trade train travel tree trip trouble true truth try twice under
        understand until up upon use usual valley very village visit voice wait walk wall want war was watch water
        wave way we wear week well went were west wet when where whether which while white who whole whose why wide
        wife wild will wind wine winter wish with without woman wonder wood word work world would write wrong year
        yellow yes yesterday yet you young your
        """,
    "de": """
        aber alle auch bei das dein der die doch dort durch ein essen etwas fenster frau freund ganz geben gehen gern
        gestern haus heute hier hund ich immer jahr jetzt kind kommen lange leben machen mann mehr morgen mutter nacht
        neu nicht noch nur oder schnell schon schule sehr sein stadt strasse tag tisch und unter viel vielleicht wasser
        weg wenn werden wieder wir wissen wohnung zeit zimmer zwischen zwei drei zwanzig
        """,
    "fr": """
        ami apres aussi autre avec beau beaucoup bien bonjour chambre chat chemin chose comme dans demain depuis deux
        dire eau elle encore enfant entre faire femme fenetre fille grand heure homme ici jamais jardin jour lumiere
        maison mais manger matin merci moins monde nous nuit parler petit pour pourquoi quand quatre rien rue savoir
        soir sous temps toujours tout travail trois trop venir vie ville vingt voir voiture vous
        """,
    "es": """
        agua ahora algo amigo antes aqui bien bueno calle casa ciudad como comer cuando cuatro decir desde despues dia
        donde dos entre escuela ese estar gente gracias grande hablar hacer hasta hermano hijo hombre hoy ir lugar luz
        luna madre manana mas mesa mucho mujer mundo nada noche nosotros nuevo nunca otro padre palabra pequeno pero
        perro poco porque puerta querer siempre sin sobre tarde tiempo todo trabajo tres veinte ventana ver vida
        """,
    "nl": """
        altijd avond beter boek boom brood daar dag deur drie eten fiets gaan geen genoeg goed groot hand huis jaar
        jongen kamer kind komen lang leven licht lopen maken man meisje moeder morgen naar nacht niet nooit nu onder
        ook oud over raam school snel spreken stad straat tafel tijd twee vader vandaag veel vier vriend vrouw water
        week weg weten winkel zeggen zien
        """,
    "sv": """
        aldrig alla arbete barn bok bord bra bror dag dotter efter eller fin flicka fyra ganska gata gammal hand hem
        hund hus igen inte komma kanske kvinna land liten livet ljus lycka mamma mat mellan mor mycket natt nu ny ofta
        ord pappa pojke rum samma se skola skriva snart sol sommar stad stor tack tala tid tre tro under vacker vatten
        veta vilja vinter vita
        """,
    "pt": """
        agora agua ainda amanha amigo antes aqui bom cada cadeira caminho carro casa cedo cidade coisa comer como dar
        depois dia dizer dois escola estrada falar fazer filho flor gente grande hoje homem hora irmao jardim lado livro
        longe lua lugar mae mais mesa muito mulher mundo nada noite nome novo nunca olhar ontem outro pai palavra pedra
        pequeno porta quarto quatro rua sempre sol tarde tempo trabalho tres vida vinte
        """,
    "pl": """
        ale bardzo brat chleb czas czy dla dobry dom droga drzewo dwa dzien dziecko dzisiaj gdzie glowa gra jeden jutro
        kiedy kobieta kolor kot ksiazka kto las lato lubic maly mama miasto miejsce morze nie nigdy noc nowy oko okno
        pan pies praca przed rano rok rzeka samochod serce siostra slowo sobota stary stol swiat szkola tak tata teraz
        trzy ulica woda wszystko zawsze zima
        """,
    "it": """
        acqua adesso albero allora amico anche ancora anno bambino bello bene casa cena che citta come cosa cuore dopo
        domani donna dormire dove due fiore fratello gatto giorno grande ieri insieme lavoro libro lontano luce luna
        madre mai mano mare mattina meglio molto mondo niente notte nuovo occhio oggi ora padre parlare parola pensare
        perche piazza piccolo pioggia poco prima quando quattro sempre sera sole sorella strada tempo tre tutto uomo
        vedere venti vino vita
        """,
    "fi": """
        aamu aika aina aiti auto elama ennen etta hyva ihminen ilta isa joki kaksi kala kanssa katu kaupunki keitto kesa
        kirja kissa koira kolme koti koulu kuva kylla lapsi leipa lumi maa matka meri metsa mies minun minne nainen
        nimi nyt paiva paljon pieni pitka poika puhua puu ruoka sana sata sina suuri talo talvi tanaan tyo vaikka vanha
        vesi viikko yksi ystava
        """,
}
# What stands between English words, in commands, too: a model must not go by these.
BETWEEN = ("the", "a", "in", "is", "to", "at", "on", "for", "and", "some", "what", "my")
BETWEEN_SHARE = 0.3
ENGLISH_SHARE = 0.6  # what is said where a model listens is mostly in its own language
HELD_OUT_LANGUAGES = ("it", "fi")


def draw_other(rng: np.random.Generator, held_out: bool) -> tuple[str, str]:
    """A language, and words of it that make no sentence: not a command by chance, and never the same.

    Two held-out languages, and a tenth of the texts, are never trained on.
    """
    foreign = [name for name in WORDS if name != "en" and (name in HELD_OUT_LANGUAGES) == held_out]
    language = "en" if rng.random() < ENGLISH_SHARE else str(rng.choice(foreign))
    words = WORDS[language].split()
    while True:
        said = [str(rng.choice(words)) for _ in range(rng.integers(2, 10))]
        if language == "en":
            said = [f"{rng.choice(BETWEEN)} {word}" if rng.random() < BETWEEN_SHARE else word for word in said]
        text = " ".join(said)
        if language != "en" or is_held_out(text) == held_out:
            return language, text
