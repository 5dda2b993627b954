"""Personal data and secrets: found in text, and replaced by placeholders.

Phone numbers come from phonenumbers, check digits from python-stdnum, secrets from detect-secrets; all work offline.
Names and postal addresses are not found: that takes a language model, and its misses would pass for a promise.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

KINDS = {
    "secret": "SECRET",
    "email": "EMAIL",
    "iban": "IBAN",
    "card": "CARD",
    "personal_id": "ID",
    "phone": "PHONE",
    "ip": "IP",
}
"""What is looked for, and the word in its placeholder; of overlapping finds the earlier kind here wins."""


@dataclass(frozen=True, order=True)
class Found:
    """Personal data or a secret in `text[start:end]`."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class _Shape:
    """A number known by its look: `sure` shapes count as they are, the others if `valid` and, if given, near `context`."""

    kind: str
    pattern: re.Pattern[str]
    valid: str = ""
    """Module of python-stdnum whose `is_valid` decides."""
    context: re.Pattern[str] | None = None
    """Must occur in the 40 characters before."""


def _shape(kind: str, pattern: str, valid: str = "", context: str = "") -> _Shape:
    return _Shape(kind, re.compile(pattern), valid, re.compile(context, re.IGNORECASE) if context else None)


_TAX = r"\b(?:nif|contribuinte|n[ºo.]* ?fiscal|vat|tax)\b"
_SHAPES = (
    _shape("card", r"(?<![\w.-])\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?![\w-])"),
    _shape("card", r"(?<![\w.-])(?:[3-6]|2[2-7])(?:[ -]?\d){12,18}(?![\w-])", "luhn"),
    _shape("personal_id", r"(?<!\d)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)"),  # CPF, Brazil
    _shape("personal_id", r"(?<![\w.,-])\d{11}(?![\w-])", "br.cpf"),
    _shape("personal_id", r"(?<!\d)\d{2}\.\d{3}\.\d{3}/\d{4}-\d{2}(?!\d)"),  # CNPJ, Brazil
    _shape("personal_id", r"(?<![\w.,-])\d{14}(?![\w-])", "br.cnpj"),
    _shape("personal_id", r"(?<![\w.,-])(?:PT ?)?\d{3} ?\d{3} ?\d{3}(?![\w-])", "pt.nif", _TAX),
    _shape("personal_id", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", "us.ssn"),
    _shape("personal_id", r"(?<!\w)[A-CEGHJ-PR-TW-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)"),  # national insurance, Britain
    _shape("personal_id", r"(?<!\w)(?:\d{8}|[XYZ]-?\d{7})-?[A-Z](?!\w)", "es.nif"),
    _shape("personal_id", r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?!\w)", "it.codicefiscale"),
    _shape("personal_id", r"(?<![\w.,-])\d{11}(?![\w-])", "de.idnr", r"\b(?:steuer|idnr|tax)"),
    _shape("personal_id", r"(?<![\w.,-])[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?![\w-])", "fr.nir"),
)
_FEWEST_DIGITS = 6
"""No number of _SHAPES and no telephone number has fewer."""
_MAYBE_NUMBER = re.compile(r"\d(?:[ ./-]{0,2}\d){5}|[A-Z]{6}\d\d")
_EMAIL = re.compile(r"[^\W_](?:[\w.%+'-]*\w)?@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,}")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-fA-F]{1,4}:){2,7}:?(?:[0-9a-fA-F]{1,4}:?)*)(?![\w.:]*\d)")
_VERSION = re.compile(r"(?:\bv|vers[a-zãç]*|release|build|firmware)\.?\s*$", re.IGNORECASE)
_DIALLED = re.compile(
    r"(?<![\w.,/$€£-])(?!(?:19|20)\d\d[-. ][01]\d[-. ][0-3]\d\b|[0-3]\d[-. ][01]\d[-. ](?:19|20)\d\d\b)"  # no dates
    r"(?:\+ ?)?\(?\d(?:[ .()-]{0,2}\d){7,14}(?!\w|[.,/]\d)"
)
_CALL = re.compile(
    r"\b(?:phone|tel\b|telef|telem|call\b|dial|mobile|cell\b|celular|fax|whats|sms|text\b|lig(?:ue|ar)|contac?t|"
    r"(?:my|o meu|meu) (?:number|n[uú]mero))",
    re.IGNORECASE,
)
_MAYBE_SECRET = re.compile(r"\S{16}|://|-----BEGIN")
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL)
_PASSWORD = re.compile(
    r"(?:password|passwd|pwd|passcode|passphrase|senha|palavra[- ]passe|contraseña|secret|api[_ -]?key|access[_ -]?key|token)"
    r"(?:\s*(?P<sign>[:=])\s*|\s+(?:is|was|é|era)\s*:?\s+)[\"'`]?(?P<value>[^\s\"'`,;]{4,}[^\s\"'`,;.!?)])",
    re.IGNORECASE,
)
_SECRET_WORDS = ("pass", "pwd", "senha", "contraseña", "secret", "key", "token")
"""Texts of which one stands in whatever _PASSWORD finds."""
_CLOSED = re.compile(r"[\"'`]?\s*(?:[\n,;.!?)]|$)")
"""After a password that is one word: no further word, as in `password: which one?`."""
_DETECTORS = {
    "artifactory": "ArtifactoryDetector",
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector",
    "cloudant": "CloudantDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector",
    "openai": "OpenAIDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
"""Modules and classes of detect-secrets; left out are those that guess from entropy or from code."""


@functools.lru_cache(maxsize=4096)  # a turn returns in the history of every later one
def find(text: str, regions: tuple[str, ...] = ()) -> tuple[Found, ...]:
    """Personal data and secrets in a text, in order, without overlaps.

    `regions` are the countries (ISO codes) whose phone numbers may lack a country code. Digits run together count as a
    phone number only after a word such as *call* or *telefone*: order numbers look the same.
    """
    found = [*_secrets(text), *_emails(text)]
    digits = sum(map(str.isdigit, text))
    if digits:
        found += [*_ibans(text), *_addresses(text)]
    if digits >= _FEWEST_DIGITS:
        found += [*_numbers(text), *_phones(text, regions)]
    return tuple(_without_overlaps(found))


def redact(texts: Iterable[str], regions: Sequence[str] = (), allowed: Sequence[str] = ()) -> tuple[list[str], Counter[str]]:
    """The texts of one conversation with placeholders such as `[EMAIL_1]`, and how many were put in, by kind.

    One value has one placeholder throughout the conversation. Values in `allowed`, and e-mail addresses of an allowed
    `@domain`, stay.
    """
    names: dict[tuple[str, str], str] = {}
    counts: Counter[str] = Counter()
    made = []
    for text in texts:
        pieces, last = [], 0
        for spot in find(text, tuple(regions)):
            value = text[spot.start : spot.end]
            if any(
                value.casefold() == a.casefold() or (a[:1] == "@" and value.casefold().endswith(a.casefold())) for a in allowed
            ):
                continue
            key = (spot.kind, re.sub(r"[\s().-]", "", value.casefold()) if spot.kind != "secret" else value)
            number = sum(kind == spot.kind for kind, _ in names) + 1
            pieces += [text[last : spot.start], names.setdefault(key, f"[{KINDS[spot.kind]}_{number}]")]
            last = spot.end
            counts[spot.kind] += 1
        made.append("".join([*pieces, text[last:]]))
    return made, counts


def known_regions() -> frozenset[str]:
    """Countries whose phone numbers are known (ISO 3166 codes)."""
    import phonenumbers

    return frozenset(phonenumbers.SUPPORTED_REGIONS)


def _without_overlaps(found: list[Found]) -> list[Found]:
    order = list(KINDS)
    kept: list[Found] = []
    for spot in sorted(found, key=lambda spot: (order.index(spot.kind), spot.start - spot.end, spot.start)):
        if all(spot.end <= other.start or other.end <= spot.start for other in kept):
            kept.append(spot)
    return sorted(kept)


def _emails(text: str) -> Iterator[Found]:
    if "@" in text:
        yield from (Found(*match.span(), "email") for match in _EMAIL.finditer(text))


def _secrets(text: str) -> Iterator[Found]:
    folded = text.casefold()
    for match in _PASSWORD.finditer(text) if any(word in folded for word in _SECRET_WORDS) else ():
        if not match["value"].isalpha() or (match["sign"] and _CLOSED.match(text, match.end())):
            yield Found(*match.span("value"), "secret")
    if _MAYBE_SECRET.search(text):
        yield from (Found(*match.span(), "secret") for match in _KEY_BLOCK.finditer(text))
        for pattern, group in _detectors():
            yield from (Found(*match.span(group), "secret") for match in pattern.finditer(text))


@functools.cache
def _detectors() -> list[tuple[re.Pattern[str], int]]:
    """Patterns of detect-secrets, and which group of each is the secret."""
    made = []
    for module, name in _DETECTORS.items():
        detector = getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
        made += [(pattern, 1 if module == "basic_auth" else 0) for pattern in detector.denylist]
    return made


@functools.cache
def _is_valid(name: str) -> Callable[[str], bool]:
    return import_module(f"stdnum.{name}").is_valid


def _numbers(text: str) -> Iterator[Found]:
    for shape in _SHAPES if _MAYBE_NUMBER.search(text) else ():
        for match in shape.pattern.finditer(text):
            plain = re.sub(r"[ -]", "", match[0])
            near = not shape.context or shape.context.search(text[max(0, match.start() - 40) : match.start()])
            if near and (not shape.valid or _is_valid(shape.valid)(match[0] if shape.valid == "us.ssn" else plain)):
                yield Found(*match.span(), shape.kind)


def _ibans(text: str) -> Iterator[Found]:
    for match in _IBAN.finditer(text):
        candidate = match[0]
        while candidate and not _is_valid("iban")(candidate):  # it may have swallowed the words after it
            candidate = candidate.rpartition(" ")[0]
        if candidate:
            yield Found(match.start(), match.start() + len(candidate), "iban")


def _phones(text: str, regions: tuple[str, ...]) -> Iterator[Found]:
    for match in _DIALLED.finditer(text):
        if not match[0].isdigit() or _CALL.search(text[max(0, match.start() - 40) : match.start()]):
            for start, end in _dialled(match[0], regions):
                yield Found(match.start() + start, match.start() + end, "phone")


@functools.lru_cache(maxsize=4096)
def _dialled(text: str, regions: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where in `text` a phone number of any of the regions lies, its digits grouped as there or not at all."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    spans = []
    for region in regions or (None,):
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
            groups = re.findall(r"\d+", match.raw_string)
            if text.startswith("+") or len(groups) != 2 or len(groups[0]) == len(groups[1]) - 1:
                spans.append((match.start, match.end))
    return spans


def _addresses(text: str) -> Iterator[Found]:
    for match in _IP.finditer(text):
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            continue
        if public and not _VERSION.search(text[: match.start()]):
            yield Found(*match.span(), "ip")
