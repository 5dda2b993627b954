"""Answers that teach nothing: stock replies, and the refusals of other assistants. English and Portuguese.

The patterns meet the text lower-cased, without accents, with straight quotes and single spaces.
"""

from __future__ import annotations

import re
import unicodedata

from moe_router.data.turns import fold

STOCK_WORDS = 60
"""A longer answer that contains a stock sentence says something else besides."""

_Sign = tuple[tuple[str, ...], re.Pattern[str]]
"""Texts of which one stands in everything that the pattern finds, and the pattern: a search for a text takes a hundredth."""


def _signs(*signs: tuple[tuple[str, ...], str]) -> tuple[_Sign, ...]:
    return tuple((texts, re.compile(pattern)) for texts, pattern in signs)


_THINGS = r"(?:message|request|e-?mail|enquiry|inquiry|query|ticket|case|feedback|submission|question)"
_COISAS = r"(?:mensagem|pedido|solicitacao|e-?mail|contact?o|chamado|ticket|reclamacao|questao|duvida|mensagens?)"

_EMPTY_TALK = re.compile(
    r"(?:n ?/ ?[ad]|n\.a|null|nan|undefined|tbd|tba|tbc|todo|to do|fixme|test(?:ing|e)?(?: ?(?:test(?:ing|e)?|\d+))*|"
    r"asdf\w*|qwerty\w*|x{3,}|"
    r"lorem ipsum.*|pending(?: reply| response)?|(?:pendente|a aguardar|aguardando)(?: resposta)?|"
    r"to be (?:confirmed|defined|decided|announced)|"
    r"(?:see|same as|as) (?:above|below|attached|previous)|"
    r"(?:see|please see)(?: the)? (?:attached|attachment|attached file)|"
    r"no (?:answer|response|reply|comment|data)|not (?:applicable|available)|placeholder|"
    r"nao (?:se aplica|aplicavel|disponivel|informado)|sem (?:resposta|comentarios?|dados|informacao)|a (?:definir|confirmar)|"
    r"(?:vide|ver|veja)(?: o)? (?:acima|abaixo|anexo)|(?:em|segue(?: em)?) anexo|idem|conforme (?:acima|anexo)|nulo)"
)
_STOCK = _signs(
    (
        ("automat",),
        r"(?:^|\bthis is an? )automat(?:ed|ic) (?:message|reply|response|e-?mail|notification|answer|acknowledge?ment)\b",
    ),
    (
        ("automat",),
        r"\b(?:automatically generated|generated automatically|gerad[ao] automaticamente)\b.*"
        r"\b(?:reply|respond|responda|responder)",
    ),
    (("auto",), r"^auto[- ]?(?:reply|response|responder)\b"),
    (("do not re",), r"\bdo not (?:reply|respond) to this (?:message|e-?mail)"),
    (("is not ",), r"\bthis (?:mailbox|inbox|e-?mail address) is not (?:monitored|attended)"),
    (("received your", "got your"), rf"\b(?:received|got) your {_THINGS}(?:[.!]|$| and (?:we|will|it|our|an?|someone|one)\b)"),
    (
        ("your ",),
        rf"\byour {_THINGS}(?: \S+)? (?:has been|was|is) (?:successfully )?(?:received|logged|registered|submitted|created)"
        r"(?:[.!]|$| and (?:we|will|our|an?|someone|one|assigned)\b)",
    ),
    (
        ("thank",),
        rf"\b(?:thank you|thanks) for (?:contacting|reaching|getting in touch|writing|your {_THINGS})[^.!]*[.!,;]?"
        r"[^.!]*\b(?:we|our team|(?:an? |our )?(?:agents?|representatives?|member|colleagues?)|someone)\b[^.!]*"
        r"\b(?:get back to you|be in touch|(?:reply|respond|contact you|answer you) (?:shortly|soon|within|as soon))",
    ),
    (("out of ",), r"(?:^|\bi(?:'m| am| will be)(?: currently)? )out of (?:the )?office\b"),
    (
        ("i'm ", "i am "),
        r"\bi(?:'m| am)(?: currently)? (?:away|on (?:annual |parental |sick )?leave|on (?:holiday|vacation))\b",
    ),
    (("this call ",), r"\bthis call (?:may|will) be recorded"),
    (
        ("automatic",),
        r"(?:^|\b(?:esta|este|essa|esse|isto|isso) e uma? )(?:mensagem|resposta|e-?mail|notificacao) automatic[ao]\b",
    ),
    (("nao respond",), r"\bnao (?:responda|responder) (?:a )?(?:este|esta|esse|essa) (?:e-?mail|mensagem)"),
    (
        ("recebemos", "rececionamos", "regist"),
        rf"\b(?:recebemos|rececionamos|registamos|registramos) (?:a |o )?(?:sua|seu|vossa|vosso|tua|teu) {_COISAS}"
        r"(?:[.!]|$| e (?:responderemos|entraremos|vamos|iremos|em breve|retornaremos|a nossa|nossa|um))",
    ),
    (
        (" foi ",),
        rf"\b(?:a |o )?(?:sua|seu|vossa|vosso) {_COISAS}(?: \S+)? foi (?:recebid|registad|registrad|criad|abert)[ao]"
        r"(?:[.!]|$| (?:com sucesso|e (?:responderemos|entraremos|sera|em breve|um|nossa|a nossa)))",
    ),
    (
        ("obrigad", "agradecemos"),
        r"\b(?:obrigad[oa] (?:por|pelo|pela)|agradecemos (?:o|a)\b)[^.!]*[.!,;]?[^.!]*"
        r"\b(?:responderemos|retornaremos|entraremos em contac?to|"
        r"(?:iremos|vamos) (?:responder|contactar|entrar em contac?to))",
    ),
    (("escritorio",), r"(?:^|\b(?:estou|estarei|encontro-me)(?: \w+)? )(?:ausente|fora) do escritorio\b"),
    (("estou ", "encontro-me"), r"\b(?:estou|encontro-me)(?: \w+)? (?:de ferias|ausente)\b"),
)

