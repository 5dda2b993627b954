"""Every setting, as frozen dataclasses; the string under a field is its help, in the CLI and in moe-router.toml."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_router.errors import ConfigError


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _need(value in allowed, f"{name} = {value!r}: use one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class BaseConfig:
    """The frozen base that all experts share."""

    model: str = "embedded"
    """`embedded`, a folder with a transformers causal LM, or a Hugging Face hub id (downloaded only when named here)."""
    quantization: str = "nf4"
    """`nf4` (4-bit NormalFloat, double quantisation), `gptq` for checkpoints that are so already, or `none`."""
    dtype: str = "bfloat16"
    """Compute type: `bfloat16`, `float16` or `float32`."""

    def __post_init__(self) -> None:
        _choice("base.quantization", self.quantization, ("nf4", "gptq", "none"))
        _need(
            self.dtype in ("bfloat16", "float16", "float32"),
            f"base.dtype = {self.dtype!r}: use 'bfloat16', 'float16' or 'float32'",
        )


@dataclass(frozen=True)
class DataConfig:
    """From raw exports to split records."""

    prompt_field: str = ""
    """Column that holds the prompt; empty: guessed from the usual names, and said."""
    response_field: str = ""
    """Column that holds the response; empty: guessed from the usual names, and said."""
    speakers: str = ""
    """Who is who in chat logs, where the names are not the usual ones: `Ana=user,Rui=assistant`."""
    template: str = "plain"
    """A conversation's text: `plain`, `chat` (the base's own), `stablebeluga`, `llama2`, `falcon`, `guanaco` or `alpaca`."""
    max_chars: int = 20_000
    """Longest prompt and response together, in characters; longer records are rejected."""
    pii: str = "redact"
    """Personal data and secrets: `redact` puts placeholders such as [EMAIL_1], `drop` rejects the record, `keep` keeps."""
    pii_allow: str = ""
    """What is not personal: values and @domains, separated by commas, such as the company's own addresses."""
    pii_regions: str = "US,GB,PT,BR"
    """Countries whose phone numbers are known without a country code (ISO codes, separated by commas)."""
    near_duplicates: str = "drop"
    """Records with nearly an earlier one's prompt, and its answer: `drop` rejects them, `keep` keeps them in its split."""
    languages: str = ""
    """Keep records in these languages only (ISO 639-1 codes, separated by commas; empty: all)."""
    synthetic_share: float = 0.3
    """Most of the training records (share) that may be synthetic, as `synthesize` writes them; the rest are rejected."""
    limit: int = 0
    """Keep at most this many records, sampled by seed over the whole input (0: all)."""
    gate_share: float = 0.12
    """Share of records (by group) that only the gate is fitted on."""
    tune_share: float = 0.08
    """Share of records (by group) that settings are chosen on."""
    test_share: float = 0.12
    """Share of records (by group) that only the report reads."""
    seed: int = 0
    """Decides the split and the sample."""

    def __post_init__(self) -> None:
        shares = (self.gate_share, self.tune_share, self.test_share)
        _need(all(0 < share < 1 for share in shares), "data: gate_share, tune_share and test_share lie between 0 and 1")
        _need(sum(shares) <= 0.8, "data: gate_share + tune_share + test_share leave less than 20 % for training: lower them")
        _need(self.pii in ("redact", "drop", "keep"), f"data.pii = {self.pii!r}: use 'redact', 'drop' or 'keep'")
        _need(
            self.near_duplicates in ("drop", "keep"), f"data.near_duplicates = {self.near_duplicates!r}: use 'drop' or 'keep'"
        )
        _need(self.max_chars >= 1, f"data.max_chars = {self.max_chars}: at least 1")
        _need(0 <= self.synthetic_share < 1, f"data.synthetic_share = {self.synthetic_share}: from 0 up to, not including, 1")
        _need(self.limit >= 0, "data.limit is negative: use 0 for all records")


TRIED_K = (1, 2, 4, 8, 16)
"""Numbers of slices that are tried where `slice.k` is `auto`."""


