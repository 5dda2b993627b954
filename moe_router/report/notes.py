"""What a report did not test, and what limits its figures, in words that follow from how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_router.report.arms import ARMS, Arm
from moe_router.report.bench import Bench
from moe_router.report.full import LARGEST
from moe_router.report.registry import arms_of

NEVER = "Not tested: people's judgement of the answers (`moe-router blind`)."


def notes_of(bench: Bench, arms: Sequence[Arm]) -> Iterator[str]:
    """One line for each limit."""
    if bench.config.experts.search_rates:
        yield "The learning rate of every trained arm was searched on the tune split with at most 10 % of the training tokens."
    else:
        yield "Learning rates were set, not searched, for this data."
    seeds = bench.config.report.seeds
    if seeds == 1:
        yield "One training seed: intervals cover the choice of test records, not the luck of training (`--seeds 3` shows it)."
    else:
        yield f"The mixture and its fair rival were trained with {seeds} seeds, others with one; intervals are of the first."
    yield "Mixture arms are measured without abstention."
    measured = {arm.id for arm in arms}
    left = [name for name in arms_of("full", bench.library) if name not in measured]
    if bench.shape.params > LARGEST and "full" in left:
        left.remove("full")
        yield "Full fine-tuning was not measured: the base is too large for a report to train whole."
    if bench.library.base.quantization == "gptq":
        yield "Neither full fine-tuning nor an adapter on 16 bits was measured: a GPTQ checkpoint holds only rounded weights."
    if left:
        wider = "full" if any(ARMS[name].budget == "full" for name in left) else "standard"
        yield f"Not measured in this budget: {', '.join(left)}. `moe-router report --budget {wider}` adds them."
    yield NEVER
    if "larger_base" not in measured:
        yield "No larger base was compared: `--larger-base` names one (a folder or hub id)."
    if not bench.library.has_shared:
        yield "The library has no shared expert, so there is no arm of it alone."
    yield "Speeds are of this machine while it made the report; FLOPs do not depend on it."
