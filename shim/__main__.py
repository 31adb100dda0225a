"""`python -m lighter.shim`: the spawner."""

from lighter.shim.spawner import main

main()