@dataclass(frozen=True)
class SliceConfig:
    """Grouping records into slices, one expert each."""

    k: int = field(default=8, metadata={"auto": 0})
    """Number of slices; `auto` (0 in moe-router.toml): chosen by what each number gains on held-out records."""
    by: str = ""
    """Field of the records whose values are the slices, such as `department` (empty: slices are clusters)."""
    by_as: str = "slices"
    """With `by`: `slices` makes each value a slice, `bounds` makes k clusters of which none mixes values."""
    embedder: str = "all-MiniLM-L6-v2"
    """Sentence embedder: the default ships offline; any other sentence-transformers id or folder works."""
    max_ratio: float = 1.5
    """No slice holds more than this many times the mean size."""
    min_records: int = 20
    """Fewer training records than this are too few for an expert."""
    outliers: float = 0.05
    """Largest share of the training records that a slice named `other` takes in: records like no other (0: none)."""
    probe_records: int = 600
    """Training records that each number of slices is tried on where k is `auto`."""
    seed: int = 0
    """Seeds the clustering."""

    def __post_init__(self) -> None:
        _need(self.k >= 0, f"slice.k = {self.k}: at least 1, or 0 to have it chosen")
        _need(self.by_as in ("slices", "bounds"), f"slice.by_as = {self.by_as!r}: use 'slices' or 'bounds'")
        _need(0 <= self.outliers < 0.5, f"slice.outliers = {self.outliers}: from 0 up to, not including, 0.5")
        _need(self.probe_records >= 100, f"slice.probe_records = {self.probe_records}: at least 100")
        _need(self.max_ratio >= 1.0, f"slice.max_ratio = {self.max_ratio}: at least 1.0")
        _need(self.min_records >= 1, f"slice.min_records = {self.min_records}: at least 1")
        _need(bool(self.embedder.strip()), "slice.embedder is empty: name a sentence-transformers folder or id")

    @property
    def most(self) -> int:
        """The number of slices to plan for: `k`, or the largest that is tried where it is chosen."""
        return self.k or max(TRIED_K)