_AI = (
    r"(?:an? )?(?:ai\b|a\.i\.|artificial intelligence|(?:large )?language model|llm\b|text-based ai|machine learning model)"
    r"(?: language)?(?: model| assistant| chatbot| system)?"
)
_IA = (
    r"(?:um |uma )?(?:ia\b|inteligencia artificial|(?:grande )?modelo (?:grande )?de (?:linguagem|lingua|ia)|assistente de ia|"
    r"assistente de inteligencia artificial|modelo de inteligencia artificial|chatbot de ia)"
)
_AI_WORDS = (" ai", " a.i.", " artificial", "language model", " llm", " machine learning")
_IA_WORDS = (" ia", "inteligencia artificial", "modelo ")
_MAKERS = r"(?:openai|anthropic|chatgpt|google|meta ai|deepmind|mistral|stability ai|microsoft|xai|deepseek|alibaba)"
_DO = (
    r"(?:assist|help|comply|fulfill?|provide|engage|continue|answer|discuss|generate|create|support|respond|"
    r"participate|write|produce|share|offer)"
)
_FAZER = (
    r"(?:ajudar|ajuda-l[oa]|auxiliar|atender|fornecer|responder|cumprir|continuar|discutir|gerar|criar|escrever|produzir|"
    r"satisfazer|processar|participar|partilhar|compartilhar|realizar|fazer|prestar)"
)
_REFUSAL = _signs(
    (_AI_WORDS, rf"\b(?:as|being) {_AI},? ?(?:i\b|my\b|it is|it's|there)"),
    (
        _AI_WORDS,
        rf"\bi(?:'m| am) (?:just |only |merely |simply )?{_AI}\b"
        r"(?:[.,;!]| (?:and|so|without|that|who|trained|designed|created|developed))",
    ),
    ((" by ",), rf"\bi(?:'m| am| was)[^.!?]{{0,40}} (?:trained|developed|created|made|built) by {_MAKERS}"),
    (
        ("can't", "cannot", "can not", "able to", "won't", "will not", "decline to", "comfortable", "could not"),
        rf"\b(?:i|we)\b[^.!?]{{0,30}}\b(?:can(?:'t|not| not)|unable to|not able to|"
        rf"(?:won't|will not)(?: be able to)?|must decline to|not comfortable|could not)(?: \w+)? {_DO}"
        r"(?: (?:assistance|help|support|advice))?"
        r"(?: you)?(?: (?:with|to|in|on|out with|any))?(?: \w+ing)?(?: (?:that|this|your|such|these|those|the))"
        r"(?: (?:kind|type|sort) of)?"
        r"(?: (?:\w+ )?(?:request|question|content|topic|information|task|conversation|discussion|query|prompt|matter|"
        r"issue)s?)?"
        r"(?: (?:for you|at this time|right now))?(?:[.!,;]|$| as it\b| because it\b)",
    ),
    (
        ("can't do", "cannot do"),
        r"^(?:(?:i'm |i am )?(?:very |so |really )?sorry,? (?:but )?|i'm afraid (?:that )?)?"
        r"i (?:can't|cannot) do (?:that|this)[.!]?$",
    ),
    (
        ("violate", "against", "contrary to"),
        r"\b(?:violates?|against|goes against|contrary to) (?:my|openai's|our content|the content) "
        r"(?:programming|guidelines|(?:content |usage |use |safety )?polic\w+|ethical)",
    ),
    (
        ("my knowledge", "my training"),
        r"\bmy (?:knowledge|training)(?: data)?(?: cut-?off| (?:only )?(?:goes|extends|was last|is limited|ends))",
    ),
    (("as of my ",), r"\bas of my (?:last|latest|most recent) (?:knowledge |training )?(?:update|cut-?off|training)"),
    (
        ("i do not ", "i don't "),
        r"\bi (?:do not|don't) (?:have|possess) (?:personal|any personal|feelings|emotions|real-?time|access to real-?time|"
        r"the (?:ability|capability) to (?:browse|access|feel)|access to (?:the internet|current|external|personal data))",
    ),
    (
        ("'m not ", "am not ", "was not "),
        r"\bi(?:'m| am| was) not (?:programmed|designed|trained|built|allowed|permitted) to "
        r"(?:answer|assist|help|discuss|provide|respond|engage|give|generate)\b",
    ),
    (("decline",), r"\bi (?:must|have to) (?:respectfully )?decline (?:this|that|your|to (?:answer|provide|assist|help))"),
    (_IA_WORDS, rf"\b(?:como|enquanto|sendo|por ser) {_IA}"),
    (_IA_WORDS, rf"\b(?:eu )?sou (?:apenas |somente |so )?{_IA}(?:[.,;!]|$| (?:e|que|sem|desenvolvid|treinad|criad))"),
    (("treinad", "desenvolvid", "criad"), rf"\b(?:treinad|desenvolvid|criad)[ao] (?:pela|pelo|por) {_MAKERS}"),
    (
        ("nao ",),
        rf"\bnao (?:te |lhe |vos |o |a )?(?:posso|consigo|tenho (?:permissao|autorizacao) para|"
        rf"sou capaz de|estou autorizad[oa] a|estou apt[oa] a|"
        rf"me e possivel|poderei|podemos)(?: \w+)? {_FAZER}(?:-l[oa]|-lhe|-te|-vos)?"
        r"(?: (?:voce|com|a|em|o|nesse|neste|nessa|nesta|sobre|de))*(?: (?:isso|isto|nisso|nisto|disso|aquilo)|"
        r" (?:(?:o |a )?(?:esse|este|essa|esta|seu|sua|tal|nesse|neste)|nesse|neste|nessa|nesta)(?: tipo de)? ?"
        r"(?:pedido|solicitacao|conteudo|pergunta|assunto|tema|topico|informacao|tarefa|questao|conversa)?s?)"
        r"(?:[.!,;]|$| (?:pois|porque|no momento|neste momento))",
    ),
    (("viola", "contra"), r"\b(?:viola|contra|contrari[ao])(?: a)?s? (?:as )?(?:minhas|minha|diretrizes|politicas? da openai)"),
    (
        ("meu conhecimento", "meu trein"),
        r"\b(?:o )?meu (?:conhecimento|treinamento|treino) (?:vai|foi|e limitado|termina|so vai|se limita)",
    ),
    (("minha ultima",), r"\b(?:ate|desde) a? ?minha ultima atualizacao"),
    (
        ("nao tenho", "nao possuo"),
        r"\b(?:eu )?nao (?:tenho|possuo) (?:opini(?:ao|oes) pessoa|sentimentos|emocoes|"
        r"acesso (?:a internet|em tempo real|a (?:informacoes|dados) (?:em tempo real|atualizad))|"
        r"capacidade de (?:navegar|aceder|acessar|sentir))",
    ),
)


def stock_reply(answer: str) -> bool:
    """Whether the answer is a placeholder, punctuation alone, or an automatic reply."""
    plain = _plain(answer)
    core = plain.strip(" .!?…-_*#[](){}<>\"'")
    if all(unicodedata.category(character)[0] in "PZ" for character in plain) or _EMPTY_TALK.fullmatch(core):
        return True
    return len(plain.split()) <= STOCK_WORDS and _shows(_STOCK, plain)


def refusal(answer: str) -> bool:
    """Whether another assistant speaks of itself or declines, in the answer's first 400 characters."""
    return _shows(_REFUSAL, _plain(answer[:400]))


def _shows(signs: tuple[_Sign, ...], plain: str) -> bool:
    return any(any(text in plain for text in texts) and pattern.search(plain) for texts, pattern in signs)


def _plain(text: str) -> str:
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(fold(text).replace("’", "'").replace("‘", "'").split())
