"""`python -m cellar_trainer`, as torchrun starts it."""

from cellar_trainer.cli import main

main()
