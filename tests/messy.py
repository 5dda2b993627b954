"""A messy export with every defect at known lines, and texts with personal data at known places."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from stdnum import iban, luhn
from stdnum.br import cnpj, cpf
from stdnum.pt import nif

REFUSALS = (
    "As an AI language model, I don't have access to your order history.",
    "I'm sorry, but I cannot assist with that.",
    "I’m sorry, but I can’t fulfil this request.",
    "I apologize, but I am unable to provide that information.",
    "Sorry, I'm not able to help with this type of request.",
    "I am an AI developed by OpenAI and cannot place orders.",
    "My knowledge cutoff is in 2021, so I may be out of date.",
    "Unfortunately, I won't be able to answer that question.",
    "As a large language model, my answers come from training data.",
    "I don't have personal opinions or feelings.",
    "Desculpe, mas não posso ajudar com isso.",
    "Como um modelo de linguagem, não tenho opiniões.",
    "Lamento, mas não consigo responder a essa pergunta.",
    "Sinto muito, não sou capaz de fornecer essa informação.",
    "Sou apenas uma inteligência artificial, sem acesso a encomendas.",
    "Enquanto IA, não tenho acesso à internet.",
    "Infelizmente, não posso atender a esse pedido.",
    "Fui treinado pela OpenAI para conversar.",
    "Eu não tenho sentimentos, mas gosto de ajudar.",
    "Peço desculpa, mas não me é possível ajudá-lo com isso.",
    "I'm unable to help you with this.",
    "I'm afraid I can't do that.",
    "As an artificial intelligence, I do not hold opinions.",
    "I can't engage in that discussion.",
    "I'm just a language model and can't see your account.",
    "Sorry, but as an AI assistant I am not able to see orders.",
    "I'm not programmed to answer that.",
    "I must decline to provide that.",
    "It is against OpenAI's policies to answer this.",
    "I cannot comply with that request.",
    "I'm sorry, I am not able to generate that kind of content.",
    "Being an AI, I can't make phone calls.",
    "I do not have the ability to browse the web.",
    "Não tenho permissão para responder a isso.",
    "Sou um assistente virtual treinado pela OpenAI.",
    "Desculpa, não te posso ajudar com esse assunto.",
    "Não me é possível fornecer esse tipo de conteúdo.",
    "Peço desculpas, mas não posso gerar esse conteúdo.",
    "Por ser uma IA, não tenho preferências.",
    "Não consigo ajudar com essa questão.",
    "I am sorry, but I am not able to assist with this matter.",
    "As an AI, my knowledge stops in 2023.",
    "I can't provide assistance with that.",
    "I'm really sorry, but I can't help you with that.",
    "I don't have feelings, but thanks for asking!",
    "I was created by Anthropic to be helpful.",
    "Unfortunately I cannot answer this question.",
    "I'm not allowed to discuss that topic.",
    "Infelizmente não consigo ajudar com isso.",
    "Enquanto modelo de linguagem, não posso aceder à sua conta.",
    "Não posso fornecer esse tipo de informação.",
    "Fui desenvolvida pela OpenAI.",
    "Não tenho acesso a informações em tempo real.",
)
BOILERPLATE = (
    "N/A",
    "TBD",
    "...",
    "see attached",
    "Test test",
    "This is an automated message, please do not reply to this email.",
    "Thank you for contacting us! One of our agents will get back to you within two working days.",
    "We have received your request and will reply as soon as possible.",
    "Your ticket has been logged.",
    "Automatic reply: I am out of the office until Monday.",
    "I'm currently on annual leave with limited access to e-mail.",
    "Thanks for your message. Our team will be in touch shortly.",
    "Não aplicável",
    "Ver anexo.",
    "Esta é uma mensagem automática. Por favor, não responda a este e-mail.",
    "Recebemos o seu pedido e responderemos em breve.",
    "Obrigado pelo seu contacto. Entraremos em contacto consigo assim que possível.",
    "A sua mensagem foi recebida com sucesso.",
    "Encontro-me de férias até dia 15.",
    "Sem resposta",
    "n/a.",
    "-",
    "pending",
    "Resposta automática: estou fora do escritório.",
    "We've received your email and will get back to you soon.",
    "Thanks for reaching out! A member of our team will respond within 24 hours.",
    "This is an automatically generated email, please do not reply.",
    "Your case has been created and assigned the number 12.",
    "Out of office until 5 May.",
    "Agradecemos o seu contacto. Responderemos com a maior brevidade.",
    "O seu pedido foi registado e será tratado em breve.",
    "Mensagem gerada automaticamente, não responder.",
    "A aguardar resposta",
    "test",
    "No reply.",
    "Obrigada pela sua mensagem, entraremos em contato em breve.",
    "Estou ausente até segunda-feira.",
    "lorem ipsum dolor sit amet",
    "see above",
    "Não informado.",
    "Thank you for your email. We will respond as soon as possible.",
    "I'm out of the office this week.",
    "Your message was received.",
    "To be confirmed",
    "Please see attached",
    "Auto-reply: away until Monday",
    "Recebemos a sua reclamação.",
    "Não responda a esta mensagem.",
    "N/D",
    "Sem comentários.",
    "Estou de férias até dia 3.",
    "Resposta automática",
)
ACCENTED = (
    "Não consigo alterar a morada da encomenda número {n}, já tentei três vezes.",
    "A câmara que recebi não está a gravar às {n} horas.",
    "O café “Coração” fica aberto até às {n}?",
    "Où puis-je récupérer le colis {n} près de chez moi ?",
)


@dataclass
class Messy:
    """Lines of an export, and which of them has which defect."""

    lines: list[str] = field(default_factory=list)
    defects: dict[int, str] = field(default_factory=dict)
    repaired: dict[int, str] = field(default_factory=dict)
    """Prompt that a line should have once its mojibake is repaired."""

    def row(self, prompt: str, response: str, defect: str = "") -> None:
        self.line(json.dumps({"prompt": prompt, "response": response}, ensure_ascii=False), defect)

    def line(self, text: str, defect: str = "") -> None:
        self.lines.append(text)
        if defect:
            self.defects[len(self.lines)] = defect

    def write(self, path: Path) -> Path:
        path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        return path


def messy_export(pairs, each: int, seed: int = 0) -> Messy:
    """The pairs with `each` defects of every kind scattered among them; prompts of `pairs` are distinct and long."""
    rng = random.Random(seed)
    figures = [pair for pair in pairs if any(c.isdigit() for c in pair[1])]
    made = Messy()
    after = {id(pair): [] for pair in pairs}
    long = [pair for pair in pairs if len(pair[0].split()) >= 12]  # two words more leave a Jaccard similarity of 0.8
    for pair in rng.sample(long, each):
        after[id(pair)].append((_near(pair[0], rng), pair[1], "near_duplicate"))
    for pair in rng.sample(pairs, each):
        after[id(pair)].append((f"  {pair[0].upper()}\t", pair[1].replace(" ", "  "), "duplicate"))
    for pair in rng.sample(figures, min(each, len(figures))):
        changed = "".join(str((int(c) + 3) % 10) if c.isdecimal() else c for c in pair[1])
        after[id(pair)].append((pair[0], changed, "contradiction"))
    for pair in rng.sample(pairs, 3 * each):
        kind = rng.choice(("boilerplate", "refusal", "over_long"))
        bad = {
            "boilerplate": rng.choice(BOILERPLATE),
            "refusal": rng.choice(REFUSALS),
            "over_long": pair[1] * (30_000 // len(pair[1])),
        }
        after[id(pair)].append((f"{pair[0]} ({kind})", bad[kind], kind))
    for number, pair in enumerate(pairs):
        made.row(*pair)
        for prompt, response, defect in after[id(pair)]:
            made.row(prompt, response, defect)
        if number % max(1, len(pairs) // each) == 0:
            _broken(made, number, rng)
    return made


def _near(prompt: str, rng: random.Random) -> str:
    return rng.choice((f"{prompt} Thanks", f"Hello, {prompt.lower()}", f"{prompt.rstrip('.?!')} por favor!", f"Olá! {prompt}"))


def _broken(made: Messy, number: int, rng: random.Random) -> None:
    """One each of the defects that need no other record."""
    made.row("", "An answer to nothing.", "empty_prompt")
    made.row(f"A question that nobody answered, number {number}?", " \n", "empty_response")
    made.line('{"prompt": "cut of', "malformed")
    made.line(json.dumps({"messages": [{"role": "user", "content": f"hello, is anyone there {number}?"}]}), "unpaired_turn")
    prompt = rng.choice(ACCENTED).format(n=number)
    made.row(prompt.encode().decode("cp1252", "replace"), f"Respondido: caso {number}.")
    if "\ufffd" not in made.lines[-1]:
        made.repaired[len(made.lines)] = prompt


def personal_texts(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(text, kind, value): sentences that hold one value each, in English and Portuguese."""
    rng = random.Random(seed)
    digits = lambda n: "".join(rng.choice("0123456789") for _ in range(n))  # noqa: E731
    letters = lambda n: "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") for _ in range(n))  # noqa: E731
    names = ("ana.silva", "joão.gonçalves", "j_smith+shop", "o'neil", "maria", "x.y-z")
    hosts = ("exemplo.pt", "mail.example.co.uk", "empresa.com.br", "acme.io")

    def checked(base: str, check) -> str:
        return base + check(base)

    def card() -> str:
        number = checked("4" + digits(14), luhn.calc_check_digit)
        return rng.choice(
            (
                number,
                " ".join(number[i : i + 4] for i in range(0, 16, 4)),
                f"{number[:4]}-{number[4:8]}-{number[8:12]}-{number[12:]}",
            )
        )

    def account() -> str:
        country, body = rng.choice((("PT", digits(21)), ("GB", "NWBK" + digits(14)), ("DE", digits(18))))
        number = country + iban.calc_check_digits(f"{country}00{body}") + body
        return rng.choice((number, iban.format(number)))

    def person() -> str:
        number = checked(digits(9), cpf._calc_check_digits)
        company = checked(digits(8) + "0001", cnpj.calc_check_digits)
        tax = checked("2" + digits(7), nif.calc_check_digit)
        social = f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"
        return rng.choice((cpf.format(number), number, cnpj.format(company), f"NIF {tax}", social))

    makers = {
        "email": lambda: f"{rng.choice(names)}@{rng.choice(hosts)}",
        "phone": lambda: rng.choice(
            (
                f"9{rng.choice('1236')}{digits(1)} {digits(3)} {digits(3)}",
                f"+351 21{digits(1)} {digits(3)} {digits(3)}",
                f"(11) 9{rng.randint(6000, 9999)}-{digits(4)}",
                f"+55 11 9{rng.randint(6000, 9999)}-{digits(4)}",
                f"({rng.choice(('415', '212', '312'))}) {rng.randint(220, 899)}-{digits(4)}",
                f"+44 20 7{digits(3)} {digits(4)}",
            )
        ),
        "card": card,
        "iban": account,
        "personal_id": person,
        "ip": lambda: f"{rng.choice((8, 52, 81, 185))}.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}",
        "secret": lambda: (
            rng.choice(
                (f"AKIA{letters(16).upper()}", f"ghp_{letters(36)}", f"password: {letters(9)}7", f"senha é {letters(8)}1")
            )
            + ""
        ),
    }
    frames = (
        "Hello, you can reach me with {} until Friday.",
        "Os meus dados são {}, obrigado.",
        "Customer wrote: {}",
        "O cliente indicou {} no formulário de ontem.",
        "({})",
        "{} is what I was given on 2024-05-12 for order 113542617735902.",
    )
    made = []
    for number in range(count):
        kind = list(makers)[number % len(makers)]
        value = makers[kind]()
        made.append(
            (
                rng.choice(frames).format(value),
                kind,
                value.removeprefix("NIF ").removeprefix("password: ").removeprefix("senha é "),
            )
        )
    return made
