"""A seeded, fictional company with exports to try everything on."""

from moe_router.data.sample.company import Fact, company_name, facts, key_fact_found
from moe_router.data.sample.exports import write_sample

__all__ = ["Fact", "company_name", "facts", "key_fact_found", "write_sample"]
