"""Every arm of the report in one table: what it is, whose adapters it uses, and how it mixes them.

Adding an arm is one entry in ARMS; measuring, costs, comparison, verdict and figures follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_router.errors import ConfigError
from moe_router.report import mixes
from moe_router.report.mixes import Mixer

if TYPE_CHECKING:
    from moe_router.experts.library import Library

BUDGETS = ("quick", "standard", "full")
"""Each takes in the arms of those before it."""
MIXTURE = "gate_top2"
"""The arm that stands for the product; every rival is compared with it."""


@dataclass(frozen=True)
class Training:
    """Adapters that an arm trains for itself, on the library's records, tokens and recipe."""

    rank: Callable[[Library], int]
    """Of each adapter."""
    split: str = "one"
    """`one` adapter for all records, `slices` as the library has them, or slices of the same sizes drawn at `random`."""
    shared: bool = False
    """Whether there is an always-on expert as well, where the library has one."""
    base: str = ""
    """On the library's base, on its `16-bit` form, or on the `larger` one of the settings."""
    share: float = 1.0
    """Of the library's training tokens."""


@dataclass(frozen=True)
class Kind:
    """What an arm is, whatever its figures."""

    label: str
    """Short, for tables and figures."""
    explanation: str
    group: str
    """`base`, `dense` (one adapter for everything), `mixture` (the trained gate), `choice` (another way of choosing among
    the same experts), `control` (the same cost without the idea under test), or `bound` (knows the answer)."""
    mix: Mixer
    training: Training | None = None
    """None where the library's own adapters are used, as they are or merged."""
    apart: bool = False
    """Whether no mixture of adapters is the arm, so that it is measured on a model of its own (apart.py)."""
    merged: str = ""
    """How the library's experts are merged into one adapter, a key of merge.METHODS; nothing where they are not."""
    budget: str = "quick"
    """The smallest budget that measures it."""
    rival: bool = True
    """Whether the mixture is compared with it."""
    equal: str = ""
    """What it has in common with the mixture."""
    answers: bool = False
    """Whether it answers test questions, for the side by side and the share of right answers."""

    @property
    def own(self) -> bool:
        """Whether it uses the library's adapters as they are."""
        return self.training is None and not self.merged and not self.apart


def one_rank(library: Library) -> int:
    """The rank of one routed expert."""
    return max(int(library.cards[name]["rank"]) for name in library.names)


def shared_rank(library: Library) -> int:
    """The rank of the always-on expert, 0 without one."""
    return int(library.cards["shared"]["rank"]) if library.has_shared else 0


def active_rank(library: Library) -> int:
    """Shared plus two experts: what the top-2 gate uses."""
    return shared_rank(library) + min(2, len(library.names)) * one_rank(library)


def total_rank(library: Library) -> int:
    """All experts together: what the library holds in memory."""
    return shared_rank(library) + sum(int(library.cards[name]["rank"]) for name in library.names)


