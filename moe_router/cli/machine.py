"""doctor."""

from __future__ import annotations

from moe_router.cli.common import Session, command, register


@command(
    "slice.k",
    "experts.mode",
    "experts.rank",
    "experts.shared_rank",
    "experts.row_tokens",
    "experts.batch_tokens",
    "experts.micro_tokens",
    "experts.max_tokens",
    "experts.gradient_checkpointing",
    "experts.optimizer",
    "base.dtype",
    example="moe-router doctor --recipe consumer-12gb --k 16",
)
def _doctor(session: Session) -> None:
    """Say what this machine can do, and which bases fit.

    Versions, devices, whether NF4 works, free memory, and the arithmetic of 7 B to 65 B for training and for answering.
    """
    from moe_router.doctor import examine

    with session.working():
        found = examine(session.workspace, session.config)
    session.answer(found.to_json(), found.lines())


doctor = register(_doctor, "doctor")
