"""How the sample company's people ask and answer; `{t}` is a name of the topic, `{v}` the fact's value."""

ASKED: dict[str, tuple[str, ...]] = {
    "days": (
        "How many days are there for {t}?", "What is the time limit for {t}?", "How long do I have for {t}?",
        "Time limit for {t}?", "Hi, how long is allowed for {t}?", "Can you tell me the deadline for {t}?",
        "{t}: how many days?", "I need the number of days for {t}.", "Please tell me how long we allow for {t}.",
        "Quick question, how many days for {t}?", "Do you know the limit in days for {t}?",
        "What is our rule on days for {t}?", "How much time is there for {t}?", "Days for {t}, please?",
    ),
    "who": (
        "Who approves {t}?", "Who do I ask about {t}?", "Whose approval is needed for {t}?", "Who signs off {t}?",
        "{t}: who is the contact?", "Hi, who handles {t}?", "Can you tell me who approves {t}?",
        "I need the person in charge of {t}.", "Who is responsible for {t}?", "Quick question, who looks after {t}?",
        "Do you know who signs for {t}?", "Please tell me who is in charge of {t}.", "Which manager has {t}?",
        "Contact for {t}, please?",
    ),
    "limit": (
        "What is the limit in euros for {t}?", "How much money is allowed for {t}?", "How many euros for {t}?",
        "{t}: what is the maximum amount?", "Hi, what amount applies to {t}?", "Can you tell me the limit for {t}?",
        "I need the maximum amount for {t}.", "Up to what amount can I go for {t}?", "Quick question, how much for {t}?",
        "Do you know the amount set for {t}?", "Please tell me the euro limit for {t}.", "What is the cap on {t}?",
        "Is there a maximum in euros for {t}?", "Amount for {t}, please?",
    ),
    "when": (
        "When is the slot for {t}?", "What day and time is set for {t}?", "{t}: when?", "Hi, when do we plan {t}?",
        "Can you tell me the time for {t}?", "I need the day and hour for {t}.", "At what time do we plan {t}?",
        "Quick question, when is the time for {t}?", "Do you know the weekly time for {t}?",
        "Please tell me when we plan {t}.", "Which day is set for {t}?", "What is the weekly slot for {t}?",
        "When in the week do I plan {t}?", "Day and time for {t}, please?",
    ),
    "where": (
        "Where do I go for {t}?", "Which room handles {t}?", "{t}: which room?", "Hi, where is the desk for {t}?",
        "Can you tell me the room for {t}?", "I need the room number for {t}.", "Where do we handle {t}?",
        "Quick question, which desk has {t}?", "Do you know the place for {t}?", "Please tell me where to go for {t}.",
        "What room should I use for {t}?", "Where in the building do we deal with {t}?", "Where can I find the desk for {t}?",
        "Room for {t}, please?",
    ),
    "form": (
        "Which form do I need for {t}?", "What form is used for {t}?", "{t}: which form?",
        "Hi, what do I fill in for {t}?", "Can you tell me the form for {t}?", "I need the form number for {t}.",
        "What paperwork goes with {t}?", "Quick question, which form for {t}?", "Do you know the form for {t}?",
        "Please tell me the right form for {t}.", "Which number does the form for {t} have?", "What do I file for {t}?",
        "Is there a form for {t}?", "Form for {t}, please?",
    ),
    "system": (
        "Which system do we use for {t}?", "What tool handles {t}?", "{t}: which system?",
        "Hi, where do I enter {t}?", "Can you tell me the system for {t}?", "I need the name of the tool for {t}.",
        "In which tool do I find {t}?", "Quick question, which tool for {t}?", "Do you know the system behind {t}?",
        "Please tell me which software we use for {t}.", "What is the app for {t} called?", "Which program keeps {t}?",
        "Where do I log in for {t}?", "System for {t}, please?",
    ),
}  # fmt: skip
"""Questions whose records may train."""

ASKED_LATER: dict[str, tuple[str, str, str]] = {
    "days": (
        "How many days do we give people for {t}?",
        "After how many days is it too late for {t}?",
        "What deadline applies to {t}?",
    ),
    "who": (
        "Which colleague decides on {t}?",
        "Whose signature do I need for {t}?",
        "Who can say yes to {t}?",
    ),
    "limit": (
        "How many euros can we spend on {t}?",
        "What is the highest amount for {t}?",
        "How high can I go in euros with {t}?",
    ),
    "when": (
        "On what day and hour do we plan {t}?",
        "What is the usual day and hour for {t}?",
        "When should I come for {t}?",
    ),
    "where": (
        "To which room do I go with {t}?",
        "What is the room number of the desk for {t}?",
        "Where should I come for {t}?",
    ),
    "form": (
        "What form should I send in for {t}?",
        "Which form must be filled in for {t}?",
        "What is the number of the form for {t}?",
    ),
    "system": (
        "Which tool should I open for {t}?",
        "What name does the tool for {t} have?",
        "What software is there for {t}?",
    ),
}
"""Wordings kept for later: the first two for the test split alone, the third for tune and gate."""

ANSWERED: dict[str, tuple[str, str]] = {
    "days": ("The limit for {t} is {v}.", "For {t} you have {v}."),
    "who": ("The contact for {t} is {v}.", "For {t}, ask {v}."),
    "limit": ("The maximum for {t} is {v}.", "For {t} the maximum is {v}."),
    "when": ("The time for {t} is {v}.", "For {t} the time is {v}."),
    "where": ("The place for {t} is {v}.", "For {t}, go to {v}."),
    "form": ("The paper for {t} is {v}.", "For {t}, fill in {v}."),
    "system": ("The tool for {t} is {v}.", "For {t} we use {v}."),
}