ARMS: Mapping[str, Kind] = {
    "base": Kind("base", "the base without adapters", "base", mixes.nothing, equal="no adapter", answers=True),
    "dense_rank": Kind(
        "dense, one expert's rank",
        "one adapter on all records, with the rank of one expert",
        "dense",
        mixes.uniform,
        Training(one_rank),
        equal="equal rank",
        answers=True,
    ),
    "dense_active": Kind(
        "dense, active rank",
        "one adapter on all records, with the rank a query uses",
        "dense",
        mixes.uniform,
        Training(active_rank),
        equal="equal adapter FLOPs",
        answers=True,
    ),
    "dense_params": Kind(
        "dense, all ranks",
        "one adapter on all records, with the rank of all experts together",
        "dense",
        mixes.uniform,
        Training(total_rank),
        budget="standard",
        equal="equal memory",
    ),
    "dense_16bit": Kind(
        "dense, 16-bit base",
        "one adapter with the rank a query uses, on the base without 4-bit rounding",
        "dense",
        mixes.uniform,
        Training(active_rank, base="16-bit"),
        budget="full",
        equal="equal adapter FLOPs, four times the base's memory",
    ),
    "full": Kind(
        "full fine-tuning",
        "every weight of the unquantised base trained, at a learning rate of its own search",
        "dense",
        mixes.nothing,
        budget="full",
        equal="a whole model of 16 bits instead of adapters",
        apart=True,
    ),
    "larger_base": Kind(
        "dense, larger base",
        "one adapter of one expert's rank on the larger base of the settings; its loss counts per token of the library's base",
        "dense",
        mixes.uniform,
        Training(one_rank, base="larger"),
        equal="a larger base",
        answers=True,
    ),
    "shared_only": Kind("shared expert alone", "the library's always-on expert, no routed one", "choice", mixes.shared_alone),
    "uniform": Kind("uniform mix", "all experts, equally weighted", "choice", mixes.uniform),
    "ties": Kind(
        "experts merged by TIES",
        "all experts merged into one adapter with the rank a query uses: largest values, majority sign; no gate",
        "choice",
        mixes.merged,
        merged="ties",
        budget="full",
    ),
    "dare": Kind(
        "experts merged by DARE",
        "all experts merged into one adapter with the rank a query uses: half the values dropped at random; no gate",
        "choice",
        mixes.merged,
        merged="dare",
        budget="full",
    ),
    "random_slices": Kind(
        "random slices",
        "experts trained on slices drawn at random, with a gate fitted to them alike",
        "control",
        mixes.refitted,
        Training(one_rank, split="random", shared=True),
        budget="standard",
    ),
    "isolated": Kind(
        "isolated experts",
        "experts trained without a shared one, with a gate fitted to them alike",
        "control",
        mixes.refitted,
        Training(one_rank, split="slices"),
        budget="full",
    ),
    "random_gate": Kind("random expert", "one expert per query, drawn evenly", "control", mixes.at_random, budget="full"),
    "shuffled_gate": Kind(
        "shuffled gate", "the trained gate's routes dealt to other queries", "control", mixes.shuffled, budget="standard"
    ),
    "best_fixed": Kind(
        "best fixed expert",
        "per slice, the expert that was best on the gate's records",
        "choice",
        mixes.best_fixed,
        budget="standard",
    ),
    "neighbours": Kind(
        "nearest neighbours",
        "share of each slice among the nearest training records",
        "choice",
        mixes.nearest_neighbours,
        budget="full",
    ),
    "label_gate": Kind(
        "slice classifier",
        "the two likeliest slices under a logistic regression of the slice",
        "choice",
        mixes.label_classifier,
        budget="full",
    ),
    "arrow": Kind(
        "Arrow",
        "every token's two experts in every layer, by the main direction of their weights; PEFT's own, no gate",
        "choice",
        mixes.shared_alone,
        apart=True,
        budget="full",
    ),
    "cbtm": Kind("c-BTM", "softmax over the similarity to slice centroids, two kept", "choice", mixes.cbtm),
    "gate_top1": Kind("gate, top 1", "the trained gate's first expert", "mixture", mixes.routed("top1")),
    "gate_top2": Kind(
        "gate, top 2", "the trained gate's first two experts, mixed", "mixture", mixes.routed("top2"), rival=False, answers=True
    ),
    "gate_soft": Kind("gate, soft", "all experts, weighted by the trained gate", "mixture", mixes.routed("soft"), rival=False),
    "oracle": Kind("oracle", "the best expert of each record in hindsight: a bound, not a method", "bound", mixes.oracle),
}
"""Every arm, in the order in which reports list them."""


def arms_of(budget: str, library: Library, larger: str = "") -> list[str]:
    """Arms that a budget measures on this library; `larger` names the larger base, if there is one.

    Raises ConfigError for an unknown budget.
    """
    if budget not in BUDGETS:
        raise ConfigError(f"report.budget = {budget!r}: use one of {', '.join(BUDGETS)}")
    chosen = [name for name, kind in ARMS.items() if BUDGETS.index(kind.budget) <= BUDGETS.index(budget)]
    ranks = {int(library.cards[name]["rank"]) for name in library.names}
    impossible = {
        "shared_only": not library.has_shared,
        "isolated": not library.has_shared,  # the library is isolated itself
        "larger_base": not larger,
        "dense_16bit": library.base.quantization != "nf4",
        "full": library.base.quantization == "gptq",  # holds no weights that could be trained
        "ties": len(library.names) == 1,
        "dare": len(library.names) == 1,
        "arrow": len(library.names) == 1 or len(ranks) > 1,  # PEFT's asks for equal ranks
    }
    return [name for name in chosen if not impossible.get(name, False)]