@dataclass(frozen=True)
class ExpertsConfig:
    """Training the shared expert and the routed ones, all in one pass."""

    mode: str = "shared"
    """`shared` (one always-on expert plus routed ones) or `isolated` (routed only: deleting an expert deletes its slice)."""
    rank: int = 8
    """LoRA rank of each routed expert."""
    shared_rank: int = 8
    """LoRA rank of the shared expert (ignored in isolated mode)."""
    shared_first: bool = False
    """Train the shared expert first, then the routed ones over it, frozen; else all together (ignored in isolated mode)."""
    alpha: float = 16.0
    """LoRA alpha; the scale is alpha/sqrt(rank) with rsLoRA, else alpha/rank."""
    rslora: bool = True
    """Rank-stabilised scaling (Kalajdzievski 2023)."""
    dropout: float = 0.0
    """Dropout on the adapter's input while training."""
    targets: str = "all"
    """Layers with adapters: `all` linear ones, `attention`, or the ends of their names, as in `q_proj,v_proj`."""
    start: str = "kaiming"
    """How A begins: `kaiming` (PEFT's default) or `eva`, the main directions of each layer's inputs (Paischer et al. 2024)."""
    replay: float = 0.0
    """Records of other slices that an expert sees, as a share of its own (0.1: one in ten more; ignored in isolated mode)."""
    optimizer: str = "adamw"
    """`adamw`, or bitsandbytes' `paged_adamw_32bit` or `paged_adamw_8bit`, which take less GPU memory."""
    learning_rate: float = 2e-3
    """Peak learning rate of the routed experts."""
    shared_learning_rate: float = 2e-3
    """Peak learning rate of the shared expert."""
    dense_learning_rate: float = 2e-3
    """Peak learning rate of the report's dense rivals."""
    search_rates: bool = True
    """Search the experts' learning rates, and each trained arm's of the report, on at most 10 % of the training tokens."""
    schedule: str = "linear"
    """Learning rate after the warm-up: `linear` or `cosine` down to a tenth, or `constant`."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    warmup: float = 0.05
    """Share of an expert's steps spent warming up."""
    epochs: float = 3.0
    """Passes over each slice's training records."""
    steps: int = 0
    """Steps of every expert instead of `epochs` (0: epochs decide)."""
    row_tokens: int = 64
    """Tokens of one packed row."""
    batch_tokens: int = 64
    """Tokens that each expert sees in a step, in rows of `row_tokens`."""
    micro_tokens: int = 0
    """At most this many tokens pass through the base at once; their gradients are summed (0: the whole step)."""
    max_tokens: int = 512
    """Longest record in tokens; longer ones keep the end of the prompt and the start of the response."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    clip: float = 1.0
    """Gradient norm limit, per expert."""
    evaluate_every: int = 0
    """Evaluate every expert on its slice's tune records after this many of its steps, and keep its best state (0: never)."""
    patience: int = 0
    """Stop an expert after this many evaluations in a row without a better one (0: never)."""
    experts_per_pass: int = 0
    """Routed experts trained at a time, isolated or over a frozen shared one (0: as many as the free memory should hold)."""
    checkpoint_seconds: float = 60.0
    """How often training writes a checkpoint."""
    tensorboard: bool = False
    """Write TensorBoard logs to .moe-router/logs (needs the extra `tensorboard`)."""
    seed: int = 0
    """Seeds initialisation, order and dropout, per expert."""

    def __post_init__(self) -> None:
        _choice("experts.mode", self.mode, ("shared", "isolated"))
        _choice("experts.start", self.start, ("kaiming", "eva"))
        _choice("experts.optimizer", self.optimizer, ("adamw", "paged_adamw_32bit", "paged_adamw_8bit"))
        _choice("experts.schedule", self.schedule, ("linear", "cosine", "constant"))
        _need(self.rank >= 1, f"experts.rank = {self.rank}: at least 1")
        _need(self.shared_rank >= 0, f"experts.shared_rank = {self.shared_rank}: at least 0")
        _need(0 <= self.dropout < 1, f"experts.dropout = {self.dropout}: from 0 up to, not including, 1")
        _need(bool(self.targets.strip()), "experts.targets is empty: use 'all', 'attention', or names such as 'q_proj,v_proj'")
        _need(0 <= self.replay <= 1, f"experts.replay = {self.replay}: from 0 to 1")
        _need(self.epochs > 0, f"experts.epochs = {self.epochs}: more than 0")
        _need(0 <= self.warmup < 1, f"experts.warmup = {self.warmup}: from 0 up to, not including, 1")
        for name in ("row_tokens", "max_tokens", "batch_tokens"):
            _need(getattr(self, name) >= 16, f"experts.{name} = {getattr(self, name)}: at least 16")
        for name in ("steps", "micro_tokens", "evaluate_every", "patience", "experts_per_pass"):
            _need(getattr(self, name) >= 0, f"experts.{name} = {getattr(self, name)}: at least 0")
        _need(
            not self.patience or self.evaluate_every > 0,
            "experts.patience counts evaluations: set evaluate_every as well",
        )
        rates = (self.learning_rate, self.shared_learning_rate, self.dense_learning_rate)
        _need(all(rate > 0 for rate in rates), "experts: learning rates are more than 0")

    @property
    def rows_per_step(self) -> int:
        """Rows of each expert in a step."""
        return max(1, self.batch_tokens // self.row_tokens)


@dataclass(frozen=True)
class GateConfig:
    """The gate: which experts answer a query."""

    mode: str = "top2"
    """Default mode of the router: `top1`, `top2`, another number, or `soft` (all experts)."""
    max_experts: int = 0
    """Most experts of a query, which bounds its FLOPs, whatever the mode (0: as many as the mode keeps)."""
    features: str = "embedding"
    """What the gate sees of a query: its sentence `embedding`, the base's `hidden` state after its first layers, or `both`."""
    hidden_layer: int = 1
    """Layers of the base that are run for the hidden state (without effect where features is `embedding`)."""
    abstain_coverage: float = 0.995
    """Share of in-domain queries that the gate should accept; the abstain threshold follows from it."""
    abstain_to: str = "shared"
    """What answers when the gate abstains: `shared` (the shared expert alone), `base`, or `message` (a fixed text)."""
    abstain_message: str = "I have nothing on this in what I was trained on."
    """The text given when the gate abstains and abstain_to is `message`."""
    seed: int = 0
    """Seeds the fit."""

    def __post_init__(self) -> None:
        known = re.fullmatch(r"top[1-9]\d?|soft", self.mode)
        _need(known is not None, f"gate.mode = {self.mode!r}: use 'top1', 'top2', another number, or 'soft'")
        _choice("gate.features", self.features, ("embedding", "hidden", "both"))
        _need(self.hidden_layer >= 1, f"gate.hidden_layer = {self.hidden_layer}: at least 1")
        _need(self.max_experts >= 0, f"gate.max_experts = {self.max_experts}: at least 1, or 0 for no bound")
        _need(0 < self.abstain_coverage <= 1, "gate.abstain_coverage lies above 0 and at most 1")
        _need(
            self.abstain_to in ("shared", "base", "message"),
            f"gate.abstain_to = {self.abstain_to!r}: use 'shared', 'base' or 'message'",
        )
        _need(bool(self.abstain_message.strip()), "gate.abstain_message is empty: say what a user should read")


@dataclass(frozen=True)
class GenerationConfig:
    """How answers are generated."""

    max_new_tokens: int = 64
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 is greedy; higher is more varied."""
    top_p: float = 1.0
    """Nucleus sampling: keep the smallest set of tokens with this much probability."""
    seed: int = 0
    """Makes sampling repeatable."""

    def __post_init__(self) -> None:
        _need(self.max_new_tokens >= 1, f"generation.max_new_tokens = {self.max_new_tokens}: at least 1")
        _need(self.temperature >= 0, f"generation.temperature = {self.temperature}: at least 0")
        _need(0 < self.top_p <= 1, f"generation.top_p = {self.top_p}: above 0 and at most 1")


@dataclass(frozen=True)
class ReportConfig:
    """The comparison with dense adapters."""

    budget: str = "quick"
    """Which arms are measured: `quick`, `standard` (all fair rivals and controls) or `full` (every gate and training mode)."""
    seeds: int = 1
    """Training seeds of the mixture and of its fair rival; more than one show how much of a difference is luck."""
    curve: bool = False
    """Train the mixture and its fair rival on a quarter and on half of the tokens too, for a curve of both."""
    examples: int = 8
    """Test questions shown with every arm's answer, side by side (0: none)."""
    answered: int = 32
    """Test questions that are answered to be judged, where the data has no key facts (with them all are)."""
    samples: int = 15
    """Answers drawn to each of a few test questions, to see how far an arm agrees with itself (0: none)."""
    larger_base: str = ""
    """A larger base to train a dense adapter on for comparison, a folder or hub id (empty: none)."""
    price_per_hour: float = 0.0
    """What the machine costs an hour, in any currency, for costs beside FLOPs (0: not given)."""
    bootstrap: int = 1000
    """Resamples behind each 95 % interval."""
    seed: int = 0
    """Seeds the bootstrap, random slices and shuffled routes."""

    def __post_init__(self) -> None:
        budgets = ("quick", "standard", "full")
        _need(self.budget in budgets, f"report.budget = {self.budget!r}: use one of {', '.join(budgets)}")
        _need(self.seeds >= 1, f"report.seeds = {self.seeds}: at least 1")
        counts = (self.examples, self.answered, self.samples)
        _need(all(count >= 0 for count in counts), "report: examples, answered and samples are at least 0")
        _need(self.price_per_hour >= 0, f"report.price_per_hour = {self.price_per_hour}: at least 0")
        _need(self.bootstrap >= 1, f"report.bootstrap = {self.bootstrap}: at least 1")


@dataclass(frozen=True)
class Config:
    """All settings of a workspace, one section each in moe-router.toml."""

    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    slice: SliceConfig = field(default_factory=SliceConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    @classmethod
    def load(cls, path: Path) -> Config:
        """Settings of a TOML file; a missing file gives the defaults. Raises ConfigError naming file and key."""
        if not path.exists():
            return cls()
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}; correct it, or delete it and run `moe-router init`") from error
        try:
            return cls().override(tables)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def override(self, tables: dict[str, dict[str, Any]]) -> Config:
        """A copy with the given values replaced: `{"slice": {"k": 6}}`. Raises ConfigError for unknown names."""
        sections = {}
        for name, values in tables.items():
            section = getattr(self, name, None)
            if not dataclasses.is_dataclass(section) or not isinstance(values, dict):
                raise ConfigError(f"unknown section [{name}]: use one of {', '.join(f.name for f in dataclasses.fields(self))}")
            kinds = typing.get_type_hints(type(section))
            sections[name] = dataclasses.replace(
                section, **{key: _convert(f"{name}.{key}", value, kinds.get(key)) for key, value in values.items()}
            )
        return dataclasses.replace(self, **sections)

    def to_toml(self) -> str:
        """The settings as TOML, every key with its help as a comment."""
        lines = ["# Settings of this moe-router workspace. Flags override them.", ""]
        for section in dataclasses.fields(self):
            values = getattr(self, section.name)
            lines += [f"# {inspect.getdoc(type(values))}", f"[{section.name}]"]
            for key, text in field_help(type(values)).items():
                lines += [*(f"# {line}" for line in textwrap.wrap(text, 110)), f"{key} = {_toml(getattr(values, key))}"]
            lines.append("")
        return "\n".join(lines)


def _convert(name: str, value: Any, kind: type | None) -> Any:
    if kind is None:
        raise ConfigError(f"unknown setting {name}: see `moe-router init` for all of them")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name} = {value!r}: expected {kind.__name__}")
    return value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


@functools.cache
def field_help(section: type) -> dict[str, str]:
    """Help of each field of a config class: the string literal that stands under it in the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(section)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    return {
        node.target.id: " ".join(ast.literal_eval(after.value).split())
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
