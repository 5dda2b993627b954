"""From figures to words: what to use, and how the mixture stands against each rival.

The choice rests on `dense_active`, the dense adapter of the rank that a route uses, and on every other dense adapter that
costs no more per token than the mixture. A mixture is more machinery, so it has to be shown better than each of them:
where an interval includes 0, the dense adapter is the advice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_router.report.arms import ARMS, Arm, Comparison, Verdict

FAIR_RIVAL = "dense_active"
STANDING = {
    "base": "no adapter",
    "dense_rank": "equal rank",
    "dense_active": "equal active rank",
    "dense_params": "equal memory",
}
"""What a rival holds equal."""
EXPECTED = ("base", "dense_rank", "dense_active", "dense_params", "random_slices", "shuffled_gate")
"""Rivals whose absence is worth a sentence."""


def judge(arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> Verdict:
    """The verdict on one mixture arm, compared with each rival in `comparisons`; every arm named there is in `arms`."""
    measured = {arm.id: arm for arm in arms}
    against = {row.rival: row for row in comparisons}
    use, headline = _choose(measured, against)
    sentences = tuple(sentence(against[name]) for name in ARMS if name in against and name != "oracle")
    remarks = (*_gate(against), *_bound(against), *_cost(measured, against), *_missing(against))
    return Verdict(use, headline, sentences, remarks)


def _choose(arms: Mapping[str, Arm], against: Mapping[str, Comparison]) -> tuple[str, str]:
    fair, base = against.get(FAIR_RIVAL), against.get("base")
    if fair is None:
        return "unknown", f"No verdict: {FAIR_RIVAL}, the dense adapter of the same active rank, was not measured."
    if base is not None and base.outcome != "better" and arms["base"].perplexity <= arms[FAIR_RIVAL].perplexity:
        return "base", "Use the base as it is here: neither the mixture nor the dense adapter is shown to improve on it."
    dense = [row for name, row in against.items() if ARMS[name].group == "dense"]
    level = [row for row in dense if row is fair or _run_ratio(arms, row) >= 1]
    lost = [row for row in level if row.outcome != "better"]
    if lost:
        row = max(lost, key=lambda row: (row.outcome == "worse", row.relative))
        found = f"the mixture's perplexity is {amount(row)}" if row.outcome == "worse" else "no difference is shown"
        simpler = "" if row.outcome == "worse" else "; one adapter is simpler to run"
        return "dense", f"Use the dense adapter here ({row.rival}): {found}, {_price(arms, row)}{simpler}."
    headline = (
        f"Use the mixture here: its perplexity is {amount(fair)} than that of the dense adapter of the same active rank, "
        f"{_price(arms, fair)}."
    )
    memory = against.get("dense_params")
    if memory is not None and memory.outcome != "better":
        found = "no difference is shown" if memory.outcome == "open" else f"it is {amount(memory)}"
        headline += f" Against a dense adapter with as many parameters, {found}, {_price(arms, memory)}."
    return "mixture", headline


def _run_ratio(arms: Mapping[str, Arm], row: Comparison) -> float:
    return arms[row.arm].flops_per_token / arms[row.rival].flops_per_token


def _price(arms: Mapping[str, Arm], row: Comparison) -> str:
    """What the mixture costs per token beside the rival: `at 1.20 times its FLOPs per token`."""
    ratio = f"{_run_ratio(arms, row):.2f}"
    return "at equal FLOPs per token" if ratio == "1.00" else f"at {ratio} times its FLOPs per token"


def sentence(row: Comparison) -> str:
    """One comparison in words, with its interval and p-value."""
    kept = f", {STANDING[row.rival]}" if row.rival in STANDING else ""
    found = f"perplexity {amount(row)}" if row.outcome != "open" else f"no difference shown ({amount(row)})"
    rival = f"{row.rival} ({ARMS[row.rival].label}{kept})"
    return f"{row.arm} against {rival}: {found}, 95 % interval {interval(row)}, {p_value(row)}."


def amount(row: Comparison) -> str:
    """`3.1 % lower` or `0.4 % higher`."""
    return f"{abs(row.relative) * 100:.1f} % {'lower' if row.relative < 0 else 'higher'}"


def interval(row: Comparison) -> str:
    """`-5.0 % to -1.2 %`."""
    return " to ".join(f"{edge * 100:+.{1 if abs(edge) >= 0.0005 else 3}f} %" for edge in row.ci95)


def p_value(row: Comparison) -> str:
    """`p = 0.012`, or a bound where it is smaller than three digits show."""
    return f"p = {row.p:.3f}" if row.p >= 0.0005 else "p < 0.001"


def _gate(against: Mapping[str, Comparison]) -> list[str]:
    """What the trained gate adds to the experts it chooses among."""
    simpler = [n for n in against if ARMS[n].group == "choice" and against[n].outcome != "better"]
    found = [f"The trained gate is not shown to choose better than {name} ({ARMS[name].explanation})." for name in simpler]
    if "shuffled_gate" in against and against["shuffled_gate"].outcome != "better":
        found.append("Routes dealt to other queries do as well: here it does not matter which expert answers.")
    if "random_slices" in against and against["random_slices"].outcome != "better":
        found.append("Experts on random slices do as well: here the slicing adds nothing.")
    return found


def _bound(against: Mapping[str, Comparison]) -> list[str]:
    row = against.get("oracle")
    return (
        []
        if row is None
        else [f"{row.arm}'s perplexity is {amount(row)} than the oracle's, which knows each record's best expert."]
    )


def _cost(arms: Mapping[str, Arm], against: Mapping[str, Comparison]) -> list[str]:
    row = against.get(FAIR_RIVAL)
    if row is None:
        return []
    ours, rival = arms[row.arm], arms[row.rival]
    train = f"; training took {ours.train_flops / rival.train_flops:.2f} times the FLOPs" if rival.train_flops else ""
    run = _run_ratio(arms, row)
    return [f"{row.arm} executes {run:.2f} times the FLOPs per token of {row.rival}, gate and embedder included{train}."]


def _missing(against: Mapping[str, Comparison]) -> list[str]:
    absent = [name for name in EXPECTED if name not in against]
    return [f"Not compared: {', '.join(absent)}."] if absent else []
