"""The report's rows, measured from losses."""

import numpy as np
import pytest
from report_fake import fake

from moe_router.errors import LibraryError
from moe_router.report.arms import Arm, Comparison, Costs


def test_an_arm_is_measured_from_its_losses():
    costs = Costs(2.0, 1.0, 3.0, 4, 5)
    arm = Arm.measured("cbtm", np.array([4.0, 6.0]), np.array([2, 3]), costs, resamples=50, learning_rate=1e-3)
    assert (arm.perplexity, arm.nats_per_token, arm.target_tokens) == (pytest.approx(np.exp(2)), 2.0, 5)
    assert (arm.label, arm.flops_per_token, arm.active_adapter_params) == ("c-BTM", 2.0, 5)
    assert arm.learning_rate == 1e-3


def test_a_loss_that_is_not_finite_is_refused_by_name():
    with pytest.raises(LibraryError, match="dense_rank: 1 of 2"):
        Arm.measured("dense_rank", np.array([1.0, np.nan]), np.array([1, 1]), Costs(1, 1, 1, 1, 1))


def test_an_unknown_arm_is_refused():
    with pytest.raises(LibraryError, match="unknown arm 'mystery'"):
        Arm("mystery", "", 1, (1, 1), 0, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("ci95", "outcome"), [((-0.2, -0.1), "better"), ((0.1, 0.2), "worse"), ((-0.1, 0.2), "open"), ((0.0, 0.2), "open")]
)
def test_an_interval_decides_what_is_shown(ci95, outcome):
    assert Comparison("gate_top2", "base", sum(ci95) / 2, ci95, 0.01).outcome == outcome


def test_an_interval_that_only_just_excludes_0_shows_nothing_where_p_disagrees():
    assert Comparison("gate_top2", "base", -0.04, (-0.07, -0.0002), 0.052).outcome == "open"


def test_the_parts_of_a_regret_add_up():
    report = fake()
    ours, rival = report.arm("gate_top2"), report.arm("dense_active")
    assert report.regret.total == pytest.approx(ours.nats_per_token - rival.nats_per_token)
