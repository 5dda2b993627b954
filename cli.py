from moe_router.cli import main

main()
