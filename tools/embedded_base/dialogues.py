"""Chats written by this project: support dialogues, and the facts of invented companies asked and answered."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tools.embedded_base.pairs import FORMATS

INTENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "order": (
        ("cancel my order", "change an order", "track my order", "see what I ordered", "add an item to my order", "remove an item",
         "find out where my package is", "buy several items", "repeat my last order"),
        ("Sign in to your account", "Open the order history", "Choose the order in question", "Look for the button at the top of the page",
         "Confirm the change when you are asked", "Check your inbox for a message with the new details",
         "Note the order number before you go on", "Make sure that the parcel has not been shipped yet"),
    ),
    "account": (
        ("open an account", "delete my account", "switch to another account", "edit my personal details", "recover my password",
         "update my profile", "change my email address", "register as a new user", "unlock my account"),
        ("Go to our website and find the profile menu", "Select the settings page", "Enter the information that is asked for",
         "Choose a strong password that you use nowhere else", "Click the link in the email we send you", "Save the changes",
         "Sign out and in again to see the new settings", "Keep a copy of your recovery code"),
    ),
    "payment": (
        ("pay my bill", "report a problem with a payment", "see which payment methods are accepted", "change my bank card",
         "find out why my payment failed", "pay in instalments", "set up a direct debit"),
        ("Open the billing section", "Check that the card has not expired", "Compare the amount with your invoice",
         "Try another way of paying", "Ask your bank whether the charge was blocked", "Write down the error message you see",
         "Select the method that suits you", "Wait for the confirmation on the screen"),
    ),
    "refund": (
        ("get my money back", "check the status of a refund", "ask for compensation", "return a product", "see the refund policy",
         "be reimbursed for a trip", "exchange a defective item"),
        ("Find the receipt or the order number", "Fill in the return form", "Describe what is wrong with the item",
         "Pack the product in its original box", "Send it back with the label that we provide",
         "Allow a few working days for the inspection", "Look out for a message once the refund has been made"),
    ),
    "invoice": (
        ("download an invoice", "find my bill from last month", "correct the address on an invoice", "get a copy of a receipt",
         "send an invoice to our accountant"),
        ("Log in to the customer portal", "Open the list of documents", "Filter by date or by number", "Select the document you need",
         "Download it as a file or print it", "Tell us if any of the figures look wrong"),
    ),
    "delivery": (
        ("set a delivery address", "know when my order arrives", "choose the delivery date", "see the delivery options",
         "ship to another country", "report a lost package"),
        ("Go to the shipping page", "Enter the postal code", "Choose between standard and express delivery",
         "Add a note for the driver if you like", "Follow the tracking link", "Call the carrier if nothing has moved for some days"),
    ),
    "contact": (
        ("speak to a person", "contact customer service", "make a complaint", "leave a review", "know your opening hours",
         "call the help desk"),
        ("Use the chat on our website at any time", "Call the free number during working hours", "Write to the support address",
         "Keep your customer number at hand", "Explain in a few words what happened", "Ask for a reference number"),
    ),
    "subscription": (
        ("sign up for the newsletter", "cancel my subscription", "see the cancellation fee", "upgrade my plan", "pause my membership"),
        ("Open the page with your plan", "Read the terms that apply", "Choose the option to change or to end it",
         "Confirm your choice", "Keep the message that we send you as proof", "Remember that the change starts with the next period"),
    ),
    "leave": (
        ("take a day off", "book my holidays", "report that I am sick", "take parental leave", "see how much leave I have left"),
        ("Talk to your manager first", "Open the calendar of your team", "Enter the first and the last day",
         "Attach the certificate if you have one", "Submit the request for approval", "Hand over urgent work to a colleague"),
    ),
    "expenses": (
        ("claim my travel expenses", "book a flight", "get a company card", "be paid back for a meal", "register a business trip"),
        ("Collect all the receipts", "Take a photo of each of them", "Create a new expense report", "Choose the right cost centre",
         "Explain the reason of the trip", "Submit the report before the end of the month", "Wait until finance has checked it"),
    ),
    "computer": (
        ("connect to the network from home", "install new software", "set up a printer", "reset my laptop", "share a folder",
         "get a second screen", "report a suspicious email", "recover a deleted file"),
        ("Restart the device", "Check that you are connected", "Open the settings", "Run the installation as described",
         "Enter your user name and the code from your phone", "Open a ticket if the error comes back",
         "Never give your password to anybody", "Ask the help desk for the necessary permission"),
    ),
    "purchase": (
        ("order office supplies", "add a new supplier", "approve a purchase", "compare offers", "have a contract checked"),
        ("Describe what is needed and why", "Ask for at least two offers", "Enter the request in the purchasing system",
         "Attach the documents of the supplier", "Wait for the approval of the budget owner",
         "Check the goods when they arrive", "Release the invoice for payment"),
    ),
    "hiring": (
        ("propose a candidate", "open a new position", "prepare a first day at work", "plan an interview", "extend a contract"),
        ("Write a short description of the role", "Agree on the salary range with your manager", "Publish the offer",
         "Invite the candidates who fit best", "Collect feedback from everyone involved", "Order the equipment in good time",
         "Name a colleague who helps during the first weeks"),
    ),
    "warranty": (
        ("have a device repaired", "find out whether my warranty is still valid", "order a spare part", "register my product"),
        ("Find the serial number on the back of the device", "Check the date of purchase", "Describe the fault as precisely as you can",
         "Send us a picture of the damage", "Bring the device to the nearest service point", "Back up your data before you send it in"),
    ),
}  # fmt: skip
"""Of each area: what people want to do, and the steps that answers draw on."""

WANTED = (
    "how do I {g}?", "I want to {g}", "I need to {g}", "can you help me {g}?", "help me to {g} please", "where can I {g}?", "I'd like to {g}",
    "what do I have to do to {g}?", "could you show me how to {g}?", "is it possible to {g}?", "I don't know how to {g}", "hello, I would like to {g}",
    "please, I need assistance to {g}", "I have problems trying to {g}", "what is the easiest way to {g}?", "I have to {g}, can you assist?",
)  # fmt: skip
OPENINGS = (
    "Thank you for getting in touch.", "I'm happy to help you {g}.", "Of course, I can help you {g}.", "I understand that you want to {g}.",
    "I'm sorry for the trouble.", "That's a good question.", "I see that you would like to {g}.", "Sure, let's take care of it together.",
    "I appreciate that you reached out to us about this.", "I know how important it is to be able to {g}.", "Don't worry, it takes only a few minutes.",
    "We are aware that it can be frustrating when things don't work as expected.", "You have come to the right place.", "Absolutely!",
    "I completely understand your concern.", "It's great that you want to {g}.",
)  # fmt: skip
LEADS = (
    "Here is what to do:", "Please follow these steps:", "To {g}, do the following:", "These are the steps:", "This is how it works:",
    "The process is simple:", "To get started:",
)  # fmt: skip
CLOSINGS = (
    "If you have any other questions, please let me know.", "If something is unclear, our team is here to help.", "Is there anything else I can do for you?",
    "Please contact us at {{Support Phone Number}} if you need further assistance.", "You can also reach us through {{Website URL}}.",
    "Thank you for your patience.", "We look forward to hearing from you.", "Your satisfaction is important to us.",
    "Should the problem continue, write to {{Support Email}} and mention {{Order Number}}.", "Let me know how it goes.",
    "Our agents are available during {{Opening Hours}}.", "I hope that this helps.",
)  # fmt: skip
FOLLOW_UPS = (
    ("how long does it take?", ("It usually takes {n} working days.", "In most cases it is done within {n} hours.", "Please allow up to {n} days.")),
    ("is there a fee?", ("No, it is free of charge.", "There is a fee of {n} euros.", "It costs {n} dollars, which will be added to your bill.")),
    ("it does not work", ("I'm sorry to hear that. Please try again in {n} minutes, and send us the message that you see.",
                          "I apologise for the inconvenience. I have opened a ticket with the number {n}{n} for you.")),
    ("thanks a lot", ("You're welcome! Have a nice day.", "It was a pleasure to help you.", "Any time.")),
    ("who can approve it?", ("Your manager can approve it.", "{name} from the office approves it.", "Please ask {name}.")),
    ("can I do it by phone?", ("Yes, call us on {{Support Phone Number}}.", "Unfortunately, this is only possible online.")),
)  # fmt: skip

FIRST = (
    "Ada",
    "Bruno",
    "Carla",
    "Diego",
    "Elena",
    "Felix",
    "Gloria",
    "Hugo",
    "Irene",
    "Jonas",
    "Karin",
    "Lucas",
    "Maria",
    "Nadia",
    "Olga",
    "Paulo",
    "Rita",
    "Samuel",
    "Teresa",
    "Victor",
)
LAST = (
    "Almeida",
    "Becker",
    "Castro",
    "Duarte",
    "Ellis",
    "Ferreira",
    "Grant",
    "Hansen",
    "Ivanov",
    "Jensen",
    "Klein",
    "Lopes",
    "Marsh",
    "Nunes",
    "Ortega",
    "Pereira",
    "Quinn",
    "Rocha",
)
PLACES = (
    "Lisbon",
    "Porto",
    "Berlin",
    "Madrid",
    "Leeds",
    "Oslo",
    "Milan",
    "Dublin",
    "Boston",
    "Denver",
    "Recife",
    "Geneva",
    "Vienna",
    "Prague",
    "Austin",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
SUBJECTS = (
    "the travel desk", "parking", "the canteen", "the main store", "guest access", "the archive", "repairs", "the training room", "car rental",
    "the newsletter", "the first-aid course", "the loading dock", "annual reviews", "the call centre", "data backups", "the spare keys",
    "the reception", "customer samples", "the safety briefing", "the web shop", "the night shift", "price lists", "test devices", "the gym",
    "the warehouse", "office plants", "the coffee machine", "the press office", "internal audits", "the mail room",
)  # fmt: skip
FACTS: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("Who is in charge of {s}?", "Who runs {s}?", "Which colleague knows about {s}?"),
     ("{v} is in charge of {s}.", "Please talk to {v} about {s}.", "That would be {v}."), "name"),
    (("What does {s} cost?", "What is the price for {s}?", "How expensive is {s}?"),
     ("{s} costs {v}.", "The price for {s} is {v}.", "You pay {v} for {s}."), "money"),
    (("When is {s} open?", "On which day can I use {s}?", "When can I get to {s}?"),
     ("{s} is open on {v}.", "You can come on {v}.", "It is available every {v}."), "time"),
    (("How long is the wait for {s}?", "How much notice does {s} need?", "How early must I ask for {s}?"),
     ("Plan {v} for {s}.", "{s} needs a notice of {v}.", "It takes {v}."), "period"),
    (("What is the extension of {s}?", "Which number do I dial for {s}?", "How can I reach {s} by phone?"),
     ("The extension of {s} is {v}.", "Dial {v} for {s}.", "You reach {s} at {v}."), "number"),
    (("Where is {s}?", "In which city is {s}?", "Where do I find {s}?"),
     ("{s} is in {v}.", "You find {s} in {v}.", "It is located in {v}."), "place"),
    (("How many people use {s}?", "How many places does {s} have?", "What is the capacity of {s}?"),
     ("{s} is made for {v} people.", "There is room for {v} people.", "{v} people at most."), "count"),
)  # fmt: skip


def support(count: int, seed: int) -> Iterator[str]:
    """Support dialogues of one to three turns, with steps drawn from the area of the first question."""
    draw = random.Random(f"support {seed}")
    for _ in range(count):
        goals, steps = INTENTS[draw.choice(sorted(INTENTS))]
        goal = draw.choice(goals)
        turns = [(_typo(_say(draw.choice(WANTED), goal, draw), draw), _answer(goal, steps, draw))]
        for asked, replies in draw.sample(FOLLOW_UPS, draw.choice((0, 0, 0, 1, 2))):
            reply = draw.choice(replies).replace("{name}", _name(draw)).replace("{n}", str(draw.randint(2, 30)))
            turns.append((asked, reply))
        yield _chat(turns, draw)


def facts(count: int, seed: int) -> Iterator[str]:
    """Questions about the facts of invented companies; half of the chats open with the notes that hold the answers."""
    draw = random.Random(f"facts {seed}")
    for _ in range(count):
        known = []
        for subject in draw.sample(SUBJECTS, draw.randint(3, 6)):
            asked, answered, kind = draw.choice(FACTS)
            known.append((subject, asked, answered, _value(kind, draw)))
        stated = [_sentence(answers[0].format(s=subject, v=value)) for subject, _, answers, value in known]
        turns = [
            (draw.choice(asked).format(s=subject), _sentence(draw.choice(answers).format(s=subject, v=value)))
            for subject, asked, answers, value in draw.sample(known, draw.randint(1, len(known)))
        ]
        notes = " ".join(stated) + "\n" if draw.random() < 0.5 else ""
        yield notes + _chat(turns, draw)


def _answer(goal: str, steps: tuple[str, ...], draw: random.Random) -> str:
    chosen = draw.sample(steps, draw.randint(3, min(6, len(steps))))
    opening = " ".join(_say(text, goal, draw) for text in draw.sample(OPENINGS, draw.choice((1, 1, 2))))
    closing = " ".join(draw.sample(CLOSINGS, draw.choice((0, 1, 1, 2))))
    style = draw.random()
    if style < 0.55:
        body = (
            _say(draw.choice(LEADS), goal, draw)
            + "\n\n"
            + "\n".join(f"{i}. {step}." for i, step in enumerate(chosen, 1))
            + "\n\n"
        )
    elif style < 0.7:
        body = _say(draw.choice(LEADS), goal, draw) + "\n\n" + "\n".join(f"- {step}" for step in chosen) + "\n\n"
    else:
        words = ("First, ", "Then ", "After that, ", "Next, ", "Also, ", "Finally, ")
        body = " ".join(word + step[0].lower() + step[1:] + "." for word, step in zip(words, chosen, strict=False)) + " "
    return f"{opening} {body}{closing}".strip()


def _say(text: str, goal: str, draw: random.Random) -> str:
    return text.replace("{g}", goal if text.endswith("?") and draw.random() < 0.9 else goal.replace("my ", "your "))


def _typo(text: str, draw: random.Random) -> str:
    """Often without its final mark or its capital, seldom with two letters swapped."""
    if draw.random() < 0.3:
        text = text.rstrip("?")
    if draw.random() < 0.08 and len(text) > 12:
        at = draw.randrange(4, len(text) - 4)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text if draw.random() < 0.5 else text[0].upper() + text[1:]


def _chat(turns: list[tuple[str, str]], draw: random.Random) -> str:
    shape = draw.choices([form for form, _ in FORMATS], [weight for _, weight in FORMATS])[0]
    return "\n".join(shape.replace("{q}", question).replace("{a}", answer) for question, answer in turns)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _name(draw: random.Random) -> str:
    return f"{draw.choice(FIRST)} {draw.choice(LAST)}"


def _value(kind: str, draw: random.Random) -> str:
    number = draw.randint(2, 95)
    values = {
        "name": _name(draw),
        "money": f"{number * draw.choice((1, 5, 10))} {draw.choice(('euros', 'dollars', 'pounds'))}",
        "time": f"{draw.choice(DAYS)} from {draw.randint(7, 11)} to {draw.randint(12, 18)}",
        "period": f"{number} {draw.choice(('days', 'hours', 'weeks'))}",
        "number": str(draw.randint(1000, 9999)),
        "place": f"{draw.choice(PLACES)}, room {number}",
        "count": str(number),
    }
    return values[kind]
