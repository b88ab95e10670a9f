"""What a value of the feed may look like: text of the feed in, typed column out, null where the text breaks the rule."""

from pyspark.sql import Column
from pyspark.sql import functions as F

MAX_ID_CHARS = 256
MAX_CATEGORY_LEVELS = 12
MAX_LEVEL_CHARS = 100

# ISO 4217, active codes of countries and unions (list of 2026-01-01).
CURRENCIES = """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY COP
    CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD
    IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR
    MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP
    SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG
    XOF XPF YER ZAR ZMW ZWG
"""

TRUE_WORDS = ("true", "1", "yes", "y", "in stock", "in_stock", "instock", "preorder", "backorder")
FALSE_WORDS = ("false", "0", "no", "n", "out of stock", "out_of_stock", "outofstock", "sold out", "discontinued")

GENDERS = {
    "women": ("women", "woman", "womens", "female", "f", "w", "ladies", "lady"),
    "men": ("men", "man", "mens", "male", "m", "gentlemen"),
    "unisex": ("unisex", "u", "all", "any"),
    "kids": ("kids", "kid", "children", "child", "boys", "boy", "girls", "girl", "baby", "babies", "infant", "toddler"),
}

NUMBER = r"^\d{1,15}(\.\d+)?([eE][+-]?\d{1,2})?$"


def amount(text: Column) -> Column:
    """A price: a plain number from 0 on, a currency code behind it left aside ("15.00 USD"). Null: not one."""
    number = F.regexp_replace(text, r"\s*[A-Za-z]{3}$", "")
    return F.when(number.rlike(NUMBER), number.try_cast("double"))


def currency(price: Column, code: Column) -> Column:
    """Upper-case code written behind the price, else the one beside it."""
    behind = F.nullif(F.regexp_extract(price, r"([A-Za-z]{3})$", 1), F.lit(""))
    return F.upper(F.coalesce(behind, code))


def is_currency(code: Column) -> Column:
    """Whether a code is one of CURRENCIES; false for null."""
    return F.coalesce(code.isin(*CURRENCIES.split()), F.lit(False))


def flag(text: Column) -> Column:
    """A yes or no in the words shops use. Null: neither."""
    word = F.lower(text)
    return F.when(word.isin(*TRUE_WORDS), True).when(word.isin(*FALSE_WORDS), False)


def count(text: Column) -> Column:
    """Pieces in stock; less than none counts as none. Null: not a whole number."""
    return F.when(text.rlike(r"^-?\d{1,9}(\.0+)?$"), F.greatest(F.lit(0), text.try_cast("double").try_cast("int")))


def number(text: Column) -> Column:
    """A number from 0 on. Null: not one."""
    return F.when(text.rlike(NUMBER), text.try_cast("double"))


def moment(text: Column) -> Column:
    """ISO 8601 (UTC unless it says otherwise), or seconds or milliseconds since 1970. Null: neither."""
    return (
        F.when(text.rlike(r"^\d{9,10}(\.\d+)?$"), F.timestamp_seconds(text.try_cast("double")))
        .when(text.rlike(r"^\d{12,13}$"), F.timestamp_millis(text.try_cast("bigint")))
        .otherwise(text.try_cast("timestamp"))
    )


def gender(text: Column) -> Column:
    """One of women, men, unisex, kids; null where the word is another."""
    word = F.regexp_replace(F.lower(text), "['’]", "")
    known = None
    for name, words in GENDERS.items():
        known = F.when(word.isin(*words), name) if known is None else known.when(word.isin(*words), name)
    return known


def category_levels(levels: Column, text: Column) -> Column:
    """Levels of a category given as a list, as "a > b > c" or as "a/b/c", each trimmed; the shop's spelling is kept.

    Null: none given, or broken (an empty level, ".", "..", control characters, a list in a list, too deep, too long).
    A slash inside a level of a list becomes "-", as it would read as two levels.
    """
    path = F.regexp_replace(text, r"^\s*[/>]+|[/>]+\s*$", "")
    split = F.when(path.contains(">"), F.split(path, ">")).otherwise(F.split(path, "/"))
    trimmed = F.transform(F.coalesce(levels, split), lambda level: F.trim(F.regexp_replace(level, "/", "-")))
    sound = F.forall(trimmed, _is_sound_level) & (F.size(trimmed) <= MAX_CATEGORY_LEVELS)
    return F.when(sound, trimmed)


def _is_sound_level(level: Column) -> Column:
    return F.coalesce(
        level.rlike(rf"^[^\p{{Cntrl}}\\]{{1,{MAX_LEVEL_CHARS}}}$") & ~level.isin(".", "..") & ~level.rlike(r"^[\[{]"),
        F.lit(False),
    )


def image_uri(given: Column, folder: str) -> Column:
    """An absolute URI: as given when it has a scheme, else a path from `folder` (itself a URI) or from the root.

    Paths of files and of the web are percent-encoded (RFC 8089, RFC 3986); keys of object stores are taken as they are.
    """
    encoded = _percent_encoded if folder.startswith(("file:", "http:", "https:")) else lambda path: path
    relative = F.concat(F.lit(folder.rstrip("/") + "/"), encoded(F.regexp_replace(given, r"^(\./)+", "")))
    rooted = F.concat(F.lit("file://"), _percent_encoded(given))
    return F.when(scheme(given) != "", given).when(given.startswith("/"), rooted).otherwise(relative)


def _percent_encoded(path: Column) -> Column:
    """`path` with all but slashes and unreserved characters encoded (url_encode writes a space as "+")."""
    return F.replace(F.replace(F.url_encode(path), F.lit("%2F"), F.lit("/")), F.lit("+"), F.lit("%20"))


def is_allowed(uri: Column, hosts: tuple[str, ...], buckets: tuple[str, ...]) -> Column:
    """Whether a URI's host (http, https) or bucket (s3, gs) is listed; an empty list names all, *.shop.example all below it.

    The fetcher asks again, and of every redirect: it reads addresses as the HTTP client does.
    """
    host = F.lower(F.regexp_extract(uri, r"^[^:/]+://(?:[^/?#]*@)?([^/?#:]*)", 1))
    bucket = F.regexp_extract(uri, r"^[^:/]+://([^/]*)", 1)
    exact = [name for name in hosts if not name.startswith("*.")]
    known = host.isin(*exact) if exact else F.lit(False)
    for name in set(hosts) - set(exact):
        known |= host.endswith(name[1:])
    on_web = F.when(scheme(uri).isin("http", "https"), known if hosts else True)
    return F.coalesce(on_web, F.when(scheme(uri).isin("s3", "gs"), bucket.isin(*buckets) if buckets else True), F.lit(True))


def scheme(uri: Column) -> Column:
    """The scheme in lower case, "" for a path. One letter is no scheme; "//host/x" has one, but does not say which."""
    return F.when(uri.startswith("//"), "//").otherwise(F.lower(F.regexp_extract(uri, r"^([A-Za-z][A-Za-z0-9+.-]+):", 1)))
