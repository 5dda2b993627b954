"""From figures to words: what to use, and how the mixture stands against each rival.

The choice rests on `dense_active`, the dense adapter of the rank that a route uses, and on every other dense adapter that
costs no more FLOPs per token and no more memory than the mixture. A mixture is more machinery, so it has to be shown better
than each of them: where an interval includes 0, the dense adapter is the advice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_router.report.analysis import FAIR_RIVAL
from moe_router.report.arms import ARMS, Arm, Comparison, Regret, SliceRow, Verdict
from moe_router.report.words import amount, interval, level, p_value

EXPECTED = ("base", "dense_rank", "dense_active", "dense_params", "random_slices", "shuffled_gate")
"""Rivals whose absence is worth a sentence."""
LEVEL = 0.05
ALONE = "There is nothing to mix: the library has one expert, which is a dense adapter already."
PLAINER = {
    "gate_top1": "`--gate-mode top1` uses one expert per query",
    "shared_only": "`--k 1` trains one adapter for everything",
}
LUCK = (
    "Do not use a mixture here; use one dense adapter ({}{}): the mixture's lead is no larger than what another training seed "
    "changes; one adapter is simpler to run."
)


def judge(
    arms: Sequence[Arm],
    comparisons: Sequence[Comparison],
    slices: Sequence[SliceRow] = (),
    regret: Regret | None = None,
    experts: int = 2,
) -> Verdict:
    """The verdict on one mixture arm, compared with each rival in `comparisons`; every arm named there is in `arms`.

    A library of one expert is a dense adapter, whatever the figures.
    """
    if experts == 1:
        return Verdict("dense", ALONE)
    measured = {arm.id: arm for arm in arms}
    against = {row.rival: row for row in comparisons}
    use, chosen, headline = _choose(measured, against)
    if use == "mixture" and _lucky(measured[chosen], measured[FAIR_RIVAL]):
        use, chosen, headline = "dense", FAIR_RIVAL, LUCK.format(FAIR_RIVAL, _rank(measured[FAIR_RIVAL]))
    sentences = tuple(sentence(against[name]) for name in ARMS if name in against and ARMS[name].equal)
    remarks = (
        *_seeds(use, measured),
        *_by_slice(slices),
        *_regret(regret),
        *_gate(against),
        *_bound(against),
        *_cost(measured, against),
        *_larger(measured, against),
        *_missing(against),
    )
    return Verdict(use, headline, sentences, remarks, _instead(use, measured.get(chosen), measured, against))


def _choose(arms: Mapping[str, Arm], against: Mapping[str, Comparison]) -> tuple[str, str, str]:
    """What to use, the arm that is, and the headline."""
    fair, base = against.get(FAIR_RIVAL), against.get("base")
    if fair is None:
        return "unknown", "", f"No verdict: {FAIR_RIVAL}, the dense adapter of the same active rank, was not measured."
    if base is not None and base.outcome != "better" and arms["base"].perplexity <= arms[FAIR_RIVAL].perplexity:
        reason = "neither the mixture nor the dense adapter is shown to improve on it"
        return "base", "base", f"Do not use a mixture here; use the base as it is: {reason}."
    dense = [row for name, row in against.items() if ARMS[name].group == "dense" and not ARMS[name].apart]
    level = [row for row in dense if row is fair or _costs_no_more(arms[row.rival], arms[row.arm])]
    lost = [row for row in level if row.outcome != "better"]
    if lost:
        row = max(lost, key=lambda row: (row.outcome == "worse", row.relative))
        found = (
            f"the mixture's perplexity is {amount(row)}" if row.outcome == "worse" else "the mixture is not shown to be better"
        )
        simpler = "" if row.outcome == "worse" else "; one adapter is simpler to run"
        one = f"use one dense adapter ({row.rival}{_rank(arms[row.rival])})"
        return "dense", row.rival, f"Do not use a mixture here; {one}: {found}, {_price(arms, row)}{simpler}."
    headline = (
        f"Use the mixture here: its perplexity is {amount(fair)} than that of the dense adapter of the same active rank, "
        f"{_price(arms, fair)}."
    )
    memory = against.get("dense_params")
    if memory is not None and memory.outcome != "better":
        found = "no difference is shown" if memory.outcome == "open" else f"it is {amount(memory)}"
        headline += f" Against a dense adapter with as many parameters, {found}, {_price(arms, memory)}."
    return "mixture", fair.arm, headline


def _rank(arm: Arm) -> str:
    return "" if arm.rank is None else f", rank {arm.rank}"


def _lucky(mixture: Arm, rival: Arm) -> bool:
    """Whether some seed of the rival does as well as some seed of the mixture."""
    levels = [(arm.perplexity, *arm.repeats) for arm in (mixture, rival)]
    return bool(mixture.repeats and rival.repeats) and max(levels[0]) >= min(levels[1])


def _seeds(use: str, arms: Mapping[str, Arm]) -> list[str]:
    """What training again changed, or that nobody looked."""
    found = [arm for arm in arms.values() if arm.repeats]
    spread = [f"{arm.id} {', '.join(level(value) for value in (arm.perplexity, *arm.repeats))}" for arm in found]
    if spread:
        return [f"Perplexity under {len(found[0].repeats) + 1} training seeds: {'; '.join(spread)}."]
    return ["One training seed: part of the lead may be luck; `moe-router report --seeds 3` tells."] if use == "mixture" else []


def _instead(use: str, arm: Arm | None, arms: Mapping[str, Arm], against: Mapping[str, Comparison]) -> str:
    """The settings of what the verdict recommends, where they are not those of the workspace."""
    if use == "mixture":
        return _simpler(arms, against)
    if use == "base":
        return "Keep the base without adapters, or bring more data, or train longer (experts.epochs)."
    if use != "dense" or arm is None or arm.rank is None:
        return ""
    rate = "" if arm.learning_rate is None else f" --learning-rate {arm.learning_rate:g}"
    kind = ARMS[arm.id].training
    base = " --quantization none" if kind is not None and kind.base == "16-bit" else ""
    settings = f"--k 1 --experts-mode isolated --rank {arm.rank}{rate} --no-search-rates{base}"
    return f"`moe-router build SOURCE {settings}` trains that adapter; the one measured here is in reports/arms/{arm.id}."


def _simpler(arms: Mapping[str, Arm], against: Mapping[str, Comparison]) -> str:
    """A plainer way of choosing that is not shown to be worse and costs no more: the cheapest of them."""
    found = [
        arms[name]
        for name in PLAINER
        if name in against and against[name].outcome != "better" and _run_ratio(arms, against[name]) >= 1
    ]
    if not found:
        return ""
    arm = min(found, key=lambda arm: arm.flops_per_token)
    ratio = arm.flops_per_token / arms[against[arm.id].arm].flops_per_token
    return f"{PLAINER[arm.id]}: no difference to the mixture of two is shown, at {ratio:.2f} times its FLOPs per token."


def _larger(arms: Mapping[str, Arm], against: Mapping[str, Comparison]) -> list[str]:
    """What the mixture is worth beside more base: the claim of the mixture-of-experts literature, put to the test."""
    row = against.get("larger_base")
    if row is None:
        return []
    rival, ours = arms["larger_base"], arms[row.arm]
    flops = ours.flops_per_token / rival.flops_per_token
    memory = ""
    if ours.memory_bytes and rival.memory_bytes:
        memory = f" and {ours.memory_bytes / rival.memory_bytes:.2f} times the memory"
    return [
        f"With {flops:.2f} times the FLOPs per token{memory}, the mixture's perplexity is "
        f"{amount(row)} than that of a dense adapter on the larger base (per token of the same tokenizer)."
    ]


def _costs_no_more(rival: Arm, mixture: Arm) -> bool:
    """Whether a rival needs neither more FLOPs per token nor more memory, where that is known."""
    memory = [arm.memory_bytes or 0.0 for arm in (rival, mixture)]
    return rival.flops_per_token <= mixture.flops_per_token and (0 in memory or memory[0] <= memory[1])


def _run_ratio(arms: Mapping[str, Arm], row: Comparison) -> float:
    return arms[row.arm].flops_per_token / arms[row.rival].flops_per_token


def _price(arms: Mapping[str, Arm], row: Comparison) -> str:
    """What the mixture costs per token beside the rival: `at 1.20 times its FLOPs per token`."""
    ratio = f"{_run_ratio(arms, row):.2f}"
    return "at equal FLOPs per token" if ratio == "1.00" else f"at {ratio} times its FLOPs per token"


def sentence(row: Comparison) -> str:
    """One comparison in words, with its interval and p-value."""
    rival = ARMS[row.rival]
    equal = f", {rival.equal}" if rival.equal else ""
    found = f"perplexity {amount(row)}" if row.outcome != "open" else f"no difference shown ({amount(row)})"
    return f"{row.arm} against {row.rival} ({rival.label}{equal}): {found}, 95 % interval {interval(row)}, {p_value(row)}."


def _by_slice(slices: Sequence[SliceRow]) -> list[str]:
    """Where the mixture loses and wins against its fair rival; the level is shared out among the slices (Bonferroni)."""
    rows = [row for row in slices if row.against is not None]
    shown = [row for row in rows if row.against.p * len(rows) < LEVEL]
    lost = [f"{row.name} ({amount(row.against)})" for row in shown if row.against.relative > 0]
    won = [f"{row.name} ({amount(row.against)})" for row in shown if row.against.relative < 0]
    found = [f"The mixture loses to {FAIR_RIVAL} on {', '.join(lost)}."] if lost else []
    found += [f"The mixture beats {FAIR_RIVAL} on {', '.join(won)}."] if won else []
    if rows and not shown:
        found.append(f"On no single slice a difference to {FAIR_RIVAL} is shown, {len(rows)} slices tested at once.")
    return found


def _regret(split: Regret | None) -> list[str]:
    """Which part is to blame for the distance from the fair rival, or to be thanked."""
    if split is None:
        return []
    if split.total <= 0:
        who = "The mixture's lead"
    elif split.experts >= split.gate:
        who = "The experts, more than the gate, are why the mixture is behind: its distance"
    else:
        who = "The gate, more than the experts, is why the mixture is behind: its distance"
    return [
        f"{who} of {split.total:+.4f} nats per token to {split.rival} is {split.gate:+.4f} for the gate's choices (against the "
        f"oracle, {_nats(split.gate_ci95)}) and {split.experts:+.4f} for the experts (oracle against {split.rival}, "
        f"{_nats(split.experts_ci95)})."
    ]


def _nats(ci95: tuple[float, float]) -> str:
    return f"95 % interval {ci95[0]:+.4f} to {ci95[1]:+.4f}"


def _gate(against: Mapping[str, Comparison]) -> list[str]:
    """What the trained gate adds to the experts it chooses among."""
    simpler = [n for n in against if ARMS[n].group == "choice" and against[n].outcome != "better"]
    found = [f"The trained gate is not shown to choose better than {', '.join(simpler)}."] if simpler else []
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
