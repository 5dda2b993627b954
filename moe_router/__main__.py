"""python -m moe_router."""

from moe_router.cli import main

main()
